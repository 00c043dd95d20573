//! What a leader proposes by itself: pure functions from what it sees to commands. Each is checked again when applied,
//! so that a leader that sees old things does no harm.

mod history;

pub use history::{Historian, History};

use crate::error::Fault;
use crate::ids::NodeId;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::{AlarmRequest, AlarmType, CompactionRequest};
use crate::proto::v1::{self, Member, MemberRole, command::Kind};
use crate::raft::core::{Role, Status};
use crate::scheduler;
use crate::state::auth::ROOT;
use crate::state::table::Read;
use crate::state::{command, kv, lease, member, session, task, worker};
use crate::time::ClusterTime;

/// Entries that a learner may lack and still count as caught up.
const CAUGHT_UP_WITHIN: u64 = 100;

/// The commands that end sessions which have been idle for too long, the leases of workers which were not renewed, and those
/// on keys which were not kept alive until `soon`, which the next stamp is not before. With `keep_time` one is also given, empty,
/// while there is anything that may expire: its stamp is what lets time go on.
///
/// # Errors
/// The database failed.
pub fn expire(
    head: &v1::Head,
    rows: &impl Read,
    soon: ClusterTime,
    keep_time: bool,
) -> Result<Vec<v1::Command>, Fault> {
    let now = ClusterTime(head.cluster_time_ms);
    let leases: Vec<i64> = lease::ended(head, rows, soon)?.into_iter().map(|lease| lease.0).collect();
    let sessions: Vec<u64> = session::idle(rows, now)?.into_iter().map(|session| session.0).collect();
    let expired = worker::all(rows)?.into_iter().filter(|worker| worker::is_expired(worker, now));
    let workers: Vec<u64> = expired.map(|worker| worker.id).collect();
    let mut kinds = Vec::new();
    if !sessions.is_empty() {
        kinds.push(Kind::ExpireSessions(v1::ExpireSessions { sessions }));
    }
    if !leases.is_empty() {
        kinds.push(Kind::ExpireLeases(v1::ExpireLeases { leases }));
    }
    let may_expire = head.sessions_live + head.workers_live + head.leases_live > 0;
    if !workers.is_empty() || kinds.is_empty() && keep_time && may_expire {
        kinds.push(Kind::ExpireWorkers(v1::ExpireWorkers { workers }));
    }
    Ok(kinds.into_iter().map(|kind| command::plain(ROOT, kind)).collect())
}

/// The command that gives tasks to workers; `None` if there is none to give.
///
/// # Errors
/// The database failed.
pub fn assign(head: &v1::Head, rows: &impl Read) -> Result<Option<v1::Command>, Fault> {
    if head.tasks_pending == 0 || head.workers_live == 0 {
        return Ok(None);
    }
    let now = ClusterTime(head.cluster_time_ms);
    let assignments = scheduler::place(&task::placeable(rows, now)?, &worker::of_members(rows)?, now);
    let wanted = !assignments.is_empty();
    let kind = Kind::AssignTasks(v1::AssignTasks { assignments });
    Ok(wanted.then_some(command::plain(ROOT, kind)))
}

/// The command that removes some of what was compacted from the database; `None` if nothing is left.
pub fn sweep(head: &v1::Head) -> Option<v1::Command> {
    let kind = Kind::SweepVersions(v1::SweepVersions {});
    kv::is_sweeping(head).then_some(command::plain(ROOT, kind))
}

/// The command that forgets what was superseded before a revision.
pub fn compact(revision: u64) -> v1::Command {
    let kind = Kind::Compact(CompactionRequest { revision: kv::signed(revision), physical: false });
    command::plain(ROOT, kind)
}

/// The command that raises the alarm that a member's keys take more than they may.
pub fn raise_no_space(member: NodeId) -> v1::Command {
    let request =
        AlarmRequest { action: AlarmAction::Activate.into(), member_id: member.0, alarm: AlarmType::Nospace.into() };
    command::plain(ROOT, Kind::Alarm(request))
}

/// The command that begins the newest format in which all take part that keep the state; `None` if that is the one there is, or if
/// it is not known of one of them. `of` says it of each.
pub fn raise_format(head: &v1::Head, members: &[Member], of: impl Fn(NodeId) -> Option<u32>) -> Option<v1::Command> {
    let members: Vec<u64> = members.iter().filter(|row| member::is_server(row)).map(|row| row.id).collect();
    let formats: Option<Vec<u32>> = members.iter().map(|id| of(NodeId(*id))).collect();
    let to = formats?.into_iter().min()?;
    (to > head.format).then(|| command::plain(ROOT, Kind::RaiseFormat(v1::RaiseFormat { to, members })))
}

/// Whether a learner answers its leader and lacks little of the log.
pub fn has_caught_up(status: &Status, id: NodeId) -> bool {
    let is_heard = status.learners.contains(&id) && status.active.contains(&id);
    let matched = status.matched.get(&id).filter(|_| is_heard);
    matched.is_some_and(|matched| matched.0 > 0 && matched.0 + CAUGHT_UP_WITHIN >= status.last.0)
}

/// The change that makes learners voters: only those that are not to stand by, have caught up and answer, only to an odd number of voters,
/// and never beyond `voters_max`.
pub fn promote(status: &Status, members: &[Member], voters_max: usize) -> Option<v1::MemberChange> {
    if status.role != Role::Leader || status.joint {
        return None;
    }
    let ready = members.iter().filter(|member| {
        let id = NodeId(member.id);
        member.role() == MemberRole::Learner && !member.standby && has_caught_up(status, id)
    });
    let voters = status.voters.len();
    let room = voters_max.saturating_sub(voters);
    let mut chosen: Vec<Member> = ready.take(room).cloned().collect();
    if (voters + chosen.len()).is_multiple_of(2) {
        chosen.pop();
    }
    for member in &mut chosen {
        member.set_role(MemberRole::Voter);
    }
    (!chosen.is_empty()).then_some(v1::MemberChange { members: chosen })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Index, Term};
    use crate::limits::VOTERS_TARGET_MAX;
    use std::collections::BTreeMap;

    fn status(voters: u64, learners: u64) -> Status {
        let ids = |range: std::ops::RangeInclusive<u64>| range.map(NodeId).collect::<Vec<_>>();
        let all = ids(1..=voters + learners);
        Status {
            id: NodeId(1),
            role: Role::Leader,
            leader: Some(NodeId(1)),
            term: Term(2),
            commit: Index(500),
            applied: Index(500),
            first: Index(1),
            last: Index(500),
            matched: all.iter().skip(1).map(|id| (*id, Index(500))).collect::<BTreeMap<_, _>>(),
            active: all,
            voters: ids(1..=voters),
            learners: ids(voters + 1..=voters + learners),
            joint: false,
        }
    }

    fn promoted(status: &Status) -> Vec<u64> {
        let member = |id: &NodeId| Member { id: id.0, role: MemberRole::Learner.into(), ..Member::default() };
        let members: Vec<Member> = status.learners.iter().map(member).collect();
        promote(status, &members, VOTERS_TARGET_MAX)
            .map_or(Vec::new(), |change| change.members.iter().map(|member| member.id).collect())
    }

    #[test]
    fn learners_become_voters_in_odd_steps() {
        assert_eq!(promoted(&status(1, 1)), [] as [u64; 0], "two voters survive no more than one does");
        assert_eq!(promoted(&status(1, 2)), [2, 3]);
        assert_eq!(promoted(&status(1, 3)), [2, 3]);
        assert_eq!(promoted(&status(3, 4)), [4, 5]);
        assert_eq!(promoted(&status(5, 2)), [] as [u64; 0]);
        assert_eq!(promoted(&status(2, 1)), [3]);
    }

    #[test]
    fn only_who_has_caught_up_and_answers_is_promoted() {
        let mut behind = status(1, 2);
        behind.matched.insert(NodeId(3), Index(399));
        assert_eq!(promoted(&behind), [] as [u64; 0]);
        let mut empty = status(1, 2);
        (empty.last, empty.commit) = (Index(7), Index(7));
        empty.matched.insert(NodeId(3), Index(0));
        assert_eq!(promoted(&empty), [] as [u64; 0], "a short log is not a log that was received");
        let mut silent = status(1, 2);
        silent.active.retain(|id| *id != NodeId(3));
        assert_eq!(promoted(&silent), [] as [u64; 0]);
        let mut joint = status(1, 2);
        joint.joint = true;
        assert_eq!(promoted(&joint), [] as [u64; 0]);
    }
}

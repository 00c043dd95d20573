//! Oracle 8, from within: a lease that a worker was given or has renewed lasts its time, in the time of the cluster, whatever was
//! decided on an older one, and who has none, or takes nothing new, is given nothing (Gray & Cheriton, "Leases", 1989).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message;

use super::Violations;
use crate::entry::{Body, Entry, Outcome};
use crate::ids::{Index, NodeId};
use crate::limits::{WORKER_LEASE, WORKER_LEASE_MARGIN};
use crate::proto::v1::assign_tasks::Assignment;
use crate::proto::v1::{self, WorkerStatus, command, rejection, reply};
use crate::state::command::refused;
use crate::state::format::BOUNDED;
use crate::time::ClusterTime;

/// After a renewal a lease is over for the cluster when so much of its time has passed.
pub const LEASE_OVER: Duration = WORKER_LEASE.saturating_add(WORKER_LEASE_MARGIN);

/// Which workers there are, and until when they have their leases, as the committed entries tell.
#[derive(Default)]
pub struct Leases {
    workers: BTreeMap<NodeId, Known>,
    expired: BTreeMap<NodeId, ClusterTime>,
    /// What was carried out under sessions: what comes again is not.
    done: BTreeSet<(u64, u64)>,
    now: ClusterTime,
    last: Index,
    /// In which format the state is, as far as anyone has said.
    format: u32,
}

/// What the entries tell of a worker.
#[derive(Default)]
struct Known {
    renewed: ClusterTime,
    epoch: u64,
    status: WorkerStatus,
    drain_wanted: bool,
    /// What it is called since it began last; 0: nobody has said.
    life: u64,
}

impl Known {
    /// Whether it has a lease, as far as anyone has said.
    fn is_there(&self) -> bool {
        matches!(self.status, WorkerStatus::Online | WorkerStatus::Draining)
    }
}

impl Leases {
    /// A member applied an entry. The first to do so tells, for all give the same answers.
    pub fn on_applied(&mut self, entry: &Entry, outcome: &Outcome, violations: &Violations) {
        let Body::Commands { stamp, commands } = &entry.body else { return };
        if entry.index <= self.last {
            return;
        }
        self.last = entry.index;
        self.now = self.now.max(*stamp);
        for (command, reply) in commands.iter().zip(&outcome.replies) {
            if let (Ok(command), Ok(reply)) = (v1::Command::decode(&**command), v1::Reply::decode(&**reply)) {
                self.on_command(&command, &reply, violations);
            }
        }
    }

    fn on_command(&mut self, command: &v1::Command, reply: &v1::Reply, violations: &Violations) {
        let now = self.now;
        let refusal = refused(reply);
        match (&command.kind, &reply.kind) {
            (Some(command::Kind::RegisterWorker(register)), Some(reply::Kind::WorkerLease(lease))) => {
                let worker = self.workers.entry(NodeId(register.worker)).or_default();
                (worker.renewed, worker.epoch) = (now, lease.epoch);
                worker.life = if self.format >= BOUNDED { register.life } else { worker.life };
                worker.status = if worker.drain_wanted { WorkerStatus::Draining } else { WorkerStatus::Online };
            }
            (Some(command::Kind::RenewWorker(renew)), Some(reply::Kind::WorkerLease(_))) => {
                let worker = self.workers.entry(NodeId(renew.worker)).or_default();
                worker.renewed = now;
                if let Some(registered) = renew.registered.as_ref().filter(|_| self.format >= BOUNDED) {
                    worker.life = registered.life;
                }
            }
            (Some(command::Kind::RaiseFormat(_)), Some(reply::Kind::RaiseFormat(reply))) => self.format = reply.format,
            (Some(command::Kind::RenewWorker(renew)), _)
                if matches!(refusal, Some(rejection::Kind::WorkerOffline(_))) =>
            {
                let worker = self.workers.entry(NodeId(renew.worker)).or_default();
                let age = now.since(worker.renewed);
                if worker.is_there() && worker.epoch == renew.epoch && age < LEASE_OVER {
                    let what = format!("the lease of worker {} was over {age:?} after it was renewed", renew.worker);
                    violations.add("a lease lasts its time", what);
                }
            }
            (Some(command::Kind::SetWorkerStatus(set)), _) => {
                let header = command.session.as_ref();
                let is_first = |done: &mut BTreeSet<_>| header.is_none_or(|it| done.insert((it.session, it.seq)));
                if refusal.is_none() && is_first(&mut self.done) {
                    let worker = self.workers.entry(NodeId(set.worker)).or_default();
                    if !set.wish && self.format >= BOUNDED && ![0, set.life].contains(&worker.life) {
                        let what =
                            format!("worker {} is {:?}, as it said in an earlier life", set.worker, set.status());
                        violations.add("what was said in an earlier life does not count", what);
                    }
                    worker.status = set.status();
                    if set.wish {
                        worker.drain_wanted = worker.status == WorkerStatus::Draining;
                    }
                }
            }
            (Some(command::Kind::ExpireWorkers(expire)), _) => {
                for id in expire.workers.iter().copied().map(NodeId) {
                    self.expired.insert(id, now);
                    let worker = self.workers.entry(id).or_default();
                    // One that was over too early is noticed when its worker wants to renew it.
                    if now.since(worker.renewed) >= LEASE_OVER {
                        worker.status = WorkerStatus::Offline;
                    }
                }
            }
            (Some(command::Kind::AssignTasks(assign)), Some(reply::Kind::AssignTasks(reply))) => {
                let usable = assign.assignments.iter().filter(|assignment| self.may_have(assignment)).count() as u64;
                if reply.assigned > usable {
                    let what = format!(
                        "{} tasks went to workers, {usable} to some that were there: {assign:?}",
                        reply.assigned
                    );
                    violations.add("tasks go to workers that are there", what);
                }
            }
            _ => {}
        }
    }

    /// Whether the worker of an assignment may be given something.
    fn may_have(&self, assignment: &Assignment) -> bool {
        self.workers.get(&NodeId(assignment.worker)).is_some_and(|worker| {
            let is_held = self.now.since(worker.renewed) < WORKER_LEASE;
            worker.status == WorkerStatus::Online && worker.epoch == assignment.epoch && is_held
        })
    }

    /// How long ago a worker renewed its lease; `None` of one that has none.
    pub fn age(&self, worker: NodeId) -> Option<Duration> {
        let worker = self.workers.get(&worker).filter(|worker| worker.is_there())?;
        Some(self.now.since(worker.renewed))
    }

    /// What a worker is called since it began last.
    pub fn life(&self, worker: NodeId) -> Option<u64> {
        self.workers.get(&worker).map(|worker| worker.life)
    }

    /// When a worker was last to lose its lease.
    pub fn expired(&self, worker: NodeId) -> Option<ClusterTime> {
        self.expired.get(&worker).copied()
    }
}

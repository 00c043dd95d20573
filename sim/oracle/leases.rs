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
use crate::time::ClusterTime;

/// After a renewal a lease is over for the cluster when so much of its time has passed.
pub const LEASE_OVER: Duration = WORKER_LEASE.saturating_add(WORKER_LEASE_MARGIN);

/// When each worker's lease was renewed last, and in which epoch, as the committed entries tell.
#[derive(Default)]
pub struct Leases {
    renewed: BTreeMap<NodeId, (ClusterTime, u64)>,
    expired: BTreeMap<NodeId, ClusterTime>,
    workers: BTreeMap<NodeId, Known>,
    /// What was carried out under sessions: what comes again is not.
    done: BTreeSet<(u64, u64)>,
    now: ClusterTime,
    last: Index,
}

/// What the entries tell of a worker.
#[derive(Default)]
struct Known {
    renewed: ClusterTime,
    epoch: u64,
    status: WorkerStatus,
    drain_wanted: bool,
}

impl Leases {
    /// A member applied an entry. The first to do so tells, for all give the same answers.
    pub fn on_applied(&mut self, entry: &Entry, outcome: &Outcome, violations: &Violations) {
        if entry.index <= self.last {
            return;
        }
        self.last = entry.index;
        match &entry.body {
            Body::Empty => {}
            Body::Commands { stamp, commands } => {
                self.now = self.now.max(*stamp);
                for (command, reply) in commands.iter().zip(&outcome.replies) {
                    if let (Ok(command), Ok(reply)) = (v1::Command::decode(&**command), v1::Reply::decode(&**reply)) {
                        self.on_command(&command, &reply, violations);
                    }
                }
            }
            // Who leaves has no lease any more; who else changes renews it soon.
            Body::Members { change, .. } => {
                let change = v1::MemberChange::decode(&**change).unwrap_or_default();
                self.renewed.retain(|id, _| change.members.iter().all(|member| member.id != id.0));
            }
        }
    }

    fn on_command(&mut self, command: &v1::Command, reply: &v1::Reply, violations: &Violations) {
        let offline = match &reply.kind {
            Some(reply::Kind::Rejection(rejection)) => {
                matches!(rejection.kind, Some(rejection::Kind::WorkerOffline(_)))
            }
            _ => false,
        };
        match (&command.kind, &reply.kind) {
            (Some(command::Kind::RegisterWorker(register)), Some(reply::Kind::WorkerLease(lease))) => {
                let id = NodeId(register.worker);
                self.renewed.insert(id, (self.now, lease.epoch));
                let worker = self.workers.entry(id).or_default();
                (worker.renewed, worker.epoch) = (self.now, lease.epoch);
                worker.status = if worker.drain_wanted { WorkerStatus::Draining } else { WorkerStatus::Online };
            }
            (Some(command::Kind::RenewWorker(renew)), Some(reply::Kind::WorkerLease(lease))) => {
                let id = NodeId(renew.worker);
                self.renewed.insert(id, (self.now, lease.epoch));
                self.workers.entry(id).or_default().renewed = self.now;
            }
            (Some(command::Kind::RenewWorker(renew)), _) if offline => {
                let worker = NodeId(renew.worker);
                let Some((at, epoch)) = self.renewed.remove(&worker) else { return };
                let age = self.now.since(at);
                if epoch == renew.epoch && age < LEASE_OVER {
                    let what = format!("the lease of worker {worker} was over {age:?} after it was renewed");
                    violations.add("a lease lasts its time", what);
                }
            }
            (Some(command::Kind::SetWorkerStatus(set)), reply) => {
                if set.status() == WorkerStatus::Offline {
                    self.renewed.remove(&NodeId(set.worker));
                }
                let header = command.session.as_ref();
                let refused = matches!(reply, Some(reply::Kind::Rejection(_)));
                if !refused && header.is_none_or(|header| self.done.insert((header.session, header.seq))) {
                    let worker = self.workers.entry(NodeId(set.worker)).or_default();
                    worker.status = set.status();
                    worker.drain_wanted =
                        if set.wish { worker.status == WorkerStatus::Draining } else { worker.drain_wanted };
                }
            }
            (Some(command::Kind::ExpireWorkers(expire)), _) => {
                for id in expire.workers.iter().copied().map(NodeId) {
                    self.expired.insert(id, self.now);
                    if let Some(worker) =
                        self.workers.get_mut(&id).filter(|it| self.now.since(it.renewed) >= LEASE_OVER)
                    {
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
        self.renewed.get(&worker).map(|(at, _)| self.now.since(*at))
    }

    /// When a worker was last to lose its lease.
    pub fn expired(&self, worker: NodeId) -> Option<ClusterTime> {
        self.expired.get(&worker).copied()
    }
}

//! Oracle 8, from within: a lease that a worker was given or has renewed lasts its time, in the time of the cluster, whatever was
//! decided on an older one (Gray & Cheriton, "Leases", 1989).

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;

use super::Violations;
use crate::entry::{Body, Entry, Outcome};
use crate::ids::{Index, NodeId};
use crate::limits::{WORKER_LEASE, WORKER_LEASE_MARGIN};
use crate::proto::v1::{self, WorkerStatus, command, rejection, reply};
use crate::time::ClusterTime;

/// After a renewal a lease is over for the cluster when so much of its time has passed.
pub const LEASE_OVER: Duration = WORKER_LEASE.saturating_add(WORKER_LEASE_MARGIN);

/// When each worker's lease was renewed last, and in which epoch, as the committed entries tell.
#[derive(Default)]
pub struct Leases {
    renewed: BTreeMap<NodeId, (ClusterTime, u64)>,
    expired: BTreeMap<NodeId, ClusterTime>,
    now: ClusterTime,
    last: Index,
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
                self.renewed.insert(NodeId(register.worker), (self.now, lease.epoch));
            }
            (Some(command::Kind::RenewWorker(renew)), Some(reply::Kind::WorkerLease(lease))) => {
                self.renewed.insert(NodeId(renew.worker), (self.now, lease.epoch));
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
            (Some(command::Kind::SetWorkerStatus(set)), _) if set.status() == WorkerStatus::Offline => {
                self.renewed.remove(&NodeId(set.worker));
            }
            (Some(command::Kind::ExpireWorkers(expire)), _) => {
                self.expired.extend(expire.workers.iter().map(|worker| (NodeId(*worker), self.now)));
            }
            _ => {}
        }
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

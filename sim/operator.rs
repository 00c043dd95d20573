//! What operators do, besides [upgrades](crate::sim::upgrade): they add and remove members, stop nodes, move leadership, drain workers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use madsim::time::{TimeHandle, sleep, timeout};

use crate::ids::{Address, NodeId};
use crate::node::machine::open_state;
use crate::proto::v1::{self, Worker, WorkerStatus};
use crate::raft::log::Log;
use crate::sim::cluster::{Cluster, Condemned, JOINT_PATIENCE, Member, wait};
use crate::sim::fault::Place;
use crate::sim::oracle::budget;
use crate::sim::world::{Down, Machine};
use crate::state::{format, member};

/// How long a member may take to hear that it was removed before nobody waits to start it again.
const REMOVAL_TOLD: Duration = Duration::from_secs(20);
/// How long a process that ends takes to close what it holds.
const CLOSED: Duration = Duration::from_millis(20);
/// How long an operator waits for a node to stop in order.
const STOP_MAX: Duration = Duration::from_secs(15);
/// How long an operator waits for a state to be written anew.
const DEFRAGMENT_PATIENCE: Duration = Duration::from_secs(10);
/// How long for a member to serve, and how often it is asked.
const SERVES_PATIENCE: Duration = Duration::from_secs(20);
const SERVES_LOOK: Duration = Duration::from_millis(100);

impl Cluster {
    /// Has an operator announce a machine that is yet to join: the id that is ready for it, and where.
    pub(super) async fn expect(&self, place: Place, expected: Option<bool>) -> Option<(NodeId, Address)> {
        let (address, standby) = (self.members[place].address(), expected?);
        let id = self.operator.expect_member(&address, standby).await.ok()?;
        Some((id, address))
    }

    /// Who was announced comes to be who it was to be; who stands by is promoted.
    pub(super) async fn arrive(&self, place: Place, (awaited, at): (NodeId, Address), was_cut: bool) {
        let member = &self.members[place];
        wait(JOINT_PATIENCE, || member.id().is_some()).await;
        let Some(id) = member.id() else { return };
        // Where its power was cut, it may have been taken in twice.
        if id != awaited && member.address() == at && !was_cut {
            let what = format!("machine {} was awaited as member {awaited}, and is {id}", member.machine.id);
            self.watch.violations.add("who is awaited is known", what);
        }
        // Long enough for a leader that forgets that it stands by.
        sleep(Duration::from_secs(3)).await;
        for _ in 0..10 {
            sleep(Duration::from_millis(500)).await;
            if self.operator.promote_member(id).await.is_ok() {
                return;
            }
        }
    }

    /// An operator removes a member, if it can be spared. Says whether that was done.
    pub(super) async fn remove(self: &Arc<Self>, place: Place) -> bool {
        let Some(id) = self.members[place].id() else { return false };
        let again = self.condemned().iter().any(|condemned| condemned.id == id);
        if !again && !self.affords(place, true) {
            return false;
        }
        sometimes!(again, "two operators removed one member");
        sometimes!(self.leader() == Some(place), "the leader was removed");
        if !again {
            self.condemn(Condemned { id, place, lost: false });
        }
        // Nothing while they are about to change.
        let voters = self.watch.voters();
        let left: Vec<NodeId> = voters.iter().flatten().copied().filter(|voter| *voter != id).collect();
        // Others know of one that is off when it has not answered for an election timeout.
        let long = 3 * self.plan.election_timeout_max();
        let is_long_off = |member: &&Arc<Member>| member.machine.off_for().is_some_and(|span| span > long);
        let long_off = self.members.iter().filter(is_long_off).filter_map(|member| member.id());
        let long_off: Vec<NodeId> = long_off.filter(|member| left.contains(member)).collect();
        let done = self.operator.remove_member(id).await;
        self.world.trace.event(format_args!("remove {id}: {done:?}"));
        // They may have come back while the operator tried.
        let still_off = self.members.iter().filter(is_long_off).filter_map(|member| member.id());
        let long_off: Vec<NodeId> = still_off.filter(|member| long_off.contains(member)).collect();
        if done.is_ok() && !again && place < self.plan.nodes && voters.is_some() {
            budget::check_removal(id, &left, &long_off, &self.watch.violations);
        }
        done.is_ok()
    }

    /// Starts a member again that was removed, once it says so, perhaps where it reaches nobody: then it must say so by itself, if
    /// it has learned it from the log.
    pub(super) async fn return_removed(self: &Arc<Self>, place: Place, alone: bool) {
        let member = &self.members[place];
        wait(REMOVAL_TOLD, || member.is_removed()).await;
        if !member.is_removed() {
            return;
        }
        sometimes!("a removed member was started again");
        member.machine.down(Down::Kill);
        let knows =
            alone && place < self.plan.nodes && member.id().is_some_and(|id| knows_removed(&member.machine, id));
        member.removed.store(false, Ordering::Relaxed);
        member.old.store(false, Ordering::Relaxed);
        if !knows {
            return self.boot(place);
        }
        sometimes!("a removed member was started again where it reaches nobody");
        self.set_isolated(place, true);
        self.boot(place);
        wait(REMOVAL_TOLD, || member.is_removed() || !member.machine.is_up()).await;
        if !member.is_removed() && member.machine.is_up() {
            let what = format!("machine {} does not say so, though its disk does", member.machine.id);
            self.watch.violations.add("a removed member knows it", what);
        }
        self.set_isolated(place, false);
    }

    /// Stops a node in order; its machine stays on. If it `exits`, its process ends when it has stopped, and closes what it holds.
    pub(super) async fn stop(&self, place: Place, exits: bool) {
        let Member { stop, machine, .. } = &*self.members[place];
        let Some((stop, stopped)) = stop.lock().unwrap().take() else { return };
        let has_stopped = stop.send(()).is_ok() && matches!(timeout(STOP_MAX, stopped).await, Ok(Ok(())));
        if has_stopped && exits {
            machine.down(Down::Exit);
            sleep(CLOSED).await;
        }
    }

    /// Has a member lead.
    pub(super) async fn transfer(&self, to: Place) {
        sometimes!(self.watch.is_joint(), "leadership was to be transferred in a joint configuration");
        if let Some(id) = self.members[to].id() {
            let done = self.operator.transfer_leader(Some(id)).await;
            self.world.trace.event(format_args!("transfer to {id}: {done:?}"));
        }
    }

    /// Has a member write its state anew.
    pub(super) async fn defragment(&self, place: Place) {
        if let Some(member) = self.row(place).await {
            let done = timeout(DEFRAGMENT_PATIENCE, self.operator.defragment(&member)).await;
            self.world.trace.event(format_args!("defragment {}: {done:?}", member.id));
        }
    }

    /// What the cluster says of a member; nothing if it says nothing.
    async fn row(&self, place: Place) -> Option<v1::Member> {
        let id = self.members[place].id()?;
        let members = self.operator.status().await.ok()?.members;
        members.into_iter().filter_map(|row| row.member).find(|member| NodeId(member.id) == id)
    }

    /// Waits until a member serves, but not for ever.
    pub(super) async fn await_serving(&self, place: Place) {
        let serves = async {
            while !self.serves(place).await {
                sleep(SERVES_LOOK).await;
            }
        };
        let served = timeout(SERVES_PATIENCE, serves).await.is_ok();
        self.world.trace.event(format_args!("place {place} serves: {served}"));
    }

    async fn serves(&self, place: Place) -> bool {
        let Some(row) = self.row(place).await else { return false };
        self.operator.ask_each(&[row]).await.into_values().any(|said| said.is_some_and(|(serving, _)| serving))
    }

    /// Has a worker take nothing new for a while.
    pub(super) async fn drain(&self, place: Place, span: Duration) {
        let Some(id) = self.members[place].id() else { return };
        let done = self.operator.set_worker_status(id, WorkerStatus::Draining).await;
        self.world.trace.event(format_args!("drain {id}: {done:?}"));
        sometimes!(done.is_ok(), "a worker was drained");
        sleep(span).await;
        // It may be offline just then; at the end all are looked at.
        let done = self.operator.set_worker_status(id, WorkerStatus::Online).await;
        self.world.trace.event(format_args!("resume {id}: {done:?}"));
    }

    /// Has all workers that stay take tasks again.
    ///
    /// # Errors
    /// How many do not, after so long.
    pub(super) async fn resume_workers(&self, patience: Duration) -> Result<(), String> {
        let deadline = TimeHandle::current().elapsed() + patience;
        loop {
            let workers = self.operator.list_workers().await.map_err(|error| error.to_string());
            let staying = self.members.iter().filter(|member| !member.is_removed());
            let stays = |worker: &&Worker| staying.clone().any(|member| member.id() == Some(NodeId(worker.id)));
            let drained = workers.map(|workers| {
                let drained = workers.iter().filter(stays).filter(|worker| worker.drain_wanted);
                drained.map(|worker| NodeId(worker.id)).collect::<Vec<_>>()
            });
            match drained {
                Ok(drained) if drained.is_empty() => return Ok(()),
                left if TimeHandle::current().elapsed() > deadline => return Err(format!("{left:?}")),
                Ok(drained) => {
                    for id in drained {
                        let _ = self.operator.set_worker_status(id, WorkerStatus::Online).await;
                    }
                }
                Err(_) => {}
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Whether the state on a machine's disk has it that a member was removed.
fn knows_removed(machine: &Machine, id: NodeId) -> bool {
    let disk = machine.disk.boot();
    let state = Log::open(&*disk).and_then(|log| open_state(&disk, &log, format::NEWEST));
    state.is_ok_and(|state| state.reader().view().is_ok_and(|(_, rows)| member::is_removed(&rows, id).unwrap_or(false)))
}

//! Faults that take several steps, each of which waits for what the one before has brought about: situations that nothing else
//! brings about but by a rare coincidence. Each is something that happens to real machines.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use madsim::runtime::NodeHandle;
use madsim::time::sleep;

use crate::client::Client;
use crate::ids::{Address, Index, NodeId};
use crate::io::Io;
use crate::limits::SESSION_TTL;
use crate::proto::etcdserverpb::{PutRequest, PutResponse};
use crate::sim::cluster::{CLIENT_TIMEOUT, Cluster, wait, wait_closely};
use crate::sim::disk::{Files, PowerCut};
use crate::sim::door::{Door, Etcd};
use crate::sim::fault::{Fault, Place};
use crate::sim::history::Seen;
use crate::sim::network::{MachineId, Words};
use crate::sim::oracle::leases::LEASE_OVER;
use crate::sim::world::Down;

/// How often is looked for what lasts for a moment only.
const CLOSELY: Duration = Duration::from_millis(1);
/// How long a step waits for the one before.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits for the end of a lease.
const LEASE_PATIENCE: Duration = Duration::from_secs(25);
/// How long a command waits for its answer, where that is what is looked at.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
/// Entries that a leader appends in vain, and that the next one appends meanwhile.
const IN_VAIN: u64 = 30;
const MEANWHILE: u64 = 4;
/// Commands that are sent where they may be left unanswered.
const ASKED: u64 = 8;
/// How often an echo comes.
const ECHOES: u64 = 5;
/// Sessions that are used late, and how long after each other.
const USED_LATE: u64 = 5;
const USES_APART: Duration = Duration::from_millis(90);
/// How long after its first word a worker that has come back has registered, if it is heard.
const REGISTERED: Duration = Duration::from_millis(250);
/// How often an operator tries to remove all voters but one.
const REMOVALS_MAX: usize = 10;

impl Cluster {
    /// One of the faults that take several steps.
    pub(super) async fn stage(self: &Arc<Self>, fault: Fault) {
        let network = &self.world.network;
        match fault {
            Fault::Far { delay, span } => {
                network.set_far(delay);
                sleep(span).await;
                network.set_far(Duration::ZERO);
            }
            Fault::Crowded { these, span } => {
                let these = || (0..self.members.len()).filter(move |place| these >> place & 1 == 1);
                these().for_each(|place| self.members[place].machine.crowd.set(true));
                sleep(span).await;
                these().for_each(|place| self.members[place].machine.crowd.set(false));
            }
            Fault::PauseLeader { span } => {
                if let Some(leader) = self.leader() {
                    let machine = &self.members[leader].machine;
                    machine.pause();
                    sleep(span).await;
                    machine.resume();
                }
            }
            Fault::Unanswered { direct, foreign, after, down } => {
                self.leave_unanswered((direct, foreign), after, down).await;
            }
            Fault::Diverge { cut, down } => self.diverge(cut, down).await,
            Fault::RemoveInMinority { down } => self.remove_in_minority(down).await,
            Fault::RemoveToLast { stalled, cut, down } => self.remove_to_last(stalled, cut, down).await,
            Fault::RemoveAndIsolate { node } => {
                let removed = self.remove(node).await;
                if removed {
                    self.return_removed(node, true).await;
                }
            }
            Fault::Echo { node, span, down } => self.echo(node, span, down).await,
            Fault::Behind { node, other, lag, span } => {
                let other = self.other_than_leader(other);
                let members = |place: Place| place < self.plan.nodes && place != other;
                self.set_between(|place| place == other, members, true);
                sleep(lag).await;
                self.set_between(|place| place == node, members, true);
                sleep(span).await;
                self.set_between(|place| place == node, members, false);
                self.set_between(|place| place == other, members, false);
            }
            Fault::LateRenewals { node, delay } => self.delay_renewals(node, delay).await,
            Fault::LateUse { delay } => self.use_late(delay).await,
            Fault::LateReturn { node, before, after } => self.return_late(node, before, after).await,
            Fault::LateMove { node, down, after } => self.move_twice(node, down, after).await,
            Fault::LateWords { node, down } => self.speak_late(node, down).await,
            other => unreachable!("{other:?} takes one step"),
        }
    }

    /// The member at a place, or the next if it leads.
    fn other_than_leader(&self, place: Place) -> Place {
        if self.leader() == Some(place) { (place + 1) % self.plan.nodes } else { place }
    }

    /// Has commands carried out and not answered, and kills all members with the first. What a client takes for not done then must not
    /// be.
    async fn leave_unanswered(self: &Arc<Self>, (direct, foreign): (bool, bool), after: Duration, down: Duration) {
        let network = &self.world.network;
        let Some(leader) = self.leader() else { return };
        let (io, at, node, _) = self.caller_of(|place| (place == leader) == direct);
        let client = Client::new(io.clone(), &at, CLIENT_TIMEOUT).with_attempt_timeout(ANSWER_PATIENCE);
        let opening = client.clone();
        if !node.spawn(async move { opening.put(b"open", b"", None).await.is_ok() }).await.unwrap_or(false) {
            return;
        }
        let members: BTreeSet<_> = (0..self.members.len()).map(|place| self.id(place)).collect();
        let before = network.counts().unanswered;
        network.set_unanswered(Some(Arc::new(move |from| members.contains(&from) != direct)));
        let what = format!("unanswered {before}");
        let door = match foreign {
            true => Door::Etcd(Etcd::new(io, &at, CLIENT_TIMEOUT)),
            false => Door::Own(client),
        };
        let asked =
            node.spawn(put_one_by_one(door, what, ASKED, |done| matches!(done, Err(Seen::NotDone | Seen::Full))));
        wait_closely(PATIENCE, CLOSELY, || network.counts().unanswered > before).await;
        if network.counts().unanswered > before {
            sometimes!(!direct, "the leader was gone just after it carried out what was passed on");
            sleep(after).await;
            match foreign {
                true => self.members[leader].machine.down(Down::Kill),
                false => self.members.iter().for_each(|member| member.machine.down(Down::Kill)),
            }
            sleep(CLIENT_TIMEOUT + down).await;
        }
        network.set_unanswered(None);
        (0..self.members.len()).for_each(|place| self.boot(place));
        for key in self.there(asked.await.unwrap_or_default(), true).await {
            let what = format!("{key:?} is there, though its client was told that it would not be");
            self.watch.violations.add("what was not done is not there", what);
        }
    }

    /// Those of some keys that are there, or are not, as far as can be had.
    async fn there(&self, keys: Vec<String>, wanted: bool) -> Vec<String> {
        let (client, node, _) = self.client_of(|_| true);
        let all = node.spawn(async move {
            let mut found = Vec::new();
            for key in keys {
                if client.get(key.as_bytes()).await.is_ok_and(|row| row.is_some() == wanted) {
                    found.push(key);
                }
            }
            found
        });
        all.await.unwrap_or_default()
    }

    /// A client on a machine of its own that asks some members alone.
    fn client_of(&self, places: impl Fn(Place) -> bool) -> (Client, NodeHandle, MachineId) {
        let (io, at, node, machine) = self.caller_of(places);
        let client = Client::new(io, &at, ANSWER_PATIENCE).with_attempt_timeout(ANSWER_PATIENCE);
        (client, node, machine)
    }

    /// The seams of a machine of its own, and where some members are.
    fn caller_of(&self, places: impl Fn(Place) -> bool) -> (Io, Vec<Address>, NodeHandle, MachineId) {
        let machine = self.world.machine();
        let (io, node) = machine.boot();
        let at = (0..self.plan.nodes).filter(|place| places(*place)).map(|place| self.members[place].address());
        (self.plan.admit(io), at.collect(), node, machine.id)
    }

    /// Has a leader append in vain, and its power go when another's entries have replaced its own. What it acknowledges all the
    /// same must be there.
    async fn diverge(self: &Arc<Self>, cut: PowerCut, down: Duration) {
        let Some(old) = self.leader() else { return };
        let member = &self.members[old];
        let Some(id) = member.id() else { return };
        // Of our own clients' commands few are under way at once; of etcd's, all.
        let (io, at, node, _) = self.caller_of(|place| place == old);
        let of_old = Door::Etcd(Etcd::new(io, &at, ANSWER_PATIENCE));
        let (of_others, others, _) = self.client_of(|place| place != old);
        // The session that it needs can be had as yet.
        let client = of_others.clone();
        let opened = others.spawn(async move { client.put(b"diverge", b"", None).await.is_ok() });
        if !opened.await.unwrap_or(false) || self.leader() != Some(old) {
            return;
        }
        let rest = |place: Place| place != old && place < self.plan.nodes;
        self.set_between(|place| place == old, rest, true);
        let in_vain = node.spawn(put_one_by_one(of_old, "in vain".into(), IN_VAIN, |done| done.is_ok()));
        wait(PATIENCE, || self.leader().is_some_and(|leader| leader != old)).await;
        let meanwhile =
            others.spawn(put_one_by_one(Door::Own(of_others), "meanwhile".into(), MEANWHILE, |done| done.is_ok()));
        sleep(Duration::from_millis(MEANWHILE * 40)).await;
        let last = || self.watch.state().statuses.get(&id).map_or(Index(0), |status| status.last);
        let before = last();
        self.set_between(|place| place == old, rest, false);
        let is_replaced = || last() < before && self.leader().is_some_and(|leader| leader != old);
        wait_closely(PATIENCE / 4, CLOSELY, is_replaced).await;
        if is_replaced() {
            sometimes!("a longer end of a log was replaced by a shorter one");
            // Until that is durable, and for what it answers to be on its way.
            sleep(Duration::from_millis(6)).await;
            member.machine.down(Down::Power(cut));
            sleep(down).await;
            self.boot(old);
        }
        let (Ok(acknowledged), _) = (in_vain.await, meanwhile.await) else { return };
        for key in self.there(acknowledged, false).await {
            let what = format!("{key:?} is not, though a leader that was cut off said so");
            self.watch.violations.add("what was acknowledged is there", what);
        }
    }

    /// The places of the voters, whoever leads last.
    fn voters_by_place(&self) -> Vec<Place> {
        let voters = self.watch.voters().unwrap_or_default();
        let is_voter = |place: &Place| self.members[*place].id().is_some_and(|id| voters.contains(&id));
        let mut places: Vec<Place> = (0..self.plan.nodes).filter(is_voter).collect();
        places.sort_by_key(|place| self.leader() == Some(*place));
        places
    }

    /// Removes a voter while as many are off as a majority can do without.
    async fn remove_in_minority(self: &Arc<Self>, down: Duration) {
        let voters = self.voters_by_place();
        if voters.len() < 3 || voters.len().is_multiple_of(2) {
            return;
        }
        let (off, on) = voters.split_at((voters.len() - 1) / 2);
        off.iter().for_each(|place| self.members[*place].machine.down(Down::Kill));
        sleep(4 * self.plan.election_timeout_max() + down).await;
        sometimes!("a member was to be removed while so many were off that the rest could not go on");
        self.remove(on[0]).await;
        off.iter().for_each(|place| self.boot(*place));
    }

    /// Removes all voters but one, and has the power go for the last as soon as the last but one knows that it was removed.
    async fn remove_to_last(self: &Arc<Self>, stalled: bool, cut: PowerCut, down: Duration) {
        for _ in 0..REMOVALS_MAX {
            let voters = self.voters_by_place();
            let [removed, .., last] = voters[..] else { break };
            let Some(id) = self.members[removed].id() else { break };
            let knows = || {
                let watched = self.watch.state();
                watched.statuses.get(&id).is_none_or(|status| !status.voters.contains(&id))
            };
            self.members[last].machine.stall.set((stalled && voters.len() == 2).then_some(Files::All));
            let cluster = self.clone();
            let removal = madsim::task::spawn(async move { cluster.remove(removed).await });
            wait_closely(PATIENCE, CLOSELY, knows).await;
            self.members[last].machine.stall.set(None);
            if voters.len() == 2 && knows() {
                sometimes!("the power went for the last voter just after the last but one was removed");
                self.members[last].machine.down(Down::Power(cut));
                sleep(down).await;
                self.boot(last);
                let _ = removal.await;
                break;
            }
            let _ = removal.await;
            wait(PATIENCE, || self.watch.voters().is_some_and(|left| !left.contains(&id))).await;
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// Has what is said to a member in one life come once more in the next.
    async fn echo(self: &Arc<Self>, node: Place, span: Duration, down: Duration) {
        let (network, place) = (&self.world.network, self.other_than_leader(node));
        let machine = &self.members[place].machine;
        machine.down(Down::Kill);
        sleep(down).await;
        self.boot(place);
        network.remember(machine.id);
        sleep(span).await;
        machine.down(Down::Kill);
        sleep(down).await;
        network.set_deaf(machine.id, true);
        self.boot(place);
        network.echo(machine.id, ECHOES, span);
        sleep(span).await;
        network.set_deaf(machine.id, false);
    }

    fn lease_age(&self, id: NodeId) -> Option<Duration> {
        self.watch.state().leases.age(id)
    }

    /// Has a worker's renewals come when its lease is just over for the cluster.
    async fn delay_renewals(self: &Arc<Self>, node: Place, delay: Duration) {
        // Who leads has its own commands in hand.
        let node = if node < self.plan.nodes { self.other_than_leader(node) } else { node };
        let (network, machine) = (&self.world.network, &self.members[node].machine);
        let Some(id) = self.members[node].id() else { return };
        network.set_held(machine.id, Words::Commands, true);
        wait_closely(LEASE_PATIENCE, CLOSELY, || {
            let age = self.lease_age(id);
            age.is_none_or(|age| age + 3 * delay >= LEASE_OVER)
        })
        .await;
        network.set_far(delay);
        wait_closely(PATIENCE / 4, CLOSELY, || self.lease_age(id).is_none_or(|age| age >= LEASE_OVER)).await;
        network.set_held(machine.id, Words::Commands, false);
        sleep(10 * delay).await;
        network.set_far(Duration::ZERO);
    }

    /// Has sessions used when they have just been idle for as long as they live.
    async fn use_late(self: &Arc<Self>, delay: Duration) {
        let network = &self.world.network;
        let Some(leader) = self.leader() else { return };
        let mut sessions = Vec::new();
        for _ in 0..USED_LATE {
            let (client, node, machine) = self.client_of(|place| place == leader);
            let opening = client.clone();
            let opened = node.spawn(async move { opening.put(b"late", b"", None).await.is_ok() });
            if opened.await.is_ok_and(|opened| opened) {
                sessions.extend(self.watch.state().sessions.newest().map(|session| (session, client, node, machine)));
            }
        }
        let Some((last, ..)) = sessions.last() else { return };
        let idle = || self.watch.state().sessions.idle(*last);
        let soon = SESSION_TTL.saturating_sub(Duration::from_secs(1));
        wait(SESSION_TTL, || idle().is_none_or(|idle| idle >= soon)).await;
        // What they send waits before the leader, to whom all others are far.
        let uses = sessions.iter().map(|(_, client, node, machine)| {
            let client = client.clone();
            network.set_held(*machine, Words::Commands, true);
            node.spawn(async move {
                // The first may cross the end of the session; the second tells whether that has come all the same.
                let _ = client.put(b"late", b"", None).await;
                let _ = client.put(b"late", b"", None).await;
            })
        });
        let uses: Vec<_> = uses.collect();
        network.set_far(delay);
        wait_closely(PATIENCE, CLOSELY, || idle().is_none_or(|idle| idle >= SESSION_TTL)).await;
        for (.., machine) in &sessions {
            network.set_held(*machine, Words::Commands, false);
            sleep(USES_APART).await;
        }
        join_all(uses).await;
        network.set_far(Duration::ZERO);
    }

    /// Has a worker come back just before its lease is over, and hear and be heard late.
    async fn return_late(self: &Arc<Self>, node: Place, before: Duration, after: Duration) {
        let (network, machine) = (&self.world.network, &self.members[node].machine);
        let Some(id) = self.members[node].id() else { return };
        machine.down(Down::Kill);
        wait(LEASE_PATIENCE, || self.lease_age(id).is_none_or(|age| age + before >= LEASE_OVER)).await;
        network.set_held(machine.id, Words::Commands, true);
        let (held, expired) = (network.counts().held, self.watch.state().leases.expired(id));
        self.boot(node);
        wait(PATIENCE / 4, || network.counts().held > held).await;
        // It says first what became of its attempts, and hears something before it registers.
        sleep(REGISTERED).await;
        network.set_deaf(machine.id, true);
        let is_over = || self.watch.state().leases.expired(id) != expired;
        let before = is_over();
        wait(PATIENCE / 2, is_over).await;
        sometimes!(
            network.counts().held > held && !before && is_over(),
            "a worker came back just before its lease was over, and was heard after"
        );
        sleep(after).await;
        network.set_held(machine.id, Words::Commands, false);
        // For longer than a worker without attempts looks.
        sleep(Duration::from_millis(2_500)).await;
        network.set_deaf(machine.id, false);
    }

    /// Has a member move twice, and what it said of the first place come after what it says of the second.
    async fn move_twice(self: &Arc<Self>, node: Place, down: Duration, after: Duration) {
        let (network, machine) = (&self.world.network, &self.members[node].machine);
        let held = network.counts().moves_held;
        network.set_held(machine.id, Words::Moves, true);
        self.move_away(node, Down::Kill, down).await;
        wait_closely(PATIENCE, CLOSELY, || network.counts().moves_held > held).await;
        // Who closes its connections takes back what has not been read.
        self.move_away(node, Down::Power(PowerCut { drop_permille: 0, tear_permille: 0 }), down).await;
        let gate = network.let_pass(machine.id, Words::Moves);
        sleep(after).await;
        if let Some(gate) = gate {
            network.open(gate);
        }
    }

    /// Has what a worker said last in one life come in the next.
    async fn speak_late(self: &Arc<Self>, node: Place, down: Duration) {
        // Who leads has its own commands in hand.
        let node = if node < self.plan.nodes { self.other_than_leader(node) } else { node };
        let (network, machine) = (&self.world.network, &self.members[node].machine);
        let Some(id) = self.members[node].id() else { return };
        let life = || self.watch.state().leases.life(id);
        let (before, held) = (life(), network.counts().held);
        network.set_held(machine.id, Words::Commands, true);
        let cluster = self.clone();
        let stopping = madsim::task::spawn(async move { cluster.stop(node, false).await });
        wait_closely(PATIENCE, CLOSELY, || network.counts().held > held).await;
        machine.down(Down::Kill);
        let _ = stopping.await;
        sleep(down).await;
        let gate = network.let_pass(machine.id, Words::Commands);
        self.boot(node);
        wait_closely(PATIENCE, CLOSELY, || life() != before).await;
        if let Some(gate) = gate {
            network.open(gate);
        }
    }
}

/// Sets one key after another, without waiting for the answers; gives those whose answer is as wanted.
async fn put_one_by_one(
    door: Door,
    what: String,
    count: u64,
    wanted: impl Fn(Result<PutResponse, Seen>) -> bool + Copy + Send + 'static,
) -> Vec<String> {
    let door = &door;
    let put = |number: u64| {
        let key = format!("{what} {number}");
        let put = PutRequest { key: key.clone().into(), ..PutRequest::default() };
        async move {
            door.pause(Duration::from_millis(number * 15)).await;
            wanted(door.put(put).await).then_some(key)
        }
    };
    join_all((0..count).map(put)).await.into_iter().flatten().collect()
}

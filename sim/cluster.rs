//! The members of a simulated cluster and everything that is done to them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{Either, join, select};
use madsim::time::{TimeHandle, sleep, timeout};
use tokio::sync::{RwLock, oneshot};
use tower::{ServiceExt, service_fn};

use crate::client::Client;
use crate::ids::{Address, Index, NodeId, Term};
use crate::io::{Channel, ChannelError};
use crate::limits::{KEYS_QUOTA, WORKER_RENEWAL};
use crate::node::{NodeBuilder, Origin};
use crate::proto::etcdserverpb::ResponseHeader;
use crate::raft::core::Role;
use crate::raft::log::{self, LOG_FILE};
use crate::sim::disk::{Files, PowerCut};
use crate::sim::door::Witness;
use crate::sim::draw::{CRASH_PATIENCE, MOVES_MAX};
use crate::sim::fault::{Fault, Links, Place, Places};
use crate::sim::janitor::Spell;
use crate::sim::network::{MachineId, STALL_MAX};
use crate::sim::oracle::budget::Budget;
use crate::sim::oracle::promise::Promised;
use crate::sim::oracle::{answered, disks, fail_stops};
use crate::sim::plan::Plan;
use crate::sim::trace::Note;
use crate::sim::watch::Watch;
use crate::sim::world::{CLEAN_CUT, Down, FailStop, Machine, World};

/// How long a client tries one operation.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node may take to notice that its disk is not full any more: it looks every second, but its clock may stand still.
const ROOM_NOTICED: Duration = Duration::from_secs(60);
/// How long a node whose disk has rotted may take to find out.
const ROT_FOUND: Duration = Duration::from_secs(3);
/// How long a machine is given to come by as many disk operations as it is to go after.
const CUT_PATIENCE: Duration = Duration::from_secs(3);
/// How long a machine with another's disk may take to notice.
const MISLED_MAX: Duration = Duration::from_secs(20);
/// How long after that nobody else's is mistaken.
const MISLED_PAUSE: Duration = Duration::from_secs(10);
/// How long an operator waits for a change of members to transfer leadership in the middle of.
pub(super) const JOINT_PATIENCE: Duration = Duration::from_secs(10);
/// How often the power goes while a machine starts for the first time.
const BIRTHS_MAX: u64 = 4;
/// How late a member is asked and answered, if it is: not so late that it would not hear it.
const LATE: RangeInclusive<Duration> = Duration::from_secs(1)..=STALL_MAX;
/// The same of a worker without state, which asks another server soon.
const LATE_FOR_WORKERS: RangeInclusive<Duration> = Duration::from_millis(300)..=Duration::from_millis(900);

/// One member's machine, and how to stop the node on it in order.
pub struct Member {
    /// Its machine.
    pub machine: Arc<Machine>,
    pub(super) stop: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
    /// Its id in the cluster, once it has one.
    id: Mutex<Option<NodeId>>,
    /// Whether it is there yet.
    present: AtomicBool,
    /// Whether it has belonged to the cluster before, perhaps with another disk.
    pub(super) founded: AtomicBool,
    /// Its disk has rotted.
    rotten: AtomicBool,
    /// It has, and nobody knows yet what came of it.
    doubtful: AtomicBool,
    /// It has another disk, and must not join before its old id is removed.
    waiting: AtomicBool,
    /// How often it has moved to another address.
    moves: AtomicU16,
    /// Its node said that it was removed, and ended.
    pub(super) removed: AtomicBool,
    /// Its disk is another's.
    misled: AtomicBool,
    /// It is an older version, which takes part in the first format alone.
    pub(super) old: AtomicBool,
    /// The way into its node from within its process, since it last started.
    inside: Mutex<Option<Channel>>,
}

impl Member {
    fn new(machine: Arc<Machine>, present: bool, old: bool) -> Arc<Self> {
        let (stop, id, founded, rotten, doubtful, waiting, moves, removed, misled, inside) = Default::default();
        Arc::new(Self {
            machine,
            stop,
            id,
            present: AtomicBool::new(present),
            founded,
            rotten,
            doubtful,
            waiting,
            moves,
            removed,
            misled,
            old: AtomicBool::new(old),
            inside,
        })
    }

    /// A way into its node that needs no network, wherever it listens and however often it starts.
    pub fn within(self: &Arc<Self>) -> Channel {
        let member = self.clone();
        Channel::new(service_fn(move |request| {
            let inside = member.inside.lock().unwrap().clone().filter(|_| member.machine.is_up());
            async move {
                match inside {
                    Some(channel) => channel.oneshot(request).await,
                    None => Err(ChannelError::Connect("its node does not run".into())),
                }
            }
        }))
    }

    /// Where it is now.
    pub fn address(&self) -> Address {
        self.machine.address(self.moves.load(Ordering::Relaxed))
    }

    /// Wherever it may ever be.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        (0..=MOVES_MAX).map(|moves| self.machine.address(moves))
    }

    /// Whether its disk is damaged, and nobody has replaced it.
    pub fn is_rotten(&self) -> bool {
        self.rotten.load(Ordering::Relaxed)
    }

    /// Whether its node said that it was removed.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// Its id in the cluster, once it has one.
    pub fn id(&self) -> Option<NodeId> {
        *self.id.lock().unwrap()
    }
}

/// A member that is to be removed.
#[derive(Clone, Copy, Debug)]
pub struct Condemned {
    /// Which.
    pub id: NodeId,
    /// Where it is, or was.
    pub place: Place,
    /// Its disk is lost: another machine takes its place once it is removed. Otherwise it must say itself that it was.
    pub lost: bool,
}

/// The members, and who operates them.
pub struct Cluster {
    /// What is to happen.
    pub plan: Plan,
    /// Where.
    pub world: Arc<World>,
    /// By their places.
    pub members: Vec<Arc<Member>>,
    /// Wherever any of those that keep the state may ever be.
    pub endpoints: Vec<Address>,
    /// Who changes the membership.
    pub operator: Client,
    /// The oracles.
    pub watch: Arc<Watch>,
    condemned: Mutex<Vec<Condemned>>,
    /// A machine has another's disk, or had lately.
    misleading: AtomicBool,
    full_disks: Mutex<Vec<Spell>>,
    /// Members are upgraded, many at once, or one goes back, alone.
    pub(super) upgrading: RwLock<()>,
}

impl Cluster {
    /// Machines that are off, with empty disks. The oracles see what leaves them until the network's wiretap is let go.
    pub fn new(world: Arc<World>, plan: Plan, watch: Arc<Watch>) -> Arc<Self> {
        let member = |place| Member::new(world.machine(), !plan.is_late(place), plan.old >> place & 1 == 1);
        let members: Vec<Arc<Member>> = plan.places().map(member).collect();
        let machines: BTreeMap<MachineId, Arc<Machine>> =
            members.iter().map(|member| (member.machine.id, member.machine.clone())).collect();
        let tap = watch.clone();
        world.network.set_wiretap(Some(Arc::new(move |from, _, frame| tap.on_frame(&machines[&from], frame))));
        let moving = plan.faults.iter().filter_map(|(_, fault)| match fault {
            Fault::Move { node, .. } | Fault::LateMove { node, .. } => Some(*node),
            _ => None,
        });
        let moving: BTreeSet<Place> = moving.collect();
        let endpoints = members[..plan.nodes].iter().enumerate();
        let endpoints: Vec<Address> = endpoints
            .flat_map(|(place, member)| member.addresses().take(if moving.contains(&place) { usize::MAX } else { 1 }))
            .collect();
        let operator = Client::new(plan.admit(world.machine().boot().0), &endpoints, CLIENT_TIMEOUT);
        Arc::new(Self {
            plan,
            world,
            members,
            endpoints,
            operator,
            watch,
            condemned: Mutex::default(),
            misleading: AtomicBool::new(false),
            full_disks: Mutex::default(),
            upgrading: RwLock::default(),
        })
    }

    /// Those that keep the state.
    pub fn servers(&self) -> &[Arc<Member>] {
        &self.members[..self.plan.nodes]
    }

    /// The ids of the workers that keep none.
    pub fn workers(&self) -> Vec<NodeId> {
        self.members[self.plan.nodes..].iter().filter_map(|member| member.id()).collect()
    }

    /// Those that keep the state and belong to the cluster, or are to.
    pub fn staying(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.servers().iter().filter(|member| !member.is_removed())
    }

    /// When disks were full, with the time that their nodes may need to notice that they are not any more.
    pub fn full_disks(&self) -> Vec<Spell> {
        self.full_disks.lock().unwrap().clone()
    }

    /// Members that are to be removed.
    pub fn condemned(&self) -> Vec<Condemned> {
        self.condemned.lock().unwrap().clone()
    }

    /// One that was to say that it was removed, and whose disk is lost since, cannot any more.
    pub(super) fn condemn(&self, member: Condemned) {
        let mut condemned = self.condemned.lock().unwrap();
        condemned.retain(|other| other.id != member.id);
        condemned.push(member);
    }

    /// Boots every machine whose place is not empty any more; all of them are there from now on.
    pub fn boot_all(self: &Arc<Self>) {
        (0..self.members.len()).for_each(|place| self.bring(place));
    }

    /// Has a machine there from now on, and boots it.
    pub fn bring(self: &Arc<Self>, place: Place) {
        self.members[place].present.store(true, Ordering::Relaxed);
        self.boot(place);
    }

    /// Boots a member's machine and its node, unless it runs, was removed, or may not join yet.
    pub fn boot(self: &Arc<Self>, place: Place) {
        let member = self.members[place].clone();
        let absent = !member.present.load(Ordering::Relaxed) || member.waiting.load(Ordering::Relaxed);
        if member.machine.is_up() || member.is_removed() || absent {
            return;
        }
        let misled = member.misled.load(Ordering::Relaxed);
        if !member.is_rotten() && !misled {
            self.watch.on_boot(&member.machine);
        }
        let io = self.plan.admit(member.machine.boot().0);
        let address = member.address();
        let founder = place == 0 && !member.founded.load(Ordering::Relaxed);
        // Who starts a copy may say where others are, or leave it to what the copy knows.
        let untold = misled && self.world.rng.stream(&format!("untold {place}")).chance(750);
        let origin = match (founder, untold) {
            (true, _) => Origin::Bootstrap,
            (false, true) => Origin::Existing,
            (false, false) => Origin::Join(self.endpoints.clone()),
        };
        let (stop, stopping) = oneshot::channel();
        let (ended, stopped) = oneshot::channel();
        *member.stop.lock().unwrap() = Some((stop, stopped));
        let (spawn, watch) = (io.spawn.clone(), self.watch.clone());
        let builder = NodeBuilder::new(io.clone(), address).origin(origin).observer(self.watch.clone());
        let builder = builder.log_kept(self.plan.retention).log_flow(self.plan.flow);
        let builder = builder.snapshot_chunk_bytes(self.plan.chunk_bytes);
        let builder = builder.watch_batch_events(self.plan.events_max).history(self.plan.history);
        let builder = builder.keys_quota(self.plan.keys_quota.unwrap_or(KEYS_QUOTA)).password_rounds(NonZeroU32::MIN);
        let builder = builder
            .newest_format(self.newest_format(&member))
            .entry_reads(self.plan.entry_reads)
            .role(self.plan.role(place))
            .lease_reads(self.plan.lease_reads)
            .election_timeout(self.plan.election_timeout_of(place))
            .voters_max(self.plan.voters_max);
        let life = async move {
            match builder.start().await {
                Ok(_) if misled => {
                    let what = format!("machine {} runs on what is on another's disk", member.machine.id);
                    watch.violations.add("a member runs once", what);
                }
                Ok(node) => {
                    *member.id.lock().unwrap() = Some(node.identity().id);
                    *member.inside.lock().unwrap() = Some(node.channel());
                    member.founded.store(true, Ordering::Relaxed);
                    let told = async {
                        if stopping.await.is_err() {
                            // Nobody will stop it in order: it lives until its machine goes down.
                            std::future::pending::<()>().await;
                        }
                    };
                    let removed =
                        matches!(select(std::pin::pin!(told), std::pin::pin!(node.removed())).await, Either::Right(_));
                    node.stop().await;
                    // What is held of a node keeps its files open.
                    drop(member.inside.lock().unwrap().take());
                    member.removed.fetch_or(removed, Ordering::Relaxed);
                    let _ = ended.send(());
                }
                Err(fault) => io.spawn.fail_stop(fault),
            }
        };
        spawn.spawn("node", Box::pin(life)).detach();
    }

    /// Takes a member down and starts it elsewhere.
    pub(super) async fn move_away(self: &Arc<Self>, place: Place, how: Down, down: Duration) {
        self.members[place].machine.down(how);
        self.members[place].moves.fetch_add(1, Ordering::Relaxed);
        sleep(down).await;
        self.boot(place);
    }

    /// Has a machine start from a copy of another's disk, of such an age, until it ends itself, or for too long.
    async fn mislead(self: &Arc<Self>, place: Place, other: Place, age: Duration) {
        let member = &self.members[place];
        let is_there = |member: &Member| member.id().is_some() && member.machine.is_up();
        // While the cluster forms, of whoever is the first to be taken in: never is less known of anyone.
        let others = if self.plan.early { 0..self.members.len() } else { other..other + 1 };
        let others: Vec<_> = others.filter(|other| *other != place).map(|other| &self.members[other]).collect();
        let whose = || others.iter().find(|other| is_there(member) && is_there(other));
        if self.misleading.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.plan.early {
            wait_closely(MISLED_MAX, Duration::from_millis(1), || whose().is_some()).await;
        }
        let Some(from) = whose() else { return self.misleading.store(false, Ordering::Relaxed) };
        let copy = from.machine.disk.copy();
        sleep(age).await;
        // Nothing that is asked of its disk is true of it until it has its own again.
        self.watch.on_lost(&member.machine);
        let own = member.machine.take_copy(copy);
        member.misled.store(true, Ordering::Relaxed);
        self.boot(place);
        wait(MISLED_MAX, || !member.machine.is_up()).await;
        sometimes!(!member.machine.is_up(), "a machine noticed that its disk is another's");
        member.machine.take_own(own);
        member.misled.store(false, Ordering::Relaxed);
        self.watch.on_own(&member.machine, member.id());
        self.boot(place);
        // Its own frames must be heard again before anyone may have its disk.
        sleep(MISLED_PAUSE).await;
        self.misleading.store(false, Ordering::Relaxed);
    }

    /// Puts a machine with an empty disk in a member's place, once the old member is removed.
    async fn replace(self: &Arc<Self>, place: Place, down: Duration) {
        let member = &self.members[place];
        sometimes!("a machine was replaced");
        sometimes!(self.leader() == Some(place), "the leader's machine was replaced");
        member.machine.replace();
        self.watch.on_lost(&member.machine);
        member.rotten.store(false, Ordering::Relaxed);
        member.old.store(false, Ordering::Relaxed);
        let lost = member.id.lock().unwrap().take();
        if let Some(id) = lost {
            self.condemn(Condemned { id, place, lost: true });
            member.waiting.store(true, Ordering::Relaxed);
            let done = self.operator.remove_member(id).await;
            self.world.trace.event(format_args!("remove {id}, which is lost: {done:?}"));
            member.waiting.store(done.is_err(), Ordering::Relaxed);
        }
        sleep(down).await;
        self.boot(place);
    }

    /// The id that a lost member had is removed: the machine in its place may join.
    pub fn admit_replacement(self: &Arc<Self>, place: Place) {
        self.members[place].waiting.store(false, Ordering::Relaxed);
        self.boot(place);
    }

    /// Replaces the machines that do not start because their disks have rotted.
    pub async fn replace_rotten(self: &Arc<Self>) {
        for (place, _) in self.members.iter().enumerate().filter(|(_, member)| member.is_rotten()) {
            self.judge_rotten(place).await;
        }
    }

    /// Starts a machine whose disk has rotted, and replaces it if that fails, and fails again.
    async fn judge_rotten(self: &Arc<Self>, place: Place) {
        let member = &self.members[place];
        for _ in 0..2 {
            // Something else may have taken it down.
            self.boot(place);
            sleep(ROT_FOUND).await;
            if member.machine.is_up() {
                break;
            }
        }
        sometimes!(!member.machine.is_up(), "a rotten disk was found out");
        sometimes!(member.machine.is_up(), "a rotten disk did no harm");
        if !member.machine.is_up() {
            self.replace(place, Duration::ZERO).await;
        }
        member.doubtful.store(false, Ordering::Relaxed);
    }

    /// Whether a member may be lost, or leave: see `oracle/budget.rs`.
    pub(super) fn affords(&self, place: Place, leaves: bool) -> bool {
        if place >= self.plan.nodes {
            return true;
        }
        let (member, watched) = (&self.members[place], self.watch.state());
        let Some(id) = member.id() else { return true };
        // All that are known to be members agree on who has a vote, and nobody who is to go is still among them.
        let is_known = |id: &NodeId| self.members.iter().any(|member| member.id() == Some(*id) && !member.is_removed());
        let known = || watched.statuses.iter().filter(|(id, _)| is_known(id));
        let Some(newest) = known().map(|(_, status)| status).max_by_key(|status| status.applied) else { return true };
        let listed = |id: &NodeId| newest.voters.contains(id) || newest.learners.contains(id);
        let unsettled = known().any(|(_, status)| status.joint || !newest.voters.iter().eq(&status.voters))
            || self.condemned().iter().any(|condemned| listed(&condemned.id))
            || self
                .members
                .iter()
                .any(|member| member.doubtful.load(Ordering::Relaxed) || member.waiting.load(Ordering::Relaxed));
        let budget = Budget { voters: &newest.voters, unsettled, committed: watched.canonical.last() };
        let holds = |id, record| self.holds(id, record);
        let within = if leaves { budget.affords_leaving(id, holds) } else { budget.affords(id, holds) };
        let affords = self.plan.beyond_budget || within;
        sometimes!(!affords, "a loss was spared: it would have been one too many");
        self.world.trace.event(format_args!("loss of {id}: {}", if affords { "afforded" } else { "spared" }));
        affords
    }

    /// Whether a member's disk holds a record, and with it all before it.
    fn holds(&self, id: NodeId, (index, term): (Index, Term)) -> bool {
        let Some(member) = self.members.iter().find(|member| member.id() == Some(id)) else { return false };
        let copy = member.machine.disk.durable(LOG_FILE);
        let journal = log::open_journal(&*copy.boot());
        // What it no longer has as a record it has in its state.
        journal.is_ok_and(|journal| match log::term_at(&journal, index) {
            Ok(Some(found)) => found == term,
            Ok(None) => log::promised(&journal).is_ok_and(|(_, (last, _))| last > index),
            Err(_) => false,
        })
    }

    /// Who leads, as far as anyone said.
    pub(super) fn leader(&self) -> Option<Place> {
        let leader = self.watch.leader()?;
        self.members.iter().position(|member| member.id() == Some(leader))
    }

    /// Who campaigns, as far as anyone said.
    fn candidate(&self) -> Option<Place> {
        let watched = self.watch.state();
        let campaigns = |id| watched.statuses.get(&id).is_some_and(|status| status.role == Role::Candidate);
        self.members.iter().position(|member| member.machine.is_up() && member.id().is_some_and(campaigns))
    }

    pub(super) fn id(&self, place: Place) -> MachineId {
        self.members[place].machine.id
    }

    fn set_cut(&self, from: Place, to: Place, cut: bool) {
        self.world.network.set_cut(self.id(from), self.id(to), cut && from != to);
    }

    /// Cuts or mends both ways between some and the others.
    pub(super) fn set_between(&self, these: impl Fn(Place) -> bool, those: impl Fn(Place) -> bool, cut: bool) {
        let places = 0..self.members.len();
        for from in places.clone().filter(|place| these(*place)) {
            for to in places.clone().filter(|place| those(*place)) {
                self.set_cut(from, to, cut);
                self.set_cut(to, from, cut);
            }
        }
    }

    /// Cuts a member off from all others, or mends that.
    pub fn set_isolated(&self, place: Place, cut: bool) {
        self.set_between(|from| from == place, |to| to != place, cut);
    }

    /// Has the disk of a machine that is up go after so many operations, or some time, and then its power.
    async fn cut_after(self: &Arc<Self>, place: Place, operations: u64, cut: PowerCut, down: Duration) {
        let machine = &self.members[place].machine;
        if !machine.is_up() {
            return;
        }
        machine.disk.cut_after(operations);
        wait(CUT_PATIENCE, || machine.disk.is_cut()).await;
        // Its node may have noticed by now, and stopped.
        machine.down(Down::Power(cut));
        sleep(down).await;
        self.boot(place);
    }

    async fn cut(&self, links: Links, span: Duration) {
        let among = |these: Places| move |place: Place| these >> place & 1 == 1;
        match links {
            Links::OneWay { from, to } => {
                self.set_cut(from, to, true);
                sleep(span).await;
                self.set_cut(from, to, false);
            }
            Links::Isolate { node } => {
                self.set_isolated(node, true);
                sleep(span).await;
                self.set_isolated(node, false);
            }
            Links::Leader => {
                let Some(leader) = self.leader() else { return };
                self.set_isolated(leader, true);
                sleep(span).await;
                self.set_isolated(leader, false);
            }
            Links::LeaderDeaf => {
                let Some(leader) = self.leader() else { return };
                let set = |cut| (0..self.members.len()).for_each(|from| self.set_cut(from, leader, cut));
                set(true);
                sleep(span).await;
                set(false);
            }
            Links::Candidate => {
                let left = wait(span, || self.candidate().is_some()).await;
                if let Some(candidate) = self.candidate() {
                    sometimes!("a candidate was cut off");
                    self.set_isolated(candidate, true);
                    sleep(left).await;
                    self.set_isolated(candidate, false);
                }
            }
            Links::Halves { these } => {
                let set = |cut| self.set_between(among(these), |place| !among(these)(place), cut);
                set(true);
                sleep(span).await;
                set(false);
            }
            Links::Bridge { these, middle } => {
                let one = |place| place != middle && among(these)(place);
                let other = |place| place != middle && !among(these)(place);
                self.set_between(one, other, true);
                sleep(span).await;
                self.set_between(one, other, false);
            }
            Links::Flap { one, other, period } => {
                let (mut left, mut cut) = (span, false);
                while !left.is_zero() {
                    let phase = period.min(left);
                    cut = !cut;
                    self.set_between(|place| place == one, |place| place == other, cut);
                    sleep(phase).await;
                    left -= phase;
                }
                if cut {
                    self.set_between(|place| place == one, |place| place == other, false);
                }
            }
            Links::Swizzle { these } => {
                let places: Vec<Place> = (0..self.members.len()).filter(|place| among(these)(*place)).collect();
                let step = span / (2 * places.len().max(1) as u32);
                for place in &places {
                    self.set_isolated(*place, true);
                    sleep(step).await;
                }
                for place in places.iter().rev() {
                    sleep(step).await;
                    self.set_isolated(*place, false);
                }
            }
        }
    }

    /// Power for all at once; one may stay off until everything is healed.
    async fn black_out(self: &Arc<Self>, cut: PowerCut, gone: Option<Place>, down: Duration) {
        sometimes!(self.members.iter().all(|member| member.machine.is_up()), "the power went for all at once");
        for member in &self.members {
            member.machine.down(Down::Power(cut));
        }
        if let Some(gone) = gone {
            self.members[gone].present.store(false, Ordering::Relaxed);
        }
        sleep(down).await;
        (0..self.members.len()).for_each(|place| self.boot(place));
    }

    /// One fault and its end.
    pub fn inflict(self: &Arc<Self>, fault: Fault) -> impl Future<Output = ()> + Send + 'static + use<> {
        let cluster = self.clone();
        async move {
            let trace = &cluster.world.trace;
            trace.planned(format_args!("fault {fault:?}"));
            trace.note(|| Note::Span(format!("{fault:?}"), true));
            cluster.perform(fault).await;
            trace.note(|| Note::Span(format!("{fault:?}"), false));
        }
    }

    async fn perform(self: &Arc<Self>, fault: Fault) {
        let machine = |place: Place| &self.members[place].machine;
        let off = |place: Place, how: Down, down: Duration| async move {
            machine(place).down(how);
            sleep(down).await;
            self.boot(place);
        };
        match fault {
            Fault::Kill { node, down } => off(node, Down::Kill, down).await,
            Fault::Power { node, cut, down } => off(node, Down::Power(cut), down).await,
            Fault::Recovery { node, cut, operations, down } => {
                off(node, Down::Power(cut), down).await;
                sometimes!(machine(node).is_up(), "a node recovered under a disk that was about to go");
                self.cut_after(node, operations, cut, down).await;
            }
            Fault::Storm { node, times, down } => {
                for _ in 0..times {
                    off(node, Down::Kill, down).await;
                    sleep(down).await;
                }
            }
            Fault::Move { node, down } => self.move_away(node, Down::Kill, down).await,
            Fault::Blackout { cut, down, gone, after_joint } => {
                if let Some(after) = after_joint {
                    let is_joint = || self.watch.state().statuses.values().any(|status| status.joint);
                    wait(JOINT_PATIENCE, is_joint).await;
                    wait(JOINT_PATIENCE, || !is_joint()).await;
                    sleep(after).await;
                }
                self.black_out(cut, gone, down).await;
            }
            Fault::Stop { node, exits, down } => {
                self.stop(node, exits).await;
                off(node, Down::Kill, down).await;
            }
            Fault::Upgrade { node, back, exits, down } => self.upgrade(node, (back, exits), down).await,
            Fault::Pause { node, span } => {
                machine(node).pause();
                sleep(span).await;
                machine(node).resume();
            }
            Fault::Slow { node, span } => {
                let mut rng = self.world.rng.stream(&format!("slow {node} for {span:?}"));
                let mut left = span;
                while !left.is_zero() {
                    let phase = Duration::from_millis(rng.range(20, 300)).min(left);
                    machine(node).pause();
                    sleep(phase).await;
                    machine(node).resume();
                    sleep(Duration::from_millis(rng.range(1, 50))).await;
                    left -= phase;
                }
            }
            Fault::Cut { links, span } => self.cut(links, span).await,
            Fault::Strand { node, span } => {
                let network = &self.world.network;
                // Longer than a worker waits between two renewals, so that it is late with one.
                network.set_late(self.id(node), Some(if node < self.plan.nodes { LATE } else { LATE_FOR_WORKERS }));
                sleep(2 * WORKER_RENEWAL).await;
                self.set_isolated(node, true);
                network.set_late(self.id(node), None);
                sleep(span.saturating_sub(2 * WORKER_RENEWAL)).await;
                self.set_isolated(node, false);
            }
            Fault::Full { node, left, span } => {
                let now = TimeHandle::current().elapsed();
                self.full_disks.lock().unwrap().push((now, now + span + ROOM_NOTICED));
                machine(node).disk.set_free(left);
                sleep(span).await;
                machine(node).disk.set_capacity(u64::MAX);
            }
            Fault::Link { from, to, weather, span } => {
                let (from, to) = (machine(from).id, machine(to).id);
                self.world.network.set_link(from, to, Some(weather));
                sleep(span).await;
                self.world.network.set_link(from, to, None);
            }
            Fault::Stall { node, files, span } => {
                machine(node).stall.set(Some(files));
                sleep(span).await;
                machine(node).stall.set(None);
            }
            Fault::DiskError { node, op, down } => {
                machine(node).disk.fail_next(Some(op));
                sleep(down).await;
                machine(node).disk.fail_next(None);
                self.boot(node);
            }
            Fault::Rot { node, damage, files, permille, stopped, down } => {
                let there = self.members[node].id().is_some() && self.members[node].present.load(Ordering::Relaxed);
                if !there || !self.affords(node, false) {
                    return;
                }
                // From here on, for nothing else may be lost meanwhile.
                self.members[node].rotten.store(true, Ordering::Relaxed);
                self.members[node].doubtful.store(true, Ordering::Relaxed);
                if stopped {
                    self.stop(node, true).await;
                }
                machine(node).down(Down::Power(CLEAN_CUT));
                let before = Promised::of(&machine(node).disk);
                machine(node).rot(damage, files, permille);
                disks::on_damage(machine(node), &before, &self.watch.violations);
                self.watch.on_lost(machine(node));
                sleep(down).await;
                self.judge_rotten(node).await;
            }
            Fault::Replace { node, down } => {
                if self.members[node].id().is_some() && self.affords(node, false) {
                    self.replace(node, down).await;
                }
            }
            Fault::Crash { node, marks, cut, down } => {
                let hit = machine(node).crash_at(marks);
                if let Ok(Ok(place)) = timeout(CRASH_PATIENCE, hit).await {
                    self.world.trace.event(format_args!("crash {} where {place}", self.id(node)));
                    sometimes!("a machine crashed at a marked place");
                    off(node, Down::Power(cut), down).await;
                }
                machine(node).crash_nowhere();
            }
            Fault::WrongDisk { node, other, age } => self.mislead(node, other, age).await,
            Fault::Speed { node, ppm, span } => {
                machine(node).clock.set_speed(Some(ppm));
                sleep(span).await;
                machine(node).clock.set_speed(None);
            }
            Fault::Tidy { node } => machine(node).tidy(),
            Fault::WallStep { node, millis } => machine(node).clock.step_wall(millis),
            Fault::Transfer { to } => self.transfer(to).await,
            Fault::Defragment { node, cut: None, span } => {
                let time = TimeHandle::current();
                let until = time.now_instant() + span;
                loop {
                    self.defragment(node).await;
                    sleep(Duration::from_millis(10)).await;
                    if time.now_instant() >= until {
                        break;
                    }
                }
            }
            Fault::Defragment { node, cut: Some((after, cut)), .. } => {
                let _ = timeout(after, self.defragment(node)).await;
                off(node, Down::Power(cut), after).await;
            }
            Fault::Drain { node, span } => self.drain(node, span).await,
            Fault::TransferRace { to, other } => drop(join(self.transfer(to), self.transfer(other)).await),
            Fault::Remove { node, returns, cut } => {
                let removed = self.remove(node).await;
                if let Some((after, cut)) = cut.filter(|_| removed) {
                    sleep(after).await;
                    sometimes!("the power went for all just after a removal");
                    self.black_out(cut, None, Duration::from_millis(500)).await;
                }
                if returns {
                    let alone = self.world.rng.stream(&format!("return {node}")).chance(500);
                    self.return_removed(node, alone).await;
                }
            }
            Fault::RemoveLeader => {
                if let Some(leader) = self.leader() {
                    self.remove(leader).await;
                }
            }
            Fault::Join { node, birth, removed, expected } => {
                let awaited = self.expect(node, expected).await;
                self.bring(node);
                // It tries again as long as it is nobody yet.
                for turn in 0..if birth.is_some() { BIRTHS_MAX } else { 0 } {
                    if let Some((operations, cut)) = birth.filter(|_| turn == 0 || self.members[node].id().is_none()) {
                        self.cut_after(node, operations + 3 * turn, cut, Duration::from_millis(500)).await;
                    }
                }
                if let Some(after) = removed {
                    let is_member = || {
                        let watched = self.watch.state();
                        let id = self.members[node].id();
                        id.is_some_and(|id| watched.statuses.values().any(|status| status.learners.contains(&id)))
                    };
                    wait(JOINT_PATIENCE, is_member).await;
                    sleep(after).await;
                    join(self.remove(node), self.remove(node)).await;
                } else if let Some(awaited) = awaited {
                    self.arrive(node, awaited, birth.is_some()).await;
                }
            }
            Fault::Far { .. }
            | Fault::Crowded { .. }
            | Fault::PauseLeader { .. }
            | Fault::Unanswered { .. }
            | Fault::Diverge { .. }
            | Fault::RemoveInMinority { .. }
            | Fault::RemoveToLast { .. }
            | Fault::RemoveAndIsolate { .. }
            | Fault::Echo { .. }
            | Fault::Behind { .. }
            | Fault::LateRenewals { .. }
            | Fault::LateUse { .. }
            | Fault::LateReturn { .. }
            | Fault::LateMove { .. }
            | Fault::LateWords { .. } => self.stage(fault).await,
            Fault::TransferInJoint { to } => {
                machine(to).stall.set(Some(Files::All));
                wait_closely(JOINT_PATIENCE, Duration::from_millis(1), || self.watch.is_joint()).await;
                if self.watch.is_joint() {
                    self.transfer(to).await;
                }
                machine(to).stall.set(None);
            }
        }
    }

    /// What every member's machine is like, for whoever looks at a run that was stopped.
    pub fn describe(&self) -> String {
        let watched = self.watch.state();
        let line = |(place, member): (Place, &Arc<Member>)| {
            let machine = &member.machine;
            let state = match (machine.is_up(), member.is_removed()) {
                (true, _) => "up",
                (false, true) => "off, removed",
                (false, false) => "off",
            };
            let (id, status) = (member.id(), member.id().and_then(|id| watched.statuses.get(&id)));
            let promised = Promised::of(&machine.disk).map_or_else(|why| why, |promised| promised.to_string());
            let mut line = format!("place {place}, machine {}: {state}, member {:?}", machine.id, id.map(|id| id.0));
            if let Some(status) = status {
                line += &format!(
                    "\n    says: {:?} in term {}, leader {:?}, commit {}, applied {}, log {}..={}, voters {:?}, learners {:?}, joint: {}",
                    status.role,
                    status.term,
                    status.leader.map(|id| id.0),
                    status.commit,
                    status.applied,
                    status.first,
                    status.last,
                    ids(&status.voters),
                    ids(&status.learners),
                    status.joint
                );
            }
            line + &format!("\n    disk: {promised}; {:?}", machine.disk.counts())
        };
        let lines: Vec<String> = self.members.iter().enumerate().map(line).collect();
        let cuts: Vec<String> = self.world.network.cuts().iter().map(|(from, to)| format!("{from}>{to}")).collect();
        format!("{}\ncut: {}\nrunning: {:?}", lines.join("\n"), cuts.join(" "), self.world.ledger.live())
    }

    /// The first boot that has ended itself without a reason that the plan gives.
    pub fn unexcused(&self) -> Option<FailStop> {
        let is_excused = |stop: &FailStop| fail_stops::is_excused(&self.plan, stop, |place| self.id(place));
        self.world.fail_stops().into_iter().find(|stop| !is_excused(stop))
    }
}

/// Waits until something holds, but not for longer than this; says how much of that is left.
pub(super) async fn wait(patience: Duration, holds: impl Fn() -> bool) -> Duration {
    wait_closely(patience, Duration::from_millis(10), holds).await
}

/// The same, looking this often.
pub(super) async fn wait_closely(patience: Duration, look: Duration, holds: impl Fn() -> bool) -> Duration {
    let mut left = patience;
    while !holds() && !left.is_zero() {
        sleep(look).await;
        left = left.saturating_sub(look);
    }
    left
}

fn ids(ids: &[NodeId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

impl Witness for Cluster {
    fn starts(&self) -> u64 {
        self.members.iter().map(|member| member.machine.disk.counts().boots).sum()
    }

    fn look(&self, changed: &ResponseHeader, read: &ResponseHeader) {
        answered::check(changed, read, &self.watch.violations);
    }
}

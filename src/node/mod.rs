//! The node: wires everything and runs its life.
//!
//! ```text
//!   boot ──► join ──► recover ──► catch up ──► serve ──► drain ──► stop
//!      └─(has an identity)─┘         └──────(a stop interrupts)────────┘
//! ```
//!
//! "The address answers" and "the node serves" are different facts: [`NodeBuilder::start`] returns at the
//! first, [`Node::wait_ready`] and the health service speak of the second, which needs one confirmed read.
//!
//! A node with the role of a worker has a life of its own, in `node/pure`: it has nothing to recover.

mod join;
pub mod machine;
mod pure;
mod restore;
mod space;

pub use restore::restore;

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use futures_util::stream::{self, BoxStream};
use prost::Message;
use tokio::sync::oneshot;
use tonic::service::Routes;
use tower::{ServiceExt, service_fn};

use self::join::{Joins, Whereabouts};
use self::machine::StateSnapshots;
use crate::api::{self, Health};
use crate::client::{Client, Remote};
use crate::controller::{self, Historian, History};
use crate::error::{Context, Fault};
use crate::ids::{Address, Incarnation, Index, NodeId};
use crate::io::{Channel, Io, Listener, Shown, TaskHandle};
use crate::limits;
use crate::metrics::Metrics;
use crate::proto::v1::{JoinReply, Member, MemberRole};
use crate::raft::core::{Flow, Status, genesis};
use crate::raft::log::{Identity, Log};
use crate::raft::manager::{self, Observer, Setup};
use crate::raft::owner::Machine;
use crate::raft::tail::Retention;
use crate::shared::{Bounds, SharedNodeState};
use crate::state::{format, member};
use crate::worker::{self, Worker, WorkerConfig};

/// How a node that has no identity yet gets one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It must have one already.
    Existing,
    /// Found a new cluster with this node as its only member.
    Bootstrap,
    /// Ask the members at these addresses to be taken in. A member asks there for the others if it finds none of them
    /// after it has moved.
    Join(Vec<Address>),
}

/// What a node does in its cluster. A data directory belongs to a worker, or to one that keeps the state, for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It keeps the state, may vote, and runs no tasks.
    Server,
    /// It runs tasks, and a server tells it which.
    Worker,
    /// It keeps the state, may vote, and runs tasks.
    #[default]
    Both,
}

/// Builds a node: the only way to make one, for the binary, for embedders and for the simulator. What is not set is as `node start` has
/// it.
///
/// ```
/// # use cairn::node::{NodeBuilder, Origin};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let builder = || -> Result<_, Box<dyn std::error::Error>> {
///     Ok(NodeBuilder::new(cairn::os::io(dir.path(), None)?, "127.0.0.1:0".parse()?).origin(Origin::Bootstrap))
/// };
/// // What is out of its bounds is named, and nothing is made.
/// let refused = builder()?.voters_max(0).start().await.err().expect("nobody would lead");
/// assert_eq!(refused.to_string(), "number of voters 0: must be from 1 to 32");
/// let flow = cairn::raft::core::Flow { uncommitted_bytes: 1, ..Default::default() };
/// let refused = builder()?.log_flow(flow).start().await.err().expect("less than in one message");
/// assert_eq!(refused.to_string(), "bytes not committed 1: must be from 1048576 to 67108864");
///
/// let node = builder()?.voters_max(3).keys_quota(1 << 30).start().await?;
/// node.wait_ready().await;
/// node.stop().await;
/// # Ok(())
/// # }
/// ```
pub struct NodeBuilder {
    io: Io,
    listen: Address,
    advertise: Option<Address>,
    origin: Origin,
    election_timeout: Duration,
    voters_max: usize,
    retention: Retention,
    flow: Flow,
    chunk_bytes: usize,
    events_max: usize,
    role: Role,
    worker: WorkerConfig,
    free_space_floor: u64,
    keys_quota: u64,
    password_rounds: NonZeroU32,
    history: History,
    standby: bool,
    lease_reads: bool,
    newest_format: u32,
    entry_reads: u64,
    observer: Arc<dyn Observer>,
}

impl NodeBuilder {
    /// A node over these seams that listens on `listen`. Whoever reaches that address can have the node do anything, unless the seams
    /// ask for certificates and tokens: beyond this machine take [`os::io`](crate::os::io) with both, and [`Io::with_tokens`].
    pub fn new(io: Io, listen: Address) -> Self {
        Self {
            io,
            listen,
            advertise: None,
            origin: Origin::Existing,
            election_timeout: limits::ELECTION_TIMEOUT,
            voters_max: limits::VOTERS_TARGET_MAX,
            retention: Retention::default(),
            flow: Flow::default(),
            chunk_bytes: limits::SNAPSHOT_CHUNK_BYTES,
            events_max: limits::EVENTS_MAX,
            role: Role::default(),
            worker: WorkerConfig::default(),
            free_space_floor: limits::FREE_SPACE_FLOOR,
            keys_quota: limits::KEYS_QUOTA,
            password_rounds: limits::PASSWORD_ROUNDS,
            history: History::default(),
            standby: false,
            lease_reads: false,
            newest_format: format::NEWEST,
            entry_reads: limits::READ_BYTES_MAX,
            observer: Arc::new(()),
        }
    }

    /// The address that others reach it at, where it is not the one it listens on; port 0 is the one it listens on.
    pub fn advertise(mut self, address: Address) -> Self {
        self.advertise = Some(address);
        self
    }

    /// How it gets an identity if it has none.
    pub fn origin(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// How long a follower waits for a leader, at least; each draws its own time between one and two of it. From
    /// [`limits::ELECTION_TIMEOUT_MIN`] to [`limits::ELECTION_TIMEOUT_MAX`]; [`limits::ELECTION_TIMEOUT`] without this.
    pub fn election_timeout(mut self, timeout: Duration) -> Self {
        self.election_timeout = timeout;
        self
    }

    /// How many voters it makes while it leads; further members stay learners. From 1 to [`limits::MEMBERS_MAX`];
    /// [`limits::VOTERS_TARGET_MAX`] without this.
    pub fn voters_max(mut self, voters: usize) -> Self {
        self.voters_max = voters;
        self
    }

    /// How much of the applied log it keeps for members that are behind; one entry at least.
    pub fn log_kept(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// How much of the log it has under way at once: to each member, and to its own state.
    pub fn log_flow(mut self, flow: Flow) -> Self {
        self.flow = flow;
        self
    }

    /// About how large the chunks are in which it sends a snapshot, in bytes: from 1 to half of [`limits::MESSAGE_BYTES_MAX`].
    pub fn snapshot_chunk_bytes(mut self, bytes: usize) -> Self {
        self.chunk_bytes = bytes;
        self
    }

    /// How many changes of keys it reads at once for those who watch: from 1 to [`limits::EVENTS_MAX`], which is what it does without
    /// this.
    pub fn watch_batch_events(mut self, events: usize) -> Self {
        self.events_max = events;
        self
    }

    /// What it does. A server runs nothing, whatever its seams let it; a worker must be able to.
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// What it offers as a worker, if its seams let it run anything.
    pub fn worker(mut self, config: WorkerConfig) -> Self {
        self.worker = config;
        self
    }

    /// Bytes of free space below which it takes nothing that grows; [`limits::FREE_SPACE_FLOOR`] without this.
    pub fn free_space_floor(mut self, bytes: u64) -> Self {
        self.free_space_floor = bytes;
        self
    }

    /// Bytes that keys and their history may take while it leads: beyond them it raises an alarm. From 1, [`u64::MAX`] for no bound;
    /// [`limits::KEYS_QUOTA`] without this.
    pub fn keys_quota(mut self, bytes: u64) -> Self {
        self.keys_quota = bytes;
        self
    }

    /// How often it mixes a password before it is kept: what a guess costs. [`limits::PASSWORD_ROUNDS`] without this.
    pub fn password_rounds(mut self, rounds: NonZeroU32) -> Self {
        self.password_rounds = rounds;
        self
    }

    /// How much of the keys' past it keeps while it leads; of none, the newest revision alone can be read.
    pub fn history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    /// Whether it stays a learner until it is promoted, if it joins now.
    pub fn standby(mut self, standby: bool) -> Self {
        self.standby = standby;
        self
    }

    /// Whether it answers linearizable reads under a lease while it leads, without asking the others. For whoever can promise that no
    /// clock of the members runs faster or slower than [`limits::CLOCK_DRIFT_PPM_MAX`] allows, or stands still while its machine does
    /// not: where that is broken, a read may miss what was written last.
    pub fn lease_reads(mut self, lease_reads: bool) -> Self {
        self.lease_reads = lease_reads;
        self
    }

    /// The newest format of the state that it takes part in, see [`crate::state::format`]. While one member is held at an older one, the
    /// whole cluster stays there, and all may go back to the version before. From [`format::FIRST`] to [`format::NEWEST`], which is
    /// what it is without this.
    pub fn newest_format(mut self, format: u32) -> Self {
        self.newest_format = format;
        self
    }

    /// What the commands of one entry of the log read at most, in bytes: [`limits::READ_BYTES_MAX`] without this. It is the same on all
    /// members of a cluster, from its beginning to its end: else their states part.
    #[cfg(feature = "sim")]
    pub fn entry_reads(mut self, bytes: u64) -> Self {
        self.entry_reads = bytes;
        self
    }

    /// Has an observer told what the member does.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// Starts the node: its address answers when this returns.
    ///
    /// A node that cannot go on safely, because its disk fails, its data is damaged or a task of it panics, ends the process, with
    /// exit status 70 and the reason on standard error: that is what [`fail_stop`](crate::io::Spawn::fail_stop) of
    /// [`os::io`](crate::os::io) does. Who wants something else puts a [`Spawn`](crate::io::Spawn) of its own into the [`Io`].
    ///
    /// # Errors
    /// A setting is out of its bounds, the address is taken, the node has no identity and was not told how to get one, the cluster refused it, or its
    /// data is corrupt. Nothing that existed has changed.
    pub async fn start(self) -> Result<Node, Fault> {
        if self.role == Role::Worker {
            return pure::start(self).await;
        }
        self.check()?;
        let (listener, address) = self.bind().await?;
        let bound = listener.address();
        let io = self.io;
        space::make_room(&*io.disk, self.free_space_floor);
        let mut log = Log::open(&*io.disk)?;
        let uuid = log.uuid(|| draw_uuid(&io))?;
        let found = log.joined()?;
        let was_member = found.is_some();
        let identity = match found {
            Some(joined) => check_role(&io, &joined, self.role).map(|()| Identity::of(&joined))?,
            None => {
                let joins = Joins::Server { standby: self.standby, format: self.newest_format };
                establish(&io, &mut log, &self.origin, &uuid, (&address, joins)).await?
            }
        };
        // Before the state is opened: if the log is damaged, nothing more is touched.
        let changed = if was_member { log.changed_members()? } else { Vec::new() };
        let machine = machine::open_state(&io.disk, &log, self.newest_format)?.entry_reads(self.entry_reads);
        let seeds = match self.origin {
            Origin::Join(seeds) => seeds,
            Origin::Existing | Origin::Bootstrap => Vec::new(),
        };
        if was_member {
            // The oldest first: the state may be far behind the log, and what the log still has is never older than that.
            let changed = changed.iter().filter_map(|member| Some((NodeId(member.id), member.address.parse().ok()?)));
            let places = log.first_peers()?.into_iter().chain(machine.peers()?).chain(changed);
            let (own, others): (Vec<_>, Vec<_>) = places.partition(|(id, _)| *id == identity.id);
            let known = own.into_iter().map(|(_, place)| place).next_back();
            let others = others.into_iter().map(|(_, place)| place).collect();
            let seeds = seeds.iter().filter(|seed| **seed != address).cloned().collect();
            join::check_alone(&io, identity, Whereabouts { own: address.clone(), known, others, seeds }).await?;
        }
        let reader = machine.reader();
        let metrics = Metrics::new();
        let setup = Setup {
            io: io.clone(),
            identity,
            address: address.clone(),
            format: self.newest_format,
            election_ticks: (self.election_timeout.as_millis() / limits::TICK.as_millis()) as usize,
            lease_reads: self.lease_reads,
            retention: self.retention,
            flow: self.flow,
            log,
            snapshots: StateSnapshots {
                reader: reader.clone(),
                disk: io.disk.clone(),
                chunk_bytes: self.chunk_bytes,
                free_space_floor: self.free_space_floor,
                import: None,
                defragmenter: machine.defragmenter(),
            },
            machine,
            observer: self.observer,
            metrics: metrics.clone(),
        };
        let (raft, incarnation, manager) = manager::start(setup)?;
        if member::is_removed(&reader.view()?.1, identity.id)? {
            raft.note_removed();
        }
        let outputs = worker::outputs(&io).filter(|_| self.role == Role::Both);
        let bounds = Bounds {
            free_space_floor: self.free_space_floor,
            keys_quota: self.keys_quota,
            password_rounds: self.password_rounds,
            newest_format: self.newest_format,
        };
        let shared = SharedNodeState::new(io.clone(), identity, raft, reader, outputs.clone(), metrics, bounds);
        let health = Health::default();
        let routes = api::routes(&shared, &health, self.events_max);
        let (serving, server) = Serving::start(&io, listener, routes.clone());
        let tasks = vec![
            manager,
            server,
            io.spawn
                .spawn("controllers", Box::pin(control(shared.clone(), self.voters_max, Historian::new(self.history)))),
            io.spawn.spawn("scheduler", Box::pin(schedule(shared.clone()))),
            io.spawn.spawn("address", Box::pin(join::announce(shared.clone(), uuid, address.clone(), seeds))),
            io.spawn.spawn("space", Box::pin(space::watch(shared.clone()))),
            io.spawn.spawn("readiness", Box::pin(ready(shared.clone(), health.clone()))),
        ];
        let called = (identity.id, io.rng.stream("life").bits());
        let start = |hands| Worker::start(io.clone(), called, self.worker, shared.clone(), hands);
        let worker = outputs.map(start);
        tracing::info!(cluster = identity.cluster.hex(), member = %identity.id, %bound, "started");
        let life = Life::Member { shared, incarnation };
        Ok(Node { io, identity, health, address: bound, advertised: address, routes, life, worker, serving, tasks })
    }

    /// Whether all that it was told is within its bounds.
    fn check(&self) -> Result<(), Fault> {
        fn within<T: PartialOrd + std::fmt::Debug>(
            what: &str,
            value: &T,
            bounds: RangeInclusive<T>,
        ) -> Result<(), Fault> {
            match bounds.contains(value) {
                true => Ok(()),
                false => Err(Fault::new(format!(
                    "{what} {value:?}: must be from {:?} to {:?}",
                    bounds.start(),
                    bounds.end()
                ))),
            }
        }
        let timeouts = limits::ELECTION_TIMEOUT_MIN..=limits::ELECTION_TIMEOUT_MAX;
        within("election timeout", &self.election_timeout, timeouts)?;
        within("number of voters", &self.voters_max, 1..=limits::MEMBERS_MAX)?;
        within("number of log entries kept", &self.retention.entries, 1..=u64::MAX)?;
        let Flow { append_bytes, appends, uncommitted_bytes, committed_bytes } = self.flow;
        within("bytes of an append message", &append_bytes, 1..=limits::APPEND_BYTES_MAX)?;
        within("append messages before an answer", &appends, 1..=limits::APPENDS_IN_FLIGHT_MAX)?;
        within("bytes not committed", &uncommitted_bytes, append_bytes..=limits::UNCOMMITTED_BYTES_MAX)?;
        within("bytes handed to the state at once", &committed_bytes, 1..=limits::COMMITTED_BYTES_MAX)?;
        within("bytes of a snapshot's chunk", &self.chunk_bytes, 1..=limits::MESSAGE_BYTES_MAX / 2)?;
        within("number of changes read at once", &self.events_max, 1..=limits::EVENTS_MAX)?;
        within("bytes that keys may take", &self.keys_quota, 1..=u64::MAX)?;
        let reads = limits::SESSION_ANSWER_BYTES_MAX as u64..=limits::READ_BYTES_MAX;
        within("bytes that an entry reads", &self.entry_reads, reads)?;
        within("format of the state", &self.newest_format, format::ALL)
    }

    /// Takes the address to listen on; gives the one that others are told.
    async fn bind(&self) -> Result<(Box<dyn Listener>, Address), Fault> {
        let told = self.advertise.as_ref().unwrap_or(&self.listen);
        if told.is_unspecified() {
            return Err(Fault::new(format!(
                "{told} stands for every address of this machine, and others must know one: say which to advertise (`node start \
                 --advertise`)"
            )));
        }
        let listener = self.io.network.bind(&self.listen).await.context(|| "start the node".into())?;
        let bound = listener.address();
        let address = match &self.advertise {
            Some(advertised) if advertised.port() == 0 => advertised.with_port(bound.port()),
            Some(advertised) => advertised.clone(),
            None => bound,
        };
        Ok((listener, address))
    }
}

/// Whether what is in the data directory can have this role.
fn check_role(io: &Io, joined: &JoinReply, role: Role) -> Result<(), Fault> {
    let (holds, start) = match (joined.role() == MemberRole::Worker, role) {
        (true, Role::Server | Role::Both) => ("a worker of a cluster", "with --role worker"),
        (false, Role::Worker) => ("a member that keeps the state", "without --role worker"),
        (true, Role::Worker) | (false, Role::Server | Role::Both) => return Ok(()),
    };
    let place = io.disk.describe();
    Err(Fault::new(format!("{place} holds {holds}: start it {start}, or choose another directory with --data-dir")))
}

/// What [`Log::uuid`] keeps.
fn draw_uuid(io: &Io) -> ([u8; 16], u32) {
    let (mut uuid, mut drawn) = ([0; 16], io.rng.stream("identity"));
    drawn.fill(&mut uuid);
    (uuid, (drawn.bits() >> 32) as u32)
}

/// A listener that answers, and the way to have it stop.
struct Serving {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Serving {
    fn start(io: &Io, listener: Box<dyn Listener>, routes: Routes) -> (Self, TaskHandle) {
        let (stop, stopped) = oneshot::channel::<()>();
        let (serving_ended, ended) = oneshot::channel();
        let serve = async move {
            let stop = Box::pin(async {
                let _ = stopped.await;
            });
            if let Err(error) = listener.serve(routes, stop).await {
                tracing::error!(%error, "the listener failed");
            }
            let _ = serving_ended.send(());
        };
        (Self { stop, ended }, io.spawn.spawn("server", Box::pin(serve)))
    }
}

async fn establish(
    io: &Io,
    log: &mut Log,
    origin: &Origin,
    uuid: &[u8; 16],
    (address, joins): (&Address, Joins),
) -> Result<Identity, Fault> {
    match origin {
        Origin::Existing => {
            return Err(Fault::new(format!(
                "{} holds no member of a cluster: to found a new cluster start with --bootstrap, to enter an existing one \
             with --join and the address of a member",
                io.disk.describe()
            )));
        }
        Origin::Bootstrap => {
            let founder = Member {
                id: 1,
                uuid: uuid.to_vec().into(),
                address: address.to_string(),
                role: MemberRole::Voter.into(),
                standby: false,
            };
            let founded = JoinReply {
                cluster_id: io.rng.stream("cluster").bits() | 1,
                id: founder.id,
                members: vec![founder.clone()],
                role: MemberRole::Unspecified.into(),
            };
            log.establish(&founded, &[genesis(&founder)])?;
        }
        Origin::Join(seeds) => {
            let joined = join::join(io, seeds, uuid, address, joins).await?;
            log.establish(&joined, &[])?;
        }
    }
    log.identity()?.ok_or_else(|| Fault::new("the identity that was just written is gone"))
}

/// Says that the node serves once a majority has confirmed that it is up to date, for as long as it knows of a leader.
async fn ready(shared: Arc<SharedNodeState>, health: Health) {
    loop {
        wait_confirmed(&shared).await;
        health.set_serving(true);
        shared.raft.wait(|status| status.leader.is_none().then_some(())).await;
        health.set_serving(false);
    }
}

async fn wait_confirmed(shared: &SharedNodeState) {
    while shared.read_barrier(shared.io.clock.now() + limits::REQUEST_TIMEOUT).await.is_err() {
        shared.io.clock.sleep(limits::TICK).await;
    }
}

/// The leader's controllers, one look after another.
async fn control(shared: Arc<SharedNodeState>, voters_max: usize, mut historian: Historian) {
    let mut last_stamp = shared.io.clock.now();
    loop {
        shared.io.clock.sleep(limits::CONTROL_PERIOD).await;
        let oldest = match shared.reader.view() {
            Ok((head, _)) => historian.look(shared.io.clock.now(), &head),
            Err(fault) => return shared.io.spawn.fail_stop(fault),
        };
        if !shared.leads() {
            continue;
        }
        // Cluster time is carried by entries: while anything may expire, it must go on without clients, too.
        let keep_time = shared.io.clock.now().since(last_stamp) >= limits::TIME_PERIOD;
        if keep_time {
            last_stamp = shared.io.clock.now();
        }
        if let Err(fault) = control_once(&shared, keep_time, oldest, voters_max).await {
            return shared.io.spawn.fail_stop(fault);
        }
    }
}

async fn control_once(
    shared: &SharedNodeState,
    keep_time: bool,
    oldest: Option<u64>,
    voters_max: usize,
) -> Result<(), Fault> {
    let clock = &shared.io.clock;
    let (expire, raise, members, based_on) = {
        let (head, rows) = shared.reader.view()?;
        let (soon, members) = (shared.raft.cluster_time(), member::all(&rows)?);
        let raise = controller::raise_format(&head, &members, |id| shared.newest_format_of(id));
        (controller::expire(&head, &rows, soon, keep_time)?, raise, members, Index(head.applied_index))
    };
    sometimes!(oldest.is_some(), "a leader compacted by itself");
    // What fails here is looked at again in the next period.
    if let Some(raise) = raise {
        let proposal = shared.raft.propose_for(raise.encode_to_vec().into(), based_on);
        let _ = clock.timeout(limits::REQUEST_TIMEOUT, proposal).await;
    }
    for command in expire.into_iter().chain(oldest.map(controller::compact)) {
        let _ =
            clock.timeout(limits::REQUEST_TIMEOUT, shared.raft.propose(command.encode_to_vec().into(), false)).await;
    }
    if let Some(change) = controller::promote(&shared.raft.status(), &members, voters_max) {
        let _ = clock.timeout(limits::REQUEST_TIMEOUT, shared.raft.change_members(change, based_on)).await;
    }
    Ok(())
}

/// The leader's scheduler and its sweeper: look again whenever the state has changed.
async fn schedule(shared: Arc<SharedNodeState>) {
    let clock = shared.io.clock.clone();
    let mut seen = Index(0);
    loop {
        // Also without a change: the pause of a task may be over.
        let changed = shared.raft.wait(|status| (status.applied > seen).then_some(status.applied));
        seen = clock.timeout(limits::CONTROL_PERIOD, changed).await.unwrap_or(seen);
        let began = clock.now();
        if shared.leads() {
            let look = |(head, rows)| Ok([controller::assign(&head, &rows)?, controller::sweep(&head)]);
            let commands = match shared.reader.view().and_then(look) {
                Ok(commands) => commands,
                Err(fault) => return shared.io.spawn.fail_stop(fault),
            };
            // What fails here is looked at again in the next round.
            for command in commands.into_iter().flatten() {
                let proposal = shared.raft.propose(command.encode_to_vec().into(), false);
                let _ = clock.timeout(limits::REQUEST_TIMEOUT, proposal).await;
            }
        }
        // Under load the state changes all the time; what gathers meanwhile is placed at once. A long look is followed by a
        // longer pause: other work must go on.
        let took = clock.now().since(began);
        clock.sleep(limits::SCHEDULE_PAUSE.max(took * 4).min(limits::CONTROL_PERIOD)).await;
    }
}

/// Who belongs to the group that keeps the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who is told everything, and does not vote.
    pub learners: Vec<NodeId>,
}

/// A running node. Dropping it cancels its tasks without ceremony, like a crash.
pub struct Node {
    io: Io,
    identity: Identity,
    health: Health,
    address: Address,
    advertised: Address,
    routes: Routes,
    life: Life,
    worker: Option<Worker>,
    serving: Serving,
    tasks: Vec<TaskHandle>,
}

/// What there is to a node besides its worker.
enum Life {
    /// It keeps the state.
    Member { shared: Arc<SharedNodeState>, incarnation: Incarnation },
    /// A server tells it what concerns it.
    Worker(Arc<Remote>),
}

impl Node {
    /// Who it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How often the member has started; `None` of one that keeps no state.
    pub fn incarnation(&self) -> Option<Incarnation> {
        match &self.life {
            Life::Member { incarnation, .. } => Some(*incarnation),
            Life::Worker(_) => None,
        }
    }

    /// The address it listens on.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The address that others reach it at: what they join at.
    pub fn advertised(&self) -> &Address {
        &self.advertised
    }

    /// What it knows of itself and the group; `None` of one that keeps no state.
    pub fn status(&self) -> Option<Arc<Status>> {
        match &self.life {
            Life::Member { shared, .. } => Some(shared.raft.status()),
            Life::Worker(_) => None,
        }
    }

    /// A client of the cluster in this process, which asks this node without a socket. Calls give up after `timeout`. One that keeps
    /// no state refuses what is asked of the state.
    pub fn client(&self, timeout: Duration) -> Client {
        Client::over(self.io.clone(), vec![(self.address.clone(), self.channel())], timeout)
    }

    /// A channel to this node in this process, for generated clients.
    pub fn channel(&self) -> Channel {
        let routes = self.routes.clone();
        Channel::new(service_fn(move |mut request: http::Request<_>| {
            // Whoever is in this process may do everything.
            request.extensions_mut().insert(Shown::Token);
            let answer = routes.clone().oneshot(request);
            // It goes no further than this process: it cannot fail on the way.
            async { answer.await.map_err(|never| match never {}) }
        }))
    }

    /// Who leads, now and with each change: nobody while an election goes on. Ends with the node; at once for one that keeps no state.
    pub fn leader_changes(&self) -> BoxStream<'static, Option<NodeId>> {
        self.changes(|status| status.leader)
    }

    /// Who votes and who learns, now and with each change. Ends with the node; at once for one that keeps no state.
    pub fn membership_changes(&self) -> BoxStream<'static, Membership> {
        self.changes(|status| Membership { voters: status.voters.clone(), learners: status.learners.clone() })
    }

    fn changes<T: Clone + PartialEq + Send + Sync + 'static>(&self, of: fn(&Status) -> T) -> BoxStream<'static, T> {
        let Life::Member { shared, .. } = &self.life else { return Box::pin(stream::empty()) };
        let raft = shared.raft.clone();
        Box::pin(stream::unfold(None, move |last: Option<T>| {
            let raft = raft.clone();
            async move {
                let other = |status: &Status| Some(of(status)).filter(|now| last.as_ref() != Some(now));
                match select(pin!(raft.wait(other)), pin!(raft.ended())).await {
                    Either::Left((now, _)) => Some((now.clone(), Some(now))),
                    Either::Right(_) => None,
                }
            }
        }))
    }

    /// Waits until it serves: a leader is known and this node is up to date. Give it a deadline.
    pub async fn wait_ready(&self) {
        match &self.life {
            Life::Member { shared, .. } => wait_confirmed(shared).await,
            Life::Worker(remote) => pure::wait_ready(remote).await,
        }
    }

    /// Waits until this node is told that it was removed from the cluster. It can do nothing more there: stop it.
    pub async fn removed(&self) {
        match &self.life {
            Life::Member { shared, .. } => shared.raft.removed().await,
            Life::Worker(remote) => remote.removed().await,
        }
    }

    /// Stops it in order: no new work, its tasks ended and given back, leadership handed over, state durable, calls under
    /// way answered.
    pub async fn stop(self) {
        self.health.end();
        let removed = self.removed().now_or_never().is_some();
        if let Some(worker) = self.worker {
            worker.drain(limits::DRAIN_TIMEOUT, removed).await;
        }
        if let Life::Member { shared, .. } = &self.life {
            shared.raft.stop().await;
        }
        let _ = self.serving.stop.send(());
        // Streams of peers end when their other end does; nobody waits for them.
        let _ = self.io.clock.timeout(limits::TICK * 5, self.serving.ended).await;
        drop(self.tasks);
    }
}

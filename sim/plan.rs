//! A seed expanded: the cluster, the load, and every fault with its time. Printed before it runs.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::io::{Io, Rng, RngStream, Tokens};
use crate::limits::{
    CLOCK_DRIFT_PPM_MAX, ELECTION_TIMEOUT, FREE_SPACE_FLOOR, LOG_BYTES_KEPT, LOG_ENTRIES_KEPT, SNAPSHOT_CHUNK_BYTES,
};
use crate::limits::{ELECTION_TIMEOUT_MIN, TAIL_BYTES_MAX, VOTERS_TARGET_MAX};
use crate::node::Role;
use crate::raft::tail::Retention;
use crate::sim::clock::FROZEN_PPM;
use crate::sim::disk::{Damage, DiskOp, Files, PowerCut};
use crate::sim::load::Load;
use crate::sim::network::Weather;

/// A machine of the cluster, by its place in it: 0 is the founder's, and after those that keep the state come the workers
/// that keep none.
pub type Place = usize;

/// Some of the machines: bit `n` is place `n`.
pub type Places = u16;

/// What a seed does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Members, and those that become some only later.
    pub nodes: usize,
    /// Workers that keep no state. The first of them is never removed for good, so that somebody can always run tasks.
    #[serde(default)]
    pub workers: usize,
    /// Members that run nothing; there are none without workers.
    #[serde(default)]
    pub idle: Places,
    /// How many of the members may vote.
    pub voters_max: usize,
    /// How long a follower waits for a leader, at least.
    pub election_timeout: Duration,
    /// Whether calls need a token.
    pub token: bool,
    /// Clients, each on a machine of its own, doing one thing at a time.
    pub clients: usize,
    /// Operations of each client.
    pub operations: u64,
    /// How long a client pauses between two of them, at most.
    pub pause: Duration,
    /// Whether they are copies of one client, with one session.
    pub one_session: bool,
    /// How often, in thousandths, a client pauses for longer than a session lives.
    pub idle_permille: u64,
    /// Clients that read from one member alone, for each member.
    pub readers: usize,
    /// How long they pause between two reads, at most.
    pub readers_pause: Duration,
    /// Clients that submit tasks.
    pub submitters: usize,
    /// Tasks of each.
    pub tasks: u64,
    /// How many of them, in thousandths, ignore the signal to end; where it is most of them, most are long, too.
    pub stubborn_permille: u64,
    /// Keys they share.
    pub keys: u64,
    /// Large values that are written once, before anything goes wrong, and must still be there at the end.
    pub stock: u64,
    /// The log is kept in memory instead of a database on the simulated disk.
    pub model_log: bool,
    /// How much of the log the members keep for those behind: less than what happens, so that snapshots are needed.
    pub retention: Retention,
    /// Bytes of a snapshot's chunk.
    pub chunk_bytes: usize,
    /// What the network is like until it heals.
    pub weather: Weather,
    /// What happens, in order of time since the cluster was formed.
    pub faults: Vec<(Duration, Fault)>,
    /// It goes wrong from the beginning on, while the cluster forms.
    pub early: bool,
    /// More may be lost than a majority can make good: then nobody need serve again, but no answer may be wrong.
    pub beyond_budget: bool,
    /// What draws the majority that must serve while the others stay broken.
    pub core: u64,
}

/// What a fault touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
    /// Links, and the weather on them.
    Network,
    /// What is stored.
    Disk,
    /// What runs.
    Process,
    /// What time it is.
    Clock,
    /// Who belongs to the cluster, and who leads it.
    Membership,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Network, Self::Disk, Self::Process, Self::Clock, Self::Membership];
}

/// One thing that goes wrong, or that an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The process is killed and started again.
    Kill {
        /// Which.
        node: Place,
        /// How long it stays off.
        down: Duration,
    },
    /// The power goes and comes back.
    Power {
        /// Which.
        node: Place,
        /// What becomes of unsynced writes.
        cut: PowerCut,
        /// How long it stays off.
        down: Duration,
    },
    /// The power goes, and again while the node recovers.
    Recovery {
        /// Which.
        node: Place,
        /// What becomes of unsynced writes, both times.
        cut: PowerCut,
        /// Disk operations that the recovery gets through before.
        operations: u64,
        /// How long it stays off, both times.
        down: Duration,
    },
    /// It is stopped in order and started again.
    Stop {
        /// Which.
        node: Place,
        /// How long it stays off.
        down: Duration,
    },
    /// It is killed again and again as soon as it is up.
    Storm {
        /// Which.
        node: Place,
        /// How often.
        times: u64,
        /// How long it stays up and off, at most.
        down: Duration,
    },
    /// It stops answering while its clock runs.
    Pause {
        /// Which.
        node: Place,
        /// For how long.
        span: Duration,
    },
    /// It gets the processor only now and then.
    Slow {
        /// Which.
        node: Place,
        /// For how long.
        span: Duration,
    },
    /// Power for all at once.
    Blackout {
        /// What becomes of unsynced writes.
        cut: PowerCut,
        /// How long they stay off.
        down: Duration,
        /// One that stays off until everything is healed.
        gone: Option<Place>,
        /// So long after two configurations were in force at once, if they ever are.
        after_joint: Option<Duration>,
    },
    /// All that a member asks and is told comes late for a while, and then it is cut off.
    Strand {
        /// Which.
        node: Place,
        /// For how long, both together.
        span: Duration,
    },
    /// Links are cut.
    Cut {
        /// Which.
        links: Links,
        /// For how long.
        span: Duration,
    },
    /// Its disk is all but full.
    Full {
        /// Which.
        node: Place,
        /// Bytes that are left.
        left: u64,
        /// For how long.
        span: Duration,
    },
    /// Its disk is slow.
    Stall {
        /// Which.
        node: Place,
        /// For how long.
        span: Duration,
    },
    /// An operation of its disk fails; a node that stops over it is started again.
    DiskError {
        /// Which.
        node: Place,
        /// The kind of operation.
        op: DiskOp,
        /// How long after.
        down: Duration,
    },
    /// What is stored is damaged while it is off. If its node does not start over that, an operator puts another machine in its
    /// place.
    Rot {
        /// Which.
        node: Place,
        /// How.
        damage: Damage,
        /// In which files.
        files: Files,
        /// Pages, in thousandths.
        permille: u64,
        /// It was stopped in order before.
        stopped: bool,
        /// How long it stays off.
        down: Duration,
    },
    /// Its disk is lost, and an operator puts another machine in its place.
    Replace {
        /// Which.
        node: Place,
        /// How long that takes.
        down: Duration,
    },
    /// Its power goes at the next of some marked places in the code that its node comes by, within [`CRASH_PATIENCE`].
    Crash {
        /// Which.
        node: Place,
        /// What draws the places.
        places: u64,
        /// What becomes of unsynced writes.
        cut: PowerCut,
        /// How long it stays off.
        down: Duration,
    },
    /// It starts from a copy of another's disk, which it must notice, until it gets its own back.
    WrongDisk {
        /// Which.
        node: Place,
        /// Whose.
        other: Place,
    },
    /// Its clock runs fast or slow, or stands still.
    Speed {
        /// Which.
        node: Place,
        /// By how many millionths it is fast.
        ppm: i64,
        /// For how long.
        span: Duration,
    },
    /// Somebody sets its time of day.
    WallStep {
        /// Which.
        node: Place,
        /// By how much, in milliseconds.
        millis: i64,
    },
    /// An operator asks it to lead.
    Transfer {
        /// Which.
        to: Place,
    },
    /// Two operators ask two members to lead, at once.
    TransferRace {
        /// Which.
        to: Place,
        /// And which.
        other: Place,
    },
    /// An operator removes it for ever.
    Remove {
        /// Which.
        node: Place,
        /// It is started again later.
        returns: bool,
        /// So long after the operator is told that it is removed the power goes for all who are left.
        cut: Option<(Duration, PowerCut)>,
    },
    /// An operator removes whoever leads.
    RemoveLeader,
    /// It is killed and started again at another address.
    Move {
        /// Which.
        node: Place,
        /// How long it stays off.
        down: Duration,
    },
    /// It has not been there from the beginning: it joins now.
    Join {
        /// Which.
        node: Place,
        /// After so many disk operations its power goes, and this becomes of unsynced writes.
        birth: Option<(u64, PowerCut)>,
        /// Two operators remove it so long after it is a member: perhaps just when it is to get a vote.
        removed: Option<Duration>,
    },
    /// An operator asks it to lead as soon as two configurations are in force at once, and its disk is held up.
    TransferInJoint {
        /// Which.
        to: Place,
    },
}

/// Links between members to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Links {
    /// Messages from one to another are lost; the way back works.
    OneWay {
        /// From.
        from: Place,
        /// To.
        to: Place,
    },
    /// It reaches no other member, nor they it. Clients do.
    Isolate {
        /// Which.
        node: Place,
    },
    /// Whoever leads at that time reaches nobody.
    Leader,
    /// Whoever leads at that time hears nobody, and is heard.
    LeaderDeaf,
    /// Whoever campaigns first from then on reaches nobody.
    Candidate,
    /// These from all others.
    Halves {
        /// These.
        these: Places,
    },
    /// These from all others but one, which reaches all.
    Bridge {
        /// These.
        these: Places,
        /// The one.
        middle: Place,
    },
    /// Both ways between two, again and again.
    Flap {
        /// Between.
        one: Place,
        /// And.
        other: Place,
        /// How long they are cut, and then mended.
        period: Duration,
    },
    /// These are isolated one by one, and come back one by one in the reverse order.
    Swizzle {
        /// These.
        these: Places,
    },
}

impl Links {
    fn places(self) -> Vec<Place> {
        match self {
            Self::OneWay { from, to } => vec![from, to],
            Self::Flap { one, other, .. } => vec![one, other],
            Self::Isolate { node } => vec![node],
            Self::Bridge { middle, .. } => vec![middle],
            Self::Leader | Self::LeaderDeaf | Self::Candidate | Self::Halves { .. } | Self::Swizzle { .. } => {
                Vec::new()
            }
        }
    }
}

impl Fault {
    /// What it touches.
    pub fn class(&self) -> Class {
        match self {
            Self::Kill { .. }
            | Self::Power { .. }
            | Self::Recovery { .. }
            | Self::Stop { .. }
            | Self::Storm { .. }
            | Self::Pause { .. }
            | Self::Slow { .. }
            | Self::Crash { .. }
            | Self::Blackout { .. } => Class::Process,
            Self::Cut { .. } | Self::Strand { .. } => Class::Network,
            Self::Full { .. }
            | Self::Stall { .. }
            | Self::DiskError { .. }
            | Self::Rot { .. }
            | Self::WrongDisk { .. }
            | Self::Replace { .. } => Class::Disk,
            Self::WallStep { .. } | Self::Speed { .. } => Class::Clock,
            Self::Transfer { .. }
            | Self::TransferRace { .. }
            | Self::Remove { .. }
            | Self::RemoveLeader
            | Self::Move { .. }
            | Self::TransferInJoint { .. }
            | Self::Join { .. } => Class::Membership,
        }
    }

    /// The machines it names.
    pub fn places(&self) -> Vec<Place> {
        match *self {
            Self::Kill { node, .. }
            | Self::Power { node, .. }
            | Self::Recovery { node, .. }
            | Self::Stop { node, .. }
            | Self::Storm { node, .. }
            | Self::Pause { node, .. }
            | Self::Slow { node, .. }
            | Self::Crash { node, .. }
            | Self::Speed { node, .. }
            | Self::Strand { node, .. }
            | Self::Full { node, .. }
            | Self::Stall { node, .. }
            | Self::DiskError { node, .. }
            | Self::Rot { node, .. }
            | Self::Replace { node, .. }
            | Self::WallStep { node, .. }
            | Self::Remove { node, .. }
            | Self::Move { node, .. }
            | Self::Join { node, .. } => vec![node],
            Self::Transfer { to } | Self::TransferInJoint { to } => vec![to],
            Self::TransferRace { to, other } => vec![to, other],
            Self::WrongDisk { node, other } => vec![node, other],
            Self::Cut { links, .. } => links.places(),
            Self::Blackout { gone, .. } => gone.into_iter().collect(),
            Self::RemoveLeader => Vec::new(),
        }
    }

    /// Whether a member loses for good what it had made durable, or leaves with it. What it takes for that to do no harm is
    /// looked at when it happens: see `oracle/budget.rs`.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Rot { .. } | Self::Replace { .. } | Self::Remove { .. } | Self::RemoveLeader)
    }

    /// Whether it needs files to harm.
    fn is_on_files(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::DiskError { .. } | Self::Rot { .. })
    }

    /// One of each kind, for a cluster of so many.
    pub fn of_each_kind(rng: &mut RngStream, nodes: usize) -> Vec<Self> {
        KINDS.iter().map(|kind| kind(&mut Draw { rng, first: 0, nodes: nodes as u64 })).collect()
    }

    /// How long it lasts; nothing for what is done once.
    pub fn span(mut self) -> Duration {
        self.span_mut().map_or(Duration::ZERO, |span| *span)
    }

    /// The same for another time.
    pub fn with_span(mut self, span: Duration) -> Self {
        if let Some(old) = self.span_mut() {
            *old = span;
        }
        self
    }

    fn span_mut(&mut self) -> Option<&mut Duration> {
        match self {
            Self::Kill { down, .. }
            | Self::Power { down, .. }
            | Self::Recovery { down, .. }
            | Self::Stop { down, .. }
            | Self::Storm { down, .. }
            | Self::DiskError { down, .. }
            | Self::Rot { down, .. }
            | Self::Replace { down, .. }
            | Self::Move { down, .. }
            | Self::Crash { down, .. }
            | Self::Blackout { down, .. } => Some(down),
            Self::Pause { span, .. }
            | Self::Slow { span, .. }
            | Self::Cut { span, .. }
            | Self::Strand { span, .. }
            | Self::Stall { span, .. }
            | Self::Speed { span, .. }
            | Self::Full { span, .. } => Some(span),
            Self::WallStep { .. }
            | Self::WrongDisk { .. }
            | Self::Transfer { .. }
            | Self::TransferRace { .. }
            | Self::Remove { .. }
            | Self::RemoveLeader
            | Self::TransferInJoint { .. }
            | Self::Join { .. } => None,
        }
    }
}

impl Plan {
    /// Gives seams what they need to call the cluster.
    pub fn admit(&self, io: Io) -> Io {
        if self.token { io.with_tokens(tokens("cluster")) } else { io }
    }

    /// What each client does.
    pub fn load(&self) -> Load {
        let Self { operations, pause, keys, idle_permille, .. } = *self;
        Load { operations, until: Duration::MAX, pause, keys, idle_permille }
    }

    /// Whether nothing goes wrong at all.
    pub fn is_undisturbed(&self) -> bool {
        self.faults.is_empty() && self.weather == Weather::CALM
    }

    /// Whether all clocks run as evenly as leases demand.
    pub fn clocks_hold(&self) -> bool {
        let even =
            |fault: &Fault| !matches!(fault, Fault::Speed { ppm, .. } if ppm.unsigned_abs() > CLOCK_DRIFT_PPM_MAX);
        self.faults.iter().all(|(_, fault)| even(fault))
    }

    /// All places.
    pub fn places(&self) -> std::ops::Range<Place> {
        0..self.nodes + self.workers
    }

    /// What the node at a place does.
    pub fn role(&self, place: Place) -> Role {
        match place {
            worker if worker >= self.nodes => Role::Worker,
            member if self.idle >> member & 1 == 1 => Role::Server,
            _ => Role::Both,
        }
    }

    /// Whether a place is empty until its machine joins.
    pub fn is_late(&self, place: Place) -> bool {
        self.faults.iter().any(|(_, fault)| matches!(fault, Fault::Join { node, .. } if *node == place))
    }

    /// A plan of so many members on a calm network, with some load and no faults.
    pub fn quiet(nodes: usize) -> Self {
        Self {
            nodes,
            workers: 0,
            idle: 0,
            voters_max: VOTERS_TARGET_MAX,
            election_timeout: ELECTION_TIMEOUT,
            token: false,
            clients: 2,
            operations: 30,
            pause: Duration::from_millis(500),
            one_session: false,
            idle_permille: 0,
            readers: 0,
            readers_pause: Duration::from_millis(500),
            submitters: 1,
            tasks: 4,
            stubborn_permille: 200,
            keys: 2,
            stock: 5,
            model_log: false,
            retention: Retention::default(),
            chunk_bytes: SNAPSHOT_CHUNK_BYTES,
            weather: Weather::CALM,
            faults: Vec::new(),
            early: false,
            beyond_budget: false,
            core: 0,
        }
    }

    /// The same without the faults of a class.
    pub fn without(mut self, class: Class) -> Self {
        self.faults.retain(|(_, fault)| fault.class() != class);
        if class == Class::Network {
            self.weather = Weather::CALM;
        }
        self
    }

    /// The plan of a source of randomness.
    pub fn draw(rng: &Rng) -> Self {
        let mut cluster = rng.stream("plan/cluster");
        // Two, four and six: the last one stays a learner.
        let nodes = *cluster.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 6, 7]);
        let voters_max = *cluster.pick(&[3, VOTERS_TARGET_MAX, VOTERS_TARGET_MAX, 7]);
        let timeouts = [ELECTION_TIMEOUT_MIN, ELECTION_TIMEOUT, ELECTION_TIMEOUT, 3 * ELECTION_TIMEOUT];
        let election_timeout = *cluster.pick(&timeouts);
        let early = cluster.chance(150);
        let mut faults = faults(&mut rng.stream("plan/faults"), nodes);
        // While the cluster forms there is nobody yet to have what one member loses.
        faults.retain(|(_, fault)| !(early && fault.is_loss()));
        let (workers, idle, more) = draw_workers(&mut rng.stream("plan/workers"), nodes);
        // What a wrong disk is told by, nothing may disturb.
        if !faults.iter().any(|(_, fault)| matches!(fault, Fault::WrongDisk { .. })) {
            faults.extend(more);
            faults.sort_by_key(|(at, _)| *at);
        }
        let (mut load, mut readers) = (rng.stream("plan/load"), rng.stream("plan/readers"));
        Self {
            nodes,
            workers,
            idle,
            voters_max,
            election_timeout,
            token: rng.stream("plan/token").chance(500),
            clients: *load.pick(&[1, 2, 3, 4, 8]),
            operations: load.range(15, 50),
            pause: Duration::from_millis(*load.pick(&[1_200, 1_200, 300, 30, 3_000])),
            keys: load.range(1, 5),
            stock: *load.pick(&[0, 0, 10, 60]),
            readers: if readers.chance(250) { *readers.pick(&[1, 1, 3]) } else { 0 },
            readers_pause: Duration::from_millis(*readers.pick(&[60, 300, 1_000])),
            submitters: load.range(0, 3) as usize,
            tasks: load.range(2, 12),
            stubborn_permille: *load.pick(&[200, 200, 900]),
            one_session: load.chance(300),
            idle_permille: if load.chance(200) { 30 } else { 0 },
            // What damages files wants files.
            model_log: rng.stream("plan/log").chance(750) && !faults.iter().any(|(_, fault)| fault.is_on_files()),
            retention: Retention {
                entries: *load.pick(&[1, 8, 40, 200, LOG_ENTRIES_KEPT]),
                bytes: *load.pick(&[2_000, LOG_BYTES_KEPT, LOG_BYTES_KEPT]),
                in_memory: *load.pick(&[0, 2_000, TAIL_BYTES_MAX, TAIL_BYTES_MAX]),
            },
            chunk_bytes: *load.pick(&[1, 100, SNAPSHOT_CHUNK_BYTES]),
            // What a wrong disk must be told by is heard on a calm network.
            weather: match faults.iter().any(|(_, fault)| matches!(fault, Fault::WrongDisk { .. })) {
                true => Weather::CALM,
                false => weather(&mut rng.stream("plan/weather")),
            },
            beyond_budget: !early && rng.stream("plan/budget").chance(60),
            faults,
            early,
            core: rng.stream("plan/core").range(0, u64::MAX),
        }
    }
}

/// How often each of the members moves at most.
pub const MOVES_MAX: u16 = 3;
/// How many of the faults are losses at most.
const LOSSES_MAX: usize = 4;
/// How long a machine waits for a marked place to crash at.
pub const CRASH_PATIENCE: Duration = Duration::from_secs(10);

/// Tokens that begin with a word; where several are given, the first is sent.
pub fn tokens(word: &str) -> Tokens {
    format!("{word}-0123456789abcdef").parse().expect("a word and some digits")
}

fn weather(rng: &mut RngStream) -> Weather {
    if rng.chance(200) {
        return Weather::CALM;
    }
    let maybe = |rng: &mut RngStream, permille: u64, most: u64| match rng.chance(permille) {
        true => rng.range(0, most),
        false => 0,
    };
    let delay_min = Duration::from_millis(1);
    Weather {
        delay_min,
        delay_max: delay_min + Duration::from_millis(rng.range(1, 40)),
        slow_permille: maybe(rng, 500, 50),
        stall_permille: maybe(rng, 300, 800),
        lose_permille: maybe(rng, 500, 200),
        repeat_permille: maybe(rng, 500, 200),
        replay_per_100k: maybe(rng, 500, 1000),
        corrupt_per_100k: maybe(rng, 300, 500),
        reset_per_100k: maybe(rng, 300, 500),
        bytes_per_ms: if rng.chance(200) { rng.range(10, 200) } else { 0 },
    }
}

/// A kind of fault, as a draw.
type Kind = fn(&mut Draw<'_>) -> Fault;

/// Kinds of faults; each seed has its own subset.
const KINDS: &[Kind] = &[
    |d| Fault::Kill { node: d.place(), down: d.span() },
    |d| Fault::Power { node: d.place(), cut: d.cut(), down: d.span() },
    |d| Fault::Recovery { node: d.place(), cut: d.cut(), operations: d.rng.range(0, 120), down: d.span() },
    |d| Fault::Stop { node: d.place(), down: d.span() },
    |d| Fault::Storm { node: d.place(), times: d.rng.range(2, 8), down: Duration::from_millis(d.rng.range(1, 1_500)) },
    |d| Fault::Pause { node: d.place(), span: d.span() },
    |d| Fault::Slow { node: d.place(), span: d.span() },
    |d| {
        let gone = if d.rng.chance(300) { Some(d.place()) } else { None };
        let after_joint = if d.rng.chance(300) { Some(Duration::from_millis(d.rng.range(1, 60))) } else { None };
        Fault::Blackout { cut: d.cut(), down: d.span(), gone, after_joint }
    },
    |d| Fault::Strand { node: d.place(), span: Duration::from_millis(d.rng.range(12_000, 25_000)) },
    |d| Fault::Cut { links: Links::OneWay { from: d.place(), to: d.place() }, span: d.span() },
    |d| Fault::Cut { links: Links::Isolate { node: d.place() }, span: d.span() },
    |d| Fault::Cut { links: Links::Leader, span: d.span() },
    |d| Fault::Cut { links: Links::LeaderDeaf, span: d.span() },
    |d| Fault::Cut { links: Links::Candidate, span: d.span() },
    |d| Fault::Cut { links: Links::Halves { these: d.places() }, span: d.span() },
    |d| Fault::Cut { links: Links::Bridge { these: d.places(), middle: d.place() }, span: d.span() },
    |d| {
        let period = Duration::from_millis(d.rng.range(50, 3_000));
        Fault::Cut { links: Links::Flap { one: d.place(), other: d.place(), period }, span: d.span() }
    },
    |d| Fault::Cut { links: Links::Swizzle { these: d.places() }, span: d.span() },
    |d| {
        let left = *d.rng.pick(&[1 << 20, FREE_SPACE_FLOOR / 3, FREE_SPACE_FLOOR - 1, 2 * FREE_SPACE_FLOOR]);
        Fault::Full { node: d.place(), left, span: d.span() }
    },
    |d| Fault::Stall { node: d.place(), span: d.span() },
    |d| {
        let op = *d.rng.pick(&[DiskOp::Read, DiskOp::Write, DiskOp::Sync]);
        Fault::DiskError { node: d.place(), op, down: d.span() }
    },
    |d| {
        let permille = *d.rng.pick(&[5, 50, 500]);
        let damage = *d.rng.pick(&[Damage::Flipped, Damage::Flipped, Damage::Lost, Damage::Misdirected]);
        // Where files were closed in order redb takes whole pages that are out of place on trust, and may panic within a panic.
        let stopped = damage == Damage::Flipped && d.rng.chance(500);
        // The log is what damage is mostly found in, so sometimes it is spared.
        let files = *d.rng.pick(&[Files::All, Files::State, Files::Log]);
        Fault::Rot { node: d.place(), damage, files, permille, stopped, down: d.span() }
    },
    |d| Fault::Replace { node: d.place(), down: d.span() },
    |d| {
        let millis = *d.rng.pick(&[-3_600_000, -20_000, 20_000, 3_600_000]);
        Fault::WallStep { node: d.place(), millis }
    },
    |d| {
        let bound = CLOCK_DRIFT_PPM_MAX as i64;
        let ppm = *d.rng.pick(&[-bound, -bound, bound, bound, -200_000, 200_000, FROZEN_PPM]);
        Fault::Speed { node: d.place(), ppm, span: d.span() }
    },
    |d| {
        let (node, places) = (d.place(), d.rng.range(0, u64::MAX));
        Fault::Crash { node, places, cut: d.cut(), down: d.span() }
    },
    |d| {
        let (node, further) = (d.place(), d.rng.range(1, d.nodes.max(2)));
        Fault::WrongDisk { node, other: (node + further as usize) % d.nodes as usize }
    },
    |d| Fault::Transfer { to: d.place() },
    |d| Fault::TransferRace { to: d.place(), other: d.place() },
    |d| {
        let cut = if d.rng.chance(300) { Some((Duration::from_millis(d.rng.range(0, 10)), d.cut())) } else { None };
        Fault::Remove { node: d.place(), returns: d.rng.chance(500), cut }
    },
    |_| Fault::RemoveLeader,
    |d| Fault::Move { node: d.place(), down: d.span() },
    |d| {
        let birth = if d.rng.chance(500) { Some((d.rng.range(0, 16), d.cut())) } else { None };
        let removed = if d.rng.chance(400) { Some(Duration::from_millis(d.rng.range(0, 1_500))) } else { None };
        // The founder was there before all others.
        let node = d.rng.range(1, d.nodes.max(2)) as usize % d.nodes as usize;
        Fault::Join { node, birth, removed }
    },
    |d| Fault::TransferInJoint { to: d.place() },
];

/// What goes wrong with workers that keep no state: the draw gives their places, and [`Draw::other`] a member's.
const WORKER_KINDS: &[Kind] = &[
    // It comes back about when its lease is over for the cluster.
    |d| Fault::Kill { node: d.place(), down: Duration::from_millis(d.rng.range(8_000, 12_000)) },
    |d| Fault::Kill { node: d.place(), down: d.span() },
    |d| Fault::Power { node: d.place(), cut: d.cut(), down: d.span() },
    |d| Fault::Recovery { node: d.place(), cut: d.cut(), operations: d.rng.range(0, 12), down: d.span() },
    |d| Fault::Stop { node: d.place(), down: d.span() },
    |d| Fault::Storm { node: d.place(), times: d.rng.range(2, 8), down: Duration::from_millis(d.rng.range(1, 1_500)) },
    |d| Fault::Pause { node: d.place(), span: d.span() },
    |d| Fault::Slow { node: d.place(), span: d.span() },
    |d| Fault::Strand { node: d.place(), span: Duration::from_millis(d.rng.range(12_000, 25_000)) },
    |d| Fault::Cut { links: Links::Isolate { node: d.place() }, span: d.span() },
    |d| Fault::Cut { links: Links::OneWay { from: d.place(), to: d.other() }, span: d.span() },
    |d| Fault::Cut { links: Links::OneWay { from: d.other(), to: d.place() }, span: d.span() },
    |d| {
        let period = Duration::from_millis(d.rng.range(50, 3_000));
        Fault::Cut { links: Links::Flap { one: d.place(), other: d.other(), period }, span: d.span() }
    },
    // The one that it hears of the state falls behind.
    |d| Fault::Cut { links: Links::Isolate { node: d.other() }, span: d.span() },
    |d| Fault::Pause { node: d.other(), span: d.span() },
    |d| Fault::Stall { node: d.place(), span: d.span() },
    |d| {
        let bound = CLOCK_DRIFT_PPM_MAX as i64;
        Fault::Speed { node: d.place(), ppm: *d.rng.pick(&[-bound, bound, -bound, bound, FROZEN_PPM]), span: d.span() }
    },
    |d| Fault::WallStep { node: d.place(), millis: *d.rng.pick(&[-3_600_000, 3_600_000]) },
    |d| {
        let (node, places) = (d.place(), d.rng.range(0, u64::MAX));
        Fault::Crash { node, places, cut: d.cut(), down: d.span() }
    },
    |d| Fault::Move { node: d.place(), down: d.span() },
    |d| Fault::Remove { node: d.place(), returns: d.rng.chance(500), cut: None },
    |d| Fault::Replace { node: d.place(), down: d.span() },
    |d| Fault::Join { node: d.place(), birth: d.rng.chance(500).then(|| (d.rng.range(0, 8), d.cut())), removed: None },
];

struct Draw<'a> {
    rng: &'a mut RngStream,
    /// The first place, and how many there are.
    first: u64,
    nodes: u64,
}

impl Draw<'_> {
    fn place(&mut self) -> Place {
        (self.first + self.rng.range(0, self.nodes)) as usize
    }

    /// One of the places before the first.
    fn other(&mut self) -> Place {
        self.rng.range(0, self.first) as usize
    }

    fn places(&mut self) -> Places {
        self.rng.range(0, 1 << self.nodes) as Places
    }

    /// Long ones outlast a worker's lease.
    fn span(&mut self) -> Duration {
        let (from, to) = if self.rng.chance(350) { (6_000, 25_000) } else { (1, 6_000) };
        Duration::from_millis(self.rng.range(from, to))
    }

    fn cut(&mut self) -> PowerCut {
        PowerCut {
            drop_permille: *self.rng.pick(&[0, 300, 700, 1000]),
            tear_permille: *self.rng.pick(&[0, 0, 300, 1000]),
        }
    }
}

fn faults(rng: &mut RngStream, nodes: usize) -> Vec<(Duration, Fault)> {
    let enabled: Vec<Kind> = match rng.range(0, 100) {
        0..8 => Vec::new(),
        8..20 => vec![*rng.pick(KINDS)],
        _ => KINDS.iter().copied().filter(|_| rng.chance(250)).collect(),
    };
    let (count, until) = match rng.range(0, 100) {
        0..3 => (rng.range(100, 300), 120_000),
        3..8 => (rng.range(20, 100), 90_000),
        8..25 => (rng.range(2, 10), 2_000),
        _ => (rng.range(0, 14), 25_000),
    };
    // Some things go wrong together.
    let together = *rng.pick(&[0, 0, 300, 600]);
    let mut last = 0;
    let count = if enabled.is_empty() { 0 } else { count };
    let mut faults: Vec<(Duration, Fault)> = (0..count)
        .map(|_| {
            if !rng.chance(together) {
                last = rng.range(0, until);
            }
            let at = Duration::from_millis(last + rng.range(0, 300));
            let kind = *rng.pick(&enabled);
            (at, kind(&mut Draw { rng, first: 0, nodes: nodes as u64 }))
        })
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    // What others hear of a member tells whose disk is whose: nothing may disturb that.
    if faults.iter().any(|(_, fault)| matches!(fault, Fault::WrongDisk { .. })) {
        faults.retain(|(_, fault)| nodes >= 3 && matches!(fault, Fault::WrongDisk { node, other } if node != other));
    }
    let (mut losses, mut moves) = (0, vec![0; nodes]);
    let mut late: Places = 0;
    faults.retain(|(_, fault)| match fault {
        Fault::Join { node, .. } => {
            let before = late;
            late |= 1 << node;
            // The founder cannot be late, nor may all others be.
            *node > 0 && before != late && late.count_ones() as usize <= nodes / 2
        }
        Fault::Move { node, .. } => {
            moves[*node] += 1;
            moves[*node] <= MOVES_MAX
        }
        fault if fault.is_loss() => {
            losses += 1;
            losses <= LOSSES_MAX && nodes >= 3
        }
        _ => true,
    });
    faults
}

/// Workers that keep no state, the members that run nothing because there are some, and what goes wrong with the workers.
fn draw_workers(rng: &mut RngStream, nodes: usize) -> (usize, Places, Vec<(Duration, Fault)>) {
    let workers = *rng.pick(&[0, 0, 1, 1, 2, 3]);
    let all: Places = (1 << nodes) - 1;
    let some = rng.range(0, 1 << nodes) as Places;
    let idle = *rng.pick(&[0, 0, some, all]);
    let enabled: Vec<Kind> = WORKER_KINDS.iter().copied().filter(|_| rng.chance(350)).collect();
    if workers == 0 {
        return (0, 0, Vec::new());
    }
    let (count, until) = match rng.range(0, 100) {
        0..25 => (0, 1),
        25..40 => (rng.range(2, 10), 3_000),
        _ => (rng.range(1, 10), 25_000),
    };
    let count = if enabled.is_empty() { 0 } else { count };
    let mut draw = Draw { rng, first: nodes as u64, nodes: workers as u64 };
    let one = |_| (Duration::from_millis(draw.rng.range(0, until)), (draw.rng.pick(&enabled))(&mut draw));
    let mut faults: Vec<(Duration, Fault)> = (0..count).map(one).collect();
    faults.sort_by_key(|(at, _)| *at);
    let (mut losses, mut late, mut moves) = (0, 0 as Places, vec![0; nodes + workers]);
    faults.retain(|(_, fault)| match fault {
        Fault::Join { node, .. } => {
            let before = late;
            late |= 1 << node;
            before != late
        }
        Fault::Move { node, .. } => {
            moves[*node] += 1;
            moves[*node] <= MOVES_MAX
        }
        Fault::Remove { node, .. } if *node == nodes => false,
        fault if fault.is_loss() => {
            losses += 1;
            losses <= LOSSES_MAX
        }
        _ => true,
    });
    (workers, idle, faults)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} nodes, of which {} may vote and {:b} run nothing, {} workers, election timeout {:?}, token: {}, attacked while it forms: {}, more may be lost than can be made good: {}",
            self.nodes,
            self.voters_max,
            self.idle,
            self.workers,
            self.election_timeout,
            self.token,
            self.early,
            self.beyond_budget
        )?;
        writeln!(
            f,
            "{} clients with {} operations each on {} keys, pausing up to {:?}; one session: {}, idle {} in 1000; {} in stock; {} readers of each member, pausing up to {:?}",
            self.clients,
            self.operations,
            self.keys,
            self.pause,
            self.one_session,
            self.idle_permille,
            self.stock,
            self.readers,
            self.readers_pause
        )?;
        writeln!(
            f,
            "{} clients with {} tasks each, stubborn {} in 1000",
            self.submitters, self.tasks, self.stubborn_permille
        )?;
        let log = if self.model_log { "in memory" } else { "in a database" };
        writeln!(f, "log {log}, {:?}, snapshots in chunks of {} bytes", self.retention, self.chunk_bytes)?;
        writeln!(f, "{:?}", self.weather)?;
        for (at, fault) in &self.faults {
            writeln!(f, "{:>7.3} s  {fault:?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

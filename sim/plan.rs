//! A seed expanded: the cluster, the load, and every fault with its time. Printed before it runs.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::controller::History;
use crate::io::{Io, Rng, RngStream, Tokens};
use crate::limits::{
    CLOCK_DRIFT_PPM_MAX, ELECTION_TIMEOUT, ELECTION_TIMEOUT_MIN, EVENTS_MAX, LOG_BYTES_KEPT, LOG_ENTRIES_KEPT,
    READ_BYTES_MAX, SNAPSHOT_CHUNK_BYTES, TAIL_BYTES_MAX, VOTERS_TARGET_MAX,
};
use crate::node::Role;
use crate::raft::core::Flow;
use crate::raft::tail::Retention;
use crate::sim::fault::{Class, Fault, Place, Places};
use crate::sim::load::Load;
use crate::sim::network::Weather;
use crate::sim::{aim, draw};
use crate::state::format;

/// How long a patient member waits for a leader, at least: as long as anybody in any plan.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a seed does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Members, and those that become some only later.
    pub nodes: usize,
    /// Workers that keep no state. The first of them is never removed for good, so that somebody can always run tasks.
    pub workers: usize,
    /// Members that run nothing; there are none without workers.
    pub idle: Places,
    /// How many of the members may vote.
    pub voters_max: usize,
    /// How long a follower waits for a leader, at least.
    pub election_timeout: Duration,
    /// Members that wait longer than others.
    #[serde(default)]
    pub patient: Places,
    /// The newest format of the state that an older version takes part in.
    #[serde(default = "first_format")]
    pub old_format: u32,
    /// Members that begin as that version.
    #[serde(default)]
    pub old: Places,
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
    /// Each knows one member alone, which passes on what it does not decide.
    #[serde(default)]
    pub one_door: bool,
    /// How often, in thousandths, a client pauses for longer than a session lives.
    pub idle_permille: u64,
    /// Clients that speak the protocol of etcd's.
    #[serde(default)]
    pub foreign: u64,
    /// Clients that are in the process of a member.
    #[serde(default)]
    pub inside: usize,
    /// Clients that watch all keys.
    #[serde(default)]
    pub watchers: usize,
    /// Clients that hold leases on keys of their own.
    #[serde(default)]
    pub holders: usize,
    /// Clients that are users, who may do what an administrator says; all others have the cluster's token.
    #[serde(default)]
    pub guests: usize,
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
    /// How many fail soon after they have begun, in thousandths.
    #[serde(default)]
    pub brief_permille: u64,
    /// Keys they share.
    pub keys: u64,
    /// Bytes of what they put there; at least those of a number.
    #[serde(default)]
    pub value_bytes: usize,
    /// How often, in thousandths, a client puts a large value and asks for it so often at once that no session keeps the answer.
    #[serde(default)]
    pub loud_permille: u64,
    /// What the commands of one entry read at most, in bytes.
    #[serde(default = "entry_reads")]
    pub entry_reads: u64,
    /// Large values that are written once, before anything goes wrong, and must still be there at the end.
    pub stock: u64,
    /// Whether leaders answer reads under a lease. Then clocks run as evenly as that demands.
    #[serde(default)]
    pub lease_reads: bool,
    /// How much of the log the members keep for those behind: less than what happens, so that snapshots are needed.
    pub retention: Retention,
    /// How much of the log the members have under way at once.
    #[serde(default)]
    pub flow: Flow,
    /// Bytes of a snapshot's chunk.
    pub chunk_bytes: usize,
    /// Changes that are read at once for those who watch.
    #[serde(default = "events_max")]
    pub events_max: usize,
    /// What keys and their history may take; clients see to it that they take less again.
    #[serde(default)]
    pub keys_quota: Option<u64>,
    /// What is kept of their past. Where it is not all, clients compact nothing.
    #[serde(default)]
    pub history: History,
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
    /// What it [aims](aim::names) at, if anything: for whoever reads it.
    #[serde(default)]
    pub aim: Option<String>,
}

/// Of plans from before there was more than one to be older than.
fn first_format() -> u32 {
    format::FIRST
}

/// Mostly all that they may, and sometimes what little there is to have under way is more than that.
fn flow(rng: &mut RngStream) -> Flow {
    let all = Flow::default();
    let append_bytes = *rng.pick(&[all.append_bytes, all.append_bytes, 1, 500]);
    Flow {
        append_bytes,
        appends: *rng.pick(&[all.appends, all.appends, 1, 3]),
        uncommitted_bytes: *rng.pick(&[all.uncommitted_bytes, all.uncommitted_bytes, append_bytes.max(1_000)]),
        committed_bytes: *rng.pick(&[all.committed_bytes, all.committed_bytes, 1, 500]),
    }
}

fn entry_reads() -> u64 {
    READ_BYTES_MAX
}

fn events_max() -> usize {
    EVENTS_MAX
}

impl Plan {
    /// Gives seams what they need to call the cluster.
    pub fn admit(&self, io: Io) -> Io {
        if self.token { io.with_tokens(tokens("cluster")) } else { io }
    }

    /// What each client does.
    pub fn load(&self) -> Load {
        let Self { operations, pause, keys, idle_permille, loud_permille, .. } = *self;
        // Where keys may take little, who sees to alarms makes room, and nobody else.
        let compacts = self.history == History::All && self.keys_quota.is_none();
        Load { operations, pause, keys, compacts, idle_permille, loud_permille }
    }

    /// Whether nothing comes of its faults long after the last repair, as messages would that come once more minutes later.
    pub fn is_soon_quiet(&self) -> bool {
        let of_links = self.faults.iter().filter_map(|(_, fault)| match fault {
            Fault::Link { weather, .. } => Some(weather),
            _ => None,
        });
        let comes_again = |weather: &Weather| weather.replay_per_100k > 0;
        !self.faults.is_empty() && !of_links.chain([&self.weather]).any(comes_again)
    }

    /// How long a member waits for a leader, at least.
    pub fn election_timeout_of(&self, place: Place) -> Duration {
        if self.patient >> place & 1 == 1 { PATIENCE } else { self.election_timeout }
    }

    /// How long any of them may wait.
    pub fn election_timeout_max(&self) -> Duration {
        if self.patient == 0 { self.election_timeout } else { PATIENCE }
    }

    /// Whether nothing goes wrong at all.
    pub fn is_undisturbed(&self) -> bool {
        self.faults.is_empty() && self.weather == Weather::CALM
    }

    /// Whether nothing goes wrong but that machines are far from each other, and nothing is refused because too much is under way.
    pub fn is_only_far(&self) -> bool {
        let far = |(_, fault): &(Duration, Fault)| matches!(fault, Fault::Far { .. });
        let room = self.flow.uncommitted_bytes == Flow::default().uncommitted_bytes;
        self.faults.iter().all(far) && self.weather == Weather::CALM && room
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
            patient: 0,
            old_format: format::FIRST,
            old: 0,
            token: false,
            clients: 2,
            operations: 30,
            pause: Duration::from_millis(500),
            one_session: false,
            one_door: false,
            idle_permille: 0,
            foreign: 0,
            inside: 0,
            watchers: 0,
            holders: 0,
            guests: 0,
            readers: 0,
            readers_pause: Duration::from_millis(500),
            submitters: 1,
            tasks: 4,
            stubborn_permille: 200,
            brief_permille: 0,
            keys: 2,
            value_bytes: 0,
            loud_permille: 0,
            entry_reads: READ_BYTES_MAX,
            stock: 5,
            lease_reads: false,
            retention: Retention::default(),
            flow: Flow::default(),
            chunk_bytes: SNAPSHOT_CHUNK_BYTES,
            events_max: EVENTS_MAX,
            keys_quota: None,
            history: History::All,
            weather: Weather::CALM,
            faults: Vec::new(),
            early: false,
            beyond_budget: false,
            core: 0,
            aim: None,
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

    /// The plan of a source of randomness; where an [aim](aim::names) is given, it is that one.
    pub fn draw(rng: &Rng, wanted: Option<&str>) -> Self {
        let mut cluster = rng.stream("plan/cluster");
        // Two, four and six: the last one stays a learner.
        let nodes = *cluster.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 6, 7]);
        let voters_max = *cluster.pick(&[3, VOTERS_TARGET_MAX, VOTERS_TARGET_MAX, 7]);
        let timeouts = [ELECTION_TIMEOUT_MIN, ELECTION_TIMEOUT, ELECTION_TIMEOUT, PATIENCE];
        let election_timeout = *cluster.pick(&timeouts);
        let early = cluster.chance(150);
        let mut faults = draw::faults(&mut rng.stream("plan/faults"), nodes);
        // While the cluster forms there is nobody yet to have what one member loses.
        faults.retain(|(_, fault)| !(early && fault.is_loss()));
        let (workers, idle, more) = draw::workers(&mut rng.stream("plan/workers"), nodes);
        // What a wrong disk is told by, nothing may disturb.
        if !faults.iter().any(|(_, fault)| matches!(fault, Fault::WrongDisk { .. })) {
            faults.extend(more);
            faults.sort_by_key(|(at, _)| *at);
        }
        let mut patient = rng.stream("plan/patient");
        let (mut load, mut readers) = (rng.stream("plan/load"), rng.stream("plan/readers"));
        let mut plan = Self {
            nodes,
            workers,
            idle,
            voters_max,
            election_timeout,
            patient: if patient.chance(250) { patient.range(0, 1 << nodes) as Places } else { 0 },
            old_format: format::FIRST,
            old: 0,
            token: rng.stream("plan/token").chance(500),
            clients: *load.pick(&[1, 2, 3, 4, 8]),
            operations: load.range(15, 50),
            pause: Duration::from_millis(*load.pick(&[1_200, 1_200, 300, 30, 3_000])),
            keys: load.range(1, 5),
            value_bytes: *rng.stream("plan/values").pick(&[0, 0, 0, 0, 300, 1_500]),
            loud_permille: 0,
            entry_reads: READ_BYTES_MAX,
            stock: *load.pick(&[0, 0, 10, 60]),
            readers: if readers.chance(250) { *readers.pick(&[1, 1, 3]) } else { 0 },
            readers_pause: Duration::from_millis(*readers.pick(&[60, 300, 1_000])),
            submitters: load.range(0, 3) as usize,
            tasks: load.range(2, 12),
            stubborn_permille: *load.pick(&[200, 200, 900]),
            brief_permille: 0,
            one_session: load.chance(300),
            one_door: false,
            idle_permille: if load.chance(200) { 30 } else { 0 },
            foreign: *rng.stream("plan/foreign").pick(&[0, 0, 1, 2]),
            inside: *rng.stream("plan/inside").pick(&[0, 0, 0, 1, 2]),
            watchers: *rng.stream("plan/watchers").pick(&[0, 0, 1, 2]),
            holders: *rng.stream("plan/holders").pick(&[0, 0, 0, 1, 2, 4]),
            guests: 0,
            lease_reads: rng.stream("plan/lease reads").chance(400),
            retention: Retention {
                entries: *load.pick(&[1, 8, 40, 200, LOG_ENTRIES_KEPT]),
                bytes: *load.pick(&[2_000, LOG_BYTES_KEPT, LOG_BYTES_KEPT]),
                in_memory: *load.pick(&[0, 2_000, TAIL_BYTES_MAX, TAIL_BYTES_MAX]),
            },
            flow: flow(&mut rng.stream("plan/flow")),
            chunk_bytes: *load.pick(&[1, 100, SNAPSHOT_CHUNK_BYTES]),
            keys_quota: None,
            history: History::All,
            events_max: *rng.stream("plan/events").pick(&[1, 3, EVENTS_MAX]),
            // What a wrong disk must be told by is heard on a calm network.
            weather: match faults.iter().any(|(_, fault)| matches!(fault, Fault::WrongDisk { .. })) {
                true => Weather::CALM,
                false => draw::weather(&mut rng.stream("plan/weather")),
            },
            beyond_budget: !early && rng.stream("plan/budget").chance(60),
            faults,
            early,
            core: rng.stream("plan/core").range(0, u64::MAX),
            aim: None,
        };
        // Many that read all the time, for minutes, would take longer than a hundred other seeds.
        plan.readers = plan.readers.min(10 / nodes);
        if plan.idle_permille > 0 {
            plan.readers_pause = plan.readers_pause.max(Duration::from_secs(1));
        }
        let is_all = aim::aim(&mut rng.stream("plan/aim"), &mut plan, wanted);
        if !is_all {
            draw::keeping(&mut rng.stream("plan/keeping"), &mut plan);
            draw::loud(&mut rng.stream("plan/loud"), &mut plan);
            draw::guests(&mut rng.stream("plan/guests"), &mut plan);
            draw::upgrades(&mut rng.stream("plan/upgrades"), &mut plan);
        }
        plan.lease_reads &= plan.clocks_hold();
        plan
    }
}

/// Tokens that begin with a word; where several are given, the first is sent.
pub fn tokens(word: &str) -> Tokens {
    format!("{word}-0123456789abcdef").parse().expect("a word and some digits")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} nodes, of which {} may vote and {:b} run nothing, {} workers, election timeout {:?} (of {:b} more), older, up to format {}: {:b}, token: {}, attacked while it forms: {}, more may be lost than can be made good: {}",
            self.nodes,
            self.voters_max,
            self.idle,
            self.workers,
            self.election_timeout,
            self.patient,
            self.old_format,
            self.old,
            self.token,
            self.early,
            self.beyond_budget
        )?;
        writeln!(
            f,
            "{} clients with {} operations each on {} keys with values of {} bytes, pausing up to {:?}; {} of them as etcd's (every other one by JSON), {} within a member, {} watch, and {} hold leases, and {} users more; one session: {}, one door: {}, idle {} in 1000, loud {} in 1000, reading {} bytes an entry; {} in stock; {} readers of each member, pausing up to {:?}",
            self.clients,
            self.operations,
            self.keys,
            self.value_bytes.max(8),
            self.pause,
            self.foreign,
            self.inside,
            self.watchers,
            self.holders,
            self.guests,
            self.one_session,
            self.one_door,
            self.idle_permille,
            self.loud_permille,
            self.entry_reads,
            self.stock,
            self.readers,
            self.readers_pause
        )?;
        writeln!(
            f,
            "{} clients with {} tasks each, stubborn {} in 1000, failing at once {} in 1000",
            self.submitters, self.tasks, self.stubborn_permille, self.brief_permille
        )?;
        writeln!(
            f,
            "reads under a lease: {}, {:?}, {:?}, snapshots in chunks of {} bytes, {} changes at once; keys may take {:?} bytes, and of their past is kept {:?}",
            self.lease_reads,
            self.retention,
            self.flow,
            self.chunk_bytes,
            self.events_max,
            self.keys_quota,
            self.history
        )?;
        writeln!(f, "{:?}", self.weather)?;
        if let Some(aim) = &self.aim {
            writeln!(f, "it aims at {aim}")?;
        }
        for (at, fault) in &self.faults {
            writeln!(f, "{:>7.3} s  {fault:?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

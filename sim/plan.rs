//! A seed expanded: the cluster, the load, and every fault with its time. Printed before it runs.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::io::{Io, Rng, RngStream, Tokens};
use crate::limits::{FREE_SPACE_FLOOR, LOG_BYTES_KEPT, LOG_ENTRIES_KEPT, SNAPSHOT_CHUNK_BYTES};
use crate::raft::tail::Retention;
use crate::sim::disk::PowerCut;
use crate::sim::network::Weather;

/// A machine of the cluster, by its place in it (0 is the founder's).
pub type Place = usize;

/// What a seed does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Members.
    pub nodes: usize,
    /// Whether calls need a token.
    pub token: bool,
    /// Clients, each on a machine of its own, doing one thing at a time.
    pub clients: usize,
    /// Operations of each client.
    pub operations: u64,
    /// Whether they are copies of one client, with one session.
    pub one_session: bool,
    /// How often, in thousandths, a client pauses for longer than a session lives.
    pub idle_permille: u64,
    /// Clients that submit tasks.
    pub submitters: usize,
    /// Tasks of each.
    pub tasks: u64,
    /// How many of them, in thousandths, ignore the signal to end; where it is most of them, most are long, too.
    pub stubborn_permille: u64,
    /// Keys they share.
    pub keys: u64,
    /// How much of the log the members keep for those behind: less than what happens, so that snapshots are needed.
    pub retention: Retention,
    /// Bytes of a snapshot's chunk.
    pub chunk_bytes: usize,
    /// What the network is like until it heals.
    pub weather: Weather,
    /// What happens, in order of time since the cluster was formed.
    pub faults: Vec<(Duration, Fault)>,
}

/// One thing that goes wrong.
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
        /// What becomes of unsynced writes, in thousandths.
        drop_permille: u64,
        /// And torn ones.
        tear_permille: u64,
        /// How long it stays off.
        down: Duration,
    },
    /// It is stopped in order and started again.
    Stop {
        /// Which.
        node: Place,
        /// How long it stays off.
        down: Duration,
    },
    /// It stops answering while its clock runs.
    Pause {
        /// Which.
        node: Place,
        /// For how long.
        span: Duration,
    },
    /// Messages from one to another are lost; the way back works.
    CutOneWay {
        /// From.
        from: Place,
        /// To.
        to: Place,
        /// For how long.
        span: Duration,
    },
    /// It reaches no other member, nor they it. Clients do.
    Isolate {
        /// Which.
        node: Place,
        /// For how long.
        span: Duration,
    },
    /// An operator asks it to lead.
    Transfer {
        /// Which.
        to: Place,
    },
    /// An operator removes it for ever.
    Remove {
        /// Which.
        node: Place,
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
    /// It is killed and started again at another address.
    Move {
        /// Which.
        node: Place,
        /// How long it stays off.
        down: Duration,
    },
    /// Power for all at once.
    Blackout {
        /// What becomes of unsynced writes, in thousandths.
        drop_permille: u64,
        /// How long they stay off.
        down: Duration,
    },
}

impl Fault {
    /// What a power cut does to the disk here.
    pub fn power_cut(drop_permille: u64, tear_permille: u64) -> PowerCut {
        PowerCut { drop_permille, tear_permille }
    }
}

impl Fault {
    /// The machines it names.
    pub fn places(&self) -> Vec<Place> {
        match *self {
            Self::Kill { node, .. }
            | Self::Power { node, .. }
            | Self::Stop { node, .. }
            | Self::Pause { node, .. }
            | Self::Isolate { node, .. }
            | Self::Remove { node }
            | Self::Full { node, .. }
            | Self::Move { node, .. } => vec![node],
            Self::Transfer { to } => vec![to],
            Self::CutOneWay { from, to, .. } => vec![from, to],
            Self::Blackout { .. } => Vec::new(),
        }
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
            | Self::Stop { down, .. }
            | Self::Move { down, .. }
            | Self::Blackout { down, .. } => Some(down),
            Self::Pause { span, .. }
            | Self::CutOneWay { span, .. }
            | Self::Isolate { span, .. }
            | Self::Full { span, .. } => Some(span),
            Self::Transfer { .. } | Self::Remove { .. } => None,
        }
    }
}

/// Kinds of faults; each seed has its own subset.
const KINDS: usize = 11;

impl Plan {
    /// Gives seams what they need to call the cluster.
    pub fn admit(&self, io: Io) -> Io {
        if self.token { io.with_tokens(tokens("cluster")) } else { io }
    }

    /// The plan of a source of randomness.
    pub fn draw(rng: &Rng) -> Self {
        let mut cluster = rng.stream("plan/cluster");
        // Two and four: the last one stays a learner, beside one voter and beside three.
        let nodes = *cluster.pick(&[1, 2, 3, 3, 3, 3, 4, 5]);
        let mut load = rng.stream("plan/load");
        Self {
            nodes,
            token: rng.stream("plan/token").chance(500),
            clients: load.range(1, 5) as usize,
            operations: load.range(15, 50),
            keys: load.range(1, 5),
            submitters: load.range(0, 3) as usize,
            tasks: load.range(2, 12),
            stubborn_permille: *load.pick(&[200, 200, 900]),
            one_session: load.chance(300),
            idle_permille: if load.chance(200) { 30 } else { 0 },
            retention: Retention {
                entries: *load.pick(&[1, 8, 40, 200, LOG_ENTRIES_KEPT]),
                bytes: *load.pick(&[2_000, LOG_BYTES_KEPT, LOG_BYTES_KEPT]),
            },
            chunk_bytes: *load.pick(&[1, 100, SNAPSHOT_CHUNK_BYTES]),
            weather: weather(&mut rng.stream("plan/weather")),
            faults: faults(&mut rng.stream("plan/faults"), nodes),
        }
    }
}

/// How often each of the members moves at most.
pub const MOVES_MAX: u16 = 3;

/// Tokens that begin with a word; where several are given, the first is sent.
pub fn tokens(word: &str) -> Tokens {
    format!("{word}-0123456789abcdef").parse().expect("a word and some digits")
}

fn weather(rng: &mut RngStream) -> Weather {
    if rng.chance(200) {
        return Weather::CALM;
    }
    let maybe = |rng: &mut RngStream, most: u64| if rng.chance(500) { rng.range(0, most) } else { 0 };
    let delay_min = Duration::from_millis(1);
    Weather {
        delay_min,
        delay_max: delay_min + Duration::from_millis(rng.range(1, 40)),
        slow_permille: maybe(rng, 50),
        stall_permille: if rng.chance(300) { rng.range(0, 800) } else { 0 },
        lose_permille: maybe(rng, 200),
        repeat_permille: maybe(rng, 200),
        replay_per_100k: maybe(rng, 1000),
    }
}

fn faults(rng: &mut RngStream, nodes: usize) -> Vec<(Duration, Fault)> {
    let enabled: Vec<u64> = (0..KINDS as u64).filter(|_| rng.chance(400)).collect();
    let count = if enabled.is_empty() { 0 } else { rng.range(0, 12) };
    let mut faults: Vec<(Duration, Fault)> = (0..count)
        .map(|_| {
            let at = Duration::from_millis(rng.range(0, 25_000));
            (at, fault(rng, &enabled, nodes))
        })
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    // One removal at most: who stays must still survive a failure.
    let mut removed = false;
    let mut moves = vec![0; nodes];
    faults.retain(|(_, fault)| match fault {
        Fault::Remove { .. } => !std::mem::replace(&mut removed, true),
        Fault::Move { node, .. } => {
            moves[*node] += 1;
            moves[*node] <= MOVES_MAX
        }
        _ => true,
    });
    faults
}

fn fault(rng: &mut RngStream, enabled: &[u64], nodes: usize) -> Fault {
    let node = rng.range(0, nodes as u64) as usize;
    let to = rng.range(0, nodes as u64) as usize;
    // Long ones outlast a worker's lease.
    let span = |rng: &mut RngStream| {
        let (from, to) = if rng.chance(350) { (6_000, 25_000) } else { (1, 6_000) };
        Duration::from_millis(rng.range(from, to))
    };
    let (down, span) = (span(rng), span(rng));
    let drop_permille = *rng.pick(&[0, 300, 700, 1000]);
    let tear_permille = *rng.pick(&[0, 0, 300, 1000]);
    match *rng.pick(enabled) {
        0 => Fault::Kill { node, down },
        1 => Fault::Power { node, drop_permille, tear_permille, down },
        2 => Fault::Stop { node, down },
        3 => Fault::Pause { node, span },
        4 => Fault::CutOneWay { from: node, to, span },
        5 => Fault::Isolate { node, span },
        6 => Fault::Transfer { to },
        7 if nodes >= 3 => Fault::Remove { node },
        7 => Fault::Transfer { to },
        8 => Fault::Full {
            node,
            left: *rng.pick(&[1 << 20, FREE_SPACE_FLOOR / 3, FREE_SPACE_FLOOR - 1, 2 * FREE_SPACE_FLOOR]),
            span,
        },
        9 => Fault::Move { node, down },
        _ => Fault::Blackout { drop_permille, down },
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} nodes, token: {}, {} clients with {} operations each on {} keys; one session: {}, idle {} in 1000; {} clients with {} tasks each, stubborn {} in 1000",
            self.nodes,
            self.token,
            self.clients,
            self.operations,
            self.keys,
            self.one_session,
            self.idle_permille,
            self.submitters,
            self.tasks,
            self.stubborn_permille
        )?;
        writeln!(f, "{:?}, snapshots in chunks of {} bytes", self.retention, self.chunk_bytes)?;
        writeln!(f, "{:?}", self.weather)?;
        for (at, fault) in &self.faults {
            writeln!(f, "{:>7.3} s  {fault:?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

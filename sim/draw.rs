//! How a seed chooses what goes wrong: most enable some kinds of faults, some one, a few none.

use std::time::Duration;

use crate::controller::History;
use crate::io::RngStream;
use crate::limits::{CLOCK_DRIFT_PPM_MAX, FREE_SPACE_FLOOR};
use crate::sim::clock::FROZEN_PPM;
use crate::sim::disk::{Damage, DiskOp, Files, PowerCut};
use crate::sim::fault::{Fault, Links, Place, Places};
use crate::sim::mark::Marks;
use crate::sim::network::Weather;
use crate::sim::plan::Plan;
use crate::state::format;

/// How often each of the members moves at most.
pub const MOVES_MAX: u16 = 3;
/// How many of the faults are losses at most.
const LOSSES_MAX: usize = 4;
/// How long a machine waits for a marked place to crash at.
pub const CRASH_PATIENCE: Duration = Duration::from_secs(10);

/// What of a disk is slow: all of it, or so little that one side runs ahead of the other.
const STALLED: [Files; 4] = [Files::All, Files::All, Files::State, Files::Log];

/// What the network is like.
pub(super) fn weather(rng: &mut RngStream) -> Weather {
    if rng.chance(200) { Weather::CALM } else { rough(rng) }
}

fn rough(rng: &mut RngStream) -> Weather {
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
    |d| Fault::Stop { node: d.place(), exits: d.rng.chance(500), down: d.span() },
    |d| Fault::Storm { node: d.place(), times: d.rng.range(2, 8), down: Duration::from_millis(d.rng.range(1, 1_500)) },
    |d| Fault::Pause { node: d.place(), span: d.span() },
    |d| Fault::Slow { node: d.place(), span: d.span() },
    |d| {
        let gone = if d.rng.chance(300) { Some(d.place()) } else { None };
        let after_joint = if d.rng.chance(300) { Some(Duration::from_millis(d.rng.range(1, 60))) } else { None };
        Fault::Blackout { cut: d.cut(), down: d.span(), gone, after_joint }
    },
    |d| Fault::Strand { node: d.place(), span: Duration::from_millis(d.rng.range(12_000, 25_000)) },
    |d| {
        let (from, to) = d.link();
        Fault::Cut { links: Links::OneWay { from, to }, span: d.span() }
    },
    |d| Fault::Cut { links: Links::Isolate { node: d.place() }, span: d.span() },
    |d| Fault::Cut { links: Links::Leader, span: d.span() },
    |d| Fault::Cut { links: Links::LeaderDeaf, span: d.span() },
    |d| Fault::Cut { links: Links::Candidate, span: d.span() },
    |d| Fault::Cut { links: Links::Halves { these: d.places() }, span: d.span() },
    |d| Fault::Cut { links: Links::Bridge { these: d.places(), middle: d.place() }, span: d.span() },
    |d| {
        let ((one, other), period) = (d.link(), Duration::from_millis(d.rng.range(50, 3_000)));
        Fault::Cut { links: Links::Flap { one, other, period }, span: d.span() }
    },
    |d| Fault::Cut { links: Links::Swizzle { these: d.places() }, span: d.span() },
    |d| {
        let left = *d.rng.pick(&[1 << 20, FREE_SPACE_FLOOR / 3, FREE_SPACE_FLOOR - 1, 2 * FREE_SPACE_FLOOR]);
        Fault::Full { node: d.place(), left, span: d.span() }
    },
    |d| {
        let (from, to) = d.link();
        Fault::Link { from, to, weather: rough(d.rng), span: d.span() }
    },
    |d| Fault::Stall { node: d.place(), files: *d.rng.pick(&STALLED), span: d.span() },
    |d| {
        let op = *d.rng.pick(&[DiskOp::Read, DiskOp::Write, DiskOp::Sync]);
        Fault::DiskError { node: d.place(), op, down: d.span() }
    },
    |d| {
        let permille = *d.rng.pick(&[5, 50, 500]);
        let damage = *d.rng.pick(&[Damage::Flipped, Damage::Flipped, Damage::Lost, Damage::Misdirected]);
        // The log is what damage is mostly found in, so sometimes it is spared.
        let files = *d.rng.pick(&[Files::All, Files::State, Files::Log]);
        Fault::Rot { node: d.place(), damage, files, permille, stopped: d.rng.chance(500), down: d.span() }
    },
    |d| Fault::Replace { node: d.place(), down: d.span() },
    |d| {
        let cut = if d.rng.chance(500) { Some((Duration::from_millis(d.rng.range(0, 400)), d.cut())) } else { None };
        let span = Duration::from_millis(if d.rng.chance(200) { d.rng.range(500, 5_000) } else { 0 });
        Fault::Defragment { node: d.place(), cut, span }
    },
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
        let (node, marks) = (d.place(), Marks::Drawn(d.rng.range(0, u64::MAX)));
        Fault::Crash { node, marks, cut: d.cut(), down: d.span() }
    },
    |d| {
        let (node, other) = d.link();
        Fault::WrongDisk { node, other, age: Duration::from_millis(*d.rng.pick(&[0, 0, 3_000])) }
    },
    |d| Fault::Transfer { to: d.place() },
    |d| Fault::Drain { node: d.place(), span: d.span() },
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
        let expected = d.rng.chance(700).then(|| d.rng.chance(600));
        Fault::Join { node, birth, removed, expected }
    },
    |d| Fault::TransferInJoint { to: d.place() },
    |d| Fault::Tidy { node: d.place() },
];

/// What goes wrong with workers that keep no state: the draw gives their places, and [`Draw::other`] a member's.
const WORKER_KINDS: &[Kind] = &[
    // It comes back about when its lease is over for the cluster.
    |d| Fault::Kill { node: d.place(), down: Duration::from_millis(d.rng.range(8_000, 12_000)) },
    |d| Fault::Kill { node: d.place(), down: d.span() },
    |d| Fault::Power { node: d.place(), cut: d.cut(), down: d.span() },
    |d| Fault::Recovery { node: d.place(), cut: d.cut(), operations: d.rng.range(0, 12), down: d.span() },
    |d| Fault::Stop { node: d.place(), exits: d.rng.chance(500), down: d.span() },
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
    |d| Fault::Stall { node: d.place(), files: *d.rng.pick(&STALLED), span: d.span() },
    |d| {
        let bound = CLOCK_DRIFT_PPM_MAX as i64;
        Fault::Speed { node: d.place(), ppm: *d.rng.pick(&[-bound, bound, -bound, bound, FROZEN_PPM]), span: d.span() }
    },
    |d| Fault::WallStep { node: d.place(), millis: *d.rng.pick(&[-3_600_000, 3_600_000]) },
    |d| {
        let (node, marks) = (d.place(), Marks::Drawn(d.rng.range(0, u64::MAX)));
        Fault::Crash { node, marks, cut: d.cut(), down: d.span() }
    },
    |d| Fault::Move { node: d.place(), down: d.span() },
    |d| Fault::Drain { node: d.place(), span: d.span() },
    |d| Fault::Remove { node: d.place(), returns: d.rng.chance(500), cut: None },
    |d| Fault::Replace { node: d.place(), down: d.span() },
    |d| Fault::Tidy { node: d.place() },
    |d| Fault::Join {
        node: d.place(),
        birth: d.rng.chance(500).then(|| (d.rng.range(0, 8), d.cut())),
        removed: None,
        expected: None,
    },
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

    /// One place and another, unless there is but one.
    fn link(&mut self) -> (Place, Place) {
        let one = self.rng.range(0, self.nodes);
        let other = (one + self.rng.range(1, self.nodes.max(2))) % self.nodes;
        ((self.first + one) as usize, (self.first + other) as usize)
    }

    /// At least one.
    fn places(&mut self) -> Places {
        self.rng.range(1, 1 << self.nodes) as Places
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

/// What goes wrong with members, in order of time.
pub(super) fn faults(rng: &mut RngStream, nodes: usize) -> Vec<(Duration, Fault)> {
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
        faults
            .retain(|(_, fault)| nodes >= 3 && matches!(fault, Fault::WrongDisk { node, other, .. } if node != other));
    }
    bound(&mut faults, nodes, |fault, late| match fault {
        // The founder cannot be late, nor may all others be.
        Fault::Join { node, .. } => *node > 0 && (late | 1 << node).count_ones() as usize <= nodes / 2,
        fault => !fault.is_loss() || nodes >= 3,
    });
    faults
}

/// Workers that keep no state, the members that run nothing because there are some, and what goes wrong with the workers.
pub(super) fn workers(rng: &mut RngStream, nodes: usize) -> (usize, Places, Vec<(Duration, Fault)>) {
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
    bound(&mut faults, nodes + workers, |fault, _| !matches!(fault, Fault::Remove { node, .. } if *node == nodes));
    (workers, idle, faults)
}

/// Leaves out what would be too much: a place is late at most once, moves at most so often, and not too many are lost. `admits`
/// says what else may be, after so many places are late.
fn bound(faults: &mut Vec<(Duration, Fault)>, places: usize, admits: impl Fn(&Fault, Places) -> bool) {
    let (mut losses, mut late, mut moves) = (0, 0 as Places, vec![0; places]);
    faults.retain(|(_, fault)| {
        admits(fault, late)
            && match fault {
                Fault::Join { node, .. } => {
                    let before = late;
                    late |= 1 << node;
                    before != late
                }
                Fault::Move { node, .. } => {
                    moves[*node] += 1;
                    moves[*node] <= MOVES_MAX
                }
                fault if fault.is_loss() => {
                    losses += 1;
                    losses <= LOSSES_MAX
                }
                _ => true,
            }
    });
}

/// What keys may take, and what is kept of their past.
pub(super) fn keeping(rng: &mut RngStream, plan: &mut Plan) {
    // What lives fits: a row of the stock has some two thousand bytes, one of the others some fifty, what a holder has some hundred.
    // What is staged leaves keys of its own.
    let is_staged = |(_, fault): &&(Duration, Fault)| {
        matches!(fault, Fault::Diverge { .. } | Fault::Unanswered { .. } | Fault::LateUse { .. })
    };
    let staged = plan.faults.iter().filter(is_staged).count() as u64;
    let lives = |plan: &Plan| plan.stock * 2_100 + 600 + 300 * plan.holders as u64 + 2_500 * staged;
    let most = *rng.pick(&[300, 1_000, 4_000]);
    match rng.range(0, 100) {
        // What is loud takes room.
        0..15 if plan.loud_permille == 0 => {
            if rng.chance(400) {
                // Some find at once that there is no room, and all together would take far more than there is.
                (plan.clients, plan.pause) = (8, Duration::from_millis(30));
                (plan.operations, plan.holders) = (plan.operations.max(80), 0);
            }
            (plan.value_bytes, plan.keys_quota) = (0, Some(lives(plan) + rng.range(0, most)));
        }
        15..20 => plan.history = History::Revisions(*rng.pick(&[0, 5, 30, 100])),
        // The end of a lease is a change, and nobody is told of its revision.
        20..32 if plan.holders == 0 => plan.history = History::Age(Duration::from_millis(rng.range(1_000, 15_000))),
        _ => {}
    }
}

/// Now and then clients ask for more than a session keeps of an answer.
pub fn loud(rng: &mut RngStream, plan: &mut Plan) {
    if plan.keys_quota.is_none() && plan.loud_permille == 0 && rng.chance(80) {
        plan.loud_permille = *rng.pick(&[30, 100]);
    }
}

/// Older members, which are upgraded one after another or at once, and some of which go back before all are.
pub(super) fn upgrades(rng: &mut RngStream, plan: &mut Plan) {
    // What tells whose disk is whose, nothing may disturb; and where the last but one is to be removed by the last, no other may lead: it
    // would be alone in knowing that it is removed.
    let is_delicate =
        |(_, fault): &(Duration, Fault)| matches!(fault, Fault::WrongDisk { .. } | Fault::RemoveToLast { .. });
    if plan.early || plan.faults.iter().any(is_delicate) || !rng.chance(300) {
        return;
    }
    let all: Places = (1 << plan.nodes) - 1;
    let some = rng.range(1, 1 << plan.nodes) as Places;
    // While the founder is older, the cluster is in the first format, and all can join.
    plan.old = 1 | *rng.pick(&[all, all, some]);
    plan.old_format = rng.range(format::FIRST.into(), format::NEWEST.into()) as u32;
    if plan.is_undisturbed() {
        return; // they are upgraded at the end
    }
    let millis = Duration::from_millis;
    let (mut at, pause) = (millis(rng.range(0, 10_000)), millis(*rng.pick(&[0, 300, 3_000])));
    let mut last = at;
    let old: Vec<Place> = (0..plan.nodes).filter(|node| plan.old >> node & 1 == 1).collect();
    for node in old {
        let goes_back = rng.chance(300);
        // Nobody hears that it went back, until it is too late to ask; those before it have heard of it, those after it come next.
        let alone = goes_back && rng.chance(500);
        let again: &[(u64, bool)] = match (goes_back, alone) {
            (false, _) => &[(0, false)],
            (true, false) => &[(0, false), (2_500, true), (9_000, false)],
            (true, true) => &[(0, false), (4_500, true)],
        };
        if alone {
            let cut = Fault::Cut { links: Links::Isolate { node }, span: millis(30_000) };
            plan.faults.push((at + millis(4_500), cut));
        }
        for (after, back) in again {
            last = last.max(at + millis(*after));
            let (exits, down) = (rng.chance(500), millis(rng.range(1, 2_000)));
            plan.faults.push((at + millis(*after), Fault::Upgrade { node, back: *back, exits, down }));
        }
        // Else all would be upgraded before it has gone back.
        at += if goes_back { pause.max(millis(6_000)) } else { pause };
    }
    if plan.nodes >= 3 && rng.chance(400) {
        // Just when all are upgraded, and where it takes long until that is known.
        let far = Fault::Far { delay: millis(rng.range(50, 400)), span: millis(8_000) };
        plan.faults.push((last, far));
        for _ in 0..rng.range(1, 3) {
            let node = rng.range(0, plan.nodes as u64) as Place;
            plan.faults.push((last + millis(rng.range(500, 5_000)), Fault::Remove { node, returns: true, cut: None }));
        }
    }
    if plan.nodes >= 3 && plan.aim.is_none() && rng.chance(300) {
        // One comes when all others have gone on, and is too old.
        let late = rng.range(1, plan.nodes as u64) as Place;
        plan.old |= 1 << late;
        plan.faults.retain(|(_, fault)| match fault {
            Fault::Upgrade { node, .. } => *node != late,
            fault => !matches!(fault, Fault::Join { .. }),
        });
        let join = Fault::Join { node: late, birth: None, removed: None, expected: None };
        plan.faults.push((last + millis(rng.range(3_000, 8_000)), join));
    }
    plan.faults.sort_by_key(|(at, _)| *at);
}

/// Users, where all others can show that they are not.
pub(super) fn guests(rng: &mut RngStream, plan: &mut Plan) {
    if !plan.early && rng.chance(250) {
        plan.guests = *rng.pick(&[1, 2, 3]);
        (plan.token, plan.keys) = (true, plan.keys.max(2));
    }
}

/// One fault of each kind, for a cluster of so many.
pub fn one_of_each_kind(rng: &mut RngStream, nodes: usize) -> Vec<Fault> {
    KINDS.iter().map(|kind| kind(&mut Draw { rng, first: 0, nodes: nodes as u64 })).collect()
}

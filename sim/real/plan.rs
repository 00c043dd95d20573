//! What a run against real processes is to do, drawn from its seed: the cluster, the load, and every attack with its time.
//!
//! The plan is all that a seed decides here. What the operating system makes of it differs from run to run, so every
//! attack restores what it took when its span is over, whatever became of the others, and all spans end with the attack
//! phase: whatever was drawn, the cluster may recover.

use std::fmt;
use std::time::Duration;

use cairn::io::{Rng, RngStream};
use cairn::sim::fault::Place;
use cairn::sim::load::Load;

/// Members that keep the state: they have the first places.
pub const MEMBERS: usize = 3;
/// All that run: the last is a worker without state.
pub const NODES: usize = MEMBERS + 1;
/// Shortest attack phase, in seconds: less leaves no time for what happens during an attack.
pub const SECONDS_MIN: u64 = 5;
/// Longest attack phase, in seconds: the history is kept in memory, and checked as a whole.
pub const SECONDS_MAX: u64 = 3_600;
/// Time of the attack phase in which no attack begins.
const CALM_AT_END: Duration = Duration::from_secs(1);
/// Kinds of attack.
const KINDS: u64 = 8;
/// The number of one of them.
const KILL_ALL: u64 = 3;

/// Who has a place, for people.
pub fn name(place: Place) -> String {
    if place < MEMBERS { format!("member {}", place + 1) } else { "the worker".into() }
}

/// Whom an attack is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// Whoever leads at that time, if anybody is known to.
    pub leader: bool,
    /// Otherwise this one.
    pub place: Place,
}

/// What happens to bytes under way on a link that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// They wait.
    Stall,
    /// They are lost, with the connections that carried them; new ones are refused.
    Reset,
}

/// Which of a member's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All.
    Both,
    /// Those by which others hear it.
    From,
    /// Those by which it hears others.
    To,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Killed with SIGKILL.
    Kill(Who),
    /// Asked to stop with SIGTERM.
    Terminate(Who),
    /// Stopped with SIGSTOP.
    Pause(Who),
    /// All are killed at once.
    KillAll,
    /// Cut off from the others.
    Isolate(Who, Way, How),
    /// One link is cut.
    Cut(Place, Place, How),
    /// Bytes on one link take longer, by as much.
    Delay(Place, Place, Duration),
    /// Two operators move leadership to and fro, each in its own way.
    Transfers,
}

/// When, what, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Since the beginning of the attack phase.
    pub at: Duration,
    /// Restored after that.
    pub span: Duration,
    /// What.
    pub attack: Attack,
}

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long it is attacked.
    pub length: Duration,
    /// Of each member.
    pub election_timeouts: [Duration; MEMBERS],
    /// Of every member; `None`: its default.
    pub log_entries: Option<u64>,
    /// Whether leaders answer reads under a lease.
    pub lease_reads: bool,
    /// How many clients use keys.
    pub clients: u64,
    /// The first so many of them share a session.
    pub sharing: u64,
    /// What each of them does.
    pub load: Load,
    /// Bytes of what they put there; at least those of a number.
    pub value_bytes: usize,
    /// How many clients submit tasks.
    pub submitters: u64,
    /// In the order of their times.
    pub attacks: Vec<Planned>,
}

impl Plan {
    /// The plan of a seed for an attack of this length.
    pub fn draw(rng: &Rng, length: Duration) -> Self {
        let mut cluster = rng.stream("real/cluster");
        let election_timeouts = [*cluster.pick(&[500, 700, 1_000]); MEMBERS];
        let log_entries = *cluster.pick(&[None, Some(16), Some(100), Some(1_000)]);
        // Who changes it changes it on one member after the other.
        let election_timeouts = match cluster.chance(300) {
            true => election_timeouts.map(|_| cluster.range(500, 1_500)),
            false => election_timeouts,
        };
        let mut load = rng.stream("real/load");
        let clients = *load.pick(&[3, 5, 8]);
        // Checking a history takes the square of its length: a longer attack comes with a thinner load.
        let thinner = (length.as_secs() / 60).max(1);
        Self {
            length,
            election_timeouts: election_timeouts.map(Duration::from_millis),
            log_entries,
            lease_reads: rng.stream("real/lease reads").chance(500),
            clients,
            sharing: if load.chance(400) { load.range(2, clients + 1) } else { 0 },
            load: Load {
                operations: u64::MAX,
                pause: Duration::from_millis(load.pick(&[10, 40, 100]) * thinner),
                keys: load.range(3, 12),
                compacts: true,
                idle_permille: 0,
                loud_permille: 20,
            },
            value_bytes: *rng.stream("real/values").pick(&[0, 0, 2_000]),
            submitters: load.range(2, 6),
            attacks: attacks(rng, length),
        }
    }
}

/// Some kinds of attack, some not: what one of them would hide shows in the seeds without it.
fn attacks(rng: &Rng, length: Duration) -> Vec<Planned> {
    let mut kinds = rng.stream("real/kinds");
    // While all are down nothing else can go wrong, so that is the rarest.
    let mut enabled: Vec<u64> =
        (0..KINDS).filter(|kind| kinds.chance(if *kind == KILL_ALL { 250 } else { 600 })).collect();
    if enabled.is_empty() {
        enabled = (0..KINDS).collect();
    }
    let gap_max = *kinds.pick(&[1_500, 4_000, 8_000]);
    // Shorter than an election timeout, longer than one, longer than a worker's lease. Many at once are short, or nothing
    // would ever be answered.
    let spans: &[(u64, u64)] = match gap_max {
        1_500 => &[(50, 500), (50, 500), (500, 3_000)],
        _ => &[(50, 500), (1_500, 5_000), (1_500, 5_000), (11_500, 16_000)],
    };
    let mut rng = rng.stream("real/attacks");
    let mut attacks = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += Duration::from_millis(rng.range(100, gap_max));
        let attack = draw_attack(*rng.pick(&enabled), &mut rng);
        let (low, high) = *rng.pick(spans);
        let span = Duration::from_millis(rng.range(low, high));
        if at + CALM_AT_END > length {
            return attacks;
        }
        attacks.push(Planned { at, span: span.min(length - at), attack });
    }
}

fn draw_attack(kind: u64, rng: &mut RngStream) -> Attack {
    let who = Who { leader: rng.chance(400), place: rng.range(0, NODES as u64) as Place };
    let to = (who.place + rng.range(1, NODES as u64) as usize) % NODES;
    let how = if rng.chance(700) { How::Stall } else { How::Reset };
    let way = *rng.pick(&[Way::Both, Way::Both, Way::From, Way::To]);
    let by = Duration::from_millis(*rng.pick(&[5, 50, 300]));
    match kind {
        0 => Attack::Kill(who),
        1 => Attack::Terminate(who),
        2 => Attack::Pause(who),
        KILL_ALL => Attack::KillAll,
        4 => Attack::Isolate(who, way, how),
        5 => Attack::Cut(who.place, to, how),
        6 => Attack::Delay(who.place, to, by),
        _ => Attack::Transfers,
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.leader {
            true => write!(f, "the leader (or {})", name(self.place)),
            false => f.write_str(&name(self.place)),
        }
    }
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = |how: &How| if *how == How::Stall { "stalls" } else { "is reset" };
        match self {
            Self::Kill(who) => write!(f, "kill {who}"),
            Self::Terminate(who) => write!(f, "terminate {who}"),
            Self::Pause(who) => write!(f, "pause {who}"),
            Self::KillAll => write!(f, "kill all"),
            Self::Isolate(who, way, how) => {
                let what = match way {
                    Way::Both => "to and from",
                    Way::From => "from",
                    Way::To => "to",
                };
                write!(f, "what goes {what} {who} {}", cut(how))
            }
            Self::Cut(from, to, how) => {
                write!(f, "what goes from {} to {} {}", name(*from), name(*to), cut(how))
            }
            Self::Delay(from, to, by) => {
                write!(f, "what goes from {} to {} takes {by:?} longer", name(*from), name(*to))
            }
            Self::Transfers => write!(f, "two operators move leadership"),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, span, attack } = self;
        write!(f, "{:>7.1} s for {:>4.1} s: {attack}", at.as_secs_f64(), span.as_secs_f64())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length, election_timeouts, lease_reads, clients, sharing, load, submitters, .. } = self;
        let kept = self.log_entries.map_or("the default".into(), |entries| entries.to_string());
        writeln!(
            f,
            "{MEMBERS} members and a worker, election timeouts {election_timeouts:?}, log entries kept: {kept}, reads under a lease: {lease_reads}; {clients} clients ({sharing} \
             share a session) on {} keys with values of {} bytes, pauses up to {:?}; {submitters} submit tasks; attacked for {length:?}:",
            load.keys,
            self.value_bytes.max(8),
            load.pause
        )?;
        self.attacks.iter().try_for_each(|planned| writeln!(f, "{planned}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn::sim::world::Seed;

    #[test]
    fn a_seed_is_one_plan_within_its_length() {
        let length = Duration::from_secs(60);
        let mut lengths = Vec::new();
        for seed in 0..300 {
            let [plan, again] = [Seed(seed); 2].map(|seed| Plan::draw(&seed.rng(), length));
            assert_eq!(plan.to_string(), again.to_string());
            assert!(!plan.attacks.is_empty() && plan.attacks.len() < 600, "{plan}");
            assert!(plan.attacks.iter().all(|planned| planned.at + planned.span <= length), "{plan}");
            assert!(plan.attacks.is_sorted_by_key(|planned| planned.at), "{plan}");
            assert!(plan.sharing <= plan.clients, "{plan}");
            lengths.push(plan.attacks.len());
        }
        assert_ne!(lengths.iter().min(), lengths.iter().max(), "all seeds are alike");
        let shortest = Plan::draw(&Seed(1).rng(), Duration::from_secs(SECONDS_MIN));
        assert!(shortest.attacks.iter().all(|planned| planned.at + planned.span <= shortest.length));
    }

    #[test]
    fn every_attack_is_drawn_by_some_seed() {
        let mut seen = [false; 8];
        for seed in 0..50 {
            for planned in Plan::draw(&Seed(seed).rng(), Duration::from_secs(60)).attacks {
                let kind = match planned.attack {
                    Attack::Kill(_) => 0,
                    Attack::Terminate(_) => 1,
                    Attack::Pause(_) => 2,
                    Attack::KillAll => 3,
                    Attack::Isolate(..) => 4,
                    Attack::Cut(from, to, _) => {
                        assert_ne!(from, to);
                        5
                    }
                    Attack::Delay(..) => 6,
                    Attack::Transfers => 7,
                };
                seen[kind] = true;
            }
        }
        assert_eq!(seen, [true; 8]);
    }
}

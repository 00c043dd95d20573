//! Shrinking: from a plan that fails to the smallest that still fails in the same way.
//!
//! The plan is data, so it is what shrinks: faults are left out in ever smaller groups, load and cluster become smaller,
//! the weather calmer, faults shorter. What randomness does in a smaller plan is not what it did in the larger one, so
//! every candidate is tried under a few seeds, at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::raft::core::Flow;
use crate::raft::tail::Retention;
use crate::sim::fault::Fault;
use crate::sim::network::Weather;
use crate::sim::plan::Plan;
use crate::sim::run::{Mode, Report, Verdict, run_plan};
use crate::sim::world::Seed;

/// A plan and the seed of everything else: all that a run follows from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// The seed.
    pub seed: u64,
    /// The plan.
    pub plan: Plan,
}

impl Case {
    /// What a seed means.
    pub fn of_seed(seed: u64, mode: Mode) -> Self {
        Self { seed, plan: mode.plan(Seed(seed)) }
    }

    /// Runs it.
    pub fn run(&self, mode: Mode) -> Report {
        run_plan(Seed(self.seed), self.plan.clone(), mode)
    }
}

/// A case that once failed: a file in `sim/scenarios`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// What was wrong.
    pub what: String,
    /// How it was mended.
    pub fixed: String,
    /// The run in which it showed.
    #[serde(flatten)]
    pub case: Case,
}

/// In what way a run failed: what a smaller one must do as well. `None` if it passed.
pub fn symptom(verdict: &Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Passed => None,
        Verdict::Safety(violations) => violations.first().map(|violation| violation.oracle),
        Verdict::Liveness(_) => Some("liveness"),
        Verdict::Crash(_) => Some("crash"),
    }
}

fn keep_faults_of_places(plan: &mut Plan) {
    let there = plan.places();
    plan.faults.retain(|(_, fault)| fault.places().iter().all(|place| there.contains(place)));
}

/// Seeds under which a candidate is tried.
const SEEDS: u64 = 4;

/// Shrinks a case whose run `shows` something, in at most `budget` candidates. `progress` is told of every smaller one,
/// and of how many were tried. `None` if the case itself does not show it.
pub fn shrink(
    case: Case,
    mode: Mode,
    budget: usize,
    shows: &(dyn Fn(&Report) -> bool + Sync),
    progress: &mut dyn FnMut(&Case, usize),
) -> Option<Case> {
    if !shows(&case.run(mode)) {
        return None;
    }
    let mut shrinker = Shrinker { case, mode, shows, tried: 0, budget, progress };
    loop {
        let before = shrinker.case.plan.clone();
        // Calm weather and little load first: they make every later run cheaper.
        shrinker.simplify();
        shrinker.leave_out_faults();
        shrinker.bring_forward();
        shrinker.shorten();
        shrinker.lessen();
        if shrinker.case.plan == before || shrinker.tried >= budget {
            return Some(shrinker.case);
        }
    }
}

struct Shrinker<'a> {
    case: Case,
    mode: Mode,
    shows: &'a (dyn Fn(&Report) -> bool + Sync),
    tried: usize,
    budget: usize,
    progress: &'a mut dyn FnMut(&Case, usize),
}

impl Shrinker<'_> {
    /// Goes over to a plan if it shows the same.
    fn attempt(&mut self, plan: Plan) -> bool {
        if plan == self.case.plan || self.tried >= self.budget {
            return false;
        }
        self.tried += 1;
        let seed = |turn: u64| match turn {
            0 => self.case.seed,
            _ => Seed(self.case.seed).rng().draw("shrink", self.tried as u64, turn),
        };
        let cases: Vec<Case> = (0..SEEDS).map(|turn| Case { seed: seed(turn), plan: plan.clone() }).collect();
        let (shows, mode) = (self.shows, self.mode);
        let found: Vec<bool> = std::thread::scope(|scope| {
            #[allow(clippy::disallowed_methods)] // around runs, not within one
            let runs: Vec<_> = cases.iter().map(|case| scope.spawn(|| shows(&case.run(mode)))).collect();
            runs.into_iter().map(|run| run.join().unwrap_or(false)).collect()
        });
        let Some(found) = found.into_iter().position(|shows| shows) else { return false };
        self.case = cases.into_iter().nth(found).expect("a place in it");
        (self.progress)(&self.case, self.tried);
        true
    }

    fn attempt_with(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let mut plan = self.case.plan.clone();
        change(&mut plan);
        self.attempt(plan)
    }

    fn leave_out_faults(&mut self) {
        let mut size = self.case.plan.faults.len();
        while size > 0 {
            let mut at = 0;
            while at < self.case.plan.faults.len() {
                let end = (at + size).min(self.case.plan.faults.len());
                if !self.attempt_with(|plan| drop(plan.faults.drain(at..end))) {
                    at += size;
                }
            }
            size /= 2;
        }
    }

    /// Lets what happens late happen sooner, so that no load has to last until then: first all of it, then what comes
    /// after a gap.
    fn bring_forward(&mut self) {
        for at in 0..self.case.plan.faults.len() {
            let start = |plan: &Plan, at: usize| plan.faults[at].0;
            loop {
                let before = at.checked_sub(1).map_or(Duration::ZERO, |before| start(&self.case.plan, before));
                let sooner = start(&self.case.plan, at).saturating_sub(before) / 2;
                let moved = |plan: &mut Plan| plan.faults[at..].iter_mut().for_each(|(start, _)| *start -= sooner);
                if sooner < Duration::from_millis(500) || !self.attempt_with(moved) {
                    break;
                }
            }
        }
    }

    fn simplify(&mut self) {
        const CHANGES: &[fn(&mut Plan)] = &[
            |plan| plan.weather = Weather::CALM,
            |plan| plan.weather.lose_permille = 0,
            |plan| plan.weather.replay_per_100k = 0,
            |plan| plan.weather.repeat_permille = 0,
            |plan| plan.weather.stall_permille = 0,
            |plan| plan.weather.slow_permille = 0,
            |plan| plan.weather.corrupt_per_100k = 0,
            |plan| plan.weather.reset_per_100k = 0,
            |plan| plan.weather.bytes_per_ms = 0,
            |plan| plan.election_timeout = crate::limits::ELECTION_TIMEOUT,
            |plan| plan.patient = 0,
            |plan| plan.old = 0,
            |plan| plan.voters_max = crate::limits::VOTERS_TARGET_MAX,
            |plan| plan.token = false,
            |plan| plan.idle = 0,
            |plan| plan.one_session = false,
            |plan| plan.lease_reads = false,
            |plan| plan.idle_permille = 0,
            |plan| plan.loud_permille = 0,
            |plan| plan.entry_reads = crate::limits::READ_BYTES_MAX,
            |plan| plan.foreign = 0,
            |plan| plan.watchers = 0,
            |plan| plan.holders = 0,
            |plan| plan.readers = 0,
            |plan| plan.retention = Retention::default(),
            |plan| plan.flow = Flow::default(),
            |plan| plan.chunk_bytes = crate::limits::SNAPSHOT_CHUNK_BYTES,
            |plan| plan.events_max = crate::limits::EVENTS_MAX,
            |plan| plan.early = false,
            |plan| plan.stock = 0,
            |plan| plan.guests = 0,
            |plan| plan.submitters = 0,
            |plan| plan.clients = 1,
            |plan| plan.keys = 1,
            |plan| plan.value_bytes = 0,
            |plan| plan.operations /= 2,
            |plan| plan.tasks /= 2,
        ];
        for change in CHANGES {
            self.attempt_with(*change);
        }
        const STEPS: &[fn(&mut Plan)] = &[
            |plan| plan.submitters = plan.submitters.saturating_sub(1),
            |plan| plan.clients = plan.clients.saturating_sub(1),
            |plan| {
                if plan.workers > 0 {
                    plan.workers -= 1;
                    if plan.workers == 0 {
                        plan.idle = 0;
                    }
                    keep_faults_of_places(plan);
                }
            },
            |plan| {
                // Workers come after the members: with fewer members they would have other places.
                if plan.nodes > 1 && plan.workers == 0 {
                    plan.nodes -= 1;
                    keep_faults_of_places(plan);
                }
            },
        ];
        for step in STEPS {
            while self.attempt_with(*step) {}
        }
    }

    /// Takes from what clients do, at first by halves.
    fn lessen(&mut self) {
        const COUNTS: [fn(&mut Plan) -> &mut u64; 2] = [|plan| &mut plan.operations, |plan| &mut plan.tasks];
        for count in COUNTS {
            let mut less = count(&mut self.case.plan).div_ceil(2);
            while less > 0 {
                less = less.min(*count(&mut self.case.plan));
                if !self.attempt_with(|plan| *count(plan) -= less) {
                    less /= 2;
                }
            }
        }
    }

    fn shorten(&mut self) {
        for at in 0..self.case.plan.faults.len() {
            let shorter = |fault: &Fault| fault.with_span(fault.span() / 2);
            while self.case.plan.faults[at].1.span() > Duration::from_millis(200)
                && self.attempt_with(|plan| plan.faults[at].1 = shorter(&plan.faults[at].1))
            {}
        }
    }
}

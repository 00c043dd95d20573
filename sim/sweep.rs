//! A range of seeds, on all cores, and what came of it.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cairn::sim::mark::MARKS;
use cairn::sim::run::Mode;
use serde::Serialize;

use crate::child::{self, Done, Job, Pool};

/// The exit status of a sweep that passed and never came by some mark, if it was to come by all.
pub const MARK_MISSED: i32 = 14;

/// A sweep's outcome, as `--json` writes it.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// The first seed.
    pub from: u64,
    /// Seeds that ran.
    pub seeds: u64,
    /// Those that passed.
    pub passed: u64,
    /// Virtual time that passed in all of them, in seconds.
    pub virtual_seconds: f64,
    /// Real time, in seconds.
    pub real_seconds: f64,
    /// How often each mark was hit, those that were not included.
    pub marks: BTreeMap<String, u64>,
    /// What failed.
    pub failures: Vec<Failure>,
    #[serde(skip)]
    code: i32,
}

/// A seed that failed.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// The oracle that noticed, or crash, or liveness.
    pub symptom: String,
    /// In its words.
    pub verdict: String,
}

impl Outcome {
    fn add(&mut self, done: Done) {
        self.seeds += 1;
        self.virtual_seconds += done.virtual_seconds;
        for (name, count) in done.marks {
            *self.marks.entry(name).or_default() += count;
        }
        match done.symptom {
            None => self.passed += 1,
            Some(symptom) => {
                self.code = self.code.max(done.code);
                self.failures.push(Failure { seed: done.seed, symptom, verdict: done.verdict });
            }
        }
    }

    fn missing(&self) -> Vec<&str> {
        self.marks.iter().filter(|(_, count)| **count == 0).map(|(name, _)| &**name).collect()
    }

    /// The exit status.
    pub fn code(&self, all_marks: bool) -> i32 {
        if self.code == 0 && all_marks && !self.missing().is_empty() { MARK_MISSED } else { self.code }
    }
}

/// Runs `count` seeds from `from` on, `jobs` at once, and tells of it as it goes.
///
/// # Errors
/// They cannot be run.
pub fn run(from: u64, count: u64, jobs: usize, mode: Mode) -> Result<Outcome, String> {
    let began = Instant::now();
    let next = AtomicU64::new(from);
    let (pool, trouble) = (Pool::new(mode), Mutex::new(None));
    let marks = MARKS.iter().map(|name| ((*name).to_owned(), 0)).collect();
    let outcome = Mutex::new(Outcome { from, marks, ..Outcome::default() });
    let progress = Progress { began, count, shown: Mutex::new(None) };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let done = match pool.run(Job { seed, without: None }) {
                        Ok(done) => done,
                        Err(why) => {
                            *trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(why);
                            return;
                        }
                    };
                    let mut outcome = outcome.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    if done.symptom.is_some() {
                        progress.clear();
                        let run = child::arguments(mode, "run").join(" ");
                        println!("{}\nreproduce with: sim {run} --seed {seed}", done.text);
                    }
                    outcome.add(done);
                    progress.show(&outcome);
                }
            });
        }
    });
    progress.clear();
    if let Some(why) = trouble.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        return Err(why);
    }
    let mut outcome = outcome.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    outcome.real_seconds = began.elapsed().as_secs_f64();
    outcome.failures.sort_by_key(|failure| failure.seed);
    let missing = outcome.missing();
    let Outcome { seeds, passed, virtual_seconds, real_seconds, .. } = &outcome;
    println!(
        "{seeds} seeds from {from}: {passed} passed, {} failed; {virtual_seconds:.0} virtual seconds in {real_seconds:.0} s on \
         {jobs} jobs; {} of {} marks hit",
        seeds - passed,
        MARKS.len() - missing.len(),
        MARKS.len()
    );
    if !missing.is_empty() {
        println!("never: {}", missing.join("; "));
    }
    Ok(outcome)
}

/// A line on the terminal that is written again and again.
struct Progress {
    began: Instant,
    count: u64,
    shown: Mutex<Option<Instant>>,
}

impl Progress {
    fn show(&self, outcome: &Outcome) {
        let mut shown = self.shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !std::io::stderr().is_terminal() || shown.is_some_and(|at| at.elapsed() < Duration::from_millis(200)) {
            return;
        }
        *shown = Some(Instant::now());
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let done = outcome.seeds as f64 / self.count as f64;
        let bar: String = (0..30).map(|i| if f64::from(i) < done * 30.0 { '#' } else { '.' }).collect();
        let left = seconds / done - seconds;
        eprint!(
            "\r[{bar}] {}/{} seeds, {} failed, {:.0} seeds/min, {:.0} virtual s/s, {} of {} marks, {left:.0} s left \x1b[K",
            outcome.seeds,
            self.count,
            outcome.failures.len(),
            outcome.seeds as f64 * 60.0 / seconds,
            outcome.virtual_seconds / seconds,
            MARKS.len() - outcome.missing().len(),
            MARKS.len(),
        );
        let _ = std::io::stderr().flush();
    }

    fn clear(&self) {
        if self.shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

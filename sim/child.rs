//! Runs in processes of their own: whatever a run does to its process, the others go on, and none leaves anything behind in
//! memory.
//!
//! A child is this program again, with the same mode. It reads jobs, a line each, and answers each with a line.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{self, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use cairn::sim::cost::used;
use cairn::sim::fault::Class;
use cairn::sim::run::{Mode, Report, Verdict, run_seed};
use cairn::sim::shrink::symptom;
use cairn::sim::world::Seed;
use nix::sys::resource::UsageWho;
use serde::{Deserialize, Serialize};

/// How much of the processor one run may take: many times what any takes.
const RUN_MAX: Duration = Duration::from_secs(300);
/// How often is looked at what it has taken since, and how often in a row that may be nothing: it waits for what does not come, and
/// not for a busy machine.
const LOOK: Duration = Duration::from_secs(10);
const LOOKS_MAX: u32 = 30;
/// What whoever looks takes itself, and more.
const NOTHING: Duration = Duration::from_millis(1);
/// Runs after which a child ends.
const RUNS_MAX: u64 = 200;
/// The word on the command line that makes a process a child.
pub const WORD: &str = "child";

/// What to run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The seed.
    pub seed: u64,
    /// A class of faults that is left out.
    pub without: Option<Class>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// What was run.
    pub seed: u64,
    /// The oracle that noticed something, or crash, or liveness.
    pub symptom: Option<String>,
    /// The exit status for it.
    pub code: i32,
    /// In words.
    pub verdict: String,
    /// All that there is to say.
    pub text: String,
    /// Virtual time that passed, in seconds.
    pub virtual_seconds: f64,
    /// How often each mark was hit.
    pub marks: BTreeMap<String, u64>,
}

impl Done {
    fn of(report: &Report) -> Self {
        Self {
            seed: report.seed.0,
            symptom: symptom(&report.verdict).map(Into::into),
            code: report.verdict.code(),
            verdict: report.verdict.to_string(),
            text: report.to_string(),
            virtual_seconds: report.elapsed.as_secs_f64(),
            marks: report.marks.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        }
    }

    /// The run's process ended before it had said anything.
    fn of_death(seed: u64, how: &str) -> Self {
        let verdict = Verdict::Crash(format!("the process of the run ended: {how}"));
        let text = format!("seed {seed}: {verdict}");
        Self {
            seed,
            symptom: symptom(&verdict).map(Into::into),
            code: verdict.code(),
            verdict: verdict.to_string(),
            text,
            virtual_seconds: 0.0,
            marks: BTreeMap::new(),
        }
    }
}

/// The command line of this program that does something in a mode.
pub fn arguments(mode: Mode, command: &str) -> Vec<String> {
    let mutant = mode.mutant.map(|name| format!("--mutant={name}"));
    let aim = mode.aim.map(|name| format!("--aim={name}"));
    mutant.into_iter().chain(aim).chain([command.into()]).collect()
}

/// What a child does.
///
/// # Errors
/// Its parent is gone, or says what no parent says.
pub fn serve(mode: Mode) -> Result<(), String> {
    let (runs, watched) = mpsc::channel();
    thread::spawn(move || watch(&watched));
    let run = |seed: Option<u64>| runs.send(seed).map_err(|_| "nobody watches over the runs".to_string());
    for line in io::stdin().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let job: Job = serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
        run(Some(job.seed))?;
        let done = Done::of(&run_seed(Seed(job.seed), Mode { without: job.without, ..mode }));
        run(None)?;
        let done = serde_json::to_string(&done).expect("numbers and names become JSON");
        writeln!(io::stdout(), "{done}").map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A run that is watched over.
struct Watched {
    seed: u64,
    /// What the process had taken of the processor when it began, and when it was looked at last.
    began: Duration,
    last: Duration,
    /// How often in a row it had taken nothing since.
    still: u32,
}

impl Watched {
    fn new(seed: u64) -> Self {
        let now = used(UsageWho::RUSAGE_SELF);
        Self { seed, began: now, last: now, still: 0 }
    }

    /// Whether it does not end, now that the process has taken so much.
    fn is_endless(&mut self, now: Duration) -> bool {
        let is_still = now.saturating_sub(self.last) < NOTHING;
        (self.last, self.still) = (now, if is_still { self.still + 1 } else { 0 });
        self.still >= LOOKS_MAX || now.saturating_sub(self.began) >= RUN_MAX
    }
}

/// Ends the process if a run does not end: one in which time stands still would go on for ever. Told of each seed that begins, and
/// of each end.
fn watch(runs: &Receiver<Option<u64>>) {
    let mut running: Option<Watched> = None;
    loop {
        let next = match running {
            None => runs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => runs.recv_timeout(LOOK),
        };
        match (next, &mut running) {
            (Ok(next), _) => running = next.map(Watched::new),
            (Err(RecvTimeoutError::Timeout), Some(watched)) => {
                if watched.is_endless(used(UsageWho::RUSAGE_SELF)) {
                    eprintln!("seed {} does not end: it is given up", watched.seed);
                    process::abort();
                }
            }
            (Err(_), _) => return,
        }
    }
}

struct Child {
    process: process::Child,
    jobs: ChildStdin,
    answers: BufReader<ChildStdout>,
    runs: u64,
}

/// Children, as many as there are runs at once.
pub struct Pool {
    arguments: Vec<String>,
    idle: Mutex<Vec<Child>>,
}

impl Pool {
    /// Children that run in this mode.
    pub fn new(mode: Mode) -> Self {
        Self { arguments: arguments(mode, WORD), idle: Mutex::default() }
    }

    /// Runs a job and waits for it. A child that dies of it has answered, too.
    ///
    /// # Errors
    /// No child could be started.
    pub fn run(&self, job: Job) -> Result<Done, String> {
        let idle = self.idle().pop();
        let mut child = match idle {
            Some(child) => child,
            None => self.start().map_err(|error| format!("start a process for runs: {error}"))?,
        };
        let line = serde_json::to_string(&job).expect("numbers and names become JSON");
        let mut answer = String::new();
        let exchanged = writeln!(child.jobs, "{line}").and_then(|()| child.answers.read_line(&mut answer));
        let done = exchanged.ok().and_then(|_| serde_json::from_str(&answer).ok());
        child.runs += 1;
        match done {
            Some(done) if child.runs < RUNS_MAX => {
                self.idle().push(child);
                Ok(done)
            }
            done => {
                let how = child.end();
                Ok(done.unwrap_or_else(|| Done::of_death(job.seed, &how)))
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Child>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn start(&self) -> io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let (jobs, answers) = (process.stdin.take(), process.stdout.take());
        let (Some(jobs), Some(answers)) = (jobs, answers) else { return Err(io::ErrorKind::BrokenPipe.into()) };
        Ok(Child { process, jobs, answers: BufReader::new(answers), runs: 0 })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for child in std::mem::take(&mut *self.idle()) {
            child.end();
        }
    }
}

impl Child {
    /// Has it end, and says how it did.
    fn end(self) -> String {
        let Self { mut process, jobs, .. } = self;
        drop(jobs);
        process.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_given_up_when_it_takes_nothing_or_far_too_much() {
        let new = || Watched { seed: 1, began: Duration::ZERO, last: Duration::ZERO, still: 0 };
        // On a machine that is busy with other things it gets on slowly.
        let mut slow = new();
        assert!((1..=10_000).all(|look| !slow.is_endless(look * 2 * NOTHING)));
        let (still, gets_on) = (slow.last, slow.last + NOTHING);
        assert!((1..LOOKS_MAX).all(|_| !slow.is_endless(still)));
        assert!(!slow.is_endless(gets_on), "it only waited");
        assert_eq!((1..=LOOKS_MAX).filter(|_| slow.is_endless(gets_on)).count(), 1);
        assert!(!new().is_endless(RUN_MAX - NOTHING) && new().is_endless(RUN_MAX));
    }
}

//! What came of a run against real processes, for people and for programs.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use cairn::sim::export;
use cairn::sim::history::Record;
use cairn::sim::run::Verdict;
use serde::{Serialize, Serializer};

/// What a run did.
#[derive(Serialize)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// How it ended.
    #[serde(serialize_with = "as_text")]
    pub verdict: Verdict,
    /// How long the members were to be attacked.
    pub seconds: u64,
    /// How long all of it took.
    #[serde(serialize_with = "as_seconds")]
    pub elapsed: Duration,
    /// Operations on keys that ended with a known outcome, and all.
    pub operations: (usize, usize),
    /// Terms in which a leader was seen.
    pub leaders: usize,
    /// Attacks of the plan.
    pub attacks: usize,
    /// Attempts at tasks that began, and those of them that were cut short.
    pub attempts: (u64, u64),
    /// What clients did and saw.
    #[serde(skip)]
    pub history: Vec<Record>,
    /// What was done when.
    #[serde(skip)]
    pub notes: String,
}

fn as_text<S: Serializer>(verdict: &Verdict, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&verdict.to_string())
}

fn as_seconds<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(span.as_secs_f64())
}

impl Report {
    /// Writes history and notes into a directory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, dir: &Path) -> Result<(), String> {
        crate::write(&dir.join("history.jsonl"), export::json_lines(&self.history))?;
        crate::write(&dir.join("notes"), format!("{}{self}\n", self.notes))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "real processes, seed {}: {}; {:.1} s, {} attacks, {} of {} operations answered, {} leaders seen, {} attempts began and {} were cut short",
            self.seed,
            self.verdict,
            self.elapsed.as_secs_f64(),
            self.attacks,
            self.operations.0,
            self.operations.1,
            self.leaders,
            self.attempts.0,
            self.attempts.1
        )
    }
}

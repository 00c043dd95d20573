//! What must be true, one property a file, each with its source.
//!
//! Oracles see what leaves a machine, what a member says that it applied, what is durable on a disk, and what clients
//! saw. They share no code with what they check, but for reading formats.

pub mod answered;
pub mod attempts;
pub mod bounds;
pub mod budget;
pub mod canonical;
pub mod determinism;
pub mod digest;
pub mod disks;
pub mod election;
pub mod exactly_once;
pub mod fail_stops;
pub mod formats;
pub mod holdings;
pub mod leases;
pub mod linearizable;
pub mod membership;
pub mod monotonic;
pub mod outcomes;
pub mod past;
pub mod promise;
pub mod recovery;
pub mod revisions;
pub mod rights;
pub mod sessions;
pub mod space;
pub mod watches;

use std::fmt;
use std::sync::Mutex;

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub oracle: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.oracle, self.what)
    }
}

/// The violations of a run, in order.
#[derive(Default)]
pub struct Violations(Mutex<Vec<Violation>>);

impl Violations {
    /// Adds one.
    pub fn add(&self, oracle: &'static str, what: String) {
        self.0.lock().unwrap().push(Violation { oracle, what });
    }

    /// All of them.
    pub fn all(&self) -> Vec<Violation> {
        self.0.lock().unwrap().clone()
    }
}

//! Oracle 6: a command sent under a session takes effect once (Raft dissertation, §6.3).
//!
//! Seen from outside: every written value is unique and every change has a revision of its own, so a value that is
//! ever seen at two revisions was written twice, and two answers with one revision were given for one effect.

use std::collections::BTreeMap;

use super::Violations;
use crate::sim::history::Record;

/// Checks a whole history.
pub fn check(records: &[Record], violations: &Violations) {
    let mut revision_of: BTreeMap<u64, u64> = BTreeMap::new();
    let mut value_at: BTreeMap<u64, u64> = BTreeMap::new();
    let seen = records.iter().filter_map(|record| record.change().and_then(|(revision, now)| Some((now?, revision))));
    for (value, revision) in seen {
        let first = *revision_of.entry(value).or_insert(revision);
        if first != revision {
            violations
                .add("exactly once", format!("the value {value} was written at revisions {first} and {revision}"));
        }
        let first = *value_at.entry(revision).or_insert(value);
        if first != value {
            violations.add("exactly once", format!("the values {first} and {value} share the revision {revision}"));
        }
    }
}

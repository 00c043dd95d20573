//! Oracle 17: a watch tells of every change from its first revision on, once, in the order of revisions, each revision whole
//! (etcd's documentation, "Watch APIs": ordered, unique, reliable, atomic, resumable), whoever it was told by.

use std::collections::{BTreeMap, BTreeSet};

use super::Violations;
use crate::sim::history::Record;
use crate::sim::watchers::{Log, Told};

const ORACLE: &str = "watches tell everything once";

/// Checks what watchers were told against each other, and against what clients were told of their own changes.
pub fn check(logs: &[Log], records: &[Record], violations: &Violations) {
    let known = changes(records);
    let mut story: BTreeMap<(u64, u64), Option<u64>> = BTreeMap::new();
    for log in logs {
        for told in log.messages.iter().flatten() {
            let first = *story.entry((told.revision, told.key)).or_insert(told.now);
            if first != told.now {
                violations.add(ORACLE, format!("somebody was told {first:?}, and somebody {told:?}"));
            }
            if let Some(change) = known.get(&(told.revision, told.key)).filter(|change| **change != told.now) {
                violations.add(ORACLE, format!("{told:?}, but it was {change:?}"));
            }
        }
    }
    let all: BTreeSet<(u64, u64)> = story.keys().chain(known.keys()).copied().collect();
    for log in logs {
        if let Err(what) = check_log(log, &all) {
            violations.add(ORACLE, what);
        }
    }
}

/// The changes that clients know to have happened: by revision and key, what the key is then.
fn changes(records: &[Record]) -> BTreeMap<(u64, u64), Option<u64>> {
    let change = |record: &Record| record.change().map(|(revision, now)| ((revision, record.key), now));
    records.iter().filter_map(change).collect()
}

/// The last revision at which clients know a key to have changed.
pub fn last_change(records: &[Record]) -> u64 {
    changes(records).last_key_value().map_or(0, |((revision, _), _)| *revision)
}

fn check_log(log: &Log, all: &BTreeSet<(u64, u64)>) -> Result<(), String> {
    let mut next = log.from;
    let mut keys: BTreeMap<u64, (Option<u64>, u64)> = BTreeMap::new();
    let mut gaps = log.gaps.iter().peekable();
    for (number, message) in log.messages.iter().enumerate() {
        while let Some((_, upto)) = gaps.next_if(|(before, _)| *before <= number) {
            if *upto <= next {
                return Err(format!("refused as compacted at {upto}, and {next} came next"));
            }
            next = *upto;
            keys.clear();
        }
        let (Some(first), Some(last)) = (message.first(), message.last()) else { continue };
        if first.revision < next {
            return Err(format!("{first:?} came when {next} was next"));
        }
        if !message.is_sorted_by_key(|told| told.revision) {
            return Err(format!("out of order: {message:?}"));
        }
        let told: BTreeSet<(u64, u64)> = message.iter().map(|told| (told.revision, told.key)).collect();
        if told.len() < message.len() {
            return Err(format!("a key twice at one revision: {message:?}"));
        }
        if let Some(missing) = all.range((next, 0)..=(last.revision, u64::MAX)).find(|change| !told.contains(change)) {
            return Err(format!("nothing was told of {missing:?} before {last:?}"));
        }
        for Told { revision, key, now, before } in message {
            let known = keys.insert(*key, (*now, *revision));
            let expected = known.map(|(value, at)| value.map(|value| (value, at)));
            // What was compacted meanwhile is not told.
            if expected.is_some_and(|expected| before.is_some() && *before != expected) {
                return Err(format!(
                    "{before:?} is said to be what {key} was before {revision}, but it was {expected:?}"
                ));
            }
        }
        next = last.revision + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(revision: u64, key: u64, now: Option<u64>, before: Option<(u64, u64)>) -> Told {
        Told { revision, key, now, before }
    }

    fn holds(logs: &[Log]) -> bool {
        let violations = Violations::default();
        check(logs, &[], &violations);
        violations.all().is_empty()
    }

    fn log(messages: &[&[&Told]], gaps: &[(usize, u64)]) -> Log {
        Log {
            from: 2,
            messages: messages.iter().map(|message| message.iter().map(|told| (*told).clone()).collect()).collect(),
            gaps: gaps.to_vec(),
        }
    }

    #[test]
    fn what_is_told_is_whole_and_in_order() {
        let [a, b, c] = [told(2, 0, Some(7), None), told(3, 0, Some(8), Some((7, 2))), told(3, 1, Some(8), None)];
        let whole = log(&[&[&a], &[&b, &c]], &[]);
        assert!(holds(&[whole.clone(), log(&[&[&a, &b, &c]], &[])]));
        assert!(!holds(&[whole.clone(), log(&[&[&b, &c]], &[])]), "one is missing");
        assert!(!holds(&[whole.clone(), log(&[&[&a], &[&b], &[&c]], &[])]), "a revision in two");
        assert!(!holds(&[log(&[&[&b, &c], &[&a]], &[])]), "out of order");
        assert!(!holds(&[log(&[&[&a], &[&a, &b, &c]], &[])]), "twice");
        assert!(!holds(&[whole.clone(), log(&[&[&told(2, 0, Some(9), None)]], &[])]), "another story");
        assert!(!holds(&[log(&[&[&a], &[&told(3, 0, Some(8), Some((6, 2)))]], &[])]), "it was not that before");
        assert!(holds(&[whole.clone(), log(&[&[&b, &c]], &[(0, 3)])]), "it came too late, and was told so");
        let refused = log(&[&[&a], &[&b, &c]], &[(1, 3)]);
        assert!(!holds(&[whole, refused]), "nothing was lost by it");
    }
}

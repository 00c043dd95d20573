//! Oracle 5: what clients saw is what one store would have given, had each operation happened at one instant between
//! its beginning and its end (Herlihy and Wing, 1990). Checked key by key, which is complete because linearizability
//! is local; an operation of unknown outcome may have happened at any time after its beginning, or never.
//!
//! The search is Wing and Gong's with Lowe's memory of visited configurations (2017).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Violations;
use crate::sim::history::{Op, Record, Seen};

/// Configurations after which a key is given up as undecided, which counts as a violation: such a history is too wild
/// to be evidence, and the load should be changed.
const CONFIGURATIONS_MAX: usize = 2_000_000;

/// A key in the model: its value, and its revision where a client was told it.
type Cell = Option<(u64, Option<u64>)>;

fn revision(cell: Cell) -> Option<u64> {
    cell.map_or(Some(0), |(_, revision)| revision)
}

/// Whether a revision that a client saw can be the cell's.
fn is_at(cell: Cell, seen: u64) -> bool {
    match revision(cell) {
        Some(known) => known == seen,
        None => seen != 0,
    }
}

/// The cell after an operation with this outcome; `None` if the outcome is impossible there.
fn step(cell: Cell, op: Op, seen: Seen) -> Option<Cell> {
    match (op, seen) {
        (Op::Put { value, expected }, Seen::Put(new)) => {
            let allowed = expected.is_none_or(|expected| is_at(cell, expected));
            let grows = revision(cell).is_none_or(|old| new > old);
            (allowed && grows).then_some(Some((value, Some(new))))
        }
        (Op::Put { expected: Some(expected), .. }, Seen::Mismatch(actual)) => {
            (actual != expected && is_at(cell, actual)).then_some(cell)
        }
        (Op::Put { value, expected }, Seen::Unknown) => match expected {
            Some(expected) if !is_at(cell, expected) => Some(cell),
            _ => Some(Some((value, None))),
        },
        (Op::Delete, Seen::Deleted(existed)) => (existed == cell.is_some()).then_some(None),
        (Op::Delete, Seen::Unknown) => Some(None),
        (Op::Get, Seen::Got(None)) => cell.is_none().then_some(None),
        (Op::Get, Seen::Got(Some((value, at)))) => match cell {
            Some((held, _)) if held == value && is_at(cell, at) => Some(Some((value, Some(at)))),
            _ => None,
        },
        _ => None,
    }
}

/// Checks a whole history.
pub fn check(records: &[Record], violations: &Violations) {
    let mut keys: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    for record in records {
        let effect = !matches!((record.op, record.seen), (_, Seen::NotDone) | (Op::Get, Seen::Unknown));
        if effect {
            keys.entry(record.key).or_default().push(record);
        }
    }
    for (key, records) in keys {
        if let Err(what) = check_key(records) {
            violations.add("linearizable", format!("key {key}: {what}"));
        }
    }
}

fn end(record: &Record) -> Duration {
    if record.seen == Seen::Unknown { Duration::MAX } else { record.to }
}

fn check_key(mut records: Vec<&Record>) -> Result<(), String> {
    records.sort_by_key(|record| record.from);
    let words = records.len().div_ceil(64);
    let must = records.iter().filter(|record| record.seen != Seen::Unknown).count();
    let mut visited: BTreeSet<(Vec<u64>, Cell)> = BTreeSet::new();
    // Depth first: which operations have happened, how many of them had to, and the cell after.
    let mut stack: Vec<(Vec<u64>, usize, Cell)> = vec![(vec![0; words], 0, None)];
    let mut deepest = (0, None);
    while let Some((done, count, cell)) = stack.pop() {
        if count == must {
            return Ok(());
        }
        if count >= deepest.0 {
            deepest = (count, cell);
        }
        let is_done = |i: usize| done[i / 64] >> (i % 64) & 1 == 1;
        let left = || records.iter().enumerate().filter(|(i, _)| !is_done(*i));
        // Whatever ended first must have happened before anything that began later.
        let horizon = left().map(|(_, record)| end(record)).min().unwrap_or(Duration::MAX);
        for (i, record) in left().filter(|(_, record)| record.from <= horizon) {
            let Some(next) = step(cell, record.op, record.seen) else { continue };
            let mut done = done.clone();
            done[i / 64] |= 1 << (i % 64);
            if visited.insert((done.clone(), next)) {
                stack.push((done, count + usize::from(record.seen != Seen::Unknown), next));
            }
        }
        if visited.len() > CONFIGURATIONS_MAX {
            return Err(format!("undecided after {CONFIGURATIONS_MAX} configurations"));
        }
    }
    let (count, cell) = deepest;
    let list: Vec<String> = records
        .iter()
        .map(|r| {
            format!(
                "\n    {:>9.3}..{:<9.3} client {} {:?} {:?}",
                r.from.as_secs_f64(),
                r.to.as_secs_f64(),
                r.client,
                r.op,
                r.seen
            )
        })
        .collect();
    Err(format!(
        "no order explains more than {count} of {must} operations; there the cell is {cell:?}{}",
        list.concat()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(client: u64, from: u64, to: u64, op: Op, seen: Seen) -> Record {
        Record { client, key: 0, op, from: Duration::from_millis(from), to: Duration::from_millis(to), seen }
    }

    fn holds(records: &[Record]) -> bool {
        let violations = Violations::default();
        check(records, &violations);
        violations.all().is_empty()
    }

    const PUT1: Op = Op::Put { value: 1, expected: None };
    const PUT2: Op = Op::Put { value: 2, expected: None };

    #[test]
    fn a_stale_read_is_seen() {
        let write = record(1, 0, 10, PUT1, Seen::Put(1));
        assert!(holds(&[write.clone(), record(2, 11, 12, Op::Get, Seen::Got(Some((1, 1))))]));
        assert!(!holds(&[write.clone(), record(2, 11, 12, Op::Get, Seen::Got(None))]));
        assert!(holds(&[write, record(2, 9, 12, Op::Get, Seen::Got(None))]), "they overlap");
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_only_once() {
        let unknown = record(1, 0, 10, PUT1, Seen::Unknown);
        let read = |from, seen| record(2, from, from + 1, Op::Get, Seen::Got(seen));
        assert!(holds(&[unknown.clone(), read(20, None), read(30, Some((1, 1)))]));
        assert!(holds(&[unknown.clone(), read(20, None)]));
        assert!(!holds(&[unknown.clone(), read(20, Some((1, 1))), read(30, None)]), "it vanished");
        let other = record(3, 22, 23, PUT2, Seen::Put(2));
        let back = [unknown, read(20, Some((1, 1))), other, read(30, Some((1, 3)))];
        assert!(!holds(&back), "it happened twice");
    }

    #[test]
    fn preconditions_count() {
        let cas =
            |from, expected, seen| record(1, from, from + 1, Op::Put { value: from, expected: Some(expected) }, seen);
        assert!(holds(&[cas(1, 0, Seen::Put(1)), cas(3, 1, Seen::Put(2)), cas(5, 1, Seen::Mismatch(2))]));
        assert!(!holds(&[cas(1, 0, Seen::Put(1)), cas(3, 0, Seen::Put(2))]));
        assert!(!holds(&[cas(1, 0, Seen::Put(1)), cas(3, 1, Seen::Mismatch(1))]));
        assert!(!holds(&[cas(1, 0, Seen::Put(5)), record(2, 3, 4, PUT2, Seen::Put(4))]), "revisions grow");
    }
}

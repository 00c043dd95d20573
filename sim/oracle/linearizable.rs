//! Oracle 5: what clients saw is what one store would have given, had each operation happened at one instant between
//! its beginning and its end (Herlihy and Wing, 1990). Checked key by key, which is complete for what is about one key, because
//! linearizability is local; what a transaction on several adds, oracle 16 sees by its revision. An operation of unknown outcome may
//! have happened at any time after its beginning, or never.
//!
//! The search is Wing and Gong's with Lowe's memory of visited configurations (2017), led by what the revisions tell: an answer
//! names the revision of the store that it is of, and the store never goes back. Operations of unknown outcome are tried only
//! where one is needed: else each of them would double the search. Those that ask for the same, of what nobody read, are as good
//! as each other: once they have begun they may happen at any time, so of each such kind only the oldest is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Violations;
use crate::sim::history::{Op, Record, Seen};

/// Configurations after which a key is given up as undecided, which counts as a violation: such a history is too wild
/// to be evidence, and the load should be changed.
const CONFIGURATIONS_MAX: usize = 500_000;

/// A key in the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    value: Option<u64>,
    /// Of the value; 0 where it is absent, `None` where a write of unknown outcome set it and nobody was told since.
    revision: Option<u64>,
    /// The last revision of the key that is known: later ones are greater.
    last: u64,
}

impl Cell {
    const ABSENT: Self = Self { value: None, revision: Some(0), last: 0 };

    /// The cell, if its value can be at this revision: from here on it is.
    fn at(self, seen: u64) -> Option<Self> {
        match self.revision {
            Some(known) => (known == seen).then_some(self),
            None => (seen > self.last).then_some(Self { revision: Some(seen), last: seen, ..self }),
        }
    }

    fn holding(self, value: u64, revision: Option<u64>) -> Self {
        Self { value: Some(value), revision, last: revision.unwrap_or(self.last) }
    }

    fn absent(self) -> Self {
        Self { last: self.last, ..Self::ABSENT }
    }
}

/// The cell after an operation with this outcome; `None` if the outcome is impossible there.
fn step(cell: Cell, op: Op, seen: Seen) -> Option<Cell> {
    match (op, seen) {
        (Op::Put { value, expected }, Seen::Put(new)) => {
            let cell = expected.map_or(Some(cell), |expected| cell.at(expected))?;
            (new > cell.last).then(|| cell.holding(value, Some(new)))
        }
        (Op::Put { expected: Some(expected), .. }, Seen::Mismatch(actual)) => {
            if actual == expected {
                None
            } else {
                cell.at(actual)
            }
        }
        (Op::Put { value, expected: None }, Seen::Unknown) => Some(cell.holding(value, None)),
        // If it did nothing, it need not have happened.
        (Op::Put { value, expected: Some(expected) }, Seen::Unknown) => {
            cell.at(expected).map(|cell| cell.holding(value, None))
        }
        (Op::Delete, Seen::Deleted(existed)) => (existed == cell.value.is_some()).then(|| cell.absent()),
        (Op::Delete, Seen::Unknown) => Some(cell.absent()),
        (Op::Get, Seen::Got(None)) => cell.value.is_none().then_some(cell),
        (Op::Get, Seen::Got(Some((value, at)))) => cell.at(at).filter(|cell| cell.value == Some(value)),
        _ => None,
    }
}

fn is_conditional(op: Op) -> bool {
    matches!(op, Op::Put { expected: Some(_), .. })
}

/// Checks a whole history.
pub fn check(records: &[Record], violations: &Violations) {
    let mut keys: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.is_of_now()) {
        let none = matches!(record.seen, Seen::NotDone | Seen::Denied | Seen::Full);
        let effect = !none && (record.op, record.seen) != (Op::Get, Seen::Unknown);
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

/// The value of every write of unknown outcome that nobody read.
const UNREAD: u64 = u64::MAX;

/// What is certain of the operations of a key, before any search: a write of unknown outcome whose value was read
/// happened, at the revision that was read with it. What the others wrote does not matter.
fn resolved(records: Vec<&Record>) -> Vec<Record> {
    let read = |record: &&Record| match (record.op, record.seen) {
        (Op::Get, Seen::Got(Some(found))) => Some(found),
        _ => None,
    };
    let revisions: BTreeMap<u64, u64> = records.iter().filter_map(read).collect();
    let resolve = |record: &Record| match (record.op, record.seen) {
        (Op::Put { value, .. }, Seen::Unknown) if revisions.contains_key(&value) => {
            let at = revisions[&value];
            Record { seen: Seen::Put(at), to: Duration::MAX, at, ..record.clone() }
        }
        (Op::Put { expected, .. }, Seen::Unknown) => {
            Record { op: Op::Put { value: UNREAD, expected }, ..record.clone() }
        }
        _ => record.clone(),
    };
    let mut resolved: Vec<Record> = records.into_iter().map(resolve).collect();
    resolved.sort_by_key(|record| (record.from, record.to));
    resolved
}

/// Where an answer puts itself in the order of all operations: by the revision of the store that it names, and there what made
/// the revision before what only saw it. Nothing where it names none.
fn place(record: &Record) -> Option<(u64, bool)> {
    (record.at > 0).then_some((record.at, !record.changed()))
}

/// A point of the search: which operations have happened, how many of them had to, and the cell after.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    done: Vec<u64>,
    count: usize,
    cell: Cell,
}

impl Point {
    fn is_done(&self, i: usize) -> bool {
        self.done[i / 64] >> (i % 64) & 1 == 1
    }

    /// After an operation, if it is possible here.
    fn after(&self, i: usize, record: &Record) -> Option<Self> {
        let mut next = self.clone();
        next.cell = step(self.cell, record.op, record.seen)?;
        next.done[i / 64] |= 1 << (i % 64);
        next.count += usize::from(record.seen != Seen::Unknown);
        Some(next)
    }
}

fn check_key(records: Vec<&Record>) -> Result<(), String> {
    let records = resolved(records);
    let mut changes = BTreeSet::new();
    for (revision, _) in records.iter().filter_map(place).filter(|(_, only_saw)| !only_saw) {
        if !changes.insert(revision) {
            return Err(format!("it was changed twice at revision {revision}"));
        }
    }
    let must = records.iter().filter(|record| record.seen != Seen::Unknown).count();
    let mut visited: BTreeSet<Point> = BTreeSet::new();
    let mut stack = vec![Point { done: vec![0; records.len().div_ceil(64)], count: 0, cell: Cell::ABSENT }];
    let mut deepest = (0, Cell::ABSENT);
    while let Some(point) = stack.pop() {
        if point.count == must {
            return Ok(());
        }
        if point.count >= deepest.0 {
            deepest = (point.count, point.cell);
        }
        let left = || records.iter().enumerate().filter(|(i, _)| !point.is_done(*i));
        // Whatever ended first must have happened before anything that began later.
        let horizon = left().map(|(_, record)| end(record)).min().unwrap_or(Duration::MAX);
        let now = || left().filter(|(_, record)| record.from <= horizon);
        // Revisions grow, so among the writes whose revision is known only the one with the least can be next.
        let put = |record: &Record| match (record.op, record.seen) {
            (Op::Put { .. }, Seen::Put(revision)) => Some(revision),
            _ => None,
        };
        let least = left().filter_map(|(_, record)| put(record)).min();
        let first = left().filter_map(|(_, record)| place(record)).min();
        let is_next = |record: &Record| {
            put(record).is_none_or(|revision| Some(revision) == least)
                && place(record).is_none_or(|place| Some(place) == first)
        };
        let mut unknown: Vec<(usize, &Record)> = Vec::new();
        for (i, record) in now().filter(|(_, record)| record.seen == Seen::Unknown) {
            if unknown.iter().all(|(_, other)| other.op != record.op) {
                unknown.push((i, record));
            }
        }
        let mut push = |next: Point| {
            if visited.insert(next.clone()) {
                stack.push(next);
            }
        };
        // The last one pushed is tried first: what is known, oldest first, and without any that is not.
        for (i, record) in now().filter(|(_, record)| record.seen != Seen::Unknown && is_next(record)).rev() {
            let plain = point.after(i, record);
            // One of unknown outcome matters only just before an operation that is impossible without it; two, only if
            // the second depends on the first.
            if plain.is_none() {
                for (u, first) in &unknown {
                    let Some(one) = point.after(*u, first).filter(|one| one.cell != point.cell) else { continue };
                    for (v, second) in unknown.iter().filter(|(v, second)| v != u && is_conditional(second.op)) {
                        let two = one.after(*v, second).filter(|two| two.cell != one.cell);
                        two.and_then(|two| two.after(i, record)).into_iter().for_each(&mut push);
                    }
                    one.after(i, record).into_iter().for_each(&mut push);
                }
            }
            plain.into_iter().for_each(&mut push);
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
        Record { client, key: 0, op, from: Duration::from_millis(from), to: Duration::from_millis(to), seen, at: 0 }
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

    /// Every order, without any of the shortcuts.
    fn exhaustive(records: &[Record], done: u32, cell: Cell, now: u64) -> bool {
        let left = || records.iter().enumerate().filter(|(i, _)| done >> i & 1 == 0);
        if left().all(|(_, record)| record.seen == Seen::Unknown) {
            return true;
        }
        let horizon = left().map(|(_, record)| end(record)).min().unwrap_or(Duration::MAX);
        left().filter(|(_, record)| record.from <= horizon).any(|(i, record)| {
            if record.at > 0 && record.at < now + u64::from(record.changed()) {
                return false;
            }
            let next = step(cell, record.op, record.seen);
            next.is_some_and(|next| exhaustive(records, done | 1 << i, next, now.max(record.at)))
        })
    }

    /// A history that a store gave: each operation happens at its time, within its span, and its answer may name the store's
    /// revision. Some outcomes are then lost, and one may be changed.
    fn history(draws: &[(u64, u64, u64, u64)], spoil: usize, named: bool) -> Vec<Record> {
        let mut order: Vec<usize> = (0..draws.len()).collect();
        order.sort_by_key(|i| draws[*i].0);
        let (mut cell, mut revision): (Option<(u64, u64)>, u64) = (None, 0);
        let mut records = Vec::new();
        for i in order {
            let (at, before, after, kind) = draws[i];
            let at_revision = cell.map_or(0, |(_, revision)| revision);
            let value = 100 + i as u64;
            let expected = match kind / 4 % 3 {
                0 => None,
                1 => Some(at_revision),
                _ => Some(kind % 3),
            };
            let (op, mut seen) = match kind % 4 {
                0 => (Op::Get, Seen::Got(cell)),
                1 => {
                    let existed = cell.take().is_some();
                    revision += u64::from(existed);
                    (Op::Delete, Seen::Deleted(existed))
                }
                _ if expected.is_none_or(|expected| expected == at_revision) => {
                    revision += 1;
                    cell = Some((value, revision));
                    (Op::Put { value, expected }, Seen::Put(revision))
                }
                _ => (Op::Put { value, expected }, Seen::Mismatch(at_revision)),
            };
            if kind / 12 % 3 == 0 && op != Op::Get {
                seen = Seen::Unknown;
            }
            if records.len() == spoil {
                seen = match seen {
                    Seen::Got(Some(_)) => Seen::Got(None),
                    Seen::Got(None) => Seen::Got(Some((100, 1))),
                    Seen::Deleted(existed) => Seen::Deleted(!existed),
                    Seen::Put(revision) => Seen::Put(revision + 1),
                    Seen::Mismatch(actual) => Seen::Mismatch(actual + 1),
                    other => other,
                };
            }
            let named = if seen == Seen::Unknown || !named { 0 } else { revision };
            records.push(Record { at: named, ..record(i as u64, at.saturating_sub(before), at + after, op, seen) });
        }
        records
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 4_000, failure_persistence: None, ..proptest::prelude::ProptestConfig::default() })]
        #[test]
        fn the_shortcuts_change_no_verdict(
            draws in proptest::collection::vec((0u64..30, 0u64..12, 0u64..12, 0u64..36), 1..8),
            spoil in 0usize..12,
            named in proptest::bool::ANY,
        ) {
            let records = history(&draws, spoil, named);
            // Where revisions are named, that of a write of unknown outcome which was read is known, too.
            let all = if named { resolved(records.iter().collect()) } else { records.clone() };
            proptest::prop_assert_eq!(holds(&records), exhaustive(&all, 0, Cell::ABSENT, 0), "{:#?}", records);
        }
    }
}

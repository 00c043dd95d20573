//! Oracle 19: keys and their history take no more than they may, and while an alarm says that they do nothing is added to them
//! (etcd's documentation, "Space quota").

use super::Violations;
use crate::sim::history::{Op, Record, Seen};
use crate::sim::janitor::Spell;

const ORACLE: &str = "keys take what they may";
/// Bytes of a client's row, at most. What was under way at once may add so many beyond what keys may take, and a removal may at any
/// time.
const ROW_BYTES: u64 = 64;
/// Bytes of all rows that one who holds leases may leave when they end.
const HOLDER_BYTES: u64 = 12_000;

/// Checks what clients saw: nobody was refused for want of space where there is no bound, unless it was while disks were `full`, and
/// nothing was added while an alarm was `raised` for certain.
pub fn check(records: &[Record], raised: &[Spell], full: &[Spell], quota: Option<u64>, violations: &Violations) {
    for record in records {
        let within = |(from, to): &Spell| *from <= record.from && record.to <= *to;
        let touches = |(from, to): &Spell| *from <= record.to && record.from <= *to;
        let what = match (record.op, record.seen) {
            (Op::Put { .. }, Seen::Full) if quota.is_some() || full.iter().any(touches) => continue,
            (_, Seen::Full) => "refused for want of space, and there is no want of it",
            (Op::Put { .. }, Seen::Put(_)) if raised.iter().any(within) => "done while an alarm was raised",
            _ => continue,
        };
        violations.add(ORACLE, format!("{what}: {record:?}"));
    }
}

/// How many bytes keys and their history may take after such a history; any number where nothing is said.
pub fn most(records: &[Record], holders: usize, quota: Option<u64>) -> Option<u64> {
    // What takes no space away at once, and what may be done long after it was asked for. Holders' keys and locks are few.
    let is_extra = |seen| matches!(seen, Seen::Deleted(true) | Seen::Unknown);
    let extra = records.iter().filter(|record| is_extra(record.seen)).count();
    let mut clients: Vec<u64> = records.iter().map(|record| record.client).collect();
    clients.sort_unstable();
    clients.dedup();
    quota.map(|quota| quota + ROW_BYTES * (extra + 2 * clients.len()) as u64 + HOLDER_BYTES * holders as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// While an alarm is raised from 10 s to 20 s, and a disk is full from 30 s to 40 s.
    fn holds(records: &[Record], quota: Option<u64>) -> bool {
        let at = |second| Duration::from_secs(second);
        let violations = Violations::default();
        check(records, &[(at(10), at(20))], &[(at(30), at(40))], quota, &violations);
        violations.all().is_empty()
    }

    fn put((from, to): (u64, u64), seen: Seen) -> Record {
        let (from, to) = (Duration::from_secs(from), Duration::from_secs(to));
        Record { client: 1, key: 1, op: Op::Put { value: 1, expected: None }, from, to, seen, at: 0 }
    }

    #[test]
    fn an_alarm_keeps_what_adds_from_being_done() {
        assert!(holds(&[put((9, 11), Seen::Put(2)), put((19, 21), Seen::Put(3)), put((12, 13), Seen::Full)], Some(1)));
        assert!(holds(&[put((11, 12), Seen::Unknown), put((11, 12), Seen::Mismatch(4))], Some(1)));
        assert!(!holds(&[put((11, 12), Seen::Put(2))], Some(1)));
    }

    #[test]
    fn want_of_space_has_a_reason() {
        assert!(!holds(&[put((1, 2), Seen::Full)], None));
        assert!(holds(&[put((29, 30), Seen::Full), put((40, 41), Seen::Full)], None), "a disk was full");
        assert!(!holds(&[put((28, 29), Seen::Full)], None) && !holds(&[put((41, 42), Seen::Full)], None));
        let get = Record { op: Op::Get, ..put((11, 12), Seen::Full) };
        assert!(!holds(&[get], Some(1)), "reading takes no space");
    }
}

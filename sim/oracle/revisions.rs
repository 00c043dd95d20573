//! Oracle 16: revisions tell one story over all keys. What etcd promises of them (its documentation, "KV API guarantees"): each
//! change has a revision of its own, a transaction one for all it changes; they never go back; an answer shows the store
//! exactly as of the revision that it names; and what was compacted cannot be read, nor anything else be refused as compacted.
//!
//! Linearizability is checked key by key. This sees what several keys, and past revisions, add to that, without a search: what
//! clients were told of changes is a list in the order of revisions, and every read must agree with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Violations;
use crate::sim::history::{Op, Record, Seen};

const ORACLE: &str = "revisions tell one story";

/// Checks a whole history. What was compacted by nobody who stands in it is given with its time.
pub fn check(records: &[Record], by_itself: &[(u64, Duration)], violations: &Violations) {
    let changes = changes(records, violations);
    for record in records {
        if let Some(what) = contradiction(record, &changes) {
            violations.add(ORACLE, format!("{what}: {record:?}"));
        }
    }
    goes_on(records, violations);
    compacted(records, by_itself, violations);
}

/// What is known of a key: at which revisions it was set, and to what, or removed; and whether there may be removals that nobody
/// was told of.
#[derive(Default)]
struct Changes {
    known: BTreeMap<u64, Option<u64>>,
    /// When the first removal of unknown outcome began.
    doubtful: Option<Duration>,
}

fn changes(records: &[Record], violations: &Violations) -> BTreeMap<u64, Changes> {
    let mut keys: BTreeMap<u64, Changes> = BTreeMap::new();
    let mut whose: BTreeMap<u64, (u64, Duration)> = BTreeMap::new();
    for record in records {
        let key = keys.entry(record.key).or_default();
        if (record.op, record.seen) == (Op::Delete, Seen::Unknown) {
            let first = key.doubtful.get_or_insert(record.from);
            *first = record.from.min(*first);
        }
        let Some((revision, value)) = record.change() else { continue };
        let before = *key.known.entry(revision).or_insert(value);
        if before != value {
            let what = format!("key {} was made {before:?} and {value:?} at revision {revision}", record.key);
            violations.add(ORACLE, what);
        }
        if record.changed() {
            let who = (record.client, record.from);
            let first = *whose.entry(revision).or_insert(who);
            if first != who {
                violations.add(ORACLE, format!("{first:?} and {who:?} were both given revision {revision}"));
            }
        }
    }
    // Whoever saw one key of a transaction tells of the others, too, though nobody was told that it was carried out.
    let mut together: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for record in records {
        if let Op::Put { value, .. } = record.op {
            together.entry(value).or_default().insert(record.key);
        }
    }
    for (revision, value) in records.iter().filter_map(|record| record.change().and_then(|(at, now)| Some((at, now?))))
    {
        for key in together.get(&value).into_iter().flatten() {
            let before = *keys.entry(*key).or_default().known.entry(revision).or_insert(Some(value));
            if before != Some(value) {
                let what = format!("{value} was written at revision {revision}, and made key {key} {before:?}");
                violations.add(ORACLE, what);
            }
        }
    }
    keys
}

/// What a read says that is not so.
fn contradiction(record: &Record, changes: &BTreeMap<u64, Changes>) -> Option<String> {
    let (Op::Get | Op::GetAt { .. }, Seen::Got(found)) = (record.op, record.seen) else { return None };
    let shown = if let Op::GetAt { revision } = record.op { revision } else { record.at };
    let key = changes.get(&record.key)?;
    let last = key.known.range(..=shown).next_back();
    match (found, last) {
        (Some((_, revision)), _) if revision > shown => Some(format!("revision {shown} shows what came later")),
        (Some((_, revision)), Some((changed, _))) if *changed > revision => {
            Some(format!("revision {shown} does not show the change at {changed}"))
        }
        (None, Some((changed, Some(_)))) if key.doubtful.is_none_or(|first| first > record.to) => {
            Some(format!("revision {shown} shows nothing of what was set at {changed}"))
        }
        _ => None,
    }
}

/// An answer names no revision before one that was named before it was asked for; and what changed something, a later one.
fn goes_on(records: &[Record], violations: &Violations) {
    let answered = || records.iter().filter(|record| record.at > 0 && record.is_of_now());
    let mut ends: Vec<(Duration, u64)> = answered().map(|record| (record.to, record.at)).collect();
    ends.sort_unstable();
    let mut begins: Vec<&Record> = answered().collect();
    begins.sort_by_key(|record| record.from);
    let (mut ends, mut newest) = (ends.into_iter().peekable(), 0);
    for record in begins {
        while let Some((_, at)) = ends.next_if(|(to, _)| *to < record.from) {
            newest = newest.max(at);
        }
        if record.at < newest + u64::from(record.changed()) {
            violations.add(ORACLE, format!("revision {newest} was named before this was asked for: {record:?}"));
        }
    }
}

/// Who is refused as too late is so, and who is not, is not.
fn compacted(records: &[Record], by_itself: &[(u64, Duration)], violations: &Violations) {
    let compactions: Vec<(u64, &Record)> = records
        .iter()
        .filter_map(|record| match (record.op, record.seen) {
            (_, Seen::NotDone | Seen::Denied | Seen::Full | Seen::Compacted) => None,
            (Op::Compact { revision }, _) => Some((revision, record)),
            _ => None,
        })
        .collect();
    for record in records {
        let may_be = |least: u64| {
            let earlier = |(upto, other): &(u64, &Record)| *upto >= least && other.from <= record.to;
            let itself = |(upto, at): &(u64, Duration)| *upto >= least && *at <= record.to;
            compactions.iter().any(earlier) || by_itself.iter().any(itself)
        };
        let what = match (record.op, record.seen) {
            (Op::GetAt { revision }, Seen::Compacted) if !may_be(revision + 1) => {
                "refused as compacted, and nobody did"
            }
            (Op::Compact { revision }, Seen::Compacted) if revision > 0 && !may_be(revision) => {
                "refused as done before, and nobody did"
            }
            (Op::Get, Seen::Compacted) => "what is there now is never compacted",
            (Op::GetAt { revision }, Seen::Got(_)) => {
                let done = |(upto, other): &(u64, &Record)| {
                    *upto > revision && other.seen == Seen::Done && other.to < record.from
                };
                if !compactions.iter().any(done) {
                    continue;
                }
                "read after it was compacted"
            }
            _ => continue,
        };
        violations.add(ORACLE, format!("{what}: {record:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(client: u64, key: u64, time: (u64, u64), op: Op, seen: Seen, at: u64) -> Record {
        let ms = Duration::from_millis;
        Record { client, key, op, from: ms(time.0), to: ms(time.1), seen, at }
    }

    fn holds(records: &[Record]) -> bool {
        let violations = Violations::default();
        check(records, &[], &violations);
        violations.all().is_empty()
    }

    fn put(client: u64, key: u64, time: (u64, u64), value: u64, at: u64) -> Record {
        record(client, key, time, Op::Put { value, expected: None }, Seen::Put(at), at)
    }

    fn got(key: u64, time: (u64, u64), found: Option<(u64, u64)>, at: u64) -> Record {
        record(9, key, time, Op::Get, Seen::Got(found), at)
    }

    #[test]
    fn both_keys_of_a_transaction_are_seen_or_none() {
        let pair = [put(1, 0, (0, 10), 7, 5), put(1, 1, (0, 10), 7, 5)];
        let with = |more: &[Record]| holds(&[&pair, more].concat());
        assert!(with(&[got(0, (5, 6), Some((7, 5)), 5), got(1, (5, 6), Some((7, 5)), 5)]));
        assert!(with(&[got(0, (5, 6), None, 4), got(1, (5, 6), None, 4)]));
        assert!(!with(&[got(0, (5, 6), Some((7, 5)), 5), got(1, (5, 6), None, 5)]), "half of it");
        assert!(!with(&[got(0, (5, 6), Some((7, 5)), 4)]), "before it was there");
        assert!(!holds(&[put(1, 0, (0, 10), 7, 5), put(2, 1, (0, 10), 8, 5)]), "two changes at one revision");
        let half = |key| record(1, key, (0, 10), Op::Put { value: 7, expected: None }, Seen::Unknown, 0);
        let unheard = |other| holds(&[half(0), half(1), got(0, (11, 12), Some((7, 5)), 5), got(1, (11, 12), other, 5)]);
        assert!(unheard(Some((7, 5))));
        assert!(!unheard(None), "half of what nobody was told of");
        assert!(holds(&[half(0), half(1), got(0, (11, 12), None, 5), got(1, (11, 12), None, 5)]), "nothing of it");
    }

    #[test]
    fn revisions_do_not_go_back() {
        assert!(holds(&[put(1, 0, (0, 10), 7, 5), got(1, (11, 12), None, 5)]));
        assert!(!holds(&[put(1, 0, (0, 10), 7, 5), got(1, (11, 12), None, 4)]), "an old answer, though of another key");
        assert!(holds(&[put(1, 0, (0, 10), 7, 5), got(1, (10, 12), None, 4)]), "they overlap");
        assert!(!holds(&[got(1, (0, 1), None, 5), put(1, 0, (2, 10), 7, 5)]), "a change makes a new one");
    }

    #[test]
    fn the_past_stays_as_it_was_until_it_is_compacted() {
        let at = |time, revision, seen| record(9, 0, time, Op::GetAt { revision }, seen, 9);
        let puts = [put(1, 0, (0, 1), 7, 5), put(1, 0, (2, 3), 8, 6)];
        let with = |more: &[Record]| holds(&[&puts, more].concat());
        assert!(with(&[at((4, 5), 5, Seen::Got(Some((7, 5)))), at((4, 5), 4, Seen::Got(None))]));
        assert!(!with(&[at((4, 5), 5, Seen::Got(Some((8, 6))))]));
        assert!(!with(&[at((4, 5), 6, Seen::Got(Some((7, 5))))]));
        assert!(!with(&[at((4, 5), 5, Seen::Compacted)]), "nobody did");
        let compact = |seen| record(2, 0, (6, 7), Op::Compact { revision: 6 }, seen, 6);
        assert!(with(&[compact(Seen::Done), at((8, 9), 5, Seen::Compacted), at((8, 9), 6, Seen::Got(Some((8, 6))))]));
        assert!(with(&[compact(Seen::Unknown), at((8, 9), 5, Seen::Compacted)]));
        assert!(!with(&[compact(Seen::Done), at((8, 9), 6, Seen::Compacted)]), "the revision itself can be read");
        assert!(!with(&[compact(Seen::Done), at((8, 9), 5, Seen::Got(Some((7, 5))))]), "gone is gone");
        assert!(!with(&[compact(Seen::Compacted)]), "nobody did");
    }

    #[test]
    fn a_removal_that_nobody_was_told_of_may_have_happened() {
        let gone = record(3, 0, (2, 3), Op::Delete, Seen::Unknown, 0);
        assert!(holds(&[put(1, 0, (0, 1), 7, 5), gone.clone(), got(0, (4, 5), None, 6)]));
        assert!(!holds(&[put(1, 0, (0, 1), 7, 5), got(0, (4, 5), None, 6)]));
        let told = record(3, 0, (2, 3), Op::Delete, Seen::Deleted(true), 6);
        assert!(holds(&[put(1, 0, (0, 1), 7, 5), told.clone(), got(0, (4, 5), None, 6)]));
        assert!(!holds(&[put(1, 0, (0, 1), 7, 5), told, got(0, (4, 5), Some((7, 5)), 6)]));
    }
}

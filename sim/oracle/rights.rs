//! Oracle 21: users do what they may, and nothing else, from the answer that says so on (etcd's documentation, "Role-based access
//! control").

use std::time::Duration;

use super::Violations;
use crate::sim::guests::{May, Rights, Step, Told};
use crate::sim::history::{Op, Record, Seen};

const ORACLE: &str = "users do what they may";

/// What a guest may do, from when on that may have been so, until when, and the revision of the keys when it came to be.
struct Spell {
    rights: Rights,
    from: Duration,
    until: Duration,
    since: u64,
}

/// What a guest may do, one after the other, and from when on nobody knows.
fn spells(steps: &[Step], guest: u64) -> (Vec<Spell>, Duration) {
    let first = Spell { rights: Rights::default(), from: Duration::ZERO, until: Duration::MAX, since: 0 };
    let mut spells = vec![first];
    for step in steps.iter().filter(|step| step.guest == guest) {
        let Some((rights, since)) = &step.then else { return (spells, step.from) };
        spells.last_mut().expect("there is a first one").until = step.to;
        spells.push(Spell { rights: rights.clone(), from: step.from, until: Duration::MAX, since: *since });
    }
    (spells, Duration::MAX)
}

/// What an operation needs of its key.
fn needs(op: Op) -> Option<May> {
    match op {
        Op::Get | Op::GetAt { .. } => Some(May { read: true, write: false }),
        Op::Put { expected: None, .. } | Op::Delete => Some(May { read: false, write: true }),
        Op::Put { expected: Some(_), .. } => Some(May { read: true, write: true }),
        // It is about no key.
        Op::Compact { .. } => None,
    }
}

/// Checks what guests did, and what they were told as they watched. Whoever is locked out is answered nothing, from when on all members
/// look at tokens.
pub fn check(
    records: &[Record],
    guests: &[u64],
    (steps, told, tokens_since): (&[Step], &[Told], Option<Duration>),
    violations: &Violations,
) {
    for guest in guests {
        let (spells, unknown) = spells(steps, *guest);
        for record in records.iter().filter(|record| record.client == *guest && record.to < unknown) {
            let is_denied = match record.seen {
                Seen::NotDone | Seen::Unknown | Seen::Full => continue,
                seen => seen == Seen::Denied,
            };
            let meanwhile = || spells.iter().filter(|spell| spell.from <= record.to && record.from <= spell.until);
            let are_looked_at = tokens_since.is_some_and(|since| since < record.from);
            if !are_looked_at && meanwhile().any(|spell| spell.rights.is_locked_out) {
                continue;
            }
            let might = |spell: &Spell| {
                let may = spell.rights.may(record.key);
                needs(record.op).is_some_and(|needs| may.read >= needs.read && may.write >= needs.write)
            };
            if !meanwhile().any(|spell| !spell.rights.is_locked_out && might(spell) != is_denied) {
                let what = match is_denied {
                    _ if meanwhile().all(|spell| spell.rights.is_locked_out) => "was answered, and was locked out",
                    true => "was refused what it might do",
                    false => "did what it might not do",
                };
                violations.add(ORACLE, format!("a guest {what}: {record:?}"));
            }
        }
        for told in told.iter().filter(|told| told.guest == *guest && told.at < unknown) {
            // As of the change or later, for who may see a key may see its past.
            let first = spells.iter().rposition(|spell| spell.since < told.revision).unwrap_or(0);
            let mut since = spells[first..].iter().filter(|spell| spell.from <= told.at);
            if !since.any(|spell| spell.rights.may(told.key).read) {
                violations.add(ORACLE, format!("a guest was told what it might not see: {told:?}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::guests::FIRST_GUEST;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn step((from, to): (u64, u64), says: &[(Option<u64>, bool, bool)], since: u64) -> Step {
        let says = says.iter().map(|(key, read, write)| (*key, May { read: *read, write: *write })).collect();
        let then = Some((Rights { has_role: true, says, ..Rights::default() }, since));
        Step { guest: FIRST_GUEST, from: at(from), to: at(to), then }
    }

    fn record((from, to): (u64, u64), key: u64, op: Op, seen: Seen) -> Record {
        Record { client: FIRST_GUEST, key, op, from: at(from), to: at(to), seen, at: 0 }
    }

    fn holds(records: &[Record], steps: &[Step], told: &[Told]) -> bool {
        let violations = Violations::default();
        check(records, &[FIRST_GUEST], (steps, told, Some(Duration::ZERO)), &violations);
        violations.all().is_empty()
    }

    #[test]
    fn what_is_given_is_had_from_its_answer_on() {
        let steps = [step((10, 12), &[(Some(1), true, false)], 5), step((20, 22), &[(None, true, true)], 9)];
        let get = |times, key, seen| record(times, key, Op::Get, seen);
        let put = |times, seen| record(times, 1, Op::Put { value: 1, expected: None }, seen);
        assert!(holds(&[get((1, 2), 1, Seen::Denied), get((11, 11), 1, Seen::Denied)], &steps, &[]));
        assert!(holds(&[get((11, 11), 1, Seen::Got(None)), get((13, 14), 1, Seen::Got(None))], &steps, &[]));
        assert!(holds(
            &[put((13, 14), Seen::Denied), put((21, 23), Seen::Put(10)), put((23, 24), Seen::Unknown)],
            &steps,
            &[]
        ));
        assert!(!holds(&[get((1, 9), 1, Seen::Got(None))], &steps, &[]));
        assert!(!holds(&[get((13, 14), 1, Seen::Denied)], &steps, &[]));
        assert!(!holds(&[get((13, 14), 2, Seen::Got(None))], &steps, &[]));
        assert!(!holds(&[put((13, 14), Seen::Put(7))], &steps, &[]));
        assert!(!holds(&[record((23, 24), 1, Op::Compact { revision: 2 }, Seen::Done)], &steps, &[]));
    }

    #[test]
    fn nobody_is_told_what_is_not_theirs() {
        let steps = [step((10, 12), &[(Some(1), true, false)], 5), step((20, 22), &[], 9)];
        let told = |second, revision| [Told { guest: FIRST_GUEST, at: at(second), key: 1, revision }];
        assert!(holds(&[], &steps, &told(13, 4)), "the past of what may be seen");
        assert!(holds(&[], &steps, &told(30, 9)), "on its way for long");
        assert!(!holds(&[], &steps, &told(30, 10)));
        assert!(!holds(&[], &steps, &told(9, 4)));
    }

    #[test]
    fn whoever_is_locked_out_is_answered_nothing() {
        let out = Rights { is_locked_out: true, has_role: true, ..Rights::default() };
        let steps = [Step { guest: FIRST_GUEST, from: at(10), to: at(12), then: Some((out, 5)) }];
        let get = |times, seen| record(times, 1, Op::Get, seen);
        assert!(holds(&[get((11, 13), Seen::Denied), get((13, 14), Seen::Unknown)], &steps, &[]));
        assert!(!holds(&[get((13, 14), Seen::Denied)], &steps, &[]));
        let violations = Violations::default();
        let before = (&steps[..], &[][..], Some(at(13)));
        check(&[get((13, 14), Seen::Denied)], &[FIRST_GUEST], before, &violations);
        assert!(violations.all().is_empty(), "not all look at tokens yet");
    }

    #[test]
    fn what_nobody_knows_is_not_judged() {
        let open = Step { guest: FIRST_GUEST, from: at(10), to: at(12), then: None };
        let get = |times| record(times, 1, Op::Get, Seen::Got(None));
        assert!(holds(&[get((9, 11)), get((50, 51))], std::slice::from_ref(&open), &[]));
        assert!(!holds(&[get((8, 9))], &[open], &[]));
    }
}

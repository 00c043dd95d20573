//! Oracle 18: a lease on keys lasts its time, counted from when its holder asked for it, and its keys last as long as it does and no
//! longer, whatever is decided by whom (Gray & Cheriton, "Leases", 1989; etcd's documentation, "Lease API").

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use madsim::time::TimeHandle;
use prost::Message;

use super::Violations;
use crate::client::Client;
use crate::entry::{Body, Entry, Outcome};
use crate::ids::{Index, LeaseId, Term};
use crate::limits::{CLOCK_DRIFT_PPM_MAX, LEASE_GRACE};
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::v1::{self, command, reply};
use crate::sim::holders::{Note, PREFIX, What};
use crate::time::ClusterTime;

/// What holds only while clocks run evenly.
pub const LASTS: &str = "a lease on keys lasts its time";
/// The same of locks.
pub const LOCK: &str = "a lock has one holder";
const KEYS: &str = "keys go with their lease";
/// How long it may take until nothing is left of leases that last no longer than a dozen seconds, by any clock that leases allow.
const ALL_ENDED_MAX: Duration = Duration::from_secs(30);

/// Checks what each holder has noted.
pub fn check(notes: &[Vec<Note>], violations: &Violations) {
    for (number, notes) in notes.iter().enumerate() {
        if let Err((oracle, what)) = check_holder(notes) {
            violations.add(oracle, format!("holder {number}: {what}"));
        }
    }
    if let Err((oracle, what)) = check_locks(notes) {
        violations.add(oracle, what);
    }
}

/// How long a lease lasts at least by a clock that runs as it should, if the leader's is as fast as it may be.
fn least(ttl: Duration) -> Duration {
    let millionths = 1_000_000 + u32::try_from(CLOCK_DRIFT_PPM_MAX).expect("it is a few hundred thousand at most");
    // Stamps are in whole milliseconds.
    (ttl * 1_000_000 / millionths).saturating_sub(Duration::from_millis(2))
}

fn check_holder(notes: &[Note]) -> Result<(), (&'static str, String)> {
    let mut lasts: BTreeMap<LeaseId, Duration> = BTreeMap::new();
    let mut gone: Vec<LeaseId> = Vec::new();
    let mut key: Option<(u64, LeaseId)> = None;
    // What may have been put, or may come to be, however late: until its lease is gone. Then it must not be there any more.
    let (mut doubtful, mut dead): (Vec<(u64, LeaseId)>, Vec<u64>) = Default::default();
    for note in notes {
        let is_due = |lease: &LeaseId, lasts: &BTreeMap<LeaseId, Duration>| {
            lasts.get(lease).is_some_and(|until| note.to < *until)
        };
        match &note.what {
            What::Lasts(lease, _) if gone.contains(lease) => {
                return Err((KEYS, format!("lease {lease} is back: {note:?}")));
            }
            What::Lasts(lease, ttl) => {
                let until = lasts.entry(*lease).or_default();
                *until = (*until).max(note.from + least(*ttl));
            }
            What::Gone(lease) if is_due(lease, &lasts) => {
                return Err((LASTS, format!("{note:?}, and it was to last until {:?}", lasts[lease])));
            }
            What::Gone(lease) => {
                gone.push(*lease);
                if doubtful.iter().any(|(_, under)| under == lease) {
                    // It may have come, and gone again.
                    key = None;
                    dead.extend(doubtful.extract_if(.., |(_, under)| under == lease).map(|(value, _)| value));
                }
            }
            What::Revoked(lease) => drop(lasts.remove(lease)),
            What::Put(value, lease) => key = Some((*value, *lease)),
            What::MayPut(value, lease) => {
                key = None;
                doubtful.push((*value, *lease));
            }
            What::Found(Some(found)) if dead.contains(found) => {
                return Err((KEYS, format!("{note:?}, and its lease is gone")));
            }
            // One of them came, and has gone with its lease.
            What::Found(None) if doubtful.iter().any(|(_, under)| under.0 != 0 && !is_due(under, &lasts)) => key = None,
            What::Found(Some(found)) if doubtful.iter().any(|(value, _)| value == found) => {
                key = doubtful.iter().find(|(value, _)| value == found).copied();
            }
            What::Found(found) => match (key, found) {
                (Some((value, _)), Some(found)) if value != *found => {
                    return Err((KEYS, format!("{note:?}, and {value} was put")));
                }
                (Some((_, lease)), Some(_)) if gone.contains(&lease) => {
                    return Err((KEYS, format!("{note:?}, and its lease {lease} is gone")));
                }
                (Some((value, LeaseId(0))), None) => {
                    return Err((KEYS, format!("{value} is gone, and was under no lease")));
                }
                (Some((value, lease)), None) if is_due(&lease, &lasts) => {
                    let until = lasts[&lease];
                    return Err((
                        LASTS,
                        format!("{value} is gone by {:?}, and {lease} lasts until {until:?}", note.to),
                    ));
                }
                _ => {}
            },
            // Between all holders, not here.
            What::Locked(..) => {}
        }
    }
    Ok(())
}

/// Two hold a lock at once only if the lease of one has ended, and whoever comes later has the greater token.
fn check_locks(notes: &[Vec<Note>]) -> Result<(), (&'static str, String)> {
    // From when it was held for certain, and until when: the lease lasts at least that long, or it was revoked.
    let mut held: Vec<(Duration, Duration, LeaseId, u64)> = Vec::new();
    for notes in notes {
        let mut lasts: BTreeMap<LeaseId, Duration> = BTreeMap::new();
        let mut locked: BTreeMap<LeaseId, (Duration, u64)> = BTreeMap::new();
        for note in notes {
            match &note.what {
                What::Lasts(lease, ttl) => {
                    let until = lasts.entry(*lease).or_default();
                    *until = (*until).max(note.from + least(*ttl));
                }
                What::Locked(lease, token) => drop(locked.insert(*lease, (note.to, *token))),
                What::Revoked(lease) => {
                    let until = lasts.entry(*lease).or_default();
                    *until = (*until).min(note.from);
                }
                _ => {}
            }
        }
        held.extend(locked.iter().map(|(lease, (from, token))| (*from, lasts[lease], *lease, *token)));
    }
    held.retain(|(from, until, ..)| from < until);
    held.sort_unstable();
    for pair in held.windows(2) {
        let [(from, until, lease, token), (next, _, other, later)] = pair else { unreachable!("windows of two") };
        if next < until {
            return Err((
                LOCK,
                format!("{lease} holds the lock from {from:?} until {until:?}, and {other} from {next:?}"),
            ));
        }
        if token >= later {
            return Err((LOCK, format!("{lease} had the token {token}, and then {other} the token {later}")));
        }
    }
    Ok(())
}

/// Waits until no lease is left, which nobody keeps alive: then no key is under one.
///
/// # Errors
/// What did not end in time.
pub async fn all_ended(client: &Client, time: &TimeHandle, violations: &Violations) -> Result<(), String> {
    let began = time.now_instant();
    loop {
        let left = client.leases().await.map_err(|error| format!("leases are not listed: {error}"))?;
        if left.is_empty() {
            break;
        }
        if time.now_instant() - began > ALL_ENDED_MAX {
            return Err(format!("nobody keeps {left:?} alive, and after {ALL_ENDED_MAX:?} they are there"));
        }
        client.pause(Duration::from_millis(500)).await;
    }
    let range_end = Bytes::from(format!("{PREFIX}~"));
    let range = RangeRequest { key: PREFIX.into(), range_end, ..RangeRequest::default() };
    let found = client.range(range).await.map_err(|error| format!("keys are not listed: {error}"))?;
    for row in found.kvs.iter().filter(|row| row.lease != 0) {
        violations.add(KEYS, format!("no lease is left, and {:?} is under {}", row.key, LeaseId(row.lease)));
    }
    Ok(())
}

/// When each lease is over, as the committed entries tell.
#[derive(Default)]
pub struct Holdings {
    /// The time that each lasts, and when it was asked for last.
    leases: BTreeMap<i64, (Duration, ClusterTime)>,
    now: ClusterTime,
    term: Term,
    term_began: ClusterTime,
    last: Index,
}

impl Holdings {
    /// A member applied an entry. The first to do so tells, for all give the same answers.
    pub fn on_applied(&mut self, entry: &Entry, outcome: &Outcome, violations: &Violations) {
        if entry.index <= self.last {
            return;
        }
        self.last = entry.index;
        if entry.term > self.term {
            (self.term, self.term_began) = (entry.term, self.now);
        }
        let Body::Commands { stamp, commands } = &entry.body else { return };
        self.now = self.now.max(*stamp);
        for (command, reply) in commands.iter().zip(&outcome.replies) {
            let (Ok(command), Ok(reply)) = (v1::Command::decode(&**command), v1::Reply::decode(&**reply)) else {
                continue;
            };
            match (command.kind, reply.kind) {
                (Some(command::Kind::LeaseGrant(_)), Some(reply::Kind::LeaseGrant(granted))) => {
                    let ttl = Duration::from_secs(granted.ttl.cast_unsigned());
                    // Whoever asks again gets the first answer.
                    self.leases.entry(granted.id).or_insert((ttl, self.now));
                }
                (Some(command::Kind::LeaseKeepAlive(keep)), Some(reply::Kind::LeaseKeepAlive(kept)))
                    if kept.ttl > 0 =>
                {
                    self.leases.entry(keep.id).and_modify(|(_, asked)| *asked = self.now);
                }
                (Some(command::Kind::ExpireLeases(_)), Some(reply::Kind::ExpireLeases(expired))) => {
                    expired.expired.iter().for_each(|lease| self.check_over(*lease, violations));
                }
                _ => {}
            }
        }
    }

    fn check_over(&self, lease: i64, violations: &Violations) {
        let Some((ttl, asked)) = self.leases.get(&lease) else { return };
        let (age, term_age) = (self.now.since(*asked), self.now.since(self.term_began));
        if age < *ttl || term_age < LEASE_GRACE.min(*ttl) {
            let what = format!("lease {lease} of {ttl:?} was over after {age:?}, {term_age:?} into the term");
            violations.add("a lease on keys lasts its time in the time of the cluster", what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(notes: &[(u64, u64, What)]) -> bool {
        let millis = Duration::from_millis;
        let note =
            |(from, to, what): &(u64, u64, What)| Note { from: millis(*from), to: millis(*to), what: what.clone() };
        check_holder(&notes.iter().map(note).collect::<Vec<_>>()).is_ok()
    }

    #[test]
    fn a_lock_has_one_holder() {
        let millis = Duration::from_millis;
        let holds = |number: i64, from: u64, token| {
            let lease = LeaseId(number);
            let note = |from, to, what| Note { from: millis(from), to: millis(to), what };
            vec![
                note(from, from + 5, What::Lasts(lease, Duration::from_secs(2))),
                note(from + 5, from + 20, What::Locked(lease, token)),
            ]
        };
        let revoked = |mut notes: Vec<Note>, at: u64, lease: i64| {
            notes.push(Note { from: millis(at), to: millis(at), what: What::Revoked(LeaseId(lease)) });
            notes
        };
        assert!(check_locks(&[holds(1, 0, 5), holds(2, 2_000, 6)]).is_ok());
        assert!(check_locks(&[holds(1, 0, 5), holds(2, 1_000, 6)]).is_err(), "both hold it");
        assert!(check_locks(&[holds(1, 0, 5), holds(2, 2_000, 4)]).is_err(), "a smaller token");
        assert!(check_locks(&[revoked(holds(1, 0, 5), 900, 1), holds(2, 1_000, 6)]).is_ok(), "it was given back");
    }

    #[test]
    fn a_lease_lasts_its_time_and_its_key_as_long() {
        let lease = LeaseId(7);
        let lasts = |from| (from, from + 5, What::Lasts(lease, Duration::from_secs(2)));
        let put = (10, 11, What::Put(1, lease));
        let found = |at, value| (at, at + 1, What::Found(value));
        assert!(holds(&[lasts(0), put.clone(), found(1_900, Some(1)), found(1_950, None)]), "a fast clock");
        assert!(!holds(&[lasts(0), put.clone(), found(1_800, None)]), "too early");
        assert!(!holds(&[lasts(0), put.clone(), lasts(1_000), found(2_700, None)]), "it was kept alive");
        assert!(!holds(&[lasts(0), put.clone(), (1_000, 1_001, What::Gone(lease))]));
        assert!(holds(&[lasts(0), put.clone(), (500, 500, What::Revoked(lease)), found(600, None)]));
        assert!(
            !holds(&[lasts(0), put.clone(), (2_500, 2_501, What::Gone(lease)), found(2_600, Some(1))]),
            "it outlived it"
        );
        assert!(!holds(&[lasts(0), (2_500, 2_501, What::Gone(lease)), lasts(2_600)]), "it came back");
        assert!(!holds(&[lasts(0), put.clone(), (20, 21, What::Put(2, LeaseId(0))), found(9_000, None)]));
        assert!(holds(&[lasts(0), put, (20, 21, What::MayPut(2, lease)), found(900, None)]), "nobody knows");
    }

    #[test]
    fn what_may_be_put_may_come_late_and_not_after_its_lease() {
        let lease = LeaseId(7);
        let found = |at, value| (at, at + 1, What::Found(value));
        let (late, put) = ((0, 10_000, What::MayPut(1, lease)), (10_000, 10_001, What::Put(2, LeaseId(0))));
        let gone = (10_100, 10_101, What::Gone(lease));
        assert!(holds(&[late.clone(), put.clone(), found(10_010, Some(2)), found(10_020, Some(1))]));
        assert!(
            holds(&[late.clone(), put.clone(), gone.clone(), found(10_200, None)]),
            "it came, and went with its lease"
        );
        assert!(!holds(&[late.clone(), put.clone(), found(10_010, Some(3))]), "nobody put that");
        assert!(!holds(&[late.clone(), gone.clone(), put.clone(), found(20_000, Some(1))]), "it came after its lease");
        assert!(!holds(&[late, gone, found(20_000, Some(1))]), "the same");
        let forever = (0, 10_000, What::MayPut(1, LeaseId(0)));
        assert!(!holds(&[forever, put.clone(), found(10_010, None)]), "neither goes");
        assert!(!holds(&[put, found(10_010, Some(1))]));
    }
}

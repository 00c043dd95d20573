//! Reads that see everything committed before they were asked for: who waits for what, and the lease under which a leader answers
//! without asking anybody.
//!
//! The lease rests on what the [core](super::core) promises of every member: whoever has heard a leader helps no other to lead for an
//! election timeout. How long that is each member is told when it is started, but no less than [`ELECTION_TIMEOUT_MIN`]. So when a majority
//! has answered a question, nobody else leads until so long after it was **asked**, by the clock of whoever answered. As clocks run at
//! different speeds, the lease is shorter, by what [`CLOCK_DRIFT_PPM_MAX`] allows. It ends with the term, with a change of members, and for
//! the rest of the term when another has been asked to lead.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;

use super::core::Reign;
use crate::ids::Index;
use crate::limits::{CLOCK_DRIFT_PPM_MAX, ELECTION_TIMEOUT_MIN, READS_PENDING_MAX, TICK};
use crate::time::Monotonic;

/// How long a question waits at first, and at most.
const PATIENCE_MIN: Duration = Duration::from_millis(2 * TICK.as_millis() as u64);
const PATIENCE_MAX: Duration = Duration::from_secs(2);

/// Told up to where the state was when it had what the read must see.
pub(super) type Reader = oneshot::Sender<Index>;

/// A question to the others.
struct Round {
    asked: Monotonic,
    /// What the leader's lease would be bound to, if this member led then.
    reign: Option<Reign>,
    readers: Vec<Reader>,
}

/// Until when nobody else leads.
#[derive(Clone, Copy)]
struct Lease {
    reign: Reign,
    until: Monotonic,
}

/// The reads of one member.
pub(super) struct Reads {
    /// Not asked for yet.
    waiting: Vec<Reader>,
    /// Asked for, by the counter of their context.
    rounds: BTreeMap<u64, Round>,
    /// Confirmed, and waiting for the state to apply the index.
    confirmed: BTreeMap<Index, Vec<Reader>>,
    counter: u64,
    /// How long a question waits for its answer before it is asked anew. It grows: where all is far away, none would ever be answered.
    patience: Duration,
    /// How long a lease lasts from the question on; `None` where none is to be counted on.
    span: Option<Duration>,
    lease: Option<Lease>,
    /// Whether anything was read since the last question.
    wanted: bool,
}

/// How long nobody else leads after a question, by the asker's clock. The first tick may come at once.
pub(super) fn lease_span() -> Duration {
    let million = 1_000_000;
    let least = ELECTION_TIMEOUT_MIN - TICK;
    least * (million - CLOCK_DRIFT_PPM_MAX as u32) / (million + CLOCK_DRIFT_PPM_MAX as u32)
}

impl Reads {
    /// None. `span` is how long a lease lasts, if it is to be counted on any.
    pub(super) fn new(span: Option<Duration>) -> Self {
        Self {
            waiting: Vec::new(),
            rounds: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            counter: 0,
            patience: PATIENCE_MIN,
            span,
            lease: None,
            wanted: false,
        }
    }

    /// Takes a reader; it is dropped, and hears that too many wait, if they do.
    pub(super) fn add(&mut self, reader: Reader) {
        let pending = self.waiting.len() + self.confirmed.values().map(Vec::len).sum::<usize>();
        if pending < READS_PENDING_MAX {
            self.waiting.push(reader);
        }
    }

    /// Whether a lease holds, for whoever reigns so and is to answer a reader now. Who reads wants the next lease, too.
    pub(super) fn holds(&mut self, reign: Option<Reign>, now: Monotonic) -> bool {
        let lease = self.lease.filter(|lease| Some(lease.reign) == reign);
        let holds = lease.is_some_and(|lease| now < lease.until);
        sometimes!(lease.is_some() && !holds, "a lease was over when something was read");
        self.wanted = true;
        holds
    }

    /// Confirms what waits without asking, under a lease that holds, at the index up to which all is committed.
    pub(super) fn confirm_waiting(&mut self, committed: Index) {
        sometimes!("something was read under a lease");
        self.confirmed.entry(committed).or_default().append(&mut self.waiting);
    }

    /// Whether anybody waits to be confirmed.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Begins a question for all who wait, unless one is under way: those that come later need the next. Gives its number.
    pub(super) fn ask(&mut self, reign: Option<Reign>, now: Monotonic) -> Option<u64> {
        self.rounds.is_empty().then(|| self.begin(reign, now))
    }

    /// Begins a question that nobody waits for, so that the next reader finds a lease; if anybody has read since the last.
    pub(super) fn renew(&mut self, reign: Option<Reign>, now: Monotonic) -> Option<u64> {
        let wanted = std::mem::take(&mut self.wanted) && self.span.is_some() && reign.is_some();
        if wanted { self.ask(reign, now) } else { None }
    }

    fn begin(&mut self, reign: Option<Reign>, asked: Monotonic) -> u64 {
        self.counter += 1;
        let readers = std::mem::take(&mut self.waiting);
        self.rounds.insert(self.counter, Round { asked, reign, readers });
        self.counter
    }

    /// A question was answered.
    pub(super) fn on_answer(&mut self, counter: u64, index: Index, reign: Option<Reign>, now: Monotonic) {
        let Some(round) = self.rounds.remove(&counter) else { return };
        // As long as it took, twice over, and no shorter.
        self.patience = (2 * now.since(round.asked)).clamp(PATIENCE_MIN, PATIENCE_MAX);
        self.confirmed.entry(index).or_default().extend(round.readers);
        if let (Some(span), Some(reign)) = (self.span, reign.filter(|_| reign == round.reign)) {
            let until = round.asked + span;
            // Questions are answered in the order in which they were asked.
            self.lease = Some(Lease { reign, until });
        }
    }

    /// Has questions that nobody answered asked anew: raft-rs may have dropped them without a word.
    pub(super) fn give_up_old(&mut self, now: Monotonic) {
        let is_old = |round: &Round| now.since(round.asked) >= self.patience;
        let old: Vec<u64> =
            self.rounds.iter().filter(|(_, round)| is_old(round)).map(|(counter, _)| *counter).collect();
        for round in old.into_iter().filter_map(|counter| self.rounds.remove(&counter)) {
            sometimes!("a read was asked for anew");
            self.patience = (2 * self.patience).min(PATIENCE_MAX);
            self.waiting.extend(round.readers.into_iter().filter(|reader| !reader.is_closed()));
        }
    }

    /// The state has everything up to an index.
    pub(super) fn on_applied(&mut self, applied: Index) {
        while let Some(first) = self.confirmed.first_entry() {
            if *first.key() > applied {
                sometimes!("a confirmed read waited for the state");
                break;
            }
            for reader in first.remove() {
                let _ = reader.send(applied);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_before_the_fastest_clock_lets_others_lead() {
        let drift = CLOCK_DRIFT_PPM_MAX as f64 / 1e6;
        let longest = lease_span().as_secs_f64() / (1.0 - drift);
        // The first tick may come at once.
        let shortest = (ELECTION_TIMEOUT_MIN - TICK).as_secs_f64() / (1.0 + drift);
        assert!(longest <= shortest, "{longest} > {shortest}");
        assert!(longest > 0.99 * shortest, "{longest} is much less than {shortest}");
    }

    #[test]
    fn a_lease_is_bound_to_who_reigns_and_to_when_it_was_asked() {
        let (span, at) = (Duration::from_millis(800), |millis: u64| Monotonic::from_nanos(millis * 1_000_000));
        let reign = |term, change| Some((crate::ids::Term(term), Index(change)));
        let mut reads = Reads::new(Some(span));
        assert_eq!(reads.renew(reign(3, 1), at(0)), None, "nobody has read");
        assert!(!reads.holds(reign(3, 1), at(0)));
        let number = reads.renew(reign(3, 1), at(100)).expect("somebody has");
        reads.on_answer(number, Index(7), reign(3, 1), at(600));
        assert!(reads.holds(reign(3, 1), at(899)));
        for (other, now) in [(reign(3, 1), 900), (reign(4, 1), 700), (reign(3, 2), 700), (None, 700)] {
            assert!(!reads.holds(other, at(now)), "{other:?} at {now}");
        }
        // What was asked before members changed says nothing of those after.
        let number = reads.renew(reign(3, 1), at(1_000)).expect("somebody has read");
        reads.on_answer(number, Index(9), reign(3, 2), at(1_010));
        assert!(!reads.holds(reign(3, 2), at(1_020)));
        assert!(!Reads::new(None).holds(reign(3, 1), at(0)));
    }
}

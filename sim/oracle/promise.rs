//! Oracle 3: at the instant a message leaves, what it promises is already on the sender's disk (Raft paper, figure 2:
//! "updated on stable storage before responding to RPCs").
//!
//! The disk is asked the way a restart would ask: its durable image is opened as a log's journal, once in each boot; after that
//! what was added is read, unless what it said last already implies the promise: within a boot it takes nothing back. (A reboot reads all
//! of it again, and must find what was promised.) A term is promised by any
//! message sent in it, a vote by its grant and by asking for others, entries by their acknowledgement: those that the leader of the
//! term sent, and no others of the same length. Pre-votes promise nothing.

use std::collections::BTreeMap;
use std::fmt;

use raft::eraftpb::{HardState, Message, MessageType};

use super::Violations;
use crate::ids::{Index, Term};
use crate::raft::journal::Journal;
use crate::raft::log::{self, LOG_FILE};
use crate::sim::disk::{DiskCounts, SimDisk};
use crate::sim::network::MachineId;

/// What a disk has promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Promised {
    hard_state: HardState,
    last: (Index, Term),
}

impl Promised {
    /// What a restart would find on a disk.
    ///
    /// # Errors
    /// Its log does not open.
    pub fn of(disk: &SimDisk) -> Result<Self, String> {
        Look::at(disk).map(|look| look.promised)
    }

    fn in_journal(journal: &Journal) -> Result<Self, String> {
        let (hard_state, last) = log::promised(journal).map_err(|fault| fault.to_string())?;
        Ok(Self { hard_state, last })
    }

    /// Whether this takes nothing back of what was promised before. In a later term its leader may have replaced entries, and
    /// in the same one those that are older than it, by some that may be older, too; but what remains of the entries of a term
    /// when their end is gone are no others. What was known to be committed stays so.
    pub fn keeps(&self, before: &Self) -> bool {
        let (now, then) = (&self.hard_state, &before.hard_state);
        let replaced = self.last.1 != before.last.1 && before.last.1.0 < now.term;
        let same_log = self.last.0 >= before.last.0 || replaced;
        let same_term = now.term == then.term && (then.vote == 0 || now.vote == then.vote) && same_log;
        (now.term > then.term || same_term) && now.commit >= then.commit
    }

    /// Up to where the log is known to be committed.
    pub fn commit(&self) -> Index {
        Index(self.hard_state.commit)
    }

    /// Where the log ends.
    pub fn last(&self) -> Index {
        self.last.0
    }

    /// How a message promises more than this.
    fn broken(&self, message: &Message) -> Option<String> {
        let (state, last) = (&self.hard_state, self.last.0);
        let (from, kind) = (message.from, message.get_msg_type());
        if state.term < message.term {
            let text =
                format!("member {from} sent {kind:?} of term {}, its disk knows term {}", message.term, state.term);
            return Some(text);
        }
        let candidate = match kind {
            MessageType::MsgRequestVote => Some(from),
            MessageType::MsgRequestVoteResponse => Some(message.to).filter(|_| !message.reject),
            _ => None,
        };
        if let Some(candidate) = candidate.filter(|id| state.term == message.term && state.vote != *id) {
            let (term, vote) = (message.term, state.vote);
            return Some(format!("member {from} voted for {candidate} in term {term}, its disk says {vote}"));
        }
        // Once the disk knows a later term, that term's leader may have replaced what was acknowledged; one sync can
        // make both durable, and then the acknowledgement leaves after what it speaks of has come and gone.
        let beyond = accepts(message) && state.term == message.term && last.0 < message.index;
        beyond.then(|| format!("member {from} acknowledged index {}, its disk ends at {last}", message.index))
    }
}

/// Whether a message acknowledges entries.
fn accepts(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject
}

impl fmt::Display for Promised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HardState { term, vote, .. } = &self.hard_state;
        write!(f, "term {term}, a vote for {vote} and a log up to {} of term {}", self.last.0, self.last.1)
    }
}

/// What a disk promised when it was last asked.
struct Look {
    /// How much it had done.
    at: DiskCounts,
    /// Its log on a second disk.
    copy: SimDisk,
    journal: Journal,
    promised: Promised,
}

impl Look {
    fn at(disk: &SimDisk) -> Result<Self, String> {
        let copy = disk.durable(LOG_FILE);
        let journal = log::open_journal(&*copy.boot()).map_err(|fault| fault.to_string())?;
        Ok(Self { at: disk.counts(), copy, promised: Promised::in_journal(&journal)?, journal })
    }

    /// Asks again, in the same boot.
    fn again(&mut self, disk: &SimDisk) -> Result<(), String> {
        let now = disk.counts();
        if now.syncs > self.at.syncs {
            disk.copy_durable(LOG_FILE, &self.copy);
            match self.journal.catch_up() {
                Ok(()) => self.promised = Promised::in_journal(&self.journal)?,
                Err(_) => *self = Self::at(disk)?,
            }
            self.at = now;
        }
        Ok(())
    }

    /// How a message promises more than this; `sent` is of which term the entry is that it acknowledges.
    fn broken(&self, message: &Message, sent: Option<Term>) -> Option<String> {
        let (from, index) = (message.from, Index(message.index));
        let lacks = || {
            let found = match log::term_at(&self.journal, index) {
                Ok(found) => found?,
                Err(fault) => return Some(fault.to_string()),
            };
            let other = sent.filter(|sent| *sent != found && self.promised.hard_state.term == message.term)?;
            Some(format!("member {from} acknowledged {index} of term {other}, its disk has one of term {found}"))
        };
        self.promised.broken(message).or_else(lacks)
    }

    /// Whether it holds the log up to an entry of that term, if that is known.
    fn holds(&self, index: Index, term: Option<Term>) -> bool {
        let same = |term: Term| log::term_at(&self.journal, index).is_ok_and(|found| found.is_none_or(|it| it == term));
        self.promised.last.0 >= index && term.is_none_or(same)
    }
}

/// What each machine's disk promised when it was last asked.
#[derive(Default)]
pub struct Promises {
    looks: BTreeMap<MachineId, Look>,
    /// Of which term the entries are that leaders sent, by the terms that they led in.
    sent: BTreeMap<(Term, Index), Term>,
    /// Promises checked.
    pub checked: u64,
}

impl Promises {
    /// A message leaves a machine with this disk.
    pub fn on_message(&mut self, machine: MachineId, disk: &SimDisk, message: &Message, violations: &Violations) {
        use MessageType as T;
        let kind = message.get_msg_type();
        if message.term == 0 || matches!(kind, T::MsgRequestPreVote | T::MsgRequestPreVoteResponse) {
            return;
        }
        self.checked += 1;
        if kind == T::MsgAppend {
            let entries = message.entries.iter().map(|entry| (entry.index, entry.term));
            let all = entries.chain([(message.index, message.log_term)]);
            self.sent.extend(all.map(|(index, term)| ((Term(message.term), Index(index)), Term(term))));
        }
        let sent = self.sent(Term(message.term), Index(message.index)).filter(|_| accepts(message));
        match self.look(machine, disk, |look| look.broken(message, sent).is_none()) {
            Ok(look) => {
                if let Some(what) = look.broken(message, sent) {
                    violations.add("promises are durable", what);
                }
            }
            Err(what) => violations.add("promises are durable", what),
        }
    }

    /// Of which term an entry is that was sent by the leader of a term.
    pub fn sent(&self, leader: Term, index: Index) -> Option<Term> {
        self.sent.get(&(leader, index)).copied()
    }

    /// What a disk says, as it was last seen in this boot if that `will_do`: within a boot it takes back neither term nor vote,
    /// nor within a term what its leader sent.
    fn look(&mut self, machine: MachineId, disk: &SimDisk, will_do: impl Fn(&Look) -> bool) -> Result<&Look, String> {
        match self.looks.get_mut(&machine).filter(|look| look.at.boots == disk.counts().boots) {
            Some(look) if will_do(look) => {}
            Some(look) => look.again(disk)?,
            None => drop(self.looks.insert(machine, Look::at(disk)?)),
        }
        Ok(&self.looks[&machine])
    }

    /// What a disk promises: as it was last seen in this boot, if that `will_do`.
    pub fn find(
        &mut self,
        machine: MachineId,
        disk: &SimDisk,
        will_do: impl Fn(&Promised) -> bool,
    ) -> Result<&Promised, String> {
        Ok(&self.look(machine, disk, |look| will_do(&look.promised))?.promised)
    }

    /// Whether a disk holds the log up to an entry, of that term if it is known.
    pub fn holds(&mut self, machine: MachineId, disk: &SimDisk, index: Index, term: Option<Term>) -> bool {
        self.look(machine, disk, |look| look.holds(index, term)).is_ok_and(|look| look.holds(index, term))
    }

    /// What a machine's disk was last seen to promise, in whichever boot.
    pub fn last_seen(&self, machine: MachineId) -> Option<Promised> {
        self.looks.get(&machine).map(|look| look.promised.clone())
    }

    /// A machine's disk was lost.
    pub fn forget(&mut self, machine: MachineId) {
        self.looks.remove(&machine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Entry;

    fn promised(term: u64, vote: u64, last: u64, last_term: u64) -> Promised {
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.vote) = (term, vote);
        Promised { hard_state, last: (Index(last), Term(last_term)) }
    }

    fn message(kind: MessageType, (from, to): (u64, u64), term: u64) -> Message {
        Message { msg_type: kind, from, to, term, ..Message::default() }
    }

    /// What is said of a message that member 2 sends in term 3, when its disk has voted for 2 and holds an entry of each of the terms 1
    /// and 2, of which the leader of term 3 has sent another at the index 2.
    fn said_of(sent: impl Fn(&mut Message), kind: MessageType) -> bool {
        let disk = SimDisk::new("disk".into());
        let mut log = log::Log::open(&*disk.boot()).unwrap();
        let entries = [(1, 1), (2, 2)].map(|(index, term)| Entry { index, term, ..Entry::default() });
        let hard_state = HardState { term: 3, vote: 2, ..HardState::default() };
        let write = log::Write { number: 1, snapshot: None, entries: entries.to_vec(), hard_state };
        log.write(&[log::Change::Write(write)]).unwrap();
        let (mut promises, violations) = (Promises::default(), Violations::default());
        promises.sent.extend([((Term(3), Index(1)), Term(1)), ((Term(3), Index(2)), Term(3))]);
        let [same, other] = [1, 2].map(|index| {
            let term = promises.sent(Term(3), Index(index));
            promises.holds(1, &disk, Index(index), term)
        });
        assert!(same && !other && promises.holds(1, &disk, Index(2), None));
        let mut message = message(kind, (2, 1), 3);
        sent(&mut message);
        promises.on_message(1, &disk, &message, &violations);
        !violations.all().is_empty()
    }

    #[test]
    fn an_acknowledgement_is_of_what_was_sent_and_a_candidate_votes_for_itself() {
        let accepted = |index| said_of(|message| message.index = index, MessageType::MsgAppendResponse);
        assert_eq!([1, 2, 3].map(accepted), [false, true, true]);
        assert!(!said_of(|message| (message.index, message.reject) = (2, true), MessageType::MsgAppendResponse));
        assert!(!said_of(|_| {}, MessageType::MsgRequestVote));
        assert!(said_of(|message| message.from = 3, MessageType::MsgRequestVote), "the disk has a vote for 2");
    }

    #[test]
    fn what_may_change_between_two_looks() {
        let before = promised(8, 2, 222, 7);
        assert!(promised(8, 2, 222, 7).keeps(&before));
        assert!(promised(8, 2, 211, 8).keeps(&before), "the leader of the term replaced what was older");
        assert!(promised(8, 2, 211, 6).keeps(&before), "as yet by what it has of a term before");
        assert!(promised(9, 0, 100, 8).keeps(&before), "a later one may have replaced more");
        assert!(!promised(8, 2, 211, 7).keeps(&before), "entries are gone, and none is in their place");
        assert!(!promised(8, 3, 222, 7).keeps(&before), "another vote");
        assert!(!promised(7, 2, 222, 7).keeps(&before), "an earlier term");
        assert!(!promised(8, 2, 221, 8).keeps(&promised(8, 2, 222, 8)), "a leader replaces nothing of its own");
        let mut committed = before.clone();
        committed.hard_state.commit = 5;
        assert!(!promised(9, 0, 222, 7).keeps(&committed), "less is committed");
    }
}

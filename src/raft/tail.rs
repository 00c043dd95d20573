//! The log as raft-rs reads it: the newest entries in memory, the terms of all, and a note of what to fetch when it
//! asks for older ones.
//!
//! Everything that is not yet durable or not yet applied is in memory. So only a slow follower's catch-up ever reads
//! older entries, and that read is answered "temporarily unavailable" and fetched by the log's owner meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use serde::{Deserialize, Serialize};

use crate::ids::{Index, Term};
use crate::limits::{FETCHES_MAX, LOG_BYTES_KEPT, LOG_ENTRIES_KEPT, TAIL_BYTES_MAX};

/// How much of the applied log is kept for members that are behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// Entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the durable and applied log that are kept in memory; what is older is read from the disk.
    pub in_memory: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { entries: LOG_ENTRIES_KEPT, bytes: LOG_BYTES_KEPT, in_memory: TAIL_BYTES_MAX }
    }
}

impl Retention {
    /// A stretch of the log this long is forgotten at once.
    fn is_stretch(&self, entries: u64, bytes: u64) -> bool {
        entries >= (self.entries / 16).max(1) || bytes >= self.bytes / 16
    }
}

/// A read of entries that are not in memory.
#[derive(Debug)]
pub struct Fetch {
    /// First index wanted.
    pub low: Index,
    /// One past the last index wanted.
    pub high: Index,
    /// Bytes at most; the first entry comes whatever its size.
    pub bytes_max: u64,
    /// What to give back to raft-rs with the answer.
    pub context: GetEntriesContext,
}

/// The log in memory.
pub struct Tail {
    retention: Retention,
    hard_state: HardState,
    conf_state: ConfState,
    /// The last index that the log no longer holds, and its term.
    compacted: (Index, Term),
    /// Where each run of one term begins, in order.
    runs: Vec<(Index, Term)>,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Stretches of the log, the oldest first: where each ends, how many entries it has, and of how many bytes.
    stretches: VecDeque<(Index, u64, u64)>,
    /// A snapshot that may be sent.
    snapshot: Option<Snapshot>,
    /// raft-rs wants one that there is not.
    wants_snapshot: Cell<bool>,
    last: Index,
    fetches: RefCell<Vec<Fetch>>,
    /// Where fetches that were asked for and not answered begin: none is asked for twice.
    fetching: RefCell<BTreeSet<Index>>,
    /// What was fetched, while raft-rs asks for it again.
    fetched: Vec<Entry>,
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + size_of::<Entry>()
}

impl Tail {
    /// A log that was compacted up to `compacted` and holds nothing else.
    pub fn new(hard_state: HardState, conf_state: ConfState, compacted: (Index, Term), retention: Retention) -> Self {
        Self {
            retention,
            hard_state,
            conf_state,
            compacted,
            runs: Vec::new(),
            entries: VecDeque::new(),
            bytes: 0,
            stretches: VecDeque::new(),
            snapshot: None,
            wants_snapshot: Cell::new(false),
            last: compacted.0,
            fetches: RefCell::default(),
            fetching: RefCell::default(),
            fetched: Vec::new(),
        }
    }

    /// The last index of the log.
    pub fn last(&self) -> Index {
        self.last
    }

    /// The newest hard state, durable or about to be.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Notes a newer hard state.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Adds entries; they replace whatever stood at and after the first one's index.
    ///
    /// # Panics
    /// If they leave a gap or replace what was compacted.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let first = Index(first.index);
        assert!(first > self.compacted.0 && first <= self.last.next(), "entry {first} after {}", self.last);
        sometimes!(first <= self.last, "entries were replaced by another leader's");
        while self.entries.back().is_some_and(|entry| entry.index >= first.0) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
        while self.runs.last().is_some_and(|(start, _)| *start >= first) {
            self.runs.pop();
        }
        while self.stretches.back().is_some_and(|(end, ..)| *end >= first) {
            self.stretches.pop_back();
        }
        for entry in entries {
            self.count(entry);
            if self.runs.last().is_none_or(|(_, term)| term.0 != entry.term) {
                self.runs.push((Index(entry.index), Term(entry.term)));
            }
            self.bytes += size(entry);
            self.entries.push_back(entry.clone());
            self.last = Index(entry.index);
        }
    }

    fn count(&mut self, entry: &Entry) {
        let bytes = size(entry) as u64;
        match self.stretches.back_mut() {
            Some((end, count, sum)) if !self.retention.is_stretch(*count, *sum) => {
                (*end, *count, *sum) = (Index(entry.index), *count + 1, *sum + bytes);
            }
            _ => self.stretches.push_back((Index(entry.index), 1, bytes)),
        }
    }

    /// Up to where the log may be forgotten so that about so many `times` of what is to be kept is left, counted from
    /// `applied` back; `None` if there is no more than that.
    pub fn excess(&self, applied: Index, times: u64) -> Option<Index> {
        let Retention { entries: entries_kept, bytes: bytes_kept, .. } = self.retention;
        let (mut entries, mut bytes) = (0, 0);
        let kept = self.stretches.iter().rev().skip_while(|(end, ..)| *end > applied).find(|(_, count, sum)| {
            let full = entries >= entries_kept * times || bytes >= bytes_kept * times;
            (entries, bytes) = (entries + count, bytes + sum);
            full
        });
        kept.map(|(end, ..)| *end).filter(|end| *end > self.compacted.0)
    }

    /// The last index that the log no longer holds.
    pub fn compacted(&self) -> Index {
        self.compacted.0
    }

    /// Forgets everything up to `index`, and says of which term that is.
    ///
    /// # Panics
    /// If the log does not hold `index`.
    pub fn compact(&mut self, index: Index) -> Term {
        let term = Term(self.term(index.0).expect("what is compacted is in the log"));
        while self.entries.front().is_some_and(|entry| entry.index <= index.0) {
            self.bytes -= self.entries.pop_front().as_ref().map_or(0, size);
        }
        while self.runs.get(1).is_some_and(|(start, _)| *start <= index.next()) {
            self.runs.remove(0);
        }
        while self.stretches.front().is_some_and(|(end, ..)| *end <= index) {
            self.stretches.pop_front();
        }
        self.compacted = (index, term);
        self.snapshot.take_if(|snapshot| snapshot.get_metadata().index < index.0);
        term
    }

    /// Forgets everything: a snapshot takes its place.
    pub fn reset(&mut self, compacted: (Index, Term), conf_state: ConfState) {
        let hard_state = std::mem::take(&mut self.hard_state);
        *self = Self::new(hard_state, conf_state, compacted, self.retention);
    }

    /// Whether raft-rs has asked for a snapshot since the last call, and there was none.
    pub fn take_wants_snapshot(&self) -> bool {
        self.wants_snapshot.take()
    }

    /// The snapshot that may be sent.
    pub fn snapshot_ready(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// Sets the snapshot that may be sent.
    pub fn set_snapshot(&mut self, snapshot: Option<Snapshot>) {
        self.snapshot = snapshot;
    }

    /// Forgets the oldest entries up to `safe`, as far as needed to keep within [`Retention::in_memory`].
    pub fn evict(&mut self, safe: Index) {
        while self.bytes > self.retention.in_memory && self.entries.front().is_some_and(|entry| entry.index <= safe.0) {
            self.bytes -= self.entries.pop_front().as_ref().map_or(0, size);
        }
    }

    /// The reads that raft-rs asked for since the last call.
    pub fn take_fetches(&mut self) -> Vec<Fetch> {
        self.fetches.take()
    }

    /// Has what a fetch from `low` gave at hand, until [`Self::clear_fetched`].
    pub fn set_fetched(&mut self, low: Index, entries: Vec<Entry>) {
        self.fetching.borrow_mut().remove(&low);
        self.fetched = entries;
    }

    /// Lets go of what was fetched.
    pub fn clear_fetched(&mut self) {
        self.fetched.clear();
    }

    fn in_memory(&self, low: u64, high: u64) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.index;
        let start = low.checked_sub(first)? as usize;
        Some(self.entries.range(start..(high - first) as usize).cloned().collect())
    }

    fn find_fetched(&self, low: u64, high: u64) -> Option<Vec<Entry>> {
        let start = low.checked_sub(self.fetched.first()?.index)? as usize;
        let found = self.fetched.get(start..)?;
        // What was fetched may since have been replaced by another leader's entries.
        let current = |entry: &&Entry| self.term(entry.index).is_ok_and(|term| term == entry.term);
        let found: Vec<_> = found.iter().take((high - low) as usize).take_while(current).cloned().collect();
        (!found.is_empty()).then_some(found)
    }
}

impl Storage for Tail {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        assert!(low <= high && high <= self.last.0 + 1, "entries {low}..{high} of a log that ends at {}", self.last);
        if low <= self.compacted.0.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if low == high {
            return Ok(Vec::new());
        }
        let max_size = max_size.into();
        match self.in_memory(low, high).or_else(|| self.find_fetched(low, high)) {
            Some(mut entries) => {
                raft::util::limit_size(&mut entries, max_size);
                Ok(entries)
            }
            None => {
                assert!(context.can_async(), "entry {low} is needed at once and is not in memory");
                let mut fetching = self.fetching.borrow_mut();
                if fetching.len() < FETCHES_MAX && fetching.insert(Index(low)) {
                    let bytes_max = max_size.unwrap_or(u64::MAX);
                    let fetch = Fetch { low: Index(low), high: Index(high), bytes_max, context };
                    self.fetches.borrow_mut().push(fetch);
                }
                Err(Error::Store(StorageError::LogTemporarilyUnavailable))
            }
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let index = Index(index);
        if index == self.compacted.0 {
            return Ok(self.compacted.1.0);
        }
        if index < self.compacted.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let run = self.runs.partition_point(|(start, _)| *start <= index);
        Ok(self.runs[run - 1].1.0)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted.0.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |snapshot: &&Snapshot| {
            let meta = snapshot.get_metadata();
            let conf = meta.get_conf_state();
            // One from before the member joined would be refused by it; one from before the log begins is no use.
            let knows = [&conf.voters, &conf.learners, &conf.voters_outgoing].iter().any(|ids| ids.contains(&to));
            knows && meta.index >= request_index && meta.index >= self.compacted.0.0
        };
        match self.snapshot.as_ref().filter(fits) {
            Some(snapshot) => Ok(snapshot.clone()),
            None => {
                self.wants_snapshot.set(true);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(u64, u64)], bytes: usize) -> Vec<Entry> {
        let entry = |&(index, term): &(u64, u64)| {
            let mut entry = Entry::default();
            (entry.index, entry.term) = (index, term);
            entry.data = vec![0; bytes].into();
            entry
        };
        list.iter().map(entry).collect()
    }

    const KEPT: Retention = Retention { entries: 4, bytes: 1 << 40, in_memory: TAIL_BYTES_MAX };

    #[test]
    fn compaction_keeps_what_retention_says_and_the_term_before_it() {
        let mut tail = tail();
        let all: Vec<(u64, u64)> = (1..=10).map(|index| (index, 1 + index / 4)).collect();
        tail.append(&entries(&all, 0));
        assert_eq!(tail.excess(Index(4), 1), None, "no more is applied than is kept");
        assert_eq!(tail.excess(Index(9), 2), Some(Index(1)));
        assert_eq!(tail.excess(Index(9), 1), Some(Index(5)));
        assert_eq!(tail.compact(Index(5)), Term(2));
        assert_eq!((tail.first_index().unwrap(), tail.term(5).unwrap(), tail.term(8).unwrap()), (6, 2, 3));
        assert!(tail.term(4).is_err() && tail.entries(5, 7, None, GetEntriesContext::empty(true)).is_err());
        assert_eq!(tail.entries(6, 11, None, GetEntriesContext::empty(true)).unwrap().len(), 5);
        assert_eq!(tail.excess(Index(9), 1), None);
        tail.retention = Retention { entries: 100, bytes: 3 * size_of::<Entry>() as u64, ..KEPT };
        assert_eq!(tail.excess(Index(10), 1), Some(Index(7)), "bytes count, too");
    }

    #[test]
    fn a_snapshot_is_not_for_whom_it_does_not_know() {
        let mut tail = tail();
        assert!(tail.snapshot(0, 2).is_err() && tail.take_wants_snapshot());
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = 3;
        snapshot.mut_metadata().mut_conf_state().set_learners(vec![2]);
        tail.set_snapshot(Some(snapshot));
        assert!(tail.snapshot(0, 2).is_ok() && !tail.take_wants_snapshot());
        assert!(tail.snapshot(4, 2).is_err() && tail.take_wants_snapshot(), "too old");
        assert!(tail.snapshot(0, 3).is_err() && tail.take_wants_snapshot(), "of another configuration");
    }

    fn tail() -> Tail {
        Tail::new(HardState::default(), ConfState::default(), (Index(0), Term(0)), KEPT)
    }

    #[test]
    fn a_new_leader_replaces_a_suffix() {
        let mut tail = tail();
        tail.append(&entries(&[(1, 1), (2, 1), (3, 2), (4, 2)], 0));
        tail.append(&entries(&[(3, 3)], 0));
        assert_eq!(tail.last(), Index(3));
        let terms: Vec<u64> = (1..=3).map(|i| tail.term(i).unwrap()).collect();
        assert_eq!(terms, [1, 1, 3]);
        assert!(tail.term(4).is_err());
    }

    #[test]
    fn old_entries_leave_memory_and_come_back_by_fetch() {
        let mut tail = tail();
        let half = TAIL_BYTES_MAX / 2;
        let all = entries(&[(1, 1), (2, 1), (3, 1)], half);
        tail.append(&all);
        tail.evict(Index(0));
        let whole = |tail: &Tail| tail.entries(1, 4, None, GetEntriesContext::empty(true));
        assert_eq!(whole(&tail).unwrap().len(), 3, "what is not safe to forget was forgotten");
        tail.evict(Index(3));
        assert!(whole(&tail).is_err());
        let fetch = tail.take_fetches().pop().unwrap();
        assert_eq!((fetch.low, fetch.high), (Index(1), Index(4)));
        assert!(whole(&tail).is_err());
        assert!(tail.take_fetches().is_empty(), "the same fetch was asked for twice");
        tail.set_fetched(Index(1), all[..2].to_vec());
        assert_eq!(whole(&tail).unwrap().len(), 2);
        assert_eq!(tail.term(1).unwrap(), 1, "terms stay known");
    }

    #[test]
    fn a_fetch_that_was_overtaken_is_not_used() {
        let mut tail = tail();
        tail.append(&entries(&[(1, 1), (2, 1)], TAIL_BYTES_MAX));
        tail.evict(Index(2));
        tail.append(&entries(&[(2, 2)], 0));
        tail.set_fetched(Index(1), entries(&[(1, 1), (2, 1)], 0));
        let got = tail.entries(1, 3, None, GetEntriesContext::empty(true)).unwrap();
        assert_eq!(got.len(), 1);
    }
}

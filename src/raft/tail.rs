//! The log as raft-rs reads it: the newest entries in memory, the terms of all, and a note of what to fetch when it
//! asks for older ones.
//!
//! Everything that is not yet durable or not yet applied is in memory. So only a slow follower's catch-up ever reads
//! older entries, and that read is answered "temporarily unavailable" and fetched by the log's owner meanwhile.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::ids::{Index, Term};
use crate::limits::{FETCHES_MAX, TAIL_BYTES_MAX};

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
    hard_state: HardState,
    conf_state: ConfState,
    /// The last index that the log no longer holds, and its term.
    compacted: (Index, Term),
    /// Where each run of one term begins, in order.
    runs: Vec<(Index, Term)>,
    entries: VecDeque<Entry>,
    bytes: usize,
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
    pub fn new(hard_state: HardState, conf_state: ConfState, compacted: (Index, Term)) -> Self {
        Self {
            hard_state,
            conf_state,
            compacted,
            runs: Vec::new(),
            entries: VecDeque::new(),
            bytes: 0,
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
        while self.entries.back().is_some_and(|entry| entry.index >= first.0) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
        while self.runs.last().is_some_and(|(start, _)| *start >= first) {
            self.runs.pop();
        }
        for entry in entries {
            if self.runs.last().is_none_or(|(_, term)| term.0 != entry.term) {
                self.runs.push((Index(entry.index), Term(entry.term)));
            }
            self.bytes += size(entry);
            self.entries.push_back(entry.clone());
            self.last = Index(entry.index);
        }
    }

    /// Forgets the oldest entries up to `safe`, as far as needed to keep within [`TAIL_BYTES_MAX`].
    pub fn evict(&mut self, safe: Index) {
        while self.bytes > TAIL_BYTES_MAX && self.entries.front().is_some_and(|entry| entry.index <= safe.0) {
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

    fn snapshot(&self, _: u64, _: u64) -> raft::Result<Snapshot> {
        // The log is whole: no follower can be behind it.
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
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

    fn tail() -> Tail {
        Tail::new(HardState::default(), ConfState::default(), (Index(0), Term(0)))
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

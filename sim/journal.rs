//! A journal in memory, in place of a database on the simulated disk: for seeds that do not test how records are stored, but
//! what is made of them. A batch is written and then synced, two operations of the disk; a crash between them leaves it at the
//! mercy of the power, whole or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::io::{Batch, BatchChange};

/// The records of a journal.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// By names.
    pub named: BTreeMap<&'static str, Vec<u8>>,
    /// By numbers.
    pub numbered: BTreeMap<u64, Vec<u8>>,
}

impl Records {
    fn apply(&mut self, batch: &Batch) {
        for change in &batch.changes {
            match change {
                BatchChange::Name(name, record) => drop(self.named.insert(name, record.clone())),
                BatchChange::Put(number, record) => drop(self.numbered.insert(*number, record.clone())),
                BatchChange::Remove(numbers) => {
                    let mut rest = self.numbered.split_off(&numbers.start);
                    self.numbered.append(&mut rest.split_off(&numbers.end));
                }
            }
        }
    }
}

/// A journal: what is durable, and what is written but not synced.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    durable: Arc<Records>,
    unsynced: Vec<Batch>,
}

impl Stored {
    /// A journal of which this much is durable, and nothing else is written.
    pub fn of(durable: Arc<Records>) -> Self {
        Self { durable, unsynced: Vec::new() }
    }

    /// What is durable.
    pub fn durable(&self) -> Arc<Records> {
        self.durable.clone()
    }

    /// What is written: the owner of a journal waits for its sync, so only a process that comes after a killed one finds more
    /// here than what is durable.
    pub fn live(&self) -> Arc<Records> {
        let mut live = self.durable.clone();
        for batch in &self.unsynced {
            Arc::make_mut(&mut live).apply(batch);
        }
        live
    }

    /// Writes a batch.
    pub fn write(&mut self, batch: &Batch) {
        self.unsynced.push(batch.clone());
    }

    /// Makes durable what was written.
    pub fn sync(&mut self) {
        for batch in self.unsynced.drain(..) {
            Arc::make_mut(&mut self.durable).apply(&batch);
        }
    }

    /// The power goes, or a sync fails: of what was written, each batch is lost if `loses` says so, and all after it.
    pub fn cut(&mut self, mut loses: impl FnMut() -> bool) {
        let kept = self.unsynced.iter().take_while(|_| !loses()).count();
        self.unsynced.truncate(kept);
        self.sync();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(changes: &[(u64, u8)]) -> Batch {
        let mut batch = Batch::default();
        changes.iter().for_each(|(number, byte)| batch.put(*number, vec![*byte]));
        batch
    }

    fn numbers(records: &Records) -> Vec<u64> {
        records.numbered.keys().copied().collect()
    }

    #[test]
    fn batches_are_kept_or_lost_as_a_whole_and_in_order() {
        let mut stored = Stored::default();
        stored.write(&batch(&[(1, 1), (2, 1)]));
        stored.sync();
        stored.write(&batch(&[(3, 1), (4, 1)]));
        stored.write(&batch(&[(5, 1)]));
        assert_eq!(numbers(&stored.durable()), [1, 2]);
        assert_eq!(numbers(&stored.live()), [1, 2, 3, 4, 5]);
        let mut turn = 0;
        let second = || {
            turn += 1;
            turn == 2
        };
        let mut cut = stored.clone();
        cut.cut(second);
        assert_eq!(numbers(&cut.durable()), [1, 2, 3, 4]);
        stored.cut(|| true);
        assert_eq!((numbers(&stored.durable()), numbers(&stored.live())), (vec![1, 2], vec![1, 2]));
    }

    #[test]
    fn what_is_removed_is_gone_and_nothing_else() {
        let mut stored = Stored::default();
        let mut all = batch(&[(1, 1), (2, 1), (3, 1), (4, 1)]);
        all.remove(2..4);
        all.put(3, vec![9]);
        stored.write(&all);
        assert_eq!(numbers(&stored.live()), [1, 3, 4]);
        assert_eq!(stored.live().numbered[&3], [9]);
    }
}

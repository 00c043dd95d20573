//! Numbered and named records that change in atomic batches: what the log is kept in.

use std::io;
use std::ops::{ControlFlow, Range};

/// Records of bytes, by numbers and by names. Owned by one thread; calls block.
pub trait Journal: Send {
    /// The record of this name.
    ///
    /// # Errors
    /// What the storage says.
    fn named(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// The highest number.
    ///
    /// # Errors
    /// What the storage says.
    fn last(&self) -> io::Result<Option<u64>>;

    /// Calls `each` for the numbered records of a range, in order, until it breaks.
    ///
    /// # Errors
    /// What the storage says.
    fn scan(&self, range: Range<u64>, each: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>) -> io::Result<()>;

    /// Carries out a batch. When this returns all of it is durable; a crash before leaves all or nothing.
    ///
    /// # Errors
    /// What the storage says; then nobody knows what is durable.
    fn commit(&mut self, batch: &Batch) -> io::Result<()>;
}

/// Changes, in order.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Each after those before it.
    pub changes: Vec<BatchChange>,
}

/// A change of a journal.
#[derive(Clone, Debug)]
pub enum BatchChange {
    /// Sets the record of a name.
    Name(&'static str, Vec<u8>),
    /// Sets the record of a number.
    Put(u64, Vec<u8>),
    /// Removes the records of these numbers.
    Remove(Range<u64>),
}

impl Batch {
    /// Sets the record of a name.
    pub fn name(&mut self, name: &'static str, record: Vec<u8>) {
        self.changes.push(BatchChange::Name(name, record));
    }

    /// Sets the record of a number.
    pub fn put(&mut self, number: u64, record: Vec<u8>) {
        self.changes.push(BatchChange::Put(number, record));
    }

    /// Removes the records of these numbers.
    pub fn remove(&mut self, numbers: Range<u64>) {
        if !numbers.is_empty() {
            self.changes.push(BatchChange::Remove(numbers));
        }
    }
}

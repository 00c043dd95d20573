//! A node's data directory: files that hold the log and the state.

use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::Arc;

use redb::{BackendError, StorageBackend};

/// A flat directory of files, owned by one node. Names are plain file names.
///
/// A file's bytes are durable after `sync_data` on it, its existence after [`Disk::sync_dir`]. Calls block: only an
/// owner started by [`crate::io::Spawn::blocking`], or start-up before anything is served, makes them.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file, created empty if it does not exist.
    ///
    /// # Errors
    /// What the file system says, with the path.
    fn open(&self, name: &str) -> io::Result<Backend>;

    /// The names of all files, sorted.
    ///
    /// # Errors
    /// What the file system says, with the path.
    fn list(&self) -> io::Result<Vec<String>>;

    /// The length of a file, in bytes.
    ///
    /// # Errors
    /// What the file system says, with the path.
    fn size(&self, name: &str) -> io::Result<u64>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the file system says, with the path.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name, in the place of whatever has that. After a power cut either has it, until [`Disk::sync_dir`];
    /// what is open stays open.
    ///
    /// # Errors
    /// What the file system says, with the path.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes creations, removals and names durable.
    ///
    /// # Errors
    /// What the file system says, with the path.
    fn sync_dir(&self) -> io::Result<()>;

    /// Makes a file of this many bytes for which the space is really taken, durably.
    ///
    /// # Errors
    /// What the file system says, with the path; then there is no such file.
    fn reserve(&self, name: &str, bytes: u64) -> io::Result<()>;

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// What the file system says, with the path.
    fn free_bytes(&self) -> io::Result<u64>;

    /// What people call this place, for messages.
    fn describe(&self) -> String;
}

/// Opens a file for a database. One whose making was cut short is emptied if it `may_be_new`: redb writes its magic number last,
/// when all before it is synced, so a file that begins with zeros has never held anything.
///
/// # Errors
/// What the file system says, with the path.
pub fn open_for_database(disk: &dyn Disk, name: &str, may_be_new: bool) -> io::Result<Backend> {
    const MAGIC_BYTES: usize = 9;
    let file = disk.open(name)?;
    let mut begin = [0; MAGIC_BYTES];
    let read = MAGIC_BYTES.min(usize::try_from(file.len()?).unwrap_or(MAGIC_BYTES));
    file.read(0, &mut begin[..read])?;
    if may_be_new && read > 0 && begin == [0; MAGIC_BYTES] {
        sometimes!("a database whose making was cut short was made anew");
        file.set_len(0)?;
    }
    Ok(file)
}

/// An open file in the shape redb takes: a boxed [`StorageBackend`], and what is to be held until it is closed.
pub struct Backend(pub Box<dyn StorageBackend>, pub Arc<dyn Send + Sync>);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

//! A journal in a file: two tables of a redb database, one transaction and one sync a batch.

use std::io;
use std::ops::{ControlFlow, Range};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::io::{Backend, Batch, BatchChange, Journal};
use crate::limits::LOG_CACHE_BYTES;

const ENTRIES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// The journal in one file.
pub struct FileJournal {
    db: Database,
}

fn failed(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl FileJournal {
    /// Opens it, making an empty one if the file is empty.
    ///
    /// # Errors
    /// The database cannot be opened.
    pub fn open(file: Backend) -> io::Result<Self> {
        let db = Builder::new().set_cache_size(LOG_CACHE_BYTES).create_with_backend(file).map_err(failed)?;
        let has_tables = {
            let txn = db.begin_read().map_err(failed)?;
            match txn.open_table(META) {
                Ok(_) => true,
                Err(redb::TableError::TableDoesNotExist(_)) => false,
                Err(error) => return Err(failed(error)),
            }
        };
        if !has_tables {
            let txn = db.begin_write().map_err(failed)?;
            txn.open_table(META).map_err(failed)?;
            txn.open_table(ENTRIES).map_err(failed)?;
            txn.commit().map_err(failed)?;
        }
        Ok(Self { db })
    }
}

impl Journal for FileJournal {
    fn named(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let table = self.db.begin_read().map_err(failed)?.open_table(META).map_err(failed)?;
        Ok(table.get(name).map_err(failed)?.map(|row| row.value().to_vec()))
    }

    fn last(&self) -> io::Result<Option<u64>> {
        let table = self.db.begin_read().map_err(failed)?.open_table(ENTRIES).map_err(failed)?;
        Ok(table.last().map_err(failed)?.map(|(number, _)| number.value()))
    }

    fn scan(&self, range: Range<u64>, each: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>) -> io::Result<()> {
        let table = self.db.begin_read().map_err(failed)?.open_table(ENTRIES).map_err(failed)?;
        for row in table.range(range).map_err(failed)? {
            let (number, record) = row.map_err(failed)?;
            if each(number.value(), record.value()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> io::Result<()> {
        let txn = self.db.begin_write().map_err(failed)?;
        {
            let mut meta = txn.open_table(META).map_err(failed)?;
            let mut entries = txn.open_table(ENTRIES).map_err(failed)?;
            for change in &batch.changes {
                match change {
                    BatchChange::Name(name, record) => drop(meta.insert(name, &**record).map_err(failed)?),
                    BatchChange::Put(number, record) => drop(entries.insert(number, &**record).map_err(failed)?),
                    BatchChange::Remove(numbers) => {
                        entries.retain_in(numbers.clone(), |_, _| false).map_err(failed)?;
                    }
                }
            }
        }
        txn.commit().map_err(failed)
    }
}

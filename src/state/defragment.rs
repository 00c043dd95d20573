//! The state written anew into a file of its own, without what the one in use has free, while that one goes on being used.
//!
//! Rows are copied step by step, each as it is at that time. What is changed meanwhile is noted, and copied once more; when
//! little is left, the owner of the state copies that between two batches, and goes over to the new file.
//!
//! ```text
//!   owner of snapshots                          owner of the state
//!   note what changes from now on ────────────► applies, and notes
//!   rows of the first table, of the second …
//!   what has been noted, until little has ────► what has been noted since; the digests must agree
//!                                               the new file takes the old one's name, and its place
//! ```
//!
//! Nothing of it need survive a crash: the new file is removed at boot if it has not taken the old one's place.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::{Database, Durability};

use super::machine::{HEAD, StateReader, open_database, read_head, remove_file};
use super::table::{Read, Rows, TABLES, Table, View};
use crate::entry::Step;
use crate::error::{Context, Fault};
use crate::io::Disk;
use crate::limits::{CHECKPOINT_BYTES_MAX, DEFRAGMENT_CHANGES_MAX, DEFRAGMENT_ROUNDS_MAX};
use crate::proto::v1;

/// The file that is written; its name begins as those of all files that hold a state do.
pub(super) const NEW_FILE: &str = "state-defragmented.redb";

/// About what a row takes.
const ROW_BYTES: usize = 256;

/// Rows that were set or removed.
pub(super) type Changes = BTreeSet<(Table, Vec<u8>)>;

/// Whether changes are noted.
#[derive(Default)]
pub(super) enum Noted {
    /// They are not: nothing is written anew, or another state took the place of the one that was.
    #[default]
    Off,
    /// These are the ones that are to be copied.
    On(Changes),
    /// There were too many.
    TooMany,
}

impl Noted {
    /// Removes what was written, and says why.
    pub(super) fn give_up(&mut self, disk: &dyn Disk) -> Result<Step, Fault> {
        remove_file(disk, NEW_FILE)?;
        match std::mem::take(self) {
            Self::TooMany => Ok(Step::TooMany),
            Self::On(_) | Self::Off => Ok(Step::Replaced),
        }
    }

    /// Notes changes that were committed.
    pub(super) fn add(&mut self, changed: Changes) {
        if let Self::On(changes) = self {
            changes.extend(changed);
            if changes.len() > DEFRAGMENT_CHANGES_MAX {
                *self = Self::TooMany;
            }
        }
    }
}

/// What is noted. Whoever applies holds it for as long as a batch takes.
#[derive(Clone, Default)]
pub(super) struct Notes(Arc<Mutex<Noted>>);

impl Notes {
    pub(super) fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().expect("no code panics while it holds the notes")
    }
}

/// Writes a state anew.
pub struct Defragmenter {
    disk: Arc<dyn Disk>,
    reader: StateReader,
    notes: Notes,
    copy: Option<Copy>,
}

/// What has been copied.
struct Copy {
    db: Database,
    digest: u64,
    /// The table that is being copied, and after which key to go on; none when all have been.
    next: Option<(usize, Bound<Vec<u8>>)>,
    /// How often what was changed meanwhile has been copied.
    rounds: u32,
    since_durable: usize,
}

impl Defragmenter {
    pub(super) fn new(disk: Arc<dyn Disk>, reader: StateReader, notes: Notes) -> Self {
        Self { disk, reader, notes, copy: None }
    }

    /// Begins, or goes on with about `step_bytes` of rows, or with what was changed meanwhile. Nobody else may write the same state
    /// anew.
    ///
    /// # Errors
    /// What was written cannot be removed; this member must stop.
    pub fn step(&mut self, step_bytes: usize) -> Result<Step, Fault> {
        self.try_step(step_bytes).or_else(|fault| {
            self.copy = None;
            *self.notes.lock() = Noted::Off;
            not_written(&fault, &*self.disk)
        })
    }

    fn try_step(&mut self, step_bytes: usize) -> Result<Step, Fault> {
        let Some(copy) = &mut self.copy else {
            self.copy = Some(Copy::begin(&*self.disk)?);
            *self.notes.lock() = Noted::On(Changes::new());
            return Ok(Step::More);
        };
        let changes = match &mut *self.notes.lock() {
            Noted::On(changes) if copy.next.is_none() => Some(std::mem::take(changes)),
            Noted::On(_) => None,
            noted @ (Noted::Off | Noted::TooMany) => {
                self.copy = None;
                return noted.give_up(&*self.disk);
            }
        };
        // After the changes were taken: it has all of them.
        let (_, view) = self.reader.view()?;
        match changes {
            None => copy.rows(&view, step_bytes)?,
            Some(changes) if changes.len() * ROW_BYTES > step_bytes && copy.rounds < DEFRAGMENT_ROUNDS_MAX => {
                sometimes!("much was changed while a state was written anew");
                copy.rounds += 1;
                copy.changes(&view, &changes, false)?;
            }
            Some(changes) => {
                copy.changes(&view, &changes, true)?;
                self.copy = None;
                return Ok(Step::Whole);
            }
        }
        Ok(Step::More)
    }
}

fn what() -> String {
    format!("write {NEW_FILE}")
}

impl Copy {
    fn begin(disk: &dyn Disk) -> Result<Self, Fault> {
        remove_file(disk, NEW_FILE)?;
        let db = open_database(disk, NEW_FILE)?;
        Ok(Self { db, digest: 0, next: Some((0, Bound::Unbounded)), rounds: 0, since_durable: 0 })
    }

    /// The next rows.
    fn rows(&mut self, view: &View, step_bytes: usize) -> Result<(), Fault> {
        let Some((number, after)) = self.next.take() else { return Ok(()) };
        let table = TABLES[number];
        let (mut bytes, mut last) = (0, None);
        let mut txn = self.db.begin_write().context(what)?;
        {
            let mut rows = Rows::new(&txn, self.digest);
            view.scan(table, (after, Bound::Unbounded), &mut |key, value| {
                rows.put(table, key, value)?;
                bytes += key.len() + value.len();
                if bytes < step_bytes {
                    return Ok(ControlFlow::Continue(()));
                }
                last = Some(key.to_vec());
                Ok(ControlFlow::Break(()))
            })?;
            self.digest = rows.digest();
        }
        self.since_durable += bytes;
        if self.since_durable as u64 >= CHECKPOINT_BYTES_MAX {
            self.since_durable = 0;
        } else {
            txn.set_durability(Durability::None).context(what)?;
        }
        txn.commit().context(what)?;
        self.next = match last {
            Some(key) => Some((number, Bound::Excluded(key))),
            None => Some((number + 1, Bound::Unbounded)).filter(|(next, _)| *next < TABLES.len()),
        };
        Ok(())
    }

    /// Rows that were changed. After the last of them everything is durable, and its head says what the digest is.
    fn changes(&mut self, view: &View, changes: &Changes, last: bool) -> Result<(), Fault> {
        let mut txn = self.db.begin_write().context(what)?;
        {
            let mut rows = Rows::new(&txn, self.digest);
            copy_changes(view, &mut rows, changes)?;
            rows.make_tables()?;
            self.digest = rows.digest();
            if last {
                let mut head = txn.open_table(HEAD).context(what)?;
                let sum = v1::Head { rows_digest: self.digest, ..read_head(&head)? };
                head.insert((), &*prost::Message::encode_to_vec(&sum)).context(what)?;
            }
        }
        if !last {
            txn.set_durability(Durability::None).context(what)?;
        }
        txn.commit().context(what)
    }
}

/// What there is goes on being used if it cannot be written anew.
pub(super) fn not_written(fault: &Fault, disk: &dyn Disk) -> Result<Step, Fault> {
    sometimes!("a state could not be written anew");
    tracing::warn!(%fault, "the state is not written anew");
    remove_file(disk, NEW_FILE)?;
    Ok(Step::Failed)
}

/// Gives rows the values that they have in `from`, or removes them.
pub(super) fn copy_changes(from: &impl Read, to: &mut Rows<'_>, changes: &Changes) -> Result<(), Fault> {
    for (table, key) in changes {
        match from.get(*table, key)? {
            Some(value) => to.put(*table, key, &value)?,
            None => to.remove(*table, key).map(drop)?,
        }
    }
    Ok(())
}

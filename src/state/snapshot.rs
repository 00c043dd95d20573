//! The whole state as a series of chunks, and the way back.
//!
//! Chunks carry rows, not pages: what a member sends does not depend on how its file came about or on the version of
//! the database below. Each is an encoded [`v1::SnapshotPart`].

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use prost::Message;
use redb::{Database, Durability, ReadableDatabase};

use super::machine::{HEAD, StateReader, file_bytes, file_name, head_digest, open_database, read_head, remove_file};
use super::table::{ALL, Read, Rows, TABLES, Table, View, full_digest, number_key};
use super::{format, member};
use crate::error::{Context, Fault, ImportError};
use crate::ids::Index;
use crate::io::Disk;
use crate::limits::{CHECKPOINT_BYTES_MAX, TOKENS_BEYOND_A_COPY};
use crate::proto::v1;

/// Gives the state as it is now to `each` in chunks of about `chunk_bytes`, and returns its head.
///
/// # Errors
/// The database failed, or `each` did.
pub fn export(
    reader: &StateReader,
    chunk_bytes: usize,
    each: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<v1::Head, Fault> {
    let (head, view) = reader.view()?;
    let mut part = v1::SnapshotPart { head: Some(head.clone()), rows: Vec::new() };
    let mut bytes = 0;
    for (number, table) in TABLES.into_iter().enumerate() {
        view.scan(table, (Bound::Unbounded, Bound::Unbounded), &mut |key, value| {
            let (key, value) = (key.to_vec(), value.to_vec());
            bytes += key.len() + value.len();
            part.rows.push(v1::SnapshotRow { table: number as u32, key: key.into(), value: value.into() });
            if bytes >= chunk_bytes {
                each(&std::mem::take(&mut part).encode_to_vec())?;
                bytes = 0;
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    if part != v1::SnapshotPart::default() {
        each(&part.encode_to_vec())?;
    }
    Ok(head)
}

/// Whether the disk has room for a copy of the state, and for a floor below that; if not, why not.
///
/// # Errors
/// The disk failed.
pub fn room_for_copy(disk: &dyn Disk, floor: u64) -> Result<Result<(), String>, Fault> {
    let size = file_bytes(disk).context(|| "the size of the state".into())?;
    room_for(disk, size, floor)
}

/// The same for so many bytes.
///
/// # Errors
/// The disk failed.
pub fn room_for(disk: &dyn Disk, bytes: u64, floor: u64) -> Result<Result<(), String>, Fault> {
    let free = disk.free_bytes().context(|| "the space that is left".into())?;
    if free >= bytes.saturating_add(floor) {
        return Ok(Ok(()));
    }
    let (place, mib) = (disk.describe(), |bytes: u64| bytes >> 20);
    let (free, bytes, floor) = (mib(free), mib(bytes), mib(floor));
    Ok(Err(format!(
        "{place} has {free} MiB left, and a copy of the state takes {bytes} MiB, with {floor} MiB to remain"
    )))
}

/// A state under construction, in a file of its own.
pub struct Import {
    disk: Arc<dyn Disk>,
    index: Index,
    db: Database,
    head: Option<v1::Head>,
    rows_digest: u64,
    /// Table and key of the newest row.
    last: Option<(u32, Vec<u8>)>,
    since_durable: usize,
}

impl Import {
    /// Begins the state at `index`. What an earlier attempt left is removed.
    ///
    /// # Errors
    /// The disk or the database failed.
    pub fn begin(disk: Arc<dyn Disk>, index: Index) -> Result<Self, Fault> {
        remove(&*disk, index)?;
        let db = open_database(&*disk, &file_name(index))?;
        Ok(Self { disk, index, db, head: None, rows_digest: 0, last: None, since_durable: 0 })
    }

    /// Adds the next chunk.
    ///
    /// # Errors
    /// It is not what follows, or the database failed.
    pub fn add(&mut self, chunk: &[u8]) -> Result<(), ImportError> {
        let invalid = |why: String| Err(ImportError::Invalid(format!("a chunk of a snapshot: {why}")));
        let part = match v1::SnapshotPart::decode(chunk) {
            Ok(part) => part,
            Err(error) => return invalid(error.to_string()),
        };
        if part.head.is_some() != self.head.is_none() {
            return invalid("the head belongs to the first, and only there".into());
        }
        let what = || format!("build {}", file_name(self.index));
        let mut txn = self.db.begin_write().context(what)?;
        {
            let mut rows = Rows::new(&txn, self.rows_digest);
            for row in &part.rows {
                let Some(table) = TABLES.get(row.table as usize) else {
                    return invalid(format!("table {} is unknown to this version", row.table));
                };
                if self.last.as_ref().is_some_and(|(table, key)| (*table, &key[..]) >= (row.table, &row.key[..])) {
                    return invalid(format!("a row of table {} is out of order", row.table));
                }
                rows.put(*table, &row.key, &row.value)?;
                self.last = Some((row.table, row.key.to_vec()));
            }
            self.rows_digest = rows.digest();
        }
        self.since_durable += chunk.len();
        if self.since_durable as u64 >= CHECKPOINT_BYTES_MAX {
            self.since_durable = 0;
        } else {
            txn.set_durability(Durability::None).context(what)?;
        }
        txn.commit().context(what)?;
        self.head = self.head.take().or(part.head);
        Ok(())
    }

    /// Ends it: the whole is durable, and its digest, counted anew from every row, is the one given.
    ///
    /// # Errors
    /// It is another state, or the database failed.
    pub fn finish(self, expected: u64) -> Result<(), ImportError> {
        let what = || format!("finish {}", file_name(self.index));
        let mut head = self.head.ok_or_else(|| ImportError::Invalid("a snapshot without a head".into()))?;
        if head.applied_index != self.index.0 {
            let text = format!("a snapshot announced at {} is of {}", self.index, head.applied_index);
            return Err(ImportError::Invalid(text));
        }
        let txn = self.db.begin_write().context(what)?;
        Rows::new(&txn, self.rows_digest).make_tables()?;
        txn.open_table(HEAD).context(what)?.insert((), &*head.encode_to_vec()).context(what)?;
        txn.commit().context(what)?;
        head.rows_digest = full_digest(&View::new(self.db.begin_read().context(what)?, Arc::default()))?;
        if head_digest(&head) != expected {
            let text =
                format!("the state at {} has the digest {:016x}, not {expected:016x}", self.index, head_digest(&head));
            return Err(ImportError::Invalid(text));
        }
        // It is what the leader has: to fetch it again would not help.
        format::check(head.format, format::NEWEST).map_err(|why| Fault::because(what(), why))?;
        drop(self.db);
        Ok(self.disk.sync_dir().context(what)?)
    }
}

/// Makes a state at `index` that is not in use that of a new cluster: `founder` and `conf_state` say who its only member is, and what
/// Raft's configuration is, by the id that this one gets; `auth_key` is what users' tokens are signed with there. Gives that member.
///
/// # Errors
/// The disk or the database failed.
pub fn refound(
    disk: &dyn Disk,
    index: Index,
    founder: impl FnOnce(u64) -> v1::Member,
    conf_state: impl FnOnce(u64) -> bytes::Bytes,
    auth_key: [u8; 32],
) -> Result<v1::Member, Fault> {
    let name = file_name(index);
    let what = || format!("found a new cluster with {name} in {}", disk.describe());
    let db = open_database(disk, &name)?;
    let txn = db.begin_write().context(what)?;
    let founder = {
        let mut table = txn.open_table(HEAD).context(what)?;
        let mut head = read_head(&table)?;
        let mut rows = Rows::new(&txn, head.rows_digest);
        for mut before in member::all(&rows)? {
            before.set_role(v1::MemberRole::Removed);
            rows.put(Table::Members, &number_key(before.id), &before.encode_to_vec())?;
        }
        head.members_added += 1;
        let founder = founder(head.members_added);
        rows.put(Table::Members, &number_key(founder.id), &founder.encode_to_vec())?;
        for table in [Table::Sessions, Table::Replies] {
            let mut keys = Vec::new();
            rows.scan(table, ALL, &mut |key, _| {
                keys.push(key.to_vec());
                Ok(ControlFlow::Continue(()))
            })?;
            keys.iter().try_for_each(|key| rows.remove(table, key).map(|_| ()))?;
        }
        head.sessions_live = 0;
        // What was assigned since the copy was made knows later tokens than it, and so do those whom attempts wrote to.
        head.attempts_assigned = head.attempts_assigned.saturating_add(TOKENS_BEYOND_A_COPY);
        head.conf_state = conf_state(founder.id);
        if head.auth_enabled {
            head.auth_key = auth_key.to_vec().into();
        }
        head.rows_digest = rows.digest();
        table.insert((), &*head.encode_to_vec()).context(what)?;
        founder
    };
    txn.commit().context(what)?;
    Ok(founder)
}

/// Removes a state that is not, or no more, in use; nothing happens if there is none.
///
/// # Errors
/// The disk failed.
pub fn remove(disk: &dyn Disk, index: Index) -> Result<(), Fault> {
    remove_file(disk, &file_name(index))
}

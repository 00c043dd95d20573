//! The small table interface that the kinds use: byte rows in named, ordered tables. Only this file and
//! [`super::machine`] know that redb is below.
//!
//! Every change of a row also changes the running digest: the sum of the hashes of all rows. A sum does not depend on
//! the order of changes, so a state rebuilt from a snapshot has the digest of the one that was replayed.

use std::cell::OnceCell;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, RwLock};

use prost::Message;
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use xxhash_rust::xxh3::Xxh3;

use super::auth::Auth;
use super::defragment::Changes;
use super::kv::KeyIndex;
use crate::error::{Context, Fault};
use crate::io::Wanted;

/// A table of the replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Revision and number to the [`crate::proto::mvccpb::KeyValue`] that was written there.
    Versions,
    /// Session to [`crate::proto::v1::SessionRow`].
    Sessions,
    /// Session and sequence to the encoded [`crate::proto::v1::Reply`].
    Replies,
    /// Member id to [`crate::proto::v1::Member`].
    Members,
    /// Worker id to [`crate::proto::v1::Worker`].
    Workers,
    /// Task id to [`crate::proto::v1::Task`].
    Tasks,
    /// Task name to the id of its latest task.
    TaskNames,
    /// Ids of the tasks without a worker.
    Pending,
    /// Worker and task id, for the tasks that a worker has.
    Assigned,
    /// Number in the order of ending to task id, for the tasks that have ended.
    Ended,
    /// Lease on keys to [`crate::proto::v1::LeaseRow`].
    Leases,
    /// End and lease, for all leases: in the order in which they end.
    LeaseEnds,
    /// Member and type to [`crate::proto::etcdserverpb::AlarmMember`], for the alarms that are raised.
    Alarms,
    /// Name to [`crate::proto::v1::UserRow`].
    Users,
    /// Name to [`crate::proto::v1::RoleRow`].
    Roles,
}

/// All tables, in the order of their numbers.
pub const TABLES: [Table; 15] = [
    Table::Versions,
    Table::Sessions,
    Table::Replies,
    Table::Members,
    Table::Workers,
    Table::Tasks,
    Table::TaskNames,
    Table::Pending,
    Table::Assigned,
    Table::Ended,
    Table::Leases,
    Table::LeaseEnds,
    Table::Alarms,
    Table::Users,
    Table::Roles,
];

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Versions => "versions",
            Self::Sessions => "sessions",
            Self::Replies => "replies",
            Self::Members => "members",
            Self::Workers => "workers",
            Self::Tasks => "tasks",
            Self::TaskNames => "task names",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Ended => "ended",
            Self::Leases => "leases",
            Self::LeaseEnds => "lease ends",
            Self::Alarms => "alarms",
            Self::Users => "users",
            Self::Roles => "roles",
        }
    }

    fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}

/// A range of keys.
pub type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// All keys that begin with `prefix`.
pub fn prefix_range(prefix: &[u8]) -> KeyRange {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (Bound::Included(prefix.to_vec()), Bound::Excluded(end));
        }
    }
    (Bound::Included(prefix.to_vec()), Bound::Unbounded)
}

/// What a scan calls for each row.
pub type EachRow<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Fault>;

/// Rows that can be read.
pub trait Read {
    /// The row's value, if the row exists.
    ///
    /// # Errors
    /// The database failed.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// Calls `each` for the rows of a range in the order of their keys, until it breaks.
    ///
    /// # Errors
    /// The database failed, or `each` did.
    fn scan(&self, table: Table, range: KeyRange, each: EachRow<'_>) -> Result<(), Fault>;

    /// Whether somebody still wants to know: what takes long looks now and then.
    ///
    /// # Errors
    /// Nobody does.
    fn check_wanted(&self) -> Result<(), Fault> {
        Ok(())
    }
}

/// The message in a row, if the row exists.
///
/// # Errors
/// The database failed, or the row is not one.
pub fn find<M: Message + Default>(rows: &impl Read, table: Table, key: &[u8]) -> Result<Option<M>, Fault> {
    let row = rows.get(table, key)?;
    row.map(|row| M::decode(&*row).context(|| failed("decode a row of", table))).transpose()
}

/// Calls `each` for the messages in a range of rows, in the order of their keys, until it breaks.
///
/// # Errors
/// The database failed, a row is not one, or `each` failed.
pub fn each<M: Message + Default>(
    rows: &impl Read,
    table: Table,
    range: KeyRange,
    mut each: impl FnMut(M) -> Result<ControlFlow<()>, Fault>,
) -> Result<(), Fault> {
    rows.scan(table, range, &mut |_, row| each(M::decode(row).context(|| failed("decode a row of", table))?))
}

/// A key that is a number: keys are in the order of their numbers.
pub fn number_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The number of a key of [`number_key`].
///
/// # Errors
/// It is none.
pub fn key_number(key: &[u8]) -> Result<u64, Fault> {
    Ok(u64::from_be_bytes(key.try_into().context(|| "read a key that is a number".to_string())?))
}

/// All keys.
pub const ALL: KeyRange = (Bound::Unbounded, Bound::Unbounded);

fn failed(verb: &str, table: Table) -> String {
    format!("{verb} the table {} of the state", table.name())
}

fn borrow(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

fn get_row(
    rows: &impl ReadableTable<&'static [u8], &'static [u8]>,
    table: Table,
    key: &[u8],
) -> Result<Option<Vec<u8>>, Fault> {
    let row = rows.get(key).context(|| failed("read", table))?;
    Ok(row.map(|value| value.value().to_vec()))
}

fn scan_rows(
    rows: &impl ReadableTable<&'static [u8], &'static [u8]>,
    table: Table,
    range: &KeyRange,
    each: EachRow<'_>,
) -> Result<(), Fault> {
    let range: (Bound<&[u8]>, Bound<&[u8]>) = (borrow(&range.0), borrow(&range.1));
    for row in rows.range::<&[u8]>(range).context(|| failed("scan", table))? {
        let (key, value) = row.context(|| failed("scan", table))?;
        if each(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The rows as of one committed point, and the index of keys that belongs to them.
pub struct View {
    txn: ReadTransaction,
    tables: [OnceCell<ReadOnlyTable<&'static [u8], &'static [u8]>>; TABLES.len()],
    index: Arc<RwLock<KeyIndex>>,
    auth: Arc<Auth>,
    wanted: Wanted,
}

impl View {
    pub(super) fn new(txn: ReadTransaction, index: Arc<RwLock<KeyIndex>>) -> Self {
        let (auth, wanted) = Default::default();
        Self { txn, tables: [const { OnceCell::new() }; TABLES.len()], index, auth, wanted }
    }

    /// The same, as long as somebody wants it.
    pub(super) fn shown_while(self, wanted: Wanted) -> Self {
        Self { wanted, ..self }
    }

    /// The same, with what users may do as of this point.
    pub(super) fn with_auth(self, auth: Arc<Auth>) -> Self {
        Self { auth, ..self }
    }

    /// What users may do.
    pub fn auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    /// The index. It may know newer versions than the rows do.
    pub(super) fn index(&self) -> &RwLock<KeyIndex> {
        &self.index
    }

    fn table(&self, table: Table) -> Result<&ReadOnlyTable<&'static [u8], &'static [u8]>, Fault> {
        let cell = &self.tables[table as usize];
        if let Some(opened) = cell.get() {
            return Ok(opened);
        }
        let opened = self.txn.open_table(table.definition()).context(|| failed("open", table))?;
        Ok(cell.get_or_init(|| opened))
    }
}

impl Read for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.check_wanted()?;
        get_row(self.table(table)?, table, key)
    }

    fn scan(&self, table: Table, range: KeyRange, each: EachRow<'_>) -> Result<(), Fault> {
        scan_rows(self.table(table)?, table, &range, &mut |key, row| {
            self.check_wanted()?;
            each(key, row)
        })
    }

    fn check_wanted(&self) -> Result<(), Fault> {
        if self.wanted.is_wanted() { Ok(()) } else { Err(Fault::new("nobody waits for what was asked any more")) }
    }
}

type Opened<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

/// The rows inside a write transaction. A table is opened when it is first needed: most transactions need few.
pub struct Rows<'txn> {
    txn: &'txn WriteTransaction,
    tables: [OnceCell<Opened<'txn>>; TABLES.len()],
    digest: u64,
    /// What was changed, if that is noted.
    changed: Option<Changes>,
}

impl<'txn> Rows<'txn> {
    /// The rows of a transaction. `digest` is that of the rows there are.
    pub(super) fn new(txn: &'txn WriteTransaction, digest: u64) -> Self {
        Self { txn, tables: [const { OnceCell::new() }; TABLES.len()], digest, changed: None }
    }

    /// The same, which notes what is changed if that is `wanted`.
    pub(super) fn noting(self, wanted: bool) -> Self {
        Self { changed: wanted.then(Changes::new), ..self }
    }

    /// What was changed, if that was noted.
    pub(super) fn changed(&mut self) -> Changes {
        self.changed.take().unwrap_or_default()
    }

    fn note(&mut self, table: Table, key: &[u8]) {
        if let Some(changed) = &mut self.changed {
            changed.insert((table, key.to_vec()));
        }
    }

    /// Makes the tables that do not exist, which readers expect to.
    pub(super) fn make_tables(&self) -> Result<(), Fault> {
        TABLES.into_iter().try_for_each(|table| self.table(table).map(|_| ()))
    }

    fn table(&self, table: Table) -> Result<&Opened<'txn>, Fault> {
        let cell = &self.tables[table as usize];
        if let Some(opened) = cell.get() {
            return Ok(opened);
        }
        let opened = self.txn.open_table(table.definition()).context(|| failed("open", table))?;
        Ok(cell.get_or_init(|| opened))
    }

    fn table_mut(&mut self, table: Table) -> Result<&mut Opened<'txn>, Fault> {
        self.table(table)?;
        Ok(self.tables[table as usize].get_mut().expect("it was opened in the line above"))
    }

    /// The digest of all rows as they are now.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Sets a row.
    ///
    /// # Errors
    /// The database failed.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let before = self.table_mut(table)?.insert(key, value).context(|| failed("write to", table))?;
        let before = before.map(|before| row_digest(table, key, before.value()));
        self.digest = self.digest.wrapping_sub(before.unwrap_or_default()).wrapping_add(row_digest(table, key, value));
        self.note(table, key);
        Ok(())
    }

    /// Removes a row; false if there was none.
    ///
    /// # Errors
    /// The database failed.
    pub fn remove(&mut self, table: Table, key: &[u8]) -> Result<bool, Fault> {
        Ok(self.take(table, key)?.is_some())
    }

    /// Removes a row; how many bytes its value had, if there was one.
    ///
    /// # Errors
    /// The database failed.
    pub fn take(&mut self, table: Table, key: &[u8]) -> Result<Option<usize>, Fault> {
        let before = self.table_mut(table)?.remove(key).context(|| failed("remove from", table))?;
        let before = before.map(|before| (row_digest(table, key, before.value()), before.value().len()));
        self.digest = self.digest.wrapping_sub(before.map_or(0, |(digest, _)| digest));
        self.note(table, key);
        Ok(before.map(|(_, bytes)| bytes))
    }
}

impl Read for Rows<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        get_row(self.table(table)?, table, key)
    }

    fn scan(&self, table: Table, range: KeyRange, each: EachRow<'_>) -> Result<(), Fault> {
        scan_rows(self.table(table)?, table, &range, each)
    }
}

/// The hash of one row. Lengths go in so that no two rows are hashed as the same bytes.
pub fn row_digest(table: Table, key: &[u8], value: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&[table as u8]);
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(value);
    hash.digest()
}

/// The digest of all rows, computed anew from what the tables hold.
///
/// # Errors
/// The database failed.
pub fn full_digest(rows: &impl Read) -> Result<u64, Fault> {
    let mut sum = 0u64;
    for table in TABLES {
        rows.scan(table, (Bound::Unbounded, Bound::Unbounded), &mut |key, value| {
            sum = sum.wrapping_add(row_digest(table, key, value));
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!(prefix_range(b"ab"), (Bound::Included(b"ab".to_vec()), Bound::Excluded(b"ac".to_vec())));
        assert_eq!(prefix_range(&[1, 255]), (Bound::Included(vec![1, 255]), Bound::Excluded(vec![2])));
        assert_eq!(prefix_range(&[255]).1, Bound::Unbounded);
        assert_eq!(prefix_range(b"").1, Bound::Unbounded);
    }
}

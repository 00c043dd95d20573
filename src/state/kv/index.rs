//! Which versions each key has, and where their rows are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use prost::Message;

use super::super::table::{ALL, Read, Table};
use super::bounds;
use crate::error::{Context, Fault};
use crate::ids::LeaseId;
use crate::limits::SELECT_KEYS_MAX;
use crate::proto::mvccpb::KeyValue;

/// Where a version's row is: its revision, and its number among the changes of that revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The revision.
    pub revision: u64,
    /// Counted from 0.
    pub number: u32,
}

/// Bytes of a row's key.
const POSITION_BYTES: usize = 12;

impl Position {
    /// The row's key: rows are in the order of their positions.
    pub fn key(self) -> [u8; POSITION_BYTES] {
        let mut key = [0; POSITION_BYTES];
        key[..8].copy_from_slice(&self.revision.to_be_bytes());
        key[8..].copy_from_slice(&self.number.to_be_bytes());
        key
    }

    /// The position of a row.
    ///
    /// # Errors
    /// The key is none.
    pub fn of(key: &[u8]) -> Result<Self, Fault> {
        let (revision, number) = key.split_at_checked(8).unwrap_or_default();
        let what = || format!("read the position {key:?} of a key's version");
        let revision = u64::from_be_bytes(revision.try_into().context(what)?);
        Ok(Self { revision, number: u32::from_be_bytes(number.try_into().context(what)?) })
    }
}

/// One version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Where its row is.
    pub at: Position,
    /// The revision at which the key came into being.
    pub created: u64,
    /// How often it was set since; 0: this is where it was removed.
    pub count: u64,
}

/// What was swept away.
pub struct Swept {
    /// The rows that are not needed any more.
    pub rows: Vec<Position>,
    /// The key to go on with, if that was not all.
    pub next: Option<Bytes>,
}

/// What a key has been.
#[derive(Default)]
struct Versions {
    /// Oldest first.
    all: Vec<Version>,
    /// The lease that it is under now; 0: none.
    lease: LeaseId,
}

/// All keys with their versions, and what is under which lease. Built from the rows and changed with them; readers of an older
/// view look for what is not newer than their revision.
#[derive(Default)]
pub struct KeyIndex {
    keys: BTreeMap<Bytes, Versions>,
    /// The keys that are under each lease now.
    leased: BTreeMap<LeaseId, BTreeSet<Bytes>>,
    /// Up to this revision what was superseded may be gone: who reads a view from before it was compacted needs another.
    swept: u64,
    /// What all rows take, keys and values.
    bytes: u64,
}

/// What a row takes whose value has so many bytes.
fn row_bytes(len: usize) -> u64 {
    (POSITION_BYTES + len) as u64
}

/// The newest version at a revision, unless the key does not exist there.
fn live(versions: &[Version], revision: u64) -> Option<Version> {
    let after = versions.partition_point(|version| version.at.revision <= revision);
    versions[..after].last().copied().filter(|version| version.count > 0)
}

impl KeyIndex {
    /// The index of what the rows hold, which were compacted up to a revision.
    ///
    /// # Errors
    /// The database failed, or a row is not one.
    pub fn load(rows: &impl Read, compacted: u64) -> Result<Self, Fault> {
        let mut index = Self { swept: compacted, ..Self::default() };
        rows.scan(Table::Versions, ALL, &mut |key, row| {
            let (at, len) = (Position::of(key)?, row.len());
            let row = KeyValue::decode(row).context(|| format!("decode the version at {at:?}"))?;
            let created = u64::try_from(row.create_revision).context(|| format!("read the version at {at:?}"))?;
            let count = u64::try_from(row.version).context(|| format!("read the version at {at:?}"))?;
            index.add(&row.key, LeaseId(row.lease), |_| Version { at, created, count });
            index.note_written(len);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(index)
    }

    /// Up to which revision what was superseded may be gone.
    pub fn swept(&self) -> u64 {
        self.swept
    }

    /// Bytes that the rows take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes that a row of so many bytes was written.
    pub fn note_written(&mut self, len: usize) {
        self.bytes += row_bytes(len);
    }

    /// Notes that a row of so many bytes was removed.
    pub fn note_removed(&mut self, len: usize) {
        self.bytes -= row_bytes(len);
    }

    /// Sets a key, which is under this lease from now on (0: under none). Gives what it is now.
    pub fn set(&mut self, key: &[u8], at: Position, lease: LeaseId) -> Version {
        self.add(key, lease, |before| match before {
            Some(before) => Version { at, count: before.count + 1, ..before },
            None => Version { at, created: at.revision, count: 1 },
        })
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &[u8], at: Position) {
        self.add(key, LeaseId(0), |_| Version { at, created: 0, count: 0 });
    }

    /// Adds the version of a key that comes after what it is, and has it under a lease.
    fn add(&mut self, key: &[u8], lease: LeaseId, next: impl FnOnce(Option<Version>) -> Version) -> Version {
        let (version, before) = match self.keys.get_mut(key) {
            Some(versions) => {
                let version = next(live(&versions.all, u64::MAX));
                versions.all.push(version);
                (version, std::mem::replace(&mut versions.lease, lease))
            }
            None => {
                let version = next(None);
                // A key of its own, for what it was decoded from may be a whole batch.
                self.keys.insert(Bytes::copy_from_slice(key), Versions { all: vec![version], lease });
                (version, LeaseId(0))
            }
        };
        if before != lease {
            self.note_lease(key, before, lease);
        }
        version
    }

    fn note_lease(&mut self, key: &[u8], before: LeaseId, lease: LeaseId) {
        if let Some(keys) = self.leased.get_mut(&before) {
            keys.remove(key);
            if keys.is_empty() {
                self.leased.remove(&before);
            }
        }
        if lease != LeaseId(0) {
            let (key, _) = self.keys.get_key_value(key).expect("it was added above");
            self.leased.entry(lease).or_default().insert(key.clone());
        }
    }

    /// The keys that are under a lease now, in order.
    pub fn leased(&self, lease: LeaseId) -> impl Iterator<Item = &Bytes> {
        self.leased.get(&lease).into_iter().flatten()
    }

    /// The newest version of a key, if the key exists.
    pub fn newest(&self, key: &[u8]) -> Option<Version> {
        self.at(key, u64::MAX)
    }

    /// What a key is at a revision, if it exists there.
    pub fn at(&self, key: &[u8], revision: u64) -> Option<Version> {
        live(&self.keys.get(key)?.all, revision)
    }

    /// Calls `each` for the keys of a range that exist at a revision, in order, until it breaks. Gives how many keys were looked at, and the
    /// key to go on with, if there are more than are looked at in one go.
    pub fn walk(
        &self,
        (key, range_end): (&[u8], &[u8]),
        revision: u64,
        mut each: impl FnMut(&Bytes, Version) -> ControlFlow<()>,
    ) -> (usize, Option<Bytes>) {
        let mut looked = 0;
        for (key, versions) in bounds(key, range_end).into_iter().flat_map(|range| self.keys.range::<[u8], _>(range)) {
            if looked == SELECT_KEYS_MAX {
                return (looked, Some(key.clone()));
            }
            looked += 1;
            let exists = live(&versions.all, revision);
            if exists.is_some_and(|version| each(key, version).is_break()) {
                break;
            }
        }
        (looked, None)
    }

    /// Forgets versions that only revisions before `compacted` can see, beginning with the key `from`: at most `rows_max` of
    /// them, of at most `keys_max` keys.
    pub fn sweep(&mut self, from: &[u8], compacted: u64, rows_max: usize, keys_max: usize) -> Swept {
        let mut swept = Swept { rows: Vec::new(), next: None };
        let mut empty = Vec::new();
        self.swept = compacted;
        let keys = self.keys.range_mut::<[u8], _>((Bound::Included(from), Bound::Unbounded));
        for (number, (key, Versions { all: versions, .. })) in keys.enumerate() {
            if number == keys_max || swept.rows.len() == rows_max {
                swept.next = Some(key.clone());
                break;
            }
            // What the compacted revision changed stays, for whoever is told of changes from there on.
            let before = versions.partition_point(|version| version.at.revision < compacted);
            let changed = versions.get(before).is_some_and(|version| version.at.revision == compacted);
            // The last before is what it sees, unless it changed that, or that is that there is no such key.
            let seen = live(versions, compacted).is_some() && !changed;
            let gone = before - usize::from(seen);
            let now = gone.min(rows_max - swept.rows.len());
            swept.rows.extend(versions.drain(..now).map(|version| version.at));
            if versions.len() < versions.capacity() / 4 {
                versions.shrink_to_fit();
            }
            if versions.is_empty() {
                empty.push(key.clone());
            }
            if now < gone {
                swept.next = Some(key.clone());
                break;
            }
        }
        for key in empty {
            self.keys.remove(&key);
        }
        swept
    }
}

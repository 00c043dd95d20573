//! Reading the store as of one revision.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::{RwLock, RwLockReadGuard};

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use super::super::table::{Read, Table, View};
use super::index::{KeyIndex, Position, Version};
use super::{check, header, signed};
use crate::error::{AuthReject, Context, Fault, KvReject, Reject};
use crate::limits::LOOK_BYTES;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    Compare, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::v1;

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// That is the answer.
    Rejected(Reject),
    /// The view is from before a compaction, and what it would show is being swept away: take another.
    Overtaken,
    /// The database failed.
    Fault(Fault),
}

impl From<Fault> for NoAnswer {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<KvReject> for NoAnswer {
    fn from(reject: KvReject) -> Self {
        Self::Rejected(reject.into())
    }
}

impl From<AuthReject> for NoAnswer {
    fn from(reject: AuthReject) -> Self {
        Self::Rejected(reject.into())
    }
}

/// One change of a key.
#[derive(Clone, Debug)]
pub struct Change {
    at: Position,
    /// What the key is now; with version 0, if it was removed.
    pub now: KeyValue,
}

/// What a range holds.
pub(super) struct Selection {
    /// Keys and where their rows are, in order, as many as were asked for.
    pub(super) found: Vec<(Bytes, Position)>,
    /// How many there are in all.
    pub(super) count: usize,
    /// How many keys were looked at, with those that do not exist.
    pub(super) looked: usize,
}

/// What it takes to read a range.
pub(super) struct Weight {
    /// The bytes of the rows, and [`LOOK_BYTES`] for each key that is looked at. Not of all of them, if that is more than was asked about.
    pub(super) bytes: u64,
    /// The keys that exist.
    pub(super) count: usize,
}

/// The store as of one revision.
pub struct Store<'a, R> {
    rows: &'a R,
    index: &'a RwLock<KeyIndex>,
    /// The newest revision that it shows.
    revision: u64,
    compacted: u64,
}

impl<'a> Store<'a, View> {
    /// The store as a view shows it, to which the head belongs.
    pub fn of(head: &v1::Head, view: &'a View) -> Self {
        Self::new(view, view.index(), head.revision, head.compacted)
    }
}

impl<'a, R: Read> Store<'a, R> {
    pub(super) fn new(rows: &'a R, index: &'a RwLock<KeyIndex>, revision: u64, compacted: u64) -> Self {
        Self { rows, index, revision, compacted }
    }

    /// Calls `each` for the keys of a range that exist at a revision, in order, until it breaks. Says how many keys were looked at, with those
    /// that do not exist there. Others want the index, too: it is let go of now and then.
    fn walk(
        &self,
        (key, range_end): (&[u8], &[u8]),
        revision: u64,
        mut each: impl FnMut(&Bytes, Version) -> ControlFlow<()>,
    ) -> Result<usize, NoAnswer> {
        let (mut looked, mut next) = self.index()?.walk((key, range_end), revision, &mut each);
        while let Some(from) = next {
            self.rows.check_wanted()?;
            let more;
            (more, next) = self.index()?.walk((&from, range_end), revision, &mut each);
            looked += more;
        }
        Ok(looked)
    }

    /// The keys of a range that exist at a revision, the first `limit` of them (all: `usize::MAX`).
    pub(super) fn select(&self, range: (&[u8], &[u8]), revision: u64, limit: usize) -> Result<Selection, NoAnswer> {
        let (mut found, mut count) = (Vec::new(), 0);
        let looked = self.walk(range, revision, |key, version| {
            count += 1;
            if found.len() < limit {
                found.push((key.clone(), version.at));
            }
            ControlFlow::Continue(())
        })?;
        Ok(Selection { found, count, looked })
    }

    /// The index, if it still knows all that this view shows.
    fn index(&self) -> Result<RwLockReadGuard<'_, KeyIndex>, NoAnswer> {
        let index = self.index.read().expect("no code panics while it holds the index");
        if index.swept() > self.compacted { Err(NoAnswer::Overtaken) } else { Ok(index) }
    }

    pub(super) fn row(&self, at: Position) -> Result<KeyValue, Fault> {
        let row = self.rows.get(Table::Versions, &at.key())?;
        let row =
            row.ok_or_else(|| Fault::new(format!("the index knows a version at {at:?}, and there is no such row")))?;
        KeyValue::decode(&*row).context(|| format!("decode the version at {at:?}"))
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The oldest revision that can be read.
    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// When a key that exists came into being.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn created(&self, key: &[u8]) -> Result<Option<u64>, NoAnswer> {
        Ok(self.index()?.at(key, self.revision).map(|version| version.created))
    }

    /// The key of a range that came into being last, of those that did so before a revision; and that revision.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn created_before(&self, range: (&[u8], &[u8]), before: u64) -> Result<Option<(Bytes, u64)>, NoAnswer> {
        let mut last: Option<(Bytes, u64)> = None;
        self.walk(range, self.revision, |key, version| {
            let is_later = last.as_ref().is_none_or(|(_, created)| version.created >= *created);
            if version.created < before && is_later {
                last = Some((key.clone(), version.created));
            }
            ControlFlow::Continue(())
        })?;
        Ok(last)
    }

    /// The key of a range that came into being first, unless its last change was at the revision `known`.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn created_first(&self, range: (&[u8], &[u8]), known: u64) -> Result<Option<KeyValue>, NoAnswer> {
        let mut first: Option<Version> = None;
        self.walk(range, self.revision, |_, version| {
            let order = |version: &Version| (version.created, version.at);
            if first.as_ref().is_none_or(|first| order(&version) < order(first)) {
                first = Some(version);
            }
            ControlFlow::Continue(())
        })?;
        let news = first.filter(|version| version.at.revision != known);
        Ok(news.map(|version| self.row(version.at)).transpose()?)
    }

    /// What was changed from a revision on, in order: whole revisions, as many as come within so many changes and bytes, and one
    /// in any case. Also the last revision that was looked at.
    ///
    /// # Errors
    /// The database failed.
    pub fn changes(&self, from: u64, changes_max: usize, bytes_max: usize) -> Result<(Vec<Change>, u64), Fault> {
        let (mut changes, mut bytes, mut last) = (Vec::<Change>::new(), 0, self.revision);
        let start = Position { revision: from, number: 0 }.key().to_vec();
        let range = (Bound::Included(start), Bound::Unbounded);
        self.rows.scan(Table::Versions, range, &mut |key, row| {
            let at = Position::of(key)?;
            let before = changes.last().map_or(at.revision, |change| change.at.revision);
            if at.revision > before && (changes.len() >= changes_max || bytes >= bytes_max) {
                last = before;
                return Ok(ControlFlow::Break(()));
            }
            bytes += row.len();
            let now = KeyValue::decode(row).context(|| format!("decode the version at {at:?}"))?;
            changes.push(Change { at, now });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((changes, last))
    }

    /// A hash of what can be read up to a revision (0: the newest): the same on all members, however much of what was compacted each
    /// has swept away.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn hash(&self, asked: i64) -> Result<u32, NoAnswer> {
        let revision = self.check_revision(asked)?;
        let seen = self.select((&[0], &[0]), self.compacted, usize::MAX)?.found;
        let seen: BTreeSet<Position> = seen.into_iter().map(|(_, at)| at).collect();
        let mut hash = Xxh3::new();
        let end = Position { revision: revision + 1, number: 0 }.key().to_vec();
        self.rows.scan(Table::Versions, (Bound::Unbounded, Bound::Excluded(end)), &mut |key, row| {
            let at = Position::of(key)?;
            if at.revision > self.compacted || seen.contains(&at) {
                hash.update(key);
                hash.update(&(row.len() as u64).to_le_bytes());
                hash.update(row);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((hash.digest() >> 32) as u32)
    }

    /// What a key was before the revision of a change, if that is still there.
    ///
    /// # Errors
    /// The database failed.
    pub fn before(&self, change: &Change) -> Result<Option<KeyValue>, Fault> {
        // What came into being was nothing before, also where it had been removed at the same revision: so etcd has it.
        if change.at.revision <= self.compacted || change.now.version == 1 {
            return Ok(None);
        }
        let before = {
            let index = self.index.read().expect("no code panics while it holds the index");
            index.at(&change.now.key, change.at.revision - 1)
        };
        // The index may know less than this view: what has been swept away since is not told any more.
        before.map(|version| self.row(version.at)).transpose()
    }

    /// The revision that a range asks for, where 0 means the newest.
    ///
    /// # Errors
    /// It is compacted, or not there yet.
    pub(super) fn check_revision(&self, asked: i64) -> Result<u64, KvReject> {
        match u64::try_from(asked) {
            Err(_) | Ok(0) => Ok(self.revision),
            Ok(asked) if asked > self.revision => Err(KvReject::Future { asked, newest: self.revision }),
            Ok(asked) if asked < self.compacted => Err(KvReject::Compacted { asked, compacted: self.compacted }),
            Ok(asked) => Ok(asked),
        }
    }

    /// The keys of a range.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub fn range(&self, range: &RangeRequest) -> Result<RangeResponse, NoAnswer> {
        check::check_range(range)?;
        let revision = self.check_revision(range.revision)?;
        let (limit, wanted) = wanted(range);
        let selection = self.select((&range.key, &range.range_end), revision, wanted)?;
        let mut kvs = Vec::with_capacity(selection.found.len());
        for (_, at) in &selection.found {
            let row = self.row(*at)?;
            if within(range, &row) {
                kvs.push(row);
            }
        }
        sort(&mut kvs, range.sort_target(), range.sort_order());
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if range.keys_only {
            kvs.iter_mut().for_each(|row| row.value.clear());
        }
        Ok(RangeResponse { header: header(self.revision), kvs, more, count: signed(selection.count as u64) })
    }

    /// What it takes to read the first `limit` keys of a range.
    pub(super) fn weigh(
        &self,
        range: (&[u8], &[u8]),
        revision: u64,
        limit: usize,
        enough: u64,
    ) -> Result<Weight, NoAnswer> {
        let selection = self.select(range, revision, limit)?;
        let mut bytes = selection.looked as u64 * LOOK_BYTES;
        for (_, at) in &selection.found {
            if bytes > enough {
                break;
            }
            bytes += self.rows.get(Table::Versions, &at.key())?.map_or(0, |row| row.len() as u64);
        }
        Ok(Weight { bytes, count: selection.count })
    }

    /// Whether a comparison holds: for every key of its range, and for none if there is none, as if it had been there and
    /// empty; but an absent value is like no value.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub(super) fn compare(&self, compare: &Compare) -> Result<bool, NoAnswer> {
        let range = (&*compare.key, &*compare.range_end);
        let (mut is_there, mut all) = (false, true);
        if looks_into(compare) {
            let found = self.select(range, self.revision, usize::MAX)?.found;
            is_there = !found.is_empty();
            for (_, at) in &found {
                if !holds(compare, &self.row(*at)?) {
                    return Ok(false);
                }
            }
        } else {
            self.walk(range, self.revision, |_, version| {
                (is_there, all) = (true, holds(compare, &numbers(version)));
                if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        Ok(if is_there {
            all
        } else {
            compare.target() != CompareTarget::Value && holds(compare, &KeyValue::default())
        })
    }

    /// Whether all comparisons of a transaction hold.
    pub(super) fn succeeds(&self, txn: &TxnRequest) -> Result<bool, NoAnswer> {
        for compare in &txn.compare {
            if !self.compare(compare)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A transaction that only reads, see [`super::only_reads`].
    ///
    /// # Errors
    /// See [`NoAnswer`]; an operation that changes something is refused as none.
    pub fn read_txn(&self, txn: &TxnRequest) -> Result<TxnResponse, NoAnswer> {
        check::check_txn(txn)?;
        self.reads(txn)
    }

    fn reads(&self, txn: &TxnRequest) -> Result<TxnResponse, NoAnswer> {
        let succeeded = self.succeeds(txn)?;
        let mut responses = Vec::new();
        for operation in branch(txn, succeeded) {
            let response = match &operation.request {
                Some(Request::RequestRange(range)) => Response::ResponseRange(self.range(range)?),
                Some(Request::RequestTxn(txn)) => Response::ResponseTxn(inner(self.reads(txn)?)),
                _ => return Err(KvReject::KeyNotFound.into()),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: header(self.revision), succeeded, responses })
    }
}

/// What came of a transaction within another, as etcd says it: the revision stands in the outer one's header.
pub(super) fn inner(reply: TxnResponse) -> TxnResponse {
    TxnResponse { header: Some(ResponseHeader::default()), ..reply }
}

/// What a transaction does.
pub(super) fn branch(txn: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &txn.success } else { &txn.failure }
}

/// How many keys a range gives at most, and how many are read for that.
pub(super) fn wanted(range: &RangeRequest) -> (usize, usize) {
    let limit = usize::try_from(range.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let is_bounded =
        [range.min_mod_revision, range.max_mod_revision, range.min_create_revision, range.max_create_revision]
            != [0; 4];
    // What is chosen among all needs all.
    let read = match range.count_only {
        true => 0,
        false if is_bounded || range.sort_order() != SortOrder::None => usize::MAX,
        false => limit.saturating_add(1),
    };
    (limit, read)
}

/// Whether a key is within the bounds on revisions.
fn within(range: &RangeRequest, row: &KeyValue) -> bool {
    let between = |revision: i64, min: i64, max: i64| (min == 0 || revision >= min) && (max == 0 || revision <= max);
    between(row.mod_revision, range.min_mod_revision, range.max_mod_revision)
        && between(row.create_revision, range.min_create_revision, range.max_create_revision)
}

fn sort(kvs: &mut [KeyValue], target: SortTarget, order: SortOrder) {
    // They are in the order of their keys; another target without an order means ascending.
    let compare = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match order {
        SortOrder::Descend => kvs.sort_by(|a, b| compare(b, a)),
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(compare),
    }
}

/// Whether a comparison is of more than the numbers of a version.
pub(super) fn looks_into(compare: &Compare) -> bool {
    matches!(compare.target(), CompareTarget::Value | CompareTarget::Lease)
}

/// What a version is like, but for what only its row says.
fn numbers(version: Version) -> KeyValue {
    KeyValue {
        create_revision: signed(version.created),
        mod_revision: signed(version.at.revision),
        version: signed(version.count),
        ..KeyValue::default()
    }
}

fn holds(compare: &Compare, row: &KeyValue) -> bool {
    // What is not given is 0, or empty.
    let number = |has: i64, given: Option<i64>| has.cmp(&given.unwrap_or_default());
    let given = &compare.target_union;
    let ordering = match (compare.target(), given) {
        (CompareTarget::Version, Some(TargetUnion::Version(given))) => number(row.version, Some(*given)),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(given))) => number(row.create_revision, Some(*given)),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(given))) => number(row.mod_revision, Some(*given)),
        (CompareTarget::Lease, Some(TargetUnion::Lease(given))) => number(row.lease, Some(*given)),
        (CompareTarget::Value, Some(TargetUnion::Value(given))) => row.value.cmp(given),
        (CompareTarget::Version, _) => number(row.version, None),
        (CompareTarget::Create, _) => number(row.create_revision, None),
        (CompareTarget::Mod, _) => number(row.mod_revision, None),
        (CompareTarget::Lease, _) => number(row.lease, None),
        (CompareTarget::Value, _) => row.value.as_ref().cmp(&[]),
    };
    match compare.result() {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
        CompareResult::NotEqual => ordering != Ordering::Equal,
    }
}

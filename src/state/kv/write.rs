//! Changing the store: one revision for each transaction that changes anything.

use std::sync::RwLockWriteGuard;

use bytes::Bytes;
use prost::Message;

use super::super::machine::Apply;
use super::super::table::{Rows, Table};
use super::super::{format, lease};
use super::index::{KeyIndex, Position, Version};
use super::read::{NoAnswer, Store, Weight, branch, inner, looks_into, wanted};
use super::{check, header, is_within, signed};
use crate::error::{Fault, KvReject, Reject};
use crate::ids::LeaseId;
use crate::limits::{SWEEP_KEYS_MAX, SWEEP_ROWS_MAX};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, ResponseOp, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::v1;

/// An answer, or the refusal that is one.
type Answer<T> = Result<Result<T, Reject>, Fault>;

/// What of a transaction will be done.
#[derive(Default)]
struct Chosen<'a> {
    /// Whether its comparisons hold, and those of each inner one on the way.
    branches: Vec<bool>,
    /// What is set, removed and read on the way.
    puts: Vec<&'a PutRequest>,
    deletes: Vec<&'a DeleteRangeRequest>,
    reads: Vec<&'a RangeRequest>,
}

/// A transaction under way.
struct Writer<'a, 'txn> {
    apply: &'a mut Apply<'txn>,
    /// The revision before it.
    before: u64,
    /// Changes so far.
    changes: u32,
}

pub(in super::super) fn put(apply: &mut Apply<'_>, put: &PutRequest) -> Answer<PutResponse> {
    let weigh = |writer: &mut Writer<'_, '_>| {
        // If both are wrong, etcd names this one first; in a transaction, the other.
        writer.check_lease(put)?;
        writer.check_kept(put)?;
        writer.weigh_put(put)
    };
    answer(check::check_put(put), apply, weigh, |writer, ()| writer.put(put))
}

pub(in super::super) fn delete_range(
    apply: &mut Apply<'_>,
    delete: &DeleteRangeRequest,
) -> Answer<DeleteRangeResponse> {
    let weigh = |writer: &mut Writer<'_, '_>| writer.weigh_delete(delete);
    answer(check::check_delete_range(delete), apply, weigh, |writer, _| writer.delete_range(delete))
}

pub(in super::super) fn txn(apply: &mut Apply<'_>, txn: &TxnRequest) -> Answer<TxnResponse> {
    let checked = if apply.has(format::BOUNDED) { check::check_txn(txn) } else { check::check_way(txn) };
    let weigh = |writer: &mut Writer<'_, '_>| {
        // All comparisons see what was before the transaction, and nothing is changed if anything cannot be done.
        let mut chosen = Chosen::default();
        writer.choose(txn, &mut chosen)?;
        // If more than one thing is wrong, etcd names what is set before what is read.
        chosen.reads.iter().try_for_each(|range| writer.store().check_revision(range.revision).map(|_| ()))?;
        chosen.puts.iter().try_for_each(|put| writer.weigh_put(put))?;
        let weighed = chosen.deletes.iter().map(|delete| Ok((*delete, writer.weigh_delete(delete)?)));
        let removed: Vec<_> = weighed.collect::<Result<_, NoAnswer>>()?;
        chosen.reads.iter().try_for_each(|range| writer.weigh_read(range, &chosen.puts, &removed))?;
        Ok(chosen.branches)
    };
    answer(checked, apply, weigh, |writer, branches| writer.txn(txn, &mut branches.into_iter()))
}

/// Says that revisions before this one cannot be read any more.
pub(in super::super) fn compact(apply: &mut Apply<'_>, compact: &CompactionRequest) -> Answer<CompactionResponse> {
    let (newest, compacted) = (apply.head.revision, apply.head.compacted);
    let asked = u64::try_from(compact.revision).unwrap_or_default();
    if asked <= compacted {
        return Ok(Err(KvReject::Compacted { asked, compacted }.into()));
    }
    if asked > newest {
        return Ok(Err(KvReject::Future { asked, newest }.into()));
    }
    apply.head.compacted = asked;
    apply.head.sweep_from = Some(Default::default());
    Ok(Ok(CompactionResponse { header: header(newest) }))
}

/// Removes some of what was compacted from the database. Gives the number of versions.
pub(in super::super) fn sweep(apply: &mut Apply<'_>) -> Result<u64, Fault> {
    let Some(from) = apply.head.sweep_from.take() else {
        sometimes!("what was compacted had been swept away before");
        return Ok(0);
    };
    let swept = {
        let mut index = apply.index.write().expect("no code panics while it holds the index");
        index.sweep(&from, apply.head.compacted, SWEEP_ROWS_MAX, SWEEP_KEYS_MAX)
    };
    for at in &swept.rows {
        let removed = apply.rows.take(Table::Versions, &at.key())?;
        let len = removed.unwrap_or_else(|| panic!("the index knew a version at {at:?}, and there was no such row"));
        apply.index.write().expect("no code panics while it holds the index").note_removed(len);
    }
    apply.head.sweep_from = swept.next;
    Ok(swept.rows.len() as u64)
}

/// Removes the keys under a lease, all at one revision.
pub(in super::super) fn drop_leased(apply: &mut Apply<'_>, lease: LeaseId) -> Result<(), Fault> {
    let keys: Vec<Bytes> = {
        let index = apply.index.read().expect("no code panics while it holds the index");
        index.leased(lease).cloned().collect()
    };
    let before = apply.head.revision;
    let mut writer = Writer { apply, before, changes: 0 };
    keys.iter().try_for_each(|key| writer.delete(key))?;
    let revision = writer.revision();
    apply.head.revision = revision;
    Ok(())
}

/// Carries out what has been checked, as one transaction: `weigh` looks at what is there, and says what is to be read; then `run` changes it, if
/// the entry has room for that.
fn answer<'txn, T, W>(
    checked: Result<(), KvReject>,
    apply: &mut Apply<'txn>,
    weigh: impl FnOnce(&mut Writer<'_, 'txn>) -> Result<W, NoAnswer>,
    run: impl FnOnce(&mut Writer<'_, 'txn>, W) -> Result<T, NoAnswer>,
) -> Answer<T> {
    if let Err(reject) = checked {
        return Ok(Err(reject.into()));
    }
    let before = apply.head.revision;
    let mut writer = Writer { apply, before, changes: 0 };
    let result = weigh(&mut writer).and_then(|weighed| {
        writer.apply.budget.admit()?;
        run(&mut writer, weighed)
    });
    let revision = writer.revision();
    apply.budget.end(result.is_ok());
    match result {
        Ok(reply) => {
            apply.head.revision = revision;
            Ok(Ok(reply))
        }
        Err(NoAnswer::Rejected(reject)) => {
            assert_eq!(revision, before, "what is refused changes nothing");
            Ok(Err(reject))
        }
        Err(NoAnswer::Overtaken) => unreachable!("what applies is the newest there is"),
        Err(NoAnswer::Fault(fault)) => Err(fault),
    }
}

impl<'txn> Writer<'_, 'txn> {
    /// The store's revision, with this transaction if it has changed anything.
    fn revision(&self) -> u64 {
        self.before + u64::from(self.changes > 0)
    }

    fn store(&self) -> Store<'_, Rows<'txn>> {
        Store::new(&self.apply.rows, &self.apply.index, self.revision(), self.apply.head.compacted)
    }

    fn newest(&self, key: &[u8]) -> Option<Version> {
        self.apply.index.read().expect("no code panics while it holds the index").newest(key)
    }

    /// Writes the next change, which the index has already. If that fails, the index is built anew.
    fn write(&mut self, at: Position, row: KeyValue) -> Result<(), Fault> {
        let value = KeyValue { mod_revision: signed(at.revision), ..row }.encode_to_vec();
        self.apply.rows.put(Table::Versions, &at.key(), &value)?;
        self.index().note_written(value.len());
        self.changes += 1;
        Ok(())
    }

    fn index(&self) -> RwLockWriteGuard<'_, KeyIndex> {
        self.apply.index.write().expect("no code panics while it holds the index")
    }

    /// Where the next change goes.
    fn next(&self) -> Position {
        Position { revision: self.before + 1, number: self.changes }
    }

    /// Checks that there is something to be kept, if that is asked for.
    fn check_kept(&self, put: &PutRequest) -> Result<(), NoAnswer> {
        let keeps = put.ignore_value || put.ignore_lease;
        if keeps && self.newest(&put.key).is_none() { Err(KvReject::KeyNotFound.into()) } else { Ok(()) }
    }

    fn check_lease(&self, put: &PutRequest) -> Result<(), NoAnswer> {
        let lease = LeaseId(put.lease);
        let is_there = lease == LeaseId(0) || lease::find(&self.apply.rows, lease)?.is_some();
        if is_there { Ok(()) } else { Err(KvReject::LeaseNotFound(lease).into()) }
    }

    /// Charges the command with what is to be read, before anything is changed. Gives how many keys exist in a range.
    fn charge(
        &mut self,
        weigh: impl FnOnce(&Store<'_, Rows<'txn>>, u64) -> Result<Weight, NoAnswer>,
    ) -> Result<usize, NoAnswer> {
        if !self.apply.has(format::BOUNDED) {
            return Ok(0);
        }
        let left = self.apply.budget.left()?;
        let weight = weigh(&self.store(), left)?;
        self.apply.budget.charge(weight.bytes)?;
        Ok(weight.count)
    }

    /// Charges it with the first `limit` keys of a range, as they are now.
    fn weigh(&mut self, (key, range_end): (&[u8], &[u8]), limit: usize) -> Result<usize, NoAnswer> {
        if range_end.is_empty() && limit == 0 {
            return Ok(1);
        }
        self.charge(|store, left| store.weigh((key, range_end), store.revision(), limit, left))
    }

    /// Charges it with what a range reads in a transaction, which sets some keys and removes others, so many of them: what is set may be read,
    /// and what stands behind what is removed.
    fn weigh_read(
        &mut self,
        range: &RangeRequest,
        puts: &[&PutRequest],
        removed: &[(&DeleteRangeRequest, usize)],
    ) -> Result<(), NoAnswer> {
        let keys = (&*range.key, &*range.range_end);
        let meets = |delete: &DeleteRangeRequest| {
            is_within(&delete.key, keys.0, keys.1) || is_within(keys.0, &delete.key, &delete.range_end)
        };
        let removed: usize = removed.iter().filter(|(delete, _)| meets(delete)).map(|(_, count)| count).sum();
        let (is_newest, limit) = (range.revision <= 0, wanted(range).1);
        let is_seen = |put: &&&PutRequest| is_newest && limit > 0 && is_within(&put.key, keys.0, keys.1);
        let set: u64 = puts.iter().filter(is_seen).map(|put| put.encoded_len() as u64).sum();
        let limit = if is_newest && limit > 0 { limit.saturating_add(removed) } else { limit };
        self.charge(|store, left| {
            let weight = store.weigh(keys, store.check_revision(range.revision)?, limit, left.saturating_sub(set))?;
            Ok(Weight { bytes: set + weight.bytes, ..weight })
        })?;
        Ok(())
    }

    fn weigh_put(&mut self, put: &PutRequest) -> Result<(), NoAnswer> {
        if looks_back(put) {
            self.weigh((&put.key, &[]), 1)?;
        }
        Ok(())
    }

    /// Also says how many keys it removes, at most.
    fn weigh_delete(&mut self, delete: &DeleteRangeRequest) -> Result<usize, NoAnswer> {
        self.weigh((&delete.key, &delete.range_end), if delete.prev_kv { usize::MAX } else { 0 })
    }

    fn put(&mut self, put: &PutRequest) -> Result<PutResponse, NoAnswer> {
        let before = if looks_back(put) { self.newest(&put.key) } else { None };
        let prev = before.map(|version| self.store().row(version.at)).transpose()?;
        let kept = prev.clone().unwrap_or_default();
        let lease = if put.ignore_lease { kept.lease } else { put.lease };
        let at = self.next();
        let version = self.index().set(&put.key, at, LeaseId(lease));
        let row = KeyValue {
            key: put.key.clone(),
            create_revision: signed(version.created),
            version: signed(version.count),
            value: if put.ignore_value { kept.value } else { put.value.clone() },
            lease,
            ..KeyValue::default()
        };
        self.write(at, row)?;
        Ok(PutResponse { header: header(self.revision()), prev_kv: prev.filter(|_| put.prev_kv) })
    }

    fn delete(&mut self, key: &Bytes) -> Result<(), Fault> {
        let at = self.next();
        self.index().remove(key, at);
        self.write(at, KeyValue { key: key.clone(), ..KeyValue::default() })
    }

    fn delete_range(&mut self, delete: &DeleteRangeRequest) -> Result<DeleteRangeResponse, NoAnswer> {
        let found = self.store().select((&delete.key, &delete.range_end), self.revision(), usize::MAX)?.found;
        let mut prev_kvs = Vec::new();
        for (key, at) in &found {
            if delete.prev_kv {
                prev_kvs.push(self.store().row(*at)?);
            }
            self.delete(key)?;
        }
        Ok(DeleteRangeResponse { header: header(self.revision()), deleted: signed(found.len() as u64), prev_kvs })
    }

    /// Decides which branch of the transaction, and of each inner one on the way, is done, and checks what is set in them. Both
    /// in the order in which [`Self::txn`] comes by.
    fn choose<'a>(&mut self, txn: &'a TxnRequest, chosen: &mut Chosen<'a>) -> Result<(), NoAnswer> {
        for compare in &txn.compare {
            let read = if looks_into(compare) { usize::MAX } else { 0 };
            self.weigh((&compare.key, &compare.range_end), read)?;
        }
        let succeeded = self.store().succeeds(txn)?;
        chosen.branches.push(succeeded);
        for operation in branch(txn, succeeded) {
            match &operation.request {
                Some(Request::RequestPut(put)) => {
                    self.check_kept(put)?;
                    self.check_lease(put)?;
                    // Removed before it is kept (etcd dies of this one).
                    let gone = |delete: &&DeleteRangeRequest| is_within(&put.key, &delete.key, &delete.range_end);
                    if (put.ignore_value || put.ignore_lease) && chosen.deletes.iter().any(gone) {
                        return Err(KvReject::KeyNotFound.into());
                    }
                    chosen.puts.push(put);
                }
                Some(Request::RequestRange(range)) => chosen.reads.push(range),
                Some(Request::RequestTxn(txn)) => self.choose(txn, chosen)?,
                Some(Request::RequestDeleteRange(delete)) => chosen.deletes.push(delete),
                None => {}
            }
        }
        Ok(())
    }

    fn txn(&mut self, txn: &TxnRequest, path: &mut impl Iterator<Item = bool>) -> Result<TxnResponse, NoAnswer> {
        let succeeded = path.next().expect("the choice was made for all inner transactions on the way");
        let mut responses = Vec::new();
        for operation in branch(txn, succeeded) {
            let response = match &operation.request {
                Some(Request::RequestRange(range)) => Response::ResponseRange(self.store().range(range)?),
                Some(Request::RequestPut(put)) => Response::ResponsePut(self.put(put)?),
                Some(Request::RequestDeleteRange(delete)) => Response::ResponseDeleteRange(self.delete_range(delete)?),
                Some(Request::RequestTxn(txn)) => Response::ResponseTxn(inner(self.txn(txn, path)?)),
                None => return Err(KvReject::KeyNotFound.into()),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: header(self.revision()), succeeded, responses })
    }
}

/// Whether what the key was before is needed.
fn looks_back(put: &PutRequest) -> bool {
    put.prev_kv || put.ignore_value || put.ignore_lease
}

/// Whether there is something to sweep away.
pub fn is_sweeping(head: &v1::Head) -> bool {
    head.sweep_from.is_some()
}

//! What can be checked of a request without the state: by the API before it proposes, and again when it is applied.
//! The rules are etcd's.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use crate::error::KvReject;
use crate::limits::{REQUEST_BYTES_MAX, TXN_ALL_MAX, TXN_DEPTH_MAX, TXN_OPERATIONS_MAX};
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

fn check_key(key: &[u8]) -> Result<(), KvReject> {
    if key.is_empty() { Err(KvReject::KeyMissing) } else { Ok(()) }
}

fn check_size(message: &impl Message) -> Result<(), KvReject> {
    match message.encoded_len() {
        len if len > REQUEST_BYTES_MAX => Err(KvReject::TooLarge(len as u64)),
        _ => Ok(()),
    }
}

/// Checks a range.
///
/// # Errors
/// What is wrong with it.
pub fn check_range(range: &RangeRequest) -> Result<(), KvReject> {
    check_key(&range.key)?;
    let known = SortOrder::try_from(range.sort_order).is_ok() && SortTarget::try_from(range.sort_target).is_ok();
    if known { Ok(()) } else { Err(KvReject::InvalidSort) }
}

/// Checks a put.
///
/// # Errors
/// What is wrong with it.
pub fn check_put(put: &PutRequest) -> Result<(), KvReject> {
    check_key(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(KvReject::ValueGiven);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(KvReject::LeaseGiven);
    }
    check_size(put)
}

/// Checks a delete.
///
/// # Errors
/// What is wrong with it.
pub fn check_delete_range(delete: &DeleteRangeRequest) -> Result<(), KvReject> {
    check_key(&delete.key)?;
    check_size(delete)
}

/// Checks a transaction: every request in it, how many there are, and that no key is changed twice on any path.
///
/// # Errors
/// What is wrong with it.
pub fn check_txn(txn: &TxnRequest) -> Result<(), KvReject> {
    match operations(txn) {
        all if all > TXN_ALL_MAX => Err(KvReject::TooManyOperations(all as u64)),
        _ => check_way(txn),
    }
}

/// Comparisons and operations in a transaction, with those of inner ones.
fn operations(txn: &TxnRequest) -> usize {
    let inner = |operation: &RequestOp| match &operation.request {
        Some(Request::RequestTxn(txn)) => operations(txn),
        _ => 0,
    };
    let own = txn.compare.len() + txn.success.len() + txn.failure.len();
    own + txn.success.iter().chain(&txn.failure).map(inner).sum::<usize>()
}

/// The same, but for how many there are in all: that was not looked at in the first formats.
pub(super) fn check_way(txn: &TxnRequest) -> Result<(), KvReject> {
    check_operations(txn, TXN_OPERATIONS_MAX, TXN_DEPTH_MAX)?;
    for branch in [&txn.success, &txn.failure] {
        changes(branch)?;
    }
    check_size(txn)
}

fn check_operations(txn: &TxnRequest, operations_max: usize, depth_max: usize) -> Result<(), KvReject> {
    if depth_max == 0 {
        return Err(KvReject::TooDeep);
    }
    let operations = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let Some(left) = operations_max.checked_sub(operations) else {
        return Err(KvReject::TooManyOperations(operations as u64));
    };
    for compare in &txn.compare {
        check_key(&compare.key)?;
        let known = CompareResult::try_from(compare.result).is_ok() && CompareTarget::try_from(compare.target).is_ok();
        if !known {
            return Err(KvReject::InvalidCompare);
        }
    }
    for operation in txn.success.iter().chain(&txn.failure) {
        match &operation.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete_range(delete)?,
            Some(Request::RequestTxn(txn)) => check_operations(txn, left, depth_max - 1)?,
            // An empty one, or from a newer version; etcd says the same.
            None => return Err(KvReject::KeyNotFound),
        }
    }
    Ok(())
}

/// An edge of a range of keys: just before a key, or just after it.
type Edge<'a> = (&'a [u8], bool);

/// What a list of operations changes.
#[derive(Default)]
struct Changes<'a> {
    puts: BTreeSet<&'a [u8]>,
    /// Ranges that do not overlap: where they begin, and where they end.
    deletes: BTreeMap<Edge<'a>, Edge<'a>>,
}

impl<'a> Changes<'a> {
    /// Adds a range. As etcd has it, one without an end is not looked at, so that a key of it may also be set, and is then removed or not
    /// as the operations follow each other.
    fn delete(&mut self, mut from: Edge<'a>, mut to: Edge<'a>) {
        if from >= to {
            return;
        }
        if let Some((before, end)) = self.deletes.range(..from).next_back().filter(|(_, end)| **end >= from) {
            (from, to) = (*before, to.max(*end));
        }
        while let Some((next, end)) = self.deletes.range(from..=to).next() {
            let next = *next;
            to = to.max(*end);
            self.deletes.remove(&next);
        }
        self.deletes.insert(from, to);
    }

    fn deletes(&self, key: &'a [u8]) -> bool {
        self.deletes.range(..=(key, false)).next_back().is_some_and(|(_, end)| (key, false) < *end)
    }

    fn put(&mut self, key: &'a [u8]) -> Result<(), KvReject> {
        if self.deletes(key) || !self.puts.insert(key) { Err(KvReject::DuplicateKey) } else { Ok(()) }
    }
}

/// What the operations change.
///
/// # Errors
/// A key is set twice, or set and removed. The branches of an inner transaction are not both done, so they may set the same.
fn changes(operations: &[RequestOp]) -> Result<Changes<'_>, KvReject> {
    let mut all = Changes::default();
    for operation in operations {
        if let Some(Request::RequestDeleteRange(delete)) = &operation.request {
            let to = if delete.range_end.is_empty() { (&*delete.key, true) } else { (&*delete.range_end, false) };
            all.delete((&delete.key, false), to);
        }
    }
    for operation in operations {
        let Some(Request::RequestTxn(txn)) = &operation.request else { continue };
        let (success, failure) = (changes(&txn.success)?, changes(&txn.failure)?);
        success.puts.union(&failure.puts).try_for_each(|key| all.put(key))?;
        // What an inner transaction removes, no other operation may set; its own puts are known to be others.
        success.deletes.into_iter().chain(failure.deletes).for_each(|(from, to)| all.delete(from, to));
    }
    for operation in operations {
        if let Some(Request::RequestPut(put)) = &operation.request {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

/// Whether a transaction changes nothing whatever its comparisons give: then it is a read.
pub fn only_reads(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).all(|operation| match &operation.request {
        Some(Request::RequestRange(_)) => true,
        Some(Request::RequestTxn(txn)) => only_reads(txn),
        _ => false,
    })
}

/// Whether a transaction may set a key.
pub fn puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|operation| match &operation.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(txn)) => puts(txn),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> Request {
        Request::RequestPut(PutRequest { key: key.into(), ..PutRequest::default() })
    }

    fn delete(key: &'static str, range_end: &'static str) -> Request {
        Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            ..DeleteRangeRequest::default()
        })
    }

    fn txn(success: Vec<Request>, failure: Vec<Request>) -> TxnRequest {
        let operations = |list: Vec<Request>| list.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
        TxnRequest { compare: Vec::new(), success: operations(success), failure: operations(failure) }
    }

    fn inner(success: Vec<Request>, failure: Vec<Request>) -> Request {
        Request::RequestTxn(txn(success, failure))
    }

    #[test]
    fn no_key_is_changed_twice_on_a_path() {
        let twice = Err(KvReject::DuplicateKey);
        let check = |success| check_txn(&txn(success, Vec::new()));
        assert_eq!(check(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(check(vec![put("a"), put("a")]), twice);
        assert_eq!(check(vec![put("a"), delete("a", "")]), twice);
        assert_eq!(check(vec![delete("a", "c"), put("b")]), twice);
        assert_eq!(check(vec![delete("a", "\0"), put("b")]), Ok(()), "as etcd has it");
        assert_eq!(check(vec![delete("a", "c"), delete("b", ""), put("c")]), Ok(()), "deletes may overlap");
        assert_eq!(check_txn(&txn(vec![put("a")], vec![put("a")])), Ok(()), "only one branch is done");
        assert_eq!(check(vec![inner(vec![put("a")], vec![put("a")])]), Ok(()), "only one branch is done");
        assert_eq!(check(vec![inner(vec![put("a")], vec![]), put("a")]), twice);
        assert_eq!(check(vec![inner(vec![put("a")], vec![]), inner(vec![], vec![put("a")])]), twice);
        assert_eq!(check(vec![inner(vec![delete("a", "c")], vec![]), put("b")]), twice);
        assert_eq!(check(vec![put("b"), inner(vec![], vec![delete("b", "")])]), twice);
    }

    #[test]
    fn overlapping_ranges_are_as_each_alone() {
        let ranges =
            [("c", "e"), ("a", "b"), ("b", ""), ("d", "g"), ("f", ""), ("k", "c"), ("x", "\0"), ("e", "f"), ("a", "")];
        for first in 0..ranges.len() {
            let removed = || ranges.iter().cycle().skip(first).take(5);
            for key in ["a", "aa", "b", "ba", "c", "d", "e", "f", "fa", "g", "k", "x", "y"] {
                let within =
                    |(from, to): &(&str, &str)| if to.is_empty() { key == *from } else { key >= *from && key < *to };
                let mut all: Vec<Request> = removed().map(|(from, to)| delete(from, to)).collect();
                all.push(put(key));
                assert_eq!(check_txn(&txn(all, vec![])).is_err(), removed().any(within), "{key}, from {first}");
            }
        }
    }

    #[test]
    fn as_many_changes_as_fit_into_a_request_are_checked() {
        let key = |n: usize| n.to_be_bytes()[5..].to_vec().into();
        let nest = |operation: &dyn Fn(usize) -> Request, from: usize| {
            let list = |from: usize| (from..from + 40).map(operation).collect::<Vec<_>>();
            let second = |from: usize| (0..40).map(|n| inner(list(from + 40 * n), vec![])).collect::<Vec<_>>();
            inner((0..40).map(|n| inner(second(from + 1_600 * n), vec![])).collect(), vec![])
        };
        let removes =
            |n| Request::RequestDeleteRange(DeleteRangeRequest { key: key(n), ..DeleteRangeRequest::default() });
        let sets = |n| Request::RequestPut(PutRequest { key: key(n), ..PutRequest::default() });
        let check = |from| check_way(&txn(vec![nest(&removes, 0), nest(&sets, from)], vec![]));
        assert_eq!(check(64_000), Ok(()));
        assert_eq!(check(63_999), Err(KvReject::DuplicateKey));
    }

    #[test]
    fn transactions_are_bounded() {
        let puts = |count: usize| {
            let operation = |i| {
                let key = format!("{i}").into();
                RequestOp { request: Some(Request::RequestPut(PutRequest { key, ..PutRequest::default() })) }
            };
            TxnRequest { success: (0..count).map(operation).collect(), ..TxnRequest::default() }
        };
        assert_eq!(check_txn(&puts(TXN_OPERATIONS_MAX)), Ok(()));
        let more = TXN_OPERATIONS_MAX + 1;
        assert_eq!(check_txn(&puts(more)), Err(KvReject::TooManyOperations(more as u64)));
        let range = || Request::RequestRange(RangeRequest { key: "a".into(), ..RangeRequest::default() });
        let many = |count| inner((0..count).map(|_| range()).collect(), vec![]);
        let wide = |inner: &[usize]| txn(inner.iter().copied().map(many).collect(), vec![]);
        assert_eq!(check_txn(&wide(&[125, 125, 131 - 3])), Err(KvReject::TooManyOperations(128)), "on one way");
        assert_eq!(check_txn(&wide(&[125, 125, 125])), Ok(()));
        let all = TXN_ALL_MAX + 1;
        assert_eq!(check_txn(&wide(&[125, 125, 125, 6])), Err(KvReject::TooManyOperations(all as u64)), "in all");
        let nested = |depth| {
            (1..depth).fold(txn(vec![put("a")], vec![]), |txn, _| TxnRequest {
                success: vec![RequestOp { request: Some(Request::RequestTxn(txn)) }],
                ..Default::default()
            })
        };
        assert_eq!(check_txn(&nested(TXN_DEPTH_MAX)), Ok(()));
        assert_eq!(check_txn(&nested(TXN_DEPTH_MAX + 1)), Err(KvReject::TooDeep));
    }
}

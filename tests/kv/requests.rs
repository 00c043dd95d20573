//! Requests about keys, drawn: few keys, revisions and values, so that they meet.

use bytes::Bytes;
use cairn::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use cairn::proto::etcdserverpb::request_op::Request;
use cairn::proto::etcdserverpb::*;
use proptest::prelude::*;

fn key() -> impl Strategy<Value = Bytes> {
    (0u8..5).prop_map(|key| vec![b'a' + key].into())
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(&[0])),
        2 => key(),
    ]
}

/// A lease that there may be.
pub fn lease() -> impl Strategy<Value = i64> {
    1i64..4
}

pub fn range() -> impl Strategy<Value = RangeRequest> {
    let bound = || prop_oneof![3 => Just(0i64), 1 => 1i64..20];
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    let order = (0i32..3, 0i32..5, prop_oneof![2 => Just(0i64), 1 => 1i64..4]);
    let plain = (key(), range_end(), bound(), flags, order);
    (plain, prop::bool::weighted(0.3), (bound(), bound(), bound(), bound())).prop_map(
        |((key, range_end, revision, (keys_only, count_only), (sort_order, sort_target, limit)), bounded, bounds)| {
            let (min_mod, max_mod, min_create, max_create) = if bounded { bounds } else { (0, 0, 0, 0) };
            // Which keys a limit lets through before they are sorted by something else depends on no rule worth a model.
            let sort_target = if sort_order == 0 { 0 } else { sort_target };
            RangeRequest {
                key,
                range_end,
                limit,
                revision,
                sort_order,
                sort_target,
                serializable: false,
                keys_only,
                count_only,
                min_mod_revision: min_mod,
                max_mod_revision: max_mod,
                min_create_revision: min_create,
                max_create_revision: max_create,
            }
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    (key(), range_end(), 0i32..4, 0i32..5, 0i64..8).prop_map(|(key, range_end, result, target, number)| {
        let target_union = Some(match CompareTarget::try_from(target).unwrap() {
            CompareTarget::Version => TargetUnion::Version(number % 3),
            CompareTarget::Create => TargetUnion::CreateRevision(number),
            CompareTarget::Mod => TargetUnion::ModRevision(number),
            CompareTarget::Value => TargetUnion::Value(vec![number as u8 % 3].into()),
            CompareTarget::Lease => TargetUnion::Lease(number % 3),
        });
        Compare { result, target, key, target_union, range_end }
    })
}

pub fn operation() -> impl Strategy<Value = RequestOp> {
    let kept = || prop::bool::weighted(0.2);
    let lease = prop_oneof![2 => Just(0i64), 1 => lease()];
    let put = (key(), 0u8..3, lease, any::<bool>(), kept(), kept()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| {
            let value = if ignore_value { Bytes::new() } else { vec![value].into() };
            let lease = if ignore_lease { 0 } else { lease };
            Request::RequestPut(PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease })
        },
    );
    let delete = (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| {
        Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv })
    });
    let leaf = prop_oneof![4 => put, 2 => delete, 2 => range().prop_map(Request::RequestRange)];
    let leaf = leaf.prop_map(|request| RequestOp { request: Some(request) }).boxed();
    leaf.prop_recursive(2, 8, 3, |inner| {
        txn_of(inner).prop_map(|txn| RequestOp { request: Some(Request::RequestTxn(txn)) })
    })
}

pub fn txn_of(operation: impl Strategy<Value = RequestOp> + Clone) -> impl Strategy<Value = TxnRequest> {
    let list = || prop::collection::vec(operation.clone(), 0..4);
    (prop::collection::vec(compare(), 0..3), list(), list()).prop_map(|(compare, success, failure)| TxnRequest {
        compare,
        success,
        failure,
    })
}

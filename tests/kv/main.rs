//! The key-value store against a naive model of etcd's: whole copies of all keys for each revision, and no index.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world
#![cfg(feature = "sim")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use cairn::entry::{Body, Entry};
use cairn::error::{KvReject, Reject};
use cairn::ids::{Index, Term};
use cairn::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use cairn::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use cairn::proto::etcdserverpb::request_op::Request;
use cairn::proto::etcdserverpb::response_op::Response;
use cairn::proto::etcdserverpb::*;
use cairn::proto::mvccpb::KeyValue;
use cairn::proto::v1::{self, command::Kind, reply};
use cairn::sim::disk::SimDisk;
use cairn::state::command;
use cairn::state::kv::{NoAnswer, Store};
use cairn::state::machine::State;
use cairn::state::table::{Read as _, Table};
use cairn::time::ClusterTime;
use proptest::prelude::*;
use prost::Message as _;
use requests::{operation, range, txn_of};

mod requests;

type Keys = BTreeMap<Bytes, KeyValue>;

/// What etcd would have.
struct Model {
    /// All keys as of each revision, from 1 on.
    states: Vec<Keys>,
    compacted: i64,
    /// Every change there ever was, in order: the key, the revision, and whether the key exists then.
    changes: Vec<(Bytes, i64, bool)>,
}

/// A transaction in the model: what it has changed so far.
struct Change {
    keys: Keys,
    revision: i64,
    changes: Vec<(Bytes, i64, bool)>,
}

fn is_in(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        _ => key >= start && key < end,
    }
}

impl Model {
    fn newest(&self) -> i64 {
        self.states.len() as i64
    }

    fn at(&self, revision: i64) -> &Keys {
        &self.states[revision as usize - 1]
    }

    fn check_revision(&self, revision: i64) -> Result<(), KvReject> {
        let (asked, newest, compacted) = (revision as u64, self.newest() as u64, self.compacted as u64);
        match revision {
            0 => Ok(()),
            _ if revision > self.newest() => Err(KvReject::Future { asked, newest }),
            _ if revision < self.compacted => Err(KvReject::Compacted { asked, compacted }),
            _ => Ok(()),
        }
    }

    fn range(&self, range: &RangeRequest, now: &Keys, revision: i64) -> RangeResponse {
        let keys = if range.revision == 0 { now } else { self.at(range.revision) };
        let all: Vec<&KeyValue> = keys.values().filter(|row| is_in(&row.key, &range.key, &range.range_end)).collect();
        let count = all.len() as i64;
        let low = |min: i64, has: i64| min == 0 || has >= min;
        let high = |max: i64, has: i64| max == 0 || has <= max;
        let mut kvs: Vec<KeyValue> = all
            .into_iter()
            .filter(|row| {
                low(range.min_mod_revision, row.mod_revision) && high(range.max_mod_revision, row.mod_revision)
            })
            .filter(|row| low(range.min_create_revision, row.create_revision))
            .filter(|row| high(range.max_create_revision, row.create_revision))
            .cloned()
            .collect();
        // Equal ones stay in the order of their keys, also if the greatest comes first.
        let rank = |row: &KeyValue| match range.sort_target() {
            SortTarget::Key => (0, row.key.clone()),
            SortTarget::Version => (row.version, Bytes::new()),
            SortTarget::Create => (row.create_revision, Bytes::new()),
            SortTarget::Mod => (row.mod_revision, Bytes::new()),
            SortTarget::Value => (0, row.value.clone()),
        };
        match range.sort_order() {
            SortOrder::Descend => kvs.sort_by_key(|row| std::cmp::Reverse(rank(row))),
            SortOrder::None | SortOrder::Ascend => kvs.sort_by_key(rank),
        }
        let limit = if range.limit == 0 { usize::MAX } else { range.limit as usize };
        let more = kvs.len() > limit && !range.count_only;
        kvs.truncate(if range.count_only { 0 } else { limit });
        if range.keys_only {
            kvs.iter_mut().for_each(|row| row.value = Bytes::new());
        }
        RangeResponse { header: header(revision), kvs, more, count }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let keys = self.at(self.newest());
        let mut rows: Vec<KeyValue> =
            keys.values().filter(|row| is_in(&row.key, &compare.key, &compare.range_end)).cloned().collect();
        if rows.is_empty() {
            if compare.target() == CompareTarget::Value {
                return false;
            }
            rows.push(KeyValue::default());
        }
        rows.iter().all(|row| {
            let ordering = match compare.target_union.as_ref().unwrap() {
                TargetUnion::Version(given) => row.version.cmp(given),
                TargetUnion::CreateRevision(given) => row.create_revision.cmp(given),
                TargetUnion::ModRevision(given) => row.mod_revision.cmp(given),
                TargetUnion::Lease(given) => row.lease.cmp(given),
                TargetUnion::Value(given) => row.value.cmp(given),
            };
            match compare.result() {
                CompareResult::Equal => ordering.is_eq(),
                CompareResult::Greater => ordering.is_gt(),
                CompareResult::Less => ordering.is_lt(),
                CompareResult::NotEqual => ordering.is_ne(),
            }
        })
    }

    fn branch<'a>(&self, txn: &'a TxnRequest) -> (bool, &'a [RequestOp]) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        (succeeded, if succeeded { &txn.success } else { &txn.failure })
    }

    /// What cannot be done of what would be.
    fn refuse(&self, txn: &TxnRequest, gone: &mut Vec<(Bytes, Bytes)>) -> Result<(), KvReject> {
        for operation in self.branch(txn).1 {
            match operation.request.as_ref().unwrap() {
                Request::RequestRange(range) => self.check_revision(range.revision)?,
                Request::RequestPut(put) if put.ignore_value && !self.at(self.newest()).contains_key(&put.key) => {
                    return Err(KvReject::KeyNotFound);
                }
                Request::RequestPut(put)
                    if put.ignore_value && gone.iter().any(|(start, end)| is_in(&put.key, start, end)) =>
                {
                    return Err(KvReject::KeyNotFound);
                }
                Request::RequestDeleteRange(delete) => gone.push((delete.key.clone(), delete.range_end.clone())),
                Request::RequestTxn(txn) => self.refuse(txn, gone)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&self, txn: &TxnRequest, change: &mut Change) -> TxnResponse {
        let (succeeded, operations) = self.branch(txn);
        let next = self.newest() + 1;
        let mut responses = Vec::new();
        for operation in operations {
            let response = match operation.request.as_ref().unwrap() {
                Request::RequestRange(range) => {
                    Response::ResponseRange(self.range(range, &change.keys, change.revision))
                }
                Request::RequestPut(put) => {
                    let prev = change.keys.get(&put.key).cloned();
                    let before = prev.clone().unwrap_or(KeyValue { create_revision: next, ..KeyValue::default() });
                    let value = if put.ignore_value { before.value } else { put.value.clone() };
                    let row = KeyValue {
                        key: put.key.clone(),
                        create_revision: before.create_revision,
                        mod_revision: next,
                        version: before.version + 1,
                        value,
                        lease: 0,
                    };
                    change.keys.insert(put.key.clone(), row);
                    change.changes.push((put.key.clone(), next, true));
                    change.revision = next;
                    Response::ResponsePut(PutResponse { header: header(next), prev_kv: prev.filter(|_| put.prev_kv) })
                }
                Request::RequestDeleteRange(delete) => {
                    let gone: Vec<KeyValue> = change
                        .keys
                        .values()
                        .filter(|row| is_in(&row.key, &delete.key, &delete.range_end))
                        .cloned()
                        .collect();
                    for row in &gone {
                        change.keys.remove(&row.key);
                        change.changes.push((row.key.clone(), next, false));
                        change.revision = next;
                    }
                    let deleted = gone.len() as i64;
                    let prev_kvs = if delete.prev_kv { gone } else { Vec::new() };
                    let header = header(change.revision);
                    Response::ResponseDeleteRange(DeleteRangeResponse { header, deleted, prev_kvs })
                }
                Request::RequestTxn(txn) => Response::ResponseTxn(self.run(txn, change)),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        TxnResponse { header: header(change.revision), succeeded, responses }
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, KvReject> {
        self.refuse(txn, &mut Vec::new())?;
        let mut change = Change { keys: self.at(self.newest()).clone(), revision: self.newest(), changes: Vec::new() };
        let reply = self.run(txn, &mut change);
        if !change.changes.is_empty() {
            self.states.push(change.keys);
            self.changes.extend(change.changes);
        }
        Ok(reply)
    }

    /// How many versions are left when all is swept: what the compacted revision changed and what came after it, for those who are
    /// told of changes, and of what came before what it still sees.
    fn versions_left(&self) -> usize {
        let mut keys: BTreeMap<&Bytes, Vec<(i64, bool)>> = BTreeMap::new();
        for (key, revision, exists) in &self.changes {
            keys.entry(key).or_default().push((*revision, *exists));
        }
        let left = keys.values().map(|versions| {
            let (before, since): (Vec<_>, Vec<_>) =
                versions.iter().partition(|(revision, _)| *revision < self.compacted);
            let is_seen = since.first().is_none_or(|(revision, _)| *revision > self.compacted);
            since.len() + usize::from(is_seen && before.last().is_some_and(|(_, exists)| *exists))
        });
        left.sum()
    }

    fn compact(&mut self, revision: i64) -> Result<(), KvReject> {
        let (asked, newest, compacted) = (revision as u64, self.newest() as u64, self.compacted as u64);
        if revision <= self.compacted {
            return Err(KvReject::Compacted { asked, compacted });
        }
        if revision > self.newest() {
            return Err(KvReject::Future { asked, newest });
        }
        self.compacted = revision;
        Ok(())
    }
}

/// Whether some path through the transaction changes a key twice in a way that etcd never allows: it sets it twice.
fn sets_twice(operations: &[RequestOp], before: &[Bytes]) -> bool {
    let Some((first, rest)) = operations.split_first() else { return false };
    match first.request.as_ref().unwrap() {
        Request::RequestPut(put) => {
            before.contains(&put.key) || sets_twice(rest, &[before, std::slice::from_ref(&put.key)].concat())
        }
        Request::RequestTxn(txn) => {
            [&txn.success, &txn.failure].iter().any(|branch| sets_twice(&[&branch[..], rest].concat(), before))
        }
        _ => sets_twice(rest, before),
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

/// What is done to the store.
#[derive(Clone, Debug)]
enum Step {
    Txn(TxnRequest),
    Compact(i64),
    Sweep,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let single = operation().prop_map(|operation| TxnRequest { success: vec![operation], ..TxnRequest::default() });
    prop_oneof![
        6 => single.prop_map(Step::Txn),
        6 => txn_of(operation().boxed()).prop_map(Step::Txn),
        2 => (0i64..24).prop_map(Step::Compact),
        3 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
    ]
}

struct Real {
    disk: SimDisk,
    state: State,
    index: u64,
}

impl Real {
    fn run(&mut self, kind: Kind) -> Result<reply::Kind, KvReject> {
        self.index += 1;
        let command: Bytes = v1::Command { session: None, kind: Some(kind) }.encode_to_vec().into();
        let body = Body::Commands { stamp: ClusterTime(0), commands: vec![command] };
        let entry = Entry { index: Index(self.index), term: Term(1), body };
        let outcomes = self.state.apply(&[entry]).unwrap();
        match v1::Reply::decode(outcomes[0].replies[0].clone()).unwrap().kind.unwrap() {
            reply::Kind::Rejection(rejection) => match command::reject(&rejection) {
                Some(Reject::Kv(reject)) => Err(reject),
                other => panic!("unexpected {other:?}"),
            },
            kind => Ok(kind),
        }
    }

    /// A single operation goes the way that it goes alone.
    fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, KvReject> {
        let reply = match txn.success.first().and_then(|op| op.request.clone()) {
            Some(Request::RequestPut(put)) if is_single(txn) => self.run(Kind::Put(put))?,
            Some(Request::RequestDeleteRange(delete)) if is_single(txn) => self.run(Kind::DeleteRange(delete))?,
            _ => self.run(Kind::Txn(txn.clone()))?,
        };
        let one = |header, response| TxnResponse {
            header,
            succeeded: true,
            responses: vec![ResponseOp { response: Some(response) }],
        };
        Ok(match reply {
            reply::Kind::Txn(reply) => reply,
            reply::Kind::Put(put) => one(put.header, Response::ResponsePut(put)),
            reply::Kind::DeleteRange(delete) => one(delete.header, Response::ResponseDeleteRange(delete)),
            other => panic!("unexpected {other:?}"),
        })
    }

    fn range(&self, range: &RangeRequest) -> Result<RangeResponse, KvReject> {
        let (head, rows) = self.state.reader().view().unwrap();
        match Store::of(&head, &rows).range(range) {
            Ok(reply) => Ok(reply),
            Err(NoAnswer::Rejected(reject)) => Err(reject),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn versions(&self) -> usize {
        let mut count = 0;
        let (_, rows) = self.state.reader().view().unwrap();
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let each = &mut |_: &[u8], _: &[u8]| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        };
        rows.scan(Table::Versions, all, each).unwrap();
        count
    }
}

fn is_single(txn: &TxnRequest) -> bool {
    txn.compare.is_empty() && txn.success.len() == 1 && txn.failure.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every answer is the model's, and so is every range at every revision that can still be read, whatever was compacted,
    /// swept away or opened anew; and what can be swept away is.
    #[test]
    fn the_store_is_the_models(
        steps in prop::collection::vec(step(), 1..40),
        looks in prop::collection::vec(range(), 1..12),
    ) {
        let disk = SimDisk::new("disk".into());
        let state = State::open(disk.boot(), Index(0)).unwrap();
        let mut real = Real { disk, state, index: 0 };
        let mut model = Model { states: vec![Keys::new()], compacted: 0, changes: Vec::new() };
        for step in &steps {
            match step {
                Step::Txn(txn) => match real.txn(txn) {
                    Err(KvReject::DuplicateKey) => {
                        prop_assert!(changes(txn) > 1, "{txn:?} changes one thing");
                    }
                    answer => {
                        prop_assert!(!sets_twice(&txn.success, &[]) && !sets_twice(&txn.failure, &[]), "{txn:?}");
                        prop_assert_eq!(answer, model.txn(txn), "{:?}", txn);
                    }
                },
                Step::Compact(revision) => {
                    let compact = CompactionRequest { revision: *revision, physical: false };
                    let answer = real.run(Kind::Compact(compact)).map(|_| ());
                    prop_assert_eq!(answer, model.compact(*revision));
                }
                Step::Sweep => drop(real.run(Kind::SweepVersions(v1::SweepVersions {})).unwrap()),
                Step::Reopen => {
                    real.state.checkpoint().unwrap();
                    let open = || State::open(real.disk.boot(), Index(0));
                    real.state = open().unwrap();
                }
            }
            for look in &looks {
                let expected = model.check_revision(look.revision);
                let expected = expected.map(|()| model.range(look, model.at(model.newest()), model.newest()));
                prop_assert_eq!(real.range(look), expected, "{:?}", look);
            }
        }
        for revision in model.compacted.max(1)..=model.newest() {
            let all = RangeRequest { key: Bytes::from_static(&[0]), range_end: Bytes::from_static(&[0]), revision, ..Default::default() };
            let found = real.range(&all).unwrap().kvs;
            prop_assert_eq!(found, model.at(revision).values().cloned().collect::<Vec<_>>());
        }
        real.run(Kind::SweepVersions(v1::SweepVersions {})).unwrap();
        prop_assert_eq!(real.versions(), model.versions_left());
        prop_assert_eq!(real.state.digest(), real.state.reader().full_digest().unwrap());
    }
}

/// How many operations of a transaction change something, with those of inner ones.
fn changes(txn: &TxnRequest) -> usize {
    let operations = txn.success.iter().chain(&txn.failure);
    let each = operations.map(|operation| match operation.request.as_ref().unwrap() {
        Request::RequestRange(_) => 0,
        Request::RequestPut(_) | Request::RequestDeleteRange(_) => 1,
        Request::RequestTxn(txn) => changes(txn),
    });
    each.sum()
}

/// More versions than one command sweeps away, of one key and of many: all go, a bounded number at a time.
#[test]
fn sweeping_is_bounded_and_ends() {
    let disk = SimDisk::new("disk".into());
    let state = State::open(disk.boot(), Index(0)).unwrap();
    let mut real = Real { disk, state, index: 0 };
    let put = |key: u64| {
        Kind::Put(PutRequest {
            key: key.to_be_bytes().to_vec().into(),
            value: b"v".to_vec().into(),
            ..Default::default()
        })
    };
    for number in 0..5_000u64 {
        let key = if number < 2_500 { 0 } else { number % 1_250 };
        real.run(put(key)).unwrap();
    }
    assert_eq!(real.versions(), 5_000);
    real.run(Kind::Compact(CompactionRequest { revision: 5_001, physical: false })).unwrap();
    let mut swept = Vec::new();
    loop {
        let Ok(reply::Kind::SweepVersions(reply)) = real.run(Kind::SweepVersions(v1::SweepVersions {})) else {
            panic!()
        };
        if reply.swept == 0 {
            break;
        }
        swept.push(reply.swept);
    }
    assert_eq!(swept, [1_000, 1_000, 1_000, 750]);
    assert_eq!(real.versions(), 1_250);
}

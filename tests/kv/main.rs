//! The key-value store against a naive model of etcd's: whole copies of all keys for each revision, and no index.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world
#![cfg(feature = "sim")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use cairn::entry::{Body, Entry};
use cairn::error::{KvReject, Reject};
use cairn::ids::{Index, LeaseId, Term};
use cairn::proto::etcdserverpb::alarm_request::AlarmAction;
use cairn::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use cairn::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use cairn::proto::etcdserverpb::request_op::Request;
use cairn::proto::etcdserverpb::response_op::Response;
use cairn::proto::etcdserverpb::*;
use cairn::proto::mvccpb::KeyValue;
use cairn::proto::v1::{self, command::Kind, reply};
use cairn::sim::disk::SimDisk;
use cairn::state::kv::{NoAnswer, Store};
use cairn::state::machine::State;
use cairn::state::table::{Read as _, Table};
use cairn::state::{command, lease as leases};
use cairn::time::ClusterTime;
use proptest::prelude::*;
use prost::Message as _;
use requests::{lease, operation, range, txn_of};

mod bounds;
mod requests;

type Keys = BTreeMap<Bytes, KeyValue>;

/// What etcd would have.
struct Model {
    /// All keys as of each revision, from 1 on.
    states: Vec<Keys>,
    compacted: i64,
    /// Every change there ever was, in order: the key, the revision, and whether the key exists then.
    changes: Vec<(Bytes, i64, bool)>,
    /// The time of each lease, and when it ends, in seconds.
    leases: BTreeMap<i64, (i64, i64)>,
    /// Now, and when the term began.
    time: (i64, i64),
    /// Members and types of the alarms that are raised.
    alarms: BTreeSet<(u64, i32)>,
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
    /// Why something about keys is not done; `adds`: it may set keys, or is a lease that they could be under.
    fn refusal(&self, adds: bool) -> Option<KvReject> {
        let raised = |kind: AlarmType| self.alarms.iter().any(|(_, other)| *other == kind as i32);
        if raised(AlarmType::Corrupt) {
            return Some(KvReject::Corrupt);
        }
        (adds && raised(AlarmType::Nospace)).then_some(KvReject::NoSpace)
    }

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

    /// What cannot be read of what would be.
    fn refuse_reads(&self, txn: &TxnRequest) -> Result<(), KvReject> {
        self.branch(txn).1.iter().try_for_each(|operation| match operation.request.as_ref().unwrap() {
            Request::RequestRange(range) => self.check_revision(range.revision),
            Request::RequestTxn(txn) => self.refuse_reads(txn),
            _ => Ok(()),
        })
    }

    /// What cannot be set of what would be.
    fn refuse(&self, txn: &TxnRequest, gone: &mut Vec<(Bytes, Bytes)>) -> Result<(), KvReject> {
        for operation in self.branch(txn).1 {
            match operation.request.as_ref().unwrap() {
                Request::RequestRange(_) => {}
                Request::RequestPut(put) => {
                    let keeps = put.ignore_value || put.ignore_lease;
                    if keeps && !self.at(self.newest()).contains_key(&put.key) {
                        return Err(KvReject::KeyNotFound);
                    }
                    if put.lease != 0 && !self.leases.contains_key(&put.lease) {
                        return Err(KvReject::LeaseNotFound(LeaseId(put.lease)));
                    }
                    if keeps && gone.iter().any(|(start, end)| is_in(&put.key, start, end)) {
                        return Err(KvReject::KeyNotFound);
                    }
                }
                Request::RequestDeleteRange(delete) => gone.push((delete.key.clone(), delete.range_end.clone())),
                Request::RequestTxn(txn) => self.refuse(txn, gone)?,
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
                        lease: if put.ignore_lease { before.lease } else { put.lease },
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
                // The revision stands in the outer one's header.
                Request::RequestTxn(txn) => Response::ResponseTxn(TxnResponse {
                    header: Some(ResponseHeader::default()),
                    ..self.run(txn, change)
                }),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        TxnResponse { header: header(change.revision), succeeded, responses }
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, KvReject> {
        if let (true, Some(Request::RequestPut(put))) =
            (is_single(txn), txn.success.first().and_then(|op| op.request.as_ref()))
            && put.lease != 0
            && !self.leases.contains_key(&put.lease)
        {
            return Err(KvReject::LeaseNotFound(LeaseId(put.lease)));
        }
        self.refuse(txn, &mut Vec::new())?;
        self.refuse_reads(txn)?;
        let mut change = Change { keys: self.at(self.newest()).clone(), revision: self.newest(), changes: Vec::new() };
        let reply = self.run(txn, &mut change);
        if !change.changes.is_empty() {
            self.states.push(change.keys);
            self.changes.extend(change.changes);
        }
        Ok(reply)
    }

    fn grant(&mut self, lease: i64, ttl: i64) -> Result<i64, KvReject> {
        if self.leases.contains_key(&lease) {
            return Err(KvReject::LeaseExists(LeaseId(lease)));
        }
        let ttl = ttl.max(2);
        self.leases.insert(lease, (ttl, self.time.0 + ttl));
        Ok(ttl)
    }

    /// Ends a lease; its keys go at one revision, if there are any.
    fn revoke(&mut self, lease: i64) -> Result<i64, KvReject> {
        self.leases.remove(&lease).ok_or(KvReject::LeaseNotFound(LeaseId(lease)))?;
        let next = self.newest() + 1;
        let (gone, left): (Keys, Keys) = self.at(next - 1).clone().into_iter().partition(|(_, row)| row.lease == lease);
        if !gone.is_empty() {
            self.changes.extend(gone.into_keys().map(|key| (key, next, false)));
            self.states.push(left);
        }
        Ok(self.newest())
    }

    fn keep_alive(&mut self, lease: i64) -> i64 {
        let Some((ttl, end)) = self.leases.get_mut(&lease) else { return 0 };
        *end = self.time.0 + *ttl;
        *ttl
    }

    /// When a lease is over: some time after the term began, too.
    fn over(&self, (ttl, end): (i64, i64)) -> i64 {
        end.max(self.time.1 + ttl.min(10))
    }

    /// What is over, in the order in which it ends.
    fn ended(&self) -> Vec<i64> {
        let mut ended: Vec<(i64, i64)> = self.leases.iter().map(|(id, lease)| (lease.1, *id)).collect();
        ended.sort_unstable();
        ended.into_iter().map(|(_, id)| id).filter(|id| self.over(self.leases[id]) <= self.time.0).collect()
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
    Grant(i64, i64),
    Revoke(i64),
    KeepAlive(i64),
    /// Seconds go by, and another leader may have come first.
    Wait(i64, bool),
    /// What is over ends, or whatever a leader takes for it.
    Expire(Option<i64>),
    /// An alarm of a member is raised, or disarmed.
    Alarm(bool, u64, AlarmType),
}

fn step() -> impl Strategy<Value = Step> {
    let single = operation().prop_map(|operation| TxnRequest { success: vec![operation], ..TxnRequest::default() });
    prop_oneof![
        6 => single.prop_map(Step::Txn),
        6 => txn_of(operation().boxed()).prop_map(Step::Txn),
        2 => (0i64..24).prop_map(Step::Compact),
        3 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
        3 => (lease(), -1i64..20).prop_map(|(lease, ttl)| Step::Grant(lease, ttl)),
        1 => lease().prop_map(Step::Revoke),
        1 => lease().prop_map(Step::KeepAlive),
        2 => (0i64..12, prop::bool::weighted(0.3)).prop_map(|(span, elected)| Step::Wait(span, elected)),
        2 => prop::option::weighted(0.3, lease()).prop_map(Step::Expire),
        2 => (prop::bool::weighted(0.4), 1u64..4, prop_oneof![3 => Just(AlarmType::Nospace), 1 => Just(AlarmType::Corrupt)])
            .prop_map(|(raise, member, kind)| Step::Alarm(raise, member, kind)),
    ]
}

struct Real {
    disk: SimDisk,
    state: State,
    index: u64,
    /// Seconds.
    time: i64,
    term: u64,
}

impl Real {
    fn run(&mut self, kind: Kind) -> Result<reply::Kind, KvReject> {
        self.ask(kind).map_err(|reject| match reject {
            Reject::Kv(reject) => reject,
            other => panic!("unexpected {other:?}"),
        })
    }

    fn ask(&mut self, kind: Kind) -> Result<reply::Kind, Reject> {
        self.index += 1;
        let command: Bytes = command::plain("", kind).encode_to_vec().into();
        let body = Body::Commands { stamp: ClusterTime(self.time as u64 * 1000), commands: vec![command] };
        let entry = Entry { index: Index(self.index), term: Term(self.term), body };
        let outcomes = self.state.apply(&[entry]).unwrap();
        match v1::Reply::decode(outcomes[0].replies[0].clone()).unwrap().kind.unwrap() {
            reply::Kind::Rejection(rejection) => Err(command::reject(&rejection).expect("one of this version")),
            kind => Ok(kind),
        }
    }

    fn new() -> Self {
        let disk = SimDisk::new("disk".into());
        let mut state = State::open(disk.boot(), Index(0)).unwrap();
        let member = |id| v1::Member { id, role: v1::MemberRole::Voter.into(), ..v1::Member::default() };
        let change = v1::MemberChange { members: vec![member(1), member(2)] }.encode_to_vec().into();
        let body = Body::Members { conf_state: Bytes::new(), change };
        state.apply(&[Entry { index: Index(1), term: Term(1), body }]).unwrap();
        Self { disk, state, index: 1, time: 0, term: 1 }
    }

    fn ended(&self) -> Vec<i64> {
        let (head, rows) = self.state.reader().view().unwrap();
        leases::ended(&head, &rows, ClusterTime(self.time as u64 * 1000)).unwrap().iter().map(|lease| lease.0).collect()
    }

    fn time_to_live(&self, lease: i64) -> LeaseTimeToLiveResponse {
        let (head, rows) = self.state.reader().view().unwrap();
        let asked = LeaseTimeToLiveRequest { id: lease, keys: true };
        leases::time_to_live(&head, &rows, &asked, ClusterTime(self.time as u64 * 1000)).unwrap()
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
            Err(NoAnswer::Rejected(Reject::Kv(reject))) => Err(reject),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// How many versions there are, and the bytes that they take.
    fn versions(&self) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        let (_, rows) = self.state.reader().view().unwrap();
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let each = &mut |key: &[u8], value: &[u8]| {
            count += 1;
            bytes += (key.len() + value.len()) as u64;
            Ok(ControlFlow::Continue(()))
        };
        rows.scan(Table::Versions, all, each).unwrap();
        (count, bytes)
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
        let mut real = Real::new();
        let mut model = Model {
            states: vec![Keys::new()], compacted: 0, changes: Vec::new(), leases: BTreeMap::new(), time: (0, 0),
            alarms: BTreeSet::new(),
        };
        for step in &steps {
            let refusal = match step {
                Step::Txn(txn) => model.refusal(txn.success.iter().chain(&txn.failure).any(puts)),
                Step::Grant(..) => model.refusal(true),
                Step::Compact(_) | Step::Revoke(_) => model.refusal(false),
                _ => None,
            };
            match step {
                Step::Txn(txn) if refusal.is_some() => prop_assert_eq!(real.txn(txn).err(), refusal),
                Step::Compact(revision) if refusal.is_some() => {
                    let compact = CompactionRequest { revision: *revision, physical: false };
                    prop_assert_eq!(real.run(Kind::Compact(compact)).err(), refusal);
                }
                Step::Grant(id, ttl) if refusal.is_some() => {
                    let grant = LeaseGrantRequest { id: *id, ttl: *ttl };
                    prop_assert_eq!(real.run(Kind::LeaseGrant(grant)).err(), refusal);
                }
                Step::Revoke(id) if refusal.is_some() => {
                    prop_assert_eq!(real.run(Kind::LeaseRevoke(LeaseRevokeRequest { id: *id })).err(), refusal);
                }
                Step::Alarm(raise, member, kind) => {
                    let action = if *raise { AlarmAction::Activate } else { AlarmAction::Deactivate };
                    let (alarm, member_id) = (i32::from(*kind), *member);
                    let said = real.ask(Kind::Alarm(AlarmRequest { action: action.into(), member_id, alarm }));
                    let known = *member < 3;
                    let told = match raise {
                        true if known => {
                            model.alarms.insert((*member, alarm));
                            true
                        }
                        true => false,
                        false => model.alarms.remove(&(*member, alarm)),
                    };
                    match said {
                        Ok(reply::Kind::Alarm(reply)) => {
                            let expected = told.then_some(AlarmMember { member_id, alarm });
                            prop_assert_eq!(reply.alarms, expected.into_iter().collect::<Vec<_>>());
                        }
                        Err(Reject::NotFound(_)) => prop_assert!(*raise && !known),
                        other => panic!("{other:?}"),
                    }
                }
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
                Step::Grant(id, ttl) => {
                    let grant = LeaseGrantRequest { id: *id, ttl: *ttl };
                    let answer = real.run(Kind::LeaseGrant(grant)).map(|reply| match reply {
                        reply::Kind::LeaseGrant(reply) => reply.ttl,
                        other => panic!("{other:?}"),
                    });
                    prop_assert_eq!(answer, model.grant(*id, *ttl));
                }
                Step::Revoke(id) => {
                    let answer = real.run(Kind::LeaseRevoke(LeaseRevokeRequest { id: *id })).map(|reply| match reply {
                        reply::Kind::LeaseRevoke(reply) => reply.header.unwrap().revision,
                        other => panic!("{other:?}"),
                    });
                    prop_assert_eq!(answer, model.revoke(*id));
                }
                Step::KeepAlive(id) => {
                    let reply::Kind::LeaseKeepAlive(reply) =
                        real.run(Kind::LeaseKeepAlive(LeaseKeepAliveRequest { id: *id })).unwrap() else { panic!() };
                    prop_assert_eq!(reply.ttl, model.keep_alive(*id));
                }
                Step::Wait(span, elected) => {
                    if *elected {
                        model.time.1 = model.time.0;
                        real.term += 1;
                    }
                    (real.time, model.time.0) = (real.time + span, model.time.0 + span);
                    // Whatever comes next has the stamp.
                    real.run(Kind::ExpireWorkers(v1::ExpireWorkers::default())).unwrap();
                }
                Step::Expire(one) => {
                    let ended = model.ended();
                    prop_assert_eq!(&real.ended(), &ended);
                    // A leader that sees old things may be wrong.
                    let leases: Vec<i64> = one.map_or(ended.clone(), |one| vec![one]);
                    let expected: Vec<i64> = leases.iter().copied().filter(|lease| ended.contains(lease)).collect();
                    let reply::Kind::ExpireLeases(reply) =
                        real.run(Kind::ExpireLeases(v1::ExpireLeases { leases })).unwrap() else { panic!() };
                    prop_assert_eq!(&reply.expired, &expected);
                    expected.iter().for_each(|lease| assert!(model.revoke(*lease).is_ok()));
                }
            }
            for id in 1..4 {
                let found = real.time_to_live(id);
                let lease = model.leases.get(&id);
                prop_assert_eq!(found.ttl, lease.map_or(-1, |lease| (model.over(*lease) - model.time.0).max(0)));
                prop_assert_eq!(found.granted_ttl, lease.map_or(0, |lease| lease.0));
                let keys = model.at(model.newest()).values().filter(|row| row.lease == id).map(|row| &row.key);
                prop_assert!(found.keys.iter().eq(keys), "{:?} of {}", found.keys, id);
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
        let (versions, bytes) = real.versions();
        prop_assert_eq!(versions, model.versions_left());
        prop_assert_eq!(bytes, real.state.reader().keys_bytes());
        prop_assert_eq!(real.state.digest(), real.state.reader().full_digest().unwrap());
    }
}

/// Whether an operation may set a key.
fn puts(operation: &RequestOp) -> bool {
    match &operation.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(txn)) => txn.success.iter().chain(&txn.failure).any(puts),
        _ => false,
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
    let mut real = Real::new();
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
    assert_eq!(real.versions().0, 5_000);
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
    assert_eq!(real.versions().0, 1_250);
}

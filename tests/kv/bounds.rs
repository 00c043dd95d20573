//! What commands may read at once and what sessions keep of their answers, from the format on that bounds it.

use cairn::io::Wanted;
use cairn::limits::{LOOK_BYTES, READ_BYTES_MAX, SESSION_ANSWER_BYTES_MAX, SESSION_ANSWERS_BYTES_MAX};

use super::*;

const BOUNDED: u32 = 3;
/// Nearly as large as a request may be.
const LARGE: usize = 1_400_000;

fn raise(real: &mut Real, to: u32) {
    let raise = v1::RaiseFormat { to, members: vec![1, 2] };
    assert_eq!(
        real.ask(Kind::RaiseFormat(raise)),
        Ok(reply::Kind::RaiseFormat(v1::RaiseFormatReply { format: to })),
        "two members take part"
    );
}

/// Carries out the commands of one entry.
fn entry(real: &mut Real, commands: Vec<v1::Command>) -> Vec<v1::Reply> {
    real.index += 1;
    let commands = commands.iter().map(|command| command.encode_to_vec().into()).collect();
    let body = Body::Commands { stamp: ClusterTime(real.time as u64 * 1000), commands };
    let entry = Entry { index: Index(real.index), term: Term(real.term), body };
    let outcomes = real.state.apply(&[entry]).unwrap();
    outcomes[0].replies.iter().map(|reply| v1::Reply::decode(reply.clone()).unwrap()).collect()
}

fn refused(reply: &v1::Reply) -> Option<Reject> {
    match &reply.kind {
        Some(reply::Kind::Rejection(rejection)) => command::reject(rejection),
        _ => None,
    }
}

fn put(key: &str, bytes: usize) -> Kind {
    Kind::Put(PutRequest {
        key: key.to_owned().into(),
        value: vec![b'v'; bytes].into(),
        prev_kv: true,
        ..PutRequest::default()
    })
}

fn remove_all(prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest { key: vec![0].into(), range_end: vec![0].into(), prev_kv }
}

fn all() -> RangeRequest {
    RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..RangeRequest::default() }
}

fn operations(requests: Vec<Request>) -> Vec<RequestOp> {
    requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
}

/// So many bytes under keys of their own; says what it takes to read all of them.
fn fill(real: &mut Real, bytes: u64) -> u64 {
    for number in 0..bytes.div_ceil(LARGE as u64) {
        real.run(put(&format!("key-{number:04}"), LARGE)).unwrap();
    }
    let kvs = real.range(&all()).unwrap().kvs;
    kvs.iter().map(|row| row.encoded_len() as u64 + LOOK_BYTES).sum()
}

#[test]
fn what_reads_too_much_is_refused_and_changes_nothing() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    assert!(fill(&mut real, READ_BYTES_MAX) > READ_BYTES_MAX);
    let before = real.versions();
    let compare = Compare {
        key: vec![0].into(),
        range_end: vec![0].into(),
        target: CompareTarget::Value as i32,
        ..Compare::default()
    };
    let look = || Request::RequestRange(all());
    let set = || Request::RequestPut(PutRequest { key: "other".into(), ..PutRequest::default() });
    let inner = |requests| Request::RequestTxn(TxnRequest { success: operations(requests), ..TxnRequest::default() });
    let txn = |requests| Kind::Txn(TxnRequest { success: operations(requests), ..TxnRequest::default() });
    for kind in [
        Kind::DeleteRange(remove_all(true)),
        txn(vec![set(), Request::RequestDeleteRange(remove_all(true))]),
        txn(vec![set(), look()]),
        txn(vec![set(), inner(vec![look()])]),
        Kind::Txn(TxnRequest { compare: vec![compare], success: operations(vec![set()]), ..TxnRequest::default() }),
    ] {
        let refusal = real.run(kind);
        assert!(matches!(refusal, Err(KvReject::ReadsTooMuch(bytes)) if bytes > READ_BYTES_MAX), "{refusal:?}");
        assert_eq!(real.versions(), before);
    }
    // What is not chosen is not read, nor what nobody is told of.
    let few = RangeRequest { limit: 3, ..all() };
    let count = RangeRequest { count_only: true, ..all() };
    let unread = TxnRequest {
        success: operations(vec![set(), Request::RequestRange(few), Request::RequestRange(count)]),
        failure: operations(vec![look()]),
        ..TxnRequest::default()
    };
    assert!(real.run(Kind::Txn(unread)).is_ok());
    assert!(real.run(Kind::DeleteRange(remove_all(false))).is_ok());
    assert_eq!(real.range(&all()).unwrap().count, 0);
}

#[test]
fn commands_of_one_entry_share_what_they_read() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    let bytes = fill(&mut real, READ_BYTES_MAX / 2 + 2 * LARGE as u64);
    assert!(bytes < READ_BYTES_MAX && 2 * bytes > READ_BYTES_MAX);
    let look = || {
        let set = Request::RequestPut(PutRequest { key: "0".into(), ..PutRequest::default() });
        let success = operations(vec![set, Request::RequestRange(all())]);
        command::plain("", Kind::Txn(TxnRequest { success, ..TxnRequest::default() }))
    };
    let replies = entry(&mut real, vec![look(), look(), command::plain("", put("x", 1))]);
    let refusals: Vec<_> = replies.iter().map(refused).collect();
    assert_eq!(refusals[0], None);
    assert_eq!(refusals[1], Some(Reject::Kv(KvReject::EntryFull)));
    assert_eq!(refusals[2], None, "who asks for little is not refused for that");
    assert_eq!(refused(&entry(&mut real, vec![look()])[0]), None, "the next entry begins anew");
}

/// What a transaction sets it may read, too, and often.
#[test]
fn what_is_set_and_read_counts() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    let key = || Bytes::from("k");
    let looks = |count: usize, revision| {
        let range = RangeRequest { key: key(), revision, ..RangeRequest::default() };
        let success = operations(vec![Request::RequestRange(range); count]);
        Request::RequestTxn(TxnRequest { success, ..TxnRequest::default() })
    };
    let set = PutRequest { key: key(), value: vec![b'v'; LARGE].into(), ..PutRequest::default() };
    // Before the first revision is the newest, too.
    for revision in [0, -1] {
        let all = vec![Request::RequestPut(set.clone()), looks(120, revision), looks(120, revision)];
        let txn = TxnRequest { success: operations(all), ..TxnRequest::default() };
        assert!(matches!(real.run(Kind::Txn(txn)), Err(KvReject::ReadsTooMuch(_))));
    }
    assert_eq!(real.range(&all()).unwrap().count, 0);
    real.run(put("k", LARGE)).unwrap();
    // So it does where a value is compared; what a version is like is known without reading it.
    let compare = |target: CompareTarget| Compare { key: key(), target: target as i32, ..Compare::default() };
    let asks = |target| {
        let inner = || TxnRequest { compare: vec![compare(target); 120], ..TxnRequest::default() };
        let success = operations(vec![Request::RequestTxn(inner())]);
        Kind::Txn(TxnRequest { compare: vec![], success, ..TxnRequest::default() })
    };
    assert!(matches!(real.run(asks(CompareTarget::Value)), Err(KvReject::ReadsTooMuch(_))));
    for target in [CompareTarget::Version, CompareTarget::Create, CompareTarget::Mod] {
        assert!(real.run(asks(target)).is_ok());
    }
}

/// What is removed makes room for what stands behind it.
#[test]
fn what_stands_behind_what_is_removed_counts() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    for number in 0..120 {
        real.run(put(&format!("a-{number:03}"), 1)).unwrap();
    }
    for number in 0..10 {
        real.run(put(&format!("b-{number:03}"), LARGE)).unwrap();
    }
    let range = RangeRequest { key: "a".into(), range_end: "c".into(), limit: 100, ..RangeRequest::default() };
    let remove = DeleteRangeRequest { key: "a".into(), range_end: "b".into(), ..DeleteRangeRequest::default() };
    let looks = vec![Request::RequestRange(range); 12];
    let txn = |requests| Kind::Txn(TxnRequest { success: operations(requests), ..TxnRequest::default() });
    let set = || vec![Request::RequestPut(PutRequest { key: "d".into(), ..PutRequest::default() })];
    assert!(real.run(txn([set(), looks.clone()].concat())).is_ok());
    // Where nothing is removed it hides nothing.
    let few = RangeRequest { key: "b".into(), range_end: "c".into(), limit: 1, ..RangeRequest::default() };
    let elsewhere = DeleteRangeRequest { key: "a-1".into(), range_end: "b".into(), ..DeleteRangeRequest::default() };
    let both = vec![Request::RequestDeleteRange(elsewhere)];
    assert!(real.run(txn([both, vec![Request::RequestRange(few); 12]].concat())).is_ok());
    let refused = real.run(txn([vec![Request::RequestDeleteRange(remove)], looks].concat()));
    assert!(matches!(refused, Err(KvReject::ReadsTooMuch(_))), "{refused:?}");
    assert_eq!(real.range(&all()).unwrap().count, 111);
}

/// A key that does not exist any more is looked at, too, until it is swept away.
#[test]
fn what_does_not_exist_any_more_counts() {
    const COMPARISONS: usize = 120;
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    let keys = READ_BYTES_MAX / (3 * COMPARISONS as u64 * LOOK_BYTES) + 1;
    let numbers: Vec<u64> = (0..keys).collect();
    for some in numbers.chunks(128) {
        let set = |number: &u64| PutRequest { key: number.to_be_bytes().to_vec().into(), ..PutRequest::default() };
        let success = operations(some.iter().map(set).map(Request::RequestPut).collect());
        real.run(Kind::Txn(TxnRequest { success, ..TxnRequest::default() })).unwrap();
    }
    let compare = Compare { key: vec![0].into(), range_end: vec![0].into(), ..Compare::default() };
    let inner = TxnRequest { compare: vec![compare; COMPARISONS], ..TxnRequest::default() };
    let asks = || {
        let success = operations(vec![Request::RequestTxn(inner.clone()); 3]);
        Kind::Txn(TxnRequest { success, ..TxnRequest::default() })
    };
    real.run(Kind::DeleteRange(remove_all(false))).unwrap();
    let refused = real.run(asks());
    assert!(matches!(refused, Err(KvReject::ReadsTooMuch(_))), "{refused:?}");
    let Ok(reply::Kind::Put(reply)) = real.run(put("k", 1)) else { panic!() };
    let newest = reply.header.unwrap().revision;
    real.run(Kind::Compact(CompactionRequest { revision: newest, physical: false })).unwrap();
    let sweep = || Kind::SweepVersions(v1::SweepVersions {});
    while real.run(sweep()) != Ok(reply::Kind::SweepVersions(v1::SweepVersionsReply { swept: 0 })) {}
    assert!(real.run(asks()).is_ok(), "there is one key");
}

/// However often it is asked for again at once, what was answered is not more in one entry than any may read.
#[test]
fn what_is_told_again_counts() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    let mut session = Session::open(&mut real);
    session.next(&mut real, put("k", LARGE)).unwrap();
    let first = session.next(&mut real, put("k", LARGE)).unwrap();
    let header = Some(v1::SessionHeader { session: session.0, seq: 2, acknowledged: 0 });
    let again = v1::Command { session: header, ..command::plain("", put("k", LARGE)) };
    let replies = entry(&mut real, vec![again.clone(); 200]);
    let told = replies.iter().filter(|reply| reply.kind.as_ref() == Some(&first)).count();
    assert_eq!(told, READ_BYTES_MAX as usize / replies[0].encoded_len());
    let put_off = Some(Reject::Kv(KvReject::EntryFull));
    assert!(replies[told..].iter().all(|reply| command::is_put_off(reply) && refused(reply) == put_off));
    assert_eq!(session.ask(&mut real, 2, 0, put("k", LARGE)), Ok(first), "and it is told later");
    // Where so much was asked for in vain nothing more is looked for.
    let next = Some(v1::SessionHeader { session: session.0, seq: 3, acknowledged: 0 });
    let next = v1::Command { session: next, ..command::plain("", put("k", 1)) };
    let replies = entry(&mut real, [vec![again; 200], vec![next.clone()]].concat());
    assert!(command::is_put_off(&replies[200]));
    assert_eq!(refused(&entry(&mut real, vec![next])[0]), None);
}

/// What was put off was not done: it is when it is asked for again, once.
#[test]
fn what_is_put_off_is_done_later() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    fill(&mut real, READ_BYTES_MAX / 2 + 2 * LARGE as u64);
    let session = Session::open(&mut real);
    let look = |seq| {
        let set = Request::RequestPut(PutRequest { key: "0".into(), ..PutRequest::default() });
        let success = operations(vec![set, Request::RequestRange(RangeRequest { limit: 80, ..all() })]);
        let session = (seq > 0).then_some(v1::SessionHeader { session: session.0, seq, acknowledged: 0 });
        v1::Command { session, ..command::plain("", Kind::Txn(TxnRequest { success, ..TxnRequest::default() })) }
    };
    let before = real.versions().0;
    let replies = entry(&mut real, vec![look(0), look(1)]);
    assert!(!command::is_put_off(&replies[0]) && command::is_put_off(&replies[1]));
    assert_eq!(real.versions().0, before + 1);
    for again in [false, true] {
        let reply = &entry(&mut real, vec![look(1)])[0];
        let not_kept = matches!(refused(reply), Some(Reject::AnswerNotKept(_)));
        assert_eq!((refused(reply).is_some(), not_kept), (again, again), "{:?}", refused(reply));
        assert_eq!(real.versions().0, before + 2);
    }
}

/// Whoever has something looked up and does not wait for it any more is shown nothing more.
#[test]
fn what_nobody_waits_for_is_not_looked_up() {
    let mut real = Real::new();
    real.run(put("k", 1)).unwrap();
    let here = std::sync::Arc::default();
    let (head, rows) = real.state.reader().view_while(Wanted::by(&here)).unwrap();
    assert_eq!(Store::of(&head, &rows).range(&all()).unwrap().count, 1);
    drop(here);
    assert!(matches!(Store::of(&head, &rows).range(&all()), Err(NoAnswer::Fault(_))));
    assert!(Store::of(&head, &rows).hash(0).is_err());
}

/// What a put tells of the value before, or keeps of it, is read.
#[test]
fn a_put_that_looks_back_counts() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    for (prev_kv, ignore_value) in [(true, true), (false, true), (false, false)] {
        real.run(put("k", LARGE)).unwrap();
        let again = PutRequest { key: "k".into(), prev_kv, ignore_value, ..PutRequest::default() };
        let count = if ignore_value { READ_BYTES_MAX as usize / LARGE + 1 } else { 200 };
        let replies = entry(&mut real, vec![command::plain("", Kind::Put(again)); count]);
        let refusals = replies.iter().filter_map(refused).count();
        assert_eq!(refusals, usize::from(ignore_value), "{prev_kv} and {ignore_value}");
    }
}

/// Entries with long answers are applied one after another, however many there are.
#[test]
fn long_answers_are_given_in_parts() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    fill(&mut real, 3 * LARGE as u64);
    let look = |number: u64| {
        let set = Request::RequestPut(PutRequest { key: "0".into(), ..PutRequest::default() });
        let success = operations(vec![set, Request::RequestRange(all())]);
        let kind = Kind::Txn(TxnRequest { success, ..TxnRequest::default() });
        let commands = vec![command::plain("", kind).encode_to_vec().into()];
        let body = Body::Commands { stamp: ClusterTime(1), commands };
        Entry { index: Index(real.index + number), term: Term(real.term), body }
    };
    let entries: Vec<Entry> = (1..=4).map(look).collect();
    let mut left = &entries[..];
    while !left.is_empty() {
        let applied = real.state.apply(left).unwrap().len();
        assert_eq!(applied, 1, "each answer has {} bytes", 3 * LARGE);
        left = &left[applied..];
    }
    assert_eq!(real.state.applied().0, entries[3].index);
}

#[test]
fn the_first_formats_bound_nothing() {
    let mut real = Real::new();
    fill(&mut real, READ_BYTES_MAX);
    assert!(real.run(Kind::DeleteRange(remove_all(true))).is_ok());
    let open = |id| Kind::OpenSession(v1::OpenSession { id });
    let opened = |real: &mut Real, id| match real.ask(open(id)) {
        Ok(reply::Kind::OpenSession(reply)) => reply.session,
        other => panic!("{other:?}"),
    };
    assert_eq!(opened(&mut real, 77), 1, "they are counted");
    raise(&mut real, BOUNDED - 1);
    assert_eq!(opened(&mut real, 77), 2);
    raise(&mut real, BOUNDED);
    assert_eq!(opened(&mut real, 77), 77, "they are called as was drawn");
    assert!(matches!(real.ask(open(77)), Err(Reject::Conflict(_))));
    assert_eq!(opened(&mut real, 0), 4, "by a member of before");
}

struct Session(u64, u64);

impl Session {
    fn open(real: &mut Real) -> Self {
        match real.ask(Kind::OpenSession(v1::OpenSession { id: 9 })) {
            Ok(reply::Kind::OpenSession(reply)) => Self(reply.session, 0),
            other => panic!("{other:?}"),
        }
    }

    fn ask(&self, real: &mut Real, seq: u64, acknowledged: u64, kind: Kind) -> Result<reply::Kind, Reject> {
        let session = Some(v1::SessionHeader { session: self.0, seq, acknowledged });
        let reply = entry(real, vec![v1::Command { session, ..command::plain("", kind) }]).remove(0);
        refused(&reply).map_or(Ok(reply.kind.unwrap()), Err)
    }

    fn next(&mut self, real: &mut Real, kind: Kind) -> Result<reply::Kind, Reject> {
        self.1 += 1;
        self.ask(real, self.1, 0, kind)
    }
}

#[test]
fn of_a_long_answer_a_session_keeps_that_it_was_done() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    let mut session = Session::open(&mut real);
    for key in ["a", "b"] {
        session.next(&mut real, put(key, LARGE)).unwrap();
    }
    let remove = || Kind::DeleteRange(remove_all(true));
    let Ok(reply::Kind::DeleteRange(first)) = session.next(&mut real, remove()) else { panic!() };
    assert_eq!((first.deleted, first.prev_kvs.len()), (2, 2));
    let revision = real.range(&all()).unwrap().header;
    let again = session.ask(&mut real, 3, 0, remove());
    assert!(matches!(again, Err(Reject::AnswerNotKept(bytes)) if bytes > SESSION_ANSWER_BYTES_MAX as u64), "{again:?}");
    assert_eq!(real.range(&all()).unwrap().header, revision, "it was not done again");
}

#[test]
fn a_session_keeps_no_more_than_it_may() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    let mut session = Session::open(&mut real);
    let kept = SESSION_ANSWERS_BYTES_MAX / LARGE as u64;
    // The first is told of nothing before.
    for _ in 0..kept + 2 {
        session.next(&mut real, put("a", LARGE)).unwrap();
    }
    let is_kept = |real: &mut Real, seq, acknowledged| match session.ask(real, seq, acknowledged, put("a", LARGE)) {
        Ok(reply::Kind::Put(_)) => true,
        Err(Reject::AnswerNotKept(_)) => false,
        other => panic!("{other:?}"),
    };
    let versions = real.versions();
    let all: Vec<bool> = (1..=kept + 2).map(|seq| is_kept(&mut real, seq, 0)).collect();
    assert!(all[..=kept as usize].iter().all(|kept| *kept) && !all[kept as usize + 1], "{all:?}");
    assert_eq!(real.versions(), versions, "nothing was done again");
    let rows = |real: &Real| {
        let (_, view) = real.state.reader().view().unwrap();
        let mut bytes = 0;
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        view.scan(Table::Replies, all, &mut |_, row| {
            bytes += row.len() as u64;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        bytes
    };
    // Where there is no room at all, a refusal is still none that it was done, even if it says more than that would.
    let left = (SESSION_ANSWERS_BYTES_MAX - rows(&real)) as usize;
    for (seq, bytes) in [left - 100].into_iter().chain([1; 20]).enumerate() {
        session.ask(&mut real, kept + 3 + seq as u64, 0, put("b", bytes)).ok();
    }
    let refuse = || Kind::Compact(CompactionRequest { revision: i64::MAX, physical: false });
    let compacted = kept + 24;
    let refused = session.ask(&mut real, compacted, 0, refuse());
    assert!(matches!(refused, Err(Reject::Kv(KvReject::Future { .. }))), "{refused:?}");
    assert_eq!(session.ask(&mut real, compacted, 0, refuse()), refused);
    // What the client has is forgotten, and makes room.
    let next = kept + 25;
    assert!(is_kept(&mut real, next, compacted));
    assert!(is_kept(&mut real, next, compacted));
    assert!(rows(&real) <= SESSION_ANSWERS_BYTES_MAX);
    assert!(real.ask(Kind::CloseSession(v1::CloseSession { session: session.0 })).is_ok());
    assert_eq!(rows(&real), 0);
}

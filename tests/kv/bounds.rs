//! What commands may read at once and what sessions keep of their answers, from the format on that bounds it.

use cairn::limits::{READ_BYTES_MAX, SESSION_ANSWER_BYTES_MAX, SESSION_ANSWERS_BYTES_MAX};

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
    kvs.iter().map(|row| row.encoded_len() as u64 + 1).sum()
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
    assert!(matches!(refusals[1], Some(Reject::Kv(KvReject::ReadsTooMuch(_)))), "{:?}", refusals[1]);
    assert_eq!(refusals[2], None, "who asks for one key is not refused for that");
    assert_eq!(refused(&entry(&mut real, vec![look()])[0]), None, "the next entry begins anew");
}

/// What a transaction sets it may read, too, and often.
#[test]
fn what_is_set_and_read_counts() {
    let mut real = Real::new();
    raise(&mut real, BOUNDED);
    let key = || Bytes::from("k");
    let look = || Request::RequestRange(RangeRequest { key: key(), ..RangeRequest::default() });
    let looks = |count: usize| {
        let success = operations(std::iter::repeat_with(look).take(count).collect());
        Request::RequestTxn(TxnRequest { success, ..TxnRequest::default() })
    };
    let set = Request::RequestPut(PutRequest { key: key(), value: vec![b'v'; LARGE].into(), ..PutRequest::default() });
    let txn = TxnRequest { success: operations(vec![set, looks(120), looks(120)]), ..TxnRequest::default() };
    assert!(matches!(real.run(Kind::Txn(txn)), Err(KvReject::ReadsTooMuch(_))));
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

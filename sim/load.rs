//! What clients do on keys, and how they note what they saw: the same in simulation and against real processes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::client::{self, is_at};
use crate::io::RngStream;
use crate::limits::{SESSION_ANSWER_BYTES_MAX, SESSION_TTL};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};
use crate::proto::mvccpb::KeyValue;
use crate::sim::door::Door;
use crate::sim::history::{Op, Record, Seen};

/// How long a client that only reads, and from one member, waits for an answer: not long, for the next question may be the one
/// that matters.
pub const READER_TIMEOUT: Duration = Duration::from_millis(400);
/// The number of the first such client.
pub const FIRST_READER: u64 = 201;

/// What each client does.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many operations, at most.
    pub operations: u64,
    /// How long it pauses between two of them, at most.
    pub pause: Duration,
    /// Keys that all clients share.
    pub keys: u64,
    /// Whether it compacts.
    pub compacts: bool,
    /// How often, in thousandths, it pauses for about as long as a session lives.
    pub idle_permille: u64,
    /// How often, in thousandths, it asks for more than a session keeps of an answer.
    pub loud_permille: u64,
}

/// What a client asks for at once.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// One thing, on one key.
    One(u64, Op),
    /// A transaction that sets two keys to the same value, if the first is at a revision where that is given.
    Pair(u64, u64, Op),
    /// All of the first keys, this many.
    All(u64),
    /// A transaction that sets a key to a large value and reads it so often that no session keeps the answer.
    Loud(u64, u64),
}

/// Bytes of a large value.
const LOUD_BYTES: usize = 24 * 1024;
/// How often it is read at once.
const LOUD_LOOKS: usize = SESSION_ANSWER_BYTES_MAX / LOUD_BYTES + 1;
/// About what it reads: what it asks for, as it was and as it puts it.
pub const LOUD_READS: u64 = (2 * LOUD_BYTES * (LOUD_LOOKS + 1)) as u64;

/// A client, and where it writes down what it saw.
pub struct Notes<'a> {
    /// Its number.
    pub client: u64,
    /// Bytes of the values that it puts; at least those of a number.
    pub value_bytes: usize,
    /// A clock that all clients share.
    pub elapsed: &'a (dyn Fn() -> Duration + Sync),
    /// Told of each operation that has ended.
    pub ended: &'a (dyn Fn(Record) + Sync),
}

impl Notes<'_> {
    /// Asks for something and notes what was seen, of each key for itself. Gives that, too.
    pub async fn perform(&self, door: &Door, ask: Ask) -> Vec<Record> {
        let from = (self.elapsed)();
        let sights = ask.of(door, self.value_bytes).await;
        let to = (self.elapsed)();
        let record = |(key, op, seen, at)| Record { client: self.client, key, op, from, to, seen, at };
        let records: Vec<Record> = sights.into_iter().map(record).collect();
        records.iter().cloned().for_each(self.ended);
        records
    }
}

/// One client's share of a load, or what of it begins before `goes_on` says no more.
pub async fn run(door: &Door, load: &Load, mut rng: RngStream, goes_on: &(dyn Fn() -> bool + Sync), notes: Notes<'_>) {
    let mut known = Known::default();
    for count in (0..load.operations).take_while(|_| goes_on()) {
        door.pause(Duration::from_millis(rng.range(1, load.pause.as_millis() as u64))).await;
        if rng.chance(load.idle_permille) {
            // About as long as a session lives, so that its end and its use cross.
            let (before, most) = *rng.pick(&[(2_000, 8_000), (300, 1_200), (300, 1_200)]);
            let span = SESSION_TTL - Duration::from_millis(before) + Duration::from_millis(rng.range(0, most));
            door.pause(span).await;
        }
        let value = (notes.client << 32) | count;
        let ask = match load.loud_permille > 0 && rng.chance(load.loud_permille) {
            true => Ask::Loud(rng.range(0, load.keys), value),
            false => draw(&mut rng, load, value, &known),
        };
        for record in notes.perform(door, ask).await {
            known.learn(&record);
        }
    }
}

/// Reads until `goes_on` says no more. Meant for a client of one member alone, whatever the others know, that gives up soon: one
/// that also writes would wait for its write, just while a member that was left behind may still take itself for the leader.
pub async fn read(
    door: &Door,
    (keys, pause): (u64, Duration),
    mut rng: RngStream,
    goes_on: &(dyn Fn() -> bool + Sync),
    notes: Notes<'_>,
) {
    while goes_on() {
        door.pause(Duration::from_millis(rng.range(1, pause.as_millis() as u64))).await;
        let key = rng.range(0, keys);
        let ask = if rng.chance(150) { Ask::All(keys) } else { Ask::One(key, Op::Get) };
        notes.perform(door, ask).await;
    }
}

/// What a client knows from what it saw.
#[derive(Default)]
struct Known {
    /// Revisions of keys.
    keys: BTreeMap<u64, u64>,
    /// The newest revision of the store.
    newest: u64,
}

impl Known {
    fn learn(&mut self, record: &Record) {
        self.newest = self.newest.max(record.at);
        if let (_, Seen::Put(revision) | Seen::Mismatch(revision)) | (Op::Get, Seen::Got(Some((_, revision)))) =
            (record.op, record.seen)
        {
            self.keys.insert(record.key, revision);
        }
    }
}

fn draw(rng: &mut RngStream, load: &Load, value: u64, known: &Known) -> Ask {
    let keys = load.keys;
    let key = rng.range(0, keys);
    let expected = Some(known.keys.get(&key).copied().unwrap_or(0));
    // A revision that was, not long ago.
    let past = |rng: &mut RngStream| known.newest.saturating_sub(rng.range(0, 12));
    match rng.range(0, 20) {
        0..6 => Ask::One(key, Op::Get),
        6..10 => Ask::One(key, Op::Put { value, expected: None }),
        10..13 => Ask::One(key, Op::Put { value, expected }),
        13..15 => Ask::One(key, Op::Delete),
        15 => Ask::All(keys),
        16 if keys > 1 => Ask::Pair(key, (key + 1) % keys, Op::Put { value, expected: None }),
        17 if keys > 1 => Ask::Pair(key, (key + 1) % keys, Op::Put { value, expected }),
        18 if known.newest > 0 && load.compacts => Ask::One(key, Op::Compact { revision: past(rng) }),
        16..19 => Ask::One(key, Op::Get),
        _ if known.newest > 0 => Ask::One(key, Op::GetAt { revision: past(rng).max(1) }),
        _ => Ask::One(key, Op::Get),
    }
}

fn name(key: u64) -> Bytes {
    key.to_be_bytes().to_vec().into()
}

/// The number that a key's name is; 0 of what is none.
pub(super) fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap_or_default())
}

/// A value of so many bytes: a number, and before it what follows from it, so that the beginning of a value is none.
fn value(number: u64, bytes: usize) -> Bytes {
    let number = number.to_be_bytes();
    let before = (number.len()..bytes).map(|at| !number[at % number.len()]);
    before.chain(number).collect()
}

/// The number that a value is, if every byte is as it was written; 0 of what is none.
pub(super) fn number_of_value(bytes: &[u8]) -> u64 {
    let number = bytes.last_chunk().map_or(0, |last| u64::from_be_bytes(*last));
    if value(number, bytes.len()) == bytes { number } else { 0 }
}

/// At which revision an answer is; 0 if it does not say.
fn revision(header: Option<&ResponseHeader>) -> u64 {
    client::revision(header).0
}

fn found(rows: &[KeyValue], key: u64) -> Option<(u64, u64)> {
    let row = rows.iter().find(|row| number(&row.key) == key)?;
    Some((number_of_value(&row.value), row.mod_revision.cast_unsigned()))
}

/// What was seen of a key: which, what was done, what came of it, and at which revision of the store.
type Sight = (u64, Op, Seen, u64);

impl Ask {
    async fn of(self, door: &Door, value_bytes: usize) -> Vec<Sight> {
        match self {
            Self::One(key, Op::Get) => vec![range(door, key, Op::Get, 0).await],
            Self::One(key, op @ Op::GetAt { revision }) => vec![range(door, key, op, revision).await],
            Self::One(key, op @ Op::Put { value: number, expected: None }) => {
                let put = PutRequest { key: name(key), value: value(number, value_bytes), ..PutRequest::default() };
                vec![match door.put(put).await {
                    Ok(reply) => {
                        let at = revision(reply.header.as_ref());
                        (key, op, Seen::Put(at), at)
                    }
                    Err(seen) => (key, op, seen, 0),
                }]
            }
            Self::One(key, op @ Op::Put { .. }) => put(door, &[key], op, value_bytes).await,
            Self::Pair(key, other, op) => put(door, &[key, other], op, value_bytes).await,
            Self::Loud(key, value) => vec![loud(door, key, value).await],
            Self::One(key, op @ Op::Delete) => {
                let delete = DeleteRangeRequest { key: name(key), ..DeleteRangeRequest::default() };
                vec![match door.delete(delete).await {
                    Ok(reply) => (key, op, Seen::Deleted(reply.deleted > 0), revision(reply.header.as_ref())),
                    Err(seen) => (key, op, seen, 0),
                }]
            }
            Self::One(key, op @ Op::Compact { revision: upto }) => {
                let compact = CompactionRequest { revision: upto.cast_signed(), physical: false };
                vec![match door.compact(compact).await {
                    Ok(reply) => (key, op, Seen::Done, revision(reply.header.as_ref())),
                    Err(seen) => (key, op, seen, 0),
                }]
            }
            Self::All(keys) => {
                let range = RangeRequest { key: name(0), range_end: name(keys), ..RangeRequest::default() };
                match door.range(range).await {
                    Ok(reply) => {
                        let at = revision(reply.header.as_ref());
                        (0..keys).map(|key| (key, Op::Get, Seen::Got(found(&reply.kvs, key)), at)).collect()
                    }
                    // Which of the keys it was that may not be read, nobody says.
                    Err(Seen::Denied) => Vec::new(),
                    Err(seen) => vec![(0, Op::Get, seen, 0)],
                }
            }
        }
    }
}

/// Reads a key, as of a revision if that is not 0.
async fn range(door: &Door, key: u64, op: Op, asked: u64) -> Sight {
    let range = RangeRequest { key: name(key), revision: asked.cast_signed(), ..RangeRequest::default() };
    match door.range(range).await {
        Ok(reply) => (key, op, Seen::Got(found(&reply.kvs, key)), revision(reply.header.as_ref())),
        Err(seen) => (key, op, seen, 0),
    }
}

/// Sets a key to a large value and reads it many times, at once.
async fn loud(door: &Door, key: u64, number: u64) -> Sight {
    let put = PutRequest { key: name(key), value: value(number, LOUD_BYTES), ..PutRequest::default() };
    let look = || Request::RequestRange(RangeRequest { key: name(key), ..RangeRequest::default() });
    let operations = std::iter::once(Request::RequestPut(put)).chain(std::iter::repeat_with(look).take(LOUD_LOOKS));
    let success = operations.map(|request| RequestOp { request: Some(request) }).collect();
    let op = Op::Put { value: number, expected: None };
    match door.txn(TxnRequest { success, ..TxnRequest::default() }).await {
        Ok(reply) => {
            let at = revision(reply.header.as_ref());
            let looks = reply.responses.iter().filter(|response| match &response.response {
                Some(Response::ResponseRange(range)) => found(&range.kvs, key) == Some((number, at)),
                _ => false,
            });
            // An answer that lacks something is none that was given.
            if looks.count() == LOUD_LOOKS { (key, op, Seen::Put(at), at) } else { (key, op, Seen::Put(0), 0) }
        }
        Err(seen) => (key, op, seen, 0),
    }
}

/// Sets keys in a transaction, if the first is at the revision that is given.
async fn put(door: &Door, keys: &[u64], op: Op, value_bytes: usize) -> Vec<Sight> {
    let Op::Put { value: number, expected } = op else { unreachable!("what is put is a put") };
    let first = keys[0];
    let compare = expected.map(|expected| is_at(name(first), expected.cast_signed()));
    let put = |key: &u64| {
        let value = value(number, value_bytes);
        Request::RequestPut(PutRequest { key: name(*key), value, ..Default::default() })
    };
    let look = Request::RequestRange(RangeRequest { key: name(first), ..RangeRequest::default() });
    let txn = TxnRequest {
        compare: compare.into_iter().collect(),
        success: keys.iter().map(|key| RequestOp { request: Some(put(key)) }).collect(),
        failure: vec![RequestOp { request: Some(look) }],
    };
    // Only the first key has a condition of its own.
    let of = |key: u64| if key == first { op } else { Op::Put { value: number, expected: None } };
    match door.txn(txn).await {
        Ok(reply) if reply.succeeded => {
            let at = revision(reply.header.as_ref());
            keys.iter().map(|key| (*key, of(*key), Seen::Put(at), at)).collect()
        }
        Ok(reply) => {
            let at = revision(reply.header.as_ref());
            let actual = match reply.responses.first().and_then(|response| response.response.as_ref()) {
                Some(Response::ResponseRange(range)) => found(&range.kvs, first).map_or(0, |(_, revision)| revision),
                _ => 0,
            };
            vec![(first, op, Seen::Mismatch(actual), at)]
        }
        // Which of the keys it was that may not be set, nobody says.
        Err(Seen::Denied) if keys.len() > 1 => Vec::new(),
        // Each of them may have been set, or none; if the first has a condition, so have the others.
        Err(Seen::Unknown) => keys.iter().map(|key| (*key, of(*key), Seen::Unknown, 0)).collect(),
        Err(seen) => vec![(first, op, seen, 0)],
    }
}

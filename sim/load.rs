//! What clients do on keys, and how they note what they saw: the same in simulation and against real processes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::{Client, ClientError};
use crate::ids::Revision;
use crate::io::RngStream;
use crate::limits::SESSION_TTL;
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
    /// No operation begins after this time.
    pub until: Duration,
    /// How long it pauses between two of them, at most.
    pub pause: Duration,
    /// Keys that all clients share.
    pub keys: u64,
    /// How often, in thousandths, it pauses for about as long as a session lives.
    pub idle_permille: u64,
}

/// One client's share of a load. `elapsed` is the time on a clock that all clients share; `ended` is told of each operation.
pub async fn run(
    client: &Client,
    id: u64,
    load: &Load,
    mut rng: RngStream,
    elapsed: &(dyn Fn() -> Duration + Sync),
    ended: &(dyn Fn(Record) + Sync),
) {
    let mut known = BTreeMap::new();
    for count in 0..load.operations {
        if elapsed() >= load.until {
            return;
        }
        client.pause(Duration::from_millis(rng.range(1, load.pause.as_millis() as u64))).await;
        if rng.chance(load.idle_permille) {
            // About as long as a session lives, so that its end and its use cross.
            let (before, most) = *rng.pick(&[(2_000, 8_000), (300, 1_200), (300, 1_200)]);
            let span = SESSION_TTL - Duration::from_millis(before) + Duration::from_millis(rng.range(0, most));
            client.pause(span).await;
        }
        let key = rng.range(0, load.keys);
        let op = draw_op(&mut rng, (id << 32) | count, known.get(&key).copied());
        let from = elapsed();
        let seen = perform(client, key, op).await;
        if let Seen::Put(revision) | Seen::Mismatch(revision) | Seen::Got(Some((_, revision))) = seen {
            known.insert(key, revision);
        }
        ended(Record { client: id, key, op, from, to: elapsed(), seen });
    }
}

/// Reads until `goes_on` says no more. Meant for a client of one member alone, whatever the others know, that gives up soon: one
/// that also writes would wait for its write, just while a member that was left behind may still take itself for the leader.
pub async fn read(
    client: &Client,
    id: u64,
    (keys, pause): (u64, Duration),
    mut rng: RngStream,
    elapsed: &(dyn Fn() -> Duration + Sync),
    goes_on: &(dyn Fn() -> bool + Sync),
    ended: &(dyn Fn(Record) + Sync),
) {
    while goes_on() {
        client.pause(Duration::from_millis(rng.range(1, pause.as_millis() as u64))).await;
        let (key, from) = (rng.range(0, keys), elapsed());
        let seen = perform(client, key, Op::Get).await;
        ended(Record { client: id, key, op: Op::Get, from, to: elapsed(), seen });
    }
}

fn draw_op(rng: &mut RngStream, value: u64, known: Option<u64>) -> Op {
    match rng.range(0, 10) {
        0..4 => Op::Get,
        4..7 => Op::Put { value, expected: None },
        7..9 => Op::Put { value, expected: Some(known.unwrap_or(0)) },
        _ => Op::Delete,
    }
}

/// Does one thing on a key.
pub async fn perform(client: &Client, key: u64, op: Op) -> Seen {
    let key = key.to_be_bytes();
    let failed = |error: ClientError| match error {
        ClientError::RevisionMismatch { actual, .. } => Seen::Mismatch(actual.0),
        ClientError::Unavailable(_) => Seen::NotDone,
        _ => Seen::Unknown,
    };
    match op {
        Op::Get => client.get(&key).await.map_or_else(failed, |found| {
            Seen::Got(found.map(|row| {
                (u64::from_be_bytes(row.value[..].try_into().unwrap_or_default()), row.mod_revision.cast_unsigned())
            }))
        }),
        Op::Put { value, expected } => client
            .put(&key, &value.to_be_bytes(), expected.map(Revision))
            .await
            .map_or_else(failed, |revision| Seen::Put(revision.0)),
        Op::Delete => client.delete(&key, None).await.map_or_else(failed, Seen::Deleted),
    }
}

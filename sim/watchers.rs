//! Clients that watch all keys, and note what they were told.

use std::sync::Mutex;

use crate::client::{Client, ClientError};
use crate::error::{KvReject, Reject};
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::mvccpb::event::EventType;
use crate::proto::mvccpb::{Event, KeyValue};
use crate::sim::load::{number, number_of_value};

/// A change that a watcher was told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// At which revision of the store.
    pub revision: u64,
    /// Of which key.
    pub key: u64,
    /// What it is now; nothing, if it was removed.
    pub now: Option<u64>,
    /// The value and revision that it had before, if that was told.
    pub before: Option<(u64, u64)>,
}

/// What one watcher was told, in order.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// From which revision on.
    pub from: u64,
    /// The messages.
    pub messages: Vec<Vec<Told>>,
    /// Where it came too late: before the message of this number, up to this revision, without it, it was told nothing.
    pub gaps: Vec<(usize, u64)>,
}

impl Log {
    /// The last revision that was told.
    pub fn last(&self) -> u64 {
        let told = self.messages.last().and_then(|message| message.last()).map_or(0, |told| told.revision);
        told.max(self.gaps.last().map_or(0, |(_, upto)| upto.saturating_sub(1))).max(self.from.saturating_sub(1))
    }
}

/// What all watchers of a run were told.
#[derive(Default)]
pub struct Watchers {
    logs: Mutex<Vec<Log>>,
}

fn told(event: &Event) -> Option<Told> {
    let row = event.kv.as_ref()?;
    let value = |row: &KeyValue| number_of_value(&row.value);
    Some(Told {
        revision: row.mod_revision.cast_unsigned(),
        key: number(&row.key),
        now: (event.r#type() == EventType::Put).then(|| value(row)),
        before: event.prev_kv.as_ref().map(|before| (value(before), before.mod_revision.cast_unsigned())),
    })
}

impl Watchers {
    /// All of them.
    pub fn logs(&self) -> Vec<Log> {
        self.logs.lock().unwrap().clone()
    }

    /// Watches the first `keys` keys from a revision on, or from now on if that is 0, for as long as it is polled.
    pub async fn watch(&self, client: &Client, keys: u64, from: u64) {
        let create = |from: u64| WatchCreateRequest {
            key: 0u64.to_be_bytes().to_vec().into(),
            range_end: keys.to_be_bytes().to_vec().into(),
            start_revision: from.cast_signed(),
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let mut watch = client.watch(create(from));
        let mut place = None;
        loop {
            let next = watch.next().await;
            let mut logs = self.logs.lock().unwrap();
            match next {
                Ok(changes) if changes.events.is_empty() => {
                    place = place.or_else(|| {
                        logs.push(Log { from: changes.revision + 1, ..Log::default() });
                        Some(logs.len() - 1)
                    });
                }
                Ok(changes) => {
                    let place = place.expect("a watch begins before it tells");
                    logs[place].messages.push(changes.events.iter().filter_map(told).collect());
                }
                Err(ClientError::Rejected(Reject::Kv(KvReject::Compacted { compacted, .. }))) => {
                    let number = place.map(|place| (place, logs[place].messages.len()));
                    number.into_iter().for_each(|(place, number)| logs[place].gaps.push((number, compacted)));
                    watch = client.watch(create(compacted));
                }
                // Whoever has no token, or a broken one, is told nothing.
                Err(_) => return,
            }
        }
    }
}

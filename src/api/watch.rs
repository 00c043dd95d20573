//! What etcd's clients call: watches of keys.
//!
//! ```text
//!   create ──► told of everything from its first revision on, in order, each revision whole
//!     │          behind: one batch after the other is read from the history, and the next only when this one was taken
//!     │          up to date: waits for the state to change
//!     └──► canceled: on request, or because the revision that comes next was compacted
//! ```
//!
//! A stream keeps no events: what a watch has not been told is where it always was, in the state. So a slow client costs the
//! memory of one batch, misses nothing, and any member can go on where another stopped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::{Entered, etcd};
use crate::ids::Index;
use crate::limits::{
    EVENTS_BYTES_MAX, FRAGMENT_BYTES_MAX, KEY_STREAMS_MAX, KEY_WATCHES_MAX, NO_LEADER_PATIENCE, PROGRESS_PERIOD,
    WATCH_PATIENCE,
};
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::watch_server::Watch as WatchRpc;
use crate::proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse};
use crate::proto::mvccpb::event::EventType;
use crate::proto::mvccpb::{Event, KeyValue};
use crate::shared::{Caller, REQUIRES_LEADER, SharedNodeState, internal};
use crate::state::auth::Auth;
use crate::state::kv::{self, Change, Store};
use crate::state::table::View;
use crate::time::Monotonic;

/// The number of what concerns all watches of a stream, or none.
const NO_WATCH: i64 = -1;

/// The service.
pub struct WatchService {
    shared: Arc<SharedNodeState>,
    streams: Arc<AtomicUsize>,
    events_max: usize,
}

impl WatchService {
    /// The service of a member that reads so many changes at once.
    pub fn new(shared: Arc<SharedNodeState>, events_max: usize) -> Self {
        Self { shared, streams: Arc::default(), events_max }
    }
}

#[tonic::async_trait]
impl WatchRpc for WatchService {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let entered = etcd::enter(&self.streams, KEY_STREAMS_MAX)?;
        let requires_leader = request.metadata().get(REQUIRES_LEADER).is_some_and(|value| value == "true");
        let watching = Watching {
            shared: self.shared.clone(),
            caller: Caller::of(&request),
            auth_revision: self.shared.reader.auth().revision(),
            events_max: self.events_max,
            asks: request.into_inner(),
            asked_all: false,
            requires_leader,
            alone_since: None,
            watches: BTreeMap::new(),
            next_id: 0,
            seen: Index(0),
            is_behind: false,
            progress_asked: false,
            answers: VecDeque::new(),
            _entered: entered,
        };
        let answers = stream::try_unfold(watching, |mut watching| async move {
            while watching.answers.is_empty() {
                watching.go_on().await?;
            }
            Ok(watching.answers.pop_front().map(|answer| (answer, watching)))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Waits until this member has known no leader for longer than an election may take.
async fn without_leader(shared: &SharedNodeState, mut since: Option<Monotonic>) {
    let clock = &shared.io.clock;
    loop {
        shared.raft.wait(|status| status.leader.is_none().then_some(())).await;
        let patience = since.take().unwrap_or_else(|| clock.now()) + NO_LEADER_PATIENCE;
        let led = shared.raft.wait(|status| status.leader.map(|_| ()));
        if clock.deadline(patience, led).await.is_err() {
            return;
        }
    }
}

/// One watch.
struct Watch {
    key: Bytes,
    range_end: Bytes,
    /// The first revision that it has not been told of.
    next: u64,
    puts: bool,
    deletes: bool,
    prev_kv: bool,
    fragment: bool,
    /// When it is to be told that there was nothing, if it wants to hear so.
    progress_at: Option<Monotonic>,
}

/// A stream.
struct Watching {
    shared: Arc<SharedNodeState>,
    caller: Caller,
    /// As of which all watches were found to be allowed, when they began or since.
    auth_revision: u64,
    /// Changes that are read at once.
    events_max: usize,
    asks: Streaming<WatchRequest>,
    /// The client asks for nothing more; it may listen for as long as it likes.
    asked_all: bool,
    requires_leader: bool,
    /// Since when this member has known no leader, as far as was seen.
    alone_since: Option<Monotonic>,
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
    /// The state that was looked at last.
    seen: Index,
    /// Whether some watch has not been told all of it.
    is_behind: bool,
    /// Whether the client waits to hear how far it has been told.
    progress_asked: bool,
    answers: VecDeque<WatchResponse>,
    _entered: Entered,
}

impl Watching {
    /// Takes a request, or tells of changes, whichever comes first.
    async fn go_on(&mut self) -> Result<(), Status> {
        let clock = self.shared.io.clock.clone();
        let alone = self.shared.raft.status().leader.is_none();
        self.alone_since = alone.then(|| self.alone_since.unwrap_or_else(|| clock.now()));
        let progress_at = self.watches.values().filter_map(|watch| watch.progress_at).min();
        let asked = {
            let Self { shared, asks, asked_all, requires_leader, alone_since, watches, seen, is_behind, .. } = self;
            let changed = async {
                match (watches.is_empty(), *is_behind) {
                    (true, _) => std::future::pending().await,
                    (false, true) => {}
                    (false, false) => shared.raft.wait(|status| (status.applied > *seen).then_some(())).await,
                }
            };
            let silent = async {
                match progress_at {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let left_alone = async {
                match *requires_leader {
                    true => without_leader(shared, *alone_since).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                asked = asks.message(), if !*asked_all => match asked? {
                    Some(asked) => asked.request_union,
                    None => {
                        *asked_all = true;
                        return Ok(());
                    }
                },
                () = changed => None,
                () = silent => None,
                () = shared.raft.ended() => return Err(etcd::stopped()),
                () = left_alone => {
                    sometimes!("a watch ended because its member knew no leader");
                    return Err(etcd::no_leader());
                }
            }
        };
        match asked {
            Some(RequestUnion::CreateRequest(create)) => self.create(create)?,
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id)?,
            Some(RequestUnion::ProgressRequest(_)) => {
                self.confirm().await?;
                self.progress_asked = true;
                self.tell()?;
            }
            None => self.tell()?,
        }
        Ok(())
    }

    /// Waits until this member's state has everything that was committed before: who asks how far it has been told wants to hear
    /// of everything, or to leave a member that lags behind.
    async fn confirm(&self) -> Result<(), Status> {
        let confirmed = self.shared.read_barrier(self.shared.io.clock.now() + WATCH_PATIENCE).await;
        sometimes!(confirmed.is_err(), "a watch was sent away by a member that was not up to date");
        // Whoever is told that there is no leader ends its watches; they are to go on, here or at another member.
        confirmed.map(|_| ()).map_err(|_| etcd::too_late())
    }

    fn header(&self, revision: u64) -> Option<ResponseHeader> {
        etcd::header(&self.shared, kv::signed(revision))
    }

    fn newest(&self) -> Result<u64, Status> {
        let (head, _) = self.shared.reader.view().map_err(internal)?;
        Ok(head.revision)
    }

    /// Whether whoever watches may read the keys of a range.
    fn may(&self, auth: &Auth, key: &[u8], range_end: &[u8]) -> Result<(), String> {
        let may = self.caller.rights(auth).and_then(|rights| rights.read(key, range_end));
        may.map_err(|reject| {
            let status = etcd::rejected(&reject.into());
            format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
        })
    }

    fn create(&mut self, create: WatchCreateRequest) -> Result<(), Status> {
        let (head, rows) = self.shared.reader.view().map_err(internal)?;
        let newest = head.revision;
        let (key, range_end) = (create.key.clone(), create.range_end.clone());
        // No key is empty: all keys from the first on.
        let key = if key.is_empty() { Bytes::from_static(&[0]) } else { key };
        let refusal = if self.watches.contains_key(&create.watch_id) && create.watch_id != 0 {
            Some("mvcc: duplicate watch ID provided on the WatchStream".to_owned())
        } else if !(range_end.is_empty() || range_end[..] == [0] || range_end > key) {
            Some("mvcc: watcher range is empty".to_owned())
        } else if self.watches.len() >= KEY_WATCHES_MAX {
            Some(format!("etcdserver: {KEY_WATCHES_MAX} watches are on this stream already; open another"))
        } else {
            self.may(rows.auth(), &key, &range_end).err()
        };
        if let Some(cancel_reason) = refusal {
            self.answers.push_back(WatchResponse {
                header: self.header(newest),
                watch_id: NO_WATCH,
                created: true,
                canceled: true,
                cancel_reason,
                ..WatchResponse::default()
            });
            return Ok(());
        }
        let mut id = create.watch_id;
        if id == 0 {
            while self.watches.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            id = self.next_id;
            self.next_id += 1;
        }
        let filtered = |kind: FilterType| create.filters.contains(&i32::from(kind));
        let watch = Watch {
            key,
            range_end,
            // What is below all revisions begins with the first.
            next: match create.start_revision {
                0 => newest + 1,
                start => start.max(0).cast_unsigned(),
            },
            puts: !filtered(FilterType::Noput),
            deletes: !filtered(FilterType::Nodelete),
            prev_kv: create.prev_kv,
            fragment: create.fragment,
            progress_at: create.progress_notify.then(|| self.shared.io.clock.now() + PROGRESS_PERIOD),
        };
        self.is_behind |= watch.next <= newest;
        self.watches.insert(id, watch);
        let header = self.header(newest);
        self.answers.push_back(WatchResponse { header, watch_id: id, created: true, ..WatchResponse::default() });
        Ok(())
    }

    fn cancel(&mut self, id: i64) -> Result<(), Status> {
        if self.watches.remove(&id).is_some() {
            let header = self.header(self.newest()?);
            self.answers.push_back(WatchResponse { header, watch_id: id, canceled: true, ..WatchResponse::default() });
        }
        Ok(())
    }

    /// Tells all watches one batch of what they have not been told.
    fn tell(&mut self) -> Result<(), Status> {
        let applied = self.shared.raft.status().applied;
        let (head, rows) = self.shared.reader.view().map_err(internal)?;
        let store = Store::of(&head, &rows);
        self.seen = applied.max(Index(head.applied_index));
        self.cancel_compacted(&store);
        self.cancel_forbidden(rows.auth(), store.revision());
        let first = self.watches.values().map(|watch| watch.next).min().unwrap_or(u64::MAX);
        let mut upto = store.revision();
        if first <= upto {
            let (changes, last) = store.changes(first, self.events_max, EVENTS_BYTES_MAX).map_err(internal)?;
            upto = last;
            self.deliver(&store, &changes, upto)?;
        }
        self.is_behind = upto < store.revision();
        self.report_progress(store.revision());
        Ok(())
    }

    fn cancel_compacted(&mut self, store: &Store<'_, View>) {
        let compacted = |watch: &Watch| watch.next < store.compacted();
        let ids: Vec<i64> = self.watches.iter().filter(|(_, watch)| compacted(watch)).map(|(id, _)| *id).collect();
        for id in ids {
            sometimes!("a watch came too late for a compacted revision");
            self.watches.remove(&id);
            self.answers.push_back(WatchResponse {
                // As etcd says it.
                header: self.header(0),
                watch_id: id,
                canceled: true,
                compact_revision: kv::signed(store.compacted()),
                ..WatchResponse::default()
            });
        }
    }

    /// Ends those whose user may not read all of their keys any more.
    fn cancel_forbidden(&mut self, auth: &Auth, newest: u64) {
        if auth.revision() == std::mem::replace(&mut self.auth_revision, auth.revision()) {
            return;
        }
        let why = |watch: &Watch| self.may(auth, &watch.key, &watch.range_end).err();
        let forbidden: Vec<(i64, String)> =
            self.watches.iter().filter_map(|(id, watch)| Some((*id, why(watch)?))).collect();
        for (watch_id, cancel_reason) in forbidden {
            sometimes!("a watch ended because its user may not read its keys any more");
            self.watches.remove(&watch_id);
            let header = self.header(newest);
            let answer = WatchResponse { header, watch_id, canceled: true, cancel_reason, ..WatchResponse::default() };
            self.answers.push_back(answer);
        }
    }

    fn deliver(&mut self, store: &Store<'_, View>, changes: &[Change], upto: u64) -> Result<(), Status> {
        let now = self.shared.io.clock.now();
        let mut told = Vec::new();
        // However many watches tell what was before, it is there once.
        let mut before = vec![None; changes.len()];
        for (id, watch) in &mut self.watches {
            let mut events = Vec::new();
            for (change, before) in changes.iter().zip(&mut before).filter(|(change, _)| watch.wants(change)) {
                let prev_kv = match before {
                    _ if !watch.prev_kv => None,
                    Some(before) => Option::clone(before),
                    None => before.insert(store.before(change).map_err(internal)?).clone(),
                };
                events.push(event(change, prev_kv));
            }
            watch.next = watch.next.max(upto + 1);
            if !events.is_empty() {
                watch.progress_at = watch.progress_at.map(|_| now + PROGRESS_PERIOD);
                told.push((*id, watch.fragment, events));
            }
        }
        for (watch_id, fragment, events) in told {
            let answer = WatchResponse { header: self.header(upto), watch_id, ..WatchResponse::default() };
            if fragment {
                self.send_in_pieces(&answer, events)
            } else {
                self.answers.push_back(WatchResponse { events, ..answer })
            }
        }
        Ok(())
    }

    fn send_in_pieces(&mut self, answer: &WatchResponse, events: Vec<Event>) {
        let (mut piece, mut bytes) = (Vec::new(), 0);
        for event in events {
            let length = event.encoded_len();
            if bytes + length > FRAGMENT_BYTES_MAX && !piece.is_empty() {
                let events = std::mem::take(&mut piece);
                self.answers.push_back(WatchResponse { events, fragment: true, ..answer.clone() });
                bytes = 0;
            }
            bytes += length;
            piece.push(event);
        }
        self.answers.push_back(WatchResponse { events: piece, ..answer.clone() });
    }

    /// Says how far watches have been told: to who asked, when all have been told everything, and to who was silent for long.
    fn report_progress(&mut self, newest: u64) {
        let now = self.shared.io.clock.now();
        if self.is_behind {
            return;
        }
        if std::mem::take(&mut self.progress_asked) {
            let header = self.header(newest);
            self.answers.push_back(WatchResponse { header, watch_id: NO_WATCH, ..WatchResponse::default() });
        }
        let mut silent = Vec::new();
        for (id, watch) in &mut self.watches {
            if watch.progress_at.is_some_and(|at| at <= now) {
                watch.progress_at = Some(now + PROGRESS_PERIOD);
                // One that waits for a revision that is not there yet has not been told of those before.
                silent.extend((watch.next == newest + 1).then_some(*id));
            }
        }
        for watch_id in silent {
            let header = self.header(newest);
            self.answers.push_back(WatchResponse { header, watch_id, ..WatchResponse::default() });
        }
    }
}

impl Watch {
    fn wants(&self, change: &Change) -> bool {
        let now = &change.now;
        let kind = if now.version == 0 { self.deletes } else { self.puts };
        kind && now.mod_revision.cast_unsigned() >= self.next && kv::is_within(&now.key, &self.key, &self.range_end)
    }
}

fn event(change: &Change, prev_kv: Option<KeyValue>) -> Event {
    let now = &change.now;
    let (kind, kv) = match now.version {
        0 => {
            let KeyValue { key, mod_revision, .. } = now.clone();
            (EventType::Delete, KeyValue { key, mod_revision, ..KeyValue::default() })
        }
        _ => (EventType::Put, now.clone()),
    };
    Event { r#type: kind.into(), kv: Some(kv), prev_kv }
}

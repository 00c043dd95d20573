//! What the state wants of workers that keep none.
//!
//! ```text
//!   question ──► one confirmed read ──► look ──► what has changed since the look before, and its end
//!   a change of the state ────────────► look ──► the same, if anything has changed for this worker
//! ```
//!
//! The first look answers a question, too: so whatever a worker has seen, from whomever, the next server shows no less.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};
use xxhash_rust::xxh3::xxh3_64;

use super::Entered;
use crate::ids::{ClusterId, Index, NodeId};
use crate::limits::{WATCH_PATIENCE, WATCH_PAUSE, WATCH_SILENCE, WATCHES_MAX};
use crate::proto::v1::{self, LookEnd, MemberRole, WatchReply, WatchRequest, watch_reply::Kind};
use crate::raft::transport::REMOVED;
use crate::shared::{self, SharedNodeState, internal};
use crate::state::member;
use crate::time::Monotonic;

/// The service for workers that keep no state.
pub struct WorkService {
    shared: Arc<SharedNodeState>,
    watches: Arc<AtomicUsize>,
}

impl WorkService {
    /// The service of a member.
    pub fn new(shared: Arc<SharedNodeState>) -> Self {
        Self { shared, watches: Arc::default() }
    }

    /// Room for one more stream.
    fn enter(&self) -> Result<Entered, Status> {
        Entered::among(&self.watches, WATCHES_MAX).ok_or_else(|| {
            Status::resource_exhausted(format!("{WATCHES_MAX} workers are told here already; ask another server"))
        })
    }
}

#[tonic::async_trait]
impl v1::work_server::Work for WorkService {
    type WatchStream = BoxStream<'static, Result<WatchReply, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let entered = self.enter()?;
        let (shared, now) = (self.shared.clone(), self.shared.io.clock.now());
        let watching = Watching {
            shared,
            asks: request.into_inner(),
            worker: None,
            seen: Index(0),
            sent: BTreeMap::new(),
            end: LookEnd::default(),
            parts: VecDeque::new(),
            heard: now,
            pause_ends: now,
            _entered: entered,
        };
        let parts = stream::try_unfold(watching, |mut watching| async move {
            while watching.parts.is_empty() {
                if !watching.go_on().await? {
                    return Ok(None);
                }
            }
            Ok(watching.parts.pop_front().map(|part| (part, watching)))
        });
        Ok(Response::new(Box::pin(parts)))
    }
}

/// A stream to one worker.
struct Watching {
    shared: Arc<SharedNodeState>,
    asks: Streaming<WatchRequest>,
    /// Who it is, and its uuid; nobody before the first question.
    worker: Option<(NodeId, Bytes)>,
    /// The state that was looked at last.
    seen: Index,
    /// The hash of each task as it was sent.
    sent: BTreeMap<u64, u64>,
    /// The end of the last look that was sent.
    end: LookEnd,
    /// What is left to send of one look.
    parts: VecDeque<WatchReply>,
    /// When the worker asked last.
    heard: Monotonic,
    /// Until then no change is looked at.
    pause_ends: Monotonic,
    _entered: Entered,
}

impl Watching {
    /// Waits for a question or a change, and looks; false when the worker has ended the stream.
    async fn go_on(&mut self) -> Result<bool, Status> {
        let clock = self.shared.io.clock.clone();
        let asked = {
            let Self { shared, asks, worker, seen, heard, pause_ends, .. } = self;
            let changed = async {
                if worker.is_none() {
                    return std::future::pending().await;
                }
                clock.sleep_until(*pause_ends).await;
                shared.raft.wait(|status| (status.applied > *seen).then_some(())).await;
            };
            tokio::select! {
                biased;
                asked = asks.message() => match asked? {
                    Some(asked) => Some(asked),
                    None => return Ok(false),
                },
                () = changed => None,
                () = clock.sleep_until(*heard + WATCH_SILENCE) => {
                    return Err(Status::deadline_exceeded(format!("nothing was asked for {WATCH_SILENCE:?}")));
                }
            }
        };
        match asked {
            Some(asked) => {
                self.heard = clock.now();
                let number = asked.asked;
                self.greet(asked)?;
                self.confirm().await?;
                self.look(Some(number))?;
            }
            None => self.look(None)?,
        }
        self.pause_ends = clock.now() + WATCH_PAUSE;
        Ok(true)
    }

    /// Notes who asks, at its first question.
    fn greet(&mut self, asked: WatchRequest) -> Result<(), Status> {
        if self.worker.is_some() {
            return Ok(());
        }
        let cluster = self.shared.identity.cluster;
        if asked.cluster_id != cluster.0 {
            return Err(Status::failed_precondition(format!(
                "this member belongs to cluster {}, not {}",
                cluster.hex(),
                ClusterId(asked.cluster_id).hex()
            )));
        }
        self.worker = Some((NodeId(asked.worker), asked.uuid));
        Ok(())
    }

    /// Waits until this member's state has everything that was committed before.
    async fn confirm(&self) -> Result<(), Status> {
        let barrier = self.shared.raft.read_barrier();
        match self.shared.io.clock.timeout(WATCH_PATIENCE, barrier).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Status::unavailable(format!("{error}; ask another server"))),
            Err(_) => {
                sometimes!("a worker was sent away by a server that was not up to date");
                Err(Status::unavailable("no majority confirms that this member is up to date; ask another server"))
            }
        }
    }

    /// Looks at the state: what has changed for the worker is to be sent, and in answer to a question the end of the look in any
    /// case.
    fn look(&mut self, asked: Option<u64>) -> Result<(), Status> {
        let Some((id, uuid)) = &self.worker else { return Ok(()) };
        let (head, rows) = self.shared.reader.view().map_err(internal)?;
        let found = member::find(&rows, *id).map_err(internal)?.filter(|member| member.uuid == *uuid);
        let address = match found {
            Some(member) if member.role() == MemberRole::Worker => member.address,
            Some(member) if member.role() == MemberRole::Removed => {
                sometimes!("a worker without state was told that it was removed");
                let mut status = Status::failed_precondition(format!("worker {id} was removed"));
                status.metadata_mut().insert(REMOVED, "1".parse().expect("plain text"));
                return Err(status);
            }
            _ => {
                let text = format!("this cluster has no worker {id} with this uuid that keeps no state");
                return Err(Status::failed_precondition(text));
            }
        };
        let look = shared::look(&head, &rows, *id).map_err(internal)?;
        self.seen = look.index;
        let now: BTreeMap<u64, u64> = look.tasks.iter().map(|task| (task.id, xxh3_64(&task.encode_to_vec()))).collect();
        let changed = look.tasks.iter().filter(|task| self.sent.get(&task.id) != now.get(&task.id));
        let gone = self.sent.keys().filter(|id| !now.contains_key(id));
        let parts = changed.map(|task| Kind::Task(task.clone())).chain(gone.map(|id| Kind::Gone(*id)));
        self.parts.extend(parts.map(|kind| WatchReply { kind: Some(kind) }));
        // Of all members that ever were, these few are looked up: it is done for every worker, and often.
        let status = self.shared.raft.status();
        let inside: BTreeSet<NodeId> = status.voters.iter().chain(&status.learners).copied().collect();
        let servers = inside.into_iter().map(|id| member::find(&rows, id)).collect::<Result<Vec<_>, _>>();
        let servers = servers.map_err(internal)?.into_iter().flatten().filter(member::is_server);
        let end = LookEnd {
            applied_index: look.index.0,
            epoch: look.epoch.unwrap_or(0),
            answered: asked.unwrap_or(self.end.answered),
            tasks: now.len() as u64,
            address,
            servers: servers.map(|member| member.address).collect(),
        };
        let elsewhere =
            (&end.epoch, &end.address, &end.servers) != (&self.end.epoch, &self.end.address, &self.end.servers);
        if asked.is_some() || !self.parts.is_empty() || elsewhere {
            self.parts.push_back(WatchReply { kind: Some(Kind::End(end.clone())) });
            (self.sent, self.end) = (now, end);
        }
        Ok(())
    }
}

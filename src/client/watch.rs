//! The state as a worker sees it that keeps none: looks that a server sends, and commands that any server takes.
//!
//! ```text
//!   (nothing is known) ──look──► live ──(cut, silent, or not confirmed in time)──► known, not live
//!                                 ▲                                                     │
//!                                 └───────────(the first look of another stream)────────┘
//! ```
//!
//! A stream that is cut says nothing about what is wanted: what was seen last stays, and nothing begins until there is another
//! look. The worker asks now and then, and a server that does not answer with a confirmed look in time is left for another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::Client;
use crate::error::Fault;
use crate::ids::{Address, Index, TaskId, Token};
use crate::io::Io;
use crate::limits::{
    MEMBERS_MAX, MESSAGE_BYTES_MAX, RECONNECT_PAUSE_MIN, REQUEST_TIMEOUT, TASKS_LIVE_MAX, WATCH_PATIENCE, WATCH_PERIOD,
    WORKER_ATTEMPT,
};
use crate::proto::v1::work_client::WorkClient;
use crate::proto::v1::{LookEnd, Task, WatchRequest, command::Kind, reply, watch_reply};
use crate::raft::log::Identity;
use crate::raft::transport::REMOVED;
use crate::state::task;
use crate::time::Monotonic;
use crate::worker::{Desired, Look, Refusal, answer};

/// Of how many failed streams in a row one is told of.
const WARN_EVERY: u32 = 32;

/// The state of a cluster, as a worker sees it that keeps none.
pub struct Remote {
    io: Io,
    /// Who the worker is.
    pub identity: Identity,
    uuid: Bytes,
    /// Where it is.
    address: Address,
    /// Where it was told to look for servers.
    seeds: Vec<Address>,
    known: Mutex<Known>,
    changed: Notify,
}

/// What is known.
struct Known {
    look: Option<Look>,
    /// Who sent it.
    server: Option<Address>,
    /// Where the state has the worker.
    address: Option<Address>,
    /// Where the state has the servers.
    servers: Vec<Address>,
    client: Client,
    /// The number of the last question, of the one that is to be asked, and of the last that was answered.
    asked: u64,
    wanted: u64,
    answered: u64,
    removed: bool,
}

impl Remote {
    /// The state of the cluster of `identity`, whose servers were at `servers` last; they are looked for at `seeds`, too.
    ///
    /// # Panics
    /// With neither.
    pub fn new(
        io: Io,
        identity: Identity,
        uuid: [u8; 16],
        address: Address,
        servers: Vec<Address>,
        seeds: Vec<Address>,
    ) -> Arc<Self> {
        let known = Known {
            look: None,
            server: None,
            address: None,
            client: client(&io, &servers, &seeds),
            servers,
            asked: 0,
            wanted: 0,
            answered: 0,
            removed: false,
        };
        let uuid = uuid.to_vec().into();
        Arc::new(Self { io, identity, uuid, address, seeds, known: Mutex::new(known), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no code panics while it holds what is known")
    }

    /// Waits until `check` gives something for what is known.
    async fn wait<T>(&self, check: impl Fn(&Known) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = check(&self.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// Waits until a server says that the worker was removed.
    pub async fn removed(&self) {
        self.wait(|known| known.removed.then_some(())).await;
    }

    /// Waits until the state has the worker elsewhere than it is, and says where.
    pub async fn misplaced(&self) -> Address {
        self.wait(|known| known.address.clone().filter(|address| *address != self.address)).await
    }

    /// Waits until the servers are elsewhere than `known`, and says where.
    pub async fn servers_moved(&self, before: &[Address]) -> Vec<Address> {
        self.wait(|known| (known.servers != before).then(|| known.servers.clone())).await
    }

    /// Has the cluster know where the worker is. Repeating it does no harm.
    ///
    /// # Errors
    /// Why it does not know it yet.
    pub async fn announce(&self) -> Result<(), String> {
        let client = self.lock().client.clone();
        let Identity { id, .. } = self.identity;
        client.move_member(id, self.uuid.clone(), &self.address).await.map_err(|error| error.to_string())
    }

    /// Whether an attempt is, as far as is known, the worker's to run or to have run.
    pub fn is_under_way(&self, id: TaskId, token: Token) -> bool {
        let has = |task: &Task| task.id == id.0 && task::current(task).is_some_and(|attempt| attempt.token == token.0);
        self.lock().look.as_ref().is_some_and(|look| look.tasks.iter().any(has))
    }

    /// Keeps a stream to one server or another for as long as it is polled, or until the worker is removed.
    pub async fn run(self: Arc<Self>) {
        let mut jitter = self.io.rng.stream("watch");
        // Workers spread over the servers.
        let mut turn = jitter.range(0, u64::from(u16::MAX)) as usize;
        let (mut pause, mut failures) = (RECONNECT_PAUSE_MIN, 0u32);
        loop {
            let server = {
                let known = self.lock();
                let all: Vec<&Address> = known.servers.iter().chain(&self.seeds).collect();
                all[turn % all.len()].clone()
            };
            let looks_before = self.lock().answered;
            let status = self.watch(&server).await;
            let removed = status.metadata().contains_key(REMOVED);
            let served = {
                let mut known = self.lock();
                known.removed |= removed;
                known.look.iter_mut().for_each(|look| look.live = false);
                known.answered > looks_before
            };
            self.changed.notify_waiters();
            if removed {
                tracing::error!("this worker was removed from the cluster");
                return;
            }
            if served {
                (pause, failures) = (RECONNECT_PAUSE_MIN, 0);
            }
            if failures.is_multiple_of(WARN_EVERY) {
                let why = status.message();
                tracing::warn!(%server, why, "a server tells this worker nothing more; trying the next");
            }
            failures = failures.wrapping_add(1);
            turn += 1;
            let millis = pause.as_millis() as u64;
            self.io.clock.sleep(Duration::from_millis(millis / 2 + jitter.range(0, millis))).await;
            pause = (pause * 2).min(WATCH_PERIOD);
        }
    }

    /// Takes looks from a server, and says why that ended.
    async fn watch(&self, server: &Address) -> Status {
        let clock = &self.io.clock;
        let (asks, outgoing) = mpsc::channel(1);
        let mut client = WorkClient::new(self.io.network.connect(server)).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut question = Question::ask(self, &asks);
        let call = client.watch(Request::new(ReceiverStream::new(outgoing)));
        let mut replies = match clock.deadline(question.due, call).await {
            Ok(Ok(replies)) => replies.into_inner(),
            Ok(Err(status)) => return status,
            Err(_) => return late(),
        };
        let mut tasks: BTreeMap<TaskId, Task> = BTreeMap::new();
        let mut whole = true;
        let why = loop {
            let until = if question.is_answered { question.next } else { question.due };
            let wanted = async {
                match question.is_answered {
                    true => self.wait(|known| (known.wanted > known.asked).then_some(())).await,
                    false => std::future::pending().await,
                }
            };
            let reply = tokio::select! {
                biased;
                reply = replies.message() => reply,
                () = clock.sleep_until(until) => {
                    if !question.is_answered {
                        sometimes!("a worker left a server that did not answer in time");
                        break late();
                    }
                    question = Question::ask(self, &asks);
                    continue;
                }
                () = wanted => {
                    question = Question::ask(self, &asks);
                    continue;
                }
            };
            let kind = match reply {
                Ok(Some(reply)) => reply.kind,
                Ok(None) => break Status::unavailable("the stream has ended"),
                Err(status) => break status,
            };
            whole = false;
            match kind {
                Some(watch_reply::Kind::Task(task)) => {
                    tasks.insert(TaskId(task.id), task);
                }
                Some(watch_reply::Kind::Gone(id)) => {
                    tasks.remove(&TaskId(id));
                }
                Some(watch_reply::Kind::End(end)) => {
                    whole = true;
                    question.is_answered |= end.answered >= question.number;
                    if let Err(status) = self.take(end, &tasks, server) {
                        break status;
                    }
                }
                None => break Status::unavailable("a look with a part from a newer version"),
            }
            if tasks.len() as u64 > TASKS_LIVE_MAX {
                break Status::unavailable(format!("{server} sent more than {TASKS_LIVE_MAX} tasks"));
            }
        };
        sometimes!(!whole, "a worker's stream was cut in the middle of a look");
        why
    }

    /// Takes a look that is whole.
    fn take(&self, end: LookEnd, tasks: &BTreeMap<TaskId, Task>, server: &Address) -> Result<(), Status> {
        let odd = |what: &str| Err(Status::unavailable(format!("{server} sent a look that {what}")));
        let counted = tasks.len() as u64;
        if end.tasks != counted {
            return odd("has other tasks than it counts");
        }
        let parse = |text: &String| text.parse().map_err(|error| Status::unavailable(format!("{server}: {error}")));
        let address: Address = parse(&end.address)?;
        let servers: Vec<Address> = end.servers.iter().map(parse).collect::<Result<_, _>>()?;
        if !(1..=MEMBERS_MAX).contains(&servers.len()) {
            return odd("names no servers, or too many");
        }
        let look = Look {
            index: Index(end.applied_index),
            epoch: Some(end.epoch).filter(|epoch| *epoch > 0),
            tasks: Arc::new(tasks.values().cloned().collect()),
            live: true,
        };
        {
            let known = &mut *self.lock();
            // What was seen once is committed, and every server confirms its first look: only a broken one shows less.
            if known.look.as_ref().is_some_and(|before| before.index > look.index) {
                return odd("is older than one before");
            }
            let moved = known.server.as_ref().is_some_and(|before| before != server);
            sometimes!(moved, "a worker's stream moved to another server");
            known.server = Some(server.clone());
            if known.servers != servers {
                known.client = client(&self.io, &servers, &self.seeds);
                known.servers = servers;
            }
            known.answered = known.answered.max(end.answered);
            (known.look, known.address) = (Some(look), Some(address));
        }
        self.changed.notify_waiters();
        Ok(())
    }
}

fn late() -> Status {
    Status::unavailable(format!("no look that is up to date within {WATCH_PATIENCE:?}"))
}

/// A client for the commands of a worker.
fn client(io: &Io, servers: &[Address], seeds: &[Address]) -> Client {
    let all: Vec<Address> =
        servers.iter().chain(seeds.iter().filter(|seed| !servers.contains(seed))).cloned().collect();
    Client::new(io.clone(), &all, REQUEST_TIMEOUT).with_attempt_timeout(WORKER_ATTEMPT)
}

/// A question that was asked on a stream.
struct Question {
    number: u64,
    is_answered: bool,
    /// When the answer must be there.
    due: Monotonic,
    /// When the next is to be asked.
    next: Monotonic,
}

impl Question {
    fn ask(remote: &Remote, asks: &mpsc::Sender<WatchRequest>) -> Self {
        let now = remote.io.clock.now();
        let number = {
            let mut known = remote.lock();
            known.asked += 1;
            known.asked
        };
        let Identity { cluster, id } = remote.identity;
        let request = WatchRequest { cluster_id: cluster.0, worker: id.0, uuid: remote.uuid.clone(), asked: number };
        // If the one before was not even sent, this one is not answered in time, and the stream is given up.
        let _ = asks.try_send(request);
        Self { number, is_answered: false, due: now + WATCH_PATIENCE, next: now + WATCH_PERIOD }
    }
}

impl Desired for Remote {
    fn look(&self) -> Result<Option<Look>, Fault> {
        Ok(self.lock().look.clone())
    }

    fn changed(&self, seen: Index) -> BoxFuture<'_, Index> {
        Box::pin(self.wait(move |known| known.look.as_ref().map(|look| look.index).filter(|index| *index > seen)))
    }

    fn up_to_date(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            // The question under way may have been answered before this was called, or its answer may be on its way.
            let number = {
                let mut known = self.lock();
                known.wanted = known.asked + 1;
                known.wanted
            };
            self.changed.notify_waiters();
            // Nobody finds the output of a worker of which the cluster does not know where it is.
            let here = |known: &Known| known.address.as_ref() == Some(&self.address);
            self.wait(|known| (known.answered >= number && here(known)).then_some(())).await;
            Ok(())
        })
    }

    fn execute(&self, kind: Kind, patience: Duration) -> BoxFuture<'_, Result<reply::Kind, Refusal>> {
        let client = self.lock().client.with_timeout(patience);
        Box::pin(async move {
            let reply = client
                .execute_again(self.identity.cluster, kind)
                .await
                .map_err(|error| Refusal::Failed(error.to_string()))?;
            let reply = answer(reply)?;
            if let reply::Kind::WorkerLease(lease) = &reply {
                let before = self.lock().look.as_ref().and_then(|look| look.epoch);
                let is_new = before.is_some_and(|before| before < lease.epoch);
                sometimes!(is_new, "a worker without state came back after its lease");
            }
            Ok(reply)
        })
    }
}

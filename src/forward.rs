//! Commands on their way from a follower to the leader. One is sent at once; what comes while calls are under way shares the next
//! one, as what comes while the log is being written shares its next entry.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::ids::{Address, NodeId};
use crate::io::{Channel, ChannelError, Clock, Io};
use crate::limits::{BATCH_BYTES_MAX, MESSAGE_BYTES_MAX, PASSED_CALLS_MAX, PASSED_COMMANDS_MAX, PASSED_WAITING_MAX};
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::request_op::Request as Operation;
use crate::proto::v1::command::Kind;
use crate::proto::v1::store_client::StoreClient;
use crate::proto::v1::{Outcome, PassOnRequest, Passed, Refusal, outcome};
use crate::time::Monotonic;

/// The metadata by which a member that had a command in hand says what became of it.
const OUTCOME: &str = "cairn-outcome";
/// The metadata of a refusal that names the leader's address.
pub const LEADER_HINT: &str = "cairn-leader";

/// A refusal that says so: nothing has been done, and nothing will be.
pub fn not_done(code: Code, text: String) -> Status {
    let mut status = Status::new(code, text);
    status.metadata_mut().insert(OUTCOME, MetadataValue::from_static("not-done"));
    status
}

/// Whether a refusal says that the command has certainly not been carried out.
pub fn is_not_done(status: &Status) -> bool {
    let said = status.metadata().get(OUTCOME).is_some_and(|value| value.as_bytes() == b"not-done");
    said || ChannelError::is_connect(status)
}

/// A refusal that says that the command may have been carried out, or may yet be.
pub fn unknown_outcome() -> Status {
    let text = "the outcome is unknown: it may take effect yet; a retry is safe only under a session";
    let mut status = Status::aborted(text);
    status.metadata_mut().insert(OUTCOME, MetadataValue::from_static("unknown"));
    status
}

/// The refusal of a member that does not lead, with the leader's address if it is known.
pub fn not_leader(leader: Option<&Address>) -> Status {
    let mut status = not_done(Code::Unavailable, "not done: this member does not lead".into());
    if let Some(value) = leader.and_then(|address| address.as_str().parse().ok()) {
        status.metadata_mut().insert(LEADER_HINT, value);
    }
    status
}

/// A command that is to be passed on, and who waits for what comes of it.
struct Waiting {
    command: Bytes,
    deadline: Monotonic,
    claim: Claim,
    answer: oneshot::Sender<Result<Bytes, Status>>,
}

/// Who has a command: whoever claims it first sends it, or says that it never will be.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// The way to a leader.
#[derive(Clone)]
struct Lane {
    leader: NodeId,
    channel: Channel,
    queue: mpsc::Sender<Waiting>,
    /// A call has failed: where the leader is, is to be looked up again.
    failed: Arc<AtomicBool>,
}

/// The way to whoever leads.
pub struct Forwarder {
    io: Io,
    /// To whoever led last.
    lane: Mutex<Option<Lane>>,
}

impl Forwarder {
    /// One that has passed nothing on.
    pub fn new(io: Io) -> Self {
        Self { io, lane: Mutex::default() }
    }

    /// Has the leader carry out a command; gives its encoded reply, or nothing if it was never sent and `moved` says that another
    /// leads. `channel` is asked for when there is no way there, or a call has failed.
    ///
    /// # Errors
    /// What the leader says of the outcome; aborted if nobody knows it.
    pub async fn pass_on(
        &self,
        leader: NodeId,
        channel: impl FnOnce() -> Result<Option<Channel>, Status>,
        (command, is_brief): (Bytes, bool),
        deadline: Monotonic,
        moved: impl Future<Output = ()> + Send,
    ) -> Result<Option<Bytes>, Status> {
        let Some(lane) = self.lane(leader, channel)? else { return Err(not_leader(None)) };
        let (answer, mut answered) = oneshot::channel();
        let claim = Claim::default();
        let waiting = Waiting { command, deadline, claim: claim.clone(), answer };
        if !is_brief {
            call(&*self.io.clock, &lane.channel, &lane.failed, vec![waiting]).await;
        } else if lane.queue.try_send(waiting).is_err() {
            let text = "not done: too many commands wait for the leader; try again later";
            return Err(not_done(Code::ResourceExhausted, text.into()));
        }
        let clock = &self.io.clock;
        let first = match clock.deadline(deadline, select(&mut answered, pin!(moved))).await {
            Ok(Either::Left((answer, _))) => return answer.unwrap_or_else(|_| Err(unknown_outcome())).map(Some),
            Ok(Either::Right(_)) if claim.take() => {
                sometimes!("a command that waited for a leader went to the next");
                return Ok(None);
            }
            // It is on its way.
            Ok(Either::Right(_)) => clock.deadline(deadline, answered).await,
            Err(late) => Err(late),
        };
        match first {
            Ok(answer) => answer.unwrap_or_else(|_| Err(unknown_outcome())).map(Some),
            Err(_) if claim.take() => {
                let text = "not done: the leader did not take what was passed on before in time";
                Err(not_done(Code::Unavailable, text.into()))
            }
            Err(_) => Err(unknown_outcome()),
        }
    }

    fn lane(
        &self,
        leader: NodeId,
        channel: impl FnOnce() -> Result<Option<Channel>, Status>,
    ) -> Result<Option<Lane>, Status> {
        let is_good = |lane: &&Lane| lane.leader == leader && !lane.failed.load(Ordering::Relaxed);
        if let Some(lane) = self.lock().as_ref().filter(is_good) {
            return Ok(Some(lane.clone()));
        }
        let Some(channel) = channel()? else { return Ok(None) };
        let (queue, waiting) = mpsc::channel(PASSED_WAITING_MAX);
        let lane = Lane { leader, channel, queue, failed: Arc::default() };
        // It ends when nobody can put anything into its queue any more, and what was passed on is answered.
        let run = run(self.io.clock.clone(), lane.channel.clone(), lane.failed.clone(), waiting);
        self.io.spawn.spawn("pass on", Box::pin(run)).detach();
        *self.lock() = Some(lane.clone());
        Ok(Some(lane))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Lane>> {
        self.lane.lock().expect("no code panics while it holds the way")
    }
}

/// Sends what waits, a few calls at once.
async fn run(clock: Arc<dyn Clock>, channel: Channel, failed: Arc<AtomicBool>, mut queue: mpsc::Receiver<Waiting>) {
    let mut calls = FuturesUnordered::new();
    loop {
        let room = calls.len() < PASSED_CALLS_MAX;
        tokio::select! {
            biased;
            Some(()) = calls.next(), if !calls.is_empty() => {}
            first = queue.recv(), if room => {
                let Some(first) = first else { break };
                let (mut bytes, mut batch) = (first.command.len(), vec![first]);
                while batch.len() < PASSED_COMMANDS_MAX && bytes < BATCH_BYTES_MAX {
                    let Ok(next) = queue.try_recv() else { break };
                    bytes += next.command.len();
                    batch.push(next);
                }
                calls.push(call(&*clock, &channel, &failed, batch));
            }
        }
    }
    while calls.next().await.is_some() {}
}

/// Makes one call and answers everybody who waits for it.
async fn call(clock: &dyn Clock, channel: &Channel, failed: &AtomicBool, mut batch: Vec<Waiting>) {
    // Who has lost patience was told that it will not be done.
    batch.retain(|waiting| waiting.claim.take());
    sometimes!(batch.len() > 1, "commands were passed on together");
    let now = clock.now();
    let Some(deadline) = batch.iter().map(|waiting| waiting.deadline).max() else { return };
    let passed = |waiting: &Waiting| Passed {
        command: waiting.command.clone(),
        timeout_ms: u64::try_from(waiting.deadline.since(now).as_millis()).unwrap_or(u64::MAX),
    };
    let mut request = Request::new(PassOnRequest { commands: batch.iter().map(passed).collect() });
    request.set_timeout(deadline.since(now));
    let mut client = StoreClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let outcomes = match clock.deadline(deadline, client.pass_on(request)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner().outcomes),
        Ok(Err(status)) if ChannelError::is_connect(&status) => {
            sometimes!("the leader was gone when a command was passed on to it");
            Err(not_leader(None))
        }
        Ok(Err(status)) if matches!(status.code(), Code::Unauthenticated | Code::Unimplemented) => {
            let text = format!("not done: the leader does not take what this member passes on: {}", status.message());
            Err(not_done(Code::Unavailable, text))
        }
        Ok(Err(_)) | Err(_) => {
            sometimes!("a connection broke while a command was passed on");
            Err(unknown_outcome())
        }
    };
    match outcomes {
        Ok(outcomes) => {
            // Whoever is left over does not know.
            for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                let result = result(outcome);
                // Whoever is there may not be the leader.
                let is_lost = result.as_ref().is_err_and(|status| status.code() == Code::Unavailable);
                failed.fetch_or(is_lost, Ordering::Relaxed);
                let _ = waiting.answer.send(result);
            }
        }
        Err(status) => {
            failed.store(true, Ordering::Relaxed);
            batch.into_iter().for_each(|waiting| drop(waiting.answer.send(Err(status.clone()))));
        }
    }
}

/// What became of a command, as the leader says it to a member that passed it on.
pub fn outcome(result: Result<Bytes, Status>) -> Outcome {
    let text = |status: &Status, name| {
        let value = status.metadata().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let kind = match result {
        Ok(reply) => outcome::Kind::Reply(reply),
        Err(status) => outcome::Kind::Refusal(Refusal {
            code: status.code() as i32,
            message: status.message().into(),
            outcome: text(&status, OUTCOME),
            leader: text(&status, LEADER_HINT),
        }),
    };
    Outcome { kind: Some(kind) }
}

fn result(outcome: Outcome) -> Result<Bytes, Status> {
    let refusal = match outcome.kind {
        Some(outcome::Kind::Reply(reply)) => return Ok(reply),
        Some(outcome::Kind::Refusal(refusal)) => refusal,
        None => return Err(unknown_outcome()),
    };
    if refusal.outcome.is_empty() {
        return Err(unknown_outcome());
    }
    let mut status = Status::new(Code::from_i32(refusal.code), refusal.message);
    for (name, value) in [(OUTCOME, refusal.outcome), (LEADER_HINT, refusal.leader)] {
        if let Some(value) = value.parse().ok().filter(|_| !value.is_empty()) {
            status.metadata_mut().insert(name, value);
        }
    }
    Err(status)
}

/// Whether the reply to a command is short whatever the state: then it may share a call.
pub fn is_answered_briefly(kind: &Kind) -> bool {
    match kind {
        Kind::Put(put) => !put.prev_kv,
        Kind::DeleteRange(delete) => !delete.prev_kv,
        Kind::Txn(txn) => tells_little(txn),
        Kind::LeaseGrant(_) | Kind::LeaseRevoke(_) | Kind::LeaseKeepAlive(_) => true,
        Kind::OpenSession(_) | Kind::KeepSession(_) | Kind::CloseSession(_) => true,
        Kind::SubmitTask(_) | Kind::ReportAttempt(_) => true,
        _ => false,
    }
}

fn tells_little(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).all(|operation| match &operation.request {
        Some(Operation::RequestRange(_)) | None => false,
        Some(Operation::RequestPut(put)) => !put.prev_kv,
        Some(Operation::RequestDeleteRange(delete)) => !delete.prev_kv,
        Some(Operation::RequestTxn(txn)) => tells_little(txn),
    })
}

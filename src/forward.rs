//! Commands on their way from a follower to the leader, many in one call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};

use crate::ids::{Address, ClusterId, Index, NodeId};
use crate::io::{Channel, ChannelError, Clock, Io};
use crate::lane::{Lane, Unanswered};
use crate::limits::ANSWER_BYTES_MAX;
use crate::proto::etcdserverpb::TxnRequest;
use crate::proto::etcdserverpb::request_op::Request as Operation;
use crate::proto::v1::command::Kind;
use crate::proto::v1::store_client::StoreClient;
use crate::proto::v1::{Outcome, PassOnRequest, Passed, Refusal, outcome};
use crate::raft::log::Identity;
use crate::raft::transport::{CLUSTER, TO};
use crate::state::auth::is_of_members;
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

/// What a member says that passed a command on, and does not have itself what came of it: a retry may be told more.
pub fn not_here_yet() -> Status {
    let mut status = Status::aborted("it was done, but this member, which passed it on, has not come so far in time");
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

/// Says in a call which cluster it is for, and which member if it is for one: another may be there by now.
pub fn name(cluster: ClusterId, to: Option<NodeId>, metadata: &mut MetadataMap) {
    metadata.insert(CLUSTER, cluster.0.into());
    if let Some(to) = to {
        metadata.insert(TO, to.0.into());
    }
}

/// Refuses a call that is for another than this member, or its cluster; one that names nobody is for whoever is there.
///
/// # Errors
/// It is for another.
pub fn check_name(me: Identity, metadata: &MetadataMap) -> Result<(), Status> {
    let is =
        |name, own: u64| metadata.get(name).is_none_or(|value| value.to_str().is_ok_and(|id| id.parse() == Ok(own)));
    if is(CLUSTER, me.cluster.0) && is(TO, me.id.0) {
        return Ok(());
    }
    Err(not_done(Code::Unavailable, "not done: it was for another member than is here now".into()))
}

/// What came of a command: its encoded reply, and where it stands in the log. Whose state has that much shows what it did.
pub type Done = (Bytes, Index);

/// The way to a leader.
#[derive(Clone)]
struct Way {
    leader: NodeId,
    channel: Channel,
    lane: Lane<Bytes, Result<Done, Status>>,
    /// A call has failed: where the leader is, is to be looked up again.
    failed: Arc<AtomicBool>,
}

/// The way to whoever leads.
pub struct Forwarder {
    io: Io,
    cluster: ClusterId,
    /// To whoever led last.
    way: Mutex<Option<Way>>,
}

impl Forwarder {
    /// One that has passed nothing on.
    pub fn new(io: Io, cluster: ClusterId) -> Self {
        Self { io, cluster, way: Mutex::default() }
    }

    /// Has the leader carry out a command; gives what came of it, or nothing if it was never sent and `moved` says that another
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
    ) -> Result<Option<Done>, Status> {
        let Some(way) = self.way(leader, channel)? else { return Err(not_leader(None)) };
        let clock = &self.io.clock;
        if !is_brief {
            let to = (self.cluster, leader);
            let answers = call(clock.clone(), to, way.channel, way.failed, vec![(command, deadline)]).await;
            return answers.into_iter().next().unwrap_or_else(|| Err(unknown_outcome())).map(Some);
        }
        let not_sent = |code, why: &str| Err(not_done(code, format!("not done: {why}")));
        match way.lane.pass(&**clock, command, deadline, moved).await {
            Ok(answer) => answer.map(Some),
            Err(Unanswered::Moved) => {
                sometimes!("a command that waited for a leader went to the next");
                Ok(None)
            }
            Err(Unanswered::Full) => {
                not_sent(Code::ResourceExhausted, "too many commands wait for the leader; try again later")
            }
            Err(Unanswered::Late) => {
                not_sent(Code::Unavailable, "the leader did not take what was passed on before in time")
            }
            Err(Unanswered::Ended) => not_sent(Code::Unavailable, "this member is stopping"),
            Err(Unanswered::Lost) => Err(unknown_outcome()),
        }
    }

    fn way(
        &self,
        leader: NodeId,
        channel: impl FnOnce() -> Result<Option<Channel>, Status>,
    ) -> Result<Option<Way>, Status> {
        let is_good = |way: &&Way| way.leader == leader && !way.failed.load(Ordering::Relaxed);
        if let Some(way) = self.lock().as_ref().filter(is_good) {
            return Ok(Some(way.clone()));
        }
        let Some(channel) = channel()? else { return Ok(None) };
        let failed: Arc<AtomicBool> = Arc::default();
        let carry = {
            let (clock, to) = (self.io.clock.clone(), (self.cluster, leader));
            let (channel, failed) = (channel.clone(), failed.clone());
            move |commands| Box::pin(call(clock.clone(), to, channel.clone(), failed.clone(), commands)) as BoxFuture<_>
        };
        let lane = Lane::new(&*self.io.spawn, "pass on", Bytes::len, carry);
        let way = Way { leader, channel, lane, failed };
        *self.lock() = Some(way.clone());
        Ok(Some(way))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Way>> {
        self.way.lock().expect("no code panics while it holds the way")
    }
}

/// Makes one call and says what came of each command.
async fn call(
    clock: Arc<dyn Clock>,
    (cluster, to): (ClusterId, NodeId),
    channel: Channel,
    failed: Arc<AtomicBool>,
    commands: Vec<(Bytes, Monotonic)>,
) -> Vec<Result<Done, Status>> {
    sometimes!(commands.len() > 1, "commands were passed on together");
    let (now, count) = (clock.now(), commands.len());
    let Some(deadline) = commands.iter().map(|(_, deadline)| *deadline).max() else { return Vec::new() };
    let passed = |(command, deadline): (Bytes, Monotonic)| Passed {
        command,
        timeout_ms: u64::try_from(deadline.since(now).as_millis()).unwrap_or(u64::MAX),
    };
    let mut request = Request::new(PassOnRequest { commands: commands.into_iter().map(passed).collect() });
    name(cluster, Some(to), request.metadata_mut());
    request.set_timeout(deadline.since(now));
    let mut client = StoreClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let status = match clock.deadline(deadline, client.pass_on(request)).await {
        Ok(Ok(reply)) => {
            let results: Vec<_> = reply.into_inner().outcomes.into_iter().map(result).collect();
            // Whoever is there may not be the leader.
            let is_lost =
                |result: &Result<Done, Status>| result.as_ref().is_err_and(|status| status.code() == Code::Unavailable);
            failed.fetch_or(results.iter().any(is_lost), Ordering::Relaxed);
            return results;
        }
        Ok(Err(status)) if is_not_done(&status) => {
            sometimes!("the leader was gone when a command was passed on to it");
            not_leader(None)
        }
        Ok(Err(status)) if matches!(status.code(), Code::Unauthenticated | Code::Unimplemented) => {
            let text = format!("not done: the leader does not take what this member passes on: {}", status.message());
            not_done(Code::Unavailable, text)
        }
        Ok(Err(_)) | Err(_) => {
            sometimes!("a connection broke while a command was passed on");
            unknown_outcome()
        }
    };
    failed.store(true, Ordering::Relaxed);
    vec![Err(status); count]
}

/// What became of a command, as the leader says it to a member that passed it on.
pub fn outcome(result: Result<Done, Status>) -> Outcome {
    let text = |status: &Status, name| {
        let value = status.metadata().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (kind, index) = match result {
        Ok((reply, index)) => (outcome::Kind::Reply(reply), index.0),
        Err(status) => {
            let refusal = Refusal {
                code: status.code() as i32,
                message: status.message().into(),
                outcome: text(&status, OUTCOME),
                leader: text(&status, LEADER_HINT),
            };
            (outcome::Kind::Refusal(refusal), 0)
        }
    };
    Outcome { kind: Some(kind), index }
}

fn result(outcome: Outcome) -> Result<Done, Status> {
    let refusal = match outcome.kind {
        Some(outcome::Kind::Reply(reply)) => return Ok((reply, Index(outcome.index))),
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

/// Whether a command leaves something that whoever asked for it may look for: else it may be answered before it is known everywhere.
pub fn leaves_something(kind: &Kind) -> bool {
    let only_renews =
        matches!(kind, Kind::LeaseKeepAlive(_) | Kind::OpenSession(_) | Kind::KeepSession(_) | Kind::CloseSession(_));
    !only_renews && !is_of_members(kind)
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
        Kind::Batch(batch) => {
            batch.commands.iter().filter_map(|command| command.kind.as_ref()).all(is_answered_briefly)
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_is_for_one_member_of_one_cluster() {
        let me = Identity { cluster: ClusterId(7), id: NodeId(1) };
        assert!(check_name(me, &MetadataMap::new()).is_ok(), "from before there were names");
        for (cluster, id, is_mine) in [(7, 1, true), (7, 2, false), (8, 1, false)] {
            let mut metadata = MetadataMap::new();
            name(ClusterId(cluster), Some(NodeId(id)), &mut metadata);
            match check_name(me, &metadata) {
                Ok(()) => assert!(is_mine, "member {id} of {cluster}"),
                Err(status) => assert!(!is_mine && is_not_done(&status), "member {id} of {cluster}"),
            }
        }
    }
}

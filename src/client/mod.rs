//! The client: finds a member that answers, retries, and makes each command take effect once.
//!
//! A command is sent under a session with a sequence of its own, so a retry to any member after any failover gets the
//! first answer. What cannot be known is said: an attempt that broke in the middle and could not be repeated before the
//! deadline ends as [`ClientError::Unknown`], never as a guess.

mod auth;
mod backup;
mod events;
mod kv;
mod leases;
mod line;
mod maintenance;
mod tasks;
mod together;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use tonic::{Code, Request, Status};

use crate::error::{AuthReject, KvReject, Reject};
use crate::forward::{self, LEADER_HINT, is_not_done};
use crate::ids::{Address, ClusterId, NodeId, Revision, Seq, SessionId};
use crate::io::{Channel, Io};
use crate::limits::ANSWER_BYTES_MAX;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::{HealthCheckRequest, health_client::HealthClient};
use crate::proto::v1::{
    self, cluster_client::ClusterClient, command::Kind, query_reply, query_request, reply, store_client::StoreClient,
};
use crate::state::command;
use crate::time::Monotonic;

pub use events::{Changes, KeyWatch};
pub use kv::{is_at, is_created_at, revision, with_prefix};
pub use leases::HeldLease;
pub use line::{Entered, Line, Turn};
use together::Together;
pub use watch::Remote;

/// How long one attempt at one member may take before the next is asked.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a member that is asked for itself may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The cluster's answer: it will be the same next time.
    #[error("{0}")]
    Rejected(Reject),
    /// A precondition on a key's revision does not hold.
    #[error("the key's revision is {actual}, not {expected} (0 means that the key does not exist)")]
    RevisionMismatch {
        /// What was expected.
        expected: Revision,
        /// What the key has.
        actual: Revision,
    },
    /// The request makes no sense to the member that got it.
    #[error("{0}")]
    Invalid(String),
    /// Not done: nobody took it before the deadline.
    #[error("not done: {0}")]
    Unavailable(String),
    /// It may have taken effect, or may yet.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

impl ClientError {
    /// What it means for a call that changes nothing.
    fn of_read(self) -> Self {
        match self {
            Self::Unknown(why) => Self::Unavailable(why),
            other => other,
        }
    }
}

/// A connection to a cluster. Copies share it and its session.
#[derive(Clone)]
pub struct Client {
    io: Io,
    endpoints: Arc<Vec<(Address, Channel)>>,
    state: Arc<Mutex<State>>,
    /// Who it is, if it is to be somebody.
    login: Option<Arc<auth::Login>>,
    /// How commands on keys go together.
    together: Arc<Together>,
    timeout: Duration,
    attempt_timeout: Duration,
}

#[derive(Default)]
struct State {
    session: Option<SessionId>,
    next: u64,
    acknowledged: u64,
    /// Ended requests above the acknowledged one.
    ended: BTreeSet<u64>,
    /// The endpoint that answered last.
    preferred: usize,
}

/// Ends a request also when its caller loses patience and drops it: a hole in the sequence would close the window.
struct EndOnDrop<'a> {
    client: &'a Client,
    session: SessionId,
    seq: Seq,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.client.end(self.session, self.seq);
    }
}

/// What an attempt at one member gave, when it was no answer.
enum Failure {
    NotDone(String),
    Unknown(String),
    Final(ClientError),
}

/// One attempt at one member.
type Attempt<T> = BoxFuture<'static, Result<tonic::Response<T>, Status>>;

fn store(channel: Channel) -> StoreClient<Channel> {
    StoreClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

fn failure(status: Status) -> Failure {
    // Some of the services are etcd's, and so are their words.
    let text = status.message().trim_start_matches("etcdserver: ").trim_start_matches("not done: ").to_owned();
    match status.code() {
        Code::PermissionDenied => Failure::Final(ClientError::Rejected(AuthReject::Denied.into())),
        Code::InvalidArgument if text == "user name is empty" => {
            Failure::Final(ClientError::Rejected(AuthReject::UserMissing.into()))
        }
        Code::InvalidArgument
        | Code::Unimplemented
        | Code::OutOfRange
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Unauthenticated => Failure::Final(ClientError::Invalid(text)),
        _ if is_not_done(&status) => Failure::NotDone(text),
        _ => Failure::Unknown(text),
    }
}

impl Client {
    /// A client of the cluster whose members are at `endpoints`; calls give up after `timeout`. What it talks through is
    /// [`os::client_io`](crate::os::client_io) in the real world.
    ///
    /// # Panics
    /// Without an endpoint.
    ///
    /// # Examples
    /// ```no_run
    /// use std::time::Duration;
    /// use cairn::{client::Client, os};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let members = ["10.0.0.1:7400".parse()?, "10.0.0.2:7400".parse()?, "10.0.0.3:7400".parse()?];
    /// let client = Client::new(os::client_io(None)?, &members, Duration::from_secs(10));
    /// println!("{} members", client.status().await?.members.len());
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(io: Io, endpoints: &[Address], timeout: Duration) -> Self {
        let channels = endpoints.iter().map(|address| (address.clone(), io.network.connect(address))).collect();
        Self::over(io, channels, timeout)
    }

    /// The same, over channels that there are already.
    ///
    /// # Panics
    /// Without one.
    pub fn over(io: Io, channels: Vec<(Address, Channel)>, timeout: Duration) -> Self {
        assert!(!channels.is_empty(), "a client needs an endpoint");
        let endpoints = Arc::new(channels);
        let (state, together) = Default::default();
        Self { io, endpoints, state, login: None, together, timeout, attempt_timeout: ATTEMPT_TIMEOUT }
    }

    /// The same, with calls that give up after `timeout`.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same, which gives one member so long to answer before it asks the next.
    pub fn with_attempt_timeout(self, attempt_timeout: Duration) -> Self {
        Self { attempt_timeout, together: Arc::default(), ..self }
    }

    /// Waits.
    pub async fn pause(&self, span: Duration) {
        self.io.clock.sleep(span).await;
    }

    /// What comes of something within a time; nothing if it takes longer.
    pub async fn within<T>(&self, span: Duration, future: impl Future<Output = T> + Send) -> Option<T> {
        self.io.clock.timeout(span, future).await.ok()
    }

    /// The member that answered last, or whose turn it is.
    fn preferred(&self) -> Channel {
        self.endpoints[self.lock().preferred % self.endpoints.len()].1.clone()
    }

    /// Has the next member asked from now on.
    fn turn_away(&self) {
        let mut state = self.lock();
        state.preferred = (state.preferred + 1) % self.endpoints.len();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the client's state")
    }

    /// What the first member that answers knows of the cluster.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<v1::StatusReply, ClientError> {
        let status = self.attempts(|channel, _| {
            Box::pin(async move { ClusterClient::new(channel).status(v1::StatusRequest {}).await })
        });
        status.await.map_err(ClientError::of_read)
    }

    /// Asks each of these members itself, all at once: whether it serves, and what it knows; `None` of one that does not
    /// answer within a second.
    pub async fn ask_each(&self, members: &[v1::Member]) -> BTreeMap<NodeId, Option<(bool, v1::StatusReply)>> {
        let ask = |member: &v1::Member| {
            let channel = member.address.parse().ok().map(|address| self.signed(self.io.network.connect(&address)));
            async move {
                let channel = channel?;
                let check = HealthCheckRequest::default();
                let health = HealthClient::new(channel.clone()).check(check).await.ok()?.into_inner();
                let status = ClusterClient::new(channel).status(v1::StatusRequest {}).await.ok()?.into_inner();
                Some((health.status() == ServingStatus::Serving, status))
            }
        };
        let answers = members.iter().map(|member| {
            let answer = self.io.clock.timeout(ASK_TIMEOUT, ask(member));
            // Another member may have its address now.
            async move { (NodeId(member.id), answer.await.ok().flatten().filter(|(_, status)| status.id == member.id)) }
        });
        join_all(answers).await.into_iter().collect()
    }

    /// Has an id ready for a node that is yet to join from an address, and is not to vote unless it is promoted if it is to stand
    /// by. Asking again gives the same.
    ///
    /// # Errors
    /// See [`ClientError`]; invalid if a member has the address, or there are too many.
    pub async fn expect_member(&self, address: &Address, standby: bool) -> Result<NodeId, ClientError> {
        self.attempts(|channel, _| {
            let request = v1::ExpectRequest { address: address.to_string(), standby };
            Box::pin(async move { ClusterClient::new(channel).expect(request).await })
        })
        .await
        .map(|reply| NodeId(reply.id))
    }

    /// Gives a learner a vote. Giving it again is no error.
    ///
    /// # Errors
    /// See [`ClientError`]; invalid if there is no such learner, or it has not caught up.
    pub async fn promote_member(&self, id: NodeId) -> Result<(), ClientError> {
        self.attempts(|channel, _| {
            let request = v1::PromoteRequest { id: id.0 };
            Box::pin(async move { ClusterClient::new(channel).promote(request).await })
        })
        .await
        .map(|_| ())
    }

    /// Removes a member for ever. Removing it again is no error.
    ///
    /// # Errors
    /// See [`ClientError`]; invalid if there is no such member or a majority of the rest cannot be reached.
    pub async fn remove_member(&self, id: NodeId) -> Result<(), ClientError> {
        self.attempts(|channel, _| {
            let request = v1::RemoveRequest { id: id.0 };
            Box::pin(async move { ClusterClient::new(channel).remove(request).await })
        })
        .await
        .map(|_| ())
    }

    /// Says where a member is from now on; the member itself does. Repeating it does no harm.
    ///
    /// # Errors
    /// See [`ClientError`]; invalid if there is no member of this id and uuid.
    pub async fn move_member(&self, id: NodeId, uuid: Bytes, address: &Address) -> Result<(), ClientError> {
        self.attempts(|channel, _| {
            let request = v1::MoveRequest { id: id.0, uuid: uuid.clone(), address: address.to_string() };
            Box::pin(async move { ClusterClient::new(channel).r#move(request).await })
        })
        .await
        .map(|_| ())
    }

    /// Has another voter lead: the one given, or the one whose log is furthest. Says who leads then.
    ///
    /// # Errors
    /// See [`ClientError`]; invalid if it is no voter.
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<NodeId, ClientError> {
        self.attempts(|channel, _| {
            let request = v1::TransferLeaderRequest { to: to.map_or(0, |id| id.0) };
            Box::pin(async move { ClusterClient::new(channel).transfer_leader(request).await })
        })
        .await
        .map(|reply| NodeId(reply.leader))
    }

    /// Carries out a command that names what it assumes, so that doing it again does nothing: it is under no session, and for this
    /// cluster alone.
    ///
    /// # Errors
    /// See [`ClientError`]; a refusal of the state is an answer.
    pub async fn execute_again(&self, cluster: ClusterId, kind: Kind) -> Result<v1::Reply, ClientError> {
        self.attempts(|channel, deadline| {
            let mut request = Request::new(command::plain("", kind.clone()));
            forward::name(cluster, None, request.metadata_mut());
            request.set_timeout(deadline.since(self.io.clock.now()));
            Box::pin(async move { store(channel).execute(request).await })
        })
        .await
    }

    /// Carries out a command exactly once. Of commands on keys, what is asked for while others are under way goes in one call with
    /// whatever else waits: so many can be asked for at once.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn execute(&self, kind: Kind) -> Result<reply::Kind, ClientError> {
        if together::may_go(&kind) {
            return self.execute_together(kind).await;
        }
        self.execute_alone(kind).await
    }

    /// Carries out a command exactly once, in a call of its own.
    async fn execute_alone(&self, kind: Kind) -> Result<reply::Kind, ClientError> {
        loop {
            let (session, seq) = self.begin().await?;
            let _ended = EndOnDrop { client: self, session, seq };
            match self.execute_once(session, seq, &kind).await {
                // The session ran out before the command was first tried: nothing happened, a new one will do.
                Err(ClientError::Rejected(Reject::SessionExpired(expired))) if expired == session => {
                    self.forget(session)
                }
                result => return result,
            }
        }
    }

    async fn execute_once(&self, session: SessionId, seq: Seq, kind: &Kind) -> Result<reply::Kind, ClientError> {
        let mut unsure = false;
        let result = self
            .attempts_noting(&mut unsure, |channel, deadline| {
                let acknowledged = self.acknowledged(session);
                let header = v1::SessionHeader { session: session.0, seq: seq.0, acknowledged };
                let command = v1::Command { session: Some(header), ..command::plain("", kind.clone()) };
                let mut request = Request::new(command);
                request.set_timeout(deadline.since(self.io.clock.now()));
                Box::pin(async move { store(channel).execute(request).await })
            })
            .await?;
        match answer(result) {
            // An earlier attempt may have taken effect before the session ran out.
            Err(ClientError::Rejected(reject @ Reject::SessionExpired(_))) if unsure => {
                self.forget(session);
                Err(ClientError::Unknown(reject.to_string()))
            }
            // Refusals that are not kept: they say nothing of a copy that is still on its way.
            Err(ClientError::Rejected(
                reject @ (Reject::WindowFull { .. }
                | Reject::Stale { .. }
                | Reject::Invalid { .. }
                | Reject::Kv(KvReject::EntryFull)
                | Reject::Auth(AuthReject::UserMissing | AuthReject::Denied)),
            )) if unsure => Err(ClientError::Unknown(reject.to_string())),
            answer => answer,
        }
    }

    /// The session, opened at its first use, and the next sequence in it. Both are taken at once: a sequence belongs to
    /// the session it was counted in.
    async fn begin(&self) -> Result<(SessionId, Seq), ClientError> {
        loop {
            {
                let mut state = self.lock();
                if let Some(session) = state.session {
                    state.next += 1;
                    return Ok((session, Seq(state.next)));
                }
            }
            self.open_session().await?;
        }
    }

    /// What may be acknowledged in a session; nothing in one that was given up meanwhile.
    fn acknowledged(&self, session: SessionId) -> u64 {
        let state = self.lock();
        if state.session == Some(session) { state.acknowledged } else { 0 }
    }

    /// Notes that a request will not be asked for again.
    fn end(&self, session: SessionId, seq: Seq) {
        let mut state = self.lock();
        if state.session != Some(session) {
            return;
        }
        state.ended.insert(seq.0);
        while let Some(next) = state.ended.first().copied().filter(|first| *first == state.acknowledged + 1) {
            state.ended.remove(&next);
            state.acknowledged = next;
        }
    }

    fn forget(&self, session: SessionId) {
        let mut state = self.lock();
        if state.session == Some(session) {
            let preferred = state.preferred;
            *state = State { preferred, ..State::default() };
        }
    }

    async fn open_session(&self) -> Result<(), ClientError> {
        // A session opened twice by a retry costs a row until it expires, nothing else.
        match self.execute_plain(Kind::OpenSession(v1::OpenSession::default())).await? {
            reply::Kind::OpenSession(reply) => {
                // Another copy may have been faster; then this session idles until it expires.
                self.lock().session.get_or_insert(SessionId(reply.session));
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Carries out a command that may take effect more than once.
    async fn execute_plain(&self, kind: Kind) -> Result<reply::Kind, ClientError> {
        let command = command::plain("", kind);
        let reply = self
            .attempts(|channel, deadline| {
                let mut request = Request::new(command.clone());
                request.set_timeout(deadline.since(self.io.clock.now()));
                Box::pin(async move { store(channel).execute(request).await })
            })
            .await?;
        answer(reply)
    }

    async fn query(&self, kind: query_request::Kind) -> Result<query_reply::Kind, ClientError> {
        self.query_any(kind, false).await
    }

    /// Asks the state; if `serializable`, that of whichever member answers, which may be behind.
    async fn query_any(&self, kind: query_request::Kind, serializable: bool) -> Result<query_reply::Kind, ClientError> {
        let reply = self
            .attempts(|channel, deadline| {
                let mut request = Request::new(v1::QueryRequest { serializable, kind: Some(kind.clone()) });
                request.set_timeout(deadline.since(self.io.clock.now()));
                Box::pin(async move { store(channel).query(request).await })
            })
            .await
            .map_err(ClientError::of_read)?;
        match reply.kind {
            Some(query_reply::Kind::Rejection(rejection)) => Err(rejected(&rejection)),
            kind => kind.ok_or_else(|| ClientError::Unavailable("an answer from a newer version".into())),
        }
    }

    async fn attempts<T>(&self, attempt: impl Fn(Channel, Monotonic) -> Attempt<T> + Send) -> Result<T, ClientError> {
        self.attempts_noting(&mut false, attempt).await
    }

    /// Tries one member after another until one answers or the deadline comes. `unsure` is set when an attempt ended
    /// in a way that leaves open whether it took effect.
    async fn attempts_noting<T>(
        &self,
        unsure: &mut bool,
        attempt: impl Fn(Channel, Monotonic) -> Attempt<T> + Send,
    ) -> Result<T, ClientError> {
        let clock = &self.io.clock;
        let deadline = clock.now() + self.timeout;
        // What each of them said last: together they tell more than any.
        let mut said: BTreeMap<usize, String> = BTreeMap::new();
        loop {
            let turn = self.lock().preferred % self.endpoints.len();
            let (address, channel) = &self.endpoints[turn];
            let until = deadline.min(clock.now() + self.attempt_timeout);
            let mut hint = None;
            let mut token = None;
            let asked = async {
                self.log_in(channel, until).await?;
                token = self.token();
                Ok(clock.deadline(until, attempt(channel.clone(), until)).await)
            };
            let outcome = match asked.await {
                Err(failure) => failure,
                Ok(Ok(Ok(response))) => {
                    sometimes!(*unsure, "a command was answered after an attempt of unknown outcome");
                    return Ok(response.into_inner());
                }
                Ok(Ok(Err(status))) if self.is_outdated(&status, token.as_ref()) => {
                    Failure::NotDone(status.message().to_owned())
                }
                Ok(Ok(Err(status))) => {
                    let value = status.metadata().get(LEADER_HINT).and_then(|value| value.to_str().ok());
                    hint = value.map(str::to_owned);
                    failure(status)
                }
                Ok(Err(_)) => Failure::Unknown("no answer in time".into()),
            };
            match outcome {
                // This attempt did nothing; an earlier one may have, or may yet.
                Failure::Final(error) if *unsure => return Err(ClientError::Unknown(error.to_string())),
                Failure::Final(error) => return Err(error),
                Failure::NotDone(why) => drop(said.insert(turn, format!("{address}: {why}"))),
                Failure::Unknown(why) => {
                    *unsure = true;
                    let why = format!("{address}: {why}");
                    // A last attempt that is cut short says less than the one before.
                    match clock.now() >= deadline {
                        true => drop(said.entry(turn).or_insert(why)),
                        false => drop(said.insert(turn, why)),
                    }
                }
            }
            sometimes!(hint.is_some(), "a client was told who leads");
            let named = hint.and_then(|hint| self.endpoints.iter().position(|(address, _)| address.as_str() == hint));
            self.lock().preferred = named.unwrap_or(turn + 1);
            if clock.now() + RETRY_PAUSE >= deadline {
                break;
            }
            clock.sleep(RETRY_PAUSE).await;
        }
        let said = said.into_values().collect::<Vec<_>>().join(", ");
        Err(if *unsure { ClientError::Unknown(said) } else { ClientError::Unavailable(said) })
    }
}

fn answer(reply: v1::Reply) -> Result<reply::Kind, ClientError> {
    match reply.kind {
        Some(reply::Kind::Rejection(rejection)) => Err(rejected(&rejection)),
        Some(kind) => Ok(kind),
        None => Err(ClientError::Unknown("an answer from a newer version".into())),
    }
}

fn rejected(rejection: &v1::Rejection) -> ClientError {
    match command::reject(rejection) {
        // What was done is not refused.
        Some(reject @ Reject::AnswerNotKept(_)) => {
            sometimes!("a client was told that an answer was not kept");
            ClientError::Unknown(reject.to_string())
        }
        Some(reject) => ClientError::Rejected(reject),
        None => ClientError::Invalid("refused for a reason that only a newer version knows".into()),
    }
}

fn unexpected(answer: &impl std::fmt::Debug) -> ClientError {
    ClientError::Unknown(format!("the answer is of another kind: {answer:?}"))
}

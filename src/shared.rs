//! What all services of a node share: the way to propose, to read, and to find the leader.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use crate::controller;
use crate::error::{AuthReject, Fault, Reject};
use crate::forward::{self, Done, Forwarder, not_done, not_here_yet, not_leader, unknown_outcome};
use crate::ids::{Address, Index, NodeId};
use crate::io::{Channel, Io, RngStream};
use crate::limits::{
    ANSWER_MARGIN, PASSWORD_BYTES_MAX, PASSWORDS_WAITING_MAX, QUESTIONS_WAITING_MAX, READERS, REQUEST_TIMEOUT,
    REQUEST_TIMEOUT_MAX, TICK,
};
use crate::metrics::Metrics;
use crate::proto::v1::{self, change_auth::Change, command::Kind as CommandKind, reply};
use crate::questions::{Question, TimeToLive};
use crate::raft::core::Role;
use crate::raft::handle::{ProposeError, RaftHandle};
use crate::raft::log::Identity;
use crate::state::auth::{Auth, Password, ROOT, Rights};
use crate::state::kv::{self, NoAnswer};
use crate::state::machine::StateReader;
use crate::state::table::View;
use crate::state::{alarm, auth, command, member, task, worker};
use crate::threads::Threads;
use crate::time::Monotonic;
use crate::worker::{Desired, Look, Outputs, Refusal};

/// Marks a call that a follower passed on, so that it is not passed on again.
pub const FORWARDED: &str = "cairn-forwarded";

/// What a node may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of free space below which nothing is taken that grows.
    pub free_space_floor: u64,
    /// Bytes that keys and their history may take while this member leads.
    pub keys_quota: u64,
    /// How often a password is mixed before it is kept.
    pub password_rounds: NonZeroU32,
    /// The newest format of the state that this member takes part in.
    pub newest_format: u32,
}

/// The metadata, with the value `true`, of a stream that is to end when its member has known no leader for long: etcd's clients send
/// it, too.
pub const REQUIRES_LEADER: &str = "hasleader";

/// What a refusal begins with for which there is too little space at the leader.
pub const SHORT_OF_SPACE: &str = "not done: too little space is left";

/// The metadata of who asks for a backup and says whose word it is to be: [`OWN`] or [`CONFIRMED`].
pub const VIEW: &str = "cairn-view";
/// What the member has that is asked.
pub const OWN: &str = "own";
/// All that was committed before it was asked for.
pub const CONFIRMED: &str = "confirmed";

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The name; empty if nobody has logged in.
    pub user: Arc<str>,
    /// When the password was set that it has logged in with, if it has shown a token of its own.
    pub since: Option<u64>,
    /// Whether it may speak as a member.
    pub is_member: bool,
}

impl Default for Caller {
    /// Nobody.
    fn default() -> Self {
        Self { user: "".into(), since: None, is_member: false }
    }
}

impl Caller {
    /// Who makes a call, as was found out when it was let through.
    pub fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// What it may do. Where that is not looked at, whoever may speak as a member may do everything; others are to call anew, with
    /// more than a user's token.
    ///
    /// # Errors
    /// See [`Auth::rights`].
    pub fn rights<'a>(&self, auth: &'a Auth) -> Result<Rights<'a>, AuthReject> {
        match auth.is_enabled() {
            false if self.is_member => Ok(Rights::All),
            false => Err(AuthReject::Denied),
            true => auth.check_token(&self.user, self.since).and_then(|()| auth.rights(&self.user)),
        }
    }

    /// Whether a command of it may go into the log, where it is looked at what its user may do when it is applied. By then users may
    /// be disabled, and whoever has no name there is somebody who may speak as a member.
    ///
    /// # Errors
    /// It is nobody.
    pub fn may_ask(&self) -> Result<(), AuthReject> {
        if self.user.is_empty() && !self.is_member { Err(AuthReject::UserMissing) } else { Ok(()) }
    }

    /// What it asks to have carried out.
    pub fn command(&self, kind: CommandKind) -> v1::Command {
        v1::Command { since: self.since, ..command::plain(&self.user, kind) }
    }

    /// Whoever it is, though its token may be good no more: to undo what it was let do.
    pub fn whatever_it_showed(self) -> Self {
        Self { since: None, ..self }
    }

    /// Who has shown a token that was never good, or is no more.
    pub fn outdated() -> Self {
        Self { since: Some(0), ..Self::default() }
    }

    /// Who may do everything.
    pub fn root() -> Self {
        Self { user: ROOT.into(), since: None, is_member: true }
    }
}

/// A running node as its services see it.
pub struct SharedNodeState {
    /// The seams.
    pub io: Io,
    /// Who this member is.
    pub identity: Identity,
    /// The way to the log.
    pub raft: RaftHandle,
    /// The way to the state.
    pub reader: StateReader,
    /// The output of what ran here; `None` if nothing may be run here.
    pub outputs: Option<Outputs>,
    /// What this member counts.
    pub metrics: Arc<Metrics>,
    /// What it may take.
    pub bounds: Bounds,
    channels: Mutex<BTreeMap<Address, Channel>>,
    forwarder: Forwarder,
    /// Free bytes and the floor they are under, while they are.
    short_of_space: Mutex<Option<(u64, u64)>>,
    /// Where ids come from that may be any.
    ids: Mutex<RngStream>,
    /// Where what is secret comes from.
    secrets: Mutex<RngStream>,
    /// Where questions are looked up that may take long, and where passwords are looked at.
    questions: Threads,
    passwords: Threads,
}

const _: () = {
    const fn assert_shareable<T: Send + Sync>() {}
    assert_shareable::<SharedNodeState>();
};

impl SharedNodeState {
    /// Bundles the parts of a running node.
    pub fn new(
        io: Io,
        identity: Identity,
        raft: RaftHandle,
        reader: StateReader,
        outputs: Option<Outputs>,
        metrics: Arc<Metrics>,
        bounds: Bounds,
    ) -> Arc<Self> {
        let ids = Mutex::new(io.rng.stream("ids"));
        let secrets = Mutex::new(io.rng.stream("secrets"));
        let questions = Threads::new(&*io.spawn, "questions", READERS, QUESTIONS_WAITING_MAX);
        let passwords = Threads::new(&*io.spawn, "passwords", 1, PASSWORDS_WAITING_MAX);
        let forwarder = Forwarder::new(io.clone(), identity.cluster);
        Arc::new(Self {
            forwarder,
            io,
            identity,
            raft,
            reader,
            outputs,
            metrics,
            bounds,
            channels: Mutex::default(),
            short_of_space: Mutex::default(),
            ids,
            secrets,
            questions,
            passwords,
        })
    }

    /// When a call that arrived now must be answered: what the caller asked for, within bounds, and a little less, so that it hears
    /// why it was not done before it gives up.
    pub fn deadline<T>(&self, request: &Request<T>) -> Monotonic {
        let asked = asked_timeout(request.metadata()).unwrap_or(REQUEST_TIMEOUT).min(REQUEST_TIMEOUT_MAX);
        self.io.clock.now() + asked.saturating_sub(ANSWER_MARGIN.min(asked / 10))
    }

    /// Carries out a checked command, here if this member leads, at the leader otherwise. Takes it encoded.
    ///
    /// # Errors
    /// `UNAVAILABLE` and `RESOURCE_EXHAUSTED`: not done. `ABORTED`: the outcome is unknown.
    async fn execute(
        &self,
        (asked, kind): (&v1::Command, &CommandKind),
        command: Bytes,
        deadline: Monotonic,
        source: Source,
    ) -> Result<Done, Status> {
        let mut first = false;
        loop {
            let leader = self.await_leader(deadline).await?;
            if leader != self.identity.id {
                if source != Source::Caller {
                    return Err(not_leader(self.address_of(leader)?.as_ref()));
                }
                let channel = || Ok(self.address_of(leader)?.map(|address| self.channel(&address)));
                let with_others = forward::is_answered_briefly(kind) && !first;
                let (passed, moved) = ((command.clone(), with_others), self.raft.other_leader(leader));
                match self.forwarder.pass_on(leader, channel, passed, deadline, moved).await? {
                    // Those that went with it do not wait for it: it goes once more, by itself.
                    Some((reply, _)) if is_put_off(&reply) && !first => first = true,
                    Some(done) => {
                        if forward::leaves_something(kind) {
                            self.has_come_to(done.1, deadline).await?;
                        }
                        return Ok(done);
                    }
                    None => {}
                }
                continue;
            }
            self.check_space(kind)?;
            self.check_quota((asked, kind), command.len(), deadline).await?;
            let began = self.io.clock.now();
            match self.io.clock.deadline(deadline, self.raft.propose(command.clone(), first)).await {
                // It was not done; what is the first of its entry finds room.
                Ok(Ok((reply, _))) if is_put_off(&reply) && !first && source != Source::MemberWithOthers => {
                    sometimes!("there was no room in its entry for a command");
                    sometimes!(source == Source::Member, "there was no room in its entry for what was passed on");
                    first = true;
                }
                Ok(Ok(done)) => {
                    self.metrics.commands.observe(self.io.clock.now().since(began));
                    return Ok(done);
                }
                // Certainly not done: whoever leads now may take it.
                Ok(Err(ProposeError::NotLeader(_) | ProposeError::Superseded)) => {
                    self.io.clock.sleep(TICK / 10).await;
                }
                Ok(Err(ProposeError::Unknown)) | Err(_) => return Err(unknown_outcome()),
                Ok(Err(error)) => {
                    if error == ProposeError::Busy {
                        self.metrics.commands_refused.inc();
                    }
                    return Err(not_done(refused_as(error), error.to_string()));
                }
            }
        }
    }

    /// Waits until this member's own state has an index: who is told here of what was done is to find it here.
    async fn has_come_to(&self, index: Index, deadline: Monotonic) -> Result<(), Status> {
        let applied = self.raft.wait_or_end(|status| (status.applied >= index).then_some(()));
        match self.io.clock.deadline(deadline, applied).await {
            Ok(Some(())) => Ok(()),
            Ok(None) | Err(_) => Err(not_here_yet()),
        }
    }

    /// Notes that there is too little space, or enough again.
    pub fn set_short_of_space(&self, short: Option<(u64, u64)>) {
        *self.short_of_space.lock().expect("no code panics while it holds the mark") = short;
    }

    /// Whether there is too little space here for what grows.
    pub fn is_short_of_space(&self) -> bool {
        self.short_of_space.lock().expect("no code panics while it holds the mark").is_some()
    }

    /// Waits a little before something is tried again; not if that would be too late, or this member stops meanwhile.
    pub async fn pause(&self, deadline: Monotonic) -> bool {
        if self.io.clock.now() + TICK >= deadline {
            return false;
        }
        tokio::select! {
            biased;
            () = self.raft.ended() => false,
            () = self.io.clock.sleep(TICK) => true,
        }
    }

    /// Refuses what grows while there is too little space here.
    fn check_space(&self, kind: &CommandKind) -> Result<(), Status> {
        // Whoever makes room needs a session for it.
        let grows = matches!(kind, CommandKind::SubmitTask(_)) || alarm::adds(kind);
        match *self.short_of_space.lock().expect("no code panics while it holds the mark") {
            Some((free, floor)) if grows => {
                sometimes!("growth was refused for want of space");
                self.metrics.commands_refused.inc();
                let (place, mib) = (self.io.disk.describe(), |bytes: u64| bytes >> 20);
                let text = format!(
                    "{SHORT_OF_SPACE}: {place} has {} MiB left, the floor is {} MiB; make room there, or lower --free-space-floor",
                    mib(free),
                    mib(floor)
                );
                Err(not_done(Code::ResourceExhausted, text))
            }
            _ => Ok(()),
        }
    }

    /// Raises an alarm before a command is proposed for which the keys would take more than they may: then the state refuses it.
    async fn check_quota(
        &self,
        of: (&v1::Command, &CommandKind),
        bytes: usize,
        deadline: Monotonic,
    ) -> Result<(), Status> {
        if !self.is_above_quota(of, bytes)? {
            return Ok(());
        }
        sometimes!("keys and their history took more than they may");
        tracing::error!(quota = self.bounds.keys_quota, "keys take more than they may: what adds to them is refused");
        let raise = Bytes::from(controller::raise_no_space(self.identity.id).encode_to_vec());
        match self.io.clock.deadline(deadline, self.raft.propose(raise, false)).await {
            // Who does not lead any more cannot propose the command either.
            Ok(Ok(_) | Err(ProposeError::NotLeader(_) | ProposeError::Superseded)) => Ok(()),
            Ok(Err(error)) => Err(not_done(refused_as(error), error.to_string())),
            Err(_) => Err(not_done(Code::Unavailable, "not done: an alarm could not be raised in time".into())),
        }
    }

    /// Whether the keys would take more than they may, and no alarm is raised yet.
    fn is_above_quota(&self, (asked, kind): (&v1::Command, &CommandKind), bytes: usize) -> Result<bool, Status> {
        let fits = |bytes: usize| self.reader.keys_bytes() + bytes as u64 <= self.bounds.keys_quota;
        if !alarm::adds(kind) || fits(bytes) {
            return Ok(false);
        }
        let (head, rows) = self.reader.view().map_err(internal)?;
        // What is refused anyway takes no space.
        let takes = |kind: &CommandKind| alarm::adds(kind) && auth::check_command(rows.auth(), asked, kind).is_ok();
        let taken = match kind {
            CommandKind::Batch(batch) => {
                let taking = batch.commands.iter().filter(|command| command.kind.as_ref().is_some_and(takes));
                taking.map(Message::encoded_len).sum()
            }
            kind if takes(kind) => bytes,
            _ => 0,
        };
        Ok(head.alarms_no_space == 0 && taken > 0 && !fits(taken))
    }

    async fn await_leader(&self, deadline: Monotonic) -> Result<NodeId, Status> {
        let leader = self.raft.wait(|status| status.leader);
        let text = "not done: no leader is known; is a majority of the members up?";
        let nobody = |_| not_done(Code::Unavailable, text.into());
        self.io.clock.deadline(deadline, leader).await.map_err(nobody)
    }

    /// The way to another member.
    pub fn channel(&self, address: &Address) -> Channel {
        let mut channels = self.channels.lock().expect("no code panics while it holds the channels");
        channels.entry(address.clone()).or_insert_with(|| self.io.network.connect(address)).clone()
    }

    /// Where a member is, as far as this member knows.
    ///
    /// # Errors
    /// The database failed.
    pub fn address_of(&self, id: NodeId) -> Result<Option<Address>, Status> {
        let (_, rows) = self.reader.view().map_err(internal)?;
        Ok(member::find(&rows, id).map_err(internal)?.and_then(|member| member.address.parse().ok()))
    }

    /// The newest format of the state that a member takes part in, as far as it has said so.
    pub fn newest_format_of(&self, id: NodeId) -> Option<u32> {
        match id == self.identity.id {
            true => Some(self.bounds.newest_format),
            false => self.raft.newest_format_of(id),
        }
    }

    /// Waits until the state has everything committed before now.
    ///
    /// # Errors
    /// `UNAVAILABLE`: no majority confirmed before the deadline.
    pub async fn read_barrier(&self, deadline: Monotonic) -> Result<Index, Status> {
        let began = self.io.clock.now();
        match self.io.clock.deadline(deadline, self.raft.read_barrier()).await {
            Ok(Ok(index)) => {
                self.metrics.reads.observe(self.io.clock.now().since(began));
                Ok(index)
            }
            Ok(Err(error)) => Err(Status::new(refused_as(error), error.to_string())),
            Err(_) => Err(Status::unavailable(
                "no majority of the members confirmed the read in time; for this member's own view ask for a \
                 serializable read",
            )),
        }
    }

    /// Answers a query.
    ///
    /// # Errors
    /// See [`Self::view`]; `INVALID_ARGUMENT` if the query is none.
    pub async fn query(
        &self,
        query: v1::QueryRequest,
        caller: &Caller,
        deadline: Monotonic,
    ) -> Result<v1::QueryReply, Status> {
        use v1::{query_reply::Kind as Answer, query_request::Kind};
        fn told<T>((applied_index, answer): Answered<T>, kind: fn(T) -> Answer) -> v1::QueryReply {
            let rejected = |reject: Reject| Answer::Rejection(command::rejection(&reject));
            v1::QueryReply { applied_index, kind: Some(answer.map_or_else(rejected, kind)) }
        }
        let kind = query.kind.ok_or_else(|| Status::invalid_argument("kind: missing, or from a newer version"))?;
        let from = (query.serializable, deadline);
        Ok(match kind {
            Kind::Range(range) => told(self.ask(from, caller, range).await?, Answer::Range),
            Kind::Txn(txn) => told(self.ask(from, caller, txn).await?, Answer::Txn),
            Kind::LeaseTimeToLive(asked) => {
                let raft = self.raft.clone();
                told(self.ask(from, caller, TimeToLive { asked, raft }).await?, Answer::LeaseTimeToLive)
            }
            Kind::LeaseLeases(leases) => told(self.ask(from, caller, leases).await?, Answer::LeaseLeases),
            Kind::GetTask(get) => told(self.ask(from, caller, get).await?, Answer::GetTask),
            Kind::ListTasks(list) => told(self.ask(from, caller, list).await?, Answer::ListTasks),
            Kind::ListWorkers(list) => told(self.ask(from, caller, list).await?, Answer::ListWorkers),
        })
    }

    /// The state as a reader may see it: with everything committed before now, or this member's own if
    /// `serializable`.
    ///
    /// # Errors
    /// `UNAVAILABLE`: no majority confirmed before the deadline.
    pub async fn view(&self, serializable: bool, deadline: Monotonic) -> Result<(v1::Head, View), Status> {
        self.confirm(serializable, deadline).await?;
        self.reader.view().map_err(internal)
    }

    /// Waits until the state may be read: at once, if it is this member's own that is wanted.
    async fn confirm(&self, serializable: bool, deadline: Monotonic) -> Result<(), Status> {
        if !serializable {
            self.read_barrier(deadline).await?;
        }
        Ok(())
    }

    /// Answers a question from the state as [`Self::view`] has it, if whoever asks has the rights for that, as of the same view. What may take
    /// long is looked up elsewhere.
    ///
    /// # Errors
    /// The database failed; see [`Self::view`]. `RESOURCE_EXHAUSTED` if too much is asked at once.
    pub async fn ask<Q: Question>(
        &self,
        (serializable, deadline): (bool, Monotonic),
        caller: &Caller,
        mut question: Q,
    ) -> Result<Answered<Q::Answer>, Status> {
        self.confirm(serializable, deadline).await?;
        if question.is_brief() {
            return self.ask_here(caller, deadline, |head, rows, rights| question.answer(head, rows, rights)).await;
        }
        loop {
            let (asked, caller, reader) = (question, caller.clone(), self.reader.clone());
            // The state as it is then, and not while this waited: a view keeps alive what it shows.
            let look = move |wanted| {
                let view = reader.view_while(wanted);
                let found = look_up(view, &caller, |head, rows, rights| asked.answer(head, rows, rights));
                (asked, found)
            };
            let found;
            // As long as it takes: who does not wait any more does not get here.
            (question, found) = self.questions.run(look).await?;
            match found.map_err(internal)? {
                Ok(answered) => return Ok(answered),
                Err(overtaken) => self.applied_beyond(overtaken, deadline).await?,
            }
        }
    }

    /// The same of this member's own state, at once: only what is brief.
    ///
    /// # Errors
    /// The database failed.
    pub async fn ask_here<T>(
        &self,
        caller: &Caller,
        deadline: Monotonic,
        answer: impl Fn(&v1::Head, &View, Rights<'_>) -> Result<T, NoAnswer>,
    ) -> Result<Answered<T>, Status> {
        loop {
            match look_up(self.reader.view(), caller, &answer).map_err(internal)? {
                Ok(answered) => return Ok(answered),
                Err(overtaken) => self.applied_beyond(overtaken, deadline).await?,
            }
        }
    }

    /// Waits until more has been applied: what was looked for is being removed, and what removes it is about to be.
    async fn applied_beyond(&self, seen: Index, deadline: Monotonic) -> Result<(), Status> {
        let applied = self.raft.wait_or_end(|status| (status.applied > seen).then_some(()));
        let late = |_| Status::unavailable("this member's state does not get on");
        let applied = self.io.clock.deadline(deadline, applied).await.map_err(late)?;
        applied.ok_or_else(|| Status::unavailable("this node stops"))
    }

    /// Waits until what was compacted up to a revision is gone from this member's database.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED`: not before the deadline; it goes on.
    pub async fn swept(&self, revision: u64, deadline: Monotonic) -> Result<(), Status> {
        loop {
            let seen = self.raft.status().applied;
            let (head, _) = self.reader.view().map_err(internal)?;
            if head.compacted >= revision && !kv::is_sweeping(&head) {
                return Ok(());
            }
            let seen = seen.max(Index(head.applied_index));
            let changed = self.raft.wait(move |status| (status.applied > seen).then_some(()));
            let late = |_| Status::deadline_exceeded("compacted, and what was superseded is still being removed");
            self.io.clock.deadline(deadline, changed).await.map_err(late)?;
        }
    }

    /// Checks a command and carries it out. Whoever has the reply finds what it did in this member's own state, too.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it is out of bounds. `UNAVAILABLE` and `RESOURCE_EXHAUSTED`: not done. `ABORTED`: the outcome is unknown,
    /// or this member, which passed it on, has not come so far in time.
    pub async fn check_and_execute(&self, command: v1::Command, deadline: Monotonic) -> Result<v1::Reply, Status> {
        command::check(&command).map_err(|reject| Status::invalid_argument(reject.to_string()))?;
        let kind = command.kind.as_ref().ok_or_else(|| Status::invalid_argument("kind: missing"))?;
        let physical = match kind {
            CommandKind::Compact(compact) if compact.physical => u64::try_from(compact.revision).ok(),
            _ => None,
        };
        let bytes = command.encode_to_vec().into();
        let (reply, _) = self.execute((&command, kind), bytes, deadline, Source::Caller).await?;
        let reply = v1::Reply::decode(reply).map_err(|error| Status::internal(format!("decode a reply: {error}")))?;
        if let (Some(revision), Some(reply::Kind::Compact(_))) = (physical, &reply.kind) {
            self.swept(revision, deadline).await?;
        }
        Ok(reply)
    }

    /// Carries out an encoded command that a follower passed on.
    ///
    /// # Errors
    /// See [`Self::check_and_execute`].
    pub async fn execute_passed(&self, command: Bytes, deadline: Monotonic, alone: bool) -> Result<Done, Status> {
        let decoded = v1::Command::decode(command.clone())
            .map_err(|error| Status::invalid_argument(format!("decode a command: {error}")))?;
        command::check(&decoded).map_err(|reject| Status::invalid_argument(reject.to_string()))?;
        let kind = decoded.kind.as_ref().ok_or_else(|| Status::invalid_argument("kind: missing"))?;
        let source = if alone { Source::Member } else { Source::MemberWithOthers };
        self.execute((&decoded, kind), command, deadline, source).await
    }

    /// Fills in what a command leaves to the member that takes it: ids that may be any, what is secret, and of a password what is kept
    /// of it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if a password is too long, `RESOURCE_EXHAUSTED` if too many wait to be looked at.
    pub async fn fill_in(&self, command: &mut v1::Command) -> Result<(), Status> {
        match &mut command.kind {
            // A repetition under the same session gets the answer of the first.
            Some(CommandKind::LeaseGrant(grant)) if grant.id == 0 => grant.id = self.draw_id().cast_signed(),
            // Whatever a client says: it might be what another's is called.
            Some(CommandKind::OpenSession(open)) => open.id = self.draw_id(),
            Some(CommandKind::ChangeAuth(change)) => match &mut change.change {
                Some(Change::Enable(_)) => change.key = self.draw::<32>().to_vec().into(),
                Some(Change::AddUser(add)) => add.hashed_password = self.keep(&mut add.password).await?,
                Some(Change::ChangePassword(change)) => {
                    change.hashed_password = self.keep(&mut change.password).await?;
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    /// An id that nobody has, as good as certainly: positive, also where it is signed.
    fn draw_id(&self) -> u64 {
        let mut ids = self.ids.lock().expect("no code panics while it holds the stream");
        std::iter::repeat_with(|| ids.bits() >> 1).find(|id| *id != 0).expect("it goes on for ever")
    }

    fn draw<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.secrets.lock().expect("no code panics while it holds the stream").fill(&mut bytes);
        bytes
    }

    /// What is kept of a password, which is taken; nothing of an empty one.
    async fn keep(&self, password: &mut String) -> Result<String, Status> {
        let password = std::mem::take(password);
        match password.len() {
            0 => Ok(String::new()),
            1..=PASSWORD_BYTES_MAX => {
                let (salt, rounds) = (self.draw(), self.bounds.password_rounds);
                self.passwords.run(move |_| Password::make(&password, salt, rounds).to_string()).await
            }
            bytes => Err(Status::invalid_argument(format!("password: {bytes} bytes; at most {PASSWORD_BYTES_MAX}"))),
        }
    }

    /// Whether a password is the one of which this is kept. Takes as long if nothing is.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too many wait to be looked at.
    pub async fn is_password(&self, kept: Option<String>, password: String) -> Result<bool, Status> {
        let (salt, rounds) = ([0; 16], self.bounds.password_rounds);
        self.passwords
            .run(move |_| match kept.as_deref().and_then(Password::read) {
                Some(kept) => kept.is(&password),
                None => {
                    drop(Password::make(&password, salt, rounds));
                    false
                }
            })
            .await
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.raft.status().role == Role::Leader
    }
}

/// A member's own worker sees the member's own replica. It may be behind, and says nothing of what it lacks.
impl Desired for SharedNodeState {
    fn look(&self) -> Result<Option<Look>, Fault> {
        let (head, rows) = self.reader.view()?;
        look(&head, &rows, self.identity.id).map(Some)
    }

    fn changed(&self, seen: Index) -> BoxFuture<'_, Index> {
        Box::pin(self.raft.wait(move |status| (status.applied > seen).then_some(status.applied)))
    }

    fn up_to_date(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { self.raft.read_barrier().await.map(|_| ()).map_err(|error| error.to_string()) })
    }

    fn execute(&self, kind: CommandKind, patience: Duration) -> BoxFuture<'_, Result<reply::Kind, Refusal>> {
        let deadline = self.io.clock.now() + patience;
        let command = command::plain(ROOT, kind);
        Box::pin(async move {
            let reply = self.check_and_execute(command, deadline).await;
            crate::worker::answer(reply.map_err(|status| Refusal::Failed(status.message().into()))?)
        })
    }
}

/// What a state wants of a worker.
///
/// # Errors
/// The database failed.
pub fn look(head: &v1::Head, rows: &View, worker: NodeId) -> Result<Look, Fault> {
    let tasks = Arc::new(task::of_worker(rows, worker)?);
    let epoch = worker::find(rows, worker)?.map(|worker| worker.epoch);
    Ok(Look { index: Index(head.applied_index), epoch, tasks, live: true })
}

/// The index of the state that an answer is of, and the answer, or the refusal that is one.
pub type Answered<T> = (u64, Result<T, Reject>);

/// Looks something up in a view of the state, for somebody with the rights that it has there. If what it takes is being removed, gives the
/// index that was looked at: the next shows what has come of it.
fn look_up<T>(
    view: Result<(v1::Head, View), Fault>,
    caller: &Caller,
    answer: impl Fn(&v1::Head, &View, Rights<'_>) -> Result<T, NoAnswer>,
) -> Result<Result<Answered<T>, Index>, Fault> {
    let (head, rows) = view?;
    let index = head.applied_index;
    let rights = caller.rights(rows.auth()).map_err(NoAnswer::from);
    match rights.and_then(|rights| answer(&head, &rows, rights)) {
        Ok(answer) => Ok(Ok((index, Ok(answer)))),
        Err(NoAnswer::Rejected(reject)) => {
            sometimes!(matches!(reject, Reject::Auth(_)), "a user was refused a look at what it may not read");
            Ok(Ok((index, Err(reject))))
        }
        Err(NoAnswer::Fault(fault)) => Err(fault),
        Err(NoAnswer::Overtaken) => Ok(Err(Index(index))),
    }
}

/// A fault of this node while it answered a question: the question fails, nothing has changed. Whoever runs the node is told, too,
/// for a database that could not be read takes no more writes, and then the node stops with less to say.
pub fn internal(fault: Fault) -> Status {
    tracing::error!(%fault, "a question could not be answered");
    Status::internal(fault.to_string())
}

/// Where a command comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Whoever asks for it.
    Caller,
    /// A member that passed it on.
    Member,
    /// The same, and others in the same call.
    MemberWithOthers,
}

/// What says that something was put off has no more bytes.
const PUT_OFF_BYTES_MAX: usize = 64;

/// Whether a reply says that the command is to be proposed again. What says so is short.
fn is_put_off(reply: &Bytes) -> bool {
    reply.len() <= PUT_OFF_BYTES_MAX && v1::Reply::decode(reply.clone()).is_ok_and(|reply| command::is_put_off(&reply))
}

/// How long a client gives.
pub fn asked_timeout(metadata: &MetadataMap) -> Option<Duration> {
    metadata.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?))
}

/// The gRPC timeout header: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// What a request that this member did not take is called.
fn refused_as(error: ProposeError) -> Code {
    match error {
        ProposeError::TooLarge(_) => Code::InvalidArgument,
        ProposeError::Stopping => Code::Unavailable,
        _ => Code::ResourceExhausted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_nobody_may_do_nothing_when_users_are_disabled() {
        let (nobody, auth) = (Caller::default(), Auth::default());
        let logged_in = Caller { user: ROOT.into(), since: Some(0), is_member: false };
        let member = Caller { is_member: true, ..Caller::default() };
        for (caller, may) in [(&nobody, false), (&Caller::outdated(), false), (&logged_in, false), (&member, true)] {
            assert_eq!(caller.rights(&auth).is_ok(), may, "{caller:?}");
        }
        // What is in the log under no name is a member's.
        for (caller, may) in [(&nobody, false), (&Caller::outdated(), false), (&logged_in, true), (&member, true)] {
            assert_eq!(caller.may_ask().is_ok(), may, "{caller:?}");
        }
    }

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        for text in ["", "S", "1", "1x", "123456789S", "-1S", "é"] {
            assert_eq!(parse_timeout(text), None, "{text:?}");
        }
    }
}

//! Drives the [core](super::core): takes events one by one, performs the effects in the one legal order.
//!
//! It waits on four things: work that its owners finished, frames from peers, requests of clients, and the tick. Each
//! round takes everything there is, then performs effects until there are none. What gathered while a round ran
//! becomes one log entry and one sync: batches grow with load and an idle cluster waits for nothing.
//!
//! A proposal ends in one of three ways. **Done**: its entry was applied, here is the reply. **Not done**: it was
//! refused, or another entry was committed at its index. **Unknown**: the caller's deadline passed first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::{mpsc, oneshot};

use super::codec;
use super::core::{Announced, Compaction, Core, CoreConfig, Effects, Flow, Refused, Role, Status};
use super::handle::{Proposal, ProposeError, RaftHandle, Reply, Request, Shared};
use super::log::{Identity, Log};
use super::owner::{ApplyJob, ApplyOwner, Done, LogJob, LogOwner, Machine, Now};
use super::reads::{Reads, lease_span};
use super::snapshot::{self, Served, SnapshotJob, SnapshotOwner, Snapshots};
use super::tail::Retention;
use super::transport::{News, Transport};
use super::validate::InvalidMessage;
use crate::entry::{Body, Entry, Outcome, Step};
use crate::error::{Context, Fault};
use crate::ids::{Address, Incarnation, Index, NodeId, Term};
use crate::io::{Io, TaskHandle, own};
use crate::limits;
use crate::metrics::Metrics;
use crate::time::{ClusterTime, Monotonic};

/// How many election timeouts a leader waits for its state before it asks another to lead.
const STATE_PATIENCE: u32 = 3;

/// What its task is called.
pub const TASK: &str = "raft manager";
/// The thread that owns the log.
pub const LOG_THREAD: &str = "log";
/// The thread that owns the state.
pub const APPLY_THREAD: &str = "apply";
/// The thread that makes and takes snapshots of the state.
pub const SNAPSHOT_THREAD: &str = "snapshot";

/// Is told what this member does. For whoever checks it.
pub trait Observer: Send + Sync + 'static {
    /// An entry was applied.
    fn on_applied(&self, _life: (NodeId, Incarnation), _entry: &Entry, _outcome: &Outcome) {}

    /// A snapshot of everything up to an index took the place of the state, which has this digest now.
    fn on_installed(&self, _life: (NodeId, Incarnation), _applied: (Index, Term), _digest: u64) {}

    /// Term, role, commit or the like changed.
    fn on_status(&self, _life: (NodeId, Incarnation), _status: &Status) {}

    /// Somebody's reads are answered under the lease that this member has as leader of a term.
    fn on_lease(&self, _life: (NodeId, Incarnation), _term: Term) {}
}

impl Observer for () {}

/// What a manager is started with.
pub struct Setup<M, S> {
    /// The seams.
    pub io: Io,
    /// Who this member is.
    pub identity: Identity,
    /// Where others reach it.
    pub address: Address,
    /// The newest format of the state that it takes part in.
    pub format: u32,
    /// Ticks of an election timeout.
    pub election_ticks: usize,
    /// Whether reads are answered under a lease while this member leads.
    pub lease_reads: bool,
    /// How much of the log is kept for members that are behind.
    pub retention: Retention,
    /// How much is under way at once.
    pub flow: Flow,
    /// The opened log; its identity is established.
    pub log: Log,
    /// The opened state.
    pub machine: M,
    /// The way from that state to a snapshot and back.
    pub snapshots: S,
    /// Is told what happens.
    pub observer: Arc<dyn Observer>,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
}

/// Recovers the log and starts the manager and its owners. The member runs until the task is dropped.
///
/// # Errors
/// Log or state are corrupt or contradict each other.
pub fn start<M: Machine, S: Snapshots>(setup: Setup<M, S>) -> Result<(RaftHandle, Incarnation, TaskHandle), Fault> {
    let Setup {
        io,
        identity,
        address,
        format,
        election_ticks,
        lease_reads,
        retention,
        flow,
        mut log,
        machine,
        snapshots,
        observer,
        metrics,
    } = setup;
    let first_peers = log.first_peers()?;
    // A damaged database is not closed: that would write to it, and it is evidence now.
    let leave_open = |evidence: (Log, M), fault: Fault| {
        std::mem::forget(evidence);
        fault
    };
    let recovered = match log.recover() {
        Ok(recovered) => recovered,
        Err(fault) => return Err(leave_open((log, machine), fault)),
    };
    let incarnation = recovered.incarnation;
    let conf_state = codec::conf_state(machine.conf_state()).context(|| "read the membership of the state".into())?;
    let (applied, _) = machine.applied();
    let config = CoreConfig { id: identity.id, election_ticks, retention, flow };
    let core = match Core::new(config, recovered, applied, conf_state, io.rng.child("raft")) {
        Ok(core) => core,
        Err(fault) => return Err(leave_open((log, machine), fault)),
    };

    let (done_sender, done) = mpsc::channel(limits::LOG_JOBS_MAX + limits::APPLY_JOBS_MAX + limits::SNAPSHOT_JOBS_MAX);
    let (requests_sender, requests) = mpsc::channel(limits::INBOX_REQUESTS_MAX);
    let (frames_sender, frames) = mpsc::channel(limits::INBOX_FRAMES_MAX);
    let (news_sender, news) = mpsc::channel(limits::MEMBERS_MAX);
    let (staged_sender, staged) = mpsc::channel(1);
    let mut transport = Transport::new(io.clone(), identity, incarnation, (address, format), news_sender);
    // Where the members were when this one was taken in counts only until its own state tells.
    if applied == Index(0) {
        first_peers.into_iter().for_each(|(id, address)| transport.introduce(id, address));
    }
    transport.set_peers(&machine.peers()?);
    let cluster_time = machine.cluster_time();
    let log_owner = LogOwner::new(log, done_sender.clone(), &io, metrics.clone());
    let snapshot_owner = SnapshotOwner::new(snapshots, &io, done_sender.clone())?;
    let apply_owner = ApplyOwner::new(machine, done_sender, io.spawn.clone());
    let snapshots = own(&*io.spawn, SNAPSHOT_THREAD, snapshot_owner, limits::SNAPSHOT_JOBS_MAX);
    let status = core.status();
    let shared = Arc::new(Shared::new(status.clone(), cluster_time, io.clock.now()));
    let manager = Manager {
        life: (identity.id, incarnation),
        next_tick: io.clock.now() + limits::TICK,
        log: own(&*io.spawn, LOG_THREAD, log_owner, limits::LOG_JOBS_MAX),
        apply: own(&*io.spawn, APPLY_THREAD, apply_owner, limits::APPLY_JOBS_MAX),
        applying: 0,
        writing: 0,
        backlog: VecDeque::new(),
        backlog_bytes: 0,
        snapshots: snapshots.clone(),
        sending: BTreeMap::new(),
        take: false,
        take_after: Monotonic::default(),
        taken: None,
        fetching: None,
        fetches: 0,
        staged: staged_sender,
        core,
        transport,
        observer,
        metrics,
        proposals: Vec::new(),
        proposals_bytes: 0,
        applied_at: io.clock.now(),
        waiters: BTreeMap::new(),
        anchor: None,
        cluster_time,
        reads: Reads::new(lease_reads.then(lease_span)),
        defragmenting: None,
        stopping: None,
        checkpointing: false,
        checkpointed: false,
        shared: shared.clone(),
        status,
        io: io.clone(),
    };
    let inputs = Inputs { done, requests, frames, news, staged };
    let handle = RaftHandle::new(requests_sender, frames_sender, snapshots, io.clock.clone(), shared);
    let task = io.spawn.spawn(TASK, Box::pin(manager.run(inputs)));
    Ok((handle, incarnation, task))
}

struct Inputs {
    done: mpsc::Receiver<Done>,
    requests: mpsc::Receiver<Request>,
    frames: mpsc::Receiver<Vec<Message>>,
    news: mpsc::Receiver<News>,
    staged: mpsc::Receiver<Staged>,
}

/// A fetch has ended: its number, what it was of, and whether its body is whole and durable.
type Staged = (u64, Announced, bool);

enum Waiter {
    Commands(Vec<Reply<(Bytes, Index)>>),
    Change(Reply<Index>),
}

struct Manager {
    life: (NodeId, Incarnation),
    io: Io,
    core: Core,
    transport: Transport,
    observer: Arc<dyn Observer>,
    metrics: Arc<Metrics>,
    log: mpsc::Sender<LogJob>,
    apply: mpsc::Sender<ApplyJob>,
    /// Jobs given to the owners and not reported back.
    writing: usize,
    applying: usize,
    /// What waits because the state's owner is behind, and the bytes of that.
    backlog: VecDeque<(u64, ApplyJob)>,
    backlog_bytes: u64,
    snapshots: mpsc::Sender<SnapshotJob>,
    /// As leader, since when each member is being sent a snapshot.
    sending: BTreeMap<NodeId, Monotonic>,
    /// A snapshot is to be made as soon as its owner has room.
    take: bool,
    /// And not before that, for there was no room.
    take_after: Monotonic,
    /// When the snapshot that there is was made.
    taken: Option<Monotonic>,
    /// The fetch under way: its number, the snapshot's index, and its task.
    fetching: Option<(u64, Index, TaskHandle)>,
    fetches: u64,
    staged: mpsc::Sender<Staged>,
    next_tick: Monotonic,
    /// Taken, but not appended yet, and the bytes of that.
    proposals: Vec<Proposal>,
    proposals_bytes: u64,
    /// When the state's owner last reported, or had nothing to do.
    applied_at: Monotonic,
    /// Appended by us, by index.
    waiters: BTreeMap<Index, (Term, Waiter)>,
    /// As leader, once an entry of our term is applied: the state's time then, by our own clock.
    anchor: Option<(Term, ClusterTime, Monotonic)>,
    cluster_time: ClusterTime,
    reads: Reads,
    defragmenting: Option<Defragmenting>,
    stopping: Option<Stopping>,
    /// A checkpoint that compaction waits for is under way.
    checkpointing: bool,
    /// The last checkpoint, the one before the end, is durable.
    checkpointed: bool,
    shared: Arc<Shared>,
    status: Status,
}

/// The state is being written anew.
struct Defragmenting {
    reply: oneshot::Sender<Step>,
    /// The next step is yet to be asked for.
    due: bool,
}

struct Stopping {
    reply: oneshot::Sender<()>,
    /// When to go without having handed over.
    deadline: Monotonic,
    checkpointing: bool,
}

impl Manager {
    async fn run(mut self, mut inputs: Inputs) {
        let mut done = Vec::new();
        let mut requests = Vec::new();
        let mut frames = Vec::new();
        let mut timer: BoxFuture<'static, ()> = self.io.clock.sleep_until(self.next_tick);
        loop {
            // Finished work first: it frees messages and replies. Every branch is safe to cancel.
            tokio::select! {
                biased;
                _ = inputs.done.recv_many(&mut done, limits::LOG_JOBS_MAX) => {}
                _ = inputs.frames.recv_many(&mut frames, limits::INBOX_FRAMES_MAX) => {}
                Some(news) = inputs.news.recv() => self.on_news(news),
                Some(staged) = inputs.staged.recv() => self.on_staged(staged),
                count = inputs.requests.recv_many(&mut requests, limits::BATCH_COMMANDS_MAX) => {
                    if count == 0 {
                        return;
                    }
                }
                () = &mut timer => {}
            }
            while let Ok(frame) = inputs.frames.try_recv() {
                frames.push(frame);
            }
            while requests.len() < limits::BATCH_COMMANDS_MAX
                && let Ok(request) = inputs.requests.try_recv()
            {
                requests.push(request);
            }
            if let Err(fault) = self.round(&mut done, &mut frames, &mut requests) {
                self.io.spawn.fail_stop(fault);
                return;
            }
            if self.io.clock.now() >= self.next_tick {
                self.tick();
                timer = self.io.clock.sleep_until(self.next_tick);
            }
            match self.perform_all() {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(stopping) = self.stopping {
                        let _ = stopping.reply.send(());
                    }
                    return;
                }
                Err(fault) => {
                    self.io.spawn.fail_stop(fault);
                    return;
                }
            }
        }
    }

    fn round(
        &mut self,
        done: &mut Vec<Done>,
        frames: &mut Vec<Vec<Message>>,
        requests: &mut Vec<Request>,
    ) -> Result<(), Fault> {
        for done in done.drain(..) {
            if done.is_of_state() {
                self.applied_at = self.io.clock.now();
            }
            self.on_done(done)?;
        }
        for message in frames.drain(..).flatten() {
            if let Err(error) = self.step(message) {
                sometimes!("a message made no sense and was refused");
                tracing::error!(%error, "a message was refused");
            }
        }
        // Effects before proposals: a leader that lost its term must not append to it.
        self.drive()?;
        for request in requests.drain(..) {
            self.on_request(request);
        }
        Ok(())
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Unreachable(member) => self.core.on_unreachable(member),
            News::Removed => self.shared.note_removed(),
        }
    }

    fn on_done(&mut self, done: Done) -> Result<(), Fault> {
        match done {
            Done::Persisted(number) => {
                self.writing -= 1;
                self.core.on_persisted(number);
            }
            Done::Fetched(fetch, entries) => {
                self.writing -= 1;
                self.core.on_fetched(fetch, entries);
            }
            Done::Compacted => self.writing -= 1,
            Done::Checkpointed(durable) => {
                self.applying -= 1;
                self.checkpointing = false;
                self.core.on_durable(durable);
                self.checkpointed = self.stopping.as_ref().is_some_and(|stopping| stopping.checkpointing);
            }
            Done::Taken(snapshot) => {
                self.metrics.snapshots_taken.inc();
                self.core.on_taken(&snapshot)?;
                self.taken = Some(self.io.clock.now());
                *self.shared.served() = Served::default();
            }
            Done::NotTaken => {
                self.core.on_not_taken();
                self.take_after = self.io.clock.now() + limits::SNAPSHOT_PAUSE;
            }
            Done::Defragmented(Step::More) => {
                if let Some(defragmenting) = &mut self.defragmenting {
                    defragmenting.due = true;
                }
            }
            Done::Defragmented(Step::Whole) => self.send_apply(ApplyJob::GoOver),
            Done::Defragmented(step) => self.end_defragmenting(step),
            Done::WentOver { durable, step } => {
                self.applying -= 1;
                self.core.on_durable(durable);
                self.end_defragmenting(step);
            }
            Done::Installed { applied, digest, now } => {
                self.applying -= 1;
                tracing::info!(index = %applied.0, "went over to a snapshot");
                self.metrics.snapshots_installed.inc();
                self.note(now);
                // What became of proposals below it, this member cannot tell.
                sometimes!(
                    self.waiters.keys().any(|index| *index <= applied.0),
                    "a snapshot covered a proposal of this member"
                );
                self.waiters = self.waiters.split_off(&applied.0.next());
                self.observer.on_installed(self.life, applied, digest);
                self.core.on_installed(applied.0);
                self.reads.on_applied(self.core.applied());
            }
            Done::Applied { entries, outcomes, now, more } => {
                self.applying -= usize::from(!more);
                self.note(now);
                for (entry, outcome) in entries.iter().zip(outcomes) {
                    self.observer.on_applied(self.life, entry, &outcome);
                    self.answer(entry, outcome);
                    self.core.on_applied(entry.index);
                }
                self.reads.on_applied(self.core.applied());
                if let Some(last) = entries.last() {
                    self.note_leadership(last.term);
                }
                if more {
                    // There is room: the job that it is about waits elsewhere.
                    let _ = self.apply.try_send(ApplyJob::GoOn);
                }
            }
        }
        Ok(())
    }

    fn end_defragmenting(&mut self, step: Step) {
        let Some(Defragmenting { reply, .. }) = self.defragmenting.take() else { return };
        tracing::info!(?step, "the state was written anew");
        sometimes!(step == Step::Whole, "a state was written anew");
        sometimes!(step == Step::Replaced, "another state took the place of one that was written anew");
        let _ = reply.send(step);
    }

    /// Asks for the next step as soon as there is room.
    fn maybe_defragment(&mut self) {
        if let Some(defragmenting) = self.defragmenting.as_mut().filter(|defragmenting| defragmenting.due) {
            defragmenting.due = self.snapshots.try_send(SnapshotJob::Defragment).is_err();
        }
    }

    /// What the state is like now.
    fn note(&mut self, now: Now) {
        if now.time > self.cluster_time {
            self.shared.note_time(now.time, self.io.clock.now());
        }
        self.cluster_time = now.time;
        self.core.on_durable(now.durable);
        if let Some(peers) = now.peers {
            self.transport.set_peers(&peers);
            if !peers.is_empty() && !peers.contains_key(&self.life.0) && self.core.has_left() {
                self.shared.note_removed();
            }
        }
    }

    /// Fetches the body of a snapshot. A fetch under way ends: this one is of more use.
    fn stage(&mut self, announced: Announced) {
        let (from, index) = (announced.from, announced.position.0);
        if let Some((_, other, _)) = self.fetching.take_if(|(_, other, _)| *other != index) {
            // Left until the next boot if too much waits.
            let _ = self.snapshots.try_send(SnapshotJob::Discard(other));
        }
        let Some(address) = self.transport.address_of(from).cloned() else {
            self.core.on_staged(&announced, false);
            return;
        };
        self.fetches += 1;
        let (number, staged, what) = (self.fetches, self.staged.clone(), announced.clone());
        let fetch =
            snapshot::fetch(self.io.clone(), self.transport.hello(from), address, announced, self.snapshots.clone());
        let task = async move {
            let whole = fetch.await;
            let _ = staged.send((number, what, whole)).await;
        };
        self.fetching = Some((number, index, self.io.spawn.spawn("snapshot fetch", Box::pin(task))));
    }

    fn on_staged(&mut self, (number, announced, whole): Staged) {
        let index = announced.position.0;
        let current = self.fetching.as_ref().map(|(number, index, _)| (*number, *index));
        let wanted = current == Some((number, index));
        if wanted {
            self.fetching = None;
        }
        let taken = wanted && self.core.on_staged(&announced, whole);
        let under_way = !wanted && current.is_some_and(|(_, other)| other == index);
        if !taken && !under_way {
            // Left until the next boot if too much waits.
            let _ = self.snapshots.try_send(SnapshotJob::Discard(index));
        }
    }

    /// Forgets what need not be kept: of the log, and of a snapshot that nobody asks for.
    fn keep_house(&mut self) {
        let now = self.io.clock.now();
        if self.writing + limits::FETCHES_MAX + 1 < limits::LOG_JOBS_MAX {
            match self.core.compact() {
                Compaction::Nothing => {}
                Compaction::NeedsCheckpoint if self.checkpointing || self.stopping.is_some() => {}
                Compaction::NeedsCheckpoint => {
                    self.checkpointing = true;
                    self.send_apply(ApplyJob::Checkpoint);
                }
                Compaction::Upto(index, term) => self.send_log(LogJob::Compact(index, term)),
            }
        }
        let in_flight: BTreeMap<NodeId, Index> = self.core.snapshots_in_flight().into_iter().collect();
        self.sending.retain(|id, _| in_flight.contains_key(id));
        for id in in_flight.into_keys() {
            // The announcement may have been lost, or the word that it is installed. To announce it again costs one message:
            // who is fetching it goes on, who has it says so.
            if now.since(*self.sending.entry(id).or_insert(now)) > limits::ANNOUNCE_PERIOD {
                sometimes!("a snapshot was announced again");
                self.sending.remove(&id);
                self.core.on_snapshot_failed(id);
            }
        }
        let served = self.shared.served();
        let is_idle = self.taken.is_some_and(|taken| now.since(served.since(taken)) > limits::SNAPSHOT_KEPT);
        let is_vain = self.taken.is_some() && served.is_vain(now);
        drop(served);
        if (is_idle || is_vain) && self.snapshots.try_send(SnapshotJob::Forget).is_ok() {
            sometimes!(is_idle, "a snapshot that nobody asked for was forgotten");
            sometimes!(is_vain, "a snapshot was forgotten with which a member has begun too often");
            self.taken = None;
            self.core.forget_snapshot();
        }
        self.maybe_take();
    }

    /// A leader counts cluster time from the first applied entry of its own term, and proposes nothing before.
    fn note_leadership(&mut self, applied: Term) {
        let term = self.core.status().term;
        if self.core.leads() && applied == term && self.anchor.is_none_or(|(anchored, ..)| anchored != term) {
            let now = self.io.clock.now();
            self.anchor = Some((term, self.cluster_time, now));
            self.shared.note_time(self.cluster_time, now);
        }
    }

    fn answer(&mut self, entry: &Entry, outcome: Outcome) {
        let Some((term, waiter)) = self.waiters.remove(&entry.index) else { return };
        let ours = term == entry.term;
        match waiter {
            Waiter::Commands(replies) if ours && replies.len() == outcome.replies.len() => {
                for (reply, answer) in replies.into_iter().zip(outcome.replies) {
                    let _ = reply.send(Ok((answer, entry.index)));
                }
            }
            Waiter::Commands(replies) => {
                sometimes!("a proposal was superseded");
                for reply in replies {
                    let _ = reply.send(Err(ProposeError::Superseded));
                }
            }
            Waiter::Change(reply) => {
                let taken = ours && matches!(entry.body, Body::Members { .. });
                sometimes!(!taken, "a change of members was superseded");
                let _ = reply.send(if taken { Ok(entry.index) } else { Err(ProposeError::Superseded) });
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Propose(Proposal { reply, .. })
                if self.proposals.len() + self.waiters.len() >= limits::PROPOSALS_PENDING_MAX
                    || self.proposals_bytes >= limits::UNCOMMITTED_BYTES_MAX =>
            {
                let _ = reply.send(Err(ProposeError::Busy));
            }
            Request::Propose(proposal) => {
                self.proposals_bytes += proposal.command.len() as u64;
                self.proposals.push(proposal);
            }
            Request::ProposeFor { command, based_on, reply } => {
                let proposed = match self.stamp(&self.core.status()) {
                    Some(stamp) => self.core.propose_for(stamp, command, based_on),
                    None => Err(if self.core.leads() { Refused::Busy } else { Refused::NotLeader }),
                };
                match proposed {
                    Ok((index, term)) => {
                        self.waiters.insert(index, (term, Waiter::Commands(vec![reply])));
                    }
                    Err(refused) => {
                        let _ = reply.send(Err(self.refusal(refused)));
                    }
                }
            }
            Request::Introduce { id, address } => self.transport.introduce(id, address),
            Request::Change { change, based_on, reply } => match self.core.propose_members(&change, based_on) {
                Ok((index, term)) => {
                    self.waiters.insert(index, (term, Waiter::Change(reply)));
                }
                Err(refused) => {
                    let _ = reply.send(Err(self.refusal(refused)));
                }
            },
            Request::Read { reply } => self.reads.add(reply),
            Request::HandOver { to, reply } => {
                let refusal = if self.core.leads() { ProposeError::Busy } else { self.refusal(Refused::NotLeader) };
                let _ = reply.send(self.core.hand_over(to).ok_or(refusal));
            }
            Request::Defragment { reply } => {
                if self.defragmenting.is_none() {
                    self.defragmenting = Some(Defragmenting { reply, due: true });
                } // else dropped: the caller hears that it is being done already
            }
            Request::Stop { reply } => {
                let patience = limits::TICK * self.core.election_ticks() as u32;
                let deadline = self.io.clock.now() + patience;
                self.stopping = Some(Stopping { reply, deadline, checkpointing: false });
                self.core.hand_over(None);
            }
        }
    }

    fn refusal(&self, refused: Refused) -> ProposeError {
        match refused {
            Refused::NotLeader => ProposeError::NotLeader(self.core.status().leader),
            Refused::Busy => ProposeError::Busy,
        }
    }

    fn tick(&mut self) {
        let now = self.io.clock.now();
        // After a pause the missed ticks are not made up for: other members' clocks have run, ours must not rush.
        self.next_tick = now + limits::TICK;
        self.core.tick();
        self.core.maybe_campaign_alone();
        self.core.maybe_leave_joint();
        self.maybe_give_up_leading(now);
        self.keep_house();
        self.reads.give_up_old(now);
        if let Some(number) = self.reads.renew(self.core.reign(), now) {
            self.ask(number);
        }
    }

    /// Who leads and does not get on with its own state answers nobody: another is to lead.
    fn maybe_give_up_leading(&mut self, now: Monotonic) {
        if self.applying == 0 {
            self.applied_at = now;
        }
        let patience = limits::TICK * self.core.election_ticks() as u32 * STATE_PATIENCE;
        if self.core.leads() && now.since(self.applied_at) > patience && self.core.hand_over(None).is_some() {
            sometimes!("a leader whose state did not get on asked another to lead");
            tracing::warn!("this member leads, and its state does not get on; another is asked to lead");
            self.applied_at = now;
        }
    }

    /// Everything that can be done now. True when the manager has stopped.
    fn perform_all(&mut self) -> Result<bool, Fault> {
        self.flush_proposals();
        self.ask_reads();
        self.maybe_defragment();
        self.drive()?;
        self.publish();
        self.maybe_stop();
        Ok(self.checkpointed)
    }

    /// What an entry is stamped with that is proposed now.
    fn stamp(&self, now: &Status) -> Option<ClusterTime> {
        let (_, time, at) = self.anchor.filter(|(term, ..)| now.role == Role::Leader && *term == now.term)?;
        Some(time + self.io.clock.now().since(at))
    }

    /// Gathers what waits into as few entries as the bounds allow.
    fn flush_proposals(&mut self) {
        if self.proposals.is_empty() {
            return;
        }
        let status = self.core.status();
        if status.role != Role::Leader {
            sometimes!("a leader that stepped down had proposals left");
            self.anchor = None;
            self.proposals_bytes = 0;
            for proposal in self.proposals.drain(..) {
                let _ = proposal.reply.send(Err(ProposeError::NotLeader(status.leader)));
            }
            return;
        }
        // The state of whoever leads sets the pace.
        if !self.backlog.is_empty() {
            return;
        }
        if self.core.is_handing_over() {
            sometimes!("proposals waited while leadership was handed over");
            return;
        }
        // Until an entry of this term is applied, the proposals wait.
        let Some(stamp) = self.stamp(&status) else {
            sometimes!("proposals waited for the first entry of the term");
            return;
        };
        self.proposals_bytes = 0;
        let mut proposals = std::mem::take(&mut self.proposals).into_iter().peekable();
        while proposals.peek().is_some() {
            let (mut commands, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some(Proposal { command, reply, .. }) =
                proposals.next_if(|Proposal { command, first, .. }| {
                    let fits = bytes + command.len() <= limits::BATCH_BYTES_MAX;
                    commands.is_empty() || !first && fits && commands.len() < limits::BATCH_COMMANDS_MAX
                })
            {
                bytes += command.len();
                commands.push(command);
                replies.push(reply);
            }
            match self.core.propose(stamp, commands) {
                Ok((index, term)) => {
                    self.waiters.insert(index, (term, Waiter::Commands(replies)));
                }
                Err(refused) => {
                    let error = self.refusal(refused);
                    for reply in replies {
                        let _ = reply.send(Err(error));
                    }
                }
            }
        }
    }

    /// Answers who reads under a lease, or asks the others.
    fn ask_reads(&mut self) {
        if !self.reads.is_waiting() {
            return;
        }
        let (reign, now) = (self.core.reign(), self.io.clock.now());
        if self.has_lease() {
            self.reads.confirm_waiting(self.core.committed());
            self.reads.on_applied(self.core.applied());
        } else if let Some(number) = self.reads.ask(reign, now) {
            self.ask(number);
        }
    }

    /// Whether what is read now may be answered under a lease.
    fn has_lease(&mut self) -> bool {
        let reign = self.core.reign();
        let holds = self.reads.holds(reign, self.io.clock.now());
        if let Some((term, _)) = reign.filter(|_| holds) {
            self.observer.on_lease(self.life, term);
        }
        holds
    }

    /// Asks the others whether this member leads, or the leader up to where all is committed.
    fn ask(&mut self, number: u64) {
        let words = [self.life.0.0, self.life.1.0, number];
        self.core.read_index(words.iter().flat_map(|word| word.to_le_bytes()).collect());
    }

    fn on_read_confirmed(&mut self, context: &[u8], index: Index) {
        let words: Vec<u64> =
            context.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("chunks of 8"))).collect();
        // Answers to an earlier life's questions are not for us.
        sometimes!(words.get(1) != Some(&self.life.1.0), "an answer came to a question of an earlier life");
        if let [node, incarnation, number] = words[..]
            && (NodeId(node), Incarnation(incarnation)) == self.life
        {
            self.reads.on_answer(number, index, self.core.reign(), self.io.clock.now());
        }
    }

    /// A peer's message.
    fn step(&mut self, message: Message) -> Result<(), InvalidMessage> {
        let asks = message.get_msg_type() == MessageType::MsgReadIndex;
        if asks && self.has_lease() {
            sometimes!("another member's reads were answered under a lease");
            return self.core.answer_read(message);
        }
        self.core.step(message)
    }

    fn drive(&mut self) -> Result<(), Fault> {
        // The owners' queues are bounded; the core is asked for more only while there is room. A state that is slow for a while is no
        // reason to fall silent: what it is to apply waits.
        while self.writing + limits::FETCHES_MAX + 1 < limits::LOG_JOBS_MAX
            && self.backlog_bytes < limits::BACKLOG_BYTES_MAX
            && let Some(effects) = self.core.take_effects()?
        {
            self.perform(effects);
        }
        while self.applying < limits::APPLY_JOBS_MAX
            && let Some((bytes, job)) = self.backlog.pop_front()
        {
            self.backlog_bytes -= bytes;
            self.applying += 1;
            let _ = self.apply.try_send(job);
        }
        Ok(())
    }

    fn perform(&mut self, effects: Effects) {
        for message in effects.send {
            let to = NodeId(message.to);
            let announces = message.get_msg_type() == MessageType::MsgSnapshot;
            match self.transport.send(message) {
                true if announces => {
                    self.sending.insert(to, self.io.clock.now());
                }
                true => {}
                false => {
                    self.metrics.messages_dropped.inc();
                    if announces {
                        self.core.on_snapshot_failed(to);
                    } else {
                        self.core.on_unreachable(to);
                    }
                }
            }
        }
        if let Some(write) = effects.write {
            self.send_log(LogJob::Write(write));
        }
        if let Some(index) = effects.install {
            self.send_apply(ApplyJob::Install(index));
        }
        if !effects.apply.is_empty() {
            self.send_apply(ApplyJob::Entries(effects.apply));
        }
        for (context, index) in effects.reads {
            self.on_read_confirmed(&context, index);
        }
        self.reads.on_applied(self.core.applied());
        for fetch in effects.fetch {
            self.send_log(LogJob::Fetch(fetch));
        }
        if let Some(announced) = effects.stage {
            self.stage(announced);
        }
        self.take |= effects.take;
        self.maybe_take();
    }

    /// Has a snapshot made that is wanted, once nobody fetches the one before: it is about to be removed.
    fn maybe_take(&mut self) {
        let now = self.io.clock.now();
        let in_use = self.shared.served().is_under_way(now);
        sometimes!(self.take && in_use, "a snapshot waited until the one before was fetched");
        if self.take && !in_use && now >= self.take_after && self.snapshots.try_send(SnapshotJob::Take).is_ok() {
            (self.take, self.taken) = (false, None);
        }
    }

    fn send_log(&mut self, job: LogJob) {
        // A write always finds room, see `drive`; a fetch that does not is asked for again by raft-rs.
        if self.log.try_send(job).is_ok() {
            self.writing += 1;
        }
    }

    /// Jobs stay in order: what waits goes first.
    fn send_apply(&mut self, job: ApplyJob) {
        if self.backlog.is_empty() && self.applying < limits::APPLY_JOBS_MAX {
            self.applying += 1;
            let _ = self.apply.try_send(job);
        } else {
            sometimes!("what was to be applied waited for the state");
            let bytes = job.bytes();
            self.backlog_bytes += bytes;
            self.backlog.push_back((bytes, job));
        }
    }

    fn publish(&mut self) {
        let status = self.core.status();
        if status == self.status {
            return;
        }
        self.observer.on_status(self.life, &status);
        if (status.role, status.leader, status.term) != (self.status.role, self.status.leader, self.status.term) {
            tracing::info!(role = status.role.name(), term = %status.term, leader = ?status.leader.map(|id| id.0), "role");
        }
        let metrics = &self.metrics;
        if status.leader.is_some() && status.leader != self.status.leader {
            metrics.leader_changes.inc();
        }
        metrics.leads.set((status.role == Role::Leader).into());
        for (level, value) in [
            (&metrics.term, status.term.0),
            (&metrics.commit_index, status.commit.0),
            (&metrics.applied_index, status.applied.0),
            (&metrics.first_index, status.first.0),
        ] {
            level.set(value as i64);
        }
        self.status = status.clone();
        self.shared.note_status(status);
    }

    /// Goes on with stopping: hand over, then checkpoint, then answer.
    fn maybe_stop(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        let waited = self.io.clock.now() >= stopping.deadline;
        let ready = !self.core.leads() || waited || self.core.is_alone();
        if !stopping.checkpointing && !self.checkpointing && ready {
            stopping.checkpointing = true;
            self.send_apply(ApplyJob::Checkpoint);
        }
    }
}

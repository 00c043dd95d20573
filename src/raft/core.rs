//! Raft without I/O: events in, effects out as data. It wraps raft-rs and obeys the duties that raft-rs leaves to its
//! caller; the [manager](super::manager) performs the effects.
//!
//! 1. Entries are readable from the [`Tail`] before raft-rs is told that they were taken (`advance_append_async`).
//! 2. **While a change of term or vote is not durable, no message leaves, leader or not.** raft-rs hands out a sole
//!    voter's appends at once; after a crash it would write other entries under the same index and term.
//!    Nor while it is not that a configuration is committed, and until then the entry is not applied: whoever was removed by it goes
//!    for good once it is told, and a leader that has forgotten it could not do without.
//! 3. Messages of a follower leave only when everything written before them is durable: what they acknowledge is.
//! 4. A non-leader is neither ticked nor told to campaign while a write is not durable or a snapshot is not installed:
//!    raft-rs asserts that a new leader has none.
//! 5. A configuration takes effect when its entry is handed out, before `advance_apply_to`.
//! 6. A snapshot is stepped only once its body is here, whole and durable; the log names it in the write that replaces
//!    the log; only then does the state go over to it.
//! 7. The log is forgotten up to what the durable state has, and not beyond a snapshot on its way to a member.
//! 8. Election timeouts come from our own stream, as a function of member, term and attempt, set after every call.
//! 9. Whoever has heard a leader, or may have before it started, helps no other to lead for an election timeout, unless that leader
//!    asked for it: a leader's lease (`raft/reads`) counts on that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry as RaftEntry, EntryType,
    Message, MessageType,
};
use raft::{CAMPAIGN_TRANSFER, Config, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use serde::{Deserialize, Serialize};

use super::codec;
use super::log::{Recovered, Write};
use super::logger;
use super::tail::{Fetch, Retention, Tail};
use super::validate::{self, InvalidMessage};
use crate::entry::{Body, Entry};
use crate::error::{Context, Fault};
use crate::ids::{Index, NodeId, Term};
use crate::io::{Rng, scale};
use crate::limits;
use crate::proto::v1::{self, MemberRole};
use crate::time::ClusterTime;

/// How many times the log that is kept may pile up behind a snapshot on its way.
const SNAPSHOT_RETENTIONS: u64 = 4;

/// What a member is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Decides what is appended.
    Leader,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote, or is in no configuration yet.
    Learner,
}

impl Role {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
        }
    }
}

/// What the core knows of itself and the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: NodeId,
    /// What it is.
    pub role: Role,
    /// Whom it follows; itself if it leads.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Up to where it knows the log to be committed.
    pub commit: Index,
    /// Up to where its state has applied the log.
    pub applied: Index,
    /// Where its log begins.
    pub first: Index,
    /// Where its log ends.
    pub last: Index,
    /// As leader: where each other member's log is known to agree with its own.
    pub matched: BTreeMap<NodeId, Index>,
    /// As leader: who has answered within the last election timeout.
    pub active: Vec<NodeId>,
    /// Voters of the configuration.
    pub voters: Vec<NodeId>,
    /// Learners of the configuration.
    pub learners: Vec<NodeId>,
    /// Whether two configurations are in force at once (Raft paper, §6).
    pub joint: bool,
}

/// A snapshot whose body is to be fetched from the member that announced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Who has it.
    pub from: NodeId,
    /// The last index it covers, and its term.
    pub position: (Index, Term),
    /// What its body is like.
    pub body: v1::SnapshotBody,
}

/// What the outside must do, in this order: send, write, install, apply, answer reads, fetch, stage, take.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages that may leave now.
    pub send: Vec<Message>,
    /// To be made durable, then reported by [`Core::on_persisted`].
    pub write: Option<Write>,
    /// The state built from the snapshot at this index is now the one that counts: to be gone over to, then reported by
    /// [`Core::on_installed`].
    pub install: Option<Index>,
    /// To be applied, then reported by [`Core::on_applied`].
    pub apply: Vec<Entry>,
    /// Reads that may be answered once the index is applied: their context and the index.
    pub reads: Vec<(Vec<u8>, Index)>,
    /// To be read from the durable log, then given to [`Core::on_fetched`].
    pub fetch: Vec<Fetch>,
    /// To be fetched from a member and built, then reported by [`Core::on_staged`]. It takes the place of any other.
    pub stage: Option<Announced>,
    /// A snapshot of the state is to be made, then given to [`Core::on_taken`].
    pub take: bool,
}

/// What the log may forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compaction {
    /// Nothing.
    Nothing,
    /// Nothing before the state is durable further than now.
    NeedsCheckpoint,
    /// Everything up to this index, of this term. It is forgotten already; the durable log may follow.
    Upto(Index, Term),
}

/// Why a proposal was not taken. It has certainly not been appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This member does not lead.
    NotLeader,
    /// Too much is uncommitted, or leadership is being handed over.
    Busy,
}

/// How a core is set up.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This member.
    pub id: NodeId,
    /// Ticks of an election timeout; each is drawn between one and two of it.
    pub election_ticks: usize,
    /// How much of the log is kept for members that are behind.
    pub retention: Retention,
    /// How much is under way at once.
    pub flow: Flow,
}

/// How much a member has under way at once. One entry always is, however large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Bytes of the entries in one append message; at most [`limits::APPEND_BYTES_MAX`].
    pub append_bytes: u64,
    /// Append messages to one follower before an answer; at most [`limits::APPENDS_IN_FLIGHT_MAX`].
    pub appends: usize,
    /// Bytes of entries proposed but not committed, and not fewer than in one message; above it proposals are refused as exhausted.
    pub uncommitted_bytes: u64,
    /// Bytes of committed entries handed to the state at once; at most [`limits::COMMITTED_BYTES_MAX`].
    pub committed_bytes: u64,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            append_bytes: limits::APPEND_BYTES_MAX,
            appends: limits::APPENDS_IN_FLIGHT_MAX,
            uncommitted_bytes: limits::UNCOMMITTED_BYTES_MAX,
            committed_bytes: limits::COMMITTED_BYTES_MAX,
        }
    }
}

/// A write that is not durable yet.
struct Unpersisted {
    number: u64,
    /// Whether it changes term or vote, or says that a configuration is committed.
    promise: bool,
}

/// A snapshot between raft-rs and the state.
struct Installing {
    index: Index,
    /// The write it waits for; `None` when that is durable.
    after: Option<u64>,
}

/// Raft for one member.
pub struct Core {
    raw: RawNode<Tail>,
    config: CoreConfig,
    rng: Rng,
    /// Non-leader ticks that led to a campaign.
    attempts: u64,
    unpersisted: VecDeque<Unpersisted>,
    /// The number of the newest `Ready`.
    newest: u64,
    /// Messages that wait until all writes up to a number are durable.
    held: VecDeque<(u64, Vec<Message>)>,
    /// Messages that waited and may leave.
    released: Vec<Message>,
    /// Entries that wait until all writes up to a number are durable, and those that waited and may be applied.
    deferred: VecDeque<(u64, Vec<Entry>)>,
    appliable: Vec<Entry>,
    /// A request to campaign at once that came while a write was not durable.
    timeout_now: Option<Message>,
    conf_state: ConfState,
    /// Whether any configuration so far had this member.
    was_member: bool,
    /// Where the last change of membership that took effect stands.
    last_change: Index,
    /// Where this member, as leader of a term, has proposed what rests on who the members are.
    resting: Option<(Term, Index)>,
    applied: Index,
    /// Up to where the state is durable.
    durable: Index,
    /// A snapshot that raft-rs has taken and the state has not gone over to.
    installing: Option<Installing>,
    /// The log names it: the state may go over to it.
    install: Option<Index>,
    /// The announcement of a snapshot whose body is being fetched.
    staging: Option<Message>,
    /// Where the state was when a snapshot of it was asked for that is not there yet.
    taking: Option<Index>,
    stage: Option<Announced>,
    /// Where the last proposed leave of a joint configuration stands.
    leaving: Index,
    /// Changes of membership in the log that were not known to be committed yet.
    changes: BTreeSet<Index>,
    /// Ticks until this member may help another than its leader to lead.
    loyal: usize,
    /// The last term in which this member asked another to lead.
    handed_over: Option<u64>,
    /// Ticks so far.
    ticks: u64,
    /// As leader, in which term and at which tick each other member was last heard. raft-rs forgets all at once, now and then.
    answered: BTreeMap<u64, (u64, u64)>,
}

/// What a leader's lease is bound to: its term, and where the last change of membership stands.
pub type Reign = (Term, Index);

/// Whether a message comes from whoever leads in its term.
fn is_of_leader(kind: MessageType) -> bool {
    use MessageType as T;
    matches!(kind, T::MsgAppend | T::MsgHeartbeat | T::MsgSnapshot | T::MsgTimeoutNow | T::MsgReadIndexResp)
}

/// Where changes of membership stand among entries.
fn changes(entries: &[RaftEntry]) -> impl Iterator<Item = Index> {
    let changes = entries.iter().filter(|entry| entry.get_entry_type() != EntryType::EntryNormal);
    changes.map(|entry| Index(entry.index))
}

impl Core {
    /// A core over a recovered log and the membership of the state at `applied`.
    ///
    /// # Errors
    /// Log and state contradict each other: this member's disk is not as it left it.
    pub fn new(
        config: CoreConfig,
        recovered: Recovered,
        applied: Index,
        conf_state: ConfState,
        rng: Rng,
    ) -> Result<Self, Fault> {
        let last = recovered.entries.last().map_or(recovered.compacted.0, |entry| Index(entry.index));
        if applied > last || applied < recovered.compacted.0 {
            return Err(Fault::new(format!(
                "the state is applied up to {applied}, but the log holds {}..={last}: was one of the files replaced?",
                recovered.compacted.0.next()
            )));
        }
        let mut hard_state = recovered.hard_state;
        hard_state.commit = hard_state.commit.max(applied.0).min(last.0);
        let mut tail = Tail::new(hard_state.clone(), conf_state.clone(), recovered.compacted, config.retention);
        let changes = changes(&recovered.entries).filter(|index| index.0 > hard_state.commit).collect();
        tail.append(&recovered.entries);
        tail.evict(applied);
        let raft_config = Config {
            id: config.id.0,
            election_tick: config.election_ticks,
            heartbeat_tick: 1,
            applied: applied.0,
            max_size_per_msg: config.flow.append_bytes,
            max_inflight_msgs: config.flow.appends,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: config.flow.uncommitted_bytes,
            max_committed_size_per_ready: config.flow.committed_bytes,
            ..Config::default()
        };
        // Before it started it may have heard a leader.
        let loyal = config.election_ticks;
        let raw = RawNode::new(&raft_config, tail, &logger::new()).context(|| "start raft".into())?;
        let mut core = Self {
            raw,
            config,
            rng,
            attempts: 0,
            unpersisted: VecDeque::new(),
            newest: 0,
            held: VecDeque::new(),
            released: Vec::new(),
            deferred: VecDeque::new(),
            appliable: Vec::new(),
            timeout_now: None,
            was_member: false,
            last_change: Index(0),
            resting: None,
            conf_state,
            applied,
            durable: applied,
            installing: None,
            install: None,
            staging: None,
            taking: None,
            stage: None,
            leaving: Index(0),
            changes,
            loyal,
            handed_over: None,
            ticks: 0,
            answered: BTreeMap::new(),
        };
        core.was_member = core.is_inside();
        core.after_call();
        Ok(core)
    }

    /// One tick of the clock passed.
    pub fn tick(&mut self) {
        let leads = self.leads();
        self.ticks += 1;
        self.loyal = self.loyal.saturating_sub(1);
        if !leads && self.is_writing() {
            sometimes!("a tick was skipped while a write was not durable");
            return;
        }
        if self.raw.tick() && !leads {
            self.attempts += 1;
        }
        self.after_call();
    }

    /// Campaigns at once if this member is the only voter: nobody else could.
    pub fn maybe_campaign_alone(&mut self) {
        if self.is_alone() && self.raw.raft.state == StateRole::Follower && !self.is_writing() {
            // Refused while an unapplied change of membership is ahead; the next tick asks again.
            sometimes!("a sole voter campaigned at once");
            let _ = self.raw.campaign();
            self.after_call();
        }
    }

    /// A message from a peer.
    ///
    /// # Errors
    /// It is malformed; nothing has changed.
    pub fn step(&mut self, message: Message) -> Result<(), InvalidMessage> {
        self.check(&message)?;
        let (kind, from, term) = (message.get_msg_type(), message.from, message.term);
        if kind == MessageType::MsgReadIndex && !self.leads() {
            // raft-rs would pass it on in the sender's name; the sender asks again.
            return Ok(());
        }
        if self.is_disloyal(&message) {
            sometimes!("a member that had heard its leader did not listen to another");
            return Ok(());
        }
        if message.get_msg_type() == MessageType::MsgSnapshot && self.needs_body(&message) {
            self.announce(message);
            return Ok(());
        }
        if message.get_msg_type() == MessageType::MsgTimeoutNow && self.is_writing() {
            sometimes!("a request to campaign waited for the disk");
            self.timeout_now = Some(message);
            return Ok(());
        }
        // What remains are messages of members that left: nothing to do about them.
        let _ = self.raw.step(message);
        if is_of_leader(kind) && (self.raw.raft.leader_id, self.raw.raft.term) == (from, term) {
            self.loyal = self.config.election_ticks;
        }
        if self.leads() && term == self.raw.raft.term && self.raw.raft.prs().get(from).is_some() {
            self.answered.insert(from, (term, self.ticks));
        }
        self.after_call();
        Ok(())
    }

    fn check(&self, message: &Message) -> Result<(), InvalidMessage> {
        let log = &self.raw.raft.raft_log;
        let term_of = |index: Index| log.term(index.0).ok().filter(|term| *term != 0).map(Term);
        validate::check(message, self.config.id, Index(log.last_index()), term_of)
    }

    /// Whether to listen to a message would help another than the leader to lead, too early. raft-rs sees to that while it knows a
    /// leader; but it has forgotten it after a start, and for a word of a later term, which may come from who only wanted to lead.
    fn is_disloyal(&self, message: &Message) -> bool {
        let kind = message.get_msg_type();
        let asks = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        let is_later = message.term > self.raw.raft.term && !is_of_leader(kind);
        let is_wanted = asks && message.context == CAMPAIGN_TRANSFER;
        let follows = self.raw.raft.state == StateRole::Follower;
        self.loyal > 0 && follows && (asks || is_later) && !is_wanted
    }

    /// What a lease would be bound to: nothing unless this member leads; or while a change of members is under way, of which others may
    /// know more; or once it has asked another to lead: that word may arrive at any time while the term lasts.
    pub fn reign(&self) -> Option<Reign> {
        let term = self.raw.raft.term;
        if self.raw.raft.has_pending_conf() {
            return None;
        }
        (self.leads() && self.handed_over != Some(term)).then_some((Term(term), self.last_change))
    }

    /// As leader under a lease, answers a member that asks for the index that a linearizable read must see.
    ///
    /// # Errors
    /// The question is malformed.
    pub fn answer_read(&mut self, question: Message) -> Result<(), InvalidMessage> {
        self.check(&question)?;
        let raft = &mut self.raw.raft;
        let mut answer = Message::default();
        answer.set_msg_type(MessageType::MsgReadIndexResp);
        (answer.from, answer.to, answer.term) = (raft.id, question.from, raft.term);
        answer.index = raft.raft_log.committed;
        answer.entries = question.entries;
        raft.msgs.push(answer);
        Ok(())
    }

    /// Up to where the state has applied the log.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Up to where the log is committed.
    pub fn committed(&self) -> Index {
        Index(self.raw.raft.raft_log.committed)
    }

    /// Whether a snapshot is ahead of the log: else raft-rs answers without looking into it.
    fn needs_body(&self, message: &Message) -> bool {
        let meta = message.get_snapshot().get_metadata();
        let log = &self.raw.raft.raft_log;
        message.term >= self.raw.raft.term && meta.index > log.committed && !log.match_term(meta.index, meta.term)
    }

    /// Has the body of a snapshot fetched, unless one is being fetched already or being installed: its sender announces
    /// it again.
    fn announce(&mut self, message: Message) {
        let is_same = |staged: &&mut Message| (message.from, position(&message)) == (staged.from, position(staged));
        if let Some(staged) = self.staging.as_mut().filter(is_same) {
            if message.term > staged.term {
                sometimes!("whoever has a snapshot that is being fetched leads again");
                *staged = message;
            }
            return;
        }
        // One that is being fetched is let finish, or fail; but a former leader may be gone.
        let newer = self.staging.as_ref().is_none_or(|staged| message.term > staged.term);
        if self.installing.is_none()
            && newer
            && let Ok(body) = codec::snapshot_body(message.get_snapshot())
        {
            sometimes!(self.staging.is_some(), "a snapshot under way gave way to a later leader's");
            self.stage = Some(Announced { from: NodeId(message.from), position: position(&message), body });
            self.staging = Some(message);
        }
    }

    /// The body of a snapshot is here, whole and durable, or it could not be had. Says whether it is going to be
    /// installed; if not, it is of no use any more.
    pub fn on_staged(&mut self, announced: &Announced, whole: bool) -> bool {
        let wanted =
            |message: &mut Message| (NodeId(message.from), position(message)) == (announced.from, announced.position);
        let Some(message) = self.staging.take_if(wanted).filter(|_| whole) else { return false };
        let _ = self.raw.step(message);
        self.after_call();
        sometimes!(self.raw.snap().is_none(), "a snapshot was of no use when it was here");
        self.raw.snap().is_some()
    }

    /// The state has gone over to the snapshot at `index`.
    pub fn on_installed(&mut self, index: Index) {
        sometimes!("a snapshot was installed");
        sometimes!(self.is_joint(), "a snapshot was installed in a joint configuration");
        self.installing.take_if(|installing| installing.index <= index);
        self.durable = index;
        self.on_applied(index);
        self.settle();
    }

    /// The state is durable up to `index`.
    pub fn on_durable(&mut self, index: Index) {
        self.durable = self.durable.max(index);
    }

    /// A snapshot of the state was made.
    ///
    /// # Errors
    /// Its configuration is none.
    pub fn on_taken(&mut self, snapshot: &v1::RaftSnapshot) -> Result<(), Fault> {
        self.taking = None;
        let snapshot = codec::snapshot(snapshot).context(|| "take a snapshot".into())?;
        self.raw.mut_store().set_snapshot(Some(snapshot));
        Ok(())
    }

    /// The index of the snapshot that may be sent.
    pub fn snapshot_ready(&self) -> Option<Index> {
        self.raw.store().snapshot_ready().map(|snapshot| Index(snapshot.get_metadata().index))
    }

    /// Sends the snapshot that there is to nobody any more.
    pub fn forget_snapshot(&mut self) {
        self.raw.mut_store().set_snapshot(None);
    }

    /// A snapshot could not be taken: whoever is behind is still, and will have Raft ask for one again.
    pub fn on_not_taken(&mut self) {
        self.taking = None;
        self.forget_snapshot();
    }

    /// As leader, who is being sent a snapshot, and of which index.
    pub fn snapshots_in_flight(&self) -> Vec<(NodeId, Index)> {
        let progress = self.raw.raft.prs().iter().filter(|_| self.leads());
        let sent = progress.filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        sent.map(|(id, progress)| (NodeId(*id), Index(progress.pending_snapshot))).collect()
    }

    /// A snapshot did not get through to a member.
    pub fn on_snapshot_failed(&mut self, member: NodeId) {
        self.raw.report_snapshot(member.0, SnapshotStatus::Failure);
        self.after_call();
    }

    /// Forgets what need not be kept of the log.
    pub fn compact(&mut self) -> Compaction {
        let store = self.raw.store();
        let Some(excess) = store.excess(self.applied, 1) else { return Compaction::Nothing };
        if excess > self.durable {
            sometimes!("forgetting the log waited for a checkpoint");
            return Compaction::NeedsCheckpoint;
        }
        // Whoever gets a snapshot goes on from there by the log; but one that takes for ever does not hold it up.
        let in_flight = self.snapshots_in_flight().into_iter().map(|(_, index)| index);
        let awaited = in_flight.chain(self.taking).chain(self.snapshot_ready()).min().unwrap_or(excess);
        let patience = store.excess(self.applied, SNAPSHOT_RETENTIONS).unwrap_or_default();
        let upto = excess.min(awaited.max(patience));
        sometimes!(upto < excess, "the log was kept for a snapshot on its way");
        if upto <= store.compacted() || self.installing.is_some() {
            return Compaction::Nothing;
        }
        Compaction::Upto(upto, self.raw.mut_store().compact(upto))
    }

    /// Appends a batch of commands.
    ///
    /// # Errors
    /// It was not taken.
    pub fn propose(&mut self, stamp: ClusterTime, commands: Vec<Bytes>) -> Result<(Index, Term), Refused> {
        if !self.leads() {
            return Err(Refused::NotLeader);
        }
        let batch = v1::Batch { stamp_ms: stamp.0, commands };
        let result = self.raw.propose(Vec::new(), batch.encode_to_vec());
        self.after_call();
        self.position(result)
    }

    /// Appends a command that rests on who the members were in the state at `based_on`: until it is applied, they do not change.
    ///
    /// # Errors
    /// It was not taken: for one, because members have changed since, or are about to.
    pub fn propose_for(
        &mut self,
        stamp: ClusterTime,
        command: Bytes,
        based_on: Index,
    ) -> Result<(Index, Term), Refused> {
        if self.leads() && (self.members_change(based_on) || self.raw.raft.pending_conf_index > self.applied.0) {
            return Err(Refused::Busy);
        }
        let (index, term) = self.propose(stamp, vec![command])?;
        self.resting = Some((term, index));
        Ok((index, term))
    }

    /// Whether members have changed since an index, or are not to change before something that rests on them is applied.
    fn members_change(&self, since: Index) -> bool {
        let resting = self.resting.filter(|(term, _)| term.0 == self.raw.raft.term);
        self.is_joint() || since < self.last_change || resting.is_some_and(|(_, index)| since < index)
    }

    /// Appends a change of membership that was decided on the state at `based_on`. More than one member at a time goes
    /// through a joint configuration.
    ///
    /// # Errors
    /// It was not taken: for one, because members have changed since `based_on`. (raft-rs only refuses a second change
    /// while the first is not applied, not one that was decided before the first was.)
    pub fn propose_members(&mut self, change: &v1::MemberChange, based_on: Index) -> Result<(Index, Term), Refused> {
        if !self.leads() {
            return Err(Refused::NotLeader);
        }
        if self.members_change(based_on) {
            sometimes!("a change of members was refused: there was one since it was decided");
            return Err(Refused::Busy);
        }
        let mut conf = ConfChangeV2::default();
        if change.members.len() > 1 {
            conf.set_transition(ConfChangeTransition::Explicit);
        }
        let changes = change.members.iter().map(|member| {
            let mut single = ConfChangeSingle::default();
            single.node_id = member.id;
            single.set_change_type(match member.role() {
                MemberRole::Voter => ConfChangeType::AddNode,
                MemberRole::Learner => ConfChangeType::AddLearnerNode,
                // Taking out what is not in it leaves a configuration as it is: that is where workers are,
                // and who is yet to join.
                MemberRole::Removed | MemberRole::Worker | MemberRole::Expected | MemberRole::Unspecified => {
                    ConfChangeType::RemoveNode
                }
            });
            single
        });
        conf.set_changes(changes.collect::<Vec<_>>().into());
        let result = self.raw.propose_conf_change(change.encode_to_vec(), conf);
        self.after_call();
        self.position(result)
    }

    /// As leader, ends a joint configuration once it is applied. To be called again until it is over.
    pub fn maybe_leave_joint(&mut self) {
        if !self.leads() {
            // What an earlier leadership proposed may never be committed.
            self.leaving = Index(0);
        } else if self.is_joint() && self.applied >= self.leaving {
            let result = self.raw.propose_conf_change(Vec::new(), ConfChangeV2::default());
            self.after_call();
            if let Ok((index, _)) = self.position(result) {
                sometimes!(self.leaving != Index(0), "a joint configuration had to be left twice");
                self.leaving = index;
            }
        }
    }

    /// Asks for the index that a linearizable read must see. Dropped without a word when there is no leader, or it
    /// has committed nothing in its term: ask again.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raw.read_index(context);
        self.after_call();
    }

    /// As leader, asks another voter to take over at once: the one given, or the one whose log is furthest. Says whom.
    pub fn hand_over(&mut self, to: Option<NodeId>) -> Option<NodeId> {
        let status = self.status();
        let wanted = |id: &NodeId| status.voters.contains(id) && to.is_none_or(|to| to == *id);
        let voters = status.matched.iter().filter(|(id, _)| wanted(id));
        let (id, _) = voters.max_by_key(|(id, matched)| (status.active.contains(id), **matched))?;
        self.handed_over = Some(self.raw.raft.term);
        self.raw.transfer_leader(id.0);
        self.after_call();
        Some(*id)
    }

    /// Whether another was asked to lead and may do so at any moment: nothing is proposed meanwhile.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// All writes up to `number` are durable.
    pub fn on_persisted(&mut self, number: u64) {
        while self.unpersisted.front().is_some_and(|write| write.number <= number) {
            self.unpersisted.pop_front();
        }
        // What was taken after the write and had nothing to write is as good as durable, too.
        let upto = self.unpersisted.front().map_or(self.newest, |next| next.number - 1);
        self.raw.on_persist_ready(upto);
        while self.held.front().is_some_and(|(after, _)| *after <= upto) {
            self.released.extend(self.held.pop_front().into_iter().flat_map(|(_, messages)| messages));
        }
        while self.deferred.front().is_some_and(|(after, _)| *after <= upto) {
            self.appliable.extend(self.deferred.pop_front().into_iter().flat_map(|(_, entries)| entries));
        }
        if let Some(installing) = &mut self.installing
            && installing.after.take_if(|number| *number <= upto).is_some()
        {
            self.install = Some(installing.index);
        }
        self.settle();
    }

    /// Does what had to wait for something to become durable.
    fn settle(&mut self) {
        if !self.is_writing()
            && let Some(message) = self.timeout_now.take()
        {
            let _ = self.raw.step(message);
        }
        self.after_call();
    }

    /// The state has applied everything up to `index`.
    pub fn on_applied(&mut self, index: Index) {
        assert!(index >= self.applied, "applied went back from {} to {index}", self.applied);
        self.applied = index;
        self.raw.advance_apply_to(index.0);
        let persisted = self.raw.raft.raft_log.persisted;
        self.raw.mut_store().evict(Index(index.0.min(persisted)));
        self.after_call();
    }

    /// Entries that [`Effects::fetch`] asked for.
    pub fn on_fetched(&mut self, fetch: Fetch, entries: Vec<RaftEntry>) {
        sometimes!("entries were read from the disk");
        self.raw.mut_store().set_fetched(fetch.low, entries);
        self.raw.on_entries_fetched(fetch.context);
        self.raw.mut_store().clear_fetched();
        self.after_call();
    }

    /// A member could not be reached.
    pub fn on_unreachable(&mut self, member: NodeId) {
        self.raw.report_unreachable(member.0);
        self.after_call();
    }

    /// What is to be done now; `None` when nothing is.
    ///
    /// # Errors
    /// A committed entry makes no sense: this member must stop.
    pub fn take_effects(&mut self) -> Result<Option<Effects>, Fault> {
        let mut effects = Effects { send: std::mem::take(&mut self.released), ..Effects::default() };
        effects.fetch = self.raw.mut_store().take_fetches();
        effects.stage = self.stage.take();
        effects.take = self.raw.store().take_wants_snapshot() && self.taking.is_none();
        if effects.take {
            self.taking = Some(self.applied);
        }
        if !self.appliable.is_empty() {
            // They come before a snapshot that is to be installed, and before all that is committed since.
            effects.apply = std::mem::take(&mut self.appliable);
            return Ok(Some(effects));
        }
        effects.install = self.install.take();
        if !self.raw.has_ready() {
            let nothing = effects.send.is_empty() && effects.fetch.is_empty() && !effects.take;
            let nothing = nothing && effects.stage.is_none() && effects.install.is_none();
            return Ok((!nothing).then_some(effects));
        }
        let before = self.raw.store().hard_state().clone();
        let mut ready = self.raw.ready();
        let number = ready.number();
        self.newest = number;
        let snapshot = Some(ready.snapshot().get_metadata()).filter(|meta| meta.index > 0);
        let position = snapshot.map(|meta| (Index(meta.index), Term(meta.term)));
        if let (Some(meta), Some(position)) = (snapshot, position) {
            self.conf_state = meta.get_conf_state().clone();
            (self.was_member, self.last_change) = (true, position.0);
            self.installing = Some(Installing { index: position.0, after: Some(number) });
            self.raw.mut_store().reset(position, self.conf_state.clone());
            self.changes.clear();
        }
        let entries = ready.take_entries();
        let hard_state = self.raw.raft.hard_state();
        let promise = (hard_state.term, hard_state.vote) != (before.term, before.vote);
        self.raw.mut_store().append(&entries);
        self.raw.mut_store().set_hard_state(hard_state.clone());
        if let Some(first) = entries.first() {
            self.changes.split_off(&Index(first.index));
            self.changes.extend(changes(&entries));
        }
        // Whoever knows of a configuration only from memory could not count votes in it after a crash. That it is committed is said
        // from now on; the entry itself may be handed out later, when those before it have been.
        let pending = self.changes.split_off(&Index(hard_state.commit).next());
        let said = !std::mem::replace(&mut self.changes, pending).is_empty();
        let reconfigured = said || changes(ready.committed_entries()).next().is_some();
        if promise || !entries.is_empty() || position.is_some() || reconfigured {
            self.unpersisted.push_back(Unpersisted { number, promise: promise || reconfigured });
            effects.write = Some(Write { number, snapshot: position, entries, hard_state });
        }
        let (mut immediate, persisted) = (ready.take_messages(), ready.take_persisted_messages());
        // Who hears of what it holds is to see whether it is that.
        for beat in immediate.iter_mut().filter(|message| message.get_msg_type() == MessageType::MsgHeartbeat) {
            beat.commit_term = self.raw.raft.raft_log.term(beat.commit).unwrap_or_default();
        }
        let promised = self.unpersisted.iter().rev().find(|write| write.promise).map(|write| write.number);
        let written = self.unpersisted.back().map(|write| write.number);
        effects.send.extend(self.hold(promised, immediate));
        effects.send.extend(self.hold(written, persisted));
        let committed = ready.take_committed_entries();
        effects.reads =
            ready.take_read_states().into_iter().map(|read| (read.request_ctx, Index(read.index))).collect();
        self.raw.advance_append_async(ready);
        if self.unpersisted.is_empty() {
            self.raw.on_persist_ready(number);
        }
        let apply = committed.into_iter().map(|entry| self.take_committed(entry)).collect::<Result<Vec<_>, _>>()?;
        let after = if reconfigured { Some(number) } else { self.deferred.back().map(|(after, _)| *after) };
        match after {
            Some(after) if !apply.is_empty() => self.deferred.push_back((after, apply)),
            _ => effects.apply = apply,
        }
        self.after_call();
        Ok(Some(effects))
    }

    /// Gives `messages` back if they may leave now, or keeps them until the write `after` is durable.
    fn hold(&mut self, after: Option<u64>, messages: Vec<Message>) -> Vec<Message> {
        match after {
            None => messages,
            Some(_) if messages.is_empty() => messages,
            Some(after) => {
                sometimes!("messages waited for the disk");
                sometimes!(self.leads(), "a leader's messages waited for its vote");
                self.held.push_back((after, messages));
                Vec::new()
            }
        }
    }

    fn take_committed(&mut self, entry: RaftEntry) -> Result<Entry, Fault> {
        let (index, term) = (Index(entry.index), Term(entry.term));
        let what = || format!("take the committed entry {index}");
        let body = match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => Body::Empty,
            EntryType::EntryNormal => {
                let batch = v1::Batch::decode(entry.data).context(what)?;
                Body::Commands { stamp: ClusterTime(batch.stamp_ms), commands: batch.commands }
            }
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                let change = codec::conf_change(&entry.data).context(what)?;
                self.conf_state = self.raw.apply_conf_change(&change).context(what)?;
                self.last_change = index;
                // A leader that is in no configuration any more leads nobody.
                if self.leads() && self.raw.raft.prs().get(self.config.id.0).is_none() {
                    sometimes!("a leader found itself in no configuration");
                    self.raw.raft.become_follower(self.raw.raft.term, 0);
                }
                self.was_member |= self.is_inside();
                self.answered.retain(|id, _| self.raw.raft.prs().get(*id).is_some());
                Body::Members { conf_state: codec::conf_state_bytes(&self.conf_state), change: entry.context }
            }
        };
        Ok(Entry { index, term, body })
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether anything is not durable yet, taken or not, or a snapshot not installed.
    fn is_writing(&self) -> bool {
        let taken = !self.unpersisted.is_empty() || self.installing.is_some();
        taken || !self.raw.raft.raft_log.unstable_entries().is_empty() || self.raw.snap().is_some()
    }

    /// Whether this member is the only voter.
    pub fn is_alone(&self) -> bool {
        self.conf_state.voters == [self.config.id.0] && !self.is_joint()
    }

    /// Whether this member was in a configuration and is no more.
    pub fn has_left(&self) -> bool {
        self.was_member && !self.is_inside()
    }

    /// Whether this member is in the configuration.
    fn is_inside(&self) -> bool {
        let ConfState { voters, learners, voters_outgoing, learners_next, .. } = &self.conf_state;
        [voters, learners, voters_outgoing, learners_next].iter().any(|ids| ids.contains(&self.config.id.0))
    }

    /// Ticks of an election timeout.
    pub fn election_ticks(&self) -> usize {
        self.config.election_ticks
    }

    fn is_joint(&self) -> bool {
        !self.conf_state.voters_outgoing.is_empty()
    }

    /// What this member knows.
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let voter = self.conf_state.voters.contains(&raft.id) || self.conf_state.voters_outgoing.contains(&raft.id);
        let others = || raft.prs().iter().filter(|(id, _)| self.leads() && **id != raft.id);
        let since = |at: u64| self.ticks - at <= self.config.election_ticks as u64;
        let answers = |id| self.answered.get(id).is_some_and(|(term, at)| *term == raft.term && since(*at));
        let active: BTreeSet<_> = others().filter(|(id, _)| answers(*id)).map(|(id, _)| *id).collect();
        Status {
            id: self.config.id,
            role: match raft.state {
                StateRole::Leader => Role::Leader,
                _ if !voter => Role::Learner,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
                StateRole::Follower => Role::Follower,
            },
            leader: (raft.leader_id != 0).then_some(NodeId(raft.leader_id)),
            term: Term(raft.term),
            commit: Index(raft.raft_log.committed),
            applied: self.applied,
            first: self.raw.store().compacted().next(),
            last: Index(raft.raft_log.last_index()),
            matched: others().map(|(id, progress)| (NodeId(*id), Index(progress.matched))).collect(),
            active: active.into_iter().map(NodeId).collect(),
            voters: ids(&self.conf_state.voters),
            learners: ids(&self.conf_state.learners),
            joint: self.is_joint(),
        }
    }

    fn position(&self, result: raft::Result<()>) -> Result<(Index, Term), Refused> {
        match result {
            Ok(()) => Ok((Index(self.raw.raft.raft_log.last_index()), Term(self.raw.raft.term))),
            Err(_) if self.leads() => Err(Refused::Busy),
            Err(_) => Err(Refused::NotLeader),
        }
    }

    /// raft-rs draws election timeouts from the operating system whenever it resets; ours replace them.
    fn after_call(&mut self) {
        let ticks = self.config.election_ticks as u64;
        let bits = self.rng.draw("election", self.raw.raft.term, self.attempts);
        self.raw.raft.set_randomized_election_timeout((ticks + scale(bits, ticks)) as usize);
    }
}

/// What a snapshot covers: its last index, and that entry's term.
fn position(message: &Message) -> (Index, Term) {
    let meta = message.get_snapshot().get_metadata();
    (Index(meta.index), Term(meta.term))
}

/// The entry a founder's log begins with: the cluster's first member. Every other member gets it from the log.
pub fn genesis(founder: &v1::Member) -> RaftEntry {
    let mut single = ConfChangeSingle::default();
    single.node_id = founder.id;
    single.set_change_type(ConfChangeType::AddNode);
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![single].into());
    let mut entry = RaftEntry::default();
    entry.set_entry_type(EntryType::EntryConfChangeV2);
    (entry.index, entry.term) = (1, 1);
    entry.data = protobuf::Message::write_to_bytes(&change).expect("a message without required fields").into();
    entry.context = v1::MemberChange { members: vec![founder.clone()] }.encode_to_vec().into();
    entry
}

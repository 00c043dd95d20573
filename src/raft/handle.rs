//! How others reach a running manager: proposals, reads, and what it knows, from any task.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use raft::eraftpb::Message;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};

use super::core::Status;
use super::snapshot::{self, Chunk, Copied, Served, SnapshotJob};
use super::transport::Hello;
use crate::entry::Step;
use crate::ids::{Address, Incarnation, Index, NodeId, Term};
use crate::io::Clock;
use crate::limits;
use crate::proto::v1;
use crate::time::{ClusterTime, Monotonic};

/// Why a proposal did not end as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not done: this member does not lead.
    #[error("this member does not lead")]
    NotLeader(Option<NodeId>),
    /// Not done: there is too much to do already.
    #[error("too many proposals are waiting; try again later")]
    Busy,
    /// Not done: this member is stopping.
    #[error("this member is stopping; ask another")]
    Stopping,
    /// Not done: no entry may hold it.
    #[error("the command has {0} bytes; at most {max}", max = limits::COMMAND_BYTES_MAX)]
    TooLarge(usize),
    /// Not done: another leader's entry took its place in the log.
    #[error("the proposal was superseded by another leader's entry")]
    Superseded,
    /// Unknown: this member is stopping, or the deadline passed.
    #[error("the outcome of the proposal is unknown")]
    Unknown,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, ProposeError>>;

pub(super) struct Proposal {
    pub(super) command: Bytes,
    /// Whether it is to be the first of its entry.
    pub(super) first: bool,
    pub(super) reply: Reply<(Bytes, Index)>,
}

pub(super) enum Request {
    Propose(Proposal),
    /// A command that rests on who the members were at `based_on`.
    ProposeFor {
        command: Bytes,
        based_on: Index,
        reply: Reply<(Bytes, Index)>,
    },
    Change {
        change: v1::MemberChange,
        based_on: Index,
        reply: Reply<Index>,
    },
    Introduce {
        id: NodeId,
        address: Address,
    },
    Read {
        reply: oneshot::Sender<Index>,
    },
    HandOver {
        to: Option<NodeId>,
        reply: Reply<NodeId>,
    },
    Defragment {
        reply: oneshot::Sender<Step>,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// How others reach a running manager. Cheap to copy.
#[derive(Clone)]
pub struct RaftHandle {
    requests: mpsc::Sender<Request>,
    frames: mpsc::Sender<Vec<Message>>,
    snapshots: mpsc::Sender<SnapshotJob>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
}

/// What the manager tells all handles.
pub(super) struct Shared {
    status: Mutex<Arc<Status>>,
    changed: Notify,
    /// Told only when another leads, or nobody.
    leader_changed: Notify,
    removed: AtomicBool,
    /// What cluster time was, and when: as of the latest stamp, or of the beginning of the term in which this member leads.
    time: Mutex<(ClusterTime, Monotonic)>,
    /// What has come from each member.
    heard: Mutex<BTreeMap<NodeId, Heard>>,
    /// What was given of the snapshot that there is.
    served: Mutex<Served>,
}

/// What a member has said of itself since this one started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Frames that came from it.
    pub frames: u64,
    /// Where the last came from.
    pub address: Address,
    /// Its newest life, the newest format of the state that it takes part in, and how many streams it has open.
    life: (Incarnation, u32),
    streams: usize,
    /// Whether the manager was told where it is, and had room for that.
    introduced: bool,
}

/// A stream from a member is open: until the last of its life is dropped, it is known what the member takes part in.
pub struct Hearing {
    raft: RaftHandle,
    from: NodeId,
    life: Incarnation,
}

impl Drop for Hearing {
    fn drop(&mut self) {
        if let Some(heard) = self.raft.heard_mut().get_mut(&self.from)
            && heard.life.0 == self.life
        {
            heard.streams = heard.streams.saturating_sub(1);
        }
    }
}

impl Shared {
    pub(super) fn new(status: Status, time: ClusterTime, now: Monotonic) -> Self {
        Self {
            status: Mutex::new(Arc::new(status)),
            changed: Notify::new(),
            leader_changed: Notify::new(),
            removed: AtomicBool::default(),
            time: Mutex::new((time, now)),
            heard: Mutex::default(),
            served: Mutex::default(),
        }
    }

    pub(super) fn note_status(&self, status: Status) {
        let leader = status.leader;
        let mut current = self.status.lock().expect("no code panics while it holds the status");
        let before = std::mem::replace(&mut *current, Arc::new(status)).leader;
        drop(current);
        if before != leader {
            self.leader_changed.notify_waiters();
        }
        self.changed.notify_waiters();
    }

    pub(super) fn note_time(&self, time: ClusterTime, now: Monotonic) {
        *self.time.lock().expect("no code panics while it holds the time") = (time, now);
    }

    pub(super) fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().expect("no code panics while it holds what was given")
    }

    pub(super) fn note_removed(&self) {
        if !self.removed.swap(true, Ordering::Relaxed) {
            tracing::error!("this member was removed from the cluster");
            self.changed.notify_waiters();
        }
    }
}

impl RaftHandle {
    pub(super) fn new(
        requests: mpsc::Sender<Request>,
        frames: mpsc::Sender<Vec<Message>>,
        snapshots: mpsc::Sender<SnapshotJob>,
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { requests, frames, snapshots, clock, shared }
    }

    /// Proposes an encoded command, which is the first of its entry if so wanted, and waits for its reply. Give it a deadline: without a
    /// majority it waits.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, command: Bytes, first: bool) -> Result<(Bytes, Index), ProposeError> {
        // What is appended must be acceptable to every member, for ever.
        if command.len() > limits::COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge(command.len()));
        }
        let (reply, answer) = oneshot::channel();
        self.request(Request::Propose(Proposal { command, first, reply }))?;
        answer.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Proposes an encoded command that rests on who the members were in the state at `based_on`, and waits for its reply.
    ///
    /// # Errors
    /// See [`ProposeError`]; busy also if members have changed since, or are about to.
    pub async fn propose_for(&self, command: Bytes, based_on: Index) -> Result<(Bytes, Index), ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::ProposeFor { command, based_on, reply })?;
        answer.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Proposes a change of membership that was decided on the state at `based_on`, and waits until it is applied.
    ///
    /// # Errors
    /// See [`ProposeError`]; busy or superseded also if members have changed since, or are about to.
    pub async fn change_members(&self, change: v1::MemberChange, based_on: Index) -> Result<Index, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::Change { change, based_on, reply })?;
        answer.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Says where a member is that speaks to this one, in case its own log has not told it yet: without an answer that
    /// member could neither lead it nor catch it up.
    /// Says whether there was room for that.
    pub fn introduce(&self, id: NodeId, address: Address) -> bool {
        self.request(Request::Introduce { id, address }).is_ok()
    }

    /// As leader, asks another voter to take over: the one given, or the one whose log is furthest. Says whom; whether
    /// it then leads is for [`Self::wait`] to see.
    ///
    /// # Errors
    /// This member does not lead, or there is no such voter.
    pub async fn hand_over(&self, to: Option<NodeId>) -> Result<NodeId, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::HandOver { to, reply })?;
        answer.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Notes that this member was removed, as its own state says.
    pub fn note_removed(&self) {
        self.shared.note_removed();
    }

    /// Waits until this member is told that it was removed from the cluster.
    pub async fn removed(&self) {
        loop {
            let changed = self.shared.changed.notified();
            if self.shared.removed.load(Ordering::Relaxed) {
                return;
            }
            changed.await;
        }
    }

    fn heard_mut(&self) -> MutexGuard<'_, BTreeMap<NodeId, Heard>> {
        self.shared.heard.lock().expect("no code panics while it holds the counts")
    }

    /// Notes that a member opens a stream, and where it says that it is; `None`, and nothing comes of it, if there is no room for what is
    /// heard of it.
    pub fn hear(&self, hello: &Hello) -> Option<Hearing> {
        let Hello { from, address, format, incarnation, .. } = hello;
        let mut heard = self.heard_mut();
        if !heard.contains_key(from) && heard.len() >= limits::MEMBERS_MAX {
            heard.retain(|id, _| self.knows(*id));
            if heard.len() >= limits::MEMBERS_MAX {
                return None;
            }
        }
        let life = (*incarnation, *format);
        let new = || Heard { frames: 0, address: address.clone(), life, streams: 0, introduced: false };
        let of = heard.entry(*from).or_insert_with(new);
        // What an earlier life says late was true once.
        let is_late = *incarnation < of.life.0;
        sometimes!(is_late, "a member was heard late, from an earlier life");
        if !is_late {
            of.streams = if *incarnation == of.life.0 { of.streams + 1 } else { 1 };
            of.life = life;
            // Before the next is heard, who may be a later one: where that is is to be known last.
            of.introduced = self.introduce(*from, address.clone());
        }
        Some(Hearing { raft: self.clone(), from: *from, life: *incarnation })
    }

    /// Notes that a frame came from a member.
    pub fn note_heard(&self, hello: &Hello) {
        let Hello { from, address, incarnation, .. } = hello;
        if let Some(of) = self.heard_mut().get_mut(from) {
            of.frames += 1;
            if of.address != *address {
                of.address.clone_from(address);
            }
            if !of.introduced && of.life.0 == *incarnation {
                of.introduced = self.introduce(*from, address.clone());
            }
        }
    }

    /// What has come from a member since this one started.
    pub fn heard(&self, from: NodeId) -> Option<Heard> {
        self.heard_mut().get(&from).cloned()
    }

    /// The newest format that a member takes part in, if it answers this one, which leads, and says so.
    pub fn newest_format_of(&self, id: NodeId) -> Option<u32> {
        let answers = self.lock().active.contains(&id);
        self.heard(id).filter(|heard| answers && heard.streams > 0).map(|heard| heard.life.1)
    }

    /// Whether a member is in the configuration that this one knows.
    pub fn knows(&self, id: NodeId) -> bool {
        let status = self.lock();
        status.voters.contains(&id) || status.learners.contains(&id)
    }

    /// Waits until this member's state has everything that was committed when this was called. What is read from the
    /// state after that is linearizable. Give it a deadline: without a majority it waits.
    ///
    /// # Errors
    /// Too many reads wait, or this member is stopping.
    pub async fn read_barrier(&self) -> Result<Index, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::Read { reply })?;
        answer.await.map_err(|_| if self.requests.is_closed() { ProposeError::Stopping } else { ProposeError::Busy })
    }

    fn request(&self, request: Request) -> Result<(), ProposeError> {
        self.requests.try_send(request).map_err(|refused| match refused {
            TrySendError::Full(_) => ProposeError::Busy,
            TrySendError::Closed(_) => ProposeError::Stopping,
        })
    }

    /// Takes messages of a peer; false if they were dropped because too many wait.
    pub fn deliver(&self, messages: Vec<Message>) -> bool {
        self.frames.try_send(messages).is_ok()
    }

    /// A chunk of the snapshot at an index and term, for a life of a member that is behind.
    pub async fn snapshot_chunk(&self, whom: (NodeId, Incarnation), position: (Index, Term), number: u64) -> Chunk {
        let chunk = snapshot::read(&self.snapshots, position, number).await;
        let more = match &chunk {
            Chunk::Data(_) => true,
            Chunk::End => false,
            Chunk::Gone => return chunk,
        };
        self.shared.served().note(whom, number, (self.clock.now(), more));
        chunk
    }

    /// Has the state copied as it is now. Nothing if too much waits, the disk has no room, or this member is stopping.
    pub async fn copy_state(&self) -> Option<Copied> {
        snapshot::copy(&self.snapshots).await
    }

    /// Has the state written anew, into a file without anything free, while it goes on being used; says how that ended. It goes on even
    /// if nobody waits.
    ///
    /// # Errors
    /// It is being done already, or this member is stopping.
    pub async fn defragment(&self) -> Result<Step, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::Defragment { reply })?;
        answer.await.map_err(|_| ProposeError::Busy)
    }

    /// What cluster time is by now, as far as this member can tell: the latest stamp and the time since. If it leads, its next stamp
    /// is no earlier, for its clock is the one that counts.
    pub fn cluster_time(&self) -> ClusterTime {
        let (time, at) = *self.shared.time.lock().expect("no code panics while it holds the time");
        time + self.clock.now().since(at)
    }

    /// What the member last knew of itself and the group.
    pub fn status(&self) -> Arc<Status> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Status>> {
        self.shared.status.lock().expect("no code panics while it holds the status")
    }

    /// Waits until `check` gives something for the status. Give it a deadline.
    pub async fn wait<T>(&self, check: impl Fn(&Status) -> Option<T>) -> T {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(found) = check(&self.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// The same, but for nothing if the manager ends before.
    pub async fn wait_or_end<T>(&self, check: impl Fn(&Status) -> Option<T>) -> Option<T> {
        tokio::select! {
            biased;
            found = self.wait(check) => Some(found),
            () = self.ended() => None,
        }
    }

    /// Waits until the manager has ended.
    pub async fn ended(&self) {
        self.requests.closed().await;
    }

    /// Waits until another leads.
    pub async fn other_leader(&self, than: NodeId) {
        loop {
            let changed = self.shared.leader_changed.notified();
            if self.lock().leader.is_some_and(|leader| leader != than) {
                return;
            }
            changed.await;
        }
    }

    /// Hands over leadership if this member has it, makes the state durable and ends the manager.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Stop { reply }).await.is_ok() {
            let _ = answer.await;
        }
    }
}

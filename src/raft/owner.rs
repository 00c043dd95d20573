//! The owners of what blocks: one of the log, one of the state. Each runs on a thread of its own, takes all that queued
//! up at once, and reports back to the manager; neither ever waits for the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::Entry as RaftEntry;
use tokio::sync::mpsc;

use super::log::{Change, Log, Write};
use super::tail::Fetch;
use crate::entry::{Body, Entry, Outcome, Step};
use crate::error::Fault;
use crate::ids::{Address, Index, NodeId, Term};
use crate::io::{Clock, Io, Spawn, Worker};
use crate::metrics::Metrics;
use crate::proto::v1::RaftSnapshot;
use crate::time::ClusterTime;

/// What the log drives: anything that computes the same from the same entries.
pub trait Machine: Send + 'static {
    /// Applies entries, which follow each other without a gap: the first at least, and fewer than all if what there is to answer becomes
    /// long. Gives what came of those that were applied.
    ///
    /// # Errors
    /// This member must stop.
    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, Fault>;

    /// Makes what was applied durable.
    ///
    /// # Errors
    /// This member must stop.
    fn checkpoint(&mut self) -> Result<(), Fault>;

    /// Goes over to the state that was built at `index`, which is durable, and lets go of the one before.
    ///
    /// # Errors
    /// This member must stop.
    fn install(&mut self, index: Index) -> Result<(), Fault>;

    /// Goes over to the file in which the state was written anew, if that is whole.
    ///
    /// # Errors
    /// This member must stop.
    fn go_over(&mut self) -> Result<Step, Fault>;

    /// The applied index that a crash would leave.
    fn durable(&self) -> Index;

    /// The digest of the state: equal on all members at the same applied index.
    fn digest(&self) -> u64;

    /// Index and term of the last applied entry.
    fn applied(&self) -> (Index, Term);

    /// Raft's configuration at the applied index; empty if there is none.
    fn conf_state(&self) -> &[u8];

    /// The latest stamp applied.
    fn cluster_time(&self) -> ClusterTime;

    /// Where the members are.
    ///
    /// # Errors
    /// This member must stop.
    fn peers(&self) -> Result<BTreeMap<NodeId, Address>, Fault>;
}

/// What an owner reports.
pub(super) enum Done {
    Persisted(u64),
    /// If there is `more` of the job, it is gone on with when that is asked for.
    Applied {
        entries: Vec<Entry>,
        outcomes: Vec<Outcome>,
        now: Now,
        more: bool,
    },
    Installed {
        applied: (Index, Term),
        digest: u64,
        now: Now,
    },
    Fetched(Fetch, Vec<RaftEntry>),
    Compacted,
    Checkpointed(Index),
    Taken(RaftSnapshot),
    NotTaken,
    Defragmented(Step),
    WentOver {
        durable: Index,
        step: Step,
    },
}

impl Done {
    /// Whether the owner of the state has got on.
    pub(super) fn is_of_state(&self) -> bool {
        matches!(self, Self::Applied { .. } | Self::Installed { .. } | Self::Checkpointed(_) | Self::WentOver { .. })
    }
}

/// What the state is like after a job.
pub(super) struct Now {
    pub(super) time: ClusterTime,
    pub(super) durable: Index,
    /// Where the members are, if that may have changed.
    pub(super) peers: Option<BTreeMap<NodeId, Address>>,
}

pub(super) enum LogJob {
    Write(Write),
    Compact(Index, Term),
    Fetch(Fetch),
}

/// Owns the log: one sync for all writes that queued up.
pub(super) struct LogOwner {
    /// `None` after a failure: the node is stopping.
    log: Option<Log>,
    done: mpsc::Sender<Done>,
    spawn: Arc<dyn Spawn>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// Reports finished work. There is room: the channel holds as many reports as there may be jobs.
pub(super) fn report(sender: &mpsc::Sender<Done>, done: Done) {
    if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(done) {
        unreachable!("more reports than jobs");
    }
}

impl LogOwner {
    pub(super) fn new(log: Log, done: mpsc::Sender<Done>, io: &Io, metrics: Arc<Metrics>) -> Self {
        Self { log: Some(log), done, spawn: io.spawn.clone(), clock: io.clock.clone(), metrics }
    }

    fn run_all(&mut self, log: &mut Log, jobs: &mut Vec<LogJob>) -> Result<(), Fault> {
        let (mut changes, mut fetches) = (Vec::new(), Vec::new());
        for job in jobs.drain(..) {
            match job {
                LogJob::Write(write) => changes.push(Change::Write(write)),
                LogJob::Compact(index, term) => changes.push(Change::Compact(index, term)),
                LogJob::Fetch(fetch) => fetches.push(fetch),
            }
        }
        if !changes.is_empty() {
            let began = self.clock.now();
            log.write(&changes)?;
            self.metrics.log_writes.observe(self.clock.now().since(began));
        }
        for change in changes {
            report(
                &self.done,
                match change {
                    Change::Write(write) => {
                        self.metrics.log_entries.inc_by(write.entries.len() as u64);
                        Done::Persisted(write.number)
                    }
                    Change::Compact(..) => Done::Compacted,
                },
            );
        }
        for fetch in fetches {
            let entries = log.read(fetch.low, fetch.high, fetch.bytes_max)?;
            report(&self.done, Done::Fetched(fetch, entries));
        }
        Ok(())
    }
}

impl Worker for LogOwner {
    type Job = LogJob;

    fn run(&mut self, jobs: &mut Vec<LogJob>) {
        let Some(mut log) = self.log.take() else { return jobs.clear() };
        match self.run_all(&mut log, jobs) {
            Ok(()) => self.log = Some(log),
            Err(fault) => self.spawn.fail_stop(fault),
        }
    }
}

pub(super) enum ApplyJob {
    Entries(Vec<Entry>),
    Install(Index),
    Checkpoint,
    GoOver,
    /// To go on with what was begun: what was answered so far has been taken.
    GoOn,
}

impl ApplyJob {
    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> u64 {
        let Self::Entries(entries) = self else { return 0 };
        let of = |entry: &Entry| match &entry.body {
            Body::Empty => 0,
            Body::Commands { commands, .. } => commands.iter().map(Bytes::len).sum(),
            Body::Members { conf_state, change } => conf_state.len() + change.len(),
        };
        entries.iter().map(|entry| (size_of::<Entry>() + of(entry)) as u64).sum()
    }
}

/// Owns the state.
pub(super) struct ApplyOwner<M> {
    /// `None` after a failure: the node is stopping.
    machine: Option<M>,
    /// What is yet to be done, and whether that waits until what was answered has been taken: answers may be long.
    left: VecDeque<ApplyJob>,
    waits: bool,
    done: mpsc::Sender<Done>,
    spawn: Arc<dyn Spawn>,
}

impl<M: Machine> ApplyOwner<M> {
    pub(super) fn new(machine: M, done: mpsc::Sender<Done>, spawn: Arc<dyn Spawn>) -> Self {
        Self { machine: Some(machine), left: VecDeque::new(), waits: false, done, spawn }
    }

    fn run_all(&mut self, machine: &mut M, jobs: &mut Vec<ApplyJob>) -> Result<(), Fault> {
        for job in jobs.drain(..) {
            match job {
                ApplyJob::GoOn => self.waits = false,
                job => self.left.push_back(job),
            }
        }
        while !self.waits
            && let Some(job) = self.left.pop_front()
        {
            match job {
                ApplyJob::GoOn => unreachable!("it is no job that waits"),
                ApplyJob::Checkpoint => {
                    machine.checkpoint()?;
                    report(&self.done, Done::Checkpointed(machine.durable()));
                }
                ApplyJob::GoOver => {
                    let step = machine.go_over()?;
                    report(&self.done, Done::WentOver { durable: machine.durable(), step });
                }
                ApplyJob::Entries(mut entries) => {
                    let outcomes = machine.apply(&entries)?;
                    let left = entries.split_off(outcomes.len());
                    self.waits = !left.is_empty();
                    if self.waits {
                        sometimes!("a batch was applied in parts, for the answers were long");
                        self.left.push_front(ApplyJob::Entries(left));
                    }
                    let moved = entries.iter().any(|entry| matches!(entry.body, Body::Members { .. }));
                    let now = Self::now(machine, moved)?;
                    report(&self.done, Done::Applied { entries, outcomes, now, more: self.waits });
                }
                ApplyJob::Install(index) => {
                    machine.install(index)?;
                    let now = Self::now(machine, true)?;
                    report(&self.done, Done::Installed { applied: machine.applied(), digest: machine.digest(), now });
                }
            }
        }
        Ok(())
    }

    fn now(machine: &M, moved: bool) -> Result<Now, Fault> {
        let peers = if moved { Some(machine.peers()?) } else { None };
        Ok(Now { time: machine.cluster_time(), durable: machine.durable(), peers })
    }
}

impl<M: Machine> Worker for ApplyOwner<M> {
    type Job = ApplyJob;

    fn run(&mut self, jobs: &mut Vec<ApplyJob>) {
        let Some(mut machine) = self.machine.take() else { return jobs.clear() };
        match self.run_all(&mut machine, jobs) {
            Ok(()) => self.machine = Some(machine),
            Err(fault) => self.spawn.fail_stop(fault),
        }
    }
}

//! The worker: runs what the replicated state gives it, and says what becomes of it.
//!
//! ```text
//!   desired: the tasks of this worker ──► wanted ──► hands ──► shims
//!   desired ◄── started, ended ◄──────── found ◄─────┘
//!   desired ◄── register, renew ──► lease: until when anything may run
//! ```
//!
//! What the state wants it learns through [`Desired`]: from its own member's replica, or from a server. The rules are the
//! same: what it sees may be old, so it acts by three of them.
//!
//! It starts and keeps alive only what the state gives it *in the epoch of its lease*, and only while that lease lives.
//! An attempt's deadline is the lease's: a worker that cannot reach the cluster, or is frozen, needs to do nothing for
//! its attempts to end in time. And before it asks for a lease, what it sees must be up to date.

mod hands;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::{mpsc, oneshot};

use self::hands::{Hands, Job, Wanted};
use crate::error::{Fault, Reject};
use crate::ids::{Index, NodeId, TaskId, Token};
use crate::io::{Found, Io, Launch, LogPiece, TaskHandle, own};
use crate::limits::{
    KILL_GRACE, REQUEST_TIMEOUT, TICK, WORKER_JOBS_MAX, WORKER_LEASE, WORKER_PAUSE, WORKER_PERIOD, WORKER_RENEWAL,
};
use crate::proto::v1::{
    RegisterWorker, RenewWorker, Reply, ReportAttempt, Resources, SetWorkerStatus, Task, TaskPhase, WorkerStatus,
    command::Kind, exit::Reason, reply,
};
use crate::state::{command, task};
use crate::time::Monotonic;

/// What a worker offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Processors in thousandths, memory and disk in bytes that tasks may reserve; `None`: what the machine has.
    pub capacity: [Option<u64>; 3],
    /// What tasks may ask for by name.
    pub features: Vec<String>,
}

/// Why a command of a worker did not succeed.
#[derive(Debug)]
pub enum Refusal {
    /// The cluster's answer.
    Rejected(Reject),
    /// It may or may not have taken effect; all of a worker's commands may be sent again.
    Failed(String),
}

/// What a reply to a command of a worker says.
///
/// # Errors
/// It is a refusal.
pub fn answer(reply: Reply) -> Result<reply::Kind, Refusal> {
    match reply.kind {
        Some(reply::Kind::Rejection(rejection)) => Err(match command::reject(&rejection) {
            Some(reject) => Refusal::Rejected(reject),
            None => Refusal::Failed("refused for a reason that only a newer version knows".into()),
        }),
        Some(kind) => Ok(kind),
        None => Err(Refusal::Failed("an answer from a newer version".into())),
    }
}

/// What the state wants of a worker, as of one point of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// The point. From one look to a later one it never goes back.
    pub index: Index,
    /// The worker's epoch at that point; `None` if it had never registered.
    pub epoch: Option<u64>,
    /// The tasks that the worker had at that point.
    pub tasks: Arc<Vec<Task>>,
    /// Whether word of changes gets through. While it does not, nothing may begin: this is what is known, not what is so.
    pub live: bool,
}

/// The state, as far as it concerns one worker, and the way to its log.
pub trait Desired: Send + Sync + 'static {
    /// What is known to be wanted; `None` if nothing is known yet, which is not the same as that nothing is wanted.
    ///
    /// # Errors
    /// This node's database failed.
    fn look(&self) -> Result<Option<Look>, Fault>;

    /// Waits until there may be another look than the one at `seen`, and says where. Give it a deadline.
    fn changed(&self, seen: Index) -> BoxFuture<'_, Index>;

    /// Waits until [`Self::look`] shows everything that was committed when this was called. Give it a deadline.
    ///
    /// # Errors
    /// Why that cannot be had now.
    fn up_to_date(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Carries out a command, within `patience`.
    ///
    /// # Errors
    /// See [`Refusal`].
    fn execute(&self, kind: Kind, patience: Duration) -> BoxFuture<'_, Result<reply::Kind, Refusal>>;
}

/// The way to the output of the attempts that were here. Cheap to copy.
#[derive(Clone)]
pub struct Outputs(mpsc::Sender<Job>);

impl Outputs {
    /// A piece of an attempt's output from an offset on; `None` if there is no such attempt here.
    pub async fn read(&self, token: Token, offset: u64) -> Option<LogPiece> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Job::Read { token, offset, reply }).await.ok()?;
        answer.await.ok()?
    }
}

/// Starts the owner of this machine's processes; `None` if nothing may be run here.
pub fn outputs(io: &Io) -> Option<Outputs> {
    let launcher = io.launcher.clone()?;
    Some(Outputs(own(&*io.spawn, "worker", Hands::new(launcher, io.clock.clone()), WORKER_JOBS_MAX)))
}

/// A lease: in which epoch, and until when by this worker's clock.
#[derive(Clone, Copy)]
struct Lease {
    epoch: u64,
    ends: Monotonic,
}

struct Shared {
    io: Io,
    id: NodeId,
    config: WorkerConfig,
    desired: Arc<dyn Desired>,
    hands: Outputs,
    lease: Mutex<Option<Lease>>,
    /// When the attempts were last looked after, all of them.
    looked: Mutex<Option<Monotonic>>,
    draining: AtomicBool,
    /// What it is called in this life.
    life: u64,
}

/// A running worker. Dropping it ends its tasks; what it runs goes on until its deadline.
pub struct Worker {
    shared: Arc<Shared>,
    lease: TaskHandle,
    _rounds: TaskHandle,
}

impl Worker {
    /// Starts the worker that is member `id`, and is called `life` as long as it lives.
    pub fn start(
        io: Io,
        (id, life): (NodeId, u64),
        config: WorkerConfig,
        desired: Arc<dyn Desired>,
        hands: Outputs,
    ) -> Self {
        let (lease, looked, draining) = (Mutex::default(), Mutex::default(), AtomicBool::default());
        let shared = Arc::new(Shared { io, id, config, desired, hands, lease, looked, draining, life });
        let spawn = &shared.io.spawn;
        let lease = spawn.spawn("worker lease", Box::pin(keep_lease(shared.clone())));
        let rounds = spawn.spawn("worker rounds", Box::pin(run_rounds(shared.clone())));
        Self { shared, lease, _rounds: rounds }
    }

    /// Takes nothing new, ends what runs, and leaves; all of it within `patience`. What has not ended by then ends with
    /// the lease. Of one whose node was `removed` nobody hears any more: it tells nobody.
    pub async fn drain(self, patience: Duration, removed: bool) {
        let Self { shared, lease, _rounds } = self;
        let clock = &shared.io.clock;
        // First, for it needs nobody else: what runs is asked to end.
        shared.draining.store(true, Ordering::Relaxed);
        let empty = async {
            if !removed {
                // What is left on the way of an earlier life may make it look like that one; the next renewal puts it right.
                while let Err(Refusal::Rejected(Reject::Conflict(_))) = shared.set_status(WorkerStatus::Draining).await
                    && shared.lease().is_some()
                {
                    clock.sleep(TICK).await;
                }
            }
            while shared.desired.look()?.is_some_and(|look| !look.tasks.is_empty()) {
                clock.sleep(WORKER_PAUSE).await;
            }
            // A renewal that crossed it would bring the worker back.
            drop(lease);
            if !removed {
                let _ = shared.set_status(WorkerStatus::Offline).await;
            }
            Ok::<(), Fault>(())
        };
        match clock.timeout(patience, empty).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => tracing::error!(%fault, "the worker could not be drained"),
            Err(_) => tracing::warn!(?patience, "the worker's tasks have not ended; they end with its lease"),
        }
    }
}

impl Shared {
    async fn set_status(&self, status: WorkerStatus) -> Result<(), Refusal> {
        let set = SetWorkerStatus { worker: self.id.0, status: status.into(), wish: false, life: self.life };
        let done = self.desired.execute(Kind::SetWorkerStatus(set), REQUEST_TIMEOUT).await;
        if let Err(refusal) = &done {
            tracing::info!(?refusal, ?status, "the worker's status was not set");
        }
        done.map(|_| ())
    }

    fn lease(&self) -> std::sync::MutexGuard<'_, Option<Lease>> {
        self.lease.lock().expect("no code panics while it holds the lease")
    }

    /// Registers, or renews the lease. Counted from before the request was sent: whatever the cluster counts from is
    /// later.
    async fn renew(&self) -> Result<(), Refusal> {
        let clock = &self.io.clock;
        // Whoever has not caught up, or cannot look after its attempts, must not be given any.
        match clock.timeout(WORKER_RENEWAL, self.desired.up_to_date()).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(Refusal::Failed(format!("this worker is not up to date: {why}"))),
            Err(_) => return Err(Refusal::Failed("this worker is not up to date".into())),
        }
        let looked = *self.looked.lock().expect("no code panics while it holds the time");
        if looked.is_none_or(|at| clock.now().since(at) >= WORKER_LEASE / 2) {
            return Err(Refusal::Failed("this worker's attempts cannot be looked after".into()));
        }
        let before = *self.lease();
        if before.is_none() && self.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Failed("this worker is leaving".into()));
        }
        let sent = clock.now();
        let worker = self.id.0;
        let (capacity, features) = (Some(self.capacity()), self.config.features.clone());
        let register = RegisterWorker { worker, capacity, features, life: self.life };
        let kind = match before {
            Some(Lease { epoch, .. }) => Kind::RenewWorker(RenewWorker { worker, epoch, registered: Some(register) }),
            None => Kind::RegisterWorker(register),
        };
        match self.desired.execute(kind, WORKER_RENEWAL).await? {
            reply::Kind::WorkerLease(lease) => {
                let span = Duration::from_millis(lease.lease_ms).min(WORKER_LEASE);
                *self.lease() = Some(Lease { epoch: lease.epoch, ends: sent + span });
                Ok(())
            }
            other => Err(Refusal::Failed(format!("an answer of another kind: {other:?}"))),
        }
    }

    fn capacity(&self) -> Resources {
        let machine = self.io.launcher.as_ref().map(|launcher| launcher.resources()).unwrap_or_default();
        let [cpu, memory, disk] = self.config.capacity;
        Resources {
            cpu_milli: cpu.unwrap_or(machine.cpu_milli),
            memory_bytes: memory.unwrap_or(machine.memory_bytes),
            disk_bytes: disk.unwrap_or(machine.disk_bytes),
        }
    }

    /// Until when what a look shows may run; `None` for nothing may begin or go on.
    fn deadline(&self, look: &Look) -> Option<Monotonic> {
        // What was seen before the lease's epoch may still have tasks that were given to others since.
        let lease = self.lease().filter(|lease| Some(lease.epoch) == look.epoch && lease.ends > self.io.clock.now());
        lease.map(|lease| lease.ends)
    }

    fn stop_reason(&self, task: &Task) -> Option<Reason> {
        let draining = self.draining.load(Ordering::Relaxed).then_some(Reason::Drained);
        if task.stop_wanted { Some(Reason::Stopped) } else { draining }
    }

    /// Compares what should be with what is, once. Says what is.
    async fn look(&self) -> Result<Vec<(Task, Found)>, Fault> {
        // What nobody looks after ends with its deadline.
        let Some(look) = self.desired.look()? else { return Ok(Vec::new()) };
        let (deadline, tasks) = (self.deadline(&look), look.tasks);
        let wanted = tasks.iter().filter_map(|task| {
            let launch = launch(task)?;
            Some(Wanted { launch, begun: task.phase() == TaskPhase::Running, stop: self.stop_reason(task) })
        });
        let (reply, found) = oneshot::channel();
        let job = Job::Round { wanted: wanted.collect(), deadline, may_begin: look.live, reply };
        if self.hands.0.send(job).await.is_err() {
            return Ok(Vec::new());
        }
        let Ok(found) = found.await else { return Ok(Vec::new()) };
        *self.looked.lock().expect("no code panics while it holds the time") = Some(self.io.clock.now());
        let has = |task: &&Task, token: Token| task::current(task).is_some_and(|attempt| attempt.token == token.0);
        let of_task = |found: Found| Some((tasks.iter().find(|task| has(task, found.token))?.clone(), found));
        Ok(found.into_iter().filter_map(of_task).collect())
    }

    /// Tells the cluster of an attempt. True if it need not be told again.
    async fn report(&self, task: u64, found: Found) -> bool {
        let report = ReportAttempt { task, token: found.token.0, exit: found.exit };
        // Briefly: meanwhile nothing is extended.
        match self.desired.execute(Kind::ReportAttempt(report), WORKER_RENEWAL).await {
            Ok(_) | Err(Refusal::Rejected(_)) => true,
            Err(Refusal::Failed(why)) => {
                sometimes!("a report had to be repeated");
                tracing::info!(token = %found.token, why, "a report did not get through");
                false
            }
        }
    }
}

fn launch(task: &Task) -> Option<Launch> {
    let (spec, attempt) = (task.spec.clone()?, task::current(task)?);
    let millis = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
    let told = [
        ("CAIRN_TASK_ID", task.id.to_string()),
        ("CAIRN_TASK_NAME", spec.name.clone()),
        ("CAIRN_TASK_TOKEN", attempt.token.to_string()),
        ("CAIRN_WORKER", attempt.worker.to_string()),
    ];
    let told = told.into_iter().map(|(name, value)| (name.to_owned(), value));
    Some(Launch {
        token: Token(attempt.token),
        task: TaskId(task.id),
        name: spec.name,
        command: spec.command,
        env: spec.env.into_iter().map(|var| (var.name, var.value)).chain(told).collect(),
        resources: spec.resources.unwrap_or_default(),
        timeout: millis(spec.timeout_ms),
        kill_grace: millis(spec.kill_grace_ms).unwrap_or(KILL_GRACE),
    })
}

/// Keeps the lease for as long as the worker lives.
async fn keep_lease(shared: Arc<Shared>) {
    let clock = shared.io.clock.clone();
    loop {
        let next = clock.now() + WORKER_RENEWAL;
        match shared.renew().await {
            Ok(()) => clock.sleep_until(next).await,
            Err(Refusal::Rejected(Reject::WorkerOffline(_))) if shared.lease().take().is_some() => {
                sometimes!("a worker registered again after its lease had ended");
                tracing::warn!("this worker's lease has ended; it registers again");
            }
            Err(refusal) => {
                tracing::info!(?refusal, "the worker's lease was not renewed");
                clock.sleep(TICK).await;
            }
        }
    }
}

/// Looks after the attempts whenever the state has changed, and now and then.
async fn run_rounds(shared: Arc<Shared>) {
    let clock = shared.io.clock.clone();
    // What was seen from before this life may give what has run and was reported.
    while !matches!(clock.timeout(REQUEST_TIMEOUT, shared.desired.up_to_date()).await, Ok(Ok(()))) {
        clock.sleep(TICK).await;
    }
    let mut seen = Index(0);
    // What was told of each attempt: that it runs, or that it ended.
    let mut told: BTreeMap<Token, bool> = BTreeMap::new();
    loop {
        let found = match shared.look().await {
            Ok(found) => found,
            Err(fault) => return shared.io.spawn.fail_stop(fault),
        };
        told.retain(|token, _| found.iter().any(|(_, found)| found.token == *token));
        let period = if found.is_empty() { WORKER_PERIOD * 10 } else { WORKER_PERIOD };
        let news = found.into_iter().filter(|(task, found)| match (&found.exit, told.get(&found.token)) {
            (Some(_), told) => told != Some(&true),
            (None, told) => told.is_none() && task.phase() == TaskPhase::Assigned,
        });
        let reports = news.map(|(task, found)| {
            let (token, ended, shared) = (found.token, found.exit.is_some(), &shared);
            async move { shared.report(task.id, found).await.then_some((token, ended)) }
        });
        told.extend(join_all(reports).await.into_iter().flatten());
        clock.sleep(WORKER_PAUSE).await;
        seen = clock.timeout(period, shared.desired.changed(seen)).await.unwrap_or(seen);
    }
}

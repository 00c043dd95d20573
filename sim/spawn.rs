//! Tasks on one machine, for one boot of it.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use madsim::runtime::NodeHandle;

use crate::error::Fault;
use crate::io::{BlockingLoop, Rng, Spawn, TaskHandle};
use crate::raft::manager::{APPLY_THREAD, LOG_THREAD, SNAPSHOT_THREAD};
use crate::sim::cost;
use crate::sim::disk::Files;

/// What a boot reports when it ends itself.
pub type FailStop = Arc<dyn Fn(Fault) + Send + Sync>;

/// Blocking work that has begun but not happened yet: it waits out its simulated delay.
type Pending = Arc<Mutex<Option<Box<dyn BlockingLoop>>>>;

/// Which files of a machine's disk are held up, for all its boots.
#[derive(Clone, Default)]
pub struct Stall(Arc<Mutex<Option<Files>>>);

impl Stall {
    /// Blocking work on these files that begins from now on takes up to [`STALLED_MAX`] longer; none any more does without any.
    pub fn set(&self, files: Option<Files>) {
        *self.0.lock().unwrap() = files;
    }

    /// Whether the work of a thread takes longer.
    fn holds_up(&self, thread: &str) -> bool {
        match *self.0.lock().unwrap() {
            None => false,
            Some(Files::All) => true,
            Some(Files::Log) => thread == LOG_THREAD,
            Some(Files::State) => [APPLY_THREAD, SNAPSHOT_THREAD].contains(&thread),
        }
    }
}

/// By how much a held-up disk delays blocking work at most.
pub const STALLED_MAX: Duration = Duration::from_secs(4);

/// Whether a machine has too few processors for its tasks, for all its boots.
#[derive(Clone, Default)]
pub struct Crowd(Arc<AtomicBool>);

impl Crowd {
    /// Each task waits for its turn, up to [`TURN_MAX`] each time it has something to do, or no longer does.
    pub fn set(&self, crowded: bool) {
        self.0.store(crowded, Ordering::Relaxed);
    }
}

/// How long a task of a crowded machine waits for its turn at most.
pub const TURN_MAX: Duration = Duration::from_millis(10);

/// A task that may have to wait for its turn whenever it has something to do.
struct Queued {
    task: BoxFuture<'static, ()>,
    crowd: Crowd,
    rng: Rng,
    lane: u64,
    turns: u64,
    turn: Option<Pin<Box<madsim::time::Sleep>>>,
}

impl Future for Queued {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.turn.is_none() && this.crowd.0.load(Ordering::Relaxed) {
            this.turns += 1;
            let draw = this.rng.draw("turn", this.lane, this.turns);
            let micros = if draw.is_multiple_of(2) { 0 } else { crate::io::scale(draw, TURN_MAX.as_micros() as u64) };
            this.turn = (micros > 0).then(|| Box::pin(madsim::time::sleep(Duration::from_micros(micros))));
        }
        if let Some(turn) = &mut this.turn {
            std::task::ready!(turn.as_mut().poll(cx));
            this.turn = None;
        }
        this.task.as_mut().poll(cx)
    }
}

/// Spawns onto one boot of a machine.
pub struct SimSpawn {
    node: NodeHandle,
    rng: Rng,
    stall: Stall,
    crowd: Crowd,
    tasks: AtomicU64,
    fail_stop: FailStop,
    pending: Mutex<Vec<Pending>>,
}

/// A task of a machine. When the machine is killed its tasks are dropped, and the databases that they hold are closed; a damaged
/// one may panic over that. The machine is dead, and nobody is to notice.
pub struct Guarded<F>(Option<Pin<Box<F>>>);

impl<F: Future> Guarded<F> {
    /// The task.
    pub fn new(future: F) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<F: Future> Future for Guarded<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.0.as_mut().expect("it is there until it is dropped").as_mut().poll(cx)
    }
}

impl<F> Drop for Guarded<F> {
    fn drop(&mut self) {
        drop_quietly(self.0.take());
    }
}

/// Drops what a dead machine held.
pub fn drop_quietly<T>(held: T) {
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(held)));
}

/// How long simulated blocking work takes: mostly around a fast disk's sync, now and then far longer.
fn delay(rng: &Rng, held_up: bool, lane: u64, counter: u64) -> Duration {
    let draw = rng.draw("blocking", lane, counter);
    let micros = match draw % 100 {
        0 => 20_000 + draw / 100 % 80_000,
        1..5 => 4_000 + draw / 100 % 16_000,
        _ => 1_000 + draw / 100 % 1_500,
    };
    let held_up = match held_up {
        true => crate::io::scale(rng.draw("held up", lane, counter), STALLED_MAX.as_micros() as u64),
        false => 0,
    };
    Duration::from_micros(micros + held_up)
}

impl SimSpawn {
    /// Spawns onto `node`; `fail_stop` is told when the boot ends itself, and ends it.
    pub fn new(node: NodeHandle, rng: Rng, (stall, crowd): (Stall, Crowd), fail_stop: FailStop) -> Self {
        Self { node, rng, stall, crowd, tasks: AtomicU64::new(0), fail_stop, pending: Mutex::new(Vec::new()) }
    }

    /// Runs the blocking work that was under way, now: the caller has arranged for the disk to stop in the middle.
    pub fn run_pending(&self) {
        for slot in self.pending.lock().unwrap().drain(..) {
            let work = slot.lock().unwrap().take();
            if let Some(mut work) = work {
                // The machine is dead: a panic because its disk failed is not a finding.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(|| work.run()));
                drop_quietly(work);
            }
        }
    }
}

fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".into(),
    }
}

impl Spawn for SimSpawn {
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle {
        let fail_stop = self.fail_stop.clone();
        let lane = self.tasks.fetch_add(1, Ordering::Relaxed);
        let (crowd, rng) = (self.crowd.clone(), self.rng.clone());
        let queued = Queued { task: future, crowd, rng, lane, turns: 0, turn: None };
        let task = self.node.spawn(Guarded::new(async move {
            if let Err(panic) = AssertUnwindSafe(queued).catch_unwind().await {
                fail_stop(Fault::new(format!("the task {name} panicked: {}", describe(&*panic))));
            }
        }));
        let task = task.abort_handle();
        TaskHandle::new(move || task.abort())
    }

    fn blocking(&self, name: &'static str, mut work: Box<dyn BlockingLoop>) {
        let slot = Pending::default();
        let lane = {
            let mut pending = self.pending.lock().unwrap();
            pending.push(slot.clone());
            pending.len() as u64
        };
        let (rng, stall, fail_stop) = (self.rng.clone(), self.stall.clone(), self.fail_stop.clone());
        self.node.spawn(Guarded::new(async move {
            let mut counter = 0;
            while work.ready().await {
                counter += 1;
                *slot.lock().unwrap() = Some(work);
                madsim::time::sleep(delay(&rng, stall.holds_up(name), lane, counter)).await;
                // Gone only if the machine went down meanwhile, and then this task never runs again.
                let Some(taken) = slot.lock().unwrap().take() else { return };
                work = taken;
                if let Err(panic) = cost::of(name, || std::panic::catch_unwind(AssertUnwindSafe(|| work.run()))) {
                    fail_stop(Fault::new(format!("the thread {name} panicked: {}", describe(&*panic))));
                    return;
                }
            }
        }));
    }

    fn fail_stop(&self, fault: Fault) {
        (self.fail_stop)(fault);
    }
}

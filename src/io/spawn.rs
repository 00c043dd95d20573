//! Tasks, and the owned threads on which blocking work runs.

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::error::Fault;

/// Starts tasks and owned threads that belong to one node.
///
/// A panic in any of them is a fail-stop of the node, never a task that is silently gone.
pub trait Spawn: Send + Sync + 'static {
    /// Runs `future` until it ends or its handle is dropped.
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle;

    /// Runs `work` on a thread of its own; in simulation, inline after a simulated delay. The thread ends when
    /// [`BlockingLoop::ready`] says false.
    fn blocking(&self, name: &'static str, work: Box<dyn BlockingLoop>);

    /// Stops this node at once and says why: a process ends, a simulated node is killed. What is not durable is lost.
    fn fail_stop(&self, fault: Fault);
}

/// A running task, cancelled when this is dropped: at its next await point, with what it owns dropped.
#[must_use = "dropping the handle cancels the task"]
pub struct TaskHandle(Option<Box<dyn FnOnce() + Send + Sync>>);

impl TaskHandle {
    /// A handle that calls `cancel` when dropped.
    pub fn new(cancel: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(cancel)))
    }

    /// Lets the task run until it ends by itself.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take() {
            cancel();
        }
    }
}

/// Work that blocks, as a loop: wait for something to do, do it.
pub trait BlockingLoop: Send + 'static {
    /// Resolves to true when there is work and to false when there never will be again.
    fn ready(&mut self) -> BoxFuture<'_, bool>;

    /// Does what there is to do. May block on the disk.
    fn run(&mut self);
}

/// Whether somebody still waits for what is being done.
#[derive(Clone, Default)]
pub struct Wanted(Option<Weak<()>>);

impl Wanted {
    /// As long as this is kept.
    pub fn by(who: &Arc<()>) -> Self {
        Self(Some(Arc::downgrade(who)))
    }

    /// Whether somebody does; of what is not for anybody in particular, always.
    pub fn is_wanted(&self) -> bool {
        self.0.as_ref().is_none_or(|who| who.strong_count() > 0)
    }
}

/// An owner of something that blocks, fed by a queue.
pub trait Worker: Send + 'static {
    /// One piece of work.
    type Job: Send + 'static;

    /// Does all of `jobs`, in order, and leaves it empty. A batch is whatever had queued up since the last one.
    fn run(&mut self, jobs: &mut Vec<Self::Job>);
}

/// Starts `worker` on a thread of its own and returns its queue, which holds `bound` jobs. The thread ends, dropping
/// the worker, when all senders are gone and the queue is empty.
pub fn own<W: Worker>(spawn: &dyn Spawn, name: &'static str, worker: W, bound: usize) -> mpsc::Sender<W::Job> {
    let (sender, queue) = mpsc::channel(bound);
    spawn.blocking(name, Box::new(Owner { worker, queue, jobs: Vec::new(), bound }));
    sender
}

struct Owner<W: Worker> {
    worker: W,
    queue: mpsc::Receiver<W::Job>,
    jobs: Vec<W::Job>,
    bound: usize,
}

impl<W: Worker> BlockingLoop for Owner<W> {
    fn ready(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(async { self.queue.recv_many(&mut self.jobs, self.bound).await > 0 })
    }

    fn run(&mut self) {
        // What arrived since `ready` resolved joins the batch: one sync serves all of it.
        while self.jobs.len() < self.bound {
            match self.queue.try_recv() {
                Ok(job) => self.jobs.push(job),
                Err(_) => break,
            }
        }
        self.worker.run(&mut self.jobs);
        assert!(self.jobs.is_empty(), "the worker left jobs undone");
    }
}

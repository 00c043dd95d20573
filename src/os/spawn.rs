//! Tasks on the current tokio runtime, and threads.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use crate::error::Fault;
use crate::io::{BlockingLoop, Spawn, TaskHandle};

/// Exit status of a node that stopped itself because it could not go on safely (`EX_SOFTWARE`).
pub const FAIL_STOP: i32 = 70;

/// Spawns on one tokio runtime.
pub struct Tasks(Handle);

impl Tasks {
    /// Spawns on the runtime of the caller.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn current() -> Self {
        Self(Handle::current())
    }
}

impl Spawn for Tasks {
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle {
        let task = self.0.spawn(async move {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                stop(&Fault::new(format!("the task {name} panicked")));
            }
        });
        TaskHandle::new(move || task.abort())
    }

    fn blocking(&self, name: &'static str, mut work: Box<dyn BlockingLoop>) {
        let runtime = self.0.clone();
        let body = move || {
            let run = AssertUnwindSafe(|| {
                while runtime.block_on(work.ready()) {
                    work.run();
                }
            });
            if std::panic::catch_unwind(run).is_err() {
                stop(&Fault::new(format!("the thread {name} panicked")));
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(body);
        if let Err(error) = thread {
            stop(&Fault::because(format!("start the thread {name}"), error));
        }
    }

    fn fail_stop(&self, fault: Fault) {
        stop(&fault);
    }
}

fn stop(fault: &Fault) -> ! {
    tracing::error!(%fault, "this node cannot go on safely and stops");
    eprintln!("error: this node cannot go on safely and stops: {fault}");
    std::process::exit(FAIL_STOP)
}

//! Time as one node sees it.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};

use crate::time::{Monotonic, WallTime};

/// A node's clock. Nodes disagree: clocks start apart, drift, and wall time steps.
pub trait Clock: Send + Sync + 'static {
    /// Now, on a clock that never goes back and runs through suspend.
    fn now(&self) -> Monotonic;

    /// Now, for people to read.
    fn wall(&self) -> WallTime;

    /// Resolves at `at` or later; at once if `at` has passed.
    fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()>;
}

/// A deadline passed before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline passed")]
pub struct Elapsed;

impl dyn Clock {
    /// Resolves after `span` or later.
    pub fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now() + span)
    }

    /// Runs `future` until it is ready or `deadline` comes, whichever is first; the future wins a tie. The future is
    /// dropped at the deadline, so what it has begun must be safe to abandon.
    ///
    /// # Errors
    /// [`Elapsed`] at the deadline.
    pub async fn deadline<F: Future>(&self, deadline: Monotonic, future: F) -> Result<F::Output, Elapsed> {
        match select(pin!(future), self.sleep_until(deadline)).await {
            Either::Left((output, _)) => Ok(output),
            Either::Right(((), _)) => Err(Elapsed),
        }
    }

    /// The same as `deadline`, counted from now.
    ///
    /// # Errors
    /// [`Elapsed`] after `span`.
    pub async fn timeout<F: Future>(&self, span: Duration, future: F) -> Result<F::Output, Elapsed> {
        self.deadline(self.now() + span, future).await
    }
}

//! Processes: attempts at tasks that run under something which outlives the node.

use std::io;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{TaskId, Token};
use crate::proto::v1::{Exit, Resources, exit::Reason};
use crate::time::Monotonic;

/// An attempt to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Which attempt.
    pub token: Token,
    /// At which task.
    pub task: TaskId,
    /// The task's name.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables added to the environment that the node was started in.
    pub env: Vec<(String, String)>,
    /// What it reserved. It is told, not enforced.
    pub resources: Resources,
    /// How long it may run.
    pub timeout: Option<Duration>,
    /// Between the signal to end and the one that kills.
    pub kill_grace: Duration,
}

/// An attempt that is, or was, here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which attempt.
    pub token: Token,
    /// How it ended; `None` while it runs. One whose shim is gone without a record of its exit is lost.
    pub exit: Option<Exit>,
}

/// A piece of an attempt's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPiece {
    /// Where it begins: after the offset that was asked for if what lay between is not kept any more.
    pub begin: u64,
    /// Where the next piece begins.
    pub next: u64,
    /// What the program wrote, in order: whether to standard error, and the bytes.
    pub records: Vec<(bool, Bytes)>,
    /// Nothing follows, ever.
    pub ended: bool,
}

/// Runs attempts on this machine. Each runs under a shim, a process of its own that survives the node and holds the
/// attempt's deadlines even while the node is frozen or gone. Calls block briefly: only an owner makes them.
pub trait Launcher: Send + Sync + 'static {
    /// What the machine has, as far as it can be told.
    fn resources(&self) -> Resources;

    /// Starts an attempt. Everything of it is dead at `deadline`, unless that is extended. When this returns, the attempt is
    /// listed even after a power cut: it is never started twice.
    ///
    /// # Errors
    /// This machine could not start it, and nothing of it runs. Timed out: the deadline has passed. What is wrong with the program
    /// itself is no error: then it has ended as soon as it began.
    fn launch(&self, launch: &Launch, deadline: Monotonic) -> io::Result<()>;

    /// Everything that is or was here and was not removed, by token. Trouble with one attempt hides no other.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self) -> io::Result<Vec<Found>>;

    /// Ends whatever may still run of an attempt that was started and is not listed any more, for somebody has removed what it ran in.
    fn end_unlisted(&self, token: Token);

    /// Moves an attempt's deadline.
    ///
    /// # Errors
    /// What the system says; then the old deadline holds.
    fn extend(&self, token: Token, deadline: Monotonic) -> io::Result<()>;

    /// Asks an attempt to end, and kills it after its grace, or sooner if its deadline comes first. `reason` is what its
    /// exit will say.
    ///
    /// # Errors
    /// What the system says.
    fn stop(&self, token: Token, reason: Reason) -> io::Result<()>;

    /// Removes what an ended attempt has left, its output included.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, token: Token) -> io::Result<()>;

    /// The output of an attempt from an offset on, about `bytes` of it. What has been rotated away is left out.
    ///
    /// # Errors
    /// Not found: there is no such attempt here. Else what the system says.
    fn read_log(&self, token: Token, offset: u64, bytes: usize) -> io::Result<LogPiece>;
}

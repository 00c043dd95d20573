//! The worker's hands: the owner of its processes. One round compares what should be with what is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::ids::Token;
use crate::io::{Clock, Found, Launch, Launcher, LogPiece, Worker};
use crate::limits::{EXIT_MESSAGE_BYTES_MAX, LAUNCH_PATIENCE, LEASE_KILL_GRACE, OUTPUT_PIECE_BYTES, OUTPUTS_KEPT};
use crate::proto::v1::{Exit, exit::Reason};
use crate::time::Monotonic;

/// How long a round starts attempts: what runs must be looked after again well before its deadline, however slow the disk is.
const LAUNCHING_MAX: Duration = Duration::from_millis(500);

/// An attempt that the state gives this worker.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) launch: Launch,
    /// The state knows that it has been started.
    pub(super) begun: bool,
    /// It is to end, and this is why.
    pub(super) stop: Option<Reason>,
}

pub(super) enum Job {
    /// What should be; the reply is what is. Without a deadline nothing is started or extended.
    Round { wanted: Vec<Wanted>, deadline: Option<Monotonic>, may_begin: bool, reply: oneshot::Sender<Vec<Found>> },
    /// A piece of output; `None` if there is no such attempt here.
    Read { token: Token, offset: u64, reply: oneshot::Sender<Option<LogPiece>> },
}

/// Owns the processes.
pub(super) struct Hands {
    launcher: Arc<dyn Launcher>,
    clock: Arc<dyn Clock>,
    /// Attempts that were started in this life of the node.
    started: BTreeSet<Token>,
    /// Attempts that this machine could not start as yet, and since when.
    failing: BTreeMap<Token, Monotonic>,
    /// Attempts that could not be started: how they ended, until the state knows.
    not_started: BTreeMap<Token, Found>,
}

impl Hands {
    pub(super) fn new(launcher: Arc<dyn Launcher>, clock: Arc<dyn Clock>) -> Self {
        let (started, failing, not_started) = Default::default();
        Self { launcher, clock, started, failing, not_started }
    }

    fn round(&mut self, wanted: &[Wanted], deadline: Option<Monotonic>, may_begin: bool) -> io::Result<Vec<Found>> {
        let tokens: BTreeSet<Token> = wanted.iter().map(|wanted| wanted.launch.token).collect();
        self.not_started.retain(|token, _| tokens.contains(token));
        self.failing.retain(|token, _| tokens.contains(token));
        self.started.retain(|token| tokens.contains(token));
        let found: BTreeMap<Token, Found> =
            self.launcher.list()?.into_iter().map(|found| (found.token, found)).collect();
        // What runs comes first: to start something takes its time.
        for Wanted { launch, stop, .. } in wanted {
            let token = launch.token;
            let running = found.get(&token).map(|found| found.exit.is_none());
            match (running, stop, deadline) {
                (Some(true), Some(reason), deadline) => {
                    let stopped = self.launcher.stop(token, *reason);
                    // Its grace may be longer than what is left of the lease.
                    if let (Ok(()), Some(deadline)) = (&stopped, deadline) {
                        note(token, "extend", self.launcher.extend(token, deadline));
                    }
                    note(token, "stop", stopped);
                }
                (Some(true), None, Some(deadline)) => note(token, "extend", self.launcher.extend(token, deadline)),
                (None | Some(_), _, _) => {}
            }
        }
        let began = self.clock.now();
        // What began shortly before the end of the lease would be ended at once, and lost each time it is given back here.
        let lasts = |deadline: Monotonic| deadline > began + 2 * LEASE_KILL_GRACE;
        for Wanted { launch, begun, stop } in wanted.iter().filter(|wanted| !found.contains_key(&wanted.launch.token)) {
            let token = launch.token;
            match (stop, deadline) {
                _ if self.not_started.contains_key(&token) => {}
                (stop, _) if *begun || self.started.contains(&token) => {
                    sometimes!("what an attempt ran in was gone");
                    self.launcher.end_unlisted(token);
                    self.note_not_started(token, stop.unwrap_or(Reason::Lost), "what it ran in is gone");
                }
                (Some(reason), _) => self.note_not_started(token, *reason, "it had not begun"),
                (None, Some(deadline))
                    if may_begin && lasts(deadline) && self.clock.now().since(began) < LAUNCHING_MAX =>
                {
                    self.launch(launch, deadline);
                }
                (None, _) => {}
            }
        }
        for found in found.values().filter(|found| !tokens.contains(&found.token) && found.exit.is_none()) {
            // It runs under a token that is over.
            note(found.token, "stop", self.launcher.stop(found.token, Reason::Lost));
        }
        let over = |found: &&Found| found.exit.is_some() && !tokens.contains(&found.token);
        let over: Vec<Token> = found.values().filter(over).map(|found| found.token).collect();
        for token in &over[..over.len().saturating_sub(OUTPUTS_KEPT)] {
            note(*token, "remove", self.launcher.remove(*token));
        }
        let mut now = self.launcher.list()?;
        now.retain(|found| tokens.contains(&found.token));
        for exit in now.iter_mut().filter_map(|found| found.exit.as_mut()) {
            exit.message = cut(&exit.message);
        }
        now.extend(self.not_started.values().cloned());
        Ok(now)
    }

    fn launch(&mut self, launch: &Launch, deadline: Monotonic) {
        let (token, now) = (launch.token, self.clock.now());
        match self.launcher.launch(launch, deadline) {
            Ok(()) => drop(self.started.insert(token)),
            // This node was frozen: whether the attempt is still its to start, the next round will show.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                sometimes!("the lease had ended before a task was started");
            }
            Err(error) if now.since(*self.failing.entry(token).or_insert(now)) < LAUNCH_PATIENCE => {
                tracing::warn!(%token, %error, "an attempt could not be started; it is tried again");
            }
            // That says nothing of the task: another worker may have it.
            Err(error) => self.note_not_started(token, Reason::Lost, &error.to_string()),
        }
    }

    fn note_not_started(&mut self, token: Token, reason: Reason, message: &str) {
        let exit = Exit { reason: reason.into(), message: cut(message), ..Exit::default() };
        self.not_started.insert(token, Found { token, exit: Some(exit) });
    }

    fn read(&self, token: Token, offset: u64) -> io::Result<Option<LogPiece>> {
        match self.launcher.read_log(token, offset, OUTPUT_PIECE_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            piece => piece.map(Some),
        }
    }
}

/// As much of a message as the log takes.
fn cut(message: &str) -> String {
    let end = (0..=EXIT_MESSAGE_BYTES_MAX.min(message.len())).rev().find(|end| message.is_char_boundary(*end));
    message[..end.unwrap_or(0)].to_owned()
}

/// What fails here is tried again in the next round; an attempt that cannot be stopped ends at its deadline.
fn note(token: Token, verb: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%token, verb, %error, "an attempt could not be looked after");
    }
}

impl Worker for Hands {
    type Job = Job;

    fn run(&mut self, jobs: &mut Vec<Job>) {
        for job in jobs.drain(..) {
            // Who asks hears of a failure by getting no answer.
            match job {
                Job::Round { wanted, deadline, may_begin, reply } => match self.round(&wanted, deadline, may_begin) {
                    Ok(found) => drop(reply.send(found)),
                    Err(error) => tracing::error!(%error, "this worker's attempts cannot be listed"),
                },
                Job::Read { token, offset, reply } => match self.read(token, offset) {
                    Ok(piece) => drop(reply.send(piece)),
                    Err(error) => tracing::error!(%token, %error, "an attempt's output cannot be read"),
                },
            }
        }
    }
}

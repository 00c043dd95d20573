//! Simulated processes: a shim per attempt that outlives its node, and a ledger of what really ran where and when.
//!
//! What a process does is in its command: `sim MS CODE` runs for that long and exits with that code, `sim MS CODE
//! stubborn` also ignores the signal to end. Shims belong to the machine, not to the node on it: a killed or frozen node
//! leaves them running, a power cut takes them all.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use madsim::runtime::NodeHandle;

use crate::ids::Token;
use crate::io::{Clock, Found, Launch, Launcher, LogPiece};
use crate::limits::LEASE_KILL_GRACE;
use crate::proto::v1::{Exit, Resources, exit::Reason};
use crate::sim::clock::SimClock;
use crate::sim::network::MachineId;
use crate::sim::oracle::attempts::Ledger;
use crate::sim::trace::Trace;
use crate::time::Monotonic;

/// What every simulated machine has; what it says that it has may be less, but enough for any task, or twice as much.
pub const RESOURCES: Resources = Resources { cpu_milli: 1_000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 };

/// What a machine says that it has.
struct Claim {
    now: Resources,
    /// The most that it ever said: what was placed on it then may be there still.
    most: Resources,
}

fn quarters(of: u64) -> Resources {
    let Resources { cpu_milli, memory_bytes, disk_bytes } = RESOURCES;
    Resources { cpu_milli: cpu_milli * of / 4, memory_bytes: memory_bytes * of / 4, disk_bytes: disk_bytes * of / 4 }
}

/// How often a shim looks at its deadline.
const LOOK: Duration = Duration::from_millis(50);

struct Attempt {
    launch: Launch,
    deadline: Monotonic,
    stop: Option<Reason>,
    exit: Option<Exit>,
    /// What it runs in is there.
    listed: bool,
}

/// The processes of one machine. They outlive its node's boots.
pub struct SimLauncher {
    machine: MachineId,
    attempts: Arc<Mutex<BTreeMap<Token, Attempt>>>,
    clock: SimClock,
    shims: Mutex<NodeHandle>,
    claim: Mutex<Claim>,
    ledger: Arc<Ledger>,
    trace: Arc<Trace>,
}

impl SimLauncher {
    /// The processes of a machine, which run on `shims`.
    pub fn new(machine: MachineId, clock: SimClock, shims: NodeHandle, ledger: Arc<Ledger>, trace: Arc<Trace>) -> Self {
        let claim = Mutex::new(Claim { now: RESOURCES, most: RESOURCES });
        Self { machine, attempts: Arc::default(), clock, shims: Mutex::new(shims), claim, ledger, trace }
    }

    /// Has it say from now on that it has so many quarters of what it has.
    pub fn set_claim(&self, of: u64) {
        let claim = &mut *self.claim.lock().unwrap();
        claim.now = quarters(of);
        if claim.now.cpu_milli > claim.most.cpu_milli {
            claim.most = claim.now;
        }
    }

    /// The power goes: nothing runs any more, and what ran leaves no record. What is started from now on runs on `shims`.
    pub fn power_cut(&self, shims: NodeHandle) {
        *self.shims.lock().unwrap() = shims;
        for (token, attempt) in self.attempts.lock().unwrap().iter_mut().filter(|(_, a)| a.exit.is_none()) {
            self.ledger.end(attempt.launch.task, *token, None);
            attempt.exit = Some(Exit { reason: Reason::Lost.into(), ..Exit::default() });
        }
    }

    /// Somebody removes what all attempts run in, and tells nobody. Their shims notice when they look.
    pub fn tidy(&self) {
        let mut attempts = self.attempts.lock().unwrap();
        sometimes!(
            attempts.values().any(|attempt| attempt.listed && attempt.exit.is_none()),
            "what an attempt runs in was removed"
        );
        attempts.values_mut().for_each(|attempt| attempt.listed = false);
    }

    /// Another machine is here: it knows of nothing that ran.
    pub fn wipe(&self) {
        self.attempts.lock().unwrap().clear();
    }

    fn with<T>(&self, token: Token, body: impl FnOnce(&mut Attempt) -> T) -> io::Result<T> {
        let mut attempts = self.attempts.lock().unwrap();
        let none = || io::Error::new(io::ErrorKind::NotFound, format!("there is no attempt {token}"));
        attempts.get_mut(&token).filter(|attempt| attempt.listed).map(body).ok_or_else(none)
    }
}

/// What a command does.
#[derive(Clone, Copy)]
pub struct Program {
    /// How long it runs if nothing ends it.
    pub runs: Duration,
    code: i32,
    stubborn: bool,
}

/// What this command does; `None` if there is no such program.
pub fn program(command: &[String]) -> Option<Program> {
    match command {
        [sim, millis, code, rest @ ..] if sim == "sim" => Some(Program {
            runs: Duration::from_millis(millis.parse().ok()?),
            code: code.parse().ok()?,
            stubborn: rest.first().is_some_and(|word| word == "stubborn"),
        }),
        _ => None,
    }
}

/// How a process ends under its shim; nothing if somebody else has ended it.
async fn run(
    program: Option<Program>,
    token: Token,
    clock: SimClock,
    attempts: Arc<Mutex<BTreeMap<Token, Attempt>>>,
) -> Option<Exit> {
    let Some(program) = program else {
        return Some(Exit { reason: Reason::NotStarted.into(), ..Exit::default() });
    };
    let began = clock.now();
    let mut asked: Option<(Monotonic, Reason)> = None;
    loop {
        let now = clock.now();
        let (deadline, stop, timeout, grace) = {
            let attempts = attempts.lock().unwrap();
            let Attempt { launch, deadline, stop, exit, listed } = &attempts[&token];
            match (exit, listed) {
                (Some(_), _) => return None,
                (None, false) => return Some(Exit { reason: Reason::Lost.into(), signal: Some(9), ..Exit::default() }),
                (None, true) => {}
            }
            (*deadline, *stop, launch.timeout, launch.kill_grace)
        };
        let timed_out = timeout.is_some_and(|timeout| now >= began + timeout).then_some(Reason::TimedOut);
        let lease_ends = (now + LEASE_KILL_GRACE >= deadline).then_some(Reason::LeaseEnded);
        if asked.is_none() {
            asked = stop.or(timed_out).or(lease_ends).map(|reason| (now, reason));
        }
        if let Some((at, reason)) = asked
            && (!program.stubborn || now >= at + grace || now >= deadline)
        {
            let signal = Some(if program.stubborn { 9 } else { 15 });
            return Some(Exit { reason: reason.into(), signal, ..Exit::default() });
        }
        if now >= began + program.runs {
            return Some(Exit { reason: Reason::Exited.into(), code: Some(program.code), ..Exit::default() });
        }
        let next = (began + program.runs).min(now + LOOK);
        clock.sleep_until(next).await;
    }
}

impl Launcher for SimLauncher {
    fn resources(&self) -> Resources {
        self.claim.lock().unwrap().now
    }

    fn launch(&self, launch: &Launch, deadline: Monotonic) -> io::Result<()> {
        if deadline <= self.clock.now() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the deadline has passed"));
        }
        let (token, task) = (launch.token, launch.task);
        let attempt = Attempt { launch: launch.clone(), deadline, stop: None, exit: None, listed: true };
        let before = self.attempts.lock().unwrap().insert(token, attempt);
        let most = self.claim.lock().unwrap().most;
        self.ledger.begin(task, token, (self.machine, &most), launch.resources, before.is_some());
        self.trace.event(format_args!("launch {} task {task} attempt {token}", self.machine));
        let (program, attempts, clock) = (program(&launch.command), self.attempts.clone(), self.clock.clone());
        let (ledger, trace) = (self.ledger.clone(), self.trace.clone());
        let shims = self.shims.lock().unwrap().clone();
        shims.spawn(async move {
            let Some(exit) = run(program, token, clock, attempts.clone()).await else { return };
            trace.event(format_args!("exit attempt {token} {:?} {:?}", exit.reason(), exit.code));
            ledger.end(task, token, exit.code);
            attempts.lock().unwrap().get_mut(&token).expect("a running attempt is listed").exit = Some(exit);
        });
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        let attempts = self.attempts.lock().unwrap();
        let found = |(token, attempt): (&Token, &Attempt)| Found { token: *token, exit: attempt.exit.clone() };
        Ok(attempts.iter().filter(|(_, attempt)| attempt.listed).map(found).collect())
    }

    fn end_unlisted(&self, token: Token) {
        let mut attempts = self.attempts.lock().unwrap();
        if let Some(attempt) = attempts.get_mut(&token).filter(|attempt| attempt.exit.is_none()) {
            self.ledger.end(attempt.launch.task, token, None);
            attempt.exit = Some(Exit { reason: Reason::Lost.into(), ..Exit::default() });
        }
    }

    fn extend(&self, token: Token, deadline: Monotonic) -> io::Result<()> {
        self.with(token, |attempt| attempt.deadline = deadline)
    }

    fn stop(&self, token: Token, reason: Reason) -> io::Result<()> {
        self.with(token, |attempt| {
            attempt.stop.get_or_insert(reason);
        })
    }

    fn remove(&self, token: Token) -> io::Result<()> {
        self.attempts.lock().unwrap().remove(&token);
        Ok(())
    }

    fn read_log(&self, token: Token, offset: u64, bytes: usize) -> io::Result<LogPiece> {
        self.with(token, |attempt| {
            let text = Bytes::from(format!("attempt {token} of task {}\n", attempt.launch.task));
            let start = (offset as usize).min(text.len());
            let piece = text.slice(start..text.len().min(start + bytes));
            let next = (start + piece.len()) as u64;
            let ended = attempt.exit.is_some() && next == text.len() as u64;
            let records = if piece.is_empty() { Vec::new() } else { vec![(false, piece)] };
            LogPiece { begin: start as u64, next, records, ended }
        })
    }
}

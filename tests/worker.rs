//! The worker's rules at its one seam: whatever it is shown of the state, what it begins, keeps and ends.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // tests are the outside world
#![cfg(feature = "sim")]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn::error::Fault;
use cairn::ids::{Index, NodeId, Token};
use cairn::io::{Found, Launch, Launcher, LogPiece};
use cairn::limits::{LEASE_KILL_GRACE, WORKER_LEASE};
use cairn::proto::v1::exit::Reason;
use cairn::proto::v1::{
    Attempt, Exit, ReportAttempt, ReportAttemptReply, Resources, SetWorkerStatusReply, Task, TaskPhase, TaskSpec,
    WorkerLease, command::Kind, reply,
};
use cairn::sim::trace::Trace;
use cairn::sim::world::{Seed, World, run};
use cairn::time::Monotonic;
use cairn::worker::{self, Desired, Look, Refusal, Worker, WorkerConfig};
use futures_util::future::BoxFuture;
use madsim::time::{TimeHandle, sleep};

/// What is shown to the worker, and what it is told of its lease: always granted, in this epoch.
#[derive(Default)]
struct Shown {
    look: Mutex<Option<Look>>,
    epoch: u64,
    reported: Mutex<Vec<(Duration, ReportAttempt)>>,
}

impl Shown {
    fn show(&self, look: Option<Look>) {
        *self.look.lock().unwrap() = look;
    }
}

impl Desired for Shown {
    fn look(&self) -> Result<Option<Look>, Fault> {
        Ok(self.look.lock().unwrap().clone())
    }

    fn changed(&self, _: Index) -> BoxFuture<'_, Index> {
        Box::pin(std::future::pending())
    }

    fn up_to_date(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn execute(&self, kind: Kind, _: Duration) -> BoxFuture<'_, Result<reply::Kind, Refusal>> {
        if matches!(kind, Kind::RenewWorker(_))
            && self.look.lock().unwrap().as_ref().is_some_and(|look| look.index > Index(1))
        {
            return Box::pin(std::future::ready(Err(Refusal::Failed("there is no leader".into()))));
        }
        let lease = WorkerLease { epoch: self.epoch, lease_ms: WORKER_LEASE.as_millis() as u64 };
        let reply = match kind {
            Kind::RegisterWorker(_) | Kind::RenewWorker(_) => reply::Kind::WorkerLease(lease),
            Kind::ReportAttempt(report) => {
                self.reported.lock().unwrap().push((TimeHandle::current().elapsed(), report));
                reply::Kind::ReportAttempt(ReportAttemptReply::default())
            }
            Kind::SetWorkerStatus(_) => reply::Kind::SetWorkerStatus(SetWorkerStatusReply {}),
            other => panic!("a worker wants {other:?}"),
        };
        Box::pin(std::future::ready(Ok(reply)))
    }
}

fn task(id: u64) -> Task {
    let spec = TaskSpec {
        command: vec!["sim".into(), "600000".into(), "0".into()],
        resources: Some(Resources { cpu_milli: 100, memory_bytes: 1, disk_bytes: 0 }),
        ..TaskSpec::default()
    };
    let attempts = vec![Attempt { token: id, worker: 1, ..Attempt::default() }];
    Task { id, spec: Some(spec), phase: TaskPhase::Assigned.into(), attempts, ..Task::default() }
}

fn look(epoch: u64, tasks: &[u64], live: bool) -> Option<Look> {
    let tasks = Arc::new(tasks.iter().map(|id| task(*id)).collect());
    Some(Look { index: Index(1), epoch: Some(epoch), tasks, live })
}

/// Shows a worker with a lease in epoch 2, on a machine that may be [`Sick`], one thing after another for a while each. Gives the attempts
/// that run after each, and what was reported when.
fn show(sick: Option<u64>, shown: Vec<(Option<Look>, Duration)>) -> (Vec<Vec<u64>>, Vec<(Duration, ReportAttempt)>) {
    let all = run(Seed(1), Trace::default(), move |world: Arc<World>| async move {
        let mut io = world.machine().boot().0;
        if let Some(times) = sick {
            let machine = io.launcher.clone().unwrap();
            io.launcher = Some(Arc::new(Sick { machine, times: Mutex::new(times) }));
        }
        let desired = Arc::new(Shown { epoch: 2, ..Shown::default() });
        let hands = worker::outputs(&io).unwrap();
        let _worker = Worker::start(io, (NodeId(1), 1), WorkerConfig::default(), desired.clone(), hands);
        let mut live = Vec::new();
        for (look, span) in shown {
            desired.show(look);
            sleep(span).await;
            live.push(world.ledger.live().into_iter().map(|(_, token, _)| token.0).collect());
        }
        assert_eq!(world.ledger.violations.all(), []);
        let reported = std::mem::take(&mut *desired.reported.lock().unwrap());
        (live, reported)
    });
    all.unwrap()
}

fn runs_after(shown: Vec<(Option<Look>, Duration)>) -> Vec<Vec<u64>> {
    show(None, shown).0
}

/// The same, from a time on in which no lease can be renewed.
fn unrenewed(tasks: &[u64]) -> Option<Look> {
    look(2, tasks, true).map(|look| Look { index: Index(2), ..look })
}

const MOMENT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(30);

#[test]
fn nothing_begins_but_what_is_seen_in_the_epoch_of_the_lease() {
    let shown = [None, look(1, &[1], true), look(3, &[1], true), look(2, &[1], true), look(2, &[1, 2], true)];
    let runs = runs_after(shown.into_iter().map(|look| (look, MOMENT)).collect());
    assert_eq!(runs, [&[] as &[u64], &[], &[], &[1], &[1, 2]]);
}

#[test]
fn what_is_seen_of_another_epoch_keeps_nothing_alive() {
    let runs = runs_after(vec![(look(2, &[1], true), LONG), (look(1, &[1], true), LONG)]);
    assert_eq!(runs, [&[1u64] as &[u64], &[]]);
}

#[test]
fn while_no_word_gets_through_nothing_begins_and_nothing_is_ended() {
    let runs = runs_after(vec![
        (look(2, &[1], true), MOMENT),
        // It goes on for as long as its lease is renewed.
        (look(2, &[1, 2], false), LONG),
        (look(2, &[1, 2], true), MOMENT),
    ]);
    assert_eq!(runs, [&[1u64] as &[u64], &[1], &[1, 2]]);
}

#[test]
fn to_know_nothing_is_not_to_want_nothing() {
    let runs = runs_after(vec![
        (look(2, &[1], true), MOMENT),
        (None, MOMENT),
        // Nobody looks after it, so its deadline comes.
        (None, LONG),
    ]);
    assert_eq!(runs, [&[1u64] as &[u64], &[1], &[]]);
    let runs = runs_after(vec![(look(2, &[1], true), MOMENT), (look(2, &[], true), MOMENT)]);
    assert_eq!(runs, [&[1u64] as &[u64], &[]], "what is no longer wanted ends at once");
}

/// A machine that cannot start anything for so many times, and never stop anything.
struct Sick {
    machine: Arc<dyn Launcher>,
    times: Mutex<u64>,
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left")
}

impl Launcher for Sick {
    fn resources(&self) -> Resources {
        self.machine.resources()
    }

    fn launch(&self, launch: &Launch, deadline: Monotonic) -> io::Result<()> {
        let times = &mut *self.times.lock().unwrap();
        if *times > 0 {
            *times -= 1;
            return Err(no_space());
        }
        self.machine.launch(launch, deadline)
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        self.machine.list()
    }

    fn end_unlisted(&self, token: Token) {
        self.machine.end_unlisted(token);
    }

    fn extend(&self, token: Token, deadline: Monotonic) -> io::Result<()> {
        self.machine.extend(token, deadline)
    }

    fn stop(&self, _: Token, _: Reason) -> io::Result<()> {
        Err(no_space())
    }

    fn remove(&self, token: Token) -> io::Result<()> {
        self.machine.remove(token)
    }

    fn read_log(&self, token: Token, offset: u64, bytes: usize) -> io::Result<LogPiece> {
        self.machine.read_log(token, offset, bytes)
    }
}

#[test]
fn what_a_machine_cannot_start_it_tries_again_and_then_gives_back() {
    for (times, runs) in [(3, true), (u64::MAX, false)] {
        let (live, reported) = show(Some(times), vec![(look(2, &[1], true), 2 * MOMENT)]);
        let [(_, ReportAttempt { token: 1, exit, .. })] = &reported[..] else { panic!("{reported:?}") };
        let lost = exit.as_ref().map(Exit::reason);
        assert_eq!((live[0].len(), lost), if runs { (1, None) } else { (0, Some(Reason::Lost)) });
    }
}

#[test]
fn what_cannot_be_stopped_ends_with_its_lease() {
    let stop = look(2, &[1], true).map(|look| {
        let tasks = look.tasks.iter().map(|task| Task { stop_wanted: true, ..task.clone() }).collect();
        Look { tasks: Arc::new(tasks), ..look }
    });
    let (live, _) = show(Some(0), vec![(look(2, &[1], true), LONG), (stop, LONG)]);
    assert_eq!(live, [&[1u64] as &[u64], &[]]);
}

#[test]
fn nothing_begins_just_before_the_end_of_the_lease() {
    // It is given something when less and less is left of the lease.
    for wait in (6_000..11_000).step_by(100).map(Duration::from_millis) {
        let shown = vec![(look(2, &[], true), MOMENT), (unrenewed(&[]), wait), (unrenewed(&[1]), LONG)];
        let (_, reported) = show(None, shown);
        let at = |ended: bool| reported.iter().find(|(_, report)| report.exit.is_some() == ended).map(|(at, _)| *at);
        if let (Some(began), Some(ended)) = (at(false), at(true)) {
            assert!(ended - began > LEASE_KILL_GRACE / 2, "after {wait:?}: {reported:?}");
        }
        assert_eq!(at(false).is_some(), at(true).is_some(), "{reported:?}");
    }
}

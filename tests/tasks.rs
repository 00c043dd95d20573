//! Tasks and workers on the real apply path: whatever is asked in whatever order, by whoever saw whatever state.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world
#![cfg(feature = "sim")]

use std::collections::{BTreeMap, BTreeSet};

use cairn::controller;
use cairn::entry::{Body, Entry};
use cairn::ids::{Index, NodeId, Term};
use cairn::io::Rng;
use cairn::limits::WORKER_LEASE;
use cairn::proto::v1::{self, Exit, Resources, Task, TaskPhase, TaskSpec, Worker, WorkerStatus, command::Kind, reply};
use cairn::scheduler;
use cairn::sim::disk::{PowerCut, SimDisk};
use cairn::state::machine::State;
use cairn::state::snapshot::{self, Import};
use cairn::state::table::View;
use cairn::state::{command, task, worker};
use cairn::time::ClusterTime;
use proptest::prelude::*;
use prost::Message as _;

#[derive(Clone, Debug)]
enum Step {
    /// Time passes.
    Wait {
        ms: u64,
    },
    Register {
        worker: u64,
        cpu: u64,
        memory: u64,
        feature: bool,
    },
    Renew {
        worker: u64,
    },
    SetStatus {
        worker: u64,
        status: WorkerStatus,
        wish: bool,
    },
    Submit {
        name: u8,
        cpu: u64,
        memory: u64,
        retries: u32,
        feature: bool,
    },
    Stop {
        task: u64,
    },
    /// The leader looks and decides; what it decides is carried out `later` steps afterwards.
    Schedule {
        later: usize,
    },
    Expire {
        later: usize,
    },
    /// A worker reports of an attempt, by its place among all that ever were.
    Report {
        attempt: usize,
        exit: Option<(v1::exit::Reason, i32)>,
    },
    Restart,
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    use v1::exit::Reason::{Drained, Exited, LeaseEnded, NotStarted, Stopped, TimedOut};
    let workers = 1u64..5;
    let status = prop::sample::select(vec![WorkerStatus::Online, WorkerStatus::Draining, WorkerStatus::Offline]);
    let reasons = prop::sample::select(vec![Exited, Exited, TimedOut, Stopped, Drained, LeaseEnded, NotStarted]);
    prop_oneof![
        4 => prop_oneof![1u64..3_000, Just(11_000), Just(60_000)].prop_map(|ms| Step::Wait { ms }),
        3 => (workers.clone(), 0u64..5, 0u64..5, any::<bool>())
            .prop_map(|(worker, cpu, memory, feature)| Step::Register { worker, cpu, memory, feature }),
        4 => workers.clone().prop_map(|worker| Step::Renew { worker }),
        1 => (workers, status, any::<bool>())
            .prop_map(|(worker, status, wish)| Step::SetStatus { worker, status, wish }),
        5 => (0u8..6, 0u64..4, 0u64..4, 0u32..3, prop::bool::weighted(0.2))
            .prop_map(|(name, cpu, memory, retries, feature)| Step::Submit { name, cpu, memory, retries, feature }),
        1 => (0u64..12).prop_map(|task| Step::Stop { task }),
        6 => (0usize..12).prop_map(|later| Step::Schedule { later: later.saturating_sub(6) }),
        3 => (0usize..6).prop_map(|later| Step::Expire { later }),
        6 => (0usize..12, prop::option::weighted(0.7, (reasons, 0i32..2)))
            .prop_map(|(attempt, exit)| Step::Report { attempt, exit }),
        1 => Just(Step::Restart),
        1 => Just(Step::Snapshot),
    ]
}

/// Everything about tasks and workers, as a reader sees it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    now: ClusterTime,
    workers: BTreeMap<u64, Worker>,
    tasks: BTreeMap<u64, Task>,
}

fn see(view: &View, head: &v1::Head) -> Seen {
    let workers = worker::all(view).unwrap().into_iter().map(|worker| (worker.id, worker)).collect();
    let page = task::list(view, &v1::ListTasks { after: 0, limit: 0 }).unwrap();
    assert!(!page.more);
    let tasks = page.tasks.into_iter().map(|task| (task.id, task)).collect();
    Seen { now: ClusterTime(head.cluster_time_ms), workers, tasks }
}

fn sum(tasks: &[&Task]) -> Resources {
    tasks.iter().map(|task| task::wanted(task)).fold(Resources::default(), |a, b| Resources {
        cpu_milli: a.cpu_milli + b.cpu_milli,
        memory_bytes: a.memory_bytes + b.memory_bytes,
        disk_bytes: a.disk_bytes + b.disk_bytes,
    })
}

struct Driver {
    disk: SimDisk,
    installed: Index,
    state: State,
    log: Vec<Entry>,
    time: u64,
    tokens: BTreeSet<u64>,
}

impl Driver {
    fn new() -> Self {
        let disk = SimDisk::new("disk".into());
        let state = State::open(disk.boot(), Index(0)).unwrap();
        let mut driver = Self { disk, installed: Index(0), state, log: Vec::new(), time: 0, tokens: BTreeSet::new() };
        // Workers are members; the fourth never joined.
        (1..=3).for_each(|id| driver.change(id, v1::MemberRole::Voter));
        driver
    }

    /// Gives a member a role.
    fn change(&mut self, id: u64, role: v1::MemberRole) {
        let member = v1::Member { id, role: role.into(), ..v1::Member::default() };
        let change = v1::MemberChange { members: vec![member] }.encode_to_vec().into();
        let body = Body::Members { conf_state: bytes::Bytes::new(), change };
        let entry = Entry { index: self.state.applied().0.next(), term: Term(1), body };
        self.state.apply(std::slice::from_ref(&entry)).unwrap();
        self.log.push(entry);
    }

    fn view(&self) -> (v1::Head, View) {
        self.state.reader().view().unwrap()
    }

    fn seen(&self) -> Seen {
        let (head, view) = self.view();
        see(&view, &head)
    }

    /// Applies one command and checks what it did to everything.
    fn apply(&mut self, kind: Kind) -> v1::Reply {
        let before = self.seen();
        let command = command::plain("", kind).encode_to_vec().into();
        let index = self.state.applied().0.next();
        let body = Body::Commands { stamp: ClusterTime(self.time), commands: vec![command] };
        self.log.push(Entry { index, term: Term(1), body });
        let outcome = self.state.apply(&self.log[self.log.len() - 1..]).unwrap().pop().unwrap();
        self.check(&before);
        v1::Reply::decode(&*outcome.replies[0]).unwrap()
    }

    fn check(&mut self, before: &Seen) {
        let (head, view) = self.view();
        let after = see(&view, &head);
        for (id, worker) in &after.workers {
            let from = before.workers.get(id);
            assert!(*id < 4, "a worker that is no member");
            let moved = (from.map(Worker::status), worker.status());
            assert!(moved.0 == Some(moved.1) || worker::is_legal(moved.0, moved.1), "worker {id} went {moved:?}");
            let has: Vec<&Task> = after
                .tasks
                .values()
                .filter(|task| task::current(task).is_some_and(|attempt| attempt.worker == *id))
                .collect();
            assert_eq!(worker.used.unwrap_or_default(), sum(&has), "worker {id} has not reserved what its tasks want");
            let listed: Vec<u64> = task::of_worker(&view, NodeId(*id)).unwrap().iter().map(|task| task.id).collect();
            assert_eq!(listed, has.iter().map(|task| task.id).collect::<Vec<_>>());
            assert!(worker.status() != WorkerStatus::Offline || has.is_empty(), "an offline worker has tasks");
        }
        for (id, task) in &after.tasks {
            let from = before.tasks.get(id);
            let moved = (from.map(Task::phase), task.phase());
            assert!(moved.0 == Some(moved.1) || task::is_legal(moved.0, moved.1), "task {id} went {moved:?}");
            let spec = task.spec.as_ref().unwrap();
            assert!(
                task.failures <= spec.retries + 1 && (task.failures <= spec.retries || task::is_ended(task)),
                "task {id} was tried more often than wanted"
            );
            if moved == (Some(TaskPhase::Pending), TaskPhase::Assigned) {
                let attempt = task::current(task).unwrap();
                assert!(self.tokens.last().is_none_or(|last| *last < attempt.token), "a token went back");
                self.tokens.insert(attempt.token);
                let (was, is) = (&before.workers[&attempt.worker], &after.workers[&attempt.worker]);
                assert_eq!(was.status(), WorkerStatus::Online, "placed on a worker that is not online");
                assert!(after.now.since(ClusterTime(was.renewed_ms)) < WORKER_LEASE, "placed beyond the lease");
                assert!(spec.features.iter().all(|name| was.features.contains(name)), "placed without its features");
                let (used, capacity) = (is.used.unwrap(), is.capacity.unwrap());
                // A worker may have shrunk under what it has; then it gets nothing more of what it lacks.
                let over = |want: u64, used: u64, capacity: u64| want > 0 && used > capacity;
                let want = task::wanted(task);
                assert!(
                    !over(want.cpu_milli, used.cpu_milli, capacity.cpu_milli),
                    "{want:?}: {used:?} of {capacity:?}"
                );
                assert!(!over(want.memory_bytes, used.memory_bytes, capacity.memory_bytes), "{used:?} of {capacity:?}");
            }
        }
        let count = |want: &dyn Fn(&&Task) -> bool| after.tasks.values().filter(want).count() as u64;
        assert_eq!(head.tasks_live, count(&|task| !task::is_ended(task)));
        assert_eq!(head.tasks_pending, count(&|task| task.phase() == TaskPhase::Pending));
        let live = after.workers.values().filter(|worker| worker.status() != WorkerStatus::Offline).count();
        assert_eq!(head.workers_live, live as u64);
        let mut names = BTreeSet::new();
        for task in after.tasks.values().filter(|task| !task::is_ended(task)) {
            assert!(names.insert(&task.spec.as_ref().unwrap().name), "two live tasks have one name");
        }
    }

    /// What a worker that says this gets to hear is what the state says of its attempt.
    fn report(&mut self, at: usize, exit: Option<(v1::exit::Reason, i32)>) {
        let before = self.seen();
        let attempts: Vec<(u64, u64)> =
            before.tasks.values().flat_map(|task| task.attempts.iter().map(|a| (task.id, a.token))).collect();
        let Some((id, token)) = attempts.get(at % attempts.len().max(1)).copied() else { return };
        let under_way = task::current(&before.tasks[&id]).is_some_and(|attempt| attempt.token == token);
        let exit = exit.map(|(reason, code)| Exit {
            reason: reason.into(),
            code: (reason == v1::exit::Reason::Exited).then_some(code),
            ..Exit::default()
        });
        let ended = exit.is_some();
        let reply = self.apply(Kind::ReportAttempt(v1::ReportAttempt { task: id, token, exit }));
        let after = self.seen();
        match reply.kind.unwrap() {
            reply::Kind::ReportAttempt(reply) => {
                assert!(under_way, "a report of an attempt that is over was taken");
                assert_eq!(reply.phase(), after.tasks[&id].phase());
                assert_eq!(task::current(&after.tasks[&id]).is_none(), ended);
            }
            reply::Kind::Rejection(v1::Rejection { kind: Some(v1::rejection::Kind::Fenced(fenced)) }) => {
                assert!(!under_way && fenced == token);
                assert_eq!(
                    (before.tasks, before.workers),
                    (after.tasks, after.workers),
                    "a late report changed something"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    /// The power goes; the log brings back what was lost.
    fn restart(&mut self) {
        let before = self.seen();
        let lose = PowerCut { drop_permille: 700, tear_permille: 100 };
        self.disk.power_cut(lose, &mut Rng::from_seed([self.log.len() as u8; 32]).stream("crash"));
        self.state = State::open(self.disk.boot(), self.installed).unwrap();
        let first = self.state.applied().0.0 as usize;
        self.state.apply(&self.log[first..]).unwrap();
        assert_eq!(self.seen(), before, "a restart changed something");
    }

    /// Goes on with a state built from a snapshot, on another disk.
    fn snapshot(&mut self) {
        let before = self.seen();
        let index = self.state.applied().0;
        if index == self.installed {
            return;
        }
        let disk = SimDisk::new("disk".into());
        let mut import = Import::begin(disk.boot(), index).unwrap();
        snapshot::export(&self.state.reader(), 64, &mut |chunk| {
            import.add(chunk).unwrap();
            Ok(())
        })
        .unwrap();
        import.finish(self.state.digest()).unwrap();
        (self.state, self.disk, self.installed) = (State::open(disk.boot(), index).unwrap(), disk, index);
        assert_eq!(self.seen(), before, "a snapshot changed something");
    }

    fn run(&mut self, steps: &[Step]) {
        // What leaders have decided and not proposed yet, by the step at which they do.
        let mut decided: BTreeMap<usize, Vec<Kind>> = BTreeMap::new();
        for (number, step) in steps.iter().enumerate() {
            let mut decide = |later: usize, command: Option<v1::Command>| {
                decided.entry(number + later).or_default().extend(command.and_then(|command| command.kind));
            };
            let resources = |cpu: u64, memory: u64| {
                Some(Resources { cpu_milli: cpu * 100, memory_bytes: memory << 20, disk_bytes: 0 })
            };
            let features = |wanted: bool| if wanted { vec!["gpu".to_string()] } else { Vec::new() };
            match step {
                Step::Wait { ms } => self.time += ms,
                Step::Register { worker, cpu, memory, feature } => {
                    let (capacity, features) = (resources(*cpu, *memory), features(*feature));
                    self.apply(Kind::RegisterWorker(v1::RegisterWorker {
                        worker: *worker,
                        capacity,
                        features,
                        life: 0,
                    }));
                }
                Step::Renew { worker } => {
                    let found = self.seen().workers.remove(worker);
                    let epoch = found.as_ref().map_or(1, |worker| worker.epoch);
                    let reply =
                        self.apply(Kind::RenewWorker(v1::RenewWorker { worker: *worker, epoch, registered: None }));
                    let live = found.is_some_and(|worker| worker.status() != WorkerStatus::Offline);
                    assert_eq!(matches!(reply.kind, Some(reply::Kind::WorkerLease(_))), live);
                }
                Step::SetStatus { worker, status, wish } => {
                    let status = (*status).into();
                    self.apply(Kind::SetWorkerStatus(v1::SetWorkerStatus {
                        worker: *worker,
                        status,
                        wish: *wish,
                        life: 0,
                    }));
                }
                Step::Submit { name, cpu, memory, retries, feature } => {
                    let name = if *name == 0 { String::new() } else { format!("n{name}") };
                    let spec = TaskSpec {
                        name,
                        command: vec!["true".into()],
                        resources: resources(*cpu, *memory),
                        retries: *retries,
                        features: features(*feature),
                        ..TaskSpec::default()
                    };
                    self.apply(Kind::SubmitTask(v1::SubmitTask { spec: Some(spec) }));
                }
                Step::Stop { task } => {
                    self.apply(Kind::StopTask(v1::StopTask { id: *task }));
                }
                Step::Schedule { later } => {
                    let (head, view) = self.view();
                    decide(*later, controller::assign(&head, &view).unwrap());
                }
                Step::Expire { later } => {
                    let (head, view) = self.view();
                    controller::expire(&head, &view, ClusterTime(head.cluster_time_ms), true)
                        .unwrap()
                        .into_iter()
                        .for_each(|c| decide(*later, Some(c)));
                }
                Step::Report { attempt, exit } => self.report(*attempt, *exit),
                Step::Restart => self.restart(),
                Step::Snapshot => self.snapshot(),
            }
            for kind in decided.remove(&number).unwrap_or_default() {
                self.apply(kind);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Placed tasks fit, on workers that may have them; only legal transitions happen; late reports change nothing;
    /// restarts and snapshots change nothing; and another member that applies the same log in other batches has the same
    /// state and would decide the same.
    #[test]
    fn tasks_and_workers_keep_their_rules(steps in proptest::collection::vec(step(), 1..80), batch in 1usize..6) {
        let mut driver = Driver::new();
        driver.run(&steps);
        let other = SimDisk::new("other".into());
        let mut state = State::open(other.boot(), Index(0)).unwrap();
        for entries in driver.log.chunks(batch) {
            state.apply(entries).unwrap();
        }
        prop_assert_eq!(state.digest(), driver.state.digest());
        let (head, view) = driver.view();
        let (other_head, other_view) = state.reader().view().unwrap();
        prop_assert_eq!(controller::assign(&head, &view).unwrap(), controller::assign(&other_head, &other_view).unwrap());
    }

    /// What the scheduler proposes on the state that it saw is carried out whole, and what it leaves has a reason with
    /// every worker.
    #[test]
    fn the_scheduler_places_what_can_be_placed(steps in proptest::collection::vec(step(), 1..60)) {
        let mut driver = Driver::new();
        driver.run(&steps);
        let (head, view) = driver.view();
        driver.time = head.cluster_time_ms;
        let seen = driver.seen();
        let tasks = task::placeable(&view, seen.now).unwrap();
        let workers: Vec<Worker> = seen.workers.values().cloned().collect();
        let assignments = scheduler::place(&tasks, &workers, seen.now);
        let placed: BTreeSet<u64> = assignments.iter().map(|assignment| assignment.task).collect();
        let reply = driver.apply(Kind::AssignTasks(v1::AssignTasks { assignments }));
        match reply.kind.unwrap() {
            reply::Kind::AssignTasks(reply) => prop_assert_eq!(reply.assigned, placed.len() as u64),
            other => prop_assert!(false, "{other:?}"),
        }
        let after = driver.seen();
        let workers: Vec<Worker> = after.workers.values().cloned().collect();
        for task in tasks.iter().filter(|task| !placed.contains(&task.id)) {
            let reasons = scheduler::explain(task, &workers, after.now);
            let counted: usize = reasons.iter().map(|(count, _)| count).sum();
            prop_assert_eq!(counted, workers.len(), "a task that fits was left");
        }
    }
}

fn register(features: &[&str]) -> Kind {
    let capacity = Some(Resources { cpu_milli: 1000, memory_bytes: 1 << 30, disk_bytes: 0 });
    let features = features.iter().map(|name| (*name).to_string()).collect();
    Kind::RegisterWorker(v1::RegisterWorker { worker: 1, capacity, features, life: 0 })
}

fn submit(features: &[&str]) -> Kind {
    let features = features.iter().map(|name| (*name).to_string()).collect();
    let spec = TaskSpec { command: vec!["true".into()], retries: 2, features, ..TaskSpec::default() };
    Kind::SubmitTask(v1::SubmitTask { spec: Some(spec) })
}

/// Its lease lasts on, and what it runs it may end.
#[test]
fn who_was_removed_is_given_nothing_more() {
    let mut driver = Driver::new();
    driver.apply(register(&[]));
    driver.apply(submit(&[]));
    let plan = |driver: &Driver| {
        let (head, view) = driver.view();
        controller::assign(&head, &view).unwrap()
    };
    assert!(plan(&driver).is_some());
    driver.change(1, v1::MemberRole::Removed);
    assert_eq!(driver.seen().workers[&1].status(), WorkerStatus::Online);
    assert_eq!(plan(&driver), None);
}

/// What a leader decided holds only as long as what it assumed.
#[test]
fn a_decision_on_an_older_state_is_not_carried_out() {
    let plan = |driver: &Driver| {
        let (head, view) = driver.view();
        controller::assign(&head, &view).unwrap().unwrap().kind.unwrap()
    };
    let assigned = |driver: &mut Driver, plan: Kind| match driver.apply(plan).kind.unwrap() {
        reply::Kind::AssignTasks(reply) => reply.assigned,
        other => panic!("{other:?}"),
    };

    // The worker has lost a feature.
    let mut driver = Driver::new();
    driver.apply(register(&["gpu"]));
    driver.apply(submit(&["gpu"]));
    let decided = plan(&driver);
    driver.apply(register(&[]));
    assert_eq!(assigned(&mut driver, decided), 0);

    // It was offline and came back: another epoch, though everything looks the same.
    let mut driver = Driver::new();
    driver.apply(register(&[]));
    driver.apply(submit(&[]));
    let decided = plan(&driver);
    driver.time += 60_000;
    driver.apply(Kind::ExpireWorkers(v1::ExpireWorkers { workers: vec![1] }));
    driver.apply(register(&[]));
    assert_eq!(assigned(&mut driver, decided), 0);

    // The task was tried meanwhile.
    let decided = plan(&driver);
    assert_eq!(assigned(&mut driver, decided.clone()), 1);
    let exit = Some(Exit { reason: v1::exit::Reason::Exited.into(), code: Some(1), ..Exit::default() });
    driver.apply(Kind::ReportAttempt(v1::ReportAttempt { task: 1, token: 1, exit }));
    driver.time += 2_000;
    driver.apply(register(&[]));
    assert_eq!(assigned(&mut driver, decided), 0);

    // The lease that seemed over was renewed in time.
    driver.time += 12_000;
    driver.apply(register(&[]));
    driver.apply(Kind::ExpireWorkers(v1::ExpireWorkers { workers: vec![1] }));
    assert_eq!(driver.seen().workers[&1].status(), WorkerStatus::Online);
}

/// What a worker said in another life may come late: nothing comes of it, or the next renewal puts it right.
#[test]
fn what_was_said_in_another_life_does_not_last() {
    let mut driver = Driver::new();
    driver.apply(Kind::RaiseFormat(v1::RaiseFormat { to: 3, members: vec![1, 2, 3] }));
    let of_life = |life, features: &[&str]| match register(features) {
        Kind::RegisterWorker(register) => v1::RegisterWorker { life, ..register },
        other => panic!("{other:?}"),
    };
    let status = |driver: &mut Driver, life, status: WorkerStatus| {
        let set = v1::SetWorkerStatus { worker: 1, status: status.into(), wish: false, life };
        !matches!(driver.apply(Kind::SetWorkerStatus(set)).kind, Some(reply::Kind::Rejection(_)))
    };
    let now = |driver: &Driver| {
        let worker = &driver.seen().workers[&1];
        (worker.status(), worker.features.clone())
    };
    driver.apply(Kind::RegisterWorker(of_life(1, &[])));
    driver.apply(Kind::RegisterWorker(of_life(2, &["gpu"])));
    // That the one before was to leave.
    assert!(!status(&mut driver, 1, WorkerStatus::Draining) && !status(&mut driver, 1, WorkerStatus::Offline));
    assert_eq!(now(&driver), (WorkerStatus::Online, vec!["gpu".to_owned()]));
    // What it had.
    driver.apply(Kind::RegisterWorker(of_life(1, &[])));
    assert_eq!(now(&driver).1, [""; 0]);
    let registered = Some(of_life(2, &["gpu"]));
    driver.apply(Kind::RenewWorker(v1::RenewWorker { worker: 1, epoch: 1, registered }));
    assert_eq!(now(&driver), (WorkerStatus::Online, vec!["gpu".to_owned()]));
    assert!(status(&mut driver, 2, WorkerStatus::Draining));
    assert_eq!(now(&driver).0, WorkerStatus::Draining);
    // What an operator wishes is of no life.
    let wish = v1::SetWorkerStatus { worker: 1, status: WorkerStatus::Online.into(), wish: true, life: 0 };
    driver.apply(Kind::SetWorkerStatus(wish));
    assert_eq!(now(&driver).0, WorkerStatus::Online);
}

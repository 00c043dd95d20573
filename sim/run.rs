//! The life of a seed: form a cluster, attack it under load, heal it, see that it recovers, scan what is left.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use madsim::runtime::NodeHandle;
use madsim::time::{Instant, TimeHandle, sleep};

use crate::client::Client;
use crate::controller;
use crate::ids::{Address, NodeId};
use crate::io::Io;
use crate::raft::core::Status;
use crate::sim::cluster::{CLIENT_TIMEOUT, Cluster, Condemned, Member};
use crate::sim::cost::{self, Costs};
use crate::sim::door::{Door, Etcd};
use crate::sim::fault::{Class, Fault, Place};
use crate::sim::guests::{self, FIRST_GUEST, Guests};
use crate::sim::history::{History, Op, Record, Seen};
use crate::sim::holders::Holders;
use crate::sim::janitor::{JANITOR, Janitor};
use crate::sim::json;
use crate::sim::load::{self, Ask, Load, Notes};
use crate::sim::mark::{self, Hits};
use crate::sim::mutant;
use crate::sim::network::{MachineId, Weather};
use crate::sim::oracle::recovery::{RECOVERY_MAX, TASKS_MAX};
use crate::sim::oracle::{
    Violation, attempts, bounds, disks, exactly_once, holdings, linearizable, membership, outcomes, recovery,
    revisions, rights, space, watches,
};
use crate::sim::plan::{self, Plan};
use crate::sim::restore;
use crate::sim::tasks::{self, Submissions};
use crate::sim::trace::{Note, Stop, Trace};
use crate::sim::watch::Watch;
use crate::sim::watchers::Watchers;
use crate::sim::world::{self, Down, Seed, World};
use crate::state::auth::ROOT;
use crate::state::format;

/// How long clients begin something new, at least.
const LOAD_MIN: Duration = Duration::from_secs(30);
/// How long they do so when all is repaired.
const LOAD_AFTER: Duration = Duration::from_secs(10);

/// How a seed ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything held.
    Passed,
    /// A property did not hold.
    Safety(Vec<Violation>),
    /// The cluster did not do in time what it must do when nothing hinders it.
    Liveness(String),
    /// A node stopped itself, or the run panicked.
    Crash(String),
}

impl Verdict {
    /// The exit status for it.
    pub fn code(&self) -> i32 {
        match self {
            Self::Passed => 0,
            Self::Safety(_) => 10,
            Self::Liveness(_) => 11,
            Self::Crash(_) => 12,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => write!(f, "passed"),
            Self::Liveness(what) => write!(f, "LIVENESS: {what}"),
            Self::Crash(what) => write!(f, "CRASH: {what}"),
            Self::Safety(violations) => {
                write!(f, "SAFETY:")?;
                violations.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
            }
        }
    }
}

/// What a seed did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub seed: Seed,
    /// What it was to do.
    pub plan: Plan,
    /// How it ended.
    pub verdict: Verdict,
    /// The hash of everything that happened, and of how many events.
    pub trace: (u64, u64),
    /// Virtual time that passed.
    pub elapsed: Duration,
    /// Client operations that ended with a known outcome, and all.
    pub operations: (usize, usize),
    /// Terms that had a leader.
    pub leaders: usize,
    /// Raft messages whose promise was compared with the sender's disk.
    pub promises: u64,
    /// Snapshots that a member went over to.
    pub snapshots: u64,
    /// Attempts at tasks that began, and those of them that were cut short.
    pub attempts: (u64, u64),
    /// The rare situations that it came by.
    pub marks: Hits,
    /// Where the real time went, if that was measured.
    pub costs: Costs,
    /// What clients did and saw.
    pub history: Vec<Record>,
    /// What a diagram shows, if that was recorded.
    pub recording: Option<Box<Recording>>,
    /// What everything was like where the run was stopped, if it was to be.
    pub stopped: Option<String>,
    /// What everything was like when it had failed.
    pub failed: Option<String>,
}

/// What a diagram shows.
#[derive(Clone, Debug)]
pub struct Recording {
    /// What happened, with its time.
    pub notes: Vec<(Duration, Note)>,
    /// The members' machines, in the order of their places, and the ids that each has had.
    pub machines: Vec<(MachineId, Vec<NodeId>)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {}; {:.1} s, {} of {} operations answered, {} leaders, {} promises checked, {} snapshots installed, {} attempts began and {} were cut short, trace {:016x} of {} events",
            self.seed.0,
            self.verdict,
            self.elapsed.as_secs_f64(),
            self.operations.0,
            self.operations.1,
            self.leaders,
            self.promises,
            self.snapshots,
            self.attempts.0,
            self.attempts.1,
            self.trace.0,
            self.trace.1
        )
    }
}

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Every event goes to standard error.
    pub print: bool,
    /// The planted bug that is switched on.
    pub mutant: Option<&'static str>,
    /// What a diagram shows is recorded.
    pub record: bool,
    /// Where to stop.
    pub stop: Option<Stop>,
    /// Where the real time goes is measured.
    pub measure: bool,
    /// A class of faults that is left out of what the seed says.
    pub without: Option<Class>,
    /// The [rare situation](crate::sim::aim) that all seeds aim at.
    pub aim: Option<&'static str>,
}

impl Mode {
    /// What a seed does.
    pub fn plan(self, seed: Seed) -> Plan {
        self.without.into_iter().fold(Plan::draw(&seed.rng(), self.aim), Plan::without)
    }
}

/// Runs one seed.
pub fn run_seed(seed: Seed, mode: Mode) -> Report {
    run_plan(seed, mode.plan(seed), mode)
}

/// Runs a plan with the randomness of a seed.
pub fn run_plan(seed: Seed, plan: Plan, mode: Mode) -> Report {
    let body = plan.clone();
    let trace = Trace::new(mode.print, mode.record, mode.stop);
    let result = world::run(seed, trace, move |world| async move {
        mutant::switch_on(mode.mutant);
        if mode.measure {
            cost::measure();
        }
        Run::new(world, body).live(mode.record).await
    });
    result
        .unwrap_or_else(|panic| Report {
            seed,
            plan,
            verdict: Verdict::Crash(format!("the run panicked: {panic}")),
            trace: (0, 0),
            elapsed: Duration::ZERO,
            operations: (0, 0),
            leaders: 0,
            promises: 0,
            snapshots: 0,
            attempts: (0, 0),
            marks: Hits::new(),
            costs: Costs::new(),
            history: Vec::new(),
            recording: None,
            stopped: None,
            failed: None,
        })
        .with_seed(seed)
}

impl Report {
    fn with_seed(mut self, seed: Seed) -> Self {
        self.seed = seed;
        self
    }
}

struct Run {
    cluster: Arc<Cluster>,
    history: Arc<History>,
    submissions: Arc<Submissions>,
    watchers: Arc<Watchers>,
    holders: Arc<Holders>,
    janitor: Arc<Janitor>,
    guests: Arc<Guests>,
    /// Guests were added.
    invited: AtomicBool,
    time: TimeHandle,
}

impl Run {
    fn new(world: Arc<World>, plan: Plan) -> Self {
        let watch = Watch::new(world.trace.clone());
        watch.state().past.keeps(plan.history);
        let cluster = Cluster::new(world, plan, watch);
        let holders = Arc::new(Holders::new(cluster.plan.holders));
        Self {
            cluster,
            holders,
            history: Arc::default(),
            submissions: Arc::default(),
            watchers: Arc::default(),
            janitor: Arc::default(),
            guests: Arc::default(),
            invited: AtomicBool::new(false),
            time: TimeHandle::current(),
        }
    }

    async fn live(self, record: bool) -> Report {
        let trace = self.cluster.world.trace.clone();
        let (verdict, stopped) = match select(pin!(self.phases()), pin!(trace.stopped())).await {
            Either::Left((verdict, _)) => (verdict.err().unwrap_or(Verdict::Passed), None),
            Either::Right(_) => {
                let dump = format!("{}\n{}", trace.last().join("\n"), self.cluster.describe());
                (self.check().err().unwrap_or(Verdict::Passed), Some(dump))
            }
        };
        let failed = (verdict != Verdict::Passed).then(|| self.cluster.describe());
        let machines = self.cluster.members.iter().enumerate().map(|(place, member)| {
            let lost = self.cluster.condemned().into_iter().filter(|lost| lost.place == place).map(|lost| lost.id);
            (member.machine.id, member.id().into_iter().chain(lost).collect())
        });
        let recording = Recording { machines: machines.collect(), notes: trace.take_notes() };
        self.cluster.world.network.set_wiretap(None);
        let watched = self.cluster.watch.state();
        let records = self.history.records();
        let known = records.iter().filter(|record| !matches!(record.seen, Seen::Unknown | Seen::NotDone)).count();
        Report {
            seed: Seed(0),
            plan: self.cluster.plan.clone(),
            verdict,
            trace: self.cluster.world.trace.digest(),
            elapsed: self.time.elapsed(),
            operations: (known, records.len()),
            leaders: watched.elections.leaders(),
            promises: watched.promises.checked,
            snapshots: watched.digests.installed,
            attempts: self.cluster.world.ledger.counts(),
            marks: mark::take(),
            costs: cost::take(),
            recording: record.then(|| Box::new(recording)),
            stopped,
            failed,
            history: records,
        }
    }

    async fn phases(&self) -> Result<(), Verdict> {
        self.cluster.world.network.set_weather(self.cluster.plan.weather);
        self.form().await?;
        self.janitor();
        let stock = if self.cluster.plan.early { Vec::new() } else { self.stock(true).await };
        self.invite().await;
        self.attack().await;
        self.check()?;
        if self.cluster.plan.beyond_budget {
            // More may be lost than anyone can make good: what was answered must be true, no more.
            return self.scan();
        }
        self.serve_in_core().await?;
        self.heal().await?;
        let there = self.stock(false).await;
        if let Some(lost) = stock.iter().find(|number| !there.contains(number)) {
            let what = format!("number {lost} of the stock is not");
            self.cluster.watch.violations.add("what was acknowledged is there", what);
        }
        self.scan()
    }

    /// Boots the founder, lets the others join, and waits until all vote that should.
    async fn form(&self) -> Result<(), Verdict> {
        let plan = &self.cluster.plan;
        // Late ones are not there yet.
        plan.places().for_each(|place| self.cluster.boot(place));
        if plan.early {
            return Ok(());
        }
        let early = (0..plan.nodes).filter(|place| !plan.is_late(*place)).count();
        let most = early.min(plan.voters_max);
        let target = most - usize::from(most.is_multiple_of(2));
        let voters = || {
            let watched = self.cluster.watch.state();
            let full = |status: &&Status| status.voters.len() == target && !status.joint && status.leader.is_some();
            watched.statuses.values().filter(full).count() >= target
        };
        self.within("the cluster forms", RECOVERY_MAX, voters).await
    }

    /// Writes the values that nobody touches again, or reads them: those that were acknowledged, or are there.
    async fn stock(&self, write: bool) -> Vec<u64> {
        let (io, node) = self.caller();
        let client = Client::new(io, &self.cluster.endpoints, RECOVERY_MAX);
        let numbers = 0..self.cluster.plan.stock;
        let one = move |number: u64| {
            let client = client.clone();
            async move {
                let (key, value) = (format!("stock {number}"), number.to_be_bytes().repeat(256));
                let there = match write {
                    true => client.put(key.as_bytes(), &value, None).await.is_ok(),
                    false => {
                        client.get(key.as_bytes()).await.is_ok_and(|row| row.is_some_and(|row| row.value == value))
                    }
                };
                there.then_some(number)
            }
        };
        let all = node.spawn(async move { join_all(numbers.map(one)).await });
        all.await.unwrap_or_default().into_iter().flatten().collect()
    }

    /// The seams of a machine of its own that may call the cluster.
    fn caller(&self) -> (Io, NodeHandle) {
        let (io, node) = self.cluster.world.machine().boot();
        (self.cluster.plan.admit(io), node)
    }

    /// Runs the clients while the faults of the plan happen, and waits for both.
    async fn attack(&self) {
        let one = Client::new(self.caller().0, &self.cluster.endpoints, CLIENT_TIMEOUT);
        let loaded = Arc::new(AtomicBool::new(true));
        let submitters = (1..=self.cluster.plan.submitters as u64).map(|id| self.submitter(id, loaded.clone()));
        let clients = (1..=self.cluster.plan.clients as u64).map(|id| self.client(id, &one, loaded.clone()));
        let clients: Vec<_> = clients.chain(submitters).chain(self.stranger()).collect();
        let attacked = Arc::new(AtomicBool::new(true));
        let readers = 0..self.cluster.plan.nodes * self.cluster.plan.readers;
        let readers: Vec<_> = readers.map(|number| self.reader(number, attacked.clone())).collect();
        let follower = self.follower(attacked.clone());
        let holders: Vec<_> =
            (0..self.cluster.plan.holders).map(|number| self.holder(number, attacked.clone())).collect();
        (0..self.cluster.plan.watchers).for_each(|number| self.watcher(number));
        let guests: Vec<_> = self.guest_numbers().into_iter().map(|guest| self.guest(guest, loaded.clone())).collect();
        let administrator = self.administrator(attacked.clone());
        let began = self.time.now_instant();
        let mut repairs = Vec::new();
        for (at, fault) in &self.cluster.plan.faults {
            madsim::time::sleep_until(began + *at).await;
            repairs.push(madsim::task::spawn(self.cluster.inflict(*fault)));
        }
        for repair in repairs {
            let _ = repair.await;
        }
        // What is asked for long after the last repair shows little.
        let enough = (began + LOAD_MIN).max(self.time.now_instant() + LOAD_AFTER);
        let served = join_all(clients.into_iter().chain(guests));
        match select(served, pin!(madsim::time::sleep_until(enough))).await {
            Either::Left(_) => {}
            Either::Right(((), served)) => {
                loaded.store(!self.cluster.plan.is_soon_quiet(), Ordering::Relaxed);
                let _ = served.await;
            }
        }
        attacked.store(false, Ordering::Relaxed);
        for other in readers.into_iter().chain(follower).chain(holders).chain(administrator) {
            let _ = other.await;
        }
        self.check_answers();
    }

    /// Where machines are only far from each other, all that is asked is answered, once a client's member has been taken in.
    fn check_answers(&self) {
        let records = self.history.records();
        let is_open = |record: &Record| matches!(record.seen, Seen::Unknown | Seen::NotDone);
        let was_answered = |record: &Record| {
            records.iter().any(|other| other.client == record.client && other.to <= record.from && !is_open(other))
        };
        let of_clients = records.iter().filter(|record| record.client < load::FIRST_READER);
        if self.cluster.plan.is_only_far()
            && let Some(open) = of_clients.filter(|record| is_open(record)).find(|record| was_answered(record))
        {
            let what = format!("client {} was not answered: {:?} on {}", open.client, open.op, open.key);
            self.cluster.watch.violations.add("far is not away", what);
        }
    }

    /// In some runs, a client on a machine of its own that asks for the output of what is under way, while this is true.
    fn follower(&self, goes_on: Arc<AtomicBool>) -> Option<madsim::task::JoinHandle<()>> {
        let there = self.cluster.plan.submitters > 0 && self.cluster.world.rng.stream("follower").chance(300);
        there.then(|| {
            let (io, node) = self.caller();
            let client = Client::new(io, &self.cluster.endpoints, CLIENT_TIMEOUT);
            let cluster = self.cluster.clone();
            node.spawn(async move {
                let goes_on = || goes_on.load(Ordering::Relaxed);
                let gone = || cluster.condemned().into_iter().map(|member| member.id).collect();
                tasks::follow(&client, &goes_on, &gone, &cluster.watch.violations).await;
            })
        })
    }

    /// A client on a machine of its own that reads from one member alone, while this is true.
    fn reader(&self, number: usize, goes_on: Arc<AtomicBool>) -> madsim::task::JoinHandle<()> {
        let (io, node) = self.caller();
        let place = number % self.cluster.plan.nodes;
        let at: Vec<Address> = self.cluster.members[place].addresses().collect();
        let door = Door::Own(Client::new(io, &at, load::READER_TIMEOUT));
        let rng = self.cluster.world.rng.stream(&format!("reader {number}"));
        let (id, what) =
            (load::FIRST_READER + number as u64, (self.cluster.plan.keys, self.cluster.plan.readers_pause));
        let (ended, time) = (self.noting(), self.time.clone());
        node.spawn(async move {
            let goes_on = || goes_on.load(Ordering::Relaxed);
            let notes = Notes { client: id, value_bytes: 0, elapsed: &|| time.elapsed(), ended: &ended };
            load::read(&door, what, rng, &goes_on, notes).await;
        })
    }

    /// A client on a machine of its own that holds leases, while this is true.
    fn holder(&self, number: usize, goes_on: Arc<AtomicBool>) -> madsim::task::JoinHandle<()> {
        let (io, node) = self.caller();
        let mut rng = self.cluster.world.rng.stream(&format!("holder {number}"));
        // Each asks another member first.
        let mut endpoints = self.cluster.endpoints.clone();
        endpoints.rotate_left((number + 1) % self.cluster.endpoints.len());
        let door = match rng.chance(500) {
            true => Door::Etcd(Etcd::new(json::every_other(number as u64, io), &endpoints, CLIENT_TIMEOUT)),
            false => Door::Own(Client::new(io, &endpoints, CLIENT_TIMEOUT)),
        };
        let (holders, time) = (self.holders.clone(), self.time.clone());
        node.spawn(async move {
            let goes_on = || goes_on.load(Ordering::Relaxed);
            holders.hold(&door, number, rng, &|| time.elapsed(), &goes_on).await;
        })
    }

    /// Every lease that nobody keeps alive any more ends, and the keys with it.
    async fn finish_leases(&self) -> Result<(), Verdict> {
        if self.cluster.plan.holders == 0 {
            return Ok(());
        }
        let (io, node) = self.caller();
        let client = Client::new(io, &self.cluster.endpoints, RECOVERY_MAX);
        let (violations, time) = (self.cluster.watch.clone(), self.time.clone());
        let ended = node.spawn(async move { holdings::all_ended(&client, &time, &violations.violations).await });
        ended.await.unwrap_or_else(|_| Err("the client has died".into())).map_err(Verdict::Liveness)
    }

    /// A client on a machine of its own that watches all keys until the end.
    fn watcher(&self, number: usize) {
        let (io, node) = self.caller();
        let client = Client::new(json::every_other(number as u64, io), &self.cluster.endpoints, CLIENT_TIMEOUT);
        let from = *self.cluster.world.rng.stream(&format!("watcher {number}")).pick(&[0, 1, 1]);
        let (watchers, keys) = (self.watchers.clone(), self.cluster.plan.keys);
        node.spawn(async move { watchers.watch(&client, keys, from).await });
    }

    /// Has users added who may do nothing yet, unless that does not go.
    async fn invite(&self) {
        if self.cluster.plan.guests == 0 {
            return;
        }
        let (io, node) = self.caller();
        let client = Client::new(io, &self.cluster.endpoints, RECOVERY_MAX);
        let (guests, number) = (self.guests.clone(), self.cluster.plan.guests as u64);
        let invited = node.spawn(async move { guests.invite(&client, number).await });
        self.invited.store(invited.await.unwrap_or(false), Ordering::Relaxed);
    }

    /// Those who were added.
    fn guest_numbers(&self) -> Vec<u64> {
        let number = if self.invited.load(Ordering::Relaxed) { self.cluster.plan.guests as u64 } else { 0 };
        (0..number).map(|number| FIRST_GUEST + number).collect()
    }

    /// A client on a machine of its own, without the cluster's token, that is a user, does its share while this is true, and watches a key.
    fn guest(&self, number: u64, goes_on: Arc<AtomicBool>) -> madsim::task::JoinHandle<()> {
        let (io, node) = self.cluster.world.machine().boot();
        let client = guests::as_guest(Client::new(io, &self.doors(number), CLIENT_TIMEOUT), number);
        let mut rng = self.cluster.world.rng.stream(&format!("guest {number}"));
        // Who may put a key may not be one who reads it.
        let load = Load { loud_permille: 0, ..self.cluster.plan.load() };
        let (ended, time) = (self.noting(), self.time.clone());
        let (guests, key, value_bytes) = (self.guests.clone(), rng.range(0, load.keys), self.cluster.plan.value_bytes);
        let (watching, watch_time) = (client.clone(), self.time.clone());
        let door = Door::Own(client);
        node.spawn(async move { guests.watch(&watching, number, key, &|| watch_time.elapsed()).await });
        node.spawn(async move {
            let goes_on = || goes_on.load(Ordering::Relaxed);
            let notes = Notes { client: number, value_bytes, elapsed: &|| time.elapsed(), ended: &ended };
            load::run(&door, &load, rng, &goes_on, notes).await;
        })
    }

    /// Who says what guests may do.
    fn administrator(&self, attacked: Arc<AtomicBool>) -> Option<madsim::task::JoinHandle<()>> {
        let number = self.guest_numbers().len() as u64;
        let (io, node) = self.caller();
        let client = Client::new(io, &self.cluster.endpoints, CLIENT_TIMEOUT);
        let (guests, keys) = (self.guests.clone(), self.cluster.plan.keys);
        let (rng, time) = (self.cluster.world.rng.stream("administrator"), self.time.clone());
        (number > 0).then(|| {
            node.spawn(async move {
                let goes_on = || attacked.load(Ordering::Relaxed);
                guests.administer(&client, (number, keys), rng, &|| time.elapsed(), &goes_on).await;
            })
        })
    }

    /// Where keys may take little, a client on a machine of its own that makes room.
    fn janitor(&self) {
        if self.cluster.plan.keys_quota.is_none() {
            return;
        }
        let (io, node) = self.caller();
        let client = Client::new(io, &self.cluster.endpoints, CLIENT_TIMEOUT);
        let (janitor, rng) = (self.janitor.clone(), self.cluster.world.rng.stream("janitor"));
        let (ended, time) = (self.noting(), self.time.clone());
        node.spawn(async move {
            let notes = Notes { client: JANITOR, value_bytes: 0, elapsed: &|| time.elapsed(), ended: &ended };
            janitor.watch(&client, rng, notes).await;
        });
    }

    /// Nothing is left of the past that is not to be kept.
    async fn finish_history(&self) -> Result<(), Verdict> {
        let history = self.cluster.plan.history;
        let oldest = self.cluster.watch.state().past.oldest();
        if history == controller::History::All || oldest < 2 {
            return Ok(());
        }
        let age = if let controller::History::Age(age) = history { age } else { Duration::ZERO };
        let compacted = || {
            let watched = self.cluster.watch.state();
            watched.past.compactions().last().is_some_and(|(revision, _)| *revision >= oldest)
        };
        self.within("what is old is compacted", age * 2 + RECOVERY_MAX, compacted).await
    }

    /// Every watcher is told of all that is known to have changed.
    async fn finish_watches(&self) -> Result<(), Verdict> {
        let last = watches::last_change(&self.history.records());
        let told = || {
            let logs = self.watchers.logs();
            logs.len() == self.cluster.plan.watchers && logs.iter().all(|log| log.last() >= last)
        };
        self.within("watchers are told of every change", RECOVERY_MAX, told).await
    }

    /// Puts what a client did and saw where oracles find it.
    fn noting(&self) -> impl Fn(Record) + Send + Sync + 'static {
        let (history, trace) = (self.history.clone(), self.cluster.world.trace.clone());
        move |record: Record| {
            let Record { client, op, key, seen, .. } = &record;
            trace.event(format_args!("client {client} {op:?} on {key}: {seen:?}"));
            history.add(record);
        }
    }

    /// A client on a machine of its own that submits tasks, while this is true.
    fn submitter(&self, id: u64, goes_on: Arc<AtomicBool>) -> madsim::task::JoinHandle<()> {
        let (io, node) = self.caller();
        let client = Client::new(io, &self.cluster.endpoints, CLIENT_TIMEOUT);
        let rng = self.cluster.world.rng.stream(&format!("submitter {id}"));
        let plan = &self.cluster.plan;
        let what = (plan.tasks, plan.stubborn_permille, plan.brief_permille);
        let (submissions, world) = (self.submissions.clone(), self.cluster.world.clone());
        node.spawn(async move {
            let goes_on = || goes_on.load(Ordering::Relaxed);
            tasks::submit(client, id, what, rng, &goes_on, &submissions, &world).await;
        })
    }

    /// Who has no token, or a wrong one, tries everything that changes or tells something; all of it must be refused.
    fn stranger(&self) -> Option<madsim::task::JoinHandle<()>> {
        let wrong = self.cluster.world.rng.stream("stranger").chance(500).then(|| plan::tokens("strange"));
        let (io, node) = self.cluster.world.machine().boot();
        let io = match wrong {
            Some(tokens) => io.with_tokens(tokens),
            None => io,
        };
        let client = Client::new(io, &self.cluster.endpoints, CLIENT_TIMEOUT);
        let client = match self.cluster.world.rng.stream("pretender").chance(500) {
            true => client.as_user(ROOT, "guessed"),
            false => client,
        };
        let watch = self.cluster.watch.clone();
        self.cluster.plan.token.then(|| {
            node.spawn(async move {
                for _ in 0..3 {
                    sleep(Duration::from_secs(3)).await;
                    let put = client.put(b"strange", b"strange", None).await.map(|_| "put");
                    let get = client.get(b"strange").await.map(|_| "get");
                    let status = client.status().await.map(|_| "status");
                    let remove = client.remove_member(NodeId(1)).await.map(|()| "remove");
                    for done in [put, get, status, remove].into_iter().flatten() {
                        watch
                            .violations
                            .add("no answer without the token", format!("a stranger's {done} was answered"));
                    }
                }
            })
        })
    }

    /// Whom a client knows.
    fn doors(&self, id: u64) -> Vec<Address> {
        match self.cluster.plan.one_door {
            true => self.cluster.members[id as usize % self.cluster.plan.nodes].addresses().collect(),
            false => self.cluster.endpoints.clone(),
        }
    }

    /// A client on a machine of its own that does its share of the plan while this is true, under the session of `one` if they share it.
    fn client(&self, id: u64, one: &Client, goes_on: Arc<AtomicBool>) -> madsim::task::JoinHandle<()> {
        let (io, node) = self.caller();
        let door = match self.cluster.plan.one_session {
            _ if id <= self.cluster.plan.foreign => {
                let io = json::every_other(id, io);
                Door::Etcd(Etcd::new(io, &self.doors(id), CLIENT_TIMEOUT).witnessed(self.cluster.clone()))
            }
            _ if id <= self.cluster.plan.foreign + self.cluster.plan.inside as u64 => {
                let member = &self.cluster.members[id as usize % self.cluster.plan.nodes];
                Door::Own(Client::over(io, vec![(member.address(), member.within())], CLIENT_TIMEOUT))
            }
            true => Door::Own(one.clone()),
            false => Door::Own(Client::new(io, &self.doors(id), CLIENT_TIMEOUT)),
        };
        let rng = self.cluster.world.rng.stream(&format!("client {id}"));
        let (load, ended, time) = (self.cluster.plan.load(), self.noting(), self.time.clone());
        let value_bytes = self.cluster.plan.value_bytes;
        node.spawn(async move {
            let goes_on = || goes_on.load(Ordering::Relaxed);
            let notes = Notes { client: id, value_bytes, elapsed: &|| time.elapsed(), ended: &ended };
            load::run(&door, &load, rng, &goes_on, notes).await;
        })
    }

    /// Heals a majority of the voters, drawn by the plan, and sees that it serves though the others stay broken for ever.
    async fn serve_in_core(&self) -> Result<(), Verdict> {
        let (cluster, mut rng) =
            (&self.cluster, self.cluster.world.rng.stream(&format!("core {}", self.cluster.plan.core)));
        if cluster.plan.is_undisturbed() {
            return Ok(()); // here nothing may get lost, so nothing is broken
        }
        let Some(voters) = cluster.watch.voters() else { return Ok(()) };
        let is_voter = |place: &Place| {
            let member = &cluster.members[*place];
            member.id().is_some_and(|id| voters.contains(&id)) && !member.is_rotten()
        };
        let places = (0..cluster.members.len()).filter(is_voter).collect();
        // One that is lost counts as a voter until it is removed, and cannot be healed; nor can damage to a disk, whenever it is found.
        let Some(core) = recovery::core(places, voters.len(), &mut rng) else { return Ok(()) };
        sometimes!(core.len() < cluster.plan.nodes, "a majority served while others stayed broken");
        cluster.world.trace.event(format_args!("core {core:?}"));
        cluster.world.network.mend();
        cluster.world.network.set_weather(Weather::CALM);
        for place in (0..cluster.members.len()).filter(|place| !core.contains(place)) {
            match rng.range(0, 3) {
                0 => cluster.members[place].machine.down(Down::Kill),
                1 => cluster.members[place].machine.pause(),
                _ => cluster.set_isolated(place, true),
            }
        }
        core.iter().for_each(|place| cluster.bring(*place));
        let served = match self.serve(1).await {
            // Who watches where nobody is told anything any more goes on elsewhere.
            true => self.finish_watches().await,
            false => {
                Err(Verdict::Liveness(format!("a healed majority, {core:?}, did not serve within {RECOVERY_MAX:?}")))
            }
        };
        for member in &cluster.members {
            member.machine.resume();
        }
        // A change of members that was under way, or that it made itself, may have made it less than a majority.
        let voters = cluster.watch.voters_to_be();
        let healthy = |id: &NodeId| core.iter().any(|place| cluster.members[*place].id() == Some(*id));
        let is_majority = 2 * voters.iter().filter(|id| healthy(id)).count() > voters.len();
        if is_majority { served } else { Ok(()) }
    }

    /// Reads and writes some keys; false if that does not end well in time.
    async fn serve(&self, keys: u64) -> bool {
        let (io, node) = self.caller();
        let door = Door::Own(Client::new(io, &self.cluster.endpoints, RECOVERY_MAX));
        let (history, time, number) = (self.history.clone(), self.time.clone(), self.history.records().len() as u64);
        let all = node.spawn(async move {
            let notes =
                Notes { client: 99, value_bytes: 0, elapsed: &|| time.elapsed(), ended: &|record| history.add(record) };
            let mut all = true;
            for key in 0..keys {
                let value = (99 << 32) | (number + key);
                for op in [Op::Get, Op::Put { value, expected: None }, Op::Get] {
                    let mut records = notes.perform(&door, Ask::One(key, op)).await;
                    // Who sees to alarms makes room.
                    let deadline = time.elapsed() + RECOVERY_MAX;
                    while records.iter().any(|record| record.seen == Seen::Full) && time.elapsed() < deadline {
                        door.pause(Duration::from_millis(100)).await;
                        records = notes.perform(&door, Ask::One(key, op)).await;
                    }
                    let open = |record: &Record| matches!(record.seen, Seen::Unknown | Seen::NotDone | Seen::Full);
                    all &= !records.iter().any(open);
                }
            }
            all
        });
        all.await.unwrap_or(false)
    }

    /// Ends all faults and sees that the cluster serves and converges.
    async fn heal(&self) -> Result<(), Verdict> {
        self.cluster.world.trace.event(format_args!("heal"));
        self.cluster.world.network.mend();
        self.cluster.world.network.set_weather(Weather::CALM);
        self.cluster.boot_all();
        self.cluster.replace_rotten().await;
        if !self.serve(self.cluster.plan.keys).await {
            return Err(Verdict::Liveness(format!("a healed cluster did not serve within {RECOVERY_MAX:?}")));
        }
        self.finish_watches().await?;
        self.finish_removals().await?;
        self.finish_moves().await?;
        self.finish_upgrade().await?;
        let resumed = self.cluster.resume_workers(RECOVERY_MAX).await;
        resumed.map_err(|left| Verdict::Liveness(format!("workers do not take tasks again: {left}")))?;
        self.finish_tasks().await?;
        self.finish_leases().await?;
        self.finish_history().await?;
        let converged = || {
            let watched = self.cluster.watch.state();
            let (last, _) = watched.canonical.last();
            let voters =
                watched.statuses.values().max_by_key(|status| status.applied).map(|status| status.voters.clone());
            let same = |status: &Status| Some(sorted(&status.voters)) == voters.as_deref().map(sorted);
            let at_end = |status: &Status| status.applied == last && status.last == last && same(status);
            let status = |member: &Arc<Member>| watched.statuses.get(&member.id()?);
            self.cluster.staying().all(|member| status(member).is_some_and(at_end))
        };
        self.within("a healed cluster converges", RECOVERY_MAX, converged).await?;
        self.restore_backup().await?;
        let watched = self.cluster.watch.state().statuses.clone();
        membership::check_workers(&self.cluster.workers(), &watched, &self.cluster.watch.violations);
        self.check()
    }

    /// Every task that was taken ends.
    async fn finish_tasks(&self) -> Result<(), Verdict> {
        if self.cluster.plan.submitters == 0 {
            return Ok(());
        }
        let (io, node) = self.caller();
        let client = Client::new(io, &self.cluster.endpoints, CLIENT_TIMEOUT);
        let (watch, ledger, submissions) =
            (self.cluster.watch.clone(), self.cluster.world.ledger.clone(), self.submissions.clone());
        let newest = watch.state().formats.newest_since();
        let known = (self.cluster.plan.is_undisturbed(), newest.map(|(since, _)| since));
        let condemned = self.cluster.condemned().into_iter().map(|member| member.id);
        let tidied = self.cluster.plan.faults.iter().filter_map(|(_, fault)| match fault {
            Fault::Tidy { node } => self.cluster.members[*node].id(),
            _ => None,
        });
        let gone: Vec<NodeId> = condemned.chain(tidied).collect();
        let patience = TASKS_MAX + outcomes::work(&submissions);
        let checks = node.spawn(async move {
            let tasks = outcomes::all_ended(&client, patience).await?;
            outcomes::check(&submissions, &tasks, known, &ledger, &watch.violations);
            outcomes::check_output(&client, &tasks, &gone, &watch.violations).await;
            Ok::<(), String>(())
        });
        let ended = checks.await.unwrap_or_else(|_| Err("the client has died".into()));
        ended.map_err(|live| Verdict::Liveness(format!("a task did not end within {patience:?}: {live}")))
    }

    /// In some runs, what is backed up can be restored.
    async fn restore_backup(&self) -> Result<(), Verdict> {
        let mut rng = self.cluster.world.rng.stream("backup");
        if !rng.chance(200) {
            return Ok(());
        }
        let (io, node) = self.caller();
        let client = Client::new(io, &self.cluster.endpoints, RECOVERY_MAX);
        let (world, watch, spoil) = (self.cluster.world.clone(), self.cluster.watch.clone(), rng.range(0, u64::MAX));
        let restored = node.spawn(async move { restore::check(&world, client, spoil, &watch.violations).await });
        restored.await.unwrap_or_else(|_| Err("the client has died".into())).map_err(Verdict::Liveness)
    }

    /// What an operator began is carried through, and who is removed says so.
    async fn finish_removals(&self) -> Result<(), Verdict> {
        let condemned = self.cluster.condemned();
        for Condemned { id, .. } in &condemned {
            let began = self.time.now_instant();
            while let Err(error) = self.cluster.operator.remove_member(*id).await {
                if self.time.now_instant() - began > RECOVERY_MAX {
                    return Err(Verdict::Liveness(format!("a healed cluster did not remove member {id}: {error}")));
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        // A place may have lost more than one: only now may another machine join there.
        for Condemned { place, lost, .. } in condemned {
            match lost {
                true => self.cluster.admit_replacement(place),
                false => {
                    self.within("a removed member says so", RECOVERY_MAX, || self.cluster.members[place].is_removed())
                        .await?
                }
            }
        }
        Ok(())
    }

    /// Every member is of the newest version, and the cluster comes to the newest format.
    async fn finish_upgrade(&self) -> Result<(), Verdict> {
        self.cluster.upgrade_all().await;
        let is_newest = || self.cluster.watch.state().formats.now() == format::NEWEST;
        self.within("a cluster of one version comes to its newest format", RECOVERY_MAX, is_newest).await
    }

    /// Every member is known where it is.
    async fn finish_moves(&self) -> Result<(), Verdict> {
        let began = self.time.now_instant();
        loop {
            // One that asked in vain to be taken in may have given up just now: its operator starts it again.
            self.cluster.boot_all();
            let known = self.cluster.operator.status().await.map(|status| status.members).unwrap_or_default();
            let is_known = |member: &Arc<Member>| {
                let (id, address) = (member.id().map_or(0, |id| id.0), member.address());
                let rows = known.iter().filter_map(|row| row.member.as_ref());
                rows.filter(|row| row.id == id).any(|row| row.address == address.as_str())
            };
            match self.cluster.members.iter().find(|member| !member.is_removed() && !is_known(member)) {
                None => return Ok(()),
                Some(lost) if self.time.now_instant() - began > RECOVERY_MAX => {
                    let text = format!("nobody knows that machine {} is at {} now", lost.machine.id, lost.address());
                    return Err(Verdict::Liveness(text));
                }
                Some(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Checks what was found while the run went on.
    fn check(&self) -> Result<(), Verdict> {
        let mut violations = self.cluster.watch.violations.all();
        // Where clocks run as they like no lease holds anything off: then it is the tokens that do.
        let by_lease = |violation: &Violation| {
            attempts::BY_LEASE.contains(&violation.oracle)
                || [holdings::LASTS, holdings::LOCK].contains(&violation.oracle)
        };
        violations.extend(self.cluster.world.ledger.violations.all());
        violations.retain(|violation| self.cluster.plan.clocks_hold() || !by_lease(violation));
        if !violations.is_empty() {
            return Err(Verdict::Safety(violations));
        }
        match self.cluster.unexcused() {
            Some(first) => Err(Verdict::Crash(format!("machine {} stopped: {}", first.machine, first.why))),
            None => Ok(()),
        }
    }

    /// Checks the history and every disk.
    fn scan(&self) -> Result<(), Verdict> {
        let records = self.history.records();
        let violations = &self.cluster.watch.violations;
        cost::of("oracle: exactly once", || exactly_once::check(&records, violations));
        cost::of("oracle: linearizable", || linearizable::check(&records, violations));
        let by_itself = self.cluster.watch.state().past.compactions().to_vec();
        cost::of("oracle: revisions", || revisions::check(&records, &by_itself, violations));
        let quota = self.cluster.plan.keys_quota;
        let (raised, full) = (self.janitor.spells(), self.cluster.full_disks());
        cost::of("oracle: space", || space::check(&records, &raised, &full, quota, violations));
        let (numbers, steps, told) = (self.guest_numbers(), self.guests.steps(), self.guests.told());
        let tokens_since = self.cluster.watch.state().formats.newest_since().map(|(_, at)| at);
        let said = (&steps[..], &told[..], tokens_since);
        cost::of("oracle: rights", || rights::check(&records, &numbers, said, violations));
        let most = space::most(&records, self.cluster.plan.holders, quota);
        cost::of("oracle: holdings", || holdings::check(&self.holders.notes(), violations));
        cost::of("oracle: watches", || watches::check(&self.watchers.logs(), &records, violations));
        self.cluster.members.iter().for_each(|member| member.machine.down(Down::Kill));
        for member in self.cluster.servers() {
            // One that waits to be let in, or was removed, may have nothing.
            if member.id().is_some() {
                cost::of("oracle: disks at the end", || disks::check(&member.machine, violations));
                cost::of("oracle: bounds", || {
                    bounds::check(&member.machine, self.cluster.plan.retention, most, violations)
                });
            }
        }
        self.check()
    }

    async fn within(&self, what: &str, most: Duration, holds: impl Fn() -> bool) -> Result<(), Verdict> {
        let deadline: Instant = self.time.now_instant() + most;
        while !holds() {
            self.check()?;
            if self.time.now_instant() > deadline {
                let statuses = self.cluster.watch.state().statuses.clone();
                let lines: Vec<String> = statuses.values().map(|status| format!("\n  {status:?}")).collect();
                return Err(Verdict::Liveness(format!("{what}: not within {most:?}{}", lines.concat())));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

fn sorted(ids: &[NodeId]) -> Vec<NodeId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

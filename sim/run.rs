//! The life of a seed: form a cluster, attack it under load, heal it, see that it recovers, scan what is left.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{Either, select};
use madsim::runtime::NodeHandle;
use madsim::time::{Instant, TimeHandle, sleep};
use prost::Message;
use tokio::sync::oneshot;

use crate::client::{Client, ClientError};
use crate::entry::{Entry, Outcome};
use crate::error::Reject;
use crate::ids::{Address, Incarnation, Index, NodeId, Revision, Term};
use crate::io::{Io, RngStream};
use crate::limits::SESSION_TTL;
use crate::node::machine::open_state;
use crate::node::{NodeBuilder, Origin};
use crate::proto::v1;
use crate::raft::codec;
use crate::raft::core::{Role, Status};
use crate::raft::log::Log;
use crate::raft::manager::Observer;
use crate::sim::history::{History, Op, Record, Seen};
use crate::sim::network::{MachineId, Weather};
use crate::sim::oracle::agreement::Agreement;
use crate::sim::oracle::election::Elections;
use crate::sim::oracle::monotonic::Monotonic;
use crate::sim::oracle::promise::Promises;
use crate::sim::oracle::{Violation, Violations, exactly_once, linearizable};
use crate::sim::plan::{self, Fault, MOVES_MAX, Plan};
use crate::sim::tasks::{self, Submissions};
use crate::sim::trace::Trace;
use crate::sim::world::{self, Down, FailStop, Machine, Seed, World};

/// How long a healed cluster, or a new one, may take for anything it must do.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// How long all tasks together may take to end once nothing hinders them.
const TASKS_MAX: Duration = Duration::from_secs(600);
/// How long a client tries one operation.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Runs one seed. With `print`, every event goes to standard error.
pub fn run_seed(seed: Seed, print: bool) -> Report {
    let plan = Plan::draw(&seed.rng());
    run_plan(seed, plan, print)
}

/// Runs a plan with the randomness of a seed.
pub fn run_plan(seed: Seed, plan: Plan, print: bool) -> Report {
    let body = plan.clone();
    let result = world::run(seed, print, move |world| async move { Run::new(world, body).live().await });
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
        })
        .with_seed(seed)
}

impl Report {
    fn with_seed(mut self, seed: Seed) -> Self {
        self.seed = seed;
        self
    }
}

/// The oracles that listen while a run goes on.
struct Watch {
    trace: Arc<Trace>,
    inner: Mutex<Watched>,
    violations: Violations,
}

#[derive(Default)]
struct Watched {
    elections: Elections,
    agreement: Agreement,
    monotonic: Monotonic,
    promises: Promises,
    statuses: BTreeMap<NodeId, Status>,
}

impl Observer for Watch {
    fn on_applied(&self, life: (NodeId, Incarnation), entry: &Entry, outcome: &Outcome) {
        self.trace.event(format_args!("applied {} {} {:016x}", life.0, entry.index, outcome.digest));
        self.inner.lock().unwrap().agreement.on_applied(life.0, entry, outcome, &self.violations);
    }

    fn on_installed(&self, life: (NodeId, Incarnation), applied: (Index, Term), digest: u64) {
        self.trace.event(format_args!("installed {} {} {digest:016x}", life.0, applied.0));
        self.inner.lock().unwrap().agreement.on_installed(life.0, applied.0, digest, &self.violations);
    }

    fn on_status(&self, life: (NodeId, Incarnation), status: &Status) {
        let inner = &mut *self.inner.lock().unwrap();
        if status.role == Role::Leader {
            inner.elections.on_leader(life.0, status.term, &self.violations);
        }
        inner.monotonic.on_status(life, status, &self.violations);
        inner.statuses.insert(life.0, status.clone());
    }
}

impl Watch {
    /// A frame of Raft messages leaves a machine.
    fn on_frame(&self, machine: &Machine, frame: &[u8]) {
        let Ok(frame) = v1::RaftFrame::decode(frame) else {
            return self.violations.add("frames are well formed", format!("machine {} sent garbage", machine.id));
        };
        let inner = &mut *self.inner.lock().unwrap();
        for wire in frame.messages {
            let message = match codec::message_from_wire(wire) {
                Ok(message) => message,
                Err(error) => return self.violations.add("frames are well formed", error.to_string()),
            };
            let kind = message.get_msg_type();
            inner.promises.on_message(machine.id, &machine.disk, &message, &self.violations);
            if !matches!(
                kind,
                raft::eraftpb::MessageType::MsgRequestPreVote | raft::eraftpb::MessageType::MsgRequestPreVoteResponse
            ) {
                inner.monotonic.on_message(NodeId(message.from), Term(message.term));
            }
            if kind == raft::eraftpb::MessageType::MsgRequestVoteResponse && !message.reject {
                let (voter, candidate) = (NodeId(message.from), NodeId(message.to));
                inner.elections.on_vote(voter, Term(message.term), candidate, &self.violations);
            }
        }
    }
}

/// One member's machine, and how to stop the node on it in order.
struct Member {
    machine: Arc<Machine>,
    stop: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
    /// Its id in the cluster, once it has one.
    id: Mutex<Option<NodeId>>,
    /// How often it has moved to another address.
    moves: AtomicU16,
    /// Its node said that it was removed, and ended.
    removed: AtomicBool,
}

impl Member {
    fn new(machine: Arc<Machine>) -> Arc<Self> {
        let (stop, id, moves, removed) = Default::default();
        Arc::new(Self { machine, stop, id, moves, removed })
    }

    /// Where it is now.
    fn address(&self) -> Address {
        self.machine.address(self.moves.load(Ordering::Relaxed))
    }

    /// Wherever it may ever be.
    fn addresses(&self) -> impl Iterator<Item = Address> {
        (0..=MOVES_MAX).map(|moves| self.machine.address(moves))
    }

    fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    fn id(&self) -> Option<NodeId> {
        *self.id.lock().unwrap()
    }
}

struct Run {
    world: Arc<World>,
    plan: Plan,
    members: Vec<Arc<Member>>,
    endpoints: Vec<Address>,
    operator: Client,
    watch: Arc<Watch>,
    history: Arc<History>,
    submissions: Arc<Submissions>,
    time: TimeHandle,
}

impl Run {
    fn new(world: Arc<World>, plan: Plan) -> Self {
        let members: Vec<Arc<Member>> = (0..plan.nodes).map(|_| Member::new(world.machine())).collect();
        let moving = |place: usize| {
            plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::Move { node, .. } if *node == place))
        };
        let endpoints = members.iter().enumerate();
        let endpoints: Vec<Address> = endpoints
            .flat_map(|(place, member)| member.addresses().take(if moving(place) { usize::MAX } else { 1 }))
            .collect();
        let operator = Client::new(plan.admit(world.machine().boot().0), &endpoints, CLIENT_TIMEOUT);
        let watch =
            Arc::new(Watch { trace: world.trace.clone(), inner: Mutex::default(), violations: Violations::default() });
        let machines: BTreeMap<MachineId, Arc<Machine>> =
            members.iter().map(|member| (member.machine.id, member.machine.clone())).collect();
        let tap = watch.clone();
        world.network.set_wiretap(Some(Arc::new(move |from, _, frame| tap.on_frame(&machines[&from], frame))));
        Self {
            operator,
            endpoints,
            world,
            plan,
            members,
            watch,
            history: Arc::default(),
            submissions: Arc::default(),
            time: TimeHandle::current(),
        }
    }

    async fn live(self) -> Report {
        let verdict = match self.phases().await {
            Ok(()) => Verdict::Passed,
            Err(verdict) => verdict,
        };
        self.world.network.set_wiretap(None);
        let watched = self.watch.inner.lock().unwrap();
        let records = self.history.records();
        let known = records.iter().filter(|record| !matches!(record.seen, Seen::Unknown | Seen::NotDone)).count();
        Report {
            seed: Seed(0),
            plan: self.plan.clone(),
            verdict,
            trace: self.world.trace.digest(),
            elapsed: self.time.elapsed(),
            operations: (known, records.len()),
            leaders: watched.elections.leaders(),
            promises: watched.promises.checked,
            snapshots: watched.agreement.installed,
            attempts: self.world.ledger.counts(),
        }
    }

    async fn phases(&self) -> Result<(), Verdict> {
        self.world.network.set_weather(self.plan.weather);
        self.form().await?;
        self.attack().await;
        self.check()?;
        self.heal().await?;
        self.scan()
    }

    /// Boots the founder, lets the others join, and waits until all vote.
    async fn form(&self) -> Result<(), Verdict> {
        for place in 0..self.members.len() {
            self.boot(place);
        }
        let target = match self.plan.nodes {
            even if even % 2 == 0 => even - 1,
            odd => odd,
        };
        let voters = || {
            let watched = self.watch.inner.lock().unwrap();
            let full = |status: &&Status| status.voters.len() == target && !status.joint && status.leader.is_some();
            watched.statuses.values().filter(full).count() >= target
        };
        self.within("the cluster forms", voters).await
    }

    fn boot(&self, place: usize) {
        restart(&self.members[place], place, &self.plan, &self.endpoints, &self.watch);
    }

    /// The seams of a machine of its own that may call the cluster.
    fn caller(&self) -> (Io, NodeHandle) {
        let (io, node) = self.world.machine().boot();
        (self.plan.admit(io), node)
    }

    /// Runs the clients while the faults of the plan happen, and waits for both.
    async fn attack(&self) {
        let one = Client::new(self.caller().0, &self.endpoints, CLIENT_TIMEOUT);
        let submitters = (1..=self.plan.submitters as u64).map(|id| self.submitter(id));
        let clients = (1..=self.plan.clients as u64).map(|id| self.client(id, &one));
        let clients: Vec<_> = clients.chain(submitters).chain(self.stranger()).collect();
        let began = self.time.now_instant();
        let mut repairs = Vec::new();
        for (at, fault) in &self.plan.faults {
            madsim::time::sleep_until(began + *at).await;
            repairs.push(madsim::task::spawn(self.inflict(*fault)));
        }
        for repair in repairs {
            let _ = repair.await;
        }
        for client in clients {
            let _ = client.await;
        }
    }

    /// One fault and its end.
    fn inflict(&self, fault: Fault) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (members, plan) = (self.members.clone(), self.plan.clone());
        let (network, operator) = (self.world.network.clone(), self.operator.clone());
        let (watch, trace, endpoints) = (self.watch.clone(), self.world.trace.clone(), self.endpoints.clone());
        async move {
            trace.event(format_args!("fault {fault:?}"));
            let restart = |place: usize| restart(&members[place], place, &plan, &endpoints, &watch);
            match fault {
                Fault::Kill { node, down } => {
                    members[node].machine.down(Down::Kill);
                    sleep(down).await;
                    restart(node);
                }
                Fault::Power { node, drop_permille, tear_permille, down } => {
                    members[node].machine.down(Down::Power(Fault::power_cut(drop_permille, tear_permille)));
                    sleep(down).await;
                    restart(node);
                }
                Fault::Move { node, down } => {
                    members[node].machine.down(Down::Kill);
                    members[node].moves.fetch_add(1, Ordering::Relaxed);
                    sleep(down).await;
                    restart(node);
                }
                Fault::Blackout { drop_permille, down } => {
                    for member in &members {
                        member.machine.down(Down::Power(Fault::power_cut(drop_permille, 0)));
                    }
                    sleep(down).await;
                    (0..members.len()).for_each(restart);
                }
                Fault::Stop { node, down } => {
                    let stop = members[node].stop.lock().unwrap().take();
                    if let Some((stop, stopped)) = stop
                        && stop.send(()).is_ok()
                    {
                        let _ = madsim::time::timeout(Duration::from_secs(15), stopped).await;
                    }
                    members[node].machine.down(Down::Kill);
                    sleep(down).await;
                    restart(node);
                }
                Fault::Pause { node, span } => {
                    members[node].machine.pause();
                    sleep(span).await;
                    members[node].machine.resume();
                }
                Fault::CutOneWay { from, to, span } => {
                    let (from, to) = (members[from].machine.id, members[to].machine.id);
                    network.set_cut(from, to, from != to);
                    sleep(span).await;
                    network.set_cut(from, to, false);
                }
                Fault::Full { node, left, span } => {
                    let disk = &members[node].machine.disk;
                    disk.set_free(left);
                    sleep(span).await;
                    disk.set_capacity(u64::MAX);
                }
                Fault::Transfer { to } => {
                    if let Some(id) = members[to].id() {
                        let done = operator.transfer_leader(Some(id)).await;
                        trace.event(format_args!("transfer to {id}: {done:?}"));
                    }
                }
                Fault::Remove { node } => {
                    if let Some(id) = members[node].id() {
                        let done = operator.remove_member(id).await;
                        trace.event(format_args!("remove {id}: {done:?}"));
                    }
                }
                Fault::Isolate { node, span } => {
                    let set = |cut| {
                        let id = members[node].machine.id;
                        for other in members.iter().map(|member| member.machine.id).filter(|other| *other != id) {
                            network.set_cut(id, other, cut);
                            network.set_cut(other, id, cut);
                        }
                    };
                    set(true);
                    sleep(span).await;
                    set(false);
                }
            }
        }
    }

    /// A client on a machine of its own that submits tasks.
    fn submitter(&self, id: u64) -> madsim::task::JoinHandle<()> {
        let (io, node) = self.caller();
        let client = Client::new(io, &self.endpoints, CLIENT_TIMEOUT);
        let rng = self.world.rng.stream(&format!("submitter {id}"));
        let what = (self.plan.tasks, self.plan.stubborn_permille);
        let (submissions, trace) = (self.submissions.clone(), self.world.trace.clone());
        node.spawn(async move { tasks::submit(client, id, what, rng, &submissions, &trace).await })
    }

    /// Who has no token, or a wrong one, tries everything that changes or tells something; all of it must be refused.
    fn stranger(&self) -> Option<madsim::task::JoinHandle<()>> {
        let wrong = self.world.rng.stream("stranger").chance(500).then(|| plan::tokens("strange"));
        let (io, node) = self.world.machine().boot();
        let io = match wrong {
            Some(tokens) => io.with_tokens(tokens),
            None => io,
        };
        let client = Client::new(io, &self.endpoints, CLIENT_TIMEOUT);
        let watch = self.watch.clone();
        self.plan.token.then(|| {
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

    /// A client on a machine of its own that does its share of the plan, under the session of `one` if they share it.
    fn client(&self, id: u64, one: &Client) -> madsim::task::JoinHandle<()> {
        let (io, node) = self.caller();
        let client = match self.plan.one_session {
            true => one.clone(),
            false => Client::new(io, &self.endpoints, CLIENT_TIMEOUT),
        };
        let mut rng = self.world.rng.stream(&format!("client {id}"));
        let (plan, history, time) = (self.plan.clone(), self.history.clone(), self.time.clone());
        let trace = self.world.trace.clone();
        node.spawn(async move {
            let mut known = BTreeMap::new();
            for count in 0..plan.operations {
                sleep(Duration::from_millis(rng.range(1, 1_200))).await;
                if rng.chance(plan.idle_permille) {
                    sleep(SESSION_TTL + Duration::from_millis(rng.range(0, 10_000))).await;
                }
                let key = rng.range(0, plan.keys);
                let op = draw_op(&mut rng, id << 32 | count, known.get(&key).copied());
                let from = time.elapsed();
                let seen = perform(&client, key, op).await;
                if let Seen::Put(revision) | Seen::Mismatch(revision) | Seen::Got(Some((_, revision))) = seen {
                    known.insert(key, revision);
                }
                trace.event(format_args!("client {id} {op:?} on {key}: {seen:?}"));
                history.add(Record { client: id, key, op, from, to: time.elapsed(), seen });
            }
        })
    }

    /// Ends all faults and sees that the cluster serves and converges.
    async fn heal(&self) -> Result<(), Verdict> {
        self.world.trace.event(format_args!("heal"));
        self.world.network.mend();
        self.world.network.set_weather(Weather::CALM);
        for place in 0..self.members.len() {
            self.boot(place);
        }
        let (io, node) = self.caller();
        let client = Client::new(io, &self.endpoints, RECOVERY_MAX);
        let (history, keys, time) = (self.history.clone(), self.plan.keys, self.time.clone());
        let last = node.spawn(async move {
            let mut all = true;
            for key in 0..keys {
                for op in [Op::Get, Op::Put { value: 99 << 32 | key, expected: None }, Op::Get] {
                    let from = time.elapsed();
                    let seen = perform(&client, key, op).await;
                    all &= !matches!(seen, Seen::Unknown | Seen::NotDone);
                    history.add(Record { client: 99, key, op, from, to: time.elapsed(), seen });
                }
            }
            all
        });
        if !last.await.unwrap_or(false) {
            return Err(Verdict::Liveness(format!("a healed cluster did not serve within {RECOVERY_MAX:?}")));
        }
        self.finish_removals().await?;
        self.finish_moves().await?;
        self.finish_tasks().await?;
        let converged = || {
            let watched = self.watch.inner.lock().unwrap();
            let last = watched.agreement.last();
            let voters =
                watched.statuses.values().max_by_key(|status| status.applied).map(|status| status.voters.clone());
            let same = |status: &Status| Some(sorted(&status.voters)) == voters.as_deref().map(sorted);
            let at_end = |status: &Status| status.applied == last && status.last == last && same(status);
            let members = self.members.iter().filter(|member| !member.is_removed());
            members.filter_map(|member| watched.statuses.get(&member.id()?).map(at_end)).all(|there| there)
        };
        self.within("a healed cluster converges", converged).await?;
        self.check()
    }

    /// Every task that was taken ends.
    async fn finish_tasks(&self) -> Result<(), Verdict> {
        if self.plan.submitters == 0 {
            return Ok(());
        }
        let (io, node) = self.caller();
        let client = Client::new(io, &self.endpoints, CLIENT_TIMEOUT);
        let (watch, ledger, submissions) = (self.watch.clone(), self.world.ledger.clone(), self.submissions.clone());
        let undisturbed = self.plan.faults.is_empty() && self.plan.weather == Weather::CALM;
        let gone: Vec<NodeId> = self.members.iter().filter(|m| m.is_removed()).filter_map(|m| m.id()).collect();
        let checks = node.spawn(async move {
            let tasks = tasks::all_ended(&client, TASKS_MAX).await?;
            submissions.check(&tasks, undisturbed, &ledger, &watch.violations);
            tasks::check_output(&client, &tasks, &gone, &watch.violations).await;
            Ok::<(), String>(())
        });
        let ended = checks.await.unwrap_or_else(|_| Err("the client has died".into()));
        ended.map_err(|live| Verdict::Liveness(format!("a task did not end within {TASKS_MAX:?}: {live}")))
    }

    /// What an operator began is carried through, and who is removed says so.
    async fn finish_removals(&self) -> Result<(), Verdict> {
        for (_, fault) in &self.plan.faults {
            let Fault::Remove { node } = *fault else { continue };
            let member = &self.members[node];
            let Some(id) = member.id() else { continue };
            let began = self.time.now_instant();
            while let Err(error) = self.operator.remove_member(id).await {
                if self.time.now_instant() - began > RECOVERY_MAX {
                    return Err(Verdict::Liveness(format!("a healed cluster did not remove member {id}: {error}")));
                }
                sleep(Duration::from_millis(100)).await;
            }
            self.within("a removed member says so", || member.is_removed()).await?;
        }
        Ok(())
    }

    /// Every member is known where it is.
    async fn finish_moves(&self) -> Result<(), Verdict> {
        let began = self.time.now_instant();
        loop {
            let known = self.operator.status().await.map(|status| status.members).unwrap_or_default();
            let is_known = |member: &Arc<Member>| {
                let (id, address) = (member.id().map_or(0, |id| id.0), member.address());
                let rows = known.iter().filter_map(|row| row.member.as_ref());
                rows.filter(|row| row.id == id).any(|row| row.address == address.as_str())
            };
            match self.members.iter().find(|member| !member.is_removed() && !is_known(member)) {
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
        let mut fail_stops: Vec<FailStop> = self.world.fail_stops();
        // A full disk may stop its node, which says so.
        let full = |stop: &FailStop| stop.why.contains("no space left");
        if self.plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::Full { .. })) {
            fail_stops.retain(|stop| !full(stop));
        }
        let mut violations = self.watch.violations.all();
        violations.extend(self.world.ledger.violations.all());
        if !violations.is_empty() {
            return Err(Verdict::Safety(violations));
        }
        match fail_stops.first() {
            Some(first) => Err(Verdict::Crash(format!("machine {} stopped: {}", first.machine, first.why))),
            None => Ok(()),
        }
    }

    /// Checks the history and every disk.
    fn scan(&self) -> Result<(), Verdict> {
        let records = self.history.records();
        exactly_once::check(&records, &self.watch.violations);
        linearizable::check(&records, &self.watch.violations);
        for member in &self.members {
            member.machine.down(Down::Kill);
            let disk = member.machine.disk.boot();
            let checked = Log::open(&*disk)
                .and_then(|log| open_state(&disk, &log))
                .and_then(|state| Ok((state.digest(), state.reader().full_digest()?)));
            match checked {
                Ok((kept, counted)) if kept == counted => {}
                Ok(_) => {
                    let what =
                        format!("the rows on machine {} are not those that its digest counts", member.machine.id);
                    self.watch.violations.add("the digest is of the rows", what);
                }
                Err(fault) => self.watch.violations.add("the state opens", fault.to_string()),
            }
        }
        self.check()
    }

    async fn within(&self, what: &str, holds: impl Fn() -> bool) -> Result<(), Verdict> {
        let deadline: Instant = self.time.now_instant() + RECOVERY_MAX;
        while !holds() {
            self.check()?;
            if self.time.now_instant() > deadline {
                let statuses = self.watch.inner.lock().unwrap().statuses.clone();
                let lines: Vec<String> = statuses.values().map(|status| format!("\n  {status:?}")).collect();
                return Err(Verdict::Liveness(format!("{what}: not within {RECOVERY_MAX:?}{}", lines.concat())));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// Boots a member's machine and its node, unless it runs or was removed.
fn restart(member: &Arc<Member>, place: usize, plan: &Plan, endpoints: &[Address], watch: &Arc<Watch>) {
    let (machine, watch) = (&member.machine, watch.clone());
    if machine.is_up() || member.is_removed() {
        return;
    }
    let io = plan.admit(machine.boot().0);
    let address = member.address();
    let origin = if place == 0 && member.id().is_none() { Origin::Bootstrap } else { Origin::Join(endpoints.to_vec()) };
    let (stop, stopping) = oneshot::channel();
    let (ended, stopped) = oneshot::channel();
    *member.stop.lock().unwrap() = Some((stop, stopped));
    let spawn = io.spawn.clone();
    let member = member.clone();
    let builder = NodeBuilder::new(io.clone(), address).origin(origin).observer(watch);
    let builder = builder.log_kept(plan.retention).snapshot_chunk_bytes(plan.chunk_bytes);
    let life = async move {
        match builder.start().await {
            Ok(node) => {
                *member.id.lock().unwrap() = Some(node.identity().id);
                let told = async {
                    if stopping.await.is_err() {
                        // Nobody will stop it in order: it lives until its machine goes down.
                        std::future::pending::<()>().await;
                    }
                };
                let removed =
                    matches!(select(std::pin::pin!(told), std::pin::pin!(node.removed())).await, Either::Right(_));
                node.stop().await;
                member.removed.fetch_or(removed, Ordering::Relaxed);
                let _ = ended.send(());
            }
            Err(fault) => io.spawn.fail_stop(fault),
        }
    };
    spawn.spawn("node", Box::pin(life)).detach();
}

fn sorted(ids: &[NodeId]) -> Vec<NodeId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

fn draw_op(rng: &mut RngStream, value: u64, known: Option<u64>) -> Op {
    match rng.range(0, 10) {
        0..4 => Op::Get,
        4..7 => Op::Put { value, expected: None },
        7..9 => Op::Put { value, expected: Some(known.unwrap_or(0)) },
        _ => Op::Delete,
    }
}

async fn perform(client: &Client, key: u64, op: Op) -> Seen {
    let key = key.to_be_bytes();
    let failed = |error: ClientError| match error {
        ClientError::Rejected(Reject::RevisionMismatch { actual, .. }) => Seen::Mismatch(actual.0),
        ClientError::Unavailable(_) => Seen::NotDone,
        _ => Seen::Unknown,
    };
    match op {
        Op::Get => client.get(&key).await.map_or_else(failed, |found| {
            Seen::Got(found.map(|row| (u64::from_be_bytes(row.value[..].try_into().unwrap_or_default()), row.revision)))
        }),
        Op::Put { value, expected } => client
            .put(&key, &value.to_be_bytes(), expected.map(Revision))
            .await
            .map_or_else(failed, |revision| Seen::Put(revision.0)),
        Op::Delete => client.delete(&key, None).await.map_or_else(failed, Seen::Deleted),
    }
}

//! The life of a run: form a cluster, attack it under load, heal it, see that it recovers, stop it, check what was seen.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn::client::Client;
use cairn::io::{Io, Rng};
use cairn::proto::v1::{MemberRole, MemberStatus, StatusReply};
use cairn::sim::cluster::CLIENT_TIMEOUT;
use cairn::sim::history::Seen;
use cairn::sim::oracle::recovery::RECOVERY_MAX;
use cairn::sim::oracle::{exactly_once, linearizable, outcomes, revisions, watches};
use cairn::sim::run::Verdict;
use cairn::state::{format, task};
use futures_util::future::{join_all, select_all};

use super::attack::{Attacker, Notes};
use super::links::Links;
use super::member::{Member, Setting};
use super::plan::{MEMBERS, NODES, Plan, name};
use super::proxy::Proxy;
use super::report::Report;
use super::watch::{Watch, addresses};
use super::work::{self, Work};

/// How long all tasks together may take to end once nothing hinders them.
const TASKS_MAX: Duration = Duration::from_secs(180);
/// Pause between two looks at whether something has come about.
const LOOK: Duration = Duration::from_millis(100);

/// A cluster, who attacks it, and who uses it.
pub struct Run {
    plan: Plan,
    attacker: Attacker,
    work: Work,
    proxies: Vec<Arc<Proxy>>,
    began: Instant,
    /// All clients have ended, so the history has everything that they did.
    is_whole: Cell<bool>,
}

impl Run {
    /// Members and a worker at these addresses, whose files are put into `dir`. Nothing runs yet but the proxies.
    pub async fn new(
        (binary, before): (&Path, Option<&Path>),
        dir: &Path,
        listen: Vec<SocketAddr>,
        plan: Plan,
        rng: Rng,
    ) -> Result<Self, String> {
        let io: Io = cairn::os::client_io(None).map_err(|error| error.to_string())?;
        let (began, links) = (Instant::now(), Arc::<Links>::default());
        let setting = Setting { binary, before, dir, plan: &plan, links: &links };
        let (mut members, mut proxies) = (Vec::new(), Vec::new());
        for (place, listen) in listen.iter().enumerate() {
            let proxy = Proxy::start(place, *listen, links.clone()).await;
            let proxy = proxy.map_err(|error| format!("start a proxy: {error}"))?;
            members.push(Arc::new(Member::new(&setting, place, *listen, proxy.address)));
            proxies.push(proxy);
        }
        // A worker without state says nothing of the state, and clients need not know it.
        let watch = Watch::new(&io, &listen[..MEMBERS])?;
        let endpoints = addresses(&listen[..MEMBERS])?;
        let operators = [(); 2].map(|()| Client::new(io.clone(), &endpoints, CLIENT_TIMEOUT));
        let work = Work::new(io, endpoints, rng.clone(), dir, began)?;
        let attacker = Attacker { members, links, watch, operators, rng, notes: Arc::new(Notes::new(began)) };
        Ok(Self { plan, attacker, work, proxies, began, is_whole: Cell::new(false) })
    }

    /// Lives, and says how it ended.
    pub async fn live(&self) -> Verdict {
        let crashes = self.attacker.members.iter().map(|member| Box::pin(member.crashed()));
        let ended = tokio::select! {
            biased;
            (crash, ..) = select_all(crashes) => Err(Verdict::Crash(crash)),
            ended = self.phases() => ended,
            never = self.attacker.watch.run() => match never {},
            never = self.show_progress() => match never {},
        };
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        self.attacker.notes.add(format!("the end: {}", ended.as_ref().err().unwrap_or(&Verdict::Passed)));
        // What is wrong says more than that a member died of it, or that something took too long.
        match (self.judge(), ended) {
            (Verdict::Passed, ended) => ended.err().unwrap_or(Verdict::Passed),
            (wrong, _) => wrong,
        }
    }

    async fn phases(&self) -> Result<(), Verdict> {
        self.form().await?;
        self.attack().await?;
        self.heal().await?;
        self.stop().await
    }

    /// Starts the founder, lets the others join through its proxy, and waits until all members vote and the worker is known.
    async fn form(&self) -> Result<(), Verdict> {
        let Attacker { members, watch, notes, .. } = &self.attacker;
        notes.add("the cluster forms".into());
        for member in members {
            let origin = match member.place {
                0 => vec!["--bootstrap".to_string()],
                _ => vec!["--join".to_string(), self.proxies[0].address.to_string()],
            };
            member.start(&origin).map_err(Verdict::Crash)?;
        }
        let formed = async || {
            let statuses = watch.ask_all().await?;
            let votes =
                |row: &MemberStatus| row.member.as_ref().is_some_and(|member| member.role() == MemberRole::Voter);
            let full = |status: &StatusReply| {
                status.members.len() == NODES && status.members.iter().filter(|row| votes(row)).count() == MEMBERS
            };
            statuses.iter().all(full).then_some(())
        };
        self.within("the cluster forms", RECOVERY_MAX, formed).await
    }

    /// Runs the clients while the attacks of the plan happen, and waits for both.
    async fn attack(&self) -> Result<(), Verdict> {
        self.attacker.notes.add("the attack begins".into());
        let clients = self.work.start(&self.plan);
        self.attacker.run(&self.plan.attacks).await?;
        for client in join_all(clients).await {
            client.map_err(|error| Verdict::Crash(format!("a client died: {error}")))?;
        }
        self.is_whole.set(true);
        Ok(())
    }

    /// Everything is mended. Sees that the members serve, that all tasks end, and that all members come to the same state.
    async fn heal(&self) -> Result<(), Verdict> {
        self.attacker.notes.add("all is healed".into());
        let slow = |what: String| Verdict::Liveness(format!("{what}{}", self.attacker.watch.describe()));
        let served = self.work.serve(self.plan.load.keys, RECOVERY_MAX).await;
        served.map_err(|what| slow(format!("a healed cluster did not serve within {RECOVERY_MAX:?}: {what}")))?;
        self.upgrade().await?;
        let client = self.work.client(CLIENT_TIMEOUT);
        let ended = async || {
            let tasks = outcomes::all(&client).await.ok()?;
            tasks.iter().all(task::is_ended).then_some(tasks)
        };
        let tasks = self.within("all tasks end", TASKS_MAX, ended).await?;
        let ledger = self.work.ledger().map_err(Verdict::Crash)?;
        let violations = &self.attacker.watch.violations;
        let known = (self.plan.attacks.is_empty(), self.attacker.watch.newest_since());
        outcomes::check(&self.work.submissions, &tasks, known, &ledger, violations);
        let converged = async || {
            let statuses = self.attacker.watch.ask_all().await?;
            let state = |i: usize| (statuses[i].applied_index, statuses[i].digest);
            (1..MEMBERS).all(|i| state(i) == state(0)).then_some(())
        };
        self.within("a healed cluster converges", RECOVERY_MAX, converged).await
    }

    /// Those that are still older are upgraded, one after another; then the cluster comes to the newest format.
    async fn upgrade(&self) -> Result<(), Verdict> {
        for member in self.attacker.members.iter().filter(|member| member.is_old()) {
            self.attacker.notes.add(format!("{} is upgraded", name(member.place)));
            member.terminate().await.map_err(Verdict::Liveness)?;
            member.start(&[]).map_err(Verdict::Crash)?;
        }
        let newest = async || {
            let statuses = self.attacker.watch.ask_all().await?;
            statuses.iter().all(|status| status.format == format::NEWEST).then_some(())
        };
        self.within("the cluster comes to the newest format", RECOVERY_MAX, newest).await
    }

    /// Every member stops in order.
    async fn stop(&self) -> Result<(), Verdict> {
        self.attacker.notes.add("all are to stop".into());
        for (member, status) in
            join_all(self.attacker.members.iter().map(async |member| (member, member.terminate().await))).await
        {
            let status = status.map_err(Verdict::Liveness)?;
            if let Some(status) = status.filter(|status| !status.success()) {
                let how = member.describe(status);
                return Err(Verdict::Crash(format!("{} did not stop in order: {how}", name(member.place))));
            }
        }
        Ok(())
    }

    /// Checks the history, the tasks' ledger, and what was noticed on the way.
    fn judge(&self) -> Verdict {
        let violations = &self.attacker.watch.violations;
        let records = self.work.history.records();
        exactly_once::check(&records, violations);
        // What was read may come from a write that a run cut short did not see the end of.
        if self.is_whole.get() {
            linearizable::check(&records, violations);
            revisions::check(&records, &[], violations);
            watches::check(&self.work.watchers.logs(), &records, violations);
        }
        match self.work.ledger() {
            Ok(ledger) => work::judge(&ledger, violations),
            Err(why) => return Verdict::Crash(why),
        }
        match violations.all() {
            none if none.is_empty() => Verdict::Passed,
            all => Verdict::Safety(all),
        }
    }

    /// What it did.
    pub fn report(&self, seed: u64, verdict: Verdict) -> Report {
        let attempts = self.work.ledger().unwrap_or_default().counts();
        let (history, notes) = (self.work.history.records(), self.attacker.notes.text());
        let known = history.iter().filter(|record| !matches!(record.seen, Seen::Unknown | Seen::NotDone)).count();
        Report {
            seed,
            verdict,
            seconds: self.plan.length.as_secs(),
            elapsed: self.began.elapsed(),
            operations: (known, history.len()),
            leaders: self.attacker.watch.leaders(),
            attacks: self.plan.attacks.len(),
            attempts,
            history,
            notes,
        }
    }

    /// Waits until something is there.
    async fn within<T>(
        &self,
        what: &str,
        patience: Duration,
        there: impl AsyncFn() -> Option<T>,
    ) -> Result<T, Verdict> {
        let waiting = async {
            loop {
                if let Some(found) = there().await {
                    return found;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(patience, waiting).await.map_err(|_| {
            Verdict::Liveness(format!("{what}: not within {patience:?}{}", self.attacker.watch.describe()))
        })
    }

    /// A line on the terminal that is written again and again.
    async fn show_progress(&self) -> Infallible {
        if !std::io::stderr().is_terminal() {
            return std::future::pending().await;
        }
        loop {
            let leader = self.attacker.watch.leader().map_or("nobody".into(), name);
            let up: Vec<String> = self
                .attacker
                .members
                .iter()
                .filter(|member| member.is_up())
                .map(|member| (member.place + 1).to_string())
                .collect();
            eprint!(
                "\r{:.0} s, {} operations, {leader} leads, up: {} \x1b[K",
                self.began.elapsed().as_secs_f64(),
                self.work.history.count(),
                up.join(" ")
            );
            let _ = std::io::stderr().flush();
            tokio::time::sleep(5 * LOOK).await;
        }
    }
}

//! Does to the members what the plan says, and takes it back when its span is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn::client::Client;
use cairn::io::{Rng, RngStream};
use cairn::sim::fault::Place;
use cairn::sim::run::Verdict;
use futures_util::future::{join_all, try_join_all};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use super::links::Links;
use super::member::Member;
use super::plan::{Attack, How, MEMBERS, NODES, Planned, Way, Who, name};
use super::watch::Watch;

/// Longest pause of an operator between two wishes.
const OPERATOR_PAUSE: Duration = Duration::from_millis(500);

/// What was done, with its times, for whoever reads the logs.
pub struct Notes {
    began: std::time::Instant,
    lines: Mutex<Vec<String>>,
}

impl Notes {
    /// An empty list whose clock begins now.
    pub fn new(began: std::time::Instant) -> Self {
        Self { began, lines: Mutex::default() }
    }

    /// Adds a line.
    pub fn add(&self, what: String) {
        let line = format!("{:>9.3} {what}\n", self.began.elapsed().as_secs_f64());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// All of them.
    pub fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).concat()
    }
}

/// Who attacks.
pub struct Attacker {
    /// Whom: the members, and the worker.
    pub members: Vec<Arc<Member>>,
    /// What is between them.
    pub links: Arc<Links>,
    /// Who knows which of them leads.
    pub watch: Arc<Watch>,
    /// Move leadership.
    pub operators: [Client; 2],
    /// What operators want is drawn from it.
    pub rng: Rng,
    /// Told of everything.
    pub notes: Arc<Notes>,
}

impl Attacker {
    /// Inflicts all of the plan and waits until all of it is taken back.
    ///
    /// # Errors
    /// A member could not be started or stopped as it must.
    pub async fn run(&self, attacks: &[Planned]) -> Result<(), Verdict> {
        let began = Instant::now();
        let all = attacks.iter().enumerate().map(async |(number, planned)| {
            sleep_until(began + planned.at).await;
            self.inflict(planned.attack, number, began + planned.at + planned.span).await
        });
        try_join_all(all).await.map(drop)
    }

    fn place(&self, who: Who) -> Place {
        self.watch.leader().filter(|_| who.leader).unwrap_or(who.place)
    }

    async fn inflict(&self, attack: Attack, number: usize, until: Instant) -> Result<(), Verdict> {
        match attack {
            Attack::Kill(who) | Attack::Terminate(who) | Attack::Pause(who) => {
                let member = &self.members[self.place(who)];
                // What is down, or stands still, already: two attacks on one process would undo each other.
                let Ok(_held) = member.process.try_lock() else { return Ok(()) };
                self.on_process(attack, member, until).await
            }
            Attack::KillAll => {
                let mut held = Vec::new();
                for member in &self.members {
                    held.push(member.process.lock().await);
                }
                self.notes.add("all are killed".into());
                try_join_all(self.members.iter().map(|member| member.kill())).await.map_err(Verdict::Crash)?;
                sleep_until(until).await;
                self.members.iter().try_for_each(|member| self.start(member))
            }
            Attack::Isolate(who, way, how) => {
                let place = self.place(who);
                let others = (0..NODES).filter(|other| *other != place);
                let pairs = others.flat_map(|other| {
                    let from = (way != Way::To).then_some((place, other));
                    from.into_iter().chain((way != Way::From).then_some((other, place)))
                });
                self.cut(&pairs.collect::<Vec<_>>(), how, until).await;
                Ok(())
            }
            Attack::Cut(from, to, how) => {
                self.cut(&[(from, to)], how, until).await;
                Ok(())
            }
            Attack::Delay(from, to, by) => {
                self.links.slow(from, to, by);
                sleep_until(until).await;
                self.links.quicken(from, to, by);
                Ok(())
            }
            Attack::Transfers => {
                let operators = self.operators.iter().enumerate();
                join_all(operators.map(|(which, operator)| {
                    let rng = self.rng.stream(&format!("real/operator {which} of attack {number}"));
                    self.operate(operator, which == 0, rng, until)
                }))
                .await;
                Ok(())
            }
        }
    }

    async fn on_process(&self, attack: Attack, member: &Member, until: Instant) -> Result<(), Verdict> {
        let who = name(member.place);
        match attack {
            Attack::Pause(_) => {
                member.signal(Signal::SIGSTOP).map_err(Verdict::Crash)?;
                self.notes.add(format!("{who} is paused"));
                sleep_until(until).await;
                member.signal(Signal::SIGCONT).map_err(Verdict::Crash)?;
                self.notes.add(format!("{who} goes on"));
                return Ok(());
            }
            Attack::Terminate(_) => {
                self.notes.add(format!("{who} is terminated"));
                let status = member.terminate().await.map_err(Verdict::Liveness)?;
                // Without a majority nothing can be handed over, and it says that it could not stop in order.
                match status.filter(|status| !matches!(status.code(), Some(0 | 1))) {
                    Some(status) => {
                        let how = member.describe(status);
                        return Err(Verdict::Crash(format!("{who} was asked to stop: {how}")));
                    }
                    None => self.notes.add(format!("{who} has stopped: {status:?}")),
                }
            }
            _ => {
                self.notes.add(format!("{who} is killed"));
                member.kill().await.map_err(Verdict::Crash)?;
            }
        }
        sleep_until(until).await;
        self.start(member)
    }

    fn start(&self, member: &Member) -> Result<(), Verdict> {
        self.notes.add(format!("{} is started", name(member.place)));
        member.start(&[]).map_err(Verdict::Crash)
    }

    async fn cut(&self, pairs: &[(Place, Place)], how: How, until: Instant) {
        self.notes.add(format!("cut {pairs:?}, {how:?} (places from 0)"));
        pairs.iter().for_each(|(from, to)| self.links.cut(*from, *to, how));
        sleep_until(until).await;
        pairs.iter().for_each(|(from, to)| self.links.mend(*from, *to, how));
        self.notes.add(format!("mend {pairs:?}, {how:?}"));
    }

    /// Wants some member to lead, again and again: one that it names, or whichever is furthest.
    async fn operate(&self, operator: &Client, names: bool, mut rng: RngStream, until: Instant) {
        while Instant::now() < until {
            let named = self.watch.id(rng.range(0, MEMBERS as u64) as Place).filter(|_| names);
            let led = operator.transfer_leader(named).await;
            self.notes.add(format!("an operator wants {named:?} to lead: {led:?}"));
            sleep(Duration::from_millis(rng.range(1, OPERATOR_PAUSE.as_millis() as u64))).await;
        }
    }
}

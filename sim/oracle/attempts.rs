//! Oracle 8: at most one live attempt per task, and a worker never runs more than it has. Compared is what really ran: the
//! processes of all machines keep a ledger that no node can see (Gray & Cheriton, "Leases", 1989: a lease holder acts only
//! while nobody else may; Kleppmann's fencing tokens: later holders have greater ones).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use madsim::time::TimeHandle;

use super::Violations;
use crate::ids::{TaskId, Token};
use crate::proto::v1::Resources;
use crate::sim::network::MachineId;

const ONE_LIVE: &str = "one live attempt per task";
const TOKENS: &str = "tokens grow";
const CAPACITY: &str = "capacity";

/// What holds only as long as leases do: while clocks run evenly.
pub const BY_LEASE: [&str; 3] = [ONE_LIVE, TOKENS, CAPACITY];

/// What ran, and runs, on all machines.
#[derive(Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
    /// What it found.
    pub violations: Violations,
}

#[derive(Default)]
struct Inner {
    live: BTreeMap<TaskId, (Token, MachineId, Resources)>,
    newest: BTreeMap<TaskId, Token>,
    ended: BTreeMap<TaskId, Vec<(Token, Option<i32>)>>,
    /// Since when it is known that it is to end.
    stops: BTreeMap<TaskId, Duration>,
    /// How long something of it ran then.
    ran_on: BTreeMap<TaskId, Duration>,
    began: u64,
    cut_short: u64,
}

impl Ledger {
    /// An attempt begins to have effects on a machine that says that it has so much.
    pub fn begin(
        &self,
        task: TaskId,
        token: Token,
        (machine, has): (MachineId, &Resources),
        wants: Resources,
        again: bool,
    ) {
        let inner = &mut *self.inner.lock().unwrap();
        inner.began += 1;
        if again {
            self.violations.add("an attempt is started once", format!("attempt {token} began again on {machine}"));
        }
        if let Some((other, place, _)) = inner.live.get(&task) {
            let what = format!("attempt {token} of task {task} began on {machine} while {other} ran on {place}");
            self.violations.add(ONE_LIVE, what);
        }
        if inner.newest.get(&task).is_some_and(|newest| *newest >= token) {
            self.violations.add(TOKENS, format!("attempt {token} of task {task} began after a later one"));
        }
        inner.newest.insert(task, token);
        inner.live.insert(task, (token, machine, wants));
        let here = inner.live.values().filter(|(_, place, _)| *place == machine);
        let used = here.fold(Resources::default(), |sum, (_, _, wants)| Resources {
            cpu_milli: sum.cpu_milli + wants.cpu_milli,
            memory_bytes: sum.memory_bytes + wants.memory_bytes,
            disk_bytes: sum.disk_bytes + wants.disk_bytes,
        });
        let fits = used.cpu_milli <= has.cpu_milli
            && used.memory_bytes <= has.memory_bytes
            && used.disk_bytes <= has.disk_bytes;
        if !fits {
            self.violations.add(CAPACITY, format!("machine {machine} runs {used:?} at once"));
        }
    }

    /// It has no effects any more; `code` is its exit status if it ended by itself.
    pub fn end(&self, task: TaskId, token: Token, code: Option<i32>) {
        let inner = &mut *self.inner.lock().unwrap();
        if inner.live.get(&task).is_some_and(|(live, ..)| *live == token) {
            inner.live.remove(&task);
        }
        inner.cut_short += u64::from(code.is_none());
        if let Some(stop) = inner.stops.get(&task) {
            inner.ran_on.insert(task, TimeHandle::current().elapsed() - *stop);
        }
        inner.ended.entry(task).or_default().push((token, code));
    }

    /// Its client was told that what runs of it will be ended, and nothing more of it begins.
    pub fn stop(&self, task: TaskId) {
        self.inner.lock().unwrap().stops.insert(task, TimeHandle::current().elapsed());
    }

    /// How long the last attempt at the task ran after that.
    pub fn ran_on(&self, task: TaskId) -> Duration {
        self.inner.lock().unwrap().ran_on.get(&task).copied().unwrap_or_default()
    }

    /// Whether an attempt at the task ended by itself with this status.
    pub fn ended_with(&self, task: TaskId, code: i32) -> usize {
        let inner = self.inner.lock().unwrap();
        inner.ended.get(&task).map_or(0, |ended| ended.iter().filter(|(_, found)| *found == Some(code)).count())
    }

    /// What runs: task, attempt and machine.
    pub fn live(&self) -> Vec<(TaskId, Token, MachineId)> {
        let inner = self.inner.lock().unwrap();
        inner.live.iter().map(|(task, (token, machine, _))| (*task, *token, *machine)).collect()
    }

    /// How many attempts began, and how many of them were cut short.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap();
        (inner.began, inner.cut_short)
    }
}

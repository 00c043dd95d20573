//! Oracle 13: what grows has a bound, and what is counted is there (`src/limits.rs`; the counters of the state's head are
//! sums over its tables).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use prost::Message;

use super::Violations;
use crate::error::Fault;
use crate::limits::{ATTEMPTS_KEPT, SESSION_WINDOW_MAX};
use crate::node::machine::open_state;
use crate::proto::v1::{Resources, Task, Worker, WorkerStatus};
use crate::raft::log::Log;
use crate::raft::tail::Retention;
use crate::sim::world::Machine;
use crate::state::table::{ALL, Read, Table};
use crate::state::{format, task, worker};

/// How many times the retention the log may hold: four behind a snapshot on its way, and one that is being forgotten.
const RETENTIONS_MAX: u64 = 5;
/// Entries that may be there besides: what came since the log was last looked at.
const ENTRIES_SLACK: u64 = 1_000;

/// Looks at what a machine has on its disk at the end.
pub fn check(machine: &Machine, retention: Retention, keys_bytes_max: Option<u64>, violations: &Violations) {
    let checked = look(machine, retention, keys_bytes_max).unwrap_or_else(|fault| Some(fault.to_string()));
    if let Some(what) = checked {
        violations.add("bounds hold and counters count", format!("machine {}: {what}", machine.id));
    }
}

fn look(machine: &Machine, retention: Retention, keys_bytes_max: Option<u64>) -> Result<Option<String>, Fault> {
    let disk = machine.disk.boot();
    let mut log = Log::open(&*disk)?;
    let state = open_state(&disk, &log, format::NEWEST)?;
    let entries = log.recover()?.entries.len() as u64;
    let most = RETENTIONS_MAX * retention.entries + ENTRIES_SLACK;
    if entries > most {
        return Ok(Some(format!("the log holds {entries} entries, at most {most} are kept")));
    }
    let (head, rows) = state.reader().view()?;
    let count = |table| {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        rows.scan(table, ALL, &mut |key, _| {
            keys.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok::<_, Fault>(keys)
    };
    let mut keys_bytes = 0;
    rows.scan(Table::Versions, ALL, &mut |key, value| {
        keys_bytes += (key.len() + value.len()) as u64;
        Ok(ControlFlow::Continue(()))
    })?;
    if let Some(most) = keys_bytes_max.filter(|most| keys_bytes > *most) {
        return Ok(Some(format!("keys and their history take {keys_bytes} bytes; at most {most}")));
    }
    let mut replies: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for key in count(Table::Replies)? {
        *replies.entry(key[..8].to_vec()).or_default() += 1;
    }
    if let Some(most) = replies.values().max().filter(|most| **most > SESSION_WINDOW_MAX) {
        return Ok(Some(format!("a session keeps {most} replies, at most {SESSION_WINDOW_MAX} are kept")));
    }
    let mut tasks: Vec<Task> = Vec::new();
    rows.scan(Table::Tasks, ALL, &mut |_, row| {
        tasks.extend(Task::decode(row).ok());
        Ok(ControlFlow::Continue(()))
    })?;
    if let Some(task) = tasks.iter().find(|task| task.attempts.len() > ATTEMPTS_KEPT) {
        return Ok(Some(format!("task {} keeps {} attempts, at most {ATTEMPTS_KEPT}", task.id, task.attempts.len())));
    }
    let workers = worker::all(&rows)?;
    let live = workers.iter().filter(|worker| worker.status() != WorkerStatus::Offline).count();
    let counters = [
        ("sessions_live", head.sessions_live, count(Table::Sessions)?.len()),
        ("tasks_pending", head.tasks_pending, count(Table::Pending)?.len()),
        ("tasks_live", head.tasks_live, tasks.iter().filter(|task| !task::is_ended(task)).count()),
        ("workers_live", head.workers_live, live),
        ("alarms", head.alarms_no_space + head.alarms_corrupt, count(Table::Alarms)?.len()),
    ];
    if let Some((name, counted, there)) = counters.into_iter().find(|(_, counted, there)| *counted != *there as u64) {
        return Ok(Some(format!("{name} is {counted}, and {there} are there")));
    }
    Ok(workers.iter().find_map(|worker| over_reserved(worker, &tasks)))
}

/// What is reserved of a worker is what its tasks have.
fn over_reserved(worker: &Worker, tasks: &[Task]) -> Option<String> {
    let here = tasks.iter().filter(|task| task::current(task).is_some_and(|attempt| attempt.worker == worker.id));
    let has = here.map(task::wanted).fold(Resources::default(), |sum, wanted| Resources {
        cpu_milli: sum.cpu_milli + wanted.cpu_milli,
        memory_bytes: sum.memory_bytes + wanted.memory_bytes,
        disk_bytes: sum.disk_bytes + wanted.disk_bytes,
    });
    let reserved = worker.used.unwrap_or_default();
    (reserved != has).then(|| format!("of worker {} {reserved:?} is reserved, its tasks have {has:?}", worker.id))
}

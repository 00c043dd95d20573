//! Which task goes to which worker: a pure function of tasks, workers and cluster time, the same on every member.
//!
//! A task goes to the worker that is left with the most to spare: the one whose fullest dimension is then the least full.
//! Of equals the one with the lower id gets it. Tasks are looked at in the order given; one that fits nowhere does not
//! hold up those behind it.

use std::cmp::Ordering;
use std::fmt;

use crate::limits::ASSIGN_TASKS_MAX;
use crate::proto::v1::assign_tasks::Assignment;
use crate::proto::v1::exit::Reason;
use crate::proto::v1::{Attempt, Exit, Resources, Task, Worker, WorkerStatus};
use crate::state::task::wanted;
use crate::state::worker::{is_available, remaining};
use crate::time::ClusterTime;

/// What a worker may have too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    /// In thousandths of a processor.
    Cpu,
    /// In bytes.
    Memory,
    /// In bytes.
    Disk,
}

/// Why a worker cannot take a task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unfit {
    /// Its lease has ended.
    Offline,
    /// It takes nothing new.
    Draining,
    /// It does not have these features.
    Features(Vec<String>),
    /// It has less left than the task wants.
    Short {
        /// Of what: the first of several.
        dimension: Dimension,
        /// By how much.
        by: u64,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offline => write!(f, "offline"),
            Self::Draining => write!(f, "draining"),
            Self::Features(missing) => write!(f, "without {}", missing.join(", ")),
            Self::Short { dimension: Dimension::Cpu, by } => write!(f, "cpu short by {by}m"),
            Self::Short { dimension: Dimension::Memory, by } => write!(f, "memory short by {}", mebibytes(*by)),
            Self::Short { dimension: Dimension::Disk, by } => write!(f, "disk short by {}", mebibytes(*by)),
        }
    }
}

/// Whole mebibytes, rounded up.
fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", bytes.div_ceil(1 << 20))
}

fn dimensions(resources: &Resources) -> [(Dimension, u64); 3] {
    [
        (Dimension::Cpu, resources.cpu_milli),
        (Dimension::Memory, resources.memory_bytes),
        (Dimension::Disk, resources.disk_bytes),
    ]
}

/// Why `worker` cannot take `task` at `now`; `None` if it can.
pub fn unfit(task: &Task, worker: &Worker, now: ClusterTime) -> Option<Unfit> {
    match worker.status() {
        WorkerStatus::Draining => return Some(Unfit::Draining),
        _ if !is_available(worker, now) => return Some(Unfit::Offline),
        _ => {}
    }
    let features = task.spec.as_ref().map(|spec| &spec.features[..]).unwrap_or_default();
    let missing: Vec<String> = features.iter().filter(|name| !worker.features.contains(name)).cloned().collect();
    if !missing.is_empty() {
        return Some(Unfit::Features(missing));
    }
    let pairs = dimensions(&wanted(task)).into_iter().zip(dimensions(&remaining(worker)));
    let short = pairs.filter(|((_, wanted), (_, left))| wanted > left);
    short.map(|((dimension, wanted), (_, left))| Unfit::Short { dimension, by: wanted - left }).next()
}

/// How full the fullest dimension of a worker would be with the task: as a fraction, used and capacity.
fn fullness(task: &Task, worker: &Worker) -> (u64, u64) {
    let used = dimensions(&worker.used.unwrap_or_default());
    let capacity = dimensions(&worker.capacity.unwrap_or_default());
    let wanted = dimensions(&wanted(task));
    let shares = (0..used.len()).map(|i| (used[i].1.saturating_add(wanted[i].1), capacity[i].1));
    shares.filter(|(_, capacity)| *capacity > 0).max_by(compare).unwrap_or((0, 1))
}

/// How often an attempt at the task has ended on a worker that did not mean to leave: it may be the worker's fault.
fn ended_on(task: &Task, worker: &Worker) -> usize {
    let ended = |exit: &Exit| exit.reason() != Reason::Drained;
    let is_one = |attempt: &&Attempt| attempt.worker == worker.id && attempt.exit.as_ref().is_some_and(ended);
    task.attempts.iter().filter(is_one).count()
}

/// Compares fractions without rounding.
fn compare(a: &(u64, u64), b: &(u64, u64)) -> Ordering {
    (u128::from(a.0) * u128::from(b.1)).cmp(&(u128::from(b.0) * u128::from(a.1)))
}

/// Places `tasks` on `workers` as they are at `now`, at most [`ASSIGN_TASKS_MAX`] of them.
pub fn place(tasks: &[Task], workers: &[Worker], now: ClusterTime) -> Vec<Assignment> {
    let mut workers = workers.to_vec();
    let mut assignments = Vec::new();
    for task in tasks {
        let able = workers.iter_mut().filter(|worker| unfit(task, worker, now).is_none());
        let best = able.min_by(|a, b| {
            let by_ends = ended_on(task, a).cmp(&ended_on(task, b));
            by_ends.then_with(|| compare(&fullness(task, a), &fullness(task, b))).then(a.id.cmp(&b.id))
        });
        let Some(worker) = best else { continue };
        let (wanted, used) = (wanted(task), worker.used.get_or_insert_default());
        used.cpu_milli += wanted.cpu_milli;
        used.memory_bytes += wanted.memory_bytes;
        used.disk_bytes += wanted.disk_bytes;
        assignments.push(Assignment {
            task: task.id,
            worker: worker.id,
            epoch: worker.epoch,
            failures: task.failures,
            losses: task.losses,
        });
        if assignments.len() == ASSIGN_TASKS_MAX {
            break;
        }
    }
    assignments
}

/// Why no worker can take `task` at `now`, with how many workers each reason is true of; of shortages of one thing the
/// smallest is named. Empty if a worker can take it, or if there is none at all.
pub fn explain(task: &Task, workers: &[Worker], now: ClusterTime) -> Vec<(usize, Unfit)> {
    let mut reasons: Vec<(usize, Unfit)> = Vec::new();
    for worker in workers {
        let Some(unfit) = unfit(task, worker, now) else { return Vec::new() };
        let same = |other: &Unfit| match (other, &unfit) {
            (Unfit::Short { dimension: a, .. }, Unfit::Short { dimension: b, .. }) => a == b,
            (a, b) => a == b,
        };
        match reasons.iter_mut().find(|(_, other)| same(other)) {
            Some((count, other)) => {
                *count += 1;
                *other = unfit.min(other.clone());
            }
            None => reasons.push((1, unfit)),
        }
    }
    reasons.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    reasons
}

/// The same for people.
pub fn explain_text(task: &Task, workers: &[Worker], now: ClusterTime) -> String {
    if workers.is_empty() {
        return "there are no workers".into();
    }
    let reasons = explain(task, workers, now);
    let text = reasons.iter().map(|(count, reason)| match count {
        1 => format!("1 worker: {reason}"),
        count => format!("{count} workers: {reason}"),
    });
    text.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::TaskSpec;

    const MIB: u64 = 1 << 20;

    fn resources(cpu_milli: u64, mebibytes: u64) -> Resources {
        Resources { cpu_milli, memory_bytes: mebibytes * MIB, disk_bytes: 0 }
    }

    fn worker(id: u64, capacity: Resources) -> Worker {
        let features = vec!["linux".into()];
        Worker {
            id,
            capacity: Some(capacity),
            status: WorkerStatus::Online.into(),
            features,
            epoch: 1,
            ..Worker::default()
        }
    }

    fn task(id: u64, wanted: Resources) -> Task {
        Task { id, spec: Some(TaskSpec { resources: Some(wanted), ..TaskSpec::default() }), ..Task::default() }
    }

    fn placed(tasks: &[Task], workers: &[Worker]) -> Vec<(u64, u64)> {
        place(tasks, workers, ClusterTime(0)).iter().map(|a| (a.task, a.worker)).collect()
    }

    #[test]
    fn tasks_spread_and_ties_go_to_the_lower_id() {
        let workers = [worker(1, resources(1000, 100)), worker(2, resources(1000, 100))];
        let tasks: Vec<Task> = (1..=5).map(|id| task(id, resources(300, 10))).collect();
        assert_eq!(placed(&tasks, &workers), [(1, 1), (2, 2), (3, 1), (4, 2), (5, 1)]);
    }

    #[test]
    fn a_task_goes_where_it_has_ended_least_often() {
        // The first two seem to be the emptiest: whatever they are given ends at once.
        let workers: Vec<Worker> = (1..=3).map(|id| worker(id, resources(1000, 100))).collect();
        let mut task = task(1, resources(300, 10));
        let mut tried = Vec::new();
        for reason in [Reason::Lost, Reason::Exited, Reason::Drained, Reason::Lost] {
            let on = placed(std::slice::from_ref(&task), &workers)[0].1;
            tried.push(on);
            let exit = Some(Exit { reason: reason.into(), ..Exit::default() });
            task.attempts.push(Attempt { worker: on, exit, ..Attempt::default() });
        }
        assert_eq!(tried, [1, 2, 3, 3], "who leaves means no harm");
    }

    #[test]
    fn what_does_not_fit_does_not_hold_up_what_does() {
        let workers = [worker(1, resources(1000, 100))];
        let tasks = [task(1, resources(800, 10)), task(2, resources(300, 10)), task(3, resources(200, 90))];
        assert_eq!(placed(&tasks, &workers), [(1, 1), (3, 1)]);
    }

    #[test]
    fn reasons_are_counted_and_the_smallest_shortage_is_named() {
        let mut draining = worker(3, resources(4000, 4000));
        draining.set_status(WorkerStatus::Draining);
        let workers = [worker(1, resources(700, 4000)), worker(2, resources(500, 4000)), draining];
        let text = |task: &Task| explain_text(task, &workers, ClusterTime(0));
        assert_eq!(text(&task(1, resources(1000, 10))), "2 workers: cpu short by 300m; 1 worker: draining");
        assert_eq!(text(&task(1, resources(600, 10))), "", "one can take it");
        let mut picky = task(1, resources(1, 1));
        picky.spec.get_or_insert_default().features = vec!["gpu".into()];
        assert_eq!(text(&picky), "2 workers: without gpu; 1 worker: draining");
        assert_eq!(explain_text(&picky, &[], ClusterTime(0)), "there are no workers");
        let late = explain_text(&task(1, resources(1, 1)), &workers[..1], ClusterTime(60_000));
        assert_eq!(late, "1 worker: offline", "its lease has ended");
    }
}

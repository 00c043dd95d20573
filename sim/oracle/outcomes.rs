//! Oracle 9: after healing every admitted task ends, once, as its program ends, and its output can be had (the promise of
//! the README; exactly once per submission as in oracle 6).

use std::collections::BTreeMap;
use std::time::Duration;

use madsim::time::{TimeHandle, sleep};
use tonic::{Code, Status};

use super::Violations;
use super::attempts::Ledger;
use crate::client::{Client, ClientError};
use crate::ids::{NodeId, TaskId};
use crate::limits::{OUTPUTS_KEPT, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN, TASK_LOSSES_MAX, WORKER_LEASE};
use crate::proto::v1::{Attempt, OutputRequest, Task, TaskPhase, exit::Reason};
use crate::sim::launcher::program;
use crate::sim::tasks::{Heard, MARK, Submission, Submissions};
use crate::state::task;
use crate::time::ClusterTime;

/// How long it may take until a worker that nothing hinders knows that a task is to be stopped.
const STOP_MAX: Duration = Duration::from_secs(2);

/// How long all programs of the submissions run one after another, as on a worker with room for one, and with every retry.
pub fn work(submissions: &Submissions) -> Duration {
    let submissions = submissions.all();
    let of_one = |Submission { spec, .. }: &Submission| program(&spec.command).map(|it| it.runs * (spec.retries + 1));
    submissions.values().filter_map(of_one).sum()
}

/// Every task there is, once none is live any more; what is live still if that takes too long.
pub async fn all_ended(client: &Client, patience: Duration) -> Result<Vec<Task>, String> {
    let mut last = String::from("nobody answered");
    let time = TimeHandle::current();
    let deadline = time.now_instant() + patience;
    while time.now_instant() < deadline {
        match all(client).await {
            Ok(tasks) => match tasks.iter().find(|task| !task::is_ended(task)) {
                None => return Ok(tasks),
                Some(live) => last = format!("{live:?}"),
            },
            Err(error) => last = error.to_string(),
        }
        sleep(Duration::from_millis(500)).await;
    }
    Err(last)
}

/// Every task there is.
///
/// # Errors
/// See [`ClientError`].
pub async fn all(client: &Client) -> Result<Vec<Task>, ClientError> {
    let mut tasks = Vec::new();
    loop {
        let page = client.list_tasks(tasks.last().map_or(TaskId(0), |task: &Task| TaskId(task.id))).await?;
        tasks.extend(page.tasks);
        if !page.more {
            return Ok(tasks);
        }
    }
}

fn mark(task: &Task) -> Option<u64> {
    task.spec.as_ref()?.env.iter().find(|var| var.name == MARK)?.value.parse().ok()
}

/// What was taken exists once and ended as its program ends; what was not taken does not exist; what is unknown
/// exists at most once. Where nothing disturbed the run, no attempt was lost, and what was stopped ended. What was lost again has waited
/// if that was after `spaced_since`.
pub fn check(
    submissions: &Submissions,
    tasks: &[Task],
    (undisturbed, spaced_since): (bool, Option<ClusterTime>),
    ledger: &Ledger,
    violations: &Violations,
) {
    let submissions = submissions.all();
    let mut by_mark: BTreeMap<u64, Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        by_mark.entry(mark(task).unwrap_or(u64::MAX)).or_default().push(task);
    }
    for (mark, submission) in submissions.iter() {
        let found = by_mark.remove(mark).unwrap_or_default();
        let ids: Vec<u64> = found.iter().map(|task| task.id).collect();
        let fine = match submission.heard {
            Heard::Taken(id) => ids == [id.0],
            Heard::NotDone => ids.is_empty(),
            Heard::Unknown => ids.len() <= 1,
        };
        if !fine {
            let what = format!("submission {mark} was {:?} and is there as {ids:?}", submission.heard);
            violations.add("each submission is one task", what);
        }
        for task in found {
            if undisturbed && task.losses > 0 {
                violations.add("nothing is lost without a fault", format!("{task:?}"));
            }
            let ran_on = ledger.ran_on(TaskId(task.id));
            if undisturbed && ran_on > Duration::from_millis(submission.spec.kill_grace_ms) + STOP_MAX {
                violations.add("what is stopped ends", format!("it ran on for {ran_on:?}: {task:?}"));
            }
            if let Some(attempt) = task.attempts.iter().find(|attempt| was_stopped_as_lost(attempt)) {
                let what =
                    format!("attempt {} was ended as another's by the worker that had it: {task:?}", attempt.token);
                violations.add("what a worker has goes on", what);
            }
            if let Some(token) = too_early(task, has_failed, task.failures) {
                let what = format!("attempt {token} came before the pause after one that failed: {task:?}");
                violations.add("what has failed is tried again after a pause", what);
            }
            let is_spaced =
                |attempt: &Attempt| was_lost(attempt) && spaced_since.is_some_and(|since| attempt.ended_ms > since.0);
            // The first is made good at once.
            if let Some(token) = too_early(task, is_spaced, task.losses.saturating_sub(1)) {
                let what = format!("attempt {token} came before the pause after one that was lost again: {task:?}");
                violations.add("what was lost again is tried after a pause", what);
            }
            if let Some(why) = wrong_end(submission, task, ledger) {
                violations.add("a task ends as its program does", format!("{why}: {task:?}"));
            }
        }
    }
    if let Some(task) = by_mark.values().flatten().next() {
        violations.add("each submission is one task", format!("nobody has submitted {task:?}"));
    }
}

/// A worker ends what it no longer has, and then nobody asks it how that ended. (A power cut ends without a signal.)
fn was_stopped_as_lost(attempt: &Attempt) -> bool {
    attempt.exit.as_ref().is_some_and(|exit| exit.reason() == Reason::Lost && exit.signal.is_some())
}

fn has_failed(attempt: &Attempt) -> bool {
    attempt.exit.as_ref().is_some_and(|exit| match exit.reason() {
        Reason::Exited => exit.code != Some(0),
        Reason::TimedOut | Reason::NotStarted => true,
        Reason::Stopped | Reason::LeaseEnded | Reason::Lost | Reason::Drained | Reason::Unspecified => false,
    })
}

fn was_lost(attempt: &Attempt) -> bool {
    let of = |reason| matches!(reason, Reason::Stopped | Reason::LeaseEnded | Reason::Lost | Reason::Unspecified);
    attempt.exit.as_ref().is_some_and(|exit| of(exit.reason()))
}

/// An attempt that was given to a worker before the pause after the one before, which had ended `badly`, was over: twice as long after
/// each of so many.
fn too_early(task: &Task, badly: impl Fn(&Attempt) -> bool, mut times: u32) -> Option<u64> {
    for (back, pair) in task.attempts.windows(2).rev().enumerate() {
        // What ended by itself when it was to be stopped is not counted; no other comes after it.
        let is_counted = badly(&pair[1]) && (back > 0 || task.not_before_ms > pair[1].ended_ms);
        times = times.saturating_sub(u32::from(is_counted));
        let pause = RETRY_PAUSE_MIN.saturating_mul(1 << times.saturating_sub(1).min(16)).min(RETRY_PAUSE_MAX);
        if times > 0 && badly(&pair[0]) && pair[1].assigned_ms < pair[0].ended_ms + pause.as_millis() as u64 {
            return Some(pair[1].token);
        }
    }
    None
}

fn wrong_end(submission: &Submission, task: &Task, ledger: &Ledger) -> Option<&'static str> {
    let Submission { spec, stopped, .. } = submission;
    let code: i32 = spec.command[2].parse().expect("written by the workload");
    let ran = ledger.ended_with(TaskId(task.id), 0) > 0;
    match task.phase() {
        TaskPhase::Succeeded if code != 0 || !ran => Some("it succeeded and never did"),
        TaskPhase::Stopped if !stopped => Some("nobody wanted it stopped"),
        TaskPhase::Failed if task.failures != spec.retries + 1 => Some("it was given up too early or too late"),
        TaskPhase::Lost if task.losses <= TASK_LOSSES_MAX => Some("it was given up for lost too early"),
        TaskPhase::Succeeded | TaskPhase::Stopped | TaskPhase::Failed | TaskPhase::Lost => None,
        _ => Some("it has not ended"),
    }
}

/// The output of the last attempt of every task can be had from any member, if its worker, and what it kept, is not gone: soon, for
/// a member may have to catch up first.
pub async fn check_output(client: &Client, tasks: &[Task], gone: &[NodeId], violations: &Violations) {
    let time = TimeHandle::current();
    for task in tasks {
        let Some(attempt) = task.attempts.last() else { continue };
        let reason = attempt.exit.as_ref().map(crate::proto::v1::Exit::reason);
        let ran = attempt.started_ms > 0 && reason != Some(Reason::Lost);
        // Only of the last of a worker's attempts the output is kept.
        let is_later = |other: &&Attempt| other.worker == attempt.worker && other.token > attempt.token;
        let later = tasks.iter().flat_map(|task| &task.attempts).filter(is_later).count();
        if gone.contains(&NodeId(attempt.worker)) || !ran || later >= OUTPUTS_KEPT {
            continue;
        }
        let request = OutputRequest { task: task.id, token: attempt.token, offset: 0, follow: true };
        let expected = format!("attempt {} of task {}\n", attempt.token, task.id);
        let deadline = time.now_instant() + WORKER_LEASE * 2;
        let mut last = Err(ClientError::Unavailable("nobody answered".into()));
        while time.now_instant() < deadline {
            let left = deadline - time.now_instant();
            let Ok(read) = madsim::time::timeout(left, output(client, request)).await else { break };
            last = read;
            match last {
                Err(ClientError::Unavailable(_)) => sleep(Duration::from_millis(500)).await,
                _ => break,
            }
        }
        if last.as_ref() != Ok(&expected) {
            violations.add("output can be had", format!("{last:?} instead of {expected:?}: {task:?}"));
        }
    }
}

/// All of an attempt's output.
async fn output(client: &Client, request: OutputRequest) -> Result<String, ClientError> {
    let mut pieces = client.output(request).await?;
    let mut text = Vec::new();
    let broken = |status: Status| match status.code() {
        Code::NotFound => ClientError::Invalid(status.to_string()),
        _ => ClientError::Unavailable(status.to_string()),
    };
    while let Some(piece) = pieces.message().await.map_err(broken)? {
        text.extend(piece.records.iter().flat_map(|record| record.data.to_vec()));
        if piece.ended {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
    Err(ClientError::Unavailable("it was cut short".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::Exit;

    fn attempt(token: u64, assigned_ms: u64, ended_ms: u64, reason: Reason) -> Attempt {
        let exit = Some(Exit { reason: reason.into(), code: Some(1), ..Exit::default() });
        Attempt { token, assigned_ms, ended_ms, exit, ..Attempt::default() }
    }

    #[test]
    fn each_pause_after_a_failure_is_twice_as_long() {
        let (failed, drained) = (Reason::Exited, Reason::Drained);
        let of = |task: &Task| too_early(task, has_failed, task.failures);
        let task = |failures, not_before_ms, attempts| Task { failures, not_before_ms, attempts, ..Task::default() };
        let third = |assigned_ms| {
            let last = attempt(9, assigned_ms, assigned_ms + 5, failed);
            let all = vec![
                attempt(1, 0, 10, failed),
                attempt(2, 1_010, 1_020, drained),
                attempt(3, 1_020, 1_030, failed),
                last,
            ];
            task(3, assigned_ms + 4_005, all)
        };
        assert_eq!(of(&third(3_030)), None);
        assert_eq!(of(&third(3_029)), Some(9));
        let first = vec![attempt(1, 0, 10, failed), attempt(2, 1_009, 2_000, drained)];
        assert_eq!(of(&task(1, 1_010, first)), Some(2));
        // It ended by itself just before it was stopped, and does not count.
        let stopped = vec![attempt(1, 0, 10, drained), attempt(2, 20, 30, failed)];
        assert_eq!(of(&task(0, 0, stopped)), None);
        let later = vec![attempt(1, 0, 10, failed), attempt(2, 1_010, 1_020, failed)];
        assert_eq!(of(&task(1, 1_010, later)), None);
    }
    #[test]
    fn each_pause_after_a_loss_but_the_first_is_twice_as_long() {
        let (lost, drained) = (Reason::Lost, Reason::Drained);
        let of = |third: u64, fourth: u64| {
            let all = vec![
                attempt(1, 0, 10, lost),
                attempt(2, 10, 20, lost),
                attempt(3, third, third + 10, drained),
                attempt(4, third + 10, third + 20, lost),
                attempt(5, fourth, fourth + 10, drained),
            ];
            too_early(&Task { losses: 3, attempts: all, ..Task::default() }, was_lost, 2)
        };
        assert_eq!(of(1_020, 3_040), None);
        assert_eq!(of(1_019, 3_040), Some(3));
        assert_eq!(of(1_020, 3_039), Some(5));
    }
}

//! Tasks: what users want run, and what has become of it.
//!
//! ```text
//!   (submit) ──► pending ──(leader places it)──► assigned ──(worker)──► running
//!                  │ ▲                               │                     │
//!                  │ └──(failed, retries left; its worker was lost or drained)
//!                  │                                 └──────────┬──────────┘
//!                  └──(stop)──► stopped ◄──(stop wanted)────────┤
//!                                                               ├──► succeeded
//!                                                               ├──► failed
//!                                                               └──► lost
//! ```
//!
//! Each attempt has a token of its own, greater than all before. A report that names another token than the attempt under
//! way is refused and changes nothing.

use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use prost::Message;

use super::machine::Apply;
use super::table::{self, Read, Table, key_number, number_key, prefix_range};
use super::{format, worker};
use crate::error::{Fault, Reject};
use crate::ids::{NodeId, TaskId, Token};
use crate::limits::{
    ASSIGN_TASKS_MAX, ATTEMPTS_KEPT, EXIT_MESSAGE_BYTES_MAX, KILL_GRACE_MAX, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN,
    TASK_LOSSES_APART, TASK_LOSSES_MAX, TASK_NAME_BYTES_MAX, TASK_RETRIES_MAX, TASK_SPEC_BYTES_MAX, TASK_TIMEOUT_MAX,
    TASKS_ENDED_KEPT, TASKS_LIVE_MAX, TASKS_PAGE_MAX,
};
use crate::proto::v1::{self, Attempt, Exit, Task, TaskPhase, TaskSpec, exit::Reason};
use crate::time::ClusterTime;

/// Whether a task may go from one phase to another. `None` is before it was submitted.
pub fn is_legal(from: Option<TaskPhase>, to: TaskPhase) -> bool {
    use TaskPhase::{Assigned, Failed, Lost, Pending, Running, Stopped, Succeeded};
    matches!(
        (from, to),
        (None, Pending)
            | (Some(Pending), Assigned | Stopped)
            | (Some(Assigned), Running)
            | (Some(Assigned | Running), Pending | Succeeded | Failed | Stopped | Lost)
    )
}

/// Whether a task has ended for ever.
pub fn is_ended(task: &Task) -> bool {
    matches!(task.phase(), TaskPhase::Succeeded | TaskPhase::Failed | TaskPhase::Stopped | TaskPhase::Lost)
}

/// The attempt under way.
pub fn current(task: &Task) -> Option<&Attempt> {
    let under_way = matches!(task.phase(), TaskPhase::Assigned | TaskPhase::Running);
    task.attempts.last().filter(|_| under_way)
}

/// What a task wants reserved.
pub fn wanted(task: &Task) -> v1::Resources {
    task.spec.as_ref().and_then(|spec| spec.resources).unwrap_or_default()
}

/// Checks a specification's bounds without looking at the state.
///
/// # Errors
/// Which part is out of bounds.
pub fn check_spec(spec: Option<&TaskSpec>) -> Result<(), Reject> {
    let invalid = |field: &str, why: String| Err(Reject::Invalid { field: field.into(), why });
    let Some(spec) = spec else { return invalid("spec", "missing".into()) };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if spec.name.len() > TASK_NAME_BYTES_MAX || !spec.name.bytes().all(plain) || spec.name.starts_with(['-', '.']) {
        let rule =
            format!("at most {TASK_NAME_BYTES_MAX} letters, digits, or any of - _ . (and neither - nor . first)");
        return invalid("name", format!("{:?}; a name has {rule}", spec.name));
    }
    if !spec.name.is_empty() && spec.name.bytes().all(|byte| byte.is_ascii_digit()) {
        return invalid("name", format!("{:?}; a name of digits only would be taken for an id", spec.name));
    }
    if given_name_number(&spec.name).is_some() {
        return invalid("name", format!("{:?}; names of this form are given by the cluster", spec.name));
    }
    if spec.command.first().is_none_or(String::is_empty) {
        return invalid("command", "empty; it begins with the program to run".into());
    }
    if spec.command.iter().any(|word| word.contains('\0')) {
        return invalid("command", "a word with a zero byte".into());
    }
    let bad = |var: &&v1::EnvVar| var.name.is_empty() || var.name.contains(['=', '\0']) || var.value.contains('\0');
    if let Some(var) = spec.env.iter().find(bad) {
        return invalid(
            "env",
            format!("{:?}; a variable has a name without = and neither part has a zero byte", var.name),
        );
    }
    if spec.encoded_len() > TASK_SPEC_BYTES_MAX {
        return invalid("spec", format!("{} bytes; at most {TASK_SPEC_BYTES_MAX}", spec.encoded_len()));
    }
    if spec.retries > TASK_RETRIES_MAX {
        return invalid("retries", format!("{}; at most {TASK_RETRIES_MAX}", spec.retries));
    }
    let times =
        [("timeout_ms", spec.timeout_ms, TASK_TIMEOUT_MAX), ("kill_grace_ms", spec.kill_grace_ms, KILL_GRACE_MAX)];
    if let Some((field, value, max)) = times.into_iter().find(|(_, value, max)| u128::from(*value) > max.as_millis()) {
        return invalid(field, format!("{value} ms; at most {} ms", max.as_millis()));
    }
    worker::check_features(&spec.features)
}

/// Checks what is said of an attempt's end.
///
/// # Errors
/// It is out of bounds.
pub fn check_exit(exit: Option<&Exit>) -> Result<(), Reject> {
    match exit.map_or(0, |exit| exit.message.len()) {
        len if len > EXIT_MESSAGE_BYTES_MAX => Err(Reject::Invalid {
            field: "exit.message".into(),
            why: format!("{len} bytes; at most {EXIT_MESSAGE_BYTES_MAX}"),
        }),
        _ => Ok(()),
    }
}

fn given_name(id: TaskId) -> String {
    format!("task-{id}")
}

fn given_name_number(name: &str) -> Option<u64> {
    name.strip_prefix("task-")?.parse().ok()
}

/// A task, if it exists and is not forgotten.
///
/// # Errors
/// The database failed.
pub fn find(rows: &impl Read, id: TaskId) -> Result<Option<Task>, Fault> {
    table::find(rows, Table::Tasks, &number_key(id.0))
}

/// The latest task of a name.
///
/// # Errors
/// The database failed.
pub fn find_name(rows: &impl Read, name: &str) -> Result<Option<Task>, Fault> {
    match rows.get(Table::TaskNames, name.as_bytes())? {
        Some(id) => find(rows, TaskId(key_number(&id)?)),
        None => Ok(None),
    }
}

/// Tasks in the order of their ids, at most [`TASKS_PAGE_MAX`].
///
/// # Errors
/// The database failed.
pub fn list(rows: &impl Read, request: &v1::ListTasks) -> Result<v1::ListTasksReply, Fault> {
    let limit = match request.limit as usize {
        0 => TASKS_PAGE_MAX,
        limit => limit.min(TASKS_PAGE_MAX),
    };
    let mut reply = v1::ListTasksReply::default();
    let range = (Bound::Excluded(number_key(request.after).to_vec()), Bound::Unbounded);
    table::each(rows, Table::Tasks, range, |task| {
        if reply.tasks.len() == limit {
            reply.more = true;
            return Ok(ControlFlow::Break(()));
        }
        reply.tasks.push(task);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(reply)
}

/// The tasks that wait for a worker and whose pause is over, the oldest first.
///
/// # Errors
/// The database failed.
pub fn placeable(rows: &impl Read, now: ClusterTime) -> Result<Vec<Task>, Fault> {
    let mut tasks = Vec::new();
    rows.scan(Table::Pending, table::ALL, &mut |key, _| {
        let task = find(rows, TaskId(key_number(key)?))?.filter(|task| ClusterTime(task.not_before_ms) <= now);
        tasks.extend(task);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(tasks)
}

/// The tasks that a worker has, in the order of their ids.
///
/// # Errors
/// The database failed.
pub fn of_worker(rows: &impl Read, worker: NodeId) -> Result<Vec<Task>, Fault> {
    let mut tasks = Vec::new();
    rows.scan(Table::Assigned, prefix_range(&number_key(worker.0)), &mut |key, _| {
        let id = key.get(8..).ok_or_else(|| Fault::new("a short key of an assigned task"))?;
        tasks.extend(find(rows, TaskId(key_number(id)?))?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(tasks)
}

fn assigned_key(worker: NodeId, task: TaskId) -> Vec<u8> {
    [number_key(worker.0), number_key(task.0)].concat()
}

/// Writes a task that goes to another phase, and keeps the indexes and counts in step.
fn go(apply: &mut Apply<'_>, task: &mut Task, from: Option<TaskPhase>, to: TaskPhase) -> Result<(), Fault> {
    assert!(is_legal(from, to), "task {} cannot go from {from:?} to {to:?}", task.id);
    let id = number_key(task.id);
    task.set_phase(to);
    if from == Some(TaskPhase::Pending) {
        apply.rows.remove(Table::Pending, &id)?;
        apply.head.tasks_pending -= 1;
    }
    if to == TaskPhase::Pending {
        apply.rows.put(Table::Pending, &id, &[])?;
        apply.head.tasks_pending += 1;
    }
    if is_ended(task) {
        task.ended_ms = apply.head.cluster_time_ms;
        apply.head.tasks_live -= 1;
        apply.head.tasks_ended += 1;
        apply.rows.put(Table::Ended, &number_key(apply.head.tasks_ended), &id)?;
    }
    apply.rows.put(Table::Tasks, &id, &task.encode_to_vec())?;
    forget_ended(apply)
}

/// Forgets the tasks that ended first, as far as there are more than are kept.
fn forget_ended(apply: &mut Apply<'_>) -> Result<(), Fault> {
    while apply.head.tasks_ended - apply.head.tasks_forgotten > TASKS_ENDED_KEPT {
        apply.head.tasks_forgotten += 1;
        let number = number_key(apply.head.tasks_forgotten);
        let id = apply.rows.get(Table::Ended, &number)?.ok_or_else(|| Fault::new("an ended task is missing"))?;
        apply.rows.remove(Table::Ended, &number)?;
        let task = find(&apply.rows, TaskId(key_number(&id)?))?;
        apply.rows.remove(Table::Tasks, &id)?;
        let name = task.and_then(|task| task.spec).unwrap_or_default().name;
        if apply.rows.get(Table::TaskNames, name.as_bytes())?.is_some_and(|latest| latest == id) {
            apply.rows.remove(Table::TaskNames, name.as_bytes())?;
        }
    }
    Ok(())
}

pub(super) fn submit(
    apply: &mut Apply<'_>,
    request: &v1::SubmitTask,
) -> Result<Result<v1::SubmitTaskReply, Reject>, Fault> {
    if let Err(reject) = check_spec(request.spec.as_ref()) {
        return Ok(Err(reject));
    }
    let mut spec = request.spec.clone().unwrap_or_default();
    if let Some(live) = find_name(&apply.rows, &spec.name)?.filter(|task| !is_ended(task)) {
        if live.spec.as_ref() == Some(&spec) {
            return Ok(Ok(v1::SubmitTaskReply { id: live.id, name: spec.name, created: false }));
        }
        let text = format!(
            "the name {:?} belongs to task {}, which has another specification and has not ended; stop it, or choose \
             another name",
            spec.name, live.id
        );
        return Ok(Err(Reject::Conflict(text)));
    }
    if apply.head.tasks_live >= TASKS_LIVE_MAX {
        return Ok(Err(Reject::LimitReached { what: "tasks that have not ended".into(), limit: TASKS_LIVE_MAX }));
    }
    apply.head.tasks_submitted += 1;
    apply.head.tasks_live += 1;
    let id = TaskId(apply.head.tasks_submitted);
    if spec.name.is_empty() {
        spec.name = given_name(id);
    }
    apply.rows.put(Table::TaskNames, spec.name.as_bytes(), &number_key(id.0))?;
    let reply = v1::SubmitTaskReply { id: id.0, name: spec.name.clone(), created: true };
    let submitted_ms = apply.head.cluster_time_ms;
    let mut task = Task { id: id.0, spec: Some(spec), submitted_ms, ..Task::default() };
    go(apply, &mut task, None, TaskPhase::Pending)?;
    Ok(Ok(reply))
}

pub(super) fn stop(apply: &mut Apply<'_>, id: TaskId) -> Result<Result<v1::StopTaskReply, Reject>, Fault> {
    let Some(mut task) = find(&apply.rows, id)? else {
        return Ok(Err(Reject::NotFound(format!("task {id}"))));
    };
    if !is_ended(&task) {
        task.stop_wanted = true;
        match task.phase() {
            TaskPhase::Pending => go(apply, &mut task, Some(TaskPhase::Pending), TaskPhase::Stopped)?,
            _ => apply.rows.put(Table::Tasks, &number_key(id.0), &task.encode_to_vec())?,
        }
    }
    Ok(Ok(v1::StopTaskReply { phase: task.phase }))
}

pub(super) fn assign(apply: &mut Apply<'_>, request: &v1::AssignTasks) -> Result<u64, Fault> {
    let now = ClusterTime(apply.head.cluster_time_ms);
    let mut assigned = 0;
    for assignment in request.assignments.iter().take(ASSIGN_TASKS_MAX) {
        // The leader decided on what it saw; all of it is looked at again.
        let Some(mut task) = find(&apply.rows, TaskId(assignment.task))? else { continue };
        let as_assumed = task.phase() == TaskPhase::Pending
            && (task.failures, task.losses) == (assignment.failures, assignment.losses)
            && ClusterTime(task.not_before_ms) <= now;
        let id = NodeId(assignment.worker);
        let usable = worker::find(&apply.rows, id)?.is_some_and(|worker| {
            let spec = task.spec.as_ref();
            let features = spec.is_some_and(|spec| spec.features.iter().all(|name| worker.features.contains(name)));
            worker.epoch == assignment.epoch && worker::is_available(&worker, now) && features
        });
        if !as_assumed || !usable || !worker::reserve(apply, id, &wanted(&task))? {
            sometimes!(!as_assumed, "a task had changed before it was assigned");
            sometimes!(!usable, "a worker was gone before it was given a task");
            continue;
        }
        apply.head.attempts_assigned += 1;
        let token = apply.head.attempts_assigned;
        task.attempts.push(Attempt { token, worker: id.0, assigned_ms: now.0, ..Attempt::default() });
        let excess = task.attempts.len().saturating_sub(ATTEMPTS_KEPT);
        task.attempts.drain(..excess);
        apply.rows.put(Table::Assigned, &assigned_key(id, TaskId(task.id)), &[])?;
        go(apply, &mut task, Some(TaskPhase::Pending), TaskPhase::Assigned)?;
        assigned += 1;
    }
    Ok(assigned)
}

pub(super) fn report(
    apply: &mut Apply<'_>,
    report: &v1::ReportAttempt,
) -> Result<Result<v1::ReportAttemptReply, Reject>, Fault> {
    if let Err(reject) = check_exit(report.exit.as_ref()) {
        return Ok(Err(reject));
    }
    let token = Token(report.token);
    let task = find(&apply.rows, TaskId(report.task))?;
    let Some(mut task) = task.filter(|task| current(task).is_some_and(|attempt| attempt.token == token.0)) else {
        sometimes!("a report named an attempt that is over");
        return Ok(Err(Reject::Fenced(token)));
    };
    match &report.exit {
        Some(exit) => end_attempt(apply, &mut task, exit.clone())?,
        None if task.phase() == TaskPhase::Assigned => {
            let now = apply.head.cluster_time_ms;
            task.attempts.last_mut().expect("an assigned task has an attempt").started_ms = now;
            go(apply, &mut task, Some(TaskPhase::Assigned), TaskPhase::Running)?;
        }
        None => {}
    }
    Ok(Ok(v1::ReportAttemptReply { phase: task.phase }))
}

/// A worker's lease is over: what it ran, it runs no more.
pub(super) fn lose_worker(apply: &mut Apply<'_>, worker: NodeId) -> Result<(), Fault> {
    for mut task in of_worker(&apply.rows, worker)? {
        sometimes!("a lost worker had tasks");
        let message = format!("the lease of worker {worker} ended");
        let exit = Exit { reason: Reason::Lost.into(), message, ..Exit::default() };
        end_attempt(apply, &mut task, exit)?;
    }
    Ok(())
}

fn end_attempt(apply: &mut Apply<'_>, task: &mut Task, exit: Exit) -> Result<(), Fault> {
    let (from, now) = (task.phase(), apply.head.cluster_time_ms);
    let attempt = task.attempts.last_mut().ok_or_else(|| Fault::new("a task without an attempt has ended one"))?;
    let id = NodeId(attempt.worker);
    attempt.ended_ms = now;
    attempt.exit = Some(exit.clone());
    worker::release(apply, id, &wanted(task))?;
    apply.rows.remove(Table::Assigned, &assigned_key(id, TaskId(task.id)))?;
    let to = next_phase(task, &exit, ClusterTime(now), apply.has(format::BOUNDED));
    go(apply, task, Some(from), to)
}

/// How long a task waits after the so-manieth time that something befell it: twice as long each time.
fn pause_after(times: u32) -> Duration {
    RETRY_PAUSE_MIN.saturating_mul(1 << (times - 1).min(16)).min(RETRY_PAUSE_MAX)
}

/// What becomes of a task whose attempt has ended; counts why. `is_spaced`: what is lost again and again waits, too.
fn next_phase(task: &mut Task, exit: &Exit, now: ClusterTime, is_spaced: bool) -> TaskPhase {
    match exit.reason() {
        Reason::Exited if exit.code == Some(0) => TaskPhase::Succeeded,
        _ if task.stop_wanted => TaskPhase::Stopped,
        Reason::Exited | Reason::TimedOut | Reason::NotStarted => {
            task.failures += 1;
            task.not_before_ms = (now + pause_after(task.failures)).0;
            let retries = task.spec.as_ref().map_or(0, |spec| spec.retries);
            if task.failures <= retries { TaskPhase::Pending } else { TaskPhase::Failed }
        }
        // Somebody meant it, and it says nothing of the task.
        Reason::Drained => {
            sometimes!("a task was given back by a worker that left");
            TaskPhase::Pending
        }
        Reason::Stopped | Reason::LeaseEnded | Reason::Lost | Reason::Unspecified => {
            let started = task.attempts.last().map(|attempt| ClusterTime(attempt.started_ms));
            if is_spaced && started.is_some_and(|at| at.0 > 0 && now.since(at) >= TASK_LOSSES_APART) {
                task.losses = 0;
            }
            task.losses += 1;
            // The first goes to another worker at once. What loses attempts one after another may last for minutes.
            if is_spaced && task.losses > 1 {
                sometimes!("a task that was lost again had to wait");
                task.not_before_ms = (now + pause_after(task.losses - 1)).0;
            }
            if task.losses <= TASK_LOSSES_MAX { TaskPhase::Pending } else { TaskPhase::Lost }
        }
    }
}

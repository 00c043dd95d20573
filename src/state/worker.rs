//! The workers: what each has, what of it is reserved, and whether it may run anything.
//!
//! ```text
//!   (registers) ──► online ◄──────► draining        as an operator wants, or because it is going down
//!                    │  ▲               │
//!                    │  └─(registers)─┐ │
//!                    └─────► offline ◄┴─┘           its lease has ended, or it left with nothing running
//! ```
//!
//! A worker runs things under a lease. By the worker's clock it ends [`WORKER_LEASE`] after the *sending* of the last
//! renewal; by cluster time it is over [`WORKER_LEASE_MARGIN`] more after the *stamp* of that renewal, which is later. So
//! when its tasks are given to others, it has killed them.

use crate::error::{Fault, Reject};
use crate::ids::NodeId;
use crate::limits::{FEATURE_BYTES_MAX, FEATURES_MAX, WORKER_LEASE, WORKER_LEASE_MARGIN};
use crate::proto::v1::{self, Resources, Worker, WorkerStatus};
use crate::time::ClusterTime;

use super::machine::Apply;
use super::table::{self, Read, Table, number_key};
use super::{format, member, task};

/// Whether a worker may go from one status to another. `None` is before it registered.
pub fn is_legal(from: Option<WorkerStatus>, to: WorkerStatus) -> bool {
    use WorkerStatus::{Draining, Offline, Online};
    matches!(
        (from, to),
        (None | Some(Offline), Online | Draining) | (Some(Online | Draining), Online | Draining | Offline)
    )
}

/// The workers that there ever were, in the order of their ids.
///
/// # Errors
/// The database failed.
pub fn all(rows: &impl Read) -> Result<Vec<Worker>, Fault> {
    let mut workers = Vec::new();
    table::each(rows, Table::Workers, table::ALL, |worker| {
        workers.push(worker);
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    Ok(workers)
}

/// Those of them that were not removed from the cluster: the lease of one that was lasts on for a while, and it may run what it
/// has, but is to be given nothing more.
///
/// # Errors
/// The database failed.
pub fn of_members(rows: &impl Read) -> Result<Vec<Worker>, Fault> {
    let mut workers = Vec::new();
    for worker in all(rows)? {
        if member::is_live(rows, NodeId(worker.id))? {
            workers.push(worker);
        }
    }
    Ok(workers)
}

/// A worker, if it ever registered.
///
/// # Errors
/// The database failed.
pub fn find(rows: &impl Read, id: NodeId) -> Result<Option<Worker>, Fault> {
    table::find(rows, Table::Workers, &number_key(id.0))
}

fn since_renewal(worker: &Worker, now: ClusterTime) -> std::time::Duration {
    now.since(ClusterTime(worker.renewed_ms))
}

/// Whether a worker's lease is certainly over, by its own clock, too.
pub fn is_expired(worker: &Worker, now: ClusterTime) -> bool {
    worker.status() != WorkerStatus::Offline && since_renewal(worker, now) >= WORKER_LEASE + WORKER_LEASE_MARGIN
}

/// Whether a worker may be given something: it is online and its lease has not ended.
pub fn is_available(worker: &Worker, now: ClusterTime) -> bool {
    worker.status() == WorkerStatus::Online && since_renewal(worker, now) < WORKER_LEASE
}

/// What of a worker's resources is not reserved.
pub fn remaining(worker: &Worker) -> Resources {
    let (capacity, used) = (worker.capacity.unwrap_or_default(), worker.used.unwrap_or_default());
    Resources {
        cpu_milli: capacity.cpu_milli.saturating_sub(used.cpu_milli),
        memory_bytes: capacity.memory_bytes.saturating_sub(used.memory_bytes),
        disk_bytes: capacity.disk_bytes.saturating_sub(used.disk_bytes),
    }
}

/// Whether `wanted` is there in every dimension.
pub fn fits(wanted: &Resources, remaining: &Resources) -> bool {
    wanted.cpu_milli <= remaining.cpu_milli
        && wanted.memory_bytes <= remaining.memory_bytes
        && wanted.disk_bytes <= remaining.disk_bytes
}

/// Checks the names of features.
///
/// # Errors
/// Which is out of bounds.
pub fn check_features(features: &[String]) -> Result<(), Reject> {
    let invalid = |why| Err(Reject::Invalid { field: "features".into(), why });
    if features.len() > FEATURES_MAX {
        return invalid(format!("{}; at most {FEATURES_MAX}", features.len()));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=/".contains(&byte);
    match features.iter().find(|name| !(1..=FEATURE_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain)) {
        Some(name) => {
            invalid(format!("{name:?}; a feature has 1 to {FEATURE_BYTES_MAX} letters, digits, or any of - _ . = /"))
        }
        None => Ok(()),
    }
}

pub(super) fn write(apply: &mut Apply<'_>, worker: &Worker) -> Result<(), Fault> {
    apply.rows.put(Table::Workers, &number_key(worker.id), &prost::Message::encode_to_vec(worker))
}

fn go(apply: &mut Apply<'_>, worker: &mut Worker, from: Option<WorkerStatus>, to: WorkerStatus) -> Result<(), Fault> {
    assert!(is_legal(from, to), "worker {} cannot go from {from:?} to {to:?}", worker.id);
    let live = |status: Option<WorkerStatus>| u64::from(status.is_some_and(|status| status != WorkerStatus::Offline));
    apply.head.workers_live = apply.head.workers_live + live(Some(to)) - live(from);
    worker.set_status(to);
    write(apply, worker)
}

/// A worker's own request under its lease: refused when that has ended.
fn under_lease(apply: &Apply<'_>, id: NodeId, epoch: Option<u64>) -> Result<Result<Worker, Reject>, Fault> {
    let worker = find(&apply.rows, id)?;
    let live = |worker: &Worker| worker.status() != WorkerStatus::Offline && epoch.is_none_or(|e| e == worker.epoch);
    Ok(worker.filter(live).ok_or(Reject::WorkerOffline(id)))
}

fn lease(apply: &Apply<'_>, worker: &mut Worker) -> v1::WorkerLease {
    worker.renewed_ms = apply.head.cluster_time_ms;
    v1::WorkerLease { epoch: worker.epoch, lease_ms: WORKER_LEASE.as_millis() as u64 }
}

pub(super) fn register(
    apply: &mut Apply<'_>,
    request: &v1::RegisterWorker,
) -> Result<Result<v1::WorkerLease, Reject>, Fault> {
    if let Err(reject) = check_features(&request.features) {
        return Ok(Err(reject));
    }
    if !member::is_live(&apply.rows, NodeId(request.worker))? {
        return Ok(Err(Reject::NotFound(format!("member {}", request.worker))));
    }
    let found = find(&apply.rows, NodeId(request.worker))?;
    let from = found.as_ref().map(Worker::status);
    let mut worker = found.unwrap_or_else(|| Worker { id: request.worker, ..Worker::default() });
    if from.is_none_or(|status| status == WorkerStatus::Offline) {
        worker.epoch += 1;
    }
    note(apply, &mut worker, request);
    let lease = lease(apply, &mut worker);
    let to = if worker.drain_wanted { WorkerStatus::Draining } else { WorkerStatus::Online };
    go(apply, &mut worker, from, to)?;
    Ok(Ok(lease))
}

pub(super) fn renew(
    apply: &mut Apply<'_>,
    request: &v1::RenewWorker,
) -> Result<Result<v1::WorkerLease, Reject>, Fault> {
    match under_lease(apply, NodeId(request.worker), Some(request.epoch))? {
        Ok(mut worker) => {
            let lease = lease(apply, &mut worker);
            if let Some(registered) = request.registered.as_ref().filter(|_| apply.has(format::BOUNDED)) {
                sometimes!(worker.life != registered.life, "a worker put right what it had said in another life");
                note(apply, &mut worker, registered);
            }
            write(apply, &worker)?;
            Ok(Ok(lease))
        }
        Err(reject) => Ok(Err(reject)),
    }
}

/// Notes what a worker says of itself.
fn note(apply: &Apply<'_>, worker: &mut Worker, register: &v1::RegisterWorker) {
    worker.capacity = register.capacity;
    worker.features = register.features.clone();
    if apply.has(format::BOUNDED) {
        worker.life = register.life;
    }
}

pub(super) fn set_status(apply: &mut Apply<'_>, request: &v1::SetWorkerStatus) -> Result<Result<(), Reject>, Fault> {
    let id = NodeId(request.worker);
    let mut worker = match under_lease(apply, id, None)? {
        Ok(worker) => worker,
        Err(reject) => return Ok(Err(reject)),
    };
    if apply.has(format::BOUNDED) && !request.wish && ![0, request.life].contains(&worker.life) {
        sometimes!("what a worker had said in another life came late");
        return Ok(Err(Reject::Conflict(format!("worker {id} has begun another life since"))));
    }
    let (from, to) = (worker.status(), request.status());
    if !is_legal(Some(from), to) {
        let why = format!("{}: a worker is online, draining or offline", request.status);
        return Ok(Err(Reject::Invalid { field: "status".into(), why }));
    }
    if to == WorkerStatus::Offline && !task::of_worker(&apply.rows, id)?.is_empty() {
        return Ok(Err(Reject::Conflict(format!("worker {id} still has tasks; drain it first"))));
    }
    if request.wish {
        worker.drain_wanted = to == WorkerStatus::Draining;
    }
    go(apply, &mut worker, Some(from), to)?;
    Ok(Ok(()))
}

pub(super) fn expire(apply: &mut Apply<'_>, workers: &[u64]) -> Result<u64, Fault> {
    let now = ClusterTime(apply.head.cluster_time_ms);
    let mut expired = 0;
    for id in workers.iter().copied().map(NodeId) {
        // The leader decided on what it saw; the lease may have been renewed since.
        let Some(worker) = find(&apply.rows, id)?.filter(|worker| is_expired(worker, now)) else {
            sometimes!("a worker renewed its lease before its expiry was applied");
            continue;
        };
        task::lose_worker(apply, id)?;
        let from = worker.status();
        let mut worker = find(&apply.rows, id)?.unwrap_or(worker);
        go(apply, &mut worker, Some(from), WorkerStatus::Offline)?;
        expired += 1;
    }
    Ok(expired)
}

/// Reserves what a task wants; false if it is not there.
pub(super) fn reserve(apply: &mut Apply<'_>, id: NodeId, wanted: &Resources) -> Result<bool, Fault> {
    let Some(mut worker) = find(&apply.rows, id)? else { return Ok(false) };
    if !fits(wanted, &remaining(&worker)) {
        return Ok(false);
    }
    let used = worker.used.get_or_insert_default();
    used.cpu_milli += wanted.cpu_milli;
    used.memory_bytes += wanted.memory_bytes;
    used.disk_bytes += wanted.disk_bytes;
    write(apply, &worker)?;
    Ok(true)
}

/// Gives back what a task had reserved.
pub(super) fn release(apply: &mut Apply<'_>, id: NodeId, had: &Resources) -> Result<(), Fault> {
    let gone = || Fault::new(format!("worker {id} has less reserved than its tasks have"));
    let mut worker = find(&apply.rows, id)?.ok_or_else(gone)?;
    let used = worker.used.get_or_insert_default();
    used.cpu_milli = used.cpu_milli.checked_sub(had.cpu_milli).ok_or_else(gone)?;
    used.memory_bytes = used.memory_bytes.checked_sub(had.memory_bytes).ok_or_else(gone)?;
    used.disk_bytes = used.disk_bytes.checked_sub(had.disk_bytes).ok_or_else(gone)?;
    write(apply, &worker)
}

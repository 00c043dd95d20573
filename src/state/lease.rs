//! Leases on keys, as etcd has them: keys that are set under a lease are removed when it ends (etcd's documentation, "Lease
//! API"; Gray & Cheriton, "Leases", 1989).
//!
//! ```text
//!   grant ──► live ──(its end has come, proposed by the leader, checked again at apply)──► over: lease and keys are gone
//!              │  ▲
//!              │  └─ keep alive: it lasts its whole time again
//!              └────(revoke)─────────────────────────────────────────────────────────────► revoked: the same
//! ```
//!
//! A lease ends by cluster time, which stands still while nobody leads, and not before the term is [`LEASE_GRACE`] old, so that
//! who keeps it alive can find the new leader. What is left of it is in the state: no change of leaders begins it anew.

use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use prost::Message;

use super::kv::{drop_leased, header};
use super::machine::Apply;
use super::table::{ALL, Read, Table, View, find as find_row, key_number, number_key};
use crate::error::{Fault, KvReject, Reject};
use crate::ids::LeaseId;
use crate::limits::{EXPIRE_LEASES_MAX, LEASE_GRACE, LEASE_TTL_MAX, LEASE_TTL_MIN, LEASES_MAX};
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::proto::v1::{self, LeaseRow};
use crate::time::ClusterTime;

fn key(lease: LeaseId) -> [u8; 8] {
    number_key(lease.0.cast_unsigned())
}

/// The key among the ends: in the order of time.
fn end_key(end_ms: u64, lease: LeaseId) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number_key(end_ms));
    bytes[8..].copy_from_slice(&key(lease));
    bytes
}

fn of_end_key(bytes: &[u8]) -> Result<LeaseId, Fault> {
    let (_, lease) = bytes.split_at_checked(8).unwrap_or_default();
    Ok(LeaseId(key_number(lease)?.cast_signed()))
}

/// A lease, if there is such a one.
///
/// # Errors
/// The database failed.
pub fn find(rows: &impl Read, lease: LeaseId) -> Result<Option<LeaseRow>, Fault> {
    find_row(rows, Table::Leases, &key(lease))
}

/// When a lease is over.
fn over(row: &LeaseRow, head: &v1::Head) -> ClusterTime {
    let grace = LEASE_GRACE.min(Duration::from_secs(row.ttl_s));
    ClusterTime(row.end_ms).max(ClusterTime(head.term_began_ms) + grace)
}

/// Has a lease last its whole time from now on.
fn extend(apply: &mut Apply<'_>, lease: LeaseId, before: Option<&LeaseRow>, ttl_s: u64) -> Result<(), Fault> {
    let end = ClusterTime(apply.head.cluster_time_ms) + Duration::from_secs(ttl_s);
    if let Some(before) = before {
        apply.rows.remove(Table::LeaseEnds, &end_key(before.end_ms, lease))?;
    }
    apply.rows.put(Table::LeaseEnds, &end_key(end.0, lease), &[])?;
    apply.rows.put(Table::Leases, &key(lease), &LeaseRow { ttl_s, end_ms: end.0 }.encode_to_vec())
}

/// Checks a grant without the state.
///
/// # Errors
/// The lease is to last too long.
pub fn check_grant(grant: &LeaseGrantRequest) -> Result<(), KvReject> {
    match u64::try_from(grant.ttl) {
        Ok(ttl) if ttl > LEASE_TTL_MAX.as_secs() => Err(KvReject::TtlTooLarge(grant.ttl)),
        _ => Ok(()),
    }
}

pub(super) fn grant(
    apply: &mut Apply<'_>,
    grant: &LeaseGrantRequest,
) -> Result<Result<LeaseGrantResponse, Reject>, Fault> {
    if let Err(reject) = check_grant(grant) {
        return Ok(Err(reject.into()));
    }
    let lease = LeaseId(grant.id);
    // Whoever asked for any number was given one before it was proposed.
    if lease == LeaseId(0) {
        return Ok(Err(KvReject::LeaseNotFound(lease).into()));
    }
    if find(&apply.rows, lease)?.is_some() {
        return Ok(Err(KvReject::LeaseExists(lease).into()));
    }
    if apply.head.leases_live >= LEASES_MAX {
        return Ok(Err(Reject::LimitReached { what: "leases".into(), limit: LEASES_MAX }));
    }
    let ttl = u64::try_from(grant.ttl).unwrap_or_default().max(LEASE_TTL_MIN.as_secs());
    extend(apply, lease, None, ttl)?;
    apply.head.leases_live += 1;
    let header = header(apply.head.revision);
    Ok(Ok(LeaseGrantResponse { header, id: lease.0, ttl: ttl.cast_signed(), ..LeaseGrantResponse::default() }))
}

pub(super) fn revoke(
    apply: &mut Apply<'_>,
    revoke: &LeaseRevokeRequest,
) -> Result<Result<LeaseRevokeResponse, Reject>, Fault> {
    let lease = LeaseId(revoke.id);
    let Some(row) = find(&apply.rows, lease)? else { return Ok(Err(KvReject::LeaseNotFound(lease).into())) };
    end(apply, lease, &row)?;
    Ok(Ok(LeaseRevokeResponse { header: header(apply.head.revision) }))
}

/// A lease that is not there is answered as one with no time left, as etcd does.
pub(super) fn keep_alive(apply: &mut Apply<'_>, keep: &LeaseKeepAliveRequest) -> Result<LeaseKeepAliveResponse, Fault> {
    let lease = LeaseId(keep.id);
    let row = find(&apply.rows, lease)?;
    if let Some(row) = &row {
        extend(apply, lease, Some(row), row.ttl_s)?;
    }
    let ttl = row.map_or(0, |row| row.ttl_s.cast_signed());
    Ok(LeaseKeepAliveResponse { header: header(apply.head.revision), id: keep.id, ttl })
}

/// Ends those of these leases that are over, each at a revision of its own. Says which.
pub(super) fn expire(apply: &mut Apply<'_>, leases: &[i64]) -> Result<Vec<i64>, Fault> {
    let mut expired = Vec::new();
    for lease in leases.iter().copied().map(LeaseId) {
        // The leader decided on what it saw; the lease may have been kept alive since.
        match find(&apply.rows, lease)? {
            Some(row) if over(&row, &apply.head).0 <= apply.head.cluster_time_ms => {
                end(apply, lease, &row)?;
                expired.push(lease.0);
            }
            _ => sometimes!("a lease on keys was kept alive, or revoked, before its expiry was applied"),
        }
    }
    Ok(expired)
}

fn end(apply: &mut Apply<'_>, lease: LeaseId, row: &LeaseRow) -> Result<(), Fault> {
    drop_leased(apply, lease)?;
    apply.rows.remove(Table::LeaseEnds, &end_key(row.end_ms, lease))?;
    apply.rows.remove(Table::Leases, &key(lease))?;
    apply.head.leases_live -= 1;
    Ok(())
}

/// Leases that are over at `now`, at most [`EXPIRE_LEASES_MAX`].
///
/// # Errors
/// The database failed.
pub fn ended(head: &v1::Head, rows: &impl Read, now: ClusterTime) -> Result<Vec<LeaseId>, Fault> {
    let until = (Bound::Unbounded, Bound::Excluded(number_key(now.0.saturating_add(1)).to_vec()));
    let mut ended = Vec::new();
    rows.scan(Table::LeaseEnds, until, &mut |end, _| {
        let lease = of_end_key(end)?;
        let row = find(rows, lease)?;
        let row = row.ok_or_else(|| Fault::new(format!("lease {lease} has an end and is not there")))?;
        if over(&row, head) <= now {
            ended.push(lease);
        } else {
            sometimes!("a lease on keys outlived its end because the term is young");
        }
        Ok(if ended.len() < EXPIRE_LEASES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(ended)
}

/// What is left of a lease at `now`, and its keys if they are asked for.
///
/// # Errors
/// The database failed.
pub fn time_to_live(
    head: &v1::Head,
    rows: &View,
    asked: &LeaseTimeToLiveRequest,
    now: ClusterTime,
) -> Result<LeaseTimeToLiveResponse, Fault> {
    let header = header(head.revision);
    let Some(row) = find(rows, LeaseId(asked.id))? else {
        return Ok(LeaseTimeToLiveResponse { header, id: asked.id, ttl: -1, ..LeaseTimeToLiveResponse::default() });
    };
    let left = over(&row, head).since(now).as_secs();
    let keys = || {
        let index = rows.index().read().expect("no code panics while it holds the index");
        index.leased(LeaseId(asked.id)).cloned().collect()
    };
    Ok(LeaseTimeToLiveResponse {
        header,
        id: asked.id,
        ttl: left.cast_signed(),
        granted_ttl: row.ttl_s.cast_signed(),
        keys: if asked.keys { keys() } else { Vec::new() },
    })
}

/// All leases, in the order in which they end.
///
/// # Errors
/// The database failed.
pub fn all(head: &v1::Head, rows: &impl Read) -> Result<LeaseLeasesResponse, Fault> {
    let mut leases = Vec::new();
    rows.scan(Table::LeaseEnds, ALL, &mut |end, _| {
        leases.push(LeaseStatus { id: of_end_key(end)?.0 });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(LeaseLeasesResponse { header: header(head.revision), leases })
}

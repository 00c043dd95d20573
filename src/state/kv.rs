//! The key-value store: plain keys with one value each. Every change gives the store its next revision, which is
//! also the changed key's.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use prost::Message;

use super::machine::Apply;
use super::table::{KeyRange, Read, Table, prefix_range};
use crate::error::{Context, Fault, Reject};
use crate::ids::Revision;
use crate::limits::{KEY_BYTES_MAX, SCAN_BYTES_MAX, SCAN_ROWS_MAX, VALUE_BYTES_MAX};
use crate::proto::v1;

fn check_key(key: &[u8]) -> Result<(), Reject> {
    let invalid = |why| Err(Reject::Invalid { field: "key".into(), why });
    match key.len() {
        0 => invalid("empty; a key has at least 1 byte".into()),
        len if len > KEY_BYTES_MAX => invalid(format!("{len} bytes; a key has at most {KEY_BYTES_MAX}")),
        _ => Ok(()),
    }
}

/// Checks a put's bounds without looking at the state: the API before it proposes, and apply again.
///
/// # Errors
/// Which part is out of bounds.
pub fn check_put(put: &v1::Put) -> Result<(), Reject> {
    check_key(&put.key)?;
    match put.value.len() {
        len if len > VALUE_BYTES_MAX => Err(Reject::Invalid {
            field: "value".into(),
            why: format!("{len} bytes; a value has at most {VALUE_BYTES_MAX}"),
        }),
        _ => Ok(()),
    }
}

/// Checks a delete's bounds.
///
/// # Errors
/// Which part is out of bounds.
pub fn check_delete(delete: &v1::Delete) -> Result<(), Reject> {
    check_key(&delete.key)
}

fn read(rows: &impl Read, key: &[u8]) -> Result<Option<v1::KvRow>, Fault> {
    let row = rows.get(Table::Kv, key)?;
    row.map(|row| v1::KvRow::decode(&*row).context(|| format!("decode the row of the key {key:?}"))).transpose()
}

fn check_expected(expected: Option<u64>, row: Option<&v1::KvRow>) -> Result<(), Reject> {
    let actual = Revision(row.map_or(0, |row| row.revision));
    match expected.map(Revision) {
        Some(expected) if expected != actual => Err(Reject::RevisionMismatch { expected, actual }),
        _ => Ok(()),
    }
}

pub(super) fn put(apply: &mut Apply<'_>, put: &v1::Put) -> Result<Result<v1::PutReply, Reject>, Fault> {
    let before = read(&apply.rows, &put.key)?;
    if let Err(reject) = check_put(put).and_then(|()| check_expected(put.expected_revision, before.as_ref())) {
        return Ok(Err(reject));
    }
    apply.head.revision += 1;
    let revision = apply.head.revision;
    let row = v1::KvRow { value: put.value.clone(), revision };
    apply.rows.put(Table::Kv, &put.key, &row.encode_to_vec())?;
    Ok(Ok(v1::PutReply { revision }))
}

pub(super) fn delete(apply: &mut Apply<'_>, delete: &v1::Delete) -> Result<Result<v1::DeleteReply, Reject>, Fault> {
    let before = read(&apply.rows, &delete.key)?;
    if let Err(reject) = check_delete(delete).and_then(|()| check_expected(delete.expected_revision, before.as_ref())) {
        return Ok(Err(reject));
    }
    let existed = apply.rows.remove(Table::Kv, &delete.key)?;
    apply.head.revision += u64::from(existed);
    Ok(Ok(v1::DeleteReply { revision: apply.head.revision, existed }))
}

/// One key.
///
/// # Errors
/// The database failed.
pub fn get(rows: &impl Read, get: &v1::Get) -> Result<v1::GetReply, Fault> {
    let row = read(rows, &get.key)?;
    let found = row.map(|row| v1::KeyValue { key: get.key.clone(), value: row.value, revision: row.revision });
    Ok(v1::GetReply { found })
}

/// A page of keys, at most [`SCAN_ROWS_MAX`] and about [`SCAN_BYTES_MAX`].
///
/// # Errors
/// The database failed.
pub fn scan(rows: &impl Read, scan: &v1::Scan) -> Result<v1::ScanReply, Fault> {
    let (mut start, end): KeyRange = prefix_range(&scan.prefix);
    if let Some(after) = &scan.after
        && after.as_ref() >= scan.prefix.as_ref()
    {
        start = Bound::Excluded(after.to_vec());
    }
    if let (Bound::Excluded(start), Bound::Excluded(end)) = (&start, &end)
        && start >= end
    {
        return Ok(v1::ScanReply::default());
    }
    let limit = match scan.limit as usize {
        0 => SCAN_ROWS_MAX,
        limit => limit.min(SCAN_ROWS_MAX),
    };
    let mut reply = v1::ScanReply::default();
    let mut bytes = 0;
    rows.scan(Table::Kv, (start, end), &mut |key, value| {
        if reply.rows.len() == limit || bytes >= SCAN_BYTES_MAX {
            reply.more = true;
            return Ok(ControlFlow::Break(()));
        }
        bytes += key.len() + value.len();
        let row = v1::KvRow::decode(value).context(|| format!("decode the row of the key {key:?}"))?;
        let key = Bytes::copy_from_slice(key);
        reply.rows.push(v1::KeyValue { key, value: row.value, revision: row.revision });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(reply)
}

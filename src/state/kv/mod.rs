//! The key-value store: keys with versions, as etcd has them (etcd's documentation, "Data model").
//!
//! The store has one revision, which grows by one with every transaction that changes anything; what one transaction
//! changes is numbered within it. Each change is a row of its own, keyed by revision and number and never written again,
//! so that rows are appended. Which rows a key has is known to an index in memory, built from the rows when the state is
//! opened. A past revision can be read until it is compacted.
//!
//! ```text
//!   compact(R): revisions before R cannot be read from here on; what they alone could see is swept away, a bounded
//!               number of rows with each command that the leader proposes for it
//! ```

mod check;
mod index;
mod read;
mod write;

pub use check::{check_delete_range, check_put, check_range, check_txn, only_reads, puts};
pub use index::KeyIndex;
pub use read::{Change, NoAnswer, Store};
pub use write::is_sweeping;
pub(super) use write::{compact, delete_range, drop_leased, put, sweep, txn};

use std::ops::{Bound, RangeBounds};

use bytes::Bytes;

use super::table::prefix_range;

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys that a request means, as etcd says it: without an end the key alone; an end of one zero byte means that there
/// is none; else up to the end, without it. `None`: no key lies between.
pub(super) fn bounds<'a>(key: &'a [u8], range_end: &'a [u8]) -> Option<Bounds<'a>> {
    match range_end {
        [] => Some((Bound::Included(key), Bound::Included(key))),
        [0] => Some((Bound::Included(key), Bound::Unbounded)),
        end if end > key => Some((Bound::Included(key), Bound::Excluded(end))),
        _ => None,
    }
}

/// The end of the range of all keys that begin with a prefix.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix_range(prefix).1 {
        Bound::Excluded(end) => end.into(),
        _ => Bytes::from_static(&[0]),
    }
}

/// Whether a key is among those that a request means.
pub fn is_within(key: &[u8], start: &[u8], range_end: &[u8]) -> bool {
    bounds(start, range_end).is_some_and(|range| RangeBounds::<[u8]>::contains(&range, key))
}

/// A number of ours as etcd's clients see it.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("counters of the state stay far below 2^63")
}

/// The header of an answer: the member that gives it to a client adds who it is.
pub(super) fn header(revision: u64) -> Option<crate::proto::etcdserverpb::ResponseHeader> {
    Some(crate::proto::etcdserverpb::ResponseHeader { revision: signed(revision), ..Default::default() })
}

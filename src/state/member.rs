//! The members of the cluster, as the configuration entries of the log leave them.
//!
//! ```text
//!            ┌─► expected ────────┐       (an operator: an id for a node that is yet to join from an address)
//!            │      │ (joins)     │
//!            │      ▼             │
//!   (joins) ─┼─► learner ──(caught up; a standby also promoted by an operator)──► voter
//!            │      └────────┬────┴──────────────────────────────────────────────┘
//!            │               ▼
//!            │            removed         for ever: an id is never given again
//!            │               ▲
//!            └─► worker ─────┘            runs tasks, and is in no configuration of the log
//! ```
//!
//! Until it is removed, a member may come to be reached at another address. Workers are members so that there is one
//! counter of ids and one way in, out and elsewhere; what concerns the log concerns [servers](is_server) alone.

use std::ops::{Bound, ControlFlow};

use prost::Message;

use super::machine::Apply;
use super::table::{Read, Table};
use crate::error::{Context, Fault};
use crate::ids::NodeId;
use crate::proto::v1::{self, MemberRole};

fn key(id: NodeId) -> [u8; 8] {
    id.0.to_be_bytes()
}

/// Whether a member may go from one role to another. `None` is before it joined.
pub fn is_legal(from: Option<MemberRole>, to: MemberRole) -> bool {
    use MemberRole::{Expected, Learner, Removed, Voter, Worker};
    matches!(
        (from, to),
        (None, Expected | Learner | Voter | Worker)
            | (Some(Expected), Expected | Learner | Removed)
            | (Some(Learner), Learner | Voter | Removed)
            | (Some(Voter), Voter | Removed)
            | (Some(Worker), Worker | Removed)
    )
}

/// Whether a member keeps the state: it votes, or may come to.
pub fn is_server(member: &v1::Member) -> bool {
    matches!(member.role(), MemberRole::Learner | MemberRole::Voter)
}

/// Carries out a configuration entry. What may not happen was refused before it was proposed, and only one change is
/// under way at a time, so an illegal one is a fault.
pub(super) fn change(apply: &mut Apply<'_>, change: &v1::MemberChange) -> Result<(), Fault> {
    for member in &change.members {
        let id = NodeId(member.id);
        let before = apply.rows.get(Table::Members, &key(id))?;
        let before = before.map(|row| v1::Member::decode(&*row).context(|| format!("decode the member {id}")));
        let before = before.transpose()?.map(|row| row.role());
        if !is_legal(before, member.role()) {
            return Err(Fault::new(format!("member {id} cannot go from {before:?} to {:?}", member.role())));
        }
        apply.head.members_added = apply.head.members_added.max(id.0);
        apply.rows.put(Table::Members, &key(id), &member.encode_to_vec())?;
    }
    Ok(())
}

/// Whether there is such a member, and it was not removed.
pub(super) fn is_live(rows: &impl Read, id: NodeId) -> Result<bool, Fault> {
    Ok(find(rows, id)?.is_some_and(|member| member.role() != MemberRole::Removed))
}

/// A member, if there ever was one of this id.
///
/// # Errors
/// The database failed.
pub fn find(rows: &impl Read, id: NodeId) -> Result<Option<v1::Member>, Fault> {
    super::table::find(rows, Table::Members, &key(id))
}

/// Whether a member was removed.
///
/// # Errors
/// The database failed.
pub fn is_removed(rows: &impl Read, id: NodeId) -> Result<bool, Fault> {
    Ok(find(rows, id)?.is_some_and(|member| member.role() == MemberRole::Removed))
}

/// All members that ever were, in the order of their ids.
///
/// # Errors
/// The database failed.
pub fn all(rows: &impl Read) -> Result<Vec<v1::Member>, Fault> {
    let mut members = Vec::new();
    rows.scan(Table::Members, (Bound::Unbounded, Bound::Unbounded), &mut |_, row| {
        members.push(v1::Member::decode(row).context(|| "decode a member".into())?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(members)
}

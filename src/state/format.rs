//! Formats: what members of different versions do together. The format is part of the replicated state, so that all change over
//! at the same entry.
//!
//! ```text
//!   1 ──(all that keep the state take part in 2)──► 2 ──► …
//! ```
//!
//! | format | what it adds |
//! |---|---|
//! | 1 | all that there was before formats were raised |
//! | 2 | that they are raised |
//!
//! Whatever changes the meaning of an entry, the layout of a row or the reply to a command belongs to a new format: until that is
//! reached, an entry does what it did before. A member says what it takes part in when it speaks to another, the leader proposes the
//! newest that all have in common, and nobody goes back. A member that does not take part stops at the entry that begins a format, and
//! does not start on a state that has it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::machine::Apply;
use super::member;
use crate::error::Fault;
use crate::proto::v1;

/// What a state begins with.
pub const FIRST: u32 = 1;
/// The newest that this version takes part in.
pub const NEWEST: u32 = 2;
/// All of them.
pub const ALL: RangeInclusive<u32> = FIRST..=NEWEST;

/// Whether a state of a format can be read by who takes part in those up to `newest`.
///
/// # Errors
/// It cannot; what is to be done about it.
pub(super) fn check(found: u32, newest: u32) -> Result<(), String> {
    match (FIRST..=newest).contains(&found) {
        true => Ok(()),
        false => Err(format!(
            "it is in format {found}, and this member takes part in those from {FIRST} to {newest}: start a version that knows it, \
             without --format-max"
        )),
    }
}

/// Begins a format, if those that keep the state are the ones that were asked.
pub(super) fn raise(apply: &mut Apply<'_>, raise: &v1::RaiseFormat) -> Result<v1::RaiseFormatReply, Fault> {
    let members = member::all(&apply.rows)?;
    let keep: BTreeSet<u64> = members.iter().filter(|row| member::is_server(row)).map(|row| row.id).collect();
    let asked: BTreeSet<u64> = raise.members.iter().copied().collect();
    sometimes!(keep != asked, "a format was not begun, for others keep the state than were asked");
    if keep == asked && raise.to > apply.head.format {
        if let Err(why) = check(raise.to, apply.newest) {
            return Err(Fault::new(format!("the cluster changes its format: {why}")));
        }
        sometimes!("a format was begun");
        apply.head.format = raise.to;
    }
    Ok(v1::RaiseFormatReply { format: apply.head.format })
}

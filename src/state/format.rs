//! Formats: what members of different versions do together. The format is part of the replicated state, so that all change over
//! at the same entry.
//!
//! ```text
//!   1 ──(all that keep the state take part in 2)──► 2 ──► 3 ──► …
//! ```
//!
//! | format | what it adds |
//! |---|---|
//! | 1 | all that version 0.1.0 did at last |
//! | 2 | that formats are begun |
//! | 3 | sessions are called what was drawn for them, the answers that they keep are bounded, and so is what an entry reads; a token that is good no more is looked at again; what was lost more than once waits |
//!
//! Whatever changes the meaning of an entry, the layout of a row or the reply to a command belongs to a new format: until that is
//! reached, an entry does what it did before. A member says what it takes part in when it speaks to another, the leader proposes the
//! newest that all have in common, and nobody goes back. A member that does not take part stops at the entry that begins a format, and
//! does not start on a state that has it. Members do not change between what the leader sees and that entry.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::machine::Apply;
use super::member;
use crate::error::Fault;
use crate::proto::v1;

/// What a state begins with.
pub use crate::limits::FORMAT_FIRST as FIRST;

/// The newest that this version takes part in.
pub const NEWEST: u32 = 3;
/// The first in which sessions are called what was drawn for them, and what is kept and read is bounded.
pub(crate) const BOUNDED: u32 = 3;
/// All of them.
pub const ALL: RangeInclusive<u32> = FIRST..=NEWEST;

/// Whether a state of a format can be read by who takes part in those up to `newest`.
///
/// # Errors
/// It cannot; what is to be done about it.
pub(super) fn check(found: u32, newest: u32) -> Result<(), String> {
    match found {
        found if found < FIRST => {
            Err("it is of a version before all formats: begin with an empty data directory".into())
        }
        found if found > newest => Err(format!(
            "it is in format {found}, and here only those from {FIRST} to {newest} are taken part in: start a newer version, or leave \
             out --format-max"
        )),
        _ => Ok(()),
    }
}

/// Begins a format, if those that keep the state are the ones that were asked. Whoever does not take part in it stops all the same: a
/// version before this one does not know the command.
pub(super) fn raise(apply: &mut Apply<'_>, raise: &v1::RaiseFormat) -> Result<v1::RaiseFormatReply, Fault> {
    check(raise.to, apply.newest).map_err(|why| Fault::because("go on with the cluster", why))?;
    let members = member::all(&apply.rows)?;
    let keep: BTreeSet<u64> = members.iter().filter(|row| member::is_server(row)).map(|row| row.id).collect();
    if keep == raise.members.iter().copied().collect() && raise.to > apply.head.format {
        sometimes!("a format was begun");
        apply.head.format = raise.to;
    }
    Ok(v1::RaiseFormatReply { format: apply.head.format })
}

//! What the commands of an entry read, bounded: an entry that takes more memory or time than a member has could not be applied by any, nor
//! be got rid of.

use crate::error::KvReject;
use crate::limits::READ_BYTES_MAX;

/// What the commands of one entry read so far, in bytes.
#[derive(Default)]
pub(super) struct Budget {
    /// For those that were carried out.
    spent: u64,
    /// For those that were not, to find that out.
    vain: u64,
    /// For the one that is under way.
    own: u64,
}

impl Budget {
    /// How much the command under way may read by itself.
    ///
    /// # Errors
    /// So much was read in vain that nothing more is weighed.
    pub(super) fn left(&self) -> Result<u64, KvReject> {
        if self.vain > READ_BYTES_MAX { Err(KvReject::EntryFull) } else { Ok(READ_BYTES_MAX - self.own) }
    }

    /// Charges the command under way with what it is going to read.
    ///
    /// # Errors
    /// It is too much in any entry.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), KvReject> {
        let own = self.own + bytes;
        // What was looked at is no more than about that.
        self.own = own.min(READ_BYTES_MAX);
        if own > READ_BYTES_MAX { Err(KvReject::ReadsTooMuch(own)) } else { Ok(()) }
    }

    /// Lets the command under way read what it was charged with.
    ///
    /// # Errors
    /// Too little is left in this entry.
    pub(super) fn admit(&self) -> Result<(), KvReject> {
        if self.spent + self.own > READ_BYTES_MAX { Err(KvReject::EntryFull) } else { Ok(()) }
    }

    /// Does all of that for something that is only read.
    ///
    /// # Errors
    /// It may not be read.
    pub(super) fn spend(&mut self, bytes: u64) -> Result<(), KvReject> {
        let admitted = self.charge(bytes).and_then(|()| self.admit());
        self.end(admitted.is_ok());
        admitted
    }

    /// Ends the command under way, which was carried out, or refused.
    pub(super) fn end(&mut self, is_done: bool) {
        let own = std::mem::take(&mut self.own);
        *(if is_done { &mut self.spent } else { &mut self.vain }) += own;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carry_out(budget: &mut Budget, bytes: u64) -> Result<(), KvReject> {
        let done = budget.left().and_then(|_| budget.charge(bytes)).and_then(|()| budget.admit());
        budget.end(done.is_ok());
        done
    }

    #[test]
    fn commands_share_what_an_entry_may_read() {
        let mut budget = Budget::default();
        assert_eq!(carry_out(&mut budget, READ_BYTES_MAX + 1), Err(KvReject::ReadsTooMuch(READ_BYTES_MAX + 1)));
        assert_eq!(carry_out(&mut budget, READ_BYTES_MAX - 10), Ok(()));
        assert_eq!(carry_out(&mut budget, 10), Ok(()), "what is refused takes nothing from others");
        assert_eq!(carry_out(&mut budget, 11), Err(KvReject::EntryFull));
    }

    #[test]
    fn what_is_looked_at_in_vain_is_bounded_too() {
        let mut budget = Budget::default();
        let refusals = std::iter::from_fn(|| carry_out(&mut budget, READ_BYTES_MAX + 1).err());
        let weighed = refusals.take_while(|refusal| *refusal != KvReject::EntryFull).count();
        assert_eq!(weighed, 2);
        assert_eq!(carry_out(&mut budget, 1), Err(KvReject::EntryFull));
        assert_eq!(budget.spend(1), Ok(()), "what is not weighed is told");
    }
}

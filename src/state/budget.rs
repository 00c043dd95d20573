//! What the commands of an entry read, bounded: an entry that takes more memory or time than a member has could not be applied by any, nor
//! be got rid of.

use crate::error::KvReject;

/// What the commands of one entry read so far, in bytes.
pub(super) struct Budget {
    /// What they may read.
    most: u64,
    /// For those that were carried out.
    spent: u64,
    /// For those that were not, to find that out.
    vain: u64,
    /// For the one that is under way.
    own: u64,
}

impl Budget {
    /// That of an entry whose commands may read so many bytes.
    pub(super) fn of(most: u64) -> Self {
        Self { most, spent: 0, vain: 0, own: 0 }
    }

    /// How much the command under way may read by itself.
    ///
    /// # Errors
    /// So much was read in vain that nothing more is weighed.
    pub(super) fn left(&self) -> Result<u64, KvReject> {
        if self.vain > self.most { Err(KvReject::EntryFull) } else { Ok(self.most - self.own) }
    }

    /// Charges the command under way with what it is going to read.
    ///
    /// # Errors
    /// It is too much in any entry.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), KvReject> {
        let own = self.own + bytes;
        // What was looked at is no more than about that.
        self.own = own.min(self.most);
        if own > self.most { Err(KvReject::ReadsTooMuch(own)) } else { Ok(()) }
    }

    /// Lets the command under way read what it was charged with.
    ///
    /// # Errors
    /// Too little is left in this entry.
    pub(super) fn admit(&self) -> Result<(), KvReject> {
        if self.spent + self.own > self.most { Err(KvReject::EntryFull) } else { Ok(()) }
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
    use crate::limits::READ_BYTES_MAX;

    fn carry_out(budget: &mut Budget, bytes: u64) -> Result<(), KvReject> {
        let done = budget.left().and_then(|_| budget.charge(bytes)).and_then(|()| budget.admit());
        budget.end(done.is_ok());
        done
    }

    #[test]
    fn commands_share_what_an_entry_may_read() {
        let mut budget = Budget::of(READ_BYTES_MAX);
        assert_eq!(carry_out(&mut budget, READ_BYTES_MAX + 1), Err(KvReject::ReadsTooMuch(READ_BYTES_MAX + 1)));
        assert_eq!(carry_out(&mut budget, READ_BYTES_MAX - 10), Ok(()));
        assert_eq!(carry_out(&mut budget, 10), Ok(()), "what is refused takes nothing from others");
        assert_eq!(carry_out(&mut budget, 11), Err(KvReject::EntryFull));
    }

    #[test]
    fn what_is_looked_at_in_vain_is_bounded_too() {
        let mut budget = Budget::of(READ_BYTES_MAX);
        let refusals = std::iter::from_fn(|| carry_out(&mut budget, READ_BYTES_MAX + 1).err());
        let weighed = refusals.take_while(|refusal| *refusal != KvReject::EntryFull).count();
        assert_eq!(weighed, 2);
        assert_eq!(carry_out(&mut budget, 1), Err(KvReject::EntryFull));
        assert_eq!(budget.spend(1), Ok(()), "what is not weighed is told");
    }
}

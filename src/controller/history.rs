//! How much of the keys' past is kept when nobody asks for its compaction.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proto::v1;
use crate::state::kv;
use crate::time::Monotonic;

/// How finely the past is cut: by tenths of what is kept.
const PARTS: u32 = 10;

/// What of the past can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum History {
    /// All of it, until somebody compacts.
    #[default]
    All,
    /// So many revisions before the newest, and up to a tenth more.
    Revisions(u64),
    /// What was so long ago, and up to a tenth more. Counted by the clock of the member that leads, from its start on.
    Age(Duration),
}

/// Looks at how the store grows, and says what of its past is too old.
pub struct Historian {
    keeps: History,
    /// When the store was at which revision, oldest first.
    seen: VecDeque<(Monotonic, u64)>,
}

impl Historian {
    /// One that has seen nothing.
    pub fn new(keeps: History) -> Self {
        Self { keeps, seen: VecDeque::new() }
    }

    /// The revision to compact at, if it is time to. Looks now and then, also while this member does not lead: it may come to.
    pub fn look(&mut self, now: Monotonic, head: &v1::Head) -> Option<u64> {
        let oldest = match self.keeps {
            History::All => return None,
            History::Revisions(kept) => {
                let oldest = head.revision.saturating_sub(kept);
                (oldest > head.compacted + kept / u64::from(PARTS)).then_some(oldest)
            }
            History::Age(age) => self.seen_before(now, age, head.revision),
        };
        // There is nothing before the first revision. What was compacted before is swept away first: each time anew from the first key
        // on, and else never to the last.
        oldest.filter(|oldest| *oldest > head.compacted.max(1) && !kv::is_sweeping(head))
    }

    /// The revision that the store had reached by so long ago.
    fn seen_before(&mut self, now: Monotonic, age: Duration, revision: u64) -> Option<u64> {
        if self.seen.back().is_none_or(|(last, _)| now.since(*last) >= age / PARTS) {
            self.seen.push_back((now, revision));
        }
        while self.seen.get(1).is_some_and(|(at, _)| now.since(*at) >= age) {
            self.seen.pop_front();
        }
        self.seen.front().filter(|(at, _)| now.since(*at) >= age).map(|(_, revision)| *revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(revision: u64, compacted: u64) -> v1::Head {
        v1::Head { revision, compacted, ..v1::Head::default() }
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn so_many_revisions_are_kept_and_a_tenth_more() {
        let mut historian = Historian::new(History::Revisions(20));
        assert_eq!(historian.look(at(0), &head(20, 0)), None);
        assert_eq!(historian.look(at(0), &head(22, 0)), None, "not for each revision anew");
        assert_eq!(historian.look(at(0), &head(23, 0)), Some(3));
        assert_eq!(historian.look(at(0), &head(25, 3)), None);
        let swept = v1::Head { sweep_from: Some("k".into()), ..head(500, 3) };
        assert_eq!(historian.look(at(0), &swept), None, "one after the other");
        assert_eq!(historian.look(at(0), &head(500, 3)), Some(480));
        assert_eq!(Historian::new(History::Revisions(0)).look(at(0), &head(7, 6)), Some(7));
        assert_eq!(Historian::new(History::Revisions(0)).look(at(0), &head(7, 7)), None);
    }

    #[test]
    fn what_is_young_is_kept() {
        let mut historian = Historian::new(History::Age(Duration::from_secs(10)));
        // One revision a second.
        let mut compacted = 0;
        for second in 0..100 {
            if let Some(revision) = historian.look(at(second), &head(second + 1, compacted)) {
                assert!(revision <= second - 10 + 1, "at {second} s the store had not been at {revision} for 10 s");
                compacted = revision;
            }
            assert!(historian.seen.len() <= 12);
        }
        assert!(compacted >= 100 - 10 - 1 - 1, "{compacted}");
        // Nothing new: what is left is the newest.
        assert_eq!(historian.look(at(200), &head(100, compacted)), Some(100));
        assert_eq!(historian.look(at(201), &head(100, 100)), None);
    }

    #[test]
    fn all_is_kept_where_nothing_else_is_said() {
        assert_eq!(Historian::new(History::default()).look(at(1_000_000), &head(1_000_000, 0)), None);
    }
}

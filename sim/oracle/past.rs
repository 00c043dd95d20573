//! Oracle 20: where a leader compacts by itself, what is to be kept of the past is kept, and no more than that for long (etcd's
//! documentation, "History compaction").

use std::time::Duration;

use prost::Message;

use super::Violations;
use crate::controller::History;
use crate::entry::{Entry, Outcome};
use crate::ids::Index;
use crate::proto::v1::{self, reply};

const ORACLE: &str = "the past is kept for as long as it is to be";
/// How long what is so old must have been kept at least by a clock that runs as it should, in hundredths, however fast the
/// leader's runs.
const LEAST_PERCENT: u32 = 80;

/// What was compacted where clients never do.
#[derive(Default)]
pub struct Past {
    keeps: History,
    /// The last entry that was looked at.
    last: Index,
    /// When the store was first known to be at each revision.
    reached: Vec<(u64, Duration)>,
    /// What was compacted, and when.
    compactions: Vec<(u64, Duration)>,
}

impl Past {
    /// What is to be kept.
    pub fn keeps(&mut self, keeps: History) {
        self.keeps = keeps;
    }

    /// The revisions that were compacted at, and when, where a leader does it by itself.
    pub fn compactions(&self) -> &[(u64, Duration)] {
        &self.compactions
    }

    /// The newest revision that is known.
    pub fn newest(&self) -> u64 {
        self.reached.last().map_or(1, |(revision, _)| *revision)
    }

    /// An entry was applied. Only the first member that applies it counts.
    pub fn on_applied(&mut self, entry: &Entry, outcome: &Outcome, now: Duration, violations: &Violations) {
        if self.keeps == History::All || entry.index <= self.last {
            return;
        }
        self.last = entry.index;
        for reply in &outcome.replies {
            let newest = v1::Reply::decode(reply.clone()).map_or(0, |reply| newest(&reply));
            if newest > self.newest() {
                self.reached.push((newest, now));
            }
        }
        for (revision, newest) in compactions(entry, outcome) {
            self.compactions.push((revision, now));
            if let Some(what) = self.too_early(revision, newest, now) {
                violations.add(ORACLE, format!("{what} ({:?} is to be kept)", self.keeps));
            }
        }
    }

    fn too_early(&self, revision: u64, newest: u64, now: Duration) -> Option<String> {
        match self.keeps {
            History::All => None,
            History::Revisions(kept) => {
                (revision + kept > newest).then(|| format!("compacted at {revision} when {newest} was the newest"))
            }
            History::Age(age) => {
                let reached = self.reached.iter().find(|(reached, _)| *reached >= revision).map(|(_, at)| *at);
                let is_old = reached.is_some_and(|at| at + age * LEAST_PERCENT / 100 <= now);
                (!is_old).then(|| format!("compacted at {revision}, which came at {reached:?}, at {now:?}"))
            }
        }
    }

    /// The oldest revision that may still be readable when nothing has changed for longer than anything is to be kept.
    pub fn oldest(&self) -> u64 {
        match self.keeps {
            History::All => 0,
            History::Revisions(kept) => self.newest().saturating_sub(kept + kept / 10),
            History::Age(_) => self.newest(),
        }
    }
}

/// What an entry compacted: at which revision, and the newest then.
fn compactions(entry: &Entry, outcome: &Outcome) -> Vec<(u64, u64)> {
    let crate::entry::Body::Commands { commands, .. } = &entry.body else { return Vec::new() };
    let done = commands.iter().zip(&outcome.replies).filter_map(|(command, reply)| {
        let Ok(v1::Command { kind: Some(v1::command::Kind::Compact(compact)), .. }) =
            v1::Command::decode(command.clone())
        else {
            return None;
        };
        match v1::Reply::decode(reply.clone()).ok()?.kind? {
            reply::Kind::Compact(reply) => {
                Some((compact.revision.cast_unsigned(), reply.header?.revision.cast_unsigned()))
            }
            _ => None,
        }
    });
    done.collect()
}

/// The newest revision that a reply names; 0 if it names none.
fn newest(reply: &v1::Reply) -> u64 {
    let header = match &reply.kind {
        Some(reply::Kind::Put(reply)) => reply.header,
        Some(reply::Kind::DeleteRange(reply)) => reply.header,
        Some(reply::Kind::Txn(reply)) => reply.header,
        Some(reply::Kind::LeaseRevoke(reply)) => reply.header,
        Some(reply::Kind::Compact(reply)) => reply.header,
        Some(reply::Kind::Batch(batch)) => return batch.replies.iter().map(newest).max().unwrap_or(0),
        _ => None,
    };
    header.map_or(0, |header| header.revision.cast_unsigned())
}

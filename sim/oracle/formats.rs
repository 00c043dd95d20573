//! Oracle 22: a format of the state is begun when all that keep the state take part in it, and never left again (etcd's documentation,
//! "Upgrading etcd clusters": the version of a cluster is the lowest of its members').

use std::time::Duration;

use prost::Message;

use super::Violations;
use crate::entry::{Body, Entry, Outcome};
use crate::ids::Index;
use crate::proto::v1::{self, command, reply};
use crate::state::format;
use crate::time::ClusterTime;

/// In which format the cluster is, as the committed entries tell.
#[derive(Debug)]
pub struct Formats {
    now: u32,
    began: (ClusterTime, Duration),
    last: Index,
}

impl Default for Formats {
    fn default() -> Self {
        Self { now: format::FIRST, began: (ClusterTime(0), Duration::ZERO), last: Index(0) }
    }
}

impl Formats {
    /// What it is.
    pub fn now(&self) -> u32 {
        self.now
    }

    /// After which time the newest was begun, and when that was seen; nothing, if it is not.
    pub fn newest_since(&self) -> Option<(ClusterTime, Duration)> {
        (self.now == format::NEWEST).then_some(self.began)
    }

    /// A member applied an entry at a time, while `servers` keep the state. The first to do so tells, for all give the same answers.
    pub fn on_applied(
        &mut self,
        entry: &Entry,
        outcome: &Outcome,
        (servers, at): (&[u64], Duration),
        violations: &Violations,
    ) {
        if entry.index <= self.last {
            return;
        }
        self.last = entry.index;
        let Body::Commands { stamp, commands } = &entry.body else { return };
        for (command, answer) in commands.iter().zip(&outcome.replies) {
            let Ok(v1::Command { kind: Some(command::Kind::RaiseFormat(raise)), .. }) = v1::Command::decode(&**command)
            else {
                continue;
            };
            let Ok(v1::Reply { kind: Some(reply::Kind::RaiseFormat(reply)), .. }) = v1::Reply::decode(&**answer) else {
                violations.add("a format is begun by all", format!("{raise:?} was answered with something else"));
                continue;
            };
            if reply.format != self.now && (reply.format != raise.to || raise.members != servers) {
                let what = format!(
                    "at {} {raise:?} began format {}, and {servers:?} keep the state",
                    entry.index, reply.format
                );
                violations.add("a format is begun by all", what);
            }
            if reply.format < self.now {
                violations.add("a format is not left", format!("{} comes after {}", reply.format, self.now));
            }
            if reply.format != self.now {
                (self.now, self.began) = (reply.format, (*stamp, at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Term;
    use crate::state::auth::ROOT;

    /// Whether it holds that such commands, given as what they raise to and who was asked, have such answers.
    fn holds(raised: &[(u32, &[u64], u32)], servers: &[u64]) -> bool {
        let (mut formats, violations) = (Formats::default(), Violations::default());
        for (number, (to, members, format)) in raised.iter().enumerate() {
            let raise = v1::RaiseFormat { to: *to, members: members.to_vec() };
            let command = crate::state::command::plain(ROOT, command::Kind::RaiseFormat(raise)).encode_to_vec().into();
            let reply = reply::Kind::RaiseFormat(v1::RaiseFormatReply { format: *format });
            let reply = v1::Reply { kind: Some(reply) }.encode_to_vec().into();
            let body = Body::Commands { stamp: ClusterTime(1), commands: vec![command] };
            let entry = Entry { index: Index(number as u64 + 1), term: Term(1), body };
            let outcome = Outcome { replies: vec![reply], digest: 0 };
            formats.on_applied(&entry, &outcome, (servers, Duration::ZERO), &violations);
        }
        violations.all().is_empty()
    }

    #[test]
    fn all_are_asked_and_none_goes_back() {
        assert!(holds(&[(2, &[1, 3], 2)], &[1, 3]));
        assert!(holds(&[(2, &[1, 3], 1)], &[1, 3, 4]), "nothing came of it");
        assert!(!holds(&[(2, &[1, 3], 2)], &[1, 3, 4]), "one was not asked");
        assert!(!holds(&[(2, &[1], 2), (1, &[1], 1)], &[1]), "it went back");
    }
}

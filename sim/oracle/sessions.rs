//! Oracle 6, from within: a session that is used lives on for its time, in the time of the cluster (Raft dissertation, §6.3:
//! servers must agree on when to expire a session, and not do so too early, for then a command may be executed twice); and what is
//! sent again is answered as it was the first time, or not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::Violations;
use crate::entry::{Body, Entry, Outcome};
use crate::ids::Index;
use crate::limits::SESSION_TTL;
use crate::proto::v1::{self, command, rejection, reply};
use crate::state::command::{is_put_off, refused};
use crate::time::ClusterTime;

/// An answer that is not longer, in bytes, is kept.
const SHORT: usize = 1024 * 1024;
/// What is longer is told by its hash.
const SHOWN: usize = 4 * 1024;

/// What a command was answered: how many bytes, and which, or their hash.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    len: usize,
    shown: Result<Bytes, u64>,
}

impl Answer {
    fn of(bytes: &Bytes) -> Self {
        let shown = if bytes.len() <= SHOWN { Ok(bytes.clone()) } else { Err(xxh3_64(bytes)) };
        Self { len: bytes.len(), shown }
    }

    fn text(&self) -> String {
        match &self.shown {
            Ok(bytes) => format!("{:?}", v1::Reply::decode(&**bytes)),
            Err(hash) => format!("{} bytes of hash {hash:016x}", self.len),
        }
    }
}

/// When each session was used last, as the committed entries tell.
#[derive(Default)]
pub struct Sessions {
    used: BTreeMap<u64, ClusterTime>,
    /// The one that was opened last.
    newest: Option<u64>,
    /// What the commands of sessions were answered.
    answers: BTreeMap<(u64, u64), Answer>,
    now: ClusterTime,
    last: Index,
}

impl Sessions {
    /// A member applied an entry. The first to do so tells, for all give the same answers.
    pub fn on_applied(&mut self, entry: &Entry, outcome: &Outcome, violations: &Violations) {
        let Body::Commands { stamp, commands } = &entry.body else { return };
        if entry.index <= self.last {
            return;
        }
        self.last = entry.index;
        self.now = self.now.max(*stamp);
        for (number, (command, answer)) in commands.iter().zip(&outcome.replies).enumerate() {
            if let (Ok(command), Ok(reply)) = (v1::Command::decode(&**command), v1::Reply::decode(&**answer)) {
                if number == 0 && is_put_off(&reply) {
                    violations.add("there is room in an entry", format!("{command:?} was put off, and is the first"));
                }
                if let Some(header) = &command.session {
                    self.on_answer((header.session, header.seq), answer, &reply, violations);
                }
                self.on_command(&command, &reply, violations);
            }
        }
    }

    /// The session that was opened last.
    pub fn newest(&self) -> Option<u64> {
        self.newest.filter(|session| self.used.contains_key(session))
    }

    /// How long a session has been idle; `None` of one that is not there.
    pub fn idle(&self, session: u64) -> Option<Duration> {
        self.used.get(&session).map(|used| self.now.since(*used))
    }

    fn on_answer(&mut self, whose: (u64, u64), answer: &Bytes, reply: &v1::Reply, violations: &Violations) {
        use rejection::Kind as Refused;
        match (refused(reply), self.answers.get(&whose)) {
            // It was not looked up, or its user may not see what it gave.
            (Some(Refused::SessionExpired(_) | Refused::Stale(_) | Refused::WindowFull(_) | Refused::Auth(_)), _) => {}
            _ if is_put_off(reply) => {}
            (Some(Refused::AnswerNotKept(bytes)), Some(first)) if first.len as u64 == *bytes && first.len > SHORT => {}
            (_, Some(first)) => {
                let now = Answer::of(answer);
                if *first != now {
                    let what = format!("command {whose:?} was answered {}, and then {}", first.text(), now.text());
                    violations.add("a retry gets the first answer", what);
                }
            }
            (_, None) => {
                self.answers.insert(whose, Answer::of(answer));
            }
        }
    }

    fn on_command(&mut self, command: &v1::Command, reply: &v1::Reply, violations: &Violations) {
        use rejection::Kind as Refused;
        if let Some(reply::Kind::OpenSession(opened)) = &reply.kind {
            self.used.insert(opened.session, self.now);
            self.newest = Some(opened.session);
        }
        if let Some(command::Kind::CloseSession(close)) = &command.kind {
            self.used.remove(&close.session);
        }
        let Some(session) = command.session.as_ref().map(|header| header.session) else { return };
        let refusal = refused(reply);
        match refusal {
            Some(Refused::SessionExpired(_)) => {
                let idle = self.used.remove(&session).map(|used| self.now.since(used));
                if let Some(idle) = idle.filter(|idle| *idle < SESSION_TTL) {
                    let what = format!("session {session} was gone {idle:?} after its last use, not {SESSION_TTL:?}");
                    violations.add("a session lives its time", what);
                }
            }
            // Whoever asks for what cannot be, or not any more, is not counted as using it.
            Some(Refused::Stale(_) | Refused::WindowFull(_) | Refused::Invalid(_)) => {}
            Some(Refused::Auth(why)) if *why == i32::from(rejection::Auth::TokenInvalid) => {}
            Some(_) | None => {
                self.used.entry(session).and_modify(|used| *used = self.now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reject;
    use crate::ids::Term;
    use crate::proto::etcdserverpb::{PutRequest, PutResponse};
    use crate::proto::mvccpb::KeyValue;
    use crate::state::command::refusal;

    /// Whether a command may be answered so, and when it is sent again so.
    fn holds(first: &v1::Reply, again: &v1::Reply) -> bool {
        let (mut sessions, violations) = (Sessions::default(), Violations::default());
        for (index, reply) in [(1, first), (2, again)] {
            let session = Some(v1::SessionHeader { session: 9, seq: 1, acknowledged: 0 });
            let kind = Some(command::Kind::Put(PutRequest::default()));
            let command = v1::Command { session, kind, ..v1::Command::default() }.encode_to_vec().into();
            let body = Body::Commands { stamp: ClusterTime(1), commands: vec![command] };
            let entry = Entry { index: Index(index), term: Term(1), body };
            sessions.on_applied(
                &entry,
                &Outcome { replies: vec![reply.encode_to_vec().into()], digest: 0 },
                &violations,
            );
        }
        violations.all().is_empty()
    }

    fn told(bytes: usize, byte: u8) -> v1::Reply {
        let prev_kv = Some(KeyValue { value: vec![byte; bytes].into(), ..KeyValue::default() });
        v1::Reply { kind: Some(reply::Kind::Put(PutResponse { prev_kv, ..PutResponse::default() })) }
    }

    #[test]
    fn only_of_a_long_answer_it_may_be_said_that_it_is_not_kept() {
        let (short, medium, long) = (told(1, 1), told(2 * SHOWN, 1), told(2 * SHORT, 1));
        for (number, reply) in [&short, &medium, &long].into_iter().enumerate() {
            let len = reply.encoded_len() as u64;
            assert!(holds(reply, reply), "{len}");
            assert!(!holds(reply, &told(reply.encoded_len(), 2)), "{len}, and another");
            assert_eq!(holds(reply, &refusal(&Reject::AnswerNotKept(len))), number == 2, "{len}");
            assert!(!holds(reply, &refusal(&Reject::AnswerNotKept(len + 1))), "{len}, and not as long");
            assert!(!holds(&refusal(&Reject::AnswerNotKept(len)), reply), "it was not to be known before");
        }
        let same_len = (told(2 * SHOWN, 1), told(2 * SHOWN, 2));
        assert!(!holds(&same_len.0, &same_len.1));
    }
}

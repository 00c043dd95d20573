//! Commands on keys that go together: those that are asked for while others are under way share a call, an entry of the log, and a
//! sequence of the session.

use std::sync::OnceLock;

use futures_util::future::{BoxFuture, pending};
use prost::Message;

use super::{Client, ClientError, answer, unexpected};
use crate::error::{KvReject, Reject};
use crate::forward::is_answered_briefly;
use crate::lane::{Lane, Unanswered};
use crate::limits::BATCH_BYTES_MAX;
use crate::proto::v1::{Command, CommandBatch, command::Kind, reply};
use crate::state::alarm;
use crate::state::command::{self, is_of_batch};
use crate::time::Monotonic;

type Answer = Result<reply::Kind, ClientError>;

/// The ways on which commands go together. What adds to the keys may be refused for want of space: what does not goes another way.
#[derive(Default)]
pub(super) struct Together {
    adding: OnceLock<Lane<Command, Answer>>,
    other: OnceLock<Lane<Command, Answer>>,
    /// For what found no room beside others: one in a call.
    alone: OnceLock<Lane<Command, Answer>>,
}

/// Whether a command may go with others: it is about keys, its answer is short, and no member would refuse it unseen.
pub(super) fn may_go(kind: &Kind) -> bool {
    is_of_batch(kind) && is_answered_briefly(kind) && command::check_kind(kind).is_ok()
}

impl Client {
    /// Carries out a command exactly once, with whatever else waits.
    pub(super) async fn execute_together(&self, kind: Kind) -> Answer {
        let deadline = self.io.clock.now() + self.timeout;
        let lane = if alarm::adds(&kind) { &self.together.adding } else { &self.together.other };
        let command = command::plain("", kind);
        let mut passed = self.pass(lane, Command::encoded_len, command.clone(), deadline).await;
        // It was certainly not done: others that went with it read too much.
        if let Ok(Err(ClientError::Rejected(Reject::Kv(KvReject::EntryFull)))) = passed {
            passed = self.pass(&self.together.alone, |_| BATCH_BYTES_MAX, command, deadline).await;
        }
        match passed {
            Ok(answer) => answer,
            Err(Unanswered::Full) => Err(ClientError::Unavailable("too many commands wait; try again later".into())),
            Err(Unanswered::Late | Unanswered::Moved) => {
                Err(ClientError::Unavailable("what was asked for before was not answered in time".into()))
            }
            Err(Unanswered::Ended) => Err(ClientError::Unavailable("what this client runs on has ended".into())),
            Err(Unanswered::Lost) => Err(ClientError::Unknown("no answer in time".into())),
        }
    }

    async fn pass(
        &self,
        lane: &OnceLock<Lane<Command, Answer>>,
        bytes: fn(&Command) -> usize,
        command: Command,
        deadline: Monotonic,
    ) -> Result<Answer, Unanswered> {
        let lane = lane.get_or_init(|| {
            // One without ways: a way that kept itself open would never end.
            let client = Self { together: Default::default(), ..self.clone() };
            let carry = move |commands| Box::pin(carry(client.clone(), commands)) as BoxFuture<_>;
            Lane::new(&*self.io.spawn, "commands", bytes, carry)
        });
        lane.pass(&*self.io.clock, command, deadline, pending()).await
    }
}

/// Has commands carried out in one call. What takes longer than all of them may is given up: it may take effect yet, unless a later
/// command of the session has been answered.
async fn carry(client: Client, commands: Vec<(Command, Monotonic)>) -> Vec<Answer> {
    let Some(deadline) = commands.iter().map(|(_, deadline)| *deadline).max() else { return Vec::new() };
    let clock = client.io.clock.clone();
    let client = client.with_timeout(deadline.since(clock.now()));
    let mut commands: Vec<Command> = commands.into_iter().map(|(command, _)| command).collect();
    let count = commands.len();
    let kind = match count {
        1 => commands.pop().and_then(|command| command.kind),
        _ => None,
    };
    let kind = kind.unwrap_or_else(|| {
        sometimes!("commands of a client went together");
        Kind::Batch(CommandBatch { commands })
    });
    match clock.deadline(deadline, client.execute_alone(kind)).await {
        Ok(Ok(reply::Kind::Batch(reply))) => reply.replies.into_iter().map(answer).collect(),
        Ok(Ok(reply)) if count == 1 => vec![Ok(reply)],
        Ok(Ok(other)) => vec![Err(unexpected(&other)); count],
        Ok(Err(error)) => vec![Err(error); count],
        Err(_) => vec![Err(ClientError::Unknown("no answer in time".into())); count],
    }
}

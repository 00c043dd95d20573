//! A watch that says when nobody answers.

use std::time::Duration;

use super::{Connection, Failure};
use crate::client::{ClientError, KeyWatch};
use crate::proto::mvccpb::Event;

/// A watch for somebody who looks on: from the beginning it wants a member that answers in time; when later none does, it says so,
/// lest what was printed last is taken for what is, and goes on.
pub struct Listening {
    watch: KeyWatch,
    begun: bool,
    alone: bool,
}

impl Listening {
    /// Listens with the patience of a connection.
    pub(super) fn to(watch: KeyWatch, connection: &Connection) -> Self {
        // A member that is well may be silent for as long as it takes to ask it whether it is there.
        let patience = connection.command_timeout.max(Duration::from_secs(1));
        Self { watch: watch.patience(patience), begun: false, alone: false }
    }

    /// What is changed next; nothing, when a member says for the first time that it will tell.
    pub(super) async fn next(&mut self) -> Result<Vec<Event>, Failure> {
        loop {
            match self.watch.next().await {
                Ok(changes) => {
                    if std::mem::take(&mut self.alone) {
                        eprintln!("a member answers again");
                    }
                    self.begun = true;
                    return Ok(changes.events);
                }
                Err(ClientError::Unavailable(why)) if self.begun => {
                    if !std::mem::replace(&mut self.alone, true) {
                        eprintln!("no member answers, so there may be changes that are not shown; trying on: {why}");
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

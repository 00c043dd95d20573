//! `node lock` and `node elect`.

use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde_json::json;

use super::listen::Listening;
use super::output::{self, bytes_json, printable};
use super::units::ttl;
use super::{Connection, Failure, Output, client_status};
use crate::client::{Client, HeldLease, Line, Turn};
use crate::error::Context;
use crate::limits::LEASE_TTL_MIN;
use crate::os;
use crate::os::child::Child;
use crate::proto::etcdserverpb::WatchCreateRequest;

/// Exit status when it was interrupted.
const INTERRUPTED: i32 = 130;

/// `node lock`.
#[derive(Args)]
pub struct LockCommand {
    /// The lock
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// How long it is held at most after this machine has died: seconds, or a span as 5m
    #[arg(long, default_value = "10", value_parser = ttl(LEASE_TTL_MIN))]
    ttl: Duration,
    /// The program that runs while it is held, and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// `node elect`.
#[derive(Args)]
pub struct ElectCommand {
    /// The election
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// What is said of oneself while one leads
    #[arg(required_unless_present = "listen")]
    value: Option<String>,
    /// Only print who leads, now and whenever it changes
    #[arg(long, conflicts_with = "value")]
    listen: bool,
    /// How long one leads at most after this machine has died: seconds, or a span as 5m
    #[arg(long, default_value = "10", value_parser = ttl(LEASE_TTL_MIN))]
    ttl: Duration,
}

async fn interrupted() -> Result<(), Failure> {
    Ok(os::stop_signal().await.context(|| "wait for signals".into())?)
}

/// Waits for its turn under a lease that is kept alive; nothing if it was interrupted.
async fn wait_turn(client: &Client, lease: &mut HeldLease, name: &str, says: &str) -> Result<Option<Turn>, Failure> {
    let id = lease.id();
    tokio::select! {
        biased;
        result = interrupted() => result.map(|()| None),
        lost = lease.keep() => Err(lost.into()),
        turn = client.wait_turn(name, id, says.as_bytes()) => Ok(Some(turn?)),
    }
}

impl LockCommand {
    pub(super) async fn run(&self, connection: &Connection) -> Result<i32, Failure> {
        let client = connection.client()?;
        let mut lease = client.hold_lease(self.ttl).await?;
        let status = match wait_turn(&client, &mut lease, &self.name, "").await {
            Ok(Some(turn)) => self.run_under(&mut lease, &turn).await,
            Ok(None) => Ok(INTERRUPTED),
            Err(failure) => Err(failure),
        };
        // With it the key goes; if that fails, when its time is over.
        let _ = lease.revoke().await;
        status
    }

    async fn run_under(&self, lease: &mut HeldLease, turn: &Turn) -> Result<i32, Failure> {
        let environment = [("CAIRN_LOCK_KEY", printable(&turn.key)), ("CAIRN_LOCK_TOKEN", turn.token.to_string())];
        let mut child = Child::start(&self.command, &environment).context(|| "run under the lock".into())?;
        let ended = |status: std::io::Result<i32>| status.context(|| "wait for the program".into());
        let lost = tokio::select! {
            biased;
            status = child.wait() => return Ok(ended(status)?),
            result = interrupted() => result.map(|()| None)?,
            lost = lease.keep() => Some(lost),
        };
        if let Some(lost) = &lost {
            eprintln!("error: the lock is about to be lost, so what runs under it is ended: {lost}");
        }
        child.terminate();
        let interrupted = lost.is_none();
        let too_late = async {
            // The lock is kept for as long as it takes to end, if it can be.
            if interrupted {
                lease.keep().await;
            }
            lease.end().await;
        };
        let status = tokio::select! {
            biased;
            status = child.wait() => Some(ended(status)?),
            () = too_late => None,
        };
        // Nothing of what it has started goes on without the lock.
        child.kill();
        let status = match status {
            Some(status) => status,
            None => ended(child.wait().await)?,
        };
        Ok(if interrupted { status } else { 1 })
    }
}

impl ElectCommand {
    pub(super) async fn run(&self, connection: &Connection) -> Result<i32, Failure> {
        let client = connection.client()?;
        let Some(value) = &self.value else { return self.listen(&client, connection).await };
        let mut lease = client.hold_lease(self.ttl).await?;
        let result = match wait_turn(&client, &mut lease, &self.name, value).await {
            Ok(Some(turn)) => {
                print_leader(&turn.key, value.as_bytes(), turn.token.0, connection.output);
                tokio::select! {
                    biased;
                    result = interrupted() => result.map(|()| 0),
                    lost = lease.keep() => {
                        eprintln!("error: {value} leads no more, for its lease cannot be kept alive: {lost}");
                        Ok(client_status(&lost))
                    }
                }
            }
            Ok(None) => Ok(INTERRUPTED),
            Err(failure) => Err(failure),
        };
        let _ = lease.revoke().await;
        result
    }

    async fn listen(&self, client: &Client, connection: &Connection) -> Result<i32, Failure> {
        let (mut leader, revision) = client.whose_turn(&self.name).await?;
        let (key, range_end) = Line::new(self.name.as_bytes()).keys();
        let watch = client.watch(WatchCreateRequest {
            key,
            range_end,
            start_revision: revision.0.cast_signed() + 1,
            ..WatchCreateRequest::default()
        });
        let mut watch = Listening::to(watch, connection);
        let mut told = None;
        while output::unprinted().is_none() {
            if let Some(row) = leader.filter(|row| Some(row.mod_revision) != told) {
                told = Some(row.mod_revision);
                print_leader(&row.key, &row.value, row.create_revision.cast_unsigned(), connection.output);
            }
            watch.next().await?;
            leader = client.whose_turn(&self.name).await?.0;
        }
        Ok(output::status())
    }
}

fn print_leader(key: &[u8], value: &[u8], token: u64, output: Output) {
    match output {
        Output::Json => say!("{}", json!({ "key": bytes_json(key), "leader": bytes_json(value), "token": token })),
        Output::Simple => output::simple(&[token.to_string().as_bytes(), value, key]),
        Output::Table => say!("{} leads, token {token}", printable(value)),
    }
}

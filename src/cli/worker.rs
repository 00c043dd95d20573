//! `node worker`.

use clap::Subcommand;
use serde_json::json;

use super::output;
use super::units::{self, bytes_text};
use super::{Connection, Failure, Output};
use crate::ids::NodeId;
use crate::proto::v1::{Member, MemberRole, Worker, WorkerStatus};
use crate::state::member::is_server;

/// What can be done with workers.
#[derive(Subcommand)]
pub enum WorkerCommand {
    /// Workers, what they have, and what of it is reserved
    List,
    /// Have a worker take nothing new; what it runs goes on
    Drain {
        /// Its id, as `list` shows it
        #[arg(value_parser = units::member)]
        id: NodeId,
    },
    /// Have a drained worker take tasks again
    Resume {
        /// Its id, as `list` shows it
        #[arg(value_parser = units::member)]
        id: NodeId,
    },
}

fn status_name(status: WorkerStatus) -> &'static str {
    match status {
        WorkerStatus::Online => "online",
        WorkerStatus::Draining => "draining",
        WorkerStatus::Offline => "offline",
        WorkerStatus::Unspecified => "unknown",
    }
}

impl WorkerCommand {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.client()?;
        let as_json = connection.output == Output::Json;
        let set = match self {
            Self::List => {
                let (workers, status) = (client.list_workers().await?, client.status().await?);
                let members: Vec<Member> = status.members.into_iter().filter_map(|row| row.member).collect();
                // One that was removed, and runs nothing more, is of no interest.
                let is_there = |worker: &&(Worker, Option<&Member>)| {
                    let removed = worker.1.is_some_and(|member| member.role() == MemberRole::Removed);
                    !removed || worker.0.status() != WorkerStatus::Offline
                };
                let with_member = |worker: Worker| {
                    let member = members.iter().find(|member| member.id == worker.id);
                    (worker, member)
                };
                let workers: Vec<_> = workers.into_iter().map(with_member).collect();
                let workers = workers.iter().filter(is_there);
                match as_json {
                    true => output::json(&workers.map(worker_json).collect()),
                    false => {
                        let rows: Vec<_> = workers.map(worker_row).collect();
                        let head = ["ID", "ADDRESS", "STATE", "STATUS", "CPU", "MEMORY", "DISK", "FEATURES"];
                        output::table(connection.output, &head, &rows);
                    }
                }
                return Ok(());
            }
            Self::Drain { id } => (*id, WorkerStatus::Draining),
            Self::Resume { id } => (*id, WorkerStatus::Online),
        };
        client.set_worker_status(set.0, set.1).await?;
        let (id, status) = (set.0, status_name(set.1));
        let document = json!({ "id": id.0, "status": status });
        output::told(connection.output, &document, &[&id.to_string(), status], format_args!("worker {id} is {status}"));
        Ok(())
    }
}

fn keeps_state(member: Option<&Member>) -> bool {
    member.is_some_and(is_server)
}

fn worker_row((worker, member): &(Worker, Option<&Member>)) -> Vec<String> {
    let (has, used) = (worker.capacity.unwrap_or_default(), worker.used.unwrap_or_default());
    let of = |used: u64, has: u64| format!("{} of {}", bytes_text(used), bytes_text(has));
    vec![
        worker.id.to_string(),
        member.map_or("-".into(), |member| member.address.clone()),
        if keeps_state(*member) { "kept".into() } else { "-".into() },
        status_name(worker.status()).into(),
        format!("{}m of {}m", used.cpu_milli, has.cpu_milli),
        of(used.memory_bytes, has.memory_bytes),
        of(used.disk_bytes, has.disk_bytes),
        worker.features.join(","),
    ]
}

fn worker_json((worker, member): &(Worker, Option<&Member>)) -> serde_json::Value {
    let (has, used) = (worker.capacity.unwrap_or_default(), worker.used.unwrap_or_default());
    json!({
        "id": worker.id,
        "address": member.map(|member| &member.address),
        "keeps_state": keeps_state(*member),
        "status": status_name(worker.status()),
        "epoch": worker.epoch,
        "renewed_ms": worker.renewed_ms,
        "features": worker.features,
        "capacity": { "cpu_milli": has.cpu_milli, "memory_bytes": has.memory_bytes, "disk_bytes": has.disk_bytes },
        "used": { "cpu_milli": used.cpu_milli, "memory_bytes": used.memory_bytes, "disk_bytes": used.disk_bytes },
    })
}

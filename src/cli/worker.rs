//! `node worker`.

use clap::Subcommand;
use serde_json::json;

use super::output;
use super::units::bytes_text;
use super::{Connection, Failure, Output};
use crate::ids::NodeId;
use crate::proto::v1::{Worker, WorkerStatus};

/// What can be done with workers.
#[derive(Subcommand)]
pub enum WorkerCommand {
    /// Workers, what they have, and what of it is reserved
    List,
    /// Have a worker take nothing new; what it runs goes on
    Drain {
        /// Its id, as `list` shows it
        id: u64,
    },
    /// Have a drained worker take tasks again
    Resume {
        /// Its id, as `list` shows it
        id: u64,
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
                let workers = client.list_workers().await?;
                match as_json {
                    true => output::json(&workers.iter().map(worker_json).collect()),
                    false => {
                        let rows: Vec<_> = workers.iter().map(worker_row).collect();
                        output::table(&["ID", "STATUS", "CPU", "MEMORY", "DISK", "FEATURES"], &rows);
                    }
                }
                return Ok(());
            }
            Self::Drain { id } => (*id, WorkerStatus::Draining),
            Self::Resume { id } => (*id, WorkerStatus::Online),
        };
        client.set_worker_status(NodeId(set.0), set.1).await?;
        match as_json {
            true => output::json(&json!({ "id": set.0, "status": status_name(set.1) })),
            false => say!("worker {} is {}", set.0, status_name(set.1)),
        }
        Ok(())
    }
}

fn worker_row(worker: &Worker) -> Vec<String> {
    let (has, used) = (worker.capacity.unwrap_or_default(), worker.used.unwrap_or_default());
    let of = |used: u64, has: u64| format!("{} of {}", bytes_text(used), bytes_text(has));
    vec![
        worker.id.to_string(),
        status_name(worker.status()).into(),
        format!("{}m of {}m", used.cpu_milli, has.cpu_milli),
        of(used.memory_bytes, has.memory_bytes),
        of(used.disk_bytes, has.disk_bytes),
        worker.features.join(","),
    ]
}

fn worker_json(worker: &Worker) -> serde_json::Value {
    let (has, used) = (worker.capacity.unwrap_or_default(), worker.used.unwrap_or_default());
    json!({
        "id": worker.id,
        "status": status_name(worker.status()),
        "epoch": worker.epoch,
        "renewed_ms": worker.renewed_ms,
        "features": worker.features,
        "capacity": { "cpu_milli": has.cpu_milli, "memory_bytes": has.memory_bytes, "disk_bytes": has.disk_bytes },
        "used": { "cpu_milli": used.cpu_milli, "memory_bytes": used.memory_bytes, "disk_bytes": used.disk_bytes },
    })
}

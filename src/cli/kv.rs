//! `node kv`.

use clap::Subcommand;
use serde_json::json;

use super::output;
use super::{Connection, Failure, Output};
use crate::ids::Revision;
use crate::limits::SCAN_ROWS_MAX;
use crate::proto::v1;

/// What can be done with keys.
#[derive(Subcommand)]
pub enum Kv {
    /// Set a key
    Put {
        /// The key
        key: String,
        /// Its value
        value: String,
        /// Only if the key's revision is this one; 0: only if it does not exist
        #[arg(long)]
        if_revision: Option<u64>,
    },
    /// Print a key's value
    Get {
        /// The key
        key: String,
    },
    /// Remove a key
    Delete {
        /// The key
        key: String,
        /// Only if the key's revision is this one
        #[arg(long)]
        if_revision: Option<u64>,
    },
    /// Print all keys with a prefix
    List {
        /// The prefix; all keys without one
        #[arg(long, default_value = "")]
        prefix: String,
        /// Rows at most
        #[arg(long, default_value_t = SCAN_ROWS_MAX)]
        limit: usize,
    },
}

impl Kv {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.client()?;
        let as_json = connection.output == Output::Json;
        match self {
            Self::Put { key, value, if_revision } => {
                let expected = if_revision.map(Revision);
                let revision = client.put(key.as_bytes(), value.as_bytes(), expected).await?;
                if as_json {
                    output::json(&json!({ "revision": revision.0 }));
                } else {
                    say!("revision {revision}");
                }
            }
            Self::Get { key } => match client.get(key.as_bytes()).await? {
                Some(row) if as_json => output::json(&output::key_value_json(&row)),
                Some(row) => say!("{}", output::printable(&row.value)),
                None => return Err(Failure::NotFound(format!("the key {key:?} does not exist"))),
            },
            Self::Delete { key, if_revision } => {
                let existed = client.delete(key.as_bytes(), if_revision.map(Revision)).await?;
                match (as_json, existed) {
                    (true, _) => output::json(&json!({ "existed": existed })),
                    (false, true) => say!("deleted"),
                    (false, false) => return Err(Failure::NotFound(format!("the key {key:?} does not exist"))),
                }
            }
            Self::List { prefix, limit } => {
                let rows = list(&client, prefix, *limit).await?;
                if as_json {
                    output::json(&rows.iter().map(output::key_value_json).collect());
                } else {
                    let row = |row: &v1::KeyValue| {
                        vec![output::printable(&row.key), row.revision.to_string(), output::printable(&row.value)]
                    };
                    output::table(&["KEY", "REVISION", "VALUE"], &rows.iter().map(row).collect::<Vec<_>>());
                }
            }
        }
        Ok(())
    }
}

async fn list(client: &crate::client::Client, prefix: &str, limit: usize) -> Result<Vec<v1::KeyValue>, Failure> {
    let mut rows: Vec<v1::KeyValue> = Vec::new();
    loop {
        let page = client
            .scan(v1::Scan {
                prefix: prefix.as_bytes().to_vec().into(),
                after: rows.last().map(|row| row.key.clone()),
                limit: u32::try_from((limit - rows.len()).min(SCAN_ROWS_MAX)).unwrap_or(u32::MAX),
            })
            .await?;
        rows.extend(page.rows);
        if !page.more || rows.len() >= limit {
            return Ok(rows);
        }
    }
}

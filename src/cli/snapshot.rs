//! `node snapshot`.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::output;
use super::units::bytes_text;
use super::{Connection, Failure, Output};
use crate::error::{Context, Fault, ImportError};
use crate::ids::{Address, ClusterId};
use crate::node;
use crate::os;
use crate::os::file::{NewFile, open};
use crate::state::backup::Reader;

/// Bytes between two words about how far it has come.
const PROGRESS_BYTES: u64 = 64 << 20;

/// What can be done with backups.
#[derive(Subcommand)]
pub enum Snapshot {
    /// Write the whole state of the cluster to a file, and check it
    Save {
        /// The file; there must be none
        file: PathBuf,
        /// Take what the member has that is asked, which may lack the latest changes: for when the majority is lost
        #[arg(long)]
        serializable: bool,
    },
    /// Check a file, and print what it is of
    Status {
        /// The file
        file: PathBuf,
    },
    /// Begin a new cluster with what a file holds
    Restore {
        /// The file
        file: PathBuf,
        /// Where the first node of the new cluster is to keep its data; start it there after this
        #[arg(long)]
        data_dir: PathBuf,
        /// Address at which it will be reached
        #[arg(long, default_value = "127.0.0.1:7400")]
        advertise: Address,
    },
}

/// What a backup is of, once it is known to be whole.
struct Checked {
    cluster: ClusterId,
    revision: u64,
    index: u64,
    rows: u64,
    bytes: u64,
    version: String,
}

fn check(file: &Path, from: impl Read) -> Result<Checked, Failure> {
    let unusable = |error: ImportError| match error {
        ImportError::Invalid(why) => Fault::new(format!("{}: {why}", file.display())),
        ImportError::Fault(fault) => fault,
    };
    let mut reader = Reader::open(from).map_err(unusable)?;
    while reader.chunk().map_err(unusable)?.is_some() {}
    let (rows, bytes) = reader.read();
    let head = reader.head();
    Ok(Checked {
        cluster: ClusterId(head.cluster_id),
        revision: head.revision,
        index: head.applied_index,
        rows,
        bytes,
        version: head.version.clone(),
    })
}

fn print(file: &Path, checked: &Checked, as_json: bool) {
    let Checked { cluster, revision, index, rows, bytes, version } = checked;
    if as_json {
        output::json(&json!({
            "file": file.display().to_string(), "cluster": cluster.hex(), "revision": revision, "index": index, "rows": rows,
            "bytes": bytes, "version": version,
        }));
        return;
    }
    say!("{}: whole, {bytes} bytes", file.display());
    say!("cluster {}, revision {revision}, entry {index}, {rows} rows, written by version {version}", cluster.hex());
}

impl Snapshot {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let as_json = connection.output == Output::Json;
        match self {
            Self::Save { file, serializable } => {
                let what = || format!("write {}", file.display());
                let mut written = NewFile::create(file).context(what)?;
                let mut backup = connection.client()?.backup(*serializable).await?;
                let (mut bytes, mut told) = (0, 0);
                while let Some((piece, after)) = backup.next().await? {
                    written.write(&piece).context(what)?;
                    bytes += piece.len() as u64;
                    if bytes - told >= PROGRESS_BYTES {
                        told = bytes;
                        eprintln!("{} of {}", bytes_text(bytes), bytes_text(bytes + after));
                    }
                }
                let checked = check(file, written.sync().context(what)?)?;
                written.finish().context(what)?;
                print(file, &checked, as_json);
            }
            Self::Status { file } => {
                let from = open(file).context(|| "read a backup".into())?;
                print(file, &check(file, from)?, as_json);
            }
            Self::Restore { file, data_dir, advertise } => {
                let what = || "read a backup".to_string();
                // Whole, before anything is written.
                check(file, open(file).context(what)?)?;
                let from = open(file).context(what)?;
                let io = os::io(data_dir, None)?;
                let (identity, head) = node::restore(&io, from, advertise)?;
                let (cluster, id, revision) = (identity.cluster.hex(), identity.id, head.revision);
                if as_json {
                    output::json(&json!({ "cluster": cluster, "id": id.0, "revision": revision }));
                } else {
                    say!(
                        "{} holds member {id} of the new cluster {cluster}, at revision {revision}",
                        data_dir.display()
                    );
                    say!("start it with: node start --data-dir {} --listen {advertise}", data_dir.display());
                }
            }
        }
        Ok(())
    }
}

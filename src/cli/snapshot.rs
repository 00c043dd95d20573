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
    #[command(
        after_help = "Examples:\n  node snapshot save monday.backup\n  node snapshot save monday.backup --serializable \
        --endpoints 10.0.0.2:7400"
    )]
    Save {
        /// The file; there must be none
        file: PathBuf,
        /// Take what the member has that is asked, which may lack the latest changes: for when the majority is lost
        #[arg(long)]
        serializable: bool,
    },
    /// Check a file, and print what it is of
    #[command(after_help = "Example:\n  node snapshot status monday.backup -o json")]
    Status {
        /// The file
        file: PathBuf,
    },
    /// Begin a new cluster with what a file holds
    #[command(
        after_help = "Example:\n  node snapshot restore monday.backup --data-dir n1 --advertise 127.0.0.1:7500\n  \
        node start --data-dir n1 --listen 127.0.0.1:7500"
    )]
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

fn print(file: &Path, checked: &Checked, output: Output) {
    let Checked { cluster, revision, index, rows, bytes, version } = checked;
    let (file, cluster) = (file.display().to_string(), cluster.hex());
    let document = json!({
        "file": file, "cluster": cluster, "revision": revision, "index": index, "rows": rows, "bytes": bytes,
        "version": version,
    });
    let numbers = [revision, index, rows, bytes].map(u64::to_string);
    let row: Vec<_> = [file.clone(), cluster.clone()].into_iter().chain(numbers).chain([version.clone()]).collect();
    let words = format_args!(
        "{file}: whole, {bytes} bytes\n\
         cluster {cluster}, revision {revision}, entry {index}, {rows} rows, written by version {version}"
    );
    output::told(output, &document, &row, words);
}

impl Snapshot {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
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
                print(file, &checked, connection.output);
            }
            Self::Status { file } => {
                let from = open(file).context(|| "read a backup".into())?;
                print(file, &check(file, from)?, connection.output);
            }
            Self::Restore { file, data_dir, advertise } => {
                let what = || "read a backup".to_string();
                // Whole, before anything is written.
                check(file, open(file).context(what)?)?;
                let from = open(file).context(what)?;
                let io = os::io(data_dir, None)?;
                let (identity, head) = node::restore(&io, from, advertise)?;
                let (cluster, id, revision) = (identity.cluster.hex(), identity.id, head.revision);
                let dir = data_dir.display();
                let document = json!({ "cluster": cluster, "id": id.0, "revision": revision });
                let more = match advertise.is_loopback() {
                    true => "",
                    false => " (and with what lets it be reached from other machines; see node credentials)",
                };
                let words = format_args!(
                    "{dir} holds member {id} of the new cluster {cluster}, at revision {revision}\n\
                     start it with: node start --data-dir {dir} --listen {advertise}{more}"
                );
                let row = [cluster.clone(), id.to_string(), revision.to_string()];
                output::told(connection.output, &document, &row, words);
            }
        }
        Ok(())
    }
}

//! The database of the replicated state and the one way to change it.
//!
//! Entries are applied in redb transactions that are not durable by themselves: the log is. A durable checkpoint is
//! taken every [`CHECKPOINT_ENTRIES_MAX`] entries or [`CHECKPOINT_BYTES_MAX`] bytes; after a crash the database is
//! as of the last one and the log is replayed from there. Applied index and term, sessions, membership and every
//! other row change in the same transaction, so what is replayed is exactly what is missing.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use xxhash_rust::xxh3::xxh3_64;

use super::table::{Rows, Snapshot, full_digest};
use super::{command, member};
use crate::entry::{Body, Entry, Outcome};
use crate::error::{Context, Fault};
use crate::ids::{Index, Term};
use crate::io::Disk;
use crate::limits::{CHECKPOINT_BYTES_MAX, CHECKPOINT_ENTRIES_MAX, DATABASE_CACHE_BYTES};
use crate::proto::v1;
use crate::time::ClusterTime;

/// The file that holds the state.
pub const STATE_FILE: &str = "state.redb";

const HEAD: TableDefinition<'static, (), &[u8]> = TableDefinition::new("head");

/// What one batch of entries is applied with.
pub(super) struct Apply<'txn> {
    pub(super) rows: Rows<'txn>,
    pub(super) head: v1::Head,
}

/// The replicated state of one member. Owned by one thread; read through [`StateReader`]s by any.
pub struct State {
    db: Arc<Database>,
    head: v1::Head,
    /// Applied index at the last durable checkpoint.
    durable: Index,
    /// Bytes applied since.
    since_durable: u64,
}

impl State {
    /// Opens the state of the data directory, making an empty one if there is none.
    ///
    /// # Errors
    /// The database cannot be opened or is corrupt.
    pub fn open(disk: &dyn Disk) -> Result<Self, Fault> {
        let what = || format!("open {STATE_FILE} in {}", disk.describe());
        let backend = disk.open(STATE_FILE).context(what)?;
        let mut builder = Builder::new();
        builder.set_cache_size(DATABASE_CACHE_BYTES);
        let db = builder.create_with_backend(backend).context(what)?;
        let txn = db.begin_write().context(what)?;
        let head = {
            let head = txn.open_table(HEAD).context(what)?;
            let row = head.get(()).context(what)?;
            let bytes = row.map(|row| row.value().to_vec()).unwrap_or_default();
            let head = v1::Head::decode(&*bytes).context(what)?;
            Rows::open(&txn, head.rows_digest)?;
            head
        };
        txn.commit().context(what)?;
        disk.sync_dir().context(what)?;
        let durable = Index(head.applied_index);
        Ok(Self { db: Arc::new(db), head, durable, since_durable: 0 })
    }

    /// Index and term of the last applied entry; zero if there is none.
    pub fn applied(&self) -> (Index, Term) {
        (Index(self.head.applied_index), Term(self.head.applied_term))
    }

    /// The applied index that survives a crash: the log before it may go.
    pub fn durable(&self) -> Index {
        self.durable
    }

    /// The latest stamp.
    pub fn cluster_time(&self) -> ClusterTime {
        ClusterTime(self.head.cluster_time_ms)
    }

    /// Raft's configuration at the applied index, as given with the last [`Body::Members`]; empty if there was none.
    pub fn conf_state(&self) -> &[u8] {
        &self.head.conf_state
    }

    /// The digest of the whole state: equal on all members at the same applied index.
    pub fn digest(&self) -> u64 {
        digest(&self.head)
    }

    /// A way to read that any number of threads may use, also while entries are applied.
    pub fn reader(&self) -> StateReader {
        StateReader { db: self.db.clone() }
    }

    /// Applies entries, which must follow the last applied one without a gap. Readers see all of them or none.
    ///
    /// # Errors
    /// The database failed, or an entry is not one that this version can apply. The state is as before; this member
    /// must stop.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, Fault> {
        let Some(last) = entries.last() else { return Ok(Vec::new()) };
        let what = || format!("apply the entries up to {}", last.index);
        let mut bytes = 0;
        let mut txn = self.db.begin_write().context(what)?;
        let since = last.index.0 - self.durable.0;
        let (head, outcomes) = {
            let rows = Rows::open(&txn, self.head.rows_digest)?;
            let mut apply = Apply { rows, head: self.head.clone() };
            let mut outcomes = Vec::with_capacity(entries.len());
            for entry in entries {
                assert_eq!(entry.index.0, apply.head.applied_index + 1, "entries are applied in order, each once");
                assert!(entry.term.0 >= apply.head.applied_term, "terms never go back along the log");
                let replies = apply_one(&mut apply, &entry.body, &mut bytes)?;
                apply.head.applied_index = entry.index.0;
                apply.head.applied_term = entry.term.0;
                apply.head.rows_digest = apply.rows.digest();
                outcomes.push(Outcome { replies, digest: digest(&apply.head) });
            }
            let mut table = txn.open_table(HEAD).context(what)?;
            table.insert((), &*apply.head.encode_to_vec()).context(what)?;
            (apply.head, outcomes)
        };
        let checkpoint = since >= CHECKPOINT_ENTRIES_MAX || self.since_durable + bytes >= CHECKPOINT_BYTES_MAX;
        if !checkpoint {
            txn.set_durability(Durability::None).context(what)?;
        }
        txn.commit().context(what)?;
        self.head = head;
        self.since_durable += bytes;
        if checkpoint {
            self.note_durable();
        }
        Ok(outcomes)
    }

    /// Makes everything applied so far survive a crash.
    ///
    /// # Errors
    /// The database failed; this member must stop.
    pub fn checkpoint(&mut self) -> Result<(), Fault> {
        if self.durable.0 == self.head.applied_index {
            return Ok(());
        }
        let what = || format!("checkpoint the state at {}", self.head.applied_index);
        self.db.begin_write().context(what)?.commit().context(what)?;
        self.note_durable();
        Ok(())
    }

    fn note_durable(&mut self) {
        self.durable = Index(self.head.applied_index);
        self.since_durable = 0;
    }
}

fn apply_one(apply: &mut Apply<'_>, body: &Body, bytes: &mut u64) -> Result<Vec<Bytes>, Fault> {
    match body {
        Body::Empty => Ok(Vec::new()),
        Body::Commands { stamp, commands } => {
            apply.head.cluster_time_ms = apply.head.cluster_time_ms.max(stamp.0);
            *bytes += commands.iter().map(|command| command.len() as u64).sum::<u64>();
            commands.iter().map(|command| command::execute(apply, command)).collect()
        }
        Body::Members { conf_state, change } => {
            let change = v1::MemberChange::decode(&**change).context(|| "decode a change of members".into())?;
            member::change(apply, &change)?;
            apply.head.conf_state = conf_state.clone();
            Ok(Vec::new())
        }
    }
}

fn digest(head: &v1::Head) -> u64 {
    xxh3_64(&head.encode_to_vec())
}

/// Reads the state as of its last applied batch.
#[derive(Clone)]
pub struct StateReader {
    db: Arc<Database>,
}

impl StateReader {
    /// The state at one point: it stays the same while it is held. Hold it briefly, it keeps old pages alive.
    ///
    /// # Errors
    /// The database failed.
    pub fn snapshot(&self) -> Result<(v1::Head, Snapshot), Fault> {
        let what = || "read the state".to_string();
        let txn = self.db.begin_read().context(what)?;
        let head = {
            let table = txn.open_table(HEAD).context(what)?;
            let row = table.get(()).context(what)?;
            row.map(|row| v1::Head::decode(row.value())).transpose().context(what)?.unwrap_or_default()
        };
        Ok((head, Snapshot::new(txn)))
    }

    /// The digest of the state, computed anew from every row. Equal to [`State::digest`] unless rows changed behind
    /// its back.
    ///
    /// # Errors
    /// The database failed.
    pub fn full_digest(&self) -> Result<u64, Fault> {
        let (mut head, rows) = self.snapshot()?;
        head.rows_digest = full_digest(&rows)?;
        Ok(digest(&head))
    }
}

//! The durable log: entries, hard state and identity in one redb database with one owner.
//!
//! Every transaction also writes the latest full hard state, so there is no moment at which an entry is durable and
//! the term it was accepted in is not. One sync serves all writes that queued up. Any error of a write or a sync ends
//! the node; it is never retried, because a failed sync may have dropped what it claims still to hold.

use std::collections::BTreeMap;

use prost::Message as _;
use raft::eraftpb::{Entry, HardState};
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::codec;
use crate::error::{Context, Fault};
use crate::ids::{Address, ClusterId, Incarnation, Index, NodeId, Term};
use crate::io::Disk;
use crate::limits::DATABASE_CACHE_BYTES;
use crate::proto::v1;

/// The file that holds the log.
pub const LOG_FILE: &str = "log.redb";

const ENTRIES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

const IDENTITY: &str = "identity";
const HARD_STATE: &str = "hard state";
const COMPACTED: &str = "compacted";
const INSTALLED: &str = "installed";
const INCARNATION: &str = "incarnation";
const UUID: &str = "uuid";

/// Who this member is. Written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its own id there.
    pub id: NodeId,
}

/// What raft-rs wants to be durable.
#[derive(Clone, Debug)]
pub struct Write {
    /// The number to report when it is.
    pub number: u64,
    /// A snapshot that takes the place of the whole log, before the entries: its index and term. The state built from
    /// it is durable already; from this write on it is the one that counts.
    pub snapshot: Option<(Index, Term)>,
    /// Entries to append; they replace whatever stands at and after the first one's index.
    pub entries: Vec<Entry>,
    /// The latest full hard state.
    pub hard_state: HardState,
}

/// A change of the log.
#[derive(Clone, Debug)]
pub enum Change {
    /// What raft-rs wants.
    Write(Write),
    /// The entries up to this one, of this term, may go: the durable state has them.
    Compact(Index, Term),
}

/// What a boot found in the log.
#[derive(Debug)]
pub struct Recovered {
    /// How often the member has started, this time included.
    pub incarnation: Incarnation,
    /// The hard state of the last durable write.
    pub hard_state: HardState,
    /// The last index that the log no longer holds, and its term.
    pub compacted: (Index, Term),
    /// All entries, in order.
    pub entries: Vec<Entry>,
}

/// The log's database.
pub struct Log {
    db: Database,
    place: String,
    last: Index,
}

impl Log {
    /// Opens the log of the data directory, making an empty one if there is none.
    ///
    /// # Errors
    /// The database cannot be opened.
    pub fn open(disk: &dyn Disk) -> Result<Self, Fault> {
        let place = format!("{LOG_FILE} in {}", disk.describe());
        let what = || format!("open {place}");
        let backend = disk.open(LOG_FILE).context(what)?;
        let mut builder = Builder::new();
        builder.set_cache_size(DATABASE_CACHE_BYTES);
        let db = builder.create_with_backend(backend).context(what)?;
        let txn = db.begin_write().context(what)?;
        let last = {
            let meta = txn.open_table(META).context(what)?;
            last_index(&txn.open_table(ENTRIES).context(what)?, &meta)?
        };
        txn.commit().context(what)?;
        disk.sync_dir().context(what)?;
        Ok(Self { db, place, last })
    }

    /// Who this member is; `None` before it founded or joined a cluster.
    ///
    /// # Errors
    /// The database failed or is corrupt.
    pub fn identity(&self) -> Result<Option<Identity>, Fault> {
        let row = self.joined()?;
        Ok(row.map(|row| Identity { cluster: ClusterId(row.cluster_id), id: NodeId(row.id) }))
    }

    /// The index of the snapshot that the state was installed from; 0 if it was built by applying. It says which file
    /// holds the state.
    ///
    /// # Errors
    /// The database failed or is corrupt.
    pub fn installed(&self) -> Result<Index, Fault> {
        let txn = self.db.begin_write().context(|| format!("read {}", self.place))?;
        let row = get(&txn, INSTALLED)?;
        row.map_or(Ok(Index(0)), |bytes| words(INSTALLED, &bytes).map(|[index]| Index(index)))
    }

    fn joined(&self) -> Result<Option<v1::JoinReply>, Fault> {
        let what = || format!("read the identity from {}", self.place);
        let txn = self.db.begin_write().context(what)?;
        get(&txn, IDENTITY)?.map(|bytes| v1::JoinReply::decode(&*bytes).context(what)).transpose()
    }

    /// Where the members were when this one was taken in: all it knows until it has the log.
    ///
    /// # Errors
    /// The database failed or is corrupt.
    pub fn first_peers(&self) -> Result<BTreeMap<NodeId, Address>, Fault> {
        let members = self.joined()?.map(|row| row.members).unwrap_or_default();
        let peer = |member: v1::Member| {
            let address = member.address.parse().context(|| format!("read the address of member {}", member.id))?;
            Ok((NodeId(member.id), address))
        };
        members.into_iter().map(peer).collect()
    }

    /// The member's own mark, drawn with `draw` and made durable the first time: it makes joining idempotent.
    ///
    /// # Errors
    /// The database failed or is corrupt.
    pub fn uuid(&mut self, draw: impl FnOnce() -> [u8; 16]) -> Result<[u8; 16], Fault> {
        let what = || format!("read the uuid from {}", self.place);
        let txn = self.db.begin_write().context(what)?;
        if let Some(bytes) = get(&txn, UUID)? {
            return bytes.try_into().map_err(|bytes: Vec<u8>| Fault::new(format!("a uuid of {} bytes", bytes.len())));
        }
        let uuid = draw();
        put(&txn, UUID, &uuid)?;
        txn.commit().context(what)?;
        Ok(uuid)
    }

    /// Makes durable who this member is, with the entries a founder begins with and the hard state they imply.
    ///
    /// # Errors
    /// The member has another identity already, or the database failed.
    pub fn establish(&mut self, joined: &v1::JoinReply, genesis: &[Entry]) -> Result<(), Fault> {
        let what = || format!("write the identity to {}", self.place);
        if let Some(found) = self.identity()? {
            return Err(Fault::new(format!("{} belongs to member {} already", self.place, found.id)));
        }
        let txn = self.db.begin_write().context(what)?;
        put(&txn, IDENTITY, &joined.encode_to_vec())?;
        if let Some(last) = genesis.last() {
            let mut hard_state = HardState::default();
            hard_state.term = last.term;
            hard_state.commit = last.index;
            self.last = append(&txn, genesis, self.last)?;
            put(&txn, HARD_STATE, &bytes_of([hard_state.term, hard_state.vote, hard_state.commit]))?;
        }
        txn.commit().context(what)
    }

    /// Counts this start, and reads and checks the whole log.
    ///
    /// # Errors
    /// The database failed, or a record is corrupt: this member must not go on without it, for it may have been
    /// promised to others.
    pub fn recover(&mut self) -> Result<Recovered, Fault> {
        let what = || format!("recover the log from {}", self.place);
        let txn = self.db.begin_write().context(what)?;
        let incarnation = match get(&txn, INCARNATION)? {
            Some(bytes) => u64::from_le_bytes(bytes.as_slice().try_into().context(what)?) + 1,
            None => 1,
        };
        put(&txn, INCARNATION, &incarnation.to_le_bytes())?;
        let hard_state = get(&txn, HARD_STATE)?.map(|bytes| hard_state(&bytes)).transpose()?.unwrap_or_default();
        let compacted = compacted(&txn.open_table(META).context(what)?)?;
        let mut entries = Vec::new();
        let mut expected = compacted.0.next();
        let mut term = compacted.1.0;
        {
            let table = txn.open_table(ENTRIES).context(what)?;
            for row in table.range(expected.0..).context(what)? {
                let (index, record) = row.context(what)?;
                if index.value() != expected.0 {
                    return Err(Fault::new(format!("{} lacks the entry {expected}", self.place)));
                }
                let entry = codec::entry_of_record(expected, record.value()).context(what)?;
                // An entry older than the one before it is what remains of a suffix that should have been replaced.
                if entry.term < term || entry.term > hard_state.term {
                    let (found, newest) = (entry.term, hard_state.term);
                    let text = format!(
                        "{}: the entry {expected} is of term {found}, after {term} and in {newest}",
                        self.place
                    );
                    return Err(Fault::new(text));
                }
                term = entry.term;
                entries.push(entry);
                expected = expected.next();
            }
        }
        txn.commit().context(what)?;
        Ok(Recovered { incarnation: Incarnation(incarnation), hard_state, compacted, entries })
    }

    /// Makes changes durable, in order, in one transaction with one sync.
    ///
    /// # Errors
    /// The database failed; this member must stop.
    pub fn write(&mut self, changes: &[Change]) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let what = || format!("write to {}", self.place);
        let txn = self.db.begin_write().context(what)?;
        let mut end = self.last;
        for change in changes {
            match change {
                Change::Compact(index, term) => {
                    assert!(*index <= end, "{index} is beyond {end}");
                    remove_upto(&txn, *index)?;
                    put(&txn, COMPACTED, &bytes_of([index.0, term.0]))?;
                }
                Change::Write(Write { snapshot, entries, hard_state, .. }) => {
                    if let Some((index, term)) = snapshot {
                        remove_upto(&txn, Index(u64::MAX))?;
                        put(&txn, COMPACTED, &bytes_of([index.0, term.0]))?;
                        put(&txn, INSTALLED, &bytes_of([index.0]))?;
                        end = *index;
                    }
                    end = append(&txn, entries, end)?;
                    put(&txn, HARD_STATE, &bytes_of([hard_state.term, hard_state.vote, hard_state.commit]))?;
                }
            }
        }
        txn.commit().context(what)?;
        self.last = end;
        Ok(())
    }

    /// Entries `low..high`, at most `bytes_max` of them but at least one.
    ///
    /// # Errors
    /// The database failed or a record is corrupt.
    pub fn read(&self, low: Index, high: Index, bytes_max: u64) -> Result<Vec<Entry>, Fault> {
        let what = || format!("read the entries {low}..{high} from {}", self.place);
        let txn = self.db.begin_read().context(what)?;
        let table = txn.open_table(ENTRIES).context(what)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in table.range(low.0..high.0).context(what)? {
            let (index, record) = row.context(what)?;
            bytes += record.value().len() as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(codec::entry_of_record(Index(index.value()), record.value()).context(what)?);
        }
        Ok(entries)
    }
}

/// What a log on this disk has promised: its hard state and last index. For whoever must know that without starting a
/// member: nothing is written.
///
/// # Errors
/// There is no log, or it is corrupt.
pub fn promised(disk: &dyn Disk) -> Result<(HardState, Index), Fault> {
    let what = || format!("read {LOG_FILE} in {}", disk.describe());
    let db = Builder::new().create_with_backend(disk.open(LOG_FILE).context(what)?).context(what)?;
    let txn = db.begin_read().context(what)?;
    let meta = txn.open_table(META).context(what)?;
    let last = last_index(&txn.open_table(ENTRIES).context(what)?, &meta)?;
    let hard_state = row(&meta, HARD_STATE)?.map(|bytes| hard_state(&bytes)).transpose()?.unwrap_or_default();
    Ok((hard_state, last))
}

fn last_index(
    entries: &impl ReadableTable<u64, &'static [u8]>,
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Index, Fault> {
    match entries.last().context(|| "find the end of the log".into())? {
        Some((index, _)) => Ok(Index(index.value())),
        None => Ok(compacted(meta)?.0),
    }
}

/// Appends to a log that ends at `last`, and says where it ends then.
fn append(txn: &WriteTransaction, entries: &[Entry], last: Index) -> Result<Index, Fault> {
    let what = || "append to the log".to_string();
    let Some(first) = entries.first() else { return Ok(last) };
    assert!(first.index <= last.0 + 1, "entry {} would leave a gap after {last}", first.index);
    let mut table = txn.open_table(ENTRIES).context(what)?;
    let end = entries.last().map_or(0, |entry| entry.index);
    for stale in end + 1..=last.0 {
        table.remove(stale).context(what)?;
    }
    for entry in entries {
        table.insert(entry.index, &*codec::record(entry)).context(what)?;
    }
    Ok(Index(end))
}

fn remove_upto(txn: &WriteTransaction, index: Index) -> Result<(), Fault> {
    let what = || "remove old entries from the log".to_string();
    let mut table = txn.open_table(ENTRIES).context(what)?;
    table.retain_in(..=index.0, |_, _| false).context(what)
}

/// Reads a row of the meta table and checks its checksum.
fn get(txn: &WriteTransaction, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    row(&txn.open_table(META).context(|| format!("read the log's {name}"))?, name)
}

fn row(meta: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let Some(row) = meta.get(name).context(|| format!("read the log's {name}"))? else { return Ok(None) };
    let sum = || Fault::new(format!("the log's {name} is corrupt: its checksum does not match"));
    let (stored, value) = row.value().split_at_checked(4).ok_or_else(sum)?;
    let computed = crc32c::crc32c_append(crc32c::crc32c(name.as_bytes()), value);
    if stored != computed.to_le_bytes() {
        return Err(sum());
    }
    Ok(Some(value.to_vec()))
}

fn put(txn: &WriteTransaction, name: &str, value: &[u8]) -> Result<(), Fault> {
    let what = || format!("write the log's {name}");
    let sum = crc32c::crc32c_append(crc32c::crc32c(name.as_bytes()), value);
    let row = [&sum.to_le_bytes(), value].concat();
    txn.open_table(META).context(what)?.insert(name, &*row).context(what)?;
    Ok(())
}

fn bytes_of<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words<const N: usize>(what: &str, bytes: &[u8]) -> Result<[u64; N], Fault> {
    let mut words = [0; N];
    if bytes.len() != N * 8 {
        return Err(Fault::new(format!("the log's {what} has {} bytes, not {}", bytes.len(), N * 8)));
    }
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
    }
    Ok(words)
}

fn hard_state(bytes: &[u8]) -> Result<HardState, Fault> {
    let [term, vote, commit] = words(HARD_STATE, bytes)?;
    let mut state = HardState::default();
    (state.term, state.vote, state.commit) = (term, vote, commit);
    Ok(state)
}

/// The last index that the log no longer holds, and its term.
fn compacted(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<(Index, Term), Fault> {
    let row = row(meta, COMPACTED)?;
    let [index, term] = row.map_or(Ok([0, 0]), |bytes| words(COMPACTED, &bytes))?;
    Ok((Index(index), Term(term)))
}

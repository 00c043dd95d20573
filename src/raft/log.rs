//! The durable log: entries, hard state and identity in one [`Journal`] with one owner. A worker that keeps no state has one for
//! its identity alone.
//!
//! Every batch also writes the latest full hard state, so there is no moment at which an entry is durable and
//! the term it was accepted in is not. One sync serves all writes that queued up. Any error of a write or a sync ends
//! the node; it is never retried, because a failed sync may have dropped what it claims still to hold.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, HardState};

use super::codec;
use super::journal::{Batch, Journal};
use crate::error::{Context, Fault};
use crate::ids::{Address, ClusterId, Incarnation, Index, NodeId, Term};
use crate::io::Disk;
use crate::proto::v1;

/// The file that holds the log.
pub const LOG_FILE: &str = "log";
/// The file that held it in earlier versions, as a database.
const OLD_LOG_FILE: &str = "log.redb";

const IDENTITY: &str = "identity";
const HARD_STATE: &str = "hard state";
const COMPACTED: &str = "compacted";
const INSTALLED: &str = "installed";
const INCARNATION: &str = "incarnation";
const UUID: &str = "uuid";

/// Who this member is, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its own id there.
    pub id: NodeId,
}

impl Identity {
    /// What a member is that was taken in so.
    pub fn of(joined: &v1::JoinReply) -> Self {
        Self { cluster: ClusterId(joined.cluster_id), id: NodeId(joined.id) }
    }
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

/// The log of one member.
pub struct Log {
    journal: Journal,
    place: String,
    last: Index,
}

impl Log {
    /// Opens the log of the data directory, making an empty one if there is none.
    ///
    /// # Errors
    /// The journal cannot be opened.
    pub fn open(disk: &dyn Disk) -> Result<Self, Fault> {
        let place = format!("{LOG_FILE} in {}", disk.describe());
        let journal = open_journal(disk)?;
        disk.sync_dir().context(|| format!("open {place}"))?;
        let last = last_index(&journal)?;
        Ok(Self { journal, place, last })
    }

    /// Who this member is; `None` before it founded or joined a cluster.
    ///
    /// # Errors
    /// The journal failed or is corrupt.
    pub fn identity(&self) -> Result<Option<Identity>, Fault> {
        Ok(self.joined()?.as_ref().map(Identity::of))
    }

    /// The index of the snapshot that the state was installed from; 0 if it was built by applying. It says which file
    /// holds the state.
    ///
    /// # Errors
    /// The journal failed or is corrupt.
    pub fn installed(&self) -> Result<Index, Fault> {
        let row = self.journal.named(INSTALLED);
        row.map_or(Ok(Index(0)), |bytes| words(INSTALLED, bytes).map(|[index]| Index(index)))
    }

    /// What the cluster said when it took this member in; `None` before.
    ///
    /// # Errors
    /// The journal failed or is corrupt.
    pub fn joined(&self) -> Result<Option<v1::JoinReply>, Fault> {
        let what = || format!("read the identity from {}", self.place);
        self.journal.named(IDENTITY).map(|bytes| v1::JoinReply::decode(bytes).context(what)).transpose()
    }

    /// Where the members were when this one was taken in, itself among them: all it knows until it has the log.
    ///
    /// # Errors
    /// The journal failed or is corrupt.
    pub fn first_peers(&self) -> Result<BTreeMap<NodeId, Address>, Fault> {
        let members = self.joined()?.map(|row| row.members).unwrap_or_default();
        let peer = |member: v1::Member| {
            let address = member.address.parse().context(|| format!("read the address of member {}", member.id))?;
            Ok((NodeId(member.id), address))
        };
        members.into_iter().map(peer).collect()
    }

    /// The member's own mark, drawn with `draw` and made durable the first time: it makes joining idempotent. With it is drawn the
    /// [salt](Journal::set_salt) of the journal, which this is the first to write to.
    ///
    /// # Errors
    /// The journal failed or is corrupt.
    pub fn uuid(&mut self, draw: impl FnOnce() -> ([u8; 16], u32)) -> Result<[u8; 16], Fault> {
        if let Some(bytes) = self.journal.named(UUID) {
            return bytes.try_into().map_err(|_| Fault::new(format!("a uuid of {} bytes", bytes.len())));
        }
        let ((uuid, salt), mut batch) = (draw(), Batch::default());
        batch.name(UUID, uuid);
        self.journal.set_salt(salt);
        self.journal.commit(&batch).context(|| format!("write the uuid to {}", self.place))?;
        Ok(uuid)
    }

    /// Makes durable who this member is, with the entries a founder begins with and the hard state they imply.
    ///
    /// # Errors
    /// The member has another identity already, or the journal failed.
    pub fn establish(&mut self, joined: &v1::JoinReply, genesis: &[Entry]) -> Result<(), Fault> {
        if let Some(found) = self.identity()? {
            return Err(Fault::new(format!("{} belongs to member {} already", self.place, found.id)));
        }
        let mut batch = Batch::default();
        batch.name(IDENTITY, joined.encode_to_vec());
        let end = append(&mut batch, genesis, self.last);
        if let Some(last) = genesis.last() {
            batch.name(HARD_STATE, bytes_of([last.term, 0, last.index]));
        }
        self.journal.commit(&batch).context(|| format!("write the identity to {}", self.place))?;
        self.last = end;
        Ok(())
    }

    /// Makes durable who this member is, of a cluster that begins with a state at a position.
    ///
    /// # Errors
    /// The member has another identity already, or the journal failed.
    pub fn establish_at(&mut self, joined: &v1::JoinReply, (index, term): (Index, Term)) -> Result<(), Fault> {
        if let Some(found) = self.identity()? {
            return Err(Fault::new(format!("{} belongs to member {} already", self.place, found.id)));
        }
        let mut batch = Batch::default();
        batch.name(IDENTITY, joined.encode_to_vec());
        begin_after(&mut batch, (index, term));
        batch.name(HARD_STATE, bytes_of([term.0, 0, index.0]));
        self.journal.commit(&batch).context(|| format!("write the identity to {}", self.place))?;
        self.last = index;
        Ok(())
    }

    /// Makes durable where the others are now: a worker that keeps no state knows it from nowhere else.
    ///
    /// # Errors
    /// The journal failed.
    ///
    /// # Panics
    /// Before [`Self::establish`].
    pub fn meet(&mut self, members: Vec<v1::Member>) -> Result<(), Fault> {
        let joined = self.joined()?.expect("only who belongs to a cluster meets its members");
        let mut batch = Batch::default();
        batch.name(IDENTITY, v1::JoinReply { members, ..joined }.encode_to_vec());
        self.journal.commit(&batch).context(|| format!("write the identity to {}", self.place))
    }

    /// Counts this start, and reads and checks the whole log.
    ///
    /// # Errors
    /// The journal failed, or a record is corrupt: this member must not go on without it, for it may have been
    /// promised to others.
    pub fn recover(&mut self) -> Result<Recovered, Fault> {
        let what = || format!("recover the log from {}", self.place);
        let incarnation = match self.journal.named(INCARNATION) {
            Some(bytes) => u64::from_le_bytes(bytes.try_into().context(what)?) + 1,
            None => 1,
        };
        let mut batch = Batch::default();
        batch.name(INCARNATION, incarnation.to_le_bytes());
        let hard_state = self.journal.named(HARD_STATE).map(hard_state).transpose()?.unwrap_or_default();
        let compacted = compacted(&self.journal)?;
        let mut entries = Vec::new();
        let mut expected = compacted.0.next();
        let mut term = compacted.1.0;
        let mut check = |index: u64, record: &[u8]| {
            if index != expected.0 {
                return Err(Fault::new(format!("{} lacks the entry {expected}", self.place)));
            }
            let entry = codec::entry_of_record(expected, record).context(what)?;
            // An entry older than the one before it is what remains of a suffix that should have been replaced.
            if entry.term < term || entry.term > hard_state.term {
                let (found, newest) = (entry.term, hard_state.term);
                let text =
                    format!("{}: the entry {expected} is of term {found}, after {term} and in {newest}", self.place);
                return Err(Fault::new(text));
            }
            term = entry.term;
            entries.push(entry);
            expected = expected.next();
            Ok(())
        };
        each(&self.journal, compacted.0.next().0..u64::MAX, what, &mut |index, record| {
            check(index, record).map(|()| ControlFlow::Continue(()))
        })?;
        self.journal.commit(&batch).context(what)?;
        Ok(Recovered { incarnation: Incarnation(incarnation), hard_state, compacted, entries })
    }

    /// What the entries that are kept make of members, in order, whether they are committed or not.
    ///
    /// # Errors
    /// The journal failed or a record is corrupt.
    pub fn changed_members(&self) -> Result<Vec<v1::Member>, Fault> {
        let what = || format!("read the changes of members from {}", self.place);
        let mut members = Vec::new();
        each(&self.journal, 0..u64::MAX, what, &mut |index, record| {
            let entry = codec::entry_of_record(Index(index), record).context(what)?;
            if entry.get_entry_type() == EntryType::EntryConfChangeV2 {
                members.extend(v1::MemberChange::decode(&*entry.context).context(what)?.members);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(members)
    }

    /// Makes changes durable, in order, in one batch with one sync.
    ///
    /// # Errors
    /// The journal failed; this member must stop.
    pub fn write(&mut self, changes: &[Change]) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        let mut end = self.last;
        for change in changes {
            match change {
                Change::Compact(index, term) => {
                    assert!(*index <= end, "{index} is beyond {end}");
                    batch.remove(0..index.next().0);
                    batch.name(COMPACTED, bytes_of([index.0, term.0]));
                }
                Change::Write(Write { snapshot, entries, hard_state, .. }) => {
                    if let Some((index, term)) = snapshot {
                        batch.remove(0..u64::MAX);
                        begin_after(&mut batch, (*index, *term));
                        end = *index;
                    }
                    end = append(&mut batch, entries, end);
                    batch.name(HARD_STATE, bytes_of([hard_state.term, hard_state.vote, hard_state.commit]));
                }
            }
        }
        self.journal.commit(&batch).context(|| format!("write to {}", self.place))?;
        self.last = end;
        Ok(())
    }

    /// Entries `low..high`, at most `bytes_max` of them but at least one.
    ///
    /// # Errors
    /// The journal failed or a record is corrupt.
    pub fn read(&self, low: Index, high: Index, bytes_max: u64) -> Result<Vec<Entry>, Fault> {
        let what = || format!("read the entries {low}..{high} from {}", self.place);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        each(&self.journal, low.0..high.0, what, &mut |index, record| {
            bytes += record.len() as u64;
            if bytes > bytes_max && !entries.is_empty() {
                return Ok(ControlFlow::Break(()));
            }
            entries.push(codec::entry_of_record(Index(index), record).context(what)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(entries)
    }
}

/// The log begins after a position, and the state was installed there.
fn begin_after(batch: &mut Batch, (index, term): (Index, Term)) {
    batch.name(COMPACTED, bytes_of([index.0, term.0]));
    batch.name(INSTALLED, bytes_of([index.0]));
}

/// What the log in a journal has promised: its hard state, and index and term of its last entry. For whoever must know that
/// without starting a member.
///
/// # Errors
/// It is corrupt.
pub fn promised(journal: &Journal) -> Result<(HardState, (Index, Term)), Fault> {
    let hard_state = journal.named(HARD_STATE).map(hard_state).transpose()?.unwrap_or_default();
    let last = last_index(journal)?;
    let term = term_at(journal, last)?.ok_or_else(|| Fault::new(format!("the log lacks its last entry, {last}")))?;
    Ok((hard_state, (last, term)))
}

/// The term of the entry at an index of the log in a journal; `None` if the log does not reach there, from either side.
///
/// # Errors
/// It is corrupt.
pub fn term_at(journal: &Journal, index: Index) -> Result<Option<Term>, Fault> {
    let (last, term) = compacted(journal)?;
    if index == last {
        return Ok(Some(term));
    }
    let what = || format!("read the entry {index}");
    let mut found = None;
    each(journal, index.0..index.next().0, what, &mut |_, record| {
        found = Some(Term(codec::entry_of_record(index, record).context(what)?.term));
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Opens the journal in the data directory that holds the log.
///
/// # Errors
/// It cannot be opened, or is corrupt.
pub fn open_journal(disk: &dyn Disk) -> Result<Journal, Fault> {
    let what = || format!("open {LOG_FILE} in {}", disk.describe());
    let names = disk.list().context(what)?;
    if names.iter().any(|name| name == OLD_LOG_FILE) {
        let text = format!(
            "{OLD_LOG_FILE} in {} is of an earlier version, which keeps its log otherwise; with that one save a snapshot, \
             and restore it with this one",
            disk.describe()
        );
        return Err(Fault::new(text));
    }
    let journal = Journal::open(disk.open(LOG_FILE).context(what)?).context(what)?;
    // Every other file comes after the log: where there is one, the log was there, and what it promised must be.
    if journal.is_empty() && names.iter().any(|name| name.ends_with(".redb")) {
        return Err(Fault::new(format!("{}: corrupt: it is empty, and the state is not", what())));
    }
    Ok(journal)
}

fn last_index(journal: &Journal) -> Result<Index, Fault> {
    match journal.last() {
        Some(index) => Ok(Index(index)),
        None => Ok(compacted(journal)?.0),
    }
}

/// Appends to a log that ends at `last`, and says where it ends then.
fn append(batch: &mut Batch, entries: &[Entry], last: Index) -> Index {
    let (Some(first), Some(end)) = (entries.first(), entries.last()) else { return last };
    assert!(first.index <= last.0 + 1, "entry {} would leave a gap after {last}", first.index);
    batch.remove(end.index + 1..last.0 + 1);
    for entry in entries {
        batch.put(entry.index, codec::record(entry));
    }
    Index(end.index)
}

/// What is called for a record.
type EachRecord<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<ControlFlow<()>, Fault>;

/// Calls `each` for the records of a range until it breaks.
fn each(
    journal: &Journal,
    range: std::ops::Range<u64>,
    what: impl Fn() -> String,
    each: EachRecord<'_>,
) -> Result<(), Fault> {
    let mut failed = None;
    let scanned = journal.scan(range, &mut |index, record| match each(index, record) {
        Ok(flow) => flow,
        Err(fault) => {
            failed = Some(fault);
            ControlFlow::Break(())
        }
    });
    scanned.context(what)?;
    failed.map_or(Ok(()), Err)
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
fn compacted(journal: &Journal) -> Result<(Index, Term), Fault> {
    let row = journal.named(COMPACTED);
    let [index, term] = row.map_or(Ok([0, 0]), |bytes| words(COMPACTED, bytes))?;
    Ok((Index(index), Term(term)))
}

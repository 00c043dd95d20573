//! The database of the replicated state and the one way to change it.
//!
//! Entries are applied in redb transactions that are not durable by themselves: the log is. A durable checkpoint is
//! taken every [`CHECKPOINT_ENTRIES_MAX`] entries or [`CHECKPOINT_BYTES_MAX`] bytes; after a crash the database is
//! as of the last one and the log is replayed from there. Applied index and term, sessions, membership and every
//! other row change in the same transaction, so what is replayed is exactly what is missing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use prost::Message;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend as _, StorageError,
    TableDefinition,
};
use xxhash_rust::xxh3::xxh3_64;

use super::auth::Auth;
use super::budget::Budget;
use super::defragment::{Changes, Defragmenter, NEW_FILE, Noted, Notes, copy_changes, not_written};
use super::kv::KeyIndex;
use super::table::{Rows, View, full_digest};
use super::{command, format, member};
use crate::entry::{Body, Entry, Outcome, Step};
use crate::error::{Context, Fault};
use crate::ids::{Index, Term};
use crate::io::{Disk, Wanted, open_for_database};
use crate::limits::{
    ANSWERS_BYTES_MAX, CHECKPOINT_BYTES_MAX, CHECKPOINT_ENTRIES_MAX, READ_BYTES_MAX, STATE_CACHE_BYTES,
};
use crate::proto::v1;
use crate::time::ClusterTime;

/// What the names of files that hold a state begin with.
const STATE_PREFIX: &str = "state-";

pub(super) const HEAD: TableDefinition<'static, (), &[u8]> = TableDefinition::new("head");

/// The file that holds the state installed from the snapshot at `index`, or built by applying from the first entry on
/// if that is 0.
pub fn file_name(index: Index) -> String {
    format!("{STATE_PREFIX}{index}.redb")
}

/// The bytes of the files that hold a state.
///
/// # Errors
/// What the file system says.
pub fn file_bytes(disk: &dyn Disk) -> std::io::Result<u64> {
    let names = disk.list()?;
    let size = |name: &String| match disk.size(name) {
        // Another took its place meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        size => size,
    };
    names.iter().filter(|name| name.starts_with(STATE_PREFIX)).map(size).sum()
}

/// Removes a file of a state; nothing happens if there is none.
pub(super) fn remove_file(disk: &dyn Disk, name: &str) -> Result<(), Fault> {
    let what = || format!("remove {name} in {}", disk.describe());
    if disk.list().context(what)?.iter().any(|other| other == name) {
        disk.remove(name).context(what)?;
    }
    Ok(())
}

pub(super) fn open_database(disk: &dyn Disk, name: &str) -> Result<Database, Fault> {
    open_as_left(disk, name).map(|(db, _)| db)
}

/// Opens it, and says whether it had been closed in order: then the database has not looked at its pages.
fn open_as_left(disk: &dyn Disk, name: &str) -> Result<(Database, bool), Fault> {
    let what = || format!("open {name} in {}", disk.describe());
    // What is built by applying from the first entry on can be built again.
    let backend = open_for_database(disk, name, name == file_name(Index(0))).context(what)?;
    let is_new = backend.len().context(what)? == 0;
    let repaired = Arc::new(AtomicBool::new(false));
    let mut builder = Builder::new();
    builder.set_cache_size(STATE_CACHE_BYTES);
    let note = repaired.clone();
    builder.set_repair_callback(move |_| note.store(true, Ordering::Relaxed));
    let db = builder.create_with_backend(backend).context(what)?;
    let repaired = repaired.load(Ordering::Relaxed);
    sometimes!(repaired, "a state was opened that had not been closed");
    sometimes!(!repaired && !is_new, "a state was opened that had been closed");
    Ok((db, !repaired && !is_new))
}

/// Opens a database whose pages may have rotted since it was written: all of them are looked at.
fn open_checked(disk: &dyn Disk, name: &str) -> Result<Database, Fault> {
    let (mut db, was_closed) = open_as_left(disk, name)?;
    if !was_closed {
        return Ok(db);
    }
    match db.check_integrity() {
        Ok(is_clean) => {
            if !is_clean {
                tracing::warn!(
                    name,
                    place = disk.describe(),
                    "which of its pages are free was not right, and is found out anew"
                );
            }
            Ok(db)
        }
        Err(DatabaseError::Storage(StorageError::Corrupted(why))) => {
            sometimes!("a state that had been closed was found to have rotted");
            // Closing it would write to it.
            std::mem::forget(db);
            let place = disk.describe();
            let what =
                format!("{name} in {place} is damaged; remove this member, and join with an empty data directory");
            Err(Fault::because(what, why))
        }
        Err(error) => Err(error).context(|| format!("check {name} in {}", disk.describe())),
    }
}

/// What one batch of entries is applied with.
pub(super) struct Apply<'txn> {
    pub(super) rows: Rows<'txn>,
    pub(super) head: v1::Head,
    /// The index of keys. Readers see it change before the rows: they look for nothing newer than their revision.
    pub(super) index: Arc<RwLock<KeyIndex>>,
    /// What users may do, as of these rows.
    pub(super) auth: Arc<Auth>,
    /// The newest format that this member takes part in.
    pub(super) newest: u32,
    /// What the commands of this entry have read.
    pub(super) budget: Budget,
}

impl Apply<'_> {
    /// Whether the state has come to a format.
    pub(super) fn has(&self, format: u32) -> bool {
        self.head.format >= format
    }
}

/// The replicated state of one member. Owned by one thread; read through [`StateReader`]s by any.
pub struct State {
    disk: Arc<dyn Disk>,
    /// The file's name.
    name: String,
    /// What there is, and what the readers read.
    current: Current,
    store: Store,
    head: v1::Head,
    /// Applied index at the last durable checkpoint.
    durable: Index,
    /// Bytes applied since.
    since_durable: u64,
    /// What is changed while the state is written anew.
    notes: Notes,
    /// The newest format that it takes part in.
    newest: u32,
    /// What the commands of one entry read at most, in bytes.
    entry_reads: u64,
}

/// A database, the index of its keys, and what its users may do.
#[derive(Clone)]
struct Store {
    db: Arc<Database>,
    index: Arc<RwLock<KeyIndex>>,
    auth: Arc<Auth>,
}

impl Store {
    fn new(db: Database, head: &v1::Head) -> Result<Self, Fault> {
        let index = load_index(&db, head)?;
        let rows = View::new(db.begin_read().context(|| "read the users".into())?, Arc::default());
        let auth = Arc::new(Auth::load(&rows, head)?);
        drop(rows);
        Ok(Self { db: Arc::new(db), index: Arc::new(RwLock::new(index)), auth })
    }
}

fn load_index(db: &Database, head: &v1::Head) -> Result<KeyIndex, Fault> {
    let rows = View::new(db.begin_read().context(|| "read the keys".into())?, Arc::default());
    KeyIndex::load(&rows, head.compacted)
}

type Current = Arc<Mutex<Store>>;

pub(super) fn read_head(table: &impl ReadableTable<(), &'static [u8]>) -> Result<v1::Head, Fault> {
    let what = || "read the head of the state".to_string();
    match table.get(()).context(what)? {
        Some(row) => v1::Head::decode(row.value()).context(what),
        // An empty store is at revision 1, as etcd's is.
        None => Ok(v1::Head { revision: 1, format: format::FIRST, ..v1::Head::default() }),
    }
}

impl State {
    /// [`Self::open_upto`] the newest format that this version takes part in.
    ///
    /// # Errors
    /// See there.
    pub fn open(disk: Arc<dyn Disk>, installed: Index) -> Result<Self, Fault> {
        Self::open_upto(disk, installed, format::NEWEST)
    }

    /// Opens the state that was installed from the snapshot at `installed` (0 if none was), making an empty one if
    /// there is no such file. Other states in the directory are left over from an interrupted install: they are removed. It takes part in
    /// no format after `newest`.
    ///
    /// # Errors
    /// The database cannot be opened, is in a newer format, or is damaged: every page is checked, and every row counted.
    pub fn open_upto(disk: Arc<dyn Disk>, installed: Index, newest: u32) -> Result<Self, Fault> {
        let name = file_name(installed);
        let what = || format!("open {name} in {}", disk.describe());
        Self::check_there(&*disk, installed, &name)?;
        for other in disk.list().context(what)? {
            if other.starts_with(STATE_PREFIX) && other != name {
                disk.remove(&other).context(what)?;
            }
        }
        let db = open_checked(&*disk, &name)?;
        let head = Self::load(&*disk, &name, &db, newest)?;
        disk.sync_dir().context(what)?;
        // A row that rotted while the node ran and was written again with its page is under a good checksum.
        if full_digest(&View::new(db.begin_read().context(what)?, Arc::default()))? != head.rows_digest {
            sometimes!("the rows of a state were not those that its digest counts");
            // Closing it would write to it: it is evidence now.
            std::mem::forget(db);
            let disk = disk.describe();
            return Err(Fault::new(format!(
                "{name} in {disk} is damaged: its rows are not those that its digest counts. Remove this member, and join with an \
                 empty data directory"
            )));
        }
        let store = Store::new(db, &head)?;
        let durable = Index(head.applied_index);
        let current = Arc::new(Mutex::new(store.clone()));
        let (since_durable, notes, entry_reads) = (0, Notes::default(), READ_BYTES_MAX);
        Ok(Self { disk, name, current, store, head, durable, since_durable, notes, newest, entry_reads })
    }

    /// Lets the commands of one entry read so many bytes, and no more; [`READ_BYTES_MAX`] without this. It is the same on all members of
    /// a cluster, always: else their states part.
    #[must_use]
    pub fn entry_reads(mut self, bytes: u64) -> Self {
        self.entry_reads = bytes;
        self
    }

    /// A state that was installed must be there: an empty one in its place would be made up.
    fn check_there(disk: &dyn Disk, installed: Index, name: &str) -> Result<(), Fault> {
        let missing = || Fault::new(format!("{name} is missing in {}: was it removed?", disk.describe()));
        let names = disk.list().context(|| format!("find {name}"))?;
        (installed == Index(0) || names.iter().any(|other| other == name)).then_some(()).ok_or_else(missing)
    }

    fn load(disk: &dyn Disk, name: &str, db: &Database, newest: u32) -> Result<v1::Head, Fault> {
        let what = || format!("read {name} in {}", disk.describe());
        let txn = db.begin_write().context(what)?;
        let head = {
            let head = read_head(&txn.open_table(HEAD).context(what)?)?;
            if let Err(why) = format::check(head.format, newest) {
                return Err(Fault::because(what(), why));
            }
            Rows::new(&txn, head.rows_digest).make_tables()?;
            head
        };
        txn.commit().context(what)?;
        Ok(head)
    }

    /// Goes over to the state that [`super::snapshot::Import`] built at `index`, for the readers, too, and removes the
    /// file of the one before.
    ///
    /// # Errors
    /// The database cannot be opened or is not of that index; this member must stop.
    pub fn install(&mut self, index: Index) -> Result<(), Fault> {
        let name = file_name(index);
        Self::check_there(&*self.disk, index, &name)?;
        let db = open_database(&*self.disk, &name)?;
        let head = Self::load(&*self.disk, &name, &db, self.newest)?;
        if head.applied_index != index.0 {
            return Err(Fault::new(format!("{name} holds the state at {}", head.applied_index)));
        }
        let installed = Store::new(db, &head)?;
        self.go_over_to(installed);
        *self.notes.lock() = Noted::Off;
        (self.head, self.durable, self.since_durable) = (head, index, 0);
        let before = std::mem::replace(&mut self.name, name);
        self.disk.remove(&before).context(|| format!("remove {before} in {}", self.disk.describe()))
    }

    fn go_over_to(&mut self, store: Store) {
        self.store = store.clone();
        let mut current = self.current.lock().expect("no code panics while it holds the database");
        let before = std::mem::replace(&mut *current, store);
        drop(current);
        // Its file may take a while to close, and readers want the new one meanwhile.
        drop(before);
    }

    /// What writes this state anew, into a file without anything free.
    pub fn defragmenter(&self) -> Defragmenter {
        Defragmenter::new(self.disk.clone(), self.reader(), self.notes.clone())
    }

    /// Goes over to the file that a [`Defragmenter`] wrote, with what was changed since its last step. Readers go on with what they
    /// have begun.
    ///
    /// # Errors
    /// The rows written are not those there are, or the file could not take its place; this member must stop.
    pub fn go_over(&mut self) -> Result<Step, Fault> {
        let what = || format!("go over to {NEW_FILE} in {}", self.disk.describe());
        let changes = match &mut *self.notes.lock() {
            Noted::On(changes) => std::mem::take(changes),
            noted @ (Noted::Off | Noted::TooMany) => return noted.give_up(&*self.disk),
        };
        *self.notes.lock() = Noted::Off;
        let (db, written) = match self.write_rest(&changes) {
            Ok(written) => written,
            Err(fault) => return not_written(&fault, &*self.disk),
        };
        if written != self.head.rows_digest {
            let there = self.head.rows_digest;
            let why = format!("its rows have the digest {written:016x}, and those there are have {there:016x}");
            return Err(Fault::because(what(), why.as_str()));
        }
        sometimes!("a state that was written anew is to take the old one's place");
        self.disk.rename(NEW_FILE, &self.name).context(what)?;
        sometimes!("a state that was written anew has taken the old one's place");
        self.disk.sync_dir().context(what)?;
        self.go_over_to(Store { db: Arc::new(db), ..self.store.clone() });
        self.note_durable();
        Ok(Step::Whole)
    }

    /// Writes what was changed last to the new file, and its head; all of it is durable then. Gives the digest of its rows.
    fn write_rest(&self, changes: &Changes) -> Result<(Database, u64), Fault> {
        let what = || format!("write the rest of {NEW_FILE}");
        let db = open_database(&*self.disk, NEW_FILE)?;
        let (_, view) = self.reader().view()?;
        let txn = db.begin_write().context(what)?;
        let digest = {
            let mut table = txn.open_table(HEAD).context(what)?;
            let mut rows = Rows::new(&txn, read_head(&table)?.rows_digest);
            copy_changes(&view, &mut rows, changes)?;
            table.insert((), &*self.head.encode_to_vec()).context(what)?;
            rows.digest()
        };
        txn.commit().context(what)?;
        Ok((db, digest))
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
        head_digest(&self.head)
    }

    /// A way to read that any number of threads may use, also while entries are applied.
    pub fn reader(&self) -> StateReader {
        StateReader { current: self.current.clone() }
    }

    /// Applies entries, which must follow the last applied one without a gap, up to one after which the answers have more than
    /// [`ANSWERS_BYTES_MAX`]. Gives what came of those. Readers see all of them or none.
    ///
    /// # Errors
    /// The database failed, or an entry is not one that this version can apply. The state is as before; this member
    /// must stop.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, Fault> {
        let result = self.apply_batch(entries);
        if result.is_err() {
            // What was not committed is gone from the rows, and so from the index, too.
            let index = load_index(&self.store.db, &self.head)?;
            *self.store.index.write().expect("no code panics while it holds the index") = index;
        }
        result
    }

    fn apply_batch(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, Fault> {
        let Some(last) = entries.last() else { return Ok(Vec::new()) };
        let what = || format!("apply entries up to {}", last.index);
        let mut bytes = 0;
        let notes = self.notes.clone();
        let mut noted = notes.lock();
        let mut txn = self.store.db.begin_write().context(what)?;
        let (head, auth, changed, outcomes) = {
            let rows = Rows::new(&txn, self.head.rows_digest).noting(matches!(*noted, Noted::On(_)));
            let (index, auth) = (self.store.index.clone(), self.store.auth.clone());
            let (head, newest) = (self.head.clone(), self.newest);
            let mut apply = Apply { rows, head, index, auth, newest, budget: Budget::of(self.entry_reads) };
            let mut outcomes = Vec::with_capacity(entries.len());
            let mut answered = 0;
            for entry in entries {
                if answered > ANSWERS_BYTES_MAX {
                    break;
                }
                assert_eq!(entry.index.0, apply.head.applied_index + 1, "entries are applied in order, each once");
                assert!(entry.term.0 >= apply.head.applied_term, "terms never go back along the log");
                if entry.term.0 > apply.head.applied_term {
                    apply.head.term_began_ms = apply.head.cluster_time_ms;
                }
                apply.budget = Budget::of(self.entry_reads);
                let replies = apply_one(&mut apply, &entry.body, &mut bytes)?;
                apply.head.applied_index = entry.index.0;
                apply.head.applied_term = entry.term.0;
                apply.head.rows_digest = apply.rows.digest();
                answered += replies.iter().map(Bytes::len).sum::<usize>();
                outcomes.push(Outcome { replies, digest: head_digest(&apply.head) });
            }
            let mut table = txn.open_table(HEAD).context(what)?;
            table.insert((), &*apply.head.encode_to_vec()).context(what)?;
            (apply.head, apply.auth, apply.rows.changed(), outcomes)
        };
        let since = head.applied_index - self.durable.0;
        let checkpoint = since >= CHECKPOINT_ENTRIES_MAX || self.since_durable + bytes >= CHECKPOINT_BYTES_MAX;
        if !checkpoint {
            txn.set_durability(Durability::None).context(what)?;
        }
        txn.commit().context(what)?;
        noted.add(changed);
        if head.auth_revision != self.head.auth_revision {
            self.store.auth = auth.clone();
            self.current.lock().expect("no code panics while it holds the database").auth = auth;
        }
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
        self.store.db.begin_write().context(what)?.commit().context(what)?;
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

/// The digest of the state with this head, but for what is secret: a backup does without that.
pub fn head_digest(head: &v1::Head) -> u64 {
    match head.auth_key.is_empty() {
        true => xxh3_64(&head.encode_to_vec()),
        false => xxh3_64(&v1::Head { auth_key: Bytes::new(), ..head.clone() }.encode_to_vec()),
    }
}

/// Reads the state as of its last applied batch.
#[derive(Clone)]
pub struct StateReader {
    current: Current,
}

impl StateReader {
    /// The state at one point: it stays the same while it is held. Hold it briefly, it keeps old pages alive.
    ///
    /// # Errors
    /// The database failed.
    pub fn view(&self) -> Result<(v1::Head, View), Fault> {
        self.view_while(Wanted::default())
    }

    /// The same, which shows nothing more once nobody wants it any more.
    ///
    /// # Errors
    /// The database failed.
    pub fn view_while(&self, wanted: Wanted) -> Result<(v1::Head, View), Fault> {
        let what = || "read the state".to_string();
        let store = self.current.lock().expect("no code panics while it holds the database").clone();
        let txn = store.db.begin_read().context(what)?;
        let head = read_head(&txn.open_table(HEAD).context(what)?)?;
        let view = View::new(txn, store.index).shown_while(wanted);
        // What has been committed is told a little later: what users may do must be as of the rows.
        let auth = match store.auth.revision() == head.auth_revision {
            true => store.auth,
            false => Arc::new(Auth::load(&view, &head)?),
        };
        Ok((head, view.with_auth(auth)))
    }

    /// What users may do, as of about now.
    pub fn auth(&self) -> Arc<Auth> {
        self.current.lock().expect("no code panics while it holds the database").auth.clone()
    }

    /// Bytes that keys and their history take.
    pub fn keys_bytes(&self) -> u64 {
        let index = self.current.lock().expect("no code panics while it holds the database").index.clone();
        index.read().expect("no code panics while it holds the index").bytes()
    }

    /// The digest of the state, computed anew from every row. Equal to [`State::digest`] unless rows changed behind
    /// its back.
    ///
    /// # Errors
    /// The database failed.
    pub fn full_digest(&self) -> Result<u64, Fault> {
        let (mut head, rows) = self.view()?;
        head.rows_digest = full_digest(&rows)?;
        Ok(head_digest(&head))
    }
}

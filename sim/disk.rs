//! A machine's disk below redb: what was written, what was synced, and what a power cut leaves of the difference.
//!
//! Each file has a *live* image, which reads see, and a *durable* one. A sync makes them equal. A power cut decides
//! for each write since the last sync whether it is kept, dropped, or torn at 512-byte sectors; dropping an early
//! write and keeping a later one is what reordering looks like. The kernel's file system keeps sizes and names apart
//! from contents, so a length may lag, and a file whose directory entry was not synced may be gone.
//!
//! A disk may also fail one operation, rot, lose or misdirect writes, hold what is another machine's, or be wiped. What is damaged
//! was not written lately: damage in the very last commit
//! is what a power cut does, and it is told apart from nothing else (ARCHITECTURE, known limits).

mod directory;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;
use serde::{Deserialize, Serialize};

use self::directory::{Directory, Names, Naming};
use crate::io::{Backend, Disk, RngStream};
use crate::raft::log::LOG_FILE;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// A file's bytes in copy-on-write pages, so that an image is cheap to copy.
#[derive(Clone, Default)]
pub struct Image {
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
    len: u64,
}

impl Image {
    fn set_len(&mut self, len: u64) {
        self.pages.resize((len as usize).div_ceil(PAGE), None);
        let within = len as usize % PAGE;
        if len < self.len
            && within > 0
            && let Some(Some(page)) = self.pages.last_mut()
        {
            Arc::make_mut(page)[within..].fill(0);
        }
        self.len = len;
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read past the end of the file"));
        }
        for_pages(offset, out.len(), |page, within, range| match &self.pages[page] {
            Some(bytes) => out[range.clone()].copy_from_slice(&bytes[within..within + range.len()]),
            None => out[range].fill(0),
        });
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        if end > self.len {
            self.set_len(end);
        }
        let pages = &mut self.pages;
        for_pages(offset, data.len(), |page, within, range| {
            let bytes = pages[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[within..within + range.len()].copy_from_slice(&data[range]);
        });
    }
}

fn for_pages(offset: u64, len: usize, mut each: impl FnMut(usize, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset as usize + done;
        let take = (PAGE - at % PAGE).min(len - done);
        each(at / PAGE, at % PAGE, done..done + take);
        done += take;
    }
}

enum Change {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

/// The number of a file: it stays the same whatever the file is called.
type Number = u64;

#[derive(Default)]
struct File {
    /// Held by every open handle: a file without a name lives as long as it is open.
    open: Arc<()>,
    live: Image,
    durable: Image,
    unsynced: Vec<Change>,
    /// Pages written since the last sync, between that and the one before, and once more so.
    fresh: [BTreeSet<usize>; 3],
    /// What durable pages held before they were last changed.
    before: BTreeMap<usize, Option<Arc<[u8; PAGE]>>>,
}

impl File {
    /// A file whose durable image is this one.
    fn of(image: Image) -> Self {
        Self { live: image.clone(), durable: image, ..Self::default() }
    }

    fn sync(&mut self) {
        for number in &self.fresh[0] {
            let (now, then) = (self.live.pages.get(*number), self.durable.pages.get(*number));
            if let (Some(Some(now)), Some(then)) = (now, then)
                && then.as_ref().is_none_or(|then| !Arc::ptr_eq(now, then))
            {
                self.before.insert(*number, then.clone());
            }
        }
        // Where nothing was written, what was written last is no older.
        if !self.unsynced.is_empty() {
            self.durable = self.live.clone();
            self.unsynced.clear();
            self.fresh.rotate_right(1);
            self.fresh[0].clear();
        }
    }

    /// What a failed sync leaves.
    fn lose(&mut self) {
        self.unsynced.clear();
        self.live = self.durable.clone();
    }

    fn touch(&mut self, offset: u64, len: usize) {
        self.fresh[0].extend(offset as usize / PAGE..(offset as usize + len).div_ceil(PAGE));
    }
}

#[derive(Default)]
struct State {
    files: BTreeMap<Number, File>,
    /// Files made so far.
    made: Number,
    directory: Directory,
    /// Operations until the disk stops answering; `None` while it works.
    cut_after: Option<u64>,
    /// Counts boots: a handle of an earlier one is dead.
    boot: u64,
    /// Bytes of all files together above which writes fail.
    capacity: u64,
    /// The next operation of this kind fails.
    failing: Option<DiskOp>,
    /// What `counts.failed` was when it was mounted last.
    failed_before: u64,
    /// What `counts.rotten` was when it was emptied last.
    rotten_before: u64,
    /// Its capacity was limited at some time.
    limited: bool,
    counts: DiskCounts,
}

/// What was done to a disk that may stop a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suffered {
    /// An operation has failed since it was mounted, because it was told to.
    pub failed: bool,
    /// Everything fails on it.
    pub off: bool,
    /// There was an end to its space at some time.
    pub full: bool,
    /// Pages of it were damaged since it was empty.
    pub rotten: bool,
}

/// Everything on a disk.
pub struct Contents {
    files: BTreeMap<Number, File>,
    names: Names,
}

/// What becomes of a page that was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Damage {
    /// A bit of it is another.
    Flipped,
    /// The last write to it never reached the disk: it holds what it held before.
    Lost,
    /// A write that was for another page went there: it holds what that one holds.
    Misdirected,
}

/// Which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Files {
    /// All of them.
    All,
    /// Those that hold states.
    State,
    /// The one that holds the log.
    Log,
}

impl Files {
    fn has(self, name: &str) -> bool {
        self == Self::All || (name == LOG_FILE) == (self == Self::Log)
    }
}

/// A kind of operation that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOp {
    /// Reading.
    Read,
    /// Writing, also of lengths and names.
    Write,
    /// Making durable. What was written since the last time is gone, though the next sync succeeds.
    Sync,
}

/// What an operation that fails because it was told to says.
pub const DISK_ERROR: &str = "simulated disk error";

/// How much a disk has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Times that it was mounted.
    pub boots: u64,
    /// Files made durable.
    pub syncs: u64,
    /// Writes.
    pub writes: u64,
    /// Operations that failed because they were told to.
    pub failed: u64,
    /// Pages that were damaged.
    pub rotten: u64,
    /// Writes of which a power cut left a part.
    pub torn: u64,
    /// Writes of which a power cut left nothing.
    pub dropped: u64,
}

/// What happens to a write that was not synced when the power goes, in thousandths; the rest is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerCut {
    /// Lost whole.
    pub drop_permille: u64,
    /// Kept in some sectors only.
    pub tear_permille: u64,
}

/// One machine's disk. It outlives the machine's boots.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    name: String,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(name: String) -> Self {
        let state = State { capacity: u64::MAX, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), name }
    }

    /// The disk as the machine's next boot sees it. Handles of earlier boots fail from here on.
    pub fn boot(&self) -> Arc<dyn Disk> {
        let mut state = self.state.lock().unwrap();
        state.boot += 1;
        state.counts.boots = state.boot;
        state.cut_after = None;
        state.failed_before = state.counts.failed;
        Arc::new(Mounted { disk: self.clone(), boot: state.boot })
    }

    /// Lets `operations` more through, then fails everything: the machine is going down in the middle of something.
    pub fn cut_after(&self, operations: u64) {
        self.state.lock().unwrap().cut_after = Some(operations);
    }

    /// Whether everything fails on it.
    pub fn is_cut(&self) -> bool {
        self.state.lock().unwrap().cut_after == Some(0)
    }

    /// The same from a place where the disk may be in the middle of something; then nothing happens.
    pub fn try_cut_after(&self, operations: u64) {
        if let Ok(mut state) = self.state.try_lock() {
            state.cut_after = Some(operations);
        }
    }

    /// Limits the bytes of all files together.
    pub fn set_capacity(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap();
        state.limited |= bytes < u64::MAX;
        state.capacity = bytes;
    }

    /// Limits the bytes of all files together so that this many are left.
    pub fn set_free(&self, bytes: u64) {
        let used = self.state.lock().unwrap().used();
        self.set_capacity(used + bytes);
    }

    /// The power goes: what was not synced meets its fate, by draws of `rng`. The disk is off until the next boot.
    pub fn power_cut(&self, fate: PowerCut, rng: &mut RngStream) {
        let mut state = self.state.lock().unwrap();
        state.cut_after = Some(0);
        let State { files, directory, counts, .. } = &mut *state;
        directory.power_cut(fate.drop_permille, rng);
        for number in directory.live().values() {
            let file = files.get_mut(number).expect("a file with a name is there");
            let mut image = file.durable.clone();
            for change in file.unsynced.drain(..) {
                let dropped = rng.chance(fate.drop_permille);
                let torn = rng.chance(fate.tear_permille);
                let is_write = matches!(change, Change::Write { .. });
                counts.dropped += u64::from(is_write && dropped);
                counts.torn += u64::from(is_write && torn && !dropped);
                sometimes!(is_write && torn && !dropped, "a write was torn");
                match change {
                    _ if dropped => {}
                    Change::SetLen(len) => image.set_len(len),
                    Change::Write { offset, data } if torn => {
                        // A sector is written or not, wherever in one the write begins.
                        let (mut at, mut rest) = (offset, &*data);
                        while !rest.is_empty() {
                            let (part, after) = rest.split_at(rest.len().min(SECTOR - at as usize % SECTOR));
                            if rng.chance(500) {
                                image.write(at, part);
                            }
                            (at, rest) = (at + part.len() as u64, after);
                        }
                    }
                    Change::Write { offset, data } => image.write(offset, &data),
                }
            }
            file.live = image.clone();
            file.durable = image;
        }
    }

    /// The durable image of a file on a second disk: what a machine would find after a power cut at this instant that
    /// loses everything unsynced.
    pub fn durable(&self, name: &str) -> Self {
        let copy = Self::new(format!("{} (durable image)", self.name));
        self.copy_durable(name, &copy);
        copy
    }

    /// Brings such a second disk up to date. Whoever has the file open there sees the image of now.
    pub fn copy_durable(&self, name: &str, copy: &Self) {
        let state = self.state.lock().unwrap();
        if let Some(number) = state.directory.durable().get(name) {
            let mut there = copy.state.lock().unwrap();
            there.files.insert(*number, File::of(state.files[number].durable.clone()));
            there.directory.change(Naming::Made(name.to_owned(), *number));
            there.directory.sync();
        }
    }

    /// How much the disk has done.
    pub fn counts(&self) -> DiskCounts {
        self.state.lock().unwrap().counts
    }

    /// What was done to it.
    pub fn suffered(&self) -> Suffered {
        let state = self.state.lock().unwrap();
        Suffered {
            failed: state.counts.failed > state.failed_before,
            off: state.cut_after == Some(0),
            full: state.limited,
            rotten: state.counts.rotten > state.rotten_before,
        }
    }

    /// Has the next operation of a kind fail, in whichever boot; with `None`, none any more.
    pub fn fail_next(&self, op: Option<DiskOp>) {
        self.state.lock().unwrap().failing = op;
    }

    /// Damages each page with this probability, in thousandths, but those written lately. The disk is off.
    pub fn rot(&self, damage: Damage, which: Files, permille: u64, rng: &mut RngStream) {
        let mut state = self.state.lock().unwrap();
        let State { files, directory, counts, .. } = &mut *state;
        for (_, number) in directory.live().iter().filter(|(name, _)| which.has(name)) {
            let file = files.get_mut(number).expect("a file with a name is there");
            let File { live, durable, fresh, before, .. } = file;
            let is_old = |number: &usize| fresh.iter().all(|pages| !pages.contains(number));
            let old: Vec<usize> = (0..durable.pages.len()).filter(is_old).collect();
            for number in &old {
                if durable.pages[*number].is_none() || !rng.chance(permille) {
                    continue;
                }
                let there = durable.pages[*number].clone();
                durable.pages[*number] = match damage {
                    Damage::Flipped => {
                        let bit = rng.range(0, 8 * PAGE as u64) as usize;
                        let mut flipped = there.clone();
                        flipped.iter_mut().for_each(|bytes| Arc::make_mut(bytes)[bit / 8] ^= 1 << (bit % 8));
                        flipped
                    }
                    Damage::Lost => before.get(number).cloned().unwrap_or_else(|| there.clone()),
                    Damage::Misdirected => durable.pages[*rng.pick(&old)].clone(),
                };
                counts.rotten += u64::from(durable.pages[*number] != there);
            }
            *live = durable.clone();
        }
    }

    /// What it holds for certain.
    pub fn copy(&self) -> Contents {
        let state = self.state.lock().unwrap();
        let named = |number: &Number| (*number, File::of(state.files[number].durable.clone()));
        let names = state.directory.durable().clone();
        Contents { files: names.values().map(named).collect(), names }
    }

    /// Puts something on this disk, which is off; gives back what was there.
    pub fn swap(&self, contents: Contents) -> Contents {
        let state = &mut *self.state.lock().unwrap();
        state.cut_after = Some(0);
        // Numbers of what is made on it from now on are those of nothing that was on either.
        state.made = state.made.max(contents.files.keys().next_back().copied().unwrap_or_default());
        let directory = std::mem::replace(&mut state.directory, Directory::of(contents.names));
        Contents { files: std::mem::replace(&mut state.files, contents.files), names: directory.live().clone() }
    }

    /// Empties the disk: another one is in its place.
    pub fn wipe(&self) {
        let mut state = self.state.lock().unwrap();
        state.files.clear();
        state.directory = Directory::default();
        state.rotten_before = state.counts.rotten;
        state.cut_after = Some(0);
    }
}

impl State {
    /// Every operation of a mounted disk passes here first.
    fn admit(&mut self, boot: u64) -> io::Result<()> {
        let off = || Err(io::Error::other("the disk is off"));
        if boot != self.boot {
            return off();
        }
        match &mut self.cut_after {
            Some(0) => {
                sometimes!("the disk went in the middle of something");
                off()
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn find(&self, name: &str) -> io::Result<&File> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name} does not exist"));
        self.directory.live().get(name).map(|number| &self.files[number]).ok_or_else(missing)
    }

    /// A file that has a name or is open.
    fn file(&mut self, number: Number) -> &mut File {
        self.files.get_mut(&number).expect("a file is there while it has a name or is open")
    }

    /// The number of a file, which is made if there is none.
    fn make(&mut self, name: &str) -> Number {
        self.forget_orphans();
        if let Some(number) = self.directory.live().get(name) {
            return *number;
        }
        self.made += 1;
        self.files.insert(self.made, File::default());
        self.directory.change(Naming::Made(name.to_owned(), self.made));
        self.made
    }

    /// Lets go of files that have no name any more, not even after a power cut, and are not open.
    fn forget_orphans(&mut self) {
        let Self { files, directory, .. } = self;
        files.retain(|number, file| Arc::strong_count(&file.open) > 1 || directory.may_name(*number));
    }

    /// Fails if the next operation of this kind is to fail; then `lose` says what that costs.
    fn fail(&mut self, op: DiskOp, name: &str, lose: impl FnOnce(&mut Self)) -> io::Result<()> {
        if self.failing != Some(op) {
            return Ok(());
        }
        self.failing = None;
        self.counts.failed += 1;
        lose(self);
        Err(io::Error::other(format!("{DISK_ERROR}: {op:?} of {name}")))
    }

    fn used(&self) -> u64 {
        self.directory.live().values().map(|number| self.files[number].live.len).sum()
    }

    fn admit_growth(&self, now: u64, to: u64) -> io::Result<()> {
        if to > now && self.used() + (to - now) > self.capacity {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated disk"));
        }
        Ok(())
    }
}

struct Mounted {
    disk: SimDisk,
    boot: u64,
}

impl Mounted {
    fn with<T>(&self, body: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state.lock().unwrap();
        state.admit(self.boot)?;
        body(&mut state)
    }
}

impl Disk for Mounted {
    fn open(&self, name: &str) -> io::Result<Backend> {
        let (number, open) = self.with(|state| {
            let number = state.make(name);
            Ok((number, state.files[&number].open.clone()))
        })?;
        let mounted = Mounted { disk: self.disk.clone(), boot: self.boot };
        Ok(Backend(Box::new(Handle { mounted, name: name.to_owned(), number }), open))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.with(|state| Ok(state.directory.live().keys().cloned().collect()))
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.with(|state| Ok(state.find(name)?.live.len))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|state| {
            state.find(name)?;
            state.fail(DiskOp::Write, name, |_| {})?;
            state.directory.change(Naming::Removed(name.to_owned()));
            state.forget_orphans();
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|state| {
            state.find(from)?;
            state.fail(DiskOp::Write, from, |_| {})?;
            state.directory.change(Naming::Renamed(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.with(|state| {
            state.fail(DiskOp::Sync, "the directory", |_| {})?;
            state.directory.sync();
            Ok(())
        })
    }

    fn reserve(&self, name: &str, bytes: u64) -> io::Result<()> {
        self.with(|state| {
            let now = state.find(name).map_or(0, |file| file.live.len);
            state.admit_growth(now, bytes)?;
            let number = state.make(name);
            let mut image = Image::default();
            image.set_len(bytes);
            state.files.insert(number, File::of(image));
            state.directory.sync();
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.capacity - state.used().min(state.capacity)))
    }

    fn describe(&self) -> String {
        self.disk.name.clone()
    }
}

struct Handle {
    mounted: Mounted,
    name: String,
    number: Number,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.mounted.disk.name, self.name)
    }
}

impl Handle {
    /// An operation, unless it is to fail.
    fn operate<T>(&self, op: DiskOp, body: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.mounted.with(|state| {
            state.fail(op, &self.name, |state| {
                if op == DiskOp::Sync {
                    state.file(self.number).lose();
                }
            })?;
            body(state)
        })
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.mounted.with(|state| Ok(state.file(self.number).live.len))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.operate(DiskOp::Read, |state| state.file(self.number).live.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(DiskOp::Write, |state| {
            state.admit_growth(state.files[&self.number].live.len, len)?;
            let file = state.file(self.number);
            file.live.set_len(len);
            file.unsynced.push(Change::SetLen(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(DiskOp::Sync, |state| {
            state.counts.syncs += 1;
            state.file(self.number).sync();
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate(DiskOp::Write, |state| {
            state.counts.writes += 1;
            state.admit_growth(state.files[&self.number].live.len, offset + data.len() as u64)?;
            let file = state.file(self.number);
            file.touch(offset, data.len());
            file.live.write(offset, data);
            file.unsynced.push(Change::Write { offset, data: data.to_vec() });
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Rng;

    fn written(fate: PowerCut) -> Vec<u8> {
        let disk = SimDisk::new("disk".into());
        let mounted = disk.boot();
        let file = mounted.open("f").unwrap();
        file.write(0, &[1; 4096]).unwrap();
        file.sync_data().unwrap();
        mounted.sync_dir().unwrap();
        file.write(0, &[2; 4096]).unwrap();
        disk.power_cut(fate, &mut Rng::from_seed([1; 32]).stream("t"));
        assert!(file.write(0, &[3]).is_err(), "a dead handle wrote");
        let mut out = vec![0; 4096];
        disk.boot().open("f").unwrap().read(0, &mut out).unwrap();
        assert!(file.read(0, &mut [0]).is_err(), "a handle of an earlier boot reads");
        out
    }

    #[test]
    fn unsynced_writes_are_kept_dropped_or_torn() {
        assert_eq!(written(PowerCut { drop_permille: 0, tear_permille: 0 }), vec![2; 4096]);
        assert_eq!(written(PowerCut { drop_permille: 1000, tear_permille: 0 }), vec![1; 4096]);
        let torn = written(PowerCut { drop_permille: 0, tear_permille: 1000 });
        assert!(torn.contains(&1) && torn.contains(&2), "the write did not tear");
        assert!(torn.chunks(SECTOR).all(|s| s.iter().all(|b| *b == s[0])), "it tore inside a sector");
    }

    #[test]
    fn a_file_that_was_never_named_may_be_gone() {
        let disk = SimDisk::new("disk".into());
        let file = disk.boot().open("f").unwrap();
        file.write(0, &[1]).unwrap();
        file.sync_data().unwrap();
        let lost = PowerCut { drop_permille: 1000, tear_permille: 0 };
        disk.power_cut(lost, &mut Rng::from_seed([1; 32]).stream("t"));
        assert!(disk.boot().list().unwrap().is_empty());
    }

    #[test]
    fn a_removal_or_a_new_name_may_be_undone_until_the_directory_is_durable() {
        let names_after = |synced: bool, drop_permille: u64| {
            let disk = SimDisk::new("disk".into());
            let mounted = disk.boot();
            for name in ["gone", "new", "old"] {
                mounted.open(name).unwrap().sync_data().unwrap();
            }
            mounted.sync_dir().unwrap();
            mounted.remove("gone").unwrap();
            mounted.rename("new", "old").unwrap();
            if synced {
                mounted.sync_dir().unwrap();
            }
            disk.power_cut(PowerCut { drop_permille, tear_permille: 0 }, &mut Rng::from_seed([1; 32]).stream("t"));
            disk.boot().list().unwrap()
        };
        assert_eq!(names_after(true, 1000), ["old"]);
        assert_eq!(names_after(false, 1000), ["gone", "new", "old"]);
        assert_eq!(names_after(false, 0), ["old"]);
    }

    #[test]
    fn a_full_disk_says_so_and_changes_nothing() {
        let disk = SimDisk::new("disk".into());
        disk.set_capacity(100);
        let file = disk.boot().open("f").unwrap();
        file.write(0, &[1; 100]).unwrap();
        assert_eq!(file.write(50, &[2; 51]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 100);
    }

    #[test]
    fn a_cut_in_the_middle_lets_some_operations_through() {
        let disk = SimDisk::new("disk".into());
        let file = disk.boot().open("f").unwrap();
        disk.cut_after(2);
        file.write(0, &[1]).unwrap();
        file.sync_data().unwrap();
        assert!(file.write(0, &[2]).is_err());
        assert!(file.len().is_err());
    }

    #[test]
    fn an_operation_fails_once_and_a_failed_sync_loses_what_was_written() {
        let disk = SimDisk::new("disk".into());
        let file = disk.boot().open("f").unwrap();
        file.write(0, &[1; 8]).unwrap();
        file.sync_data().unwrap();
        let mut out = [0; 8];
        disk.fail_next(Some(DiskOp::Read));
        assert!(file.read(0, &mut out).unwrap_err().to_string().contains(DISK_ERROR));
        file.read(0, &mut out).unwrap();
        disk.fail_next(Some(DiskOp::Write));
        file.write(0, &[2; 8]).unwrap_err();
        file.write(0, &[3; 8]).unwrap();
        disk.fail_next(Some(DiskOp::Sync));
        file.sync_data().unwrap_err();
        file.sync_data().unwrap();
        file.read(0, &mut out).unwrap();
        assert_eq!(out, [1; 8], "what a failed sync lost came back");
    }

    #[test]
    fn only_old_pages_rot() {
        let disk = SimDisk::new("disk".into());
        let mounted = disk.boot();
        let file = mounted.open("f").unwrap();
        let epochs = [0, 1, 2, 3];
        for epoch in epochs {
            file.write(epoch * PAGE as u64, &[7; PAGE]).unwrap();
            file.sync_data().unwrap();
        }
        mounted.sync_dir().unwrap();
        let mut rng = Rng::from_seed([1; 32]).stream("t");
        disk.power_cut(PowerCut { drop_permille: 0, tear_permille: 0 }, &mut rng);
        disk.rot(Damage::Flipped, Files::All, 1000, &mut rng);
        let file = disk.boot().open("f").unwrap();
        let rotten = epochs.map(|epoch| {
            let mut page = [0; PAGE];
            file.read(epoch * PAGE as u64, &mut page).unwrap();
            page.iter().map(|byte| (byte ^ 7).count_ones()).sum::<u32>()
        });
        assert_eq!(rotten, [1, 1, 0, 0], "bits that differ, by page, the last one written last");
        assert!(disk.suffered().rotten);
        disk.wipe();
        assert!(!disk.suffered().rotten, "what is on an empty disk has not rotted");
    }

    /// Four pages, each written twice, the last one lately.
    fn damaged(damage: Damage) -> [u8; 4] {
        let disk = SimDisk::new("disk".into());
        let mounted = disk.boot();
        let file = mounted.open("f").unwrap();
        for byte in [10, 20] {
            for page in 0..3 {
                file.write(page * PAGE as u64, &[byte + page as u8; PAGE]).unwrap();
                file.sync_data().unwrap();
            }
        }
        for byte in [13, 23] {
            file.write(3 * PAGE as u64, &[byte; PAGE]).unwrap();
            file.sync_data().unwrap();
        }
        file.sync_data().unwrap();
        file.write(3 * PAGE as u64, &[33; PAGE]).unwrap();
        file.sync_data().unwrap();
        mounted.sync_dir().unwrap();
        let mut rng = Rng::from_seed([1; 32]).stream("t");
        disk.power_cut(PowerCut { drop_permille: 0, tear_permille: 0 }, &mut rng);
        disk.rot(damage, Files::State, 1000, &mut rng);
        let file = disk.boot().open("f").unwrap();
        [0, 1, 2, 3].map(|page| {
            let mut byte = [0];
            file.read(page * PAGE as u64, &mut byte).unwrap();
            byte[0]
        })
    }

    #[test]
    fn a_change_of_names_or_lengths_fails_once_and_changes_nothing() {
        let disk = SimDisk::new("disk".into());
        let mounted = disk.boot();
        let file = mounted.open("f").unwrap();
        mounted.sync_dir().unwrap();
        let fails = |op, change: &dyn Fn() -> io::Result<()>| {
            disk.fail_next(Some(op));
            assert!(change().unwrap_err().to_string().contains(DISK_ERROR));
            assert_eq!((mounted.list().unwrap(), file.len().unwrap()), (vec!["f".to_owned()], 0));
        };
        fails(DiskOp::Write, &|| mounted.remove("f"));
        fails(DiskOp::Write, &|| mounted.rename("f", "g"));
        fails(DiskOp::Write, &|| file.set_len(8));
        mounted.remove("f").unwrap();
        disk.fail_next(Some(DiskOp::Sync));
        mounted.sync_dir().unwrap_err();
        disk.power_cut(PowerCut { drop_permille: 1000, tear_permille: 0 }, &mut Rng::from_seed([1; 32]).stream("t"));
        assert_eq!(disk.boot().list().unwrap(), ["f"], "what was not made durable was");
    }

    #[test]
    fn writes_are_lost_or_go_elsewhere() {
        assert_eq!(damaged(Damage::Lost), [10, 11, 12, 33], "each old page holds what it held before");
        let misdirected = damaged(Damage::Misdirected);
        assert_ne!(misdirected, [20, 21, 22, 33]);
        assert_eq!(misdirected[3], 33);
        assert!(misdirected.iter().all(|byte| [20, 21, 22, 33].contains(byte)), "{misdirected:?}");
    }

    #[test]
    fn a_disk_may_hold_what_is_durable_on_another_and_get_its_own_back() {
        let (one, other) = (SimDisk::new("one".into()), SimDisk::new("other".into()));
        let handles = [&one, &other].map(|disk| {
            let mounted = disk.boot();
            let file = mounted.open("f").unwrap();
            mounted.sync_dir().unwrap();
            file
        });
        for (byte, file) in handles.iter().enumerate() {
            file.write(0, &[byte as u8 + 1]).unwrap();
            file.sync_data().unwrap();
        }
        handles[1].write(0, &[9]).unwrap();
        one.power_cut(PowerCut { drop_permille: 0, tear_permille: 0 }, &mut Rng::from_seed([1; 32]).stream("t"));
        let read = |disk: &SimDisk| {
            let mut byte = [0];
            disk.boot().open("f").unwrap().read(0, &mut byte).unwrap();
            byte[0]
        };
        let own = one.swap(other.copy());
        assert_eq!(read(&one), 2, "what is not synced is not copied");
        one.swap(own);
        assert_eq!((read(&one), read(&other)), (1, 9));
    }

    #[test]
    fn a_wiped_disk_is_empty() {
        let disk = SimDisk::new("disk".into());
        let mounted = disk.boot();
        mounted.open("f").unwrap().write(0, &[1]).unwrap();
        mounted.sync_dir().unwrap();
        disk.wipe();
        assert!(mounted.list().is_err(), "what was mounted before still answers");
        assert!(disk.boot().list().unwrap().is_empty());
    }

    #[test]
    fn shrinking_zeroes_what_it_cuts_off() {
        let mut image = Image::default();
        image.write(0, &[7; 5000]);
        image.set_len(4100);
        image.set_len(5000);
        let mut out = vec![1; 900];
        image.read(4100, &mut out).unwrap();
        assert!(out.iter().all(|b| *b == 0));
    }
}

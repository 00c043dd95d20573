//! A journal in a file: a stream of frames, one for each batch, in blocks that are used again.
//!
//! The file consists of slots of 32 KiB. A block is a stretch of the stream and lies in a slot, behind a header that
//! says which block it is; blocks that hold nothing any more leave their slots to new ones, so that in the long run a batch is one
//! write and one sync over bytes that the file system need not find room for. A frame has a checksum, its number, and
//! the checksum of the frame before it. It may lie across blocks. The first frame to begin in a block begins with all named records, so
//! that blocks before it can go.
//!
//! What is opened is read and checked from its first block to its end. A frame that is not whole ends the stream if none follows
//! it: the power went while it was written, and nobody was told that it is there. If one follows, or a block is missing, or a header
//! is not what was written, something is damaged, and then the journal does not open. (Damage to the very last frame looks
//! like the first case; nothing on one disk can tell.)

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::{ControlFlow, Range};

use redb::StorageBackend as _;

use crate::io::Backend;

/// Bytes of a slot.
const BLOCK: u64 = 32 * 1024;
/// Bytes of a block's header: what it begins with, the block's number, that of the first block in use, the slot, where the first frame
/// begins, and a checksum of these.
const HEADER: u64 = 40;
/// Bytes of the stream in a block.
const STRETCH: u64 = BLOCK - HEADER;
/// What a header begins with; another format would have another.
const MAGIC: [u8; 8] = *b"cairnlg1";
/// In a header: no frame begins in the block.
const NO_FRAME: u32 = u32::MAX;
/// Bytes before a frame's body: its length, the checksum of this and all that follows, that of the frame before it, the journal's
/// [salt](Journal::set_salt), and its number.
const FRAME: u64 = 24;
/// Frames begin at multiples of this.
const ALIGN: u64 = 8;
/// Slots at the end of the file beyond which free ones are given back.
const FREE_KEPT: usize = 64;
/// Bytes read at once.
const READ: u64 = 256 * 1024;

const NAME: u8 = 1;
const PUT: u8 = 2;
const REMOVE: u8 = 3;

/// A position in the stream.
type Position = u64;
/// The number of a block: it holds the stream from `number * STRETCH` on.
type Block = u64;
/// The number of a slot: it is the file from `slot * BLOCK` on.
type Slot = u32;

fn block_of(at: Position) -> Block {
    at / STRETCH
}

fn offset_of(slot: Slot) -> u64 {
    u64::from(slot) * BLOCK
}

fn corrupt(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("corrupt: {text}"))
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn half(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

/// Changes of a journal, in order, all or none of which are carried out.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    /// Sets the record of a name.
    Name(&'static str, Vec<u8>),
    /// Sets the record of a number.
    Put(u64, Vec<u8>),
    /// Removes the records of these numbers.
    Remove(Range<u64>),
}

impl Batch {
    /// Sets the record of a name.
    pub fn name(&mut self, name: &'static str, record: impl Into<Vec<u8>>) {
        self.changes.push(Change::Name(name, record.into()));
    }

    /// Sets the record of a number.
    pub fn put(&mut self, number: u64, record: Vec<u8>) {
        self.changes.push(Change::Put(number, record));
    }

    /// Removes the records of these numbers.
    pub fn remove(&mut self, numbers: Range<u64>) {
        if !numbers.is_empty() {
            self.changes.push(Change::Remove(numbers));
        }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// The header of a block.
struct Header {
    block: Block,
    /// The first block in use when it was written.
    begin: Block,
    slot: Slot,
    /// Where in the stretch the first frame begins.
    first: u32,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.block.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.begin.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.slot.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.first.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The header of a slot; `None` if it has never had one.
    fn of(bytes: &[u8; HEADER as usize], slot: Slot) -> io::Result<Option<Self>> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Self {
            block: word(&bytes[8..16]),
            begin: word(&bytes[16..24]),
            slot: half(&bytes[24..28]),
            first: half(&bytes[28..32]),
        };
        if header.to_bytes() != *bytes || header.slot != slot {
            return Err(corrupt(format!("the header at {} is not one of a log's block there", offset_of(slot))));
        }
        Ok(Some(header))
    }
}

/// The blocks in use, and where in the file they are.
struct Blocks {
    file: Backend,
    /// The first of them.
    begin: Block,
    /// Their slots, and beyond the end of the stream those of blocks that a batch reached that was never whole.
    slots: BTreeMap<Block, Slot>,
    /// Slots of blocks no longer in use. They are free when a durable header says so.
    released: Vec<Slot>,
    free: BTreeSet<Slot>,
    /// Slots of the file.
    count: Slot,
    /// Bytes of the file: it may end within the last slot.
    len: u64,
}

impl Blocks {
    /// Those of a file; with where the first frame begins.
    fn open(file: Backend) -> io::Result<(Self, Position)> {
        let (slots, released, free) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let mut blocks = Self { file, begin: 0, slots, released, free, count: 0, len: 0 };
        let begin = blocks.look()?;
        Ok((blocks, begin))
    }

    /// Reads the slots' headers. Gives where the first frame begins.
    fn look(&mut self) -> io::Result<Position> {
        self.len = self.file.len()?;
        let count = Slot::try_from(self.len.div_ceil(BLOCK));
        self.count = count.map_err(|_| corrupt(format!("it has {} bytes", self.len)))?;
        let mut found = BTreeMap::new();
        for slot in 0..self.count {
            let mut bytes = [0; HEADER as usize];
            self.read_file(offset_of(slot), &mut bytes)?;
            let Some(header) = Header::of(&bytes, slot)? else { continue };
            self.begin = self.begin.max(header.begin);
            if found.insert(header.block, (slot, header.first)).is_some() {
                return Err(corrupt(format!("there are two blocks {}", header.block)));
            }
        }
        // What comes before is not in use, and its slot free.
        let (begin, found) = (self.begin, found.split_off(&self.begin));
        let first = match found.get(&begin) {
            Some((_, first)) if u64::from(*first) < STRETCH => u64::from(*first),
            // Of the first batch ever perhaps a part was written.
            None if begin == 0 => 0,
            _ => return Err(corrupt(format!("no frame begins in the block {begin}, the first in use"))),
        };
        self.slots = found.into_iter().map(|(block, (slot, _))| (block, slot)).collect();
        let used: BTreeSet<Slot> = self.slots.values().copied().collect();
        self.free = (0..self.count).filter(|slot| !used.contains(slot)).collect();
        Ok(begin * STRETCH + first)
    }

    /// Stretches of the stream that are there from one end to the other, in order.
    fn runs(&self) -> Vec<Range<Position>> {
        let mut runs: Vec<Range<Position>> = Vec::new();
        for block in self.slots.keys() {
            let stretch = block * STRETCH..(block + 1) * STRETCH;
            match runs.last_mut() {
                Some(run) if run.end == stretch.start => run.end = stretch.end,
                _ => runs.push(stretch),
            }
        }
        runs
    }

    /// What a slot has behind the header; what the file does not reach is zeros.
    fn stretch(&self, slot: Slot) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; STRETCH as usize];
        self.read_file(offset_of(slot) + HEADER, &mut bytes)?;
        Ok(bytes)
    }

    fn read_file(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = (out.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        self.file.read(offset, &mut out[..there])?;
        out[there..].fill(0);
        Ok(())
    }

    /// Reads a part of the stream that is in its blocks; what the file does not reach is zeros.
    fn read(&self, mut at: Position, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            let within = at % STRETCH;
            let (part, rest) = out.split_at_mut(out.len().min((STRETCH - within) as usize));
            self.read_file(offset_of(self.slots[&block_of(at)]) + HEADER + within, part)?;
            at += part.len() as u64;
            out = rest;
        }
        Ok(())
    }

    /// Writes a frame, and headers of the blocks that it is the first to reach, durably.
    fn append(&mut self, at: Position, frame: &[u8]) -> io::Result<()> {
        let (end, mut done) = (at + frame.len() as u64, 0);
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        let (mut entered, mut again) = (false, false);
        while done < frame.len() {
            let now = at + done as u64;
            let (block, within) = (block_of(now), now % STRETCH);
            let is_new = within == 0;
            let slot = *self.slots.entry(block).or_insert_with(|| {
                let slot = self.free.pop_first();
                again |= slot.is_some();
                slot.unwrap_or(self.count)
            });
            let mut bytes = Vec::new();
            if is_new {
                let next = if done == 0 { now } else { end };
                let first = if block_of(next) == block { (next % STRETCH) as u32 } else { NO_FRAME };
                bytes.extend(Header { block, begin: self.begin, slot, first }.to_bytes());
                entered = true;
            }
            let take = (frame.len() - done).min((STRETCH - within) as usize);
            bytes.extend(&frame[done..done + take]);
            if slot == self.count {
                // Zeros up to the end, so that the next writes find room.
                bytes.resize(BLOCK as usize, 0);
                self.count += 1;
            }
            let offset = offset_of(slot) + if is_new { 0 } else { HEADER + within };
            match writes.last_mut() {
                Some((begin, before)) if *begin + before.len() as u64 == offset => before.extend(bytes),
                _ => writes.push((offset, bytes)),
            }
            done += take;
        }
        sometimes!(block_of(end) > block_of(at) + 1, "a batch of the log filled a block");
        if self.len < offset_of(self.count) {
            self.len = offset_of(self.count);
            self.file.set_len(self.len)?;
        }
        for (offset, bytes) in writes {
            self.file.write(offset, &bytes)?;
        }
        sometimes!(again, "a block of the log took the place of one that was no longer in use");
        self.file.sync_data()?;
        if entered {
            self.free.extend(self.released.drain(..));
        }
        Ok(())
    }

    /// What comes before a block is no longer in use.
    fn release(&mut self, begin: Block) {
        self.begin = begin;
        while let Some(first) = self.slots.first_entry().filter(|first| *first.key() < begin) {
            self.released.push(first.remove());
        }
    }

    /// Gives free slots at the end of the file back.
    fn trim(&mut self) -> io::Result<()> {
        while self.free.len() > FREE_KEPT && self.free.last() == Some(&(self.count - 1)) {
            self.free.pop_last();
            self.count -= 1;
        }
        if self.len > offset_of(self.count) {
            self.len = offset_of(self.count);
            self.file.set_len(self.len)?;
        }
        Ok(())
    }
}

/// Reads the stream on and on.
struct Reader<'a> {
    blocks: &'a Blocks,
    /// Where the stream ends, as far as is known.
    end: Position,
    at: Position,
    bytes: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(blocks: &'a Blocks, end: Position) -> Self {
        Self { blocks, end, at: 0, bytes: Vec::new() }
    }

    /// This much from a position on; `None` if the stream ends before.
    fn get(&mut self, at: Position, len: u64) -> io::Result<Option<&[u8]>> {
        if len > self.end.saturating_sub(at) {
            return Ok(None);
        }
        if at < self.at || at + len > self.at + self.bytes.len() as u64 {
            self.bytes.resize(len.max(READ.min(self.end - at)) as usize, 0);
            self.blocks.read(at, &mut self.bytes)?;
            self.at = at;
        }
        let begin = (at - self.at) as usize;
        Ok(Some(&self.bytes[begin..begin + len as usize]))
    }

    /// The frame at a position, if there is a whole one.
    fn frame(&mut self, at: Position) -> io::Result<Option<Frame<'_>>> {
        let Some(len) = self.get(at, FRAME)?.map(|head| u64::from(half(&head[..4]))) else { return Ok(None) };
        Ok(self.get(at, FRAME + len)?.and_then(Frame::at))
    }
}

/// A frame that is whole.
struct Frame<'a> {
    sum: u32,
    /// The checksum of the one before.
    before: u32,
    salt: u32,
    number: u64,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that bytes begin with, if there is a whole one.
    fn at(bytes: &'a [u8]) -> Option<Self> {
        let len = half(bytes.get(..4)?) as usize;
        let bytes = bytes.get(..FRAME as usize + len).filter(|_| len > 0 && (len as u64).is_multiple_of(ALIGN))?;
        let [sum, before, salt] = [4, 8, 12].map(|at| half(&bytes[at..at + 4]));
        let number = word(&bytes[16..24]);
        (sum == sum_of(bytes)).then(|| Self { sum, before, salt, number, body: &bytes[FRAME as usize..] })
    }
}

/// The checksum of a frame: all of it but the checksum's own place.
fn sum_of(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[8..])
}

/// Where a record is.
#[derive(Clone, Copy)]
struct Place {
    at: Position,
    len: u32,
    /// The block in which its frame begins.
    begun: Block,
}

/// What the frames say: the named records, and where the numbered ones are.
#[derive(Default)]
struct Records {
    named: BTreeMap<String, Vec<u8>>,
    numbered: BTreeMap<u64, Place>,
    /// Of each block, how many records are in frames that begin in it.
    held: BTreeMap<Block, u64>,
}

impl Records {
    fn let_go(&mut self, place: Place) {
        let held = self.held.get_mut(&place.begun).expect("a record is counted where its frame begins");
        *held -= 1;
        if *held == 0 {
            self.held.remove(&place.begun);
        }
    }

    fn put(&mut self, number: u64, place: Place) {
        *self.held.entry(place.begun).or_default() += 1;
        if let Some(old) = self.numbered.insert(number, place) {
            self.let_go(old);
        }
    }

    fn remove(&mut self, range: Range<u64>) {
        let mut gone = self.numbered.split_off(&range.start);
        self.numbered.append(&mut gone.split_off(&range.end.max(range.start)));
        gone.into_values().for_each(|place| self.let_go(place));
    }

    /// Carries out the changes of a frame at a position; `None` if they are none.
    fn apply(&mut self, at: Position, body: &[u8]) -> Option<()> {
        let (mut rest, begun) = (body, block_of(at));
        fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
            let (part, after) = rest.split_at_checked(len)?;
            *rest = after;
            Some(part)
        }
        while let Some(kind) = take(&mut rest, 1) {
            match kind[0] {
                0 => return rest.iter().all(|byte| *byte == 0).then_some(()),
                NAME => {
                    let [name, record] = [(); 2].map(|()| half_len(&mut rest).and_then(|len| take(&mut rest, len)));
                    let (name, record) = (str::from_utf8(name?).ok()?, record?);
                    match self.named.get_mut(name) {
                        Some(there) => there.splice(.., record.iter().copied()).for_each(drop),
                        None => drop(self.named.insert(name.to_owned(), record.to_vec())),
                    }
                }
                PUT => {
                    let number = word(take(&mut rest, 8)?);
                    let len = half_len(&mut rest)?;
                    let at = at + FRAME + (body.len() - rest.len()) as u64;
                    take(&mut rest, len)?;
                    self.put(number, Place { at, len: len as u32, begun });
                }
                REMOVE => {
                    let [start, end] = [(); 2].map(|()| take(&mut rest, 8).map(word));
                    self.remove(start?..end?);
                }
                _ => return None,
            }
        }
        Some(())
    }
}

/// Takes a length.
fn half_len(rest: &mut &[u8]) -> Option<usize> {
    let (len, after) = rest.split_at_checked(4)?;
    *rest = after;
    Some(half(len) as usize)
}

fn write_len(frame: &mut Vec<u8>, len: usize) {
    frame.extend(u32::try_from(len).expect("a record has at most 4 GiB").to_le_bytes());
}

fn write_name(frame: &mut Vec<u8>, name: &str, record: &[u8]) {
    frame.push(NAME);
    write_len(frame, name.len());
    frame.extend(name.as_bytes());
    write_len(frame, record.len());
    frame.extend(record);
}

fn write_change(frame: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Name(name, record) => write_name(frame, name, record),
        Change::Put(number, record) => {
            frame.push(PUT);
            frame.extend(number.to_le_bytes());
            write_len(frame, record.len());
            frame.extend(record);
        }
        Change::Remove(numbers) => {
            frame.push(REMOVE);
            frame.extend(numbers.start.to_le_bytes());
            frame.extend(numbers.end.to_le_bytes());
        }
    }
}

/// The newest frame.
#[derive(Clone, Copy)]
struct Newest {
    number: u64,
    sum: u32,
    /// The block in which it begins.
    begun: Block,
}

/// Records of bytes, by numbers and by names, that change in batches. Owned by one thread; calls block.
pub struct Journal {
    blocks: Blocks,
    records: Records,
    newest: Option<Newest>,
    /// What all its frames have.
    salt: u32,
    /// Where the stream ends.
    end: Position,
}

impl Journal {
    /// Opens it, and reads and checks all of it. Nothing is written: a file that is empty is an empty journal. But what was read is
    /// durable from here on: a process that was killed may have left a batch that it did not sync.
    ///
    /// # Errors
    /// The file cannot be read or synced, or is damaged.
    pub fn open(file: Backend) -> io::Result<Self> {
        let (blocks, begin) = Blocks::open(file)?;
        let mut journal = Self { blocks, records: Records::default(), newest: None, salt: 0, end: begin };
        if let Some(bytes) = journal.read_on()? {
            tracing::warn!(
                bytes,
                "the last batch of the log is not whole, as if the power went while it was written: it is left out"
            );
        }
        if journal.newest.is_none() && begin > 0 {
            return Err(corrupt("its first frame is damaged".into()));
        }
        // Nothing that came later may be anywhere, not even where no header says what it is.
        let Self { blocks, newest, salt, end, .. } = &journal;
        let next = newest.map_or(1, |newest| newest.number + 1);
        let numbers = next..=next + u64::from(blocks.count) * BLOCK / FRAME;
        let look = |bytes: Vec<u8>| {
            let later = |at: usize| {
                let is_later = numbers.contains(&word(bytes[at..].get(16..24)?));
                // A record may look like a frame, but whoever wrote it does not know the salt. Nor does this, if it has read none.
                let is_one = |frame: &Frame<'_>| newest.is_none() || frame.salt == *salt;
                is_later.then(|| Frame::at(&bytes[at..])).flatten().filter(is_one)
            };
            let found = (0..bytes.len()).step_by(ALIGN as usize).find_map(later);
            found.map_or(Ok(()), |frame| {
                Err(corrupt(format!("what comes before its frame {} is damaged", frame.number)))
            })
        };
        for run in blocks.runs() {
            let from = run.start.max(*end).min(run.end);
            let mut bytes = vec![0; (run.end - from) as usize];
            blocks.read(from, &mut bytes)?;
            look(bytes)?;
        }
        for slot in &blocks.free {
            look(blocks.stretch(*slot)?)?;
        }
        blocks.file.sync_data()?;
        journal.release();
        Ok(journal)
    }

    /// Reads the frames from its end on, up to one that is not whole or does not follow. If one follows that is not whole, gives its length in
    /// bytes.
    fn read_on(&mut self) -> io::Result<Option<u64>> {
        let Self { blocks, records, newest, salt, end } = self;
        let whole = blocks.runs().into_iter().find(|run| run.contains(end)).map_or(*end, |run| run.end);
        let mut reader = Reader::new(blocks, whole);
        while let Some(frame) = reader.frame(*end)? {
            let follows =
                |newest: Newest| (frame.number, frame.before, frame.salt) == (newest.number + 1, newest.sum, *salt);
            if !newest.is_none_or(follows) {
                break;
            }
            let Frame { number, sum, body, .. } = frame;
            *salt = frame.salt;
            records.apply(*end, body).ok_or_else(|| corrupt(format!("the frame {number} has no changes")))?;
            *newest = Some(Newest { number, sum, begun: block_of(*end) });
            *end += FRAME + body.len() as u64;
        }
        let follows = |head: &[u8]| {
            newest.is_some_and(|newest| {
                (word(&head[16..24]), half(&head[8..12]), half(&head[12..16])) == (newest.number + 1, newest.sum, *salt)
            })
        };
        let torn =
            reader.get(*end, FRAME)?.filter(|head| follows(head)).map(|head| FRAME + u64::from(half(&head[..4])));
        sometimes!(torn.is_some(), "the last batch of a log was torn");
        Ok(torn)
    }

    /// Takes in what was committed through another journal on the same file since. What was read before is not checked again; for
    /// an observer, who writes nothing.
    ///
    /// # Errors
    /// The file cannot be read or is damaged, or what would follow is gone; then it must be opened anew.
    #[cfg(feature = "sim")]
    pub fn catch_up(&mut self) -> io::Result<()> {
        self.blocks.look()?;
        if block_of(self.end) < self.blocks.begin {
            return Err(io::Error::other("what follows is no longer in use"));
        }
        self.read_on().map(|_| ())
    }

    /// Says what all its frames are to have, if nothing was ever written to it: a number that nobody knows who has a say in what records
    /// hold, so that none is taken for a frame when it is looked whether any are missing.
    pub fn set_salt(&mut self, salt: u32) {
        if self.is_empty() {
            self.salt = salt;
        }
    }

    /// Whether nothing was ever written to it.
    pub fn is_empty(&self) -> bool {
        self.newest.is_none()
    }

    /// Lets go of the blocks that hold nothing any more.
    fn release(&mut self) {
        let Some(newest) = self.newest else { return };
        let first = self.records.held.keys().next().map_or(newest.begun, |block| newest.begun.min(*block));
        self.blocks.release(first);
    }

    /// The record of this name.
    pub fn named(&self, name: &str) -> Option<&[u8]> {
        self.records.named.get(name).map(Vec::as_slice)
    }

    /// The highest number.
    pub fn last(&self) -> Option<u64> {
        self.records.numbered.keys().next_back().copied()
    }

    /// Calls `each` for the numbered records of a range, in order, until it breaks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn scan(&self, range: Range<u64>, each: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>) -> io::Result<()> {
        let places = self.records.numbered.range(range);
        let end = places.clone().map(|(_, place)| place.at + u64::from(place.len)).max().unwrap_or_default();
        let mut reader = Reader::new(&self.blocks, end);
        for (number, place) in places {
            let record = reader.get(place.at, place.len.into())?.expect("a record lies in the stream");
            if each(*number, record).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Carries out a batch. When this returns all of it is durable; a crash before leaves all or nothing.
    ///
    /// # Errors
    /// The file cannot be written; then nobody knows what is durable, and it must not be used any more.
    pub fn commit(&mut self, batch: &Batch) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let begun = block_of(self.end);
        let mut frame = vec![0; FRAME as usize];
        if self.newest.is_none_or(|newest| newest.begun < begun) {
            self.records.named.iter().for_each(|(name, record)| write_name(&mut frame, name, record));
        }
        batch.changes.iter().for_each(|change| write_change(&mut frame, change));
        frame.resize(frame.len().next_multiple_of(ALIGN as usize), 0);
        let body = frame.len() - FRAME as usize;
        let before = self.newest.map_or(0, |newest| newest.sum);
        let number = self.newest.map_or(1, |newest| newest.number + 1);
        let too_large = |_| io::Error::other(format!("a batch has {body} bytes, over the 4 GiB that a frame may have"));
        frame[..4].copy_from_slice(&u32::try_from(body).map_err(too_large)?.to_le_bytes());
        frame[8..12].copy_from_slice(&before.to_le_bytes());
        frame[12..16].copy_from_slice(&self.salt.to_le_bytes());
        frame[16..24].copy_from_slice(&number.to_le_bytes());
        let sum = sum_of(&frame);
        frame[4..8].copy_from_slice(&sum.to_le_bytes());
        self.blocks.append(self.end, &frame)?;
        self.records.apply(self.end, &frame[FRAME as usize..]).expect("what was written can be read");
        self.newest = Some(Newest { number, sum, begun });
        self.end += frame.len() as u64;
        self.release();
        self.blocks.trim()
    }
}

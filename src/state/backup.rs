//! A backup: the whole state as a series of bytes that can be kept outside the cluster, and checked anywhere.
//!
//! ```text
//!   frame = length of the payload (4 bytes, little-endian) ‖ crc32c of number and payload (4 bytes) ‖ payload
//!   backup = frame of the encoded BackupHead ‖ frames of the chunks of a snapshot ‖ an empty frame
//!            ‖ zeros up to a multiple of 512 bytes ‖ sha256 of all before
//! ```
//!
//! The last line is what etcd's own client wants of what it saves.
//!
//! Whatever is read is untrusted: what is garbage, cut short or damaged is said to be, with the place.

use std::io::{self, Read};

use prost::Message;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use super::machine::head_digest;
use super::table::{TABLES, row_digest};
use crate::error::{Fault, ImportError};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::proto::v1;

/// What a head begins with.
const MAGIC: &str = "cairn backup";
/// Bytes of a frame besides its payload.
const FRAME_BYTES: u64 = 8;
/// What the frames fill whole ones of.
const BLOCK_BYTES: u64 = 512;

fn checksum(number: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), payload)
}

/// The frame of a number, counted from the head, which is 0.
fn frame(number: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&checksum(number, payload).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Puts a backup together, frame by frame.
pub struct Writer {
    frames: u64,
    bytes: u64,
    sha: Context,
}

impl Writer {
    /// Begins one.
    pub fn new() -> Self {
        Self { frames: 0, bytes: 0, sha: Context::new(&SHA256) }
    }

    /// The frame of the next payload: the head, and then the chunks.
    ///
    /// # Errors
    /// It is larger than a message may be: of all rows only the answers that sessions keep have no bound.
    pub fn frame(&mut self, payload: &[u8]) -> Result<Vec<u8>, Fault> {
        if payload.len() > MESSAGE_BYTES_MAX {
            let bytes = payload.len();
            return Err(Fault::new(format!(
                "a part of the backup has {bytes} bytes, at most {MESSAGE_BYTES_MAX}: a client has not acknowledged a long answer yet; \
                 try again in a minute"
            )));
        }
        Ok(self.add(payload))
    }

    fn add(&mut self, payload: &[u8]) -> Vec<u8> {
        let frame = frame(self.frames, payload);
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.sha.update(&frame);
        frame
    }

    /// What comes after the last chunk.
    pub fn end(mut self) -> Vec<u8> {
        let mut end = self.add(&[]);
        let zeros = vec![0; padding(self.bytes) as usize];
        self.sha.update(&zeros);
        end.extend_from_slice(&zeros);
        end.extend_from_slice(self.sha.finish().as_ref());
        end
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

/// How many zeros come after so many bytes.
fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES) - bytes
}

/// How long a backup is whose head and chunks, so many of them, have so many bytes.
pub fn length(payload_bytes: u64, chunks: u64) -> u64 {
    let frames = payload_bytes + (chunks + 2) * FRAME_BYTES;
    frames.next_multiple_of(BLOCK_BYTES) + SHA256_OUTPUT_LEN as u64
}

/// A head that can be known for one.
pub fn head(head: v1::BackupHead) -> v1::BackupHead {
    v1::BackupHead { magic: MAGIC.into(), ..head }
}

/// Reads a backup.
pub struct Reader<R> {
    from: R,
    head: v1::BackupHead,
    /// Frames read.
    frames: u64,
    /// Bytes read.
    bytes: u64,
    sha: Context,
    digest: Digest,
}

/// What was read, as the digest of the state counts it.
#[derive(Default)]
struct Digest {
    head: Option<v1::Head>,
    rows: u64,
    count: u64,
}

fn invalid(why: impl Into<String>) -> ImportError {
    ImportError::Invalid(why.into())
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// It is no backup, or cannot be read.
    pub fn open(from: R) -> Result<Self, ImportError> {
        let mut reader = Self {
            from,
            head: v1::BackupHead::default(),
            frames: 0,
            bytes: 0,
            sha: Context::new(&SHA256),
            digest: Digest::default(),
        };
        let none = || invalid("this is no backup of Cairn's");
        let payload = reader.frame().map_err(|error| match error {
            ImportError::Invalid(_) => none(),
            fault => fault,
        })?;
        reader.head = v1::BackupHead::decode(&*payload).map_err(|_| none())?;
        if reader.head.magic == MAGIC { Ok(reader) } else { Err(none()) }
    }

    /// What it is of.
    pub fn head(&self) -> &v1::BackupHead {
        &self.head
    }

    /// Rows and bytes read so far.
    pub fn read(&self) -> (u64, u64) {
        (self.digest.count, self.bytes)
    }

    /// The next chunk; nothing at the end, when all that came is what the head says.
    ///
    /// # Errors
    /// It is damaged, or cut short, or cannot be read.
    pub fn chunk(&mut self) -> Result<Option<Vec<u8>>, ImportError> {
        let payload = self.frame()?;
        if payload.is_empty() {
            self.check_sum()?;
            return self.check_whole().map(|()| None);
        }
        let what = |error| invalid(format!("frame {}: {error}", self.frames - 1));
        let part = v1::SnapshotPart::decode(&*payload).map_err(what)?;
        self.digest.head = self.digest.head.take().or(part.head);
        for row in &part.rows {
            let table = TABLES.get(row.table as usize);
            let table = table.ok_or_else(|| invalid(format!("table {} is unknown to this version", row.table)))?;
            self.digest.rows = self.digest.rows.wrapping_add(row_digest(*table, &row.key, &row.value));
            self.digest.count += 1;
        }
        Ok(Some(payload))
    }

    fn check_sum(&mut self) -> Result<(), ImportError> {
        self.fill(&mut vec![0; padding(self.bytes) as usize])?;
        let expected = self.sha.clone().finish();
        let mut found = [0; SHA256_OUTPUT_LEN];
        self.fill(&mut found)?;
        let more = self.from.read(&mut [0]).map_err(|error| self.unread(error))?;
        match found[..] == *expected.as_ref() {
            true if more == 0 => Ok(()),
            true => Err(invalid(format!("something follows its end, byte {}", self.bytes))),
            false => Err(invalid("it is damaged: its sha256 is another than it says")),
        }
    }

    fn check_whole(&mut self) -> Result<(), ImportError> {
        let found = self.digest.head.as_ref().map(|head| {
            let rows_digest = self.digest.rows;
            head_digest(&v1::Head { rows_digest, ..head.clone() })
        });
        match found {
            Some(digest) if digest == self.head.digest => Ok(()),
            _ => Err(invalid(format!("the state that it holds is not the one of digest {:016x}", self.head.digest))),
        }
    }

    fn frame(&mut self) -> Result<Vec<u8>, ImportError> {
        let number = self.frames;
        let mut lead = [0; FRAME_BYTES as usize];
        self.fill(&mut lead)?;
        let word = |at: usize| u32::from_le_bytes([lead[at], lead[at + 1], lead[at + 2], lead[at + 3]]);
        let (length, expected) = (word(0) as usize, word(4));
        if length > MESSAGE_BYTES_MAX {
            return Err(invalid(format!(
                "frame {number} is damaged: it has {length} bytes, at most {MESSAGE_BYTES_MAX}"
            )));
        }
        let mut payload = vec![0; length];
        self.fill(&mut payload)?;
        if checksum(number, &payload) != expected {
            return Err(invalid(format!("frame {number} is damaged, before byte {}", self.bytes)));
        }
        self.frames += 1;
        Ok(payload)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), ImportError> {
        match self.from.read_exact(out) {
            Ok(()) => {
                self.bytes += out.len() as u64;
                self.sha.update(out);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(invalid(format!("it is cut short after byte {}", self.bytes)))
            }
            Err(error) => Err(self.unread(error)),
        }
    }

    /// That it cannot be read says nothing of what it is.
    fn unread(&self, error: io::Error) -> ImportError {
        ImportError::Fault(Fault::because(format!("read after byte {}", self.bytes), error))
    }
}

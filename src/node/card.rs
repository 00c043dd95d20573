//! What a worker without state keeps on its disk: its uuid, who it is, and where the servers were last.
//!
//! The file has two places, and each version of the card goes into the place of the one before the last: a write that is cut
//! short harms only what nobody relies on any more. The uuid is durable before the worker first asks to join; what is lost
//! after that is asked for again under the same uuid.

use prost::Message;
use redb::StorageBackend;

use crate::error::{Context, Fault};
use crate::io::{Backend, Disk};
use crate::limits::CARD_BYTES_MAX;
use crate::proto::v1::WorkerCard;

/// The file that holds the card.
pub const CARD_FILE: &str = "worker";

/// Whether a data directory has a card: then it is a worker's.
///
/// # Errors
/// The disk failed.
pub fn is_there(disk: &dyn Disk) -> Result<bool, Fault> {
    let names = disk.list().context(|| format!("look for {CARD_FILE} in {}", disk.describe()))?;
    Ok(names.iter().any(|name| name == CARD_FILE))
}

/// Checksum and length come first.
const HEAD_BYTES: usize = 8;

/// The card, and the file that it is in.
#[derive(Debug)]
pub struct Card {
    file: Backend,
    place: String,
    /// What the newest version says.
    pub now: WorkerCard,
}

impl Card {
    /// Opens the card of the data directory, making one with the uuid that `draw` gives if there is none.
    ///
    /// # Errors
    /// The disk failed, or both versions are damaged.
    pub fn open(disk: &dyn Disk, draw: impl FnOnce() -> [u8; 16]) -> Result<Self, Fault> {
        let place = format!("{CARD_FILE} in {}", disk.describe());
        let file = disk.open(CARD_FILE).context(|| format!("open {place}"))?;
        let mut card = Self { file, place, now: WorkerCard::default() };
        let copies = [card.read(0)?, card.read(1)?];
        // The first version may have been cut short; then there was no second.
        if copies.iter().all(|copy| matches!(copy, Copy::Damaged)) {
            return Err(Fault::new(format!(
                "{} is damaged: who this worker is cannot be told. Remove it with `node cluster remove`, and start with an empty \
                 data directory and --join",
                card.place
            )));
        }
        let whole = copies.into_iter().filter_map(|copy| if let Copy::Whole(card) = copy { Some(card) } else { None });
        match whole.max_by_key(|card| card.version) {
            Some(newest) => card.now = newest,
            None => {
                disk.sync_dir().context(|| format!("open {}", card.place))?;
                card.write(WorkerCard { uuid: draw().to_vec().into(), ..WorkerCard::default() })?;
            }
        }
        Ok(card)
    }

    /// Makes the next version durable.
    ///
    /// # Errors
    /// The disk failed; then the version before still counts.
    pub fn write(&mut self, next: WorkerCard) -> Result<(), Fault> {
        let what = || format!("write {}", self.place);
        let next = WorkerCard { version: self.now.version + 1, ..next };
        let bytes = next.encode_to_vec();
        if HEAD_BYTES + bytes.len() > CARD_BYTES_MAX {
            let text = format!("{}: {} bytes, at most {}", self.place, bytes.len(), CARD_BYTES_MAX - HEAD_BYTES);
            return Err(Fault::new(text));
        }
        let mut record = crc32c::crc32c(&bytes).to_le_bytes().to_vec();
        record.extend((bytes.len() as u32).to_le_bytes());
        record.extend(bytes);
        let most = 2 * CARD_BYTES_MAX as u64;
        if self.file.len().context(what)? < most {
            self.file.set_len(most).context(what)?;
        }
        self.file.write(next.version % 2 * CARD_BYTES_MAX as u64, &record).context(what)?;
        self.file.sync_data().context(what)?;
        self.now = next;
        Ok(())
    }

    fn read(&self, number: u64) -> Result<Copy, Fault> {
        let what = || format!("read {}", self.place);
        let mut bytes = vec![0; CARD_BYTES_MAX];
        let start = number * CARD_BYTES_MAX as u64;
        let there = self.file.len().context(what)?.saturating_sub(start).min(CARD_BYTES_MAX as u64);
        if there > 0 {
            self.file.read(start, &mut bytes[..there as usize]).context(what)?;
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Copy::Empty);
        }
        let (head, rest) = bytes.split_at(HEAD_BYTES);
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let whole = rest.get(..word(4) as usize).filter(|body| crc32c::crc32c(body) == word(0));
        Ok(whole.and_then(|body| WorkerCard::decode(body).ok()).map_or(Copy::Damaged, Copy::Whole))
    }
}

/// What one of the two places holds.
enum Copy {
    Empty,
    Whole(WorkerCard),
    Damaged,
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::io::Rng;
    use crate::proto::v1::JoinReply;
    use crate::sim::disk::{PowerCut, SimDisk};

    fn open(disk: &SimDisk, uuid: u8) -> Result<Card, Fault> {
        Card::open(&*disk.boot(), || [uuid; 16])
    }

    fn joined(id: u64) -> Option<JoinReply> {
        Some(JoinReply { id, ..JoinReply::default() })
    }

    /// Damages a bit of one of the two places.
    fn damage(card: &Card, place: u64) {
        let mut byte = [0];
        let at = place * CARD_BYTES_MAX as u64 + HEAD_BYTES as u64 + 1;
        card.file.read(at, &mut byte).expect("it is there");
        card.file.write(at, &[byte[0] ^ 4]).expect("it can be written");
        card.file.sync_data().expect("it can be synced");
    }

    #[test]
    fn a_power_cut_anywhere_leaves_this_version_or_the_one_before() {
        for operations in 0..16 {
            for seed in 0..8u8 {
                let disk = SimDisk::new("disk".into());
                let mounted = disk.boot();
                disk.cut_after(operations);
                let uuid = Card::open(&*mounted, || [7; 16]).ok().map(|mut card| {
                    let before = card.now.clone();
                    let first = card.write(WorkerCard { joined: joined(3), ..before.clone() }).is_ok();
                    let second = card.write(WorkerCard { joined: joined(4), ..before }).is_ok();
                    (first, second)
                });
                let cut = PowerCut { drop_permille: 300, tear_permille: 500 };
                disk.power_cut(cut, &mut Rng::from_seed([seed; 32]).stream("cut"));
                let now = open(&disk, 9).unwrap().now;
                match uuid {
                    None => assert!(now.joined.is_none()),
                    Some((first, second)) => {
                        assert_eq!(now.uuid[..], [7; 16], "a uuid that was used is gone");
                        let id = now.joined.map_or(0, |joined| joined.id);
                        assert!(
                            id == 4 || id == 3 && !second || id == 0 && !first,
                            "{id} after {operations} operations"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn damage_is_found_out() {
        let disk = SimDisk::new("disk".into());
        let mut card = open(&disk, 7).unwrap();
        card.write(WorkerCard { joined: joined(3), ..card.now.clone() }).unwrap();
        damage(&card, 0);
        let mut card = open(&disk, 9).unwrap();
        assert_eq!(
            (&card.now.uuid[..], card.now.joined.is_none()),
            (&[7; 16][..], true),
            "it asks again under its uuid"
        );
        card.write(WorkerCard { joined: joined(3), ..card.now.clone() }).unwrap();
        damage(&card, 0);
        damage(&card, 1);
        let error = open(&disk, 9).unwrap_err().to_string();
        assert!(error.contains("worker in disk") && error.contains("damaged"), "{error}");
    }
}

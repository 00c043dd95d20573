//! The journal in a file against a naive model, under power cuts at any operation and damage anywhere.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // tests are the outside world
#![cfg(feature = "sim")]

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use cairn::io::Rng;
use cairn::raft::journal::{Batch, Journal};
use cairn::sim::disk::{PowerCut, SimDisk};
use proptest::prelude::*;
use redb::StorageBackend;

const FILE: &str = "log";
const NAMES: [&str; 3] = ["one", "two", "three"];

#[derive(Clone, Debug)]
enum Change {
    Name {
        name: usize,
        fill: u8,
        len: usize,
    },
    /// Appends so many records of this length.
    Append {
        count: u64,
        fill: u8,
        len: usize,
    },
    /// Replaces what stands behind `back` records before the end.
    Replace {
        back: u64,
        fill: u8,
        len: usize,
    },
    /// Removes all but so many.
    Compact {
        keep: u64,
    },
}

impl Change {
    /// Has its records consist of these bytes.
    fn fill_with(&mut self, byte: u8) {
        match self {
            Self::Name { fill, .. } | Self::Append { fill, .. } | Self::Replace { fill, .. } => *fill = byte,
            Self::Compact { .. } => {}
        }
    }
}

/// What a journal should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    named: BTreeMap<&'static str, Vec<u8>>,
    numbered: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl Model {
    fn apply(&mut self, changes: &[Change]) -> Batch {
        let mut batch = Batch::default();
        for change in changes {
            match *change {
                Change::Name { name, fill, len } => {
                    batch.name(NAMES[name], vec![fill; len]);
                    self.named.insert(NAMES[name], vec![fill; len]);
                }
                Change::Append { count, fill, len } => {
                    for _ in 0..count {
                        batch.put(self.next, vec![fill; len]);
                        self.numbered.insert(self.next, vec![fill; len]);
                        self.next += 1;
                    }
                }
                Change::Replace { back, fill, len } => {
                    let first = self.next.saturating_sub(back);
                    batch.remove(first + 1..self.next);
                    batch.put(first, vec![fill; len]);
                    self.numbered.retain(|number, _| *number < first);
                    self.numbered.insert(first, vec![fill; len]);
                    self.next = first + 1;
                }
                Change::Compact { keep } => {
                    let first = self.next.saturating_sub(keep);
                    batch.remove(0..first);
                    self.numbered.retain(|number, _| *number >= first);
                }
            }
        }
        batch
    }

    /// Whether a journal holds just this.
    fn is(&self, journal: &Journal) -> bool {
        let mut numbered = BTreeMap::new();
        let mut each = |number, record: &[u8]| {
            numbered.insert(number, record.to_vec());
            ControlFlow::Continue(())
        };
        journal.scan(0..u64::MAX, &mut each).unwrap();
        let named = NAMES.iter().all(|name| journal.named(name) == self.named.get(name).map(Vec::as_slice));
        named && numbered == self.numbered && journal.last() == self.numbered.keys().next_back().copied()
    }
}

fn change() -> impl Strategy<Value = Change> {
    let len = prop_oneof![4 => 0usize..200, 3 => 1_000usize..20_000, 1 => 30_000usize..100_000];
    let fill = any::<u8>();
    prop_oneof![
        2 => (0usize..3, fill, 0usize..300).prop_map(|(name, fill, len)| Change::Name { name, fill, len }),
        5 => (1u64..5, fill, len.clone()).prop_map(|(count, fill, len)| Change::Append { count, fill, len }),
        2 => (1u64..6, fill, len).prop_map(|(back, fill, len)| Change::Replace { back, fill, len }),
        2 => (0u64..8).prop_map(|keep| Change::Compact { keep }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    /// A batch in the middle of which the power goes, after so many operations of the disk.
    Crash(Vec<Change>, u64, PowerCut, u64),
    /// It is opened again.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = || prop::collection::vec(change(), 1..4);
    let fate = (0u64..1_000, 0u64..1_000);
    let fate = fate.prop_map(|(drop_permille, tear_permille)| PowerCut { drop_permille, tear_permille });
    prop_oneof![
        6 => changes().prop_map(Step::Commit),
        2 => (changes(), 0u64..6, fate, any::<u64>()).prop_map(|(changes, at, fate, seed)| Step::Crash(changes, at, fate, seed)),
        1 => Just(Step::Reopen),
    ]
}

fn open(disk: &SimDisk) -> io::Result<Journal> {
    let mounted = disk.boot();
    let file = mounted.open(FILE)?;
    mounted.sync_dir()?;
    let mut journal = Journal::open(file)?;
    journal.set_salt(0x5a17);
    Ok(journal)
}

/// What is in the file.
fn content(disk: &SimDisk) -> Vec<u8> {
    let file = disk.boot().open(FILE).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read(0, &mut bytes).unwrap();
    bytes
}

/// A disk with this in the file.
fn holding(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new("damaged".into());
    let file = disk.boot().open(FILE).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write(0, bytes).unwrap();
    disk
}

fn seed(number: u64) -> Rng {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    Rng::from_seed(seed)
}

/// What a client may have stored: a whole frame, and at which place in eight bytes it begins.
fn forged(number: u64, skip: usize) -> Vec<u8> {
    let mut frame = vec![0; 32];
    frame[..4].copy_from_slice(&8_u32.to_le_bytes());
    frame[16..24].copy_from_slice(&number.to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[8..]);
    frame[4..8].copy_from_slice(&sum.to_le_bytes());
    [vec![0; skip], frame].concat()
}

#[test]
fn a_record_that_looks_like_a_frame_is_none() {
    let commit = |journal: &mut Journal, change: &mut dyn FnMut(&mut Batch)| {
        let mut batch = Batch::default();
        change(&mut batch);
        journal.commit(&batch).unwrap();
    };
    let opens = |salt: u32| {
        let disk = SimDisk::new("forged".into());
        let mut journal = open(&disk).unwrap();
        journal.set_salt(salt);
        // Long enough for some of it to lie in blocks that are free when all of it is removed.
        for number in 1..=40 {
            let record: Vec<u8> = (0..8).flat_map(|skip| forged(1_000, skip).repeat(100)).collect();
            commit(&mut journal, &mut |batch| batch.put(number, record.clone()));
        }
        commit(&mut journal, &mut |batch| batch.remove(1..41));
        for number in 41..45 {
            commit(&mut journal, &mut |batch| batch.put(number, vec![1; 40_000]));
        }
        open(&disk).is_ok_and(|journal| journal.last() == Some(44))
    };
    // Who knows the salt, can do it.
    assert_eq!([opens(7), opens(0)], [true, false]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// What was committed is there; of what was under way when the power went there is all or nothing.
    #[test]
    fn a_journal_holds_what_was_committed(steps in prop::collection::vec(step(), 1..40)) {
        let disk = SimDisk::new("disk".into());
        let mut model = Model::default();
        let mut journal = open(&disk).unwrap();
        for step in steps {
            match step {
                Step::Commit(changes) => {
                    let batch = model.apply(&changes);
                    journal.commit(&batch).unwrap();
                }
                Step::Crash(changes, at, fate, number) => {
                    let before = model.clone();
                    let batch = model.apply(&changes);
                    disk.cut_after(at);
                    let done = journal.commit(&batch).is_ok();
                    disk.power_cut(fate, &mut seed(number).stream("power"));
                    journal = open(&disk).unwrap();
                    if !model.is(&journal) {
                        prop_assert!(!done, "what was committed is lost");
                        model = before;
                    }
                }
                Step::Reopen => journal = open(&disk).unwrap(),
            }
            prop_assert!(model.is(&journal), "the journal holds something else");
        }
    }

    /// So is a page that is what it was long ago, because a write to it never reached the disk, or is another page.
    #[test]
    fn lost_and_misdirected_writes_are_found(
        commits in prop::collection::vec(prop::collection::vec(change(), 1..4), 3..30),
        pages in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>()), 20),
    ) {
        const PAGE: usize = 4096;
        let (disk, mut model) = (SimDisk::new("disk".into()), Model::default());
        let (mut images, mut before): (Vec<Vec<u8>>, Model) = Default::default();
        for (number, mut changes) in (1u8..).zip(commits) {
            changes.iter_mut().for_each(|change| change.fill_with(number)); // no two pages are alike by chance
            let was = model.clone();
            let batch = model.apply(&changes);
            if !batch.is_empty() {
                before = was;
                open(&disk).unwrap().commit(&batch).unwrap();
                images.push(content(&disk));
            }
        }
        // What was written lately cannot be told from what never was.
        let [images @ .., settled, _, last] = &images[..] else { return Ok(()) };
        for (number, other, is_lost) in pages {
            let number = number.index(last.len() / PAGE);
            let page = number * PAGE..(number + 1) * PAGE;
            let is_settled = settled.get(page.clone()) == last.get(page.clone());
            let other = match is_lost {
                true if images.is_empty() => continue,
                true => images[other.index(images.len())].get(page.clone()).map_or(vec![0; PAGE], <[u8]>::to_vec),
                false => last.chunks(PAGE).nth(other.index(last.len() / PAGE)).unwrap().to_vec(),
            };
            if is_settled {
                let mut damaged = last.clone();
                damaged[page].copy_from_slice(&other);
                match open(&holding(&damaged)) {
                    // A page of nothing but zeros may look settled, and have the last bytes of the last batch.
                    Ok(journal) => {
                        prop_assert!(model.is(&journal) || before.is(&journal), "damage of page {} is believed", number);
                    }
                    Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData),
                }
            }
        }
    }

    /// A bit that turns is found, or changes nothing that is read, unless it is in the last batch: that is then taken for one
    /// that was never whole.
    #[test]
    fn damage_is_found(
        commits in prop::collection::vec(prop::collection::vec(change(), 1..4), 2..20),
        bits in prop::collection::vec(any::<u64>(), 20),
    ) {
        let disk = SimDisk::new("disk".into());
        let mut models = vec![Model::default()];
        let mut journal = open(&disk).unwrap();
        for changes in &commits {
            let mut model = models.last().unwrap().clone();
            let batch = model.apply(changes);
            journal.commit(&batch).unwrap();
            if !batch.is_empty() {
                models.push(model);
            }
        }
        prop_assume!(models.len() > 1);
        let mut bytes = content(&disk);
        let [.., before, last] = &models[..] else { unreachable!() };
        for bit in bits {
            let bit = (bit % (bytes.len() as u64 * 8)) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let other = holding(&bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            match open(&other) {
                Ok(journal) => prop_assert!(last.is(&journal) || before.is(&journal), "damage at {} is believed", bit / 8),
                Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData),
            }
        }
    }
}

/// A process that is killed between a write and its sync leaves a batch to the next one, which may count on it from then on.
#[test]
fn what_was_read_outlives_the_power() {
    let disk = SimDisk::new("disk".into());
    let (mut journal, mut model) = (open(&disk).unwrap(), Model::default());
    journal.commit(&model.apply(&[Change::Name { name: 0, fill: 1, len: 16 }])).unwrap();
    disk.cut_after(1);
    assert!(journal.commit(&model.apply(&[Change::Name { name: 1, fill: 2, len: 16 }])).is_err());
    assert!(model.is(&open(&disk).unwrap()), "a kill has lost what was written");
    disk.power_cut(PowerCut { drop_permille: 1_000, tear_permille: 0 }, &mut seed(0).stream("power"));
    assert!(model.is(&open(&disk).unwrap()), "what was there once is there no more");
}

/// However long it goes on, a journal of which little is kept stays small.
#[test]
fn blocks_are_used_again() {
    let disk = SimDisk::new("disk".into());
    let mut journal = open(&disk).unwrap();
    let mut model = Model::default();
    let len = || disk.boot().size(FILE).unwrap();
    for _ in 0..200 {
        let batch = model.apply(&[Change::Append { count: 4, fill: 7, len: 10_000 }, Change::Compact { keep: 8 }]);
        journal.commit(&batch).unwrap();
    }
    assert!(model.is(&journal));
    drop(journal);
    assert!(len() < 400_000, "{} bytes for 80,000", len());
    // What grew gives most of it back.
    let mut journal = open(&disk).unwrap();
    journal.commit(&model.apply(&[Change::Append { count: 100, fill: 8, len: 100_000 }])).unwrap();
    for _ in 0..400 {
        journal
            .commit(&model.apply(&[Change::Append { count: 1, fill: 9, len: 10_000 }, Change::Compact { keep: 8 }]))
            .unwrap();
    }
    drop(journal);
    assert!(len() < 4_000_000, "{} bytes after 10,000,000 were there", len());
    assert!(model.is(&open(&disk).unwrap()));
}

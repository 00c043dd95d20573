//! Whatever happens to the bytes of a log's journal, opening it says that it is damaged, or gives a journal that goes on.

#![no_main]

use std::ops::ControlFlow;

use cairn::io::Disk;
use cairn::raft::journal::{Batch, Journal};
use cairn_fuzz::MemoryDisk;
use libfuzzer_sys::fuzz_target;
use redb::StorageBackend;

/// Records of a journal.
fn records(journal: &Journal) -> Vec<(u64, Vec<u8>)> {
    let mut records = Vec::new();
    let mut each = |number, record: &[u8]| {
        records.push((number, record.to_vec()));
        ControlFlow::Continue(())
    };
    journal.scan(0..u64::MAX, &mut each).unwrap();
    records
}

fuzz_target!(|input: (Vec<(u8, u16)>, Vec<(u32, u8)>, Option<u32>)| {
    let (batches, edits, cut) = input;
    let disk = MemoryDisk::default();
    let open = || Journal::open(disk.open("log").unwrap());
    let mut journal = open().unwrap();
    for (number, (keep, len)) in (0u64..).zip(&batches) {
        let mut batch = Batch::default();
        batch.name("newest", number.to_le_bytes());
        batch.put(number, vec![*keep; (*len).into()]);
        batch.remove(0..number.saturating_sub((*keep).into()));
        journal.commit(&batch).unwrap();
    }
    let before = records(&journal);
    drop(journal);
    let file = disk.open("log").unwrap();
    let len = file.len().unwrap();
    for (offset, byte) in &edits {
        if u64::from(*offset) < len {
            file.write((*offset).into(), &[*byte]).unwrap();
        }
    }
    if let Some(cut) = cut {
        file.set_len(len.min(cut.into())).unwrap();
    }
    let Ok(mut journal) = open() else { return };
    let found = records(&journal);
    assert!(found.iter().all(|(number, record)| {
        let (keep, len) = batches[*number as usize];
        *record == vec![keep; len.into()]
    }));
    assert!(!edits.is_empty() || cut.is_some() || found == before);
    let mut batch = Batch::default();
    batch.put(1 << 20, b"one more".to_vec());
    journal.commit(&batch).unwrap();
    let after = records(&open().unwrap());
    assert_eq!(after.len(), found.len() + 1);
});

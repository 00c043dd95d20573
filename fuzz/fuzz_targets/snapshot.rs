//! Whatever a peer sends as the body of a snapshot is refused or is a state whose digest is the one expected; it never
//! stops the node.

#![no_main]

use std::sync::Arc;

use cairn::error::ImportError;
use cairn::ids::Index;
use cairn::proto::v1::SnapshotPart;
use cairn::state::machine::{State, head_digest};
use cairn::state::snapshot::Import;
use cairn_fuzz::MemoryDisk;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|chunks: Vec<Vec<u8>>| {
    // The digest that the chunks claim, so that some of them get past it.
    let claimed = chunks.first().and_then(|chunk| SnapshotPart::decode(&**chunk).ok()?.head);
    let index = Index(claimed.as_ref().map_or(1, |head| head.applied_index));
    let expected = claimed.as_ref().map_or(0, head_digest);
    let disk = Arc::new(MemoryDisk::default());
    let mut import = Import::begin(disk.clone(), index).unwrap();
    for chunk in &chunks {
        match import.add(chunk) {
            Ok(()) => {}
            Err(ImportError::Invalid(_)) => return,
            Err(ImportError::Fault(fault)) => panic!("a chunk stops the node: {fault}"),
        }
    }
    match import.finish(expected) {
        Ok(()) => {
            let state = State::open(disk, index).unwrap();
            assert_eq!(state.digest(), expected);
            assert_eq!(state.reader().full_digest().unwrap(), expected);
        }
        Err(ImportError::Invalid(_)) => {}
        Err(ImportError::Fault(fault)) => panic!("a snapshot stops the node: {fault}"),
    }
});

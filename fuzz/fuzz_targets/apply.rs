//! Whatever the log holds, applying it gives an answer or a fault, never a panic; the digest is always that of the rows,
//! and another member that applies the same in one batch has the same.

#![no_main]

use std::sync::Arc;

use cairn::entry::{Body, Entry};
use cairn::ids::{Index, Term};
use cairn::state::machine::State;
use cairn::time::ClusterTime;
use cairn_fuzz::MemoryDisk;
use libfuzzer_sys::fuzz_target;

fn state() -> State {
    State::open(Arc::new(MemoryDisk::default()), Index(0)).unwrap()
}

fuzz_target!(|batches: Vec<(u16, Vec<Vec<u8>>)>| {
    let mut state = state();
    let mut log = Vec::new();
    let mut time = 0;
    for (later, commands) in batches.into_iter().take(16) {
        time += u64::from(later);
        let commands = commands.into_iter().take(8).map(bytes::Bytes::from).collect();
        let index = Index(log.len() as u64 + 1);
        let entry = Entry { index, term: Term(1), body: Body::Commands { stamp: ClusterTime(time), commands } };
        let before = (state.applied(), state.digest());
        match state.apply(std::slice::from_ref(&entry)) {
            Ok(_) => log.push(entry),
            Err(_) => assert_eq!((state.applied(), state.digest()), before, "a fault has changed something"),
        }
    }
    assert_eq!(state.reader().full_digest().unwrap(), state.digest());
    let mut other = self::state();
    other.apply(&log).unwrap();
    assert_eq!(other.digest(), state.digest());
});

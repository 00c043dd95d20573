//! What a durable write costs at least: one member's log and state, written as a member writes them, beside the disk alone.
//!
//! `cargo bench --bench floors`. Each line is the processor's or the disk's time for one write of 256 bytes when so many share an
//! entry, without network, consensus or clients.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // benchmarks are the outside world

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn::entry::{Body, Entry};
use cairn::ids::{Index, Term};
use cairn::os::DataDir;
use cairn::proto::etcdserverpb::PutRequest;
use cairn::proto::v1::command::Kind;
use cairn::state::command;
use cairn::state::machine::State;
use cairn::time::ClusterTime;
use prost::Message as _;

const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 256;
/// Writes of each measurement.
const WRITES: usize = 200_000;
/// Writes that share an entry.
const SHARES: [usize; 4] = [1, 16, 256, 1_024];

fn put(number: usize) -> Bytes {
    let key = format!("bench/{:05}", (number * 104_729) % KEYS);
    let put = PutRequest { key: key.into(), value: vec![b'x'; VALUE_BYTES].into(), ..PutRequest::default() };
    command::plain("", Kind::Put(put)).encode_to_vec().into()
}

/// A state that applies entries, so many at once as the log's owner would give it.
fn apply(dir: &Path, share: usize) -> Duration {
    let mut state = State::open(Arc::new(DataDir::open(dir).unwrap()), Index(0)).unwrap();
    let writes = WRITES.min(share * 4_000);
    let commands: Vec<Bytes> = (0..writes).map(put).collect();
    let entries: Vec<Entry> = commands
        .chunks(share)
        .enumerate()
        .map(|(number, commands)| Entry {
            index: Index(number as u64 + 1),
            term: Term(1),
            body: Body::Commands { stamp: ClusterTime(number as u64), commands: commands.to_vec() },
        })
        .collect();
    let began = Instant::now();
    for entry in entries {
        state.apply(&[entry]).unwrap();
    }
    began.elapsed() / writes as u32
}

/// The disk alone: as many bytes, synced as often.
fn disk(dir: &Path, share: usize) -> Duration {
    let mut file = File::create(dir.join("floor")).unwrap();
    let (syncs, bytes) = ((WRITES / share).min(1_000), vec![0u8; share * VALUE_BYTES]);
    let began = Instant::now();
    for _ in 0..syncs {
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
    }
    began.elapsed() / (syncs * share) as u32
}

fn main() {
    println!("writes an entry   disk µs   state µs");
    for share in SHARES {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let micros = |span: Duration| span.as_secs_f64() * 1e6;
        println!("{share:>15}  {:>8.2}  {:>9.2}", micros(disk(dir.path(), share)), micros(apply(dir.path(), share)));
    }
}

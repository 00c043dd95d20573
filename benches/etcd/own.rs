//! What etcd's clients cannot do: our own client with many writes under way, over sockets and within a member's process, beside what
//! the disk does alone.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cairn::client::Client;
use cairn::node::{Node, NodeBuilder, Origin, Role};
use futures_util::StreamExt;
use tokio::task::JoinSet;

use super::cluster::{Process, free, member};
use super::load::{VALUE_BYTES, key};

/// Writes under way at once.
const UNDER_WAY: usize = 4_096;
/// Writes that share a sync of the disk, where there is nothing else.
const SHARE: usize = 1_024;
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures all; `seconds` is how long each turn takes, of which there are `rounds`.
pub async fn measure(dir: &Path, rounds: usize, seconds: u64) {
    println!("writes of {VALUE_BYTES} bytes, {UNDER_WAY} under way        per second   of the disk   p50 ms   p99 ms");
    for members in [1, 3] {
        let home = dir.join(format!("own{members}"));
        let (node, processes) = start(&home, members).await;
        let embedded = node.client(PATIENCE);
        let io = cairn::os::client_io(None).unwrap();
        let remote = Client::new(io, std::slice::from_ref(node.address()), PATIENCE);
        for (name, client) in [("embedded", &embedded), ("over a socket", &remote)] {
            let mut turns = Vec::new();
            for _ in 0..rounds {
                let floor = disk(&home, Duration::from_secs(1));
                turns.push((write(client, Duration::from_secs(seconds)).await, floor));
            }
            turns.sort_by(|(a, _), (b, _)| a.0.total_cmp(&b.0));
            let ((rate, p50, p99), floor) = turns[turns.len() / 2];
            let millis = |span: Duration| span.as_secs_f64() * 1_000.0;
            let name = format!("{name}, {members} member{}", if members > 1 { "s" } else { "" });
            println!("{name:<46} {rate:>10.0}  {:>12.2}  {:>7.1}  {:>7.1}", rate / floor, millis(p50), millis(p99));
        }
        node.stop().await;
        drop(processes);
    }
}

/// A cluster of so many, of which the leader is in this process and the others are processes.
async fn start(dir: &Path, members: usize) -> (Node, Vec<Process>) {
    let io = cairn::os::io(&dir.join("n0"), None).unwrap();
    let builder = NodeBuilder::new(io, "127.0.0.1:0".parse().unwrap()).origin(Origin::Bootstrap);
    let node = builder.role(Role::Server).keys_quota(8 << 30).start().await.unwrap();
    node.wait_ready().await;
    let others = free(members - 1).into_iter().enumerate();
    let join = |(number, listen): (usize, String)| {
        member(&dir.join(format!("n{}", number + 1)), &listen, Some(node.address().as_str()), false)
    };
    let processes = others.map(join).collect();
    let mut changes = node.membership_changes();
    while changes.next().await.unwrap().voters.len() < members {}
    (node, processes)
}

/// Writes that end within a time: how many a second, and how long half of them and 99 of 100 take.
async fn write(client: &Client, span: Duration) -> (f64, Duration, Duration) {
    let (began, mut hands) = (Instant::now(), JoinSet::new());
    for number in 0..UNDER_WAY {
        let client = client.clone();
        hands.spawn(async move {
            let (mut times, value) = (Vec::new(), vec![b'x'; VALUE_BYTES]);
            while began.elapsed() < span {
                let at = Instant::now();
                client.put(&key(number * 7_919 + times.len() * 104_729), &value, None).await.unwrap();
                times.push(at.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = hands.join_all().await.into_iter().flatten().collect();
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    (rate, times[times.len() / 2], times[times.len() * 99 / 100])
}

/// The disk alone: writes that share a sync, a second.
fn disk(dir: &Path, span: Duration) -> f64 {
    let path = dir.join("floor");
    let (mut file, began, mut syncs) = (File::create(&path).unwrap(), Instant::now(), 0);
    let bytes: Vec<u8> = (0..SHARE * VALUE_BYTES).map(|number| number as u8).collect();
    while began.elapsed() < span {
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        syncs += 1;
    }
    let took = began.elapsed();
    std::fs::remove_file(&path).unwrap();
    (syncs * SHARE) as f64 / took.as_secs_f64()
}

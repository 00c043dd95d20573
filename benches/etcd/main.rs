//! Beside etcd: the same load over the same protocol, to three members of etcd's and to three of ours, taking turns on one machine.
//!
//! `cargo bench --bench etcd` measures everything; names of loads choose among them, as in `cargo bench --bench etcd -- put get
//! --clients 1,256`. Needs `etcd` (Debian's package etcd-server). Both write to disks under `target`, with every write synced.
//!
//! What is compared: operations a second, how long one takes (half of them, and 99 of 100), and how much processor time the servers
//! spend for one. The last does not depend on the load generator, which runs on the same cores.
//!
//! `own` is what etcd's clients cannot do, many writes under way at once of one client, beside the disk alone.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // benchmarks are the outside world

mod cluster;
mod load;
mod own;

use clap::Parser;
use cluster::Cluster;
use load::{Kind, Measured};

/// Measures etcd and Cairn in turns.
#[derive(Parser)]
struct Options {
    /// What to measure: put, get, get-serializable, mixed, watch, keep-alive, own, large; everything but `large` without a name
    loads: Vec<String>,
    /// Clients at once
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1000")]
    clients: Vec<usize>,
    /// How often each takes its turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of a turn
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Keys of the load `large`
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Watchers of the load `large`
    #[arg(long, default_value_t = 10_000)]
    watchers: usize,
    /// Have our leader answer reads under a lease
    #[arg(long)]
    lease_reads: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

// The one that `node` has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(&options));
}

async fn measure(options: &Options) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if options.loads.is_empty() || options.loads.iter().any(|name| name == "own") {
        own::measure(dir.path(), options.rounds, options.seconds).await;
    }
    if options.loads == ["own"] {
        return;
    }
    let mut clusters = [
        Cluster::etcd(&dir.path().join("etcd")).await,
        Cluster::cairn(&dir.path().join("cairn"), options.lease_reads).await,
    ];
    let wanted = |kind: &Kind| options.loads.is_empty() || options.loads.iter().any(|name| name == kind.name());
    if Kind::ALL.iter().any(wanted) {
        println!(
            "load              clients            etcd/s       cairn/s  ratio   p50 ms: etcd  cairn   p99 ms: etcd  cairn   µs/op: etcd  cairn"
        );
    }
    for kind in Kind::ALL.into_iter().filter(wanted) {
        for &clients in &options.clients {
            for cluster in &clusters {
                load::prepare(cluster, kind).await;
            }
            let mut turns: [Vec<Measured>; 2] = Default::default();
            for _ in 0..options.rounds {
                for (cluster, turns) in clusters.iter().zip(&mut turns) {
                    turns.push(load::run(cluster, kind, clients, options.seconds).await);
                }
            }
            report(kind, clients, turns.map(Measured::median));
        }
    }
    if !options.loads.is_empty() || Kind::ALL.iter().any(wanted) {
        let memory: Vec<String> =
            clusters.iter().map(|cluster| format!("{} {} MiB", cluster.name, cluster.memory() >> 20)).collect();
        println!("memory of three members: {}", memory.join(", "));
    }
    if options.loads.iter().any(|name| name == "large") {
        for cluster in &mut clusters {
            load::large(cluster, options.keys, options.watchers).await;
        }
    }
}

fn report(kind: Kind, clients: usize, [etcd, cairn]: [Measured; 2]) {
    let millis = |span: std::time::Duration| span.as_secs_f64() * 1_000.0;
    println!(
        "{:<17} {clients:>7}  {:>16.0}  {:>12.0}  {:>5.2}  {:>13.2}  {:>5.2}  {:>13.2}  {:>5.2}  {:>12.0}  {:>5.0}",
        kind.name(),
        etcd.rate,
        cairn.rate,
        cairn.rate / etcd.rate,
        millis(etcd.p50),
        millis(cairn.p50),
        millis(etcd.p99),
        millis(cairn.p99),
        etcd.cost * 1e6,
        cairn.cost * 1e6,
    );
    for (name, failures) in [("etcd", etcd.failures), ("cairn", cairn.failures)] {
        if failures > 0 {
            println!("  {name}: {failures} failed");
        }
    }
}

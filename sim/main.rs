//! The simulator's command line.
//!
//! Exit status: 0 passed; 2 wrong usage; 10 safety; 11 liveness; 12 crash; 13 not deterministic.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn::sim::run::{Report, Verdict, run_seed};
use cairn::sim::world::Seed;
use clap::{Parser, Subcommand};

/// Runs the real node on simulated machines under attack. Every run follows from one number.
#[derive(Parser)]
#[command(
    name = "sim",
    after_help = "With CAIRN_LOG=debug the nodes' own log goes to standard error.\n\nExamples:\n  sim run --seed 7\n  sim run --seed 7 --print\n  sim sweep --from 1000 --count 200\n  sim meta --from 0 --count 10"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one seed and say what happened
    Run {
        /// Which
        #[arg(long)]
        seed: u64,
        /// Print every event to standard error
        #[arg(long)]
        print: bool,
    },
    /// Run a range of seeds
    Sweep {
        /// The first
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many
        #[arg(long)]
        count: u64,
        /// At once
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Run each seed of a range twice, the second time after all others, and compare
    Meta {
        /// The first
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many
        #[arg(long)]
        count: u64,
    },
}

fn main() {
    if std::env::var_os("CAIRN_LOG").is_some() {
        cairn::os::start_logging(); // what all nodes of all machines say, as it comes
    }
    std::panic::set_hook(Box::new(|_| {})); // panics of simulated nodes are findings, reported with their seed
    let code = match Cli::parse().command {
        Command::Run { seed, print } => {
            let report = run_seed(Seed(seed), print);
            println!("{}{report}", report.plan);
            report.verdict.code()
        }
        Command::Sweep { from, count, jobs } => sweep(from, count, jobs),
        Command::Meta { from, count } => meta(from, count),
    };
    cairn::os::exit(code)
}

fn sweep(from: u64, count: u64, jobs: usize) -> i32 {
    let next = AtomicU64::new(from);
    let worst = Mutex::new((0, 0u64, 0.0f64));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let report = run_seed(Seed(seed), false);
                    let mut worst = worst.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    worst.2 += report.elapsed.as_secs_f64();
                    if report.verdict != Verdict::Passed {
                        println!("{report}\nreproduce with: sim run --seed {seed}");
                        worst.0 = worst.0.max(report.verdict.code());
                        worst.1 += 1;
                    }
                }
            });
        }
    });
    let (code, failed, elapsed) = worst.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    println!("{count} seeds from {from}: {} passed, {failed} failed; {elapsed:.0} virtual seconds", count - failed);
    code
}

fn meta(from: u64, count: u64) -> i32 {
    let run = |seed| -> Report { run_seed(Seed(seed), false) };
    let first: BTreeMap<u64, (u64, u64)> = (from..from + count).map(|seed| (seed, run(seed).trace)).collect();
    let mut code = 0;
    for (seed, trace) in first.iter().rev() {
        let again = run(*seed).trace;
        if again != *trace {
            println!("seed {seed}: {trace:?} the first time, {again:?} the second");
            code = 13;
        }
    }
    println!("{count} seeds twice: {}", if code == 0 { "the same" } else { "NOT the same" });
    code
}

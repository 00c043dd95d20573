//! `sim real`: the simulator's load and oracles against three members and a worker as real processes over real sockets and files.
//!
//! The life of a run (`life`) is that of a seed in the simulator. Here the seed decides only what is attempted and when
//! (`plan`); a disagreement between the two worlds is a bug of one of them.
//!
//! All clients, proxies and attacks run on one thread, so nothing there may block: what does is done on another, or
//! when nothing else is left to do.

mod attack;
mod life;
mod links;
mod member;
mod plan;
mod proxy;
mod report;
mod watch;
mod work;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn::sim::run::Verdict;
use cairn::sim::world::Seed;

use self::life::Run;
use self::plan::{NODES, Plan, SECONDS_MAX, SECONDS_MIN};
use self::report::Report;

/// The exit status after Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Options of `sim real`.
#[derive(clap::Args)]
pub struct Options {
    /// What is attempted, and when
    #[arg(long)]
    seed: u64,
    /// How long the members are attacked
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(SECONDS_MIN..=SECONDS_MAX))]
    seconds: u64,
    /// The program to run as a member [default: release/node beside the directory of this one]
    #[arg(long)]
    node: Option<PathBuf>,
    /// The program to begin with, of an older version; each member goes over to the other when it starts again [default: the same, held
    /// at the first format of the state]
    #[arg(long)]
    before: Option<PathBuf>,
    /// Work in this directory and keep it, also if all is well
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Write a report there
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs a seed. Gives the exit status.
///
/// # Errors
/// What could not be done before anything was tested.
pub fn run(options: Options) -> Result<i32, String> {
    // Here a panic is a bug of this program, which is to be seen.
    let _ = std::panic::take_hook();
    cairn::os::raise_file_limit();
    let Options { seed, seconds, node, before, keep, json } = options;
    let binary = find_node(node)?;
    let dir =
        keep.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("cairn-real-{seed}-{}", std::process::id())));
    std::fs::create_dir_all(&dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
    let dir = dir.canonicalize().map_err(|error| format!("find {}: {error}", dir.display()))?;
    if std::fs::read_dir(&dir).is_ok_and(|mut files| files.next().is_some()) {
        return Err(format!("{} is not empty", dir.display()));
    }
    let rng = Seed(seed).rng();
    let plan = Plan::draw(&rng, Duration::from_secs(seconds));
    print!("{plan}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start a runtime: {error}"))?;
    let lived: Result<Option<Report>, String> = runtime.block_on(async {
        let run = Run::new((&binary, before.as_deref()), &dir, free_ports()?, plan, rng).await?;
        tokio::select! {
            biased;
            _ = cairn::os::stop_signal() => Ok(None),
            verdict = run.live() => Ok(Some(run.report(seed, verdict))),
        }
    });
    // Nothing of the run goes on from here: its processes end when they are dropped.
    drop(runtime);
    let Some(report) = lived? else {
        if keep.is_none() {
            // What still runs of tasks ends with its lease, and may write until then.
            let _ = std::fs::remove_dir_all(&dir);
        }
        return Ok(INTERRUPTED);
    };
    println!("{report}");
    match (write(&report, &dir, keep.is_some(), json.as_deref()), report.verdict.code()) {
        (Ok(()), code) => Ok(code),
        (Err(why), 0) => Err(why),
        // What was found counts, though it could not be written.
        (Err(why), code) => {
            eprintln!("error: {why}");
            Ok(code)
        }
    }
}

/// Leaves behind what is wanted of a run.
fn write(report: &Report, dir: &Path, keep: bool, json: Option<&Path>) -> Result<(), String> {
    json.map_or(Ok(()), |path| crate::write_json(path, report))?;
    if report.verdict == Verdict::Passed && !keep {
        return std::fs::remove_dir_all(dir).map_err(|error| format!("remove {}: {error}", dir.display()));
    }
    println!("logs, data, history.jsonl and what was done when (notes) are in {}", dir.display());
    report.write(dir)
}

fn find_node(given: Option<PathBuf>) -> Result<PathBuf, String> {
    let beside = || std::env::current_exe().ok()?.parent()?.parent().map(|target| target.join("release/node"));
    let path = given.or_else(beside).ok_or("say with --node which program to run")?;
    // The members' own directories are elsewhere.
    path.canonicalize().map_err(|error| {
        format!("{}: {error}; build it with `cargo build --release`, or say with --node where it is", path.display())
    })
}

/// Ports on which nothing listens, and which the kernel gives to no outgoing connection while a member is down.
fn free_ports() -> Result<Vec<SocketAddr>, String> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end =
        range.split_whitespace().next().and_then(|low| low.parse().ok()).filter(|low| *low > 0).unwrap_or(32_768_u32);
    let begin = 10_000.min(end.saturating_sub(1));
    // Two runs at once begin to look in different places.
    let offset = std::process::id().wrapping_mul(31) % (end - begin);
    let ports = (begin + offset..end).chain(begin..begin + offset);
    let free =
        ports.filter_map(|port| TcpListener::bind(("127.0.0.1", u16::try_from(port).ok()?)).ok()?.local_addr().ok());
    let found: Vec<SocketAddr> = free.take(NODES).collect();
    if found.len() == NODES { Ok(found) } else { Err(format!("no {NODES} ports between {begin} and {end} are free")) }
}

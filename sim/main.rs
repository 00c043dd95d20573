//! The simulator's command line.
//!
//! Exit status: 0 passed; 2 wrong usage; 10 safety; 11 liveness; 12 crash; 13 not deterministic; 14 a mark was never
//! hit.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // files, processes and sockets: this is the edge

mod child;
mod copy;
mod real;
mod report;
mod sweep;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn::sim::aim;
use cairn::sim::diagram;
use cairn::sim::export;
use cairn::sim::mutant::{self, Effort};
use cairn::sim::oracle::determinism;
use cairn::sim::plan::Plan;
use cairn::sim::run::{Mode, Report};
use cairn::sim::shrink::{Case, shrink, symptom};
use cairn::sim::trace::Stop;
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

/// A run allocates all the time, and little else is as slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the real node on simulated machines under attack. Every run follows from one number.
#[derive(Parser)]
#[command(
    name = "sim",
    after_help = "With CAIRN_LOG=debug the nodes' own log goes to standard error.\n\nExamples:\n  sim run --seed 7\n  sim run --seed 7 --html seed-7.html\n  sim replay --seed 7 --until 12.5\n  sim replay --seed 7 --break 'fault Power'\n  sim sweep --from 1000 --count 200\n  sim sweep --count 50 --aim a-log-that-rots\n  sim shrink --seed 7\n  sim run --case case-7.json\n  sim meta --from 0 --count 10"
)]
struct Cli {
    /// Switch on a planted bug; see sim/mutants.toml
    #[arg(long, global = true)]
    mutant: Option<String>,
    /// Have all seeds aim at one rare situation; see sim/aim.rs
    #[arg(long, global = true, hide_possible_values = true, value_parser = PossibleValuesParser::new(aim::names()))]
    aim: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// What to write of a run.
#[derive(clap::Args)]
struct Files {
    /// Write seed and plan there, as `shrink` does
    #[arg(long)]
    save: Option<PathBuf>,
    /// Write a page there that shows what happened
    #[arg(long)]
    html: Option<PathBuf>,
    /// Write there what clients did and saw, in lines of JSON, or as EDN if it ends in .edn; see sim/export.rs
    #[arg(long)]
    history: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run one seed and say what happened
    Run {
        /// Which
        #[arg(long, required_unless_present = "case", conflicts_with = "case")]
        seed: Option<u64>,
        /// A file that `shrink` wrote, instead
        #[arg(long)]
        case: Option<PathBuf>,
        /// Print every event to standard error
        #[arg(long)]
        print: bool,
        #[command(flatten)]
        files: Files,
    },
    /// Run one seed up to a point, and say what everything is like there
    #[command(group = clap::ArgGroup::new("where").required(true))]
    Replay {
        /// Which
        #[arg(long, required_unless_present = "case", conflicts_with = "case")]
        seed: Option<u64>,
        /// A file that `shrink` wrote, instead
        #[arg(long)]
        case: Option<PathBuf>,
        /// Up to this time, in virtual seconds, or this event, as in #1234
        #[arg(long, group = "where")]
        until: Option<String>,
        /// Up to the first event that has this in its line
        #[arg(long = "break", group = "where")]
        text: Option<String>,
        /// Print every event to standard error
        #[arg(long)]
        dump: bool,
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
        #[arg(long, default_value_t = cores())]
        jobs: usize,
        /// Fail unless every mark is hit
        #[arg(long)]
        all_marks: bool,
        /// Write a report there
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// From a seed that fails, find the smallest plan that fails in the same way
    Shrink {
        /// Which
        #[arg(long)]
        seed: u64,
        /// Candidates to try at most
        #[arg(long, default_value_t = 400)]
        runs: usize,
        /// Where to write it [default: case-SEED.json]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Attack three members and a worker, as real processes, under the same load, and check them in the same way
    Real(real::Options),
    /// Plant bugs and see how many seeds it takes to notice each
    Mutants {
        /// Only these
        names: Vec<String>,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Seeds of a bug at most
        #[arg(long, default_value_t = 2_000)]
        seeds: u64,
        /// Seeds that notice it after which a bug counts as known
        #[arg(long, default_value_t = 5)]
        kills: usize,
        /// Seeds at most of a bug without a class of faults; 0 leaves that out
        #[arg(long, default_value_t = 0)]
        ablation: u64,
        /// At once
        #[arg(long, default_value_t = cores())]
        jobs: usize,
        /// Write the table there; bugs that are not run keep their rows
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Measure how fast seeds run, and where the time goes
    Report {
        /// The first
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many of each kind
        #[arg(long, default_value_t = 100)]
        count: u64,
        /// Write it there, too
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Run what the parent process says, in this one
    #[command(name = child::WORD, hide = true)]
    Child,
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
    let Cli { mutant, aim, command } = Cli::parse();
    let code = if (mutant.is_some() || matches!(command, Command::Mutants { .. })) && !mutant::PLANTED {
        copy::run(std::env::args_os().skip(1)).unwrap_or_else(|why| usage(&why))
    } else {
        match mode(mutant, aim) {
            Ok(mode) => perform(command, mode),
            Err(why) => usage(&why),
        }
    };
    cairn::os::exit(code)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), String> {
    write(path, serde_json::to_string_pretty(value).expect("numbers and names become JSON") + "\n")
}

fn write(path: &Path, text: String) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn usage(why: &str) -> i32 {
    eprintln!("error: {why}");
    2
}

fn mode(mutant: Option<String>, aim: Option<String>) -> Result<Mode, String> {
    let known = |name: &String| mutant::all().iter().any(|mutant| mutant.name == *name);
    match mutant {
        Some(name) if !known(&name) => Err(format!("there is no bug {name} in sim/mutants.toml")),
        // Strings for the life of the process.
        mutant => {
            let [mutant, aim] = [mutant, aim].map(|name| name.map(|name| &*name.leak()));
            Ok(Mode { mutant, aim, ..Mode::default() })
        }
    }
}

fn perform(command: Command, mode: Mode) -> i32 {
    match command {
        Command::Run { seed, case, print, files } => {
            let record = files.html.is_some();
            run(seed, case.as_deref(), &files, Mode { print, record, ..mode })
        }
        Command::Replay { seed, case, until, text, dump } => match stop(until, text) {
            Ok(stop) => replay(seed, case.as_deref(), Mode { print: dump, stop: Some(stop), ..mode }),
            Err(why) => usage(&why),
        },
        Command::Shrink { seed, runs, out } => {
            shrink_seed(seed, runs, out.unwrap_or_else(|| format!("case-{seed}.json").into()), mode)
        }
        Command::Sweep { from, count, jobs, all_marks, json } => sweep(from, count, jobs, (all_marks, json), mode),
        Command::Report { from, count, json } => {
            let kinds = report::run(from, count, mode);
            report::print(&kinds);
            json.map_or(0, |path| write_json(&path, &kinds).map_or_else(|why| usage(&why), |()| 0))
        }
        Command::Child => child::serve(mode).map_or_else(|why| usage(&why), |()| 0),
        Command::Meta { from, count } => meta(from, count, mode),
        Command::Real(options) => real::run(options).unwrap_or_else(|why| usage(&why)),
        Command::Mutants { names, from, seeds, kills, ablation, jobs, out } => {
            mutants(&names, Effort { from, seeds, kills, ablation, jobs }, out, mode)
        }
    }
}

fn mutants(names: &[String], effort: Effort, out: Option<PathBuf>, mode: Mode) -> i32 {
    let all = mutant::all();
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|mutant| mutant.name == **name)) {
        return usage(&format!("there is no bug {unknown} in sim/mutants.toml"));
    }
    // What is not run now keeps its row.
    let mut rows = out
        .as_ref()
        .and_then(|out| std::fs::read_to_string(out).ok())
        .map_or_else(BTreeMap::new, |before| mutant::rows(&before));
    let mut code = 0;
    for mutant in all.iter().filter(|mutant| names.is_empty() || names.contains(&mutant.name)) {
        let name: &'static str = mutant.name.clone().leak();
        let pool = child::Pool::new(Mode { mutant: Some(name), ..mode });
        let notices = |seed, without| pool.run(child::Job { seed, without }).map(|done| done.symptom);
        let fate = match mutant::try_mutant(mutant.control, effort, &notices) {
            Ok(fate) => fate,
            Err(why) => return usage(&why),
        };
        let as_wanted = fate.kills.is_empty() == mutant.control;
        let seeds: Vec<String> = fate.kills.iter().map(|(gap, _)| gap.to_string()).collect();
        let word = if as_wanted { "" } else { "  <-- " };
        let fallen = if fate.kills.is_empty() { "survives" } else { "noticed" };
        println!("{name}: {fallen} in {} seeds ({}) {}{word}", fate.seeds, seeds.join(", "), fate.oracles().join(", "));
        code = if as_wanted { code } else { 1 };
        rows.insert(mutant.name.clone(), mutant::row(mutant, &fate));
        if let Some(out) = &out
            && let Err(error) = std::fs::write(out, mutant::table(&all, &rows))
        {
            return usage(&format!("write {}: {error}", out.display()));
        }
    }
    code
}

fn find_case(seed: Option<u64>, case: Option<&Path>, mode: Mode) -> Result<Case, String> {
    let Some(path) = case else {
        return Ok(Case::of_seed(seed.unwrap_or_default(), mode));
    };
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let case = text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
    case.map_err(|why| format!("read {}: {why}", path.display()))
}

fn run(seed: Option<u64>, case: Option<&Path>, files: &Files, mode: Mode) -> i32 {
    let run = || {
        let case = find_case(seed, case, mode)?;
        files.save.as_deref().map_or(Ok(()), |path| write_json(path, &case))?;
        let report = case.run(mode);
        println!("{}{report}", report.plan);
        let marks: Vec<String> = report.marks.iter().map(|(name, count)| format!("{name} ({count})")).collect();
        println!("came by: {}", marks.join("; "));
        if let Some(failed) = &report.failed {
            println!("{failed}");
        }
        let page = report.recording.as_ref().map(|recording| diagram::page(&report, recording));
        if let (Some(path), Some(page)) = (&files.html, page) {
            write(path, page)?;
        }
        if let Some(path) = &files.history {
            let is_edn = path.extension().is_some_and(|extension| extension == "edn");
            let export = if is_edn { export::edn } else { export::json_lines };
            write(path, export(&report.history))?;
        }
        Ok::<i32, String>(report.verdict.code())
    };
    run().unwrap_or_else(|why| usage(&why))
}

fn stop(until: Option<String>, text: Option<String>) -> Result<Stop, String> {
    let bad = |until: &str| format!("--until {until}: neither seconds, as in 12.5, nor an event, as in #1234");
    match (until, text) {
        // One string for the life of the process.
        (_, Some(text)) => Ok(Stop::Text(text.leak())),
        (Some(until), None) => match until.strip_prefix('#') {
            Some(number) => number.parse().map(Stop::Event).map_err(|_| bad(&until)),
            None => {
                let seconds = until.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                seconds.map(Stop::Time).ok_or_else(|| bad(&until))
            }
        },
        (None, None) => Err("nothing says where to stop".into()),
    }
}

fn replay(seed: Option<u64>, case: Option<&Path>, mode: Mode) -> i32 {
    match find_case(seed, case, mode) {
        Ok(case) => {
            let report = case.run(mode);
            match &report.stopped {
                Some(stopped) => {
                    println!("{stopped}\nstopped after {:.6} s: {}", report.elapsed.as_secs_f64(), report.verdict)
                }
                None => println!("it did not come to that\n{report}"),
            }
            report.verdict.code()
        }
        Err(why) => usage(&why),
    }
}

fn shrink_seed(seed: u64, runs: usize, out: PathBuf, mode: Mode) -> i32 {
    let size = |case: &Case| {
        let Plan { nodes, clients, operations, submitters, tasks, .. } = case.plan;
        let operations = clients as u64 * operations + submitters as u64 * tasks;
        format!("{} faults, {operations} operations, {nodes} nodes", case.plan.faults.len())
    };
    let case = Case::of_seed(seed, mode);
    println!("seed {seed}: {}", size(&case));
    let Some(failed) = symptom(&case.run(mode).verdict) else {
        println!("seed {seed} passes");
        return 0;
    };
    let same = |report: &Report| symptom(&report.verdict) == Some(failed);
    let mut progress = |case: &Case, tried: usize| eprintln!("{tried:>5} tried: {}", size(case));
    let small = shrink(case.clone(), mode, runs, &same, &mut progress).unwrap_or(case);
    let report = small.run(mode);
    if let Err(why) = write_json(&out, &small) {
        return usage(&why);
    }
    println!("{}{report}\nleft: {}\nreproduce with: sim run --case {}", report.plan, size(&small), out.display());
    report.verdict.code()
}

fn sweep(from: u64, count: u64, jobs: usize, options: (bool, Option<PathBuf>), mode: Mode) -> i32 {
    let (all_marks, json) = options;
    let outcome = match sweep::run(from, count, jobs, mode) {
        Ok(outcome) => outcome,
        Err(why) => return usage(&why),
    };
    if let Some(path) = json
        && let Err(why) = write_json(&path, &outcome)
    {
        return usage(&why);
    }
    outcome.code(all_marks)
}

fn meta(from: u64, count: u64, mode: Mode) -> i32 {
    let differing = determinism::differing(from..from + count, mode);
    for (seed, [first, second]) in &differing {
        println!("seed {seed}: {first:?} the first time, {second:?} the second");
    }
    println!("{count} seeds twice: {}", if differing.is_empty() { "the same" } else { "NOT the same" });
    if differing.is_empty() { 0 } else { 13 }
}

//! Seeds in CI: first that a seed means one run, then seeds that once found something, then a range.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world
#![cfg(feature = "sim")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn::sim::mutant;
use cairn::sim::plan::Plan;
use cairn::sim::run::{Mode, Report, Verdict, run_seed};
use cairn::sim::shrink::{Case, Scenario, shrink};
use cairn::sim::world::Seed;

/// Seeds run in CI, from the first.
const SEEDS: std::ops::Range<u64> = 0..120;

fn passes(report: &Report) {
    let seed = report.seed.0;
    assert_eq!(
        report.verdict,
        Verdict::Passed,
        "{}{report}\nreproduce with: cargo run --features sim --bin sim -- run --seed {seed}",
        report.plan
    );
}

#[test]
fn a_seed_is_one_run_in_this_process_and_in_a_fresh_one_that_logs() {
    for seed in [3, 11, 42] {
        let first = run_seed(Seed(seed), Mode::default());
        assert!(first.trace.1 > 100, "seed {seed} did nothing: {first}");
        // After other seeds, on a thread that ran them:
        run_seed(Seed(seed + 1), Mode::default());
        assert_eq!(
            run_seed(Seed(seed), Mode::default()).trace,
            first.trace,
            "seed {seed} ran differently the second time"
        );
        // Printing and logging everything must change nothing.
        let mut fresh = Command::new(env!("CARGO_BIN_EXE_sim"));
        fresh.args(["run", "--print", "--seed", &seed.to_string()]).env("CAIRN_LOG", "trace");
        let fresh = fresh.output().unwrap();
        assert!(fresh.stderr.len() > 100_000, "seed {seed} logged next to nothing");
        let text = String::from_utf8(fresh.stdout).unwrap();
        let expected = format!("trace {:016x} of {} events", first.trace.0, first.trace.1);
        assert!(text.contains(&expected), "a fresh process gave another trace than {expected}: {text}");
    }
}

#[test]
fn what_once_failed_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let scenario: Scenario = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let report = scenario.case.run(Mode::default());
        assert_eq!(report.verdict, Verdict::Passed, "{}: {}\n{report}", file.display(), scenario.what);
    }
}

#[test]
fn seeds_differ() {
    assert_ne!(run_seed(Seed(1), Mode::default()).trace, run_seed(Seed(2), Mode::default()).trace);
}

#[test]
fn a_range_of_seeds_passes() {
    let next = AtomicU64::new(SEEDS.start);
    let reports = Mutex::new(Vec::new());
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS.end {
                        return;
                    }
                    let report = run_seed(Seed(seed), Mode::default());
                    reports.lock().unwrap().push(report);
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap();
    reports.iter().for_each(passes);
    // That the range was worth running: leaders fell, answers were lost, promises were compared with disks.
    let elections: usize = reports.iter().map(|report| report.leaders.saturating_sub(1)).sum();
    let unanswered: usize = reports.iter().map(|report| report.operations.1 - report.operations.0).sum();
    let promises: u64 = reports.iter().map(|report| report.promises).sum();
    assert!(elections > 100, "{elections} leaders fell");
    assert!(unanswered > 20, "{unanswered} operations were left unanswered");
    assert!(promises > 100_000, "{promises} promises were checked");
    let snapshots: u64 = reports.iter().map(|report| report.snapshots).sum();
    assert!(snapshots > 100, "{snapshots} snapshots were installed");
}

#[test]
fn a_plan_shrinks_to_what_it_takes() {
    // Two elections after the first: something has to bring down two leaders, and nothing else has to happen.
    let shows = |report: &Report| report.verdict == Verdict::Passed && report.leaders >= 3;
    let case = (0..)
        .map(|seed| Case::of_seed(seed, Mode::default()))
        .find(|case| case.plan.faults.len() >= 6 && shows(&case.run(Mode::default())))
        .unwrap();
    let small = shrink(case.clone(), Mode::default(), 150, &shows, &mut |_, _| {}).unwrap();
    let Plan { faults, clients, submitters, operations, tasks, weather, .. } = small.plan.clone();
    assert!((1..=3).contains(&faults.len()), "{small:?}");
    assert!(clients as u64 * operations + submitters as u64 * tasks <= 20, "{small:?}");
    assert_eq!((weather.lose_permille, weather.repeat_permille), (0, 0), "{small:?}");
    // What is written down is the same run.
    let read: Case = serde_json::from_str(&serde_json::to_string(&small).unwrap()).unwrap();
    assert_eq!(read.run(Mode::default()).trace, small.run(Mode::default()).trace);
    assert!(shows(&read.run(Mode::default())));
}

#[test]
fn every_bug_can_be_planted() {
    let mutants = mutant::all();
    let (bugs, controls): (Vec<_>, Vec<_>) = mutants.iter().partition(|mutant| !mutant.control);
    assert!(bugs.len() >= 60 && controls.len() >= 5, "{} bugs, {} controls", bugs.len(), controls.len());
    let files: BTreeSet<&str> = mutants.iter().flat_map(|mutant| mutant.edits.iter().map(|edit| &*edit.file)).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plant = |file: &&str| mutant::plant(file, &std::fs::read_to_string(root.join(file)).unwrap(), &mutants).err();
    let wrong: Vec<String> = files.iter().filter_map(plant).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let names: BTreeSet<&String> = mutants.iter().map(|mutant| &mutant.name).collect();
    assert_eq!(names.len(), mutants.len(), "two have one name");
}

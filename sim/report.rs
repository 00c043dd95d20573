//! How fast the simulator is, and where its time goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cairn::sim::cost::Costs;
use cairn::sim::plan::Plan;
use cairn::sim::run::{Mode, Report, run_plan};
use cairn::sim::world::Seed;
use serde::Serialize;

/// One kind of runs, on one thread.
#[derive(Serialize)]
pub struct Kind {
    /// What kind.
    name: &'static str,
    /// Runs.
    seeds: u64,
    /// Of them, those that did not pass.
    failed: u64,
    /// Virtual time that passed, in seconds.
    virtual_seconds: f64,
    /// Real time, in seconds.
    real_seconds: f64,
    /// Virtual seconds in a real one.
    speed: f64,
    /// Things that happened, in a real second.
    events_per_second: f64,
    /// Operations of clients in a virtual second.
    operations_per_virtual_second: f64,
    /// Shares of the real time; what is in none is the rest.
    shares: BTreeMap<&'static str, f64>,
}

/// Five members under a steady load, on a calm network and without faults.
fn loaded(model_log: bool) -> Plan {
    Plan {
        clients: 8,
        operations: 400,
        pause: Duration::from_millis(300),
        keys: 20,
        submitters: 0,
        tasks: 0,
        stock: 0,
        model_log,
        ..Plan::quiet(5)
    }
}

/// Runs `count` seeds of each kind from `from` on.
pub fn run(from: u64, count: u64, mode: Mode) -> Vec<Kind> {
    let drawn = |seed: Seed| Plan::draw(&seed.rng());
    let with = |model_log| move |seed: Seed| Plan { model_log, ..drawn(seed) };
    vec![
        measure("as drawn", from, count, mode, &drawn),
        measure("as drawn, log in memory", from, count, mode, &with(true)),
        measure("as drawn, log in a database", from, count, mode, &with(false)),
        measure("five members under load, log in memory", from, count.div_ceil(10), mode, &|_| loaded(true)),
        measure("five members under load, log in a database", from, count.div_ceil(10), mode, &|_| loaded(false)),
    ]
}

fn measure(name: &'static str, from: u64, count: u64, mode: Mode, plan: &dyn Fn(Seed) -> Plan) -> Kind {
    let began = Instant::now();
    let reports: Vec<Report> = (from..from + count)
        .map(|seed| run_plan(Seed(seed), plan(Seed(seed)), Mode { measure: true, ..mode }))
        .collect();
    let real = began.elapsed().as_secs_f64();
    let mut costs = Costs::new();
    for (part, took) in reports.iter().flat_map(|report| &report.costs) {
        *costs.entry(part).or_default() += *took;
    }
    let virtual_seconds: f64 = reports.iter().map(|report| report.elapsed.as_secs_f64()).sum();
    let operations: usize = reports.iter().map(|report| report.operations.1).sum();
    let events: u64 = reports.iter().map(|report| report.trace.1).sum();
    Kind {
        name,
        seeds: count,
        failed: reports.iter().filter(|report| report.verdict.code() != 0).count() as u64,
        virtual_seconds,
        real_seconds: real,
        speed: virtual_seconds / real,
        events_per_second: events as f64 / real,
        operations_per_virtual_second: operations as f64 / virtual_seconds,
        shares: costs.into_iter().map(|(part, took)| (part, took.as_secs_f64() / real)).collect(),
    }
}

/// The same for people.
pub fn print(kinds: &[Kind]) {
    for kind in kinds {
        println!(
            "{}: {} seeds, {} failed; {:.0} virtual seconds in {:.1} s on one thread: {:.0} a second, with {:.0} events a second \
             and {:.1} operations a virtual second",
            kind.name,
            kind.seeds,
            kind.failed,
            kind.virtual_seconds,
            kind.real_seconds,
            kind.speed,
            kind.events_per_second,
            kind.operations_per_virtual_second
        );
        let mut shares: Vec<_> = kind.shares.iter().collect();
        shares.sort_by(|a, b| b.1.total_cmp(a.1));
        for (part, share) in &shares {
            println!("  {:>5.1} %  {part}", 100.0 * **share);
        }
        println!("  {:>5.1} %  the rest: nodes, network, executor", 100.0 * (1.0 - kind.shares.values().sum::<f64>()));
    }
}

//! How fast the simulator is, and where its time goes.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn::sim::cost::{Costs, used};
use cairn::sim::plan::Plan;
use cairn::sim::run::{Mode, Report, run_plan};
use cairn::sim::world::Seed;
use nix::sys::resource::UsageWho;
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
    /// Time of the processor that it took, in seconds; on a machine with nothing else to do that is the real time.
    processor_seconds: f64,
    /// Virtual seconds in one of those.
    speed: f64,
    /// Things that happened in one of those.
    events_per_second: f64,
    /// Operations of clients in a virtual second.
    operations_per_virtual_second: f64,
    /// Shares of the processor's time; what is in none is the rest.
    shares: BTreeMap<&'static str, f64>,
}

/// Five members under a steady load of so many clients, on a calm network and without faults.
fn loaded(clients: usize, pause: Duration) -> Plan {
    Plan { clients, operations: 400, pause, keys: 20, submitters: 0, tasks: 0, stock: 0, ..Plan::quiet(5) }
}

/// Runs `count` seeds of each kind from `from` on.
pub fn run(from: u64, count: u64, mode: Mode) -> Vec<Kind> {
    let few = count.div_ceil(20);
    vec![
        measure("as drawn", from, count, mode, &|seed| mode.plan(seed)),
        measure("five members and four clients", from, few, mode, &|_| loaded(4, Duration::from_millis(1_200))),
        measure("five members and eight busy clients", from, few, mode, &|_| loaded(8, Duration::from_millis(300))),
    ]
}

fn measure(name: &'static str, from: u64, count: u64, mode: Mode, plan: &dyn Fn(Seed) -> Plan) -> Kind {
    let began = used(UsageWho::RUSAGE_SELF);
    let reports: Vec<Report> = (from..from + count)
        .map(|seed| run_plan(Seed(seed), plan(Seed(seed)), Mode { measure: true, ..mode }))
        .collect();
    let taken = used(UsageWho::RUSAGE_SELF).saturating_sub(began).as_secs_f64();
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
        processor_seconds: taken,
        speed: virtual_seconds / taken,
        events_per_second: events as f64 / taken,
        operations_per_virtual_second: operations as f64 / virtual_seconds,
        shares: costs.into_iter().map(|(part, took)| (part, took.as_secs_f64() / taken)).collect(),
    }
}

/// The same for people.
pub fn print(kinds: &[Kind]) {
    for kind in kinds {
        println!(
            "{}: {} seeds, {} failed; {:.0} virtual seconds in {:.1} s of one processor: {:.0} a second, with {:.0} events a second \
             and {:.1} operations a virtual second",
            kind.name,
            kind.seeds,
            kind.failed,
            kind.virtual_seconds,
            kind.processor_seconds,
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

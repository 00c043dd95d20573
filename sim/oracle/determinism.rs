//! Oracle 15: a seed is one run, whatever ran before it, in whichever process, with whatever logging (Zhou et al.,
//! "FoundationDB", 2021, §4).

use crate::sim::run::{Mode, run_seed};
use crate::sim::world::Seed;

/// Runs each seed of a range, and then each once more, in the reverse order: the seeds that differed, with both traces.
pub fn differing(seeds: std::ops::Range<u64>, mode: Mode) -> Vec<(u64, [(u64, u64); 2])> {
    let trace = |seed| run_seed(Seed(seed), mode).trace;
    let first: Vec<(u64, (u64, u64))> = seeds.map(|seed| (seed, trace(seed))).collect();
    let pairs = first.into_iter().rev().map(|(seed, first)| (seed, [first, trace(seed)]));
    pairs.filter(|(_, [first, second])| first != second).collect()
}

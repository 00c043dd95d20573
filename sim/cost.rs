//! Where the real time of a run goes: what each part takes, on the thread of the run. Nothing in the run can see it.

#![allow(clippy::disallowed_methods)] // the real clock is what is asked here

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Real time by part. What is in no part is the rest: nodes, network and executor.
pub type Costs = BTreeMap<&'static str, Duration>;

thread_local! {
    static COSTS: RefCell<Option<Costs>> = const { RefCell::new(None) };
}

/// Measures from now on, on this thread.
pub fn measure() {
    COSTS.set(Some(Costs::new()));
}

/// What was measured; nothing if nobody asked for it.
pub fn take() -> Costs {
    COSTS.take().unwrap_or_default()
}

/// Does something that belongs to a part. A part within a part counts for both.
pub fn of<T>(part: &'static str, body: impl FnOnce() -> T) -> T {
    if COSTS.with_borrow(Option::is_none) {
        return body();
    }
    let began = Instant::now();
    let done = body();
    COSTS.with_borrow_mut(|costs| {
        if let Some(costs) = costs {
            *costs.entry(part).or_default() += began.elapsed();
        }
    });
    done
}

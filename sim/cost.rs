//! Where the real time of a run goes: what each part takes of the processor, on the thread of the run. Nothing in the run can
//! see it.
//!
//! The kernel's account of the thread is asked, because within a run the executor answers for all clocks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

/// Processor time by part. What is in no part is the rest: nodes, network and executor.
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
    let began = used(UsageWho::RUSAGE_THREAD);
    let done = body();
    COSTS.with_borrow_mut(|costs| {
        if let Some(costs) = costs {
            *costs.entry(part).or_default() += used(UsageWho::RUSAGE_THREAD).saturating_sub(began);
        }
    });
    done
}

/// What this thread, or the process, has taken of the processor.
pub fn used(who: UsageWho) -> Duration {
    let usage = getrusage(who).expect("everyone may ask about itself");
    let (user, system) = (usage.user_time(), usage.system_time());
    let micros = (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec();
    Duration::from_micros(micros.unsigned_abs())
}

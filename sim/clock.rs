//! Each machine's own clock: it started at another moment and runs at another speed, and somebody may set the time of day.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use madsim::time::TimeHandle;

use crate::io::{Clock, RngStream};
use crate::time::{Monotonic, WallTime};

/// A clock that is off by `offset` and runs `drift_ppm` millionths fast.
pub struct SimClock {
    time: TimeHandle,
    offset: Duration,
    drift_ppm: i64,
    wall_offset_ms: AtomicU64,
}

/// 2026-01-01, where the wall clocks of simulated machines start, give or take.
const WALL_START_MS: u64 = 1_767_225_600_000;

impl SimClock {
    /// A clock drawn from `rng` that drifts by at most `drift_ppm_max` either way.
    pub fn draw(rng: &mut RngStream, drift_ppm_max: u64) -> Self {
        let drift = rng.range(0, 2 * drift_ppm_max + 1) as i64 - drift_ppm_max as i64;
        Self {
            time: TimeHandle::current(),
            offset: Duration::from_millis(rng.range(0, 1_000_000_000)),
            drift_ppm: drift,
            wall_offset_ms: AtomicU64::new(rng.range(0, 120_000)),
        }
    }

    /// Sets the time of day forward, or back if `millis` is negative, at most to where it began. Time that passes is not
    /// touched.
    pub fn step_wall(&self, millis: i64) {
        let step = |offset: u64| Some(offset.saturating_add_signed(millis));
        let _ = self.wall_offset_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    fn ran(&self) -> Duration {
        let world = self.time.elapsed().as_nanos();
        Duration::from_nanos((world * (1_000_000 + self.drift_ppm) as u128 / 1_000_000) as u64)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Monotonic {
        Monotonic::from_nanos((self.offset + self.ran()).as_nanos() as u64)
    }

    fn wall(&self) -> WallTime {
        WallTime(WALL_START_MS + self.wall_offset_ms.load(Ordering::Relaxed) + self.ran().as_millis() as u64)
    }

    fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()> {
        let own = at.since(self.now()).as_nanos();
        // Rounded up, so that a timer never fires before its point on this clock.
        let world = own * 1_000_000 / (1_000_000 + self.drift_ppm) as u128 + 1;
        Box::pin(self.time.sleep(Duration::from_nanos(world as u64)))
    }
}

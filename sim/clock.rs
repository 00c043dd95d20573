//! Each machine's own clock: it started at another moment and runs at another speed, which may change; it may stand still; and
//! somebody may set the time of day.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use madsim::time::TimeHandle;

use crate::io::{Clock, RngStream};
use crate::time::{Monotonic, WallTime};

/// A clock of its own. What it shows is what it showed when its speed last changed, and what has passed since at that speed.
#[derive(Clone)]
pub struct SimClock(Arc<Inner>);

struct Inner {
    time: TimeHandle,
    offset: Duration,
    pace: Mutex<Pace>,
    /// The time of day when the world began.
    wall_ms: AtomicU64,
}

#[derive(Clone, Copy)]
struct Pace {
    /// When the speed last changed, in the world's time.
    since: Duration,
    /// What the clock had run by then.
    ran: Duration,
    /// How many millionths fast it runs.
    ppm: i64,
    /// How many it runs fast by itself.
    drift_ppm: i64,
}

impl Pace {
    fn ran(&self, world: Duration) -> Duration {
        let passed = world.saturating_sub(self.since).as_nanos() * (MILLION + self.ppm) as u128 / MILLION as u128;
        self.ran + Duration::from_nanos(passed as u64)
    }

    /// How long the world takes until the clock has run for this much longer; rounded up, so that no timer fires early.
    fn takes(&self, own: Duration) -> Duration {
        match (MILLION + self.ppm) as u128 {
            0 => LOOK,
            speed => Duration::from_nanos((own.as_nanos() * MILLION as u128 / speed + 1) as u64),
        }
    }
}

const MILLION: i64 = 1_000_000;

/// The speed, in millionths fast, of a clock that stands still.
pub const FROZEN_PPM: i64 = -MILLION;

/// How often a timer on a clock that stands still looks whether it goes on.
const LOOK: Duration = Duration::from_millis(50);

/// 2026-01-01, where the wall clocks of simulated machines start, give or take.
const WALL_START_MS: u64 = 1_767_225_600_000;

impl SimClock {
    /// A clock drawn from `rng` that drifts by at most `drift_ppm_max` either way.
    pub fn draw(rng: &mut RngStream, drift_ppm_max: u64) -> Self {
        let drift_ppm = rng.range(0, 2 * drift_ppm_max + 1) as i64 - drift_ppm_max as i64;
        let (since, ran) = Default::default();
        Self(Arc::new(Inner {
            time: TimeHandle::current(),
            offset: Duration::from_millis(rng.range(0, 1_000_000_000)),
            pace: Mutex::new(Pace { since, ran, ppm: drift_ppm, drift_ppm }),
            wall_ms: AtomicU64::new(WALL_START_MS + rng.range(0, 120_000)),
        }))
    }

    /// Has it run so many millionths fast from now on, or as it does by itself. At [`FROZEN_PPM`] it stands still.
    pub fn set_speed(&self, ppm: Option<i64>) {
        let world = self.0.time.elapsed();
        let pace = &mut *self.0.pace.lock().unwrap();
        (pace.ran, pace.since) = (pace.ran(world), world);
        pace.ppm = ppm.unwrap_or(pace.drift_ppm).max(FROZEN_PPM);
    }

    /// Sets the time of day forward, or back if `millis` is negative. Time that passes is not touched.
    pub fn step_wall(&self, millis: i64) {
        self.0.wall_ms.fetch_add(millis.cast_unsigned(), Ordering::Relaxed);
    }

    fn ran(&self) -> Duration {
        self.0.pace.lock().unwrap().ran(self.0.time.elapsed())
    }
}

impl Clock for SimClock {
    fn now(&self) -> Monotonic {
        Monotonic::from_nanos((self.0.offset + self.ran()).as_nanos() as u64)
    }

    fn wall(&self) -> WallTime {
        WallTime(self.0.wall_ms.load(Ordering::Relaxed) + self.ran().as_millis() as u64)
    }

    fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move {
            loop {
                let left = at.since(clock.now());
                let takes = clock.0.pace.lock().unwrap().takes(left);
                clock.0.time.sleep(takes).await;
                // The clock may have gone slower meanwhile, or not at all.
                if clock.now() >= at {
                    return;
                }
            }
        })
    }
}

//! The system's clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use nix::time::{ClockId, clock_gettime};

use crate::io::Clock;
use crate::time::{Monotonic, WallTime};

/// `CLOCK_BOOTTIME` for deadlines, because it runs through suspend; tokio's timers to wait.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Monotonic {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux since 2.6.39 has CLOCK_BOOTTIME");
        Monotonic::from_nanos(u64::try_from(Duration::from(now).as_nanos()).expect("uptime fits 584 years"))
    }

    fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, at: Monotonic) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(at.since(self.now())))
    }
}

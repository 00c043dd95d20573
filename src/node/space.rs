//! Free space: while there is too little, what grows is refused, and what makes room goes on.
//!
//! ```text
//!   free ≥ floor ──────────► everything is taken
//!   free < floor ──────────► puts, new sessions and new tasks are refused
//!   free < floor / 2 ──────► the ballast is given up, at boot, too: its space is for what is under way
//!   free ≥ floor + ballast ► taken again, and the ballast set aside again
//! ```

use std::sync::Arc;

use crate::io::{Disk, Worker, own};
use crate::limits::{BALLAST_BYTES, SPACE_PERIOD};
use crate::shared::SharedNodeState;

const BALLAST: &str = "ballast";

/// What is to be done about space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing changes.
    Stay,
    /// Nothing that grows is taken any more; with very little, the ballast goes.
    Refuse,
    /// Everything is taken again.
    Accept,
}

fn step(free: u64, floor: u64, refusing: bool) -> Step {
    match free {
        free if free < floor => Step::Refuse,
        free if refusing && free >= floor.saturating_add(BALLAST_BYTES) => Step::Accept,
        _ => Step::Stay,
    }
}

/// Gives up the ballast if there is too little space. True if there was one.
pub(super) fn make_room(disk: &dyn Disk, floor: u64) -> bool {
    let short = disk.free_bytes().is_ok_and(|free| free < floor / 2);
    let have = || disk.list().is_ok_and(|names| names.iter().any(|name| name == BALLAST));
    short && have() && disk.remove(BALLAST).is_ok()
}

/// Owns the ballast, and looks when told to.
struct Keeper {
    shared: Arc<SharedNodeState>,
    floor: u64,
    refusing: bool,
}

impl Keeper {
    /// Sets the ballast aside, if there is room for it above the floor.
    fn set_aside(&self, free: u64) {
        let disk = &self.shared.io.disk;
        let have = disk.list().is_ok_and(|names| names.iter().any(|name| name == BALLAST));
        if !have
            && free >= self.floor.saturating_add(BALLAST_BYTES)
            && let Err(error) = disk.reserve(BALLAST, BALLAST_BYTES)
        {
            tracing::warn!(%error, "no space could be set aside");
        }
    }

    fn look(&mut self) {
        let disk = self.shared.io.disk.clone();
        let Ok(free) = disk.free_bytes() else { return };
        self.shared.metrics.free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        match step(free, self.floor, self.refusing) {
            Step::Stay if self.refusing => {}
            Step::Stay => self.set_aside(free),
            Step::Accept => {
                self.refusing = false;
                self.shared.set_short_of_space(None);
                tracing::info!(free, "there is space again");
            }
            Step::Refuse => {
                if !self.refusing {
                    let place = disk.describe();
                    tracing::error!(free, floor = self.floor, place, "too little space: what grows is refused");
                }
                self.refusing = true;
                self.shared.set_short_of_space(Some((free, self.floor)));
                if make_room(&*disk, self.floor) {
                    tracing::error!(free, "the space set aside is given up");
                }
            }
        }
    }
}

impl Worker for Keeper {
    type Job = ();

    fn run(&mut self, jobs: &mut Vec<()>) {
        jobs.clear();
        self.look();
    }
}

/// Watches free space for as long as the node lives.
pub(super) async fn watch(shared: Arc<SharedNodeState>) {
    let (io, floor) = (shared.io.clone(), shared.bounds.free_space_floor);
    let keeper = own(&*io.spawn, "space", Keeper { shared, floor, refusing: false }, 1);
    loop {
        // One that is still looking need not be told again.
        let _ = keeper.try_send(());
        io.clock.sleep(SPACE_PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_comes_and_goes() {
        const FLOOR: u64 = 4 * BALLAST_BYTES;
        assert_eq!(step(FLOOR, FLOOR, false), Step::Stay);
        assert_eq!(step(FLOOR - 1, FLOOR, false), Step::Refuse);
        assert_eq!(step(FLOOR - 1, FLOOR, true), Step::Refuse);
        assert_eq!(step(FLOOR, FLOOR, true), Step::Stay, "a little more is not enough");
        assert_eq!(step(FLOOR + BALLAST_BYTES, FLOOR, true), Step::Accept);
        assert_eq!(step(0, 0, false), Step::Stay, "no floor, no care");
    }
}

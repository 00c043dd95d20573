//! Oracle 14: no node ends itself, or panics, but for what was done to it (Schneider, "Fail-stop processors", 1983).

use crate::raft::manager;
use crate::sim::disk::{DISK_ERROR, Suffered};
use crate::sim::fault::{Fault, Place};
use crate::sim::network::MachineId;
use crate::sim::plan::Plan;
use crate::sim::world::FailStop;

/// Whether what was done to this boot's disk, or the plan, gives a reason why it ended itself; `machine` tells which machine is at a
/// place.
pub fn is_excused(plan: &Plan, stop: &FailStop, machine: impl Fn(Place) -> MachineId) -> bool {
    let is_misled = |fault: &Fault| matches!(fault, Fault::WrongDisk { node, .. } if machine(*node) == stop.machine);
    let misled = plan.faults.iter().any(|(_, fault)| is_misled(fault));
    let old = (0..plan.nodes).any(|place| plan.old >> place & 1 == 1 && machine(place) == stop.machine);
    let Suffered { failed, off, full, rotten } = stop.suffered;
    let says = |text: &str| stop.why.contains(text);
    // What first met the error may have been a question; after it redb takes no more writes.
    let after_error = says("Previous I/O error");
    full && says("no space left")
        || failed && (says(DISK_ERROR) || after_error)
        || off && (says("the disk is off") || after_error)
        || misled && says("is a copy of its data")
        // All others were upgraded before it had joined.
        || old && says("this node takes part in none after")
        // Its operator tries again.
        || says("no member took this node in")
        // Whatever a disk has lost, Raft sees nothing that makes no sense to it.
        || rotten && !says(&format!("the task {} panicked", manager::TASK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_its_own_disk_suffered_excuses_a_node() {
        let plan = Plan::quiet(3);
        let excused = |why: &str, suffered| {
            let stop = FailStop { machine: 1, why: why.into(), suffered };
            is_excused(&plan, &stop, |place| place as MachineId)
        };
        let nothing = Suffered::default();
        for (why, suffered) in [
            ("write: no space left on the disk", Suffered { full: true, ..nothing }),
            (DISK_ERROR, Suffered { failed: true, ..nothing }),
            ("read: the disk is off", Suffered { off: true, ..nothing }),
            ("a record is corrupt", Suffered { rotten: true, ..nothing }),
        ] {
            assert!(excused(why, suffered) && !excused(why, nothing), "{why}");
        }
        let panicked = format!("the task {} panicked: no such entry", manager::TASK);
        assert!(!excused(&panicked, Suffered { rotten: true, ..nothing }));
    }
}

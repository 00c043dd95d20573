//! Oracle 14: no node ends itself, or panics, but for what the plan did to it (Schneider, "Fail-stop processors", 1983).

use crate::raft::manager;
use crate::sim::disk::DISK_ERROR;
use crate::sim::fault::{Fault, Place};
use crate::sim::network::MachineId;
use crate::sim::plan::Plan;
use crate::sim::world::FailStop;

/// Whether the plan gives a reason why this boot ended itself; `machine` tells which machine is at a place.
pub fn is_excused(plan: &Plan, stop: &FailStop, machine: impl Fn(Place) -> MachineId) -> bool {
    let has = |wanted: &dyn Fn(&Fault) -> bool| plan.faults.iter().any(|(_, fault)| wanted(fault));
    let full = has(&|fault| matches!(fault, Fault::Full { .. }));
    let second_cut = has(&|fault| matches!(fault, Fault::Recovery { .. } | Fault::Join { birth: Some(_), .. }));
    let rotten = has(&|fault| matches!(fault, Fault::Rot { node, .. } if machine(*node) == stop.machine));
    let crash = has(&|fault| matches!(fault, Fault::Crash { node, .. } if machine(*node) == stop.machine));
    let old = (0..plan.nodes).any(|place| plan.old >> place & 1 == 1 && machine(place) == stop.machine);
    let misled = has(&|fault| matches!(fault, Fault::WrongDisk { node, .. } if machine(*node) == stop.machine));
    full && stop.why.contains("no space left")
        // What first met the error may have been a question; after it redb takes no more writes.
        || stop.disk_failed && [DISK_ERROR, "Previous I/O error"].iter().any(|text| stop.why.contains(text))
        || misled && stop.why.contains("is a copy of its data")
        // All others were upgraded before it had joined.
        || old && stop.why.contains("this node takes part in none after")
        || (second_cut || crash) && ["the disk is off", "Previous I/O error"].iter().any(|text| stop.why.contains(text))
        // Its operator tries again.
        || stop.why.contains("no member took this node in")
        // Whatever a disk has lost, Raft sees nothing that makes no sense to it.
        || rotten && !stop.why.contains(&format!("the task {} panicked", manager::TASK))
}

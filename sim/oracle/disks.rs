//! Oracle 12: what a disk gives back after a crash is what was last made durable, or something that was on its way; and
//! what has rotted is found, or does no harm (Pillai et al., "All file systems are not created equal", 2014; Alagappan et
//! al., "Protocol-aware recovery for consensus-based storage", 2018).

use super::Violations;
use super::promise::Promised;
use crate::node::machine::open_state;
use crate::raft::log::Log;
use crate::sim::network::MachineId;
use crate::sim::world::Machine;
use crate::state::format;

/// A machine boots: its log must still promise what it was last seen to promise.
pub fn on_boot(machine: MachineId, before: &Promised, now: &Result<Promised, String>, violations: &Violations) {
    let why = match now {
        Err(why) => why.clone(),
        Ok(now) if now.keeps(before) => return,
        Ok(now) => format!("it promised {before}, and after a restart {now}"),
    };
    violations.add("disks keep what was durable", format!("machine {machine}: {why}"));
}

/// A machine's disk was damaged: either the log is not read any more, or it still promises what it did.
pub fn on_damage(machine: &Machine, before: &Result<Promised, String>, violations: &Violations) {
    if let (Ok(before), Ok(now)) = (before, Promised::of(&machine.disk))
        && !now.keeps(before)
    {
        let what = format!("machine {}: it promised {before}, and after damage that nobody noticed {now}", machine.id);
        violations.add("damage is found", what);
    }
}

/// What is on a machine's disk at the end opens, and its rows are those that its digest counts.
pub fn check(machine: &Machine, violations: &Violations) {
    let disk = machine.disk.boot();
    let checked = Log::open(&*disk)
        .and_then(|log| open_state(&disk, &log, format::NEWEST))
        .and_then(|state| Ok((state.digest(), state.reader().full_digest()?)));
    match checked {
        Ok((kept, counted)) if kept == counted => {}
        Ok(_) => {
            let what = format!("the rows on machine {} are not those that its digest counts", machine.id);
            violations.add("the digest is of the rows", what);
        }
        Err(fault) => violations.add("the state opens", fault.to_string()),
    }
}

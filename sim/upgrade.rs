//! Versions of members: who is older, and how operators go from one version to another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use madsim::time::{TimeHandle, sleep};

use crate::sim::cluster::{Cluster, Member};
use crate::sim::fault::Place;
use crate::sim::world::{Down, FailStop};
use crate::state::format;

/// How long after a member went back the cluster may still begin a format of which it had said that it takes part in it: what was
/// proposed before may wait for a disk that stalls, or a link that is cut.
const WENT_BACK: Duration = Duration::from_secs(30);

impl Cluster {
    /// The newest format that a member takes part in when it starts now. Who has a newcomer join that is too old sees why it is refused,
    /// and takes the newer version; with members, operators are more careful.
    pub(super) fn newest_format(&self, member: &Member) -> u32 {
        let behind = self.watch.state().formats.now() > format::FIRST;
        let old = member.old.load(Ordering::Relaxed);
        member.old.store(old && !behind, Ordering::Relaxed);
        let is_member = member.founded.load(Ordering::Relaxed);
        if old && !(behind && is_member) { format::FIRST } else { format::NEWEST }
    }

    /// Stops a member in order, to start another version of it.
    pub(super) async fn upgrade(self: &Arc<Self>, place: Place, (back, exits): (bool, bool), down: Duration) {
        let member = &self.members[place];
        if back && self.watch.state().formats.now() > format::FIRST {
            return;
        }
        sometimes!(back, "a member went back to an older version");
        sometimes!(!back && self.leader() == Some(place), "the leader was upgraded");
        self.stop(place, exits).await;
        member.machine.down(Down::Kill);
        member.old.store(back, Ordering::Relaxed);
        sleep(down).await;
        if back {
            *member.went_back.lock().unwrap() = Some(TimeHandle::current().elapsed());
        }
        self.boot(place);
    }

    /// Upgrades the members that are still older, one after another.
    pub async fn upgrade_all(self: &Arc<Self>) {
        for place in (0..self.members.len()).filter(|place| self.members[*place].old.load(Ordering::Relaxed)) {
            self.upgrade(place, (false, true), Duration::from_millis(100)).await;
        }
    }

    /// Whether a machine that ended itself had been taken back to an older version just before.
    pub(super) fn went_back_just_before(&self, stop: &FailStop) -> bool {
        self.members.iter().filter(|member| member.machine.id == stop.machine).any(|member| {
            let at = *member.went_back.lock().unwrap();
            at.is_some_and(|at| stop.at >= at && stop.at - at < WENT_BACK)
        })
    }
}

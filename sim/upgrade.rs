//! Versions of members: who is older, and how operators go from one version to another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use madsim::time::sleep;

use crate::sim::cluster::{Cluster, Member};
use crate::sim::fault::Place;
use crate::sim::world::Down;
use crate::state::format;

/// For how long others are not upgraded after a member went back: by then the leader has heard of it, or hears it no more.
const HEARD: Duration = Duration::from_secs(8);

impl Cluster {
    /// The newest format that a member takes part in when it starts now. Who has a newcomer join that is too old sees why it is refused,
    /// and takes the newer version; with members, operators are more careful.
    pub(super) fn newest_format(&self, member: &Member) -> u32 {
        let behind = self.watch.state().formats.now() > self.plan.old_format;
        let old = member.old.load(Ordering::Relaxed);
        member.old.store(old && !behind, Ordering::Relaxed);
        let is_member = member.founded.load(Ordering::Relaxed);
        if old && !(behind && is_member) { self.plan.old_format } else { format::NEWEST }
    }

    /// Stops a member in order, to start another version of it. It goes back only while another is older, and stays that until it is
    /// heard of: else the cluster may be about to begin the format that it leaves.
    pub(super) async fn upgrade(self: &Arc<Self>, place: Place, (back, exits): (bool, bool), down: Duration) {
        let _alone = if back { Some(self.upgrading.write().await) } else { None };
        let _among = if back { None } else { Some(self.upgrading.read().await) };
        let member = &self.members[place];
        if back && !self.is_another_older(place) {
            return;
        }
        sometimes!(!back && self.leader() == Some(place), "the leader was upgraded");
        self.stop(place, exits).await;
        member.machine.down(Down::Kill);
        sleep(down).await;
        // Others may have left meanwhile.
        let back = back && self.is_another_older(place);
        sometimes!(back, "a member went back to an older version");
        member.machine.down(Down::Kill);
        member.old.store(back, Ordering::Relaxed);
        self.boot(place);
        if back {
            sleep(HEARD).await;
        }
    }

    /// Whether a member at another place keeps the state and is older, so that the cluster begins no format.
    fn is_another_older(&self, than: Place) -> bool {
        let servers = self.watch.state().membership.servers();
        let is_older = |(place, member): (Place, &Arc<Member>)| {
            let keeps = member.id().is_some_and(|id| servers.contains(&id.0));
            place != than && keeps && !member.is_removed() && member.old.load(Ordering::Relaxed)
        };
        self.members.iter().enumerate().any(is_older)
    }

    /// Upgrades the members that are still older, one after another: the next when the one before serves again.
    pub async fn upgrade_all(self: &Arc<Self>) {
        for place in (0..self.members.len()).filter(|place| self.members[*place].old.load(Ordering::Relaxed)) {
            self.upgrade(place, (false, true), Duration::from_millis(100)).await;
            self.await_serving(place).await;
        }
    }
}

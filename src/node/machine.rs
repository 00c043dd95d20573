//! The replicated state as the machine that the log drives.

use std::collections::BTreeMap;

use crate::entry::{Entry, Outcome};
use crate::error::{Context, Fault};
use crate::ids::{Address, Index, NodeId, Term};
use crate::proto::v1::MemberRole;
use crate::raft::owner::Machine;
use crate::state::machine::State;
use crate::state::member;
use crate::time::ClusterTime;

impl Machine for State {
    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, Fault> {
        self.apply(entries)
    }

    fn checkpoint(&mut self) -> Result<(), Fault> {
        self.checkpoint()
    }

    fn applied(&self) -> (Index, Term) {
        self.applied()
    }

    fn conf_state(&self) -> &[u8] {
        self.conf_state()
    }

    fn cluster_time(&self) -> ClusterTime {
        self.cluster_time()
    }

    fn peers(&self) -> Result<BTreeMap<NodeId, Address>, Fault> {
        let (_, rows) = self.reader().snapshot()?;
        let live = member::all(&rows)?.into_iter().filter(|member| member.role() != MemberRole::Removed);
        live.map(|member| {
            let address = member.address.parse().context(|| format!("read the address of member {}", member.id))?;
            Ok((NodeId(member.id), address))
        })
        .collect()
    }
}

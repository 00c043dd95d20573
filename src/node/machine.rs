//! The replicated state as the machine that the log drives.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::entry::{Entry, Outcome, Step};
use crate::error::{Context, Fault, ImportError};
use crate::ids::{Address, Index, NodeId, Term};
use crate::io::Disk;
use crate::proto::v1::{RaftSnapshot, SnapshotBody};
use crate::raft::log::Log;
use crate::raft::owner::Machine;
use crate::raft::snapshot::Snapshots;
use crate::state::defragment::Defragmenter;
use crate::state::machine::{State, StateReader, head_digest};
use crate::state::member;
use crate::state::snapshot::{self, Import};
use crate::time::ClusterTime;

impl Machine for State {
    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, Fault> {
        self.apply(entries)
    }

    fn checkpoint(&mut self) -> Result<(), Fault> {
        self.checkpoint()
    }

    fn install(&mut self, index: Index) -> Result<(), Fault> {
        self.install(index)
    }

    fn go_over(&mut self) -> Result<Step, Fault> {
        self.go_over()
    }

    fn durable(&self) -> Index {
        self.durable()
    }

    fn digest(&self) -> u64 {
        self.digest()
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
        let (_, rows) = self.reader().view()?;
        let servers = member::all(&rows)?.into_iter().filter(member::is_server);
        servers
            .map(|member| {
                let address = member.address.parse().context(|| format!("read the address of member {}", member.id))?;
                Ok((NodeId(member.id), address))
            })
            .collect()
    }
}

/// The way from the state to a snapshot and back.
pub struct StateSnapshots {
    /// Reads the state in use.
    pub reader: StateReader,
    /// Where states are built.
    pub disk: Arc<dyn Disk>,
    /// About how large a chunk is.
    pub chunk_bytes: usize,
    /// What is to remain of the space on the disk.
    pub free_space_floor: u64,
    /// The state under construction.
    pub import: Option<(Index, Import)>,
    /// Writes the state in use anew.
    pub defragmenter: Defragmenter,
}

impl Snapshots for StateSnapshots {
    fn room(&self) -> Result<Result<(), String>, Fault> {
        snapshot::room_for_copy(&*self.disk, self.free_space_floor)
    }

    fn export(&self, each: &mut dyn FnMut(&[u8]) -> Result<(), Fault>) -> Result<RaftSnapshot, Fault> {
        let head = snapshot::export(&self.reader, self.chunk_bytes, each)?;
        Ok(RaftSnapshot {
            index: head.applied_index,
            term: head.applied_term,
            conf_state: head.conf_state.clone(),
            body: Some(SnapshotBody { digest: head_digest(&head), chunks: 0 }),
        })
    }

    fn room_to_build(&self, chunks: u64) -> Result<Result<(), String>, Fault> {
        // As much below the floor as is no emergency: it takes the place of what there is.
        snapshot::room_for(&*self.disk, chunks.saturating_mul(self.chunk_bytes as u64), self.free_space_floor / 2)
    }

    fn begin(&mut self, index: Index) -> Result<(), Fault> {
        if let Some((before, import)) = self.import.take() {
            drop(import);
            snapshot::remove(&*self.disk, before)?;
        }
        self.import = Some((index, Import::begin(self.disk.clone(), index)?));
        Ok(())
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), ImportError> {
        match &mut self.import {
            Some((_, import)) => import.add(chunk),
            None => Err(ImportError::Invalid("a chunk of no snapshot".into())),
        }
    }

    fn finish(&mut self, digest: u64) -> Result<(), ImportError> {
        match self.import.take() {
            Some((_, import)) => import.finish(digest),
            None => Err(ImportError::Invalid("the end of no snapshot".into())),
        }
    }

    fn defragment(&mut self) -> Result<Step, Fault> {
        self.defragmenter.step(self.chunk_bytes)
    }

    fn discard(&mut self, index: Index) -> Result<(), Fault> {
        self.import.take_if(|(building, _)| *building == index);
        snapshot::remove(&*self.disk, index)
    }
}

/// What this member's own disk has of the state, which takes part in no format after `newest`: the log says in which file.
///
/// # Errors
/// See [`State::open_upto`].
pub fn open_state(disk: &Arc<dyn Disk>, log: &Log, newest: u32) -> Result<State, Fault> {
    State::open_upto(disk.clone(), log.installed()?, newest)
}

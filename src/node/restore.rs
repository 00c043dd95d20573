//! A new cluster of one member from a backup.

use std::io::Read;
use std::sync::Arc;

use raft::eraftpb::ConfState;

use super::draw_uuid;
use crate::error::{Context, Fault, ImportError};
use crate::ids::{Address, Index, Term};
use crate::io::Io;
use crate::proto::v1::{BackupHead, JoinReply, Member, MemberRole};
use crate::raft::codec;
use crate::raft::log::{Identity, Log};
use crate::state::backup::Reader;
use crate::state::snapshot::{Import, refound};

/// Fills an empty data directory with the founder of a new cluster that begins with the state of a backup. Keys, leases and tasks are
/// as they were, revisions go on; members and workers are not of this cluster any more, and sessions are over.
///
/// # Errors
/// Something is in the directory already, or the backup is none or damaged: then there is no member there.
pub fn restore<R: Read>(io: &Io, backup: R, address: &Address) -> Result<(Identity, BackupHead), Fault> {
    let place = io.disk.describe();
    let unusable = |error: ImportError| match error {
        ImportError::Invalid(why) => Fault::new(format!("the backup cannot be used: {why}")),
        ImportError::Fault(fault) => fault,
    };
    let mut backup = Reader::open(backup).map_err(unusable)?;
    let head = backup.head().clone();
    let mut log = Log::open(&*io.disk)?;
    if let Some(identity) = log.identity()? {
        let text = format!("{place} holds member {} of a cluster already; restore to an empty directory", identity.id);
        return Err(Fault::new(text));
    }
    // Before any state: where there is one, the log is not empty.
    let uuid = log.uuid(|| draw_uuid(io))?;
    let index = Index(head.applied_index);
    let mut import = Import::begin(Arc::clone(&io.disk), index)?;
    while let Some(chunk) = backup.chunk().map_err(unusable)? {
        import.add(&chunk).map_err(unusable)?;
    }
    import.finish(head.digest).map_err(unusable)?;
    let founder = |id: u64| Member {
        id,
        uuid: uuid.to_vec().into(),
        address: address.to_string(),
        role: MemberRole::Voter.into(),
        standby: false,
    };
    let conf_state = |id: u64| codec::conf_state_bytes(&ConfState { voters: vec![id], ..ConfState::default() });
    let mut auth_key = [0; 32];
    io.rng.stream("secrets").fill(&mut auth_key);
    let founder = refound(&*io.disk, index, founder, conf_state, auth_key)?;
    let founded = JoinReply {
        cluster_id: io.rng.stream("cluster").bits() | 1,
        id: founder.id,
        members: vec![founder],
        role: MemberRole::Unspecified.into(),
    };
    // From here on there is a member.
    log.establish_at(&founded, (index, Term(head.applied_term)))?;
    io.disk.sync_dir().context(|| format!("restore to {place}"))?;
    Ok((Identity::of(&founded), head))
}

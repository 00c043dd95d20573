//! A backup of a cluster that has healed, and a new cluster that begins with it: what was there is there.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::client::{Client, ClientError};
use crate::ids::Address;
use crate::node::{self, NodeBuilder};
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse};
use crate::proto::v1::{OpenSession, command::Kind, reply};
use crate::sim::oracle::Violations;
use crate::sim::oracle::recovery::RECOVERY_MAX;
use crate::sim::world::World;

const ORACLE: &str = "what was backed up is there";
/// Sessions that are opened in both clusters.
const SESSIONS: usize = 3;

/// All keys, as of a revision if it is not 0.
async fn all(client: &Client, revision: i64) -> Result<RangeResponse, ClientError> {
    let from = Bytes::from_static(&[0]);
    client.range(RangeRequest { key: from.clone(), range_end: from, revision, ..RangeRequest::default() }).await
}

async fn save(client: &Client) -> Result<Vec<u8>, ClientError> {
    let (mut backup, mut bytes) = (client.backup(false).await?, Vec::new());
    while let Some((piece, _)) = backup.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// What sessions are called that are opened now.
async fn sessions(client: &Client) -> Result<BTreeSet<u64>, ClientError> {
    let mut ids = BTreeSet::new();
    for _ in 0..SESSIONS {
        if let reply::Kind::OpenSession(opened) = client.execute(Kind::OpenSession(OpenSession::default())).await? {
            ids.insert(opened.session);
        }
    }
    Ok(ids)
}

/// Backs up a cluster through `client`, begins a new one on a machine of its own, and compares what is in both. `spoil` says which
/// byte of a copy is damaged: that must be noticed.
///
/// # Errors
/// The cluster, or the new one, did not answer.
pub async fn check(world: &Arc<World>, client: Client, spoil: u64, violations: &Violations) -> Result<(), String> {
    let bytes = save(&client).await.map_err(|error| format!("it is not backed up: {error}"))?;
    let address: Address = "restored:7400".parse().expect("a name and a port");
    let mut damaged = bytes.clone();
    damaged[(spoil % bytes.len() as u64) as usize] ^= 1;
    let (new, place) = world.machine().boot();
    if node::restore(&new, &damaged[..], &address).is_ok() {
        violations.add(ORACLE, format!("nobody noticed that byte {} of {} is damaged", spoil, bytes.len()));
    }
    // What came of that is no member: the machine will do.
    let (_, head) =
        node::restore(&new, &bytes[..], &address).map_err(|fault| format!("it is not restored: {fault}"))?;
    let running = place.spawn(async move {
        match NodeBuilder::new(new, address).start().await {
            // It goes on until it is dropped with its machine.
            Ok(node) => {
                node.wait_ready().await;
                Ok(node)
            }
            Err(fault) => Err(format!("the new cluster does not start: {fault}")),
        }
    });
    let node = running.await.map_err(|_| "the new cluster has died".to_owned())??;
    // Who is in its process needs no token, whoever the users are that were restored.
    let restored = node.client(RECOVERY_MAX);
    let found = all(&restored, 0).await.map_err(|error| format!("the new cluster does not answer: {error}"))?;
    // A client of the old one may find the new one in its place: who goes on with a session there would be told what another asked.
    let new_sessions =
        sessions(&restored).await.map_err(|error| format!("the new cluster opens no session: {error}"))?;
    let old_sessions = sessions(&client).await.map_err(|error| format!("the cluster opens no session: {error}"))?;
    for session in old_sessions.intersection(&new_sessions) {
        violations.add(ORACLE, format!("a session of the new cluster is called {session}, as one of the old"));
    }
    // Leases may have ended since.
    let revision = head.revision.cast_signed();
    let expected = match all(&client, revision).await {
        Ok(expected) => expected,
        // Compacted meanwhile.
        Err(ClientError::Rejected(_)) => return Ok(()),
        Err(error) => return Err(format!("the cluster does not answer: {error}")),
    };
    let is_there = |reply: &RangeResponse| reply.kvs.iter().filter(|row| row.lease == 0).cloned().collect::<Vec<_>>();
    if is_there(&found) != is_there(&expected) {
        let (before, after) = (expected.kvs.len(), found.kvs.len());
        violations
            .add(ORACLE, format!("at revision {revision} there were {before} keys, and others are restored: {after}"));
    }
    Ok(())
}

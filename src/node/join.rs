//! What a node asks of its cluster about itself: to be taken in, and to be known where it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tonic::{Code, Request, Status};

use crate::api::ClusterService;

use crate::error::Fault;
use crate::ids::{Address, ClusterId, NodeId};
use crate::io::Io;
use crate::limits::{CONTROL_PERIOD, RECONNECT_PAUSE_MAX, REQUEST_TIMEOUT};
use crate::proto::v1::cluster_client::ClusterClient;
use crate::proto::v1::cluster_server::Cluster;
use crate::proto::v1::{JoinReply, JoinRequest, MoveRequest, StatusRequest};
use crate::raft::log::Identity;
use crate::shared::{LEADER_HINT, SharedNodeState};

/// How long a node goes on asking before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a member waits for those it was told to join, when it is one already.
const SEEDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks the members at `seeds`, and whomever they name as leader, until one answers. The same `uuid` gets the same
/// answer, so asking again after a lost one does no harm.
pub async fn join(io: &Io, seeds: &[Address], uuid: &[u8; 16], address: &Address) -> Result<JoinReply, Fault> {
    let deadline = io.clock.now() + PATIENCE;
    let mut hints: VecDeque<Address> = VecDeque::new();
    let mut turn = 0;
    let mut last = String::from("nobody was asked");
    while io.clock.now() < deadline && !seeds.is_empty() {
        let hinted = hints.pop_front();
        let target = hinted.clone().unwrap_or_else(|| {
            turn += 1;
            seeds[(turn - 1) % seeds.len()].clone()
        });
        let mut client = ClusterClient::new(io.network.connect(&target));
        let mut request = Request::new(JoinRequest { uuid: uuid.to_vec().into(), address: address.to_string() });
        request.set_timeout(REQUEST_TIMEOUT);
        match io.clock.timeout(REQUEST_TIMEOUT, client.join(request)).await {
            Ok(Ok(reply)) => {
                return Ok(reply.into_inner());
            }
            Ok(Err(status))
                if matches!(
                    status.code(),
                    Code::FailedPrecondition
                        | Code::AlreadyExists
                        | Code::InvalidArgument
                        | Code::ResourceExhausted
                        | Code::Unauthenticated
                ) =>
            {
                return Err(Fault::new(format!("the cluster at {target} refused this node: {}", status.message())));
            }
            Ok(Err(status)) => {
                last = format!("{target}: {}", status.message());
                let hint = status.metadata().get(LEADER_HINT).and_then(|value| value.to_str().ok()?.parse().ok());
                hints.extend(hint.filter(|_| hinted.is_none()));
            }
            Err(_) => last = format!("{target}: no answer within {REQUEST_TIMEOUT:?}"),
        }
        tracing::info!(%last, "not taken in yet");
        if hints.is_empty() {
            io.clock.sleep(RECONNECT_PAUSE_MAX / 4).await;
        }
    }
    Err(Fault::new(format!("no member took this node in within {PATIENCE:?}; the last answer: {last}")))
}

/// Makes sure that nobody answers as this member where it was before: that would be a process with a copy of its data.
///
/// # Errors
/// Somebody does.
pub async fn check_moved(io: &Io, identity: Identity, before: &Address, now: &Address) -> Result<(), Fault> {
    if who(io, before).await != Some((identity.cluster, identity.id)) {
        return Ok(());
    }
    Err(Fault::new(format!(
        "member {} runs at {before} already, and {} is a copy of its data. To move the member to {now}, stop it there first; \
         to add another, start with an empty data directory and --join",
        identity.id,
        io.disk.describe()
    )))
}

/// Makes sure that whoever answers at `seeds` is of this member's cluster: else one of the two was mistaken for another.
///
/// # Errors
/// Somebody is of another.
pub async fn check_cluster(io: &Io, identity: Identity, seeds: &[Address]) -> Result<(), Fault> {
    let answers = join_all(seeds.iter().map(|seed| io.clock.timeout(SEEDS_TIMEOUT, who(io, seed)))).await;
    for (seed, answer) in seeds.iter().zip(answers) {
        if let Ok(Some((cluster, _))) = answer
            && cluster != identity.cluster
        {
            return Err(Fault::new(format!(
                "{} holds member {} of cluster {}, and {seed} is of cluster {}: choose the right one with --data-dir, or join \
                 with an empty one",
                io.disk.describe(),
                identity.id,
                identity.cluster.hex(),
                cluster.hex()
            )));
        }
    }
    Ok(())
}

/// Who answers at an address.
async fn who(io: &Io, address: &Address) -> Option<(ClusterId, NodeId)> {
    let mut client = ClusterClient::new(io.network.connect(address));
    let reply = io.clock.timeout(REQUEST_TIMEOUT, client.status(StatusRequest {})).await;
    let status = reply.ok()?.ok()?.into_inner();
    Some((ClusterId(status.cluster_id), NodeId(status.id)))
}

/// Asks who is at each of the seeds, and has the streams go there.
async fn discover(shared: &SharedNodeState, seeds: &[Address]) {
    for seed in seeds {
        if let Some((cluster, id)) = who(&shared.io, seed).await
            && cluster == shared.identity.cluster
        {
            shared.raft.introduce(id, seed.clone());
        }
    }
}

/// Sees to it that the cluster knows where this member is. If others have moved meanwhile, too, so that none is found
/// where it was, whoever answers at `seeds` is taken for where it is.
pub async fn announce(shared: Arc<SharedNodeState>, uuid: [u8; 16], address: Address, seeds: Vec<Address>) {
    let id = shared.identity.id;
    let request = MoveRequest { id: id.0, uuid: uuid.to_vec().into(), address: address.to_string() };
    loop {
        match shared.address_of(id) {
            Ok(known) if known.as_ref() == Some(&address) => {}
            // A state that does not have this member yet says nothing about where the cluster has it.
            Ok(_) => {
                if let Err(status) = move_to(&shared, &request, &seeds).await {
                    tracing::info!(why = status.message(), "the cluster does not know yet where this member is");
                    discover(&shared, &seeds).await;
                }
            }
            Err(status) => tracing::error!(why = status.message(), "the state cannot be read"),
        }
        shared.io.clock.sleep(CONTROL_PERIOD).await;
    }
}

async fn move_to(shared: &Arc<SharedNodeState>, request: &MoveRequest, seeds: &[Address]) -> Result<(), Status> {
    if shared.leads() {
        return ClusterService(shared.clone()).r#move(Request::new(request.clone())).await.map(|_| ());
    }
    let leader = shared.raft.status().leader.map(|id| shared.address_of(id)).transpose()?.flatten();
    let mut last = Status::unavailable("no leader is known");
    for target in leader.iter().chain(seeds) {
        let mut client = ClusterClient::new(shared.io.network.connect(target));
        match shared.io.clock.timeout(REQUEST_TIMEOUT, client.r#move(request.clone())).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::unavailable(format!("no answer from {target}")),
        }
    }
    Err(last)
}

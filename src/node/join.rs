//! What a node asks of its cluster about itself: to be taken in, and to be known where it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tonic::{Code, Request, Status};

use crate::api::ClusterService;

use crate::error::Fault;
use crate::forward::LEADER_HINT;
use crate::ids::{Address, ClusterId, NodeId};
use crate::io::Io;
use crate::limits::{CONTROL_PERIOD, RECONNECT_PAUSE_MAX, REQUEST_TIMEOUT};
use crate::proto::v1::cluster_client::ClusterClient;
use crate::proto::v1::cluster_server::Cluster;
use crate::proto::v1::{
    HeardReply, HeardRequest, JoinReply, JoinRequest, MemberRole, MoveRequest, StatusReply, StatusRequest,
};
use crate::raft::log::Identity;
use crate::shared::{SharedNodeState, internal};
use crate::state::member;

/// How long a node goes on asking before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Failed attempts to say where a member is before it is told of, and then of how many one is.
const WARN_FIRST: u32 = 6;
const WARN_EVERY: u32 = 64;
/// How long a member that starts waits for each of the others, all at once.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(500);
/// Pauses between the questions whether the others hear this member: followers answer a leader several times in each.
const HEARD_PAUSES: [Duration; 3] = [Duration::from_millis(350), Duration::from_secs(1), Duration::from_secs(1)];

/// As what a node asks to be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// It keeps the state, and comes to vote unless it is to stand by.
    Server {
        /// It stays a learner until it is promoted.
        standby: bool,
        /// The newest format of the state that it takes part in.
        format: u32,
    },
    /// It runs tasks and keeps no state.
    Worker,
}

/// Asks the members at `seeds`, and whomever they name as leader, until one answers. The same `uuid` gets the same
/// answer, so asking again after a lost one does no harm.
///
/// # Errors
/// The cluster refused, or nobody answered in time.
pub async fn join(
    io: &Io,
    seeds: &[Address],
    uuid: &[u8; 16],
    address: &Address,
    joins: Joins,
) -> Result<JoinReply, Fault> {
    let (role, standby, format) = match joins {
        Joins::Server { standby, format } => (MemberRole::Unspecified, standby, format),
        // It keeps no state.
        Joins::Worker => (MemberRole::Worker, false, 0),
    };
    let seeds: Vec<&Address> = seeds.iter().filter(|seed| *seed != address).collect();
    if seeds.is_empty() {
        return Err(Fault::new(format!("{address} is this node itself: to join, name a member of the cluster")));
    }
    let deadline = io.clock.now() + PATIENCE;
    let mut hints: VecDeque<Address> = VecDeque::new();
    let mut turn = 0;
    let (mut last, mut told) = (String::from("nobody was asked"), String::new());
    while io.clock.now() < deadline {
        let hinted = hints.pop_front();
        let target = hinted.clone().unwrap_or_else(|| {
            turn += 1;
            seeds[(turn - 1) % seeds.len()].clone()
        });
        let mut client = ClusterClient::new(io.network.connect(&target));
        let (uuid, address) = (uuid.to_vec().into(), address.to_string());
        let mut request = Request::new(JoinRequest { uuid, address, role: role.into(), standby, format });
        request.set_timeout(REQUEST_TIMEOUT);
        match io.clock.timeout(REQUEST_TIMEOUT, client.join(request)).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status))
                if matches!(
                    status.code(),
                    Code::FailedPrecondition | Code::AlreadyExists | Code::InvalidArgument | Code::Unauthenticated
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
        if last != told {
            tracing::warn!(why = last, "not taken in yet; trying on");
            told.clone_from(&last);
        }
        if hints.is_empty() {
            io.clock.sleep(RECONNECT_PAUSE_MAX / 4).await;
        }
    }
    Err(Fault::new(format!("no member took this node in within {PATIENCE:?}; the last answer: {last}")))
}

/// Where a member that starts looks for itself.
pub struct Whereabouts {
    /// Where it is now.
    pub own: Address,
    /// Where its own state has it.
    pub known: Option<Address>,
    /// Where the others are, or were.
    pub others: BTreeSet<Address>,
    /// Where it was told to look for others.
    pub seeds: Vec<Address>,
}

/// Makes sure that this member does not run already, from another copy of its data: it would answer where it is known to be, and
/// the others would hear it. And that whoever it was told to join is of its cluster: else one was mistaken for another.
///
/// # Errors
/// It runs elsewhere, or one of the seeds is of another cluster.
pub async fn check_alone(io: &Io, identity: Identity, at: Whereabouts) -> Result<(), Fault> {
    let Whereabouts { own, known, mut others, seeds } = at;
    let runs = |place: &Address, how: &str| {
        Fault::new(format!(
            "member {} runs at {place} already, {how}; {} is a copy of its data. To move the member, stop it there first; to add \
             another, start with an empty data directory and --join",
            identity.id,
            io.disk.describe()
        ))
    };
    others.extend(seeds.iter().cloned());
    others.remove(&own);
    let mut before = heard(io, identity, &others).await;
    for seed in &seeds {
        if let Some(HeardReply { cluster_id, .. }) = before.get(seed)
            && *cluster_id != identity.cluster.0
        {
            return Err(Fault::new(format!(
                "{} holds member {} of cluster {}, and {seed} is of cluster {}: choose the right one with --data-dir, or join \
                 with an empty one",
                io.disk.describe(),
                identity.id,
                identity.cluster.hex(),
                ClusterId(*cluster_id).hex()
            )));
        }
    }
    // Where others were once, strangers may be now.
    before.retain(|_, reply| reply.cluster_id == identity.cluster.0);
    // It may be one of those that were asked: what has just joined does not have it from its state where it is.
    if let Some((place, _)) = before.iter().find(|(_, reply)| reply.id == identity.id.0) {
        return Err(runs(place, "where it answers"));
    }
    // A member that follows nobody says nothing to the others, but it answers.
    let told = before.values().flat_map(|reply| [&reply.address, &reply.known]);
    let told = told.filter_map(|address| address.parse::<Address>().ok());
    let places: BTreeSet<Address> = told.chain(known).filter(|place| *place != own).collect();
    for place in &places {
        if who(io, place).await == Some((identity.cluster, identity.id)) {
            return Err(runs(place, "where it answers"));
        }
    }
    if before.is_empty() {
        return Ok(());
    }
    // What was under way when this member went down may still arrive; what goes on and on comes from somebody.
    for pause in HEARD_PAUSES {
        io.clock.sleep(pause).await;
        let mut now = heard(io, identity, &others).await;
        now.retain(|_, reply| reply.cluster_id == identity.cluster.0);
        let goes_on = |(other, reply): (&Address, &HeardReply)| {
            let more = before.get(other).is_some_and(|before| reply.frames > before.frames);
            more.then(|| (other.clone(), reply.address.clone()))
        };
        match now.iter().find_map(goes_on) {
            None => return Ok(()),
            Some((other, at)) if pause == HEARD_PAUSES[HEARD_PAUSES.len() - 1] => {
                return match at.parse::<Address>() {
                    Ok(place) => Err(runs(&place, &format!("where the member at {other} hears it"))),
                    Err(error) => Err(Fault::new(format!("{other} hears this member at {at}: {error}"))),
                };
            }
            Some(_) => before = now,
        }
    }
    Ok(())
}

/// What those who answer have heard of this member.
async fn heard(io: &Io, identity: Identity, others: &BTreeSet<Address>) -> BTreeMap<Address, HeardReply> {
    let ask = |other: &Address| {
        let mut client = ClusterClient::new(io.network.connect(other));
        async move { io.clock.timeout(OTHERS_TIMEOUT, client.heard(HeardRequest { id: identity.id.0 })).await }
    };
    let answers = join_all(others.iter().map(ask)).await;
    let answered = |(other, answer): (&Address, _)| match answer {
        Ok(Ok(reply)) => Some((other.clone(), tonic::Response::into_inner(reply))),
        _ => None,
    };
    others.iter().zip(answers).filter_map(answered).collect()
}

/// Who answers at an address.
async fn who(io: &Io, address: &Address) -> Option<(ClusterId, NodeId)> {
    status(io, address).await.map(|status| (ClusterId(status.cluster_id), NodeId(status.id)))
}

/// What whoever answers at an address says of itself.
pub async fn status(io: &Io, address: &Address) -> Option<StatusReply> {
    let mut client = ClusterClient::new(io.network.connect(address));
    let reply = io.clock.timeout(OTHERS_TIMEOUT, client.status(StatusRequest {})).await;
    Some(reply.ok()?.ok()?.into_inner())
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

/// After so many looks without a leader a member says anew where it is, even if its own state has it there.
const LOST_ROUNDS: u32 = 6;

/// Sees to it that the cluster knows where this member is. If others have moved meanwhile, too, so that none is found
/// where it was, whoever answers at `seeds` is taken for where it is.
pub async fn announce(shared: Arc<SharedNodeState>, uuid: [u8; 16], address: Address, seeds: Vec<Address>) {
    let id = shared.identity.id;
    let request = MoveRequest { id: id.0, uuid: uuid.to_vec().into(), address: address.to_string() };
    let (mut failures, mut lost) = (0u32, 0u32);
    loop {
        shared.io.clock.sleep(CONTROL_PERIOD).await;
        lost = if shared.raft.status().leader.is_none() { lost.saturating_add(1) } else { 0 };
        // All others may have moved while this member was away, and where it was removed meanwhile nobody calls it. First: to ask those who may
        // be nowhere any more takes long.
        if lost > 0 || failures > 0 {
            discover(&shared, &seeds).await;
        }
        match shared.address_of(id) {
            // Where it knows of no leader for long, what its state says may not be what the cluster has.
            Ok(known) if known.as_ref() == Some(&address) && lost < LOST_ROUNDS => {
                failures = 0;
            }
            // A state that does not have this member yet says nothing about where the cluster has it.
            Ok(_) => {
                if let Err(status) = move_to(&shared, &request, &seeds).await {
                    failures = failures.wrapping_add(1);
                    if failures % WARN_EVERY == WARN_FIRST {
                        let why = status.message();
                        tracing::warn!(why, "the cluster does not know yet where this member is; trying on");
                    }
                }
            }
            Err(status) => tracing::error!(why = status.message(), "the state cannot be read"),
        }
    }
}

async fn move_to(shared: &Arc<SharedNodeState>, request: &MoveRequest, seeds: &[Address]) -> Result<(), Status> {
    if shared.leads() {
        return ClusterService(shared.clone()).r#move(Request::new(request.clone())).await.map(|_| ());
    }
    let leader = shared.raft.status().leader.map(|id| shared.address_of(id)).transpose()?.flatten();
    // Whoever stayed where it was knows where the leader is now.
    let (_, rows) = shared.reader.view().map_err(internal)?;
    let others = member::all(&rows).map_err(internal)?.into_iter();
    let others = others.filter(|member| member::is_server(member) && member.id != request.id);
    let others: Vec<Address> = others.filter_map(|member| member.address.parse().ok()).collect();
    drop(rows);
    let mut last = Status::unavailable("no leader is known");
    let mut asked = BTreeSet::new();
    for target in leader.iter().chain(seeds).chain(&others).filter(|target| asked.insert((*target).clone())) {
        let mut client = ClusterClient::new(shared.io.network.connect(target));
        match shared.io.clock.timeout(REQUEST_TIMEOUT, client.r#move(request.clone())).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::unavailable(format!("no answer from {target}")),
        }
    }
    Err(last)
}

//! The life of a worker that keeps no state: who it is stands on a card, and all else it hears from servers.
//!
//! ```text
//!   boot ──► join ──► find a server ──► serve ──► drain ──► stop
//!      └─(has a card)──────┘ ▲               │
//!                            └─(stream cut)──┘
//! ```

use std::sync::Arc;

use tokio::sync::mpsc;

use super::card::{self, Card};
use super::{Life, Node, NodeBuilder, Origin, Serving, draw_uuid, join};
use crate::api::{self, Health, WorkerService};
use crate::client::Remote;
use crate::error::{Context, Fault};
use crate::ids::{Address, ClusterId, NodeId};
use crate::io::{self, Spawn, own};
use crate::limits;
use crate::metrics::Metrics;
use crate::proto::v1::{JoinReply, Member, MemberRole, WorkerCard};
use crate::raft::log::{Identity, LOG_FILE};
use crate::worker::{self, Desired, Worker};

/// Starts a worker that keeps no state.
pub(super) async fn start(builder: NodeBuilder) -> Result<Node, Fault> {
    let (listener, address) = builder.bind().await?;
    let bound = listener.address();
    let io = builder.io;
    let place = io.disk.describe();
    let names = io.disk.list().context(|| format!("look into {place}"))?;
    if names.iter().any(|name| name == LOG_FILE) {
        return Err(Fault::new(format!(
            "{place} holds a member that keeps the state: start it without --role worker, or choose another directory with \
             --data-dir"
        )));
    }
    let seeds = match builder.origin {
        Origin::Join(seeds) => seeds,
        Origin::Existing => Vec::new(),
        Origin::Bootstrap => {
            return Err(Fault::new(
                "a worker that keeps no state founds no cluster: start it with --join and the address of a member",
            ));
        }
    };
    let outputs = worker::outputs(&io).ok_or_else(|| Fault::new("a worker must be able to run something"))?;
    let nobody_to_ask = || {
        let text = "holds no worker of a cluster: to enter one start with --join and the address of a member";
        Fault::new(format!("{place} {text}"))
    };
    if seeds.is_empty() && !card::is_there(&*io.disk)? {
        return Err(nobody_to_ask());
    }
    let mut card = Card::open(&*io.disk, || draw_uuid(&io))?;
    let text = format!("the card in {place} has a uuid of {} bytes, not 16", card.now.uuid.len());
    let uuid: [u8; 16] = card.now.uuid.as_ref().try_into().map_err(|_| Fault::new(text))?;
    let joined = match &card.now.joined {
        Some(joined) => joined.clone(),
        None if seeds.is_empty() => return Err(nobody_to_ask()),
        None => {
            let joined = join::join(&io, &seeds, &uuid, &address, MemberRole::Worker).await?;
            check_role(&joined)?;
            card.write(WorkerCard { joined: Some(joined.clone()), ..card.now.clone() })?;
            joined
        }
    };
    let identity = Identity { cluster: ClusterId(joined.cluster_id), id: NodeId(joined.id) };
    let servers = servers(&joined)?;
    let remote = Remote::new(io.clone(), identity, uuid, address.clone(), servers.clone(), seeds);
    let (health, metrics) = (Health::default(), Metrics::new());
    let service = WorkerService { remote: remote.clone(), outputs: outputs.clone(), clock: io.clock.clone() };
    let (serving, server) = Serving::start(&io, listener, api::worker_routes(&service, &health, &metrics));
    let keeper = own(&*io.spawn, "card", Keeper { card, spawn: io.spawn.clone() }, 1);
    let tasks = vec![
        server,
        io.spawn.spawn("watch", Box::pin(remote.clone().run())),
        io.spawn.spawn("address", Box::pin(announce(io.clone(), remote.clone()))),
        io.spawn.spawn("servers", Box::pin(keep_servers(remote.clone(), servers, keeper))),
        io.spawn.spawn("readiness", Box::pin(ready(remote.clone(), health.clone()))),
    ];
    let worker = Worker::start(io.clone(), identity.id, builder.worker, remote.clone(), outputs);
    tracing::info!(cluster = identity.cluster.hex(), worker = %identity.id, %bound, "started");
    let life = Life::Worker(remote);
    Ok(Node { io, identity, health, address: bound, life, worker: Some(worker), serving, tasks })
}

/// A leader of an older version takes everyone for a learner.
fn check_role(joined: &JoinReply) -> Result<(), Fault> {
    match joined.role() {
        MemberRole::Worker => Ok(()),
        _ => Err(Fault::new(format!(
            "the leader does not know workers without state, and has made this node the learner {id}: upgrade the members, remove \
             it with `node cluster remove {id}`, and start with an empty data directory",
            id = joined.id
        ))),
    }
}

fn servers(joined: &JoinReply) -> Result<Vec<Address>, Fault> {
    let address =
        |member: &Member| member.address.parse().context(|| format!("read the address of member {}", member.id));
    joined.members.iter().map(address).collect()
}

/// Waits until the worker is up to date, and the cluster knows where it is.
pub(super) async fn wait_ready(remote: &Remote) {
    // Waits for as long as it takes; there is nobody who could say that it never will be.
    let _ = remote.up_to_date().await;
}

async fn ready(remote: Arc<Remote>, health: Health) {
    wait_ready(&remote).await;
    health.set_serving(true);
}

/// Sees to it that the cluster knows where this worker is, unless it is there: then this is a copy of its data.
async fn announce(io: io::Io, remote: Arc<Remote>) {
    loop {
        let known = remote.misplaced().await;
        let Identity { cluster, id } = remote.identity;
        if join::who(&io, &known).await == Some((cluster, id)) {
            io.spawn.fail_stop(Fault::new(format!(
                "worker {id} runs at {known} already, where it answers; {} is a copy of its data. To move the worker, stop it there \
                 first; to add another, start with an empty data directory, --role worker and --join",
                io.disk.describe()
            )));
            return;
        }
        sometimes!("a worker without state has moved");
        if let Err(why) = remote.announce().await {
            tracing::warn!(why, "the cluster does not know yet where this worker is; trying on");
        }
        io.clock.sleep(limits::CONTROL_PERIOD).await;
    }
}

/// Keeps on the card where the servers are.
async fn keep_servers(remote: Arc<Remote>, mut known: Vec<Address>, keeper: mpsc::Sender<Vec<Address>>) {
    loop {
        let servers = remote.servers_moved(&known).await;
        if keeper.send(servers.clone()).await.is_err() {
            return;
        }
        known = servers;
    }
}

/// Owns the card while the node runs.
struct Keeper {
    card: Card,
    spawn: Arc<dyn Spawn>,
}

impl io::Worker for Keeper {
    type Job = Vec<Address>;

    fn run(&mut self, jobs: &mut Vec<Vec<Address>>) {
        let Some(servers) = jobs.drain(..).next_back() else { return };
        let mut next = self.card.now.clone();
        let member = |address: Address| Member { address: address.to_string(), ..Member::default() };
        if let Some(joined) = &mut next.joined {
            joined.members = servers.into_iter().map(member).collect();
        }
        if let Err(fault) = self.card.write(next) {
            self.spawn.fail_stop(fault);
        }
    }
}

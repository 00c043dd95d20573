//! The life of a worker that keeps no state: its log holds who it is and nothing else, the rest it hears from servers.
//!
//! ```text
//!   boot ──► join ──► find a server ──► serve ──► drain ──► stop
//!      └─(is in one)───────┘ ▲               │
//!                            └─(stream cut)──┘
//! ```

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Life, Node, NodeBuilder, Origin, Role, Serving, check_role, draw_uuid, join, join::Joins};
use crate::api::{self, Health, WorkerService};
use crate::client::Remote;
use crate::error::{Context, Fault};
use crate::ids::Address;
use crate::io::{self, Spawn, own};
use crate::limits;
use crate::metrics::Metrics;
use crate::proto::v1::{JoinReply, Member, MemberRole};
use crate::raft::log::{Identity, Log};
use crate::worker::{self, Desired, Worker};

/// Starts a worker that keeps no state.
pub(super) async fn start(builder: NodeBuilder) -> Result<Node, Fault> {
    let (listener, address) = builder.bind().await?;
    let bound = listener.address();
    let io = builder.io;
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
    let mut log = Log::open(&*io.disk)?;
    let uuid = log.uuid(|| draw_uuid(&io))?;
    let joined = match log.joined()? {
        Some(joined) => check_role(&io, &joined, Role::Worker).map(|()| joined)?,
        None if seeds.is_empty() => {
            let text = "holds no worker of a cluster: to enter one start with --join and the address of a member";
            return Err(Fault::new(format!("{} {text}", io.disk.describe())));
        }
        None => {
            let joined = join::join(&io, &seeds, &uuid, &address, Joins::Worker).await?;
            check_taken_in(&joined)?;
            log.establish(&joined, &[])?;
            joined
        }
    };
    let (identity, servers) = (Identity::of(&joined), servers(&joined)?);
    let remote = Remote::new(io.clone(), identity, uuid, address.clone(), servers.clone(), seeds);
    let (health, metrics) = (Health::default(), Metrics::new());
    let life = io.rng.stream("life").bits();
    let service = WorkerService { life, remote: remote.clone(), outputs: outputs.clone(), clock: io.clock.clone() };
    let routes = api::worker_routes(&service, &health, &metrics);
    let (serving, server) = Serving::start(&io, listener, routes.clone());
    let keeper = own(&*io.spawn, "log", Keeper { log, spawn: io.spawn.clone() }, 1);
    let tasks = vec![
        server,
        io.spawn.spawn("watch", Box::pin(remote.clone().run())),
        io.spawn.spawn("address", Box::pin(announce(io.clone(), remote.clone(), life))),
        io.spawn.spawn("servers", Box::pin(keep_servers(remote.clone(), servers, keeper))),
        io.spawn.spawn("readiness", Box::pin(ready(remote.clone(), health.clone()))),
    ];
    let worker = Worker::start(io.clone(), (identity.id, life), builder.worker, remote.clone(), outputs);
    tracing::info!(cluster = identity.cluster.hex(), worker = %identity.id, %bound, "started");
    let life = Life::Worker(remote);
    let worker = Some(worker);
    Ok(Node { io, identity, health, address: bound, advertised: address, routes, life, worker, serving, tasks })
}

/// A leader of an older version takes everyone for a learner.
fn check_taken_in(joined: &JoinReply) -> Result<(), Fault> {
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

/// Sees to it that the cluster knows where this worker is, unless it is there in another `life`: then this is a copy of its data.
async fn announce(io: io::Io, remote: Arc<Remote>, life: u64) {
    loop {
        let known = remote.misplaced().await;
        let Identity { cluster, id } = remote.identity;
        let there = join::status(&io, &known).await;
        if there.is_some_and(|there| (there.cluster_id, there.id) == (cluster.0, id.0) && there.life != life) {
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

/// Keeps in the log where the servers are.
async fn keep_servers(remote: Arc<Remote>, mut known: Vec<Address>, keeper: mpsc::Sender<Vec<Address>>) {
    loop {
        let servers = remote.servers_moved(&known).await;
        if keeper.send(servers.clone()).await.is_err() {
            return;
        }
        known = servers;
    }
}

/// Owns the log while the node runs.
struct Keeper {
    log: Log,
    spawn: Arc<dyn Spawn>,
}

impl io::Worker for Keeper {
    type Job = Vec<Address>;

    fn run(&mut self, jobs: &mut Vec<Vec<Address>>) {
        let Some(servers) = jobs.drain(..).next_back() else { return };
        let member = |address: Address| Member { address: address.to_string(), ..Member::default() };
        if let Err(fault) = self.log.meet(servers.into_iter().map(member).collect()) {
            self.spawn.fail_stop(fault);
        }
    }
}

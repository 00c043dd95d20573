//! `node dev` and `node start`: running a node until it is told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::Failure;
use super::access::Access;
use super::config::Config;
use super::units::{Amount, bytes, cpu, history, quota, whole};
use crate::controller::History;
use crate::error::{Context, Fault};
use crate::ids::Address;
use crate::limits::{ELECTION_TIMEOUT, FREE_SPACE_FLOOR, KEYS_QUOTA, LOG_ENTRIES_KEPT};
use crate::node::{self, Node, NodeBuilder, Origin};
use crate::os;
use crate::raft::tail::Retention;
use crate::state::format;
use crate::state::worker::check_features;
use crate::worker::WorkerConfig;

/// How long an orderly stop may take before the process goes anyway.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node does in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Keeps the state, may vote, and runs no tasks
    Server,
    /// Runs tasks and keeps no state: a server tells it what to run
    Worker,
    /// Keeps the state, may vote, and runs tasks
    Both,
}

impl From<Role> for node::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Server => Self::Server,
            Role::Worker => Self::Worker,
            Role::Both => Self::Both,
        }
    }
}

/// Options of `node dev`.
#[derive(Args)]
pub struct Dev {
    /// Where to keep the data [default: cairn/dev under $XDG_STATE_HOME or ~/.local/state]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:7400")]
    listen: Address,
}

/// Options of `node start`.
#[derive(Args)]
pub struct Start {
    /// Read options from a TOML file; options on the command line win
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where the node keeps its data
    #[arg(long, env = "CAIRN_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:7400]
    #[arg(long, env = "CAIRN_LISTEN")]
    listen: Option<Address>,
    /// Address that others reach it at, where it is another
    #[arg(long, env = "CAIRN_ADVERTISE")]
    advertise: Option<Address>,
    /// Found a new cluster, if the data directory holds no member yet
    #[arg(long, conflicts_with = "join")]
    bootstrap: bool,
    /// What the node does in its cluster [default: both]
    #[arg(long, env = "CAIRN_ROLE")]
    role: Option<Role>,
    /// Enter the cluster of the member at this address; a node that is in it already looks for the others there
    #[arg(long, env = "CAIRN_JOIN", value_delimiter = ',')]
    join: Vec<Address>,
    /// Do not vote until promoted, if the node joins now
    #[arg(long)]
    standby: bool,
    /// Answer reads under a lease while the node leads, without asking the others. Only where clocks are good: none may run more than
    /// 4.5 % fast or slow, or stand still while its machine does not
    #[arg(long)]
    lease_reads: bool,
    /// Newest format of the state that the node takes part in. While one member is held at that of the version before, all may go back
    /// to it [default: the newest that this version knows]
    #[arg(long, value_parser = whole::<u32>("format", u64::from(format::FIRST)..=u64::from(format::NEWEST)))]
    format_max: Option<u32>,
    #[command(flatten)]
    access: Access,
    /// The certificate that this node shows, in PEM
    #[arg(long, env = "CAIRN_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM
    #[arg(long, env = "CAIRN_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Listen beyond this machine without encryption or without a token: anyone who reaches the port controls the cluster
    #[arg(long)]
    insecure: bool,
    /// Shortest time without a leader before an election, in milliseconds [default: 1000]
    #[arg(long, value_parser = whole::<u64>("number of milliseconds", 0..=u64::MAX))]
    election_timeout_ms: Option<u64>,
    /// Log entries kept for members that are behind; one further behind is sent a snapshot [default: 20000]
    #[arg(long, value_parser = whole::<u64>("number of entries", 1..=u64::MAX))]
    log_entries: Option<u64>,
    /// Free space below which nothing that grows is taken [default: 256Mi]
    #[arg(long, value_parser = bytes)]
    free_space_floor: Option<u64>,
    /// What keys and their history may take while this member leads: beyond that an alarm is raised, and what adds to them is refused;
    /// none for no bound. Give it to all members, at each start [default: 2Gi]
    #[arg(long, value_parser = quota)]
    keys_quota: Option<u64>,
    /// How much of the keys' past is kept while this member leads: all, so many revisions (10000), or what was so long ago (24h).
    /// Give it to all members, at each start [default: all]
    #[arg(long, value_parser = history)]
    history: Option<History>,
    /// Processors that tasks may reserve here: 2, 0.5 or 500m [default: all]
    #[arg(long, value_parser = cpu)]
    cpu: Option<u64>,
    /// Memory that tasks may reserve here: 64Mi, 2Gi [default: all]
    #[arg(long, value_parser = bytes)]
    memory: Option<u64>,
    /// Disk that tasks may reserve here [default: what is free]
    #[arg(long, value_parser = bytes)]
    disk: Option<u64>,
    /// What tasks may ask for here by name; may be given several times
    #[arg(long = "feature")]
    features: Vec<String>,
}

impl Dev {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let data_dir = match self.data_dir {
            Some(dir) => dir,
            None => default_dir()?,
        };
        let options = Options {
            listen: self.listen,
            advertise: None,
            origin: Origin::Bootstrap,
            access: Access::default(),
            certificate: None,
            insecure: false,
            election_timeout: ELECTION_TIMEOUT,
            retention: Retention::default(),
            role: node::Role::Both,
            worker: WorkerConfig::default(),
            floor: FREE_SPACE_FLOOR,
            keys_quota: KEYS_QUOTA,
            history: History::default(),
            standby: false,
            lease_reads: false,
            format_max: format::NEWEST,
        };
        let listen = options.listen.clone();
        serve(&data_dir, options, |node| {
            say!("Cairn is ready on {}; data in {}", node.address(), data_dir.display());
            let endpoints = match listen.as_str() {
                "127.0.0.1:7400" => String::new(),
                _ => format!(" --endpoints {}", node.address()),
            };
            say!("\nTry, in another terminal:");
            say!("  node run{endpoints} -- sh -c 'echo hello; sleep 1; echo bye'");
            say!("  node kv{endpoints} put greeting hello\n  node kv{endpoints} get greeting\n  node cluster{endpoints} status");
            say!("\nCtrl-C stops it.");
        })
        .await
    }
}

fn default_dir() -> Result<PathBuf, Fault> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    let base = state.or_else(home);
    base.map(|base| base.join("cairn/dev"))
        .ok_or_else(|| Fault::new("there is no home directory to keep data in; choose a place with --data-dir"))
}

impl Start {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let (data_dir, role, options) = self.resolve().map_err(Failure::usage)?;
        serve(&data_dir, options, |node| {
            let identity = node.identity();
            let what = if role == Role::Worker { "worker" } else { "member" };
            say!("{what} {} of cluster {} is ready on {}", identity.id, identity.cluster.hex(), node.address());
        })
        .await
    }

    /// Where the data is, and what is asked for: on the command line, else in the configuration.
    fn resolve(self) -> Result<(PathBuf, Role, Options), Fault> {
        let config = match &self.config {
            Some(path) => {
                let text = os::read_text(path).context(|| format!("read {}", path.display()))?;
                Config::parse(&path.display().to_string(), &text)?
            }
            None => Config::default(),
        };
        let address = |text: Option<String>, key: &str| {
            text.map(|text| text.parse::<Address>()).transpose().context(|| format!("read {key}"))
        };
        let listen = match self.listen {
            Some(listen) => listen,
            None => address(config.listen, "listen")?.unwrap_or("127.0.0.1:7400".parse().expect("an address")),
        };
        let advertise = match self.advertise {
            Some(advertise) => Some(advertise),
            None => address(config.advertise, "advertise")?,
        };
        let mut join = self.join;
        if join.is_empty() && !self.bootstrap {
            for text in config.join.unwrap_or_default() {
                join.push(text.parse().context(|| "read join".into())?);
            }
        }
        let origin = match (self.bootstrap || config.bootstrap == Some(true), join.is_empty()) {
            (true, true) => Origin::Bootstrap,
            (false, false) => Origin::Join(join),
            (false, true) => Origin::Existing,
            (true, false) => return Err(Fault::new("bootstrap and join exclude each other")),
        };
        let data_dir = self.data_dir.or(config.data_dir).ok_or_else(|| {
            Fault::new("no data directory; say where to keep data with --data-dir, or data_dir in the configuration")
        })?;
        let timeout = self.election_timeout_ms.or(config.election_timeout_ms).map(Duration::from_millis);
        let capacity = [
            self.cpu.or(Amount::read("cpu", config.cpu.as_ref(), cpu)?),
            self.memory.or(Amount::read("memory", config.memory.as_ref(), bytes)?),
            self.disk.or(Amount::read("disk", config.disk.as_ref(), bytes)?),
        ];
        let floor =
            self.free_space_floor.or(Amount::read("free_space_floor", config.free_space_floor.as_ref(), bytes)?);
        let keys_quota = self.keys_quota.or(Amount::read("keys_quota", config.keys_quota.as_ref(), quota)?);
        let standby = self.standby || config.standby == Some(true);
        let lease_reads = self.lease_reads || config.lease_reads == Some(true);
        let past = self.history.or(Amount::read("history", config.history.as_ref(), history)?);
        let features = if self.features.is_empty() { config.features.unwrap_or_default() } else { self.features };
        check_features(&features).map_err(|reject| Fault::new(reject.to_string()))?;
        let role = self.role.or(config.role).unwrap_or(Role::Both);
        let log_entries = self.log_entries.or(config.log_entries);
        let format_max = self.format_max.or(config.format_max);
        match role {
            Role::Server if capacity.iter().any(Option::is_some) || !features.is_empty() => {
                let text = "a node with the role of a server runs no tasks: leave out cpu, memory, disk and features, or give it \
                            the role both";
                return Err(Fault::new(text));
            }
            Role::Server | Role::Both if standby && !matches!(origin, Origin::Join(_)) => {
                return Err(Fault::new("who stands by joins a cluster: give join, or leave out standby"));
            }
            Role::Worker if standby => {
                return Err(Fault::new("a node with the role of a worker never votes: leave out standby"));
            }
            Role::Worker if lease_reads => {
                return Err(Fault::new("a node with the role of a worker never leads: leave out lease_reads"));
            }
            Role::Worker if origin == Origin::Bootstrap => {
                let text = "a node with the role of a worker keeps no state and founds no cluster: start it with --join and the \
                            address of a member";
                return Err(Fault::new(text));
            }
            Role::Worker
                if log_entries.is_some()
                    || timeout.is_some()
                    || floor.is_some()
                    || keys_quota.is_some()
                    || past.is_some()
                    || format_max.is_some() =>
            {
                let text = "a node with the role of a worker keeps no state: leave out log_entries, election_timeout_ms, \
                            free_space_floor, keys_quota, history and format_max";
                return Err(Fault::new(text));
            }
            Role::Server | Role::Worker | Role::Both => {}
        }
        let log_entries = log_entries.unwrap_or(LOG_ENTRIES_KEPT);
        if log_entries == 0 {
            return Err(Fault::new("log_entries: 0; a log keeps one entry at least"));
        }
        let access = Access {
            tls_ca: self.access.tls_ca.or(config.tls_ca),
            token_file: self.access.token_file.or(config.token_file),
        };
        let certificate = match (self.tls_cert.or(config.tls_cert), self.tls_key.or(config.tls_key)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(Fault::new("a certificate needs its key: give tls_cert and tls_key, or neither")),
        };
        if certificate.is_some() != access.tls_ca.is_some() {
            let text = "members show certificates to each other: give tls_ca, tls_cert and tls_key, or none of them";
            return Err(Fault::new(text));
        }
        let options = Options {
            access,
            certificate,
            retention: Retention { entries: log_entries, ..Retention::default() },
            role: role.into(),
            worker: WorkerConfig { capacity, features },
            floor: floor.unwrap_or(FREE_SPACE_FLOOR),
            keys_quota: keys_quota.unwrap_or(KEYS_QUOTA),
            history: past.unwrap_or_default(),
            standby,
            lease_reads,
            format_max: format_max.unwrap_or(format::NEWEST),
            listen,
            advertise,
            origin,
            insecure: self.insecure || config.insecure == Some(true),
            election_timeout: timeout.unwrap_or(ELECTION_TIMEOUT),
        };
        Ok((data_dir, role, options))
    }
}

struct Options {
    listen: Address,
    advertise: Option<Address>,
    origin: Origin,
    access: Access,
    /// The certificate it shows, and its key.
    certificate: Option<(PathBuf, PathBuf)>,
    insecure: bool,
    election_timeout: Duration,
    retention: Retention,
    role: node::Role,
    worker: WorkerConfig,
    floor: u64,
    keys_quota: u64,
    history: History,
    standby: bool,
    lease_reads: bool,
    format_max: u32,
}

/// Runs a node until the first signal stops it in order; a second one ends the process at once.
async fn serve(data_dir: &Path, options: Options, announce: impl FnOnce(&Node)) -> Result<(), Failure> {
    os::start_logging();
    os::raise_file_limit();
    check_exposure(&options).map_err(Failure::usage)?;
    let certificate = options.certificate.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    let mut io = options.access.node_io(data_dir, certificate)?;
    if options.role != node::Role::Server {
        io.launcher = Some(Arc::new(os::shims(data_dir)?));
    }
    let clock = io.clock.clone();
    let is_worker = options.role == node::Role::Worker;
    let mut builder = NodeBuilder::new(io, options.listen)
        .origin(options.origin)
        .election_timeout(options.election_timeout)
        .log_kept(options.retention)
        .free_space_floor(options.floor)
        .keys_quota(options.keys_quota)
        .history(options.history)
        .standby(options.standby)
        .lease_reads(options.lease_reads)
        .newest_format(options.format_max)
        .role(options.role)
        .worker(options.worker);
    if let Some(advertise) = options.advertise {
        builder = builder.advertise(advertise);
    }
    let signal = || async { os::stop_signal().await.context(|| "wait for signals".into()) };
    let node = tokio::select! {
        biased;
        result = signal() => return result.map_err(Failure::from),
        node = builder.start() => node?,
    };
    let id = node.identity().id;
    let mut removed = false;
    let ready = tokio::select! {
        biased;
        result = signal() => result.map(|()| false)?,
        () = node.removed() => {
            removed = true;
            false
        }
        () = node.wait_ready() => true,
    };
    if ready {
        announce(&node);
        tokio::select! {
            biased;
            result = signal() => result?,
            () = node.removed() => removed = true,
        }
    }
    match removed {
        true => eprintln!("removed from the cluster; stopping"),
        false => eprintln!("stopping; a second Ctrl-C ends it at once"),
    }
    tokio::select! {
        biased;
        result = signal() => {
            result?;
            os::exit(130)
        }
        stopped = clock.timeout(STOP_TIMEOUT, node.stop()) => {
            stopped.context(|| format!("stop in order within {STOP_TIMEOUT:?}"))?;
        }
    }
    if removed {
        let what = if is_worker { "worker" } else { "member" };
        return Err(Fault::new(format!(
            "{what} {id} was removed from the cluster for ever; to take this machine in again, start it with an empty \
             data directory and --join"
        ))
        .into());
    }
    eprintln!("stopped");
    Ok(())
}

/// Who can reach a node can have it run anything: beyond this machine that needs both a secret and a secret way.
fn check_exposure(options: &Options) -> Result<(), Fault> {
    let Options { listen, advertise, access, .. } = options;
    let missing = match (&access.tls_ca, &access.token_file) {
        (None, None) => "connections are not encrypted, and no token is asked for",
        (None, Some(_)) => "connections are not encrypted",
        (Some(_), None) => "no token is asked for",
        (Some(_), Some(_)) => return Ok(()),
    };
    let exposed = [Some(listen), advertise.as_ref()].into_iter().flatten().find(|address| !address.is_loopback());
    match exposed {
        Some(address) if !options.insecure => Err(Fault::new(format!(
            "{address} can be reached from other machines, and {missing}: anyone there could control this node. Make \
             certificates and a token with `node credentials` for `node start`, use a loopback address, or say --insecure \
             if the network is yours alone"
        ))),
        _ => Ok(()),
    }
}

//! Three members as processes.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cairn::proto::etcdserverpb::RangeRequest;
use cairn::proto::etcdserverpb::cluster_client::ClusterClient;
use cairn::proto::etcdserverpb::kv_client::KvClient;
use cairn::proto::etcdserverpb::{Member, MemberListRequest};
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(120);

/// A process that is killed when dropped.
pub struct Process {
    command: Command,
    child: Child,
}

impl Process {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { command, child }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three members.
pub struct Cluster {
    /// Whose.
    pub name: &'static str,
    /// Where they answer clients.
    pub endpoints: Vec<String>,
    processes: Vec<Process>,
}

/// Starts one of our members, the founder if it is to join nobody.
pub fn member(dir: &Path, listen: &str, join: Option<&str>, lease_reads: bool) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    command.args(["start", "--listen", listen, "--keys-quota", "8Gi", "--role", "server", "--data-dir"]).arg(dir);
    match join {
        None => command.arg("--bootstrap"),
        Some(address) => command.args(["--join", address]),
    };
    if lease_reads {
        command.arg("--lease-reads");
    }
    Process::start(command)
}

/// So many addresses that nobody listens on.
pub fn free(count: usize) -> Vec<String> {
    // All at once, else the same may come twice.
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

fn url(address: &str) -> String {
    format!("http://{address}")
}

impl Cluster {
    /// Of etcd.
    pub async fn etcd(dir: &Path) -> Self {
        let free = free(6);
        let member = |number: usize| [format!("e{number}"), free[number].clone(), free[number + 3].clone()];
        let members: Vec<[String; 3]> = (0..3).map(member).collect();
        let list: Vec<String> = members.iter().map(|[name, _, peer]| format!("{name}={}", url(peer))).collect();
        let start = |[name, client, peer]: &[String; 3]| {
            let mut command = Command::new("etcd");
            command.args(["--name", name, "--data-dir"]).arg(dir.join(name));
            command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
            command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
            command.args(["--initial-cluster", &list.join(","), "--quota-backend-bytes", "8589934592"]);
            Process::start(command)
        };
        let processes = members.iter().map(start).collect();
        let endpoints = members.into_iter().map(|[_, client, _]| client).collect();
        let cluster = Self { name: "etcd", endpoints, processes };
        cluster.ready().await;
        cluster
    }

    /// Of ours.
    pub async fn cairn(dir: &Path, lease_reads: bool) -> Self {
        let mut cluster = Self { name: "cairn", endpoints: free(3), processes: Vec::new() };
        for number in 0..3 {
            let first = (number > 0).then(|| cluster.endpoints[0].clone());
            let process =
                member(&dir.join(format!("n{number}")), &cluster.endpoints[number], first.as_deref(), lease_reads);
            cluster.processes.push(process);
            until("a member answers", async || cluster.answers(number).await).await;
        }
        cluster.ready().await;
        cluster
    }

    async fn ready(&self) {
        for number in 0..3 {
            until("all members answer", async || self.answers(number).await).await;
        }
        until("all vote", async || {
            let mut client = ClusterClient::new(self.channel(0));
            let Ok(listed) = client.member_list(MemberListRequest { linearizable: true }).await else { return false };
            let votes = |member: &Member| !member.is_learner && !member.name.is_empty();
            listed.into_inner().members.iter().filter(|member| votes(member)).count() == 3
        })
        .await;
    }

    /// Whether a member answers a linearizable read.
    pub async fn answers(&self, number: usize) -> bool {
        let range = RangeRequest { key: "ready".into(), ..RangeRequest::default() };
        let mut client = KvClient::new(self.channel(number));
        tokio::time::timeout(Duration::from_secs(2), client.range(range)).await.is_ok_and(|answer| answer.is_ok())
    }

    /// A connection to a member.
    pub fn channel(&self, number: usize) -> Channel {
        Endpoint::from_shared(url(&self.endpoints[number % self.endpoints.len()])).unwrap().connect_lazy()
    }

    /// Kills a member and starts it again; how long it takes until it answers.
    pub async fn restart(&mut self, number: usize) -> Duration {
        let process = &mut self.processes[number];
        process.kill();
        let began = Instant::now();
        process.child = process.command.spawn().unwrap();
        until("a member is back", async || self.answers(number).await).await;
        began.elapsed()
    }

    /// Processor time of all members so far, in seconds.
    pub fn processor(&self) -> f64 {
        let ticks = |process: &Process| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.child.id())).unwrap_or_default();
            let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
            let field = |number: usize| after.split_whitespace().nth(number).and_then(|text| text.parse().ok());
            field(11).unwrap_or(0u64) + field(12).unwrap_or(0)
        };
        // Ticks of a hundredth on every Linux there is.
        self.processes.iter().map(ticks).sum::<u64>() as f64 / 100.0
    }

    /// Bytes of memory that all members hold.
    pub fn memory(&self) -> u64 {
        let resident = |process: &Process| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        self.processes.iter().map(resident).sum::<u64>() << 10
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

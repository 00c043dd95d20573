//! What a node counts of itself, by name. No seam: counting in memory touches nothing outside, and each node has its own,
//! so that nodes that share a process do not mix.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

/// A value that goes up and down.
pub type Level = Gauge<i64, std::sync::atomic::AtomicI64>;
/// A value that only goes up.
pub type Count = Counter<u64, AtomicU64>;

/// How long things took.
#[derive(Clone, Debug)]
pub struct Times(Histogram);

impl Times {
    /// From a tenth of a millisecond to about 13 seconds.
    fn new() -> Self {
        Self(Histogram::new(exponential_buckets(0.0001, 2.0, 18)))
    }

    /// Notes one.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// All that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The member's term.
    pub term: Level,
    /// 1 while the member leads.
    pub leads: Level,
    /// The last index known to be committed.
    pub commit_index: Level,
    /// The last index that the state has applied.
    pub applied_index: Level,
    /// The first index that the log still holds.
    pub first_index: Level,
    /// How often the member has come to know another leader.
    pub leader_changes: Count,
    /// Entries written to the log.
    pub log_entries: Count,
    /// Durable writes of the log, each with one sync.
    pub log_writes: Times,
    /// Raft messages to members that were dropped because too many waited.
    pub messages_dropped: Count,
    /// Snapshots made for members that are behind.
    pub snapshots_taken: Count,
    /// Snapshots that the member went over to.
    pub snapshots_installed: Count,
    /// Commands of clients answered here as leader, from proposal to applied.
    pub commands: Times,
    /// Commands refused because too much waits or too little space is left.
    pub commands_refused: Count,
    /// Confirmed reads, from the question to the state that has the answer.
    pub reads: Times,
    /// Tasks of the cluster that wait for a worker.
    pub tasks_pending: Level,
    /// Workers of the cluster whose lease lives.
    pub workers_live: Level,
    /// Sessions of clients.
    pub sessions_live: Level,
    /// Bytes that keys and their history take.
    pub keys_bytes: Level,
    /// Alarms that are raised.
    pub alarms: Level,
    /// Bytes free where the data lies.
    pub free_bytes: Level,
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("cairn");
        registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let r = &mut registry;
        Arc::new(Self {
            term: add(r, "raft_term", "The member's term"),
            leads: add(r, "raft_leads", "1 while the member leads"),
            commit_index: add(r, "raft_commit_index", "The last index known to be committed"),
            applied_index: add(r, "raft_applied_index", "The last index that the state has applied"),
            first_index: add(r, "raft_first_index", "The first index that the log still holds"),
            tasks_pending: add(r, "tasks_pending", "Tasks of the cluster that wait for a worker"),
            workers_live: add(r, "workers_live", "Workers of the cluster whose lease lives"),
            sessions_live: add(r, "sessions_live", "Sessions of clients"),
            keys_bytes: add(r, "keys_bytes", "Bytes that keys and their history take"),
            alarms: add(r, "alarms", "Alarms that are raised"),
            free_bytes: add(r, "disk_free_bytes", "Bytes free where the data lies"),
            leader_changes: add(r, "raft_leader_changes", "How often the member came to know another leader"),
            log_entries: add(r, "log_entries", "Entries written to the log"),
            messages_dropped: add(r, "raft_messages_dropped", "Messages to members dropped because too many waited"),
            snapshots_taken: add(r, "snapshots_taken", "Snapshots made for members that are behind"),
            snapshots_installed: add(r, "snapshots_installed", "Snapshots that the member went over to"),
            commands_refused: add(r, "commands_refused", "Commands refused for want of room"),
            log_writes: add_times(r, "log_write", "Durable writes of the log, each with one sync"),
            commands: add_times(r, "command", "Commands answered as leader, from proposal to applied"),
            reads: add_times(r, "read_barrier", "Confirmed reads"),
            registry,
        })
    }

    /// All of it as text in the OpenMetrics format, which Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn add_times(registry: &mut Registry, name: &str, help: &str) -> Times {
    let times = Times::new();
    registry.register_with_unit(name, help, Unit::Seconds, times.0.clone());
    times
}

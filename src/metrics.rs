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
use prometheus_client::registry::{Registry, Unit};

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
    /// Bytes free where the data lies.
    pub free_bytes: Level,
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("cairn");
        registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let mut level = |name: &str, help: &str| {
            let level = Level::default();
            registry.register(name, help, level.clone());
            level
        };
        let term = level("raft_term", "The member's term");
        let leads = level("raft_leads", "1 while the member leads");
        let commit_index = level("raft_commit_index", "The last index known to be committed");
        let applied_index = level("raft_applied_index", "The last index that the state has applied");
        let first_index = level("raft_first_index", "The first index that the log still holds");
        let tasks_pending = level("tasks_pending", "Tasks of the cluster that wait for a worker");
        let workers_live = level("workers_live", "Workers of the cluster whose lease lives");
        let sessions_live = level("sessions_live", "Sessions of clients");
        let free_bytes = level("disk_free_bytes", "Bytes free where the data lies");
        let mut count = |name: &str, help: &str| {
            let count = Count::default();
            registry.register(name, help, count.clone());
            count
        };
        let leader_changes = count("raft_leader_changes", "How often the member came to know another leader");
        let log_entries = count("log_entries", "Entries written to the log");
        let messages_dropped = count("raft_messages_dropped", "Messages to members dropped because too many waited");
        let snapshots_taken = count("snapshots_taken", "Snapshots made for members that are behind");
        let snapshots_installed = count("snapshots_installed", "Snapshots that the member went over to");
        let commands_refused = count("commands_refused", "Commands refused for want of room");
        let mut times = |name: &str, help: &str| {
            let times = Times::new();
            registry.register_with_unit(name, help, Unit::Seconds, times.0.clone());
            times
        };
        let log_writes = times("log_write", "Durable writes of the log, each with one sync");
        let commands = times("command", "Commands answered as leader, from proposal to applied");
        let reads = times("read_barrier", "Confirmed reads");
        Arc::new(Self {
            registry,
            term,
            leads,
            commit_index,
            applied_index,
            first_index,
            leader_changes,
            log_entries,
            log_writes,
            messages_dropped,
            snapshots_taken,
            snapshots_installed,
            commands,
            commands_refused,
            reads,
            tasks_pending,
            workers_live,
            sessions_live,
            free_bytes,
        })
    }

    /// All of it as text in the OpenMetrics format, which Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

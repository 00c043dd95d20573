//! `node bench`: load on a cluster, and how far that is from the disk below.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::output;
use super::units::whole;
use super::{Connection, Failure, Output};
use crate::client::{Client, ClientError};
use crate::error::{Context, Fault};
use crate::io::Clock;
use crate::os;
use crate::time::Monotonic;

/// Durable writes that are timed for the floor.
const SYNCS: usize = 200;

/// What to measure.
#[derive(Args)]
pub struct Load {
    /// What each client does, one after another
    operation: Operation,
    /// Clients at once
    #[arg(long, default_value_t = 1, value_parser = whole::<u32>("number of clients", 1..=10_000))]
    clients: u32,
    /// Connections they share; each has a session of its own
    #[arg(long, default_value_t = 8, value_parser = whole::<u32>("number of connections", 1..=1_000))]
    connections: u32,
    /// For how many seconds
    #[arg(long, default_value_t = 5, value_parser = whole::<u64>("number of seconds", 1..=3_600))]
    seconds: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 256, value_parser = whole::<u32>("number of bytes", 1..=1_000_000))]
    value_bytes: u32,
    /// Where to time the disk itself; choose the disk of the nodes
    #[arg(long, default_value = ".")]
    disk: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Operation {
    /// Durable writes to 10,000 keys
    Put,
    /// Linearizable reads of them
    Get,
}

#[derive(Default)]
struct Tally {
    latencies: Vec<Duration>,
    failures: u64,
    last_failure: Option<ClientError>,
}

impl Load {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let sync = os::time_syncs(&self.disk, SYNCS)
            .context(|| format!("time the disk under {}", self.disk.display()))
            .map(|mut times| percentile(&mut times, 50))?;
        let (io, login) = (connection.access.client_io()?, connection.login()?);
        let connect = || connection.connect(io.clone(), login.as_ref());
        let shared: Vec<Client> = (0..self.connections.min(self.clients)).map(|_| connect()).collect();
        // Sessions are opened before the clock runs, and a cluster that cannot be reached is said at once.
        for client in &shared {
            client.put(b"bench", b"", None).await?;
        }
        let tally = Arc::new(Mutex::new(Tally::default()));
        let until = io.clock.now() + Duration::from_secs(self.seconds);
        let (done, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
        let tasks: Vec<_> = (0..self.clients)
            .map(|number| {
                let client = shared[number as usize % shared.len()].clone();
                let (operation, value) = (self.operation, vec![b'x'; self.value_bytes as usize]);
                let (clock, tally, done) = (io.clock.clone(), tally.clone(), done.clone());
                let work = async move {
                    let own = load(&*clock, &client, operation, u64::from(number), &value, until).await;
                    let mut all = tally.lock().expect("no code panics while it holds the tally");
                    all.latencies.extend(own.latencies);
                    all.failures += own.failures;
                    all.last_failure = own.last_failure.or(all.last_failure.take());
                    drop(done);
                };
                io.spawn.spawn("bench client", Box::pin(work))
            })
            .collect();
        drop(done);
        all_done.recv().await;
        drop(tasks);
        let tally = std::mem::take(&mut *tally.lock().expect("no code panics while it holds the tally"));
        self.report(connection.output, tally, sync)
    }

    fn report(&self, as_what: Output, mut tally: Tally, sync: Duration) -> Result<(), Failure> {
        let times = &mut tally.latencies;
        if times.is_empty() {
            let why = tally.last_failure.map_or("there was no time".into(), |error| error.to_string());
            return Err(Fault::new(format!("no operation succeeded: {why}")).into());
        }
        let rate = times.len() as f64 / self.seconds as f64;
        let (p50, p99) = (percentile(times, 50), percentile(times, 99));
        let millis = |span: Duration| span.as_secs_f64() * 1_000.0;
        let ratio = p50.as_secs_f64() / sync.as_secs_f64();
        match as_what {
            Output::Json => output::json(&json!({
                "clients": self.clients, "per_second": rate, "p50_ms": millis(p50), "p99_ms": millis(p99),
                "failures": tally.failures, "disk_sync_p50_ms": millis(sync), "p50_to_disk_sync": ratio,
            })),
            _ => {
                let row = vec![
                    self.clients.to_string(),
                    format!("{rate:.0}"),
                    format!("{:.2} ms", millis(p50)),
                    format!("{:.2} ms", millis(p99)),
                    tally.failures.to_string(),
                    format!("{:.2} ms", millis(sync)),
                    format!("{ratio:.1}"),
                ];
                output::table(
                    as_what,
                    &["CLIENTS", "PER SECOND", "P50", "P99", "FAILED", "DISK SYNC P50", "P50 / SYNC"],
                    &[row],
                );
            }
        }
        if let Some(error) = tally.last_failure {
            eprintln!("the last failure: {error}");
        }
        Ok(())
    }
}

async fn load(
    clock: &dyn Clock,
    client: &Client,
    operation: Operation,
    number: u64,
    value: &[u8],
    until: Monotonic,
) -> Tally {
    let mut tally = Tally::default();
    let mut count = 0;
    loop {
        let began = clock.now();
        if began >= until {
            return tally;
        }
        count += 1;
        let key = format!("bench/{:04}", (number * 7_919 + count * 104_729) % 10_000);
        let result = match operation {
            Operation::Put => client.put(key.as_bytes(), value, None).await.map(drop),
            Operation::Get => client.get(key.as_bytes()).await.map(drop),
        };
        match result {
            Ok(()) => tally.latencies.push(clock.now().since(began)),
            Err(error) => {
                tally.failures += 1;
                tally.last_failure = Some(error);
            }
        }
    }
}

/// The value below which `percent` of the values lie. Sorts them.
fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    values[(values.len() - 1) * percent / 100]
}

//! What clients do, over etcd's protocol.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn::proto::etcdserverpb::kv_client::KvClient;
use cairn::proto::etcdserverpb::lease_client::LeaseClient;
use cairn::proto::etcdserverpb::request_op::Request;
use cairn::proto::etcdserverpb::watch_client::WatchClient;
use cairn::proto::etcdserverpb::watch_request::RequestUnion;
use cairn::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tonic::codegen::tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::cluster::Cluster;

const KEYS: usize = 10_000;
/// Bytes of each value.
pub const VALUE_BYTES: usize = 256;
/// Connections that clients share, at most.
const CONNECTIONS: usize = 48;
/// Clients that write while others watch.
const WRITERS: usize = 8;
/// Operations of a transaction that loads keys.
const BATCH: usize = 100;

/// What to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sets keys.
    Put,
    /// Reads keys, as of now.
    Get,
    /// Reads keys of whichever member is asked.
    GetSerializable,
    /// Sets a key with every fifth operation, else reads one.
    Mixed,
    /// Is told of what a few set; operations are events.
    Watch,
    /// Keeps a lease alive.
    KeepAlive,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 6] = [Self::Put, Self::Get, Self::GetSerializable, Self::Mixed, Self::Watch, Self::KeepAlive];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::GetSerializable => "get-serializable",
            Self::Mixed => "mixed",
            Self::Watch => "watch",
            Self::KeepAlive => "keep-alive",
        }
    }
}

/// What came of a turn.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Operations a second.
    pub rate: f64,
    /// How long one takes.
    pub p50: Duration,
    /// The longest of 99 in 100.
    pub p99: Duration,
    /// Processor time of the servers for one, in seconds.
    pub cost: f64,
    /// How many failed.
    pub failures: usize,
}

impl Measured {
    /// The turn whose rate is in the middle.
    pub fn median(mut turns: Vec<Self>) -> Self {
        turns.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        turns[turns.len() / 2].clone()
    }
}

#[derive(Default)]
struct Tally {
    times: Vec<Duration>,
    failures: usize,
}

/// One of the keys.
pub fn key(number: usize) -> Bytes {
    format!("bench/{:05}", number % KEYS).into()
}

fn value() -> Bytes {
    vec![b'x'; VALUE_BYTES].into()
}

/// Has all keys there that are read.
pub async fn prepare(cluster: &Cluster, kind: Kind) {
    if !matches!(kind, Kind::Watch | Kind::KeepAlive) {
        fill(cluster, KEYS, key).await;
    }
}

/// Sets keys, many in a transaction.
async fn fill(cluster: &Cluster, keys: usize, key: fn(usize) -> Bytes) {
    let mut under_way = JoinSet::new();
    for first in (0..keys).step_by(BATCH) {
        if under_way.len() >= 16 {
            under_way.join_next().await.unwrap().unwrap();
        }
        let put = |number| {
            let put = PutRequest { key: key(number), value: value(), ..PutRequest::default() };
            RequestOp { request: Some(Request::RequestPut(put)) }
        };
        let success = (first..keys.min(first + BATCH)).map(put).collect();
        let mut client = KvClient::new(cluster.channel(first / BATCH));
        under_way.spawn(async move {
            client.txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
        });
    }
    while let Some(done) = under_way.join_next().await {
        done.unwrap();
    }
}

/// Has so many clients work for so long.
pub async fn run(cluster: &Cluster, kind: Kind, clients: usize, seconds: u64) -> Measured {
    let channels: Vec<Channel> = (0..clients.min(CONNECTIONS)).map(|number| cluster.channel(number)).collect();
    let tally = Rc::new(RefCell::new(Tally::default()));
    let local = LocalSet::new();
    let (took, spent) = local
        .run_until(async {
            let (mut tasks, origin) = (JoinSet::new(), Instant::now());
            if kind == Kind::Watch {
                watch(&channels, clients, origin, &tally).await;
            }
            let (began, before) = (Instant::now(), cluster.processor());
            let until = began + Duration::from_secs(seconds);
            let workers = if kind == Kind::Watch { WRITERS } else { clients };
            for number in 0..workers {
                let channel = channels[number % channels.len()].clone();
                let tally = tally.clone();
                tasks.spawn_local(async move {
                    match kind {
                        Kind::KeepAlive => keep_alive(channel, until, &tally).await,
                        Kind::Watch => write_watched(channel, until, origin, &tally).await,
                        _ => work(channel, kind, number, until, &tally).await,
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
            (began.elapsed(), cluster.processor() - before)
        })
        .await;
    let mut tally = tally.take();
    tally.times.sort_unstable();
    let at = |percent: usize| tally.times.get(tally.times.len() * percent / 100).copied().unwrap_or_default();
    let done = tally.times.len() as f64;
    let (p50, p99, failures) = (at(50), at(99), tally.failures);
    Measured { rate: done / took.as_secs_f64(), p50, p99, cost: spent / done, failures }
}

impl Tally {
    fn note<T>(&mut self, began: Instant, answer: &Result<T, Status>) {
        match answer {
            Ok(_) => self.times.push(began.elapsed()),
            Err(_) => self.failures += 1,
        }
    }
}

async fn work(channel: Channel, kind: Kind, number: usize, until: Instant, tally: &RefCell<Tally>) {
    let mut client = KvClient::new(channel);
    let mut count = 0;
    loop {
        let began = Instant::now();
        if began >= until {
            return;
        }
        count += 1;
        let key = key(number * 7_919 + count * 104_729);
        let puts = kind == Kind::Put || kind == Kind::Mixed && count.is_multiple_of(5);
        if puts {
            let put = PutRequest { key, value: value(), ..PutRequest::default() };
            let answer = client.put(put).await;
            tally.borrow_mut().note(began, &answer);
        } else {
            let serializable = kind == Kind::GetSerializable;
            let answer = client.range(RangeRequest { key, serializable, ..RangeRequest::default() }).await;
            tally.borrow_mut().note(began, &answer);
        }
    }
}

async fn keep_alive(channel: Channel, until: Instant, tally: &RefCell<Tally>) {
    let mut client = LeaseClient::new(channel);
    let granted = client.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner();
    let (sender, requests) = mpsc::unbounded_channel();
    // etcd answers when the first request is there.
    sender.send(LeaseKeepAliveRequest { id: granted.id }).unwrap();
    let mut answers = client.lease_keep_alive(UnboundedReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut began = Instant::now();
    loop {
        let answer = answers.message().await;
        tally.borrow_mut().note(began, &answer);
        began = Instant::now();
        if began >= until || answer.is_err() {
            return;
        }
        let _ = sender.send(LeaseKeepAliveRequest { id: granted.id });
    }
}

/// Begins watches on a stream; gives it once all are there.
async fn watches(channel: Channel, count: usize) -> (mpsc::UnboundedSender<WatchRequest>, Streaming<WatchResponse>) {
    let (sender, requests) = mpsc::unbounded_channel();
    let create =
        WatchCreateRequest { key: "watched/".into(), range_end: "watched0".into(), ..WatchCreateRequest::default() };
    for _ in 0..count {
        sender.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create.clone())) }).unwrap();
    }
    let mut client = WatchClient::new(channel).max_decoding_message_size(64 << 20);
    let mut answers = client.watch(UnboundedReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut created = 0;
    while created < count {
        created += usize::from(answers.message().await.unwrap().unwrap().created);
    }
    (sender, answers)
}

/// Has so many watches note what they are told, as long as anyone listens to the tally.
async fn watch(channels: &[Channel], count: usize, origin: Instant, tally: &Rc<RefCell<Tally>>) {
    for (number, channel) in channels.iter().enumerate() {
        let share = count / channels.len() + usize::from(number < count % channels.len());
        let (sender, mut answers) = watches(channel.clone(), share).await;
        let tally = tally.clone();
        tokio::task::spawn_local(async move {
            while let Ok(Some(answer)) = answers.message().await {
                let now = origin.elapsed();
                let sent = answer.events.iter().filter_map(|event| {
                    let stamp = event.kv.as_ref()?.value.get(..8)?;
                    Some(Duration::from_nanos(u64::from_be_bytes(stamp.try_into().ok()?)))
                });
                tally.borrow_mut().times.extend(sent.map(|sent| now.saturating_sub(sent)));
            }
            drop(sender);
        });
    }
}

/// Sets keys that are watched, with the time in their values.
async fn write_watched(channel: Channel, until: Instant, origin: Instant, tally: &RefCell<Tally>) {
    let mut client = KvClient::new(channel);
    while Instant::now() < until {
        let mut value = vec![b'x'; VALUE_BYTES];
        value[..8].copy_from_slice(&(origin.elapsed().as_nanos() as u64).to_be_bytes());
        let put = PutRequest { key: "watched/key".into(), value: value.into(), ..PutRequest::default() };
        if client.put(put).await.is_err() {
            tally.borrow_mut().failures += 1;
        }
    }
}

/// Many keys and many watchers: how long they take, what memory, and how long a member that is killed is away.
pub async fn large(cluster: &mut Cluster, keys: usize, watchers: usize) {
    let began = Instant::now();
    fill(cluster, keys, |number| format!("large/{number:08}").into()).await;
    println!("{}: {keys} keys of {VALUE_BYTES} bytes in {:.1} s", cluster.name, began.elapsed().as_secs_f64());
    let before = cluster.memory();
    println!("{}: memory of three members {} MiB", cluster.name, before >> 20);
    let began = Instant::now();
    let mut streams = Vec::new();
    for number in 0..CONNECTIONS {
        let share = watchers / CONNECTIONS + usize::from(number < watchers % CONNECTIONS);
        streams.push(watches(cluster.channel(number), share).await);
    }
    let took = began.elapsed().as_secs_f64();
    let more = cluster.memory().saturating_sub(before) as f64 / watchers as f64;
    println!("{}: {watchers} watchers in {took:.2} s, {more:.0} bytes of memory for each", cluster.name);
    drop(streams);
    let back = cluster.restart(2).await;
    println!("{}: a member that was killed answers again after {:.2} s", cluster.name, back.as_secs_f64());
}

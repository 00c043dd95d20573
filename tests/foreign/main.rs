//! Beside etcd: the same requests, and the same command lines of its own client, to a server of etcd's and to a node, and the
//! same answers of both. Needs Debian's packages etcd-server and etcd-client, or the same programs from elsewhere; for the crate
//! etcd-client, of which nothing else is built, protobuf-compiler and libprotobuf-dev.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world
#![cfg(not(feature = "sim"))]

mod edges;
mod json;
#[path = "../kv/requests.rs"]
mod requests;
#[path = "../process/running.rs"]
#[allow(dead_code)] // shared with the other tests of processes
mod running;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use bytes::Bytes;
use cairn::proto::etcdserverpb::kv_client::KvClient;
use cairn::proto::etcdserverpb::lease_client::LeaseClient;
use cairn::proto::etcdserverpb::request_op::Request;
use cairn::proto::etcdserverpb::response_op::Response;
use cairn::proto::etcdserverpb::watch_client::WatchClient;
use cairn::proto::etcdserverpb::watch_create_request::FilterType;
use cairn::proto::etcdserverpb::*;
use cairn::proto::mvccpb::Event;
use cairn::proto::mvccpb::event::EventType;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use running::{PATIENCE, Running, text, three, until};
use tonic::Status;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Addresses that nobody listens on.
fn free<const N: usize>() -> [String; N] {
    // All at once, else the same may come twice.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}

/// A server of etcd's, killed when dropped.
struct Etcd {
    child: Child,
    address: String,
}

impl Etcd {
    fn start(dir: &Path) -> Self {
        Self::with(dir, &[])
    }

    fn with(dir: &Path, options: &[&str]) -> Self {
        let [address, peer] = free();
        let url = |address: &str| format!("http://{address}");
        let child = Command::new("etcd")
            .args(["--data-dir", dir.join("etcd").to_str().unwrap()])
            .args(["--listen-client-urls", &url(&address), "--advertise-client-urls", &url(&address)])
            .args(["--listen-peer-urls", &url(&peer), "--initial-advertise-peer-urls", &url(&peer)])
            .args(["--initial-cluster", &format!("default={}", url(&peer))])
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed");
        let server = Self { child, address };
        until("etcd serves", || etcdctl(&server.address, &["endpoint", "health"]).status.success());
        server
    }
}

/// A server of etcd's, and a node, each alone.
fn both(dir: &Path) -> (Etcd, Running) {
    (Etcd::start(dir), Running::member(dir, "n1", "127.0.0.1:0", &["--bootstrap"]))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs etcd's own client to its end.
fn etcdctl(endpoints: &str, args: &[&str]) -> Output {
    fed(endpoints, args, "")
}

fn fed(endpoints: &str, args: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", endpoints, "--command-timeout", "20s"]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("etcdctl is installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[derive(Clone)]
struct Clients {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
}

fn connect(address: &str) -> Clients {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    Clients { kv: KvClient::new(channel.clone()), lease: LeaseClient::new(channel) }
}

/// What both are asked.
#[derive(Clone, Debug)]
enum Asked {
    Alone(Request),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    KeepAlive(LeaseKeepAliveRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases,
}

/// What they answered.
#[derive(Clone, Debug, PartialEq)]
enum Answered {
    Keys(Response),
    /// The revision, lease, time and the time it was granted for, and the keys in some order.
    Lease(i64, i64, i64, i64, Vec<Bytes>),
}

/// Also what makes no sense, or not now.
fn asked() -> impl Strategy<Value = Asked> {
    let request = |operation: RequestOp| operation.request.unwrap();
    let txn = requests::txn_of(requests::operation().boxed()).prop_map(Request::RequestTxn);
    let spoilt = (requests::operation(), 0u8..8).prop_map(move |(operation, how)| spoil(request(operation), how));
    let many = (100usize..140).prop_map(|count| {
        let get = |i: usize| RangeRequest { key: format!("many{i}").into(), ..RangeRequest::default() };
        let success = (0..count).map(|i| RequestOp { request: Some(Request::RequestRange(get(i))) }).collect();
        Request::RequestTxn(TxnRequest { success, ..TxnRequest::default() })
    });
    prop_oneof![
        8 => requests::operation().prop_map(move |operation| Asked::Alone(request(operation))),
        8 => txn.prop_map(Asked::Alone),
        3 => spoilt.prop_map(Asked::Alone),
        1 => many.prop_map(Asked::Alone),
        1 => (-1i64..400).prop_map(|revision| Asked::Compact(CompactionRequest { revision, physical: revision % 2 == 0 })),
        3 => (requests::lease(), prop_oneof![9 => 1_000i64..2_000, 1 => Just(9_000_000_001)])
            .prop_map(|(id, ttl)| Asked::Grant(LeaseGrantRequest { id, ttl })),
        1 => requests::lease().prop_map(|id| Asked::Revoke(LeaseRevokeRequest { id })),
        1 => requests::lease().prop_map(|id| Asked::KeepAlive(LeaseKeepAliveRequest { id })),
        2 => (requests::lease(), any::<bool>())
            .prop_map(|(id, keys)| Asked::TimeToLive(LeaseTimeToLiveRequest { id, keys })),
        1 => Just(Asked::Leases),
    ]
}

fn spoil(request: Request, how: u8) -> Request {
    match request {
        Request::RequestPut(put) => Request::RequestPut(match how {
            0 | 1 => PutRequest { key: Bytes::new(), ..put },
            2 | 3 => PutRequest { lease: 99, ..put },
            4 => PutRequest { value: Bytes::from_static(b"v"), ignore_value: true, ..put },
            5 => PutRequest { lease: 99, ignore_lease: true, ..put },
            _ => PutRequest { key: Bytes::from_static(b"nothing"), ignore_value: true, value: Bytes::new(), ..put },
        }),
        Request::RequestRange(range) => Request::RequestRange(match how {
            // An order that there is not is refused from version 3.5 on.
            0..4 => RangeRequest { key: Bytes::new(), ..range },
            4 => RangeRequest { revision: i64::MAX, ..range },
            5 => RangeRequest { revision: -1, ..range },
            _ => RangeRequest { limit: -1, ..range },
        }),
        Request::RequestDeleteRange(delete) => {
            Request::RequestDeleteRange(DeleteRangeRequest { key: Bytes::new(), ..delete })
        }
        Request::RequestTxn(txn) => Request::RequestTxn(TxnRequest {
            success: [txn.success, vec![RequestOp { request: None }]].concat(),
            ..txn
        }),
    }
}

/// Whether a transaction might remove a key and then ask for its value to be kept: etcd's server dies of that.
fn is_deadly(asked: &Asked) -> bool {
    fn any(txn: &TxnRequest, is: fn(&Request) -> bool) -> bool {
        txn.success.iter().chain(&txn.failure).filter_map(|operation| operation.request.as_ref()).any(|request| {
            match request {
                Request::RequestTxn(txn) => any(txn, is),
                request => is(request),
            }
        })
    }
    let Asked::Alone(Request::RequestTxn(txn)) = asked else { return false };
    let keeps = any(txn, |request| matches!(request, Request::RequestPut(put) if put.ignore_value || put.ignore_lease));
    keeps && any(txn, |request| matches!(request, Request::RequestDeleteRange(_)))
}

async fn ask(Clients { kv: client, lease }: &mut Clients, asked: Asked) -> Result<Answered, (tonic::Code, String)> {
    let said = |status: Status| (status.code(), status.message().to_owned());
    let at = |header: Option<ResponseHeader>| header.unwrap().revision;
    let mut answer = match asked {
        Asked::Grant(grant) => {
            let reply = lease.lease_grant(grant).await.map_err(said)?.into_inner();
            return Ok(Answered::Lease(at(reply.header), reply.id, reply.ttl, 0, Vec::new()));
        }
        Asked::Revoke(revoke) => {
            let reply = lease.lease_revoke(revoke).await.map_err(said)?.into_inner();
            return Ok(Answered::Lease(at(reply.header), 0, 0, 0, Vec::new()));
        }
        Asked::KeepAlive(keep) => {
            let (asks, outgoing) = tokio::sync::mpsc::channel(1);
            asks.send(keep).await.unwrap();
            let mut answers = lease.lease_keep_alive(ReceiverStream::new(outgoing)).await.map_err(said)?.into_inner();
            let reply = answers.message().await.map_err(said)?.expect("each message is answered");
            return Ok(Answered::Lease(at(reply.header), reply.id, reply.ttl, 0, Vec::new()));
        }
        Asked::TimeToLive(asked) => {
            let mut reply = lease.lease_time_to_live(asked).await.map_err(said)?.into_inner();
            reply.keys.sort();
            // Seconds go by while the other is asked.
            assert!(
                reply.ttl <= reply.granted_ttl && reply.granted_ttl - reply.ttl < 60 || reply.ttl == -1,
                "{reply:?}"
            );
            return Ok(Answered::Lease(at(reply.header), reply.id, reply.ttl.min(0), reply.granted_ttl, reply.keys));
        }
        Asked::Leases => {
            let reply = lease.lease_leases(LeaseLeasesRequest {}).await.map_err(said)?.into_inner();
            let leases = reply.leases.iter().map(|lease| format!("{}", lease.id).into());
            let mut leases: Vec<Bytes> = leases.collect();
            leases.sort();
            return Ok(Answered::Lease(at(reply.header), 0, 0, 0, leases));
        }
        Asked::Alone(Request::RequestRange(range)) => {
            client.range(range).await.map_err(said).map(|reply| Response::ResponseRange(reply.into_inner()))?
        }
        Asked::Alone(Request::RequestPut(put)) => {
            client.put(put).await.map_err(said).map(|reply| Response::ResponsePut(reply.into_inner()))?
        }
        Asked::Alone(Request::RequestDeleteRange(delete)) => {
            let reply = client.delete_range(delete).await.map_err(said)?;
            Response::ResponseDeleteRange(reply.into_inner())
        }
        Asked::Alone(Request::RequestTxn(txn)) => {
            client.txn(txn).await.map_err(said).map(|reply| Response::ResponseTxn(reply.into_inner()))?
        }
        Asked::Compact(compact) => {
            let reply = client.compact(compact).await.map_err(said)?.into_inner();
            Response::ResponseDeleteRange(DeleteRangeResponse { header: reply.header, ..Default::default() })
        }
    };
    anonymous(&mut answer, true);
    Ok(Answered::Keys(answer))
}

/// Leaves out who answered. Inner answers are of the transaction's revision, whatever they say of it; inner transactions say nothing.
fn anonymous(answer: &mut Response, outer: bool) {
    let is_txn = matches!(answer, Response::ResponseTxn(_));
    let header = match answer {
        Response::ResponseRange(reply) => &mut reply.header,
        Response::ResponsePut(reply) => &mut reply.header,
        Response::ResponseDeleteRange(reply) => &mut reply.header,
        Response::ResponseTxn(reply) => {
            let inner = reply.responses.iter_mut().filter_map(|inner| inner.response.as_mut());
            inner.for_each(|inner| anonymous(inner, false));
            &mut reply.header
        }
    };
    let revision = header.as_ref().map_or(0, |header| header.revision);
    *header = (outer || is_txn).then_some(ResponseHeader { revision, ..ResponseHeader::default() });
}

/// Thousands of requests of all kinds, sensible and not, one after the other: both answer the same, to the letter.
#[test]
fn answers_are_those_of_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let runtime = runtime();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    runtime.block_on(async {
        let (mut theirs, mut ours) = (connect(&etcd.address), connect(&node.address));
        let mut kinds = [0usize; 2];
        for number in 0..4_000 {
            let asked = asked().new_tree(&mut runner).unwrap().current();
            if is_deadly(&asked) {
                continue;
            }
            let expected = ask(&mut theirs, asked.clone()).await;
            let found = ask(&mut ours, asked.clone()).await;
            assert_eq!(found, expected, "request {number}: {asked:?}");
            kinds[usize::from(expected.is_ok())] += 1;
        }
        assert!(kinds.iter().all(|count| *count > 400), "refused and answered: {kinds:?}");
    });
}

/// What a watch was told, whatever came in which message.
#[derive(Debug, Default, PartialEq)]
struct Story {
    /// Whether it was created, and what was said when it was canceled.
    said: Vec<(bool, bool, i64, String)>,
    events: Vec<Event>,
}

/// Asks for all of these watches on one stream, and takes what comes until each that is not canceled was told that the key `end`
/// was removed.
async fn watch(address: &str, creates: &[WatchCreateRequest]) -> BTreeMap<i64, Story> {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let (asks, outgoing) = tokio::sync::mpsc::channel(creates.len());
    for create in creates {
        let request_union = Some(watch_request::RequestUnion::CreateRequest(create.clone()));
        asks.send(WatchRequest { request_union }).await.unwrap();
    }
    let outgoing = ReceiverStream::new(outgoing);
    let mut answers = WatchClient::new(channel).watch(outgoing).await.unwrap().into_inner();
    let mut stories: BTreeMap<i64, Story> = BTreeMap::new();
    let is_told = |story: &Story| {
        let ended = story.events.last().is_some_and(|event| event.kv.as_ref().unwrap().key == "end");
        let canceled = story.said.iter().any(|(_, canceled, ..)| *canceled);
        canceled || ended && story.events.last().unwrap().r#type() == EventType::Delete
    };
    let mut created = 0;
    while created < creates.len() || !stories.values().all(is_told) {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
        let answer = answer.unwrap_or_else(|_| {
            panic!(
                "{address} tells nothing more: {:?}",
                stories
                    .iter()
                    .map(|(id, story)| (id, &story.said, story.events.len(), is_told(story)))
                    .collect::<Vec<_>>()
            )
        });
        let answer = answer.unwrap().expect("a stream goes on");
        created += usize::from(answer.created);
        let story = stories.entry(answer.watch_id).or_default();
        if answer.created || answer.canceled {
            story.said.push((answer.created, answer.canceled, answer.compact_revision, answer.cancel_reason));
        }
        story.events.extend(answer.events);
    }
    stories
}

/// How a watch ends that wants its member to know a leader.
async fn ended(address: &str) -> (tonic::Code, String) {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let (asks, outgoing) = tokio::sync::mpsc::channel(1);
    let create = WatchCreateRequest { key: "k".into(), ..WatchCreateRequest::default() };
    let request_union = Some(watch_request::RequestUnion::CreateRequest(create));
    asks.send(WatchRequest { request_union }).await.unwrap();
    let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let told = async {
        let mut answers = WatchClient::new(channel).watch(request).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<(), Status>(())
    };
    let status = tokio::time::timeout(PATIENCE, told).await.expect("it ends").unwrap_err();
    (status.code(), status.message().to_owned())
}

/// Watches from all over the history, with and without what was before, filtered, too late, and such that make no sense.
#[test]
fn watches_tell_what_those_of_etcd_tell() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let runtime = runtime();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[8; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    runtime.block_on(async {
        let (mut theirs, mut ours) = (connect(&etcd.address), connect(&node.address));
        for _ in 0..900 {
            let asked = asked().new_tree(&mut runner).unwrap().current();
            if !is_deadly(&asked) && !matches!(asked, Asked::Compact(_)) {
                assert_eq!(ask(&mut ours, asked.clone()).await, ask(&mut theirs, asked).await);
            }
        }
        let compact = || Asked::Compact(CompactionRequest { revision: 40, physical: true });
        assert_eq!(ask(&mut ours, compact()).await, ask(&mut theirs, compact()).await);
        let end = |clients: Clients| async move {
            let mut client = clients.kv;
            let key = Bytes::from_static(b"end");
            client.put(PutRequest { key: key.clone(), ..PutRequest::default() }).await.unwrap();
            client.delete_range(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }).await.unwrap();
        };
        end(theirs.clone()).await;
        end(ours.clone()).await;
        let all = WatchCreateRequest {
            key: Bytes::from_static(b"a"),
            range_end: Bytes::from_static(b"f"),
            start_revision: 41,
            ..WatchCreateRequest::default()
        };
        let filters = |filter: FilterType| vec![filter.into()];
        let creates = [
            all.clone(),
            WatchCreateRequest { prev_kv: true, ..all.clone() },
            WatchCreateRequest {
                range_end: Bytes::from_static(&[0]),
                start_revision: 60,
                prev_kv: true,
                ..all.clone()
            },
            WatchCreateRequest { filters: filters(FilterType::Noput), ..all.clone() },
            WatchCreateRequest { filters: filters(FilterType::Nodelete), watch_id: 77, ..all.clone() },
            WatchCreateRequest { key: Bytes::new(), range_end: Bytes::from_static(&[0]), ..all.clone() },
            WatchCreateRequest { start_revision: 39, ..all.clone() },
            WatchCreateRequest { start_revision: -5, ..all.clone() },
            // From 40 on etcd 3.4 does not tell of a removal at 40 itself; later ones do, and so does a node.
            WatchCreateRequest { start_revision: 45, ..all.clone() },
            WatchCreateRequest { watch_id: 77, ..all.clone() },
            WatchCreateRequest { range_end: Bytes::from_static(b"A"), ..all.clone() },
            WatchCreateRequest { start_revision: 1, watch_id: 78, fragment: true, ..all.clone() },
        ];
        // One that is filtered sees the end without what the others see of it.
        let creates = creates.map(|create| match create.filters[..] {
            [filter] if filter == i32::from(FilterType::Nodelete) => WatchCreateRequest { start_revision: 1, ..create },
            _ => create,
        });
        let (ours, theirs) = (watch(&node.address, &creates).await, watch(&etcd.address, &creates).await);
        assert!(ours.keys().eq(theirs.keys()));
        for (id, expected) in theirs {
            let found = &ours[&id];
            assert_eq!(found.said, expected.said, "watch {id}");
            let both = found.events.iter().zip(&expected.events);
            both.for_each(|(found, expected)| assert_eq!(found, expected, "watch {id}"));
            assert_eq!(found.events.len(), expected.events.len(), "watch {id}");
        }
    });
}

/// What etcd's own client prints, and says when it fails, is the same.
#[test]
fn its_own_client_prints_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let lines: &[(&[&str], &str)] = &[
        (&["put", "a", "1"], ""),
        (&["put", "a", "2", "--prev-kv"], ""),
        (&["put", "b"], "from standard input"),
        (&["put", "b/1", "x"], ""),
        (&["put", "b/2", "y"], ""),
        (&["put", "nothing", "--ignore-value"], ""),
        (&["put", "a", "--ignore-value"], ""),
        (&["put", "a", "3", "--lease=1234"], ""),
        (&["put", "", "x"], ""),
        (&["get", "a"], ""),
        (&["get", "a", "--rev=2"], ""),
        (&["get", "a", "--rev=99"], ""),
        (&["get", "a", "--print-value-only"], ""),
        (&["get", "a", "--consistency=s"], ""),
        (&["get", "b", "--prefix"], ""),
        (&["get", "b", "b/2"], ""),
        (&["get", "b/1", "--from-key"], ""),
        (&["get", "", "--prefix", "--keys-only"], ""),
        (&["get", "", "--prefix", "--limit=2"], ""),
        (&["get", "", "--prefix", "--sort-by=MODIFY", "--order=DESCEND"], ""),
        (&["get", "", "--prefix", "--sort-by=VALUE"], ""),
        (&["get", "absent"], ""),
        (&["txn"], "mod(\"b\") > \"1\"\nvalue(\"a\") = \"2\"\n\nput c 1\nget a\ndel b/1\n\nget b\n\n"),
        (&["txn"], "create(\"c\") = \"0\"\n\nput c 2\n\nget c\nget b --prefix\n\n"),
        (&["txn"], "version(\"absent\") = \"0\"\n\nput d 1\nput d 2\n\n\n"),
        (&["del", "b/2", "--prev-kv"], ""),
        (&["del", "b", "--prefix"], ""),
        (&["del", "absent"], ""),
        (&["compaction", "5"], ""),
        (&["compaction", "5"], ""),
        (&["compaction", "999"], ""),
        (&["compaction", "7", "--physical"], ""),
        (&["get", "a", "--rev=6"], ""),
        (&["get", "a", "--rev=7"], ""),
        (&["get", "", "--prefix"], ""),
        (&["lease", "revoke", "abc"], ""),
        (&["lease", "timetolive", "abc"], ""),
        (&["lease", "keep-alive", "--once", "abc"], ""),
        (&["lease", "list"], ""),
        (&["lease", "grant", "9000000001"], ""),
        (&["lease", "grant", "x"], ""),
    ];
    for (args, input) in lines {
        let [theirs, ours] = [&etcd.address, &node.address].map(|address| {
            let output = fed(address, args, input);
            // Above the last line are warnings with addresses and times.
            let error = text(&output.stderr).lines().last().unwrap_or_default().to_owned();
            (output.status.code(), text(&output.stdout), error)
        });
        assert_eq!(ours, theirs, "etcdctl {args:?}");
    }
}

/// A lease that nobody keeps alive ends, and not too soon; one that is kept alive does not, also when the leader dies.
#[test]
fn its_own_client_has_leases() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let all = nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(",");
    let grant = |ttl: &str| {
        let granted = etcdctl(&all, &["lease", "grant", ttl]);
        let said = text(&granted.stdout);
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(
            words[2..],
            ["granted", &format!("with TTL({ttl}s)")[..]].join(" ").split(' ').collect::<Vec<_>>()[..]
        );
        words[1].to_owned()
    };
    let [kept, short] = ["4", "3"].map(grant);
    let granted = std::time::Instant::now();
    for (key, lease) in [("kept", &kept), ("short", &short)] {
        let put = etcdctl(&all, &["put", key, "v", &format!("--lease={lease}")]);
        assert_eq!(text(&put.stdout), "OK\n", "{}", text(&put.stderr));
    }
    let mut keeper = Command::new("etcdctl");
    keeper.env("ETCDCTL_API", "3").args(["--endpoints", &all, "lease", "keep-alive", &kept]);
    let mut keeper = keeper.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let left = etcdctl(&all, &["lease", "timetolive", &short, "--keys"]);
    assert!(text(&left.stdout).contains("attached keys([short])"), "{}", text(&left.stdout));
    let there = |key: &str| !etcdctl(&all, &["get", key, "--keys-only"]).stdout.is_empty();
    until("the lease that nobody keeps alive is over", || !there("short"));
    assert!(granted.elapsed() >= std::time::Duration::from_secs(3), "it was over after {:?}", granted.elapsed());
    let leader = nodes[0].status()["leader"].as_u64().unwrap();
    let place = nodes.iter().position(|node| node.status()["answered_by"].as_u64() == Some(leader)).unwrap();
    nodes.remove(place).kill();
    until("a new leader takes what is written", || etcdctl(&all, &["put", "after", "it"]).status.success());
    let died = std::time::Instant::now();
    // For longer than it lasts, and than it is left alone because the term is young.
    until("time goes by", || died.elapsed() > std::time::Duration::from_secs(8));
    assert!(there("kept"), "it is kept alive");
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    until("it is not kept alive any more", || !there("kept"));
    let revoked = etcdctl(&all, &["lease", "revoke", &kept]);
    assert!(!revoked.status.success(), "it is gone");
}

/// A JSON document that etcd's own client printed.
fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

/// Many who count under a lock lose nothing; who campaigns leads when those before have gone.
#[test]
fn its_own_client_locks_and_elects() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three(dir.path());
    let all = nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(",");
    let start = |args: &[&str]| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &all]).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let count = dir.path().join("count");
    std::fs::write(&count, "0").unwrap();
    let add = format!("n=$(cat {0}); sleep 0.05; echo $((n + 1)) > {0}", count.display());
    let counters: Vec<Child> = (0..8).map(|_| start(&["lock", "count", "--", "sh", "-c", &add])).collect();
    for counter in counters {
        let output = counter.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert_eq!(std::fs::read_to_string(&count).unwrap().trim(), "8");
    let leader = || {
        let got = etcdctl(&all, &["get", "seat/", "--prefix", "--sort-by=CREATE", "--limit=1", "--print-value-only"]);
        text(&got.stdout).trim().to_owned()
    };
    let mut first = start(&["elect", "seat", "first"]);
    until("the first leads", || leader() == "first");
    let mut second = start(&["elect", "seat", "second"]);
    until("the second waits", || {
        text(&etcdctl(&all, &["get", "seat/", "--prefix", "--print-value-only"]).stdout).contains("second")
    });
    assert_eq!(leader(), "first");
    // It is gone without a word: with its lease its key goes.
    first.kill().unwrap();
    first.wait().unwrap();
    let seats = json(&etcdctl(&all, &["get", "seat/", "--prefix", "--sort-by=CREATE", "-w", "json"]));
    let lease = seats["kvs"][0]["lease"].as_i64().unwrap();
    assert!(etcdctl(&all, &["lease", "revoke", &format!("{lease:x}")]).status.success());
    until("the second leads", || leader() == "second");
    // It gives its seat back when it is asked to end.
    let asked = Command::new("kill").args(["-INT", &second.id().to_string()]).status().unwrap();
    assert!(asked.success());
    second.wait().unwrap();
    until("nobody leads", || leader().is_empty());
}

/// Members are listed, compared, asked to lead, and removed; what is there is mirrored from a server of etcd's and to one.
#[test]
fn its_own_client_sees_members_and_mirrors() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three(dir.path());
    let all = nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(",");
    for i in 0..20 {
        assert!(etcdctl(&all, &["put", &format!("from us {i}"), "x"]).status.success());
    }
    let members = json(&etcdctl(&all, &["member", "list", "-w", "json"]));
    let found: Vec<&str> =
        members["members"].as_array().unwrap().iter().map(|row| row["clientURLs"][0].as_str().unwrap()).collect();
    let expected: Vec<String> = nodes.iter().map(|node| format!("http://{}", node.address)).collect();
    assert_eq!(found, expected);
    assert!(etcdctl(&all, &["endpoint", "health", "--cluster"]).status.success());
    until("all have the same", || {
        let hashes = json(&etcdctl(&all, &["endpoint", "hashkv", "-w", "json"]));
        let hashes: Vec<String> =
            hashes.as_array().unwrap().iter().map(|row| row["HashKV"]["hash"].to_string()).collect();
        hashes.len() == 3 && hashes.iter().all(|hash| *hash == hashes[0])
    });
    let statuses = || json(&etcdctl(&all, &["endpoint", "status", "-w", "json"]));
    let leader = || statuses()[0]["Status"]["leader"].as_u64().unwrap();
    assert!(statuses().as_array().unwrap().iter().all(|row| row["Status"]["dbSize"].as_u64().unwrap() > 0));
    let to = leader() % 3 + 1;
    let moved = etcdctl(&all, &["move-leader", &format!("{to:x}")]);
    assert!(moved.status.success(), "{}", text(&moved.stderr));
    assert_eq!(leader(), to);
    // In both directions.
    let etcd = Etcd::start(dir.path());
    assert!(etcdctl(&etcd.address, &["put", "from them", "y"]).status.success());
    let mirrors = [(&nodes[0].address, &etcd.address, "from us"), (&etcd.address, &nodes[1].address, "from them")];
    for (from, to, prefix) in mirrors {
        let mut mirror = Command::new("etcdctl");
        mirror.env("ETCDCTL_API", "3").args(["--endpoints", from, "make-mirror", to, "--prefix", prefix]);
        let mut mirror = mirror.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let rows = |at: &str| text(&etcdctl(at, &["get", prefix, "--prefix"]).stdout);
        until("what was there is mirrored", || rows(from) == rows(to));
        assert!(etcdctl(from, &["put", &format!("{prefix}, later"), "z"]).status.success());
        assert!(etcdctl(from, &["del", &format!("{prefix} 3")]).status.success());
        until("what comes is mirrored", || rows(to).contains("later") && rows(from) == rows(to));
        mirror.kill().unwrap();
        mirror.wait().unwrap();
    }
    // What it saves is a backup like any other.
    let (file, new) = (dir.path().join("backup"), dir.path().join("new"));
    let (file, new) = (file.to_str().unwrap(), new.to_str().unwrap());
    let saved = etcdctl(&nodes[0].address, &["snapshot", "save", file]);
    assert!(saved.status.success(), "{}", text(&saved.stderr));
    let restored = running::run(&["snapshot", "restore", file, "--data-dir", new]);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    let rows = |at: &str| text(&etcdctl(at, &["get", "", "--prefix"]).stdout);
    let restored = Running::member(dir.path(), "new", "127.0.0.1:0", &[]);
    assert_eq!(rows(&restored.address), rows(&all));
    until("no change of members is under way", || nodes[0].status()["joint"] == false);
    let gone = statuses().as_array().unwrap().iter().find_map(|row| {
        let id = row["Status"]["header"]["member_id"].as_u64().unwrap();
        (id != leader()).then_some(id)
    });
    let removed = etcdctl(&all, &["member", "remove", &format!("{:x}", gone.unwrap())]);
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    // The removed one may still answer for a moment, but not for the others.
    until("it is not found any more", || {
        let again = etcdctl(&all, &["member", "remove", &format!("{:x}", gone.unwrap())]);
        text(&again.stderr).contains("etcdserver: member not found")
    });
    // Without a majority it gets what there is, before it gives up.
    let mut others = nodes.into_iter().zip(1..).filter(|(_, id)| Some(*id) != gone).map(|(node, _)| node);
    let (last, other) = (others.next().unwrap(), others.next().unwrap());
    other.kill();
    let saved = etcdctl(&last.address, &["--command-timeout", "4s", "snapshot", "save", file]);
    assert!(saved.status.success(), "{}", text(&saved.stderr));
}

/// When keys take more than they may, both refuse the same with the same words, and take it again once room was made.
#[test]
fn its_own_client_sees_want_of_space() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::with(dir.path(), &["--quota-backend-bytes", "1048576"]);
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap", "--keys-quota", "1Mi"]);
    let value = "x".repeat(100_000);
    let story = |at: &str| {
        let mut story = Vec::new();
        // Whose the alarm is differs.
        let anyone = |said: String| {
            said.split("memberID:").map(|part| part.trim_start_matches(char::is_numeric).to_owned()).collect()
        };
        let mut tell = |args: &[&str], input: &str| {
            let output = fed(at, args, input);
            let said: String = text(&output.stderr).lines().filter(|line| !line.starts_with('{')).collect();
            let said: Vec<String> = anyone(text(&output.stdout) + &said);
            story.push((args.join(" "), output.status.code(), said));
        };
        until("it is full", || !fed(at, &["put", "big"], &value).status.success());
        tell(&["put", "big"], &value);
        tell(&["put", "small", "x"], "");
        tell(&["alarm", "list"], "");
        tell(&["get", "small"], "");
        tell(&["del", "big"], "");
        tell(&["lease", "grant", "100"], "");
        tell(&["txn"], "mod(\"small\") = \"0\"\n\nput small x\n\n\n");
        let newest = json(&etcdctl(at, &["get", "big", "-w", "json"]))["header"]["revision"].to_string();
        assert!(etcdctl(at, &["compact", &newest, "--physical"]).status.success());
        // Of etcd's own, what was compacted takes its space until then.
        let defragmented = text(&etcdctl(at, &["defrag"]).stdout);
        assert_eq!(defragmented, format!("Finished defragmenting etcd member[{at}]\n"));
        tell(&["put", "small", "x"], "");
        tell(&["alarm", "disarm"], "");
        tell(&["alarm", "disarm"], "");
        tell(&["put", "small", "x"], "");
        tell(&["alarm", "list"], "");
        story
    };
    let (theirs, ours) = (story(&etcd.address), story(&node.address));
    assert_eq!(theirs, ours);
    assert!(format!("{ours:?}").contains("database space exceeded"));
}

/// What it measures it can measure here, too, and it cleans up. (How fast it should be is not asked: that is for benchmarks.)
#[test]
fn its_own_client_checks_performance() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three(dir.path());
    let all = nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(",");
    let said = text(&etcdctl(&all, &["check", "perf", "--auto-compact", "--auto-defrag"]).stdout);
    for words in ["Throughput", "Slowest request", "Stddev"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // It compacts at the revision of its removal: until the next compaction there is yet to be told what was removed.
    until("what it wrote is gone", || nodes[0].status()["keys_bytes"].as_u64().unwrap() < 4 * 1024 * 1024);
}

/// What programs written with the crate etcd-client are told is the same, also by three members.
#[test]
fn the_crate_etcd_client_is_told_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path());
    let nodes = three(dir.path());
    let target = Path::new(env!("CARGO_BIN_EXE_node")).ancestors().nth(2).unwrap();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/etcd-client/Cargo.toml");
    let story = |endpoints: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["run", "--quiet", "--locked", "--manifest-path"]).arg(&manifest);
        command.arg("--target-dir").arg(target).arg("--").args(endpoints);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    let theirs = story(&[&etcd.address]);
    let ours = story(&nodes.iter().map(|node| &node.address[..]).collect::<Vec<_>>());
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours, theirs);
    assert!(ours.ends_with("anybody: ()\n"), "{ours}");
}

/// Users and roles are kept, and what they may not do is refused, with the words that etcd has for it.
#[test]
fn its_own_client_is_a_user() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let story = |at: &str| {
        let mut story = Vec::new();
        let mut tell = |user: &str, line: &str| {
            let login: &[&str] = if user.is_empty() { &[] } else { &["--user", user] };
            let args: Vec<&str> = login.iter().copied().chain(line.split(' ')).collect();
            let output = etcdctl(at, &args);
            let said: Vec<String> =
                text(&output.stderr).lines().filter(|line| !line.starts_with('{')).map(String::from).collect();
            story.push((args.join(" "), output.status.code(), text(&output.stdout), said));
        };
        let root = "root:toor";
        for line in [
            "user add root:toor",
            "user add root:toor",
            "user add other:pw",
            "user grant-role other root",
            "role list",
            "auth enable",
            "put free 1",
            "user delete other --user root:toor",
        ] {
            tell("", line);
        }
        for line in
            ["auth enable", "put web/1 v", "put other v", "role add web", "role add web", "role list", "user list"]
        {
            tell(root, line);
        }
        tell("root:wrong", "get web/1");
        tell("nobody:toor", "get web/1");
        for line in [
            "role grant-permission web read web/ --prefix",
            "role grant-permission web readwrite mine",
            "role grant-permission nothing read x",
            "role get web",
            "role get nothing",
            "user add alice:a",
            "user add bob:b",
            "user grant-role alice web",
            "user grant-role alice nothing",
            "user grant-role nobody web",
            "user get alice",
            "user get nobody",
            "user delete nobody",
            "user revoke-role bob web",
            "user revoke-role root root",
            "user delete root",
            "role delete root",
            "role revoke-permission web other",
        ] {
            tell(root, line);
        }
        let alice = "alice:a";
        for line in [
            "get web/1",
            "get web/ --prefix",
            "get other",
            "get web/ --from-key",
            "put web/1 w",
            "put mine 1",
            "put mine 2 --prev-kv",
            "del mine",
            "del web/1",
            "user get alice",
            "user get root",
            "role get web",
            "user list",
            "role add mine",
            "auth disable",
        ] {
            tell(alice, line);
        }
        tell("bob:b", "get web/1");
        // What is taken from them they have no more.
        tell(root, "role revoke-permission web mine");
        tell(alice, "put mine 3");
        tell(root, "role delete web");
        tell(alice, "get web/1");
        tell(root, "user get alice");
        tell(root, "user delete bob");
        tell("bob:b", "get web/1");
        tell(root, "auth disable");
        tell("", "get web/1");
        tell(alice, "get other");
        story
    };
    let (theirs, ours) = (story(&etcd.address), story(&node.address));
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(theirs, ours);
    }
    assert!(format!("{ours:?}").contains("etcdserver: permission denied"), "{ours:#?}");
}

/// Members are announced, join, stand by and are promoted, with the words that etcd has for it.
#[test]
fn its_own_client_adds_members() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three(dir.path());
    let all = nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(",");
    let [fourth, fifth, other] = free();
    let refused = |args: &[&str], words: &str| {
        let output = etcdctl(&all, args);
        assert!(!output.status.success() && text(&output.stderr).contains(words), "{}", text(&output.stderr));
    };
    let url = |address: &str| format!("--peer-urls=http://{address}");
    let added = etcdctl(&all, &["member", "add", "n4", &url(&fourth)]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    assert!(text(&added.stdout).contains(&format!("n4=http://{fourth}")), "{}", text(&added.stdout));
    refused(&["member", "add", "n4", &url(&fourth)], "etcdserver: Peer URLs already exists");
    refused(&["member", "add", "n4", &url(&nodes[0].address)], "etcdserver: Peer URLs already exists");
    refused(&["member", "promote", "1"], "etcdserver: can only promote a learner member");
    refused(&["member", "promote", "99"], "etcdserver: member not found");
    refused(&["member", "update", "99", &url(&fifth)], "etcdserver: member not found");
    let row = |id: u64| {
        let members = json(&etcdctl(&all, &["member", "list", "-w", "json"]));
        members["members"].as_array().unwrap().iter().find(|row| row["ID"] == id).cloned().unwrap_or_default()
    };
    assert_eq!(row(4)["name"], serde_json::Value::Null, "it has not started");
    let learner = etcdctl(&all, &["member", "add", "n5", "--learner", &url(&other)]);
    assert!(learner.status.success(), "{}", text(&learner.stderr));
    // It will be elsewhere.
    let moved = etcdctl(&all, &["member", "update", "5", &url(&fifth)]);
    assert!(moved.status.success(), "{}", text(&moved.stderr));
    assert_eq!(row(5)["peerURLs"][0], format!("http://{fifth}"));
    refused(&["member", "promote", "5"], "etcdserver: can only promote a learner member which is in sync with leader");
    let join = ["--join", &nodes[0].address.clone()];
    let _fifth = Running::member(dir.path(), "n5", &fifth, &join);
    assert_eq!((&row(5)["name"], &row(5)["isLearner"]), (&"member-5".into(), &true.into()));
    let _fourth = Running::member(dir.path(), "n4", &fourth, &join);
    until("the learner has caught up", || etcdctl(&all, &["member", "promote", "5"]).status.success());
    until("both vote", || [4, 5].into_iter().all(|id| row(id)["name"].is_string() && row(id)["isLearner"].is_null()));
    refused(&["member", "update", "4", &url(&other)], "member 4 says itself where it is");
}

/// Every member serves; when the leader's machine dies, the client goes on with the others, and nothing is lost.
#[test]
fn its_own_client_goes_on_when_the_leader_dies() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    for (i, address) in addresses.iter().enumerate() {
        let put = etcdctl(address, &["put", &format!("k{i}"), &format!("v{i}")]);
        assert_eq!(text(&put.stdout), "OK\n", "{}", text(&put.stderr));
    }
    let leader = nodes[0].status()["leader"].as_u64().unwrap();
    let place = nodes.iter().position(|node| node.status()["answered_by"].as_u64() == Some(leader)).unwrap();
    let to_nobody = etcdctl(&nodes[place].address, &["move-leader", "0"]);
    assert!(text(&to_nobody.stderr).contains("bad leader transferee"), "{}", text(&to_nobody.stdout));
    nodes.remove(place).kill();
    // It asks once; the member waits until somebody leads.
    let put = etcdctl(&nodes[0].address, &["put", "after", "the leader died"]);
    assert_eq!(text(&put.stdout), "OK\n", "{}", text(&put.stderr));
    for node in &nodes {
        let got = etcdctl(&node.address, &["get", "", "--prefix", "--print-value-only"]);
        assert_eq!(text(&got.stdout), "the leader died\nv0\nv1\nv2\n", "{}", text(&got.stderr));
    }
    // One alone leads nobody: who wants a leader is told so.
    nodes.remove(0).kill();
    let runtime = runtime();
    let no_leader = (tonic::Code::Unavailable, "etcdserver: no leader".to_owned());
    assert_eq!(runtime.block_on(ended(&nodes[0].address)), no_leader);
    // Even for what needs none.
    let range = RangeRequest { key: "after".into(), serializable: true, ..RangeRequest::default() };
    let mut request = tonic::Request::new(range.clone());
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    runtime.block_on(async {
        let mut kv = connect(&nodes[0].address).kv;
        let refused = kv.range(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message().to_owned()), no_leader);
        assert_eq!(kv.range(range).await.unwrap().into_inner().kvs.len(), 1);
    });
}

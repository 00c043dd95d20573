//! What etcdctl asks for seldom or never, and other clients may: the same codes, texts and headers.

use std::io::{Read, Write};
use std::net::TcpStream;

use cairn::proto::etcdserverpb::auth_client::AuthClient;
use cairn::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use cairn::proto::v3electionpb::election_client::ElectionClient;
use cairn::proto::v3electionpb::{CampaignRequest, LeaderKey, ProclaimRequest, ResignRequest};
use cairn::proto::v3lockpb::lock_client::LockClient;
use cairn::proto::v3lockpb::{LockRequest, UnlockRequest};

use super::*;

/// An answer as far as both give the same: the revision of its header, or its code and its text.
type Said = Result<i64, (tonic::Code, String)>;

fn said<T>(answer: Result<tonic::Response<T>, Status>, header: fn(T) -> Option<ResponseHeader>) -> Said {
    match answer {
        Ok(reply) => Ok(header(reply.into_inner()).unwrap_or_default().revision),
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

/// Locks and elections of who has no lease, does not lead, or says too little.
async fn lines(channel: Channel) -> Vec<Said> {
    let (mut locks, mut elections) = (LockClient::new(channel.clone()), ElectionClient::new(channel.clone()));
    let lease = LeaseClient::new(channel).lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }).await.unwrap();
    let lease = lease.into_inner().id;
    let lock = |lease| LockRequest { name: "lock".into(), lease };
    let campaign = |lease| CampaignRequest { name: "election".into(), lease, value: "me".into() };
    let leader = |rev| LeaderKey { name: "election".into(), key: "election/7".into(), rev, lease };
    vec![
        said(locks.lock(lock(404)).await, |reply| reply.header),
        said(locks.lock(lock(lease)).await, |reply| reply.header),
        said(locks.unlock(UnlockRequest::default()).await, |reply| reply.header),
        said(locks.unlock(UnlockRequest { key: "lock/7".into() }).await, |reply| reply.header),
        said(elections.campaign(campaign(404)).await, |reply| reply.header),
        said(elections.campaign(campaign(lease)).await, |reply| reply.header),
        said(elections.proclaim(ProclaimRequest::default()).await, |reply| reply.header),
        said(elections.proclaim(ProclaimRequest { leader: Some(leader(1)), value: "you".into() }).await, |reply| {
            reply.header
        }),
        said(elections.resign(ResignRequest::default()).await, |reply| reply.header),
        said(elections.resign(ResignRequest { leader: Some(leader(1)) }).await, |reply| reply.header),
    ]
}

/// What one whose password is changed, or whose token was never good, is told on a stream of watches.
async fn watched_by_users(channel: Channel) -> Vec<(i64, bool, bool, String)> {
    use tonic::metadata::MetadataValue;
    let mut auth = AuthClient::new(channel.clone());
    let (root, secret) = ("root".to_owned(), "secret".to_owned());
    let add = AuthUserAddRequest { name: root.clone(), password: secret.clone(), ..AuthUserAddRequest::default() };
    auth.user_add(add).await.unwrap();
    auth.role_add(AuthRoleAddRequest { name: root.clone() }).await.unwrap();
    auth.user_grant_role(AuthUserGrantRoleRequest { user: root.clone(), role: root.clone() }).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
    let log_in = AuthenticateRequest { name: root.clone(), password: secret };
    let token = auth.authenticate(log_in).await.unwrap().into_inner().token;
    let mut told = Vec::new();
    for shown in ["never.good", &token] {
        let shown: MetadataValue<_> = shown.parse().unwrap();
        let (asks, outgoing) = tokio::sync::mpsc::channel(1);
        let create = || {
            let create = WatchCreateRequest { key: "k".into(), ..WatchCreateRequest::default() };
            asks.send(WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) })
        };
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert("token", shown.clone());
        create().await.unwrap();
        let mut answers = WatchClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
        let mut next = async || {
            let told = tokio::time::timeout(PATIENCE, answers.message()).await.expect("it is told").unwrap().unwrap();
            (told.watch_id, told.created, told.canceled, told.cancel_reason)
        };
        told.push(next().await);
        if told.len() == 2 {
            let password = "another".to_owned();
            let change = AuthUserChangePasswordRequest { name: root.clone(), password, ..Default::default() };
            let mut change = tonic::Request::new(change);
            change.metadata_mut().insert("token", shown);
            auth.user_change_password(change).await.unwrap();
            create().await.unwrap();
            // A node ends the watch that there was, too; etcd's server lets it be.
            let (mut answer, refused) = (next().await, (-1, true));
            while (answer.0, answer.1) != refused {
                answer = next().await;
            }
            told.push(answer);
        }
    }
    told
}

/// Values that are too large, each by more than the one before.
async fn large(channel: Channel) -> Vec<Said> {
    let mut answers = Vec::new();
    for bytes in [1_600_000, 3_000_000] {
        let put = PutRequest { key: "large".into(), value: vec![b'x'; bytes].into(), ..PutRequest::default() };
        answers.push(said(KvClient::new(channel.clone()).put(put).await, |reply| reply.header));
    }
    answers
}

/// What a watch tells whose client asks for nothing more.
async fn listened(channel: Channel) -> Vec<Bytes> {
    let create = WatchCreateRequest { key: "heard".into(), ..WatchCreateRequest::default() };
    let request_union = Some(watch_request::RequestUnion::CreateRequest(create));
    let asks = tonic::codegen::tokio_stream::once(WatchRequest { request_union });
    let mut answers = WatchClient::new(channel.clone()).watch(asks).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    let mut values = Vec::new();
    for value in ["one", "two"] {
        let put = PutRequest { key: "heard".into(), value: value.into(), ..PutRequest::default() };
        KvClient::new(channel.clone()).put(put).await.unwrap();
        let told = tokio::time::timeout(PATIENCE, answers.message()).await.expect("it is told of").unwrap();
        values.extend(
            told.expect("the stream goes on").events.into_iter().filter_map(|event| event.kv).map(|kv| kv.value),
        );
    }
    values
}

#[test]
fn what_is_odd_is_refused_as_etcd_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    runtime().block_on(async {
        let channel = |address: &str| Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let (ours, theirs) = (channel(&node.address), channel(&etcd.address));
        let hash = |at: Channel| async { MaintenanceClient::new(at).hash_kv(HashKvRequest::default()).await.unwrap() };
        let compacted = |reply: tonic::Response<HashKvResponse>| reply.into_inner().compact_revision;
        assert_eq!(compacted(hash(ours.clone()).await), compacted(hash(theirs.clone()).await));
        assert_eq!(lines(ours.clone()).await, lines(theirs.clone()).await);
        assert_eq!(large(ours.clone()).await, large(theirs.clone()).await);
        assert_eq!(listened(ours.clone()).await, listened(theirs.clone()).await);
        // What it is a hash of is each server's own business; that it is one of what there is, is not.
        let mut maintenance = MaintenanceClient::new(ours.clone());
        let before = maintenance.hash(HashRequest {}).await.unwrap().into_inner().hash;
        assert_eq!(maintenance.hash(HashRequest {}).await.unwrap().into_inner().hash, before);
        KvClient::new(ours.clone()).put(PutRequest { key: "more".into(), ..PutRequest::default() }).await.unwrap();
        assert_ne!(maintenance.hash(HashRequest {}).await.unwrap().into_inner().hash, before);
        assert_eq!(watched_by_users(ours).await, watched_by_users(theirs).await);
    });
}

/// The status and the body of what is got.
fn got(address: &str, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn who_keeps_watch_over_http_is_told_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path());
    let mut members = three(dir.path());
    let first = members.remove(0);
    assert_eq!(got(&first.address, "/health"), got(&etcd.address, "/health"));
    assert_eq!(got(&first.address, "/version").0, got(&etcd.address, "/version").0);
    assert_eq!(got(&first.address, "/nowhere").0, got(&etcd.address, "/nowhere").0);
    // Alone it cannot read, and says so.
    drop(members);
    until("the others are missed", || got(&first.address, "/health") == (503, r#"{"health":"false"}"#.into()));
}

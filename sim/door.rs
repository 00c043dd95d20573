//! The two ways in which clients reach the keys: our own client, and the protocol of etcd's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use tonic::{Code, Response, Status};

use crate::client::{Client, ClientError};
use crate::error::{AuthReject, KvReject, Reject};
use crate::ids::{Address, LeaseId};
use crate::io::{Channel, ChannelError, Io};
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcdserverpb::{
    CompactionRequest, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use crate::proto::etcdserverpb::{
    CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest, PutRequest, PutResponse,
};
use crate::proto::v3lockpb::LockRequest;
use crate::proto::v3lockpb::lock_client::LockClient;
use crate::sim::history::Seen;

/// How a client reaches the keys.
pub enum Door {
    /// With sessions and retries.
    Own(Client),
    /// One request, one attempt: what etcd's clients may do safely.
    Etcd(Etcd),
}

/// The protocol of etcd's clients.
pub struct Etcd {
    io: Io,
    channels: Vec<Channel>,
    /// The member that is asked next.
    turn: AtomicUsize,
    timeout: Duration,
    /// Who looks at changes that were answered.
    witness: Option<Arc<dyn Witness>>,
}

/// Who looks at changes that were answered, and at what the same member reads right afterwards, for its own view alone.
pub trait Witness: Send + Sync {
    /// How often members have started so far.
    fn starts(&self) -> u64;
    /// Looks at both.
    fn look(&self, changed: &ResponseHeader, read: &ResponseHeader);
}

/// How long a look at what was changed may take: it counts to the change, whose time others are ordered by.
const WITNESS_PATIENCE: Duration = Duration::from_millis(200);
/// Keys in a page of what is read of several.
const PAGE_KEYS: i64 = 2;

type Call<T> = BoxFuture<'static, Result<Response<T>, Status>>;

impl Etcd {
    /// A client of these members that gives each so long to answer.
    pub fn new(io: Io, members: &[Address], timeout: Duration) -> Self {
        let channels = members.iter().map(|address| io.network.connect(address)).collect();
        Self { io, channels, turn: AtomicUsize::new(0), timeout, witness: None }
    }

    /// With somebody who looks at the changes that are answered.
    pub fn witnessed(self, witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// Changes something.
    async fn change<T>(
        &self,
        header: fn(&T) -> Option<&ResponseHeader>,
        call: impl FnOnce(Channel) -> Call<T>,
    ) -> Result<T, Seen> {
        let starts = self.witness.as_ref().map(|witness| witness.starts());
        let reply = self.call(call).await?;
        if let (Some(witness), Some(changed)) = (&self.witness, header(&reply)) {
            let range = RangeRequest {
                key: vec![0].into(),
                range_end: vec![0].into(),
                count_only: true,
                serializable: true,
                ..RangeRequest::default()
            };
            let at = self.channels[self.turn.load(Ordering::Relaxed) % self.channels.len()].clone();
            let read = self.io.clock.timeout(WITNESS_PATIENCE, KvClient::new(at).range(range)).await;
            let read = read.ok().and_then(|answer| answer.ok()).map(Response::into_inner);
            // Who has started anew has yet to hear what it had.
            if let Some(RangeResponse { header: Some(read), .. }) = read
                && starts == Some(witness.starts())
            {
                witness.look(changed, &read);
            }
        }
        Ok(reply)
    }

    async fn call<T>(&self, call: impl FnOnce(Channel) -> Call<T>) -> Result<T, Seen> {
        self.call_within(self.timeout, call).await
    }

    async fn call_within<T>(&self, patience: Duration, call: impl FnOnce(Channel) -> Call<T>) -> Result<T, Seen> {
        let channel = self.channels[self.turn.load(Ordering::Relaxed) % self.channels.len()].clone();
        let seen = match self.io.clock.timeout(patience, call(channel)).await {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => told(&status),
            Err(_) => Seen::Unknown,
        };
        if matches!(seen, Seen::NotDone | Seen::Unknown) {
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        Err(seen)
    }
}

/// What an error of etcd's says of the outcome.
fn told(status: &Status) -> Seen {
    match (status.code(), status.message()) {
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted") => Seen::Compacted,
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded") => Seen::Full,
        // Locks say it by its text alone.
        (Code::PermissionDenied | Code::Unknown, "etcdserver: permission denied") => Seen::Denied,
        // No answer to anybody, see below.
        (Code::Aborted, "etcdserver: others of the entry have read too much") => Seen::Put(0),
        // The key that stands for a place in a line is gone.
        (Code::Unknown, "mutex: session is expired") => Seen::Got(None),
        (Code::Unavailable, "etcdserver: no leader")
        | (Code::ResourceExhausted, "etcdserver: too many requests")
        | (Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented, _) => Seen::NotDone,
        _ if ChannelError::is_connect(status) => Seen::NotDone,
        _ => Seen::Unknown,
    }
}

fn failed(error: ClientError) -> Seen {
    match error {
        ClientError::Rejected(Reject::Kv(KvReject::Compacted { .. })) => Seen::Compacted,
        ClientError::Rejected(Reject::Kv(KvReject::LeaseNotFound(_))) => Seen::Got(None),
        ClientError::Rejected(Reject::Kv(KvReject::NoSpace)) => Seen::Full,
        ClientError::Rejected(Reject::Auth(AuthReject::Denied)) => Seen::Denied,
        // What others read that came in the same entry is no answer to anybody.
        ClientError::Rejected(Reject::Kv(KvReject::EntryFull)) => Seen::Put(0),
        ClientError::Unavailable(_) | ClientError::Invalid(_) => Seen::NotDone,
        _ => Seen::Unknown,
    }
}

impl Door {
    /// Reads keys, several of them in pages, as far as they can be.
    pub async fn range(&self, range: RangeRequest) -> Result<RangeResponse, Seen> {
        match self {
            Self::Own(client) if !range.range_end.is_empty() => {
                let newest = range.revision == 0;
                client.range_in_pages(range, PAGE_KEYS).await.map_err(|error| match failed(error) {
                    // The newest when it was begun: it may be compacted before the last page.
                    Seen::Compacted if newest => Seen::NotDone,
                    seen => seen,
                })
            }
            Self::Own(client) => client.range(range).await.map_err(failed),
            Self::Etcd(etcd) => etcd.call(|at| Box::pin(async move { KvClient::new(at).range(range).await })).await,
        }
    }

    /// Sets a key.
    pub async fn put(&self, put: PutRequest) -> Result<PutResponse, Seen> {
        match self {
            Self::Own(client) => client.put_request(put).await.map_err(failed),
            Self::Etcd(etcd) => {
                let call = |at| -> Call<_> { Box::pin(async move { KvClient::new(at).put(put).await }) };
                etcd.change(|reply| reply.header.as_ref(), call).await
            }
        }
    }

    /// Removes keys.
    pub async fn delete(&self, delete: DeleteRangeRequest) -> Result<DeleteRangeResponse, Seen> {
        match self {
            Self::Own(client) => client.delete_range(delete).await.map_err(failed),
            Self::Etcd(etcd) => {
                let call = |at| -> Call<_> { Box::pin(async move { KvClient::new(at).delete_range(delete).await }) };
                etcd.change(|reply| reply.header.as_ref(), call).await
            }
        }
    }

    /// Carries out a transaction.
    pub async fn txn(&self, txn: TxnRequest) -> Result<TxnResponse, Seen> {
        match self {
            Self::Own(client) => client.txn(txn).await.map_err(failed),
            Self::Etcd(etcd) => {
                let call = |at| -> Call<_> { Box::pin(async move { KvClient::new(at).txn(txn).await }) };
                etcd.change(|reply| reply.header.as_ref(), call).await
            }
        }
    }

    /// Forgets what was superseded.
    pub async fn compact(&self, compact: CompactionRequest) -> Result<CompactionResponse, Seen> {
        match self {
            Self::Own(client) => client.compact(compact).await.map_err(failed),
            Self::Etcd(etcd) => etcd.call(|at| Box::pin(async move { KvClient::new(at).compact(compact).await })).await,
        }
    }

    /// Grants a lease.
    pub async fn grant(&self, grant: LeaseGrantRequest) -> Result<LeaseGrantResponse, Seen> {
        match self {
            Self::Own(client) => {
                let ttl = Duration::from_secs(grant.ttl.cast_unsigned());
                let (id, ttl) = client.grant_lease(None, ttl).await.map_err(failed)?;
                let ttl = ttl.as_secs().cast_signed();
                Ok(LeaseGrantResponse { id: id.0, ttl, ..LeaseGrantResponse::default() })
            }
            Self::Etcd(etcd) => {
                etcd.call(|at| Box::pin(async move { LeaseClient::new(at).lease_grant(grant).await })).await
            }
        }
    }

    /// Keeps a lease alive. Says for how many seconds; 0 if there is no such lease.
    pub async fn keep_alive(&self, keep: LeaseKeepAliveRequest) -> Result<u64, Seen> {
        match self {
            Self::Own(client) => match client.keep_lease_alive(LeaseId(keep.id)).await {
                Ok(ttl) => Ok(ttl.as_secs()),
                Err(ClientError::Rejected(Reject::Kv(KvReject::LeaseNotFound(_)))) => Ok(0),
                Err(error) => Err(failed(error)),
            },
            Self::Etcd(etcd) => {
                let one = |at| -> Call<LeaseKeepAliveResponse> {
                    Box::pin(async move {
                        let answers = LeaseClient::new(at).lease_keep_alive(stream::iter([keep])).await?;
                        let answer = answers.into_inner().message().await?;
                        answer.map(Response::new).ok_or_else(|| Status::unknown("the stream ended without an answer"))
                    })
                };
                Ok(etcd.call(one).await?.ttl.cast_unsigned())
            }
        }
    }

    /// Ends a lease.
    pub async fn revoke(&self, revoke: LeaseRevokeRequest) -> Result<(), Seen> {
        match self {
            Self::Own(client) => client.revoke_lease(LeaseId(revoke.id)).await.map(|_| ()).map_err(failed),
            Self::Etcd(etcd) => {
                let one = |at| -> Call<_> { Box::pin(async move { LeaseClient::new(at).lease_revoke(revoke).await }) };
                etcd.call(one).await.map(|_| ())
            }
        }
    }

    /// Waits for a lock, for so long at most; gives its key, and when that came into being. It may be told that the key is gone.
    pub async fn lock(&self, name: &str, lease: i64, patience: Duration) -> Result<(Bytes, u64), Seen> {
        match self {
            Self::Own(client) => {
                let waiting = client.wait_turn(name, LeaseId(lease), b"");
                match client.within(patience, waiting).await {
                    Some(turn) => turn.map(|turn| (turn.key, turn.token.0)).map_err(failed),
                    None => Err(Seen::Unknown),
                }
            }
            Self::Etcd(etcd) => {
                let request = LockRequest { name: Bytes::copy_from_slice(name.as_bytes()), lease };
                let one = |at| -> Call<_> { Box::pin(async move { LockClient::new(at).lock(request).await }) };
                let key = etcd.call_within(patience, one).await?.key;
                // Its own lease names the key, so that nobody else can have made it.
                let range = RangeRequest { key: key.clone(), ..RangeRequest::default() };
                let found = self.range(range).await?.kvs.into_iter().next().ok_or(Seen::Unknown)?;
                Ok((key, found.create_revision.cast_unsigned()))
            }
        }
    }

    /// Waits.
    pub async fn pause(&self, span: Duration) {
        match self {
            Self::Own(client) => client.pause(span).await,
            Self::Etcd(etcd) => etcd.io.clock.sleep(span).await,
        }
    }
}

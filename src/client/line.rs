//! Locks and elections, as a client sees them: lines, as `api/line` describes them and etcd's own clients form them, so that all
//! of them stand in the same ones.

use bytes::Bytes;

use super::{Client, ClientError, is_created_at, revision};
use crate::error::{KvReject, Reject};
use crate::ids::{LeaseId, Revision};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, WatchCreateRequest,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::mvccpb::event::EventType;
use crate::state::kv::prefix_end;

/// The first place in a line: a lock that is held, an election that is won. It lasts as long as its key does.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The key that stands for it.
    pub key: Bytes,
    /// When the key came into being: whose turn comes later has a greater one. Hand it to what is written to, and let that refuse
    /// smaller ones.
    pub token: Revision,
}

/// A line, by its name: the keys that stand in it, and the requests about them.
pub struct Line {
    prefix: Bytes,
}

/// A place that was taken.
pub struct Entered {
    /// The key that stands for it.
    pub key: Bytes,
    /// When the key came into being, which is where it stands in the line.
    pub created: Revision,
    /// Whether it did so now: it may have been there, under the same lease.
    pub is_new: bool,
}

impl Line {
    /// The line of a name.
    pub fn new(name: &[u8]) -> Self {
        Self { prefix: [name, b"/"].concat().into() }
    }

    /// All its keys.
    pub fn keys(&self) -> (Bytes, Bytes) {
        (self.prefix.clone(), prefix_end(&self.prefix))
    }

    fn key(&self, lease: LeaseId) -> Bytes {
        [&self.prefix[..], lease.to_string().as_bytes()].concat().into()
    }

    /// Takes a place under a lease, with something to say. One that was taken before under the same lease is taken over where it
    /// stands: what an earlier call that was given up still does to it then comes too late.
    pub fn enter(&self, lease: LeaseId, says: Bytes) -> TxnRequest {
        let key = self.key(lease);
        let put = PutRequest { key: key.clone(), value: says, lease: lease.0, ..PutRequest::default() };
        let put = RequestOp { request: Some(Request::RequestPut(put)) };
        let get = RangeRequest { key: key.clone(), keys_only: true, ..RangeRequest::default() };
        let get = RequestOp { request: Some(Request::RequestRange(get)) };
        TxnRequest { compare: vec![is_created_at(key, 0)], success: vec![put.clone()], failure: vec![get, put] }
    }

    /// What came of that.
    pub fn entered(&self, lease: LeaseId, reply: &TxnResponse) -> Entered {
        let found = match reply.responses.first().and_then(|response| response.response.as_ref()) {
            Some(Response::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        };
        let created = found.map(|row| Revision(row.create_revision.cast_unsigned()));
        Entered {
            key: self.key(lease),
            created: created.unwrap_or_else(|| revision(reply.header.as_ref())),
            is_new: created.is_none(),
        }
    }
}

impl Client {
    /// Enters the line of a name, with something to say, and waits for its turn. The place is under the lease, which has to be kept
    /// alive meanwhile; who gives up while it waits ends the lease.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected if the lease has ended.
    pub async fn wait_turn(&self, name: &str, lease: LeaseId, says: &[u8]) -> Result<Turn, ClientError> {
        let line = Line::new(name.as_bytes());
        let reply = self.txn(line.enter(lease, Bytes::copy_from_slice(says))).await?;
        let Entered { key, created: token, .. } = line.entered(lease, &reply);
        loop {
            let (before, seen) = self.just_before(&line, token).await?;
            let Some(before) = before else { break };
            self.gone(before.key, seen).await?;
        }
        let own = self.range(RangeRequest { key: key.clone(), ..RangeRequest::default() }).await?;
        match own.kvs.first().is_some_and(|row| row.create_revision.cast_unsigned() == token.0) {
            true => Ok(Turn { key, token }),
            false => Err(ClientError::Rejected(Reject::Kv(KvReject::LeaseNotFound(lease)))),
        }
    }

    /// Whose turn it is in the line of a name, and the revision at which that is so; linearizably.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn whose_turn(&self, name: &str) -> Result<(Option<KeyValue>, Revision), ClientError> {
        let reply = self.in_line(&Line::new(name.as_bytes()), 0, SortOrder::Ascend).await?;
        Ok((reply.kvs.into_iter().next(), revision(reply.header.as_ref())))
    }

    async fn just_before(&self, line: &Line, token: Revision) -> Result<(Option<KeyValue>, Revision), ClientError> {
        let reply = self.in_line(line, token.0.cast_signed() - 1, SortOrder::Descend).await?;
        Ok((reply.kvs.into_iter().next(), revision(reply.header.as_ref())))
    }

    /// The first by the time of entering, or the last that did so up to a revision.
    async fn in_line(&self, line: &Line, upto: i64, order: SortOrder) -> Result<RangeResponse, ClientError> {
        let (key, range_end) = line.keys();
        let mut range = RangeRequest { key, range_end, max_create_revision: upto, limit: 1, ..RangeRequest::default() };
        range.set_sort_target(SortTarget::Create);
        range.set_sort_order(order);
        self.range(range).await
    }

    /// Waits until a key that was there at a revision is removed.
    async fn gone(&self, key: Bytes, seen: Revision) -> Result<(), ClientError> {
        let start_revision = seen.0.cast_signed() + 1;
        let mut watch = self.watch(WatchCreateRequest { key, start_revision, ..WatchCreateRequest::default() });
        loop {
            match watch.next().await {
                Ok(changes) if changes.events.iter().any(|event| event.r#type() == EventType::Delete) => return Ok(()),
                Ok(_) => {}
                // Whether it was is to be looked up.
                Err(ClientError::Rejected(Reject::Kv(KvReject::Compacted { .. }))) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

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
    DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, WatchCreateRequest,
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

fn prefix(name: &str) -> Bytes {
    format!("{name}/").into()
}

impl Client {
    /// Enters the line of a name, with something to say, and waits for its turn. The place is under the lease, which has to be kept
    /// alive meanwhile; who gives up while it waits ends the lease.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected if the lease has ended.
    pub async fn wait_turn(&self, name: &str, lease: LeaseId, says: &[u8]) -> Result<Turn, ClientError> {
        let prefix = prefix(name);
        let key = Bytes::from([&prefix[..], lease.to_string().as_bytes()].concat());
        let put = PutRequest {
            key: key.clone(),
            value: Bytes::copy_from_slice(says),
            lease: lease.0,
            ..PutRequest::default()
        };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let reply = self
            .txn(TxnRequest {
                compare: vec![is_created_at(key.clone(), 0)],
                success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
                failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
            })
            .await?;
        let created = match reply.responses.into_iter().next().and_then(|response| response.response) {
            Some(Response::ResponseRange(range)) => range.kvs.first().map(|row| row.create_revision),
            _ => None,
        };
        let token = created.map_or(revision(reply.header.as_ref()), |created| Revision(created.cast_unsigned()));
        loop {
            let (before, seen) = self.just_before(&prefix, token).await?;
            let Some(before) = before else { break };
            self.gone(before.key, seen).await?;
        }
        let own = self.range(RangeRequest { key: key.clone(), ..RangeRequest::default() }).await?;
        match own.kvs.first().is_some_and(|row| row.create_revision.cast_unsigned() == token.0) {
            true => Ok(Turn { key, token }),
            false => Err(ClientError::Rejected(Reject::Kv(KvReject::LeaseNotFound(lease)))),
        }
    }

    /// Gives a turn back. False if it was over already.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn end_turn(&self, turn: &Turn) -> Result<bool, ClientError> {
        let delete = DeleteRangeRequest { key: turn.key.clone(), ..DeleteRangeRequest::default() };
        let reply = self
            .txn(TxnRequest {
                compare: vec![is_created_at(turn.key.clone(), turn.token.0.cast_signed())],
                success: vec![RequestOp { request: Some(Request::RequestDeleteRange(delete)) }],
                failure: Vec::new(),
            })
            .await?;
        Ok(reply.succeeded)
    }

    /// Whose turn it is in the line of a name, and the revision at which that is so; linearizably.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn whose_turn(&self, name: &str) -> Result<(Option<KeyValue>, Revision), ClientError> {
        let reply = self.in_line(&prefix(name), 0, SortOrder::Ascend).await?;
        Ok((reply.kvs.into_iter().next(), revision(reply.header.as_ref())))
    }

    async fn just_before(&self, prefix: &Bytes, token: Revision) -> Result<(Option<KeyValue>, Revision), ClientError> {
        let reply = self.in_line(prefix, token.0.cast_signed() - 1, SortOrder::Descend).await?;
        Ok((reply.kvs.into_iter().next(), revision(reply.header.as_ref())))
    }

    /// The first by the time of entering, or the last that did so up to a revision.
    async fn in_line(&self, prefix: &Bytes, upto: i64, order: SortOrder) -> Result<RangeResponse, ClientError> {
        let mut range = RangeRequest {
            key: prefix.clone(),
            range_end: prefix_end(prefix),
            max_create_revision: upto,
            limit: 1,
            ..RangeRequest::default()
        };
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

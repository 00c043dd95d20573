//! Keys, as a client sees them.

use bytes::Bytes;

use super::{Client, ClientError, unexpected};
use crate::error::{KvReject, Reject};
use crate::ids::Revision;
use crate::limits::RANGE_PAGE_KEYS;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::v1::{command::Kind, query_reply, query_request, reply};
use crate::state::kv;

impl Client {
    /// Reads keys, linearizably unless it asks otherwise.
    ///
    /// # Errors
    /// See [`ClientError`]; never unknown, for a read has no effect.
    pub async fn range(&self, range: RangeRequest) -> Result<RangeResponse, ClientError> {
        let serializable = range.serializable;
        match self.query_any(query_request::Kind::Range(range), serializable).await? {
            query_reply::Kind::Range(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Sets a key, exactly once.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put_request(&self, put: PutRequest) -> Result<PutResponse, ClientError> {
        match self.execute(Kind::Put(put)).await? {
            reply::Kind::Put(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes keys, exactly once.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_range(&self, delete: DeleteRangeRequest) -> Result<DeleteRangeResponse, ClientError> {
        match self.execute(Kind::DeleteRange(delete)).await? {
            reply::Kind::DeleteRange(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Carries out a transaction exactly once; one that only reads is a linearizable read.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn txn(&self, txn: TxnRequest) -> Result<TxnResponse, ClientError> {
        if kv::only_reads(&txn) {
            return match self.query(query_request::Kind::Txn(txn)).await? {
                query_reply::Kind::Txn(reply) => Ok(reply),
                other => Err(unexpected(&other)),
            };
        }
        match self.execute(Kind::Txn(txn)).await? {
            reply::Kind::Txn(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Has what was superseded before a revision forgotten.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected if the revision is compacted already or not there yet.
    pub async fn compact(&self, compact: CompactionRequest) -> Result<CompactionResponse, ClientError> {
        match self.execute(Kind::Compact(compact)).await? {
            reply::Kind::Compact(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads one key, linearizably.
    ///
    /// # Errors
    /// See [`ClientError`]; never unknown, for a read has no effect.
    pub async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, ClientError> {
        let range = RangeRequest { key: key.to_vec().into(), ..RangeRequest::default() };
        Ok(self.range(range).await?.kvs.into_iter().next())
    }

    /// Reads all keys that begin with a prefix, in their order, as of one revision.
    ///
    /// # Errors
    /// See [`range_in_pages`](Self::range_in_pages).
    pub async fn list(&self, prefix: &[u8]) -> Result<Vec<KeyValue>, ClientError> {
        let (key, range_end) = with_prefix(prefix);
        let range = RangeRequest { key, range_end, ..RangeRequest::default() };
        Ok(self.range_in_pages(range, RANGE_PAGE_KEYS).await?.kvs)
    }

    /// Reads keys in their order in pages of so many, one at least, all as of the revision of the first page: what they come to is the
    /// answer that all in one would be, with what the range's limit lets through. For what is sorted otherwise see [`range`](Self::range).
    ///
    /// If no revision is asked for, and the one that was the newest is compacted before the last page is read, it begins anew for as
    /// long as a call may take.
    ///
    /// # Errors
    /// See [`ClientError`]; never unknown. Rejected if the revision is compacted.
    pub async fn range_in_pages(&self, range: RangeRequest, page_keys: i64) -> Result<RangeResponse, ClientError> {
        let clock = &self.io.clock;
        let deadline = clock.now() + self.timeout;
        loop {
            match self.pages(range.clone(), page_keys).await {
                Err(ClientError::Rejected(Reject::Kv(KvReject::Compacted { .. })))
                    if range.revision == 0 && clock.now() < deadline => {}
                answer => return answer,
            }
        }
    }

    async fn pages(&self, mut range: RangeRequest, page_keys: i64) -> Result<RangeResponse, ClientError> {
        let limit = if range.limit > 0 { range.limit } else { i64::MAX };
        range.limit = limit.min(page_keys);
        let mut all = self.range(range.clone()).await?;
        if range.revision == 0 {
            range.revision = revision(all.header.as_ref()).0.cast_signed();
        }
        loop {
            let left = limit - i64::try_from(all.kvs.len()).unwrap_or(i64::MAX);
            let Some(last) = all.kvs.last().filter(|_| all.more && left > 0) else { return Ok(all) };
            // The next key there can be.
            range.key = [&last.key[..], &[0]].concat().into();
            range.limit = left.min(page_keys);
            let page = self.range(range.clone()).await?;
            all.kvs.extend(page.kvs);
            all.more = page.more;
        }
    }

    /// Removes all keys that begin with a prefix, exactly once. Says how many there were.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_prefix(&self, prefix: &[u8]) -> Result<u64, ClientError> {
        let (key, range_end) = with_prefix(prefix);
        Ok(self.delete_range(DeleteRangeRequest { key, range_end, prev_kv: false }).await?.deleted.cast_unsigned())
    }

    /// Sets a key; with `expected`, only if its revision is that one (0: it does not exist).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put(&self, key: &[u8], value: &[u8], expected: Option<Revision>) -> Result<Revision, ClientError> {
        let put = PutRequest { key: key.to_vec().into(), value: value.to_vec().into(), ..PutRequest::default() };
        match expected {
            None => Ok(revision(self.put_request(put).await?.header.as_ref())),
            Some(expected) => {
                let (header, _) = self.only_at(key, expected, Request::RequestPut(put)).await?;
                Ok(revision(header.as_ref()))
            }
        }
    }

    /// Removes a key, with `expected` only if its revision is that one. Says whether it existed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, key: &[u8], expected: Option<Revision>) -> Result<bool, ClientError> {
        let delete = DeleteRangeRequest { key: key.to_vec().into(), ..DeleteRangeRequest::default() };
        let Some(expected) = expected else { return Ok(self.delete_range(delete).await?.deleted > 0) };
        match self.only_at(key, expected, Request::RequestDeleteRange(delete)).await?.1 {
            Some(Response::ResponseDeleteRange(reply)) => Ok(reply.deleted > 0),
            other => Err(unexpected(&other)),
        }
    }

    /// Does something if a key's revision is the expected one.
    async fn only_at(
        &self,
        key: &[u8],
        expected: Revision,
        then: Request,
    ) -> Result<(Option<ResponseHeader>, Option<Response>), ClientError> {
        let key = Bytes::copy_from_slice(key);
        let number = i64::try_from(expected.0).map_err(|_| {
            ClientError::Invalid(format!("{expected} is no revision of a key; the greatest is {}", i64::MAX))
        })?;
        let look = RangeRequest { key: key.clone(), keys_only: true, ..RangeRequest::default() };
        let reply = self
            .txn(TxnRequest {
                compare: vec![is_at(key, number)],
                success: vec![RequestOp { request: Some(then) }],
                failure: vec![RequestOp { request: Some(Request::RequestRange(look)) }],
            })
            .await?;
        let (header, succeeded) = (reply.header, reply.succeeded);
        match (succeeded, reply.responses.into_iter().next().and_then(|ResponseOp { response }| response)) {
            (false, Some(Response::ResponseRange(found))) => {
                let actual = found.kvs.first().map_or(0, |row| row.mod_revision.cast_unsigned());
                Err(ClientError::RevisionMismatch { expected, actual: Revision(actual) })
            }
            (_, response) => Ok((header, response)),
        }
    }
}

/// All keys that begin with a prefix, as `key` and `range_end` of a request.
pub fn with_prefix(prefix: &[u8]) -> (Bytes, Bytes) {
    // No key is empty.
    let from = if prefix.is_empty() { Bytes::from_static(&[0]) } else { Bytes::copy_from_slice(prefix) };
    (from, kv::prefix_end(prefix))
}

/// The comparison that holds while a key's revision is this one; 0: while it does not exist.
pub fn is_at(key: Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Compare::default()
    }
}

/// The comparison that holds while a key is the one that came into being at this revision; 0: while it does not exist.
pub fn is_created_at(key: Bytes, revision: i64) -> Compare {
    Compare {
        target: CompareTarget::Create.into(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..is_at(key, 0)
    }
}

/// The revision of an answer.
pub fn revision(header: Option<&ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| header.revision.cast_unsigned()))
}

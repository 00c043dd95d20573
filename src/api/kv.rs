//! What etcd's clients call: the keys. Errors have etcd's codes and texts, for clients compare them.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use crate::error::{KvReject, Reject};
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use crate::proto::v1::{Command, command::Kind, reply};
use crate::shared::SharedNodeState;
use crate::state::{command, kv};
use crate::time::Monotonic;

/// The service.
pub struct KvService(pub Arc<SharedNodeState>);

/// A refusal as etcd says it.
fn rejected(reject: &Reject) -> Status {
    let Reject::Kv(reject) = reject else { return Status::invalid_argument(format!("etcdserver: {reject}")) };
    let (code, text) = match reject {
        KvReject::KeyMissing => (Code::InvalidArgument, "etcdserver: key is not provided"),
        KvReject::ValueGiven => (Code::InvalidArgument, "etcdserver: value is provided"),
        KvReject::LeaseGiven => (Code::InvalidArgument, "etcdserver: lease is provided"),
        KvReject::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
        KvReject::LeaseNotFound(_) => (Code::NotFound, "etcdserver: requested lease not found"),
        KvReject::TooManyOperations(_) | KvReject::TooDeep => {
            (Code::InvalidArgument, "etcdserver: too many operations in txn request")
        }
        KvReject::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        KvReject::InvalidSort => (Code::InvalidArgument, "etcdserver: invalid sort option"),
        KvReject::InvalidCompare => (Code::InvalidArgument, "etcdserver: invalid comparison"),
        KvReject::TooLarge(_) => (Code::InvalidArgument, "etcdserver: request is too large"),
        KvReject::Compacted { .. } => (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        KvReject::Future { .. } => (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
    };
    Status::new(code, text)
}

/// What kept a request from being carried out, as etcd says it: clients know by the text which they may safely repeat.
fn failed(status: Status) -> Status {
    let said = match status.code() {
        // Nobody leads, or whoever does has just changed: nothing was done.
        Code::Unavailable => Status::unavailable("etcdserver: no leader"),
        // The outcome is unknown.
        Code::Aborted | Code::DeadlineExceeded => Status::unavailable("etcdserver: request timed out"),
        Code::ResourceExhausted => Status::resource_exhausted("etcdserver: too many requests"),
        _ => return status,
    };
    tracing::debug!(why = status.message(), "a request about keys was not answered");
    said
}

/// What kept a read from being answered: one that nobody confirmed is one that came too late, as in etcd.
fn unread(status: Status) -> Status {
    match status.code() {
        Code::Unavailable => Status::unavailable("etcdserver: request timed out"),
        _ => failed(status),
    }
}

/// Adds to a header who answers.
pub fn sign(shared: &SharedNodeState, header: &mut Option<ResponseHeader>) {
    let header = header.get_or_insert_default();
    header.cluster_id = shared.identity.cluster.0;
    header.member_id = shared.identity.id.0;
    header.raft_term = shared.raft.status().term.0;
}

impl KvService {
    async fn execute(&self, kind: Kind, deadline: Monotonic) -> Result<reply::Kind, Status> {
        let command = Command { session: None, kind: Some(kind) };
        command::check(&command).map_err(|reject| rejected(&reject))?;
        match self.0.check_and_execute(command, deadline, false).await.map_err(failed)?.kind {
            Some(reply::Kind::Rejection(rejection)) => Err(match command::reject(&rejection) {
                Some(reject) => rejected(&reject),
                None => Status::unknown("refused for a reason that only a newer version knows"),
            }),
            Some(kind) => Ok(kind),
            None => Err(Status::unknown("an answer from a newer version")),
        }
    }
}

fn unexpected(answer: &reply::Kind) -> Status {
    Status::internal(format!("the answer is of another kind: {answer:?}"))
}

/// Whether a transaction may be answered from this member's own state: all its reads say so.
fn is_serializable(txn: &TxnRequest) -> bool {
    use crate::proto::etcdserverpb::request_op::Request;
    let operations = || txn.success.iter().chain(&txn.failure);
    operations().count() > 0
        && operations().all(|operation| match &operation.request {
            Some(Request::RequestRange(range)) => range.serializable,
            Some(Request::RequestTxn(txn)) => is_serializable(txn),
            _ => false,
        })
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let range = request.into_inner();
        kv::check_range(&range).map_err(|reject| rejected(&reject.into()))?;
        let view = self.0.view(range.serializable, deadline).await.map_err(unread)?;
        let answer = self.0.read_keys(view, |store| store.range(&range))?;
        let mut reply = answer.map_err(|reject| rejected(&reject.into()))?;
        sign(&self.0, &mut reply.header);
        Ok(Response::new(reply))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let deadline = self.0.deadline(&request);
        match self.execute(Kind::Put(request.into_inner()), deadline).await? {
            reply::Kind::Put(mut reply) => {
                sign(&self.0, &mut reply.header);
                Ok(Response::new(reply))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let deadline = self.0.deadline(&request);
        match self.execute(Kind::DeleteRange(request.into_inner()), deadline).await? {
            reply::Kind::DeleteRange(mut reply) => {
                sign(&self.0, &mut reply.header);
                Ok(Response::new(reply))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let txn = request.into_inner();
        kv::check_txn(&txn).map_err(|reject| rejected(&reject.into()))?;
        let mut reply = if kv::only_reads(&txn) {
            let view = self.0.view(is_serializable(&txn), deadline).await.map_err(unread)?;
            let answer = self.0.read_keys(view, |store| store.read_txn(&txn))?;
            answer.map_err(|reject| rejected(&reject.into()))?
        } else {
            match self.execute(Kind::Txn(txn), deadline).await? {
                reply::Kind::Txn(reply) => reply,
                other => return Err(unexpected(&other)),
            }
        };
        sign(&self.0, &mut reply.header);
        Ok(Response::new(reply))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let deadline = self.0.deadline(&request);
        match self.execute(Kind::Compact(request.into_inner()), deadline).await? {
            reply::Kind::Compact(mut reply) => {
                sign(&self.0, &mut reply.header);
                Ok(Response::new(reply))
            }
            other => Err(unexpected(&other)),
        }
    }
}

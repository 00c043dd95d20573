//! What etcd's clients call: the keys.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::etcd::{answer, only, rejected, sign, unread};
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use crate::proto::v1::{command::Kind, reply};
use crate::shared::{Caller, SharedNodeState};
use crate::state::kv;

/// The service.
pub struct KvService(pub Arc<SharedNodeState>);

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
        let (deadline, caller) = (self.0.deadline(&request), Caller::of(&request));
        let range = request.into_inner();
        kv::check_range(&range).map_err(|reject| rejected(&reject.into()))?;
        let from = (range.serializable, deadline);
        let (_, answer) = self.0.ask(from, &caller, range).await.map_err(unread)?;
        let reply = answer.map_err(|reject| rejected(&reject))?;
        Ok(Response::new(sign(&self.0, reply)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let (deadline, caller) = (self.0.deadline(&request), Caller::of(&request));
        answer(&self.0, &caller, Kind::Put(request.into_inner()), deadline, only!(Put)).await
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let (deadline, caller) = (self.0.deadline(&request), Caller::of(&request));
        answer(&self.0, &caller, Kind::DeleteRange(request.into_inner()), deadline, only!(DeleteRange)).await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let (deadline, caller) = (self.0.deadline(&request), Caller::of(&request));
        let txn = request.into_inner();
        kv::check_txn(&txn).map_err(|reject| rejected(&reject.into()))?;
        if kv::only_reads(&txn) {
            let from = (is_serializable(&txn), deadline);
            let (_, answer) = self.0.ask(from, &caller, txn).await.map_err(unread)?;
            let reply = answer.map_err(|reject| rejected(&reject))?;
            return Ok(Response::new(sign(&self.0, reply)));
        }
        answer(&self.0, &caller, Kind::Txn(txn), deadline, only!(Txn)).await
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let (deadline, caller) = (self.0.deadline(&request), Caller::of(&request));
        answer(&self.0, &caller, Kind::Compact(request.into_inner()), deadline, only!(Compact)).await
    }
}

//! Commands and queries.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::proto::v1::{self, Command, QueryReply, QueryRequest, Reply};
use crate::shared::{FORWARDED, SharedNodeState};

/// The service for clients.
pub struct StoreService(pub Arc<SharedNodeState>);

#[tonic::async_trait]
impl v1::store_server::Store for StoreService {
    async fn execute(&self, request: Request<Command>) -> Result<Response<Reply>, Status> {
        let deadline = self.0.deadline(&request);
        let forwarded = request.metadata().contains_key(FORWARDED);
        self.0.check_and_execute(request.into_inner(), deadline, forwarded).await.map(Response::new)
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        let deadline = self.0.deadline(&request);
        self.0.query(request.into_inner(), deadline).await.map(Response::new)
    }
}

//! The services of a worker that keeps no state: the output of what it ran, and who it is. For all else it names servers.

use std::sync::Arc;

use futures_util::FutureExt;
use tonic::{Code, Request, Response, Status};

use super::tasks::{Own, Pieces};
use crate::client::Remote;
use crate::forward::not_done;
use crate::io::Clock;
use crate::limits::WATCH_PATIENCE;
use crate::proto::v1::{
    self, Command, ExpectReply, ExpectRequest, HeardReply, HeardRequest, JoinReply, JoinRequest, MoveReply,
    MoveRequest, OutputRequest, PassOnReply, PassOnRequest, PromoteReply, PromoteRequest, QueryReply, QueryRequest,
    RemoveReply, RemoveRequest, Reply, StatusReply, StatusRequest, TransferLeaderReply, TransferLeaderRequest,
};
use crate::worker::{Desired, Outputs};

/// What the services of a worker without state share.
#[derive(Clone)]
pub struct WorkerService {
    /// What it is called in this life.
    pub life: u64,
    /// What it knows of the state.
    pub remote: Arc<Remote>,
    /// The output of what it ran.
    pub outputs: Outputs,
    /// The node's clock.
    pub clock: Arc<dyn Clock>,
}

impl WorkerService {
    /// The answer to whoever wants the state: a client goes on to the next member.
    fn no_state<T>(&self) -> Result<T, Status> {
        let text = format!(
            "not done: worker {} keeps no state; ask a server (`node cluster status` lists them)",
            self.remote.identity.id
        );
        Err(not_done(Code::Unavailable, text))
    }
}

#[tonic::async_trait]
impl v1::tasks_server::Tasks for WorkerService {
    type OutputStream = Pieces;

    async fn output(&self, request: Request<OutputRequest>) -> Result<Response<Pieces>, Status> {
        let (remote, clock) = (self.remote.clone(), self.clock.clone());
        let is_under_way = move |id, token| {
            let (remote, clock) = (remote.clone(), clock.clone());
            let answer = async move {
                // Whoever asks may know of an attempt that this worker has not seen yet.
                match clock.timeout(WATCH_PATIENCE, remote.up_to_date()).await {
                    Ok(Ok(())) => Ok(remote.is_under_way(id, token)),
                    Ok(Err(_)) | Err(_) => Err(Status::unavailable("no server tells this worker what it has to run")),
                }
            };
            answer.boxed()
        };
        let own = Own { outputs: Some(self.outputs.clone()), clock: self.clock.clone(), is_under_way };
        Ok(Response::new(own.pieces(request.into_inner())))
    }
}

#[tonic::async_trait]
impl v1::store_server::Store for WorkerService {
    async fn execute(&self, _: Request<Command>) -> Result<Response<Reply>, Status> {
        self.no_state()
    }

    async fn pass_on(&self, _: Request<PassOnRequest>) -> Result<Response<PassOnReply>, Status> {
        self.no_state()
    }

    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        self.no_state()
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for WorkerService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(StatusReply {
            cluster_id: self.remote.identity.cluster.0,
            id: self.remote.identity.id.0,
            role: "worker".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            life: self.life,
            ..StatusReply::default()
        }))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        self.no_state()
    }

    async fn expect(&self, _: Request<ExpectRequest>) -> Result<Response<ExpectReply>, Status> {
        self.no_state()
    }

    async fn promote(&self, _: Request<PromoteRequest>) -> Result<Response<PromoteReply>, Status> {
        self.no_state()
    }

    async fn remove(&self, _: Request<RemoveRequest>) -> Result<Response<RemoveReply>, Status> {
        self.no_state()
    }

    async fn heard(&self, _: Request<HeardRequest>) -> Result<Response<HeardReply>, Status> {
        self.no_state()
    }

    async fn r#move(&self, _: Request<MoveRequest>) -> Result<Response<MoveReply>, Status> {
        self.no_state()
    }

    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        self.no_state()
    }
}

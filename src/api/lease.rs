//! What etcd's clients call: leases on keys.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use futures_util::stream::{self, BoxStream, TryStreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::etcd::{answer, enter, execute, only, rejected, sign, unread};
use crate::limits::{KEEP_ALIVES_MAX, KEY_STREAMS_MAX, REQUEST_TIMEOUT};
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::proto::v1::{command::Kind, reply};
use crate::questions::TimeToLive;
use crate::shared::{Caller, SharedNodeState};

/// The service.
pub struct LeaseService {
    shared: Arc<SharedNodeState>,
    streams: Arc<AtomicUsize>,
}

impl LeaseService {
    /// The service of a member.
    pub fn new(shared: Arc<SharedNodeState>) -> Self {
        Self { shared, streams: Arc::default() }
    }
}

async fn keep_alive(
    shared: &SharedNodeState,
    caller: &Caller,
    request: LeaseKeepAliveRequest,
) -> Result<LeaseKeepAliveResponse, Status> {
    let deadline = shared.io.clock.now() + REQUEST_TIMEOUT;
    // What is open goes on, as etcd's does.
    let caller = caller.clone().whatever_it_showed();
    execute(shared, &caller, Kind::LeaseKeepAlive(request), deadline, only!(LeaseKeepAlive))
        .await
        .map(|reply| sign(shared, reply))
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let (deadline, caller) = (self.shared.deadline(&request), Caller::of(&request));
        answer(&self.shared, &caller, Kind::LeaseGrant(request.into_inner()), deadline, only!(LeaseGrant)).await
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let (deadline, caller) = (self.shared.deadline(&request), Caller::of(&request));
        answer(&self.shared, &caller, Kind::LeaseRevoke(request.into_inner()), deadline, only!(LeaseRevoke)).await
    }

    /// Answers in the order of the questions, and ends with the first that cannot be answered: its client asks another member.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let entered = enter(&self.streams, KEY_STREAMS_MAX)?;
        let (shared, caller) = (self.shared.clone(), Caller::of(&request));
        let answers = request
            .into_inner()
            .map_ok(move |request| {
                let (shared, caller) = (shared.clone(), caller.clone());
                async move { keep_alive(&shared, &caller, request).await }
            })
            .try_buffered(KEEP_ALIVES_MAX);
        // A stream that has failed has ended.
        let answers = stream::try_unfold((Box::pin(answers), entered), |(mut answers, entered)| async move {
            Ok(answers.try_next().await?.map(|answer| (answer, (answers, entered))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let (from, caller) = ((false, self.shared.deadline(&request)), Caller::of(&request));
        let question = TimeToLive { asked: request.into_inner(), raft: self.shared.raft.clone() };
        let (_, answer) = self.shared.ask(from, &caller, question).await.map_err(unread)?;
        Ok(Response::new(sign(&self.shared, answer.map_err(|reject| rejected(&reject))?)))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let (from, caller) = ((false, self.shared.deadline(&request)), Caller::of(&request));
        let (_, answer) = self.shared.ask(from, &caller, request.into_inner()).await.map_err(unread)?;
        Ok(Response::new(sign(&self.shared, answer.map_err(|reject| rejected(&reject))?)))
    }
}

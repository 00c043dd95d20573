//! What members say to each other.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use crate::proto::v1::{self, RaftFrame, RaftFrameReply};
use crate::raft::codec;
use crate::raft::transport::Hello;
use crate::shared::SharedNodeState;

/// The service for peers.
pub struct PeerService(pub Arc<SharedNodeState>);

#[tonic::async_trait]
impl v1::peer_server::Peer for PeerService {
    async fn raft(&self, request: Request<Streaming<RaftFrame>>) -> Result<Response<RaftFrameReply>, Status> {
        let me = self.0.identity;
        let hello = Hello::read(request.metadata())
            .map_err(|name| Status::invalid_argument(format!("the metadata {name} is missing or not a number")))?;
        if hello.cluster != me.cluster {
            return Err(Status::failed_precondition(format!(
                "this member belongs to cluster {}, not {}",
                me.cluster.hex(),
                hello.cluster.hex()
            )));
        }
        if hello.to != me.id {
            return Err(Status::failed_precondition(format!("this is member {}, not {}", me.id, hello.to)));
        }
        let mut frames = request.into_inner();
        while let Some(frame) = frames.message().await? {
            let decode =
                |wire| codec::message_from_wire(wire).map_err(|error| Status::invalid_argument(error.to_string()));
            let messages = frame.messages.into_iter().map(decode).collect::<Result<Vec<_>, _>>()?;
            if let Some(other) = messages.iter().find(|message| message.from != hello.from.0) {
                let text = format!("member {} speaks as member {}", hello.from, other.from);
                return Err(Status::invalid_argument(text));
            }
            if !self.0.raft.deliver(messages) {
                tracing::warn!(from = %hello.from, "too many frames wait: one was dropped");
            }
        }
        Ok(Response::new(RaftFrameReply {}))
    }
}

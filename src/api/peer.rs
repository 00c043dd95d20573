//! What members say to each other.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::ids::{Index, NodeId, Term};
use crate::limits::RECONNECT_PAUSE_MAX;
use crate::proto::v1::{self, RaftFrame, RaftFrameReply, SnapshotChunk, SnapshotRequest};
use crate::raft::codec;
use crate::raft::snapshot::Chunk;
use crate::raft::transport::{Hello, REMOVED};
use crate::shared::{SharedNodeState, internal};
use crate::state::member;

/// The service for peers.
pub struct PeerService(pub Arc<SharedNodeState>);

impl PeerService {
    /// Who calls, if it may.
    fn greet(&self, metadata: &MetadataMap) -> Result<Hello, Status> {
        let me = self.0.identity;
        let hello = Hello::read(metadata)
            .map_err(|name| Status::invalid_argument(format!("the metadata {name} is missing or makes no sense")))?;
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
        self.check_member(hello.from)?;
        Ok(hello)
    }

    /// Tells a sender that was removed. One that is not known yet may be on its way in.
    fn check_member(&self, id: NodeId) -> Result<(), Status> {
        if self.0.raft.knows(id) {
            return Ok(());
        }
        let (_, rows) = self.0.reader.view().map_err(internal)?;
        if member::is_removed(&rows, id).map_err(internal)? {
            sometimes!("a removed member was told so");
            let mut status = Status::failed_precondition(format!("member {id} was removed"));
            status.metadata_mut().insert(REMOVED, "1".parse().expect("plain text"));
            return Err(status);
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl v1::peer_server::Peer for PeerService {
    async fn raft(&self, request: Request<Streaming<RaftFrame>>) -> Result<Response<RaftFrameReply>, Status> {
        // A removed member is told at once: it may have nothing to say.
        let hello = self.greet(request.metadata())?;
        let _hearing = self.0.raft.hear(&hello);
        let mut frames = request.into_inner();
        let clock = &self.0.io.clock;
        loop {
            // Also when it is silent: a learner that was removed has nobody to answer.
            let next = clock.timeout(RECONNECT_PAUSE_MAX, frames.message()).await;
            self.check_member(hello.from)?;
            let frame = match next {
                Err(_) => continue,
                Ok(frame) => frame?,
            };
            let Some(frame) = frame else { break };
            self.0.raft.note_heard(&hello);
            let decode =
                |wire| codec::message_from_wire(wire).map_err(|error| Status::invalid_argument(error.to_string()));
            let messages: Result<Vec<_>, Status> = frame.messages.into_iter().map(decode).collect();
            sometimes!(messages.is_err(), "a corrupt message was refused");
            let messages = messages?;
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

    type SnapshotStream = BoxStream<'static, Result<SnapshotChunk, Status>>;

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let Hello { from, incarnation, .. } = self.greet(request.metadata())?;
        let raft = self.0.raft.clone();
        let SnapshotRequest { index, term, first_chunk } = request.into_inner();
        let chunks = stream::try_unfold(first_chunk, move |number| {
            let raft = raft.clone();
            async move {
                match raft.snapshot_chunk((from, incarnation), (Index(index), Term(term)), number).await {
                    Chunk::Data(chunk) => Ok(Some((chunk, number + 1))),
                    Chunk::End => Ok(None),
                    Chunk::Gone => Err(Status::not_found(format!("the snapshot at {index} is not kept here any more"))),
                }
            }
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}

//! What members say to each other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::stream::{self, BoxStream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::ids::{Index, NodeId, Term};
use crate::limits::{MEMBERS_MAX, RECONNECT_PAUSE_MAX};
use crate::proto::v1::{self, MemberRole, RaftFrame, RaftFrameReply, SnapshotChunk, SnapshotRequest};
use crate::raft::codec;
use crate::raft::log::Life;
use crate::raft::snapshot::Chunk;
use crate::raft::transport::{Hello, REMOVED, SUPERSEDED};
use crate::shared::{SharedNodeState, internal};
use crate::state::member;

/// The service for peers.
pub struct PeerService {
    node: Arc<SharedNodeState>,
    /// The latest life of each member that has called.
    lives: Mutex<BTreeMap<NodeId, Life>>,
}

impl PeerService {
    /// The service of a node that nobody has called yet.
    pub fn new(node: Arc<SharedNodeState>) -> Self {
        Self { node, lives: Mutex::default() }
    }

    /// Who calls, if it may.
    fn greet(&self, metadata: &MetadataMap) -> Result<Hello, Status> {
        let me = self.node.identity;
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
        self.check(&hello)?;
        Ok(hello)
    }

    /// Whether the caller is a member, and no other process is.
    fn check(&self, hello: &Hello) -> Result<(), Status> {
        self.check_member(hello.from)?;
        self.check_life(hello)
    }

    /// Two processes with copies of one data directory would vote twice: the one that was heard first counts, and the
    /// lives that follow on it.
    fn check_life(&self, hello: &Hello) -> Result<(), Status> {
        let mut lives = self.lives.lock().expect("no code panics while it holds the lives");
        if lives.len() >= MEMBERS_MAX && !lives.contains_key(&hello.from) {
            lives.clear();
        }
        let latest = lives.entry(hello.from).or_insert_with(|| hello.life.clone());
        if hello.life.follows(latest) {
            *latest = hello.life.clone();
        }
        if *latest == hello.life {
            return Ok(());
        }
        let mut status = Status::failed_precondition(format!(
            "member {id} runs, or has run since, on another copy of its data: member {me} has heard its start {}, and this \
             start {} did not come after it. Go on with the data of that one only; to add a member, join with an empty data \
             directory",
            latest.incarnation.0,
            hello.life.incarnation.0,
            id = hello.from,
            me = self.node.identity.id,
        ));
        status.metadata_mut().insert(SUPERSEDED, "1".parse().expect("plain text"));
        Err(status)
    }

    /// Tells a sender that was removed. One that is not known yet may be on its way in.
    fn check_member(&self, id: NodeId) -> Result<(), Status> {
        if self.node.raft.knows(id) {
            return Ok(());
        }
        let (_, rows) = self.node.reader.view().map_err(internal)?;
        let members = member::all(&rows).map_err(internal)?;
        if members.iter().any(|member| member.id == id.0 && member.role() == MemberRole::Removed) {
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
        self.node.raft.introduce(hello.from, hello.address.clone());
        let mut frames = request.into_inner();
        let clock = &self.node.io.clock;
        loop {
            // Also when it is silent: a learner that was removed has nobody to answer.
            let next = clock.timeout(RECONNECT_PAUSE_MAX, frames.message()).await;
            self.check(&hello)?;
            let frame = match next {
                Err(_) => continue,
                Ok(frame) => frame?,
            };
            let Some(frame) = frame else { break };
            let decode =
                |wire| codec::message_from_wire(wire).map_err(|error| Status::invalid_argument(error.to_string()));
            let messages = frame.messages.into_iter().map(decode).collect::<Result<Vec<_>, _>>()?;
            if let Some(other) = messages.iter().find(|message| message.from != hello.from.0) {
                let text = format!("member {} speaks as member {}", hello.from, other.from);
                return Err(Status::invalid_argument(text));
            }
            if !self.node.raft.deliver(messages) {
                tracing::warn!(from = %hello.from, "too many frames wait: one was dropped");
            }
        }
        Ok(Response::new(RaftFrameReply {}))
    }

    type SnapshotStream = BoxStream<'static, Result<SnapshotChunk, Status>>;

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        self.greet(request.metadata())?;
        let raft = self.node.raft.clone();
        let SnapshotRequest { index, term, first_chunk } = request.into_inner();
        let chunks = stream::try_unfold(first_chunk, move |number| {
            let raft = raft.clone();
            async move {
                match raft.snapshot_chunk((Index(index), Term(term)), number).await {
                    Chunk::Data(chunk) => Ok(Some((chunk, number + 1))),
                    Chunk::End => Ok(None),
                    Chunk::Gone => Err(Status::not_found(format!("the snapshot at {index} is not kept here any more"))),
                }
            }
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}

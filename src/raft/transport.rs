//! Raft messages to peers: one stream per peer, opened again when it breaks, with a bounded queue in front.
//!
//! Messages may be lost and Raft does not mind; what was queued for a broken stream is dropped, because by the time
//! the peer is back newer messages say more. Every loss is reported as unreachable, never silent.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use futures_util::future::{Either, select};
use raft::eraftpb::Message;
use tokio::sync::mpsc;
use tonic::Request;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;

use super::codec;
use super::log::Identity;
use crate::ids::{Address, ClusterId, Incarnation, NodeId};
use crate::io::{Io, TaskHandle};
use crate::limits::{
    APPEND_BYTES_MAX, FORMAT_FIRST, FRAME_MESSAGES_MAX, MEMBERS_MAX, PEER_QUEUE_MAX, RECONNECT_PAUSE_MAX,
    RECONNECT_PAUSE_MIN,
};
use crate::proto::v1;
use crate::proto::v1::peer_client::PeerClient;

/// Of how many failed attempts in a row one is told of.
const WARN_EVERY: u32 = 32;

/// The metadata that names the cluster a call is of.
pub const CLUSTER: &str = "cairn-cluster";
const FROM: &str = "cairn-from";
/// The metadata that names the member a call is for.
pub const TO: &str = "cairn-to";
const ADDRESS: &str = "cairn-address";
const INCARNATION: &str = "cairn-incarnation";
const FORMAT: &str = "cairn-format";

/// Who speaks to whom: the metadata of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The sender.
    pub from: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Whom it takes the receiver for.
    pub to: NodeId,
    /// Where the sender is.
    pub address: Address,
    /// The newest format of the state that it takes part in.
    pub format: u32,
}

impl Hello {
    pub(super) fn write(&self, metadata: &mut MetadataMap) {
        metadata.insert(CLUSTER, self.cluster.0.into());
        metadata.insert(FROM, self.from.0.into());
        metadata.insert(INCARNATION, self.incarnation.0.into());
        metadata.insert(TO, self.to.0.into());
        // Who knows of no other says nothing of it, as before there were others.
        if self.format > FORMAT_FIRST {
            metadata.insert(FORMAT, self.format.into());
        }
        metadata.insert(ADDRESS, self.address.as_str().parse().expect("an address is plain text"));
    }

    /// Reads the metadata of a stream.
    ///
    /// # Errors
    /// The name of what is missing or makes no sense.
    pub fn read(metadata: &MetadataMap) -> Result<Self, &'static str> {
        fn read<T: FromStr>(metadata: &MetadataMap, name: &'static str) -> Result<T, &'static str> {
            metadata.get(name).and_then(|value| value.to_str().ok()?.parse().ok()).ok_or(name)
        }
        Ok(Self {
            cluster: ClusterId(read(metadata, CLUSTER)?),
            from: NodeId(read(metadata, FROM)?),
            incarnation: Incarnation(read(metadata, INCARNATION)?),
            to: NodeId(read(metadata, TO)?),
            address: read(metadata, ADDRESS)?,
            format: if metadata.contains_key(FORMAT) { read(metadata, FORMAT)? } else { FORMAT_FIRST },
        })
    }
}

/// The streams to all peers.
pub struct Transport {
    io: Io,
    identity: Identity,
    incarnation: Incarnation,
    /// Where this member itself is.
    address: Address,
    /// The newest format of the state that it takes part in.
    format: u32,
    /// Where the state says that the members are.
    known: BTreeMap<NodeId, Address>,
    /// Where members say that they are. It is kept when the state says the same: what one asked for in an earlier life may come late and
    /// change that, and would not be put right by whom nobody reaches.
    introduced: BTreeMap<NodeId, Address>,
    links: BTreeMap<NodeId, Link>,
    news: mpsc::Sender<News>,
}

/// What a transport has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A member could not be reached; messages to it may be lost.
    Unreachable(NodeId),
    /// A member says that this one was removed from the cluster.
    Removed,
}

/// The metadata of a refusal that tells the caller that it was removed.
pub const REMOVED: &str = "cairn-removed";

struct Link {
    /// Tried in turn: where it says that it is, then where the state has it.
    addresses: Vec<Address>,
    queue: mpsc::Sender<Message>,
    _task: TaskHandle,
}

impl Transport {
    /// A transport without peers. What becomes of its streams is told to `news`.
    pub fn new(
        io: Io,
        identity: Identity,
        incarnation: Incarnation,
        (address, format): (Address, u32),
        news: mpsc::Sender<News>,
    ) -> Self {
        let (known, introduced, links) = Default::default();
        Self { io, identity, incarnation, address, format, known, introduced, links, news }
    }

    /// The members as the state has them: opens streams to new ones, closes those to ones that left or moved. Those it
    /// does not have stay if they were introduced.
    pub fn set_peers(&mut self, peers: &BTreeMap<NodeId, Address>) {
        self.introduced.retain(|id, _| peers.contains_key(id) || !self.known.contains_key(id));
        self.known.clone_from(peers);
        self.relink();
    }

    /// Notes where a member says that it is: the state may not have it yet, or have it elsewhere.
    pub fn introduce(&mut self, id: NodeId, address: Address) {
        let known = self.known.get(&id);
        let room = known.is_some() || self.introduced.contains_key(&id) || self.strangers() < MEMBERS_MAX;
        if id == self.identity.id || !room {
            return;
        }
        sometimes!(known.is_some_and(|at| *at != address), "a member said that it is elsewhere than the state has it");
        self.introduced.insert(id, address);
        self.relink();
    }

    /// How many have said where they are that the state does not have.
    fn strangers(&self) -> usize {
        self.introduced.keys().filter(|id| !self.known.contains_key(id)).count()
    }

    /// Opens the streams that are missing and closes those that lead elsewhere.
    fn relink(&mut self) {
        let mut wanted: BTreeMap<NodeId, Vec<Address>> = BTreeMap::new();
        let others = self.introduced.iter().chain(&self.known).filter(|(id, _)| **id != self.identity.id);
        for (id, address) in others {
            let addresses = wanted.entry(*id).or_default();
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        self.links.retain(|id, link| wanted.get(id).is_some_and(|addresses| *addresses == link.addresses));
        for (id, addresses) in wanted {
            if !self.links.contains_key(&id) {
                let link = self.open(id, addresses);
                self.links.insert(id, link);
            }
        }
    }

    /// What this member says of itself to another.
    pub fn hello(&self, to: NodeId) -> Hello {
        let Identity { cluster, id: from } = self.identity;
        let (incarnation, address, format) = (self.incarnation, self.address.clone(), self.format);
        Hello { cluster, from, incarnation, to, address, format }
    }

    /// Where a member is.
    pub fn address_of(&self, id: NodeId) -> Option<&Address> {
        self.links.get(&id).and_then(|link| link.addresses.first())
    }

    fn open(&self, to: NodeId, addresses: Vec<Address>) -> Link {
        let (sender, queue) = mpsc::channel(PEER_QUEUE_MAX);
        let hello = self.hello(to);
        let task = run_link(self.io.clone(), hello, addresses.clone(), queue, self.news.clone());
        Link { addresses, queue: sender, _task: self.io.spawn.spawn("peer stream", Box::pin(task)) }
    }

    /// Queues a message; false if it was dropped, because the peer is unknown or its queue is full.
    pub fn send(&self, message: Message) -> bool {
        self.links.get(&NodeId(message.to)).is_some_and(|link| link.queue.try_send(message).is_ok())
    }
}

/// Keeps one stream open for as long as the link exists.
async fn run_link(
    io: Io,
    hello: Hello,
    addresses: Vec<Address>,
    mut queue: mpsc::Receiver<Message>,
    news: mpsc::Sender<News>,
) {
    let mut jitter = io.rng.stream(&format!("reconnect to {}", hello.to));
    let mut pause = RECONNECT_PAUSE_MIN;
    let mut failures = 0u32;
    for address in addresses.iter().cycle() {
        let opened = io.clock.now();
        // Frames wait here only while the connection takes them slower than they come.
        let (frames, outgoing) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        hello.write(request.metadata_mut());
        let mut client = PeerClient::new(io.network.connect(address));
        {
            let call = std::pin::pin!(client.raft(request));
            let feed = std::pin::pin!(feed(&mut queue, frames));
            match select(call, feed).await {
                Either::Left((Err(status), _)) => {
                    if status.metadata().contains_key(REMOVED) {
                        let _ = news.try_send(News::Removed);
                    }
                    // Said when it begins, and now and then while it lasts.
                    if failures.is_multiple_of(WARN_EVERY) {
                        let why = status.message();
                        tracing::warn!(to = %hello.to, %address, why, "there is no way to a member");
                    }
                    failures = failures.wrapping_add(1);
                }
                Either::Left((Ok(_), _)) => tracing::debug!(to = %hello.to, "peer closed the stream"),
                Either::Right((Feed::QueueClosed, _)) => return,
                Either::Right((Feed::StreamClosed, _)) => {}
            }
        }
        // A full queue of reports already says it.
        let _ = news.try_send(News::Unreachable(hello.to));
        if io.clock.now().since(opened) > RECONNECT_PAUSE_MAX {
            (pause, failures) = (RECONNECT_PAUSE_MIN, 0);
        }
        let millis = pause.as_millis() as u64;
        io.clock.sleep(Duration::from_millis(millis / 2 + jitter.range(0, millis))).await;
        pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
        while queue.try_recv().is_ok() {}
    }
}

enum Feed {
    /// The link is no longer wanted.
    QueueClosed,
    /// The connection takes no more.
    StreamClosed,
}

/// Packs what is queued into frames: all of it when the connection keeps up, in batches when it does not.
async fn feed(queue: &mut mpsc::Receiver<Message>, frames: mpsc::Sender<v1::RaftFrame>) -> Feed {
    let mut messages = Vec::new();
    loop {
        // Room first: what waits in the queue meanwhile shares a frame.
        let Ok(room) = frames.reserve().await else { return Feed::StreamClosed };
        let Some(first) = queue.recv().await else { return Feed::QueueClosed };
        let mut bytes = size(&first);
        messages.push(codec::message_to_wire(&first));
        while messages.len() < FRAME_MESSAGES_MAX && bytes < APPEND_BYTES_MAX as usize {
            let Ok(message) = queue.try_recv() else { break };
            bytes += size(&message);
            messages.push(codec::message_to_wire(&message));
        }
        room.send(v1::RaftFrame { messages: std::mem::take(&mut messages) });
    }
}

fn size(message: &Message) -> usize {
    message.entries.iter().map(|entry| entry.data.len() + entry.context.len() + 32).sum()
}

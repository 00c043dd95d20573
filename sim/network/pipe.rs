//! What a call's bodies travel through: in the frames that they are made in, or in messages that each meet a fate of their own.

use std::collections::BinaryHeap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::Frame;
use http_body_util::BodyExt;
use madsim::time::TimeHandle;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;

use super::{MachineId, QUEUED_MAX, RAFT_STREAM, REMEMBERED_MAX, REPLAY_MAX, SimNetwork};
use crate::sim::trace::Note;

/// Frames under way in one direction of one call, above which the sender waits.
const PIPE_FRAMES_MAX: usize = 256;
/// How long after the end of a connection its last frames may arrive.
const LINGER: Duration = Duration::from_millis(500);
/// Where the bodies of snapshots travel.
const SNAPSHOT_STREAM: &str = "/cairn.v1.Peer/Snapshot";
/// The path whose messages travel one by one: such a stream may break between any two of them.
const WATCH_STREAM: &str = "/cairn.v1.Work/Watch";

/// One direction of one call.
pub(super) struct Sender {
    network: Arc<SimNetwork>,
    from: MachineId,
    to: MachineId,
    queue: mpsc::Sender<Parcel>,
    /// When the last parcel arrives: a stream keeps its order.
    last: madsim::time::Instant,
    sent: u64,
}

/// Something on its way.
struct Parcel {
    at: madsim::time::Instant,
    order: u64,
    freight: Freight,
}

enum Freight {
    Frame(Frame<Bytes>),
    /// The stream ends in order.
    End,
    /// The connection is lost at this instant, with all that is under way.
    Reset,
}

impl PartialEq for Parcel {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Parcel {}

impl PartialOrd for Parcel {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Parcel {
    /// Reversed, so that the heap's greatest is the next to arrive.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// The receiving end as an HTTP body.
pub(super) struct Pipe {
    queue: mpsc::Receiver<Parcel>,
    under_way: BinaryHeap<Parcel>,
    time: TimeHandle,
    timer: Option<Pin<Box<madsim::time::Sleep>>>,
    ended: bool,
    /// Stops the pump of the other direction when the caller lets go of the call.
    pub(super) keep: Option<crate::io::TaskHandle>,
}

pub(super) fn pipe(network: &Arc<SimNetwork>, from: MachineId, to: MachineId) -> (Sender, Pipe) {
    let (queue, receiver) = mpsc::channel(PIPE_FRAMES_MAX);
    let last = network.time.now_instant();
    let sender = Sender { network: network.clone(), from, to, queue, last, sent: 0 };
    let pipe = Pipe {
        queue: receiver,
        under_way: BinaryHeap::new(),
        time: network.time.clone(),
        timer: None,
        ended: false,
        keep: None,
    };
    (sender, pipe)
}

/// How a body travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Carriage {
    /// In the frames that it is made in, in order.
    Frames,
    /// In messages, in order.
    Messages,
    /// In messages, in order, and any may be damaged.
    Bodies,
    /// In messages, each of which meets a fate of its own.
    Loose,
}

impl Carriage {
    pub(super) fn of(path: &str) -> Self {
        match path {
            RAFT_STREAM => Self::Loose,
            SNAPSHOT_STREAM => Self::Bodies,
            WATCH_STREAM => Self::Messages,
            _ => Self::Frames,
        }
    }
}

/// Carries `body` to the other side until it ends or either side is gone.
pub(super) async fn pump(mut sender: Sender, mut body: Body, carriage: Carriage) {
    let mut splitter = Splitter::default();
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) if carriage != Carriage::Frames => {
                splitter.buffer.extend_from_slice(&data);
                while let Some(message) = splitter.next() {
                    let sent = match carriage {
                        Carriage::Loose => sender.send_message(message).await,
                        Carriage::Bodies => {
                            let (from, to) = (sender.from, sender.to);
                            let message = sender.network.maybe_corrupt(from, to, message);
                            sender.send(Freight::Frame(Frame::data(message)), Duration::ZERO).await
                        }
                        _ => {
                            let to = sender.to;
                            sender.network.wait_while(|state| state.deaf.contains(&to)).await;
                            let held_up = sender.hold_up();
                            sender.send(Freight::Frame(Frame::data(message)), held_up).await
                        }
                    };
                    if !sent {
                        return;
                    }
                }
            }
            Ok(data) => {
                if !sender.send(Freight::Frame(Frame::data(data)), Duration::ZERO).await {
                    return;
                }
            }
            Err(frame) => {
                if !sender.send(Freight::Frame(frame), Duration::ZERO).await {
                    return;
                }
            }
        }
    }
    sender.send(Freight::End, Duration::ZERO).await;
}

/// Cuts a byte stream into gRPC messages: a flag byte, a big-endian length, and that many bytes.
#[derive(Default)]
struct Splitter {
    buffer: BytesMut,
}

impl Splitter {
    fn next(&mut self) -> Option<Bytes> {
        let mut head = self.buffer.get(..5)?;
        head.advance(1);
        let len = head.get_u32() as usize;
        (self.buffer.len() >= 5 + len).then(|| self.buffer.split_to(5 + len).freeze())
    }
}

impl Sender {
    /// By how much a message of a stream is held up, and all after it: as calls are, but only some of them.
    fn hold_up(&self) -> Duration {
        let Self { network, from, to, .. } = self;
        let held_up = network.stall(*from, *to, WATCH_STREAM);
        if held_up.is_zero() || network.draw(*from, *to, 4) > 0 { Duration::ZERO } else { held_up }
    }

    /// Sends in order; false if the connection is gone.
    async fn send(&mut self, freight: Freight, held_up: Duration) -> bool {
        let (network, from, to) = (self.network.clone(), self.from, self.to);
        if !network.wait_mended(from, to).await || self.reset().await {
            return false;
        }
        let bytes = match &freight {
            Freight::Frame(frame) => frame.data_ref().map_or(0, Bytes::len),
            Freight::End | Freight::Reset => 0,
        };
        let queued = loop {
            match network.transfer(from, to, bytes) {
                Some(queued) => break queued,
                None => network.time.sleep(QUEUED_MAX / 4).await,
            }
        };
        self.last = self.last.max(network.time.now_instant() + queued + network.delay(from, to) + held_up);
        self.post(self.last, freight).await
    }

    /// Loses the connection, if that is its fate here.
    async fn reset(&mut self) -> bool {
        let reset = self.network.reset(self.from, self.to);
        if reset {
            self.post(self.network.time.now_instant(), Freight::Reset).await;
        }
        reset
    }

    /// Sends one Raft message, which meets its fate alone; false if the connection is gone.
    async fn send_message(&mut self, message: Bytes) -> bool {
        let (network, from, to) = (self.network.clone(), self.from, self.to);
        network.wiretap(from, to, &message[5..]);
        network.trace.event(format_args!("send {from}>{to} {:016x}", xxhash_rust::xxh3::xxh3_64(&message)));
        let (weather, deaf) = {
            let mut state = network.state.lock().unwrap();
            state.counts.messages += 1;
            if let Some(sent) = state.remembered.get_mut(&to).filter(|sent| sent.len() < REMEMBERED_MAX) {
                sent.push((from, message.clone()));
            }
            (state.weather(from, to), state.deaf.contains(&to))
        };
        if self.reset().await {
            return false;
        }
        let cut = network.is_cut(from, to);
        for ghost in if cut { Vec::new() } else { network.risen(from, to) } {
            let at = network.time.now_instant() + network.delay(from, to);
            if !self.post(at, Freight::Frame(Frame::data(ghost))).await {
                return false;
            }
        }
        let queued = network.transfer(from, to, message.len());
        let mut deliveries = vec![queued.unwrap_or_default() + network.delay(from, to)];
        if network.draw(from, to, 1000) < weather.repeat_permille {
            deliveries.push(network.delay(from, to));
        }
        if network.draw(from, to, 100_000) < weather.replay_per_100k {
            let most = match network.draw(from, to, 4) {
                0 => REPLAY_MAX,
                1 => REPLAY_MAX / 60,
                _ => REPLAY_MAX / 6,
            };
            let at =
                network.time.now_instant() + Duration::from_millis(network.draw(from, to, most.as_millis() as u64));
            network.state.lock().unwrap().ghosts.entry((from, to)).or_default().push((at, message.clone()));
        }
        if queued.is_none() || deaf || cut || network.draw(from, to, 1000) < weather.lose_permille {
            network.state.lock().unwrap().counts.lost += 1;
            deliveries.clear();
        }
        network.state.lock().unwrap().counts.repeated += (deliveries.len() as u64).saturating_sub(1);
        network.trace.note(|| {
            let arrives = deliveries.iter().map(|delay| network.time.elapsed() + *delay).collect();
            Note::Frame { from, to, frame: message.slice(5..), arrives }
        });
        for delay in deliveries {
            let at = network.time.now_instant() + delay;
            let data = network.maybe_corrupt(from, to, message.clone());
            if !self.post(at, Freight::Frame(Frame::data(data))).await {
                return false;
            }
        }
        true
    }

    async fn post(&mut self, at: madsim::time::Instant, freight: Freight) -> bool {
        self.sent += 1;
        self.queue.send(Parcel { at, order: self.sent, freight }).await.is_ok()
    }
}

impl http_body::Body for Pipe {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut open = true;
        while this.under_way.len() < PIPE_FRAMES_MAX {
            match this.queue.poll_recv(cx) {
                Poll::Ready(Some(Parcel { freight: Freight::Reset, .. })) => {
                    this.under_way.clear();
                    open = false;
                    break;
                }
                Poll::Ready(Some(parcel)) => this.under_way.push(parcel),
                Poll::Ready(None) => {
                    // What is left of a connection arrives within a moment or not at all.
                    let last = this.time.now_instant() + LINGER;
                    this.under_way.retain(|parcel| parcel.at <= last);
                    open = false;
                    break;
                }
                Poll::Pending => break,
            }
        }
        loop {
            let Some(next) = this.under_way.peek() else {
                if open {
                    return Poll::Pending;
                }
                this.ended = true;
                return Poll::Ready(Some(Err(Status::unavailable("the connection was reset"))));
            };
            if next.at > this.time.now_instant() {
                let timer = this.time.sleep_until(next.at);
                ready!(this.timer.insert(Box::pin(timer)).as_mut().poll(cx));
                continue;
            }
            let parcel = this.under_way.pop().expect("peeked above");
            return match parcel.freight {
                Freight::Frame(frame) => Poll::Ready(Some(Ok(frame))),
                Freight::End | Freight::Reset => {
                    this.ended = true;
                    Poll::Ready(None)
                }
            };
        }
    }
}

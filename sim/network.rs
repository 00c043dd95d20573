//! The simulated network: gRPC calls between machines, with delay, loss, repetition, reordering and cuts.
//!
//! A call carries the same HTTP frames as on a socket. The request body is pumped by a task of the caller's machine,
//! the handler and the response body by tasks of the target's, so that killing or pausing a machine stops exactly its
//! own part. Ordinary streams behave like TCP: in order, stalled while a link is cut, reset if the cut lasts. The
//! stream of Raft messages is treated harder than TCP would: single messages are lost, repeated and reordered.
//! A stream cut short reads as an error here; that it may also read as a clean end is covered by dropping its tail.

mod pipe;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, select};
use madsim::runtime::NodeHandle;
use madsim::time::TimeHandle;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Service, service_fn};

use self::pipe::{Carriage, pipe, pump};
use crate::ids::Address;
use crate::io::{BoxError, Channel, ChannelError, Listener, Network, Rng, RngStream};
use crate::sim::spawn::{Guarded, drop_quietly};
use crate::sim::trace::Trace;

/// A machine's number.
pub type MachineId = u64;

/// What the network does to messages. Times are one-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weather {
    /// Shortest delay.
    pub delay_min: Duration,
    /// Longest usual delay.
    pub delay_max: Duration,
    /// Messages, in thousandths, that take up to ten times the longest usual delay.
    pub slow_permille: u64,
    /// Ordinary calls and answers, in thousandths, that are held up for up to [`STALL_MAX`].
    pub stall_permille: u64,
    /// Raft messages that are lost, in thousandths.
    pub lose_permille: u64,
    /// Raft messages that arrive twice, in thousandths.
    pub repeat_permille: u64,
    /// Raft messages that arrive up to [`REPLAY_MAX`] later once more, perhaps on another connection between other lives of
    /// the same machines, in hundred thousandths.
    pub replay_per_100k: u64,
    /// Raft messages that arrive with a bit changed or without their end, in hundred thousandths.
    pub corrupt_per_100k: u64,
    /// Frames of any kind at which the connection is reset, so that what is under way before them is lost, in hundred
    /// thousandths.
    pub reset_per_100k: u64,
    /// What a link carries in each direction, in bytes a millisecond; 0 is without bound.
    pub bytes_per_ms: u64,
}

impl Weather {
    /// A quiet local network.
    pub const CALM: Self = Self {
        delay_min: Duration::from_millis(1),
        delay_max: Duration::from_millis(2),
        slow_permille: 0,
        stall_permille: 0,
        lose_permille: 0,
        repeat_permille: 0,
        replay_per_100k: 0,
        corrupt_per_100k: 0,
        reset_per_100k: 0,
        bytes_per_ms: 0,
    };
}

/// How long a call or an answer is held up at most: callers' patience is in this range.
pub const STALL_MAX: Duration = Duration::from_millis(2_500);
/// After such a time a connection is given up on which nothing has come (as `os::network` has it: when a ping is due, and not answered).
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long after a Raft message its replay arrives at most: across restarts and changes of members.
pub const REPLAY_MAX: Duration = Duration::from_secs(180);
/// How far a narrow link may lag behind before it drops Raft messages.
pub const QUEUED_MAX: Duration = Duration::from_secs(3);
/// How long an attempt to connect waits for an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The path whose messages may be lost, repeated and reordered one by one.
const RAFT_STREAM: &str = "/cairn.v1.Peer/Raft";

/// The paths of commands.
const COMMANDS: [&str; 2] = ["/cairn.v1.Store/Execute", "/cairn.v1.Store/PassOn"];
/// Where a member says where it is.
const MOVE: &str = "/cairn.v1.Cluster/Move";
/// Messages of a life that are remembered at most.
const REMEMBERED_MAX: usize = 4_000;

/// What of a machine may be held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Words {
    /// What it wants to have done.
    Commands,
    /// Where it says that it is.
    Moves,
}

impl Words {
    fn of(path: &str) -> Option<Self> {
        match path {
            MOVE => Some(Self::Moves),
            _ => COMMANDS.contains(&path).then_some(Self::Commands),
        }
    }
}

/// Where they wait: one for each time that a machine's are held up.
pub type Gate = u64;

/// A Raft message as it leaves a machine, for whoever watches the wire.
pub type Wiretap = Arc<dyn Fn(MachineId, MachineId, &[u8]) + Send + Sync>;

/// The network that all machines share.
pub struct SimNetwork {
    state: Mutex<State>,
    changed: Notify,
    rng: Rng,
    trace: Arc<Trace>,
    time: TimeHandle,
}

struct State {
    listeners: BTreeMap<Address, Endpoint>,
    /// Machines whose calls and answers are all held up.
    late: BTreeMap<MachineId, RangeInclusive<Duration>>,
    /// Machines that are off without having let go of their calls: those whom they called do not hear of it.
    silent: BTreeSet<MachineId>,
    /// Gates at which something waits of one that was.
    silent_gates: BTreeSet<Gate>,
    /// By how much longer everything takes.
    far: Duration,
    /// Machines whose commands wait before whom they are for.
    held: BTreeMap<(MachineId, Words), Gate>,
    /// The gates that are shut, and how many there were.
    shut: BTreeSet<Gate>,
    gates: Gate,
    /// Machines that hear nothing new: Raft messages to them are lost, and streams of looks stand still.
    deaf: BTreeSet<MachineId>,
    /// Whose commands are carried out but not answered.
    unanswered: Option<Unanswered>,
    /// What was sent to a machine, and by whom.
    remembered: BTreeMap<MachineId, Vec<(MachineId, Bytes)>>,
    /// How many faults cut each link.
    cuts: BTreeMap<(MachineId, MachineId), u32>,
    weather: Weather,
    /// What it is like on single links, where it is another there.
    links: BTreeMap<(MachineId, MachineId), Weather>,
    draws: BTreeMap<(MachineId, MachineId), RngStream>,
    /// When each narrow link has sent what it was given.
    busy: BTreeMap<(MachineId, MachineId), madsim::time::Instant>,
    /// Raft messages that come once more, from when on: on whatever connection there is then.
    ghosts: BTreeMap<(MachineId, MachineId), Vec<(madsim::time::Instant, Bytes)>>,
    wiretap: Option<Wiretap>,
    ports: u16,
    bound: u64,
    counts: NetworkCounts,
}

/// Whose commands are carried out but not answered.
pub type Unanswered = Arc<dyn Fn(MachineId) -> bool + Send + Sync>;

/// How much the network has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounts {
    /// Calls begun.
    pub calls: u64,
    /// Raft messages sent.
    pub messages: u64,
    /// Raft messages lost.
    pub lost: u64,
    /// Raft messages delivered twice in a row.
    pub repeated: u64,
    /// Raft messages delivered once more long after.
    pub replayed: u64,
    /// Raft messages that were changed on their way.
    pub corrupted: u64,
    /// Connections that were reset.
    pub resets: u64,
    /// Commands that had to wait before whom they were for.
    pub held: u64,
    /// How often that had to wait where a member is.
    pub moves_held: u64,
    /// Commands that were carried out and not answered.
    pub unanswered: u64,
}

impl State {
    fn weather(&self, from: MachineId, to: MachineId) -> Weather {
        self.links.get(&(from, to)).copied().unwrap_or(self.weather)
    }

    /// The gate at which a word of a machine waits, if it does.
    fn come_to_gate(&mut self, from: MachineId, words: Words) -> Option<Gate> {
        let gate = self.held.get(&(from, words)).copied();
        let count = match words {
            Words::Commands => &mut self.counts.held,
            Words::Moves => &mut self.counts.moves_held,
        };
        *count += u64::from(gate.is_some());
        gate
    }
}

#[derive(Clone)]
struct Endpoint {
    /// Which of all there were.
    number: u64,
    machine: MachineId,
    node: NodeHandle,
    routes: Option<Routes>,
}

impl SimNetwork {
    /// A network without machines.
    pub fn new(rng: Rng, trace: Arc<Trace>) -> Arc<Self> {
        let state = State {
            listeners: BTreeMap::new(),
            silent: BTreeSet::new(),
            silent_gates: BTreeSet::new(),
            late: BTreeMap::new(),
            far: Duration::ZERO,
            held: BTreeMap::new(),
            shut: BTreeSet::new(),
            gates: 0,
            deaf: BTreeSet::new(),
            unanswered: None,
            remembered: BTreeMap::new(),
            cuts: BTreeMap::new(),
            weather: Weather::CALM,
            links: BTreeMap::new(),
            draws: BTreeMap::new(),
            busy: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            wiretap: None,
            ports: 40_000,
            bound: 0,
            counts: NetworkCounts::default(),
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new(), rng, trace, time: TimeHandle::current() })
    }

    /// The network as one boot of a machine sees it.
    pub fn attach(self: &Arc<Self>, machine: MachineId, node: NodeHandle) -> Arc<dyn Network> {
        self.state.lock().unwrap().silent.remove(&machine);
        Arc::new(Port { network: self.clone(), machine, node })
    }

    /// Has a machine that is about to lose its power let go of none of its calls.
    pub fn silence(&self, machine: MachineId) {
        let state = &mut *self.state.lock().unwrap();
        state.silent.insert(machine);
        let gates = [Words::Commands, Words::Moves].map(|words| state.held.get(&(machine, words)).copied());
        state.silent_gates.extend(gates.into_iter().flatten());
    }

    /// Closes everything that `machine` listens on.
    pub fn detach(&self, machine: MachineId) {
        let mut state = self.state.lock().unwrap();
        let (closed, open): (BTreeMap<_, _>, _) =
            std::mem::take(&mut state.listeners).into_iter().partition(|(_, endpoint)| endpoint.machine == machine);
        state.listeners = open;
        drop(state);
        drop_quietly(closed);
    }

    /// Changes the weather for messages sent from now on, on every link.
    pub fn set_weather(&self, weather: Weather) {
        let mut state = self.state.lock().unwrap();
        state.weather = weather;
        state.links.clear();
    }

    /// Has one link have a weather of its own, or that of all others again; the other direction is another link.
    pub fn set_link(&self, from: MachineId, to: MachineId, weather: Option<Weather>) {
        let mut state = self.state.lock().unwrap();
        match weather {
            Some(weather) => state.links.insert((from, to), weather),
            None => state.links.remove(&(from, to)),
        };
    }

    /// Cuts the link from one machine to another once more, or once less; the other direction is another link.
    pub fn set_cut(&self, from: MachineId, to: MachineId, cut: bool) {
        let mut state = self.state.lock().unwrap();
        let cuts = state.cuts.entry((from, to)).or_default();
        *cuts = if cut { *cuts + 1 } else { cuts.saturating_sub(1) };
        drop(state);
        self.changed.notify_waiters();
    }

    /// Has all that a machine is asked and answered held up for about so long, or no longer.
    pub fn set_late(&self, machine: MachineId, late: Option<RangeInclusive<Duration>>) {
        let mut state = self.state.lock().unwrap();
        match late {
            Some(late) => state.late.insert(machine, late),
            None => state.late.remove(&machine),
        };
    }

    /// Has everything between machines take so much longer from now on.
    pub fn set_far(&self, far: Duration) {
        self.state.lock().unwrap().far = far;
    }

    /// Has the words of a machine wait before whom they are for, or lets them in.
    pub fn set_held(&self, machine: MachineId, words: Words, held: bool) {
        if held {
            let state = &mut *self.state.lock().unwrap();
            state.gates += 1;
            state.shut.insert(*state.held.entry((machine, words)).or_insert(state.gates));
        } else if let Some(gate) = self.let_pass(machine, words) {
            self.open(gate);
        }
    }

    /// Lets in the words of a machine that come from now on. Those that wait do so at a gate until it is opened.
    pub fn let_pass(&self, machine: MachineId, words: Words) -> Option<Gate> {
        self.state.lock().unwrap().held.remove(&(machine, words))
    }

    /// Lets in what waits at a gate.
    pub fn open(&self, gate: Gate) {
        self.state.lock().unwrap().shut.remove(&gate);
        self.changed.notify_waiters();
    }

    /// Has a machine hear nothing new, or hear again: Raft messages to it are lost, and streams of looks stand still.
    pub fn set_deaf(&self, machine: MachineId, deaf: bool) {
        let mut state = self.state.lock().unwrap();
        if deaf {
            state.deaf.insert(machine)
        } else {
            state.deaf.remove(&machine)
        };
        drop(state);
        self.changed.notify_waiters();
    }

    /// Has connections break when a command of some machines was carried out, before it is answered; of nobody with `None`.
    pub fn set_unanswered(&self, whose: Option<Unanswered>) {
        self.state.lock().unwrap().unanswered = whose;
    }

    /// Remembers the Raft messages to a machine from now on.
    pub fn remember(&self, machine: MachineId) {
        self.state.lock().unwrap().remembered.insert(machine, Vec::new());
    }

    /// Has what is remembered of a machine come so often more within some time from now on, on whatever connection there is then.
    pub fn echo(&self, machine: MachineId, times: u64, within: Duration) {
        let now = self.time.now_instant();
        let remembered = self.state.lock().unwrap().remembered.remove(&machine).unwrap_or_default();
        for (from, message) in remembered.iter().flat_map(|sent| (0..times).map(move |_| sent)) {
            let at = now + Duration::from_micros(self.draw(*from, machine, within.as_micros() as u64));
            self.state.lock().unwrap().ghosts.entry((*from, machine)).or_default().push((at, message.clone()));
        }
    }

    /// Mends every link.
    pub fn mend(&self) {
        {
            let mut state = self.state.lock().unwrap();
            state.cuts.clear();
            state.late.clear();
            state.far = Duration::ZERO;
            state.held.clear();
            state.shut.clear();
            state.deaf.clear();
            state.unanswered = None;
            state.remembered.clear();
        }
        self.changed.notify_waiters();
    }

    /// Has every Raft message shown to `wiretap` at the instant it leaves its machine; to nobody with `None`. At the end it
    /// must be let go: it may hold what holds the network.
    pub fn set_wiretap(&self, wiretap: Option<Wiretap>) {
        self.state.lock().unwrap().wiretap = wiretap;
    }

    /// The links that are cut.
    pub fn cuts(&self) -> Vec<(MachineId, MachineId)> {
        let state = self.state.lock().unwrap();
        state.cuts.iter().filter(|(_, count)| **count > 0).map(|(link, _)| *link).collect()
    }

    /// How much the network has carried.
    pub fn counts(&self) -> NetworkCounts {
        self.state.lock().unwrap().counts
    }

    fn is_cut(&self, from: MachineId, to: MachineId) -> bool {
        self.state.lock().unwrap().cuts.get(&(from, to)).is_some_and(|cuts| *cuts > 0)
    }

    /// The next draw of the link, below `bound`. Each link has its own stream, so that traffic on one never shifts another's.
    fn draw(&self, from: MachineId, to: MachineId, bound: u64) -> u64 {
        let mut state = self.state.lock().unwrap();
        let stream = state.draws.entry((from, to));
        let bits = stream.or_insert_with(|| self.rng.stream(&format!("network {from} {to}"))).bits();
        crate::io::scale(bits, bound)
    }

    fn delay(&self, from: MachineId, to: MachineId) -> Duration {
        let (weather, far) = {
            let state = self.state.lock().unwrap();
            (state.weather(from, to), state.far)
        };
        if from == to {
            return Duration::from_millis(1);
        }
        let span = (weather.delay_max - weather.delay_min).as_micros() as u64;
        let mut delay = far + weather.delay_min + Duration::from_micros(self.draw(from, to, span + 1));
        if self.draw(from, to, 1000) < weather.slow_permille {
            delay += Duration::from_micros(self.draw(from, to, weather.delay_max.as_micros() as u64 * 10));
        }
        delay
    }

    /// By how much a call or an answer is held up beyond its delay.
    fn stall(&self, from: MachineId, to: MachineId, path: &str) -> Duration {
        let state = self.state.lock().unwrap();
        let late = state.late.get(&to).filter(|_| from != to && path != RAFT_STREAM).cloned();
        let permille = state.weather(from, to).stall_permille;
        drop(state);
        if let Some(late) = late {
            let span = *late.end() - *late.start();
            return *late.start() + Duration::from_micros(self.draw(from, to, span.as_micros() as u64));
        }
        if from == to || path == RAFT_STREAM || permille == 0 || self.draw(from, to, 1000) >= permille {
            return Duration::ZERO;
        }
        Duration::from_micros(self.draw(from, to, STALL_MAX.as_micros() as u64))
    }

    /// How much longer `bytes` take because the link is narrow; `None` if it lags too far behind for more to queue up.
    fn transfer(&self, from: MachineId, to: MachineId, bytes: usize) -> Option<Duration> {
        let state = &mut *self.state.lock().unwrap();
        let bytes_per_ms = state.weather(from, to).bytes_per_ms;
        if from == to || bytes_per_ms == 0 {
            return Some(Duration::ZERO);
        }
        let now = self.time.now_instant();
        let busy = state.busy.entry((from, to)).or_insert(now);
        if *busy > now + QUEUED_MAX {
            return None;
        }
        let takes = Duration::from_micros(bytes as u64 * 1000 / bytes_per_ms);
        *busy = now.max(*busy) + takes;
        Some(*busy - now)
    }

    /// Whether a connection is reset at this frame.
    fn reset(&self, from: MachineId, to: MachineId) -> bool {
        let per_100k = self.state.lock().unwrap().weather(from, to).reset_per_100k;
        let reset = per_100k > 0 && from != to && self.draw(from, to, 100_000) < per_100k;
        self.state.lock().unwrap().counts.resets += u64::from(reset);
        reset
    }

    /// The messages of long ago that come once more by now.
    fn risen(&self, from: MachineId, to: MachineId) -> Vec<Bytes> {
        let (now, mut risen) = (self.time.now_instant(), Vec::new());
        let state = &mut *self.state.lock().unwrap();
        if let Some(ghosts) = state.ghosts.get_mut(&(from, to)) {
            ghosts.retain(|(at, message)| {
                if *at <= now {
                    risen.push(message.clone());
                }
                *at > now
            });
        }
        state.counts.replayed += risen.len() as u64;
        risen
    }

    /// A gRPC message as it arrives: in some weathers it may be damaged.
    fn maybe_corrupt(&self, from: MachineId, to: MachineId, message: Bytes) -> Bytes {
        let per_100k = self.state.lock().unwrap().weather(from, to).corrupt_per_100k;
        let corrupt = per_100k > 0 && self.draw(from, to, 100_000) < per_100k;
        if corrupt { self.corrupt(from, to, &message) } else { message }
    }

    /// A gRPC message with a bit changed, or without its end.
    fn corrupt(&self, from: MachineId, to: MachineId, message: &[u8]) -> Bytes {
        self.state.lock().unwrap().counts.corrupted += 1;
        let body = message.len() - 5;
        let mut bytes = message.to_vec();
        if body > 0 && self.draw(from, to, 4) > 0 {
            let bit = self.draw(from, to, 8 * body as u64) as usize;
            bytes[5 + bit / 8] ^= 1 << (bit % 8);
        } else {
            let left = self.draw(from, to, body as u64 + 1) as usize;
            bytes.truncate(5 + left);
            bytes[1..5].copy_from_slice(&(left as u32).to_be_bytes());
        }
        bytes.into()
    }

    /// Waits while the link is cut. False if the connection did not survive it.
    async fn wait_mended(&self, from: MachineId, to: MachineId) -> bool {
        if !self.is_cut(from, to) {
            return true;
        }
        let patience = Duration::from_millis(2_000 + self.draw(from, to, 8_000));
        let mended = async {
            while self.is_cut(from, to) {
                self.changed.notified().await;
            }
        };
        let pause = self.time.sleep(patience);
        matches!(select(std::pin::pin!(mended), std::pin::pin!(pause)).await, Either::Left(_))
    }

    /// Waits while this holds of what is done to the network.
    async fn wait_while(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            if !holds(&self.state.lock().unwrap()) {
                return;
            }
            changed.await;
        }
    }

    /// Whether a command of a machine that was carried out is not answered.
    fn is_unanswered(&self, from: MachineId, path: &str) -> bool {
        let mut state = self.state.lock().unwrap();
        let unanswered = COMMANDS.contains(&path) && state.unanswered.as_ref().is_some_and(|whose| whose(from));
        state.counts.unanswered += u64::from(unanswered);
        unanswered
    }

    fn wiretap(&self, from: MachineId, to: MachineId, message: &[u8]) {
        let wiretap = self.state.lock().unwrap().wiretap.clone();
        if let Some(wiretap) = wiretap {
            wiretap(from, to, message);
        }
    }
}

struct Port {
    network: Arc<SimNetwork>,
    machine: MachineId,
    node: NodeHandle,
}

#[async_trait]
impl Network for Port {
    async fn bind(&self, address: &Address) -> std::io::Result<Box<dyn Listener>> {
        let mut state = self.network.state.lock().unwrap();
        let address = if address.port() == 0 {
            state.ports += 1;
            address.with_port(state.ports)
        } else {
            address.clone()
        };
        if state.listeners.contains_key(&address) {
            let text = format!("listen on {address}: address in use");
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, text));
        }
        state.bound += 1;
        let number = state.bound;
        let endpoint = Endpoint { number, machine: self.machine, node: self.node.clone(), routes: None };
        state.listeners.insert(address.clone(), endpoint);
        Ok(Box::new(Bound { network: self.network.clone(), number, address }))
    }

    fn connect(&self, address: &Address) -> Channel {
        let (network, from, node) = (self.network.clone(), self.machine, self.node.clone());
        let address = address.clone();
        Channel::new(service_fn(move |request| call(network.clone(), from, node.clone(), address.clone(), request)))
    }
}

struct Bound {
    network: Arc<SimNetwork>,
    number: u64,
    address: Address,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // A machine that is killed lets go late: its next boot may be there already.
        self.network.state.lock().unwrap().listeners.retain(|_, endpoint| endpoint.number != self.number);
    }
}

#[async_trait]
impl Listener for Bound {
    fn address(&self) -> Address {
        self.address.clone()
    }

    async fn serve(self: Box<Self>, routes: Routes, stop: BoxFuture<'static, ()>) -> Result<(), BoxError> {
        if let Some(endpoint) = self.network.state.lock().unwrap().listeners.get_mut(&self.address) {
            endpoint.routes = Some(routes);
        }
        stop.await;
        Ok(())
    }
}

async fn call(
    network: Arc<SimNetwork>,
    from: MachineId,
    source: NodeHandle,
    address: Address,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, ChannelError> {
    network.state.lock().unwrap().counts.calls += 1;
    let endpoint = network.state.lock().unwrap().listeners.get(&address).cloned();
    let Some(Endpoint { machine: to, node: target, routes: Some(mut routes), .. }) = endpoint else {
        network.time.sleep(network.delay(from, from)).await;
        return Err(ChannelError::Connect(format!("connect to {address}: connection refused").into()));
    };
    if network.is_cut(from, to) || network.is_cut(to, from) {
        drop(routes);
        network.time.sleep(CONNECT_TIMEOUT).await;
        return Err(ChannelError::Connect(
            format!("connect to {address}: no answer within {CONNECT_TIMEOUT:?}").into(),
        ));
    }
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    network.trace.event(format_args!("call {from}>{to} {path}"));
    let carriage = Carriage::of(&path);
    let (sender, pipe) = pipe(&network, from, to);
    let pump = source.spawn(Guarded::new(pump(sender, body, carriage))).abort_handle();
    let stop_pump = crate::io::TaskHandle::new(move || pump.abort());

    let (mut answer, mut answered) = oneshot::channel();
    let server_network = network.clone();
    target.spawn(Guarded::new(async move {
        let network = server_network;
        network.time.sleep(network.delay(from, to) + network.stall(from, to, &path)).await;
        let request = http::Request::from_parts(parts, Body::new(pipe));
        let gate = Words::of(&path).and_then(|words| network.state.lock().unwrap().come_to_gate(from, words));
        let is_silent = |state: &State| gate.is_some_and(|gate| state.silent_gates.contains(&gate));
        if let Some(gate) = gate {
            network.wait_while(|state| state.shut.contains(&gate)).await;
            let is_late = path == MOVE && is_silent(&network.state.lock().unwrap());
            sometimes!(is_late, "where a member was in an earlier life was heard in the next");
        }
        // Whoever calls may let go of it: then the server drops what it was about to answer, as soon as it hears that.
        let response = {
            let called = std::pin::pin!(routes.call(request));
            let left = std::pin::pin!(async {
                answer.closed().await;
                // A connection that nobody closed is given up when nothing has come for long.
                let silent = {
                    let state = network.state.lock().unwrap();
                    state.silent.contains(&from) || is_silent(&state)
                };
                let unheard = if silent { network.draw(from, to, SILENCE_MAX.as_millis() as u64) } else { 0 };
                network.time.sleep(network.delay(from, to) + Duration::from_millis(unheard)).await;
                network.wait_mended(from, to).await;
            });
            match select(called, left).await {
                Either::Left((Ok(response), _)) => response,
                Either::Right(_) => {
                    sometimes!("a call was let go of before it was answered");
                    return;
                }
            }
        };
        if network.is_unanswered(from, &path) {
            return;
        }
        let (parts, body) = response.into_parts();
        let (sender, pipe) = pipe::pipe(&network, to, from);
        network.trace.event(format_args!("answer {to}>{from} {path}"));
        if !network.wait_mended(to, from).await {
            return;
        }
        let at = network.time.now_instant() + network.delay(to, from) + network.stall(to, from, &path);
        if answer.send((at, parts, pipe)).is_ok() {
            pipe::pump(sender, body, if carriage == Carriage::Loose { Carriage::Frames } else { carriage }).await;
        }
    }));
    let Ok((at, parts, mut pipe)) = (&mut answered).await else {
        network.time.sleep(network.delay(from, from)).await;
        return Err(ChannelError::Broken(format!("connection to {address} was reset").into()));
    };
    network.time.sleep_until(at).await;
    pipe.keep = Some(stop_pump);
    Ok(http::Response::from_parts(parts, Body::new(pipe)))
}

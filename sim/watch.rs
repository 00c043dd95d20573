//! The oracles that listen while a run goes on: what members say of themselves, and what they say to each other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use madsim::time::TimeHandle;
use prost::Message;
use raft::eraftpb::MessageType;

use crate::entry::{Entry, Outcome};
use crate::ids::{Incarnation, Index, NodeId, Term};
use crate::proto::v1;
use crate::raft::codec;
use crate::raft::core::{Role, Status};
use crate::raft::manager::Observer;
use crate::sim::cost;
use crate::sim::oracle::Violations;
use crate::sim::oracle::canonical::Canonical;
use crate::sim::oracle::digest::Digests;
use crate::sim::oracle::disks;
use crate::sim::oracle::election::Elections;
use crate::sim::oracle::formats::Formats;
use crate::sim::oracle::holdings::Holdings;
use crate::sim::oracle::leases::Leases;
use crate::sim::oracle::membership::Membership;
use crate::sim::oracle::monotonic::Monotonic;
use crate::sim::oracle::past::Past;
use crate::sim::oracle::promise::{Promised, Promises};
use crate::sim::oracle::sessions::Sessions;
use crate::sim::trace::{Note, Trace};
use crate::sim::world::Machine;

/// The oracles that listen while a run goes on.
pub struct Watch {
    trace: Arc<Trace>,
    inner: Mutex<Watched>,
    /// What they found.
    pub violations: Violations,
}

/// Their state.
#[derive(Default)]
pub struct Watched {
    /// Who voted and led.
    pub elections: Elections,
    /// What was applied.
    pub canonical: Canonical,
    /// What it made of the state.
    pub digests: Digests,
    /// Who belongs to the group.
    pub membership: Membership,
    monotonic: Monotonic,
    /// Which sessions there are.
    pub sessions: Sessions,
    /// Which workers have leases.
    pub leases: Leases,
    /// Which leases on keys there are.
    holdings: Holdings,
    /// In which format the state is.
    pub formats: Formats,
    /// What was compacted where clients do not.
    pub past: Past,
    /// What was promised.
    pub promises: Promises,
    /// What each member said last of itself.
    pub statuses: BTreeMap<NodeId, Status>,
    /// Where each member that has spoken is; none for one whose disk is lost.
    machines: BTreeMap<NodeId, Option<Arc<Machine>>>,
}

impl Observer for Watch {
    fn on_applied(&self, life: (NodeId, Incarnation), entry: &Entry, outcome: &Outcome) {
        cost::of("oracles of what is applied", || self.note_applied(life, entry, outcome));
    }

    fn on_installed(&self, life: (NodeId, Incarnation), applied: (Index, Term), digest: u64) {
        self.trace.event(format_args!("installed {} {} {digest:016x}", life.0, applied.0));
        self.state().digests.on_installed(life.0, applied.0, digest, &self.violations);
    }

    fn on_lease(&self, life: (NodeId, Incarnation), term: Term) {
        self.state().elections.on_lease(life.0, term, &self.violations);
    }

    fn on_status(&self, life: (NodeId, Incarnation), status: &Status) {
        cost::of("oracles of what members say", || self.note_status(life, status));
    }
}

impl Watch {
    fn note_applied(&self, life: (NodeId, Incarnation), entry: &Entry, outcome: &Outcome) {
        self.trace.event(format_args!("applied {} {} {:016x}", life.0, entry.index, outcome.digest));
        let state = &mut *self.state();
        state.canonical.on_applied(life.0, entry, outcome, &self.violations);
        state.digests.on_applied(life.0, entry.index, outcome.digest, &self.violations);
        let Watched { promises, machines, membership, .. } = state;
        // Who has never said anything has acknowledged nothing; what is on a disk that was lost does not count.
        let last = |id: NodeId| match machines.get(&id) {
            Some(Some(machine)) => {
                let upto = |promised: &Promised| promised.last() >= entry.index;
                promises.find(machine.id, &machine.disk, upto).ok().map(Promised::last)
            }
            Some(None) => None,
            None => Some(Index(0)),
        };
        membership.check_promotion(entry, last, &self.violations);
        let commit = || {
            let machine = machines.get(&life.0)?.as_ref()?;
            let upto = |promised: &Promised| promised.commit() >= entry.index;
            promises.find(machine.id, &machine.disk, upto).ok().map(Promised::commit)
        };
        Membership::check_durable(life.0, entry, commit, &self.violations);
        state.membership.on_applied(life.0, entry, &self.violations);
        state.sessions.on_applied(entry, outcome, &self.violations);
        state.leases.on_applied(entry, outcome, &self.violations);
        state.holdings.on_applied(entry, outcome, &self.violations);
        let now = TimeHandle::current().elapsed();
        state.formats.on_applied(entry, outcome, (&state.membership.servers(), now), &self.violations);
        state.past.on_applied(entry, outcome, now, &self.violations);
    }

    fn note_status(&self, life: (NodeId, Incarnation), status: &Status) {
        let inner = &mut *self.state();
        if status.role == Role::Leader {
            inner.elections.on_leader(life.0, status.term, &self.violations);
        }
        inner.monotonic.on_status(life, status, &self.violations);
        let Watched { membership, promises, machines, .. } = inner;
        let term = promises.sent(status.term, status.commit);
        let promises = std::cell::RefCell::new(promises);
        // A member that has not spoken yet, or whose disk is lost, may have held it.
        let holds = |id: NodeId, index: Index| match machines.get(&id) {
            Some(Some(machine)) => promises.borrow_mut().holds(machine.id, &machine.disk, index, term),
            Some(None) | None => true,
        };
        membership.on_status(status, holds, &self.violations);
        inner.statuses.insert(life.0, status.clone());
        self.trace.note(|| Note::Status(life.0, Box::new(status.clone())));
    }

    /// Oracles that have seen nothing.
    pub fn new(trace: Arc<Trace>) -> Arc<Self> {
        Arc::new(Self { trace, inner: Mutex::default(), violations: Violations::default() })
    }

    /// What they know.
    pub fn state(&self) -> MutexGuard<'_, Watched> {
        self.inner.lock().unwrap()
    }

    /// Who said last that it leads, in the latest term.
    pub fn leader(&self) -> Option<NodeId> {
        let watched = self.state();
        let leading = watched.statuses.iter().filter(|(_, status)| status.role == Role::Leader);
        leading.max_by_key(|(_, status)| status.term).map(|(id, _)| *id)
    }

    /// The voters of whoever has applied most; nothing while they are about to change.
    pub fn voters(&self) -> Option<Vec<NodeId>> {
        self.of_last(|last| (!last.joint).then(|| last.voters.clone())).flatten()
    }

    /// Whether two configurations are in force at once.
    pub fn is_joint(&self) -> bool {
        self.of_last(|last| last.joint).unwrap_or(false)
    }

    /// Who votes, and those who are to while they are about to change.
    pub fn voters_to_be(&self) -> Vec<NodeId> {
        self.of_last(|last| last.voters.clone()).unwrap_or_default()
    }

    /// What whoever has applied most says of itself.
    fn of_last<T>(&self, look: impl FnOnce(&Status) -> T) -> Option<T> {
        self.state().statuses.values().max_by_key(|status| status.applied).map(look)
    }

    /// A machine is about to boot: its disk must still promise what it was seen to promise.
    pub fn on_boot(&self, machine: &Machine) {
        let state = &mut *self.state();
        if let Some(before) = state.promises.last_seen(machine.id) {
            disks::on_boot(machine.id, &before, &Promised::of(&machine.disk), &self.violations);
        }
    }

    /// A machine's disk was lost, or is not to be trusted any more.
    pub fn on_lost(&self, machine: &Machine) {
        let state = &mut *self.state();
        state.promises.forget(machine.id);
        for place in state.machines.values_mut().filter(|at| at.as_ref().is_some_and(|at| at.id == machine.id)) {
            *place = None;
        }
    }

    /// A machine has its own disk again: it holds what it held.
    pub fn on_own(&self, machine: &Arc<Machine>, id: Option<NodeId>) {
        if let Some(id) = id {
            self.state().machines.insert(id, Some(machine.clone()));
        }
    }

    /// A frame of Raft messages leaves a machine.
    pub fn on_frame(&self, machine: &Arc<Machine>, frame: &[u8]) {
        cost::of("oracles of what leaves a machine", || self.note_frame(machine, frame));
    }

    fn note_frame(&self, machine: &Arc<Machine>, frame: &[u8]) {
        let Ok(frame) = v1::RaftFrame::decode(frame) else {
            return self.violations.add("frames are well formed", format!("machine {} sent garbage", machine.id));
        };
        let inner = &mut *self.state();
        for wire in frame.messages {
            let message = match codec::message_from_wire(wire) {
                Ok(message) => message,
                Err(error) => return self.violations.add("frames are well formed", error.to_string()),
            };
            let kind = message.get_msg_type();
            inner.promises.on_message(machine.id, &machine.disk, &message, &self.violations);
            let Watched { membership, promises, .. } = inner;
            membership.on_message(&message, |index| {
                let upto = |promised: &Promised| promised.commit() >= index;
                let promised = promises.find(machine.id, &machine.disk, upto);
                // What its disk does not have others must: a majority without it.
                promised.is_ok_and(|promised| upto(promised) || promised.last() < index)
            });
            inner.machines.entry(NodeId(message.from)).or_insert_with(|| Some(machine.clone()));
            if !matches!(kind, MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse) {
                inner.monotonic.on_message(NodeId(message.from), Term(message.term));
            }
            // Who asks for votes has given itself its own.
            let candidate = match kind {
                MessageType::MsgRequestVote => Some(message.from),
                MessageType::MsgRequestVoteResponse => Some(message.to).filter(|_| !message.reject),
                _ => None,
            };
            if let Some(candidate) = candidate.map(NodeId) {
                inner.elections.on_vote(NodeId(message.from), Term(message.term), candidate, &self.violations);
            }
        }
    }
}

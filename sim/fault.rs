//! What goes wrong, or what an operator does: each kind a value with its times, so that a plan is data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sim::disk::{Damage, DiskOp, Files, PowerCut};
#[cfg(doc)]
use crate::sim::draw::CRASH_PATIENCE;
use crate::sim::mark::Marks;
use crate::sim::network::Weather;

/// A machine of the cluster, by its place in it: 0 is the founder's, and after those that keep the state come the workers
/// that keep none.
pub type Place = usize;

/// Some of the machines: bit `n` is place `n`.
pub type Places = u16;

/// What a fault touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
    /// Links, and the weather on them.
    Network,
    /// What is stored.
    Disk,
    /// What runs.
    Process,
    /// What time it is.
    Clock,
    /// Who belongs to the cluster, and who leads it.
    Membership,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Network, Self::Disk, Self::Process, Self::Clock, Self::Membership];
}

/// One thing that goes wrong, or that an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The process is killed and started again.
    Kill {
        /// Which.
        node: Place,
        /// How long it stays off.
        down: Duration,
    },
    /// The node is stopped in order, and another version of it started.
    Upgrade {
        /// Which.
        node: Place,
        /// It is the older one; only while the cluster is in the first format.
        back: bool,
        /// Whether its process exits, so that all that it held open is closed.
        exits: bool,
        /// How long it stays off.
        down: Duration,
    },
    /// The power goes and comes back.
    Power {
        /// Which.
        node: Place,
        /// What becomes of unsynced writes.
        cut: PowerCut,
        /// How long it stays off.
        down: Duration,
    },
    /// The power goes, and again while the node recovers.
    Recovery {
        /// Which.
        node: Place,
        /// What becomes of unsynced writes, both times.
        cut: PowerCut,
        /// Disk operations that the recovery gets through before.
        operations: u64,
        /// How long it stays off, both times.
        down: Duration,
    },
    /// It is stopped in order and started again.
    Stop {
        /// Which.
        node: Place,
        /// Its process ends by itself then, and closes what it holds; or it is killed just after it has stopped.
        exits: bool,
        /// How long it stays off.
        down: Duration,
    },
    /// It is killed again and again as soon as it is up.
    Storm {
        /// Which.
        node: Place,
        /// How often.
        times: u64,
        /// How long it stays up and off, at most.
        down: Duration,
    },
    /// It stops answering while its clock runs.
    Pause {
        /// Which.
        node: Place,
        /// For how long.
        span: Duration,
    },
    /// It gets the processor only now and then.
    Slow {
        /// Which.
        node: Place,
        /// For how long.
        span: Duration,
    },
    /// Power for all at once.
    Blackout {
        /// What becomes of unsynced writes.
        cut: PowerCut,
        /// How long they stay off.
        down: Duration,
        /// One that stays off until everything is healed.
        gone: Option<Place>,
        /// So long after two configurations were in force at once, if they ever are.
        after_joint: Option<Duration>,
    },
    /// All that a member is told comes late for a while, and then it is cut off.
    Strand {
        /// Which.
        node: Place,
        /// For how long, both together.
        span: Duration,
    },
    /// Links are cut.
    Cut {
        /// Which.
        links: Links,
        /// For how long.
        span: Duration,
    },
    /// Its disk is all but full.
    Full {
        /// Which.
        node: Place,
        /// Bytes that are left.
        left: u64,
        /// For how long.
        span: Duration,
    },
    /// Its disk is slow.
    Stall {
        /// Which.
        node: Place,
        /// Where on the disk.
        files: Files,
        /// For how long.
        span: Duration,
    },
    /// An operation of its disk fails; a node that stops over it is started again.
    DiskError {
        /// Which.
        node: Place,
        /// The kind of operation.
        op: DiskOp,
        /// How long after.
        down: Duration,
    },
    /// What is stored is damaged while it is off. If its node does not start over that, an operator puts another machine in its
    /// place.
    Rot {
        /// Which.
        node: Place,
        /// How.
        damage: Damage,
        /// In which files.
        files: Files,
        /// Pages, in thousandths.
        permille: u64,
        /// It was stopped in order before.
        stopped: bool,
        /// How long it stays off.
        down: Duration,
    },
    /// Its disk is lost, and an operator puts another machine in its place.
    Replace {
        /// Which.
        node: Place,
        /// How long that takes.
        down: Duration,
    },
    /// Its power goes at the next of some marked places in the code that its node comes by, within [`CRASH_PATIENCE`].
    Crash {
        /// Which.
        node: Place,
        /// Where.
        marks: Marks,
        /// What becomes of unsynced writes.
        cut: PowerCut,
        /// How long it stays off.
        down: Duration,
    },
    /// It starts from a copy of another's disk, which it must notice, until it gets its own back.
    WrongDisk {
        /// Which.
        node: Place,
        /// Whose.
        other: Place,
        /// How old the copy is then.
        #[serde(default)]
        age: Duration,
    },
    /// Its clock runs fast or slow, or stands still.
    Speed {
        /// Which.
        node: Place,
        /// By how many millionths it is fast.
        ppm: i64,
        /// For how long.
        span: Duration,
    },
    /// Somebody sets its time of day.
    WallStep {
        /// Which.
        node: Place,
        /// By how much, in milliseconds.
        millis: i64,
    },
    /// An operator asks it to lead.
    Transfer {
        /// Which.
        to: Place,
    },
    /// An operator has it take no new tasks for a while.
    Drain {
        /// Which.
        node: Place,
        /// For how long.
        span: Duration,
    },
    /// Two operators ask two members to lead, at once.
    TransferRace {
        /// Which.
        to: Place,
        /// And which.
        other: Place,
    },
    /// An operator removes it for ever.
    Remove {
        /// Which.
        node: Place,
        /// It is started again later.
        returns: bool,
        /// So long after the operator is told that it is removed the power goes for all who are left.
        cut: Option<(Duration, PowerCut)>,
    },
    /// An operator removes whoever leads.
    RemoveLeader,
    /// It is killed and started again at another address.
    Move {
        /// Which.
        node: Place,
        /// How long it stays off.
        down: Duration,
    },
    /// It has not been there from the beginning: it joins now.
    Join {
        /// Which.
        node: Place,
        /// After so many disk operations its power goes, and this becomes of unsynced writes.
        birth: Option<(u64, PowerCut)>,
        /// Two operators remove it so long after it is a member: perhaps just when it is to get a vote.
        removed: Option<Duration>,
        /// An operator has an id ready for it, perhaps one that stands by until it is promoted.
        #[serde(default)]
        expected: Option<bool>,
    },
    /// An operator has it write its state anew, into a file without anything free.
    Defragment {
        /// Which.
        node: Place,
        /// So long after its power goes, this becomes of unsynced writes, and it stays off as long again.
        cut: Option<(Duration, PowerCut)>,
        /// For so long it is asked for anew when it is done.
        #[serde(default)]
        span: Duration,
    },
    /// Somebody removes what the attempts of a machine run in, or ran in, and tells nobody.
    Tidy {
        /// Which.
        node: Place,
    },
    /// An operator asks it to lead as soon as two configurations are in force at once, and its disk is held up.
    TransferInJoint {
        /// Which.
        to: Place,
    },
    /// Everything between machines takes longer.
    Far {
        /// By how much, one way.
        delay: Duration,
        /// For how long.
        span: Duration,
    },
    /// One link has a weather of its own; the other direction keeps that of all.
    Link {
        /// From.
        from: Place,
        /// To.
        to: Place,
        /// What it is like.
        weather: Weather,
        /// For how long.
        span: Duration,
    },
    /// They have too few processors: whenever one of their tasks has something to do it waits for its turn.
    Crowded {
        /// Which.
        these: Places,
        /// For how long.
        span: Duration,
    },
    /// Whoever leads stops answering while its clock runs.
    PauseLeader {
        /// For how long.
        span: Duration,
    },
    /// Connections break when a command was carried out, before it is answered; with the first of them all members are killed.
    Unanswered {
        /// What clients sent, not what members passed on.
        direct: bool,
        /// Clients speak the protocol of etcd's, and only who leads is killed: the others say what they know.
        #[serde(default)]
        foreign: bool,
        /// So long after.
        after: Duration,
        /// How long they stay off.
        down: Duration,
    },
    /// Whoever leads is cut off with many entries that nobody else has, another leads with few, and when these have replaced
    /// those the power of the first goes.
    Diverge {
        /// What becomes of unsynced writes.
        cut: PowerCut,
        /// How long it stays off.
        down: Duration,
    },
    /// An operator removes a member while so many are off that the rest could not go on.
    RemoveInMinority {
        /// How long they stay off at least, besides what it takes to notice.
        down: Duration,
    },
    /// Operators remove all voters but one, and as soon as the last but one knows it the power of the last goes.
    RemoveToLast {
        /// The last one's disk is held up.
        stalled: bool,
        /// What becomes of unsynced writes.
        cut: PowerCut,
        /// How long it stays off.
        down: Duration,
    },
    /// It is killed, and again when it is up for a while; what was said to it in between comes again and again in its next
    /// life, and nothing else does.
    Echo {
        /// Which.
        node: Place,
        /// For how long it is up.
        span: Duration,
        /// How long it stays off, both times.
        down: Duration,
    },
    /// A member falls behind, and then it is the only one that a worker can reach.
    Behind {
        /// The worker.
        node: Place,
        /// The member.
        other: Place,
        /// For how long it falls behind.
        lag: Duration,
        /// For how long it is the only one.
        span: Duration,
    },
    /// A worker's renewals are all held up, and come when its lease is just over for the cluster, to which everything takes long.
    LateRenewals {
        /// The worker.
        node: Place,
        /// By how much longer it takes, one way.
        delay: Duration,
    },
    /// Sessions are used just when they have been idle for as long as they live, by a cluster to which everything takes long.
    LateUse {
        /// By how much longer it takes, one way.
        delay: Duration,
    },
    /// A worker is killed and comes back just before its lease is over for the cluster; that it is back comes late there, and what
    /// the cluster wants of it since comes late to it.
    LateReturn {
        /// The worker.
        node: Place,
        /// So long before.
        before: Duration,
        /// So long after, its word comes through.
        after: Duration,
    },
    /// A member moves and says so, loses its power before that is heard, and moves again; then the first is heard.
    LateMove {
        /// The member.
        node: Place,
        /// For how long it is down, each time.
        down: Duration,
        /// So long after its second life has begun.
        after: Duration,
    },
    /// A worker is stopped in order, and killed before anyone hears that it leaves; that is heard when it is back.
    LateWords {
        /// The worker.
        node: Place,
        /// For how long it is down.
        down: Duration,
    },
    /// An operator removes it for ever, and it is started again where nobody can be reached.
    RemoveAndIsolate {
        /// Which.
        node: Place,
    },
}

/// Links between members to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Links {
    /// Messages from one to another are lost; the way back works.
    OneWay {
        /// From.
        from: Place,
        /// To.
        to: Place,
    },
    /// It reaches no other member, nor they it. Clients do.
    Isolate {
        /// Which.
        node: Place,
    },
    /// Whoever leads at that time reaches nobody.
    Leader,
    /// Whoever leads at that time hears nobody, and is heard.
    LeaderDeaf,
    /// Whoever campaigns first from then on reaches nobody.
    Candidate,
    /// These from all others.
    Halves {
        /// These.
        these: Places,
    },
    /// These from all others but one, which reaches all.
    Bridge {
        /// These.
        these: Places,
        /// The one.
        middle: Place,
    },
    /// Both ways between two, again and again.
    Flap {
        /// Between.
        one: Place,
        /// And.
        other: Place,
        /// How long they are cut, and then mended.
        period: Duration,
    },
    /// These are isolated one by one, and come back one by one in the reverse order.
    Swizzle {
        /// These.
        these: Places,
    },
}

impl Links {
    fn places(self) -> Vec<Place> {
        match self {
            Self::OneWay { from, to } => vec![from, to],
            Self::Flap { one, other, .. } => vec![one, other],
            Self::Isolate { node } => vec![node],
            Self::Bridge { middle, .. } => vec![middle],
            Self::Leader | Self::LeaderDeaf | Self::Candidate | Self::Halves { .. } | Self::Swizzle { .. } => {
                Vec::new()
            }
        }
    }
}

impl Fault {
    /// What it touches.
    pub fn class(&self) -> Class {
        match self {
            Self::Kill { .. }
            | Self::Power { .. }
            | Self::Recovery { .. }
            | Self::Stop { .. }
            | Self::Upgrade { .. }
            | Self::Storm { .. }
            | Self::Pause { .. }
            | Self::Slow { .. }
            | Self::Crash { .. }
            | Self::PauseLeader { .. }
            | Self::Crowded { .. }
            | Self::Tidy { .. }
            | Self::Blackout { .. } => Class::Process,
            Self::Cut { .. }
            | Self::Strand { .. }
            | Self::Far { .. }
            | Self::Link { .. }
            | Self::Unanswered { .. }
            | Self::Diverge { .. }
            | Self::Echo { .. }
            | Self::Behind { .. }
            | Self::LateRenewals { .. }
            | Self::LateUse { .. }
            | Self::LateReturn { .. }
            | Self::LateWords { .. } => Class::Network,
            Self::Full { .. }
            | Self::Stall { .. }
            | Self::DiskError { .. }
            | Self::Rot { .. }
            | Self::WrongDisk { .. }
            | Self::Defragment { .. }
            | Self::Replace { .. } => Class::Disk,
            Self::WallStep { .. } | Self::Speed { .. } => Class::Clock,
            Self::Transfer { .. }
            | Self::TransferRace { .. }
            | Self::Drain { .. }
            | Self::Remove { .. }
            | Self::RemoveLeader
            | Self::RemoveInMinority { .. }
            | Self::RemoveToLast { .. }
            | Self::RemoveAndIsolate { .. }
            | Self::Move { .. }
            | Self::LateMove { .. }
            | Self::TransferInJoint { .. }
            | Self::Join { .. } => Class::Membership,
        }
    }

    /// The machines it names.
    pub fn places(&self) -> Vec<Place> {
        match *self {
            Self::Kill { node, .. }
            | Self::Power { node, .. }
            | Self::Recovery { node, .. }
            | Self::Stop { node, .. }
            | Self::Upgrade { node, .. }
            | Self::Storm { node, .. }
            | Self::Pause { node, .. }
            | Self::Slow { node, .. }
            | Self::Crash { node, .. }
            | Self::Speed { node, .. }
            | Self::Strand { node, .. }
            | Self::Full { node, .. }
            | Self::Stall { node, .. }
            | Self::DiskError { node, .. }
            | Self::Rot { node, .. }
            | Self::Replace { node, .. }
            | Self::WallStep { node, .. }
            | Self::Remove { node, .. }
            | Self::Move { node, .. }
            | Self::LateMove { node, .. }
            | Self::Echo { node, .. }
            | Self::LateRenewals { node, .. }
            | Self::LateReturn { node, .. }
            | Self::LateWords { node, .. }
            | Self::RemoveAndIsolate { node }
            | Self::Defragment { node, .. }
            | Self::Drain { node, .. }
            | Self::Tidy { node }
            | Self::Join { node, .. } => vec![node],
            Self::Transfer { to } | Self::TransferInJoint { to } => vec![to],
            Self::TransferRace { to, other } => vec![to, other],
            Self::Link { from, to, .. } => vec![from, to],
            Self::WrongDisk { node, other, .. } | Self::Behind { node, other, .. } => vec![node, other],
            Self::Cut { links, .. } => links.places(),
            Self::Blackout { gone, .. } => gone.into_iter().collect(),
            Self::RemoveLeader
            | Self::Far { .. }
            | Self::Crowded { .. }
            | Self::PauseLeader { .. }
            | Self::Unanswered { .. }
            | Self::Diverge { .. }
            | Self::LateUse { .. }
            | Self::RemoveInMinority { .. }
            | Self::RemoveToLast { .. } => Vec::new(),
        }
    }

    /// Whether a member loses for good what it had made durable, or leaves with it. What it takes for that to do no harm is
    /// looked at when it happens: see `oracle/budget.rs`.
    pub fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Rot { .. }
                | Self::Replace { .. }
                | Self::Remove { .. }
                | Self::RemoveLeader
                | Self::RemoveInMinority { .. }
                | Self::RemoveToLast { .. }
                | Self::RemoveAndIsolate { .. }
        )
    }

    /// How long it lasts; nothing for what is done once.
    pub fn span(mut self) -> Duration {
        self.span_mut().map_or(Duration::ZERO, |span| *span)
    }

    /// The same for another time.
    pub fn with_span(mut self, span: Duration) -> Self {
        if let Some(old) = self.span_mut() {
            *old = span;
        }
        self
    }

    fn span_mut(&mut self) -> Option<&mut Duration> {
        match self {
            Self::Kill { down, .. }
            | Self::Power { down, .. }
            | Self::Recovery { down, .. }
            | Self::Stop { down, .. }
            | Self::Upgrade { down, .. }
            | Self::Storm { down, .. }
            | Self::DiskError { down, .. }
            | Self::Rot { down, .. }
            | Self::Replace { down, .. }
            | Self::Move { down, .. }
            | Self::LateMove { down, .. }
            | Self::Crash { down, .. }
            | Self::Unanswered { down, .. }
            | Self::Diverge { down, .. }
            | Self::RemoveInMinority { down }
            | Self::RemoveToLast { down, .. }
            | Self::Blackout { down, .. } => Some(down),
            Self::Pause { span, .. }
            | Self::Slow { span, .. }
            | Self::Cut { span, .. }
            | Self::Strand { span, .. }
            | Self::Stall { span, .. }
            | Self::Drain { span, .. }
            | Self::Speed { span, .. }
            | Self::Far { span, .. }
            | Self::Link { span, .. }
            | Self::Crowded { span, .. }
            | Self::PauseLeader { span }
            | Self::Echo { span, .. }
            | Self::Behind { span, .. }
            | Self::Full { span, .. } => Some(span),
            Self::WallStep { .. }
            | Self::Tidy { .. }
            | Self::WrongDisk { .. }
            | Self::Transfer { .. }
            | Self::TransferRace { .. }
            | Self::Remove { .. }
            | Self::RemoveLeader
            | Self::Defragment { .. }
            | Self::TransferInJoint { .. }
            | Self::LateRenewals { .. }
            | Self::LateUse { .. }
            | Self::LateReturn { .. }
            | Self::LateWords { .. }
            | Self::RemoveAndIsolate { .. }
            | Self::Join { .. } => None,
        }
    }
}

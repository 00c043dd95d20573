//! Clients that put a key of their own under leases, keep them alive for a while, and note what they see of both.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::LeaseId;
use crate::io::RngStream;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
};
use crate::sim::door::Door;
use crate::sim::history::Seen;
use crate::sim::load::number;

/// The lock that all of them want at times.
const LOCK: &str = "wanted";
/// What the names of their keys begin with: none that others use do.
pub const PREFIX: &str = "held ";

/// What a holder did, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The lease was granted, or lasts again, for so long from when that was asked for.
    Lasts(LeaseId, Duration),
    /// The lease is not there any more.
    Gone(LeaseId),
    /// It may end from now on: it is revoked.
    Revoked(LeaseId),
    /// The key has this value now, and is under this lease (0: none).
    Put(u64, LeaseId),
    /// The key may have this value under this lease, or may come to have it: whether that was carried out, or will be, is not known.
    MayPut(u64, LeaseId),
    /// The key has this value, or is not there.
    Found(Option<u64>),
    /// The lock is held by this lease, with a key that came into being then.
    Locked(LeaseId, u64),
}

/// One of them, with the virtual times at which it began and ended.
#[derive(Clone, Debug)]
pub struct Note {
    /// Began.
    pub from: Duration,
    /// Ended.
    pub to: Duration,
    /// What.
    pub what: What,
}

/// What all holders of a run have noted, each for itself, in order.
#[derive(Default)]
pub struct Holders {
    notes: Mutex<Vec<Vec<Note>>>,
}

/// One of them at work.
struct Holder<'a> {
    door: &'a Door,
    number: usize,
    elapsed: &'a (dyn Fn() -> Duration + Sync),
    holders: &'a Holders,
}

impl Holders {
    /// Room for so many.
    pub fn new(count: usize) -> Self {
        Self { notes: Mutex::new(vec![Vec::new(); count]) }
    }

    /// What each has noted.
    pub fn notes(&self) -> Vec<Vec<Note>> {
        self.notes.lock().unwrap().clone()
    }

    /// Has the holder of a number take and lose leases until `goes_on` says no more.
    pub async fn hold(
        &self,
        door: &Door,
        number: usize,
        mut rng: RngStream,
        elapsed: &(dyn Fn() -> Duration + Sync),
        goes_on: &(dyn Fn() -> bool + Sync),
    ) {
        let holder = Holder { door, number, elapsed, holders: self };
        let mut value = 0;
        while goes_on() {
            let ttl = rng.range(2, 13);
            let Some(lease) = holder.grant(ttl).await else {
                door.pause(Duration::from_millis(rng.range(50, 1_000))).await;
                continue;
            };
            if rng.chance(400) {
                holder.lock(lease, ttl, rng.range(1, 4)).await;
                continue;
            }
            value += 1;
            holder.put(value, lease).await;
            let renewals = *rng.pick(&[0, 1, 3, 6]);
            // Most in good time, some just about when it ends.
            let pauses: [u64; 4] = [ttl * 150, ttl * 350, ttl * 600, ttl * 1_000 - 100];
            for _ in 0..renewals {
                door.pause(Duration::from_millis(*rng.pick(&pauses))).await;
                holder.keep_alive(lease).await;
                holder.look().await;
            }
            match rng.range(0, 5) {
                0 => holder.revoke(lease).await,
                // It ends, and the key with it.
                1 => {
                    door.pause(Duration::from_millis(ttl * 1_000 + rng.range(0, 3_000))).await;
                    holder.keep_alive(lease).await;
                }
                // It ends, and the key is under none, or soon under the next.
                2 => {
                    value += 1;
                    holder.put(value, LeaseId(0)).await;
                    door.pause(Duration::from_millis(rng.range(0, ttl * 1_500))).await;
                }
                _ => {}
            }
            holder.look().await;
        }
    }
}

impl Holder<'_> {
    fn note(&self, from: Duration, what: What) {
        let note = Note { from, to: (self.elapsed)(), what };
        self.holders.notes.lock().unwrap()[self.number].push(note);
    }

    fn key(&self) -> Bytes {
        format!("{PREFIX}{}", self.number).into()
    }

    async fn grant(&self, ttl: u64) -> Option<LeaseId> {
        let from = (self.elapsed)();
        let granted = self.door.grant(LeaseGrantRequest { id: 0, ttl: ttl.cast_signed() }).await.ok()?;
        let lease = LeaseId(granted.id);
        self.note(from, What::Lasts(lease, Duration::from_secs(granted.ttl.cast_unsigned())));
        Some(lease)
    }

    async fn put(&self, value: u64, lease: LeaseId) {
        let from = (self.elapsed)();
        let put = PutRequest {
            key: self.key(),
            value: value.to_be_bytes().to_vec().into(),
            lease: lease.0,
            ..PutRequest::default()
        };
        match self.door.put(put).await {
            Ok(_) => self.note(from, What::Put(value, lease)),
            Err(Seen::NotDone | Seen::Full) => {}
            Err(_) => self.note(from, What::MayPut(value, lease)),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) {
        let from = (self.elapsed)();
        match self.door.keep_alive(LeaseKeepAliveRequest { id: lease.0 }).await {
            Ok(0) => self.note(from, What::Gone(lease)),
            Ok(ttl) => self.note(from, What::Lasts(lease, Duration::from_secs(ttl))),
            Err(_) => {}
        }
    }

    /// Takes the lock, and keeps it for a while. Whoever waits in vain keeps the lease until it ends, or not.
    async fn lock(&self, lease: LeaseId, ttl: u64, renewals: u64) {
        let from = (self.elapsed)();
        let mut locked = Err(Seen::Unknown);
        // Who loses patience asks again, under the same lease.
        for _ in 0..4 {
            locked = self.door.lock(LOCK, lease.0, Duration::from_millis(ttl * 250)).await;
            if !matches!(locked, Err(Seen::Unknown | Seen::NotDone)) {
                break;
            }
        }
        match locked {
            Ok((_, token)) => self.note(from, What::Locked(lease, token)),
            // While the lease lasts, nobody takes away a place that was not left.
            Err(Seen::Got(None)) => return self.note(from, What::Gone(lease)),
            Err(_) => return,
        }
        for _ in 0..renewals {
            self.door.pause(Duration::from_millis(ttl * 300)).await;
            self.keep_alive(lease).await;
        }
        self.revoke(lease).await;
    }

    async fn revoke(&self, lease: LeaseId) {
        // Whatever comes of it, it may have been done as soon as it was asked for.
        self.note((self.elapsed)(), What::Revoked(lease));
        let _ = self.door.revoke(LeaseRevokeRequest { id: lease.0 }).await;
    }

    async fn look(&self) {
        let from = (self.elapsed)();
        let range = RangeRequest { key: self.key(), ..RangeRequest::default() };
        if let Ok(reply) = self.door.range(range).await {
            self.note(from, What::Found(reply.kvs.first().map(|row| number(&row.value))));
        }
    }
}

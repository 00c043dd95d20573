//! Leases on keys, as a client sees them.

use std::time::Duration;

use super::{Client, ClientError, unexpected};
use crate::error::{KvReject, Reject};
use crate::ids::{LeaseId, Revision};
use crate::limits::CLOCK_DRIFT_PPM_MAX;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use crate::proto::v1::{command::Kind, query_reply, query_request, reply};
use crate::time::Monotonic;

/// A span in whole seconds, as etcd counts it: no less than it is.
fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

/// When a lease ends that was asked for at a time: a tenth early, for the clocks of its holder and of the cluster may differ.
fn end(asked: Monotonic, ttl: Duration) -> Monotonic {
    asked + ttl * 9 / 10
}

const _: () = assert!(2 * CLOCK_DRIFT_PPM_MAX < 100_000);

/// A lease that its holder keeps alive.
pub struct HeldLease {
    client: Client,
    id: LeaseId,
    ttl: Duration,
    /// When it ends, by the clock of this machine, if it is not kept alive.
    ends: Monotonic,
}

impl HeldLease {
    /// Its id.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Keeps it alive for as long as this is polled. Gives why that cannot be done any more, a quarter of its time before it ends,
    /// or when it is gone.
    pub async fn keep(&mut self) -> ClientError {
        let clock = self.client.io.clock.clone();
        let mut last = ClientError::Unavailable("it was not kept alive in time".into());
        loop {
            let (renew, late) = (self.ends - self.ttl * 2 / 3, self.ends - self.ttl / 4);
            clock.sleep(renew.min(late).since(clock.now())).await;
            let asked = clock.now();
            let left = late.since(asked);
            if left.is_zero() {
                return last;
            }
            // What hangs leaves time for another try.
            let client = self.client.with_timeout(left.min(self.ttl / 4));
            match client.keep_lease_alive(self.id).await {
                Ok(ttl) => self.ends = end(asked, ttl),
                Err(error @ (ClientError::Rejected(_) | ClientError::Invalid(_))) => return error,
                Err(error) => last = error,
            }
        }
    }

    /// Waits until it has ended, if it is not kept alive.
    pub async fn end(&self) {
        let clock = &self.client.io.clock;
        clock.sleep(self.ends.since(clock.now())).await;
    }

    /// Ends it: its keys are removed. Tries for no longer than it lasts, for then they are removed without this.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke(self) -> Result<(), ClientError> {
        let left = self.ends.since(self.client.io.clock.now());
        let client = self.client.with_timeout(left.min(self.client.timeout));
        client.revoke_lease(self.id).await.map(|_| ())
    }
}

impl Client {
    /// Grants a lease that is to be kept alive.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn hold_lease(&self, ttl: Duration) -> Result<HeldLease, ClientError> {
        let asked = self.io.clock.now();
        let (id, ttl) = self.grant_lease(None, ttl).await?;
        Ok(HeldLease { client: self.clone(), id, ttl, ends: end(asked, ttl) })
    }

    /// Grants a lease under an id of one's own, or any. Says for how long it is: one that is too short is lengthened.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected if there is such a lease already, or it is to last too long.
    pub async fn grant_lease(&self, id: Option<LeaseId>, ttl: Duration) -> Result<(LeaseId, Duration), ClientError> {
        let grant = LeaseGrantRequest { id: id.unwrap_or_default().0, ttl: seconds(ttl) };
        match self.execute(Kind::LeaseGrant(grant)).await? {
            reply::Kind::LeaseGrant(reply) => {
                Ok((LeaseId(reply.id), Duration::from_secs(reply.ttl.try_into().unwrap_or_default())))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a lease: its keys are removed. Says at which revision they are gone.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected if there is no such lease.
    pub async fn revoke_lease(&self, id: LeaseId) -> Result<Revision, ClientError> {
        match self.execute(Kind::LeaseRevoke(LeaseRevokeRequest { id: id.0 })).await? {
            reply::Kind::LeaseRevoke(reply) => Ok(super::revision(reply.header.as_ref())),
            other => Err(unexpected(&other)),
        }
    }

    /// Has a lease last its whole time again. Says for how long that is, counted from when this was called. Repeating it does no
    /// harm, so it needs no session.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected if there is no such lease any more.
    pub async fn keep_lease_alive(&self, id: LeaseId) -> Result<Duration, ClientError> {
        match self.execute_plain(Kind::LeaseKeepAlive(LeaseKeepAliveRequest { id: id.0 })).await? {
            reply::Kind::LeaseKeepAlive(reply) => match u64::try_from(reply.ttl) {
                Ok(ttl) if ttl > 0 => Ok(Duration::from_secs(ttl)),
                _ => Err(ClientError::Rejected(Reject::Kv(KvReject::LeaseNotFound(id)))),
            },
            other => Err(unexpected(&other)),
        }
    }

    /// What is left of a lease, and with `keys` its keys; linearizably. Nothing if there is no such lease.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lease(&self, id: LeaseId, keys: bool) -> Result<Option<LeaseTimeToLiveResponse>, ClientError> {
        let asked = LeaseTimeToLiveRequest { id: id.0, keys };
        match self.query(query_request::Kind::LeaseTimeToLive(asked)).await? {
            query_reply::Kind::LeaseTimeToLive(reply) => Ok((reply.ttl >= 0).then_some(reply)),
            other => Err(unexpected(&other)),
        }
    }

    /// All leases, in the order in which they end; linearizably.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leases(&self) -> Result<Vec<LeaseId>, ClientError> {
        match self.query(query_request::Kind::LeaseLeases(LeaseLeasesRequest {})).await? {
            query_reply::Kind::LeaseLeases(reply) => Ok(reply.leases.iter().map(|lease| LeaseId(lease.id)).collect()),
            other => Err(unexpected(&other)),
        }
    }
}

//! Who calls, and whether that is enough for what is called: one table for all services. What is not in it is for root alone.
//!
//! ```text
//!   a user's token ──(signed by this cluster, and still good)──► that user
//!   the cluster's token, or a call within this process ────────► root
//!   neither ──────────────────────────────────────────────────► nobody; a member, where the cluster has no token
//! ```
//!
//! What a user may do with which keys is looked at where it is done: commands when they are applied, reads on the view that answers.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::HeaderValue;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use tonic::{Code, Status};

use super::etcd::{no_leader, rejected};
use crate::error::AuthReject;
use crate::io::{Clock, HEALTH, LIVEZ, LOG_IN, READYZ, Shown, TOKEN_NEEDED, USER_TOKEN, VERSION, refused};
use crate::limits::USER_TOKEN_TTL;
use crate::proto::v1::UserToken;
use crate::shared::{Caller, FORWARDED, REQUIRES_LEADER, SharedNodeState};
use crate::state::auth::{Auth, ROOT, read_token};
use crate::time::ClusterTime;

/// How long a member may take to find out that a token which it does not know is good, or is not.
const PATIENCE: Duration = Duration::from_secs(3);

/// How the paths begin of what etcd's clients call.
const ETCDS: [&str; 3] = ["/etcdserverpb.", "/v3lockpb.", "/v3electionpb."];

/// Where watches are asked for.
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// It is found out who calls; whether that is enough is looked at where the call is answered.
    Caller,
    /// Somebody who is among the users.
    User,
    Root,
    /// Another member, or a node that is to be one.
    Member,
}

fn need(path: &str) -> Need {
    if [LOG_IN, HEALTH, LIVEZ, READYZ, VERSION].contains(&path) {
        return Need::Nothing;
    }
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        // Not a call of gRPC: the counters.
        return Need::Member;
    };
    match (service, method) {
        ("grpc.health.v1.Health", _) => Need::Nothing,
        ("cairn.v1.Store", "Execute" | "Query") => Need::Caller,
        ("etcdserverpb.KV" | "etcdserverpb.Watch" | "v3lockpb.Lock" | "v3electionpb.Election", _) => Need::Caller,
        ("etcdserverpb.Lease", "LeaseGrant" | "LeaseRevoke" | "LeaseKeepAlive" | "LeaseTimeToLive") => Need::Caller,
        ("etcdserverpb.Auth", "UserGet" | "RoleGet") => Need::Caller,
        // For who watches over members, and is no user; and for who asks where they are before logging in.
        ("etcdserverpb.Maintenance", "Status") | ("etcdserverpb.Cluster", "MemberList") => Need::Caller,
        ("etcdserverpb.Auth", "AuthStatus") | ("etcdserverpb.Lease", "LeaseLeases") => Need::User,
        ("cairn.v1.Cluster", "Status") => Need::User,
        ("cairn.v1.Peer" | "cairn.v1.Work", _) | ("cairn.v1.Store", "PassOn") => Need::Member,
        ("cairn.v1.Cluster", "Join" | "Heard" | "Move") => Need::Member,
        _ => Need::Root,
    }
}

/// Lets a call to a member that keeps the state through if whoever calls may make it.
pub async fn admit(State(shared): State<Arc<SharedNodeState>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match admitted(&shared, &parts).await {
        Ok(caller) => {
            parts.extensions.insert(caller);
            let is_etcds = ETCDS.iter().any(|services| parts.uri.path().starts_with(services));
            let wants_leader = parts.headers.get(REQUIRES_LEADER).is_some_and(|value| value == "true");
            if is_etcds && wants_leader && shared.raft.status().leader.is_none() {
                return no_leader().into_http();
            }
            let response = next.run(Request::from_parts(parts, body)).await;
            if is_etcds { too_long(response) } else { response }
        }
        Err(status) => refused(&*shared.io.clock, &parts.headers, body, status).await,
    }
}

/// Has a refusal of a message that is too long say so as etcd does: `OUT_OF_RANGE`, as our transport has it, means to etcd's clients
/// that a revision is not there.
fn too_long(response: Response) -> Response {
    let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.code() == Code::OutOfRange)
    else {
        return response;
    };
    let number = |after: &str| status.message().split_once(after)?.1.split(' ').next()?.parse::<u64>().ok();
    match (number("message length too large: found "), number("the limit is: ")) {
        (Some(found), Some(limit)) => {
            let text = format!("grpc: received message larger than max ({found} vs. {limit})");
            Status::resource_exhausted(text).into_http()
        }
        _ => response,
    }
}

/// Lets a call to a node that keeps no state, and so knows no users, through if a member makes it.
pub async fn admit_members(State(clock): State<Arc<dyn Clock>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match need(parts.uri.path()) == Need::Nothing || is_member(&parts) {
        true => next.run(Request::from_parts(parts, body)).await,
        false => refused(&*clock, &parts.headers, body, Status::unauthenticated(TOKEN_NEEDED)).await,
    }
}

/// Whoever has the cluster's token can speak as a member, and where there is none whoever reaches it.
fn is_member(parts: &Parts) -> bool {
    parts.extensions.get() != Some(&Shown::Nothing)
}

/// Whether whoever makes a call of gRPC may make it. It is asked again when it is made.
///
/// # Errors
/// As the call would be refused.
pub async fn check(shared: &SharedNodeState, path: &'static str, call: &tonic::Request<()>) -> Result<(), Status> {
    let (mut parts, ()) = axum::http::Request::new(()).into_parts();
    parts.uri = axum::http::Uri::from_static(path);
    parts.headers = call.metadata().clone().into_headers();
    if let Some(shown) = call.extensions().get::<Shown>() {
        parts.extensions.insert(*shown);
    }
    admitted(shared, &parts).await.map(|_| ())
}

async fn admitted(shared: &SharedNodeState, parts: &Parts) -> Result<Caller, Status> {
    let need = need(parts.uri.path());
    let is_member = is_member(parts);
    // A member has found out who called it.
    let by_member = need == Need::Member || parts.headers.contains_key(FORWARDED);
    match need {
        Need::Nothing => return Ok(Caller::default()),
        _ if by_member && is_member => return Ok(Caller::root()),
        Need::Member => return Err(Status::unauthenticated(TOKEN_NEEDED)),
        Need::Caller | Need::User | Need::Root => {}
    }
    let (caller, auth) = caller(shared, parts, is_member).await?;
    let enough = match need {
        Need::Root => auth.rights(&caller.user).and_then(|rights| rights.all()),
        Need::User => auth.rights(&caller.user).map(|_| ()),
        _ => Ok(()),
    };
    enough.map_err(|reject| rejected(&reject.into()))?;
    Ok(caller)
}

/// Who calls, and what users may do.
async fn caller(shared: &SharedNodeState, parts: &Parts, is_member: bool) -> Result<(Caller, Arc<Auth>), Status> {
    let mut auth = shared.reader.auth();
    let invalid = |auth| match parts.uri.path() {
        // A stream goes on, and what is asked for on it is refused, one by one.
        WATCH => Ok((Caller { is_member, ..Caller::outdated() }, auth)),
        _ => Err(rejected(&AuthReject::TokenInvalid.into())),
    };
    let by_token =
        |UserToken { user, since, .. }: UserToken| Caller { user: user.into(), since: Some(since), is_member };
    if let Some(token) = parts.headers.get(USER_TOKEN) {
        if let Some(token) = known(&auth, token, shared.raft.cluster_time()) {
            return Ok((by_token(token), auth));
        }
        let is_signed = token.to_str().is_ok_and(|token| read_token(auth.key(), token).is_some());
        if auth.is_enabled() && !is_signed {
            return invalid(auth);
        }
        // This member may not have heard of the user yet.
        shared.read_barrier(shared.io.clock.now() + PATIENCE).await?;
        auth = shared.reader.auth();
        match known(&auth, token, shared.raft.cluster_time()) {
            Some(token) => return Ok((by_token(token), auth)),
            None if auth.is_enabled() => return invalid(auth),
            None => {}
        }
    }
    match parts.extensions.get() {
        Some(Shown::Token) => Ok((Caller { user: ROOT.into(), since: None, is_member }, auth)),
        Some(Shown::Nothing) | None if is_member || auth.is_enabled() => {
            Ok((Caller { is_member, ..Caller::default() }, auth))
        }
        Some(Shown::Nothing) | None => Err(Status::unauthenticated(TOKEN_NEEDED)),
    }
}

/// What a token says, if it is good.
fn known(auth: &Auth, token: &HeaderValue, now: ClusterTime) -> Option<UserToken> {
    let token = token.to_str().ok().filter(|_| auth.is_enabled())?;
    let token = read_token(auth.key(), token)?;
    // None is made for longer; members differ a little in what time it is.
    let is_now = (now.0..=(now + 2 * USER_TOKEN_TTL).0).contains(&token.end_ms);
    let is_good = is_now && auth.user(&token.user).is_some_and(|row| row.since == token.since);
    is_good.then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_for_root() {
        assert_eq!(need("/etcdserverpb.KV/Put"), Need::Caller);
        assert_eq!(need("/etcdserverpb.Auth/Authenticate"), Need::Nothing);
        assert_eq!(need("/cairn.v1.Store/PassOn"), Need::Member);
        assert_eq!(need("/metrics"), Need::Member);
        for path in [
            "/etcdserverpb.Auth/UserAdd",
            "/etcdserverpb.Maintenance/Snapshot",
            "/cairn.v1.Cluster/Remove",
            "/new/Call",
        ] {
            assert_eq!(need(path), Need::Root, "{path}");
        }
    }
}

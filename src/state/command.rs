//! Commands and replies: what a command's bytes mean, and how a refusal is written down.

use bytes::Bytes;
use prost::Message;

use super::machine::Apply;
use super::{alarm, auth, format, kv, lease, session, task, worker};
use crate::error::{AuthReject, Context, Fault, KvReject, Reject};
use crate::ids::{LeaseId, NodeId, Seq, SessionId, TaskId, Token};
use crate::limits::COMMAND_BYTES_MAX;
use crate::proto::v1::{self, command, rejection, reply};

/// A command under no session that a user asks for; see [`auth::ROOT`] for what the cluster does by itself.
pub fn plain(user: &str, kind: command::Kind) -> v1::Command {
    v1::Command { session: None, kind: Some(kind), user: user.into(), since: None }
}

/// Checks what can be checked of a command without the state, before it is proposed.
///
/// # Errors
/// Which part is missing or out of bounds.
pub fn check(command: &v1::Command) -> Result<(), Reject> {
    let invalid = |field: &str, why: String| Err(Reject::Invalid { field: field.into(), why });
    if command.encoded_len() > COMMAND_BYTES_MAX {
        return invalid("command", format!("{} bytes; at most {COMMAND_BYTES_MAX}", command.encoded_len()));
    }
    match &command.kind {
        None => invalid("kind", "missing, or from a newer version than this member's".into()),
        Some(command::Kind::KeepSession(_)) if command.session.is_none() => {
            invalid("session", "missing; it names the session to keep".into())
        }
        Some(kind) => check_kind(kind),
    }
}

/// Checks what can be checked of what a command asks for, without the state.
///
/// # Errors
/// Which part is missing or out of bounds.
pub fn check_kind(kind: &command::Kind) -> Result<(), Reject> {
    match kind {
        command::Kind::Put(put) => kv::check_put(put).map_err(Reject::from),
        command::Kind::DeleteRange(delete) => kv::check_delete_range(delete).map_err(Reject::from),
        command::Kind::Txn(txn) => kv::check_txn(txn).map_err(Reject::from),
        command::Kind::LeaseGrant(grant) => lease::check_grant(grant).map_err(Reject::from),
        command::Kind::Alarm(request) => alarm::check(request),
        command::Kind::ChangeAuth(change) => auth::check_change(change),
        command::Kind::SubmitTask(submit) => task::check_spec(submit.spec.as_ref()),
        command::Kind::RegisterWorker(register) => worker::check_features(&register.features),
        command::Kind::RenewWorker(renew) => {
            renew.registered.as_ref().map_or(Ok(()), |registered| worker::check_features(&registered.features))
        }
        command::Kind::ReportAttempt(report) => task::check_exit(report.exit.as_ref()),
        command::Kind::RaiseFormat(_) => {
            let why = "a format is begun by the leader alone, when all take part in it";
            Err(Reject::Invalid { field: "kind".into(), why: why.into() })
        }
        command::Kind::Batch(batch) => batch.commands.iter().try_for_each(check_of_batch),
        _ => Ok(()),
    }
}

/// Whether a command may be in a batch.
pub fn is_of_batch(kind: &command::Kind) -> bool {
    matches!(kind, command::Kind::Put(_) | command::Kind::DeleteRange(_) | command::Kind::Txn(_))
}

fn check_of_batch(command: &v1::Command) -> Result<(), Reject> {
    let is_bare = command.session.is_none() && command.user.is_empty() && command.since.is_none();
    if !is_bare || !command.kind.as_ref().is_some_and(is_of_batch) {
        let why =
            "only puts, removals and transactions, which are under no session of their own and no user's of their own";
        return Err(Reject::Invalid { field: "batch".into(), why: why.into() });
    }
    check(command)
}

/// Carries out one command and returns the encoded reply.
///
/// # Errors
/// The bytes are no command this version knows, or the database failed: this member must stop, for others may have
/// carried it out.
pub(super) fn execute(apply: &mut Apply<'_>, command: &Bytes) -> Result<Bytes, Fault> {
    // It shares the bytes: nothing of it may be kept without copying it.
    let command = v1::Command::decode(command.clone()).context(|| "decode a command of the log".into())?;
    let kind = known(&command)?;
    if apply.has(format::BOUNDED)
        && let Err(reject) = apply.auth.check_token(&command.user, command.since)
    {
        sometimes!("a command came with a token that was good no more");
        return Ok(refusal(&reject.into()).encode_to_vec().into());
    }
    let Some(header) = &command.session else {
        return Ok(run(apply, &command.user, kind)?.encode_to_vec().into());
    };
    // What was answered before is not for who may not ask any more.
    if let Err(reject) = apply.auth.rights(&command.user) {
        return Ok(refusal(&reject.into()).encode_to_vec().into());
    }
    match session::begin(apply, header, &command.user)? {
        session::Begin::Replay(reply) => Ok(reply),
        session::Begin::Refuse(reject) => Ok(refusal(&reject).encode_to_vec().into()),
        session::Begin::Fresh => {
            let reply = run(apply, &command.user, kind)?;
            // What was put off may yet be done.
            if is_put_off(&reply) { Ok(reply.encode_to_vec().into()) } else { session::finish(apply, header, &reply) }
        }
    }
}

/// Whether a reply says that the command is to be proposed again, for there was no room for it in its entry.
pub fn is_put_off(reply: &v1::Reply) -> bool {
    matches!(refused(reply), Some(rejection::Kind::Keys(keys)) if keys.why() == rejection::keys::Why::EntryFull)
}

/// Why a command was refused, if it was.
pub fn refused(reply: &v1::Reply) -> Option<&rejection::Kind> {
    match &reply.kind {
        Some(reply::Kind::Rejection(rejection)) => rejection.kind.as_ref(),
        _ => None,
    }
}

fn known(command: &v1::Command) -> Result<&command::Kind, Fault> {
    let unknown = || Fault::new("the log holds a command that this version does not know; upgrade this member");
    command.kind.as_ref().ok_or_else(unknown)
}

/// Carries out what a command asks for; of a batch, each command for itself.
fn run(apply: &mut Apply<'_>, user: &str, kind: &command::Kind) -> Result<v1::Reply, Fault> {
    let command::Kind::Batch(batch) = kind else { return run_one(apply, user, kind) };
    let one = |command| run_one(apply, user, known(command)?);
    let replies = batch.commands.iter().map(one).collect::<Result<_, _>>()?;
    Ok(v1::Reply { kind: Some(reply::Kind::Batch(v1::CommandBatchReply { replies })) })
}

fn run_one(apply: &mut Apply<'_>, user: &str, kind: &command::Kind) -> Result<v1::Reply, Fault> {
    if let Err(reject) = auth::check(apply, user, kind) {
        sometimes!("a user was refused what it may not do");
        return Ok(refusal(&reject.into()));
    }
    if let Some(reject) = alarm::refusal(&apply.head, kind) {
        sometimes!("an alarm kept something from being done");
        return Ok(refusal(&reject.into()));
    }
    let answer = match kind {
        command::Kind::Put(put) => kv::put(apply, put)?.map(reply::Kind::Put),
        command::Kind::DeleteRange(delete) => kv::delete_range(apply, delete)?.map(reply::Kind::DeleteRange),
        command::Kind::Txn(txn) => kv::txn(apply, txn)?.map(reply::Kind::Txn),
        command::Kind::Compact(compact) => kv::compact(apply, compact)?.map(reply::Kind::Compact),
        command::Kind::SweepVersions(_) => {
            Ok(reply::Kind::SweepVersions(v1::SweepVersionsReply { swept: kv::sweep(apply)? }))
        }
        command::Kind::LeaseGrant(grant) => lease::grant(apply, grant)?.map(reply::Kind::LeaseGrant),
        command::Kind::LeaseRevoke(revoke) => lease::revoke(apply, revoke)?.map(reply::Kind::LeaseRevoke),
        command::Kind::LeaseKeepAlive(keep) => Ok(reply::Kind::LeaseKeepAlive(lease::keep_alive(apply, keep)?)),
        command::Kind::ExpireLeases(expire) => {
            let expired = lease::expire(apply, &expire.leases)?;
            Ok(reply::Kind::ExpireLeases(v1::ExpireLeasesReply { expired }))
        }
        command::Kind::Alarm(request) => alarm::change(apply, request)?.map(reply::Kind::Alarm),
        command::Kind::ChangeAuth(change) => auth::change(apply, change)?.map(reply::Kind::ChangeAuth),
        command::Kind::RaiseFormat(raise) => Ok(reply::Kind::RaiseFormat(format::raise(apply, raise)?)),
        command::Kind::OpenSession(open) => session::open(apply, open, user)?.map(reply::Kind::OpenSession),
        command::Kind::KeepSession(_) => Ok(reply::Kind::KeepSession(v1::KeepSessionReply {})),
        command::Kind::CloseSession(close) => session::close(apply, SessionId(close.session), user)?
            .map(|()| reply::Kind::CloseSession(v1::CloseSessionReply {})),
        command::Kind::ExpireSessions(expire) => {
            let expired = session::expire(apply, &expire.sessions)?;
            Ok(reply::Kind::ExpireSessions(v1::ExpireSessionsReply { expired }))
        }
        command::Kind::SubmitTask(submit) => task::submit(apply, submit)?.map(reply::Kind::SubmitTask),
        command::Kind::StopTask(stop) => task::stop(apply, TaskId(stop.id))?.map(reply::Kind::StopTask),
        command::Kind::AssignTasks(assign) => {
            let assigned = task::assign(apply, assign)?;
            Ok(reply::Kind::AssignTasks(v1::AssignTasksReply { assigned }))
        }
        command::Kind::ReportAttempt(report) => task::report(apply, report)?.map(reply::Kind::ReportAttempt),
        command::Kind::RegisterWorker(register) => worker::register(apply, register)?.map(reply::Kind::WorkerLease),
        command::Kind::RenewWorker(renew) => worker::renew(apply, renew)?.map(reply::Kind::WorkerLease),
        command::Kind::SetWorkerStatus(set) => {
            worker::set_status(apply, set)?.map(|()| reply::Kind::SetWorkerStatus(v1::SetWorkerStatusReply {}))
        }
        command::Kind::ExpireWorkers(expire) => {
            let expired = worker::expire(apply, &expire.workers)?;
            Ok(reply::Kind::ExpireWorkers(v1::ExpireWorkersReply { expired }))
        }
        command::Kind::Batch(_) => return Err(Fault::new("the log holds a batch in a batch, which no member lets in")),
    };
    Ok(match answer {
        Ok(kind) => v1::Reply { kind: Some(kind) },
        Err(reject) => refusal(&reject),
    })
}

/// A refusal as it is written down.
pub fn rejection(reject: &Reject) -> v1::Rejection {
    use rejection::Kind;
    let stale = |session: &SessionId, seq: &Seq, acknowledged: &Seq| rejection::Stale {
        session: session.0,
        seq: seq.0,
        acknowledged: acknowledged.0,
    };
    let kind = match reject {
        Reject::SessionExpired(session) => Kind::SessionExpired(session.0),
        Reject::Stale { session, seq, acknowledged } => Kind::Stale(stale(session, seq, acknowledged)),
        Reject::WindowFull { session, seq, acknowledged } => Kind::WindowFull(stale(session, seq, acknowledged)),
        Reject::LimitReached { what, limit } => Kind::Limit(rejection::Limit { what: what.clone(), limit: *limit }),
        Reject::AnswerNotKept(bytes) => Kind::AnswerNotKept(*bytes),
        Reject::Kv(reject) => Kind::Keys(keys_rejection(*reject)),
        Reject::Auth(reject) => Kind::Auth(auth_rejection(*reject).into()),
        Reject::NotFound(what) => Kind::NotFound(what.clone()),
        Reject::Conflict(what) => Kind::Conflict(what.clone()),
        Reject::Fenced(token) => Kind::Fenced(token.0),
        Reject::WorkerOffline(worker) => Kind::WorkerOffline(worker.0),
        Reject::Invalid { field, why } => Kind::Invalid(rejection::Invalid { field: field.clone(), why: why.clone() }),
    };
    v1::Rejection { kind: Some(kind) }
}

/// A refusal as an answer.
pub fn refusal(reject: &Reject) -> v1::Reply {
    v1::Reply { kind: Some(reply::Kind::Rejection(rejection(reject))) }
}

/// A reply's refusal, as a value again; `None` if it is one that this version does not know.
pub fn reject(rejection: &v1::Rejection) -> Option<Reject> {
    use rejection::Kind;
    let stale = |s: &rejection::Stale| (SessionId(s.session), Seq(s.seq), Seq(s.acknowledged));
    Some(match rejection.kind.as_ref()? {
        Kind::SessionExpired(session) => Reject::SessionExpired(SessionId(*session)),
        Kind::Stale(s) => {
            let (session, seq, acknowledged) = stale(s);
            Reject::Stale { session, seq, acknowledged }
        }
        Kind::WindowFull(s) => {
            let (session, seq, acknowledged) = stale(s);
            Reject::WindowFull { session, seq, acknowledged }
        }
        Kind::Limit(l) => Reject::LimitReached { what: l.what.clone(), limit: l.limit },
        Kind::AnswerNotKept(bytes) => Reject::AnswerNotKept(*bytes),
        Kind::Keys(keys) => Reject::Kv(keys_reject(keys)?),
        Kind::Auth(auth) => Reject::Auth(auth_reject(rejection::Auth::try_from(*auth).ok()?)?),
        Kind::NotFound(what) => Reject::NotFound(what.clone()),
        Kind::Conflict(what) => Reject::Conflict(what.clone()),
        Kind::Fenced(token) => Reject::Fenced(Token(*token)),
        Kind::WorkerOffline(worker) => Reject::WorkerOffline(NodeId(*worker)),
        Kind::Invalid(i) => Reject::Invalid { field: i.field.clone(), why: i.why.clone() },
    })
}

fn auth_rejection(reject: AuthReject) -> rejection::Auth {
    use rejection::Auth;
    match reject {
        AuthReject::UserMissing => Auth::UserMissing,
        AuthReject::TokenInvalid => Auth::TokenInvalid,
        AuthReject::Denied => Auth::Denied,
        AuthReject::PasswordMissing => Auth::PasswordMissing,
        AuthReject::RoleMissing => Auth::RoleMissing,
        AuthReject::PermissionMissing => Auth::PermissionMissing,
        AuthReject::RootUserMissing => Auth::RootUserMissing,
        AuthReject::RootRoleMissing => Auth::RootRoleMissing,
        AuthReject::RootPasswordMissing => Auth::RootPasswordMissing,
        AuthReject::RootNeeded => Auth::RootNeeded,
        AuthReject::UserExists => Auth::UserExists,
        AuthReject::UserNotFound => Auth::UserNotFound,
        AuthReject::RoleExists => Auth::RoleExists,
        AuthReject::RoleNotFound => Auth::RoleNotFound,
        AuthReject::RoleNotGranted => Auth::RoleNotGranted,
        AuthReject::PermissionNotGranted => Auth::PermissionNotGranted,
    }
}

fn auth_reject(auth: rejection::Auth) -> Option<AuthReject> {
    use rejection::Auth;
    Some(match auth {
        Auth::Unspecified => return None,
        Auth::UserMissing => AuthReject::UserMissing,
        Auth::TokenInvalid => AuthReject::TokenInvalid,
        Auth::Denied => AuthReject::Denied,
        Auth::PasswordMissing => AuthReject::PasswordMissing,
        Auth::RoleMissing => AuthReject::RoleMissing,
        Auth::PermissionMissing => AuthReject::PermissionMissing,
        Auth::RootUserMissing => AuthReject::RootUserMissing,
        Auth::RootRoleMissing => AuthReject::RootRoleMissing,
        Auth::RootPasswordMissing => AuthReject::RootPasswordMissing,
        Auth::RootNeeded => AuthReject::RootNeeded,
        Auth::UserExists => AuthReject::UserExists,
        Auth::UserNotFound => AuthReject::UserNotFound,
        Auth::RoleExists => AuthReject::RoleExists,
        Auth::RoleNotFound => AuthReject::RoleNotFound,
        Auth::RoleNotGranted => AuthReject::RoleNotGranted,
        Auth::PermissionNotGranted => AuthReject::PermissionNotGranted,
    })
}

fn keys_rejection(reject: KvReject) -> rejection::Keys {
    use rejection::keys::Why;
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let (why, given, bound) = match reject {
        KvReject::KeyMissing => (Why::KeyMissing, 0, 0),
        KvReject::ValueGiven => (Why::ValueGiven, 0, 0),
        KvReject::LeaseGiven => (Why::LeaseGiven, 0, 0),
        KvReject::KeyNotFound => (Why::KeyNotFound, 0, 0),
        KvReject::LeaseNotFound(lease) => (Why::LeaseNotFound, lease.0, 0),
        KvReject::LeaseExists(lease) => (Why::LeaseExists, lease.0, 0),
        KvReject::TtlTooLarge(seconds) => (Why::TtlTooLarge, seconds, 0),
        KvReject::TooManyOperations(operations) => (Why::TooManyOperations, number(operations), 0),
        KvReject::TooDeep => (Why::TooDeep, 0, 0),
        KvReject::DuplicateKey => (Why::DuplicateKey, 0, 0),
        KvReject::InvalidSort => (Why::InvalidSort, 0, 0),
        KvReject::InvalidCompare => (Why::InvalidCompare, 0, 0),
        KvReject::TooLarge(bytes) => (Why::TooLarge, number(bytes), 0),
        KvReject::EntryFull => (Why::EntryFull, 0, 0),
        KvReject::ReadsTooMuch(bytes) => (Why::ReadsTooMuch, number(bytes), 0),
        KvReject::Compacted { asked, compacted } => (Why::Compacted, number(asked), number(compacted)),
        KvReject::Future { asked, newest } => (Why::Future, number(asked), number(newest)),
        KvReject::NoSpace => (Why::NoSpace, 0, 0),
        KvReject::Corrupt => (Why::Corrupt, 0, 0),
    };
    rejection::Keys { why: why.into(), given, bound }
}

fn keys_reject(keys: &rejection::Keys) -> Option<KvReject> {
    use rejection::keys::Why;
    let (given, bound) = (u64::try_from(keys.given).unwrap_or_default(), u64::try_from(keys.bound).unwrap_or_default());
    Some(match keys.why() {
        Why::Unspecified => return None,
        Why::KeyMissing => KvReject::KeyMissing,
        Why::ValueGiven => KvReject::ValueGiven,
        Why::LeaseGiven => KvReject::LeaseGiven,
        Why::KeyNotFound => KvReject::KeyNotFound,
        Why::LeaseNotFound => KvReject::LeaseNotFound(LeaseId(keys.given)),
        Why::LeaseExists => KvReject::LeaseExists(LeaseId(keys.given)),
        Why::TtlTooLarge => KvReject::TtlTooLarge(keys.given),
        Why::TooManyOperations => KvReject::TooManyOperations(given),
        Why::TooDeep => KvReject::TooDeep,
        Why::DuplicateKey => KvReject::DuplicateKey,
        Why::InvalidSort => KvReject::InvalidSort,
        Why::InvalidCompare => KvReject::InvalidCompare,
        Why::TooLarge => KvReject::TooLarge(given),
        Why::EntryFull => KvReject::EntryFull,
        Why::ReadsTooMuch => KvReject::ReadsTooMuch(given),
        Why::Compacted => KvReject::Compacted { asked: given, compacted: bound },
        Why::Future => KvReject::Future { asked: given, newest: bound },
        Why::NoSpace => KvReject::NoSpace,
        Why::Corrupt => KvReject::Corrupt,
    })
}

//! Client sessions: each request of a session takes effect once, however often it is sent and to whom (Raft
//! dissertation, §6.3).
//!
//! ```text
//!   open ──► live ──(idle for the TTL, proposed by the leader, checked again at apply)──► expired: the row is gone
//!              └────(close)───────────────────────────────────────────────────────────► closed:  the row is gone
//! ```
//!
//! A session keeps the replies above what its client has acknowledged. A request below is stale, one of a session
//! that is gone is refused as expired: it is never silently begun anew, because then a retry could take effect twice. For the same
//! reason no two sessions are called the same, not even those of a state and of another that was restored from its backup.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use prost::Message;

use super::machine::Apply;
use super::table::{Read, Table};
use super::{command, format};
use crate::error::{Context, Fault, KvReject, Reject};
use crate::ids::{Seq, SessionId};
use crate::limits::{
    EXPIRE_SESSIONS_MAX, SESSION_ANSWER_BYTES_MAX, SESSION_ANSWERS_BYTES_MAX, SESSION_TTL, SESSION_WINDOW_MAX,
    SESSIONS_MAX,
};
use crate::proto::v1::{self, reply};
use crate::time::ClusterTime;

fn key(session: SessionId) -> [u8; 8] {
    session.0.to_be_bytes()
}

fn reply_key(session: SessionId, seq: Seq) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&session.0.to_be_bytes());
    key[8..].copy_from_slice(&seq.0.to_be_bytes());
    key
}

fn read(rows: &impl Read, session: SessionId) -> Result<Option<v1::SessionRow>, Fault> {
    let row = rows.get(Table::Sessions, &key(session))?;
    row.map(|row| v1::SessionRow::decode(&*row).context(|| format!("decode the session {session}"))).transpose()
}

/// What is to be done with a request of a session.
pub(super) enum Begin {
    /// It has not taken effect: carry it out, then [`finish`].
    Fresh,
    /// It has; this was the answer.
    Replay(Bytes),
    /// It cannot be carried out.
    Refuse(Reject),
}

/// Looks a request up and notes that the session is in use.
pub(super) fn begin(apply: &mut Apply<'_>, header: &v1::SessionHeader, user: &str) -> Result<Begin, Fault> {
    let (session, seq, acknowledged) = (SessionId(header.session), Seq(header.seq), Seq(header.acknowledged));
    // What somebody else was answered is not this user's to see.
    let Some(mut row) = read(&apply.rows, session)?.filter(|row| row.user == user) else {
        sometimes!("a request came under a session that is gone");
        return Ok(Begin::Refuse(Reject::SessionExpired(session)));
    };
    let before = Seq(row.acknowledged);
    if seq.0 == 0 || acknowledged >= seq {
        let why =
            format!("{seq} with {acknowledged} acknowledged; requests count from 1 and follow what they acknowledge");
        return Ok(Begin::Refuse(Reject::Invalid { field: "session.seq".into(), why }));
    }
    if seq <= before {
        sometimes!("a request came below what was acknowledged");
        return Ok(Begin::Refuse(Reject::Stale { session, seq, acknowledged: before }));
    }
    let acknowledged = before.max(acknowledged);
    if seq.0 - acknowledged.0 > SESSION_WINDOW_MAX {
        return Ok(Begin::Refuse(Reject::WindowFull { session, seq, acknowledged }));
    }
    let forgotten = forget(apply, session, Seq(before.0 + 1), acknowledged)?;
    // Those of before the bounds were not counted.
    row.kept_bytes = row.kept_bytes.saturating_sub(forgotten);
    row.acknowledged = acknowledged.0;
    row.active_ms = apply.head.cluster_time_ms;
    apply.rows.put(Table::Sessions, &key(session), &row.encode_to_vec())?;
    if apply.has(format::BOUNDED)
        && let Err(reject) = apply.budget.left()
    {
        return Ok(Begin::Refuse(reject.into()));
    }
    match apply.rows.get(Table::Replies, &reply_key(session, seq))? {
        Some(reply) => {
            let len = reply.len() as u64;
            if apply.has(format::BOUNDED)
                && let Err(reject) = apply.budget.spend(len)
            {
                // What was kept before there were bounds may be more than any entry may read.
                let not_kept = matches!(reject, KvReject::ReadsTooMuch(_)).then_some(Reject::AnswerNotKept(len));
                return Ok(Begin::Refuse(not_kept.unwrap_or_else(|| reject.into())));
            }
            sometimes!("a retry got the first answer");
            Ok(Begin::Replay(reply.into()))
        }
        None => Ok(Begin::Fresh),
    }
}

/// Keeps the answer of a request that [`begin`] called fresh. Of one for which there is no room it keeps that it was done; a refusal is
/// short, and says that it was not.
pub(super) fn finish(apply: &mut Apply<'_>, header: &v1::SessionHeader, reply: &v1::Reply) -> Result<Bytes, Fault> {
    let (session, seq) = (SessionId(header.session), Seq(header.seq));
    let answer = Bytes::from(reply.encode_to_vec());
    // A request may have closed its own session.
    let Some(mut row) = read(&apply.rows, session)? else { return Ok(answer) };
    let mut kept = answer.clone();
    if apply.has(format::BOUNDED) {
        let is_refused = matches!(reply.kind, Some(reply::Kind::Rejection(_)));
        let fits =
            kept.len() <= SESSION_ANSWER_BYTES_MAX && row.kept_bytes + kept.len() as u64 <= SESSION_ANSWERS_BYTES_MAX;
        if !fits && !is_refused {
            sometimes!("an answer was too long to be kept");
            let not_kept = command::refusal(&Reject::AnswerNotKept(answer.len() as u64)).encode_to_vec();
            kept = if not_kept.len() < kept.len() { not_kept.into() } else { kept };
        }
        row.kept_bytes += kept.len() as u64;
        apply.rows.put(Table::Sessions, &key(session), &row.encode_to_vec())?;
    }
    apply.rows.put(Table::Replies, &reply_key(session, seq), &kept)?;
    Ok(answer)
}

/// Drops the replies `from..=to` of a session. Gives how many bytes they had.
fn forget(apply: &mut Apply<'_>, session: SessionId, from: Seq, to: Seq) -> Result<u64, Fault> {
    if from > to {
        return Ok(0);
    }
    let range = (Bound::Included(reply_key(session, from).to_vec()), Bound::Included(reply_key(session, to).to_vec()));
    let (mut keys, mut bytes) = (Vec::new(), 0);
    apply.rows.scan(Table::Replies, range, &mut |key, reply| {
        keys.push(key.to_vec());
        bytes += reply.len() as u64;
        Ok(ControlFlow::Continue(()))
    })?;
    for key in keys {
        apply.rows.remove(Table::Replies, &key)?;
    }
    Ok(bytes)
}

pub(super) fn open(
    apply: &mut Apply<'_>,
    open: &v1::OpenSession,
    user: &str,
) -> Result<Result<v1::OpenSessionReply, Reject>, Fault> {
    if apply.head.sessions_live >= SESSIONS_MAX {
        return Ok(Err(Reject::LimitReached { what: "open sessions".into(), limit: SESSIONS_MAX }));
    }
    let is_drawn = apply.has(format::BOUNDED) && open.id != 0;
    let session = SessionId(if is_drawn { open.id } else { apply.head.sessions_opened + 1 });
    if read(&apply.rows, session)?.is_some() {
        return Ok(Err(Reject::Conflict(format!("there is a session {session} already; open another"))));
    }
    apply.head.sessions_opened += 1;
    apply.head.sessions_live += 1;
    let row = v1::SessionRow { active_ms: apply.head.cluster_time_ms, user: user.into(), ..v1::SessionRow::default() };
    apply.rows.put(Table::Sessions, &key(session), &row.encode_to_vec())?;
    Ok(Ok(v1::OpenSessionReply { session: session.0, ttl_ms: SESSION_TTL.as_millis() as u64 }))
}

pub(super) fn close(apply: &mut Apply<'_>, session: SessionId, user: &str) -> Result<Result<(), Reject>, Fault> {
    if read(&apply.rows, session)?.is_none_or(|row| row.user != user) {
        return Ok(Err(Reject::SessionExpired(session)));
    }
    end(apply, session)?;
    Ok(Ok(()))
}

pub(super) fn expire(apply: &mut Apply<'_>, sessions: &[u64]) -> Result<u64, Fault> {
    let now = ClusterTime(apply.head.cluster_time_ms);
    let mut expired = 0;
    for session in sessions.iter().copied().map(SessionId) {
        // The leader decided on what it saw; the session may have been used since.
        if read(&apply.rows, session)?.is_some_and(|row| is_idle(&row, now)) {
            end(apply, session)?;
            expired += 1;
        } else {
            sometimes!("a session was used, or closed, before its expiry was applied");
        }
    }
    Ok(expired)
}

fn is_idle(row: &v1::SessionRow, now: ClusterTime) -> bool {
    now.since(ClusterTime(row.active_ms)) >= SESSION_TTL
}

fn end(apply: &mut Apply<'_>, session: SessionId) -> Result<(), Fault> {
    forget(apply, session, Seq(0), Seq(u64::MAX))?;
    let existed = apply.rows.remove(Table::Sessions, &key(session))?;
    assert!(existed, "session {session} ended twice");
    apply.head.sessions_live -= 1;
    Ok(())
}

/// Sessions that have been idle for their TTL at `now`, at most [`EXPIRE_SESSIONS_MAX`].
///
/// # Errors
/// The database failed.
pub fn idle(rows: &impl Read, now: ClusterTime) -> Result<Vec<SessionId>, Fault> {
    let mut idle = Vec::new();
    rows.scan(Table::Sessions, (Bound::Unbounded, Bound::Unbounded), &mut |key, row| {
        let session = SessionId(u64::from_be_bytes(key.try_into().context(|| "a session's key".to_string())?));
        let row = v1::SessionRow::decode(row).context(|| format!("decode the session {session}"))?;
        if is_idle(&row, now) {
            idle.push(session);
        }
        Ok(if idle.len() < EXPIRE_SESSIONS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(idle)
}

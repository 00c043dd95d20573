//! Users, roles, and what they may do, as etcd has them (etcd's documentation, "Role-based access control").
//!
//! ```text
//!   user ──has──► roles ──each──► permissions: read, write, or both, of the keys of a range
//!   a user that has the role root may do everything
//! ```
//!
//! A command carries the name of who asks for it, and the state itself refuses what that user may not do: all members alike, and
//! whatever was changed while the command was on its way. Who is not among the users may do nothing.

mod change;
mod secret;

pub(super) use change::change;
pub use change::check_change;
pub use secret::{Password, read_token, sign_token};

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::kv;
use super::machine::Apply;
use super::table::{ALL, Read, Table};
use crate::error::{AuthReject, Context, Fault};
use crate::ids::LeaseId;
use crate::proto::authpb::Permission;
use crate::proto::authpb::permission::Type;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, TxnRequest};
use crate::proto::v1::{self, RoleRow, UserRow, command::Kind};

/// The user that there must be, and the role that may do everything.
pub const ROOT: &str = "root";

/// The users and what they may do, in memory.
#[derive(Default)]
pub struct Auth {
    revision: u64,
    enabled: bool,
    key: Bytes,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
}

/// A user.
pub struct User {
    row: UserRow,
    is_root: bool,
    roles: Vec<Arc<Ranges>>,
}

struct Role {
    row: RoleRow,
    ranges: Arc<Ranges>,
}

/// What a role may read and write.
#[derive(Default)]
struct Ranges {
    read: Spans,
    write: Spans,
}

/// Ranges of keys, in order and apart from each other: the first key, and the end, if there is one.
#[derive(Default)]
struct Spans(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Spans {
    fn of<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Self {
        let mut spans: Vec<(Vec<u8>, Option<Vec<u8>>)> = permissions.filter_map(span).collect();
        spans.sort();
        let mut merged: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        for (start, end) in spans {
            match merged.last_mut() {
                Some((_, None)) => break,
                Some((_, Some(last))) if start <= *last => match end {
                    Some(end) if end <= *last => {}
                    Some(end) => *last = end,
                    None => merged.last_mut().expect("it was looked at in the line above").1 = None,
                },
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// The end of the range that has a key, if one has it; no end if it has all keys after it, too.
    fn reach(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        let after = self.0.partition_point(|(start, _)| start.as_slice() <= key);
        let (_, end) = self.0[..after].last()?;
        end.as_deref().is_none_or(|end| key < end).then_some(end.as_deref())
    }
}

/// The keys of a permission; `None`: no key lies between.
fn span(permission: &Permission) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let (start, end) = kv::bounds(&permission.key, &permission.range_end)?;
    let Bound::Included(start) = start else { return None };
    let end = match end {
        // The key alone: up to the next one that there could be.
        Bound::Included(key) => Some([key, &[0]].concat()),
        Bound::Excluded(end) => Some(end.to_vec()),
        Bound::Unbounded => None,
    };
    Some((start.to_vec(), end))
}

impl Ranges {
    fn of(role: &RoleRow) -> Self {
        let only = |types: [Type; 2]| role.permissions.iter().filter(move |one| types.contains(&one.perm_type()));
        Self {
            read: Spans::of(only([Type::Read, Type::Readwrite])),
            write: Spans::of(only([Type::Write, Type::Readwrite])),
        }
    }
}

/// What a user may do.
#[derive(Clone, Copy)]
pub enum Rights<'a> {
    /// Everything.
    All,
    /// What the roles say.
    Of(&'a User),
}

impl Auth {
    /// What the rows hold, to which the head belongs.
    ///
    /// # Errors
    /// The database failed, or a row is not one.
    pub fn load(rows: &impl Read, head: &v1::Head) -> Result<Self, Fault> {
        let (mut roles, mut users) = (BTreeMap::new(), BTreeMap::new());
        rows.scan(Table::Roles, ALL, &mut |name, row| {
            let row = RoleRow::decode(row).context(|| "decode a role".into())?;
            let ranges = Arc::new(Ranges::of(&row));
            roles.insert(text(name)?, Role { row, ranges });
            Ok(ControlFlow::Continue(()))
        })?;
        rows.scan(Table::Users, ALL, &mut |name, row| {
            let row = UserRow::decode(row).context(|| "decode a user".into())?;
            let has = row.roles.iter().filter_map(|role| roles.get(role)).map(|role| role.ranges.clone()).collect();
            let is_root = row.roles.iter().any(|role| role == ROOT);
            users.insert(text(name)?, User { row, is_root, roles: has });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Self { revision: head.auth_revision, enabled: head.auth_enabled, key: head.auth_key.clone(), users, roles })
    }

    /// Grows with each change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether it is looked at what users may do.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// What tokens are signed with.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// A user.
    pub fn user(&self, name: &str) -> Option<&UserRow> {
        self.users.get(name).map(|user| &user.row)
    }

    /// A role.
    pub fn role(&self, name: &str) -> Option<&RoleRow> {
        self.roles.get(name).map(|role| &role.row)
    }

    /// The names of all users, in order.
    pub fn users(&self) -> impl Iterator<Item = &String> {
        self.users.keys()
    }

    /// The names of all roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &String> {
        self.roles.keys()
    }

    /// Whether the token that a user has shown is good still: its password was set at `since`, and no other after it.
    ///
    /// # Errors
    /// It is not.
    pub fn check_token(&self, user: &str, since: Option<u64>) -> Result<(), AuthReject> {
        let is_outdated = since.is_some_and(|since| self.user(user).is_none_or(|row| row.since != since));
        if self.enabled && is_outdated { Err(AuthReject::TokenInvalid) } else { Ok(()) }
    }

    /// What a user may do; nobody has a name that is empty.
    ///
    /// # Errors
    /// It is looked at what users may do, and this is none.
    pub fn rights(&self, user: &str) -> Result<Rights<'_>, AuthReject> {
        match self.users.get(user) {
            // Whoever has no name here may speak as a member. Who logged in before it was disabled is to call anew.
            _ if !self.enabled && [ROOT, ""].contains(&user) => Ok(Rights::All),
            _ if !self.enabled => Err(AuthReject::Denied),
            Some(user) if user.is_root => Ok(Rights::All),
            Some(user) => Ok(Rights::Of(user)),
            None if user.is_empty() => Err(AuthReject::UserMissing),
            None => Err(AuthReject::Denied),
        }
    }
}

fn text(name: &[u8]) -> Result<String, Fault> {
    String::from_utf8(name.to_vec()).context(|| "read the name of a user or a role".into())
}

impl Rights<'_> {
    /// Whether they are all there are.
    ///
    /// # Errors
    /// They are not.
    pub fn all(self) -> Result<(), AuthReject> {
        match self {
            Self::All => Ok(()),
            Self::Of(_) => Err(AuthReject::Denied),
        }
    }

    /// Whether the keys of a range may be read.
    ///
    /// # Errors
    /// They may not, or not all of them.
    pub fn read(self, key: &[u8], range_end: &[u8]) -> Result<(), AuthReject> {
        self.cover(key, range_end, |ranges| &ranges.read)
    }

    /// Whether all of these keys may be read.
    ///
    /// # Errors
    /// They may not.
    pub fn read_all(self, keys: &[Bytes]) -> Result<(), AuthReject> {
        keys.iter().try_for_each(|key| self.read(key, b""))
    }

    /// Whether the keys of a range may be set and removed.
    ///
    /// # Errors
    /// They may not, or not all of them.
    pub fn write(self, key: &[u8], range_end: &[u8]) -> Result<(), AuthReject> {
        self.cover(key, range_end, |ranges| &ranges.write)
    }

    fn cover(self, key: &[u8], range_end: &[u8], of: fn(&Ranges) -> &Spans) -> Result<(), AuthReject> {
        let Self::Of(user) = self else { return Ok(()) };
        let Some((Bound::Included(start), end)) = kv::bounds(key, range_end) else { return Ok(()) };
        let mut at = start;
        loop {
            // The furthest that any of the roles goes from here.
            let reaches = user.roles.iter().filter_map(|role| of(role).reach(at));
            let furthest = reaches.max_by(|one, other| match (one, other) {
                (Some(one), Some(other)) => one.cmp(other),
                (one, other) => one.is_none().cmp(&other.is_none()),
            });
            match (furthest, end) {
                (None, _) => return Err(AuthReject::Denied),
                (Some(None), _) | (Some(_), Bound::Included(_)) => return Ok(()),
                (Some(Some(reach)), Bound::Excluded(end)) if reach >= end => return Ok(()),
                (Some(Some(reach)), _) => at = reach,
            }
        }
    }

    /// Whether all keys may be set that are under a lease.
    fn write_all<'k>(self, mut keys: impl Iterator<Item = &'k Bytes>) -> Result<(), AuthReject> {
        match self {
            Self::All => Ok(()),
            Self::Of(_) => keys.try_for_each(|key| self.write(key, b"")),
        }
    }

    /// Whether a command may be carried out; `leased` says whether all keys under a lease may be set.
    fn command(self, kind: &Kind, leased: &dyn Fn(i64) -> Result<(), AuthReject>) -> Result<(), AuthReject> {
        match kind {
            Kind::Put(put) => self.put(put, leased),
            Kind::DeleteRange(delete) => self.delete(delete),
            Kind::Txn(txn) => self.txn(txn, leased),
            Kind::LeaseRevoke(revoke) => leased(revoke.id),
            Kind::LeaseGrant(_) | Kind::LeaseKeepAlive(_) => Ok(()),
            Kind::OpenSession(_) | Kind::KeepSession(_) | Kind::CloseSession(_) => Ok(()),
            // What is nobody's in particular.
            _ => self.all(),
        }
    }

    fn put(self, put: &PutRequest, leased: &dyn Fn(i64) -> Result<(), AuthReject>) -> Result<(), AuthReject> {
        self.write(&put.key, b"")?;
        if put.prev_kv {
            self.read(&put.key, b"")?;
        }
        // Whoever may end the lease, and does, removes what is under it.
        if put.lease != 0 { leased(put.lease) } else { Ok(()) }
    }

    fn delete(self, delete: &DeleteRangeRequest) -> Result<(), AuthReject> {
        self.write(&delete.key, &delete.range_end)?;
        if delete.prev_kv { self.read(&delete.key, &delete.range_end) } else { Ok(()) }
    }

    /// Whether a transaction that only reads may be carried out, whatever its comparisons give.
    ///
    /// # Errors
    /// It may not.
    pub fn read_txn(self, txn: &TxnRequest) -> Result<(), AuthReject> {
        self.txn(txn, &|_| Ok(()))
    }

    /// The same of any; `leased` says whether all keys under a lease may be set.
    fn txn(self, txn: &TxnRequest, leased: &dyn Fn(i64) -> Result<(), AuthReject>) -> Result<(), AuthReject> {
        txn.compare.iter().try_for_each(|compare| self.read(&compare.key, &compare.range_end))?;
        txn.success.iter().chain(&txn.failure).try_for_each(|operation| match &operation.request {
            Some(Request::RequestRange(range)) => self.read(&range.key, &range.range_end),
            Some(Request::RequestPut(put)) => self.put(put, leased),
            Some(Request::RequestDeleteRange(delete)) => self.delete(delete),
            Some(Request::RequestTxn(txn)) => self.txn(txn, leased),
            None => Ok(()),
        })
    }
}

/// Whether only members ask for this, of themselves.
pub fn is_of_members(kind: &Kind) -> bool {
    match kind {
        Kind::SweepVersions(_) | Kind::ExpireLeases(_) | Kind::ExpireSessions(_) => true,
        Kind::AssignTasks(_) | Kind::RegisterWorker(_) | Kind::RenewWorker(_) => true,
        Kind::ReportAttempt(_) | Kind::ExpireWorkers(_) | Kind::RaiseFormat(_) => true,
        Kind::OpenSession(_) | Kind::KeepSession(_) | Kind::CloseSession(_) => false,
        Kind::SubmitTask(_) | Kind::StopTask(_) | Kind::SetWorkerStatus(_) => false,
        Kind::Put(_) | Kind::DeleteRange(_) | Kind::Txn(_) | Kind::Compact(_) => false,
        Kind::LeaseGrant(_) | Kind::LeaseRevoke(_) | Kind::LeaseKeepAlive(_) => false,
        Kind::Alarm(_) | Kind::ChangeAuth(_) | Kind::Batch(_) => false,
    }
}

/// Whether who asks for a command, or a batch with this one, may have it carried out, whatever keys are under leases.
///
/// # Errors
/// It may not.
pub fn check_command(auth: &Auth, asked: &v1::Command, kind: &Kind) -> Result<(), AuthReject> {
    if is_of_members(kind) {
        return Ok(());
    }
    auth.check_token(&asked.user, asked.since)?;
    auth.rights(&asked.user)?.command(kind, &|_| Ok(()))
}

/// Whether a user may have a command carried out.
pub(super) fn check(apply: &Apply<'_>, user: &str, kind: &Kind) -> Result<(), AuthReject> {
    if is_of_members(kind) {
        return Ok(());
    }
    let rights = apply.auth.rights(user)?;
    let leased = |lease: i64| {
        let index = apply.index.read().expect("no code panics while it holds the index");
        rights.write_all(index.leased(LeaseId(lease)))
    };
    rights.command(kind, &leased)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(perm_type: Type, key: &'static str, range_end: &'static str) -> Permission {
        Permission { perm_type: perm_type.into(), key: key.into(), range_end: range_end.into() }
    }

    fn user(roles: &[&[Permission]]) -> User {
        let ranges = |permissions: &&[Permission]| Arc::new(Ranges::of(&RoleRow { permissions: permissions.to_vec() }));
        User { row: UserRow::default(), is_root: false, roles: roles.iter().map(ranges).collect() }
    }

    fn reads(user: &User, key: &str, range_end: &str) -> bool {
        Rights::Of(user).read(key.as_bytes(), range_end.as_bytes()).is_ok()
    }

    #[test]
    fn ranges_that_meet_are_one() {
        let read = |key, end| permission(Type::Read, key, end);
        let one = user(&[&[read("b", "d"), read("d", "f"), read("e", "g"), read("x", "")]]);
        let two = user(&[&[read("e", "g"), read("b", "d")], &[read("d", "f"), read("x", "")]]);
        for user in [&one, &two] {
            assert!(reads(user, "b", "g") && reads(user, "c", "") && reads(user, "x", "") && reads(user, "f", "ff"));
            assert!(
                !reads(user, "a", "c") && !reads(user, "b", "h") && !reads(user, "g", "") && !reads(user, "x", "y")
            );
            assert!(!reads(user, "b", "\0"), "up to no end");
            assert!(reads(user, "x", "x\0"), "the key alone");
            assert!(reads(user, "d", "b"), "no key lies between");
        }
    }

    #[test]
    fn ranges_without_end() {
        let all = user(&[&[permission(Type::Readwrite, "\0", "\0")]]);
        let from = user(&[&[permission(Type::Readwrite, "m", "\0")], &[permission(Type::Read, "c", "m")]]);
        assert!(reads(&all, "\0", "\0") && reads(&all, "a", "b") && reads(&from, "m", "\0") && reads(&from, "c", "\0"));
        assert!(!reads(&from, "a", "\0") && reads(&from, "l", "") && !reads(&from, "b", "d"));
        let write = |key: &[u8], end: &[u8]| Rights::Of(&from).write(key, end).is_ok();
        assert!(write(b"m", b"\0") && write(b"z", b"") && !write(b"l", b"") && !write(b"l", b"n"));
    }

    #[test]
    fn a_transaction_may_do_what_its_operations_may() {
        use crate::proto::etcdserverpb::{Compare, RequestOp};
        let user = user(&[&[permission(Type::Read, "a", ""), permission(Type::Write, "b", "")]]);
        let may = |compare: &'static str, put: PutRequest| {
            let compare = vec![Compare { key: compare.into(), ..Compare::default() }];
            let inner = TxnRequest {
                failure: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
                ..TxnRequest::default()
            };
            let success = vec![RequestOp { request: Some(Request::RequestTxn(inner)) }];
            let leased = |lease: i64| if lease == 1 { Ok(()) } else { Err(AuthReject::Denied) };
            Rights::Of(&user).txn(&TxnRequest { compare, success, ..TxnRequest::default() }, &leased).is_ok()
        };
        let put = |key: &'static str| PutRequest { key: key.into(), ..PutRequest::default() };
        assert!(may("a", put("b")) && !may("b", put("b")) && !may("a", put("a")));
        assert!(!may("a", PutRequest { prev_kv: true, ..put("b") }), "what was there is read");
        assert!(may("a", PutRequest { lease: 1, ..put("b") }) && !may("a", PutRequest { lease: 2, ..put("b") }));
    }
}

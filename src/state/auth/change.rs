//! How users and roles come, change and go.

use prost::Message;

use super::super::machine::Apply;
use super::super::table::Table;
use super::{Auth, ROOT, span};
use crate::error::{AuthReject, Fault, Reject};
use crate::limits::{
    AUTH_NAME_BYTES_MAX, PERMISSIONS_BYTES_MAX, PERMISSIONS_MAX, ROLES_MAX, ROLES_OF_USER_MAX, USERS_MAX,
};
use crate::proto::authpb::permission::Type;
use crate::proto::v1::{ChangeAuth, ChangeAuthReply, RoleRow, UserRow, change_auth::Change};

/// Bytes of a key that tokens are signed with.
const KEY_BYTES: usize = 32;

/// Checks what can be checked of a change without the state.
///
/// # Errors
/// What is wrong with it.
pub fn check_change(change: &ChangeAuth) -> Result<(), Reject> {
    let named = |name: &str, missing: AuthReject| match name.len() {
        0 => Err(missing.into()),
        1..=AUTH_NAME_BYTES_MAX => Ok(()),
        bytes => invalid("name", format!("{bytes} bytes; at most {AUTH_NAME_BYTES_MAX}")),
    };
    let user = |name: &str| named(name, AuthReject::UserMissing);
    let role = |name: &str| named(name, AuthReject::RoleMissing);
    let known = |hashed: &str, needed: bool| match hashed.is_empty() {
        true if needed => Err(AuthReject::PasswordMissing.into()),
        true => Ok(()),
        false if super::Password::read(hashed).is_some() => Ok(()),
        false => invalid("hashedPassword", "none that this version knows".into()),
    };
    match change.change.as_ref() {
        None => invalid("change", "missing, or from a newer version than this member's".into()),
        Some(Change::Enable(_)) if change.key.len() != KEY_BYTES => {
            invalid("key", format!("{} bytes; it has {KEY_BYTES}", change.key.len()))
        }
        Some(Change::Enable(_) | Change::Disable(_)) => Ok(()),
        Some(Change::AddUser(add)) => {
            let can_log_in = !add.options.as_ref().is_some_and(|options| options.no_password);
            user(&add.name).and_then(|()| known(&add.hashed_password, can_log_in))
        }
        Some(Change::DeleteUser(delete)) => user(&delete.name),
        Some(Change::ChangePassword(change)) => user(&change.name).and_then(|()| known(&change.hashed_password, true)),
        Some(Change::GrantRole(grant)) => user(&grant.user).and_then(|()| role(&grant.role)),
        Some(Change::RevokeRole(revoke)) => user(&revoke.name).and_then(|()| role(&revoke.role)),
        Some(Change::AddRole(add)) => role(&add.name),
        Some(Change::DeleteRole(delete)) => role(&delete.role),
        Some(Change::GrantPermission(grant)) => {
            role(&grant.name)?;
            let Some(permission) = &grant.perm else { return Err(AuthReject::PermissionMissing.into()) };
            if permission.key.is_empty() && permission.range_end.is_empty() {
                return Err(AuthReject::PermissionMissing.into());
            }
            if Type::try_from(permission.perm_type).is_err() {
                return invalid("permType", "none that this version knows".into());
            }
            if span(permission).is_none() {
                return invalid("range_end", "no key lies between the key and this end".into());
            }
            Ok(())
        }
        Some(Change::RevokePermission(revoke)) => role(&revoke.role),
    }
}

fn invalid<T>(field: &str, why: String) -> Result<T, Reject> {
    Err(Reject::Invalid { field: field.into(), why })
}

/// Changes users, roles, or whether what they may do is looked at.
pub(in super::super) fn change(
    apply: &mut Apply<'_>,
    change: &ChangeAuth,
) -> Result<Result<ChangeAuthReply, Reject>, Fault> {
    let auth = apply.auth.clone();
    let Some(what) = &change.change else {
        return Err(Fault::new("the log holds a change of users that this version does not know; upgrade this member"));
    };
    let done = match what {
        Change::Enable(_) => {
            if auth.enabled {
                return Ok(Ok(reply(apply)));
            }
            match auth.user(ROOT) {
                None => Err(AuthReject::RootUserMissing.into()),
                Some(root) if !root.roles.iter().any(|role| role == ROOT) => Err(AuthReject::RootRoleMissing.into()),
                Some(root) if root.password.is_empty() => Err(AuthReject::RootPasswordMissing.into()),
                Some(_) => {
                    (apply.head.auth_enabled, apply.head.auth_key) = (true, change.key.to_vec().into());
                    Ok(())
                }
            }
        }
        Change::Disable(_) => {
            if !auth.enabled {
                return Ok(Ok(reply(apply)));
            }
            (apply.head.auth_enabled, apply.head.auth_key) = Default::default();
            Ok(())
        }
        Change::AddUser(add) if auth.user(&add.name).is_some() => Err(AuthReject::UserExists.into()),
        Change::AddUser(_) if auth.users.len() >= USERS_MAX => limit("users", USERS_MAX),
        Change::AddUser(add) => {
            let can_log_in = !add.options.as_ref().is_some_and(|options| options.no_password);
            let password = if can_log_in { add.hashed_password.clone() } else { String::new() };
            put_user(apply, &add.name, &UserRow { password, since: auth.revision + 1, roles: Vec::new() })?;
            Ok(())
        }
        Change::DeleteUser(delete) if auth.enabled && delete.name == ROOT => Err(AuthReject::RootNeeded.into()),
        Change::DeleteUser(delete) => match apply.rows.remove(Table::Users, delete.name.as_bytes())? {
            true => Ok(()),
            false => Err(AuthReject::UserNotFound.into()),
        },
        Change::ChangePassword(change) => with_user(apply, &auth, &change.name, |row| {
            (row.password, row.since) = (change.hashed_password.clone(), auth.revision + 1);
            Ok(())
        })?,
        // Root's need not be there: it means everything by its name.
        Change::GrantRole(grant) if grant.role != ROOT && auth.role(&grant.role).is_none() => {
            match auth.user(&grant.user) {
                Some(_) => Err(AuthReject::RoleNotFound.into()),
                None => Err(AuthReject::UserNotFound.into()),
            }
        }
        Change::GrantRole(grant) => {
            with_user(apply, &auth, &grant.user, |row| match row.roles.binary_search(&grant.role) {
                Ok(_) => Ok(()),
                Err(_) if row.roles.len() >= ROLES_OF_USER_MAX => limit("roles of a user", ROLES_OF_USER_MAX),
                Err(place) => {
                    row.roles.insert(place, grant.role.clone());
                    Ok(())
                }
            })?
        }
        Change::RevokeRole(revoke) if auth.enabled && revoke.name == ROOT && revoke.role == ROOT => {
            Err(AuthReject::RootNeeded.into())
        }
        Change::RevokeRole(revoke) => {
            with_user(apply, &auth, &revoke.name, |row| match row.roles.binary_search(&revoke.role) {
                Ok(place) => {
                    row.roles.remove(place);
                    Ok(())
                }
                Err(_) => Err(AuthReject::RoleNotGranted.into()),
            })?
        }
        Change::AddRole(add) if auth.role(&add.name).is_some() => Err(AuthReject::RoleExists.into()),
        Change::AddRole(_) if auth.roles.len() >= ROLES_MAX => limit("roles", ROLES_MAX),
        Change::AddRole(add) => {
            put_role(apply, &add.name, &RoleRow::default())?;
            Ok(())
        }
        Change::DeleteRole(delete) if auth.enabled && delete.role == ROOT => Err(AuthReject::RootNeeded.into()),
        Change::DeleteRole(delete) if auth.role(&delete.role).is_none() => Err(AuthReject::RoleNotFound.into()),
        Change::DeleteRole(delete) => {
            apply.rows.remove(Table::Roles, delete.role.as_bytes())?;
            for (name, user) in &auth.users {
                let mut row = user.row.clone();
                row.roles.retain(|role| *role != delete.role);
                if row != user.row {
                    put_user(apply, name, &row)?;
                }
            }
            Ok(())
        }
        Change::GrantPermission(grant) => with_role(apply, &auth, &grant.name, |row| {
            let permission = grant.perm.clone().unwrap_or_default();
            let range = |other: &crate::proto::authpb::Permission| (other.key.clone(), other.range_end.clone());
            match row.permissions.binary_search_by_key(&range(&permission), range) {
                Ok(place) => row.permissions[place] = permission,
                Err(_) if row.permissions.len() >= PERMISSIONS_MAX => {
                    return limit("permissions of a role", PERMISSIONS_MAX);
                }
                Err(place) => row.permissions.insert(place, permission),
            }
            match row.encoded_len() {
                0..=PERMISSIONS_BYTES_MAX => Ok(()),
                _ => limit("bytes of a role's permissions", PERMISSIONS_BYTES_MAX),
            }
        })?,
        Change::RevokePermission(revoke) => with_role(apply, &auth, &revoke.role, |row| {
            let before = row.permissions.len();
            row.permissions.retain(|other| (&other.key, &other.range_end) != (&revoke.key, &revoke.range_end));
            if row.permissions.len() < before { Ok(()) } else { Err(AuthReject::PermissionNotGranted.into()) }
        })?,
    };
    if let Err(reject) = done {
        return Ok(Err(reject));
    }
    apply.head.auth_revision += 1;
    apply.auth = Auth::load(&apply.rows, &apply.head)?.into();
    Ok(Ok(reply(apply)))
}

fn reply(apply: &Apply<'_>) -> ChangeAuthReply {
    ChangeAuthReply { revision: apply.head.revision }
}

fn limit(what: &str, limit: usize) -> Result<(), Reject> {
    Err(Reject::LimitReached { what: what.into(), limit: limit as u64 })
}

fn put_user(apply: &mut Apply<'_>, name: &str, row: &UserRow) -> Result<(), Fault> {
    apply.rows.put(Table::Users, name.as_bytes(), &row.encode_to_vec())
}

fn put_role(apply: &mut Apply<'_>, name: &str, row: &RoleRow) -> Result<(), Fault> {
    apply.rows.put(Table::Roles, name.as_bytes(), &row.encode_to_vec())
}

/// Changes a user, unless there is none, or the change does not go.
fn with_user(
    apply: &mut Apply<'_>,
    auth: &Auth,
    name: &str,
    change: impl FnOnce(&mut UserRow) -> Result<(), Reject>,
) -> Result<Result<(), Reject>, Fault> {
    let Some(mut row) = auth.user(name).cloned() else { return Ok(Err(AuthReject::UserNotFound.into())) };
    match change(&mut row) {
        Ok(()) => put_user(apply, name, &row).map(Ok),
        Err(reject) => Ok(Err(reject)),
    }
}

/// Changes a role, unless there is none, or the change does not go.
fn with_role(
    apply: &mut Apply<'_>,
    auth: &Auth,
    name: &str,
    change: impl FnOnce(&mut RoleRow) -> Result<(), Reject>,
) -> Result<Result<(), Reject>, Fault> {
    let Some(mut row) = auth.role(name).cloned() else { return Ok(Err(AuthReject::RoleNotFound.into())) };
    match change(&mut row) {
        Ok(()) => put_role(apply, name, &row).map(Ok),
        Err(reject) => Ok(Err(reject)),
    }
}

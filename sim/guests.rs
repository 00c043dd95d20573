//! Clients that are users, and who says what they may do: an administrator gives and takes while they ask.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;

use crate::client::{Client, ClientError};
use crate::error::{AuthReject, Reject};
use crate::ids::Revision;
use crate::io::RngStream;
use crate::proto::authpb::Permission;
use crate::proto::authpb::permission::Type;
use crate::proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
    WatchCreateRequest,
};
use crate::proto::v1::change_auth::Change;
use crate::sim::load::number;
use crate::state::auth::ROOT;

/// The number of the first guest.
pub const FIRST_GUEST: u64 = 301;
/// How long a guest waits after it was refused a watch.
const REFUSED_PAUSE: Duration = Duration::from_millis(700);

/// What may be done with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct May {
    /// They may be read.
    pub read: bool,
    /// They may be set and removed.
    pub write: bool,
}

/// What a guest may do: with one key each, and with all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Its password is another than the guest knows.
    pub is_locked_out: bool,
    /// The guest has its role.
    pub has_role: bool,
    /// What the role says of a key, or of all.
    pub says: BTreeMap<Option<u64>, May>,
}

impl Rights {
    /// What may be done with a key.
    pub fn may(&self, key: u64) -> May {
        let says = |keys| self.says.get(&keys).copied().filter(|_| self.has_role && !self.is_locked_out);
        let any = |what: fn(May) -> bool| says(None).is_some_and(what) || says(Some(key)).is_some_and(what);
        May { read: any(|may| may.read), write: any(|may| may.write) }
    }
}

/// A change of what a guest may do.
#[derive(Clone, Debug)]
pub struct Step {
    /// Whose.
    pub guest: u64,
    /// Asked for.
    pub from: Duration,
    /// Done.
    pub to: Duration,
    /// What it may do then, and the revision of the keys when that was so; nothing, if nobody knows what came of it, ever after.
    pub then: Option<(Rights, u64)>,
}

/// A change that a guest was told of, as it watched.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Who.
    pub guest: u64,
    /// When.
    pub at: Duration,
    /// Of which key.
    pub key: u64,
    /// At which revision.
    pub revision: u64,
}

/// What the administrator did, and what guests were told.
#[derive(Default)]
pub struct Guests {
    steps: Mutex<Vec<Step>>,
    told: Mutex<Vec<Told>>,
}

/// The name of a guest; its role has the same.
fn name(guest: u64) -> String {
    format!("guest {guest}")
}

/// A client of a cluster as a guest.
pub fn as_guest(client: Client, guest: u64) -> Client {
    client.as_user(&name(guest), &name(guest))
}

/// Key and end of the range of a key, or of the first `keys`.
fn range(key: Option<u64>, keys: u64) -> (Bytes, Bytes) {
    let bytes = |key: u64| Bytes::from(key.to_be_bytes().to_vec());
    match key {
        Some(key) => (bytes(key), Bytes::new()),
        None => (bytes(0), bytes(keys)),
    }
}

fn is_there(error: &ClientError) -> bool {
    use AuthReject::{RoleExists, UserExists};
    matches!(error, ClientError::Rejected(Reject::Auth(UserExists | RoleExists)))
}

fn user(name: &str) -> Change {
    let (name, password) = (name.to_owned(), name.to_owned());
    Change::AddUser(AuthUserAddRequest { name, password, ..AuthUserAddRequest::default() })
}

fn grant(user: &str, role: &str) -> Change {
    Change::GrantRole(AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
}

impl Guests {
    /// What the administrator did, in order.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    /// What guests were told.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// Adds all guests, who may do nothing yet. False if that could not be done.
    pub async fn invite(&self, client: &Client, guests: u64) -> bool {
        let mut changes = vec![user(ROOT), grant(ROOT, ROOT), Change::Enable(AuthEnableRequest {})];
        for guest in (0..guests).map(|guest| name(FIRST_GUEST + guest)) {
            changes.extend([user(&guest), Change::AddRole(AuthRoleAddRequest { name: guest.clone() })]);
        }
        for change in changes {
            // Doing it again does no harm.
            if client.change_auth(change).await.is_err_and(|error| !is_there(&error)) {
                return false;
            }
        }
        true
    }

    /// Gives and takes until `goes_on` says no more.
    pub async fn administer(
        &self,
        client: &Client,
        (guests, keys): (u64, u64),
        mut rng: RngStream,
        elapsed: &(dyn Fn() -> Duration + Sync),
        goes_on: &(dyn Fn() -> bool + Sync),
    ) {
        let mut rights: BTreeMap<u64, Rights> =
            (0..guests).map(|guest| (FIRST_GUEST + guest, Rights::default())).collect();
        while goes_on() && !rights.is_empty() {
            client.pause(Duration::from_millis(rng.range(1, 1_500))).await;
            let all: Vec<u64> = rights.keys().copied().collect();
            let guest = *rng.pick(&all);
            let (change, then) = step(&mut rng, guest, &rights[&guest], keys);
            let from = elapsed();
            let done = client.change_auth(change).await;
            let then = match done {
                Ok(Revision(revision)) => Some((then, revision)),
                // It was not done, and never will be.
                Err(ClientError::Unavailable(_)) => continue,
                Err(_) => None,
            };
            match &then {
                Some((then, _)) => rights.insert(guest, then.clone()),
                None => rights.remove(&guest),
            };
            self.steps.lock().unwrap().push(Step { guest, from, to: elapsed(), then });
        }
    }

    /// Watches a key as a guest, for as long as it is polled, from now on, and from then on again where that ends.
    pub async fn watch(&self, client: &Client, guest: u64, key: u64, elapsed: &(dyn Fn() -> Duration + Sync)) {
        loop {
            let (range_start, range_end) = range(Some(key), 0);
            let create = WatchCreateRequest { key: range_start, range_end, ..WatchCreateRequest::default() };
            let mut watch = client.watch(create);
            while let Ok(changes) = watch.next().await {
                let rows = changes.events.iter().filter_map(|event| event.kv.as_ref());
                let told = rows.map(|row| Told {
                    guest,
                    at: elapsed(),
                    key: number(&row.key),
                    revision: row.mod_revision.cast_unsigned(),
                });
                self.told.lock().unwrap().extend(told);
            }
            client.pause(REFUSED_PAUSE).await;
        }
    }
}

/// The next thing that the administrator does for a guest, and what that may do then.
fn step(rng: &mut RngStream, guest: u64, now: &Rights, keys: u64) -> (Change, Rights) {
    let (guest, mut then) = (name(guest), now.clone());
    if rng.chance(if now.is_locked_out { 500 } else { 200 }) {
        then.is_locked_out = !now.is_locked_out;
        let password = if then.is_locked_out { "another".into() } else { guest.clone() };
        let change =
            AuthUserChangePasswordRequest { name: guest, password, ..AuthUserChangePasswordRequest::default() };
        return (Change::ChangePassword(change), then);
    }
    if rng.chance(if now.has_role { 200 } else { 700 }) {
        then.has_role = !now.has_role;
        let change = match then.has_role {
            true => grant(&guest, &guest),
            false => Change::RevokeRole(AuthUserRevokeRoleRequest { name: guest.clone(), role: guest }),
        };
        return (change, then);
    }
    let said: Vec<Option<u64>> = now.says.keys().copied().collect();
    if !said.is_empty() && rng.chance(450) {
        let keys_of = *rng.pick(&said);
        then.says.remove(&keys_of);
        let (key, range_end) = range(keys_of, keys);
        return (Change::RevokePermission(AuthRoleRevokePermissionRequest { role: guest, key, range_end }), then);
    }
    let keys_of = if rng.chance(250) { None } else { Some(rng.range(0, keys)) };
    let (kind, may) = *rng.pick(&[
        (Type::Read, May { read: true, write: false }),
        (Type::Write, May { read: false, write: true }),
        (Type::Readwrite, May { read: true, write: true }),
        (Type::Readwrite, May { read: true, write: true }),
    ]);
    then.says.insert(keys_of, may);
    let (key, range_end) = range(keys_of, keys);
    let perm = Some(Permission { perm_type: kind.into(), key, range_end });
    (Change::GrantPermission(AuthRoleGrantPermissionRequest { name: guest, perm }), then)
}

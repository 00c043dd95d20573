//! `node auth`.

use bytes::Bytes;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::output::{self, printable};
use super::{Connection, Failure, Output};
use crate::client::{ClientError, with_prefix};
use crate::error::{AuthReject, Context, Fault, Reject};
use crate::os;
use crate::proto::authpb::permission::Type;
use crate::proto::authpb::{Permission, UserAddOptions};
use crate::proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
    AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
};
use crate::proto::v1::change_auth::Change;
use crate::state::kv::prefix_end;

/// What can be done with users and roles.
#[derive(Subcommand)]
pub enum Auth {
    /// From here on look at what users may do; there must be a user root that has the role root
    #[command(after_help = "Example:\n  node auth user add root && node auth user grant root root && node auth enable")]
    Enable,
    /// Look no more at what users may do
    Disable,
    /// Say whether it is looked at what users may do
    Status,
    /// Users: who logs in
    User {
        #[command(subcommand)]
        command: User,
    },
    /// Roles: what users may do
    Role {
        #[command(subcommand)]
        command: Role,
    },
}

/// A user or a role.
#[derive(Args)]
pub struct Named {
    /// Its name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
}

/// A user, and a role that it has or is to have.
#[derive(Args)]
pub struct Given {
    #[command(flatten)]
    user: Named,
    /// The role
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    role: String,
}

/// What can be done with users.
#[derive(Subcommand)]
pub enum User {
    /// Add one; its password is asked for, or read from standard input (after that of who logs in, if that is read there, too)
    #[command(after_help = "Examples:\n  node auth user add alice\n  node auth user add alice < password-file\n  \
        node auth user add web --no-password")]
    Add {
        #[command(flatten)]
        user: Named,
        /// It has none: nobody can log in as it yet
        #[arg(long)]
        no_password: bool,
    },
    /// Print the names of all
    List,
    /// Print the roles of one
    Get(Named),
    /// Remove one
    Delete(Named),
    /// Give one another password, which is asked for, or read from standard input; who logged in with the old one is logged out
    #[command(after_help = "Examples:\n  node auth user passwd alice\n  node auth user passwd alice < password-file")]
    Passwd(Named),
    /// Give one a role; who has the role root may do everything
    #[command(after_help = "Example:\n  node auth user grant alice web")]
    Grant(Given),
    /// Take a role from one
    Revoke(Given),
}

/// What can be done with roles.
#[derive(Subcommand)]
pub enum Role {
    /// Add one, which may do nothing yet
    #[command(after_help = "Example:\n  node auth role add web && node auth role grant web readwrite web/ --prefix")]
    Add(Named),
    /// Print the names of all
    List,
    /// Print what one may do
    Get(Named),
    /// Remove one, from all users that have it, too
    Delete(Named),
    /// Say what one may do with keys, instead of what was said of just these before
    #[command(
        after_help = "Examples:\n  node auth role grant web readwrite web/ --prefix\n  node auth role grant web read config\n  \
        node auth role grant web read a --to m\n  node auth role grant all read '' --prefix"
    )]
    Grant {
        #[command(flatten)]
        role: Named,
        /// What it may do
        #[arg(value_enum)]
        access: What,
        #[command(flatten)]
        keys: Keys,
    },
    /// Say no more of keys of which just these were named
    #[command(after_help = "Example:\n  node auth role revoke web web/ --prefix")]
    Revoke {
        #[command(flatten)]
        role: Named,
        #[command(flatten)]
        keys: Keys,
    },
}

/// What may be done with keys.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// See them
    Read,
    /// Set and remove them
    Write,
    /// Both
    Readwrite,
}

/// Some keys.
#[derive(Args)]
pub struct Keys {
    /// The key; with --prefix, what all the keys begin with; with --to, the first one
    key: String,
    /// All keys that begin with it
    #[arg(long, conflicts_with = "to")]
    prefix: bool,
    /// All keys from it to this one, which is not among them
    #[arg(long)]
    to: Option<String>,
}

impl Keys {
    /// Key and end of the range, as in a request.
    fn range(&self) -> Result<(Bytes, Bytes), Failure> {
        let key = || Bytes::from(self.key.clone().into_bytes());
        match (self.prefix, &self.to) {
            (true, _) => Ok(with_prefix(self.key.as_bytes())),
            (false, Some(to)) if *to <= self.key => Err(Failure::usage(format!(
                "no key lies from {:?} to {to:?}: --to comes after the first key",
                self.key
            ))),
            (false, _) if self.key.is_empty() => {
                Err(Failure::usage("no key is empty; all keys are those that begin with nothing: '' --prefix"))
            }
            (false, Some(to)) => Ok((key(), to.clone().into_bytes().into())),
            (false, None) => Ok((key(), Bytes::new())),
        }
    }
}

fn access(permission: &Permission) -> &'static str {
    match permission.perm_type() {
        Type::Read => "read",
        Type::Write => "write",
        Type::Readwrite => "readwrite",
    }
}

/// The keys of a permission, for people.
fn keys(permission: &Permission) -> String {
    let (key, end) = (&permission.key, &permission.range_end);
    match (&key[..], &end[..]) {
        (_, []) => printable(key),
        ([] | [0], [0]) => "all keys".into(),
        (_, [0]) => format!("{} and all after it", printable(key)),
        _ if *end == prefix_end(key) => format!("{}*", printable(key)),
        _ => format!("{} up to {}", printable(key), printable(end)),
    }
}

fn permission_json(permission: &Permission) -> Value {
    json!({
        "access": access(permission),
        "key": printable(&permission.key),
        "range_end": printable(&permission.range_end),
    })
}

/// A new password, from whoever types it, or from a program.
fn new_password(name: &str) -> Result<String, Failure> {
    let password = os::read_secret(&format!("Password of {name}: ")).context(|| "read a password".into())?;
    match password.is_empty() {
        true => Err(Fault::new("a password has at least one character; for a user without one: --no-password").into()),
        false => Ok(password),
    }
}

impl Auth {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.client()?;
        let change = match self {
            Self::Status => {
                let status = client.auth_status().await?;
                match connection.output {
                    Output::Json => {
                        output::json(&json!({ "enabled": status.enabled, "revision": status.auth_revision }));
                    }
                    Output::Simple => {
                        output::simple(&[status.enabled.to_string(), status.auth_revision.to_string()]);
                    }
                    Output::Table if status.enabled => say!("enabled: calls need the token of a user"),
                    Output::Table => say!("not enabled: whoever may call may do everything"),
                }
                return Ok(());
            }
            Self::User { command: User::List } => return names(connection, "user", &client.users().await?),
            Self::Role { command: Role::List } => return names(connection, "role", &client.roles().await?),
            Self::User { command: User::Get(Named { name }) } => {
                let roles = client.roles_of(name).await.map_err(|error| self.about(error))?;
                match connection.output {
                    Output::Json => output::json(&json!({ "user": name, "roles": roles })),
                    _ => return names(connection, "role", &roles),
                }
                return Ok(());
            }
            Self::Role { command: Role::Get(Named { name }) } => {
                let permissions = client.permissions_of(name).await.map_err(|error| self.about(error))?;
                match connection.output {
                    Output::Json => {
                        let permissions: Vec<Value> = permissions.iter().map(permission_json).collect();
                        output::json(&json!({ "role": name, "permissions": permissions }));
                    }
                    Output::Simple => permissions.iter().for_each(|permission| {
                        output::simple(&[access(permission).as_bytes(), &permission.key, &permission.range_end]);
                    }),
                    Output::Table => {
                        let row = |permission: &Permission| vec![access(permission).into(), keys(permission)];
                        let rows: Vec<_> = permissions.iter().map(row).collect();
                        output::table(connection.output, &["ACCESS", "KEYS"], &rows);
                    }
                }
                return Ok(());
            }
            Self::Enable => Change::Enable(AuthEnableRequest {}),
            Self::Disable => Change::Disable(AuthDisableRequest {}),
            Self::User { command } => command.change()?,
            Self::Role { command } => command.change()?,
        };
        client.change_auth(change).await.map_err(|error| self.about(error))?;
        match connection.output {
            Output::Json => output::json(&json!({ "done": true })),
            _ => say!("done"),
        }
        if matches!(self, Self::Enable) && connection.access.token_file.is_none() {
            eprintln!(
                "No token was given here. If the cluster has none, whoever reaches it can still speak as a member; see `node credentials`."
            );
        }
        Ok(())
    }

    /// The user and the role that it names.
    fn named(&self) -> (&str, &str) {
        match self {
            Self::User { command } => match command {
                User::Grant(Given { user, role }) | User::Revoke(Given { user, role }) => (&user.name, role),
                User::Add { user, .. } | User::Get(user) | User::Delete(user) | User::Passwd(user) => (&user.name, ""),
                User::List => ("", ""),
            },
            Self::Role { command } => match command {
                Role::Add(role) | Role::Get(role) | Role::Delete(role) => ("", &role.name),
                Role::Grant { role, .. } | Role::Revoke { role, .. } => ("", &role.name),
                Role::List => ("", ""),
            },
            Self::Enable | Self::Disable | Self::Status => ("", ""),
        }
    }

    /// A refusal, with whom or what it is about.
    fn about(&self, error: ClientError) -> Failure {
        let (user, role) = self.named();
        let ClientError::Rejected(Reject::Auth(reject)) = error else { return error.into() };
        let about = match reject {
            AuthReject::UserExists | AuthReject::UserNotFound => format!("user {user:?}"),
            AuthReject::RoleExists | AuthReject::RoleNotFound | AuthReject::PermissionNotGranted => {
                format!("role {role:?}")
            }
            AuthReject::RoleNotGranted => format!("user {user:?}, role {role:?}"),
            _ => return error.into(),
        };
        Failure::Refused(format!("{about}: {reject}"))
    }
}

fn names(connection: &Connection, what: &str, names: &[String]) -> Result<(), Failure> {
    match connection.output {
        Output::Json => output::json(&json!(names)),
        Output::Table if names.is_empty() => say!("no {what}"),
        _ => names.iter().for_each(|name| say!("{name}")),
    }
    Ok(())
}

impl User {
    fn change(&self) -> Result<Change, Failure> {
        Ok(match self {
            Self::Add { user: Named { name }, no_password } => {
                let password = if *no_password { String::new() } else { new_password(name)? };
                let options = no_password.then_some(UserAddOptions { no_password: true });
                let name = name.clone();
                Change::AddUser(AuthUserAddRequest { name, password, options, ..AuthUserAddRequest::default() })
            }
            Self::Passwd(Named { name }) => {
                let (name, password) = (name.clone(), new_password(name)?);
                let change =
                    AuthUserChangePasswordRequest { name, password, ..AuthUserChangePasswordRequest::default() };
                Change::ChangePassword(change)
            }
            Self::Delete(Named { name }) => Change::DeleteUser(AuthUserDeleteRequest { name: name.clone() }),
            Self::Grant(Given { user: Named { name }, role }) => {
                Change::GrantRole(AuthUserGrantRoleRequest { user: name.clone(), role: role.clone() })
            }
            Self::Revoke(Given { user: Named { name }, role }) => {
                Change::RevokeRole(AuthUserRevokeRoleRequest { name: name.clone(), role: role.clone() })
            }
            Self::List | Self::Get(_) => unreachable!("answered before"),
        })
    }
}

impl Role {
    fn change(&self) -> Result<Change, Failure> {
        Ok(match self {
            Self::Add(Named { name }) => Change::AddRole(AuthRoleAddRequest { name: name.clone() }),
            Self::Delete(Named { name }) => Change::DeleteRole(AuthRoleDeleteRequest { role: name.clone() }),
            Self::Grant { role: Named { name }, access, keys } => {
                let perm_type = match access {
                    What::Read => Type::Read,
                    What::Write => Type::Write,
                    What::Readwrite => Type::Readwrite,
                };
                let (key, range_end) = keys.range()?;
                let perm = Some(Permission { perm_type: perm_type.into(), key, range_end });
                Change::GrantPermission(AuthRoleGrantPermissionRequest { name: name.clone(), perm })
            }
            Self::Revoke { role: Named { name }, keys } => {
                let (key, range_end) = keys.range()?;
                Change::RevokePermission(AuthRoleRevokePermissionRequest { role: name.clone(), key, range_end })
            }
            Self::List | Self::Get(_) => unreachable!("answered before"),
        })
    }
}

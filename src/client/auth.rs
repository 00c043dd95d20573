//! Users and roles, as a client sees them; and who it is itself.

use std::sync::{Arc, Mutex};

use http::HeaderValue;
use tonic::{Code, Request, Status};
use tower::ServiceExt;

use super::{Client, ClientError, Failure, failure, unexpected};
use crate::error::{AuthReject, Reject};
use crate::ids::Revision;
use crate::io::{Channel, USER_TOKEN};
use crate::proto::authpb::Permission;
use crate::proto::etcdserverpb::auth_client::AuthClient;
use crate::proto::etcdserverpb::{
    AuthRoleGetRequest, AuthRoleListRequest, AuthStatusRequest, AuthStatusResponse, AuthUserGetRequest,
    AuthUserListRequest, AuthenticateRequest,
};
use crate::proto::v1::{ChangeAuth, change_auth::Change, command::Kind, reply};
use crate::time::Monotonic;

/// A name, the password, and the token that was got for them.
pub(super) struct Login {
    name: String,
    password: String,
    token: Mutex<Option<HeaderValue>>,
    /// One at a time gets a token.
    turn: tokio::sync::Mutex<()>,
}

impl Login {
    fn token(&self) -> Option<HeaderValue> {
        self.token.lock().expect("no code panics while it holds the token").clone()
    }

    fn set(&self, token: Option<HeaderValue>) {
        *self.token.lock().expect("no code panics while it holds the token") = token;
    }
}

impl Client {
    /// The same, as a user: it logs in when that is first needed, and again when its token is good no more. While it is not looked at
    /// what users may do, it is as if it had not.
    pub fn as_user(self, name: &str, password: &str) -> Self {
        let login = Arc::new(Login {
            name: name.into(),
            password: password.into(),
            token: Mutex::default(),
            turn: Default::default(),
        });
        let with = |channel: &Channel| with_token(channel.clone(), &login);
        let endpoints = self.endpoints.iter().map(|(address, channel)| (address.clone(), with(channel))).collect();
        let (state, together) = Default::default();
        Self { login: Some(login), endpoints: Arc::new(endpoints), state, together, ..self }
    }

    /// A channel on which calls say who this client is.
    pub(super) fn signed(&self, channel: Channel) -> Channel {
        match &self.login {
            Some(login) => with_token(channel, login),
            None => channel,
        }
    }

    /// Gets a token, if there is none and one is needed.
    pub(super) async fn log_in(&self, channel: &Channel, until: Monotonic) -> Result<(), Failure> {
        let Some(login) = self.login.as_ref().filter(|login| login.token().is_none()) else { return Ok(()) };
        let clock = &self.io.clock;
        let late = |_| Failure::NotDone("log in: others log in, and it takes long".into());
        let _turn = clock.deadline(until, login.turn.lock()).await.map_err(late)?;
        if login.token().is_some() {
            return Ok(());
        }
        let (name, password) = (login.name.clone(), login.password.clone());
        let mut request = Request::new(AuthenticateRequest { name, password });
        request.set_timeout(until.since(clock.now()));
        let mut client = AuthClient::new(channel.clone());
        let answer = clock.deadline(until, client.authenticate(request)).await;
        match answer.unwrap_or_else(|_| Err(Status::unavailable("no answer in time"))) {
            Ok(answer) => {
                let token = HeaderValue::from_str(&answer.into_inner().token);
                let bad = |_| Failure::Final(ClientError::Invalid("the token that was given is none".into()));
                login.set(Some(token.map_err(bad)?));
                Ok(())
            }
            // It is not looked at what users may do.
            Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
            Err(status) => Err(match failure(status) {
                Failure::Unknown(why) | Failure::NotDone(why) => Failure::NotDone(format!("log in: {why}")),
                refused @ Failure::Final(_) => refused,
            }),
        }
    }

    /// The token that calls carry now.
    pub(super) fn token(&self) -> Option<HeaderValue> {
        self.login.as_ref()?.token()
    }

    /// Whether a refusal is of this token, which was good once: it is forgotten then, unless there is another by now.
    pub(super) fn is_outdated(&self, status: &Status, used: Option<&HeaderValue>) -> bool {
        let Some(login) = self.login.as_ref().filter(|_| status.code() == Code::Unauthenticated && used.is_some())
        else {
            return false;
        };
        if login.token().as_ref() == used {
            login.set(None);
        }
        true
    }

    /// Changes users, roles, or whether it is looked at what they may do. Gives the revision of the keys when that was done.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected, if what it is about is not there, or is there already.
    pub async fn change_auth(&self, change: Change) -> Result<Revision, ClientError> {
        match self.execute(Kind::ChangeAuth(ChangeAuth { change: Some(change), ..ChangeAuth::default() })).await? {
            reply::Kind::ChangeAuth(reply) => Ok(Revision(reply.revision)),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether it is looked at what users may do.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn auth_status(&self) -> Result<AuthStatusResponse, ClientError> {
        let answer = self.attempts(|channel, _| {
            Box::pin(async move { AuthClient::new(channel).auth_status(AuthStatusRequest {}).await })
        });
        answer.await.map_err(ClientError::of_read)
    }

    /// The names of all users.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn users(&self) -> Result<Vec<String>, ClientError> {
        let answer = self.attempts(|channel, _| {
            Box::pin(async move { AuthClient::new(channel).user_list(AuthUserListRequest {}).await })
        });
        Ok(answer.await.map_err(ClientError::of_read)?.users)
    }

    /// The roles of a user.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected, if there is no such user.
    pub async fn roles_of(&self, user: &str) -> Result<Vec<String>, ClientError> {
        let answer = self.attempts(|channel, _| {
            let request = AuthUserGetRequest { name: user.into() };
            Box::pin(async move { AuthClient::new(channel).user_get(request).await })
        });
        Ok(answer.await.map_err(|error| not_there(error, AuthReject::UserNotFound))?.roles)
    }

    /// The names of all roles.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn roles(&self) -> Result<Vec<String>, ClientError> {
        let answer = self.attempts(|channel, _| {
            Box::pin(async move { AuthClient::new(channel).role_list(AuthRoleListRequest {}).await })
        });
        Ok(answer.await.map_err(ClientError::of_read)?.roles)
    }

    /// What a role may do.
    ///
    /// # Errors
    /// See [`ClientError`]; rejected, if there is no such role.
    pub async fn permissions_of(&self, role: &str) -> Result<Vec<Permission>, ClientError> {
        let answer = self.attempts(|channel, _| {
            let request = AuthRoleGetRequest { role: role.into() };
            Box::pin(async move { AuthClient::new(channel).role_get(request).await })
        });
        Ok(answer.await.map_err(|error| not_there(error, AuthReject::RoleNotFound))?.perm)
    }
}

/// etcd's refusal, as ours.
fn not_there(error: ClientError, reject: AuthReject) -> ClientError {
    match error.of_read() {
        ClientError::Invalid(text) if text.ends_with("name not found") => ClientError::Rejected(Reject::Auth(reject)),
        other => other,
    }
}

fn with_token(channel: Channel, login: &Arc<Login>) -> Channel {
    let login = login.clone();
    Channel::new(channel.map_request(move |mut request: http::Request<_>| {
        if let Some(token) = login.token() {
            request.headers_mut().insert(USER_TOKEN, token);
        }
        request
    }))
}

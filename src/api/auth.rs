//! What etcd's clients call: users, roles, and tokens.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::etcd::{Headed, execute, header, only, rejected, unread};
use crate::error::AuthReject;
use crate::limits::USER_TOKEN_TTL;
use crate::proto::etcdserverpb::auth_server::Auth;
use crate::proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse, AuthRoleAddRequest,
    AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest, AuthRoleGetResponse,
    AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest, AuthStatusResponse,
    AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
    AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest,
    AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse,
};
use crate::proto::v1::{ChangeAuth, UserToken, change_auth::Change, command::Kind, reply};
use crate::shared::{Caller, SharedNodeState};
use crate::state::auth::{self, ROOT};
use crate::state::kv::signed;
use crate::time::Monotonic;

/// The service.
pub struct AuthService(pub Arc<SharedNodeState>);

impl AuthService {
    /// Has users or roles changed.
    async fn change<T, R: Headed + Default>(
        &self,
        request: Request<T>,
        change: impl FnOnce(T) -> Change,
    ) -> Result<Response<R>, Status> {
        let (deadline, caller) = (self.0.deadline(&request), Caller::of(&request));
        let change = Some(change(request.into_inner()));
        let kind = Kind::ChangeAuth(ChangeAuth { change, ..ChangeAuth::default() });
        let changed = execute(&self.0, &caller, kind, deadline, only!(ChangeAuth)).await?;
        let mut answer = R::default();
        *answer.header() = header(&self.0, signed(changed.revision));
        Ok(Response::new(answer))
    }

    /// What users may do, with everything that was changed before now; and the revision of the keys.
    async fn look(&self, deadline: Monotonic) -> Result<(Arc<auth::Auth>, i64), Status> {
        let (head, rows) = self.0.view(false, deadline).await.map_err(unread)?;
        Ok((rows.auth().clone(), signed(head.revision)))
    }
}

fn refused(reject: AuthReject) -> Status {
    rejected(&reject.into())
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(&self, request: Request<AuthEnableRequest>) -> Result<Response<AuthEnableResponse>, Status> {
        self.change(request, Change::Enable).await
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        self.change(request, Change::Disable).await
    }

    async fn auth_status(&self, request: Request<AuthStatusRequest>) -> Result<Response<AuthStatusResponse>, Status> {
        let (auth, revision) = self.look(self.0.deadline(&request)).await?;
        let header = header(&self.0, revision);
        Ok(Response::new(AuthStatusResponse { header, enabled: auth.is_enabled(), auth_revision: auth.revision() }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let AuthenticateRequest { name, password } = request.into_inner();
        let (auth, revision) = self.look(deadline).await?;
        if !auth.is_enabled() {
            return Err(Status::failed_precondition("etcdserver: authentication is not enabled"));
        }
        let row = auth.user(&name);
        if !self.0.is_password(row.map(|row| row.password.clone()), password).await? {
            let text = "etcdserver: authentication failed, invalid user ID or password";
            return Err(Status::invalid_argument(text));
        }
        let end = self.0.raft.cluster_time() + USER_TOKEN_TTL;
        let token = UserToken { since: row.map_or(0, |row| row.since), user: name, end_ms: end.0 };
        let token = auth::sign_token(auth.key(), &token);
        Ok(Response::new(AuthenticateResponse { header: header(&self.0, revision), token }))
    }

    async fn user_add(&self, request: Request<AuthUserAddRequest>) -> Result<Response<AuthUserAddResponse>, Status> {
        self.change(request, Change::AddUser).await
    }

    /// Users may see what they are themselves.
    async fn user_get(&self, request: Request<AuthUserGetRequest>) -> Result<Response<AuthUserGetResponse>, Status> {
        let caller = Caller::of(&request);
        let (auth, revision) = self.look(self.0.deadline(&request)).await?;
        let name = request.into_inner().name;
        let rights = caller.rights(&auth).map_err(refused)?;
        if *caller.user != *name {
            rights.all().map_err(refused)?;
        }
        let row = auth.user(&name).ok_or_else(|| refused(AuthReject::UserNotFound))?;
        let header = header(&self.0, revision);
        Ok(Response::new(AuthUserGetResponse { header, roles: row.roles.clone() }))
    }

    async fn user_list(&self, request: Request<AuthUserListRequest>) -> Result<Response<AuthUserListResponse>, Status> {
        let (auth, revision) = self.look(self.0.deadline(&request)).await?;
        let header = header(&self.0, revision);
        Ok(Response::new(AuthUserListResponse { header, users: auth.users().cloned().collect() }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        self.change(request, Change::DeleteUser).await
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        self.change(request, Change::ChangePassword).await
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        self.change(request, Change::GrantRole).await
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        self.change(request, Change::RevokeRole).await
    }

    async fn role_add(&self, request: Request<AuthRoleAddRequest>) -> Result<Response<AuthRoleAddResponse>, Status> {
        self.change(request, Change::AddRole).await
    }

    /// Users may see the roles that they have.
    async fn role_get(&self, request: Request<AuthRoleGetRequest>) -> Result<Response<AuthRoleGetResponse>, Status> {
        let caller = Caller::of(&request);
        let (auth, revision) = self.look(self.0.deadline(&request)).await?;
        let role = request.into_inner().role;
        let rights = caller.rights(&auth).map_err(refused)?;
        if !auth.user(&caller.user).is_some_and(|row| row.roles.contains(&role)) {
            rights.all().map_err(refused)?;
        }
        let row = auth.role(&role).ok_or_else(|| refused(AuthReject::RoleNotFound))?;
        // Root's says nothing, and means everything.
        let everything = || crate::proto::authpb::Permission {
            perm_type: crate::proto::authpb::permission::Type::Readwrite.into(),
            range_end: vec![0].into(),
            ..Default::default()
        };
        let perm = if role == ROOT { vec![everything()] } else { row.permissions.clone() };
        Ok(Response::new(AuthRoleGetResponse { header: header(&self.0, revision), perm }))
    }

    async fn role_list(&self, request: Request<AuthRoleListRequest>) -> Result<Response<AuthRoleListResponse>, Status> {
        let (auth, revision) = self.look(self.0.deadline(&request)).await?;
        let header = header(&self.0, revision);
        Ok(Response::new(AuthRoleListResponse { header, roles: auth.roles().cloned().collect() }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        self.change(request, Change::DeleteRole).await
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        self.change(request, Change::GrantPermission).await
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        self.change(request, Change::RevokePermission).await
    }
}

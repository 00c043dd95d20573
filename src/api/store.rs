//! Commands and queries.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tonic::{Request, Response, Status};

use crate::error::AuthReject::TokenInvalid;
use crate::error::Reject;
use crate::forward;
use crate::limits::{LANE_ITEMS_MAX, REQUEST_TIMEOUT_MAX};
use crate::proto::v1::{
    self, Command, PassOnReply, PassOnRequest, Passed, QueryReply, QueryRequest, Reply, command::Kind, query_reply,
    reply,
};
use crate::shared::{Caller, SharedNodeState};
use crate::state::auth::is_of_members;
use crate::state::command;

/// The service for clients.
pub struct StoreService(pub Arc<SharedNodeState>);

/// Says of a token that is good no more what this member would have said if it had heard of that before: whoever called logs in anew.
fn check_token(rejection: &v1::Rejection) -> Result<(), Status> {
    match command::reject(rejection) {
        Some(Reject::Auth(reject @ TokenInvalid)) => Err(Status::unauthenticated(reject.to_string())),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl v1::store_server::Store for StoreService {
    async fn execute(&self, request: Request<Command>) -> Result<Response<Reply>, Status> {
        forward::check_name(self.0.identity, request.metadata())?;
        let (deadline, caller) = (self.0.deadline(&request), Caller::of(&request));
        let mut command = request.into_inner();
        if command.kind.as_ref().is_some_and(is_of_members) && !caller.is_member {
            return Err(Status::permission_denied("only members ask for this, of themselves"));
        }
        if let Err(reject) = caller.may_ask() {
            return Ok(Response::new(command::refusal(&reject.into())));
        }
        (command.user, command.since) = (caller.user.to_string(), caller.since);
        if let Some(Kind::ChangeAuth(_)) = &command.kind {
            // Before a password is looked at, which takes long.
            let may = caller.rights(&self.0.reader.auth()).and_then(|rights| rights.all());
            may.map_err(|reject| match reject {
                TokenInvalid => Status::unauthenticated(reject.to_string()),
                _ => Status::permission_denied(reject.to_string()),
            })?;
        }
        self.0.fill_in(&mut command).await?;
        let reply = self.0.check_and_execute(command, deadline).await?;
        if let Some(reply::Kind::Rejection(rejection)) = &reply.kind {
            check_token(rejection)?;
        }
        Ok(Response::new(reply))
    }

    async fn pass_on(&self, request: Request<PassOnRequest>) -> Result<Response<PassOnReply>, Status> {
        forward::check_name(self.0.identity, request.metadata())?;
        let (now, passed) = (self.0.io.clock.now(), request.into_inner().commands);
        if passed.len() > LANE_ITEMS_MAX {
            let text = format!("{} commands in a call; at most {LANE_ITEMS_MAX}", passed.len());
            return Err(Status::invalid_argument(text));
        }
        let alone = passed.len() == 1;
        let carry_out = |Passed { command, timeout_ms }| async move {
            let patience = Duration::from_millis(timeout_ms).min(REQUEST_TIMEOUT_MAX);
            forward::outcome(self.0.execute_passed(command, now + patience, alone).await)
        };
        let outcomes = join_all(passed.into_iter().map(carry_out)).await;
        Ok(Response::new(PassOnReply { outcomes }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        let (deadline, caller) = (self.0.deadline(&request), Caller::of(&request));
        let reply = self.0.query(request.into_inner(), &caller, deadline).await?;
        if let Some(query_reply::Kind::Rejection(rejection)) = &reply.kind {
            check_token(rejection)?;
        }
        Ok(Response::new(reply))
    }
}

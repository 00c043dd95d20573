//! The output of tasks, fetched from wherever it lies.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{self, BoxStream};
use tonic::{Request, Response, Status};

use crate::ids::{NodeId, TaskId, Token};
use crate::io::Clock;
use crate::limits::{MESSAGE_BYTES_MAX, WORKER_PERIOD};
use crate::proto::v1::tasks_client::TasksClient;
use crate::proto::v1::{OutputPiece, OutputRecord, OutputRequest, tasks_server};
use crate::shared::{FORWARDED, SharedNodeState, internal};
use crate::state::task;
use crate::worker::Outputs;

/// The service for the output of tasks.
pub struct TasksService(pub Arc<SharedNodeState>);

pub(super) type Pieces = BoxStream<'static, Result<OutputPiece, Status>>;

#[tonic::async_trait]
impl tasks_server::Tasks for TasksService {
    type OutputStream = Pieces;

    async fn output(&self, request: Request<OutputRequest>) -> Result<Response<Pieces>, Status> {
        let shared = &self.0;
        let deadline = shared.deadline(&request);
        let forwarded = request.metadata().contains_key(FORWARDED);
        let request = request.into_inner();
        let (_, view) = shared.view(false, deadline).await?;
        let found = task::find(&view, TaskId(request.task)).map_err(internal)?;
        let attempt = found.and_then(|task| task.attempts.into_iter().find(|attempt| attempt.token == request.token));
        let Some(attempt) = attempt else {
            let text = format!("task {} has no attempt {}, or none any more", request.task, request.token);
            return Err(Status::not_found(text));
        };
        let worker = NodeId(attempt.worker);
        if worker == shared.identity.id {
            let (state, clock) = (shared.clone(), shared.io.clock.clone());
            let is_under_way = move |id, token| ready(is_under_way(&state, id, token)).boxed();
            let own = Own { outputs: shared.outputs.clone(), clock, is_under_way };
            return Ok(Response::new(own.pieces(request)));
        }
        if forwarded {
            return Err(Status::failed_precondition(format!("attempt {} is not on this member", request.token)));
        }
        self.fetch(worker, request).await
    }
}

/// How far a stream of pieces has come.
enum Next {
    From(u64),
    Ended,
}

/// The output that lies on this machine.
pub(super) struct Own<F> {
    /// The way to it; `None` if nothing may be run here.
    pub(super) outputs: Option<Outputs>,
    /// The node's clock.
    pub(super) clock: Arc<dyn Clock>,
    /// Whether an attempt is to be run here, or runs: as of no earlier than it was asked for.
    pub(super) is_under_way: F,
}

impl<F> Own<F>
where
    F: Fn(TaskId, Token) -> BoxFuture<'static, Result<bool, Status>> + Send + Sync + 'static,
{
    /// The output of one attempt.
    pub(super) fn pieces(self, request: OutputRequest) -> Pieces {
        let own = Arc::new(self);
        let OutputRequest { task, token, offset, follow } = request;
        let pieces = stream::try_unfold(Next::From(offset), move |next| {
            let own = own.clone();
            async move {
                let Next::From(offset) = next else { return Ok(None) };
                loop {
                    match own.piece(Token(token), offset).await {
                        Some(piece) if !piece.records.is_empty() || piece.ended => {
                            let next = if piece.ended { Next::Ended } else { Next::From(piece.next) };
                            return Ok(Some((piece, next)));
                        }
                        Some(_) if !follow => return Ok(None),
                        // It has not begun here yet, unless it is over.
                        None if !(follow && (own.is_under_way)(TaskId(task), Token(token)).await?) => {
                            let text = format!("the output of attempt {token} is not kept here, or there was none");
                            return Err(Status::not_found(text));
                        }
                        Some(_) | None => own.clock.sleep(WORKER_PERIOD).await,
                    }
                }
            }
        });
        Box::pin(pieces)
    }

    async fn piece(&self, token: Token, offset: u64) -> Option<OutputPiece> {
        let piece = self.outputs.as_ref()?.read(token, offset).await?;
        let records = piece.records.into_iter().map(|(stderr, data)| OutputRecord { stderr, data }).collect();
        Some(OutputPiece { records, next: piece.next, ended: piece.ended, begin: piece.begin })
    }
}

impl TasksService {
    /// What another member's worker has.
    async fn fetch(&self, worker: NodeId, request: OutputRequest) -> Result<Response<Pieces>, Status> {
        let token = request.token;
        let address = self.0.address_of(worker)?;
        let place = address.as_ref().map_or("an unknown address".into(), ToString::to_string);
        let unreachable = move |status: Status| match status.code() {
            tonic::Code::NotFound => status,
            _ => {
                let why = status.message();
                Status::unavailable(format!(
                    "the output of attempt {token} is on worker {worker} at {place}, which cannot be reached: {why}"
                ))
            }
        };
        let Some(address) = address else { return Err(unreachable(Status::unavailable("it has left"))) };
        let mut request = Request::new(request);
        request.metadata_mut().insert(FORWARDED, "1".parse().expect("plain text"));
        let mut client =
            TasksClient::new(self.0.io.network.connect(&address)).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let pieces = client.output(request).await.map_err(&unreachable)?.into_inner();
        Ok(Response::new(pieces.map(move |piece| piece.map_err(&unreachable)).boxed()))
    }
}

fn is_under_way(shared: &SharedNodeState, id: TaskId, token: Token) -> Result<bool, Status> {
    let (_, view) = shared.reader.view().map_err(internal)?;
    let task = task::find(&view, id).map_err(internal)?;
    Ok(task.is_some_and(|task| task::current(&task).is_some_and(|attempt| attempt.token == token.0)))
}

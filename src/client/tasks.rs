//! Tasks, as a client sees them.

use tonic::{Request, Streaming};

use super::{Client, ClientError, unexpected};
use crate::ids::{NodeId, TaskId};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::proto::v1::tasks_client::TasksClient;
use crate::proto::v1::{
    GetTask, GetTaskReply, ListTasks, ListTasksReply, ListWorkers, OutputPiece, OutputRequest, SetWorkerStatus,
    StopTask, SubmitTask, SubmitTaskReply, TaskPhase, TaskSpec, Worker, WorkerStatus, command::Kind, get_task::By,
    query_reply, query_request, reply,
};

impl Client {
    /// Submits a task: when this returns, a majority has it on disk, and it runs to its end whatever fails. The same
    /// specification under the name of a live task gives that one.
    ///
    /// # Errors
    /// See [`ClientError`]; a conflict if a live task of that name has another specification.
    pub async fn submit_task(&self, spec: TaskSpec) -> Result<SubmitTaskReply, ClientError> {
        match self.execute(Kind::SubmitTask(SubmitTask { spec: Some(spec) })).await? {
            reply::Kind::SubmitTask(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Wants a task to stop. Says in which phase it is: what runs needs a moment to end.
    ///
    /// # Errors
    /// See [`ClientError`]; not found if there is no such task.
    pub async fn stop_task(&self, id: TaskId) -> Result<TaskPhase, ClientError> {
        match self.execute(Kind::StopTask(StopTask { id: id.0 })).await? {
            reply::Kind::StopTask(reply) => Ok(reply.phase()),
            other => Err(unexpected(&other)),
        }
    }

    /// A task by its id, or the latest of a name, and why it waits if it does; linearizably.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_task(&self, by: By) -> Result<GetTaskReply, ClientError> {
        match self.query(query_request::Kind::GetTask(GetTask { by: Some(by) })).await? {
            query_reply::Kind::GetTask(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// One page of tasks after a task, in the order of their ids, linearizably.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_tasks(&self, after: TaskId) -> Result<ListTasksReply, ClientError> {
        match self.query(query_request::Kind::ListTasks(ListTasks { after: after.0, limit: 0 })).await? {
            query_reply::Kind::ListTasks(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// The workers, linearizably.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_workers(&self) -> Result<Vec<Worker>, ClientError> {
        match self.query(query_request::Kind::ListWorkers(ListWorkers {})).await? {
            query_reply::Kind::ListWorkers(reply) => Ok(reply.workers),
            other => Err(unexpected(&other)),
        }
    }

    /// Has a worker take nothing new, or take things again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_worker_status(&self, id: NodeId, status: WorkerStatus) -> Result<(), ClientError> {
        let set = SetWorkerStatus { worker: id.0, status: status.into(), wish: true, life: 0 };
        match self.execute(Kind::SetWorkerStatus(set)).await? {
            reply::Kind::SetWorkerStatus(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The output of an attempt. It is whole only if the last piece says so.
    ///
    /// # Errors
    /// See [`ClientError`]; invalid if it is not kept.
    pub async fn output(&self, request: OutputRequest) -> Result<Streaming<OutputPiece>, ClientError> {
        self.attempts(|channel, _| {
            let mut client = TasksClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            Box::pin(async move { client.output(Request::new(request)).await })
        })
        .await
        .map_err(ClientError::of_read)
    }
}

//! Questions about the state: who may ask what, and what is said then. All doors ask the same ones.

use crate::ids::TaskId;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use crate::proto::v1::{self, TaskPhase, get_task::By};
use crate::raft::handle::RaftHandle;
use crate::scheduler;
use crate::state::auth::Rights;
use crate::state::kv::{NoAnswer, Store};
use crate::state::table::View;
use crate::state::{lease, task, worker};
use crate::time::ClusterTime;

/// A transaction with no more comparisons and operations, each of one key, is answered at once.
const BRIEF_OPERATIONS: usize = 16;

/// What can be asked of the state.
pub trait Question: Send + 'static {
    /// What is said then.
    type Answer: Send + 'static;

    /// Whether it is answered at once, however much there is. What is not is looked up on a thread for that.
    fn is_brief(&self) -> bool {
        false
    }

    /// Looks it up, for somebody who has these rights there.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    fn answer(&self, head: &v1::Head, rows: &View, rights: Rights<'_>) -> Result<Self::Answer, NoAnswer>;
}

impl Question for RangeRequest {
    type Answer = RangeResponse;

    fn is_brief(&self) -> bool {
        self.range_end.is_empty()
    }

    fn answer(&self, head: &v1::Head, rows: &View, rights: Rights<'_>) -> Result<RangeResponse, NoAnswer> {
        rights.read(&self.key, &self.range_end)?;
        Store::of(head, rows).range(self)
    }
}

/// A transaction that only reads.
impl Question for TxnRequest {
    type Answer = TxnResponse;

    fn is_brief(&self) -> bool {
        let all = self.compare.len() + self.success.len() + self.failure.len();
        let is_of_one = |operation: &RequestOp| match &operation.request {
            Some(Request::RequestRange(range)) => range.is_brief(),
            _ => false,
        };
        all <= BRIEF_OPERATIONS
            && self.compare.iter().all(|compare| compare.range_end.is_empty())
            && self.success.iter().chain(&self.failure).all(is_of_one)
    }

    fn answer(&self, head: &v1::Head, rows: &View, rights: Rights<'_>) -> Result<TxnResponse, NoAnswer> {
        rights.read_txn(self)?;
        Store::of(head, rows).read_txn(self)
    }
}

/// The hash of all keys up to a revision (0: the newest).
pub struct HashUpto(pub i64);

impl Question for HashUpto {
    /// The hash, the oldest revision that can be read, and the newest.
    type Answer = (u32, u64, u64);

    fn answer(&self, head: &v1::Head, rows: &View, _: Rights<'_>) -> Result<Self::Answer, NoAnswer> {
        let store = Store::of(head, rows);
        Ok((store.hash(self.0)?, store.compacted(), store.revision()))
    }
}

/// What is left of a lease, in the time that the cluster has when it is looked up.
pub struct TimeToLive {
    /// Of which.
    pub asked: LeaseTimeToLiveRequest,
    /// Who knows the time.
    pub raft: RaftHandle,
}

impl Question for TimeToLive {
    type Answer = LeaseTimeToLiveResponse;

    fn is_brief(&self) -> bool {
        !self.asked.keys
    }

    fn answer(&self, head: &v1::Head, rows: &View, rights: Rights<'_>) -> Result<Self::Answer, NoAnswer> {
        let reply = lease::time_to_live(head, rows, &self.asked, self.raft.cluster_time())?;
        rights.read_all(&reply.keys)?;
        Ok(reply)
    }
}

impl Question for LeaseLeasesRequest {
    type Answer = LeaseLeasesResponse;

    fn answer(&self, head: &v1::Head, rows: &View, _: Rights<'_>) -> Result<LeaseLeasesResponse, NoAnswer> {
        Ok(lease::all(head, rows)?)
    }
}

impl Question for v1::GetTask {
    type Answer = v1::GetTaskReply;

    fn answer(&self, head: &v1::Head, rows: &View, rights: Rights<'_>) -> Result<v1::GetTaskReply, NoAnswer> {
        rights.all()?;
        let found = match &self.by {
            Some(By::Id(id)) => task::find(rows, TaskId(*id))?,
            Some(By::Name(name)) => task::find_name(rows, name)?,
            None => None,
        };
        let now = ClusterTime(head.cluster_time_ms);
        let pending = found.as_ref().filter(|task| task.phase() == TaskPhase::Pending);
        let waiting_for = match pending {
            Some(task) if task.not_before_ms > now.0 => {
                "the pause after an attempt that failed, or was lost again".into()
            }
            Some(task) => scheduler::explain_text(task, &worker::of_members(rows)?, now),
            None => String::new(),
        };
        Ok(v1::GetTaskReply { found, waiting_for })
    }
}

impl Question for v1::ListTasks {
    type Answer = v1::ListTasksReply;

    fn answer(&self, _: &v1::Head, rows: &View, rights: Rights<'_>) -> Result<v1::ListTasksReply, NoAnswer> {
        rights.all()?;
        Ok(task::list(rows, self)?)
    }
}

impl Question for v1::ListWorkers {
    type Answer = v1::ListWorkersReply;

    fn answer(&self, _: &v1::Head, rows: &View, rights: Rights<'_>) -> Result<v1::ListWorkersReply, NoAnswer> {
        rights.all()?;
        Ok(v1::ListWorkersReply { workers: worker::all(rows)? })
    }
}

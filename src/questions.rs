//! Questions about the state, and where they are answered: what may take long, on threads of their own, so that a member that looks
//! something up for a client does not fall silent meanwhile.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::Status;

use crate::error::AuthReject;
use crate::io::{self, Spawn};
use crate::limits::{QUESTIONS_WAITING_MAX, READERS};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{RangeRequest, RequestOp, TxnRequest};
use crate::state::auth::Rights;
use crate::state::kv::{NoAnswer, Store};
use crate::state::table::View;

/// A transaction with no more comparisons and operations, each of one key, is answered at once.
const BRIEF_OPERATIONS: usize = 16;

/// What can be asked of the keys.
pub trait Question: Send + 'static {
    /// What is said then.
    type Answer: Send + 'static;

    /// Whether it is answered at once, however much there is.
    fn is_brief(&self) -> bool;

    /// Whether somebody may ask that.
    ///
    /// # Errors
    /// It may not.
    fn may(&self, rights: Rights<'_>) -> Result<(), AuthReject>;

    /// Looks it up.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    fn read(&self, store: &Store<'_, View>) -> Result<Self::Answer, NoAnswer>;
}

impl Question for RangeRequest {
    type Answer = crate::proto::etcdserverpb::RangeResponse;

    fn is_brief(&self) -> bool {
        self.range_end.is_empty()
    }

    fn may(&self, rights: Rights<'_>) -> Result<(), AuthReject> {
        rights.read(&self.key, &self.range_end)
    }

    fn read(&self, store: &Store<'_, View>) -> Result<Self::Answer, NoAnswer> {
        store.range(self)
    }
}

/// A transaction that only reads.
impl Question for TxnRequest {
    type Answer = crate::proto::etcdserverpb::TxnResponse;

    fn is_brief(&self) -> bool {
        let is_of_one = |operation: &RequestOp| match &operation.request {
            Some(Request::RequestRange(range)) => range.is_brief(),
            _ => false,
        };
        let all = self.compare.len() + self.success.len() + self.failure.len();
        all <= BRIEF_OPERATIONS
            && self.compare.iter().all(|compare| compare.range_end.is_empty())
            && self.success.iter().chain(&self.failure).all(is_of_one)
    }

    fn may(&self, rights: Rights<'_>) -> Result<(), AuthReject> {
        rights.read_txn(self)
    }

    fn read(&self, store: &Store<'_, View>) -> Result<Self::Answer, NoAnswer> {
        store.read_txn(self)
    }
}

/// The hash of all keys up to a revision (0: the newest), which anybody may ask for. The answer says of which revision it is, and from
/// which on they can be read, too.
pub struct HashUpto(pub i64);

impl Question for HashUpto {
    /// The hash, the oldest revision that can be read, and the newest.
    type Answer = (u32, u64, u64);

    fn is_brief(&self) -> bool {
        false
    }

    fn may(&self, _: Rights<'_>) -> Result<(), AuthReject> {
        Ok(())
    }

    fn read(&self, store: &Store<'_, View>) -> Result<Self::Answer, NoAnswer> {
        Ok((store.hash(self.0)?, store.compacted(), store.revision()))
    }
}

/// What is to be looked up.
type Job = Box<dyn FnOnce() + Send>;

/// A thread that looks things up.
struct Reader;

impl io::Worker for Reader {
    type Job = Job;

    fn run(&mut self, jobs: &mut Vec<Job>) {
        jobs.drain(..).for_each(|job| job());
    }
}

/// The threads that look things up, each one thing at a time.
pub struct Readers {
    idle: Arc<Mutex<Vec<mpsc::Sender<Job>>>>,
    /// As many as are idle.
    free: Arc<Semaphore>,
    /// How many questions there may be, under way or waiting.
    room: Semaphore,
}

/// A thread that is in use.
struct Lent {
    to: mpsc::Sender<Job>,
    idle: Arc<Mutex<Vec<mpsc::Sender<Job>>>>,
    _free: OwnedSemaphorePermit,
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.idle).push(self.to.clone());
    }
}

fn lock(idle: &Mutex<Vec<mpsc::Sender<Job>>>) -> std::sync::MutexGuard<'_, Vec<mpsc::Sender<Job>>> {
    idle.lock().expect("no code panics while it holds the threads")
}

impl Readers {
    /// Starts them.
    pub fn new(spawn: &dyn Spawn) -> Self {
        let threads = (0..READERS).map(|_| io::own(spawn, "reader", Reader, 1)).collect();
        Self {
            idle: Arc::new(Mutex::new(threads)),
            free: Arc::new(Semaphore::new(READERS)),
            room: Semaphore::new(QUESTIONS_WAITING_MAX),
        }
    }

    /// Has something looked up by the next of them that is idle. Once it has begun, it goes on even if nobody waits for it any more.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too many wait for that, `UNAVAILABLE` if this member stops.
    pub async fn look<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let stops = |_| Status::unavailable("this node stops");
        let busy = |_| Status::resource_exhausted("too many questions wait to be looked up; try again later");
        let _room = self.room.try_acquire().map_err(busy)?;
        let free = self.free.clone().acquire_owned().await.map_err(stops)?;
        let to = lock(&self.idle).pop().expect("as many are idle as there are permits");
        let lent = Lent { to: to.clone(), idle: self.idle.clone(), _free: free };
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            let found = look();
            // Before the answer: whoever hears it may ask the next question.
            drop(lent);
            drop(answer.send(found));
        });
        to.try_send(job).map_err(|_| Status::unavailable("this node stops"))?;
        answered.await.map_err(|_| Status::unavailable("this node stops"))
    }
}

//! Things on their way, many in one call. One goes at once; what comes while calls are under way shares the next one, as what comes
//! while the log is being written shares its next entry.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::io::{Clock, Spawn};
use crate::limits::{BATCH_BYTES_MAX, LANE_CALLS_MAX, LANE_ITEMS_MAX, LANE_WAITING_MAX};
use crate::time::Monotonic;

/// Why something that was to be passed on was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// It was never sent: too much waits.
    Full,
    /// It was never sent: its deadline came before its turn.
    Late,
    /// It was never sent: it was not to go this way any more.
    Moved,
    /// It was never sent: nobody sends anything this way any more.
    Ended,
    /// It was sent, and nobody knows what came of it.
    Lost,
}

/// Something that is to be passed on, and who waits for what comes of it.
struct Waiting<T, A> {
    item: T,
    deadline: Monotonic,
    claim: Claim,
    answer: oneshot::Sender<A>,
}

/// Who has something: whoever claims it first sends it, or says that it never will be.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A way on which things go together. Copies are the same way; it ends with the last of them.
pub struct Lane<T, A> {
    queue: mpsc::Sender<Waiting<T, A>>,
}

impl<T, A> Clone for Lane<T, A> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T: Send + 'static, A: Send + 'static> Lane<T, A> {
    /// A way whose calls are made by `carry`: it gives the answers in the order of the items, and ends by itself when the last of
    /// their deadlines has come. What it does not answer is lost. `bytes` says how large an item is.
    pub fn new<C>(spawn: &dyn Spawn, name: &'static str, bytes: fn(&T) -> usize, carry: C) -> Self
    where
        C: Fn(Vec<(T, Monotonic)>) -> BoxFuture<'static, Vec<A>> + Send + Sync + 'static,
    {
        let (queue, waiting) = mpsc::channel(LANE_WAITING_MAX);
        spawn.spawn(name, Box::pin(run(waiting, bytes, carry))).detach();
        Self { queue }
    }

    /// Passes something on and waits for its answer, unless `moved` says first that it is not to go this way.
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub async fn pass(
        &self,
        clock: &dyn Clock,
        item: T,
        deadline: Monotonic,
        moved: impl Future<Output = ()> + Send,
    ) -> Result<A, Unanswered> {
        let (answer, mut answered) = oneshot::channel();
        let claim = Claim::default();
        let waiting = Waiting { item, deadline, claim: claim.clone(), answer };
        match self.queue.try_send(waiting) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(Unanswered::Full),
            Err(TrySendError::Closed(_)) => return Err(Unanswered::Ended),
        }
        let known = match clock.deadline(deadline, select(&mut answered, pin!(moved))).await {
            Ok(Either::Left((answer, _))) => answer.ok(),
            Ok(Either::Right(_)) if claim.take() => return Err(Unanswered::Moved),
            // It is on its way.
            Ok(Either::Right(_)) => clock.deadline(deadline, answered).await.ok().and_then(Result::ok),
            Err(_) if claim.take() => return Err(Unanswered::Late),
            Err(_) => None,
        };
        known.ok_or(Unanswered::Lost)
    }
}

/// Sends what waits, a few calls at once.
async fn run<T, A, C>(mut queue: mpsc::Receiver<Waiting<T, A>>, bytes: fn(&T) -> usize, carry: C)
where
    C: Fn(Vec<(T, Monotonic)>) -> BoxFuture<'static, Vec<A>>,
{
    let mut calls = FuturesUnordered::new();
    let mut next: Option<Waiting<T, A>> = None;
    loop {
        let room = calls.len() < LANE_CALLS_MAX;
        tokio::select! {
            biased;
            Some(()) = calls.next(), if !calls.is_empty() => {}
            first = async { match next.take() { Some(first) => Some(first), None => queue.recv().await } }, if room => {
                let Some(first) = first else { break };
                let (mut size, mut batch) = (bytes(&first.item), vec![first]);
                while batch.len() < LANE_ITEMS_MAX
                    && let Ok(waiting) = queue.try_recv()
                {
                    size += bytes(&waiting.item);
                    if size > BATCH_BYTES_MAX {
                        next = Some(waiting);
                        break;
                    }
                    batch.push(waiting);
                }
                // Who has lost patience was told that it will not be done, or does not listen any more.
                batch.retain(|waiting| !waiting.answer.is_closed() && waiting.claim.take());
                if batch.is_empty() {
                    continue;
                }
                let (items, answers): (Vec<_>, Vec<_>) =
                    batch.into_iter().map(|waiting| ((waiting.item, waiting.deadline), waiting.answer)).unzip();
                let call = carry(items);
                calls.push(async move {
                    for (waiting, answer) in answers.into_iter().zip(call.await) {
                        let _ = waiting.send(answer);
                    }
                });
            }
        }
    }
    while calls.next().await.is_some() {}
}

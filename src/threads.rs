//! Threads for what takes long, so that a member does not fall silent meanwhile.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::Status;

use crate::io::{self, Spawn, Wanted};

type Job = Box<dyn FnOnce() + Send>;

/// One of them.
struct Hand;

impl io::Worker for Hand {
    type Job = Job;

    fn run(&mut self, jobs: &mut Vec<Job>) {
        jobs.drain(..).for_each(|job| job());
    }
}

/// Some threads, each of which does one thing at a time.
pub struct Threads {
    /// What it is that they do.
    name: &'static str,
    idle: Idle,
    /// As many as are idle.
    free: Arc<Semaphore>,
    /// How much there may be, under way or waiting.
    room: Semaphore,
}

type Idle = Arc<Mutex<Vec<mpsc::Sender<Job>>>>;

/// A thread that is in use.
struct Lent {
    to: mpsc::Sender<Job>,
    idle: Idle,
    _free: OwnedSemaphorePermit,
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.idle).push(self.to.clone());
    }
}

fn lock(idle: &Idle) -> MutexGuard<'_, Vec<mpsc::Sender<Job>>> {
    idle.lock().expect("no code panics while it holds the threads")
}

impl Threads {
    /// Starts so many threads, which are called like what they do, of which so much may be under way or waiting.
    pub fn new(spawn: &dyn Spawn, name: &'static str, count: usize, room: usize) -> Self {
        let idle = (0..count).map(|_| io::own(spawn, name, Hand, 1)).collect();
        let (free, room) = (Arc::new(Semaphore::new(count)), Semaphore::new(room));
        Self { name, idle: Arc::new(Mutex::new(idle)), free, room }
    }

    /// Has something done by the next of them that is idle. What nobody waits for any more is not begun; what has been begun may ask whether
    /// it is still wanted.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too much waits, `UNAVAILABLE` if this member stops.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce(Wanted) -> T + Send + 'static) -> Result<T, Status> {
        let stops = || Status::unavailable("this node stops");
        let busy = |_| Status::resource_exhausted(format!("too many {} wait; try again later", self.name));
        let _room = self.room.try_acquire().map_err(busy)?;
        let free = self.free.clone().acquire_owned().await.map_err(|_| stops())?;
        let to = lock(&self.idle).pop().expect("as many are idle as there are permits");
        let lent = Lent { to: to.clone(), idle: self.idle.clone(), _free: free };
        let (answer, answered) = oneshot::channel();
        let here = Arc::default();
        let wanted = Wanted::by(&here);
        let job: Job = Box::new(move || {
            let done = wanted.is_wanted().then(|| work(wanted));
            // Before the answer: whoever hears it may have more to do.
            drop(lent);
            drop(done.map(|done| answer.send(done)));
        });
        to.try_send(job).map_err(|_| stops())?;
        let done = answered.await.map_err(|_| stops());
        drop(here);
        done
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use std::time::Duration;

    use futures_util::future::{FutureExt, join_all};
    use tonic::Code;

    use super::*;
    use crate::sim::trace::Trace;
    use crate::sim::world::{Seed, run};

    #[test]
    fn as_much_is_done_as_there_is_room_for() {
        let (done, refused) = run(Seed(1), Trace::default(), |world| async move {
            let (io, _) = world.machine().boot();
            let threads = Threads::new(&*io.spawn, "things", 2, 5);
            let answers = join_all((0..7).map(|number| threads.run(move |_| number))).await;
            let done: Vec<i32> = answers.iter().filter_map(|answer| answer.as_ref().ok().copied()).collect();
            (done, answers.into_iter().filter_map(Result::err).collect::<Vec<_>>())
        })
        .expect("it comes to an end");
        assert_eq!(done, [0, 1, 2, 3, 4]);
        assert!(refused.len() == 2 && refused.iter().all(|status| status.code() == Code::ResourceExhausted));
        assert!(refused[0].message().starts_with("too many things wait"), "{}", refused[0]);
    }

    #[test]
    fn a_thread_that_nobody_waits_for_is_free_again() {
        let begun = run(Seed(1), Trace::default(), |world| async move {
            let (io, _) = world.machine().boot();
            let threads = Threads::new(&*io.spawn, "things", 2, 5);
            let begun = Arc::new(Mutex::new(0));
            for number in 0..50 {
                let count = begun.clone();
                let work = threads.run(move |_| *count.lock().expect("nobody panics") += 1);
                // Some before a thread has begun, some when it has.
                let patience = Duration::from_micros(number % 7 * 500);
                let _ = madsim::time::timeout(patience, work).await;
            }
            let wanted = threads.run(|wanted| (wanted.is_wanted(), wanted)).await;
            assert!(
                wanted.is_ok_and(|(then, wanted)| then && !wanted.is_wanted()),
                "it is wanted as long as it is waited for"
            );
            let all = join_all((0..5).map(|_| threads.run(|_| ()))).await;
            assert!(all.iter().all(Result::is_ok), "a thread or its room was lost");
            *begun.lock().expect("nobody panics")
        })
        .expect("it comes to an end");
        assert!((1..50).contains(&begun), "{begun}");
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_begun() {
        let begun = run(Seed(1), Trace::default(), |world| async move {
            let (io, _) = world.machine().boot();
            let threads = Threads::new(&*io.spawn, "things", 1, 5);
            let begun = Arc::new(Mutex::new(Vec::new()));
            let note = |number| {
                let begun = begun.clone();
                move |_| begun.lock().expect("nobody panics").push(number)
            };
            assert!(threads.run(note(1)).now_or_never().is_none(), "it takes a while");
            threads.run(note(2)).await.expect("it is free again");
            Arc::into_inner(begun).map(|begun| begun.into_inner().expect("nobody panics"))
        })
        .expect("it comes to an end");
        assert_eq!(begun, Some(vec![2]));
    }
}

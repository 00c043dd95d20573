//! Snapshots: a copy of the state in a file of its own, sent in chunks to a member that is behind the log, and built
//! there into a state beside the old one.
//!
//! ```text
//!   leader                                            member that is behind
//!   raft-rs wants one ──► take: a file of chunks
//!   announces it in a Raft message ─────────────────► fetch: asks for the chunks, from where it was if need be
//!   reads chunks from the file ─────────────────────► build: a new state, checked against the digest, durable
//!                                                     the announcement is stepped; the log's write names the state
//!                                                     the state goes over to it, the old file is removed
//! ```
//!
//! The file of chunks need not survive anything: it is never synced, and removed at boot.
//!
//! The same owner writes the state in use anew when that is asked for, a step at a time between the other jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Request};

use super::codec;
use super::core::Announced;
use super::owner::{Done, report};
use super::transport::Hello;
use crate::entry::Step;
use crate::error::{Context, Fault, ImportError};
use crate::ids::{Address, Incarnation, Index, NodeId, Term};
use crate::io::{Backend, Disk, Io, Spawn, Worker};
use crate::limits::{
    MEMBERS_MAX, MESSAGE_BYTES_MAX, RECONNECT_PAUSE_MIN, SNAPSHOT_ATTEMPTS_MAX, SNAPSHOT_BEGINNINGS_MAX,
    SNAPSHOT_PATIENCE,
};
use crate::proto::v1::peer_client::PeerClient;
use crate::proto::v1::{RaftSnapshot, SnapshotBody, SnapshotChunk, SnapshotRequest};
use crate::time::Monotonic;

const FILE_PREFIX: &str = "snapshot-";

/// What a whole state is taken apart into, and built from.
pub trait Snapshots: Send + 'static {
    /// Whether there is room for a copy of the state; if not, why not.
    ///
    /// # Errors
    /// This member must stop.
    fn room(&self) -> Result<Result<(), String>, Fault>;

    /// Gives the state as it is now to `each`, chunk by chunk. Says what it is of; `chunks` is left to the caller.
    ///
    /// # Errors
    /// This member must stop.
    fn export(&self, each: &mut dyn FnMut(&[u8]) -> Result<(), Fault>) -> Result<RaftSnapshot, Fault>;

    /// Whether there is room to build a state of so many chunks; if not, why not.
    ///
    /// # Errors
    /// This member must stop.
    fn room_to_build(&self, chunks: u64) -> Result<Result<(), String>, Fault>;

    /// Begins to build a state at `index`, beside the one in use. One under construction is given up and removed.
    ///
    /// # Errors
    /// This member must stop.
    fn begin(&mut self, index: Index) -> Result<(), Fault>;

    /// Adds the next chunk to the state under construction.
    ///
    /// # Errors
    /// The chunk is not what follows, or this member must stop.
    fn add(&mut self, chunk: &[u8]) -> Result<(), ImportError>;

    /// Makes the state under construction whole and durable, and checks that it is the one with this digest.
    ///
    /// # Errors
    /// It is another, or this member must stop.
    fn finish(&mut self, digest: u64) -> Result<(), ImportError>;

    /// Goes a step on with writing the state in use anew, into a file without anything free.
    ///
    /// # Errors
    /// This member must stop.
    fn defragment(&mut self) -> Result<Step, Fault>;

    /// Removes a state at `index`, finished or under construction, that will not be used.
    ///
    /// # Errors
    /// This member must stop.
    fn discard(&mut self, index: Index) -> Result<(), Fault>;
}

/// What a member that was asked for a chunk has to say.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// Here it is.
    Data(SnapshotChunk),
    /// There are no more.
    End,
    /// That snapshot is not, or no more, here.
    Gone,
}

pub(super) enum SnapshotJob {
    Take,
    Copy { reply: oneshot::Sender<Copied> },
    Read { position: (Index, Term), number: u64, reply: oneshot::Sender<Chunk> },
    Forget,
    Begin { index: Index, chunks: u64, reply: oneshot::Sender<Result<(), String>> },
    Add { chunk: Bytes, reply: oneshot::Sender<Result<(), String>> },
    Finish { digest: u64, reply: oneshot::Sender<Result<(), String>> },
    Discard(Index),
    Defragment,
}

/// Chunks, one after the other in a file.
struct Chunks {
    name: String,
    file: Backend,
    /// Where each ends.
    ends: Vec<u64>,
}

impl Chunks {
    /// Writes the state as it is now to a file, for as long as that is wanted.
    fn write(
        snapshots: &impl Snapshots,
        disk: &dyn Disk,
        name: String,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(Self, RaftSnapshot), Fault> {
        let what = || format!("write {name} in {}", disk.describe());
        let file = disk.open(&name).context(what)?;
        let (mut ends, mut end) = (Vec::new(), 0);
        let mut snapshot = snapshots.export(&mut |chunk| {
            if !wanted() {
                return Err(Fault::new("nobody waits for it any more"));
            }
            redb::StorageBackend::write(&file, end, chunk).context(what)?;
            end += chunk.len() as u64;
            ends.push(end);
            Ok(())
        })?;
        snapshot.body.get_or_insert_default().chunks = ends.len() as u64;
        Ok((Self { name, file, ends }, snapshot))
    }

    /// The chunk of a number; nothing after the last.
    fn read(&self, number: usize) -> Result<Option<Bytes>, Fault> {
        let Some(end) = self.ends.get(number) else { return Ok(None) };
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        let mut data = vec![0; (end - start) as usize];
        redb::StorageBackend::read(&self.file, start, &mut data).context(|| format!("read {}", self.name))?;
        Ok(Some(data.into()))
    }
}

/// A snapshot that was taken for members that are behind.
struct Taken {
    position: (Index, Term),
    chunks: Chunks,
}

/// What was given of the snapshot that there is.
#[derive(Default)]
pub(super) struct Served {
    to: BTreeMap<(NodeId, Incarnation), Fetching>,
}

/// How far a life of a member has come with a snapshot.
struct Fetching {
    /// How often it has begun anew.
    again: u32,
    /// The last chunk that it was given since.
    upto: u64,
    /// When that was, and whether there are more.
    last: (Monotonic, bool),
}

impl Served {
    /// Notes that a chunk was given.
    pub(super) fn note(&mut self, whom: (NodeId, Incarnation), number: u64, now: (Monotonic, bool)) {
        let Some(fetching) = self.to.get_mut(&whom) else {
            // Its earlier lives ask for nothing any more.
            self.to.retain(|(member, _), _| *member != whom.0);
            if self.to.len() < MEMBERS_MAX {
                self.to.insert(whom, Fetching { again: 0, upto: number, last: now });
            }
            return;
        };
        if number == 0 && fetching.upto > 0 {
            (fetching.again, fetching.upto) = (fetching.again + 1, 0);
        } else if number > fetching.upto {
            (fetching.upto, fetching.last) = (number, now);
        }
    }

    /// When somebody came further, or it was made if that is later.
    pub(super) fn since(&self, taken: Monotonic) -> Monotonic {
        self.to.values().map(|fetching| fetching.last.0).fold(taken, Monotonic::max)
    }

    /// Whether somebody is getting it who may yet have it.
    pub(super) fn is_under_way(&self, now: Monotonic) -> bool {
        self.to.values().any(|Fetching { again, last: (at, more), .. }| {
            *again < SNAPSHOT_BEGINNINGS_MAX && *more && now.since(*at) <= SNAPSHOT_PATIENCE
        })
    }

    /// Whether somebody has begun anew so often that it will not be got by doing so again, and nobody else is getting it.
    pub(super) fn is_vain(&self, now: Monotonic) -> bool {
        self.to.values().any(|fetching| fetching.again >= SNAPSHOT_BEGINNINGS_MAX) && !self.is_under_way(now)
    }
}

/// A copy of the state for whoever asked for it. Its file is removed when this is dropped.
pub struct Copied {
    /// What it is of.
    pub of: RaftSnapshot,
    chunks: Option<Chunks>,
    disk: Arc<dyn Disk>,
}

impl Copied {
    /// The bytes of all its chunks.
    pub fn bytes(&self) -> u64 {
        self.chunks.as_ref().and_then(|chunks| chunks.ends.last().copied()).unwrap_or_default()
    }

    /// The chunk of a number, counted from 0; nothing after the last.
    ///
    /// # Errors
    /// The disk failed.
    pub fn chunk(&self, number: usize) -> Result<Option<Bytes>, Fault> {
        self.chunks.as_ref().map_or(Ok(None), |chunks| chunks.read(number))
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let Some(Chunks { name, file, .. }) = self.chunks.take() else { return };
        drop(file);
        // What stays behind the next start removes.
        if let Err(error) = self.disk.remove(&name) {
            tracing::warn!(%error, "a copy of the state is not removed");
        }
    }
}

/// Has the owner copy the state as it is now. Nothing if too much waits, or that fails.
pub(super) async fn copy(jobs: &mpsc::Sender<SnapshotJob>) -> Option<Copied> {
    let (reply, copied) = oneshot::channel();
    jobs.try_send(SnapshotJob::Copy { reply }).ok()?;
    copied.await.ok()
}

/// Owns what is taken and what is built.
pub(super) struct SnapshotOwner<S> {
    /// `None` after a failure: the node is stopping.
    snapshots: Option<S>,
    disk: Arc<dyn Disk>,
    taken: Option<Taken>,
    /// Copies made so far.
    copies: u64,
    done: mpsc::Sender<Done>,
    spawn: Arc<dyn Spawn>,
}

impl<S: Snapshots> SnapshotOwner<S> {
    /// Removes what an earlier life has left behind.
    pub(super) fn new(snapshots: S, io: &Io, done: mpsc::Sender<Done>) -> Result<Self, Fault> {
        let what = || format!("remove old snapshots from {}", io.disk.describe());
        for name in io.disk.list().context(what)?.iter().filter(|name| name.starts_with(FILE_PREFIX)) {
            io.disk.remove(name).context(what)?;
        }
        Ok(Self {
            snapshots: Some(snapshots),
            disk: io.disk.clone(),
            taken: None,
            copies: 0,
            done,
            spawn: io.spawn.clone(),
        })
    }

    /// Nothing if there is no room for it: whoever is behind can wait, and all others need what space there is.
    fn take(&mut self, snapshots: &S) -> Result<Option<RaftSnapshot>, Fault> {
        self.forget()?;
        if let Err(why) = snapshots.room()? {
            sometimes!("there was no room for a snapshot");
            tracing::error!(why, "no snapshot can be taken for a member that is behind the log");
            return Ok(None);
        }
        // The index is known only when it is done, and there is one at a time.
        let name = format!("{FILE_PREFIX}taken");
        let (chunks, snapshot) = Chunks::write(snapshots, &*self.disk, name, &|| true)?;
        let position = (Index(snapshot.index), Term(snapshot.term));
        self.taken = Some(Taken { position, chunks });
        Ok(Some(snapshot))
    }

    fn forget(&mut self) -> Result<(), Fault> {
        let Some(Taken { chunks: Chunks { name, file, .. }, .. }) = self.taken.take() else { return Ok(()) };
        drop(file);
        self.disk.remove(&name).context(|| format!("remove {name} in {}", self.disk.describe()))
    }

    fn read(&self, position: (Index, Term), number: u64) -> Result<Chunk, Fault> {
        let Some(taken) = self.taken.as_ref().filter(|taken| taken.position == position) else {
            return Ok(Chunk::Gone);
        };
        Ok(match taken.chunks.read(number as usize)? {
            Some(data) => Chunk::Data(codec::chunk_to_wire(number, data)),
            None => Chunk::End,
        })
    }

    /// Copies the state for whoever waits. What fails is theirs alone: the file goes, and they hear nothing.
    fn copy(&mut self, snapshots: &S, reply: oneshot::Sender<Copied>) {
        self.copies += 1;
        let name = format!("{FILE_PREFIX}copy-{}", self.copies);
        let wanted = || !reply.is_closed();
        // Others may have taken what room there was when this was asked for.
        let room = snapshots.room().and_then(|room| room.map_err(Fault::new));
        match room.and_then(|()| Chunks::write(snapshots, &*self.disk, name.clone(), &wanted)) {
            // Who does not want it any more drops it.
            Ok((chunks, of)) => drop(reply.send(Copied { of, chunks: Some(chunks), disk: self.disk.clone() })),
            Err(fault) => {
                tracing::warn!(%fault, "the state is not copied");
                let _ = self.disk.remove(&name);
            }
        }
    }

    fn run_one(&mut self, snapshots: &mut S, job: SnapshotJob) -> Result<(), Fault> {
        match job {
            SnapshotJob::Take => {
                let taken = self.take(snapshots)?;
                report(&self.done, taken.map_or(Done::NotTaken, Done::Taken));
            }
            SnapshotJob::Copy { reply } => self.copy(snapshots, reply),
            SnapshotJob::Read { position, number, reply } => {
                let _ = reply.send(self.read(position, number)?);
            }
            SnapshotJob::Forget => self.forget()?,
            SnapshotJob::Begin { index, chunks, reply } => {
                let room = snapshots.room_to_build(chunks)?;
                if room.is_ok() {
                    snapshots.begin(index)?;
                }
                let _ = reply.send(room);
            }
            SnapshotJob::Add { chunk, reply } => {
                let _ = reply.send(said(snapshots.add(&chunk))?);
            }
            SnapshotJob::Finish { digest, reply } => {
                let _ = reply.send(said(snapshots.finish(digest))?);
            }
            SnapshotJob::Discard(index) => snapshots.discard(index)?,
            SnapshotJob::Defragment => report(&self.done, Done::Defragmented(snapshots.defragment()?)),
        }
        Ok(())
    }
}

/// What is wrong with what came from outside is told to whoever brought it; a fault stops this member.
fn said(result: Result<(), ImportError>) -> Result<Result<(), String>, Fault> {
    match result {
        Ok(()) => Ok(Ok(())),
        Err(ImportError::Invalid(why)) => Ok(Err(why)),
        Err(ImportError::Fault(fault)) => Err(fault),
    }
}

impl<S: Snapshots> Worker for SnapshotOwner<S> {
    type Job = SnapshotJob;

    fn run(&mut self, jobs: &mut Vec<SnapshotJob>) {
        for job in jobs.drain(..) {
            let Some(mut snapshots) = self.snapshots.take() else { return };
            match self.run_one(&mut snapshots, job) {
                Ok(()) => self.snapshots = Some(snapshots),
                Err(fault) => self.spawn.fail_stop(fault),
            }
        }
    }
}

/// Reads a chunk of what the owner has taken.
pub(super) async fn read(jobs: &mpsc::Sender<SnapshotJob>, position: (Index, Term), number: u64) -> Chunk {
    let (reply, answer) = oneshot::channel();
    match jobs.send(SnapshotJob::Read { position, number, reply }).await {
        Ok(()) => answer.await.unwrap_or(Chunk::Gone),
        Err(_) => Chunk::Gone,
    }
}

/// Fetches the body of an announced snapshot from `address` and has it built. True if it is whole and durable.
pub(super) async fn fetch(
    io: Io,
    hello: Hello,
    address: Address,
    announced: Announced,
    jobs: mpsc::Sender<SnapshotJob>,
) -> bool {
    let Announced { from, position: (index, _), body } = &announced;
    tracing::info!(%from, %index, chunks = body.chunks, "fetching a snapshot");
    let begun = ask(&jobs, |reply| SnapshotJob::Begin { index: *index, chunks: body.chunks, reply }).await;
    if let Err(why) = begun {
        tracing::warn!(%from, %index, why, "a snapshot cannot be taken in as yet");
        return false;
    }
    let mut next = 0;
    let mut failures = 0;
    loop {
        let before = next;
        match fetch_from(&io, &hello, &address, &announced, &jobs, &mut next).await {
            Ok(()) => break,
            Err(Broken::ForGood(why)) => {
                tracing::warn!(%from, %index, why, "a snapshot could not be fetched");
                return false;
            }
            Err(Broken::ForNow(why)) => {
                sometimes!(next > 0, "the stream of a snapshot broke and went on where it was");
                tracing::info!(%from, %index, next, why, "the stream of a snapshot broke");
                failures = if next > before { 0 } else { failures + 1 };
                if failures == SNAPSHOT_ATTEMPTS_MAX {
                    return false;
                }
                io.clock.sleep(RECONNECT_PAUSE_MIN * 2u32.pow(failures)).await;
            }
        }
    }
    let SnapshotBody { digest, chunks } = *body;
    let finished = ask(&jobs, |reply| SnapshotJob::Finish { digest, reply }).await;
    match finished {
        Ok(()) => tracing::info!(%from, %index, chunks, "a snapshot is here"),
        Err(ref why) => tracing::warn!(%from, %index, why, "a snapshot is not what it should be"),
    }
    finished.is_ok()
}

enum Broken {
    ForNow(String),
    ForGood(String),
}

/// One stream of chunks, from `next` on to the last.
async fn fetch_from(
    io: &Io,
    hello: &Hello,
    address: &Address,
    announced: &Announced,
    jobs: &mpsc::Sender<SnapshotJob>,
    next: &mut u64,
) -> Result<(), Broken> {
    let broken = |status: tonic::Status| match status.code() {
        Code::NotFound => Broken::ForGood(status.message().into()),
        _ => Broken::ForNow(status.to_string()),
    };
    let stalled = |_| Broken::ForNow(format!("nothing came within {SNAPSHOT_PATIENCE:?}"));
    let (index, term) = announced.position;
    let mut request = Request::new(SnapshotRequest { index: index.0, term: term.0, first_chunk: *next });
    hello.write(request.metadata_mut());
    // A connection of its own: a long body must not stand in the way of heartbeats.
    let mut client = PeerClient::new(io.network.connect(address)).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let call = io.clock.timeout(SNAPSHOT_PATIENCE, client.snapshot(request)).await.map_err(stalled)?;
    let mut chunks = call.map_err(broken)?.into_inner();
    while *next < announced.body.chunks {
        let chunk = io.clock.timeout(SNAPSHOT_PATIENCE, chunks.message()).await.map_err(stalled)?.map_err(broken)?;
        // A stream that was cut short may look like one that ended.
        let chunk = chunk.ok_or_else(|| Broken::ForNow(format!("it ended at chunk {next}")))?;
        let chunk = codec::chunk_from_wire(*next, chunk).map_err(|error| Broken::ForNow(error.to_string()))?;
        ask(jobs, |reply| SnapshotJob::Add { chunk, reply }).await.map_err(Broken::ForGood)?;
        *next += 1;
    }
    Ok(())
}

async fn ask(
    jobs: &mpsc::Sender<SnapshotJob>,
    job: impl FnOnce(oneshot::Sender<Result<(), String>>) -> SnapshotJob,
) -> Result<(), String> {
    let (reply, answer) = oneshot::channel();
    let stopping = || "this member is stopping".to_string();
    jobs.send(job(reply)).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIFE: (NodeId, Incarnation) = (NodeId(1), Incarnation(1));
    const OTHER: (NodeId, Incarnation) = (NodeId(2), Incarnation(1));

    fn at(secs: u64) -> Monotonic {
        Monotonic::default() + Duration::from_secs(secs)
    }

    /// Chunks given to a life, one each second from a time on. Says when the next would be.
    fn give(served: &mut Served, whom: (NodeId, Incarnation), numbers: std::ops::Range<u64>, from: u64) -> u64 {
        let end = from + numbers.end - numbers.start;
        numbers.zip(from..).for_each(|(number, now)| served.note(whom, number, (at(now), true)));
        end
    }

    #[test]
    fn who_gets_on_keeps_a_snapshot() {
        let mut served = Served::default();
        assert!(!served.is_under_way(at(0)) && !served.is_vain(at(0)));
        let now = give(&mut served, LIFE, 0..30, 0);
        assert!(served.is_under_way(at(now)));
        assert_eq!(served.since(at(5)), at(now - 1));
        assert!(!served.is_under_way(at(now) + SNAPSHOT_PATIENCE), "it asks no more");
        served.note(LIFE, 30, (at(now), false));
        assert!(!served.is_under_way(at(now)), "it has it");
    }

    #[test]
    fn who_begins_anew_gets_no_further() {
        let mut served = Served::default();
        let mut now = 0;
        for again in 0..=SNAPSHOT_BEGINNINGS_MAX {
            assert!(!served.is_vain(at(now)), "{again}");
            now = give(&mut served, LIFE, 0..5, now);
        }
        assert!(served.is_vain(at(now)) && !served.is_under_way(at(now)));
        // While another may yet have it, it stays.
        now = give(&mut served, OTHER, 0..5, now);
        assert!(!served.is_vain(at(now)));
        assert!(served.is_vain(at(now) + SNAPSHOT_PATIENCE));
        // In another life it is another's.
        give(&mut served, (LIFE.0, Incarnation(2)), 0..5, now);
        assert!(!served.is_vain(at(now) + SNAPSHOT_PATIENCE));
    }

    #[test]
    fn a_stream_that_breaks_before_anything_came_is_no_beginning() {
        let mut served = Served::default();
        (0..100).for_each(|now| served.note(LIFE, 0, (at(now), true)));
        assert!(!served.is_vain(at(100)));
        assert_eq!(served.since(at(0)), at(0), "nor is it getting on");
    }
}

//! Every bound of the system by name. Relations between them are asserted when the crate is compiled.

use std::num::NonZeroU32;
use std::time::Duration;

/// Largest request that changes keys, encoded, in bytes (etcd's default, too).
pub const REQUEST_BYTES_MAX: usize = 1536 * 1024;
/// Most operations in a transaction (etcd's default, too).
pub const TXN_OPERATIONS_MAX: usize = 128;
/// Most comparisons and operations in a transaction with all inner ones: as many as one without may have.
pub const TXN_ALL_MAX: usize = 3 * TXN_OPERATIONS_MAX;
/// What the commands of one entry read at most, in bytes; less only in simulation.
pub const READ_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// What a key that is looked at counts for, in bytes.
pub const LOOK_BYTES: u64 = 16;
/// Keys of a range that are looked at before others may change the index.
pub const SELECT_KEYS_MAX: usize = 10_000;
/// Transactions in transactions, at most: what a member has decoded once it can decode again within a command.
pub const TXN_DEPTH_MAX: usize = 16;
/// Largest command that may be proposed, encoded, in bytes.
pub const COMMAND_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Shortest token that opens a cluster, in characters.
pub const TOKEN_CHARS_MIN: usize = 16;
/// Longest token that opens a cluster, in characters.
pub const TOKEN_CHARS_MAX: usize = 512;
/// Largest request as JSON, in bytes: what it stands for in base64, and its names.
pub const JSON_BYTES_MAX: usize = 2 * COMMAND_BYTES_MAX;
/// Requests as JSON that are read at once, and as many of those who log in; more are refused.
pub const JSON_READING_MAX: usize = 256;
/// Keys that our own client asks for at once.
pub const RANGE_PAGE_KEYS: i64 = 1_000;

/// Largest batch of commands that becomes one log entry, in bytes; a single larger command goes alone.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Most commands in one log entry.
pub const BATCH_COMMANDS_MAX: usize = 4_096;
/// Largest log entry that is accepted from a peer or from disk, in bytes.
pub const ENTRY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Entries in one append message, in bytes (raft-rs sends at least one entry).
pub const APPEND_BYTES_MAX: u64 = 1024 * 1024;
/// Append messages under way to one follower before an answer.
pub const APPENDS_IN_FLIGHT_MAX: usize = 256;
/// Entries proposed but not committed, in bytes; above it proposals are refused as exhausted.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Committed entries handed to the state at once, in bytes.
pub const COMMITTED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Log entries kept in memory for readers and slow followers, in bytes. What is not yet durable and applied stays
/// in memory whatever its size.
pub const TAIL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Largest gRPC message that any service takes, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest answer of a member about keys that is taken, in bytes: as much as etcd's own clients take, for all keys may be asked for at
/// once, and what was done is not to be called undone because the answer is long.
pub const ANSWER_BYTES_MAX: usize = i32::MAX as usize;
/// Most Raft messages in one frame of a peer stream.
pub const FRAME_MESSAGES_MAX: usize = 64;
/// Raft messages that wait for one peer's stream; more are dropped and reported as unreachable.
pub const PEER_QUEUE_MAX: usize = 4_096;
/// Frames from peers that wait for the Raft manager; more are dropped and counted.
pub const INBOX_FRAMES_MAX: usize = 1_024;
/// Client requests (proposals and reads) that wait for the Raft manager; more are refused as exhausted.
pub const INBOX_REQUESTS_MAX: usize = 16_384;
/// Proposals accepted and not yet answered; more are refused as exhausted.
pub const PROPOSALS_PENDING_MAX: usize = 65_536;
/// Calls under way at once with commands that a client sends, or a follower passes on; more commands wait, and share the next.
pub const LANE_CALLS_MAX: usize = 4;
/// Most commands in one such call.
pub const LANE_ITEMS_MAX: usize = 1_024;
/// Commands that wait for one; more are refused as exhausted.
pub const LANE_WAITING_MAX: usize = 16_384;
/// Threads on which questions are looked up whose answer may take long.
pub const READERS: usize = 4;
/// Such questions that are looked up or wait; one more is refused as exhausted.
pub const QUESTIONS_WAITING_MAX: usize = 1_024;
/// Reads accepted and not yet answered; more are refused as exhausted.
pub const READS_PENDING_MAX: usize = 65_536;
/// Reads of old entries under way at once; more are asked for when one has ended.
pub const FETCHES_MAX: usize = 2 * MEMBERS_MAX;
/// Write jobs the log's owner may have outstanding.
pub const LOG_JOBS_MAX: usize = 1_024;
/// Apply jobs the state's owner may have outstanding.
pub const APPLY_JOBS_MAX: usize = 64;

/// Bytes of committed entries that wait for the state's owner; then nothing more is taken, and nothing said.
pub const BACKLOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bytes of the answers to entries that are applied at once; after an entry with which there are more, they are taken before the next.
pub const ANSWERS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Applied entries between two durable checkpoints of the state.
pub const CHECKPOINT_ENTRIES_MAX: u64 = 10_000;
/// Applied bytes between two durable checkpoints of the state.
pub const CHECKPOINT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Applied log entries kept for members that are behind; one further behind is sent a snapshot.
pub const LOG_ENTRIES_KEPT: u64 = 20_000;
/// Bytes of applied log entries kept for members that are behind.
pub const LOG_BYTES_KEPT: u64 = 64 * 1024 * 1024;
/// Size of a snapshot's chunk; the last row of one may make it larger by as much as a row can be.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;
/// Rows that may be changed while the state is written anew, between one step and the next.
pub const DEFRAGMENT_CHANGES_MAX: usize = 1_000_000;
/// How often what was changed meanwhile is copied, before the owner of the state copies the rest, however much it is.
pub const DEFRAGMENT_ROUNDS_MAX: u32 = 10;
/// Jobs the owner of snapshots may have outstanding.
pub const SNAPSHOT_JOBS_MAX: usize = 64;
/// Attempts that may have been assigned since a copy of the state was made from which a new cluster begins.
pub const TOKENS_BEYOND_A_COPY: u64 = 1 << 32;
/// How long a machine may take to get over what keeps it from starting an attempt, before that is given back.
pub const LAUNCH_PATIENCE: Duration = Duration::from_secs(3);
/// How long after there was no room for a snapshot is looked again.
pub const SNAPSHOT_PAUSE: Duration = Duration::from_secs(2);
/// How long the next chunk of a snapshot may take to come, or to be asked for.
pub const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a snapshot is kept of which nobody asks for a chunk: it spares making another.
pub const SNAPSHOT_KEPT: Duration = Duration::from_secs(120);
/// How often a snapshot is announced to a member that has not said that it is installed.
pub const ANNOUNCE_PERIOD: Duration = Duration::from_secs(1);
/// Attempts in a row to go on with a snapshot's body that give nothing, before it is given up.
pub const SNAPSHOT_ATTEMPTS_MAX: u32 = 5;
/// How often a member may begin anew with the same snapshot, before another is made: that one is not what it should be.
pub const SNAPSHOT_BEGINNINGS_MAX: u32 = 3;
/// Free space below which nothing that grows is taken any more, where nothing else is configured.
pub const FREE_SPACE_FLOOR: u64 = 256 * 1024 * 1024;
/// Space set aside at the start, and given up when free space falls below half of the floor: what is under way, and
/// compaction, can still be written.
pub const BALLAST_BYTES: u64 = 64 * 1024 * 1024;
/// How often free space is looked at.
pub const SPACE_PERIOD: Duration = Duration::from_secs(1);
/// Memory redb may use to cache the state, in bytes (its own default is 1 GiB).
pub const STATE_CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Watches of keys on one stream.
pub const KEY_WATCHES_MAX: usize = 10_000;
/// Streams on which a member tells of changes of keys; one more is refused.
pub const KEY_STREAMS_MAX: usize = 20_000;
/// Changes of keys in one answer, after which the next revision waits for the next answer.
pub const EVENTS_MAX: usize = 1_000;
/// The same, in bytes.
pub const EVENTS_BYTES_MAX: usize = 1024 * 1024;
/// Size of the pieces in which a large answer is sent to who takes it in pieces.
pub const FRAGMENT_BYTES_MAX: usize = 1536 * 1024;
/// How long a watch that wants to hear so is silent before it is told that there was nothing (etcd's default, too).
pub const PROGRESS_PERIOD: Duration = Duration::from_secs(600);
/// Versions that one command sweeps away after a compaction, at most.
pub const SWEEP_ROWS_MAX: usize = 1_000;
/// Keys that it looks at for that.
pub const SWEEP_KEYS_MAX: usize = 20_000;
/// Backups that a member gives at once; one more is refused.
pub const BACKUPS_MAX: usize = 4;
/// Shortest time that a lease on keys lasts: one that is to be shorter is lengthened (as etcd does).
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(2);
/// Longest time that one can last (etcd's bound, too).
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(9_000_000_000);
/// Leases on keys; granting one more is refused.
pub const LEASES_MAX: u64 = 1_000_000;
/// How much is left of every lease on keys, if it lasts that long at all, when a term begins: who keeps it alive has to find the
/// new leader first.
pub const LEASE_GRACE: Duration = Duration::from_secs(10);
/// Leases on keys ended by one expiry command.
pub const EXPIRE_LEASES_MAX: usize = 1_000;
/// Messages of a stream that keeps leases alive which are carried out at once; the next one waits.
pub const KEEP_ALIVES_MAX: usize = 256;
/// Bytes that keys and their history may take where nothing else is said (etcd's default, too).
pub const KEYS_QUOTA: u64 = 2 * 1024 * 1024 * 1024;
/// Users.
pub const USERS_MAX: usize = 1_000;
/// Roles.
pub const ROLES_MAX: usize = 1_000;
/// Roles that a user has.
pub const ROLES_OF_USER_MAX: usize = 100;
/// Ranges of keys that a role says something of.
pub const PERMISSIONS_MAX: usize = 200;
/// Bytes that all of these ranges take.
pub const PERMISSIONS_BYTES_MAX: usize = 256 * 1024;
/// Length of the name of a user or a role, in bytes.
pub const AUTH_NAME_BYTES_MAX: usize = 256;
/// Length of a password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// How often a password is mixed before it is kept: what a guess costs.
pub const PASSWORD_ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).unwrap();
/// Passwords that wait to be looked at; one more is refused.
pub const PASSWORDS_WAITING_MAX: usize = 64;
/// Cluster time for which a user's token is good.
pub const USER_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Sessions open at once; opening one more is refused.
pub const SESSIONS_MAX: u64 = 100_000;
/// Replies a session keeps above the client's acknowledged sequence; a client that runs further ahead is refused.
pub const SESSION_WINDOW_MAX: u64 = 1_024;
/// Longest answer that a session keeps, in bytes; of a longer one it keeps that what was asked for was done.
pub const SESSION_ANSWER_BYTES_MAX: usize = COMMAND_BYTES_MAX;
/// Bytes of all the answers that a session keeps; then it keeps of each one more that what was asked for was done.
pub const SESSION_ANSWERS_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Cluster time after which an idle session expires.
pub const SESSION_TTL: Duration = Duration::from_secs(60);
/// Sessions ended by one expiry command.
pub const EXPIRE_SESSIONS_MAX: usize = 1_000;
/// Tasks that are not ended; one more is refused.
pub const TASKS_LIVE_MAX: u64 = 10_000;
/// Ended tasks that are remembered; then the first that ended is forgotten.
pub const TASKS_ENDED_KEPT: u64 = 10_000;
/// Attempts of a task that are remembered.
pub const ATTEMPTS_KEPT: usize = 8;
/// Most retries of a task.
pub const TASK_RETRIES_MAX: u32 = 1_000;
/// How often a task may be lost, with its worker or because that could not start it, before it is given up.
pub const TASK_LOSSES_MAX: u32 = 10;
/// What ran for so long before it was lost has not been lost before, as far as that counts.
pub const TASK_LOSSES_APART: Duration = Duration::from_secs(600);
/// Size of a task's specification, in bytes.
pub const TASK_SPEC_BYTES_MAX: usize = 64 * 1024;
/// Length of a task's name, in bytes.
pub const TASK_NAME_BYTES_MAX: usize = 63;
/// Length of a feature's name, in bytes.
pub const FEATURE_BYTES_MAX: usize = 63;
/// Features of a worker, or wanted by a task.
pub const FEATURES_MAX: usize = 64;
/// Tasks that one page of a list has at most.
pub const TASKS_PAGE_MAX: usize = 100;
/// What is said of an attempt's end, in bytes.
pub const EXIT_MESSAGE_BYTES_MAX: usize = 1024;
/// Longest timeout of a task.
pub const TASK_TIMEOUT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Longest time between the signal that asks a task to end and the one that kills it.
pub const KILL_GRACE_MAX: Duration = Duration::from_secs(600);
/// That time where none is given.
pub const KILL_GRACE: Duration = Duration::from_secs(5);
/// Pause before a failed task is tried again; doubled with each failure up to the maximum.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause before a failed task is tried again.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A worker's lease, counted from the sending of its renewal by the worker's clock: when it ends, the worker's tasks
/// have been killed.
pub const WORKER_LEASE: Duration = Duration::from_secs(10);
/// Cluster time by which the lease is over for the leader, too: more than clocks drift apart within a lease.
pub const WORKER_LEASE_MARGIN: Duration = Duration::from_secs(1);
/// By how many millionths a clock may run fast or slow for leases to hold: the slowest worker's has ended before the fastest
/// leader's is over.
pub const CLOCK_DRIFT_PPM_MAX: u64 = 45_000;
const _: () = {
    let (lease, over) =
        (WORKER_LEASE.as_millis() as u64, (WORKER_LEASE.as_millis() + WORKER_LEASE_MARGIN.as_millis()) as u64);
    assert!(lease * (1_000_000 + CLOCK_DRIFT_PPM_MAX) <= over * (1_000_000 - CLOCK_DRIFT_PPM_MAX));
};
/// How long a worker that stops in order waits for its tasks to end.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// How often a worker renews its lease.
pub const WORKER_RENEWAL: Duration = Duration::from_millis(2_500);
/// Shortest pause between two looks of a worker at what it should run.
pub const WORKER_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two looks of a worker at what it should run, and at what runs; ten times that while it has
/// nothing.
pub const WORKER_PERIOD: Duration = Duration::from_millis(100);
/// Jobs the owner of a worker's processes may have outstanding.
pub const WORKER_JOBS_MAX: usize = 64;
/// Ended attempts whose output a worker keeps.
pub const OUTPUTS_KEPT: usize = 200;
/// Output of one attempt that is kept, in bytes: the newest.
pub const OUTPUT_BYTES_KEPT: u64 = 16 * 1024 * 1024;
/// Size of a piece of output, in bytes.
pub const OUTPUT_PIECE_BYTES: usize = 64 * 1024;
/// Time between the signal to end and the one that kills when a lease ends; the kill comes before the end.
pub const LEASE_KILL_GRACE: Duration = Duration::from_secs(1);
/// Tasks placed by one command.
pub const ASSIGN_TASKS_MAX: usize = 256;
/// The format of the state that every cluster begins with, and of who says nothing of formats.
pub const FORMAT_FIRST: u32 = 1;
/// Members of a cluster that keep its state, learners included.
pub const MEMBERS_MAX: usize = 32;
/// Members of a cluster that only run tasks.
pub const WORKERS_MAX: usize = 1_000;
/// Streams on which a server may be telling workers what the state wants of them; one more is refused.
pub const WATCHES_MAX: usize = 2 * WORKERS_MAX;
/// How often a worker without state asks its server for a look that is up to date.
pub const WATCH_PERIOD: Duration = Duration::from_millis(500);
/// How long a server may take to answer that, or to take a stream, before the worker goes to another.
pub const WATCH_PATIENCE: Duration = Duration::from_secs(2);
/// How long a server keeps a stream on which nothing is asked.
pub const WATCH_SILENCE: Duration = Duration::from_secs(6);
/// Shortest pause between two looks that a server sends because something has changed.
pub const WATCH_PAUSE: Duration = Duration::from_millis(50);
/// How long one server may take with a command of a worker without state before the next is asked.
pub const WORKER_ATTEMPT: Duration = Duration::from_secs(1);
/// Voters that promotion stops at.
pub const VOTERS_TARGET_MAX: usize = 5;

/// How long a member may know no leader before it ends the streams of those who want one (etcd's default, too).
pub const NO_LEADER_PATIENCE: Duration = Duration::from_secs(3);

/// Raft's tick.
pub const TICK: Duration = Duration::from_millis(100);
/// Default election timeout; each node draws its own between one and two of it.
pub const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Shortest election timeout that may be configured.
pub const ELECTION_TIMEOUT_MIN: Duration = Duration::from_millis(500);
/// Longest election timeout that may be configured.
pub const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How long a request waits for its outcome when its caller gave no deadline.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long before its caller gives up a request is answered at the latest; less for one that does not wait that long.
pub const ANSWER_MARGIN: Duration = Duration::from_millis(100);
/// Longest deadline that a caller may ask for.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// First pause before a broken peer stream is opened again; doubled up to the maximum, with jitter.
pub const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause before a broken peer stream is opened again.
pub const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks of the leader's controllers.
pub const CONTROL_PERIOD: Duration = Duration::from_millis(500);
/// Shortest pause between two looks of the leader's scheduler.
pub const SCHEDULE_PAUSE: Duration = Duration::from_millis(20);
/// How often cluster time goes on, while anything may expire, without anything else happening.
pub const TIME_PERIOD: Duration = Duration::from_secs(6);

const _: () = {
    assert!(FETCHES_MAX + 2 < LOG_JOBS_MAX);
    assert!(REQUEST_BYTES_MAX + 1024 <= COMMAND_BYTES_MAX);
    assert!(BATCH_BYTES_MAX <= ENTRY_BYTES_MAX);
    assert!(COMMAND_BYTES_MAX + 1024 <= ENTRY_BYTES_MAX);
    // The answer to a put may tell of the value before.
    assert!(
        REQUEST_BYTES_MAX < SESSION_ANSWER_BYTES_MAX && SESSION_ANSWER_BYTES_MAX < SESSION_ANSWERS_BYTES_MAX as usize
    );
    // A frame holds one append of any size that is legal: entries up to APPEND_BYTES_MAX, or one large entry.
    assert!(APPEND_BYTES_MAX as usize + ENTRY_BYTES_MAX + 64 * 1024 <= MESSAGE_BYTES_MAX);
    assert!(APPEND_BYTES_MAX <= UNCOMMITTED_BYTES_MAX);
    assert!(ELECTION_TIMEOUT_MIN.as_millis() >= 5 * TICK.as_millis());
    assert!(ELECTION_TIMEOUT.as_millis() >= ELECTION_TIMEOUT_MIN.as_millis());
    // A worker whose server is gone has time to find another, and one more, before its lease ends.
    let lost = WATCH_PERIOD.as_millis() + 3 * WATCH_PATIENCE.as_millis();
    assert!(lost + WORKER_RENEWAL.as_millis() <= WORKER_LEASE.as_millis());
    assert!(WATCH_SILENCE.as_millis() > 2 * (WATCH_PERIOD.as_millis() + WATCH_PATIENCE.as_millis()));
    assert!(VOTERS_TARGET_MAX % 2 == 1 && VOTERS_TARGET_MAX <= MEMBERS_MAX);
};

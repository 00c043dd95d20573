//! The shim: a small process between the node and one attempt. It owns the attempt's pipes, its output, its exit record and
//! its deadlines, and goes on when the node is frozen, killed or replaced.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getppid};

use super::clock::SystemClock;
use super::launcher::{
    ALIVE, DEADLINE, LAUNCH, LOG_PREFIX, LOOK, LaunchFile, STOP, WORK, read_deadline, segments, stop_reason, write_exit,
};
use crate::io::Clock;
use crate::limits::{LAUNCH_PATIENCE, LEASE_KILL_GRACE, OUTPUT_BYTES_KEPT, OUTPUT_PIECE_BYTES};
use crate::proto::v1::{Exit, exit::Reason};
use crate::time::Monotonic;

/// Where the program could not be started, why.
const NOT_STARTED: &str = "not-started";
/// How long the last output may take to arrive when nothing of the task runs any more.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Watches over the attempt in `dir` until it has ended. The exit status is the shim's own.
pub fn run(dir: &Path) -> i32 {
    let bytes = fs::read(dir.join(LAUNCH));
    let launch: LaunchFile = match bytes.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
        Ok(launch) => launch,
        Err(error) => {
            eprintln!("error: {}: {error}; a shim is started by a node", dir.display());
            return 1;
        }
    };
    // Whoever ends everything that is called like the node, or all of a service, means the node: without its shim a task would
    // go on unwatched.
    ENDING.iter().copied().collect::<SigSet>().thread_block().expect("signals can be blocked");
    // What leaves its process group comes to us when its parent ends.
    let _ = prctl::set_child_subreaper(true);
    let place = match Place::of_lock(dir) {
        Ok(place) => place,
        Err(error) => {
            eprintln!("error: the lock of {}: {error}; a shim is started by a node", dir.display());
            return 1;
        }
    };
    let exit = watch(&place, &launch).unwrap_or_else(|error| {
        // Whatever had been started must not go on unwatched.
        reap_all();
        let reason = if is_its_own(&error) { Reason::NotStarted } else { Reason::Lost };
        Exit { reason: reason.into(), message: error.to_string(), ..Exit::default() }
    });
    match place.is_there() && write_exit(dir, &exit).is_ok() {
        true => 0,
        false => 1,
    }
}

/// Signals that ask a process to end.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// An attempt's directory, which somebody may remove, or make anew.
struct Place<'a> {
    dir: &'a Path,
    /// The device and the number of the file whose lock this process holds.
    lock: (u64, u64),
}

impl<'a> Place<'a> {
    /// The lock is this process's standard input.
    fn of_lock(dir: &'a Path) -> io::Result<Self> {
        let lock = File::from(io::stdin().as_fd().try_clone_to_owned()?).metadata()?;
        Ok(Self { dir, lock: (lock.dev(), lock.ino()) })
    }

    /// Where that cannot be told, the deadline decides.
    fn is_there(&self) -> bool {
        match fs::metadata(self.dir.join(ALIVE)) {
            Ok(there) => (there.dev(), there.ino()) == self.lock,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }
}

/// Becomes `command`, which dies with its shim, the process `shim`. Only returns if that fails; `dir` then says why.
pub fn become_program(dir: &Path, shim: i32, command: &[String]) -> i32 {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    // The shim may have died before that.
    if getppid().as_raw() != shim {
        return 1;
    }
    // The shim's own are not the program's.
    let _ = SigSet::all().thread_unblock();
    let error = Command::new(&command[0]).args(&command[1..]).exec();
    let text = format!("{}: {error}", command[0]);
    let _ = fs::write(dir.join(NOT_STARTED), text);
    127
}

/// The attempt's deadline, if it can be read.
fn deadline(dir: &Path) -> Option<Monotonic> {
    read_deadline(&fs::read_to_string(dir.join(DEADLINE)).ok()?)
}

fn watch(place: &Place<'_>, launch: &LaunchFile) -> io::Result<Exit> {
    let dir = place.dir;
    if deadline(dir).is_none_or(|deadline| deadline <= SystemClock.now() + LEASE_KILL_GRACE) {
        return Ok(Exit { reason: Reason::LeaseEnded.into(), ..Exit::default() });
    }
    let log = Arc::new(Mutex::new(Log::open(dir)?));
    let mut child = start_patiently(dir, launch)?;
    let group = Pid::from_raw(child.id() as i32);
    let pipes: [(u8, Option<Box<dyn Read + Send>>); 2] = [
        (1, child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>)),
        (2, child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>)),
    ];
    let (copied, copies) = mpsc::channel::<()>();
    for (stream, pipe) in pipes.into_iter().filter_map(|(stream, pipe)| Some((stream, pipe?))) {
        let (log, copied) = (log.clone(), copied.clone());
        std::thread::spawn(move || {
            copy(stream, pipe, &log);
            drop(copied);
        });
    }
    drop(copied);
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(child.wait());
    });
    let (status, reason) = wait(place, launch, group, &ended)?;
    // A task is all of its processes.
    let _ = killpg(group, Signal::SIGKILL);
    let left = reap_all();
    // Somebody outside may hold the pipes; nothing of the task does.
    let all_read = matches!(copies.recv_timeout(LAST_OUTPUT), Err(RecvTimeoutError::Disconnected));
    let mut exit = exit_of(dir, status, reason);
    let lost = log.lock().expect("no code panics while it holds the log").lost.take();
    let notes = [
        lost.map(|why| format!("output was lost: {why}")),
        (!all_read).then(|| "output that others still hold is missing".to_string()),
        (left > 0).then(|| format!("{left} processes could not be killed")),
    ];
    for note in notes.into_iter().flatten() {
        exit.message = format!("{} {note}", exit.message).trim().into();
    }
    Ok(exit)
}

/// Whether an error says that the program cannot be started anywhere as it is to be.
fn is_its_own(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::ArgumentListTooLong)
}

/// Starts the program as soon as this machine can, or gives up.
fn start_patiently(dir: &Path, launch: &LaunchFile) -> io::Result<Child> {
    let until = SystemClock.now() + LAUNCH_PATIENCE;
    loop {
        match start(dir, launch) {
            Err(error) if !is_its_own(&error) && SystemClock.now() < until => std::thread::sleep(LOOK),
            started => return started,
        }
    }
}

fn start(dir: &Path, launch: &LaunchFile) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("shim-exec").arg(dir).arg(std::process::id().to_string()).arg("--").args(&launch.command);
    command.envs(launch.env.iter().map(|(name, value)| (name, value))).current_dir(dir.join(WORK));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command.spawn()
}

/// Waits until the program has ended, and sees to it that it does when it must. Says why it had to.
fn wait(
    place: &Place<'_>,
    launch: &LaunchFile,
    group: Pid,
    ended: &mpsc::Receiver<io::Result<ExitStatus>>,
) -> io::Result<(ExitStatus, Option<Reason>)> {
    let (clock, dir) = (SystemClock, place.dir);
    let timeout = launch.timeout_ms.map(|millis| clock.now() + Duration::from_millis(millis));
    let grace = Duration::from_millis(launch.kill_grace_ms);
    let mut until = Monotonic::from_nanos(0);
    let mut asked: Option<(Monotonic, Reason)> = None;
    loop {
        match ended.recv_timeout(LOOK) {
            Ok(status) => return Ok((status?, asked.map(|(_, reason)| reason))),
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the waiting thread is gone")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        reap_others(group);
        if !place.is_there() {
            // Nobody would find it any more: what is not listed is taken for dead.
            asked = Some((clock.now(), Reason::Lost));
            let _ = killpg(group, Signal::SIGKILL);
            continue;
        }
        // A file that cannot be read does not move the deadline.
        until = deadline(dir).unwrap_or(until);
        let now = clock.now();
        if asked.is_none() {
            let lease = (now + LEASE_KILL_GRACE >= until).then_some(Reason::LeaseEnded);
            let timed_out = timeout.is_some_and(|timeout| now >= timeout).then_some(Reason::TimedOut);
            let stop = File::open(dir.join(STOP)).ok().and_then(|file| stop_reason(&file));
            asked = stop.or(timed_out).or(lease).map(|reason| (now, reason));
            if asked.is_some() {
                let _ = killpg(group, Signal::SIGTERM);
            }
        } else if asked.is_some_and(|(at, _)| now >= at + grace) || now >= until {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

fn exit_of(dir: &Path, status: ExitStatus, reason: Option<Reason>) -> Exit {
    let (code, signal) = (status.code(), status.signal());
    if let (Some(127), Ok(message), None) = (code, fs::read_to_string(dir.join(NOT_STARTED)), reason) {
        return Exit { reason: Reason::NotStarted.into(), message, ..Exit::default() };
    }
    // Who ends the node and all that it runs with the same signal means no task.
    let by_signal = signal.is_some_and(|signal| pending() >> (signal - 1) & 1 == 1).then_some(Reason::Drained);
    // Of a program that was asked to end nobody knows whether it had done its work, whatever its code.
    let reason = reason.or(by_signal).unwrap_or(Reason::Exited);
    Exit { reason: reason.into(), code, signal, message: String::new() }
}

/// Reaps what has come to this process from its descendants and has ended; the program itself has somebody who waits for it.
fn reap_others(program: Pid) {
    let look = WaitPidFlag::WNOHANG | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while let Ok(ended) = waitid(Id::All, look)
        && let Some(pid) = ended.pid().filter(|pid| *pid != program)
        && waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_ok()
    {}
}

/// The signals that this process was sent and has not heeded, a bit each from the first on.
fn pending() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Kills and reaps what has come to this process from its descendants. Says how many could not be killed in time.
fn reap_all() -> usize {
    for _ in 0..1_000 {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
        let children = children();
        if children.is_empty() {
            return 0;
        }
        for pid in children {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    children().len()
}

fn children() -> Vec<i32> {
    let id = std::process::id();
    let text = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn copy(stream: u8, mut pipe: Box<dyn Read + Send>, log: &Mutex<Log>) {
    let mut buffer = vec![0; OUTPUT_PIECE_BYTES];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => log.lock().expect("no code panics while it holds the log").write(stream, &buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The output, in segments of which the oldest go when there is too much.
struct Log {
    dir: PathBuf,
    file: File,
    /// Where the file begins and how long it is.
    start: u64,
    len: u64,
    /// Why something could not be written.
    lost: Option<String>,
}

/// A segment longer than this is followed by another.
const SEGMENT_BYTES: u64 = OUTPUT_BYTES_KEPT / 4;

impl Log {
    fn open(dir: &Path) -> io::Result<Self> {
        let file = File::create(dir.join(format!("{LOG_PREFIX}0")))?;
        Ok(Self { dir: dir.to_owned(), file, start: 0, len: 0, lost: None })
    }

    /// What cannot be written is lost, and said so at the end: the program goes on.
    fn write(&mut self, stream: u8, data: &[u8]) {
        let mut record = Vec::with_capacity(5 + data.len());
        record.push(stream);
        record.extend_from_slice(&(data.len() as u32).to_le_bytes());
        record.extend_from_slice(data);
        let written = self.rotate().and_then(|()| self.file.write_all_at(&record, self.len));
        match written {
            Ok(()) => self.len += record.len() as u64,
            Err(error) => {
                // Half a record would spoil what follows.
                let _ = self.file.set_len(self.len);
                self.lost.get_or_insert(error.to_string());
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.len < SEGMENT_BYTES {
            return Ok(());
        }
        let start = self.start + self.len;
        self.file = File::create(self.dir.join(format!("{LOG_PREFIX}{start}")))?;
        (self.start, self.len) = (start, 0);
        let starts = segments(&self.dir)?;
        for old in starts.iter().filter(|old| **old + OUTPUT_BYTES_KEPT <= start) {
            fs::remove_file(self.dir.join(format!("{LOG_PREFIX}{old}")))?;
        }
        Ok(())
    }
}

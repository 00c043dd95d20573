//! Processes under shims. Each attempt has a directory `tasks/<token>` of its own:
//!
//! ```text
//!   launch.json   what the shim is to run
//!   alive         locked for as long as the shim lives
//!   deadline      when everything must be dead: nanoseconds of CLOCK_BOOTTIME, twice; written over, which takes no space
//!   stop          why the attempt is to end, if it is; written over like the deadline
//!   exit.json     there when it has ended: how
//!   spare         room for that, where there is none left
//!   log-<offset>  its output: records of stream (1 byte), length (4 bytes, little-endian) and bytes
//!   work/         the directory it runs in
//! ```
//!
//! Node and shim talk through these files only, so that either may be gone at any time. The lock is taken before the
//! shim is started and inherited by it: a directory without a lock and without an exit belongs to a shim that died.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::clock::SystemClock;
use crate::ids::Token;
use crate::io::{Clock, Found, Launch, Launcher, LogPiece};
use crate::proto::v1::{Exit, Resources, exit::Reason};
use crate::time::Monotonic;

pub(super) const LAUNCH: &str = "launch.json";
pub(super) const ALIVE: &str = "alive";
pub(super) const DEADLINE: &str = "deadline";
pub(super) const STOP: &str = "stop";
pub(super) const EXIT: &str = "exit.json";
const SPARE: &str = "spare";
pub(super) const WORK: &str = "work";
pub(super) const LOG_PREFIX: &str = "log-";

/// Digits of a reason, at most.
const STOP_CHARS: usize = 4;
/// More than most records of an end take.
const SPARE_BYTES: usize = 4096;

/// The variable that has the attempt's directory: by it a process is known to belong to the attempt.
pub(super) const MARK: &str = "CAIRN_TASK_DIR";

/// What a shim is told.
#[derive(Serialize, Deserialize)]
pub(super) struct LaunchFile {
    pub(super) command: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) timeout_ms: Option<u64>,
    pub(super) kill_grace_ms: u64,
}

/// What a shim leaves.
#[derive(Serialize, Deserialize)]
pub(super) struct ExitFile {
    pub(super) reason: i32,
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) message: String,
}

/// Writes a file as a whole: whoever reads it sees the old one or the new one.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&new, dir.join(name))?;
    if durable {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

pub(super) fn write_exit(dir: &Path, exit: &Exit) -> io::Result<()> {
    let Exit { reason, code, signal, message } = exit.clone();
    let bytes = serde_json::to_vec(&ExitFile { reason, code, signal, message })?;
    replace(dir, EXIT, &bytes, true).or_else(|_| {
        fs::remove_file(dir.join(SPARE))?;
        replace(dir, EXIT, &bytes, true)
    })
}

/// A deadline as it stands in its file: always as long, and twice, so that whoever reads half of it knows.
fn write_deadline(deadline: Monotonic) -> String {
    let nanos = deadline.as_nanos();
    format!("{nanos:020}\n{nanos:020}\n")
}

/// The deadline that such a text tells; nothing if it is being written, or damaged.
pub(super) fn read_deadline(text: &str) -> Option<Monotonic> {
    // A node of before 0.3 wrote it once, and always anew.
    let (first, second) = text.trim_end().split_once('\n').unwrap_or((text, text));
    (first == second).then(|| first.parse().ok())?.map(Monotonic::from_nanos)
}

fn read_exit(dir: &Path) -> io::Result<Option<Exit>> {
    match fs::read(dir.join(EXIT)) {
        Ok(bytes) => {
            let parsed = serde_json::from_slice(&bytes);
            Ok(Some(match parsed {
                Ok(ExitFile { reason, code, signal, message }) => Exit { reason, code, signal, message },
                // It was written as a whole when nothing ran any more: so much is certain.
                Err(error) => {
                    let message = format!("the record of its end is damaged: {error}");
                    Exit { reason: Reason::Lost.into(), message, ..Exit::default() }
                }
            }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why an attempt is to end, as its file says.
pub(super) fn stop_reason(file: &File) -> Option<Reason> {
    let mut digits = [0; STOP_CHARS];
    let len = file.read_at(&mut digits, 0).ok()?;
    let text = std::str::from_utf8(&digits[..len]).ok()?;
    Reason::try_from(text.trim().parse::<i32>().ok()?).ok()
}

/// Runs attempts under shims of a binary.
pub struct Shims {
    dir: PathBuf,
    binary: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Shims of this life of the node, to be reaped.
    children: Vec<Child>,
    /// What has ended does not change any more.
    ended: BTreeMap<Token, Found>,
    deadlines: BTreeMap<Token, Monotonic>,
}

impl Shims {
    /// Keeps attempts under `dir`, which is made if needed, and runs `binary shim` for each.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: PathBuf, binary: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))?;
        Ok(Self { dir, binary, inner: Mutex::default() })
    }

    fn of(&self, token: Token) -> PathBuf {
        self.dir.join(token.to_string())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds the list of shims")
    }

    fn start(&self, dir: &Path, launch: &Launch, deadline: Monotonic) -> io::Result<Child> {
        fs::create_dir(dir.join(WORK))?;
        let file = LaunchFile {
            command: launch.command.clone(),
            env: launch.env.iter().cloned().chain([(MARK.to_owned(), dir.display().to_string())]).collect(),
            timeout_ms: launch.timeout.map(|timeout| timeout.as_millis() as u64),
            kill_grace_ms: launch.kill_grace.as_millis() as u64,
        };
        fs::write(dir.join(DEADLINE), write_deadline(deadline))?;
        fs::write(dir.join(STOP), " ".repeat(STOP_CHARS))?;
        fs::write(dir.join(SPARE), [0; SPARE_BYTES])?;
        replace(dir, LAUNCH, &serde_json::to_vec(&file)?, true)?;
        // What was forgotten in a power cut would be started again under the same token.
        File::open(&self.dir)?.sync_all()?;
        let alive = File::create(dir.join(ALIVE))?;
        alive.try_lock().map_err(io::Error::from)?;
        let mut command = Command::new(&self.binary);
        // A group of its own: a Ctrl-C on the node's terminal is not for it.
        command.arg("shim").arg(dir).process_group(0);
        command.stdin(alive).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn()
    }

    /// How an attempt has ended; `None` while it runs. One whose shim is gone without a record is lost.
    fn look(dir: &Path) -> io::Result<Option<Exit>> {
        if let Some(exit) = read_exit(dir)? {
            return Ok(Some(exit));
        }
        match File::options().write(true).open(dir.join(ALIVE)).map(|alive| alive.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => return Ok(None),
            Ok(Err(TryLockError::Error(error))) => return Err(error),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // Where there is none, no shim goes on.
            Ok(Ok(())) | Err(_) => {}
        }
        // It may have ended between two looks.
        if let Some(exit) = read_exit(dir)? {
            return Ok(Some(exit));
        }
        kill_left_over(dir);
        let message = "what watched over it is gone".to_string();
        let exit = Exit { reason: Reason::Lost.into(), message, ..Exit::default() };
        // Without the record the next look comes to the same.
        let _ = write_exit(dir, &exit);
        Ok(Some(exit))
    }
}

/// Kills what a dead shim has left: every process that still has the attempt's directory in its environment, wherever
/// it went. (The process that led its group is gone with the shim, so the group cannot be asked for.)
fn kill_left_over(dir: &Path) {
    let mark = format!("{MARK}={}", dir.display());
    // What is found may have children by now.
    for _ in 0..10 {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let left: Vec<i32> = pids.filter(|pid| has_mark(*pid, &mark)).collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn has_mark(pid: i32, mark: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

/// The segments of an attempt's output: where each begins, in order.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut starts = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        starts.extend(name.to_str().and_then(|name| name.strip_prefix(LOG_PREFIX)?.parse::<u64>().ok()));
    }
    starts.sort_unstable();
    Ok(starts)
}

impl Launcher for Shims {
    fn resources(&self) -> Resources {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        let disk = nix::sys::statvfs::statvfs(&self.dir).ok();
        #[allow(clippy::unnecessary_cast)] // the fields are narrower on other targets
        let disk_bytes = disk.map_or(0, |stat| stat.blocks_available() as u64 * stat.fragment_size() as u64);
        Resources { cpu_milli: cores * 1000, memory_bytes: memory.unwrap_or(0) * 1024, disk_bytes }
    }

    fn launch(&self, launch: &Launch, deadline: Monotonic) -> io::Result<()> {
        if deadline <= SystemClock.now() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the lease has ended"));
        }
        let dir = self.of(launch.token);
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
        fs::create_dir(&dir).map_err(at)?;
        match self.start(&dir, launch, deadline) {
            Ok(child) => {
                self.lock().children.push(child);
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                Err(at(error))
            }
        }
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        let inner = &mut *self.lock();
        inner.children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let Some(token) = entry?.file_name().to_str().and_then(|name| name.parse().ok()).map(Token) else {
                continue;
            };
            if let Some(found) = inner.ended.get(&token) {
                all.push(found.clone());
                continue;
            }
            // One that cannot be looked at is there, and must not be started again.
            let exit = Self::look(&self.of(token)).unwrap_or_else(|error| {
                tracing::error!(%token, %error, "an attempt cannot be looked at");
                None
            });
            let found = Found { token, exit };
            if found.exit.is_some() {
                inner.ended.insert(token, found.clone());
                inner.deadlines.remove(&token);
            }
            all.push(found);
        }
        all.sort_by_key(|found| found.token);
        Ok(all)
    }

    fn end_unlisted(&self, token: Token) {
        kill_left_over(&self.of(token));
    }

    fn extend(&self, token: Token, deadline: Monotonic) -> io::Result<()> {
        if self.lock().deadlines.get(&token) != Some(&deadline) {
            let file = File::options().write(true).open(self.of(token).join(DEADLINE))?;
            file.write_all_at(write_deadline(deadline).as_bytes(), 0)?;
            self.lock().deadlines.insert(token, deadline);
        }
        Ok(())
    }

    fn stop(&self, token: Token, reason: Reason) -> io::Result<()> {
        let path = self.of(token).join(STOP);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        if stop_reason(&file).is_none() {
            file.write_all_at(format!("{:<STOP_CHARS$}", i32::from(reason)).as_bytes(), 0)?;
        }
        Ok(())
    }

    fn remove(&self, token: Token) -> io::Result<()> {
        self.lock().ended.remove(&token);
        fs::remove_dir_all(self.of(token))
    }

    fn read_log(&self, token: Token, offset: u64, bytes: usize) -> io::Result<LogPiece> {
        let dir = self.of(token);
        // Looked at first: what is there when it has ended is all there will be.
        let ended = read_exit(&dir)?.is_some();
        let mut piece = LogPiece { begin: offset, next: offset, records: Vec::new(), ended };
        let (file, segment, following) = loop {
            let starts = segments(&dir)?;
            // What was rotated away is left out.
            let Some(oldest) = starts.first() else { return Ok(piece) };
            piece.begin = offset.max(*oldest);
            let segment = *starts.iter().rev().find(|start| **start <= piece.begin).unwrap_or(oldest);
            match File::open(dir.join(format!("{LOG_PREFIX}{segment}"))) {
                Ok(file) => break (file, segment, starts.into_iter().find(|start| *start > segment)),
                // It was rotated away just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        };
        let len = file.metadata()?.len().min(following.map_or(u64::MAX, |next| next - segment));
        let mut at = piece.begin - segment;
        let mut taken = 0;
        while at.saturating_add(5) <= len && taken < bytes {
            let mut head = [0; 5];
            file.read_exact_at(&mut head, at)?;
            let size = u64::from(u32::from_le_bytes([head[1], head[2], head[3], head[4]]));
            if at + 5 + size > len {
                break;
            }
            let mut data = vec![0; size as usize];
            file.read_exact_at(&mut data, at + 5)?;
            taken += data.len();
            piece.records.push((head[0] == 2, Bytes::from(data)));
            at += 5 + size;
        }
        piece.next = segment.saturating_add(at);
        piece.ended = ended && following.is_none() && taken < bytes;
        if let Some(next) = following.filter(|_| taken < bytes) {
            // Whatever is left of this one makes no sense.
            piece.next = next;
        }
        Ok(piece)
    }
}

/// How a shim waits: often enough that a deadline holds well within the lease's margin.
pub(super) const LOOK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_is_half_written_is_none() {
        let [old, new] = [199_999, 200_000].map(|secs| Monotonic::default() + Duration::from_secs(secs));
        let (before, after) = (write_deadline(old), write_deadline(new));
        assert_eq!(before.len(), after.len());
        for written in 0..=after.len() {
            let text = format!("{}{}", &after[..written], &before[written..]);
            let read = read_deadline(&text);
            assert!(read.is_none_or(|read| read == old || read == new), "{text}");
        }
        assert_eq!([&before, &after].map(|text| read_deadline(text)), [Some(old), Some(new)]);
        assert_eq!(["", "x", "1\n2\n", "x\nx\n"].map(read_deadline), [None; 4]);
        assert_eq!(read_deadline("200000000000000"), Some(new), "as it was written before");
    }

    #[test]
    fn what_is_no_record_hides_nothing_that_follows() {
        let dir = tempfile::tempdir().unwrap();
        let shims = Shims::open(dir.path().to_owned(), PathBuf::new()).unwrap();
        let attempt = dir.path().join("1");
        fs::create_dir(&attempt).unwrap();
        let record = |text: &str| [&[1], &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        let (first, second) = (record("first"), record("second"));
        // More of the first is there than the second's name says, of the next less than its records say, and of the one after that
        // less than the last's name says.
        let cut = [&second[..], &record("third")[..7]].concat();
        let files = [
            (0, [&first[..], &[7, 255, 255]].concat()),
            (first.len(), cut.clone()),
            (first.len() + cut.len(), record("fourth")),
            (first.len() + cut.len() + 100, record("fifth")),
        ];
        for (start, bytes) in files {
            fs::write(attempt.join(format!("log-{start}")), bytes).unwrap();
        }
        write_exit(&attempt, &Exit::default()).unwrap();
        let (mut read, mut offset) = (Vec::new(), 0);
        loop {
            let piece = shims.read_log(Token(1), offset, 1).unwrap();
            read.extend(piece.records.into_iter().map(|(_, bytes)| String::from_utf8(bytes.to_vec()).unwrap()));
            if piece.ended {
                break;
            }
            assert!(piece.next > offset, "it stays at {offset}");
            offset = piece.next;
        }
        assert_eq!(read, ["first", "second", "fourth", "fifth"]);
    }
}

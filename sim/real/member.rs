//! A member, or the worker, as a process of the operating system: started, signalled, and seen to end.
//!
//! A process that ends though nobody here has told it to is what a run calls a crash. So every signal that ends one is
//! noted before it is sent.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn::sim::fault::Place;
use cairn::state::format;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::links::Links;
use super::plan::{MEMBERS, Plan, name};

/// How often it is looked at whether a process has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long a process that was asked to stop may take: its own bound is ten seconds.
const STOP_MAX: Duration = Duration::from_secs(20);
/// Lines of a log that are shown of a process that ended by itself.
const TAIL_LINES: usize = 20;

/// One member.
pub struct Member {
    /// Which.
    pub place: Place,
    /// Held by whatever is being done to the process, so that no two attacks undo each other.
    pub process: tokio::sync::Mutex<()>,
    command: Vec<String>,
    binary: PathBuf,
    /// What its first life is, if not the same program held at the first format of the state.
    before: Option<PathBuf>,
    /// How often it was started.
    lives: AtomicU32,
    dir: PathBuf,
    links: Arc<Links>,
    running: Mutex<Option<Running>>,
}

struct Running {
    child: Child,
    /// It was told to end.
    ending: bool,
}

/// How to run members.
pub struct Setting<'a> {
    /// The program.
    pub binary: &'a Path,
    /// An older one, to begin with.
    pub before: Option<&'a Path>,
    /// Where each has a directory, and its log.
    pub dir: &'a Path,
    /// Options.
    pub plan: &'a Plan,
    /// Who is told of processes.
    pub links: &'a Arc<Links>,
}

impl Member {
    /// A member that listens there and is reached by others at `advertise`. It does not run yet.
    pub fn new(setting: &Setting<'_>, place: Place, listen: SocketAddr, advertise: SocketAddr) -> Self {
        let Setting { binary, before, dir, plan, links } = setting;
        let data = dir.join(format!("n{}", place + 1));
        let mut command: Vec<String> = vec!["start".into(), "--data-dir".into(), data.display().to_string()];
        let mut option = |name: &str, value: String| command.extend([name.to_string(), value]);
        option("--listen", listen.to_string());
        option("--advertise", advertise.to_string());
        match plan.election_timeouts.get(place) {
            Some(timeout) => option("--election-timeout-ms", timeout.as_millis().to_string()),
            None => option("--role", "worker".into()),
        }
        if let Some(entries) = plan.log_entries.filter(|_| place < MEMBERS) {
            option("--log-entries", entries.to_string());
        }
        // Tasks wait for room on any machine as they would on one with two processors.
        option("--cpu", "2".into());
        option("--memory", "1Gi".into());
        option("--disk", "1Gi".into());
        if plan.lease_reads && place < MEMBERS {
            command.push("--lease-reads".into());
        }
        Self {
            place,
            process: tokio::sync::Mutex::new(()),
            command,
            binary: binary.to_path_buf(),
            before: before.map(Path::to_path_buf),
            lives: AtomicU32::new(0),
            dir: dir.to_path_buf(),
            links: Arc::clone(links),
            running: Mutex::new(None),
        }
    }

    /// The file that has what all its lives said.
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("n{}.log", self.place + 1))
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it: at first as an older version. Says why if that is impossible.
    pub fn start(&self, origin: &[String]) -> Result<(), String> {
        let is_first = self.lives.fetch_add(1, Ordering::Relaxed) == 0;
        let (binary, held) = match &self.before {
            Some(before) if is_first => (before, false),
            _ => (&self.binary, is_first && self.place < MEMBERS),
        };
        let failed = |error: std::io::Error| format!("start {}: {error}", binary.display());
        let mut command = Command::new(binary);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CAIRN_")) {
            command.env_remove(name);
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log());
        let log: File = log.map_err(|error| format!("open {}: {error}", self.log().display()))?;
        command.args(&self.command).args(origin);
        if held {
            command.args(["--format-max", &format::FIRST.to_string()]);
        }
        command.env("CAIRN_LOG", "info").env("NO_COLOR", "1").stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(failed)?).stderr(log);
        // A group of its own: Ctrl-C is for us, and we end what we have started.
        let child = command.process_group(0).spawn().map_err(failed)?;
        self.links.set_process(self.place, child.id());
        *self.running() = Some(Running { child, ending: false });
        Ok(())
    }

    /// Whether it is as old as at the beginning.
    pub fn is_old(&self) -> bool {
        self.lives.load(Ordering::Relaxed) <= 1
    }

    /// Whether it runs, or is stopped by a signal.
    pub fn is_up(&self) -> bool {
        self.running().is_some()
    }

    /// Has it stand still, or go on.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        match &*self.running() {
            Some(running) => send(running, signal),
            None => Ok(()),
        }
    }

    /// Kills it, and waits until it has ended.
    pub async fn kill(&self) -> Result<(), String> {
        self.end(Signal::SIGKILL).await.map(drop)
    }

    /// Asks it to stop, and waits until it has ended; `None` if it did not run.
    pub async fn terminate(&self) -> Result<Option<ExitStatus>, String> {
        self.end(Signal::SIGTERM).await
    }

    async fn end(&self, signal: Signal) -> Result<Option<ExitStatus>, String> {
        let began = tokio::time::Instant::now();
        match &mut *self.running() {
            None => return Ok(None),
            Some(running) => {
                running.ending = true;
                send(running, signal)?;
            }
        }
        loop {
            if let Some(status) = self.look()? {
                return Ok(Some(status));
            }
            if began.elapsed() > STOP_MAX {
                return Err(format!("{} did not end within {STOP_MAX:?} of {signal}", name(self.place)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How it ended, if it has.
    fn look(&self) -> Result<Option<ExitStatus>, String> {
        let mut running = self.running();
        let Some(Running { child, .. }) = &mut *running else { return Ok(None) };
        let ended = child.try_wait().map_err(|error| format!("look at {}: {error}", name(self.place)))?;
        if ended.is_some() {
            *running = None;
        }
        Ok(ended)
    }

    /// Resolves when it has ended though nobody told it to, and says how.
    pub async fn crashed(&self) -> String {
        loop {
            let is_told = self.running().as_ref().is_none_or(|running| running.ending);
            match if is_told { Ok(None) } else { self.look() } {
                Ok(None) => tokio::time::sleep(LOOK).await,
                Ok(Some(status)) => {
                    return format!("{} ended by itself: {}", name(self.place), self.describe(status));
                }
                Err(why) => return why,
            }
        }
    }

    /// An exit status, with the last that its log says.
    pub fn describe(&self, status: ExitStatus) -> String {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        };
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("{how}; the last of {}:\n  {}", self.log().display(), tail.join("\n  "))
    }
}

fn send(running: &Running, signal: Signal) -> Result<(), String> {
    // It has not been waited for, so the number is still its own.
    let pid = Pid::from_raw(running.child.id() as i32);
    kill(pid, signal).map_err(|error| format!("send {signal} to process {pid}: {error}"))
}

impl Drop for Member {
    /// Whatever becomes of the run, nothing of it goes on.
    fn drop(&mut self) {
        if let Some(Running { mut child, .. }) = self.running().take() {
            let _ = (child.kill(), child.wait());
        }
    }
}

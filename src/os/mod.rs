//! The real implementations of the seams: tokio, sockets, files and threads. Nothing outside this folder touches the
//! operating system.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod child;
mod clock;
mod disk;
pub mod file;
mod launcher;
mod network;
pub mod shim;
mod spawn;
mod tls;

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Context, Fault};
use crate::io::{Io, Rng};

pub use clock::SystemClock;
pub use disk::DataDir;
pub use launcher::Shims;
pub use network::Sockets;
pub use spawn::Tasks;
pub use tls::Tls;

/// The real world for one node whose data lies under `dir`, made if it does not exist. Call it within a tokio runtime.
///
/// # Errors
/// The directory cannot be made or written, or another process holds it.
pub fn io(dir: &Path, tls: Option<Tls>) -> Result<Io, Fault> {
    let disk = DataDir::open(dir)?;
    Ok(Io { disk: Arc::new(disk), ..client_io(tls)? })
}

/// Has a panic on any thread end this process at once: what it was in the middle of is not gone on with.
pub fn end_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort();
    }));
}

/// The processes of a node whose data lies under `dir`. Only for the binary `node`: it is its own shim.
///
/// # Errors
/// The directory for tasks cannot be made, or the binary cannot be found.
pub fn shims(dir: &Path) -> Result<Shims, Fault> {
    let dir = std::path::absolute(dir).context(|| format!("find {}", dir.display()))?.join("tasks");
    let binary = std::env::current_exe().context(|| "find the binary that runs".into())?;
    Shims::open(dir, binary).context(|| "make the directory for tasks".into())
}

/// The real world for a program that only talks to a cluster: it has no disk.
///
/// # Errors
/// The operating system gives no randomness.
pub fn client_io(tls: Option<Tls>) -> Result<Io, Fault> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context(|| "read the operating system's randomness".into())?;
    Ok(Io {
        clock: Arc::new(SystemClock),
        network: Arc::new(Sockets { tls }),
        disk: Arc::new(disk::NoDisk),
        launcher: None,
        spawn: Arc::new(Tasks::current()),
        rng: Rng::from_seed(seed),
    })
}

/// Lets this process open as many files, connections among them, as it may.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files was not raised");
    }
}

/// Resolves when the user asks the process to stop (SIGINT or SIGTERM).
///
/// # Errors
/// The signal handler cannot be installed.
pub async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

/// Ends the process at once.
pub fn exit(code: i32) -> ! {
    std::process::exit(code)
}

/// How long one durable 4 KiB write to a file in `dir` takes, `count` times: the floor under every durable answer.
///
/// # Errors
/// What the file system says.
pub fn time_syncs(dir: &Path, count: usize) -> std::io::Result<Vec<std::time::Duration>> {
    use std::os::unix::fs::FileExt;
    let path = dir.join(format!(".cairn-sync-{}", std::process::id()));
    let file = std::fs::File::create(&path)?;
    let timed = (0..count).map(|i| {
        let began = std::time::Instant::now();
        file.write_all_at(&[i as u8; 4096], i as u64 % 64 * 4096)?;
        file.sync_data()?;
        Ok(began.elapsed())
    });
    let times = timed.collect();
    std::fs::remove_file(&path)?;
    times
}

/// The text of a file.
///
/// # Errors
/// What the file system says.
pub fn read_text(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

/// Reads a line that nobody is to see: from a terminal, which asks for it and does not show it, or from whatever standard input is.
///
/// # Errors
/// What the operating system says.
pub fn read_secret(asks: &str) -> std::io::Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    use std::io::{IsTerminal, stdin};
    let mut line = String::new();
    if !stdin().is_terminal() {
        stdin().read_line(&mut line)?;
    } else {
        eprint!("{asks}");
        let shown = tcgetattr(stdin())?;
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(stdin(), SetArg::TCSANOW, &hidden)?;
        let read = stdin().read_line(&mut line);
        tcsetattr(stdin(), SetArg::TCSANOW, &shown)?;
        eprintln!();
        read?;
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Makes a directory and those above it, if they are not there.
///
/// # Errors
/// What the file system says.
pub fn make_dir(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)
}

/// Writes a file that must not be there yet; a secret one only its owner may read.
///
/// # Errors
/// What the file system says; the file is there already.
pub fn write_new(path: &Path, text: &str, secret: bool) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mode = if secret { 0o600 } else { 0o644 };
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Sends log lines to standard error: warnings, or what the variable `CAIRN_LOG` asks for (`info`, `cairn=debug`, …).
pub fn start_logging() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // Fails only if logging was started before, and then it goes on.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let _ = log.try_init();
}

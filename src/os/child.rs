//! A program that runs beside this one, writes where this one does, and dies with it.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getppid};
use tokio::task::JoinHandle;

/// Becomes a program that dies with the process `parent`, which has started this one. Only returns if that fails.
pub fn become_program(parent: i32, command: &[String]) -> i32 {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    // It may have died before that.
    if getppid().as_raw() != parent {
        return 1;
    }
    let error = Command::new(&command[0]).args(&command[1..]).exec();
    eprintln!("error: start {}: {error}", command[0]);
    127
}

/// A running program.
pub struct Child {
    pid: Pid,
    ended: JoinHandle<io::Result<ExitStatus>>,
}

impl Child {
    /// Starts a program with its arguments and some more environment. One that cannot be started says so, and ends with 127.
    ///
    /// # Errors
    /// What the operating system says.
    ///
    /// # Panics
    /// Without a program.
    pub fn start(command: &[String], environment: &[(&str, String)]) -> io::Result<Self> {
        assert!(!command.is_empty(), "the command line demands a program");
        let environment = environment.iter().map(|(name, value)| (name, value));
        // This binary becomes the program, once it is sure to die with this process.
        let mut binary = Command::new(std::env::current_exe()?);
        binary.arg("beside").arg(std::process::id().to_string()).arg("--").args(command);
        // In a process group of its own, so that what it starts can be ended with it.
        let mut child = binary.envs(environment).process_group(0).spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        Ok(Self { pid, ended: tokio::task::spawn_blocking(move || child.wait()) })
    }

    /// Waits until it ends; gives its exit status, as shells do: 128 and the signal where it was a signal.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn wait(&mut self) -> io::Result<i32> {
        let status = (&mut self.ended).await.map_err(io::Error::other)??;
        Ok(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1))
    }

    /// Asks it, and what it has started, to end. What has ended already does not mind.
    pub fn terminate(&self) {
        let _ = killpg(self.pid, Signal::SIGTERM);
    }

    /// Ends it, and what it has started and left in its process group, at once.
    pub fn kill(&self) {
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

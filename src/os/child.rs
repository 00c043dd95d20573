//! A program that runs beside this one and shares its terminal.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;

/// A running program.
pub struct Child {
    pid: Pid,
    ended: JoinHandle<io::Result<ExitStatus>>,
}

impl Child {
    /// Starts a program with its arguments and some more environment.
    ///
    /// # Errors
    /// What the operating system says, with the program.
    ///
    /// # Panics
    /// Without a program.
    pub fn start(command: &[String], environment: &[(&str, String)]) -> io::Result<Self> {
        let (program, arguments) = command.split_first().expect("the command line demands a program");
        let environment = environment.iter().map(|(name, value)| (name, value));
        let started = Command::new(program).args(arguments).envs(environment).spawn();
        let mut child = started.map_err(|error| io::Error::new(error.kind(), format!("start {program}: {error}")))?;
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

    /// Asks it to end. One that has ended already does not mind.
    pub fn terminate(&self) {
        let _ = kill(self.pid, Signal::SIGTERM);
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

//! Nodes as processes, for tests of the production binary.

use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take on a busy machine before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn node() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    for name in [
        "CAIRN_ENDPOINTS",
        "CAIRN_DATA_DIR",
        "CAIRN_LISTEN",
        "CAIRN_JOIN",
        "CAIRN_ADVERTISE",
        "CAIRN_LOG",
        "CAIRN_ROLE",
        "CAIRN_USER",
        "CAIRN_PASSWORD",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end, which must come.
pub fn run(args: &[&str]) -> Output {
    let node = node();
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60"]).arg(node.get_program()).args(args);
    for (name, _) in node.get_envs() {
        command.env_remove(name);
    }
    command.output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running node, killed when dropped.
pub struct Running {
    pub child: Child,
    pub address: String,
}

impl Running {
    /// Starts a node and waits until it says that it is ready.
    pub fn start(args: &[&str]) -> Self {
        let mut command = node();
        command.args(args);
        Self::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut said = tempfile::tempfile().unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(said.try_clone().unwrap()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, first) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(lines.next());
            lines.for_each(drop);
        });
        let line = match first.recv_timeout(PATIENCE) {
            Ok(Some(line)) => line.unwrap(),
            ended => {
                let _ = child.kill();
                let what = if ended.is_ok() { "ended without being ready" } else { "was not ready in time" };
                let (mut log, _) = (String::new(), said.rewind());
                let _ = said.read_to_string(&mut log);
                panic!("{command:?} {what}; it said:\n{log}");
            }
        };
        let after = line.split(" ready on ").nth(1).unwrap_or_else(|| panic!("not a ready line: {line}"));
        let address = after.split([';', ' ']).next().unwrap().to_owned();
        Self { child, address }
    }

    pub fn member(dir: &Path, name: &str, listen: &str, origin: &[&str]) -> Self {
        let dir = dir.join(name);
        let args = [&["start", "--data-dir", dir.to_str().unwrap(), "--listen", listen], origin].concat();
        Self::start(&args)
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn kv(&self, args: &[&str]) -> Output {
        run(&[&["kv", "--endpoints", &self.address], args].concat())
    }

    pub fn status(&self) -> Value {
        let output = run(&["cluster", "--endpoints", &self.address, "-o", "json", "status"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
    }
}

pub fn voters(status: &Value) -> usize {
    let members = status["members"].as_array().cloned().unwrap_or_default();
    members.iter().filter(|member| member["role"] == "voter").count()
}

/// Three voters, all ready.
pub fn three(dir: &Path) -> Vec<Running> {
    let first = Running::member(dir, "n1", "127.0.0.1:0", &["--bootstrap"]);
    let join = ["--join", &first.address.clone()];
    let others = ["n2", "n3"].map(|name| Running::member(dir, name, "127.0.0.1:0", &join));
    let all: Vec<Running> = [first].into_iter().chain(others).collect();
    // While the change is under way the founder cannot be done without.
    let votes = |status: Value| voters(&status) == 3 && status["joint"] == false;
    until("three voters", || all.iter().all(|node| votes(node.status())));
    all
}

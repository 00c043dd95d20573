//! Tasks on real processes: what a user types, and what machines and people do to it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::*;

fn dev(dir: &Path) -> Running {
    Running::start(&["dev", "--listen", "127.0.0.1:0", "--data-dir", dir.join("dev").to_str().unwrap()])
}

impl Running {
    fn task(&self, args: &[&str]) -> Output {
        run(&[&["task", "--endpoints", &self.address], args].concat())
    }

    fn run_task(&self, args: &[&str]) -> Output {
        run(&[&["run", "--endpoints", &self.address], args].concat())
    }

    fn task_status(&self, name: &str) -> Value {
        serde_json::from_slice(&self.task(&["status", name, "-o", "json"]).stdout).unwrap_or(Value::Null)
    }

    fn submit(&self, args: &[&str]) -> String {
        let output = self.task(&[&["submit", "-o", "json"], args].concat());
        let reply: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        reply["name"].as_str().unwrap().to_owned()
    }

    fn until_phase(&self, name: &str, phase: &str) {
        until(&format!("{name} is {phase}"), || self.task_status(name)["phase"] == phase);
    }

    fn until_attempts(&self, name: &str, count: usize) {
        let are_there = || self.task_status(name)["attempts"].as_array().is_some_and(|all| all.len() == count);
        until(&format!("{name} has {count} attempts"), are_there);
    }
}

/// Processes whose environment or command has this word.
fn processes_with(word: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let all = [read("cmdline"), read("environ")].concat();
        String::from_utf8_lossy(&all).contains(word)
    };
    pids.filter(has).collect()
}

/// The shim of the attempt in a directory.
fn shim_of(attempt: &Path) -> u32 {
    let found = processes_with(&format!("shim\0{}\0", attempt.display()));
    let [shim] = found[..] else { panic!("{found:?}") };
    shim
}

fn send(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

/// The processes of the attempt in a directory, as its environment tells.
fn processes_of(attempt: &Path) -> Vec<u32> {
    processes_with(&format!("CAIRN_TASK_DIR={}", attempt.display()))
}

#[test]
fn a_command_runs_and_ends_as_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    let output = node.run_task(&["--", "sh", "-c", "echo hello; echo oops >&2; echo bye"]);
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("hello\nbye\n", "oops\n"));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(node.run_task(&["--", "sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(node.run_task(&["--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(node.run_task(&["--timeout", "300ms", "--", "sleep", "60"]).status.code(), Some(124));
    let missing = node.run_task(&["--", "no-such-program-anywhere"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(text(&missing.stderr).contains("no-such-program-anywhere"), "{}", text(&missing.stderr));

    // Each in a directory of its own, with the environment it was given.
    let output =
        node.run_task(&["--env", "COLOUR=green", "--", "sh", "-c", "pwd; echo $COLOUR $CAIRN_TASK_NAME; ls -A"]);
    let said = text(&output.stdout);
    assert!(said.contains("/tasks/") && said.contains("green task-6\n") && said.ends_with("task-6\n"), "{said}");

    // It fails twice, then it works: the file it leaves tells it how often it was there.
    let count = dir.path().join("count");
    let script = format!("echo x >> {0}; [ $(wc -l < {0}) -gt 2 ]", count.display());
    let output = node.run_task(&["--retries", "2", "--", "sh", "-c", &script]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(&count).unwrap().lines().count(), 3);

    // Output larger than a piece arrives whole and in order.
    let output = node.run_task(&["--", "seq", "1", "100000"]);
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!((lines.len(), lines[99_999].as_str()), (100_000, "100000"));
}

#[test]
fn names_are_unique_among_live_tasks_and_what_is_stopped_ends() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    let spec = ["--name", "nightly", "--env", "MARK=names-are-unique", "--", "sleep", "1000"];
    assert_eq!(node.submit(&spec), "nightly");
    let again: Value =
        serde_json::from_slice(&node.task(&[&["submit", "-o", "json"], &spec[..]].concat()).stdout).unwrap();
    assert_eq!((again["created"].as_bool(), again["id"].as_u64()), (Some(false), Some(1)));
    let other = node.task(&["submit", "--name", "nightly", "--", "true"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("another specification"), "{}", text(&other.stderr));
    node.until_phase("nightly", "running");
    // Its shim is there; the program takes its place a moment later.
    until("the program is there", || !processes_with("MARK=names-are-unique").is_empty());
    assert!(node.task(&["stop", "nightly"]).status.success());
    node.until_phase("nightly", "stopped");
    assert_eq!(processes_with("MARK=names-are-unique"), [] as [u32; 0]);

    // It ignores the signal to end, and its child has left its process group: both go.
    let script = "trap '' TERM; setsid sleep 1000 & while :; do sleep 1; done";
    node.submit(&[
        "--name",
        "stubborn",
        "--kill-grace",
        "200ms",
        "--env",
        "MARK=stubborn-one",
        "--",
        "sh",
        "-c",
        script,
    ]);
    node.until_phase("stubborn", "running");
    until("its child runs", || processes_with("MARK=stubborn-one").len() >= 3);
    assert!(node.task(&["stop", "stubborn"]).status.success());
    node.until_phase("stubborn", "stopped");
    assert_eq!(processes_with("MARK=stubborn-one"), [] as [u32; 0]);

    // What fits nowhere waits, and says why.
    let name = node.submit(&["--cpu", "1000", "--", "true"]);
    let waiting = node.task_status(&name)["waiting_for"].as_str().unwrap().to_owned();
    assert!(waiting.starts_with("1 worker: cpu short by "), "{waiting}");
    assert_eq!(node.task(&["logs", &name]).status.code(), Some(1));
    let name = node.submit(&["--feature", "gpu", "--", "true"]);
    assert_eq!(node.task_status(&name)["waiting_for"], "1 worker: without gpu");

    let file = dir.path().join("job.toml");
    fs::write(
        &file,
        "name = 'filed'\ncommand = ['sh', '-c', 'echo $WHAT']\ncpu = '50m'\n[env]\nWHAT = 'from a file'\n",
    )
    .unwrap();
    let rows = |args: &[&str]| text(&node.task(&[args, &["-o", "simple"]].concat()).stdout);
    let submitted = rows(&["submit", "--file", file.to_str().unwrap()]);
    assert!(submitted.ends_with("\tfiled\ttrue\n"), "{submitted}");
    node.until_phase("filed", "succeeded");
    assert_eq!(text(&node.task(&["logs", "-f", "filed"]).stdout), "from a file\n");
    let attempts = rows(&["status", "filed"]);
    assert!(attempts.lines().count() == 1 && attempts.split('\t').count() == 5, "{attempts}");
    let id = submitted.split('\t').next().unwrap();
    assert_eq!(rows(&["stop", "filed"]), format!("{id}\tsucceeded\n"));
}

#[test]
fn bad_tasks_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("never").display().to_string();
    let start = ["start", "--data-dir", &data, "--listen", "127.0.0.1:0", "--bootstrap"];
    fails(2, &["features", "a@b"], &[&start[..], &["--feature", "a@b"]].concat());
    let node = dev(dir.path());
    let says = |code: i32, words: &[&str], args: &[&str]| {
        fails(code, words, &[&["task", "--endpoints", &node.address], args].concat());
    };
    says(1, &["command", "empty"], &["submit"]);
    says(1, &["name", "\"-x\""], &["submit", "--name=-x", "--", "true"]);
    says(1, &["name", "given by the cluster"], &["submit", "--name", "task-7", "--", "true"]);
    says(1, &["name", "digits"], &["submit", "--name", "7", "--", "true"]);
    says(2, &["--timeout", "above zero"], &["submit", "--timeout", "0s", "--", "true"]);
    says(2, &["\"5000\"", "from 0 to 1000"], &["submit", "--retries", "5000", "--", "true"]);
    says(1, &["features"], &["submit", "--feature", "a b", "--", "true"]);
    says(2, &["--memory", "64Mi"], &["submit", "--memory", "lots", "--", "true"]);
    says(1, &["there is no task nothing"], &["status", "nothing"]);
    says(1, &["no/such/file"], &["submit", "--file", "no/such/file"]);
    let file = dir.path().join("bad.toml");
    fs::write(&file, "command = ['true']\nretries = 5000\n").unwrap();
    says(1, &["retries", "at most"], &["submit", "--file", file.to_str().unwrap()]);
    fs::write(&file, "command = ['true']\nretires = 3\n").unwrap();
    says(1, &["retires", "bad.toml"], &["submit", "--file", file.to_str().unwrap()]);
    let huge = "x".repeat(70_000);
    says(1, &["spec", "at most 65536"], &["submit", "--", "echo", &huge]);
    assert_eq!(node.task(&["list", "--all", "-o", "json"]).stdout, b"[]\n", "something was half done");
}

#[test]
fn a_task_outlives_its_node_and_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    let done = dir.path().join("done");
    let script = format!("echo begun; while [ ! -e {} ]; do sleep 0.05; done; echo ended", done.display());
    node.submit(&["--name", "long", "--", "sh", "-c", &script]);
    until("it has begun", || text(&node.task(&["logs", "long"]).stdout) == "begun\n");
    let attempt = node.task_status("long")["attempts"][0]["attempt"].clone();
    node.kill();
    let node = dev(dir.path());
    assert_eq!(node.task_status("long")["phase"], "running");
    fs::write(&done, "").unwrap();
    node.until_phase("long", "succeeded");
    let status = node.task_status("long");
    assert_eq!(status["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(status["attempts"][0]["attempt"], attempt, "it was run again");
    assert_eq!(text(&node.task(&["logs", "long"]).stdout), "begun\nended\n");
}

#[test]
fn a_node_that_stops_in_order_ends_its_tasks_and_runs_them_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = dev(dir.path());
    let runs = dir.path().join("runs");
    let script = format!("echo run >> {}; exec sleep 1000", runs.display());
    node.submit(&["--name", "service", "--env", "MARK=stops-in-order", "--", "sh", "-c", &script]);
    until("it runs", || fs::read_to_string(&runs).is_ok_and(|text| text.lines().count() == 1));
    node.signal("-INT");
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
    assert_eq!(processes_with("MARK=stops-in-order"), [] as [u32; 0]);
    let node = dev(dir.path());
    until("it runs again", || fs::read_to_string(&runs).is_ok_and(|text| text.lines().count() == 2));
    let status = node.task_status("service");
    assert_eq!((&status["failures"], &status["losses"]), (&Value::from(0), &Value::from(0)), "{status}");
    assert!(node.task(&["stop", "service"]).status.success());
    node.until_phase("service", "stopped");
}

/// What attempts wrote to a file all can see: when each was seen alive, by attempt.
fn alive(ledger: &Path) -> BTreeMap<u64, (f64, f64)> {
    let mut seen: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for line in fs::read_to_string(ledger).unwrap_or_default().lines() {
        let Some((token, at)) = line.split_once(' ') else { continue };
        let (Ok(token), Ok(at)) = (token.parse(), at.parse::<f64>()) else { continue };
        let span = seen.entry(token).or_insert((at, at));
        *span = (span.0.min(at), span.1.max(at));
    }
    seen
}

#[test]
fn a_lost_worker_is_replaced_only_when_its_tasks_are_dead() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let (ledger, done) = (dir.path().join("ledger"), dir.path().join("done"));
    let script = format!(
        "while [ ! -e {} ]; do echo $CAIRN_TASK_TOKEN $(cut -d' ' -f1 /proc/uptime) >> {}; sleep 0.05; done",
        done.display(),
        ledger.display()
    );
    nodes[0].submit(&["--name", "watched", "--", "sh", "-c", &script]);
    nodes[0].until_phase("watched", "running");
    // First its worker is frozen, then the next one killed. Neither can do anything about its task itself.
    for frozen in [true, false] {
        let status = nodes[0].task_status("watched");
        let attempts = status["attempts"].as_array().unwrap().clone();
        let worker = attempts.last().unwrap()["worker"].as_u64().unwrap();
        let at = nodes.iter().position(|node| node.status()["answered_by"] == worker).unwrap();
        let victim = nodes.remove(at);
        victim.signal(if frozen { "-STOP" } else { "-KILL" });
        let token = attempts.last().unwrap()["attempt"].as_u64().unwrap();
        until("another attempt runs", || alive(&ledger).keys().last().is_some_and(|last| *last > token));
        if frozen {
            victim.signal("-CONT");
            nodes.push(victim);
        }
    }
    fs::write(&done, "").unwrap();
    nodes[0].until_phase("watched", "succeeded");
    let status = nodes[0].task_status("watched");
    assert_eq!((&status["failures"], &status["losses"]), (&Value::from(0), &Value::from(2)), "{status}");
    let spans: Vec<(f64, f64)> = alive(&ledger).into_values().collect();
    assert_eq!(spans.len(), 3);
    for pair in spans.windows(2) {
        assert!(pair[0].1 < pair[1].0, "two attempts were alive at once: {spans:?}");
    }
}

#[test]
fn no_task_is_lost_or_doubled_when_the_leader_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let ran = dir.path().join("ran");
    fs::create_dir(&ran).unwrap();
    let all = nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(",");
    let submit = |i: usize| {
        let script = format!("echo $CAIRN_TASK_TOKEN >> {}/{i}", ran.display());
        let (name, env) = (format!("t{i}"), format!("I={i}"));
        let args = ["task", "submit", "--endpoints", &all, "--command-timeout", "60"];
        let output = run(&[&args[..], &["--name", &name, "--env", &env, "--", "sh", "-c", &script]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    (0..10).for_each(submit);
    let leader = nodes[0].status()["leader"].as_u64().unwrap();
    let at = nodes.iter().position(|node| node.status()["answered_by"] == leader).unwrap();
    nodes.remove(at).kill();
    (10..25).for_each(submit);
    let tasks = || -> Vec<Value> {
        let listed = nodes[0].task(&["list", "--all", "-o", "json"]);
        serde_json::from_slice(&listed.stdout).unwrap_or_default()
    };
    until("every task has succeeded", || {
        let tasks = tasks();
        tasks.len() == 25 && tasks.iter().all(|task| task["phase"] == "succeeded")
    });
    let mut names: Vec<String> = tasks().iter().map(|task| task["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 25);
    for i in 0..25 {
        let tokens = fs::read_to_string(ran.join(i.to_string())).unwrap();
        let lost = tasks()[i]["losses"].as_u64().unwrap() as usize;
        assert!(
            (1..=1 + lost).contains(&tokens.lines().count()),
            "task {i} ran as {tokens:?} with {lost} lost workers"
        );
    }
    // What a dead worker wrote is named, not made up.
    let gone =
        tasks().into_iter().find(|task| task["attempts"].as_array().unwrap().last().unwrap()["worker"] == leader);
    if let Some(task) = gone {
        let logs = nodes[0].task(&["logs", task["name"].as_str().unwrap(), "--command-timeout", "2"]);
        assert!(!logs.status.success());
        assert!(text(&logs.stderr).contains(&format!("on worker {leader} at ")), "{}", text(&logs.stderr));
    }
}

#[test]
fn a_task_goes_on_when_nobody_reads_what_it_writes_and_that_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    let script = "head -c 100000000 /dev/zero; echo end >&2";
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    command.args(["run", "--endpoints", &node.address, "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let lines: Vec<String> = text(&output.stderr).lines().map(str::to_owned).collect();
    assert_eq!((output.status.code(), lines.iter().filter(|line| line.contains("nobody reads")).count()), (Some(0), 1));
    assert!(lines.len() <= 3 && lines.contains(&"end".to_owned()), "{lines:?}");
}

#[test]
fn a_long_output_is_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    let name = node.submit(&["--", "sh", "-c", "head -c 40000000 /dev/zero | tr '\\0' 'a'; echo end"]);
    node.until_phase(&name, "succeeded");
    let kept: u64 = walk(&dir.path().join("dev/tasks")).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!((12_000_000..24_000_000).contains(&kept), "{kept} bytes are kept");
    let output = node.task(&["logs", &name]);
    assert!(output.stdout.ends_with(b"aaaend\n"), "the newest is missing");
    assert!(text(&output.stderr).contains(" bytes of the output of attempt 1 are gone"), "{}", text(&output.stderr));
    assert!(output.stdout.len() > 10_000_000);
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn what_a_dead_shim_leaves_is_killed_before_the_next_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    let script = "setsid sleep 987 & sleep 986 & echo up; wait";
    node.submit(&["--name", "orphan", "--env", "MARK=dead-shim", "--", "sh", "-c", script]);
    until("it runs", || text(&node.task(&["logs", "orphan"]).stdout) == "up\n");
    let first = dir.path().join("dev/tasks/1");
    until("its children run", || processes_of(&first).len() >= 3);
    send("-KILL", shim_of(&first));
    node.until_attempts("orphan", 2);
    assert_eq!(processes_of(&first), [] as [u32; 0], "the first attempt is not dead");
    let status = node.task_status("orphan");
    assert_eq!((&status["losses"], &status["attempts"][0]["exit"]["reason"]), (&Value::from(1), &Value::from("lost")));
    assert!(node.task(&["stop", "orphan"]).status.success());
    node.until_phase("orphan", "stopped");
}

#[test]
fn who_ends_all_that_is_called_like_the_node_ends_no_task() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    node.submit(&["--name", "steady", "--", "sh", "-c", "sleep 985 & echo up; wait"]);
    until("it runs", || text(&node.task(&["logs", "steady"]).stdout) == "up\n");
    let attempt = dir.path().join("dev/tasks/1");
    let shim = shim_of(&attempt);
    ["-TERM", "-INT", "-HUP", "-QUIT"].into_iter().for_each(|signal| send(signal, shim));
    node.kill();
    let node = dev(dir.path());
    // Its signals reach the program as before.
    assert_eq!(text(&node.run_task(&["--", "sh", "-c", "kill -TERM $$; echo no"]).stdout), "");
    let status = node.task_status("steady");
    assert_eq!((&status["phase"], &status["losses"]), (&Value::from("running"), &Value::from(0)));
    assert_eq!(shim_of(&attempt), shim);
    assert!(node.task(&["stop", "steady"]).status.success());
    node.until_phase("steady", "stopped");
    assert_eq!(processes_of(&attempt), [] as [u32; 0]);
    // Nor has one failed that such a signal has ended, too.
    node.submit(&["--name", "ended", "--", "sleep", "982"]);
    node.until_phase("ended", "running");
    let attempt = dir.path().join("dev/tasks/3");
    let [program] = processes_with("sleep\0982\0")[..] else { panic!("it does not run") };
    [shim_of(&attempt), program].into_iter().for_each(|process| send("-TERM", process));
    node.until_attempts("ended", 2);
    let status = node.task_status("ended");
    let counts = (&status["losses"], &status["failures"], &status["attempts"][0]["exit"]["reason"]);
    assert_eq!(counts, (&Value::from(0), &Value::from(0), &Value::from("drained")));
    assert!(node.task(&["stop", "ended"]).status.success());
    node.until_phase("ended", "stopped");
}

#[test]
fn what_has_ended_beside_a_program_is_reaped_while_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    // Its parent is the shim, and so is that of those whose own is gone.
    let script = "for i in 1 2 3 4 5; do (true & echo $!); done > pids; \
        while for pid in $(cat pids); do test -e /proc/$pid && echo $pid; done | grep -q .; do :; done; echo none";
    let output = node.run_task(&["--timeout", "60s", "--", "sh", "-c", script]);
    assert_eq!(text(&output.stdout), "none\n", "{}", text(&output.stderr));
}

#[test]
fn an_attempt_whose_directory_is_removed_is_dead_before_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    node.submit(&["--name", "tidied", "--", "sh", "-c", "setsid sleep 984 & sleep 983 & echo up; wait"]);
    until("it runs", || text(&node.task(&["logs", "tidied"]).stdout) == "up\n");
    node.until_phase("tidied", "running");
    let attempt = dir.path().join("dev/tasks/1");
    until("its children run", || processes_of(&attempt).len() >= 3);
    // Its node may write there meanwhile.
    until("its directory is gone", || fs::remove_dir_all(&attempt).is_ok() || !attempt.exists());
    node.until_attempts("tidied", 2);
    assert_eq!(processes_of(&attempt), [] as [u32; 0], "the first attempt is not dead");
    let status = node.task_status("tidied");
    assert_eq!((&status["losses"], &status["attempts"][0]["exit"]["reason"]), (&Value::from(1), &Value::from("lost")));
    // Nor is one that removes it itself started again under its token.
    let script = "echo $CAIRN_TASK_TOKEN >> $0; test $(wc -l < $0) -gt 1 || rm -rf \"$CAIRN_TASK_DIR\"";
    let tokens = dir.path().join("tokens");
    let output = node.run_task(&["--", "sh", "-c", script, tokens.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(tokens).unwrap(), "3\n4\n");
}

#[test]
fn a_shim_whose_directory_is_removed_needs_no_node_to_end_what_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    // At the end of its lease it would be asked first.
    let (asked, script) = (dir.path().join("asked"), "trap 'echo > $0' TERM; echo up; while :; do sleep 0.1; done");
    node.submit(&["--name", "orphan", "--", "sh", "-c", script, asked.to_str().unwrap()]);
    until("it runs", || text(&node.task(&["logs", "orphan"]).stdout) == "up\n");
    let attempt = dir.path().join("dev/tasks/1");
    node.kill();
    fs::remove_dir_all(&attempt).unwrap();
    let name = attempt.display().to_string();
    until("all of it is dead", || processes_with(&name).is_empty());
    assert!(!asked.exists());
}

#[test]
fn an_attempt_cannot_hurt_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    // It forges what its shim would say, at a length that no log takes.
    let script = "head -c 6000000 /dev/zero | tr '\\0' a > ../not-started; exit 127";
    let output = node.run_task(&["--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(127));
    assert!(output.stderr.len() < 10_000, "{} bytes of message", output.stderr.len());
    // Its directory is damaged while nobody looks.
    node.submit(&["--name", "damaged", "--", "sleep", "1000"]);
    node.until_phase("damaged", "running");
    let attempt = dir.path().join("dev/tasks/2");
    let shim = shim_of(&attempt);
    node.kill();
    send("-KILL", shim);
    fs::write(attempt.join("launch.json"), "").unwrap();
    fs::write(attempt.join("exit.json"), "").unwrap();
    let node = dev(dir.path());
    assert_eq!(text(&node.run_task(&["--", "echo", "still here"]).stdout), "still here\n");
    until("it is tried again", || node.task_status("damaged")["losses"] == 1);
}

#[test]
fn tasks_that_fit_nowhere_do_not_hold_up_others() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    for _ in 0..260 {
        node.submit(&["--feature", "gpu", "--", "true"]);
    }
    assert_eq!(text(&node.run_task(&["--", "echo", "mine"]).stdout), "mine\n");
    let page = node.task(&["list", "-o", "json"]);
    assert_eq!(serde_json::from_slice::<Vec<Value>>(&page.stdout).unwrap().len(), 260);
}

#[test]
fn grace_is_given_even_beyond_the_lease() {
    let dir = tempfile::tempdir().unwrap();
    let node = dev(dir.path());
    let script = "trap 'echo asked; sleep 12; echo done; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    node.submit(&["--name", "slow", "--kill-grace", "60s", "--", "sh", "-c", script]);
    until("it runs", || text(&node.task(&["logs", "slow"]).stdout) == "up\n");
    assert!(node.task(&["stop", "slow"]).status.success());
    node.until_phase("slow", "stopped");
    assert_eq!(text(&node.task(&["logs", "slow"]).stdout), "up\nasked\ndone\n");
}

fn worker(dir: &Path, name: &str, listen: &str, more: &[&str]) -> Running {
    Running::member(dir, name, listen, &[&["--role", "worker"], more].concat())
}

/// The id of the only worker that keeps no state.
fn pure_worker(node: &Running) -> u64 {
    let members = node.status()["members"].as_array().cloned().unwrap_or_default();
    let row = members.into_iter().find(|member| member["role"] == "worker");
    row.and_then(|row| row["id"].as_u64()).unwrap_or(0)
}

#[test]
fn a_worker_without_state_runs_what_a_server_tells_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap", "--role", "server"]);
    let join = ["--join", &server.address.clone(), "--feature", "gpu"];
    let first = worker(dir.path(), "w1", "127.0.0.1:0", &join);
    let id = pure_worker(&server);
    assert_eq!((id, voters(&server.status())), (2, 1), "{}", server.status());

    // What it writes can be read through the server, and at the worker itself; commands it sends on to nobody.
    let output = server.run_task(&["--feature", "gpu", "--", "sh", "-c", "echo hello from $CAIRN_WORKER"]);
    assert_eq!(text(&output.stdout), "hello from 2\n", "{}", text(&output.stderr));
    let logs = server.task(&["logs", "task-1"]);
    assert_eq!(text(&logs.stdout), "hello from 2\n", "{}", text(&logs.stderr));
    let listed = run(&["worker", "list", "--endpoints", &server.address, "-o", "json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["id"], &listed[0]["keeps_state"]), (&Value::from(2), &Value::from(false)), "{listed}");
    assert_eq!(listed[0]["address"], first.address.as_str());
    let refused = first.kv(&["get", "a", "--command-timeout", "1"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(text(&refused.stderr).contains("worker 2 keeps no state"), "{}", text(&refused.stderr));

    // It is killed and started elsewhere with no flag but its role: it takes up what its shims kept alive.
    let done = dir.path().join("done");
    let script = format!("echo begun; while [ ! -e {} ]; do sleep 0.05; done; echo ended", done.display());
    server.submit(&["--name", "long", "--", "sh", "-c", &script]);
    until("it has begun", || text(&server.task(&["logs", "long"]).stdout) == "begun\n");
    first.kill();
    let first = worker(dir.path(), "w1", "127.0.0.1:0", &["--feature", "gpu"]);
    assert_eq!(pure_worker(&server), 2, "it has another id");
    until("its output is found at its new address", || text(&server.task(&["logs", "long"]).stdout) == "begun\n");
    fs::write(&done, "").unwrap();
    server.until_phase("long", "succeeded");
    assert_eq!(server.task_status("long")["attempts"].as_array().unwrap().len(), 1, "it was run again");

    // A copy of its data does not run beside it.
    let copy = dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    fs::copy(dir.path().join("w1/log"), copy.join("log")).unwrap();
    let copy = copy.to_str().unwrap();
    fails(
        70,
        &["worker 2 runs at", &first.address, "is a copy of its data"],
        &["start", "--role", "worker", "--data-dir", copy, "--listen", "127.0.0.1:0"],
    );

    // Another name by which the same socket is reached is no copy either.
    let port = first.address.rsplit(':').next().unwrap().to_owned();
    let named = format!("localhost:{port}");
    let listen = first.address.clone();
    first.kill();
    let first = worker(dir.path(), "w1", &listen, &["--advertise", &named]);
    let known = || {
        let members = server.status()["members"].as_array().cloned().unwrap_or_default();
        members.into_iter().any(|member| member["id"] == 2 && member["address"] == named.as_str())
    };
    until("it is known by its name", known);
    assert_eq!(text(&server.run_task(&["--", "echo", "here"]).stdout), "here\n");

    // It is removed: it says so and ends, and when it is started again, too. Another id is another worker.
    assert!(run(&["cluster", "remove", "2", "--endpoints", &server.address]).status.success());
    let mut first = first;
    assert_eq!(first.child.wait().unwrap().code(), Some(1));
    let data = dir.path().join("w1");
    let again = ["start", "--role", "worker", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    fails(1, &["worker 2 was removed from the cluster for ever"], &again);
    let _third = worker(dir.path(), "w3", "127.0.0.1:0", &["--join", &server.address]);
    assert_eq!(pure_worker(&server), 3, "{}", server.status());
}

#[test]
fn what_a_killed_worker_without_state_ran_runs_elsewhere_when_it_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap", "--role", "server"]);
    let join = ["--join", &server.address.clone()];
    let first = worker(dir.path(), "w1", "127.0.0.1:0", &join);
    let (ledger, done) = (dir.path().join("ledger"), dir.path().join("done"));
    let script = format!(
        "echo first of $CAIRN_TASK_TOKEN; echo second of $CAIRN_TASK_TOKEN; \
         while [ ! -e {} ]; do echo $CAIRN_TASK_TOKEN $(cut -d' ' -f1 /proc/uptime) >> {}; sleep 0.05; done",
        done.display(),
        ledger.display()
    );
    server.submit(&["--name", "watched", "--", "sh", "-c", &script]);
    until("it runs", || !alive(&ledger).is_empty());
    let mut follower = node();
    follower.args(["task", "logs", "--follow", "watched", "--endpoints", &server.address]);
    let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!([lines.next().unwrap(), lines.next().unwrap()], ["first of 1", "second of 1"]);
    let _second = worker(dir.path(), "w2", "127.0.0.1:0", &join);
    first.kill();
    until("another attempt runs", || alive(&ledger).len() == 2);
    fs::write(&done, "").unwrap();
    server.until_phase("watched", "succeeded");
    let status = server.task_status("watched");
    assert_eq!((&status["failures"], &status["losses"]), (&Value::from(0), &Value::from(1)), "{status}");
    let spans: Vec<(f64, f64)> = alive(&ledger).into_values().collect();
    assert!(spans[0].1 < spans[1].0, "two attempts were alive at once: {spans:?}");
    // Who follows sees the new attempt from its beginning, and is told what cannot be seen.
    assert_eq!(lines.collect::<Vec<_>>(), ["first of 2", "second of 2"]);
    let told = text(&follower.wait_with_output().unwrap().stderr);
    assert!(told.contains("the rest of the output of attempt 1 of task watched cannot be reached"), "{told}");
}

#[test]
fn a_worker_without_state_finds_servers_that_came_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap", "--role", "server"]);
    let join = ["--join", &first.address.clone(), "--role", "server"];
    let mut hand = worker(dir.path(), "w1", "127.0.0.1:0", &join[..2]);
    let second = Running::member(dir.path(), "n2", "127.0.0.1:0", &join);
    // Whoever is given this task has seen the second server.
    assert!(second.run_task(&["--", "true"]).status.success());
    hand.signal("-TERM");
    assert!(hand.child.wait().unwrap().success());
    // The only server that it was told of when it joined is elsewhere when it comes back.
    first.kill();
    let _first = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--join", &second.address, "--role", "server"]);
    let _hand = worker(dir.path(), "w1", "127.0.0.1:0", &[]);
    assert!(second.run_task(&["--", "true"]).status.success());
}

#[test]
fn roles_that_make_no_sense_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let start = |name: &str, more: &[&str]| -> Vec<String> {
        let data = at(name);
        let args = [&["start", "--listen", "127.0.0.1:0", "--data-dir", &data], more].concat();
        args.into_iter().map(str::to_owned).collect()
    };
    let ends = |code: i32, words: &[&str], args: Vec<String>| {
        fails(code, words, &args.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let says = |words: &[&str], args: Vec<String>| ends(1, words, args);
    let senseless = |words: &[&str], args: Vec<String>| ends(2, words, args);
    says(&["holds no worker", "--join"], start("none", &["--role", "worker"]));
    senseless(&["founds no cluster", "--join"], start("none", &["--role", "worker", "--bootstrap"]));
    senseless(&["runs no tasks", "cpu"], start("none", &["--role", "server", "--bootstrap", "--cpu", "2"]));
    senseless(
        &["keeps no state", "log_entries"],
        start("none", &["--role", "worker", "--log-entries", "5", "--join", "a:1"]),
    );
    let server = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let join = ["--join", &server.address.clone()];
    worker(dir.path(), "w1", "127.0.0.1:0", &join).kill();
    says(&["holds a worker", "--role worker", &at("w1")], start("w1", &join));
    server.kill();
    says(&["holds a member", "--role worker", &at("n1")], start("n1", &[&["--role", "worker"], &join[..]].concat()));
}

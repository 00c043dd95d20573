//! The production binary as users run it: real processes, sockets, files and signals.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)] // tests are the outside world
#![cfg(not(feature = "sim"))]

mod embedded;
mod keeping;
mod leases;
mod printing;
mod running;
mod tasks;
mod users;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};

use cairn::limits::JSON_READING_MAX;
use running::{Running, node, run, text, three, until, voters};
use serde_json::Value;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// Runs a command that must fail with this status and say these words.
fn fails(code: i32, words: &[&str], args: &[&str]) {
    let output = run(args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
    }
}

#[test]
fn one_node_keeps_what_it_acknowledged_and_stops_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let args = ["dev", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let node = Running::start(&args);
    assert!(node.kv(&["put", "greeting", "hello"]).status.success());
    assert_eq!(text(&node.kv(&["get", "greeting"]).stdout), "hello\n");
    // Whoever can read what is there can read every key.
    let files = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    for (path, mode) in files.map(|path| (path, 0o600)).chain([(data.clone(), 0o700)]) {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
    let refused = node.kv(&["put", "greeting", "again", "--if-revision", "0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("revision is 2, not 0"), "{}", text(&refused.stderr));
    assert_eq!(node.kv(&["get", "nothing"]).status.code(), Some(1));
    let disk = dir.path().to_str().unwrap();
    let bench = run(&[
        "bench",
        "put",
        "--endpoints",
        &node.address,
        "--clients",
        "4",
        "--seconds",
        "1",
        "--disk",
        disk,
        "-o",
        "json",
    ]);
    let bench: Value = serde_json::from_slice(&bench.stdout).unwrap();
    assert!(bench["per_second"].as_f64().unwrap() > 0.0 && bench["failures"] == 0, "{bench}");
    assert!(node.kv(&["delete", "bench"]).status.success());
    let missing = run(&["dev", "--listen", &node.address, "--data-dir", dir.path().join("other").to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains(&format!("listen on {}", node.address)), "{}", text(&missing.stderr));
    fails(
        1,
        &["in use by another node", data.to_str().unwrap()],
        &["dev", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()],
    );
    node.kill();

    let mut node = Running::start(&args);
    assert_eq!(text(&node.kv(&["get", "greeting"]).stdout), "hello\n", "lost by kill -9");
    node.signal("-INT");
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_killed_leader_costs_nothing_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let endpoints: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    let put = |i: usize| {
        let (key, value) = (format!("k{i:03}"), format!("v{i}"));
        let output = run(&["kv", "--endpoints", &endpoints.join(","), "put", &key, &value, "--command-timeout", "30"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    (0..20).for_each(put);
    let leader = nodes[0].status()["leader"].as_u64().unwrap();
    let at = nodes.iter().position(|node| node.status()["answered_by"] == leader).unwrap();
    let killed = nodes.remove(at);
    let address = killed.address.clone();
    killed.kill();
    (20..40).for_each(put);
    let list = run(&["kv", "--endpoints", &nodes[0].address, "list", "-o", "json"]);
    let rows: Value = serde_json::from_slice(&list.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 40, "an acknowledged write is missing");
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["value"], format!("v{i}"));
        // An empty store is at revision 1.
        assert_eq!(row["revision"], i + 2, "a write took effect twice or out of order");
    }
    let name = (1..=3).map(|i| format!("n{i}")).find(|name| {
        let try_dir = dir.path().join(name);
        // The data directory of the killed node is the one that nobody holds.
        !text(&run(&["start", "--data-dir", try_dir.to_str().unwrap(), "--listen", &nodes[0].address]).stderr)
            .contains("in use by another node")
    });
    let back = Running::member(dir.path(), &name.unwrap(), &address, &[]);
    until("the killed node catches up", || back.status()["applied_index"] == nodes[0].status()["applied_index"]);
    assert_eq!(text(&back.kv(&["get", "k039"]).stdout), "v39\n");
}

#[test]
fn a_leader_that_is_stopped_hands_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let status = nodes[0].status();
    let leader = status["leader"].as_u64().unwrap();
    let at = nodes.iter().position(|node| node.status()["answered_by"] == leader).unwrap();
    let mut stopped = nodes.remove(at);
    stopped.signal("-TERM");
    assert_eq!(stopped.child.wait().unwrap().code(), Some(0));
    let after = nodes[0].status();
    assert!(after["leader"].as_u64().is_some_and(|now| now != leader), "leadership was not handed over: {after}");
}

#[test]
fn a_member_that_is_behind_the_log_gets_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let start = |name, origin: &[&str]| {
        let args = [origin, &["--log-entries", "16"]].concat();
        Running::member(dir.path(), name, "127.0.0.1:0", &args)
    };
    let first = start("n1", &["--bootstrap"]);
    let big = "x".repeat(100_000);
    for key in 0..40 {
        assert!(first.kv(&["put", &format!("k{key}"), &big]).status.success());
    }
    until("the log is compacted", || first.status()["first_index"].as_u64().is_some_and(|first| first > 1));
    let second = start("n2", &["--join", &first.address]);
    // Nothing but a snapshot can have told it the first keys.
    until("the snapshot is there", || second.kv(&["get", "k0"]).stdout.len() == big.len() + 1);
    assert!(second.status()["first_index"].as_u64().unwrap() > 1);
    until("the same state", || {
        let (one, other) = (first.status(), second.status());
        one["applied_index"] == other["applied_index"] && one["digest"] == other["digest"]
    });
    let listed = |name: &str| {
        let names = fs::read_dir(dir.path().join(name)).unwrap().map(|file| file.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("state-")).collect::<Vec<_>>()
    };
    assert_eq!(listed("n2").len(), 1, "the state from before stayed: {:?}", listed("n2"));
    let address = second.address.clone();
    second.kill();
    let second = Running::member(dir.path(), "n2", &address, &[]);
    assert_eq!(second.kv(&["get", "k0"]).stdout.len(), big.len() + 1);
}

#[test]
fn leadership_moves_on_request_and_a_removed_member_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let status = nodes[0].status();
    let leader = status["leader"].as_u64().unwrap();
    let next = (1..=3).find(|id| *id != leader).unwrap();
    let to = next.to_string();
    // Whoever is asked, the leader does it.
    let at = |id: u64| nodes.iter().position(|node| node.status()["answered_by"] == id).unwrap();
    let last = nodes[at(6 - leader - next)].address.clone();
    fails(2, &["\"0\"", "from 1 to"], &["cluster", "--endpoints", &last, "transfer-leader", "0"]);
    let moved = run(&["cluster", "--endpoints", &last, "transfer-leader", &to]);
    assert_eq!(text(&moved.stdout), format!("member {to} leads\n"), "{}", text(&moved.stderr));
    until("all know the new leader", || nodes.iter().all(|node| node.status()["leader"] == next));
    fails(1, &["there is no member 9"], &["cluster", "--endpoints", &last, "remove", "9"]);

    // The leader itself is removed: it hands over, goes, and says so.
    let at = at(next);
    let name = ["n1", "n2", "n3"][at];
    let mut gone = nodes.remove(at);
    let removed = run(&["cluster", "--endpoints", &last, "remove", &to, "--command-timeout", "30"]);
    assert_eq!(text(&removed.stdout), format!("member {to} is removed\n"), "{}", text(&removed.stderr));
    assert_eq!(gone.child.wait().unwrap().code(), Some(1));
    assert!(nodes[0].kv(&["put", "after", "removal"]).status.success());
    until("two voters are left", || voters(&nodes[1].status()) == 2);
    // It never comes back under its old name.
    let data = dir.path().join(name);
    fails(
        1,
        &[&format!("member {to} was removed")],
        &["start", "--data-dir", data.to_str().unwrap(), "--listen", &gone.address],
    );
}

#[test]
fn without_a_majority_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let gone: Vec<String> = nodes[1..].iter().map(|node| node.address.clone()).collect();
    nodes.drain(1..).for_each(Running::kill);
    // It may have been on its way when the others went.
    let put = nodes[0].kv(&["put", "a", "b", "--command-timeout", "2"]);
    assert!(matches!(put.status.code(), Some(3 | 4)), "{:?} {}", put.status, text(&put.stderr));
    // Who asks all of them hears who is gone, and that the one that is there knows of no majority.
    let all = format!("{},{}", gone.join(","), nodes[0].address);
    until("it knows", || nodes[0].kv(&["get", "a", "--command-timeout", "2"]).status.code() == Some(3));
    for what in [&["get", "a"][..], &["put", "a", "c"]] {
        let asked = run(&[&["kv"], what, &["--endpoints", &all, "--command-timeout", "5"]].concat());
        let said = text(&asked.stderr);
        assert_eq!(asked.status.code(), Some(3), "{said}");
        assert!(said.contains("majority") && !said.contains("node dev"), "{said}");
    }
}

#[test]
fn who_lives_without_a_majority_is_not_to_be_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut members = three(dir.path());
    members.drain(..2).for_each(Running::kill);
    let left = &members[0].address;
    let asked = |path: &str| http_get(left, path, "").lines().next().unwrap().to_owned();
    let (fine, not) = ("HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable");
    until("it knows", || asked("/health") == not);
    assert_eq!(["/readyz", "/health?exclude=NOSPACE"].map(asked), [not; 2]);
    let alone = ["/livez", "/readyz?exclude=linearizable_read", "/health?exclude=NOSPACE&serializable=true"];
    assert_eq!(alone.map(asked), [fine; 3]);
    let why = http_get(left, "/readyz", "");
    assert!(why.ends_with("[-]linearizable_read failed\n"), "{why}");
}

#[test]
fn bad_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fails(2, &["unrecognized subcommand", "frobnicate"], &["frobnicate"]);
    fails(2, &["localhost", "host:port"], &["dev", "--listen", "localhost"]);
    fails(1, &["--bootstrap", "--join"], &["start", "--data-dir", &path("empty"), "--listen", "127.0.0.1:0"]);
    let exposed = |words: &[&str], listen: &str| {
        fails(2, words, &["start", "--data-dir", &path("x"), "--listen", listen, "--bootstrap"]);
    };
    exposed(&["0.0.0.0:0", "not encrypted"], "0.0.0.0:0");
    exposed(&["10.0.0.1:1", "not encrypted", "no token", "--insecure"], "10.0.0.1:1");
    assert!(!dir.path().join("x").exists(), "a refused start left something behind");
    let everywhere = ["start", "--data-dir", &path("w"), "--listen", "0.0.0.0:0", "--bootstrap", "--insecure"];
    fails(1, &["0.0.0.0:0", "--advertise"], &everywhere);
    fails(
        1,
        &["election timeout", "10ms", "500ms"],
        &["start", "--data-dir", &path("y"), "--listen", "127.0.0.1:0", "--bootstrap", "--election-timeout-ms", "10"],
    );
    let itself = ["--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:1", "--join", "127.0.0.1:1"];
    fails(1, &["127.0.0.1:1 is this node itself"], &[&["start", "--data-dir", &path("z")][..], &itself].concat());
    fs::write(path("cairn.toml"), "data_dirr = \"x\"\n").unwrap();
    fails(2, &["cairn.toml", "data_dirr"], &["start", "--config", &path("cairn.toml")]);
    fails(2, &["no-such.toml"], &["start", "--config", &path("no-such.toml")]);
    fs::create_dir(path("no-tasks")).unwrap();
    fs::write(path("no-tasks/tasks"), "in the way").unwrap();
    let blocked = ["start", "--data-dir", &path("no-tasks"), "--listen", "127.0.0.1:0", "--bootstrap"];
    fails(1, &["make the directory for tasks", "no-tasks/tasks"], &blocked);
    assert!(!dir.path().join("no-tasks/log").exists(), "a member was founded all the same");
    fs::write(path("file"), "not a directory").unwrap();
    fails(1, &["data directory", "file"], &["start", "--data-dir", &path("file"), "--bootstrap"]);
    fails(
        3,
        &["not done", "node dev"],
        &["kv", "--endpoints", "127.0.0.1:1", "--command-timeout", "0.2", "put", "a", "b"],
    );
}

#[test]
fn corrupt_files_are_found_before_anything_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let args = ["start", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--bootstrap"];
    let node = Running::start(&args);
    assert!(node.kv(&["put", "k", "find-me-in-the-log"]).status.success());
    // Damage in the very last batch looks as if the power had gone while it was written.
    (0..3).for_each(|i| assert!(node.kv(&["put", "other", &i.to_string()]).status.success()));
    node.kill();
    let log = data.join("log");
    let sound = fs::read(&log).unwrap();
    let mut rotten = sound.clone();
    let at = rotten.windows(18).position(|bytes| bytes == b"find-me-in-the-log").unwrap();
    rotten[at] ^= 1;
    fs::write(&log, &rotten).unwrap();
    fails(1, &["open log in", "corrupt", "damaged"], &args);
    assert_eq!(fs::read(&log).unwrap(), rotten, "the evidence was changed");
    fs::write(&log, b"this is no log").unwrap();
    fails(1, &["open log in", "corrupt"], &args);
    fs::remove_file(&log).unwrap();
    fails(1, &["open log in", "corrupt", "the state is not"], &args);
    fs::rename(data.join("log"), data.join("log.redb")).unwrap();
    fails(1, &["log.redb", "earlier version"], &args);
    fs::remove_file(data.join("log.redb")).unwrap();
    fs::write(&log, &sound).unwrap();
    let node = Running::start(&args);
    assert_eq!(text(&node.kv(&["get", "k"]).stdout), "find-me-in-the-log\n");
}

#[test]
fn a_copy_of_a_data_directory_does_not_become_a_second_member() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let address = nodes[2].address.clone();
    nodes.remove(2).kill();
    let copied = Command::new("cp").args(["-r", "n3", "copy"]).current_dir(dir.path()).status().unwrap();
    assert!(copied.success());
    let original = Running::member(dir.path(), "n3", &address, &[]);
    let copy = dir.path().join("copy");
    let start = ["start", "--data-dir", copy.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    for more in [&[][..], &["--advertise", address.as_str()]] {
        fails(1, &["member 3 runs at", &address, "copy"], &[&start[..], more].concat());
    }
    assert!(original.kv(&["put", "still", "here"]).status.success());

    // The data themselves may go to another place.
    original.kill();
    fs::rename(dir.path().join("n3"), dir.path().join("moved")).unwrap();
    let moved = Running::member(dir.path(), "moved", "127.0.0.1:0", &[]);
    let known = |node: &Running| {
        let members = node.status()["members"].as_array().cloned().unwrap_or_default();
        members.into_iter().any(|member| member["id"] == 3 && member["address"] == moved.address.as_str())
    };
    until("it is known where the member is now", || nodes.iter().all(known));
    assert_eq!(text(&moved.kv(&["get", "still"]).stdout), "here\n");
}

/// One that stayed is enough: nobody need say where the others are.
#[test]
fn a_member_and_its_leader_may_move_while_it_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let id = |node: &Running| node.status()["answered_by"].as_u64().unwrap();
    nodes.sort_by_key(id);
    let [stayed, leader, away]: [Running; 3] = nodes.try_into().ok().unwrap();
    away.kill();
    leader.kill();
    let leader = Running::member(dir.path(), "n2", "127.0.0.1:0", &[]);
    until("it leads", || {
        run(&["cluster", "--endpoints", &stayed.address, "transfer-leader", "2"]).status.success()
            && stayed.status()["leader"] == 2
    });
    assert!(leader.kv(&["put", "moved", "both"]).status.success());
    let back = Running::member(dir.path(), "n3", "127.0.0.1:0", &[]);
    assert_eq!(text(&back.kv(&["get", "moved"]).stdout), "both\n");
    let known = |node: &Running| {
        let members = node.status()["members"].as_array().cloned().unwrap_or_default();
        members.into_iter().any(|member| member["id"] == 3 && member["address"] == back.address.as_str())
    };
    until("it is known where the member is now", || [&stayed, &leader, &back].into_iter().all(known));
}

#[test]
fn members_may_swap_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = three(dir.path());
    let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    nodes.drain(1..).for_each(Running::kill);
    let swapped = [("n2", 2), ("n3", 1)].map(|(name, at)| Running::member(dir.path(), name, &addresses[at], &[]));
    let known = |node: &Running| {
        let members = node.status()["members"].as_array().cloned().unwrap_or_default();
        let at =
            |id: usize| members.iter().find(|row| row["id"] == id).map_or(Value::Null, |row| row["address"].clone());
        at(2) == addresses[2].as_str() && at(3) == addresses[1].as_str()
    };
    until("all know", || swapped.iter().all(known));
    nodes.remove(0).kill();
    let put = swapped[0].kv(&["put", "a", "b", "--command-timeout", "30"]);
    assert!(put.status.success(), "the two do not find each other: {}", text(&put.stderr));
}

#[test]
fn two_of_three_go_on_after_all_have_gone_down_right_after_forming() {
    let dir = tempfile::tempdir().unwrap();
    let start = |name, listen: &str, origin: &[&str]| {
        Running::member(dir.path(), name, listen, &[origin, &["--role", "server"]].concat())
    };
    let first = start("n1", "127.0.0.1:0", &["--bootstrap"]);
    let join = ["--join", &first.address.clone()];
    let all = [first, start("n2", "127.0.0.1:0", &join), start("n3", "127.0.0.1:0", &join)];
    until("all have the last entry, which ends the joint configuration", || {
        let statuses: Vec<Value> = all.iter().map(Running::status).collect();
        let done = |status: &Value| {
            voters(status) == 3 && status["joint"] == false && status["applied_index"] == status["last_index"]
        };
        statuses.iter().all(done) && statuses.iter().all(|status| status["last_index"] == statuses[0]["last_index"])
    });
    let addresses: Vec<String> = all.iter().map(|node| node.address.clone()).collect();
    all.into_iter().for_each(Running::kill);
    // The founder alone could vote before. Readiness needs an election.
    let dir_of_second = dir.path().join("n2");
    let mut second = node();
    second.args([
        "start",
        "--role",
        "server",
        "--data-dir",
        dir_of_second.to_str().unwrap(),
        "--listen",
        &addresses[1],
    ]);
    // What it says is told if the other waits for it in vain.
    let _second = Killed(second.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap());
    let third = start("n3", &addresses[2], &[]);
    assert!(third.kv(&["put", "a", "b"]).status.success());
}

/// A node that is killed when dropped, ready or not.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_member_of_another_cluster_is_not_mistaken() {
    let dir = tempfile::tempdir().unwrap();
    let one = Running::member(dir.path(), "one", "127.0.0.1:0", &["--bootstrap"]);
    let other = Running::member(dir.path(), "other", "127.0.0.1:0", &["--bootstrap"]);
    other.kill();
    let data = dir.path().join("other");
    let start = ["start", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--join", &one.address];
    fails(1, &["other", "holds member 1 of cluster", &one.address], &start);
}

#[test]
fn a_node_whose_files_cannot_grow_stops_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("n");
    // Half a kilobyte each; the first refused byte is an error of the write, as on a full disk.
    let limited = format!("trap '' XFSZ; ulimit -f 8000; exec {} \"$@\"", env!("CARGO_BIN_EXE_node"));
    let args = ["start", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--bootstrap"];
    let mut shell = Command::new("sh");
    shell.args(["-c", &limited, "node"]).args(args);
    let mut node = Running::spawn(shell);
    let value = "x".repeat(100_000);
    let mut acknowledged = 0;
    while node.kv(&["put", &format!("k{acknowledged}"), &value, "--command-timeout", "2"]).status.success() {
        acknowledged += 1;
    }
    assert_eq!(node.child.wait().unwrap().code(), Some(70));
    assert!(acknowledged > 0);
    let node = Running::start(&args);
    for key in 0..acknowledged {
        let found = node.kv(&["get", &format!("k{key}")]);
        assert_eq!(found.stdout.len(), value.len() + 1, "k{key} of {acknowledged} was acknowledged and is lost");
    }
    assert!(node.kv(&["put", "more", "room"]).status.success());
}

#[test]
fn without_space_nothing_that_grows_is_taken_and_all_else_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n", "127.0.0.1:0", &["--bootstrap"]);
    assert!(node.kv(&["put", "a", "1"]).status.success());
    assert_eq!(fs::metadata(dir.path().join("n/ballast")).unwrap().len(), 64 << 20);
    let address = node.address.clone();
    node.kill();
    let node = Running::member(dir.path(), "n", &address, &["--free-space-floor", "1000Ti"]);
    until("it notices", || {
        let put = node.kv(&["put", "b", "2", "--command-timeout", "0.5"]);
        put.status.code() == Some(3) && text(&put.stderr).contains("the floor is 1048576000 MiB")
    });
    assert_eq!(text(&node.kv(&["get", "a"]).stdout), "1\n");
    // Whoever makes room goes on.
    assert!(node.kv(&["delete", "a"]).status.success());
    assert!(node.kv(&["compact", "2"]).status.success());
    assert!(!dir.path().join("n/ballast").exists(), "the ballast was kept");
    assert_eq!(node.kv(&["get", "b"]).status.code(), Some(1), "a refused put was carried out");
    node.kill();
    let node = Running::member(dir.path(), "n", &address, &[]);
    assert!(node.kv(&["put", "b", "2"]).status.success());
}

#[test]
fn a_cluster_with_certificates_and_a_token_answers_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let made = path("credentials");
    assert!(run(&["credentials", "--dir", &made, "localhost", "127.0.0.1"]).status.success());
    fails(1, &["localhost.pem is there already"], &["credentials", "--dir", &made, "localhost"]);
    let bad = |words: &[&str], host: &str| fails(1, words, &["credentials", "--dir", &made, host]);
    bad(&["n1:7400", "without port"], "n1:7400");
    bad(&["another use"], "ca");
    bad(&["neither"], "a b");
    bad(&["nobody is reached"], "0.0.0.0");
    let mode = fs::metadata(path("credentials/ca.key")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    let (ca, token) = (path("credentials/ca.pem"), path("credentials/token"));
    let (certificate, key) = (path("credentials/localhost.pem"), path("credentials/localhost.key"));
    let (tls, admitted) = (["--tls-ca", ca.as_str()], ["--token-file", token.as_str()]);
    let shown = [&tls[..], &admitted, &["--tls-cert", &certificate, "--tls-key", &key]].concat();
    // Beyond this machine, and without --insecure.
    let first = Running::member(
        dir.path(),
        "n1",
        "0.0.0.0:0",
        &[&shown[..], &["--advertise", "localhost:0", "--bootstrap"]].concat(),
    );
    let port = first.address.split(':').nth(1).unwrap();
    let at = format!("localhost:{port}");
    let second = Running::member(dir.path(), "n2", "127.0.0.1:0", &[&shown[..], &["--join", &at]].concat());
    let kv = |more: &[&str], args: &[&str]| run(&[&["kv", "--command-timeout", "2"], more, args].concat());
    let here = ["--endpoints", at.as_str()];
    let put = kv(&[&here[..], &tls, &admitted].concat(), &["put", "a", "b"]);
    assert!(put.status.success(), "{}", text(&put.stderr));
    let there = ["--endpoints", second.address.as_str()];
    assert_eq!(text(&kv(&[&there[..], &tls, &admitted].concat(), &["get", "a"]).stdout), "b\n");
    // Who speaks JSON need not speak HTTP/2.
    for protocols in [&["http/1.1"][..], &[]] {
        let (agreed, answer) = health_by_tls(&ca, &at, protocols);
        assert_eq!((agreed.as_deref(), answer.as_str()), (protocols.first().copied(), "HTTP/1.1 200"));
    }
    assert_eq!(health_by_tls(&ca, &at, &["http/1.1", "h2"]).0.as_deref(), Some("h2"));
    let refused = |code: i32, words: &[&str], more: &[&str]| {
        fails(code, words, &[&["kv", "--command-timeout", "2", "get", "a"], more].concat());
    };
    refused(1, &["--token-file"], &[&here[..], &tls].concat());
    let wrong = path("wrong");
    fs::write(&wrong, "0123456789abcdef\n").unwrap();
    refused(1, &["not one of this cluster's"], &[&here[..], &tls, &["--token-file", &wrong]].concat());
    refused(3, &["--tls-ca"], &[&here[..], &admitted].concat());
    assert!(run(&["credentials", "--dir", &path("other"), "localhost"]).status.success());
    let strange = path("other/ca.pem");
    refused(3, &["invalid peer certificate"], &[&here[..], &admitted, &["--tls-ca", &strange]].concat());
    let unnamed = format!("127.0.0.2:{port}");
    refused(3, &["not valid for name"], &[&["--endpoints", unnamed.as_str()], &tls[..], &admitted].concat());

    // What a node is started with is looked at before anything else.
    let start = |code: i32, words: &[&str], more: &[&str]| {
        fails(
            code,
            words,
            &[&["start", "--data-dir", &path("n3"), "--listen", "127.0.0.1:0", "--join", &at], more].concat(),
        );
    };
    start(1, &["not one of this cluster's"], &[&shown[..2], &shown[4..], &["--token-file", &wrong]].concat());
    let other_key = path("other/localhost.key");
    start(
        1,
        &["localhost.key", "not be consistent"],
        &[&tls[..], &["--tls-cert", &certificate, "--tls-key", &other_key]].concat(),
    );
    start(2, &["tls_ca, tls_cert and tls_key"], &tls);
    fs::write(&wrong, "short\n").unwrap();
    start(1, &["wrong", "line 1", "5 characters"], &["--token-file", &wrong]);
}

/// What a plain HTTP/1.1 client gets.
fn http_get(address: &str, path: &str, headers: &str) -> String {
    http(address, &format!("GET {path}"), headers, "")
}

fn http(address: &str, what: &str, headers: &str, body: &str) -> String {
    let (mut socket, len) = (TcpStream::connect(address).unwrap(), body.len());
    let headers = format!("Host: cairn\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}");
    write!(socket, "{what} HTTP/1.1\r\n{headers}\r\n{body}").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// What a server that shows a certificate of this authority speaks with a client that speaks these protocols, and, if that is
/// HTTP/1.1, whether it is healthy.
fn health_by_tls(ca: &str, address: &str, protocols: &[&str]) -> (Option<String>, String) {
    let mut trusted = rustls::RootCertStore::empty();
    trusted.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let tls = rustls::ClientConnection::new(std::sync::Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(tls, TcpStream::connect(address).unwrap());
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    let agreed = stream.conn.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
    let mut answer = [0; 12];
    if agreed.as_deref() != Some("h2") {
        write!(stream, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream.read_exact(&mut answer).unwrap();
    }
    (agreed, text(&answer))
}

#[test]
fn metrics_count_what_happens_and_need_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "0123456789abcdef\n").unwrap();
    let admitted = ["--token-file", token.to_str().unwrap()];
    let node = Running::member(dir.path(), "n", "127.0.0.1:0", &[&admitted[..], &["--bootstrap"]].concat());
    let bearer = "Authorization: Bearer 0123456789abcdef\r\n";
    let value = |name: &str| {
        let text = http_get(&node.address, "/metrics", bearer);
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let before = value("cairn_command_seconds_count");
    for i in 0..5 {
        assert!(node.kv(&[&admitted[..], &["put", "k", &i.to_string()]].concat()).status.success());
    }
    // Each of them opens a session and puts.
    assert!(value("cairn_command_seconds_count") >= before + 10.0);
    assert!(value("cairn_log_write_seconds_sum") > 0.0);
    assert_eq!((value("cairn_raft_leads"), value("cairn_tasks_pending")), (1.0, 0.0));
    // Who keeps watch over members need not be among them.
    let health = http_get(&node.address, "/health", "");
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with(r#"{"health":"true"}"#), "{health}");
    for path in ["/livez", "/readyz"] {
        let answer = http_get(&node.address, path, "");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{path}: {answer}");
    }
    let refused = http_get(&node.address, "/metrics", "");
    assert!(refused.starts_with("HTTP/1.1 401") && !refused.contains("cairn_raft"), "{refused}");
}

#[test]
fn who_logs_in_slowly_keeps_nobody_from_asking() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n", "127.0.0.1:0", &["--bootstrap"]);
    let slow: Vec<_> = (0..JSON_READING_MAX)
        .map(|_| {
            let mut stream = TcpStream::connect(&node.address).unwrap();
            let what = "POST /v3/auth/authenticate HTTP/1.1\r\nHost: n\r\nContent-Length: 10\r\n\r\n";
            stream.write_all(what.as_bytes()).unwrap();
            stream
        })
        .collect();
    until("no more are heard out", || {
        http(&node.address, "POST /v3/auth/authenticate", "", "{}").starts_with("HTTP/1.1 429")
    });
    let asked = http(&node.address, "POST /v3/kv/range", "", r#"{"key":"YQ=="}"#);
    assert!(asked.starts_with("HTTP/1.1 200"), "{asked}");
    drop(slow);
}

#[test]
fn garbage_on_the_port_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\xff\xff\xff"]
    {
        let mut socket = TcpStream::connect(&node.address).unwrap();
        let _ = socket.write_all(garbage);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let _ = socket.read(&mut [0; 64]);
    }
    assert!(node.kv(&["put", "still", "here"]).status.success());
    let refused = node.kv(&["put", "", "v"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("a key has at least one byte"), "{}", text(&refused.stderr));
}

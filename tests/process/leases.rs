//! Leases, locks, elections and backups, as they are typed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use super::fails;
use super::running::{Running, node, run, text, three, until};

fn json(endpoint: &str, args: &[&str]) -> Value {
    let output = run(&[args, &["--endpoints", endpoint, "-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {}", text(&output.stderr)))
}

#[test]
fn a_key_goes_with_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let at = &node.address;
    let short = json(at, &["lease", "grant", "2"])["lease"].as_str().unwrap().to_owned();
    let long = json(at, &["lease", "grant", "600", "--id", "abc"]);
    assert_eq!((long["lease"].as_str(), long["ttl"].as_u64()), (Some("abc"), Some(600)));
    for (key, lease) in [("one", &short[..]), ("other", "abc")] {
        assert!(node.kv(&["put", key, "v", "--lease", lease]).status.success());
    }
    assert_eq!(json(at, &["kv", "get", "other"])["lease"], "abc");
    let left = json(at, &["lease", "ttl", "abc", "--keys"]);
    assert_eq!((&left["ttl"], &left["keys"][0]), (&600.into(), &"other".into()));
    assert!(left["left"].as_u64().unwrap() > 500, "{left}");
    until("the short one ends", || !node.kv(&["get", "one"]).status.success());
    assert_eq!(json(at, &["lease", "list"]), serde_json::json!(["abc"]));
    assert!(run(&["lease", "keep-alive", "abc", "--once", "--endpoints", at]).status.success());
    fails(1, &[&short, "does not exist"], &["lease", "keep-alive", &short, "--once", "--endpoints", at]);
    fails(1, &["abc", "exists already"], &["lease", "grant", "9", "--id", "abc", "--endpoints", at]);
    fails(1, &["lease 7 does not exist"], &["kv", "put", "k", "v", "--lease", "7", "--endpoints", at]);
    fails(2, &["xyz", "hexadecimal"], &["lease", "revoke", "xyz", "--endpoints", at]);
    assert!(run(&["lease", "revoke", "abc", "--endpoints", at]).status.success());
    assert!(!node.kv(&["get", "other"]).status.success());
}

#[test]
fn a_lock_has_one_holder_and_an_election_one_leader() {
    let dir = tempfile::tempdir().unwrap();
    let member = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let at = &member.address;
    let start = |args: &[&str]| {
        let mut command = node();
        command.args(args).args(["--endpoints", at]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let count = dir.path().join("count");
    std::fs::write(&count, "0").unwrap();
    let add = format!("n=$(cat {0}); sleep 0.05; echo $((n + 1)) > {0}; echo $CAIRN_LOCK_TOKEN", count.display());
    let lock = |script: &str| start(&["lock", "count"]).args(["--", "sh", "-c", script]).spawn().unwrap();
    let holders: Vec<_> = (0..6).map(|_| lock(&add)).collect();
    let token = |output: std::process::Output| -> u64 {
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().parse().unwrap()
    };
    let mut tokens: Vec<u64> = holders.into_iter().map(|holder| token(holder.wait_with_output().unwrap())).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 6, "each has a token of its own");
    assert_eq!(std::fs::read_to_string(&count).unwrap().trim(), "6");
    assert_eq!(lock("exit 7").wait().unwrap().code(), Some(7));
    fails(127, &["start no-such-program"], &["lock", "count", "--endpoints", at, "--", "no-such-program"]);
    // What is killed without a word holds it until its lease is over; who waits gets it then.
    let pid = dir.path().join("pid");
    let script = format!("echo $$ > {0}.part; mv {0}.part {0}; exec sleep 100", pid.display());
    let mut killed = start(&["lock", "count", "--ttl", "2"]).args(["--", "sh", "-c", &script]).spawn().unwrap();
    until("it is held", || pid.exists());
    killed.kill().unwrap();
    killed.wait().unwrap();
    let process = format!("/proc/{}/cmdline", std::fs::read_to_string(&pid).unwrap().trim());
    until("what ran under it has died with it", || {
        std::fs::read(&process).is_ok_and(|line| line.is_empty()) || !std::path::Path::new(&process).exists()
    });
    assert!(lock("exit 0").wait().unwrap().success());
    // One that is asked to end ends what it has started, too, and gives the lock back only then.
    let script = format!("sleep 100 & echo $! > {0}.part; mv {0}.part {0}.2; wait", pid.display());
    let mut asked = lock(&script);
    let pid = dir.path().join("pid.2");
    until("it is held again", || pid.exists());
    let process = format!("/proc/{}", std::fs::read_to_string(&pid).unwrap().trim());
    assert!(std::process::Command::new("kill").args(["-TERM", &asked.id().to_string()]).status().unwrap().success());
    assert_eq!(asked.wait().unwrap().code(), Some(128 + 15));
    until("what it started has ended", || !std::path::Path::new(&process).exists());
    assert!(lock("exit 0").wait().unwrap().success());
    // A leader that is asked to go is followed by the next.
    let mut first = start(&["elect", "seat", "first"]).spawn().unwrap();
    let leads = |child: &mut Child, name: &str| {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("{name} leads, token ")), "{line}");
    };
    let leader = || {
        let listed = json(at, &["kv", "list", "--prefix", "seat/", "--sort", "created", "--limit", "1"]);
        listed[0]["value"].as_str().unwrap_or_default().to_owned()
    };
    leads(&mut first, "first");
    assert_eq!(leader(), "first");
    let mut second = start(&["elect", "seat", "second"]).spawn().unwrap();
    until("the second waits", || json(at, &["kv", "list", "--prefix", "seat/"]).as_array().unwrap().len() == 2);
    let interrupt = |child: &Child| {
        assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    };
    interrupt(&first);
    assert_eq!(first.wait().unwrap().code(), Some(0));
    leads(&mut second, "second");
    assert_eq!(leader(), "second");
    interrupt(&second);
    assert_eq!(second.wait().unwrap().code(), Some(0));
    // Who cannot know any more that it leads says so, and no more than that.
    let mut third = start(&["elect", "seat", "third", "--ttl", "2"]).spawn().unwrap();
    leads(&mut third, "third");
    member.kill();
    let said = third.wait_with_output().unwrap();
    assert!(matches!(said.status.code(), Some(3 | 4)), "{:?}", said.status);
    let why = text(&said.stderr);
    assert!(why.starts_with("error: third leads no more") && why.lines().count() == 1, "{why}");
}

#[test]
fn a_backup_becomes_a_new_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let old = Running::member(dir.path(), "old", "127.0.0.1:0", &["--bootstrap"]);
    for i in 0..5 {
        assert!(old.kv(&["put", &format!("k{i}"), &format!("v{i}")]).status.success());
    }
    assert!(old.kv(&["delete", "k3"]).status.success());
    let saved = json(&old.address, &["snapshot", "save", &path("backup")]);
    assert_eq!(saved["revision"], 7);
    // What of one that was given up is left does not stand in the way of the next.
    std::fs::write(path("again.part"), vec![0; 1 << 20]).unwrap();
    json(&old.address, &["snapshot", "save", &path("again")]);
    assert!(!dir.path().join("again.part").exists());
    let mode = std::fs::metadata(path("again")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    assert_eq!(std::fs::metadata(path("again")).unwrap().len(), std::fs::metadata(path("backup")).unwrap().len());
    fails(1, &["is there already"], &["snapshot", "save", &path("backup"), "--endpoints", &old.address]);
    assert_eq!(json(&old.address, &["snapshot", "status", &path("backup")]), saved);
    // Written after it, so not in it.
    assert!(old.kv(&["put", "late", "x"]).status.success());
    let whole = std::fs::read(path("backup")).unwrap();
    std::fs::write(path("short"), &whole[..whole.len() - 1]).unwrap();
    fails(1, &["short", "cut short"], &["snapshot", "status", &path("short")]);
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(path("damaged"), damaged).unwrap();
    fails(1, &["damaged", "frame"], &["snapshot", "restore", &path("damaged"), "--data-dir", &path("new")]);
    assert!(!dir.path().join("new").exists(), "nothing is made of a damaged backup");
    // What came of that is no member: the directory will do.
    let restored = run(&["snapshot", "restore", &path("backup"), "--data-dir", &path("new")]);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    fails(1, &["holds member 2"], &["snapshot", "restore", &path("backup"), "--data-dir", &path("new")]);
    let new = Running::member(dir.path(), "new", "127.0.0.1:0", &[]);
    let keys = |output: std::process::Output| text(&output.stdout);
    assert_eq!(keys(new.kv(&["get", "k4"])), "v4\n");
    assert_eq!(keys(new.kv(&["get", "k3", "--revision", "5"])), "v3\n");
    assert_eq!(json(&new.address, &["kv", "list"]).as_array().unwrap().len(), 4);
    assert_eq!(json(&new.address, &["kv", "put", "next", "x"])["revision"], 8);
    // Attempts since the backup have had the tokens after its last.
    let token = run(&["run", "--endpoints", &new.address, "--", "sh", "-c", "echo $CAIRN_TASK_TOKEN"]);
    assert!(text(&token.stdout).trim().parse::<u64>().unwrap() > 1 << 32, "{}", text(&token.stdout));
    assert_ne!(new.status()["cluster_id"], old.status()["cluster_id"]);
    let third = Running::member(dir.path(), "third", "127.0.0.1:0", &["--join", &new.address]);
    until("who joins catches up", || keys(third.kv(&["get", "next", "--serializable"])) == "x\n");
}

#[test]
fn what_is_left_of_a_lost_majority_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut members = three(dir.path());
    assert!(members[0].kv(&["put", "k", "v"]).status.success());
    until("the last member has it", || text(&members[2].kv(&["get", "k", "--serializable"]).stdout) == "v\n");
    members.drain(..2).for_each(Running::kill);
    let left = &members[0];
    until("it serves no more", || {
        let status = run(&["cluster", "status", "--endpoints", &left.address]);
        text(&status.stdout).contains("not serving")
    });
    // Nobody says that it is all, so it is not given as if it were.
    let at = ["--endpoints", &left.address, "--command-timeout", "2s"];
    let refused = run(&[&["snapshot", "save", &path("confirmed")][..], &at].concat());
    assert!(!refused.status.success() && !dir.path().join("confirmed").exists(), "{}", text(&refused.stdout));
    let saved = run(&[&["snapshot", "save", "--serializable", &path("backup")][..], &at].concat());
    assert!(saved.status.success(), "{}", text(&saved.stderr));
    let restored = run(&["snapshot", "restore", &path("backup"), "--data-dir", &path("new")]);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    let new = Running::member(dir.path(), "new", "127.0.0.1:0", &[]);
    assert_eq!(text(&new.kv(&["get", "k"]).stdout), "v\n");
}

//! What keys may take, what is kept of their past, and who may come to vote, as it is typed.

use std::fs::{self, File};
use std::net::TcpListener;

use cairn::state::format::NEWEST;
use serde_json::Value;

use super::fails;
use super::running::{Running, node, run, text, three, until, voters};

fn json(endpoint: &str, args: &[&str]) -> Value {
    let output = run(&[args, &["--endpoints", endpoint, "-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {}", text(&output.stderr)))
}

#[test]
fn keys_take_what_they_may_until_room_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap", "--keys-quota", "256Ki"]);
    let at = &node.address;
    assert_eq!(json(at, &["alarm", "list"])["alarms"], serde_json::json!([]));
    let value = "x".repeat(50_000);
    let put = |key: &str| node.kv(&["put", key, &value]);
    let full = (0..20).map(|number| put(&format!("k{}", number % 2))).find(|output| !output.status.success());
    let full = full.expect("a quota of five of them is full after twenty");
    assert!(text(&full.stderr).contains("node alarm disarm"), "{}", text(&full.stderr));
    assert_eq!(full.status.code(), Some(1));
    let raised = json(at, &["alarm", "list"]);
    assert_eq!(raised["alarms"], serde_json::json!([{ "member": 1, "alarm": "NOSPACE" }]));
    assert_eq!(raised["keys_quota"], 256 << 10);
    assert!(raised["keys_bytes"].as_u64() > Some(200_000), "{raised}");
    assert_eq!(text(&run(&["alarm", "list", "-o", "simple", "--endpoints", at]).stdout), "1\tNOSPACE\n");
    // What takes no space goes on.
    assert!(node.kv(&["get", "k0"]).status.success());
    assert!(node.kv(&["delete", "k1"]).status.success());
    fails(1, &["node alarm disarm"], &["lease", "grant", "9", "--endpoints", at]);
    let newest = json(at, &["kv", "get", "k0"])["revision"].as_u64().unwrap() + 1;
    let compacted = node.kv(&["compact", &newest.to_string(), "--physical"]);
    assert!(compacted.status.success(), "{}", text(&compacted.stderr));
    assert!(!put("k0").status.success(), "the alarm is raised still");
    assert!(run(&["alarm", "disarm", "--endpoints", at]).status.success());
    assert!(put("k0").status.success());
    assert_eq!(json(at, &["alarm", "list"])["alarms"], serde_json::json!([]));
    fails(2, &["lots", "64Mi"], &["start", "--data-dir", "unused", "--keys-quota", "lots"]);
    fails(2, &["0 bytes", "none"], &["start", "--data-dir", "unused", "--keys-quota", "0"]);
    fails(2, &["give join"], &["start", "--data-dir", "unused", "--bootstrap", "--standby"]);
}

#[test]
fn answers_are_as_long_as_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three(dir.path());
    let follower = &nodes[1].address;
    let value = dir.path().join("value");
    fs::write(&value, "x".repeat(1_000_000)).unwrap();
    for number in 0..18 {
        let mut put = node();
        put.args(["kv", "put", &format!("long/{number}"), "--endpoints", follower]);
        assert!(put.stdin(File::open(&value).unwrap()).output().unwrap().status.success());
    }
    let listed = json(follower, &["kv", "list", "--prefix", "long/"]);
    assert_eq!(listed.as_array().unwrap().len(), 18);
    // A follower passes it on, and what the leader answers back.
    let deleted = json(follower, &["kv", "delete", "long/", "--prefix", "--prev"]);
    assert_eq!(deleted["deleted"], 18);
    assert_eq!(deleted["previous"].as_array().unwrap().len(), 18);
}

#[test]
fn what_is_free_in_files_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three(dir.path());
    let at = &nodes[0].address;
    let value = "x".repeat(100_000);
    for number in 0..60 {
        assert!(nodes[0].kv(&["put", &format!("big/{number}"), &value]).status.success());
    }
    assert!(nodes[0].kv(&["put", "small", "kept"]).status.success());
    assert!(nodes[0].kv(&["delete", "big/", "--prefix"]).status.success());
    assert!(nodes[0].kv(&["compact", "63", "--physical"]).status.success());
    fails(1, &["no member", "7", "cluster status"], &["cluster", "defragment", "7", "--endpoints", at]);
    let done = json(at, &["cluster", "defragment"]);
    let rows = done.as_array().unwrap();
    assert_eq!(rows.len(), 3, "{done}");
    for row in rows {
        let [before, after] = ["bytes_before", "bytes_after"].map(|name| row[name].as_u64().unwrap());
        assert!(before > 5_000_000 && after < 2_000_000, "{row}");
    }
    // All that was there is there, also after a start.
    let digest = nodes[1].status()["digest"].clone();
    let [_, second, third] = <[Running; 3]>::try_from(nodes).ok().unwrap();
    let address = second.address.clone();
    second.kill();
    let second = Running::member(dir.path(), "n2", &address, &[]);
    until("it knows what the others know", || second.status()["digest"] == third.status()["digest"]);
    assert_eq!(text(&third.kv(&["get", "small"]).stdout), "kept\n", "{digest}");
}

#[test]
fn transactions_are_typed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let at = &node.address;
    let take = ["kv", "txn", "--if", "version(lock) = 0", "--then", "put lock 'the first'", "--else", "get lock"];
    assert_eq!(
        json(at, &take),
        serde_json::json!({ "held": true, "revision": 2, "answers": [{ "put": { "revision": 2 } }] })
    );
    let again = json(at, &take);
    assert_eq!((&again["held"], &again["answers"][0]["get"][0]["value"]), (&false.into(), &"the first".into()));
    let all = ["txn", "--if", "value(lock) = 'the first'", "--if", "revision(lock) < 2", "--then", "del lock"];
    let refused = node.kv(&all);
    assert_eq!(refused.status.code(), Some(1), "nothing is done: not all of it holds");
    let done = node.kv(&["txn", "--then", "put a 1", "--then", "put b 2", "--then", "get '' --prefix"]);
    assert!(text(&done.stdout).contains("the first"), "{}", text(&done.stdout));
    fails(2, &["size(a) = 3", "version"], &["kv", "txn", "--if", "size(a) = 3", "--endpoints", at]);
}

#[test]
fn of_the_past_only_so_much_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let by_number = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap", "--history", "5"]);
    let by_age = Running::member(dir.path(), "n2", "127.0.0.1:0", &["--bootstrap", "--history", "2s"]);
    for node in [&by_number, &by_age] {
        for number in 0..10 {
            assert!(node.kv(&["put", "k", &number.to_string()]).status.success());
        }
    }
    let gone = |node: &Running, revision: &str| {
        let got = node.kv(&["get", "k", "--revision", revision]);
        !got.status.success() && text(&got.stderr).contains("is compacted")
    };
    // The newest is 11.
    until("what is five revisions old is compacted", || gone(&by_number, "5"));
    assert!(by_number.kv(&["get", "k", "--revision", "6"]).status.success());
    until("what is two seconds old is compacted", || gone(&by_age, "10"));
    assert!(by_age.kv(&["get", "k", "--revision", "11"]).status.success());
    fails(2, &["yesterday", "24h"], &["start", "--data-dir", "unused", "--history", "yesterday"]);
}

#[test]
fn a_cluster_comes_to_a_new_format_when_all_of_it_take_part() {
    let dir = tempfile::tempdir().unwrap();
    let held = ["--format-max", "1"];
    let first = Running::member(dir.path(), "n1", "127.0.0.1:0", &[&held[..], &["--bootstrap"]].concat());
    let join = ["--join".to_owned(), first.address.clone()];
    let join = join.each_ref().map(String::as_str);
    let others =
        ["n2", "n3"].map(|name| Running::member(dir.path(), name, "127.0.0.1:0", &[&held[..], &join].concat()));
    let mut nodes: Vec<Running> = [first].into_iter().chain(others).collect();
    until("three voters", || nodes.iter().all(|node| voters(&node.status()) == 3 && node.status()["joint"] == false));
    assert!(nodes[0].kv(&["put", "written", "before"]).status.success());
    let restart = |node: Running, name: &str, options: &[&str]| {
        let address = node.address.clone();
        node.kill();
        Running::member(dir.path(), name, &address, options)
    };
    for (name, newest) in [("n1", 1), ("n2", 1), ("n3", NEWEST)] {
        // While one is held, nothing changes; a held one joins.
        assert_eq!(nodes[0].status()["format"], 1);
        let upgraded = restart(nodes.remove(0), name, &[]);
        until("it is known in which format all are", || upgraded.status()["format"] == newest);
        assert_eq!(upgraded.status()["newest_format"], NEWEST);
        nodes.push(upgraded);
    }
    until("all are there", || nodes.iter().all(|node| node.status()["format"] == NEWEST));
    let got = nodes[2].kv(&["get", "written"]);
    assert!(text(&got.stdout).contains("before"), "{}", text(&got.stderr));
    // Nobody goes back, and nobody joins who could not come along.
    let (address, at) = (nodes[0].address.clone(), nodes[1].address.clone());
    let mut stopped = nodes.remove(0);
    stopped.signal("-INT");
    assert_eq!(stopped.child.wait().unwrap().code(), Some(0));
    let data = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let back = ["start", "--data-dir", &data("n1"), "--listen", &address, "--format-max", "1"];
    let newest = format!("in format {NEWEST}");
    fails(1, &[&newest, "from 1 to 1", "--format-max"], &back);
    let newcomer = ["start", "--data-dir", &data("n4"), "--listen", "127.0.0.1:0", "--join", &at, "--format-max", "1"];
    fails(1, &[&newest, "none after 1"], &newcomer);
    let (beyond, bounds) = ((NEWEST + 1).to_string(), format!("from 1 to {NEWEST}"));
    fails(2, &[&format!("{beyond:?}"), &bounds], &["start", "--data-dir", "unused", "--format-max", &beyond]);
}

#[test]
fn who_is_expected_joins_and_who_stands_by_is_promoted() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = three(dir.path());
    let at = &nodes[1].address;
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for nowhere in ["0.0.0.0:7400", "127.0.0.1:0"] {
        fails(1, &[nowhere, "no address"], &["cluster", "add", nowhere, "--endpoints", at]);
    }
    let added = json(at, &["cluster", "add", &free, "--standby"]);
    assert_eq!(added["id"], 4);
    assert_eq!(json(at, &["cluster", "add", &free, "--standby"]), added, "asked again, it is the same");
    fails(1, &["member 4", &free], &["cluster", "add", &free, "--endpoints", at]);
    fails(1, &["member 4 has not joined yet"], &["cluster", "promote", "4", "--endpoints", at]);
    let row = || {
        let status = nodes[0].status();
        status["members"].as_array().into_iter().flatten().find(|row| row["id"] == 4).cloned().unwrap_or_default()
    };
    assert_eq!((&row()["role"], &row()["standby"]), (&"expected".into(), &true.into()));
    let fourth = Running::member(dir.path(), "n4", &free, &["--join", at]);
    assert_eq!((&row()["role"], &row()["standby"]), (&"learner".into(), &true.into()));
    assert_eq!(fourth.status()["answered_by"], 4);
    let fifth = Running::member(dir.path(), "n5", "127.0.0.1:0", &["--join", at, "--standby"]);
    assert_eq!(fifth.status()["answered_by"], 5);
    until("it has caught up and is promoted", || run(&["cluster", "promote", "4", "--endpoints", at]).status.success());
    until("it votes", || row()["role"] == "voter" && row()["standby"] == false);
    fails(1, &["no member 9"], &["cluster", "promote", "9", "--endpoints", at]);
    // With the fifth there would be an odd number of voters, but it stands by.
    let fifth = nodes[0].status()["members"].as_array().unwrap().iter().find(|row| row["id"] == 5).cloned().unwrap();
    assert_eq!((&fifth["role"], &fifth["standby"]), (&"learner".into(), &true.into()));
}

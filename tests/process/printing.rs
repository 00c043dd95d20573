//! What is printed: bytes that are no text, rows for scripts, and what cannot be printed at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::fails;
use super::running::{PATIENCE, Running, run, text, until};

fn kv(node: &Running) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    command
        .args(["kv", "--endpoints", &node.address])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What is written to a pipe, line by line; who waits for a line does so for as long as it may take, and no longer.
fn lines(pipe: impl Read + Send + 'static) -> impl FnMut() -> String {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(pipe).lines();
        while lines.next().is_some_and(|line| sender.send(line.unwrap()).is_ok()) {}
    });
    move || receiver.recv_timeout(PATIENCE).expect("a line in time")
}

#[test]
fn bytes_that_are_no_text_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let key = OsStr::from_bytes(b"k\xff\xfe");
    let value = [&[0u8, 0xff, b'\n', b'\t', 0xc0][..], b"end"].concat();
    let mut put = kv(&node).arg("put").arg(key).stdin(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(&value).unwrap();
    assert!(put.wait().unwrap().success());
    let got = kv(&node).arg("get").arg(key).output().unwrap();
    assert_eq!(got.stdout, [&value[..], b"\n"].concat());
    let document = |args: &[&str]| -> Value {
        let printed = kv(&node).args(args).args(["-o", "json"]).output().unwrap();
        serde_json::from_slice(&printed.stdout).unwrap()
    };
    let listed = document(&["list"]);
    assert_eq!(
        (&listed[0]["key"], &listed[0]["value"]),
        (&json!({ "base64": "a//+" }), &json!({ "base64": "AP8KCcBlbmQ=" }))
    );
    // What looks the same and is text, is a string, and does not look the same where programs read rows.
    assert!(node.kv(&["put", r"k\xff\xfe", "text"]).status.success());
    let rows = kv(&node).args(["list", "-o", "simple"]).output().unwrap();
    assert_eq!(text(&rows.stdout), concat!(r"k\\xff\\xfe	3	text", "\n", r"k\xff\xfe	2	\x00\xff\n\t\xc0end", "\n"));
    assert_eq!(document(&["list"])[0]["key"], json!(r"k\xff\xfe"));
    assert!(kv(&node).args(["del"]).arg(key).output().unwrap().status.success());
    assert_eq!(document(&["list", "--count"])["count"], 1);
    // A cell may be as wide as any value.
    let wide = "x".repeat(70_000);
    assert!(node.kv(&["put", "wide", &wide]).status.success());
    let listed = kv(&node).args(["list"]).output().unwrap();
    assert!(listed.status.success() && text(&listed.stdout).contains(&wide), "{}", text(&listed.stderr));
}

#[test]
fn scripts_get_rows() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let simple = |args: &[&str]| {
        let output = run(&[args, &["-o", "simple", "--endpoints", &node.address]].concat());
        (output.status.code(), text(&output.stdout))
    };
    assert_eq!(simple(&["kv", "put", "a", "one\ttwo\nthree"]), (Some(0), "2\n".into()));
    assert_eq!(simple(&["kv", "put", "a", "four", "--prev"]), (Some(0), "3\tone\\ttwo\\nthree\n".into()));
    assert_eq!(simple(&["lease", "grant", "600", "--id", "4a1c"]), (Some(0), "4a1c\n".into()));
    assert_eq!(simple(&["kv", "put", "b", "v", "--lease", "4a1c"]), (Some(0), "4\n".into()));
    assert_eq!(simple(&["kv", "txn", "--if", "version(a) = 9", "--else", "get b"]).1, "false\n1\tget\tb\t4\tv\n");
    let all = ["--then", "get none", "--then", "put t -1", "--then", "del none"];
    assert_eq!(simple(&[&["kv", "txn"], &all[..]].concat()).1, "true\n2\tput\t5\n3\tdel\t0\n");
    assert_eq!(simple(&["kv", "del", "t"]), (Some(0), "1\n".into()));
    assert_eq!(simple(&["kv", "del", "b"]), (Some(0), "1\n".into()));
    assert_eq!(simple(&["kv", "list"]), (Some(0), "a\t3\tfour\n".into()));
    assert_eq!(simple(&["alarm", "list"]), (Some(0), String::new()));
    assert_eq!(simple(&["auth", "role", "list"]), (Some(0), String::new()));
    let backup = dir.path().join("backup").to_str().unwrap().to_owned();
    let saved = simple(&["snapshot", "save", &backup]).1;
    assert!(saved.starts_with(&format!("{backup}\t")) && saved.split('\t').count() == 7, "{saved}");
    assert_eq!(simple(&["snapshot", "status", &backup]).1, saved);
    let mut watch =
        kv(&node).args(["watch", "", "--prefix", "--revision", "2", "--prev", "-o", "simple"]).spawn().unwrap();
    let mut line = lines(watch.stdout.take().unwrap());
    assert_eq!(
        [line(), line(), line(), line()],
        ["2\tput\ta\tone\\ttwo\\nthree", "3\tput\ta\tfour\tone\\ttwo\\nthree", "4\tput\tb\tv", "5\tput\tt\t-1"]
    );
    watch.kill().unwrap();
    watch.wait().unwrap();
    // Nothing is left out in silence, and what was not there is said in every form.
    assert!(node.kv(&["put", "c", "v"]).status.success());
    let some = node.kv(&["list", "--limit", "1", "-o", "json"]);
    assert!(text(&some.stderr).contains("more keys than these 1"), "{}", text(&some.stderr));
    for form in ["table", "json", "simple"] {
        fails(1, &["\"nothing\" does not exist"], &["kv", "del", "nothing", "-o", form, "--endpoints", &node.address]);
    }
}

#[test]
fn numbers_have_bounds_that_are_said() {
    for (words, args) in [
        (["\"-1\"", "from 0 to 9223372036854775807"], &["kv", "get", "k", "--revision", "-1"][..]),
        (["\"9223372036854775808\"", "from 0 to 9223372036854775807"], &["kv", "compact", "9223372036854775808"]),
        (["\"x\"", "from 0 to 9223372036854775807"], &["kv", "put", "k", "v", "--if-revision", "x"]),
        (["\"1.5\"", "from 0 to"], &["kv", "list", "--limit", "1.5"]),
        (["\"0\"", "from 1 to"], &["cluster", "remove", "0"]),
        (["\"one\"", "id of a member"], &["worker", "drain", "one"]),
        (["\"0\"", "from 1 to 9000000000 seconds"], &["lease", "grant", "0"]),
        (["\"1500ms\"", "whole ones"], &["lease", "grant", "1500ms"]),
        (["\"1\"", "from 2 to"], &["lock", "a", "--ttl", "1", "--", "true"]),
        (["\"1001\"", "from 0 to 1000"], &["run", "--retries", "1001", "--", "true"]),
        (["\"0\"", "from 1 to 10000"], &["bench", "put", "--clients", "0"]),
        (["\"soon\"", "number of milliseconds"], &["start", "--data-dir", "unused", "--election-timeout-ms", "soon"]),
    ] {
        fails(2, &words, args);
    }
}

#[test]
fn what_cannot_be_printed_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let full = kv(&node).args(["put", "a", "v"]).stdout(File::create("/dev/full").unwrap()).output().unwrap();
    assert_eq!(full.status.code(), Some(1));
    assert!(text(&full.stderr).contains("it was done, but"), "{}", text(&full.stderr));
    assert_eq!(text(&node.kv(&["get", "a"]).stdout), "v\n");
    // Whoever looks on ends when nobody reads what it sees.
    let mut watch = kv(&node).args(["watch", "a", "--revision", "2"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "2 a = v\n");
    assert!(node.kv(&["put", "a", "w"]).status.success());
    let mut status = None;
    until("it ends", || {
        status = watch.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(141));
}

#[test]
fn who_looks_on_is_told_that_nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let mut watch = kv(&node).args(["watch", "a", "--command-timeout", "1"]).spawn().unwrap();
    let (mut said, mut event) = (lines(watch.stderr.take().unwrap()), lines(watch.stdout.take().unwrap()));
    // It has begun when it tells of something; how soon that is, nobody knows.
    let first = std::thread::scope(|scope| {
        let told = scope.spawn(&mut event);
        while !told.is_finished() {
            assert!(node.kv(&["put", "a", "v"]).status.success());
        }
        told.join().unwrap()
    });
    assert!(first.ends_with("a = v"), "{first}");
    node.child.kill().unwrap();
    node.child.wait().unwrap();
    let lost = said();
    assert!(lost.contains("no member answers"), "{lost}");
    let address = node.address.clone();
    let again = Running::member(dir.path(), "n1", &address, &[]);
    assert_eq!(said(), "a member answers again");
    watch.kill().unwrap();
    watch.wait().unwrap();
    drop(again);
    let nobody = ["--endpoints", &address, "--command-timeout", "1"];
    fails(3, &["tcp connect error"], &[&["kv", "watch", "a"], &nobody[..]].concat());
    fails(2, &["HOST:PORT alone"], &["kv", "get", "a", "--endpoints", "http://127.0.0.1:7400"]);
}

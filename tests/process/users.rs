//! Users and roles, as they are typed.

use std::io::{Read as _, Write as _};
use std::process::{Output, Stdio};

use super::running::{PATIENCE, Running, node, run, text, until};
use super::{fails, http};

/// Runs a command that reads a password.
fn told(args: &[&str], password: &str) -> Output {
    let mut child = node();
    let child = child.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.as_ref().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn users_do_what_they_may() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
    let token = token.to_str().unwrap();
    let server = Running::member(
        dir.path(),
        "n1",
        "127.0.0.1:0",
        &["--bootstrap", "--token-file", token, "--keys-quota", "64Ki"],
    );
    let at = ["--endpoints", &server.address];
    let with =
        |args: &[&str], more: &[&str]| [args, &at, more].concat().into_iter().map(String::from).collect::<Vec<_>>();
    let done = |args: &[&str], more: &[&str], password: &str| {
        let args = with(args, more);
        let output = told(&args.iter().map(String::as_str).collect::<Vec<_>>(), password);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let refused = |why: &str, args: &[&str], more: &[&str]| {
        let args = with(args, more);
        fails(1, &[why], &args.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let operator = ["--token-file", token];
    refused("those who have its token", &["kv", "get", "k"], &[]);
    refused("there is no user root", &["auth", "enable"], &operator);
    done(&["auth", "user", "add", "root"], &operator, "secret");
    refused("does not have the role root", &["auth", "enable"], &operator);
    done(&["auth", "user", "grant", "root", "root"], &operator, "");
    assert!(done(&["auth", "status"], &operator, "").contains("not enabled"));
    // A user's password is no token while it is not looked at users.
    refused("those who have its token", &["kv", "get", "k"], &["--user", "root:secret"]);
    done(&["auth", "enable"], &operator, "");
    // Whoever can speak as a member is root.
    done(&["kv", "put", "web/k", "v"], &operator, "");
    let root = ["--user", "root:secret"];
    done(&["auth", "role", "add", "web"], &root, "");
    done(&["auth", "role", "grant", "web", "readwrite", "web/", "--prefix"], &root, "");
    done(&["auth", "role", "grant", "web", "read", "a", "--to", "c"], &root, "");
    assert_eq!(
        done(&["auth", "role", "get", "web"], &root, ""),
        "ACCESS     KEYS\nread       a up to c\nreadwrite  web/*\n"
    );
    let permissions = done(&["auth", "role", "get", "web", "-o", "simple"], &root, "");
    assert_eq!(permissions, "read\ta\tc\nreadwrite\tweb/\tweb0\n");
    assert_eq!(done(&["auth", "status", "-o", "simple"], &root, "").split('\t').next(), Some("true"));
    // What is wrong, and with whom.
    for (why, args) in [
        (r#"role "web": there is such a role already"#, &["role", "add", "web"][..]),
        (r#"role "no": there is no such role"#, &["role", "get", "no"]),
        (r#"user "no": there is no such user"#, &["user", "get", "no"]),
        (r#"user "root", role "web": the user does not have that role"#, &["user", "revoke", "root", "web"]),
        (r#"role "web": the role has no permission for just this range"#, &["role", "revoke", "web", "b"]),
    ] {
        refused(why, &[&["auth"], args].concat(), &root);
    }
    for (why, args) in [
        ("<NAME>", &["user", "add", "", "--no-password"][..]),
        (r#"no key lies from "b" to "a""#, &["role", "grant", "web", "read", "b", "--to", "a"]),
        ("'' --prefix", &["role", "grant", "web", "read", ""]),
    ] {
        let args = with(&[&["auth"], args].concat(), &root);
        fails(2, &[why], &args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    done(&["auth", "user", "add", "alice"], &root, "a");
    done(&["auth", "user", "grant", "alice", "web"], &root, "");
    assert_eq!(done(&["auth", "user", "list"], &root, ""), "alice\nroot\n");
    let alice = ["--user", "alice:a"];
    assert_eq!(done(&["kv", "get", "web/k"], &alice, ""), "v\n");
    // The password is asked for.
    assert_eq!(done(&["kv", "get", "web/k"], &["--user", "alice"], "a"), "v\n");
    assert_eq!(done(&["auth", "user", "get", "alice"], &alice, ""), "web\n");
    done(&["lease", "grant", "60"], &alice, "");
    for args in [&["kv", "get", "other"][..], &["kv", "list"], &["kv", "put", "a", "1"], &["kv", "compact", "2"]] {
        refused("may not do that", args, &alice);
    }
    for args in [&["task", "list"][..], &["cluster", "remove", "1"], &["auth", "user", "list"], &["auth", "disable"]] {
        refused("may not do that", args, &alice);
    }
    refused("may not do that", &["run"], &["--user", "alice:a", "--", "true"]);
    refused("may not do that", &["snapshot", "save", dir.path().join("b").to_str().unwrap()], &alice);
    refused("authentication failed", &["kv", "get", "web/k"], &["--user", "alice:b"]);
    refused("the user may not do that", &["kv", "watch", "other"], &alice);
    refused("authentication failed", &["kv", "watch", "web/k"], &["--user", "alice:b"]);
    // By JSON the same, with the cluster's token or a user's.
    let post = |path: &str, headers: &str, body: &str| http(&server.address, &format!("POST {path}"), headers, body);
    let get = |headers: &str, key: &str| post("/v3/kv/range", headers, &format!(r#"{{"key":"{key}"}}"#));
    let (web_k, other) = ("d2ViL2s=", "b3RoZXI=");
    for (headers, key, answer) in [
        ("", web_k, "HTTP/1.1 401"),
        ("Authorization: nonsense\r\n", web_k, "HTTP/1.1 401"),
        ("Authorization: Bearer nonsense\r\n", web_k, "HTTP/1.1 401"),
        ("Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n", other, "HTTP/1.1 200"),
    ] {
        assert!(get(headers, key).starts_with(answer), "{headers} {}", get(headers, key));
    }
    // Who may not ask is not listened to for long.
    for (shown, bytes) in [("nonsense", 9000), ("Bearer nonsense", 9000), ("Bearer nonsense", 90_000_000)] {
        let mut silent = std::net::TcpStream::connect(&server.address).unwrap();
        let length = format!("Authorization: {shown}\r\nContent-Length: {bytes}");
        write!(silent, "POST /v3/kv/range HTTP/1.1\r\nHost: n1\r\n{length}\r\n\r\n").unwrap();
        silent.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 12];
        silent.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401");
    }
    let logged_in = post("/v3/auth/authenticate", "", r#"{"name":"alice","password":"a"}"#);
    let of_alice = logged_in.split_once(r#""token":""#).unwrap().1.split('"').next().unwrap();
    for header in ["Authorization", "Grpc-Metadata-Token"] {
        let headers = format!("{header}: {of_alice}\r\n");
        assert!(get(&headers, web_k).contains(r#""value":"dg==""#), "{}", get(&headers, web_k));
        assert!(get(&headers, other).starts_with("HTTP/1.1 403"), "{}", get(&headers, other));
        assert!(post("/v3/auth/user/list", &headers, "").starts_with("HTTP/1.1 403"));
        // That is all that it is good for.
        assert!(http(&server.address, "GET /metrics", &headers, "").starts_with("HTTP/1.1 401"));
    }
    // Who may not write does not fill the store up either, and roles do not grow without bound.
    let large = "x".repeat(100_000);
    refused("may not do that", &["kv", "put", "other", &large], &alice);
    done(&["kv", "put", "web/k", "v"], &root, "");
    let grant = |key: &str| with(&["auth", "role", "grant", "web", "read", key, "--to", "d"], &root);
    let grants = ["a", "b", "c"]
        .map(|first| run(&grant(&(first.to_owned() + &large)).iter().map(String::as_str).collect::<Vec<_>>()));
    assert!(grants[1].status.success() && text(&grants[2].stderr).contains("are limited to 262144"));
    // Another password, and another role. Who waits for a lock meanwhile leaves the line.
    let headers = format!("Authorization: {of_alice}\r\n");
    let lock = || {
        let granted = post("/v3/lease/grant", &headers, r#"{"TTL":600}"#);
        let lease = granted.split_once(r#""ID":""#).unwrap().1.split('"').next().unwrap();
        post("/v3/lock/lock", &headers, &format!(r#"{{"name":"d2ViL2w=","lease":"{lease}"}}"#))
    };
    let line = || done(&["kv", "list", "--prefix", "web/l/"], &root, "").matches("web/l/").count();
    assert!(lock().starts_with("HTTP/1.1 200"));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(lock);
        until("another waits for it", || line() == 2);
        done(&["auth", "user", "passwd", "alice"], &root, "b");
        assert!(waiter.join().unwrap().starts_with("HTTP/1.1 401"));
        until("who waited is gone", || line() == 1);
    });
    refused("authentication failed", &["kv", "get", "web/k"], &alice);
    done(&["auth", "role", "revoke", "web", "web/", "--prefix"], &root, "");
    refused("may not do that", &["kv", "get", "web/k"], &["--user", "alice:b"]);
    refused("stays", &["auth", "user", "delete", "root"], &root);
    done(&["auth", "disable"], &root, "");
    refused("those who have its token", &["kv", "get", "web/k"], &root);
    assert!(
        run(&with(&["kv", "get", "web/k"], &operator).iter().map(String::as_str).collect::<Vec<_>>()).status.success()
    );
}

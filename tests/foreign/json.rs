//! What grpc-gateway gives etcd's clients that speak no gRPC: the same answers as JSON, in the same statuses of HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use cairn::proto::descriptors;
use prost::Message;
use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Value, json};

use super::*;

/// What is said to a request that was posted, whose connection ends with the answer.
fn post(address: &str, path: &str, headers: &str, body: &str) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let len = body.len();
    write!(socket, "POST {path} HTTP/1.0\r\n{headers}Content-Length: {len}\r\n\r\n{body}").unwrap();
    BufReader::new(socket)
}

/// The status, and all lines before what was said.
fn status(answer: &mut impl BufRead) -> u16 {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(answer.read_line(&mut head).unwrap() > 0, "{head:?}");
    }
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The status, and what was said, if it is JSON.
fn posted(address: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
    let mut answer = post(address, path, headers, body);
    let status = status(&mut answer);
    let mut body = String::new();
    answer.read_to_string(&mut body).unwrap();
    (status, anonymous(serde_json::from_str(&body).unwrap_or_default(), true))
}

/// The same without who says it, and without what is different from one second to the next.
fn anonymous(value: Value, outer: bool) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter_map(|(name, value)| match &*name {
                "header" => outer.then(|| (name, json!({ "revision": value.get("revision") }))),
                "TTL" if value.as_str().is_some_and(|ttl| ttl.parse::<i64>().unwrap() > 0) => None,
                "keys" | "leases" => {
                    let mut all: Vec<String> = value.as_array().unwrap().iter().map(Value::to_string).collect();
                    all.sort();
                    Some((name, json!(all)))
                }
                "result" => Some((name, anonymous(value, outer))),
                _ => Some((name, anonymous(value, false))),
            });
            Value::Object(fields.collect())
        }
        Value::Array(values) => values.into_iter().map(|value| anonymous(value, false)).collect(),
        value => value,
    }
}

/// A message as JSON.
fn written(name: &str, message: &impl Message) -> String {
    let descriptor = descriptors().get_message_by_name(&format!("etcdserverpb.{name}")).unwrap();
    let message = DynamicMessage::decode(descriptor, &*message.encode_to_vec()).unwrap();
    let mut text = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut text, &SerializeOptions::new().use_proto_field_name(true)).unwrap();
    String::from_utf8(text.into_inner()).unwrap()
}

fn request(asked: &Asked) -> (&'static str, String) {
    match asked {
        Asked::Alone(Request::RequestRange(range)) => ("/v3/kv/range", written("RangeRequest", range)),
        Asked::Alone(Request::RequestPut(put)) => ("/v3/kv/put", written("PutRequest", put)),
        Asked::Alone(Request::RequestDeleteRange(delete)) => {
            ("/v3/kv/deleterange", written("DeleteRangeRequest", delete))
        }
        Asked::Alone(Request::RequestTxn(txn)) => ("/v3/kv/txn", written("TxnRequest", txn)),
        Asked::Compact(compact) => ("/v3/kv/compaction", written("CompactionRequest", compact)),
        Asked::Grant(grant) => ("/v3/lease/grant", written("LeaseGrantRequest", grant)),
        Asked::Revoke(revoke) => ("/v3/lease/revoke", written("LeaseRevokeRequest", revoke)),
        Asked::KeepAlive(keep) => ("/v3/lease/keepalive", written("LeaseKeepAliveRequest", keep)),
        Asked::TimeToLive(asked) => ("/v3/lease/timetolive", written("LeaseTimeToLiveRequest", asked)),
        Asked::Leases => ("/v3/lease/leases", String::new()),
    }
}

/// A thousand requests of all kinds, sensible and not.
#[test]
fn json_is_answered_as_etcd_answers_it() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut kinds = [0usize; 2];
    for number in 0..1_200 {
        let asked = asked().new_tree(&mut runner).unwrap().current();
        if is_deadly(&asked) {
            continue;
        }
        let (path, body) = request(&asked);
        let expected = posted(&etcd.address, path, "", &body);
        assert_eq!(posted(&node.address, path, "", &body), expected, "request {number}: {path} {body}");
        kinds[usize::from(expected.0 == 200)] += 1;
    }
    assert!(kinds.iter().all(|count| *count > 100), "refused and answered: {kinds:?}");
}

/// What takes more than clients of gRPC take at once.
#[test]
fn answers_are_as_large_as_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let story = |address: &str| {
        let value = "AAAA".repeat(340_000);
        for key in ["YQ==", "YWE=", "YWFh", "YWFhYQ==", "YWFhYWE="] {
            let put = json!({ "key": key, "value": value }).to_string();
            assert_eq!(posted(address, "/v3/kv/put", "", &put).0, 200);
        }
        let (status, all) = posted(address, "/v3/kv/range", "", r#"{"key":"YQ==","range_end":"Yg=="}"#);
        (status, all.to_string().len(), all["count"].clone())
    };
    let (ours, theirs) = (story(&node.address), story(&etcd.address));
    assert!(theirs.1 > 5 * 1_360_000);
    assert_eq!(ours, theirs);
}

/// What is no request is refused, and with the same status. How the text puts it is another matter.
#[test]
fn what_is_no_json_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    for (path, body) in [
        ("/v3/kv/range", "garbage"),
        ("/v3/kv/range", r#"{"key":"#),
        ("/v3/kv/range", r#"{"key":5}"#),
        ("/v3/kv/range", r#"{"key":"*"}"#),
        ("/v3/kv/range", r#"{"key":"YQ==","limit":"x"}"#),
        ("/v3/kv/range", r#"{"key":"YQ==","sort_order":"UP"}"#),
        ("/v3/kv/range", r#"{"key":"YQ==","nothing":[1]}"#),
        ("/v3/kv/range", r#"{"key":"YQ==","keysOnly":true,"limit":null}"#),
        ("/v3/kv/put", ""),
        ("/v3/kv/nothing", "{}"),
    ] {
        let expected = posted(&etcd.address, path, "", body).0;
        assert_eq!(posted(&node.address, path, "", body).0, expected, "{path} {body}");
    }
    // A page in a browser speaks in the name of whoever looks at it.
    let of_a_page = posted(&node.address, "/v3/kv/put", "Origin: http://elsewhere\r\n", r#"{"key":"YQ=="}"#);
    assert_eq!(of_a_page.0, 403);
    let get = |address: &str| {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"GET /v3/kv/range HTTP/1.0\r\n\r\n").unwrap();
        status(&mut BufReader::new(socket))
    };
    assert_eq!(get(&node.address), get(&etcd.address));
}

/// Watches tell, line by line, while the client goes on.
#[test]
fn streams_are_lines() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let story = |address: &str| {
        let put =
            |value: &str| posted(address, "/v3/kv/put", "", &json!({ "key": "YQ==", "value": value }).to_string());
        put("Zmlyc3Q=");
        let create = json!({ "create_request": { "key": "YQ==", "start_revision": "1", "prev_kv": true } });
        let later = json!({ "create_request": { "key": "YQ==", "start_revision": 3 } });
        let mut told = post(address, "/v3/watch", "", &format!("{create}\n{later}"));
        assert_eq!(status(&mut told), 200);
        let mut events: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for value in ["c2Vjb25k", "dGhpcmQ="] {
            put(value);
            let told_of = |events: &BTreeMap<String, Vec<Value>>| {
                let last = |all: &Vec<Value>| all.last().is_some_and(|event| event["kv"]["value"] == value);
                events.len() == 2 && events.values().all(last)
            };
            while !told_of(&events) {
                let mut line = String::new();
                told.read_line(&mut line).unwrap();
                let line: Value = serde_json::from_str(&line).unwrap();
                let result = &line["result"];
                let watch = events.entry(result["watch_id"].to_string()).or_default();
                watch.extend(result["events"].as_array().into_iter().flatten().cloned());
            }
        }
        let alive = posted(address, "/v3/lease/grant", "", r#"{"ID":"7","TTL":"60"}"#);
        let mut kept = post(address, "/v3/lease/keepalive", "", r#"{"ID":"7"} {"ID":8}"#);
        assert_eq!(status(&mut kept), 200);
        let mut nothing = post(address, "/v3/lease/keepalive", "", "");
        assert_eq!(status(&mut nothing), 200);
        assert_eq!(nothing.lines().count(), 0);
        let lines = kept.lines().map(|line| anonymous(serde_json::from_str(&line.unwrap()).unwrap(), true));
        (events, alive, lines.collect::<Vec<_>>())
    };
    assert_eq!(story(&node.address), story(&etcd.address));
}

/// Who gives only so much time is told when it is over, and not as if all were well.
#[test]
fn what_takes_too_long_is_said_to() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let story = |address: &str| {
        let lock = |lease: u64, headers: &str| {
            assert_eq!(posted(address, "/v3/lease/grant", "", &format!(r#"{{"ID":"{lease}","TTL":"60"}}"#)).0, 200);
            posted(address, "/v3/lock/lock", headers, &format!(r#"{{"name":"bG9jaw==","lease":"{lease}"}}"#))
        };
        (lock(7, "").0, lock(8, "Grpc-Timeout: 1S\r\n"))
    };
    assert_eq!(story(&node.address), story(&etcd.address));
}

/// What is no request is said after what came of those before.
#[test]
fn a_stream_that_is_spoilt_gives_what_came_before() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::member(dir.path(), "n1", "127.0.0.1:0", &["--bootstrap"]);
    let mut kept = post(&node.address, "/v3/lease/keepalive", "", r#"{"ID":"7"} nonsense"#);
    assert_eq!(status(&mut kept), 200);
    let lines: Vec<Value> = kept.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((&lines[0]["result"]["ID"], &lines[1]["error"]["grpc_code"]), (&json!("7"), &json!(3)));
}

/// Users get a token, and show it in the header that browsers know.
#[test]
fn users_come_by_json() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, node) = both(dir.path());
    let story = |address: &str| {
        let mut answers = Vec::new();
        let mut token = String::new();
        for (path, body) in [
            ("/v3/auth/user/add", r#"{"name":"root","password":"secret"}"#),
            ("/v3/auth/role/add", r#"{"name":"root"}"#),
            ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
            ("/v3/auth/enable", ""),
            ("/v3/kv/put", r#"{"key":"YQ=="}"#),
            ("/v3/auth/authenticate", r#"{"name":"root","password":"wrong"}"#),
            ("/v3/auth/authenticate", r#"{"name":"root","password":"secret"}"#),
            ("/v3/kv/put", r#"{"key":"YQ=="}"#),
            ("/v3/auth/user/list", ""),
            ("/v3/auth/disable", ""),
        ] {
            let headers = if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
            if path == "/v3/auth/authenticate" {
                // Where they are may be asked before that.
                answers.push((path, posted(address, "/v3/cluster/member/list", "", "").0, Value::Null));
            }
            if path == "/v3/auth/disable" {
                answers.push((path, posted(address, path, "Authorization: bad\r\n", body).0, Value::Null));
            }
            let (status, mut answer) = posted(address, path, &headers, body);
            if let Some(given) = answer.as_object_mut().and_then(|fields| fields.remove("token")) {
                token = given.as_str().unwrap().to_owned();
            }
            answers.push((path, status, answer));
        }
        assert!(!token.is_empty());
        answers
    };
    assert_eq!(story(&node.address), story(&etcd.address));
}

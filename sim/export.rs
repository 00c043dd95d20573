//! A history for other checkers: as a line of JSON for each operation, or as EDN, a line for each beginning and end. What was
//! done to several keys at once has a line for each; what is not about a key as it is (reads of the past, compactions) has none.
//!
//! ```text
//! {"client":1,"key":"0","op":"cas","value":"4294967296","expected":3,"call":1200000000,"return":1210000000,"type":"ok","revision":4}
//! ```
//!
//! In JSON, `op` is put, cas (a put that expects a revision; 0: that the key is absent), delete or get. `type` is ok, fail (it
//! certainly did nothing) or info (it may have happened, and may yet: `return` is null). Times are virtual, in nanoseconds.
//! An answered put or cas has the new `revision`; a cas that found another revision has `type` ok and `mismatch`, the one it
//! found; a get has `value` and `revision`, both null if the key was absent; a delete has `existed`.
//!
//! ```text
//! {:process 1, :type :invoke, :f :put, :key "0", :value "4294967296"}
//! {:process 1, :type :ok, :f :put, :key "0", :value "4294967296"}
//! {:process 2, :type :invoke, :f :get, :key "0", :value nil}
//! {:process 2, :type :ok, :f :get, :key "0", :value "4294967296"}
//! ```
//!
//! EDN has events in their order, as Jepsen writes them, in the very form that porcupine reads for its key-value model (its
//! `parseKvLog`, with `:append` left out). A process does one thing at a time: who does several has more of them, numbered by the
//! thousand, and one whose operation ended as `:info` goes on as another. What that model lacks is told in its terms: what is absent
//! has the value `""`, a removal puts that, and a put that found the revision that it expects is a put. What certainly did nothing
//! is left out; how it was answered stands in the JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::sim::history::{Op, Record, Seen};

/// The lines of a history.
pub fn json_lines(records: &[Record]) -> String {
    records.iter().filter(|record| record.is_of_now()).map(|record| line(record).to_string() + "\n").collect()
}

fn line(record: &Record) -> Value {
    let (kind, back) = match record.seen {
        Seen::NotDone | Seen::Denied | Seen::Full => ("fail", json!(record.to.as_nanos() as u64)),
        Seen::Unknown => ("info", Value::Null),
        _ => ("ok", json!(record.to.as_nanos() as u64)),
    };
    let mut line = Map::new();
    let mut set = |name: &str, value: Value| line.insert(name.into(), value);
    set("client", json!(record.client));
    set("key", json!(record.key.to_string()));
    match record.op {
        Op::Put { value, expected } => {
            set("op", json!(if expected.is_some() { "cas" } else { "put" }));
            set("value", json!(value.to_string()));
            expected.map(|expected| set("expected", json!(expected)));
        }
        Op::Delete => drop(set("op", json!("delete"))),
        Op::Get => drop(set("op", json!("get"))),
        Op::GetAt { .. } | Op::Compact { .. } => unreachable!("what is not of a key as it is has no line"),
    }
    set("call", json!(record.from.as_nanos() as u64));
    set("return", back);
    set("type", json!(kind));
    match record.seen {
        Seen::Put(revision) => drop(set("revision", json!(revision))),
        Seen::Mismatch(actual) => drop(set("mismatch", json!(actual))),
        Seen::Deleted(existed) => drop(set("existed", json!(existed))),
        Seen::Got(found) => {
            set("value", json!(found.map(|(value, _)| value.to_string())));
            set("revision", json!(found.map(|(_, revision)| revision)));
        }
        Seen::Done | Seen::Compacted | Seen::NotDone | Seen::Denied | Seen::Full | Seen::Unknown => {}
    }
    Value::Object(line)
}

/// The events of a history in EDN.
pub fn edn(records: &[Record]) -> String {
    // Clients are numbered below this, so that numbers of processes tell whose they are.
    const STRIDE: u64 = 1_000;
    let mut events: Vec<(Duration, usize, String)> = Vec::new();
    // Until when the processes of each client are busy.
    let mut processes: BTreeMap<u64, Vec<Duration>> = BTreeMap::new();
    let mut ordered: Vec<&Record> = records.iter().filter(|record| record.is_of_now()).collect();
    ordered.sort_by_key(|record| record.from);
    for (number, record) in ordered.into_iter().enumerate() {
        let Some((name, asked, got)) = edn_fields(record) else { continue };
        let busy = processes.entry(record.client).or_default();
        let free = busy.iter().position(|until| *until <= record.from).unwrap_or(busy.len());
        busy.resize(busy.len().max(free + 1), Duration::ZERO);
        let is_known = record.seen != Seen::Unknown;
        busy[free] = if is_known { record.to } else { Duration::MAX };
        let process = record.client + STRIDE * free as u64;
        let line = |kind: &str, value: &str| {
            format!("{{:process {process}, :type :{kind}, :f :{name}, :key \"{}\", :value {value}}}\n", record.key)
        };
        events.push((record.from, 2 * number, line("invoke", &asked)));
        events.push((record.to, 2 * number + 1, line(if is_known { "ok" } else { "info" }, &got)));
    }
    events.sort();
    events.into_iter().map(|(_, _, line)| line).collect()
}

/// What an operation is called, was asked, and saw; nothing of one that did nothing, or nothing that can be told.
fn edn_fields(record: &Record) -> Option<(&'static str, String, String)> {
    let text = |value: Option<u64>| format!("{:?}", value.map(|value| value.to_string()).unwrap_or_default());
    match (record.op, record.seen) {
        (_, Seen::NotDone | Seen::Denied | Seen::Full | Seen::Mismatch(_)) | (Op::Get, Seen::Unknown) => None,
        (Op::Put { value, .. }, _) => Some(("put", text(Some(value)), text(Some(value)))),
        (Op::Delete, _) => Some(("put", text(None), text(None))),
        (Op::Get, Seen::Got(found)) => Some(("get", "nil".into(), text(found.map(|(value, _)| value)))),
        (Op::Get | Op::GetAt { .. } | Op::Compact { .. }, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_in_order_and_a_process_does_one_thing_at_a_time() {
        let ms = Duration::from_millis;
        let record =
            |client, from, to, op, seen| Record { client, key: 0, op, from: ms(from), to: ms(to), seen, at: 0 };
        let put = |value, expected| Op::Put { value, expected };
        let text = edn(&[
            record(1, 1, 5, put(7, None), Seen::Unknown),
            record(2, 2, 3, Op::Get, Seen::Got(Some((7, 3)))),
            record(2, 3, 4, Op::Get, Seen::Got(None)),
            record(1, 6, 7, put(8, Some(3)), Seen::Mismatch(4)),
            record(1, 6, 8, put(9, Some(4)), Seen::Put(5)),
            record(1, 6, 8, Op::Delete, Seen::Deleted(true)),
        ]);
        let lines = [
            "{:process 1, :type :invoke, :f :put, :key \"0\", :value \"7\"}",
            "{:process 2, :type :invoke, :f :get, :key \"0\", :value nil}",
            "{:process 2, :type :ok, :f :get, :key \"0\", :value \"7\"}",
            "{:process 2, :type :invoke, :f :get, :key \"0\", :value nil}",
            "{:process 2, :type :ok, :f :get, :key \"0\", :value \"\"}",
            "{:process 1, :type :info, :f :put, :key \"0\", :value \"7\"}",
            "{:process 1001, :type :invoke, :f :put, :key \"0\", :value \"9\"}",
            "{:process 2001, :type :invoke, :f :put, :key \"0\", :value \"\"}",
            "{:process 1001, :type :ok, :f :put, :key \"0\", :value \"9\"}",
            "{:process 2001, :type :ok, :f :put, :key \"0\", :value \"\"}",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn an_unknown_outcome_has_no_end() {
        let ms = Duration::from_millis;
        let put = Op::Put { value: 7, expected: Some(0) };
        let record = |op, seen| Record { client: 1, key: 0, op, from: ms(1), to: ms(2), seen, at: 0 };
        let text = json_lines(&[record(put, Seen::Unknown), record(Op::Get, Seen::Got(Some((7, 3))))]);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["type"], "info");
        assert_eq!((&lines[0]["return"], &lines[0]["expected"]), (&Value::Null, &json!(0)));
        assert_eq!((&lines[1]["value"], &lines[1]["revision"]), (&json!("7"), &json!(3)));
        assert_eq!(lines[1]["return"], json!(2_000_000));
    }
}

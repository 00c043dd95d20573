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
//! {:process 1, :type :invoke, :f :put, :key "0", :value "4294967296", :time 1200000000}
//! {:process 1, :type :ok, :f :put, :key "0", :value "4294967296", :revision 4, :time 1210000000}
//! ```
//!
//! EDN is as Jepsen writes it and porcupine's key-value model reads it: events in the order of their times, a process does one
//! thing at a time, and one whose operation ended as `:info` goes on under another number. Puts and gets are `:put` and
//! `:get`. What that model lacks has names and fields of its own: `:cas` with the `:expected` revision, `:delete` with `:existed`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
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
    let mut events: Vec<(Duration, usize, String)> = Vec::new();
    // Clients are numbered below this, so that numbers of processes tell whose they are.
    const STRIDE: u64 = 1_000;
    let mut processes: BTreeMap<u64, u64> = BTreeMap::new();
    let mut ordered: Vec<&Record> = records.iter().filter(|record| record.is_of_now()).collect();
    ordered.sort_by_key(|record| record.from);
    for (number, record) in ordered.into_iter().enumerate() {
        let process = processes.entry(record.client).or_insert(record.client);
        let (begins, ends) = edn_fields(record);
        let head = |kind: &str| format!("{{:process {process}, :type :{kind}, ");
        let kind = match record.seen {
            Seen::NotDone | Seen::Denied | Seen::Full => "fail",
            Seen::Unknown => "info",
            _ => "ok",
        };
        let tail = |at: Duration| format!(", :time {}}}\n", at.as_nanos());
        events.push((record.from, 2 * number, head("invoke") + &begins + &tail(record.from)));
        events.push((record.to, 2 * number + 1, head(kind) + &ends + &tail(record.to)));
        if record.seen == Seen::Unknown {
            *process += STRIDE;
        }
    }
    events.sort();
    events.into_iter().map(|(_, _, line)| line).collect()
}

/// What an operation was asked, and what it saw.
fn edn_fields(record: &Record) -> (String, String) {
    let name = match record.op {
        Op::Put { expected: None, .. } => "put",
        Op::Put { expected: Some(_), .. } => "cas",
        Op::Delete => "delete",
        Op::Get => "get",
        Op::GetAt { .. } | Op::Compact { .. } => unreachable!("what is not of a key as it is has no line"),
    };
    let mut begins = format!(":f :{name}, :key \"{}\"", record.key);
    let _ = match record.op {
        Op::Put { value, expected: None } => write!(begins, ", :value \"{value}\""),
        Op::Put { value, expected: Some(expected) } => write!(begins, ", :value \"{value}\", :expected {expected}"),
        _ => write!(begins, ", :value nil"),
    };
    let mut ends = begins.clone();
    let _ = match record.seen {
        Seen::Put(revision) => write!(ends, ", :revision {revision}"),
        Seen::Mismatch(actual) => write!(ends, ", :mismatch {actual}"),
        Seen::Deleted(existed) => write!(ends, ", :existed {existed}"),
        Seen::Got(Some((value, revision))) => {
            ends.truncate(ends.len() - "nil".len());
            write!(ends, "\"{value}\", :revision {revision}")
        }
        _ => Ok(()),
    };
    (begins, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_in_order_and_a_process_that_does_not_know_goes_on_as_another() {
        let ms = Duration::from_millis;
        let record =
            |client, from, to, op, seen| Record { client, key: 0, op, from: ms(from), to: ms(to), seen, at: 0 };
        let put = Op::Put { value: 7, expected: None };
        let text = edn(&[
            record(1, 1, 5, put, Seen::Unknown),
            record(2, 2, 3, Op::Get, Seen::Got(Some((7, 3)))),
            record(1, 6, 7, Op::Put { value: 8, expected: Some(3) }, Seen::Mismatch(4)),
        ]);
        let lines = [
            "{:process 1, :type :invoke, :f :put, :key \"0\", :value \"7\", :time 1000000}",
            "{:process 2, :type :invoke, :f :get, :key \"0\", :value nil, :time 2000000}",
            "{:process 2, :type :ok, :f :get, :key \"0\", :value \"7\", :revision 3, :time 3000000}",
            "{:process 1, :type :info, :f :put, :key \"0\", :value \"7\", :time 5000000}",
            "{:process 1001, :type :invoke, :f :cas, :key \"0\", :value \"8\", :expected 3, :time 6000000}",
            "{:process 1001, :type :ok, :f :cas, :key \"0\", :value \"8\", :expected 3, :mismatch 4, :time 7000000}",
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

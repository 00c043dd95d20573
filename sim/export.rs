//! A history for other checkers: a line of JSON for each operation, in the words of Jepsen and with the fields that
//! porcupine's key-value model needs.
//!
//! ```text
//! {"client":1,"key":"0","op":"cas","value":"4294967296","expected":3,"call":1200000000,"return":1210000000,"type":"ok","revision":4}
//! ```
//!
//! `op` is put, cas (a put that expects a revision; 0: that the key is absent), delete or get. `type` is ok, fail (it
//! certainly did nothing) or info (it may have happened, and may yet: `return` is null). Times are virtual, in nanoseconds.
//! An answered put or cas has the new `revision`; a cas that found another revision has `type` ok and `mismatch`, the one it
//! found; a get has `value` and `revision`, both null if the key was absent; a delete has `existed`.

use serde_json::{Map, Value, json};

use crate::sim::history::{Op, Record, Seen};

/// The lines of a history.
pub fn json_lines(records: &[Record]) -> String {
    records.iter().map(|record| line(record).to_string() + "\n").collect()
}

fn line(record: &Record) -> Value {
    let (kind, back) = match record.seen {
        Seen::NotDone => ("fail", json!(record.to.as_nanos() as u64)),
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
        Seen::NotDone | Seen::Unknown => {}
    }
    Value::Object(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_unknown_outcome_has_no_end() {
        let ms = Duration::from_millis;
        let put = Op::Put { value: 7, expected: Some(0) };
        let record = |op, seen| Record { client: 1, key: 0, op, from: ms(1), to: ms(2), seen };
        let text = json_lines(&[record(put, Seen::Unknown), record(Op::Get, Seen::Got(Some((7, 3))))]);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["type"], "info");
        assert_eq!((&lines[0]["return"], &lines[0]["expected"]), (&Value::Null, &json!(0)));
        assert_eq!((&lines[1]["value"], &lines[1]["revision"]), (&json!("7"), &json!(3)));
        assert_eq!(lines[1]["return"], json!(2_000_000));
    }
}

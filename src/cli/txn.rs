//! `node kv txn`: comparisons, and what is done if all of them hold, or if not, in the words of etcdctl.

use std::io::Read as _;

use bytes::Bytes;
use clap::{Args, Parser};
use serde_json::{Value, json};

use super::kv::{key_json, print};
use super::output;
use super::{Connection, Failure, Output, parse};
use crate::client::{revision, with_prefix};
use crate::error::Context as _;
use crate::ids::LeaseId;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
};

const EXAMPLES: &str = "\
A comparison is TARGET(KEY) OPERATOR WORD: the target is version, created, revision, value or lease (or etcdctl's ver, create, mod, \
val), the operator =, !=, < or >, with spaces around it. A key that does not exist has version, created and revision 0.

An operation is put KEY VALUE [--lease LEASE], get KEY [--prefix] or del KEY [--prefix]. Words are quoted as in a shell.

Without any of the options, all is read from standard input as etcdctl reads it: lines of comparisons, an empty line, lines of what is \
done if they hold, an empty line, lines of what is done if not.

With -o simple the first line is true or false; then the operations that were done have rows, which begin with the operation's number \
from 1: put and the revision, del and how many keys, and for each key that was found get, key, revision and value.

Examples:
  node kv txn --if 'version(lock) = 0' --then 'put lock me' --else 'get lock'
  node kv txn --if 'value(state) = \"two words\"' --then 'put state done' --then 'del queue/ --prefix'
  printf 'revision(a) > 1\\n\\nput a x\\n\\nget a\\n' | node kv txn";

/// A transaction.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Txn {
    /// What must hold; all of them, if there are several
    #[arg(long = "if", value_name = "COMPARISON")]
    conditions: Vec<String>,
    /// What is done, in this order, if everything holds
    #[arg(long = "then", value_name = "OPERATION")]
    done: Vec<String>,
    /// What is done, in this order, if not
    #[arg(long = "else", value_name = "OPERATION")]
    otherwise: Vec<String>,
}

/// An operation's words.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum Operation {
    Put {
        key: String,
        value: String,
        #[arg(long)]
        lease: Option<LeaseId>,
    },
    Get {
        key: String,
        #[arg(long)]
        prefix: bool,
    },
    #[command(alias = "delete")]
    Del {
        key: String,
        #[arg(long)]
        prefix: bool,
    },
}

impl Txn {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let given = [&self.conditions, &self.done, &self.otherwise].map(Clone::clone);
        let parts = if given.iter().all(Vec::is_empty) { from_input()? } else { given };
        let txn = request(&parts).map_err(Failure::Usage)?;
        let has_otherwise = !txn.failure.is_empty();
        let reply = connection.client()?.txn(txn).await?;
        match connection.output {
            Output::Json => output::json(&json!({
                "held": reply.succeeded,
                "revision": revision(reply.header.as_ref()).0,
                "answers": reply.responses.iter().filter_map(answer_json).collect::<Vec<_>>(),
            })),
            Output::Simple => {
                say!("{}", reply.succeeded);
                (1..).zip(&reply.responses).for_each(|(number, answer)| simple_answer(number, answer));
            }
            Output::Table => {
                say!("{}", if reply.succeeded { "it holds" } else { "it does not hold" });
                reply.responses.iter().for_each(print_answer);
            }
        }
        match reply.succeeded || has_otherwise {
            true => Ok(()),
            false => Err(Failure::Refused("not done: what must hold does not".into())),
        }
    }
}

/// The three parts as etcdctl reads them.
fn from_input() -> Result<[Vec<String>; 3], Failure> {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    read.context(|| "read the transaction".into())?;
    let mut parts = [const { Vec::new() }; 3];
    let mut part = 0;
    for line in text.lines().map(str::trim) {
        match parts.get_mut(part) {
            Some(_) if line.is_empty() => part += 1,
            Some(lines) => lines.push(line.to_owned()),
            None if line.is_empty() => {}
            None => {
                let why =
                    format!("{line:?} comes after the third part of the transaction, which ends with an empty line");
                return Err(Failure::Usage(why));
            }
        }
    }
    Ok(parts)
}

fn request([conditions, done, otherwise]: &[Vec<String>; 3]) -> Result<TxnRequest, String> {
    let operations = |lines: &[String]| lines.iter().map(|line| operation(line)).collect::<Result<Vec<_>, _>>();
    Ok(TxnRequest {
        compare: conditions.iter().map(|line| comparison(line)).collect::<Result<_, _>>()?,
        success: operations(done)?,
        failure: operations(otherwise)?,
    })
}

fn words(line: &str) -> Result<Vec<String>, String> {
    shlex::split(line).ok_or_else(|| format!("{line:?} ends within quotes"))
}

fn comparison(line: &str) -> Result<Compare, String> {
    let wrong = |why: &str| format!("the comparison {line:?}: {why}");
    let words = words(line)?;
    let [left, operator, right] = &words[..] else {
        return Err(wrong("it has not the form TARGET(KEY) OPERATOR WORD, with spaces around the operator"));
    };
    let target = left.strip_suffix(')').and_then(|left| left.split_once('('));
    let (target, key) = target.ok_or_else(|| wrong("it does not begin with TARGET(KEY)"))?;
    let number = || right.parse::<i64>().map_err(|_| wrong(&format!("{right:?} is no number")));
    let (target, union) = match target {
        "version" | "ver" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "created" | "create" | "c" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "revision" | "mod" | "m" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "value" | "val" => (CompareTarget::Value, TargetUnion::Value(right.clone().into())),
        "lease" => {
            let lease: LeaseId = right.parse().map_err(|_| wrong(&format!("{right:?} is no lease")))?;
            (CompareTarget::Lease, TargetUnion::Lease(lease.0))
        }
        other => return Err(wrong(&format!("{other:?} is none of version, created, revision, value and lease"))),
    };
    let result = match operator.as_str() {
        "=" | "==" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        "<" => CompareResult::Less,
        ">" => CompareResult::Greater,
        other => return Err(wrong(&format!("{other:?} is none of =, !=, < and >"))),
    };
    let (result, target) = (result.into(), target.into());
    Ok(Compare { result, target, key: key.to_owned().into(), target_union: Some(union), ..Compare::default() })
}

fn operation(line: &str) -> Result<RequestOp, String> {
    let parsed: Operation = parse(words(line)?).map_err(|error| {
        let text = error.to_string();
        // What is missing stands in lines of its own.
        let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
        let why = lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned();
        format!("the operation {line:?}: {why}; write put KEY VALUE [--lease LEASE], get KEY [--prefix] or del KEY [--prefix]")
    })?;
    let range = |key: String, prefix: bool| match prefix {
        true => with_prefix(key.as_bytes()),
        false => (key.into(), Bytes::new()),
    };
    Ok(RequestOp {
        request: Some(match parsed {
            Operation::Put { key, value, lease } => {
                let (key, value, lease) = (key.into(), value.into(), lease.unwrap_or_default().0);
                Request::RequestPut(PutRequest { key, value, lease, ..PutRequest::default() })
            }
            Operation::Get { key, prefix } => {
                let (key, range_end) = range(key, prefix);
                Request::RequestRange(RangeRequest { key, range_end, ..RangeRequest::default() })
            }
            Operation::Del { key, prefix } => {
                let (key, range_end) = range(key, prefix);
                Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false })
            }
        }),
    })
}

fn answer_json(answer: &ResponseOp) -> Option<Value> {
    Some(match answer.response.as_ref()? {
        Response::ResponseRange(range) => json!({ "get": range.kvs.iter().map(key_json).collect::<Vec<_>>() }),
        Response::ResponsePut(put) => json!({ "put": { "revision": revision(put.header.as_ref()).0 } }),
        Response::ResponseDeleteRange(delete) => json!({ "deleted": delete.deleted }),
        Response::ResponseTxn(_) => return None,
    })
}

fn print_answer(answer: &ResponseOp) {
    match &answer.response {
        Some(Response::ResponseRange(range)) if range.kvs.is_empty() => say!("no such key"),
        Some(Response::ResponseRange(range)) => print(Output::Table, &range.kvs),
        Some(Response::ResponsePut(put)) => say!("revision {}", revision(put.header.as_ref())),
        Some(Response::ResponseDeleteRange(delete)) => say!("deleted {} keys", delete.deleted),
        Some(Response::ResponseTxn(_)) | None => {}
    }
}

/// Rows of the operation of this number, counted from 1: of a `get`, one for each key that was found.
fn simple_answer(number: u32, answer: &ResponseOp) {
    let row = |kind: &str, cells: &[&[u8]]| {
        output::simple(&[&[number.to_string().as_bytes(), kind.as_bytes()], cells].concat());
    };
    match &answer.response {
        Some(Response::ResponseRange(range)) => {
            for found in &range.kvs {
                row("get", &[&found.key, found.mod_revision.to_string().as_bytes(), &found.value]);
            }
        }
        Some(Response::ResponsePut(put)) => {
            row("put", &[revision(put.header.as_ref()).to_string().as_bytes()]);
        }
        Some(Response::ResponseDeleteRange(delete)) => row("del", &[delete.deleted.to_string().as_bytes()]),
        Some(Response::ResponseTxn(_)) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(part: usize, line: &str) -> String {
        let mut parts = [const { Vec::new() }; 3];
        parts[part].push(line.to_owned());
        request(&parts).unwrap_err()
    }

    #[test]
    fn words_are_quoted_as_in_a_shell() {
        let compare = comparison(r#"mod("a (b)") > '0'"#).unwrap();
        assert_eq!((&compare.key[..], compare.target_union), (&b"a (b)"[..], Some(TargetUnion::ModRevision(0))));
        let Some(Request::RequestPut(put)) = operation("put 'a b' \"c\\\"d\"").unwrap().request else { panic!() };
        assert_eq!((&put.key[..], &put.value[..]), (&b"a b"[..], &b"c\"d"[..]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused(0, "size(a) = 3").contains("\"size\" is none of"));
        assert!(refused(0, "mod(a)=3").contains("spaces around the operator"));
        assert!(refused(0, "mod(a) ~ 3").contains("\"~\" is none of"));
        assert!(refused(0, "mod(a) = x").contains("\"x\" is no number"));
        assert!(refused(0, "mod a = 3").contains("TARGET(KEY)"));
        assert!(refused(1, "put a").contains("put KEY VALUE"));
        assert!(refused(2, "drop a").contains("drop"));
        assert!(refused(2, "get 'a").contains("within quotes"));
    }
}

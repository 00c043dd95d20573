//! `node kv`.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::output::{self, printable};
use super::txn::Txn;
use super::{Connection, Failure, Output};
use crate::client::{Client, ClientError, revision};
use crate::ids::{LeaseId, Revision};
use crate::limits::RANGE_PAGE_KEYS;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, WatchCreateRequest};
use crate::proto::mvccpb::event::EventType;
use crate::proto::mvccpb::{Event, KeyValue};
use crate::state::kv::prefix_end;

/// What can be done with keys.
#[derive(Subcommand)]
pub enum Kv {
    /// Set a key
    Put {
        /// The key
        key: String,
        /// Its value
        value: String,
        /// Only if the key's revision is this one; 0: only if it does not exist
        #[arg(long, conflicts_with_all = ["prev", "lease"])]
        if_revision: Option<u64>,
        /// Print what the key held before, too
        #[arg(long)]
        prev: bool,
        /// The lease that it goes with
        #[arg(long)]
        lease: Option<LeaseId>,
    },
    /// Print a key's value
    Get {
        /// The key
        key: String,
        /// As it was at this revision of the store
        #[arg(long)]
        revision: Option<u64>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Remove a key
    #[command(visible_alias = "del")]
    Delete {
        /// The key; with --prefix, what all the keys begin with
        key: String,
        /// Only if the key's revision is this one
        #[arg(long, conflicts_with_all = ["prefix", "prev"])]
        if_revision: Option<u64>,
        /// Remove all keys that begin with it
        #[arg(long)]
        prefix: bool,
        /// Print what was removed
        #[arg(long)]
        prev: bool,
    },
    /// Print all keys with a prefix
    List {
        /// The prefix; all keys without one
        #[arg(long, default_value = "")]
        prefix: String,
        /// Keys at most; 0: all
        #[arg(long, default_value_t = RANGE_PAGE_KEYS)]
        limit: usize,
        /// As they were at this revision of the store
        #[arg(long)]
        revision: Option<u64>,
        /// What to order by
        #[arg(long, value_enum, default_value = "key")]
        sort: Sort,
        /// The greatest first
        #[arg(long)]
        descend: bool,
        /// Only say how many there are
        #[arg(long)]
        count: bool,
        #[command(flatten)]
        reading: Reading,
    },
    /// Compare keys, and do one thing or another, at once
    Txn(Txn),
    /// Print changes as they happen, until it is interrupted
    Watch {
        /// The key; with --prefix, what all the keys begin with
        key: String,
        /// Watch all keys that begin with it
        #[arg(long)]
        prefix: bool,
        /// Begin with this revision of the store; with what comes now without one
        #[arg(long)]
        revision: Option<u64>,
        /// Print what the key was before, too
        #[arg(long)]
        prev: bool,
    },
    /// Forget what was superseded before a revision
    Compact {
        /// This revision and later ones can still be read
        revision: u64,
        /// Return when it is gone from the database
        #[arg(long)]
        physical: bool,
    },
}

/// How to read.
#[derive(Args)]
pub struct Reading {
    /// Take what the first member that answers has, which may be behind
    #[arg(long)]
    serializable: bool,
}

/// What keys are ordered by.
#[derive(Clone, Copy, ValueEnum)]
pub enum Sort {
    /// The key
    Key,
    /// How often it was set
    Version,
    /// When it came into being
    Created,
    /// When it was last set
    Revision,
    /// Its value
    Value,
}

impl From<Sort> for SortTarget {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Key => Self::Key,
            Sort::Version => Self::Version,
            Sort::Created => Self::Create,
            Sort::Revision => Self::Mod,
            Sort::Value => Self::Value,
        }
    }
}

impl Kv {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.client()?;
        let as_json = connection.output == Output::Json;
        match self {
            Self::Put { key, value, if_revision, prev, lease } => {
                let (now, before) = match if_revision {
                    Some(expected) => {
                        (client.put(key.as_bytes(), value.as_bytes(), Some(Revision(*expected))).await?, None)
                    }
                    None => {
                        let (key, value) = (key.clone().into(), value.clone().into());
                        let lease = lease.unwrap_or_default().0;
                        let put = PutRequest { key, value, lease, prev_kv: *prev, ..PutRequest::default() };
                        let reply = client.put_request(put).await?;
                        (revision(reply.header.as_ref()), reply.prev_kv)
                    }
                };
                if as_json {
                    let mut document = json!({ "revision": now.0 });
                    if *prev {
                        document["previous"] = before.as_ref().map_or(Value::Null, key_json);
                    }
                    output::json(&document);
                } else {
                    say!("revision {now}");
                    before.iter().for_each(|row| say!("before: {}", printable(&row.value)));
                }
            }
            Self::Get { key, revision, reading } => {
                let range = RangeRequest {
                    key: key.clone().into(),
                    revision: number("--revision", *revision)?,
                    serializable: reading.serializable,
                    ..RangeRequest::default()
                };
                match client.range(range).await?.kvs.first() {
                    Some(row) if as_json => output::json(&key_json(row)),
                    Some(row) => say!("{}", printable(&row.value)),
                    None => return Err(Failure::NotFound(format!("the key {key:?} does not exist"))),
                }
            }
            Self::Delete { key, if_revision: Some(expected), .. } => {
                let existed = client.delete(key.as_bytes(), Some(Revision(*expected))).await?;
                deleted(key, u64::from(existed), None, connection.output)?;
            }
            Self::Delete { key, prefix, prev, .. } => {
                let (key_bytes, range_end) = match prefix {
                    true => span(key),
                    false => (key.clone().into_bytes(), Vec::new()),
                };
                let delete = DeleteRangeRequest { key: key_bytes.into(), range_end: range_end.into(), prev_kv: *prev };
                let reply = client.delete_range(delete).await?;
                deleted(key, reply.deleted.cast_unsigned(), prev.then_some(&reply.prev_kvs[..]), connection.output)?;
            }
            Self::List { prefix, limit, revision, sort, descend, count, reading } => {
                let (key, range_end) = span(prefix);
                let order = if *descend { SortOrder::Descend } else { SortOrder::Ascend };
                let plain = matches!(sort, Sort::Key) && !descend;
                let mut range = RangeRequest {
                    key: key.into(),
                    range_end: range_end.into(),
                    revision: number("--revision", *revision)?,
                    serializable: reading.serializable,
                    count_only: *count,
                    ..RangeRequest::default()
                };
                if *count {
                    let found = client.range(range).await?.count;
                    match as_json {
                        true => output::json(&json!({ "count": found })),
                        false => say!("{found}"),
                    }
                    return Ok(());
                }
                if !plain {
                    range.set_sort_order(order);
                    range.set_sort_target((*sort).into());
                }
                let rows = if plain {
                    pages(&client, range, *limit).await?
                } else {
                    range.limit = i64::try_from(*limit).unwrap_or(i64::MAX);
                    client.range(range).await?.kvs
                };
                if as_json {
                    output::json(&rows.iter().map(key_json).collect());
                } else {
                    print(connection.output, &rows);
                }
            }
            Self::Txn(txn) => txn.run(connection).await?,
            Self::Watch { key, prefix, revision, prev } => {
                let (key, range_end) = if *prefix { span(key) } else { (key.clone().into_bytes(), Vec::new()) };
                let mut watch = client.watch(WatchCreateRequest {
                    key: key.into(),
                    range_end: range_end.into(),
                    start_revision: number("--revision", *revision)?,
                    prev_kv: *prev,
                    ..WatchCreateRequest::default()
                });
                loop {
                    watch.next().await?.events.iter().for_each(|event| print_event(event, as_json));
                }
            }
            Self::Compact { revision, physical } => {
                let compact =
                    CompactionRequest { revision: number("the revision", Some(*revision))?, physical: *physical };
                client.compact(compact).await?;
                match as_json {
                    true => output::json(&json!({ "compacted": revision })),
                    false => say!("compacted up to revision {revision}"),
                }
            }
        }
        Ok(())
    }
}

/// All keys with a prefix, as a range.
pub(super) fn span(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    // No key is empty.
    let from = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
    (from, prefix_end(prefix.as_bytes()).to_vec())
}

fn number(what: &str, given: Option<u64>) -> Result<i64, Failure> {
    i64::try_from(given.unwrap_or_default()).map_err(|_| {
        let given = given.unwrap_or_default();
        Failure::Client(ClientError::Invalid(format!("{what}: {given} is no revision; the greatest is {}", i64::MAX)))
    })
}

/// Keys in their order, page by page, all as of the revision of the first page; at most `limit`, or all if that is 0.
async fn pages(client: &Client, mut range: RangeRequest, limit: usize) -> Result<Vec<KeyValue>, Failure> {
    let mut rows: Vec<KeyValue> = Vec::new();
    loop {
        let left = if limit == 0 { RANGE_PAGE_KEYS } else { (limit - rows.len()).min(RANGE_PAGE_KEYS) };
        range.limit = i64::try_from(left).unwrap_or(i64::MAX);
        let page = client.range(range.clone()).await?;
        if range.revision == 0 {
            range.revision = revision(page.header.as_ref()).0.cast_signed();
        }
        rows.extend(page.kvs);
        let Some(last) = rows.last().filter(|_| page.more && (limit == 0 || rows.len() < limit)) else {
            return Ok(rows);
        };
        // The next key there can be.
        range.key = [&last.key[..], &[0]].concat().into();
    }
}

fn deleted(key: &str, count: u64, before: Option<&[KeyValue]>, output: Output) -> Result<(), Failure> {
    let as_json = output == Output::Json;
    match (as_json, count) {
        (true, _) => {
            let mut document = json!({ "deleted": count });
            if let Some(rows) = before {
                document["previous"] = rows.iter().map(key_json).collect();
            }
            output::json(&document);
        }
        (false, 0) => return Err(Failure::NotFound(format!("the key {key:?} does not exist"))),
        (false, 1) => say!("deleted"),
        (false, _) => say!("deleted {count} keys"),
    }
    if let Some(rows) = before.filter(|_| !as_json) {
        print(output, rows);
    }
    Ok(())
}

/// One change, on a line of its own.
fn print_event(event: &Event, as_json: bool) {
    let Some(row) = &event.kv else { return };
    let gone = event.r#type() == EventType::Delete;
    if as_json {
        let mut line = if gone {
            json!({ "type": "delete", "key": printable(&row.key), "revision": row.mod_revision })
        } else {
            let mut line = key_json(row);
            line["type"] = json!("put");
            line
        };
        if let Some(before) = &event.prev_kv {
            line["previous"] = key_json(before);
        }
        say!("{line}");
        return;
    }
    let before = event.prev_kv.as_ref().map(|before| format!(" (before: {})", printable(&before.value)));
    let what = if gone { "deleted".to_owned() } else { format!("= {}", printable(&row.value)) };
    say!("{} {} {what}{}", row.mod_revision, printable(&row.key), before.unwrap_or_default());
}

pub(super) fn print(output: Output, rows: &[KeyValue]) {
    let row = |row: &KeyValue| vec![printable(&row.key), row.mod_revision.to_string(), printable(&row.value)];
    output::table(output, &["KEY", "REVISION", "VALUE"], &rows.iter().map(row).collect::<Vec<_>>());
}

/// A key as a JSON object.
pub(super) fn key_json(row: &KeyValue) -> Value {
    let mut document = json!({
        "key": printable(&row.key),
        "value": printable(&row.value),
        "revision": row.mod_revision,
        "created": row.create_revision,
        "version": row.version,
    });
    if row.lease != 0 {
        document["lease"] = json!(LeaseId(row.lease).to_string());
    }
    document
}

//! `node kv`.

use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;

use bytes::Bytes;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::listen::Listening;
use super::output::{self, bytes_json, printable};
use super::txn::Txn;
use super::units;
use super::{Connection, Failure, Output};
use crate::client::{revision, with_prefix};
use crate::error::Context as _;
use crate::ids::{LeaseId, Revision};
use crate::limits::{RANGE_PAGE_KEYS, REQUEST_BYTES_MAX};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, WatchCreateRequest};
use crate::proto::mvccpb::event::EventType;
use crate::proto::mvccpb::{Event, KeyValue};

/// An argument as it was typed, text or not.
fn typed() -> impl TypedValueParser<Value = Bytes> {
    OsStringValueParser::new().map(|given| Bytes::from(given.into_vec()))
}

/// What can be done with keys.
#[derive(Subcommand)]
pub enum Kv {
    /// Set a key
    #[command(after_help = "Examples:\n  node kv put greeting hello\n  node kv put config < config.json\n  \
        node kv put lock me --if-revision 0\n  node kv put --lease 4a1c leader n1")]
    Put {
        /// The key
        #[arg(value_parser = typed())]
        key: Bytes,
        /// Its value; without one, all of standard input
        #[arg(value_parser = typed())]
        value: Option<Bytes>,
        /// Only if the key's revision is this one; 0: only if it does not exist
        #[arg(long, conflicts_with_all = ["prev", "lease"], value_parser = units::revision)]
        if_revision: Option<i64>,
        /// Print what the key held before, too
        #[arg(long)]
        prev: bool,
        /// The lease that it goes with
        #[arg(long)]
        lease: Option<LeaseId>,
    },
    /// Print a key's value, as it is, and a line's end
    #[command(after_help = "Examples:\n  node kv get greeting\n  node kv get greeting --revision 2 -o json")]
    Get {
        /// The key
        #[arg(value_parser = typed())]
        key: Bytes,
        /// As it was at this revision of the store
        #[arg(long, value_parser = units::revision)]
        revision: Option<i64>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Remove a key
    #[command(visible_alias = "del")]
    #[command(after_help = "Examples:\n  node kv delete greeting\n  node kv delete gre --prefix --prev")]
    Delete {
        /// The key; with --prefix, what all the keys begin with
        #[arg(value_parser = typed())]
        key: Bytes,
        /// Only if the key's revision is this one
        #[arg(long, conflicts_with_all = ["prefix", "prev"], value_parser = units::revision)]
        if_revision: Option<i64>,
        /// Remove all keys that begin with it
        #[arg(long)]
        prefix: bool,
        /// Print what was removed
        #[arg(long)]
        prev: bool,
    },
    /// Print all keys with a prefix
    #[command(
        after_help = "Examples:\n  node kv list --prefix gre\n  node kv list --sort revision --descend --limit 10\n  \
        node kv list --prefix queue/ -o simple | cut -f 1"
    )]
    List {
        /// The prefix; all keys without one
        #[arg(long, default_value = "", value_parser = typed())]
        prefix: Bytes,
        /// Keys at most; 0: all [default: all; 1000 if they are sorted]
        #[arg(long, value_parser = units::whole::<i64>("number of keys", 0..=i64::MAX.cast_unsigned()))]
        limit: Option<i64>,
        /// As they were at this revision of the store
        #[arg(long, value_parser = units::revision)]
        revision: Option<i64>,
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
    #[command(
        after_help = "Examples:\n  node kv watch gre --prefix\n  node kv watch greeting --revision 2 -o json\n\n\
        Exit status: 3 if no member answers from the beginning; when none does later, it says so and goes on."
    )]
    Watch {
        /// The key; with --prefix, what all the keys begin with
        #[arg(value_parser = typed())]
        key: Bytes,
        /// Watch all keys that begin with it
        #[arg(long)]
        prefix: bool,
        /// Begin with this revision of the store; with what comes now without one
        #[arg(long, value_parser = units::revision)]
        revision: Option<i64>,
        /// Print what the key was before, too
        #[arg(long)]
        prev: bool,
    },
    /// Forget what was superseded before a revision
    #[command(after_help = "Example:\n  node kv compact 1000 --physical")]
    Compact {
        /// This revision and later ones can still be read
        #[arg(value_parser = units::revision)]
        revision: i64,
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
                let value = match value {
                    Some(value) => value.clone(),
                    None => given()?,
                };
                let (now, before) = match if_revision {
                    Some(expected) => (client.put(key, &value, Some(Revision(expected.cast_unsigned()))).await?, None),
                    None => {
                        let key = key.clone();
                        let lease = lease.unwrap_or_default().0;
                        let put = PutRequest { key, value, lease, prev_kv: *prev, ..PutRequest::default() };
                        let reply = client.put_request(put).await?;
                        (revision(reply.header.as_ref()), reply.prev_kv)
                    }
                };
                let value_before = before.as_ref().map(|row| row.value.to_vec());
                match connection.output {
                    Output::Json => {
                        let mut document = json!({ "revision": now.0 });
                        if *prev {
                            document["previous"] = before.as_ref().map_or(Value::Null, key_json);
                        }
                        output::json(&document);
                    }
                    Output::Simple => {
                        let cells = [Some(now.to_string().into_bytes()), value_before].into_iter().flatten();
                        output::simple(&cells.collect::<Vec<_>>());
                    }
                    Output::Table => {
                        say!("revision {now}");
                        value_before.iter().for_each(|before| say!("before: {}", printable(before)));
                    }
                }
            }
            Self::Get { key, revision, reading } => {
                let range = RangeRequest {
                    key: key.clone(),
                    revision: revision.unwrap_or_default(),
                    serializable: reading.serializable,
                    ..RangeRequest::default()
                };
                match (client.range(range).await?.kvs.first(), connection.output) {
                    (Some(row), Output::Json) => output::json(&key_json(row)),
                    (Some(row), Output::Simple) => output::simple(&[&row.value]),
                    (Some(row), Output::Table) => output::print(&[&row.value[..], b"\n"].concat()),
                    (None, _) => return Err(missing(key)),
                }
            }
            Self::Delete { key, if_revision: Some(expected), .. } => {
                let existed = client.delete(key, Some(Revision(expected.cast_unsigned()))).await?;
                deleted(key, u64::from(existed), None, connection.output)?;
            }
            Self::Delete { key, prefix, prev, .. } => {
                let (key_bytes, range_end) = match prefix {
                    true => with_prefix(key),
                    false => (key.clone(), Bytes::new()),
                };
                let delete = DeleteRangeRequest { key: key_bytes, range_end, prev_kv: *prev };
                let reply = client.delete_range(delete).await?;
                deleted(key, reply.deleted.cast_unsigned(), prev.then_some(&reply.prev_kvs[..]), connection.output)?;
            }
            Self::List { prefix, limit, revision, sort, descend, count, reading } => {
                let (key, range_end) = with_prefix(prefix);
                let order = if *descend { SortOrder::Descend } else { SortOrder::Ascend };
                let plain = matches!(sort, Sort::Key) && !descend;
                let mut range = RangeRequest {
                    key,
                    range_end,
                    revision: revision.unwrap_or_default(),
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
                let reply = if plain {
                    range.limit = limit.unwrap_or(0);
                    client.range_in_pages(range, RANGE_PAGE_KEYS).await?
                } else {
                    // They come in one answer.
                    range.limit = limit.unwrap_or(RANGE_PAGE_KEYS);
                    client.range(range).await?
                };
                let rows = &reply.kvs;
                if reply.more {
                    eprintln!("there are more keys than these {}; see --limit", rows.len());
                }
                if as_json {
                    output::json(&rows.iter().map(key_json).collect());
                } else {
                    print(connection.output, rows);
                }
            }
            Self::Txn(txn) => txn.run(connection).await?,
            Self::Watch { key, prefix, revision, prev } => {
                let (key, range_end) = if *prefix { with_prefix(key) } else { (key.clone(), Bytes::new()) };
                let watch = client.watch(WatchCreateRequest {
                    key,
                    range_end,
                    start_revision: revision.unwrap_or_default(),
                    prev_kv: *prev,
                    ..WatchCreateRequest::default()
                });
                let mut watch = Listening::to(watch, connection);
                while output::unprinted().is_none() {
                    watch.next().await?.iter().for_each(|event| print_event(event, connection.output));
                }
            }
            Self::Compact { revision, physical } => {
                client.compact(CompactionRequest { revision: *revision, physical: *physical }).await?;
                output::told(
                    connection.output,
                    &json!({ "compacted": revision }),
                    &[revision.to_string()],
                    format_args!("compacted up to revision {revision}"),
                );
            }
        }
        Ok(())
    }
}

/// All of standard input, which is a value; a byte more than a value may have is enough to be refused.
fn given() -> Result<Bytes, Failure> {
    let mut value = Vec::new();
    let read = std::io::stdin().lock().take(REQUEST_BYTES_MAX as u64 + 1).read_to_end(&mut value);
    Ok(read.map(|_| value.into()).context(|| "read the value from standard input".into())?)
}

fn missing(key: &[u8]) -> Failure {
    Failure::Refused(format!("the key {:?} does not exist", printable(key)))
}

fn deleted(key: &[u8], count: u64, before: Option<&[KeyValue]>, output: Output) -> Result<(), Failure> {
    match (output, count) {
        (Output::Json, _) => {
            let mut document = json!({ "deleted": count });
            if let Some(rows) = before {
                document["previous"] = rows.iter().map(key_json).collect();
            }
            output::json(&document);
        }
        (_, 0) => {}
        (Output::Simple, _) => say!("{count}"),
        (Output::Table, 1) => say!("deleted"),
        (Output::Table, _) => say!("deleted {count} keys"),
    }
    if count == 0 {
        return Err(missing(key));
    }
    if let Some(rows) = before.filter(|_| output != Output::Json) {
        print(output, rows);
    }
    Ok(())
}

/// One change, on a line of its own.
fn print_event(event: &Event, output: Output) {
    let Some(row) = &event.kv else { return };
    let gone = event.r#type() == EventType::Delete;
    let before = event.prev_kv.as_ref();
    match output {
        Output::Json => {
            let mut line = match gone {
                true => json!({ "key": bytes_json(&row.key), "revision": row.mod_revision }),
                false => key_json(row),
            };
            line["type"] = json!(if gone { "delete" } else { "put" });
            if let Some(before) = before {
                line["previous"] = key_json(before);
            }
            say!("{line}");
        }
        Output::Simple => {
            let kind = if gone { "delete" } else { "put" };
            let revision = row.mod_revision.to_string();
            let mut cells = vec![revision.as_bytes(), kind.as_bytes(), &row.key, &row.value];
            cells.extend(before.map(|before| &before.value[..]));
            output::simple(&cells);
        }
        Output::Table => {
            let before = before.map(|before| format!(" (before: {})", printable(&before.value)));
            let what = if gone { "deleted".to_owned() } else { format!("= {}", printable(&row.value)) };
            say!("{} {} {what}{}", row.mod_revision, printable(&row.key), before.unwrap_or_default());
        }
    }
}

pub(super) fn print(output: Output, rows: &[KeyValue]) {
    let row = |row: &KeyValue| vec![row.key.clone(), row.mod_revision.to_string().into(), row.value.clone()];
    output::table(output, &["KEY", "REVISION", "VALUE"], &rows.iter().map(row).collect::<Vec<_>>());
}

/// A key as a JSON object.
pub(super) fn key_json(row: &KeyValue) -> Value {
    let mut document = json!({
        "key": bytes_json(&row.key),
        "value": bytes_json(&row.value),
        "revision": row.mod_revision,
        "created": row.create_revision,
        "version": row.version,
    });
    if row.lease != 0 {
        document["lease"] = json!(LeaseId(row.lease).to_string());
    }
    document
}

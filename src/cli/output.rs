//! Tables for people, JSON for programs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Output;
use super::units::bytes_text;
use crate::ids::{ClusterId, NodeId};
use crate::proto::v1::{Member, MemberRole, StatusReply};
use crate::state::format;
use crate::state::member::is_server;

/// Why something could not be printed, the first time that happened.
static UNPRINTED: OnceLock<std::io::Error> = OnceLock::new();

/// Prints bytes to standard output. That it failed is said when the command has ended, see [`status`]; who only shows things ends
/// then, see [`unprinted`].
pub fn print(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
        // The first says most.
        let _ = UNPRINTED.set(error);
    }
}

/// Why not all could be printed.
pub fn unprinted() -> Option<&'static std::io::Error> {
    UNPRINTED.get()
}

/// The exit status of what was done, if all that there was to print could be.
pub fn status() -> i32 {
    match unprinted() {
        None => 0,
        Some(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 141,
        Some(error) => {
            eprintln!("error: it was done, but what there was to print could not be written: {error}");
            1
        }
    }
}

/// Prints one JSON document.
pub fn json(value: &Value) {
    say!("{value:#}");
}

/// Says what was done: as a document, as a row, or in words.
pub fn told(output: Output, document: &Value, row: &[impl AsRef<[u8]>], words: std::fmt::Arguments<'_>) {
    match output {
        Output::Json => json(document),
        Output::Simple => simple(row),
        Output::Table => say!("{words}"),
    }
}

/// Prints rows: below a heading in columns as wide as their widest cell, or simply, with a tab between one column and the next.
pub fn table(output: Output, head: &[&str], rows: &[Vec<impl AsRef<[u8]>>]) {
    if output == Output::Simple {
        return rows.iter().for_each(|row| simple(row));
    }
    // A row stays one line, and a column a column.
    let text = |cell: &dyn AsRef<[u8]>| printable(cell.as_ref()).replace('\n', r"\n").replace('\t', r"\t");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| text(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        // A width of the formatter's is a `u16`, and a value may be longer.
        let pad = |(cell, width): (&str, &usize)| cell.to_string() + &" ".repeat(width - cell.chars().count());
        let padded: Vec<String> = cells.zip(&widths).map(pad).collect();
        say!("{}", padded.join("  ").trim_end());
    };
    line(&mut head.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// Prints a row with a tab between one column and the next. What stands for another byte has a backslash before it, and so has a backslash.
pub fn simple(row: &[impl AsRef<[u8]>]) {
    let cell = |cell: &dyn AsRef<[u8]>| match std::str::from_utf8(cell.as_ref()) {
        Ok(text) => text.replace('\\', r"\\").replace('\t', r"\t").replace('\n', r"\n"),
        Err(_) => cell.as_ref().escape_ascii().to_string(),
    };
    say!("{}", row.iter().map(|one| cell(one)).collect::<Vec<_>>().join("\t"));
}

fn role_name(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
        MemberRole::Removed => "removed",
        MemberRole::Worker => "worker",
        MemberRole::Expected => "expected",
        MemberRole::Unspecified => "unknown",
    }
}

/// What each member said of itself; `None` of one that did not answer.
pub type Each = BTreeMap<NodeId, Option<(bool, StatusReply)>>;

fn health_name(member: &Member, answer: Option<&(bool, StatusReply)>) -> &'static str {
    match answer {
        _ if matches!(member.role(), MemberRole::Removed | MemberRole::Expected) => "-",
        Some((true, _)) => "serving",
        Some((false, _)) => "not serving",
        None => "no answer",
    }
}

/// The status of a cluster as one document.
pub fn status_json(status: &StatusReply, each: &Each) -> Value {
    let members = status.members.iter().filter_map(|row| {
        let member = row.member.as_ref()?;
        let answer = each.get(&NodeId(member.id)).and_then(Option::as_ref);
        let own = answer.map(|(_, own)| own);
        Some(json!({
            "id": member.id,
            "address": member.address,
            "role": role_name(member.role()),
            "standby": member.standby,
            "leader": member.id == status.leader,
            "matched_index": row.matched_index,
            "newest_format": own.and_then(newest_format),
            "health": health_name(member, answer),
            "applied_index": own.filter(|_| is_server(member)).map(|own| own.applied_index),
            "version": own.map(|own| &own.version),
        }))
    });
    json!({
        "cluster_id": ClusterId(status.cluster_id).hex(),
        "answered_by": status.id,
        "role": status.role,
        "leader": (status.leader != 0).then_some(status.leader),
        "term": status.term,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "joint": status.joint,
        "keys_bytes": status.keys_bytes,
        "keys_quota": quota_json(status),
        "first_index": status.first_index,
        "last_index": status.last_index,
        "cluster_time_ms": status.cluster_time_ms,
        "digest": format!("{:016x}", status.digest),
        "version": status.version,
        "format": status.format.max(format::FIRST),
        "newest_format": newest_format(status),
        "members": members.collect::<Vec<_>>(),
    })
}

/// The newest format that a member says it takes part in: a worker says nothing of it, nor does who knows of no other than the first.
fn newest_format(status: &StatusReply) -> Option<u32> {
    Some(status.newest_format).filter(|format| *format > 0)
}

/// The status of a cluster for people; simply, that of its members alone.
pub fn status_table(output: Output, status: &StatusReply, each: &Each) {
    if output == Output::Table {
        print_cluster(status);
    }
    let row = |row: &crate::proto::v1::MemberStatus| {
        let member = row.member.as_ref()?;
        let answer = each.get(&NodeId(member.id)).and_then(Option::as_ref);
        let own = |what: fn(&StatusReply) -> String| answer.map_or("-".into(), |(_, own)| what(own));
        // A worker that keeps no state has no log.
        let log = |what: fn(&StatusReply) -> String| if is_server(member) { own(what) } else { "-".into() };
        Some(vec![
            member.id.to_string(),
            member.address.clone(),
            if member.standby && member.role() != MemberRole::Removed {
                format!("{}, stands by", role_name(member.role()))
            } else {
                role_name(member.role()).into()
            },
            if member.id == status.leader { "yes".into() } else { String::new() },
            health_name(member, answer).to_owned(),
            log(|own| own.last_index.to_string()),
            log(|own| own.applied_index.to_string()),
            own(|own| own.version.clone()),
        ])
    };
    let rows: Vec<_> = status.members.iter().filter_map(row).collect();
    table(output, &["ID", "ADDRESS", "ROLE", "LEADER", "HEALTH", "LOG", "APPLIED", "VERSION"], &rows);
}

fn print_cluster(status: &StatusReply) {
    let leader = if status.leader == 0 { "none known".into() } else { format!("member {}", status.leader) };
    // Who knows of no other says nothing of it.
    let (term, format) = (status.term, status.format.max(format::FIRST));
    say!("cluster {}  leader {leader}  term {term}  format {format}", ClusterId(status.cluster_id).hex());
    say!(
        "answered by member {} ({})  committed {}  applied {}  log {}..={}",
        status.id,
        status.role,
        status.commit_index,
        status.applied_index,
        status.first_index,
        status.last_index
    );
    say!("{}\n", keys(status));
    if status.joint {
        say!("a change of members is under way: majorities of the members before and after it are needed");
    }
}

/// What keys may take at most, in bytes; null if anything.
pub fn quota_json(status: &StatusReply) -> Value {
    json!((status.keys_quota < u64::MAX).then_some(status.keys_quota))
}

/// What keys take, and what they may.
pub fn keys(status: &StatusReply) -> String {
    let most = match status.keys_quota {
        u64::MAX => "no bound".into(),
        quota => format!("at most {}", bytes_text(quota)),
    };
    format!("keys and their history take {} ({most})", bytes_text(status.keys_bytes))
}

/// Bytes in a document: a string, where they are text; else an object, `{"base64": …}`.
pub fn bytes_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// Text where bytes are text, else an escaped form.
pub fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

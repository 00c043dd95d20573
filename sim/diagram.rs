//! A run as a page: a lane for each machine, time downwards, messages between them, faults and clients beside. The page
//! is one file that needs nothing else.

use prost::Message;
use raft::eraftpb::MessageType;
use serde_json::{Value, json};

use crate::proto::v1;
use crate::raft::codec;
use crate::sim::run::{Recording, Report};
use crate::sim::trace::Note;

/// The page of a run; the run must have been recorded.
pub fn page(report: &Report, recording: &Recording) -> String {
    let data = json!({
        "title": format!("seed {}", report.seed.0),
        "verdict": report.verdict.to_string(),
        "plan": report.plan.to_string(),
        "ends": report.elapsed.as_secs_f64(),
        "machines": recording.machines.iter().map(|(machine, ids)| {
            json!({ "machine": machine, "ids": ids.iter().map(|id| id.0).collect::<Vec<_>>() })
        }).collect::<Vec<_>>(),
        "notes": recording.notes.iter().map(|(at, note)| self::note(at.as_secs_f64(), note)).collect::<Vec<_>>(),
        "clients": report.history.iter().map(|record| json!([
            record.client,
            record.from.as_secs_f64(),
            record.to.as_secs_f64(),
            format!("{:?} on {}: {:?}", record.op, record.key, record.seen),
        ])).collect::<Vec<_>>(),
    });
    // A script ends at the first such tag, wherever that stands.
    let data = data.to_string().replace("</", "<\\/");
    include_str!("diagram.html").replace("/*DATA*/null", &data)
}

fn note(at: f64, note: &Note) -> Value {
    match note {
        Note::Machine(machine, what) => json!(["machine", at, machine, what]),
        Note::Span(text, begins) => json!(["span", at, text, begins]),
        Note::Status(member, status) => {
            let text = format!(
                "{} in term {}, leader {}, commit {}, applied {}, log {}..={}, voters {:?}{}",
                status.role.name(),
                status.term,
                status.leader.map_or("unknown".into(), |id| id.to_string()),
                status.commit,
                status.applied,
                status.first,
                status.last,
                status.voters.iter().map(|id| id.0).collect::<Vec<_>>(),
                if status.joint { ", joint" } else { "" }
            );
            json!(["status", at, member.0, status.role.name(), status.term.0, text])
        }
        Note::Frame { from, to, frame, arrives } => {
            let messages = v1::RaftFrame::decode(frame.clone()).map(|frame| frame.messages).unwrap_or_default();
            let messages: Vec<_> =
                messages.into_iter().filter_map(|wire| codec::message_from_wire(wire).ok()).collect();
            let kinds = messages.iter().map(|message| {
                let kind = format!("{:?}", message.get_msg_type());
                let kind = kind.trim_start_matches("Msg").to_owned();
                let entries = match message.entries.len() {
                    0 => String::new(),
                    count => format!(", {count} entries"),
                };
                let reject = if message.reject { ", rejected" } else { "" };
                format!(
                    "{kind} in term {}, index {}, commit {}{entries}{reject}",
                    message.term, message.index, message.commit
                )
            });
            let beat = |kind| matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse);
            let class = match messages.first().map(|message| message.get_msg_type()) {
                _ if messages.iter().all(|message| beat(message.get_msg_type())) => "beat",
                Some(MessageType::MsgAppend | MessageType::MsgAppendResponse) => "append",
                Some(MessageType::MsgSnapshot) => "snapshot",
                Some(MessageType::MsgReadIndex | MessageType::MsgReadIndexResp) => "read",
                _ => "vote",
            };
            let arrives: Vec<f64> = arrives.iter().map(std::time::Duration::as_secs_f64).collect();
            json!(["frame", at, from, to, class, arrives, kinds.collect::<Vec<_>>().join("\n")])
        }
    }
}

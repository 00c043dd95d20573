//! Bytes to Raft and back: messages on the wire, records in the log.
//!
//! A log record is `crc32c (4 bytes, little-endian) ‖ encoded RaftEntry`; the checksum also covers the record's
//! index, so that a record found under another key does not pass. Whatever comes in is untrusted: garbage, truncated
//! or oversized input is an error, never a panic.

use bytes::Bytes;
use prost::Message as _;
use protobuf::{Message as _, ProtobufEnum};
use raft::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType, Snapshot};

use crate::ids::Index;
use crate::limits::ENTRY_BYTES_MAX;
use crate::proto::v1;

/// Input that is not what it claims to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct CodecError {
    what: &'static str,
    why: String,
}

fn bad(what: &'static str, why: impl ToString) -> CodecError {
    CodecError { what, why: why.to_string() }
}

/// An entry in our own encoding.
pub fn entry_to_wire(entry: &Entry) -> v1::RaftEntry {
    v1::RaftEntry {
        r#type: entry.get_entry_type().value() as u32,
        term: entry.term,
        index: entry.index,
        data: entry.data.clone(),
        context: entry.context.clone(),
    }
}

/// The reverse of [`entry_to_wire`].
///
/// # Errors
/// The type is unknown, the position is zero, the entry is too large, or a configuration change does not parse.
pub fn entry_from_wire(wire: v1::RaftEntry) -> Result<Entry, CodecError> {
    let kind = i32::try_from(wire.r#type).ok().and_then(EntryType::from_i32);
    let kind = kind.ok_or_else(|| bad("entry", format!("type {} is unknown", wire.r#type)))?;
    if wire.index == 0 || wire.term == 0 {
        return Err(bad("entry", format!("index {} and term {}; both count from 1", wire.index, wire.term)));
    }
    let size = wire.data.len() + wire.context.len();
    if size > ENTRY_BYTES_MAX {
        return Err(bad("entry", format!("{size} bytes at index {}; at most {ENTRY_BYTES_MAX}", wire.index)));
    }
    match kind {
        EntryType::EntryNormal => {}
        // We only ever propose version 2.
        EntryType::EntryConfChange => return Err(bad("entry", "a configuration change of version 1")),
        EntryType::EntryConfChangeV2 => {
            conf_change(&wire.data)?;
            v1::MemberChange::decode(&*wire.context).map_err(|error| bad("change of members", error))?;
        }
    }
    let mut entry = Entry::default();
    entry.set_entry_type(kind);
    entry.term = wire.term;
    entry.index = wire.index;
    entry.data = wire.data;
    entry.context = wire.context;
    Ok(entry)
}

/// A message in our own encoding. Of a snapshot it says only what it is: the body travels by itself.
pub fn message_to_wire(message: &Message) -> v1::RaftMessage {
    sealed(v1::RaftMessage {
        r#type: message.get_msg_type().value() as u32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.iter().map(entry_to_wire).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.clone(),
        priority: message.priority,
        request_snapshot: message.request_snapshot,
        snapshot: (message.get_msg_type() == MessageType::MsgSnapshot)
            .then(|| snapshot_to_wire(message.get_snapshot())),
        checksum: 0,
    })
}

/// The message with its checksum: over every number, 8 bytes each and little-endian, and every run of bytes, its length
/// first, in the order of the fields.
pub fn sealed(message: v1::RaftMessage) -> v1::RaftMessage {
    fn numbers<const N: usize>(sum: u32, numbers: [u64; N]) -> u32 {
        crc32c::crc32c_append(sum, numbers.map(u64::to_le_bytes).as_flattened())
    }
    let bytes = |sum: u32, bytes: &[u8]| crc32c::crc32c_append(numbers(sum, [bytes.len() as u64]), bytes);
    let m = &message;
    let head = [m.r#type.into(), m.to, m.from, m.term, m.log_term, m.index, m.entries.len() as u64];
    let mut sum = numbers(0, head);
    for entry in &m.entries {
        sum = numbers(sum, [entry.r#type.into(), entry.term, entry.index]);
        sum = bytes(bytes(sum, &entry.data), &entry.context);
    }
    sum = numbers(sum, [m.commit, m.commit_term, m.reject.into(), m.reject_hint]);
    sum = numbers(bytes(sum, &m.context), [m.priority.cast_unsigned(), m.request_snapshot]);
    if let Some(snapshot) = &m.snapshot {
        let body = snapshot.body.unwrap_or_default();
        sum = numbers(sum, [snapshot.index, snapshot.term, body.digest, body.chunks]);
        sum = bytes(sum, &snapshot.conf_state);
    }
    v1::RaftMessage { checksum: sum, ..message }
}

fn snapshot_to_wire(snapshot: &Snapshot) -> v1::RaftSnapshot {
    let meta = snapshot.get_metadata();
    v1::RaftSnapshot {
        index: meta.index,
        term: meta.term,
        conf_state: conf_state_bytes(meta.get_conf_state()),
        body: Some(snapshot_body(snapshot).expect("this member wrote it")),
    }
}

/// A snapshot as raft-rs takes it.
///
/// # Errors
/// The configuration does not parse, or what the body is like is missing.
pub fn snapshot(wire: &v1::RaftSnapshot) -> Result<Snapshot, CodecError> {
    let body = wire.body.ok_or_else(|| bad("snapshot", "nothing is said of its body"))?;
    let mut snapshot = Snapshot::default();
    snapshot.data = body.encode_to_vec().into();
    let meta = snapshot.mut_metadata();
    (meta.index, meta.term) = (wire.index, wire.term);
    meta.set_conf_state(conf_state(&wire.conf_state)?);
    Ok(snapshot)
}

/// What a snapshot's body is like.
///
/// # Errors
/// It was not made by [`snapshot`].
pub fn snapshot_body(snapshot: &Snapshot) -> Result<v1::SnapshotBody, CodecError> {
    v1::SnapshotBody::decode(&*snapshot.data).map_err(|error| bad("snapshot", error))
}

/// A chunk of a snapshot's body, with its checksum.
pub fn chunk_to_wire(number: u64, data: Bytes) -> v1::SnapshotChunk {
    v1::SnapshotChunk { checksum: checksum(Index(number), &data), data }
}

/// The reverse of [`chunk_to_wire`].
///
/// # Errors
/// The checksum does not match.
pub fn chunk_from_wire(number: u64, chunk: v1::SnapshotChunk) -> Result<Bytes, CodecError> {
    let computed = checksum(Index(number), &chunk.data);
    if computed != chunk.checksum {
        return Err(bad("snapshot", format!("chunk {number} is corrupt: {computed:08x}, not {:08x}", chunk.checksum)));
    }
    Ok(chunk.data)
}

/// The reverse of [`message_to_wire`]. Whether the message makes sense is for [`super::validate`] to say.
///
/// # Errors
/// The checksum does not match, the type is unknown, or an entry is not one.
pub fn message_from_wire(wire: v1::RaftMessage) -> Result<Message, CodecError> {
    let stored = wire.checksum;
    let wire = sealed(wire);
    if stored != wire.checksum {
        let why = format!("it is corrupt: its checksum is {stored:08x}, its fields give {:08x}", wire.checksum);
        return Err(bad("raft message", why));
    }
    let kind = i32::try_from(wire.r#type).ok().and_then(MessageType::from_i32);
    let kind = kind.ok_or_else(|| bad("raft message", format!("type {} is unknown", wire.r#type)))?;
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.to = wire.to;
    message.from = wire.from;
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    // A read request's entry carries only its context, at no position.
    message.entries = match kind {
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            wire.entries.into_iter().map(context_entry).collect::<Result<Vec<_>, _>>()?.into()
        }
        _ => wire.entries.into_iter().map(entry_from_wire).collect::<Result<Vec<_>, _>>()?.into(),
    };
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.context = wire.context;
    message.priority = wire.priority;
    message.request_snapshot = wire.request_snapshot;
    match (&wire.snapshot, kind) {
        (Some(wire), MessageType::MsgSnapshot) => message.set_snapshot(snapshot(wire)?),
        (None, MessageType::MsgSnapshot) => return Err(bad("raft message", "a snapshot without one")),
        (Some(_), _) => return Err(bad("raft message", "a snapshot where none belongs")),
        (None, _) => {}
    }
    Ok(message)
}

fn context_entry(wire: v1::RaftEntry) -> Result<Entry, CodecError> {
    if (wire.r#type, wire.term, wire.index) != (0, 0, 0) || !wire.context.is_empty() {
        return Err(bad("read request", "its entry is more than a context"));
    }
    let mut entry = Entry::default();
    entry.data = wire.data;
    Ok(entry)
}

/// Covers the number under which the bytes stand, too.
fn checksum(index: Index, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.0.to_le_bytes()), payload)
}

/// A log record.
pub fn record(entry: &Entry) -> Vec<u8> {
    let wire = entry_to_wire(entry);
    let mut out = Vec::with_capacity(4 + wire.encoded_len());
    out.extend_from_slice(&[0; 4]);
    wire.encode(&mut out).expect("a vector grows as needed");
    let sum = checksum(Index(entry.index), &out[4..]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The entry of the record found at `index`.
///
/// # Errors
/// The checksum does not match, or the record is not one of that index.
pub fn entry_of_record(index: Index, record: &[u8]) -> Result<Entry, CodecError> {
    let (sum, payload) = record.split_at_checked(4).ok_or_else(|| bad("log record", "shorter than its checksum"))?;
    let (stored, computed) = (u32::from_le_bytes(sum.try_into().expect("split at 4")), checksum(index, payload));
    if stored != computed {
        return Err(bad(
            "log record",
            format!("index {index} is corrupt: its checksum is {stored:08x}, its bytes give {computed:08x}"),
        ));
    }
    let wire = v1::RaftEntry::decode(payload).map_err(|error| bad("log record", error))?;
    if wire.index != index.0 {
        return Err(bad("log record", format!("index {} stands at {index}", wire.index)));
    }
    entry_from_wire(wire)
}

/// A configuration change.
///
/// # Errors
/// The bytes are not one.
pub fn conf_change(data: &[u8]) -> Result<ConfChangeV2, CodecError> {
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(data).map_err(|error| bad("configuration change", error))?;
    if change.changes.iter().any(|single| single.node_id == 0) {
        return Err(bad("configuration change", "names member 0; members count from 1"));
    }
    Ok(change)
}

/// A configuration, encoded: the same bytes on all members, though raft-rs lists ids in an order that depends on how it
/// came to them.
pub fn conf_state_bytes(state: &ConfState) -> Bytes {
    let mut state = state.clone();
    for ids in [&mut state.voters, &mut state.learners, &mut state.voters_outgoing, &mut state.learners_next] {
        ids.sort_unstable();
    }
    state.write_to_bytes().expect("a message without required fields").into()
}

/// The reverse of [`conf_state_bytes`].
///
/// # Errors
/// The bytes are not one.
pub fn conf_state(bytes: &[u8]) -> Result<ConfState, CodecError> {
    let mut state = ConfState::default();
    state.merge_from_bytes(bytes).map_err(|error| bad("configuration", error))?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_entry() -> impl Strategy<Value = Entry> {
        (1u64.., 1u64.., proptest::collection::vec(any::<u8>(), 0..64)).prop_map(|(index, term, data)| {
            let mut entry = Entry::default();
            entry.index = index;
            entry.term = term;
            entry.data = data.into();
            entry
        })
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let kinds = prop::sample::select(vec![
            MessageType::MsgAppend,
            MessageType::MsgAppendResponse,
            MessageType::MsgRequestVote,
            MessageType::MsgHeartbeatResponse,
            MessageType::MsgTimeoutNow,
        ]);
        let numbers = proptest::array::uniform8(any::<u64>());
        let entries = proptest::collection::vec(any_entry(), 0..4);
        let context = proptest::collection::vec(any::<u8>(), 0..16);
        (kinds, numbers, entries, context, any::<bool>(), any::<i64>()).prop_map(
            |(kind, n, entries, context, reject, priority)| {
                let mut message = Message::default();
                message.set_msg_type(kind);
                [message.to, message.from, message.term, message.log_term] = [n[0], n[1], n[2], n[3]];
                [message.index, message.commit, message.commit_term, message.reject_hint] = [n[4], n[5], n[6], n[7]];
                message.entries = entries.into();
                message.context = context.into();
                message.reject = reject;
                message.priority = priority;
                message
            },
        )
    }

    proptest! {
        #[test]
        fn messages_round_trip(message in any_message()) {
            let bytes = message_to_wire(&message).encode_to_vec();
            let back = message_from_wire(v1::RaftMessage::decode(&*bytes).unwrap()).unwrap();
            prop_assert_eq!(back, message);
        }

        #[test]
        fn a_flipped_bit_changes_no_message(message in any_message(), at in any::<prop::sample::Index>()) {
            let mut bytes = message_to_wire(&message).encode_to_vec();
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(back) = v1::RaftMessage::decode(&*bytes).map_err(|_| ()).and_then(|wire| message_from_wire(wire).map_err(|_| ())) {
                prop_assert_eq!(back, message, "it passed as another one");
            }
        }

        #[test]
        fn records_round_trip_and_every_flipped_bit_is_seen(entry in any_entry(), at in any::<prop::sample::Index>()) {
            let mut bytes = record(&entry);
            prop_assert_eq!(&entry_of_record(Index(entry.index), &bytes).unwrap(), &entry);
            prop_assert!(entry_of_record(Index(entry.index ^ 1), &bytes).is_err(), "a record passed at another index");
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(entry_of_record(Index(entry.index), &bytes).is_err(), "a flipped bit passed");
        }

        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), index in 1u64..) {
            prop_assert!(entry_of_record(Index(index), &bytes).is_err());
            if let Ok(frame) = v1::RaftFrame::decode(&*bytes) {
                for message in frame.messages {
                    let _ = message_from_wire(message);
                }
            }
            let _ = conf_state(&bytes);
            let _ = conf_change(&bytes);
        }
    }

    #[test]
    fn a_configuration_is_the_same_bytes_in_whatever_order() {
        let state = |voters: &[u64], learners: &[u64]| {
            let mut state = ConfState::default();
            state.set_voters(voters.to_vec());
            state.set_learners(learners.to_vec());
            conf_state_bytes(&state)
        };
        assert_eq!(state(&[3, 1, 2], &[5, 4]), state(&[1, 2, 3], &[4, 5]));
        assert_ne!(state(&[1, 2], &[3]), state(&[1, 2, 3], &[]));
    }

    #[test]
    fn oversized_and_unknown_entries_are_refused() {
        let entry = |kind, len| v1::RaftEntry {
            r#type: kind,
            term: 1,
            index: 1,
            data: vec![0; len].into(),
            context: Bytes::new(),
        };
        assert!(entry_from_wire(entry(0, ENTRY_BYTES_MAX)).is_ok());
        assert!(entry_from_wire(entry(0, ENTRY_BYTES_MAX + 1)).is_err());
        assert!(entry_from_wire(entry(1, 0)).is_err());
        assert!(entry_from_wire(entry(9, 0)).is_err());
    }
}

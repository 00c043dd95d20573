//! Alarms, as etcd has them: while one is raised, some requests are refused on all members, until an operator disarms it.
//!
//! ```text
//!   (a leader's keys take more than they may) ──► no space: what adds to the keys is refused ──(disarmed)──► as before
//! ```

use std::ops::ControlFlow;

use prost::Message;

use super::kv::{self, header};
use super::machine::Apply;
use super::member;
use super::table::{ALL, Read, Table, each};
use crate::error::{Fault, KvReject, Reject};
use crate::ids::NodeId;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmResponse, AlarmType};
use crate::proto::v1::{self, command::Kind};

fn key(alarm: &AlarmMember) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&alarm.member_id.to_be_bytes());
    key[8..].copy_from_slice(&alarm.alarm.to_be_bytes());
    key
}

/// Checks what an operator asks for without the state.
///
/// # Errors
/// Action or type are none that this version knows.
pub fn check(request: &AlarmRequest) -> Result<(), Reject> {
    let invalid = |field: &str, why: &str| Err(Reject::Invalid { field: field.into(), why: why.into() });
    match (AlarmAction::try_from(request.action), AlarmType::try_from(request.alarm)) {
        (Err(_), _) => invalid("action", "none that this version knows"),
        (_, Err(_)) => invalid("alarm", "none that this version knows"),
        (Ok(AlarmAction::Activate), Ok(AlarmType::None)) => invalid("alarm", "missing; it says what to raise"),
        _ => Ok(()),
    }
}

/// Raises an alarm of a member, or disarms it; gives it if it is raised, or was.
pub(super) fn change(apply: &mut Apply<'_>, request: &AlarmRequest) -> Result<Result<AlarmResponse, Reject>, Fault> {
    let alarm = AlarmMember { member_id: request.member_id, alarm: request.alarm };
    let (kind, member) = (alarm.alarm(), NodeId(alarm.member_id));
    let alarms = match request.action() {
        AlarmAction::Get => all(&apply.rows, request)?,
        AlarmAction::Activate if !member::is_live(&apply.rows, member)? => {
            return Ok(Err(Reject::NotFound(format!("member {member}"))));
        }
        AlarmAction::Activate => {
            if apply.rows.get(Table::Alarms, &key(&alarm))?.is_none() {
                apply.rows.put(Table::Alarms, &key(&alarm), &alarm.encode_to_vec())?;
                *count(&mut apply.head, kind) += 1;
            }
            vec![alarm]
        }
        AlarmAction::Deactivate => {
            let was = apply.rows.remove(Table::Alarms, &key(&alarm))?;
            *count(&mut apply.head, kind) -= u64::from(was);
            was.then_some(alarm).into_iter().collect()
        }
    };
    Ok(Ok(AlarmResponse { header: header(apply.head.revision), alarms }))
}

fn count(head: &mut v1::Head, kind: AlarmType) -> &mut u64 {
    match kind {
        AlarmType::Nospace => &mut head.alarms_no_space,
        AlarmType::Corrupt | AlarmType::None => &mut head.alarms_corrupt,
    }
}

/// The alarms of a member and a type, or of all.
///
/// # Errors
/// The database failed.
pub fn all(rows: &impl Read, asked: &AlarmRequest) -> Result<Vec<AlarmMember>, Fault> {
    let mut alarms = Vec::new();
    each(rows, Table::Alarms, ALL, |alarm: AlarmMember| {
        let of_member = [0, alarm.member_id].contains(&asked.member_id);
        if of_member && [AlarmType::None as i32, alarm.alarm].contains(&asked.alarm) {
            alarms.push(alarm);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(alarms)
}

/// Whether a command adds to the keys. A transaction does if either of its branches may.
pub fn adds(kind: &Kind) -> bool {
    match kind {
        Kind::Put(_) | Kind::LeaseGrant(_) => true,
        Kind::Txn(txn) => kv::puts(txn),
        Kind::Batch(batch) => batch.commands.iter().filter_map(|command| command.kind.as_ref()).any(adds),
        _ => false,
    }
}

/// Why a command is refused while these alarms are raised.
pub(super) fn refusal(head: &v1::Head, kind: &Kind) -> Option<KvReject> {
    let is_about_keys = || {
        matches!(
            kind,
            Kind::Put(_)
                | Kind::DeleteRange(_)
                | Kind::Txn(_)
                | Kind::Compact(_)
                | Kind::LeaseGrant(_)
                | Kind::LeaseRevoke(_)
        )
    };
    if head.alarms_corrupt > 0 && is_about_keys() {
        return Some(KvReject::Corrupt);
    }
    (head.alarms_no_space > 0 && adds(kind)).then_some(KvReject::NoSpace)
}

//! `node alarm`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::output;
use super::{Connection, Failure, Output};
use crate::proto::etcdserverpb::{AlarmMember, AlarmType};

/// What can be done with alarms.
#[derive(Subcommand)]
pub enum Alarm {
    /// Print the alarms that are raised
    List,
    /// Disarm all alarms that are raised: what they kept from being done is done again
    Disarm,
}

/// What an alarm says.
fn what(alarm: &AlarmMember) -> &'static str {
    match alarm.alarm() {
        AlarmType::Nospace => "no space: what adds to the keys is refused",
        AlarmType::Corrupt => "corrupt: keys and leases are not changed",
        AlarmType::None => "of a kind that this version does not know",
    }
}

fn as_json(alarm: &AlarmMember) -> Value {
    json!({ "member": alarm.member_id, "alarm": alarm.alarm().as_str_name() })
}

impl Alarm {
    pub(super) async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.client()?;
        let mut alarms = client.alarms().await?;
        let disarms = matches!(self, Self::Disarm);
        if disarms {
            let mut disarmed = Vec::new();
            for alarm in alarms {
                // Another may have been faster.
                if client.disarm(alarm).await? {
                    disarmed.push(alarm);
                }
            }
            alarms = disarmed;
        }
        let status = client.status().await?;
        if disarms && status.keys_bytes > status.keys_quota {
            eprintln!("keys take more than they may still: what adds to them will raise the alarm again");
        }
        match connection.output {
            Output::Json => output::json(&json!({
                "keys_bytes": status.keys_bytes,
                "keys_quota": output::quota_json(&status),
                (if disarms { "disarmed" } else { "alarms" }): alarms.iter().map(as_json).collect::<Vec<_>>(),
            })),
            Output::Simple => {
                let row = |alarm: &AlarmMember| [alarm.member_id.to_string(), alarm.alarm().as_str_name().to_owned()];
                alarms.iter().for_each(|alarm| output::simple(&row(alarm)));
            }
            Output::Table => {
                say!("{}", output::keys(&status));
                if alarms.is_empty() {
                    say!("no alarm is raised");
                }
                let before = if disarms { "disarmed what " } else { "" };
                alarms.iter().for_each(|alarm| say!("{before}member {} raised: {}", alarm.member_id, what(alarm)));
            }
        }
        Ok(())
    }
}

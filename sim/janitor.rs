//! Who sees to alarms: in runs where keys may take little, a client that makes room when it is told that there is none.

use std::sync::Mutex;
use std::time::Duration;

use crate::client::{Client, ClientError};
use crate::io::RngStream;
use crate::sim::door::Door;
use crate::sim::history::Op;
use crate::sim::load::{Ask, Notes};

/// The number of this client.
pub const JANITOR: u64 = 98;

/// When an alarm was certainly raised: from the answer that said so until the question that disarmed it.
pub type Spell = (Duration, Duration);

/// What it has seen.
#[derive(Default)]
pub struct Janitor {
    spells: Mutex<Vec<Spell>>,
}

impl Janitor {
    /// When an alarm was raised.
    pub fn spells(&self) -> Vec<Spell> {
        self.spells.lock().unwrap().clone()
    }

    /// Looks for alarms for ever. Each stays for a while; then what was superseded is compacted, and it is disarmed.
    pub async fn watch(&self, client: &Client, mut rng: RngStream, notes: Notes<'_>) {
        let door = Door::Own(client.clone());
        // Something that was asked for may be done at any time.
        let mut doubtful = false;
        loop {
            client.pause(Duration::from_millis(rng.range(200, 1_500))).await;
            let Ok(alarms) = client.alarms().await else { continue };
            let raised = (notes.elapsed)();
            if alarms.is_empty() {
                continue;
            }
            client.pause(Duration::from_millis(rng.range(0, 2_000))).await;
            let newest = notes.perform(&door, Ask::One(0, Op::Get)).await.first().map_or(0, |record| record.at);
            if newest > 0 {
                notes.perform(&door, Ask::One(0, Op::Compact { revision: newest })).await;
            }
            if !doubtful {
                self.spells.lock().unwrap().push((raised, (notes.elapsed)()));
            }
            for alarm in alarms {
                // What fails is seen to when it looks again.
                doubtful |= matches!(client.disarm(alarm).await, Err(ClientError::Unknown(_)));
            }
        }
    }
}

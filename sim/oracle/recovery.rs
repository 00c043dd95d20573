//! Oracle 10: a healed majority elects, serves and converges within a bound, though the others stay broken for ever (Raft
//! paper, §5.6: the timing requirement, given a majority that can talk; TigerBeetle's liveness mode).

use std::time::Duration;

use crate::io::RngStream;
use crate::sim::fault::Place;

/// How long a healed cluster, or a new one, may take for anything it must do.
pub const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// How long all tasks together may take to end once nothing hinders them, beyond what their programs run.
pub const TASKS_MAX: Duration = Duration::from_secs(600);

/// As few of the voters as make a majority of `count`; `None` if there are not so many.
pub fn core(mut voters: Vec<Place>, count: usize, rng: &mut RngStream) -> Option<Vec<Place>> {
    let quorum = count / 2 + 1;
    while voters.len() > quorum {
        voters.remove(rng.range(0, voters.len() as u64) as usize);
    }
    (voters.len() == quorum).then_some(voters)
}

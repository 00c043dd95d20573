//! What members say of themselves, asked again and again: who leads, and whether equal logs gave equal states. The
//! oracles are the simulator's (`sim/oracle/election`, `sim/oracle/digest`), fed from outside.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn::client::Client;
use cairn::ids::{Address, Index, NodeId, Term};
use cairn::io::Io;
use cairn::proto::v1::StatusReply;
use cairn::sim::fault::Place;
use cairn::sim::oracle::Violations;
use cairn::sim::oracle::digest::Digests;
use cairn::sim::oracle::election::Elections;
use cairn::state::format;
use cairn::time::ClusterTime;
use futures_util::future::{join_all, select_all};

/// How long a member may take to say how it is before it counts as silent.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two questions.
const PERIOD: Duration = Duration::from_millis(50);

/// What all members said.
pub struct Watch {
    /// What must not be.
    pub violations: Violations,
    clients: Vec<Client>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    elections: Elections,
    digests: Digests,
    /// Cluster time when the newest format was first heard of.
    newest_since: Option<ClusterTime>,
    /// The last answer of each member; `None` while it gives none.
    latest: Vec<Option<StatusReply>>,
}

impl Watch {
    /// Watches the members that listen there.
    pub fn new(io: &Io, members: &[SocketAddr]) -> Result<Arc<Self>, String> {
        let addresses = addresses(members)?;
        let clients =
            addresses.iter().map(|address| Client::new(io.clone(), std::slice::from_ref(address), ASK_TIMEOUT));
        let seen = Seen { latest: vec![None; members.len()], ..Seen::default() };
        Ok(Arc::new(Self { violations: Violations::default(), clients: clients.collect(), seen: Mutex::new(seen) }))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks all members, each at its own pace, for ever.
    pub async fn run(&self) -> Infallible {
        let each = (0..self.clients.len()).map(async |place| {
            loop {
                self.ask(place).await;
                tokio::time::sleep(PERIOD).await;
            }
        });
        select_all(each.map(Box::pin)).await.0
    }

    async fn ask(&self, place: Place) -> Option<StatusReply> {
        let status = self.clients[place].status().await.ok();
        let seen = &mut *self.seen();
        if let Some(status) = &status {
            let (id, term) = (NodeId(status.id), Term(status.term));
            if status.role == "leader" {
                seen.elections.on_leader(id, term, &self.violations);
            }
            if status.format == format::NEWEST {
                seen.newest_since.get_or_insert(ClusterTime(status.cluster_time_ms));
            }
            seen.digests.on_applied(id, Index(status.applied_index), status.digest, &self.violations);
        }
        seen.latest[place].clone_from(&status);
        status
    }

    /// Asks all members at once; `None` if one is silent.
    pub async fn ask_all(&self) -> Option<Vec<StatusReply>> {
        join_all((0..self.clients.len()).map(|place| self.ask(place))).await.into_iter().collect()
    }

    /// Who led when last heard of, in the latest term if there were several.
    pub fn leader(&self) -> Option<Place> {
        let seen = self.seen();
        let statuses = seen.latest.iter().enumerate().filter_map(|(place, status)| Some((place, status.as_ref()?)));
        let leaders = statuses.filter(|(_, status)| status.role == "leader");
        leaders.max_by_key(|(_, status)| status.term).map(|(place, _)| place)
    }

    /// The member's id, if it has ever said it and answers now.
    pub fn id(&self, place: Place) -> Option<NodeId> {
        self.seen().latest[place].as_ref().map(|status| NodeId(status.id))
    }

    /// Terms in which somebody was seen to lead.
    pub fn leaders(&self) -> usize {
        self.seen().elections.leaders()
    }

    /// By when the newest format was begun; nothing, if nobody has said that it is.
    pub fn newest_since(&self) -> Option<ClusterTime> {
        self.seen().newest_since
    }

    /// What each said last, for people.
    pub fn describe(&self) -> String {
        let seen = self.seen();
        let lines = seen.latest.iter().enumerate().map(|(place, status)| match status {
            None => format!("\n  member {} is silent", place + 1),
            Some(status) => format!(
                "\n  member {} is {} in term {}, knows {} as leader, has applied {} of {} with digest {:016x}",
                place + 1,
                status.role,
                status.term,
                status.leader,
                status.applied_index,
                status.last_index,
                status.digest
            ),
        });
        lines.collect()
    }
}

/// Socket addresses as a client wants them.
pub fn addresses(of: &[SocketAddr]) -> Result<Vec<Address>, String> {
    of.iter().map(|address| address.to_string().parse().map_err(|error| format!("{address}: {error}"))).collect()
}

//! Asking a cluster to take this node in.

use std::collections::VecDeque;
use std::time::Duration;

use tonic::{Code, Request};

use crate::error::Fault;
use crate::ids::Address;
use crate::io::Io;
use crate::limits::{RECONNECT_PAUSE_MAX, REQUEST_TIMEOUT};
use crate::proto::v1::{JoinReply, JoinRequest, cluster_client::ClusterClient};
use crate::shared::LEADER_HINT;

/// How long a node goes on asking before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the members at `seeds`, and whomever they name as leader, until one answers. The same `uuid` gets the same
/// answer, so asking again after a lost one does no harm.
pub async fn join(io: &Io, seeds: &[Address], uuid: &[u8; 16], address: &Address) -> Result<JoinReply, Fault> {
    let deadline = io.clock.now() + PATIENCE;
    let mut hints: VecDeque<Address> = VecDeque::new();
    let mut turn = 0;
    let mut last = String::from("nobody was asked");
    while io.clock.now() < deadline && !seeds.is_empty() {
        let hinted = hints.pop_front();
        let target = hinted.clone().unwrap_or_else(|| {
            turn += 1;
            seeds[(turn - 1) % seeds.len()].clone()
        });
        let mut client = ClusterClient::new(io.network.connect(&target));
        let mut request = Request::new(JoinRequest { uuid: uuid.to_vec().into(), address: address.to_string() });
        request.set_timeout(REQUEST_TIMEOUT);
        match io.clock.timeout(REQUEST_TIMEOUT, client.join(request)).await {
            Ok(Ok(reply)) => {
                return Ok(reply.into_inner());
            }
            Ok(Err(status))
                if matches!(
                    status.code(),
                    Code::FailedPrecondition
                        | Code::AlreadyExists
                        | Code::InvalidArgument
                        | Code::ResourceExhausted
                        | Code::Unauthenticated
                ) =>
            {
                return Err(Fault::new(format!("the cluster at {target} refused this node: {}", status.message())));
            }
            Ok(Err(status)) => {
                last = format!("{target}: {}", status.message());
                let hint = status.metadata().get(LEADER_HINT).and_then(|value| value.to_str().ok()?.parse().ok());
                hints.extend(hint.filter(|_| hinted.is_none()));
            }
            Err(_) => last = format!("{target}: no answer within {REQUEST_TIMEOUT:?}"),
        }
        tracing::info!(%last, "not taken in yet");
        if hints.is_empty() {
            io.clock.sleep(RECONNECT_PAUSE_MAX / 4).await;
        }
    }
    Err(Fault::new(format!("no member took this node in within {PATIENCE:?}; the last answer: {last}")))
}

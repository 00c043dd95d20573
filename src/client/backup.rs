//! Backups, as a client takes them.

use bytes::Bytes;
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use super::{Client, ClientError};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::{SnapshotRequest, SnapshotResponse};
use crate::shared::{CONFIRMED, OWN, VIEW};

/// A backup that comes in pieces: [`crate::state::backup`] says what they are, put together.
pub struct Backup {
    client: Client,
    pieces: Streaming<SnapshotResponse>,
}

impl Client {
    /// Has a member give its state, with everything that was committed before this was called, or what it has itself if that is to be
    /// `serializable`: then no majority is needed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn backup(&self, serializable: bool) -> Result<Backup, ClientError> {
        let pieces = self
            .attempts(|channel, deadline| {
                let mut request = Request::new(SnapshotRequest {});
                let view = if serializable { OWN } else { CONFIRMED };
                request.metadata_mut().insert(VIEW, MetadataValue::from_static(view));
                request.set_timeout(deadline.since(self.io.clock.now()));
                let mut maintenance = MaintenanceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                Box::pin(async move { maintenance.snapshot(request).await })
            })
            .await
            .map_err(ClientError::of_read)?;
        Ok(Backup { client: self.clone(), pieces })
    }
}

impl Backup {
    /// The next piece, and how many bytes come after it; nothing at the end. What was cut short may end as well: only what is
    /// checked is whole.
    ///
    /// # Errors
    /// The member is gone, or is silent for as long as a call may take: begin anew.
    pub async fn next(&mut self) -> Result<Option<(Bytes, u64)>, ClientError> {
        let broken = |why: String| ClientError::Unavailable(format!("the backup broke off: {why}"));
        match self.client.within(self.client.timeout, self.pieces.message()).await {
            Some(Ok(piece)) => Ok(piece.map(|piece| (piece.blob, piece.remaining_bytes))),
            Some(Err(status)) => Err(broken(status.message().into())),
            None => Err(broken(format!("nothing came for {:?}", self.client.timeout))),
        }
    }
}

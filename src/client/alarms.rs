//! Alarms, as a client sees them.

use tonic::Request;

use super::{Client, ClientError};
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::{AlarmMember, AlarmRequest};

impl Client {
    /// The alarms that are raised.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn alarms(&self) -> Result<Vec<AlarmMember>, ClientError> {
        self.alarm(AlarmRequest::default()).await.map_err(ClientError::of_read)
    }

    /// Disarms an alarm; true if it was raised. Doing it again does no harm.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn disarm(&self, alarm: AlarmMember) -> Result<bool, ClientError> {
        let AlarmMember { member_id, alarm } = alarm;
        let disarmed = self.alarm(AlarmRequest { action: AlarmAction::Deactivate.into(), member_id, alarm }).await?;
        Ok(!disarmed.is_empty())
    }

    async fn alarm(&self, request: AlarmRequest) -> Result<Vec<AlarmMember>, ClientError> {
        let reply = self
            .attempts(|channel, deadline| {
                let mut request = Request::new(request);
                request.set_timeout(deadline.since(self.io.clock.now()));
                Box::pin(async move { MaintenanceClient::new(channel).alarm(request).await })
            })
            .await?;
        Ok(reply.alarms)
    }
}

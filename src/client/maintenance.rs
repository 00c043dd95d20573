//! Alarms, and what members do with the files of their states, as a client sees them.

use tonic::{Request, Status};

use super::{Client, ClientError, Failure, failure};
use crate::ids::Address;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::{AlarmMember, AlarmRequest, DefragmentRequest, StatusRequest};
use crate::proto::v1;

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

    /// Has a member write its state anew, into a file without anything free, while it goes on being used. Gives the bytes that the
    /// file had and has. It takes as long as it takes: give it a deadline, if it is to have one; the member goes on after that.
    ///
    /// # Errors
    /// See [`ClientError`]; unavailable if the member has no room for another file, or is at it already.
    pub async fn defragment(&self, member: &v1::Member) -> Result<(u64, u64), ClientError> {
        let address: Address = member.address.parse().map_err(|error| ClientError::Invalid(format!("{error}")))?;
        let mut maintenance = MaintenanceClient::new(self.signed(self.io.network.connect(&address)));
        let refused = |status: Status| match failure(status) {
            Failure::Final(error) => error,
            Failure::NotDone(why) | Failure::Unknown(why) => ClientError::Unavailable(why),
        };
        let before = maintenance.status(StatusRequest {}).await.map_err(refused)?.into_inner();
        if before.header.is_none_or(|header| header.member_id != member.id) {
            return Err(ClientError::Unavailable(format!("another member than {} is at {address} now", member.id)));
        }
        maintenance.defragment(DefragmentRequest {}).await.map_err(refused)?;
        let after = maintenance.status(StatusRequest {}).await.map_err(refused)?.into_inner();
        Ok((before.db_size.cast_unsigned(), after.db_size.cast_unsigned()))
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

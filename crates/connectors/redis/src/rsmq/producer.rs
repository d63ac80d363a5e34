use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{ConnectorError, Features, Outgoing, Produced, Producer, Rejected};

use super::connector::Site;
use super::scripts::SEND;

/// The most messages in one script: more gains nothing, and others wait meanwhile.
const SCRIPT_MAX: usize = 200;
/// How many random characters an id has after its time.
const RANDOM: usize = 22;

/// Sends messages to an RSMQ queue.
pub(crate) struct RsmqProducer {
    site: Site,
}

impl RsmqProducer {
    pub(crate) fn new(site: Site) -> Self {
        Self { site }
    }

    /// Why a message cannot be sent at all.
    fn refused(&self, outgoing: &Outgoing) -> Option<Rejected> {
        let length = outgoing.message.payload.as_ref().map_or(0, |payload| payload.len() as u64);
        let max = self.site.features.max_message_bytes?;
        (length > max).then(|| Rejected {
            kind: CauseKind::TooLarge,
            message: format!("{length} bytes; the queue's `maxsize` is {max}"),
        })
    }

    async fn send(&self, batch: &[&Outgoing]) -> Result<(), ConnectorError> {
        let mut send = SEND.key(&self.site.messages);
        send.key(&self.site.hash).arg(self.site.realtime.as_deref().unwrap_or_default());
        for outgoing in batch {
            match outgoing.delay {
                Some(delay) => send.arg(delay.as_millis().to_string()),
                None => send.arg(-1),
            };
            let random: String =
                std::iter::repeat_with(fastrand::alphanumeric).take(RANDOM).collect();
            send.arg(random).arg(outgoing.message.payload.as_deref().unwrap_or_default());
        }
        let ids: Vec<String> = self.site.wire.script(&send).await?;
        match ids.len() == batch.len() {
            true => Ok(()),
            false => Err(ConnectorError::transient("RSMQ took only a part of the batch")),
        }
    }
}

#[async_trait]
impl Producer for RsmqProducer {
    fn features(&self) -> Features {
        self.site.features.clone()
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let refused: Vec<Option<Rejected>> = batch.iter().map(|o| self.refused(o)).collect();
        let good: Vec<&Outgoing> = batch
            .iter()
            .zip(&refused)
            .filter_map(|(outgoing, refused)| refused.is_none().then_some(outgoing))
            .collect();
        for chunk in good.chunks(SCRIPT_MAX) {
            self.send(chunk).await?;
        }
        let outcome = |refused: Option<Rejected>| match refused {
            Some(why) => Produced::Rejected(why),
            None => Produced::Confirmed,
        };
        Ok(refused.into_iter().map(outcome).collect())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}

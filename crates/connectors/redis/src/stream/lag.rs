//! How much there is for a group of a stream.

use brigade_core::connector::{ConnectorError, Lag};

use super::connector::Keys;
use super::retention::Retention;
use super::scripts::LAG;
use crate::wire::Wire;

/// How much is ready, delayed and handed out.
pub(super) async fn lag(
    wire: &Wire,
    keys: &Keys,
    retention: Option<Retention>,
) -> Result<Lag, ConnectorError> {
    let mut lag = LAG.key(&keys.stream);
    lag.key(&keys.delayed).key(&keys.later).arg(&keys.group);
    lag.arg(u8::from(retention.is_some()));
    let (ready, delayed, held): (i64, i64, i64) = wire.script(&lag).await?;
    let known = |n: i64| u64::try_from(n).ok();
    Ok(Lag {
        ready: known(ready),
        delayed: known(delayed),
        in_flight: known(held),
        ..Lag::default()
    })
}

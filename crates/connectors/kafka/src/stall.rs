//! Whether a consumer can still go on. Seen from beside its calls: a stage whose credit is used up
//! wants no messages, and acks of a client that knows no broker any more do not end.

use std::sync::Arc;

use brigade_core::connector::ConnectorError;

use crate::consumer::blocking;
use crate::lag::Lagging;
use crate::poll::{Shared, is_final};

/// Waits until the consumer cannot go on; returns why.
pub(crate) async fn broken(shared: &Arc<Shared>, lagging: &Arc<Lagging>) -> ConnectorError {
    let told = Arc::clone(&shared.state().broken);
    loop {
        if let Some(error) = shared.state().trouble.take_if(|error| is_final(error)) {
            return error;
        }
        let waited = tokio::time::timeout(shared.stall_after, told.notified()).await;
        // What passes by itself, as that no thread can be had to ask, is asked the next time.
        if waited.is_err()
            && let Err(error) = watch(shared, lagging).await
            && is_final(&error)
        {
            return error;
        }
    }
}

/// Returns an error if the thread hangs in the client, or the broker has records that do not
/// arrive.
async fn watch(shared: &Arc<Shared>, lagging: &Arc<Lagging>) -> Result<(), ConnectorError> {
    let (site, stall_after) = (&shared.site, shared.stall_after);
    let beats = shared.beats();
    let why = if beats.polled.elapsed() >= stall_after {
        "the consumer's thread does not poll any more"
    } else if beats.came.elapsed() >= stall_after
        && is_starved(shared, lagging).await?
        // What came while the broker was asked is what it told of.
        && shared.beats().came.elapsed() >= stall_after
    {
        "the broker has records, and none comes"
    } else {
        return Ok(());
    };
    let what = format!("{why}, for {stall_after:?} (`stall_after`)");
    Err(ConnectorError::stalled(site.told(what)))
}

async fn is_starved(shared: &Arc<Shared>, lagging: &Arc<Lagging>) -> Result<bool, ConnectorError> {
    let (shared, lagging) = (Arc::clone(shared), Arc::clone(lagging));
    blocking(move || lagging.is_starved(&shared)).await
}

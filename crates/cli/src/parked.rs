//! What a run that has nothing left to do leaves for somebody to decide about.

use std::time::Duration;

use brigade_runtime::Watcher;

use crate::common::say;
use crate::progress::Progress;

/// How long the queues may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says which queues hold parked messages: nothing is done with those until they are released.
pub(crate) async fn tell(watcher: &Watcher, progress: &Progress) {
    let Ok(depths) = tokio::time::timeout(PATIENCE, watcher.depths()).await else { return };
    for depth in depths {
        let (queue, stage, parked) = (&depth.queue, &depth.stage, depth.lag.parked.unwrap_or(0));
        if parked > 0 {
            let text = format!(
                "note: queue `{queue}`: {parked} messages are parked, or wait behind one that is, before \
                 stage `{stage}`: `brigade queues release` lets them be handed out again"
            );
            progress.aside(|| say(&text));
        }
    }
}

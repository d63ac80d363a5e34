//! Putting back what was read: it failed, was not handed out, or is left when its member stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use brigade_core::connector::{ConnectorError, Failed, FailedReason, Incoming, Receipt};
use redis::ScriptInvocation;

use super::consumer::{READ_MAX, Site};
use super::entry::EntryId;
use super::scripts::{FAIL, GIVE_BACK};

impl Site {
    /// Puts back what was read and is not handed out, and what the server believes it has handed to
    /// this member. Like a read, but it brings nothing.
    pub(super) async fn put_back(
        self: Arc<Self>,
        mut ready: Vec<Incoming>,
    ) -> Result<Vec<Incoming>, ConnectorError> {
        let _ends = self.reads.lock().await;
        // Closing gives back everything.
        while !self.closed.load(Ordering::Relaxed) {
            if !ready.is_empty() {
                let failed: Vec<Failed> = ready.iter().map(released).collect();
                let (fail, _, _) = self.failing(&failed);
                // What this member still has after an error is found as if it had never arrived.
                self.held().forget(failed.iter().map(|failed| &failed.receipt));
                self.lost.store(true, Ordering::Relaxed);
                self.fail(fail).await?;
            }
            if !self.lost.load(Ordering::Relaxed) {
                break;
            }
            ready = self.find_lost(READ_MAX).await?;
        }
        Ok(Vec::new())
    }

    /// The script that puts these back, those among them that are known here with their entries,
    /// and the receipts of the others.
    pub(super) fn failing(
        &self,
        failed: &[Failed],
    ) -> (ScriptInvocation<'static>, Vec<(Receipt, EntryId)>, Vec<Receipt>) {
        let receipts: Vec<Receipt> = failed.iter().map(|failed| failed.receipt).collect();
        let (entries, gone) = self.held().ids(&receipts);
        let standing = failed.iter().filter(|failed| !gone.contains(&failed.receipt));
        let keys = &self.keys;
        let mut fail = FAIL.key(&keys.stream);
        fail.key(&keys.delayed).key(&keys.attempts).arg(&keys.group).arg(&self.member);
        for (Failed { receipt, reason, delay }, (_, id)) in standing.zip(&entries) {
            let attempts = reason.attempts().map_or(-1, i64::from);
            fail.arg(id.to_string()).arg(receipt.fence);
            fail.arg(delay.as_millis().to_string()).arg(attempts);
        }
        (fail, entries, gone)
    }

    /// Runs such a script; returns the places of the fenced.
    pub(super) async fn fail(
        &self,
        fail: ScriptInvocation<'static>,
    ) -> Result<Vec<usize>, ConnectorError> {
        let fail = Arc::new(fail);
        let mut fenced: Result<Vec<usize>, _> = self.wire.script(Arc::clone(&fail)).await;
        if self.mend(&fenced).await? {
            fenced = self.wire.script(fail).await;
        }
        // The next read checks for due entries; one that is already waiting ends first.
        *self.looked.lock() = None;
        fenced
    }

    /// The script that gives back everything that this member holds, and forgets the member.
    pub(super) fn give_back(&self) -> ScriptInvocation<'static> {
        let keys = &self.keys;
        let mut back = GIVE_BACK.key(&keys.stream);
        back.key(&keys.delayed).key(keys.alive(self.member.as_bytes()));
        back.arg(&keys.group).arg(&self.member);
        back
    }
}

/// A message that was not handed out, as one that is given back.
fn released(incoming: &Incoming) -> Failed {
    let (receipt, reason) = (incoming.receipt, FailedReason::Released);
    Failed { receipt, reason, delay: Duration::ZERO }
}

//! Putting back what was read: it failed, was not handed out, or is left when its member stops.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use brigade_core::connector::{ConnectorError, Failed, Incoming, Receipt};
use redis::ScriptInvocation;

use super::consumer::{READ_MAX, Site};
use super::entry::EntryId;
use super::scripts::{FAIL, GIVE_BACK, PUT_BACK};

impl Site {
    /// Puts back what was read and is not handed out, and what the server believes it has handed to
    /// this member. Like a read, but it brings nothing.
    pub(super) async fn put_back(
        self: Arc<Self>,
        ready: Vec<Receipt>,
    ) -> Result<Vec<Incoming>, ConnectorError> {
        let _ends = self.reads.lock().await;
        let mut fresh = HashSet::new();
        if !ready.is_empty() {
            let mut held = self.held();
            let (entries, _) = held.ids(&ready);
            fresh.extend(entries.into_iter().map(|(receipt, id)| (id, receipt.fence)));
            // From now on it is found as what never arrived, also by the next read after an error.
            held.forget(&ready);
            self.lost.store(true, Ordering::Relaxed);
        }
        // Closing gives back everything.
        while self.lost.load(Ordering::Relaxed) && !self.closed.load(Ordering::Relaxed) {
            let moved = self.move_lost(&fresh).await;
            // Of a group that was made again this member has nothing.
            if !self.mend(&moved).await? {
                moved?;
            }
        }
        // The next read checks for due entries.
        *self.looked.lock() = None;
        Ok(Vec::new())
    }

    /// Puts back some of what is not known here, by the ids alone: the entries may be too long to
    /// come in time. For what came here and nobody was handed it does not count as handing out.
    async fn move_lost(&self, fresh: &HashSet<(EntryId, u64)>) -> Result<(), ConnectorError> {
        let lost = self.unknown(READ_MAX).await?;
        if lost.is_empty() {
            return Ok(());
        }
        let keys = &self.keys;
        let mut back = PUT_BACK.key(&keys.stream);
        back.key(&keys.delayed).key(&keys.attempts).arg(&keys.group).arg(&self.member);
        for (id, fence) in lost {
            let before = fresh.contains(&(id, fence)).then(|| fence.saturating_sub(1).to_string());
            back.arg(id.to_string()).arg(fence).arg(before.unwrap_or_default());
        }
        let gone = self.wire.script(back).await?;
        self.tell_gone(gone);
        Ok(())
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

//! The members of a group: showing that this one is alive, and taking over what others left behind.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Incoming};
use redis::{Value, cmd};

use super::consumer::{Claimed, Site};
use super::process::{self, Process};
use super::scripts::{ALIVE_KEYS, CLAIM_DEAD, CLAIM_IDLE};

/// How the names of Brigade's members begin. Other members renew no alive key.
pub(super) const OURS: &str = "brigade-";
/// The member that holds entries while they wait for their time.
const DELAYED: &str = "~delayed";
/// How long a member's alive key lasts.
const ALIVE: Duration = Duration::from_secs(12);
/// How often a member shows that it is alive, and how soon again if that failed.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
pub(super) const HEARTBEAT_AGAIN: Duration = Duration::from_secs(1);
/// A member whose key has been missing for this long, and which has done nothing meanwhile, is
/// dead: a live one would have renewed it by then, even after waiting in vain for an answer.
const MISSING: Duration = ALIVE;
/// How much the server's clock and this machine's may differ over that time.
const SLACK: Duration = Duration::from_secs(1);
/// How often to check what others left behind.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How often to check that what waits for its time has one.
const LOOK_TIMELESS: Duration = Duration::from_secs(5);

/// What the server says about a member.
struct Member {
    /// Another program's may not be text.
    name: Vec<u8>,
    /// How many entries it holds.
    pending: usize,
    /// For how long it has done nothing.
    idle: Duration,
}

impl Member {
    fn of(told: &[Value]) -> Option<Self> {
        // Name, pending and idle, each after its label.
        let Some(Value::BulkString(name)) = told.get(1) else { return None };
        let pending = match told.get(3) {
            Some(Value::Int(count)) => usize::try_from(*count).unwrap_or(0),
            _ => 0,
        };
        let idle = match told.get(5) {
            Some(Value::Int(ms)) => Duration::from_millis(u64::try_from(*ms).unwrap_or(0)),
            _ => Duration::MAX,
        };
        Some(Self { name: name.clone(), pending, idle })
    }
}

/// Since when a member without a key has been missing: since `before`, or since now; `None` if it
/// was active lately.
fn missing_since(before: Option<Instant>, idle: Duration, now: Instant) -> Option<Instant> {
    if idle < MISSING {
        return None;
    }
    let since = before.unwrap_or(now);
    // It was active in between, while nobody looked: it was alive then.
    let lived = idle.saturating_add(SLACK) < now.duration_since(since);
    Some(if lived { now } else { since })
}

impl Site {
    /// Shows that this member is alive, in a way that even a server without memory accepts.
    pub(super) async fn say_alive(&self) -> Result<(), ConnectorError> {
        let key = self.keys.alive(self.member.as_bytes());
        let lasts = ALIVE.as_millis().to_string();
        let renewed = self.wire.command(cmd("PEXPIRE").arg(&key).arg(&lasts)).await;
        if renewed.is_err() {
            // A server that this member cannot reach may be out of reach for others too.
            self.missing.lock().clear();
        }
        if renewed? {
            return self.touch().await;
        }
        let alive = self.process.as_ref().map(Process::alive);
        let mut set = cmd("SET");
        set.arg(&key).arg(alive.as_deref().unwrap_or(process::ALIVE)).arg("PX").arg(&lasts);
        let set = self.wire.try_command(&set).await;
        self.touch().await?;
        match set {
            // The member counts as active anyway; writers get this error themselves.
            Err(failure) if failure.is_full() => Ok(()),
            set => set.map_err(|failure| self.wire.told(&failure)),
        }
    }

    /// Asks for what this member holds after the greatest possible id: nothing. The server notes
    /// when a member last asked, and needs no memory for that.
    async fn touch(&self) -> Result<(), ConnectorError> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.keys.group).arg(&self.member).arg("COUNT").arg(1);
        read.arg("STREAMS").arg(&self.keys.stream);
        read.arg("18446744073709551615-18446744073709551614");
        self.wire.command::<Value>(&read).await.map(drop)
    }

    /// Claims what was handed to this member and never arrived, what dead members of Brigade's
    /// held, or what members of other programs held for too long.
    pub(super) async fn take_over(&self, max: usize) -> Result<Vec<Incoming>, ConnectorError> {
        let keys = &self.keys;
        // Nothing is on its way to this member meanwhile: its count changes only when something is
        // resolved, and then drops on the server first. So it is read before the server is asked.
        let held = self.held().count();
        let mut info = cmd("XINFO");
        info.arg("CONSUMERS").arg(&keys.stream).arg(&keys.group);
        let members: Vec<Vec<Value>> = self.wire.command(&info).await?;
        let members: Vec<Member> = members.iter().filter_map(|told| Member::of(told)).collect();
        // A connection broke while the server waited for entries, which it later handed out to
        // nobody.
        if members
            .iter()
            .any(|member| member.name == self.member.as_bytes() && member.pending > held)
        {
            self.lost.store(true, Ordering::Relaxed);
            let found = self.find_lost(max).await?;
            if !found.is_empty() {
                let (queue, count) = (&keys.queue, found.len());
                tracing::info!(%queue, count, "finds messages that were handed out and never came");
                return Ok(found);
            }
        }
        if members.iter().any(|member| member.name == DELAYED.as_bytes() && member.pending > 0) {
            self.look_for_timeless().await?;
        }
        self.missing.lock().retain(|name, _| members.iter().any(|member| member.name == *name));
        let others = |member: &Member| {
            member.name != self.member.as_bytes() && member.name != DELAYED.as_bytes()
        };
        let is_ours = |member: &Member| member.name.starts_with(OURS.as_bytes());
        let (ours, strangers): (Vec<Member>, Vec<Member>) =
            members.into_iter().filter(others).partition(is_ours);
        for (name, sign) in self.dead(ours).await? {
            let claimed = self.claim_dead(&name, sign.as_deref(), max).await?;
            let entries = self.there_of(claimed);
            if !entries.is_empty() {
                return self.taken_over(&name, "is dead", entries).await;
            }
        }
        for Member { name, .. } in strangers.into_iter().filter(|member| member.pending > 0) {
            let claimed = self.claim_idle(&name, max).await?;
            let entries = self.there_of(claimed);
            if !entries.is_empty() {
                return self.taken_over(&name, "held it for too long", entries).await;
            }
        }
        Ok(Vec::new())
    }

    /// Now and then makes what waits without a time come: somebody has deleted the times, or the
    /// server evicted them.
    async fn look_for_timeless(&self) -> Result<(), ConnectorError> {
        {
            let mut looked = self.looked_timeless.lock();
            if looked.elapsed() < LOOK_TIMELESS {
                return Ok(());
            }
            *looked = Instant::now();
        }
        self.find_timeless().await
    }

    async fn taken_over(
        &self,
        member: &[u8],
        why: &str,
        entries: Vec<Value>,
    ) -> Result<Vec<Incoming>, ConnectorError> {
        let (queue, count) = (&self.keys.queue, entries.len());
        let member = String::from_utf8_lossy(member);
        tracing::info!(%queue, %member, count, "takes over from a member that {why}");
        self.incoming(entries).await
    }

    /// Those of Brigade's members that seem to be dead, each with the value of its alive key if it
    /// has one that is no sign of life. All keys are asked for at once, since every member checks
    /// on all others.
    async fn dead(
        &self,
        members: Vec<Member>,
    ) -> Result<Vec<(Vec<u8>, Option<String>)>, ConnectorError> {
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let mut ask = ALIVE_KEYS.prepare_invoke();
        for member in &members {
            ask.key(self.keys.alive(&member.name));
        }
        let signs: Vec<Option<String>> = self.wire.script(ask).await?;
        let (mut missing, mut dead) = (self.missing.lock(), Vec::new());
        let now = Instant::now();
        for (Member { name, idle, .. }, sign) in members.into_iter().zip(signs) {
            let since = match &sign {
                Some(_) => None,
                None => missing_since(missing.get(&name).copied(), idle, now),
            };
            match since {
                Some(since) => missing.insert(name.clone(), since),
                None => missing.remove(&name),
            };
            let is_dead = match &sign {
                Some(sign) => self.process.as_ref().is_some_and(|here| here.sees_gone(sign)),
                None => since.is_some_and(|since| now.duration_since(since) >= MISSING),
            };
            if is_dead {
                dead.push((name, sign));
            }
        }
        Ok(dead)
    }

    /// Claims what a dead member held, unless its key has changed.
    async fn claim_dead(
        &self,
        name: &[u8],
        sign: Option<&str>,
        max: usize,
    ) -> Result<Claimed, ConnectorError> {
        let keys = &self.keys;
        let mut claim = CLAIM_DEAD.key(&keys.stream);
        claim.key(&keys.attempts).key(keys.alive(name));
        claim.arg(&keys.group).arg(&self.member).arg(name).arg(max).arg(sign.unwrap_or_default());
        self.bring(claim).await
    }

    async fn claim_idle(&self, name: &[u8], max: usize) -> Result<Claimed, ConnectorError> {
        let keys = &self.keys;
        let mut claim = CLAIM_IDLE.key(&keys.stream);
        claim.key(&keys.attempts).arg(&keys.group).arg(&self.member).arg(name).arg(max);
        claim.arg(self.bounds.claim_idle.as_millis().to_string());
        self.bring(claim).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_missing_since_it_has_neither_key_nor_done_anything() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let idle = Duration::from_secs;
        assert_eq!(missing_since(None, idle(11), at(0)), None, "it did something lately");
        assert_eq!(missing_since(Some(at(0)), idle(11), at(12)), None, "so it has meanwhile");
        assert_eq!(missing_since(None, idle(12), at(0)), Some(at(0)), "from now on");
        assert_eq!(missing_since(Some(at(0)), idle(24), at(12)), Some(at(0)), "it still is");
        assert_eq!(missing_since(Some(at(0)), Duration::MAX, at(12)), Some(at(0)), "it never did");
        let looked_late = missing_since(Some(at(0)), idle(14), at(60));
        assert_eq!(looked_late, Some(at(60)), "it did something between the looks");
    }

    /// The length of a second differs a little from machine to machine.
    #[test]
    fn a_members_idle_time_may_lag_behind_this_machines_clock() {
        let begun = Instant::now();
        let now = begun + Duration::from_secs(60);
        for (behind_ms, since) in [(1, begun), (1_000, begun), (1_001, now)] {
            let idle = Duration::from_millis(60_000 - behind_ms);
            assert_eq!(missing_since(Some(begun), idle, now), Some(since), "{behind_ms} ms");
        }
    }
}

//! The members of a group: that this one lives, and what others left behind.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Incoming};
use redis::{Value, cmd};

use super::consumer::Site;
use super::process::{self, Process};
use super::scripts::{ALIVE_KEYS, CLAIM_DEAD, CLAIM_IDLE};

/// What the names of Brigade's members begin with. Others renew no alive key.
pub(super) const OURS: &str = "brigade-";
/// The member with which entries wait for their time.
const DELAYED: &str = "~delayed";
/// How long a member's key lasts.
const ALIVE: Duration = Duration::from_secs(12);
/// How often a member says that it lives, and after how long again if that failed.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
pub(super) const HEARTBEAT_AGAIN: Duration = Duration::from_secs(1);
/// A member whose key is missing for so long, and which did nothing meanwhile, is dead: one that lives has
/// said so again by then, also if it has waited in vain for an answer.
const MISSING: Duration = ALIVE;
/// What the server's clock and this machine's may differ in over that time.
const SLACK: Duration = Duration::from_secs(1);
/// How often it is looked what others left behind.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// What the server tells of a member.
struct Member {
    /// Another program's may be no text.
    name: Vec<u8>,
    /// How many entries it holds.
    pending: usize,
    /// For how long it has done nothing.
    idle: Duration,
}

impl Member {
    fn of(told: &[Value]) -> Option<Self> {
        // Name, pending, idle, each after its title.
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

/// Since when a member without a key is missing: since it was `before`, or now; nothing if it did
/// something lately.
fn missing_since(before: Option<Instant>, idle: Duration, now: Instant) -> Option<Instant> {
    if idle < MISSING {
        return None;
    }
    let since = before.unwrap_or(now);
    // It did something meanwhile, while nobody looked: it lived then.
    let lived = idle.saturating_add(SLACK) < now.duration_since(since);
    Some(if lived { now } else { since })
}

impl Site {
    /// Says that this member lives, in a way that also a server without room takes.
    pub(super) async fn say_alive(&self) -> Result<(), ConnectorError> {
        let key = self.keys.alive(self.member.as_bytes());
        let lasts = ALIVE.as_millis().to_string();
        let renewed = self.wire.command(cmd("PEXPIRE").arg(&key).arg(&lasts)).await;
        if renewed.is_err() {
            // Who cannot be reached by this member may not be reached by others.
            self.missing().clear();
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
            // It is active all the same; who wants to write is told of it.
            Err(failure) if failure.is_full() => Ok(()),
            set => set.map_err(|failure| self.wire.told(&failure)),
        }
    }

    /// Asks for what this member holds after the last id that there is: nothing. The server notes when a
    /// member last asked, and needs no room for it.
    async fn touch(&self) -> Result<(), ConnectorError> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.keys.group).arg(&self.member).arg("COUNT").arg(1);
        read.arg("STREAMS").arg(&self.keys.stream);
        read.arg("18446744073709551615-18446744073709551614");
        self.wire.command::<Value>(&read).await.map(drop)
    }

    /// Since when members that did nothing meanwhile are without a key.
    fn missing(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Instant>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims what was handed to this member and never came, what dead members of Brigade's held, and what those
    /// of other programs held for too long.
    pub(super) async fn take_over(&self, max: usize) -> Result<Vec<Incoming>, ConnectorError> {
        let keys = &self.keys;
        // Nothing is on its way meanwhile: only what is resolved changes this, and makes it less, there first. So
        // it is known before the question.
        let held = self.held().count();
        let mut info = cmd("XINFO");
        info.arg("CONSUMERS").arg(&keys.stream).arg(&keys.group);
        let members: Vec<Vec<Value>> = self.wire.command(&info).await?;
        let members: Vec<Member> = members.iter().filter_map(|told| Member::of(told)).collect();
        // A connection that broke while the server waited for entries: it handed them out later, to nobody.
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
        self.missing().retain(|name, _| members.iter().any(|member| member.name == *name));
        let others = |member: &Member| {
            member.name != self.member.as_bytes() && member.name != DELAYED.as_bytes()
        };
        let is_ours = |member: &Member| member.name.starts_with(OURS.as_bytes());
        let (ours, strangers): (Vec<Member>, Vec<Member>) =
            members.into_iter().filter(others).partition(is_ours);
        for (name, sign) in self.dead(ours).await? {
            let entries = self.claim_dead(&name, sign.as_deref(), max).await?;
            if !entries.is_empty() {
                return self.taken_over(&name, "is dead", entries).await;
            }
        }
        for Member { name, .. } in strangers.into_iter().filter(|member| member.pending > 0) {
            let entries = self.claim_idle(&name, max).await?;
            if !entries.is_empty() {
                return self.taken_over(&name, "held it for too long", entries).await;
            }
        }
        Ok(Vec::new())
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

    /// Those of Brigade's members that seem to be dead, each with its alive key's value if that is there and
    /// no sign of life. Their keys are asked for at once: each member looks, after all others.
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
        let (mut missing, mut dead) = (self.missing(), Vec::new());
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

    /// Claims what a dead member held, if its key still says so.
    async fn claim_dead(
        &self,
        name: &[u8],
        sign: Option<&str>,
        max: usize,
    ) -> Result<Vec<Value>, ConnectorError> {
        let keys = &self.keys;
        let mut claim = CLAIM_DEAD.key(&keys.stream);
        claim.key(&keys.attempts).key(keys.alive(name));
        claim.arg(&keys.group).arg(&self.member).arg(name).arg(max).arg(sign.unwrap_or_default());
        self.bring(claim).await
    }

    async fn claim_idle(&self, name: &[u8], max: usize) -> Result<Vec<Value>, ConnectorError> {
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

    /// What a second is differs from machine to machine, a little.
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

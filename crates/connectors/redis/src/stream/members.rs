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
    name: String,
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
        Some(Self { name: String::from_utf8_lossy(name).into_owned(), pending, idle })
    }
}

impl Site {
    /// Says that this member lives, in a way that also a server without room takes.
    pub(super) async fn say_alive(&self) -> Result<(), ConnectorError> {
        let key = self.keys.alive(&self.member);
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
        let set = self.wire.command(&set).await;
        self.touch().await?;
        match set {
            // It is active all the same; who wants to write is told of it.
            Err(error) if error.to_string().contains("OOM") => Ok(()),
            set => set,
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
    fn missing(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
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
        if members.iter().any(|member| member.name == self.member && member.pending > held) {
            self.lost.store(true, Ordering::Relaxed);
            let found = self.find_lost(max).await?;
            if !found.is_empty() {
                let (queue, count) = (&keys.queue, found.len());
                tracing::info!(%queue, count, "finds messages that were handed out and never came");
                return Ok(found);
            }
        }
        self.missing().retain(|name, _| members.iter().any(|member| member.name == *name));
        let others = |member: &Member| member.name != self.member && member.name != "~delayed";
        let (ours, strangers): (Vec<Member>, Vec<Member>) =
            members.into_iter().filter(others).partition(|member| member.name.starts_with(OURS));
        for (name, sign) in self.dead(ours).await? {
            let entries = self.claim_dead(&name, sign.as_deref(), max).await?;
            if !entries.is_empty() {
                return self.taken_over(&name, "is dead", entries);
            }
        }
        for Member { name, .. } in strangers.into_iter().filter(|member| member.pending > 0) {
            let entries = self.claim_idle(&name, max).await?;
            if !entries.is_empty() {
                return self.taken_over(&name, "held it for too long", entries);
            }
        }
        Ok(Vec::new())
    }

    fn taken_over(
        &self,
        member: &str,
        why: &str,
        entries: Vec<Value>,
    ) -> Result<Vec<Incoming>, ConnectorError> {
        let (queue, count) = (&self.keys.queue, entries.len());
        tracing::info!(%queue, member, count, "takes over from a member that {why}");
        self.incoming(entries)
    }

    /// Those of Brigade's members that seem to be dead, each with its alive key's value if that is there and
    /// no sign of life. Their keys are asked for at once: each member looks, after all others.
    async fn dead(
        &self,
        members: Vec<Member>,
    ) -> Result<Vec<(String, Option<String>)>, ConnectorError> {
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let mut ask = ALIVE_KEYS.prepare_invoke();
        for member in &members {
            ask.key(self.keys.alive(&member.name));
        }
        let signs: Vec<Option<String>> = self.wire.script(&ask).await?;
        let (mut missing, mut dead) = (self.missing(), Vec::new());
        for (Member { name, idle, .. }, sign) in members.into_iter().zip(signs) {
            let is_dead = match &sign {
                Some(sign) => {
                    missing.remove(&name);
                    self.process.as_ref().is_some_and(|here| here.sees_gone(sign))
                }
                None if idle < MISSING => {
                    missing.remove(&name);
                    false
                }
                None => {
                    let since = missing.entry(name.clone()).or_insert_with(Instant::now);
                    // It did something meanwhile, while nobody looked: it lived then.
                    if idle + SLACK < since.elapsed() {
                        *since = Instant::now();
                    }
                    since.elapsed() >= MISSING
                }
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
        name: &str,
        sign: Option<&str>,
        max: usize,
    ) -> Result<Vec<Value>, ConnectorError> {
        let keys = &self.keys;
        let mut claim = CLAIM_DEAD.key(&keys.stream);
        claim.key(&keys.attempts).key(keys.alive(name));
        claim.arg(&keys.group).arg(&self.member).arg(name).arg(max).arg(sign.unwrap_or_default());
        self.wire.script(&claim).await
    }

    async fn claim_idle(&self, name: &str, max: usize) -> Result<Vec<Value>, ConnectorError> {
        let keys = &self.keys;
        let mut claim = CLAIM_IDLE.key(&keys.stream);
        claim.key(&keys.attempts).arg(&keys.group).arg(&self.member).arg(name).arg(max);
        claim.arg(self.bounds.claim_idle.as_millis().to_string());
        self.wire.script(&claim).await
    }
}

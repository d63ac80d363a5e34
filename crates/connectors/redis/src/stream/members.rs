//! The members of a group: that this one lives, and what others left behind.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Incoming};
use redis::{Value, cmd};

use super::consumer::Site;
use super::process::{self, Process};
use super::scripts::{CLAIM_DEAD, CLAIM_IDLE};

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
/// How often it is looked what others left behind.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// What the server tells of a member.
struct Member {
    name: String,
    holds_nothing: bool,
    /// For how long it has done nothing.
    idle: Duration,
}

impl Member {
    fn of(told: &[Value]) -> Option<Self> {
        // Name, pending, idle, each after its title.
        let Some(Value::BulkString(name)) = told.get(1) else { return None };
        let idle = match told.get(5) {
            Some(Value::Int(ms)) => Duration::from_millis(u64::try_from(*ms).unwrap_or(0)),
            _ => Duration::MAX,
        };
        Some(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            holds_nothing: matches!(told.get(3), Some(Value::Int(0))),
            idle,
        })
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

    /// Claims what dead members of Brigade's held, and what those of other programs held for too long.
    pub(super) async fn take_over(&self, max: usize) -> Result<Vec<Incoming>, ConnectorError> {
        let keys = &self.keys;
        let mut info = cmd("XINFO");
        info.arg("CONSUMERS").arg(&keys.stream).arg(&keys.group);
        let members: Vec<Vec<Value>> = self.wire.command(&info).await?;
        let members: Vec<Member> = members.iter().filter_map(|told| Member::of(told)).collect();
        self.missing().retain(|name, _| members.iter().any(|member| member.name == *name));
        for Member { name, holds_nothing, idle } in members {
            if name == self.member || name == "~delayed" {
                continue;
            }
            let is_ours = name.starts_with(OURS);
            if holds_nothing && !is_ours {
                continue;
            }
            let entries = match is_ours {
                true => self.claim_dead(&name, idle, max).await?,
                false => self.claim_idle(&name, max).await?,
            };
            if !entries.is_empty() {
                let why = if is_ours { "is dead" } else { "held it for too long" };
                tracing::info!(
                    queue = %keys.queue, member = %name, count = entries.len(),
                    "takes over from a member that {why}"
                );
                return self.incoming(entries);
            }
        }
        Ok(Vec::new())
    }

    async fn claim_dead(
        &self,
        name: &str,
        idle: Duration,
        max: usize,
    ) -> Result<Vec<Value>, ConnectorError> {
        let keys = &self.keys;
        if idle < MISSING {
            self.missing().remove(name);
        }
        let since = self.missing().get(name).copied();
        let is_missed = since.is_some_and(|since| since.elapsed() >= MISSING);
        let mut no_sign = String::new();
        loop {
            let mut claim = CLAIM_DEAD.key(&keys.stream);
            claim.key(&keys.attempts).key(keys.alive(name));
            claim.arg(&keys.group).arg(&self.member).arg(name).arg(max).arg(&no_sign);
            claim.arg(u8::from(is_missed));
            match self.wire.script(&claim).await? {
                Value::Array(entries) => return Ok(entries),
                Value::BulkString(alive) => {
                    self.missing().remove(name);
                    let alive = String::from_utf8_lossy(&alive).into_owned();
                    let is_gone = |here: &Process| here.sees_gone(&alive);
                    if alive == no_sign || !self.process.as_ref().is_some_and(is_gone) {
                        return Ok(Vec::new());
                    }
                    no_sign = alive;
                }
                _ => {
                    if idle >= MISSING {
                        self.missing().entry(name.to_owned()).or_insert_with(Instant::now);
                    }
                    return Ok(Vec::new());
                }
            }
        }
    }

    async fn claim_idle(&self, name: &str, max: usize) -> Result<Vec<Value>, ConnectorError> {
        let keys = &self.keys;
        let mut claim = CLAIM_IDLE.key(&keys.stream);
        claim.key(&keys.attempts).arg(&keys.group).arg(&self.member).arg(name).arg(max);
        claim.arg(self.bounds.claim_idle.as_millis().to_string());
        self.wire.script(&claim).await
    }
}

//! The members of a group: that this one lives, and what others left behind.

use std::time::Duration;

use brigade_core::connector::{ConnectorError, Incoming};
use redis::{Value, cmd};

use super::consumer::Site;
use super::process::{self, Process};
use super::scripts::{CLAIM_DEAD, CLAIM_IDLE};

/// What the names of Brigade's members begin with. Others renew no alive key.
pub(super) const OURS: &str = "brigade-";
/// A member of Brigade's that has not been heard of for so long is dead.
const ALIVE: Duration = Duration::from_secs(12);
/// How often a member says that it lives.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
/// How often it is looked what others left behind.
pub(super) const LOOK: Duration = Duration::from_secs(1);

impl Site {
    pub(super) async fn say_alive(&self) -> Result<(), ConnectorError> {
        let mut set = cmd("SET");
        let alive = self.process.as_ref().map(Process::alive);
        set.arg(self.keys.alive(&self.member)).arg(alive.as_deref().unwrap_or(process::ALIVE));
        set.arg("PX").arg(ALIVE.as_millis().to_string());
        self.wire.command(&set).await
    }

    /// Claims what dead members of Brigade's held, and what those of other programs held for too long.
    pub(super) async fn take_over(&self, max: usize) -> Result<Vec<Incoming>, ConnectorError> {
        let keys = &self.keys;
        let mut info = cmd("XINFO");
        info.arg("CONSUMERS").arg(&keys.stream).arg(&keys.group);
        let members: Vec<Vec<Value>> = self.wire.command(&info).await?;
        for member in members {
            let Some(Value::BulkString(name)) = member.get(1) else { continue };
            let name = String::from_utf8_lossy(name).into_owned();
            if name == self.member || name == "~delayed" {
                continue;
            }
            let is_ours = name.starts_with(OURS);
            // Name, pending, idle, each after its title.
            let holds_nothing = matches!(member.get(3), Some(Value::Int(0)));
            if holds_nothing && !is_ours {
                continue;
            }
            let entries = match is_ours {
                true => self.claim_dead(&name, max).await?,
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

    async fn claim_dead(&self, name: &str, max: usize) -> Result<Vec<Value>, ConnectorError> {
        let keys = &self.keys;
        let mut no_sign = String::new();
        loop {
            let mut claim = CLAIM_DEAD.key(&keys.stream);
            claim.key(&keys.attempts).key(keys.alive(name));
            claim.arg(&keys.group).arg(&self.member).arg(name).arg(max).arg(&no_sign);
            match self.wire.script(&claim).await? {
                Value::Array(entries) => return Ok(entries),
                Value::BulkString(alive) => {
                    let alive = String::from_utf8_lossy(&alive).into_owned();
                    let is_gone = |here: &Process| here.sees_gone(&alive);
                    if alive == no_sign || !self.process.as_ref().is_some_and(is_gone) {
                        return Ok(Vec::new());
                    }
                    no_sign = alive;
                }
                _ => return Ok(Vec::new()),
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

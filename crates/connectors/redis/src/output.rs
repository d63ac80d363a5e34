//! Outputs that are written in the script that acks what they were made of.

use std::sync::Arc;

use brigade_core::connector::{ConnectorError, Outgoing};
use brigade_core::state::StoreOp;
use redis::ScriptInvocation;

use crate::rsmq::random_part;
use crate::stream::fields;

/// Where an output goes. It travels as the name of an operation's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The stream with this key, and where what is put with a delay waits.
    Stream { stream: String, later: String },
    /// The RSMQ queue with this key, and the channel of its notices, if there is one.
    Rsmq { messages: String, channel: String },
}

/// Between the parts of a target's name; no key that a pipeline file names has it.
const BETWEEN: char = '\n';

impl Target {
    pub(crate) fn name(&self) -> Arc<str> {
        match self {
            Self::Stream { stream, later } => format!("stream{BETWEEN}{stream}{BETWEEN}{later}"),
            Self::Rsmq { messages, channel } => {
                format!("rsmq{BETWEEN}{messages}{BETWEEN}{channel}")
            }
        }
        .into()
    }

    fn of_name(name: &str) -> Option<Self> {
        let (kind, rest) = name.split_once(BETWEEN)?;
        let (key, more) = rest.split_once(BETWEEN)?;
        let (key, more) = (key.to_owned(), more.to_owned());
        match kind {
            "stream" => Some(Self::Stream { stream: key, later: more }),
            "rsmq" => Some(Self::Rsmq { messages: key, channel: more }),
            _ => None,
        }
    }

    /// Operations that put these messages here.
    pub(crate) fn enqueue(&self, batch: &[Outgoing]) -> Vec<StoreOp> {
        let queue = self.name();
        let enqueue = |outgoing: &Outgoing| StoreOp::Enqueue {
            queue: Arc::clone(&queue),
            outgoing: outgoing.clone(),
        };
        batch.iter().map(enqueue).collect()
    }
}

/// One command for many values, a thousand at a time: Lua has no room for more on its stack.
pub(crate) const MANY: &str = "
local function many(command, key, values)
  for i = 1, #values, 1000 do
    redis.call(command, key, unpack(values, i, math.min(i + 999, #values)))
  end
end
local function get_many(key, fields)
  local values = {}
  for i = 1, #fields, 1000 do
    local past = math.min(i + 999, #fields)
    for j, value in ipairs(redis.call('HMGET', key, unpack(fields, i, past))) do
      values[i + j - 1] = value
    end
  end
  return values
end
";

/// What the script of an ack takes to put outputs, with [`MANY`]; [`add`] gives it its arguments, which begin at
/// `first` there.
pub(crate) const PUT: &str = "
local digits = '0123456789abcdefghijklmnopqrstuvwxyz'
local function base36(n)
  local text = ''
  while n > 0 do
    local digit = n % 36
    text = string.sub(digits, digit + 1, digit + 1) .. text
    n = math.floor(n / 36)
  end
  return text
end
local function put(first)
  -- All keys before the first write, so that nothing is put if one of them cannot be.
  local i, kinds = first, {}
  while i <= #ARGV do
    local key, n = ARGV[i + 1], tonumber(ARGV[i + 2])
    local kind = kinds[key] or redis.call('TYPE', key).ok
    kinds[key] = kind
    local wanted = ARGV[i] == 's' and 'stream' or 'zset'
    if kind ~= 'none' and kind ~= wanted then
      error({err = 'WRONGTYPE a ' .. kind .. ' is at the key ' .. key})
    end
    i = i + 3 + n
  end
  local time = redis.call('TIME')
  local usec = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local now = math.floor(usec / 1000)
  i = first
  local sent, queues = 0, {}
  while i <= #ARGV do
    local kind, key, n = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
    local from, to = i + 3, i + 2 + n
    if kind == 's' then
      redis.call('XADD', key, '*', unpack(ARGV, from, to))
    elseif kind == 'l' then
      local packed = cmsgpack.pack({unpack(ARGV, from + 1, to)})
      redis.call('ZADD', key, now + tonumber(ARGV[from]), packed)
    else
      local channel, delay = ARGV[from], tonumber(ARGV[from + 1])
      local queue = queues[key]
      if not queue then
        local own = tonumber(redis.call('HGET', key .. ':Q', 'delay') or 0) * 1000
        queue = {delay = own, channel = channel, scores = {}, bodies = {}}
        queues[key] = queue
      end
      if delay < 0 then delay = queue.delay end
      local id = base36(usec + sent) .. ARGV[from + 2]
      sent = sent + 1
      queue.scores[#queue.scores + 1] = string.format('%.0f', now + delay)
      queue.scores[#queue.scores + 1] = id
      queue.bodies[#queue.bodies + 1] = id
      queue.bodies[#queue.bodies + 1] = ARGV[from + 3]
    end
    i = to + 1
  end
  for key, queue in pairs(queues) do
    local count = #queue.scores / 2
    many('ZADD', key, queue.scores)
    many('HSET', key .. ':Q', queue.bodies)
    redis.call('HINCRBY', key .. ':Q', 'totalsent', count)
    if queue.channel ~= '' then
      -- A notice for each, with how many there were then.
      local there = redis.call('ZCARD', key)
      for left = count - 1, 0, -1 do redis.call('PUBLISH', queue.channel, there - left) end
    end
  end
end
";

/// Adds outputs to the arguments of a script with [`PUT`].
pub(crate) fn add(
    script: &mut ScriptInvocation<'_>,
    ops: &[StoreOp],
) -> Result<(), ConnectorError> {
    for op in ops {
        let StoreOp::Enqueue { queue, outgoing } = op else {
            let error = "a settlement on Redis takes messages only";
            return Err(ConnectorError::unsupported(error));
        };
        let target = Target::of_name(queue).ok_or_else(|| {
            ConnectorError::unsupported(format!("`{queue}` is no queue on Redis"))
        })?;
        add_one(script, &target, outgoing);
    }
    Ok(())
}

fn add_one(script: &mut ScriptInvocation<'_>, target: &Target, outgoing: &Outgoing) {
    let delay = outgoing.delay.filter(|delay| !delay.is_zero()).map(|delay| delay.as_millis());
    match target {
        Target::Stream { stream, later } => {
            let fields = fields(outgoing);
            match delay {
                None => script.arg("s").arg(stream).arg(fields.len() * 2),
                Some(delay) => {
                    script.arg("l").arg(later).arg(fields.len() * 2 + 2);
                    script.arg(delay.to_string()).arg(fastrand::u128(..).to_string())
                }
            };
            for (name, value) in fields {
                script.arg(name).arg(value);
            }
        }
        Target::Rsmq { messages, channel } => {
            script.arg("q").arg(messages).arg(4).arg(channel);
            script.arg(delay.map_or_else(|| "-1".to_owned(), |delay| delay.to_string()));
            script.arg(random_part());
            script.arg(outgoing.message.payload.as_deref().unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_comes_back_from_its_name() {
        let stream = Target::Stream { stream: "a b".into(), later: "{a b}:brigade:later".into() };
        let rsmq = Target::Rsmq { messages: "rsmq:q".into(), channel: String::new() };
        for target in [stream, rsmq] {
            assert_eq!(Target::of_name(&target.name()), Some(target));
        }
        assert_eq!(Target::of_name("kafka-topic"), None);
    }
}

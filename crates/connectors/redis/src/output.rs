//! Outputs that are written by the same script that acks the messages they were made from.

use std::sync::Arc;

use brigade_core::MessageId;
use brigade_core::connector::{ConnectorError, Outgoing, Rejected};
use brigade_core::state::StoreOp;
use redis::{FromRedisValue, ScriptInvocation};

use crate::rsmq::{QueueDefinition, random_part};
use crate::stream::fields;
use crate::value_limit;
use crate::wire::Wire;

/// Where an output goes. It travels as the queue name of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A queue's stream, by its key, and the key where delayed messages wait.
    Stream {
        queue: Arc<str>,
        stream: String,
        later: String,
    },
    Rsmq(QueueDefinition),
}

/// Separates the parts of a target's name; no key named in a pipeline file contains it.
const BETWEEN: char = '\n';

impl Target {
    pub(crate) fn name(&self) -> Arc<str> {
        let parts = match self {
            Self::Stream { queue, stream, later } => {
                vec!["stream".into(), queue.to_string(), stream.clone(), later.clone()]
            }
            Self::Rsmq(QueueDefinition { queue, namespace, name, vt, maxsize, realtime }) => vec![
                "rsmq".into(),
                queue.to_string(),
                namespace.clone(),
                name.clone(),
                vt.to_string(),
                maxsize.to_string(),
                realtime.to_string(),
            ],
        };
        parts.join(&BETWEEN.to_string()).into()
    }

    fn of_name(name: &str) -> Option<Self> {
        let parts: Vec<&str> = name.split(BETWEEN).collect();
        match parts[..] {
            ["stream", queue, stream, later] => Some(Self::Stream {
                queue: queue.into(),
                stream: stream.to_owned(),
                later: later.to_owned(),
            }),
            ["rsmq", queue, namespace, name, vt, maxsize, realtime] => {
                Some(Self::Rsmq(QueueDefinition {
                    queue: queue.into(),
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    vt: vt.parse().ok()?,
                    maxsize: maxsize.parse().ok()?,
                    realtime: realtime.parse().ok()?,
                }))
            }
            _ => None,
        }
    }

    /// The queue's name in the pipeline file.
    fn queue(&self) -> &Arc<str> {
        match self {
            Self::Stream { queue, .. } | Self::Rsmq(QueueDefinition { queue, .. }) => queue,
        }
    }

    /// The keys that a script's error may name.
    fn keys(&self) -> [String; 2] {
        match self {
            Self::Stream { stream, later, .. } => [stream.clone(), later.clone()],
            Self::Rsmq(made) => [made.messages(), made.hash()],
        }
    }

    /// The length of the longest value that is written for a message.
    fn longest(&self, outgoing: &Outgoing) -> u64 {
        match self {
            Self::Stream { .. } => value_limit::of_entry(&outgoing.message),
            Self::Rsmq(_) => value_limit::of_body(&outgoing.message),
        }
    }

    /// The operations that put these messages here.
    pub(crate) fn enqueue(&self, batch: &[Outgoing]) -> Vec<StoreOp> {
        let queue = self.name();
        let enqueue = |outgoing: &Outgoing| StoreOp::Enqueue {
            queue: Arc::clone(&queue),
            outgoing: outgoing.clone(),
        };
        batch.iter().map(enqueue).collect()
    }
}

/// Runs one command for many values, a thousand at a time: Lua's stack has no room for more.
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

/// Refuses up front what the user's rights would refuse later. Before Redis 7 a script cannot ask.
pub(crate) const MAY: &str = "
-- A script that ends in an error keeps what it has done: all that could stop it is asked before.
local function may(commands)
  if not redis.acl_check_cmd then return end
  for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then
      local name, key = string.lower(command[1]), command[2]
      local text = \"no permissions to run the '\" .. name .. \"' command on the key `\"
      error({err = 'NOPERM ' .. text .. key .. '`'})
    end
  end
end
";

/// What an acking script needs to put outputs, along with [`MANY`] and [`MAY`]. [`settle`] and
/// [`put`] pass its arguments, which begin at index `first`. It answers with an error if nothing
/// can be put.
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
-- What is wrong is handed back: before Redis 7 an error that is raised loses its code.
local function is(kind, key)
  local there = redis.call('TYPE', key).ok
  if there ~= 'none' and there ~= kind then
    return {err = 'WRONGTYPE a ' .. there .. ' is at the key `' .. key .. '`'}
  end
end
local function rsmq_queue(key, channel)
  local hash = key .. ':Q'
  local wrong = is('zset', key) or is('hash', hash)
  if wrong then return wrong end
  local own = redis.call('HMGET', hash, 'vt', 'delay', 'totalsent')
  if not own[1] then return {err = 'NOQUEUE `' .. key .. '`'} end
  -- Counting would fail after everything else is there.
  if own[3] and not (#own[3] < 19 and string.match(own[3], '^%-?%d+$')) then
    return {err = 'ERR the field `totalsent` at the key `' .. hash .. '` is no count: set it to 0'}
  end
  may({{'ZADD', key, '0', 'm'}, {'HSET', hash, 'f', 'v'}, {'HINCRBY', hash, 'f', '1'}})
  if channel ~= '' then may({{'PUBLISH', channel, '1'}}) end
  return {delay = tonumber(own[2] or 0) * 1000, channel = channel, scores = {}, bodies = {}}
end
local function put(first)
  -- All keys before the first write, so that nothing is put if one of them cannot be.
  local i, seen, queues = first, {}, {}
  while i <= #ARGV do
    local kind, key, n = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
    if seen[key] ~= kind then
      seen[key] = kind
      local wrong = nil
      if kind == 's' then
        wrong = is('stream', key)
        may({{'XADD', key, '*', 'f', 'v'}})
      elseif kind == 'l' then
        wrong = is('zset', key)
        may({{'ZADD', key, '0', 'm'}})
      else
        queues[key] = rsmq_queue(key, ARGV[i + 3])
        wrong = queues[key].err and queues[key]
      end
      if wrong then return wrong end
    end
    i = i + 3 + n
  end
  local time = redis.call('TIME')
  local usec = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local now = math.floor(usec / 1000)
  i = first
  local sent, undo = 0, {}
  while i <= #ARGV do
    local kind, key, n = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
    local from, to = i + 3, i + 2 + n
    if kind == 's' then
      local id = redis.pcall('XADD', key, '*', unpack(ARGV, from, to))
      if type(id) == 'table' then
        -- As of a stream that is at the last id that there is.
        for _, one in ipairs(undo) do redis.pcall(unpack(one)) end
        if string.find(id.err, 'last possible ID', 1, true) then
          return {err = id.err .. ', at the key `' .. key .. '`'}
        end
        -- Whatever else it is ends the script where it says so.
        redis.call('XADD', key, '*', unpack(ARGV, from, to))
      end
      undo[#undo + 1] = {'XDEL', key, id}
    elseif kind == 'l' then
      local packed = cmsgpack.pack({unpack(ARGV, from + 1, to)})
      redis.call('ZADD', key, now + tonumber(ARGV[from]), packed)
      undo[#undo + 1] = {'ZREM', key, packed}
    else
      local queue, delay = queues[key], tonumber(ARGV[from + 1])
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

/// What became of a settlement.
pub(crate) enum Settled {
    /// The script has run, and answers with the places of those whose leases are lost.
    Done(Vec<usize>),
    /// Nothing was done: these outputs are refused, by their messages' ids.
    Refused(Vec<(MessageId, Rejected)>),
}

/// Runs a script with [`PUT`] that acks messages and puts outputs.
pub(crate) async fn settle(
    wire: &Arc<Wire>,
    script: ScriptInvocation<'static>,
    ops: &[StoreOp],
) -> Result<Settled, ConnectorError> {
    let outputs = parsed(ops)?;
    let lengths: Vec<u64> =
        outputs.iter().map(|(target, outgoing)| target.longest(outgoing)).collect();
    let too_long = value_limit::too_long(wire, &lengths).await?;
    if !too_long.is_empty() {
        let id = |at: usize| outputs[at].1.message.id;
        let refused = too_long.into_iter().map(|(at, why)| (id(at), why));
        return Ok(Settled::Refused(refused.collect()));
    }
    run(wire, script, &outputs).await.map(Settled::Done)
}

/// Runs a script with [`PUT`] that puts outputs.
pub(crate) async fn put(
    wire: &Arc<Wire>,
    script: ScriptInvocation<'static>,
    ops: &[StoreOp],
) -> Result<(), ConnectorError> {
    run::<redis::Value>(wire, script, &parsed(ops)?).await.map(drop)
}

type Outputs<'a> = Vec<(Arc<Target>, &'a Outgoing)>;

/// Operations with their targets.
fn parsed(ops: &[StoreOp]) -> Result<Outputs<'_>, ConnectorError> {
    let mut last: Option<(&Arc<str>, Arc<Target>)> = None;
    let mut parsed = Vec::with_capacity(ops.len());
    for op in ops {
        let StoreOp::Enqueue { queue, outgoing } = op else {
            let error = "a settlement on Redis takes messages only";
            return Err(ConnectorError::unsupported(error));
        };
        // Outputs of one batch share their name.
        let target = match &last {
            Some((name, target)) if Arc::ptr_eq(name, queue) => Arc::clone(target),
            _ => Arc::new(Target::of_name(queue).ok_or_else(|| {
                ConnectorError::unsupported(format!("`{queue}` is no queue on Redis"))
            })?),
        };
        last = Some((queue, Arc::clone(&target)));
        parsed.push((target, outgoing));
    }
    Ok(parsed)
}

/// Adds outputs to a script's arguments and runs it. RSMQ queues that someone has deleted are made
/// again: nobody else would find a message that is put without its queue.
async fn run<T: FromRedisValue + Send + 'static>(
    wire: &Arc<Wire>,
    mut script: ScriptInvocation<'static>,
    outputs: &Outputs<'_>,
) -> Result<T, ConnectorError> {
    for (target, outgoing) in outputs {
        add(&mut script, target, outgoing);
    }
    let bytes = outputs.iter().map(|(_, outgoing)| outgoing.message.size()).sum();
    let script = Arc::new(script);
    let answer = match wire.try_script_of(Arc::clone(&script), bytes).await {
        Err(failure) if failure.is_no_queue() => {
            for target in distinct(outputs) {
                if let Target::Rsmq(made) = target {
                    made.make_again(wire).await?;
                }
            }
            wire.try_script_of(script, bytes).await
        }
        answer => answer,
    };
    answer.map_err(|failure| {
        // The wrong key may be an output's, not one of the queue that this connection belongs to.
        let text = failure.error.to_string();
        let named =
            |target: &&Target| target.keys().iter().any(|k| text.contains(&format!("`{k}`")));
        match distinct(outputs).find(named) {
            Some(target) => wire.told_of(target.queue(), &failure),
            None => wire.told(&failure),
        }
    })
}

/// The targets of outputs, one for each run of outputs of the same batch.
fn distinct<'a>(outputs: &'a Outputs<'_>) -> impl Iterator<Item = &'a Target> {
    outputs.chunk_by(|a, b| Arc::ptr_eq(&a.0, &b.0)).map(|batch| &*batch[0].0)
}

fn add(script: &mut ScriptInvocation<'_>, target: &Target, outgoing: &Outgoing) {
    let delay = outgoing.delay.filter(|delay| !delay.is_zero()).map(|delay| delay.as_millis());
    match target {
        Target::Stream { stream, later, .. } => {
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
        Target::Rsmq(made) => {
            script.arg("q").arg(made.messages()).arg(4).arg(made.channel().unwrap_or_default());
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
        let queue: Arc<str> = "orders".into();
        let (stream, later) = ("a b".into(), "{a b}:brigade:later".into());
        let stream = Target::Stream { queue: Arc::clone(&queue), stream, later };
        let (namespace, name) = ("rsmq".into(), "q".into());
        let rsmq = Target::Rsmq(QueueDefinition {
            queue,
            namespace,
            name,
            vt: 30,
            maxsize: -1,
            realtime: true,
        });
        for target in [stream, rsmq] {
            assert_eq!(Target::of_name(&target.name()), Some(target));
        }
        assert_eq!(Target::of_name("kafka-topic"), None);
    }
}

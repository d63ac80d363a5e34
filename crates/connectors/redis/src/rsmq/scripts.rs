//! The scripts: each is one step that is done entirely or not at all. All times are the server's.

use std::sync::LazyLock;

use crate::output::{MANY, MAY, PUT};
use crate::script::Script;

const NOW: &str = "
local time = redis.call('TIME')
local usec = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(usec / 1000)
";

/// Whether a receive still stands: the message exists and was not received again.
const STANDS: &str = "
local function stands(id, rc)
  return redis.call('HGET', KEYS[2], id .. ':rc') == rc
end
";

/// Deletes messages. KEYS: messages, hash, attempts.
const DELETE_ALL: &str = "
local function delete(ids)
  local fields = {}
  for _, id in ipairs(ids) do
    fields[#fields + 1] = id
    fields[#fields + 1] = id .. ':rc'
    fields[#fields + 1] = id .. ':fr'
  end
  many('ZREM', KEYS[1], ids)
  many('HDEL', KEYS[2], fields)
  if redis.call('EXISTS', KEYS[3]) == 1 then many('HDEL', KEYS[3], ids) end
end
";

fn script(shared: &[&str], text: &str) -> Script {
    Script::new(&(shared.concat() + text))
}

/// Makes a queue if it does not exist. KEYS: hash, set of queues. ARGV: name, vt, maxsize.
pub(crate) static CREATE: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[NOW],
        "
        local made = redis.call('HSETNX', KEYS[1], 'vt', ARGV[2])
        redis.call('HSETNX', KEYS[1], 'delay', 0)
        redis.call('HSETNX', KEYS[1], 'maxsize', ARGV[3])
        redis.call('HSETNX', KEYS[1], 'created', time[1])
        redis.call('HSETNX', KEYS[1], 'modified', time[1])
        redis.call('SADD', KEYS[2], ARGV[1])
        return made",
    )
});

/// Sends messages. ARGV: outputs.
pub(crate) static SEND: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[MANY, MAY, PUT],
        "
        return put(1) or 1",
    )
});

/// Receives messages. KEYS: messages, hash, attempts. ARGV: count, vt in milliseconds. Returns
/// messages as id, body, receive count, first receive, attempts; and in how many milliseconds the
/// next may be received, or -1.
pub(crate) static RECEIVE: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[NOW, MANY],
        "
        if redis.call('HEXISTS', KEYS[2], 'vt') == 0 then return {err = 'NOQUEUE it was deleted'} end
        local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
        local received = {}
        if #due > 0 then
          local fields = {}
          for _, id in ipairs(due) do
            fields[#fields + 1] = id
            fields[#fields + 1] = id .. ':rc'
            fields[#fields + 1] = id .. ':fr'
          end
          local values = get_many(KEYS[2], fields)
          local has_attempts = redis.call('EXISTS', KEYS[3]) == 1
          local attempts = has_attempts and get_many(KEYS[3], due) or {}
          local time = string.format('%.0f', now)
          local from = string.format('%.0f', now + tonumber(ARGV[2]))
          local scores, counts = {}, {}
          for i, id in ipairs(due) do
            local rc = (tonumber(values[3 * i - 1]) or 0) + 1
            local fr = values[3 * i]
            if rc == 1 or not fr then
              fr = time
              counts[#counts + 1] = id .. ':fr'
              counts[#counts + 1] = fr
            end
            counts[#counts + 1] = id .. ':rc'
            counts[#counts + 1] = string.format('%.0f', rc)
            scores[#scores + 1] = from
            scores[#scores + 1] = id
            received[i] = {id, values[3 * i - 2], rc, fr, attempts[i] or false}
          end
          -- First: of something that is no number it fails, and then nothing is hidden.
          redis.call('HINCRBY', KEYS[2], 'totalrecv', #due)
          many('ZADD', KEYS[1], scores)
          many('HSET', KEYS[2], counts)
        end
        local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
        return {received, next[2] and math.max(tonumber(next[2]) - now, 0) or -1}",
    )
});

/// Deletes what still stands, and puts outputs; with outputs all or nothing. KEYS: messages, hash,
/// attempts. ARGV: how many, id and receive count of each, then outputs. Answers with the places of the fenced,
/// from 0.
pub(crate) static DELETE: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[MANY, DELETE_ALL, MAY, PUT],
        "
        local past = 1 + 2 * tonumber(ARGV[1])
        local fields = {}
        for i = 2, past, 2 do fields[#fields + 1] = ARGV[i] .. ':rc' end
        local counts = get_many(KEYS[2], fields)
        local fenced, good, seen = {}, {}, {}
        for i = 2, past, 2 do
          -- It is there, and was not received again. One receiving is one, also where a server that lost its end
          -- has told it twice.
          local stands = counts[i / 2] == ARGV[i + 1] and not seen[ARGV[i]]
          if stands then
            good[#good + 1] = ARGV[i]
            seen[ARGV[i]] = true
          else
            fenced[#fenced + 1] = i / 2 - 1
          end
        end
        if #fenced > 0 and #ARGV > past then return fenced end
        -- What would fail if a key had another type, or a right were missing, fails here.
        redis.call('ZCARD', KEYS[1])
        redis.call('HLEN', KEYS[3])
        may({{'ZREM', KEYS[1], 'm'}, {'HDEL', KEYS[2], 'f'}})
        -- Outputs first: a script that ends in an error keeps what it has done.
        local wrong = put(past + 1)
        if wrong then return wrong end
        delete(good)
        return fenced",
    )
});

/// Hides what still stands for a period from now. KEYS: messages, hash, attempts. ARGV: for each
/// message id, receive count, milliseconds, failed attempts (-1: unchanged). Returns the places of
/// the fenced, from 0.
pub(crate) static HIDE: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[NOW, STANDS],
        "
        local fenced = {}
        -- A full server refuses a script what takes room, but not once it has removed something. What fails has
        -- to go back all the same, and what is renewed takes none: the deletions that make room wait for it.
        redis.call('HDEL', KEYS[3], 'f')
        for i = 1, #ARGV, 4 do
          local id = ARGV[i]
          if stands(id, ARGV[i + 1]) then
            local from = now + tonumber(ARGV[i + 2])
            redis.call('ZADD', KEYS[1], string.format('%.0f', from), id)
            if tonumber(ARGV[i + 3]) >= 0 then redis.call('HSET', KEYS[3], id, ARGV[i + 3]) end
          else
            fenced[#fenced + 1] = (i - 1) / 4
          end
        end
        return fenced",
    )
});

/// Makes visible again what still stands and nobody was handed. The receive count stays: it is what
/// tells this receiver from the next. KEYS: messages, hash, attempts. ARGV: for each message id,
/// receive count, when it was sent in milliseconds, or nothing if its id does not tell.
pub(crate) static PUT_BACK: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[NOW, STANDS],
        "
        -- A full server refuses a script what takes room, but not once it has removed something.
        redis.call('HDEL', KEYS[3], 'f')
        for i = 1, #ARGV, 3 do
          local id = ARGV[i]
          if stands(id, ARGV[i + 1]) then
            -- Not behind what was sent later.
            local from = math.min(tonumber(ARGV[i + 2]) or now, now)
            redis.call('ZADD', KEYS[1], string.format('%.0f', from), id)
          end
        end
        return 1",
    )
});

/// Forgets the attempts of messages that other clients have deleted, checking a few each time.
/// KEYS: messages, attempts. ARGV: where to begin: what the last call returned, at first 0.
pub(crate) static FORGET: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[],
        "
        local next = redis.call('HSCAN', KEYS[2], ARGV[1], 'COUNT', 100)
        for i = 1, #next[2], 2 do
          local id = next[2][i]
          if not redis.call('ZSCORE', KEYS[1], id) then redis.call('HDEL', KEYS[2], id) end
        end
        return next[1]",
    )
});

/// Removes messages that nobody works on. KEYS: messages, hash, attempts. ARGV: ids. Returns how
/// many were removed.
pub(crate) static REMOVE: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[NOW, MANY, DELETE_ALL],
        "
        local gone = {}
        for _, id in ipairs(ARGV) do
          local from = redis.call('ZSCORE', KEYS[1], id)
          local received = redis.call('HEXISTS', KEYS[2], id .. ':rc') == 1
          if from and (tonumber(from) <= now or not received) then
            gone[#gone + 1] = id
          end
        end
        delete(gone)
        return #gone",
    )
});

/// How many can be received, and how many are hidden. KEYS: messages.
pub(crate) static LAG: LazyLock<Script> = LazyLock::new(|| {
    script(
        &[NOW],
        "
        local ready = redis.call('ZCOUNT', KEYS[1], '-inf', now)
        return {ready, redis.call('ZCARD', KEYS[1]) - ready}",
    )
});

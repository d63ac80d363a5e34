//! A stream's groups, and which stream of its name it is: one that was deleted and made again is
//! another.

use std::sync::{Arc, LazyLock};

use brigade_core::IncarnationId;
use brigade_core::connector::ConnectorError;
use redis::cmd;

use super::connector::Keys;
use super::lua::NEEDS;
use crate::failure::Failure;
use crate::output::MAY;
use crate::script::Script;
use crate::wire::Wire;

/// Makes groups that do not exist, from the beginning of their stream, and the stream if it does
/// not exist. Groups go with their stream: an existing group whose incarnation was noted shows that
/// the stream is still the same. KEYS: stream, incarnation. ARGV: the incarnation to use if it is
/// another stream, the groups. Returns the incarnation.
static MAKE_GROUPS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NEEDS}{MAY}
        local stream, kept, there, incarnation = KEYS[1], KEYS[2], {{}}, false
        for _, group in ipairs(groups_of(stream)) do
          there[group['name']] = true
          incarnation = incarnation or redis.call('HGET', kept, group['name'])
        end
        may({{{{'DEL', kept}}, {{'HDEL', kept, 'f'}}, {{'HSET', kept, 'f', 'v'}}}})
        -- A full server refuses a script what takes room, but not once it has removed something. Where one group
        -- is there, the others are made there too: without them nothing goes, and no room would come.
        if next(there) then redis.call('HDEL', kept, 'f') end
        for i = 2, #ARGV do
          if not there[ARGV[i]] then
            redis.call('XGROUP', 'CREATE', stream, ARGV[i], '0', 'MKSTREAM')
          end
        end
        -- Removed first, for the same reason: consumers begin there too, and make room.
        if incarnation then
          redis.call('HDEL', kept, unpack(ARGV, 2))
        else
          redis.call('DEL', kept)
          incarnation = ARGV[1]
        end
        for i = 2, #ARGV do redis.call('HSET', kept, ARGV[i], incarnation) end
        return incarnation"
    ))
});

/// Makes the groups of a stream that do not exist, for all of the file's stages: an entry that only
/// one group has to ack is removed with its ack, so a group made later would not get it. Returns
/// the stream's incarnation, another one if the stream was made again.
pub(super) async fn make_groups(
    wire: &Arc<Wire>,
    keys: &Keys,
    groups: &[String],
) -> Result<IncarnationId, ConnectorError> {
    try_make_groups(wire, keys, groups).await.map_err(|failure| wire.told(&failure))
}

async fn try_make_groups(
    wire: &Arc<Wire>,
    keys: &Keys,
    groups: &[String],
) -> Result<IncarnationId, Failure> {
    let mut make = MAKE_GROUPS.key(&keys.stream);
    make.key(&keys.incarnation).arg(format!("{:032x}", fastrand::u128(..))).arg(groups);
    let told: String = wire.try_script(make).await?;
    Ok(IncarnationId::of(told.as_bytes()))
}

/// Makes groups again that were found missing while a pipeline runs, and logs that.
pub(super) async fn mend_groups(
    wire: &Arc<Wire>,
    keys: &Keys,
    groups: &[String],
) -> Result<(), Failure> {
    try_make_groups(wire, keys, groups).await?;
    tracing::warn!(
        queue = %keys.queue, key = %keys.stream, groups = groups.join(", "),
        "somebody has deleted the stream or groups of it on the server: they are made again; with the stream all \
         that was in it is gone, with a group alone all that is in the stream comes again"
    );
    Ok(())
}

/// The incarnation of a stream as noted for a group, if it was.
pub(super) async fn incarnation(
    wire: &Arc<Wire>,
    keys: &Keys,
) -> Result<Option<IncarnationId>, ConnectorError> {
    let told: Option<String> =
        wire.command(cmd("HGET").arg(&keys.incarnation).arg(&keys.group)).await?;
    Ok(told.map(|told| IncarnationId::of(told.as_bytes())))
}

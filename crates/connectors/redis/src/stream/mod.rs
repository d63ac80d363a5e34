//! Queues on Redis Streams: consumer groups, delayed redelivery with attempts, takeover from members
//! that died.
//!
//! # On the wire
//!
//! A message is an entry of the stream. Its fields, in this order and each only if there is something:
//! `payload` (missing is a null payload), `key`, `id` (32 hexadecimal digits), `event_time`
//! (milliseconds since 1970), and for each header `h:NAME` with its value or `n:NAME` for a null
//! header; a header's name may come again. Other programs may write entries with nothing but
//! `payload`.
//!
//! Beside the stream `S` there are, for a group `G`: the sorted set `{S}:brigade:G:delayed` (entries
//! that wait for their time, by milliseconds; they stay pending, with the member `~delayed`), the hash
//! `{S}:brigade:G:attempts` (failed attempts, and when the first failed), and the key
//! `{S}:brigade:G:alive:MEMBER` that a live member renews (`1`, and on Linux where it runs, its
//! process's number and when that began); and for the stream the sorted set `{S}:brigade:later`
//! (messages that were put with a delay), and the hash `{S}:brigade:incarnation` (for each group that
//! was made a random number, which tells this stream from others that had its name). The keys lie in
//! the stream's slot: of one with a hash tag of its own, as `{T}:s`, they begin with `{T}{T}:s` instead
//! of `{S}`. Members of Brigade's are named `brigade-` and 16 hexadecimal digits; what others hold is
//! theirs until it is idle for too long.
//!
//! An entry is removed from the stream when it is acked and the stream has only one group; with
//! several groups when every group is past it. With a retention it stays until it is too old, or one too
//! many.

mod admin;
mod connector;
mod consumer;
mod entry;
mod groups;
mod held;
mod lag;
mod members;
mod process;
mod producer;
mod retention;
mod scripts;

pub use connector::RedisStreams;
pub(crate) use entry::fields;

//! Queues on Redis Streams: consumer groups, delayed redelivery with attempts, takeover from
//! members that died.
//!
//! # On the wire
//!
//! A message is an entry of the stream. Its fields, in this order and each only if there is a
//! value: `payload` (missing for a null payload), `key`, `id` (32 hexadecimal digits), `event_time`
//! (milliseconds since 1970), and for each header `h:NAME` with its value or `n:NAME` for a null
//! header; a header's name may be repeated. Other programs may write entries with nothing but
//! `payload`.
//!
//! For a stream `S` and a group `G` there are also: the sorted set `{S}:brigade:G:delayed` (entries
//! that wait for their time, by milliseconds; they stay pending, with the member `~delayed`), the
//! hash `{S}:brigade:G:attempts` (failed attempts, and when the first failed), and the key
//! `{S}:brigade:G:alive:MEMBER` that a live member renews (`1`, and on Linux where it runs, its
//! process's number and when that began). For the stream as a whole there are the sorted set
//! `{S}:brigade:later` (messages that were put with a delay), and the hash
//! `{S}:brigade:incarnation` (for each group that was made, a random number that distinguishes this
//! stream from others that had its name). The keys are in the stream's slot: if the stream has a
//! hash tag of its own, as in `{T}:s`, they begin with `{T}{T}:s` instead of `{S}`. Brigade's
//! members are named `brigade-` and 16 hexadecimal digits; what others hold is theirs until it has
//! been idle for too long.
//!
//! An entry is removed from the stream when it is acked, if the stream has only one group; with
//! several groups, when every group is past it. With a retention it stays until it is too old, or
//! one too many.

mod admin;
mod admin_scripts;
mod back;
mod connector;
mod consumer;
mod entry;
mod groups;
mod held;
mod lag;
mod lua;
mod members;
mod process;
mod producer;
mod retention;
mod scripts;

pub use connector::RedisStreams;
pub(crate) use entry::fields;

//! Brigade's queues on Redis: [Streams](stream), and [RSMQ](rsmq), the queues of the Node and
//! Python clients of that name.

mod failure;
mod outcomes;
mod output;
mod pace;
mod redeliveries;
pub mod rsmq;
mod script;
mod server;
pub mod stream;
mod thread;
mod value_limit;
mod wire;

pub use rsmq::Rsmq;
pub use stream::RedisStreams;

//! Brigade's queues on Redis: [Streams](stream), and [RSMQ](rsmq), the queues of the Node and Python
//! clients of that name.

mod limit;
mod longest;
mod outcomes;
mod output;
mod pace;
pub mod rsmq;
mod script;
mod server;
pub mod stream;
mod thread;
mod told;
mod wire;

pub use rsmq::Rsmq;
pub use stream::RedisStreams;

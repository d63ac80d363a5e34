//! Queues in the memory of one process: for tests, for stages of one process that need no
//! durability, and for programs that embed Brigade and feed it directly.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use brigade_core::Message;
//! use brigade_memory::Memory;
//! let memory = Memory::new();
//! memory.put("flights", "arrivals", [Message::new("{}")]);
//! assert_eq!(memory.messages("flights", "arrivals").len(), 1);
//! # }
//! ```

mod connector;
mod consumer;
mod producer;
mod state;

pub use connector::Memory;
pub use state::MemoryState;

/// Time is tokio's, so that tests can pause it.
type Group = brigade_core::group::Group<tokio::time::Instant>;

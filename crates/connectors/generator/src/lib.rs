//! Generated messages, for experiments and benchmarks: seeded, so that the same file makes the same
//! messages; limited in rate and number. See [`Generator`].

mod connector;
mod consumer;
mod template;

pub use connector::Generator;

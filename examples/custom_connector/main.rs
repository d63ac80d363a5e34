//! A program with a connector of its own: queues of type `spool`, directories in which each file is
//! a message. The connector is in `spool.rs`; `tests/examples.rs` has it in the conformance suite.
//!
//! `cargo run --example custom_connector -- run pipelines/spool.yaml --until-idle`, after
//! `mkdir -p out/in` and `echo '"hello"' > out/in/1.msg`.

mod spool;

use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let registry = brigade::registry().connector(Arc::new(spool::Spool));
    brigade::cli::main(registry)
}

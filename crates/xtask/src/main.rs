//! The project's scripts: `cargo xtask test`, `cargo xtask tidy`, `cargo xtask docs`.

mod docs;
mod test;
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Brigade's scripts")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every test: units, pipelines, crashes, documentation, and the rules of the tree.
    Test(test::Test),
    /// Check the rules of the tree.
    Tidy,
    /// Write the pages of the documentation that are generated.
    Docs,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Test(test) => test.run(),
        Command::Tidy => tidy::run(),
        Command::Docs => docs::run(),
    }
}

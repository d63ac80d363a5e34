//! The project's scripts: `cargo xtask test`, `install`, `bench`, `soak`, `fuzz`, `docs` and
//! `tidy`.

mod bench;
mod docs;
mod fuzz;
mod needs;
mod soak;
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
    /// Install what tests need and is missing, on Debian as root.
    Install,
    /// Measure, next to hand-written loops, and write the table.
    Bench(bench::Bench),
    /// Disturb processes and brokers in every way for a long time; and fuzz.
    Soak(soak::Soak),
    /// Check the rules of the tree.
    Tidy,
    /// Write the pages of the documentation that are generated.
    Docs,
    /// Fuzz the code that reads foreign input.
    Fuzz(fuzz::Fuzz),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Test(test) => test.run(),
        Command::Install => needs::install_all(),
        Command::Bench(bench) => bench.run(),
        Command::Soak(soak) => soak.run(),
        Command::Tidy => tidy::run(),
        Command::Docs => docs::run(),
        Command::Fuzz(fuzz) => fuzz.run(),
    }
}

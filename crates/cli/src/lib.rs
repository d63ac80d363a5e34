//! The `brigade` command, for the program of that name and for users' own programs, which get it
//! with `brigade::main!`. One file per command.

mod absent;
mod asyncapi;
mod check;
mod common;
mod dead_letters;
mod graph;
mod import;
mod log;
mod parked;
mod progress;
mod queues;
mod run;
mod schema;
mod test;

use std::process::ExitCode;

use brigade_runtime::Registry;
use clap::{Parser, Subcommand};

/// How a command ended, as the program's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done = 0,
    /// Wrong usage, or a wrong pipeline file.
    Usage = 2,
    DeadLetters = 3,
    Failed = 4,
    Aborted = 5,
}

/// Pipelines that move messages between queues and lose none.
#[derive(Debug, Parser)]
#[command(name = "brigade", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline.
    Run(run::Run),
    /// Check a pipeline file without running it.
    Check(check::Check),
    /// Describe a pipeline's queues as an AsyncAPI 3 document.
    Asyncapi(asyncapi::AsyncApi),
    /// Draw a pipeline.
    Graph(graph::Graph),
    /// Convert another system's file to a pipeline file.
    Import(import::Import),
    /// Print the JSON Schema of pipeline files, for editors; or the reference of their keys.
    Schema(schema::Schema),
    /// Run the cases of test files.
    Test(test::Test),
    /// Look into queues.
    Queues(queues::Queues),
    /// Inspect dead letters, and send them back.
    DeadLetters(dead_letters::DeadLetters),
}

/// Runs the command line with these connectors and components.
pub fn main(registry: Registry) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are not errors; clap knows where each goes.
            let code = u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8);
            // If help cannot be printed, the command has failed.
            return match error.print() {
                Err(_) if code == 0 => ExitCode::from(Exit::Usage as u8),
                _ => ExitCode::from(code),
            };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(arguments.command, &registry)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            common::complain(&error);
            ExitCode::from(Exit::Usage as u8)
        }
    }
}

async fn dispatch(command: Command, registry: &Registry) -> anyhow::Result<Exit> {
    match command {
        Command::Run(run) => run.run(registry).await,
        Command::Check(check) => check.run(registry).await,
        Command::Asyncapi(asyncapi) => asyncapi.run(registry),
        Command::Graph(graph) => graph.run(registry),
        Command::Import(import) => import.run(registry),
        Command::Schema(schema) => schema.run(registry),
        Command::Test(test) => test.run(registry).await,
        Command::Queues(queues) => queues.run(registry).await,
        Command::DeadLetters(dead_letters) => dead_letters.run(registry).await,
    }
}

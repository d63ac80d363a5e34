//! The `brigade` command: pipelines of built-in components.

fn main() -> std::process::ExitCode {
    brigade_cli::main(brigade::registry())
}

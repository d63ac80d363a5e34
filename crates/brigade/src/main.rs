//! The `brigade` command: pipelines of built-in components.

brigade::allocator! {}

fn main() -> std::process::ExitCode {
    brigade_cli::main(brigade::registry())
}

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::{npm, used};

/// The parser's package and version.
const PARSER: &str = "@asyncapi/parser@3.6.3";
const PROGRAM: &str = include_str!("asyncapi.js");

/// The complaints of AsyncAPI's own parser about a document: an empty list if it accepts it. `npm`
/// fetches the parser, once, into the user's cache directory.
///
/// # Panics
/// `node` or `npm` is not installed, or the package cannot be fetched.
pub fn asyncapi_complaints(document: &str) -> Vec<String> {
    used("asyncapi parser");
    let modules = npm("asyncapi", PARSER);
    let mut node = Command::new("node");
    node.arg("-e").arg(PROGRAM).env("NODE_PATH", modules);
    node.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = node.spawn().expect("node is installed");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(document.as_bytes()).expect("the parser reads it");
    drop(input);
    let output = child.wait_with_output().expect("the parser ends");
    assert!(output.status.success(), "the parser failed");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

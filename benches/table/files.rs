//! From a file to a file.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};

use brigade::Failure;
use brigade::component::Raw;

use crate::support::{Row, Spent, Stopwatch, idle, pipeline, timed};

const MESSAGES: usize = 300_000;
/// Lines between two syncs of the loop by hand: as many as Brigade settles at once. It syncs as Brigade
/// does: the output, and then how far it is.
const SYNC_EVERY: usize = 1024;

fn lines() -> String {
    let text = "x".repeat(170);
    (0..MESSAGES).map(|n| format!("{{\"n\":{n},\"text\":\"{text}\"}}\n")).collect()
}

fn copy(raw: Raw) -> Result<Vec<u8>, Failure> {
    Ok(raw.0.as_deref().unwrap_or_default().to_vec())
}

pub(crate) fn through(name: &'static str) -> Row {
    let ours = || {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = |name: &str| directory.path().join(name).display().to_string();
        fs::write(path("in.jsonl"), lines()).expect("the directory can be written");
        let text = format!(
            "pipeline: bench
lanes: 1
queues:
  in: {{ type: file, path: '{}' }}
  out: {{ type: file, path: '{}' }}
stages:
  copy: {{ component: copy, input: in, outputs: [out], workers: 1 }}
",
            path("in.jsonl"),
            path("out.jsonl")
        );
        let registry =
            brigade::registry().component("copy", |raw: Raw| copy(raw).map(bytes::Bytes::from));
        let pipeline = pipeline(&text, &registry).state_path(directory.path().join("state"));
        let took = timed(pipeline, idle);
        let written = fs::metadata(path("out.jsonl")).expect("the file is there").len();
        assert_eq!(written, fs::metadata(path("in.jsonl")).expect("the file is there").len());
        took
    };
    Row::rates(name, 0.7, MESSAGES, ours, by_hand)
}

fn by_hand() -> Spent {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("in.jsonl"), lines()).expect("the directory can be written");
    let begun = Stopwatch::start();
    let input = BufReader::with_capacity(
        1 << 18,
        fs::File::open(path("in.jsonl")).expect("the file is there or can be made"),
    );
    let mut output = fs::File::create(path("out.jsonl")).expect("the file is there or can be made");
    let mut position =
        fs::File::create(path("position")).expect("the file is there or can be made");
    let mut sync = |batch: &mut Vec<u8>, lines: usize| {
        output.write_all(batch).expect("the file can be written");
        output.sync_data().expect("the file can be written");
        writeln!(position, "{lines:020}").expect("the file can be written");
        position.sync_data().expect("the file can be written");
        batch.clear();
    };
    let mut batch = Vec::new();
    for (n, line) in input.split(b'\n').enumerate() {
        batch.extend(line.expect("the file can be read"));
        batch.push(b'\n');
        if (n + 1) % SYNC_EVERY == 0 {
            sync(&mut batch, n + 1);
        }
    }
    sync(&mut batch, MESSAGES);
    begun.stop()
}

//! Bad data and bad machines: a clear error that says what to do, nothing lost, no hang, no panic.
//! What needs privileges is in `machine.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/place.rs"]
mod place;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use brigade::CauseKind;
use place::{Place, eventually, numbers, said, start};

/// What is right passes in its order, each bad line is a dead letter with its bytes.
fn good_and_bad(lines: &[(&[u8], Option<CauseKind>)]) -> Place {
    let input: Vec<u8> = lines.iter().flat_map(|(line, _)| [line, &b"\n"[..]].concat()).collect();
    let place = Place::new(&input);
    place.run(&[], if lines.iter().any(|(_, cause)| cause.is_some()) { 3 } else { 0 });
    let mut dead: Vec<_> = place.dead().into_iter().map(Some).collect();
    assert_eq!(dead.len(), lines.iter().filter(|(_, cause)| cause.is_some()).count());
    for (line, cause) in lines {
        let Some(cause) = cause else { continue };
        let of_the_line = |letter: &Option<brigade::DeadLetter>| {
            let Some(letter) = letter else { return false };
            let payload = letter.message.payload.as_deref().unwrap();
            let whole = letter.truncated.as_ref().map_or(payload.len() as u64, |whole| whole.bytes);
            whole == line.len() as u64 && line.starts_with(payload) && letter.cause.kind == *cause
        };
        let found = dead.iter_mut().find(|letter| of_the_line(letter));
        let start = String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned();
        *found.unwrap_or_else(|| panic!("no dead letter ({cause:?}) of {start}")) = None;
    }
    place
}

#[test]
fn each_bad_line_is_a_dead_letter_and_the_good_ones_go_on() {
    use CauseKind::{Decode, Schema, TooLarge};
    const LONG: usize = 20 << 20;
    let place = good_and_bad(&[
        (b"{\"n\":1}", None),
        (b"", None),
        (b"{\"n\":", Some(Decode)),
        (b"{\"n\":1} {\"n\":2}", Some(Decode)),
        (b"{'n':1}", Some(Decode)),
        (b"{\"n\":1,}", Some(Decode)),
        (b"{\"n\":NaN}", Some(Decode)),
        (b"{\"n\":01}", Some(Decode)),
        (b"\0\0", Some(Decode)),
        (b"{\"n\":\"\0\"}", Some(Decode)),
        (b"{\"n\":\"\xff\xfe\"}", Some(Decode)),
        (b"{\"n\":\"\\ud800\"}", Some(Decode)),
        (b"\xEF\xBB\xBF{\"n\":1}", Some(Decode)),
        (&[b'['; 100_000], Some(Decode)),
        (&[b'{'; 100_000], Some(Decode)),
        (&[&b"{\"n\":".repeat(100_000)[..], b"12345678901234567890"].concat(), Some(Decode)),
        (b"{\"n\":1e999}", Some(Decode)),
        (b"[1]", Some(Schema)),
        (b"null", Some(Schema)),
        (b"5", Some(Schema)),
        (b"{\"a\":1,\"a\":2}", None),
        (&[b'x'; LONG], Some(TooLarge)),
        (b"   ", Some(Decode)),
        (b"{\"n\":3}\r", None),
        (b"\r", None),
        (b"{\"n\":4}", None),
    ]);
    assert_eq!(place.arrived(), "{\"a\":2}\n{\"n\":1}\n{\"n\":3}\n{\"n\":4}\n");
}

#[test]
fn numbers_pass_exactly_however_many_digits_they_have() {
    let lines: [&[u8]; 6] = [
        b"{\"n\":9007199254740993}",
        b"{\"n\":18446744073709551616}",
        b"{\"n\":-123456789012345678901234567890}",
        b"{\"n\":0.12345678901234567890123}",
        b"{\"n\":-0.5}",
        b"{\"n\":[12345678901234567890,{\"a\":\"12345678901234567890\"}]}",
    ];
    let place = good_and_bad(&lines.map(|line| (line, None)));
    let expected: Vec<u8> = lines.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
    let expected = place::in_order(&String::from_utf8(expected).unwrap());
    assert_eq!(place.arrived(), expected);
}

#[test]
fn a_byte_order_mark_at_the_start_belongs_to_no_line() {
    for start in ["\u{feff}", "\u{feff}\n", "\u{feff}\r\n"] {
        let place = Place::new(format!("{start}{}", numbers(3)).as_bytes());
        place.run(&[], 0);
        assert_eq!(place.arrived(), numbers(3));
    }
    let place = Place::new(b"");
    fs::write(place.path("in.csv"), "\u{feff}n,m\n1,2\n").unwrap();
    place.run(&["queues.in.path=in.csv"], 0);
    assert_eq!(place.out(), "{\"n\":\"1\",\"m\":\"2\"}\n");
}

#[test]
fn files_with_nothing_in_them_are_no_error() {
    for input in [&b""[..], b"\n\n\n", b"\r\n\r\n", b"\xEF\xBB\xBF", b"{}"] {
        let place = Place::new(input);
        place.run(&[], 0);
        let out = fs::read_to_string(place.path("out.jsonl")).unwrap_or_default();
        assert_eq!(out, if input == b"{}" { "{}\n" } else { "" });
    }
}

/// 10 MB pass, 100 MB become dead letters; 384 MiB are enough for that.
#[test]
fn long_lines_need_bounded_memory() {
    let place = Place::new(b"");
    let mut input = std::io::BufWriter::new(fs::File::create(place.path("in.jsonl")).unwrap());
    let line =
        |byte: u8, length: usize| [&b"{\"n\":\""[..], &vec![byte; length], b"\"}\n"].concat();
    let (fits, long) = (line(b'a', 10_000_000), line(b'b', 100_000_000));
    for part in [&fits, &long, &fits, &long, &long, &fits] {
        input.write_all(part).unwrap();
    }
    input.write_all(numbers(3).as_bytes()).unwrap();
    drop(input);
    let by = ["prlimit", "--data=402653184"];
    said(&place.command_by(&by, &[]).output().unwrap(), &[3]);
    let out = place.arrived();
    let lengths: Vec<usize> = out.lines().map(str::len).collect();
    assert_eq!(lengths, [7, 7, 7, fits.len() - 1, fits.len() - 1, fits.len() - 1]);
    let dead = place.dead();
    let whole: Vec<u64> = dead.iter().map(|dead| dead.truncated.as_ref().unwrap().bytes).collect();
    assert_eq!(whole, [long.len() as u64 - 1; 3]);
}

#[test]
fn bad_rows_of_csv_are_dead_letters_and_the_good_ones_go_on() {
    let place = Place::new(b"");
    let rows = b"n,m\n1,a\n2,\xff\n3\n4,b,c\n5,\"x\ny\"\n6,\0\n7,\"d\n8,\"e\"\n9,f\n10,\"g\n11,h\n";
    fs::write(place.path("in.csv"), rows).unwrap();
    place.run(&["queues.in.path=in.csv"], 3);
    let expected = [
        r#"{"n":"1","m":"a"}"#,
        r#"{"n":"3"}"#,
        r#"{"n":"5","m":"x\ny"}"#,
        r#"{"n":"6","m":"\u0000"}"#,
        r#"{"n":"9","m":"f"}"#,
    ];
    assert_eq!(place.arrived(), place::in_order(&(expected.join("\n") + "\n")));
    let dead = place.dead();
    let bad: [(&[u8], &str); 4] = [
        (b"2,\xff", "not a row of CSV: a field is not UTF-8"),
        (b"4,b,c", "not a row of CSV: 3 fields, but the header has 2"),
        (b"7,\"d\n8,\"e\"", "something follows a quote"),
        (b"10,\"g\n11,h", "a quote is not closed"),
    ];
    assert_eq!(dead.len(), bad.len());
    for (text, why) in bad {
        let letter = dead.iter().find(|dead| dead.message.payload.as_deref() == Some(text));
        let cause = &letter.unwrap_or_else(|| panic!("no dead letter of {text:?}")).cause;
        assert!(cause.kind == CauseKind::Decode && cause.message.contains(why), "{cause:?}");
    }
}

#[test]
fn a_row_of_csv_that_is_not_utf8_is_a_dead_letter_also_where_nobody_reads_it() {
    let place = Place::new(b"");
    let text = fs::read_to_string(place.path("p.yaml")).unwrap();
    let text = text.replace(", schema: { type: object }", "").replace("{ map: '.' }", "pass");
    fs::write(place.path("p.yaml"), text).unwrap();
    fs::write(place.path("in.csv"), b"a,b\n\xff,2\n3,4\n").unwrap();
    place.run(&["queues.in.path=in.csv"], 3);
    assert_eq!(place.out(), "{\"a\":\"3\",\"b\":\"4\"}\n");
    let dead = place.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].message.payload.as_deref(), Some(&b"\xff,2"[..]));
    assert!(dead[0].cause.kind == CauseKind::Decode, "{:?}", dead[0].cause);
    fs::write(place.path("other.csv"), b"a,\xff\n1,2\n").unwrap();
    let error = place.run(&["queues.in.path=other.csv"], 4);
    assert!(error.contains("other.csv: its header is not UTF-8"), "{error}");
}

#[test]
fn a_file_whose_name_is_not_utf8_is_told_where_a_glob_passes_it_over() {
    let place = Place::new(b"");
    fs::create_dir(place.path("in")).unwrap();
    fs::write(place.path("in/a.jsonl"), numbers(1)).unwrap();
    for name in [&b"in/\xff.jsonl"[..], b"in/\xff.txt"] {
        fs::write(place.path("").join(OsStr::from_bytes(name)), numbers(2)).unwrap();
    }
    let said = place.run(&["queues.in.path='in/*.jsonl'"], 0);
    assert_eq!(place.arrived(), numbers(1));
    assert!(said.contains("is not UTF-8") && said.contains(".jsonl"), "{said}");
    assert!(!said.contains(".txt"), "{said}");
}

#[test]
fn a_header_of_csv_with_a_name_twice_is_told_and_nothing_is_read() {
    let place = Place::new(b"");
    fs::write(place.path("in.csv"), "n,m,n\n1,2,3\n").unwrap();
    let error = place.run(&["queues.in.path=in.csv"], 4);
    for words in ["queue `in`", "in.csv", "has the column `n` twice"] {
        assert!(error.contains(words), "{error}");
    }
    fs::write(place.path("in.csv"), "n,m,o\n1,2,3\n").unwrap();
    place.run(&["queues.in.path=in.csv"], 0);
    assert_eq!(place.out(), "{\"n\":\"1\",\"m\":\"2\",\"o\":\"3\"}\n");
}

#[test]
fn a_quote_that_is_never_closed_does_not_fill_the_memory() {
    let place = Place::new(b"");
    let rows = "2,x\n".repeat(1 << 20);
    fs::write(place.path("in.csv"), format!("n,m\n1,a\n2,\"{rows}")).unwrap();
    let set = ["queues.in.path=in.csv", "queues.in.max_message_bytes=1MiB"];
    let error = place.run(&set, 4);
    for words in ["in.csv", "begins in line 3 (byte 8)", "is a quote not closed?"] {
        assert!(error.contains(words), "{error}");
    }
    let (first, second) = ("{\"n\":\"1\",\"m\":\"a\"}\n", "{\"n\":\"2\",\"m\":\"b\"}\n");
    assert_eq!(place.out(), first, "what stands before it has passed");
    fs::write(place.path("in.csv"), "n,m\n1,a\n2,b\n").unwrap();
    place.run(&set, 0);
    // What is mended within the first KiB is another file.
    assert_eq!(place.arrived(), [first, first, second].concat());
}

#[test]
fn a_compressed_file_that_is_cut_is_told_and_goes_on_when_it_is_whole() {
    let place = Place::new(numbers(20_000).as_bytes());
    let gzip = Command::new("gzip").arg(place.path("in.jsonl")).status().unwrap();
    assert!(gzip.success());
    let whole = fs::read(place.path("in.jsonl.gz")).unwrap();
    let set = ["queues.in.path=in.jsonl.gz"];
    fs::write(place.path("in.jsonl.gz"), &whole[..whole.len() / 2]).unwrap();
    let error = place.run(&set, 4);
    assert!(error.contains("cannot read in.jsonl.gz"), "{error}");
    fs::write(place.path("in.jsonl.gz"), &whole).unwrap();
    place.run(&set, 0);
    assert_eq!(place.arrived(), numbers(20_000));
}

#[test]
fn an_output_that_is_full_blocks_and_everything_arrives_elsewhere() {
    let place = Place::new(numbers(500).as_bytes());
    let log = place.path("log");
    let mut command = place.command(&["--set", "queues.out.path='-'"]);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut child = command.stdout(full).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    eventually("it says that the disk is full", || {
        let said = fs::read_to_string(&log).unwrap();
        said.lines()
            .any(|line| line.contains("standard output") && line.contains("the disk is full"))
    });
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    child.wait().unwrap();
    place.run(&[], 0);
    assert_eq!(place.arrived(), numbers(500));
}

#[test]
fn what_cannot_be_read_or_written_is_told_with_its_path() {
    let place = Place::new(b"{}\n");
    for (set, said) in [
        ("queues.in.path=missing.jsonl", "cannot read missing.jsonl: No such file"),
        ("queues.in.path=.", "cannot read .: Is a directory"),
        ("queues.out.path=.", ". is not a file's name"),
        ("queues.out.path=in.jsonl/out.jsonl", "since a file has that name"),
    ] {
        let error = place.run(&[set], 4);
        assert!(error.contains(said), "{set}: {error}");
    }
    place.run(&[], 0);
    assert_eq!(place.out(), "{}\n");
}

#[test]
fn too_few_file_handles_are_told() {
    let place = Place::new(numbers(100).as_bytes());
    let mut told = false;
    for handles in [8, 10, 12, 14, 16, 18, 20, 24] {
        let by = ["prlimit", &format!("--nofile={handles}")];
        let output = place.command_by(&by, &[]).output().unwrap();
        let error = said(&output, &[0, 2, 4]);
        if output.status.code() != Some(0) {
            assert!(
                error.contains("Too many open files") || error.contains("the limit of open files"),
                "{handles}: {error}"
            );
            told = true;
        }
    }
    assert!(told);
    place.run(&[], 0);
    assert_eq!(place.arrived(), numbers(100));
}

const DEAD: &str = "
pipeline: bad
state: state
queues:
  in: { type: file, path: in.jsonl, max_message_bytes: 1KiB }
  raw: { type: file, path: raw.jsonl }
  dead: { type: embedded }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: raw, outputs: [dead] }
  check: { component: { filter: '.n > 0' }, input: in, outputs: [out], dead_letter: dead }
";

#[test]
fn dead_letters_that_cannot_go_back_stay_and_the_others_go() {
    let place = Place::new(&[b"{\"n\":\"", &[b'x'; 5000][..], b"\"}\n{\"n\":\n"].concat());
    fs::write(place.path("p.yaml"), DEAD).unwrap();
    fs::write(place.path("raw.jsonl"), "garbage\n{\"version\":2}\n").unwrap();
    place.run(&[], 3);
    let dead_letters = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(place.path("")).arg("dead-letters").args(arguments);
        let output = command.output().unwrap();
        (String::from_utf8(output.stdout.clone()).unwrap(), said(&output, &[0]))
    };
    let listed = || dead_letters(&["list", "p.yaml"]).0.lines().count() - 1;
    assert_eq!(listed(), 4);
    let numbers: Vec<String> = (1..=4).map(|number: u32| number.to_string()).collect();
    for number in &numbers {
        assert!(!dead_letters(&["show", "p.yaml", number]).0.trim().is_empty());
    }
    let (done, notes) = dead_letters(&["redrive", "p.yaml"]);
    assert_eq!(done, "1 dead letter sent back\n");
    for note in [
        "stays: not a dead letter: expected value at line 1 column 1",
        "stays: a dead letter of version 2; this program knows version 1",
        "stays: only its beginning was kept; the whole is 5008 bytes at 0 of in.jsonl:record 1",
    ] {
        assert!(notes.contains(note), "{notes}");
    }
    assert_eq!(listed(), 3);
    // It failed again, and is the fourth again.
    place.run(&[], 3);
    assert_eq!(listed(), 4);
    // A stage that is no more: its dead letters stay until it is back.
    let renamed = DEAD.replace("  check:", "  proof:");
    fs::write(place.path("p.yaml"), renamed).unwrap();
    let (done, notes) = dead_letters(&["redrive", "p.yaml"]);
    assert_eq!(done, "0 dead letters sent back\n");
    assert!(notes.contains("stays: there is no stage `check`"), "{notes}");
}

mod state {
    use super::*;

    /// A state with messages in it, all of them still to come out, and its database.
    fn filled() -> (Place, std::path::PathBuf) {
        let place = Place::new(numbers(2000).as_bytes());
        let output = place.command(&["--stage", "check"]).output().unwrap();
        said(&output, &[0]);
        let db = place.path("state/brigade.db");
        (place, db)
    }

    /// It is refused with these words, each once, and not touched; mended, all arrives.
    fn refused(place: &Place, db: &std::path::Path, words: &[&str], good: &[u8]) {
        let bad = fs::read(db).unwrap();
        let error = place.run(&[], 2);
        for word in words {
            assert_eq!(error.matches(word).count(), 1, "`{word}`: {error}");
        }
        assert!(fs::read(db).unwrap() == bad, "it was touched");
        fs::write(db, good).unwrap();
        place.run(&[], 0);
        assert_eq!(place.arrived(), numbers(2000));
    }

    #[test]
    fn one_that_was_never_a_state_is_refused() {
        let (place, db) = filled();
        let good = fs::read(&db).unwrap();
        fs::write(&db, b"this was never a database").unwrap();
        refused(&place, &db, &["is damaged", ".recover"], &good);
    }

    #[test]
    fn one_that_is_empty_is_refused_not_begun_anew() {
        let (place, db) = filled();
        let good = fs::read(&db).unwrap();
        fs::write(&db, b"").unwrap();
        refused(&place, &db, &["is empty, but it was made before", "delete the directory"], &good);
    }

    #[test]
    fn one_that_was_cut_is_refused() {
        let (place, db) = filled();
        let good = fs::read(&db).unwrap();
        fs::write(&db, &good[..good.len() / 2]).unwrap();
        refused(&place, &db, &["is damaged", ".recover"], &good);
    }

    #[test]
    fn one_with_holes_is_refused() {
        let (place, db) = filled();
        let good = fs::read(&db).unwrap();
        let mut bad = good.clone();
        bad[8192..].chunks_mut(4096).for_each(|page| page[..64].fill(0xAA));
        fs::write(&db, bad).unwrap();
        refused(&place, &db, &["is damaged", ".recover"], &good);
    }

    #[test]
    fn a_newer_one_is_refused() {
        let (place, db) = filled();
        let good = fs::read(&db).unwrap();
        let mut bad = good.clone();
        // Where SQLite keeps `user_version`.
        bad[60..64].copy_from_slice(&99_u32.to_be_bytes());
        fs::write(&db, bad).unwrap();
        refused(&place, &db, &["has version 99; this program knows version 1"], &good);
    }

    #[test]
    fn somebody_elses_is_refused() {
        let (place, db) = filled();
        let good = fs::read(&db).unwrap();
        let mut bad = good.clone();
        // Where SQLite keeps `application_id`.
        bad[68..72].fill(1);
        fs::write(&db, bad).unwrap();
        refused(&place, &db, &["not one of Brigade's"], &good);
    }

    #[test]
    fn one_that_is_locked_for_too_long_is_told_and_goes_on_when_it_is_free() {
        let (place, db) = filled();
        let other = rusqlite::Connection::open(&db).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let error = place.run(&[], 2);
        assert!(error.contains("is held by another process for more than 10s"), "{error}");
        other.execute_batch("ROLLBACK").unwrap();
        drop(other);
        place.run(&[], 0);
        assert_eq!(place.arrived(), numbers(2000));
    }

    #[test]
    fn one_that_is_locked_while_it_is_used_costs_only_time() {
        let (place, db) = filled();
        let other = rusqlite::Connection::open(&db).unwrap();
        let log = place.path("log");
        // It has work for minutes, and leaves the state alone for most of the time.
        let mut command = place.command(&["--set", "stages.copy.throttle={rate: 12, burst: 1}"]);
        command.env("RUST_LOG", "debug");
        let mut child = start(command, &log);
        let out =
            || fs::read_to_string(place.path("out.jsonl")).unwrap_or_default().lines().count();
        eventually("something came out", || out() > 0);
        other.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        eventually("it says who is to blame", || {
            fs::read_to_string(&log).unwrap().contains("is held by another process")
        });
        let before = out();
        other.execute_batch("ROLLBACK").unwrap();
        eventually("it goes on", || out() > before + 10);
        // `timeout` would kill it a second after the signal.
        let pid = child.id().to_string();
        assert!(Command::new("pkill").args(["-TERM", "-P", &pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{}", fs::read_to_string(&log).unwrap());
        assert!(out() < 2000, "it had more to do");
        place.run(&[], 0);
        assert_eq!(place.arrived(), numbers(2000));
    }

    #[test]
    fn a_position_that_cannot_be_read_is_refused_not_begun_anew() {
        let (place, db) = filled();
        let other = rusqlite::Connection::open(&db).unwrap();
        let damage = "UPDATE state SET value = x'00' WHERE space LIKE 'file/bad/in/%'";
        assert_eq!(other.execute(damage, []).unwrap(), 1);
        drop(other);
        let error = place.run(&[], 4);
        assert!(error.contains("queue `in`: the state keeps a position of file"), "{error}");
        // What does not read it goes on, and waits for more.
        let mut copy = start(place.command(&["--stage", "copy"]), &place.path("log"));
        let out = || fs::read_to_string(place.path("out.jsonl")).unwrap_or_default();
        eventually("all arrives", || out().lines().count() >= 2000);
        assert!(Command::new("kill").arg(copy.id().to_string()).status().unwrap().success());
        copy.wait().unwrap();
        assert_eq!(place.arrived(), numbers(2000));
    }
}

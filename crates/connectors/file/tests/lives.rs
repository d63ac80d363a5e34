//! A file that is written anew is another one, whatever it begins with; one that grows is the same.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;

use brigade_core::connector::{Consumer, Want};
use common::{Came, Place, read, texts};

/// A queue with `dedup` would drop the second day's otherwise.
#[tokio::test]
async fn a_file_that_is_written_anew_with_the_same_beginning_has_other_ids() {
    let place = Place::new("in.txt", false);
    place.write("start\n1\n2\n3\n");
    let first = place.read(usize::MAX).await;
    place.write("start\n1\n4\n");
    let second = place.read(usize::MAX).await;
    assert_eq!(texts(&second), ["start", "1", "4"]);
    assert!(second.iter().all(|(_, id)| first.iter().all(|(_, other)| other != id)));
}

#[tokio::test]
async fn a_followed_file_that_is_cut_has_other_ids() {
    let place = Place::new("in.txt", true);
    place.write("start\n1\n2\n3\n");
    let consumer = place.open().await;
    let first = read(&*consumer, 4, true).await;
    place.write("start\n1\n");
    let second = read(&*consumer, 2, true).await;
    assert_eq!(texts(&second), ["start", "1"]);
    assert!(second.iter().all(|(_, id)| first.iter().all(|(_, other)| other != id)));
    consumer.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_was_never_acked_comes_again_with_its_ids() {
    for follow in [false, true] {
        let place = Place::new("in.txt", follow);
        place.write("1\n2\n");
        let consumer = place.open().await;
        let first = read(&*consumer, 2, false).await;
        consumer.shutdown().await.unwrap();
        assert_eq!(place.read(2).await, first);
    }
}

/// It was short when it was first looked at.
#[tokio::test]
async fn a_file_is_known_by_more_of_it_when_it_has_grown() {
    for follow in [false, true] {
        let place = Place::new("in.txt", follow);
        let day = |day: u32, lines: u32| {
            let line = |n| format!("day {day}, line {n}, as long as they are\n");
            (0..lines).map(line).collect::<String>()
        };
        place.write("start\n");
        assert_eq!(place.read(1).await.len(), 1);
        place.append(&day(1, 100));
        assert_eq!(place.read(100).await.len(), 100);
        place.write(&format!("start\n{}", day(2, 120)));
        let came = texts(&place.read(121).await);
        assert_eq!(came.len(), 121, "follow: {follow}");
        assert_eq!(came[0], "start");
        assert!(came[1..].iter().all(|line| line.starts_with("day 2")));
    }
}

/// The reader waits for room in its middle when the file is cut.
#[tokio::test]
async fn no_record_is_made_of_two_lives_of_a_file() {
    let place = Place::new("in.txt", true);
    let day = |day: u32, pad: usize| {
        let line = |n| format!("day {day} {n} {}\n", "x".repeat(pad));
        (0..6000).map(line).collect::<String>()
    };
    place.write(&day(1, 60));
    let consumer = place.open().await;
    let first = read(&*consumer, 1, true).await;
    assert!(first[0].0.starts_with("day 1 0 "));
    place.write(&day(2, 77));
    let mut came = Vec::new();
    let second = |one: &Came| one.0.starts_with("day 2 ");
    while came.iter().filter(|one| second(one)).count() < 6000 {
        came.extend(read(&*consumer, 1, true).await);
    }
    let whole = |(text, _): &Came| {
        let pad = text.rsplit(' ').next().unwrap_or_default().len();
        pad == if text.starts_with("day 1 ") { 60 } else { 77 }
    };
    assert!(came.iter().all(whole));
    let second: std::collections::BTreeSet<_> = came.iter().filter(|one| second(one)).collect();
    assert_eq!(second.len(), 6000, "each once");
    consumer.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_cut_while_it_is_read_to_its_end_is_an_error() {
    let place = Place::new("in.txt", false);
    place.write(&"a line that is of the first life\n".repeat(60_000));
    let consumer = place.open().await;
    read(&*consumer, 1, true).await;
    place.write(&"a line of the second\n".repeat(120_000));
    let error = fails(&*consumer).await;
    assert!(error.contains("queue `q`") && error.contains("in.txt: it was cut"), "{error}");
    consumer.shutdown().await.unwrap();
}

/// Nothing comes in its place, and of the line that the reader was in there is half.
#[tokio::test]
async fn a_file_that_is_emptied_while_it_is_read_is_an_error() {
    for (file, line) in [("in.txt", "a line"), ("in.csv", "a,row")] {
        let place = Place::new(file, false);
        place.write(&format!("{line} that is of the first life\n").repeat(60_000));
        let consumer = place.open().await;
        read(&*consumer, 1, true).await;
        place.write("");
        assert!(fails(&*consumer).await.contains("it was cut"));
        consumer.shutdown().await.unwrap();
    }
}

/// Takes and acks what there is until an error comes; it is no end.
async fn fails(consumer: &dyn Consumer) -> String {
    loop {
        let want = Want { messages: 1000, bytes: usize::MAX };
        match consumer.consume(want).await {
            Ok(taken) => {
                let receipts = taken.iter().map(|one| one.receipt).collect();
                consumer.ack(receipts, Vec::new()).await.unwrap();
                assert!(!taken.is_empty(), "it is not the end of the file");
            }
            Err(error) => return error.to_string(),
        }
    }
}

#[tokio::test]
async fn a_last_line_that_was_half_written_comes_again_when_it_is_whole() {
    let place = Place::new("in.txt", false);
    place.write("1\n12");
    assert_eq!(place.texts().await, ["1", "12"]);
    assert_eq!(place.texts().await, [""; 0], "it has not grown");
    place.append("34\n5");
    assert_eq!(place.texts().await, ["1234", "5"]);
    place.append("\r\n");
    assert_eq!(place.texts().await, [""; 0], "it was whole");
    place.append("6\n");
    assert_eq!(place.texts().await, ["6"]);
}

#[tokio::test]
async fn a_compressed_line_that_was_half_written_comes_again_when_it_is_whole() {
    let place = Place::new("in.txt.zst", false);
    fs::write(place.path(), "").unwrap();
    let append = |text: &str| {
        let mut file = OpenOptions::new().append(true).open(place.path()).unwrap();
        file.write_all(&zstd::encode_all(text.as_bytes(), 3).unwrap()).unwrap();
    };
    append("1\n2");
    assert_eq!(place.texts().await, ["1", "2"]);
    append("50\n");
    assert_eq!(place.texts().await, ["250"]);
    for n in ["3", "4"] {
        append(&format!("{n}\n"));
        assert_eq!(place.texts().await, [n]);
    }
}

#[tokio::test]
async fn a_last_row_that_was_half_written_comes_again_when_it_is_whole() {
    let place = Place::new("in.csv", false);
    place.write("n,v\n1,1\n2,2");
    let row = |n: u32, v: u32| format!("{{\"n\":\"{n}\",\"v\":\"{v}\"}}");
    assert_eq!(place.texts().await, [row(1, 1), row(2, 2)]);
    assert_eq!(place.texts().await, [""; 0]);
    place.append("50\n3,3\n");
    assert_eq!(place.texts().await, [row(2, 250), row(3, 3)]);
    assert_eq!(place.texts().await, [""; 0]);
    for n in 4..6 {
        place.append(&format!("{n},{n}\n"));
        assert_eq!(place.texts().await, [row(n, n)], "what comes after it is counted as before");
    }
}

/// As a writer that flushes at each line's end leaves it.
#[tokio::test]
async fn a_last_row_that_ended_within_quotes_comes_again_when_it_is_whole() {
    let place = Place::new("in.csv", false);
    place.write("n,v\n1,1\n2,\"a\n");
    assert_eq!(place.texts().await, ["{\"n\":\"1\",\"v\":\"1\"}", "2,\"a"]);
    assert_eq!(place.texts().await, [""; 0]);
    place.append("b\"\n3,3\n");
    let whole = ["{\"n\":\"2\",\"v\":\"a\\nb\"}", "{\"n\":\"3\",\"v\":\"3\"}"];
    assert_eq!(place.texts().await, whole);
    assert_eq!(place.texts().await, [""; 0]);
}

/// As an export that is written in place each day: its header and its first rows stay.
#[tokio::test]
async fn a_file_that_is_written_anew_with_the_same_first_part_is_read_whole() {
    let head = || (0..100).map(|n| format!("{n},a row that is the same each day\n"));
    let day = |day: u32, rows: u32, pad: &str| {
        let row = |n| format!("{n},of day {day}{pad}\n");
        ["n,v\n".to_owned()].into_iter().chain(head()).chain((0..rows).map(row)).collect::<String>()
    };
    for file in ["in.txt", "in.csv", "in.csv.zst", "in.txt.zst"] {
        let place = Place::new(file, false);
        let write = |text: &str| match file.ends_with("zst") {
            true => fs::write(place.path(), zstd::encode_all(text.as_bytes(), 3).unwrap()).unwrap(),
            false => place.write(text),
        };
        let rows = |rows| rows + 100 + usize::from(file.starts_with("in.txt"));
        write(&day(1, 100, ""));
        assert_eq!(place.texts().await.len(), rows(100));
        for (n, count, pad) in [(2, 200, ""), (3, 200, ""), (4, 300, " and more"), (5, 50, "")] {
            write(&day(n, u32::try_from(count).unwrap(), pad));
            let came = place.texts().await;
            assert_eq!(came.len(), rows(count), "{file}, day {n}");
            let of_the_day = |line: &&String| line.contains(&format!("of day {n}"));
            assert_eq!(came.iter().filter(of_the_day).count(), count);
        }
        assert_eq!(place.texts().await, [""; 0], "{file}");
    }
}

#[tokio::test]
async fn a_followed_file_that_is_written_anew_and_longer_with_the_same_first_part_is_read_whole() {
    let place = Place::new("in.txt", true);
    let day = |day: u32, lines: u32| {
        let line =
            |n| if n < 100 { format!("{n} the same\n") } else { format!("{n} of day {day}\n") };
        (0..lines).map(line).collect::<String>()
    };
    place.write(&day(1, 200));
    let consumer = place.open().await;
    assert_eq!(read(&*consumer, 200, true).await.len(), 200);
    place.write(&day(2, 300));
    let came = texts(&read(&*consumer, 300, true).await);
    assert_eq!((came[0].as_str(), came[299].as_str()), ("0 the same", "299 of day 2"));
    consumer.shutdown().await.unwrap();
    place.write(&day(3, 400));
    assert_eq!(texts(&place.read(400).await)[399], "399 of day 3");
}

/// The reader waits for room in its middle.
#[tokio::test]
async fn a_file_that_is_written_anew_alike_while_it_is_read_is_an_error() {
    let place = Place::new("in.txt", false);
    let head = "a line that is the same\n".repeat(100);
    place.write(&(head.clone() + &"a line that is of the first life\n".repeat(60_000)));
    let consumer = place.open().await;
    read(&*consumer, 1, true).await;
    place.write(&(head + &"a line of the second\n".repeat(120_000)));
    assert!(fails(&*consumer).await.contains("in.txt: it was cut, or written anew"));
    consumer.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_line_that_is_added_to_a_known_file_is_read_whatever_stands_before_it() {
    for file in ["in.txt", "in.csv"] {
        let place = Place::new(file, false);
        place.write("\u{feff}n\r\n\r\n1\r\n");
        place.texts().await;
        for n in 2..5 {
            place.append(&format!("{n}\r\n\r\n"));
            let expected =
                if file == "in.csv" { format!("{{\"n\":\"{n}\"}}") } else { n.to_string() };
            assert_eq!(place.texts().await, [expected], "{file}");
        }
    }
}

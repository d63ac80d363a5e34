//! A file that grows and is rotated, followed by a running pipeline.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that stops says where")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use brigade::component::Emit;
use brigade::{Failure, Running};
use common::{World, eventually};

/// A directory with a file that is followed, and what came of it.
struct Trial {
    world: World,
    directory: tempfile::TempDir,
    follows: &'static str,
}

impl Trial {
    fn new(follows: &'static str) -> Self {
        Self { world: World::new(), directory: tempfile::tempdir().unwrap(), follows }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Opens a file as its writer does.
    fn open(&self, name: &str) -> File {
        OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap()
    }

    fn append(&self, name: &str, text: &str) {
        self.open(name).write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn yaml(&self) -> String {
        let path = self.path(self.follows);
        format!(
            "
queues: {{ in: {{ type: file, path: '{}', follow: true }}, out: {{ type: memory }} }}
stages: {{ pass: {{ component: pass, input: in, outputs: [out] }} }}
",
            path.display()
        )
    }

    async fn start(&self) -> Running {
        self.world.start(&self.yaml(), &self.world.registry()).await
    }

    /// Starts it, and waits for the third line: those before it came first, each once.
    async fn finds_all_three(&self) {
        let running = self.start().await;
        self.arrived(3).await;
        assert_eq!(self.numbers(), [1, 2, 3]);
        running.drain().await;
    }

    /// Starts it with a component that never has done with some lines.
    async fn start_holding(&self, holds: impl Fn(u64) -> bool + Clone + Send + 'static) -> Running {
        let hold = move |n: u64| match holds(n) {
            true => Err(Failure::retry("not now")),
            false => Ok(Emit::value(n)),
        };
        let registry = self.world.registry().component("hold", hold);
        let retry = "component: hold, retry: { attempts: 9, min: 1h, max: 1h }, workers: 2";
        let yaml = self.yaml().replace("component: pass", retry);
        self.world.start(&yaml, &registry).await
    }

    /// Runs until this many lines were handed out, of which none is acked, and stops at once.
    async fn hold(&self, lines: u64) {
        let running = self.start_holding(|_| true).await;
        let held = async || running.status().await[0].stages[0].received == lines;
        eventually("they are handed out", held).await;
        running.stop(Some(Duration::ZERO)).await;
    }

    async fn arrived(&self, number: u64) {
        let came = async || self.world.numbers("out").contains(&number);
        eventually("the line arrives", came).await;
    }

    fn numbers(&self) -> Vec<u64> {
        self.world.numbers("out")
    }

    fn sorted(&self) -> Vec<u64> {
        let mut numbers = self.numbers();
        numbers.sort_unstable();
        numbers
    }
}

#[tokio::test]
async fn every_line_of_a_file_that_is_rotated_comes_once() {
    let trial = Trial::new("log");
    trial.append("log", "1\n");
    let running = trial.start().await;
    trial.arrived(1).await;
    trial.append("log", "2\n3");
    trial.arrived(2).await;
    trial.append("log", "3\n");
    trial.arrived(33).await;
    trial.rename("log", "log.1");
    trial.append("log", "4\n");
    trial.arrived(4).await;
    assert_eq!(trial.numbers(), [1, 2, 33, 4]);
    running.drain().await;
}

/// As the logs of containers are.
#[tokio::test]
async fn what_was_rotated_where_a_link_leads_is_found_there() {
    let trial = Trial::new("links/app");
    for directory in ["links", "logs"] {
        fs::create_dir(trial.path(directory)).unwrap();
    }
    std::os::unix::fs::symlink("../logs/0.log", trial.path("links/app")).unwrap();
    trial.append("logs/0.log", "1\n");
    trial.hold(1).await;
    trial.append("logs/0.log", "2\n");
    trial.rename("logs/0.log", "logs/0.log.20261121");
    trial.append("logs/0.log", "3\n");
    trial.finds_all_three().await;
}

/// Nothing of it was resolved, and still it is known which file it was.
#[tokio::test]
async fn what_was_handed_out_and_never_acked_is_found_by_its_new_name() {
    let trial = Trial::new("log");
    trial.append("log", "1\n2\n");
    trial.hold(2).await;
    trial.rename("log", "log.1");
    trial.append("log", "3\n");
    trial.finds_all_three().await;
}

/// The files before and after it are known by their acks.
#[tokio::test]
async fn a_file_of_which_nothing_was_acked_is_found_between_two_that_were() {
    let trial = Trial::new("log");
    trial.append("log", "1\n");
    let running = trial.start_holding(|n| n == 2).await;
    trial.arrived(1).await;
    trial.rename("log", "log.1");
    trial.append("log", "2\n");
    let held = async || running.status().await[0].stages[0].received == 2;
    eventually("the second is handed out", held).await;
    trial.rename("log", "log.2");
    trial.append("log", "3\n");
    trial.arrived(3).await;
    running.stop(Some(Duration::ZERO)).await;
    let running = trial.start().await;
    trial.arrived(2).await;
    assert_eq!(trial.sorted(), [1, 2, 3]);
    running.drain().await;
}

/// Its writer was not told of the rotation, and the next file is rotated meanwhile.
#[tokio::test]
async fn files_behind_one_that_goes_on_growing_are_read_too() {
    let trial = Trial::new("log");
    let mut writer = trial.open("log");
    writer.write_all(b"1\n").unwrap();
    let running = trial.start().await;
    trial.arrived(1).await;
    trial.rename("log", "log.1");
    trial.append("log", "2\n");
    trial.rename("log.1", "log.2");
    trial.rename("log", "log.1");
    trial.append("log", "3\n");
    let mut late = 100;
    let goes_on = async || {
        late += 1;
        writer.write_all(format!("{late}\n").as_bytes()).unwrap();
        trial.numbers().contains(&3)
    };
    eventually("the last file is read though the first one is never quiet", goes_on).await;
    trial.arrived(late).await;
    assert_eq!(trial.sorted(), [1, 2, 3].into_iter().chain(101..=late).collect::<Vec<_>>());
    running.drain().await;
}

/// It was last written before the first one was, which its writer was late to leave.
#[tokio::test]
async fn a_file_that_came_and_went_before_a_late_line_of_the_one_before_is_found() {
    let trial = Trial::new("log");
    let mut writer = trial.open("log");
    writer.write_all(b"1\n").unwrap();
    let running = trial.start().await;
    trial.arrived(1).await;
    running.drain().await;
    trial.rename("log", "log.2");
    trial.append("log", "3\n");
    trial.rename("log", "log.1");
    trial.append("log", "4\n");
    writer.write_all(b"2\n").unwrap();
    let running = trial.start().await;
    trial.arrived(4).await;
    assert_eq!(trial.numbers(), [1, 2, 3, 4]);
    running.drain().await;
}

/// The process ends while its writer may still go on with the line.
#[tokio::test]
async fn a_rotated_file_that_never_had_a_whole_line_is_known() {
    let trial = Trial::new("log");
    trial.append("log", "1\n");
    let running = trial.start().await;
    trial.arrived(1).await;
    trial.rename("log", "log.1");
    trial.append("log", "2");
    trial.rename("log", "log.2");
    trial.append("log", "3\n");
    trial.arrived(3).await;
    running.drain().await;
    trial.append("log.2", "2\n");
    let running = trial.start().await;
    trial.arrived(22).await;
    assert_eq!(trial.sorted(), [1, 3, 22]);
    running.drain().await;
}

/// As a rotation does that compresses: the file has another inode, and is not complete at first.
#[tokio::test]
async fn of_what_a_followed_glob_finds_compressed_files_and_tables_are_passed_over() {
    let trial = Trial::new("lo*");
    trial.append("log", "1\n2\n");
    let running = trial.start().await;
    trial.arrived(2).await;
    trial.rename("log", "log.1");
    fs::write(trial.path("log.1.gz"), [0x1f, 0x8b, 8].repeat(1000)).unwrap();
    fs::write(trial.path("log.csv"), "n\n7").unwrap();
    trial.append("log", "3\n");
    trial.arrived(3).await;
    assert_eq!(trial.numbers(), [1, 2, 3]);
    assert!(running.is_ready().await);
    running.drain().await;
}

#[tokio::test]
async fn what_was_written_before_a_rotation_while_nothing_ran_comes_first() {
    let trial = Trial::new("log");
    trial.append("log", "1\n2\n");
    // As old as a rotated file that has nothing to do with it.
    trial.append("log.7", "70\n");
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    trial.open("log.7").set_modified(past).unwrap();
    let running = trial.start().await;
    trial.arrived(2).await;
    running.drain().await;
    trial.append("log", "3\n4\n");
    trial.rename("log", "log.1");
    // One that came and went meanwhile, and a copy that somebody made.
    trial.append("log", "5\n");
    trial.rename("log.1", "log.2");
    trial.rename("log", "log.1");
    trial.append("log", "6\n");
    trial.append("log.bak", "80\n");
    let running = trial.start().await;
    trial.arrived(6).await;
    assert_eq!(trial.numbers(), [1, 2, 3, 4, 5, 6]);
    running.drain().await;
    trial.append("log", "7\n");
    let running = trial.start().await;
    trial.arrived(7).await;
    assert_eq!(trial.numbers(), [1, 2, 3, 4, 5, 6, 7]);
    running.drain().await;
}

#[tokio::test]
async fn a_writer_that_keeps_the_rotated_file_open_is_read_to_its_end() {
    let trial = Trial::new("log");
    let mut writer = trial.open("log");
    writer.write_all(b"1\n2\n3").unwrap();
    let running = trial.start().await;
    trial.arrived(2).await;
    trial.rename("log", "log.1");
    writer.write_all(b"3\n4\n5").unwrap();
    trial.arrived(4).await;
    trial.append("log", "6\n7\n");
    trial.arrived(7).await;
    // It is told late; the line that it was in goes on.
    writer.write_all(b"5\n8\n").unwrap();
    trial.arrived(8).await;
    trial.append("log", "9\n");
    trial.arrived(9).await;
    assert_eq!(trial.numbers(), [1, 2, 33, 4, 6, 7, 55, 8, 9]);
    running.drain().await;
    trial.append("log", "10\n");
    let running = trial.start().await;
    trial.arrived(10).await;
    assert_eq!(trial.numbers(), [1, 2, 33, 4, 6, 7, 55, 8, 9, 10]);
    running.drain().await;
}

#[tokio::test]
async fn files_of_rotations_in_quick_succession_are_all_read() {
    let trial = Trial::new("log");
    trial.append("log", "1\n");
    let running = trial.start().await;
    trial.arrived(1).await;
    for number in 2..6 {
        for at in (1..number).rev() {
            let from = trial.path(&format!("log.{at}"));
            if from.exists() {
                fs::rename(from, trial.path(&format!("log.{}", at + 1))).unwrap();
            }
        }
        trial.rename("log", "log.1");
        trial.append("log", &format!("{number}\n"));
    }
    trial.arrived(5).await;
    assert_eq!(trial.numbers(), [1, 2, 3, 4, 5]);
    running.drain().await;
}

#[tokio::test]
async fn a_file_that_is_cut_and_grows_beyond_where_it_was_read_is_read_from_its_beginning() {
    for follows in ["log", "lo*"] {
        let trial = Trial::new(follows);
        trial.append("log", "100\n200\n");
        let running = trial.start().await;
        trial.arrived(200).await;
        fs::write(trial.path("log"), "1\n2\n3\n4\n5\n6\n7\n").unwrap();
        trial.arrived(7).await;
        assert_eq!(trial.sorted(), [1, 2, 3, 4, 5, 6, 7, 100, 200]);
        running.drain().await;
        trial.append("log", "8\n");
        let running = trial.start().await;
        trial.arrived(8).await;
        assert_eq!(trial.sorted(), [1, 2, 3, 4, 5, 6, 7, 8, 100, 200]);
        running.drain().await;
    }
}

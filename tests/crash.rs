//! The real command, killed with SIGKILL at random moments: nothing is missing, nothing is there
//! twice, no line is torn.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/place.rs"]
mod place;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use place::{Place, eventually, numbers, said, start};
use serde_json::{Value, json};

const FLIGHTS: u64 = 50_000;
const AIRPORTS: u64 = 50;
const KILLS: usize = 10;
const OUTPUTS: [&str; 4] = ["early", "on_time", "late", "very_late"];

/// A directory with an input, and the pipeline that runs on it.
struct Trial {
    directory: tempfile::TempDir,
    random: fastrand::Rng,
    /// What has to come out, by output.
    expected: BTreeMap<&'static str, Vec<u64>>,
    dead: usize,
}

impl Trial {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        let directory = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut airports = String::from("iata,city,latitude,longitude\n");
        for airport in 0..AIRPORTS {
            airports.push_str(&format!("A{airport},City {airport},{airport}.5,-{airport}.25\n"));
        }
        fs::write(directory.path().join("airports.csv"), airports).unwrap();
        let (mut lines, mut dead) = (String::new(), 0);
        let mut expected: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for id in 0..FLIGHTS {
            if random.u32(..1000) == 0 {
                lines.push_str("{\"id\": broken\n");
                dead += 1;
            }
            let delay = random.i64(-30..120);
            let known = random.u32(..1000) != 0;
            let origin = if known { format!("A{}", random.u64(..AIRPORTS)) } else { "ZZZ".into() };
            let flight = json!({
                "id": id, "date": "2001/01/01 00:47", "delay": delay, "distance": 100,
                "origin": origin, "destination": format!("A{}", random.u64(..AIRPORTS)),
            });
            lines.push_str(&format!("{flight}\n"));
            let output = match delay {
                i64::MIN..0 => "early",
                0..=15 => "on_time",
                16..=60 => "late",
                _ => "very_late",
            };
            match known {
                true => expected.entry(output).or_default().push(id),
                false => dead += 1,
            }
        }
        fs::write(directory.path().join("flights.jsonl"), lines).unwrap();
        Self { directory, random, expected, dead }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, stages: Option<&str>) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.args(["run", "pipelines/flights.yaml", "--until-idle"]);
        command.args(stages.map(|stages| format!("--stage={stages}")));
        command.env("FLIGHTS", self.path("flights.jsonl"));
        command.env("AIRPORTS", self.path("airports.csv"));
        command.env("OUT", self.directory.path());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The bytes of all outputs.
    fn written(&self) -> u64 {
        let length =
            |name| fs::metadata(self.path(&format!("{name}.jsonl"))).map_or(0, |m| m.len());
        OUTPUTS.iter().map(length).sum()
    }

    /// Whether all outputs are written, though perhaps not all dead letters.
    fn is_whole(&self) -> bool {
        let lines = |name: &str| {
            fs::read_to_string(self.path(&format!("{name}.jsonl")))
                .map_or(0, |out| out.lines().count())
        };
        OUTPUTS.iter().all(|name| lines(name) >= self.expected[name].len())
    }

    /// Runs processes, each with its stages, and kills one of them whenever the outputs have reached
    /// a random size; then lets them finish.
    fn run(&mut self, processes: &[Option<&str>]) {
        let mut children: Vec<Child> = processes.iter().map(|stages| self.start(*stages)).collect();
        // A flight with its cities is some 250 bytes.
        let whole = FLIGHTS * 250;
        let mut at: Vec<u64> = (0..KILLS).map(|_| self.random.u64(1..whole * 9 / 10)).collect();
        at.sort_unstable();
        let mut kills = 0;
        for at in at {
            eventually("it goes on", || {
                self.written() >= at || children.iter_mut().all(|c| c.try_wait().unwrap().is_some())
            });
            let victim = self.random.usize(..children.len());
            if children[victim].try_wait().unwrap().is_none() {
                children[victim].kill().unwrap();
                children[victim].wait().unwrap();
                kills += 1;
                // It may have been the end of a run, which one that starts alone would begin anew, and wait for
                // others.
                if self.is_whole() {
                    children.iter_mut().for_each(|child| child.kill().unwrap());
                    for child in &mut children {
                        child.wait().unwrap();
                    }
                    children = vec![self.start(None)];
                    break;
                }
                children[victim] = self.start(processes[victim]);
            }
        }
        eventually("it ends", || children.iter_mut().all(|c| c.try_wait().unwrap().is_some()));
        assert!(kills > 0, "it was too fast to be hit");
        println!("{kills} kills");
        self.check();
    }

    fn check(&self) {
        for name in OUTPUTS {
            let mut ids: Vec<u64> = objects(&self.path(&format!("{name}.jsonl")))
                .map(|flight| {
                    assert!(flight["origin_latitude"].is_number(), "{flight}");
                    flight["id"].as_u64().unwrap()
                })
                .collect();
            ids.sort_unstable();
            assert_eq!(ids.len(), self.expected[name].len(), "{name}");
            assert_eq!(ids, self.expected[name], "{name}");
        }
        let letters: Vec<Value> = objects(&self.path("dead.jsonl")).collect();
        assert_eq!(letters.len(), self.dead);
        for letter in letters {
            let kind = letter["cause"]["kind"].as_str().unwrap();
            assert!(["decode", "rejected"].contains(&kind), "an innocent was buried: {letter}");
        }
    }
}

fn objects(path: &Path) -> impl Iterator<Item = Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'), "the last line of {} is torn", path.display());
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("no line is torn")).collect();
    lines.into_iter()
}

#[test]
fn one_process_that_is_killed_ten_times_loses_nothing_and_doubles_nothing() {
    Trial::new(fastrand::u64(..)).run(&[None]);
}

#[test]
fn stages_in_processes_of_their_own_can_each_be_killed() {
    Trial::new(fastrand::u64(..)).run(&[Some("check"), Some("enrich"), Some("sort")]);
}

#[test]
fn two_processes_of_one_stage_share_its_work_and_take_over_from_each_other() {
    Trial::new(fastrand::u64(..)).run(&[Some("check,sort"), Some("enrich"), Some("enrich")]);
}

#[test]
fn a_second_run_on_the_same_state_adds_nothing() {
    let trial = Trial::new(fastrand::u64(..));
    for _ in 0..2 {
        let status = trial.start(None).wait().unwrap();
        assert!([Some(0), Some(3)].contains(&status.code()), "{status}");
        trial.check();
    }
}

/// A queue that refuses what it has no room for takes part in the acks' transaction like any other.
#[test]
fn a_queue_with_a_limit_that_refuses_gets_nothing_twice() {
    const LINES: u32 = 100_000;
    let place = Place::new(numbers(LINES).as_bytes());
    let limit = "queues.kept.limit={messages: 1000000, when_full: refuse}";
    let arguments = ["--set", limit, "--set", "queues.in.guarantee=exactly_once"];
    let length = |name: &str| fs::metadata(place.path(name)).map_or(0, |file| file.len());
    let written = || length("state/brigade.db") + length("state/brigade.db-wal");
    let directory = place.path("");
    for kill in 1..=KILLS as u64 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.args(["run", "p.yaml", "--until-idle", "--stage", "check"]).args(arguments);
        command.current_dir(&directory);
        let mut child = start(command, &place.path("log"));
        eventually("it goes on", || written() >= kill << 20 || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    said(&place.command(&arguments).output().unwrap(), &[0]);
    assert!(place.arrived() == numbers(LINES), "{} bytes arrived", place.out().len());
}

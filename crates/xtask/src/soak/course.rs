//! Two processes of one pipeline over embedded queues, killed, stopped, drained and scaled at
//! random while components fail at random; in the end every message is counted from outside.

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::books;

/// Messages per second.
const RATE: u64 = 500;
/// One in this many messages can never be handled.
const POISON: u64 = 97;
/// How long it may take until everything is done once nothing is killed any more.
const PATIENCE: Duration = Duration::from_secs(600);
/// The programs, their stages, and which of these is scaled: in the first program when it is
/// restarted, in the second while it runs.
const PROCESSES: [(&str, [&str; 2], &str); 2] =
    [("unreliable", ["feed", "check"], "check"), ("scaled", ["total", "sort"], "total")];
/// How a process ends its log if it was not killed.
const CLOSED: &str = "the books close: ";

const PIPELINE: &str = r#"
pipeline: soak
state: state
queues:
  in: { type: generator, rate: RATE, count: COUNT, seed: SEED, template: { n: "{{seq}}", key: "{{pick a b c d e f g}}" } }
  made: { type: embedded, key: key }
  checked: { type: embedded, key: key }
  totalled: { type: embedded }
  out: { type: file, path: out.jsonl }
  dead: { type: file, path: dead.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [made] }
  # Fails and panics by chance, and always for poison: `examples/unreliable.rs`.
  check:
    component: check
    input: made
    outputs: [checked]
    dead_letter: dead
    workers: 2
    order: key
    retry: { attempts: 20, min: 1ms, max: 20ms }
  total: { component: { map: '.total = true' }, input: checked, outputs: [totalled], workers: 2 }
  sort: { component: pass, input: totalled, outputs: [out] }
"#;

/// Runs it, and returns its log and how it ended.
pub(super) fn run(minutes: u64, seed: u64) -> anyhow::Result<(String, anyhow::Result<()>)> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let build = ["build", "--release", "--example", "unreliable", "--example", "scaled"];
    let built = Command::new(&cargo).args(build).status().context("cargo cannot be run")?;
    ensure!(built.success(), "the programs cannot be built");
    let mut course = Course::new(minutes, seed)?;
    let outcome = course.go();
    match &outcome {
        Ok(()) => course.tell(
            "verdict: every message came once, or is a dead letter; the books of all stages closed whenever they \
             were looked at, and at each end, and no log says otherwise",
        ),
        Err(error) => course.tell(&format!("verdict: FAILED: {error:#}")),
    }
    let log = std::mem::take(&mut course.log);
    Ok((log, outcome))
}

/// A process of the pipeline.
struct Process {
    program: &'static str,
    stages: [&'static str; 2],
    scaled: &'static str,
    port: u16,
    /// `None` if it has ended by itself: everything is done.
    child: Option<Child>,
    workers: u32,
    most_memory: u64,
    /// How often it has ended in order, and so closed its books; and how often it was told to
    /// scale.
    ends: usize,
    scalings: usize,
    /// How often the books of all its stages were looked at while it ran.
    looks: u64,
}

/// One run of the soak.
struct Course {
    directory: tempfile::TempDir,
    count: u64,
    begun: Instant,
    until: Duration,
    random: fastrand::Rng,
    processes: Vec<Process>,
    log: String,
    events: u64,
}

impl Course {
    fn new(minutes: u64, seed: u64) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let until = Duration::from_secs(minutes * 60);
        let count = until.as_secs() * RATE;
        let text = PIPELINE
            .replace("RATE", &RATE.to_string())
            .replace("COUNT", &count.to_string())
            .replace("SEED", &seed.to_string());
        fs::write(directory.path().join("soak.yaml"), text)?;
        // Copies, so that they stay the same whatever is built meanwhile.
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        for (program, ..) in PROCESSES {
            let built = Path::new(&target).join("release/examples").join(program);
            fs::copy(built, directory.path().join(program))?;
        }
        let mut course = Self {
            directory,
            count,
            begun: Instant::now(),
            until,
            random: fastrand::Rng::with_seed(seed),
            processes: Vec::new(),
            log: String::new(),
            events: 0,
        };
        course.tell(&format!("{count} messages at {RATE}/s, seed {seed}"));
        for (program, stages, scaled) in PROCESSES {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let mut process = Process {
                program,
                stages,
                scaled,
                port,
                child: None,
                workers: 2,
                most_memory: 0,
                ends: 0,
                scalings: 0,
                looks: 0,
            };
            process.start(course.directory.path())?;
            course.processes.push(process);
        }
        Ok(course)
    }

    #[expect(clippy::print_stdout, reason = "a script's output")]
    fn tell(&mut self, what: &str) {
        let at = self.begun.elapsed().as_secs_f64();
        let line = format!("{at:9.3} {what}");
        println!("{line}");
        let _ = writeln!(self.log, "{line}");
    }

    fn go(&mut self) -> anyhow::Result<()> {
        while self.begun.elapsed() < self.until {
            let quiet = Duration::from_millis(self.random.u64(500..6000));
            self.watch(quiet)?;
            self.event()?;
        }
        self.tell(&format!("{} events; now all of it is finished", self.events));
        let begun = Instant::now();
        while self.processes.iter().any(|process| process.child.is_some()) {
            ensure!(begun.elapsed() < PATIENCE, "it is not done after {PATIENCE:?}");
            self.watch(Duration::from_secs(1))?;
        }
        self.count_all()
    }

    /// Lets it run for a while, and checks the books once a second.
    fn watch(&mut self, period: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < period {
            std::thread::sleep(period.saturating_sub(begun.elapsed()).min(Duration::from_secs(1)));
            let directory = self.directory.path();
            for process in &mut self.processes {
                process.look(directory)?;
                process.looks += u64::from(process.scrape()?);
            }
        }
        Ok(())
    }

    /// Does something to one of the processes.
    fn event(&mut self) -> anyhow::Result<()> {
        let at = self.random.usize(..self.processes.len());
        let pause = Duration::from_millis(self.random.u64(200..5000));
        let (what, workers) = (self.random.u32(..12), self.random.u32(1..5));
        let directory = self.directory.path().to_owned();
        let process = &mut self.processes[at];
        let Some(child) = &mut process.child else { return Ok(()) };
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        let stages = process.stages.join(" and ");
        let told = match what {
            0..5 => {
                child.kill()?;
                child.wait()?;
                process.workers = workers;
                process.start(&directory)?;
                format!("killed {stages}; started again{}", process.with_workers())
            }
            5..8 => {
                signal(child, "STOP")?;
                std::thread::sleep(pause);
                signal(child, "CONT")?;
                format!("stopped {stages} for {pause:?}, and let it go on")
            }
            8..10 => {
                let begun = Instant::now();
                process.end()?;
                process.workers = workers;
                process.start(&directory)?;
                let (took, with) = (begun.elapsed(), process.with_workers());
                format!("drained {stages} in {took:?}; started again{with}")
            }
            // The other program is scaled when it starts.
            _ if process.is_scaled_running() => {
                process.order(&format!("{} {workers}", process.scaled))?;
                process.scalings += 1;
                format!("told {} to have {workers} workers while it runs", process.scaled)
            }
            _ => return Ok(()),
        };
        self.events += 1;
        self.tell(&told);
        Ok(())
    }

    /// Counts what came out, from outside.
    fn count_all(&mut self) -> anyhow::Result<()> {
        let read = |name: &str| fs::read_to_string(self.directory.path().join(name));
        let mut seen = vec![0_u32; usize::try_from(self.count)? + 1];
        let (out, dead) = (read("out.jsonl")?, read("dead.jsonl")?);
        let mut mark = |n: Option<u64>, what: &str| -> anyhow::Result<()> {
            let place = n.and_then(|n| usize::try_from(n).ok()).and_then(|n| seen.get_mut(n));
            *place.with_context(|| format!("{what} is none of ours"))? += 1;
            Ok(())
        };
        for line in out.lines() {
            let value: Value = serde_json::from_str(line).context("a torn line")?;
            ensure!(value["checked"] == true && value["total"] == true, "not handled: {line}");
            mark(number(&value), line)?;
        }
        let (mut letters, mut by_chance) = (0, 0);
        for line in dead.lines() {
            let letter: Value = serde_json::from_str(line).context("a torn dead letter")?;
            let payload = letter["payload"].as_str().unwrap_or_default();
            let n = number(&serde_json::from_str(payload)?);
            letters += 1;
            by_chance += u64::from(n.is_none_or(|n| n % POISON != 0));
            mark(n, line)?;
        }
        let missing = seen.iter().filter(|times| **times == 0).count();
        let twice = seen.iter().filter(|times| **times > 1).count();
        let most = self.processes.iter().map(|process| process.most_memory / 1024);
        let most: Vec<String> = most.map(|mib| format!("{mib} MiB")).collect();
        let events = self.events;
        let looks: u64 = self.processes.iter().map(|process| process.looks).sum();
        self.tell(&format!(
            "{} outputs, {letters} dead letters ({by_chance} of them by chance), {events} events, \
             {looks} looks at the books, at most {} resident",
            out.lines().count(),
            most.join(" and ")
        ));
        // Numbers begin at 0 or 1: one entry of the list stays empty.
        ensure!(missing <= 1, "{missing} messages are missing");
        ensure!(out.lines().count() as u64 + letters == self.count, "not as many as were made");
        ensure!(twice == 0, "{twice} messages came more than once");
        self.closed()
    }

    /// Whether each process closed its books whenever it was not killed, and never said otherwise.
    fn closed(&mut self) -> anyhow::Result<()> {
        for at in 0..self.processes.len() {
            let process = &self.processes[at];
            let log = process.read_log(self.directory.path());
            let closed = log.lines().filter(|line| line.starts_with(CLOSED)).count();
            let scaled = log.lines().filter(|line| line.ends_with(" workers")).count();
            let (stages, ends) = (process.stages.join(" and "), process.ends);
            books::never_open(&log).with_context(|| stages.clone())?;
            ensure!(process.looks > 0, "nobody ever saw the books of {stages}");
            ensure!(
                closed == ends,
                "{stages} ended {ends} times, and closed its books {closed} times"
            );
            let mut told = format!("{stages} ended {ends} times, and closed its books each time");
            if process.scalings > 0 {
                let _ = write!(told, "; was scaled {scaled} of {} times", process.scalings);
                // An order may be refused, for instance while a stage is being reopened, or be lost
                // in a kill.
                ensure!(scaled > 0 || process.scalings < 5, "{stages} was never scaled:\n{log}");
            }
            self.tell(&told);
        }
        Ok(())
    }
}

fn number(value: &Value) -> Option<u64> {
    value["n"].as_u64()
}

fn signal(child: &Child, name: &str) -> anyhow::Result<()> {
    let kill = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
    ensure!(kill.context("kill cannot be run")?.success(), "the process is gone");
    Ok(())
}

impl Process {
    fn is_scaled_running(&self) -> bool {
        self.program == "scaled"
    }

    fn with_workers(&self) -> String {
        match self.is_scaled_running() {
            true => String::new(),
            false => format!(" with {} workers", self.workers),
        }
    }

    fn log(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.log", self.scaled))
    }

    fn read_log(&self, directory: &Path) -> String {
        fs::read_to_string(self.log(directory)).unwrap_or_default()
    }

    fn start(&mut self, directory: &Path) -> anyhow::Result<()> {
        let mut run = Command::new(directory.join(self.program));
        // Backtraces of panics would load the debug information into memory.
        run.env("RUST_BACKTRACE", "0").current_dir(directory);
        let address = format!("127.0.0.1:{}", self.port);
        if self.is_scaled_running() {
            run.args(["soak.yaml", &address]).args(self.stages).stdin(Stdio::piped());
        } else {
            run.args(["run", "soak.yaml", "--until-idle", "--metrics", &address]);
            run.args(["--stage", &self.stages.join(",")]);
            run.args(["--set", &format!("stages.{}.workers={}", self.scaled, self.workers)]);
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log(directory))?;
        run.stdout(Stdio::null()).stderr(log);
        self.child = Some(run.spawn().context("the program cannot be run")?);
        Ok(())
    }

    /// Sends an order to its standard input. It may just have ended.
    fn order(&mut self, order: &str) -> anyhow::Result<()> {
        let input = self.child.as_mut().and_then(|child| child.stdin.as_mut());
        let told = writeln!(input.context("it has no input")?, "{order}");
        told.or_else(|error| match error.kind() {
            ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error).context("it cannot be told"),
        })
    }

    /// Makes it drain and end.
    fn end(&mut self) -> anyhow::Result<()> {
        if self.is_scaled_running() {
            self.order("drain")?;
        } else if let Some(child) = &self.child {
            signal(child, "TERM")?;
        }
        let Some(child) = &mut self.child else { return Ok(()) };
        let ended = child.wait()?;
        let stages = self.stages.join(" and ");
        ensure!(matches!(ended.code(), Some(0 | 3)), "a drain of {stages} ended with {ended}");
        self.ends += 1;
        Ok(())
    }

    /// Records how much memory it takes, and whether it is done.
    fn look(&mut self, directory: &Path) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        if let Some(ended) = child.try_wait()? {
            // With dead letters or without.
            if !matches!(ended.code(), Some(0 | 3)) {
                let log = self.read_log(directory);
                let end: Vec<&str> = log.lines().rev().take(20).collect();
                bail!("{:?} ended with {ended}:\n{}", self.stages, end.join("\n"));
            }
            (self.child, self.ends) = (None, self.ends + 1);
            return Ok(());
        }
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|line| line.split_whitespace().next()?.parse().ok());
        self.most_memory = self.most_memory.max(resident.unwrap_or(0));
        Ok(())
    }

    /// Checks the books; returns whether they could be read.
    fn scrape(&self) -> anyhow::Result<bool> {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return Ok(false) };
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let request = "GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n";
        let mut text = String::new();
        if stream.write_all(request.as_bytes()).is_err()
            || stream.read_to_string(&mut text).is_err()
        {
            return Ok(false);
        }
        books::are_closed(&text, &self.stages)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

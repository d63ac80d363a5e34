//! Two processes of one pipeline over embedded queues, killed, stopped, drained and scaled at
//! random while components fail at random; in the end every message is counted from outside.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Messages a second.
const RATE: u64 = 500;
/// One message in so many can never be handled.
const POISON: u64 = 97;
/// How long it may take until all is done when nothing is killed any more.
const PATIENCE: Duration = Duration::from_secs(600);
/// The stages of each of the two processes.
const PROCESSES: [&[&str]; 2] = [&["feed", "check"], &["total", "sort"]];

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

/// Runs it, and answers with its log and how it ended.
pub(super) fn run(minutes: u64, seed: u64) -> anyhow::Result<(String, anyhow::Result<()>)> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let build = ["build", "--release", "--example", "unreliable"];
    let built = Command::new(&cargo).args(build).status().context("cargo cannot be run")?;
    ensure!(built.success(), "the program cannot be built");
    let mut course = Course::new(minutes, seed)?;
    let outcome = course.go();
    match &outcome {
        Ok(()) => course.tell("verdict: every message came once, or is a dead letter"),
        Err(error) => course.tell(&format!("verdict: FAILED: {error:#}")),
    }
    let log = std::mem::take(&mut course.log);
    Ok((log, outcome))
}

/// A process of the pipeline.
struct Process {
    stages: &'static [&'static str],
    port: u16,
    /// None when it has ended by itself: everything is done.
    child: Option<Child>,
    workers: u32,
    most_memory: u64,
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
    scrapes: u64,
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
        // A copy, so that it stays the same whatever is built meanwhile.
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let program = Path::new(&target).join("release/examples/unreliable");
        fs::copy(program, directory.path().join("unreliable"))?;
        let mut course = Self {
            directory,
            count,
            begun: Instant::now(),
            until,
            random: fastrand::Rng::with_seed(seed),
            processes: Vec::new(),
            log: String::new(),
            events: 0,
            scrapes: 0,
        };
        course.tell(&format!("{count} messages at {RATE}/s, seed {seed}"));
        for stages in PROCESSES {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let mut process = Process { stages, port, child: None, workers: 2, most_memory: 0 };
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

    /// Lets it run for a while, and looks at the books once a second.
    fn watch(&mut self, period: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < period {
            std::thread::sleep(period.saturating_sub(begun.elapsed()).min(Duration::from_secs(1)));
            let directory = self.directory.path();
            for process in &mut self.processes {
                process.look(directory)?;
                self.scrapes += u64::from(process.scrape()?);
            }
        }
        Ok(())
    }

    /// Something happens to one of the processes.
    fn event(&mut self) -> anyhow::Result<()> {
        let at = self.random.usize(..self.processes.len());
        let pause = Duration::from_millis(self.random.u64(200..5000));
        let (what, workers) = (self.random.u32(..10), self.random.u32(1..5));
        let directory = self.directory.path().to_owned();
        let process = &mut self.processes[at];
        let Some(child) = &mut process.child else { return Ok(()) };
        let stages = process.stages.join(" and ");
        let told = match what {
            0..5 => {
                child.kill()?;
                child.wait()?;
                process.workers = workers;
                process.start(&directory)?;
                format!("killed {stages}; started with {workers} workers")
            }
            5..8 => {
                signal(child, "STOP")?;
                std::thread::sleep(pause);
                signal(child, "CONT")?;
                format!("stopped {stages} for {pause:?}, and let it go on")
            }
            _ => {
                signal(child, "TERM")?;
                let begun = Instant::now();
                let ended = child.wait()?;
                let code = ended.code();
                ensure!(matches!(code, Some(0 | 3)), "a drain of {stages} ended with {ended}");
                process.workers = workers;
                process.start(&directory)?;
                let took = begun.elapsed();
                format!("drained {stages} in {took:?}; started with {workers} workers")
            }
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
        let (events, scrapes) = (self.events, self.scrapes);
        self.tell(&format!(
            "{} outputs, {letters} dead letters ({by_chance} of them by chance), {events} events, \
             {scrapes} looks at the books, at most {} resident",
            out.lines().count(),
            most.join(" and ")
        ));
        // Numbers begin at 0 or 1: one place of the list stays empty.
        ensure!(missing <= 1, "{missing} messages are missing");
        ensure!(out.lines().count() as u64 + letters == self.count, "not as many as were made");
        ensure!(twice == 0, "{twice} messages came more than once");
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
    fn start(&mut self, directory: &Path) -> anyhow::Result<()> {
        let mut run = Command::new(directory.join("unreliable"));
        // Backtraces of panics would load the debug information into memory.
        run.env("RUST_BACKTRACE", "0").current_dir(directory).args([
            "run",
            "soak.yaml",
            "--until-idle",
        ]);
        for stage in self.stages {
            run.args(["--stage", stage]);
        }
        let scaled = if self.stages.contains(&"check") { "check" } else { "total" };
        run.args(["--set", &format!("stages.{scaled}.workers={}", self.workers)]);
        run.args(["--metrics", &format!("127.0.0.1:{}", self.port)]);
        let log = directory.join(format!("{scaled}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        run.stdout(Stdio::null()).stderr(log);
        self.child = Some(run.spawn().context("the program cannot be run")?);
        Ok(())
    }

    /// Notes how much memory it takes, and whether it is done.
    fn look(&mut self, directory: &Path) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        if let Some(ended) = child.try_wait()? {
            // With dead letters or without.
            if !matches!(ended.code(), Some(0 | 3)) {
                let name = if self.stages.contains(&"check") { "check.log" } else { "total.log" };
                let log = fs::read_to_string(directory.join(name)).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(20).collect();
                bail!("{:?} ended with {ended}:\n{}", self.stages, end.join("\n"));
            }
            self.child = None;
            return Ok(());
        }
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|line| line.split_whitespace().next()?.parse().ok());
        self.most_memory = self.most_memory.max(resident.unwrap_or(0));
        Ok(())
    }

    /// Looks at the books; says whether they could be seen.
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
        let books = text.lines().find(|line| line.starts_with("brigade_unaccounted_messages"));
        let Some(books) = books else { return Ok(false) };
        ensure!(books.ends_with(" 0"), "the books do not close: {books}");
        Ok(true)
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

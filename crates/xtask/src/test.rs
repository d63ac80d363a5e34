//! Every test there is, and what was real in them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;

/// Run every test.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Go without something that tests need; it then stands in the last line.
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

/// What tests need beside Rust and a C compiler, by the name that `--without` takes.
const NEEDS: [Need; 6] = [
    Need {
        name: "redis",
        feature: "real-redis",
        there: redis,
        missing: "redis-server is not installed: install it (`apt-get install redis-server`)",
    },
    Need {
        name: "kafka",
        feature: "real-kafka",
        there: kafka,
        missing: "Java 17, Maven, openssl or its headers are not installed: install them (`apt-get \
                  install openjdk-17-jre-headless maven openssl libssl-dev pkg-config`)",
    },
    Need {
        name: "postgres",
        feature: "real-postgres",
        there: postgres,
        missing: "PostgreSQL's server is not installed: install it (`apt-get install postgresql`)",
    },
    Need {
        name: "schema-registry",
        feature: "real-schema-registry",
        there: schema_registry,
        missing: "Java 17, Maven or OpenSSL's headers are not installed: install them (`apt-get install \
                  openjdk-17-jre-headless maven libssl-dev pkg-config`)",
    },
    Need {
        name: "rsmq-clients",
        feature: "real-rsmq-clients",
        there: rsmq_clients,
        missing: "Node with npm, or Python 3 with pip, is not installed: install them (`apt-get install \
                  nodejs npm python3-pip`)",
    },
    Need {
        name: "mounts",
        feature: "machine",
        there: mounts,
        missing: "file systems cannot be mounted here: run it as root",
    },
];

/// Something that tests need.
struct Need {
    name: &'static str,
    /// The feature that the tests stand behind.
    feature: &'static str,
    /// What is there of it, for the report.
    there: fn() -> Option<String>,
    /// What to say, and to do, if it is not there.
    missing: &'static str,
}

impl Test {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        for name in &self.without {
            ensure!(NEEDS.iter().any(|need| need.name == name), "no test needs `{name}`");
        }
        crate::tidy::run()?;
        let mut features = vec!["sabotage"];
        let mut real = vec!["processes (killed with SIGKILL), files, SQLite (bundled)".to_owned()];
        for need in NEEDS.iter().filter(|need| !self.without.iter().any(|w| w == need.name)) {
            let there = (need.there)();
            real.push(
                there.with_context(|| {
                    format!("{}, or go `--without {}`", need.missing, need.name)
                })?,
            );
            features.push(need.feature);
        }
        let features = features.join(",");
        let used = std::env::temp_dir().join(format!("brigade-servers-{}", std::process::id()));
        // The crash tests kill the real command, so it has to be there.
        cargo(&["build", "--bin", "brigade", "--features", &features], &used)?;
        let mut test = vec!["test", "--workspace", "--features", &features, "--no-fail-fast"];
        if self.without.iter().any(|without| without == "kafka") {
            // It builds the C client, whose headers may be missing too.
            test.extend(["--exclude", "brigade-kafka"]);
        }
        if self.without.iter().any(|without| without == "schema-registry") {
            test.extend(["--exclude", "brigade-schemas"]);
        }
        let passed = cargo(&test, &used);
        let counts = Counts::read(&used);
        // It was this run's; nobody else reads it.
        let _ = std::fs::remove_file(&used);
        passed?;
        report(&real, &counts, &self.without);
        Ok(())
    }
}

/// Runs cargo; tests that start servers note it in the file `used`.
fn cargo(arguments: &[&str], used: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut cargo = Command::new(cargo);
    cargo.args(arguments).env("BRIGADE_SERVERS_USED", used);
    let status = cargo.status().context("cargo cannot be run")?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// What a program that is installed says of its version.
fn says(program: &str, arguments: &str) -> Option<String> {
    let output = Command::new(program).args(arguments.split(' ')).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&text).into_owned())
}

fn redis() -> Option<String> {
    let text = says("redis-server", "--version")?;
    let version = text.split(' ').find_map(|word| word.strip_prefix("v="))?;
    Some(format!("redis-server {version}, killed and started again"))
}

fn kafka() -> Option<String> {
    let java = says("java", "-version")?;
    says("mvn", "--version")?;
    says("openssl", "version")?;
    let java = java.split('"').nth(1).unwrap_or("?");
    let pom = include_str!("../../testkit/src/servers/kafka-pom.xml");
    let (_, kafka) = pom.split_once("<artifactId>kafka_2.13</artifactId>")?;
    let (_, kafka) = kafka.split_once("<version>")?;
    let (kafka, _) = kafka.split_once('<')?;
    Some(format!("Kafka {kafka} (KRaft, on Java {java}), killed and started again; TLS, SCRAM"))
}

fn postgres() -> Option<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin/postgres")).max();
    let program = newest.map_or_else(|| "postgres".to_owned(), |path| path.display().to_string());
    let text = says(&program, "--version")?;
    let version = text.split(' ').nth(2).unwrap_or("?").to_owned();
    Some(format!("PostgreSQL {}, killed and started again", version.trim()))
}

fn schema_registry() -> Option<String> {
    says("java", "-version")?;
    says("mvn", "--version")?;
    let source = include_str!("../../testkit/src/servers/schema_registry.rs");
    let (_, rest) = source.split_once("apicurio-registry-app:")?;
    let (version, _) = rest.split_once(':')?;
    Some(format!("a schema registry (Apicurio {version}), killed and started again"))
}

fn rsmq_clients() -> Option<String> {
    says("npm", "--version")?;
    says("python3", "-m pip --version")?;
    let (node, python) = (says("node", "--version")?, says("python3", "--version")?);
    Some(format!("the RSMQ clients of Node ({}) and {}", node.trim(), python.trim()))
}

/// Mounts something and takes it away again.
fn mounts() -> Option<String> {
    let directory = std::env::temp_dir().join(format!("brigade-mount-{}", std::process::id()));
    std::fs::create_dir(&directory).ok()?;
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).arg(&directory).output();
        status.is_ok_and(|output| output.status.success())
    };
    let mounted = run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs"]);
    let gone = mounted && run("umount", &[]);
    std::fs::remove_dir(&directory).ok()?;
    gone.then(|| "file systems, mounted full and read-only".to_owned())
}

/// The servers that tests use, as they note it, and what they are called in the report.
const SERVERS: [(&str, &str); 9] = [
    ("redis", "Redis"),
    ("redis, secured", "Redis with TLS and a user with few rights"),
    ("redis, sentinel", "Redis with a Sentinel, failed over"),
    ("redis, cluster", "Redis Cluster, slots moved"),
    ("rsmq clients", "the RSMQ clients of Node and Python"),
    ("postgres", "PostgreSQL"),
    ("schema registry", "the schema registry"),
    ("kafka", "Kafka"),
    ("kafka, secured", "Kafka with TLS, SCRAM and OAUTHBEARER"),
];

/// Which tests used which server.
struct Counts(BTreeSet<(String, String)>);

impl Counts {
    /// Reads what the tests noted: a server and a test a line.
    fn read(used: &Path) -> Self {
        let text = std::fs::read_to_string(used).unwrap_or_default();
        let line = |line: &str| {
            let (server, test) = line.split_once('\t')?;
            Some((server.to_owned(), test.to_owned()))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn of(&self, server: &str) -> usize {
        self.0.iter().filter(|(used, _)| used == server).count()
    }
}

#[expect(clippy::print_stdout, reason = "a script's output")]
fn report(real: &[String], counts: &Counts, without: &[String]) {
    println!("\n{:<44} {:>5}", "server", "tests");
    for (server, name) in SERVERS {
        match counts.of(server) {
            0 => println!("{name:<44} {:>5}", "none"),
            tests => println!("{name:<44} {tests:>5}"),
        }
    }
    for real in real {
        println!("real: {real}");
    }
    match without {
        [] => println!("all tests passed, without nothing"),
        without => println!("all tests passed, without {}", without.join(", ")),
    }
}

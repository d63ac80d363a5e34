//! Every test there is, and what was real in them.

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

/// Something that tests need beside Rust and a C compiler.
struct Need {
    /// What `--without` takes.
    name: &'static str,
    /// The features that the tests stand behind.
    features: &'static str,
    /// What is installed of it, told for people.
    version: fn() -> Option<String>,
    /// How to get it.
    install: &'static str,
}

const NEEDS: [Need; 2] = [
    Need {
        name: "redis",
        features: "real-redis",
        version: redis,
        install: "redis-server is not installed (Debian: `apt-get install redis-server`)",
    },
    Need {
        name: "kafka",
        features: "real-kafka",
        version: kafka,
        install: "Java 17, Maven or OpenSSL's headers are not installed (Debian: `apt-get install \
                  openjdk-17-jre-headless maven libssl-dev pkg-config`)",
    },
];

impl Test {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        for name in &self.without {
            ensure!(NEEDS.iter().any(|need| need.name == name), "no test needs `{name}`");
        }
        let needs: Vec<&Need> = NEEDS.iter().filter(|need| !self.goes_without(need)).collect();
        for Need { name, version, install, .. } in &needs {
            ensure!(version().is_some(), "{install}; or go `--without {name}`");
        }
        crate::tidy::run()?;
        let features = needs.iter().map(|need| need.features);
        let features: Vec<&str> = std::iter::once("sabotage").chain(features).collect();
        let features = features.join(",");
        // The crash tests kill the real command, so it has to be there.
        cargo(&["build", "--bin", "brigade", "--features", &features])?;
        cargo(&["test", "--workspace", "--features", &features, "--no-fail-fast"])?;
        report(&needs, &self.without);
        Ok(())
    }

    fn goes_without(&self, need: &Need) -> bool {
        self.without.iter().any(|name| name == need.name)
    }
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo).args(arguments).status().context("cargo cannot be run")?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// What a program that is installed says of its version.
fn says(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&text).into_owned())
}

fn redis() -> Option<String> {
    let text = says("redis-server", "--version")?;
    let version = text.split(' ').find_map(|word| word.strip_prefix("v="))?;
    Some(format!("Redis {version}"))
}

fn kafka() -> Option<String> {
    let java = says("java", "-version")?;
    says("mvn", "--version")?;
    let java = java.split('"').nth(1).unwrap_or("?");
    let pom = include_str!("../../testkit/src/servers/kafka-pom.xml");
    let (_, kafka) = pom.split_once("<artifactId>kafka_2.13</artifactId>")?;
    let (_, kafka) = kafka.split_once("<version>")?;
    let (kafka, _) = kafka.split_once('<')?;
    Some(format!("Kafka {kafka} on Java {java}"))
}

#[expect(clippy::print_stdout, reason = "a script's output")]
fn report(needs: &[&Need], without: &[String]) {
    println!("real: processes (killed with SIGKILL), files, SQLite (bundled)");
    for version in needs.iter().filter_map(|need| (need.version)()) {
        println!("real: {version}, killed and started again");
    }
    match without {
        [] => println!("all tests passed, without nothing"),
        without => println!("all tests passed, without {}", without.join(", ")),
    }
}

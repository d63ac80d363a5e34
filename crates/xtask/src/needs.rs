//! What tests need besides Rust and a C compiler: whether it is there, and installing it.

use std::fmt;
use std::process::Command;

use anyhow::ensure;

/// All of it, by the names that `--without` takes.
pub(crate) const NEEDS: [Need; 7] = [
    Need {
        name: "redis",
        feature: "real-redis",
        there: redis,
        missing: "redis-server or openssl is not installed",
        packages: &["redis-server", "openssl"],
    },
    Need {
        name: "kafka",
        feature: "real-kafka",
        there: kafka,
        missing: "Java 17, Maven, make, a C++ compiler, openssl or its headers are not installed",
        packages: &[
            "default-jre-headless",
            "maven",
            "openssl",
            "libssl-dev",
            "pkg-config",
            "make",
            "g++",
        ],
    },
    Need {
        name: "postgres",
        feature: "real-postgres",
        there: postgres,
        missing: "PostgreSQL's server is not installed",
        packages: &["postgresql"],
    },
    Need {
        name: "schema-registry",
        feature: "real-schema-registry",
        there: schema_registry,
        missing: "Java 17, Maven or OpenSSL's headers are not installed",
        packages: &["default-jre-headless", "maven", "libssl-dev", "pkg-config"],
    },
    Need {
        name: "rsmq-clients",
        feature: "real-rsmq-clients",
        there: rsmq_clients,
        missing: "Node with npm, or Python 3 with pip, is not installed",
        packages: &["nodejs", "npm", "python3-pip"],
    },
    Need {
        name: "asyncapi-parser",
        feature: "real-asyncapi-parser",
        there: asyncapi_parser,
        missing: "Node with npm is not installed",
        packages: &["nodejs", "npm"],
    },
    Need {
        name: "mounts",
        feature: "machine",
        there: mounts,
        missing: "file systems cannot be mounted here: run it as root",
        packages: &[],
    },
];

/// Something that tests need.
pub(crate) struct Need {
    pub(crate) name: &'static str,
    /// The feature that enables the tests.
    pub(crate) feature: &'static str,
    /// What is available of it, for the report.
    there: fn() -> Option<String>,
    /// What to report if it is missing.
    missing: &'static str,
    /// Its Debian packages.
    packages: &'static [&'static str],
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.missing)?;
        match self.packages {
            [] => Ok(()),
            packages => write!(f, ": install it (`apt-get install {}`)", packages.join(" ")),
        }
    }
}

impl Need {
    /// What is available of it; if it is missing, it is installed where that is possible.
    pub(crate) fn find_or_install(&self) -> Option<String> {
        (self.there)().or_else(|| {
            install(self.packages)?;
            (self.there)()
        })
    }
}

/// Installs packages on Debian, as root or by `sudo` without a password.
fn install(packages: &[&str]) -> Option<()> {
    let is_root = says("id", "-u")?.trim() == "0";
    let may = is_root || says("sudo", "-n true").is_some();
    if packages.is_empty() || !may || says("apt-get", "--version").is_none() {
        return None;
    }
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new(if is_root { "env" } else { "sudo" });
        if !is_root {
            apt.args(["-n", "env"]);
        }
        // A machine that has just started may be installing something itself.
        apt.args([
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-qq",
            "-o",
            "DPkg::Lock::Timeout=300",
        ]);
        apt.args(arguments).status().is_ok_and(|status| status.success())
    };
    // Package lists that cannot be refreshed may still do.
    let _ = apt(&["update"]);
    apt(&[&["install", "-y", "--no-install-recommends"], packages].concat()).then_some(())
}

/// Installs what is missing; prints what there is, and what could not be installed.
#[expect(clippy::print_stdout, reason = "a script's output")]
pub(crate) fn install_all() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for need in &NEEDS {
        match need.find_or_install() {
            Some(there) => println!("{}: {there}", need.name),
            None => missing.push(need.to_string()),
        }
    }
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}

/// What an installed program reports as its version.
fn says(program: &str, arguments: &str) -> Option<String> {
    let output = Command::new(program).args(arguments.split(' ')).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&text).into_owned())
}

fn redis() -> Option<String> {
    // The TLS test makes certificates.
    says("openssl", "version")?;
    let text = says("redis-server", "--version")?;
    let version = text.split(' ').find_map(|word| word.strip_prefix("v="))?;
    Some(format!("redis-server {version}"))
}

fn kafka() -> Option<String> {
    let java = says("java", "-version")?;
    says("mvn", "--version")?;
    says("openssl", "version")?;
    says("pkg-config", "--exists openssl")?;
    // Building its client requires both.
    says("make", "--version")?;
    says("c++", "--version")?;
    let java = java.split('"').nth(1).unwrap_or("?");
    let pom = include_str!("../../testkit/src/servers/kafka-pom.xml");
    let (_, kafka) = pom.split_once("<artifactId>kafka_2.13</artifactId>")?;
    let (_, kafka) = kafka.split_once("<version>")?;
    let (kafka, _) = kafka.split_once('<')?;
    Some(format!("Kafka {kafka} (KRaft, on Java {java})"))
}

fn postgres() -> Option<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin/postgres")).max();
    let program = newest.map_or_else(|| "postgres".to_owned(), |path| path.display().to_string());
    let text = says(&program, "--version")?;
    let version = text.split(' ').nth(2).unwrap_or("?").to_owned();
    Some(format!("PostgreSQL {}", version.trim()))
}

fn schema_registry() -> Option<String> {
    says("java", "-version")?;
    says("mvn", "--version")?;
    says("pkg-config", "--exists openssl")?;
    let source = include_str!("../../testkit/src/servers/schema_registry.rs");
    let (_, rest) = source.split_once("apicurio-registry-app:")?;
    let (version, _) = rest.split_once(':')?;
    Some(format!("Apicurio {version}"))
}

fn rsmq_clients() -> Option<String> {
    says("npm", "--version")?;
    says("python3", "-m pip --version")?;
    let (node, python) = (says("node", "--version")?, says("python3", "--version")?);
    Some(format!("those of Node ({}) and {}", node.trim(), python.trim()))
}

fn asyncapi_parser() -> Option<String> {
    says("npm", "--version")?;
    let source = include_str!("../../testkit/src/servers/asyncapi.rs");
    let (_, version) = source.split_once("@asyncapi/parser@")?;
    let (version, _) = version.split_once('"')?;
    Some(format!("@asyncapi/parser {version}, on Node {}", says("node", "--version")?.trim()))
}

/// Mounts something and unmounts it again.
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

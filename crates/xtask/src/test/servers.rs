//! Which servers were real in a run, and how many tests each had.

use std::collections::BTreeSet;
use std::path::Path;

/// A row of the table.
pub(super) struct Server {
    /// The name that tests use when they record that they use it.
    noted: &'static str,
    /// Its name in the table.
    name: &'static str,
    /// The need it belongs to.
    need: &'static str,
}

const fn server(noted: &'static str, name: &'static str, need: &'static str) -> Server {
    Server { noted, name, need }
}

pub(super) const SERVERS: [Server; 15] = [
    server("kafka", "Kafka, plain", "kafka"),
    server("kafka, tls", "Kafka, TLS", "kafka"),
    server("kafka, scram", "Kafka, SCRAM over TLS", "kafka"),
    server("kafka, sasl plain", "Kafka, SASL PLAIN over TLS", "kafka"),
    server("kafka, oauthbearer", "Kafka, OAUTHBEARER over TLS", "kafka"),
    server("redis", "Redis, plain", "redis"),
    server("redis, tls", "Redis, TLS", "redis"),
    server("redis, user", "Redis, ACL user", "redis"),
    server("redis, restricted", "Redis, users with few rights", "redis"),
    server("redis, sentinel", "Redis, Sentinel, failed over", "redis"),
    server("redis, cluster", "Redis, Cluster, slots moved", "redis"),
    server("schema registry", "schema registry", "schema-registry"),
    server("postgres", "PostgreSQL", "postgres"),
    server("rsmq clients", "RSMQ clients", "rsmq-clients"),
    server("asyncapi parser", "AsyncAPI's parser", "asyncapi-parser"),
];

/// Which tests used which server.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeSet<(String, String)>);

impl Counts {
    /// Reads what the tests recorded.
    pub(super) fn read(used: &Path) -> Self {
        Self::of_text(&std::fs::read_to_string(used).unwrap_or_default())
    }

    /// One server and one test per line.
    fn of_text(text: &str) -> Self {
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

/// The lines to print: for each server what was real, by the names of needs, and its number of
/// tests.
pub(super) fn table(real: &[(&str, String)], counts: &Counts) -> Vec<String> {
    let line = |name: &str, real: &str, tests: &str| format!("{name:<30} {real:<50} {tests:>5}");
    let mut lines = vec![line("server", "real", "tests")];
    for Server { noted, name, need } in &SERVERS {
        let there = real.iter().find(|(of, _)| of == need);
        let (what, tests) = match there {
            Some((_, what)) => (what.as_str(), counts.of(noted).to_string()),
            None => ("left out", "none".to_owned()),
        };
        lines.push(line(name, what, &tests));
    }
    lines
}

/// Needs whose only tests need others too.
const TOGETHER: [(&str, [&str; 2]); 2] =
    [("postgres", ["kafka", "redis"]), ("asyncapi-parser", ["kafka", "schema-registry"])];

/// The servers that were there, with all that their tests need, and that no test used: without this
/// a suite that does not start its server any more would pass.
pub(super) fn unused(real: &[(&str, String)], counts: &Counts) -> Vec<&'static str> {
    let there = |need: &str| real.iter().any(|(of, _)| *of == need);
    let is_whole = |server: &&Server| {
        let others = TOGETHER.iter().filter(|(of, _)| *of == server.need);
        there(server.need) && others.flat_map(|(_, others)| others).all(|need| there(need))
    };
    let unused = SERVERS.iter().filter(is_whole).filter(|server| counts.of(server.noted) == 0);
    unused.map(|server| server.name).collect()
}

/// What is real but has no row in the table.
pub(super) fn others(real: &[(&str, String)]) -> Vec<String> {
    let is_other = |need: &str| SERVERS.iter().all(|server| server.need != need);
    let others = real.iter().filter(|(need, _)| is_other(need));
    others.map(|(_, what)| format!("real: {what}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_a_row_with_its_version_and_tests() {
        let noted = "kafka\tx one\nkafka\tx one\nkafka\tx two\nkafka, tls\tx two\nbroken\n";
        let real = [("kafka", "Kafka 4.1.0".to_owned()), ("mounts", "file systems".to_owned())];
        let lines = table(&real, &Counts::of_text(noted));
        assert_eq!(lines.len(), 1 + SERVERS.len());
        let words = |at: usize| lines[at].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(1), "Kafka, plain Kafka 4.1.0 2");
        assert_eq!(words(2), "Kafka, TLS Kafka 4.1.0 1");
        assert_eq!(words(3), "Kafka, SCRAM over TLS Kafka 4.1.0 0");
        assert_eq!(words(4), "Kafka, SASL PLAIN over TLS Kafka 4.1.0 0");
        assert_eq!(words(6), "Redis, plain left out none");
        assert_eq!(others(&real), ["real: file systems"]);
    }

    #[test]
    fn a_server_that_is_there_and_that_no_test_uses_is_told() {
        let noted = "kafka\tx one\nkafka, tls\tx two\nkafka, sasl plain\tx two\nredis\tx one\n";
        let mut real = vec![("kafka", "Kafka 4.1.0".to_owned()), ("postgres", "17".to_owned())];
        let counts = Counts::of_text(noted);
        // PostgreSQL's tests need Redis too.
        let kafka = ["Kafka, SCRAM over TLS", "Kafka, OAUTHBEARER over TLS"];
        assert_eq!(unused(&real, &counts), kafka);
        real.push(("redis", "Redis 8".to_owned()));
        assert_eq!(unused(&real, &counts).last(), Some(&"PostgreSQL"));
    }

    #[test]
    fn rows_are_of_needs_and_of_what_the_testkit_notes() {
        let testkit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/src/servers");
        let files = std::fs::read_dir(testkit).unwrap().map(|entry| entry.unwrap().path());
        let text = files.filter_map(|file| std::fs::read_to_string(file).ok()).collect::<String>();
        for Server { noted, need, .. } in &SERVERS {
            assert!(text.contains(&format!("\"{noted}\"")), "nothing notes `{noted}`");
            assert!(crate::needs::NEEDS.iter().any(|known| known.name == *need), "{need}");
        }
    }
}

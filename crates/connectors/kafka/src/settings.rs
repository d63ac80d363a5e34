//! The keys of a Kafka queue, and the client properties they become.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use brigade_core::Period;
use brigade_core::connector::{ConnectorError, Features, Problem, QueuePlace, QueueSpec, Reader};
use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Number, Value};

use crate::properties::{POLL_INTERVAL, RESET, SERVERS};
use crate::retry::RetryNames;

/// The keys of a Kafka queue.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The topic. Default: the queue's name.
    pub(crate) topic: Option<String>,
    /// Several topics to consume, or regular expressions that begin with `^`; a queue with this key
    /// cannot be an output.
    #[serde(default)]
    pub(crate) topics: Vec<String>,
    /// The consumer group. Default: the environment variable `KAFKA_CONSUMER_GROUP`, otherwise the
    /// pipeline's name. If several stages read the topic: `GROUP.STAGE`.
    pub(crate) group: Option<String>,
    /// Any of librdkafka's properties, `bootstrap.servers` first of all, each in one spelling.
    /// Defaults: the servers from the environment variables `KAFKA_CONSUMER_BROKERS` or
    /// `KAFKA_PRODUCER_BROKERS`, otherwise `KAFKA_BROKERS`; with `KAFKA_KEY` and `KAFKA_SECRET`
    /// SASL PLAIN over TLS.
    #[serde(default)]
    pub(crate) config: BTreeMap<String, Scalar>,
    /// Create the topic if it does not exist; for `topics`, those that are named.
    pub(crate) create: Option<Create>,
    /// How long failed messages wait on topics of the group's own, with one topic per length: from
    /// 1s to 1d, ascending, at most 10. A message waits on the first whose length is at least its
    /// back-off. Default: none; failed messages wait in the process.
    #[serde(default)]
    #[schemars(length(max = 10))]
    pub(crate) retry_topics: Vec<Period>,
    /// How long a partition that goes to another member is kept so that messages in flight can be
    /// resolved; those that are not resolved by then are handled again by the other member. Less
    /// than `max.poll.interval.ms`. Default: 10s.
    #[serde(default = "revoke_within")]
    pub(crate) revoke_within: Period,
    /// How long the broker may have records none of which arrive, or the client may hang, before
    /// the connection is closed and reopened. Default: 2m.
    #[serde(default = "stall_after")]
    pub(crate) stall_after: Period,
}

/// How a topic is created.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Create {
    /// Its partitions, 1 to 100000.
    #[schemars(range(min = 1, max = 100_000))]
    pub(crate) partitions: i32,
    /// How many brokers keep each partition. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) replication: i32,
}

/// The value of a property.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Scalar {
    Flag(bool),
    Number(Number),
    Text(String),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

fn revoke_within() -> Period {
    Period(Duration::from_secs(10))
}

fn stall_after() -> Period {
    Period(Duration::from_secs(120))
}

fn one() -> i32 {
    1
}

/// What topics can do.
pub(crate) const FEATURES: Features = Features {
    consume: true,
    produce: true,
    durable: true,
    order: true,
    key_order: true,
    groups: true,
    replay: true,
    batch: true,
    key: true,
    headers: true,
    event_time: true,
    message_id: true,
    null_payload: true,
    empty_payload: true,
    binary: true,
    settle_together: true,
    max_message_bytes: Some(MESSAGE_MAX - AROUND),
    ..Features::NONE
};

/// The role of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Consumer,
    Producer,
}

impl Role {
    /// The role in which to contact a queue's broker: a queue that no stage reads is an output.
    pub(crate) fn of(queue: &QueueSpec) -> Self {
        if queue.groups.is_empty() { Self::Producer } else { Self::Consumer }
    }
}

/// How long a message may wait on a retry topic.
const RETRY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// The longest record, including everything around the payload, unless `message.max.bytes` is set.
const MESSAGE_MAX: u64 = 1_000_000;
/// Room for what is around a payload: the headers that Brigade adds, and a short key.
const AROUND: u64 = 1024;

impl Settings {
    pub(crate) fn of(queue: &QueueSpec) -> Result<Self, ConnectorError> {
        queue.settings()
    }

    /// The topic that messages are put on.
    pub(crate) fn topic(&self, queue: &QueueSpec) -> String {
        self.topic.clone().unwrap_or_else(|| queue.name.to_string())
    }

    /// The topics and expressions that are consumed.
    pub(crate) fn subscription(&self, queue: &QueueSpec) -> Vec<String> {
        match self.topics.is_empty() {
            true => vec![self.topic(queue)],
            false => self.topics.clone(),
        }
    }

    /// The retry topics of a reader.
    pub(crate) fn retry_names(&self, queue: &QueueSpec, reader: &Reader) -> RetryNames {
        let base = match self.topics.is_empty() {
            true => self.topic(queue),
            false => queue.name.to_string(),
        };
        RetryNames::new(&self.group(queue, reader), &base, &self.retry_topics)
    }

    /// What this queue can do.
    pub(crate) fn features(&self) -> Features {
        Features {
            produce: self.topics.is_empty(),
            retry_delay: !self.retry_topics.is_empty(),
            max_message_bytes: Some(self.max_bytes()),
            ..FEATURES
        }
    }

    /// A producer's properties, with the brokers of the consumer's.
    pub(crate) fn producer_at(&self, site: &Site) -> ClientConfig {
        let mut config = self.client(Role::Producer);
        config.set(SERVERS, &site.servers);
        config
    }

    /// The longest payload that the client sends, including its headers.
    pub(crate) fn max_bytes(&self) -> u64 {
        let max = self
            .property("message.max.bytes")
            .and_then(|max| max.parse().ok())
            .unwrap_or(MESSAGE_MAX);
        u64::saturating_sub(max, AROUND)
    }

    /// The consumer group of a reader.
    pub(crate) fn group(&self, queue: &QueueSpec, reader: &Reader) -> String {
        self.group_in(queue, reader, environment)
    }

    fn group_in(&self, queue: &QueueSpec, reader: &Reader, environment: Environment) -> String {
        let base = self.group.clone().or_else(|| environment("KAFKA_CONSUMER_GROUP"));
        let base = base.unwrap_or_else(|| queue.pipeline.to_string());
        match reader.group.is_empty() {
            true => base,
            false => format!("{base}.{}", reader.group),
        }
    }

    /// The brokers' addresses.
    pub(crate) fn servers(&self, role: Role) -> Option<String> {
        self.servers_in(role, environment)
    }

    pub(crate) fn servers_in(&self, role: Role, environment: Environment) -> Option<String> {
        let own = match role {
            Role::Consumer => "KAFKA_CONSUMER_BROKERS",
            Role::Producer => "KAFKA_PRODUCER_BROKERS",
        };
        self.property(SERVERS).or_else(|| environment(own)).or_else(|| environment("KAFKA_BROKERS"))
    }

    /// Whether a new group begins at the end.
    pub(crate) fn begins_at_end(&self) -> bool {
        let reset = self.property(RESET);
        reset.is_some_and(|reset| is_one_of(&reset, &["latest", "end", "largest"]))
    }

    /// The properties of a member of a reader's group.
    pub(crate) fn member(&self, queue: &QueueSpec, reader: &Reader) -> ClientConfig {
        self.member_of(&self.group(queue, reader))
    }

    /// Where the topics are, and their names.
    pub(crate) fn place(&self, queue: &QueueSpec) -> QueuePlace {
        self.place_in(queue, environment)
    }

    fn place_in(&self, queue: &QueueSpec, environment: Environment) -> QueuePlace {
        let client = self.client_in(Role::Consumer, environment);
        let security = client.get("security.protocol").unwrap_or("plaintext");
        let protocol = match security.eq_ignore_ascii_case("plaintext") {
            true => "kafka",
            false => "kafka-secure",
        };
        let servers = self.servers_in(Role::Consumer, environment);
        let servers = servers.or_else(|| self.servers_in(Role::Producer, environment));
        // librdkafka also accepts `protocol://host:port`.
        let host = |server: &str| server.rsplit("//").next().unwrap_or(server).trim().to_owned();
        let hosts = servers.unwrap_or_default();
        let hosts = hosts.split(',').map(host).filter(|host| !host.is_empty()).collect();
        let all = self.subscription(queue).into_iter();
        let (patterns, names) = all.partition(|topic| topic.starts_with('^'));
        QueuePlace { protocol, hosts, names, patterns }
    }

    /// What is wrong beyond the schema.
    pub(crate) fn problems(&self, queue: &QueueSpec) -> Vec<Problem> {
        let mut problems = self.property_problems();
        if self.topic.is_some() && !self.topics.is_empty() {
            let message = "`topic` and `topics` exclude each other";
            problems.push(Problem::at("topics", message).help("leave one of them out"));
        }
        if self.stall_after.0.is_zero() {
            let message =
                "`stall_after` must be more than 0s: the connection would be closed at once";
            problems.push(Problem::at("stall_after", message).help("leave it out for 2m"));
        }
        problems.extend(self.retry_problems());
        problems.extend(self.isolation_problem(queue));
        if self.servers(Role::of(queue)).is_none() {
            let problem = Problem::whole(no_servers());
            let help = "set `config: { bootstrap.servers: \"host:9092\" }` (in TOML and JSON as one \
                        quoted key), or the environment variable KAFKA_BROKERS";
            problems.push(problem.help(help));
        }
        if problems.is_empty() {
            problems = self.misfits(queue);
        }
        if problems.is_empty() {
            problems.extend(self.revoke_problem());
        }
        problems
    }

    /// The wait for a revocation takes place within one poll.
    fn revoke_problem(&self) -> Option<Problem> {
        /// librdkafka's default, in milliseconds.
        const INTERVAL: u64 = 300_000;
        let interval = self.property(POLL_INTERVAL).and_then(|interval| interval.parse().ok());
        let interval = Period(Duration::from_millis(interval.unwrap_or(INTERVAL)));
        (self.revoke_within.0 >= interval.0).then(|| {
            let message = format!(
                "expected less than `{POLL_INTERVAL}`, which is {interval}, found {}",
                self.revoke_within
            );
            let help =
                "a member that waits for longer is taken for dead, and loses all its partitions";
            Problem::at("revoke_within", message).help(help)
        })
    }

    fn retry_problems(&self) -> Vec<Problem> {
        let tiers = &self.retry_topics;
        let at = |message: String| Problem::at("retry_topics", message);
        let mut problems = Vec::new();
        for wrong in tiers.iter().filter(|tier| !RETRY.contains(&tier.0)) {
            let message = format!("expected times from 1s to 1d, found {wrong}");
            problems.push(at(message).help("shorter back-offs wait in the process"));
        }
        if !tiers.is_sorted_by(|a, b| a.0 < b.0) {
            problems.push(at("expected ascending times".to_owned()));
        }
        let reset = self.property(RESET);
        let from_first = ["earliest", "beginning", "smallest"];
        if let Some(reset) = reset.filter(|reset| !is_one_of(reset, &from_first))
            && !tiers.is_empty()
        {
            let message = format!("`retry_topics` cannot be with `{RESET}: {reset}`");
            let help =
                "a message that is put on a new retry topic before that is consumed would be lost";
            problems.push(at(message).help(help));
        }
        problems
    }
}

fn no_servers() -> String {
    "no Kafka broker is named".to_owned()
}

/// Whether a value is one of these words, case-insensitively like in librdkafka.
fn is_one_of(value: &str, words: &[&str]) -> bool {
    words.iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Returns the value of an environment variable.
pub(crate) type Environment = fn(&str) -> Option<String>;

pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The queue's name and its brokers, for errors.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) queue: Arc<str>,
    pub(crate) servers: String,
}

impl Site {
    pub(crate) fn new(queue: &QueueSpec, settings: &Settings, role: Role) -> Self {
        let servers = settings.servers(role).unwrap_or_else(no_servers);
        Self { queue: Arc::clone(&queue.name), servers }
    }

    /// An error text with the queue and its brokers.
    pub(crate) fn told(&self, what: impl std::fmt::Display) -> String {
        format!("queue `{}` (Kafka at {}): {what}", self.queue, self.servers)
    }
}

/// The JSON Schema of [`Settings`].
pub(crate) fn schema() -> Value {
    schemars::schema_for!(Settings).to_value()
}

#[cfg(test)]
mod tests {
    use brigade_core::connector::Order;
    use serde_json::json;

    use super::*;

    fn settings(keys: Value) -> Settings {
        serde_json::from_value(keys).unwrap()
    }

    fn nothing(_: &str) -> Option<String> {
        None
    }

    fn all(name: &str) -> Option<String> {
        Some(name.to_lowercase())
    }

    #[test]
    fn variables_name_the_brokers_unless_the_file_does() {
        let silent = settings(json!({}));
        let brokers = |name: &str| (name == "KAFKA_BROKERS").then(|| "all".to_owned());
        let consumers = |name: &str| (name == "KAFKA_CONSUMER_BROKERS").then(|| "in".to_owned());
        assert_eq!(silent.servers_in(Role::Consumer, nothing), None);
        assert_eq!(silent.servers_in(Role::Producer, brokers).as_deref(), Some("all"));
        assert_eq!(silent.servers_in(Role::Consumer, consumers).as_deref(), Some("in"));
        assert_eq!(silent.servers_in(Role::Producer, consumers), None);
        let own = silent.servers_in(Role::Producer, all);
        assert_eq!(own.as_deref(), Some("kafka_producer_brokers"));
        let said = settings(json!({ "config": { "bootstrap.servers": "file" } }));
        assert_eq!(said.servers_in(Role::Consumer, all).as_deref(), Some("file"));
        let said = settings(json!({ "config": { "metadata.broker.list": "file" } }));
        assert_eq!(said.servers_in(Role::Consumer, nothing).as_deref(), Some("file"));
    }

    #[test]
    fn a_queue_that_nobody_reads_has_the_brokers_of_outputs() {
        let mut queue = QueueSpec::new("shop", "out", json!({}));
        assert_eq!(Role::of(&queue), Role::Consumer);
        queue.groups.clear();
        assert_eq!(Role::of(&queue), Role::Producer);
    }

    #[test]
    fn a_place_is_told_with_all_its_brokers_and_without_secrets() {
        let queue = QueueSpec::new("shop", "in", json!({}));
        let brokers = |name: &str| (name == "KAFKA_BROKERS").then(|| "a:1, SSL://b:2".to_owned());
        let place = settings(json!({})).place_in(&queue, brokers);
        assert_eq!((place.protocol, &*place.names), ("kafka", &["in".to_owned()][..]));
        assert_eq!(place.hosts, ["a:1", "b:2"]);
        let secure = json!({
            "topics": ["x", "^y"],
            "config": { "metadata.broker.list": "c:3", "security.protocol": "SASL_SSL" },
        });
        let place = settings(secure).place_in(&queue, brokers);
        assert_eq!((place.protocol, place.hosts), ("kafka-secure", vec!["c:3".to_owned()]));
        assert_eq!((&*place.names, &*place.patterns), (&["x".into()][..], &["^y".into()][..]));
        assert_eq!(settings(json!({})).place_in(&queue, all).protocol, "kafka-secure");
    }

    #[test]
    fn retry_topics_that_cannot_be_are_told() {
        let told = |keys: Value| -> Vec<String> {
            let problems = settings(keys).retry_problems();
            problems.into_iter().map(|problem| problem.message).collect()
        };
        assert!(told(json!({ "retry_topics": ["1s", "10m", "1d"] })).is_empty());
        let short = told(json!({ "retry_topics": ["500ms", "2d"] }));
        assert_eq!(
            short,
            ["expected times from 1s to 1d, found 500ms", "expected times from 1s to 1d, found 2d"]
        );
        assert_eq!(told(json!({ "retry_topics": ["1m", "60s"] })), ["expected ascending times"]);
        let late = json!({ "retry_topics": ["1m"], "config": { "auto.offset.reset": "latest" } });
        assert_eq!(told(late), ["`retry_topics` cannot be with `auto.offset.reset: latest`"]);
    }

    #[test]
    fn where_a_group_begins_is_read_as_the_client_does() {
        for (reset, at_end) in
            [("latest", true), ("LATEST", true), ("End", true), ("Earliest", false)]
        {
            let config = json!({ "auto.offset.reset": reset });
            let keys = json!({ "config": config, "retry_topics": ["1m"] });
            let settings = settings(keys);
            assert_eq!(settings.begins_at_end(), at_end, "{reset}");
            assert_eq!(settings.retry_problems().is_empty(), !at_end, "{reset}");
        }
    }

    #[test]
    fn a_revocation_takes_less_than_a_poll_may() {
        let told = |keys: Value| settings(keys).revoke_problem().map(|problem| problem.message);
        assert_eq!(told(json!({ "revoke_within": "4m" })), None);
        let long = "expected less than `max.poll.interval.ms`, which is 5m, found 5m";
        assert_eq!(told(json!({ "revoke_within": "5m" })).as_deref(), Some(long));
        let config = json!({ "max.poll.interval.ms": 600_000 });
        assert_eq!(told(json!({ "revoke_within": "5m", "config": config })), None);
        let config = json!({ "max.poll.interval.ms": 9000 });
        let short = "expected less than `max.poll.interval.ms`, which is 9s, found 10s";
        assert_eq!(told(json!({ "config": config })).as_deref(), Some(short));
    }

    #[test]
    fn a_consumer_is_not_closed_as_soon_as_it_is_open() {
        let queue = QueueSpec::new("shop", "in", json!({}));
        let told = |stall_after: &str| {
            let config = json!({ "bootstrap.servers": "127.0.0.1:1" });
            let problems = settings(json!({ "stall_after": stall_after, "config": config }));
            problems.problems(&queue).into_iter().map(|one| one.path.concat()).collect::<Vec<_>>()
        };
        assert_eq!(told("0s"), ["stall_after"]);
        assert!(told("1s").is_empty());
    }

    #[test]
    fn the_group_is_the_files_the_environments_or_the_pipelines() {
        let queue = QueueSpec::new("shop", "in", json!({}));
        let reader =
            |group: &str| Reader { stage: "s".into(), group: group.into(), order: Order::None };
        let silent = settings(json!({}));
        assert_eq!(silent.group_in(&queue, &reader(""), nothing), "shop");
        assert_eq!(silent.group_in(&queue, &reader("s"), all), "kafka_consumer_group.s");
        let said = settings(json!({ "group": "file" }));
        assert_eq!(said.group_in(&queue, &reader(""), all), "file");
    }
}

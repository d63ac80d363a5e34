//! librdkafka's properties: their spellings, what Brigade sets, and whether they fit together.

use std::collections::BTreeMap;

use brigade_core::connector::{Guarantee, Problem, QueueSpec};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;

use crate::client::Heard;
use crate::settings::{Environment, Role, Settings, Site, environment};
use crate::{producer, transaction};

pub(crate) const SERVERS: &str = "bootstrap.servers";
pub(crate) const RESET: &str = "auto.offset.reset";
pub(crate) const POLL_INTERVAL: &str = "max.poll.interval.ms";
const MECHANISM: &str = "sasl.mechanism";
const STRATEGY: &str = "partition.assignment.strategy";
const LINGER: &str = "linger.ms";
const ISOLATION: &str = "isolation.level";

/// The other spellings of a property, and the one that is used here. The client keeps no order: if
/// two spellings are both set, either may apply.
const SPELLINGS: [(&str, &str); 12] = [
    ("metadata.broker.list", SERVERS),
    ("max.in.flight.requests.per.connection", "max.in.flight"),
    ("sasl.mechanisms", MECHANISM),
    ("sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.client.id"),
    ("sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.client.secret"),
    ("fetch.message.max.bytes", "max.partition.fetch.bytes"),
    ("queue.buffering.max.ms", LINGER),
    ("message.send.max.retries", "retries"),
    ("compression.codec", "compression.type"),
    ("request.required.acks", "acks"),
    ("message.timeout.ms", "delivery.timeout.ms"),
    ("auto.commit.enable", "enable.auto.commit"),
];

/// Properties that Brigade sets itself, and what to do instead.
const OWN: [(&str, &str); 7] = [
    ("group.id", "write `group:` beside `config:`"),
    ("enable.auto.commit", "leave it out: Brigade commits what is resolved"),
    ("enable.auto.offset.store", "leave it out: Brigade commits what is resolved"),
    ("enable.idempotence", "leave it out: it is always on"),
    ("acks", "leave it out: it is always `all`"),
    // Every record's report is counted: without those of records that arrived no output would ever
    // be confirmed.
    ("delivery.report.only.error", "leave it out: the delivery reports decide about acks"),
    // A client that has one puts nothing outside of transactions.
    (
        "transactional.id",
        "leave it out: `guarantee: exactly_once` on the input queue makes one for each member",
    ),
];

/// Defaults that differ from librdkafka's; a queue's `config` takes precedence.
const DEFAULTS: [(Role, &str, &str); 9] = [
    // A new group begins with what is there: otherwise it would lose what is put before it starts.
    (Role::Consumer, RESET, "earliest"),
    (Role::Consumer, STRATEGY, "cooperative-sticky"),
    // Brigade's credit limits what is in flight; this limits what waits before that.
    (Role::Consumer, "queued.min.messages", "10000"),
    (Role::Consumer, "queued.max.messages.kbytes", "16384"),
    // With the default a fast consumer stalls for a second whenever that limit is reached.
    (Role::Consumer, "fetch.queue.backoff.ms", "20"),
    // New topics and partitions are found soon.
    (Role::Consumer, "topic.metadata.refresh.interval.ms", "10000"),
    // The same partition for a key as with the Java clients.
    (Role::Producer, "partitioner", "murmur2_random"),
    // Batches come whole: waiting for more gains nothing.
    (Role::Producer, LINGER, "1"),
    (Role::Producer, "queue.buffering.max.kbytes", "65536"),
];

/// The group and the transactional id of clients that are created only for checks.
const NOBODY: &str = "brigade-check";

/// The spelling of a property that is used here.
fn spelled(name: &str) -> &str {
    SPELLINGS.iter().find(|(other, _)| *other == name).map_or(name, |(_, used)| used)
}

/// Whether an expression says itself how a topic's name ends: the client lets a name go on after
/// what is matched, the broker does not.
fn is_whole(expression: &str) -> bool {
    [".*", ".+", "$"].iter().any(|end| {
        expression.strip_suffix(end).is_some_and(|before| {
            let escapes = before.bytes().rev().take_while(|byte| *byte == b'\\').count();
            escapes % 2 == 0
        })
    })
}

fn at(name: &str, message: String, help: impl Into<String>) -> Problem {
    let path = vec!["config".to_owned(), name.to_owned()];
    Problem { path, message, help: Some(help.into()) }
}

impl Settings {
    /// The file's value of a property, whatever its spelling there.
    pub(crate) fn property(&self, name: &str) -> Option<String> {
        let mut given = self.config.iter().filter(|(key, _)| spelled(key) == spelled(name));
        given.next().map(|(_, value)| value.to_string())
    }

    /// Whether the broker assigns partitions, and finds topics by expressions.
    fn broker_assigns(&self) -> bool {
        let protocol = self.property("group.protocol");
        protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
    }

    /// A client's properties: the defaults, the environment's, the file's. Each in one spelling, so
    /// that later ones apply.
    pub(crate) fn client(&self, role: Role) -> ClientConfig {
        self.client_in(role, environment)
    }

    pub(crate) fn client_in(&self, role: Role, environment: Environment) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (_, name, value) in DEFAULTS.iter().filter(|(of, ..)| *of == role) {
            client.set(*name, *value);
        }
        // With this protocol the broker assigns, and the client refuses an assignment strategy.
        if self.broker_assigns() {
            client.remove(STRATEGY);
        }
        let credentials = (environment("KAFKA_KEY"), environment("KAFKA_SECRET"));
        if let (Some(user), Some(password)) = credentials {
            client.set("security.protocol", "SASL_SSL").set(MECHANISM, "PLAIN");
            client.set("sasl.username", user).set("sasl.password", password);
        }
        if let Some(servers) = self.servers_in(role, environment) {
            client.set(SERVERS, servers);
        }
        for (name, value) in &self.config {
            client.set(spelled(name), value.to_string());
        }
        client
    }

    /// The properties of a member of a group.
    pub(crate) fn member_of(&self, group: &str) -> ClientConfig {
        let mut config = self.client(Role::Consumer);
        config.set("group.id", group).set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config
    }

    /// What is wrong with individual properties.
    pub(crate) fn property_problems(&self) -> Vec<Problem> {
        let (mut problems, mut seen) = (Vec::new(), BTreeMap::new());
        for (name, value) in &self.config {
            if let Some((_, help)) = OWN.iter().find(|(own, _)| *own == spelled(name)) {
                problems.push(at(name, format!("`{name}` cannot be set here"), *help));
            }
            if let Some(before) = seen.insert(spelled(name), name) {
                let message = format!("`{before}` and `{name}` are two spellings of one property");
                problems.push(at(name, message, "leave one of them out"));
            }
            // One at a time: librdkafka reports only the first.
            let mut one = ClientConfig::new();
            one.set(name, value.to_string());
            if let Err(KafkaError::ClientConfig(_, why, ..)) = one.create_native_config() {
                let help = "librdkafka's CONFIGURATION.md names every property and its values";
                problems.push(at(name, why, help));
            }
        }
        problems
    }

    /// A member that is given offsets of a transaction that is still open would begin at older
    /// ones, and put their outputs again.
    pub(crate) fn isolation_problem(&self, queue: &QueueSpec) -> Option<Problem> {
        let asked = self.property(ISOLATION)?;
        let uncommitted = asked.eq_ignore_ascii_case("read_uncommitted");
        (uncommitted && queue.guarantee == Guarantee::ExactlyOnce).then(|| {
            let message =
                format!("`{ISOLATION}: {asked}` cannot be with `guarantee: exactly_once`");
            let help = "leave it out: `read_committed` is the default, and who begins where \
                        another ends has to wait for its last transaction";
            at(ISOLATION, message, help)
        })
    }

    /// What is wrong with properties in combination, and with `topics`. Only the client knows: one
    /// is created, without servers, so that it contacts nobody.
    pub(crate) fn misfits(&self, queue: &QueueSpec) -> Vec<Problem> {
        let site = Site::new(queue, self, Role::Consumer);
        let mut problems = Vec::new();
        let made = self.member_of(NOBODY).remove(SERVERS).create_with_context(Heard::new(&site));
        match made {
            Ok(consumer) => problems.extend(self.topic_problems(&consumer)),
            Err(error) => problems.push(self.misfit(&error)),
        }
        let mut producing = self.client(Role::Producer);
        producer::always(&mut producing);
        if queue.guarantee == Guarantee::ExactlyOnce {
            transaction::defaults(&mut producing, NOBODY);
        }
        let made: Result<BaseProducer<Heard>, _> =
            producing.remove(SERVERS).create_with_context(Heard::new(&site));
        if let Err(error) = made {
            let problem = self.misfit(&error);
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        problems
    }

    /// Why the client cannot be created, at the first property of the file that the error mentions.
    fn misfit(&self, error: &KafkaError) -> Problem {
        let why = match error {
            KafkaError::ClientCreation(why) | KafkaError::ClientConfig(_, why, ..) => why.clone(),
            other => other.to_string(),
        };
        let given = |name: &str| self.config.keys().find(|key| spelled(key) == spelled(name));
        let words = why.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'));
        // If the mechanism is not set, it is the default that is unavailable.
        let sasl = why.contains("SASL mechanism").then_some([MECHANISM, "security.protocol"]);
        let mut spoken_of = words.chain(sasl.into_iter().flatten()).filter_map(given);
        let path = match spoken_of.next() {
            Some(name) => vec!["config".to_owned(), name.clone()],
            None if self.config.is_empty() => Vec::new(),
            None => vec!["config".to_owned()],
        };
        let message = format!("a Kafka client cannot be made of this `config`: {why}");
        let help = "librdkafka's CONFIGURATION.md tells which properties go together";
        Problem { path, message, help: Some(help.to_owned()) }
    }

    /// What is wrong with the topics to consume. Regular expressions are the C library's, as in
    /// librdkafka.
    fn topic_problems(&self, consumer: &BaseConsumer<Heard>) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (number, topic) in self.topics.iter().enumerate() {
            let (message, help) = if topic.is_empty() {
                (
                    "a topic has no name".to_owned(),
                    "write a name, or an expression that begins with `^`",
                )
            } else if self.topics[..number].contains(topic) {
                (format!("`{topic}` is named twice"), "leave one of them out")
            } else if topic.starts_with('^') && consumer.subscribe(&[topic]).is_err() {
                let message = format!("`{topic}` is no regular expression");
                (message, "expected an extended POSIX regular expression, as `^orders\\..*`")
            } else if topic.starts_with('^') && self.broker_assigns() && !is_whole(topic) {
                let message = format!(
                    "with `group.protocol: consumer` `{topic}` finds only topics that it matches to the end"
                );
                (
                    message,
                    "end it with `.*` or with `$`, so that it means the same with either protocol",
                )
            } else {
                continue;
            };
            let path = vec!["topics".to_owned(), number.to_string()];
            problems.push(Problem { path, message, help: Some(help.to_owned()) });
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(config: Value) -> Settings {
        serde_json::from_value(json!({ "config": config })).unwrap()
    }

    fn all(name: &str) -> Option<String> {
        Some(name.to_lowercase())
    }

    fn is(client: &ClientConfig, name: &str, value: &str) {
        assert_eq!(client.get(name), Some(value), "{name}");
    }

    /// The problems of a queue with these keys, with their places.
    fn told(keys: Value, guarantee: Guarantee) -> Vec<(String, String)> {
        let mut queue = QueueSpec::new("shop", "in", keys);
        queue.guarantee = guarantee;
        let problems = Settings::of(&queue).unwrap().problems(&queue);
        problems.into_iter().map(|problem| (problem.path.join(" "), problem.message)).collect()
    }

    fn told_of(mut config: Value) -> Vec<(String, String)> {
        config["bootstrap.servers"] = "127.0.0.1:1".into();
        told(json!({ "config": config }), Guarantee::AtLeastOnce)
    }

    /// A value set in librdkafka by one spelling is returned for the other.
    #[test]
    fn spellings_are_of_one_property() {
        let mut asked = 0;
        for (other, used) in SPELLINGS {
            let value = match used {
                SERVERS => "host:1",
                MECHANISM => "PLAIN",
                "compression.type" => "lz4",
                _ => "2000",
            };
            let mut config = ClientConfig::new();
            config.set(other, value);
            // Some are not in every build, and a topic's property cannot be queried.
            let Ok(made) = config.create_native_config() else { continue };
            if let Ok(set) = made.get(used) {
                assert!(set.starts_with(value), "{other}: {set}");
                asked += 1;
            }
        }
        assert!(asked >= 7, "only {asked}");
    }

    #[test]
    fn the_file_goes_before_the_environment_in_any_spelling() {
        let file = settings(json!({
            "metadata.broker.list": "file:9092",
            "sasl.mechanisms": "SCRAM-SHA-256",
            "queue.buffering.max.ms": 5,
        }));
        let client = file.client_in(Role::Producer, all);
        is(&client, SERVERS, "file:9092");
        is(&client, MECHANISM, "SCRAM-SHA-256");
        is(&client, LINGER, "5");
        for (other, _) in SPELLINGS {
            assert_eq!(client.get(other), None, "{other} is a second one");
        }
    }

    #[test]
    fn two_spellings_in_one_file_are_refused() {
        assert_eq!(
            told_of(json!({ "linger.ms": 1, "queue.buffering.max.ms": 5 })),
            [(
                "config queue.buffering.max.ms".to_owned(),
                "`linger.ms` and `queue.buffering.max.ms` are two spellings of one property"
                    .to_owned()
            )]
        );
        assert_eq!(told_of(json!({ "metadata.broker.list": "b:1" })).len(), 1);
        let own = told_of(json!({ "request.required.acks": 1 }));
        assert_eq!(own[0].1, "`request.required.acks` cannot be set here");
    }

    /// With either of them outputs would wait for ever, and nothing would tell why.
    #[test]
    fn properties_with_which_nothing_would_be_confirmed_are_refused() {
        for (name, value) in
            [("delivery.report.only.error", json!(true)), ("transactional.id", json!("x"))]
        {
            let config = json!({ "bootstrap.servers": "127.0.0.1:1", name: value });
            for guarantee in [Guarantee::AtLeastOnce, Guarantee::ExactlyOnce] {
                assert_eq!(
                    told(json!({ "config": config }), guarantee),
                    [(format!("config {name}"), format!("`{name}` cannot be set here"))]
                );
            }
        }
    }

    #[test]
    fn a_key_in_the_environment_is_for_sasl_unless_the_file_says_otherwise() {
        let client = settings(json!({})).client_in(Role::Consumer, all);
        is(&client, "security.protocol", "SASL_SSL");
        is(&client, "sasl.mechanism", "PLAIN");
        is(&client, "sasl.username", "kafka_key");
        is(&client, "sasl.password", "kafka_secret");
        let config = json!({ "security.protocol": "PLAINTEXT" });
        is(&settings(config).client_in(Role::Consumer, all), "security.protocol", "PLAINTEXT");
        let half = |name: &str| (name == "KAFKA_KEY").then(|| "key".to_owned());
        assert_eq!(settings(json!({})).client_in(Role::Consumer, half).get("sasl.username"), None);
    }

    #[test]
    fn properties_that_do_not_go_together_are_told_at_their_place() {
        let short = told_of(json!({ "max.poll.interval.ms": 1000 }));
        assert_eq!(short[0].0, "config max.poll.interval.ms");
        assert!(short[0].1.contains("session.timeout.ms"), "{short:?}");
        let both = told_of(json!({ "session.timeout.ms": 9000, "max.poll.interval.ms": 8000 }));
        assert_eq!(both.len(), 1, "{both:?}");
        let gssapi = told_of(json!({ "security.protocol": "sasl_plaintext" }));
        assert_eq!(gssapi.len(), 1, "{gssapi:?}");
        assert_eq!(gssapi[0].0, "config security.protocol");
        assert!(gssapi[0].1.contains("GSSAPI"), "{gssapi:?}");
        let named = json!({ "security.protocol": "sasl_plaintext", "sasl.mechanisms": "GSSAPI" });
        assert_eq!(told_of(named)[0].0, "config sasl.mechanisms");
        let missing = json!({ "security.protocol": "ssl", "ssl.ca.location": "/no/such/file" });
        assert_eq!(told_of(missing)[0].0, "config ssl.ca.location");
        let late = json!({ "bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 600_000 });
        let late = json!({ "config": late });
        assert!(told(late.clone(), Guarantee::AtLeastOnce).is_empty());
        assert_eq!(told(late, Guarantee::ExactlyOnce)[0].0, "config message.timeout.ms");
    }

    #[test]
    fn exactly_once_needs_members_that_wait_for_what_is_committed() {
        let with = |level: &str, guarantee| {
            let config = json!({ "bootstrap.servers": "127.0.0.1:1", "isolation.level": level });
            told(json!({ "config": config }), guarantee)
        };
        let found = with("read_uncommitted", Guarantee::ExactlyOnce);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "config isolation.level");
        assert!(found[0].1.contains("`guarantee: exactly_once`"), "{found:?}");
        assert_eq!(with("READ_UNCOMMITTED", Guarantee::ExactlyOnce).len(), 1);
        assert_eq!(with("read_committed", Guarantee::ExactlyOnce), []);
        assert_eq!(with("read_uncommitted", Guarantee::AtLeastOnce), []);
    }

    #[test]
    fn values_may_be_fractions() {
        assert_eq!(told_of(json!({ "linger.ms": 0.5, "batch.num.messages": 100 })), []);
        is(&settings(json!({ "linger.ms": 0.5 })).client_in(Role::Producer, all), LINGER, "0.5");
    }

    #[test]
    fn the_newer_group_protocol_is_not_kept_away_by_a_default() {
        assert_eq!(told_of(json!({ "group.protocol": "consumer" })), []);
        let both = json!({ "group.protocol": "consumer", "session.timeout.ms": 3000 });
        assert_eq!(told_of(both)[0].0, "config session.timeout.ms");
        let client = settings(json!({})).client_in(Role::Consumer, all);
        is(&client, STRATEGY, "cooperative-sticky");
    }

    /// The broker matches whole names, the client their beginnings.
    #[test]
    fn expressions_that_mean_another_thing_to_the_broker_are_told() {
        let of = |protocol: &str, topics: Value| {
            let config = json!({ "bootstrap.servers": "127.0.0.1:1", "group.protocol": protocol });
            told(json!({ "topics": topics, "config": config }), Guarantee::AtLeastOnce)
        };
        let whole = json!(["^orders\\..*", "^a.+", "^ord(ers|inals)$", "plain"]);
        let beginnings = json!(["^orders", "^shop\\$", "^shop\\.*", "^a.*b"]);
        assert_eq!(of("consumer", whole), []);
        assert_eq!(of("classic", beginnings.clone()), []);
        let told = of("Consumer", beginnings);
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[0].0, "topics 0");
        assert!(told[0].1.contains("`^orders` finds only"), "{told:?}");
    }

    #[test]
    fn topics_that_cannot_be_subscribed_to_are_told() {
        let of = |topics: Value| {
            let config = json!({ "bootstrap.servers": "127.0.0.1:1" });
            told(json!({ "topics": topics, "config": config }), Guarantee::AtLeastOnce)
        };
        assert_eq!(of(json!(["^ord(ers|inals)\\..*", "plain", "^a{1,2}"])), []);
        let wrong = of(json!(["plain", "^ord[.*", "plain", ""]));
        let one = |place: &str, what: &str| (format!("topics {place}"), what.to_owned());
        assert_eq!(
            wrong,
            [
                one("1", "`^ord[.*` is no regular expression"),
                one("2", "`plain` is named twice"),
                one("3", "a topic has no name"),
            ]
        );
    }
}

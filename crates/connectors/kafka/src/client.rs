//! What all clients share: their logs, and how their errors are reported.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use brigade_core::connector::ConnectorError;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode as Code;
use serde::Deserialize;

use crate::settings::Site;

/// Passes librdkafka's log lines on.
pub(crate) fn log(site: &Site, level: RDKafkaLogLevel, facility: &str, text: &str) {
    let queue = &site.queue;
    match level {
        // It logs for each property of the other kind of client that it is ignored.
        RDKafkaLogLevel::Warning if facility == "CONFWARN" => {}
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => tracing::debug!(%queue, facility, "librdkafka: {text}"),
        _ => tracing::trace!(%queue, facility, "librdkafka: {text}"),
    }
}

/// The property that makes a client report statistics, and how often.
const STATISTICS: (&str, &str) = ("statistics.interval.ms", "5000");

/// Detects that a client no longer knows any broker. librdkafka forgets brokers that a cluster does
/// not list, and a cluster whose brokers are all fenced for a moment lists none (a single broker
/// that was suspended and goes on): then the client has nobody to ask, and stays that way.
#[derive(Debug, Default)]
pub(crate) struct Recollection {
    is_gone: AtomicBool,
}

/// The part of a client's statistics that is read.
#[derive(Deserialize)]
struct Statistics {
    brokers: HashMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    /// `logical` is a placeholder for whichever broker has a role; `internal` is not a broker.
    source: String,
}

impl Recollection {
    /// Makes a client report statistics, unless the file says otherwise.
    pub(crate) fn ask(config: &mut ClientConfig) {
        let (name, value) = STATISTICS;
        if config.get(name).is_none() {
            config.set(name, value);
        }
    }

    /// Evaluates a client's statistics; returns whether it knew no broker for the second time in a
    /// row. Once may happen between forgetting its brokers and starting again with
    /// `bootstrap.servers`.
    pub(crate) fn fails(&self, statistics: &[u8]) -> bool {
        let knows = |broker: &Broker| ["learned", "configured"].contains(&&*broker.source);
        let is_gone = serde_json::from_slice(statistics)
            .is_ok_and(|told: Statistics| !told.brokers.values().any(knows));
        self.is_gone.swap(is_gone, Ordering::Relaxed) && is_gone
    }
}

/// Why a client has no connection. The client keeps repeating that all brokers are down, but gives
/// the reason only every half minute; an older reason may no longer apply.
#[derive(Debug, Default)]
pub(crate) struct Reason {
    last: Mutex<Option<(KafkaError, Instant)>>,
}

/// How long a reason is used.
const COUNTS: Duration = Duration::from_secs(60);

impl Reason {
    /// Records an error; returns the underlying error, if that was reported before.
    pub(crate) fn of(&self, error: &KafkaError, now: Instant) -> KafkaError {
        let mut last = self.last.lock();
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => {
                let counts = |(_, at): &&(KafkaError, Instant)| now.duration_since(*at) < COUNTS;
                return last.as_ref().filter(counts).map_or(error, |(why, _)| why).clone();
            }
            Some(
                Code::Authentication | Code::SSL | Code::BrokerTransportFailure | Code::Resolve,
            ) => *last = Some((error.clone(), now)),
            _ => {}
        }
        error.clone()
    }
}

/// The context of clients that only send requests: remembers why there is no connection.
pub(crate) struct Heard {
    site: Site,
    trouble: Mutex<Option<KafkaError>>,
}

impl Heard {
    pub(crate) fn new(site: &Site) -> Self {
        Self { site: site.clone(), trouble: Mutex::default() }
    }

    /// Takes the first error since this was last called.
    pub(crate) fn trouble(&self) -> Option<KafkaError> {
        self.trouble.lock().take()
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(&self.site, level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(queue = %self.site.queue, %error, reason, "the client met an error");
        // That all brokers are down follows from an error that was reported before.
        self.trouble.lock().get_or_insert(error);
    }
}

impl ConsumerContext for Heard {}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// An error that the runtime retries or not, with an explanation of what to do.
pub(crate) fn explain(site: &Site, doing: &str, error: &KafkaError) -> ConnectorError {
    let code = code_of(error);
    let advice = code.map_or("", advice);
    let message = site.told(format!("{doing}: {}{advice}", why(error)));
    match code {
        // No broker was contacted: the error is in the file or on this machine.
        _ if is_of_config(error) => ConnectorError::permanent(message),
        Some(code) if is_permanent(code) => ConnectorError::permanent(message),
        _ => ConnectorError::transient(message),
    }
}

/// The code of an error, including errors whose code the client does not expose.
fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

fn why(error: &KafkaError) -> String {
    match code_of(error) {
        Some(code) => code.to_string(),
        None => error.to_string(),
    }
}

fn is_of_config(error: &KafkaError) -> bool {
    use KafkaError::{ClientConfig, ClientCreation, Subscription};
    matches!(error, ClientConfig(..) | ClientCreation(_) | Subscription(_))
}

fn is_permanent(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        Code::Fatal
            | Code::FencedInstanceId
            | Code::ProducerFenced
            | Code::TransactionalIdAuthorizationFailed
            | Code::UnsupportedVersion
            | Code::InvalidConfig
            | Code::InconsistentGroupProtocol
            | Code::AutoOffsetReset
    )
}

fn advice(code: RDKafkaErrorCode) -> &'static str {
    match code {
        Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve => {
            "; is the broker up, and `config: bootstrap.servers` right?"
        }
        Code::OperationTimedOut | Code::MessageTimedOut => {
            "; no broker answered: is it up, and `config: bootstrap.servers` right?"
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            "; make the topic, or let Brigade make it with `create: { partitions: N }`"
        }
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "; check `sasl.mechanism`, `sasl.username` and `sasl.password` in `config:`"
        }
        Code::SSL => "; check `security.protocol` and the `ssl.*` properties in `config:`",
        Code::TopicAuthorizationFailed => "; the user may not use this topic",
        Code::GroupAuthorizationFailed => "; the user may not use this group: see `group:`",
        Code::FencedInstanceId => "; another member has the same `group.instance.id`",
        Code::InconsistentGroupProtocol => {
            "; other members of the group use another `partition.assignment.strategy`"
        }
        Code::AutoOffsetReset => {
            "; a partition has no commit of this group, or what comes next is deleted, and `auto.offset.reset` \
             is `error`: stop the stage and set the group's offsets, or change the property"
        }
        Code::InvalidSessionTimeout => {
            "; `session.timeout.ms` in `config:` is outside the broker's `group.min.session.timeout.ms` \
             and `group.max.session.timeout.ms`"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_all_brokers_are_down_is_told_with_what_was_heard_last() {
        let error = |code: Code| KafkaError::Global(code);
        let (reason, all) = (Reason::default(), error(Code::AllBrokersDown));
        let begun = Instant::now();
        assert_eq!(reason.of(&all, begun), all, "nothing was heard");
        for code in [Code::Authentication, Code::BrokerTransportFailure] {
            assert_eq!(reason.of(&error(code), begun), error(code));
            assert_eq!(reason.of(&error(Code::UnknownTopic), begun), error(Code::UnknownTopic));
            assert_eq!(reason.of(&all, begun + COUNTS / 2), error(code));
        }
        assert_eq!(reason.of(&all, begun + COUNTS), all, "it was mended meanwhile, perhaps");
    }

    #[test]
    fn a_client_that_knows_nobody_twice_has_forgotten_its_brokers() {
        let told = |sources: &[&str]| {
            let broker = |(n, source): (usize, &&str)| {
                format!("\"b{n}\": {{ \"nodeid\": {n}, \"source\": \"{source}\" }}")
            };
            let brokers: Vec<String> = sources.iter().enumerate().map(broker).collect();
            format!("{{ \"ts\": 1, \"brokers\": {{ {} }} }}", brokers.join(", ")).into_bytes()
        };
        let recollection = Recollection::default();
        let nobody = told(&["logical", "internal"]);
        for somebody in [told(&["logical", "learned"]), told(&["configured"]), b"?".to_vec()] {
            assert!(!recollection.fails(&nobody));
            assert!(!recollection.fails(&somebody), "somebody is known, or nothing is");
        }
        assert!(!recollection.fails(&nobody));
        assert!(recollection.fails(&nobody));
        assert!(recollection.fails(&told(&[])));
    }
}

//! What all clients share: their logs, and how their errors are told.

use std::sync::{Mutex, PoisonError};

use brigade_core::connector::ConnectorError;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::settings::Site;

/// Passes librdkafka's log lines on.
pub(crate) fn log(site: &Site, level: RDKafkaLogLevel, facility: &str, text: &str) {
    let queue = &site.queue;
    match level {
        // It says for each property of the other kind of client that it is ignored.
        RDKafkaLogLevel::Warning if facility == "CONFWARN" => {}
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => tracing::debug!(%queue, facility, "librdkafka: {text}"),
        _ => tracing::trace!(%queue, facility, "librdkafka: {text}"),
    }
}

/// The context of clients that only ask: keeps why there is no connection.
pub(crate) struct Heard {
    site: Site,
    trouble: Mutex<Option<KafkaError>>,
}

impl Heard {
    pub(crate) fn new(site: &Site) -> Self {
        Self { site: site.clone(), trouble: Mutex::default() }
    }

    /// The first thing that went wrong since this was asked.
    pub(crate) fn trouble(&self) -> Option<KafkaError> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(&self.site, level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(queue = %self.site.queue, %error, reason, "the client met an error");
        // That all brokers are down follows from what was told before.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

impl ConsumerContext for Heard {}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// An error that the runtime tries again after, or not, told with what to do.
pub(crate) fn explain(site: &Site, doing: &str, error: &KafkaError) -> ConnectorError {
    let code = code_of(error);
    let advice = code.map_or("", advice);
    let message = site.told(format!("{doing}: {}{advice}", why(error)));
    match code {
        // Nobody was asked: what is wrong is in the file or on this machine.
        _ if is_of_config(error) => ConnectorError::permanent(message),
        Some(code) if is_permanent(code) => ConnectorError::permanent(message),
        _ => ConnectorError::transient(message),
    }
}

/// The code of an error, also of those whose code the client keeps to itself.
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

//! Payloads whose schemas are in a registry that speaks Confluent's HTTP API: Avro, Protobuf and
//! JSON.
//!
//! # On the wire
//!
//! A zero byte, the schema's id (32 bits, the most significant byte first), for Protobuf the
//! message's index in its file, then the payload: what the serialisers of other languages write and
//! read.
//!
//! # As JSON
//!
//! Avro's `bytes`, `fixed` and durations are lists of numbers, its decimals (`"12.50"`) and UUIDs
//! are texts, its times and dates are numbers. Protobuf's fields have the names of the schema,
//! 64-bit integers are numbers, and fields without a value have their default.

mod avro;
mod registered;
mod registry;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    ConnectorError, Format, Formats, Problem, QueueSpec, SchemaRegistry,
};

use crate::registered::{Registered, Writer};
use crate::registry::{Registry, type_of};

/// Opens the registries of queues.
#[derive(Debug, Clone, Copy, Default)]
pub struct SchemaRegistries;

#[async_trait]
impl Formats for SchemaRegistries {
    fn check(&self, registry: &SchemaRegistry) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !["http://", "https://"].iter().any(|scheme| registry.url.starts_with(scheme)) {
            let problem = Problem::at("url", "it is no address of a schema registry");
            problems.push(problem.help("write `http://host:8081`, or `https:`"));
        }
        // The URL appears in errors and dead letters.
        if registry.url.split('/').nth(2).is_some_and(|host| host.contains('@')) {
            let problem = Problem::at("url", "the address has a user in it");
            problems.push(problem.help("write `user` and `password` beside `url`"));
        }
        if let Some(file) = &registry.register
            && let Err(why) = type_of(Path::new(file))
        {
            problems.push(Problem::at("register", why));
        }
        problems
    }

    async fn open(
        &self,
        queue: &QueueSpec,
        registry: &SchemaRegistry,
        writes: bool,
    ) -> Result<Arc<dyn Format>, ConnectorError> {
        let keys = registry;
        let registry = Registry::new(queue, keys)?;
        let writer = match writes {
            true => Some(Writer::open(&registry, keys).await?),
            false => {
                registry.reach().await?;
                None
            }
        };
        Ok(Arc::new(Registered::new(registry, writer)))
    }
}

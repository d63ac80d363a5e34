use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Problem, Producer, QueuePlace,
    QueueSpec, Reader, Used,
};
use serde_json::Value;

use crate::consumer::FileConsumer;
use crate::paths;
use crate::producer::FileProducer;
use crate::reach::{can_be_read, can_be_written};
use crate::settings::{FileFormat, Settings, refuse_special};

/// The connector of files, type `file`.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileConnector;

/// What a file with these settings can do.
pub(crate) fn features(settings: &Settings) -> Features {
    let csv = settings.format_of(&settings.path()) == FileFormat::Csv;
    Features {
        consume: true,
        produce: !csv && !settings.is_glob() && !settings.follow,
        finite: !settings.follow,
        durable: !settings.is_standard(),
        order: true,
        batch: true,
        groups: !settings.is_standard(),
        replay: !settings.is_standard(),
        settle_together: !settings.is_standard(),
        ..Features::NONE
    }
}

#[async_trait]
impl Connector for FileConnector {
    fn type_name(&self) -> &'static str {
        "file"
    }

    fn features(&self, settings: &Value) -> Features {
        serde_json::from_value(settings.clone()).map_or(Features::NONE, |s| features(&s))
    }

    fn place(&self, queue: &QueueSpec) -> QueuePlace {
        let path = queue.settings.get("path").and_then(Value::as_str);
        let name = path.unwrap_or(&queue.name).to_owned();
        let is_glob = queue.settings::<Settings>().is_ok_and(|settings| settings.is_glob());
        match is_glob {
            true => QueuePlace { patterns: vec![name], ..QueuePlace::default() },
            false => QueuePlace { names: vec![name], ..QueuePlace::default() },
        }
    }

    fn schema(&self) -> Value {
        schemars::schema_for!(Settings).to_value()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        let settings: Settings = match queue.settings() {
            Ok(settings) => settings,
            Err(error) => {
                return vec![Problem::whole(error.to_string())];
            }
        };
        let mut problems = Vec::new();
        if settings.path.is_empty() {
            problems.push(Problem::at("path", "the path is empty").help("name a file, or `-`"));
        }
        if settings.follow && (!settings.can_follow(&settings.path()) || settings.is_standard()) {
            let message = "only plain lines of a file can be followed";
            problems.push(Problem::at("follow", message).help("remove `follow`"));
        }
        if settings.is_glob()
            && let Err(error) = glob::Pattern::new(&settings.path)
        {
            problems.push(Problem::at("path", format!("not a glob: {error}")));
        }
        problems
    }

    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        let settings = |used: Used<'_>| serde_json::from_value::<Settings>(used.settings.clone());
        let (first, second) = (settings(one).ok()?, settings(other).ok()?);
        if !first.overlaps(&second) {
            return None;
        }
        let path = &second.path;
        let (message, help) = if second.is_standard() {
            if !one.read || !other.read {
                return None;
            }
            let message = "standard input has one reader: each would get a part of it".to_owned();
            (message, "read it with one queue, by a stage with `copy: true`")
        } else if one.written && other.written {
            let message = format!("both write the file `{path}`, which has one writer");
            (message, "give each a file of its own, or name one queue in both places")
        } else if (one.read && other.written) || (one.written && other.read) {
            let message = format!(
                "the file `{path}` is read and written: who reads it is done at what was its end, \
                 and may read what is cut off again"
            );
            (message, "put an `embedded` queue between the stages")
        } else {
            return None;
        };
        Some(Problem::at("path", message).help(help))
    }

    async fn reach(&self, queue: &QueueSpec, _: &ConnectorEnv) -> Result<(), ConnectorError> {
        let settings: Settings = queue.settings()?;
        if settings.is_standard() {
            return Ok(());
        }
        let read = !queue.groups.is_empty();
        let (how, standard) = if read { ("read", "input") } else { ("written", "output") };
        let name = Arc::clone(&queue.name);
        let looked = tokio::task::spawn_blocking(move || {
            let path = settings.path();
            if settings.is_glob() {
                return paths::refused(&settings);
            }
            refuse_special(&path, standard).map_err(|error| error.to_string())?;
            let looked = match read {
                true => can_be_read(&path, settings.follow),
                false => can_be_written(&path),
            };
            let why = |error| format!("{} cannot be {how}: {error}; see `path:`", path.display());
            looked.map_err(why)
        });
        let looked = looked.await.unwrap_or_else(|error| Err(error.to_string()));
        looked.map_err(|why| ConnectorError::transient(format!("queue `{name}`: {why}")))
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(FileConsumer::open(queue, reader, &env.state).await?))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(FileProducer::open(queue, &env.state)?))
    }
}

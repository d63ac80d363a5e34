use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Problem, Producer, QueuePlace,
    QueueSpec, Reader, Used,
};
use serde_json::Value;

use crate::consumer::FileConsumer;
use crate::producer::FileProducer;
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
                return vec![Problem { path: Vec::new(), message: error.to_string(), help: None }];
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
        if settings.is_standard() || settings.is_glob() {
            return Ok(());
        }
        // What is read has to be there, unless it is waited for; what is only written needs a
        // directory, or one in which directories can be made.
        let (path, read) = (settings.path(), !queue.groups.is_empty() && !settings.follow);
        let (name, what) = (Arc::clone(&queue.name), path.display().to_string());
        refuse_special(&path, if read { "input" } else { "output" })
            .map_err(|error| ConnectorError::permanent(format!("queue `{name}`: {error}")))?;
        let looked = tokio::task::spawn_blocking(move || match read {
            true => std::fs::File::open(&path).map(drop),
            false => {
                let named = |place: &&Path| !place.as_os_str().is_empty();
                let places = path.ancestors().skip(1).filter(named);
                let found = places.map(std::fs::metadata).find_map(Result::ok);
                match found.is_none_or(|found| found.is_dir()) {
                    true => Ok(()),
                    false => Err(std::io::ErrorKind::NotADirectory.into()),
                }
            }
        });
        let failed = |why: String| {
            let how = if read { "read" } else { "written" };
            let message = format!("queue `{name}`: {what} cannot be {how}: {why}; see `path:`");
            ConnectorError::transient(message)
        };
        let looked = looked.await.map_err(|error| failed(error.to_string()))?;
        looked.map_err(|error| failed(error.to_string()))
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

//! A pipeline with its code: a checked topology, made into a plan.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use brigade_core::Codec;
use brigade_core::component::{AnyComponent, StageContext, StageSite};
use brigade_core::connector::{Connector, ConnectorEnv, Features, QueueSpec};
use brigade_core::state::StateStore;
use brigade_pipeline::{
    Catalog, CatalogComponent, Diagnostics, Format, Loaded, Overrides, PipelineFile, Queue, Stage,
    Topology, load_str, payload_validator,
};
use serde_json::json;

use crate::call::copied;
use crate::edge::Entry;
use crate::plan::{Plan, QueueKeeper, QueuePlan, QueueTimings, StageEdges, StagePlan, Target};
use crate::registry::{OpenState, Registry};
use crate::stats::StageStats;

/// A checked pipeline file together with the code it names.
pub struct Pipeline {
    topology: Topology,
    /// The stages' components as they were registered or made from settings.
    components: BTreeMap<Arc<str>, Box<dyn AnyComponent>>,
    connectors: BTreeMap<String, Arc<dyn Connector>>,
    open_state: Option<OpenState>,
    state: Option<Arc<dyn StateStore>>,
    state_path: Option<PathBuf>,
}

/// Why pipelines did not start.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    message: String,
    source: Option<brigade_core::BoxError>,
}

impl StartError {
    /// An error with this explanation.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }
}

/// Why a pipeline file did not become a pipeline.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum LoadError {
    /// The file is wrong.
    File(#[from] Diagnostics),
    /// The code it names is missing.
    Code(#[from] StartError),
}

impl Pipeline {
    /// Reads and checks a pipeline file, with this process's environment overriding its keys;
    /// warnings are logged.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_file(path: impl AsRef<Path>, registry: &Registry) -> Result<Self, LoadError> {
        let overrides = Overrides::from_env();
        Self::loaded(PipelineFile::load(path.as_ref(), &overrides, registry)?, registry)
    }

    /// The same for YAML text embedded in a program. Paths in it are relative to the current
    /// directory, and the environment overrides nothing; errors call it `<yaml>`. Use [`load_str`]
    /// for overrides and other formats.
    ///
    /// ```
    /// use brigade_runtime::{Pipeline, Registry};
    /// let error = Pipeline::from_yaml("pipeline: shop\nqueus: {}", &Registry::new()).err();
    /// assert!(error.is_some_and(|error| error.to_string().contains("<yaml>:2:1")));
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_yaml(text: &str, registry: &Registry) -> Result<Self, LoadError> {
        let (none, here) = (Overrides::default(), Path::new("."));
        Self::loaded(load_str("<yaml>", Format::Yaml, text, here, &none, registry)?, registry)
    }

    fn loaded(loaded: Loaded, registry: &Registry) -> Result<Self, LoadError> {
        for warning in loaded.warnings {
            tracing::warn!("{warning}");
        }
        Ok(Self::new(loaded.topology, registry)?)
    }

    /// A pipeline from a topology that was checked against this registry.
    ///
    /// # Errors
    /// The registry is not the one it was checked against: something is missing.
    pub fn new(topology: Topology, registry: &Registry) -> Result<Self, StartError> {
        let mut components = BTreeMap::new();
        for stage in topology.stages.values() {
            components.insert(Arc::clone(&stage.name), component(stage, &topology, registry)?);
        }
        let mut connectors = BTreeMap::new();
        for queue in topology.queues.values() {
            let kind = &queue.type_name;
            let connector = registry.connector_of(kind).ok_or_else(|| {
                StartError::new(format!("queue `{}`: no connector `{kind}`", queue.spec.name))
            })?;
            connectors.insert(kind.clone(), connector);
        }
        let open_state = registry.open_state().cloned();
        Ok(Self { topology, components, connectors, open_state, state: None, state_path: None })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.topology.pipeline
    }

    /// Its topology.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Restricts the pipeline to these stages; the others run in other processes.
    ///
    /// # Errors
    /// There is no such stage, or a direct edge or a queue that is not durable would be cut.
    pub fn stages(self, stages: &[String]) -> Result<Self, Diagnostics> {
        Ok(Self { topology: self.topology.split(stages)?, ..self })
    }

    /// Keeps its state in this directory, whatever the file says.
    #[must_use]
    pub fn state_path(self, path: impl Into<PathBuf>) -> Self {
        Self { state_path: Some(path.into()), ..self }
    }

    /// Keeps its state in this store, whatever the file says.
    #[must_use]
    pub fn state(self, state: Arc<dyn StateStore>) -> Self {
        Self { state: Some(state), ..self }
    }

    /// Where its state is kept: the directory set in code, the one in the file, or the user's state
    /// directory.
    ///
    /// # Errors
    /// No directory is set, and there is no user's state directory.
    pub fn state_directory(&self) -> Result<PathBuf, StartError> {
        if let Some(path) = self.state_path.clone().or_else(|| self.topology.state.clone()) {
            return Ok(path);
        }
        let home = |variable| std::env::var_os(variable).filter(|value| !value.is_empty());
        let base = home("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| home("HOME").map(|home| PathBuf::from(home).join(".local/state")));
        let base = base.ok_or_else(|| {
            StartError::new(
                "nowhere to keep the state: set `state:` in the pipeline file, `--state`, or HOME",
            )
        })?;
        Ok(base.join("brigade").join(self.name()))
    }

    /// Wraps a stage's component, for trials.
    ///
    /// # Errors
    /// There is no such stage.
    pub fn wrap(
        mut self,
        stage: &str,
        wrap: impl FnOnce(Box<dyn AnyComponent>) -> Box<dyn AnyComponent>,
    ) -> Result<Self, StartError> {
        let (name, component) = self.components.remove_entry(stage).ok_or_else(|| {
            StartError::new(format!("pipeline `{}` has no stage `{stage}`", self.name()))
        })?;
        self.components.insert(name, wrap(component));
        Ok(self)
    }

    /// Limits the waits of retries and restarts to a millisecond, whatever the file says, for
    /// trials.
    #[must_use]
    pub fn without_back_off(mut self) -> Self {
        const NEXT_TO_NOTHING: Duration = Duration::from_millis(1);
        for stage in self.topology.stages.values_mut() {
            (stage.retry.min, stage.retry.max) = (NEXT_TO_NOTHING, NEXT_TO_NOTHING);
        }
        let restart = &mut self.topology.restart;
        (restart.min, restart.max) = (NEXT_TO_NOTHING, NEXT_TO_NOTHING);
        self
    }

    /// Puts all its queues on this connector, whatever the file says, for trials. Settings and
    /// limits of the queues are dropped, payloads are JSON; schemas, keys and event times are kept.
    #[must_use]
    pub fn on(mut self, connector: Arc<dyn Connector>) -> Self {
        let kind = connector.type_name();
        for queue in self.topology.queues.values_mut() {
            queue.type_name = kind.to_owned();
            queue.spec.settings = json!({});
            queue.spec.limit = Default::default();
            queue.codec = Codec::Json;
            queue.spec.registry = None;
            queue.features = connector.features(&queue.spec.settings);
        }
        self.connectors.insert(kind.to_owned(), connector);
        self
    }

    /// What checks messages for a queue of the file that no stage puts there; `None` if the queue's
    /// payloads are in a format of a schema registry.
    ///
    /// # Errors
    /// Its schema is wrong.
    pub fn entry(&self, queue: &str) -> Result<Option<Entry>, StartError> {
        let queue = self.topology.queues.get(queue).filter(|queue| queue.spec.registry.is_none());
        let Some(queue) = queue else { return Ok(None) };
        let connector = Arc::clone(&self.connectors[&queue.type_name]);
        Ok(Some(Entry(declared(queue, connector)?)))
    }

    /// Opens the state.
    ///
    /// # Errors
    /// It cannot be opened.
    pub async fn open_state(&self) -> Result<Arc<dyn StateStore>, StartError> {
        if let Some(state) = &self.state {
            return Ok(Arc::clone(state));
        }
        let open = self.open_state.as_ref().ok_or_else(|| {
            StartError::new("nothing to keep the state with: the registry has no state")
        })?;
        let directory = self.state_directory()?;
        open(&directory).await.map_err(|error| StartError {
            message: format!("pipeline `{}`: its state cannot be opened", self.name()),
            source: Some(error.into()),
        })
    }

    pub(crate) async fn into_plan(self) -> Result<Plan, StartError> {
        let state = self.open_state().await?;
        report_changes(&self.topology, state.as_ref()).await?;
        Planner::new(self, state).plan()
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipeline({})", self.name())
    }
}

/// Logs changes since the last start that concern stored messages, and saves the present topology.
async fn report_changes(topology: &Topology, state: &dyn StateStore) -> Result<(), StartError> {
    const SPACE: &str = "topology";
    let wrong = |error| StartError {
        message: format!("pipeline `{}`: the state cannot be used", topology.pipeline),
        source: Some(error),
    };
    let now = &topology.fingerprint;
    let before = state.load(SPACE, &topology.pipeline).await.map_err(|e| wrong(e.into()))?;
    if let Some(before) = before {
        let before = serde_json::from_slice(&before).map_err(|e| wrong(e.into()))?;
        if before == *now {
            return Ok(());
        }
        for change in brigade_pipeline::changes(&before, now) {
            tracing::warn!(pipeline = %topology.pipeline, "{change}");
        }
    }
    let put = brigade_core::state::StoreOp::Put {
        space: SPACE.into(),
        key: topology.pipeline.to_string(),
        value: now.to_string().into(),
    };
    state.commit(vec![put]).await.map_err(|e| wrong(e.into()))
}

/// Resolves names to numbers and compiles what is compiled only once.
struct Planner {
    topology: Topology,
    components: BTreeMap<Arc<str>, Box<dyn AnyComponent>>,
    connectors: BTreeMap<String, Arc<dyn Connector>>,
    state: Arc<dyn StateStore>,
    queues: Vec<Arc<QueuePlan>>,
    /// The names of all queues, indexed by number.
    names: Arc<[Arc<str>]>,
}

impl Planner {
    fn new(pipeline: Pipeline, state: Arc<dyn StateStore>) -> Self {
        let Pipeline { topology, components, connectors, .. } = pipeline;
        let (queues, names) = (Vec::new(), Arc::default());
        Self { topology, components, connectors, state, queues, names }
    }

    fn plan(mut self) -> Result<Plan, StartError> {
        for queue in self.topology.queues.clone().values() {
            self.add_declared(queue)?;
        }
        for stage in self.topology.stages.clone().values() {
            self.add_kept(REDRIVE, &stage.name);
            if stage.dead_letter.is_none() {
                self.add_kept(DEAD, &stage.name);
            }
        }
        self.names = self.queues.iter().map(|queue| Arc::clone(&queue.spec.name)).collect();
        let mut stages = Vec::new();
        for stage in self.topology.stages.clone().values() {
            stages.push(Arc::new(self.stage(stage)));
        }
        let topology = self.topology;
        Ok(Plan {
            pipeline: Arc::clone(&topology.pipeline),
            stages,
            queues: self.queues,
            lanes: topology.lanes,
            restart: topology.restart,
            stop_deadline: topology.stop_deadline,
            env: ConnectorEnv { state: self.state },
            all_stages: topology.upstream,
        })
    }

    fn add_declared(&mut self, queue: &Queue) -> Result<(), StartError> {
        self.add(declared(queue, Arc::clone(&self.connectors[&queue.type_name]))?);
        Ok(())
    }

    /// Adds a queue that the state keeps for a stage.
    fn add_kept(&mut self, kind: &str, stage: &str) {
        let name = kept_queue(kind, stage);
        let spec = QueueSpec::new(&self.topology.pipeline, &name, json!({}));
        self.add(QueuePlan {
            index: 0,
            times: QueueTimings::new(&spec),
            spec,
            keeper: QueueKeeper::State,
            features: Features { delay: true, retry_delay: true, attempts: true, ..Features::NONE },
            codec: Codec::Json,
            schema: None,
            event_time: None,
        });
    }

    fn add(&mut self, queue: QueuePlan) {
        let index = u16::try_from(self.queues.len())
            .expect("the file was checked: there are no more queues");
        self.queues.push(Arc::new(QueuePlan { index, ..queue }));
    }

    fn queue(&self, name: &str) -> u16 {
        let found = self.queues.iter().find(|queue| *queue.spec.name == *name);
        found.expect("the topology was checked: every queue is declared").index
    }

    fn stage_number(&self, name: &str) -> u16 {
        let found = self.topology.stages.get_index_of(name);
        let index = found.expect("the topology was checked: every stage is declared");
        u16::try_from(index).expect("the file was checked: there are no more stages")
    }

    fn stage(&mut self, stage: &Stage) -> StagePlan {
        let (mut inputs, mut priority, mut upstream) = (Vec::new(), false, None);
        match &stage.inputs {
            brigade_pipeline::Inputs::Queues { names, priority: first } => {
                inputs.extend(names.iter().map(|name| self.queue(name)));
                priority = *first;
            }
            brigade_pipeline::Inputs::Direct(stage) => upstream = Some(self.stage_number(stage)),
        }
        let queues =
            stage.outputs.iter().map(|name| (Arc::clone(name), Target::Queue(self.queue(name))));
        let direct = stage
            .direct
            .iter()
            .map(|name| (Arc::clone(name), Target::Direct(self.stage_number(name))));
        let outputs: Vec<_> = queues.chain(direct).collect();
        inputs.push(self.queue(&kept_queue(REDRIVE, &stage.name)));
        let dead_letters = match &stage.dead_letter {
            Some(name) => self.queue(name),
            None => self.queue(&kept_queue(DEAD, &stage.name)),
        };
        let stats = match upstream {
            Some(_) => StageStats::fed_directly(self.topology.lanes),
            None => StageStats::default(),
        };
        let edges = StageEdges {
            index: self.stage_number(&stage.name),
            inputs,
            priority,
            upstream,
            outputs,
            dead_letters,
            stats,
        };
        let component = self.components.remove(&stage.name);
        let component = component.expect("each stage's component was made with the pipeline");
        StagePlan::new(stage, component, edges, self.context(stage))
    }

    fn context(&self, stage: &Stage) -> StageContext {
        let mut context = StageContext::new(&self.topology.pipeline, &stage.name);
        context.queues = Arc::clone(&self.names);
        context.env = stage.env.clone().into_iter().collect();
        context.state = Some(Arc::clone(&self.state));
        context
    }
}

/// A queue of the file, with its schema compiled.
fn declared(queue: &Queue, connector: Arc<dyn Connector>) -> Result<QueuePlan, StartError> {
    let wrong = |what: String| StartError::new(format!("queue `{}`: {what}", queue.spec.name));
    let schema = queue.schema.as_deref().map(payload_validator).transpose();
    let schema = schema.map_err(|error| wrong(format!("its schema is wrong: {error}")))?;
    Ok(QueuePlan {
        index: 0,
        features: queue.features.clone(),
        times: QueueTimings::new(&queue.spec),
        spec: queue.spec.clone(),
        keeper: QueueKeeper::Connector(connector),
        codec: queue.codec,
        schema,
        event_time: queue.event_time.clone(),
    })
}

/// A new instance of a stage's component.
fn component(
    stage: &Stage,
    topology: &Topology,
    registry: &Registry,
) -> Result<Box<dyn AnyComponent>, StartError> {
    let name = &stage.component.name;
    let wrong = |what: String| StartError::new(format!("stage `{}`: {what}", stage.name));
    match registry.component(name) {
        None => Err(wrong(format!("no component `{name}`"))),
        Some(CatalogComponent::Registered(component)) => {
            copied(|| component.fresh()).map_err(wrong)
        }
        Some(CatalogComponent::Factory(factory)) => {
            let site = StageSite {
                stage: Arc::clone(&stage.name),
                outputs: stage.outputs.iter().chain(&stage.direct).cloned().collect(),
                copy: stage.copy,
                directory: topology.directory.clone(),
            };
            factory.build(&stage.component.settings, &site).map_err(|problems| {
                let texts: Vec<_> = problems.into_iter().map(|problem| problem.message).collect();
                wrong(texts.join("; "))
            })
        }
    }
}

const DEAD: &str = "dead";
const REDRIVE: &str = "redrive";

/// The name of a queue that the state keeps for a stage; no queue in a file can have it.
fn kept_queue(kind: &str, stage: &str) -> String {
    format!("~{kind}.{stage}")
}

/// The queue of a stage's dead letters if the file names none.
pub fn dead_letter_queue(stage: &str) -> String {
    kept_queue(DEAD, stage)
}

/// The queue from which a stage takes dead letters that were sent back to it.
pub fn redrive_queue(stage: &str) -> String {
    kept_queue(REDRIVE, stage)
}

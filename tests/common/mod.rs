//! What the tests of whole pipelines share.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use brigade::pipeline_file::{Format, Overrides, Topology, load_str};
use brigade::{DeadLetter, Memory, MemoryState, Message, Pipeline, Registry, Running, Supervisor};

/// How often the thread of a supervisor panicked, in this test program.
pub(crate) static SUPERVISORS_PANICKED: AtomicUsize = AtomicUsize::new(0);

/// A pipeline on memory queues, with the ways to its queues.
pub(crate) struct World {
    pub(crate) memory: Memory,
    pub(crate) state: Arc<MemoryState>,
}

impl World {
    pub(crate) fn new() -> Self {
        // Components panic on purpose here; their words would bury the tests'.
        std::panic::set_hook(Box::new(|info| match std::thread::current().name() {
            Some("brigade") => drop(SUPERVISORS_PANICKED.fetch_add(1, Relaxed)),
            Some(name) if !name.starts_with("actix") => eprintln!("{info}"),
            _ => {}
        }));
        Self { memory: Memory::new(), state: MemoryState::new() }
    }

    pub(crate) fn registry(&self) -> Registry {
        brigade::registry().connector(Arc::new(self.memory.clone()))
    }

    /// Starts a pipeline that is written in YAML and called `test`.
    pub(crate) async fn start(&self, yaml: &str, registry: &Registry) -> Running {
        let topology = self.load(yaml, registry);
        let pipeline = Pipeline::new(topology, registry).unwrap().state(self.state.clone());
        Supervisor::new().add(pipeline).start().await.unwrap()
    }

    /// Loads a pipeline that is written in YAML and called `test`.
    pub(crate) fn load(&self, yaml: &str, registry: &Registry) -> Topology {
        let text = format!("pipeline: test\nlanes: 2\n{yaml}");
        let loaded = load_str(
            "test.yaml",
            Format::Yaml,
            &text,
            Path::new("."),
            &Overrides::default(),
            registry,
        );
        loaded.unwrap_or_else(|error| panic!("{error}")).topology
    }

    /// Puts numbers on a queue, each a message with its own id.
    pub(crate) fn put(&self, queue: &str, numbers: impl IntoIterator<Item = u64>) {
        let message = |n: u64| {
            let id = brigade::MessageId(u128::from(n) + 1);
            Message::new(n.to_string()).with_id(id).with_key(format!("k{}", n % 10))
        };
        self.memory.put("test", queue, numbers.into_iter().map(message));
    }

    /// The numbers on a queue.
    pub(crate) fn numbers(&self, queue: &str) -> Vec<u64> {
        let messages = self.memory.messages("test", queue);
        let number = |message: &Message| {
            let bytes = message.payload.as_deref().unwrap();
            std::str::from_utf8(bytes).unwrap().parse().unwrap()
        };
        messages.iter().map(number).collect()
    }

    /// The dead letters that the state keeps for a stage.
    pub(crate) fn dead_letters(&self, stage: &str) -> Vec<DeadLetter> {
        let messages = self.state.queues().messages("test", &format!("~dead.{stage}"));
        let letter =
            |message: &Message| DeadLetter::from_json(message.payload.as_deref().unwrap()).unwrap();
        messages.iter().map(letter).collect()
    }
}

/// Waits until something is so, looking again whenever others had their turn; fails after three minutes.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
    while !is_so().await {
        assert!(std::time::Instant::now() < deadline, "never came: {what}");
        tokio::task::yield_now().await;
    }
}

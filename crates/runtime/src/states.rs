//! Which states are in use in this process: pipelines of several supervisors may share one.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use brigade_core::connector::ConnectorError;
use brigade_core::state::StateStore;
use parking_lot::Mutex;

/// How many pipelines use a state. Counted by object rather than by store: a separate handle of the
/// same store is counted, and shut down, by itself.
static USED: LazyLock<Mutex<HashMap<usize, usize>>> = LazyLock::new(Mutex::default);

/// Identifies a state for as long as it is in use.
fn identity(state: &Arc<dyn StateStore>) -> usize {
    Arc::as_ptr(state).cast::<()>().addr()
}

/// A pipeline's use of its state.
pub(crate) struct UsedState(Arc<dyn StateStore>);

impl UsedState {
    pub(crate) fn new(state: Arc<dyn StateStore>) -> Self {
        *USED.lock().entry(identity(&state)).or_default() += 1;
        Self(state)
    }

    /// Shuts the state down, unless another pipeline uses it.
    pub(crate) async fn end(self) -> Result<(), ConnectorError> {
        let state = Arc::clone(&self.0);
        drop(self);
        let others = USED.lock().contains_key(&identity(&state));
        if others { Ok(()) } else { state.shutdown().await }
    }
}

impl Drop for UsedState {
    fn drop(&mut self) {
        let id = identity(&self.0);
        let mut used = USED.lock();
        if let Some(users) = used.get_mut(&id) {
            *users -= 1;
            if *users == 0 {
                used.remove(&id);
            }
        }
    }
}

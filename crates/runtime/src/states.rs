//! Which states are in use in this process: pipelines of several supervisors may share one.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use brigade_core::connector::ConnectorError;
use brigade_core::state::{StateStore, StoreId};

/// How many pipelines use a state.
static USED: LazyLock<Mutex<HashMap<StoreId, usize>>> = LazyLock::new(Mutex::default);

fn used() -> MutexGuard<'static, HashMap<StoreId, usize>> {
    USED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pipeline's use of its state.
pub(crate) struct UsedState(Arc<dyn StateStore>);

impl UsedState {
    pub(crate) fn new(state: Arc<dyn StateStore>) -> Self {
        *used().entry(state.store_id()).or_default() += 1;
        Self(state)
    }

    /// Shuts the state down, if nobody else uses it.
    pub(crate) async fn end(self) -> Result<(), ConnectorError> {
        let state = Arc::clone(&self.0);
        drop(self);
        let others = used().contains_key(&state.store_id());
        if others { Ok(()) } else { state.shutdown().await }
    }
}

impl Drop for UsedState {
    fn drop(&mut self) {
        let id = self.0.store_id();
        let mut used = used();
        if let Some(users) = used.get_mut(&id) {
            *users -= 1;
            if *users == 0 {
                used.remove(&id);
            }
        }
    }
}

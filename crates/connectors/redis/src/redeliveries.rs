//! How often a message is handed out again without an outcome before it is given up on.

use brigade_core::CauseKind;
use brigade_core::connector::Defect;

/// The limit, where the file sets none.
pub(crate) fn default_max() -> u32 {
    50
}

/// The defect of a message that was handed out again more than `max` times.
pub(crate) fn too_often(redeliveries: u32, max: u32) -> Option<Box<Defect>> {
    let message = format!(
        "handed out {redeliveries} times more without an outcome; `max_redeliveries` is {max}"
    );
    let defect = Defect { kind: CauseKind::Crash, message, truncated: None };
    (redeliveries > max).then(|| Box::new(defect))
}

//! How often a message is handed out without an outcome before it is given up on.

use brigade_core::CauseKind;
use brigade_core::connector::Defect;

/// How often, where the file does not say.
pub(crate) fn default_max() -> u32 {
    50
}

/// What is said of a message that was handed out too often.
pub(crate) fn too_often(redeliveries: u32, max: u32) -> Option<Box<Defect>> {
    let message = format!(
        "handed out {redeliveries} times more without an outcome; `max_redeliveries` is {max}"
    );
    let defect = Defect { kind: CauseKind::Crash, message, truncated: None };
    (redeliveries > max).then(|| Box::new(defect))
}

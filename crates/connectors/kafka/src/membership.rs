//! What a consumer is a member of.

/// The most topics that an error names.
const TOPICS_SHOWN: usize = 5;

/// The group membership of a consumer.
pub(crate) struct Membership {
    /// The cluster, for the ids of records without one.
    pub(crate) cluster: String,
    pub(crate) group: String,
    /// What it subscribes to.
    pub(crate) topics: Vec<String>,
    /// Whether offsets are committed with outputs.
    pub(crate) in_transactions: bool,
    /// Whether it begins at the end (`auto.offset.reset: latest`).
    pub(crate) from_end: bool,
}

impl Membership {
    /// The topics, in readable form: the client does not say which one it refers to.
    pub(crate) fn named(&self) -> String {
        let shown = self.topics.iter().take(TOPICS_SHOWN).map(|topic| format!("`{topic}`"));
        let more = self.topics.len().saturating_sub(TOPICS_SHOWN);
        let more = (more > 0).then(|| format!("{more} more"));
        shown.chain(more).collect::<Vec<_>>().join(", ")
    }

    /// Whether it names no topic: there may be none yet.
    pub(crate) fn only_finds(&self) -> bool {
        self.topics.iter().all(|topic| topic.starts_with('^'))
    }
}

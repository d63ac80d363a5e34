//! Two queues that share the messages of a topic without knowing of each other.

use std::sync::Arc;

use brigade_core::connector::{Order, Problem, QueueSpec, Reader};
use regex::Regex;

use crate::settings::Settings;

/// What a queue reads, and as whom.
struct Reads {
    hosts: Vec<String>,
    groups: Vec<String>,
    topics: Vec<String>,
}

impl Reads {
    fn of(queue: &QueueSpec) -> Option<Self> {
        let settings = Settings::of(queue).ok()?;
        let group = |group: &Arc<str>| {
            let (stage, group) = (Arc::clone(group), Arc::clone(group));
            settings.group(queue, &Reader { stage, group, order: Order::None })
        };
        let groups = queue.groups.iter().map(group).collect();
        let hosts = settings.place(queue).hosts;
        Some(Self { hosts, groups, topics: settings.subscription(queue) })
    }
}

/// Why two queues that stages read cannot be together: both have members in one group, and the
/// group gives each partition of a topic to one member, whichever queue that is of.
pub(crate) fn conflict(one: &QueueSpec, other: &QueueSpec) -> Option<Problem> {
    let (ones, others) = (Reads::of(one)?, Reads::of(other)?);
    // One broker in common is one cluster, however many of the others are named.
    ones.hosts.iter().find(|host| others.hosts.contains(host))?;
    let group = ones.groups.iter().find(|group| others.groups.contains(group))?;
    let mut pairs = ones.topics.iter().flat_map(|one| others.topics.iter().map(move |o| (one, o)));
    let topic = pairs.find_map(|(one, other)| common(one, other))?;
    let message = format!(
        "both read {topic} as the group `{group}`: each message would come to one of them only"
    );
    let help =
        "have the stages read one queue, so that each gets all, or give each queue a `group`";
    Some(Problem::whole(message).help(help))
}

/// The topic that both name or find, in readable form. Of two different expressions only a broker
/// knows what both find.
fn common(one: &str, other: &str) -> Option<String> {
    let finds = |expression: &str, topic: &str| {
        // What is no expression to this crate is left to the client, which has the C library's.
        expression.starts_with('^') && Regex::new(expression).is_ok_and(|all| all.is_match(topic))
    };
    match (one.starts_with('^'), other.starts_with('^')) {
        _ if one == other && one.starts_with('^') => Some(format!("what `{one}` finds")),
        _ if one == other => Some(format!("the topic `{one}`")),
        (true, false) if finds(one, other) => Some(format!("the topic `{other}`")),
        (false, true) if finds(other, one) => Some(format!("the topic `{one}`")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn queue(name: &str, mut keys: Value, groups: &[&str]) -> QueueSpec {
        if keys.get("config").is_none() {
            keys["config"] = json!({ "bootstrap.servers": "a:1,b:2" });
        }
        let mut queue = QueueSpec::new("shop", name, keys);
        queue.groups = groups.iter().map(|group| Arc::from(*group)).collect();
        queue
    }

    fn told(one: Value, other: Value) -> Option<String> {
        let both = [queue("one", one, &[""]), queue("other", other, &[""])];
        let [told, back] = [(0, 1), (1, 0)].map(|(one, other)| conflict(&both[one], &both[other]));
        assert_eq!(told, back, "it does not matter which is first");
        told.map(|problem| problem.message)
    }

    #[test]
    fn two_queues_that_read_one_topic_as_one_group_are_refused() {
        let orders = json!({ "topic": "orders", "group": "shop" });
        let expected = "both read the topic `orders` as the group `shop`: each message would come \
                        to one of them only";
        for other in [
            orders.clone(),
            json!({ "topics": ["bills", "orders"], "group": "shop" }),
            json!({ "topics": ["^bills.*", "^ord(ers|inals)$"], "group": "shop" }),
            json!({ "topic": "orders", "group": "shop", "config": { "metadata.broker.list": "b:2" } }),
        ] {
            assert_eq!(told(orders.clone(), other.clone()).as_deref(), Some(expected), "{other}");
        }
        let found = json!({ "topics": ["^ord.*"], "group": "shop" });
        let expected = "both read what `^ord.*` finds as the group `shop`: each message would come \
                        to one of them only";
        assert_eq!(told(found.clone(), found).as_deref(), Some(expected));
    }

    #[test]
    fn queues_that_share_nothing_are_not_refused() {
        let orders = json!({ "topic": "orders", "group": "shop" });
        for other in [
            json!({ "topic": "bills", "group": "shop" }),
            json!({ "topic": "orders", "group": "other" }),
            json!({ "topic": "orders", "group": "shop", "config": { "bootstrap.servers": "c:3" } }),
            json!({ "topics": ["^bills.*", "^reorders.*", "^(.)\\1.*"], "group": "shop" }),
        ] {
            assert_eq!(told(orders.clone(), other.clone()), None, "{other}");
        }
        let one = queue("one", orders.clone(), &["a", "b"]);
        assert!(conflict(&one, &queue("other", orders.clone(), &["b", "c"])).is_some());
        assert!(conflict(&one, &queue("other", orders, &[""])).is_none(), "`shop` is another");
    }
}

//! Queues with a limit: what is longer than all of it.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use brigade_core::connector::{
    Connector, ConnectorEnv, Limit, Outgoing, Produced, QueueSpec, WhenFull,
};
use brigade_core::{ByteSize, CauseKind, Message};
use brigade_memory::{Memory, MemoryState};

#[tokio::test]
async fn what_is_longer_than_the_limit_is_too_large_and_does_not_block() {
    let memory = Memory::new();
    let mut queue = QueueSpec::new("p", "q", serde_json::json!({}));
    queue.limit = Limit { messages: None, bytes: Some(ByteSize(200)), when_full: WhenFull::Wait };
    let env = ConnectorEnv { state: MemoryState::new() };
    let producer = memory.producer(&queue, &env).await.unwrap();
    let of = |length: usize| Outgoing::from(Message::new("x".repeat(length)));
    let put = producer.produce(&[of(1), of(150), of(2)]).await.unwrap();
    let [Produced::Confirmed, Produced::Rejected(why), Produced::Confirmed] = &put[..] else {
        panic!("{put:?}")
    };
    assert_eq!(why.kind, CauseKind::TooLarge);
    assert!(why.message.starts_with("214 bytes are more than queue `q` ever holds"), "{why:?}");
    assert_eq!(memory.messages("p", "q").len(), 2);
}

//! What fails comes again, and not before its time.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::time::Duration;

use brigade_core::connector::{Failed, FailedReason};
use brigade_redis::Rsmq;
use brigade_testkit::servers::Redis;
use common::{WANT, ask, connect, numbered, open, queue};
use serde_json::json;

/// The runtime renews what is in flight while a failed message is on its way back.
#[tokio::test]
async fn a_renewal_overrides_no_back_off() {
    const DELAY: Duration = Duration::from_secs(600);
    let server = Redis::start();
    let queue = queue("shop", json!({ "url": server.url(), "vt": "10s" }));
    let (producer, consumer) = open(&Rsmq, &queue).await;
    producer.produce(&[numbered(7)]).await.unwrap();
    let receipt = consumer.consume(WANT).await.unwrap()[0].receipt;
    // The script is known from now on: it goes out when it is asked for.
    consumer.extend(&[receipt]).await.unwrap();
    let reason = FailedReason::Attempt { attempts: 1, error: "no luck".into() };
    let failed = Failed { receipt, reason, delay: DELAY };
    let receipts = [receipt];
    let (failed, extended) =
        tokio::join!(consumer.on_fail(vec![failed]), consumer.extend(&receipts));
    assert_eq!(failed.unwrap().fenced, []);
    extended.unwrap();
    let mut beside = connect(&server);
    let due: Vec<(String, f64)> = ask(&mut beside, "ZRANGE rsmq:shop 0 -1 WITHSCORES");
    let (seconds, _): (f64, f64) = ask(&mut beside, "TIME");
    assert!(due[0].1 / 1000.0 - seconds > 300.0, "{due:?} at {seconds}");
}

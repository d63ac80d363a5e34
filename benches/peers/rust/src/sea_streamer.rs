//! SeaStreamer, with its Redis backend.
//!
//! An entry of a stream has the message in the field `msg`, and nothing else:
//! `XADD in * msg '{"id":1,"text":"x","total":1}'`.

use std::sync::Arc;
use std::time::Duration;

use sea_streamer::redis::{AutoCommit, AutoStreamReset};
use sea_streamer::redis::{RedisConsumerOptions, RedisProducer, RedisStreamer};
use sea_streamer::{Consumer, ConsumerGroup, ConsumerMode, ConsumerOptions};
use sea_streamer::{Message, Producer, StreamKey, Streamer};
use tokio::sync::mpsc;

use crate::{Done, Job, Order};

/// How many entries are read at once; the backend's ten for a load-balanced group are slow.
const BATCH: usize = 1000;

/// How many messages may have been sent and wait for their receipts.
const SENT: usize = 4096;

/// How often acks are committed: in the default second none would be before all were handled.
const COMMIT: Duration = Duration::from_millis(20);

async fn producer(url: &str, stream: &str) -> Done<RedisProducer> {
    let streamer = RedisStreamer::connect(url.parse()?, Default::default()).await?;
    Ok(streamer.create_producer(StreamKey::new(stream)?, Default::default()).await?)
}

/// From one stream to another, at least once: a message is acked when there is a receipt for what
/// it was sent on as.
///
/// The fastest of what was tried: `Rolling` commits, which the documentation recommends for this,
/// and a queue between the loop that sends, which never waits for a receipt, and the one that
/// acks; all on one thread, as there is a channel of no capacity between the backend's reads and
/// ours.
pub(crate) fn redis(Job { url, input, output, messages }: Job) -> Done {
    crate::runtime(1).block_on(async move {
        let mut options = RedisConsumerOptions::new(ConsumerMode::LoadBalanced);
        options.set_consumer_group(ConsumerGroup::new("peers"))?;
        options
            .set_auto_stream_reset(AutoStreamReset::Earliest)
            .set_auto_commit(AutoCommit::Rolling)
            .set_auto_commit_interval(COMMIT)
            .set_batch_size(BATCH);
        let streamer = RedisStreamer::connect(url.parse()?, Default::default()).await?;
        let consumer = streamer.create_consumer(&[StreamKey::new(input)?], options).await?;
        let consumer = Arc::new(consumer);
        let producer = producer(&url, &output).await?;
        let (sent, mut receipts) = mpsc::channel(SENT);

        let reader = Arc::clone(&consumer);
        let sending = tokio::spawn(async move {
            for _ in 0..messages {
                let message = reader.next().await?;
                let mut order: Order = message.message().deserialize_json()?;
                order.total += 1;
                let receipt = producer.send(serde_json::to_string(&order)?)?;
                sent.send((receipt, message.identifier())).await?;
            }
            Done::Ok(())
        });
        let acker = Arc::clone(&consumer);
        let acking = tokio::spawn(async move {
            while let Some((receipt, message)) = receipts.recv().await {
                receipt.await?;
                acker.ack_with(&message)?;
            }
            Done::Ok(())
        });
        sending.await??;
        acking.await??;
        // Commits the last acks, once the read that is under way has ended: ten seconds at most.
        Arc::into_inner(consumer).expect("both loops have ended").end().await?;
        Ok(())
    })
}

/// Fills a stream with orders.
pub(crate) fn redis_fill(Job { url, input, messages, .. }: &Job) -> Done {
    crate::runtime(1).block_on(async {
        let producer = producer(url, input).await?;
        for n in 0..*messages {
            // Not awaited: the flush waits for all of them.
            drop(producer.send(serde_json::to_string(&Order::new(n))?)?);
        }
        producer.end().await?;
        Ok(())
    })
}

//! RustStream, with its broker in memory and with its broker of Redis streams, `ruststream-fred`.
//!
//! An entry of a Redis stream has the message in the field `_payload` and each header in a field
//! `h:NAME`; `XADD in * _payload '{"id":1,"text":"x","total":1}'` is a whole message of ours.

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures::StreamExt;
use futures::future::join_all;
use ruststream::memory::prelude::*;
use ruststream::memory::{ConnectedMemoryBroker, MemoryError, MemorySubscriber};
use ruststream::runtime::RustStreamError;
use ruststream::{AddressedCopies, BatchSubscriber, OutgoingMessage};
use ruststream::{RedeliveryAddress, RedeliveryAddressed, Subscribe, SubscriptionSource};
use ruststream_fred::stream::Publish as RedisPublish;
use ruststream_fred::stream::prelude::{Bindable, PipelineContext, RedisPipelineSteps, keys};
use ruststream_fred::stream::prelude::{RedisBroker, RedisStream, StreamStart};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{Done, Job};

/// How many deliveries the end of the memory pipelines takes out at once.
const TAKEN: NonZeroUsize = nonzero!(128);

/// How many entries of a Redis stream are read, handled and acked together.
const BATCH: NonZeroUsize = nonzero!(1000);

/// How many such batches are under way at once: the next is read while one is being acked.
const WORKERS: NonZeroUsize = nonzero!(2);

/// The subscription to a name that has all messages before its first delivery: what is published
/// to the memory broker before there is a subscription goes to nobody.
#[derive(Clone)]
struct Full {
    name: &'static str,
    messages: usize,
    payload: fn(usize) -> Vec<u8>,
    begun: Arc<OnceLock<Instant>>,
}

impl Full {
    fn new(name: &'static str, messages: usize, payload: fn(usize) -> Vec<u8>) -> Self {
        Self { name, messages, payload, begun: Arc::default() }
    }
}

impl SubscriptionSource<ConnectedMemoryBroker> for Full {
    type Subscriber = MemorySubscriber;
    type Copies = AddressedCopies;

    fn name(&self) -> &str {
        self.name
    }

    async fn subscribe(
        self,
        broker: &ConnectedMemoryBroker,
    ) -> Result<MemorySubscriber, MemoryError> {
        let subscriber = Subscribe::subscribe(broker, self.name).await?;
        let publisher = broker.publisher();
        for n in 0..self.messages {
            let payload = (self.payload)(n);
            publisher.publish(OutgoingMessage::new(self.name, &payload), None).await?;
        }
        self.begun.get_or_init(Instant::now);
        Ok(subscriber)
    }
}

impl RedeliveryAddressed<ConnectedMemoryBroker> for Full {
    async fn redelivery_address(
        &self,
        _: &ConnectedMemoryBroker,
    ) -> Result<RedeliveryAddress, MemoryError> {
        Ok(RedeliveryAddress::new(self.name))
    }
}

/// Starts a service, takes all that comes out of it, and prints what that took since its input
/// was full.
fn measure(
    threads: usize,
    input: Full,
    mut out: MemorySubscriber,
    service: impl Future<Output = Result<RunningApp, RustStreamError>> + Send + 'static,
) -> Done {
    let Full { messages, begun, .. } = input;
    let taken = async move {
        let mut batches = std::pin::pin!(out.batches(TAKEN));
        let mut left = messages;
        while left > 0 {
            for message in batches.next().await.expect("the broker is there")? {
                message.ack().await?;
                left -= 1;
            }
        }
        Done::Ok(Instant::now())
    };
    let measured = async move {
        let taken = tokio::spawn(taken);
        let running = service.await?;
        let ended = taken.await??;
        running.shutdown().await?;
        Done::Ok(ended)
    };
    let runtime = crate::runtime(threads);
    let ended = runtime.block_on(async { tokio::spawn(measured).await? })?;
    let begun = begun.get().expect("the input was full");
    let seconds = (ended - *begun).as_secs_f64();
    println!("{{\"messages\":{messages},\"seconds\":{seconds}}}");
    Ok(())
}

/// A delivery's bytes as they are in the broker's buffer: no codec reads them.
#[derive(Deserialized)]
struct Frame<'a>(&'a [u8]);

/// Bytes that leave as they are.
#[derive(Outgoing, Serialized)]
struct Copied(Vec<u8>);

fn work(Frame(payload): &Frame<'_>) -> Copied {
    let sum = payload.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    let mut copy = payload.to_vec();
    copy[0] = sum;
    Copied(copy)
}

#[subscriber("a", reply("b"))]
async fn copy_a(frame: &Frame<'_>) -> Copied {
    work(frame)
}

#[subscriber("b", reply("c"))]
async fn copy_b(frame: &Frame<'_>) -> Copied {
    work(frame)
}

#[subscriber("c", reply("out"))]
async fn copy_c(frame: &Frame<'_>) -> Copied {
    work(frame)
}

/// Three stages with bytes.
///
/// The fastest of what was tried: handlers of single messages whose replies stay bytes, and a
/// broker for each name, as threads wait for each other at the one lock that a broker has.
/// `workers(n)` and `threads(n)` hand every delivery over to another task or thread, which costs
/// more than this work (their documentation says so too); batches are as fast with one thread and
/// slower with two.
pub(crate) fn memory(messages: usize, lanes: usize) -> Done {
    let input = Full::new("a", messages, |_| vec![7; 200]);
    let end = MemoryBroker::new();
    let out = end.subscribe("out");
    let (second, third) = (MemoryBroker::new().bindable(), MemoryBroker::new().bindable());
    let end = end.bindable();
    let (to_second, to_third, to_end) =
        (second.bind(Publish), third.bind(Publish), end.bind(Publish));
    let full = input.clone();
    let service = RustStream::new(AppInfo::new("peers", "0.0.0"))
        .with_broker(end, |_| ())
        .with_broker(third, |scope| {
            scope.include(copy_c).out_reply(to_end);
        })
        .with_broker(second, |scope| {
            scope.include(copy_b).out_reply(to_third);
        })
        .with_broker(MemoryBroker::new(), |scope| {
            scope.include(copy_a.map_source(|_| full)).out_reply(to_second);
        });
    measure(lanes, input, out, service.start())
}

#[derive(Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
    city: String,
    lines: Vec<Line>,
    total: f64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    article: String,
    price: f64,
    pieces: u32,
}

impl Order {
    fn new(n: usize) -> Self {
        let line = |at| Line { article: format!("a{at}"), price: 2.5, pieces: 2 };
        Self {
            id: n as u64,
            customer: format!("customer {n}"),
            city: "Lübeck".to_owned(),
            lines: (0..3).map(line).collect(),
            total: 0.0,
        }
    }

    fn added_up(&self) -> Added<'_> {
        let Self { id, customer, city, lines, total } = self;
        let sum: f64 = lines.iter().map(|line| line.price * f64::from(line.pieces)).sum();
        Added { id: *id, customer, city, lines, total: total + sum }
    }
}

/// An order with another total: a handler gets its message lent, and need not copy the rest.
#[derive(Serialize, Outgoing)]
struct Added<'a> {
    id: u64,
    customer: &'a str,
    city: &'a str,
    lines: &'a [Line],
    total: f64,
}

#[subscriber("a")]
async fn add_a(order: &Order, Out(out): Out<impl Publisher>) -> HandlerOutcome {
    settled(out.message(&order.added_up()).to("b").publish().await)
}

#[subscriber("b")]
async fn add_b(order: &Order, Out(out): Out<impl Publisher>) -> HandlerOutcome {
    settled(out.message(&order.added_up()).to("c").publish().await)
}

#[subscriber("c")]
async fn add_c(order: &Order, Out(out): Out<impl Publisher>) -> HandlerOutcome {
    settled(out.message(&order.added_up()).to("out").publish().await)
}

fn settled<E>(published: Result<(), E>) -> HandlerOutcome {
    if published.is_ok() { HandlerOutcome::ack() } else { HandlerOutcome::retry() }
}

/// Three stages that read and write JSON, with one thread.
///
/// A slot can publish what borrows from the delivery, a reply can not: that is faster by a tenth.
pub(crate) fn json(messages: usize) -> Done {
    let order = |n| serde_json::to_vec(&Order::new(n)).expect("an order is JSON");
    let input = Full::new("a", messages, order);
    let broker = MemoryBroker::new();
    let out = broker.subscribe("out");
    let full = input.clone();
    let service = RustStream::new(AppInfo::new("peers", "0.0.0")).with_broker(broker, |scope| {
        scope.include(add_c).out(DefaultSlot, Publish).build();
        scope.include(add_b).out(DefaultSlot, Publish).build();
        scope.include(add_a.map_source(|_| full)).out(DefaultSlot, Publish).build();
    });
    measure(1, input, out, service.start())
}

/// Where orders go, and how many have still to come.
struct Progress {
    output: String,
    left: AtomicUsize,
    done: Arc<Notify>,
}

/// An order of a Redis stream with another total.
#[derive(Serialize, Outgoing)]
struct Counted<'a> {
    id: u64,
    text: &'a str,
    total: i64,
}

/// Its publishes and the acks of the whole batch leave together.
#[subscriber(RedisStream::new("in"))]
async fn count(
    orders: &[crate::Order],
    context: &mut Context<'_, PipelineContext, Progress>,
    Out(out): Out<impl Bindable>,
) -> HandlerOutcome {
    let out = context.context(keys::Pipeline).bind(out);
    let progress = context.state();
    for crate::Order { id, text, total } in orders {
        let counted = Counted { id: *id, text, total: total + 1 };
        if out.message(&counted).to(&progress.output).publish().await.is_err() {
            return HandlerOutcome::retry();
        }
    }
    if progress.left.fetch_sub(orders.len(), Relaxed) <= orders.len() {
        progress.done.notify_one();
    }
    HandlerOutcome::ack()
}

/// From one Redis stream to another, at least once.
///
/// The fastest of what was tried: batches, each read by one `XREADGROUP`, with a pipeline for what
/// it publishes and one `XACK`, two of them at once and all on one thread.
pub(crate) fn redis(Job { url, input, output, messages }: Job) -> Done {
    let done = Arc::new(Notify::new());
    let progress = Progress { output, left: messages.into(), done: Arc::clone(&done) };
    let input = RedisStream::new(input).group("peers").start_id(StreamStart::Beginning);
    let service = RustStream::new(AppInfo::new("peers", "0.0.0"))
        .on_startup(async move |()| Ok::<_, Infallible>(progress))
        .with_broker(RedisBroker::standalone(url), |scope| {
            let counting = count.map_source(|_| input).batch(BATCH).workers(WORKERS).pipeline();
            scope.include(counting).out(DefaultSlot, RedisPublish).build();
        });
    // It stops with what it has, and so acks it.
    let served = service.run_until(async move { done.notified().await });
    crate::runtime(1).block_on(async { Done::Ok(tokio::spawn(served).await??) })
}

/// Fills a Redis stream with orders.
pub(crate) fn redis_fill(Job { url, input, messages, .. }: &Job) -> Done {
    crate::runtime(1).block_on(async {
        let broker = RedisBroker::standalone(url.as_str()).connect().await?;
        let publisher = broker.publisher();
        for chunk in (0..*messages).collect::<Vec<_>>().chunks(1000) {
            let orders: Vec<_> = chunk.iter().map(|n| crate::Order::new(*n)).collect();
            let publishes = orders.iter().map(|order| publisher.message(order).to(input).publish());
            for published in join_all(publishes).await {
                published?;
            }
        }
        Ok(())
    })
}

//! A cluster that tells for a moment that it has no brokers, as a single one does that was suspended.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use brigade_core::connector::{ErrorKind, Produced, QueueSpec, Want};
use brigade_testkit::servers::Kafka;
use common::{PATIENCE, consumer, number, numbered, patiently, producer, put, queue, with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// The requests whose answers name brokers.
const METADATA: u16 = 3;
const FIND_COORDINATOR: u16 = 10;
const FENCED: u32 = 40;
/// How long a client that knows a broker takes to ask again, at most.
const SOON: Duration = Duration::from_secs(7);

/// Stands before the broker; whoever asks which brokers there are is told of this address, or of none.
struct Door {
    port: u16,
    fenced: AtomicBool,
    /// How often somebody asked which there are.
    asked: AtomicU64,
    connections: Mutex<Vec<AbortHandle>>,
}

impl Door {
    async fn open() -> Arc<Self> {
        // This blocks: it is not for the task of a connection to start it.
        let broker = Kafka::shared().servers();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fenced, asked) = (AtomicBool::default(), AtomicU64::default());
        let door = Arc::new(Self { port, fenced, asked, connections: Mutex::default() });
        let here = Arc::clone(&door);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let broker = TcpStream::connect(&broker).await.unwrap();
                let (asked, answers) = (client.into_split(), broker.into_split());
                let known = Known::default();
                let asking = tokio::spawn(ask(asked.0, answers.1, Arc::clone(&known)));
                let answering = tokio::spawn(answer(answers.0, asked.1, known, Arc::clone(&here)));
                let mut connections = here.connections.lock().unwrap();
                connections.extend([asking.abort_handle(), answering.abort_handle()]);
            }
        });
        door
    }

    fn queue(&self) -> QueueSpec {
        let queue = queue(1, &format!("127.0.0.1:{}", self.port));
        let queue = with(&queue, "reconnect.backoff.max.ms", 300);
        with(&queue, "topic.metadata.refresh.interval.ms", 300)
    }

    /// The same queue, past this.
    fn queue_behind(&self, queue: &QueueSpec) -> QueueSpec {
        with(queue, "bootstrap.servers", Kafka::shared().servers())
    }

    /// Cuts all connections off, and tells whoever comes again that there are no brokers; then there are.
    /// Over and over, until the client does not come any more, if that should be.
    async fn fence(&self) {
        for _ in 0..FENCED {
            let (before, begun) = (self.asked.load(Ordering::Relaxed), Instant::now());
            self.fenced.store(true, Ordering::Relaxed);
            self.connections.lock().unwrap().drain(..).for_each(|one| one.abort());
            while self.asked.load(Ordering::Relaxed) == before && begun.elapsed() < SOON {
                tokio::task::yield_now().await;
            }
            self.fenced.store(false, Ordering::Relaxed);
            if self.asked.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// An answer that names this as the coordinator: what it ends with is the port.
    fn led_here(&self, mut frame: Vec<u8>) -> Vec<u8> {
        frame.truncate(frame.len() - 4);
        frame.extend_from_slice(&u32::from(self.port).to_be_bytes());
        frame
    }

    /// An answer that names this as the only broker, or none.
    fn rewritten(&self, frame: &[u8]) -> Vec<u8> {
        // The correlation, no tagged fields, the time of throttling.
        let (head, mut rest) = frame.split_at(4 + 1 + 4);
        let (mut told, count) = (head.to_vec(), length(&mut rest));
        let fenced = self.fenced.load(Ordering::Relaxed);
        self.asked.fetch_add(1, Ordering::Relaxed);
        told.push(if fenced { 1 } else { count as u8 + 1 });
        for _ in 0..count {
            let start = rest;
            rest = &rest[4..];
            let host = length(&mut rest);
            let before = &start[..start.len() - rest.len() + host];
            rest = &rest[host + 4..];
            let after = rest;
            let rack = length(&mut rest);
            rest = &rest[rack + 1..];
            if !fenced {
                told.extend_from_slice(before);
                told.extend_from_slice(&u32::from(self.port).to_be_bytes());
                told.extend_from_slice(&after[..after.len() - rest.len()]);
            }
        }
        told.extend_from_slice(rest);
        told
    }
}

/// The length of what follows: none is told as 0, others as one more than they are.
fn length(rest: &mut &[u8]) -> usize {
    let first = usize::from(rest[0]);
    assert!(first < 128, "it is short");
    *rest = &rest[1..];
    first.saturating_sub(1)
}

async fn frame(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; from.read_u32().await? as usize];
    from.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn pass_on(to: &mut OwnedWriteHalf, frame: &[u8]) -> io::Result<()> {
    to.write_u32(frame.len() as u32).await?;
    to.write_all(frame).await
}

/// What was asked, by the numbers of the questions.
type Known = Arc<Mutex<HashMap<Vec<u8>, u16>>>;

async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, known: Known) -> io::Result<()> {
    loop {
        let frame = frame(&mut from).await?;
        let at = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        // From version 9 on the lengths are of variable size; up to version 2 the port comes last.
        assert!(at(0) != METADATA || at(2) >= 9, "version {}", at(2));
        assert!(at(0) != FIND_COORDINATOR || at(2) <= 2, "version {}", at(2));
        known.lock().unwrap().insert(frame[4..8].to_vec(), at(0));
        pass_on(&mut to, &frame).await?;
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    known: Known,
    door: Arc<Door>,
) -> io::Result<()> {
    loop {
        let frame = frame(&mut from).await?;
        let asked = known.lock().unwrap().remove(&frame[..4]);
        let frame = match asked {
            Some(METADATA) => door.rewritten(&frame),
            Some(FIND_COORDINATOR) => door.led_here(frame),
            _ => frame,
        };
        pass_on(&mut to, &frame).await?;
    }
}

#[tokio::test]
async fn a_consumer_goes_on_though_the_cluster_named_no_broker() {
    let door = Door::open().await;
    let (queue, want) = (door.queue(), Want { messages: 10, bytes: usize::MAX });
    let mut member = consumer(&queue).await.unwrap();
    door.fence().await;
    put(&producer(&door.queue_behind(&queue)).await, 0..10).await;
    let (mut seen, mut reopened, begun) = (BTreeSet::new(), 0, Instant::now());
    while seen.len() < 10 {
        match tokio::time::timeout(PATIENCE, member.consume(want)).await.expect("it goes on") {
            Ok(taken) => seen.extend(taken.iter().map(number)),
            Err(error) if error.kind() == ErrorKind::Stalled => {
                assert!(error.to_string().contains("knows no broker"), "{error}");
                drop(member.shutdown().await);
                member = patiently(async || consumer(&queue).await).await;
                reopened += 1;
            }
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        assert!(begun.elapsed() < PATIENCE, "{seen:?} came");
    }
    println!("opened again {reopened} times");
}

#[tokio::test]
async fn a_producer_goes_on_though_the_cluster_named_no_broker() {
    let door = Door::open().await;
    let producer = producer(&door.queue()).await;
    door.fence().await;
    let begun = Instant::now();
    loop {
        let produced = tokio::time::timeout(PATIENCE, producer.produce(&[numbered(1)])).await;
        match produced.expect("it goes on").unwrap().remove(0) {
            Produced::Confirmed => break,
            Produced::Failed(error) => assert!(error.is_transient(), "{error}"),
            Produced::Rejected(why) => panic!("{why:?}"),
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is put");
    }
}

//! What the engine's own account of a message costs: a delivery, its guard, its flight, the books and what
//! is counted for status and metrics; of the last two as much as a stage and its consumer do for a chunk.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use brigade::{Message, Timestamp};
use brigade_core::books::Page;
use brigade_core::connector::Receipt;
use brigade_core::delivery::{Delivery, HandedOut, Origin, Parts, Resolution};
use brigade_core::flight::Flights;

use crate::support::{Goal, Row};

const ROUNDS: u64 = 20_000;
const CHUNK: u64 = 64;
const SAMPLES: usize = 20;

/// What a stage counts, and its consumer's page: as many counters as the runtime's own, which only it can reach.
#[derive(Default)]
struct Account {
    received: AtomicU64,
    pulls: AtomicU64,
    last_message: AtomicU64,
    calls: AtomicU64,
    busy_ns: AtomicU64,
    settled: AtomicU64,
    settled_ns: AtomicU64,
    outcomes: [AtomicU64; 4],
    page: Mutex<Page>,
}

impl Account {
    fn came(&self, n: u64) {
        self.received.fetch_add(n, Relaxed);
        self.pulls.fetch_add(1, Relaxed);
        self.last_message.store(Timestamp::from(SystemTime::now()).0 as u64, Relaxed);
    }

    fn handled(&self, n: u64, took: Duration) {
        self.calls.fetch_add(n, Relaxed);
        self.busy_ns.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    fn settled(&self, n: u64, received: Instant) {
        self.settled.fetch_add(n, Relaxed);
        self.settled_ns.fetch_add(n * received.elapsed().as_nanos() as u64, Relaxed);
        for outcome in &self.outcomes {
            outcome.fetch_add(n, Relaxed);
        }
    }

    /// Writes the page, and closes the books over it.
    fn close(&self, flights: &Flights) {
        let (came, went) = (self.received.load(Relaxed), self.settled.load(Relaxed));
        let page = Page { came, went, held: flights.roots() as u64 };
        *self.page.lock().expect("nobody panics with it") = page;
        assert_eq!(page.unaccounted(), 0);
    }
}

pub(crate) fn per_message(name: &'static str) -> Row {
    let mut row =
        Row { name, unit: "ns a message", ours: vec![], by_hand: vec![], goal: Goal::AtMost(40.0) };
    let message = Message::new("payload");
    for _ in 0..SAMPLES {
        let origin = Origin::new(HandedOut::default(), Arc::new(|_| String::new()), || {});
        let (mut flights, mut resolved) = (Flights::default(), Vec::new());
        let account = Account::default();
        let begun = Instant::now();
        for round in 0..ROUNDS {
            let received = Instant::now();
            account.came(CHUNK);
            let mut handing_out = origin.hand_out(CHUNK as usize);
            let chunk = (0..CHUNK).map(|at| {
                let receipt = Receipt { position: round * CHUNK + at, fence: 1 };
                let slot = flights.hand_out(receipt, 64, None);
                let (number, guard) = handing_out.next(slot);
                Delivery::from(Parts {
                    message: message.clone(),
                    parsed: None,
                    number,
                    attempts: 0,
                    redeliveries: 0,
                    codec: brigade::Codec::Json,
                    input: 0,
                    belongs_to: 0,
                    receipt,
                    enqueued_at: None,
                    first_failed_at: None,
                    defect: None,
                    guard,
                })
            });
            let chunk: Vec<Delivery> = chunk.collect();
            account.close(&flights);
            let called = Instant::now();
            for delivery in black_box(chunk) {
                delivery.resolve(Resolution::Discarded);
            }
            account.handled(CHUNK, called.elapsed());
            origin.take(&mut resolved);
            for one in resolved.drain(..) {
                if let Some(finished) = flights.resolve(one) {
                    flights.settled(black_box(finished).slot);
                }
            }
            account.settled(CHUNK, received);
            account.close(&flights);
        }
        row.ours.push(begun.elapsed().as_nanos() as f64 / (ROUNDS * CHUNK) as f64);
    }
    row
}

//! What the engine's own account of a message costs: a delivery, its guard, its flight.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use brigade::Message;
use brigade_core::connector::Receipt;
use brigade_core::delivery::{Delivery, HandedOut, Origin, Parts, Resolution};
use brigade_core::flight::Flights;

use crate::support::{Goal, Row};

const ROUNDS: u64 = 20_000;
const CHUNK: u64 = 64;
const SAMPLES: usize = 20;

pub(crate) fn per_message(name: &'static str) -> Row {
    let mut row =
        Row { name, unit: "ns a message", ours: vec![], by_hand: vec![], goal: Goal::AtMost(40.0) };
    let message = Message::new("payload");
    for _ in 0..SAMPLES {
        let origin = Origin::new(HandedOut::default(), Arc::new(|_| String::new()), || {});
        let (mut flights, mut resolved) = (Flights::default(), Vec::new());
        let begun = Instant::now();
        for round in 0..ROUNDS {
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
            for delivery in black_box(chunk) {
                delivery.resolve(Resolution::Discarded);
            }
            origin.take(&mut resolved);
            for one in resolved.drain(..) {
                if let Some(finished) = flights.resolve(one) {
                    flights.settled(black_box(finished).slot);
                }
            }
        }
        row.ours.push(begun.elapsed().as_nanos() as f64 / (ROUNDS * CHUNK) as f64);
    }
    row
}

//! A web service with a pipeline inside: what is posted is stored durably before it is answered, and
//! handled afterwards.
//!
//! `cargo run --example inside_an_actix_web_service`, and then
//! `curl -d '{"item":"tea","price":4}' localhost:8080/orders`.

use std::sync::Arc;

use actix_web::{App, HttpResponse, HttpServer, Responder, get, post, web};
use brigade::Running;
use brigade::connector::{Outgoing, Produced, Producer};
use brigade::prelude::*;
use serde::{Deserialize, Serialize};

const PIPELINE: &str = "
pipeline: shop
queues:
  orders: { type: embedded, limit: { messages: 100000, when_full: refuse } }
  bills: { type: embedded }
stages:
  bill: { component: bill, input: orders, outputs: [bills], workers: 2 }
";

#[derive(Deserialize)]
struct Order {
    item: String,
    price: u64,
}

#[derive(Serialize, Output)]
struct Bill {
    text: String,
}

async fn bill(order: Order) -> Result<Bill, Failure> {
    Ok(Bill { text: format!("{}: {}.00", order.item, order.price) })
}

// ANCHOR: post
/// Answers 202 once the order survives a crash.
#[post("/orders")]
async fn orders(body: web::Bytes, queue: web::Data<Arc<dyn Producer>>) -> impl Responder {
    let order = Outgoing::from(Message::new(body));
    match queue.produce(&[order]).await.as_deref() {
        Ok([Produced::Confirmed]) => HttpResponse::Accepted().finish(),
        Ok([Produced::Rejected(why)]) => HttpResponse::TooManyRequests().body(why.message.clone()),
        Ok(_) => HttpResponse::ServiceUnavailable().finish(),
        Err(error) => HttpResponse::ServiceUnavailable().body(error.to_string()),
    }
}
// ANCHOR_END: post

#[get("/ready")]
async fn ready(pipeline: web::Data<Running>) -> impl Responder {
    match pipeline.is_ready().await {
        true => HttpResponse::Ok(),
        false => HttpResponse::ServiceUnavailable(),
    }
}

#[actix_web::main]
#[expect(clippy::print_stdout, reason = "it says where it is")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // ANCHOR: start
    let registry = brigade::registry().component("bill", bill);
    let state = std::env::temp_dir().join("brigade-shop");
    let pipeline = Pipeline::from_yaml(PIPELINE, &registry)?.state_path(&state);
    let running = web::Data::new(Supervisor::new().add(pipeline).start().await?);
    let queue = web::Data::new(running.producer("orders").await?);
    // ANCHOR_END: start

    // The server ends at SIGINT and SIGTERM, and the pipeline after it: what was accepted is handled
    // now or at the next start.
    let shared = running.clone();
    let service = move || {
        App::new().app_data(shared.clone()).app_data(queue.clone()).service(orders).service(ready)
    };
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".to_owned());
    let server = HttpServer::new(service).workers(2).bind(address)?;
    server.addrs().iter().for_each(|address| println!("orders at http://{address}"));
    server.run().await?;
    if let Ok(running) = Arc::try_unwrap(running.into_inner()) {
        running.drain().await;
    }
    Ok(())
}

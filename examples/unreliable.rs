//! A program whose component fails now and then: one call in twenty by chance, one message in
//! ninety-seven always; it counts its bad luck. `cargo xtask soak` runs it for half an hour, kills it,
//! and counts what comes out.
//!
//! `cargo run --example unreliable -- run FILE`

use brigade::prelude::*;
use serde_json::Value;

const POISON: u64 = 97;

pub(crate) fn check(mut order: Value, cx: &Context) -> Result<Value, Failure> {
    if order["n"].as_u64().is_none_or(|n| n.is_multiple_of(POISON)) {
        return Err(Failure::reject("poison"));
    }
    if fastrand::u32(..20) == 0 {
        // On `/metrics` with the pipeline's and the stage's name.
        cx.counter("bad_luck_total").increment(1);
        return Err(Failure::retry("bad luck"));
    }
    if fastrand::u32(..200) == 0 {
        panic!("worse luck");
    }
    order["checked"] = true.into();
    Ok(order)
}

brigade::main! { check }

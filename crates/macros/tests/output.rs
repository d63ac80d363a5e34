//! What `#[derive(Output)]` makes.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use brigade_core::component::Output as _;
use brigade_macros::Output;
use serde::Serialize;

#[derive(Serialize, Output)]
#[brigade(crate = "brigade_core")]
struct Invoice {
    order: u64,
}

#[derive(Serialize, Output)]
#[brigade(crate = "brigade_core")]
struct Wrapped<T: Serialize> {
    inner: T,
}

#[test]
fn a_derived_type_goes_out_as_json() {
    let emit = Invoice { order: 7 }.into_emit();
    assert_eq!(emit.outputs()[0].payload.as_deref(), Some(&br#"{"order":7}"#[..]));
}

#[test]
fn a_generic_type_can_be_derived() {
    let emit = Wrapped { inner: vec![1] }.into_emit();
    assert_eq!(emit.outputs()[0].payload.as_deref(), Some(&br#"{"inner":[1]}"#[..]));
}

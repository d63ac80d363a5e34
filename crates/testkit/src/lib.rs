//! For tests: [`Driven`] drives one component; [`Trial`] runs a whole pipeline on memory queues,
//! and in [`paused`] with paused time; and the conformance suite tests a connector, including one
//! of your own, with one call.
//!
//! ```ignore
//! brigade_testkit::conformance!(|| my_fixture());
//! ```
//!
//! A [`Fixture`] defines how to make queues; the suite reads the connector's declared
//! [`Features`](brigade_core::connector::Features) and tests each of them, as well as what every
//! connector has to do. See [`mod@conformance`].

#[cfg(feature = "connectors")]
pub mod conformance;

mod drive;
mod faults;
#[cfg(feature = "connectors")]
mod fixture;
mod kept;
mod like;
mod paused;
#[cfg(feature = "connectors")]
pub mod servers;
mod trial;

pub use drive::Driven;
pub use faults::Fault;
#[cfg(feature = "connectors")]
pub use fixture::{Disturb, Fixture};
pub use like::{Like, LikeConnector, LikeConsumer, LikeProducer, LikeStore};
pub use paused::paused;
pub use trial::{Trial, TrialSetup};

/// Defines one test per property of the suite; the argument is a function that makes a
/// [`Fixture`](crate::Fixture). The caller's crate must depend on tokio with `macros` and `rt`.
#[cfg(feature = "connectors")]
#[macro_export]
macro_rules! conformance {
    ($fixture:expr) => {
        $crate::conformance!(@each $fixture;
            a_message_comes_out_as_it_went_in,
            a_big_payload_survives,
            messages_come_in_the_order_in_which_they_were_put,
            what_is_acked_never_comes_again,
            what_a_dropped_consumer_held_comes_again,
            a_failed_attempt_comes_again_after_its_delay,
            a_release_uses_no_attempt,
            competing_consumers_share_without_overlap,
            each_group_gets_every_message,
            a_key_is_with_one_consumer_at_a_time,
            a_late_ack_does_not_undo_what_another_does,
            a_late_failure_does_not_undo_what_another_does,
            what_is_extended_stays_with_its_holder,
            what_only_a_late_holder_extends_comes_again,
            a_consume_that_is_dropped_loses_nothing,
            what_is_put_back_goes_to_another,
            closing_in_the_middle_neither_hangs_nor_loses,
            empty_batches_are_harmless,
            ten_thousand_messages_survive_random_failures,
            a_batch_comes_in_one_answer,
            no_more_bytes_come_than_are_wanted,
            a_queue_in_order_waits_for_what_failed,
            a_finite_queue_ends_and_stays_at_its_end,
            the_lag_is_what_is_there,
            a_full_queue_says_so_and_takes_more_when_there_is_room,
            a_full_queue_that_refuses_refuses,
            an_id_that_is_put_twice_is_stored_once,
            what_is_put_without_an_id_has_one_of_its_own,
            a_parked_message_holds_its_key_until_it_is_released,
            an_ack_and_its_writes_are_one,
            a_lost_lease_writes_nothing,
            a_disturbed_backend_loses_nothing,
            what_a_disturbed_backend_settles_is_put_once,
        );
    };
    (@each $fixture:expr; $($name:ident,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let make = $fixture;
                $crate::conformance::$name(&make()).await;
            }
        )*
    };
}

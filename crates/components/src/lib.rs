//! Components that need no code: named in a pipeline file, with their settings.
//!
//! ```yaml
//! stages:
//!   fresh: { component: { filter: ".delay > 15" }, input: flights, outputs: [late] }
//! ```
//!
//! [`Pass`], [`Log`], [`Filter`], [`Map`], [`Route`], [`Lookup`], [`Dedupe`] and [`Delay`];
//! expressions are in jq, as implemented by the `jaq` crates.

mod dedupe;
mod delay;
mod filter;
mod jq;
mod key;
mod log;
mod lookup;
mod map;
mod pass;
mod route;
mod shared;

use brigade_core::component::ComponentFactory;

pub use dedupe::Dedupe;
pub use delay::Delay;
pub use filter::Filter;
pub use log::Log;
pub use lookup::Lookup;
pub use map::Map;
pub use pass::Pass;
pub use route::Route;

/// All of them.
pub fn all() -> Vec<Box<dyn ComponentFactory>> {
    vec![
        Box::new(Pass),
        Box::new(Log),
        Box::new(Filter),
        Box::new(Map),
        Box::new(Route),
        Box::new(Lookup),
        Box::new(Dedupe),
        Box::new(Delay),
    ]
}

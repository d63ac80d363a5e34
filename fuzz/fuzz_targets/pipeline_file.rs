//! No text panics, hangs or fills the memory, in any of the formats; a file that is good can be
//! drawn, and each error has a place.
#![no_main]

use std::path::Path;

use brigade::Registry;
use brigade::pipeline_file::{Format, GraphFormat, Overrides, load_str};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static REGISTRY: Registry = brigade::registry();
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let format = match kind {
        b'j' => Format::Json,
        b't' => Format::Toml,
        _ => Format::Yaml,
    };
    // A directory that is not there, so that no schema file is read.
    let (nowhere, none) = (Path::new("/nonexistent"), Overrides::default());
    match REGISTRY.with(|all| load_str("p", format, text, nowhere, &none, all)) {
        Ok(loaded) => drop(loaded.topology.graph(GraphFormat::Text)),
        Err(wrong) => assert!(!wrong.0.is_empty(), "refused, and nothing is said"),
    }
});

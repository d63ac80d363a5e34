//! Log lines on standard error, one line each, without disturbing the progress line.

use std::io::{self, IsTerminal, Write};

use brigade_pipeline::LogFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::progress::Progress;

/// Sets up logging; `RUST_LOG` takes precedence over the file's level.
pub(crate) fn set_up(
    format: LogFormat,
    level: Option<&str>,
    progress: &Progress,
) -> anyhow::Result<()> {
    let own = std::env::var("RUST_LOG").ok().filter(|directives| !directives.is_empty());
    let (from, directives) = match &own {
        Some(directives) => ("RUST_LOG", directives.as_str()),
        None => ("`log.level`", level.unwrap_or("info")),
    };
    let filter = EnvFilter::try_new(directives).map_err(|error| {
        anyhow::anyhow!(
            "{from}: expected a level such as `info`, or directives such as `info,brigade=debug`, \
             found `{directives}`: {error}"
        )
    })?;
    let lines = Lines { progress: progress.clone() };
    // It would report a line that cannot be written on standard error, which is the very place.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    let lines = lines.log_internal_errors(false);
    let set = match format {
        LogFormat::Human => {
            lines.with_target(false).with_ansi(io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => lines.json().try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("logging cannot be set up: {error}"))
}

/// Writes each event as one line.
struct Lines {
    progress: Progress,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.progress)
    }
}

struct Line<'a>(&'a Progress);

impl Write for Line<'_> {
    /// Takes one whole event per call, which is how `tracing-subscriber` writes. A line that
    /// standard error does not take is dropped: the pipeline goes on without its log.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = one_line(event);
        let _ = self.0.aside(|| io::stderr().lock().write_all(&line));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The event on one line, with line breaks within it written as `\n` and `\r`: text from outside,
/// such as a component's error, could otherwise forge a line.
fn one_line(event: &[u8]) -> Vec<u8> {
    let text = event.strip_suffix(b"\n").unwrap_or(event);
    let mut line = Vec::with_capacity(event.len() + 1);
    for byte in text {
        match byte {
            b'\n' => line.extend(b"\\n"),
            b'\r' => line.extend(b"\\r"),
            byte => line.push(*byte),
        }
    }
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        assert_eq!(one_line(b"plain\n"), b"plain\n");
        assert_eq!(one_line(b"no end"), b"no end\n");
        assert_eq!(one_line(b"a\nERROR forged\r\n\n"), b"a\\nERROR forged\\r\\n\n");
    }
}

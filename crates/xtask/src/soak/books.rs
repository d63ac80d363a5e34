//! What a page of metrics and a log say about the books of a process.

use anyhow::{Context, ensure};

/// The gauge of what the books cannot account for.
const UNACCOUNTED: &str = "brigade_unaccounted_messages{";
/// What keeps the books of a stage: each is told of it.
const PLACES: [&str; 3] = ["consumer", "edge", "worker"];
/// What is logged where the books do not close, while it runs and at an end.
const OPEN: &str = "the books do not close";

/// Whether this answer to a request for metrics tells of the books of all these stages; `false` if
/// it was cut off, or nothing is told yet.
///
/// # Errors
/// A stage's books do not close, or something is not told of while something else is.
pub(super) fn are_closed(answer: &str, stages: &[&str]) -> anyhow::Result<bool> {
    let Some((head, page)) = answer.split_once("\r\n\r\n") else { return Ok(false) };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    if length.context("the answer has no length")?? != page.len() {
        return Ok(false);
    }
    let books: Vec<&str> = page.lines().filter(|line| line.starts_with(UNACCOUNTED)).collect();
    if books.is_empty() {
        return Ok(false);
    }
    for line in &books {
        ensure!(line.ends_with(" 0"), "the books do not close: {line}");
    }
    for (stage, place) in stages.iter().flat_map(|stage| PLACES.map(|place| (stage, place))) {
        let labels = format!("stage=\"{stage}\",place=\"{place}\"");
        let is_told = books.iter().any(|line| line.contains(&labels));
        ensure!(is_told, "nothing is told of the books of `{stage}`, {place}: {books:?}");
    }
    Ok(true)
}

/// # Errors
/// The log of a process says that its books did not close.
pub(super) fn never_open(log: &str) -> anyhow::Result<()> {
    let open: Vec<&str> = log.lines().filter(|line| line.contains(OPEN)).take(5).collect();
    ensure!(open.is_empty(), "the log says that the books did not close:\n{}", open.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGES: [&str; 2] = ["feed", "check"];

    fn answer(page: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len())
    }

    /// What is told of a stage whose edges lack some messages.
    fn told(stage: &str, messages: u64) -> String {
        let line = |place| {
            let lost = if place == "edge" { messages } else { 0 };
            format!("{UNACCOUNTED}pipeline=\"soak\",stage=\"{stage}\",place=\"{place}\"}} {lost}\n")
        };
        PLACES.map(line).concat()
    }

    #[test]
    fn each_stage_is_looked_at_whichever_comes_first() {
        let (feed, check) = (told("feed", 0), told("check", 0));
        assert!(are_closed(&answer(&format!("{feed}x 1\n{check}")), &STAGES).unwrap());
        for page in [format!("{feed}{}", told("check", 2)), format!("{}{check}", told("feed", 1))] {
            let error = are_closed(&answer(&page), &STAGES).unwrap_err().to_string();
            assert!(error.contains("do not close"), "{error}");
        }
        let error = are_closed(&answer(&feed), &STAGES).unwrap_err().to_string();
        assert!(error.contains("`check`"), "{error}");
    }

    #[test]
    fn what_is_cut_off_or_empty_is_no_look() {
        let whole = answer(&format!("{}{}", told("feed", 0), told("check", 0)));
        assert!(!are_closed(&whole[..whole.len() - 20], &STAGES).unwrap());
        assert!(!are_closed(&answer("x 1\n"), &STAGES).unwrap());
        assert!(!are_closed("", &STAGES).unwrap());
    }

    #[test]
    fn a_log_that_tells_of_open_books_is_refused() {
        never_open("running\nthe books close: 5 messages received, each has an outcome\n").unwrap();
        let error = never_open("running\nERROR the books do not close: this is a defect\n");
        assert!(error.unwrap_err().to_string().contains("a defect"));
    }
}

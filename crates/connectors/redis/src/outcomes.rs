//! What became of each message of a batch that is put in parts.

use brigade_core::connector::{ConnectorError, Produced, Rejected};

use crate::failure::is_unanswered;

/// The most bytes in a part of several messages: even a slow link then answers in time, and the
/// outcome of a batch is known part by part.
const PART_BYTES: usize = 1 << 20;

/// Cuts places into parts of at most `most` messages and, unless it is a single one, `PART_BYTES`.
pub(crate) fn parts(
    places: &[usize],
    most: usize,
    bytes: impl Fn(usize) -> usize,
) -> Vec<&[usize]> {
    let (mut parts, mut first, mut sum) = (Vec::new(), 0, 0_usize);
    for (n, at) in places.iter().enumerate() {
        let more = bytes(*at);
        if n > first && (n - first >= most || sum.saturating_add(more) > PART_BYTES) {
            parts.push(&places[first..n]);
            (first, sum) = (n, 0);
        }
        sum = sum.saturating_add(more);
    }
    if first < places.len() {
        parts.push(&places[first..]);
    }
    parts
}

/// What is known so far about a batch's messages.
pub(crate) struct Outcomes(Vec<Option<Produced>>);

impl Outcomes {
    /// For a batch of which some messages are refused.
    pub(crate) fn new(refused: impl Iterator<Item = Option<Rejected>>) -> Self {
        Self(refused.map(|why| why.map(Produced::Rejected)).collect())
    }

    /// Refuses a message, unless it already has an outcome.
    pub(crate) fn refuse(&mut self, at: usize, why: Rejected) {
        self.0[at].get_or_insert(Produced::Rejected(why));
    }

    /// The places of the messages without an outcome.
    pub(crate) fn unknown(&self) -> Vec<usize> {
        let known = self.0.iter().enumerate();
        known.filter(|(_, outcome)| outcome.is_none()).map(|(at, _)| at).collect()
    }

    /// Records what became of a part: one result for each message, or one error for all. Returns
    /// whether all of them were put.
    ///
    /// # Errors
    /// No answer came, and no message tried so far has an outcome: the error is for the whole
    /// batch.
    pub(crate) fn enter(
        &mut self,
        places: &[usize],
        put: Result<Vec<Result<(), ConnectorError>>, ConnectorError>,
    ) -> Result<bool, ConnectorError> {
        let put = match put {
            Ok(put) => put,
            Err(error) if is_unanswered(&error) && !self.is_begun() => return Err(error),
            Err(error) => places.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut all_stand = true;
        for (at, put) in places.iter().zip(put) {
            all_stand &= put.is_ok();
            self.0[*at] = Some(put.map_or_else(Produced::Failed, |()| Produced::Confirmed));
        }
        Ok(all_stand)
    }

    /// Whether any message that was tried has an outcome.
    fn is_begun(&self) -> bool {
        self.0.iter().flatten().any(|outcome| !matches!(outcome, Produced::Rejected(_)))
    }

    /// What became of each message. One that was not tried gets the error of the first that failed.
    pub(crate) fn all(self) -> Vec<Produced> {
        let error = self.0.iter().find_map(|outcome| match outcome {
            Some(Produced::Failed(error)) => Some(error.clone()),
            _ => None,
        });
        let error = error.unwrap_or_else(|| ConnectorError::transient("it was not put"));
        let untried = || Produced::Failed(error.clone());
        self.0.into_iter().map(|outcome| outcome.unwrap_or_else(untried)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_neither_too_many_messages_nor_too_many_bytes_unless_it_is_one() {
        const HALF: usize = PART_BYTES / 2;
        let sizes = [1, 1, 1, HALF, HALF, HALF, usize::MAX, 1, 2 * PART_BYTES, 0];
        let places: Vec<usize> = (0..sizes.len()).collect();
        let cut = parts(&places, 3, |at| sizes[at]);
        let wanted: [&[usize]; 7] = [&[0, 1, 2], &[3, 4], &[5], &[6], &[7], &[8], &[9]];
        assert_eq!(cut, wanted);
        assert!(parts(&[], 3, |_| 1).is_empty());
    }
}

//! What became of each message of a batch that is put in parts.

use brigade_core::connector::{ConnectorError, Produced, Rejected};

use crate::told::is_unanswered;

/// What is known of a batch's messages so far.
pub(crate) struct Outcomes(Vec<Option<Produced>>);

impl Outcomes {
    /// Of a batch of which some are refused.
    pub(crate) fn new(refused: impl Iterator<Item = Option<Rejected>>) -> Self {
        Self(refused.map(|why| why.map(Produced::Rejected)).collect())
    }

    /// One is refused, if it is not yet.
    pub(crate) fn refuse(&mut self, at: usize, why: Rejected) {
        self.0[at].get_or_insert(Produced::Rejected(why));
    }

    /// The places of those of which nothing is known.
    pub(crate) fn unknown(&self) -> Vec<usize> {
        let known = self.0.iter().enumerate();
        known.filter(|(_, outcome)| outcome.is_none()).map(|(at, _)| at).collect()
    }

    /// Enters what became of a part: of each, or an error, which is about all. Says whether all of it stands.
    ///
    /// # Errors
    /// No answer came, and of no message that was tried anything is known: the error is about the whole batch.
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

    /// Whether something is known of what was tried.
    fn is_begun(&self) -> bool {
        self.0.iter().flatten().any(|outcome| !matches!(outcome, Produced::Rejected(_)))
    }

    /// What became of each. What was not tried waits for what failed.
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

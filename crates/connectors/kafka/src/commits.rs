//! Commits what is resolved, even during a rebalance of the group.

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use crate::assignment::Place;

/// What can be committed of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) place: Place,
    pub(crate) offset: i64,
    pub(crate) metadata: String,
    /// Its slot, which of the slot's ledgers it is from, and how often something in that was
    /// resolved.
    pub(crate) slot: usize,
    pub(crate) epoch: u64,
    pub(crate) resolved: u64,
}

/// What a broker's refusal of a commit means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The group is being rebalanced: what this member keeps can soon be committed. It may have
    /// sent the request under its previous membership.
    SharedOut,
    /// It is no longer a member: all its partitions belong to others, which handle the messages
    /// again.
    Lost,
    Other,
}

impl Refusal {
    fn of(error: &KafkaError) -> Self {
        match error.rdkafka_error_code() {
            Some(Code::RebalanceInProgress | Code::IllegalGeneration | Code::StaleMemberEpoch) => {
                Self::SharedOut
            }
            Some(Code::UnknownMemberId | Code::FencedMemberEpoch) => Self::Lost,
            _ => Self::Other,
        }
    }
}

/// Commits what is `owed`, which is called for each attempt: a partition that has gone to another
/// member meanwhile owes nothing here. `wait` is called before each further attempt, and returns
/// whether to make it. Returns what the broker has, without what has gone meanwhile.
///
/// # Errors
/// The broker takes none, and the partitions are still this member's as far as it knows.
pub(crate) fn commit_owed(
    owed: impl Fn() -> Vec<Commit>,
    mut commit: impl FnMut(&[Commit]) -> KafkaResult<()>,
    mut wait: impl FnMut() -> bool,
) -> KafkaResult<Vec<Commit>> {
    loop {
        let commits = owed();
        let Err(error) = commit(&commits) else { return Ok(commits) };
        match Refusal::of(&error) {
            Refusal::SharedOut if wait() => {}
            Refusal::Lost => return Ok(Vec::new()),
            Refusal::SharedOut | Refusal::Other => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Instant;

    use brigade_core::Message;
    use brigade_core::connector::{Order, Receipt, Want};

    use super::*;
    use crate::assignment::{Arrival, Assignment};

    /// Assigns these partitions, with one message each, which is resolved.
    fn resolve(assignment: &mut Assignment, places: &[Place]) -> Vec<Receipt> {
        for place in places {
            assert!(assignment.assign(place.clone(), None));
            assert!(assignment.arrive(place, 0, Arrival::plain(Message::new("x"))));
        }
        let want = Want { messages: places.len(), bytes: usize::MAX };
        let taken = assignment.take(want, Order::None, Instant::now());
        let receipts: Vec<Receipt> = taken.iter().map(|one| one.receipt).collect();
        assignment.resolve(&receipts);
        receipts
    }

    fn resolved() -> (Assignment, [Place; 2]) {
        let places: [Place; 2] = [("topic".into(), 0), ("topic".into(), 1)];
        let mut assignment = Assignment::default();
        resolve(&mut assignment, &places);
        (assignment, places)
    }

    fn refused(code: Code) -> KafkaResult<()> {
        Err(KafkaError::ConsumerCommit(code))
    }

    fn places(commits: &[Commit]) -> Vec<Place> {
        commits.iter().map(|commit| commit.place.clone()).collect()
    }

    /// For example one after the other, when a member keeps most of what it had.
    #[test]
    fn of_partitions_that_went_nothing_is_ours_though_they_come_back() {
        let (mut assignment, places) = resolved();
        let commits = assignment.to_commit();
        assert_eq!(assignment.still_ours(&commits), commits);
        assignment.revoke(&places[0]);
        let ours = |assignment: &Assignment| {
            let ours = assignment.still_ours(&commits).into_iter();
            ours.map(|commit| commit.place).collect::<Vec<_>>()
        };
        assert_eq!(ours(&assignment), places[1..]);
        assert!(assignment.assign(places[0].clone(), None));
        assert_eq!(ours(&assignment), places[1..]);
    }

    #[test]
    fn what_was_refused_is_committed_of_the_partitions_that_stay() {
        for code in [Code::RebalanceInProgress, Code::IllegalGeneration, Code::StaleMemberEpoch] {
            let (assignment, [stays, goes]) = resolved();
            let assignment = RefCell::new(assignment);
            let mut asked = Vec::new();
            let commit = |commits: &[Commit]| {
                asked.push(places(commits));
                if asked.len() == 1 { refused(code) } else { Ok(()) }
            };
            let wait = || {
                assignment.borrow_mut().revoke(&goes);
                true
            };
            let done = commit_owed(|| assignment.borrow().to_commit(), commit, wait);
            let done = done.expect("it is taken");
            assert_eq!(asked, [vec![stays.clone(), goes.clone()], vec![stays.clone()]], "{code}");
            assignment.borrow_mut().committed(&done);
            assert_eq!(assignment.borrow().to_commit(), []);
        }
    }

    #[test]
    fn what_is_refused_for_long_or_for_another_reason_is_told() {
        let (assignment, _) = resolved();
        let try_all = |code, times: u32| {
            let (mut asked, mut waited) = (0, 0);
            let commit = |_: &[Commit]| {
                asked += 1;
                refused(code)
            };
            let wait = || {
                waited += 1;
                waited < times
            };
            let done = commit_owed(|| assignment.to_commit(), commit, wait);
            (done.map_err(|error| error.rdkafka_error_code()), asked)
        };
        let code = Code::IllegalGeneration;
        assert_eq!(try_all(code, 3), (Err(Some(code)), 3), "nobody else has them");
        let code = Code::GroupAuthorizationFailed;
        assert_eq!(try_all(code, 3), (Err(Some(code)), 1));
        assert_eq!(try_all(Code::UnknownMemberId, 3), (Ok(Vec::new()), 1), "they are others'");
    }

    /// The partition went, or came back, while the commit was pending.
    #[test]
    fn a_late_answer_is_of_the_ledger_that_asked() {
        let places: [Place; 1] = [("topic".into(), 0)];
        for comes_back in [false, true] {
            let mut assignment = Assignment::default();
            let first = resolve(&mut assignment, &places);
            let (marks, commits) = (assignment.marks(&first), assignment.to_commit());
            assignment.revoke(&places[0]);
            let later = comes_back.then(|| resolve(&mut assignment, &places));
            assignment.committed(&commits);
            match later {
                None => assert_eq!(assignment.uncommitted(&first, &marks), []),
                Some(later) => {
                    let marks = assignment.marks(&later);
                    assert_eq!(assignment.uncommitted(&later, &marks), later);
                    assert_eq!(assignment.to_commit().len(), 1, "it is still owed");
                }
            }
        }
    }
}

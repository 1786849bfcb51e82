//! The models, one file for each part of the protocol.
#![expect(clippy::unwrap_used, reason = "a model that panics has failed")]

mod detach;
mod exchange;
mod exclude;
mod hazard;
mod hole;
mod identity;
mod lock;
mod wait;
mod whole;

use crate::harness::{Change, Model};

/// All of them.
pub(crate) static ALL: [Model; 73] = [
    exchange::INCREMENT,
    exchange::CLAIM,
    exchange::SLEEPER,
    lock::READ_AGAINST_WRITE,
    lock::READ_ACROSS_EDITS,
    lock::SETTLED,
    lock::TWO_READERS,
    lock::FULL,
    detach::REUSE,
    detach::APPEAR,
    detach::REUSE_ELSEWHERE,
    detach::TWO_EDITORS,
    detach::LATE_PUT,
    hole::SPLIT,
    hole::SPLIT_SETTLED,
    hole::SHIFT,
    hole::RECYCLED_NODE,
    hole::RECYCLED_WORD,
    hole::RECYCLED_STAMP,
    hole::REPLACED,
    wait::FUTEX,
    wait::WAKE,
    wait::BLOCKING_READ,
    wait::CANCELLED_WAIT,
    exclude::EXCLUDE_REMOVE,
    exclude::EXCLUDE_UPDATE,
    exclude::GATE,
    exclude::TWO_SLEEPERS,
    exclude::LATE_SLEEPER,
    exclude::ABANDON,
    exclude::TWO_REMOVALS,
    exclude::TWO_WAITERS,
    exclude::EDIT_RANGE,
    exclude::HOLE_IN_RANGE,
    exclude::IDLE,
    exclude::TAKEN_IN,
    exclude::NEIGHBOUR,
    exclude::THREE_WAYS,
    hazard::PUBLISHED,
    hazard::NEXT_VISIT,
    hazard::CLONED,
    hazard::COUNTED_ONCE,
    hazard::NOT_IDLE,
    hazard::GIVEN_UP,
    hazard::TAKEN_OVER,
    hazard::REGISTER,
    hazard::ELSEWHERE,
    hazard::BARRIER,
    hazard::BARRIER_NEXT_VISIT,
    hazard::BARRIER_GIVEN_UP,
    hazard::AGAIN,
    hazard::AT_A_RESERVATION,
    hazard::AT_THE_END,
    hazard::REGISTER_ELSEWHERE,
    identity::REPLACED_BY_ANOTHER,
    identity::SAME_SLOT,
    identity::NEXT_VERSION,
    identity::FIRST_IDENTITY,
    identity::UNVALIDATED_WALK,
    whole::SPACE_END,
    whole::FORGOTTEN,
    whole::RESERVE,
    whole::RESERVED_TOO_EARLY,
    whole::RESERVED_READ,
    whole::ROLL_BACK,
    whole::ITERATION,
    whole::LAST,
    whole::TORN,
    whole::PASSING,
    whole::CURSOR,
    whole::FORK,
    whole::DOWNGRADE,
    whole::TAG_IN_WORD,
];

/// The models in which two edges meet: each fails if either of the two is weakened.
pub(crate) fn that_meet(one: &str, other: &str) -> impl Iterator<Item = &'static Model> {
    ALL.iter().filter(move |model| {
        [one, other].iter().all(|edge| {
            let weakens = |change| matches!(change, Change::Weaken(name) if name == *edge);
            model.mutants.iter().any(|mutant| weakens(mutant.change))
        })
    })
}

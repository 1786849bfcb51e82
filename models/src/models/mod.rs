//! The models, one file for each part of the protocol.
#![expect(clippy::unwrap_used, reason = "a model that panics has failed")]

mod detach;
mod discussion;
mod exclude;
mod hazard;
mod hole;
mod identity;
mod lock;
mod mmap_lock;
mod operations;
mod range_locks;
mod wait;

use crate::harness::{Change, Model};

/// All models.
pub(crate) static ALL: [Model; 92] = [
    discussion::ACQUIRE_BEFORE_CHECK,
    discussion::DETACH_WAITS,
    discussion::STALE_READER,
    lock::READ_AGAINST_WRITE,
    lock::READ_ACROSS_EDITS,
    lock::WATERMARK,
    lock::TWO_READERS,
    lock::FULL,
    detach::REUSE,
    detach::APPEAR,
    detach::REUSE_OTHER_SPACE,
    detach::TWO_EDITORS,
    detach::LATE_RELEASE,
    hole::SPLIT,
    hole::SPLIT_WATERMARK,
    hole::SHIFT,
    hole::RECYCLED_NODE,
    hole::RECYCLED_WORD,
    hole::RECYCLED_VERSION,
    hole::REPLACED,
    hole::LEAF,
    hole::LEAF_UNVALIDATED,
    hole::LEAF_MERGED,
    hole::LEAF_OF_ANOTHER,
    wait::FUTEX,
    wait::WAKE,
    wait::BLOCKING_READ,
    wait::CANCELLED_WAIT,
    exclude::EXCLUDE_REMOVE,
    exclude::EXCLUDE_UPDATE,
    exclude::REFUSED_READER,
    exclude::TWO_SLEEPERS,
    exclude::LATE_SLEEPER,
    exclude::ABANDON,
    exclude::TWO_REMOVALS,
    exclude::TWO_WAITERS,
    exclude::EDIT_RANGE,
    exclude::EDIT_RANGE_GIVES_UP,
    exclude::HOLE_IN_RANGE,
    exclude::IDLE,
    exclude::MERGE_IF_IDLE,
    exclude::NEIGHBOUR,
    exclude::THREE_WAYS,
    hazard::PUBLISHED,
    hazard::NEXT_PUBLICATION,
    hazard::CLONED,
    hazard::TRANSFERRED_ONCE,
    hazard::NOT_IDLE,
    hazard::GIVEN_UP,
    hazard::TAKEN_OVER,
    hazard::REGISTER,
    hazard::OTHER_SPACE,
    hazard::BARRIER,
    hazard::BARRIER_NEXT_PUBLICATION,
    hazard::BARRIER_GIVEN_UP,
    hazard::IDLE_READER,
    hazard::IDLE_NO_LONGER,
    hazard::MADE_IDLE,
    hazard::GIVEN_UP_OTHER_SPACE,
    hazard::HELD_TWICE,
    hazard::LATE_AT_RESERVATION,
    hazard::LATE_AT_SPACE_END,
    hazard::REGISTER_OTHER_SPACE,
    identity::REPLACED_BY_ANOTHER,
    identity::SAME_SLOT,
    identity::NEXT_VERSION,
    identity::FIRST_IDENTITY,
    identity::UNVALIDATED_WALK,
    operations::SPACE_END,
    operations::FORGOTTEN,
    operations::RESERVE,
    operations::RESERVED_TOO_EARLY,
    operations::RESERVED_READ,
    operations::ROLL_BACK,
    operations::ITERATION,
    operations::NO_NEXT,
    operations::TORN,
    operations::SKIP_RESERVATIONS,
    operations::CURSOR,
    operations::FORK,
    operations::DOWNGRADE,
    operations::TAG_IN_WORD,
    range_locks::CLOSED,
    range_locks::IN_TURN,
    range_locks::OPENED,
    mmap_lock::WRITERS,
    mmap_lock::THREE_WRITERS,
    mmap_lock::READER,
    mmap_lock::JOINED,
    mmap_lock::WOKEN_IN_VAIN,
    mmap_lock::GIVES_UP_WOKEN,
    mmap_lock::GIVES_UP_READERS,
];

/// The models that fail if either of two edges is weakened.
pub(crate) fn that_meet(one: &str, other: &str) -> impl Iterator<Item = &'static Model> {
    ALL.iter().filter(move |model| {
        [one, other].iter().all(|edge| {
            let weakens = |change| matches!(change, Change::Weaken(name) if name == *edge);
            model.mutants.iter().any(|mutant| weakens(mutant.change))
        })
    })
}

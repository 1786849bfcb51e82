//! The models, one file for each part of the protocol.
#![expect(clippy::unwrap_used, reason = "a model that panics has failed")]

mod detach;
mod exclude;
mod hole;
mod lock;
mod wait;
mod whole;

use crate::harness::Model;

/// All of them.
pub const ALL: [Model; 28] = [
    lock::ADMISSION,
    lock::READ_AGAINST_WRITE,
    lock::READ_ACROSS_EDITS,
    detach::REUSE,
    detach::APPEAR,
    detach::REUSE_ELSEWHERE,
    detach::TWO_EDITORS,
    hole::SPLIT,
    hole::RECYCLED_NODE,
    wait::FUTEX,
    wait::WAKE,
    wait::BLOCKING_READ,
    exclude::EXCLUDE_REMOVE,
    exclude::EXCLUDE_UPDATE,
    exclude::GATE,
    exclude::ABANDON,
    exclude::TWO_REMOVALS,
    exclude::TWO_WAITERS,
    exclude::HOLE_IN_RANGE,
    exclude::IDLE,
    whole::SPACE_END,
    whole::RESERVE,
    whole::ROLL_BACK,
    whole::ITERATION,
    whole::CURSOR,
    whole::FORK,
    whole::DOWNGRADE,
    whole::TAG_IN_WORD,
];

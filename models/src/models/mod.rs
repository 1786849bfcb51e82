//! The models, one file for each part of the protocol.
#![expect(clippy::unwrap_used, reason = "a model that panics has failed")]

mod detach;
mod exchange;
mod exclude;
mod hole;
mod lock;
mod wait;
mod whole;

use crate::harness::Model;

/// All of them.
pub const ALL: [Model; 41] = [
    exchange::INCREMENT,
    exchange::CLAIM,
    exchange::SLEEPER,
    lock::READ_AGAINST_WRITE,
    lock::READ_ACROSS_EDITS,
    lock::TWO_READERS,
    lock::FULL,
    detach::REUSE,
    detach::APPEAR,
    detach::REUSE_ELSEWHERE,
    detach::TWO_EDITORS,
    detach::STALE_NUMBER,
    detach::LATE_PUT,
    hole::SPLIT,
    hole::SHIFT,
    hole::RECYCLED_NODE,
    hole::RECYCLED_WORD,
    wait::FUTEX,
    wait::WAKE,
    wait::BLOCKING_READ,
    wait::CANCELLED_WAIT,
    exclude::EXCLUDE_REMOVE,
    exclude::EXCLUDE_UPDATE,
    exclude::GATE,
    exclude::ABANDON,
    exclude::TWO_REMOVALS,
    exclude::TWO_WAITERS,
    exclude::HOLE_IN_RANGE,
    exclude::IDLE,
    exclude::NEIGHBOUR,
    exclude::THREE_WAYS,
    whole::SPACE_END,
    whole::FORGOTTEN,
    whole::RESERVE,
    whole::RESERVED_READ,
    whole::ROLL_BACK,
    whole::ITERATION,
    whole::CURSOR,
    whole::FORK,
    whole::DOWNGRADE,
    whole::TAG_IN_WORD,
];

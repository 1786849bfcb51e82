//! The models, one file for each part of the protocol.
#![expect(clippy::unwrap_used, reason = "a model that panics has failed")]

mod detach;
mod hole;
mod lock;
mod wait;

use crate::harness::Model;

/// All of them.
pub const ALL: [Model; 12] = [
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
];

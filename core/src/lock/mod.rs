//! The VMA lock: a count and a sequence number in every VMA, one sequence number in the space.
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

mod seq;
mod vma;

pub use seq::{EditSeq, NodeVersion, SpaceSeq, Watermark};
pub(crate) use vma::{EXCLUDED, LIMIT};
pub use vma::{EventKey, Refused, VmaLock};

//! The VMA lock: a count and a sequence number in every VMA, one sequence number in the space.

mod seq;
mod vma;

pub use seq::{EditSeq, NodeVersion, SpaceSeq, Watermark};
#[cfg(all(test, not(pervma_model)))]
pub(crate) use vma::LIMIT;
pub use vma::{EventKey, Refused, VmaLock};

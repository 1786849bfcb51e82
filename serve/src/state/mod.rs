//! What is known of a client, as plain data.

use std::ops::Range;

#[cfg(test)]
pub(crate) mod deaths;
pub(crate) mod descriptors;
pub(crate) mod inbox;
pub(crate) mod journal;
pub(crate) mod memory;
pub(crate) mod record;
pub(crate) mod ring;
pub(crate) mod store;
pub(crate) mod table;

/// What belongs to a range of a client's memory, as long as it is missing: numbers only, all of one
/// size, so that they can be stored, sent, and read by another version of this library
/// ([`VERSION`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The address of its first byte, in the client.
    pub start: u64,
    /// Its length in bytes, whole pages of its size.
    pub len: u64,
    /// Where its bytes begin in the source, if it is [`Extent::SOURCE`].
    pub offset: u64,
    /// The size of its pages in bytes: 4096, or that of huge pages.
    pub page_size: u32,
    /// [`Extent::SOURCE`], [`Extent::ZEROS`] or [`Extent::POISONED`].
    pub content: u32,
}

/// The version of [`Extent`]'s layout, and of all else that a process leaves to the next one.
pub const VERSION: u32 = 2;

impl Extent {
    /// Its bytes are those of the source.
    pub const SOURCE: u32 = 0;
    /// It reads as zeros, since it was removed.
    pub const ZEROS: u32 = 1;
    /// What was missing of it is poisoned: the client cannot be served.
    pub const POISONED: u32 = 2;

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }
}

const _: () = assert!(size_of::<Extent>() == 32);

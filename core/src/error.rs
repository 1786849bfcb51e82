//! What can go wrong, with the addresses, and with what was passed in given back.

use core::fmt;
use core::ops::Range;

use crate::range::RangeError;

/// Why an address could not be read-locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadError {
    /// Nothing is mapped there, and nothing was during the whole lookup.
    NotMapped {
        /// The address that was looked up.
        addr: usize,
    },
    /// The VMA is write-locked, or changes went on during every one of the walks, or so many other
    /// readers came and went that the count would not hold still. Wait, and look again; only
    /// `try_read` reports it.
    Locked {
        /// The address that was looked up.
        addr: usize,
    },
    /// The VMA has as many readers as its count can hold (2³⁰ - 2).
    Busy {
        /// The address that was looked up.
        addr: usize,
    },
    /// The thread itself edits this space: it would wait for itself. Use the edit.
    OwnEdit {
        /// The address that was looked up.
        addr: usize,
    },
    /// The lookup would have to wait for an edit while the thread holds a guard of this space,
    /// which that edit may be waiting for. Drop the guard first. Only `read` reports it.
    GuardHeld {
        /// The address that was looked up.
        addr: usize,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotMapped { addr } => write!(f, "nothing is mapped at {addr:#x}"),
            Self::Locked { addr } => write!(f, "the mapping at {addr:#x} is being changed"),
            Self::Busy { addr } => write!(f, "the mapping at {addr:#x} has too many readers"),
            Self::OwnEdit { addr } => {
                write!(f, "reading {addr:#x} would wait for this thread's own edit")
            }
            Self::GuardHeld { addr } => {
                write!(
                    f,
                    "reading {addr:#x} would wait while this thread holds a guard of the space"
                )
            }
        }
    }
}

impl core::error::Error for ReadError {}

/// Why an edit could not begin: it would have waited for its own thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EditError {
    /// The thread already edits this space.
    OwnEdit,
    /// The thread holds a guard of this space, which the edit could end up waiting for.
    GuardHeld,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnEdit => "this thread already edits the space",
            Self::GuardHeld => "this thread holds a guard of the space",
        })
    }
}

impl core::error::Error for EditError {}

/// No slot, no tree node or no memory was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Why a payload could not be inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InsertErrorKind {
    /// The range cannot be used.
    Range(RangeError),
    /// Something is mapped there.
    Overlap {
        /// The range of the first VMA in the way.
        existing: Range<usize>,
    },
    /// No memory; nothing has changed.
    OutOfMemory,
}

/// An insertion that changed nothing, with the payload it gives back.
#[derive(Clone)]
pub struct InsertError<P> {
    /// What was wrong.
    pub kind: InsertErrorKind,
    /// Where it was to be inserted.
    pub range: Range<usize>,
    /// What was to be inserted.
    pub payload: P,
}

impl<P> fmt::Debug for InsertError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InsertError")
            .field("kind", &self.kind)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl<P> fmt::Display for InsertError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            InsertErrorKind::Range(error) => error.fmt(f),
            InsertErrorKind::Overlap { existing } => {
                write!(f, "{:#x}..{:#x} is already mapped", existing.start, existing.end)
            }
            InsertErrorKind::OutOfMemory => {
                let Range { start, end } = self.range;
                write!(f, "no memory to map {start:#x}..{end:#x}")
            }
        }
    }
}

impl<P> core::error::Error for InsertError<P> {}

/// Why nothing was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemoveError {
    /// The range cannot be used.
    Range(RangeError),
    /// Nothing is mapped in the range.
    NotMapped {
        /// The range that was to be removed.
        range: Range<usize>,
    },
    /// The range would cut a VMA in two, and a payload is never split behind its owner's back.
    PartlyCovered {
        /// The range of the VMA that sticks out.
        vma: Range<usize>,
    },
    /// The thread holds a guard of this space, perhaps of a VMA in the range: the removal could
    /// wait for it for ever.
    GuardHeld {
        /// The range that was to be removed.
        range: Range<usize>,
    },
    /// No memory for the list of what was removed.
    OutOfMemory {
        /// The range that was to be removed.
        range: Range<usize>,
    },
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::NotMapped { range } => {
                write!(f, "nothing is mapped in {:#x}..{:#x}", range.start, range.end)
            }
            Self::PartlyCovered { vma } => {
                write!(f, "the mapping {:#x}..{:#x} is only partly covered", vma.start, vma.end)
            }
            Self::GuardHeld { range } => write!(
                f,
                "removing {:#x}..{:#x} could wait for a guard that this thread holds",
                range.start, range.end
            ),
            Self::OutOfMemory { range } => {
                write!(f, "no memory to list what {:#x}..{:#x} held", range.start, range.end)
            }
        }
    }
}

impl core::error::Error for RemoveError {}

/// Why a VMA was not write-locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// Nothing is mapped there.
    NotMapped {
        /// The address that was looked up.
        addr: usize,
    },
    /// The thread holds a guard of this space, perhaps of this VMA: it could wait for itself.
    GuardHeld {
        /// The address that was looked up.
        addr: usize,
    },
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotMapped { addr } => write!(f, "nothing is mapped at {addr:#x}"),
            Self::GuardHeld { addr } => {
                write!(f, "write-locking {addr:#x} could wait for a guard that this thread holds")
            }
        }
    }
}

impl core::error::Error for WriteError {}

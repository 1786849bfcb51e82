//! What can go wrong, with the addresses, and with what was passed in given back.

use core::fmt;
use core::ops::Range;

use crate::range::RangeError;

/// Why an address could not be read-locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadError {
    /// Nothing was mapped at the address at a moment during the lookup, between two edits.
    NotMapped {
        /// The address that was looked up.
        addr: usize,
    },
    /// The VMA is write-locked, or the address is next to a change that is under way, or other
    /// readers kept changing the VMA's count. Try again, or call `read`; only the lookups that do
    /// not wait report it.
    Locked {
        /// The address that was looked up.
        addr: usize,
    },
    /// The VMA has as many readers as its count can hold (2²⁹ - 1).
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
    /// The thread itself excludes readers from a range of this space, perhaps from this address:
    /// it could wait for itself. Finish the exclusion, or drop it.
    OwnExclusion {
        /// The address that was looked up.
        addr: usize,
    },
    /// The address is [reserved](crate::Reservation): nothing is mapped there yet.
    Reserved {
        /// The address that was looked up.
        addr: usize,
    },
    /// The VMA that the [`VmaId`](crate::VmaId) names is not attached any more, or is another
    /// space's. Only lookups by id report it.
    Gone {
        /// The start of the VMA.
        addr: usize,
    },
    /// The space was [abandoned](crate::AddressSpace::abandon_after_fork) after a fork.
    Forked,
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
            Self::OwnExclusion { addr } => {
                write!(f, "reading {addr:#x} could wait for this thread's own exclusion")
            }
            Self::Reserved { addr } => write!(f, "{addr:#x} is reserved, with nothing mapped yet"),
            Self::Gone { addr } => write!(f, "the mapping that started at {addr:#x} is gone"),
            Self::Forked => EditError::Forked.fmt(f),
        }
    }
}

impl core::error::Error for ReadError {}

/// Why an edit could not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EditError {
    /// The thread already edits this space.
    OwnEdit,
    /// The thread holds a guard of this space, which the edit could end up waiting for.
    GuardHeld,
    /// The space was [abandoned](crate::AddressSpace::abandon_after_fork) after a fork.
    Forked,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnEdit => "this thread already edits the space",
            Self::GuardHeld => "this thread holds a guard of the space",
            Self::Forked => "the space was abandoned after a fork",
        })
    }
}

impl core::error::Error for EditError {}

/// The thread would wait for a range lock while it has one itself, of the same
/// [`RangeLocks`](crate::RangeLocks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRangeLock(pub(crate) ());

impl fmt::Display for OwnRangeLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this thread would wait for a range lock and has one itself")
    }
}

impl core::error::Error for OwnRangeLock {}

/// Why a space was not prepared for fork(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForkError {
    /// The thread edits this space.
    OwnEdit,
    /// The thread holds a guard or a view of this space, and an edit that it would wait for could
    /// wait for that.
    GuardHeld,
    /// The thread excludes readers from a range of this space.
    OwnExclusion,
    /// The thread is in a [`HandlerScope`](crate::HandlerScope), or in a call that a slab makes for
    /// memory: it must not wait.
    InHandler,
    /// The platform cannot do it.
    Unsupported,
    /// The space was [abandoned](crate::AddressSpace::abandon_after_fork) after a fork.
    Forked,
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnEdit => EditError::OwnEdit.fmt(f),
            Self::GuardHeld => EditError::GuardHeld.fmt(f),
            Self::OwnExclusion => f.write_str("this thread excludes a part of the space"),
            Self::InHandler => f.write_str("this thread must not wait where it is"),
            Self::Unsupported => f.write_str("the platform cannot go on after a fork"),
            Self::Forked => EditError::Forked.fmt(f),
        }
    }
}

impl core::error::Error for ForkError {}

/// Why a reader was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegisterError {
    /// The thread already edits this space: it would wait for itself.
    OwnEdit,
    /// The thread holds a guard of this space, and an edit that it would wait for could wait for
    /// that.
    GuardHeld,
    /// No memory was left.
    OutOfMemory,
    /// The space was [abandoned](crate::AddressSpace::abandon_after_fork) after a fork.
    Forked,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnEdit => EditError::OwnEdit.fmt(f),
            Self::GuardHeld => EditError::GuardHeld.fmt(f),
            Self::OutOfMemory => f.write_str("no memory to register a reader"),
            Self::Forked => EditError::Forked.fmt(f),
        }
    }
}

impl core::error::Error for RegisterError {}

impl From<EditError> for ForkError {
    fn from(error: EditError) -> Self {
        match error {
            EditError::OwnEdit => Self::OwnEdit,
            EditError::GuardHeld => Self::GuardHeld,
            EditError::Forked => Self::Forked,
        }
    }
}

impl From<EditError> for RegisterError {
    fn from(error: EditError) -> Self {
        match error {
            EditError::OwnEdit => Self::OwnEdit,
            EditError::GuardHeld => Self::GuardHeld,
            EditError::Forked => Self::Forked,
        }
    }
}

impl From<EditError> for ChangeError {
    fn from(error: EditError) -> Self {
        match error {
            EditError::OwnEdit => Self::OwnEdit,
            EditError::GuardHeld => Self::GuardHeld,
            EditError::Forked => Self::Forked,
        }
    }
}

impl From<RangeError> for ChangeError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

/// The payload is dropped.
impl<T> From<InsertError<T>> for ChangeError {
    fn from(error: InsertError<T>) -> Self {
        error.kind
    }
}

impl From<OutOfMemory> for RegisterError {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// No slot, no tree node or no memory was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfMemory;

/// Why a range was not changed. Nothing has changed then, and readers are admitted.
///
/// Where several reasons apply, the first in this list is given. Reasons that other threads bring
/// about while an operation is under way are given when they are met; closures may have run by
/// then, on payloads that were never mapped. What is in the way of an insertion is the first thing
/// there, an excluded VMA too ([`Excluded`](Self::Excluded)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeError {
    /// The range, or the one to move to, cannot be used.
    Range(RangeError),
    /// The thread edits this space: it would wait for itself. Use the edit.
    OwnEdit,
    /// The thread holds a guard of this space, perhaps of a VMA in the range: it could wait for
    /// itself.
    GuardHeld,
    /// The thread excludes readers from a range of this space: it could wait for itself.
    OwnExclusion,
    /// The space was [abandoned](crate::AddressSpace::abandon_after_fork) after a fork.
    Forked,
    /// Nothing is mapped or reserved in the range; or, for an update, in this part of it.
    NotMapped {
        /// The range without a mapping.
        range: Range<usize>,
    },
    /// Part of the range is reserved.
    Reserved {
        /// The first reservation in the range.
        range: Range<usize>,
    },
    /// Another thread excludes readers from a VMA in the range and is about to change it. Only an
    /// edit reports it, since the other thread needs an edit to go on; operations that wait outside
    /// of edits, and [`edit_range`](crate::AddressSpace::edit_range), wait for it.
    Excluded {
        /// The first such VMA.
        vma: Range<usize>,
    },
    /// Something is in the way.
    Overlap {
        /// The first VMA or reservation in the way.
        existing: Range<usize>,
    },
    /// The range would split a VMA whose payload cannot be split
    /// ([`Payload::split`](crate::Payload::split)).
    PartlyCovered {
        /// The VMA.
        vma: Range<usize>,
    },
    /// The function that makes payloads has made one that may not be mapped
    /// ([`Payload::may_be_mapped`](crate::Payload::may_be_mapped)).
    GivenUp {
        /// What was to have it.
        part: Range<usize>,
    },
    /// No slot, no tree node or no memory.
    OutOfMemory {
        /// The range that was to be changed.
        range: Range<usize>,
    },
}

/// `start..end` in hexadecimal.
struct Hex<'a>(&'a Range<usize>);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.0.start, self.0.end)
    }
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::OwnEdit => EditError::OwnEdit.fmt(f),
            Self::GuardHeld => EditError::GuardHeld.fmt(f),
            Self::OwnExclusion => f.write_str("this thread already excludes readers in the space"),
            Self::Forked => EditError::Forked.fmt(f),
            Self::NotMapped { range } => write!(f, "nothing is mapped in {}", Hex(range)),
            Self::Reserved { range } => write!(f, "{} is reserved", Hex(range)),
            Self::Excluded { vma } => {
                write!(f, "the mapping {} is about to be changed by another thread", Hex(vma))
            }
            Self::Overlap { existing } => write!(f, "{} is already taken", Hex(existing)),
            Self::PartlyCovered { vma } => {
                write!(f, "the mapping {} is only partly covered and cannot be split", Hex(vma))
            }
            Self::GivenUp { part } => {
                write!(f, "given up by the function that makes payloads, at {}", Hex(part))
            }
            Self::OutOfMemory { range } => write!(f, "no memory to change {}", Hex(range)),
        }
    }
}

impl core::error::Error for ChangeError {}

/// An insertion that changed nothing, with the payload that it gives back.
#[derive(Clone)]
#[non_exhaustive]
pub struct InsertError<T> {
    /// The cause.
    pub kind: ChangeError,
    /// The range of the insertion.
    pub range: Range<usize>,
    /// The payload, given back.
    pub payload: T,
}

impl<T> fmt::Debug for InsertError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InsertError")
            .field("kind", &self.kind)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for InsertError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl<T> core::error::Error for InsertError<T> {}

/// Why a VMA was not write-locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// Nothing is mapped at the address.
    NotMapped {
        /// The address that was looked up.
        addr: usize,
    },
    /// The address is only reserved.
    Reserved {
        /// The address that was looked up.
        addr: usize,
    },
    /// The thread holds a guard of this space, perhaps of this VMA: it could wait for itself.
    GuardHeld {
        /// The address that was looked up.
        addr: usize,
    },
    /// Another thread excludes readers from the VMA and is about to change it.
    Excluded {
        /// The address that was looked up.
        addr: usize,
    },
    /// The VMA has readers. Only `try_write` reports it.
    WouldWait {
        /// The address that was looked up.
        addr: usize,
    },
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotMapped { addr } => write!(f, "nothing is mapped at {addr:#x}"),
            Self::Reserved { addr } => write!(f, "{addr:#x} is reserved, with nothing mapped yet"),
            Self::GuardHeld { addr } => {
                write!(f, "write-locking {addr:#x} could wait for a guard that this thread holds")
            }
            Self::Excluded { addr } => {
                write!(f, "the mapping at {addr:#x} is about to be changed by another thread")
            }
            Self::WouldWait { addr } => write!(f, "the mapping at {addr:#x} is being read"),
        }
    }
}

impl core::error::Error for WriteError {}

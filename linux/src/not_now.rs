//! The error of a lookup or a fault that cannot be answered without waiting.

use core::fmt;

use pervma::{OwnRangeLock, ReadError};

use crate::errno::Errno;

/// Why a question has no answer at this moment. It is never taken for a hole.
///
/// The questions that may be asked in a signal handler say all of this. Those that wait say
/// [`OwnCall`](Self::OwnCall) only, and calls say [`Errno::EAGAIN`] in its place.
///
/// ```
/// use pervma_linux::{Errno, NotNow};
/// assert_eq!(Errno::from(NotNow::OwnCall), Errno::EAGAIN);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotNow {
    /// What is at the address, or near it, is being changed. Ask again; but in a signal handler
    /// return instead, so that the interrupted instruction runs again and faults again: it may be
    /// the thread's own change that the handler has interrupted, for a moment in which that cannot
    /// be told from another thread's.
    Changing,
    /// The thread would wait for itself: it is in the middle of a call of the same
    /// [`Mm`](crate::Mm) (it asks from inside of a method of the [`Backing`](crate::Backing), or in
    /// a handler that has interrupted the call), or it has a [`ReadGuard`](crate::ReadGuard) of it.
    OwnCall,
    /// Only [`Mm::fault`](crate::Mm::fault) can serve this touch, since it changes the map: a
    /// private mapping is written for the first time, or a stack may grow.
    NeedsCall,
}

impl fmt::Display for NotNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changing => f.write_str("the mapping is being changed"),
            Self::OwnCall => f.write_str("this thread is in the middle of a call that changes it"),
            Self::NeedsCall => f.write_str("the touch changes the map, which takes a call"),
        }
    }
}

impl core::error::Error for NotNow {}

impl From<NotNow> for Errno {
    fn from(_: NotNow) -> Self {
        Self::EAGAIN
    }
}

impl From<OwnRangeLock> for Errno {
    fn from(_: OwnRangeLock) -> Self {
        NotNow::OwnCall.into()
    }
}

/// Why a lookup has no answer.
pub(crate) fn not_now(error: ReadError) -> NotNow {
    match error {
        ReadError::OwnEdit { .. }
        | ReadError::OwnExclusion { .. }
        | ReadError::GuardHeld { .. } => NotNow::OwnCall,
        _ => NotNow::Changing,
    }
}

//! Codes, and the text of the last error of a thread.
#![expect(unsafe_code, reason = "exports functions")]

use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::fmt::{self, Write};

use address_space::{ChangeError, EditError, GapError, RangeError, ReadError, RegisterError};
use pervma_pager::{Error, Refusal};

/// What a function returns: PERVMA_OK, or why it has done nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done. Of a lookup: found.
    Ok = 0,
    /// An argument is NULL where it must not be, not aligned for its type, or a value that is not
    /// possible there.
    Invalid = 1,
    /// The handle or guard is not a live one: it was destroyed, ended or never made. A handle that
    /// was destroyed long ago can be another object's by now; then this is not seen.
    Handle = 2,
    /// The object belongs to another thread.
    Thread = 3,
    /// The function may wait, and was called in a signal handler (pervma_handler_enter).
    InHandler = 4,
    /// The ends of the range are no multiples of the granularity, or of the page size.
    Unaligned = 5,
    /// The range is empty.
    Empty = 6,
    /// The range ends before it starts, or beyond what can be mapped.
    Overflow = 7,
    /// Nothing is mapped there. Of a lookup: at a moment during the lookup, between two edits.
    NotMapped = 8,
    /// The address, or a part of the range, is reserved, with nothing mapped yet.
    Reserved = 9,
    /// Something is in the way.
    Overlap = 10,
    /// The range would split a VMA, and the split callback refused.
    Partly = 11,
    /// Another thread is changing this: try again, or use a function that waits.
    Busy = 12,
    /// This thread itself is changing this: it would wait for itself.
    BusyOwn = 13,
    /// In an edit: another thread excludes readers from a VMA of the range, and needs an edit to go
    /// on. End this edit, and begin one that waits for it (pervma_edit_begin_range).
    Excluded = 14,
    /// This thread holds a guard in this space: it could wait for itself. End the guard first.
    Guard = 15,
    /// The VMA has as many readers as its count can hold (2^29 - 1).
    Limit = 16,
    /// The space was not prepared when this process was forked, and cannot be used here; or the
    /// guard was made before the fork.
    Forked = 17,
    /// No memory is left.
    NoMemory = 18,
    /// There is no gap of this kind.
    NoGap = 19,
    /// The object is used by others: guards, readers, exclusions, reservations, pins, regions.
    InUse = 20,
    /// The time is over.
    TimedOut = 21,
    /// A bug in this library, caught. Objects that the call was given may be unusable; others are
    /// not affected. Please report it.
    Internal = 22,
    /// The source could not deliver bytes, or not take them.
    Source = 23,
    /// Pages are pinned that would go.
    Pinned = 24,
    /// The page's protection does not let the access through, or the region is read-only.
    Protected = 25,
    /// The page cannot be had: the source failed, or there is no memory.
    Unavailable = 26,
    /// The bound of resident pages is reached, and none can be given back; or more would be pinned
    /// than it lets stay.
    Bound = 27,
    /// The kernel refused something, or lacks it: see pervma_last_error.
    System = 28,
    /// A callback has failed, and nothing has changed.
    GivenUp = 29,
}

impl Status {
    pub(crate) fn as_result(self) -> Result<(), Self> {
        if self == Self::Ok { Ok(()) } else { Err(self) }
    }

    fn text(self) -> &'static CStr {
        match self {
            Self::Ok => c"done",
            Self::Invalid => c"an argument is NULL, not aligned or not possible",
            Self::Handle => c"the handle or guard is not a live one",
            Self::Thread => c"it belongs to another thread",
            Self::InHandler => c"it may wait, and was called in a signal handler",
            Self::Unaligned => c"the range is not aligned",
            Self::Empty => c"the range is empty",
            Self::Overflow => c"the range ends before it starts, or too high",
            Self::NotMapped => c"nothing is mapped there",
            Self::Reserved => c"it is reserved, with nothing mapped yet",
            Self::Overlap => c"something is in the way",
            Self::Partly => c"a mapping is only partly covered and cannot be split",
            Self::Busy => c"another thread is changing it",
            Self::BusyOwn => c"this thread is changing it",
            Self::Excluded => c"another thread is about to change it",
            Self::Guard => c"this thread holds a guard in the space",
            Self::Limit => c"the mapping has too many readers",
            Self::Forked => c"it was lost when the process was forked",
            Self::NoMemory => c"no memory is left",
            Self::NoGap => c"there is no such gap",
            Self::InUse => c"it is in use",
            Self::TimedOut => c"the time is over",
            Self::Internal => c"a bug in pervma, please report it",
            Self::Source => c"the source failed",
            Self::Pinned => c"pages are pinned",
            Self::Protected => c"the page is protected",
            Self::Unavailable => c"the page cannot be had",
            Self::Bound => c"the bound of resident pages is reached",
            Self::System => c"the system refused",
            Self::GivenUp => c"a callback has failed, and nothing has changed",
        }
    }
}

/// The text of a code, in a few words. A constant; of an unknown code too.
///
/// Safe in signal handlers.
#[unsafe(no_mangle)]
pub extern "C" fn pervma_strerror(status: i32) -> *const c_char {
    let known = ALL.iter().find(|known| **known as i32 == status);
    known.map_or(c"not a code of pervma", |status| status.text()).as_ptr()
}

const ALL: [Status; 30] = [
    Status::Ok,
    Status::Invalid,
    Status::Handle,
    Status::Thread,
    Status::InHandler,
    Status::Unaligned,
    Status::Empty,
    Status::Overflow,
    Status::NotMapped,
    Status::Reserved,
    Status::Overlap,
    Status::Partly,
    Status::Busy,
    Status::BusyOwn,
    Status::Excluded,
    Status::Guard,
    Status::Limit,
    Status::Forked,
    Status::NoMemory,
    Status::NoGap,
    Status::InUse,
    Status::TimedOut,
    Status::Internal,
    Status::Source,
    Status::Pinned,
    Status::Protected,
    Status::Unavailable,
    Status::Bound,
    Status::System,
    Status::GivenUp,
];

/// Text that ends with a zero, in place, at its beginning.
#[repr(C)]
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Write for Line {
    /// What does not fit is left out.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - 1 - self.len;
        let text = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.len..][..text.len()].copy_from_slice(text);
        self.len += text.len();
        self.bytes[self.len] = 0;
        Ok(())
    }
}

thread_local! {
    static LAST: RefCell<Line> = const { RefCell::new(Line { bytes: [0; 256], len: 0 }) };
}

/// What the last function that failed on this thread has said of it: addresses, sizes, reasons of
/// the kernel. Lookups say nothing here, but for what is wrong with their arguments. Valid until
/// the next call on this thread. Empty if nothing has failed.
///
/// Not for signal handlers.
#[unsafe(no_mangle)]
pub extern "C" fn pervma_last_error() -> *const c_char {
    LAST.with(|last| last.as_ptr().cast::<Line>().cast())
}

/// Notes what a failure is about. Allocates nothing.
#[cold]
pub(crate) fn fail(status: Status, about: &dyn fmt::Display) -> Status {
    LAST.with(|last| {
        // Borrowed already where a handler interrupts this: the interrupted text stays.
        if let Ok(mut last) = last.try_borrow_mut() {
            last.len = 0;
            // It never fails.
            let _ = write!(last, "{about}");
        }
    });
    status
}

/// The code of an error of the Rust interface.
pub(crate) trait Code: fmt::Display {
    fn code(&self) -> Status;
}

/// Notes an error of the Rust interface.
pub(crate) fn failed(error: impl Code) -> Status {
    fail(error.code(), &error)
}

impl Code for RangeError {
    fn code(&self) -> Status {
        match self {
            Self::Empty { .. } => Status::Empty,
            Self::Unaligned { .. } => Status::Unaligned,
            Self::Overflow { .. } => Status::Overflow,
            _ => Status::Invalid,
        }
    }
}

impl Code for ReadError {
    fn code(&self) -> Status {
        match self {
            Self::NotMapped { .. } | Self::Gone { .. } => Status::NotMapped,
            Self::Locked { .. } => Status::Busy,
            Self::Busy { .. } => Status::Limit,
            Self::OwnEdit { .. } | Self::OwnExclusion { .. } => Status::BusyOwn,
            Self::GuardHeld { .. } => Status::Guard,
            Self::Reserved { .. } => Status::Reserved,
            Self::Forked => Status::Forked,
            _ => Status::Internal,
        }
    }
}

impl Code for EditError {
    fn code(&self) -> Status {
        match self {
            Self::OwnEdit => Status::BusyOwn,
            Self::GuardHeld => Status::Guard,
            Self::Forked => Status::Forked,
            _ => Status::Internal,
        }
    }
}

impl Code for RegisterError {
    fn code(&self) -> Status {
        match self {
            Self::OwnEdit => Status::BusyOwn,
            Self::GuardHeld => Status::Guard,
            Self::OutOfMemory => Status::NoMemory,
            Self::Forked => Status::Forked,
            _ => Status::Internal,
        }
    }
}

impl Code for ChangeError {
    fn code(&self) -> Status {
        match self {
            Self::Range(error) => error.code(),
            Self::OwnEdit | Self::OwnExclusion => Status::BusyOwn,
            Self::GuardHeld => Status::Guard,
            Self::Forked => Status::Forked,
            Self::NotMapped { .. } => Status::NotMapped,
            Self::Reserved { .. } => Status::Reserved,
            Self::Excluded { .. } => Status::Excluded,
            Self::Overlap { .. } => Status::Overlap,
            Self::PartlyCovered { .. } => Status::Partly,
            Self::GivenUp { .. } => Status::GivenUp,
            Self::OutOfMemory { .. } => Status::NoMemory,
            _ => Status::Internal,
        }
    }
}

impl Code for GapError {
    fn code(&self) -> Status {
        match self {
            Self::NotFound => Status::NoGap,
            _ => Status::Invalid,
        }
    }
}

impl Code for Error {
    fn code(&self) -> Status {
        match self {
            Self::Range { .. } => Status::Unaligned,
            Self::NotMapped(_) => Status::NotMapped,
            Self::Overlap(_) | Self::AddressesTaken { .. } => Status::Overlap,
            Self::Pinned(_) => Status::Pinned,
            Self::PinBeyondBound { .. } => Status::Bound,
            Self::NoAccess(_) | Self::ReadOnly => Status::Protected,
            Self::Access(error) => error.refusal().code(),
            Self::ReadFailed | Self::WriteBack(_) | Self::Sync(_) | Self::File(_) => Status::Source,
            Self::OutOfMemory => Status::NoMemory,
            Self::Busy(_) => Status::Busy,
            Self::InsideSource => Status::BusyOwn,
            Self::Unexpected(_) => Status::Internal,
            Self::Userfaultfd(_)
            | Self::PageSize { .. }
            | Self::NotExecutable(_)
            | Self::Memory { .. }
            | Self::Change(_)
            | Self::Register(_)
            | Self::SignalBlocked
            | Self::Mask(_)
            | Self::Handler(_)
            | Self::Thread(_) => Status::System,
            _ => Status::Invalid,
        }
    }
}

impl Code for Refusal {
    fn code(&self) -> Status {
        match self {
            Self::NotMapped => Status::NotMapped,
            Self::Protected => Status::Protected,
            Self::BoundReached => Status::Bound,
            Self::InsideSource => Status::BusyOwn,
            Self::Mask(_) => Status::System,
            _ => Status::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_code_has_a_text_of_its_own() {
        let texts: BTreeSet<_> = ALL.iter().map(|status| status.text()).collect();
        assert_eq!(texts.len(), ALL.len());
        assert!(ALL.iter().enumerate().all(|(at, status)| *status as usize == at));
        let text = |status: i32| owned(pervma_strerror(status));
        assert_eq!(text(0), "done");
        assert_eq!(text(-1), text(30));
    }

    #[test]
    fn a_long_text_is_cut_and_ends() {
        let long = "x".repeat(1000);
        assert_eq!(fail(Status::Invalid, &long), Status::Invalid);
        assert_eq!(owned(pervma_last_error()), "x".repeat(255));
        fail(Status::Invalid, &"short");
        assert_eq!(owned(pervma_last_error()), "short");
    }

    fn owned(text: *const c_char) -> String {
        // SAFETY: texts of this module end with a zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

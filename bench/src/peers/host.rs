//! The platforms that pervma is measured on.
#![expect(unsafe_code, reason = "a platform keeps promises that the compiler cannot check")]

use std::time::Instant;

use pervma::{Platform, Std, ThreadState, WaitWord};

/// A platform to measure.
pub(crate) trait Host: Platform {
    /// What its registered readers are called.
    const REGISTERED: &'static str;
    /// What their cursors are called.
    const CURSOR: &'static str;
}

impl Host for Std {
    const REGISTERED: &'static str = "pervma, registered";
    const CURSOR: &'static str = "pervma, registered cursor";
}

/// As [`Std`], without its barrier: registered readers fence, and edits need no system call.
pub(crate) enum Fences {}

impl Host for Fences {
    const REGISTERED: &'static str = "pervma, registered (fences)";
    const CURSOR: &'static str = "pervma, registered cursor (fences)";
}

// SAFETY: as `Std`, and it never says that it has a barrier.
unsafe impl Platform for Fences {
    type Lock = <Std as Platform>::Lock;
    type Memory = <Std as Platform>::Memory;
    type Deadline = Instant;

    fn wait(word: &WaitWord, seen: u32, deadline: Option<Instant>) -> bool {
        Std::wait(word, seen, deadline)
    }

    fn wake(word: &WaitWord) {
        Std::wake(word);
    }

    fn wake_all(word: &WaitWord) {
        Std::wake_all(word);
    }

    #[inline(always)]
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        Std::with_thread(f)
    }
}

//! The platforms that pervma is measured on.
#![expect(unsafe_code, reason = "a platform keeps promises that the compiler cannot check")]

use std::time::Instant;

use pervma::{Platform, StdPlatform, ThreadState, WaitWord};

/// A platform to measure.
pub(crate) trait Host: Platform {
    /// What its registered readers are called.
    const REGISTERED: &'static str;
    /// What their cursors are called.
    const CURSOR: &'static str;
}

impl Host for StdPlatform {
    const REGISTERED: &'static str = "pervma, registered";
    const CURSOR: &'static str = "pervma, registered cursor";
}

/// As [`StdPlatform`], without its barrier: registered readers fence, and edits need no system
/// call.
pub(crate) enum Fences {}

impl Host for Fences {
    const REGISTERED: &'static str = "pervma, registered (fences)";
    const CURSOR: &'static str = "pervma, registered cursor (fences)";
}

// SAFETY: as `StdPlatform`, and it never says that it has a barrier.
unsafe impl Platform for Fences {
    type Lock = <StdPlatform as Platform>::Lock;
    type Memory = <StdPlatform as Platform>::Memory;
    type Deadline = Instant;

    fn wait(word: &WaitWord, seen: u32, deadline: Option<Instant>) -> bool {
        StdPlatform::wait(word, seen, deadline)
    }

    fn wake(word: &WaitWord) {
        StdPlatform::wake(word);
    }

    fn wake_all(word: &WaitWord) {
        StdPlatform::wake_all(word);
    }

    #[inline(always)]
    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        StdPlatform::with_thread(f)
    }
}

//! Sleeping on a word and waking: the futex of the kernel, or a checker's stand-in.
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

#[cfg(not(pervma_model))]
use rustix::thread::futex::{self, Flags, Timespec};

use crate::sync::WaitWord;

/// How a sleep ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Slept {
    /// A thread woke the caller.
    Woken,
    /// The word had another value, a signal came, or time was up.
    No,
}

/// Models do not measure time.
#[cfg(pervma_model)]
type Timespec = ();

/// How long a thread may go on waiting.
#[derive(Clone, Copy)]
pub enum Left {
    /// As long as it takes.
    Any,
    /// This long.
    Time(Timespec),
    /// No longer.
    Nothing,
}

#[cfg(not(pervma_model))]
impl Left {
    /// What is left until `deadline`.
    pub(super) fn until(deadline: std::time::Instant) -> Self {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Self::Nothing;
        }
        // A time too long for the kernel's type is no deadline.
        Timespec::try_from(left).map_or(Self::Any, Self::Time)
    }
}

/// Sleeps while `word` holds `seen`, at most for `time`.
pub(super) fn wait(word: &WaitWord, seen: u32, time: Option<&Timespec>) -> Slept {
    #[cfg(not(pervma_model))]
    let woken = futex::wait(word.as_futex(), Flags::PRIVATE, seen, time).is_ok();
    #[cfg(pervma_model)]
    let woken = time.is_none() && word.futex_wait(seen);
    if woken { Slept::Woken } else { Slept::No }
}

/// Wakes the thread that sleeps on `word` for longest.
pub(super) fn wake_one(word: &WaitWord) {
    // Fails only for an address that is not mapped.
    #[cfg(not(pervma_model))]
    let _ = futex::wake(word.as_futex(), Flags::PRIVATE, 1);
    #[cfg(pervma_model)]
    word.futex_wake();
}

/// Wakes all threads that sleep on `word`.
#[cfg(not(pervma_model))]
pub(super) fn wake_all(word: &WaitWord) {
    // As in `wake_one`.
    let _ = futex::wake(word.as_futex(), Flags::PRIVATE, i32::MAX as u32);
}

//! The platform of the models.
#![expect(unsafe_code, reason = "the contract of `Platform` is kept here")]

use crate::memory::GlobalMemory;
use crate::platform::Platform;
use crate::sync::WaitWord;
use crate::thread::ThreadState;

/// The platform of the models: the checker's threads, the stand-in futex.
#[derive(Debug)]
pub enum Model {}

// SAFETY: as for `StdPlatform`; a model that panics has failed.
unsafe impl Platform for Model {
    type Memory = GlobalMemory;
    /// Models do not measure time: the deadline passes at once.
    type Deadline = ();

    fn wait(word: &WaitWord, seen: u32, deadline: Option<()>) -> bool {
        if deadline.is_none() {
            let _ = word.futex_wait(seen);
        }
        deadline.is_none()
    }

    fn wake(word: &WaitWord) {
        word.futex_wake();
    }

    fn wake_all(word: &WaitWord) {
        word.futex_wake_all();
    }

    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        crate::sync::model::checker::thread_local! {
            static STATE: ThreadState = ThreadState::new();
        }
        Some(STATE.with(f))
    }

    fn prepare_barrier() -> bool {
        crate::sync::model::has_barrier()
    }

    fn barrier() {
        crate::sync::model::ask_for_barrier();
    }
}

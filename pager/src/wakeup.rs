//! A wake-up event that one thread sleeps by, and that may be raised in a signal handler.
#![expect(
    clippy::disallowed_types,
    reason = "the kernel sleeps by a plain word, and what was written before an event need not be seen with it"
)]

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rustix::thread::{Timespec, futex, nanosleep};

use crate::sys::{Errno, is_process};

/// Events that were not noticed yet are one.
#[derive(Debug)]
pub(crate) struct Wakeup {
    state: AtomicU32,
    /// The process whose thread sleeps.
    owner: u32,
}

const RAISED: u32 = 1;
/// There will be no other.
const OVER: u32 = 2;

impl Wakeup {
    pub(crate) fn new() -> Self {
        Self { state: AtomicU32::new(0), owner: std::process::id() }
    }

    /// Wakes the sleeper. One system call at most, which does not change `errno`.
    pub(crate) fn raise(&self) {
        self.set(RAISED);
    }

    /// Wakes the sleeper for the last time. Not in a forked child, and the caller is told so: the
    /// sleeper is its parent's thread.
    pub(crate) fn stop(&self) -> bool {
        let ours = is_process(self.owner);
        if ours {
            self.set(OVER);
        }
        ours
    }

    fn set(&self, event: u32) {
        // RELAXED: what the sleeper looks at are numbers that guard nothing, and a fault that waits
        // for it raises the event again each time that it has waited in vain.
        if self.state.fetch_or(event, Relaxed) == 0 {
            // Fails for addresses that are none.
            let _ = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
        }
    }

    /// Sleeps until an event is raised. `false` if that was the last one.
    pub(crate) fn wait(&self) -> bool {
        loop {
            let state = self.state.fetch_and(!RAISED, Relaxed);
            if state & OVER != 0 {
                return false;
            }
            if state & RAISED != 0 {
                return true;
            }
            match futex::wait(&self.state, futex::Flags::PRIVATE, 0, None) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                // A filter: look again from time to time.
                Err(_) => nap(),
            }
        }
    }
}

/// Lets others go on: the thread that changes the mapping, fills the page, or gives pages back. The
/// more often it happens in a row, the longer it takes, so that a thread that waits for a disk does
/// not spin, and one of more weight than the one it waits for lets it run.
#[cold]
pub(crate) fn rest(times: u32) {
    const SPINS: u32 = 64;
    if times < SPINS {
        std::thread::yield_now();
    } else {
        let nanos = i64::from(times.min(20 * SPINS)) * 1000;
        // Interrupted is as good as done: the access decides.
        let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: nanos });
    }
}

/// Rests for a millisecond.
pub(crate) fn nap() {
    // Shorter is as good.
    let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_was_raised_before_is_not_missed() {
        let wakeup = Wakeup::new();
        wakeup.raise();
        wakeup.raise();
        assert!(wakeup.wait());
        assert!(wakeup.stop());
        assert!(!wakeup.wait());
        assert!(!wakeup.wait(), "it stays over");
    }

    #[test]
    fn a_sleeper_is_woken_each_time() {
        let wakeups = Arc::new([Wakeup::new(), Wakeup::new()]);
        let theirs = Arc::clone(&wakeups);
        let echo = std::thread::spawn(move || {
            let mut times = 0;
            while theirs[0].wait() {
                times += 1;
                theirs[1].raise();
            }
            times
        });
        for _ in 0..1000 {
            wakeups[0].raise();
            assert!(wakeups[1].wait());
        }
        wakeups[0].stop();
        assert_eq!(echo.join().unwrap(), 1000);
    }
}

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
        let ours = self.is_of_this_process();
        if ours {
            self.set(OVER);
        }
        ours
    }

    /// Whether this is the process whose thread sleeps.
    pub(crate) fn is_of_this_process(&self) -> bool {
        is_process(self.owner)
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

/// Where threads sleep that wait for pages to go, one for each bound, or for several where there
/// are more. It is no bound's own, since the region of a thread that sleeps may be dropped.
#[derive(Debug)]
pub(crate) struct Room {
    /// Grows whenever pages have gone.
    times: AtomicU32,
    sleepers: AtomicU32,
}

impl Room {
    const ALL: usize = 64;

    /// The number of one of those that there are, dealt in turn.
    pub(crate) fn any() -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // RELAXED: the number only spreads them.
        NEXT.fetch_add(1, Relaxed) % Self::ALL as u32
    }

    /// The one of this number.
    pub(crate) fn of(number: u32) -> &'static Self {
        static ALL: [Room; Room::ALL] =
            [const { Room { times: AtomicU32::new(0), sleepers: AtomicU32::new(0) } }; Room::ALL];
        &ALL[number as usize % Self::ALL]
    }

    /// What to wait for the end of, as of before it is known that there is no room.
    pub(crate) fn times(&self) -> u32 {
        self.times.load(Relaxed)
    }

    /// How many threads sleep.
    pub(crate) fn sleepers(&self) -> usize {
        self.sleepers.load(Relaxed) as usize
    }

    /// Sleeps until pages have gone since `times` was what it is, or for a while: the thread that
    /// was woken in its place may not have needed them.
    #[cold]
    pub(crate) fn wait(&self, times: u32) {
        let most = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        // RELAXED: it guards nothing.
        self.sleepers.fetch_add(1, Relaxed);
        match futex::wait(&self.times, futex::Flags::PRIVATE, times, Some(&most)) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
            // A filter: look again from time to time.
            Err(_) => nap(),
        }
        self.sleepers.fetch_sub(1, Relaxed);
    }

    /// Wakes so many threads, those first that have slept longest. One system call, which does not
    /// change `errno`.
    pub(crate) fn open(&self, threads: usize) {
        // RELAXED: the kernel compares it in the queue of those that sleep, which it locks.
        self.times.fetch_add(1, Relaxed);
        let threads = u32::try_from(threads).unwrap_or(u32::MAX).min(u32::MAX >> 1);
        // Fails for addresses that are none.
        let _ = futex::wake(&self.times, futex::Flags::PRIVATE, threads);
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
    fn who_looked_before_pages_went_does_not_sleep() {
        let room = Room::of(Room::any());
        let times = room.times();
        room.open(1);
        let begin = std::time::Instant::now();
        (0..1000).for_each(|_| room.wait(times));
        assert!(begin.elapsed() < std::time::Duration::from_secs(5), "not 10 ms each");
        assert_eq!(room.sleepers(), 0);
    }

    #[test]
    fn so_many_sleepers_are_woken_as_there_is_room_for() {
        let room = Room::of(Room::any());
        let woken = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let times = room.times();
                    while room.times() == times {
                        room.wait(times);
                    }
                    woken.fetch_add(1, Relaxed);
                });
            }
            while room.sleepers() < 8 {
                std::thread::yield_now();
            }
            room.open(8);
        });
        assert_eq!(woken.load(Relaxed), 8);
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

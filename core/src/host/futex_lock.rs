//! A lock for readers and writers in one word, on which threads sleep: the mmap lock of
//! [`StdPlatform`](crate::StdPlatform) on Linux and Android.
//!
//! It keeps no list of waiters outside of the kernel, and no word names a thread: after a fork the
//! child, in which those that waited are missing, has nothing of them to clean up but this word
//! ([`FutexLock::renew`]).
//!
//! # The word
//!
//! | bits | meaning |
//! |---|---|
//! | [`READERS`] | how many readers hold the lock |
//! | [`WRITER`] | a writer holds it |
//! | [`WAITING`] | a thread may sleep: a release that leaves the lock free wakes one |
//! | [`GIVE_WAY`] | a thread has been woken in vain: those that did not sleep yet let it go first |
//!
//! # Who goes first
//!
//! A thread that comes takes a free lock even if others sleep: handing it to a sleeper would keep
//! it unused until that one runs. It joins readers only if no thread waits, so that these cannot
//! keep a writer out. A thread that was woken [`PATIENCE`] times, and found the lock taken, sets
//! `GIVE_WAY`. From then on the lock goes to threads that were woken only, in the order in which
//! they fell asleep, until the one that has set it has the lock.
//!
//! # Invariants
//!
//! - **F1** A thread sleeps only while the word has `WAITING`.
//! - **F2** The release that makes the lock free clears `WAITING` and wakes one sleeper. That one
//!   sets `WAITING` again if it becomes a writer, or sleeps once more; if it becomes a reader, it
//!   wakes the next. So if any thread sleeps, either `WAITING` is set, or a thread that was woken
//!   is on its way.
//! - **F3** `WAITING` is set where the lock is held, or a thread that was woken is on its way: the
//!   next release finds it.
//! - **F4** A thread that gives up takes back `GIVE_WAY`, hands a wake-up on that was its, and does
//!   not leave `WAITING` where readers hold the lock and could join each other.
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

use core::hint;

use super::futex::{self, Left, Slept};
use crate::ledger::{LOCK_ACQUIRE, LOCK_DOWNGRADE, LOCK_RELEASE, LOCK_RELEASE_SHARED};
use crate::step::Step;
use crate::sync::{Relaxed, WaitWord, check, const_unless_model, keep};

/// The readers that hold the lock. At this number a reader waits, as for a writer.
const READERS: u32 = WRITER - 1;
/// A writer holds the lock.
const WRITER: u32 = 1 << 29;
/// A thread may sleep.
const WAITING: u32 = 1 << 30;
/// Only threads that were woken may acquire the lock.
const GIVE_WAY: u32 = 1 << 31;

/// How often a thread is woken in vain before others give way.
const PATIENCE: u32 = if cfg!(pervma_model) { 1 } else { 4 };

/// How often the word is looked at before the thread sleeps.
const SPINS: u32 = if cfg!(any(pervma_model, miri)) { 0 } else { 100 };

/// After how many of these a thread looks as often as it can. The first are [`PAUSES`] apart, so
/// that who has the lock can release and acquire it a few times with the word, and what it writes
/// under the lock, in its cache: two threads together do more then. The others keep the wait short.
const FAR_APART: u32 = 6;
const PAUSES: u32 = 16;

/// How a thread wants the lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

impl Mode {
    /// The word after a thread that was woken so often has acquired the lock; `None` if it must
    /// wait.
    #[inline]
    fn acquired(self, word: u32, woken: u32) -> Option<u32> {
        let before = if woken >= PATIENCE { word & !GIVE_WAY } else { word };
        let first = woken != 0 || word & GIVE_WAY == 0 || !keep(Step::GiveWay);
        match self {
            Self::Exclusive => {
                let free = word & (WRITER | READERS) == 0;
                let others = if woken != 0 && keep(Step::KeepWaiting) { WAITING } else { 0 };
                (free && first).then_some(before | WRITER | others)
            }
            Self::Shared => {
                let open = word & WRITER == 0 && word & READERS != READERS;
                let first = first && (woken != 0 || word & WAITING == 0);
                // One that was woken wakes the next, unless all give way.
                let rest = match (woken, before & GIVE_WAY) {
                    (0, _) => before,
                    (_, 0) => before & !WAITING,
                    _ => before | WAITING,
                };
                (open && first).then_some(rest + 1)
            }
        }
    }
}

/// A lock for readers and writers.
pub struct FutexLock(WaitWord);

impl FutexLock {
    const_unless_model! {
        /// An unlocked lock.
        pub fn new() -> Self {
            Self(WaitWord::new(0))
        }
    }

    /// Acquires the lock for writing.
    #[inline(always)]
    pub fn lock_exclusive(&self) {
        if self.acquire(0, WRITER).is_err() {
            self.wait_for(Mode::Exclusive, || Left::Any);
        }
    }

    /// Acquires the lock for writing, unless that takes longer than there is time `left`; whether
    /// it has.
    pub fn lock_exclusive_while(&self, left: impl FnMut() -> Left) -> bool {
        self.try_lock(Mode::Exclusive) || self.wait_for(Mode::Exclusive, left)
    }

    /// Acquires the lock for writing, if that needs no waiting.
    #[inline(always)]
    pub fn try_lock_exclusive(&self) -> bool {
        self.try_lock(Mode::Exclusive)
    }

    /// Acquires the lock for reading.
    #[inline(always)]
    pub fn lock_shared(&self) {
        if !self.try_lock(Mode::Shared) {
            self.wait_for(Mode::Shared, || Left::Any);
        }
    }

    /// Acquires the lock for reading, if that needs no waiting.
    #[inline(always)]
    pub fn try_lock_shared(&self) -> bool {
        self.try_lock(Mode::Shared)
    }

    /// Releases the lock of a writer, which the caller is.
    #[inline(always)]
    pub fn unlock_exclusive(&self) {
        if self.release(WRITER, 0).is_err() {
            self.release_to_waiting();
        }
    }

    /// Releases the lock of a reader, which the caller is.
    #[inline(always)]
    pub fn unlock_shared(&self) {
        let before = self.0.word().fetch_sub(1, LOCK_RELEASE_SHARED);
        if before & READERS == 1 && before & WAITING != 0 {
            // Else its holder wakes one.
            self.wake_if(|word| word & (WRITER | READERS) == 0, Self::wake);
        }
    }

    /// Makes a writer, which the caller is, a reader, with no writer in between.
    #[inline]
    pub fn downgrade(&self) {
        let before = self.0.word().fetch_sub(WRITER - 1, LOCK_DOWNGRADE);
        if before & (WAITING | GIVE_WAY) == WAITING {
            self.wake_if(|word| word & GIVE_WAY == 0, Self::pass_on);
        }
    }

    /// Unlocks the lock in a child of a fork, where the caller is the only thread: nothing that
    /// others left in the word counts any more.
    #[cfg(not(pervma_model))]
    pub(super) fn renew(&self) {
        self.0.word().store(0, Relaxed("there is no other thread"));
    }

    /// Replaces the word by one in which the caller has the lock.
    #[inline(always)]
    fn acquire(&self, word: u32, new: u32) -> Result<u32, u32> {
        self.0.word().compare_exchange_weak(word, new, LOCK_ACQUIRE)
    }

    /// Replaces the word of a writer by one that is free.
    #[inline(always)]
    fn release(&self, word: u32, new: u32) -> Result<u32, u32> {
        self.0.word().compare_exchange_weak(word, new, LOCK_RELEASE)
    }

    #[inline(always)]
    fn look(&self) -> u32 {
        self.0.word().load(Relaxed("the exchange that follows decides"))
    }

    #[inline(always)]
    fn try_lock(&self, mode: Mode) -> bool {
        let mut word = self.look();
        while let Some(new) = mode.acquired(word, 0) {
            match self.acquire(word, new) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Acquires the lock, and sleeps until that can be done or no time is left; whether it has.
    #[cold]
    fn wait_for(&self, mode: Mode, mut left: impl FnMut() -> Left) -> bool {
        let (mut woken, mut spins) = (0_u32, SPINS);
        let mut word = self.look();
        let acquired = loop {
            if let Some(new) = mode.acquired(word, woken) {
                match self.acquire(word, new) {
                    Ok(_) => break new,
                    Err(now) => word = now,
                }
                continue;
            }
            if spins != 0 && word & WAITING == 0 {
                let is_early = SPINS - spins < FAR_APART;
                (0..if is_early { PAUSES } else { 1 }).for_each(|_| hint::spin_loop());
                spins -= 1;
                word = self.look();
                continue;
            }
            let time = match left() {
                Left::Any => None,
                Left::Time(time) => Some(time),
                Left::Nothing if self.give_up(word, woken) => return false,
                Left::Nothing => {
                    word = self.look();
                    continue;
                }
            };
            let give_way = if woken >= PATIENCE { GIVE_WAY } else { 0 };
            let announced = word | WAITING | give_way;
            if word != announced
                && let Err(now) = self.0.word().compare_exchange_weak(
                    word,
                    announced,
                    Relaxed("F1: the kernel compares again, under the lock that a wake takes"),
                )
            {
                word = now;
                continue;
            }
            let slept = futex::wait(&self.0, announced, time.as_ref());
            word = self.look();
            // A writer that has released the lock before this thread slept has woken it, too.
            if slept == Slept::Woken || announced & WRITER > word & WRITER {
                woken = woken.saturating_add(1);
            }
        };
        check(
            woken != 0 || acquired & GIVE_WAY == 0,
            "a thread overtakes another that was woken in vain",
        );
        if mode == Mode::Shared && woken != 0 && acquired & GIVE_WAY == 0 {
            self.pass_on();
        }
        true
    }

    /// Leaves the others as they would be if the caller, which was woken so often, had not waited
    /// for the lock (F4); `false` if the word has changed meanwhile. As the caller has seen it, it
    /// cannot acquire the lock.
    fn give_up(&self, word: u32, woken: u32) -> bool {
        let before = if woken >= PATIENCE { word & !GIVE_WAY } else { word };
        // Readers have the lock, and others may join them or queue again.
        let wakes = word & WRITER == 0 && before & GIVE_WAY == 0;
        let wakes = wakes && (woken != 0 || word & WAITING != 0);
        let after = match woken {
            _ if wakes => before & !WAITING,
            0 => before,
            _ => before | WAITING,
        };
        if !keep(Step::HandOn) {
            return true;
        }
        if word != after
            && self
                .0
                .word()
                .compare_exchange(
                    word,
                    after,
                    Relaxed(
                        "what was released before goes on from here, since this is an exchange",
                    ),
                )
                .is_err()
        {
            return false;
        }
        if wakes {
            self.wake();
        }
        true
    }

    /// Releases the lock of a writer while others may sleep.
    #[cold]
    fn release_to_waiting(&self) {
        let mut word = self.look();
        while let Err(now) = self.release(word, word & GIVE_WAY) {
            word = now;
        }
        if word & WAITING != 0 {
            self.wake();
        }
    }

    /// Clears `WAITING` and wakes a sleeper, which sets it again; unless none may sleep, or
    /// `needed` says no of the word.
    #[cold]
    fn wake_if(&self, needed: fn(u32) -> bool, wake: fn(&Self)) {
        let mut word = self.look();
        while needed(word) && word & WAITING != 0 {
            match self.0.word().compare_exchange(
                word,
                word & !WAITING,
                Relaxed("what was released before goes on from here, since this is an exchange"),
            ) {
                Ok(_) => return wake(self),
                Err(now) => word = now,
            }
        }
    }

    /// Wakes the next sleeper, which may be a reader too, for a reader that has cleared `WAITING`.
    /// Not where all give way: a writer that is woken in vain goes to the end of the queue.
    fn pass_on(&self) {
        if keep(Step::PassOn) {
            futex::wake_one(&self.0);
        }
    }

    /// Wakes the next sleeper, for a thread that has released the lock and cleared `WAITING`.
    fn wake(&self) {
        if keep(Step::WakeNext) {
            futex::wake_one(&self.0);
        }
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    static LOCK: FutexLock = FutexLock::new();

    /// Takes a lock with this word, after so many wake-ups, with no time left; the word then.
    fn given_up(word: u32, woken: u32) -> u32 {
        let lock = FutexLock(WaitWord::new(word));
        assert!(lock.give_up(word, woken));
        lock.0.value()
    }

    #[test]
    fn who_gives_up_takes_back_what_it_has_set_and_hands_on_its_wake_up() {
        let waiting = WRITER | WAITING;
        assert_eq!(given_up(waiting, 0), waiting, "another may sleep");
        assert_eq!(given_up(WRITER, 1), waiting, "the writer wakes another");
        assert_eq!(given_up(waiting | GIVE_WAY, PATIENCE), waiting);
        assert_eq!(given_up(waiting | GIVE_WAY, 1), waiting | GIVE_WAY, "it was another's");
        assert_eq!(given_up(1 | WAITING, 0), 1, "who slept was woken");
        assert_eq!(given_up(1 | WAITING | GIVE_WAY, PATIENCE), 1);
        let give_way = 1 | WAITING | GIVE_WAY;
        assert_eq!(given_up(give_way, 1), give_way);
        let stale = FutexLock(WaitWord::new(WRITER));
        assert!(!stale.give_up(WRITER | WAITING | GIVE_WAY, PATIENCE), "it has changed");
    }

    #[test]
    fn a_deadline_ends_a_wait_and_until_then_the_thread_sleeps() {
        static LOCK: FutexLock = FutexLock::new();
        let within = |time| {
            let deadline = std::time::Instant::now() + time;
            LOCK.lock_exclusive_while(|| Left::until(deadline))
        };
        LOCK.lock_exclusive();
        assert!(!within(std::time::Duration::ZERO));
        assert_eq!(LOCK.0.value(), WRITER, "it did not sleep");
        // A thread that does not run in time does not sleep.
        let mut time = std::time::Duration::from_millis(2);
        while LOCK.0.value() != WRITER | WAITING {
            assert!(!within(time));
            time *= 2;
        }
        let waits = thread::spawn(move || within(std::time::Duration::from_secs(300)));
        LOCK.unlock_exclusive();
        assert!(waits.join().unwrap());
        LOCK.unlock_exclusive();
        assert!(within(std::time::Duration::ZERO), "it tries once");
    }

    #[test]
    fn a_full_count_of_readers_refuses_one_more() {
        let open = Mode::Shared.acquired(READERS - 1, 0);
        assert_eq!(open, Some(READERS));
        assert_eq!(Mode::Shared.acquired(READERS, 0), None);
        assert_eq!(Mode::Shared.acquired(READERS | WAITING, 1), None);
        assert_eq!(Mode::Exclusive.acquired(READERS, 1), None);
    }

    #[test]
    fn a_reader_joins_readers_only_if_no_thread_waits() {
        assert_eq!(Mode::Shared.acquired(1, 0), Some(2));
        assert_eq!(Mode::Shared.acquired(1 | WAITING, 0), None);
        assert_eq!(Mode::Shared.acquired(1 | WAITING, 1), Some(2), "it wakes the next");
        let give_way = WAITING | GIVE_WAY;
        assert_eq!(Mode::Shared.acquired(1 | give_way, 1), Some(2 | give_way));
    }

    #[test]
    fn who_was_never_woken_gives_way() {
        for mode in [Mode::Shared, Mode::Exclusive] {
            assert_eq!(mode.acquired(GIVE_WAY, 0), None);
            assert!(mode.acquired(GIVE_WAY, 1).is_some_and(|word| word & GIVE_WAY != 0));
            assert!(mode.acquired(GIVE_WAY, PATIENCE).is_some_and(|word| word & GIVE_WAY == 0));
        }
    }

    /// A thread that takes the lock again and again does not keep another one out.
    #[test]
    fn a_busy_writer_lets_others_have_the_lock() {
        let (over, ended) = mpsc::channel();
        let busy = thread::spawn(move || {
            while ended.try_recv().is_err() {
                LOCK.lock_exclusive();
                (0..1000).for_each(|_| hint::spin_loop());
                LOCK.unlock_exclusive();
            }
        });
        for _ in 0..20 {
            LOCK.lock_exclusive();
            LOCK.unlock_exclusive();
            LOCK.lock_shared();
            LOCK.unlock_shared();
        }
        over.send(()).unwrap();
        busy.join().unwrap();
        assert_eq!(LOCK.0.value() & (WRITER | READERS), 0);
    }
}

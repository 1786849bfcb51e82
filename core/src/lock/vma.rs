//! The lock in a VMA: its count, its event word and its sequence number.
//!
//! # Guarantee
//!
//! A reader that has acquired a VMA ([`VmaLock::try_acquire`]) and found it unlocked
//! ([`VmaLock::is_unlocked`]) reads its fields until [`VmaLock::release`], and nothing changes them
//! meanwhile. A writer that has write-locked it ([`VmaLock::exclude`], [`VmaLock::wait_drained`],
//! [`VmaLock::lock_until_end_of`]) is its only user until the edit ends. One store, the end of the
//! edit, releases every write lock of the space at once.
//!
//! # Values of the count (`refcnt`)
//!
//! X stands for [`EXCLUDED`], bit 30 (bit 3 under the models, so that the count fills). While it is
//! set, readers are refused. From [`LIMIT`], X/2, on they are refused too.
//!
//! | refcnt | meaning | a reader that comes now | ended by |
//! |---|---|---|---|
//! | 0 | detached | is refused: *detached* | attach stores 1 |
//! | 1 | attached, no counted reader; write-locked if `lock_seq == seq` | acquires, if `seq` agrees | any transition |
//! | 2 … X-1 | attached, value-1 readers, some only to find it write-locked and release | acquires below LIMIT; is refused from LIMIT on: *busy* | any transition |
//! | X | never | | |
//! | X+1 | *drained*: attached, and held by one writer or excluder only | is refused: *excluded* | its holder clears X, or detaches by storing 0 |
//! | X+2 and above | a writer or an excluder waits for readers | is refused: *excluded* | readers release |
//!
//! Registered readers ([`hazard`](crate::hazard)) hold a VMA without being counted, until the
//! thread that sets X scans for them and transfers them to the count: X comes first in all rows
//! above. Should the exclusion be abandoned then, the count may pass LIMIT, if 2²⁹ guards were
//! forgotten before; it never reaches X, for there are fewer registered readers than X - LIMIT.
//!
//! The count changes by read-modify-write, except 0 → 1 (attach) and X+1 → 0 (detach), when no
//! other thread may change it: at 0 and at X+1 every reader is refused.
//!
//! # The event word
//!
//! A second word, an *eventcount*: bit 0 says that a thread may sleep on it, the rest counts
//! exclusions that ended. It is never reset and kept across reuse. A writer that waits for readers
//! sleeps on the count, one at most; what an *exclusion* refuses (a reader, another excluder)
//! sleeps on the event word. Ending an exclusion makes a system call only if bit 0 is set. What an
//! *edit* refuses waits for the mmap lock instead.
//!
//! # Invariants
//!
//! - **L1** A reader's increment succeeds only from 1 … LIMIT-1; that of a reader that has the VMA
//!   already, from any count that does not mean LIMIT readers or more.
//! - **L2** Between an admitted reader's increment (or its publication) and its release the VMA
//!   stays attached, to the same space, and nothing changes it: the thread that sets X waits for
//!   X+1.
//! - **L3** From the X+1 that its writer saw until the end of the edit, no reader is admitted:
//!   first the count refuses, then `lock_seq == seq` does.
//! - **L4** Only the holder of the mmap lock for writing sets X or attaches, and never sets X where
//!   it is set. Only the thread that set X clears it or detaches: an edit before it ends, an
//!   exclusion (see [`Excluded`](crate::slots::Excluded)) in a later edit, or without the lock when
//!   it is abandoned.
//!
//! # Where it comes from, and where it differs
//!
//! Linux 6.15's `vm_refcnt` (series 20250213224655.1680278-1-surenb@google.com), and the discussion
//! of January 2025 about the acquire on the increment. Different on purpose:
//!
//! - The sequence has 64 bits. With 32, a writer that finds a `lock_seq` from 2³¹ edits ago takes
//!   the VMA for write-locked by itself.
//! - The end of a wait is an acquire, and the end of an edit a release.
//! - A release of the count wakes through the slot, which is never freed, not through the space.
//! - X stays from before the wait until the detached count is 0, where Linux excludes twice.
//! - An exclusion outlives the mmap lock.
//!
//! # Rejected
//!
//! A saturating count: the memory is type-stable, so the second check is needed anyway, and at
//! the limit an increment can simply fail.
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

use core::hint;

use super::seq::{EditSeq, SpaceSeq};
use crate::ledger::{
    ATTACH_PUBLISH, EVENT_NOTIFY, EVENT_PREPARE, EXCLUDE_BEGIN, EXCLUDE_END, EXCLUDE_WAIT,
    HAZARD_ADMIT, READ_ADMIT, READ_RELEASE,
};
use crate::platform::Platform;
use crate::step::Step;
#[cfg(all(test, not(pervma_model)))]
use crate::sync::TEST;
use crate::sync::{AtomicU64, MUTANT, Relaxed, WaitWord, check, const_unless_model, keep};

/// X, the bit in the count that keeps readers out.
#[doc(alias("VMA_LOCK_OFFSET", "VM_REFCNT_EXCLUDE_READERS_FLAG"))]
pub const EXCLUDED: u32 = if cfg!(pervma_model) { 1 << 3 } else { 1 << 30 };

/// The count from which readers are refused: one attachment and LIMIT-1 readers. The values up to
/// X are for the registered readers that an exclusion transfers in addition.
pub const LIMIT: u32 = EXCLUDED / 2;

/// Of an increment by a reader that has the VMA already.
const AGAIN: Relaxed = Relaxed("what an acquiring reader sees, the caller has seen");

/// How often a reader's increment is tried when others change the count at the same time.
const ACQUIRE_TRIES: u32 = 64;

/// Why the count refused a reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The count is 0: nothing is attached in this slot.
    Detached,
    /// A writer or an excluder waits for readers, or holds the VMA.
    Excluded,
    /// Other threads changed the count during every try.
    Contended,
    /// The VMA has as many readers as LIMIT allows.
    Busy,
}

/// The lock in a VMA.
pub struct VmaLock {
    /// The count; see the table of values above.
    #[doc(alias = "vm_refcnt")]
    refcnt: WaitWord,
    /// Threads that an exclusion refused sleep on this word; see above.
    event: WaitWord,
    /// The edit that last write-locked or attached this VMA. Odd from the start, so that a fresh
    /// slot differs from one that no edit has locked.
    #[doc(alias = "vm_lock_seq")]
    lock_seq: AtomicU64,
}

impl VmaLock {
    const_unless_model! {
        /// The lock of a slot in which nothing was ever attached.
        pub fn new() -> Self {
            Self {
                refcnt: WaitWord::new(0),
                event: WaitWord::new(0),
                lock_seq: AtomicU64::new(u64::MAX),
            }
        }
    }

    /// Whether the VMA looks write-locked. May be wrong either way, and then costs a retry.
    #[inline(always)]
    pub fn looks_locked<E, L>(&self, seq: &SpaceSeq<E, L>) -> bool {
        seq.looks_current(self.lock_seq.load(Relaxed("a hint: `is_unlocked` decides")))
    }

    /// Acquires a reference, unless the VMA is detached, excluded or full.
    ///
    /// The holder may read the slot's space, and nothing else before
    /// [`is_unlocked`](Self::is_unlocked).
    ///
    /// # Errors
    ///
    /// Each row of the value table that refuses has its own, and so has a compare-exchange that
    /// kept failing.
    #[doc(alias = "vma_start_read")]
    #[inline(always)]
    pub fn try_acquire(&self) -> Result<(), Refused> {
        let mut count = self.refcnt.word().load(Relaxed("only the increment that follows admits"));
        for _ in 0..ACQUIRE_TRIES {
            match count {
                0 if keep(Step::RefuseDetached) => return Err(Refused::Detached),
                LIMIT..EXCLUDED if keep(Step::RefuseFull) => return Err(Refused::Busy),
                EXCLUDED.. if keep(Step::RefuseExcluded) => return Err(Refused::Excluded),
                _ => {}
            }
            match self.refcnt.word().compare_exchange_weak(count, count + 1, READ_ADMIT) {
                Ok(_) => return Ok(()),
                Err(now) => count = now,
            }
            hint::spin_loop();
        }
        Err(Refused::Contended)
    }

    /// The name of this VMA in a hazard pointer, never 0: its address, which does not change.
    #[inline(always)]
    pub(crate) fn name(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// As [`try_acquire`](Self::try_acquire), for a reader that has published that it reads the
    /// VMA, and is not counted.
    ///
    /// # Errors
    ///
    /// As for `try_acquire`, but that it is neither contended nor busy.
    #[inline(always)]
    pub(crate) fn test_published(&self) -> Result<(), Refused> {
        match self.refcnt.word().load(HAZARD_ADMIT) {
            0 if keep(Step::RefuseDetached) => Err(Refused::Detached),
            EXCLUDED.. if keep(Step::RefuseExcluded) => Err(Refused::Excluded),
            _ => Ok(()),
        }
    }

    /// Transfers a reader that is published to the count, for the thread that has set X.
    pub(crate) fn transfer_reader(&self) {
        self.refcnt
            .word()
            .fetch_add(1, Relaxed("its release is an edge, and the caller waits afterwards"));
    }

    /// Undoes [`transfer_reader`](Self::transfer_reader).
    pub(crate) fn undo_transfer(&self) {
        self.refcnt
            .word()
            .fetch_sub(1, Relaxed("HAZARD_SCAN has shown that it left, to the only waiter"));
    }

    /// Whether the VMA is not write-locked, for a reader that has acquired it and knows that the
    /// slot belongs to the space of `seq`.
    ///
    /// May say "locked" wrongly, when an edit ends meanwhile; never "unlocked" wrongly: `lock_seq`
    /// stays while the reader has a reference, and the edit that stored it is completed.
    #[inline(always)]
    pub fn is_unlocked<E, L>(&self, seq: &SpaceSeq<E, L>) -> bool {
        let lock_seq = self.lock_seq.load(Relaxed("READ_ADMIT made it visible, and it stays"));
        seq.is_completed(EditSeq::from_number(lock_seq)) || !keep(Step::CheckSeq)
    }

    /// The edit that last write-locked or attached the VMA, for a reader that was admitted.
    pub(crate) fn changed_by(&self) -> EditSeq {
        EditSeq::from_number(self.lock_seq.load(Relaxed("as in `is_unlocked`")))
    }

    /// Releases a reference. Nothing of the VMA may be read afterwards; waking touches the slot's
    /// memory, which is never freed while any thread may look.
    #[doc(alias("vma_end_read", "vma_refcount_put"))]
    #[inline(always)]
    pub fn release<P: Platform>(&self) {
        // The last but for the attachment, and a writer waits for that.
        if self.refcnt.word().fetch_sub(1, READ_RELEASE) == EXCLUDED + 2 && keep(Step::WakeWriter) {
            P::wake(&self.refcnt);
        }
    }

    /// Whether X is set. The caller holds the mmap lock: no thread sets it meanwhile.
    #[inline]
    pub(crate) fn is_excluded(&self) -> bool {
        let count = self
            .refcnt
            .word()
            .load(Relaxed("only under the mmap lock is X set; EXCLUDE_BEGIN follows"));
        count >= EXCLUDED && keep(Step::TestExcluded)
    }

    /// Whether `edit` has write-locked this VMA.
    #[inline]
    pub(crate) fn is_locked_by(&self, edit: EditSeq) -> bool {
        self.lock_seq.load(Relaxed("written under the mmap lock, which is held")) == edit.number()
    }

    /// Sets X in an attached VMA where it is not set: no reader acquires it any more. The mmap lock
    /// is held for writing.
    #[doc(alias("__vma_enter_locked", "__vma_start_exclude_readers"))]
    #[inline]
    pub fn exclude(&self) {
        let old = self.refcnt.word().fetch_add(EXCLUDED, EXCLUDE_BEGIN);
        check((1..EXCLUDED).contains(&old), "X is set once, in what is attached");
    }

    /// As [`exclude`](Self::exclude), if no reader is counted. Then the caller scans for registered
    /// readers, and tests whether the VMA [`is_drained`](Self::is_drained).
    #[inline]
    pub fn try_exclude_idle(&self) -> bool {
        let excluded = EXCLUDED + 1;
        self.refcnt
            .word()
            .compare_exchange(1, excluded, Relaxed("the test that follows is the acquire"))
            .is_ok()
    }

    /// Waits until the readers of an excluded VMA have released it; `false` if the deadline came
    /// first. Once true it stays so: no reader acquires it.
    #[doc(alias = "rcuwait_wait_event")]
    pub fn wait_drained<P: Platform>(&self, deadline: Option<P::Deadline>) -> bool {
        while let Err(count) = self.test_drained() {
            if !keep(Step::WaitForReaders) {
                return true;
            }
            if !P::wait(&self.refcnt, count, deadline) && deadline.is_some() {
                return self.is_drained();
            }
        }
        true
    }

    /// Whether the readers of an excluded VMA have released it.
    #[inline]
    pub(crate) fn is_drained(&self) -> bool {
        self.test_drained().is_ok()
    }

    /// Acquires it once more, for a reader that has it: also while X is set, since the thread that
    /// set it waits for that reader.
    ///
    /// # Errors
    ///
    /// [`Refused::Busy`].
    pub fn acquire_again(&self) -> Result<(), Refused> {
        let count = self.refcnt.word().fetch_add(1, AGAIN);
        if count % EXCLUDED < LIMIT || !keep(Step::RefuseFullAgain) {
            return Ok(());
        }
        // Not the last reader: the caller is another.
        self.refcnt.word().fetch_sub(1, AGAIN);
        Err(Refused::Busy)
    }

    /// Makes the count that of an attached VMA without readers, in a child of a fork: those that it
    /// counted are gone.
    pub(crate) fn forget_readers(&self) {
        self.refcnt.word().store(1, Relaxed("there is no other thread"));
    }

    /// How many readers an excluded VMA has just now.
    pub(crate) fn readers(&self) -> u32 {
        let count = self.refcnt.word().load(Relaxed("a count to look at, which orders nothing"));
        count.saturating_sub(EXCLUDED + 1)
    }

    /// The count, if an excluded VMA has readers.
    #[inline]
    fn test_drained(&self) -> Result<(), u32> {
        let count = self.refcnt.word().load(EXCLUDE_WAIT);
        if count == EXCLUDED + 1 { Ok(()) } else { Err(count) }
    }

    /// Write-locks a drained VMA for the rest of `edit`, and clears X: from here the sequence
    /// refuses readers.
    #[inline]
    pub fn lock_until_end_of(&self, edit: EditSeq) {
        let lock = || self.lock_seq.store(edit.number(), Relaxed("published by EXCLUDE_END"));
        if keep(Step::LockBeforeClear) {
            lock();
        }
        self.clear_excluded();
        if !keep(Step::LockBeforeClear) {
            lock();
        }
    }

    /// Clears X: readers are admitted again, unless the VMA is write-locked.
    #[doc(alias("__vma_exit_locked", "__vma_end_exclude_readers"))]
    #[inline]
    pub fn clear_excluded(&self) {
        self.refcnt.word().fetch_sub(EXCLUDED, EXCLUDE_END);
    }

    /// Whether nothing is attached, for the slot's owner.
    #[inline]
    pub(crate) fn is_detached(&self) -> bool {
        let count = self
            .refcnt
            .word()
            .load(Relaxed("the owner knows of the store of 0, and no other thread stores"));
        count == 0
    }

    /// Attaches a VMA that the slot's owner has just written, write-locked by `edit`.
    #[doc(alias = "vma_mark_attached")]
    #[inline]
    pub fn attach(&self, edit: EditSeq) {
        if keep(Step::AttachLocked) {
            self.lock_seq.store(edit.number(), Relaxed("published by ATTACH_PUBLISH"));
        }
        self.refcnt.word().store(1, ATTACH_PUBLISH);
    }

    /// Detaches a drained VMA. Afterwards the slot's fields are the caller's.
    #[doc(alias = "vma_mark_detached")]
    #[inline]
    pub fn detach(&self) {
        if !keep(Step::KeepExcluded) {
            self.clear_excluded();
        }
        self.refcnt.word().store(
            0,
            Relaxed("no reader acquires at 0; the next tenant is published by ATTACH_PUBLISH"),
        );
    }

    /// Wakes the threads that sleep because of an exclusion that has ended, X cleared or the count
    /// 0.
    pub fn notify<P: Platform>(&self) {
        if !keep(Step::SeparateEvent) {
            P::wake_all(&self.refcnt);
        }
        let mut event = self.event.word().load(Relaxed("the exchange that follows decides"));
        loop {
            // The next number, and no sleeper.
            let next =
                if keep(Step::AdvanceEvent) { (event | 1).wrapping_add(1) } else { event & !1 };
            match self.event.word().compare_exchange(event, next, EVENT_NOTIFY) {
                Ok(_) => break,
                Err(now) => event = now,
            }
        }
        if event & 1 != 0 && keep(Step::WakeAll) {
            P::wake_all(&self.event);
        } else if event & 1 != 0 {
            P::wake(&self.event);
        }
    }

    /// Announces a sleeper, with the mmap lock held and after the count was seen excluded. `None`
    /// if the exclusion has ended already; else what [`wait_notified`](Self::wait_notified) needs,
    /// once the mmap lock is released.
    pub fn prepare_wait(&self) -> Option<EventKey> {
        if !keep(Step::SeparateEvent) {
            return Some(EventKey(self.refcnt.word().load(MUTANT)));
        }
        let event = self.event.word().fetch_or(1, EVENT_PREPARE) | 1;
        let now = self.refcnt.word().load(Relaxed("EVENT_PREPARE stands in front of it"));
        (now >= EXCLUDED || !keep(Step::TestAgain)).then_some(EventKey(event))
    }

    /// Sleeps until the exclusion has ended for which the key was taken; `false` if the deadline
    /// came first. The slot may be another VMA's by then.
    pub fn wait_notified<P: Platform>(&self, key: EventKey, deadline: Option<P::Deadline>) -> bool {
        let event = if keep(Step::SeparateEvent) { &self.event } else { &self.refcnt };
        while event.word().load(Relaxed("the caller walks again, whatever it is")) == key.0 {
            if !P::wait(event, key.0, deadline) && deadline.is_some() {
                return false;
            }
        }
        true
    }
}

/// The value of the event word when a waiter announced itself.
#[derive(Clone, Copy)]
pub struct EventKey(u32);

#[cfg(all(test, not(pervma_model)))]
impl VmaLock {
    /// Pretends that the VMA has `readers`.
    pub(crate) fn pretend_readers(&self, readers: u32) {
        self.refcnt.word().store(1 + readers, TEST);
    }

    /// A release of a reference that is no release: a race.
    pub(crate) fn release_unordered<P: Platform>(&self) {
        if self.refcnt.word().fetch_sub(1, TEST) == EXCLUDED + 2 {
            P::wake(&self.refcnt);
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.refcnt.value()
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;
    use crate::host::StdPlatform;

    fn attached() -> (VmaLock, SpaceSeq) {
        let (lock, seq) = (VmaLock::new(), SpaceSeq::new((), ()));
        let edit = seq.begin();
        lock.attach(edit);
        seq.end(edit);
        (lock, seq)
    }

    /// B15i.
    #[test]
    fn every_row_of_the_value_table() {
        let (lock, seq) = (VmaLock::new(), SpaceSeq::new((), ()));
        assert_eq!((lock.count(), lock.try_acquire()), (0, Err(Refused::Detached)));

        let edit = seq.begin();
        lock.attach(edit);
        assert_eq!(lock.try_acquire(), Ok(()), "acquired, to find it write-locked");
        assert!(!lock.is_unlocked(&seq));
        lock.release::<StdPlatform>();
        seq.end(edit);

        assert_eq!((lock.count(), lock.try_acquire()), (1, Ok(())));
        assert!(lock.is_unlocked(&seq));
        assert_eq!(lock.count(), 2);
        lock.release::<StdPlatform>();

        lock.pretend_readers(LIMIT - 2);
        assert_eq!(lock.try_acquire(), Ok(()), "the last place");
        assert_eq!((lock.count(), lock.try_acquire()), (LIMIT, Err(Refused::Busy)));
        lock.pretend_readers(EXCLUDED - 2);
        assert_eq!(lock.try_acquire(), Err(Refused::Busy), "registered readers came on top");

        for excluded in [EXCLUDED + 1, EXCLUDED + 7] {
            lock.pretend_readers(excluded - 1);
            assert_eq!(lock.try_acquire(), Err(Refused::Excluded));
        }
    }

    #[test]
    fn a_write_lock_ends_with_its_edit_and_no_earlier() {
        let (lock, seq) = attached();
        let edit = seq.begin();
        assert!(lock.is_unlocked(&seq), "an edit locks nothing by itself");
        lock.exclude();
        assert!(lock.is_excluded() && lock.wait_drained::<StdPlatform>(None));
        lock.lock_until_end_of(edit);
        assert!(lock.is_locked_by(edit));
        assert_eq!(lock.count(), 1, "the sequence refuses, not the count");
        assert!(!lock.is_unlocked(&seq) && lock.looks_locked(&seq));
        seq.end(edit);
        assert!(lock.is_unlocked(&seq) && !lock.looks_locked(&seq));
    }

    #[test]
    fn detach_leaves_zero_and_the_slot_can_be_attached_again() {
        let (lock, seq) = attached();
        let edit = seq.begin();
        assert!(lock.try_exclude_idle());
        lock.detach();
        assert_eq!(lock.count(), 0);
        lock.attach(edit);
        assert!(!lock.is_unlocked(&seq), "a new tenant waits for the end of its edit");
        seq.end(edit);
        assert!(lock.is_unlocked(&seq));
    }

    #[test]
    fn a_wait_ends_with_the_last_reader_or_at_its_deadline() {
        let (lock, _) = attached();
        assert_eq!(lock.try_acquire(), Ok(()));
        assert!(!lock.try_exclude_idle(), "a reader has it");
        lock.exclude();
        let soon = std::time::Instant::now() + std::time::Duration::from_millis(1);
        assert!(!lock.wait_drained::<StdPlatform>(Some(soon)));
        lock.release::<StdPlatform>();
        assert!(lock.wait_drained::<StdPlatform>(Some(soon)), "over, however late");
        lock.clear_excluded();
        assert_eq!(lock.count(), 1);
    }

    #[test]
    fn a_key_is_given_only_while_the_exclusion_lasts() {
        let (lock, _) = attached();
        assert!(lock.prepare_wait().is_none(), "not excluded");
        lock.exclude();
        let key = lock.prepare_wait().expect("excluded");
        lock.clear_excluded();
        lock.notify::<StdPlatform>();
        assert!(lock.wait_notified::<StdPlatform>(key, None), "the event word has advanced");
        lock.exclude();
        let next = lock.prepare_wait().expect("excluded again");
        assert_ne!(key.0, next.0);
        let soon = std::time::Instant::now() + std::time::Duration::from_millis(1);
        assert!(!lock.wait_notified::<StdPlatform>(next, Some(soon)));
    }
}

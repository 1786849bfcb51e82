//! The VMA lock: a count and a sequence number in every VMA, one sequence number in the space.
//!
//! # Guarantee
//!
//! Whoever was admitted to a VMA ([`VmaLock::enter`], then [`VmaLock::unlocked`]) reads its fields
//! until [`VmaLock::leave`] without anyone changing them. Whoever write-locked it
//! ([`VmaLock::start_write`]) has it alone until the edit ends. One store, the end of the edit,
//! releases every write lock of the space at once.
//!
//! # Values of the count (`refcnt`)
//!
//! X is [`EXCLUDED`], bit 30 (bit 2 under the models, so that the count fills); LIMIT is X-1.
//!
//! | refcnt | meaning | a reader that comes now gets | left by |
//! |---|---|---|---|
//! | 0 | detached | *detached* | attach stores 1 |
//! | 1 | attached, nobody counted inside; write-locked if `lock_seq == seq` | in, if `seq` agrees | any transition |
//! | 2 … LIMIT | attached, value-1 readers inside, some only to find it write-locked and leave | in below LIMIT, *busy* at LIMIT | any transition |
//! | X | never | | |
//! | X+1 | attached, a writer or an excluder has it alone | *excluded* | its holder subtracts X, or detaches by storing 0 |
//! | above X+1 | a writer or an excluder waits for readers | *excluded* | readers leave |
//!
//! Registered readers ([`hazard`](crate::hazard)) are inside without being counted, until somebody adds X
//! and counts them: X comes before the count in all rows above. Should the exclusion be given up then,
//! the count may pass LIMIT, if 2³⁰ guards or so were forgotten before; readers are refused from there on.
//!
//! The count changes by read-modify-write, except 0 → 1 (attach) and X+1 → 0 (detach), when nobody
//! else may change it: at 0 and at X+1 every reader is refused.
//!
//! # The gate
//!
//! A second word, never reset, kept across reuse: bit 0 says that somebody may sleep on it, the
//! rest counts exclusions that ended. A writer that waits for readers sleeps on the count, one at
//! most; whoever an *exclusion* refuses (a reader, another excluder) sleeps on the gate. Ending an
//! exclusion makes a system call only if bit 0 is set. Whoever an *edit* refuses waits for the mmap
//! lock instead.
//!
//! # Invariants
//!
//! - **L1** A reader's increment succeeds only from 1 … LIMIT-1.
//! - **L2** Between an admitted reader's increment (or the publication of its visit) and its put the VMA
//!   stays attached, to the same space, and no one changes it: whoever adds X waits for X+1.
//! - **L3** From the X+1 that its writer saw until the end of the edit, nobody is admitted: first
//!   the count refuses, then `lock_seq == seq` does.
//! - **L4** Only the holder of the mmap lock for writing adds X or attaches, and never adds X where
//!   it is. Only who added X takes it away or detaches: an edit before it ends, an exclusion (see
//!   [`Excluded`](crate::slots::Excluded)) in a later edit, or without the lock when it gives up.
//!
//! # Where it comes from, and where it differs
//!
//! Linux 6.15's `vm_refcnt` (series 20250213224655.1680278-1-surenb@google.com) and the exchange
//! of January 2025 about the acquire on the increment. Different on purpose: the sequence has 64
//! bits, since with 32 a writer that meets a `lock_seq` from 2³¹ edits ago believes the VMA is its
//! own; the end of a wait is an acquire; the end of an edit is a release; a put wakes through the
//! slot, which is never freed, and not through the space; X stays from before the wait until the
//! detached count is 0, where Linux excludes twice; exclusions that outlive the lock.
//!
//! # Rejected
//!
//! A saturating count: the memory is type-stable, so the second check is needed anyway, and at
//! the limit an increment can simply fail.

use core::hint;

#[cfg(all(test, not(pervma_model)))]
use crate::facade::TEST;
use crate::facade::{
    AtomicU64, MUTANT, Meeting, Relaxed, WaitWord, check, const_unless_model, keep,
};
use crate::ledger::{
    ATTACH_PUBLISH, EDIT_BEGIN, EDIT_END, EXCLUDE_BEGIN, EXCLUDE_END, EXCLUDE_WAIT, GATE_OPEN,
    GATE_REGISTER, HAZARD_ADMIT, NODE_STAMP, READ_ADMIT, READ_PUT, READ_SEQ, READ_SETTLED,
    SEQ_SETTLE, STAMP_CHECK, Step,
};
use crate::platform::Platform;

/// X, the bit in the count that keeps readers out.
#[doc(alias("VMA_LOCK_OFFSET", "VM_REFCNT_EXCLUDE_READERS_FLAG"))]
pub const EXCLUDED: u32 = if cfg!(pervma_model) { 1 << 2 } else { 1 << 30 };

/// The most the count can hold: one attachment and LIMIT-1 readers.
pub const LIMIT: u32 = EXCLUDED - 1;

/// How often a reader's increment is tried when others change the count at the same time.
const ENTER_TRIES: u32 = 64;

/// The sequence number of a space: odd while an edit is under way.
///
/// It counts edits twice and has 64 bits, so it never comes back to a value. Beside it, on a line
/// that editors leave alone, stands a number that no edit up to it is under way: what an edit up to
/// there has written can be read without a look at the sequence, whose line a busy editor keeps
/// taking away. Readers move it on, when they meet something newer.
#[doc(alias = "mm_lock_seq")]
#[repr(C)]
pub struct SpaceSeq {
    current: Line<AtomicU64>,
    settled: AtomicU64,
    meeting: Meeting,
}

/// A value with its cache lines to itself.
#[repr(align(128))]
pub struct Line<V>(pub V);

/// The odd number that names an edit; only [`SpaceSeq::begin`] makes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EditSeq(u64);

/// A number such that all edits up to it are over.
#[derive(Clone, Copy, Debug)]
pub struct Settled(u64);

impl Settled {
    /// Whether `edit` is one of them.
    #[inline(always)]
    pub fn covers(self, edit: EditSeq) -> bool {
        edit.0 <= self.0
    }
}

/// The edit that last changed something which walkers read: a node of the tree, or its root.
///
/// It is stored before the change, so whoever has met a store of the change sees it behind
/// HOLE_CHECK. Where a node has gone to another space, it is a number of that space, which says nothing
/// here; but whoever sees that one also sees the stamp of what led to the node.
pub struct Stamp(AtomicU64);

impl Stamp {
    const_unless_model! {
        /// Of something that no edit has changed.
        pub fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Announces changes by `edit`.
    #[inline]
    pub fn set(&self, edit: EditSeq) {
        if keep(Step::StampNode) {
            self.0.store(edit.0, NODE_STAMP);
        }
    }

    /// Whether the last change was over at `settled`.
    #[inline]
    pub fn is_settled(&self, settled: Settled) -> bool {
        let edit = EditSeq(self.0.load(STAMP_CHECK));
        settled.covers(edit) || !keep(Step::CheckHole)
    }
}

impl SpaceSeq {
    const_unless_model! {
        /// The sequence of a space that was never edited.
        pub fn new() -> Self {
            Self {
                current: Line(AtomicU64::new(0)),
                settled: AtomicU64::new(0),
                meeting: Meeting::new(),
            }
        }
    }

    /// Begins an edit. The caller holds the mmap lock for writing.
    #[doc(alias = "mmap_write_lock")]
    #[inline]
    pub fn begin(&self) -> EditSeq {
        self.meeting.pass();
        let current = &self.current.0;
        let even = current.load(Relaxed("stored under the mmap lock, which is held"));
        check(even.is_multiple_of(2), "one edit at a time");
        current.store(even + 1, EDIT_BEGIN);
        EditSeq(even + 1)
    }

    /// The edit that is under way, for the thread whose edit it is.
    pub fn running(&self) -> EditSeq {
        EditSeq(self.current.0.load(Relaxed("this thread stored it")))
    }

    /// Ends the edit that `begin` named, and with it all its write locks.
    #[doc(alias = "vma_end_write_all")]
    #[inline]
    pub fn end(&self, edit: EditSeq) {
        self.current.0.store(edit.0 + 1, EDIT_END);
    }

    /// Where a walk and the begin of an edit meet, for a checker.
    #[inline(always)]
    pub fn meeting(&self) -> &Meeting {
        &self.meeting
    }

    /// What edits up to the result have written is visible.
    #[inline(always)]
    pub fn settled(&self) -> Settled {
        Settled(self.settled.load(READ_SETTLED))
    }

    /// The same, up to the last edit that is over by now, where `known` was not enough.
    #[cold]
    pub fn settle(&self, known: Settled) -> Settled {
        let current = self.current.0.load(READ_SEQ);
        // The edit with an odd number is not over.
        let over = if keep(Step::CheckEven) { current & !1 } else { current };
        // Without news, other readers are spared the store. Several may store out of order: each
        // number is as true as the next.
        if over > known.0 {
            self.settled.store(over, SEQ_SETTLE);
        }
        Settled(over)
    }

    /// Whether `edit` is over, and what it wrote visible.
    #[inline(always)]
    fn is_over(&self, edit: EditSeq) -> bool {
        let settled = self.settled();
        settled.covers(edit) || self.settle(settled).covers(edit)
    }
}

/// Why the count refused a reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The count is 0: nothing is attached in this slot.
    Detached,
    /// A writer or an excluder is waiting, or has it alone.
    Excluded,
    /// Others changed the count under every try.
    Contended,
    /// As many readers as the count can hold.
    Busy,
}

/// The lock in a VMA.
pub struct VmaLock {
    /// See the table of values above.
    #[doc(alias = "vm_refcnt")]
    refcnt: WaitWord,
    /// Where those sleep whom an exclusion refuses; see above.
    gate: WaitWord,
    /// The edit that last write-locked or attached this VMA. Odd from the start, so that a fresh
    /// slot is told from no edit.
    #[doc(alias = "vm_lock_seq")]
    lock_seq: AtomicU64,
}

impl VmaLock {
    const_unless_model! {
        /// The lock of a slot in which nothing was ever attached.
        pub fn new() -> Self {
            Self {
                refcnt: WaitWord::new(0),
                gate: WaitWord::new(0),
                lock_seq: AtomicU64::new(u64::MAX),
            }
        }
    }

    /// Whether the VMA looks write-locked. May be wrong either way, and then costs a retry.
    #[inline(always)]
    pub fn looks_locked(&self, seq: &SpaceSeq) -> bool {
        let lock_seq = self.lock_seq.load(Relaxed("a hint: `unlocked` decides"));
        let settled = seq.settled.load(Relaxed("a hint, as above"));
        lock_seq > settled && lock_seq == seq.current.0.load(Relaxed("a hint, as above"))
    }

    /// Takes a reference, unless the VMA is detached, excluded or full.
    ///
    /// The holder may read the slot's space, and nothing else before [`unlocked`](Self::unlocked).
    ///
    /// # Errors
    ///
    /// Each row of the value table that refuses has its own, and so has a count that will not
    /// hold still.
    #[doc(alias = "vma_start_read")]
    #[inline(always)]
    pub fn enter(&self) -> Result<(), Refused> {
        let mut count = self.refcnt.word().load(Relaxed("only the increment that follows admits"));
        for _ in 0..ENTER_TRIES {
            match count {
                0 if keep(Step::RefuseDetached) => return Err(Refused::Detached),
                LIMIT if keep(Step::RefuseFull) => return Err(Refused::Busy),
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

    /// What a reader that has published its visit calls the VMA: it stays where it is, and is never 0.
    #[inline(always)]
    pub fn name(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// As [`enter`](Self::enter), for a reader that has published its visit and takes no reference.
    ///
    /// # Errors
    ///
    /// As for `enter`, but that it is neither contended nor busy.
    #[inline(always)]
    pub fn visit(&self) -> Result<(), Refused> {
        match self.refcnt.word().load(HAZARD_ADMIT) {
            0 if keep(Step::RefuseDetached) => Err(Refused::Detached),
            EXCLUDED.. if keep(Step::RefuseExcluded) => Err(Refused::Excluded),
            _ => Ok(()),
        }
    }

    /// Counts a reader that has published its visit, for who has added X.
    pub fn count_in(&self) {
        self.refcnt
            .word()
            .fetch_add(1, Relaxed("its put is the release, and the caller waits afterwards"));
    }

    /// Takes that back.
    pub fn count_out(&self) {
        self.refcnt
            .word()
            .fetch_sub(1, Relaxed("HAZARD_SCAN has shown that it left, to the only waiter"));
    }

    /// Whether the VMA is not write-locked, for a reader that is inside and knows that the slot
    /// belongs to the space of `seq`.
    ///
    /// May say "locked" wrongly, when an edit ends meanwhile; never "unlocked" wrongly: `lock_seq`
    /// stays while the reader is inside, and the edit that stored it is over.
    #[inline(always)]
    pub fn unlocked(&self, seq: &SpaceSeq) -> bool {
        let lock_seq = self.lock_seq.load(Relaxed("READ_ADMIT made it visible, and it stays"));
        seq.is_over(EditSeq(lock_seq)) || !keep(Step::CheckSeq)
    }

    /// The edit that last write-locked or attached the VMA, for a reader that was admitted.
    pub fn changed_by(&self) -> EditSeq {
        EditSeq(self.lock_seq.load(Relaxed("as in `unlocked`")))
    }

    /// Leaves. Nothing of the VMA may be read afterwards; waking touches the slot's memory, which
    /// is never freed while anyone may look.
    #[doc(alias("vma_end_read", "vma_refcount_put"))]
    #[inline(always)]
    pub fn leave<P: Platform>(&self) {
        // The last but for the attachment, and somebody waits for that.
        if self.refcnt.word().fetch_sub(1, READ_PUT) == EXCLUDED + 2 && keep(Step::WakeWaiter) {
            P::wake(&self.refcnt);
        }
    }

    /// Whether somebody excludes readers. The caller holds the mmap lock: nobody begins meanwhile.
    #[inline]
    pub fn is_excluded(&self) -> bool {
        let count = self
            .refcnt
            .word()
            .load(Relaxed("only under the mmap lock is X added; EXCLUDE_BEGIN follows"));
        count >= EXCLUDED && keep(Step::TestExcluded)
    }

    /// Whether `edit` has write-locked this VMA.
    #[inline]
    pub fn is_locked_by(&self, edit: EditSeq) -> bool {
        self.lock_seq.load(Relaxed("written under the mmap lock, which is held")) == edit.0
    }

    /// Keeps readers from coming in to an attached VMA that nobody excludes. The mmap lock is held
    /// for writing.
    #[doc(alias("__vma_enter_locked", "__vma_start_exclude_readers"))]
    #[inline]
    pub fn exclude(&self) {
        let old = self.refcnt.word().fetch_add(EXCLUDED, EXCLUDE_BEGIN);
        check((1..EXCLUDED).contains(&old), "X is added once, to what is attached");
    }

    /// As [`exclude`](Self::exclude), if nobody is counted. Then the caller counts those who have
    /// published a visit, and looks whether it [`is_alone`](Self::is_alone).
    #[inline]
    pub fn exclude_idle(&self) -> bool {
        let excluded = EXCLUDED + 1;
        self.refcnt.word().compare_exchange(1, excluded, Relaxed("the look is the acquire")).is_ok()
    }

    /// Waits until the readers of an excluded VMA have left; `false` if the deadline came first.
    /// Once true it stays so: nobody enters.
    #[doc(alias = "rcuwait_wait_event")]
    pub fn wait_alone<P: Platform>(&self, deadline: Option<P::Deadline>) -> bool {
        while let Err(count) = self.alone() {
            if !keep(Step::WaitForReaders) {
                return true;
            }
            if !P::wait(&self.refcnt, count, deadline) && deadline.is_some() {
                return self.is_alone();
            }
        }
        true
    }

    /// Whether the readers of an excluded VMA have left.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.alone().is_ok()
    }

    /// The count, if the readers of an excluded VMA have not left.
    #[inline]
    fn alone(&self) -> Result<(), u32> {
        let count = self.refcnt.word().load(EXCLUDE_WAIT);
        if count == EXCLUDED + 1 { Ok(()) } else { Err(count) }
    }

    /// Write-locks a VMA that the caller has alone, for the rest of `edit`, and takes X away: from
    /// here the sequence refuses readers.
    #[inline]
    pub fn lock_until_end_of(&self, edit: EditSeq) {
        let mark = || self.lock_seq.store(edit.0, Relaxed("published by EXCLUDE_END"));
        if keep(Step::MarkBeforeEnd) {
            mark();
        }
        self.readmit();
        if !keep(Step::MarkBeforeEnd) {
            mark();
        }
    }

    /// Ends what [`exclude`](Self::exclude) began: readers come in again, unless the VMA is
    /// write-locked.
    #[doc(alias("__vma_exit_locked", "__vma_end_exclude_readers"))]
    #[inline]
    pub fn readmit(&self) {
        self.refcnt.word().fetch_sub(EXCLUDED, EXCLUDE_END);
    }

    /// Whether nothing is attached, for the slot's owner.
    #[inline]
    pub fn is_detached(&self) -> bool {
        self.refcnt
            .word()
            .load(Relaxed("the owner knows of the store of 0, and nobody else stores"))
            == 0
    }

    /// Attaches a VMA that the slot's owner has just written, write-locked by `edit`.
    #[doc(alias = "vma_mark_attached")]
    #[inline]
    pub fn attach(&self, edit: EditSeq) {
        if keep(Step::AttachLocked) {
            self.lock_seq.store(edit.0, Relaxed("published by ATTACH_PUBLISH"));
        }
        self.refcnt.word().store(1, ATTACH_PUBLISH);
    }

    /// Detaches a VMA that the caller has alone. Afterwards the slot's fields are the caller's.
    #[doc(alias = "vma_mark_detached")]
    #[inline]
    pub fn detach(&self) {
        if !keep(Step::KeepExcluded) {
            self.readmit();
        }
        self.refcnt.word().store(
            0,
            Relaxed("nobody enters at 0; the next tenant is published by ATTACH_PUBLISH"),
        );
    }

    /// Lets those go on who sleep because of an exclusion that has ended, X gone or the count 0.
    pub fn open_gate<P: Platform>(&self) {
        if !keep(Step::SeparateGate) {
            P::wake_all(&self.refcnt);
        }
        let mut gate = self.gate.word().load(Relaxed("the exchange that follows decides"));
        loop {
            // The next number, and nobody asleep.
            let open = if keep(Step::AdvanceGate) { (gate | 1).wrapping_add(1) } else { gate & !1 };
            match self.gate.word().compare_exchange(gate, open, GATE_OPEN) {
                Ok(_) => break,
                Err(now) => gate = now,
            }
        }
        if gate & 1 != 0 && keep(Step::WakeAll) {
            P::wake_all(&self.gate);
        } else if gate & 1 != 0 {
            P::wake(&self.gate);
        }
    }

    /// Announces a sleeper, with the mmap lock held and after the count was seen excluded. `None`
    /// if that is over already; else what [`sleep`](Self::sleep) needs, once the mmap lock is let
    /// go.
    pub fn register(&self) -> Option<Ticket> {
        if !keep(Step::SeparateGate) {
            return Some(Ticket(self.refcnt.word().load(MUTANT)));
        }
        let gate = self.gate.word().fetch_or(1, GATE_REGISTER) | 1;
        let now = self.refcnt.word().load(Relaxed("GATE_REGISTER stands in front of it"));
        (now >= EXCLUDED || !keep(Step::LookAgain)).then_some(Ticket(gate))
    }

    /// Sleeps until the exclusion is over that the ticket was drawn for. The slot may be another
    /// VMA's by then.
    pub fn sleep<P: Platform>(&self, ticket: Ticket) {
        let gate = if keep(Step::SeparateGate) { &self.gate } else { &self.refcnt };
        while gate.word().load(Relaxed("the caller walks again, whatever it is")) == ticket.0 {
            P::wait(gate, ticket.0, None);
        }
    }
}

/// What the gate showed when a sleeper registered.
#[derive(Clone, Copy)]
pub struct Ticket(u32);

#[cfg(all(test, not(pervma_model)))]
impl VmaLock {
    /// Pretends that `readers` are inside.
    pub(crate) fn pretend_readers(&self, readers: u32) {
        self.refcnt.word().store(1 + readers, TEST);
    }

    /// A put that is no release: a race.
    pub(crate) fn leave_unordered<P: Platform>(&self) {
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
    use crate::platform::StdPlatform;

    fn attached() -> (VmaLock, SpaceSeq) {
        let (lock, seq) = (VmaLock::new(), SpaceSeq::new());
        let edit = seq.begin();
        lock.attach(edit);
        seq.end(edit);
        (lock, seq)
    }

    /// B15i.
    #[test]
    fn every_row_of_the_value_table() {
        let (lock, seq) = (VmaLock::new(), SpaceSeq::new());
        assert_eq!((lock.count(), lock.enter()), (0, Err(Refused::Detached)));

        let edit = seq.begin();
        lock.attach(edit);
        assert_eq!(lock.enter(), Ok(()), "in, to find it write-locked");
        assert!(!lock.unlocked(&seq));
        lock.leave::<StdPlatform>();
        seq.end(edit);

        assert_eq!((lock.count(), lock.enter()), (1, Ok(())));
        assert!(lock.unlocked(&seq));
        assert_eq!(lock.count(), 2);
        lock.leave::<StdPlatform>();

        lock.pretend_readers(LIMIT - 2);
        assert_eq!(lock.enter(), Ok(()), "the last place");
        assert_eq!((lock.count(), lock.enter()), (LIMIT, Err(Refused::Busy)));

        for excluded in [EXCLUDED + 1, EXCLUDED + 7] {
            lock.pretend_readers(excluded - 1);
            assert_eq!(lock.enter(), Err(Refused::Excluded));
        }
    }

    #[test]
    fn a_write_lock_ends_with_its_edit_and_no_earlier() {
        let (lock, seq) = attached();
        let edit = seq.begin();
        assert!(lock.unlocked(&seq), "an edit locks nothing by itself");
        lock.exclude();
        assert!(lock.is_excluded() && lock.wait_alone::<StdPlatform>(None));
        lock.lock_until_end_of(edit);
        assert!(lock.is_locked_by(edit));
        assert_eq!(lock.count(), 1, "the sequence refuses, not the count");
        assert!(!lock.unlocked(&seq) && lock.looks_locked(&seq));
        seq.end(edit);
        assert!(lock.unlocked(&seq) && !lock.looks_locked(&seq));
    }

    #[test]
    fn detach_leaves_zero_and_the_slot_can_be_attached_again() {
        let (lock, seq) = attached();
        let edit = seq.begin();
        assert!(lock.exclude_idle());
        lock.detach();
        assert_eq!(lock.count(), 0);
        lock.attach(edit);
        assert!(!lock.unlocked(&seq), "a new tenant waits for the end of its edit");
        seq.end(edit);
        assert!(lock.unlocked(&seq));
    }

    #[test]
    fn a_change_is_settled_when_its_edit_is_over_and_somebody_has_looked() {
        let (seq, stamp) = (SpaceSeq::new(), Stamp::new());
        assert!(stamp.is_settled(seq.settled()), "never changed");
        let edit = seq.begin();
        stamp.set(edit);
        assert!(!stamp.is_settled(seq.settle(seq.settled())), "an edit is under way");
        seq.end(edit);
        assert!(!stamp.is_settled(seq.settled()), "nobody has looked");
        assert!(stamp.is_settled(seq.settle(seq.settled())) && stamp.is_settled(seq.settled()));
        let next = seq.begin();
        assert!(stamp.is_settled(seq.settle(seq.settled())), "another edit does not matter");
        seq.end(next);
    }

    #[test]
    fn a_wait_ends_with_the_last_reader_or_at_its_deadline() {
        let (lock, _) = attached();
        assert_eq!(lock.enter(), Ok(()));
        assert!(!lock.exclude_idle(), "somebody is inside");
        lock.exclude();
        let soon = std::time::Instant::now() + std::time::Duration::from_millis(1);
        assert!(!lock.wait_alone::<StdPlatform>(Some(soon)));
        lock.leave::<StdPlatform>();
        assert!(lock.wait_alone::<StdPlatform>(Some(soon)), "over, however late");
        lock.readmit();
        assert_eq!(lock.count(), 1);
    }

    #[test]
    fn a_ticket_is_drawn_only_while_the_exclusion_lasts() {
        let (lock, _) = attached();
        assert!(lock.register().is_none(), "nobody excludes");
        lock.exclude();
        let ticket = lock.register().expect("excluded");
        lock.readmit();
        lock.open_gate::<StdPlatform>();
        lock.sleep::<StdPlatform>(ticket); // returns: the gate has moved on
        lock.exclude();
        let next = lock.register().expect("excluded again");
        assert_ne!(ticket.0, next.0);
    }
}

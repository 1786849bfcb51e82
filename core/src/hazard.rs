//! Registered readers: they publish in a hazard pointer of their own which VMA they read, instead
//! of counting themselves in it. Any number of threads read one VMA and write no line that they
//! share.
//!
//! # How it goes
//!
//! A reader stores the VMA's name into a free [`Hazard`] of its [`Record`], then tests the count:
//! if a VMA is attached and X is not set (see [`VmaLock`]), the reader has the VMA,
//! as if it had been counted. It retracts the publication by storing [`RETRACTED`]. A thread that
//! excludes the VMA sets X, then scans all records. What it finds published there it *transfers* to
//! the count ([`VmaLock::transfer_reader`]), and says so in a second word beside the hazard
//! pointer, so that from then on the count is all that it waits for: a reader that finds itself
//! transferred when it has retracted releases the count. Then the hazard pointer is free again.
//!
//! Twice one thread stores to one word and tests another while a second thread does it the other
//! way round, and at least one of the two must see the other's store:
//!
//! | reader | writer |
//! |---|---|
//! | publishes (HAZARD_PUBLISH_FENCE), tests the count | sets X (HAZARD_SCAN_FENCE), scans |
//! | retracts (HAZARD_RETRACT_FENCE), tests for a transfer | transfers (HAZARD_TRANSFER_FENCE), tests the hazard pointer again |
//!
//! Where the platform can make all running threads pass a barrier ([`Platform::barrier`]), the
//! reader's two fences are the compiler's only.
//!
//! # Invariants
//!
//! - **H1** Only the thread that owns a record, and its signal handlers, store to its hazard
//!   pointers.
//! - **H2** One thread at a time scans the records: they are guarded as their arena is.
//! - **H3** `transferred` is 0, or the name of the VMA whose count includes this reader; the thread
//!   that makes it 0, by exchange, releases that count.
//! - **H4** A record gets its owner under the guard of the arena; it is given up with nothing
//!   published.
//!
//! # Where it comes from, and where it differs
//!
//! Hazard pointers (Michael, *IEEE TPDS* 15(6), 2004) for the publication, BRAVO (Dice and Kogan,
//! USENIX ATC 2019) for a writer that revokes it, `membarrier(2)` for the barrier. BRAVO's writer
//! polls its readers and keeps them from publishing for a time; here it transfers those that it
//! finds to the word that it waits on anyway, and the next reader publishes again.
#![expect(unsafe_code, reason = "records are shared among threads as H1 to H4 say")]

use core::marker::PhantomData;

use crate::arena::{All, Arena, CAPACITY, Object, Users};
use crate::error::OutOfMemory;
use crate::ledger::{
    HAZARD_FREE, HAZARD_PUBLISH, HAZARD_PUBLISH_FENCE, HAZARD_RETRACT, HAZARD_RETRACT_FENCE,
    HAZARD_SCAN, HAZARD_SCAN_FENCE, HAZARD_TRANSFER_FENCE, RECORD_GIVE_UP, RECORD_TEST,
};
use crate::lock::{EXCLUDED, LIMIT, VmaLock};
use crate::mm::EditSection;
use crate::platform::Platform;
use crate::step::Step;
use crate::sync::{
    AtomicU32, AtomicU64, AtomicUsize, Cell, FenceOrder, Relaxed, const_unless_model, fence, keep,
    signal_fence,
};
use crate::thread::ThreadState;

/// Hazard pointers in a record: guards that a thread can hold at once without counting.
const HAZARDS: usize = if cfg!(pervma_model) { 2 } else { 4 };

// All of them, counted in one VMA in addition to LIMIT, do not make X.
const _: () = assert!(cfg!(pervma_model) || CAPACITY * HAZARDS < (EXCLUDED - LIMIT) as usize);

/// The value of a hazard pointer whose reader has retracted, and tests for a transfer. Names of
/// VMAs are aligned addresses, so it is none.
const RETRACTED: usize = 1;

/// The state of a record without an owner.
const FREE: u32 = 0;
/// The state of a record whose owner fences.
const FENCES: u32 = 1;
/// The state of a record whose owner relies on the platform's barrier.
const BARRIERS: u32 = 2;

/// The hazard pointers of one registered reader, on cache lines of their own.
#[repr(C, align(128))]
pub(crate) struct Record {
    hazards: [Hazard; HAZARDS],
    owner: AtomicU32,
    link: Cell<u32>,
    /// The thread that owns it: to tell, after a fork, whose owners are gone.
    thread: AtomicU64,
}

/// A hazard pointer: where one read lock is published, from before it is tested until it is over.
pub(crate) struct Hazard {
    /// The name of the VMA that is read, [`RETRACTED`], or 0 if the hazard pointer is free.
    published: AtomicUsize,
    /// The VMA whose count includes this reader, or 0 (H3).
    transferred: AtomicUsize,
    /// The owner of the record.
    owner: AtomicU32,
    /// H1: it is not `Sync`, so a read lock stays with its thread.
    thread: PhantomData<Cell<()>>,
}

impl Hazard {
    /// Whether nothing is published here, for the owner.
    #[inline(always)]
    fn is_free(&self) -> bool {
        let published =
            self.published.load(Relaxed("H1: only this thread and its own signal handlers store"));
        published == 0
    }

    /// Releases the read lock of `vma` that was published here.
    #[inline(always)]
    pub(crate) fn release<P: Platform>(&self, vma: &VmaLock) {
        // Not free yet: if a handler of this thread used it now, the transfer could be overwritten.
        self.published.store(RETRACTED, HAZARD_RETRACT);
        self.fence(HAZARD_RETRACT_FENCE);
        let transferred =
            self.transferred.load(Relaxed("the exchange decides; the fence stands in front"));
        if transferred == vma.name() && self.take_transfer(vma) {
            vma.release::<P>();
        }
        self.published.store(0, HAZARD_FREE);
    }

    #[inline(always)]
    fn fence(&self, edge: impl FenceOrder) {
        if self.owner.load(Relaxed("changes only while this thread has no record")) == BARRIERS {
            signal_fence();
        } else {
            fence(edge);
        }
    }

    /// The published name, for a scan. Reads of what was published before are over.
    #[inline]
    fn scan(&self) -> usize {
        self.published.load(HAZARD_SCAN)
    }

    /// Makes the transfer void, if it is one to this VMA.
    fn take_transfer(&self, vma: &VmaLock) -> bool {
        let exchanged = self.transferred.compare_exchange(
            vma.name(),
            0,
            Relaxed("the count is a sum: it does not matter which of the two changes comes first"),
        );
        exchanged.is_ok()
    }
}

impl Object for Record {
    fn new() -> Self {
        let hazard = |_| Hazard {
            published: AtomicUsize::new(0),
            transferred: AtomicUsize::new(0),
            owner: AtomicU32::new(FREE),
            thread: PhantomData,
        };
        Self {
            hazards: core::array::from_fn(hazard),
            owner: AtomicU32::new(FREE),
            link: Cell::new(0),
            thread: AtomicU64::new(0),
        }
    }

    fn link(&self) -> &Cell<u32> {
        &self.link
    }
}

impl Record {
    /// Publishes that `vma` is read, if a hazard pointer is free. Afterwards
    /// [`VmaLock::test_published`] says whether the reader has it.
    ///
    /// A signal handler may run between any two steps. It retracts what it publishes before it
    /// returns, so it leaves the hazard pointers as it found them.
    #[inline(always)]
    pub(crate) fn publish(&self, vma: &VmaLock) -> Option<&Hazard> {
        let hazard = self.free_hazard()?;
        hazard.published.store(vma.name(), HAZARD_PUBLISH);
        hazard.fence(HAZARD_PUBLISH_FENCE);
        Some(hazard)
    }

    #[inline(always)]
    fn free_hazard(&self) -> Option<&Hazard> {
        let [first, others @ ..] = &self.hazards;
        if first.is_free() { Some(first) } else { Self::free_among(others) }
    }

    #[cold]
    fn free_among(hazards: &[Hazard]) -> Option<&Hazard> {
        hazards.iter().find(|hazard| hazard.is_free())
    }

    /// Gives the record up, unless a guard was forgotten: then it keeps its owner, as the VMA stays
    /// read-locked.
    pub(crate) fn give_up(&self) {
        if self.hazards.iter().all(Hazard::is_free) {
            self.owner.store(FREE, RECORD_GIVE_UP);
        }
    }

    /// What its owner is. If it has none, all that was published here is over.
    #[inline]
    fn owner(&self) -> u32 {
        self.owner.load(RECORD_TEST)
    }
}

/// Whether a reader that registers now can leave fences to the platform's barrier. Asked with no
/// lock held: the first time can take a while.
#[derive(Clone, Copy)]
pub(crate) struct Fencing(u32);

impl Fencing {
    pub(crate) fn choose<P: Platform>() -> Self {
        Self(if P::prepare_barrier() { BARRIERS } else { FENCES })
    }
}

/// The records of a slab.
pub(crate) struct Registry<P: Platform>(Arena<Record, P>);

// SAFETY: it lends a record, whose words are atomic but for `link` (A3), to the thread that owns it
// only; neither a record nor a hazard is `Sync`, so it stays there (H1). Scans test the words, in
// here.
unsafe impl<P: Platform> Sync for Registry<P> {}
// SAFETY: nothing in a record belongs to a thread while it has no owner.
unsafe impl<P: Platform> Send for Registry<P> {}

impl<P: Platform> Registry<P> {
    const_unless_model! {
        pub(crate) fn new(users: Users) -> Self {
            Self(Arena::new(users))
        }
    }

    /// A record for the running thread.
    ///
    /// The section is one of the space that the thread is going to read: it will see what was
    /// excluded there before, and a thread that excludes later scans here.
    pub(crate) fn register(
        &self,
        section: &EditSection<'_, P>,
        Fencing(owner): Fencing,
    ) -> Result<&Record, OutOfMemory> {
        loop {
            let free = self.0.with_all(section, |mut records| {
                let free = records.find(|record| record.owner() == FREE)?;
                let owners = free.hazards.iter().map(|hazard| &hazard.owner).chain([&free.owner]);
                for word in owners {
                    word.store(owner, Relaxed("H4: the guard of the arena publishes it"));
                }
                if P::FORKS {
                    let thread = P::with_thread(ThreadState::id).unwrap_or(0);
                    free.thread.store(thread, Relaxed("read only after a fork"));
                }
                Some(free)
            });
            if let Some(record) = free {
                return Ok(record);
            }
            // Any thread may take it.
            self.0.alloc(section)?;
        }
    }

    /// Gives up the records of all other threads after a fork, in the child.
    ///
    /// # Safety
    ///
    /// The caller is the only thread of its process, has just forked, and does not guard the
    /// records.
    pub(crate) unsafe fn forget_others(&self, section: &EditSection<'_, P>) {
        const GONE: Relaxed = Relaxed("there is no other thread");
        // SAFETY: as the caller says.
        unsafe { self.0.renew() };
        let me = P::with_thread(ThreadState::id).unwrap_or(0);
        self.0.with_all(section, |records| {
            for record in records.filter(|record| record.thread.load(GONE) != me) {
                for hazard in &record.hazards {
                    hazard.published.store(0, GONE);
                    hazard.transferred.store(0, GONE);
                }
                record.owner.store(FREE, GONE);
            }
        });
    }

    /// Transfers the readers that have published one of `vmas`, all excluded by the caller, to the
    /// counts: from here on the counts tell when they have left. Whether there may be any.
    #[inline]
    pub(crate) fn transfer_readers<'l>(
        &self,
        section: &EditSection<'_, P>,
        vmas: impl Iterator<Item = &'l VmaLock> + Clone,
    ) -> bool {
        self.0.has_any()
            && keep(Step::ScanHazards)
            && self.0.with_all(section, |records| scan::<P>(records, vmas))
    }
}

#[cold]
fn scan<'l, P: Platform>(
    records: All<'_, Record, P>,
    vmas: impl Iterator<Item = &'l VmaLock> + Clone,
) -> bool {
    let owners = || records.clone().map(Record::owner);
    let barriers = owners().any(|owner| owner == BARRIERS);
    if !barriers && owners().all(|owner| owner == FREE) {
        return false;
    }
    let hazards = || records.clone().flat_map(|record| &record.hazards);
    let find = |name| vmas.clone().find(|vma| vma.name() == name);
    let transferred = |hazard: &Hazard| {
        hazard
            .transferred
            .load(Relaxed("H2; else only a reader makes it 0, whose name is gone by then"))
    };
    if barriers && keep(Step::BarrierToScan) {
        P::barrier();
    }
    fence(HAZARD_SCAN_FENCE);
    let mut found = false;
    for hazard in hazards() {
        let name = hazard.scan();
        if name <= RETRACTED || (transferred(hazard) == name && keep(Step::SkipTransferred)) {
            continue;
        }
        if let Some(vma) = find(name) {
            vma.transfer_reader();
            hazard.transferred.store(name, Relaxed("HAZARD_TRANSFER_FENCE follows"));
            found = true;
        }
    }
    if !found {
        return false;
    }
    if barriers && keep(Step::BarrierToTransfer) {
        P::barrier();
    }
    fence(HAZARD_TRANSFER_FENCE);
    for hazard in hazards() {
        let name = transferred(hazard);
        // Else it is still published, and its reader will find the transfer.
        if name != 0
            && hazard.scan() != name
            && keep(Step::UndoTransfer)
            && let Some(vma) = find(name).filter(|vma| hazard.take_transfer(vma))
        {
            vma.undo_transfer();
        }
    }
    true
}

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
//! # Idle records
//!
//! Such a barrier costs far more than the rest of an edit, so none is asked for because of readers
//! that read nothing. A record in which scan after scan has found nothing is *tried*, in front of
//! the scan's barrier, and *idle* if the scan finds nothing behind it. Its owner sees either behind
//! its next publication, retracts it, and counts itself. It also *resumes*: before it publishes
//! again, it counts in the registry that a record has become busy, and fences. A scan that finds
//! all records idle, or without an owner, notes the number that it saw there. While that stays the
//! same, no thread scans.
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
//! - **H5** While `resumed` is what `idle_at` says, no owner relies on what it publishes: each
//!   record is idle, or without an owner, or its owner has yet to count that it resumes. So a scan
//!   makes busy again only what it has tried itself; of an idle record it finds what is about to be
//!   retracted.
//!
//! # Where it comes from, and where it differs
//!
//! Hazard pointers (Michael, *IEEE TPDS* 15(6), 2004) for the publication, BRAVO (Dice and Kogan,
//! USENIX ATC 2019) for a writer that revokes it, `membarrier(2)` for the barrier. BRAVO's writer
//! polls its readers and keeps them from publishing for a time; here it transfers those that it
//! finds to the word that it waits on anyway, and the next reader publishes again.
#![expect(unsafe_code, reason = "records are shared among threads as H1 to H5 say")]

use core::marker::PhantomData;

use crate::arena::{All, Arena, CAPACITY, Object, Users};
use crate::error::OutOfMemory;
use crate::ledger::{
    HAZARD_FREE, HAZARD_PUBLISH, HAZARD_PUBLISH_FENCE, HAZARD_RETRACT, HAZARD_RETRACT_FENCE,
    HAZARD_SCAN, HAZARD_SCAN_FENCE, HAZARD_TRANSFER_FENCE, RECORD_GIVE_UP, RECORD_RESUME,
    RECORD_RESUME_FENCE, RECORD_TEST, RECORDS_BUSY, RECORDS_IDLE, RECORDS_TEST_IDLE,
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

/// Scans in a row that must find nothing in a record, the last of which makes it idle. They take
/// far longer than what it takes to resume.
const SCANS_TO_IDLE: u32 = if cfg!(pervma_model) { 1 } else { 16 };

/// The state of a record without an owner.
const FREE: u32 = 0;
/// The state of a record whose owner fences. It does not become idle.
const FENCES: u32 = 1;
/// The state of a record whose owner relies on the platform's barrier.
const BARRIERS: u32 = 2;
/// The same, while a scan tries whether it is idle. Its owner takes it for that.
const TRIED: u32 = 3;
/// The same, idle: its owner does not read what it publishes.
const IDLE: u32 = 4;
/// The same, as its owner is about to publish again.
const RESUMING: u32 = 5;

/// The hazard pointers of one registered reader, on cache lines of their own.
#[repr(C, align(128))]
pub(crate) struct Record {
    hazards: [Hazard; HAZARDS],
    state: AtomicU32,
    /// How many scans in a row have found nothing here.
    quiet: AtomicU32,
    link: Cell<u32>,
    /// The thread that owns it: to tell, after a fork, whose owners are gone.
    thread: AtomicU64,
    made: Cell<()>,
}

/// A hazard pointer: where one read lock is published, from before it is tested until it is over.
pub(crate) struct Hazard {
    /// The name of the VMA that is read, [`RETRACTED`], or 0 if the hazard pointer is free.
    published: AtomicUsize,
    /// The VMA whose count includes this reader, or 0 (H3).
    transferred: AtomicUsize,
    /// [`FENCES`] or [`BARRIERS`], as the owner of the record does.
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
            state: AtomicU32::new(FREE),
            quiet: AtomicU32::new(0),
            link: Cell::new(0),
            thread: AtomicU64::new(0),
            made: Cell::new(()),
        }
    }

    fn link(&self) -> &Cell<u32> {
        &self.link
    }

    fn made(&self) -> &Cell<()> {
        &self.made
    }
}

impl Record {
    /// Publishes that `vma` is read, if a hazard pointer is free and the record is not idle.
    /// Afterwards [`VmaLock::test_published`] says whether the reader has it.
    ///
    /// A signal handler may run between any two steps. It retracts what it publishes before it
    /// returns, so it leaves the hazard pointers as it found them.
    #[inline(always)]
    pub(crate) fn publish<P: Platform>(&self, vma: &VmaLock) -> Option<&Hazard> {
        let hazard = self.free_hazard()?;
        hazard.published.store(vma.name(), HAZARD_PUBLISH);
        signal_fence();
        // A scan asks for its barrier between trying the record and looking there. So either it
        // finds the publication, or this finds the record tried.
        match self.state.load(Relaxed("the scan's barrier; RECORD_RESUME_FENCE")) {
            BARRIERS => Some(hazard),
            TRIED | IDLE | RESUMING if keep(Step::RetractIdle) => {
                Self::retract_idle::<P>(hazard, vma)
            }
            _ => {
                fence(HAZARD_PUBLISH_FENCE);
                Some(hazard)
            }
        }
    }

    /// A scan may have found the publication nevertheless.
    #[cold]
    fn retract_idle<P: Platform>(hazard: &Hazard, vma: &VmaLock) -> Option<&'static Hazard> {
        hazard.release::<P>(vma);
        None
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
            self.state.store(FREE, RECORD_GIVE_UP);
        }
    }

    /// The state, for a scan. Without an owner, all that was published here is over.
    #[inline]
    fn state(&self) -> u32 {
        self.state.load(RECORD_TEST)
    }

    /// Tries the record, for a scan that is the last of enough. A barrier follows.
    fn try_idle(&self) {
        if self.quiet.load(QUIET) + 1 >= SCANS_TO_IDLE {
            let _ = self.state.compare_exchange(BARRIERS, TRIED, Relaxed("a barrier follows"));
        }
    }

    /// Ends a trial, and notes whether the scan has found something published: then the owner may
    /// not have seen the trial.
    fn end_scan(&self, found: bool) {
        let quiet = if found { 0 } else { (self.quiet.load(QUIET) + 1).min(SCANS_TO_IDLE) };
        self.quiet.store(quiet, QUIET);
        let state = if found && keep(Step::KeepBusy) { BARRIERS } else { IDLE };
        let scans = Relaxed("scans are ordered (H2), and the owner that resumes is counted");
        let _ = self.state.compare_exchange(TRIED, state, scans);
    }
}

const QUIET: Relaxed = Relaxed("a number to decide by; wrong, it only costs time");

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
pub(crate) struct Registry<P: Platform> {
    records: Arena<Record, P>,
    /// How often a record has become busy.
    resumed: AtomicU64,
    /// That number as a scan saw it that then found all records idle or without an owner.
    idle_at: AtomicU64,
}

// SAFETY: it lends a record, whose words are atomic but for `link` (A3), to the thread that owns it
// only; neither a record nor a hazard is `Sync`, so it stays there (H1). Scans test the words, in
// here.
unsafe impl<P: Platform> Sync for Registry<P> {}
// SAFETY: nothing in a record belongs to a thread while it has no owner.
unsafe impl<P: Platform> Send for Registry<P> {}

impl<P: Platform> Registry<P> {
    const_unless_model! {
        pub(crate) fn new(users: Users) -> Self {
            Self {
                records: Arena::new(users),
                resumed: AtomicU64::new(0),
                idle_at: AtomicU64::new(0),
            }
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
            let free = self.records.with_all(section, |mut records| {
                let free = records.find(|record| record.state() == FREE)?;
                for hazard in &free.hazards {
                    hazard.owner.store(owner, Relaxed("only the owner looks"));
                }
                if P::FORKS {
                    let thread = P::with_thread(ThreadState::id).unwrap_or(0);
                    free.thread.store(thread, Relaxed("read only after a fork"));
                }
                free.quiet.store(0, QUIET);
                let guarded = Relaxed("H4: the guard of the arena publishes it");
                free.state.store(owner, guarded);
                self.resumed.fetch_add(1, guarded);
                Some(free)
            });
            if let Some(record) = free {
                return Ok(record);
            }
            // Any thread may take it.
            self.records.alloc(section)?;
        }
    }

    /// For the owner, whose next read locks are published again if `record` is idle.
    ///
    /// A signal handler may run between any two steps. It finds the record idle, as it was.
    #[cold]
    pub(crate) fn resume(&self, record: &Record) {
        const RELAXED: Relaxed = Relaxed("RECORD_RESUME follows");
        let state = record.state.load(RELAXED);
        if matches!(state, TRIED | IDLE)
            && record.state.compare_exchange(state, RESUMING, RELAXED).is_ok()
        {
            self.resumed.fetch_add(1, RECORD_RESUME);
            fence(RECORD_RESUME_FENCE);
            record.quiet.store(0, QUIET);
            record.state.store(BARRIERS, Relaxed("no less busy than before"));
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
        unsafe { self.records.renew() };
        let me = P::with_thread(ThreadState::id).unwrap_or(0);
        self.records.with_all(section, |records| {
            for record in records.filter(|record| record.thread.load(GONE) != me) {
                for hazard in &record.hazards {
                    hazard.published.store(0, GONE);
                    hazard.transferred.store(0, GONE);
                }
                record.state.store(FREE, GONE);
            }
        });
        // What another thread noted may be here, and what it noted that from not.
        self.idle_at.store(self.resumed.load(GONE).wrapping_sub(1), GONE);
    }

    /// Transfers the readers that have published one of `vmas`, all excluded by the caller, to the
    /// counts: from here on the counts tell when they have left. Whether there may be any.
    #[inline]
    pub(crate) fn transfer_readers<'l>(
        &self,
        section: &EditSection<'_, P>,
        vmas: impl Iterator<Item = &'l VmaLock> + Clone,
    ) -> bool {
        self.records.has_any()
            && keep(Step::ScanHazards)
            && self.has_busy()
            && self.records.with_all(section, |records| self.scan(&records, vmas))
    }

    /// Whether a record may be busy. If none is, all that was published is over.
    #[inline]
    fn has_busy(&self) -> bool {
        fence(HAZARD_SCAN_FENCE);
        let idle_at = self.idle_at.load(RECORDS_TEST_IDLE);
        self.resumed.load(Relaxed("fences: RECORD_RESUME_FENCE, or the reader sees X")) != idle_at
    }

    #[cold]
    fn scan<'l>(
        &self,
        records: &All<'_, Record, P>,
        vmas: impl Iterator<Item = &'l VmaLock> + Clone,
    ) -> bool {
        let resumed = self.resumed.load(RECORDS_BUSY);
        let have = |states: &[u32]| records.clone().any(|record| states.contains(&record.state()));
        if !have(&[FENCES, BARRIERS, RESUMING]) {
            self.idle_at.store(resumed, RECORDS_IDLE);
            return false;
        }
        let find = |name| vmas.clone().find(|vma| vma.name() == name);
        let transferred = |hazard: &Hazard| {
            hazard
                .transferred
                .load(Relaxed("H2; else only a reader makes it 0, whose name is gone by then"))
        };
        if have(&[BARRIERS, RESUMING]) && keep(Step::BarrierToScan) {
            records.clone().for_each(Record::try_idle);
            P::barrier();
        }
        let mut found = false;
        for record in records.clone() {
            let mut in_use = false;
            for hazard in &record.hazards {
                let name = hazard.scan();
                in_use |= name != 0;
                if name <= RETRACTED || (transferred(hazard) == name && keep(Step::SkipTransferred))
                {
                    continue;
                }
                if let Some(vma) = find(name) {
                    vma.transfer_reader();
                    hazard.transferred.store(name, Relaxed("HAZARD_TRANSFER_FENCE follows"));
                    found = true;
                }
            }
            record.end_scan(in_use);
        }
        if !found {
            return false;
        }
        if have(&[BARRIERS, IDLE, RESUMING]) && keep(Step::BarrierToTransfer) {
            P::barrier();
        }
        fence(HAZARD_TRANSFER_FENCE);
        for hazard in records.clone().flat_map(|record| &record.hazards) {
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
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;
    use crate::space::AddressSpace;
    use crate::sync::TEST;

    /// Its owner is about to retract that, and to count itself. Made busy, it would be so without
    /// having been counted, while the other has yet to count that it resumes.
    #[test]
    fn a_scan_leaves_idle_what_it_finds_in_an_idle_record() {
        let space = AddressSpace::new(1);
        space.insert(10..20, 1).unwrap();
        let (map, readers) = (space.map(), space.map().slab().slots().readers());
        let register = |_| readers.register(map.write().section(), Fencing(BARRIERS)).unwrap();
        let [idle, resuming] = [0, 1].map(register);
        let published = map.try_read(10, Some(idle)).unwrap();
        idle.state.store(IDLE, TEST);
        resuming.state.store(RESUMING, TEST);
        assert!(space.edit().unwrap().try_write(10).is_err(), "the reader was not transferred");
        assert_eq!(idle.state(), IDLE);
        drop(published);
        assert!(space.edit().unwrap().try_write(10).is_ok());
    }
}

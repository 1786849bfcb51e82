//! Readers that publish which VMA they visit, in a place of their own, instead of counting
//! themselves in the VMA: any number of threads read one VMA and write no line that they share.
//!
//! # How it goes
//!
//! A reader stores the VMA's name into a *hazard* of its [`Record`], then looks at the count: if a VMA
//! is attached and nobody excludes it, the reader is inside, as if it had been counted. It leaves by
//! storing [`LEAVING`]. Whoever excludes the VMA adds X, then looks through all records. What it finds there
//! it counts ([`VmaLock::count_in`]) and *marks*, in a second word beside the hazard, so that from
//! then on the count is all that anyone waits for: a reader that finds itself marked when it has left
//! makes an ordinary put. Then the hazard is free again.
//!
//! Twice somebody stores to one word and looks at another while somebody else does it the other way
//! round, and at least one of the two must see the other's store:
//!
//! | one | the other |
//! |---|---|
//! | reader: publishes (HAZARD_SET_FENCE), looks at the count | writer: adds X (HAZARD_SCAN_FENCE), looks for hazards |
//! | reader: takes the hazard back (HAZARD_CLEAR_FENCE), looks for a mark | writer: marks (HAZARD_MARK_FENCE), looks at the hazard again |
//!
//! Where the platform can make all running threads pass a barrier ([`Platform::barrier`]), the reader's
//! two fences are the compiler's only.
//!
//! # Invariants
//!
//! - **H1** Only the thread that has claimed a record, and its signal handlers, store to its hazards.
//! - **H2** Only one thread at a time looks through the records: they are guarded as their arena is.
//! - **H3** A mark is 0, or the name of the VMA in whose count one stands for it; whoever makes it 0,
//!   by exchange, takes that one away.
//! - **H4** A record is claimed by who guards the arena; it is given up with its hazards empty.
//!
//! # Where it comes from, and where it differs
//!
//! Hazard pointers (Michael, *IEEE TPDS* 15(6), 2004) for the publication, BRAVO (Dice and Kogan, USENIX
//! ATC 2019) for a writer that revokes it, `membarrier(2)` for the barrier. BRAVO's writer polls its
//! readers and keeps them from publishing for a time; here it counts those that it finds, in the word
//! that it waits on anyway, and the next reader publishes again.

use core::marker::PhantomData;

use crate::arena::{All, Arena, Object, Users};
use crate::error::OutOfMemory;
use crate::facade::{
    AtomicU32, AtomicUsize, Cell, FenceOrder, Relaxed, const_unless_model, fence, keep,
    signal_fence,
};
use crate::ledger::{
    HAZARD_CLEAR, HAZARD_CLEAR_FENCE, HAZARD_FREE, HAZARD_MARK_FENCE, HAZARD_SCAN,
    HAZARD_SCAN_FENCE, HAZARD_SET, HAZARD_SET_FENCE, RECORD_GIVE_UP, RECORD_LOOK, Step,
};
use crate::lock::VmaLock;
use crate::mm::WriteSection;
use crate::platform::Platform;

/// Hazards in a record: guards that a thread can hold at once without counting.
const HAZARDS: usize = if cfg!(pervma_model) { 2 } else { 4 };

/// In a hazard: whoever was here has left, and is looking for a mark. No VMA's name: they are aligned.
const LEAVING: usize = 1;

/// Nobody has claimed the record.
const FREE: u32 = 0;
/// Who has it fences.
const FENCES: u32 = 1;
/// Who has it relies on the platform's barrier.
const BARRIERS: u32 = 2;

/// What one thread publishes, on lines of its own.
#[repr(C, align(128))]
pub struct Record {
    hazards: [Hazard; HAZARDS],
    owner: AtomicU32,
    link: Cell<u32>,
}

/// Where one visit is published, from before it begins until it is over.
pub struct Hazard {
    /// The name of the VMA that is visited, [`LEAVING`], or 0 if it is free.
    visit: AtomicUsize,
    /// See H3.
    mark: AtomicUsize,
    /// What the record's owner is, beside what it is asked with.
    owner: AtomicU32,
    /// H1: it is not `Sync`, so a visit stays with its thread.
    thread: PhantomData<Cell<()>>,
}

impl Hazard {
    /// What its owner visits, for the owner.
    #[inline(always)]
    fn is_free(&self) -> bool {
        self.visit.load(Relaxed("H1: only this thread and its own signal handlers store here")) == 0
    }

    /// Takes the visit of `vma` back, which was published here. If somebody has counted it, that is a
    /// put.
    #[inline(always)]
    pub fn retract<P: Platform>(&self, vma: &VmaLock) {
        // Not free yet: a handler of this thread that took it could have the mark overwritten.
        self.visit.store(LEAVING, HAZARD_CLEAR);
        self.fence(HAZARD_CLEAR_FENCE);
        let mark = self.mark.load(Relaxed("the exchange decides; the fence stands in front"));
        if mark == vma.name() && self.unmark(vma) {
            vma.leave::<P>();
        }
        self.visit.store(0, HAZARD_FREE);
    }

    #[inline(always)]
    fn fence(&self, edge: impl FenceOrder) {
        if self.owner.load(Relaxed("changes only while this thread has no record")) == BARRIERS {
            signal_fence();
        } else {
            fence(edge);
        }
    }

    /// What its owner visits, for who looks through the records. The visits before are over.
    #[inline]
    fn seen(&self) -> usize {
        self.visit.load(HAZARD_SCAN)
    }

    /// Makes the mark 0, if it names this VMA.
    fn unmark(&self, vma: &VmaLock) -> bool {
        let exchanged = self.mark.compare_exchange(
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
            visit: AtomicUsize::new(0),
            mark: AtomicUsize::new(0),
            owner: AtomicU32::new(FREE),
            thread: PhantomData,
        };
        Self {
            hazards: core::array::from_fn(hazard),
            owner: AtomicU32::new(FREE),
            link: Cell::new(0),
        }
    }

    fn link(&self) -> &Cell<u32> {
        &self.link
    }
}

impl Record {
    /// Publishes a visit, if a hazard is free. Afterwards [`VmaLock::visit`] says whether the reader is
    /// inside.
    ///
    /// A signal handler may run between any two steps. It takes visits back before it returns, so it
    /// leaves the hazards as it found them.
    #[inline(always)]
    pub fn publish(&self, vma: &VmaLock) -> Option<&Hazard> {
        let hazard = self.free_hazard()?;
        hazard.visit.store(vma.name(), HAZARD_SET);
        hazard.fence(HAZARD_SET_FENCE);
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

    /// Gives the record up, unless a guard was forgotten: then it stays claimed, as the VMA stays
    /// read-locked.
    pub fn give_up(&self) {
        if self.hazards.iter().all(Hazard::is_free) {
            self.owner.store(FREE, RECORD_GIVE_UP);
        }
    }

    /// Whether somebody has it. If nobody has, what was visited from here is over.
    #[inline]
    fn owner(&self) -> u32 {
        self.owner.load(RECORD_LOOK)
    }
}

/// Whether a reader that registers now can leave fences to the platform's barrier. Asked with no lock
/// held: the first time can take a while.
#[derive(Clone, Copy)]
pub struct Fencing(u32);

impl Fencing {
    pub fn choose<P: Platform>() -> Self {
        Self(if P::prepare_barrier() { BARRIERS } else { FENCES })
    }
}

/// The records of a slab.
pub struct Registry<P: Platform>(Arena<Record, P>);

// SAFETY: it lends a record, whose words are atomic but for `link` (A3), to the thread that claims it
// only; neither a record nor a hazard is `Sync`, so it stays there (H1). Others look at the words, in here.
unsafe impl<P: Platform> Sync for Registry<P> {}
// SAFETY: nothing in a record belongs to a thread while nobody has claimed it.
unsafe impl<P: Platform> Send for Registry<P> {}

impl<P: Platform> Registry<P> {
    const_unless_model! {
        pub fn new(users: Users) -> Self {
            Self(Arena::new(users))
        }
    }

    /// A record for the running thread.
    ///
    /// The section is one of the space that it is going to read: what was excluded there before, its
    /// visits will see; who excludes later looks here.
    pub fn claim(
        &self,
        section: &WriteSection<'_, P>,
        Fencing(owner): Fencing,
    ) -> Result<&Record, OutOfMemory> {
        loop {
            let free = self.0.with_all(section, |mut records| {
                let free = records.find(|record| record.owner() == FREE)?;
                let owners = free.hazards.iter().map(|hazard| &hazard.owner).chain([&free.owner]);
                for word in owners {
                    word.store(owner, Relaxed("H4: what guards the arena publishes it"));
                }
                Some(free)
            });
            if let Some(record) = free {
                return Ok(record);
            }
            // It is whoever's that comes first.
            self.0.alloc(section)?;
        }
    }

    /// Counts the readers that have published a visit of one of `vmas`, all excluded by the caller:
    /// from here on the count tells when they have left.
    #[inline]
    pub fn count_in<'l>(
        &self,
        section: &WriteSection<'_, P>,
        vmas: impl Iterator<Item = &'l VmaLock> + Clone,
    ) {
        if self.0.usage().made != 0 && keep(Step::CountVisits) {
            self.0.with_all(section, |records| look_through::<P>(records, vmas));
        }
    }
}

#[cold]
fn look_through<'l, P: Platform>(
    records: All<'_, Record, P>,
    vmas: impl Iterator<Item = &'l VmaLock> + Clone,
) {
    let owners = || records.clone().map(Record::owner);
    let barriers = owners().any(|owner| owner == BARRIERS);
    if !barriers && owners().all(|owner| owner == FREE) {
        return;
    }
    let hazards = || records.clone().flat_map(|record| &record.hazards);
    let find = |name| vmas.clone().find(|vma| vma.name() == name);
    let marked = |hazard: &Hazard| {
        hazard.mark.load(Relaxed("H2; else only a reader makes it 0, whose name is gone by then"))
    };
    if barriers && keep(Step::BarrierToScan) {
        P::barrier();
    }
    fence(HAZARD_SCAN_FENCE);
    let mut counted = false;
    for hazard in hazards() {
        let name = hazard.seen();
        if name <= LEAVING || (marked(hazard) == name && keep(Step::SkipMarked)) {
            continue;
        }
        if let Some(vma) = find(name) {
            vma.count_in();
            hazard.mark.store(name, Relaxed("HAZARD_MARK_FENCE follows"));
            counted = true;
        }
    }
    if !counted {
        return;
    }
    if barriers && keep(Step::BarrierToMark) {
        P::barrier();
    }
    fence(HAZARD_MARK_FENCE);
    for hazard in hazards() {
        let name = marked(hazard);
        // Else it is still there, and will find the mark.
        if name != 0
            && hazard.seen() != name
            && keep(Step::TakeMarkBack)
            && let Some(vma) = find(name).filter(|vma| hazard.unmark(vma))
        {
            vma.count_out();
        }
    }
}

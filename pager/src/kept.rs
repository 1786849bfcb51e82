//! Bytes of pages that have left their regions to keep a bound, and are kept for a while within it:
//! a page that is touched again is filled from here, at the cost of a fault and without its source.
//! By that the evictor knows that it is used (`evict.rs`).
//!
//! # Slots
//!
//! A *slot* is the bytes of a page, and of which region and page they are, and as of which time
//! (`records.rs`). They are the page's only as long as that is its time: whatever gives the page
//! back afterwards, or fills it, makes it of another (R3), and a slot that nobody wants any more
//! is used for the next page when it has its turn.
//!
//! # Invariants
//!
//! - **K1** A slot's bytes are looked at, and any of it is changed, only by who has its lock.
//!   Nobody waits for one: who keeps the bound takes another slot, and a fault is served again.
//! - **K2** The index is changed under the lock of the ring. A thread that looks into it meanwhile
//!   may miss a slot, and the source is read.
#![expect(clippy::disallowed_types, reason = "words that handlers look at; locks order the bytes")]

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use lock_api::{RwLock, RwLockWriteGuard};
use pervma::StdLock;

use crate::history::{Gone, hash};
use crate::sys::{Errno, Words};

/// The pages that are kept of a bound.
#[derive(Debug)]
pub(crate) struct Kept {
    /// [`SLOT`] words each.
    slots: Words,
    /// At places that follow from the hash of a page, a slot's number and one, or 0.
    index: Words,
    bytes: Words,
    /// So many slots have memory, which counts in the bound.
    used: AtomicUsize,
    most: usize,
    /// A block for [`BLOCK`] slots is made when the first of them is used.
    /// Who unwinds leaves nothing half done under one: the slot is empty, or as it was.
    locks: AssertUnwindSafe<Box<[OnceLock<Block>]>>,
    ring: Mutex<Ring>,
}

/// It is only tried, which a signal handler may do.
type Lock = RwLock<StdLock, ()>;
type Guard<'k> = RwLockWriteGuard<'k, StdLock, ()>;

type Block = Box<[Lock]>;

/// So many slots have their locks in a block.
const BLOCK: usize = 1024;

#[derive(Debug, Default)]
struct Ring {
    /// The slot that was filled longest ago.
    oldest: usize,
    /// So many are to be used.
    wanted: usize,
    /// The granule that was dropped last.
    dropped: (usize, usize),
}

/// The number of a slot's region, that of the page with how many bits of it are those within a
/// granule, and its time with whether it was hot.
const SLOT: usize = 4;
/// 0 if nothing is in it.
const REGION: usize = 0;
const PLACE: usize = 1;
const TIME: usize = 2;

/// The time of a page that has come from its slot: no page has it.
const NEVER: u64 = !WAS_HOT;

/// So many words are a page.
const WORDS: usize = 4096 / size_of::<u64>();
/// Where the bits of a granule are in a slot's place.
const GRANULE_SHIFT: u32 = 56;
const WAS_HOT: u64 = 1;
/// So many slots are found at once, at most.
const AT_ONCE: usize = 16;
/// So many places of the index are looked at for a page, at most.
const FAR: usize = 64;

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// The region's number.
    pub(crate) region: usize,
    pub(crate) page: usize,
    /// Granules have two to the power of so many pages.
    pub(crate) granule_bits: u32,
}

impl Page {
    fn place(self) -> u64 {
        u64::from(self.granule_bits) << GRANULE_SHIFT | self.page as u64
    }

    fn granule(self) -> (usize, usize) {
        (self.region, self.page >> self.granule_bits)
    }
}

/// What there is of a page.
pub(crate) enum Found<'k> {
    Nothing,
    /// Another thread is looking at it.
    Busy,
    /// Its bytes, and those of pages behind it.
    Bytes(Slots<'k>),
}

/// Slots beside each other that the running thread has locked.
pub(crate) struct Slots<'k> {
    kept: &'k Kept,
    slots: Range<usize>,
    _locks: [Option<Guard<'k>>; AT_ONCE],
}

/// A slot with nothing in it, which the running thread has locked.
pub(crate) struct Empty<'k> {
    slot: usize,
    _lock: Guard<'k>,
}

impl Kept {
    const FEW: usize = 40;

    /// Within a bound of which so many pages are left when pages have been given back. Of a few
    /// none is kept: those are for what is touched.
    pub(crate) fn new(left: usize) -> Result<Self, Errno> {
        let most = if left < Self::FEW { 0 } else { left / 5 };
        let index = most.checked_next_power_of_two().and_then(|words| words.checked_mul(4));
        let bytes = most.checked_mul(WORDS).ok_or(Errno::NOMEM)?;
        let blocks = (0..most.div_ceil(BLOCK)).map(|_| OnceLock::new());
        Ok(Self {
            slots: Words::zeroed((most * SLOT).next_multiple_of(WORDS).max(WORDS))?,
            index: Words::zeroed(index.ok_or(Errno::NOMEM)?.max(WORDS))?,
            bytes: Words::not_forked(bytes.max(WORDS))?,
            used: AtomicUsize::new(0),
            most,
            locks: AssertUnwindSafe(blocks.collect()),
            ring: Mutex::default(),
        })
    }

    fn slot(&self, slot: usize) -> &[AtomicU64] {
        &self.slots[slot * SLOT..][..SLOT]
    }

    /// So many pages may be kept.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// How many pages of memory it has.
    #[inline]
    pub(crate) fn pages(&self) -> usize {
        // RELAXED: a number that guards nothing.
        self.used.load(Relaxed)
    }

    /// The places of the index that a page may be at, from the first on.
    fn places(&self, region: usize, page: usize) -> impl Iterator<Item = usize> {
        let (first, all) = ((hash(region, page) >> 16) as usize, self.index.len());
        (0..FAR.min(all)).map(move |far| first.wrapping_add(far) % all)
    }

    /// Whether a slot has a page as of a time: a hint, until it is locked.
    #[inline]
    fn has(&self, slot: usize, region: usize, page: usize, time: u64) -> bool {
        let slot = self.slot(slot);
        // RELAXED: K1.
        slot[REGION].load(Relaxed) == region as u64
            && slot[PLACE].load(Relaxed) & ((1 << GRANULE_SHIFT) - 1) == page as u64
            && slot[TIME].load(Relaxed) & !WAS_HOT == time
    }

    /// Locks a slot, if nobody has and it was ever used. Runs in the signal handler.
    #[inline]
    fn try_lock(&self, slot: usize) -> Option<Guard<'_>> {
        self.locks[slot / BLOCK].get()?[slot % BLOCK].try_write()
    }

    /// Locks what there is of some pages, from the first on, each as of its time; for a thread that
    /// has read-locked the VMA. Runs in the signal handler.
    pub(crate) fn find(
        &self,
        region: usize,
        pages: Range<usize>,
        time: impl Fn(usize) -> u64,
    ) -> Found<'_> {
        let first = pages.start;
        let first_time = time(first);
        for at in self.places(region, first) {
            // RELAXED: K2.
            let Some(slot) = (self.index[at].load(Relaxed) as usize).checked_sub(1) else { break };
            if !self.has(slot, region, first, first_time) {
                continue;
            }
            let Some(lock) = self.try_lock(slot) else { return Found::Busy };
            if !self.has(slot, region, first, first_time) {
                continue;
            }
            let mut locks = [const { None }; AT_ONCE];
            locks[0] = Some(lock);
            let mut slots = slot..slot + 1;
            for (page, place) in (first + 1..pages.end).zip(&mut locks[1..]) {
                let (next, time) = (slots.end, time(page));
                if next >= self.most || !self.has(next, region, page, time) {
                    break;
                }
                let Some(lock) = self.try_lock(next) else { break };
                if !self.has(next, region, page, time) {
                    break;
                }
                *place = Some(lock);
                slots.end += 1;
            }
            return Found::Bytes(Slots { kept: self, slots, _locks: locks });
        }
        Found::Nothing
    }

    /// Locks the ring. The caller takes no signal: their handlers could wait for it.
    pub(crate) fn ring<'k>(&'k self, gone: &'k Gone) -> Keeper<'k> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        Keeper { kept: self, gone, ring }
    }
}

impl Slots<'_> {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the first page was hot when it had gone.
    pub(crate) fn was_hot(&self) -> bool {
        // RELAXED: K1.
        self.kept.slot(self.slots.start)[TIME].load(Relaxed) & WAS_HOT != 0
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        &self.kept.bytes[self.slots.start * WORDS..self.slots.end * WORDS]
    }

    /// Nothing is kept of them any more.
    pub(crate) fn have_come(self) {
        for slot in self.slots.clone() {
            // RELAXED: K1.
            self.kept.slot(slot)[TIME].store(NEVER, Relaxed);
        }
    }
}

/// Keeps pages, as long as it lives the only one to do so.
pub(crate) struct Keeper<'k> {
    kept: &'k Kept,
    gone: &'k Gone,
    ring: MutexGuard<'k, Ring>,
}

impl<'k> Keeper<'k> {
    /// A slot for a page whose granule is not too large, to be [filled](Self::fill); of what is not
    /// in use if `takes` lets that be, or the oldest.
    pub(crate) fn slot(&mut self, page: Page, takes: impl FnOnce() -> bool) -> Option<Empty<'k>> {
        if self.kept.most >> page.granule_bits == 0 {
            return None;
        }
        let used = self.kept.pages();
        if used < self.ring.wanted && takes() {
            // RELAXED: a number that guards nothing.
            self.kept.used.store(used + 1, Relaxed);
            let block = || (0..BLOCK).map(|_| Lock::new(())).collect();
            self.kept.locks[used / BLOCK].get_or_init(block);
            return self.claim(used);
        }
        // Others may be looking at a few.
        for _ in 0..used.min(8) {
            let slot = self.ring.oldest % used;
            self.ring.oldest = slot + 1;
            if let Some(empty) = self.claim(slot) {
                return Some(empty);
            }
        }
        None
    }

    /// Locks a slot, and drops what it has.
    fn claim(&mut self, slot: usize) -> Option<Empty<'k>> {
        let kept = self.kept;
        let lock = kept.try_lock(slot)?;
        let words = kept.slot(slot);
        // RELAXED: K1.
        let (region, place) = (words[REGION].load(Relaxed) as usize, words[PLACE].load(Relaxed));
        if region > 0 {
            let page = Page {
                region,
                page: (place & ((1 << GRANULE_SHIFT) - 1)) as usize,
                granule_bits: (place >> GRANULE_SHIFT) as u32,
            };
            self.remove(slot, page);
            let time = words[TIME].load(Relaxed);
            if time & !WAS_HOT != NEVER {
                self.has_gone(page, time & WAS_HOT != 0);
            }
            words[REGION].store(0, Relaxed);
        }
        Some(Empty { slot, _lock: lock })
    }

    /// A page has gone for good; each granule is told of once.
    pub(crate) fn has_gone(&mut self, page: Page, was_hot: bool) {
        let granule = page.granule();
        if std::mem::replace(&mut self.ring.dropped, granule) != granule {
            self.gone.add(granule.0, granule.1, was_hot);
        }
    }

    /// The words of a slot.
    pub(crate) fn words(&self, empty: &Empty<'k>) -> &'k [AtomicU64] {
        &self.kept.bytes[empty.slot * WORDS..][..WORDS]
    }

    /// A slot has the bytes of a page, as of a time.
    pub(crate) fn fill(&mut self, empty: Empty<'k>, page: Page, time: u64, was_hot: bool) {
        let mut places = self.kept.places(page.region, page.page);
        let index = &self.kept.index;
        let Some(at) = places.find(|&at| index[at].load(Relaxed) == 0) else {
            // Too many have places there.
            return;
        };
        let words = self.kept.slot(empty.slot);
        // RELAXED: K1.
        words[REGION].store(page.region as u64, Relaxed);
        words[PLACE].store(page.place(), Relaxed);
        words[TIME].store(if was_hot { time | WAS_HOT } else { time }, Relaxed);
        index[at].store(empty.slot as u64 + 1, Relaxed);
    }

    /// Takes a slot out of the index.
    fn remove(&mut self, slot: usize, page: Page) {
        let index = &self.kept.index;
        let mut places = self.kept.places(page.region, page.page);
        let Some(mut hole) = places.find(|&at| index[at].load(Relaxed) == slot as u64 + 1) else {
            return;
        };
        // Those behind it come nearer, up to the next that is free.
        let mut at = hole;
        for _ in 0..index.len() {
            at = (at + 1) % index.len();
            let next = index[at].load(Relaxed);
            let Some(of) = (next as usize).checked_sub(1) else { break };
            let words = self.kept.slot(of);
            let page = words[PLACE].load(Relaxed) & ((1 << GRANULE_SHIFT) - 1);
            let region = words[REGION].load(Relaxed) as usize;
            let first = self.kept.places(region, page as usize).next().unwrap_or(at);
            // How far it is from where it may be first, and how far the hole is.
            let far = |place: usize| (place + index.len() - first) % index.len();
            if far(hole) < far(at) {
                index[hole].store(next, Relaxed);
                hole = at;
            }
        }
        index[hole].store(0, Relaxed);
    }

    /// So many pages are to be kept. How many of those that there are have gone for it, with their
    /// memory.
    pub(crate) fn want(&mut self, pages: usize) -> usize {
        self.ring.wanted = pages.min(self.kept.most);
        self.shrink(self.kept.pages().saturating_sub(self.ring.wanted))
    }

    /// Has so many pages go with their memory, as far as there are. How many have.
    pub(crate) fn shrink(&mut self, pages: usize) -> usize {
        let used = self.kept.pages();
        let mut going = Vec::new();
        while going.len() < pages.min(used) {
            let Some(empty) = self.claim(used - going.len() - 1) else { break };
            going.push(empty);
        }
        let left = used - going.len();
        // A filter may forbid it: the memory stays then.
        if left == used || self.kept.bytes.discard(left * WORDS..used * WORDS).is_err() {
            return 0;
        }
        // RELAXED: a number that guards nothing.
        self.kept.used.store(left, Relaxed);
        going.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(page: usize) -> Page {
        Page { region: 3, page, granule_bits: 0 }
    }

    fn keep(keeper: &mut Keeper<'_>, number: usize) {
        let slot = keeper.slot(page(number), || true).unwrap();
        keeper.words(&slot).iter().for_each(|word| word.store(number as u64, Relaxed));
        keeper.fill(slot, page(number), number as u64 * 2, number % 2 == 1);
    }

    fn find(kept: &Kept, number: usize) -> Found<'_> {
        kept.find(3, number..number + 1, |number| number as u64 * 2)
    }

    fn is_there(kept: &Kept, number: usize) -> bool {
        let Found::Bytes(slots) = find(kept, number) else { return false };
        assert!(slots.words().iter().all(|word| word.load(Relaxed) == number as u64));
        assert_eq!(slots.was_hot(), number % 2 == 1);
        true
    }

    #[test]
    fn as_many_as_are_wanted_are_kept_and_the_oldest_go() {
        let (kept, gone) = (Kept::new(500).unwrap(), Gone::new(1000).unwrap());
        assert_eq!((kept.most(), kept.pages()), (100, 0));
        let mut keeper = kept.ring(&gone);
        assert!(keeper.slot(page(1), || true).is_none(), "none is wanted");
        keeper.want(50);
        assert!(keeper.slot(page(1), || false).is_none(), "none may be taken");
        (0..1000).for_each(|number| keep(&mut keeper, number));
        assert_eq!(kept.pages(), 50);
        assert!((950..1000).all(|number| is_there(&kept, number)));
        assert!(!(0..950).any(|number| is_there(&kept, number)));
        assert!((900..950).all(|number| gone.has_come_again(3, number).is_some()));
        assert_eq!(keeper.want(20), 30);
        assert_eq!(kept.pages(), 20);
        let left = (0..1000).filter(|&number| is_there(&kept, number)).count();
        assert_eq!(left, 20);
        assert_eq!((keeper.shrink(usize::MAX), kept.pages()), (20, 0));
        assert!(!(0..1000).any(|number| is_there(&kept, number)));
    }

    #[test]
    fn what_has_come_or_is_of_another_time_is_kept_no_longer() {
        let (kept, gone) = (Kept::new(500).unwrap(), Gone::new(1000).unwrap());
        let mut keeper = kept.ring(&gone);
        keeper.want(100);
        (0..100).for_each(|number| keep(&mut keeper, number));
        assert!(matches!(kept.find(3, 5..6, |_| 11), Found::Nothing), "another time");
        assert!(matches!(kept.find(4, 5..6, |_| 10), Found::Nothing), "another region");
        let Found::Bytes(slots) = kept.find(3, 5..9, |number| number as u64 * 2) else {
            panic!("they are kept")
        };
        assert_eq!(slots.len(), 4);
        assert!(matches!(find(&kept, 6), Found::Busy));
        slots.have_come();
        assert!((5..9).all(|number| !is_there(&kept, number)) && is_there(&kept, 9));
        (100..200).for_each(|number| keep(&mut keeper, number));
        assert!((100..200).all(|number| is_there(&kept, number)));
        let told = (0..100).filter(|&number| gone.has_come_again(3, number).is_some()).count();
        assert!((90..=96).contains(&told), "{told}");
    }

    /// Random steps, beside a plain list.
    #[test]
    fn pages_are_found_wherever_they_are() {
        let (kept, gone) = (Kept::new(2000).unwrap(), Gone::new(1000).unwrap());
        let mut keeper = kept.ring(&gone);
        keeper.want(400);
        let (mut state, mut there) = (1_u64, std::collections::HashSet::new());
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (state >> 33) as usize % 600;
            if let Found::Bytes(slots) = find(&kept, number) {
                assert!(there.remove(&number));
                slots.have_come();
            } else {
                keep(&mut keeper, number);
                there.insert(number);
                let found = there.iter().copied().filter(|&number| is_there(&kept, number));
                there = found.collect();
                assert!(there.contains(&number) && there.len() <= 400);
            }
        }
        assert!(there.len() > 200, "{}", there.len());
    }

    #[test]
    fn threads_that_take_what_another_replaces_see_whole_pages() {
        let (kept, gone) = (Kept::new(50).unwrap(), Gone::new(1000).unwrap());
        let times = if cfg!(miri) { 300 } else { 100_000 };
        let is_over = &AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let kept = &kept;
            for _ in 0..2 {
                scope.spawn(move || {
                    let mut number = 0;
                    while is_over.load(Relaxed) == 0 {
                        number = (number + 7) % 30;
                        if let Found::Bytes(slots) = find(kept, number) {
                            let words = slots.words();
                            assert!(words.iter().all(|word| word.load(Relaxed) == number as u64));
                            if number % 3 == 0 {
                                slots.have_come();
                            }
                        }
                    }
                });
            }
            for time in 0..times {
                let mut keeper = kept.ring(&gone);
                keeper.want(if time % 1000 < 990 { 10 } else { 5 });
                let number = time * 11 % 30;
                if let Some(slot) = keeper.slot(page(number), || true) {
                    keeper.words(&slot).iter().for_each(|word| word.store(number as u64, Relaxed));
                    keeper.fill(slot, page(number), number as u64 * 2, false);
                }
            }
            is_over.store(1, Relaxed);
        });
    }
}

//! What a region is made of, and what its VMAs hold.
#![expect(clippy::disallowed_types, reason = "relaxed words: the lock of the VMA orders them")]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use pervma::{AddressSpace, Payload};
use rustix::process::{Resource, getrlimit};

use crate::Error;
use crate::budget::Share;
use crate::buffers::{Buffer, Buffers, HUGE};
use crate::failure::{OnFailure, OnWriteBackFailure};
use crate::holds::Holds;
use crate::kept::{Page, Slots};
use crate::parts::Parts;
use crate::reads::Reads;
use crate::records::{BLOCK, Clock, Filling, Records};
use crate::source::Source;
use crate::staging::Staging;
use crate::stats::{Counters, Shard};
use crate::sys::{Access, At, CopyError, Errno, Fill, Memory, MoveError, PageSize, Userfaultfd};

/// The size of a page in bytes, and the unit of all counts, also where pages are huge.
pub(crate) const PAGE: usize = 4096;
const WORD: usize = size_of::<u64>();

/// All regions of this process.
pub(crate) static SPACE: AddressSpace<Piece> = AddressSpace::new(PAGE);

/// Every region has one address here, its number. A thread that reads a region's source holds the
/// VMA's read lock: that keeps the source, while nothing of [`SPACE`] is locked.
pub(crate) static SOURCES: AddressSpace<Arc<Backing<dyn Source>>> = AddressSpace::new(1);

/// What belongs to a region wherever it is mapped.
pub(crate) struct Backing<S: Source + ?Sized> {
    /// Tells it from all other regions of this process: its address in [`SOURCES`].
    pub(crate) number: usize,
    /// The region's length in bytes. It changes under an exclusion of its last page, or while
    /// what lies beyond is not mapped.
    pub(crate) len: AtomicUsize,
    pub(crate) uffd: Userfaultfd,
    /// Bytes that one fault fills, aligned in the region.
    pub(crate) granule: usize,
    /// Whether its pages can be written, and writes are tracked.
    pub(crate) is_tracked: bool,
    /// Whether a thread reads its faults, and threads that fault sleep.
    pub(crate) is_threaded: bool,
    pub(crate) page_size: PageSize,
    pub(crate) on_failure: OnFailure,
    pub(crate) on_write_back_failure: Option<OnWriteBackFailure>,
    /// With a bound.
    pub(crate) share: Option<Arc<Share>>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) counters: Counters,
    /// Where written pages go to be written to the source; none where the kernel cannot move them.
    pub(crate) staging: Option<Staging>,
    /// Where the source is read to.
    pub(crate) buffers: Buffers,
    /// Whether huge pages that it was read to are moved to where they belong.
    pub(crate) moves_huge: AtomicBool,
    /// Which granules of it are being read.
    pub(crate) reads: Reads,
    /// The end of a source in memory that does not fill its page, with zeros behind it; or empty.
    pub(crate) tail: Box<[u8]>,
    /// The bytes from the region's offset 0 on.
    pub(crate) source: S,
}

impl<S: Source + ?Sized> Backing<S> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        // RELAXED: threads that fill the last page read-lock its VMA, whose lock orders it.
        self.len.load(Relaxed)
    }

    pub(crate) fn set_len(&self, len: usize) {
        // RELAXED: as above.
        self.len.store(len, Relaxed);
    }

    /// Whether huge pages can be moved to what is missing: what was moved can be written until it
    /// is protected again, so not of a tracked region, whose writes would be missed, nor of others
    /// that are not frozen. And whoever gives back a part of a huge page does not get its memory.
    pub(crate) fn can_move_huge(&self) -> bool {
        self.uffd.can_move()
            && !self.is_tracked
            && self.page_size == PageSize::Small
            && self.buffers.ask_for_huge()
    }

    #[inline]
    fn moves_huge(&self) -> bool {
        // RELAXED: it is set when faults may see it sooner or later. Whoever takes it back excludes
        // the VMAs then, whose locks order it.
        self.moves_huge.load(Relaxed)
    }

    /// Sets it, and returns what it was.
    pub(crate) fn set_moves_huge(&self, moves: bool) -> bool {
        // RELAXED: as above.
        self.moves_huge.swap(moves, Relaxed)
    }

    /// Whether pages of zeros can be had for nothing.
    #[inline]
    pub(crate) fn takes_zeros(&self) -> bool {
        self.uffd.can_zero() && !self.is_tracked && self.page_size == PageSize::Small
    }

    /// Whether bytes of pages that go to keep a bound are kept for a while: where they are read,
    /// and not where they are in memory anyway; and in granules of which the copy takes less than
    /// the read that it may save.
    #[inline]
    pub(crate) fn are_kept(&self) -> bool {
        const MOST: usize = 4 * PAGE;
        self.page_size == PageSize::Small && self.granule <= MOST && self.source.bytes().is_none()
    }

    /// Whether a granule is one page of the kernel's.
    #[inline]
    pub(crate) fn fills_single_pages(&self) -> bool {
        self.granule == self.page_size.bytes()
    }

    /// So many of the kernel's pages, counted in pages of [`PAGE`] bytes.
    #[inline]
    pub(crate) fn counted(&self, pages: usize) -> usize {
        pages * (self.page_size.bytes() / PAGE)
    }

    /// A number that no other region of this process has had.
    pub(crate) fn next_number() -> usize {
        static LAST: Mutex<usize> = Mutex::new(0);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        *last
    }
}

/// Whether what could not be mapped is too large for the addresses that are left, and nothing that
/// can be set is in the way: no limit of them, and none of mappings.
fn are_addresses_used_up() -> bool {
    getrlimit(Resource::As).current.is_none() && Memory::map(PAGE, PageSize::Small).is_ok()
}

/// A region's place: its memory and what is known of its pages. Dropped in this order, since
/// memory that its userfaultfd is closed before would read as zeros.
pub(crate) struct Mapping {
    pub(crate) memory: Memory,
    pub(crate) records: Records,
    pub(crate) holds: Holds,
    /// Some pages were not given back when they were unmapped: a filter has refused it.
    has_leftovers: AtomicBool,
    pub(crate) backing: Arc<Backing<dyn Source>>,
}

/// The region's mapping, for the threads that keep its bound, which hold the lock for as long as
/// they work there. Only moving the region changes it.
pub(crate) struct Place(RwLock<Arc<Mapping>>);

impl Place {
    pub(crate) fn new(mapping: Arc<Mapping>) -> Self {
        Self(RwLock::new(mapping))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Arc<Mapping>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Arc<Mapping>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The payload of a VMA: a part of a mapping.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) mapping: Arc<Mapping>,
    /// As the kernel has it.
    pub(crate) access: Access,
    /// Set off from its neighbours for the time of an operation.
    pub(crate) is_isolated: bool,
}

impl Payload for Piece {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((self.clone(), self.clone()))
    }

    fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
        let alike = Arc::ptr_eq(&self.mapping, &next.mapping)
            && self.access == next.access
            && !self.is_isolated
            && !next.is_isolated;
        alike.then(|| self.clone())
    }
}

/// What pages are filled with.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    /// Bytes that were kept when the pages had gone.
    Kept(&'a Slots<'a>),
    /// Not for a tracked mapping: the kernel does not write-protect them.
    Zeros,
}

/// How an attempt at pages ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pages are as they were wanted.
    Done,
    /// Not now: try again.
    Again,
    /// The page has gone since the access faulted, or is just coming: it is to fault again.
    Gone,
    /// The kernel refused: it has no memory, or the memory is not what it was.
    Refused,
}

/// What became of a page that was to be poisoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poisoned {
    /// Nothing: it is present.
    Not,
    /// Each access raises SIGBUS.
    ByKernel,
    /// Each access is a fault as before, and is refused by its record: the kernel cannot poison.
    ByRecord,
}

impl Mapping {
    /// A place for `capacity` bytes, which no thread can access yet; at an address, or anywhere.
    pub(crate) fn new(
        backing: Arc<Backing<dyn Source>>,
        at: Option<At>,
        capacity: usize,
    ) -> Result<Self, Error> {
        let page_size = backing.page_size;
        let too_large = || Error::TooLarge { bytes: capacity as u64 };
        let len = capacity.checked_next_multiple_of(page_size.bytes()).ok_or_else(too_large)?;
        let no_memory = |errno| Error::Memory { bytes: len, errno };
        let memory = match at {
            Some(_) => Memory::map_at(at, len, page_size),
            // From a granule's start on, if there are several; else a huge page's, if it may have
            // some.
            None => {
                let aligns = [backing.granule, HUGE.min(backing.granule)];
                let align = aligns.into_iter().find(|&align| align <= len);
                Memory::map_aligned(len, align.unwrap_or(PAGE), page_size)
            }
        };
        let memory = memory.map_err(|errno| match (errno, at) {
            (Errno::EXIST, Some(At { address: start, .. })) => {
                Error::AddressesTaken { start, end: start + len }
            }
            (Errno::NOMEM, None) if are_addresses_used_up() => too_large(),
            _ => no_memory(errno),
        })?;
        let registered = if backing.is_tracked {
            backing.uffd.register_tracked(&memory)
        } else {
            backing.uffd.register_missing(&memory)
        };
        registered.map_err(Error::Register)?;
        // As the kernel's page tables have them: what is one for the kernel is a block of records.
        let lead = memory.range().start / page_size.bytes() % BLOCK;
        let (clock, share) = (Arc::clone(&backing.clock), backing.share.clone());
        let records = Records::new(len >> page_size.shift(), lead, clock, share);
        let records = records.map_err(no_memory)?;
        let holds = Holds::default();
        Ok(Self { memory, records, holds, has_leftovers: AtomicBool::new(false), backing })
    }

    /// Gives back the pages of a part, which the caller excludes.
    pub(crate) fn give_back(&self, part: &Range<usize>) -> Result<(), Errno> {
        self.memory.discard(part.clone())?;
        self.forget(part);
        if self.backing.page_size == PageSize::Huge && self.backing.is_tracked {
            // Of huge pages the kernel keeps the write protection when they have gone, and poisons
            // none that has it: an access that fails would fault again and again.
            self.set_write_protection(part, false)?;
        }
        Ok(())
    }

    /// Gives back what is there for blocks of a part of which nothing is present: their records
    /// and, of small pages, page tables of the kernel's. The caller excludes `excluded`.
    pub(crate) fn give_back_tables(&self, part: &Range<usize>, excluded: &Range<usize>) {
        let excluded = self.pages(excluded);
        for blocks in self.records.empty_blocks(&self.pages(part)) {
            let blocks = self.records.within_blocks(&blocks, &excluded);
            if blocks.is_empty() {
                continue;
            }
            // The kernel gives back a page table that it finds empty when all that it is for is
            // discarded (since Linux 6.14). Without, there is that much less of a bound.
            let _ = self.memory.discard(self.offsets(blocks.clone()));
            // No thread begins to hold any of them meanwhile.
            self.holds.locked(|| self.records.end_use(blocks));
        }
    }

    /// The pages of a part have gone, by the caller, who excludes them.
    pub(crate) fn forget(&self, part: &Range<usize>) {
        let gone = self.records.forget(self.pages(part));
        self.have_gone(gone);
    }

    /// So many pages have gone.
    pub(crate) fn have_gone(&self, pages: usize) {
        let pages = self.backing.counted(pages);
        self.backing.counters.mine().given_back.add(pages);
        if let Some(share) = &self.backing.share {
            share.give(pages);
        }
    }

    /// Says that something was left behind in it.
    pub(crate) fn set_has_leftovers(&self) {
        self.has_leftovers.store(true, Relaxed);
    }

    /// Gives back what was present when a part was unmapped, if it could not be given back then.
    /// The caller has the part reserved.
    pub(crate) fn give_back_leftovers(&self, part: &Range<usize>) -> Result<(), Errno> {
        // RELAXED: it was set before the part was unmapped, which the caller has found.
        if self.has_leftovers.load(Relaxed)
            && self.records.has_any(self.pages(part), Records::is_present)
        {
            self.give_back(part)?;
        }
        Ok(())
    }

    /// Merges the VMAs at these addresses with their neighbours, where they are alike and were
    /// split for an operation that is over.
    pub(crate) fn merge_back(&self, addresses: &Range<usize>) {
        let whole = self.memory.range();
        let page = self.backing.page_size.bytes();
        let with_neighbours = addresses.start.saturating_sub(page).max(whole.start)
            ..(addresses.end + page).min(whole.end);
        // Refused where something is not mapped, or without memory: then they stay apart, which
        // no thread notices but the next operation.
        let _ = SPACE.update(with_neighbours, |_, piece| piece.clone());
    }

    /// The offset of an address of the memory.
    #[inline]
    pub(crate) fn offset_of(&self, addr: usize) -> usize {
        addr - self.memory.range().start
    }

    /// What a fault at `addr` fills: its granule, clipped to the VMA.
    #[inline]
    pub(crate) fn granule_at(&self, addr: usize, vma: &Range<usize>) -> Range<usize> {
        let base = self.memory.range().start;
        let granule = self.backing.granule;
        let start = (addr - base) / granule * granule;
        start.max(vma.start - base)..(start + granule).min(vma.end - base)
    }

    /// The number of the granule at an offset.
    #[inline]
    pub(crate) fn granule_of(&self, offset: usize) -> usize {
        offset / self.backing.granule
    }

    /// A page, as it is told from all others of a bound.
    pub(crate) fn kept_page(&self, page: usize) -> Page {
        let granule_bits = self.backing.granule.ilog2() - self.backing.page_size.shift();
        Page { region: self.backing.number, page, granule_bits }
    }

    /// The pages of the granule of a page.
    pub(crate) fn granule_pages(&self, page: usize) -> Range<usize> {
        let pages = self.page_of(self.backing.granule).max(1);
        page / pages * pages..(page / pages + 1).saturating_mul(pages)
    }

    /// Whether a page is present, as far as the kernel tells. The caller has read-locked its VMA.
    pub(crate) fn is_page_present(&self, page: &Range<usize>) -> bool {
        self.records.is_present(self.page_of(page.start)) && self.memory.is_resident(page.start)
    }

    /// The kernel's page at an offset.
    #[inline]
    pub(crate) fn page_at(&self, offset: usize) -> Range<usize> {
        let size = self.backing.page_size.bytes();
        let start = offset / size * size;
        start..start + size
    }

    /// What is missing next, from `from.start` on: at most `most` bytes, of which the page `wanted`
    /// is one whatever its record says.
    #[inline]
    pub(crate) fn next_missing(
        &self,
        from: Range<usize>,
        wanted: &Range<usize>,
        most: usize,
    ) -> Option<Range<usize>> {
        let wanted = self.page_of(wanted.start);
        let run = self.offsets(self.records.next_missing(self.pages(&from), Some(wanted))?);
        Some(run.start..run.end.min(run.start.saturating_add(most)))
    }

    /// Fills the missing pages at `range`, whose VMA the caller has read-locked, and
    /// counts what came by that, in as many parts as the kernel has mappings there. The page
    /// `written`, of a tracked mapping, may be written then.
    pub(crate) fn install(
        &self,
        range: &Range<usize>,
        content: Content<'_>,
        written: Option<&Range<usize>>,
    ) -> (usize, Outcome) {
        let how = self.filling(range.start, content);
        let page_size = self.backing.page_size.bytes();
        // A page by itself is filled as it is wanted, one among others is let be written by a call
        // of its own.
        let dirty = written == Some(range);
        let fill = Fill {
            // Threads that sleep for a granule of several pages are woken when all is present.
            wake: self.backing.is_threaded && self.backing.fills_single_pages(),
            write_protected: self.backing.is_tracked && !dirty,
        };
        let mut new = 0;
        let mut parts = Parts::new(range.clone(), page_size);
        while let Some(part) = parts.next() {
            let (uffd, memory) = (&self.backing.uffd, &self.memory);
            let filled = match content {
                Content::Bytes(bytes) => {
                    let bytes = &bytes[part.start - range.start..part.end - range.start];
                    uffd.copy(memory, part.start, bytes, fill)
                }
                Content::Kept(slots) => {
                    let words = slots.words();
                    let [start, end] = [part.start, part.end].map(|at| (at - range.start) / WORD);
                    uffd.copy_words(memory, part.start, &words[start..end], fill)
                }
                Content::Zeros => uffd.zero(memory, part.clone(), fill.wake),
            };
            let copied = match filled {
                Ok(()) => part.len(),
                Err(CopyError::Again { copied: 0 }) => return (new, Outcome::Again),
                Err(CopyError::Again { copied }) => copied,
                Err(CopyError::NotRegistered) if parts.halve() => continue,
                // What the kernel also says when the pool of huge pages is empty.
                Err(CopyError::AlreadyPresent)
                    if self.backing.page_size == PageSize::Small
                        || self.memory.is_resident(part.start) =>
                {
                    parts.advance(page_size);
                    continue;
                }
                Err(_) => return (new, Outcome::Refused),
            };
            new += self.have_come(&(part.start..part.start + copied), dirty, how, content);
            parts.advance(copied);
        }
        let outcome = match written {
            Some(page) if !dirty && range.contains(&page.start) => self.let_write(page),
            _ => Outcome::Done,
        };
        (new, outcome)
    }

    /// Whether missing pages are to come in huge pages, as far as there are so many. The caller has
    /// read-locked their VMA, which may be accessed so.
    #[inline]
    pub(crate) fn is_for_huge(&self, pages: &Range<usize>, access: Access) -> bool {
        self.backing.moves_huge()
            && access == Access::Read
            && self.addresses(pages).start.is_multiple_of(HUGE)
    }

    /// Fills the missing pages at `range` as [`install`](Self::install) does, with what was read to
    /// a buffer: moves the huge pages that are to be moved, and copies the rest.
    pub(crate) fn install_read(
        &self,
        range: &Range<usize>,
        buffer: &mut Buffer<'_>,
        written: Option<&Range<usize>>,
        access: Access,
    ) -> (usize, Outcome) {
        let (mut new, mut rest) = (0, range.clone());
        if self.is_for_huge(range, access) {
            let moved = self.move_huge(range.start, buffer);
            buffer.have_moved(moved, range.len());
            rest.start += moved;
            if moved > 0 {
                let how = self.filling(range.start, Content::Zeros);
                new = self.have_come(&(range.start..rest.start), false, how, Content::Zeros);
            }
        }
        if rest.is_empty() {
            return (new, Outcome::Done);
        }
        let bytes = &buffer[rest.start - range.start..range.len()];
        let (copied, outcome) = self.install(&rest, Content::Bytes(bytes), written);
        (new + copied, outcome)
    }

    /// Moves the huge pages of a buffer to an offset; how many bytes have moved. What has not can
    /// be copied: it is still in the buffer.
    ///
    /// The kernel moves pages between mappings that can be written only. So this one can be, for
    /// some microseconds; no code has the right to write to it (it is frozen).
    fn move_huge(&self, to: usize, buffer: &Buffer<'_>) -> usize {
        let Some((from, part)) = buffer.huge() else { return 0 };
        let place = to..to + part.len();
        let opened = self.memory.protect_as_locked(place.clone(), Access::ReadWrite);
        let moved = match opened {
            Ok(()) => self.backing.uffd.move_pages(from, part.clone(), &self.memory, to),
            // No more mappings, and none of it can be written; or some, if it lies in several.
            Err(errno) => Err(MoveError::Other(errno)),
        };
        // It only undoes, so the kernel needs no more mappings for it than it had.
        let _ = self.memory.protect_as_locked(place.clone(), Access::Read);
        match moved {
            Ok(()) => part.len(),
            Err(MoveError::Again { moved }) => moved,
            // B36: it has moved, and Linux 6.18 told of a second try.
            Err(MoveError::AlreadyPresent)
                if !from.is_resident(part.start + HUGE - PAGE)
                    && self.memory.is_resident(to + HUGE - PAGE) =>
            {
                HUGE
            }
            // What has moved nevertheless is there, and is not filled again.
            Err(_) => 0,
        }
    }

    /// How pages at an offset are filled now, with a bound.
    fn filling(&self, offset: usize, content: Content<'_>) -> Option<Filling> {
        let budget = self.backing.share.as_ref()?.budget();
        let was_hot = match content {
            Content::Kept(slots) => Some(slots.was_hot()),
            _ => budget.gone.has_come_again(self.backing.number, self.granule_of(offset)),
        };
        if let Some(was_hot) = was_hot {
            budget.came.add_again(was_hot);
        }
        Some(Filling { time: self.records.tick(), is_hot: was_hot.is_some() })
    }

    /// The pages of a part were filled. How many were missing before, counted in pages of [`PAGE`].
    fn have_come(
        &self,
        part: &Range<usize>,
        dirty: bool,
        how: Option<Filling>,
        content: Content<'_>,
    ) -> usize {
        let filled = self.records.fill(self.pages(part), dirty, how);
        let filled = self.backing.counted(filled);
        let counters = self.backing.counters.mine();
        if let Some(share) = &self.backing.share {
            share.filled(self.backing.number, self.page_of(part.start));
        }
        if matches!(content, Content::Kept(_)) {
            counters.returned.add(filled);
            Shard::mine().count_returned(filled);
        } else {
            counters.pages.add(filled);
            Shard::mine().count_pages(filled);
        }
        filled
    }

    /// Lets a page be written that is present, and remembers that it was. The caller has
    /// read-locked its VMA.
    pub(crate) fn let_write(&self, page: &Range<usize>) -> Outcome {
        // Before the kernel lets a thread write: an exclusion must see it.
        if !self.records.mark_dirty(self.page_of(page.start)) {
            return Outcome::Gone;
        }
        match self.backing.uffd.write_protect(&self.memory, page.clone(), false) {
            Ok(()) => Outcome::Done,
            Err(Errno::AGAIN) => Outcome::Again,
            Err(_) => Outcome::Refused,
        }
    }

    /// Write-protects the pages of a part that are present. The caller excludes faults from it.
    pub(crate) fn write_protect(&self, part: &Range<usize>) -> Result<(), Errno> {
        self.set_write_protection(part, true)
    }

    fn set_write_protection(&self, part: &Range<usize>, protected: bool) -> Result<(), Errno> {
        let mut parts = Parts::new(part.clone(), self.backing.page_size.bytes());
        while let Some(part) = parts.next() {
            match self.backing.uffd.write_protect(&self.memory, part.clone(), protected) {
                Ok(()) => parts.advance(part.len()),
                // Before Linux 6.3: it takes one mapping at a time.
                Err(Errno::NOENT) if parts.halve() => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Makes accesses to a page fail from now on, or until the evictor takes that back, unless it
    /// is present by now. The caller has read-locked the page's VMA.
    pub(crate) fn poison(&self, page: &Range<usize>, is_refused: bool) -> Poisoned {
        // Before the kernel wakes threads, which would ask the record. A fill by another thread
        // takes it back.
        let number = self.page_of(page.start);
        self.records.mark_failed(number, is_refused);
        let poisoned = self.backing.uffd.poison(&self.memory, page.clone());
        if !self.records.has_failed(number) {
            Poisoned::Not
        } else if matches!(poisoned, Ok(()) | Err(Errno::EXIST)) {
            Poisoned::ByKernel
        } else {
            Poisoned::ByRecord
        }
    }

    /// Makes accesses to all that is missing of a part fail from now on. The caller has read-locked
    /// its VMA.
    pub(crate) fn poison_missing(&self, part: &Range<usize>) {
        let mut rest = self.pages(part);
        while let Some(pages) = self.records.next_missing(rest.clone(), None) {
            rest.start = pages.end;
            for page in pages.clone() {
                self.records.mark_failed(page, false);
            }
            let mut parts = Parts::new(self.offsets(pages), self.backing.page_size.bytes());
            while let Some(part) = parts.next() {
                match self.backing.uffd.poison(&self.memory, part.clone()) {
                    Ok(()) => parts.advance(part.len()),
                    Err(_) if parts.halve() => {}
                    // It is present, or it cannot be poisoned.
                    Err(_) => parts.advance(self.backing.page_size.bytes()),
                }
            }
        }
    }

    /// The number of the kernel's page at an offset, which is that of its record.
    #[inline]
    pub(crate) fn page_of(&self, offset: usize) -> usize {
        offset >> self.backing.page_size.shift()
    }

    /// The numbers of the pages of a part, which is whole pages.
    #[inline]
    pub(crate) fn pages(&self, part: &Range<usize>) -> Range<usize> {
        self.page_of(part.start)..self.page_of(part.end)
    }

    /// The part that is made of these pages.
    #[inline]
    pub(crate) fn offsets(&self, pages: Range<usize>) -> Range<usize> {
        let shift = self.backing.page_size.shift();
        pages.start << shift..pages.end << shift
    }

    /// All of it.
    pub(crate) fn whole(&self) -> Range<usize> {
        self.offsets(0..self.records.len())
    }

    /// The addresses of a part.
    pub(crate) fn addresses(&self, part: &Range<usize>) -> Range<usize> {
        let base = self.memory.range().start;
        base + part.start..base + part.end
    }
}

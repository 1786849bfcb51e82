//! A region that is changed while it is used.

mod ahead;
mod checked;
mod pin;
mod resize;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use pervma::{ChangeError, Exclusion};

use crate::Error;
use crate::accesses::Accesses;
use crate::bound::{Bound, Membership};
use crate::copy;
use crate::failure::WriteBackFailure;
use crate::mapping::{Backing, Mapping, PAGE, Piece, Place, SOURCES, SPACE};
use crate::poller::{Attached, Handlers};
use crate::records::Records;
use crate::signal::SignalsBlocked;
use crate::source::Source;
use crate::stats::RegionStats;
use crate::sys::{Access, At};
use crate::write_back::write_back;

pub use ahead::Prefetched;
pub use pin::Pin;

/// The bytes of a [`Source`], filled on demand, that can be given back, protected, unmapped, moved
/// and written while other threads use them. Made by [`Options::map`](crate::Options::map).
///
/// Offsets are bytes from the start of the region, which is the start of the source. Ranges are
/// whole pages ([`page_size`](Self::page_size)); one may end with the region, which need not be
/// whole pages. An operation changes all of its range or nothing. It holds up faults in the VMAs
/// that it touches for as long as its system calls take, and no others, and does not wait for a
/// source that is read for a fault.
///
/// Its memory is reached with [`read`](Self::read) and [`write`](Self::write), which copy, with
/// [`read_checked`](Self::read_checked) and [`write_checked`](Self::write_checked), which return
/// errors, or through [`as_ptr`](Self::as_ptr); as a slice only when it cannot change any more
/// ([`freeze`](Self::freeze)).
///
/// ```
/// use pervma_pager::{MemorySource, Options};
/// use pervma_pager::sys::Access;
///
/// let region = Options::new().writable().map(MemorySource::new(vec![1; 5 * 4096]))?;
/// region.write(4096 + 10, &[2, 2]);
/// assert_eq!(region.written(0..region.len())?, [4096..2 * 4096]);
///
/// region.discard(0..2 * 4096)?; // filled from the source again
/// let mut bytes = [0; 3];
/// region.read(4096 + 9, &mut bytes);
/// assert_eq!(bytes, [1, 1, 1]);
///
/// region.protect(0..4096, Access::Read)?; // a write would be SIGSEGV now
/// region.unmap(4096..8192)?; // and so would any access there
/// region.map(4096..8192)?;
/// # Ok::<(), pervma_pager::Error>(())
/// ```
///
/// Dropping it unmaps the memory and drops the source, on the thread that drops it, after the reads
/// of the source that are under way. What was written and not [written
/// back](Self::write_back) is lost.
pub struct Region {
    membership: Option<Membership>,
    handlers: Option<Attached>,
    mapping: Arc<Mapping>,
    place: Arc<Place>,
}

impl Region {
    pub(crate) fn new(
        backing: Arc<Backing<dyn Source>>,
        (at, capacity): (Option<At>, usize),
        handlers: Option<&Handlers>,
        bound: Option<&Bound>,
    ) -> Result<Self, Error> {
        let mapping = Arc::new(Mapping::new(Arc::clone(&backing), at, capacity)?);
        let place = Arc::new(Place::new(Arc::clone(&mapping)));
        // From here on, what fails is undone by its drop.
        let mut region = Self { membership: None, handlers: None, mapping, place };
        enter(&backing)?;
        if let Some(handlers) = handlers {
            let attached = Attached::begin(handlers, &backing);
            region.handlers = Some(attached.map_err(Error::Thread)?);
        }
        if let Some(bound) = bound {
            let membership = Membership::begin(bound, &region.place, &backing);
            region.membership = Some(membership.map_err(Error::Thread)?);
        }
        region.map(0..region.len())?;
        Ok(region)
    }

    /// Its length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region has bytes")]
    pub fn len(&self) -> usize {
        self.mapping.backing.len()
    }

    /// The size of its pages in bytes: what ranges are multiples of.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.mapping.backing.page_size.bytes()
    }

    /// The bytes that it can have at its addresses.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.mapping.memory.range().len()
    }

    /// Its first byte. The addresses are the region's until it is moved or dropped.
    ///
    /// An access through it of your own may be:
    ///
    /// - a plain one (a slice too), as long as nothing changes the same bytes meanwhile. Changes
    ///   are writes of other threads, [`write`](Self::write) included, and what gives pages back
    ///   ([`discard`](Self::discard), [`unmap`](Self::unmap), [`resize`](Self::resize); also a
    ///   [bound](crate::Options::resident), if the source has changed or writes can be lost);
    /// - otherwise a relaxed or stronger atomic one of aligned words of eight bytes
    ///   ([`AtomicU64::from_ptr`](std::sync::atomic::AtomicU64::from_ptr)), as
    ///   [`read`](Self::read) and `write` make them. Accesses of other sizes must not race with
    ///   those: that is undefined, as for all atomics of Rust.
    ///
    /// System calls and devices may access it at any time. What is protected or unmapped is
    /// SIGSEGV.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.memory.as_ptr()
    }

    /// Whether system calls that touch pages that are not there are served as well: in thread
    /// mode, if that was granted. If not, they fail with `EFAULT`.
    #[must_use]
    pub fn serves_system_calls(&self) -> bool {
        self.mapping.backing.uffd.serves_system_calls()
    }

    /// The bytes that are present now, of a region with a [bound](crate::Options::resident); `None`
    /// for others.
    #[must_use]
    pub fn resident(&self) -> Option<usize> {
        self.mapping.backing.share.as_ref().map(|share| share.resident() * PAGE)
    }

    /// The most bytes that were present at a time, faults under way included; `None` without a
    /// bound.
    #[must_use]
    pub fn most_resident(&self) -> Option<usize> {
        self.mapping.backing.share.as_ref().map(|share| share.most_resident() * PAGE)
    }

    /// What has been counted of it so far; also what is present, with a bound or without. It sums a
    /// few counters, and waits for no one.
    #[must_use]
    pub fn stats(&self) -> RegionStats {
        self.mapping.backing.counters.stats()
    }

    /// Copies bytes out, from `offset` on, by relaxed atomic loads. Bytes that others write
    /// meanwhile are old or new, each for itself.
    ///
    /// An access that its page's protection does not let through is SIGSEGV.
    ///
    /// # Panics
    ///
    /// When that is not within the region.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        copy::from_shared(&self.mapping.memory, offset, bytes);
    }

    /// Copies bytes in, from `offset` on, by relaxed atomic stores; what is no whole aligned word
    /// of eight bytes takes a locked instruction. For a region that is
    /// [writable](crate::Options::writable): in others it is SIGSEGV.
    ///
    /// # Panics
    ///
    /// When that is not within the region.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        copy::to_shared(&self.mapping.memory, offset, bytes);
    }

    fn check(&self, offset: usize, bytes: usize) {
        let len = self.len();
        let fits = offset <= len && bytes <= len - offset;
        assert!(fits, "{bytes} bytes at {offset} are not within {len} bytes");
    }

    /// Gives back the pages of a range: the next access to each is filled from the source again.
    /// What was written there and not [written back](Self::write_back) is lost; a page that could
    /// not be had is asked for again.
    ///
    /// # Errors
    ///
    /// When the range is not whole pages, nothing of it is mapped, or some of it is
    /// [pinned](Self::pin).
    ///
    /// # Panics
    ///
    /// Here and in all operations that change the region: in a signal handler.
    #[doc(alias = "MADV_DONTNEED")]
    pub fn discard(&self, range: Range<usize>) -> Result<(), Error> {
        let part = self.part(range)?;
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        let exclusion = self.exclude(&part)?;
        self.check_pins(&part)?;
        let given_back = Accesses::of(&exclusion, &self.mapping)?.give_back();
        drop(exclusion);
        given_back.map_err(Error::Change)
    }

    /// Lets accesses to the pages of a range through or not. All of it must be mapped.
    ///
    /// For code there is [`Access::ReadExecute`], in regions that are writable too, where code is
    /// written first and let be run afterwards: no page may be written and run at a time. (On
    /// processors that want it, such as those of ARM, it is up to the writer to make what was
    /// written seen by instruction fetches.) A missing page of code is a fault as any.
    ///
    /// # Errors
    ///
    /// When the range is not whole pages, or not mapped everywhere; when writes are to be let
    /// through in a region that is not [writable](crate::Options::writable); when the system lets
    /// no such memory be executed ([`Error::NotExecutable`]); when the kernel or memory run out.
    #[doc(alias = "mprotect")]
    pub fn protect(&self, range: Range<usize>, access: Access) -> Result<(), Error> {
        if access == Access::ReadWrite && !self.mapping.backing.is_tracked {
            return Err(Error::ReadOnly);
        }
        let part = self.part(range)?;
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        let exclusion = self.exclude(&part)?;
        let before = Accesses::of(&exclusion, &self.mapping)?;
        if let Some(gap) = before.gap() {
            return Err(Error::NotMapped(gap));
        }
        before.change(access)?;
        let changed = exclusion.update(|_, piece| Piece { access, ..piece.clone() });
        changed.map(drop).map_err(|error| {
            self.undo(&part, &before);
            self.of_change(error)
        })
    }

    /// Unmaps the pages of a range and gives them back. Accesses are SIGSEGV from now on; the
    /// addresses stay taken, and can be [mapped](Self::map) again.
    ///
    /// # Errors
    ///
    /// When the range is not whole pages, nothing of it is mapped, or some of it is
    /// [pinned](Self::pin); when the kernel or memory run out. Where a filter refuses `madvise` the
    /// range is unmapped all the same, and its memory kept.
    #[doc(alias = "munmap")]
    pub fn unmap(&self, range: Range<usize>) -> Result<(), Error> {
        let part = self.part(range)?;
        let mapping = &self.mapping;
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        loop {
            let exclusion = self.exclude(&part)?;
            self.check_pins(&part)?;
            let before = Accesses::of(&exclusion, &self.mapping)?;
            before.change(Access::None)?;
            // Reserved until its pages are gone: no thread maps it before.
            match exclusion.remove_reserving() {
                Ok((removed, reservation)) => {
                    let gone = before.give_back_unmapped();
                    if gone.is_err() {
                        // They go before the part is mapped again.
                        mapping.set_has_leftovers();
                    }
                    drop(reservation);
                    drop(removed);
                    return gone.map_err(Error::Change);
                }
                // Another thread is mapping a part of it that was not mapped. What it may do with
                // the rest meanwhile is seen by the next try.
                Err(
                    ChangeError::Reserved { .. }
                    | ChangeError::Overlap { .. }
                    | ChangeError::Excluded { .. },
                ) => {}
                Err(error) => {
                    self.undo(&part, &before);
                    return Err(self.of_change(error));
                }
            }
        }
    }

    /// Maps the pages of a range again, none of which is mapped. They are filled from the source,
    /// and can be accessed as after the region was made.
    ///
    /// # Errors
    ///
    /// When the range is not whole pages, or some of it is mapped; when the kernel or memory run
    /// out.
    pub fn map(&self, range: Range<usize>) -> Result<(), Error> {
        let part = self.part(range)?;
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        let mapping = &self.mapping;
        let access = if mapping.backing.is_tracked { Access::ReadWrite } else { Access::Read };
        let addresses = mapping.addresses(&part);
        let mut edit = SPACE.edit().map_err(|error| self.of_change(error.into()))?;
        let reservation = edit.reserve(addresses.clone());
        drop(edit);
        let mut reservation = match reservation {
            Ok(reservation) => reservation,
            // What another thread is about to change is mapped, as far as can be told.
            Err(ChangeError::Excluded { vma }) => {
                return Err(self.of_change(ChangeError::Overlap { existing: vma }));
            }
            Err(error) => return Err(self.of_change(error)),
        };
        mapping.give_back_leftovers(&part).map_err(Error::Change)?;
        // Accesses from here on find it reserved, and try again.
        mapping.memory.protect(part.clone(), access).map_err(|errno| {
            // Nothing to restore, whatever the kernel has done.
            let _ = mapping.memory.protect(part.clone(), Access::None);
            Error::Change(errno)
        })?;
        let piece = Piece { mapping: Arc::clone(mapping), access, is_isolated: false };
        reservation.commit(piece).map_err(|refused| {
            let _ = mapping.memory.protect(part.clone(), Access::None);
            self.of_change(refused.kind)
        })?;
        mapping.merge_back(&addresses);
        Ok(())
    }

    /// The pages of a range that were written since they were filled, or since they were last
    /// written back: runs of whole pages, in order.
    ///
    /// What is written meanwhile may be in it or not. In thread mode a page may be in it that a
    /// thread had written before it was given back or written back, if several have faulted there
    /// at a time. None in a region that is not [writable](crate::Options::writable).
    ///
    /// # Errors
    ///
    /// When the range is not whole pages; when memory runs out.
    pub fn written(&self, range: Range<usize>) -> Result<Vec<Range<usize>>, Error> {
        let part = self.part(range)?;
        self.settle(&part)?;
        let mapping = &self.mapping;
        let dirty = mapping.records.runs(mapping.pages(&part), Records::is_dirty);
        Ok(dirty.map(|run| mapping.offsets(run)).collect())
    }

    /// Writes the pages of a range that were written to the source, and returns how many bytes that
    /// were. Threads that write to such a page meanwhile wait, and the page is written once more
    /// the next time.
    ///
    /// A page that is [pinned](Self::pin) is written as it is now, and stays to be written; so does
    /// one that the kernel holds for a device
    /// ([when that can be told](crate::limits#devices-that-write-to-a-region)).
    ///
    /// # Errors
    ///
    /// When the range is not whole pages, when the source fails ([`Error::WriteBack`]), when pages
    /// that were written are protected against reading ([`Error::NoAccess`]). What was not written
    /// is still to be written.
    #[doc(alias = "msync")]
    pub fn write_back(&self, range: Range<usize>) -> Result<usize, Error> {
        let part = self.part(range)?;
        self.settle(&part)?;
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        write_back(&self.mapping, &part)
    }

    /// Writes all that was written to the source, and waits until it is durable: after that it is
    /// there after a failure of power too. How many bytes were written by the call.
    ///
    /// It covers what was written to the region before the call, also what was written back before,
    /// or to keep a [bound](crate::Options::resident). What others write to the source by other
    /// ways may become durable with it.
    ///
    /// ```
    /// use pervma_pager::{FileSource, Options};
    ///
    /// let file = tempfile::tempfile()?;
    /// file.set_len(1 << 20)?;
    /// let region = Options::new().writable().map(FileSource::new(file)?)?;
    /// region.write(5000, b"kept");
    /// assert_eq!(region.sync()?, 4096);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`write_back`](Self::write_back), and the source is not asked to make durable what
    /// was written then; [`Error::Sync`] when the source fails at that. Its pages are not what is
    /// to be written any more: what of it will be there is unknown, and calling it again does not
    /// write it again. Write it to the region once more, or to another place.
    #[doc(alias = "msync")]
    #[doc(alias = "fsync")]
    pub fn sync(&self) -> Result<usize, Error> {
        self.sync_range(0..self.len())
    }

    /// As [`sync`](Self::sync), of what was written to a range.
    ///
    /// # Errors
    ///
    /// As for `sync`, and when the range is not whole pages.
    pub fn sync_range(&self, range: Range<usize>) -> Result<usize, Error> {
        let bytes = self.write_back(range)?;
        if self.mapping.backing.is_tracked {
            self.mapping.backing.source.sync().map_err(Error::Sync)?;
        }
        Ok(bytes)
    }

    /// Why written pages could not be given back to keep a [bound](crate::Options::resident): the
    /// last failure, as long as any of its pages is still to be written.
    ///
    /// [`write_back`](Self::write_back) tries them again, and so does the region from time to time
    /// and before it refuses an access that would exceed the bound.
    #[must_use]
    pub fn write_back_failure(&self) -> Option<WriteBackFailure> {
        let failure = self.membership.as_ref()?.last_failure()?;
        let records = &self.mapping.records;
        // The region may have become shorter.
        let last = self.mapping.page_of(failure.range().end).min(records.len());
        let mut pages = self.mapping.page_of(failure.range().start)..last;
        pages.any(|page| records.is_stuck(page)).then_some(failure)
    }

    /// Nothing is given back any more to keep a bound.
    pub(crate) fn lift_bound(&mut self) {
        self.membership = None;
        if let Some(share) = &self.mapping.backing.share {
            share.lift();
        }
    }

    /// From now on what is read for a frozen region comes in huge pages, where the kernel has them.
    pub(crate) fn begin_to_move_huge(&self, all: &Range<usize>) {
        let Mapping { backing, memory, .. } = self.mapping();
        // For faults that leave no page table behind, in which a huge page would have no place.
        if backing.can_move_huge() && memory.ask_for_huge(all.clone()).is_ok() {
            backing.set_moves_huge(true);
        }
    }

    /// And no longer, now that it can be changed.
    pub(crate) fn end_moving_huge(&self) {
        let Mapping { backing, memory, .. } = self.mapping();
        // A forked child has nothing to wait for, and might wait for ever.
        if backing.set_moves_huge(false) && memory.is_of_this_process() {
            // None is being moved then. Without memory for it, one may be, for a moment.
            let _ = self.settle(&self.mapping.whole());
        }
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// A range as whole pages.
    pub(crate) fn part(&self, range: Range<usize>) -> Result<Range<usize>, Error> {
        let (len, page) = (self.len(), self.page_size());
        let end = if range.end == len { len.next_multiple_of(page) } else { range.end };
        let is_pages = range.start.is_multiple_of(page) && end.is_multiple_of(page);
        if is_pages && range.start < end && range.end <= len {
            Ok(range.start..end)
        } else {
            Err(Error::Range { start: range.start, end: range.end, len })
        }
    }

    /// Fails if pages of a part are pinned, which the caller excludes.
    fn check_pins(&self, part: &Range<usize>) -> Result<(), Error> {
        let mapping = &self.mapping;
        match mapping.holds.pinned(&mapping.pages(part)) {
            Some(pinned) => Err(Error::Pinned(mapping.offsets(pinned))),
            None => Ok(()),
        }
    }

    /// Excludes the VMAs of a part until what is returned is dropped.
    pub(crate) fn exclude(&self, part: &Range<usize>) -> Result<Exclusion<'static, Piece>, Error> {
        loop {
            match SPACE.exclude(self.mapping.addresses(part)) {
                Ok(exclusion) => {
                    exclusion.wait();
                    return Ok(exclusion);
                }
                // Another thread is about to map or unmap some of it, and soon done.
                Err(ChangeError::Reserved { .. }) => std::thread::yield_now(),
                Err(error) => return Err(self.of_change(error)),
            }
        }
    }

    /// Makes the kernel's accesses to a part again what they are known to be, after a change has
    /// failed and its exclusion is over: other threads may have changed them since `before`.
    fn undo(&self, part: &Range<usize>, before: &Accesses<'_>) {
        let now = self
            .exclude(part)
            .and_then(|exclusion| Accesses::of(&exclusion, &self.mapping).map(|now| now.restore()));
        if now.is_err() {
            // Without memory: as far as is known.
            before.restore();
        }
    }

    /// Waits for the faults under way in a part: a write may be over although the fault that let
    /// it through has not told of it yet.
    fn settle(&self, part: &Range<usize>) -> Result<(), Error> {
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        match self.exclude(part) {
            Ok(_) | Err(Error::NotMapped(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn of_change(&self, error: ChangeError) -> Error {
        Error::of_change(error, self.mapping.memory.range().start)
    }
}

/// Enters a source in [`SOURCES`].
fn enter(backing: &Arc<Backing<dyn Source>>) -> Result<(), Error> {
    let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
    let at = backing.number..backing.number + 1;
    let entered = SOURCES.insert(at, Arc::clone(backing));
    entered.map_err(|refused| Error::of_change(refused.kind, 0))
}

impl Drop for Region {
    fn drop(&mut self) {
        self.membership = None;
        if !self.mapping.memory.is_of_this_process() {
            // In a forked child read locks of it may never be released, as its parent left it.
            return;
        }
        // If they cannot be blocked, it goes on without.
        let blocked = SignalsBlocked::new();
        // Refused in a source's methods, which may not drop regions, and when there is no memory
        // for the list of what was removed: then the mapping stays as it is, a leak. Or nothing is
        // mapped. Waits for faults in this region only; other regions come and go meanwhile.
        let removed = SPACE.remove(self.mapping.memory.range());
        // And for the threads that read its source.
        let number = self.mapping.backing.number;
        let source = SOURCES.remove(number..number + 1);
        drop(blocked);
        self.handlers = None;
        // No fault is under way: these and `self` are the last to own the mapping and the source.
        drop(removed);
        drop(source);
    }
}

impl fmt::Debug for Region {
    /// The addresses; the content is not touched.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("range", &format_args!("{:#x?}", self.mapping.memory.range()))
            .field("len", &self.len())
            .finish()
    }
}

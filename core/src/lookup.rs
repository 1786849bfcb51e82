//! Lookups: a walk with no lock, a read lock on what it arrives at, and the checks that follow.

use crate::btree::{Leaf, PathDown, PathToNext, RecordPath};
use crate::error::ReadError;
use crate::hazard::Record;
use crate::lock::{Refused, Watermark};
use crate::map::{Map, MapRead};
use crate::platform::Platform;
use crate::range::Span;
use crate::slots::{Entry, ReadLocked, Reference, Rejected, Slot, Waiter};
use crate::step::Step;
use crate::sync::{keep, walks_unvalidated};
use crate::vma_id::VmaId;

/// Walks in a lookup, after the first and one to the leaf, before it returns *locked*.
const MORE_WALKS: u32 = if cfg!(pervma_model) { 2 } else { 7 };

/// Whether it walks again when it meets something locked. Under the models it does not: a walk does
/// not depend on the one before.
const RETRY: bool = !cfg!(pervma_model);

/// Reservations that one walk to the next VMA skips.
const MAX_SKIPPED: u32 = 512;

/// A read lock, and the walks it took.
pub(crate) type Found<'s, T, P> = (ReadLocked<'s, T, P>, u32);

/// The result of a walk.
enum Met<'s, T, P: Platform> {
    /// A VMA of the space, read-locked now.
    Vma(ReadLocked<'s, T, P>),
    /// A range that is only reserved.
    Reserved(Span),
    Nothing,
    Busy,
    /// Write-locked, excluded, detached, or another space's.
    Locked,
}

/// Why a VMA was not read-locked, with the mmap lock held for reading.
enum Blocked<'s, T> {
    /// The VMA has as many readers as LIMIT allows.
    Busy,
    /// The range is only reserved.
    Reserved,
    /// An exclusion has it: release the mmap lock, sleep, look again.
    Excluded(Waiter<'s, T>),
    /// Something changed meanwhile: look again at once.
    Changed,
}

impl<T, P: Platform> Map<T, P> {
    /// Read-locks the VMA that holds `addr`, without waiting. The read lock is published in
    /// `record` if there is one, else counted.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn try_read<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
    ) -> Result<Found<'s, T, P>, ReadError> {
        self.lookup(addr, record).map_err(|error| self.own(error))
    }

    /// Read-locks the VMA that holds `addr`; waits for the edit or exclusion that has it.
    #[inline]
    pub(crate) fn read_lock<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
    ) -> Result<Found<'s, T, P>, ReadError> {
        match self.lookup(addr, record) {
            Err(ReadError::Locked { .. }) => {
                let found = self.wait_for(addr, |locked| locked.holding(addr))?;
                Ok((found.ok_or(ReadError::NotMapped { addr })?, MORE_WALKS + 2))
            }
            decided => decided,
        }
    }

    /// Read-locks the first VMA that ends above `addr`, without waiting.
    pub(crate) fn try_read_at_or_after<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
    ) -> Result<Option<Found<'s, T, P>>, ReadError> {
        self.lookup_from(addr, record).map_err(|error| self.own(error))
    }

    /// Read-locks the first VMA that ends above `addr`; waits for the edit or exclusion that has
    /// it.
    pub(crate) fn read_lock_at_or_after<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
    ) -> Result<Option<Found<'s, T, P>>, ReadError> {
        match self.lookup_from(addr, record) {
            Err(ReadError::Locked { .. }) => {
                let above = Span { start: addr, end: usize::MAX };
                let found = self.wait_for(addr, |locked| {
                    locked.entries(above).find(|entry| !entry.is_reserved())
                })?;
                Ok(found.map(|read_lock| (read_lock, MORE_WALKS + 2)))
            }
            decided => decided,
        }
    }

    /// Read-locks the last VMA that starts below `addr`; waits for the mmap lock, and for the
    /// exclusion that has it.
    pub(crate) fn read_lock_before(
        &self,
        addr: usize,
    ) -> Result<Option<ReadLocked<'_, T, P>>, ReadError> {
        if self.is_abandoned() {
            return Err(ReadError::Forked);
        }
        self.wait_for(addr, |locked| locked.last_before(addr))
    }

    /// Read-locks the VMA that `id` names, without waiting.
    pub(crate) fn try_read_id<'s>(
        &'s self,
        id: VmaId,
        record: Option<&'s Record>,
    ) -> Result<Found<'s, T, P>, ReadError> {
        self.named(id, |addr| self.try_read(addr, record))
    }

    /// Read-locks the VMA that `id` names; waits for the edit or exclusion that has it.
    pub(crate) fn read_lock_id<'s>(
        &'s self,
        id: VmaId,
        record: Option<&'s Record>,
    ) -> Result<Found<'s, T, P>, ReadError> {
        self.named(id, |addr| self.read_lock(addr, record))
    }

    /// The result of `look` at the start of the VMA that `id` names, if that finds the same VMA.
    fn named<'s>(
        &'s self,
        id: VmaId,
        look: impl FnOnce(usize) -> Result<Found<'s, T, P>, ReadError>,
    ) -> Result<Found<'s, T, P>, ReadError> {
        let gone = Err(ReadError::Gone { addr: id.start });
        if id.space != self.state().id() {
            return if self.is_abandoned() { Err(ReadError::Forked) } else { gone };
        }
        match look(id.start) {
            Ok(found) if found.0.id() == id || !keep(Step::CheckGeneration) => Ok(found),
            Ok(_) | Err(ReadError::NotMapped { .. } | ReadError::Reserved { .. }) => gone,
            error => error,
        }
    }

    #[cfg_attr(not(debug_assertions), inline(always))]
    fn acquire<'s>(
        &self,
        slot: &'s Slot<T>,
        record: Option<&'s Record>,
    ) -> Result<Reference<'s, T, P>, Refused> {
        Reference::acquire(slot, record, || self.slab().slots().readers())
    }

    /// Read-locks the VMA in `slot`, if that is this space's and holds `addr`.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn read_in<'s>(
        &'s self,
        slot: &'s Slot<T>,
        addr: usize,
        record: Option<&'s Record>,
    ) -> Option<ReadLocked<'s, T, P>> {
        self.read_slot(slot, record).filter(|read_lock| holds(read_lock, addr))
    }

    /// Read-locks the VMA in `slot`, if that is this space's.
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn read_slot<'s>(
        &'s self,
        slot: &'s Slot<T>,
        record: Option<&'s Record>,
    ) -> Option<ReadLocked<'s, T, P>> {
        // The space before the sequence, both before the range: only then is the range ours to
        // read.
        self.acquire(slot, record).ok()?.admit(self.state())
    }

    /// The error for *locked*, which differs for a thread that would wait for itself.
    #[cold]
    fn own(&self, error: ReadError) -> ReadError {
        match error {
            ReadError::Locked { addr } if self.state().edited_by_me() => {
                ReadError::OwnEdit { addr }
            }
            ReadError::Locked { addr } if self.state().holds_exclusion() => {
                ReadError::OwnExclusion { addr }
            }
            error => error,
        }
    }

    /// Waits until the entry that `find` finds under the mmap lock can be read-locked.
    #[cold]
    fn wait_for<'s, F>(
        &'s self,
        addr: usize,
        find: F,
    ) -> Result<Option<ReadLocked<'s, T, P>>, ReadError>
    where
        F: for<'m> Fn(&'m MapRead<'s, T, P>) -> Option<Entry<'s, 'm, T>>,
    {
        if self.state().edited_by_me() {
            return Err(ReadError::OwnEdit { addr });
        }
        if self.state().holds_guard() {
            return Err(ReadError::GuardHeld { addr });
        }
        loop {
            let locked = self.read();
            let Some(entry) = find(&locked) else { return Ok(None) };
            let waiter = match locked.read_lock(entry) {
                Ok(read_lock) => return Ok(Some(read_lock)),
                Err(Blocked::Busy) => return Err(ReadError::Busy { addr }),
                Err(Blocked::Reserved) => return Err(ReadError::Reserved { addr }),
                Err(Blocked::Changed) => continue,
                Err(Blocked::Excluded(_)) if self.state().holds_exclusion() => {
                    return Err(ReadError::OwnExclusion { addr });
                }
                Err(Blocked::Excluded(waiter)) => waiter,
            };
            waiter.wait::<P>(locked, None);
        }
    }

    /// Walks to a VMA that does not look write-locked.
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn walk_to_open(&self, addr: usize) -> Option<&Slot<T>> {
        self.state().seq().schedule().hint();
        let slot = self.walk(addr, &mut ())?;
        (!slot.looks_locked(self.state().seq())).then_some(slot)
    }

    /// Walks, and tries to read-lock what it arrives at.
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn walk_and_enter<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
        path: &mut impl RecordPath<'s>,
    ) -> Met<'s, T, P> {
        self.state().seq().schedule().hint();
        self.enter(self.walk(addr, path), record)
    }

    /// Tries to read-lock what a walk has arrived at.
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn enter<'s>(&'s self, slot: Option<&'s Slot<T>>, record: Option<&'s Record>) -> Met<'s, T, P> {
        let Some(slot) = slot else { return Met::Nothing };
        if slot.looks_locked(self.state().seq()) {
            return Met::Locked;
        }
        match self.acquire(slot, record) {
            Ok(reference) => match reference.admit_or_reject(self.state()) {
                Ok(read_lock) => Met::Vma(read_lock),
                Err(Rejected::Reserved(span)) => Met::Reserved(span),
                Err(Rejected::Locked) => Met::Locked,
            },
            Err(Refused::Busy) => Met::Busy,
            Err(Refused::Detached | Refused::Excluded | Refused::Contended) => Met::Locked,
        }
    }

    /// One lookup. Unoptimised, it has a frame of its own: with its callers' they would be too much
    /// for an alternate signal stack.
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn lookup<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
    ) -> Result<Found<'s, T, P>, ReadError> {
        // Most models begin with the next walk: this one differs from it by what it does not
        // record.
        let slot = if walks_unvalidated() { self.walk_to_open(addr) } else { None };
        // Two calls: one with either argument would cost a lookup that succeeds eight instructions.
        let Some(read_lock) = slot.and_then(|slot| self.read_slot(slot, record)) else {
            return self.lookup_again(addr, record, None);
        };
        if holds(&read_lock, addr) {
            return Ok((read_lock, 1));
        }
        self.lookup_again(addr, record, Some(read_lock))
    }

    /// What follows if the first walk has met another VMA, `below` the address perhaps, or none.
    /// Most holes are shown by the leaf. The walks that follow record which nodes they visit: if
    /// none of those has changed since all that was visible before the walk, the walk was right,
    /// and what it met, if anything, is the predecessor.
    #[cold]
    #[inline(never)]
    fn lookup_again<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
        below: Option<ReadLocked<'s, T, P>>,
    ) -> Result<Found<'s, T, P>, ReadError> {
        if self.is_abandoned() {
            return Err(ReadError::Forked);
        }
        let mut walks = 1;
        let mut leaf = || {
            walks += 1;
            self.leaf(addr)
        };
        if below.is_some_and(|below| self.is_below_hole(&below, addr, &mut leaf)) {
            return Err(ReadError::NotMapped { addr });
        }
        let mut busy = false;
        let mut watermark = self.state().seq().watermark();
        for _ in 0..MORE_WALKS {
            walks += 1;
            let mut path = PathDown::empty();
            match self.walk_and_enter(addr, record, &mut path) {
                Met::Vma(read_lock) => {
                    if holds(&read_lock, addr) {
                        return Ok((read_lock, walks));
                    }
                    if self.is_below_hole(&read_lock, addr, || path.leaf()) {
                        return Err(ReadError::NotMapped { addr });
                    }
                }
                Met::Reserved(span) => {
                    if span.contains(addr) {
                        return Err(ReadError::Reserved { addr });
                    }
                }
                Met::Nothing => {}
                met @ (Met::Busy | Met::Locked) => {
                    busy |= matches!(met, Met::Busy);
                    if RETRY {
                        continue;
                    }
                    break;
                }
            }
            if self.is_unchanged(&path, watermark) {
                return Err(ReadError::NotMapped { addr });
            }
            watermark = self.state().seq().advance_watermark(watermark);
        }
        Err(if busy { ReadError::Busy { addr } } else { ReadError::Locked { addr } })
    }

    /// Whether a hole is at `addr`, above `vma`, as the leaf at the end of a walk there shows.
    fn is_below_hole<'n>(
        &self,
        vma: &ReadLocked<'_, T, P>,
        addr: usize,
        leaf: impl FnOnce() -> Leaf<'n>,
    ) -> bool {
        vma.span().end <= addr && self.shows_hole(vma.slot(), addr, leaf)
    }

    /// One lookup of the first VMA that ends above `addr`.
    fn lookup_from<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
    ) -> Result<Option<Found<'s, T, P>>, ReadError> {
        if self.is_abandoned() {
            return Err(ReadError::Forked);
        }
        let mut any_busy = false;
        let mut watermark = self.state().seq().watermark();
        for walk in 1..=MORE_WALKS {
            match self.walk_to_next(addr, record, watermark) {
                Next::Vma(read_lock) => return Ok(Some((read_lock, walk))),
                Next::None => return Ok(None),
                Next::Changed => watermark = self.state().seq().advance_watermark(watermark),
                Next::Locked { busy } => {
                    any_busy |= busy;
                    if !RETRY {
                        break;
                    }
                }
            }
        }
        Err(if any_busy { ReadError::Busy { addr } } else { ReadError::Locked { addr } })
    }

    /// One try of that: first what starts at or below the address, then what starts above what was
    /// skipped.
    fn walk_to_next<'s>(
        &'s self,
        addr: usize,
        record: Option<&'s Record>,
        watermark: Watermark,
    ) -> Next<'s, T, P> {
        let mut from = addr;
        let mut path = PathToNext::empty();
        match self.walk_and_enter(addr, record, &mut path) {
            Met::Vma(read_lock) => {
                if holds(&read_lock, addr) {
                    return Next::Vma(read_lock);
                }
            }
            Met::Reserved(span) => {
                if !self.is_unchanged(&path, watermark) {
                    return Next::Changed;
                }
                (from, path) = (from.max(span.end), PathToNext::empty());
            }
            Met::Nothing => {}
            Met::Busy => return Next::Locked { busy: true },
            Met::Locked => return Next::Locked { busy: false },
        }
        for _ in 0..=MAX_SKIPPED {
            match self.enter(self.walk_from(from, &mut path), record) {
                // If neither it nor the path has changed, it is the next one, and between it and
                // the address there is a hole.
                Met::Vma(read_lock) => {
                    let covered =
                        watermark.covers(read_lock.changed_by()) || !keep(Step::CheckNextSince);
                    let next = covered && self.is_unchanged(&path, watermark);
                    return if next { Next::Vma(read_lock) } else { Next::Changed };
                }
                // What becomes a reservation is linked anew, so this one has been there as long.
                Met::Reserved(span) => {
                    if !self.is_unchanged(&path, watermark) {
                        return Next::Changed;
                    }
                    (from, path) = (from.max(span.end), PathToNext::empty());
                }
                Met::Nothing if self.is_unchanged(&path, watermark) => return Next::None,
                Met::Nothing => return Next::Changed,
                Met::Busy => return Next::Locked { busy: true },
                Met::Locked => return Next::Locked { busy: false },
            }
        }
        Next::Locked { busy: false }
    }
}

/// Whether the VMA holds `addr`.
#[cfg_attr(not(debug_assertions), inline(always))]
fn holds<T, P: Platform>(read_lock: &ReadLocked<'_, T, P>, addr: usize) -> bool {
    read_lock.span().contains(addr) || !keep(Step::CheckRange)
}

/// The result of a walk to the next VMA.
enum Next<'s, T, P: Platform> {
    Vma(ReadLocked<'s, T, P>),
    /// No VMA follows.
    None,
    /// Something on the way has changed since the watermark.
    Changed,
    Locked {
        busy: bool,
    },
}

impl<'s, T, P: Platform> MapRead<'s, T, P> {
    /// Read-locks the VMA of `entry`; the read lock may outlive the mmap lock.
    fn read_lock(&self, entry: Entry<'s, '_, T>) -> Result<ReadLocked<'s, T, P>, Blocked<'s, T>> {
        if entry.is_excluded() {
            return Err(entry.prepare_wait().map_or(Blocked::Changed, Blocked::Excluded));
        }
        match entry.acquire(self.section()) {
            Ok(Ok(read_lock)) => Ok(read_lock),
            Ok(Err(Rejected::Reserved(..))) => Err(Blocked::Reserved),
            Ok(Err(Rejected::Locked)) => Err(Blocked::Changed),
            Err(Refused::Busy) => Err(Blocked::Busy),
            Err(Refused::Contended | Refused::Excluded | Refused::Detached) => {
                Err(Blocked::Changed)
            }
        }
    }
}

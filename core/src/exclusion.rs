//! Keeping readers out of a range, and waiting for those that have it, without the mmap lock.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::change::{
    Change, ExcludedVmas, Mapped, Neighbours, Nowhere, Placement, Refusal, Request, exclude,
    exclude_unwanted,
};
use crate::error::{ChangeError, InsertError};
use crate::held::{Exclusions, HandlerScope, Held};
use crate::host::DefaultPlatform;
use crate::map::{Map, MapWrite};
use crate::payload::{AsPayload, Payload, SplitMerge, Whole};
use crate::platform::Platform;
use crate::range::Span;
use crate::removed::RemovedVmas;
use crate::reserve::Reservation;
use crate::reserved::ReservedRange;
use crate::space::AddressSpace;

/// The VMAs that touched a range when it was made, with no reader admitted any more, from
/// [`exclude`](AddressSpace::exclude).
///
/// It does not hold the mmap lock: edits and readers elsewhere go on while it waits for the
/// readers that still have these VMAs. What it does at last ([`remove`](Self::remove),
/// [`update`](Self::update), [`relocate`](Self::relocate)) is a short edit that waits for no
/// reader. Dropping it admits readers again, with nothing changed.
///
/// It consists of the VMAs that it found. What other threads insert into holes of the range later
/// is not part of it, and stays. An exclusion of many VMAs can be overtaken again and again by
/// exclusions of a few; see [`edit_range`](AddressSpace::edit_range) for what is not.
///
/// It belongs to the thread that made it. One that is forgotten ([`core::mem::forget`]) keeps
/// its VMAs excluded forever; dropping the space frees them.
///
/// ```
/// use pervma::AddressSpace;
/// use std::time::{Duration, Instant};
///
/// let space = AddressSpace::new(4096);
/// space.insert(0x1000..0x4000, "text")?;
///
/// let exclusion = space.exclude(0x1000..0x2000)?;
/// assert!(space.try_read(0x3000).is_err()); // the whole VMA, since it is going to be split
/// if exclusion.wait_until(Instant::now() + Duration::from_secs(1)) {
///     let removed = exclusion.remove()?;
///     assert_eq!(removed[0].range, 0x1000..0x2000);
/// } // else its readers took too long, and it is dropped
/// assert_eq!(space.try_read(0x3000)?.range(), 0x2000..0x4000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "an exclusion is abandoned when it is dropped"]
pub struct Exclusion<'s, T, P: Platform = DefaultPlatform> {
    space: &'s AddressSpace<T, P>,
    vmas: ExcludedVmas<'s, T, P>,
    request: Request,
    /// Made first and dropped last, so that a handler of this thread never gets *locked*.
    held: Held<Exclusions, P>,
}

/// The VMAs that an operation is about, excluded, or why they are not.
type Selected<'s, 'm, T, P> = Result<ExcludedVmas<'s, T, P>, Refusal<'s, 'm, T>>;

impl<'s, T, P: Platform> Exclusion<'s, T, P> {
    /// Excludes what `select` does, in an edit; waits for other exclusions, and for no reader.
    fn new(
        space: &'s AddressSpace<T, P>,
        request: Request,
        mut select: impl for<'m> FnMut(&'m MapWrite<'s, T, P>) -> Selected<'s, 'm, T, P>,
    ) -> Result<Self, ChangeError> {
        space.check_may_wait()?;
        let map = space.map();
        if map.state().holds_exclusion() {
            return Err(ChangeError::OwnExclusion);
        }
        let held = Held::record(map.state().assigned_id());
        loop {
            let edit = map.write();
            if edit.section().has_waiting(request.span) {
                drop(edit);
                map.state().let_waiting_edit_go_first();
                continue;
            }
            let waiter = match select(&edit) {
                Ok(vmas) => return Ok(Self { space, vmas, request, held }),
                Err(Refusal::Error(error)) => return Err(error),
                Err(Refusal::Excluded(entry)) => entry.prepare_wait(),
            };
            if let Some(waiter) = waiter {
                waiter.wait::<P>(edit, None);
            }
        }
    }

    /// The range that was asked for.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.exclude(0x2000..0x3000)?.range(), 0x2000..0x3000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.request.span.range()
    }

    /// The VMAs, whole, in order of address. Nothing changes them; readers may still have them.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let exclusion = space.exclude(0x2000..0x3000)?;
    /// assert!(exclusion.iter().eq([(0x1000..0x4000, &"text")]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &T)> {
        self.vmas.iter().map(|vma| (vma.span().range(), vma.payload()))
    }

    /// Waits until the readers have released the VMAs.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let exclusion = space.exclude(0x2000..0x3000)?;
    /// exclusion.wait();
    /// // now it has no reader
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn wait(&self) {
        HandlerScope::<P>::assert_may_wait();
        self.vmas.wait_drained(None);
    }

    /// Waits until the readers have released the VMAs, at most until `deadline`; whether they have.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let exclusion = space.exclude(0x1000..0x4000)?;
    /// let soon = std::time::Instant::now() + std::time::Duration::from_millis(1);
    /// assert!(exclusion.wait_until(soon)); // there was none
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    #[must_use = "readers may still have the VMAs"]
    pub fn wait_until(&self, deadline: P::Deadline) -> bool {
        HandlerScope::<P>::assert_may_wait();
        self.vmas.wait_drained(Some(deadline))
    }

    /// Whether the readers have released the VMAs.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert!(space.exclude(0x2000..0x3000)?.is_drained());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_drained(&self) -> bool {
        self.vmas.is_drained()
    }

    /// The VMAs that still have readers, and how many, at this moment: to find a guard that was
    /// forgotten.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| std::mem::forget(space.try_read(0x2000)));
    /// });
    /// let exclusion = space.exclude(0x1000..0x2000)?;
    /// assert!(!exclusion.is_drained());
    /// assert!(exclusion.waits_for().eq([(0x1000..0x4000, 1)]));
    /// # std::mem::forget(exclusion); std::mem::forget(space); // else they would wait forever
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn waits_for(&self) -> impl Iterator<Item = (Range<usize>, u32)> {
        let vmas = self.vmas.iter().map(|vma| (vma.span().range(), vma.readers()));
        vmas.filter(|&(_, readers)| readers != 0)
    }

    /// Unmaps every byte of the range that the VMAs cover, as [`Edit::remove`](crate::Edit::remove)
    /// does, once the readers have released them. The payloads' methods run before the edit.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let removed = space.exclude(0x2000..0x5000)?.remove()?;
    /// assert_eq!((removed[0].range.clone(), removed[0].payload), (0x2000..0x4000, "text"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the exclusion is over.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn remove(self) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let request = Request::new(self.request.span, Mapped::Something);
        self.finish(request, AsPayload, Nowhere)
    }

    /// As [`remove`](Self::remove), of whole VMAs: payloads of any type, since none is split.
    ///
    /// ```
    /// struct Device; // no `Payload`
    ///
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, Device)?;
    /// let removed = space.exclude(0x1000..0x5000)?.remove_whole()?;
    /// assert_eq!(removed[0].range, 0x1000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; [`PartlyCovered`](ChangeError::PartlyCovered) if a VMA reaches beyond
    /// the range. Nothing has changed then, and the exclusion is over.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn remove_whole(self) -> Result<RemovedVmas<T>, ChangeError> {
        let request = Request::new(self.request.span, Mapped::Something);
        self.finish(request, Whole, Nowhere)
    }

    /// Changes the payload of every part of the range, as [`Edit::update`](crate::Edit::update)
    /// does, once the readers have released them. Splitting payloads and `change` run before the
    /// edit, merging them in it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, 5)?;
    /// let exclusion = space.exclude(0x1000..0x2000)?;
    /// let allowed = exclusion.iter().all(|(_, &payload)| payload < 10); // it stays so
    /// if allowed {
    ///     exclusion.update(|_, payload| payload + 1)?;
    /// }
    /// assert_eq!(*space.try_read(0x1000)?, 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the exclusion is over.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn update(
        self,
        mut change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let request = Request::new(self.request.span, Mapped::Everything);
        self.finish(request, AsPayload, |part: Span, payload: &T| {
            Some((part, change(part.range(), payload)))
        })
    }

    /// Changes or unmaps every part of the range, as [`Edit::change`](crate::Edit::change) does,
    /// once the readers have released them. Splitting payloads and `place` run before the edit,
    /// merging them in it.
    ///
    /// ```
    /// use std::ops::Range;
    /// use pervma::{AddressSpace, SplitMerge};
    ///
    /// /// Both parts of what is split get the same.
    /// struct Alike;
    /// impl<T: Copy> SplitMerge<T> for Alike {
    ///     fn split(&mut self, of: &T, _: Range<usize>, _: usize) -> Option<(T, T)> {
    ///         Some((*of, *of))
    ///     }
    /// }
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, 'x')?;
    /// space.exclude(0x1000..0x2000)?.change(Alike, |_, _| None)?;
    /// assert_eq!(space.try_read(0x2000)?.range(), 0x2000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the exclusion is over.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn change(
        self,
        rules: impl SplitMerge<T>,
        mut place: impl FnMut(Range<usize>, &T) -> Option<T>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        let request = Request::new(self.request.span, Mapped::Something);
        let place = |part: Span, payload: &T| Some((part, place(part.range(), payload)?));
        self.finish(request, rules, place)
    }

    /// Moves everything in the range, as [`Edit::relocate`](crate::Edit::relocate) does, once the
    /// readers have released them. Splitting payloads and `change` run before the edit, merging
    /// them in it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// space.exclude(0x1000..0x4000)?.relocate(0x8000, |_, payload| payload)?;
    /// assert_eq!(space.try_read(0x8000)?.range(), 0x8000..0xb000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the exclusion is over.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn relocate(
        self,
        to: usize,
        mut change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let from = self.request.span;
        let target = self.space.map().span(from.target(to))?;
        self.finish(Request::relocation(from, target), AsPayload, |part: Span, payload: &T| {
            let there = part.moved(from, target);
            Some((there, change(there.range(), payload)))
        })
    }

    fn finish(
        self,
        request: Request,
        rules: impl SplitMerge<T>,
        placement: impl Placement<T>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        // Dropped when the exclusion and its edit are over; the result is safe by then, should one
        // of their destructors panic.
        let mut deferred_drops = Vec::new();
        let result = self.finish_into(&mut deferred_drops, request, rules, placement);
        drop(deferred_drops);
        result
    }

    fn finish_into(
        self,
        deferred_drops: &mut Vec<T>,
        request: Request,
        rules: impl SplitMerge<T>,
        mut placement: impl Placement<T>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        let space = self.space;
        self.wait_to_finish(&request)?;
        // Early, before user code runs; in an edit, since that drains deferred releases.
        if request.target.is_some() {
            space.map().write().check_target(&request)?;
        }
        let Self { vmas, held: _held, .. } = self;
        let mut change = Change::new(vmas, request, rules, deferred_drops);
        change.split(&mut placement)?;
        space.check_may_wait()?; // user code may have taken something
        let edit = space.map().write();
        edit.check_target(&request)?;
        #[cfg(pervma_model)]
        if !crate::sync::keep(crate::step::Step::OwnList) {
            change.take_over(&edit);
        }
        change.finish(&mut edit.cursor())
    }

    /// Waits until the VMAs can be changed, if that is possible.
    fn wait_to_finish(&self, request: &Request) -> Result<(), ChangeError> {
        HandlerScope::<P>::assert_may_wait();
        self.space.check_may_wait()?;
        if request.mapped == Mapped::Everything {
            self.vmas.check_whole(request.span)?;
        }
        self.vmas.wait_drained(None);
        Ok(())
    }

    /// Unmaps every byte of the range that the VMAs cover, as [`remove`](Self::remove) does, and
    /// reserves the whole range: nothing can be mapped there before its owner has cleaned up.
    ///
    /// ```
    /// # fn munmap(_: &std::ops::Range<usize>) {}
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    ///
    /// let (removed, reservation) = space.exclude(0x1000..0x4000)?.remove_reserving()?;
    /// munmap(&removed[0].range); // no lock is held, and the range is taken
    /// drop(reservation);
    /// space.insert(0x1000..0x2000, "heap")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; [`Overlap`](ChangeError::Overlap) when others have mapped something in
    /// a hole of the range. Nothing has changed then, and the exclusion is over.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn remove_reserving(self) -> Result<(RemovedVmas<T>, Reservation<'s, T, P>), ChangeError>
    where
        T: Payload,
    {
        let mut deferred_drops = Vec::new(); // as in `finish`
        let result = self.reserve_into(&mut deferred_drops);
        drop(deferred_drops);
        result
    }

    fn reserve_into(
        self,
        deferred_drops: &mut Vec<T>,
    ) -> Result<(RemovedVmas<T>, Reservation<'s, T, P>), ChangeError>
    where
        T: Payload,
    {
        let (space, request) = (self.space, self.request);
        self.wait_to_finish(&request)?;
        self.vmas.check_no_newcomer(&space.map().write(), request.span)?; // before user code runs
        let Self { vmas, held: _held, .. } = self;
        let mut change = Change::new(vmas, request, AsPayload, deferred_drops);
        change.split(&mut Nowhere)?;
        space.check_may_wait()?; // user code may have taken something
        let edit = space.map().write();
        change.vmas().check_no_newcomer(&edit, request.span)?;
        let (removed, slot) = change.finish_reserving(&mut edit.cursor())?;
        Ok((removed, Reservation::new(ReservedRange::new(space.map(), slot), request.span)))
    }
}

impl<T, P: Platform> fmt::Debug for Exclusion<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exclusion").field("range", &self.range()).finish_non_exhaustive()
    }
}

impl<T, P: Platform> AddressSpace<T, P> {
    /// Keeps new readers out of every VMA that touches `range`. Waits for exclusions of the same
    /// VMAs by other threads, not for readers. See [`Exclusion`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let exclusion = space.exclude(0x2000..0x3000)?;
    /// assert!(space.try_read(0x1000).is_err());
    /// drop(exclusion);
    /// assert!(space.try_read(0x1000).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; there must be something mapped in the range.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    #[doc(alias = "__vma_start_exclude_readers")]
    pub fn exclude(&self, range: Range<usize>) -> Result<Exclusion<'_, T, P>, ChangeError> {
        let request = Request::new(self.map().span(range)?, Mapped::Something);
        Exclusion::new(self, request, |edit| exclude(&mut edit.cursor(), &request, true))
    }

    /// Unmaps every byte of `range`, as [`Edit::remove`](crate::Edit::remove) does, waiting only
    /// for readers of the VMAs that it touches, and not with the mmap lock held: readers and edits
    /// elsewhere go on meanwhile.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let removed = space.remove(0x1000..0x2000)?;
    /// assert_eq!((removed[0].range.clone(), removed[0].payload), (0x1000..0x2000, "text"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    #[doc(alias = "munmap")]
    pub fn remove(&self, range: Range<usize>) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let request = Request::new(self.map().span(range)?, Mapped::Something);
        self.change_parts(request, AsPayload, Nowhere)
    }

    /// As [`remove`](Self::remove), of whole VMAs: payloads of any type, since none is split.
    ///
    /// ```
    /// use pervma::AddressSpace;
    ///
    /// struct Device; // no `Payload`
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, Device)?;
    /// assert_eq!(space.remove_whole(space.everything())?[0].range, 0x1000..0x3000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; [`PartlyCovered`](ChangeError::PartlyCovered) if a VMA reaches beyond
    /// the range. Nothing has changed then.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    #[doc(alias = "munmap")]
    pub fn remove_whole(&self, range: Range<usize>) -> Result<RemovedVmas<T>, ChangeError> {
        let request = Request::new(self.map().span(range)?, Mapped::Something);
        self.change_parts(request, Whole, Nowhere)
    }

    /// Removes the VMAs that `keep` says `false` of, as [`Edit::retain`](crate::Edit::retain) does,
    /// but waits for their readers outside of edits, as [`remove`](Self::remove) does.
    ///
    /// `keep` runs in an edit. When another thread changes one of these VMAs, or has the mmap lock
    /// for more than a moment, this starts over: then `keep` is called again.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x2000, 1)?;
    /// space.insert(0x2000..0x3000, 2)?;
    /// let removed = space.retain(|_, &owner| owner != 1)?;
    /// assert_eq!(removed[0].range, 0x1000..0x2000);
    /// assert_eq!(space.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the thread edits this space, holds a guard of it or has an exclusion in it, or memory
    /// runs out. Nothing has changed then.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn retain(
        &self,
        mut keep: impl FnMut(Range<usize>, &T) -> bool,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        let removed = self.change_selected(
            Request::removal_anywhere(),
            |edit| exclude_unwanted(edit, true, &mut keep),
            Whole,
            Nowhere,
            (),
            |edit, change, ()| {
                change.finish(&mut edit.cursor()).map_err(|error| (error.into(), ()))
            },
        );
        removed.map_err(|(error, ())| error)
    }

    /// Changes the payload of every part of `range`, as [`Edit::update`](crate::Edit::update) does,
    /// but waits outside of edits, as [`remove`](Self::remove) does.
    ///
    /// Splitting payloads and `change` run with no lock held, merging them in an edit. When
    /// another thread has the mmap lock for more than a moment, this admits readers again and
    /// starts over, a few times at most: then they are called again.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "r")?;
    /// space.update(0x2000..0x3000, |_, _| "rw")?;
    /// assert_eq!(*space.try_read(0x2000)?, "rw");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; all of the range must be mapped. Nothing has changed then.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    #[doc(alias = "mprotect")]
    pub fn update(
        &self,
        range: Range<usize>,
        mut change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let request = Request::new(self.map().span(range)?, Mapped::Everything);
        let place = |part: Span, payload: &T| Some((part, change(part.range(), payload)));
        self.change_parts(request, AsPayload, place)
    }

    /// Changes or unmaps every part of `range`, as [`Edit::change`](crate::Edit::change) does, but
    /// waits outside of edits, as [`remove`](Self::remove) does.
    ///
    /// Splitting payloads and `place` run with no lock held, merging them in an edit. When another
    /// thread has the mmap lock for more than a moment, this admits readers again and starts over,
    /// a few times at most: then they are called again. What was split or merged away is dropped
    /// when no lock is held any more, and so is what the caller drops of the result.
    ///
    /// ```
    /// use std::ops::Range;
    /// use pervma::{AddressSpace, SplitMerge};
    ///
    /// #[derive(Clone, Copy, Debug, PartialEq)]
    /// struct Handle(u32); // no `Payload`
    ///
    /// /// Both parts of a split VMA get the same, and equal ones are merged.
    /// struct Alike;
    /// impl<T: Copy + PartialEq> SplitMerge<T> for Alike {
    ///     fn split(&mut self, of: &T, _: Range<usize>, _: usize) -> Option<(T, T)> {
    ///         Some((*of, *of))
    ///     }
    ///     fn merge(&mut self, of: &T, _: Range<usize>, next: &T) -> Option<T> {
    ///         (of == next).then_some(*of)
    ///     }
    /// }
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, Handle(1))?;
    /// space.change(0x2000..0x3000, Alike, |_, _| Some(Handle(2)))?;
    /// assert_eq!((space.len(), *space.try_read(0x2000)?), (3, Handle(2)));
    /// space.change(0x2000..0x3000, Alike, |_, _| Some(Handle(1)))?;
    /// assert_eq!(space.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; something must be mapped in the range. Nothing has changed then.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn change(
        &self,
        range: Range<usize>,
        rules: impl SplitMerge<T>,
        mut place: impl FnMut(Range<usize>, &T) -> Option<T>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        let request = Request::new(self.map().span(range)?, Mapped::Something);
        let place = |part: Span, payload: &T| Some((part, place(part.range(), payload)?));
        self.change_parts(request, rules, place)
    }

    /// Moves everything in `from` to `to`, as [`Edit::relocate`](crate::Edit::relocate) does, but
    /// waits outside of edits, as [`remove`](Self::remove) does.
    ///
    /// Splitting payloads and `change` run with no lock held, merging them in an edit. When
    /// another thread has the mmap lock for more than a moment, this admits readers again and
    /// starts over, a few times at most: then they are called again.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "heap")?;
    /// space.relocate(0x1000..0x3000, 0x8000, |_, payload| payload)?;
    /// assert_eq!(space.try_read(0x8000)?.range(), 0x8000..0xa000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    #[doc(alias = "mremap")]
    pub fn relocate(
        &self,
        from: Range<usize>,
        to: usize,
        mut change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let from = self.map().span(from)?;
        let target = self.map().span(from.target(to))?;
        self.change_parts(
            Request::relocation(from, target),
            AsPayload,
            |part: Span, payload: &T| {
                let there = part.moved(from, target);
                Some((there, change(there.range(), payload)))
            },
        )
    }

    /// Maps `range` in the place of whatever is mapped there, as
    /// [`Edit::replace`](crate::Edit::replace) does, but waits outside of edits, as
    /// [`remove`](Self::remove) does.
    ///
    /// When others map something in a hole of the range meanwhile, or have the mmap lock for more
    /// than a moment, it starts over: then the payloads' methods are called again.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "old")?;
    /// space.replace(0x2000..0x5000, "new")?;
    /// assert_eq!(space.try_read(0x2000)?.range(), 0x2000..0x5000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the payload comes back.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    #[doc(alias = "MAP_FIXED")]
    pub fn replace(&self, range: Range<usize>, payload: T) -> Result<RemovedVmas<T>, InsertError<T>>
    where
        T: Payload,
    {
        self.put(range, payload, Neighbours::Stay)
    }

    /// Maps `range` in the place of whatever is mapped there, and merges the VMA with what touches
    /// it, as [`Edit::set`](crate::Edit::set) does, but waits outside of edits, as
    /// [`remove`](Self::remove) does.
    ///
    /// Splitting payloads runs with no lock held, merging them in an edit. When others map
    /// something in a hole of the range meanwhile, or have the mmap lock for more than a moment, it
    /// starts over: then the payloads' methods are called again.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.set(0x1000..0x4000, 'r')?;
    /// space.set(0x4000..0x6000, 'r')?;
    /// assert_eq!(space.try_read(0x5000)?.range(), 0x1000..0x6000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the payload comes back.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn set(&self, range: Range<usize>, payload: T) -> Result<RemovedVmas<T>, InsertError<T>>
    where
        T: Payload,
    {
        self.put(range, payload, Neighbours::Merge)
    }

    fn put(
        &self,
        range: Range<usize>,
        payload: T,
        neighbours: Neighbours,
    ) -> Result<RemovedVmas<T>, InsertError<T>>
    where
        T: Payload,
    {
        let span = match self.map().span(range.clone()) {
            Ok(span) => span,
            Err(error) => return Err(InsertError { kind: error.into(), range, payload }),
        };
        let request = Request::new(span, Mapped::Anything);
        let put = self.change_selected(
            request,
            |edit| exclude(&mut edit.cursor(), &request, true),
            AsPayload,
            Nowhere,
            payload,
            |edit, change, payload| {
                if change.vmas().first_newcomer(edit, span).is_some() {
                    return Err((NotMade::Again, payload));
                }
                let put = change.finish_replacing(&mut edit.cursor(), payload, neighbours);
                put.map_err(|(error, payload)| (error.into(), payload))
            },
        );
        put.map_err(|(kind, payload)| InsertError { kind, range, payload })
    }

    /// Changes the parts of a range to what `place` makes of them.
    fn change_parts(
        &self,
        request: Request,
        rules: impl SplitMerge<T>,
        placement: impl Placement<T>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        let changed = self.change_selected(
            request,
            |edit| exclude(&mut edit.cursor(), &request, true),
            rules,
            placement,
            (),
            |edit, change, ()| {
                let target = edit.check_target(&request);
                let changed = target.and_then(|()| change.finish(&mut edit.cursor()));
                changed.map_err(|error| (error.into(), ()))
            },
        );
        changed.map_err(|(error, ())| error)
    }

    /// Changes what `select` excludes, waiting outside of edits, as often as it takes. `finish`
    /// ends the change, in an edit; `given` is lent to it, and comes back with an error.
    fn change_selected<'s, R: SplitMerge<T>, G, O>(
        &'s self,
        request: Request,
        mut select: impl for<'m> FnMut(&'m MapWrite<'s, T, P>) -> Selected<'s, 'm, T, P>,
        mut rules: R,
        mut placement: impl Placement<T>,
        mut given: G,
        mut finish: impl for<'r> FnMut(
            &MapWrite<'s, T, P>,
            &mut Change<'s, '_, T, P, &'r mut R>,
            G,
        ) -> Result<O, (NotMade, G)>,
    ) -> Result<O, (ChangeError, G)> {
        let mut patience = Patience::default();
        loop {
            let mut deferred_drops = Vec::new(); // as in `Exclusion::finish`
            let drops = &mut deferred_drops;
            let exclusion = Exclusion::new(self, request, &mut select);
            let changed = match exclusion {
                Ok(exclusion) => exclusion.change_once(
                    &mut rules,
                    &mut placement,
                    &mut patience,
                    drops,
                    given,
                    &mut finish,
                ),
                Err(error) => Err((error.into(), given)),
            };
            drop(deferred_drops);
            match changed {
                Ok(changed) => return Ok(changed),
                Err((NotMade::Error(error), given)) => return Err((error, given)),
                Err((NotMade::Again, back)) => given = back,
            }
        }
    }
}

impl<'s, T, P: Platform> Exclusion<'s, T, P> {
    /// Waits for the readers, runs user code, and begins the edit in which `finish` ends the
    /// change. (The change is large, and stays where it is.)
    #[inline]
    fn change_once<'l, R: SplitMerge<T>, G, O>(
        self,
        rules: R,
        placement: &mut impl Placement<T>,
        patience: &mut Patience,
        deferred_drops: &'l mut Vec<T>,
        given: G,
        finish: impl FnOnce(
            &MapWrite<'s, T, P>,
            &mut Change<'s, 'l, T, P, R>,
            G,
        ) -> Result<O, (NotMade, G)>,
    ) -> Result<O, (NotMade, G)> {
        self.vmas.wait_drained(None);
        // Dropped in the other order: the edit ends first.
        let Self { space, vmas, request, held: _held } = self;
        let mut change = Change::new(vmas, request, rules, deferred_drops);
        let split = change.split(placement);
        // User code may have taken something.
        let ready = split.and_then(|()| Ok(space.check_may_wait()?));
        if let Err(error) = ready {
            return Err((error.into(), given));
        }
        match patience.begin_edit(space.map()) {
            Some(edit) => finish(&edit, &mut change, given),
            None => Err((NotMade::Again, given)),
        }
    }
}

/// How a change that excludes VMAs waits for the mmap lock. For a moment; then it clears X and
/// starts over, so that readers of these VMAs do not wait for readers of others, for which the
/// holder of the lock may be waiting. Readers may change the inside of a payload, so user code has
/// to run again. After a few times it keeps X and queues: edits without a pause would otherwise
/// keep it from ever ending.
struct Patience {
    times: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { times: if cfg!(pervma_model) { 1 } else { 4 } }
    }
}

impl Patience {
    /// Begins the edit that ends the change; `None` if the change is to start over.
    fn begin_edit<'s, T, P: Platform>(&mut self, map: &'s Map<T, P>) -> Option<MapWrite<'s, T, P>> {
        let Some(left) = self.times.checked_sub(1) else { return Some(map.write()) };
        for _ in 0..TRIES {
            if let Some(edit) = map.try_write() {
                return Some(edit);
            }
            core::hint::spin_loop();
        }
        self.times = left;
        None
    }
}

/// About as long as a short edit takes.
const TRIES: u32 = if cfg!(pervma_model) { 1 } else { 100 };

/// Why a change was not made.
enum NotMade {
    Error(ChangeError),
    /// Others have changed the range meanwhile, or it has let readers back: it has to start over.
    Again,
}

impl From<ChangeError> for NotMade {
    fn from(error: ChangeError) -> Self {
        Self::Error(error)
    }
}

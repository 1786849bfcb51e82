//! Keeping readers out of a range, and waiting for those inside, without the mmap lock.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::change::{Change, Mapped, Refusal, Request, exclude};
use crate::edit::RemovedVmas;
use crate::error::{ChangeError, InsertError};
use crate::mm::{Section, WriteLock};
use crate::payload::Payload;
use crate::platform::{Platform, with_default_platform};
use crate::range::Span;
use crate::reserve::Reservation;
use crate::slots::{Excluded, Sleeper};
use crate::space::AddressSpace;
use crate::thread::{Exclusions, HandlerScope, Note};

with_default_platform! {
    /// The VMAs that touched a range when it was made, with no reader coming in any more, from
    /// [`exclude`](AddressSpace::exclude).
    ///
    /// It does not hold the mmap lock: edits and readers elsewhere go on while it waits for the
    /// readers that are still inside. What it does at last ([`remove`](Self::remove),
    /// [`update`](Self::update), [`relocate`](Self::relocate)) is a short edit that waits for
    /// nobody. Dropping it lets the readers in again, with nothing changed.
    ///
    /// It means the VMAs that it found. What others insert into holes of the range later is not
    /// part of it, and stays. An exclusion of many VMAs can be overtaken again and again by
    /// exclusions of a few.
    ///
    /// It belongs to the thread that made it. One that is forgotten ([`core::mem::forget`]) keeps
    /// its VMAs excluded for ever; dropping the space frees them.
    ///
    /// ```
    /// use pervma::AddressSpace;
    /// use std::time::{Duration, Instant};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    ///
    /// let exclusion = space.exclude(0x1000..0x2000)?;
    /// assert!(space.try_read(0x3000).is_err()); // the whole VMA, since it is going to be cut
    /// if exclusion.wait_until(Instant::now() + Duration::from_secs(1)) {
    ///     let removed = exclusion.remove()?;
    ///     assert_eq!(removed[0].range, 0x1000..0x2000);
    /// } // else its readers took too long, and it is dropped
    /// assert_eq!(space.try_read(0x3000)?.range(), 0x2000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "an exclusion is given up when it is dropped"]
    pub struct Exclusion<'s, T, P> {
        space: &'s AddressSpace<T, P>,
        vmas: Excluded<'s, T, P>,
        request: Request,
        /// Dropped last, as it is made first: a handler of this thread is never told to try again.
        _noted: Note<Exclusions, P>,
    }
}

impl<'s, T, P: Platform> Exclusion<'s, T, P> {
    /// Waits for other exclusions, and for no reader.
    pub(crate) fn new(
        space: &'s AddressSpace<T, P>,
        request: Request,
    ) -> Result<Self, ChangeError> {
        space.check_not_own(request.span)?;
        if space.holds_exclusion() {
            return Err(ChangeError::OwnExclusion);
        }
        let noted = Note::new(space.name());
        let vmas = Excluded::new(space.slab().slots(), true);
        let mut exclusion = Self { space, vmas, request, _noted: noted };
        loop {
            let section = space.write();
            let mut tree = space.tree().editor(space.slab(), &section);
            let refused = match exclude(space, &mut tree, &request, &mut exclusion.vmas) {
                Ok(()) => return Ok(exclusion),
                Err(Refusal::Error(error)) => return Err(error),
                Err(Refusal::Excluded(entry)) => entry,
            };
            if let Some(sleeper) = Sleeper::register(space.slab().slots(), refused) {
                sleeper.sleep::<P>(section);
            }
        }
    }

    /// The range that was asked for.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.exclude(0x2000..0x3000)?.range(), 0x2000..0x3000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.request.span.range()
    }

    /// The VMAs, whole, in order of address. Nobody changes them; readers may still be inside.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let exclusion = space.exclude(0x2000..0x3000)?;
    /// assert!(exclusion.iter().eq([(0x1000..0x4000, &"text")]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &T)> {
        self.vmas.iter().map(|vma| (vma.span().range(), vma.payload()))
    }

    /// Waits until the readers have left.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let exclusion = space.exclude(0x2000..0x3000)?;
    /// exclusion.wait();
    /// // nobody reads the VMA now
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn wait(&self) {
        HandlerScope::<P>::assert_may_wait();
        self.vmas.wait(None);
    }

    /// Waits until the readers have left, at most until `deadline`; whether they have.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let exclusion = space.exclude(0x1000..0x4000)?;
    /// let soon = std::time::Instant::now() + std::time::Duration::from_millis(1);
    /// assert!(exclusion.wait_until(soon)); // nobody was inside
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    #[must_use = "readers may still be inside"]
    pub fn wait_until(&self, deadline: P::Deadline) -> bool {
        HandlerScope::<P>::assert_may_wait();
        self.vmas.wait(Some(deadline))
    }

    /// Whether the readers have left.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert!(space.exclude(0x2000..0x3000)?.is_alone());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_alone(&self) -> bool {
        self.vmas.is_alone()
    }

    /// Unmaps every byte of the range that the VMAs cover, as [`Edit::remove`](crate::Edit::remove)
    /// does, once the readers have left. The payloads' methods run before the edit.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let removed = space.exclude(0x2000..0x5000)?.remove()?;
    /// assert_eq!((removed[0].range.clone(), removed[0].payload), (0x2000..0x4000, "text"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the exclusion is over.
    pub fn remove(self) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let request = Request::new(self.request.span, Mapped::Something);
        self.finish(request, |_, _| None)
    }

    /// Changes the payload of every part of the range, as [`Edit::update`](crate::Edit::update)
    /// does, once the readers have left. Dividing payloads and `change` run before the edit, merging
    /// them in it. A VMA outside that has readers is not merged.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, 5)?;
    /// let exclusion = space.exclude(0x1000..0x2000)?;
    /// let allowed = exclusion.iter().all(|(_, &payload)| payload < 10); // nobody changes it now
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
    pub fn update(
        self,
        mut change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let request = Request::new(self.request.span, Mapped::Everything);
        self.finish(request, |part, payload| Some((part, change(part.range(), payload))))
    }

    /// Moves everything in the range, as [`Edit::relocate`](crate::Edit::relocate) does, once the
    /// readers have left. Dividing payloads and `change` run before the edit, merging them in it. A
    /// VMA outside that has readers is not merged.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// space.exclude(0x1000..0x4000)?.relocate(0x8000, |_, payload| payload)?;
    /// assert_eq!(space.try_read(0x8000)?.range(), 0x8000..0xb000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the exclusion is over.
    pub fn relocate(
        self,
        to: usize,
        mut change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let (request, moved) = self.space.relocation(self.range(), to)?;
        self.finish(request, |part, payload| {
            let there = moved(part);
            Some((there, change(there.range(), payload)))
        })
    }

    fn finish(
        self,
        request: Request,
        place: impl FnMut(Span, &T) -> Option<(Span, T)>,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        // Dropped when the exclusion and its edit are over; the result is safe by then, should one
        // of their destructors panic.
        let mut leftover = Vec::new();
        let result = self.finish_into(&mut leftover, request, place);
        drop(leftover);
        result
    }

    fn finish_into(
        mut self,
        leftover: &mut Vec<T>,
        request: Request,
        place: impl FnMut(Span, &T) -> Option<(Span, T)>,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let space = self.space;
        self.wait_to_finish(&request)?;
        // Early, before user code runs; in an edit, since that clears what was left behind.
        if request.target.is_some() {
            space.check_target(&*space.write(), &request)?;
        }
        let mut change = Change::new(space, request, leftover);
        change.cut(&self.vmas, place)?;
        space.check_not_own(request.span)?; // user code may have taken something
        let section = space.write();
        space.check_target(&*section, &request)?;
        #[cfg(pervma_model)]
        if !crate::facade::keep(crate::ledger::Step::OwnList) {
            self.vmas.take_over(space.entries(&*section, request.span));
        }
        let mut tree = space.tree().editor(space.slab(), &section);
        change.join(&mut tree, &mut self.vmas)?;
        change.prepare(&mut tree)?;
        Ok(change.commit(&mut tree, &mut self.vmas).0)
    }

    /// Waits until the VMAs can be changed, if that is possible.
    fn wait_to_finish(&self, request: &Request) -> Result<(), ChangeError> {
        self.space.check_not_own(request.span)?;
        if request.mapped == Mapped::Everything {
            self.check_whole()?;
        }
        self.vmas.wait(None);
        Ok(())
    }

    /// Checks that the VMAs have no holes between them.
    fn check_whole(&self) -> Result<(), ChangeError> {
        let span = self.request.span;
        let mut mapped_to = span.start;
        let mut ends = self.vmas.iter().map(|vma| vma.span());
        let hole = ends.find_map(|at| {
            let hole = (mapped_to < at.start).then_some(mapped_to..at.start);
            mapped_to = at.end;
            hole
        });
        match hole.or((mapped_to < span.end).then_some(mapped_to..span.end)) {
            Some(range) => Err(ChangeError::NotMapped { range }),
            None => Ok(()),
        }
    }

    /// Unmaps every byte of the range that the VMAs cover, as [`remove`](Self::remove) does, and
    /// reserves the whole range: nobody maps anything there before its owner has cleaned up.
    ///
    /// ```
    /// # fn munmap(_: &std::ops::Range<usize>) {}
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    ///
    /// let (removed, reservation) = space.exclude(0x1000..0x4000)?.remove_reserving()?;
    /// munmap(&removed[0].range); // no lock is held, and nobody has the range
    /// drop(reservation);
    /// space.edit()?.insert(0x1000..0x2000, "heap")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; [`Overlap`](ChangeError::Overlap) when others have mapped something in a
    /// hole of the range. Nothing has changed then, and the exclusion is over.
    pub fn remove_reserving(self) -> Result<(RemovedVmas<T>, Reservation<'s, T, P>), ChangeError>
    where
        T: Payload,
    {
        let mut leftover = Vec::new(); // as in `finish`
        let result = self.reserve_into(&mut leftover);
        drop(leftover);
        result
    }

    fn reserve_into(
        mut self,
        leftover: &mut Vec<T>,
    ) -> Result<(RemovedVmas<T>, Reservation<'s, T, P>), ChangeError>
    where
        T: Payload,
    {
        let (space, span) = (self.space, self.request.span);
        match self.prepare_put(leftover) {
            Ok((section, mut change)) => {
                let mut tree = space.tree().editor(space.slab(), &section);
                let (removed, slot) = change.commit(&mut tree, &mut self.vmas);
                Ok((removed, Reservation::new(space, span, slot)))
            }
            Err(Unput::Error(error)) => Err(error),
            Err(Unput::Filled { existing }) => Err(ChangeError::Overlap { existing }),
        }
    }

    /// Prepares to put one VMA, or a reservation, over the whole range: what is left cannot fail.
    fn prepare_put<'l>(&self, leftover: &'l mut Vec<T>) -> Result<Put<'s, 'l, T, P>, Unput>
    where
        T: Payload,
    {
        let (space, request) = (self.space, self.request);
        self.wait_to_finish(&request)?;
        self.check_not_filled(&*space.write())?;
        let mut change = Change::new(space, request, leftover);
        change.cut(&self.vmas, |_, _| None)?;
        space.check_not_own(request.span)?; // user code may have taken something
        let section = space.write();
        self.check_not_filled(&*section)?;
        change.add(&self.vmas)?;
        change.prepare(&mut space.tree().editor(space.slab(), &section))?;
        Ok((section, change))
    }

    /// Checks that nothing has come into a hole of the range.
    fn check_not_filled(&self, section: &impl Section) -> Result<(), Unput> {
        // The VMAs are all still there, so the first that is not the list's is new.
        let own = self.vmas.iter().map(|vma| Some(vma.span())).chain(core::iter::repeat(None));
        let there = self.space.entries(section, self.request.span).map(|entry| entry.span());
        match there.zip(own).find(|&(at, own)| own != Some(at)) {
            Some((at, _)) => Err(Unput::Filled { existing: at.range() }),
            None => Ok(()),
        }
    }
}

/// An edit that can put something over a range.
type Put<'s, 'l, T, P> = (WriteLock<'s, P>, Change<'s, 'l, T, P>);

/// Why nothing can be put over a range.
enum Unput {
    Error(ChangeError),
    /// Others have mapped something in a hole of it meanwhile.
    Filled {
        existing: Range<usize>,
    },
}

impl From<ChangeError> for Unput {
    fn from(error: ChangeError) -> Self {
        Self::Error(error)
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
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
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
        Exclusion::new(self, Request::new(self.span(range)?, Mapped::Something))
    }

    /// Unmaps every byte of `range`, as [`Edit::remove`](crate::Edit::remove) does, waiting only for
    /// readers of the VMAs that it touches, and not with the mmap lock held: readers and edits
    /// elsewhere go on meanwhile.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
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
        self.exclude(range)?.remove()
    }

    /// Changes the payload of every part of `range`, as [`Edit::update`](crate::Edit::update) does,
    /// but waits outside of edits, as [`remove`](Self::remove) does.
    ///
    /// Dividing payloads and `change` run with no lock held, merging them in an edit. A VMA outside
    /// that has readers is not merged.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "r")?;
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
        change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let request = Request::new(self.span(range)?, Mapped::Everything);
        Exclusion::new(self, request)?.update(change)
    }

    /// Moves everything in `from` to `to`, as [`Edit::relocate`](crate::Edit::relocate) does, but
    /// waits outside of edits, as [`remove`](Self::remove) does.
    ///
    /// Dividing payloads and `change` run with no lock held, merging them in an edit. A VMA outside
    /// that has readers is not merged.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "heap")?;
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
        change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let (request, _) = self.relocation(from, to)?;
        Exclusion::new(self, request)?.relocate(to, change)
    }

    /// Maps `range` in the place of whatever is mapped there, as
    /// [`Edit::replace`](crate::Edit::replace) does, but waits outside of edits, as
    /// [`remove`](Self::remove) does.
    ///
    /// When others map something in a hole of the range meanwhile, it starts over: then the
    /// payloads' methods are called again.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "old")?;
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
    pub fn replace(
        &self,
        range: Range<usize>,
        mut payload: T,
    ) -> Result<RemovedVmas<T>, InsertError<T>>
    where
        T: Payload,
    {
        let span = match self.span(range.clone()) {
            Ok(span) => span,
            Err(kind) => return Err(InsertError { kind, range, payload }),
        };
        loop {
            let mut leftover = Vec::new(); // as in `Exclusion::finish`
            let replaced = self.replace_once(span, payload, &mut leftover);
            drop(leftover);
            payload = match replaced {
                Ok(replaced) => return Ok(replaced),
                Err((Unput::Error(kind), payload)) => {
                    return Err(InsertError { kind, range, payload });
                }
                Err((Unput::Filled { .. }, payload)) => payload,
            };
        }
    }

    fn replace_once(
        &self,
        span: Span,
        payload: T,
        leftover: &mut Vec<T>,
    ) -> Result<RemovedVmas<T>, (Unput, T)>
    where
        T: Payload,
    {
        let mut exclusion = match Exclusion::new(self, Request::new(span, Mapped::Anything)) {
            Ok(exclusion) => exclusion,
            Err(error) => return Err((error.into(), payload)),
        };
        match exclusion.prepare_put(leftover) {
            Ok((section, mut change)) => {
                change.fill(payload);
                let mut tree = self.tree().editor(self.slab(), &section);
                Ok(change.commit(&mut tree, &mut exclusion.vmas).0)
            }
            Err(unput) => Err((unput, payload)),
        }
    }
}

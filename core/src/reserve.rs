//! Ranges that are taken before anything is mapped there.

use core::fmt;
use core::ops::Range;

use crate::platform::{Platform, with_default_platform};
use crate::range::Span;
use crate::slots::Reserved;
use crate::space::AddressSpace;
use crate::thread::HandlerScope;

with_default_platform! {
    /// A range that is taken while its mapping is made, from [`Edit::reserve`](crate::Edit::reserve).
    ///
    /// No lock is held meanwhile. [`commit`](Self::commit) turns it into a VMA; dropping it gives
    /// the range back, and never waits for the mmap lock: it happens in the edit that the thread has
    /// open; or at once, if nobody has that lock; or else when the next edit begins. It panics inside a
    /// [`HandlerScope`]. A reservation that is forgotten
    /// ([`core::mem::forget`]) stays until the space is dropped.
    ///
    /// ```
    /// use pervma::{AddressSpace, ChangeError, GapSearch, ReadError};
    ///
    /// # fn mmap(_: &std::ops::Range<usize>) {}
    /// let space = AddressSpace::new(4096);
    ///
    /// let mut edit = space.edit()?;
    /// let gap = edit.find_gap(&GapSearch::new(0x4000).within(0x1_0000..0x10_0000))?;
    /// let reservation = edit.reserve(gap)?;
    /// drop(edit);
    ///
    /// mmap(&reservation.range()); // other threads edit and read meanwhile
    /// assert_eq!(space.try_read(0x1_0000).err(), Some(ReadError::Reserved { addr: 0x1_0000 }));
    /// let refused = space.edit()?.insert(0x1_3000..0x1_5000, "thief").unwrap_err();
    /// assert_eq!(refused.kind, ChangeError::Overlap { existing: 0x1_0000..0x1_4000 });
    ///
    /// reservation.commit("buffer").unwrap();
    /// assert_eq!(*space.try_read(0x1_0000)?, "buffer");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "a reservation is rolled back when it is dropped"]
    pub struct Reservation<'s, T, P> {
        space: &'s AddressSpace<T, P>,
        /// `None` when it was committed.
        slot: Option<Reserved<'s, T>>,
        range: Range<usize>,
    }
}

/// A reservation that could not be committed, because the thread holds a guard of the space: an
/// edit may be waiting for it. Both come back.
pub struct CommitError<'s, T, P: Platform> {
    /// The reservation, still there.
    pub reservation: Reservation<'s, T, P>,
    /// What was to be mapped.
    pub payload: T,
}

impl<'s, T, P: Platform> Reservation<'s, T, P> {
    pub(crate) fn new(
        space: &'s AddressSpace<T, P>,
        span: Span,
        slot: Option<Reserved<'s, T>>,
    ) -> Self {
        Self { space, slot, range: span.range() }
    }

    /// The range that is taken.
    ///
    /// ```
    /// let space = pervma::AddressSpace::<u32>::new(4096);
    /// let reservation = space.edit()?.reserve(0x1000..0x2000)?;
    /// assert_eq!(reservation.range(), 0x1000..0x2000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Maps the range with `payload`: in the edit that the thread has open, if there is one, else
    /// in one of its own. Merges nothing.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// let reservation = edit.reserve(0x1000..0x2000)?;
    /// reservation.commit("heap").unwrap(); // in this edit
    /// assert_eq!(edit.get(0x1000), Some((0x1000..0x2000, &"heap")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the thread holds a guard of this space and no edit: it would wait for the mmap lock. The
    /// reservation and the payload come back.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn commit(mut self, payload: T) -> Result<(), CommitError<'s, T, P>> {
        HandlerScope::<P>::assert_may_wait();
        if self.space.holds_guard() && !self.space.mm().edited_by_me() {
            return Err(CommitError { reservation: self, payload });
        }
        if let Some(slot) = self.slot.take() {
            let slots = self.space.slab().slots();
            self.space.within_edit(|section| {
                slot.alone(slots, section).fill(section, slot.span(), payload);
            });
        }
        Ok(())
    }
}

impl<T, P: Platform> Drop for Reservation<'_, T, P> {
    fn drop(&mut self) {
        let (space, Some(slot)) = (self.space, self.slot.take()) else { return };
        HandlerScope::<P>::assert_may_wait();
        let given_back = space.within_edit_at_once(|section| space.give_back(section, &slot));
        if given_back.is_none() {
            slot.leave_behind(space.mm().left_behind());
        }
    }
}

impl<T, P: Platform> fmt::Debug for Reservation<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("range", &self.range).finish_non_exhaustive()
    }
}

impl<T, P: Platform> fmt::Debug for CommitError<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitError")
            .field("reservation", &self.reservation)
            .finish_non_exhaustive()
    }
}

impl<T, P: Platform> fmt::Display for CommitError<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.reservation.range;
        write!(f, "mapping {start:#x}..{end:#x} could wait for a guard that this thread holds")
    }
}

impl<T, P: Platform> core::error::Error for CommitError<'_, T, P> {}

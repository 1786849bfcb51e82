//! Reserved ranges, in which nothing is mapped yet.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::Range;

use crate::edit::Edit;
use crate::error::{ChangeError, InsertError};
use crate::host::DefaultPlatform;
use crate::platform::Platform;
use crate::range::Span;
use crate::reserved::ReservedRange;
use crate::space::AddressSpace;

/// A reserved range, from [`Edit::reserve`](crate::Edit::reserve): taken, with nothing mapped yet.
///
/// No lock is held meanwhile. [`commit`](Self::commit) turns it into a VMA; dropping it gives the
/// range back, and never waits for the mmap lock: that happens in the edit that the thread has
/// open; or at once, if no thread holds the lock; or else when the next edit begins, as always when
/// it is dropped inside a [`HandlerScope`](crate::HandlerScope), or by a global allocator that a
/// slab calls. A signal handler needs that scope to drop one: without it, the handler could change
/// an edit that it has interrupted. A reservation that is forgotten ([`core::mem::forget`]) stays
/// until the space is dropped.
///
/// ```
/// use pervma::{AddressSpace, ChangeError, GapSearch, ReadError};
///
/// # fn mmap(_: &std::ops::Range<usize>) {}
/// let space = AddressSpace::new(4096);
///
/// let mut edit = space.edit()?;
/// let gap = edit.find_gap(&GapSearch::new(0x4000).within(0x1_0000..0x10_0000))?;
/// let mut reservation = edit.reserve(gap)?;
/// drop(edit);
///
/// mmap(&reservation.range()); // other threads edit and read meanwhile
/// assert_eq!(space.try_read(0x1_0000).err(), Some(ReadError::Reserved { addr: 0x1_0000 }));
/// let refused = space.edit()?.insert(0x1_3000..0x1_5000, "thief").unwrap_err();
/// assert_eq!(refused.kind, ChangeError::Overlap { existing: 0x1_0000..0x1_4000 });
///
/// reservation.commit("buffer")?;
/// assert_eq!(*space.try_read(0x1_0000)?, "buffer");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a reservation is given back when it is dropped"]
pub struct Reservation<'s, T, P: Platform = DefaultPlatform> {
    reserved: ReservedRange<'s, T, P>,
    span: Span,
}

impl<'s, T, P: Platform> Reservation<'s, T, P> {
    pub(crate) fn new(reserved: ReservedRange<'s, T, P>, span: Span) -> Self {
        Self { reserved, span }
    }

    /// The range that is taken.
    ///
    /// ```
    /// let space = pervma::AddressSpace::<u32>::new(4096);
    /// let reservation = space.reserve(0x1000..0x2000)?;
    /// assert_eq!(reservation.range(), 0x1000..0x2000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.span.range()
    }

    /// Maps the range with `payload`: in the edit that the thread has open, if there is one, else
    /// in one of its own. Merges nothing.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// let mut reservation = edit.reserve(0x1000..0x2000)?;
    /// reservation.commit("heap")?; // in this edit
    /// assert_eq!(edit.get(0x1000), Some((0x1000..0x2000, &"heap")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`GuardHeld`](ChangeError::GuardHeld) when the thread holds a guard of this space and no
    /// edit: it would wait for the mmap lock. [`Overlap`](ChangeError::Overlap) when the
    /// reservation was committed before. The payload comes back, and the reservation is what it
    /// was.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    pub fn commit(&mut self, payload: T) -> Result<(), InsertError<T>> {
        let (range, state) = (self.range(), self.reserved.map().state());
        if self.reserved.map().is_abandoned() {
            return Err(InsertError { kind: ChangeError::Forked, range, payload });
        }
        if state.holds_guard() && !state.edited_by_me() {
            return Err(InsertError { kind: ChangeError::GuardHeld, range, payload });
        }
        match self.reserved.commit(payload) {
            Ok(_) => Ok(()),
            Err(payload) => {
                let kind = ChangeError::Overlap { existing: range.clone() };
                Err(InsertError { kind, range, payload })
            }
        }
    }
}

impl<T, P: Platform> fmt::Debug for Reservation<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("range", &self.range()).finish_non_exhaustive()
    }
}

impl<'s, T, P: Platform> Edit<'s, T, P> {
    /// Reserves `range`, for example until a system call has returned: it is no gap any more,
    /// nothing can be inserted there, and lookups return [`Reserved`](crate::ReadError::Reserved).
    /// The reservation outlives the edit.
    ///
    /// See [`Reservation`] for a longer example.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut reservation = space.edit()?.reserve(0x1000..0x2000)?;
    /// reservation.commit("buffer")?;
    /// assert_eq!(*space.try_read(0x1000)?, "buffer");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`insert`](Self::insert).
    pub fn reserve(&mut self, range: Range<usize>) -> Result<Reservation<'s, T, P>, ChangeError> {
        let map = self.map_write().map();
        let span = map.span(range)?;
        let slot = self.map_write().reserve(span)?;
        let reserved = ReservedRange::new(map, Some(slot));
        Ok(Reservation::new(reserved, span))
    }
}

impl<T, P: Platform> AddressSpace<T, P> {
    /// Reserves `range`: an [`edit`](Self::edit) with one [reservation](Edit::reserve).
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut reservation = space.reserve(0x1000..0x2000)?;
    /// reservation.commit("buffer")?;
    /// assert_eq!(*space.try_read(0x1000)?, "buffer");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`edit`](Self::edit) and [`Edit::reserve`].
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    pub fn reserve(&self, range: Range<usize>) -> Result<Reservation<'_, T, P>, ChangeError> {
        self.edit()?.reserve(range)
    }
}

//! Looking up addresses that lie close together.
#![forbid(unsafe_code)]

use core::fmt;

use crate::error::ReadError;
use crate::guard::ReadGuard;
use crate::host::DefaultPlatform;
use crate::lookups::Lookups;
use crate::platform::Platform;
use crate::slots::Slot;
use crate::space::AddressSpace;

/// Remembers the VMA that was read last and tries it first, for addresses that often fall into the
/// same one. From [`AddressSpace::cursor`] and
/// [`Reader::cursor`](crate::Reader::cursor).
///
/// What it remembers is checked like the end of any walk, so changes need not invalidate it. A
/// cursor is as legal in a signal handler as [`try_read`](AddressSpace::try_read). It belongs to
/// the thread that made it.
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// space.insert(0x1000..0x9000, "heap")?;
///
/// let mut cursor = space.cursor();
/// for page in (0x1000..0x9000).step_by(0x1000) {
///     assert_eq!(*cursor.try_read(page)?, "heap"); // one walk of the tree, for the first
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Cursor<'s, T, P: Platform = DefaultPlatform, const REGISTERED: bool = false> {
    lookups: Lookups<'s, T, P>,
    hint: Option<&'s Slot<T>>,
}

/// A [`Cursor`] of a registered reader.
pub type ReaderCursor<'r, T, P = DefaultPlatform> = Cursor<'r, T, P, true>;

impl<'s, T, P: Platform, const REGISTERED: bool> Cursor<'s, T, P, REGISTERED> {
    pub(crate) fn new(lookups: Lookups<'s, T, P>) -> Self {
        Self { lookups, hint: None }
    }

    /// Known without a look whether read locks are published.
    #[inline(always)]
    fn lookups(&self) -> Lookups<'s, T, P> {
        if REGISTERED { self.lookups } else { self.lookups.counted() }
    }

    /// Finds and read-locks the VMA that holds `addr`, without waiting.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let mut cursor = space.cursor();
    /// assert_eq!(*cursor.try_read(0x1000)?, "text");
    /// assert!(cursor.try_read(0x4000).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::try_read`].
    // As for a lookup: unoptimised, a frame of its own.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn try_read(&mut self, addr: usize) -> Result<ReadGuard<'s, T, P>, ReadError> {
        Ok(match self.read_hint(addr) {
            Some(guard) => guard,
            None => self.look_up(move |lookups| lookups.try_read(addr))?,
        })
    }

    /// Finds and read-locks the VMA that holds `addr`; waits for the edit or exclusion that has it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x9000, "heap")?;
    /// assert_eq!(*space.cursor().read(0x2000)?, "heap");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::read`].
    ///
    /// # Panics
    ///
    /// When it would have to wait inside a [`HandlerScope`](crate::HandlerScope).
    #[inline]
    pub fn read(&mut self, addr: usize) -> Result<ReadGuard<'s, T, P>, ReadError> {
        Ok(match self.read_hint(addr) {
            Some(guard) => guard,
            None => self.look_up(move |lookups| lookups.read(addr))?,
        })
    }

    #[inline(always)]
    fn read_hint(&self, addr: usize) -> Option<ReadGuard<'s, T, P>> {
        self.lookups().read_in(self.hint?, addr)
    }

    /// Looks up as if nothing were known, out of the way of the lookups that know.
    #[cold]
    #[inline(never)]
    fn look_up(
        &mut self,
        look: impl FnOnce(Lookups<'s, T, P>) -> Result<ReadGuard<'s, T, P>, ReadError>,
    ) -> Result<ReadGuard<'s, T, P>, ReadError> {
        let found = look(self.lookups());
        self.hint = found.as_ref().ok().map(ReadGuard::slot);
        found
    }
}

impl<T, P: Platform, const REGISTERED: bool> fmt::Debug for Cursor<'_, T, P, REGISTERED> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("registered", &REGISTERED).finish_non_exhaustive()
    }
}

impl<T, P: Platform> AddressSpace<T, P> {
    /// A way to look up addresses that often fall into the same VMA. See [`Cursor`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(*space.cursor().try_read(0x1000)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cursor(&self) -> Cursor<'_, T, P> {
        Cursor::new(self.lookups())
    }
}

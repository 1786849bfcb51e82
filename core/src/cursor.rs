//! Looking up addresses that lie close together.

use core::fmt;

use crate::error::ReadError;
use crate::guard::ReadGuard;
use crate::platform::{Platform, with_default_platform};
use crate::slots::Slot;
use crate::space::AddressSpace;

with_default_platform! {
    /// Remembers the VMA that was read last and tries it first: for addresses that often fall into
    /// the same one. From [`cursor`](AddressSpace::cursor).
    ///
    /// What it remembers is checked like the end of any walk, so it need not be told of changes. A
    /// cursor is as legal in a signal handler as [`try_read`](AddressSpace::try_read).
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x9000, "heap")?;
    ///
    /// let mut cursor = space.cursor();
    /// assert_eq!(cursor.try_read(0x1000)?.walks(), 1);
    /// assert_eq!(cursor.try_read(0x8fff)?.walks(), 0); // no walk
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub struct Cursor<'s, T, P> {
        space: &'s AddressSpace<T, P>,
        hint: Option<&'s Slot<T>>,
    }
}

impl<'s, T, P: Platform> Cursor<'s, T, P> {
    pub(crate) fn new(space: &'s AddressSpace<T, P>) -> Self {
        Self { space, hint: None }
    }

    /// Finds and read-locks the VMA that holds `addr`, without waiting.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let mut cursor = space.cursor();
    /// assert_eq!(*cursor.try_read(0x1000)?, "text");
    /// assert!(cursor.try_read(0x4000).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::try_read`].
    #[inline]
    pub fn try_read(&mut self, addr: usize) -> Result<ReadGuard<'s, T, P>, ReadError> {
        Ok(match self.hint.and_then(|slot| self.space.read_in(slot, addr, None)) {
            Some(guard) => guard,
            None => self.look_up(move |space| space.try_read(addr))?,
        })
    }

    /// Finds and read-locks the VMA that holds `addr`; waits for the edit or exclusion that has it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x9000, "heap")?;
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
        Ok(match self.hint.and_then(|slot| self.space.read_in(slot, addr, None)) {
            Some(guard) => guard,
            None => self.look_up(move |space| space.read(addr))?,
        })
    }

    /// Looks up as if nothing were known, out of the way of the lookups that know.
    #[cold]
    #[inline(never)]
    fn look_up(
        &mut self,
        look: impl FnOnce(&'s AddressSpace<T, P>) -> Result<ReadGuard<'s, T, P>, ReadError>,
    ) -> Result<ReadGuard<'s, T, P>, ReadError> {
        let found = look(self.space);
        self.hint = found.as_ref().ok().map(ReadGuard::slot);
        found
    }
}

impl<T, P: Platform> fmt::Debug for Cursor<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("space", self.space).finish_non_exhaustive()
    }
}

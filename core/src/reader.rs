//! Readers that do not count themselves.

use core::fmt;
use core::marker::PhantomData;

use crate::error::ReadError;
use crate::guard::ReadGuard;
use crate::hazard::Record;
use crate::platform::{Platform, with_default_platform};
use crate::slots::Slot;
use crate::space::AddressSpace;

with_default_platform! {
    /// A registered reader of a space, from [`register`](AddressSpace::register): for threads that
    /// read the same VMA at the same time.
    ///
    /// A lookup without it raises a count in the VMA, so threads that read one VMA take turns at the
    /// cache line of that count. A registered reader writes to a place of its own instead, and leaves
    /// the VMA's line to all. What it costs is paid by whoever changes or write-locks a VMA of the slab:
    /// as long as a reader is registered, that makes all running threads of the process pass a
    /// barrier (`membarrier(2)`; see [`Platform::barrier`]). It looks through as many places as were ever
    /// in use at once, and on a shared slab takes a lock for it. So: for VMAs that many threads read and
    /// few edits change.
    ///
    /// A thread can hold four guards of one reader at a time in this way; with more, in
    /// [`read`](Self::read) if it has to wait, and in whatever is not offered here, it counts as others
    /// do. In a signal handler it is as legal as [`AddressSpace::try_read`]; a guard that is taken there
    /// must be dropped there.
    ///
    /// It belongs to the thread that made it, and so do its guards. One that is forgotten
    /// ([`core::mem::forget`]), or of which a guard was, stays registered for as long as the slab.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "guest memory")?;
    /// std::thread::scope(|scope| {
    ///     for vcpu in 0..2 {
    ///         let space = &space;
    ///         scope.spawn(move || {
    ///             let reader = space.register().expect("no edit, no guard, and memory");
    ///             for page in [0x1000, 0x2000, 0x3000] {
    ///                 assert_eq!(*reader.try_read(page + vcpu).expect("mapped"), "guest memory");
    ///             }
    ///         });
    ///     }
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("hazard pointer", "BRAVO", "brlock"))]
    pub struct Reader<'s, T, P> {
        space: &'s AddressSpace<T, P>,
        record: &'s Record,
        thread: PhantomData<*const ()>,
    }
}

impl<'s, T, P: Platform> Reader<'s, T, P> {
    pub(crate) fn new(space: &'s AddressSpace<T, P>, record: &'s Record) -> Self {
        Self { space, record, thread: PhantomData }
    }

    /// Finds and read-locks the VMA that holds `addr`, without waiting.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let reader = space.register()?;
    /// assert_eq!(*reader.try_read(0x1000)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::try_read`].
    #[inline]
    pub fn try_read(&self, addr: usize) -> Result<ReadGuard<'_, T, P>, ReadError> {
        self.space.try_read_by(Some(self.record), addr)
    }

    /// Finds and read-locks the VMA that holds `addr`; waits for the edit or exclusion that has it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.register()?.read(0x1000)?.range(), 0x1000..0x4000);
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
    pub fn read(&self, addr: usize) -> Result<ReadGuard<'_, T, P>, ReadError> {
        self.space.read_by(Some(self.record), addr)
    }

    /// A way to look up addresses that often fall into the same VMA. See [`ReaderCursor`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let reader = space.register()?;
    /// let mut cursor = reader.cursor();
    /// assert_eq!(cursor.try_read(0x1000)?.walks(), 1);
    /// assert_eq!(cursor.try_read(0x2000)?.walks(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cursor(&self) -> ReaderCursor<'_, T, P> {
        ReaderCursor { reader: self, hint: None }
    }
}

impl<T, P: Platform> Drop for Reader<'_, T, P> {
    fn drop(&mut self) {
        self.record.give_up();
    }
}

impl<T, P: Platform> fmt::Debug for Reader<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("space", self.space).finish_non_exhaustive()
    }
}

with_default_platform! {
    /// A [`Cursor`](crate::Cursor) of a registered reader, from [`Reader::cursor`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x9000, "heap")?;
    ///
    /// let reader = space.register()?;
    /// let mut cursor = reader.cursor();
    /// for page in (0x1000..0x9000).step_by(0x1000) {
    ///     assert_eq!(*cursor.try_read(page)?, "heap"); // one walk, for the first
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Like its reader it stays on its thread.
    pub struct ReaderCursor<'r, T, P> {
        reader: &'r Reader<'r, T, P>,
        hint: Option<&'r Slot<T>>,
    }
}

impl<'r, T, P: Platform> ReaderCursor<'r, T, P> {
    /// Finds and read-locks the VMA that holds `addr`, without waiting.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let reader = space.register()?;
    /// assert_eq!(*reader.cursor().try_read(0x1000)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::try_read`].
    #[inline]
    pub fn try_read(&mut self, addr: usize) -> Result<ReadGuard<'r, T, P>, ReadError> {
        Ok(match self.read_hint(addr) {
            Some(guard) => guard,
            None => self.look_up(move |reader| reader.try_read(addr))?,
        })
    }

    /// Finds and read-locks the VMA that holds `addr`; waits for the edit or exclusion that has it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// let reader = space.register()?;
    /// assert_eq!(*reader.cursor().read(0x1000)?, "text");
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
    pub fn read(&mut self, addr: usize) -> Result<ReadGuard<'r, T, P>, ReadError> {
        Ok(match self.read_hint(addr) {
            Some(guard) => guard,
            None => self.look_up(move |reader| reader.read(addr))?,
        })
    }

    #[inline(always)]
    fn read_hint(&self, addr: usize) -> Option<ReadGuard<'r, T, P>> {
        self.reader.space.read_in(self.hint?, addr, Some(self.reader.record))
    }

    /// As [`Cursor`](crate::Cursor) does.
    #[cold]
    #[inline(never)]
    fn look_up(
        &mut self,
        look: impl FnOnce(&'r Reader<'r, T, P>) -> Result<ReadGuard<'r, T, P>, ReadError>,
    ) -> Result<ReadGuard<'r, T, P>, ReadError> {
        let found = look(self.reader);
        self.hint = found.as_ref().ok().map(ReadGuard::slot);
        found
    }
}

impl<T, P: Platform> fmt::Debug for ReaderCursor<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderCursor").field("reader", self.reader).finish_non_exhaustive()
    }
}

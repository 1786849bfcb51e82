//! Registered readers, which publish what they read instead of counting themselves.
#![forbid(unsafe_code)]

use core::fmt;
use core::marker::PhantomData;

use crate::cursor::{Cursor, ReaderCursor};
use crate::error::{ReadError, RegisterError};
use crate::guard::ReadGuard;
use crate::hazard::{Fencing, Record};
use crate::held::HandlerScope;
use crate::host::DefaultPlatform;
use crate::iter::{Iter, ReadAll};
use crate::lookups::{Lookups, VmaOrHole};
use crate::map::Map;
use crate::platform::Platform;
use crate::space::AddressSpace;
use crate::vma_id::VmaId;

/// A registered reader of a space, from [`register`](AddressSpace::register): for threads that read
/// the same VMA at the same time.
///
/// A lookup without it increments a count in the VMA, so threads that read one VMA take turns at
/// the cache line of that count. A registered reader writes to a place of its own instead, and
/// does not write the VMA's line. Changes and write locks of the slab's VMAs pay for it: while one
/// is in use, each makes all running threads of the process pass a barrier
/// (`membarrier(2)`; see [`Platform::barrier`]), scans as many records as were ever in use at once,
/// and on a shared slab takes a lock for it. Use it for VMAs that many threads read and few edits
/// change.
///
/// A reader is *idle* after some 16 changes that have found nothing that it reads. While all are
/// idle, changes cost what they cost without registered readers; the next lookup of an idle one
/// counts. Where the platform has no barrier ([`Platform::prepare_barrier`]) readers fence, and
/// none is taken for idle.
///
/// A thread can hold four guards of one reader at a time in this way; with more, or where a lookup
/// has to wait, it counts as others do. In a signal handler it is as legal as
/// [`AddressSpace::try_read`]; a guard that is taken there must be dropped there.
///
/// It belongs to the thread that made it, and so do its guards. One that is forgotten
/// ([`core::mem::forget`]), or of which a guard was, stays registered for as long as the slab.
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// space.insert(0x1000..0x4000, "guest memory")?;
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
pub struct Reader<'s, T, P: Platform = DefaultPlatform> {
    map: &'s Map<T, P>,
    record: &'s Record,
    _thread: PhantomData<*const ()>,
}

impl<T, P: Platform> Reader<'_, T, P> {
    #[inline(always)]
    fn lookups(&self) -> Lookups<'_, T, P> {
        Lookups::new(self.map, Some(self.record))
    }

    /// Finds and read-locks the VMA that holds `addr`, without waiting.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
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
        self.lookups().try_read(addr)
    }

    /// Finds and read-locks the VMA that holds `addr`; waits for the edit or exclusion that has it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
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
    /// As [`AddressSpace::read`].
    #[inline]
    pub fn read(&self, addr: usize) -> Result<ReadGuard<'_, T, P>, ReadError> {
        self.lookups().read(addr)
    }

    /// Finds and read-locks the first VMA that ends above `addr`, without waiting.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x5000..0x6000, "b")?;
    /// let reader = space.register()?;
    /// let next = reader.try_read_at_or_after(0x1000)?.map(|vma| vma.range());
    /// assert_eq!(next, Some(0x5000..0x6000));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::try_read_at_or_after`].
    pub fn try_read_at_or_after(
        &self,
        addr: usize,
    ) -> Result<Option<ReadGuard<'_, T, P>>, ReadError> {
        self.lookups().try_read_at_or_after(addr)
    }

    /// Finds and read-locks the first VMA that ends above `addr`; waits for the edit or exclusion
    /// that has it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x5000..0x6000, "b")?;
    /// let reader = space.register()?;
    /// assert!(reader.read_at_or_after(0x6000)?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::read_at_or_after`].
    ///
    /// # Panics
    ///
    /// As [`AddressSpace::read`].
    pub fn read_at_or_after(&self, addr: usize) -> Result<Option<ReadGuard<'_, T, P>>, ReadError> {
        self.lookups().read_at_or_after(addr)
    }

    /// Finds and read-locks the VMA that holds `addr`, without waiting; where nothing is mapped,
    /// says where the next VMA starts.
    ///
    /// ```
    /// use pervma::{AddressSpace, VmaOrHole};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x5000..0x6000, "text")?;
    /// let reader = space.register()?;
    /// assert!(matches!(reader.try_read_or_hole(0x1234)?, VmaOrHole::Hole { end: 0x5000 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::try_read_or_hole`].
    pub fn try_read_or_hole(&self, addr: usize) -> Result<VmaOrHole<'_, T, P>, ReadError> {
        self.lookups().try_read_or_hole(addr)
    }

    /// Finds and read-locks the VMA that holds `addr`; where nothing is mapped, says where the next
    /// VMA starts. Waits for the edit or exclusion that has either.
    ///
    /// ```
    /// use pervma::{AddressSpace, VmaOrHole};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x5000..0x6000, "text")?;
    /// let reader = space.register()?;
    /// assert!(matches!(reader.read_or_hole(0x5678)?, VmaOrHole::Vma(vma) if *vma == "text"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::read_or_hole`].
    ///
    /// # Panics
    ///
    /// As [`AddressSpace::read`].
    pub fn read_or_hole(&self, addr: usize) -> Result<VmaOrHole<'_, T, P>, ReadError> {
        self.lookups().read_or_hole(addr)
    }

    /// Finds and read-locks the VMA that `id` names, without waiting.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let reader = space.register()?;
    /// let id = reader.try_read(0x1000)?.id();
    /// assert_eq!(*reader.try_read_id(id)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::try_read_id`].
    pub fn try_read_id(&self, id: VmaId) -> Result<ReadGuard<'_, T, P>, ReadError> {
        self.lookups().try_read_id(id)
    }

    /// Finds and read-locks the VMA that `id` names; waits for the edit or exclusion that has it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let reader = space.register()?;
    /// let id = reader.try_read(0x1000)?.id();
    /// assert_eq!(*reader.read_id(id)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::read_id`].
    ///
    /// # Panics
    ///
    /// As [`AddressSpace::read`].
    pub fn read_id(&self, id: VmaId) -> Result<ReadGuard<'_, T, P>, ReadError> {
        self.lookups().read_id(id)
    }

    /// All VMAs in order of address or backwards, each read-locked while it is looked at; see
    /// [`ReadAll`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "a")?;
    /// let reader = space.register()?;
    /// let mut vmas = reader.read_all();
    /// while let Some(vma) = vmas.next()? {
    ///     assert_eq!(*vma, "a");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_all(&self) -> ReadAll<'_, T, P> {
        ReadAll::new(self.lookups())
    }

    /// Copies of all VMAs, in order of address or backwards; see [`Iter`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "a")?;
    /// let reader = space.register()?;
    /// assert!(reader.iter().eq([Ok((0x1000..0x3000, "a"))]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, T, P>
    where
        T: Clone,
    {
        Iter::new(self.lookups())
    }

    /// A way to look up addresses that often fall into the same VMA. See [`Cursor`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let reader = space.register()?;
    /// let mut cursor = reader.cursor();
    /// assert_eq!(*cursor.try_read(0x1000)?, "text");
    /// assert_eq!(*cursor.try_read(0x2000)?, "text"); // without a walk of the tree
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cursor(&self) -> ReaderCursor<'_, T, P> {
        Cursor::new(self.lookups())
    }
}

impl<T, P: Platform> Drop for Reader<'_, T, P> {
    fn drop(&mut self) {
        self.record.give_up();
    }
}

impl<T, P: Platform> fmt::Debug for Reader<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl<T, P: Platform> AddressSpace<T, P> {
    /// Registers the running thread as a reader that does not count itself in the VMAs that it
    /// reads. See [`Reader`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let reader = space.register()?;
    /// assert_eq!(*reader.try_read(0x1000)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// It waits for the mmap lock, so not while the thread edits this space or holds a guard of it;
    /// and it may need memory. See [`RegisterError`].
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn register(&self) -> Result<Reader<'_, T, P>, RegisterError> {
        self.check_may_wait()?;
        HandlerScope::<P>::assert_may_wait();
        let (map, fencing) = (self.map(), Fencing::choose::<P>());
        let record = map.slab().slots().readers().register(map.write().section(), fencing)?;
        Ok(Reader { map, record, _thread: PhantomData })
    }
}

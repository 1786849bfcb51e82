//! What a reader holds.

use alloc::sync::Arc;
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::{Deref, Range};

use crate::facade::ConstPtr;
use crate::platform::{Platform, with_default_platform};
use crate::slots::{Admitted, Slot};
use crate::space::AddressSpace;
use crate::thread::{Guards, Note};

with_default_platform! {
    /// A read-locked VMA. Until it is dropped, its range and payload do not change and are not
    /// dropped.
    ///
    /// Dropping it takes no lock and runs no destructor of yours. It belongs to the thread that
    /// made it. A guard that is forgotten ([`core::mem::forget`]) keeps its VMA read-locked:
    /// removing that VMA, or dropping the space, waits for ever.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "stack")?;
    ///
    /// let vma = space.try_read(0x1fff)?;
    /// assert_eq!(*vma, "stack");
    /// assert_eq!(vma.range(), 0x1000..0x3000);
    /// assert_eq!(vma.walks(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "the VMA is unlocked at once when its guard is dropped"]
    #[doc(alias("vm_area_struct", "vma_end_read", "vma_refcount_put"))]
    pub struct ReadGuard<'s, T, P> {
        // Closed before the put: fields are dropped in this order.
        payload: ConstPtr<MaybeUninit<T>>,
        _noted: Note<Guards, P>,
        admitted: Admitted<'s, T, P>,
        walks: u32,
    }
}

impl<'s, T, P: Platform> ReadGuard<'s, T, P> {
    // As for a lookup: unoptimised, a frame of its own.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn new(
        space: &'s AddressSpace<T, P>,
        admitted: Admitted<'s, T, P>,
        walks: u32,
    ) -> Self {
        let noted = Note::new(space.name());
        Self { payload: admitted.payload(), _noted: noted, admitted, walks }
    }

    /// The range of the VMA.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.try_read(0x2000)?.range(), 0x1000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("vm_start", "vm_end"))]
    pub fn range(&self) -> Range<usize> {
        self.admitted.span().range()
    }

    /// How many walks the lookup took: 1 when nothing was in the way, 0 when a
    /// [`Cursor`](crate::Cursor) knew the VMA. A lookup that had to wait for an edit counts one more
    /// than the most that [`try_read`](AddressSpace::try_read) makes.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.try_read(0x2000)?.walks(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn walks(&self) -> u32 {
        self.walks
    }

    /// Where the VMA lives.
    #[inline(always)]
    pub(crate) fn slot(&self) -> &'s Slot<T> {
        self.admitted.slot()
    }
}

impl<T, P: Platform> Deref for ReadGuard<'_, T, P> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: `payload` was opened by this read lock.
        unsafe { self.admitted.deref(&self.payload) }
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for ReadGuard<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadGuard")
            .field("range", &self.range())
            .field("payload", &**self)
            .finish_non_exhaustive()
    }
}

with_default_platform! {
    /// A read-locked VMA that keeps its space alive and can be sent to other threads, from
    /// [`read_owned`](AddressSpace::read_owned).
    ///
    /// No thread's record has it, so a thread that waits for its own owned guard is not told. When
    /// the last handle to a space is a guard's, dropping the guard drops the space, with every
    /// payload in it; keep another handle where that must not happen.
    ///
    /// ```
    /// use pervma::AddressSpace;
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(AddressSpace::new(4096));
    /// space.edit()?.insert(0x1000..0x3000, "text")?;
    /// let vma = space.read_owned(0x1000)?;
    /// let read = std::thread::spawn(move || *vma).join().unwrap();
    /// assert_eq!(read, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "the VMA is unlocked at once when its guard is dropped"]
    pub struct OwnedReadGuard<T: 'static, P> {
        // Closed before the put, which comes before the space goes: fields are dropped in this
        // order.
        payload: ConstPtr<MaybeUninit<T>>,
        admitted: Admitted<'static, T, P>,
        _space: Arc<AddressSpace<T, P>>,
    }
}

impl<T: 'static, P: Platform> OwnedReadGuard<T, P> {
    pub(crate) fn new(space: Arc<AddressSpace<T, P>>, admitted: Admitted<'_, T, P>) -> Self {
        // SAFETY: `space` keeps the slab alive, and is dropped after it.
        let admitted = unsafe { admitted.outliving() };
        Self { payload: admitted.payload(), admitted, _space: space }
    }
}

impl<T: 'static, P: Platform> OwnedReadGuard<T, P> {
    /// The range of the VMA.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(pervma::AddressSpace::new(4096));
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.read_owned(0x2000)?.range(), 0x1000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.admitted.span().range()
    }
}

impl<T: 'static, P: Platform> Deref for OwnedReadGuard<T, P> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: `payload` was opened by this read lock.
        unsafe { self.admitted.deref(&self.payload) }
    }
}

// SAFETY: the read lock is a count that any thread may put; the payload is only read (`Sync`), and
// with the space, payloads may be dropped (`Send`).
unsafe impl<T: Send + Sync + 'static, P: Platform> Send for OwnedReadGuard<T, P> {}
// SAFETY: as for `Send`.
unsafe impl<T: Send + Sync + 'static, P: Platform> Sync for OwnedReadGuard<T, P> {}

impl<T: fmt::Debug + 'static, P: Platform> fmt::Debug for OwnedReadGuard<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedReadGuard")
            .field("range", &self.range())
            .field("payload", &**self)
            .finish_non_exhaustive()
    }
}

//! What a reader holds.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::{Deref, Range};

use crate::error::ReadError;
use crate::held::{Guards, Held};
use crate::host::DefaultPlatform;
use crate::pinned::Pinned;
use crate::platform::Platform;
use crate::slots::{ReadLocked, Slot};
use crate::vma_id::{VmaId, VmaVersion};

/// A read-locked VMA. Until it is dropped, its range and payload do not change and are not dropped.
///
/// Dropping it takes no lock and runs no destructor of yours. It belongs to the thread that made
/// it. A guard that is forgotten ([`core::mem::forget`]) keeps its VMA read-locked: removing that
/// VMA, or dropping the space, waits forever.
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// space.insert(0x1000..0x3000, "stack")?;
///
/// let vma = space.try_read(0x1fff)?;
/// assert_eq!(*vma, "stack");
/// assert_eq!(vma.range(), 0x1000..0x3000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the VMA is unlocked at once when its guard is dropped"]
#[doc(alias("vm_area_struct", "vma_end_read", "vma_refcount_put"))]
pub struct ReadGuard<'s, T, P: Platform = DefaultPlatform> {
    _held: Held<Guards, P>,
    pinned: Pinned<'s, T, P>,
}

impl<'s, T, P: Platform> ReadGuard<'s, T, P> {
    // As for a lookup: unoptimised, a frame of its own.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn new(read_lock: ReadLocked<'s, T, P>) -> Self {
        let pinned = Pinned::new(read_lock);
        Self { _held: Held::record(pinned.space()), pinned }
    }

    /// One more guard of the same VMA, also while another thread waits to change it: looking it up
    /// again would wait for that thread, which waits for this guard. Takes no lock and does not
    /// allocate; the new guard is counted, that of a registered reader too.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let vma = space.try_read(0x2000)?;
    /// let guard = vma.try_clone()?;
    /// assert_eq!(*guard, *vma);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ReadError::Busy`]: the VMA has as many readers as its count can hold.
    pub fn try_clone(&self) -> Result<Self, ReadError> {
        let busy = |_| ReadError::Busy { addr: self.pinned.span().start };
        let pinned = self.pinned.again().map_err(busy)?;
        Ok(Self { _held: Held::record(pinned.space()), pinned })
    }

    /// The range of the VMA.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.try_read(0x2000)?.range(), 0x1000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("vm_start", "vm_end"))]
    pub fn range(&self) -> Range<usize> {
        self.pinned.span().range()
    }

    /// The identity of the VMA, to find it again after the guard is dropped; see [`VmaId`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let id = space.try_read(0x2000)?.id();
    /// assert_eq!(*space.try_read_id(id)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn id(&self) -> VmaId {
        self.pinned.version().id()
    }

    /// The version of the VMA, which every write lock changes; see [`VmaVersion`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// let version = space.try_read(0x2000)?.version();
    /// assert_eq!(space.try_read(0x3000)?.version(), version);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "vm_lock_seq")]
    pub fn version(&self) -> VmaVersion {
        self.pinned.version()
    }

    /// The slot of the VMA.
    #[inline(always)]
    pub(crate) fn slot(&self) -> &'s Slot<T> {
        self.pinned.slot()
    }
}

impl<T, P: Platform> Deref for ReadGuard<'_, T, P> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        self.pinned.payload()
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

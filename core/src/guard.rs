//! What a reader holds.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::{Deref, Range};

use crate::error::ReadError;
use crate::held::{Guards, Held};
use crate::host::DefaultPlatform;
use crate::pinned::{Part, Pinned};
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

    /// A guard of the same VMA for a part of its payload. No method of the guard, so that it hides
    /// no `map` of the payload.
    ///
    /// ```
    /// use pervma::{AddressSpace, ReadGuard};
    ///
    /// struct Mapping {
    ///     name: String,
    /// }
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, Mapping { name: "text".into() })?;
    /// let name = ReadGuard::map(space.try_read(0x2000)?, |mapping| mapping.name.as_str());
    /// assert_eq!(&*name, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<U: ?Sized>(
        guard: Self,
        part: impl FnOnce(&T) -> &U,
    ) -> MappedReadGuard<'s, T, U, P> {
        let Self { _held, pinned } = guard;
        MappedReadGuard { _held, part: Part::new(pinned, part) }
    }

    /// Whose VMA it is, for one more guard of it.
    pub(crate) fn pinned(&self) -> &Pinned<'s, T, P> {
        &self.pinned
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

/// A read-locked VMA and a part of its payload, from [`ReadGuard::map`]. It is to its VMA and to
/// its thread what the [`ReadGuard`] was.
///
/// ```
/// use pervma::{AddressSpace, ReadGuard};
///
/// let space = AddressSpace::new(4096);
/// space.insert(0x1000..0x3000, ("stack", vec![1, 2, 3]))?;
/// let list = ReadGuard::map(space.try_read(0x1000)?, |payload| &payload.1[..]);
/// assert_eq!((&*list, list.range()), (&[1, 2, 3][..], 0x1000..0x3000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the VMA is unlocked at once when its guard is dropped"]
pub struct MappedReadGuard<'s, T, U: ?Sized, P: Platform = DefaultPlatform> {
    _held: Held<Guards, P>,
    part: Part<Pinned<'s, T, P>, U>,
}

impl<'s, T, U: ?Sized, P: Platform> MappedReadGuard<'s, T, U, P> {
    /// A guard of the same VMA for a part of this part.
    ///
    /// ```
    /// use pervma::{AddressSpace, MappedReadGuard, ReadGuard};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, ("stack", vec![1, 2, 3]))?;
    /// let list = ReadGuard::map(space.try_read(0x1000)?, |payload| &payload.1);
    /// let last = MappedReadGuard::map(list, |list| &list[2]);
    /// assert_eq!(*last, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<V: ?Sized>(
        guard: Self,
        part: impl FnOnce(&U) -> &V,
    ) -> MappedReadGuard<'s, T, V, P> {
        let Self { _held, part: of } = guard;
        MappedReadGuard { _held, part: of.map(part) }
    }

    /// The range of the VMA.
    ///
    /// ```
    /// use pervma::{AddressSpace, ReadGuard};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, ("stack", 1))?;
    /// let number = ReadGuard::map(space.try_read(0x1000)?, |payload| &payload.1);
    /// assert_eq!(number.range(), 0x1000..0x3000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.part.pin().span().range()
    }
}

impl<T, U: ?Sized, P: Platform> Deref for MappedReadGuard<'_, T, U, P> {
    type Target = U;

    #[inline(always)]
    fn deref(&self) -> &U {
        self.part.get()
    }
}

impl<T, U: fmt::Debug + ?Sized, P: Platform> fmt::Debug for MappedReadGuard<'_, T, U, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedReadGuard")
            .field("range", &self.range())
            .field("part", &&**self)
            .finish_non_exhaustive()
    }
}

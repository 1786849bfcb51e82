//! Guards that keep their space alive.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::fmt;
use core::ops::{Deref, Range};

use crate::error::ReadError;
use crate::guard::ReadGuard;
use crate::host::DefaultPlatform;
use crate::pinned::{OwnedPin, Part};
use crate::platform::Platform;
use crate::space::AddressSpace;
use crate::vma_id::{VmaId, VmaVersion};

/// A read-locked VMA that keeps its space alive and can be sent to other threads, from
/// [`read_owned`](AddressSpace::read_owned).
///
/// It is in no thread's record, so a thread that waits for its own owned guard gets no error. When
/// the last handle to a space is a guard's, dropping the guard drops the space, with every
/// payload in it; keep another handle where that must not happen.
///
/// ```
/// use pervma::AddressSpace;
/// use std::sync::Arc;
///
/// let space = Arc::new(AddressSpace::new(4096));
/// space.insert(0x1000..0x3000, "text")?;
/// let vma = space.read_owned(0x1000)?;
/// let read = std::thread::spawn(move || *vma).join().unwrap();
/// assert_eq!(read, "text");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the VMA is unlocked at once when its guard is dropped"]
pub struct OwnedReadGuard<T: 'static, P: Platform = DefaultPlatform> {
    pin: OwnedPin<AddressSpace<T, P>, T, P>,
}

impl<T: 'static, P: Platform> OwnedReadGuard<T, P> {
    /// One more guard of the same VMA, also while another thread waits to change it: looking it up
    /// again would wait for that thread, which waits for this guard. Takes no lock and does not
    /// allocate.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(pervma::AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, "text")?;
    /// let vma = space.read_owned(0x2000)?;
    /// let guard = vma.try_clone()?;
    /// assert_eq!(*guard, *vma);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ReadError::Busy`]: the VMA has as many readers as its count can hold.
    pub fn try_clone(&self) -> Result<Self, ReadError> {
        let busy = |_| ReadError::Busy { addr: self.range().start };
        Ok(Self { pin: self.pin.again().map_err(busy)? })
    }

    /// A guard of the same VMA for a part of its payload. No method of the guard, so that it hides
    /// no `map` of the payload.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use pervma::{AddressSpace, OwnedReadGuard};
    ///
    /// let space = Arc::new(AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, ("text", 7))?;
    /// let number = OwnedReadGuard::map(space.read_owned(0x2000)?, |payload| &payload.1);
    /// assert_eq!(std::thread::spawn(move || *number).join().unwrap(), 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<U: ?Sized>(
        guard: Self,
        part: impl FnOnce(&T) -> &U,
    ) -> OwnedMappedReadGuard<T, U, P> {
        OwnedMappedReadGuard { part: Part::new(guard.pin, part) }
    }

    /// The range of the VMA.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(pervma::AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.read_owned(0x2000)?.range(), 0x1000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.pin.pinned().span().range()
    }

    /// The identity of the VMA, to find it again after the guard is dropped; see [`VmaId`].
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(pervma::AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, "text")?;
    /// let id = space.read_owned(0x2000)?.id();
    /// assert_eq!(space.read(0x2000)?.id(), id);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn id(&self) -> VmaId {
        self.version().id()
    }

    /// The version of the VMA, which every write lock changes; see [`VmaVersion`].
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(pervma::AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, "text")?;
    /// let version = space.read_owned(0x2000)?.version();
    /// assert_eq!(space.read(0x2000)?.version(), version);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn version(&self) -> VmaVersion {
        self.pin.pinned().version()
    }

    /// The space that the VMA is in.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(pervma::AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert!(Arc::ptr_eq(space.read_owned(0x2000)?.space(), &space));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn space(&self) -> &Arc<AddressSpace<T, P>> {
        self.pin.space()
    }
}

impl<T: 'static, P: Platform> Deref for OwnedReadGuard<T, P> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        self.pin.pinned().payload()
    }
}

impl<T: fmt::Debug + 'static, P: Platform> fmt::Debug for OwnedReadGuard<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedReadGuard")
            .field("range", &self.range())
            .field("payload", &**self)
            .finish_non_exhaustive()
    }
}

/// A read-locked VMA and a part of its payload, from [`OwnedReadGuard::map`]: it keeps its space
/// alive and can be sent to other threads, as the [`OwnedReadGuard`] could.
///
/// ```
/// use std::sync::Arc;
/// use pervma::{AddressSpace, OwnedReadGuard};
///
/// let space = Arc::new(AddressSpace::new(4096));
/// space.insert(0x1000..0x4000, ("text", 7))?;
/// let number = OwnedReadGuard::map(space.read_owned(0x2000)?, |payload| &payload.1);
/// drop(space);
/// assert_eq!((*number, number.range()), (7, 0x1000..0x4000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the VMA is unlocked at once when its guard is dropped"]
pub struct OwnedMappedReadGuard<T: 'static, U: ?Sized, P: Platform = DefaultPlatform> {
    part: Part<OwnedPin<AddressSpace<T, P>, T, P>, U>,
}

impl<T: 'static, U: ?Sized, P: Platform> OwnedMappedReadGuard<T, U, P> {
    /// A guard of the same VMA for a part of this part.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use pervma::{AddressSpace, OwnedMappedReadGuard, OwnedReadGuard};
    ///
    /// let space = Arc::new(AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, ("text", [7, 8]))?;
    /// let numbers = OwnedReadGuard::map(space.read_owned(0x2000)?, |payload| &payload.1);
    /// assert_eq!(*OwnedMappedReadGuard::map(numbers, |numbers| &numbers[1]), 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<V: ?Sized>(
        guard: Self,
        part: impl FnOnce(&U) -> &V,
    ) -> OwnedMappedReadGuard<T, V, P> {
        OwnedMappedReadGuard { part: guard.part.map(part) }
    }

    /// The range of the VMA.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use pervma::{AddressSpace, OwnedReadGuard};
    ///
    /// let space = Arc::new(AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, ("text", 7))?;
    /// let number = OwnedReadGuard::map(space.read_owned(0x2000)?, |payload| &payload.1);
    /// assert_eq!(number.range(), 0x1000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.part.pin().pinned().span().range()
    }
}

impl<T: 'static, U: ?Sized, P: Platform> Deref for OwnedMappedReadGuard<T, U, P> {
    type Target = U;

    #[inline(always)]
    fn deref(&self) -> &U {
        self.part.get()
    }
}

impl<T: 'static, U: fmt::Debug + ?Sized, P: Platform> fmt::Debug for OwnedMappedReadGuard<T, U, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedMappedReadGuard")
            .field("range", &self.range())
            .field("part", &&**self)
            .finish_non_exhaustive()
    }
}

impl<T: 'static, P: Platform> ReadGuard<'_, T, P> {
    /// One more guard of the same VMA, which owns a handle to the space that it is in: also while
    /// another thread waits to change it, as [`try_clone`](Self::try_clone). Takes no lock and does
    /// not allocate.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(pervma::AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, "text")?;
    /// let vma = space.try_read(0x2000)?;
    /// let owned = vma.try_to_owned(&space)?;
    /// drop(vma);
    /// assert_eq!(std::thread::spawn(move || *owned).join().unwrap(), "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Gone`](ReadError::Gone) if the VMA is another space's; [`Busy`](ReadError::Busy) at the
    /// limit of readers; [`Forked`](ReadError::Forked).
    pub fn try_to_owned(
        &self,
        space: &Arc<AddressSpace<T, P>>,
    ) -> Result<OwnedReadGuard<T, P>, ReadError> {
        let addr = self.range().start;
        match OwnedPin::share(self.pinned(), Arc::clone(space), AddressSpace::map) {
            Some(Ok(pin)) => Ok(OwnedReadGuard { pin }),
            Some(Err(_)) => Err(ReadError::Busy { addr }),
            None if space.map().is_abandoned() => Err(ReadError::Forked),
            None => Err(ReadError::Gone { addr }),
        }
    }
}

impl<T: 'static, P: Platform> AddressSpace<T, P> {
    /// As [`read`](Self::read), with a guard that owns a handle to the space and can be sent to
    /// other threads. See [`OwnedReadGuard`] for a longer example.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(pervma::AddressSpace::new(4096));
    /// space.insert(0x1000..0x4000, "text")?;
    /// let vma = space.read_owned(0x1000)?;
    /// assert_eq!(std::thread::spawn(move || *vma).join().unwrap(), "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    ///
    /// # Panics
    ///
    /// As [`read`](Self::read).
    pub fn read_owned(self: &Arc<Self>, addr: usize) -> Result<OwnedReadGuard<T, P>, ReadError> {
        let pin = OwnedPin::new(Arc::clone(self), |space| {
            space.map().read_lock(addr, None).map(|(read_lock, _)| read_lock)
        })?;
        Ok(OwnedReadGuard { pin })
    }

    /// As [`try_read`](Self::try_read), with a guard that owns a handle to the space and can be
    /// sent to other threads.
    ///
    /// ```
    /// use pervma::AddressSpace;
    /// use std::sync::Arc;
    ///
    /// let space = Arc::new(AddressSpace::new(4096));
    /// space.insert(0x1000..0x3000, "text")?;
    /// assert_eq!(*space.try_read_owned(0x2000)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`try_read`](Self::try_read).
    pub fn try_read_owned(
        self: &Arc<Self>,
        addr: usize,
    ) -> Result<OwnedReadGuard<T, P>, ReadError> {
        let pin = OwnedPin::new(Arc::clone(self), |space| {
            space.map().try_read(addr, None).map(|(read_lock, _)| read_lock)
        })?;
        Ok(OwnedReadGuard { pin })
    }
}

//! Lookups that return guards: once for all that look up.
#![forbid(unsafe_code)]

use core::fmt;

use crate::error::ReadError;
use crate::guard::ReadGuard;
use crate::hazard::Record;
use crate::host::DefaultPlatform;
use crate::map::Map;
use crate::platform::Platform;
use crate::slots::Slot;
use crate::vma_id::VmaId;

/// A map, and where read locks are published; without such a place they are counted.
pub(crate) struct Lookups<'s, T, P: Platform> {
    map: &'s Map<T, P>,
    record: Option<&'s Record>,
}

impl<T, P: Platform> Clone for Lookups<'_, T, P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T, P: Platform> Copy for Lookups<'_, T, P> {}

/// The result of a lookup.
type Guarded<'s, T, P> = Result<ReadGuard<'s, T, P>, ReadError>;

impl<'s, T, P: Platform> Lookups<'s, T, P> {
    #[inline(always)]
    pub(crate) fn new(map: &'s Map<T, P>, record: Option<&'s Record>) -> Self {
        Self { map, record }
    }

    /// These lookups with counted read locks.
    #[inline(always)]
    pub(crate) fn counted(self) -> Self {
        Self { record: None, ..self }
    }

    #[inline(always)]
    pub(crate) fn try_read(self, addr: usize) -> Guarded<'s, T, P> {
        match self.map.try_read(addr, self.record) {
            Ok((read_lock, _)) => Ok(ReadGuard::new(read_lock)),
            Err(error) => Err(error),
        }
    }

    #[inline(always)]
    pub(crate) fn try_read_with_walks(
        self,
        addr: usize,
    ) -> Result<(ReadGuard<'s, T, P>, u32), ReadError> {
        let (read_lock, walks) = self.map.try_read(addr, self.record)?;
        Ok((ReadGuard::new(read_lock), walks))
    }

    #[inline]
    pub(crate) fn read(self, addr: usize) -> Guarded<'s, T, P> {
        let (read_lock, _) = self.map.read_lock(addr, self.record)?;
        Ok(ReadGuard::new(read_lock))
    }

    pub(crate) fn try_read_at_or_after(
        self,
        addr: usize,
    ) -> Result<Option<ReadGuard<'s, T, P>>, ReadError> {
        let found = self.map.try_read_at_or_after(addr, self.record)?;
        Ok(found.map(|(read_lock, _)| ReadGuard::new(read_lock)))
    }

    pub(crate) fn read_at_or_after(
        self,
        addr: usize,
    ) -> Result<Option<ReadGuard<'s, T, P>>, ReadError> {
        let found = self.map.read_lock_at_or_after(addr, self.record)?;
        Ok(found.map(|(read_lock, _)| ReadGuard::new(read_lock)))
    }

    pub(crate) fn try_read_id(self, id: VmaId) -> Guarded<'s, T, P> {
        let (read_lock, _) = self.map.try_read_id(id, self.record)?;
        Ok(ReadGuard::new(read_lock))
    }

    pub(crate) fn read_id(self, id: VmaId) -> Guarded<'s, T, P> {
        let (read_lock, _) = self.map.read_lock_id(id, self.record)?;
        Ok(ReadGuard::new(read_lock))
    }

    /// Read-locks the VMA in `slot` if it is of this space and holds `addr`.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub(crate) fn read_in(self, slot: &'s Slot<T>, addr: usize) -> Option<ReadGuard<'s, T, P>> {
        Some(ReadGuard::new(self.map.read_in(slot, addr, self.record)?))
    }

    pub(crate) fn read_before(self, addr: usize) -> Result<Option<ReadGuard<'s, T, P>>, ReadError> {
        Ok(self.map.read_lock_before(addr)?.map(ReadGuard::new))
    }

    pub(crate) fn try_read_or_hole(self, addr: usize) -> Result<VmaOrHole<'s, T, P>, ReadError> {
        match self.try_read(addr) {
            Err(ReadError::NotMapped { .. } | ReadError::Reserved { .. }) => {
                Ok(VmaOrHole::at(addr, self.try_read_at_or_after(addr)?))
            }
            found => found.map(VmaOrHole::Vma),
        }
    }

    pub(crate) fn read_or_hole(self, addr: usize) -> Result<VmaOrHole<'s, T, P>, ReadError> {
        match self.read(addr) {
            Err(ReadError::NotMapped { .. } | ReadError::Reserved { .. }) => {
                Ok(VmaOrHole::at(addr, self.read_at_or_after(addr)?))
            }
            found => found.map(VmaOrHole::Vma),
        }
    }
}

/// What is at an address: a VMA, read-locked, or a hole and how far it reaches. From
/// [`AddressSpace::try_read_or_hole`](crate::AddressSpace::try_read_or_hole) and its relatives.
///
/// ```
/// use pervma::{AddressSpace, VmaOrHole};
///
/// let space = AddressSpace::new(4096);
/// space.insert(0x5000..0x6000, "text")?;
/// let mut at = 0x1000;
/// while at < 0x8000 {
///     at = match space.try_read_or_hole(at)? {
///         VmaOrHole::Vma(vma) => vma.range().end,
///         VmaOrHole::Hole { end } => end,
///     };
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the VMA is unlocked at once when its guard is dropped"]
pub enum VmaOrHole<'s, T, P: Platform = DefaultPlatform> {
    /// The VMA that holds the address.
    Vma(ReadGuard<'s, T, P>),
    /// Nothing is mapped from the address up to `end`; parts of that may be reserved.
    Hole {
        /// The start of the next VMA; without one, [`usize::MAX`].
        end: usize,
    },
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for VmaOrHole<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vma(vma) => f.debug_tuple("Vma").field(vma).finish(),
            Self::Hole { end } => f.debug_struct("Hole").field("end", end).finish(),
        }
    }
}

impl<'s, T, P: Platform> VmaOrHole<'s, T, P> {
    /// What is at `addr`, with the first VMA that ends above it.
    fn at(addr: usize, next: Option<ReadGuard<'s, T, P>>) -> Self {
        match next {
            Some(vma) if vma.range().start <= addr => Self::Vma(vma),
            Some(vma) => Self::Hole { end: vma.range().start },
            None => Self::Hole { end: usize::MAX },
        }
    }
}

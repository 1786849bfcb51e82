//! Lookups that return guards: once for all that look up.
#![forbid(unsafe_code)]

use crate::error::ReadError;
use crate::guard::ReadGuard;
use crate::hazard::Record;
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

    pub(crate) fn iter(self) -> impl Iterator<Item = Guarded<'s, T, P>> {
        let mut from = Some(0);
        core::iter::from_fn(move || {
            let next = self.read_at_or_after(from?).transpose();
            from = next.as_ref().and_then(|vma| Some(vma.as_ref().ok()?.range().end));
            next
        })
    }
}

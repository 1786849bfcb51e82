//! pervma, through its public interface.

use std::marker::PhantomData;
use std::ops::Range;

use pervma::{AddressSpace, Cursor, ReadError, ReadGuard};

use super::{Find, Map, Reader};
use crate::layout::{PAGE, Vma};

/// A space whose readers look addresses up in the way `W`, and whose changes are edits.
pub(crate) struct Pervma<W = TryRead>(pub(crate) AddressSpace<u64>, PhantomData<W>);

/// With a cursor for each thread.
pub(crate) type PervmaCursor = Pervma<CursorRead>;

/// A way to look addresses up: another one is another contestant.
pub(crate) trait Way: Send + Sync {
    const NAME: &'static str;
    type Reader<'s>: Reader;

    fn reader(space: &AddressSpace<u64>) -> Self::Reader<'_>;
}

/// `try_read`, and `read` where that does not decide.
pub(crate) enum TryRead {}

impl Way for TryRead {
    const NAME: &'static str = "pervma";
    type Reader<'s> = &'s AddressSpace<u64>;

    fn reader(space: &AddressSpace<u64>) -> &AddressSpace<u64> {
        space
    }
}

impl Reader for &AddressSpace<u64> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || AddressSpace::read(self, addr), visit)
    }

    fn hindered(&mut self, addr: usize) -> Option<bool> {
        Some(match self.try_read(addr) {
            Ok(vma) => vma.walks() > 1,
            Err(error) => !matches!(error, ReadError::NotMapped { .. }),
        })
    }
}

/// The same with a [`Cursor`].
pub(crate) enum CursorRead {}

impl Way for CursorRead {
    const NAME: &'static str = "pervma, cursor";
    type Reader<'s> = Cursor<'s, u64>;

    fn reader(space: &AddressSpace<u64>) -> Cursor<'_, u64> {
        space.cursor()
    }
}

impl Reader for Cursor<'_, u64> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || self.read(addr), visit)
    }
}

#[inline(always)]
fn decide<'s, R>(
    tried: Result<ReadGuard<'s, u64>, ReadError>,
    wait: impl FnOnce() -> Result<ReadGuard<'s, u64>, ReadError>,
    visit: impl FnOnce(Option<u64>) -> R,
) -> R {
    match tried {
        Ok(vma) => visit(Some(*vma)),
        Err(ReadError::NotMapped { .. }) => visit(None),
        Err(_) => waited(wait(), visit),
    }
}

#[cold]
fn waited<R>(
    found: Result<ReadGuard<'_, u64>, ReadError>,
    visit: impl FnOnce(Option<u64>) -> R,
) -> R {
    match found {
        Ok(vma) => visit(Some(*vma)),
        Err(error) => {
            assert!(matches!(error, ReadError::NotMapped { .. }), "nothing else is in the way");
            visit(None)
        }
    }
}

impl<W: Way> Find for Pervma<W> {
    const NAME: &'static str = W::NAME;
    type Reader<'m>
        = W::Reader<'m>
    where
        W: 'm;

    fn of(vmas: &[Vma]) -> Self {
        let map = Self(AddressSpace::new(PAGE), PhantomData);
        vmas.iter().for_each(|vma| map.insert(vma.clone()));
        map
    }

    #[inline(always)]
    fn reader(&self) -> W::Reader<'_> {
        W::reader(&self.0)
    }
}

impl<W: Way> Map for Pervma<W> {
    fn insert(&self, Vma { range, payload }: Vma) {
        let inserted = self.0.edit().map(|mut edit| edit.insert(range, payload));
        assert!(matches!(inserted, Ok(Ok(()))), "a free range can be mapped");
    }

    fn remove(&self, range: Range<usize>) {
        let removed = self.0.edit().map(|mut edit| edit.remove(range));
        assert!(matches!(removed, Ok(Ok(_))), "what is mapped can be removed");
    }

    fn update(&self, range: Range<usize>, payload: u64) {
        let changed = self.0.edit().map(|mut edit| edit.update(range, |_, _| payload));
        assert!(matches!(changed, Ok(Ok(_))), "what is mapped can be changed");
    }
}

/// Changed by operations that wait for readers outside of the mmap lock.
pub(crate) struct PervmaOutside(Pervma);

impl Find for PervmaOutside {
    const NAME: &'static str = "pervma, waiting outside";
    type Reader<'m> = &'m AddressSpace<u64>;

    fn of(vmas: &[Vma]) -> Self {
        Self(Pervma::of(vmas))
    }

    fn reader(&self) -> &AddressSpace<u64> {
        &self.0.0
    }
}

impl Map for PervmaOutside {
    fn insert(&self, vma: Vma) {
        self.0.insert(vma);
    }

    fn remove(&self, range: Range<usize>) {
        assert!(self.0.0.remove(range).is_ok(), "what is mapped can be removed");
    }

    fn update(&self, range: Range<usize>, payload: u64) {
        let changed = self.0.0.update(range, |_, _| payload);
        assert!(changed.is_ok(), "what is mapped can be changed");
    }
}

//! pervma, through its public interface.

use std::marker::PhantomData;
use std::ops::Range;

use pervma::{AddressSpace, Cursor, Platform, ReadError, ReadGuard, ReaderCursor, Std};

use super::{Find, Host, Map, Reader};
use crate::layout::{PAGE, Vma};

/// A space whose readers look addresses up in the way `W`, and whose changes are edits.
pub(crate) struct Pervma<W = TryRead, T: Platform = Std>(
    pub(crate) AddressSpace<u64, T>,
    PhantomData<W>,
);

/// With a cursor for each thread.
pub(crate) type PervmaCursor = Pervma<CursorRead>;

/// With a registration for each thread.
pub(crate) type PervmaRegistered<T = Std> = Pervma<Registered, T>;

/// A way to look addresses up: another one is another contestant.
pub(crate) trait Way<T: Platform>: Send + Sync + 'static {
    const NAME: &'static str;
    type Reader<'s>: Reader;

    fn with_reader<R>(
        space: &AddressSpace<u64, T>,
        run: impl FnOnce(&mut Self::Reader<'_>) -> R,
    ) -> R;
}

/// `try_read`, and `read` where that does not decide.
pub(crate) enum TryRead {}

impl<T: Platform> Way<T> for TryRead {
    const NAME: &'static str = "pervma";
    type Reader<'s> = &'s AddressSpace<u64, T>;

    #[inline(always)]
    fn with_reader<R>(
        space: &AddressSpace<u64, T>,
        run: impl FnOnce(&mut &AddressSpace<u64, T>) -> R,
    ) -> R {
        run(&mut &*space)
    }
}

impl<T: Platform> Reader for &AddressSpace<u64, T> {
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

impl<T: Platform> Way<T> for CursorRead {
    const NAME: &'static str = "pervma, cursor";
    type Reader<'s> = Cursor<'s, u64, T>;

    #[inline(always)]
    fn with_reader<R>(
        space: &AddressSpace<u64, T>,
        run: impl FnOnce(&mut Cursor<'_, u64, T>) -> R,
    ) -> R {
        run(&mut space.cursor())
    }
}

impl<T: Platform> Reader for Cursor<'_, u64, T> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || self.read(addr), visit)
    }
}

/// As a registered [`Reader`](pervma::Reader).
pub(crate) enum Registered {}

impl<T: Host> Way<T> for Registered {
    const NAME: &'static str = T::REGISTERED;
    type Reader<'s> = &'s pervma::Reader<'s, u64, T>;

    #[inline(always)]
    fn with_reader<R>(
        space: &AddressSpace<u64, T>,
        run: impl FnOnce(&mut Self::Reader<'_>) -> R,
    ) -> R {
        run(&mut &register(space))
    }
}

impl<T: Platform> Reader for &pervma::Reader<'_, u64, T> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || pervma::Reader::read(self, addr), visit)
    }
}

/// With the cursor of a registered reader.
pub(crate) enum CursorOfReader {}

impl<T: Host> Way<T> for CursorOfReader {
    const NAME: &'static str = T::CURSOR;
    type Reader<'s> = ReaderCursor<'s, u64, T>;

    #[inline(always)]
    fn with_reader<R>(
        space: &AddressSpace<u64, T>,
        run: impl FnOnce(&mut ReaderCursor<'_, u64, T>) -> R,
    ) -> R {
        run(&mut register(space).cursor())
    }
}

impl<T: Platform> Reader for ReaderCursor<'_, u64, T> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || self.read(addr), visit)
    }
}

pub(crate) fn register<T: Platform>(space: &AddressSpace<u64, T>) -> pervma::Reader<'_, u64, T> {
    match space.register() {
        Ok(reader) => reader,
        Err(error) => panic!("this thread holds nothing: {error}"),
    }
}

#[inline(always)]
fn decide<'s, R, T: Platform>(
    tried: Result<ReadGuard<'s, u64, T>, ReadError>,
    wait: impl FnOnce() -> Result<ReadGuard<'s, u64, T>, ReadError>,
    visit: impl FnOnce(Option<u64>) -> R,
) -> R {
    match tried {
        Ok(vma) => visit(Some(*vma)),
        Err(ReadError::NotMapped { .. }) => visit(None),
        Err(_) => waited(wait(), visit),
    }
}

#[cold]
fn waited<R, T: Platform>(
    found: Result<ReadGuard<'_, u64, T>, ReadError>,
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

impl<W: Way<T>, T: Platform> Find for Pervma<W, T> {
    const NAME: &'static str = W::NAME;
    type Reader<'m> = W::Reader<'m>;

    fn of(vmas: &[Vma]) -> Self {
        let map = Self(AddressSpace::with_platform(PAGE), PhantomData);
        vmas.iter().for_each(|vma| map.insert(vma.clone()));
        map
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut W::Reader<'_>) -> R) -> R {
        W::with_reader(&self.0, run)
    }
}

impl<W: Way<T>, T: Platform> Map for Pervma<W, T> {
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

    fn with_reader<R>(&self, run: impl FnOnce(&mut &AddressSpace<u64>) -> R) -> R {
        run(&mut &self.0.0)
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

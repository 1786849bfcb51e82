//! pervma, through its public interface.

use std::marker::PhantomData;
use std::ops::Range;

use pervma::{AddressSpace, Cursor, Platform, ReadError, ReadGuard, ReaderCursor, StdPlatform};

use super::{Find, Host, Map, Reader, Relocate};
use crate::layout::{PAGE, Vma};

/// A space whose readers look addresses up in the way `W`, and whose changes are edits.
pub(crate) struct Pervma<W = TryRead, P: Platform = StdPlatform>(
    pub(crate) AddressSpace<u64, P>,
    PhantomData<W>,
);

/// With a cursor for each thread.
pub(crate) type PervmaCursor = Pervma<CursorRead>;

/// With a registration for each thread.
pub(crate) type PervmaRegistered<P = StdPlatform> = Pervma<Registered, P>;

/// A way to look addresses up: another one is another implementation.
pub(crate) trait Way<P: Platform>: Send + Sync + 'static {
    const NAME: &'static str;
    type Reader<'s>: Reader;

    fn with_reader<R>(
        space: &AddressSpace<u64, P>,
        run: impl FnOnce(&mut Self::Reader<'_>) -> R,
    ) -> R;
}

/// `try_read`, and `read` where that does not decide.
pub(crate) enum TryRead {}

impl<P: Platform> Way<P> for TryRead {
    const NAME: &'static str = "pervma";
    type Reader<'s> = &'s AddressSpace<u64, P>;

    #[inline(always)]
    fn with_reader<R>(
        space: &AddressSpace<u64, P>,
        run: impl FnOnce(&mut &AddressSpace<u64, P>) -> R,
    ) -> R {
        run(&mut &*space)
    }
}

impl<P: Platform> Reader for &AddressSpace<u64, P> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || AddressSpace::read(self, addr), visit)
    }

    fn hindered(&mut self, addr: usize) -> Option<bool> {
        Some(match self.try_read_with_walks(addr) {
            Ok((_, walks)) => walks > 1,
            Err(error) => !matches!(error, ReadError::NotMapped { .. }),
        })
    }
}

/// The same with a [`Cursor`].
pub(crate) enum CursorRead {}

impl<P: Platform> Way<P> for CursorRead {
    const NAME: &'static str = "pervma, cursor";
    type Reader<'s> = Cursor<'s, u64, P>;

    #[inline(always)]
    fn with_reader<R>(
        space: &AddressSpace<u64, P>,
        run: impl FnOnce(&mut Cursor<'_, u64, P>) -> R,
    ) -> R {
        run(&mut space.cursor())
    }
}

impl<P: Platform> Reader for Cursor<'_, u64, P> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || self.read(addr), visit)
    }
}

/// As a registered [`Reader`](pervma::Reader).
pub(crate) enum Registered {}

impl<P: Host> Way<P> for Registered {
    const NAME: &'static str = P::REGISTERED;
    type Reader<'s> = &'s pervma::Reader<'s, u64, P>;

    #[inline(always)]
    fn with_reader<R>(
        space: &AddressSpace<u64, P>,
        run: impl FnOnce(&mut Self::Reader<'_>) -> R,
    ) -> R {
        run(&mut &register(space))
    }
}

impl<P: Platform> Reader for &pervma::Reader<'_, u64, P> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || pervma::Reader::read(self, addr), visit)
    }
}

/// With the cursor of a registered reader.
pub(crate) enum CursorOfReader {}

impl<P: Host> Way<P> for CursorOfReader {
    const NAME: &'static str = P::CURSOR;
    type Reader<'s> = ReaderCursor<'s, u64, P>;

    #[inline(always)]
    fn with_reader<R>(
        space: &AddressSpace<u64, P>,
        run: impl FnOnce(&mut ReaderCursor<'_, u64, P>) -> R,
    ) -> R {
        run(&mut register(space).cursor())
    }
}

impl<P: Platform> Reader for ReaderCursor<'_, u64, P> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        decide(self.try_read(addr), || self.read(addr), visit)
    }
}

pub(crate) fn register<P: Platform>(space: &AddressSpace<u64, P>) -> pervma::Reader<'_, u64, P> {
    match space.register() {
        Ok(reader) => reader,
        Err(error) => panic!("this thread holds nothing: {error}"),
    }
}

#[inline(always)]
fn decide<'s, R, P: Platform>(
    tried: Result<ReadGuard<'s, u64, P>, ReadError>,
    wait: impl FnOnce() -> Result<ReadGuard<'s, u64, P>, ReadError>,
    visit: impl FnOnce(Option<u64>) -> R,
) -> R {
    match tried {
        Ok(vma) => visit(Some(*vma)),
        Err(ReadError::NotMapped { .. }) => visit(None),
        Err(_) => waited(wait(), visit),
    }
}

#[cold]
fn waited<R, P: Platform>(
    found: Result<ReadGuard<'_, u64, P>, ReadError>,
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

impl<W, P: Platform> Pervma<W, P> {
    pub(crate) fn around(space: AddressSpace<u64, P>) -> Self {
        Self(space, PhantomData)
    }
}

impl<W: Way<P>, P: Platform> Find for Pervma<W, P> {
    const NAME: &'static str = W::NAME;
    type Reader<'m> = W::Reader<'m>;

    fn of(vmas: &[Vma]) -> Self {
        let map = Self::around(AddressSpace::with_platform(PAGE));
        vmas.iter().for_each(|vma| map.insert(vma.clone()));
        map
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut W::Reader<'_>) -> R) -> R {
        W::with_reader(&self.0, run)
    }
}

impl<W: Way<P>, P: Platform> Map for Pervma<W, P> {
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

impl<W: Way<P>, P: Platform> Relocate for Pervma<W, P> {
    fn relocate(&self, range: Range<usize>, to: usize) {
        let moved = self.0.edit().map(|mut edit| edit.relocate(range, to, |_, payload| *payload));
        assert!(matches!(moved, Ok(Ok(_))), "what is mapped can be moved");
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

impl Relocate for PervmaOutside {
    fn relocate(&self, range: Range<usize>, to: usize) {
        let moved = self.0.0.relocate(range, to, |_, payload| *payload);
        assert!(moved.is_ok(), "what is mapped can be moved");
    }
}

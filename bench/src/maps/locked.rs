//! One lock around a `BTreeMap`, and the same with a lock in each entry.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, PoisonError};

use super::tree::{Cell, Entry, Tree};
use super::{Find, Map, Reader, Relocate};
use crate::layout::Vma;

/// The `RwLock` of another crate, around a tree.
pub(crate) trait RwLock: Default + Send + Sync {
    const NAME: &'static str;

    fn read(&self) -> impl Deref<Target = Tree>;
    fn write(&self) -> impl DerefMut<Target = Tree>;
}

impl RwLock for parking_lot::RwLock<Tree> {
    const NAME: &'static str = "parking_lot RwLock<BTreeMap>";

    #[inline(always)]
    fn read(&self) -> impl Deref<Target = Tree> {
        self.read()
    }

    #[inline(always)]
    fn write(&self) -> impl DerefMut<Target = Tree> {
        self.write()
    }
}

impl RwLock for std::sync::RwLock<Tree> {
    const NAME: &'static str = "std RwLock<BTreeMap>";

    #[inline(always)]
    fn read(&self) -> impl Deref<Target = Tree> {
        self.read().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline(always)]
    fn write(&self) -> impl DerefMut<Target = Tree> {
        self.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is found stays while the lock of the whole map is held for reading.
pub(crate) struct Locked<L>(pub(crate) L);

pub(crate) type ParkingLot = Locked<parking_lot::RwLock<Tree>>;
pub(crate) type StdLock = Locked<std::sync::RwLock<Tree>>;

impl<L: RwLock + 'static> Find for Locked<L> {
    const NAME: &'static str = L::NAME;
    type Reader<'m> = &'m Self;

    fn of(vmas: &[Vma]) -> Self {
        let map = Self(L::default());
        vmas.iter().for_each(|vma| map.insert(vma.clone()));
        map
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut &Self) -> R) -> R {
        run(&mut &*self)
    }
}

impl<L: RwLock> Reader for &Locked<L> {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        let tree = self.0.read();
        visit(tree.floor(addr).and_then(|entry| entry.at(addr)))
    }
}

impl<L: RwLock + 'static> Map for Locked<L> {
    fn insert(&self, vma: Vma) {
        self.0.write().insert(vma);
    }

    fn remove(&self, range: Range<usize>) {
        self.0.write().remove(range.start);
    }

    fn update(&self, range: Range<usize>, payload: u64) {
        self.0.write().update(range, payload);
    }
}

impl<L: RwLock + 'static> Relocate for Locked<L> {
    fn relocate(&self, range: Range<usize>, to: usize) {
        self.0.write().relocate(range, to);
    }
}

/// What is found stays while its own lock is held for reading. It is acquired under the
/// map's, which is released then.
pub(crate) struct LockedEntries(pub(crate) parking_lot::RwLock<Tree<LockedEntry>>);

pub(crate) struct LockedEntry(pub(crate) Arc<parking_lot::RwLock<Entry>>);

impl Cell for LockedEntry {
    fn new(entry: Entry) -> Self {
        Self(Arc::new(parking_lot::RwLock::new(entry)))
    }

    fn get(&self) -> Entry {
        *self.0.read()
    }

    fn set(&mut self, entry: Entry) {
        *self.0.write() = entry;
    }

    /// Waits for readers.
    fn retire(self) {
        drop(self.0.write());
    }
}

impl Find for LockedEntries {
    const NAME: &'static str = "RwLock<BTreeMap<_, Arc<RwLock>>>";
    type Reader<'m> = &'m Self;

    fn of(vmas: &[Vma]) -> Self {
        let map = Self(parking_lot::RwLock::default());
        vmas.iter().for_each(|vma| map.insert(vma.clone()));
        map
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut &Self) -> R) -> R {
        run(&mut &*self)
    }
}

impl Reader for &LockedEntries {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        let tree = self.0.read();
        let Some(found) = tree.floor(addr) else { return visit(None) };
        let entry = Arc::clone(&found.0);
        let locked = entry.read();
        drop(tree);
        visit(locked.at(addr))
    }
}

impl Map for LockedEntries {
    fn insert(&self, vma: Vma) {
        self.0.write().insert(vma);
    }

    fn remove(&self, range: Range<usize>) {
        let removed = self.0.write().remove(range.start);
        removed.retire();
    }

    fn update(&self, range: Range<usize>, payload: u64) {
        self.0.write().update(range, payload);
    }
}

//! Snapshots: readers load the whole map, writers copy it.

use std::ops::Range;

use arc_swap::ArcSwap;

use super::tree::Tree;
use super::{Find, Map, Reader};
use crate::layout::Vma;

pub(crate) struct Snapshots(ArcSwap<Tree>);

impl Snapshots {
    fn change(&self, mut change: impl FnMut(&mut Tree)) {
        self.0.rcu(|tree| {
            let mut tree = Tree::clone(tree);
            change(&mut tree);
            tree
        });
    }
}

impl Find for Snapshots {
    const NAME: &'static str = "ArcSwap<BTreeMap> (memory only)";
    type Reader<'m> = &'m Self;

    /// One copy would be made for each insertion, so the tree is made first.
    fn of(vmas: &[Vma]) -> Self {
        let mut tree = Tree::default();
        vmas.iter().for_each(|vma| tree.insert(vma.clone()));
        Self(ArcSwap::from_pointee(tree))
    }

    #[inline(always)]
    fn with_reader<R>(&self, run: impl FnOnce(&mut &Self) -> R) -> R {
        run(&mut &*self)
    }
}

impl Reader for &Snapshots {
    #[inline(always)]
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R {
        let tree = self.0.load();
        visit(tree.floor(addr).and_then(|entry| entry.at(addr)))
    }
}

impl Map for Snapshots {
    fn insert(&self, vma: Vma) {
        self.change(|tree| tree.insert(vma.clone()));
    }

    fn remove(&self, range: Range<usize>) {
        self.change(|tree| {
            tree.remove(range.start);
        });
    }

    fn update(&self, range: Range<usize>, payload: u64) {
        self.change(|tree| tree.update(range.clone(), payload));
    }
}

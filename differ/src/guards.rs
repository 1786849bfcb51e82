//! Guard pages, which are no part of the map.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use pervma_linux::abi;

/// The guard pages of a process, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Guards(Mutex<BTreeSet<usize>>);

impl Guards {
    fn with<R>(&self, look: impl FnOnce(&mut BTreeSet<usize>) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first one in a range.
    pub(crate) fn first(&self, range: Range<usize>) -> Option<usize> {
        self.with(|guards| guards.range(range).next().copied())
    }

    /// Makes all pages of a range guard pages.
    pub(crate) fn install(&self, range: Range<usize>) {
        self.with(|guards| guards.extend(range.step_by(abi::PAGE)));
    }

    /// Removes those in a range, and returns them.
    pub(crate) fn take(&self, range: Range<usize>) -> Vec<usize> {
        self.with(|guards| {
            let taken: Vec<usize> = guards.range(range).copied().collect();
            taken.iter().for_each(|page| _ = guards.remove(page));
            taken
        })
    }

    /// Moves all of them to another map.
    pub(crate) fn move_all(&self, to: &Self) {
        let all = self.with(std::mem::take);
        to.with(|guards| guards.extend(all));
    }

    /// Moves those in a range to where it has moved.
    pub(crate) fn relocate(&self, from: Range<usize>, to: usize) {
        let start = from.start;
        let moved = self.take(from);
        self.with(|guards| guards.extend(moved.iter().map(|page| page - start + to)));
    }

    /// Copies those in a range to another process.
    pub(crate) fn copy(&self, range: Range<usize>, child: &Self) {
        let copied: Vec<usize> = self.with(|guards| guards.range(range).copied().collect());
        child.with(|guards| guards.extend(copied));
    }
}

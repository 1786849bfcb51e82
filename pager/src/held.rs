//! Pages that a thread holds.

use crate::mapping::Mapping;
use crate::signal::SignalsBlocked;

/// Pages that what keeps a bound leaves alone, until this is dropped.
pub(crate) struct Held<'m> {
    mapping: &'m Mapping,
    number: u64,
}

impl<'m> Held<'m> {
    /// Nothing yet, from a page on. The caller blocks signals.
    pub(crate) fn new(mapping: &'m Mapping, first: usize) -> Self {
        Self { mapping, number: mapping.holds.begin(first) }
    }

    /// Holds the pages up to `end` as well, and is `true`; or the bound does not let so many be
    /// held. The caller blocks signals.
    pub(crate) fn extend(&self, end: usize) -> bool {
        let backing = &self.mapping.backing;
        self.mapping.holds.extend(self.number, end, &self.mapping.records, |pages| {
            backing.budget.as_ref().is_none_or(|budget| budget.hold(backing.counted(pages)))
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.mapping.memory.is_of_this_process() {
            // A forked child has no such pages, and the list may have been locked in its parent.
            return;
        }
        // If they cannot be blocked, it goes on without.
        let _blocked = SignalsBlocked::new();
        let pages = self.mapping.holds.end(self.number, &self.mapping.records);
        if let Some(budget) = &self.mapping.backing.budget {
            budget.let_go(self.mapping.backing.counted(pages));
        }
    }
}

//! Calls that are tried on a copy of the map, and a map that is restored.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use pervma::{AddressSpace, Platform};

use crate::abi::PAGE;
use crate::asked::Asked;
use crate::backing::{Refusal, Work};
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Core, no_memory};
use crate::state::State;
use crate::vma::Vma;

/// What was mapped in some ranges and next to them.
pub(crate) struct Snapshot {
    vmas: Vec<(Range<usize>, Vma)>,
    state: State,
    /// How many other VMAs there were.
    others: usize,
}

impl Snapshot {
    /// A copy to try a call on.
    fn copy<P: Platform>(&self) -> Result<Core<P>, Errno> {
        let space = AddressSpace::with_platform(PAGE);
        let mut edit = space.edit().map_err(|_| Errno::EAGAIN)?;
        for (range, vma) in &self.vmas {
            edit.insert(range.clone(), vma.clone()).map_err(|error| no_memory(error.kind))?;
        }
        drop(edit);
        Ok(Core::new(space, self.state, self.others))
    }
}

impl<P: Platform> Change<'_, P> {
    /// Notes that the backing is to do something, where the call is only tried.
    pub(crate) fn ask(&mut self, work: impl FnOnce() -> Work) -> Result<(), Errno> {
        match &mut self.trial {
            Some(asked) => asked.push(work()),
            None => Ok(()),
        }
    }

    /// What became of pages that the backing was to make present for writing. Where the call is
    /// only tried, they are noted.
    pub(crate) fn ask_populate(
        &mut self,
        range: &Range<usize>,
        vma: &Vma,
    ) -> Result<Result<(), Refusal>, Errno> {
        if let Some(asked) = &mut self.trial {
            asked.push_populate(range.clone(), vma.clone())?;
        }
        Ok(self.answers.next().unwrap_or(Ok(())))
    }

    /// Copies what is mapped in `ranges`, in which no two have a common address, and next to them.
    pub(crate) fn snapshot(&self, ranges: &[Range<usize>]) -> Result<Snapshot, Errno> {
        let mut vmas: Vec<(Range<usize>, Vma)> = Vec::new();
        let mut ranges: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| range.start);
        for range in ranges {
            let last_end = vmas.last().map_or(0, |(range, _)| range.end);
            let wider = range.start.saturating_sub(1)..range.end.saturating_add(1);
            for (range, vma) in self.edit.overlapping(wider) {
                if range.start >= last_end {
                    vmas.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                    vmas.push((range, vma.clone()));
                }
            }
        }
        let others = self.map_count() - vmas.len();
        Ok(Snapshot { vmas, state: *self.state, others })
    }

    /// Makes a call on a copy. Returns what the backing will be asked for, and the call's result.
    pub(crate) fn try_out<R>(
        &self,
        on: &Snapshot,
        call: impl Fn(&mut Change<'_, P>) -> Result<R, Errno>,
    ) -> Result<(Asked, Result<R, Errno>), Errno> {
        let copy = on.copy()?;
        let mut trial = copy.change()?;
        *trial.state.config = *self.state.config;
        trial.trial = Some(Box::default());
        let result = call(&mut trial);
        Ok((trial.trial.take().map(|asked| *asked).unwrap_or_default(), result))
    }

    /// Restores the map. What says something about pages stays, since the pages do: an `anon_vma`
    /// that a VMA got meanwhile, and that there may be guard pages.
    ///
    /// Returns what a stack had grown over, which is not mapped any more.
    pub(crate) fn restore(&mut self, before: Snapshot) -> Result<Vec<Range<usize>>, Errno> {
        self.state.restore(&before.state);
        let (mut end, mut grown) = (0, Vec::new());
        for (range, mut vma) in before.vmas {
            self.clear(end..range.start, &mut grown)?;
            end = range.end;
            for (_, now) in self.edit.overlapping(range.clone()) {
                vma.anon = vma.anon.or(now.anon);
                vma.flags |= now.flags & VmFlags::MAYBE_GUARD;
            }
            if self.holding(range.start) != Some((range.clone(), &vma)) {
                self.replace(range, vma)?;
            }
        }
        self.clear(end..self.state.config.layout.task_size, &mut grown)?;
        Ok(grown)
    }

    /// Unmaps what lies in a gap.
    fn clear(&mut self, gap: Range<usize>, grown: &mut Vec<Range<usize>>) -> Result<(), Errno> {
        if self.first_in(&gap).is_some() {
            grown.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            self.edit.remove(gap.clone()).map_err(no_memory)?;
            grown.push(gap);
        }
        Ok(())
    }
}

//! `munmap`, and every removal that other calls make.

use core::ops::Range;

use pervma::Platform;

use crate::abi::{off_page, page_align, pages};
use crate::asked::Asked;
use crate::backing::{Backing, Work};
use crate::call::{Plan, Scope};
use crate::counts::Counts;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Mm, no_memory};

/// The counts of what is in a range that is about to be removed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Removal {
    /// Pages of all kinds.
    pub(crate) total: usize,
    /// Pages that are counted as committed.
    pub(crate) accounted: usize,
    counts: Counts,
}

/// What keeps a range from being removed.
pub(crate) struct Obstacle {
    error: Errno,
    /// Whether the VMA that the range begins in is split there nevertheless.
    splits: bool,
}

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Unmaps a range, in which nothing need be mapped.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// assert_eq!(mm.munmap(0x10000, 4096), Ok(()));
    /// assert_eq!(mm.munmap(0x10001, 4096), Err(Errno::EINVAL));
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call. When something sealed is in the range, the mapping that the range
    /// begins in may have been split there.
    #[doc(alias = "do_vmi_munmap")]
    pub fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let scope = Scope::new(addr..addr.saturating_add(page_align(len)));
        let look = |change: &mut Change<'_, P>| {
            let mut asked = Asked::default();
            let removal = change.removable(addr, len).map(|range| (change.removal(&range), range));
            if let Ok((Ok(removal), range)) = removal
                && removal.total != 0
            {
                asked.push(Work::Unmap(range))?;
            }
            Ok(asked)
        };
        self.call(&scope, Plan::Look(&look), |change| change.munmap(addr, len), |()| Ok(()))
    }
}

impl<P: Platform> Change<'_, P> {
    /// The range that is to be unmapped, with the checks that come before any look at it.
    fn removable(&self, addr: usize, len: usize) -> Result<Range<usize>, Errno> {
        let task_size = self.state.config.layout.task_size;
        if off_page(addr) || addr > task_size || len > task_size - addr {
            return Err(Errno::EINVAL);
        }
        let range = addr..addr + page_align(len);
        if range.is_empty() { Err(Errno::EINVAL) } else { Ok(range) }
    }

    pub(crate) fn munmap(&mut self, addr: usize, len: usize) -> Result<(), Errno> {
        let range = self.removable(addr, len)?;
        let removal = self.check_removal(&range)?;
        self.remove(range, removal)
    }

    /// Whether a range can be removed. If something is in the way that is sealed, or cannot be
    /// split at its end, the VMA that the range begins in is split there, unless it is that one.
    #[doc(alias = "vms_gather_munmap_vmas")]
    pub(crate) fn check_removal(&mut self, range: &Range<usize>) -> Result<Removal, Errno> {
        self.removal(range).or_else(|obstacle| {
            if obstacle.splits {
                self.split_unlimited(range.start)?;
            }
            Err(obstacle.error)
        })
    }

    /// What is in a range that is to be removed, or why that cannot be.
    pub(crate) fn removal(&self, range: &Range<usize>) -> Result<Removal, Obstacle> {
        let mut removal = Removal::default();
        for (vma_at, vma) in self.edit.overlapping(range.clone()) {
            let first = vma_at.start < range.start;
            if first
                && range.end < vma_at.end
                && self.map_count() >= self.state.config.max_map_count
            {
                return Err(Obstacle { error: Errno::ENOMEM, splits: false });
            }
            if vma.flags.has(VmFlags::SEALED) {
                return Err(Obstacle { error: Errno::EPERM, splits: !first });
            }
            if vma.is_whole() && (first || range.end < vma_at.end) {
                return Err(Obstacle { error: Errno::EINVAL, splits: !first });
            }
            let count = pages(vma_at.end.min(range.end) - vma_at.start.max(range.start));
            removal.total += count;
            removal.counts.add(vma.flags, count);
            if vma.flags.has(VmFlags::ACCOUNT) {
                removal.accounted += count;
            }
            if vma.flags.has(VmFlags::LOCKED) {
                removal.counts.locked += count;
            }
        }
        Ok(removal)
    }

    /// Removes a range that was checked.
    #[doc(alias = "vms_complete_munmap_vmas")]
    pub(crate) fn remove(&mut self, range: Range<usize>, removal: Removal) -> Result<(), Errno> {
        if removal.total == 0 {
            return Ok(());
        }
        self.ask(|| Work::Unmap(range.clone()))?;
        self.edit.remove(range).map_err(no_memory)?;
        let gone = removal.counts;
        let counts: &mut Counts = &mut self.state.counts;
        for (count, gone) in [
            (&mut counts.total, gone.total),
            (&mut counts.data, gone.data),
            (&mut counts.stack, gone.stack),
            (&mut counts.exec, gone.exec),
            (&mut counts.locked, gone.locked),
        ] {
            *count = count.wrapping_sub(gone);
        }
        Ok(())
    }
}

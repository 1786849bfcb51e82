//! `munmap`, and every removal that other calls make.

use core::ops::Range;

use pervma::Platform;

use crate::abi::{off_page, page_align, pages};
use crate::backing::Backing;
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
        self.change(|change| change.munmap(addr, len))
    }
}

impl<B: Backing, P: Platform> Change<'_, B, P> {
    pub(crate) fn munmap(&mut self, addr: usize, len: usize) -> Result<(), Errno> {
        let task_size = self.config.layout.task_size;
        if off_page(addr) || addr > task_size || len > task_size - addr {
            return Err(Errno::EINVAL);
        }
        let range = addr..addr + page_align(len);
        if range.is_empty() {
            return Err(Errno::EINVAL);
        }
        let removal = self.check_removal(&range)?;
        self.remove(range, removal)
    }

    /// Whether a range can be removed. If something is in the way that is sealed, or cannot be
    /// split at its end, the VMA that the range begins in is split there, unless it is that one.
    #[doc(alias = "vms_gather_munmap_vmas")]
    pub(crate) fn check_removal(&mut self, range: &Range<usize>) -> Result<Removal, Errno> {
        let mut removal = Removal::default();
        let mut at = range.start;
        while let Some((vma_at, vma)) = self.first_in(&(at..range.end)) {
            let first = at == range.start && vma_at.start < at;
            if first && range.end < vma_at.end && self.map_count() >= self.config.max_map_count {
                return Err(Errno::ENOMEM);
            }
            if vma.flags.has(VmFlags::SEALED) {
                if !first {
                    self.split_unlimited(range.start)?;
                }
                return Err(Errno::EPERM);
            }
            if vma.is_whole() && (first || range.end < vma_at.end) {
                if !first {
                    self.split_unlimited(range.start)?;
                }
                return Err(Errno::EINVAL);
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
            at = vma_at.end;
            if at >= range.end {
                break;
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
        self.edit.remove(range.clone()).map_err(no_memory)?;
        if let Some(backing) = self.backing {
            backing.unmap(range);
        }
        let gone = removal.counts;
        let counts = &mut self.state.counts;
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

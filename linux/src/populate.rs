//! Making pages present before they are touched, and the groups that pages of one's own need.

use core::ops::Range;

use pervma::Platform;

use crate::backing::{Access, Backing, Part, Refusal};
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::merge;
use crate::mm::Change;

impl<B: Backing, P: Platform> Change<'_, B, P> {
    /// Populates what is mapped in `range`, as far as it can be.
    #[doc(alias = "mm_populate")]
    pub(crate) fn populate_what_can_be(&mut self, range: Range<usize>) {
        let mut at = range.start;
        while let Some((whole, _)) = self.first_in(&(at..range.end)) {
            let part = whole.start.max(at)..whole.end.min(range.end);
            at = part.end;
            // What cannot be had is had when it is touched, or never.
            let _ = self.populate_mapped(part);
        }
    }

    /// Populates what is mapped in `range`, up to the first page that cannot be had.
    #[doc(alias = "__mm_populate")]
    pub(crate) fn populate(&mut self, range: Range<usize>) -> Result<(), Errno> {
        let mut at = range.start;
        while let Some((whole, _)) = self.first_in(&(at..range.end)) {
            let part = whole.start.max(at)..whole.end.min(range.end);
            at = part.end;
            self.populate_mapped(part)?;
        }
        Ok(())
    }

    /// Populates a part of a VMA: for writing, if that makes pages of one's own.
    #[doc(alias = "populate_vma_page_range")]
    pub(crate) fn populate_mapped(&mut self, part: Range<usize>) -> Result<(), Errno> {
        let Some((_, vma)) = self.holding(part.start) else { return Ok(()) };
        let flags = vma.flags;
        if flags.has(VmFlags::LOCKONFAULT) {
            return Ok(());
        }
        if !flags.any(VmFlags::ACCESS) {
            return Err(Errno::EFAULT);
        }
        let own = flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE;
        self.populate_part(part, if own { Access::Write } else { Access::Read })
    }

    /// Makes the pages of a part of a VMA present.
    pub(crate) fn populate_part(
        &mut self,
        part: Range<usize>,
        access: Access,
    ) -> Result<(), Errno> {
        let (start, Some((whole, vma))) = (part.start, self.holding(part.start)) else {
            return Ok(());
        };
        let own = access == Access::Write && vma.flags.is_private();
        let had = match self.backing {
            Some(backing) => backing.fault(Part::new(&whole, vma, part), access),
            None => Ok(()),
        };
        if own && !is_guard_at(start, had) {
            self.give_group(start)?;
        }
        had.map_err(|refusal| match refusal {
            Refusal::Bus | Refusal::Guard { .. } => Errno::EFAULT,
            Refusal::OutOfMemory => Errno::ENOMEM,
        })
    }

    /// Gives the VMA at `addr` a group if it has none: a neighbour's, if the two may merge one day.
    #[doc(alias = "anon_vma_prepare")]
    pub(crate) fn give_group(&mut self, addr: usize) -> Result<(), Errno> {
        let Some((range, vma)) = self.holding(addr).filter(|(_, vma)| vma.anon.is_none()) else {
            return Ok(());
        };
        let prev = self.ending_at(range.start);
        let next = self.starting_at(range.end);
        let prev = prev.as_ref().map(|(range, vma)| (range, *vma));
        let next = next.as_ref().map(|(range, vma)| (range, *vma));
        let joined = merge::group_to_join(prev, (&range, vma), next);
        let group = joined.unwrap_or_else(|| self.state.new_group(false));
        let mut vma = self.edit.write(addr).map_err(|_| Errno::ENOMEM)?;
        vma.anon = Some(group);
        Ok(())
    }
}

/// Whether a guard page is the first thing that was met: then nothing has become one's own.
pub(crate) fn is_guard_at(addr: usize, had: Result<(), Refusal>) -> bool {
    had == Err(Refusal::Guard { addr })
}

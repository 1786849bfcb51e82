//! Making pages present before they are touched, and the `anon_vma` that anonymous pages need.

use core::ops::Range;

use pervma::Platform;

use crate::backing::{Access, Backing, Part, Refusal};
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::merge;
use crate::mm::Change;

impl<B: Backing, P: Platform> Change<'_, B, P> {
    /// Makes the pages of what is mapped in `range` present, except for those that fail.
    #[doc(alias = "mm_populate")]
    pub(crate) fn populate_what_can_be(&mut self, range: Range<usize>) {
        let mut at = range.start;
        while let Some((whole, _)) = self.first_in(&(at..range.end)) {
            let part = whole.start.max(at)..whole.end.min(range.end);
            at = part.end;
            // An error comes when the page is touched.
            let _ = self.populate_mapped(part);
        }
    }

    /// Makes the pages of what is mapped in `range` present, up to the first that fails.
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

    /// Makes the pages of a part of a VMA present, for writing if that makes anonymous pages.
    #[doc(alias = "populate_vma_page_range")]
    pub(crate) fn populate_mapped(&mut self, part: Range<usize>) -> Result<(), Errno> {
        let Some((_, vma)) = self.holding(part.start) else { return Ok(()) };
        let flags = vma.flags;
        if flags.any(VmFlags::LOCKONFAULT | VmFlags::IO | VmFlags::PFNMAP) {
            return Ok(());
        }
        if !flags.any(VmFlags::ACCESS) {
            return Err(Errno::EFAULT);
        }
        let copies = flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE;
        self.populate_part(part, if copies { Access::Write } else { Access::Read })
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
        let copies = access == Access::Write && vma.flags.is_private();
        let had = match self.backing {
            Some(backing) => backing.fault(Part::new(&whole, vma, part), access),
            None => Ok(()),
        };
        if copies && !is_guard_at(start, had) {
            self.prepare_anon_vma(start)?;
        }
        had.map_err(|refusal| match refusal {
            Refusal::Bus | Refusal::Guard { .. } => Errno::EFAULT,
            Refusal::OutOfMemory => Errno::ENOMEM,
        })
    }

    /// Gives the VMA at `addr` an `anon_vma` if it has none: a neighbour's, if the two may merge
    /// later.
    #[doc(alias = "anon_vma_prepare")]
    pub(crate) fn prepare_anon_vma(&mut self, addr: usize) -> Result<(), Errno> {
        let Some((range, vma)) = self.holding(addr).filter(|(_, vma)| vma.anon.is_none()) else {
            return Ok(());
        };
        let prev = self.ending_at(range.start);
        let next = self.starting_at(range.end);
        let prev = prev.as_ref().map(|(range, vma)| (range, *vma));
        let next = next.as_ref().map(|(range, vma)| (range, *vma));
        let reusable = merge::reusable_anon_vma(prev, (&range, vma), next);
        let anon = reusable.unwrap_or_else(|| self.state.new_anon_vma(false));
        let mut vma = self.edit.write(addr).map_err(|_| Errno::ENOMEM)?;
        vma.anon = Some(anon);
        Ok(())
    }
}

/// Whether the first page was a guard page, so that no anonymous page was made.
pub(crate) fn is_guard_at(addr: usize, had: Result<(), Refusal>) -> bool {
    had == Err(Refusal::Guard { addr })
}

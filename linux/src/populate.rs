//! Making pages present before they are touched, and the `anon_vma` that anonymous pages need.

use core::ops::Range;

use pervma::Platform;

use crate::abi::PAGE;
use crate::backing::{Access, Backing, Part, Refusal};
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::merge;
use crate::mm::{Change, Mm};
use crate::vma::Vma;

/// What became of the pages of a part of a VMA.
struct Populated {
    /// Where the part ends.
    end: usize,
    result: Result<(), Errno>,
}

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Makes the pages of what is mapped in `range` present, except for those that fail. The call
    /// has locked the range.
    #[doc(alias = "mm_populate")]
    pub(crate) fn populate_what_can_be(&self, range: Range<usize>) {
        let mut at = range.start;
        // An error comes when the page is touched.
        while let Ok(Some(Populated { end, .. })) = self.populate_next(at..range.end) {
            at = end;
        }
    }

    /// Makes the pages of what is mapped in `range` present, up to the first that fails. The call
    /// has locked the range.
    #[doc(alias = "__mm_populate")]
    pub(crate) fn populate(&self, range: Range<usize>) -> Result<(), Errno> {
        let mut at = range.start;
        while let Some(Populated { end, result }) = self.populate_next(at..range.end)? {
            result?;
            at = end;
        }
        Ok(())
    }

    /// Makes the pages of the first part of a VMA in `range` present, if there is one.
    fn populate_next(&self, range: Range<usize>) -> Result<Option<Populated>, Errno> {
        let change = self.core.change()?;
        let Some((whole, vma)) = change.first_in(&range) else { return Ok(None) };
        let (start, end) = (whole.start.max(range.start), whole.end.min(range.end));
        let flags = vma.flags;
        if flags.any(VmFlags::LOCKONFAULT | VmFlags::IO | VmFlags::PFNMAP) {
            return Ok(Some(Populated { end, result: Ok(()) }));
        }
        if !flags.any(VmFlags::ACCESS) {
            return Ok(Some(Populated { end, result: Err(Errno::EFAULT) }));
        }
        let copies = flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE;
        let access = if copies { Access::Write } else { Access::Read };
        let result = self.populate_part(change, start..end, access);
        Ok(Some(Populated { end, result }))
    }

    /// Makes the pages of a part of a VMA present, which a call has locked. `change` is the edit
    /// in which that was found.
    #[doc(alias = "populate_vma_page_range")]
    pub(crate) fn populate_part(
        &self,
        change: Change<'_, P>,
        part: Range<usize>,
        access: Access,
    ) -> Result<(), Errno> {
        let Some((whole, vma)) = change.holding(part.start) else { return Ok(()) };
        let (start, vma) = (part.start, vma.clone());
        drop(change);
        let had = self.backing.fault(Part::new(&whole, &vma, part), access);
        if needs_anon_vma(&vma, access) {
            let at = [start..start + PAGE, 0..0];
            self.change_without_readers(&at)?.note_populated(start, access, had)?;
        }
        had.map_err(|refusal| match refusal {
            Refusal::Bus | Refusal::Guard { .. } => Errno::EFAULT,
            Refusal::OutOfMemory => Errno::ENOMEM,
        })
    }
}

impl<P: Platform> Change<'_, P> {
    /// Notes that pages from `start` on are present, or became so before one was refused.
    pub(crate) fn note_populated(
        &mut self,
        start: usize,
        access: Access,
        had: Result<(), Refusal>,
    ) -> Result<(), Errno> {
        match self.holding(start) {
            Some((_, vma)) if needs_anon_vma(vma, access) && !is_guard_at(start, had) => {
                self.prepare_anon_vma(start)
            }
            _ => Ok(()),
        }
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

/// Whether the access makes the first anonymous page of the VMA.
pub(crate) fn needs_anon_vma(vma: &Vma, access: Access) -> bool {
    access == Access::Write && vma.flags.is_private() && vma.anon.is_none()
}

/// Whether the first page was a guard page, so that no anonymous page was made.
pub(crate) fn is_guard_at(addr: usize, had: Result<(), Refusal>) -> bool {
    had == Err(Refusal::Guard { addr })
}

//! The address that a mapping goes to.

use core::ops::Range;

use pervma::{GapSearch, Platform};

use crate::abi::{HUGE, MAP_32BIT, MAP_ABOVE4G, MAP_FIXED, MAP_SHARED, PAGE, off_page, page_align};
use crate::config::Layout;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::Change;
use crate::vma::{Source, Vma};

/// The addresses in which `MAP_32BIT` looks for a gap.
const LOW: Range<usize> = 0x4000_0000..0x8000_0000;
/// The lowest address at which `MAP_ABOVE4G` looks for a gap.
const ABOVE_4G: usize = 1 << 32;

/// The gap that is looked for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The address that was asked for, or 0.
    pub(crate) hint: usize,
    pub(crate) len: usize,
    /// Flags of `mmap`.
    pub(crate) flags: u64,
    pub(crate) source: &'a Source,
    /// The first page of the file.
    pub(crate) page_offset: u64,
}

impl<P: Platform> Change<'_, P> {
    /// The address that a mapping goes to, with the checks that belong to it.
    #[doc(alias = "get_unmapped_area")]
    pub(crate) fn choose(&self, wanted: Wanted<'_>) -> Result<usize, Errno> {
        let layout = &self.state.config.layout;
        let Wanted { hint, len, flags, source, .. } = wanted;
        if len > layout.task_size {
            return Err(Errno::ENOMEM);
        }
        let aligned = match source {
            Source::File(file) => len >= HUGE && file.facts().huge_aligned,
            Source::Zero(_) => len >= HUGE && flags & MAP_SHARED == 0,
            Source::SharedAnonymous(_) | Source::Special(_) => false,
            Source::Anonymous => hint == 0 && len.is_multiple_of(HUGE),
        };
        let huge =
            if aligned && self.state.config.huge_pages { self.huge_gap(wanted) } else { None };
        let addr = match huge {
            Some(addr) => addr,
            None => self.gap(wanted).ok_or(Errno::ENOMEM)?,
        };
        // Only an address that was asked for can be so high.
        if let Some(error) = Errno::of_address(addr) {
            return Err(error);
        }
        if addr > layout.task_size - len {
            return Err(Errno::ENOMEM);
        }
        if off_page(addr) {
            return Err(Errno::EINVAL);
        }
        if addr < self.state.config.mmap_min_addr && !self.state.config.may_map_low {
            return Err(Errno::EPERM);
        }
        Ok(addr)
    }

    /// Checks whether something may be at this place at all.
    pub(crate) fn check_fixed(&self, range: Range<usize>) -> Result<(), Errno> {
        let (hint, len, source) = (range.start, range.end - range.start, &Source::Anonymous);
        self.choose(Wanted { hint, len, flags: MAP_FIXED, source, page_offset: 0 }).map(drop)
    }

    /// A gap in which a huge page of the source fits on a huge page of memory.
    #[doc(alias = "thp_get_unmapped_area")]
    fn huge_gap(&self, wanted: Wanted<'_>) -> Option<usize> {
        let offset = match wanted.source {
            Source::Anonymous => 0,
            _ => usize::try_from(wanted.page_offset).ok()?.checked_mul(PAGE)?,
        };
        let end = offset.checked_add(wanted.len)?;
        if end.checked_sub(offset.checked_next_multiple_of(HUGE)?)? < HUGE {
            return None;
        }
        let padded = wanted.len.checked_add(HUGE)?;
        let addr = self.gap(Wanted { len: padded, ..wanted })?;
        if addr == wanted.hint {
            return (addr != 0).then_some(addr);
        }
        let shift = offset.wrapping_sub(addr) & (HUGE - 1);
        Some(addr + if shift == 0 { HUGE } else { shift })
    }

    /// The gap at the address asked for, or else the highest below `mmap_base`, or else the lowest.
    #[doc(alias = "arch_get_unmapped_area_topdown")]
    fn gap(&self, wanted: Wanted<'_>) -> Option<usize> {
        let layout = &self.state.config.layout;
        let Wanted { hint, len, flags, .. } = wanted;
        if len > layout.task_size {
            return None;
        }
        if flags & MAP_FIXED != 0 {
            return Some(hint);
        }
        if flags & MAP_32BIT != 0 {
            return self.gap_from_below(LOW, wanted);
        }
        let at = hint & !(PAGE - 1);
        let fits = at.checked_add(len).is_some_and(|end| end <= layout.task_size);
        if at != 0 && fits && self.is_clear(at, len) {
            return Some(at);
        }
        let lowest = if flags & MAP_ABOVE4G != 0 { ABOVE_4G } else { PAGE };
        let above =
            self.highest_gap(lowest.max(self.state.config.lowest_choice)..layout.mmap_base, len);
        above.or_else(|| self.gap_from_below(layout.mmap_legacy_base..layout.task_size, wanted))
    }

    #[doc(alias = "arch_get_unmapped_area")]
    fn gap_from_below(&self, bounds: Range<usize>, wanted: Wanted<'_>) -> Option<usize> {
        let Wanted { hint, len, .. } = wanted;
        let last = bounds.end.checked_sub(len)?;
        let at = page_align(hint);
        if hint != 0 && at <= last && self.is_clear(at, len) {
            return Some(at);
        }
        self.lowest_gap(bounds.start.max(self.state.config.lowest_choice)..bounds.end, len)
    }

    /// Whether `len` bytes at `at` are free, and far enough below a stack.
    fn is_clear(&self, at: usize, len: usize) -> bool {
        self.first_from(at).is_none_or(|(range, vma)| {
            at + len <= guarded_start(&self.state.config.layout, &range, vma)
        })
    }

    #[doc(alias = "unmapped_area_topdown")]
    fn highest_gap(&self, mut bounds: Range<usize>, len: usize) -> Option<usize> {
        loop {
            if bounds.start >= bounds.end {
                return None;
            }
            let search = GapSearch::new(len).within(bounds.clone()).top_down();
            let gap = self.edit.find_gap(&search).ok()?;
            let next = self.first_from(gap.end);
            let guarded =
                next.map(|(range, vma)| guarded_start(&self.state.config.layout, &range, vma));
            match guarded {
                Some(start) if start < gap.end => bounds.end = start,
                _ => return Some(gap.start),
            }
        }
    }

    #[doc(alias = "unmapped_area")]
    fn lowest_gap(&self, mut bounds: Range<usize>, len: usize) -> Option<usize> {
        loop {
            if bounds.start >= bounds.end {
                return None;
            }
            let gap = self.edit.find_gap(&GapSearch::new(len).within(bounds.clone())).ok()?;
            match self.first_from(gap.start) {
                Some((range, vma))
                    if guarded_start(&self.state.config.layout, &range, vma) < gap.end - 1 =>
                {
                    bounds.start = range.end;
                }
                _ => return Some(gap.start),
            }
        }
    }
}

/// The start of what is kept free below a VMA that is a stack, and of any other VMA its own start.
#[doc(alias = "vm_start_gap")]
pub(crate) fn guarded_start(layout: &Layout, range: &Range<usize>, vma: &Vma) -> usize {
    if vma.flags.has(VmFlags::GROWSDOWN) {
        range.start.saturating_sub(layout.stack_guard_gap)
    } else {
        range.start
    }
}

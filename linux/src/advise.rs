//! `madvise`, and names for anonymous memory.

use alloc::sync::Arc;
use core::ops::Range;

use pervma::Platform;

use crate::abi::*;
use crate::backing::{Access, Backing, Part};
use crate::call::{EVERYTHING, Scope};
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Mm};
use crate::vma::{Source, Vma};

/// The longest name, with the byte that ends it.
const NAME_SIZE: usize = 80;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Takes advice about a range. Some advice changes how its mappings are treated, and the rest
    /// goes to the [`Backing`].
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, VmFlags, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// mm.madvise(addr, 4096, MADV_DONTFORK)?;
    /// assert!(mm.lookup(addr)?.is_some_and(|(_, vma)| vma.flags.has(VmFlags::DONTCOPY)));
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call. A hole is reported after everything else was done.
    #[doc(alias = "do_madvise")]
    pub fn madvise(&self, addr: usize, len: usize, advice: i32) -> Result<(), Errno> {
        let Some(range) = check_arguments(addr, len, self.is_known(advice))? else {
            return Ok(());
        };
        match advice {
            MADV_HWPOISON | MADV_SOFT_OFFLINE if !self.config().may_poison => Err(Errno::EPERM),
            MADV_HWPOISON | MADV_SOFT_OFFLINE => self.each_part(
                &range,
                |change, at| change.part_to_damage(at, range.end),
                |change, Found { part, vma, .. }| {
                    self.populate_part(change, part.clone(), Access::Read)?;
                    self.backing.advise(Part::new(&part, &vma, part.clone()), advice)
                },
            ),
            MADV_POPULATE_READ => self.fault_in(&range, Access::Read),
            MADV_POPULATE_WRITE => self.fault_in(&range, Access::Write),
            _ if is_about_pages(advice) => self.each_part(
                &range,
                |change, at| change.part_to_advise(at, range.end, advice),
                |change, Found { part, vma, .. }| {
                    drop(change);
                    self.backing.advise(Part::new(&part, &vma, part.clone()), advice)
                },
            ),
            _ => self.change(&Scope::new(range.clone()), |change| {
                change.advise_all(range.clone(), |change, part| change.relabel_as(part, advice))
            }),
        }
    }

    /// Makes pages present, as if each had been touched.
    #[doc(alias = "madvise_populate")]
    fn fault_in(&self, range: &Range<usize>, access: Access) -> Result<(), Errno> {
        self.each_part(
            range,
            |change, at| change.part_to_fault_in(at, range.end, access),
            |change, Found { part, .. }| self.populate_part(change, part, access),
        )
    }

    /// Has the backing do something about each VMA of a range, one after the other: `find` looks
    /// for the part at an address or behind it, and `ask` asks. Holes are reported at the end,
    /// other errors at once. In strict mode all parts are looked for before anything is asked.
    #[doc(alias = "madvise_walk_vmas")]
    fn each_part(
        &self,
        range: &Range<usize>,
        find: impl Fn(&mut Change<'_, P>, usize) -> Result<Found, Errno>,
        ask: impl Fn(Change<'_, P>, Found) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let is_strict = self.is_strict();
        let _lock = self.lock_range(if is_strict { EVERYTHING } else { range.clone() })?;
        if is_strict {
            let change = self.core.change()?;
            let find_all = |trial: &mut Change<'_, P>| {
                let mut at = range.start;
                while at < range.end {
                    at = find(trial, at)?.part.end;
                }
                Ok(())
            };
            change.try_out(&change.snapshot(core::slice::from_ref(range))?, find_all)?.1?;
        }
        let (mut at, mut result, mut settings) = (range.start, Ok(()), None);
        while at < range.end {
            let mut change = self.change_of_first_in(at..range.end)?;
            let settings = settings.get_or_insert_with(|| change.state.settings());
            change.state.go_by(settings);
            let found = find(&mut change, at)?;
            at = found.part.end;
            if found.is_behind_hole {
                result = Err(Errno::ENOMEM);
            }
            ask(change, found)?;
        }
        result
    }

    /// Begins an edit that can change the first VMA in a range.
    fn change_of_first_in(&self, range: Range<usize>) -> Result<Change<'_, P>, Errno> {
        let mut at = range.start;
        loop {
            let change = self.change_without_readers(&[at..at + PAGE, 0..0])?;
            match change.first_in(&range) {
                Some((first, _)) if first.start > at => at = first.start,
                _ => return Ok(change),
            }
        }
    }

    /// Names anonymous memory, or takes its name away (`prctl(PR_SET_VMA_ANON_NAME)`).
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// mm.set_anon_name(addr, 4096, Some("arena"))?;
    /// assert!(mm.maps()?.contains("[anon:arena]"));
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call; `EINVAL` on a kernel without such names.
    #[doc(alias = "set_anon_vma_name")]
    pub fn set_anon_name(&self, addr: usize, len: usize, name: Option<&str>) -> Result<(), Errno> {
        let valid = |byte: u8| (0x20..0x7f).contains(&byte) && !b"\\`$[]".contains(&byte);
        if !self.config().anon_names
            || name.is_some_and(|name| name.len() >= NAME_SIZE || !name.bytes().all(valid))
        {
            return Err(Errno::EINVAL);
        }
        let Some(range) = check_arguments(addr, len, true)? else { return Ok(()) };
        let name: Option<Arc<str>> = name.map(Arc::from);
        self.change(&Scope::new(range.clone()), |change| {
            change.advise_all(range.clone(), |change, part| change.name(part, name.clone()))
        })
    }

    fn is_known(&self, advice: i32) -> bool {
        match advice {
            MADV_NORMAL..=MADV_DONTNEED
            | MADV_FREE..=MADV_UNMERGEABLE
            | MADV_DONTDUMP..=MADV_DONTNEED_LOCKED
            | MADV_GUARD_INSTALL
            | MADV_GUARD_REMOVE => true,
            MADV_HUGEPAGE | MADV_NOHUGEPAGE | MADV_COLLAPSE => self.config().huge_pages,
            MADV_HWPOISON | MADV_SOFT_OFFLINE => self.config().memory_failure,
            _ => false,
        }
    }
}

/// The range in whole pages, or `None` if it is empty.
fn check_arguments(addr: usize, len: usize, known: bool) -> Result<Option<Range<usize>>, Errno> {
    let aligned = page_align(len);
    if !known || off_page(addr) || (len != 0 && aligned == 0) {
        return Err(Errno::EINVAL);
    }
    let end = addr.checked_add(aligned).ok_or(Errno::EINVAL)?;
    Ok((addr != end).then_some(addr..end))
}

impl<P: Platform> Change<'_, P> {
    /// Goes through the VMAs of a range. Holes are reported at the end, other errors at once.
    /// `each` returns the whole VMA that the part is in afterwards.
    #[doc(alias = "madvise_walk_vmas")]
    fn advise_all(
        &mut self,
        range: Range<usize>,
        each: impl Fn(&mut Self, Range<usize>) -> Result<Range<usize>, Errno>,
    ) -> Result<(), Errno> {
        let (mut at, mut result) = (range.start, Ok(()));
        while at < range.end {
            let Some((whole, _)) = self.first_in(&(at..range.end)) else {
                return Err(Errno::ENOMEM);
            };
            if at < whole.start {
                result = Err(Errno::ENOMEM);
            }
            let part = at.max(whole.start)..whole.end.min(range.end);
            at = each(self, part)?.end;
        }
        result
    }

    /// Gives a part of a VMA the flags that the advice leads to.
    #[doc(alias = "madvise_vma_behavior")]
    fn relabel_as(&mut self, part: Range<usize>, advice: i32) -> Result<Range<usize>, Errno> {
        let (whole, vma) = self.holding(part.start).ok_or(Errno::ENOMEM)?;
        check_seal(vma, advice)?;
        let vma = vma.from(part.start - whole.start);
        let flags = new_flags(&vma, advice)?;
        self.relabel(part, Vma { flags, ..vma })
    }

    /// Gives a part of a VMA other flags or another name. Where memory is missing, the error says
    /// that it may succeed later.
    #[doc(alias = "madvise_update_vma")]
    fn relabel(&mut self, part: Range<usize>, vma: Vma) -> Result<Range<usize>, Errno> {
        match self.holding(part.start) {
            Some((_, old)) if old.flags == vma.flags && old.name == vma.name => Ok(part),
            _ => self.modify(part, vma).map_err(|error| match error {
                Errno::ENOMEM => Errno::EAGAIN,
                error => error,
            }),
        }
    }

    fn name(&mut self, part: Range<usize>, name: Option<Arc<str>>) -> Result<Range<usize>, Errno> {
        let (whole, vma) = self.holding(part.start).ok_or(Errno::ENOMEM)?;
        if matches!(vma.source, Source::File(_) | Source::Zero(_)) {
            return Err(Errno::EBADF);
        }
        let vma = vma.from(part.start - whole.start);
        self.relabel(part, Vma { name, ..vma })
    }

    /// The part of the first VMA between `at` and `end`, with the checks of advice about pages that
    /// come before the backing.
    fn part_to_advise(&mut self, at: usize, end: usize, advice: i32) -> Result<Found, Errno> {
        let (whole, vma) = self.first_in(&(at..end)).ok_or(Errno::ENOMEM)?;
        check_seal(vma, advice)?;
        let part = at.max(whole.start)..whole.end.min(end);
        let vma = vma.from(part.start - whole.start);
        let locked = vma.flags.has(VmFlags::LOCKED);
        let (special, device) = (VmFlags::SPECIAL, VmFlags::PFNMAP);
        match advice {
            MADV_GUARD_INSTALL | MADV_GUARD_REMOVE if vma.flags.any(special) => {
                return Err(Errno::EINVAL);
            }
            MADV_DONTNEED | MADV_DONTNEED_LOCKED | MADV_COLD | MADV_PAGEOUT
                if vma.flags.has(device) =>
            {
                return Err(Errno::EINVAL);
            }
            MADV_DONTNEED | MADV_COLD | MADV_PAGEOUT | MADV_GUARD_INSTALL if locked => {
                return Err(Errno::EINVAL);
            }
            MADV_FREE if locked || !vma.is_anonymous() => return Err(Errno::EINVAL),
            MADV_REMOVE if locked || !vma.has_file() => return Err(Errno::EINVAL),
            MADV_REMOVE if !vma.flags.has(VmFlags::SHARED | VmFlags::MAYWRITE) => {
                return Err(Errno::EACCES);
            }
            MADV_COLLAPSE if !may_collapse(&whole, &vma) => return Err(Errno::EINVAL),
            MADV_GUARD_INSTALL => self.may_guard(part.start, vma.is_anonymous())?,
            _ => {}
        }
        Ok(Found { is_behind_hole: at < part.start, part, vma })
    }

    /// Notes that there may be guard pages in the VMA at `addr` from now on.
    fn may_guard(&mut self, addr: usize, anonymous: bool) -> Result<(), Errno> {
        if self.state.config.marks_guards {
            let mut vma = self.edit.write(addr).map_err(|_| Errno::ENOMEM)?;
            vma.flags |= VmFlags::MAYBE_GUARD;
        }
        if anonymous || !self.state.config.marks_guards {
            self.prepare_anon_vma(addr)
        } else {
            Ok(())
        }
    }

    /// The part of a VMA at `at` that is to be damaged, which is done for tests: it must be mapped
    /// and readable.
    #[doc(alias = "madvise_inject_error")]
    fn part_to_damage(&self, at: usize, end: usize) -> Result<Found, Errno> {
        let found = self.part_at(at, end).ok_or(Errno::EFAULT)?;
        if found.vma.flags.has(VmFlags::READ) { Ok(found) } else { Err(Errno::EFAULT) }
    }

    /// The part of a VMA at `at` whose pages are to be present.
    fn part_to_fault_in(&self, at: usize, end: usize, access: Access) -> Result<Found, Errno> {
        let found = self.part_at(at, end).ok_or(Errno::ENOMEM)?;
        let needed = if access == Access::Write { VmFlags::WRITE } else { VmFlags::READ };
        if !found.vma.flags.has(needed) || found.vma.flags.any(VmFlags::IO | VmFlags::PFNMAP) {
            return Err(Errno::EINVAL);
        }
        Ok(found)
    }

    fn part_at(&self, at: usize, end: usize) -> Option<Found> {
        let (whole, vma) = self.holding(at)?;
        let vma = vma.from(at - whole.start);
        Some(Found { part: at..whole.end.min(end), vma, is_behind_hole: false })
    }
}

/// A part of a VMA that the backing is asked about.
struct Found {
    part: Range<usize>,
    /// The part, as a VMA of its own.
    vma: Vma,
    is_behind_hole: bool,
}

/// Refuses advice that would destroy what is sealed.
fn check_seal(vma: &Vma, advice: i32) -> Result<(), Errno> {
    let refused = vma.flags.has(VmFlags::SEALED) && is_lost_by(advice, vma);
    if refused { Err(Errno::EPERM) } else { Ok(()) }
}

/// Whether the advice would destroy the contents of a sealed VMA that cannot be written.
#[doc(alias = "can_madvise_modify")]
fn is_lost_by(advice: i32, vma: &Vma) -> bool {
    let discards = matches!(
        advice,
        MADV_FREE
            | MADV_DONTNEED
            | MADV_DONTNEED_LOCKED
            | MADV_REMOVE
            | MADV_DONTFORK
            | MADV_WIPEONFORK
            | MADV_GUARD_INSTALL
    );
    discards && vma.is_anonymous() && !vma.flags.has(VmFlags::WRITE)
}

/// Whether a huge page fits into the VMA at all.
#[doc(alias = "thp_vma_allowable_order")]
fn may_collapse(whole: &Range<usize>, vma: &Vma) -> bool {
    let fits = whole
        .start
        .checked_next_multiple_of(HUGE)
        .is_some_and(|start| start.checked_add(HUGE).is_some_and(|end| end <= whole.end));
    fits && !vma.flags.any(VmFlags::NOHUGEPAGE | VmFlags::SPECIAL)
}

/// Whether the advice is about pages, and leads to no other flags.
fn is_about_pages(advice: i32) -> bool {
    !matches!(
        advice,
        MADV_NORMAL
            | MADV_RANDOM
            | MADV_SEQUENTIAL
            | MADV_DONTFORK..=MADV_DOFORK
            | MADV_MERGEABLE..=MADV_DODUMP
            | MADV_WIPEONFORK
            | MADV_KEEPONFORK
    )
}

/// The flags that the advice leads to.
fn new_flags(vma: &Vma, advice: i32) -> Result<VmFlags, Errno> {
    let flags = vma.flags;
    let reading = VmFlags::SEQ_READ | VmFlags::RAND_READ;
    let huge = VmFlags::HUGEPAGE | VmFlags::NOHUGEPAGE;
    let never_merged = VmFlags::SHARED | VmFlags::MAYSHARE | VmFlags::DROPPABLE | VmFlags::SPECIAL;
    Ok(match advice {
        MADV_NORMAL => flags & !reading,
        MADV_SEQUENTIAL => (flags & !reading) | VmFlags::SEQ_READ,
        MADV_RANDOM => (flags & !reading) | VmFlags::RAND_READ,
        MADV_DONTFORK => flags | VmFlags::DONTCOPY,
        MADV_DOFORK if flags.has(VmFlags::IO) => return Err(Errno::EINVAL),
        MADV_DOFORK => flags & !VmFlags::DONTCOPY,
        MADV_WIPEONFORK if vma.has_file() => return Err(Errno::EINVAL),
        MADV_WIPEONFORK => flags | VmFlags::WIPEONFORK,
        MADV_KEEPONFORK | MADV_DODUMP if flags.has(VmFlags::DROPPABLE) => {
            return Err(Errno::EINVAL);
        }
        MADV_DODUMP if flags.any(VmFlags::SPECIAL) => return Err(Errno::EINVAL),
        MADV_KEEPONFORK => flags & !VmFlags::WIPEONFORK,
        MADV_DONTDUMP => flags | VmFlags::DONTDUMP,
        MADV_DODUMP => flags & !VmFlags::DONTDUMP,
        MADV_MERGEABLE if flags.any(never_merged) => flags,
        MADV_MERGEABLE => flags | VmFlags::MERGEABLE,
        MADV_UNMERGEABLE => flags & !VmFlags::MERGEABLE,
        MADV_HUGEPAGE => (flags & !huge) | VmFlags::HUGEPAGE,
        MADV_NOHUGEPAGE => (flags & !huge) | VmFlags::NOHUGEPAGE,
        _ => flags,
    })
}

//! `mlock`, `mlock2`, `munlock`, `mlockall`, `munlockall`.

use core::ops::Range;

use pervma::Platform;

use crate::abi::*;
use crate::backing::Backing;
use crate::call::{EVERYTHING, Plan, Scope};
use crate::counts::in_pages;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Mm};
use crate::vma::Vma;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Locks a range into memory and makes its pages present.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// mm.mlock(addr, 4096)?;
    /// assert_eq!(mm.counts().locked, 1);
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call. What was locked before the cause of an error stays locked.
    #[doc(alias = "do_mlock")]
    pub fn mlock(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.mlock_as(addr, len, VmFlags::LOCKED)
    }

    /// Locks a range as [`mlock`](Self::mlock) does; with `MLOCK_ONFAULT` pages are locked when
    /// they are touched.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// assert_eq!(mm.mlock2(0x1000, 4096, 2), Err(Errno::EINVAL));
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`mlock`](Self::mlock), and `EINVAL` for unknown flags.
    pub fn mlock2(&self, addr: usize, len: usize, flags: i32) -> Result<(), Errno> {
        match flags {
            0 => self.mlock(addr, len),
            MLOCK_ONFAULT => self.mlock_as(addr, len, VmFlags::LOCKED_MASK),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Unlocks a range.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// assert_eq!(mm.munlock(0x1000, 4096), Err(Errno::ENOMEM));
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call. What was unlocked before the cause of an error stays unlocked.
    pub fn munlock(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let range = whole_pages(addr, len);
        let scope = Scope::new(range.clone());
        self.change(&scope, |change| change.apply_lock(&range, VmFlags::default()))
    }

    fn mlock_as(&self, addr: usize, len: usize, flags: VmFlags) -> Result<(), Errno> {
        let range = whole_pages(addr, len);
        // One that wraps around is looked at from its start on.
        let scope = if range.end < range.start { EVERYTHING } else { range.clone() };
        let more = pages(scope.end - scope.start);
        let scope = Scope { goes_on: true, locks: true, more, ..Scope::new(scope) };
        self.call(
            &scope,
            Plan::Nothing,
            |change| change.mlock(&range, flags),
            |()| {
                // POSIX wants other numbers for a page that cannot be made present.
                self.populate(range.clone()).map_err(|error| match error {
                    Errno::ENOMEM => Errno::EAGAIN,
                    _ => Errno::ENOMEM,
                })
            },
        )
    }

    /// Locks all mappings that there are, all that there will be, or both.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// mm.mlockall(MCL_FUTURE)?;
    /// mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// assert_eq!(mm.counts().locked, 1);
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call.
    #[doc(alias = "apply_mlockall_flags")]
    pub fn mlockall(&self, flags: i32) -> Result<(), Errno> {
        let known = MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT;
        if flags & !known != 0 || flags & (MCL_CURRENT | MCL_FUTURE) == 0 {
            return Err(Errno::EINVAL);
        }
        let scope = Scope { goes_on: true, ..Scope::new(EVERYTHING) };
        let call = |change: &mut Change<'_, P>| {
            if !change.can_lock() {
                return Err(Errno::EPERM);
            }
            let limit = in_pages(change.state.config.limits.locked);
            let within = change.state.counts.total <= limit || change.state.config.may_lock;
            if flags & MCL_CURRENT != 0 && !within {
                return Err(Errno::ENOMEM);
            }
            change.mlockall(flags);
            Ok(())
        };
        self.call(&scope, Plan::Nothing, call, |()| {
            if flags & MCL_CURRENT != 0 {
                self.populate_what_can_be(0..self.task_size);
            }
            Ok(())
        })
    }

    /// Unlocks all mappings, and locks none that there will be.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    ///
    /// assert_eq!(Mm::new(NoBacking, Config::default()).munlockall(), Ok(()));
    /// ```
    ///
    /// # Errors
    ///
    /// None of the system call.
    pub fn munlockall(&self) -> Result<(), Errno> {
        self.change(&Scope::new(EVERYTHING), |change| {
            change.mlockall(0);
            Ok(())
        })
    }
}

/// The pages that the bytes lie in. Where the range wraps around, it ends before it starts.
fn whole_pages(addr: usize, len: usize) -> Range<usize> {
    let start = addr & !(PAGE - 1);
    start..start.wrapping_add(page_align(len.wrapping_add(addr - start)))
}

/// A number truncated to an `int`. Linux counts pages in one here, so that 8 TiB or more at a time
/// are counted wrong.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "as in Linux")]
fn as_int(count: usize) -> i32 {
    count as i32
}

impl<P: Platform> Change<'_, P> {
    fn mlock(&mut self, range: &Range<usize>, flags: VmFlags) -> Result<(), Errno> {
        if !self.can_lock() {
            return Err(Errno::EPERM);
        }
        let limit = in_pages(self.state.config.limits.locked);
        let count = pages(range.end.wrapping_sub(range.start));
        let mut locked = count.wrapping_add(self.state.counts.locked);
        if locked > limit && !self.state.config.may_lock {
            locked = locked.wrapping_sub(self.locked_in(range));
            if locked > limit {
                return Err(Errno::ENOMEM);
            }
        }
        self.apply_lock(range, flags)
    }

    /// The number of locked pages in a range.
    #[doc(alias = "count_mm_mlocked_page_nr")]
    fn locked_in(&self, range: &Range<usize>) -> usize {
        let end = if range.end < range.start { usize::MAX } else { range.end };
        let (mut at, mut count) = (range.start, 0);
        while let Some((whole, vma)) = self.first_in(&(at..end)) {
            if vma.flags.has(VmFlags::LOCKED) {
                count += pages(whole.end.min(end) - whole.start.max(range.start));
            }
            at = whole.end;
        }
        count
    }

    #[doc(alias = "apply_vma_lock_flags")]
    fn apply_lock(&mut self, range: &Range<usize>, flags: VmFlags) -> Result<(), Errno> {
        if range.end < range.start {
            return Err(Errno::EINVAL);
        }
        let mut at = range.start;
        while at < range.end {
            let (whole, vma) = self.holding(at).ok_or(Errno::ENOMEM)?;
            let part = at..whole.end.min(range.end);
            let vma = vma.from(at - whole.start);
            at = self.lock_one(part, vma, flags)?.end;
        }
        Ok(())
    }

    /// Returns the whole VMA that the part is in now.
    #[doc(alias = "mlock_fixup")]
    fn lock_one(
        &mut self,
        part: Range<usize>,
        mut vma: Vma,
        flags: VmFlags,
    ) -> Result<Range<usize>, Errno> {
        let old = vma.flags;
        vma.flags = (old & !VmFlags::LOCKED_MASK) | flags;
        if vma.flags == old || old.any(VmFlags::DROPPABLE | VmFlags::SPECIAL) {
            return Ok(part);
        }
        let whole = self.modify(part.clone(), vma)?;
        let count = as_int(pages(part.end - part.start));
        let more = match (old.has(VmFlags::LOCKED), flags.has(VmFlags::LOCKED)) {
            (_, false) => count.wrapping_neg(),
            (false, true) => count,
            (true, true) => 0,
        };
        let locked = &mut self.state.counts.locked;
        *locked = locked.wrapping_add_signed(more as isize);
        Ok(whole)
    }

    fn mlockall(&mut self, flags: i32) {
        let wanted = if flags & MCL_ONFAULT != 0 { VmFlags::LOCKED_MASK } else { VmFlags::LOCKED };
        let of = |when: i32| if flags & when != 0 { wanted } else { VmFlags::default() };
        self.state.config.future = of(MCL_FUTURE);
        if flags & MCL_FUTURE != 0 && flags & MCL_CURRENT == 0 {
            return;
        }
        let mut at = 0;
        while let Some((whole, vma)) = self.first_from(at) {
            let vma = vma.clone();
            // Errors are ignored.
            at = self.lock_one(whole.clone(), vma, of(MCL_CURRENT)).unwrap_or(whole).end;
        }
    }
}

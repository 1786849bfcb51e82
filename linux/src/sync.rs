//! `msync` and `mincore`.

use pervma::Platform;

use crate::abi::*;
use crate::backing::{Access, Backing, Part};
use crate::call::EVERYTHING;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::Mm;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Writes the shared mappings of files in a range back.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking, abi::MS_SYNC};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// assert_eq!(mm.msync(0x1000, 4096, MS_SYNC), Err(Errno::ENOMEM));
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call, and what [`Backing::sync`] returns.
    pub fn msync(&self, addr: usize, len: usize, flags: i32) -> Result<(), Errno> {
        let known = MS_ASYNC | MS_INVALIDATE | MS_SYNC;
        if flags & !known != 0
            || off_page(addr)
            || flags & (MS_ASYNC | MS_SYNC) == MS_ASYNC | MS_SYNC
        {
            return Err(Errno::EINVAL);
        }
        let end = addr.checked_add(page_align(len)).ok_or(Errno::ENOMEM)?;
        let (mut at, mut result) = (addr, Ok(()));
        let range = addr..end;
        let _lock = self.lock_range(range)?;
        while at < end {
            let change = self.core.change()?;
            let (whole, vma) = change.first_from(at).ok_or(Errno::ENOMEM)?;
            if at < whole.start {
                if flags == MS_ASYNC || whole.start >= end {
                    return Err(Errno::ENOMEM);
                }
                at = whole.start;
                result = Err(Errno::ENOMEM);
            }
            if flags & MS_INVALIDATE != 0 && vma.flags.has(VmFlags::LOCKED) {
                return Err(Errno::EBUSY);
            }
            let is_written =
                flags & MS_SYNC != 0 && !vma.is_anonymous() && vma.flags.has(VmFlags::SHARED);
            let part = at..whole.end.min(end);
            at = whole.end;
            if is_written && !B::IDLE {
                let vma = vma.clone();
                drop(change);
                self.backing.sync(Part::new(&whole, &vma, part))?;
            }
        }
        result
    }

    /// Makes the checks of `mincore` and writes to the result vector, which is at the address
    /// `vector` and takes a page for each 4096 pages asked about. The caller finds out which pages
    /// are present.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// assert_eq!(mm.mincore(0x1000, 4096, 0), Err(Errno::ENOMEM));
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call.
    pub fn mincore(&self, addr: usize, len: usize, vector: usize) -> Result<(), Errno> {
        let task_size = self.task_size;
        let reaches =
            |start: usize, len: usize| start.checked_add(len).is_none_or(|end| end > task_size);
        if off_page(addr) {
            return Err(Errno::EINVAL);
        }
        if reaches(addr, len) {
            return Err(Errno::ENOMEM);
        }
        let count = len.div_ceil(PAGE);
        if reaches(vector, count) {
            return Err(Errno::EFAULT);
        }
        if !self.is_strict() {
            return self.answer_mincore(addr, count, vector, false);
        }
        let _lock = self.lock_range(EVERYTHING)?;
        let before = self.core.change()?.snapshot(&[EVERYTHING])?;
        self.answer_mincore(addr, count, vector, true).or_else(|error| {
            self.restore(before)?;
            Err(error)
        })
    }

    /// Touches the result vector, where the map has all that is asked about. In Linux other calls
    /// may come in between, too.
    fn answer_mincore(
        &self,
        addr: usize,
        count: usize,
        vector: usize,
        alone: bool,
    ) -> Result<(), Errno> {
        let (mut done, end) = (0, addr + count * PAGE);
        while done < count {
            let at = addr + done * PAGE;
            let (range, _) = self.lookup(at)?.ok_or(Errno::ENOMEM)?;
            // One VMA, or one page of answers, at a time.
            let some = pages(range.end.min(end) - at).min(PAGE);
            let answers = vector + done..vector + done + some;
            let mut page = answers.start;
            while page < answers.end {
                self.touch(page, Access::Write, alone).map_err(|_| Errno::EFAULT)?;
                page = (page & !(PAGE - 1)) + PAGE;
            }
            done += some;
        }
        Ok(())
    }
}

//! `brk`.

use pervma::Platform;

use crate::abi::*;
use crate::backing::Backing;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, MergeWith, Mm};
use crate::place::guarded_start;
use crate::vma::{Source, Vma};

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Moves the end of the heap and returns where it is then: where it was, if it cannot be moved.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let heap = mm.brk(0);
    /// assert_eq!(mm.brk(heap + 10), heap + 10);
    /// assert!(mm.maps()?.contains("[heap]"));
    /// # Ok::<(), pervma_linux::NotNow>(())
    /// ```
    pub fn brk(&self, brk: usize) -> usize {
        let moved = self.change(|change| change.brk(brk));
        moved.unwrap_or_else(|_| self.core.state.read().brk)
    }
}

impl<B: Backing, P: Platform> Change<'_, B, P> {
    fn brk(&mut self, brk: usize) -> Result<usize, Errno> {
        let layout = self.config.layout;
        let heap = brk.checked_sub(layout.start_brk).ok_or(Errno::EINVAL)?;
        let data = self.state.limits.data;
        if data != u64::MAX && heap.wrapping_add(layout.data_size) as u64 > data {
            return Err(Errno::ENOMEM);
        }
        let (new, old) = (page_align(brk), page_align(self.state.brk));
        if new == old {
            self.state.brk = brk;
            return Ok(brk);
        }
        if brk <= self.state.brk {
            self.first_in(&(new..old)).ok_or(Errno::EINVAL)?;
            let removal = self.check_removal(&(new..old))?;
            self.remove(new..old, removal)?;
            self.state.brk = brk;
            return Ok(brk);
        }
        let len = new.checked_sub(old).ok_or(Errno::ENOMEM)?;
        if len > layout.task_size || old > layout.task_size - len {
            return Err(Errno::ENOMEM);
        }
        if !self.may_lock(self.state.future, len) {
            return Err(Errno::EAGAIN);
        }
        let next = self.first_in(&(old..(new + PAGE).saturating_add(layout.stack_guard_gap)));
        let free =
            next.is_none_or(|(range, vma)| new + PAGE <= guarded_start(&layout, &range, vma));
        if !free {
            return Err(Errno::ENOMEM);
        }
        let flags =
            VmFlags::READ | VmFlags::WRITE | VmFlags::MAYALL | VmFlags::ACCOUNT | self.state.future;
        if !self.may_expand(flags, pages(len)) || self.map_count() > self.config.max_map_count {
            return Err(Errno::ENOMEM);
        }
        self.may_commit(pages(len))?;
        let page_offset = pages(old) as u64;
        let vma = Vma { flags, page_offset, source: Source::Anonymous, anon: None, name: None };
        // What lies below the heap is not looked at.
        let merge_with =
            if old > layout.start_brk { MergeWith::LeftOnly } else { MergeWith::Neither };
        self.map(old..new, vma, merge_with)?;
        self.count_new(flags, len);
        self.state.brk = brk;
        if flags.has(VmFlags::LOCKED) {
            self.populate_what_can_be(old..new);
        }
        Ok(brk)
    }
}

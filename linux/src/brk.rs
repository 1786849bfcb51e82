//! `brk`.

use core::ops::Range;

use pervma::Platform;

use crate::abi::*;
use crate::asked::Asked;
use crate::backing::{Backing, Work};
use crate::call::{EVERYTHING, HEAP_END, Plan, Scope};
use crate::config::Layout;
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
        loop {
            let Layout { brk: old, start_brk, .. } = self.core.shown.config().layout;
            if brk < start_brk {
                return old;
            }
            let (low, high) = (page_align(brk.min(old)), page_align(brk.max(old)));
            let range = if low <= high { low..high } else { EVERYTHING };
            let scope = Scope {
                ranges: [range, HEAP_END],
                more: pages(high.saturating_sub(low)),
                maps: true,
                ..Scope::new(0..0)
            };
            let look = |change: &mut Change<'_, P>| change.look_at_brk(old, brk);
            let call = |change: &mut Change<'_, P>| {
                if change.state.config.layout.brk != old {
                    return Ok(None);
                }
                change.brk(brk).map(Some)
            };
            let moved = self.call(&scope, Plan::Look(&look), call, |moved| {
                if let Some(Moved { to_populate }) = moved {
                    self.populate_what_can_be(to_populate.clone());
                }
                Ok(())
            });
            match moved {
                Ok(Some(_)) => return brk,
                // Another call has moved it meanwhile.
                Ok(None) => {}
                Err(_) => return old,
            }
        }
    }
}

impl<P: Platform> Change<'_, P> {
    /// Whether `RLIMIT_DATA` allows heap and initialised data to lie so.
    #[doc(alias = "check_data_rlimit")]
    pub(crate) fn may_hold_data(&self, layout: &Layout) -> bool {
        let heap = layout.brk.wrapping_sub(layout.start_brk);
        let data = layout.end_data.wrapping_sub(layout.start_data);
        let limit = self.state.config.limits.data;
        limit == u64::MAX || heap.wrapping_add(data) as u64 <= limit
    }

    /// What the backing will be asked for, if the heap ends at `old`.
    fn look_at_brk(&self, old: usize, brk: usize) -> Result<Asked, Errno> {
        let (mut asked, layout) = (Asked::default(), self.state.config.layout);
        let range = page_align(brk)..page_align(old);
        if layout.brk == old
            && (layout.start_brk..=old).contains(&brk)
            && self.may_hold_data(&Layout { brk, ..layout })
            && !range.is_empty()
            && self.removal(&range).is_ok_and(|removal| removal.total != 0)
        {
            asked.push(Work::Unmap(range))?;
        }
        Ok(asked)
    }

    fn brk(&mut self, brk: usize) -> Result<Moved, Errno> {
        let layout = self.state.config.layout;
        if brk < layout.start_brk {
            return Err(Errno::EINVAL);
        }
        if !self.may_hold_data(&Layout { brk, ..layout }) {
            return Err(Errno::ENOMEM);
        }
        let (new, old) = (page_align(brk), page_align(layout.brk));
        if new == old {
            self.state.config.layout.brk = brk;
            return Ok(Moved { to_populate: 0..0 });
        }
        if brk <= layout.brk {
            self.first_in(&(new..old)).ok_or(Errno::EINVAL)?;
            let removal = self.check_removal(&(new..old))?;
            self.remove(new..old, removal)?;
            self.state.config.layout.brk = brk;
            return Ok(Moved { to_populate: 0..0 });
        }
        let len = new.checked_sub(old).ok_or(Errno::ENOMEM)?;
        self.check_fixed(old..new)?;
        if !self.may_lock(self.state.config.future, len) {
            return Err(Errno::EAGAIN);
        }
        let next = self.first_in(&(old..(new + PAGE).saturating_add(layout.stack_guard_gap)));
        let free =
            next.is_none_or(|(range, vma)| new + PAGE <= guarded_start(&layout, &range, vma));
        if !free {
            return Err(Errno::ENOMEM);
        }
        let flags = VmFlags::READ
            | VmFlags::WRITE
            | VmFlags::MAYALL
            | VmFlags::ACCOUNT
            | self.state.config.future;
        if !self.may_expand(flags, pages(len)) || self.map_count() > self.state.config.max_map_count
        {
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
        self.state.config.layout.brk = brk;
        let to_populate = if flags.has(VmFlags::LOCKED) { old..new } else { 0..0 };
        Ok(Moved { to_populate })
    }
}

/// The end of the heap was moved.
struct Moved {
    /// New pages that are to be present.
    to_populate: Range<usize>,
}

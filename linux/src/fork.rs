//! `fork`.

use alloc::vec::Vec;

use pervma::Platform;

use crate::abi::pages;
use crate::backing::{Backing, Part};
use crate::call::EVERYTHING;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Core, Mm, no_memory};
use crate::vma::Vma;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Makes the address space of a fork's child, with `backing` behind it. Nothing in it is
    /// locked, what is marked `DONTFORK` is not in it, and what is marked `WIPEONFORK` has no
    /// pages.
    ///
    /// The pages of shared mappings are the backings' to share. Anonymous pages are copied, VMA by
    /// VMA, by [`Backing::copy`].
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// mm.madvise(addr, 4096, MADV_DONTFORK)?;
    /// let child = mm.fork(NoBacking)?;
    /// assert_eq!((mm.counts().total, child.counts().total), (2, 1));
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `ENOMEM` when memory runs out, or when a mapping is larger than what may be committed at
    /// once, as two that have merged may be.
    #[doc(alias("dup_mmap", "dup_mm"))]
    pub fn fork(&self, backing: B) -> Result<Self, Errno> {
        let lock = self.lock_range(EVERYTHING)?;
        if !B::IDLE {
            // No page comes from here on.
            lock.close();
            self.core.wait_for_readers(&[EVERYTHING])?;
        }
        let mut change = self.core.change()?;
        for (range, vma) in change.edit.iter() {
            if vma.flags & (VmFlags::ACCOUNT | VmFlags::DONTCOPY) == VmFlags::ACCOUNT {
                change.may_commit(pages(range.end - range.start))?;
            }
        }
        if !B::IDLE {
            let mut copied = Vec::new();
            for (range, vma) in change.edit.iter().filter(|(_, vma)| has_copied_pages(vma)) {
                copied.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                copied.push((range, vma.clone()));
            }
            let settings = change.state.settings();
            drop(change);
            for (range, vma) in &copied {
                self.backing.copy(Part::new(range, vma, range.clone()), &backing);
            }
            change = self.core.change()?;
            change.state.go_by(&settings);
        }
        let mut state = *change.state;
        state.config.future = VmFlags::default();
        state.counts.locked = 0;
        let space = change.edit.fork(|range, vma| {
            if vma.flags.has(VmFlags::DONTCOPY) {
                state.counts.remove(vma.flags, pages(range.end - range.start));
                return None;
            }
            let wiped = vma.flags.has(VmFlags::WIPEONFORK);
            let anon = vma.anon.filter(|_| !wiped).map(|_| state.new_anon_vma(true));
            Some(Vma { flags: vma.flags & !VmFlags::LOCKED_MASK, anon, ..vma.clone() })
        });
        let space = space.map_err(no_memory)?;
        Ok(Self::of(Core::new(space, state, 0), backing, self.task_size))
    }
}

/// Whether a child gets copies of its pages.
fn has_copied_pages(vma: &Vma) -> bool {
    !vma.flags.any(VmFlags::DONTCOPY | VmFlags::WIPEONFORK)
        && (vma.anon.is_some() || vma.flags.has(VmFlags::MAYBE_GUARD))
}

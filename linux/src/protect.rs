//! `mprotect` and `pkey_mprotect`.

use core::ops::Range;

use pervma::Platform;

use crate::abi::*;
use crate::backing::{Backing, Part};
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Mm};
use crate::vma::Vma;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Changes what is allowed in a range, one VMA after the other.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// mm.mprotect(addr, 4096, PROT_READ)?;
    /// assert_eq!(mm.maps()?.lines().count(), 2);
    /// # Ok::<(), Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call. What comes before the cause of an error stays changed.
    #[doc(alias = "do_mprotect_pkey")]
    pub fn mprotect(&self, addr: usize, len: usize, prot: u64) -> Result<(), Errno> {
        self.pkey_mprotect(addr, len, prot, -1)
    }

    /// Changes what is allowed as [`mprotect`](Self::mprotect) does, on a machine without
    /// protection keys: only the key -1 exists.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// assert_eq!(mm.pkey_mprotect(addr, 4096, PROT_READ, -1), Ok(()));
    /// assert_eq!(mm.pkey_mprotect(addr, 4096, PROT_READ, 1), Err(Errno::EINVAL));
    /// # Ok::<(), Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`mprotect`](Self::mprotect), and `EINVAL` for any other key.
    pub fn pkey_mprotect(&self, addr: usize, len: usize, prot: u64, key: i32) -> Result<(), Errno> {
        let grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
        let prot = prot & !(PROT_GROWSDOWN | PROT_GROWSUP);
        if grows == PROT_GROWSDOWN | PROT_GROWSUP || off_page(addr) {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let end = addr.wrapping_add(page_align(len));
        if end <= addr {
            return Err(Errno::ENOMEM);
        }
        if prot & !(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM) != 0 || key != -1 {
            return Err(Errno::EINVAL);
        }
        self.change(|change| change.mprotect(addr..end, prot, grows))
    }
}

impl<B: Backing, P: Platform> Change<'_, B, P> {
    fn mprotect(&mut self, range: Range<usize>, prot: u64, grows: u64) -> Result<(), Errno> {
        let (first, vma) = self.first_in(&range).ok_or(Errno::ENOMEM)?;
        let mut at = range.start;
        if grows & PROT_GROWSDOWN != 0 {
            at = first.start;
            if !vma.flags.has(VmFlags::GROWSDOWN) {
                return Err(Errno::EINVAL);
            }
        } else if first.start > at {
            return Err(Errno::ENOMEM);
        } else if grows & PROT_GROWSUP != 0 {
            // Nothing grows upwards on this machine.
            return Err(Errno::EINVAL);
        }
        while at < range.end {
            let (whole, vma) = self.holding(at).ok_or(Errno::ENOMEM)?;
            let part = at..whole.end.min(range.end);
            let flags = (vma.flags & !VmFlags::ACCESS) | VmFlags::of_prot(prot);
            if flags.exceeds_may() {
                return Err(Errno::EACCES);
            }
            let part_vma = vma.from(at - whole.start);
            at = self.protect_one(part, part_vma, flags)?.end;
        }
        Ok(())
    }

    /// Returns the whole VMA that the part is in now.
    #[doc(alias = "mprotect_fixup")]
    fn protect_one(
        &mut self,
        part: Range<usize>,
        mut vma: Vma,
        mut flags: VmFlags,
    ) -> Result<Range<usize>, Errno> {
        let old = vma.flags;
        if old.has(VmFlags::SEALED) {
            return Err(Errno::EPERM);
        }
        if flags == old {
            return Ok(part);
        }
        let count = pages(part.end - part.start);
        if flags.has(VmFlags::WRITE) {
            if !self.may_expand(flags, count) && self.may_expand(old, count) {
                return Err(Errno::ENOMEM);
            }
            let accounted_or_never =
                VmFlags::ACCOUNT | VmFlags::WRITE | VmFlags::SHARED | VmFlags::NORESERVE;
            if !old.any(accounted_or_never) {
                self.may_commit(count)?;
                flags |= VmFlags::ACCOUNT;
            }
        } else if old.has(VmFlags::ACCOUNT) && vma.is_anonymous() && vma.anon.is_none() {
            flags &= !VmFlags::ACCOUNT;
        }
        vma.flags = flags;
        let whole = self.modify(part.clone(), vma.clone())?;
        if let Some(backing) = self.backing {
            backing.protect(Part::new(&part, &vma, part.clone()));
        }
        self.state.counts.remove(old, count);
        self.state.counts.add(flags, count);
        let locked_read_only =
            old & (VmFlags::WRITE | VmFlags::SHARED | VmFlags::LOCKED) == VmFlags::LOCKED;
        if locked_read_only && flags.has(VmFlags::WRITE) {
            // Anonymous pages are made now rather than when they are written.
            let _ = self.populate_mapped(part);
        }
        Ok(whole)
    }
}

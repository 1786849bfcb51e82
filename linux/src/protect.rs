//! `mprotect` and `pkey_mprotect`.

use core::ops::Range;

use pervma::Platform;

use crate::abi::*;
use crate::asked::Asked;
use crate::backing::{Access, Backing, Work};
use crate::call::{EVERYTHING, Plan, Scope};
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
        // What grows downwards may be changed from its start on.
        let scope = Scope::new(if grows == 0 { addr..end } else { EVERYTHING });
        let scope = Scope { more: pages(end - addr), ..scope };
        let look = |change: &mut Change<'_, P>| change.look_at_mprotect(addr..end, prot, grows);
        self.call(
            &scope,
            Plan::Look(&look),
            |change| change.mprotect(addr..end, prot, grows),
            |()| Ok(()),
        )
    }
}

impl<P: Platform> Change<'_, P> {
    /// What the backing will be asked for, if no limit is near.
    fn look_at_mprotect(&self, range: Range<usize>, prot: u64, grows: u64) -> Result<Asked, Errno> {
        let mut asked = Asked::default();
        let Ok(mut at) = self.protect_from(&range, grows) else { return Ok(asked) };
        while at < range.end {
            let Ok((part, vma, flags)) = self.to_protect(at, range.end, prot) else { break };
            let Ok(flags) = self.protected_flags(&part, &vma, flags) else { break };
            at = part.end;
            let old = vma.flags;
            if flags != old {
                let splits = || self.holding(part.start).is_none_or(|(whole, _)| whole != part);
                if vma.is_whole() && splits() {
                    break;
                }
                let vma = Vma { flags, ..vma };
                let populates = is_populated(old, flags);
                asked.push(Work::Protect { range: part.clone(), vma: vma.clone() })?;
                if populates {
                    asked.push_populate(part, vma)?;
                }
            }
        }
        Ok(asked)
    }

    fn mprotect(&mut self, range: Range<usize>, prot: u64, grows: u64) -> Result<(), Errno> {
        let mut at = self.protect_from(&range, grows)?;
        while at < range.end {
            let (part, vma, flags) = self.to_protect(at, range.end, prot)?;
            at = self.protect_one(part, vma, flags)?.end;
        }
        Ok(())
    }

    /// Where the change begins.
    fn protect_from(&self, range: &Range<usize>, grows: u64) -> Result<usize, Errno> {
        let (first, vma) = self.first_in(range).ok_or(Errno::ENOMEM)?;
        if grows & PROT_GROWSDOWN != 0 {
            if !vma.flags.has(VmFlags::GROWSDOWN) {
                return Err(Errno::EINVAL);
            }
            return Ok(first.start);
        }
        if first.start > range.start {
            return Err(Errno::ENOMEM);
        }
        // Nothing grows upwards on this machine.
        if grows & PROT_GROWSUP != 0 { Err(Errno::EINVAL) } else { Ok(range.start) }
    }

    /// The part of a VMA at `at`, up to `end`, as it is, and the flags that are asked for.
    fn to_protect(
        &self,
        at: usize,
        end: usize,
        prot: u64,
    ) -> Result<(Range<usize>, Vma, VmFlags), Errno> {
        let (whole, vma) = self.holding(at).ok_or(Errno::ENOMEM)?;
        let flags = (vma.flags & !VmFlags::ACCESS) | VmFlags::of_prot(prot);
        if flags.exceeds_may() {
            return Err(Errno::EACCES);
        }
        Ok((at..whole.end.min(end), vma.from(at - whole.start), flags))
    }

    /// The flags that a part gets, which are those it has if nothing changes.
    fn protected_flags(
        &self,
        part: &Range<usize>,
        vma: &Vma,
        mut flags: VmFlags,
    ) -> Result<VmFlags, Errno> {
        let old = vma.flags;
        if old.has(VmFlags::SEALED) {
            return Err(Errno::EPERM);
        }
        if flags == old {
            return Ok(old);
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
        Ok(flags)
    }

    /// Returns the whole VMA that the part is in now.
    #[doc(alias = "mprotect_fixup")]
    fn protect_one(
        &mut self,
        part: Range<usize>,
        mut vma: Vma,
        flags: VmFlags,
    ) -> Result<Range<usize>, Errno> {
        let old = vma.flags;
        let flags = self.protected_flags(&part, &vma, flags)?;
        if flags == old {
            return Ok(part);
        }
        vma.flags = flags;
        let whole = self.modify(part.clone(), vma.clone())?;
        self.ask(|| Work::Protect { range: part.clone(), vma: vma.clone() })?;
        let count = pages(part.end - part.start);
        self.state.counts.remove(old, count);
        self.state.counts.add(flags, count);
        if is_populated(old, flags) {
            // Anonymous pages are made now rather than when they are written.
            let had = self.ask_populate(&part, &vma)?;
            self.note_populated(part.start, Access::Write, had).ok();
        }
        Ok(whole)
    }
}

/// Whether the pages of a mapping with these flags are made when it gets others: private memory
/// that is locked, and may be written from now on.
fn is_populated(old: VmFlags, new: VmFlags) -> bool {
    let private = VmFlags::WRITE | VmFlags::SHARED | VmFlags::LOCKED;
    old & private == VmFlags::LOCKED
        && new.has(VmFlags::WRITE)
        && !new.any(VmFlags::LOCKONFAULT | VmFlags::IO | VmFlags::PFNMAP)
}

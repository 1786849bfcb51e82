//! Page faults.

use core::ops::Range;

use pervma::Platform;

use crate::abi::{PAGE, pages};
use crate::backing::{Access, Backing, Part, Refusal};
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Mm};
use crate::populate::is_guard_at;
use crate::vma::Vma;

/// The signal that a thread gets for touching memory that it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// `SIGSEGV` with the code `SEGV_MAPERR`: nothing is mapped there, or it is a guard page.
    NotMapped,
    /// `SIGSEGV` with the code `SEGV_ACCERR`: the mapping does not allow the access.
    NotAllowed,
    /// `SIGSEGV` with the code `SI_KERNEL` and no address: it is no address for the processor.
    NotAnAddress,
    /// `SIGBUS` with the code `BUS_ADRERR`: it is behind the end of the file.
    Bus,
    /// No signal: there is no memory for the page.
    OutOfMemory,
    /// No signal, and nothing was touched: the thread would wait for itself. See
    /// [`NotNow::OwnCall`](crate::NotNow::OwnCall).
    OwnCall,
}

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Serves a touch of `addr`: its page is made present, or the thread gets a signal.
    ///
    /// Normally it locks nothing but the VMA, for reading. It takes turns with calls where nothing
    /// is mapped (a stack may grow there), where a private VMA is written for the first time, and
    /// while a call changes the VMA. For signal handlers there is [`try_fault`](Self::try_fault).
    ///
    /// ```
    /// use pervma_linux::{Access, Config, Mm, NoBacking, Signal, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// assert_eq!(mm.fault(addr, Access::Read), Ok(()));
    /// assert_eq!(mm.fault(addr, Access::Write), Err(Signal::NotAllowed));
    /// assert_eq!(mm.fault(addr - 1, Access::Read), Err(Signal::NotMapped));
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The signal that the thread gets.
    #[doc(alias("handle_mm_fault", "do_user_addr_fault"))]
    pub fn fault(&self, addr: usize, access: Access) -> Result<(), Signal> {
        if !is_address(addr) {
            return Err(Signal::NotAnAddress);
        }
        if addr >= self.config.layout.task_size {
            return Err(Signal::NotMapped);
        }
        if let Ok(vma) = self.core.space.try_read(addr) {
            check_access(&vma, access)?;
            if !needs_anon_vma(&vma, access) {
                let had = ask(Some(&self.backing), &vma.range(), &vma, addr, access);
                return signal(vma.flags, access, had);
            }
        }
        let change = self.core.change(&self.config, Some(&self.backing));
        change.map_err(|_| Signal::OwnCall)?.fault(addr, access)
    }

    /// Serves an access of a debugger, which does what the mapping forbids (`ptrace`,
    /// `/proc/PID/mem`): the page of `addr` is made present.
    ///
    /// A write to a private mapping that forbids writing makes an anonymous page, which is then as
    /// protected as before; the file stays as it is. A shared mapping that forbids writing refuses.
    /// [`Access::Execute`] is as [`Access::Read`].
    ///
    /// ```
    /// use pervma_linux::{Access, Config, Errno, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let text = mm.mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// assert_eq!(mm.access_forced(text, Access::Write), Ok(())); // a breakpoint
    /// let shared = mm.mmap(0, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, None, 0)?;
    /// assert_eq!(mm.access_forced(shared, Access::Write), Err(Errno::EIO));
    /// # Ok::<(), Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `EIO`, whatever the cause, or `EAGAIN` from inside of a method of the [`Backing`].
    #[doc(alias("FOLL_FORCE", "access_remote_vm", "PTRACE_POKEDATA", "/proc/PID/mem"))]
    pub fn access_forced(&self, addr: usize, access: Access) -> Result<(), Errno> {
        let access = if access == Access::Write { Access::Write } else { Access::Read };
        if addr >= self.config.layout.task_size {
            return Err(Errno::EIO);
        }
        if let Ok(vma) = self.core.space.try_read(addr) {
            check_forced(&vma, access)?;
            if !needs_anon_vma(&vma, access) {
                let had = ask(Some(&self.backing), &vma.range(), &vma, addr, access);
                return had.map_err(|_| Errno::EIO);
            }
        }
        let mut change = self.core.change(&self.config, Some(&self.backing))?;
        change.reach(addr).map_err(|_| Errno::EIO)?;
        let (_, vma) = change.holding(addr).ok_or(Errno::EIO)?;
        check_forced(vma, access)?;
        change.make_present(addr, access).map_err(|_| Errno::EIO)
    }
}

impl<B: Backing, P: Platform> Change<'_, B, P> {
    pub(crate) fn fault(&mut self, addr: usize, access: Access) -> Result<(), Signal> {
        self.reach(addr).map_err(|_| Signal::NotMapped)?;
        let (_, vma) = self.holding(addr).ok_or(Signal::NotMapped)?;
        check_access(vma, access)?;
        let flags = vma.flags;
        signal(flags, access, self.make_present(addr, access))
    }

    /// Lets a stack above `addr` grow to it, if nothing is mapped there.
    #[doc(alias = "expand_stack")]
    fn reach(&mut self, addr: usize) -> Result<(), Errno> {
        let (range, _) = self.first_from(addr).ok_or(Errno::EFAULT)?;
        if addr < range.start {
            self.grow_down(range.start, addr & !(PAGE - 1))?;
        }
        Ok(())
    }

    /// Makes the page of `addr` present, which is mapped, for an access that was checked.
    fn make_present(&mut self, addr: usize, access: Access) -> Result<(), Refusal> {
        let Some((whole, vma)) = self.holding(addr) else { return Ok(()) };
        let had = ask(self.backing, &whole, vma, addr, access);
        if needs_anon_vma(vma, access) && !is_guard_at(addr & !(PAGE - 1), had) {
            self.prepare_anon_vma(addr).map_err(|_| Refusal::OutOfMemory)?;
        }
        had
    }

    /// Makes the VMA that starts at `start` start at `addr`, if it grows downwards.
    #[doc(alias = "expand_downwards")]
    fn grow_down(&mut self, start: usize, addr: usize) -> Result<(), Errno> {
        let layout = self.config.layout;
        let (range, vma) = self.holding(start).ok_or(Errno::EFAULT)?;
        let vma = vma.clone();
        if !vma.flags.has(VmFlags::GROWSDOWN) {
            return Err(Errno::EFAULT);
        }
        if addr < layout.lowest_choice {
            return Err(Errno::EPERM);
        }
        let below = addr.saturating_sub(layout.stack_guard_gap)..addr;
        let too_near = self.last_in(&below).is_some_and(|(_, near)| {
            !near.flags.has(VmFlags::GROWSDOWN) && near.flags.any(VmFlags::ACCESS)
        });
        if too_near {
            return Err(Errno::ENOMEM);
        }
        self.prepare_anon_vma(start)?;
        let more = start - addr;
        let page_offset = vma.page_offset.checked_sub(pages(more) as u64).ok_or(Errno::ENOMEM)?;
        let allowed = self.may_expand(vma.flags, pages(more))
            && (range.end - addr) as u64 <= self.state.limits.stack
            && self.may_lock(vma.flags, more);
        if !allowed {
            return Err(Errno::ENOMEM);
        }
        self.may_commit(pages(more))?;
        let anon = self.holding(start).and_then(|(_, vma)| vma.anon);
        self.replace(addr..range.end, Vma { page_offset, anon, ..vma.clone() })?;
        self.count_new(vma.flags, more);
        Ok(())
    }
}

/// Whether the processor takes it for an address: it sign-extends 48 bits.
pub(crate) fn is_address(addr: usize) -> bool {
    !(1..0x1_ffff).contains(&(addr >> 47))
}

/// Whether the VMA allows the access. On this machine what may be written or executed may be read,
/// and a page that is not present is made present before it is known that it must not be executed.
#[doc(alias = "access_error")]
pub(crate) fn check_access(vma: &Vma, access: Access) -> Result<(), Signal> {
    let sufficient = if access == Access::Write { VmFlags::WRITE } else { VmFlags::ACCESS };
    if vma.flags.any(sufficient) { Ok(()) } else { Err(Signal::NotAllowed) }
}

/// Whether a debugger may access it: where writing is forbidden, the page must become an anonymous
/// one.
#[doc(alias = "check_vma_flags")]
fn check_forced(vma: &Vma, access: Access) -> Result<(), Errno> {
    let flags = vma.flags;
    if flags.any(VmFlags::IO | VmFlags::PFNMAP) {
        return Err(Errno::EIO);
    }
    let copies = flags & (VmFlags::SHARED | VmFlags::MAYWRITE) == VmFlags::MAYWRITE;
    let allowed = match access {
        Access::Write => flags.has(VmFlags::WRITE) || copies,
        Access::Read | Access::Execute => flags.any(VmFlags::READ | VmFlags::MAYREAD),
    };
    if allowed { Ok(()) } else { Err(Errno::EIO) }
}

/// Whether the access makes the first anonymous page of the VMA.
pub(crate) fn needs_anon_vma(vma: &Vma, access: Access) -> bool {
    access == Access::Write && vma.flags.is_private() && vma.anon.is_none()
}

pub(crate) fn ask<B: Backing>(
    backing: Option<&B>,
    whole: &Range<usize>,
    vma: &Vma,
    addr: usize,
    access: Access,
) -> Result<(), Refusal> {
    let page = addr & !(PAGE - 1);
    let part = Part::new(whole, vma, page..page + PAGE);
    backing.map_or(Ok(()), |backing| backing.fault(part, access))
}

pub(crate) fn signal(
    flags: VmFlags,
    access: Access,
    had: Result<(), Refusal>,
) -> Result<(), Signal> {
    match had {
        Err(Refusal::Bus) => Err(Signal::Bus),
        Err(Refusal::Guard { .. }) => Err(Signal::NotMapped),
        Err(Refusal::OutOfMemory) => Err(Signal::OutOfMemory),
        Ok(()) if access == Access::Execute && !flags.has(VmFlags::EXEC) => Err(Signal::NotAllowed),
        Ok(()) => Ok(()),
    }
}

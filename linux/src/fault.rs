//! Page faults.

use core::ops::Range;

use pervma::{Platform, RangeLock, ReadError, ReadGuard};

use crate::abi::{PAGE, pages};
use crate::backing::{Access, Backing, Part, Refusal};
use crate::call::Scope;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Mm};
use crate::populate::needs_anon_vma;
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
        self.touch(addr, access, false)
    }

    /// As [`fault`](Self::fault). If the call is `alone`, it has locked all addresses.
    pub(crate) fn touch(&self, addr: usize, access: Access, alone: bool) -> Result<(), Signal> {
        if !is_address(addr) {
            return Err(Signal::NotAnAddress);
        }
        if addr >= self.task_size {
            return Err(Signal::NotMapped);
        }
        // What most touches are, with nothing else to be looked at.
        let found = self.core.space.try_read(addr);
        if let Ok(vma) = &found
            && !needs_anon_vma(vma, access)
            && !self.ranges.is_closed(addr)
        {
            check_access(vma, access)?;
            let had = ask(&self.backing, &vma.range(), vma, addr, access);
            return signal(vma.flags, access, had);
        }
        self.reach_page(addr, access, alone, found, |vma| {
            check_access(vma, access).map_err(Untouched::Signal)
        })
        .map_or_else(
            |untouched| match untouched {
                Untouched::Signal(signal) => Err(signal),
                Untouched::OwnCall => Err(Signal::OwnCall),
            },
            |(flags, had)| signal(flags, access, had),
        )
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
        if addr >= self.task_size {
            return Err(Errno::EIO);
        }
        let check =
            |vma: &Vma| check_forced(vma, access).map_err(|_| Untouched::Signal(Signal::Bus));
        match self.reach_page(addr, access, false, self.core.space.try_read(addr), check) {
            Ok((_, Ok(()))) => Ok(()),
            Err(Untouched::OwnCall) => Err(Errno::EAGAIN),
            _ => Err(Errno::EIO),
        }
    }

    /// Has the page of `addr` made present, if something is mapped there that passes `check`; a
    /// stack may grow to it. `found` is what was there at a first look. Returns the flags of its
    /// VMA, and what became of the page.
    fn reach_page<'m>(
        &'m self,
        addr: usize,
        access: Access,
        alone: bool,
        mut found: Result<ReadGuard<'m, Vma, P>, ReadError>,
        check: impl Fn(&Vma) -> Result<(), Untouched>,
    ) -> Result<(VmFlags, Result<(), Refusal>), Untouched> {
        let page = addr & !(PAGE - 1)..(addr & !(PAGE - 1)) + PAGE;
        let mut page_lock = None;
        loop {
            let vma = match found {
                Ok(vma) => vma,
                Err(error) if is_own_call(&error) => return Err(Untouched::OwnCall),
                Err(_) => {
                    drop(page_lock.take());
                    page_lock = self.wait_for_mapping(addr, alone)?;
                    found = self.core.space.read(addr);
                    continue;
                }
            };
            // Asked with the VMA locked: a call that has closed its range since waits for that.
            if !alone && self.ranges.is_closed(addr) {
                drop(vma);
                // That call waits for the readers of the VMA, of which this thread may be one.
                if !self.core.space.may_wait() {
                    return Err(Untouched::OwnCall);
                }
                self.ranges.wait_until_open(addr).map_err(|_| Untouched::OwnCall)?;
                found = self.core.space.read(addr);
                continue;
            }
            check(&vma)?;
            let makes_first = needs_anon_vma(&vma, access);
            // What the page is noted in must be what it was made for.
            let is_locked = alone || page_lock.is_some();
            if makes_first && !is_locked && !B::IDLE {
                drop(vma);
                page_lock = Some(self.lock_range(page.clone()).map_err(|_| Untouched::OwnCall)?);
                found = self.core.space.read(addr);
                continue;
            }
            let had = ask(&self.backing, &vma.range(), &vma, addr, access);
            let flags = vma.flags;
            if !makes_first {
                return Ok((flags, had));
            }
            let made_for = (!is_locked).then(|| vma.clone());
            drop(vma);
            let change = self.change_without_readers(&[page.clone(), 0..0]);
            let mut change = change.map_err(|_| Untouched::OwnCall)?;
            let holds = |made_for| change.holding(addr).is_some_and(|(_, vma)| *vma == made_for);
            if !made_for.is_none_or(holds) {
                drop(change);
                found = self.core.space.read(addr);
                continue;
            }
            let noted = change.note_populated(page.start, access, had);
            return Ok((flags, noted.map_err(|_| Refusal::OutOfMemory).and(had)));
        }
    }

    /// Waits for calls that may map something at `addr`, where nothing is mapped, and lets a stack
    /// above it grow: then nothing else can be mapped there until the lock is released that this
    /// returns.
    fn wait_for_mapping(
        &self,
        addr: usize,
        alone: bool,
    ) -> Result<Option<RangeLock<'_, P>>, Untouched> {
        let not_mapped = |_| Untouched::Signal(Signal::NotMapped);
        loop {
            let mut change = self.core.change().map_err(|_| Untouched::OwnCall)?;
            if change.holding(addr).is_some() {
                return Ok(None);
            }
            let page = addr & !(PAGE - 1);
            let stack =
                change.first_from(addr).filter(|(_, vma)| vma.flags.has(VmFlags::GROWSDOWN));
            let Some((above, _)) = stack else {
                return Err(Untouched::Signal(Signal::NotMapped));
            };
            if alone {
                return change.grow_down(above.start, page).map(|()| None).map_err(not_mapped);
            }
            let guard_gap = change.state.config.layout.stack_guard_gap;
            drop(change);
            let more = pages(above.start - page);
            // It looks at what lies below, as far as a guard gap reaches.
            let reach = page.saturating_sub(guard_gap)..above.start;
            let scope = Scope { more, locks: true, ..Scope::new(reach) };
            let (lock, mut change, _) = self.lock(&scope).map_err(|_| Untouched::OwnCall)?;
            if change.first_from(addr).is_some_and(|(range, _)| range == above) {
                return change
                    .grow_down(above.start, page)
                    .map(|()| Some(lock))
                    .map_err(not_mapped);
            }
        }
    }
}

/// Why a page was not asked for.
enum Untouched {
    Signal(Signal),
    /// The thread would wait for itself.
    OwnCall,
}

fn is_own_call(error: &ReadError) -> bool {
    matches!(
        error,
        ReadError::OwnEdit { .. } | ReadError::OwnExclusion { .. } | ReadError::GuardHeld { .. }
    )
}

impl<P: Platform> Change<'_, P> {
    /// Makes the VMA that starts at `start` start at `addr`, if it grows downwards.
    #[doc(alias = "expand_downwards")]
    fn grow_down(&mut self, start: usize, addr: usize) -> Result<(), Errno> {
        let layout = self.state.config.layout;
        let (range, vma) = self.holding(start).ok_or(Errno::EFAULT)?;
        let vma = vma.clone();
        if !vma.flags.has(VmFlags::GROWSDOWN) {
            return Err(Errno::EFAULT);
        }
        if addr < self.state.config.lowest_choice {
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
            && (range.end - addr) as u64 <= self.state.config.limits.stack
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

pub(crate) fn ask<B: Backing>(
    backing: &B,
    whole: &Range<usize>,
    vma: &Vma,
    addr: usize,
    access: Access,
) -> Result<(), Refusal> {
    let page = addr & !(PAGE - 1);
    let part = Part::new(whole, vma, page..page + PAGE);
    backing.fault(part, access)
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

//! Lookups and faults in a signal handler.

use pervma::{Platform, ReadError, ReadGuard};

use crate::backing::{Access, Backing};
use crate::fault::{Signal, ask, check_access, is_address, signal};
use crate::flags::VmFlags;
use crate::mm::Mm;
use crate::not_now::{NotNow, not_now};
use crate::populate::needs_anon_vma;
use crate::vma::Vma;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Finds the VMA that holds `addr` without waiting, and holds it as it is until the guard is
    /// dropped; `None` only if nothing was mapped there at a moment during the call.
    ///
    /// It takes no lock, allocates nothing, runs no destructor and ends after a bounded number of
    /// steps, so it may be called in a signal handler. The guard must be dropped before the handler
    /// returns. While a thread has it, its own calls fail with `EAGAIN`: others may wait for it.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, VmFlags, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// let vma = mm.try_lookup(addr + 7)?.ok_or("just mapped")?;
    /// assert!(vma.range() == (addr..addr + 4096) && vma.flags.has(VmFlags::READ));
    /// drop(vma);
    /// assert!(mm.try_lookup(addr - 1)?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotNow::Changing`] and [`NotNow::OwnCall`], also near what is being changed.
    #[doc(alias("lock_vma_under_rcu", "vma_lookup"))]
    pub fn try_lookup(&self, addr: usize) -> Result<Option<ReadGuard<'_, Vma, P>>, NotNow> {
        match self.core.space.try_read(addr) {
            Ok(vma) => Ok(Some(vma)),
            Err(ReadError::NotMapped { .. }) => Ok(None),
            Err(error) => Err(not_now(error)),
        }
    }

    /// As [`try_lookup`](Self::try_lookup), for the first VMA that ends above `addr`.
    ///
    /// ```
    /// use pervma_linux::{Config, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// let next = mm.try_lookup_from(0x1000)?.map(|vma| vma.range());
    /// assert_eq!(next, Some(addr..addr + 4096));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`try_lookup`](Self::try_lookup).
    #[doc(alias = "find_vma")]
    pub fn try_lookup_from(&self, addr: usize) -> Result<Option<ReadGuard<'_, Vma, P>>, NotNow> {
        self.core.space.try_read_at_or_after(addr).map_err(not_now)
    }

    /// As [`fault`](Self::fault), without waiting: what a signal handler asks of the address that
    /// its thread has touched.
    ///
    /// It takes no lock, allocates nothing, runs no destructor and ends after a bounded number of
    /// steps, and so must [`Backing::fault`], which it calls.
    ///
    /// ```
    /// use pervma_linux::{Access, Config, Mm, NoBacking, NotNow, Signal, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let prot = PROT_READ | PROT_WRITE;
    /// let addr = mm.mmap(0, 4096, prot, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// assert_eq!(mm.try_fault(addr, Access::Read), Ok(Ok(())));
    /// assert_eq!(mm.try_fault(addr - 1, Access::Read), Ok(Err(Signal::NotMapped)));
    /// // The first page of the mapping's own: it is noted in the map.
    /// assert_eq!(mm.try_fault(addr, Access::Write), Err(NotNow::NeedsCall));
    /// assert_eq!(mm.fault(addr, Access::Write), Ok(()));
    /// assert_eq!(mm.try_fault(addr, Access::Write), Ok(Ok(())));
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`NotNow`]. The result inside is that of [`fault`](Self::fault).
    pub fn try_fault(&self, addr: usize, access: Access) -> Result<Result<(), Signal>, NotNow> {
        if !is_address(addr) {
            return Ok(Err(Signal::NotAnAddress));
        }
        if addr >= self.task_size {
            return Ok(Err(Signal::NotMapped));
        }
        let Some(vma) = self.try_lookup(addr)? else {
            return match self.try_lookup_from(addr)? {
                Some(above) if above.range().contains(&addr) => Err(NotNow::Changing),
                Some(above) if above.flags.has(VmFlags::GROWSDOWN) => Err(NotNow::NeedsCall),
                _ => Ok(Err(Signal::NotMapped)),
            };
        };
        if self.ranges.try_is_closed(addr) != Some(false) {
            let is_own = self.ranges.try_has_own() == Some(true);
            return Err(if is_own { NotNow::OwnCall } else { NotNow::Changing });
        }
        if let Err(signal) = check_access(&vma, access) {
            return Ok(Err(signal));
        }
        if needs_anon_vma(&vma, access) {
            return Err(NotNow::NeedsCall);
        }
        let had = ask(&self.backing, &vma.range(), &vma, addr, access);
        Ok(signal(vma.flags, access, had))
    }
}

//! `mseal`.

use core::ops::Range;

use pervma::Platform;

use crate::abi::{off_page, page_align};
use crate::backing::Backing;
use crate::call::Scope;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Mm};
use crate::vma::Vma;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Seals a range: from now on it can be neither unmapped, moved, resized nor protected
    /// otherwise.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking, abi::*};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let addr = mm.mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)?;
    /// mm.mseal(addr, 4096, 0)?;
    /// assert_eq!(mm.munmap(addr, 4096), Err(Errno::EPERM));
    /// # Ok::<(), Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the system call. Over a hole nothing is sealed.
    #[doc(alias = "do_mseal")]
    pub fn mseal(&self, addr: usize, len: usize, flags: u64) -> Result<(), Errno> {
        let aligned = page_align(len);
        if flags != 0 || off_page(addr) || (len != 0 && aligned == 0) {
            return Err(Errno::EINVAL);
        }
        let end = addr.checked_add(aligned).ok_or(Errno::EINVAL)?;
        self.change(&Scope::new(addr..end), |change| change.mseal(addr..end))
    }
}

impl<P: Platform> Change<'_, P> {
    fn mseal(&mut self, range: Range<usize>) -> Result<(), Errno> {
        let mut at = range.start;
        while at < range.end {
            at = self.holding(at).ok_or(Errno::ENOMEM)?.0.end;
        }
        let mut at = range.start;
        while at < range.end {
            let (whole, vma) = self.holding(at).ok_or(Errno::ENOMEM)?;
            let part = at..whole.end.min(range.end);
            let vma = vma.from(at - whole.start);
            at = if vma.flags.has(VmFlags::SEALED) {
                part.end
            } else {
                self.modify(part, Vma { flags: vma.flags | VmFlags::SEALED, ..vma })?.end
            };
        }
        Ok(())
    }
}

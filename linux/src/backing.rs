//! The memory behind the map.

use core::ops::Range;

use crate::errno::Errno;
use crate::vma::Vma;

/// How memory is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read.
    Read,
    /// Written.
    Write,
    /// Executed.
    Execute,
}

/// Why a page cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It lies behind the end of the file, or cannot be read: SIGBUS.
    Bus,
    /// It is a guard page: SIGSEGV.
    Guard {
        /// Where the page is.
        addr: usize,
    },
    /// No memory.
    OutOfMemory,
}

/// A part of a VMA.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The VMA.
    pub vma: &'a Vma,
    /// Where the part is.
    pub range: Range<usize>,
    /// The page of the file at its start; see [`Vma::page_offset`].
    pub page_offset: u64,
}

impl<'a> Part<'a> {
    /// `range` of the VMA that is at `whole`.
    pub(crate) fn new(whole: &Range<usize>, vma: &'a Vma, range: Range<usize>) -> Self {
        Self { vma, page_offset: vma.page_after(range.start - whole.start), range }
    }
}

/// What [`Mm`](crate::Mm) asks of the memory behind the map. The map is its own business; pages are
/// the backing's. Every method has a default that does nothing.
///
/// All methods run inside of a call or a fault, and this is what else may run meanwhile:
///
/// | method | locked | faults of the same range |
/// |---|---|---|
/// | [`fault`](Self::fault) | the VMA for reading, or the space | may run, even of the same page |
/// | [`advise`](Self::advise), [`sync`](Self::sync) | the space | may run |
/// | [`unmap`](Self::unmap), [`protect`](Self::protect), [`relocate`](Self::relocate), [`copy`](Self::copy) | the space, and the VMAs for writing | have ended; the next begins when the call is over |
///
/// As in Linux, where page tables have locks of their own, advice may come to pages that are faulted
/// in at that moment: it is the backing that gives them an order.
///
/// No method may call the same `Mm`; see [there](crate::Mm) what happens if one does. Where
/// [`Mm::try_fault`](crate::Mm::try_fault) is asked in signal handlers, `fault` runs in them: it may
/// not lock or allocate then.
///
/// ```
/// use core::ops::Range;
/// use std::sync::Mutex;
/// use pervma_linux::{Backing, Config, Mm, abi};
///
/// /// Notes what is unmapped.
/// #[derive(Default)]
/// struct Pages(Mutex<Vec<Range<usize>>>);
///
/// impl Backing for Pages {
///     fn unmap(&self, range: Range<usize>) {
///         self.0.lock().unwrap().push(range);
///     }
/// }
///
/// let mm = Mm::new(Pages::default(), Config::default());
/// let addr = mm.mmap(0, 8192, 0, abi::MAP_PRIVATE | abi::MAP_ANONYMOUS, None, 0)?;
/// mm.munmap(addr, 4096)?;
/// assert_eq!(mm.backing().0.lock().unwrap()[0], addr..addr + 4096);
/// # Ok::<(), pervma_linux::Errno>(())
/// ```
pub trait Backing {
    /// Makes every page of `part` present for `access`, which the VMA allows; or else a debugger
    /// writes ([`Mm::access_forced`](crate::Mm::access_forced)), and the page becomes one of the
    /// mapping's own and stays as protected as it is.
    ///
    /// # Errors
    ///
    /// When a page cannot be had; those before it may be present.
    fn fault(&self, part: Part<'_>, access: Access) -> Result<(), Refusal> {
        let _ = (part, access);
        Ok(())
    }

    /// Nothing is mapped in `range` any more.
    fn unmap(&self, range: Range<usize>) {
        let _ = range;
    }

    /// What is in `from` is at `to` from now on, where nothing is yet. The VMA at `from` may stay,
    /// empty. Neither there nor here is anything faulted in before the call is over.
    fn relocate(&self, from: Range<usize>, to: usize) {
        let _ = (from, to);
    }

    /// What is allowed in `part` has changed.
    fn protect(&self, part: Part<'_>) {
        let _ = part;
    }

    /// A fork copies the pages of one's own that are in `part`, a whole VMA, to `child`, the backing of
    /// the child, at the same addresses; guard pages too. Not called for a VMA that has none, or whose
    /// copy is to be empty. So pages and map are from the same moment.
    fn copy(&self, part: Part<'_>, child: &Self)
    where
        Self: Sized,
    {
        let _ = (part, child);
    }

    /// Advice about pages (`MADV_DONTNEED`, `MADV_REMOVE`, `MADV_GUARD_INSTALL` and the like). The checks of
    /// Linux have passed.
    ///
    /// # Errors
    ///
    /// What `madvise` is to return.
    fn advise(&self, part: Part<'_>, advice: i32) -> Result<(), Errno> {
        let _ = (part, advice);
        Ok(())
    }

    /// Writes a part of a file back, as `msync` with `MS_SYNC` does.
    ///
    /// # Errors
    ///
    /// What `msync` is to return.
    fn sync(&self, part: Part<'_>) -> Result<(), Errno> {
        let _ = part;
        Ok(())
    }
}

/// No memory: only the map matters, and every page can be had.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBacking;

impl Backing for NoBacking {}

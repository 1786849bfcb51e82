//! The memory behind the map.

use core::ops::Range;

use crate::errno::Errno;
use crate::vma::Vma;

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A read.
    Read,
    /// A write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// Why a page cannot be made present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It lies behind the end of the file, or cannot be read: `SIGBUS`.
    Bus,
    /// It is a guard page: `SIGSEGV`.
    Guard {
        /// The address of the page.
        addr: usize,
    },
    /// There is no memory for it.
    OutOfMemory,
}

/// A part of a VMA.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The VMA that it is a part of.
    pub vma: &'a Vma,
    /// The addresses of the part.
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

/// What a call is going to ask of the memory behind the map.
#[derive(Clone, Debug)]
pub enum Work {
    /// [`Backing::unmap`].
    Unmap(Range<usize>),
    /// [`Backing::protect`].
    Protect {
        /// The addresses of the part.
        range: Range<usize>,
        /// The part as it is going to be, as a VMA of its own.
        vma: Vma,
    },
    /// [`Backing::relocate`].
    Relocate {
        /// Where the pages are.
        from: Range<usize>,
        /// Where they go to.
        to: usize,
    },
}

impl Work {
    pub(crate) fn ask<B: Backing>(&self, backing: &B) {
        match self {
            Self::Unmap(range) => backing.unmap(range.clone()),
            Self::Protect { range, vma } => backing.protect(Part::new(range, vma, range.clone())),
            Self::Relocate { from, to } => backing.relocate(from.clone(), *to),
        }
    }
}

/// The memory behind the map: what [`Mm`](crate::Mm) asks of the pages. It keeps the map itself.
/// Every method has a default that does nothing.
///
/// All methods run inside of a call or a fault, and none of them with a lock of the whole space:
/// calls on other addresses go on, but for the cases that [`Mm`](crate::Mm) lists. What a method is
/// about has no other call meanwhile.
///
/// | method | runs | faults of the same range |
/// |---|---|---|
/// | `fault` | with the VMA locked for reading, or in a call that makes pages present | may run, even of the same page |
/// | `advise`, `sync` | in a call | may run |
/// | `prepare`, `unmap`, `protect`, `relocate`, `copy` | in a call that has not changed the map yet | have ended |
///
/// Where faults have ended, the next one begins when the call is over. As in Linux, where page
/// tables have locks of their own, advice may come to pages that are faulted in at that moment: the
/// backing decides which of the two comes first.
///
/// A method that panics ends its call half-way: the map and the [counts](crate::Mm::counts) are as
/// they were then, and the addresses are free for other calls.
///
/// A method may call the same `Mm`, for other addresses; see [there](crate::Mm) what happens if it
/// does for its own. Where [`Mm::try_fault`](crate::Mm::try_fault) is asked in signal handlers,
/// `fault` runs in them: it may not lock or allocate then.
///
/// ```
/// use core::ops::Range;
/// use std::sync::Mutex;
/// use pervma_linux::{Backing, Config, Mm, abi};
///
/// /// Keeps a list of what is unmapped.
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
    /// Whether [`prepare`](Self::prepare), [`unmap`](Self::unmap), [`protect`](Self::protect),
    /// [`relocate`](Self::relocate), [`copy`](Self::copy), [`advise`](Self::advise) and
    /// [`sync`](Self::sync) are the defaults, which do nothing. Calls are shorter then: none of
    /// these is called, nor [`fault`](Self::fault) where a call makes pages of private memory
    /// writable that is locked. Their one edit waits for faults in what it changes, with the map
    /// locked: `fault` is to be short.
    const IDLE: bool = false;

    /// Asked before a call does anything: whether all of `work` can be done, in this order. Here
    /// memory is reserved for it, say. The methods themselves cannot refuse.
    ///
    /// # Errors
    ///
    /// The error that the call is to return. Nothing has changed then, whatever the call, and
    /// nothing of the work is asked for.
    fn prepare(&self, work: &[Work]) -> Result<(), Errno> {
        let _ = work;
        Ok(())
    }

    /// Makes every page of `part` present for `access`.
    ///
    /// The VMA allows the access, unless a debugger forces it
    /// ([`Mm::access_forced`](crate::Mm::access_forced)): then the page becomes an anonymous page
    /// of the private mapping, and stays as protected as it is.
    ///
    /// # Errors
    ///
    /// When a page cannot be made present; those before it may be present.
    fn fault(&self, part: Part<'_>, access: Access) -> Result<(), Refusal> {
        let _ = (part, access);
        Ok(())
    }

    /// Called when nothing is going to be mapped in `range` any more.
    fn unmap(&self, range: Range<usize>) {
        let _ = range;
    }

    /// Moves the pages in `from` to `to`, where nothing is yet. The VMA at `from` may stay, without
    /// pages. Nothing is faulted in at either place before the call is over.
    fn relocate(&self, from: Range<usize>, to: usize) {
        let _ = (from, to);
    }

    /// Called when the access that `part` allows changes.
    fn protect(&self, part: Part<'_>) {
        let _ = part;
    }

    /// Copies the anonymous pages and the guard pages in `part`, a whole VMA, to the same addresses
    /// of `child`, the backing of a fork's child.
    ///
    /// It is not called for a VMA that has none, or whose copy is to be empty. It runs while the
    /// map is copied, so pages and map are from the same moment.
    fn copy(&self, part: Part<'_>, child: &Self)
    where
        Self: Sized,
    {
        let _ = (part, child);
    }

    /// Follows advice about pages (`MADV_DONTNEED`, `MADV_REMOVE`, `MADV_GUARD_INSTALL` and the
    /// like). The checks that Linux makes before have passed.
    ///
    /// # Errors
    ///
    /// The error that `madvise` is to return.
    fn advise(&self, part: Part<'_>, advice: i32) -> Result<(), Errno> {
        let _ = (part, advice);
        Ok(())
    }

    /// Writes a part of a file back, as `msync` with `MS_SYNC` does.
    ///
    /// # Errors
    ///
    /// The error that `msync` is to return.
    fn sync(&self, part: Part<'_>) -> Result<(), Errno> {
        let _ = part;
        Ok(())
    }
}

/// No memory: only the map matters, and every page can be made present.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBacking;

impl Backing for NoBacking {
    const IDLE: bool = true;
}

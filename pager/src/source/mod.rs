//! Where the bytes of a region come from.
#![expect(unsafe_code, reason = "what the signal handler may call is a contract")]

mod file;
mod memory;
mod sparse;

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub use file::FileSource;
pub use memory::MemorySource;

/// The bytes behind a region, read when a page is touched for the first time, or again after it
/// was given back.
///
/// A region that is served by handler threads takes any source. One that is served in the signal
/// handler takes those that are [`SignalSafe`].
///
/// ```
/// use pervma_pager::{Options, ReadFailed, Source};
///
/// /// Every byte is the number of its page.
/// struct Pages(u64);
///
/// impl Source for Pages {
///     fn size(&self) -> u64 {
///         self.0 * 4096
///     }
///
///     fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
///         for (page, part) in (offset / 4096..).zip(buf.chunks_mut(4096)) {
///             part.fill(page as u8); // anything a thread may do: this is no signal handler
///         }
///         Ok(())
///     }
/// }
///
/// let region = Options::new().handler_threads(1).map(Pages(100))?.freeze()?;
/// assert_eq!((region[0], region[99 * 4096]), (0, 99));
/// # Ok::<(), pervma_pager::Error>(())
/// ```
pub trait Source: Send + Sync {
    /// The size in bytes. Asked when the region is mapped or made larger, not in a handler.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on; they lie within the size. It is no other
    /// thread's meanwhile, and all zeros, so what is not filled stays zeros (but see
    /// [`fills_buffer`](Self::fills_buffer)).
    ///
    /// A call asks for what is missing of a granule at once, so for all of it if nothing of it is
    /// present. It asks for less if some pages of the granule are present, or have failed; if the
    /// granule has more than 8 MiB (then for 8 MiB at a time); in signal mode for 64 KiB at a time
    /// if the region's larger buffers, 32 MiB together, are all in use; and for one page when more
    /// could not be had. So it may begin and end inside a granule. Offset and length are whole
    /// pages, but for the end of the source, and when [`Region::resize`](crate::Region::resize)
    /// asks for the rest of the region's last page.
    ///
    /// It is called by several threads at once, as a rule for different granules: other threads
    /// that want the same one wait, share what was read, and read themselves only if that failed or
    /// takes more than 10 seconds. It may not touch the region. A panic while a fault is served
    /// ends the process; in a read for [`read_checked`](crate::Region::read_checked) and its like
    /// it goes on to their caller.
    ///
    /// # Errors
    ///
    /// When the bytes cannot be had. Where several pages were asked for, the one that the access
    /// wants is asked for again, by itself. If that fails, it is poisoned, and no other page is:
    /// the access ends as the region's [`OnFailure`](crate::OnFailure) says, and so do all accesses
    /// to this page until it is [discarded](crate::Region::discard).
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed>;

    /// The first part of a range that is known to be zeros, such as a hole of a sparse file. The
    /// range lies within the size, in bytes; what is returned may begin before it, and end behind
    /// it. `None` if nothing is known.
    ///
    /// Whole pages of zeros are not read, and take no memory: the kernel has one page of zeros for
    /// all. It is asked before each read, in regions that are not
    /// [writable](crate::Options::writable) and have no [huge pages](crate::Options::huge_pages).
    #[inline]
    fn zeros(&self, range: Range<u64>) -> Option<Range<u64>> {
        let _ = range;
        None
    }

    /// Whether [`read_at`](Self::read_at) has filled all of `buf` whenever it returns `Ok`. Then
    /// `buf` is not made zeros for it, which saves some percent of the time of large granules. What
    /// it has instead are bytes that were read before, from anywhere in this source: what is not
    /// filled although this says so becomes part of the region.
    #[inline]
    fn fills_buffer(&self) -> bool {
        false
    }

    /// All bytes at once, where they are in ordinary memory: pages are then copied from there
    /// without `read_at`. Always the same bytes.
    #[inline]
    fn bytes(&self) -> Option<&[u8]> {
        None
    }

    /// The bytes of a range, which lies within the size, if the kernel can copy them from memory
    /// now without waiting for a device. They are for the kernel only, which copies to another
    /// process ([`RemoteUserfaultfd::copy`](crate::sys::RemoteUserfaultfd::copy)) and finds out if
    /// they have gone: a file that was mapped can have become shorter. Regions of this process do
    /// not ask.
    #[inline]
    fn resident(&self, range: Range<u64>) -> Option<*const [u8]> {
        self.bytes()?.get(range.start as usize..range.end as usize).map(std::ptr::from_ref)
    }

    /// Whether [`write_at`](Self::write_at) can work.
    fn is_writable(&self) -> bool {
        false
    }

    /// Makes what was written by [`write_at`](Self::write_at) durable: when it returns, it is there
    /// after a failure of power too. Called by [`Region::sync`](crate::Region::sync), never in a
    /// signal handler, while nothing of the region is locked. By default there is nothing to do,
    /// which is right where `write_at` itself does it.
    ///
    /// # Errors
    ///
    /// When it cannot be said of all that was written.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// Writes what was written to pages of the region: `bytes`, whole pages but for the end of the
    /// source, belong at `offset`. Never called in a signal handler. It may not touch the region. A
    /// panic in the thread that keeps a bound ends the process.
    ///
    /// # Errors
    ///
    /// The pages are still what is to be written then.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _ = (offset, bytes);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A source that may be read in a signal handler.
///
/// # Safety
///
/// [`read_at`](Source::read_at), [`fills_buffer`](Source::fills_buffer), [`zeros`](Source::zeros)
/// and [`bytes`](Source::bytes) run in a signal handler, on a thread that was interrupted at any
/// instruction that touches the region, with all signals blocked. They are async-signal-safe:
/// - no lock and no wait for another thread of this process: the interrupted thread may hold
///   what is waited for;
/// - no allocation and no deallocation, so no destructor that does it;
/// - no thread-local with a lazy initialiser or a destructor, and no state that the interrupted
///   code may be half-way through changing;
/// - no access to a region of this crate (SIGBUS is blocked: the process would be killed), and no
///   jump out of the call;
/// - little stack: of the 8 KiB that Rust gives its threads for signals, a fault takes about 4
///   itself, signal frame included (x86-64, optimised). So `read_at` may use 3 KiB. In a debug
///   build a fault takes 7, which leaves half a KiB: let the source's package be optimised there
///   too (`[profile.dev.package.NAME]`), or give threads a larger stack (`sigaltstack`).
///
/// They may make system calls. A panic ends the process. While `read_at` runs for a fault, the
/// source is not dropped, and no VMA of the region is locked: the region may be changed, and other
/// regions come and go. Only the drop of the region waits for it.
///
/// ```
/// #![allow(unsafe_code)]
/// use pervma_pager::{FrozenRegion, ReadFailed, SignalSafe, Source};
///
/// struct Sevens(u64);
///
/// impl Source for Sevens {
///     fn size(&self) -> u64 {
///         self.0
///     }
///
///     fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
///         buf.fill(7);
///         Ok(())
///     }
/// }
///
/// // SAFETY: it only writes to the buffer it was given.
/// unsafe impl SignalSafe for Sevens {}
///
/// assert_eq!(FrozenRegion::map(Sevens(10_000))?[9_999], 7);
/// # Ok::<(), pervma_pager::Error>(())
/// ```
pub unsafe trait SignalSafe: Source {}

/// A source could not deliver.
///
/// It carries no reason: nothing in a signal handler could use one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source could not deliver the bytes")]
pub struct ReadFailed;

impl<S: Source + ?Sized> Source for Arc<S> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    #[inline]
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        (**self).read_at(offset, buf)
    }

    #[inline]
    fn zeros(&self, range: Range<u64>) -> Option<Range<u64>> {
        (**self).zeros(range)
    }

    #[inline]
    fn fills_buffer(&self) -> bool {
        (**self).fills_buffer()
    }

    #[inline]
    fn bytes(&self) -> Option<&[u8]> {
        (**self).bytes()
    }

    #[inline]
    fn resident(&self, range: Range<u64>) -> Option<*const [u8]> {
        (**self).resident(range)
    }

    fn is_writable(&self) -> bool {
        (**self).is_writable()
    }

    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }
}

// SAFETY: the methods only forward to a source that keeps the contract; the count is not touched.
unsafe impl<S: SignalSafe + ?Sized> SignalSafe for Arc<S> {}

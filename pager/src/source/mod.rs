//! Where the bytes of a region come from.
#![expect(unsafe_code, reason = "a source's contract is what the fault path relies on")]

mod file;
mod memory;

use std::sync::Arc;

pub use file::FileSource;
pub use memory::MemorySource;

/// The bytes behind a [`Region`](crate::Region), read when a page is touched for the first time.
///
/// # Safety
///
/// [`read_at`](Self::read_at) and [`bytes`](Self::bytes) run in a signal handler, on a thread that
/// was interrupted at any instruction that touches the region, with all signals blocked. They are
/// async-signal-safe:
/// - no lock and no wait for another thread of this process: the interrupted thread may hold
///   what is waited for;
/// - no allocation and no deallocation, so no destructor that does it;
/// - no thread-local with a lazy initialiser or a destructor, and no state that the interrupted
///   code may be half-way through changing;
/// - no access to a region of this crate (SIGBUS is blocked: the process would be killed), no
///   jump out of the call, and a small stack: alternate signal stacks are a few KiB.
///
/// They may make system calls. A panic ends the process. While `read_at` runs, the region cannot
/// be unmapped.
///
/// ```
/// #![allow(unsafe_code)]
/// use pervma_pager::{ReadFailed, Region, Source};
///
/// /// Every byte is the number of its page.
/// struct Pages(u64);
///
/// // SAFETY: arithmetic, and writes to the buffer it was given.
/// unsafe impl Source for Pages {
///     fn size(&self) -> u64 {
///         self.0 * 4096
///     }
///
///     fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
///         buf.fill((offset / 4096) as u8);
///         Ok(())
///     }
/// }
///
/// let region = Region::map(Pages(100))?;
/// assert_eq!((region[0], region[99 * 4096]), (0, 99));
/// # Ok::<(), pervma_pager::Error>(())
/// ```
pub unsafe trait Source: Send + Sync {
    /// The size in bytes. Asked once, when the region is mapped, not in a handler.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on; they lie within the size.
    ///
    /// # Errors
    ///
    /// When the bytes cannot be had. The access that wanted them then ends as it does where an
    /// ordinary mapping's file fails: with SIGBUS for whoever handled that before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed>;

    /// All bytes at once, where they are in ordinary memory: pages are then copied from there
    /// without `read_at`. Always the same bytes.
    #[inline]
    fn bytes(&self) -> Option<&[u8]> {
        None
    }
}

/// A source could not deliver.
///
/// It carries no reason: in a signal handler there is nobody to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source could not deliver the bytes")]
pub struct ReadFailed;

// SAFETY: the methods only forward to a source that keeps the contract; the count is not touched.
unsafe impl<S: Source + ?Sized> Source for Arc<S> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    #[inline]
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        (**self).read_at(offset, buf)
    }

    #[inline]
    fn bytes(&self) -> Option<&[u8]> {
        (**self).bytes()
    }
}

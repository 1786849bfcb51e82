//! A slice of bytes that is filled on demand.
#![expect(unsafe_code, reason = "lends the memory as a slice")]

use std::fmt;
use std::ops::Deref;

use crate::source::SignalSafe;
use crate::{Error, Options, Region};

/// The bytes of a [`Source`](crate::Source), each page filled once, when it is first touched.
///
/// It is a slice of exactly the source's size. Dropping it unmaps the memory and drops the source,
/// on the thread that drops it.
///
/// ```
/// use pervma_pager::{MemorySource, FrozenRegion};
///
/// let text = MemorySource::new(b"filled on demand".as_slice());
/// let region = FrozenRegion::map(text)?;
/// assert_eq!(&region[10..], b"demand");
/// # Ok::<(), pervma_pager::Error>(())
/// ```
pub struct FrozenRegion {
    // Nothing of it is changed while the region is a slice.
    region: Region,
}

impl FrozenRegion {
    /// Maps `source`, page by page and in the signal handler; for anything else there are
    /// [`Options`], and [`Region::freeze`]. The first region of a process installs the SIGBUS
    /// handler.
    ///
    /// # Errors
    ///
    /// As for [`Options::map`].
    ///
    /// # Panics
    ///
    /// In a signal handler, so also in a source's methods on the fault path.
    pub fn map(source: impl SignalSafe + 'static) -> Result<Self, Error> {
        Options::new().map(source)?.freeze()
    }

    pub(crate) fn new(region: Region) -> Self {
        Self { region }
    }

    /// Makes it a region that can be changed again.
    #[must_use]
    pub fn thaw(self) -> Region {
        self.region
    }
}

impl Deref for FrozenRegion {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is registered, with a userfaultfd that lives as long as it does. A
        // page is filled once, and an access goes on only when its page is there (or is tried
        // again). Whoever could discard, write or move has a `Region`, and nothing else has
        // this one; it has no evictor, all of it is mapped and may be read, and none of it written
        // (`freeze`).
        let memory = unsafe { self.region.mapping().memory.bytes() };
        &memory[..self.region.len()]
    }
}

impl AsRef<[u8]> for FrozenRegion {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for FrozenRegion {
    /// The addresses; the content is not touched.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrozenRegion").field(&self.region).finish()
    }
}

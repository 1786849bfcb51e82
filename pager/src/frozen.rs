//! A slice of bytes that is filled on demand.
#![expect(unsafe_code, reason = "lends the memory as a slice")]

use std::fmt;
use std::ops::Deref;

use crate::Error;
use crate::accesses::Accesses;
use crate::options::Options;
use crate::region::Region;
use crate::signal::SignalsBlocked;
use crate::source::SignalSafe;
use crate::sys::Access;

/// The bytes of a [`Source`](crate::Source), each page filled once, when it is first touched.
///
/// It is a slice of exactly the source's size. Dropping it unmaps the memory and drops the source,
/// on the thread that drops it.
///
/// With [granules](Options::granule) of 2 MiB or more it is made of huge pages where it can be: see
/// [`limits`](crate::limits).
///
/// ```
/// use pervma_pager::{FrozenRegion, MemorySource};
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

    /// Makes it a region that can be changed again. It waits for faults under way.
    #[must_use]
    pub fn thaw(self) -> Region {
        self.region.end_moving_huge();
        self.region
    }
}

impl Region {
    /// Makes it a slice that does not change any more: what is present stays, a bound of resident
    /// pages is lifted, and writes end in SIGSEGV. What comes from now on may come in huge pages:
    /// see [`limits`](crate::limits).
    ///
    /// Pages that were discarded or evicted before are read again, once.
    ///
    /// # Errors
    ///
    /// When some of it is not mapped or [protected](Self::protect) against reads; when the kernel
    /// or memory run out. The region is dropped then: [write back](Self::write_back) first what
    /// must not be lost.
    pub fn freeze(mut self) -> Result<FrozenRegion, Error> {
        self.lift_bound();
        let _blocked = SignalsBlocked::new().map_err(Error::Mask)?;
        self.end_leaked_holds();
        let all = self.part(0..self.len())?;
        let exclusion = self.exclude(&all)?;
        let parts = Accesses::of(&exclusion, self.mapping())?;
        drop(exclusion);
        if let Some(gap) = parts.gap() {
            return Err(Error::NotMapped(gap));
        }
        for (part, access) in parts.mapped() {
            match access {
                Access::None => return Err(Error::NoAccess(part)),
                Access::Read | Access::ReadExecute => {}
                Access::ReadWrite => {
                    self.protect(part.start..part.end.min(self.len()), Access::Read)?;
                }
            }
        }
        self.begin_to_move_huge(&all);
        Ok(FrozenRegion { region: self })
    }
}

impl Deref for FrozenRegion {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is registered, with a userfaultfd that lives as long as it does. A
        // page is filled once, and an access goes on only when its page is present (or is tried
        // again). To discard, write or move takes a `Region`, and this is the only handle to this
        // one; it has no evictor, all of it is mapped and may be read, and none of it written
        // (`freeze`). That a huge page that comes can be written for a moment gives nobody the
        // right to.
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

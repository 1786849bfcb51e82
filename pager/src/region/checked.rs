//! Copies that return an error where an ordinary access would end in a signal.

use std::ops::Range;

use super::Region;
use crate::copy;
use crate::error::{AccessError, Refusal};
use crate::filler::{Filler, Need, by_pages};
use crate::mapping::PAGE;

impl Region {
    /// Copies bytes out, from `offset` on, as [`read`](Self::read) does, and returns an error where
    /// that would end in SIGBUS or SIGSEGV: the page cannot be had, the
    /// [bound](crate::Options::resident) is reached, nothing is mapped, or the protection forbids
    /// it. What was copied before is in `bytes`, as much as the error says.
    ///
    /// The thread fills what is missing itself, in both modes: no signal is raised, and
    /// [`OnFailure`](crate::OnFailure) is not asked. It waits as an access does, for the source,
    /// for other pages to go, for a change of the range to end. Meanwhile the thread takes no
    /// signal but those of faults.
    ///
    /// It may be called in a method of another region's source that runs on a handler thread; in
    /// one of this region's it is an error. Not in a signal handler: that may have interrupted what
    /// it waits for.
    ///
    /// ```
    /// use pervma_pager::{MemorySource, Options, Refusal};
    ///
    /// let region = Options::new().map(MemorySource::new(vec![7; 3 * 4096]))?;
    /// region.unmap(4096..8192)?;
    /// let mut bytes = [0; 100];
    /// let error = region.read_checked(4000, &mut bytes).unwrap_err();
    /// assert_eq!((error.offset(), error.done()), (4096, 96));
    /// assert_eq!(error.refusal(), Refusal::NotMapped);
    /// assert_eq!(bytes[..96], [7; 96]);
    /// # Ok::<(), pervma_pager::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// At the first byte that cannot be accessed: see [`Refusal`].
    pub fn read_checked(&self, offset: usize, bytes: &mut [u8]) -> Result<(), AccessError> {
        // The caller's memory may be a region's too: it is touched while nothing is locked.
        let mut copied = [0; PAGE];
        self.page_by_page(offset, bytes.len(), |filler, at, done| {
            let copied = &mut copied[..at.len()];
            filler.with_page(at.start, Need::Read, || {
                copy::from_shared(&self.mapping.memory, at.start, copied);
            })?;
            bytes[done..][..at.len()].copy_from_slice(copied);
            Ok(())
        })
    }

    /// Copies bytes in, from `offset` on, as [`write`](Self::write) does, and returns an error
    /// where that would end in a signal. What was copied before is in the region, as much as the
    /// error says. Otherwise as [`read_checked`](Self::read_checked).
    ///
    /// # Errors
    ///
    /// At the first byte that cannot be accessed: see [`Refusal`].
    pub fn write_checked(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        let mut copied = [0; PAGE];
        self.page_by_page(offset, bytes.len(), |filler, at, done| {
            let copied = &mut copied[..at.len()];
            copied.copy_from_slice(&bytes[done..][..at.len()]);
            filler.with_page(at.start, Need::Write, || {
                copy::to_shared(&self.mapping.memory, at.start, copied);
            })
        })
    }

    /// Does something to each part of some bytes that lies in one page, given how many bytes are
    /// before it.
    fn page_by_page(
        &self,
        offset: usize,
        bytes: usize,
        mut work: impl FnMut(&mut Filler<'_>, Range<usize>, usize) -> Result<(), Refusal>,
    ) -> Result<(), AccessError> {
        let refused = |done: usize| move |refusal| AccessError::new(offset + done, done, refusal);
        let mut filler = Filler::new(&self.mapping).map_err(refused(0))?;
        let inside = bytes.min(self.len().saturating_sub(offset));
        for at in by_pages(offset..offset + inside) {
            let done = at.start - offset;
            work(&mut filler, at, done).map_err(refused(done))?;
        }
        if inside < bytes { Err(refused(inside)(Refusal::NotMapped)) } else { Ok(()) }
    }
}

//! Filling pages before they are touched.

use std::ops::Range;

use super::Region;
use crate::Error;
use crate::error::{AccessError, Refusal};
use crate::filler::{Filler, Need};
use crate::held::Held;
use crate::holds::Hold;

/// How far a range was filled ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prefetched {
    /// Bytes of the pages that came by the call; what other threads filled at the same time is not
    /// counted.
    pub bytes: usize,
    /// What of the range lies before this offset was present. It is the end of the range, or where
    /// the bound did not let more come.
    pub end: usize,
}

impl Region {
    /// Fills what is missing of a range, granule by granule and in this thread, so that accesses to
    /// it are no faults: read ahead, in one thread or several.
    ///
    /// In a region with a [bound](crate::Options::resident) other pages go for it. Those that the
    /// call has come to stay until it returns, and it stops when they are three quarters of the
    /// bound, together with what else is held, or when an access would fail for them:
    /// [`Prefetched::end`] says where. Afterwards they are pages as any, and the last to go of what
    /// is present.
    ///
    /// The thread takes no signal, but those of faults, while it fills a granule. As for
    /// [`read_checked`](Self::read_checked), no signal is raised, and it may be called in a method
    /// of another region's source, not in a signal handler.
    ///
    /// ```
    /// use pervma_pager::{MemorySource, Options};
    ///
    /// let options = Options::new().granule(16 << 10).resident(64 << 10);
    /// let region = options.map(MemorySource::new(vec![7; 1 << 20]))?;
    /// let some = region.prefetch(0..32 << 10)?;
    /// assert_eq!((some.bytes, some.end), (32 << 10, 32 << 10));
    /// let all = region.prefetch(0..region.len())?;
    /// assert_eq!((all.bytes, all.end), (16 << 10, 48 << 10)); // three quarters are there
    /// # Ok::<(), pervma_pager::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the range is not whole pages; at the first page that cannot be had, is not mapped or
    /// may not be read ([`Error::Access`], with the bytes that came before). What came stays.
    #[doc(alias = "madvise")]
    #[doc(alias = "MADV_WILLNEED")]
    #[doc(alias = "MADV_POPULATE_READ")]
    pub fn prefetch(&self, range: Range<usize>) -> Result<Prefetched, Error> {
        let part = self.part(range.clone())?;
        let mapping = &*self.mapping;
        let (granule, page_size) = (mapping.backing.granule, self.page_size());
        let refused = |page, came, refusal| Error::from(AccessError::new(page, came, refusal));
        let mut filler = Filler::new(mapping).map_err(|refusal| refused(part.start, 0, refusal))?;
        let held = Held::new(mapping, mapping.page_of(part.start), Hold::AgainstEviction);
        let mut at = part.start;
        while at < part.end {
            let end = (at / granule * granule).saturating_add(granule).min(part.end);
            if !held.extend(mapping.page_of(end)) {
                return Ok(Prefetched { bytes: filler.came(), end: at });
            }
            for page in (at..end).step_by(page_size) {
                match filler.with_page(page, Need::Ahead, || ()) {
                    Ok(()) => {}
                    Err(Refusal::BoundReached) => {
                        return Ok(Prefetched { bytes: filler.came(), end: page });
                    }
                    Err(refusal) => return Err(refused(page, filler.came(), refusal)),
                }
            }
            at = end;
            filler.take_signals().map_err(|refusal| refused(at, filler.came(), refusal))?;
        }
        Ok(Prefetched { bytes: filler.came(), end: range.end })
    }
}

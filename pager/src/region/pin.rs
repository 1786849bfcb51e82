//! Pages that are to stay.

use std::fmt;
use std::ops::Range;

use super::Region;
use crate::Error;
use crate::error::AccessError;
use crate::filler::{Filler, Need};
use crate::held::Held;
use crate::holds::Hold;
use crate::mapping::PAGE;

/// Pages of a region that are present and stay so until this is dropped. Made by [`Region::pin`]
/// and [`Region::pin_for_writes`].
pub struct Pin<'r> {
    _held: Held<'r>,
    range: Range<usize>,
}

impl Region {
    /// Makes the pages of a range present, and keeps them so until the [`Pin`] is dropped: for
    /// system calls that read them, in signal mode above all, where a missing page is `EFAULT`, and
    /// for devices.
    ///
    /// A pinned page is not given back to keep a [bound](crate::Options::resident);
    /// [`discard`](Self::discard) and [`unmap`](Self::unmap) of it fail ([`Error::Pinned`]), as
    /// `MADV_DONTNEED` of locked memory does; [`resize`](Self::resize) and
    /// [`relocate`](Self::relocate) need the region for themselves, which a `Pin` borrows.
    /// [Written back](Self::write_back) it stays where it is, and stays to be written.
    /// [`protect`](Self::protect) does to it what it does to others. The kernel may still write it
    /// to swap: `mlock` keeps it from that.
    ///
    /// Pins count: a page that is pinned twice stays until both pins are dropped, on whichever
    /// thread. One that is leaked (`mem::forget`) is held until the region is dropped or frozen. A
    /// forked child does not have the region, and its copy of a pin is nothing.
    ///
    /// All pages of the range are admitted at once, or it fails: with a bound three quarters of it
    /// may be pinned, all pins together. It does not wait for other pins, so a thread may hold any
    /// number of them; it waits, as an access does, for the source and for other pages to go. As
    /// for [`read_checked`](Self::read_checked), no signal is raised; not in a signal handler.
    ///
    /// ```
    /// use std::io::Write;
    /// use pervma_pager::{MemorySource, Options};
    ///
    /// let region = Options::new().map(MemorySource::new(vec![7; 1 << 20]))?;
    /// let pin = region.pin(0..64 << 10)?;
    /// assert!(region.discard(0..4096).is_err());
    /// // SAFETY: the bytes are there, and nothing writes them meanwhile.
    /// let bytes = unsafe { std::slice::from_raw_parts(region.as_ptr(), 64 << 10) };
    /// tempfile::tempfile()?.write_all(bytes)?; // not EFAULT
    /// drop(pin);
    /// region.discard(0..4096)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// It borrows the region:
    ///
    /// ```compile_fail,E0502
    /// # use pervma_pager::{MemorySource, Options};
    /// let mut region = Options::new().map(MemorySource::new(vec![7; 1 << 20])).unwrap();
    /// let pin = region.pin(0..4096).unwrap();
    /// region.relocate(2 << 20).unwrap();
    /// drop(pin);
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::PinBeyondBound`] when it is too much; [`Error::Access`] at the first page that
    /// cannot be had, is not mapped or may not be read; when the range is not whole pages. Nothing
    /// is pinned then.
    #[doc(alias = "mlock")]
    pub fn pin(&self, range: Range<usize>) -> Result<Pin<'_>, Error> {
        self.pin_for(range, Need::Read)
    }

    /// Pins pages as [`pin`](Self::pin) does, and lets them be written: for system calls that write
    /// them. They count as written from now on.
    ///
    /// # Errors
    ///
    /// As for `pin`, and when a page may not be written.
    #[doc(alias = "mlock")]
    #[doc(alias = "MADV_POPULATE_WRITE")]
    pub fn pin_for_writes(&self, range: Range<usize>) -> Result<Pin<'_>, Error> {
        self.pin_for(range, Need::Write)
    }

    /// Ends what still holds pages. Each of those borrows the region, so it can only have been
    /// leaked. The caller blocks signals.
    pub(crate) fn end_leaked_holds(&mut self) {
        let mapping = &self.mapping;
        let pages = [Hold::Pinned, Hold::AgainstEviction]
            .map(|how| mapping.holds.end_all(how, &mapping.records));
        if let Some(share) = &mapping.backing.share {
            share.let_go(mapping.backing.counted(pages.iter().sum()));
        }
    }

    fn pin_for(&self, range: Range<usize>, need: Need) -> Result<Pin<'_>, Error> {
        let part = self.part(range.clone())?;
        let mapping = &*self.mapping;
        let refused = |page, came, refusal| Error::from(AccessError::new(page, came, refusal));
        let mut filler = Filler::new(mapping).map_err(|refusal| refused(part.start, 0, refusal))?;
        let pages = mapping.pages(&part);
        let held = Held::new(mapping, pages.start, Hold::Pinned);
        if !held.extend(pages.end) {
            let share = mapping.backing.share.as_ref();
            let (bound, held) = share.map_or((0, 0), |share| share.limit_and_held());
            return Err(Error::PinBeyondBound {
                bytes: part.len(),
                held: held * PAGE,
                bound: bound * PAGE,
            });
        }
        for page in part.step_by(self.page_size()) {
            let present = filler.with_page(page, need, || ());
            let present = present.and_then(|()| filler.take_signals());
            present.map_err(|refusal| refused(page, filler.came(), refusal))?;
        }
        Ok(Pin { _held: held, range })
    }
}

impl Pin<'_> {
    /// What is pinned, as offsets in the region.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

impl fmt::Debug for Pin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("range", &format_args!("{:#x?}", self.range)).finish()
    }
}

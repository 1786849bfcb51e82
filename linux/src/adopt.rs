//! Mappings that are there already.

use core::ops::Range;

use pervma::Platform;

use crate::abi::{off_page, pages};
use crate::backing::Backing;
use crate::call::{EVERYTHING, Scope};
use crate::counts::Counts;
use crate::errno::Errno;
use crate::mm::{Mm, no_memory};
use crate::vma::Vma;

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Takes over a mapping that is there: it is in the map from now on, exactly so. Nothing merges
    /// with it, no limit is asked, and the [`Backing`] is not told; it is counted, as one that a
    /// call has made.
    ///
    /// So a process is modelled that has run for a while, one mapping after the other, and what no
    /// call can map: the kernel's own pages, [`Source::Special`](crate::Source::Special), and the
    /// memory of devices, which has the flags [`VmFlags::SPECIAL`](crate::VmFlags::SPECIAL).
    ///
    /// What else such a process has is in the [`Config`](crate::Config) that the map is made with,
    /// and in [`adopt_counts`](Self::adopt_counts).
    ///
    /// What later calls make anew, [`AnonVma`](crate::AnonVma)s and [`Object`](crate::Object)s, has
    /// higher numbers than any that was taken over.
    ///
    /// ```
    /// use pervma_linux::{Config, Errno, Mm, NoBacking, Source, VmFlags, Vma};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// let flags = VmFlags::READ | VmFlags::EXEC | VmFlags::MAYALL | VmFlags::DONTEXPAND;
    /// let source = Source::Special("[vdso]".into());
    /// let vdso = Vma { flags, page_offset: 0, source, anon: None, name: None };
    /// mm.adopt(0x7000_0000..0x7000_2000, vdso)?;
    /// assert!(mm.maps()?.contains("r-xp") && mm.maps()?.ends_with("[vdso]\n"));
    /// assert_eq!(mm.munmap(0x7000_0000, 0x1000), Err(Errno::EINVAL));
    /// assert_eq!(mm.munmap(0x7000_0000, 0x2000), Ok(()));
    /// # Ok::<(), Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range is empty, has no whole pages or reaches above the addresses of
    /// processes; `EEXIST` if something is mapped in it; `ENOMEM` when memory runs out; `EAGAIN` as
    /// for every call.
    pub fn adopt(&self, range: Range<usize>, vma: Vma) -> Result<(), Errno> {
        let is_above = range.end > self.task_size;
        if range.is_empty() || is_above || off_page(range.start) || off_page(range.end) {
            return Err(Errno::EINVAL);
        }
        let more = pages(range.end - range.start);
        let scope = Scope { more, locks: true, ..Scope::new(range.clone()) };
        let change = &mut self.begin(&scope)?.change;
        if change.first_in(&range).is_some() {
            return Err(Errno::EEXIST);
        }
        let (flags, bytes) = (vma.flags, range.end - range.start);
        change.state.number_above(&vma);
        change.edit.insert(range, vma).map_err(|error| no_memory(error.kind))?;
        change.count_new(flags, bytes);
        Ok(())
    }

    /// Takes over the counts of pages, by which limits go. They are those of the mappings that were
    /// taken over, but for what is locked: see [`Counts::locked`].
    ///
    /// ```
    /// use pervma_linux::{Config, Counts, Mm, NoBacking};
    ///
    /// let mm = Mm::new(NoBacking, Config::default());
    /// mm.adopt_counts(Counts { locked: 1, ..mm.counts() })?;
    /// assert_eq!(mm.counts().locked, 1);
    /// # Ok::<(), pervma_linux::Errno>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `EAGAIN` as for every call.
    pub fn adopt_counts(&self, counts: Counts) -> Result<(), Errno> {
        *self.begin(&Scope::new(EVERYTHING))?.change.state.counts = counts;
        Ok(())
    }
}

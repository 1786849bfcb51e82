//! A space looked at as a whole, while nobody changes it.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::gap::{GapError, GapSearch};
use crate::mm::ReadSection;
use crate::platform::{Platform, with_default_platform};
use crate::space::AddressSpace;
use crate::thread::{Guards, Note};

with_default_platform! {
    /// The mmap lock held for reading, from [`view`](AddressSpace::view) or
    /// [`Edit::downgrade`](crate::Edit::downgrade): no edit begins while it lives, so every VMA is
    /// as it is, and can be looked at without a lock of its own.
    ///
    /// Readers go on beside it, and so do exclusions that wait. A thread that holds a view is told
    /// that it holds a guard where it would wait for itself. A view that is forgotten
    /// ([`core::mem::forget`]) is never over: nobody can edit the space again.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "text")?;
    ///
    /// let view = space.view()?;
    /// assert_eq!(view.get(0x2000), Some((0x1000..0x3000, &"text")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "a view ends when it is dropped"]
    #[doc(alias("mmap_read_lock", "mmap_read_unlock"))]
    pub struct View<'s, T, P> {
        space: &'s AddressSpace<T, P>,
        section: ReadSection<'s, P>,
        _noted: Note<Guards, P>,
        /// What the edit that this was has cut or merged away: dropped last, since its destructors may
        /// edit the space.
        _leftover: Vec<T>,
    }
}

impl<'s, T, P: Platform> View<'s, T, P> {
    pub(crate) fn new(
        space: &'s AddressSpace<T, P>,
        section: ReadSection<'s, P>,
        leftover: Vec<T>,
    ) -> Self {
        Self { space, section, _noted: Note::new(space.name()), _leftover: leftover }
    }

    /// The range and payload of the VMA that holds `addr`.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.view()?.get(0x1fff), Some((0x1000..0x4000, &"text")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "vma_lookup")]
    pub fn get(&self, addr: usize) -> Option<(Range<usize>, &T)> {
        self.space.get(&self.section, addr)
    }

    /// All VMAs, in order of address.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "text")?;
    /// assert!(space.view()?.iter().eq([(0x1000..0x3000, &"text")]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "for_each_vma")]
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &T)> {
        self.space.vmas(&self.section, 0..usize::MAX)
    }

    /// The VMAs that overlap `range`, in order of address, each as a whole. The first of
    /// `addr..usize::MAX` is the one that holds `addr`, or else the next.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "text")?;
    /// assert!(space.view()?.overlapping(0x2000..0x8000).eq([(0x1000..0x3000, &"text")]));
    /// assert_eq!(space.view()?.overlapping(0x3000..usize::MAX).next(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("find_vma", "find_vma_intersection", "for_each_vma_range"))]
    pub fn overlapping(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, &T)> {
        self.space.vmas(&self.section, range)
    }

    /// Finds room; see [`GapSearch`]. It may be gone when the view is.
    ///
    /// ```
    /// use pervma::{AddressSpace, GapSearch};
    ///
    /// let space = AddressSpace::<()>::new(4096);
    /// assert_eq!(space.view()?.find_gap(&GapSearch::new(0x2000))?, 0..0x2000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When there is no such room, or the search asks for something impossible.
    pub fn find_gap(&self, search: &GapSearch) -> Result<Range<usize>, GapError> {
        self.space.find_gap(&self.section, search)
    }
}

impl<T, P: Platform> fmt::Debug for View<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("space", self.space).finish_non_exhaustive()
    }
}

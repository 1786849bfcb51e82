//! Looking at the VMAs of a space while the mmap lock is held.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::Range;

use crate::map::Vmas;
use crate::platform::Platform;
use crate::range::Span;
use crate::slots::Entry;
use crate::vma_id::VmaId;

impl<T, P: Platform> Vmas<'_, T, P> {
    /// The range and payload of the VMA that holds `addr`.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x2000, "bss")?;
    /// assert_eq!(edit.get(0x1800), Some((0x1000..0x2000, &"bss")));
    /// assert_eq!(edit.get(0x2000), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "vma_lookup")]
    pub fn get(&self, addr: usize) -> Option<(Range<usize>, &T)> {
        let vma = self.holding(addr)?.vma()?;
        Some((vma.span().range(), vma.payload()))
    }

    /// The identity of the VMA that holds `addr`, to find it again; see [`VmaId`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x2000, "bss")?;
    /// let id = edit.id(0x1800).expect("mapped");
    /// assert_eq!(edit.get_by_id(id), Some((0x1000..0x2000, &"bss")));
    /// drop(edit);
    /// assert_eq!(*space.try_read_id(id)?, "bss");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn id(&self, addr: usize) -> Option<VmaId> {
        Some(self.holding(addr)?.vma()?.id())
    }

    /// The range and payload of the VMA that `id` names, unless it is gone.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x2000, "bss")?;
    /// let id = space.view()?.id(0x1000).expect("mapped");
    ///
    /// let mut edit = space.edit()?;
    /// edit.replace(0x1000..0x2000, "heap")?;
    /// assert_eq!(edit.get_by_id(id), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_by_id(&self, id: VmaId) -> Option<(Range<usize>, &T)> {
        let vma = self.holding(id.start)?.vma()?;
        (vma.id() == id).then(|| (vma.span().range(), vma.payload()))
    }

    /// All VMAs, in order of address.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x5000..0x6000, "b")?;
    /// space.insert(0x1000..0x3000, "a")?;
    /// assert!(space.view()?.iter().eq([(0x1000..0x3000, &"a"), (0x5000..0x6000, &"b")]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "for_each_vma")]
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &T)> {
        self.overlapping(0..usize::MAX)
    }

    /// The VMAs that overlap `range`, in order of address, each as a whole. The first of
    /// `addr..usize::MAX` is the one that holds `addr`, or else the next.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "a")?;
    /// space.insert(0x5000..0x6000, "b")?;
    /// let view = space.view()?;
    /// assert!(view.overlapping(0x2000..0x5000).eq([(0x1000..0x3000, &"a")]));
    /// let next = view.overlapping(0x3000..usize::MAX).next();
    /// assert_eq!(next, Some((0x5000..0x6000, &"b")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("find_vma", "find_vma_intersection", "for_each_vma_range"))]
    pub fn overlapping(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, &T)> {
        let Range { start, end } = range;
        // An empty range overlaps nothing, also where it lies inside of a VMA.
        let span = if start < end { Span { start, end } } else { Span { start: 0, end: 0 } };
        self.entries(span).filter_map(Entry::vma).map(|vma| (vma.span().range(), vma.payload()))
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for Vmas<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (range, payload) in self.iter() {
            map.entry(&format_args!("{range:#x?}"), payload);
        }
        map.finish()
    }
}

//! Looking at the VMAs of a space while the mmap lock is held.
#![forbid(unsafe_code)]

use core::fmt;
use core::iter::FusedIterator;
use core::ops::Range;

use crate::host::DefaultPlatform;
use crate::map::Vmas;
use crate::platform::Platform;
use crate::range::Span;
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

    /// All VMAs, in order of address, or from the last one backwards.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x5000..0x6000, "b")?;
    /// space.insert(0x1000..0x3000, "a")?;
    /// let view = space.view()?;
    /// assert!(view.iter().eq([(0x1000..0x3000, &"a"), (0x5000..0x6000, &"b")]));
    /// assert_eq!(view.iter().next_back(), Some((0x5000..0x6000, &"b")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "for_each_vma")]
    pub fn iter(&self) -> VmasIter<'_, T, P> {
        self.overlapping(0..usize::MAX)
    }

    /// The VMAs that overlap `range`, in order of address or backwards, each as a whole. The first
    /// of `addr..usize::MAX` is the one that holds `addr`, or else the next; the last of `0..addr`
    /// is the one that holds the byte before `addr`, or else the one before.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "a")?;
    /// space.insert(0x5000..0x6000, "b")?;
    /// let view = space.view()?;
    /// assert!(view.overlapping(0x2000..0x5000).eq([(0x1000..0x3000, &"a")]));
    /// let next = view.overlapping(0x3000..usize::MAX).next();
    /// assert_eq!(next, Some((0x5000..0x6000, &"b")));
    /// let before = view.overlapping(0..0x5000).next_back();
    /// assert_eq!(before, Some((0x1000..0x3000, &"a")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("find_vma", "find_vma_prev", "find_vma_intersection", "for_each_vma_range"))]
    pub fn overlapping(&self, range: Range<usize>) -> VmasIter<'_, T, P> {
        VmasIter { vmas: self, left: Span { start: range.start, end: range.end }, begun: false }
    }

    /// How many VMAs there are; reservations do not count.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x2000, "bss")?;
    /// assert_eq!(edit.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "map_count")]
    pub fn len(&self) -> usize {
        self.map().len()
    }

    /// Whether there is no VMA.
    ///
    /// ```
    /// let space = pervma::AddressSpace::<u32>::new(4096);
    /// assert!(space.view()?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The VMAs of a [`Vmas`], in order of address or backwards, from [`Vmas::iter`] and
/// [`Vmas::overlapping`].
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// space.insert(0x1000..0x3000, "text")?;
/// for (range, payload) in &*space.view()? {
///     assert_eq!((range, *payload), (0x1000..0x3000, "text"));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VmasIter<'m, T, P: Platform = DefaultPlatform> {
    vmas: &'m Vmas<'m, T, P>,
    /// What was not shown yet overlaps this.
    left: Span,
    /// Whether VMAs that start before that have been shown.
    begun: bool,
}

impl<'m, T, P: Platform> Iterator for VmasIter<'m, T, P> {
    type Item = (Range<usize>, &'m T);

    fn next(&mut self) -> Option<Self::Item> {
        // Each step looks anew: between two of them the thread may end a reservation of its own.
        while self.left.start < self.left.end {
            let Span { start, end } = self.left;
            let entry = if self.begun { None } else { self.vmas.holding(start) };
            let entry = entry.or_else(|| self.vmas.first_from(start))?;
            if entry.span().start >= end {
                break;
            }
            (self.left.start, self.begun) = (entry.span().end, true);
            if let Some(vma) = entry.vma() {
                return Some((vma.span().range(), vma.payload()));
            }
        }
        None
    }
}

impl<T, P: Platform> DoubleEndedIterator for VmasIter<'_, T, P> {
    fn next_back(&mut self) -> Option<Self::Item> {
        while self.left.start < self.left.end {
            let entry = self.vmas.floor(self.left.end - 1)?;
            if entry.span().end <= self.left.start {
                break;
            }
            self.left.end = entry.span().start;
            if let Some(vma) = entry.vma() {
                return Some((vma.span().range(), vma.payload()));
            }
        }
        None
    }
}

impl<T, P: Platform> FusedIterator for VmasIter<'_, T, P> {}

impl<T, P: Platform> Clone for VmasIter<'_, T, P> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for VmasIter<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_map(f, self.clone())
    }
}

impl<'m, T, P: Platform> IntoIterator for &'m Vmas<'_, T, P> {
    type Item = (Range<usize>, &'m T);
    type IntoIter = VmasIter<'m, T, P>;

    fn into_iter(self) -> VmasIter<'m, T, P> {
        self.iter()
    }
}

/// Writes VMAs as a map from ranges.
fn fmt_map<'m, T: fmt::Debug + 'm>(
    f: &mut fmt::Formatter<'_>,
    vmas: impl Iterator<Item = (Range<usize>, &'m T)>,
) -> fmt::Result {
    let mut map = f.debug_map();
    for (range, payload) in vmas {
        map.entry(&format_args!("{range:#x?}"), payload);
    }
    map.finish()
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for Vmas<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_map(f, self.iter())
    }
}

//! Finding a gap.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::Range;

use crate::btree::Wanted;
use crate::map::Vmas;
use crate::platform::Platform;
use crate::range::Span;
use crate::slots::Entry;

/// The description of a gap to find.
///
/// The answer is the lowest place, or the highest, in the gaps within the bounds that hold `size +
/// align - granularity` bytes: there an aligned place must fit. That is all that Linux looks at.
/// Where there is no such gap, the answer is the lowest place, or the highest, in any gap.
///
/// Finding it takes a number of steps logarithmic in the VMAs. But the first search of the second
/// kind for an alignment looks at each gap once, and one that follows changes looks anew around
/// them: it is noted how large the aligned gaps are, for up to four alignments at a time.
///
/// ```
/// use pervma::{AddressSpace, GapSearch};
///
/// let space = AddressSpace::new(4096);
/// let mut edit = space.edit()?;
/// edit.insert(0x20_0000..0x60_1000, "guest memory")?;
///
/// let huge = GapSearch::new(0x20_0000).aligned(0x20_0000).within(0x1000..0x4000_0000);
/// assert_eq!(edit.find_gap(&huge)?, 0x80_0000..0xa0_0000);
/// assert_eq!(edit.find_gap(&huge.top_down())?, 0x3fe0_0000..0x4000_0000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "vm_unmapped_area_info")]
pub struct GapSearch {
    size: usize,
    align: usize,
    within: Range<usize>,
    top_down: bool,
}

impl GapSearch {
    /// A gap of `size` bytes, anywhere, the lowest first.
    ///
    /// ```
    /// use pervma::{AddressSpace, GapSearch};
    ///
    /// let space = AddressSpace::<()>::new(4096);
    /// assert_eq!(space.view()?.find_gap(&GapSearch::new(0x3000))?, 0..0x3000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(size: usize) -> Self {
        Self { size, align: 1, within: 0..usize::MAX, top_down: false }
    }

    /// Starting at a multiple of `align` bytes, a power of two. It is at least the space's
    /// granularity.
    ///
    /// ```
    /// use pervma::{AddressSpace, GapSearch};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0..0x1000, ())?;
    /// let search = GapSearch::new(0x1000).aligned(0x1_0000);
    /// assert_eq!(space.view()?.find_gap(&search)?, 0x1_0000..0x1_1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn aligned(mut self, align: usize) -> Self {
        self.align = align;
        self
    }

    /// All of it within `bounds`.
    ///
    /// ```
    /// use pervma::{AddressSpace, GapError, GapSearch};
    ///
    /// let space = AddressSpace::<()>::new(4096);
    /// let search = GapSearch::new(0x2000).within(0x1000..0x2000);
    /// assert_eq!(space.view()?.find_gap(&search), Err(GapError::NotFound));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn within(mut self, bounds: Range<usize>) -> Self {
        self.within = bounds;
        self
    }

    /// The highest first.
    ///
    /// ```
    /// use pervma::{AddressSpace, GapSearch};
    ///
    /// let space = AddressSpace::<()>::new(4096);
    /// let search = GapSearch::new(0x1000).within(0..0x8000).top_down();
    /// assert_eq!(space.view()?.find_gap(&search)?, 0x7000..0x8000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    #[doc(alias = "VM_UNMAPPED_AREA_TOPDOWN")]
    pub const fn top_down(mut self) -> Self {
        self.top_down = true;
        self
    }
}

impl<T, P: Platform> Vmas<'_, T, P> {
    /// Finds a gap; see [`GapSearch`]. In a view it may be gone when the view is.
    ///
    /// ```
    /// use pervma::{AddressSpace, GapSearch};
    ///
    /// let space = AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x3000, "a")?;
    /// let gap = edit.find_gap(&GapSearch::new(0x2000))?;
    /// assert_eq!(gap, 0x3000..0x5000);
    /// edit.insert(gap, "b")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When there is no such gap, or the search asks for something impossible.
    #[doc(alias("vm_unmapped_area", "mas_empty_area"))]
    pub fn find_gap(&self, search: &GapSearch) -> Result<Range<usize>, GapError> {
        let GapSearch { size, align, within: Range { start, end }, top_down } = *search;
        let granularity = self.map().granularity();
        if size == 0 || !size.is_multiple_of(granularity) {
            return Err(GapError::Size { size });
        }
        if !align.is_power_of_two() {
            return Err(GapError::Alignment { align });
        }
        let (bounds, align) = (Span { start, end }, align.max(granularity));
        let find = |min_len, of_which_aligned| {
            let search = Search { size, align, min_len, of_which_aligned, bounds, vmas: self };
            if top_down { search.highest() } else { search.lowest() }
        };
        let in_any_place = size.checked_add(align - granularity);
        let found = in_any_place
            .and_then(|min_len| find(min_len, 1))
            .or_else(|| if align == granularity { None } else { find(size, align) });
        found.map(|start| start..start + size).ok_or(GapError::NotFound)
    }
}

/// Why no gap was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapError {
    /// The size is 0 or no multiple of the space's granularity.
    Size {
        /// The size that was asked for.
        size: usize,
    },
    /// The alignment is no power of two.
    Alignment {
        /// The alignment that was asked for.
        align: usize,
    },
    /// There is no such gap.
    NotFound,
}

impl fmt::Display for GapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { size } => write!(f, "{size:#x} bytes cannot be mapped"),
            Self::Alignment { align } => write!(f, "the alignment {align:#x} is no power of two"),
            Self::NotFound => f.write_str("there is no such gap"),
        }
    }
}

impl core::error::Error for GapError {}

struct Search<'m, 's, T, P: Platform> {
    size: usize,
    align: usize,
    /// How many bytes a gap has at least, as far as it lies within the bounds...
    min_len: usize,
    /// ... and behind the first multiple of this, 1 where an aligned place must fit into so many.
    of_which_aligned: usize,
    bounds: Span,
    vmas: &'m Vmas<'s, T, P>,
}

impl<T, P: Platform> Search<'_, '_, T, P> {
    fn lowest(&self) -> Option<usize> {
        let mut gap = self.gap_after(self.vmas.floor(self.bounds.start));
        loop {
            if let Some(start) = self.fit_low(gap) {
                return Some(start);
            }
            let rest = Span { start: gap.end, end: self.bounds.end };
            gap = self.gap_after(Some(self.vmas.first_gap(self.wanted(rest))?));
        }
    }

    fn highest(&self) -> Option<usize> {
        let last = self.bounds.end.checked_sub(1)?;
        let mut before = self.vmas.floor(last);
        loop {
            let below = before.as_ref().map(|before| before.span().start);
            let gap = self.gap_after(before);
            if let Some(start) = self.fit_high(gap) {
                return Some(start);
            }
            // Without an entry below, what is left is the gap before the first.
            let rest = Span { start: self.bounds.start, end: below? };
            before = self.vmas.last_gap(self.wanted(rest));
        }
    }

    fn wanted(&self, window: Span) -> Wanted {
        Wanted { window, size: self.min_len, align: self.of_which_aligned }
    }

    /// The free range between an entry and the next; without one, before the first.
    fn gap_after(&self, entry: Option<Entry<'_, '_, T>>) -> Span {
        let (start, next) =
            entry.map_or((0, 0), |entry| (entry.span().end, entry.span().start + 1));
        let next = self.vmas.first_from(next);
        Span { start, end: next.map_or(usize::MAX, |next| next.span().start) }
    }

    /// What of the gap is within the bounds, if it is enough.
    fn enough_of(&self, gap: Span) -> Option<Span> {
        let (start, end) = (gap.start.max(self.bounds.start), gap.end.min(self.bounds.end));
        (end.checked_sub(start)? >= self.min_len).then_some(Span { start, end })
    }

    fn fit_low(&self, gap: Span) -> Option<usize> {
        let Span { start, end } = self.enough_of(gap)?;
        let start = start.checked_next_multiple_of(self.align)?;
        (start.checked_add(self.size)? <= end).then_some(start)
    }

    fn fit_high(&self, gap: Span) -> Option<usize> {
        let Span { start: lowest, end } = self.enough_of(gap)?;
        let start = end.checked_sub(self.size)? & !(self.align - 1);
        (start >= lowest).then_some(start)
    }
}

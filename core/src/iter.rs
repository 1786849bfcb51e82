//! All VMAs of a space, each read-locked for a moment.
#![forbid(unsafe_code)]

use core::fmt;
use core::iter::FusedIterator;
use core::ops::Range;

use crate::error::ReadError;
use crate::guard::ReadGuard;
use crate::host::DefaultPlatform;
use crate::lookups::Lookups;
use crate::platform::Platform;
use crate::space::AddressSpace;

/// All VMAs in order of address or backwards, each read-locked while it is looked at, from
/// [`AddressSpace::read_all`] and [`Reader::read_all`](crate::Reader::read_all).
///
/// Its guards borrow it, so only one is held at a time: a thread with more of them would get
/// [`GuardHeld`](ReadError::GuardHeld) wherever it had to wait, since that could be for itself. So
/// this is no [`Iterator`], of which guards could be collected; [`AddressSpace::iter`] returns
/// copies, and a [`View`](crate::View) shows all VMAs at one moment.
///
/// Changes go on meanwhile: a VMA that changes or is moved may be shown twice or not at all, but
/// between two VMAs shown one after the other there was a moment with nothing mapped between them.
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// space.insert(0x5000..0x6000, "b")?;
/// space.insert(0x1000..0x3000, "a")?;
/// let mut vmas = space.read_all();
/// while let Some(vma) = vmas.next()? {
///     println!("{:x?} {}", vma.range(), *vma);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "it reads nothing unless it is asked for the next VMA"]
#[doc(alias("vma_iterator", "lending iterator"))]
pub struct ReadAll<'s, T, P: Platform = DefaultPlatform> {
    lookups: Lookups<'s, T, P>,
    /// What was not shown yet starts below `to`, and ends above `from`.
    from: usize,
    to: usize,
}

impl<'s, T, P: Platform> ReadAll<'s, T, P> {
    pub(crate) fn new(lookups: Lookups<'s, T, P>) -> Self {
        Self { lookups, from: 0, to: usize::MAX }
    }

    /// Read-locks the next VMA; waits for the edit or exclusion that has it. `None` at the end, and
    /// ever after.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "a")?;
    /// let mut vmas = space.read_all();
    /// assert_eq!(vmas.next()?.as_deref(), Some(&"a"));
    /// assert!(vmas.next()?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`AddressSpace::read_at_or_after`]; the next call tries the same VMA again.
    ///
    /// # Panics
    ///
    /// As [`AddressSpace::read`].
    #[expect(clippy::should_implement_trait, reason = "the guard borrows the iterator")]
    #[doc(alias = "vma_next")]
    pub fn next(&mut self) -> Result<Option<ReadGuard<'_, T, P>>, ReadError> {
        if self.from < self.to
            && let Some(vma) = self.lookups.read_at_or_after(self.from)?
        {
            let Range { start, end } = vma.range();
            if start < self.to {
                self.from = end;
                return Ok(Some(vma));
            }
        }
        self.from = self.to;
        Ok(None)
    }

    /// Read-locks the VMA before those that were shown from the end, at first the last one; `None`
    /// when all were shown. Waits for the mmap lock, for reading, and for the exclusion that has
    /// the VMA.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "a")?;
    /// space.insert(0x5000..0x6000, "b")?;
    /// let mut vmas = space.read_all();
    /// assert_eq!(vmas.next_back()?.as_deref(), Some(&"b"));
    /// assert_eq!(vmas.next()?.as_deref(), Some(&"a"));
    /// assert!(vmas.next_back()?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`OwnEdit`](ReadError::OwnEdit), [`GuardHeld`](ReadError::GuardHeld) and
    /// [`OwnExclusion`](ReadError::OwnExclusion) where the thread would wait for itself;
    /// [`Busy`](ReadError::Busy) at the limit of readers. The next call tries the same VMA again.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias = "vma_prev")]
    pub fn next_back(&mut self) -> Result<Option<ReadGuard<'_, T, P>>, ReadError> {
        if self.from < self.to
            && let Some(vma) = self.lookups.read_before(self.to)?
        {
            let Range { start, end } = vma.range();
            if end > self.from {
                self.to = start;
                return Ok(Some(vma));
            }
        }
        self.to = self.from;
        Ok(None)
    }

    /// Shows nothing any more.
    fn end(&mut self) {
        self.to = self.from;
    }
}

impl<T, P: Platform> fmt::Debug for ReadAll<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadAll").finish_non_exhaustive()
    }
}

/// Copies of all VMAs, in order of address or backwards, from [`AddressSpace::iter`] and
/// [`Reader::iter`](crate::Reader::iter): as [`ReadAll`], but no guard is left.
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// space.insert(0x5000..0x6000, "b")?;
/// space.insert(0x1000..0x3000, "a")?;
/// for vma in &space {
///     let (range, payload) = vma?;
///     println!("{range:x?} {payload}");
/// }
/// let vmas = space.iter().collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(vmas, [(0x1000..0x3000, "a"), (0x5000..0x6000, "b")]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// An item is an error, and the last, where [`ReadAll::next`] or [`ReadAll::next_back`] returns
/// one. To a thread that holds no guard, edit or exclusion of the space that does not happen, but
/// for [`Busy`](ReadError::Busy) and [`Forked`](ReadError::Forked).
#[must_use = "iterators are lazy"]
pub struct Iter<'s, T, P: Platform = DefaultPlatform>(ReadAll<'s, T, P>);

impl<'s, T: Clone, P: Platform> Iter<'s, T, P> {
    pub(crate) fn new(lookups: Lookups<'s, T, P>) -> Self {
        Self(ReadAll::new(lookups))
    }

    fn item(
        &mut self,
        read: impl for<'a> FnOnce(
            &'a mut ReadAll<'s, T, P>,
        ) -> Result<Option<ReadGuard<'a, T, P>>, ReadError>,
    ) -> Option<<Self as Iterator>::Item> {
        let item = match read(&mut self.0) {
            Ok(vma) => Ok(vma.map(|vma| (vma.range(), T::clone(&vma)))),
            Err(error) => Err(error),
        };
        if item.is_err() {
            self.0.end();
        }
        item.transpose()
    }
}

impl<T: Clone, P: Platform> Iterator for Iter<'_, T, P> {
    type Item = Result<(Range<usize>, T), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.item(ReadAll::next)
    }
}

impl<T: Clone, P: Platform> DoubleEndedIterator for Iter<'_, T, P> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.item(ReadAll::next_back)
    }
}

impl<T: Clone, P: Platform> FusedIterator for Iter<'_, T, P> {}

impl<T, P: Platform> fmt::Debug for Iter<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}

impl<T, P: Platform> AddressSpace<T, P> {
    /// All VMAs in order of address or backwards, each read-locked while it is looked at; see
    /// [`ReadAll`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, vec![1])?;
    /// let mut bytes = 0;
    /// let mut vmas = space.read_all();
    /// while let Some(vma) = vmas.next()? {
    ///     bytes += vma.range().len();
    /// }
    /// assert_eq!(bytes, 0x2000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("for_each_vma", "vma_iterator"))]
    pub fn read_all(&self) -> ReadAll<'_, T, P> {
        ReadAll::new(self.lookups())
    }

    /// Copies of all VMAs, in order of address or backwards; see [`Iter`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "a")?;
    /// space.insert(0x5000..0x6000, "b")?;
    /// assert_eq!(space.iter().next_back(), Some(Ok((0x5000..0x6000, "b"))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "for_each_vma")]
    pub fn iter(&self) -> Iter<'_, T, P>
    where
        T: Clone,
    {
        Iter::new(self.lookups())
    }
}

impl<'s, T: Clone, P: Platform> IntoIterator for &'s AddressSpace<T, P> {
    type Item = Result<(Range<usize>, T), ReadError>;
    type IntoIter = Iter<'s, T, P>;

    fn into_iter(self) -> Iter<'s, T, P> {
        self.iter()
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for AddressSpace<T, P> {
    /// Shows the VMAs, each read-locked meanwhile, up to the first that would have to be waited
    /// for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("granularity", &self.granularity())
            .field("vmas", &Shown(self))
            .finish()
    }
}

/// The VMAs of a space, for people.
struct Shown<'a, T, P: Platform>(&'a AddressSpace<T, P>);

impl<T: fmt::Debug, P: Platform> fmt::Debug for Shown<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        let mut from = 0;
        loop {
            match self.0.try_read_at_or_after(from) {
                Ok(None) => return map.finish(),
                Ok(Some(vma)) => {
                    map.entry(&format_args!("{:#x?}", vma.range()), &*vma);
                    from = vma.range().end;
                }
                Err(error) => {
                    map.entry(&format_args!("{from:#x}.."), &format_args!("<{error}>"));
                    return map.finish_non_exhaustive();
                }
            }
        }
    }
}

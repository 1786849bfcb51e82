//! What changes remove from a space.

use core::fmt;
use core::iter::FusedIterator;
use core::ops::{Deref, Range};

use alloc::vec::Vec;
use smallvec::SmallVec;

use crate::error::OutOfMemory;

/// A VMA that a change has removed or replaced, or the part of one that lay in the range. Its
/// payload is the caller's to drop.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed<T> {
    /// The range of the VMA, or of the part.
    pub range: Range<usize>,
    /// The payload.
    pub payload: T,
}

/// The VMAs that a change has removed or replaced, in order of address.
///
/// One VMA takes no memory of its own, so that removing it cannot fail for want of memory.
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// space.insert(0x1000..0x2000, "text")?;
/// space.insert(0x2000..0x4000, "data")?;
///
/// let removed = space.remove(0x1000..0x3000)?;
/// assert_eq!(removed[1].range, 0x2000..0x3000);
/// let payloads: Vec<_> = removed.into_iter().map(|removed| removed.payload).collect();
/// assert_eq!(payloads, ["text", "data"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RemovedVmas<T>(SmallVec<[Removed<T>; 1]>);

impl<T> RemovedVmas<T> {
    #[inline]
    pub(crate) fn empty() -> Self {
        Self(SmallVec::new())
    }

    #[inline]
    pub(crate) fn one(range: Range<usize>, payload: T) -> Self {
        Self(SmallVec::from_buf([Removed { range, payload }]))
    }

    #[inline]
    pub(crate) fn try_reserve(&mut self, vmas: usize) -> Result<(), OutOfMemory> {
        if vmas <= self.0.inline_size() {
            return Ok(()); // it is still empty
        }
        self.0.try_reserve_exact(vmas).map_err(|_| OutOfMemory)
    }

    /// Appends one for which [`try_reserve`](Self::try_reserve) has reserved capacity.
    #[inline]
    pub(crate) fn push(&mut self, range: Range<usize>, payload: T) {
        self.0.push(Removed { range, payload });
    }

    /// Puts the last one first, and so on.
    #[inline]
    pub(crate) fn reverse(&mut self) {
        self.0.reverse();
    }

    /// Converts the list into a vector.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x2000, "text")?;
    /// assert_eq!(space.remove(0x1000..0x2000)?.into_vec().len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn into_vec(self) -> Vec<Removed<T>> {
        self.0.into_vec()
    }
}

impl<T> Default for RemovedVmas<T> {
    /// An empty list.
    fn default() -> Self {
        Self::empty()
    }
}

impl<T> Deref for RemovedVmas<T> {
    type Target = [Removed<T>];

    fn deref(&self) -> &[Removed<T>] {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for RemovedVmas<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

impl<T> IntoIterator for RemovedVmas<T> {
    type Item = Removed<T>;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self.0.into_iter())
    }
}

impl<'a, T> IntoIterator for &'a RemovedVmas<T> {
    type Item = &'a Removed<T>;
    type IntoIter = core::slice::Iter<'a, Removed<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// An iterator over [`RemovedVmas`], in order of address. Made by `RemovedVmas::into_iter`.
pub struct IntoIter<T>(smallvec::IntoIter<[Removed<T>; 1]>);

impl<T> Iterator for IntoIter<T> {
    type Item = Removed<T>;

    fn next(&mut self) -> Option<Removed<T>> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<T> DoubleEndedIterator for IntoIter<T> {
    fn next_back(&mut self) -> Option<Removed<T>> {
        self.0.next_back()
    }
}

impl<T> ExactSizeIterator for IntoIter<T> {}
impl<T> FusedIterator for IntoIter<T> {}

impl<T: fmt::Debug> fmt::Debug for IntoIter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.as_slice()).finish()
    }
}

//! Byte ranges, checked when an operation begins.

use core::fmt;
use core::ops::Range;

/// A range that has passed the checks: not empty, aligned to the granularity of its space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// All that can be mapped.
pub(crate) const EVERYTHING: Span = Span { start: 0, end: usize::MAX };

/// Why a range cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeError {
    /// The range is empty.
    Empty {
        /// The start and end of the range.
        addr: usize,
    },
    /// The range ends before it starts: `start + length` has overflowed. If `end` is 0, the range
    /// was to reach to the end of the address space, and its last granule cannot be mapped
    /// ([`AddressSpace::everything`](crate::AddressSpace::everything)).
    Overflow {
        /// The start of the range.
        start: usize,
        /// The end of the range.
        end: usize,
    },
    /// An end of the range is no multiple of the space's granularity, such as [`usize::MAX`]. The
    /// largest end is that of [`AddressSpace::everything`](crate::AddressSpace::everything).
    Unaligned {
        /// The end that is not aligned.
        addr: usize,
        /// The granularity of the space, in bytes.
        granularity: usize,
    },
}

impl Span {
    /// Checks `range` for a space of `granularity` bytes, a power of two.
    #[inline]
    pub(crate) fn check(range: Range<usize>, granularity: usize) -> Result<Self, RangeError> {
        let Range { start, end } = range;
        if end < start {
            return Err(RangeError::Overflow { start, end });
        }
        if start == end {
            return Err(RangeError::Empty { addr: start });
        }
        match [start, end].into_iter().find(|addr| addr & (granularity - 1) != 0) {
            Some(addr) => Err(RangeError::Unaligned { addr, granularity }),
            None => Ok(Self { start, end }),
        }
    }

    /// All that can be mapped in a space of `granularity` bytes: no range ends above it, since the
    /// end of the last granule is no address.
    pub(crate) const fn everything(granularity: usize) -> Range<usize> {
        0..usize::MAX & !(granularity - 1)
    }

    #[inline]
    pub(crate) fn range(self) -> Range<usize> {
        self.start..self.end
    }

    #[inline]
    pub(crate) fn len(self) -> usize {
        self.end - self.start
    }

    /// The bytes that lie in both, if there are any.
    #[inline]
    pub(crate) fn overlap(self, other: Self) -> Option<Self> {
        let both = Self { start: self.start.max(other.start), end: self.end.min(other.end) };
        (both.start < both.end).then_some(both)
    }

    /// The range of the same length that starts at `to`; it may wrap around.
    pub(crate) fn target(self, to: usize) -> Range<usize> {
        to..to.wrapping_add(self.len())
    }

    /// The place of this part of `from` when `from` has moved to `target`.
    pub(crate) fn moved(self, from: Self, target: Self) -> Self {
        let start = self.start - from.start + target.start;
        Self { start, end: start + self.len() }
    }

    #[inline]
    pub(crate) fn contains(self, addr: usize) -> bool {
        self.start <= addr && addr < self.end
    }
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty { addr } => write!(f, "the range at {addr:#x} is empty"),
            Self::Overflow { start, end: 0 } => {
                write!(f, "the range from {start:#x} to the end of all addresses has the last ")?;
                f.write_str("granule in it, which cannot be mapped")
            }
            Self::Overflow { start, end } => {
                write!(f, "the range {start:#x}..{end:#x} ends before it starts")
            }
            Self::Unaligned { addr: usize::MAX, granularity } => {
                let Range { end, .. } = Span::everything(granularity);
                write!(f, "{:#x} is no multiple of {granularity:#x}; ", usize::MAX)?;
                write!(f, "the largest end of a range is {end:#x}")
            }
            Self::Unaligned { addr, granularity } => {
                write!(f, "{addr:#x} is no multiple of {granularity:#x}")
            }
        }
    }
}

impl core::error::Error for RangeError {}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;

    #[test]
    fn each_bad_range_has_its_own_error() {
        let check = |range| Span::check(range, 4096).map(Span::range);
        assert_eq!(check(0..4096), Ok(0..4096));
        assert_eq!(check(8192..8192), Err(RangeError::Empty { addr: 8192 }));
        let wrapped = Range { start: 8192, end: 4096 };
        assert_eq!(check(wrapped), Err(RangeError::Overflow { start: 8192, end: 4096 }));
        assert_eq!(check(1..4096), Err(RangeError::Unaligned { addr: 1, granularity: 4096 }));
        assert_eq!(
            check(0..usize::MAX),
            Err(RangeError::Unaligned { addr: usize::MAX, granularity: 4096 })
        );
        assert!(Span::check(0..usize::MAX, 1).is_ok());
    }

    #[test]
    fn everything_is_a_range_and_what_it_lacks_has_an_error_that_says_so() {
        for granularity in [1, 2, 4096, 1 << 20] {
            let everything = Span::everything(granularity);
            assert_eq!(
                Span::check(everything.clone(), granularity).map(Span::range),
                Ok(everything)
            );
        }
        let last = usize::MAX & !4095;
        let to_the_end = Span::check(Range { start: last, end: 0 }, 4096).err().unwrap();
        assert!(to_the_end.to_string().contains("the last granule"), "{to_the_end}");
        let unaligned = Span::check(0..usize::MAX, 4096).err().unwrap();
        assert!(unaligned.to_string().contains(&format!("{last:#x}")), "{unaligned}");
    }
}

//! Values of options: how they are written, and their limits.

use std::num::NonZeroUsize;

use clap::ValueEnum;

/// More threads than any machine needs to keep busy.
const MAX_THREADS: usize = 1024;

/// How much one fault fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Granule {
    /// A page.
    #[value(name = "4K", alias = "4k")]
    Page,
    /// 16 pages.
    #[value(name = "64K", alias = "64k")]
    Pages16,
    /// 512 pages.
    #[value(name = "2M", alias = "2m")]
    Pages512,
}

impl Granule {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Page => 4 << 10,
            Self::Pages16 => 64 << 10,
            Self::Pages512 => 2 << 20,
        }
    }
}

/// Reads a number of threads.
pub(crate) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse().ok().and_then(NonZeroUsize::new) {
        Some(threads) if threads.get() <= MAX_THREADS => Ok(threads),
        _ => Err(format!("give a number from 1 to {MAX_THREADS}")),
    }
}

/// Reads a number that is not 0.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "give a number".to_owned())?;
    if number == 0 { Err("give a number from 1 on".to_owned()) } else { Ok(number) }
}

/// Reads a number of bytes, with K, M or G for powers of 1024.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse());
    match number {
        Some(Ok(number)) => usize::checked_mul(number, 1 << shift),
        _ => None,
    }
    .ok_or_else(|| "give a number of bytes, such as 500000, 64M or 2G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("1k"), Ok(1 << 10));
        assert_eq!(size("64M"), Ok(64 << 20));
        assert_eq!(size("2G"), Ok(2 << 30));
        for bad in ["", "M", "-1", "+1", "1.5M", "1T", "99999999999999999999", "9999999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn thread_counts_have_limits() {
        assert_eq!(threads("1").map(NonZeroUsize::get), Ok(1));
        assert_eq!(threads("1024").map(NonZeroUsize::get), Ok(1024));
        for bad in ["0", "1025", "-1", "two", "", "1e3", "99999999999999999999"] {
            assert!(threads(bad).is_err(), "{bad}");
        }
    }
}

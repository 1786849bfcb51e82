//! Bytes in memory.

use std::sync::Arc;

use super::{ReadFailed, SignalSafe, Source};

/// Bytes in memory, shared with all that have the `Arc`.
///
/// ```
/// use pervma_pager::{FrozenRegion, MemorySource};
///
/// let region = FrozenRegion::map(MemorySource::new(vec![7; 10_000]))?;
/// assert_eq!(region[9_999], 7);
/// # Ok::<(), pervma_pager::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MemorySource {
    bytes: Arc<[u8]>,
}

impl MemorySource {
    /// Takes the bytes. A `Vec` is copied once, an `Arc` is not.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self { bytes: bytes.into() }
    }
}

impl Source for MemorySource {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    #[inline]
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let start = usize::try_from(offset).map_err(|_| ReadFailed)?;
        let bytes = self.bytes.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(ReadFailed)?);
        Ok(())
    }

    #[inline]
    fn bytes(&self) -> Option<&[u8]> {
        Some(&self.bytes)
    }
}

// SAFETY: reads of immutable bytes, and writes to the caller's buffer.
#[expect(unsafe_code, reason = "the contract of a source")]
unsafe impl SignalSafe for MemorySource {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_beyond_the_bytes_is_an_error() {
        let source = MemorySource::new([1, 2, 3].as_slice());
        let mut buf = [0; 2];
        assert_eq!(source.read_at(1, &mut buf), Ok(()));
        assert_eq!(buf, [2, 3]);
        assert_eq!(source.read_at(2, &mut buf), Err(ReadFailed));
        assert_eq!(source.read_at(u64::MAX, &mut buf), Err(ReadFailed));
    }
}

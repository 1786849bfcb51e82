//! The pages of images: many files, as one source.

use std::ops::Range;
use std::sync::Arc;

use pervma_pager::{ReadFailed, Source};

use super::page_server::PageServer;
use crate::source::MemoryFile;

/// So many bytes of the source are a part's: more than a process can have.
pub(super) const PART: u64 = 1 << 48;

/// A source that has the bytes of each part from a multiple of [`PART`] on. What is read is of one
/// part.
#[derive(Debug)]
pub(super) struct Parts(Vec<Part>);

/// Where some of the bytes are.
#[derive(Debug)]
pub(super) enum Part {
    File(Box<MemoryFile>),
    /// A task's, by address.
    Remote(Arc<PageServer>, u32),
}

impl Parts {
    /// There can be so many.
    pub(super) const MOST: usize = (u64::MAX / PART) as usize;

    pub(super) fn new(parts: Vec<Part>) -> Self {
        Self(parts)
    }

    /// The file with a range, if it is in one, and where in it.
    fn in_file(&self, range: &Range<u64>) -> Option<(&MemoryFile, Range<u64>)> {
        let Part::File(file) = self.0.get((range.start / PART) as usize)? else { return None };
        let start = range.start % PART;
        Some((file, start..start + (range.end - range.start)))
    }
}

impl Source for Parts {
    fn size(&self) -> u64 {
        self.0.len() as u64 * PART
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        match self.0.get((offset / PART) as usize).ok_or(ReadFailed)? {
            Part::File(file) => file.read_at(offset % PART, buf),
            Part::Remote(server, task) => server.read(*task, offset % PART, buf),
        }
    }

    fn zeros(&self, range: Range<u64>) -> Option<Range<u64>> {
        let (file, inner) = self.in_file(&range)?;
        let zeros = file.zeros(inner.clone())?;
        let moved = range.start - inner.start;
        Some(zeros.start + moved..zeros.end + moved)
    }

    fn resident(&self, range: Range<u64>) -> Option<*const [u8]> {
        let (file, inner) = self.in_file(&range)?;
        file.resident(inner)
    }
}

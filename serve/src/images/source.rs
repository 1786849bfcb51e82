//! The pages of images: many files, as one source.

use std::ops::Range;
use std::sync::Arc;

use pervma_pager::{ReadFailed, Source};

use super::page_server::PageServer;
use crate::source::MemoryFile;

/// A source that has the pages of one part after the other. What is read is of one part.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// With where they begin, in ascending order.
    parts: Vec<(u64, Part)>,
    /// Where the last one ends.
    end: u64,
}

/// Where some of the pages are, in the order of their pagemap.
#[derive(Debug)]
pub(super) enum Part {
    File(Box<MemoryFile>),
    Remote(Remote),
}

/// Pages of a task that a page server has.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) server: Arc<PageServer>,
    pub(super) task: u32,
    /// Where they are in its memory, in ascending order of their offsets.
    pub(super) runs: Vec<Run>,
}

/// Pages that follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) flags: u32,
    /// So many bytes of pages that the folder has come before it.
    pub(super) offset: u64,
}

impl Parts {
    /// Parts begin at multiples of this, with something between them: a granule is of one part, and
    /// what goes on in the source goes on in its part.
    const ALIGN: u64 = 2 << 20;

    /// Adds a part with so many bytes, and returns where it begins; `None` if there are too many.
    pub(super) fn add(&mut self, part: Part, len: u64) -> Option<u64> {
        let start = match self.parts.len() {
            0 => 0,
            _ => self.end.checked_add(1)?.checked_next_multiple_of(Self::ALIGN)?,
        };
        self.end = start.checked_add(len).filter(|&end| end <= i64::MAX as u64)?;
        self.parts.push((start, part));
        Some(start)
    }

    /// Where the pages are that this machine has.
    pub(super) fn files(&self) -> impl Iterator<Item = Range<u64>> {
        self.parts.iter().filter_map(|(start, part)| match part {
            Part::File(file) => Some(*start..start + file.size()),
            Part::Remote(_) => None,
        })
    }

    /// The part with an offset, and where in it.
    fn at(&self, offset: u64) -> Option<(&Part, u64)> {
        let before = self.parts.partition_point(|(start, _)| *start <= offset);
        let (start, part) = self.parts.get(before.checked_sub(1)?)?;
        Some((part, offset - start))
    }

    /// The file with a range, if it is in one, and where in it.
    fn in_file(&self, range: &Range<u64>) -> Option<(&MemoryFile, Range<u64>)> {
        let (Part::File(file), start) = self.at(range.start)? else { return None };
        Some((file, start..start + (range.end - range.start)))
    }
}

impl Remote {
    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<(), ReadFailed> {
        while !buf.is_empty() {
            let before = self.runs.partition_point(|run| run.offset <= offset);
            let run = before.checked_sub(1).map(|at| self.runs[at]).ok_or(ReadFailed)?;
            let addr = run.start + (offset - run.offset);
            let left = run.end.checked_sub(addr).filter(|&left| left > 0).ok_or(ReadFailed)?;
            let len = left.min(buf.len() as u64);
            let (now, later) = buf.split_at_mut(len as usize);
            self.server.read(self.task, addr, now)?;
            (offset, buf) = (offset + len, later);
        }
        Ok(())
    }
}

impl Source for Parts {
    fn size(&self) -> u64 {
        self.end
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        match self.at(offset).ok_or(ReadFailed)? {
            (Part::File(file), offset) => file.read_at(offset, buf),
            (Part::Remote(remote), offset) => remote.read(offset, buf),
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

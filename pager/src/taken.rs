//! Written pages that are taken out of a region while they are written to its source.
//!
//! The kernel tells by it which pages it holds for a device (direct I/O, registered buffers): those
//! do not move. One that has moved is not held, and no thread can reach it.
#![expect(unsafe_code, reason = "lends pages that were taken out")]

use std::ops::Range;
use std::thread;

use crate::mapping::{Mapping, PAGE};
use crate::parts::Parts;
use crate::staging::Staging;
use crate::sys::{CopyError, Errno, Fill, Memory, MoveError};

/// What became of pages that were to be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They are out.
    Out,
    /// They are held for a device.
    Held,
    /// They are not there: another thread has given them back.
    Missing,
    /// The kernel cannot move them.
    Fixed,
}

/// Pages of a mapping that are out. Whatever is not settled goes back when this is dropped, to the
/// place where no thread can have filled others: the caller excludes the pages all the time, and
/// they may be written.
pub(crate) struct TakenOut<'m> {
    mapping: &'m Mapping,
    staging: &'m Staging,
    /// `Some` until it is dropped.
    memory: Option<Memory>,
    /// The offset in the mapping of what is at the start of the memory.
    base: usize,
    /// So much of the memory was used.
    used: usize,
    /// Whether that memory is locked, as it must be to take what is locked.
    is_locked: bool,
    unsettled: Vec<Range<usize>>,
}

impl<'m> TakenOut<'m> {
    /// Of a mapping whose pages from `base` on are to be taken out, [`Staging::BYTES`] at most.
    pub(crate) fn new(
        mapping: &'m Mapping,
        staging: &'m Staging,
        base: usize,
    ) -> Result<Self, Errno> {
        let memory = Some(staging.take(&mapping.backing.uffd)?);
        Ok(Self {
            mapping,
            staging,
            memory,
            base,
            used: 0,
            is_locked: false,
            unsettled: Vec::new(),
        })
    }

    /// Takes the pages of a run out, as far as they can be; what became of which.
    pub(crate) fn take(&mut self, run: &Range<usize>) -> Vec<(Range<usize>, Fate)> {
        let mut fates: Vec<(Range<usize>, Fate)> = Vec::new();
        let mut parts = Parts::new(run.clone(), PAGE);
        let (mut tries, mut toggled) = (0, false);
        self.used = self.used.max(run.end - self.base);
        while let Some(part) = parts.next() {
            let (bytes, fate) = match self.exchange(part.clone(), true) {
                Ok(()) => (part.len(), Fate::Out),
                Err(MoveError::Again { moved: 0 }) if tries < TRIES => {
                    tries += 1;
                    thread::yield_now();
                    continue;
                }
                // Another thread keeps changing it.
                Err(MoveError::Again { moved: 0 } | MoveError::Held) => (PAGE, Fate::Held),
                Err(MoveError::Again { moved }) => (moved, Fate::Out),
                // Nothing was there before: it has moved, and Linux 6.18 told of a second try.
                Err(MoveError::AlreadyPresent) if !self.mapping.memory.is_resident(part.start) => {
                    (PAGE, Fate::Out)
                }
                Err(MoveError::Missing) => (PAGE, Fate::Missing),
                Err(MoveError::Unlike) if parts.halve() => continue,
                Err(MoveError::Unlike) if !toggled && self.toggle_lock() => {
                    toggled = true;
                    continue;
                }
                Err(_) => (PAGE, Fate::Fixed),
            };
            (tries, toggled) = (0, false);
            let done = part.start..part.start + bytes;
            parts.advance(bytes);
            if fate == Fate::Out {
                self.unsettled.push(done.clone());
            }
            match fates.last_mut() {
                Some((last, same)) if *same == fate => last.end = done.end,
                _ => fates.push((done, fate)),
            }
        }
        fates
    }

    /// The bytes of pages that are out, until something else is done with them.
    pub(crate) fn bytes(&self, part: &Range<usize>) -> &[u8] {
        let Some(memory) = &self.memory else { return &[] };
        // SAFETY: the memory is registered, and can be read. Only pages that were moved there are
        // looked at (the caller's part), and no other thread knows of them. They stay until this is
        // dropped or borrowed otherwise.
        let bytes = unsafe { memory.bytes() };
        &bytes[part.start - self.base..part.end - self.base]
    }

    /// Puts copies of pages that are out to their places, write-protected. They are settled by it.
    pub(crate) fn put_copies(&mut self, part: &Range<usize>) -> Result<(), Errno> {
        let fill = Fill { wake: false, write_protected: true };
        let mut parts = Parts::new(part.clone(), PAGE);
        while let Some(part) = parts.next() {
            let uffd = &self.mapping.backing.uffd;
            let copied = uffd.copy(&self.mapping.memory, part.start, self.bytes(&part), fill);
            let bytes = match copied {
                Ok(()) => part.len(),
                Err(CopyError::Again { copied: 0 }) => {
                    thread::yield_now();
                    continue;
                }
                Err(CopyError::Again { copied }) => copied,
                Err(CopyError::NotRegistered) if parts.halve() => continue,
                Err(CopyError::Other(errno)) => return Err(errno),
                Err(_) => return Err(Errno::INVAL),
            };
            parts.advance(bytes);
            self.settle(&(part.start..part.start + bytes));
        }
        Ok(())
    }

    /// Pages that are out need not go back.
    pub(crate) fn settle(&mut self, part: &Range<usize>) {
        self.unsettled = std::mem::take(&mut self.unsettled)
            .into_iter()
            .flat_map(|out| {
                let before = out.start..out.end.min(part.start);
                let behind = out.start.max(part.end)..out.end;
                [before, behind]
            })
            .filter(|rest| !rest.is_empty())
            .collect();
    }

    /// Moves pages out, or back.
    fn exchange(&self, part: Range<usize>, out: bool) -> Result<(), MoveError> {
        let Some(memory) = &self.memory else { return Err(MoveError::Missing) };
        let (uffd, own) = (&self.mapping.backing.uffd, &self.mapping.memory);
        let at = part.start - self.base;
        if out {
            uffd.move_pages(own, part, memory, at)
        } else {
            uffd.move_pages(memory, at..at + part.len(), own, part.start)
        }
    }

    /// Makes the memory locked if it is not, or the other way round; whether that was possible.
    fn toggle_lock(&mut self) -> bool {
        let Some(memory) = &self.memory else { return false };
        let done = memory.lock_on_fault(!self.is_locked).is_ok();
        self.is_locked ^= done;
        done
    }

    /// Puts a page back that is out.
    fn put_back(&mut self, page: Range<usize>) {
        for _ in 0..TRIES {
            match self.exchange(page.clone(), false) {
                // Or it is back already.
                Ok(()) | Err(MoveError::Missing | MoveError::AlreadyPresent) => return,
                Err(MoveError::Unlike) => {
                    let _ = self.toggle_lock();
                }
                Err(_) => thread::yield_now(),
            }
        }
        // It can be copied if it cannot be moved.
        if self.put_copies(&page).is_err() {
            // Then it is lost, and no thread is to take what the source has for it.
            self.mapping.forget(&page);
            self.mapping.poison(&page, false);
        }
    }
}

/// So often what may work the next time is tried.
const TRIES: u32 = 1000;

impl Drop for TakenOut<'_> {
    fn drop(&mut self) {
        for part in std::mem::take(&mut self.unsettled) {
            if self.exchange(part.clone(), false).is_err() {
                // Some of it is back, perhaps.
                for start in part.step_by(PAGE) {
                    self.put_back(start..start + PAGE);
                }
            }
        }
        let Some(memory) = self.memory.take() else { return };
        let is_empty = (self.used == 0 || memory.discard(0..self.used).is_ok())
            && (!self.is_locked || memory.lock_on_fault(false).is_ok());
        if is_empty {
            self.staging.put(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mapping::SPACE;
    use crate::{MemorySource, Options};

    /// B36. As Linux 6.18 does now and then: it moves a page, and says that one was there already.
    #[test]
    fn what_has_moved_although_the_kernel_does_not_say_so_is_out() {
        let region = Options::new().writable().map(MemorySource::new(vec![1; 4 * PAGE])).unwrap();
        region.write(0, &[2; 3 * PAGE]);
        let mapping = SPACE.try_read(region.as_ptr().addr()).map(|vma| Arc::clone(&vma.mapping));
        let mapping = mapping.unwrap();
        let Some(staging) = &mapping.backing.staging else {
            return println!("NOT RUN: this kernel cannot move pages");
        };
        let all = 0..3 * PAGE;
        let excluded = region.exclude(&all).unwrap();
        let mut out = TakenOut::new(&mapping, staging, 0).unwrap();
        out.exchange(0..2 * PAGE, true).unwrap();
        assert_eq!(out.take(&all), [(all.clone(), Fate::Out)]);
        assert_eq!(out.bytes(&all), [2; 3 * PAGE]);
        drop(out);
        drop(excluded);
        let mut found = vec![0; 4 * PAGE];
        region.read(0, &mut found);
        assert_eq!(found, [[2; 3 * PAGE].as_slice(), &[1; PAGE]].concat(), "they are back");
    }
}

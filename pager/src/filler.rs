//! Pages that a thread fills itself before it touches them, so that what cannot be had is an error
//! and no signal.

use std::ops::Range;

use pervma::ReadError;

use crate::budget::Wait;
use crate::buffers::Buffers;
use crate::error::Refusal;
use crate::fault::{self, Cause, Server, Verdict};
use crate::mapping::{Mapping, Outcome, PAGE, SPACE};
use crate::signal::SignalsBlocked;
use crate::sys::Access;
use crate::wakeup::rest;

/// What a page is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// For reads that may come: it waits for no page that was filled for such.
    Ahead,
    Read,
    Write,
}

/// Fills pages of a mapping, in its thread. It keeps that thread's signals blocked: a handler that
/// touched the region could wait for what it interrupts.
pub(crate) struct Filler<'m> {
    mapping: &'m Mapping,
    /// Where the source is read to, once it is.
    buffer: Vec<u8>,
    /// Bytes of the pages that have come by this.
    came: usize,
    blocked: Option<SignalsBlocked>,
}

/// What is done next about a page.
enum Next<V> {
    /// It was present.
    Done(V),
    /// It is to be filled.
    Fill(Cause),
    /// Another thread is changing what is there.
    Wait,
}

/// Why a page could not be filled now.
enum PutOff {
    /// Something is just being changed.
    Later,
    /// The bound is reached.
    NoRoom(Wait),
}

impl<'m> Filler<'m> {
    pub(crate) fn new(mapping: &'m Mapping) -> Result<Self, Refusal> {
        if !mapping.memory.is_of_this_process() {
            return Err(Refusal::NotMapped);
        }
        if fault::is_in_source_of(mapping.backing.number) {
            return Err(Refusal::InsideSource);
        }
        let blocked = Some(SignalsBlocked::new().map_err(Refusal::Mask)?);
        Ok(Self { mapping, buffer: Vec::new(), came: 0, blocked })
    }

    /// So many bytes have come by this.
    pub(crate) fn came(&self) -> usize {
        self.came
    }

    /// Has the thread take the signals that wait for it.
    pub(crate) fn take_signals(&mut self) -> Result<(), Refusal> {
        self.blocked = None;
        self.blocked = Some(SignalsBlocked::new().map_err(Refusal::Mask)?);
        Ok(())
    }

    /// Does `work` once the page at an offset is present and may be accessed as is needed. It stays
    /// so meanwhile, so `work` touches nothing but this page, and that without a fault: its VMA is
    /// read-locked, and a fault would wait for what waits for that.
    pub(crate) fn with_page<V>(
        &mut self,
        offset: usize,
        need: Need,
        mut work: impl FnMut() -> V,
    ) -> Result<V, Refusal> {
        let addr = self.mapping.memory.range().start + offset;
        let (mut is_put_off, mut times) = (false, 0);
        loop {
            let cause = match self.look(addr, offset, need, &mut work)? {
                Next::Done(done) => return Ok(done),
                Next::Fill(cause) => Some(cause),
                Next::Wait => None,
            };
            let put_off = match cause {
                Some(cause) => self.fill(addr, cause, is_put_off, need != Need::Ahead)?,
                None => Some(PutOff::Later),
            };
            is_put_off = put_off.is_some();
            match put_off {
                None => {}
                Some(PutOff::NoRoom(wait)) => wait.wait(),
                Some(PutOff::Later) => {
                    times += 1;
                    rest(times);
                }
            }
        }
    }

    /// Does `work` if the page is as it is needed.
    fn look<V>(
        &self,
        addr: usize,
        offset: usize,
        need: Need,
        work: &mut impl FnMut() -> V,
    ) -> Result<Next<V>, Refusal> {
        let vma = match SPACE.try_read(addr) {
            Ok(vma) => vma,
            Err(ReadError::Locked { .. } | ReadError::Busy { .. }) => return Ok(Next::Wait),
            Err(ReadError::Reserved { .. }) => {
                // Some thread maps or unmaps it. Or one has unmapped it and could not wait to say
                // so: then the next edit does, and there may be no other.
                drop(SPACE.edit());
                return Ok(Next::Wait);
            }
            // While it writes what was written.
            Err(ReadError::OwnEdit { .. } | ReadError::OwnExclusion { .. }) => {
                return Err(Refusal::InsideSource);
            }
            Err(_) => return Err(Refusal::NotMapped),
        };
        let is_let_through = match need {
            Need::Ahead | Need::Read => vma.access != Access::None,
            Need::Write => vma.access == Access::ReadWrite,
        };
        if !is_let_through {
            return Err(Refusal::Protected);
        }
        let records = &self.mapping.records;
        let page = self.mapping.page_of(offset);
        if !records.is_present(page) {
            return Ok(Next::Fill(Cause::Missing { is_write: need == Need::Write }));
        }
        if need == Need::Write {
            if !records.is_dirty(page) {
                return Ok(Next::Fill(Cause::WriteProtected));
            }
            // Whoever has marked it may not have got as far as the kernel.
            match self.mapping.let_write(&self.mapping.page_at(offset)) {
                Outcome::Done => {}
                Outcome::Again | Outcome::Gone => return Ok(Next::Wait),
                Outcome::Refused => return Err(Refusal::Unavailable),
            }
        }
        Ok(Next::Done(work()))
    }

    /// Serves a fault that an access would make, or says what to wait for.
    fn fill(
        &mut self,
        addr: usize,
        cause: Cause,
        is_put_off: bool,
        insists: bool,
    ) -> Result<Option<PutOff>, Refusal> {
        let backing = &self.mapping.backing;
        let granule = || self.mapping.granule_of(self.mapping.offset_of(addr));
        if backing.source.bytes().is_none() && self.buffer.is_empty() {
            self.buffer = vec![0; backing.granule.min(Buffers::MOST)];
        }
        let caller = Server::Caller { buffer: &mut self.buffer, insists };
        match fault::serve(addr, cause, is_put_off, caller) {
            Verdict::Filled { pages, .. } => {
                self.came += pages * PAGE;
                Ok(None)
            }
            // Or it was unmapped, as the next look says.
            Verdict::UnderWay { .. } | Verdict::PassOn => Ok(None),
            // A thread that copies the granule has copied this page, and says so when it has all.
            Verdict::Present { .. } if backing.reads.are_under_way(granule()) => {
                Ok(Some(PutOff::Later))
            }
            Verdict::Present { number, time, .. } => {
                fault::may_repeat(number, addr, time).then_some(None).ok_or(Refusal::Unavailable)
            }
            // It needs no other page at the same time.
            Verdict::Changed { .. } | Verdict::Later | Verdict::InVain => Ok(Some(PutOff::Later)),
            Verdict::NoRoom(wait) => Ok(Some(PutOff::NoRoom(wait))),
            Verdict::Failed { is_refused: true, .. } => Err(Refusal::BoundReached),
            Verdict::Failed { .. } => Err(Refusal::Unavailable),
        }
    }
}

/// The parts of some bytes that lie in one page of [`PAGE`] bytes each.
pub(crate) fn by_pages(bytes: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut start = bytes.start;
    std::iter::from_fn(move || {
        let end = (start / PAGE * PAGE).saturating_add(PAGE).min(bytes.end);
        let part = start..end;
        start = end;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemorySource, Options};

    /// As it is left when another thread edits the address space at the end of an `unmap`, and no
    /// thread does afterwards.
    #[test]
    fn what_was_unmapped_while_another_thread_edited_is_not_waited_for() {
        let region = Options::new().map(MemorySource::new(vec![7; 3 * PAGE])).unwrap();
        region.unmap(PAGE..2 * PAGE).unwrap();
        let start = region.as_ptr().addr();
        let reservation = SPACE.edit().unwrap().reserve(start + PAGE..start + 2 * PAGE).unwrap();
        let edit = SPACE.edit().unwrap();
        std::thread::scope(|scope| scope.spawn(move || drop(reservation)).join().unwrap());
        drop(edit);
        let refused = region.read_checked(PAGE, &mut [0]).unwrap_err();
        assert_eq!(refused.refusal(), Refusal::NotMapped);
    }

    /// Found in review: a copy that took seconds was taken for a page that cannot be read.
    #[test]
    fn a_page_that_another_thread_has_copied_is_waited_for_until_it_says_so() {
        let options = Options::new().granule(16 * PAGE);
        let region = options.map(MemorySource::new(vec![7; 16 * PAGE])).unwrap();
        let mapping = SPACE.try_read(region.as_ptr().addr()).unwrap().mapping.clone();
        let copying = mapping.backing.reads.begin(0, false);
        let page = 5 * PAGE;
        let fill = crate::sys::Fill::default();
        mapping.backing.uffd.copy(&mapping.memory, page, &[7; PAGE], fill).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| region.read_checked(page, &mut [0]));
            std::thread::sleep(std::time::Duration::from_secs(3));
            assert!(!reader.is_finished());
            mapping.memory.discard(page..page + PAGE).unwrap();
            drop(copying);
            assert_eq!(reader.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn bytes_are_cut_at_pages() {
        let parts = |bytes| by_pages(bytes).collect::<Vec<_>>();
        assert!(parts(5..5).is_empty());
        assert_eq!(parts(9..2 * PAGE + 1), [9..PAGE, PAGE..2 * PAGE, 2 * PAGE..2 * PAGE + 1]);
        let last = usize::MAX - (PAGE - 1);
        assert_eq!(parts(last - 1..usize::MAX), [last - 1..last, last..usize::MAX]);
    }
}

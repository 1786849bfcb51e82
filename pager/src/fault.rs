//! The fault path: from an address to filled pages.
//!
//! Everything here may run in the signal handler: no lock, no allocation, no destructor. The
//! handler threads of regions that are served by one run the same code, and so do threads that fill
//! pages before they touch them.

use std::cell::Cell;
use std::ops::Range;

use pervma::{ReadError, ReadGuard};

use crate::budget::{Admission, Wait};
use crate::buffers::{Buffer, HUGE};
use crate::failure::OnFailure;
use crate::kept::{Found, Slots};
use crate::mapping::{Backing, Content, Mapping, Outcome, PAGE, Piece, Poisoned, SOURCES, SPACE};
use crate::source::{ReadFailed, Source};
use crate::stats::{Counters, Shard};
use crate::wakeup::rest;

/// What is known of why an access faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its page is missing.
    Missing { is_write: bool },
    /// It writes a page that is write-protected.
    WriteProtected,
    /// One of both.
    Unknown,
}

/// What is to become of the access that faulted.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// Its page came, in the region of this number, with others, so many together; at these
    /// addresses threads may sleep for it.
    Filled { number: usize, granule: Range<usize>, pages: usize },
    /// Its page was present, with a record of this time: the access is to be repeated.
    Present { number: usize, time: u64, granule: Range<usize> },
    /// Its page has gone meanwhile, or another thread is about to fill it: the access is to be
    /// repeated, and the other thread is let go on.
    Changed { granule: Range<usize> },
    /// Nothing could be done now: it is to fault again, later.
    Later,
    /// The bound is reached: it is to fault again when pages have gone.
    NoRoom(Wait),
    /// Perhaps it needs more pages at once than the bound lets be present: if not, it is to be
    /// repeated.
    InVain,
    /// Another thread reads its granule, the one of this number. All but a handler thread have
    /// waited for it, and repeat the access.
    UnderWay { granule: usize },
    /// Its page cannot be had, and is poisoned; or the bound is reached.
    Failed { on_failure: OnFailure, offset: usize, is_refused: bool },
    /// It is not ours.
    PassOn,
}

/// Who serves a fault.
#[derive(Debug)]
pub(crate) enum Server<'b> {
    /// The thread that made it, in the signal handler.
    Handler,
    /// A thread of the region.
    Thread,
    /// A thread that is about to touch it and blocks signals. The source is read to its buffer, so
    /// that handler threads have theirs.
    Caller { buffer: &'b mut [u8], insists: bool },
}

/// Serves a fault at `addr`, of an access that was put off before if `again` says so.
///
/// It is split into small functions for the sake of unoptimised builds, where the frames of large
/// ones would not fit on an alternate signal stack beside those of the lookup.
#[inline]
pub(crate) fn serve(addr: usize, cause: Cause, again: bool, server: Server<'_>) -> Verdict {
    match find(addr, cause, again, &server) {
        Ok((vma, fault)) => {
            // Under the VMA's read lock: until it is let go, nothing of the mapping is changed or
            // unmapped.
            let mut new = 0;
            let at_once = at_once(&vma.mapping, &fault, cause, &mut new)
                .or_else(|| fill_from_kept(&vma.mapping, &fault, &mut new));
            let end = match at_once {
                Some(end) => end,
                None => read_and_fill(vma, &fault, server, &mut new),
            };
            conclude(&fault, cause, new, end)
        }
        Err(verdict) => verdict,
    }
}

/// Serves a fault for which no source need be read.
#[inline]
fn at_once(mapping: &Mapping, fault: &Fault, cause: Cause, new: &mut usize) -> Option<End> {
    let end = if cause == Cause::WriteProtected {
        mapping.let_write(&fault.page).into()
    } else {
        fill_from(mapping, mapping.backing.source.bytes()?, fault, new)
    };
    end.count(&mapping.backing.counters);
    Some(end)
}

/// A fault of a region.
struct Fault {
    addr: usize,
    /// The region's.
    number: usize,
    on_failure: OnFailure,
    is_tracked: bool,
    /// Where the mapping starts.
    base: usize,
    /// The kernel's page, as offsets in the mapping.
    page: Range<usize>,
    /// The time of its record.
    time: u64,
    /// What is to be filled, as offsets.
    granule: Range<usize>,
    /// Whether the page is to be written, and that is tracked.
    is_written: bool,
    /// Whether the access was put off before.
    again: bool,
    /// Whether pages that are held for no access may go for it.
    insists: bool,
}

impl Fault {
    fn written(&self) -> Option<&Range<usize>> {
        self.is_written.then_some(&self.page)
    }

    fn granule(&self) -> Range<usize> {
        self.base + self.granule.start..self.base + self.granule.end
    }

    fn present(&self) -> Verdict {
        Verdict::Present { number: self.number, time: self.time, granule: self.granule() }
    }

    fn changed(&self) -> Verdict {
        Verdict::Changed { granule: self.granule() }
    }

    fn failed(&self, is_refused: bool) -> Verdict {
        Shard::mine().count_failure();
        let (on_failure, offset) = (self.on_failure, self.addr - self.base);
        Verdict::Failed { on_failure, offset, is_refused }
    }
}

/// Finds and read-locks the VMA.
#[inline]
fn find(
    addr: usize,
    cause: Cause,
    again: bool,
    server: &Server<'_>,
) -> Result<(ReadGuard<'static, Piece>, Fault), Verdict> {
    let count = Shard::mine();
    let (vma, walks) = match SPACE.try_read_with_walks(addr) {
        Ok(found) => found,
        Err(ReadError::Locked { .. } | ReadError::Reserved { .. }) => {
            count.count_slow();
            return Err(Verdict::Later);
        }
        Err(_) => return Err(Verdict::PassOn),
    };
    count.count_lookup(walks);
    let mapping = &*vma.mapping;
    let backing = &*mapping.backing;
    let offset = mapping.offset_of(addr);
    let number = mapping.page_of(offset);
    let fault = Fault {
        addr,
        number: backing.number,
        on_failure: backing.on_failure,
        is_tracked: backing.is_tracked,
        base: addr - offset,
        page: mapping.page_at(offset),
        time: mapping.records.time(number..number + 1),
        granule: mapping.granule_at(addr, &vma.range()),
        is_written: backing.is_tracked && cause == Cause::Missing { is_write: true },
        again,
        insists: !matches!(server, Server::Caller { insists: false, .. }),
    };
    if mapping.records.was_refused(number)
        && let Some(share) = &backing.share
    {
        // A system call. The bound may allow this access.
        share.raise();
        return Err(Verdict::Later);
    }
    if mapping.records.has_failed(number) {
        backing.counters.mine().failures.add(1);
        return Err(fault.failed(false));
    }
    if backing.is_threaded && matches!(server, Server::Handler) {
        // It had failed, and was discarded since: its source is not for signal handlers.
        return Err(fault.present());
    }
    Ok((vma, fault))
}

/// Counts, and says what is to become of the access.
#[inline]
fn conclude(fault: &Fault, cause: Cause, new: usize, end: End) -> Verdict {
    match end {
        End::Done => {
            Shard::mine().count_fault();
            let was_present = new == 0 && cause != Cause::WriteProtected;
            if was_present && fault.is_tracked && cause == Cause::Unknown {
                return let_write_perhaps(fault);
            }
            if was_present {
                return fault.present();
            }
            Verdict::Filled { number: fault.number, granule: fault.granule(), pages: new }
        }
        End::Gone => fault.changed(),
        End::Later => Verdict::Later,
        End::NoRoom(wait) => Verdict::NoRoom(wait),
        End::InVain => Verdict::InVain,
        End::UnderWay { granule } => Verdict::UnderWay { granule },
        End::Failed => fault.failed(false),
        End::Refused => fault.failed(true),
    }
}

/// How serving it ended.
enum End {
    Done,
    Later,
    /// The bound is reached, and pages are about to go.
    NoRoom(Wait),
    /// Perhaps it needs more pages at once than the bound lets be present.
    InVain,
    Gone,
    /// Another thread reads its granule.
    UnderWay {
        granule: usize,
    },
    /// The bound is reached, and nothing can be given back.
    Refused,
    Failed,
}

impl End {
    /// Counts it for its region.
    fn count(&self, counters: &Counters) {
        match self {
            Self::Done => counters.mine().faults.add(1),
            Self::Failed | Self::Refused => counters.mine().failures.add(1),
            Self::Later | Self::NoRoom(_) | Self::InVain | Self::Gone | Self::UnderWay { .. } => {}
        }
    }
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Again => Self::Later,
            Outcome::Gone => Self::Gone,
            Outcome::Refused => Self::Failed,
        }
    }
}

/// Pages that a fault took from its region's budget and has not filled yet.
struct Taken<'a> {
    backing: &'a Backing<dyn Source>,
    pages: usize,
}

impl<'a> Taken<'a> {
    /// For a chunk of what is missing.
    #[inline]
    fn take(
        backing: &'a Backing<dyn Source>,
        chunk: &Range<usize>,
        rest: &Rest,
        fault: &Fault,
    ) -> Result<Self, End> {
        let pages = chunk.len() / PAGE;
        let Some(share) = &backing.share else {
            return Ok(Self { backing, pages });
        };
        if *chunk != fault.page && !share.can_take(pages) {
            return Err(End::Failed);
        }
        match share.take(pages, fault.again, fault.insists) {
            Admission::Granted => Ok(Self { backing, pages }),
            Admission::Later(wait) if !rest.is_refused => Err(End::NoRoom(wait)),
            Admission::Later(_) | Admission::Refused => Err(End::Refused),
            Admission::InVain => Err(End::InVain),
        }
    }

    /// Fills a chunk for which they were taken, and adds to `new` how many came by that. The others
    /// go back.
    #[inline]
    fn install(
        self,
        mapping: &Mapping,
        chunk: &Range<usize>,
        content: Content<'_>,
        fault: &Fault,
        new: &mut usize,
    ) -> End {
        self.have_come(mapping.install(chunk, content, fault.written()), new)
    }

    /// So many came, with that outcome.
    #[inline]
    fn have_come(mut self, (came, outcome): (usize, Outcome), new: &mut usize) -> End {
        self.pages -= came;
        *new += came;
        outcome.into()
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(share) = &self.backing.share {
            share.give(self.pages);
        }
    }
}

/// What is still to be filled for a fault.
struct Rest {
    from: Range<usize>,
    /// The page that the access wants is present, and its thread may go on: whatever becomes of the
    /// rest is no reason to serve the fault again.
    has_page: bool,
    /// No page can be given back. What there is may be taken, but is not waited for.
    is_refused: bool,
}

impl Rest {
    fn of(fault: &Fault) -> Self {
        Self { from: fault.granule.clone(), has_page: false, is_refused: false }
    }

    /// Goes on after a chunk, or says how the fault ends. If more than the page that the access
    /// wants could not be had, that page is tried by itself: the others may be had another time, or
    /// be wanted never.
    #[inline]
    fn after(&mut self, chunk: &Range<usize>, end: End, fault: &Fault) -> Result<(), End> {
        match end {
            End::Done => {
                self.from.start = chunk.end;
                self.has_page |= chunk.contains(&fault.page.start);
            }
            _ if self.has_page => return Err(End::Done),
            End::Failed | End::Refused if *chunk != fault.page => {
                self.from = fault.page.clone();
                self.is_refused = matches!(end, End::Refused);
            }
            end => return Err(end),
        }
        Ok(())
    }
}

/// Fills from memory: the kernel copies from there. Here and below, how many pages come by it is
/// added to `new`.
fn fill_from(mapping: &Mapping, bytes: &[u8], fault: &Fault, new: &mut usize) -> End {
    let page_size = fault.page.len();
    let tail_at = bytes.len() / page_size * page_size;
    let mut rest = Rest::of(fault);
    let filling = mapping.backing.reads.begin(mapping.granule_of(fault.page.start), false);
    if filling.is_none() {
        // Another thread copies the granule. To go after it would be a system call for each page.
        rest.from = fault.page.clone();
    }
    while let Some(mut chunk) = mapping.next_missing(rest.from.clone(), &fault.page, usize::MAX) {
        let tail = &*mapping.backing.tail;
        let bytes = if chunk.start < tail_at {
            chunk.end = chunk.end.min(tail_at);
            &bytes[chunk.clone()]
        } else if chunk.start < tail_at + tail.len() {
            chunk.end = chunk.end.min(tail_at + tail.len());
            tail
        } else {
            // It has fewer bytes than it says.
            &[]
        };
        let end = match Taken::take(&mapping.backing, &chunk, &rest, fault) {
            Ok(_) if bytes.is_empty() => End::Failed,
            Ok(taken) => taken.install(mapping, &chunk, Content::Bytes(bytes), fault, new),
            Err(end) => end,
        };
        if let Err(end) = rest.after(&chunk, end, fault) {
            return end;
        }
    }
    End::Done
}

/// Fills what is kept of a granule; `None` if that is not the page that the access wants.
fn fill_from_kept(mapping: &Mapping, fault: &Fault, new: &mut usize) -> Option<End> {
    let budget = mapping.backing.share.as_ref()?.budget();
    if budget.kept.pages() == 0 {
        return None;
    }
    let mut rest = Rest::of(fault);
    // What is wanted comes first.
    for part in [fault.page.start..fault.granule.end, fault.granule.start..fault.page.start] {
        rest.from = part;
        while let Some(mut chunk) = mapping.next_missing(rest.from.clone(), &fault.page, usize::MAX)
        {
            let pages = mapping.pages(&chunk);
            let time = |page| mapping.records.time(page..page + 1);
            let end = match budget.kept.find(fault.number, pages, time) {
                Found::Nothing if rest.has_page => {
                    rest.from.start = chunk.start + PAGE;
                    continue;
                }
                Found::Nothing => return None,
                Found::Busy => End::Gone,
                Found::Bytes(slots) => {
                    chunk.end = chunk.start + slots.len() * PAGE;
                    fill_kept(mapping, &chunk, slots, &rest, fault, new)
                }
            };
            if let Err(end) = rest.after(&chunk, end, fault) {
                end.count(&mapping.backing.counters);
                return Some(end);
            }
        }
    }
    End::Done.count(&mapping.backing.counters);
    Some(End::Done)
}

/// Fills a chunk with what was kept of it.
fn fill_kept(
    mapping: &Mapping,
    chunk: &Range<usize>,
    slots: Slots<'_>,
    rest: &Rest,
    fault: &Fault,
    new: &mut usize,
) -> End {
    let taken = match Taken::take(&mapping.backing, chunk, rest, fault) {
        Ok(taken) => taken,
        Err(end) => return end,
    };
    let before = *new;
    let end = taken.install(mapping, chunk, Content::Kept(&slots), fault, new);
    if let Some(share) = &mapping.backing.share {
        share.budget().came.add_kept(*new - before);
    }
    if matches!(end, End::Done) {
        slots.have_come();
    }
    end
}

/// Fills what the source reads. No VMA of the region is locked while it does, only the source's in
/// `SOURCES`: the region may be changed or unmapped meanwhile, and then what was read is not used.
fn read_and_fill(
    mut vma: ReadGuard<'static, Piece>,
    fault: &Fault,
    server: Server<'_>,
    new: &mut usize,
) -> End {
    let Ok(backing) = SOURCES.try_read(fault.number) else {
        return End::Later;
    };
    let granule = vma.mapping.granule_of(fault.page.start);
    let is_handler_thread = matches!(server, Server::Thread);
    let Some(_reading) = backing.reads.begin(granule, is_handler_thread) else {
        drop(vma);
        if !is_handler_thread {
            backing.reads.wait(granule);
            Shard::mine().count_fault();
            End::Done.count(&backing.counters);
        }
        return End::UnderWay { granule };
    };
    if vma.mapping.is_page_present(&fault.page) {
        // Another thread has read it since the access faulted.
        let end = fault.written().map_or(End::Done, |page| vma.mapping.let_write(page).into());
        end.count(&backing.counters);
        return end;
    }
    let buffer = match server {
        Server::Caller { buffer, .. } => Some(Buffer::own(buffer)),
        Server::Handler | Server::Thread => backing.buffers.take(fault.granule.len()),
    };
    let Some(mut buffer) = buffer else { return End::Later };
    let mut rest = Rest::of(fault);
    let mut takes_zeros = backing.takes_zeros();
    while let Some(mut wanted) = Wanted::next(&vma.mapping, rest.from.clone(), fault, buffer.len())
    {
        let end = match Taken::take(&backing, &wanted.chunk, &rest, fault) {
            Err(end) => end,
            Ok(taken) => {
                let in_huge = vma.mapping.is_for_huge(&wanted.chunk, vma.access);
                drop(vma);
                let read = wanted.ask(&backing, takes_zeros, &mut buffer, in_huge);
                vma = match SPACE.try_read(fault.addr) {
                    Ok(again) if wanted.is_still(&again, fault) => again,
                    _ if rest.has_page => break,
                    _ => return End::Later,
                };
                let end = settle(&vma, taken, &wanted.chunk, read, &mut buffer, fault, new);
                if matches!((&read, &end), (Ok(Answer::Zeros), End::Failed)) {
                    // A filter that came later: they are copied.
                    takes_zeros = false;
                    continue;
                }
                end
            }
        };
        if let Err(end) = rest.after(&wanted.chunk, end, fault) {
            end.count(&backing.counters);
            return end;
        }
    }
    End::Done.count(&backing.counters);
    End::Done
}

/// Fills a chunk with what the source said, in whose VMA the fault is, or poisons the page that the
/// access wants.
fn settle(
    vma: &Piece,
    taken: Taken<'_>,
    chunk: &Range<usize>,
    read: Result<Answer, ReadFailed>,
    buffer: &mut Buffer<'_>,
    fault: &Fault,
    new: &mut usize,
) -> End {
    let mapping = &*vma.mapping;
    let before = *new;
    let end = match read {
        Ok(Answer::Zeros) => taken.install(mapping, chunk, Content::Zeros, fault, new),
        Ok(Answer::Bytes) => {
            let filled = mapping.install_read(chunk, buffer, fault.written(), vma.access);
            taken.have_come(filled, new)
        }
        Err(ReadFailed) if *chunk != fault.page => return End::Failed,
        Err(ReadFailed) => match mapping.poison(&fault.page, false) {
            Poisoned::ByKernel | Poisoned::ByRecord => End::Failed,
            // By another thread, which could read it.
            Poisoned::Not => End::Gone,
        },
    };
    if let Some(share) = mapping.backing.share.as_ref().filter(|_| mapping.backing.are_kept()) {
        share.budget().came.add_read(*new - before);
    }
    end
}

/// What a source has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It is zeros.
    Zeros,
    /// What is in the buffer.
    Bytes,
}

thread_local! {
    /// The region whose source this thread reads; 0 if none.
    static READ: Cell<usize> = const { Cell::new(0) };
}

/// While it lives, its thread reads a region's source.
struct InSource {
    outer: usize,
}

impl InSource {
    #[inline]
    fn enter(number: usize) -> Self {
        Self { outer: READ.replace(number) }
    }
}

impl Drop for InSource {
    #[inline]
    fn drop(&mut self) {
        READ.set(self.outer);
    }
}

/// Whether this thread reads the source of that region now: it would wait for itself there.
pub(crate) fn is_in_source_of(number: usize) -> bool {
    READ.get() == number
}

/// What a fault is about to read.
struct Wanted {
    chunk: Range<usize>,
    /// The end of what its time is that of.
    end: usize,
    /// Its name: it grows when any of it is given back (R3).
    time: u64,
    /// The region's length.
    len: usize,
}

impl Wanted {
    /// The next of what is missing. The caller has read-locked the VMA.
    fn next(mapping: &Mapping, from: Range<usize>, fault: &Fault, most: usize) -> Option<Self> {
        let chunk = mapping.next_missing(from, &fault.page, most)?;
        let time = mapping.records.time(mapping.pages(&chunk));
        Some(Self { end: chunk.end, chunk, time, len: mapping.backing.len() })
    }

    /// Has the source say that its first pages are zeros, or read it: to huge pages, if it is to
    /// come in such.
    fn ask(
        &mut self,
        backing: &Backing<dyn Source>,
        takes_zeros: bool,
        buffer: &mut Buffer<'_>,
        in_huge: bool,
    ) -> Result<Answer, ReadFailed> {
        let _inside = InSource::enter(backing.number);
        if takes_zeros && self.is_zeros(&backing.source) {
            return Ok(Answer::Zeros);
        }
        let (bytes, source) = (self.chunk.len(), &backing.source);
        // What lies behind the region's length is zeros.
        let inside = bytes.min(self.len.saturating_sub(self.chunk.start));
        // A page is cleared in any case: it costs less than it saves the kernel, which finds the
        // lines that it writes to in this processor's cache.
        let filled = if source.fills_buffer() && bytes > PAGE { inside } else { 0 };
        buffer.clear(bytes, filled, if in_huge { bytes / HUGE * HUGE } else { 0 });
        source.read_at(self.chunk.start as u64, &mut buffer[..inside])?;
        Ok(Answer::Bytes)
    }

    /// Whether its first pages are zeros, as the source says. It is made shorter, to what is all
    /// zeros or has none that are known.
    #[inline]
    fn is_zeros(&mut self, source: &dyn Source) -> bool {
        let (mut at, end) = (self.chunk.start, self.len.min(self.chunk.end));
        let (from, to) = loop {
            let known = if at < end { source.zeros(at as u64..end as u64) } else { None };
            let Some(zeros) = known else { return false };
            let first = (zeros.start as usize).clamp(at, end);
            let last = (zeros.end as usize).clamp(first, end);
            // Behind the end is zeros.
            let to = if last == end { self.chunk.end } else { last / PAGE * PAGE };
            let from = first.next_multiple_of(PAGE);
            if from < to {
                break (from, to);
            }
            if last <= at {
                return false;
            }
            at = last;
        };
        let is_first = from == self.chunk.start;
        self.chunk.end = if is_first { to } else { from };
        is_first
    }

    /// Whether it is what is wanted there now, and all in the VMA that the caller has read-locked.
    fn is_still(&self, vma: &ReadGuard<'static, Piece>, fault: &Fault) -> bool {
        let mapping = &*vma.mapping;
        let chunk = fault.base + self.chunk.start..fault.base + self.chunk.end;
        mapping.backing.number == fault.number
            && mapping.memory.range().start == fault.base
            && mapping.records.time(mapping.pages(&(self.chunk.start..self.end))) == self.time
            && vma.range().start <= chunk.start
            && chunk.end <= vma.range().end
    }
}

/// A page that is present, at a processor that does not say whether it is to be written.
#[cold]
fn let_write_perhaps(fault: &Fault) -> Verdict {
    match SPACE.try_read(fault.addr).map(|vma| vma.mapping.let_write(&fault.page)) {
        Ok(Outcome::Done) => fault.present(),
        // If it failed, the access faults again.
        _ => fault.changed(),
    }
}

/// Fails an access at `addr`.
pub(crate) fn fail(addr: usize) -> Verdict {
    match SPACE.try_read(addr) {
        Ok(vma) => {
            Shard::mine().count_failure();
            vma.mapping.backing.counters.mine().failures.add(1);
            let offset = vma.mapping.offset_of(addr);
            let on_failure = vma.mapping.backing.on_failure;
            Verdict::Failed { on_failure, offset, is_refused: false }
        }
        // Made again, it fails again.
        Err(ReadError::Locked { .. } | ReadError::Reserved { .. }) => Verdict::Later,
        Err(_) => Verdict::PassOn,
    }
}

/// Poisons the page at `addr`, for which a thread sleeps that is to be told of a failure; for good,
/// or until others have gone. `None` if that could not be tried now.
pub(crate) fn poison_at(addr: usize, is_refused: bool) -> Option<Poisoned> {
    let vma = SPACE.try_read(addr).ok()?;
    let page = vma.mapping.page_at(vma.mapping.offset_of(addr));
    Some(vma.mapping.poison(&page, is_refused))
}

/// Poisons all that is missing of a region, as far as its VMAs can be read-locked now.
pub(crate) fn poison_missing(backing: &Backing<dyn Source>) {
    let mut addr = 0;
    while let Ok(Some(vma)) = SPACE.try_read_at_or_after(addr) {
        let range = vma.range();
        let mapping = &vma.mapping;
        if mapping.backing.number == backing.number {
            mapping.poison_missing(&(mapping.offset_of(range.start)..mapping.offset_of(range.end)));
        }
        addr = range.end;
    }
}

/// So many faults in a row at a page that is present are nothing unusual.
const FEW: u32 = 16;
/// And so many, with rests between them of about a second together, mean that it cannot be read.
const TOO_MANY: u32 = 2000;

/// Whether an access is to be repeated whose page was present. It rests if that is not the first
/// time.
pub(crate) fn may_repeat(region: usize, addr: usize, time: u64) -> bool {
    let times = times_present(region, addr, time);
    if times >= FEW {
        rest(times);
    }
    times < TOO_MANY
}

/// How often in a row this thread has faulted at a page that was present, its record being of this
/// time.
///
/// Once or a few times is a race that another thread won: what is present stays until it is given
/// back, which makes it of another time, so the access succeeds when it is repeated. Many times is
/// a page that cannot be read although it is present: swap that fails, or the addresses of a region
/// in a forked child.
#[cold]
fn times_present(region: usize, addr: usize, time: u64) -> u32 {
    type Place = (usize, usize, u64);
    thread_local! {
        static LAST: Cell<(Place, u32)> = const { Cell::new(((0, 0, 0), 0)) };
    }
    let place = (region, addr & !(PAGE - 1), time);
    let (last, times) = LAST.get();
    let times = if place == last { times.saturating_add(1) } else { 1 };
    LAST.set((place, times));
    times
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemorySource, Options};

    #[test]
    fn an_address_that_is_no_regions_is_passed_on() {
        let verdict = serve(PAGE, Cause::Missing { is_write: false }, false, Server::Handler);
        assert!(matches!(verdict, Verdict::PassOn));
    }

    #[test]
    fn of_a_granule_that_another_thread_copies_only_the_page_that_is_wanted_is_filled() {
        let source = || MemorySource::new(vec![7; 32 * PAGE]);
        let options = Options::new().granule(16 * PAGE);
        let threaded = options.clone().handler_threads(1);
        for region in [options.map(source()).unwrap(), threaded.map(source()).unwrap()] {
            let touch = |page| region.read(page * PAGE, &mut [0]);
            let filled = || region.stats().pages;
            let mapping = SPACE.try_read(region.as_ptr().addr()).unwrap().mapping.clone();
            let other = mapping.backing.reads.begin(1, false);
            assert!(other.is_some());
            touch(20);
            touch(29);
            assert_eq!(filled(), 2);
            drop(other);
            touch(30);
            assert_eq!(filled(), 16, "and nothing is filled twice");
            touch(16);
            assert_eq!(filled(), 16);
        }
    }

    #[test]
    fn only_the_same_page_of_one_region_is_counted() {
        assert!((1..9).all(|page| times_present(1, page * PAGE, 7) == 1));
        assert!((2..9).all(|region| times_present(region, 0, 7) == 1), "addresses are used again");
        assert!((8..17).all(|time| times_present(8, 0, time) == 1), "it was given back between");
        assert!((1..9).all(|times| times_present(1, times as usize, 7) == times));
    }
}

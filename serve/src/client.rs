//! One client: a userfaultfd, and what belongs into the memory that is registered with it.
#![expect(clippy::disallowed_types, reason = "a number that guards no memory")]

use std::collections::hash_map;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};
use pervma::{ChangeError, ReadError, ReadGuard};
use pervma_pager::Source;
use pervma_pager::sys::{CopyError, Errno, NotUserfaultfd, RemoteUserfaultfd};

use crate::failure::{Failure, Health};
use crate::map::{Content, Map, PAGE, Piece};
use crate::noted::{Noted, Parts};
use crate::source::populate;
use crate::state::Extent;
use crate::state::journal::Journal;
use crate::state::record::Record;
use crate::state::ring::{BATCH, Ring};
use crate::state::table::{Entry, Kind, Slot, Table};
use crate::stats::{Counter, Counters, Stats};

pub(crate) use crate::noted::{ForkedChild, LeftChild};

/// The number of a client: no other one of its pager has it, or will have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub(crate) u64);

impl ClientId {
    /// The number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a client was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It cannot be noted where the next process would find it.
    #[error("it cannot be noted: {0}")]
    NotNoted(io::Error),
    /// What it brought is no userfaultfd.
    #[error(transparent)]
    NotUserfaultfd(#[from] NotUserfaultfd),
    /// Its userfaultfd cannot be used yet: `UFFDIO_API` was not called.
    #[error("its userfaultfd has not been set up")]
    NotSetUp,
    /// Its memory overlaps itself, or is more than there is memory to describe.
    #[error("its memory cannot be described: {0}")]
    Memory(#[from] ChangeError),
    /// There are as many clients as are let.
    #[error("there are {0} clients already, as many as are let")]
    TooMany(usize),
    /// The kernel has refused to watch its descriptor.
    #[error("its descriptor cannot be watched: {0}")]
    Watch(Errno),
}

pub(crate) struct Client {
    pub(crate) id: ClientId,
    /// What is noted of it beside its journal.
    pub(crate) slot: Slot,
    entry: Entry,
    uffd: RemoteUserfaultfd,
    map: Map,
    pub(crate) source: Arc<dyn Source>,
    /// Bytes that a fault fills, aligned by address.
    pub(crate) granule: usize,
    /// Of its memory, as it was told, in bytes.
    pub(crate) len: u64,
    /// Bytes that are filled at once, as aligned.
    piece: usize,
    /// Held to fill what the map says, and exclusively from before messages are read until the map
    /// says what they say.
    ///
    /// A thread that has told of a removal goes on when the message is read. If a fill that was
    /// looked up before came after that, the thread would see what it has removed.
    ///
    /// The journal says what the map says, before that is acted upon.
    fills: RwLock<Journal>,
    /// Workers that serve its faults.
    serving: AtomicUsize,
    /// The granules that are being read from the source. Whoever reads one wakes all of it when it
    /// is done, whatever came of it: so a fault in such a granule needs no answer.
    reading: Mutex<HashSet<usize>>,
    strays: Mutex<Strays>,
    /// When a page could not be read the last time, for good.
    failed_read: Mutex<Option<Instant>>,
    /// Where the next fault is if the client goes on in order.
    expected: Mutex<usize>,
    pub(crate) health: Health,
}

/// What the daemon knows of a client.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About {
    /// Memory that it has not told of is zeros.
    pub(crate) is_sparse: bool,
    /// See [`Entry::owner`].
    pub(crate) owner: u64,
    /// See [`Entry::source`].
    pub(crate) source: u64,
}

/// Where nothing is mapped although faults came from there.
#[derive(Default)]
struct Strays {
    /// Since so many ranges were unmapped or had moved.
    since: u64,
    /// When their threads were woken.
    woken: HashMap<usize, Instant>,
}

/// What is to be done about a fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// Nothing any more: its page is there, or its thread makes the access again.
    Done,
    /// An event is to be read first: to be served again.
    Again,
    /// The source has to be waited for: this page is to be read, and the granule with it.
    Read,
    /// It cannot be.
    Failed(Failure),
    /// Its process has gone.
    Gone,
}

/// What came of beginning a read.
#[derive(Debug)]
pub(crate) enum Begun {
    Wanted(Wanted),
    /// Another thread reads the granule, and wakes all that sleep for it.
    UnderWay,
    /// Something else belongs there by now.
    NotOfSource,
}

/// What is to be read for a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Addresses.
    pub(crate) range: Range<usize>,
    /// The page, of its own size, that a thread sleeps for.
    pub(crate) page: Range<usize>,
    /// Where the range's bytes are in the source.
    pub(crate) offset: u64,
}

/// How much is filled between two looks at whether messages are to be read: a fill of this size
/// takes about 15 µs.
pub(crate) const PIECE: usize = 64 << 10;
/// Fills that take longer than this are held up, and others are served before messages are read.
pub(crate) const HELD_UP: Duration = Duration::from_millis(1);
/// So many pieces at once are filled where no thread waits.
const PIECES_LATER: usize = 2;

/// Bytes that are read at once where no thread waits for them.
const AT_ONCE: usize = 256 << 10;
/// The size of huge pages.
const HUGE: usize = 2 << 20;

/// A page that is never mapped.
const NOWHERE: usize = 0x7FFF_FFFF_E000;

impl Client {
    /// A new client. If there is a failure, it is one that is not served, also by the next process
    /// if this one dies now.
    pub(crate) fn new(
        table: &Arc<Table>,
        userfaultfd: OwnedFd,
        extents: &[Extent],
        source: Arc<dyn Source>,
        granule: usize,
        about: About,
        failure: Option<&Failure>,
    ) -> Result<Self, ClientError> {
        let uffd = RemoteUserfaultfd::new(userfaultfd)?;
        let map = Map::new(extents)?;
        let entry = Entry {
            number: table.new_number(Kind::Client),
            kind: Kind::Client,
            descriptor: uffd.as_fd().as_raw_fd(),
            pidfd: -1,
            parent: 0,
            owner: about.owner,
            source: about.source,
            pid: 0,
            uid: 0,
            gid: 0,
            is_sparse: about.is_sparse,
        };
        if is_not_set_up(&uffd) {
            // Nothing could be filled or poisoned.
            return Err(ClientError::NotSetUp);
        }
        let parts = Parts::new(table, entry, map, failure).map_err(ClientError::NotNoted)?;
        let (granule, piece) = granule_and_piece(&parts.map, granule);
        Ok(Self::of(parts, uffd, source, granule, piece))
    }

    /// A client of which another process has left this, and the descriptor of its journal.
    pub(crate) fn left(
        slot: Slot,
        entry: Entry,
        userfaultfd: OwnedFd,
        file: Option<OwnedFd>,
        source: Arc<dyn Source>,
        granule: usize,
    ) -> Result<Self, ClientError> {
        let uffd = RemoteUserfaultfd::new(userfaultfd)?;
        let parts = Parts::left(slot, entry, file).map_err(ClientError::NotNoted)?;
        let (granule, piece) = granule_and_piece(&parts.map, granule);
        let client = Self::of(parts, uffd, source, granule, piece);
        if let Some(failure) = client.slot.failure() {
            client.health.fail(failure);
        }
        Ok(client)
    }

    fn of(
        parts: Parts,
        uffd: RemoteUserfaultfd,
        source: Arc<dyn Source>,
        granule: usize,
        piece: usize,
    ) -> Self {
        let Parts { slot, entry, map, journal } = parts;
        Self {
            id: ClientId(entry.number),
            slot,
            entry,
            uffd,
            source,
            granule,
            len: extents_len(&map),
            map,
            piece,
            fills: RwLock::new(journal),
            serving: AtomicUsize::new(0),
            reading: Mutex::default(),
            strays: Mutex::default(),
            failed_read: Mutex::default(),
            expected: Mutex::default(),
            health: Health::default(),
        }
    }

    /// A forked child.
    pub(crate) fn child(&self, child: ForkedChild) -> Result<Self, ClientError> {
        let ForkedChild { parts, userfaultfd } = child;
        let uffd = RemoteUserfaultfd::new(userfaultfd)?;
        Ok(Self::of(parts, uffd, Arc::clone(&self.source), self.granule, self.piece))
    }

    fn noted<'c>(&'c self, journal: &'c mut Journal) -> Noted<'c> {
        Noted { slot: &self.slot, entry: &self.entry, map: &self.map, journal }
    }

    /// From now on it fails; whether it did not before.
    pub(crate) fn fail(&self, failure: Failure) -> bool {
        self.slot.fail(&failure);
        self.health.fail(failure)
    }

    pub(crate) fn counters(&self) -> Counters<'_> {
        self.slot.counters()
    }

    pub(crate) fn extents(&self) -> Vec<Extent> {
        // While memory moves in the map, it is nowhere.
        let _order = self.fills.read();
        self.map.extents()
    }

    /// Reads messages into a ring. Faults are added to `faults`, and children to `children`; the
    /// map says what the others say. Returns whether there may be more; `None` if nothing was read
    /// because fills take longer than `patience`: the client forks, perhaps, or unmaps much.
    pub(crate) fn read(
        &self,
        patience: Duration,
        ring: &mut Ring,
        faults: &mut Vec<usize>,
        children: &mut Vec<ForkedChild>,
    ) -> Result<Option<bool>, Failure> {
        let Some(mut journal) = self.fills.try_write_for(patience) else {
            return Ok(None);
        };
        let read = |ring: &mut Ring| self.uffd.read(ring.messages());
        let count = self.noted(&mut journal).read(ring, read, faults, children)?;
        Ok(Some(count == BATCH))
    }

    /// See [`Noted::read_left`].
    pub(crate) fn read_left(
        &self,
        ring: &mut Ring,
        changes: u64,
        children: &mut Vec<ForkedChild>,
        child_with: impl FnMut(i32) -> LeftChild,
    ) -> Result<(), Failure> {
        let mut journal = self.fills.write();
        self.noted(&mut journal).read_left(ring, changes, children, child_with)
    }

    /// Has all of its threads that sleep fault again: who was told of their faults has died.
    pub(crate) fn wake_all(&self) {
        /// No page is lower, and none is higher: with 48 bits of addresses, or 47.
        const ENDS: [usize; 2] = [1 << 48, (1 << 47) - PAGE];
        const LOWEST: usize = 64 << 10;
        let _ = ENDS.iter().any(|end| self.uffd.wake(LOWEST, end - LOWEST).is_ok());
    }

    /// Of what its entry says.
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Fills the page at an address, whose fault was read at this time, and what lies around it.
    pub(crate) fn serve(&self, addr: usize, since: Instant) -> Served {
        if self.health.failure().is_some() {
            return self.poison(addr);
        }
        let served = self.fill(addr, &self.piece(addr), None, For::Thread(since));
        if served == Served::Done {
            self.counters().add(Counter::Faults, 1);
        }
        served
    }

    /// Where the parts of the source are now.
    pub(crate) fn places(&self) -> Places {
        let mut places: Vec<_> =
            self.extents().into_iter().filter(|extent| extent.content == Extent::SOURCE).collect();
        places.sort_unstable_by_key(|extent| extent.offset);
        Places(places)
    }

    /// Where in the source the bytes of a page are, if they belong there.
    pub(crate) fn source_offset(&self, addr: usize) -> Option<u64> {
        let vma = self.map.read(addr).ok()?;
        match vma.at(addr - vma.range().start).content {
            Content::Source(offset) => Some(offset),
            Content::Zeros | Content::Poisoned => None,
        }
    }

    /// Whether fewer workers than so many serve its faults.
    pub(crate) fn has_fewer(&self, most: usize) -> bool {
        // RELAXED: here and below, a number that guards nothing.
        self.serving.load(Relaxed) < most
    }

    /// One worker more serves a fault, if that is not more than so many.
    pub(crate) fn begin_serving(&self, most: usize) -> bool {
        let one_more = |serving: usize| (serving < most).then_some(serving + 1);
        self.serving.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// A worker has served a fault, or defers it.
    pub(crate) fn end_serving(&self) {
        self.serving.fetch_sub(1, Relaxed);
    }

    /// Whether to serve a fault takes longer than to wake a thread for it.
    pub(crate) fn takes_long(&self) -> bool {
        self.granule > PIECE
    }

    /// Whether there is more of a granule than what is filled for a fault.
    pub(crate) fn has_rest(&self) -> bool {
        self.granule > self.piece
    }

    /// Fills what else of the granule of a fault that was [served](Self::serve) is missing and need
    /// not be waited for.
    pub(crate) fn fill_rest(&self, addr: usize) {
        for other in self.rest(addr) {
            if self.fill(other.start, &other, None, For::Later) != Served::Done {
                break;
            }
        }
    }

    /// Fills a range for which no thread sleeps, as far as it is missing and the bytes of the
    /// source belong there.
    pub(crate) fn fill_ahead(&self, range: &Range<usize>) -> Served {
        for piece in pieces(range, self.piece * PIECES_LATER) {
            let served = self.fill(piece.start, &piece, None, For::Later);
            if served != Served::Done {
                return served;
            }
        }
        Served::Done
    }

    /// The first address of a range for whose page the source has the bytes, if it is missing.
    pub(crate) fn next_of_source(&self, range: &Range<usize>) -> Option<usize> {
        // While memory moves in the map, it is nowhere.
        let _order = self.fills.read();
        let vma = self.source_from(range.start)?;
        Some(vma.range().start.max(range.start)).filter(|start| *start < range.end)
    }

    /// Read-locks the first VMA from an address on that has bytes of the source. The caller
    /// excludes that messages are read, so nothing is write-locked.
    fn source_from(&self, mut addr: usize) -> Option<ReadGuard<'_, Piece>> {
        loop {
            let vma = self.map.read_at_or_after(addr).ok()??;
            match vma.content {
                Content::Source(_) => return Some(vma),
                Content::Zeros | Content::Poisoned => addr = vma.range().end,
            }
        }
    }

    /// Makes ready what a range is to be filled with, as far as that is in memory.
    pub(crate) fn prepare(&self, range: &Range<usize>) {
        let mut at = range.start;
        while let Some(vma) = self.source_from(at) {
            let whole = vma.range();
            let (start, end) = (at.max(whole.start), range.end.min(whole.end));
            if start >= end {
                return;
            }
            at = end;
            let Content::Source(offset) = vma.at(start - whole.start).content else { return };
            drop(vma);
            if let Some(bytes) = self.source.resident(offset..offset + (end - start) as u64) {
                populate(bytes);
            }
        }
    }

    /// Fills some of what is missing of a range, for good: what of it the source has. `None` if
    /// there is no more. `Done` says that all that is `wanted` is there; that is less than a piece
    /// of this size, where the kernel has several mappings. If it has to be [read](Served::Read),
    /// this is called again with the bytes, as long as they last.
    pub(crate) fn fill_next(
        &self,
        range: &Range<usize>,
        piece: usize,
        read: Option<&Read<'_>>,
    ) -> Option<(Wanted, Served)> {
        let _order = self.fill_later();
        let (addr, end) = (range.start, range.end);
        let vma = self.source_from(addr)?;
        let whole = vma.range();
        let start = addr.max(whole.start);
        if start >= end {
            return None;
        }
        let page = page_of(start, &vma);
        let piece = (start / piece + 1) * piece;
        let mut range = start..piece.max(page.end).min(whole.end).min(end.max(page.end));
        let belongs = vma.at(start - whole.start);
        let Content::Source(offset) = belongs.content else { return None };
        let bytes = |range: &Range<usize>| {
            let (read, len) = (read?, range.len());
            let skipped = usize::try_from(offset.checked_sub(read.offset)?).ok()?;
            read.bytes.get(skipped..skipped.checked_add(len)?)
        };
        let mut filled = self.fill_with(&range, belongs, bytes(&range));
        if filled == Filled::NotRegistered {
            // The kernel has several mappings there; or it has begun to move them after it had
            // looked whether anything changes, and says so now.
            range = page.clone();
            filled = self.fill_with(&range, belongs, bytes(&range));
        }
        let served = match filled {
            Filled::Some if self.had_no_memory(&page) => Served::Failed(Failure::NoMemory),
            // What is not registered is not the pager's to fill.
            Filled::All | Filled::Some | Filled::NotRegistered => Served::Done,
            Filled::Again => Served::Again,
            Filled::NotThere => Served::Read,
            Filled::NoMemory => Served::Failed(Failure::NoMemory),
            Filled::Gone => Served::Gone,
        };
        if served == Served::Read {
            // More than is filled at once: what is read may be far.
            let most = start.saturating_add(AT_ONCE);
            range.end = most.min(whole.end).min(end).max(range.end);
        }
        Some((Wanted { range, page, offset }, served))
    }

    /// Excludes that messages are read, for a fill that no thread waits for. To read them takes
    /// less time than to wake a thread, so this looks again for a while before it sleeps.
    fn fill_later(&self) -> RwLockReadGuard<'_, Journal> {
        const LONG: Duration = Duration::from_micros(20);
        let mut since = None;
        loop {
            if let Some(order) = self.fills.try_read() {
                return order;
            }
            if since.get_or_insert_with(Instant::now).elapsed() >= LONG {
                return self.fills.read();
            }
            std::hint::spin_loop();
        }
    }

    /// A page could not be read, for good.
    pub(crate) fn note_failed_read(&self) {
        *self.failed_read.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether that was not long ago: others will fail as well, and are not tried for so long.
    pub(crate) fn has_failed_to_read(&self) -> bool {
        const LONG: Duration = Duration::from_secs(10);
        let failed = self.failed_read.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| at.elapsed() < LONG)
    }

    /// Whether it was not to be served from the beginning.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.health.failure(), Some(Failure::Refused(_)))
    }

    /// Whether it is known to have memory that it has not told of, and that is not zeros.
    pub(crate) fn has_untold_memory(&self) -> bool {
        !self.entry.is_sparse && matches!(self.health.failure(), Some(Failure::Outside(_)))
    }

    /// Whether it has told of memory at an address.
    pub(crate) fn has(&self, addr: usize) -> bool {
        self.map.read(addr).is_ok()
    }

    /// Notes that all of a range is there, so that what is missing of it later was removed; but not
    /// if memory has moved since there were so many [moves](Self::moves): then it is not known
    /// where it is.
    pub(crate) fn note_filled(&self, range: Range<usize>, moves: u64) -> Result<(), Failure> {
        let mut journal = self.fills.write();
        if self.moves() != moves {
            return Ok(());
        }
        self.noted(&mut journal).note(&Record::Filled(range))
    }

    /// How often its memory has moved.
    pub(crate) fn moves(&self) -> u64 {
        self.counters().stats().remaps
    }

    /// Whether a fault is where it was expected. The next one is then expected behind so many
    /// granules more, else in the next granule.
    pub(crate) fn is_in_order(&self, addr: usize, granules: usize) -> bool {
        let granule = self.granule_at(addr);
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let is_expected = granule.start == *expected;
        let ahead = if is_expected { granules.saturating_mul(self.granule) } else { 0 };
        *expected = granule.end.saturating_add(ahead);
        is_expected
    }

    /// What of the granule of an address is to be read. The caller reads it now, and says so when
    /// that is [over](Self::end_read).
    pub(crate) fn begin_read(&self, addr: usize) -> Begun {
        let Ok(vma) = self.map.read(addr) else { return Begun::NotOfSource };
        let (page, whole) = (page_of(addr, &vma), vma.range());
        let granule = self.granule_at(addr);
        let range = granule.start.max(whole.start)..granule.end.min(whole.end);
        let Content::Source(offset) = vma.at(range.start - whole.start).content else {
            return Begun::NotOfSource;
        };
        if !self.reading().insert(granule.start) {
            return Begun::UnderWay;
        }
        Begun::Wanted(Wanted { range, page, offset })
    }

    /// Poisons the page, which cannot be read, if it is still what belongs there.
    pub(crate) fn fail_read(&self, wanted: &Wanted) -> Served {
        let _order = self.fills.read();
        let Ok(vma) = self.map.read(wanted.page.start) else { return Served::Done };
        let offset = wanted.offset + (wanted.page.start - wanted.range.start) as u64;
        let at = wanted.page.start - vma.range().start;
        if vma.at(at).content != Content::Source(offset) {
            return Served::Read;
        }
        drop(vma);
        self.poison(wanted.page.start)
    }

    /// Fills what was read, as far as it is still what belongs there. Whether its page needs
    /// another look: something else belongs there by now, or an event is to be read first.
    pub(crate) fn fill_read(&self, wanted: &Wanted, bytes: &[u8], since: Instant) -> Served {
        let mut served = Served::Done;
        for piece in pieces(&wanted.range, self.piece) {
            let at = piece.start - wanted.range.start;
            let read =
                Read { offset: wanted.offset + at as u64, bytes: &bytes[at..][..piece.len()] };
            let filled = if piece.contains(&wanted.page.start) {
                served = self.fill(wanted.page.start, &piece, Some(&read), For::Thread(since));
                &served
            } else {
                &self.fill(piece.start, &piece, Some(&read), For::Later)
            };
            if *filled == Served::Gone {
                return Served::Gone;
            }
        }
        served
    }

    /// A granule is not being read any more: threads that sleep for what is missing of it fault
    /// again.
    pub(crate) fn end_read(&self, wanted: &Wanted) {
        let granule = self.granule_at(wanted.page.start);
        self.reading().remove(&granule.start);
        // All of it, also what lies outside of the VMA: faults there were not answered either.
        let _ = self.uffd.wake(granule.start, granule.len());
    }

    /// The page at an address cannot be had, for good.
    pub(crate) fn poison(&self, addr: usize) -> Served {
        let len = self.map.read(addr).map_or(PAGE, |vma| vma.page_size as usize);
        self.poison_page(addr / len * len, len)
    }

    fn poison_page(&self, addr: usize, len: usize) -> Served {
        match self.uffd.poison(addr, len) {
            Ok(()) => {
                if self.health.failure().is_none() {
                    self.counters().add(Counter::Poisoned, 1);
                }
                Served::Done
            }
            Err(CopyError::Again { .. }) => Served::Again,
            Err(CopyError::ProcessGone) => Served::Gone,
            Err(CopyError::Other(Errno::INVAL)) if !self.can_poison() => {
                Served::Failed(Failure::NoPoison)
            }
            // Huge pages, of memory that it has not told of.
            Err(CopyError::Other(Errno::INVAL)) if len == PAGE => {
                self.poison_page(addr / HUGE * HUGE, HUGE)
            }
            Err(_) => self.wake(addr, len),
        }
    }

    /// Whether a page is missing of which the kernel says that it is there: it also says so of
    /// huge pages when it has none to give. Then it is poisoned; else its thread faults for ever.
    /// The caller excludes that messages are read, so it has not gone meanwhile.
    fn had_no_memory(&self, page: &Range<usize>) -> bool {
        let had_none = page.len() > PAGE && self.uffd.poison(page.start, page.len()) == Ok(());
        if had_none {
            self.counters().add(Counter::Poisoned, 1);
            tracing::error!(client = %self.id, addr = page.start, "no huge page is left");
        }
        had_none
    }

    /// Poisons what is missing of the source's bytes, some of it after the other. `Done` if no more
    /// is: the client may be let go then, and what it has removed is zeros as before.
    ///
    /// What is poisoned stays so wherever it moves, so a client that moves its memory again and
    /// again does not keep this from its end.
    pub(crate) fn poison_missing(&self) -> Served {
        /// So much at a time, about 2 ms: a client that has something to tell waits for so long.
        const MOST: usize = 64 << 20;
        if !self.can_poison() {
            return Served::Failed(Failure::NoPoison);
        }
        let mut most = MOST;
        loop {
            // Nothing is read meanwhile: where the kernel poisons, memory is where the map says.
            let Some(mut journal) = self.fills.try_write_for(HELD_UP) else { return Served::Again };
            let Some((range, page)) = self.map.first_of_source() else { return Served::Done };
            let len = most.min(range.len());
            let done = match self.uffd.poison(range.start, len) {
                Ok(()) => {
                    most = most.saturating_mul(2).min(MOST);
                    len
                }
                // The kernel has several mappings there, or addresses end within.
                Err(CopyError::NotRegistered | CopyError::Other(_)) if len > page => {
                    most = (len / 2 / page).max(1) * page;
                    continue;
                }
                Err(CopyError::Again { copied: 0 } | CopyError::Other(Errno::NOMEM)) => {
                    return Served::Again;
                }
                Err(CopyError::Again { copied }) => copied,
                Err(CopyError::ProcessGone) => return Served::Gone,
                // It is there, or no more mapped.
                Err(_) => page,
            };
            let poisoned = Record::Poison(range.start..range.start + done);
            if let Err(failure) = self.noted(&mut journal).note(&poisoned) {
                return Served::Failed(failure);
            }
        }
    }

    /// Takes its memory back from the kernel: for a client that misses nothing any more. It may
    /// keep a copy of the descriptor, of which nobody would read what it does then, and it would
    /// wait for ever.
    ///
    /// A process that is restored keeps none. The kernel takes all of its memory back at once when
    /// the descriptor is closed: part by part, what is one mapping to the process would be several
    /// for a while, of which calls fail that want one.
    pub(crate) fn let_go(&self) -> Served {
        let extents = self.extents();
        let registered = if self.entry.is_sparse { &[] } else { &extents[..] };
        // All that lies side by side at once: the kernel moves no memory of which a part is
        // registered.
        for side_by_side in registered.chunk_by(|one, next| one.range().end == next.start) {
            let len: u64 = side_by_side.iter().map(|extent| extent.len).sum();
            // Nothing is mapped there any more, perhaps.
            let _ = self.uffd.unregister(side_by_side[0].start as usize, len as usize);
        }
        match self.probe() {
            Err(CopyError::ProcessGone) => Served::Gone,
            // An event that was raised before is to be read.
            Err(CopyError::Again { .. }) => Served::Again,
            _ if self.extents() != extents => Served::Again,
            _ => Served::Done,
        }
    }

    /// Whether the client's process has gone: the kernel looks for it before it looks for memory.
    pub(crate) fn is_gone(&self) -> bool {
        self.probe() == Err(CopyError::ProcessGone)
    }

    /// Whether the kernel can poison: since Linux 6.6.
    fn can_poison(&self) -> bool {
        self.uffd.poison(NOWHERE, PAGE) != Err(CopyError::Other(Errno::INVAL))
    }

    /// Fills nothing: says in which state the process is.
    fn probe(&self) -> Result<(), CopyError> {
        probe(&self.uffd)
    }

    /// Fills a page of what is not told of with zeros. The caller excludes that messages are read,
    /// so nothing has moved there of which is not known: the kernel would refuse it.
    fn zero(&self, addr: usize) -> Served {
        match self.uffd.zero(addr, PAGE, true) {
            Ok(()) => {
                self.counters().add(Counter::Zeros, 1);
                Served::Done
            }
            Err(CopyError::Again { .. }) => Served::Again,
            Err(CopyError::ProcessGone) => Served::Gone,
            Err(CopyError::Other(Errno::NOMEM | Errno::NOSPC)) => Served::Failed(Failure::NoMemory),
            // It is there, or no more mapped: its thread makes the access again.
            Err(_) => self.wake(addr, PAGE),
        }
    }

    /// A fault where nothing is mapped, that was read at this time. It is nothing unusual: its
    /// thread was woken when another fault was served, went on, and has unmapped the page. If one
    /// is read after threads were woken for that, and nothing was unmapped since, the client has
    /// not told of all its memory.
    fn stray(&self, addr: usize, read: Instant) -> Served {
        let Stats { unmaps, remaps, .. } = self.counters().stats();
        let mut strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        if strays.since != unmaps + remaps {
            *strays = Strays { since: unmaps + remaps, woken: HashMap::new() };
        }
        match strays.woken.entry(addr) {
            hash_map::Entry::Occupied(woken) if *woken.get() < read => {
                return Served::Failed(Failure::Outside(addr));
            }
            hash_map::Entry::Occupied(_) => {}
            hash_map::Entry::Vacant(place) => {
                self.wake(addr, PAGE);
                place.insert(Instant::now());
            }
        }
        Served::Done
    }

    fn reading(&self) -> MutexGuard<'_, HashSet<usize>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn granule_at(&self, addr: usize) -> Range<usize> {
        let start = addr / self.granule * self.granule;
        start..start.saturating_add(self.granule)
    }

    /// What is filled at once with the page at an address.
    fn piece(&self, addr: usize) -> Range<usize> {
        let start = addr / self.piece * self.piece;
        start..start + self.piece
    }

    /// The rest of a granule, in pieces: what lies behind the first one, then what lies before.
    fn rest(&self, addr: usize) -> impl Iterator<Item = Range<usize>> {
        let (granule, piece) = (self.granule_at(addr), self.piece(addr));
        let most = self.piece * PIECES_LATER;
        let behind = pieces(&(piece.end..granule.end), most);
        behind.chain(pieces(&(granule.start..piece.start), most))
    }

    /// Fills a piece as far as it lies in the VMA of an address, with what
    /// belongs there, which may have been read.
    fn fill(&self, addr: usize, piece: &Range<usize>, read: Option<&Read<'_>>, by: For) -> Served {
        let _order = self.fills.read();
        let vma = match self.map.read(addr) {
            Ok(vma) => vma,
            Err(ReadError::NotMapped { .. }) => {
                return match by {
                    For::Thread(_) if self.entry.is_sparse => self.zero(addr),
                    For::Thread(read) => self.stray(addr, read),
                    For::Later => Served::Done,
                };
            }
            Err(_) => return Served::Again,
        };
        let whole = vma.range();
        let page = page_of(addr, &vma);
        let range = piece.start.max(whole.start)..piece.end.min(whole.end);
        let belongs = vma.at(range.start - whole.start);
        let read = match (read, belongs.content) {
            (Some(read), Content::Source(offset)) => {
                // Bytes for the part that is in the VMA, if they are these.
                let skipped = range.start - piece.start;
                let is_it = read.offset + skipped as u64 == offset;
                is_it.then(|| &read.bytes[skipped..][..range.len()])
            }
            _ => None,
        };
        if by == For::Later && belongs.content == Content::Zeros {
            // It was removed, to take no memory.
            return Served::Done;
        }
        let mut filled = self.fill_with(&range, belongs, read);
        if filled == Filled::NotRegistered && range != page {
            // The kernel has several mappings there, or less of it.
            let at = page.start - range.start;
            filled =
                self.fill_with(&page, belongs.at(at), read.map(|read| &read[at..][..page.len()]));
        }
        match filled {
            Filled::All => Served::Done,
            Filled::Some | Filled::NotRegistered if by == For::Later => Served::Done,
            Filled::Some if self.had_no_memory(&page) => Served::Done,
            // The page was there, perhaps, and filling does not wake for that. If it goes before
            // the thread looks, it faults again.
            Filled::Some | Filled::NotRegistered => self.wake(page.start, page.len()),
            Filled::Again => Served::Again,
            Filled::NotThere => Served::Read,
            Filled::NoMemory => Served::Failed(Failure::NoMemory),
            Filled::Gone => Served::Gone,
        }
    }

    /// Fills a range with what belongs there, and wakes for it. The caller has read-locked its VMA.
    fn fill_with(&self, range: &Range<usize>, piece: Piece, read: Option<&[u8]>) -> Filled {
        let page = piece.page_size as usize;
        let bytes: Option<*const [u8]> = match (piece.content, read) {
            (Content::Source(_), Some(read)) => Some(read),
            (Content::Source(offset), None) => {
                let in_source = offset..offset + range.len() as u64;
                let is_zeros = || {
                    let zeros = self.source.zeros(in_source.clone());
                    zeros.is_some_and(|zeros| {
                        zeros.start <= in_source.start && in_source.end <= zeros.end
                    })
                };
                if page == PAGE && is_zeros() {
                    None
                } else {
                    match self.source.resident(in_source) {
                        Some(bytes) => Some(bytes),
                        None => return Filled::NotThere,
                    }
                }
            }
            // The client cannot be served any more: its thread looks again, and is told so.
            (Content::Poisoned, _) => return Filled::Some,
            (Content::Zeros, _) if page == PAGE => None,
            (Content::Zeros, _) => Some(zeros(range.len())),
        };
        let (mut at, mut all) = (0, true);
        while at < range.len() {
            let (addr, len) = (range.start + at, range.len() - at);
            let filled = match bytes {
                Some(bytes) => {
                    let from = bytes.cast::<u8>().wrapping_add(at);
                    self.uffd.copy(addr, std::ptr::slice_from_raw_parts(from, len), true)
                }
                None => self.uffd.zero(addr, len, true),
            };
            let came = match filled {
                Ok(()) => len,
                Err(CopyError::Again { copied: 0 }) => return Filled::Again,
                Err(CopyError::Again { copied }) => copied,
                Err(CopyError::AlreadyPresent) => {
                    all = false;
                    at += page;
                    continue;
                }
                Err(CopyError::NotRegistered) => return Filled::NotRegistered,
                Err(CopyError::ProcessGone) => return Filled::Gone,
                Err(CopyError::Other(Errno::NOMEM | Errno::NOSPC)) => return Filled::NoMemory,
                // The file has become shorter: to be found out by reading it.
                Err(_) => return Filled::NotThere,
            };
            let counter = if bytes.is_some() { Counter::Pages } else { Counter::Zeros };
            self.counters().add(counter, (came / PAGE) as u64);
            at += came;
        }
        if all { Filled::All } else { Filled::Some }
    }

    fn wake(&self, addr: usize, len: usize) -> Served {
        // No whole pages, which they are.
        let _ = self.uffd.wake(addr, len);
        Served::Done
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Before its descriptor is closed, whose number may be another's then.
        self.slot.free();
    }
}

/// Fills nothing: says in which state the process is.
fn probe(uffd: &RemoteUserfaultfd) -> Result<(), CopyError> {
    let page = [0; PAGE];
    uffd.copy(NOWHERE, &raw const page[..], false)
}

fn is_not_set_up(uffd: &RemoteUserfaultfd) -> bool {
    probe(uffd) == Err(CopyError::Other(Errno::INVAL))
}

/// What a fault fills, and what is filled at once, in bytes.
fn granule_and_piece(map: &Map, granule: usize) -> (usize, usize) {
    let page = map.extents().iter().map(|extent| extent.page_size as usize).max().unwrap_or(PAGE);
    let granule = granule.max(page);
    (granule, granule.min(PIECE).max(page))
}

/// For whom a page is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// A thread that sleeps, whose fault was read at this time.
    Thread(Instant),
    /// One that may come.
    Later,
}

/// What was read from the source.
pub(crate) struct Read<'b> {
    pub(crate) offset: u64,
    pub(crate) bytes: &'b [u8],
}

/// What came of filling a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    /// All of it came, and who slept for it is awake.
    All,
    /// Some pages were there already.
    Some,
    /// An event is to be read first.
    Again,
    /// The source has to be waited for.
    NotThere,
    NotRegistered,
    NoMemory,
    Gone,
}

/// Where parts of the source are in a client's memory, by their offsets in the source. Where some
/// part is at several addresses, one of them is found.
pub(crate) struct Places(Vec<Extent>);

impl Places {
    /// The addresses of a range of the source, in whole pages, in pieces to be filled at once.
    pub(crate) fn of(&self, range: &Range<u64>) -> impl Iterator<Item = Range<usize>> {
        let before = self.0.partition_point(|extent| extent.offset <= range.start);
        let (start, end) = (range.start, range.end);
        let places = self.0[before.saturating_sub(1)..].iter();
        places.take_while(move |extent| extent.offset < end).flat_map(move |extent| {
            let page = u64::from(extent.page_size);
            let from = start.saturating_sub(extent.offset) / page * page;
            let to = (end - extent.offset).next_multiple_of(page).min(extent.len);
            let at = |offset: u64| (extent.start + offset) as usize;
            // Empty if it lies behind the extent.
            let addresses = at(from.min(to))..at(to);
            pieces(&addresses, PIECE.max(page as usize))
        })
    }
}

fn extents_len(map: &Map) -> u64 {
    map.extents().iter().map(|extent| extent.len).sum()
}

/// The page, of its VMA's size, at an address.
fn page_of(addr: usize, piece: &Piece) -> Range<usize> {
    let size = piece.page_size as usize;
    let start = addr / size * size;
    start..start + size
}

/// A range in aligned pieces.
fn pieces(range: &Range<usize>, piece: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = ((start / piece + 1) * piece).min(end);
        (start < end).then_some(start..at)
    })
}

/// That many zeros, at most a huge page.
fn zeros(len: usize) -> *const [u8] {
    static ZEROS: [u8; 2 << 20] = [0; 2 << 20];
    &raw const ZEROS[..len]
}

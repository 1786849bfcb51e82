//! Range locks: for changes that take more than one edit.
#![forbid(unsafe_code)]

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;

use crate::error::OwnRangeLock;
use crate::held::HandlerScope;
use crate::host::DefaultPlatform;
use crate::ledger::{RANGE_CLOSED, RANGE_REOPENED};
use crate::mmap_lock::Locked;
use crate::platform::Platform;
use crate::step::Step;
use crate::sync::{AtomicU32, AtomicUsize, Relaxed, WaitWord, const_unless_model, keep};

/// How many locks there can be at a time, held and waited for. Who comes when there are as many
/// waits until there is one less.
const MOST: usize = 64;

/// Locks of address ranges, for changes that take more than one edit: one that decides, work with
/// no lock of the space held, and one that changes the map.
///
/// A lock keeps other locks of the same addresses out, in the order in which they were asked for.
/// There are at most 64 at a time, held and waited for; who comes then waits. It is no lock of a
/// space: edits and readers know nothing of it. Who changes the map in one edit
/// asks [`is_free`](Self::is_free) inside of it, and readers ask [`is_closed`](Self::is_closed).
///
/// Readers are kept out of a locked range, and not of the rest of its VMAs, in three steps.
/// [`RangeLock::close`] it; write-lock its VMAs once, which waits for the readers that are there;
/// and have each reader ask `is_closed` after it has read-locked its VMA.
///
/// ```
/// use pervma::{AddressSpace, RangeLocks};
///
/// let (space, locks) = (AddressSpace::new(4096), RangeLocks::new());
/// space.insert(0x1000..0x9000, "heap")?;
///
/// let lock = locks.lock(0x1000..0x3000)?;
/// lock.close();
/// drop(space.edit()?.write(0x1000)?); // the readers that were there have gone
/// // Work on the pages. Elsewhere in the same VMA readers go on, and so do other changes.
/// let vma = space.try_read(0x2000)?;
/// assert!(locks.is_closed(0x2000) && !locks.is_closed(0x3000));
/// assert!(locks.is_free(0x3000..0x9000));
/// # drop(vma);
/// space.remove(0x1000..0x3000)?;
/// drop(lock);
/// assert!(!locks.is_closed(0x2000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RangeLocks<P: Platform = DefaultPlatform> {
    table: Locked<Table, P>,
    /// How many locks there are, held and waited for. Changes under the table's lock.
    len: AtomicUsize,
    /// How many of them are closed. Changes under the table's lock.
    closed: AtomicU32,
    /// Changes when a lock is released that a thread may wait for: they sleep on it.
    released: WaitWord,
}

/// The locks, in the order in which they were asked for. A lock is held when no earlier one has a
/// common address.
struct Table {
    entries: [Entry; MOST],
    len: usize,
    closed: u32,
    last_number: u64,
    /// How many threads sleep, or are about to.
    waiting: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    number: u64,
    /// The thread that asked for it, or 0 if the platform cannot tell.
    thread: u64,
    /// Starts and ends; the second is empty where there is only one.
    ranges: [(usize, usize); 2],
    is_closed: bool,
}

impl Entry {
    const NONE: Self = Self { number: 0, thread: 0, ranges: [(0, 0); 2], is_closed: false };

    fn overlaps(&self, others: &[(usize, usize)]) -> bool {
        let common = |a: &(usize, usize), b: &(usize, usize)| a.0.max(b.0) < a.1.min(b.1);
        self.ranges.iter().any(|range| others.iter().any(|other| common(range, other)))
    }
}

impl Table {
    fn entries(&self) -> &[Entry] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    /// Where the lock of this number is.
    fn place(&self, number: u64) -> usize {
        let place = self.entries().iter().position(|entry| entry.number == number);
        place.unwrap_or_else(|| unreachable!("a lock is in the table until it is released"))
    }

    fn enter(&mut self, thread: u64, ranges: [(usize, usize); 2]) -> Option<u64> {
        let free = self.entries.get_mut(self.len)?;
        self.last_number += 1;
        *free = Entry { number: self.last_number, thread, ranges, is_closed: false };
        self.len += 1;
        Some(self.last_number)
    }

    fn leave(&mut self, number: u64) {
        let place = self.place(number);
        self.entries.copy_within(place + 1..self.len, place);
        self.len -= 1;
    }

    /// Whether an earlier lock has an address of this one.
    fn is_held(&self, number: u64) -> bool {
        let (earlier, mine) = self.entries().split_at(self.place(number));
        let mine = mine.first().map_or([(0, 0); 2], |entry| entry.ranges);
        let is_awaited = |entry: &Entry| entry.overlaps(&mine) && keep(Step::WaitForRanges);
        !earlier.iter().any(is_awaited)
    }

    /// Whether the thread has a lock beside this one.
    fn has_another(&self, thread: u64, number: u64) -> bool {
        thread != 0
            && self.entries().iter().any(|entry| entry.thread == thread && entry.number != number)
    }

    /// The closed lock that has this address.
    fn closed(&self, addr: usize) -> Option<&Entry> {
        let at = [(addr, addr.saturating_add(1))];
        self.entries().iter().find(|entry| entry.is_closed && entry.overlaps(&at))
    }
}

fn ends(range: Range<usize>) -> (usize, usize) {
    (range.start, range.end)
}

/// The identity of the running thread, or 0 if the platform cannot tell.
fn this_thread<P: Platform>() -> u64 {
    P::with_thread(|thread| thread.id()).unwrap_or(0)
}

#[cfg(any(feature = "std", pervma_model))]
impl RangeLocks {
    const_unless_model! {
        /// No locks. Without the feature `std`, name a platform:
        /// [`with_platform`](Self::with_platform).
        ///
        /// ```
        /// static LOCKS: pervma::RangeLocks = pervma::RangeLocks::new();
        /// assert!(LOCKS.is_free(0..usize::MAX));
        /// ```
        #[must_use]
        pub fn new() -> Self {
            Self::with_platform()
        }
    }
}

impl<P: Platform> RangeLocks<P> {
    const_unless_model! {
        /// No locks, on the platform `P`.
        ///
        /// ```
        /// let locks = pervma::RangeLocks::<pervma::StdPlatform>::with_platform();
        /// assert!(locks.is_free(0..usize::MAX));
        /// ```
        #[must_use]
        pub fn with_platform() -> Self {
            let entries = [Entry::NONE; MOST];
            let table =
                Locked::new(Table { entries, len: 0, closed: 0, last_number: 0, waiting: 0 });
            let released = WaitWord::new(0);
            Self { table, len: AtomicUsize::new(0), closed: AtomicU32::new(0), released }
        }
    }

    /// Locks a range. Waits until all locks are released that have a common address and were asked
    /// for before, also those that wait themselves.
    ///
    /// A thread may have several locks, but one that has any never waits for another: two such
    /// threads could wait for each other.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.lock(0x1000..0x2000)?;
    /// assert!(locks.lock(0x2000..0x3000).is_ok());
    /// assert!(locks.lock(0x0..0x8000).is_err()); // it would wait for itself
    /// # Ok::<(), pervma::OwnRangeLock>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When it would have to wait and the thread has a lock.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn lock(&self, range: Range<usize>) -> Result<RangeLock<'_, P>, OwnRangeLock> {
        self.lock_pair([range, 0..0])
    }

    /// As [`lock`](Self::lock), for two ranges at once, which may have common addresses.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.lock_pair([0x1000..0x2000, 0x8000..0x9000])?;
    /// assert!(!locks.is_free(0x1000..0x1001) && !locks.is_free(0x8000..0x8001));
    /// # Ok::<(), pervma::OwnRangeLock>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Panics
    ///
    /// As for [`lock`](Self::lock).
    pub fn lock_pair(&self, ranges: [Range<usize>; 2]) -> Result<RangeLock<'_, P>, OwnRangeLock> {
        HandlerScope::<P>::assert_may_wait();
        let (ranges, thread) = (ranges.map(ends), this_thread::<P>());
        let mut entered = None;
        let number = self.wait_until(|table| {
            entered = entered.or_else(|| self.enter(table, thread, ranges));
            if let Some(number) = entered.filter(|number| table.is_held(*number)) {
                return Some(Ok(number));
            }
            let waits_for_own = table.has_another(thread, entered.unwrap_or(0));
            waits_for_own.then(|| {
                entered.into_iter().for_each(|number| self.leave(table, number));
                Err(OwnRangeLock(()))
            })
        })?;
        Ok(RangeLock { locks: self, number, thread: PhantomData })
    }

    /// Waits until `decide` has a result. It is asked again when a lock was released.
    fn wait_until<R>(&self, mut decide: impl FnMut(&mut Table) -> Option<R>) -> R {
        let mut table = self.table.write();
        loop {
            if let Some(result) = decide(&mut table) {
                return result;
            }
            table.waiting += 1;
            let seen = self.released.word().load(Relaxed("it changes under the table's lock"));
            drop(table);
            P::wait(&self.released, seen, None);
            table = self.table.write();
            table.waiting -= 1;
        }
    }

    fn enter(&self, table: &mut Table, thread: u64, ranges: [(usize, usize); 2]) -> Option<u64> {
        let number = table.enter(thread, ranges)?;
        self.len.store(table.len, Relaxed("the owner's first edit publishes it"));
        Some(number)
    }

    fn leave(&self, table: &mut Table, number: u64) {
        table.leave(number);
        self.len.store(table.len, Relaxed("the owner's last edit comes before"));
    }

    /// As [`lock`](Self::lock), if that needs no waiting.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.try_lock(0x1000..0x2000);
    /// assert!(lock.is_some() && locks.try_lock(0x0..0x8000).is_none());
    /// ```
    pub fn try_lock(&self, range: Range<usize>) -> Option<RangeLock<'_, P>> {
        self.try_lock_pair([range, 0..0])
    }

    /// As [`lock_pair`](Self::lock_pair), if that needs no waiting.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.try_lock_pair([0x1000..0x2000, 0x8000..0x9000]);
    /// assert!(lock.is_some() && locks.try_lock(0x8000..0x9000).is_none());
    /// ```
    pub fn try_lock_pair(&self, ranges: [Range<usize>; 2]) -> Option<RangeLock<'_, P>> {
        let mut table = self.table.write();
        let number = self.enter(&mut table, this_thread::<P>(), ranges.map(ends))?;
        if !table.is_held(number) {
            self.leave(&mut table, number);
            return None;
        }
        Some(RangeLock { locks: self, number, thread: PhantomData })
    }

    /// Whether no lock, held or waited for, has an address of `range`. In an edit this stays so,
    /// as far as changes of the map go: whoever locks now makes its first edit later.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.lock(0x1000..0x2000)?;
    /// assert!(!locks.is_free(0x0..0x8000) && locks.is_free(0x2000..0x8000));
    /// # Ok::<(), pervma::OwnRangeLock>(())
    /// ```
    pub fn is_free(&self, range: Range<usize>) -> bool {
        let (table, range) = (self.table.read(), [ends(range)]);
        !table.entries().iter().any(|entry| entry.overlaps(&range))
    }

    /// How many locks there are, held and waited for. In an edit none is missed whose owner has
    /// made an edit before.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.lock(0x1000..0x2000)?;
    /// assert!(locks.len() == 1 && !locks.is_empty());
    /// # Ok::<(), pervma::OwnRangeLock>(())
    /// ```
    #[inline]
    pub fn len(&self) -> usize {
        self.len.load(Relaxed("an edit publishes it, as it does all that its thread did"))
    }

    /// Whether there is no lock; see [`len`](Self::len).
    ///
    /// ```
    /// assert!(pervma::RangeLocks::new().is_empty());
    /// ```
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a lock that has `addr` is closed. A reader asks while it has read-locked its VMA;
    /// `false` holds until it releases that.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.lock(0x1000..0x2000)?;
    /// assert!(!locks.is_closed(0x1000));
    /// lock.close();
    /// assert!(locks.is_closed(0x1000));
    /// # Ok::<(), pervma::OwnRangeLock>(())
    /// ```
    #[inline]
    pub fn is_closed(&self, addr: usize) -> bool {
        self.any_closed() && self.table.read().closed(addr).is_some()
    }

    /// As [`is_closed`](Self::is_closed), without waiting: `None` if it cannot be told at this
    /// moment. It may be called in a signal handler.
    ///
    /// ```
    /// assert_eq!(pervma::RangeLocks::new().try_is_closed(0x1000), Some(false));
    /// ```
    #[inline]
    pub fn try_is_closed(&self, addr: usize) -> Option<bool> {
        if !self.any_closed() {
            return Some(false);
        }
        Some(self.table.try_read()?.closed(addr).is_some())
    }

    /// Whether the thread has a lock, held or waited for; `None` if it cannot be told at this
    /// moment. It may be called in a signal handler.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.lock(0x1000..0x2000)?;
    /// assert_eq!(locks.try_has_own(), Some(true));
    /// # Ok::<(), pervma::OwnRangeLock>(())
    /// ```
    pub fn try_has_own(&self) -> Option<bool> {
        Some(self.table.try_read()?.has_another(this_thread::<P>(), 0))
    }

    #[inline(always)]
    fn any_closed(&self) -> bool {
        self.closed.load(RANGE_CLOSED) != 0
    }

    /// Waits until no lock that has `addr` is closed. The thread holds no read lock meanwhile: that
    /// is what an owner may wait for.
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// locks.wait_until_open(0x1000)?;
    /// # Ok::<(), pervma::OwnRangeLock>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When it would wait and the closed lock is the thread's own.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`].
    pub fn wait_until_open(&self, addr: usize) -> Result<(), OwnRangeLock> {
        HandlerScope::<P>::assert_may_wait();
        let thread = this_thread::<P>();
        self.wait_until(|table| match table.closed(addr) {
            None => Some(Ok(())),
            Some(_) => table.has_another(thread, 0).then_some(Err(OwnRangeLock(()))),
        })
    }
}

#[cfg(any(feature = "std", pervma_model))]
impl Default for RangeLocks {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> fmt::Debug for RangeLocks<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeLocks").finish_non_exhaustive()
    }
}

/// A lock of one or two ranges, from [`RangeLocks::lock`]; released when it is dropped. It belongs
/// to the thread that asked for it.
///
/// ```
/// let locks = pervma::RangeLocks::new();
/// let lock = locks.lock(0x1000..0x2000)?;
/// drop(lock);
/// assert!(locks.is_free(0x1000..0x2000));
/// # Ok::<(), pervma::OwnRangeLock>(())
/// ```
#[must_use = "the lock is released when it is dropped"]
pub struct RangeLock<'l, P: Platform = DefaultPlatform> {
    locks: &'l RangeLocks<P>,
    number: u64,
    thread: PhantomData<*const ()>,
}

impl<P: Platform> RangeLock<'_, P> {
    /// Lets readers know that they are to keep out of the ranges, until the lock is released. Those
    /// that were there before have gone when the VMAs have been write-locked once; see
    /// [`RangeLocks`].
    ///
    /// ```
    /// let locks = pervma::RangeLocks::new();
    /// let lock = locks.lock(0x1000..0x2000)?;
    /// lock.close();
    /// assert!(locks.is_closed(0x1000));
    /// # Ok::<(), pervma::OwnRangeLock>(())
    /// ```
    pub fn close(&self) {
        let mut table = self.locks.table.write();
        let place = table.place(self.number);
        let Some(entry) = table.entries.get_mut(place).filter(|entry| !entry.is_closed) else {
            return;
        };
        entry.is_closed = true;
        if keep(Step::CountClosed) {
            table.closed += 1;
            let closed = &self.locks.closed;
            closed.store(table.closed, Relaxed("the write locks of the VMAs publish it"));
        }
    }
}

impl<P: Platform> Drop for RangeLock<'_, P> {
    fn drop(&mut self) {
        let locks = self.locks;
        let mut table = locks.table.write();
        let place = table.place(self.number);
        if table.entries().get(place).is_some_and(|entry| entry.is_closed)
            && keep(Step::CountClosed)
        {
            table.closed -= 1;
            locks.closed.store(table.closed, RANGE_REOPENED);
        }
        locks.leave(&mut table, self.number);
        let awaited = table.waiting != 0;
        if awaited {
            locks.released.word().fetch_add(1, Relaxed("it changes under the table's lock"));
        }
        drop(table);
        if awaited && keep(Step::WakeForRanges) {
            P::wake_all(&locks.released);
        }
    }
}

impl<P: Platform> fmt::Debug for RangeLock<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeLock").field("number", &self.number).finish_non_exhaustive()
    }
}

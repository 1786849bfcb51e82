//! How a call runs: beside calls on other addresses, and with the backing asked while no lock of
//! the space is held.
//!
//! A call changes the map in one edit, in which it is the call that Linux makes, from its first
//! check to its last count. So calls have an order, that of these edits, and each sees what those
//! before it have left. What the backing has to do for it is done before, outside of edits:
//!
//! 1. The call locks its addresses ([`RangeLocks`](pervma::RangeLocks)), and waits for the calls
//!    that have them.
//! 2. In a first edit it finds out what will have to be asked of the backing ([`Plan`]). If that is
//!    nothing, this is the one edit, and the call is over.
//! 3. Faults are kept out of these addresses, and those that are there have ended.
//! 4. The backing works. It may refuse before it begins, and then nothing has happened.
//! 5. In a second edit the call is made. Nothing that it depends on has changed since the first:
//!    - What its addresses have is changed by nobody else. VMAs may have become longer beyond them,
//!      since neighbours merge, or have got an `anon_vma` for pages beyond them.
//!    - Limits are kept away from: what a call may add is promised to it ([`Promise`]), and who
//!      comes near a limit, with all that is promised, locks all addresses, and so is alone.
//!    - The configuration is the one of the first edit.
//! 6. Pages that are to be present are asked for, and the addresses are unlocked.
//!
//! A call that chooses its address waits where another call has what it would choose.
//!
//! Nobody waits for a range lock in an edit, with a lock of a VMA, or with a range lock, so nobody
//! waits for who waits for him.

use alloc::boxed::Box;
use core::ops::Range;

use pervma::{ChangeError, Platform, RangeLock};

use crate::abi::PAGE;
use crate::asked::Asked;
use crate::backing::Backing;
use crate::counts::in_pages;
use crate::errno::Errno;
use crate::flags::VmFlags;
use crate::mm::{Change, Core, Mm};
use crate::state::State;
use crate::trial::Snapshot;

/// All addresses.
pub(crate) const EVERYTHING: Range<usize> = 0..usize::MAX;

/// What calls lock that look at the end of the heap and set it: the last page, in which nothing can
/// be mapped.
pub(crate) const HEAP_END: Range<usize> = END - PAGE..END;

const END: usize = usize::MAX & !(PAGE - 1);

/// How many VMAs more there may be after a call, and while it runs, unless it is about several that
/// multiply.
const VMAS_OF_A_CALL: usize = 8;

/// What a call is about.
#[derive(Clone)]
pub(crate) struct Scope {
    /// The addresses whose mappings it changes, and whose pages it has the backing work on.
    pub(crate) ranges: [Range<usize>; 2],
    /// The most pages that are mapped, writable or locked after it and were not before.
    pub(crate) more: usize,
    /// Whether it may lock pages.
    pub(crate) locks: bool,
    /// Whether more follows that needs the addresses, after the map has changed.
    pub(crate) goes_on: bool,
    /// Whether it makes mappings, for which that is so if they are locked.
    pub(crate) maps: bool,
    /// Whether each mapping in the first range may become more of them.
    pub(crate) multiplies: bool,
}

impl Scope {
    pub(crate) fn new(range: Range<usize>) -> Self {
        Self {
            ranges: [range, 0..0],
            more: 0,
            locks: false,
            goes_on: false,
            maps: false,
            multiplies: false,
        }
    }
}

/// How a call finds out what the backing will have to do.
#[derive(Clone, Copy)]
pub(crate) enum Plan<'p, P: Platform> {
    /// Nothing, whatever there is.
    Nothing,
    /// By a look at what is mapped.
    Look(&'p dyn Fn(&mut Change<'_, P>) -> Result<Asked, Errno>),
    /// By trying the call on a copy of what is mapped at its addresses.
    Trial,
}

/// What an unfinished call may still add.
struct Promise<'m, P: Platform> {
    /// `None` when it is settled.
    core: Option<&'m Core<P>>,
    pages: usize,
}

impl<P: Platform> Promise<'_, P> {
    /// The call adds in this edit what it adds.
    fn settle(&mut self, change: &mut Change<'_, P>) {
        if self.core.take().is_some() {
            let promised = &mut change.state.promised;
            promised.calls -= 1;
            promised.pages -= self.pages;
        }
    }
}

impl<P: Platform> Drop for Promise<'_, P> {
    /// The backing has refused, or panicked. If it has left a guard behind, which no method should,
    /// no edit can begin and the promise stays: calls near a limit take turns from then on.
    fn drop(&mut self) {
        if let Some(Ok(mut change)) = self.core.map(Core::change) {
            self.settle(&mut change);
        }
    }
}

/// An edit of addresses that no other call has.
pub(crate) struct Session<'m, P: Platform> {
    // Dropped first: who waits for the addresses waits for the edit, too.
    pub(crate) change: Change<'m, P>,
    lock: Option<RangeLock<'m, P>>,
}

impl<B: Backing, P: Platform> Mm<B, P> {
    /// Makes a call that asks nothing of the backing, in one edit.
    pub(crate) fn change<R>(
        &self,
        scope: &Scope,
        call: impl Fn(&mut Change<'_, P>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.call(scope, Plan::Nothing, call, |_| Ok(()))
    }

    /// Makes a call: `call` changes the map, and `then` has the backing make pages present, while
    /// the call still has its addresses. In strict mode the call is tried on a copy first, so that
    /// it fails before anything has changed; if something is refused later, the map is restored.
    pub(crate) fn call<R>(
        &self,
        scope: &Scope,
        plan: Plan<'_, P>,
        call: impl Fn(&mut Change<'_, P>) -> Result<R, Errno>,
        then: impl FnOnce(&R) -> Result<(), Errno>,
    ) -> Result<R, Errno> {
        loop {
            let Session { mut change, mut lock } = self.begin(scope)?;
            if change.state.config.strict {
                drop(change);
                drop(lock);
                return self.call_strictly(scope, call, then);
            }
            let asks_nothing = B::IDLE || matches!(plan, Plan::Nothing);
            let is_near = !asks_nothing && self.is_near_limit(&change, scope);
            if is_near {
                drop(change);
                drop(lock);
                lock = Some(self.lock_pair([EVERYTHING, 0..0])?);
                change = self.change_without_readers(&scope.ranges)?;
            }
            let asked = match plan {
                _ if asks_nothing => Asked::default(),
                Plan::Look(look) if !is_near => look(&mut change)?,
                _ => change.try_out(&change.snapshot(&scope.ranges)?, &call)?.0,
            };
            let are_locked = change.state.config.future.has(VmFlags::LOCKED);
            if asked.is_empty() && !scope.goes_on && !(scope.maps && are_locked) {
                return call(&mut change);
            }
            lock = lock.or_else(|| self.ranges.try_lock_pair(scope.ranges.clone()));
            if let Some(lock) = &lock {
                let result = self.finish(scope, lock, change, &asked, call)?;
                then(&result)?;
                return Ok(result);
            }
            // Others have come since this edit began, or there are very many.
            drop(change);
            drop(self.lock_pair(scope.ranges.clone())?);
        }
    }

    /// Whether calls are all or nothing.
    pub(crate) fn is_strict(&self) -> bool {
        self.core.shown.config().strict
    }

    fn call_strictly<R>(
        &self,
        scope: &Scope,
        call: impl Fn(&mut Change<'_, P>) -> Result<R, Errno>,
        then: impl FnOnce(&R) -> Result<(), Errno>,
    ) -> Result<R, Errno> {
        let lock = self.lock_range(EVERYTHING)?;
        let change = self.core.change()?;
        let before = change.snapshot(&[EVERYTHING])?;
        let (asked, result) = change.try_out(&before, &call)?;
        result?;
        let asked = if B::IDLE { Asked::default() } else { asked };
        let result = self.finish(scope, &lock, change, &asked, call);
        let result = result.and_then(|result| then(&result).map(|()| result));
        result.or_else(|error| {
            self.restore(before)?;
            Err(error)
        })
    }

    /// Restores the map, with all addresses locked.
    pub(crate) fn restore(&self, before: Snapshot) -> Result<(), Errno> {
        let grown = self.core.change()?.restore(before)?;
        grown.into_iter().for_each(|range| self.backing.unmap(range));
        Ok(())
    }

    /// Begins an edit, the only one of a call perhaps, in which no other call has its addresses and
    /// their VMAs have no readers.
    pub(crate) fn begin(&self, scope: &Scope) -> Result<Session<'_, P>, Errno> {
        let mut change =
            if B::IDLE { self.change_at(&scope.ranges)? } else { self.core.change()? };
        // In an edit this stays so: whoever comes now makes its own edits later.
        let is_free = self.ranges.is_empty()
            || self.are_free(&scope.ranges) && !self.is_near_limit(&change, scope);
        change.is_quiet = is_free && !B::IDLE && !change.have_readers(&wider(&scope.ranges));
        if is_free && (B::IDLE || change.is_quiet) {
            return Ok(Session { change, lock: None });
        }
        drop(change);
        let (lock, change, _) = self.lock(scope)?;
        Ok(Session { change, lock: Some(lock) })
    }

    /// Locks ranges, waiting for others. A thread that others may wait for does not wait: one with
    /// a guard, in an edit or with a range lock.
    pub(crate) fn lock_pair(&self, ranges: [Range<usize>; 2]) -> Result<RangeLock<'_, P>, Errno> {
        if self.core.space.may_wait() {
            Ok(self.ranges.lock_pair(ranges)?)
        } else {
            Err(Errno::EAGAIN)
        }
    }

    /// As [`lock_pair`](Self::lock_pair), for one range.
    pub(crate) fn lock_range(&self, range: Range<usize>) -> Result<RangeLock<'_, P>, Errno> {
        self.lock_pair([range, 0..0])
    }

    /// Whether no other call has these addresses; in an edit this stays so.
    pub(crate) fn are_free(&self, ranges: &[Range<usize>; 2]) -> bool {
        ranges.iter().all(|range| range.is_empty() || self.ranges.is_free(range.clone()))
    }

    /// Locks the addresses of a call, or if it comes near a limit all addresses, and begins an
    /// edit. Returns whether it is near.
    pub(crate) fn lock(
        &self,
        scope: &Scope,
    ) -> Result<(RangeLock<'_, P>, Change<'_, P>, bool), Errno> {
        let lock = self.lock_pair(scope.ranges.clone())?;
        let change = self.change_without_readers(&scope.ranges)?;
        if !self.is_near_limit(&change, scope) {
            return Ok((lock, change, false));
        }
        drop(change);
        drop(lock);
        let lock = self.lock_range(EVERYTHING)?;
        Ok((lock, self.change_without_readers(&scope.ranges)?, true))
    }

    /// Whether a limit may be exceeded by this call and what is promised to others.
    pub(crate) fn is_near_limit(&self, change: &Change<'_, P>, scope: &Scope) -> bool {
        let State { counts, config, promised, .. } = &*change.state;
        let more = scope.more.saturating_add(promised.pages);
        let exceeds =
            |count: usize, limit| limit != u64::MAX && count.saturating_add(more) > in_pages(limit);
        let limits = &config.limits;
        let data = if limits.data == 0 { limits.data_max } else { limits.data };
        // Of several it is not counted how many there may be.
        let [first, _] = scope.ranges.clone();
        if scope.multiplies && change.edit.overlapping(first).nth(1).is_some() {
            return true;
        }
        let locks = scope.locks || counts.locked != 0 || config.future.has(VmFlags::LOCKED);
        change.map_count() + (promised.calls + 1) * VMAS_OF_A_CALL > config.max_map_count
            || exceeds(counts.total, limits.address_space)
            || exceeds(counts.data, data)
            || locks && !config.may_lock && exceeds(counts.locked, limits.locked)
    }

    /// Has the backing do what is asked, and then makes the call. `change` is the first edit.
    pub(crate) fn finish<R>(
        &self,
        scope: &Scope,
        lock: &RangeLock<'_, P>,
        mut change: Change<'_, P>,
        asked: &Asked,
        call: impl Fn(&mut Change<'_, P>) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        if asked.is_empty() {
            return call(&mut change);
        }
        let mut promise = change.promise(scope.more.min(usize::MAX / 64));
        let settings = change.state.settings();
        lock.close();
        let have_readers = !change.is_quiet && change.have_readers(&scope.ranges);
        drop(change);
        if have_readers {
            self.core.wait_for_readers(&scope.ranges)?;
        }
        let answers = asked.ask(&self.backing)?;
        let mut change = self.change_without_readers(&scope.ranges)?;
        promise.settle(&mut change);
        change.state.go_by(&settings);
        change.answers = answers.into_iter();
        change.trial = cfg!(debug_assertions).then(Box::default);
        let result = call(&mut change);
        if let Some(needed) = change.trial.take() {
            assert!(needed.is_as(asked), "asked for {asked:?}, and it was {needed:?}");
        }
        result
    }

    /// Begins an edit in which nobody waits for readers of the VMAs in these ranges, and of those
    /// that touch them: such a VMA could not be changed. Only who has a range lock does that.
    pub(crate) fn change_at(&self, ranges: &[Range<usize>; 2]) -> Result<Change<'_, P>, Errno> {
        let wider = wider(ranges);
        loop {
            let change = self.core.change()?;
            if self.ranges.is_empty() {
                return Ok(change);
            }
            let excluded = |range: &&Range<usize>| change.edit.is_excluded((*range).clone());
            let Some(excluded) = wider.iter().find(excluded) else { return Ok(change) };
            drop(change);
            drop(self.core.space.edit_range(excluded.clone()).map_err(|_| Errno::EAGAIN)?);
        }
    }

    /// As [`change_at`](Self::change_at), by a thread with a range lock, and the VMAs have no
    /// readers: the edit need not wait for these while others wait for it. If readers come again
    /// and again, it does.
    pub(crate) fn change_without_readers(
        &self,
        ranges: &[Range<usize>; 2],
    ) -> Result<Change<'_, P>, Errno> {
        let tries = if B::IDLE { 0 } else { 3 };
        let wider = wider(ranges);
        for _ in 0..tries {
            let mut change = self.core.change()?;
            change.is_quiet = !change.have_readers(&wider);
            if change.is_quiet {
                return Ok(change);
            }
            drop(change);
            drop(self.change_at(ranges)?);
            self.core.wait_for_readers(&wider)?;
        }
        self.change_at(ranges)
    }
}

impl<P: Platform> Core<P> {
    /// Waits until the readers that were there have released the VMAs in these ranges, in no edit.
    /// The call has locked them.
    pub(crate) fn wait_for_readers(&self, ranges: &[Range<usize>]) -> Result<(), Errno> {
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            match self.space.exclude(range.start..range.end & !(PAGE - 1)) {
                Ok(exclusion) => exclusion.wait(),
                Err(ChangeError::NotMapped { .. }) => {}
                Err(_) => return Err(Errno::EAGAIN),
            }
        }
        Ok(())
    }
}

/// The range and a page on both sides, unless it is empty.
fn with_neighbours(range: Range<usize>) -> Option<Range<usize>> {
    let end = range.end.saturating_add(PAGE) & !(PAGE - 1);
    (!range.is_empty()).then(|| range.start.saturating_sub(PAGE) & !(PAGE - 1)..end)
}

/// Both ranges with the pages on both sides.
pub(crate) fn wider(ranges: &[Range<usize>; 2]) -> [Range<usize>; 2] {
    ranges.clone().map(|range| with_neighbours(range).unwrap_or_default())
}

impl<'m, P: Platform> Change<'m, P> {
    /// Promises so many pages to the call.
    fn promise(&mut self, pages: usize) -> Promise<'m, P> {
        let promised = &mut self.state.promised;
        promised.calls += 1;
        promised.pages += pages;
        Promise { core: Some(self.core), pages }
    }

    /// Write-locks the VMAs in these ranges that have no readers; whether others have some.
    pub(crate) fn have_readers(&mut self, ranges: &[Range<usize>]) -> bool {
        let mut any = false;
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            any |= !self.edit.try_write_range(range.clone());
        }
        any
    }

    /// Whether a VMA in this range or next to it has readers, or another thread waits for them.
    pub(crate) fn is_in_use_at(&mut self, range: &Range<usize>) -> bool {
        let wider = with_neighbours(range.clone());
        self.is_excluded_at(range) || wider.is_some_and(|range| self.have_readers(&[range]))
    }

    /// Whether another thread waits for readers of a VMA in this range or next to it.
    pub(crate) fn is_excluded_at(&self, range: &Range<usize>) -> bool {
        with_neighbours(range.clone()).is_some_and(|range| self.edit.is_excluded(range))
    }
}

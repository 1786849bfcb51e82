//! One change of a range, completely or not at all: what an edit and an exclusion have in common.
//!
//! A change begins with the VMAs that touch its range, excluded ([`exclude`]). What follows has an
//! order:
//!
//! 1. [`Change::split`]: user code splits payloads and makes new ones. The result is the list of
//!    [`Planned`] VMAs that there will be in place of the excluded ones.
//! 2. [`Plan::merge`]: user code merges planned VMAs with each other and with what touches them.
//! 3. [`Plan::prepare`]: slots and tree nodes for the planned VMAs that need new ones.
//! 4. [`Plan::commit`]: nothing fails any more.
//!
//! Up to step 2 the map is as it was, and dropping the change, by an error or a panic, leaves it
//! so; step 3 cleans up when it fails.
//!
//! A VMA's start is the name of its slot in the tree, so it never changes: a planned VMA that
//! starts where an excluded one did takes over its slot, and with it the VMA's identity; the other
//! planned VMAs get new slots, and the other excluded VMAs are detached.

use alloc::vec::Vec;
use core::mem::needs_drop;
use core::ops::Range;
use core::ptr;

use smallvec::SmallVec;

use crate::error::{ChangeError, InsertError, OutOfMemory};
use crate::map::{Map, MapWrite, Vmas, WriteCursor};
use crate::mm::EditSection;
use crate::payload::SplitMerge;
use crate::platform::Platform;
use crate::range::{EVERYTHING, Span};
use crate::removed::RemovedVmas;
use crate::slots::{Attached, Entry, Excluded, FreeSlot, Reserved};

/// The range of a change, and its conditions.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    /// The range that is changed.
    pub(crate) span: Span,
    /// How much of it must be mapped.
    pub(crate) mapped: Mapped,
    /// Another range that must be free.
    pub(crate) target: Option<Span>,
}

/// How much of a range must be mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapped {
    Nothing,
    Anything,
    Something,
    Everything,
}

impl Request {
    pub(crate) fn new(span: Span, mapped: Mapped) -> Self {
        Self { span, mapped, target: None }
    }

    /// The request to move everything in `span` to `target`.
    pub(crate) fn relocation(span: Span, target: Span) -> Self {
        Self { span, mapped: Mapped::Something, target: Some(target) }
    }

    /// The request to remove VMAs wherever they are.
    pub(crate) fn removal_anywhere() -> Self {
        Self::new(EVERYTHING, Mapped::Something)
    }

    fn out_of_memory(&self) -> ChangeError {
        ChangeError::OutOfMemory { range: self.span.range() }
    }

    /// Whether all that was mapped stays mapped, and nothing else comes: linking and unlinking hand
    /// everything on then, so no gap has to be updated.
    fn keeps_gaps(&self) -> bool {
        self.mapped == Mapped::Everything
    }
}

/// Where the parts of a range go that a change excludes.
pub(crate) trait Placement<T> {
    /// Whether all of them go out of the map, whatever they are.
    const NOWHERE: bool = false;

    /// Where a part goes, and with what payload, if it stays.
    fn place(&mut self, part: Span, payload: &T) -> Option<(Span, T)>;
}

impl<T, F: FnMut(Span, &T) -> Option<(Span, T)>> Placement<T> for F {
    fn place(&mut self, part: Span, payload: &T) -> Option<(Span, T)> {
        self(part, payload)
    }
}

/// All parts go out of the map.
pub(crate) struct Nowhere;

impl<T> Placement<T> for Nowhere {
    const NOWHERE: bool = true;

    fn place(&mut self, _: Span, _: &T) -> Option<(Span, T)> {
        None
    }
}

/// Why the VMAs of a range were not excluded.
pub(crate) enum Refusal<'s, 'm, T> {
    /// An error that waiting does not mend.
    Error(ChangeError),
    /// Another thread's exclusion has this one.
    Excluded(Entry<'s, 'm, T>),
}

/// The VMAs that touch a range, excluded.
pub(crate) struct ExcludedVmas<'s, T, P: Platform> {
    map: &'s Map<T, P>,
    list: Excluded<'s, T, P>,
}

impl<'s, T, P: Platform> ExcludedVmas<'s, T, P> {
    /// The VMAs, whole, in order of address. Readers may still have them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Attached<'s, '_, T>> {
        self.list.iter()
    }

    /// Waits until the readers of all of them have released them; `false` if the deadline came
    /// first.
    #[inline]
    pub(crate) fn wait_drained(&self, deadline: Option<P::Deadline>) -> bool {
        self.list.wait_drained(deadline)
    }

    /// Whether the readers of all of them have released them.
    pub(crate) fn is_drained(&self) -> bool {
        self.list.is_drained()
    }

    /// Checks that they have no holes between them in `span`.
    pub(crate) fn check_whole(&self, span: Span) -> Result<(), ChangeError> {
        let mut mapped_to = span.start;
        let mut spans = self.iter().map(|vma| vma.span());
        let hole = spans.find_map(|at| {
            let hole = (mapped_to < at.start).then_some(mapped_to..at.start);
            mapped_to = at.end;
            hole
        });
        match hole.or((mapped_to < span.end).then_some(mapped_to..span.end)) {
            Some(range) => Err(ChangeError::NotMapped { range }),
            None => Ok(()),
        }
    }

    /// A VMA or reservation that another thread has added to `span` since they were excluded.
    pub(crate) fn first_newcomer(&self, vmas: &Vmas<'_, T, P>, span: Span) -> Option<Span> {
        // The excluded ones are all still there, so the first that is not on the list is new.
        let own = self.iter().map(|vma| Some(vma.span())).chain(core::iter::repeat(None));
        let there = vmas.entries(span).map(|entry| entry.span());
        there.zip(own).find(|&(at, own)| own != Some(at)).map(|(at, _)| at)
    }

    /// Checks that nothing was mapped or reserved in a hole of `span` since.
    pub(crate) fn check_no_newcomer(
        &self,
        vmas: &Vmas<'_, T, P>,
        span: Span,
    ) -> Result<(), ChangeError> {
        match self.first_newcomer(vmas, span) {
            Some(at) => Err(ChangeError::Overlap { existing: at.range() }),
            None => Ok(()),
        }
    }

    /// For the mutant without a list of its own, which takes all VMAs in the range.
    #[cfg(pervma_model)]
    pub(crate) fn take_over(&mut self, vmas: &Vmas<'s, T, P>, span: Span) {
        self.list.take_over(vmas.entries(span));
    }
}

impl<T, P: Platform> Vmas<'_, T, P> {
    /// Checks that nothing is in the way of a relocation: neither the range that moves itself, nor
    /// what stands where it moves to.
    pub(crate) fn check_target(&self, request: &Request) -> Result<(), ChangeError> {
        let Some(target) = request.target else { return Ok(()) };
        let mut taken = self.entries(target).map(|entry| entry.span());
        let itself = target.overlap(request.span).map(|_| request.span);
        match itself.or_else(|| taken.next()) {
            Some(existing) => Err(ChangeError::Overlap { existing: existing.range() }),
            None => Ok(()),
        }
    }

    /// Why nothing could be mapped in `span`, where something is.
    #[cold]
    fn taken(&self, span: Span) -> ChangeError {
        match self.entries(span).next() {
            None => ChangeError::OutOfMemory { range: span.range() },
            Some(entry) if entry.is_excluded() => {
                ChangeError::Excluded { vma: entry.span().range() }
            }
            Some(entry) => ChangeError::Overlap { existing: entry.span().range() },
        }
    }
}

impl<'s, T, P: Platform> MapWrite<'s, T, P> {
    /// Maps `span`, if nothing is there.
    pub(crate) fn insert(&self, span: Span, payload: T) -> Result<(), (ChangeError, T)> {
        match self.link_free(span) {
            Ok(slot) => {
                slot.attach(self.section(), span, payload);
                self.section().count_vmas(0, 1);
                Ok(())
            }
            Err(error) => Err((error, payload)),
        }
    }

    /// Maps each of `vmas` if nothing is there, one after the other, up to the first that cannot.
    pub(crate) fn insert_all(
        &self,
        vmas: impl IntoIterator<Item = (Range<usize>, T)>,
    ) -> Result<(), InsertError<T>> {
        let (mut cursor, mut run) = (self.cursor(), None);
        for (range, payload) in vmas {
            let span = self.map().span(range.clone()).map_err(ChangeError::from);
            let linked = span.and_then(|span| match cursor.link_in_run(&mut run, span) {
                Ok(Some(slot)) => Ok((span, slot)),
                Ok(None) => Err(self.taken(span)),
                Err(OutOfMemory) => Err(ChangeError::OutOfMemory { range: span.range() }),
            });
            match linked {
                Ok((span, slot)) => slot.attach(self.section(), span, payload),
                Err(kind) => return Err(InsertError { kind, range, payload }),
            }
            self.section().count_vmas(0, 1);
        }
        Ok(())
    }

    /// Reserves `span`, if nothing is there.
    pub(crate) fn reserve(&self, span: Span) -> Result<Reserved<'s, T>, ChangeError> {
        Ok(self.link_free(span)?.reserve(self.section(), span))
    }

    /// A slot for a free range, to be attached at once.
    #[inline]
    fn link_free(&self, span: Span) -> Result<FreeSlot<'s, T>, ChangeError> {
        let mut cursor = self.cursor();
        if !cursor.seek_free(span) {
            return Err(self.taken(span));
        }
        cursor
            .link_sought(span)
            .map_err(|OutOfMemory| ChangeError::OutOfMemory { range: span.range() })
    }

    /// Removes the VMA at `span`, waiting for its readers, if there is exactly one and no other
    /// thread excludes it.
    #[inline]
    pub(crate) fn take_whole(&self, span: Span) -> Option<T> {
        self.cursor().take_whole(span)
    }

    /// Write-locks all VMAs that touch `span`, waiting for their readers.
    pub(crate) fn start_write_all(&self, span: Span) {
        let mut all = Excluded::new(self.map().slab().slots(), false);
        let mut vmas = self.entries(span).filter_map(Entry::vma);
        all.push_all(self.section(), |pushed| {
            vmas.all(|vma| pushed.push(&vma));
        });
        all.start_write(self.section());
    }
}

/// Excludes all VMAs that touch the range, or none; waits for no reader.
#[inline]
pub(crate) fn exclude<'s, 'm, T, P: Platform>(
    cursor: &mut WriteCursor<'s, 'm, T, P>,
    request: &Request,
    outlives_edit: bool,
) -> Result<ExcludedVmas<'s, T, P>, Refusal<'s, 'm, T>> {
    let refuse = |error| Err(Refusal::Error(error));
    let (span, section) = (request.span, cursor.section());
    let mut list = Excluded::new(cursor.slots(), outlives_edit);
    let (mut is_empty, mut mapped_to, mut hole) = (true, span.start, None);
    let (mut reserved, mut excluded) = (None, None);
    list.push_all(section, |pushed| {
        cursor.visit(span, |entry| {
            let at = entry.span();
            if mapped_to < at.start && hole.is_none() {
                hole = Some(mapped_to..at.start);
            }
            (is_empty, mapped_to) = (false, at.end);
            if request.mapped == Mapped::Nothing {
                return false;
            }
            if entry.is_excluded() {
                excluded.get_or_insert(entry);
            } else if let Some(vma) = entry.vma() {
                pushed.push(&vma);
            } else if reserved.is_none() {
                reserved = Some(at.range());
            }
            at.end < span.end
        });
    });
    if mapped_to < span.end && hole.is_none() {
        hole = Some(mapped_to..span.end);
    }
    // Dropped with an error, the list admits readers again.
    match (request.mapped, hole) {
        (Mapped::Nothing, _) if !is_empty => return refuse(cursor.vmas().taken(span)),
        (Mapped::Something, _) if is_empty => {
            return refuse(ChangeError::NotMapped { range: span.range() });
        }
        (Mapped::Everything, Some(range)) => return refuse(ChangeError::NotMapped { range }),
        _ => {}
    }
    if let Some(range) = reserved {
        return refuse(ChangeError::Reserved { range });
    }
    if let Some(entry) = excluded {
        return Err(Refusal::Excluded(entry));
    }
    if request.target.is_some() {
        cursor.vmas().check_target(request).map_err(Refusal::Error)?;
    }
    Ok(ExcludedVmas { map: cursor.map(), list })
}

/// Excludes all VMAs that `keep` does not want, or none; waits for no reader.
pub(crate) fn exclude_unwanted<'s, 'm, T, P: Platform>(
    edit: &'m MapWrite<'s, T, P>,
    outlives_edit: bool,
    mut keep: impl FnMut(Range<usize>, &T) -> bool,
) -> Result<ExcludedVmas<'s, T, P>, Refusal<'s, 'm, T>> {
    let map = edit.map();
    let mut list = Excluded::new(map.slab().slots(), outlives_edit);
    let mut taken = None;
    list.push_all(edit.section(), |pushed| {
        taken = edit.entries(EVERYTHING).filter_map(Entry::vma).find_map(|vma| {
            let at = vma.span();
            let unwanted = !keep(at.range(), vma.payload());
            (unwanted && !pushed.push(&vma)).then_some(at.start)
        });
    });
    match taken.and_then(|start| edit.holding(start)) {
        Some(entry) => Err(Refusal::Excluded(entry)),
        None => Ok(ExcludedVmas { map, list }),
    }
}

/// A change that has not happened yet. Dropping it changes nothing.
pub(crate) struct Change<'s, 'l, T, P: Platform, R> {
    // Dropped first: its payloads may be those of the VMAs.
    plan: Plan<'s, 'l, T>,
    vmas: ExcludedVmas<'s, T, P>,
    /// How payloads are split and merged.
    rules: R,
}

/// What becomes of the VMAs beside one that is put somewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Neighbours {
    Stay,
    /// They are merged with it as far as the rules allow.
    Merge,
}

/// The planned result of a change.
struct Plan<'s, 'l, T> {
    request: Request,
    /// The VMAs after the change, in order of address.
    planned: SmallVec<[Planned<'s, T>; 3]>,
    /// The payloads of the parts in the range of the first and the last VMA, where these are split.
    parts: [Option<T>; 2],
    /// The previous contents of the range.
    removed: RemovedVmas<T>,
    /// Payloads that were split or merged away. Their owner drops them when the edit has ended.
    deferred_drops: &'l mut Vec<T>,
    /// How many payloads of excluded VMAs will be dropped after the edit.
    more_drops: usize,
}

/// A planned VMA or reservation.
struct Planned<'s, T> {
    span: Span,
    /// `None` until it is known, and after the slot was filled.
    payload: Option<T>,
    /// Whether it is new, and so to be merged with its neighbours.
    changed: bool,
    place: Place,
    /// The slot, unless it takes one over.
    slot: Option<FreeSlot<'s, T>>,
}

/// How a planned VMA relates to the excluded VMA with the same start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The planned VMA takes over the slot: it is the same VMA.
    TakesOver,
    /// The planned VMA gets a slot of its own: it is another VMA.
    Exchanges,
    /// No excluded VMA has this start.
    New,
}

impl<T> Planned<'_, T> {
    fn new(span: Span, payload: Option<T>, changed: bool, place: Place) -> Self {
        Self { span, payload, changed, place, slot: None }
    }

    /// The payload, or the `given` one that it will have.
    fn payload<'a>(&'a self, given: Option<&'a T>) -> Option<&'a T> {
        self.payload.as_ref().or(given)
    }

    /// The payload of this VMA and that of `next` as one, if they touch and one is new.
    fn merge(&self, next: &Self, rules: &mut impl SplitMerge<T>, given: Option<&T>) -> Option<T> {
        if self.span.end != next.span.start || !(self.changed || next.changed) {
            return None;
        }
        rules.merge(self.payload(given)?, self.span.range(), next.payload(given)?)
    }
}

impl<'s, 'l, T, P: Platform, R: SplitMerge<T>> Change<'s, 'l, T, P, R> {
    /// A change of `vmas` with nothing planned.
    #[inline]
    pub(crate) fn new(
        vmas: ExcludedVmas<'s, T, P>,
        request: Request,
        rules: R,
        deferred_drops: &'l mut Vec<T>,
    ) -> Self {
        let plan = Plan {
            request,
            planned: SmallVec::new(),
            parts: [None, None],
            removed: RemovedVmas::empty(),
            deferred_drops,
            more_drops: 0,
        };
        Self { plan, vmas, rules }
    }

    /// The VMAs that it is about.
    pub(crate) fn vmas(&self) -> &ExcludedVmas<'s, T, P> {
        &self.vmas
    }

    /// For the mutant without a list of its own, which takes all VMAs in the range.
    #[cfg(pervma_model)]
    pub(crate) fn take_over(&mut self, vmas: &Vmas<'s, T, P>) {
        self.vmas.take_over(vmas, self.plan.request.span);
    }

    /// Splits the excluded VMAs at the ends of the range, and plans where the parts go.
    #[inline]
    pub(crate) fn split<L: Placement<T>>(&mut self, placement: &mut L) -> Result<(), ChangeError> {
        let Self { plan, vmas, rules } = self;
        let span = plan.request.span;
        let before = vmas.list.first().is_some_and(|vma| vma.span().start < span.start);
        let behind = vmas.list.last().is_some_and(|vma| span.end < vma.span().end);
        let staying = if L::NOWHERE { 0 } else { vmas.list.len() };
        let planned = staying + usize::from(before) + usize::from(behind);
        if plan.removed.try_reserve(vmas.list.len()).is_err()
            || (planned > plan.planned.inline_size() && plan.planned.try_reserve(planned).is_err())
        {
            return Err(plan.request.out_of_memory());
        }
        let mut split = |vma: Attached<'_, '_, T>| {
            let at = vma.span();
            let Some(part) = span.overlap(at) else { return Ok(()) };
            if part == at {
                let placed = placement.place(part, vma.payload());
                plan.push_placed(placed, at, rules)
            } else {
                plan.split_one(&vma, part, rules, placement)
            }
        };
        if L::NOWHERE {
            // Of all others nothing stays.
            vmas.list.first().map_or(Ok(()), &mut split)?;
            vmas.list.last().filter(|_| vmas.list.len() > 1).map_or(Ok(()), &mut split)?;
        } else {
            for vma in vmas.list.iter() {
                split(vma)?;
            }
        }
        // Only a relocation places parts elsewhere.
        if plan.request.target.is_some() {
            plan.planned.sort_unstable_by_key(|planned| planned.span.start);
        }
        Ok(())
    }

    /// Merges what is planned, and puts it in the place of the excluded VMAs.
    #[inline]
    pub(crate) fn finish(
        &mut self,
        cursor: &mut WriteCursor<'s, '_, T, P>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        self.check_space(cursor);
        self.plan.merge(cursor, &mut self.vmas.list, &mut self.rules, None)?;
        self.plan.prepare(cursor)?;
        Ok(self.plan.commit(cursor, &mut self.vmas.list).0)
    }

    /// Puts one VMA with `payload` over the whole range, and what is planned beside it.
    pub(crate) fn finish_replacing(
        &mut self,
        cursor: &mut WriteCursor<'s, '_, T, P>,
        payload: T,
        neighbours: Neighbours,
    ) -> Result<RemovedVmas<T>, (ChangeError, T)> {
        self.check_space(cursor);
        let Self { plan, vmas, rules } = self;
        let merges = neighbours == Neighbours::Merge;
        let prepared = plan.add(vmas, merges).and_then(|()| {
            if merges {
                plan.more_drops += 1; // the payload itself
                plan.merge(cursor, &mut vmas.list, rules, Some(&payload))?;
            }
            plan.prepare(cursor)
        });
        match prepared {
            Ok(()) => {
                plan.fill(payload);
                Ok(plan.commit(cursor, &mut vmas.list).0)
            }
            Err(error) => Err((error, payload)),
        }
    }

    /// Puts a reservation over the whole range, and what is planned beside it.
    pub(crate) fn finish_reserving(
        &mut self,
        cursor: &mut WriteCursor<'s, '_, T, P>,
    ) -> Result<(RemovedVmas<T>, Option<Reserved<'s, T>>), ChangeError> {
        self.check_space(cursor);
        self.plan.add(&self.vmas, false)?;
        self.plan.prepare(cursor)?;
        Ok(self.plan.commit(cursor, &mut self.vmas.list))
    }

    /// The slots of one space are not linked into the tree of another.
    #[inline]
    fn check_space(&self, cursor: &WriteCursor<'s, '_, T, P>) {
        assert!(ptr::eq(self.vmas.map, cursor.map()), "the edit is of another space");
    }
}

impl<'s, T> Plan<'s, '_, T> {
    #[inline]
    fn split_one(
        &mut self,
        vma: &Attached<'_, '_, T>,
        part: Span,
        rules: &mut impl SplitMerge<T>,
        placement: &mut impl Placement<T>,
    ) -> Result<(), ChangeError> {
        let at = vma.span();
        let undivided = || ChangeError::PartlyCovered { vma: at.range() };
        self.more_drops += 1;
        // The part's payload is the plan's at every step, since user code may panic.
        let which = usize::from(self.parts[0].is_some());
        if at.start < part.start {
            let parts = rules.split(vma.payload(), at.range(), part.start);
            let (left, right) = parts.ok_or_else(undivided)?;
            self.parts[which] = Some(right);
            self.push(Some((Span { start: at.start, end: part.start }, left)), false, at);
        }
        if part.end < at.end {
            let whole = self.parts[which].as_ref().unwrap_or(vma.payload());
            let parts = rules.split(whole, part.start..at.end, part.end);
            let (left, right) = parts.ok_or_else(undivided)?;
            let whole = self.parts[which].replace(left);
            self.push(Some((Span { start: part.end, end: at.end }, right)), false, at);
            defer_drops(self.deferred_drops, &self.request, whole)?;
        }
        let placed = self.parts[which].as_ref().and_then(|payload| placement.place(part, payload));
        self.push_placed(placed, at, rules)?;
        if let [.., right, placed] = &mut self.planned[..]
            && placed.span.start < right.span.start
        {
            core::mem::swap(right, placed); // most parts stay where they were
        }
        Ok(())
    }

    /// Plans a VMA made of the excluded one at `vma`; [`Change::split`] has reserved capacity.
    #[inline(always)]
    fn push(&mut self, planned: Option<(Span, T)>, changed: bool, vma: Span) {
        let Some((span, payload)) = planned else { return };
        let place = if span.start == vma.start { Place::TakesOver } else { Place::New };
        self.planned.push(Planned::new(span, Some(payload), changed, place));
    }

    /// Plans a VMA that the function of the change has made of a part of the excluded one at `vma`,
    /// unless its payload may not be mapped.
    #[inline(always)]
    fn push_placed(
        &mut self,
        placed: Option<(Span, T)>,
        vma: Span,
        rules: &mut impl SplitMerge<T>,
    ) -> Result<(), ChangeError> {
        if placed.is_none() {
            return Ok(());
        }
        self.push(placed, true, vma);
        // Refused, it is dropped with the plan.
        let Some(Planned { span, payload: Some(payload), .. }) = self.planned.last() else {
            return Ok(());
        };
        let part = span.range();
        if rules.may_be_mapped(payload, part.clone()) {
            Ok(())
        } else {
            Err(ChangeError::GivenUp { part })
        }
    }

    /// Plans a VMA over the whole range: a reservation, unless it is [`fill`](Self::fill)ed when
    /// nothing fails any more, since until then the payload is still its owner's.
    fn add<P: Platform>(
        &mut self,
        vmas: &ExcludedVmas<'_, T, P>,
        merges: bool,
    ) -> Result<(), ChangeError> {
        let span = self.request.span;
        self.planned.try_reserve(1).map_err(|_| self.request.out_of_memory())?;
        let at = self.planned.partition_point(|planned| planned.span.start < span.start);
        let exchanges = vmas.iter().next().is_some_and(|vma| vma.span().start == span.start);
        let place = if exchanges { Place::Exchanges } else { Place::New };
        self.planned.insert(at, Planned::new(span, None, merges, place));
        Ok(())
    }

    /// Gives the VMA that was [`add`](Self::add)ed its payload, unless that was merged into another
    /// meanwhile.
    fn fill(&mut self, payload: T) {
        match self.planned.iter_mut().find(|planned| planned.payload.is_none()) {
            Some(planned) => planned.payload = Some(payload),
            None if needs_drop::<T>() => self.deferred_drops.push(payload), // by `prepare`
            None => {}
        }
    }

    /// Merges new VMAs with what touches them, from left to right. A VMA outside of the change
    /// takes part if it has no reader and no other thread excludes it: merging is optional, and
    /// nothing waits for readers of what is not in its range. `given` is the payload of the VMA
    /// that was [`add`](Self::add)ed, which has none yet.
    #[inline]
    fn merge<P: Platform>(
        &mut self,
        cursor: &mut WriteCursor<'s, '_, T, P>,
        list: &mut Excluded<'s, T, P>,
        rules: &mut impl SplitMerge<T>,
        given: Option<&T>,
    ) -> Result<(), ChangeError> {
        let planned = &self.planned[..];
        let Some(first) = planned.iter().position(|planned| planned.changed) else {
            return Ok(());
        };
        let last = planned.iter().rposition(|planned| planned.changed).unwrap_or(first);
        let start = planned[first].span.start;
        // What is left of a VMA that was split, or else a VMA outside; not one behind the other.
        let left = planned[..first].iter().position(|planned| planned.span.end == start);
        let end = planned[last].span.end;
        let no_right = planned.get(last + 1).is_none_or(|next| next.span.start != end);
        // Both are VMAs, so they stay where they are while user code runs.
        let before = if left.is_none() { start.checked_sub(1) } else { None };
        let before = before.and_then(|addr| neighbour(cursor, &self.request, addr));
        let behind = if no_right { neighbour(cursor, &self.request, end) } else { None };
        if let Some(vma) = before {
            self.merge_left(first, vma, cursor.section(), list, rules, given)?;
        }
        self.merge_planned(left.unwrap_or(first), rules, given)?;
        if let Some(vma) = behind {
            self.merge_right(end, vma, cursor.section(), list, rules, given)?;
        }
        Ok(())
    }

    #[inline]
    fn merge_left<P: Platform>(
        &mut self,
        index: usize,
        vma: Attached<'_, '_, T>,
        section: &EditSection<'_, P>,
        list: &mut Excluded<'s, T, P>,
        rules: &mut impl SplitMerge<T>,
        given: Option<&T>,
    ) -> Result<(), ChangeError> {
        let planned = &mut self.planned[index];
        let (at, Some(payload)) = (vma.span(), planned.payload(given)) else { return Ok(()) };
        let merged = rules.merge(vma.payload(), at.range(), payload);
        let Some(merged) = merged else { return Ok(()) };
        if list.take_in_idle(vma, section) {
            self.more_drops += 1;
            (planned.span.start, planned.place) = (at.start, Place::TakesOver);
            let old = planned.payload.replace(merged);
            defer_drops(self.deferred_drops, &self.request, old)
        } else {
            defer_drops(self.deferred_drops, &self.request, [merged])
        }
    }

    #[inline]
    fn merge_right<P: Platform>(
        &mut self,
        end: usize,
        vma: Attached<'_, '_, T>,
        section: &EditSection<'_, P>,
        list: &mut Excluded<'s, T, P>,
        rules: &mut impl SplitMerge<T>,
        given: Option<&T>,
    ) -> Result<(), ChangeError> {
        let Some(planned) = self.planned.iter_mut().find(|planned| planned.span.end == end) else {
            return Ok(());
        };
        let (at, Some(payload)) = (vma.span(), planned.payload(given)) else { return Ok(()) };
        let merged = rules.merge(payload, planned.span.range(), vma.payload());
        let Some(merged) = merged else { return Ok(()) };
        if list.take_in_idle(vma, section) {
            self.more_drops += 1;
            planned.span.end = at.end;
            let old = planned.payload.replace(merged);
            defer_drops(self.deferred_drops, &self.request, old)
        } else {
            defer_drops(self.deferred_drops, &self.request, [merged])
        }
    }

    /// Merges the planned VMAs from the `kept`th on.
    #[inline(always)]
    fn merge_planned(
        &mut self,
        mut kept: usize,
        rules: &mut impl SplitMerge<T>,
        given: Option<&T>,
    ) -> Result<(), ChangeError> {
        let Self { planned: all_planned, deferred_drops, request, .. } = self;
        let planned = &mut all_planned[..];
        for next in kept + 1..planned.len() {
            let Some(merged) = planned[kept].merge(&planned[next], rules, given) else {
                kept += 1;
                if kept < next {
                    planned.swap(kept, next);
                }
                continue;
            };
            let gone = planned[next].payload.take();
            let end = planned[next].span.end;
            let into = &mut planned[kept];
            let old = into.payload.replace(merged);
            (into.span.end, into.changed) = (end, true);
            defer_drops(deferred_drops, request, old.into_iter().chain(gone))?;
        }
        all_planned.truncate(kept + 1);
        Ok(())
    }

    /// Gets memory for everything, so that nothing can fail afterwards.
    #[inline]
    fn prepare<P: Platform>(
        &mut self,
        cursor: &mut WriteCursor<'s, '_, T, P>,
    ) -> Result<(), ChangeError> {
        if needs_drop::<T>() {
            self.deferred_drops
                .try_reserve(self.more_drops)
                .map_err(|_| self.request.out_of_memory())?;
        }
        // From right to left: the gap that is left goes to the last one, and stays there.
        for planned in self.planned.iter_mut().rev() {
            let slot = match planned.place {
                Place::TakesOver => continue,
                Place::Exchanges => cursor.alloc(),
                Place::New => cursor.link(planned.span),
            };
            match slot {
                Ok(slot) => planned.slot = Some(slot),
                Err(OutOfMemory) => {
                    self.unlink_all(cursor);
                    return Err(self.request.out_of_memory());
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn unlink_all<P: Platform>(&mut self, cursor: &mut WriteCursor<'s, '_, T, P>) {
        for planned in &mut self.planned {
            if let Some(slot) = planned.slot.take() {
                if planned.place == Place::New {
                    cursor.unlink(planned.span.start, false);
                }
                slot.give_back(cursor.slots(), cursor.section());
            }
        }
        // They were linked among VMAs that had not gone.
        for affected in [Some(self.request.span), self.request.target].into_iter().flatten() {
            cursor.update_gaps(affected);
        }
    }

    /// Puts the planned VMAs in the place of the excluded ones, once; gives out what stood in the
    /// range, and the reservation if there is one.
    #[inline(always)]
    fn commit<P: Platform>(
        &mut self,
        cursor: &mut WriteCursor<'s, '_, T, P>,
        list: &mut Excluded<'s, T, P>,
    ) -> (RemovedVmas<T>, Option<Reserved<'s, T>>) {
        let section = cursor.section();
        let (request, all_planned) = (&self.request, &mut self.planned[..]);
        let keeps_gaps = request.keeps_gaps();
        let (mut reserved, mut taken, mut put) = (None, 0, 0);
        // What does not become part of the result; `prepare` has reserved capacity for it.
        let mut defer_drop = |payload| {
            if needs_drop::<T>() {
                self.deferred_drops.push(payload);
            }
        };
        // From the last one on: what is the first of its leaf is in the parents of that too. Not
        // where what is unlinked stays mapped, as a part of what is before it.
        if !keeps_gaps {
            list.reverse();
            self.parts.reverse();
        }
        while let Some((at, payload, emptied)) = list.take_first(|| ()) {
            taken += 1;
            let removed = match request.span.overlap(at) {
                Some(part) if part == at => Some((part, payload)),
                Some(part) => {
                    defer_drop(payload);
                    self.parts.iter_mut().find_map(Option::take).map(|payload| (part, payload))
                }
                None => {
                    defer_drop(payload);
                    None
                }
            };
            if let Some((part, payload)) = removed {
                self.removed.push(part.range(), payload);
            }
            let Ok(found) =
                all_planned.binary_search_by_key(&at.start, |planned| planned.span.start)
            else {
                cursor.detach(at.start, keeps_gaps, emptied);
                continue;
            };
            let planned = &mut all_planned[found];
            match (&planned.slot, planned.payload.take()) {
                (None, Some(payload)) => {
                    put += 1;
                    emptied.fill(section, planned.span, payload);
                }
                (Some(slot), payload) => {
                    cursor.exchange(at.start, emptied, slot);
                    planned.payload = payload;
                }
                (None, None) => {}
            }
        }
        for planned in all_planned.iter_mut() {
            match (planned.slot.take(), planned.payload.take()) {
                (Some(slot), Some(payload)) => {
                    put += 1;
                    slot.attach(section, planned.span, payload);
                }
                (Some(slot), None) => reserved = Some(slot.reserve(section, planned.span)),
                (None, _) => {}
            }
        }
        if !keeps_gaps {
            self.removed.reverse();
        }
        section.count_vmas(taken, put);
        // Where nothing is planned, what was taken out has left its bytes to the gap before it.
        if !keeps_gaps && !all_planned.is_empty() {
            // Two ranges, since between the ends of a relocation there may be any number of VMAs.
            let mut affected = [Some(request.span), request.target];
            for affected in affected.iter_mut().flatten() {
                for Planned { span, .. } in all_planned.iter() {
                    if span.start <= affected.end && affected.start <= span.end {
                        affected.start = affected.start.min(span.start);
                        affected.end = affected.end.max(span.end);
                    }
                }
                cursor.update_gaps(*affected);
            }
        }
        (core::mem::take(&mut self.removed), reserved)
    }
}

/// Keeps payloads until the edit has ended.
#[inline]
fn defer_drops<T>(
    deferred_drops: &mut Vec<T>,
    request: &Request,
    payloads: impl IntoIterator<Item = T>,
) -> Result<(), ChangeError> {
    if needs_drop::<T>() {
        for payload in payloads {
            deferred_drops.try_reserve(1).map_err(|_| request.out_of_memory())?;
            deferred_drops.push(payload);
        }
    }
    Ok(())
}

/// The VMA at `addr`, if it has nothing to do with the change and is not excluded. In the range
/// itself there may be one that has come into a hole of an exclusion.
#[inline(always)]
fn neighbour<'s, 'm, T, P: Platform>(
    cursor: &mut WriteCursor<'s, 'm, T, P>,
    request: &Request,
    addr: usize,
) -> Option<Attached<'s, 'm, T>> {
    let entry = cursor.holding(addr)?;
    let apart = !entry.is_excluded() && entry.span().overlap(request.span).is_none();
    entry.vma().filter(|_| apart)
}

impl<T> Drop for Plan<'_, '_, T> {
    #[inline]
    fn drop(&mut self) {
        if !needs_drop::<T>() {
            return;
        }
        let planned = self.planned.iter_mut().filter_map(|planned| planned.payload.take());
        let parts = self.parts.iter_mut().filter_map(Option::take);
        for payload in planned.chain(parts) {
            // No destructor runs inside an edit, unless there is no memory to keep the payload.
            if self.deferred_drops.try_reserve(1).is_ok() {
                self.deferred_drops.push(payload);
            }
        }
    }
}

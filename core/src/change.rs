//! One change of a range, completely or not at all: what an edit and an exclusion have in common.
//!
//! A change begins with the VMAs that touch its range, excluded ([`exclude`]). What follows has an
//! order:
//!
//! 1. [`Change::cut`]: user code divides payloads and makes new ones. The result is a list of
//!    *pieces*, the VMAs that there will be in place of the excluded ones.
//! 2. [`Change::join`]: user code merges pieces with each other and with what touches them.
//! 3. [`Change::prepare`]: slots and tree nodes for the pieces that need new ones.
//! 4. [`Change::commit`]: nothing fails any more.
//!
//! Up to step 2 the map is as it was, and dropping the change and the list of excluded VMAs, by an
//! error or a panic, leaves it so; step 3 cleans up when it fails.
//!
//! A VMA's start is the name of its slot in the tree, so it never changes: a piece that starts
//! where an excluded VMA did takes over its slot; the other pieces get new ones, and the other VMAs
//! are detached.

use alloc::vec::Vec;
use core::mem::needs_drop;

use smallvec::SmallVec;

use crate::edit::{Removed, RemovedVmas};
use crate::error::ChangeError;
use crate::mm::WriteSection;
use crate::payload::Payload;
use crate::platform::Platform;
use crate::range::Span;
use crate::slots::{Attached, Entry, Excluded, FreeSlot, Reserved};
use crate::space::AddressSpace;
use crate::tree::Editor;

/// What a change is about.
#[derive(Clone, Copy)]
pub struct Request {
    /// The range that is changed.
    pub span: Span,
    /// How much of it must be mapped.
    pub mapped: Mapped,
    /// Another range that must be free.
    pub target: Option<Span>,
}

/// How much of a range must be mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    Anything,
    Something,
    Everything,
}

impl Request {
    pub fn new(span: Span, mapped: Mapped) -> Self {
        Self { span, mapped, target: None }
    }

    fn out_of_memory(&self) -> ChangeError {
        ChangeError::OutOfMemory { range: self.span.range() }
    }

    /// Whether all that was mapped stays mapped, and nothing else comes: linking and unlinking hand all
    /// room on then, so no gap needs to be settled.
    fn keeps_room(&self) -> bool {
        self.mapped == Mapped::Everything
    }
}

/// Why the VMAs of a range were not excluded.
pub enum Refusal<'m, T> {
    /// Nothing will help.
    Error(ChangeError),
    /// An exclusion of somebody else has this one.
    Excluded(Entry<'m, T>),
}

/// Keeps readers out of all VMAs that touch the range, or of none, and puts them on the empty `list`;
/// waits for nobody.
pub fn exclude<'s, 'm, T, P: Platform>(
    space: &'s AddressSpace<T, P>,
    tree: &mut Editor<'s, 'm, T, P>,
    request: &Request,
    list: &mut Excluded<'s, T, P>,
) -> Result<(), Refusal<'m, T>> {
    let refuse = |error| Err(Refusal::Error(error));
    let span = request.span;
    let (mut entries, mut mapped_to, mut hole) = (0_usize, span.start, None);
    let (mut first, mut reserved, mut excluded) = (None, None, None);
    tree.visit(span, |entry| {
        let at = entry.span();
        if mapped_to < at.start && hole.is_none() {
            hole = Some(mapped_to..at.start);
        }
        (entries, mapped_to) = (entries + 1, at.end);
        if excluded.is_none() && entry.is_excluded() {
            excluded = Some(entry);
        } else if let Some(vma) = entry.vma() {
            first.get_or_insert(vma);
        } else if reserved.is_none() {
            reserved = Some(at.range());
        }
        at.end < span.end
    });
    if mapped_to < span.end && hole.is_none() {
        hole = Some(mapped_to..span.end);
    }
    match (request.mapped, hole) {
        (Mapped::Something, _) if entries == 0 => {
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
    let section = tree.section();
    space.check_target(section, request).map_err(Refusal::Error)?;
    match first {
        Some(only) if entries == 1 => {
            list.push(only, section);
        }
        _ => {
            list.push_all(section, |push| {
                tree.visit(span, |entry| entry.vma().is_some_and(&mut *push))
            });
        }
    }
    Ok(())
}

/// A change that has not happened yet. Dropping it forgets it.
pub struct Change<'s, 'l, T, P: Platform> {
    space: &'s AddressSpace<T, P>,
    request: Request,
    /// What there will be, in order of address.
    pieces: SmallVec<[Piece<'s, T, P>; 3]>,
    /// Of the first and the last VMA, where they are cut, the payloads of the parts in the range.
    parts: [Option<T>; 2],
    /// What stood in the range.
    removed: RemovedVmas<T>,
    /// Payloads that were cut or merged away. Their owner drops them when the edit has ended.
    leftover: &'l mut Vec<T>,
    /// How many payloads of excluded VMAs will become leftovers.
    owed: usize,
}

/// A VMA to be.
struct Piece<'s, T, P: Platform> {
    span: Span,
    /// `None` until it is known, or after it was put in its place.
    payload: Option<T>,
    /// Whether it is new, and so to be joined with its neighbours.
    changed: bool,
    /// Whether it starts where an excluded VMA does, and takes over its slot.
    takes_over: bool,
    /// The slot of one that does not.
    home: Option<FreeSlot<'s, T, P>>,
}

impl<T, P: Platform> Piece<'_, T, P> {
    fn new(span: Span, payload: Option<T>, changed: bool, takes_over: bool) -> Self {
        Self { span, payload, changed, takes_over, home: None }
    }

    /// The payload of this piece and that of `next` as one, if they touch and one is new.
    fn merge(&self, next: &Self) -> Option<T>
    where
        T: Payload,
    {
        if self.span.end != next.span.start || !(self.changed || next.changed) {
            return None;
        }
        self.payload.as_ref()?.merge(self.span.len(), next.payload.as_ref()?)
    }
}

impl<'s, 'l, T: Payload, P: Platform> Change<'s, 'l, T, P> {
    /// A change with nothing in it.
    #[inline]
    pub fn new(space: &'s AddressSpace<T, P>, request: Request, leftover: &'l mut Vec<T>) -> Self {
        let (pieces, removed) = (SmallVec::new(), RemovedVmas::new());
        Self { space, request, pieces, parts: [None, None], removed, leftover, owed: 0 }
    }

    /// Cuts the excluded VMAs at the ends of the range. `place` says where a part of the range goes
    /// and with what payload, if it stays.
    #[inline]
    pub fn cut(
        &mut self,
        excluded: &Excluded<'_, T, P>,
        mut place: impl FnMut(Span, &T) -> Option<(Span, T)>,
    ) -> Result<(), ChangeError> {
        let request = self.request;
        let vmas = excluded.iter().count();
        self.removed.try_reserve_exact(vmas).map_err(|_| request.out_of_memory())?;
        for vma in excluded.iter() {
            let at = vma.span();
            let Some(part) = request.span.overlap(at) else { continue };
            if part == at {
                let placed = place(part, vma.payload());
                self.push(placed, true, at)?;
            } else {
                self.cut_one(&vma, part, &mut place)?;
            }
        }
        // A relocation places parts anywhere.
        if !self.pieces.is_sorted_by_key(|piece| piece.span.start) {
            self.pieces.sort_unstable_by_key(|piece| piece.span.start);
        }
        Ok(())
    }

    #[inline]
    fn cut_one(
        &mut self,
        vma: &Attached<'_, T>,
        part: Span,
        place: &mut impl FnMut(Span, &T) -> Option<(Span, T)>,
    ) -> Result<(), ChangeError> {
        let at = vma.span();
        let undivided = || ChangeError::PartlyCovered { vma: at.range() };
        self.owed += 1;
        // The part's payload is the change's at every step, since user code may panic.
        let which = usize::from(self.parts[0].is_some());
        if at.start < part.start {
            let (left, right) = vma.payload().split(part.start - at.start).ok_or_else(undivided)?;
            self.parts[which] = Some(right);
            self.push(Some((Span { start: at.start, end: part.start }, left)), false, at)?;
        }
        if part.end < at.end {
            let whole = self.parts[which].as_ref().unwrap_or(vma.payload());
            let (left, right) = whole.split(part.len()).ok_or_else(undivided)?;
            let whole = self.parts[which].replace(left);
            self.push(Some((Span { start: part.end, end: at.end }, right)), false, at)?;
            self.leave_over_all(whole)?;
        }
        let placed = self.parts[which].as_ref().and_then(|payload| place(part, payload));
        self.push(placed, true, at)?;
        if let [.., right, placed] = &mut self.pieces[..]
            && placed.span.start < right.span.start
        {
            core::mem::swap(right, placed); // most parts stay where they were
        }
        Ok(())
    }

    /// Adds a piece made of the excluded VMA at `vma`.
    #[inline(always)]
    fn push(
        &mut self,
        piece: Option<(Span, T)>,
        changed: bool,
        vma: Span,
    ) -> Result<(), ChangeError> {
        let Some((span, payload)) = piece else { return Ok(()) };
        if self.pieces.try_reserve(1).is_err() {
            return self.leave_over(payload).and(Err(self.request.out_of_memory()));
        }
        let takes_over = span.start == vma.start;
        self.pieces.push(Piece::new(span, Some(payload), changed, takes_over));
        Ok(())
    }

    /// Adds a piece over the whole range: a reservation, unless it is [`fill`](Self::fill)ed when
    /// nothing fails any more, since until then the payload is still its owner's.
    pub fn add(&mut self, excluded: &Excluded<'_, T, P>) -> Result<(), ChangeError> {
        let span = self.request.span;
        self.pieces.try_reserve(1).map_err(|_| self.request.out_of_memory())?;
        let at = self.pieces.partition_point(|piece| piece.span.start < span.start);
        let takes_over = excluded.iter().next().is_some_and(|vma| vma.span().start == span.start);
        self.pieces.insert(at, Piece::new(span, None, false, takes_over));
        Ok(())
    }

    /// Gives the piece that was [`add`](Self::add)ed its payload.
    pub fn fill(&mut self, payload: T) {
        let start = self.request.span.start;
        if let Some(piece) = self.pieces.iter_mut().find(|piece| piece.span.start == start) {
            piece.payload = Some(payload);
        }
    }

    /// Merges new pieces with what touches them, from left to right. A VMA outside of the change
    /// takes part if nobody else excludes it; an exclusion does not wait for its readers, and nobody
    /// does whose own code has just taken a guard.
    pub fn join(
        &mut self,
        tree: &mut Editor<'s, '_, T, P>,
        excluded: &mut Excluded<'_, T, P>,
    ) -> Result<(), ChangeError> {
        let pieces = &self.pieces[..];
        let Some(first) = pieces.iter().position(|piece| piece.changed) else { return Ok(()) };
        let last = pieces.iter().rposition(|piece| piece.changed).unwrap_or(first);
        let start = pieces[first].span.start;
        // What is left of a VMA that was cut, or else a VMA outside; not one behind the other.
        let left = pieces[..first].iter().position(|piece| piece.span.end == start);
        let end = pieces[last].span.end;
        let alone = pieces.get(last + 1).is_none_or(|next| next.span.start != end);
        // Both are VMAs, so they stay where they are while user code runs.
        let section = tree.section();
        let before = if left.is_none() { start.checked_sub(1) } else { None };
        let before = before.and_then(|addr| neighbour(tree, &self.request, addr));
        let behind = if alone { neighbour(tree, &self.request, end) } else { None };
        if let Some(vma) = before {
            self.join_left(first, vma, section, excluded)?;
        }
        self.join_inside(left.unwrap_or(first))?;
        if let Some(vma) = behind {
            self.join_right(end, vma, section, excluded)?;
        }
        Ok(())
    }

    fn join_left(
        &mut self,
        index: usize,
        vma: Attached<'_, T>,
        section: &WriteSection<'_, P>,
        excluded: &mut Excluded<'_, T, P>,
    ) -> Result<(), ChangeError> {
        let space = self.space;
        let piece = &mut self.pieces[index];
        let (at, Some(payload)) = (vma.span(), &piece.payload) else { return Ok(()) };
        let Some(merged) = vma.payload().merge(at.len(), payload) else { return Ok(()) };
        if !space.holds_guard() && excluded.join(vma, section) {
            self.owed += 1;
            (piece.span.start, piece.takes_over) = (at.start, true);
            let old = piece.payload.replace(merged);
            self.leave_over_all(old)
        } else {
            self.leave_over(merged)
        }
    }

    fn join_right(
        &mut self,
        end: usize,
        vma: Attached<'_, T>,
        section: &WriteSection<'_, P>,
        excluded: &mut Excluded<'_, T, P>,
    ) -> Result<(), ChangeError> {
        let space = self.space;
        let Some(piece) = self.pieces.iter_mut().find(|piece| piece.span.end == end) else {
            return Ok(());
        };
        let (at, Some(payload)) = (vma.span(), &piece.payload) else { return Ok(()) };
        let Some(merged) = payload.merge(piece.span.len(), vma.payload()) else { return Ok(()) };
        if !space.holds_guard() && excluded.join(vma, section) {
            self.owed += 1;
            piece.span.end = at.end;
            let old = piece.payload.replace(merged);
            self.leave_over_all(old)
        } else {
            self.leave_over(merged)
        }
    }

    /// Merges the pieces from the `kept`th on.
    fn join_inside(&mut self, mut kept: usize) -> Result<(), ChangeError> {
        for next in kept + 1..self.pieces.len() {
            let pieces = &mut self.pieces[..];
            let Some(merged) = pieces[kept].merge(&pieces[next]) else {
                kept += 1;
                if kept < next {
                    pieces.swap(kept, next);
                }
                continue;
            };
            let gone = pieces[next].payload.take();
            let end = pieces[next].span.end;
            let piece = &mut pieces[kept];
            let old = piece.payload.replace(merged);
            (piece.span.end, piece.changed) = (end, true);
            self.leave_over_all(old.into_iter().chain(gone))?;
        }
        self.pieces.truncate(kept + 1);
        Ok(())
    }

    fn leave_over(&mut self, payload: T) -> Result<(), ChangeError> {
        if !needs_drop::<T>() {
            return Ok(());
        }
        self.leftover.try_reserve(1).map_err(|_| self.request.out_of_memory())?;
        self.leftover.push(payload);
        Ok(())
    }

    fn leave_over_all(&mut self, payloads: impl IntoIterator<Item = T>) -> Result<(), ChangeError> {
        payloads.into_iter().try_for_each(|payload| self.leave_over(payload))
    }

    /// Finds room for everything, so that nothing can fail afterwards.
    pub fn prepare(&mut self, tree: &mut Editor<'s, '_, T, P>) -> Result<(), ChangeError> {
        if needs_drop::<T>() {
            self.leftover.try_reserve(self.owed).map_err(|_| self.request.out_of_memory())?;
        }
        // From right to left: the room that is left goes to the last one, and stays there.
        for piece in self.pieces.iter_mut().rev().filter(|piece| !piece.takes_over) {
            match tree.link(piece.span) {
                Ok(slot) => piece.home = Some(slot),
                Err(_) => {
                    self.unlink_all(tree);
                    return Err(self.request.out_of_memory());
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn unlink_all(&mut self, tree: &mut Editor<'s, '_, T, P>) {
        for piece in &mut self.pieces {
            if let Some(home) = piece.home.take() {
                tree.unlink(piece.span.start, 0);
                home.give_back(tree.section());
            }
        }
        // They were linked among VMAs that have not made room.
        for hull in [Some(self.request.span), self.request.target].into_iter().flatten() {
            tree.settle(hull);
        }
    }

    /// Puts the pieces in the place of the excluded VMAs, once; gives out what stood in the range, and
    /// the reservation if there is one.
    pub fn commit(
        &mut self,
        tree: &mut Editor<'s, '_, T, P>,
        excluded: &mut Excluded<'s, T, P>,
    ) -> (RemovedVmas<T>, Option<Reserved<'s, T>>) {
        let (slots, section) = (self.space.slab().slots(), tree.section());
        let (request, pieces) = (self.request, &mut self.pieces[..]);
        let keeps_room = request.keeps_room();
        let mut reserved = None;
        // What has no room of its own in the result; `prepare` has made room for it.
        let mut leave_over = |payload| {
            if needs_drop::<T>() {
                self.leftover.push(payload);
            }
        };
        while let Some((at, payload, emptied)) = excluded.take_first() {
            let removed = match request.span.overlap(at) {
                Some(part) if part == at => Some((part, payload)),
                Some(part) => {
                    leave_over(payload);
                    self.parts.iter_mut().find_map(Option::take).map(|payload| (part, payload))
                }
                None => {
                    leave_over(payload);
                    None
                }
            };
            if let Some((part, payload)) = removed {
                self.removed.push(Removed { range: part.range(), payload });
            }
            let Ok(found) = pieces.binary_search_by_key(&at.start, |piece| piece.span.start) else {
                tree.unlink(at.start, if keeps_room { at.len() } else { 0 });
                emptied.detach(slots, section);
                continue;
            };
            let piece = &mut pieces[found];
            match piece.payload.take() {
                Some(payload) => emptied.fill(section, piece.span, payload),
                None => reserved = Some(emptied.reserve(section, piece.span)),
            }
        }
        for piece in pieces.iter_mut() {
            match (piece.home.take(), piece.payload.take()) {
                (Some(home), Some(payload)) => home.attach(section, piece.span, payload),
                (Some(home), None) => reserved = Some(home.reserve(section, piece.span)),
                (None, _) => {}
            }
        }
        // Where there are no pieces, what was taken out has left its room behind.
        if !keeps_room && !pieces.is_empty() {
            // Two ranges, since between the ends of a relocation there may be any number of VMAs.
            let mut hulls = [Some(request.span), request.target];
            for hull in hulls.iter_mut().flatten() {
                for Piece { span, .. } in pieces.iter() {
                    if span.start <= hull.end && hull.start <= span.end {
                        hull.start = hull.start.min(span.start);
                        hull.end = hull.end.max(span.end);
                    }
                }
                tree.settle(*hull);
            }
        }
        (core::mem::take(&mut self.removed), reserved)
    }
}

/// The VMA at `addr`, if it has nothing to do with the change and nobody excludes it. In the range
/// itself there may be one that has come into a hole of an exclusion.
#[inline]
fn neighbour<'m, T, P: Platform>(
    tree: &mut Editor<'_, 'm, T, P>,
    request: &Request,
    addr: usize,
) -> Option<Attached<'m, T>> {
    let entry = tree.holding(addr)?;
    let apart = !entry.is_excluded() && entry.span().overlap(request.span).is_none();
    entry.vma().filter(|_| apart)
}

impl<T, P: Platform> Drop for Change<'_, '_, T, P> {
    fn drop(&mut self) {
        if !needs_drop::<T>() {
            return;
        }
        let pieces = self.pieces.iter_mut().filter_map(|piece| piece.payload.take());
        let parts = self.parts.iter_mut().filter_map(Option::take);
        for payload in pieces.chain(parts) {
            // No destructor runs inside an edit, unless there is no room to keep the payload.
            if self.leftover.try_reserve(1).is_ok() {
                self.leftover.push(payload);
            }
        }
    }
}

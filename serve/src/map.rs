//! What belongs where in a client's memory.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pervma::{AddressSpace, ChangeError, InsertError, Payload, RangeError, ReadError, ReadGuard};

use crate::state::Extent;
use crate::state::record::{Record, Time};

/// The payload of a VMA: what its missing pages are filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) content: Content,
    /// In bytes.
    pub(crate) page_size: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The bytes of the source from this offset on.
    Source(u64),
    /// It was removed.
    Zeros,
    /// What was missing is poisoned, wherever it moves.
    Poisoned,
}

impl Content {
    fn at(self, offset: usize) -> Self {
        match self {
            Self::Source(start) => Self::Source(start + offset as u64),
            Self::Zeros | Self::Poisoned => self,
        }
    }
}

impl Piece {
    /// What belongs so many bytes behind its start.
    pub(crate) fn at(self, offset: usize) -> Self {
        Self { content: self.content.at(offset), ..self }
    }

    /// As plain data.
    fn extent(self, range: &Range<usize>) -> Extent {
        let (offset, content) = match self.content {
            Content::Source(offset) => (offset, Extent::SOURCE),
            Content::Zeros => (0, Extent::ZEROS),
            Content::Poisoned => (0, Extent::POISONED),
        };
        let (start, len) = (range.start as u64, range.len() as u64);
        Extent { start, len, offset, page_size: self.page_size, content }
    }

    fn of(extent: &Extent) -> Result<(Range<usize>, Self), ChangeError> {
        let Extent { start, len, offset, page_size, .. } = *extent;
        let (content, offset) = match extent.content {
            Extent::ZEROS => (Content::Zeros, 0),
            Extent::POISONED => (Content::Poisoned, 0),
            _ => (Content::Source(offset), offset),
        };
        if start.checked_add(len).is_none() || offset.checked_add(len).is_none() {
            let (start, end) = (start as usize, start.wrapping_add(len) as usize);
            return Err(RangeError::Overflow { start, end }.into());
        }
        Ok((start as usize..(start + len) as usize, Self { content, page_size }))
    }
}

impl Payload for Piece {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        Some((*self, self.at(offset)))
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        (self.at(len) == *next).then_some(*self)
    }
}

/// The smallest page.
pub(crate) const PAGE: usize = 4096;

/// A client's memory, a VMA for each range that is alike. Lookups run beside changes; a change is
/// one thread's at a time.
pub(crate) struct Map {
    space: AddressSpace<Piece>,
    moves: Mutex<Moves>,
}

/// What is known of moves beside where everything is. The kernel tells of them after they have
/// happened, and of those of several threads in any order.
#[derive(Default)]
struct Moves {
    /// Places from which something has moved, and what of each is not told to be unmapped yet.
    left: Vec<Left>,
    /// What was at a place to which something else has moved.
    displaced: Vec<Displaced>,
    /// Whether it is told what is unmapped: then nothing is displaced but what has gone, of which
    /// is told late.
    tells_unmaps: bool,
}

/// What something else has taken the place of: it had moved away before, or was unmapped, and that
/// is told next.
struct Displaced {
    place: Range<usize>,
    /// By how far behind the start of the place.
    pieces: Vec<(Range<usize>, Piece)>,
    since: Time,
}

/// So many milliseconds later nothing is told late: a thread tells of a move as soon as it runs
/// again.
const LATE: u32 = 1000;

/// A place from which something has moved.
///
/// The kernel tells that it is unmapped after it has told of the move, and by then another thread
/// may have moved something else there, and that may have been told before: that stays.
struct Left {
    place: Range<usize>,
    rest: Vec<Range<usize>>,
}

/// Of so many such places it is known. One that stays mapped (`MREMAP_DONTUNMAP`) is known until
/// there are as many others.
const MOST_LEFT: usize = 1024;

impl Map {
    pub(crate) fn new(extents: &[Extent]) -> Result<Self, ChangeError> {
        let map = Self { space: AddressSpace::new(PAGE), moves: Mutex::default() };
        extents.iter().try_for_each(|extent| map.insert(extent))?;
        Ok(map)
    }

    /// A map of which this was noted.
    pub(crate) fn noted(records: &[Record]) -> Result<Self, ChangeError> {
        let map = Self::new(&[])?;
        records.iter().try_for_each(|record| map.apply(record))?;
        Ok(map)
    }

    /// Does what a record says.
    pub(crate) fn apply(&self, record: &Record) -> Result<(), ChangeError> {
        match *record {
            Record::Extent(extent) => self.insert(&extent)?,
            Record::TellsUnmaps => self.moves().tells_unmaps = true,
            Record::Left(ref place) => {
                self.moves().left.push(Left { place: place.clone(), rest: Vec::new() });
            }
            Record::LeftRest(ref rest) => {
                if let Some(left) = self.moves().left.last_mut() {
                    left.rest.push(rest.clone());
                }
            }
            Record::Displaced(ref place, since) => {
                let pieces = Vec::new();
                self.moves().displaced.push(Displaced { place: place.clone(), pieces, since });
            }
            Record::DisplacedPiece(extent) => {
                if let Some(displaced) = self.moves().displaced.last_mut() {
                    displaced.pieces.push(Piece::of(&extent)?);
                }
            }
            Record::Remove(ref range) => self.set(range, |_| Content::Zeros)?,
            Record::Unmap(ref range, time) => self.unmap(range.clone(), time)?,
            Record::Remap { from, to, len, time } => {
                self.relocate(from..from.saturating_add(len), to, time)?;
            }
            Record::Fork(_) => {}
            Record::Poison(ref range) => self.set(range, |_| Content::Poisoned)?,
            // What goes from now on is zeros.
            Record::Filled(ref range) => self.set(range, |content| match content {
                Content::Source(_) => Content::Zeros,
                Content::Zeros | Content::Poisoned => content,
            })?,
        }
        Ok(())
    }

    /// Records that say all of it.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut records: Vec<_> = self.extents().into_iter().map(Record::Extent).collect();
        let moves = self.moves();
        records.extend(moves.tells_unmaps.then_some(Record::TellsUnmaps));
        for Left { place, rest } in &moves.left {
            records.push(Record::Left(place.clone()));
            records.extend(rest.iter().cloned().map(Record::LeftRest));
        }
        for Displaced { place, pieces, since } in &moves.displaced {
            records.push(Record::Displaced(place.clone(), *since));
            let pieces = pieces.iter().map(|(range, piece)| piece.extent(range));
            records.extend(pieces.map(Record::DisplacedPiece));
        }
        records
    }

    fn insert(&self, extent: &Extent) -> Result<(), ChangeError> {
        let (range, piece) = Piece::of(extent)?;
        let inserted = self.space.insert(range, piece);
        inserted.map(drop).map_err(|error: InsertError<Piece>| error.kind)
    }

    fn moves(&self) -> MutexGuard<'_, Moves> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Read-locks the VMA at an address.
    pub(crate) fn read(&self, addr: usize) -> Result<ReadGuard<'_, Piece>, ReadError> {
        self.space.read(addr)
    }

    /// Read-locks the VMA at an address, or the first behind it.
    pub(crate) fn read_at_or_after(
        &self,
        addr: usize,
    ) -> Result<Option<ReadGuard<'_, Piece>>, ReadError> {
        self.space.read_at_or_after(addr)
    }

    /// All of it.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        let vmas = self.space.iter().filter_map(Result::ok);
        vmas.map(|(range, piece)| piece.extent(&range)).collect()
    }

    fn set(
        &self,
        range: &Range<usize>,
        content: impl Fn(Content) -> Content,
    ) -> Result<(), ChangeError> {
        for part in self.mapped(range) {
            let set = |piece: &Piece| Piece { content: content(piece.content), ..*piece };
            self.space.update(part, |_, piece| set(piece))?;
        }
        Ok(())
    }

    /// The first range that has bytes of the source, and the size of its pages.
    pub(crate) fn first_of_source(&self) -> Option<(Range<usize>, usize)> {
        let mut vmas = self.space.iter().filter_map(Result::ok);
        let (range, piece) = vmas.find(|(_, piece)| matches!(piece.content, Content::Source(_)))?;
        Some((range, piece.page_size as usize))
    }

    fn unmap(&self, range: Range<usize>, now: Time) -> Result<(), ChangeError> {
        let mut moves = self.moves();
        moves.tells_unmaps = true;
        let left = moves.left.iter().position(|left| left.place == range);
        if let Some(at) = left {
            moves.left.remove(at).rest.into_iter().try_for_each(|rest| self.forget(rest))
        } else if moves.take_displaced(&range, now).is_some() {
            Ok(())
        } else {
            self.forget(range)
        }
    }

    fn forget(&self, range: Range<usize>) -> Result<(), ChangeError> {
        match self.space.remove(range) {
            Ok(_) | Err(ChangeError::NotMapped { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What was at the old place is at the new one. The old one is zeros: it can still be mapped
    /// (`MREMAP_DONTUNMAP`), and is unmapped by an event of its own if it is not.
    fn relocate(&self, from: Range<usize>, to: usize, now: Time) -> Result<(), ChangeError> {
        let target = to..to.saturating_add(from.len());
        let mut moves = self.moves();
        let displaced = moves.take_displaced(&from, now);
        if moves.tells_unmaps {
            let pieces = self.pieces(&target);
            if !pieces.is_empty() {
                moves.displaced.push(Displaced { place: target.clone(), pieces, since: now });
            }
        }
        self.forget(target.clone())?;
        for left in &mut moves.left {
            left.rest = left.rest.iter().flat_map(|rest| without(rest, &target)).collect();
        }
        if moves.left.len() >= MOST_LEFT {
            moves.left.remove(0);
        }
        // What was displaced has left nothing behind.
        let rest = if displaced.is_some() { vec![] } else { vec![from.clone()] };
        moves.left.push(Left { place: from.clone(), rest });
        drop(moves);
        if let Some(displaced) = displaced {
            return displaced.pieces.into_iter().try_for_each(|(part, piece)| {
                let inserted = self.space.insert(to + part.start..to + part.end, piece);
                inserted.map(drop).map_err(|error| error.kind)
            });
        }
        let parts = self.mapped(&from);
        let mut pieces = Vec::new();
        let moved = self.space.relocate(from, to, |_, piece| {
            pieces.push(*piece);
            *piece
        });
        match moved {
            Ok(removed) => drop(removed),
            Err(ChangeError::NotMapped { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let page_size = pieces.first().map_or(PAGE as u32, |piece| piece.page_size);
        for part in parts {
            let zeros = Piece { content: Content::Zeros, page_size };
            self.space.insert(part, zeros).map_err(|error| error.kind)?;
        }
        Ok(())
    }

    /// A copy, for a forked child.
    pub(crate) fn fork(&self) -> Result<Self, ChangeError> {
        Ok(Self { space: self.space.fork(|_, piece| Some(*piece))?, moves: Mutex::default() })
    }

    /// What is in a range, by how far behind its start.
    fn pieces(&self, range: &Range<usize>) -> Vec<(Range<usize>, Piece)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        // As below.
        while let Ok(Some(vma)) = self.space.read_at_or_after(at) {
            let whole = vma.range();
            let part = at.max(whole.start)..whole.end.min(range.end);
            // It lies behind the range; or the one before reached beyond it, and is this one.
            if part.is_empty() {
                break;
            }
            let piece = vma.at(part.start - whole.start);
            pieces.push((part.start - range.start..part.end - range.start, piece));
            at = part.end;
        }
        pieces
    }

    /// The parts of a range that are mapped, as few as possible.
    fn mapped(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut at = range.start;
        // Nothing is write-locked, since the only thread that changes it is here.
        while let Ok(Some(vma)) = self.space.read_at_or_after(at) {
            let part = vma.range();
            if part.start >= range.end {
                break;
            }
            at = part.end;
            let part = part.start.max(range.start)..part.end.min(range.end);
            match parts.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => parts.push(part),
            }
        }
        parts
    }
}

impl Moves {
    /// What was at a place when something else moved there, a short time ago.
    fn take_displaced(&mut self, place: &Range<usize>, now: Time) -> Option<Displaced> {
        self.displaced.retain(|displaced| displaced.since.until(now) < LATE);
        let at = self.displaced.iter().position(|displaced| displaced.place == *place)?;
        Some(self.displaced.remove(at))
    }
}

/// What of a range is outside of another one.
fn without(
    range: &Range<usize>,
    other: &Range<usize>,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let before = range.start..range.end.min(other.start);
    let behind = range.start.max(other.end)..range.end;
    [before, behind].into_iter().filter(|part| part.start < part.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, len: u64, offset: u64) -> Extent {
        Extent { start, len, offset, page_size: 4096, content: Extent::SOURCE }
    }

    fn zeros(start: u64, len: u64) -> Extent {
        Extent { offset: 0, content: Extent::ZEROS, ..extent(start, len, 0) }
    }

    #[test]
    fn what_is_removed_is_zeros_and_what_is_beside_it_stays() {
        let map = Map::new(&[extent(0x1000, 0x4000, 0x7000), extent(0x8000, 0x2000, 0)]).unwrap();
        map.apply(&Record::Remove(0x2000..0x9000)).unwrap();
        let expected = [
            extent(0x1000, 0x1000, 0x7000),
            zeros(0x2000, 0x3000),
            zeros(0x8000, 0x1000),
            extent(0x9000, 0x1000, 0x1000),
        ];
        assert_eq!(map.extents(), expected);
        map.apply(&Record::Remove(0x10_0000..0x20_0000)).unwrap();
        assert_eq!(map.extents(), expected, "nothing is there");
    }

    #[test]
    fn what_moves_is_the_same_elsewhere_and_zeros_where_it_was() {
        let map = Map::new(&[extent(0x1000, 0x4000, 0x7000), extent(0x8000, 0x2000, 0)]).unwrap();
        map.relocate(0x2000..0x4000, 0x8000, Time::now()).unwrap();
        assert_eq!(
            map.extents(),
            [
                extent(0x1000, 0x1000, 0x7000),
                zeros(0x2000, 0x2000),
                extent(0x4000, 0x1000, 0xa000),
                extent(0x8000, 0x2000, 0x8000),
            ]
        );
        map.unmap(0x2000..0x4000, Time::now()).unwrap();
        map.unmap(0x2000..0x4000, Time::now()).unwrap();
        assert_eq!(map.extents().len(), 3);
        map.relocate(0x20_0000..0x30_0000, 0x40_0000, Time::now()).unwrap();
        assert_eq!(map.extents().len(), 3, "nothing was there");
    }

    #[test]
    fn what_has_moved_to_a_place_stays_when_it_is_told_late_that_the_place_was_left() {
        let map = Map::new(&[extent(0x1000, 0x4000, 0x7000), extent(0x8000, 0x2000, 0)]).unwrap();
        map.relocate(0x1000..0x5000, 0x1_0000, Time::now()).unwrap();
        map.relocate(0x8000..0xa000, 0x2000, Time::now()).unwrap();
        map.unmap(0x1000..0x5000, Time::now()).unwrap();
        map.unmap(0x8000..0xa000, Time::now()).unwrap();
        let expected = [extent(0x2000, 0x2000, 0), extent(0x1_0000, 0x4000, 0x7000)];
        assert_eq!(map.extents(), expected);
        map.unmap(0x1000..0x5000, Time::now()).unwrap();
        assert_eq!(map.extents(), expected[1..], "now it is another event");
    }

    #[test]
    fn what_moves_to_a_part_of_what_was_there_takes_the_place_of_that_part() {
        let map = Map::new(&[extent(0x1000, 0x4000, 0x7000), extent(0x8000, 0x2000, 0)]).unwrap();
        // That it tells what is unmapped is known from the first time on.
        map.unmap(0x10_0000..0x10_1000, Time::now()).unwrap();
        map.relocate(0x8000..0xa000, 0x2000, Time::now()).unwrap();
        map.unmap(0x8000..0xa000, Time::now()).unwrap();
        assert_eq!(
            map.extents(),
            [
                extent(0x1000, 0x1000, 0x7000),
                extent(0x2000, 0x2000, 0),
                extent(0x4000, 0x1000, 0xa000),
            ]
        );
    }

    #[test]
    fn what_moves_to_a_place_does_not_move_with_what_has_left_it_before_and_is_told_later() {
        let whole = [extent(0x1000, 0x4000, 0x7000), extent(0x8000, 0x4000, 0)];
        let known = || {
            let map = Map::new(&whole).unwrap();
            // That it tells what is unmapped is known from the first time on.
            map.unmap(0x10_0000..0x10_1000, Time::now()).unwrap();
            map.apply(&Record::Remove(0x2000..0x3000)).unwrap();
            // The second part moves to the place of the first one, which has left it.
            map.relocate(0x8000..0xc000, 0x1000, Time::now()).unwrap();
            map
        };
        let map = known();
        map.relocate(0x1000..0x5000, 0x2_0000, Time::now()).unwrap();
        map.unmap(0x1000..0x5000, Time::now()).unwrap();
        map.unmap(0x8000..0xc000, Time::now()).unwrap();
        let second = extent(0x1000, 0x4000, 0);
        let expected = [
            second,
            extent(0x2_0000, 0x1000, 0x7000),
            zeros(0x2_1000, 0x1000),
            extent(0x2_2000, 0x2000, 0x9000),
        ];
        assert_eq!(map.extents(), expected);
        // Once: now it is the second part that moves.
        map.relocate(0x1000..0x5000, 0x3_0000, Time::now()).unwrap();
        map.unmap(0x1000..0x5000, Time::now()).unwrap();
        assert_eq!(map.extents()[3..], [extent(0x3_0000, 0x4000, 0)]);

        let map = known();
        map.unmap(0x1000..0x5000, Time::now()).unwrap();
        map.unmap(0x8000..0xc000, Time::now()).unwrap();
        assert_eq!(map.extents(), [second], "it was unmapped");
    }

    #[test]
    fn what_is_moved_over_without_being_told_is_gone() {
        let map = Map::new(&[extent(0x1000, 0x4000, 0x7000), extent(0x8000, 0x4000, 0)]).unwrap();
        map.relocate(0x8000..0xc000, 0x1000, Time::now()).unwrap();
        map.relocate(0x1000..0x5000, 0x2_0000, Time::now()).unwrap();
        let moved = map.extents();
        assert_eq!(moved.last(), Some(&extent(0x2_0000, 0x4000, 0)));
    }

    #[test]
    fn a_copy_is_changed_by_itself() {
        let map = Map::new(&[extent(0x1000, 0x4000, 0)]).unwrap();
        let child = map.fork().unwrap();
        child.apply(&Record::Remove(0x1000..0x2000)).unwrap();
        assert_eq!(map.extents(), [extent(0x1000, 0x4000, 0)]);
        assert_eq!(child.extents().len(), 2);
    }

    #[test]
    fn no_record_is_too_strange() {
        use rand::rngs::StdRng;
        use rand::{RngExt, SeedableRng};
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..4_000 {
            let mut word = || match rng.random_range(0..4) {
                0 => rng.random_range(0..0x10) << 12,
                1 => u64::MAX - (rng.random_range(0..0x10) << 12),
                2 => u64::MAX << rng.random_range(0..64),
                _ => rng.random(),
            };
            let mut record = || loop {
                // Any that could be noted: with the sum that it has.
                let (kind, words) = (word() % 13, [word(), word(), word()]);
                if let Some(record) = Record::any(kind, word() as u32, words) {
                    break record;
                }
            };
            let records: Vec<_> = (0..4).map(|_| record()).collect();
            let _ = Map::noted(&records);
        }
    }
}

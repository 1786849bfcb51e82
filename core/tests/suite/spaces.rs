//! `AddressSpace` as a subject: changed in edits, by its own operations, and through exclusions.
//!
//! The space's own operation refuses what an exclusion refuses, with the same error.

use std::cell::OnceCell;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use pervma::{
    AddressSpace, ChangeError, Cursor, Edit, Exclusion, GapError, GapSearch, GlobalMemory,
    InsertError, Payload, Platform, RangeError, ReadError, ReadGuard, Reader, Removed, RemovedVmas,
    Reservation, Slab, SplitMerge, VmaId, VmaOrHole, WaitWord,
};
use pervma_oracle::{NoGap, Refused, Search};

use super::part::Part;
use super::subject::{Map, Named, Subject, World};

impl Payload for Part {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        self.split_at(offset)
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        self.merged(len, next)
    }
}

/// A platform with locks of another crate, on which threads have no identity.
pub(crate) enum Spin {}

// SAFETY: nothing unwinds, and no states are lent.
unsafe impl Platform for Spin {
    type Lock = spin::RwLock<()>;
    type Memory = GlobalMemory;
    type Deadline = std::time::Instant;

    fn wait(_word: &WaitWord, _seen: u32, deadline: Option<Self::Deadline>) -> bool {
        std::thread::yield_now();
        deadline.is_none_or(|deadline| std::time::Instant::now() < deadline)
    }

    fn wake(_word: &WaitWord) {}

    fn wake_all(_word: &WaitWord) {}

    fn with_thread<R>(_f: impl FnOnce(&pervma::ThreadState) -> R) -> Option<R> {
        None
    }
}

/// Changes are operations of an edit.
pub(crate) const IN_EDITS: u8 = 0;
/// Changes are operations of the space.
pub(crate) const WAITING: u8 = 1;
/// Changes are operations of an exclusion, where there are such.
pub(crate) const EXCLUDING: u8 = 2;

/// A world of spaces on the platform `P` that are changed in one of these ways.
pub(crate) struct Spaces<P: Platform, const WAY: u8> {
    granule: usize,
    slab: Option<Arc<Slab<Part, P>>>,
    /// All there are, in a list that can grow while they are borrowed.
    first: OnceCell<Box<Kept<P>>>,
}

struct Kept<P: Platform> {
    space: AddressSpace<Part, P>,
    next: OnceCell<Box<Self>>,
}

impl<P: Platform, const WAY: u8> Spaces<P, WAY> {
    fn keep(&self, space: AddressSpace<Part, P>) -> Space<'_, P, WAY> {
        let mut last = &self.first;
        while let Some(kept) = last.get() {
            last = &kept.next;
        }
        let kept = last.get_or_init(|| Box::new(Kept { space, next: OnceCell::new() }));
        let space = &kept.space;
        let cursor = space.cursor();
        // In half of the worlds, so that exclusions scan for registered readers, or do not.
        let reader = self.slab.is_some().then(|| sure(space.register()));
        Space { world: self, space, edit: None, cursor, reader, exclusions: 0 }
    }
}

impl<P: Platform, const WAY: u8> World for Spaces<P, WAY> {
    type Space<'w> = Space<'w, P, WAY>;

    fn new(granule: usize, shared: bool) -> Self {
        let slab = shared.then(|| Arc::new(Slab::with_platform()));
        Self { granule, slab, first: OnceCell::new() }
    }

    fn space(&self) -> Space<'_, P, WAY> {
        self.keep(match &self.slab {
            Some(slab) => AddressSpace::new_in(self.granule, Arc::clone(slab)),
            None => AddressSpace::with_platform(self.granule),
        })
    }

    fn finish(self) {
        drop(self.first);
        if let Some(slab) = self.slab {
            assert_eq!((slab.vmas().in_use, slab.nodes().in_use), (0, 0), "all memory is free");
        }
    }
}

/// One space, and what the thread has of it.
pub(crate) struct Space<'w, P: Platform, const WAY: u8> {
    world: &'w Spaces<P, WAY>,
    space: &'w AddressSpace<Part, P>,
    edit: Option<Edit<'w, Part, P>>,
    cursor: Cursor<'w, Part, P>,
    reader: Option<Reader<'w, Part, P>>,
    exclusions: usize,
}

/// The same rules as those of the payload.
struct AsParts;

impl SplitMerge<Part> for AsParts {
    fn split(&mut self, part: &Part, range: Range<usize>, at: usize) -> Option<(Part, Part)> {
        assert!(range.start < at && at < range.end, "{range:x?} cannot be split at {at:#x}");
        part.split_at(at - range.start)
    }

    fn merge(&mut self, part: &Part, range: Range<usize>, next: &Part) -> Option<Part> {
        part.merged(range.len(), next)
    }
}

impl<'w, P: Platform, const WAY: u8> Space<'w, P, WAY> {
    fn edit(&mut self) -> &mut Edit<'w, Part, P> {
        self.edit.get_or_insert_with(|| sure(self.space.edit()))
    }

    /// Whether to change the space in an edit. What would wait for an exclusion of this thread is
    /// refused, or waits forever on a platform that cannot tell threads apart.
    fn in_edit(&mut self) -> bool {
        let in_edit = WAY == IN_EDITS || self.exclusions != 0;
        if !in_edit {
            self.end();
        }
        in_edit
    }

    /// Whether to look at the space with no lock.
    fn free(&self) -> bool {
        self.edit.is_none() && self.exclusions == 0
    }
}

impl<'w, P: Platform, const WAY: u8> Subject for Space<'w, P, WAY> {
    type Reservation = Reservation<'w, Part, P>;
    type Exclusion = Exclusion<'w, Part, P>;

    fn insert(&mut self, range: Range<usize>, payload: Part) -> Result<(), (Refused, Part)> {
        self.edit().insert(range, payload).map_err(given_back)
    }

    fn insert_merging(
        &mut self,
        range: Range<usize>,
        payload: Part,
    ) -> Result<(), (Refused, Part)> {
        self.edit().insert_merging(range, payload).map_err(given_back)
    }

    fn remove(&mut self, range: Range<usize>) -> Result<Map, Refused> {
        let space = self.space;
        let removed = if self.in_edit() {
            self.edit().remove(range)
        } else if let (EXCLUDING, Ok(exclusion)) = (WAY, space.exclude(range.clone())) {
            exclusion.remove()
        } else {
            space.remove(range)
        };
        removed.map(map).map_err(refused)
    }

    fn remove_whole(&mut self, range: Range<usize>) -> Result<Map, Refused> {
        let space = self.space;
        let removed = if self.in_edit() {
            self.edit().remove_whole(range)
        } else if let (EXCLUDING, Ok(exclusion)) = (WAY, space.exclude(range.clone())) {
            exclusion.remove_whole()
        } else {
            space.remove_whole(range)
        };
        removed.map(map).map_err(refused)
    }

    fn retain(&mut self, keep: impl Fn(Range<usize>, &Part) -> bool) -> Result<Map, Refused> {
        let removed =
            if self.in_edit() { self.edit().retain(keep) } else { self.space.retain(keep) };
        removed.map(map).map_err(refused)
    }

    fn update(
        &mut self,
        range: Range<usize>,
        f: impl FnMut(Range<usize>, &Part) -> Part,
    ) -> Result<Map, Refused> {
        let space = self.space;
        let updated = if self.in_edit() {
            self.edit().update(range, f)
        } else if let (EXCLUDING, Ok(exclusion)) = (WAY, space.exclude(range.clone())) {
            exclusion.update(f)
        } else {
            space.update(range, f)
        };
        updated.map(map).map_err(refused)
    }

    fn change(
        &mut self,
        range: Range<usize>,
        f: impl FnMut(Range<usize>, &Part) -> Option<Part>,
    ) -> Result<Map, Refused> {
        let space = self.space;
        let changed = if self.in_edit() {
            self.edit().change(range, AsParts, f)
        } else if let (EXCLUDING, Ok(exclusion)) = (WAY, space.exclude(range.clone())) {
            exclusion.change(AsParts, f)
        } else {
            space.change(range, AsParts, f)
        };
        changed.map(map).map_err(refused)
    }

    fn remove_reserving(
        &mut self,
        range: Range<usize>,
    ) -> Result<(Map, Self::Reservation), Refused> {
        self.end();
        let exclusion = self.space.exclude(range.clone()).map_err(refused)?;
        let (removed, reservation) = exclusion.remove_reserving().map_err(refused)?;
        assert_eq!(reservation.range(), range);
        Ok((map(removed), reservation))
    }

    fn replace(&mut self, range: Range<usize>, payload: Part) -> Result<Map, (Refused, Part)> {
        let replaced = if self.in_edit() {
            self.edit().replace(range, payload)
        } else {
            self.space.replace(range, payload)
        };
        replaced.map(map).map_err(given_back)
    }

    fn set(&mut self, range: Range<usize>, payload: Part) -> Result<Map, (Refused, Part)> {
        let set = if self.in_edit() {
            self.edit().set(range, payload)
        } else {
            self.space.set(range, payload)
        };
        set.map(map).map_err(given_back)
    }

    fn relocate(
        &mut self,
        from: Range<usize>,
        to: usize,
        mut f: impl FnMut(Range<usize>, &Part) -> Part,
    ) -> Result<Map, Refused> {
        let space = self.space;
        let relocated = if self.in_edit() {
            self.edit().relocate(from, to, f)
        } else if let (EXCLUDING, Ok(exclusion)) = (WAY, space.exclude(from.clone())) {
            match exclusion.relocate(to, &mut f) {
                // It splits before it checks the target, which is the first refusal elsewhere.
                Err(ChangeError::PartlyCovered { .. }) => space.relocate(from, to, f),
                relocated => relocated,
            }
        } else {
            space.relocate(from, to, f)
        };
        relocated.map(map).map_err(refused)
    }

    fn reserve(&mut self, range: Range<usize>) -> Result<Self::Reservation, Refused> {
        let reservation = self.edit().reserve(range.clone()).map_err(refused)?;
        assert_eq!(reservation.range(), range);
        Ok(reservation)
    }

    fn commit(&mut self, mut reservation: Self::Reservation, payload: Part) {
        self.make_way();
        sure(reservation.commit(payload));
    }

    fn roll_back(&mut self, reservation: Self::Reservation) {
        self.make_way();
        drop(reservation);
    }

    fn exclude(&mut self, range: Range<usize>) -> Result<(Self::Exclusion, Map), Refused> {
        self.end();
        let exclusion = self.space.exclude(range.clone()).map_err(refused)?;
        assert_eq!(exclusion.range(), range);
        assert!(exclusion.is_drained());
        self.exclusions += 1;
        let vmas = exclusion.iter().map(cloned).collect();
        Ok((exclusion, vmas))
    }

    fn release(&mut self, exclusion: Self::Exclusion) {
        self.exclusions -= 1;
        drop(exclusion);
    }

    fn fork(
        &mut self,
        f: impl FnMut(Range<usize>, &Part) -> Option<Part>,
    ) -> Result<Self, Refused> {
        let fork = self.edit().fork(f).map_err(refused)?;
        Ok(self.world.keep(fork))
    }

    fn find_gap(&mut self, search: &Search) -> Result<Range<usize>, NoGap> {
        let Search { size, align, ref within, top_down } = *search;
        let mut search = GapSearch::new(size).aligned(align).within(within.clone());
        if top_down {
            search = search.top_down();
        }
        let found = match &self.edit {
            Some(edit) => edit.find_gap(&search),
            None => sure(self.space.view()).find_gap(&search),
        };
        found.map_err(|error| match error {
            GapError::Size { size } => NoGap::Size(size),
            GapError::Alignment { align } => NoGap::Alignment(align),
            error => {
                assert_eq!(error, GapError::NotFound);
                NoGap::NotFound
            }
        })
    }

    fn get(&mut self, addr: usize) -> Option<(Range<usize>, Part)> {
        if !self.free() {
            return self.edit().get(addr).map(cloned);
        }
        let viewed = sure(self.space.view()).get(addr).map(cloned);
        let hole = |error| match error {
            ReadError::NotMapped { addr: at } | ReadError::Reserved { addr: at } if at == addr => {}
            other => panic!("{other}"),
        };
        let reads = [
            self.space.try_read(addr),
            self.space.read(addr),
            self.cursor.try_read(addr),
            self.cursor.read(addr),
        ];
        for read in reads {
            assert_eq!(read.map(held).map_err(hole).ok(), viewed);
        }
        if let Some(reader) = &self.reader {
            let mut cursor = reader.cursor();
            for read in [reader.try_read(addr), reader.read(addr), cursor.try_read(addr)] {
                assert_eq!(read.map(held).map_err(hole).ok(), viewed);
            }
        }
        viewed
    }

    fn read_at_or_after(&mut self, addr: usize) -> Option<(Range<usize>, Part)> {
        if !self.free() {
            return self.edit().overlapping(addr..usize::MAX).next().map(cloned);
        }
        let found = sure(self.space.try_read_at_or_after(addr)).map(held);
        assert_eq!(sure(self.space.read_at_or_after(addr)).map(held), found);
        let mut either = vec![self.space.try_read_or_hole(addr), self.space.read_or_hole(addr)];
        if let Some(reader) = &self.reader {
            either.extend([reader.try_read_or_hole(addr), reader.read_or_hole(addr)]);
        }
        for either in either {
            match (sure(either), &found) {
                (VmaOrHole::Vma(vma), Some(found)) => {
                    assert!(found.0.contains(&addr));
                    assert_eq!(held(vma), *found);
                }
                (VmaOrHole::Hole { end }, Some((next, _))) => {
                    assert!(addr < end && end == next.start, "{end:#x} before {next:x?}");
                }
                (VmaOrHole::Hole { end }, None) => assert_eq!(end, usize::MAX),
                (VmaOrHole::Vma(vma), None) => panic!("{vma:?} at {addr:#x}"),
            }
        }
        if let Some(reader) = &self.reader {
            assert_eq!(sure(reader.try_read_at_or_after(addr)).map(held), found);
            assert_eq!(sure(reader.read_at_or_after(addr)).map(held), found);
        }
        let view = sure(self.space.view());
        assert_eq!(view.overlapping(addr..usize::MAX).next().map(cloned), found);
        if let Some((range, _)) = &found {
            let up_to = |end| view.overlapping(addr..end).count();
            assert_eq!([up_to(addr), up_to(range.start), up_to(range.end)], [0, 0, 1]);
        }
        drop(view);
        found
    }

    fn map(&mut self) -> Map {
        if !self.free() {
            let edit = &**self.edit();
            let map: Map = edit.iter().map(cloned).collect();
            assert!(edit.iter().rev().map(cloned).eq(map.iter().rev().cloned()));
            assert_eq!(edit.len(), map.len());
            return map;
        }
        let map: Map = self.space.iter().map(sure).collect();
        assert!(self.space.iter().rev().map(sure).eq(map.iter().rev().cloned()));
        assert_eq!((self.space.len(), self.space.is_empty()), (map.len(), map.is_empty()));
        assert_eq!(sure(self.space.view()).iter().map(cloned).collect::<Map>(), map);
        if let Some(reader) = &self.reader {
            assert!(reader.iter().map(sure).eq(map.iter().cloned()));
        }
        // From both ends to the middle, each once.
        let view = sure(self.space.view());
        let (mut left, mut right, mut vmas) = (Map::new(), Map::new(), view.iter());
        while let Some(vma) = vmas.next() {
            left.push(cloned(vma));
            right.extend(vmas.next_back().map(cloned));
        }
        assert!(vmas.next_back().is_none());
        assert!(left.iter().chain(right.iter().rev()).eq(&map));
        map
    }

    fn named(&mut self) -> Option<Vec<Named>> {
        if self.free() {
            let (mut named, mut vmas) = (Vec::new(), self.space.read_all());
            while let Some(vma) = sure(vmas.next()) {
                assert_eq!(vma.version().id(), vma.id());
                let version = Some(vma.version());
                named.push(Named { range: vma.range(), id: vma.id(), version });
            }
            return Some(named);
        }
        let edit = &*self.edit();
        let named = edit.iter().map(|(range, _)| {
            let id = sure(edit.id(range.end - 1).ok_or(&range));
            Named { range, id, version: None }
        });
        Some(named.collect())
    }

    fn find(&mut self, id: VmaId) -> Option<Range<usize>> {
        if !self.free() {
            return self.edit().get_by_id(id).map(|(range, _)| range);
        }
        let found = sure(self.space.view()).get_by_id(id).map(|(range, _)| range);
        let reads = [self.space.try_read_id(id), self.space.read_id(id)];
        let registered = self.reader.iter();
        let registered = registered.flat_map(|r| [r.try_read_id(id), r.read_id(id)]);
        for read in reads.into_iter().chain(registered) {
            match (read, &found) {
                (Ok(vma), Some(range)) => assert_eq!((vma.range(), vma.id()), (range.clone(), id)),
                (Err(ReadError::Gone { .. }), None) => {}
                (read, found) => panic!("{read:?} is not {found:?}"),
            }
        }
        found
    }

    fn is_reserved(&mut self, addr: usize) -> bool {
        self.end();
        matches!(self.space.try_read(addr), Err(ReadError::Reserved { addr: at }) if at == addr)
    }

    fn end(&mut self) {
        self.edit = None;
    }

    fn entries(&self) -> Option<usize> {
        self.world.slab.is_none().then(|| self.space.slab().vmas().in_use)
    }
}

impl<P: Platform, const WAY: u8> Space<'_, P, WAY> {
    /// A reservation finds the edit of its own thread, if the platform can tell threads apart.
    fn make_way(&mut self) {
        if P::with_thread(|_| ()).is_none() {
            self.end();
        }
    }
}

fn sure<V, E: Debug>(result: Result<V, E>) -> V {
    result.unwrap_or_else(|error| panic!("{error:?}"))
}

fn map(removed: RemovedVmas<Part>) -> Map {
    removed.into_iter().map(|Removed { range, payload, .. }| (range, payload)).collect()
}

fn cloned((range, part): (Range<usize>, &Part)) -> (Range<usize>, Part) {
    (range, part.clone())
}

fn held<P: Platform>(vma: ReadGuard<'_, Part, P>) -> (Range<usize>, Part) {
    (vma.range(), vma.clone())
}

fn given_back(error: InsertError<Part>) -> (Refused, Part) {
    (refused(error.kind), error.payload)
}

/// A refusal in the oracle's words.
fn refused(error: ChangeError) -> Refused {
    match error {
        ChangeError::Range(RangeError::Overflow { start, end }) => Refused::Overflow(start, end),
        ChangeError::Range(RangeError::Empty { addr }) => Refused::Empty(addr),
        ChangeError::Range(RangeError::Unaligned { addr, .. }) => Refused::Unaligned(addr),
        ChangeError::NotMapped { range } => Refused::NotMapped(range),
        ChangeError::Reserved { range } => Refused::Reserved(range),
        ChangeError::Excluded { vma } => Refused::Excluded(vma),
        ChangeError::Overlap { existing } => Refused::Overlap(existing),
        ChangeError::PartlyCovered { vma } => Refused::PartlyCovered(vma),
        other => panic!("{other}"),
    }
}

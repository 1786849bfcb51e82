//! What the suite runs on: anything with the operations of an address space.

use std::ops::Range;

use pervma::{VmaId, VmaVersion};
use pervma_oracle::{NoGap, Oracle, Refused, Search};

use super::part::Part;

/// Ranges with what they hold, in order.
pub(crate) type Map = Vec<(Range<usize>, Part)>;

/// A VMA, by what names it.
pub(crate) struct Named {
    pub(crate) range: Range<usize>,
    pub(crate) id: VmaId,
    /// Unknown while an edit goes on.
    pub(crate) version: Option<VmaVersion>,
}

/// Where spaces live. They are made by it and borrow it.
pub(crate) trait World {
    /// A space of this world.
    type Space<'w>: Subject
    where
        Self: 'w;

    /// A world whose spaces are aligned to `granule` bytes, and share their memory or do not.
    fn new(granule: usize, shared: bool) -> Self;

    /// Another, empty space.
    fn space(&self) -> Self::Space<'_>;

    /// Drops the spaces, and checks that their memory is free.
    fn finish(self);
}

/// An address space. Refusals are in the words of the oracle.
pub(crate) trait Subject: Sized {
    type Reservation;
    type Exclusion;

    fn insert(&mut self, range: Range<usize>, payload: Part) -> Result<(), (Refused, Part)>;
    fn insert_merging(&mut self, range: Range<usize>, payload: Part)
    -> Result<(), (Refused, Part)>;
    fn remove(&mut self, range: Range<usize>) -> Result<Map, Refused>;
    fn remove_whole(&mut self, range: Range<usize>) -> Result<Map, Refused>;
    fn retain(&mut self, keep: impl Fn(Range<usize>, &Part) -> bool) -> Result<Map, Refused>;
    fn remove_reserving(
        &mut self,
        range: Range<usize>,
    ) -> Result<(Map, Self::Reservation), Refused>;
    fn update(
        &mut self,
        range: Range<usize>,
        f: impl FnMut(Range<usize>, &Part) -> Part,
    ) -> Result<Map, Refused>;
    fn change(
        &mut self,
        range: Range<usize>,
        f: impl FnMut(Range<usize>, &Part) -> Option<Part>,
    ) -> Result<Map, Refused>;
    fn replace(&mut self, range: Range<usize>, payload: Part) -> Result<Map, (Refused, Part)>;
    fn set(&mut self, range: Range<usize>, payload: Part) -> Result<Map, (Refused, Part)>;
    fn relocate(
        &mut self,
        from: Range<usize>,
        to: usize,
        f: impl FnMut(Range<usize>, &Part) -> Part,
    ) -> Result<Map, Refused>;
    fn reserve(&mut self, range: Range<usize>) -> Result<Self::Reservation, Refused>;
    fn commit(&mut self, reservation: Self::Reservation, payload: Part);
    fn roll_back(&mut self, reservation: Self::Reservation);
    /// Also gives the VMAs that it holds.
    fn exclude(&mut self, range: Range<usize>) -> Result<(Self::Exclusion, Map), Refused>;
    fn release(&mut self, exclusion: Self::Exclusion);
    fn fork(&mut self, f: impl FnMut(Range<usize>, &Part) -> Option<Part>)
    -> Result<Self, Refused>;
    fn find_gap(&mut self, search: &Search) -> Result<Range<usize>, NoGap>;
    fn get(&mut self, addr: usize) -> Option<(Range<usize>, Part)>;
    fn read_at_or_after(&mut self, addr: usize) -> Option<(Range<usize>, Part)>;
    /// All VMAs.
    fn map(&mut self) -> Map;
    /// All VMAs by what names them, if VMAs have identities.
    fn named(&mut self) -> Option<Vec<Named>>;
    /// The range of the VMA that `id` names.
    fn find(&mut self, id: VmaId) -> Option<Range<usize>>;
    /// Whether `addr` is reserved. Ends the edit.
    fn is_reserved(&mut self, addr: usize) -> bool;
    /// Ends the edit, if there is one: the operations between two ends make up one edit.
    fn end(&mut self);
    /// How many VMAs and reservations there are by the count of the memory, if there is one.
    fn entries(&self) -> Option<usize>;
}

/// The world of the oracle.
pub(crate) struct OracleWorld {
    granule: usize,
}

impl World for OracleWorld {
    type Space<'w> = Oracle<Part>;

    fn new(granule: usize, _shared: bool) -> Self {
        Self { granule }
    }

    fn space(&self) -> Oracle<Part> {
        Oracle::new(self.granule)
    }

    fn finish(self) {}
}

impl Subject for Oracle<Part> {
    type Reservation = pervma_oracle::Reservation;
    type Exclusion = pervma_oracle::Exclusion;

    fn insert(&mut self, range: Range<usize>, payload: Part) -> Result<(), (Refused, Part)> {
        Oracle::insert(self, range, payload)
    }

    fn insert_merging(
        &mut self,
        range: Range<usize>,
        payload: Part,
    ) -> Result<(), (Refused, Part)> {
        Oracle::insert_merging(self, range, payload)
    }

    fn remove(&mut self, range: Range<usize>) -> Result<Map, Refused> {
        Oracle::remove(self, range)
    }

    fn remove_whole(&mut self, range: Range<usize>) -> Result<Map, Refused> {
        Oracle::remove_whole(self, range)
    }

    fn retain(&mut self, keep: impl Fn(Range<usize>, &Part) -> bool) -> Result<Map, Refused> {
        Oracle::retain(self, keep)
    }

    fn remove_reserving(
        &mut self,
        range: Range<usize>,
    ) -> Result<(Map, Self::Reservation), Refused> {
        Oracle::remove_reserving(self, range)
    }

    fn update(
        &mut self,
        range: Range<usize>,
        f: impl FnMut(Range<usize>, &Part) -> Part,
    ) -> Result<Map, Refused> {
        Oracle::update(self, range, f)
    }

    fn change(
        &mut self,
        range: Range<usize>,
        f: impl FnMut(Range<usize>, &Part) -> Option<Part>,
    ) -> Result<Map, Refused> {
        Oracle::change(self, range, f)
    }

    fn replace(&mut self, range: Range<usize>, payload: Part) -> Result<Map, (Refused, Part)> {
        Oracle::replace(self, range, payload)
    }

    fn set(&mut self, range: Range<usize>, payload: Part) -> Result<Map, (Refused, Part)> {
        Oracle::set(self, range, payload)
    }

    fn relocate(
        &mut self,
        from: Range<usize>,
        to: usize,
        f: impl FnMut(Range<usize>, &Part) -> Part,
    ) -> Result<Map, Refused> {
        Oracle::relocate(self, from, to, f)
    }

    fn reserve(&mut self, range: Range<usize>) -> Result<Self::Reservation, Refused> {
        Oracle::reserve(self, range)
    }

    fn commit(&mut self, reservation: Self::Reservation, payload: Part) {
        Oracle::commit(self, reservation, payload);
    }

    fn roll_back(&mut self, reservation: Self::Reservation) {
        Oracle::roll_back(self, reservation);
    }

    fn exclude(&mut self, range: Range<usize>) -> Result<(Self::Exclusion, Map), Refused> {
        let exclusion = Oracle::exclude(self, range)?;
        let held = self.map().into_iter().filter(|(vma, _)| exclusion.vmas().contains(vma));
        let held = held.collect();
        Ok((exclusion, held))
    }

    fn release(&mut self, exclusion: Self::Exclusion) {
        Oracle::release(self, exclusion);
    }

    fn fork(
        &mut self,
        f: impl FnMut(Range<usize>, &Part) -> Option<Part>,
    ) -> Result<Self, Refused> {
        Oracle::fork(self, f)
    }

    fn find_gap(&mut self, search: &Search) -> Result<Range<usize>, NoGap> {
        Oracle::find_gap(self, search)
    }

    fn get(&mut self, addr: usize) -> Option<(Range<usize>, Part)> {
        Oracle::get(self, addr).map(|(range, part)| (range, part.clone()))
    }

    fn read_at_or_after(&mut self, addr: usize) -> Option<(Range<usize>, Part)> {
        Oracle::read_at_or_after(self, addr).map(|(range, part)| (range, part.clone()))
    }

    fn map(&mut self) -> Map {
        self.iter().map(|(range, part)| (range, part.clone())).collect()
    }

    fn named(&mut self) -> Option<Vec<Named>> {
        None
    }

    fn find(&mut self, _id: VmaId) -> Option<Range<usize>> {
        None
    }

    fn is_reserved(&mut self, addr: usize) -> bool {
        self.reserved().any(|range| range.contains(&addr))
    }

    fn end(&mut self) {}

    fn entries(&self) -> Option<usize> {
        Some(self.iter().count() + self.reserved().count())
    }
}

//! A sequential address space, as plain as it can be: what pervma must agree with.
//!
//! It is one sorted `Vec` without locks, and every operation looks at every entry. Tests run the
//! same operations here and on [`pervma`](https://docs.rs/pervma) and compare results, errors
//! included.
//!
//! ```
//! use pervma_oracle::{Oracle, Payload, Refused};
//!
//! /// A place in a file.
//! #[derive(Debug, PartialEq)]
//! struct File(usize);
//!
//! impl Payload for File {
//!     fn split(&self, offset: usize) -> Option<(Self, Self)> {
//!         Some((File(self.0), File(self.0 + offset)))
//!     }
//!     fn merge(&self, len: usize, next: &Self) -> Option<Self> {
//!         (self.0 + len == next.0).then(|| File(self.0))
//!     }
//! }
//!
//! let mut oracle = Oracle::new(4096);
//! oracle.insert(0x1000..0x4000, File(0)).unwrap();
//! let overlap = Refused::Overlap(0x1000..0x4000);
//! assert_eq!(oracle.insert(0x0..0x2000, File(7)), Err((overlap, File(7))));
//!
//! assert_eq!(oracle.remove(0x2000..0x3000), Ok(vec![(0x2000..0x3000, File(0x1000))]));
//! assert!(oracle.iter().eq([(0x1000..0x2000, &File(0)), (0x3000..0x4000, &File(0x2000))]));
//! ```
#![forbid(unsafe_code)]

use std::mem;
use std::ops::Range;

/// How a payload is split and merged with its VMA.
pub trait Payload: Sized {
    /// Returns the payloads of the two parts of a VMA that is split `offset` bytes from its start,
    /// or `None` if it cannot be split there.
    fn split(&self, offset: usize) -> Option<(Self, Self)>;

    /// Returns the payload of this VMA, `len` bytes long, merged with the VMA that begins where it
    /// ends, or `None` to keep them apart.
    fn merge(&self, len: usize, next: &Self) -> Option<Self>;
}

/// Why an operation changed nothing. Of several reasons, the first in this list is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The range, from the first number to the second, ends before it starts.
    Overflow(usize, usize),
    /// The range, at this address, holds no byte.
    Empty(usize),
    /// This end of the range is no multiple of the granularity. The start is checked first.
    Unaligned(usize),
    /// Nothing is in the whole range that was asked for, or, for an update, in this first part.
    NotMapped(Range<usize>),
    /// This reservation, the first of them, has a byte in the range.
    Reserved(Range<usize>),
    /// This VMA, the first of those that are excluded, has a byte in the range.
    Excluded(Range<usize>),
    /// This VMA or reservation, the first of them, is in the way.
    Overlap(Range<usize>),
    /// This VMA, the first of them, would have to be split where its payload cannot be.
    PartlyCovered(Range<usize>),
}

/// The gap that [`Oracle::find_gap`] looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The size in bytes.
    pub size: usize,
    /// The alignment of the start. Less than the granularity means the granularity.
    pub align: usize,
    /// The addresses in which the gap may lie.
    pub within: Range<usize>,
    /// Whether the highest gap is wanted and not the lowest.
    pub top_down: bool,
}

/// Why no gap was found. Of several reasons, the first in this list is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoGap {
    /// The size is 0 or no multiple of the granularity.
    Size(usize),
    /// The alignment is no power of two.
    Alignment(usize),
    /// There is no such gap.
    NotFound,
}

/// Disjoint ranges of addresses, each mapped with a payload or reserved.
#[derive(Debug)]
pub struct Oracle<P> {
    granularity: usize,
    /// In ascending order, disjoint.
    entries: Vec<Entry<P>>,
}

#[derive(Debug)]
struct Entry<P> {
    range: Range<usize>,
    /// `None` if it is reserved.
    payload: Option<P>,
    excluded: bool,
}

/// A range that is kept for a payload to come, until it is given to [`Oracle::commit`] or
/// [`Oracle::roll_back`].
#[derive(Debug)]
#[must_use]
pub struct Reservation(Range<usize>);

impl Reservation {
    /// Returns the range that is reserved.
    pub fn range(&self) -> Range<usize> {
        self.0.clone()
    }
}

/// VMAs that nothing may change, until they are given to [`Oracle::release`].
#[derive(Debug)]
#[must_use]
pub struct Exclusion(Vec<Range<usize>>);

impl Exclusion {
    /// Returns the VMAs, in order of address.
    pub fn vmas(&self) -> &[Range<usize>] {
        &self.0
    }
}

/// Ranges with their payloads, in order of address.
pub type Removed<P> = Vec<(Range<usize>, P)>;

impl<P: Payload> Oracle<P> {
    /// Makes an empty space whose ranges are aligned to `granularity` bytes.
    #[must_use]
    pub fn new(granularity: usize) -> Self {
        Self { granularity, entries: Vec::new() }
    }

    /// Maps `range`, where nothing may be, and merges nothing.
    ///
    /// # Errors
    ///
    /// See [`Refused`]. The payload is given back.
    pub fn insert(&mut self, range: Range<usize>, payload: P) -> Result<(), (Refused, P)> {
        if let Err(refused) = self.check(&range).and_then(|()| self.check_free(&range)) {
            return Err((refused, payload));
        }
        self.add(range, Some(payload));
        Ok(())
    }

    /// Maps `range`, where nothing may be, and merges it with what touches it.
    ///
    /// # Errors
    ///
    /// See [`Refused`]. The payload is given back.
    pub fn insert_merging(&mut self, range: Range<usize>, payload: P) -> Result<(), (Refused, P)> {
        self.insert(range.clone(), payload)?;
        self.merge(&range);
        Ok(())
    }

    /// Unmaps the VMAs in `range`, beyond which none of them may reach, and returns what was there.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn remove_whole(&mut self, range: Range<usize>) -> Result<Removed<P>, Refused> {
        self.check(&range)?;
        self.check_mapped(&range)?;
        self.check_changeable(&range)?;
        let beyond =
            |entry: &&Entry<P>| entry.range.start < range.start || range.end < entry.range.end;
        if let Some(entry) = self.inside(&range).find(beyond) {
            return Err(Refused::PartlyCovered(entry.range.clone()));
        }
        Ok(self.take(&range))
    }

    /// Unmaps the VMAs that `keep` says `false` of, and returns them.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn retain(
        &mut self,
        keep: impl Fn(Range<usize>, &P) -> bool,
    ) -> Result<Removed<P>, Refused> {
        let unwanted = |entry: &Entry<P>| {
            entry.payload.as_ref().is_some_and(|payload| !keep(entry.range.clone(), payload))
        };
        let mut gone = self.entries.iter().filter(|entry| unwanted(entry));
        if let Some(entry) = gone.find(|entry| entry.excluded) {
            return Err(Refused::Excluded(entry.range.clone()));
        }
        let (gone, left) = mem::take(&mut self.entries).into_iter().partition(unwanted);
        self.entries = left;
        let gone: Vec<Entry<P>> = gone;
        Ok(gone.into_iter().filter_map(|entry| Some((entry.range, entry.payload?))).collect())
    }

    /// Unmaps everything in `range`, split at its edges, and returns what was there.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn remove(&mut self, range: Range<usize>) -> Result<Removed<P>, Refused> {
        self.check(&range)?;
        self.check_mapped(&range)?;
        self.check_changeable(&range)?;
        self.split(&range)?;
        Ok(self.take(&range))
    }

    /// Unmaps everything in `range`, split at its edges, reserves the whole range, and returns what
    /// was there.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn remove_reserving(
        &mut self,
        range: Range<usize>,
    ) -> Result<(Removed<P>, Reservation), Refused> {
        let removed = self.remove(range.clone())?;
        self.add(range.clone(), None);
        Ok((removed, Reservation(range)))
    }

    /// Gives every part in `range`, split at its edges, the payload that `f` makes of it, merges
    /// the parts and what touches them, and returns what was there.
    ///
    /// ```
    /// # use pervma_oracle::{Oracle, Payload};
    /// #[derive(Clone, Debug, PartialEq)]
    /// struct Access(char);
    ///
    /// impl Payload for Access {
    ///     fn split(&self, _: usize) -> Option<(Self, Self)> {
    ///         Some((self.clone(), self.clone()))
    ///     }
    ///     fn merge(&self, _: usize, next: &Self) -> Option<Self> {
    ///         (self == next).then(|| self.clone())
    ///     }
    /// }
    ///
    /// let mut oracle = Oracle::new(1);
    /// oracle.insert(0..10, Access('w')).unwrap();
    /// oracle.insert(10..20, Access('r')).unwrap();
    /// let old = oracle.update(6..10, |_, _| Access('r'));
    /// assert_eq!(old, Ok(vec![(6..10, Access('w'))]));
    /// assert!(oracle.iter().eq([(0..6, &Access('w')), (6..20, &Access('r'))]));
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn update(
        &mut self,
        range: Range<usize>,
        mut f: impl FnMut(Range<usize>, &P) -> P,
    ) -> Result<Removed<P>, Refused> {
        self.check(&range)?;
        self.check_no_hole(&range)?;
        self.check_changeable(&range)?;
        self.split(&range)?;
        let old = self.take(&range);
        for (part, payload) in &old {
            self.add(part.clone(), Some(f(part.clone(), payload)));
        }
        self.merge(&range);
        Ok(old)
    }

    /// Gives every part in `range`, split at its edges, the payload that `f` makes of it, or unmaps
    /// it where that is none; merges the parts and what touches them, and returns what was there.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn change(
        &mut self,
        range: Range<usize>,
        mut f: impl FnMut(Range<usize>, &P) -> Option<P>,
    ) -> Result<Removed<P>, Refused> {
        let old = self.remove(range.clone())?;
        for (part, payload) in &old {
            if let Some(new) = f(part.clone(), payload) {
                self.add(part.clone(), Some(new));
            }
        }
        self.merge(&range);
        Ok(old)
    }

    /// Maps `range` in place of whatever is there, split at its edges, merges nothing, and returns
    /// what was there.
    ///
    /// # Errors
    ///
    /// See [`Refused`]. The payload is given back.
    pub fn replace(&mut self, range: Range<usize>, payload: P) -> Result<Removed<P>, (Refused, P)> {
        let possible = self.check(&range).and_then(|()| self.check_changeable(&range));
        if let Err(refused) = possible.and_then(|()| self.split(&range)) {
            return Err((refused, payload));
        }
        let old = self.take(&range);
        self.add(range, Some(payload));
        Ok(old)
    }

    /// Maps `range` in place of whatever is there, split at its edges, merges it with what touches
    /// it, and returns what was there.
    ///
    /// # Errors
    ///
    /// See [`Refused`]. The payload is given back.
    pub fn set(&mut self, range: Range<usize>, payload: P) -> Result<Removed<P>, (Refused, P)> {
        let old = self.replace(range.clone(), payload)?;
        self.merge(&range);
        Ok(old)
    }

    /// Moves everything in `from`, split at its edges, so that it starts at `to`, holes included,
    /// and returns what was in `from`.
    ///
    /// A part gets the payload that `f` makes of its new range and the old payload. The parts are
    /// merged with each other and with what they touch there.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn relocate(
        &mut self,
        from: Range<usize>,
        to: usize,
        mut f: impl FnMut(Range<usize>, &P) -> P,
    ) -> Result<Removed<P>, Refused> {
        self.check(&from)?;
        let target = to..to.wrapping_add(from.end - from.start);
        self.check(&target)?;
        self.check_mapped(&from)?;
        self.check_changeable(&from)?;
        if overlap(&from, &target) {
            return Err(Refused::Overlap(from));
        }
        if let Some(entry) = self.inside(&target).next() {
            return Err(Refused::Overlap(entry.range.clone()));
        }
        self.split(&from)?;
        let old = self.take(&from);
        for (part, payload) in &old {
            let moved = part.start - from.start + to..part.end - from.start + to;
            self.add(moved.clone(), Some(f(moved, payload)));
        }
        self.merge(&target);
        Ok(old)
    }

    /// Reserves `range`, where nothing may be.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn reserve(&mut self, range: Range<usize>) -> Result<Reservation, Refused> {
        self.check(&range)?;
        self.check_free(&range)?;
        self.add(range.clone(), None);
        Ok(Reservation(range))
    }

    /// Maps what was reserved, and merges nothing.
    pub fn commit(&mut self, Reservation(range): Reservation, payload: P) {
        self.entries.retain(|entry| entry.range != range);
        self.add(range, Some(payload));
    }

    /// Frees what was reserved.
    pub fn roll_back(&mut self, Reservation(range): Reservation) {
        self.entries.retain(|entry| entry.range != range);
    }

    /// Lets nothing change the VMAs that have a byte in `range` until they are released.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn exclude(&mut self, range: Range<usize>) -> Result<Exclusion, Refused> {
        self.check(&range)?;
        self.check_mapped(&range)?;
        self.check_changeable(&range)?;
        let mut vmas = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| overlap(&entry.range, &range)) {
            entry.excluded = true;
            vmas.push(entry.range.clone());
        }
        Ok(Exclusion(vmas))
    }

    /// Ends an exclusion.
    pub fn release(&mut self, Exclusion(vmas): Exclusion) {
        for entry in self.entries.iter_mut().filter(|entry| vmas.contains(&entry.range)) {
            entry.excluded = false;
        }
    }

    /// Makes a space with the payloads that `f` makes of those of this space, without the VMAs for
    /// which it makes none, and without reservations.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn fork(&self, mut f: impl FnMut(Range<usize>, &P) -> Option<P>) -> Result<Self, Refused> {
        self.check_not_excluded(&(0..usize::MAX))?;
        let mut fork = Self::new(self.granularity);
        for (range, payload) in self.iter() {
            if let Some(copy) = f(range.clone(), payload) {
                fork.add(range, Some(copy));
            }
        }
        Ok(fork)
    }

    /// Returns the lowest (or highest) free and aligned range of the size that was asked for: in
    /// the gaps in which one must fit (size + alignment - granularity bytes), or if there is none,
    /// in any.
    ///
    /// # Errors
    ///
    /// See [`NoGap`].
    pub fn find_gap(&self, search: &Search) -> Result<Range<usize>, NoGap> {
        let Search { size, align, ref within, top_down } = *search;
        if size == 0 || size % self.granularity != 0 {
            return Err(NoGap::Size(size));
        }
        if !align.is_power_of_two() {
            return Err(NoGap::Alignment(align));
        }
        let align = align.max(self.granularity);
        let fit = |gap: Range<usize>, min_len: usize| {
            let (start, end) = (gap.start.max(within.start), gap.end.min(within.end));
            if end.checked_sub(start)? < min_len {
                return None;
            }
            let aligned = if top_down {
                end.checked_sub(size)? / align * align
            } else {
                start.checked_next_multiple_of(align)?
            };
            let fits = start <= aligned && aligned.checked_add(size)? <= end;
            fits.then(|| aligned..aligned + size)
        };
        let find = |min_len| {
            let mut fitting = self.gaps().into_iter().filter_map(|gap| fit(gap, min_len));
            if top_down { fitting.next_back() } else { fitting.next() }
        };
        // Where it must fit, or else anywhere.
        let found = size.checked_add(align - self.granularity).and_then(find);
        found.or_else(|| find(size)).ok_or(NoGap::NotFound)
    }

    /// Returns the VMA that holds `addr`.
    #[must_use]
    pub fn get(&self, addr: usize) -> Option<(Range<usize>, &P)> {
        self.iter().find(|(vma, _)| vma.contains(&addr))
    }

    /// Returns the first VMA that ends above `addr`.
    #[must_use]
    pub fn read_at_or_after(&self, addr: usize) -> Option<(Range<usize>, &P)> {
        self.iter().find(|(vma, _)| vma.end > addr)
    }

    /// Returns all VMAs, in order of address.
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &P)> {
        self.entries.iter().filter_map(|entry| Some((entry.range.clone(), entry.payload.as_ref()?)))
    }

    /// Returns all reservations, in order of address.
    pub fn reserved(&self) -> impl Iterator<Item = Range<usize>> {
        self.entries.iter().filter(|entry| entry.payload.is_none()).map(|entry| entry.range.clone())
    }

    /// The free ranges, in order of address.
    fn gaps(&self) -> Vec<Range<usize>> {
        let starts = [0].into_iter().chain(self.entries.iter().map(|entry| entry.range.end));
        let ends = self.entries.iter().map(|entry| entry.range.start).chain([usize::MAX]);
        starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
    }

    fn check(&self, range: &Range<usize>) -> Result<(), Refused> {
        if range.end < range.start {
            return Err(Refused::Overflow(range.start, range.end));
        }
        if range.start == range.end {
            return Err(Refused::Empty(range.start));
        }
        match [range.start, range.end].into_iter().find(|addr| addr % self.granularity != 0) {
            Some(addr) => Err(Refused::Unaligned(addr)),
            None => Ok(()),
        }
    }

    /// The entries with a byte in `range`, in order of address.
    fn inside(&self, range: &Range<usize>) -> impl Iterator<Item = &Entry<P>> {
        self.entries.iter().filter(move |entry| overlap(&entry.range, range))
    }

    /// Refuses a range with nothing in it. A reservation is something.
    fn check_mapped(&self, range: &Range<usize>) -> Result<(), Refused> {
        match self.inside(range).next() {
            Some(_) => Ok(()),
            None => Err(Refused::NotMapped(range.clone())),
        }
    }

    /// Refuses a range with a hole. A reservation is no hole.
    fn check_no_hole(&self, range: &Range<usize>) -> Result<(), Refused> {
        match self.gaps().into_iter().find(|gap| overlap(gap, range)) {
            Some(gap) => {
                Err(Refused::NotMapped(gap.start.max(range.start)..gap.end.min(range.end)))
            }
            None => Ok(()),
        }
    }

    /// Refuses a range in which something is reserved or excluded.
    fn check_changeable(&self, range: &Range<usize>) -> Result<(), Refused> {
        if let Some(entry) = self.inside(range).find(|entry| entry.payload.is_none()) {
            return Err(Refused::Reserved(entry.range.clone()));
        }
        self.check_not_excluded(range)
    }

    fn check_not_excluded(&self, range: &Range<usize>) -> Result<(), Refused> {
        match self.inside(range).find(|entry| entry.excluded) {
            Some(entry) => Err(Refused::Excluded(entry.range.clone())),
            None => Ok(()),
        }
    }

    /// Refuses a range with anything in it, and names the first entry.
    fn check_free(&self, range: &Range<usize>) -> Result<(), Refused> {
        match self.inside(range).next() {
            Some(entry) if entry.excluded => Err(Refused::Excluded(entry.range.clone())),
            Some(entry) => Err(Refused::Overlap(entry.range.clone())),
            None => Ok(()),
        }
    }

    fn add(&mut self, range: Range<usize>, payload: Option<P>) {
        self.entries.push(Entry { range, payload, excluded: false });
        self.entries.sort_by_key(|entry| entry.range.start);
    }

    /// Takes the VMAs out that lie in `range`, beyond which none of them reaches.
    fn take(&mut self, range: &Range<usize>) -> Removed<P> {
        let mut taken = Vec::new();
        for entry in mem::take(&mut self.entries) {
            match entry.payload {
                Some(payload) if overlap(&entry.range, range) => {
                    taken.push((entry.range, payload));
                }
                _ => self.entries.push(entry),
            }
        }
        taken
    }

    /// Splits the VMAs at the edges of `range`, or none of them.
    fn split(&mut self, range: &Range<usize>) -> Result<(), Refused> {
        let mut parts = Vec::new();
        for entry in self.inside(range) {
            let Range { start, end } = entry.range;
            let (left, right) = (start < range.start, range.end < end);
            let Some(payload) = &entry.payload else { continue };
            let cannot = || Refused::PartlyCovered(start..end);
            if left && right {
                let (a, rest) = payload.split(range.start - start).ok_or_else(cannot)?;
                let (b, c) = rest.split(range.end - range.start).ok_or_else(cannot)?;
                parts.push((start..range.start, a));
                parts.push((range.clone(), b));
                parts.push((range.end..end, c));
            } else if left || right {
                let at = if left { range.start } else { range.end };
                let (a, b) = payload.split(at - start).ok_or_else(cannot)?;
                parts.push((start..at, a));
                parts.push((at..end, b));
            }
        }
        self.entries.retain(|whole| !parts.iter().any(|(part, _)| overlap(part, &whole.range)));
        for (part, payload) in parts {
            self.add(part, Some(payload));
        }
        Ok(())
    }

    /// Merges, from left to right, the VMAs in `range` and those that touch it. What two of them
    /// become is merged with the next one, if that can be.
    fn merge(&mut self, range: &Range<usize>) {
        let concerned = |entry: &Entry<P>| {
            entry.range.start <= range.end && range.start <= entry.range.end && !entry.excluded
        };
        let mut all: Vec<Entry<P>> = Vec::new();
        for entry in mem::take(&mut self.entries) {
            if let Some(last) = all.last_mut()
                && last.range.end == entry.range.start
                && concerned(last)
                && concerned(&entry)
                && let Some(payload) = merged(last, &entry)
            {
                *last = Entry {
                    range: last.range.start..entry.range.end,
                    payload: Some(payload),
                    excluded: false,
                };
            } else {
                all.push(entry);
            }
        }
        self.entries = all;
    }
}

fn merged<P: Payload>(left: &Entry<P>, right: &Entry<P>) -> Option<P> {
    let len = left.range.end - left.range.start;
    left.payload.as_ref()?.merge(len, right.payload.as_ref()?)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

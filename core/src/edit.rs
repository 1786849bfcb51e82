//! Changing a space.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut, Range};

use crate::change::{
    Change, ExcludedVmas, Mapped, Neighbours, Nowhere, Placement, Refusal, Request, exclude,
    exclude_unwanted,
};
use crate::error::{ChangeError, EditError, ForkError, InsertError, WriteError};
use crate::fork::PreparedFork;
use crate::held::{HandlerScope, SlabScope};
use crate::host::DefaultPlatform;
use crate::map::{Map, MapWrite, Vmas};
use crate::mm::Turn;
use crate::payload::{AsPayload, Payload, SplitMerge, Whole};
use crate::platform::Platform;
use crate::range::{EVERYTHING, Span};
use crate::removed::RemovedVmas;
use crate::slots::{Attached, Entry, WriteLocked};
use crate::space::AddressSpace;
use crate::step::Step;
use crate::sync::keep;
use crate::view::View;

/// An edit: the mmap lock held for writing, from [`edit`](AddressSpace::edit) until it is
/// dropped.
///
/// A VMA that the edit inserts, removes or write-locks refuses readers until the edit ends;
/// all others go on being read. The end is one store, whatever the number of VMAs.
///
/// Waiting for the readers of a VMA happens inside the edit, as in Linux: other edits wait as
/// long. The space's own [`remove`](AddressSpace::remove), [`update`](AddressSpace::update),
/// [`replace`](AddressSpace::replace) and [`relocate`](AddressSpace::relocate) wait outside.
///
/// It dereferences to [`Vmas`], with all that looks at the space. Payloads that operations split or
/// merge away are dropped when the edit has ended, unless there is no memory to keep them. An edit
/// that is forgotten ([`core::mem::forget`]) is never over: the space cannot be edited again, and
/// dropping it waits forever.
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// let mut edit = space.edit()?;
/// edit.insert(0x1000..0x2000, "text")?;
/// edit.insert(0x2000..0x4000, "data")?;
/// drop(edit); // both appear at once
/// assert_eq!(*space.try_read(0x3fff)?, "data");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "an edit ends when it is dropped"]
#[doc(alias("mm_lock_seq", "vma_end_write_all", "mmap_write_unlock"))]
pub struct Edit<'s, T, P: Platform = DefaultPlatform> {
    map: MapWrite<'s, T, P>,
    /// Payloads that were split or merged away. Fields are dropped in order: after the edit.
    deferred_drops: Vec<T>,
}

impl<'s, T, P: Platform> Deref for Edit<'s, T, P> {
    type Target = Vmas<'s, T, P>;

    #[inline]
    fn deref(&self) -> &Vmas<'s, T, P> {
        &self.map
    }
}

impl<'s, T, P: Platform> Edit<'s, T, P> {
    pub(crate) fn map_write(&self) -> &MapWrite<'s, T, P> {
        &self.map
    }

    /// Maps `range` with `payload`, merging nothing. Readers are admitted when the edit ends.
    ///
    /// ```
    /// use pervma::{AddressSpace, ChangeError};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, vec![1])?;
    ///
    /// let refused = space.edit()?.insert(0x2000..0x4000, vec![2]).unwrap_err();
    /// assert_eq!(refused.kind, ChangeError::Overlap { existing: 0x1000..0x3000 });
    /// assert_eq!(refused.payload, [2]); // given back
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the range is empty, unaligned or ends before it starts; when something is mapped or
    /// reserved there ([`Overlap`](ChangeError::Overlap), or [`Excluded`](ChangeError::Excluded) if
    /// that is about to be changed); when memory runs out. Nothing has changed then, and the
    /// payload comes back.
    #[doc(alias("vma_mark_attached", "vma_link", "mmap_region"))]
    pub fn insert(&mut self, range: Range<usize>, payload: T) -> Result<(), InsertError<T>> {
        match self.map.map().span(range.clone()) {
            Ok(span) => self.map.insert(span, payload).map_err(|(kind, payload)| InsertError {
                kind,
                range,
                payload,
            }),
            Err(error) => Err(InsertError { kind: error.into(), range, payload }),
        }
    }

    /// Maps each range with its payload, one after the other, as [`insert`](Self::insert) does. In
    /// order of address that takes no search for each: the way to load many.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let pages = (0..1_000).map(|page| page * 0x2000).map(|at| (at..at + 0x1000, at));
    /// space.edit()?.insert_all(pages)?;
    /// assert_eq!(space.len(), 1_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// That of the first insertion that fails. Those before it are done, and nothing was taken from
    /// the iterator after it: given by reference, it has the rest.
    #[doc(alias("bulk", "extend", "from_iter"))]
    pub fn insert_all(
        &mut self,
        vmas: impl IntoIterator<Item = (Range<usize>, T)>,
    ) -> Result<(), InsertError<T>> {
        self.map.insert_all(vmas)
    }

    /// Maps `range` with `payload`, if nothing is there, and merges it with what touches it, as far
    /// as [`Payload::merge`] agrees. A VMA that has readers, or that another thread excludes, stays
    /// as it is. Waits for no reader.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x2000, "heap")?;
    /// edit.insert_merging(0x2000..0x3000, "heap")?;
    /// assert!(edit.iter().eq([(0x1000..0x3000, &"heap")]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`insert`](Self::insert).
    #[doc(alias("vma_merge_new_range", "vma_expand"))]
    pub fn insert_merging(&mut self, range: Range<usize>, payload: T) -> Result<(), InsertError<T>>
    where
        T: Payload,
    {
        self.put(range, payload, Mapped::Nothing, Neighbours::Merge).map(drop)
    }

    /// Unmaps every byte of `range`, waiting for readers, and hands out what was there, in order of
    /// address. VMAs that reach beyond the range are split; a part that is left above the range is
    /// a VMA of its own, which may need memory.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, 'a')?;
    /// space.edit()?.insert(0x5000..0x6000, 'b')?;
    ///
    /// let removed = space.edit()?.remove(0x2000..0x8000)?;
    /// assert_eq!((removed[0].range.clone(), removed[0].payload), (0x2000..0x3000, 'a'));
    /// assert_eq!((removed[1].range.clone(), removed[1].payload), (0x5000..0x6000, 'b'));
    /// assert_eq!(space.try_read(0x1fff)?.range(), 0x1000..0x2000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then.
    #[doc(alias("vma_mark_detached", "munmap", "do_vmi_munmap"))]
    pub fn remove(&mut self, range: Range<usize>) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        self.take(range, AsPayload)
    }

    /// As [`remove`](Self::remove), of whole VMAs: payloads of any type, since none is split.
    ///
    /// ```
    /// use pervma::{AddressSpace, ChangeError};
    ///
    /// struct Device; // no `Payload`
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, Device)?;
    /// let split = space.edit()?.remove_whole(0x2000..0x4000).err();
    /// assert_eq!(split, Some(ChangeError::PartlyCovered { vma: 0x1000..0x3000 }));
    /// assert_eq!(space.edit()?.remove_whole(0x1000..0x4000)?.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; [`PartlyCovered`](ChangeError::PartlyCovered) if a VMA reaches beyond
    /// the range. Nothing has changed then.
    pub fn remove_whole(&mut self, range: Range<usize>) -> Result<RemovedVmas<T>, ChangeError> {
        self.take(range, Whole)
    }

    /// Removes the VMAs that `keep` says `false` of, waiting for their readers, and hands them out
    /// in order of address. Those that stay are not touched, and may be read meanwhile.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x2000, "text")?;
    /// space.edit()?.insert(0x5000..0x6000, "stale")?;
    ///
    /// let removed = space.edit()?.retain(|_, payload| *payload != "stale")?;
    /// assert_eq!(removed[0].range, 0x5000..0x6000);
    /// assert_eq!(space.edit()?.iter().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the thread holds a guard of this space, another thread excludes readers from a VMA that
    /// is to go, or memory runs out. Nothing has changed then.
    pub fn retain(
        &mut self,
        keep: impl FnMut(Range<usize>, &T) -> bool,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        check_no_guard(self.map.map())?;
        let vmas = drained(exclude_unwanted(&self.map, false, keep))?;
        let request = Request::removal_anywhere();
        let mut change = Change::new(vmas, request, Whole, &mut self.deferred_drops);
        change.split(&mut Nowhere)?;
        change.finish(&mut self.map.cursor())
    }

    /// Changes the payload of every part of `range` to what `change` makes of it, waiting for
    /// readers; hands out what was there, in order of address. All of the range must be mapped.
    ///
    /// VMAs that reach beyond the range are split. Then, from left to right, the changed parts are
    /// merged with each other and with what touches them, as far as [`Payload::merge`] agrees. A
    /// VMA outside of the range that has readers, or that another thread excludes, stays as it is.
    ///
    /// The payloads' methods and `change` run when the readers have released, while the edit goes
    /// on. If one of them panics, the map is as it was.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "r")?;
    ///
    /// let before = space.edit()?.update(0x2000..0x3000, |_, _| "rw")?;
    /// assert_eq!((before[0].range.clone(), before[0].payload), (0x2000..0x3000, "r"));
    /// assert_eq!(space.edit()?.iter().count(), 3);
    ///
    /// space.edit()?.update(0x2000..0x3000, |_, _| "r")?;
    /// assert_eq!(space.edit()?.iter().count(), 1); // merged again
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then.
    #[doc(alias("vma_modify", "vma_merge", "split_vma", "mprotect_fixup"))]
    pub fn update(
        &mut self,
        range: Range<usize>,
        mut change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let request = Request::new(self.map.map().span(range)?, Mapped::Everything);
        let place = |part: Span, payload: &T| Some((part, change(part.range(), payload)));
        self.change_parts(request, AsPayload, place)
    }

    /// Changes the payload of every part of `range` to what `place` makes of it, or unmaps the part
    /// where that is `None`; splits and merges as `rules` say. Waits for readers; hands out what
    /// was there, in order of address. Holes are passed over.
    ///
    /// The rules and `place` run when the readers have released, while the edit goes on. If one of
    /// them panics, the map is as it was.
    ///
    /// ```
    /// use std::ops::Range;
    /// use pervma::{AddressSpace, SplitMerge};
    ///
    /// /// Any VMA may be split, its upper part says where, and none is merged.
    /// struct Pieces;
    /// impl SplitMerge<usize> for Pieces {
    ///     fn split(&mut self, of: &usize, _: Range<usize>, at: usize) -> Option<(usize, usize)> {
    ///         Some((*of, at))
    ///     }
    /// }
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, 7)?;
    /// space.edit()?.change(0x2000..0x8000, Pieces, |_, piece| Some(piece + 1))?;
    /// assert_eq!(*space.try_read(0x3000)?, 0x2001);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]; something must be mapped in the range. Nothing has changed then.
    pub fn change(
        &mut self,
        range: Range<usize>,
        rules: impl SplitMerge<T>,
        mut place: impl FnMut(Range<usize>, &T) -> Option<T>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        let request = Request::new(self.map.map().span(range)?, Mapped::Something);
        let place = |part: Span, payload: &T| Some((part, place(part.range(), payload)?));
        self.change_parts(request, rules, place)
    }

    /// Moves everything in `from` so that the range starts at `to`, holes included, waiting for
    /// readers. The payloads at the new place are what `change` makes of those at the old one;
    /// these are handed out.
    ///
    /// VMAs that reach beyond `from` are split, and the moved ones merged with what they touch, as
    /// in [`update`](Self::update).
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "heap")?;
    ///
    /// space.edit()?.relocate(0x2000..0x3000, 0x8000, |_, payload| payload)?;
    /// let space = space.edit()?;
    /// let ranges = space.iter().map(|(range, _)| range);
    /// assert!(ranges.eq([0x1000..0x2000, 0x8000..0x9000]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]: the range to move to must be free, and apart from `from`. Nothing has
    /// changed then.
    #[doc(alias("mremap", "move_vma", "copy_vma"))]
    pub fn relocate(
        &mut self,
        from: Range<usize>,
        to: usize,
        mut change: impl FnMut(Range<usize>, &T) -> T,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let from = self.map.map().span(from)?;
        let target = self.map.map().span(from.target(to))?;
        self.change_parts(
            Request::relocation(from, target),
            AsPayload,
            |part: Span, payload: &T| {
                let there = part.moved(from, target);
                Some((there, change(there.range(), payload)))
            },
        )
    }

    #[inline(always)]
    fn take(
        &mut self,
        range: Range<usize>,
        rules: impl SplitMerge<T>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        let span = self.map.map().span(range)?;
        check_no_guard(self.map.map())?;
        // A whole VMA, and nothing else: nothing to split, nothing to plan.
        match self.map.take_whole(span) {
            Some(payload) => Ok(RemovedVmas::one(span.range(), payload)),
            None => self.change_parts(Request::new(span, Mapped::Something), rules, Nowhere),
        }
    }

    fn change_parts(
        &mut self,
        request: Request,
        rules: impl SplitMerge<T>,
        mut placement: impl Placement<T>,
    ) -> Result<RemovedVmas<T>, ChangeError> {
        check_no_guard(self.map.map())?;
        let mut cursor = self.map.cursor();
        let vmas = drained(exclude(&mut cursor, &request, false))?;
        let mut change = Change::new(vmas, request, rules, &mut self.deferred_drops);
        change.split(&mut placement)?;
        change.finish(&mut cursor)
    }

    /// Maps `range` with `payload` in the place of whatever is mapped there, waiting for its
    /// readers; hands out what was there. Merges nothing. If splitting a payload panics,
    /// `payload` is dropped on the way, inside the edit.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, 1)?;
    ///
    /// let before = space.edit()?.replace(0x3000..0x5000, 2)?;
    /// assert_eq!((before[0].range.clone(), before[0].payload), (0x3000..0x4000, 1));
    /// assert_eq!(*space.try_read(0x4000)?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the payload comes back.
    #[doc(alias = "MAP_FIXED")]
    pub fn replace(
        &mut self,
        range: Range<usize>,
        payload: T,
    ) -> Result<RemovedVmas<T>, InsertError<T>>
    where
        T: Payload,
    {
        self.put(range, payload, Mapped::Anything, Neighbours::Stay)
    }

    /// As [`replace`](Self::replace), and merges the VMA with what touches it, as far as
    /// [`Payload::merge`] agrees: with equal attributes on both sides it is one VMA then. A
    /// neighbour that has readers, or that another thread excludes, stays as it is.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.set(0x1000..0x4000, 1)?;
    /// space.edit()?.set(0x2000..0x3000, 2)?;
    /// assert_eq!(space.edit()?.iter().count(), 3);
    ///
    /// let before = space.edit()?.set(0x2000..0x3000, 1)?;
    /// assert_eq!((before[0].range.clone(), before[0].payload), (0x2000..0x3000, 2));
    /// assert!(space.edit()?.iter().eq([(0x1000..0x4000, &1)]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ChangeError`]. Nothing has changed then, and the payload comes back.
    pub fn set(&mut self, range: Range<usize>, payload: T) -> Result<RemovedVmas<T>, InsertError<T>>
    where
        T: Payload,
    {
        self.put(range, payload, Mapped::Anything, Neighbours::Merge)
    }

    fn put(
        &mut self,
        range: Range<usize>,
        payload: T,
        mapped: Mapped,
        neighbours: Neighbours,
    ) -> Result<RemovedVmas<T>, InsertError<T>>
    where
        T: Payload,
    {
        let Self { map, deferred_drops } = self;
        let mut cursor = map.cursor();
        let prepared = map.map().span(range.clone()).map_err(ChangeError::from).and_then(|span| {
            if mapped != Mapped::Nothing {
                check_no_guard(cursor.map())?;
            }
            let request = Request::new(span, mapped);
            let vmas = drained(exclude(&mut cursor, &request, false))?;
            let mut change = Change::new(vmas, request, AsPayload, deferred_drops);
            change.split(&mut Nowhere)?;
            Ok(change)
        });
        let put = match prepared {
            Ok(mut change) => change.finish_replacing(&mut cursor, payload, neighbours),
            Err(kind) => Err((kind, payload)),
        };
        put.map_err(|(kind, payload)| InsertError { kind, range, payload })
    }

    /// Whether another thread excludes readers from a VMA in `range`: this edit cannot change it.
    /// In an edit from [`edit_range`](AddressSpace::edit_range) there is none in that range.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "buffer")?;
    /// let exclusion = space.exclude(0x1000..0x2000)?;
    /// std::thread::scope(|scope| {
    ///     let other = scope.spawn(|| Ok(space.edit()?.is_excluded(0x0..0x8000)));
    ///     let excluded: Result<bool, pervma::EditError> = other.join().unwrap();
    ///     assert_eq!(excluded, Ok(true));
    /// });
    /// # drop(exclusion);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_excluded(&self, range: Range<usize>) -> bool {
        let span = Span { start: range.start, end: range.end };
        self.map.entries(span).any(|entry| entry.is_excluded())
    }

    /// Write-locks the VMA that holds `addr`, waiting for its readers. The lock lasts until the
    /// edit ends, not only until the handle is dropped.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x2000, 1)?;
    ///
    /// let mut edit = space.edit()?;
    /// *edit.write(0x1000)? += 1;
    /// assert!(space.try_read(0x1000).is_err()); // until the edit ends
    /// drop(edit);
    /// assert_eq!(*space.try_read(0x1000)?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When nothing is mapped there, the address is reserved, another thread excludes the VMA's
    /// readers, or the thread holds a guard of this space.
    #[doc(alias("vma_start_write", "__vma_enter_locked", "__vma_start_exclude_readers"))]
    pub fn write(&mut self, addr: usize) -> Result<VmaMut<'_, T>, WriteError> {
        let vma = self.to_write(addr)?;
        if check_no_guard(self.map.map()).is_err() {
            return Err(WriteError::GuardHeld { addr });
        }
        let slots = self.map.map().slab().slots();
        let vma = vma.start_write(slots, self.map.section());
        Ok(VmaMut { vma: vma.ok_or(WriteError::Excluded { addr })? })
    }

    /// Write-locks the VMA that holds `addr` if it has no readers just now.
    ///
    /// ```
    /// use pervma::{AddressSpace, WriteError};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x2000, 1)?;
    ///
    /// let mut edit = space.edit()?;
    /// let reader = space.try_read(0x1000)?;
    /// let refused = edit.try_write(0x1000).err();
    /// assert_eq!(refused, Some(WriteError::WouldWait { addr: 0x1000 }));
    /// drop(reader);
    /// assert!(edit.try_write(0x1000).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When nothing is mapped there, the address is reserved, another thread excludes the VMA's
    /// readers, or it has readers; lookups of what lies behind it, or before the first of all,
    /// count as such.
    #[doc(alias = "vma_try_start_write")]
    pub fn try_write(&mut self, addr: usize) -> Result<VmaMut<'_, T>, WriteError> {
        let vma = self.to_write(addr)?;
        let slots = self.map.map().slab().slots();
        let vma = vma.try_start_write(slots, self.map.section());
        Ok(VmaMut { vma: vma.ok_or(WriteError::WouldWait { addr })? })
    }

    /// Write-locks the VMAs that overlap a range, but those that have readers just now or whose
    /// readers another thread excludes. Returns whether there are none of these.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x2000, 1)?;
    /// space.insert(0x2000..0x3000, 2)?;
    ///
    /// let mut edit = space.edit()?;
    /// let reader = space.try_read(0x1000)?;
    /// assert!(!edit.try_write_range(0x1000..0x3000));
    /// assert!(space.try_read(0x2000).is_err()); // it is locked, and stays so until the edit ends
    /// drop(reader);
    /// assert!(edit.try_write_range(0x1000..0x3000));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_write_range(&mut self, range: Range<usize>) -> bool {
        let (slots, section) = (self.map.map().slab().slots(), self.map.section());
        let (mut end, mut locks_all) = (range.end, true);
        // From the last to the first: that takes fewest searches.
        while range.start < end
            && let Some(entry) = self.map.floor(end - 1)
            && range.start < entry.span().end
        {
            let is_excluded = entry.is_excluded();
            end = entry.span().start;
            if let Some(vma) = entry.vma() {
                locks_all &= !is_excluded && vma.try_start_write(slots, section).is_some();
            }
        }
        locks_all
    }

    fn to_write(&self, addr: usize) -> Result<Attached<'s, '_, T>, WriteError> {
        let entry = self.map.holding(addr).ok_or(WriteError::NotMapped { addr })?;
        if entry.is_excluded() {
            return Err(WriteError::Excluded { addr });
        }
        entry.vma().ok_or(WriteError::Reserved { addr })
    }

    /// Ends the edit and goes on looking at the space, with no other edit in between. What the edit
    /// has split or merged away is dropped when the view ends.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x2000, "text")?;
    /// let view = edit.downgrade();
    /// assert_eq!(*space.try_read(0x1000)?, "text"); // readers are admitted
    /// assert_eq!(view.iter().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "mmap_write_downgrade")]
    pub fn downgrade(self) -> View<'s, T, P> {
        let Self { map, deferred_drops } = self;
        View::new(map.downgrade(), deferred_drops)
    }

    /// A copy of the space: `copy` makes the payload of each VMA's copy, or leaves it out. Every
    /// VMA is write-locked meanwhile, waiting for its readers, and stays so until the edit ends.
    /// Reserved ranges are not copied.
    ///
    /// The copy is on the same slab if that is shared, else on one of its own.
    ///
    /// ```
    /// let parent = pervma::AddressSpace::new(4096);
    /// parent.edit()?.insert(0x1000..0x2000, "text")?;
    /// parent.edit()?.insert(0x5000..0x6000, "dma buffer")?;
    ///
    /// let copied = |payload: &str| payload != "dma buffer";
    /// let child = parent.edit()?.fork(|_, payload| copied(payload).then_some(*payload))?;
    /// assert_eq!(*child.try_read(0x1000)?, "text");
    /// assert!(child.try_read(0x5000).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When another thread excludes readers from a VMA ([`AddressSpace::fork`] waits for that), the
    /// thread holds a guard of this space, or memory runs out. What was copied is dropped then,
    /// inside the edit.
    #[doc(alias("dup_mmap", "dup_mm", "VM_DONTCOPY"))]
    pub fn fork(
        &mut self,
        mut copy: impl FnMut(Range<usize>, &T) -> Option<T>,
    ) -> Result<AddressSpace<T, P>, ChangeError> {
        check_no_guard(self.map.map())?;
        if let Some(entry) = self.entries(EVERYTHING).find(Entry::is_excluded) {
            return Err(ChangeError::Excluded { vma: entry.span().range() });
        }
        if keep(Step::LockBeforeCopy) {
            self.map.start_write_all(EVERYTHING);
        }
        let child = AddressSpace::of(self.map.map().empty_copy());
        let copies = self.entries(EVERYTHING).filter_map(Entry::vma).filter_map(|vma| {
            let span = vma.span();
            if !keep(Step::LockBeforeCopy) {
                self.map.start_write_all(span);
            }
            Some((span.range(), copy(span.range(), vma.payload())?))
        });
        child.map().write().insert_all(copies)?;
        Ok(child)
    }
}

/// Refuses what could wait for a guard of its own thread.
#[inline]
fn check_no_guard<T, P: Platform>(map: &Map<T, P>) -> Result<(), EditError> {
    if map.state().holds_guard() { Err(EditError::GuardHeld) } else { Ok(()) }
}

/// What a change of an edit has excluded, once the readers have released it.
#[inline]
fn drained<'s, T, P: Platform>(
    excluded: Result<ExcludedVmas<'s, T, P>, Refusal<'s, '_, T>>,
) -> Result<ExcludedVmas<'s, T, P>, ChangeError> {
    match excluded {
        Ok(vmas) => {
            vmas.wait_drained(None);
            Ok(vmas)
        }
        Err(Refusal::Error(error)) => Err(error),
        Err(Refusal::Excluded(entry)) => Err(ChangeError::Excluded { vma: entry.span().range() }),
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for Edit<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Edit").field(&**self).finish()
    }
}

/// A write-locked VMA: it has no reader, and its payload may be changed.
///
/// It borrows the edit, so it is gone when the edit ends. The write lock lasts until then, not only
/// until the handle is dropped.
#[must_use]
#[doc(alias = "vm_lock_seq")]
pub struct VmaMut<'e, T> {
    vma: WriteLocked<'e, 'e, T>,
}

impl<T> VmaMut<'_, T> {
    /// The range of the VMA.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.edit()?.write(0x2000)?.range(), 0x1000..0x4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn range(&self) -> Range<usize> {
        self.vma.span().range()
    }
}

impl<T> Deref for VmaMut<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.vma.payload()
    }
}

impl<T> DerefMut for VmaMut<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.vma.payload_mut()
    }
}

impl<T: fmt::Debug> fmt::Debug for VmaMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmaMut").field("range", &self.range()).field("payload", &**self).finish()
    }
}

impl<T, P: Platform> AddressSpace<T, P> {
    /// Begins an edit: waits for the mmap lock for writing.
    ///
    /// ```
    /// use pervma::{AddressSpace, EditError};
    ///
    /// let space = AddressSpace::<u32>::new(4096);
    /// let edit = space.edit()?;
    /// assert_eq!(space.edit().err(), Some(EditError::OwnEdit)); // it would wait for itself
    /// # Ok::<(), EditError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the thread edits this space already, or holds a guard of it. A thread's guards are
    /// known for up to four spaces at a time, and up to 16,383 in each; more of one take the place
    /// of another space.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias("mmap_write_lock", "mmap_lock"))]
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn edit(&self) -> Result<Edit<'_, T, P>, EditError> {
        self.check_may_wait()?;
        Ok(Edit { map: self.map().write(), deferred_drops: Vec::new() })
    }

    /// Begins an edit if that needs no waiting: `None` if another thread edits or views the space,
    /// or this thread does, or holds a guard of it.
    ///
    /// ```
    /// let space = pervma::AddressSpace::<u32>::new(4096);
    /// let edit = space.try_edit();
    /// assert!(edit.is_some() && space.try_edit().is_none());
    /// ```
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope): an edit's changes may wait.
    #[doc(alias = "mmap_write_trylock")]
    pub fn try_edit(&self) -> Option<Edit<'_, T, P>> {
        HandlerScope::<P>::assert_may_wait();
        self.check_may_wait().ok()?;
        Some(Edit { map: self.map().try_write()?, deferred_drops: Vec::new() })
    }

    /// Begins an edit, waiting for the mmap lock at most until `deadline`: `None` if that has
    /// passed. It waits as [`edit`](Self::edit) does, and tries at least once.
    ///
    /// It does not wait for exclusions, which operations of the edit may meet; see
    /// [`edit_range_until`](Self::edit_range_until).
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// let space = pervma::AddressSpace::new(4096);
    /// let Some(mut edit) = space.edit_until(Instant::now() + Duration::from_secs(1))? else {
    ///     return Err("the space is busy".into());
    /// };
    /// edit.insert(0x1000..0x2000, "text")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`edit`](Self::edit).
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias = "mmap_write_lock_killable")]
    pub fn edit_until(&self, deadline: P::Deadline) -> Result<Option<Edit<'_, T, P>>, EditError> {
        self.check_may_wait()?;
        let map = self.map().write_until(deadline);
        Ok(map.map(|map| Edit { map, deferred_drops: Vec::new() }))
    }

    /// Begins an edit in which no other thread excludes a VMA of `range`: no operation on this
    /// range is refused as [excluded](ChangeError::Excluded). Waits for the exclusions that there
    /// are, not in an edit, and for no reader.
    ///
    /// Exclusions of this range that others ask for meanwhile, or changes by
    /// [`remove`](Self::remove) and the like, wait until this edit has ended. So a thread that has
    /// an exclusion must not wait for another thread that asks for one. They wait for one edit of a
    /// space at a time: while another waits for exclusions, in whatever range, new ones can
    /// overtake this edit.
    ///
    /// ```
    /// use std::thread;
    /// use pervma::AddressSpace;
    ///
    /// let space = AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "buffer")?;
    /// let exclusion = space.exclude(0x2000..0x3000)?;
    /// thread::scope(|scope| {
    ///     let remover = scope.spawn(|| space.edit_range(0x1000..0x3000)?.remove(0x1000..0x3000));
    ///     drop(exclusion); // until here it waits
    ///     assert_eq!(remover.join().unwrap().unwrap().len(), 1);
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the range cannot be used, the thread edits this space already, holds a guard of it, or
    /// has an exclusion in it.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    pub fn edit_range(&self, range: Range<usize>) -> Result<Edit<'_, T, P>, ChangeError> {
        self.edit_span(self.map().span(range)?)
    }

    /// As [`edit_range`](Self::edit_range), waiting at most until `deadline`: `None` if that has
    /// passed. It tries at least once.
    ///
    /// ```
    /// use std::time::Instant;
    ///
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "buffer")?;
    /// let at_once = || Ok(space.edit_range_until(0..0x3000, Instant::now())?.is_some());
    /// let exclusion = space.exclude(0x2000..0x3000)?;
    /// std::thread::scope(|scope| {
    ///     let refused: Result<bool, pervma::ChangeError> = scope.spawn(at_once).join().unwrap();
    ///     assert_eq!(refused, Ok(false));
    /// });
    /// drop(exclusion);
    /// assert_eq!(at_once(), Ok(true));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`edit_range`](Self::edit_range).
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    pub fn edit_range_until(
        &self,
        range: Range<usize>,
        deadline: P::Deadline,
    ) -> Result<Option<Edit<'_, T, P>>, ChangeError> {
        let span = self.map().span(range)?;
        self.check_may_wait_for_exclusions()?;
        Ok(self.edit_unexcluded_until(span, Some(deadline)))
    }

    fn edit_span(&self, span: Span) -> Result<Edit<'_, T, P>, ChangeError> {
        self.check_may_wait_for_exclusions()?;
        Ok(self.edit_unexcluded(span))
    }

    /// Refuses what would wait for the calling thread.
    fn check_may_wait_for_exclusions(&self) -> Result<(), ChangeError> {
        self.check_may_wait()?;
        if self.map().state().holds_exclusion() {
            return Err(ChangeError::OwnExclusion);
        }
        Ok(())
    }

    /// Begins an edit in which no thread excludes a VMA of `span`.
    fn edit_unexcluded(&self, span: Span) -> Edit<'_, T, P> {
        let edit = self.edit_unexcluded_until(span, None);
        edit.unwrap_or_else(|| unreachable!("there is no deadline"))
    }

    /// As [`edit_unexcluded`](Self::edit_unexcluded); `None` if `deadline` came first.
    fn edit_unexcluded_until(
        &self,
        span: Span,
        deadline: Option<P::Deadline>,
    ) -> Option<Edit<'_, T, P>> {
        let mut turn = None;
        let map = self.write_unexcluded(span, deadline, &mut turn);
        if let Some(turn) = turn {
            self.map().state().end_turn(turn);
        }
        Some(Edit { map: map?, deferred_drops: Vec::new() })
    }

    fn write_unexcluded<'s>(
        &'s self,
        span: Span,
        deadline: Option<P::Deadline>,
        turn: &mut Option<Turn<'s, P>>,
    ) -> Option<MapWrite<'s, T, P>> {
        loop {
            let map = match deadline {
                None => self.map().write(),
                Some(deadline) => self.map().write_until(deadline)?,
            };
            let Some(entry) = map.entries(span).find(Entry::is_excluded) else { return Some(map) };
            // While another edit has the turn, waiting for other exclusions perhaps, this one waits
            // without.
            if turn.is_none() {
                *turn = self.map().state().try_turn();
            }
            if let Some(turn) = turn {
                map.section().wait_in_turn(turn, span);
            }
            if let Some(waiter) = entry.prepare_wait()
                && !waiter.wait::<P>(map, deadline)
            {
                return None;
            }
        }
    }

    /// A copy of the space, as by [`Edit::fork`], for which it waits until no other thread excludes
    /// a VMA.
    ///
    /// ```
    /// let parent = pervma::AddressSpace::new(4096);
    /// parent.insert(0x1000..0x2000, "text")?;
    /// let child = parent.fork(|_, payload| Some(*payload))?;
    /// assert_eq!(*child.try_read(0x1000)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the thread edits this space already, holds a guard of it or has an exclusion in it, or
    /// memory runs out.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias("dup_mmap", "dup_mm"))]
    pub fn fork(
        &self,
        copy: impl FnMut(Range<usize>, &T) -> Option<T>,
    ) -> Result<AddressSpace<T, P>, ChangeError> {
        self.edit_span(EVERYTHING)?.fork(copy)
    }

    /// Prepares the space for fork(2), which the running thread is going to call: waits for edits,
    /// views and exclusions of others, and lets none begin until the result is dropped. It waits
    /// for no reader, however long that reads, unless one of those waits for it.
    ///
    /// Without it, a child cannot use the space: it may find a lock held by a thread that is not
    /// there. It may only [abandon](Self::abandon_after_fork) it. Spaces on one slab are prepared
    /// each; one that is not can only be abandoned in the child, and does not harm the others. To
    /// prepare several, prepare them in the same order everywhere, as with other locks.
    ///
    /// A thread drops its own guards, views and exclusions of the space before: others may wait for
    /// these inside the edit that it would wait for. A handler of `pthread_atfork(3)` cannot drop
    /// what its caller holds, so there the child abandons the space, as after other errors.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "text")?;
    /// let prepared = space.prepare_fork()?;
    /// assert!(space.try_read(0x1000).is_ok()); // readers go on
    /// assert!(space.edit().is_err());
    /// prepared.parent(); // or `child`, in the child
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the thread would wait for itself: it edits this space, excludes a part of it, or holds
    /// a guard or a view of it; in a [`HandlerScope`]; and where the platform cannot do it
    /// ([`Platform::FORKS`]).
    pub fn prepare_fork(&self) -> Result<PreparedFork<'_, T, P>, ForkError> {
        if !P::FORKS {
            return Err(ForkError::Unsupported);
        }
        if HandlerScope::<P>::active() || SlabScope::<P>::active() {
            return Err(ForkError::InHandler);
        }
        self.check_may_wait()?;
        if self.map().state().holds_exclusion() {
            return Err(ForkError::OwnExclusion);
        }
        Ok(PreparedFork::new(self.edit_unexcluded(EVERYTHING).map))
    }

    /// Maps `range` with `payload`, merging nothing: an [`edit`](Self::edit) with one
    /// [insertion](Edit::insert).
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x3000, "text")?;
    /// assert_eq!(*space.try_read(0x2000)?, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`edit`](Self::edit) and [`Edit::insert`]. Nothing has changed then, and the payload
    /// comes back.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias("mmap", "MAP_FIXED_NOREPLACE"))]
    pub fn insert(&self, range: Range<usize>, payload: T) -> Result<(), InsertError<T>> {
        match self.edit() {
            Ok(mut edit) => edit.insert(range, payload),
            Err(error) => Err(InsertError { kind: error.into(), range, payload }),
        }
    }

    /// Maps `range` with `payload`, if nothing is there, and merges it with what touches it: an
    /// [`edit`](Self::edit) with one [merging insertion](Edit::insert_merging).
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x2000, "heap")?;
    /// space.insert_merging(0x2000..0x3000, "heap")?;
    /// assert_eq!(space.try_read(0x1000)?.range(), 0x1000..0x3000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`insert`](Self::insert).
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias("mmap", "vma_merge_new_range"))]
    pub fn insert_merging(&self, range: Range<usize>, payload: T) -> Result<(), InsertError<T>>
    where
        T: Payload,
    {
        match self.edit() {
            Ok(mut edit) => edit.insert_merging(range, payload),
            Err(error) => Err(InsertError { kind: error.into(), range, payload }),
        }
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The next edit checks the tree.
    #[test]
    fn many_are_inserted_as_one_after_the_other() {
        let rounds = if cfg!(miri) { 3 } else { 300 };
        let mut state = 1_u64;
        let mut roll = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for round in 0..rounds {
            let (space, mut expected) = (AddressSpace::new(1), BTreeMap::new());
            for batch in 0..6 {
                // Runs upwards from random places, some of them short, into what is there already;
                // and a reservation between, which ends while the run goes on.
                let mut at = roll(3_000);
                let mut reserved = None;
                let mut edit = space.edit().unwrap();
                let vmas: Vec<_> = (0..roll(80))
                    .map(|_| {
                        if roll(10) == 0 {
                            at = roll(3_000);
                        }
                        let start = at + roll(3);
                        at = start + 1 + roll(3);
                        (start..at, batch)
                    })
                    .collect();
                if roll(2) == 0 {
                    reserved = edit.reserve(at + 2..at + 5).ok();
                }
                // What it notes in the tree is to be forgotten where the tree changes.
                let search = crate::GapSearch::new(8 + roll(8)).aligned(512).within(0..3_000);
                let _ = edit.find_gap(&search);
                let ends_at = roll(80);
                let mut rest = vmas.iter().cloned().enumerate().map(|(number, vma)| {
                    if number == ends_at {
                        reserved = None;
                    }
                    vma
                });
                let done = edit.insert_all(&mut rest);
                let left = rest.count();
                let inserted = vmas.len() - left - usize::from(done.is_err());
                if let Err(refused) = done {
                    assert_eq!(refused.range, vmas[inserted].0, "round {round}");
                    assert!(matches!(refused.kind, ChangeError::Overlap { existing }
                        if existing.start < refused.range.end
                            && refused.range.start < existing.end));
                }
                drop(edit);
                let taken = vmas[..inserted]
                    .iter()
                    .map(|(range, batch)| (range.start, (range.end, *batch)));
                expected.extend(taken);
                let there = space.edit().unwrap();
                let found = there.iter().map(|(range, batch)| (range.start, (range.end, *batch)));
                assert!(found.eq(expected.clone()), "round {round}");
                assert_eq!(space.len(), expected.len());
            }
        }
    }
}

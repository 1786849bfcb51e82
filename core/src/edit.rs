//! Changing a space.

use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut, Range};

use smallvec::SmallVec;

use crate::change::{Change, Mapped, Refusal, Request, exclude};
use crate::error::{ChangeError, InsertError, WriteError};
use crate::facade::keep;
use crate::gap::{GapError, GapSearch};
use crate::ledger::Step;
use crate::mm::WriteLock;
use crate::payload::Payload;
use crate::platform::{Platform, with_default_platform};
use crate::range::Span;
use crate::reserve::Reservation;
use crate::slots::{Attached, Entry, Excluded, FreeSlot, WriteLocked};
use crate::space::AddressSpace;
use crate::tree::Editor;
use crate::view::View;

with_default_platform! {
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
    /// Payloads that operations cut or merge away are dropped when the edit has ended, unless there is
    /// no memory to keep them. An edit that is forgotten ([`core::mem::forget`]) is never over: nobody can edit the
    /// space again, and dropping the space waits for ever.
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
    pub struct Edit<'s, T, P> {
        space: &'s AddressSpace<T, P>,
        section: WriteLock<'s, P>,
        /// Payloads that were cut or merged away. Fields are dropped in order: after the section.
        leftover: Vec<T>,
    }
}

/// What stood in a range before it was changed: a VMA, or the part of one that lay in the range. Its
/// payload is the caller's to drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed<T> {
    /// Where it was.
    pub range: Range<usize>,
    /// What it held.
    pub payload: T,
}

/// What a change has taken out of a space, in order of address. One VMA takes no memory of its own, so
/// that removing it cannot fail for want of memory. `into_vec` makes a `Vec` of it.
pub type RemovedVmas<T> = SmallVec<[Removed<T>; 1]>;

impl<'s, T, P: Platform> Edit<'s, T, P> {
    pub(crate) fn new(space: &'s AddressSpace<T, P>, section: WriteLock<'s, P>) -> Self {
        Self { space, section, leftover: Vec::new() }
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
        match self.link(range.clone()) {
            Ok((span, slot)) => {
                slot.attach(&self.section, span, payload);
                Ok(())
            }
            Err(kind) => Err(InsertError { kind, range, payload }),
        }
    }

    /// Takes `range` while something outside is prepared, a system call for example: it is no gap
    /// any more, nothing can be inserted there, and readers are told
    /// [`Reserved`](crate::ReadError::Reserved). The reservation outlives the edit.
    ///
    /// See [`Reservation`] for a longer example.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let reservation = space.edit()?.reserve(0x1000..0x2000)?;
    /// reservation.commit("buffer").unwrap();
    /// assert_eq!(*space.try_read(0x1000)?, "buffer");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`insert`](Self::insert).
    pub fn reserve(&mut self, range: Range<usize>) -> Result<Reservation<'s, T, P>, ChangeError> {
        let (span, slot) = self.link(range)?;
        Ok(Reservation::new(self.space, span, Some(slot.reserve(&self.section, span))))
    }

    /// A slot for a free range, to be attached at once.
    #[inline]
    fn link(&self, range: Range<usize>) -> Result<(Span, FreeSlot<'s, T, P>), ChangeError> {
        let space = self.space;
        let span = space.span(range)?;
        match space.tree().editor(space.slab(), &self.section).link_free(span) {
            Ok(slot) => Ok((span, slot)),
            Err(unlinked) => Err(space.not_linked(&*self.section, span, unlinked)),
        }
    }

    /// Unmaps every byte of `range`, waiting for readers, and hands out what was there, in order of
    /// address. VMAs that reach beyond the range are cut; where a rest begins inside a VMA, it takes
    /// a slot more.
    ///
    /// ```
    /// use pervma::{AddressSpace, Removed};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, 'a')?;
    /// space.edit()?.insert(0x5000..0x6000, 'b')?;
    ///
    /// let removed = space.edit()?.remove(0x2000..0x8000)?;
    /// assert_eq!(*removed, [
    ///     Removed { range: 0x2000..0x3000, payload: 'a' },
    ///     Removed { range: 0x5000..0x6000, payload: 'b' },
    /// ]);
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
        let space = self.space;
        let span = space.span(range)?;
        space.check_no_guard(span)?;
        // A whole VMA, and nothing else: nothing to divide, no piece to put anywhere.
        match space.tree().editor(space.slab(), &self.section).take_whole(span) {
            Some(payload) => Ok(RemovedVmas::from_buf([Removed { range: span.range(), payload }])),
            None => self.change(Request::new(span, Mapped::Something), |_, _| None),
        }
    }

    /// Changes the payload of every part of `range` to what `change` makes of it, waiting for
    /// readers; hands out what was there, in order of address. All of the range must be mapped.
    ///
    /// VMAs that reach beyond the range are cut. Then, from left to right, the changed parts are
    /// merged with each other and with what touches them, as far as [`Payload::merge`] agrees. Other
    /// VMAs that somebody excludes are left alone.
    ///
    /// The payloads' methods and `change` run when the readers have left, while the edit goes on. If
    /// one of them panics, the map is as it was.
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
        let request = Request::new(self.space.span(range)?, Mapped::Everything);
        self.change(request, |part, payload| Some((part, change(part.range(), payload))))
    }

    /// Moves everything in `from` so that the range starts at `to`, holes included, waiting for
    /// readers. The payloads at the new place are what `change` makes of those at the old one; these
    /// are handed out.
    ///
    /// VMAs that reach beyond `from` are cut, and the moved ones merged with what they touch, as in
    /// [`update`](Self::update).
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
        let (request, moved) = self.space.relocation(from, to)?;
        self.change(request, |part, payload| {
            let there = moved(part);
            Some((there, change(there.range(), payload)))
        })
    }

    fn change(
        &mut self,
        request: Request,
        place: impl FnMut(Span, &T) -> Option<(Span, T)>,
    ) -> Result<RemovedVmas<T>, ChangeError>
    where
        T: Payload,
    {
        let (space, section) = (self.space, &self.section);
        space.check_no_guard(request.span)?;
        let mut excluded = Excluded::new(space.slab().slots(), false);
        let mut tree = space.tree().editor(space.slab(), section);
        exclude_now(space, &mut tree, &request, &mut excluded)?;
        let mut change = Change::new(space, request, &mut self.leftover);
        change.cut(&excluded, place)?;
        change.join(&mut tree, &mut excluded)?;
        change.prepare(&mut tree)?;
        Ok(change.commit(&mut tree, &mut excluded).0)
    }

    /// Maps `range` with `payload` in the place of whatever is mapped there, waiting for its
    /// readers; hands out what was there. Merges nothing. If dividing a payload panics, `payload` is
    /// dropped on the way, inside the edit.
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
        let (space, section) = (self.space, &self.section);
        let mut tree = space.tree().editor(space.slab(), section);
        let prepared = space.span(range.clone()).and_then(|span| {
            space.check_no_guard(span)?;
            let request = Request::new(span, Mapped::Anything);
            let mut excluded = Excluded::new(space.slab().slots(), false);
            exclude_now(space, &mut tree, &request, &mut excluded)?;
            let mut change = Change::new(space, request, &mut self.leftover);
            change.cut(&excluded, |_, _| None)?;
            change.add(&excluded)?;
            change.prepare(&mut tree)?;
            Ok((change, excluded))
        });
        match prepared {
            Ok((mut change, mut excluded)) => {
                change.fill(payload);
                Ok(change.commit(&mut tree, &mut excluded).0)
            }
            Err(kind) => Err(InsertError { kind, range, payload }),
        }
    }

    /// The range and payload of the VMA that holds `addr`, with no lock but the edit's.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x2000, "bss")?;
    /// assert_eq!(edit.get(0x1800), Some((0x1000..0x2000, &"bss")));
    /// assert_eq!(edit.get(0x2000), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "vma_lookup")]
    pub fn get(&self, addr: usize) -> Option<(Range<usize>, &T)> {
        self.space.get(&self.section, addr)
    }

    /// All VMAs, in order of address.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x5000..0x6000, "b")?;
    /// edit.insert(0x1000..0x3000, "a")?;
    /// assert!(edit.iter().eq([(0x1000..0x3000, &"a"), (0x5000..0x6000, &"b")]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "for_each_vma")]
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &T)> {
        self.space.vmas(&self.section, 0..usize::MAX)
    }

    /// The VMAs that overlap `range`, in order of address, each as a whole. The first of
    /// `addr..usize::MAX` is the one that holds `addr`, or else the next.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x3000, "a")?;
    /// edit.insert(0x5000..0x6000, "b")?;
    /// assert!(edit.overlapping(0x2000..0x5000).eq([(0x1000..0x3000, &"a")]));
    /// let next = edit.overlapping(0x3000..usize::MAX).next();
    /// assert_eq!(next, Some((0x5000..0x6000, &"b")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("find_vma", "find_vma_intersection", "for_each_vma_range"))]
    pub fn overlapping(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, &T)> {
        self.space.vmas(&self.section, range)
    }

    /// Finds room; see [`GapSearch`].
    ///
    /// ```
    /// use pervma::{AddressSpace, GapSearch};
    ///
    /// let space = AddressSpace::new(4096);
    /// let mut edit = space.edit()?;
    /// edit.insert(0x1000..0x3000, "a")?;
    /// let gap = edit.find_gap(&GapSearch::new(0x2000))?;
    /// assert_eq!(gap, 0x3000..0x5000);
    /// edit.insert(gap, "b")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When there is no such room, or the search asks for something impossible.
    #[doc(alias("vm_unmapped_area", "mas_empty_area"))]
    pub fn find_gap(&self, search: &GapSearch) -> Result<Range<usize>, GapError> {
        self.space.find_gap(&self.section, search)
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
    /// When nothing is mapped there, the address is reserved, somebody excludes the VMA's readers,
    /// or the thread holds a guard of this space.
    #[doc(alias("vma_start_write", "__vma_enter_locked", "__vma_start_exclude_readers"))]
    pub fn write(&mut self, addr: usize) -> Result<VmaMut<'_, T>, WriteError> {
        let vma = self.to_write(addr)?;
        if self.space.holds_guard() {
            return Err(WriteError::GuardHeld { addr });
        }
        let slots = self.space.slab().slots();
        let vma = vma.start_write(slots, &self.section).ok_or(WriteError::Excluded { addr })?;
        Ok(VmaMut { vma })
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
    /// When nothing is mapped there, the address is reserved, somebody excludes the VMA's readers,
    /// or it has readers; those count that look for what lies behind it, or before the first of all.
    #[doc(alias = "vma_try_start_write")]
    pub fn try_write(&mut self, addr: usize) -> Result<VmaMut<'_, T>, WriteError> {
        let vma = self.to_write(addr)?;
        let slots = self.space.slab().slots();
        let vma =
            vma.try_start_write(slots, &self.section).ok_or(WriteError::WouldWait { addr })?;
        Ok(VmaMut { vma })
    }

    fn to_write(&self, addr: usize) -> Result<Attached<'_, T>, WriteError> {
        let entry = self.space.holding(&self.section, addr);
        let entry = entry.ok_or(WriteError::NotMapped { addr })?;
        if entry.is_excluded() {
            return Err(WriteError::Excluded { addr });
        }
        entry.vma().ok_or(WriteError::Reserved { addr })
    }

    /// Ends the edit and goes on looking at the space, with no other edit in between. What the edit
    /// has cut or merged away is dropped when the view ends.
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
        let Self { space, section, leftover } = self;
        View::new(space, section.downgrade(), leftover)
    }

    /// A copy of the space: `copy` makes the payload of each VMA's copy, or leaves it out. Every VMA
    /// is write-locked meanwhile, waiting for its readers, and stays so until the edit ends. Reserved
    /// ranges are not copied.
    ///
    /// The copy is on the same slab if that is shared, else on one of its own.
    ///
    /// ```
    /// let parent = pervma::AddressSpace::new(4096);
    /// parent.edit()?.insert(0x1000..0x2000, "text")?;
    /// parent.edit()?.insert(0x5000..0x6000, "dma buffer")?;
    ///
    /// let child = parent.edit()?.fork(|_, &payload| (payload != "dma buffer").then_some(payload))?;
    /// assert_eq!(*child.try_read(0x1000)?, "text");
    /// assert!(child.try_read(0x5000).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When somebody excludes readers from a VMA, the thread holds a guard of this space, or memory
    /// runs out. What was copied is dropped then, inside the edit.
    #[doc(alias("dup_mmap", "dup_mm", "VM_DONTCOPY"))]
    pub fn fork(
        &mut self,
        mut copy: impl FnMut(Range<usize>, &T) -> Option<T>,
    ) -> Result<AddressSpace<T, P>, ChangeError> {
        let (space, section) = (self.space, &self.section);
        let everything = Span { start: 0, end: usize::MAX };
        space.check_no_guard(everything)?;
        let entries = || space.entries(section, everything);
        if let Some(entry) = entries().find(Entry::is_excluded) {
            return Err(ChangeError::Excluded { vma: entry.span().range() });
        }
        let lock = |span| {
            let mut all = Excluded::new(space.slab().slots(), false);
            let mut vmas = space.entries(section, span).filter_map(Entry::vma);
            all.push_all(section, |push| {
                vmas.all(push);
            });
            all.start_write(section);
        };
        if keep(Step::LockBeforeCopy) {
            lock(everything);
        }
        let child = space.empty_copy();
        for vma in entries().filter_map(Entry::vma) {
            let span = vma.span();
            if !keep(Step::LockBeforeCopy) {
                lock(span);
            }
            let Some(payload) = copy(span.range(), vma.payload()) else { continue };
            child.adopt(span, payload)?;
        }
        Ok(child)
    }
}

/// Excludes what a change of the running edit is about, and waits for its readers.
fn exclude_now<'s, T, P: Platform>(
    space: &'s AddressSpace<T, P>,
    tree: &mut Editor<'s, '_, T, P>,
    request: &Request,
    list: &mut Excluded<'s, T, P>,
) -> Result<(), ChangeError> {
    match exclude(space, tree, request, list) {
        Ok(()) => {
            list.wait(None);
            Ok(())
        }
        Err(Refusal::Error(error)) => Err(error),
        Err(Refusal::Excluded(entry)) => Err(ChangeError::Excluded { vma: entry.span().range() }),
    }
}

impl<T, P: Platform> fmt::Debug for Edit<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edit").field("space", self.space).finish_non_exhaustive()
    }
}

/// A write-locked VMA: nobody reads it, its payload may be changed.
///
/// It borrows the edit, so it is gone when the edit ends.
#[must_use]
#[doc(alias = "vm_lock_seq")]
pub struct VmaMut<'e, T> {
    vma: WriteLocked<'e, T>,
}

impl<T> VmaMut<'_, T> {
    /// The range of the VMA.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x4000, "text")?;
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

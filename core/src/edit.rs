//! Changing a space.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut, Range};

use crate::error::{InsertError, InsertErrorKind, OutOfMemory, RemoveError, WriteError};
use crate::mm::WriteSection;
use crate::platform::{Platform, with_default_platform};
use crate::range::Span;
use crate::slots::{Attached, WriteLocked};
use crate::space::AddressSpace;

with_default_platform! {
    /// An edit: the mmap lock held for writing, from [`edit`](AddressSpace::edit) until it is
    /// dropped.
    ///
    /// A VMA that the edit inserts, removes or write-locks refuses readers until the edit ends;
    /// all others go on being read. The end is one store, whatever the number of VMAs.
    ///
    /// Waiting for the readers of a VMA happens inside the edit, as in Linux: other edits wait as
    /// long. An edit that is forgotten ([`core::mem::forget`]) is never over: nobody can edit the
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
    pub struct Edit<'s, P, T> {
        space: &'s AddressSpace<P, T>,
        section: WriteSection<'s, T>,
        // The mmap lock belongs to the thread that took it, whatever raw lock it is.
        thread: PhantomData<*const ()>,
    }
}

/// A VMA taken out of its space: its range and its payload, which is the caller's to drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed<P> {
    /// The range it had.
    pub range: Range<usize>,
    /// What it held.
    pub payload: P,
}

impl<'s, P, T: Platform> Edit<'s, P, T> {
    pub(crate) fn new(space: &'s AddressSpace<P, T>, section: WriteSection<'s, T>) -> Self {
        Self { space, section, thread: PhantomData }
    }

    /// Maps `range` with `payload`. Readers are admitted when the edit ends.
    ///
    /// ```
    /// use pervma::{AddressSpace, InsertErrorKind};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, vec![1])?;
    ///
    /// let refused = space.edit()?.insert(0x2000..0x4000, vec![2]).unwrap_err();
    /// assert_eq!(refused.kind, InsertErrorKind::Overlap { existing: 0x1000..0x3000 });
    /// assert_eq!(refused.payload, [2]); // given back
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the range is empty, unaligned or ends before it starts; when something is mapped
    /// there; when memory runs out. Nothing has changed then, and the payload comes back.
    #[doc(alias("vma_mark_attached", "vma_link", "mmap_region"))]
    pub fn insert(&mut self, range: Range<usize>, payload: P) -> Result<(), InsertError<P>> {
        match self.try_insert(&range, payload) {
            Ok(()) => Ok(()),
            Err((kind, payload)) => Err(InsertError { kind, range, payload }),
        }
    }

    fn try_insert(&mut self, range: &Range<usize>, payload: P) -> Result<(), (InsertErrorKind, P)> {
        let span = match Span::check(range.clone(), self.space.granularity()) {
            Ok(span) => span,
            Err(error) => return Err((InsertErrorKind::Range(error), payload)),
        };
        if let Some(existing) = self.first_in(span) {
            return Err((InsertErrorKind::Overlap { existing: existing.span().range() }, payload));
        }
        self.space
            .tree()
            .insert(self.space.slab(), &self.section, span, payload)
            .map_err(|(OutOfMemory, payload)| (InsertErrorKind::OutOfMemory, payload))
    }

    /// Unmaps every VMA in `range`, waiting for their readers, and hands out what they held, in
    /// order of address.
    ///
    /// ```
    /// use pervma::{AddressSpace, RemoveError};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "a")?;
    /// space.edit()?.insert(0x5000..0x6000, "b")?;
    ///
    /// let cut = space.edit()?.remove(0x2000..0x6000);
    /// assert_eq!(cut.unwrap_err(), RemoveError::PartlyCovered { vma: 0x1000..0x3000 });
    ///
    /// let removed = space.edit()?.remove(0x0..0x6000)?;
    /// assert_eq!((removed[0].payload, removed[1].payload), ("a", "b"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the range is empty, unaligned or ends before it starts; when nothing is mapped in it;
    /// when it covers a VMA only in part, since a payload cannot be split yet; when the thread holds
    /// a guard of this space; when memory for the result runs out. Nothing has changed then.
    #[doc(alias("vma_mark_detached", "munmap"))]
    pub fn remove(&mut self, range: Range<usize>) -> Result<Vec<Removed<P>>, RemoveError> {
        let span =
            Span::check(range.clone(), self.space.granularity()).map_err(RemoveError::Range)?;
        let mut vmas = 0;
        let mut next = self.first_in(span);
        while let Some(vma) = next {
            if !span.covers(vma.span()) {
                return Err(RemoveError::PartlyCovered { vma: vma.span().range() });
            }
            vmas += 1;
            next = self.next_in(span, vma.span().end);
        }
        if vmas == 0 {
            return Err(RemoveError::NotMapped { range });
        }
        if self.space.holds_guard() {
            return Err(RemoveError::GuardHeld { range });
        }
        let mut removed = Vec::new();
        if removed.try_reserve_exact(vmas).is_err() {
            return Err(RemoveError::OutOfMemory { range });
        }
        while let Some(vma) = self.next_in(span, span.start) {
            let range = vma.span().range();
            let payload = self.space.tree().remove(self.space.slab(), &self.section, vma);
            removed.push(Removed { range, payload });
        }
        Ok(removed)
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
    pub fn get(&self, addr: usize) -> Option<(Range<usize>, &P)> {
        let vma = self.holding(addr)?;
        Some((vma.span().range(), vma.payload()))
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
    pub fn iter(&self) -> impl Iterator<Item = (Range<usize>, &P)> {
        let everything = Span { start: 0, end: usize::MAX };
        let mut from = 0;
        core::iter::from_fn(move || {
            let vma = self.next_in(everything, from)?;
            from = vma.span().end;
            Some((vma.span().range(), vma.payload()))
        })
    }

    /// Write-locks the VMA that holds `addr`, waiting for its readers. The lock lasts until the
    /// edit ends, not only until the handle is dropped.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x2000, 1)?;
    ///
    /// let mut edit = space.edit()?;
    /// *edit.start_write(0x1000)? += 1;
    /// assert!(space.try_read(0x1000).is_err()); // until the edit ends
    /// drop(edit);
    /// assert_eq!(*space.try_read(0x1000)?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When nothing is mapped there, or the thread holds a guard of this space.
    #[doc(alias("vma_start_write", "__vma_enter_locked", "__vma_start_exclude_readers"))]
    pub fn start_write(&mut self, addr: usize) -> Result<WriteGuard<'_, P>, WriteError> {
        let vma = self.holding(addr).ok_or(WriteError::NotMapped { addr })?;
        if self.space.holds_guard() {
            return Err(WriteError::GuardHeld { addr });
        }
        Ok(WriteGuard { vma: vma.start_write(&self.section) })
    }

    /// The VMA that holds `addr`.
    fn holding(&self, addr: usize) -> Option<Attached<'_, P>> {
        let vma = self.space.tree().floor(self.space.slab(), &self.section, addr)?;
        vma.span().contains(addr).then_some(vma)
    }

    /// The first VMA that has a byte in `span`.
    fn first_in(&self, span: Span) -> Option<Attached<'_, P>> {
        self.holding(span.start).or_else(|| self.next_in(span, span.start))
    }

    /// The first VMA that starts in `span` and not below `from`.
    fn next_in(&self, span: Span, from: usize) -> Option<Attached<'_, P>> {
        let vma = self.space.tree().first_from(self.space.slab(), &self.section, from)?;
        (vma.span().start < span.end).then_some(vma)
    }
}

impl<P, T: Platform> fmt::Debug for Edit<'_, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edit").field("space", self.space).finish_non_exhaustive()
    }
}

/// A write-locked VMA: nobody reads it, its payload may be changed.
///
/// It borrows the edit, so it is gone when the edit ends.
#[must_use]
#[doc(alias = "vm_lock_seq")]
pub struct WriteGuard<'e, P> {
    vma: WriteLocked<'e, P>,
}

impl<P> WriteGuard<'_, P> {
    /// The range of the VMA.
    pub fn range(&self) -> Range<usize> {
        self.vma.span().range()
    }
}

impl<P> Deref for WriteGuard<'_, P> {
    type Target = P;

    fn deref(&self) -> &P {
        self.vma.payload()
    }
}

impl<P> DerefMut for WriteGuard<'_, P> {
    fn deref_mut(&mut self) -> &mut P {
        self.vma.payload_mut()
    }
}

impl<P: fmt::Debug> fmt::Debug for WriteGuard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteGuard")
            .field("range", &self.range())
            .field("payload", &**self)
            .finish()
    }
}

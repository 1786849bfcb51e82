//! The address space: looking up and read-locking VMAs.

use alloc::sync::Arc;
use core::fmt;

use crate::edit::Edit;
use crate::error::{EditError, ReadError};
use crate::facade::{const_unless_model, keep};
use crate::guard::ReadGuard;
use crate::ledger::Step;
use crate::lock::Refused;
use crate::mm::Mm;
use crate::platform::{Platform, with_default_platform};
use crate::slab::{OWNER, Slab, SlabRef};
use crate::slots::{Admitted, Attached, Inside};
use crate::tree::Tree;

/// Walks in a lookup before it is told *locked*.
const MAX_WALKS: u32 = if cfg!(pervma_model) { 1 } else { 8 };

with_default_platform! {
    /// A concurrent address space: disjoint ranges of addresses, each a VMA with a payload `P` and
    /// a lock of its own.
    ///
    /// Lookups take no lock of the space. Changes are made in an [`Edit`]; one at a time, they
    /// hold up only the readers of the VMAs that they touch.
    ///
    /// ```
    /// use pervma::AddressSpace;
    ///
    /// static CODE: AddressSpace<&str> = AddressSpace::new(1);
    ///
    /// CODE.edit()?.insert(0x1000..0x10b7, "memcpy")?;
    /// let function = CODE.try_read(0x1010)?;
    /// assert_eq!((*function, function.range()), ("memcpy", 0x1000..0x10b7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "mm_struct")]
    pub struct AddressSpace<P, T> {
        mm: Mm<T>,
        tree: Tree,
        slab: SlabRef<P, T>,
        granularity: usize,
    }
}

#[cfg(any(feature = "std", pervma_model))]
impl<P> AddressSpace<P> {
    const_unless_model! {
        /// An empty space with a slab of its own. Ranges in it are aligned to `granularity` bytes.
        ///
        /// ```
        /// use pervma::AddressSpace;
        ///
        /// static PAGES: AddressSpace<u32> = AddressSpace::new(4096);
        /// assert!(PAGES.try_read(0).is_err());
        /// ```
        ///
        /// # Panics
        ///
        /// When `granularity` is not a power of two; at compile time for a `static`.
        #[must_use]
        pub fn new(granularity: usize) -> Self {
            Self::with_platform(granularity)
        }
    }
}

impl<P, T: Platform> AddressSpace<P, T> {
    const_unless_model! {
        /// An empty space with a slab of its own, on the platform `T`.
        ///
        /// ```
        /// use pervma::{AddressSpace, Std};
        ///
        /// let space = AddressSpace::<u32, Std>::with_platform(1);
        /// assert_eq!(space.granularity(), 1);
        /// ```
        ///
        /// # Panics
        ///
        /// When `granularity` is not a power of two.
        #[must_use]
        pub fn with_platform(granularity: usize) -> Self {
            assert!(granularity.is_power_of_two(), "the granularity is a power of two");
            Self {
                mm: Mm::new(OWNER),
                tree: Tree::new(),
                slab: SlabRef::Own(Slab::with_platform()),
                granularity,
            }
        }
    }

    /// An empty space that lives in `slab`, beside others. See [`Slab`] for an example.
    ///
    /// # Panics
    ///
    /// When `granularity` is not a power of two.
    #[must_use]
    pub fn on_slab(granularity: usize, slab: Arc<Slab<P, T>>) -> Self {
        assert!(granularity.is_power_of_two(), "the granularity is a power of two");
        Self {
            mm: Mm::new(slab.new_space()),
            tree: Tree::new(),
            slab: SlabRef::Shared(slab),
            granularity,
        }
    }

    /// What the ends of every range are multiples of, in bytes.
    ///
    /// ```
    /// assert_eq!(pervma::AddressSpace::<()>::new(4096).granularity(), 4096);
    /// ```
    pub fn granularity(&self) -> usize {
        self.granularity
    }

    /// The memory this space lives in.
    ///
    /// ```
    /// let space = pervma::AddressSpace::<()>::new(4096);
    /// space.edit()?.insert(0..4096, ())?;
    /// assert_eq!(space.slab().vmas().in_use, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn slab(&self) -> &Slab<P, T> {
        self.slab.get()
    }

    /// Finds and read-locks the VMA that holds `addr`, without waiting.
    ///
    /// It takes no lock, allocates nothing, runs no destructor and ends after a bounded number of
    /// steps, so it is legal in a signal handler, even in one that interrupted an edit of its own
    /// thread: VMAs that the edit has not write-locked can be read.
    ///
    /// ```
    /// use pervma::{AddressSpace, ReadError};
    ///
    /// let space = AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, String::from("heap"))?;
    ///
    /// assert_eq!(*space.try_read(0x2fff)?, "heap");
    /// assert_eq!(space.try_read(0x3000).err(), Some(ReadError::NotMapped { addr: 0x3000 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotMapped`](ReadError::NotMapped) only if nothing was mapped there throughout the lookup;
    /// while an edit is under way that cannot be known, and holes are [`Locked`](ReadError::Locked)
    /// too. [`OwnEdit`](ReadError::OwnEdit) in place of `Locked` on the thread that edits.
    /// [`Busy`](ReadError::Busy) at the limit of readers.
    #[doc(alias("lock_vma_under_rcu", "vma_start_read", "find_vma"))]
    #[inline]
    pub fn try_read(&self, addr: usize) -> Result<ReadGuard<'_, P, T>, ReadError> {
        match self.lookup(addr) {
            Ok((admitted, walks)) => Ok(ReadGuard::new(self, admitted, walks)),
            Err(ReadError::Locked { .. }) if self.mm.edited_by_me() => {
                Err(ReadError::OwnEdit { addr })
            }
            Err(error) => Err(error),
        }
    }

    /// Finds and read-locks the VMA that holds `addr`; waits for the edit that has it locked.
    ///
    /// It tries [`try_read`](Self::try_read) first and takes the mmap lock for reading only if
    /// that does not decide.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x2000, 7)?;
    /// assert_eq!(*space.read(0x1234)?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotMapped`](ReadError::NotMapped); [`Busy`](ReadError::Busy) at the limit of readers; and
    /// where the thread would wait for itself, [`OwnEdit`](ReadError::OwnEdit) or
    /// [`GuardHeld`](ReadError::GuardHeld).
    ///
    /// # Panics
    ///
    /// When it would have to wait inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias("lock_mm_and_find_vma", "vma_start_read_locked"))]
    pub fn read(&self, addr: usize) -> Result<ReadGuard<'_, P, T>, ReadError> {
        match self.try_read(addr) {
            Err(ReadError::Locked { .. }) => {}
            decided => return decided,
        }
        if self.holds_guard() {
            return Err(ReadError::GuardHeld { addr });
        }
        let section = self.mm.read();
        loop {
            match self.tree.read_locked(self.slab.get(), &section, addr) {
                Some(Ok(admitted)) if admitted.span().contains(addr) => {
                    return Ok(ReadGuard::new(self, admitted, MAX_WALKS + 1));
                }
                Some(Err(Refused::Busy)) => return Err(ReadError::Busy { addr }),
                // Nobody excludes or detaches while the mmap lock is held.
                Some(Err(Refused::Contended | Refused::Excluded | Refused::Detached)) => {}
                Some(Ok(_)) | None => return Err(ReadError::NotMapped { addr }),
            }
        }
    }

    /// One lookup: the read lock and the walks it took.
    #[inline(always)]
    fn lookup(&self, addr: usize) -> Result<(Admitted<'_, P, T>, u32), ReadError> {
        let slab = self.slab.get();
        let mut busy = false;
        for walk in 1..=MAX_WALKS {
            let before = self.mm.seq().glimpse();
            let Some(slot) = self.tree.walk(slab, addr) else {
                if self.mm.seq().undisturbed(before) {
                    return Err(ReadError::NotMapped { addr });
                }
                continue;
            };
            if slot.looks_locked(before) {
                continue;
            }
            let inside = match Inside::<P, T>::enter(slot) {
                Ok(inside) => inside,
                Err(refused) => {
                    busy |= refused == Refused::Busy;
                    continue;
                }
            };
            // The space before the sequence, both before the range: only then is the range ours
            // to read.
            let Some(admitted) = inside.admit(&self.mm) else { continue };
            let span = admitted.span();
            if span.contains(addr) || !keep(Step::CheckRange) {
                return Ok((admitted, walk));
            }
            // A VMA that ends before the address is its predecessor, if nothing has moved.
            if span.end <= addr && self.mm.seq().undisturbed(before) {
                return Err(ReadError::NotMapped { addr });
            }
        }
        Err(if busy { ReadError::Busy { addr } } else { ReadError::Locked { addr } })
    }

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
    /// known for up to four spaces at a time.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias("mmap_write_lock", "mmap_lock"))]
    pub fn edit(&self) -> Result<Edit<'_, P, T>, EditError> {
        if self.mm.edited_by_me() {
            return Err(EditError::OwnEdit);
        }
        if self.holds_guard() {
            return Err(EditError::GuardHeld);
        }
        Ok(Edit::new(self, self.mm.write()))
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What the thread's record of guards calls this space. A guard borrows the space, so it does
    /// not move while the record has it, unless the guard was forgotten.
    #[inline(always)]
    pub(crate) fn name(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    pub(crate) fn holds_guard(&self) -> bool {
        T::with_thread(|thread| thread.holds_guard(self.name())).unwrap_or(false)
    }

    /// Removes the VMA with the smallest address, in an edit of its own; waits for readers, also
    /// for those of other spaces that are late on a shared slab.
    fn pop(&self) -> Option<P> {
        let section = self.mm.write();
        let vma: Attached<'_, P> = self.tree.first_from(self.slab.get(), &section, 0)?;
        Some(self.tree.remove(self.slab.get(), &section, vma))
    }
}

impl<P, T: Platform> Drop for AddressSpace<P, T> {
    fn drop(&mut self) {
        /// Goes on when a payload's destructor panics.
        struct Rest<'a, P, T: Platform>(&'a AddressSpace<P, T>);

        impl<P, T: Platform> Drop for Rest<'_, P, T> {
            fn drop(&mut self) {
                while let Some(payload) = self.0.pop() {
                    drop(payload);
                }
            }
        }

        let rest = Rest(self);
        while let Some(payload) = rest.0.pop() {
            drop(payload);
        }
    }
}

impl<P, T: Platform> fmt::Debug for AddressSpace<P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("granularity", &self.granularity)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(pervma_model)))]
mod tests {
    use super::*;
    use crate::lock::LIMIT;

    #[test]
    fn at_the_limit_of_readers_one_more_is_told_busy() {
        let space = AddressSpace::new(1);
        space.edit().unwrap().insert(10..20, ()).unwrap();
        let slot = space.tree.walk(space.slab(), 10).unwrap();

        slot.pretend_readers(LIMIT - 2);
        let last = space.try_read(10).unwrap();
        assert_eq!(space.try_read(10).unwrap_err(), ReadError::Busy { addr: 10 });
        assert_eq!(space.read(10).unwrap_err(), ReadError::Busy { addr: 10 });
        drop(last);
        assert!(space.try_read(10).is_ok(), "a place is free again");
        slot.pretend_readers(0);
    }
}

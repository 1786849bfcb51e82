//! What a reader holds.

use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::{Deref, Range};

use crate::facade::ConstPtr;
use crate::platform::{Platform, with_default_platform};
use crate::slots::Admitted;
use crate::space::AddressSpace;

with_default_platform! {
    /// A read-locked VMA. Until it is dropped, its range and payload do not change and are not
    /// dropped.
    ///
    /// Dropping it takes no lock and runs no destructor of yours. It belongs to the thread that
    /// made it. A guard that is forgotten ([`core::mem::forget`]) keeps its VMA read-locked:
    /// removing that VMA, or dropping the space, waits for ever.
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.edit()?.insert(0x1000..0x3000, "stack")?;
    ///
    /// let vma = space.try_read(0x1fff)?;
    /// assert_eq!(*vma, "stack");
    /// assert_eq!(vma.range(), 0x1000..0x3000);
    /// assert_eq!(vma.walks(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "the VMA is unlocked at once when its guard is dropped"]
    #[doc(alias("vm_area_struct", "vma_end_read", "vma_refcount_put"))]
    pub struct ReadGuard<'s, P, T> {
        // Closed before the put: fields are dropped in this order.
        payload: ConstPtr<MaybeUninit<P>>,
        admitted: Admitted<'s, P, T>,
        space: &'s AddressSpace<P, T>,
        walks: u32,
        /// Whether the thread's record has it.
        noted: bool,
        thread: PhantomData<*const ()>,
    }
}

impl<'s, P, T: Platform> ReadGuard<'s, P, T> {
    #[inline(always)]
    pub(crate) fn new(
        space: &'s AddressSpace<P, T>,
        admitted: Admitted<'s, P, T>,
        walks: u32,
    ) -> Self {
        let noted = T::with_thread(|thread| thread.note_guard(space.name())).unwrap_or(false);
        Self { payload: admitted.payload(), admitted, space, walks, noted, thread: PhantomData }
    }

    /// The range of the VMA.
    #[doc(alias("vm_start", "vm_end"))]
    pub fn range(&self) -> Range<usize> {
        self.admitted.span().range()
    }

    /// How many walks the lookup took: 1 when nothing was in the way. A lookup that had to wait
    /// for an edit counts one more than the most that [`try_read`](AddressSpace::try_read) makes.
    pub fn walks(&self) -> u32 {
        self.walks
    }
}

impl<P, T: Platform> Deref for ReadGuard<'_, P, T> {
    type Target = P;

    #[inline(always)]
    fn deref(&self) -> &P {
        // SAFETY: `payload` was opened by this read lock.
        unsafe { self.admitted.deref(&self.payload) }
    }
}

impl<P, T: Platform> Drop for ReadGuard<'_, P, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.noted {
            T::with_thread(|thread| thread.forget_guard(self.space.name()));
        }
    }
}

impl<P: fmt::Debug, T: Platform> fmt::Debug for ReadGuard<'_, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadGuard")
            .field("range", &self.range())
            .field("payload", &**self)
            .finish_non_exhaustive()
    }
}

//! A space looked at as a whole, while nothing changes it.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use crate::error::EditError;
use crate::held::{Guards, Held};
use crate::host::DefaultPlatform;
use crate::map::{MapRead, Vmas};
use crate::platform::Platform;
use crate::space::AddressSpace;

/// The mmap lock held for reading, from [`view`](AddressSpace::view) or
/// [`Edit::downgrade`](crate::Edit::downgrade): no edit begins while it lives, so every VMA stays
/// as it is, and can be looked at without a lock of its own. What it shows is in [`Vmas`].
///
/// Readers go on beside it, and so do exclusions that wait. A thread that holds a view and would
/// wait for itself gets the same error as the holder of a guard. A view that is forgotten
/// ([`core::mem::forget`]) is never over: the space cannot be edited again.
///
/// ```
/// let space = pervma::AddressSpace::new(4096);
/// space.insert(0x1000..0x3000, "text")?;
///
/// let view = space.view()?;
/// assert_eq!(view.get(0x2000), Some((0x1000..0x3000, &"text")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a view ends when it is dropped"]
#[doc(alias("mmap_read_lock", "mmap_read_unlock"))]
pub struct View<'s, T, P: Platform = DefaultPlatform> {
    map: MapRead<'s, T, P>,
    _held: Held<Guards, P>,
    /// Payloads that were split or merged away in the edit before a downgrade: dropped last, since
    /// their destructors may edit the space.
    _deferred_drops: Vec<T>,
}

impl<'s, T, P: Platform> View<'s, T, P> {
    pub(crate) fn new(map: MapRead<'s, T, P>, deferred_drops: Vec<T>) -> Self {
        let held = Held::record(map.map().state().assigned_id());
        Self { map, _held: held, _deferred_drops: deferred_drops }
    }
}

impl<'s, T, P: Platform> Deref for View<'s, T, P> {
    type Target = Vmas<'s, T, P>;

    fn deref(&self) -> &Vmas<'s, T, P> {
        &self.map
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for View<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("View").field(&**self).finish()
    }
}

impl<T, P: Platform> AddressSpace<T, P> {
    /// Waits for the mmap lock for reading; see [`View`].
    ///
    /// ```
    /// let space = pervma::AddressSpace::new(4096);
    /// space.insert(0x1000..0x4000, "text")?;
    /// assert_eq!(space.view()?.iter().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the thread edits this space, or holds a guard or another view of it.
    ///
    /// # Panics
    ///
    /// Inside a [`HandlerScope`](crate::HandlerScope).
    #[doc(alias("mmap_read_lock", "mmap_lock"))]
    pub fn view(&self) -> Result<View<'_, T, P>, EditError> {
        self.check_may_wait()?;
        Ok(View::new(self.map().read(), Vec::new()))
    }
}

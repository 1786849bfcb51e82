//! Plain fields, with nothing around them.

use core::cell::UnsafeCell;

/// A plain field whose accesses the protocol keeps apart. loom checks the same calls.
#[repr(transparent)]
pub struct Cell<T>(UnsafeCell<T>);

/// A pointer into a [`Cell`] that stays open for reading while it lives.
pub struct ConstPtr<T>(*const T);

impl<T> Cell<T> {
    /// A cell that holds `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Opens the cell for reading.
    #[inline(always)]
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Opens the cell for writing.
    #[inline(always)]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }

    /// Opens the cell for reading until the pointer is dropped.
    #[inline(always)]
    pub fn get(&self) -> ConstPtr<T> {
        ConstPtr(self.0.get())
    }
}

impl<T> ConstPtr<T> {
    /// The address of the value.
    #[inline(always)]
    pub fn as_ptr(&self) -> *const T {
        self.0
    }
}

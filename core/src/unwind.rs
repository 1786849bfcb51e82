//! What may be used on both sides of `catch_unwind`.
//!
//! An operation in which user code panics has changed nothing, so no panic shows a space half
//! changed, nor what was made of one. Of payloads, this crate knows no more than their types say.
#![forbid(unsafe_code)]

use core::panic::{RefUnwindSafe, UnwindSafe};

use crate::cursor::Cursor;
use crate::edit::{Edit, VmaMut};
use crate::exclusion::Exclusion;
use crate::guard::{MappedReadGuard, ReadGuard};
use crate::iter::{Iter, ReadAll};
use crate::map::Vmas;
use crate::owned::{OwnedMappedReadGuard, OwnedReadGuard};
use crate::platform::Platform;
use crate::reader::Reader;
use crate::reserve::Reservation;
use crate::slab::Slab;
use crate::space::AddressSpace;
use crate::view::View;
use crate::vmas::VmasIter;

/// Types that own payloads, which come back out of them.
macro_rules! owns {
    ($($name:ident)+) => {$(
        impl<T: UnwindSafe, P: Platform> UnwindSafe for $name<T, P> {}
        impl<T: RefUnwindSafe, P: Platform> RefUnwindSafe for $name<T, P> {}
    )+};
}

owns! { AddressSpace Slab }

/// Types that borrow a space.
macro_rules! borrows {
    ($($name:ident)+) => {$(
        impl<T: RefUnwindSafe, P: Platform> UnwindSafe for $name<'_, T, P> {}
        impl<T: RefUnwindSafe, P: Platform> RefUnwindSafe for $name<'_, T, P> {}
    )+};
}

borrows! { Edit Exclusion Iter ReadAll ReadGuard Reader Reservation View Vmas VmasIter }

impl<T: RefUnwindSafe, P: Platform, const REGISTERED: bool> UnwindSafe
    for Cursor<'_, T, P, REGISTERED>
{
}
impl<T: RefUnwindSafe, P: Platform, const REGISTERED: bool> RefUnwindSafe
    for Cursor<'_, T, P, REGISTERED>
{
}

impl<T: RefUnwindSafe> RefUnwindSafe for VmaMut<'_, T> {}

impl<T: RefUnwindSafe, U: RefUnwindSafe + ?Sized, P: Platform> UnwindSafe
    for MappedReadGuard<'_, T, U, P>
{
}
impl<T: RefUnwindSafe, U: RefUnwindSafe + ?Sized, P: Platform> RefUnwindSafe
    for MappedReadGuard<'_, T, U, P>
{
}

// The last of these drops the space with its payloads.
impl<T: UnwindSafe + RefUnwindSafe, P: Platform> UnwindSafe for OwnedReadGuard<T, P> {}
impl<T: RefUnwindSafe, P: Platform> RefUnwindSafe for OwnedReadGuard<T, P> {}
impl<T: UnwindSafe + RefUnwindSafe, U: RefUnwindSafe + ?Sized, P: Platform> UnwindSafe
    for OwnedMappedReadGuard<T, U, P>
{
}
impl<T: RefUnwindSafe, U: RefUnwindSafe + ?Sized, P: Platform> RefUnwindSafe
    for OwnedMappedReadGuard<T, U, P>
{
}

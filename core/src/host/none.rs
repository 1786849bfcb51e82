//! What types name where there is no default platform.
#![expect(unsafe_code, reason = "the contract of `Platform` is kept by never getting there")]

use lock_api::{GuardSend, RawRwLock, RawRwLockDowngrade};

use crate::memory::GlobalMemory;
use crate::platform::Platform;
use crate::sync::WaitWord;
use crate::thread::ThreadState;

/// Stands in for the platform that is missing without the feature `std`. To make a space or a slab
/// of it does not compile: name a [`Platform`] of your own.
///
/// It implements [`Platform`] so that a type's parameter can have a default at all.
#[derive(Debug)]
pub enum NoPlatform {}

/// A lock that cannot be made.
#[derive(Debug)]
pub enum NoLock {}

// SAFETY: there is no value of it.
unsafe impl RawRwLock for NoLock {
    const INIT: Self = panic!("without the feature `std`, name a `Platform` of your own");

    type GuardMarker = GuardSend;

    fn lock_shared(&self) {
        match *self {}
    }
    fn try_lock_shared(&self) -> bool {
        match *self {}
    }
    unsafe fn unlock_shared(&self) {
        match *self {}
    }
    fn lock_exclusive(&self) {
        match *self {}
    }
    fn try_lock_exclusive(&self) -> bool {
        match *self {}
    }
    unsafe fn unlock_exclusive(&self) {
        match *self {}
    }
}

// SAFETY: there is no value of it.
unsafe impl RawRwLockDowngrade for NoLock {
    unsafe fn downgrade(&self) {
        match *self {}
    }
}

// SAFETY: nothing sleeps, is written to, lent or unwound: no space has this platform, since its
// lock cannot be made.
unsafe impl Platform for NoPlatform {
    type Lock = NoLock;
    type Memory = GlobalMemory;
    type Deadline = ();

    fn wait(_word: &WaitWord, _seen: u32, _deadline: Option<()>) -> bool {
        true
    }
    fn wake(_word: &WaitWord) {}
    fn wake_all(_word: &WaitWord) {}
    fn with_thread<R>(_: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        None
    }
}

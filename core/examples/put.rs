//! A put and a lookup by themselves, for `.ci/put` to read their machine code.
#![expect(clippy::disallowed_types, reason = "the planted one goes around the facade")]

use std::sync::atomic::{AtomicU32, Ordering};

use pervma::{AddressSpace, ReadGuard};

/// What ends a read lock.
#[inline(never)]
pub fn put(guard: ReadGuard<'_, u32>) {
    drop(guard);
}

/// What takes a read lock, and leaves again where it is turned away.
#[inline(never)]
pub fn lookup(space: &AddressSpace<u32>, addr: usize) -> Option<ReadGuard<'_, u32>> {
    space.try_read(addr).ok()
}

/// A decrement with an acquire that nobody needs, to be found by the same check.
#[inline(never)]
pub fn planted(count: &AtomicU32) -> u32 {
    count.fetch_sub(1, Ordering::AcqRel)
}

//! The release of a read lock, and a lookup, by themselves, for `.ci/put` to read their machine
//! code.
#![expect(clippy::disallowed_types, reason = "the planted one goes around the facade")]

use std::sync::atomic::{AtomicU32, Ordering};

use pervma::{AddressSpace, ReadGuard};

/// What ends a read lock.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn probe_put(guard: ReadGuard<'_, u32>) {
    drop(guard);
}

/// What takes a read lock, and gives it back where the lookup is rejected.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn probe_lookup(space: &AddressSpace<u32>, addr: usize) -> Option<ReadGuard<'_, u32>> {
    space.try_read(addr).ok()
}

/// A decrement with an acquire that nobody needs, to be found by the same check.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn probe_planted(count: &AtomicU32) -> u32 {
    count.fetch_sub(1, Ordering::AcqRel)
}

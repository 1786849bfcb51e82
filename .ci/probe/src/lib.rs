//! The release of a read lock, and a lookup, as functions whose machine code `.ci/acquires` reads.
#![expect(clippy::disallowed_types, reason = "the planted fault bypasses the facade")]

use std::sync::atomic::{AtomicU32, Ordering};

use pervma::{AddressSpace, ReadGuard};

/// Releases a read lock.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn probe_release(guard: ReadGuard<'_, u32>) {
    drop(guard);
}

/// Acquires a read lock, and releases it where the lookup is rejected.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn probe_lookup(space: &AddressSpace<u32>, addr: usize) -> Option<ReadGuard<'_, u32>> {
    space.try_read(addr).ok()
}

/// A decrement with a needless acquire, which the same check must find.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn probe_planted(count: &AtomicU32) -> u32 {
    count.fetch_sub(1, Ordering::AcqRel)
}

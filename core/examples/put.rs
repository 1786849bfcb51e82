//! A put by itself, for `.ci/put` to read its machine code.
#![expect(clippy::disallowed_types, reason = "the planted one goes around the facade")]

use std::sync::atomic::{AtomicU32, Ordering};

use pervma::ReadGuard;

/// What ends a read lock.
#[inline(never)]
pub fn put(guard: ReadGuard<'_, u32>) {
    drop(guard);
}

/// A decrement with an acquire that nobody needs, to be found by the same check.
#[inline(never)]
pub fn planted(count: &AtomicU32) -> u32 {
    count.fetch_sub(1, Ordering::AcqRel)
}

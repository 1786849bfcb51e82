//! The orderings that accesses of atomics accept.
#![cfg_attr(
    not(pervma_model),
    expect(unreachable_pub, reason = "the models reach it through `internals`")
)]

use core::sync::atomic::Ordering;

/// No ordering, with the reason why none is needed.
#[derive(Clone, Copy)]
pub struct Relaxed(
    #[cfg_attr(
        not(pervma_model),
        expect(dead_code, reason = "written for the reader of the code, not for the machine")
    )]
    pub &'static str,
);

/// The reason of accesses that only mutants make.
pub const MUTANT: Relaxed = Relaxed("a mutant's");

/// The reason of accesses that only tests make.
#[cfg(all(test, not(pervma_model)))]
pub const TEST: Relaxed = Relaxed("a test's");

/// An ordering that an atomic load accepts.
pub trait LoadOrder: Copy {
    /// The ordering to use.
    fn order(self) -> Ordering;
}

/// An ordering that an atomic store accepts.
pub trait StoreOrder: Copy {
    /// The ordering to use.
    fn order(self) -> Ordering;
}

/// An ordering that an atomic read-modify-write accepts.
pub trait RmwOrder: Copy {
    /// The ordering to use.
    fn order(self) -> Ordering;
}

/// An ordering that a fence accepts: never [`Relaxed`].
pub trait FenceOrder: Copy {
    /// The ordering to use.
    fn order(self) -> Ordering;
}

impl LoadOrder for Relaxed {
    #[inline(always)]
    fn order(self) -> Ordering {
        Ordering::Relaxed
    }
}
impl StoreOrder for Relaxed {
    #[inline(always)]
    fn order(self) -> Ordering {
        Ordering::Relaxed
    }
}
impl RmwOrder for Relaxed {
    #[inline(always)]
    fn order(self) -> Ordering {
        Ordering::Relaxed
    }
}

//! The implementations that are compared: maps from ranges to payloads, each used as its authors
//! advise.

#[cfg(test)]
mod tests;

mod arc_swap;
mod host;
mod locked;
mod lower_bounds;
mod ordered;
mod pervma;

mod tree;

use std::ops::Range;

pub(crate) use self::arc_swap::Snapshots;
pub(crate) use self::host::{Fences, Host};
pub(crate) use self::locked::{LockedEntries, ParkingLot, StdLock};
pub(crate) use self::lower_bounds::{Array, CountPair, OwnCounts};
pub(crate) use self::pervma::{
    CursorOfReader, Pervma, PervmaCursor, PervmaOutside, PervmaRegistered, register,
};

pub(crate) use self::ordered::{SccTree, Skiplist};
pub(crate) use self::tree::Tree;
use crate::layout::Vma;

/// What looks addresses up.
pub(crate) trait Find: Send + Sync + Sized + 'static {
    /// In the tables.
    const NAME: &'static str;

    /// What a thread keeps between lookups.
    type Reader<'m>: Reader;

    /// A map of `vmas`, inserted in this order.
    fn of(vmas: &[Vma]) -> Self;

    /// Looks addresses up as one thread does.
    fn with_reader<R>(&self, run: impl FnOnce(&mut Self::Reader<'_>) -> R) -> R;
}

/// A thread's way to look addresses up.
pub(crate) trait Reader {
    /// Finds the range that holds `addr` and keeps it from going away (or only its memory: then the
    /// implementation's name says so) while `visit` looks at its payload; `None` in a hole.
    fn visit<R>(&mut self, addr: usize, visit: impl FnOnce(Option<u64>) -> R) -> R;

    /// Reads the payload at `addr`.
    #[inline(always)]
    fn read(&mut self, addr: usize) -> Option<u64> {
        self.visit(addr, |payload| payload)
    }

    /// Looks `addr` up, and says whether that needed more than one attempt; `None` where there is
    /// but one way.
    fn hindered(&mut self, addr: usize) -> Option<bool> {
        let _ = addr;
        None
    }
}

/// What can be changed, too.
pub(crate) trait Map: Find {
    /// Maps a free range, after a look that it is free.
    fn insert(&self, vma: Vma);

    /// Unmaps what is mapped at exactly `range`.
    fn remove(&self, range: Range<usize>);

    /// Gives `range`, which lies in one entry, another payload: splits the entry, and merges what
    /// then has the same payload as a neighbour that it touches.
    fn update(&self, range: Range<usize>, payload: u64);
}

/// What can move a range, too.
pub(crate) trait Relocate: Map {
    /// Moves the entry at exactly `range` to `to`, after a look that the range there is free; it is
    /// merged with what it touches there and has the same payload.
    fn relocate(&self, range: Range<usize>, to: usize);
}

/// Evaluates an expression for each map, with the type `$map`. A new implementation is one more
/// line.
macro_rules! each_map {
    ($map:ident => $run:expr) => {{
        $crate::maps::each_map! { @($crate::maps::Pervma) $map => $run }
        $crate::maps::each_map! { @($crate::maps::ParkingLot) $map => $run }
        $crate::maps::each_map! { @($crate::maps::StdLock) $map => $run }
        $crate::maps::each_map! { @($crate::maps::LockedEntries) $map => $run }
        $crate::maps::each_map! { @($crate::maps::Snapshots) $map => $run }
        $crate::maps::each_map! { @($crate::maps::Skiplist) $map => $run }
        $crate::maps::each_map! { @($crate::maps::SccTree) $map => $run }
    }};
    (@($implementation:ty) $map:ident => $run:expr) => {{
        type $map = $implementation;
        $run;
    }};
}
pub(crate) use each_map;

/// The same for pervma's registered readers.
macro_rules! each_registered {
    ($map:ident => $run:expr) => {{
        $crate::maps::each_map! { @($crate::maps::PervmaRegistered) $map => $run }
        $crate::maps::each_map! { @($crate::maps::Pervma<$crate::maps::CursorOfReader>) $map => $run }
        $crate::maps::each_map! { @($crate::maps::PervmaRegistered<$crate::maps::Fences>) $map => $run }
        $crate::maps::each_map! {
            @($crate::maps::Pervma<$crate::maps::CursorOfReader, $crate::maps::Fences>) $map => $run
        }
    }};
}
pub(crate) use each_registered;

//! The fault path: from an address to a filled page.
//!
//! Everything here runs in the signal handler: no lock, no allocation, no destructor.

use std::cell::Cell;

use pervma::ReadError;

use crate::mapping::{Fill, PAGE, SPACE};
use crate::stats::Shard;

/// What is to become of the access that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Return to it: it succeeds or faults again.
    Repeat,
    /// It is not ours, or cannot be served: on to the previous handler.
    PassOn,
}

/// Serves a fault at `addr`.
#[inline]
pub(crate) fn serve(addr: usize) -> Verdict {
    let count = Shard::mine();
    let vma = match SPACE.try_read(addr) {
        Ok(vma) => vma,
        Err(ReadError::Locked { .. }) => {
            count.count_slow();
            rustix::thread::sched_yield();
            return Verdict::Repeat;
        }
        Err(_) => return Verdict::PassOn,
    };
    count.count_lookup(vma.walks());
    // Under the VMA's read lock: until it is dropped, the region cannot be unmapped.
    let (fill, region) = (vma.fill(addr), vma.serial());
    drop(vma);
    match fill {
        Fill::Filled => count.count_fault(),
        Fill::Present if stuck_at(region, addr) => return Verdict::PassOn,
        Fill::Present => count.count_fault(),
        Fill::Again => {}
        Fill::Failed => return Verdict::PassOn,
    }
    Verdict::Repeat
}

/// Whether this thread has faulted at a present page of a region again and again.
///
/// Once is a race that another thread won: what is present stays present while the region lives,
/// so the access succeeds when it is repeated. For ever is a page that cannot be read although it
/// is "there": swap that fails, or the addresses of a region in a forked child.
#[cold]
fn stuck_at(region: u64, addr: usize) -> bool {
    const LIMIT: u32 = 1000;
    thread_local! {
        static LAST: Cell<(u64, usize, u32)> = const { Cell::new((0, 0, 0)) };
    }
    let page = addr & !(PAGE - 1);
    let (last_region, last_page, times) = LAST.get();
    let times = if (region, page) == (last_region, last_page) { times + 1 } else { 1 };
    LAST.set((region, page, times % LIMIT));
    times == LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_no_regions_is_passed_on() {
        assert_eq!(serve(PAGE), Verdict::PassOn);
    }

    #[test]
    fn only_the_same_page_of_one_region_again_and_again_is_stuck() {
        assert!((1..2000).all(|page| !stuck_at(1, page * PAGE)));
        assert!((2..2000).all(|region| !stuck_at(region, 0)), "addresses are used again");
        assert!((1..1000).all(|byte| !stuck_at(1, byte)));
        assert!(stuck_at(1, 5));
        assert!(!stuck_at(1, 5));
    }
}

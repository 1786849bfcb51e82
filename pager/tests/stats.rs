//! The counters, in a process where nothing else faults.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::PAGE;
use pervma_pager::{FrozenRegion, MemorySource, stats};

#[test]
fn each_first_touch_is_one_fault_and_one_lookup() {
    common::watch();
    const PAGES: usize = 300;
    let region = FrozenRegion::map(MemorySource::new(vec![1; PAGES * PAGE])).unwrap();
    let before = stats();
    std::thread::scope(|threads| {
        for half in region.chunks(PAGES / 2 * PAGE) {
            threads.spawn(move || {
                // Twice: the second time nothing faults.
                for _ in 0..2 {
                    assert!(half.chunks(PAGE).all(|page| page[17] == 1));
                }
            });
        }
    });
    let counted = stats() - before;
    assert_eq!(counted.faults, PAGES as u64);
    assert_eq!(counted.lookups_first_try, PAGES as u64);
    assert_eq!((counted.lookups_retried, counted.lookups_slow), (0, 0));
}

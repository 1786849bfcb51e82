//! How many pages come, and go: the counters are the process's, so these tests take turns.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Mutex, PoisonError};

use common::{MODES, PAGE, byte, bytes, random_bytes, regions};
use pervma_pager::{Options, Region, Stats, stats};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What was counted in all, at the end of the region: a thread that serves counts what it did after
/// it has woken the threads that waited, and ends with its region.
fn counted_since(before: Stats, region: Region) -> Stats {
    drop(region);
    stats() - before
}

fn alone() -> impl Drop {
    static COUNTING: Mutex<()> = Mutex::new(());
    COUNTING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_fault_fills_its_granule() {
    common::watch();
    let _alone = alone();
    const GRANULE: usize = 64 << 10;
    for len in [1, PAGE, GRANULE - 1, GRANULE, 3 * GRANULE + 5 * PAGE + 7] {
        let expected = random_bytes(len, len as u64);
        for mode in MODES {
            for region in regions(&expected, mode, |options| options.granule(GRANULE)) {
                let before = stats();
                for granule in (0..len).step_by(GRANULE) {
                    let at = granule + (len - granule).min(GRANULE) / 2;
                    assert_eq!(byte(&region, at), expected[at]);
                }
                assert!(bytes(&region) == expected); // without a fault: all was there
                let counted = counted_since(before, region);
                assert_eq!(counted.pages, len.div_ceil(PAGE) as u64, "{mode:?} {len}");
                assert_eq!(counted.faults, len.div_ceil(GRANULE) as u64, "{mode:?} {len}");
            }
        }
    }
}

#[test]
fn a_granule_fills_around_what_is_there() {
    common::watch();
    let _alone = alone();
    let expected = random_bytes(16 * PAGE, 1);
    for mode in MODES {
        for region in regions(&expected, mode, |options| options.granule(16 * PAGE)) {
            assert_eq!(byte(&region, 0), expected[0]);
            region.discard(3 * PAGE..4 * PAGE).unwrap();
            region.discard(7 * PAGE..12 * PAGE).unwrap();
            let before = stats();
            assert_eq!(byte(&region, 8 * PAGE), expected[8 * PAGE]);
            assert!(bytes(&region) == expected); // without a fault: the others were there
            let counted = counted_since(before, region);
            assert_eq!((counted.faults, counted.pages), (1, 6), "{mode:?}");
        }
    }
}

#[test]
fn no_more_is_there_than_the_bound() {
    common::watch();
    let _alone = alone();
    const PAGES: usize = 600;
    let expected = random_bytes(PAGES * PAGE - 77, 9);
    for mode in MODES {
        for set in [
            |options: Options| options.resident(32 * PAGE),
            |options: Options| options.resident(64 * PAGE).granule(16 * PAGE),
        ] {
            for region in regions(&expected, mode, set) {
                let before = stats();
                std::thread::scope(|threads| {
                    for seed in 0..3 {
                        let (region, expected) = (&region, &expected);
                        threads.spawn(move || {
                            let mut random = StdRng::seed_from_u64(seed);
                            for _ in 0..700 {
                                let at = random.random_range(0..expected.len());
                                assert_eq!(byte(region, at), expected[at]);
                            }
                        });
                    }
                });
                assert!(bytes(&region) == expected);
                assert!((stats() - before).evicted > 0);
                assert!(region.most_resident().unwrap() <= 64 * PAGE);
                assert!(region.resident().unwrap() <= 64 * PAGE);
                let region = region.freeze().unwrap();
                assert!(region[..] == expected, "frozen, and all of it there");
            }
        }
    }
}

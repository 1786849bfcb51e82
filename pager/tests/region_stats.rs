//! What is counted of a region, in processes where other regions fault as well.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{MODES, Mode, PAGE, byte, file_with, pages_in_memory, random_bytes, regions};
use pervma_pager::{FileSource, Options, Region, RegionStats};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Waits for what a handler thread counts when it has let go on who waited for it.
fn settled(region: &Region, is_so: impl Fn(&RegionStats) -> bool) -> RegionStats {
    loop {
        let stats = region.stats();
        if is_so(&stats) {
            return stats;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_region_counts_its_own() {
    common::watch();
    for mode in MODES {
        for mut region in regions(&random_bytes(20 * PAGE - 5, 1), mode, |all| all.writable()) {
            assert_eq!(region.stats(), RegionStats::default());
            for page in 0..6 {
                byte(&region, page * PAGE);
            }
            region.write(3 * PAGE, &[1]);
            region.write_checked(10 * PAGE, &[1; 2 * PAGE]).unwrap();
            region.prefetch(15 * PAGE..20 * PAGE - 5).unwrap();
            let stats = settled(&region, |stats| stats.faults >= 14);
            assert_eq!((stats.faults, stats.pages), (6 + 1 + 2 + 5, 6 + 2 + 5), "{mode:?}");
            assert_eq!((stats.given_back, stats.resident), (0, 13 * PAGE as u64));
            region.discard(0..2 * PAGE).unwrap();
            region.unmap(15 * PAGE..17 * PAGE).unwrap();
            region.relocate(30 * PAGE).unwrap();
            // What was written has moved, and nothing else.
            let stats = region.stats();
            assert_eq!((stats.given_back, stats.resident), (10, 3 * PAGE as u64), "{mode:?}");
            assert_eq!(pages_in_memory(&region), 3);
            assert_eq!((stats.written_back, stats.failures, stats.write_back_failures), (0, 0, 0));
        }
        let file = file_with(&random_bytes(20 * PAGE, 2));
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let options = Options::new().writable().granule(4 * PAGE);
        let region = match mode {
            Mode::Signal => options.map(source),
            Mode::Thread => options.handler_threads(1).map(source),
        }
        .unwrap();
        file.set_len(10 * PAGE as u64).unwrap();
        region.write_checked(PAGE, &[1; PAGE]).unwrap();
        region.write_back(0..region.len()).unwrap();
        region.read_checked(12 * PAGE, &mut [0]).unwrap_err();
        region.read_checked(12 * PAGE, &mut [0]).unwrap_err();
        let stats = region.stats();
        assert_eq!((stats.faults, stats.pages), (1, 4), "{mode:?}");
        assert_eq!((stats.written_back, stats.failures), (1, 2), "{mode:?}");
    }
}

#[test]
fn what_is_resident_is_what_the_kernel_has() {
    common::watch();
    let original = random_bytes(64 * PAGE, 3);
    for mode in MODES {
        for granule in [1, 4] {
            let options = Options::new().writable().granule(granule * PAGE).resident(24 * PAGE);
            let source = FileSource::new(file_with(&original)).unwrap();
            let region = match mode {
                Mode::Signal => options.map(source),
                Mode::Thread => options.handler_threads(2).map(source),
            };
            let region = &region.unwrap();
            std::thread::scope(|scope| {
                for seed in 0..3 {
                    scope.spawn(move || {
                        let mut random = StdRng::seed_from_u64(seed);
                        for _ in 0..2000 {
                            let page = random.random_range(0..60);
                            match random.random_range(0..20) {
                                0 => region.discard(page * PAGE..(page + 3) * PAGE).unwrap(),
                                1 => drop(region.write_back(0..region.len()).unwrap()),
                                2..8 => region.write(page * PAGE, &[1]),
                                _ => drop(region.read_checked(page * PAGE, &mut [0; 9])),
                            }
                        }
                    });
                }
            });
            // The evictor may still be at work.
            let is_so =
                |stats: &RegionStats| stats.resident == (pages_in_memory(region) * PAGE) as u64;
            let stats = settled(region, is_so);
            assert!(stats.resident <= 24 * PAGE as u64 && stats.given_back > 0, "{stats:?}");
            assert!(stats.written_back > 0 && stats.faults > 0 && stats.failures == 0);
        }
    }
}

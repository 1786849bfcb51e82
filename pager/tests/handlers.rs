//! Threads that serve the faults of several regions.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "a source that waits until it is told")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{PAGE, byte, watch};
use pervma_pager::{
    Error, FileSource, Handlers, InThread, MemorySource, OnFailure, Options, ReadFailed, Refusal,
    Region, Source,
};

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

fn options(handlers: &Handlers) -> Options<InThread> {
    Options::new().handlers(handlers)
}

#[test]
fn many_regions_take_a_descriptor_each_and_no_thread() {
    let name = "many_regions_take_a_descriptor_each_and_no_thread";
    if common::child_case().is_none() {
        let ended = common::run_child(name, "");
        assert_eq!(ended.exit, Some(0), "{ended:?}");
        return;
    }
    let handlers = Handlers::new(2).unwrap();
    assert_eq!(handlers.threads(), 2);
    let before = [count("/proc/self/task"), count("/proc/self/fd")];
    let regions: Vec<Region> = (0..200_u8)
        .map(|number| options(&handlers).map(MemorySource::new(vec![number; 3 * PAGE])).unwrap())
        .collect();
    let now = [count("/proc/self/task"), count("/proc/self/fd")];
    assert_eq!(now, [before[0], before[1] + 200]);
    std::thread::scope(|scope| {
        for start in 0..4 {
            let regions = &regions;
            scope.spawn(move || {
                for (number, region) in regions.iter().enumerate().skip(start).step_by(4) {
                    assert!(common::bytes(region).iter().all(|&byte| byte == number as u8));
                }
            });
        }
    });
    drop(handlers);
    regions[7].discard(0..3 * PAGE).unwrap();
    assert_eq!(byte(&regions[7], PAGE), 7, "they end with the last region");
    drop(regions);
    while count("/proc/self/task") > before[0] - 2 {
        std::thread::yield_now();
    }
    assert_eq!(Handlers::new(0).unwrap().threads(), 1);
}

/// Reads wait until they are let go on.
#[derive(Default)]
struct Slow {
    reading: AtomicUsize,
    lets: AtomicUsize,
}

impl Source for Slow {
    fn size(&self) -> u64 {
        64 * PAGE as u64
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.reading.fetch_add(1, Relaxed);
        while self.lets.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        buf.fill(9);
        Ok(())
    }
}

#[test]
fn a_slow_region_leaves_the_other_threads_to_others() {
    watch();
    let handlers = Handlers::new(2).unwrap();
    let source = Arc::new(Slow::default());
    let slow = options(&handlers).map(Arc::clone(&source)).unwrap();
    let quick = options(&handlers).map(MemorySource::new(vec![1; 500 * PAGE])).unwrap();
    std::thread::scope(|scope| {
        let slow = &slow;
        // They wait for the same granule: one thread reads.
        let waiting = [(); 4].map(|()| scope.spawn(move || byte(slow, 5 * PAGE)));
        while source.reading.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        assert!((0..500).all(|page| byte(&quick, page * PAGE) == 1));
        assert_eq!(source.reading.load(Relaxed), 1);
        source.lets.store(1, Relaxed);
        assert!(waiting.into_iter().all(|thread| thread.join().unwrap() == 9));
    });
}

#[test]
fn regions_come_and_go_beside_those_that_are_served() {
    watch();
    let handlers = &Handlers::new(3).unwrap();
    let stays = &options(handlers).writable().map(MemorySource::new(vec![1; 64 * PAGE])).unwrap();
    std::thread::scope(|scope| {
        for number in 0..2_u8 {
            scope.spawn(move || {
                for time in 0..300 {
                    let byte = number ^ time as u8;
                    let options = options(handlers).granule(4 * PAGE).writable();
                    let mut region = options.map(MemorySource::new(vec![byte; 16 * PAGE])).unwrap();
                    region.write(5, &[3]);
                    assert_eq!(common::byte(&region, 9 * PAGE), byte);
                    if time % 3 == 0 {
                        region.relocate(0).unwrap();
                    }
                    assert_eq!([5, 6].map(|at| common::byte(&region, at)), [3, byte]);
                }
            });
        }
        for page in (0..20 * 64).map(|time| time % 64) {
            assert_eq!(byte(stays, page * PAGE), 1);
            stays.discard(page * PAGE..(page + 1) * PAGE).unwrap();
        }
    });
}

/// Its bytes are those of another region of the same handlers.
struct Through(Arc<Region>);

impl Source for Through {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.0.read_checked(offset as usize, buf).map_err(|_| ReadFailed)
    }
}

#[test]
fn a_source_reads_another_region_of_the_same_handlers() {
    watch();
    let handlers = Handlers::new(1).unwrap();
    let bytes = common::random_bytes(64 * PAGE, 3);
    let file = common::file_with(&bytes);
    let below = options(&handlers).resident(16 * PAGE).map(FileSource::new(file).unwrap());
    let below = Arc::new(below.unwrap());
    let above = options(&handlers).granule(8 * PAGE).map(Through(Arc::clone(&below))).unwrap();
    assert!(common::bytes(&above) == bytes);
    below.unmap(0..PAGE).unwrap();
    above.discard(0..above.len()).unwrap();
    assert_eq!(above.read_checked(0, &mut [0]).unwrap_err().refusal(), Refusal::Unavailable);
    drop(above);
}

#[test]
fn what_cannot_be_had_fails_in_its_region_only() {
    struct Fails;
    impl Source for Fails {
        fn size(&self) -> u64 {
            4 * PAGE as u64
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), ReadFailed> {
            Err(ReadFailed)
        }
    }
    if common::child_case().is_some() {
        let handlers = Handlers::new(2).unwrap();
        let fails = options(&handlers).on_failure(OnFailure::exit(42, "")).map(Fails).unwrap();
        let other = options(&handlers).map(MemorySource::new(vec![1; PAGE])).unwrap();
        assert!(fails.prefetch(0..PAGE).is_err());
        assert_eq!(byte(&other, 5), 1);
        byte(&fails, PAGE);
    }
    watch();
    let ended = common::run_child("what_cannot_be_had_fails_in_its_region_only", "");
    assert_eq!(ended.exit, Some(42), "{ended:?}");
}

#[test]
fn threads_that_are_not_to_be_had_are_an_error() {
    if common::child_case().is_some() {
        let none = rustix::process::Rlimit { current: Some(3), maximum: Some(3) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, none).unwrap();
        assert!(matches!(Handlers::new(1), Err(Error::Thread(_))));
        return;
    }
    watch();
    let ended = common::run_child("threads_that_are_not_to_be_had_are_an_error", "");
    assert_eq!(ended.exit, Some(0), "{ended:?}");
}

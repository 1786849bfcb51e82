//! Several threads at the same pages: what they see of each other's writes, and of changes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "threads of the test tell each other where they are")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::{MODES, Mode, PAGE, byte, file_with, random_bytes};
use pervma_pager::{FileSource, MemorySource, Options, Region};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const TIME: Duration = Duration::from_millis(600);

fn writable(bytes: &[u8], mode: Mode, set: impl Fn(Options) -> Options) -> Region {
    let source = FileSource::new(file_with(bytes)).unwrap();
    let options = set(Options::new().writable());
    match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(1).map(source),
    }
    .unwrap()
}

/// A thread that has filled a page and lost the processor before it could say so is waited for, and
/// not taken for a page that cannot be had.
#[test]
fn threads_that_write_the_same_pages_wait_for_each_other() {
    common::watch();
    const PAGES: usize = 4;
    for mode in MODES {
        let region = writable(&[7; PAGES * PAGE], mode, |options| options);
        let start = Instant::now();
        thread::scope(|scope| {
            for thread in 0..3 {
                let region = &region;
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(thread as u64);
                    while start.elapsed() < TIME {
                        let at = random.random_range(0..PAGES) * PAGE + thread;
                        match random.random_range(0..64) {
                            0 => region.discard(0..region.len()).unwrap(),
                            1..32 => region.write(at, &[7]),
                            _ => assert_eq!(byte(region, at), 7),
                        }
                    }
                });
            }
        });
    }
}

/// A write is over when its thread goes on, whichever thread has served the fault that let it
/// through, and whether that has told of it yet.
#[test]
fn writes_that_are_over_are_known() {
    common::watch();
    const PAGES: usize = 2048;
    for mode in MODES {
        let start = Instant::now();
        while start.elapsed() < TIME {
            let region = writable(&[0; PAGES * PAGE], mode, |options| options);
            let at = AtomicUsize::new(0);
            thread::scope(|scope| {
                // The first thread that writes a page faults.
                scope.spawn(|| {
                    for page in 0..PAGES {
                        at.store(page, Relaxed);
                        region.write(page * PAGE, &[1]);
                    }
                    at.store(PAGES, Relaxed);
                });
                for value in (0..=255_u8).cycle() {
                    let page = at.load(Relaxed);
                    if page == PAGES {
                        break;
                    }
                    let part = page * PAGE..(page + 1) * PAGE;
                    region.write(part.start + 8, &[value]);
                    if value % 2 == 0 {
                        assert_eq!(region.written(part.clone()).unwrap(), [part]);
                    } else {
                        assert_eq!(region.write_back(part).unwrap(), PAGE);
                    }
                }
            });
        }
    }
}

/// Threads that write, write back, unmap and map parts of a region of so many pages of a size, of
/// which some may be there at a time.
fn within_a_bound(region: &Region, pages: usize) {
    let page = region.page_size();
    let start = Instant::now();
    let part = |which: usize| which * page..(which + 1) * page;
    thread::scope(|scope| {
        // One half of the pages is never unmapped, and each of it has one writer.
        for thread in 0..2 {
            scope.spawn(move || {
                let own: Vec<_> = (0..pages / 2).filter(|page| page % 2 == thread).collect();
                let mut values = vec![0_u8; pages];
                let mut random = StdRng::seed_from_u64(thread as u64);
                while start.elapsed() < TIME {
                    let which = own[random.random_range(0..own.len())];
                    assert_eq!(byte(region, which * page + 9), values[which]);
                    values[which] = values[which].wrapping_add(1);
                    region.write(which * page + 9, &[values[which]]);
                    if random.random_range(0..16) == 0 {
                        region.write_back(0..region.len()).unwrap();
                    }
                }
            });
        }
        scope.spawn(move || {
            let mut random = StdRng::seed_from_u64(2);
            while start.elapsed() < TIME {
                let which = random.random_range(pages / 2..pages);
                region.unmap(part(which)).unwrap();
                region.map(part(which)).unwrap();
                assert_eq!(byte(region, which * page), 0);
                region.write(which * page + 1, &[1]);
            }
        });
    });
    assert!(region.most_resident() <= Some(pages / 2 * page));
}

#[test]
fn a_bound_is_kept_while_parts_come_and_go() {
    common::watch();
    for mode in MODES {
        let bound = |options: Options| options.resident(8 * PAGE);
        within_a_bound(&writable(&[0; 16 * PAGE], mode, bound), 16);
    }
}

#[test]
fn a_bound_of_huge_pages_is_kept_while_parts_come_and_go() {
    common::watch();
    const HUGE: usize = 2 << 20;
    let Some(_pages) = common::huge_pages(6) else { return };
    // A signal handler fills them from memory, which cannot be written: only threads can have both.
    let bound = |options: Options| options.huge_pages().resident(5 * HUGE);
    within_a_bound(&writable(&vec![0; 10 * HUGE], Mode::Thread, bound), 10);
    let source = MemorySource::new(random_bytes(10 * HUGE, 1));
    let region = Options::new().huge_pages().resident(4 * HUGE).map(source).unwrap();
    for page in (0..10).cycle().take(50) {
        byte(&region, page * HUGE);
    }
    assert!(region.most_resident() <= Some(4 * HUGE));
}

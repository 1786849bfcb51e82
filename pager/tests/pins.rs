//! Pages that are to stay: whatever keeps a bound, discards or unmaps, they are there for system
//! calls until their pin is dropped.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "threads of the test tell each other when to end")]

mod common;

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::{MODES, Mode, PAGE, byte, bytes, file_with, random_bytes, regions};
use pervma_pager::sys::Access;
use pervma_pager::{Error, FileSource, Options, Pin, Refusal, Region};

/// A region of a file with these bytes.
fn map(mode: Mode, options: Options, bytes: &[u8]) -> (Region, File) {
    let file = file_with(bytes);
    let source = FileSource::new(file.try_clone().unwrap()).unwrap();
    let region = match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(1).map(source),
    };
    (region.unwrap(), file)
}

fn pages(range: Range<usize>) -> Range<usize> {
    range.start * PAGE..range.end * PAGE
}

/// How many of the pages the kernel says are there.
fn present(region: &Region, range: Range<usize>) -> usize {
    let mut found = vec![0_u8; range.len()];
    let start = region.as_ptr().wrapping_add(range.start * PAGE).cast();
    // SAFETY: asks about the region's memory, and writes a byte for each page of it.
    let asked = unsafe { libc::mincore(start, range.len() * PAGE, found.as_mut_ptr()) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    found.iter().filter(|&page| page & 1 != 0).count()
}

#[track_caller]
fn assert_pinned<V>(result: Result<V, Error>, expected: Range<usize>) {
    match result {
        Err(Error::Pinned(found)) => assert_eq!(found, pages(expected)),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is pinned"),
    }
}

#[test]
fn what_is_pinned_stays_within_the_bound() {
    common::watch();
    let original = random_bytes(100 * PAGE, 1);
    for mode in MODES {
        for granule in [1, 4] {
            for is_writable in [false, true] {
                let options = Options::new().granule(granule * PAGE).resident(32 * PAGE);
                let options = if is_writable { options.writable() } else { options };
                let (region, _) = map(mode, options, &original);
                let what = format!("{mode:?} {granule} {is_writable}");
                let pin = region.pin(pages(40..56)).unwrap();
                assert_eq!(pin.range(), pages(40..56));
                for turn in 0..3 {
                    for page in 0..100 {
                        assert_eq!(byte(&region, page * PAGE), original[page * PAGE]);
                        if is_writable && turn == 1 {
                            region.write(page * PAGE, &original[page * PAGE..][..9]);
                        }
                    }
                    assert_eq!(present(&region, 40..56), 16, "{what}");
                }
                drop(pin);
                while present(&region, 40..56) > 0 {
                    let _ = (0..40).map(|page| byte(&region, page * PAGE)).max();
                }
                assert!(bytes(&region) == original, "{what}");
                assert!(region.most_resident().unwrap() <= 32 * PAGE, "{what}");
            }
        }
    }
}

#[test]
fn what_is_pinned_is_not_given_back() {
    common::watch();
    let original = random_bytes(20 * PAGE - 7, 2);
    for mode in MODES {
        for mut region in regions(&original, mode, |options| options.writable()) {
            let outer = region.pin(pages(4..10)).unwrap();
            let inner = region.pin_for_writes(pages(6..7)).unwrap();
            let last = region.pin(19 * PAGE..original.len()).unwrap();
            assert_eq!(region.written(0..region.len()).unwrap(), [pages(6..7)]);
            assert_pinned(region.discard(0..region.len()), 4..10);
            assert_pinned(region.unmap(pages(9..12)), 9..10);
            assert_pinned(region.discard(pages(19..20).start..original.len()), 19..20);
            region.discard(pages(0..4)).unwrap();
            region.unmap(pages(10..12)).unwrap();
            region.map(pages(10..12)).unwrap();
            assert_eq!(present(&region, 4..10), 6);
            // What may be accessed can be changed, and the page stays.
            region.protect(pages(5..6), Access::None).unwrap();
            region.protect(pages(5..6), Access::ReadWrite).unwrap();
            drop(outer);
            assert_pinned(region.discard(pages(4..10)), 6..7);
            region.discard(pages(4..6)).unwrap();
            // On another thread.
            std::thread::scope(|scope| drop(scope.spawn(|| drop(inner))));
            region.discard(pages(4..10)).unwrap();
            drop(last);
            region.relocate(40 * PAGE).unwrap();
            region.resize(3 * PAGE).unwrap();
            assert!(bytes(&region) == original[..3 * PAGE]);
        }
    }
}

#[test]
fn what_is_leaked_stays_pinned() {
    common::watch();
    for mode in MODES {
        for mut region in regions(&random_bytes(10 * PAGE - 9, 3), mode, |options| options) {
            std::mem::forget(region.pin(pages(8..9)).unwrap());
            assert_pinned(region.relocate(0), 8..9);
            assert_pinned(region.resize(3 * PAGE), 8..9);
            region.resize(9 * PAGE - 1).unwrap();
            assert_pinned(region.resize(9 * PAGE), 8..9);
            assert_eq!(region.len(), 9 * PAGE - 1);
            let frozen = region.freeze().unwrap();
            assert_eq!(frozen.len(), 9 * PAGE - 1);
        }
    }
}

#[test]
fn no_more_is_pinned_than_the_bound_lets_stay() {
    common::watch();
    for mode in MODES {
        let options = Options::new().resident(32 * PAGE);
        let (region, _) = map(mode, options, &random_bytes(100 * PAGE, 4));
        let first = region.pin(pages(0..20)).unwrap();
        let refused = region.pin(pages(30..35)).unwrap_err();
        let text = refused.to_string();
        assert!(
            matches!(refused, Error::PinBeyondBound { bytes, held, bound }
                if [bytes, held, bound] == [5 * PAGE, 20 * PAGE, 32 * PAGE]),
            "{text}"
        );
        assert!([5, 20, 32].iter().all(|pages| text.contains(&(pages * PAGE).to_string())));
        // What is pinned already takes no more of it, and what was refused takes nothing.
        let again = region.pin(pages(5..20)).unwrap();
        let more = region.pin(pages(10..24)).unwrap();
        assert!(region.pin(pages(24..25)).is_err());
        assert!(region.prefetch(pages(50..60)).is_ok_and(|came| came.end == 50 * PAGE));
        drop(first);
        let other = region.pin(pages(50..55)).unwrap();
        assert!(region.pin(pages(55..56)).is_err());
        drop((again, more, other));
        drop(region.pin(pages(76..100)).unwrap());
        assert!(region.most_resident().unwrap() <= 32 * PAGE);
    }
}

#[test]
fn what_fails_pins_nothing() {
    common::watch();
    for mode in MODES {
        let (region, file) = map(mode, Options::new().writable(), &random_bytes(20 * PAGE, 5));
        region.unmap(pages(4..5)).unwrap();
        region.protect(pages(8..9), Access::None).unwrap();
        region.protect(pages(9..10), Access::Read).unwrap();
        file.set_len(15 * PAGE as u64).unwrap();
        let refused = |result: Result<Pin<'_>, Error>| match result.unwrap_err() {
            Error::Access(error) => (error.offset() / PAGE, error.refusal()),
            error => panic!("{error}"),
        };
        assert_eq!(refused(region.pin(pages(0..8))), (4, Refusal::NotMapped));
        assert_eq!(refused(region.pin(pages(5..10))), (8, Refusal::Protected));
        assert_eq!(refused(region.pin_for_writes(pages(9..11))), (9, Refusal::Protected));
        assert_eq!(refused(region.pin(pages(12..20))), (15, Refusal::Unavailable));
        assert!(matches!(region.pin(1..PAGE), Err(Error::Range { .. })));
        region.discard(0..region.len()).unwrap();
        let [memory, _] = regions(&[7; PAGE], mode, |options| options);
        assert_eq!(refused(memory.pin_for_writes(0..PAGE)), (0, Refusal::Protected));
    }
}

#[test]
fn what_is_pinned_is_written_back_as_it_is_and_stays_to_be_written() {
    common::watch();
    for mode in MODES {
        let original = random_bytes(10 * PAGE, 6);
        let (region, file) = map(mode, Options::new().writable(), &original);
        region.write(2 * PAGE, &[1; 5 * PAGE]);
        let pin = region.pin(pages(3..5)).unwrap();
        assert_eq!(region.write_back(0..region.len()).unwrap(), 5 * PAGE, "{mode:?}");
        assert_eq!(region.written(0..region.len()).unwrap(), [pages(3..5)]);
        let mut stored = vec![0; 10 * PAGE];
        file.read_exact_at(&mut stored, 0).unwrap();
        assert!(stored == bytes(&region));
        drop(pin);
        assert_eq!(region.write_back(0..region.len()).unwrap(), 2 * PAGE);
        assert!(region.written(0..region.len()).unwrap().is_empty());
    }
}

/// In signal mode a system call fails where a page is missing, or protected for tracking.
#[test]
fn system_calls_find_what_is_pinned() {
    common::watch();
    let original = &random_bytes(64 * PAGE, 7);
    for mode in MODES {
        let options = Options::new().writable().granule(2 * PAGE).resident(32 * PAGE);
        let (region, _) = &map(mode, options, original);
        let is_over = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                scope.spawn(move || {
                    for turn in 0.. {
                        if is_over.load(Relaxed) {
                            break;
                        }
                        // What others pin is none of its business.
                        let page = (turn * 7 + thread * 3) % 32 + 32;
                        assert_eq!(byte(region, page * PAGE), original[page * PAGE]);
                        region.write(page * PAGE, &original[page * PAGE..][..9]);
                        match turn % 16 {
                            0 => drop(region.write_back(0..region.len()).unwrap()),
                            1 => match region.discard(0..32 * PAGE) {
                                Ok(()) | Err(Error::Pinned(_)) => {}
                                Err(error) => panic!("{error}"),
                            },
                            _ => {}
                        }
                    }
                });
            }
            let calling = scope.spawn(move || {
                let file = tempfile::tempfile().unwrap();
                for turn in 0..1500 {
                    let start = turn * 5 % 24;
                    let range = pages(start..start + 8);
                    let memory = region.as_ptr().wrapping_add(range.start).cast();
                    let for_reads = region.pin(range.clone()).unwrap();
                    // SAFETY: the kernel reads the region's memory.
                    let out = unsafe { libc::pwrite(file.as_raw_fd(), memory, range.len(), 0) };
                    assert_eq!(out, range.len() as isize, "{}", std::io::Error::last_os_error());
                    drop(for_reads);
                    let _for_writes = region.pin_for_writes(range.clone()).unwrap();
                    if turn % 3 == 0 {
                        region.write_back(range.clone()).unwrap();
                    }
                    // SAFETY: the kernel writes the region's memory, what it has.
                    let read = unsafe { libc::pread(file.as_raw_fd(), memory, range.len(), 0) };
                    assert_eq!(read, range.len() as isize, "{}", std::io::Error::last_os_error());
                    let mut found = vec![0; range.len()];
                    region.read(range.start, &mut found);
                    assert!(found == original[range], "{mode:?} {turn}");
                }
            });
            let called = calling.join();
            is_over.store(true, Relaxed);
            called.unwrap();
        });
        assert!(region.most_resident().unwrap() <= 32 * PAGE);
        drop(region.pin(pages(0..24)).unwrap());
    }
}

#[test]
fn a_childs_pins_are_nothing() {
    common::watch();
    for mode in MODES {
        for region in regions(&random_bytes(10 * PAGE, 8), mode, |options| options.writable()) {
            let pin = region.pin(pages(2..4)).unwrap();
            // SAFETY: the child makes system calls, and ends.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                let refused = region.pin(pages(5..6)).map_err(|error| match error {
                    Error::Access(error) => Some(error.refusal()),
                    _ => None,
                });
                let right = refused.is_err_and(|refusal| refusal == Some(Refusal::NotMapped));
                drop(pin);
                // SAFETY: ends the child.
                unsafe { libc::_exit(if right { 0 } else { 1 }) }
            }
            let mut status = 0;
            // SAFETY: waits for the child, and writes how it ended.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "{mode:?}");
            assert_pinned(region.discard(0..region.len()), 2..4);
            drop(pin);
            region.discard(0..region.len()).unwrap();
        }
    }
}

//! Copies that return an error in place of a signal: what they copy, where they stop and why, and
//! what goes on beside them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges are compared")]
#![expect(clippy::disallowed_types, reason = "threads of the test tell each other when to end")]

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex, OnceLock, Weak};

use common::{MODES, Mode, PAGE, byte, file_with, random_bytes, regions};
use pervma_pager::sys::Access;
use pervma_pager::{
    AccessError, FileSource, MemorySource, Options, ReadFailed, Refusal, Region, SignalSafe, Source,
};

/// What an error says.
fn told(result: Result<(), AccessError>) -> (usize, usize, Refusal) {
    let error = result.unwrap_err();
    (error.offset(), error.done(), error.refusal())
}

fn map<S: SignalSafe + 'static>(mode: Mode, options: Options, source: S) -> Region {
    match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(1).map(source),
    }
    .unwrap()
}

#[test]
fn what_can_be_accessed_is_copied() {
    common::watch();
    let original = random_bytes(40 * PAGE - 9, 1);
    for mode in MODES {
        for set in [
            |options: Options| options.writable(),
            |options: Options| options.writable().granule(16 * PAGE),
        ] {
            for region in regions(&original, mode, set) {
                let mut expected = original.clone();
                let places =
                    [0..1, 4090..4100, 5 * PAGE - 1..9 * PAGE + 3, 7..7, 0..expected.len()];
                for (seed, at) in (0..).zip(places) {
                    let mut found = vec![0; at.len()];
                    region.read_checked(at.start, &mut found).unwrap();
                    assert!(found == expected[at.clone()], "{mode:?} {at:?}");
                    let new = random_bytes(at.len(), seed);
                    region.write_checked(at.start, &new).unwrap();
                    expected[at].copy_from_slice(&new);
                    assert!(common::bytes(&region) == expected, "{mode:?}");
                }
                assert_eq!(region.written(0..region.len()).unwrap(), [0..40 * PAGE]);
                // And to pages that are missing.
                region.discard(0..region.len()).unwrap();
                region.write_checked(3 * PAGE - 2, &[1, 2, 3, 4]).unwrap();
                expected.copy_from_slice(&original);
                expected[3 * PAGE - 2..][..4].copy_from_slice(&[1, 2, 3, 4]);
                assert!(common::bytes(&region) == expected, "{mode:?}");
                assert_eq!(region.written(0..region.len()).unwrap(), [2 * PAGE..4 * PAGE]);
            }
        }
    }
}

#[test]
fn they_stop_at_the_first_byte_that_may_not_be_accessed() {
    common::watch();
    let bytes = random_bytes(10 * PAGE - 100, 2);
    let len = bytes.len();
    for mode in MODES {
        for region in regions(&bytes, mode, |options| options.writable().granule(4 * PAGE)) {
            region.unmap(2 * PAGE..3 * PAGE).unwrap();
            region.protect(5 * PAGE..6 * PAGE, Access::None).unwrap();
            region.protect(8 * PAGE..9 * PAGE, Access::Read).unwrap();
            let mut found = vec![0; len];
            let mut read = |at: Range<usize>| region.read_checked(at.start, &mut found[at]);
            assert_eq!(told(read(10..len)), (2 * PAGE, 2 * PAGE - 10, Refusal::NotMapped));
            assert_eq!(told(read(2 * PAGE + 5..len)), (2 * PAGE + 5, 0, Refusal::NotMapped));
            assert_eq!(told(read(3 * PAGE..len)), (5 * PAGE, 2 * PAGE, Refusal::Protected));
            read(6 * PAGE..len).unwrap();
            assert!(found[10..2 * PAGE] == bytes[10..2 * PAGE], "what came before");
            assert!(found[2 * PAGE..3 * PAGE].iter().all(|&byte| byte == 0), "and no more");

            let write = |at: Range<usize>| region.write_checked(at.start, &vec![9; at.len()]);
            assert_eq!(told(write(PAGE..3 * PAGE)), (2 * PAGE, PAGE, Refusal::NotMapped));
            assert_eq!(told(write(5 * PAGE..6 * PAGE)), (5 * PAGE, 0, Refusal::Protected));
            assert_eq!(told(write(7 * PAGE..len)), (8 * PAGE, PAGE, Refusal::Protected));
            assert_eq!([byte(&region, PAGE), byte(&region, 8 * PAGE - 1)], [9, 9]);
            assert_eq!(byte(&region, 8 * PAGE), bytes[8 * PAGE]);

            // Behind the end is nothing.
            let mut beyond = [0; 30];
            let end = region.read_checked(len - 10, &mut beyond);
            assert_eq!(told(end), (len, 10, Refusal::NotMapped));
            assert_eq!(beyond[..10], bytes[len - 10..]);
            assert_eq!(told(region.write_checked(len, &[1])), (len, 0, Refusal::NotMapped));
            for offset in [len + 1, 10 * PAGE, usize::MAX - 3, usize::MAX] {
                let refused = region.read_checked(offset, &mut beyond);
                assert_eq!(told(refused), (offset, 0, Refusal::NotMapped));
                region.read_checked(offset, &mut []).unwrap();
            }
        }
        let [region, _] = regions(&bytes, mode, |options| options);
        assert_eq!(told(region.write_checked(7, &[1])), (7, 0, Refusal::Protected));
    }
}

/// The default is that such an access ends the process.
#[test]
fn a_page_that_cannot_be_had_is_an_error() {
    common::watch();
    for mode in MODES {
        for granule in [PAGE, 4 * PAGE] {
            let bytes = random_bytes(10 * PAGE, 3);
            let file = file_with(&bytes);
            let source = FileSource::new(file.try_clone().unwrap()).unwrap();
            let region = map(mode, Options::new().writable().granule(granule), source);
            file.set_len(6 * PAGE as u64 + 100).unwrap();
            let mut found = vec![0; 10 * PAGE];
            for _ in 0..2 {
                let refused = region.read_checked(PAGE + 1, &mut found[..8 * PAGE]);
                let before = 5 * PAGE - 1;
                assert_eq!(told(refused), (6 * PAGE, before, Refusal::Unavailable), "{mode:?}");
                assert!(found[..before] == bytes[PAGE + 1..6 * PAGE]);
            }
            let refused = region.write_checked(7 * PAGE, &[1]);
            assert_eq!(told(refused), (7 * PAGE, 0, Refusal::Unavailable), "{mode:?}");
            let text = region.write_checked(7 * PAGE, &[1]).unwrap_err().to_string();
            assert!(text.contains("0x7000") && text.contains("cannot be had"), "{text}");
            file.set_len(10 * PAGE as u64).unwrap();
            region.discard(0..10 * PAGE).unwrap();
            region.read_checked(0, &mut found).unwrap();
            assert!(found[..6 * PAGE] == bytes[..6 * PAGE] && found[7 * PAGE..] == [0; 3 * PAGE]);
        }
    }
}

/// Takes no writes while it is told so.
struct Full(AtomicBool);

impl Source for Full {
    fn size(&self) -> u64 {
        64 * PAGE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        buf.fill((offset / PAGE as u64) as u8);
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
        if self.0.load(Relaxed) { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

// SAFETY: an atomic, and the buffer it is given.
unsafe impl SignalSafe for Full {}

#[test]
fn a_bound_that_is_full_of_what_cannot_go_is_an_error() {
    common::watch();
    for mode in MODES {
        let source = Arc::new(Full(true.into()));
        let options = Options::new().writable().resident(8 * PAGE);
        let region = map(mode, options, Arc::clone(&source));
        let all = vec![7; 64 * PAGE];
        let (offset, done, refusal) = told(region.write_checked(0, &all));
        assert_eq!(
            (offset, done, refusal),
            (8 * PAGE, 8 * PAGE, Refusal::BoundReached),
            "{mode:?}"
        );
        let mut one = [0];
        let refused = told(region.read_checked(20 * PAGE, &mut one));
        assert_eq!(refused, (20 * PAGE, 0, Refusal::BoundReached), "{mode:?}");
        region.read_checked(5 * PAGE, &mut one).unwrap();
        assert_eq!(one, [7]);
        source.0.store(false, Relaxed);
        region.write_checked(0, &all).unwrap();
        let most = region.most_resident().unwrap();
        assert!(most <= 8 * PAGE, "{most}");
    }
}

/// Each word is its place in the file, or 0 once it was written: whatever changes beside it, a copy
/// has such words and no others, as many as it says.
#[test]
fn they_go_on_beside_changes() {
    common::watch();
    const PAGES: usize = 32;
    const WORDS: usize = PAGES * PAGE / 8;
    let words: Vec<u8> = (1..=WORDS as u64).flat_map(u64::to_ne_bytes).collect();
    for mode in MODES {
        let source = FileSource::new(file_with(&words)).unwrap();
        let options = Options::new().writable().granule(2 * PAGE).resident(16 * PAGE);
        let region = &map(mode, options, source);
        let is_over = &AtomicBool::new(false);
        let stopped = &AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                scope.spawn(move || {
                    let mut found = vec![0_u8; 9 * PAGE];
                    for turn in 0.. {
                        if is_over.load(Relaxed) {
                            break;
                        }
                        let at = (turn * 7 + thread * 5) % (PAGES - 9) * PAGE;
                        found.fill(0xff);
                        let done = match region.read_checked(at, &mut found) {
                            Ok(()) => found.len(),
                            Err(error) => {
                                let refusal = error.refusal();
                                let known = [Refusal::NotMapped, Refusal::Protected];
                                assert!(known.contains(&refusal), "{error}");
                                stopped.fetch_add(1, Relaxed);
                                error.done()
                            }
                        };
                        for (at, word) in (at / 8..).zip(found[..done].chunks(8)) {
                            let word = u64::from_ne_bytes(word.try_into().unwrap());
                            assert!(word == 0 || word == at as u64 + 1, "{word:#x} at {at}");
                        }
                        assert!(found[done..].iter().all(|&byte| byte == 0xff), "no more");
                        if turn % 4 == 0 {
                            // What is not let through is not written.
                            let _ = region.write_checked(at + PAGE - 16, &[0; 32]);
                        }
                    }
                });
            }
            let changing = scope.spawn(move || {
                for turn in 0..1500 {
                    let page = turn * 11 % (PAGES - 4);
                    let range = page * PAGE..(page + 3) * PAGE;
                    match turn % 5 {
                        0 => region.discard(range).unwrap(),
                        1 => {
                            region.unmap(range.clone()).unwrap();
                            std::thread::yield_now();
                            region.map(range).unwrap();
                        }
                        2 => {
                            region.protect(range.clone(), Access::None).unwrap();
                            std::thread::yield_now();
                            region.protect(range, Access::ReadWrite).unwrap();
                        }
                        3 => drop(region.write_back(range).unwrap()),
                        _ => {
                            region.protect(range.clone(), Access::Read).unwrap();
                            region.protect(range, Access::ReadWrite).unwrap();
                        }
                    }
                }
            });
            let changed = changing.join();
            is_over.store(true, Relaxed);
            changed.unwrap();
        });
        println!("{mode:?}: {} copies stopped", stopped.load(Relaxed));
        let most = region.most_resident().unwrap();
        assert!(most <= 16 * PAGE, "{most}");
    }
}

/// Reads when it is let, and counts how often.
struct Gate {
    reads: AtomicU64,
    entered: Barrier,
    left: Barrier,
}

impl Source for Gate {
    fn size(&self) -> u64 {
        16 * PAGE as u64
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.reads.fetch_add(1, Relaxed);
        self.entered.wait();
        self.left.wait();
        buf.fill(7);
        Ok(())
    }
}

/// In thread mode a thread that sleeps by a page can be served by one that fills it for itself, and
/// that one can wait for what a handler thread reads.
#[test]
fn a_read_is_shared_with_the_handler_threads() {
    common::watch();
    for granule in [PAGE, 16 * PAGE] {
        for caller_first in [true, false] {
            let gate = Arc::new(Gate {
                reads: AtomicU64::new(0),
                entered: Barrier::new(2),
                left: Barrier::new(2),
            });
            let options = Options::new().granule(granule).handler_threads(1);
            let region = &options.map(Arc::clone(&gate)).unwrap();
            let touch = move || assert_eq!(byte(region, 9), 7);
            let call = move || {
                let mut found = [0; 10];
                region.read_checked(5, &mut found).unwrap();
                assert_eq!(found, [7; 10]);
            };
            std::thread::scope(|scope| {
                let run = |is_caller: bool| {
                    if is_caller { scope.spawn(call) } else { scope.spawn(touch) }
                };
                let first = run(caller_first);
                gate.entered.wait();
                let others = [run(true), run(false), run(true), run(false)];
                // They may come before the read is over or afterwards: nothing depends on it.
                std::thread::yield_now();
                gate.left.wait();
                first.join().unwrap();
                others.into_iter().for_each(|other| other.join().unwrap());
            });
            assert_eq!(gate.reads.load(Relaxed), 1, "{granule} {caller_first}");
        }
    }
}

/// Its methods call back into regions.
struct Nested {
    own: Mutex<Weak<Region>>,
    other: Region,
    told: OnceLock<AccessError>,
    told_writing: OnceLock<AccessError>,
}

impl Source for Nested {
    fn size(&self) -> u64 {
        16 * PAGE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        if let Some(own) = self.own.lock().unwrap().upgrade() {
            let refused = own.read_checked(8 * PAGE, &mut [0]).unwrap_err();
            self.told.get_or_init(|| refused);
        }
        self.other.read_checked(offset as usize, buf).map_err(|_| ReadFailed)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        if let Some(own) = self.own.lock().unwrap().upgrade() {
            let refused = own.read_checked(offset as usize, &mut [0]).unwrap_err();
            self.told_writing.get_or_init(|| refused);
        }
        self.other.write_checked(offset as usize, bytes).map_err(std::io::Error::other)
    }
}

#[test]
fn in_a_source_they_are_for_other_regions() {
    common::watch();
    let bytes = random_bytes(16 * PAGE, 5);
    let other = Options::new().writable().map(MemorySource::new(&bytes[..])).unwrap();
    let source = Arc::new(Nested {
        own: Mutex::new(Weak::new()),
        other,
        told: OnceLock::new(),
        told_writing: OnceLock::new(),
    });
    let options = Options::new().writable().handler_threads(1);
    let region = Arc::new(options.map(Arc::clone(&source)).unwrap());
    *source.own.lock().unwrap() = Arc::downgrade(&region);
    // By a handler thread, and by this one.
    assert_eq!(byte(&region, 3), bytes[3]);
    let mut found = [0; 9];
    region.read_checked(5 * PAGE, &mut found).unwrap();
    assert_eq!(found, bytes[5 * PAGE..][..9]);
    assert_eq!(source.told.get().map(AccessError::refusal), Some(Refusal::InsideSource));
    region.write_checked(5 * PAGE, &[1, 2, 3]).unwrap();
    region.write_back(0..region.len()).unwrap();
    assert_eq!(source.told_writing.get().map(AccessError::refusal), Some(Refusal::InsideSource));
    source.other.read_checked(5 * PAGE, &mut found[..3]).unwrap();
    assert_eq!(found[..3], [1, 2, 3]);
    *source.own.lock().unwrap() = Weak::new();
}

#[test]
fn a_source_that_panics_while_it_is_read_for_them_harms_no_one() {
    struct Panics(AtomicBool);
    impl Source for Panics {
        fn size(&self) -> u64 {
            PAGE as u64
        }
        fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
            assert!(!self.0.swap(false, Relaxed), "once");
            buf.fill(7);
            Ok(())
        }
    }
    common::watch();
    let region = Options::new().handler_threads(1).map(Panics(true.into())).unwrap();
    let reading = std::panic::AssertUnwindSafe(|| region.read_checked(0, &mut [0]));
    assert!(std::panic::catch_unwind(reading).is_err());
    let mut found = [0; 3];
    region.read_checked(9, &mut found).unwrap();
    assert_eq!(found, [7; 3]);
}

#[test]
fn a_forked_child_has_nothing_to_access() {
    common::watch();
    for mode in MODES {
        for region in regions(&[7; 3 * PAGE], mode, |options| options.writable()) {
            region.write(0, &[1]);
            // SAFETY: the child makes system calls, and ends.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                let mut byte = [0];
                let read = region.read_checked(0, &mut byte).map_err(|error| error.refusal());
                let wrote = region.write_checked(PAGE, &byte).map_err(|error| error.refusal());
                let right = [read, wrote] == [Err(Refusal::NotMapped); 2];
                // SAFETY: ends the child.
                unsafe { libc::_exit(if right { 0 } else { 1 }) }
            }
            let mut status = 0;
            // SAFETY: waits for the child, and writes how it ended.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "{mode:?}");
        }
    }
}

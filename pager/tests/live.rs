//! Regions that are changed: granules, both modes, discarding, protecting, unmapping, moving,
//! writing, and bounds of what is there.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "a source of the test is told what to do")]
#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges are compared")]

mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};

use common::{
    MODES, Mode, PAGE, byte, bytes, child_case, file_with, random_bytes, regions, run_child,
};
use libc::{SIGBUS, SIGSEGV};
use pervma_pager::sys::{Access, At};
use pervma_pager::{
    Error, Failure, FileSource, MemorySource, OnFailure, Options, ReadFailed, Response, SignalSafe,
    Source,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[test]
fn a_granule_is_clipped_to_what_is_mapped() {
    common::watch();
    let expected = random_bytes(16 * PAGE, 2);
    for mode in MODES {
        for region in regions(&expected, mode, |options| options.granule(16 * PAGE)) {
            region.unmap(4 * PAGE..8 * PAGE).unwrap();
            assert_eq!(byte(&region, PAGE), expected[PAGE]);
            assert_eq!(byte(&region, 15 * PAGE), expected[15 * PAGE]);
            region.map(4 * PAGE..8 * PAGE).unwrap();
            assert!(bytes(&region) == expected);
        }
    }
}

#[test]
fn what_is_discarded_is_what_the_source_has_now() {
    common::watch();
    for mode in MODES {
        let file = file_with(&[1; 5 * PAGE]);
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let region = match mode {
            Mode::Signal => Options::new().map(source).unwrap(),
            Mode::Thread => Options::new().handler_threads(1).map(source).unwrap(),
        };
        assert!(bytes(&region).iter().all(|&byte| byte == 1));
        file.write_all_at(&[2; 5 * PAGE], 0).unwrap();
        region.discard(PAGE..3 * PAGE).unwrap();
        let pages = [0, 1, 2, 3, 4].map(|page| byte(&region, page * PAGE + 9));
        assert_eq!(pages, [1, 2, 2, 1, 1]);
    }
}

#[test]
fn ranges_are_whole_pages_of_the_region() {
    common::watch();
    let region = Options::new().map(MemorySource::new(vec![1; 5 * PAGE + 1])).unwrap();
    for range in [0..1, 1..PAGE, PAGE..PAGE, 0..7 * PAGE, 0..5 * PAGE + 2] {
        let refused = region.discard(range.clone());
        assert!(matches!(refused, Err(Error::Range { .. })), "{range:?}");
    }
    region.discard(0..5 * PAGE + 1).unwrap();
    region.discard(5 * PAGE..5 * PAGE + 1).unwrap();
    region.unmap(0..2 * PAGE).unwrap();
    assert!(matches!(region.discard(0..PAGE), Err(Error::NotMapped(_))));
    assert!(matches!(region.unmap(0..2 * PAGE), Err(Error::NotMapped(_))));
    assert!(matches!(region.map(0..3 * PAGE), Err(Error::Overlap(_))));
    assert!(matches!(region.protect(0..3 * PAGE, Access::None), Err(Error::NotMapped(_))));
    region.discard(PAGE..3 * PAGE).unwrap();
    assert!(matches!(region.protect(3 * PAGE..4 * PAGE, Access::ReadWrite), Err(Error::ReadOnly)));
}

#[test]
fn options_that_do_not_fit_are_errors() {
    common::watch();
    let source = || MemorySource::new(vec![1; 5 * PAGE]);
    for granule in [0, 1, 2048, 3 * PAGE, usize::MAX] {
        let refused = Options::new().granule(granule).map(source());
        assert!(matches!(refused, Err(Error::Granule { .. })), "{granule}");
    }
    let refused = Options::new().resident(3 * PAGE).map(source());
    assert!(matches!(refused, Err(Error::Resident { .. })));
    let refused = Options::new().resident(4 * PAGE).writable().map(source());
    assert!(matches!(refused, Err(Error::SourceNotWritable)));
    let refused = Options::new().huge_pages().granule(PAGE).map(source());
    assert!(matches!(refused, Err(Error::Granule { .. })));
    let refused = Options::new().huge_pages().map(FileSource::new(file_with(&[1])).unwrap());
    assert!(matches!(refused, Err(Error::HugeNeedsMemory)));
    let aligned = Options::new().granule(4 * PAGE).map(source()).unwrap();
    assert!(aligned.as_ptr().addr().is_multiple_of(4 * PAGE));
    let taken = Options::new().map(source()).unwrap();
    let start = taken.as_ptr().addr();
    let refused = Options::new().at(At::free(start)).map(source());
    assert!(
        matches!(refused, Err(Error::AddressesTaken { start: at, .. }) if at == start),
        "{refused:?}"
    );
    drop(taken);
    let there = Options::new().at(At::free(start)).map(source()).unwrap();
    assert_eq!(there.as_ptr().addr(), start);
    drop(there);
    let refused = Options::new().capacity(usize::MAX).map(source());
    assert!(matches!(refused, Err(Error::TooLarge { .. })));
}

#[test]
fn forbidden_accesses_are_sigsegv() {
    if let Some(case) = child_case() {
        let region = Options::new().writable().map(MemorySource::new(vec![7; 4 * PAGE])).unwrap();
        region.write(PAGE, &[1]);
        match case.as_str() {
            "protected" => region.protect(PAGE..2 * PAGE, Access::None).unwrap(),
            "unmapped" => region.unmap(0..2 * PAGE).unwrap(),
            "read_only" => {
                region.protect(PAGE..2 * PAGE, Access::Read).unwrap();
                assert_eq!(byte(&region, PAGE), 1);
                region.write(PAGE, &[1]);
            }
            "frozen" => {
                let start = region.as_ptr();
                let region = region.freeze().unwrap();
                assert_eq!(region[PAGE], 1);
                // SAFETY: within the region; it may not be written.
                unsafe { start.write_volatile(1) };
                return;
            }
            "moved" => {
                let mut region = region;
                let start = region.as_ptr();
                region.relocate(0).unwrap();
                // SAFETY: nothing is there.
                unsafe { start.write_volatile(1) };
                return;
            }
            _ => unreachable!(),
        }
        byte(&region, PAGE);
        return;
    }
    for case in ["protected", "unmapped", "read_only", "frozen", "moved"] {
        let ended = run_child("forbidden_accesses_are_sigsegv", case);
        assert_eq!(ended.signal, Some(SIGSEGV), "{case}: {}", ended.stderr);
    }
}

#[test]
fn protection_that_comes_back_keeps_everything() {
    common::watch();
    for mode in MODES {
        let [region, _] = regions(&[7; 10 * PAGE], mode, Options::writable);
        region.write(5 * PAGE, &[1, 2, 3]);
        for access in [Access::None, Access::Read, Access::ReadExecute, Access::ReadWrite] {
            region.protect(4 * PAGE..6 * PAGE, access).unwrap();
        }
        assert_eq!([0, 1, 2, 3].map(|at| byte(&region, 5 * PAGE + at)), [1, 2, 3, 7]);
        region.write(0, &[9]);
        assert_eq!(region.written(0..10 * PAGE).unwrap(), [0..PAGE, 5 * PAGE..6 * PAGE]);
    }
}

#[test]
fn a_region_grows_and_shrinks() {
    common::watch();
    for mode in MODES {
        let expected = random_bytes(20 * PAGE, 5);
        let file = file_with(&expected[..3 * PAGE + 100]);
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let options = Options::new().writable().capacity(10 * PAGE);
        let mut region = match mode {
            Mode::Signal => options.map(source).unwrap(),
            Mode::Thread => options.handler_threads(1).map(source).unwrap(),
        };
        assert!(bytes(&region) == expected[..3 * PAGE + 100]);
        region.write(PAGE, b"kept");
        let start = region.as_ptr();

        let refused = region.resize(4 * PAGE);
        assert!(matches!(refused, Err(Error::BeyondSource { .. })), "{refused:?}");
        file.write_all_at(&expected, 0).unwrap();
        region.resize(9 * PAGE + 1).unwrap();
        assert_eq!((region.as_ptr(), region.len()), (start, 9 * PAGE + 1), "in its place");
        let mut now = expected.clone();
        now[PAGE..PAGE + 4].copy_from_slice(b"kept");
        assert!(bytes(&region) == now[..9 * PAGE + 1]);

        region.resize(20 * PAGE).unwrap();
        assert_ne!(region.as_ptr(), start, "moved");
        assert!(bytes(&region) == now);
        assert_eq!(region.written(0..region.len()).unwrap(), [PAGE..2 * PAGE]);

        region.write(6 * PAGE, b"lost");
        region.resize(5 * PAGE + 1).unwrap();
        assert!(bytes(&region) == now[..5 * PAGE + 1]);
        region.resize(20 * PAGE).unwrap();
        assert!(bytes(&region) == now);
        assert!(matches!(region.resize(0), Err(Error::Empty)));
    }
}

/// Found in review: what lay behind the end was zeros, and was written back as such.
#[test]
fn the_rest_of_a_written_page_is_the_sources() {
    common::watch();
    for mode in MODES {
        let file = file_with(&[3; 3 * PAGE]);
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let options = Options::new().writable();
        let mut region = match mode {
            Mode::Signal => options.map(source).unwrap(),
            Mode::Thread => options.handler_threads(1).map(source).unwrap(),
        };
        region.resize(6000).unwrap();
        region.discard(PAGE..6000).unwrap();
        region.write(5000, &[9]);
        region.protect(PAGE..6000, Access::Read).unwrap();
        region.resize(3 * PAGE).unwrap();
        assert_eq!([4999, 5000, 5999, 6000, 8191].map(|at| byte(&region, at)), [3, 9, 3, 3, 3]);
        region.write_back(0..3 * PAGE).unwrap();
        let mut on_disk = vec![0; 3 * PAGE];
        file.read_exact_at(&mut on_disk, 0).unwrap();
        let expected = |at| if at == 5000 { 9 } else { 3 };
        assert!(on_disk.iter().enumerate().all(|(at, &byte)| byte == expected(at)), "{mode:?}");
    }
}

/// Found in review: a thread that loses races for a page is not stuck at it.
#[test]
fn a_page_that_is_discarded_again_and_again_can_be_read() {
    common::watch();
    let region = Options::new().map(MemorySource::new(vec![7; PAGE])).unwrap();
    std::thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| {
                for _ in 0..3000 {
                    assert_eq!(byte(&region, 5), 7);
                    region.discard(0..PAGE).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_file_that_has_shrunk_is_not_written_beyond_its_end() {
    common::watch();
    let file = file_with(&[1; 5 * PAGE]);
    let source = FileSource::new(file.try_clone().unwrap()).unwrap();
    let region = Options::new().writable().map(source).unwrap();
    region.write(3 * PAGE, &[2]);
    file.set_len(PAGE as u64).unwrap();
    assert!(matches!(region.write_back(0..5 * PAGE), Err(Error::WriteBack(_))));
    assert_eq!(file.metadata().unwrap().len(), PAGE as u64);
}

/// Panics when it is read.
struct Panicking;

impl Source for Panicking {
    fn size(&self) -> u64 {
        PAGE as u64
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadFailed> {
        panic!("the source is out of order");
    }
}

#[test]
fn a_source_that_panics_ends_the_process() {
    if child_case().is_some() {
        byte(&Options::new().handler_threads(1).map(Panicking).unwrap(), 0);
        return;
    }
    let ended = run_child("a_source_that_panics_ends_the_process", "panic");
    assert_eq!(ended.signal, Some(libc::SIGABRT), "{}", ended.stderr);
}

/// Has fewer bytes than it says.
struct Short(Vec<u8>);

impl Source for Short {
    fn size(&self) -> u64 {
        5 * PAGE as u64
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadFailed> {
        Err(ReadFailed)
    }

    fn bytes(&self) -> Option<&[u8]> {
        Some(&self.0)
    }
}

#[test]
fn bytes_that_a_source_does_not_have_are_not_invented() {
    if let Some(case) = child_case() {
        let bytes = if case == "whole" { 2 * PAGE } else { 2 * PAGE + 9 };
        let options = Options::new().handler_threads(1).on_failure(OnFailure::exit(42, "gone\n"));
        let region = options.granule(4 * PAGE).map(Short(vec![1; bytes])).unwrap();
        let last = bytes - 1;
        assert_eq!((byte(&region, 0), byte(&region, last)), (1, 1));
        byte(&region, 3 * PAGE);
        unreachable!("invented bytes");
    }
    for case in ["whole", "part"] {
        let ended = run_child("bytes_that_a_source_does_not_have_are_not_invented", case);
        assert_eq!((ended.exit, ended.stderr.as_str()), (Some(42), "gone\n"), "{case}");
    }
}

#[test]
fn what_cannot_be_read_is_no_slice() {
    common::watch();
    for mode in MODES {
        for region in regions(&[1; 4 * PAGE], mode, |options| options) {
            region.unmap(PAGE..2 * PAGE).unwrap();
            let gap = PAGE..2 * PAGE;
            assert!(matches!(region.freeze(), Err(Error::NotMapped(found)) if found == gap));
        }
        for region in regions(&[1; 4 * PAGE], mode, Options::writable) {
            region.protect(PAGE..2 * PAGE, Access::None).unwrap();
            let closed = PAGE..2 * PAGE;
            assert!(matches!(region.freeze(), Err(Error::NoAccess(found)) if found == closed));
        }
        for region in regions(&[1; 4 * PAGE], mode, Options::writable) {
            region.write(PAGE, &[2]);
            assert_eq!(region.freeze().unwrap()[PAGE - 1..PAGE + 2], [1, 2, 1]);
        }
    }
}

/// What a program may do that shuts itself in once it has all it needs.
#[test]
fn faults_are_served_where_no_descriptor_may_be_opened() {
    if child_case().is_some() {
        let region = Options::new().handler_threads(1).resident(8 * PAGE);
        let region = region.map(MemorySource::new(vec![7; 64 * PAGE])).unwrap();
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, none).unwrap();
        assert!((0..64).all(|page| byte(&region, page * PAGE) == 7));
        return;
    }
    let ended = run_child("faults_are_served_where_no_descriptor_may_be_opened", "none");
    assert_eq!(ended.exit, Some(0), "{}", ended.stderr);
}

/// Takes writes, or not.
struct Refusing(AtomicBool);

impl Source for Refusing {
    fn size(&self) -> u64 {
        64 * PAGE as u64
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        buf.fill(1);
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> std::io::Result<()> {
        if self.0.load(Relaxed) { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

/// A source that lives as long as the process.
struct Shared(&'static Refusing);

impl Source for Shared {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.0.read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_at(offset, bytes)
    }
}

// SAFETY: writes to the buffer it is given.
unsafe impl pervma_pager::SignalSafe for Shared {}

static REFUSING: Refusing = Refusing(AtomicBool::new(true));

/// Lets the source take writes, and the access be tried again.
fn recovers(_: &Failure) -> Response {
    REFUSING.0.store(false, Relaxed);
    Response::Resume
}

#[test]
fn a_bound_that_cannot_be_kept_fails_accesses_until_it_can() {
    if let Some(case) = child_case() {
        let (mode, case) = case.split_once(' ').unwrap();
        let options = Options::new().writable().resident(16 * PAGE);
        let options = match case {
            // SAFETY: an atomic.
            "resumed" => options.on_failure(unsafe { OnFailure::call(recovers, 0) }),
            _ => options.on_failure(OnFailure::exit(42, "full\n")),
        };
        let region = match mode {
            "signal" => options.map(Shared(&REFUSING)).unwrap(),
            _ => options.handler_threads(1).map(Shared(&REFUSING)).unwrap(),
        };
        for page in 0..16 {
            region.write(page * PAGE, &[9]);
        }
        while region.write_back_failure().is_none() {
            std::thread::yield_now();
        }
        if case == "recovered" {
            REFUSING.0.store(false, Relaxed);
        }
        for page in 16..64 {
            assert_eq!(byte(&region, page * PAGE), 1);
        }
        return;
    }
    let name = "a_bound_that_cannot_be_kept_fails_accesses_until_it_can";
    for mode in ["signal", "thread"] {
        for (case, exit) in [("recovered", 0), ("full", 42), ("resumed", 0)] {
            let ended = run_child(name, &format!("{mode} {case}"));
            assert_eq!(ended.exit, Some(exit), "{mode} {case}: {ended:?}");
        }
    }
}

#[test]
fn what_was_written_moves() {
    common::watch();
    for mode in MODES {
        let [region, _] = regions(&[7; 10 * PAGE], mode, Options::writable);
        let mut region = region;
        region.write(PAGE - 1, &[1, 2]);
        region.write(4 * PAGE, &[3]);
        region.protect(4 * PAGE..5 * PAGE, Access::None).unwrap();
        region.unmap(8 * PAGE..9 * PAGE).unwrap();
        for _ in 0..3 {
            region.relocate(0).unwrap();
        }
        region.map(8 * PAGE..9 * PAGE).unwrap();
        region.protect(4 * PAGE..5 * PAGE, Access::Read).unwrap();
        assert_eq!([PAGE - 1, PAGE, 4 * PAGE, 8 * PAGE].map(|at| byte(&region, at)), [1, 2, 3, 7]);
        let written = region.written(0..10 * PAGE).unwrap();
        assert_eq!(written, [0..2 * PAGE, 4 * PAGE..5 * PAGE]);
        region.write(0, &[5]);
        assert_eq!(byte(&region, 0), 5);
    }
}

#[test]
fn pages_are_written_back_once() {
    common::watch();
    for mode in MODES {
        let file = file_with(&[1; 5 * PAGE + 10]);
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let options = Options::new().writable();
        let region = match mode {
            Mode::Signal => options.map(source).unwrap(),
            Mode::Thread => options.handler_threads(1).map(source).unwrap(),
        };
        let len = region.len();
        let on_disk = |at: usize| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64).unwrap();
            byte[0]
        };
        assert_eq!(byte(&region, 2 * PAGE), 1);
        assert_eq!(region.write_back(0..len).unwrap(), 0, "nothing was written");
        for at in [0, 2 * PAGE, 3 * PAGE, 5 * PAGE + 9] {
            region.write(at, &[2]);
            assert_eq!(on_disk(at), 1);
        }
        assert_eq!(region.write_back(PAGE..3 * PAGE).unwrap(), PAGE);
        assert_eq!([0, 2 * PAGE, 3 * PAGE].map(on_disk), [1, 2, 1]);
        assert_eq!(region.write_back(0..len).unwrap(), 2 * PAGE + 10);
        assert_eq!([0, 2 * PAGE, 3 * PAGE, 5 * PAGE + 9].map(on_disk), [2; 4]);
        assert_eq!(file.metadata().unwrap().len(), len as u64, "not longer");
        assert!(region.written(0..len).unwrap().is_empty());
        // And again.
        region.write(2 * PAGE, &[3]);
        assert_eq!(region.written(0..len).unwrap(), [2 * PAGE..3 * PAGE]);
        region.discard(2 * PAGE..3 * PAGE).unwrap();
        assert_eq!((byte(&region, 2 * PAGE), region.write_back(0..len).unwrap()), (2, 0));
    }
}

#[test]
fn what_cannot_be_written_back_is_kept() {
    common::watch();
    let file = file_with(&[1; 3 * PAGE]);
    let region = Options::new().writable().map(FileSource::new(file).unwrap()).unwrap();
    region.write(PAGE, &[2]);
    region.protect(0..3 * PAGE, Access::None).unwrap();
    assert!(matches!(region.write_back(0..3 * PAGE), Err(Error::NoAccess(_))));
    region.protect(0..3 * PAGE, Access::Read).unwrap();
    assert_eq!(region.write_back(0..3 * PAGE).unwrap(), PAGE);

    let region = Options::new().writable().map(MemorySource::new(vec![1; PAGE])).unwrap();
    region.write(0, &[2]);
    assert!(matches!(region.write_back(0..PAGE), Err(Error::WriteBack(_))));
    assert_eq!((byte(&region, 0), region.written(0..PAGE).unwrap()), (2, vec![0..PAGE]));
}

#[test]
fn a_bounded_region_keeps_what_is_written() {
    common::watch();
    const PAGES: usize = 300;
    for mode in MODES {
        let mut expected = random_bytes(PAGES * PAGE, 3);
        let file = file_with(&expected);
        let source = FileSource::new(file.try_clone().unwrap()).unwrap();
        let options = Options::new().writable().resident(20 * PAGE);
        let region = match mode {
            Mode::Signal => options.map(source).unwrap(),
            Mode::Thread => options.handler_threads(1).map(source).unwrap(),
        };
        let mut random = StdRng::seed_from_u64(4);
        for _ in 0..5000 {
            let at = random.random_range(0..expected.len());
            if random.random() {
                let value = random.random();
                region.write(at, &[value]);
                expected[at] = value;
            } else {
                assert_eq!(byte(&region, at), expected[at]);
            }
        }
        assert!(bytes(&region) == expected);
        region.write_back(0..PAGES * PAGE).unwrap();
        let mut on_disk = vec![0; expected.len()];
        file.read_exact_at(&mut on_disk, 0).unwrap();
        assert!(on_disk == expected, "{mode:?}");
    }
}

/// Delivers, or not.
struct Moody(AtomicBool);

impl Source for Moody {
    fn size(&self) -> u64 {
        20 * PAGE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let bad = 5 * PAGE as u64..6 * PAGE as u64;
        let meets = offset < bad.end && bad.start < offset + buf.len() as u64;
        if meets && self.0.load(Relaxed) {
            return Err(ReadFailed);
        }
        buf.fill(7);
        Ok(())
    }
}

// SAFETY: an atomic, and the buffer it is given.
unsafe impl pervma_pager::SignalSafe for Moody {}

#[test]
fn a_failure_is_one_page_and_ends_when_it_is_discarded() {
    if let Some(case) = child_case() {
        let moody = Arc::new(Moody(AtomicBool::new(true)));
        let options = Options::new().granule(16 * PAGE).on_failure(OnFailure::exit(42, "gone\n"));
        let region = match case.as_str() {
            "signal" => options.map(Arc::clone(&moody)).unwrap(),
            "thread" => options.handler_threads(1).map(Arc::clone(&moody)).unwrap(),
            "pass" => options.on_failure(OnFailure::pass_on()).map(Arc::clone(&moody)).unwrap(),
            "thread_pass" => {
                let options = options.on_failure(OnFailure::pass_on()).handler_threads(1);
                options.map(Arc::clone(&moody)).unwrap()
            }
            _ => unreachable!(),
        };
        // The others of its granule are there.
        for page in (0..20).filter(|&page| page != 5) {
            assert_eq!(byte(&region, page * PAGE), 7);
        }
        moody.0.store(false, Relaxed);
        assert_eq!(byte(&region, 5 * PAGE), 7, "it was not read before");
        moody.0.store(true, Relaxed);
        region.discard(5 * PAGE..6 * PAGE).unwrap();
        byte(&region, 5 * PAGE);
        unreachable!("invented bytes");
    }
    let name = "a_failure_is_one_page_and_ends_when_it_is_discarded";
    for case in ["signal", "thread"] {
        let ended = run_child(name, case);
        assert_eq!((ended.exit, ended.stderr.as_str()), (Some(42), "gone\n"), "{case}");
    }
    for case in ["pass", "thread_pass"] {
        assert_eq!(run_child(name, case).signal, Some(SIGBUS), "{case}");
    }
}

#[test]
fn a_thread_serves_system_calls_if_it_may() {
    common::watch();
    let bytes = random_bytes(100 * PAGE, 8);
    let file = tempfile::tempfile().unwrap();
    for region in regions(&bytes, Mode::Thread, |options| options) {
        let serves = common::serves_system_calls(&region);
        let region = region.freeze().unwrap();
        let written = rustix::io::write(&file, &region[..16 * PAGE]);
        if serves {
            assert_eq!(written, Ok(16 * PAGE));
        } else {
            assert_eq!(written, Err(rustix::io::Errno::FAULT));
        }
        assert!(region[..] == bytes);
    }
}

/// Delivers the end of a granule when it is told to.
struct Slow(Mutex<bool>, Condvar);

impl Source for Slow {
    fn size(&self) -> u64 {
        128 * PAGE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        if offset == 48 * PAGE as u64 {
            drop(self.1.wait_while(self.0.lock().unwrap(), |waits| *waits).unwrap());
        }
        buf.fill(1);
        Ok(())
    }
}

/// A thread goes on when its page is there. If what it does then spoils the rest of the granule,
/// its fault is not served once more.
#[test]
fn a_fault_whose_page_came_is_not_served_again() {
    common::watch();
    let source = Arc::new(Slow(Mutex::new(true), Condvar::new()));
    let options = Options::new().handler_threads(1).writable().granule(64 * PAGE);
    let region = options.map(Arc::clone(&source)).unwrap();
    region.write(0, &[2]);
    region.discard(0..region.len()).unwrap();
    *source.0.lock().unwrap() = false;
    source.1.notify_all();
    // The same thread serves this, after what it had to do.
    assert_eq!(byte(&region, 64 * PAGE), 1);
    assert!(region.written(0..region.len()).unwrap().is_empty());
}

/// Says that it has filled what it has not.
struct Lazy;

impl Source for Lazy {
    fn size(&self) -> u64 {
        64 * PAGE as u64 - 5
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadFailed> {
        Ok(())
    }
}

// SAFETY: it does nothing.
unsafe impl SignalSafe for Lazy {}

#[test]
fn what_a_source_does_not_fill_is_zeros_and_not_another_regions() {
    common::watch();
    for mode in MODES {
        for granule in [1, 16] {
            let secret = file_with(&[7; 64 * PAGE]);
            let options = Options::new().granule(granule * PAGE);
            let secret = FileSource::new(secret).unwrap();
            let [secret, lazy] = match mode {
                Mode::Signal => [options.clone().map(secret), options.map(Lazy)],
                Mode::Thread => {
                    let options = options.handler_threads(1);
                    [options.clone().map(secret), options.map(Lazy)]
                }
            }
            .map(|region| region.unwrap());
            for page in 0..64 {
                assert_eq!(byte(&secret, page * PAGE), 7);
                assert_eq!(byte(&lazy, page * PAGE), 0, "{mode:?} {granule}");
            }
            assert!(bytes(&lazy).iter().all(|&byte| byte == 0), "{mode:?} {granule}");
        }
    }
}

/// Maps a region in a handler thread, which reads its source then.
struct Nested(Mutex<Option<Error>>);

impl Source for Nested {
    fn size(&self) -> u64 {
        PAGE as u64
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadFailed> {
        *self.0.lock().unwrap() = Options::new().map(MemorySource::new([1].as_slice())).err();
        Ok(())
    }
}

#[test]
fn a_source_that_maps_a_region_is_told_where_it_is() {
    common::watch();
    let source = Arc::new(Nested(Mutex::new(None)));
    let region = Options::new().handler_threads(1).map(Arc::clone(&source)).unwrap();
    assert_eq!(byte(&region, 0), 0);
    let refused = source.0.lock().unwrap().take();
    assert!(matches!(refused, Some(Error::InsideSource)), "{refused:?}");
}

#[test]
fn several_threads_serve_a_region() {
    common::watch();
    let bytes = random_bytes(500 * PAGE, 8);
    let region = Options::new().handler_threads(3).map(MemorySource::new(&bytes[..])).unwrap();
    let region = region.freeze().unwrap();
    std::thread::scope(|threads| {
        for start in 0..4 {
            let (region, bytes) = (&region, &bytes);
            threads.spawn(move || {
                for page in (start * 100..500).chain(0..start * 100) {
                    assert_eq!(region[page * PAGE], bytes[page * PAGE]);
                }
            });
        }
    });
}

/// Can be read so many times, and written at any time.
struct Expiring(AtomicUsize);

const HUGE: usize = 2 << 20;

impl Source for Expiring {
    fn size(&self) -> u64 {
        HUGE as u64
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let left = self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        buf.fill(7);
        left.map(drop).map_err(|_| ReadFailed)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// The kernel keeps the write protection of a huge page that is given back, in whose place it would
/// not poison: the access that fails would fault again and again.
#[test]
fn a_huge_page_that_cannot_be_had_again_fails_the_access() {
    let name = "a_huge_page_that_cannot_be_had_again_fails_the_access";
    if let Some(case) = child_case() {
        let options = Options::new().huge_pages().writable().handler_threads(1);
        let options = options.on_failure(OnFailure::exit(42, "cannot be had\n"));
        let mut region = options.map(Expiring(AtomicUsize::new(1))).unwrap();
        region.write(0, &[1]);
        region.write_back(0..HUGE).unwrap();
        match case.as_str() {
            "discarded" => region.discard(0..HUGE).unwrap(),
            "mapped again" => {
                region.unmap(0..HUGE).unwrap();
                region.map(0..HUGE).unwrap();
            }
            _ => region.relocate(0).unwrap(),
        }
        byte(&region, 5);
        unreachable!("the source cannot be read any more");
    }
    let Some(_pages) = common::huge_pages(2) else { return };
    for case in ["discarded", "mapped again", "moved"] {
        let ended = run_child(name, case);
        assert_eq!(ended.exit, Some(42), "{case}: {ended:?}");
    }
}

#[test]
fn huge_pages_hold_the_bytes() {
    common::watch();
    let Some(_pages) = common::huge_pages(6) else { return };
    let mut expected = random_bytes(2 * HUGE + 12345, 4);
    for mode in MODES {
        let options = Options::new().huge_pages().writable();
        let source = MemorySource::new(&expected[..]);
        let region = match mode {
            Mode::Signal => options.map(source),
            Mode::Thread => {
                let file = FileSource::new(file_with(&expected)).unwrap();
                options.handler_threads(1).map(file)
            }
        };
        let region = region.unwrap();
        assert!(bytes(&region) == expected);
        region.write(HUGE, &[1, 2, 3]);
        assert_eq!(region.written(0..region.len()).unwrap(), [HUGE..2 * HUGE]);
        assert!(matches!(region.discard(0..PAGE), Err(Error::Range { .. })));
        region.discard(0..HUGE).unwrap();
        let mut region = region;
        region.relocate(0).unwrap();
        let before = expected[HUGE..HUGE + 3].to_vec();
        expected[HUGE..HUGE + 3].copy_from_slice(&[1, 2, 3]);
        assert!(bytes(&region) == expected);
        expected[HUGE..HUGE + 3].copy_from_slice(&before);
    }
}

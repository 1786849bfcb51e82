//! Code in a region: it is run page by page, and what was written is run when it may be.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "threads of the test tell each other when to end")]
#![cfg(target_arch = "x86_64")]

mod common;

use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::{MODES, Mode, PAGE, child_case, file_with, run_child};
use pervma_pager::sys::Access;
use pervma_pager::{Error, FileSource, Options, Region};

const PAGES: usize = 12;

/// A function that returns a number.
fn function(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_le_bytes();
    // mov eax, number; ret
    [0xb8, a, b, c, d, 0xc3]
}

/// A page each of functions that return its number.
fn functions() -> Vec<u8> {
    let mut bytes = vec![0xcc; PAGES * PAGE];
    for (number, page) in (0..).zip(bytes.chunks_mut(PAGE)) {
        page[9..15].copy_from_slice(&function(number));
    }
    bytes
}

/// Calls the function of a page.
fn call(region: &Region, page: usize) -> u32 {
    let start = region.as_ptr().wrapping_add(page * PAGE + 9);
    // SAFETY: code of this processor is there, or comes when it is fetched, with this signature.
    unsafe { std::mem::transmute::<*mut u8, extern "C" fn() -> u32>(start)() }
}

fn map(mode: Mode, options: Options) -> (Region, std::fs::File) {
    let file = file_with(&functions());
    let source = FileSource::new(file.try_clone().unwrap()).unwrap();
    let region = match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(1).map(source),
    };
    (region.unwrap(), file)
}

#[test]
fn code_is_run_page_by_page() {
    common::watch();
    for mode in MODES {
        let (region, _) = map(mode, Options::new().resident(4 * PAGE));
        let all = 0..region.len();
        region.protect(all.clone(), Access::ReadExecute).unwrap();
        for page in (0..PAGES).chain((0..PAGES).rev()) {
            assert_eq!(call(&region, page), page as u32, "{mode:?}");
        }
        assert!(region.most_resident().unwrap() <= 4 * PAGE);
        region.discard(all.clone()).unwrap();
        assert_eq!(call(&region, 5), 5);
        region.unmap(0..PAGE).unwrap();
        region.map(0..PAGE).unwrap();
        region.protect(0..PAGE, Access::ReadExecute).unwrap();
        assert_eq!(call(&region, 0), 0);
        assert!(matches!(region.protect(all, Access::ReadWrite), Err(Error::ReadOnly)));
        let frozen = region.freeze().unwrap();
        assert!(frozen[..] == functions());
    }
}

#[test]
fn what_was_written_is_run_and_stored_beside() {
    common::watch();
    for mode in MODES {
        for bound in [None, Some(6 * PAGE)] {
            let options = Options::new().writable();
            let options = bound.into_iter().fold(options, Options::resident);
            let (mut region, file) = map(mode, options);
            let all = 0..region.len();
            for _ in 0..100 {
                region.protect(all.clone(), Access::ReadWrite).unwrap();
                for page in 0..PAGES {
                    region.write_checked(page * PAGE + 9, &function(100 + page as u32)).unwrap();
                }
                region.protect(all.clone(), Access::ReadExecute).unwrap();
                let (runs, is_over) = (&Barrier::new(2), &AtomicBool::new(false));
                let shared = &region;
                std::thread::scope(|scope| {
                    let running = scope.spawn(move || {
                        runs.wait();
                        while !is_over.load(Relaxed) {
                            for page in 0..PAGES {
                                assert_eq!(call(shared, page), 100 + page as u32, "{mode:?}");
                            }
                        }
                    });
                    runs.wait();
                    shared.write_back(all.clone()).unwrap();
                    assert!(shared.written(all.clone()).unwrap().is_empty());
                    shared.discard(0..3 * PAGE).unwrap();
                    is_over.store(true, Relaxed);
                    running.join().unwrap();
                });
            }
            let mut stored = [0; 6];
            file.read_exact_at(&mut stored, 7 * PAGE as u64 + 9).unwrap();
            assert_eq!(stored, function(107));
            region.protect(PAGE..2 * PAGE, Access::ReadWrite).unwrap();
            region.write(PAGE + 9, &function(7));
            region.protect(PAGE..2 * PAGE, Access::ReadExecute).unwrap();
            assert_eq!(call(&region, 1), 7);
            region.relocate(0).unwrap();
            assert_eq!([call(&region, 1), call(&region, 2)], [7, 102]);
        }
    }
}

/// Never both: what may be run is not written, and what may be written is not run.
#[test]
fn code_is_not_written_while_it_may_be_run() {
    let name = "code_is_not_written_while_it_may_be_run";
    if let Some(case) = child_case() {
        let mode = if case.starts_with("Signal") { Mode::Signal } else { Mode::Thread };
        let (region, _) = map(mode, Options::new().writable());
        if case.ends_with("written") {
            region.protect(0..PAGE, Access::ReadExecute).unwrap();
            assert!(region.write_checked(0, &[1]).is_err());
            region.write(0, &[1]);
        } else {
            region.write(9, &function(1));
            call(&region, 0);
        }
        return;
    }
    for mode in MODES {
        for case in ["written", "run"] {
            let ended = run_child(name, &format!("{mode:?} {case}"));
            assert_eq!(ended.signal, Some(libc::SIGSEGV), "{mode:?} {case}: {ended:?}");
        }
    }
}

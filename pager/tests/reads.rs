//! How often a source is read, for how much, and with what memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Arc, Mutex};

use common::{MODES, Mode, PAGE, byte, file_with};
use pervma_pager::{FileSource, Options, ReadFailed, Region, SignalSafe, Source};

/// Notes what it is asked for. Every byte is the number of its page.
struct Noting {
    size: u64,
    asked: Mutex<Vec<(u64, usize)>>,
}

impl Noting {
    fn new(size: usize) -> Arc<Self> {
        Arc::new(Self { size: size as u64, asked: Mutex::new(Vec::with_capacity(10_000)) })
    }

    fn asked(&self) -> Vec<(u64, usize)> {
        self.asked.lock().unwrap().clone()
    }
}

fn fill(offset: u64, buf: &mut [u8]) {
    for (page, part) in (offset / PAGE as u64..).zip(buf.chunks_mut(PAGE)) {
        part.fill(page as u8);
    }
}

impl Source for Noting {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        assert!(buf.iter().all(|&byte| byte == 0), "a buffer of zeros");
        self.asked.lock().unwrap().push((offset, buf.len()));
        fill(offset, buf);
        Ok(())
    }
}

// SAFETY: the lock is taken here and by a test that does not touch the region meanwhile, and the
// list has room.
unsafe impl SignalSafe for Noting {}

fn map<S: SignalSafe + 'static>(mode: Mode, options: Options, threads: usize, source: S) -> Region {
    match mode {
        Mode::Signal => options.map(source),
        Mode::Thread => options.handler_threads(threads).map(source),
    }
    .unwrap()
}

#[test]
fn a_source_is_asked_for_a_granule_at_once() {
    common::watch();
    const MIB: usize = 1 << 20;
    for mode in MODES {
        for granule in [PAGE, 64 << 10, 128 << 10, MIB, 2 * MIB, 8 * MIB] {
            let len = 3 * granule + granule / 2 + 7;
            let source = Noting::new(len);
            let region = map(mode, Options::new().granule(granule), 2, Arc::clone(&source));
            for start in (0..len).step_by(granule) {
                let at = start + (len - start).min(granule) / 2;
                assert_eq!(byte(&region, at), (at / PAGE) as u8);
            }
            let granules = (0..len).step_by(granule);
            let expected: Vec<_> =
                granules.map(|start| (start as u64, granule.min(len - start))).collect();
            assert_eq!(source.asked(), expected, "{mode:?}, granules of {granule}");
            let bytes = common::bytes(&region);
            assert!((0..len).all(|at| bytes[at] == (at / PAGE) as u8), "{mode:?} {granule}");
        }
    }
}

/// Runs a function in a thread whose stack has so many bytes; `false` if there can be no such
/// thread.
fn with_stack(bytes: usize, work: fn()) -> bool {
    extern "C" fn run(work: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the function that `with_stack` was given.
        let work: fn() = unsafe { std::mem::transmute(work) };
        work();
        ptr::null_mut()
    }
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: makes the attributes.
    assert_eq!(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) }, 0);
    // SAFETY: they were made.
    assert_eq!(unsafe { libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), bytes) }, 0);
    let mut thread = MaybeUninit::uninit();
    let work = work as *mut libc::c_void;
    // SAFETY: the function takes what it is given here.
    let made = unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), run, work) };
    if made != 0 {
        assert_eq!(made, libc::EINVAL);
        return false;
    }
    // SAFETY: it was made.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: it is joined once.
    assert_eq!(unsafe { libc::pthread_join(thread, ptr::null_mut()) }, 0);
    true
}

#[test]
fn threads_with_small_stacks_can_be_made() {
    common::watch();
    assert!(with_stack(16 << 10, || {}), "16 KiB");
}

#[test]
fn a_thread_with_a_stack_of_64_kib_can_fault() {
    common::watch();
    let fault = || {
        let file = || FileSource::new(file_with(&vec![7; 64 * PAGE])).unwrap();
        for options in [Options::new(), Options::new().granule(64 << 10).writable()] {
            let region = options.map(file()).unwrap();
            assert!((0..64).all(|page| byte(&region, page * PAGE) == 7));
        }
    };
    assert!(with_stack(64 << 10, fault), "64 KiB");
}

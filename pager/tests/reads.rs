//! How often a source is read, for how much, and with what memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "flags of tests")]

mod common;

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{MODES, Mode, PAGE, byte, child_case, file_with, run_child};
use pervma_pager::{
    Failure, FileSource, OnFailure, Options, ReadFailed, Region, Response, SignalSafe, Source,
};

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

/// Threads that all touch a region at about the same time.
#[derive(Default)]
struct Crowd {
    /// Of each that has begun its access, the number that the kernel knows it by.
    begun: Mutex<Vec<i32>>,
    may_begin: AtomicBool,
}

impl Crowd {
    const SIZE: usize = 8;

    /// Each thread reads the byte at its offset.
    fn read(&self, region: &Region, offsets: [usize; Self::SIZE]) -> [u8; Self::SIZE] {
        std::thread::scope(|scope| {
            let threads = offsets.map(|offset| scope.spawn(move || self.read_one(region, offset)));
            self.may_begin.store(true, Ordering::SeqCst);
            threads.map(|thread| thread.join().unwrap())
        })
    }

    fn read_one(&self, region: &Region, offset: usize) -> u8 {
        // SAFETY: no condition.
        let thread = unsafe { libc::gettid() };
        while !self.may_begin.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // The source here needs more than threads have.
        let mut stack = vec![0_u8; 256 << 10];
        let large =
            libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
        let mut before = large;
        // SAFETY: the stack lives until the one before is restored.
        assert_eq!(unsafe { libc::sigaltstack(&raw const large, &raw mut before) }, 0);
        self.begun.lock().unwrap().push(thread);
        let read = byte(region, offset);
        // SAFETY: the stack that the thread had.
        assert_eq!(unsafe { libc::sigaltstack(&raw const before, ptr::null_mut()) }, 0);
        read
    }

    /// Waits, in a source, until all threads but those that call this are asleep in their accesses,
    /// or something else is so.
    fn await_sleepers(&self, or: impl Fn() -> bool) {
        let is_asleep = |thread: &i32| {
            let file = format!("/proc/self/task/{thread}/stat");
            let stat = std::fs::read_to_string(file).unwrap_or_default();
            stat.rsplit(')').next().unwrap().trim_start().starts_with(['S', 'D'])
        };
        // SAFETY: no condition.
        let own = unsafe { libc::gettid() };
        loop {
            let begun = self.begun.lock().unwrap().clone();
            let awake = begun.iter().filter(|&thread| *thread != own && !is_asleep(thread));
            if or() || begun.len() == Self::SIZE && awake.count() == 0 {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// A source whose first read ends when all threads sleep that want something of it, and which fails
/// so many times.
struct Crowded {
    crowd: Crowd,
    fails: usize,
    asked: Mutex<Vec<(u64, usize)>>,
}

impl Crowded {
    fn failing(fails: usize) -> Arc<Self> {
        Arc::new(Self { crowd: Crowd::default(), fails, asked: Mutex::default() })
    }

    fn asked(&self) -> Vec<(u64, usize)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Source for Crowded {
    fn size(&self) -> u64 {
        64 * PAGE as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let number = {
            let mut asked = self.asked.lock().unwrap();
            asked.push((offset, buf.len()));
            asked.len()
        };
        if number == 1 {
            self.crowd.await_sleepers(|| self.asked.lock().unwrap().len() > 1);
        }
        if number <= self.fails {
            return Err(ReadFailed);
        }
        fill(offset, buf);
        Ok(())
    }
}

// SAFETY: it locks and allocates. The threads that touch the region here do neither when they do
// that, and read a byte at an address.
unsafe impl SignalSafe for Crowded {}

#[test]
fn a_granule_is_read_once_for_all_threads_that_want_it() {
    common::watch();
    for (granule, stride) in [(PAGE, 0), (16 * PAGE, PAGE), (16 * PAGE, 0)] {
        for (mode, handlers) in [(Mode::Signal, 0), (Mode::Thread, 1), (Mode::Thread, 4)] {
            for _ in 0..20 {
                let source = Crowded::failing(0);
                let options = Options::new().granule(granule);
                let region = map(mode, options, handlers, Arc::clone(&source));
                let pages = std::array::from_fn(|thread| 16 + thread * stride / PAGE);
                let read = source.crowd.read(&region, pages.map(|page| page * PAGE));
                assert_eq!(read, pages.map(|page| page as u8));
                let once = [(16 * PAGE as u64, granule)];
                assert_eq!(source.asked(), once, "{mode:?} {handlers}, granule {granule}");
            }
        }
    }
}

#[test]
fn threads_that_wait_for_a_read_that_fails_read_themselves() {
    common::watch();
    for (mode, handlers) in [(Mode::Signal, 0), (Mode::Thread, 1), (Mode::Thread, 4)] {
        for _ in 0..20 {
            let source = Crowded::failing(1);
            let options = Options::new().granule(16 * PAGE);
            let region = map(mode, options, handlers, Arc::clone(&source));
            let pages = std::array::from_fn(|thread| 16 + thread);
            let read = source.crowd.read(&region, pages.map(|page| page * PAGE));
            assert_eq!(read, pages.map(|page| page as u8));
            // The granule; the page of the first; what is left before it and behind it.
            let asked = source.asked();
            assert!((3..=4).contains(&asked.len()), "{mode:?} {handlers}: {asked:?}");
        }
    }
}

/// How many accesses have failed, in a child.
static FAILED: AtomicUsize = AtomicUsize::new(0);

fn note_failure(_: &Failure) -> Response {
    FAILED.fetch_add(1, Ordering::SeqCst);
    loop {
        // SAFETY: no condition.
        unsafe { libc::pause() };
    }
}

#[test]
fn a_page_that_cannot_be_had_is_asked_for_once() {
    if let Some(case) = child_case() {
        let (mode, handlers) = if case == "signal" { (Mode::Signal, 0) } else { (Mode::Thread, 4) };
        let source = Crowded::failing(usize::MAX);
        // SAFETY: the function is async-signal-safe.
        let hook = unsafe { OnFailure::call(note_failure, 0) };
        let options = Options::new().on_failure(hook);
        let region = map(mode, options, handlers, Arc::clone(&source));
        let theirs = Arc::clone(&source);
        std::thread::spawn(move || theirs.crowd.read(&region, [3 * PAGE; Crowd::SIZE]));
        while FAILED.load(Ordering::SeqCst) < Crowd::SIZE {
            std::thread::yield_now();
        }
        std::process::exit(40 + source.asked().len() as i32);
    }
    common::watch();
    for case in ["signal", "thread"] {
        let ended = run_child("a_page_that_cannot_be_had_is_asked_for_once", case);
        assert_eq!(ended.exit, Some(41), "{case}: {ended:?}");
    }
}

/// A source whose reads end when so many are under way at a time.
struct Together {
    reads: usize,
    under_way: Mutex<usize>,
    changed: Condvar,
    most: AtomicUsize,
}

impl Together {
    fn new(reads: usize) -> Arc<Self> {
        let (under_way, changed, most) = Default::default();
        Arc::new(Self { reads, under_way, changed, most })
    }
}

impl Source for Together {
    fn size(&self) -> u64 {
        64 << 20
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let mut under_way = self.under_way.lock().unwrap();
        *under_way += 1;
        self.most.fetch_max(*under_way, Ordering::SeqCst);
        self.changed.notify_all();
        // It ends all the same, so that the test fails and does not hang.
        let is_enough = |_: &mut usize| self.most.load(Ordering::SeqCst) < self.reads;
        let waited = self.changed.wait_timeout_while(under_way, Duration::from_secs(10), is_enough);
        *waited.unwrap().0 -= 1;
        fill(offset, buf);
        Ok(())
    }
}

// SAFETY: as for `Crowded`.
unsafe impl SignalSafe for Together {}

#[test]
fn handler_threads_that_idle_take_what_others_have_not_begun() {
    common::watch();
    const HANDLERS: usize = 8;
    for _ in 0..20 {
        let source = Together::new(HANDLERS);
        let region = map(Mode::Thread, Options::new(), HANDLERS, Arc::clone(&source));
        let crowd = Crowd::default();
        let pages: [usize; HANDLERS] = std::array::from_fn(|thread| thread);
        assert_eq!(crowd.read(&region, pages.map(|page| page * PAGE)), pages.map(|p| p as u8));
        assert_eq!(source.most.load(Ordering::SeqCst), HANDLERS);
    }
}

/// More threads read at a time than there are large buffers.
#[test]
fn many_threads_read_at_a_time() {
    common::watch();
    const READS: usize = 24;
    const GRANULE: usize = 2 << 20;
    let source = Together::new(READS);
    let region = &map(Mode::Signal, Options::new().granule(GRANULE), 0, Arc::clone(&source));
    std::thread::scope(|scope| {
        for granule in 0..READS {
            scope.spawn(move || {
                for page in [granule * GRANULE / PAGE + 77, (granule + 1) * GRANULE / PAGE - 1] {
                    assert_eq!(byte(region, page * PAGE), page as u8);
                }
            });
        }
    });
    assert_eq!(source.most.load(Ordering::SeqCst), READS);
}

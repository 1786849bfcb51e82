//! Signals that are not a region's, faults that cannot be served, and forked children.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "a handler and its test share counters")]

mod common;

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use common::{PAGE, child_case, run_child};
use libc::{SIGBUS, siginfo_t};
use pervma_pager::sys::Access;
use pervma_pager::{
    Error, FileSource, FrozenRegion, MemorySource, Options, ReadFailed, SignalSafe, Source,
};
use rustix::mm::{MapFlags, ProtFlags};

/// What the handlers of these tests exit with.
const CALLED: c_int = 42;

/// Installs `handler` for SIGBUS, with a mask that has SIGUSR1.
fn handle_sigbus(handler: usize, flags: c_int) {
    // SAFETY: a C structure of integers and an optional function: all zeros is valid.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: a valid set.
    unsafe { libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR1) };
    // SAFETY: `handler` is SIG_DFL, SIG_IGN or a function that fits the flags.
    assert_eq!(unsafe { libc::sigaction(SIGBUS, &raw const action, ptr::null_mut()) }, 0);
}

/// A page of an ordinary mapping whose file is gone: touching it is a SIGBUS of the kernel's own.
fn beyond_the_end() -> *const u8 {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE as u64).unwrap();
    let (nowhere, flags) = (ptr::null_mut(), MapFlags::SHARED);
    // SAFETY: maps to addresses that the kernel chooses.
    let page = unsafe { rustix::mm::mmap(nowhere, PAGE, ProtFlags::READ, flags, &file, 0) };
    file.set_len(0).unwrap();
    page.unwrap().cast()
}

fn touch(address: *const u8) {
    // SAFETY: mapped; what happens then is the test.
    std::hint::black_box(unsafe { address.read_volatile() });
}

/// A region that works, mapped after the handler of the test was installed.
fn working_region() -> FrozenRegion {
    let region = FrozenRegion::map(MemorySource::new(vec![1; 2 * PAGE])).unwrap();
    assert_eq!(region[0], 1);
    region
}

fn exit_now(code: c_int) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(code) }
}

extern "C" fn exits(signal: c_int) {
    exit_now(if signal == SIGBUS { CALLED } else { 1 });
}

fn is_blocked(signal: c_int) -> bool {
    let mut mask = MaybeUninit::uninit();
    // SAFETY: only asks, and writes the set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()) };
    // SAFETY: a set that was written.
    unsafe { libc::sigismember(mask.as_ptr(), signal) == 1 }
}

/// Exits well if it is called as the kernel would: with the cause, the context and the mask.
unsafe extern "C" fn inspects(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: a handler's argument.
    let info = unsafe { &*info };
    let as_expected = signal == SIGBUS
        && info.si_signo == SIGBUS
        && info.si_code == libc::BUS_ADRERR
        && !context.is_null()
        && is_blocked(SIGBUS)
        && is_blocked(libc::SIGUSR1)
        && !is_blocked(libc::SIGUSR2);
    exit_now(if as_expected { CALLED } else { 1 });
}

unsafe extern "C" fn inspects_nodefer(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let as_expected = !is_blocked(SIGBUS) && is_blocked(libc::SIGUSR1);
    exit_now(if as_expected { CALLED } else { 1 });
}

extern "C" fn returns(_signal: c_int) {}

type Informed = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
type Plain = extern "C" fn(c_int);

#[test]
fn a_foreign_fault_reaches_whoever_was_there_before() {
    if let Some(case) = child_case() {
        let (handler, flags) = match case.as_str() {
            "plain" => (exits as Plain as usize, 0),
            "informed" => (inspects as Informed as usize, libc::SA_SIGINFO),
            "nodefer" => {
                (inspects_nodefer as Informed as usize, libc::SA_SIGINFO | libc::SA_NODEFER)
            }
            "once" => (returns as Plain as usize, libc::SA_RESETHAND),
            "default" => (libc::SIG_DFL, 0),
            "ignore" => (libc::SIG_IGN, 0),
            _ => unreachable!(),
        };
        handle_sigbus(handler, flags);
        let region = working_region();
        touch(beyond_the_end());
        drop(region);
        return;
    }

    let name = "a_foreign_fault_reaches_whoever_was_there_before";
    for case in ["plain", "informed", "nodefer"] {
        assert_eq!(run_child(name, case).exit, Some(CALLED), "{case}");
    }
    for case in ["once", "default", "ignore"] {
        assert_eq!(run_child(name, case).signal, Some(SIGBUS), "{case}");
    }
}

/// What a handler that was installed over another one passes signals on to, and how often it did.
static PASSES_ON_TO: AtomicUsize = AtomicUsize::new(0);
static PASSED_ON: AtomicUsize = AtomicUsize::new(0);

/// Takes nothing itself.
unsafe extern "C" fn passes_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    PASSED_ON.fetch_add(1, Relaxed);
    // SAFETY: the handler of this crate, which is such a function.
    let next = unsafe { std::mem::transmute::<usize, Informed>(PASSES_ON_TO.load(Relaxed)) };
    // SAFETY: as they came.
    unsafe { next(signal, info, context) };
}

/// An application's own, which serves regions.
unsafe extern "C" fn serves(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    PASSED_ON.fetch_add(1, Relaxed);
    // SAFETY: a handler's arguments, with all signals blocked.
    if !unsafe { pervma_pager::serve_sigbus(signal, info.cast(), context) } {
        exit_now(CALLED);
    }
}

/// Installs a handler over the one that is there, with all signals blocked.
fn take_sigbus(handler: Informed) {
    // SAFETY: a C structure of integers and an optional function: all zeros is valid.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut before = action;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: a valid set.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    // SAFETY: a function that fits the flags; what was there is written.
    assert_eq!(unsafe { libc::sigaction(SIGBUS, &raw const action, &raw mut before) }, 0);
    PASSES_ON_TO.store(before.sa_sigaction, Relaxed);
}

#[test]
fn the_handler_can_be_installed_again() {
    if let Some(case) = child_case() {
        if case != "sent" {
            handle_sigbus(exits as Plain as usize, 0);
        }
        let region = working_region();
        match case.as_str() {
            // By one that keeps all for itself.
            "taken" => take_sigbus(inspects_all),
            "passed on" => take_sigbus(passes_on),
            // The standard library's handler restores the default action.
            "sent" => send_sigbus(ptr::null()),
            _ => assert_eq!(case, "there"),
        }
        for _ in 0..3 {
            pervma_pager::install_handler().unwrap();
        }
        assert_eq!(region[PAGE], 1);
        assert_eq!(PASSED_ON.load(Relaxed), 0, "it is the first again");
        if case == "sent" {
            exit_now(CALLED);
        }
        touch(beyond_the_end());
        unreachable!("it is no region's");
    }
    let name = "the_handler_can_be_installed_again";
    for case in ["taken", "passed on", "sent", "there"] {
        let ended = run_child(name, case);
        assert_eq!(ended.exit, Some(CALLED), "{case}: {ended:?}");
    }
}

/// It ends the process, whatever it is called for.
unsafe extern "C" fn inspects_all(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    exit_now(CALLED);
}

#[test]
fn a_handler_of_the_application_can_serve() {
    if let Some(case) = child_case() {
        let region = working_region();
        take_sigbus(serves);
        for _ in 0..2 {
            // SAFETY: no condition.
            let errno = unsafe { libc::__errno_location() };
            // SAFETY: the thread's own.
            unsafe { errno.write(7) };
            assert_eq!(region[PAGE], 1);
            // SAFETY: as above.
            assert_eq!(unsafe { errno.read() }, 7);
            assert_eq!(PASSED_ON.load(Relaxed), 1, "the page is there then");
        }
        let mut context = [0_u8; 8];
        let context = context.as_mut_ptr().cast();
        // SAFETY: it looks at none of its arguments, for another signal.
        assert!(!unsafe { pervma_pager::serve_sigbus(libc::SIGSEGV, context, context) });
        match case.as_str() {
            "fault" => touch(beyond_the_end()),
            _ => send_sigbus(&raw const region[PAGE]),
        }
        unreachable!("it is no region's");
    }
    let name = "a_handler_of_the_application_can_serve";
    for case in ["fault", "sent"] {
        let ended = run_child(name, case);
        assert_eq!(ended.exit, Some(CALLED), "{case}: {ended:?}");
    }
}

/// Sends this thread a SIGBUS that claims `address`.
fn send_sigbus(address: *const u8) {
    /// The start of `siginfo_t`, as the kernel lays it out for faults.
    #[repr(C)]
    struct Info {
        signal: c_int,
        errno: c_int,
        code: c_int,
        address: *const u8,
        rest: [u64; 13],
    }
    const _: () = assert!(size_of::<Info>() == size_of::<siginfo_t>());

    let info = Info { signal: SIGBUS, errno: 0, code: libc::SI_QUEUE, address, rest: [0; 13] };
    let (process, call) = (std::process::id(), libc::SYS_rt_tgsigqueueinfo);
    // SAFETY: no condition.
    let thread = unsafe { libc::gettid() };
    // SAFETY: sends a signal to this thread; the kernel only reads `info`.
    let sent = unsafe { libc::syscall(call, process, thread, SIGBUS, &raw const info) };
    assert_eq!(sent, 0);
}

#[test]
fn a_signal_that_was_sent_is_not_taken_for_a_fault() {
    if let Some(case) = child_case() {
        let handler = match case.as_str() {
            "handled" => exits as Plain as usize,
            "default" => libc::SIG_DFL,
            "ignore" => libc::SIG_IGN,
            _ => unreachable!(),
        };
        handle_sigbus(handler, 0);
        let region = working_region();
        send_sigbus(&raw const region[PAGE]);
        if case == "default" {
            exit_now(1);
        }
        // Ignored: regions go on working.
        assert_eq!(region[PAGE], 1);
        exit_now(7);
    }

    let name = "a_signal_that_was_sent_is_not_taken_for_a_fault";
    assert_eq!(run_child(name, "handled").exit, Some(CALLED));
    assert_eq!(run_child(name, "default").signal, Some(SIGBUS));
    assert_eq!(run_child(name, "ignore").exit, Some(7));
}

/// A source that never delivers.
struct Broken;

// SAFETY: touches nothing.
unsafe impl SignalSafe for Broken {}

impl Source for Broken {
    fn size(&self) -> u64 {
        PAGE as u64
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), ReadFailed> {
        Err(ReadFailed)
    }
}

fn shrunk_file() -> (FileSource, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE as u64).unwrap();
    (FileSource::new(file.try_clone().unwrap()).unwrap(), file)
}

#[test]
fn a_source_that_fails_ends_the_process_with_sigbus() {
    if let Some(case) = child_case() {
        let region = match case.as_str() {
            "broken" => FrozenRegion::map(Broken).unwrap(),
            "shrunk" => {
                let (source, file) = shrunk_file();
                let region = FrozenRegion::map(source).unwrap();
                file.set_len(10).unwrap();
                region
            }
            _ => unreachable!(),
        };
        touch(&raw const region[0]);
        return;
    }

    for case in ["broken", "shrunk"] {
        let ended = run_child("a_source_that_fails_ends_the_process_with_sigbus", case);
        assert_eq!(ended.signal, Some(SIGBUS), "{case}");
    }
}

#[test]
fn a_failing_source_can_be_caught_like_any_sigbus() {
    if child_case().is_some() {
        handle_sigbus(inspects as Informed as usize, libc::SA_SIGINFO);
        let region = FrozenRegion::map(Broken).unwrap();
        touch(&raw const region[0]);
        return;
    }
    let ended = run_child("a_failing_source_can_be_caught_like_any_sigbus", "caught");
    assert_eq!(ended.exit, Some(CALLED));
}

/// Forks, runs `child` in the child, and says how that ended: by exit code or by signal.
fn forked(child: impl FnOnce()) -> Result<c_int, c_int> {
    // SAFETY: the child touches memory and exits; it takes no lock and allocates nothing.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // Alarms are not inherited.
        // SAFETY: no condition.
        unsafe { libc::alarm(20) };
        child();
        exit_now(0);
    }
    let mut status = 0;
    // SAFETY: waits for our child, and writes the status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFEXITED(status) {
        Ok(libc::WEXITSTATUS(status))
    } else {
        Err(libc::WTERMSIG(status))
    }
}

#[test]
fn a_forked_child_faults_instead_of_reading_zeros() {
    if child_case().is_some() {
        let region = working_region();
        for page in [0, PAGE] {
            let ended = forked(|| {
                let byte = region[page];
                exit_now(100 + c_int::from(byte));
            });
            assert_eq!(ended, Err(libc::SIGSEGV), "page at {page}");
        }
        // The parent's is as it was.
        assert_eq!(region[PAGE], 1);
        exit_now(CALLED);
    }
    let ended = run_child("a_forked_child_faults_instead_of_reading_zeros", "fork");
    assert_eq!(ended.exit, Some(CALLED), "{}", ended.stderr);
}

#[test]
fn a_forked_child_that_drops_a_region_leaves_what_it_has_there_now() {
    if child_case().is_some() {
        let region = working_region();
        let start = region.as_ptr();
        let ended = forked(move || {
            let (at, flags) = (start.cast_mut().cast(), MapFlags::PRIVATE | MapFlags::FIXED);
            // SAFETY: the child has nothing at the addresses of the region.
            unsafe { rustix::mm::mmap_anonymous(at, PAGE, ProtFlags::READ, flags) }.unwrap();
            drop(region);
            touch(start);
        });
        assert_eq!(ended, Ok(0));
        exit_now(CALLED);
    }
    let name = "a_forked_child_that_drops_a_region_leaves_what_it_has_there_now";
    let ended = run_child(name, "fork");
    assert_eq!(ended.exit, Some(CALLED), "{}", ended.stderr);
}

#[test]
fn a_forked_child_that_drops_a_region_leaves_its_parents_threads_alone() {
    if let Some(case) = child_case() {
        let source = MemorySource::new(vec![7; 64 * PAGE]);
        let options = Options::new().resident(8 * PAGE);
        let region = match case.as_str() {
            "signal" => options.map(source),
            "thread" => options.handler_threads(1).map(source),
            _ => unreachable!(),
        };
        let region = region.unwrap();
        let mut byte = [0];
        region.read(0, &mut byte);
        // SAFETY: read in the child only, and the parent's is used no more there.
        let twin = unsafe { ptr::read(&raw const region) };
        let twin = std::mem::ManuallyDrop::new(twin);
        let ended = forked(|| drop(std::mem::ManuallyDrop::into_inner(twin)));
        assert_eq!(ended, Ok(0));
        for page in 0..64 {
            region.read(page * PAGE, &mut byte);
            assert_eq!(byte, [7]);
        }
        exit_now(CALLED);
    }
    let name = "a_forked_child_that_drops_a_region_leaves_its_parents_threads_alone";
    for case in ["signal", "thread"] {
        let ended = run_child(name, case);
        assert_eq!(ended.exit, Some(CALLED), "{case}: {ended:?}");
    }
}

#[test]
fn a_forked_child_whose_own_sigbus_hits_a_regions_addresses_dies_of_it() {
    if child_case().is_some() {
        handle_sigbus(libc::SIG_DFL, 0);
        let region = working_region();
        let start = region.as_ptr();
        let ended = forked(|| {
            let file = tempfile::tempfile().unwrap();
            let (at, flags) = (start.cast_mut().cast(), MapFlags::SHARED | MapFlags::FIXED);
            // SAFETY: the child has nothing at the addresses of the region.
            unsafe { rustix::mm::mmap(at, PAGE, ProtFlags::READ, flags, &file, 0) }.unwrap();
            touch(start);
        });
        assert_eq!(ended, Err(SIGBUS));
        exit_now(CALLED);
    }
    let name = "a_forked_child_whose_own_sigbus_hits_a_regions_addresses_dies_of_it";
    let ended = run_child(name, "fork");
    assert_eq!(ended.exit, Some(CALLED), "{}", ended.stderr);
}

/// Found in review: memory that may be accessed is filled with zeros before it is registered.
#[test]
fn locked_memory_holds_the_sources_bytes() {
    const BYTES: usize = 5 * PAGE;
    if child_case().is_some() {
        rustix::mm::mlockall(rustix::mm::MlockAllFlags::FUTURE).unwrap();
        let before = pervma_pager::stats();
        let region = FrozenRegion::map(MemorySource::new(vec![7; BYTES])).unwrap();
        assert!(region.iter().all(|&byte| byte == 7));
        assert_eq!((pervma_pager::stats() - before).faults, 5);
        return;
    }
    let ended = run_child("locked_memory_holds_the_sources_bytes", "future");
    if ended.stderr.contains("PermissionDenied") || ended.stderr.contains("code: 11") {
        return common::not_run("this user may not lock that much memory");
    }
    assert_eq!(ended.exit, Some(0), "{}", ended.stderr);
}

/// A mapping of a process that locks all its memory counts as locked, whatever is present of it.
#[test]
fn memory_that_may_not_be_locked_is_an_error_that_names_the_limit() {
    const LIMIT: u64 = 4 << 20;
    if child_case().is_some() {
        let limit = rustix::process::Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
        rustix::process::setrlimit(rustix::process::Resource::Memlock, limit).unwrap();
        // SAFETY: no condition. Root may lock anything.
        let _ = unsafe { libc::syscall(libc::SYS_setuid, 65534) };
        // SAFETY: as above.
        assert_ne!(unsafe { libc::geteuid() }, 0);
        rustix::mm::mlockall(rustix::mm::MlockAllFlags::FUTURE).unwrap();
        for bytes in [LIMIT as usize, 64 << 20] {
            let options = Options::new().capacity(bytes);
            let refused = options.map(MemorySource::new(vec![7; PAGE])).unwrap_err();
            assert!(matches!(refused, Error::Memory { .. }), "{refused:?}");
            assert!(refused.to_string().contains("ulimit -l"), "{refused}");
        }
        return;
    }
    let name = "memory_that_may_not_be_locked_is_an_error_that_names_the_limit";
    let ended = run_child(name, "");
    assert_eq!(ended.exit, Some(0), "{}", ended.stderr);
}

fn mask_sigbus(how: c_int) {
    let mut set = MaybeUninit::uninit();
    // SAFETY: writes the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: a set that was written.
    unsafe { libc::sigaddset(set.as_mut_ptr(), SIGBUS) };
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut()) };
}

#[test]
fn mapping_with_sigbus_blocked_is_an_error() {
    common::watch();
    mask_sigbus(libc::SIG_BLOCK);
    let refused = FrozenRegion::map(MemorySource::new(vec![1]));
    mask_sigbus(libc::SIG_UNBLOCK);
    assert!(matches!(refused, Err(Error::SignalBlocked)));
    assert_eq!(FrozenRegion::map(MemorySource::new(vec![1])).unwrap()[..], [1]);
}

/// What the handler below touches: the start of two pages, of ones and of twos.
static TOUCHED: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn touches_both(_signal: c_int) {
    let pages = TOUCHED.load(Relaxed);
    for page in [0, 1] {
        // SAFETY: the test's region, which it neither unmaps nor moves.
        let byte = unsafe { pages.wrapping_add(page * PAGE).read_volatile() };
        if usize::from(byte) != page + 1 {
            exit_now(2);
        }
    }
    INTERRUPTED.fetch_add(1, Relaxed);
}

#[test]
fn a_handler_may_touch_what_its_thread_is_changing() {
    if let Some(case) = child_case() {
        let source = MemorySource::new([[1; PAGE], [2; PAGE]].concat());
        let region = match case.as_str() {
            "signal" => Options::new().writable().map(source),
            "thread" => Options::new().handler_threads(1).writable().map(source),
            _ => unreachable!(),
        };
        let region = region.unwrap();
        TOUCHED.store(region.as_ptr(), Relaxed);
        // SAFETY: a C structure of integers and an optional function: all zeros is valid.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = touches_both as Plain as usize;
        action.sa_flags = libc::SA_RESTART;
        let (action, none) = (&raw const action, ptr::null_mut());
        // SAFETY: the function fits the flags.
        assert_eq!(unsafe { libc::sigaction(libc::SIGUSR2, action, none) }, 0);
        // SAFETY: no condition.
        let changing = unsafe { libc::pthread_self() };
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    // SAFETY: the thread waits for this one.
                    unsafe { libc::pthread_kill(changing, libc::SIGUSR2) };
                    std::thread::sleep(Duration::from_micros(20));
                }
            });
            while INTERRUPTED.load(Relaxed) < 2000 {
                region.discard(0..PAGE).unwrap();
                region.protect(0..PAGE, Access::Read).unwrap();
                region.protect(0..PAGE, Access::ReadWrite).unwrap();
                region.write(PAGE, &[2]);
                region.discard(PAGE..2 * PAGE).unwrap();
            }
            over.store(true, Relaxed);
        });
        exit_now(CALLED);
    }

    let name = "a_handler_may_touch_what_its_thread_is_changing";
    for case in ["signal", "thread"] {
        let ended = run_child(name, case);
        assert_eq!(ended.exit, Some(CALLED), "{case}: {ended:?}");
    }
}

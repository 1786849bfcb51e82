//! A profiling signal: a timer for each thread, a handler, and the rules of handlers, enforced.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use libc::{SIGPROF, siginfo_t, ucontext_t};
use pervma::{HandlerScope, StdPlatform};

/// What was running when the signal came.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    /// The program counter.
    pub(crate) pc: usize,
    /// The register in which a function returns its result.
    pub(crate) register: u32,
}

/// Set before the handler is installed, so that the handler can always read it.
static ON_SAMPLE: OnceLock<fn(Sample)> = OnceLock::new();

/// Has `on_sample` called in a signal handler for each tick of a [`Timer`].
pub(crate) fn install(on_sample: fn(Sample)) -> io::Result<()> {
    ON_SAMPLE.get_or_init(|| on_sample);
    // SAFETY: a C structure of integers and an optional function: all zeros is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction =
        on_signal as unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: a valid action; the handler keeps to the rules.
    check(unsafe { libc::sigaction(SIGPROF, &raw const action, ptr::null_mut()) })
}

/// The handler. It calls nothing that sets `errno`: not even the wake-up of a thread that waits for
/// a reader does.
///
/// # Safety
///
/// For the kernel only: `context` is that of a delivered signal.
unsafe extern "C" fn on_signal(_signal: c_int, _info: *mut siginfo_t, context: *mut c_void) {
    // From here on, whatever takes a lock of an address space panics, which ends the process.
    let _inside = HandlerScope::<StdPlatform>::enter();
    // SAFETY: with SA_SIGINFO it points to the interrupted context.
    let interrupted = unsafe { &*context.cast_const().cast::<ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    let (pc, register) = {
        let registers = &interrupted.uc_mcontext.gregs;
        (registers[libc::REG_RIP as usize], registers[libc::REG_RAX as usize])
    };
    #[cfg(target_arch = "aarch64")]
    let (pc, register) = (interrupted.uc_mcontext.pc, interrupted.uc_mcontext.regs[0]);
    if let Some(on_sample) = ON_SAMPLE.get() {
        on_sample(Sample { pc: pc as usize, register: register as u32 });
    }
}

/// Interrupts the thread that started it, until it is dropped.
pub(crate) struct Timer(libc::timer_t);

impl Timer {
    /// Starts it. The period is that of a clock, so a thread that has no processor is not
    /// interrupted more often later on.
    pub(crate) fn start(period: Duration) -> io::Result<Self> {
        // SAFETY: a C structure: all zeros is valid.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGPROF;
        // SAFETY: no condition.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = MaybeUninit::uninit();
        // SAFETY: a valid event; the timer is written to the place it is given.
        check(unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr())
        })?;
        // SAFETY: the call succeeded, so it has written the timer.
        let timer = Self(unsafe { timer.assume_init() });
        let every = libc::timespec { tv_sec: 0, tv_nsec: period.subsec_nanos().into() };
        let times = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: a timer of ours, and valid times.
        check(unsafe { libc::timer_settime(timer.0, 0, &raw const times, ptr::null_mut()) })?;
        Ok(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: a timer of ours, not used again.
        unsafe { libc::timer_delete(self.0) };
    }
}

fn check(returned: c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The system's allocator, except that it ends the process when it is called in a handler.
///
/// An allocator's lock may be held by the very code that the signal has interrupted. So a handler
/// that allocates, or drops something that owns memory, works for months and then hangs. A library
/// can only promise that its lookups do not; a program can check it.
struct NotInHandlers;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for NotInHandlers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        abort_in_handler();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        abort_in_handler();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

fn abort_in_handler() {
    if HandlerScope::<StdPlatform>::active() {
        std::process::abort();
    }
}

#[global_allocator]
static ALLOCATOR: NotInHandlers = NotInHandlers;

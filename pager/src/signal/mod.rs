//! The SIGBUS handler of this process.
#![expect(unsafe_code, reason = "installs and is a signal handler")]

mod previous;

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libc::{SIGBUS, siginfo_t};
use pervma::{HandlerScope, Std};

use self::previous::Previous;
use crate::fault::{self, Verdict};
use crate::sys::Errno;

/// Whoever handled SIGBUS before us. Set before our handler is installed, so that the handler can
/// always read it.
static PREVIOUS: OnceLock<Previous> = OnceLock::new();

/// Installs the handler, once per process.
pub(crate) fn install() -> Result<(), Errno> {
    static INSTALLED: OnceLock<Result<(), Errno>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let previous = Previous::query()?;
        PREVIOUS.get_or_init(|| previous);
        set_action(&action())
    })
}

/// Our handler, with every signal blocked while it runs and system calls restarted after a SIGBUS
/// that was sent.
fn action() -> libc::sigaction {
    // SAFETY: a C structure of integers and an optional function: all zeros is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction =
        on_sigbus as unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: writes the set that it is given.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    action
}

/// Makes `action` the process's for SIGBUS. Async-signal-safe, but for `errno`.
fn set_action(action: &libc::sigaction) -> Result<(), Errno> {
    // SAFETY: the action is a valid one: ours, or one that the process had.
    match unsafe { libc::sigaction(SIGBUS, action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Whether SIGBUS is blocked in the running thread: the kernel then kills the process at a fault,
/// whatever handler it has.
pub(crate) fn is_blocked() -> bool {
    // SAFETY: a C structure of integers: all zeros is valid.
    let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: without a new set it only writes the present one to the place it is given.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) };
    // SAFETY: a valid set.
    unsafe { libc::sigismember(&raw const mask, SIGBUS) == 1 }
}

/// The handler. It leaves `errno` as it was.
///
/// # Safety
///
/// For the kernel only: `info` and `context` are those of a delivered signal.
unsafe extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: no condition; the C library has one for each thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is valid while the thread lives, and nobody else's.
    let saved = unsafe { errno.read() };
    // SAFETY: a delivered signal comes with a `siginfo_t`.
    let about = unsafe { &*info };
    let served = about.si_code == libc::BUS_ADRERR && {
        // SAFETY: with this code the kernel reports a fault, and a fault has an address.
        let addr = unsafe { about.si_addr() }.addr();
        let _inside = HandlerScope::<Std>::enter();
        fault::serve(addr) == Verdict::Repeat
    };
    if !served && let Some(previous) = PREVIOUS.get() {
        // SAFETY: signal, info and context are passed on as they came.
        unsafe { previous.deliver(signal, info, context) }
    }
    // SAFETY: as for the read.
    unsafe { errno.write(saved) };
}

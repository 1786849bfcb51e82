//! The signals that a thread blocks.
#![expect(unsafe_code, reason = "changes a thread's signal mask")]

use std::ffi::c_int;
use std::marker::PhantomData;

use libc::SIGBUS;

use crate::sys::Errno;

/// Whether SIGBUS is blocked in the running thread: the kernel then kills the process at a fault,
/// whatever handler it has.
pub(crate) fn is_blocked() -> Result<bool, Errno> {
    // SAFETY: a C structure of integers: all zeros is valid.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mask = change_mask(libc::SIG_BLOCK, &none)?;
    // SAFETY: a valid set.
    Ok(unsafe { libc::sigismember(&raw const mask, SIGBUS) == 1 })
}

/// Changes the running thread's mask; what it was.
fn change_mask(how: c_int, set: &libc::sigset_t) -> Result<libc::sigset_t, Errno> {
    // SAFETY: a C structure of integers: all zeros is valid.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: valid sets, of which the second is written.
    match unsafe { libc::pthread_sigmask(how, set, &raw mut before) } {
        0 => Ok(before),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// While it lives, its thread takes no signal but those of faults, and neither will a thread that
/// it starts.
///
/// For a thread that is about to exclude VMAs: a handler that touched them would wait for the
/// thread that it interrupted.
pub(crate) struct SignalsBlocked {
    before: libc::sigset_t,
    _of_thread: PhantomData<*const ()>,
}

impl SignalsBlocked {
    /// Fails where a filter refuses it.
    pub(crate) fn new() -> Result<Self, Errno> {
        // SAFETY: a C structure of integers: all zeros is valid.
        let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes the set that it is given.
        unsafe { libc::sigfillset(&raw mut all) };
        for fault in [SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            // SAFETY: a valid set and a signal.
            unsafe { libc::sigdelset(&raw mut all, fault) };
        }
        Ok(Self { before: change_mask(libc::SIG_BLOCK, &all)?, _of_thread: PhantomData })
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // On the thread whose set it is. What could be changed can be changed back.
        let _ = change_mask(libc::SIG_SETMASK, &self.before);
    }
}

//! The handler that SIGBUS had before, and passing a signal on to it.
//!
//! It should look to that handler as if the kernel had called. What is different: it runs on the
//! stack that ours is on, the thread's alternate one if it has one, whatever its `SA_ONSTACK`; and
//! system calls are restarted, whatever its `SA_RESTART`.

use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::ptr;

use libc::{SIG_DFL, SIG_IGN, SIGBUS, siginfo_t, sigset_t, ucontext_t};

use super::action::set_action;
use crate::sys::{Errno, last_errno};

/// The process's action for SIGBUS at the time it was queried.
pub(super) struct Previous(libc::sigaction);

impl Previous {
    pub(super) fn query() -> Result<Self, Errno> {
        let mut action = MaybeUninit::uninit();
        // SAFETY: only asks, and writes the action to the place it is given.
        match unsafe { libc::sigaction(SIGBUS, ptr::null(), action.as_mut_ptr()) } {
            // SAFETY: the call succeeded, so it has written the action.
            0 => Ok(Self(unsafe { action.assume_init() })),
            _ => Err(last_errno()),
        }
    }

    /// Passes a signal on, as the kernel would have delivered it to them.
    ///
    /// # Safety
    ///
    /// Inside the handler of this signal, with the arguments that it got.
    pub(super) unsafe fn deliver(&self, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        match self.0.sa_sigaction {
            SIG_DFL | SIG_IGN => {
                // SAFETY: the handler's argument.
                let about = unsafe { &*info };
                self.without_handler(is_fault(about.si_code));
            }
            // SAFETY: passed through from the caller.
            _ => unsafe { self.call(signal, info, context) },
        }
    }

    /// There was no handler. A fault cannot be ignored, the kernel ends the process: repeated under
    /// the default action, the access itself does that. A signal that was sent does not repeat.
    fn without_handler(&self, fault: bool) {
        if !fault && self.0.sa_sigaction == SIG_IGN {
            return;
        }
        restore_default();
        if !fault {
            // SAFETY: no condition. It is delivered when this handler returns.
            unsafe { libc::raise(SIGBUS) };
        }
    }

    /// Calls their handler, under the signal mask it would have had.
    ///
    /// # Safety
    ///
    /// As for [`deliver`](Self::deliver), and the action is a function.
    unsafe fn call(&self, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        if self.0.sa_flags & libc::SA_RESETHAND != 0 {
            // As the kernel does it, so our handler goes too: such a handler expects to be called
            // once, and the next SIGBUS to end the process.
            restore_default();
        }
        // SAFETY: the handler's argument; with SA_SIGINFO it points to the interrupted context.
        let interrupted = unsafe { &*context.cast_const().cast::<ucontext_t>() };
        let mask = self.mask(&interrupted.uc_sigmask);
        // SAFETY: a valid set. The interrupted code's own mask is restored when we return.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut()) };

        if self.0.sa_flags & libc::SA_SIGINFO != 0 {
            type Handler = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
            // SAFETY: an action that is neither SIG_DFL nor SIG_IGN is a function, by its flag of
            // this type.
            let handler = unsafe { transmute::<usize, Handler>(self.0.sa_sigaction) };
            // SAFETY: it gets what the kernel would have given it.
            unsafe { handler(signal, info, context) };
        } else {
            type Handler = unsafe extern "C" fn(c_int);
            // SAFETY: an action that is neither SIG_DFL nor SIG_IGN is a function, without the flag
            // of this type.
            let handler = unsafe { transmute::<usize, Handler>(self.0.sa_sigaction) };
            // SAFETY: it gets what the kernel would have given it.
            unsafe { handler(signal) };
        }
    }

    /// The interrupted code's mask, their `sa_mask`, and SIGBUS itself unless they have
    /// `SA_NODEFER`.
    fn mask(&self, interrupted: &sigset_t) -> sigset_t {
        // The kernel's sets have 64 signals; what the C library's type has behind them is not
        // filled in a context.
        const SIGNALS: c_int = 64;
        let mut mask = self.0.sa_mask;
        for signal in 1..=SIGNALS {
            // SAFETY: a valid set, of which the bits of these signals are read.
            let blocked = unsafe { libc::sigismember(interrupted, signal) } == 1;
            let own = signal == SIGBUS && self.0.sa_flags & libc::SA_NODEFER == 0;
            if blocked || own {
                // SAFETY: a valid set. Numbers that the C library keeps for itself are refused.
                unsafe { libc::sigaddset(&raw mut mask, signal) };
            }
        }
        mask
    }
}

/// Whether the code is that of an access that faults again when it is repeated: the kernel's own
/// codes are positive, and one of them tells of memory that no thread has accessed yet.
fn is_fault(si_code: c_int) -> bool {
    si_code > 0 && si_code != libc::BUS_MCEERR_AO
}

/// Makes the default action the process's.
fn restore_default() {
    // SAFETY: a C structure of integers and an optional function: all zeros is valid, and is the
    // default action with no flags.
    let default: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    // Only a filter refuses it. Then the access never ends, and nothing can be done.
    let _ = set_action(&default);
}

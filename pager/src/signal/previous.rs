//! The handlers that SIGBUS had before, and passing a signal on to them.
//!
//! There is one for each time that ours was installed. A handler that was installed over ours, and
//! that ours was installed over again, may pass on to ours what it does not take itself: that call
//! is told from the kernel's own, and goes to the handler before.
//!
//! It should look to that handler as if the kernel had called. What is different: it runs on the
//! stack that ours is on, the thread's alternate one if it has one, whatever its `SA_ONSTACK`; and
//! system calls are restarted, whatever its `SA_RESTART`.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::OnceLock;

use libc::{SIG_DFL, SIG_IGN, SIGBUS, siginfo_t, sigset_t, ucontext_t};

use super::action::set_action;
use crate::sys::{Errno, last_errno};

/// Those that there were before ours, from the first on. They are never taken away: the handler
/// reads them.
static FIRST: Link = OnceLock::new();

type Link = OnceLock<Box<Installed>>;

struct Installed {
    over: Previous,
    next: Link,
}

/// Notes what ours is about to be installed over. One thread at a time does.
pub(super) fn note(over: Previous) {
    let mut link = &FIRST;
    while let Some(installed) = link.get() {
        link = &installed.next;
    }
    link.get_or_init(|| Box::new(Installed { over, next: OnceLock::new() }));
}

/// What ours was installed over, from the last time back.
fn installed_over(times_back: usize) -> Option<&'static Previous> {
    let all = || std::iter::successors(FIRST.get(), |installed| installed.next.get());
    let at = all().count().checked_sub(times_back + 1)?;
    all().nth(at).map(|installed| &installed.over)
}

/// A signal that is being passed on.
#[derive(Clone, Copy)]
struct Passing {
    context: usize,
    /// An address in the frame of our handler.
    frame: usize,
    times_back: usize,
}

thread_local! {
    static PASSING: Cell<Passing> =
        const { Cell::new(Passing { context: 0, frame: 0, times_back: 0 }) };
}

/// Whether our handler, which has `frame`, was called by one that it has passed this signal on to;
/// how many times back is to be looked for whose signal it is then. 0 if the kernel has called it.
///
/// It is called deeper on the same stack, with the same context. When a handler has left by a jump,
/// the kernel's next call is not both: where the context is, the frame is as well.
pub(super) fn times_back(context: *mut c_void, frame: usize) -> usize {
    let outer = PASSING.get();
    let is_called = context.addr() == outer.context && frame < outer.frame;
    if is_called { outer.times_back + 1 } else { 0 }
}

/// Passes a signal on that is not ours to what ours was installed over.
///
/// # Safety
///
/// Inside the handler of this signal, with the arguments that it got.
pub(super) unsafe fn pass_on(
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    frame: usize,
    times_back: usize,
) {
    let outer = PASSING.replace(Passing { context: context.addr(), frame, times_back });
    match installed_over(times_back) {
        // SAFETY: passed through from the caller.
        Some(previous) => unsafe { previous.deliver(signal, info, context) },
        None => {
            // SAFETY: the handler's argument.
            let about = unsafe { &*info };
            end_by_default(is_fault(about.si_code));
        }
    }
    PASSING.set(outer);
}

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

    /// Whether it is this handler.
    pub(super) fn is(&self, handler: usize) -> bool {
        self.0.sa_sigaction == handler
    }

    /// Passes a signal on, as the kernel would have delivered it to them.
    ///
    /// # Safety
    ///
    /// Inside the handler of this signal, with the arguments that it got.
    unsafe fn deliver(&self, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
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

    /// There was no handler. A fault cannot be ignored.
    fn without_handler(&self, fault: bool) {
        if fault || self.0.sa_sigaction != SIG_IGN {
            end_by_default(fault);
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

/// Has the process end, as it does without a handler: repeated under the default action, an access
/// does that itself. A signal that was sent does not repeat.
fn end_by_default(fault: bool) {
    restore_default();
    if !fault {
        // SAFETY: no condition. It is delivered when this handler returns.
        let raised = unsafe { libc::raise(SIGBUS) };
        if raised != 0 {
            // A filter. As a shell tells of it.
            // SAFETY: ends the process; no condition.
            unsafe { libc::_exit(128 + SIGBUS) }
        }
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

//! Of which client a process dies: the one that the dying thread takes care of.
//!
//! What a process does to itself counts: a fault of its own, an abort, an exit. A signal that
//! another process has sent does not, nor does SIGKILL, whoever has sent it: also where memory has
//! run out.
#![expect(unsafe_code, reason = "signal handlers")]
#![expect(clippy::disallowed_types, reason = "an address that is stored once, before threads")]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use crate::client::ClientId;
use crate::state::table::Table;

thread_local! {
    /// The client that this thread takes care of; 0 for none.
    static IN_HAND: Cell<u64> = const { Cell::new(0) };
}

/// Does something for a client.
pub(crate) fn for_client<T>(client: ClientId, work: impl FnOnce() -> T) -> T {
    let before = IN_HAND.replace(client.0);
    let done = work();
    IN_HAND.set(before);
    done
}

/// Where it is noted.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());

/// Signals by which a process ends itself.
const OWN: [libc::c_int; 5] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Notes from now on, in this process, of which client it dies. To be called before it has threads.
pub(crate) fn watch(table: &Arc<Table>) {
    // RELAXED: here and below, threads are started later, and its own thread's handler sees it.
    TABLE.store(Arc::into_raw(Arc::clone(table)).cast_mut(), Relaxed);
    // SAFETY: it makes a store.
    unsafe { libc::atexit(note_exit) };
    for signal in OWN {
        // SAFETY: plain data, of which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = note;
        action.sa_sigaction = handler as usize;
        // After that the signal does what it does by itself.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
        // SAFETY: the handler makes calls that handlers may make.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// The calling thread ends this process, which has not come to its end.
extern "C" fn note_exit() {
    // SAFETY: never freed.
    let table = unsafe { TABLE.load(Relaxed).as_ref() };
    if let Some(table) = table
        && table.end().is_none()
    {
        table.note_culprit(IN_HAND.get());
    }
}

/// A signal handler: a thread-local without a destructor, a store, system calls.
extern "C" fn note(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: what the kernel has given to the handler.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: plain data, which says so if a process has sent the signal; else it is not used.
    let sender = unsafe { info.si_pid() };
    // Of the kernel's for what the thread has done; or of this process itself.
    let is_own = code > 0 || sender == std::process::id().cast_signed();
    // SAFETY: never freed.
    let table = unsafe { TABLE.load(Relaxed).as_ref() };
    if let Some(table) = table
        && is_own
    {
        table.note_culprit(IN_HAND.get());
    }
    if code <= 0 {
        // Nobody else raises it again, now that it does what it does by itself.
        // SAFETY: sends a signal to the calling thread.
        unsafe { libc::raise(signal) };
    }
}

//! The process's action for SIGBUS.
#![expect(unsafe_code, reason = "installs a signal handler")]

use libc::SIGBUS;

use crate::sys::{Errno, last_errno};

/// Makes `action` the process's for SIGBUS. Async-signal-safe, but for `errno`.
pub(super) fn set_action(action: &libc::sigaction) -> Result<(), Errno> {
    // SAFETY: the action is a valid one: ours, or one that the process had.
    match unsafe { libc::sigaction(SIGBUS, action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

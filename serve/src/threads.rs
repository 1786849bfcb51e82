//! Threads of this process: what has to happen before there are some, and those that let all others
//! go first.
#![expect(unsafe_code, reason = "a scheduling class, which rustix does not have")]

use std::io;

use crate::state::descriptors::List;

/// An error unless the calling thread is the only one of this process.
pub(crate) fn expect_one() -> io::Result<()> {
    expect_one_of(&List::of_threads()?)
}

/// An error unless there is one of these threads.
pub(crate) fn expect_one_of(threads: &List) -> io::Result<()> {
    match threads.numbers()?.len() {
        1 => Ok(()),
        count => Err(io::Error::other(format!("this must be called with one thread, not {count}"))),
    }
}

/// Does the work of a thread. If it panics, and another process takes the place of this one, this
/// one ends: a thread less would be noticed by nobody.
pub(crate) fn or_die(is_kept: bool, work: impl FnOnce()) {
    // It has told of its panic.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Err(_) if is_kept => std::process::abort(),
        Err(panic) => std::panic::resume_unwind(panic),
        Ok(()) => {}
    }
}

/// The calling thread runs from now on where nothing else does: in the lowest scheduling class.
pub(crate) fn let_others_go_first() {
    let (call, this_thread, priority) = (libc::SYS_sched_setscheduler, 0, 0_i32);
    // SAFETY: the kernel reads the number that it gets the address of, and writes nothing.
    // Where it refuses, the thread does its work all the same.
    let _ = unsafe { libc::syscall(call, this_thread, libc::SCHED_IDLE, &raw const priority) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_for_it_lets_others_go_first() {
        let class = || {
            // SAFETY: it takes a number, and asks.
            unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let_others_go_first();
                assert_eq!(class(), i64::from(libc::SCHED_IDLE));
            });
        });
        assert_ne!(class(), i64::from(libc::SCHED_IDLE));
    }
}

//! Threads of this process: what has to happen before there are some, and those that let all others
//! go first.
#![expect(unsafe_code, reason = "a scheduling class, which rustix does not have")]

use std::{fs, io};

/// An error unless the calling thread is the only one of this process.
pub(crate) fn expect_one() -> io::Result<()> {
    match fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        count => Err(io::Error::other(format!("this must be called with one thread, not {count}"))),
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

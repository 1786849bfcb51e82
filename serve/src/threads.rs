//! Threads of this process: what has to happen before there are some, and those that let all others
//! go first.
#![expect(unsafe_code, reason = "a scheduling class and signals, which rustix does not have")]

use std::io;
use std::mem::MaybeUninit;
use std::panic::AssertUnwindSafe;
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, getppid};

use crate::state::descriptors::List;
use crate::state::table::Table;

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

/// Ends this process at an error, if clients may have been left to it: dropped, they would fail,
/// and the next process has them too. `false` for none.
pub(crate) fn or_exit<T, E: std::fmt::Display>(
    is_left: bool,
    result: Result<T, E>,
) -> Result<T, E> {
    if let (true, Err(error)) = (is_left, &result) {
        tracing::error!("this process cannot serve on: {error}");
        std::process::exit(1);
    }
    result
}

/// The keeper, as the serving process sees it; none if there is none, or it has gone.
pub(crate) struct Watched(Option<Pid>);

impl Watched {
    /// The process that has started this one.
    pub(crate) fn of(keeper: Pid) -> Self {
        Self(Some(keeper))
    }

    pub(crate) fn nobody() -> Self {
        Self(None)
    }

    /// Whether another process takes the place of this one, as far as is known. Says it, once, if
    /// the keeper has gone.
    pub(crate) fn look(&mut self) -> bool {
        if self.0.is_some() && self.0 != getppid() {
            tracing::error!("the keeper has gone: nobody takes the place of this process");
            self.0 = None;
            set_stops(libc::SIG_UNBLOCK);
        }
        self.0.is_some()
    }
}

/// Blocks, or not, the signals by which a program is told to stop: a terminal sends them to both
/// processes, and the keeper's is enough. Twice is something else.
pub(crate) fn set_stops(how: libc::c_int) {
    let mut set = MaybeUninit::uninit();
    // SAFETY: it writes all of the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: a set, which was just written.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: it reads a set, which was just written.
    unsafe { libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut()) };
}

/// Starts threads that serve clients.
#[derive(Clone, Copy)]
pub(crate) struct Threads {
    /// Another process takes the place of this one. So this one ends if a thread panics: a thread
    /// less would be noticed by nobody.
    are_kept: bool,
}

impl Threads {
    pub(crate) fn of(table: &Table) -> Self {
        Self { are_kept: table.is_kept() }
    }

    /// Starts one.
    ///
    /// # Errors
    ///
    /// When none can be had.
    pub(crate) fn start(
        self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        self.start_from(thread::Builder::new(), name, work)
    }

    /// Starts one with a stack of so many bytes.
    ///
    /// # Errors
    ///
    /// When none can be had.
    pub(crate) fn start_with_stack(
        self,
        stack: usize,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        self.start_from(thread::Builder::new().stack_size(stack), name, work)
    }

    fn start_from(
        self,
        thread: thread::Builder,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let work = move || match std::panic::catch_unwind(AssertUnwindSafe(work)) {
            // It has told of its panic.
            Err(_) if self.are_kept => std::process::abort(),
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => {}
        };
        thread.name(name.to_owned()).spawn(work)
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

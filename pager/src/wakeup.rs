//! A bell that one thread sleeps by: an eventfd, which may be rung in a signal handler.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::sys::Errno;

/// Rings add up until they are heard.
#[derive(Debug)]
pub(crate) struct Wakeup(OwnedFd);

/// More than all other rings together.
const STOP: u64 = 1 << 40;

impl Wakeup {
    pub(crate) fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC).map(Self)
    }

    /// Wakes the sleeper. One system call that leaves `errno` alone.
    pub(crate) fn ring(&self) {
        self.add(1);
    }

    /// Wakes the sleeper for the last time.
    pub(crate) fn stop(&self) {
        self.add(STOP);
    }

    fn add(&self, rings: u64) {
        // It could fail only when 2^64 rings were not heard.
        let _ = rustix::io::write(&self.0, &rings.to_ne_bytes());
    }

    /// Sleeps until somebody rings. `false` if that was the last time.
    pub(crate) fn wait(&self) -> bool {
        let mut rings = [0; 8];
        loop {
            match rustix::io::read(&self.0, &mut rings) {
                Ok(_) => return u64::from_ne_bytes(rings) < STOP,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

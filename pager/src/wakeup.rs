//! A bell that one thread sleeps by: an eventfd, which may be rung in a signal handler.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, getpid};

use crate::sys::Errno;

/// Rings add up until they are heard.
#[derive(Debug)]
pub(crate) struct Wakeup {
    bell: OwnedFd,
    owner: Pid,
}

/// More than all other rings together.
const STOP: u64 = 1 << 40;

impl Wakeup {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { bell: eventfd(0, EventfdFlags::CLOEXEC)?, owner: getpid() })
    }

    /// Wakes the sleeper. One system call that leaves `errno` alone.
    pub(crate) fn ring(&self) {
        self.add(1);
    }

    /// Wakes the sleeper for the last time. Not in a forked child, and it is told so: the sleeper is
    /// its parent's thread.
    pub(crate) fn stop(&self) -> bool {
        let ours = getpid() == self.owner;
        if ours {
            self.add(STOP);
        }
        ours
    }

    fn add(&self, rings: u64) {
        // It could fail only when 2^64 rings were not heard.
        let _ = rustix::io::write(&self.bell, &rings.to_ne_bytes());
    }

    /// Sleeps until somebody rings. `false` if that was the last time.
    ///
    /// # Panics
    ///
    /// When the kernel lets nobody sleep there any more: then somebody has closed the descriptor.
    pub(crate) fn wait(&self) -> bool {
        let mut rings = [0; 8];
        loop {
            match rustix::io::read(&self.bell, &mut rings) {
                Ok(_) => return u64::from_ne_bytes(rings) < STOP,
                Err(Errno::INTR) => {}
                Err(errno) => panic!("an eventfd of a region cannot be read: {errno}"),
            }
        }
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

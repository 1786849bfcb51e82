//! Waiting for one of several descriptors.
#![expect(unsafe_code, reason = "the older of two calls has no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use super::Errno;

/// An epoll instance. Each of its descriptors has a number.
///
/// Not `poll`, which refuses two descriptors in a process that may open none (`ulimit -n`).
#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
}

/// So many descriptors are told of at a time: the others are for threads that idle.
const MOST: usize = 8;

/// The numbers of descriptors that are ready.
#[derive(Debug)]
pub(crate) struct Ready {
    events: [libc::epoll_event; MOST],
    len: usize,
}

impl Ready {
    pub(crate) fn none() -> Self {
        Self { events: [libc::epoll_event { events: 0, u64: 0 }; MOST], len: 0 }
    }

    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.events[..self.len].iter().map(|event| event.u64)
    }
}

impl Epoll {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Adds a descriptor: from now on it is ready when it can be read.
    pub(crate) fn add(&self, fd: impl AsFd, number: u64) -> Result<(), Errno> {
        epoll::add(&self.fd, fd, epoll::EventData::new_u64(number), epoll::EventFlags::IN)
    }

    /// Takes a descriptor away. One that is closed is away.
    pub(crate) fn remove(&self, fd: impl AsFd) -> Result<(), Errno> {
        epoll::delete(&self.fd, fd)
    }

    /// Waits until a descriptor is ready, or that long; which ones are. It may be interrupted, and
    /// then none is.
    ///
    /// Where `epoll_pwait2` is refused it uses `epoll_pwait`, which counts milliseconds.
    pub(crate) fn wait(&self, ready: &mut Ready, most: Option<Duration>) -> Result<(), Errno> {
        let waited = match self.wait_finely(&mut ready.events, most) {
            Err(error) if error != Errno::INTR => self.wait_coarsely(&mut ready.events, most),
            waited => waited,
        };
        ready.len = match waited {
            Err(Errno::INTR) => 0,
            waited => waited?.min(MOST),
        };
        Ok(())
    }

    fn wait_finely(
        &self,
        events: &mut [libc::epoll_event; MOST],
        most: Option<Duration>,
    ) -> Result<usize, Errno> {
        let most = most.map(|most| Timespec {
            tv_sec: most.as_secs() as i64,
            tv_nsec: i64::from(most.subsec_nanos()),
        });
        let most = most.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let (call, fd, mask) =
            (libc::SYS_epoll_pwait2, self.fd.as_raw_fd(), std::ptr::null::<u8>());
        // SAFETY: writes at most so many events to where there is space for them, and reads a time
        // or none. No mask of signals is given.
        outcome(unsafe { libc::syscall(call, fd, events.as_mut_ptr(), MOST, most, mask, 0_usize) })
    }

    fn wait_coarsely(
        &self,
        events: &mut [libc::epoll_event; MOST],
        most: Option<Duration>,
    ) -> Result<usize, Errno> {
        let round_up = |most: Duration| most.as_micros().div_ceil(1000).min(1 << 30) as i32;
        let most = most.map_or(-1, round_up);
        let fd = self.fd.as_raw_fd();
        // SAFETY: writes at most so many events to where there is space for them. No mask of
        // signals is given.
        let ready = unsafe {
            libc::epoll_pwait(fd, events.as_mut_ptr(), MOST as i32, most, std::ptr::null())
        };
        outcome(ready.into())
    }
}

fn outcome(returned: i64) -> Result<usize, Errno> {
    usize::try_from(returned).map_err(|_| super::last_errno())
}

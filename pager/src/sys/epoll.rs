//! Waiting for one of several descriptors.
#![expect(unsafe_code, reason = "the older of two calls has no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use super::Errno;

/// An epoll instance. Each of its descriptors has a number, which is a bit of what is ready.
///
/// Not `poll`, which refuses two descriptors in a process that may open none (`ulimit -n`).
#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
}

/// The numbers of descriptors are below this.
const MOST: usize = 2;

impl Epoll {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Adds a descriptor: from now on it is ready when it can be read.
    pub(crate) fn add(&self, fd: impl AsFd, number: usize) -> Result<(), Errno> {
        debug_assert!(number < MOST, "there is a bit for it");
        epoll::add(&self.fd, fd, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)
    }

    /// Waits until a descriptor is ready, or that long; what is ready, as bits. It may be
    /// interrupted, and then nothing is.
    ///
    /// Where `epoll_pwait2` is refused it uses `epoll_pwait`, which counts milliseconds.
    pub(crate) fn wait(&self, most: Option<Duration>) -> Result<u64, Errno> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST];
        let ready = match self.wait_finely(&mut events, most) {
            Err(error) if error != Errno::INTR => self.wait_coarsely(&mut events, most),
            waited => waited,
        };
        match ready {
            Ok(ready) => Ok(events.iter().take(ready).fold(0, |bits, event| bits | 1 << event.u64)),
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(error),
        }
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

//! How a daemon is told to stop.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};

/// A descriptor that can be read when the daemon is to stop. It is not read: if this process dies,
/// the next one is told as well. This one's own descriptor can be read when it was told once more.
pub(crate) struct Stop<'s> {
    told: BorrowedFd<'s>,
    epoll: OwnedFd,
}

impl<'s> Stop<'s> {
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn of(told: BorrowedFd<'s>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let once = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&epoll, told, epoll::EventData::new_u64(0), once)?;
        Ok(Self { told, epoll })
    }

    /// How often it was told so, by this process's end or before; 0 if not since it was asked last.
    pub(crate) fn times(&self) -> u64 {
        let mut ready = [const { MaybeUninit::uninit() }; 1];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, &mut ready, Some(&now)) {
            // A byte each time; closed, it has none.
            Ok(([_], _)) => rustix::io::ioctl_fionread(self.told).unwrap_or_default().max(1),
            _ => 0,
        }
    }
}

impl AsFd for Stop<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn it_counts_how_often_it_was_told_and_so_does_the_next_one() {
        let (mut teller, told) = UnixStream::pair().unwrap();
        let stop = Stop::of(told.as_fd()).unwrap();
        assert_eq!(stop.times(), 0);
        teller.write_all(&[0]).unwrap();
        assert_eq!([stop.times(), stop.times()], [1, 0]);
        let next = Stop::of(told.as_fd()).unwrap();
        assert_eq!([next.times(), next.times()], [1, 0]);
        teller.write_all(&[0]).unwrap();
        assert_eq!([stop.times(), next.times()], [2, 2]);
    }

    #[test]
    fn to_be_closed_is_to_be_told_once() {
        let (teller, told) = UnixStream::pair().unwrap();
        let stop = Stop::of(told.as_fd()).unwrap();
        drop(teller);
        assert_eq!([stop.times(), stop.times()], [1, 0]);
    }
}

//! The process at the other end of a Unix socket.
#![expect(unsafe_code, reason = "options of sockets, and a signal, that rustix does not have")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process that has connected a socket, or that listened when this one connected it.
///
/// A process that inherits the socket, or that it is sent to, is not seen: the kernel keeps what
/// was true when it was connected.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use pervma_serve::peer::Peer;
///
/// let (_here, there) = UnixStream::pair()?;
/// let peer = Peer::of(&there)?;
/// assert_eq!(peer.pid, std::process::id());
/// assert!(!peer.has_exited());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Peer {
    /// Its process number, in the PID namespace of this process; 0 if it has none here.
    pub pid: u32,
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
    /// The process itself, which a number, used again, can not tell from a later one. There is none
    /// if the process is gone, or if the kernel is older than Linux 6.5 and it is not certain
    /// enough that the number still means this process. Nor if no descriptor is left.
    pub pidfd: Option<OwnedFd>,
}

/// Why a signal was not sent to a [`Peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    /// There is no [`Peer::pidfd`], and its number may be another's by now.
    #[error("it is not certain that process {pid} is still the client: no signal is sent")]
    NoPidfd {
        /// Its number.
        pid: u32,
    },
    /// It is in a PID namespace that is neither this process's nor within it.
    #[error("the client is in a PID namespace whose processes cannot be signalled from here")]
    OtherNamespace,
    /// It is gone.
    #[error("the client has exited")]
    Exited,
    /// It is another user's, and this process has no `CAP_KILL` over it.
    #[error("the client is another user's: signals to it need CAP_KILL")]
    NotPermitted,
    /// Another error of the kernel.
    #[error("the client cannot be signalled: {0}")]
    Other(Errno),
}

impl Peer {
    /// Asks the kernel. To be called as soon as the connection is there: a process that is gone has
    /// no [`pidfd`](Self::pidfd).
    ///
    /// # Errors
    ///
    /// The kernel's: this process can have too many open files, for example.
    pub fn of(connection: &UnixStream) -> io::Result<Self> {
        let credentials: libc::ucred = option(connection.as_fd(), libc::SO_PEERCRED)?;
        let (uid, gid) = (credentials.uid, credentials.gid);
        let pid = credentials.pid.cast_unsigned();
        let pidfd = match option::<libc::c_int>(connection.as_fd(), libc::SO_PEERPIDFD) {
            // SAFETY: the kernel has opened this descriptor for this call, and it is owned nowhere
            // else.
            Ok(descriptor) => Some(unsafe { OwnedFd::from_raw_fd(descriptor) }),
            // Before Linux 6.5.
            Err(Errno::NOPROTOOPT) => by_number(connection, credentials),
            // It is gone, in the words of different kernels: its number must not be used.
            Err(Errno::SRCH | Errno::INVAL | Errno::NODATA) => None,
            // No descriptor is left. Without it the peer is served all the same.
            Err(Errno::MFILE | Errno::NFILE) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { pid, uid, gid, pidfd })
    }

    /// Whether it has certainly exited. Without a [`pidfd`](Self::pidfd) it is not certain. This
    /// does not wait; to wait, poll the `pidfd` for reading.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        self.pidfd.as_ref().is_some_and(|pidfd| is_ready(pidfd.as_fd(), PollFlags::IN))
    }

    /// Kills it, by `SIGKILL`. It may still be exiting when this returns.
    ///
    /// # Errors
    ///
    /// See [`SignalError`]. A process is never killed by its number.
    pub fn kill(&self) -> Result<(), SignalError> {
        self.signal(libc::SIGKILL)
    }

    /// Whether [`kill`](Self::kill) would succeed now; it sends nothing.
    ///
    /// # Errors
    ///
    /// What `kill` would return.
    pub fn can_be_signalled(&self) -> Result<(), SignalError> {
        self.signal(0)
    }

    fn signal(&self, signal: libc::c_int) -> Result<(), SignalError> {
        let Self { pid, pidfd, .. } = self;
        if *pid == 0 {
            return Err(SignalError::OtherNamespace);
        }
        let pidfd = pidfd.as_ref().ok_or(SignalError::NoPidfd { pid: *pid })?.as_raw_fd();
        let (call, flags) = (libc::SYS_pidfd_send_signal, 0_u32);
        let no_details = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the call takes two numbers, a null pointer and a number, and changes no memory.
        match unsafe { libc::syscall(call, pidfd, signal, no_details, flags) } {
            0 => Ok(()),
            _ => Err(match last_error() {
                Errno::SRCH => SignalError::Exited,
                Errno::PERM => SignalError::NotPermitted,
                Errno::INVAL => SignalError::OtherNamespace,
                other => SignalError::Other(other),
            }),
        }
    }
}

/// An option of a socket that is a plain value.
fn option<T: Plain>(socket: BorrowedFd<'_>, name: libc::c_int) -> Result<T, Errno> {
    let mut value = T::ZERO;
    let mut len = size_of::<T>() as libc::socklen_t;
    let (socket, level) = (socket.as_raw_fd(), libc::SOL_SOCKET);
    // SAFETY: the kernel writes at most `len` bytes, and `value` has as many, any of which are
    // valid (`Plain`).
    match unsafe { libc::getsockopt(socket, level, name, (&raw mut value).cast(), &raw mut len) } {
        0 if len as usize == size_of::<T>() => Ok(value),
        0 => Err(Errno::INVAL),
        _ => Err(last_error()),
    }
}

/// A type for which any bytes are a value.
///
/// # Safety
///
/// That must be true.
unsafe trait Plain {
    const ZERO: Self;
}

// SAFETY: an integer.
unsafe impl Plain for libc::c_int {
    const ZERO: Self = 0;
}

// SAFETY: three integers, without padding.
unsafe impl Plain for libc::ucred {
    const ZERO: Self = Self { pid: 0, uid: 0, gid: 0 };
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// The process with this number, if it is the one that connected the socket, as far as can be told:
///
/// - The other end of the socket was still open after the number was looked up. So the process that
///   connected it had not exited and its number was not another's, unless it has passed the socket
///   on.
/// - For that case: it has the same user and group.
fn by_number(connection: &UnixStream, credentials: libc::ucred) -> Option<OwnedFd> {
    let pid = Pid::from_raw(credentials.pid)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let is_open = !is_ready(connection.as_fd(), PollFlags::RDHUP);
    let status = fs::read_to_string(format!("/proc/{}/status", credentials.pid)).ok()?;
    // The second number is the effective one.
    let effective = |name| {
        let numbers = status.lines().find_map(|line| line.strip_prefix(name))?;
        numbers.split_ascii_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let is_same_user =
        effective("Uid:") == Some(credentials.uid) && effective("Gid:") == Some(credentials.gid);
    // Until here the number was that of `pidfd`, or what was read was another's.
    let is_there = !is_ready(pidfd.as_fd(), PollFlags::IN);
    (is_open && is_same_user && is_there).then_some(pidfd)
}

/// Whether one of the events is there, or an error or a hang-up. It does not wait.
fn is_ready(descriptor: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, events)];
    loop {
        match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> (UnixStream, UnixStream, libc::ucred) {
        let (here, there) = UnixStream::pair().unwrap();
        let credentials = option(here.as_fd(), libc::SO_PEERCRED).unwrap();
        (here, there, credentials)
    }

    #[test]
    fn a_number_is_used_only_if_user_and_group_are_the_same() {
        let (here, _there, own) = credentials();
        assert!(by_number(&here, own).is_some());
        assert!(by_number(&here, libc::ucred { uid: own.uid + 1, ..own }).is_none());
        assert!(by_number(&here, libc::ucred { gid: own.gid + 1, ..own }).is_none());
        assert!(by_number(&here, libc::ucred { pid: 0, ..own }).is_none());
    }

    #[test]
    fn a_number_is_not_used_once_the_other_end_is_closed() {
        let (here, there, own) = credentials();
        drop(there);
        assert!(by_number(&here, own).is_none());
    }

    #[test]
    fn the_number_of_a_process_that_has_exited_is_not_used() {
        let (here, _there, own) = credentials();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        // It still has its number: nothing has waited for it.
        let credentials = libc::ucred { pid: pid.as_raw_pid(), ..own };
        assert!(by_number(&here, credentials).is_none());
        child.wait().unwrap();
    }

    #[test]
    fn what_is_not_certain_to_be_the_client_is_not_signalled() {
        let pid = std::process::id();
        let peer = Peer { pid, uid: 0, gid: 0, pidfd: None };
        assert_eq!(peer.kill(), Err(SignalError::NoPidfd { pid }));
        assert!(!peer.has_exited());
        let peer = Peer { pid: 0, ..peer };
        assert_eq!(peer.kill(), Err(SignalError::OtherNamespace));
        assert_eq!(peer.can_be_signalled(), Err(SignalError::OtherNamespace));
    }
}

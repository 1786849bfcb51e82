//! Descriptors that this process was started with, and told of by their numbers.
#![expect(unsafe_code, reason = "a number becomes a descriptor")]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::OnceLock;

use listenfd::ListenFd;
use pervma_serve::TakenOver;

/// Takes the descriptor with a number, which is not one of the standard ones. To be called before
/// this process opens any, and once.
///
/// # Errors
///
/// When there is none.
pub(crate) fn take_first_of_all(number: i32) -> io::Result<File> {
    static TAKEN: OnceLock<()> = OnceLock::new();
    if number <= 2 {
        return Err(io::Error::other("it is one of the standard ones"));
    }
    // SAFETY: it is only asked about; if it is not open, the kernel says so.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(descriptor)?;
    if TAKEN.set(()).is_err() {
        return Err(io::Error::other("it is taken"));
    }
    // SAFETY: it is open, and nobody here owns it: the one caller has opened nothing before, and
    // the standard library opens none but the standard ones. It is not taken twice.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// What a service manager has passed: sockets at which clients arrive, and what it has kept of a
/// daemon before this one, by name.
pub(crate) struct Passed {
    all: ListenFd,
    /// Of those, the sockets.
    sockets: Vec<usize>,
    pub(crate) kept: Vec<(String, OwnedFd)>,
}

impl Passed {
    /// To be called before this process opens any descriptor, which could be taken for one of them.
    ///
    /// # Errors
    ///
    /// When something is no descriptor.
    pub(crate) fn from_env() -> io::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut all = ListenFd::from_env();
        let (mut sockets, mut kept) = (Vec::new(), Vec::new());
        for at in 0..all.len() {
            match names.next() {
                Some(name) if TakenOver::is_stored(name) => {
                    if let Some(number) = all.take_raw_fd(at)? {
                        // SAFETY: passed to this process, which owns it from here on: once, as the
                        // list of those that were passed sees to.
                        kept.push((name.to_owned(), unsafe { OwnedFd::from_raw_fd(number) }));
                    }
                }
                _ => sockets.push(at),
            }
        }
        Ok(Self { all, sockets, kept })
    }

    /// How many sockets there are.
    pub(crate) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// The first socket, once.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub(crate) fn take_first(&mut self) -> io::Result<Option<UnixListener>> {
        self.sockets.first().map_or(Ok(None), |&at| self.all.take_unix_listener(at))
    }
}

//! Descriptors that a process before this one has opened, known by their numbers.
#![expect(unsafe_code, reason = "numbers become descriptors")]

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, openat, seek};

/// Lists what `/proc` has numbers of, also where no file can be opened any more.
pub(crate) struct List(OwnedFd);

impl List {
    /// The descriptors of this process, and of all that share them with it.
    ///
    /// # Errors
    ///
    /// When `/proc` is not there.
    pub(crate) fn of_descriptors() -> io::Result<Self> {
        Self::of("/proc/self/fd")
    }

    /// The threads of this process.
    ///
    /// # Errors
    ///
    /// As above.
    pub(crate) fn of_threads() -> io::Result<Self> {
        Self::of("/proc/self/task")
    }

    fn of(directory: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(rustix::fs::CWD, directory, flags, Mode::empty())?))
    }

    /// Those that there are now.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn numbers(&self) -> io::Result<BTreeSet<i32>> {
        seek(&self.0, SeekFrom::Start(0))?;
        let mut buffer = [const { MaybeUninit::uninit() }; 8192];
        let mut entries = RawDir::new(self.0.as_fd(), &mut buffer);
        let mut numbers = BTreeSet::new();
        while let Some(entry) = entries.next() {
            // The others are `.` and `..`.
            numbers
                .extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(numbers)
    }
}

/// Closes a descriptor that a process of a test has left open to its end.
#[cfg(test)]
pub(crate) fn close_forgotten(number: i32) {
    // SAFETY: open, and its owner has forgotten it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

/// Descriptors that processes before this one have opened, and that nobody owns.
///
/// D1: each number is that of an open descriptor, of which no value of this process is the owner.
#[derive(Default)]
pub(crate) struct Descriptors(BTreeSet<i32>);

impl Descriptors {
    /// All that are open, but for these.
    ///
    /// # Safety
    ///
    /// D1 holds of those.
    pub(crate) unsafe fn all_but(list: &List, owned: &BTreeSet<i32>) -> io::Result<Self> {
        Ok(Self(list.numbers()?.difference(owned).copied().collect()))
    }

    /// The descriptor with a number, if it is there and was not taken.
    pub(crate) fn take(&mut self, number: i32) -> Option<OwnedFd> {
        // SAFETY: open, and owned by nobody (D1), which changes with its number's removal.
        self.0.remove(&number).then(|| unsafe { OwnedFd::from_raw_fd(number) })
    }

    /// As [`take`](Self::take), if it is a file of memory: what is noted of that is not checked,
    /// and it may be the number of another client's descriptor.
    pub(crate) fn take_file(&mut self, number: i32) -> Option<OwnedFd> {
        rustix::fs::fcntl_get_seals(self.borrow(number)?).ok()?;
        self.take(number)
    }

    /// One more that nobody owns.
    pub(crate) fn give(&mut self, descriptor: OwnedFd) {
        self.0.insert(descriptor.into_raw_fd());
    }

    pub(crate) fn numbers(&self) -> &BTreeSet<i32> {
        &self.0
    }

    /// The descriptor with a number, which stays nobody's.
    pub(crate) fn borrow(&self, number: i32) -> Option<BorrowedFd<'_>> {
        // SAFETY: open (D1), and taken by nobody while this is borrowed.
        self.0.contains(&number).then(|| unsafe { BorrowedFd::borrow_raw(number) })
    }

    /// All, with their numbers.
    pub(crate) fn all(&self) -> impl Iterator<Item = (i32, BorrowedFd<'_>)> {
        self.0.iter().filter_map(|&number| Some((number, self.borrow(number)?)))
    }

    /// Closes what another process has waited by, among those that are not noted.
    pub(crate) fn close_waits(&mut self, noted: &BTreeSet<i32>) {
        let is_wait = |number: &&i32| {
            let link = rustix::fs::readlink(format!("/proc/self/fd/{number}"), Vec::new());
            link.is_ok_and(|link| link.as_bytes().starts_with(b"anon_inode:[event"))
        };
        let waits: Vec<i32> = self.0.difference(noted).filter(is_wait).copied().collect();
        waits.into_iter().filter_map(|number| self.take(number)).for_each(drop);
    }

    /// All that were not taken.
    pub(crate) fn rest(self) -> Vec<OwnedFd> {
        // SAFETY: as above.
        self.0.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
    }
}

/// The descriptor with a number, if it is a socket that listens. It stays its owner's, who keeps it
/// open to the end of the process.
pub(crate) fn listening(number: i32) -> Option<BorrowedFd<'static>> {
    let descriptor = borrowed(number);
    let listens = rustix::net::sockopt::socket_acceptconn(descriptor);
    listens.is_ok_and(|listens| listens).then_some(descriptor)
}

/// A descriptor with a number, which stays its owner's: the caller's, for as long as it is used.
pub(crate) fn borrowed(number: i32) -> BorrowedFd<'static> {
    // SAFETY: the caller has it open, as an entry of the table says, while this is used.
    unsafe { BorrowedFd::borrow_raw(number) }
}

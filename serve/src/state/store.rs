//! A service manager that keeps descriptors for a service, also when all of its processes have died
//! (systemd: `FDSTORE`).

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The name of the table in the store. Other descriptors have their numbers behind this.
pub(crate) const TABLE: &str = "pervma-table";
pub(crate) const NUMBER: &str = "pervma-";

/// How long a manager is waited for that does not hear.
const LIMIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The store.
pub(crate) struct Store(OwnedFd);

impl Store {
    /// By a socket that is connected to the manager's.
    pub(crate) fn of(manager: OwnedFd) -> Self {
        Self(manager)
    }

    pub(crate) fn put_table(&self, table: BorrowedFd<'_>) {
        // That of a daemon before this one.
        self.tell(format_args!("FDSTOREREMOVE=1\nFDNAME={TABLE}"), None);
        self.tell(format_args!("FDSTORE=1\nFDPOLL=0\nFDNAME={TABLE}"), Some(table));
    }

    /// Keeps a descriptor by its number; nothing for -1.
    pub(crate) fn put(&self, descriptor: i32) {
        if descriptor >= 0 {
            let message = format_args!("FDSTORE=1\nFDPOLL=0\nFDNAME={NUMBER}{descriptor}");
            self.tell(message, Some(super::descriptors::borrowed(descriptor)));
        }
    }

    /// Keeps it no more: it is about to be closed.
    pub(crate) fn remove(&self, descriptor: i32) {
        if descriptor >= 0 {
            self.tell(format_args!("FDSTOREREMOVE=1\nFDNAME={NUMBER}{descriptor}"), None);
        }
    }

    fn tell(&self, message: std::fmt::Arguments<'_>, descriptor: Option<BorrowedFd<'_>>) {
        let mut text = Vec::new();
        // Into memory.
        let _ = text.write_fmt(message);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let parts = [IoSlice::new(&text)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut sent = sendmsg(&self.0, &parts, &mut control, flags);
        if sent == Err(Errno::AGAIN) {
            let mut hears = [PollFd::new(&self.0, PollFlags::OUT)];
            // Interrupted is as good as late.
            let _ = poll(&mut hears, Some(&LIMIT));
            sent = sendmsg(&self.0, &parts, &mut control, flags);
        }
        if let Err(error) = sent {
            tracing::warn!(%error, "the service manager was not told of a descriptor");
        }
    }
}

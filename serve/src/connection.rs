//! A connection of a peer, which is noted, so that the next process finds it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use pervma_pager::sys::RemoteUserfaultfd;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use crate::failure::Failure;
use crate::pager::DEADLY;
use crate::peer::Peer;
use crate::state::descriptors::Descriptors;
use crate::state::inbox::Inbox;
use crate::state::journal::Damaged;
use crate::state::memory::Memory;
use crate::state::table::{Entry, Kind, Slot, Table};
use crate::steps::step;

/// A connection.
pub(crate) struct Connection {
    pub(crate) slot: Slot,
    pub(crate) number: u64,
    /// The listener that has accepted it.
    pub(crate) listen: usize,
    pub(crate) socket: UnixStream,
    pub(crate) peer: Peer,
}

/// What had come by a connection that another process has left, and was not understood yet.
pub(crate) struct Came {
    pub(crate) inbox: Inbox,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Why it is not to be heard on.
    pub(crate) refused: Option<Failure>,
}

impl Connection {
    /// Takes a connection, which does not block from now on, and into whose inbox it is received.
    ///
    /// # Errors
    ///
    /// The kernel's: there is no memory, or no descriptor.
    pub(crate) fn of(
        table: &Arc<Table>,
        listen: usize,
        source: u64,
        socket: UnixStream,
        inbox: &Inbox,
    ) -> io::Result<Self> {
        let peer = Peer::of(&socket)?;
        let entry = Entry {
            number: table.new_number(Kind::Connection),
            kind: Kind::Connection,
            descriptor: socket.as_raw_fd(),
            pidfd: peer.pidfd.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            parent: 0,
            owner: 0,
            source,
            pid: peer.pid,
            uid: peer.uid,
            gid: peer.gid,
            is_sparse: false,
        };
        let slot = table.add(&entry, inbox.descriptor())?;
        step();
        let connection = Self { slot, number: entry.number, listen, socket, peer };
        // Once it is noted: see `unknown`.
        connection.socket.set_nonblocking(true)?;
        step();
        Ok(connection)
    }

    /// What another process has left, with what had come and was not understood: an error if that
    /// is damaged. `None` if it had been closed.
    pub(crate) fn left(
        slot: Slot,
        entry: &Entry,
        listen: Option<usize>,
        culprit: u64,
        descriptors: &mut Descriptors,
    ) -> Option<(Self, Result<Option<Came>, Damaged>)> {
        let (socket, pidfd) = (descriptors.take(entry.descriptor), descriptors.take(entry.pidfd));
        let (is_noted, file) = (slot.file() >= 0, descriptors.take_file(slot.file()));
        let Some(socket) = socket.map(UnixStream::from) else {
            slot.free();
            return None;
        };
        // That process may have died before it could.
        let _ = socket.set_nonblocking(true);
        let came = || {
            if !is_noted {
                return Ok(None);
            }
            let memory = Memory::left_in(file.ok_or(Damaged::Short)?).or(Err(Damaged::Short))?;
            let (inbox, descriptors) = Inbox::left_in(memory, descriptors)?;
            let is_deadly = entry.number == culprit && slot.blame() >= DEADLY;
            let unknown = || Failure::Refused("its memory is not served any more".to_owned());
            let refused =
                if is_deadly { Some(Failure::Deadly) } else { listen.is_none().then(unknown) };
            Ok(Some(Came { inbox, descriptors, refused }))
        };
        let came = came();
        let peer = Peer { pid: entry.pid, uid: entry.uid, gid: entry.gid, pidfd };
        let (number, listen) = (entry.number, listen.unwrap_or_default());
        Some((Self { slot, number, listen, socket, peer }, came))
    }

    /// All that has come is noted elsewhere: drops the owner of the inbox, whose number may be
    /// another's then.
    pub(crate) fn understood<Owner>(&self, inbox: Owner) {
        self.slot.set_file(-1);
        step();
        drop(inbox);
    }

    /// What the daemon has marked it with; 0 if it has not.
    pub(crate) fn mark(&self) -> u64 {
        self.slot.mark()
    }

    pub(crate) fn set_mark(&self, mark: u64) {
        self.slot.set_mark(mark);
        step();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Before its descriptors are closed, whose numbers may be others' then.
        self.slot.free();
    }
}

/// What had come by a connection, if it can be used. Else a descriptor of which nothing is noted
/// may have come by it.
pub(crate) fn none_of_damaged(came: Result<Option<Came>, Damaged>) -> Option<Came> {
    came.unwrap_or_else(|error| {
        tracing::error!("what has come from a peer cannot be used: {error}");
        None
    })
}

/// What a descriptor is of which nothing is noted.
pub(crate) enum Unknown {
    /// A process had just accepted a peer, at this one of the listeners.
    Peer(usize, UnixStream),
    /// A copy of a client's; or that of a client whose entry is damaged.
    Userfaultfd(OwnedFd),
    /// To be closed.
    Other,
}

/// Says what a descriptor is that a process before this one had, and did not note.
pub(crate) fn unknown<'l>(
    descriptor: OwnedFd,
    mut listeners: impl Iterator<Item = &'l UnixListener>,
) -> Unknown {
    if RemoteUserfaultfd::is_one(descriptor.as_fd()) {
        return Unknown::Userfaultfd(descriptor);
    }
    if socket_type(&descriptor) != Ok(SocketType::STREAM) {
        return Unknown::Other;
    }
    // One that does not block was noted, and is not any more: it was about to be closed.
    let blocks = fcntl_getfl(&descriptor).is_ok_and(|flags| !flags.contains(OFlags::NONBLOCK));
    if !blocks {
        return Unknown::Other;
    }
    let socket = UnixStream::from(descriptor);
    let place = socket.local_addr().ok();
    let Some(place) = place.as_ref().and_then(|place| place.as_pathname()) else {
        return Unknown::Other;
    };
    let is_here = |listener: &UnixListener| {
        listener.local_addr().is_ok_and(|here| here.as_pathname() == Some(place))
    };
    match listeners.position(is_here) {
        Some(listen) => Unknown::Peer(listen, socket),
        None => Unknown::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_was_noted_is_not_taken_for_one_that_has_just_come() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("socket");
        let listener = UnixListener::bind(&at).unwrap();
        let of = |socket: UnixStream| unknown(socket.into(), std::iter::once(&listener));
        let accepted = || {
            let peer = UnixStream::connect(&at).unwrap();
            (listener.accept().unwrap().0, peer)
        };
        let (socket, _peer) = accepted();
        assert!(matches!(of(socket), Unknown::Peer(0, _)));
        let (socket, _peer) = accepted();
        socket.set_nonblocking(true).unwrap();
        assert!(matches!(of(socket), Unknown::Other));
    }
}

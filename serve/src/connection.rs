//! A connection of a peer, which is noted, so that the next process finds it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use pervma_pager::sys::RemoteUserfaultfd;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use crate::pager::DEADLY;
use crate::peer::Peer;
use crate::state::descriptors::Descriptors;
use crate::state::inbox::Inbox;
use crate::state::memory::Memory;
use crate::state::table::{Entry, Kind, Slot, Table};
use crate::steps::step;

/// A connection.
pub(crate) struct Connection {
    slot: Slot,
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
    /// Processes have died of it, one after the other.
    pub(crate) is_deadly: bool,
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
        socket.set_nonblocking(true)?;
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
        Ok(Self { slot, number: entry.number, listen, socket, peer })
    }

    /// What another process has left, with what had come, if it is known which listener has
    /// accepted it; `None` if it had been closed.
    pub(crate) fn left(
        slot: Slot,
        entry: &Entry,
        listen: Option<usize>,
        culprit: u64,
        descriptors: &mut Descriptors,
    ) -> Option<(Self, Option<Came>)> {
        let (socket, pidfd) = (descriptors.take(entry.descriptor), descriptors.take(entry.pidfd));
        let file = descriptors.take_file(slot.file());
        let Some(socket) = socket.map(UnixStream::from) else {
            slot.free();
            return None;
        };
        let came = file.filter(|_| listen.is_some()).and_then(|file| {
            let memory = Memory::left_in(file).ok()?;
            let (inbox, descriptors) = Inbox::left_in(memory, descriptors).ok()?;
            let is_deadly = entry.number == culprit && slot.blame() >= DEADLY;
            Some(Came { inbox, descriptors, is_deadly })
        });
        let peer = Peer { pid: entry.pid, uid: entry.uid, gid: entry.gid, pidfd };
        let (number, listen) = (entry.number, listen.unwrap_or_default());
        Some((Self { slot, number, listen, socket, peer }, came))
    }

    /// All that has come is noted elsewhere. To be called before the inbox is dropped: its number
    /// may be another's then.
    pub(crate) fn understood(&self) {
        self.slot.set_file(-1);
        step();
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

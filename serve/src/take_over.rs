//! How another program, of a later version perhaps, takes everything over from one that serves.
//!
//! It asks at a socket of messages (`SOCK_SEQPACKET`), and gets the table and all descriptors that
//! are noted there; it gives them the numbers that they had, so that what is noted stays as it is.
//!
//! | who | sends |
//! |---|---|
//! | the new one | [`ASK`], and the version of what it reads |
//! | the old one | [`REFUSE`] and a reason; or [`TABLE`], [`LISTENER`] for each of its sockets, [`DESCRIPTORS`] as often as it takes, [`ALL`] |
//! | the new one | [`READY`], when it could go on |
//!
//! Nobody serves meanwhile, for some milliseconds. The old one then notes in the table that it has
//! let go: that decides whose the clients are, whoever dies when. The new one waits until the
//! connection is closed, and looks there; if that is not noted, it notes that it does not wait any
//! more. Of both only one can be noted. With [`TABLE`] comes a number, which is noted as well: what
//! is let go may be another's, who has asked later.
//!
//! Who has asked and does not say within [`LIMIT`] that it is ready is left alone, and the old one
//! serves on.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, connect, recvmsg, sendmsg, socket_with,
};

use crate::socket::{Made, listen_at};
use crate::state::VERSION;
use crate::state::descriptors::{Descriptors, listening};
use crate::state::store::{NUMBER, TABLE as TABLE_NAME};
use crate::state::table::Table;
use crate::steps::{die, step};
use crate::threads::Watched;

const ASK: u64 = 0x4B53_4156_5245_5001;
const REFUSE: u64 = 0x4B53_4156_5245_5002;
const TABLE: u64 = 0x4B53_4156_5245_5003;
const LISTENER: u64 = 0x4B53_4156_5245_5004;
const DESCRIPTORS: u64 = 0x4B53_4156_5245_5005;
const ALL: u64 = 0x4B53_4156_5245_5006;
const READY: u64 = 0x4B53_4156_5245_5007;

/// How long one waits for the other.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the one that serves waits for who has connected, and says nothing.
const PATIENCE: Duration = Duration::from_millis(100);
/// Descriptors in a message: the kernel takes a few more.
const IN_ONE: usize = 200;
/// Bytes of a reason.
const REASON: usize = 256;

/// Why nothing was taken over. The program that was asked serves on, unless it had ended before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeOverError {
    /// Nobody can be asked.
    #[error("nobody can be asked: {0}")]
    Connect(#[source] io::Error),
    /// It was refused.
    #[error("the program that serves there refuses: {0}")]
    Refused(String),
    /// What came is not what is expected.
    #[error("what it has sent is not understood")]
    Malformed,
    /// It is of a version that this program does not read.
    #[error("its state is of another version: have it drain, and start this one then")]
    Version,
    /// A descriptor has a number here that something else has.
    #[error("a descriptor needs the number {0}, which something else has")]
    Number(i32),
    /// It listens at a socket that this program is not given: who waits there would be lost.
    #[error("it listens at {}, which is not given here as well", .0.display())]
    Socket(PathBuf),
    /// It has gone on by itself, or has ended before.
    #[error("the program that serves there did not let go")]
    NotLetGo,
    /// Another error of the kernel.
    #[error("{0}")]
    Other(#[from] io::Error),
}

impl From<Errno> for TakeOverError {
    fn from(error: Errno) -> Self {
        Self::Other(error.into())
    }
}

/// What was taken over.
pub struct TakenOver {
    /// Until it is used.
    table: Option<OwnedFd>,
    descriptors: Descriptors,
    listeners: Vec<UnixListener>,
    /// To who has served up to now, if that is not dead.
    connection: Option<OwnedFd>,
    /// The number of that giving.
    giving: u32,
    /// Set when that has let go: until then the sockets are its own.
    has_let_go: Arc<OnceLock<()>>,
}

impl TakenOver {
    /// Asks the program that listens at a path for all that it serves. To be called before this
    /// program opens descriptors: those that come have the numbers that they had.
    ///
    /// From here on nobody serves, until a [`Keeper`](crate::Keeper) of this runs, or this is
    /// dropped: then the other program goes on.
    ///
    /// # Errors
    ///
    /// See [`TakeOverError`].
    pub fn ask(path: &Path) -> Result<Self, TakeOverError> {
        let connected = || {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let connection =
            connected().map_err(|error: Errno| TakeOverError::Connect(error.into()))?;
        send(&connection, ASK, &u64::from(VERSION).to_ne_bytes(), &[])?;
        let (mut table, mut listeners, mut came) = (None, Vec::new(), Vec::new());
        loop {
            let Message { kind, bytes, descriptors } = receive(&connection, LIMIT)?;
            match kind {
                REFUSE => {
                    return Err(TakeOverError::Refused(String::from_utf8_lossy(&bytes).into()));
                }
                TABLE => {
                    let giving = bytes[..].try_into().map_err(|_| TakeOverError::Malformed)?;
                    let giving = u32::from_ne_bytes(giving);
                    table = descriptors.into_iter().next().map(|table| (table, giving));
                }
                LISTENER => listeners.extend(descriptors.into_iter().map(UnixListener::from)),
                DESCRIPTORS => {
                    let (numbers, rest) = bytes.as_chunks();
                    if numbers.len() != descriptors.len() || !rest.is_empty() {
                        return Err(TakeOverError::Malformed);
                    }
                    let numbers = numbers.iter().map(|number| i32::from_ne_bytes(*number));
                    came.extend(numbers.zip(descriptors));
                }
                ALL => break,
                _ => return Err(TakeOverError::Malformed),
            }
        }
        let (table, giving) = table.ok_or(TakeOverError::Malformed)?;
        // Out of the way of the numbers that are to be had.
        let above = above(&came);
        let (table, connection) = (Some(moved(table, above)?), Some(moved(connection, above)?));
        let listeners: Result<Vec<_>, TakeOverError> = listeners
            .into_iter()
            .map(|listener| Ok(UnixListener::from(moved(listener.into(), above)?)))
            .collect();
        let listeners = listeners?;
        let (descriptors, has_let_go) = (placed(came)?, Arc::default());
        Ok(Self { table, descriptors, listeners, connection, giving, has_let_go })
    }

    /// What a service manager has kept of a daemon all of whose processes have died: descriptors by
    /// the names that they had there. `None` if there is no table. To be called before this program
    /// opens descriptors.
    ///
    /// # Errors
    ///
    /// See [`TakeOverError`].
    pub fn stored(
        kept: impl IntoIterator<Item = (String, OwnedFd)>,
    ) -> Result<Option<Self>, TakeOverError> {
        let (mut table, mut came) = (None, Vec::new());
        for (name, descriptor) in kept {
            if name == TABLE_NAME {
                table = Some(descriptor);
            } else if let Some(number) = name.strip_prefix(NUMBER) {
                let number: u32 = number.parse().map_err(|_| TakeOverError::Malformed)?;
                let number = i32::try_from(number).map_err(|_| TakeOverError::Malformed)?;
                came.push((number, descriptor));
            }
        }
        let Some(table) = table else { return Ok(None) };
        let table = moved(table, above(&came))?;
        let descriptors = placed(came)?;
        let (listeners, connection, giving, has_let_go) = (Vec::new(), None, 0, Arc::default());
        let table = Some(table);
        Ok(Some(Self { table, descriptors, listeners, connection, giving, has_let_go }))
    }

    /// Whether a service manager keeps a descriptor of this name for [`stored`](Self::stored).
    #[must_use]
    pub fn is_stored(name: &str) -> bool {
        name.starts_with(NUMBER)
    }

    /// The socket at a path at which the other program listened, if it did.
    pub fn listener(&mut self, path: &Path) -> Option<UnixListener> {
        let is_here = |listener: &UnixListener| {
            listener.local_addr().is_ok_and(|here| here.as_pathname() == Some(path))
        };
        let at = self.listeners.iter().position(is_here)?;
        Some(self.listeners.remove(at))
    }

    /// The file of one of its sockets, which stays its own as long as it has not let go.
    pub(crate) fn made(&self, path: &Path) -> io::Result<Made> {
        Made::of(path, Arc::clone(&self.has_let_go))
    }

    /// Closes the sockets that nobody [listens](Self::listener) at here.
    ///
    /// # Errors
    ///
    /// When clients may wait there.
    pub(crate) fn close_listeners(&mut self) -> Result<(), TakeOverError> {
        let of_clients = |listener: &UnixListener| socket_type(listener) == Ok(SocketType::STREAM);
        if let Some(listener) = self.listeners.iter().find(|listener| of_clients(listener)) {
            let place = listener.local_addr()?;
            return Err(TakeOverError::Socket(place.as_pathname().unwrap_or(Path::new("")).into()));
        }
        self.listeners.clear();
        Ok(())
    }

    /// The table, for so many threads that read. Once.
    pub(crate) fn table(&mut self, threads: usize) -> Result<Arc<Table>, TakeOverError> {
        let file = self.table.take().ok_or(TakeOverError::Malformed)?;
        Table::left_in(file, threads).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => TakeOverError::Version,
            _ => TakeOverError::Other(error),
        })
    }

    /// The numbers of the descriptors that came.
    pub(crate) fn numbers(&self) -> &BTreeSet<i32> {
        self.descriptors.numbers()
    }

    /// Says that this program goes on from here, and waits until the other one has let go; the
    /// number of the giving.
    pub(crate) fn finish(&self, table: &Table) -> Result<u32, TakeOverError> {
        // A service manager gives it, and nobody else has it.
        let Some(connection) = &self.connection else { return Ok(table.new_giving()) };
        send(connection, READY, &[], &[])?;
        // Until it is closed. If that is late, the other one may not have ended yet.
        while receive(connection, LIMIT).is_ok() {}
        // If it does so later, it sees that this program does not wait any more.
        if table.waits_no_more(self.giving) {
            return Err(TakeOverError::NotLetGo);
        }
        self.has_let_go.get_or_init(|| ());
        // That one's process has ended by giving it.
        table.note_handed();
        Ok(self.giving)
    }
}

impl fmt::Debug for TakenOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakenOver").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

/// A number above those that are to be had.
fn above(came: &[(i32, OwnedFd)]) -> i32 {
    came.iter().map(|(number, _)| *number).max().unwrap_or(0).saturating_add(1)
}

/// Descriptors with the numbers that they are to have.
fn placed(came: Vec<(i32, OwnedFd)>) -> Result<Descriptors, TakeOverError> {
    let above = above(&came);
    let came = came.into_iter().map(|(number, descriptor)| Ok((number, moved(descriptor, above)?)));
    let mut descriptors = Descriptors::default();
    for (number, descriptor) in came.collect::<Result<Vec<_>, TakeOverError>>()? {
        let placed = moved(descriptor, number)?;
        if placed.as_raw_fd() != number {
            return Err(TakeOverError::Number(number));
        }
        descriptors.give(placed);
    }
    Ok(descriptors)
}

/// The same, with the lowest number from this one on that is free.
fn moved(descriptor: OwnedFd, number: i32) -> Result<OwnedFd, TakeOverError> {
    Ok(rustix::io::fcntl_dupfd_cloexec(&descriptor, number)?)
}

/// A socket at which another program takes everything over.
#[derive(Debug)]
pub struct TakeOverSocket {
    listener: OwnedFd,
    made: Made,
}

impl TakeOverSocket {
    /// Makes a socket that its owner alone can connect to (mode 0600), in place of one that nobody
    /// listens at any more.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another process listens there; `AlreadyExists` if the path is another file's.
    pub fn at(path: &Path) -> io::Result<Self> {
        let (listener, made) = listen_at(path, SocketType::SEQPACKET)?;
        Ok(Self { listener, made })
    }

    /// The socket at a path at which another program listened, from which everything is taken over;
    /// or a new one.
    ///
    /// # Errors
    ///
    /// As for [`at`](Self::at).
    pub fn taken(taken: &mut TakenOver, path: &Path) -> io::Result<Self> {
        match taken.listener(path) {
            Some(listener) => Ok(Self { listener: listener.into(), made: taken.made(path)? }),
            None => Self::at(path),
        }
    }

    pub(crate) fn remove(&self) {
        self.made.remove();
    }
}

impl AsFd for TakeOverSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Hears who has connected to a socket at which another program takes over: if it may, this process
/// does not return, and the next one [gives](give_if_asked) it everything.
pub(crate) fn hear(
    listener: &TakeOverSocket,
    table: &Table,
    keeper: &mut Watched,
) -> io::Result<()> {
    let connection = accept_with(listener, SocketFlags::CLOEXEC)?;
    let refused = match receive(&connection, PATIENCE) {
        Ok(Message { kind: ASK, bytes, .. }) if bytes == u64::from(VERSION).to_ne_bytes() => {
            // It has gone a moment ago, perhaps: nobody would give anything.
            if keeper.look() {
                table.note_handed();
                table.note_asked(connection.as_raw_fd(), None);
                die();
            }
            "its keeper has gone: have it drain".to_owned()
        }
        Ok(Message { kind: ASK, .. }) => format!("its state is of version {VERSION}"),
        Ok(_) => "this was not understood".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!("a program that asks for all clients is refused: {refused}");
    let refused = &refused.as_bytes()[..refused.len().min(REASON)];
    send(&connection, REFUSE, refused, &[]).map_err(io::Error::other)
}

/// Gives everything to who has asked a process before this one for it; whether it was taken.
///
/// `owned` are the numbers of this program's own descriptors, of which the listening sockets are
/// given.
pub(crate) fn give_if_asked(
    table: &Table,
    descriptors: &Descriptors,
    owned: &BTreeSet<i32>,
) -> bool {
    let Some((number, given)) = table.asked() else { return false };
    // Nothing is given to whatever else has its number.
    let asks = |connection: &BorrowedFd<'_>| socket_type(connection) == Ok(SocketType::SEQPACKET);
    let Some(connection) = descriptors.borrow(number).filter(asks) else {
        table.note_asked(-1, None);
        return false;
    };
    let giving = given.unwrap_or_else(|| table.new_giving());
    table.note_asked(number, Some(giving));
    step();
    let give = || -> Result<(), TakeOverError> {
        // What another process has sent of it is not known: it is ready by now, or never.
        if given.is_some() && !is_ready(connection, PollFlags::IN, Duration::ZERO)? {
            return Err(TakeOverError::NotLetGo);
        }
        if given.is_none() {
            give(connection, number, giving, table, descriptors, owned)?;
        }
        match receive(connection, LIMIT)?.kind {
            // It is there still, and waits.
            READY if !is_ready(connection, PollFlags::empty(), Duration::ZERO)? => {}
            READY => return Err(TakeOverError::NotLetGo),
            _ => return Err(TakeOverError::Malformed),
        }
        step();
        // From here on all is the other program's, unless that has waited for too long.
        if table.let_go(giving) { Ok(()) } else { Err(TakeOverError::NotLetGo) }
    };
    let given = give();
    step();
    match given {
        Ok(()) => {}
        Err(error) => {
            tracing::warn!(%error, "nobody takes over: this program serves on");
            // So it sees that it gets nothing; the descriptor is closed as one that is not noted.
            let _ = rustix::net::shutdown(connection, rustix::net::Shutdown::Both);
            table.note_asked(-1, None);
            return false;
        }
    }
    true
}

fn give(
    connection: BorrowedFd<'_>,
    number: i32,
    giving: u32,
    table: &Table,
    descriptors: &Descriptors,
    owned: &BTreeSet<i32>,
) -> Result<(), TakeOverError> {
    send(connection, TABLE, &giving.to_ne_bytes(), &[table.file().ok_or(TakeOverError::Version)?])?;
    for listener in owned.iter().filter_map(|&number| listening(number)) {
        send(connection, LISTENER, &[], &[listener])?;
        step();
    }
    let given: Vec<_> = descriptors.all().filter(|(other, _)| *other != number).collect();
    for some in given.chunks(IN_ONE) {
        let numbers: Vec<u8> = some.iter().flat_map(|(number, _)| number.to_ne_bytes()).collect();
        let descriptors: Vec<_> = some.iter().map(|(_, descriptor)| *descriptor).collect();
        send(connection, DESCRIPTORS, &numbers, &descriptors)?;
        step();
    }
    send(connection, ALL, &[], &[])
}

/// Whether something can be done with a connection within a time.
fn is_ready(connection: impl AsFd, what: PollFlags, limit: Duration) -> Result<bool, Errno> {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let mut wanted = [PollFd::from_borrowed_fd(connection.as_fd(), what)];
    loop {
        match poll(&mut wanted, Some(&limit)) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// A message.
struct Message {
    kind: u64,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

fn send(
    connection: impl AsFd,
    kind: u64,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), TakeOverError> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(IN_ONE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(TakeOverError::Malformed);
    }
    let kind = kind.to_ne_bytes();
    let parts = [IoSlice::new(&kind), IoSlice::new(bytes)];
    loop {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&connection, &parts, &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if is_ready(&connection, PollFlags::OUT, LIMIT)? => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Receives a message. [`NotLetGo`](TakeOverError::NotLetGo) if there will be none, or none within
/// a time.
fn receive(connection: impl AsFd, limit: Duration) -> Result<Message, TakeOverError> {
    if !is_ready(&connection, PollFlags::IN, limit)? {
        return Err(TakeOverError::NotLetGo);
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(IN_ONE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (mut kind, mut bytes) = ([0; 8], [0; IN_ONE * size_of::<i32>()]);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut kind), IoSliceMut::new(&mut bytes)];
        match recvmsg(&connection, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    if received.bytes == 0 {
        return Err(TakeOverError::NotLetGo);
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(TakeOverError::Other(io::Error::other("a descriptor was lost")));
    }
    let len = received.bytes.checked_sub(kind.len()).ok_or(TakeOverError::Malformed)?;
    let kind = u64::from_ne_bytes(kind);
    Ok(Message { kind, bytes: bytes[..len].to_vec(), descriptors })
}

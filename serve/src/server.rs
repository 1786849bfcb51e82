//! A daemon: sockets at which clients arrive, and what happens until they have gone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use pervma_pager::Source;
use pervma_pager::sys::RemoteUserfaultfd;
use rustix::event::{Timespec, epoll};
use rustix::net::SocketType;

use crate::blame::for_client;
use crate::client::{About, Client, ClientError, ClientId};
use crate::connection::{Came, Connection, Unknown, none_of_damaged, unknown};
use crate::failure::Failure;
use crate::handshake::Arrival;
use crate::handshake::firecracker::Handshake;
use crate::keeper::Kept;
use crate::limits::Limits;
use crate::notices::Notices;
use crate::pager::{Left, Notice, Options, Pager};
use crate::peer::Peer;
use crate::socket::{Made, listen_at};
use crate::state::Extent;
use crate::state::inbox::Inbox;
use crate::state::table::{CONNECTIONS, Entry, Kind, Slot, Table};
use crate::stats::Stats;
use crate::steps::step;
use crate::stop::Stop;
use crate::take_over::{self, TakeOverSocket, TakenOver};
use crate::threads::{Threads, Watched, or_exit};
use crate::working_set::{SourceId, WorkingSet, WorkingSetError};

/// A socket at which clients arrive, all with the same bytes.
#[derive(Clone)]
pub struct Listen {
    listener: Arc<UnixListener>,
    /// What this process has made: removed at the end.
    made: Option<Arc<Made>>,
    source: Arc<dyn Source>,
    /// What is noted of the source, if that is known.
    identity: Option<u64>,
    /// What clients will ask for, as it was recorded.
    replays: Vec<Arc<WorkingSet>>,
}

impl Listen {
    /// Makes a socket that its owner alone can connect to (mode 0600). One that nobody listens at
    /// any more is replaced.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another process listens there; `AlreadyExists` if the path is another file's.
    pub fn at(path: &Path, source: Arc<dyn Source>) -> io::Result<Self> {
        let (listener, made) = listen_at(path, SocketType::STREAM)?;
        Ok(Self { made: Some(Arc::new(made)), ..Self::of(listener.into(), source)? })
    }

    /// The socket at a path at which another program listened, from which everything is taken over;
    /// or a new one.
    ///
    /// # Errors
    ///
    /// As for [`at`](Self::at).
    pub fn taken(taken: &mut TakenOver, path: &Path, source: Arc<dyn Source>) -> io::Result<Self> {
        match taken.listener(path) {
            Some(listener) => {
                let made = Some(Arc::new(taken.made(path)?));
                Ok(Self { made, ..Self::of(listener, source)? })
            }
            None => Self::at(path, source),
        }
    }

    /// A socket that listens already, from a service manager.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn of(listener: UnixListener, source: Arc<dyn Source>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (listener, replays) = (Arc::new(listener), Vec::new());
        Ok(Self { listener, made: None, source, identity: None, replays })
    }

    /// Has its clients known by the bytes of the source, of which 64 pages are read now; else they
    /// are known by the place of this among a server's listeners, which may be another one in
    /// the program that takes them over.
    ///
    /// # Errors
    ///
    /// When the source cannot be read.
    pub fn identify(self) -> Result<Self, WorkingSetError> {
        let id = SourceId::of(&*self.source).map_err(|_| WorkingSetError::Source)?;
        Ok(Self { identity: Some(id.number() | IDENTITY), ..self })
    }
}

impl fmt::Debug for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listen").field("made", &self.made).finish_non_exhaustive()
    }
}

/// What is done beside poisoning when a client cannot be served.
pub enum OnFailure {
    /// Nothing.
    Poison,
    /// Its process is killed.
    Kill,
    /// Someone is told.
    Tell(Box<Tell>),
}

/// Tells someone of a client that cannot be served. It returns soon: meanwhile no client is
/// accepted.
pub type Tell = dyn FnMut(FailedClient) + Send;

/// A client that cannot be served.
///
/// With a [`Keeper`](crate::Keeper), if this process dies, the next one tells of it again, until it
/// is [noted](Self::note_told) that this was done: also of a client that has gone meanwhile. So it
/// is to be kept until then, and no longer: the daemon ends when all of them are noted or dropped.
pub struct FailedClient {
    /// Freed first: without it nobody is told.
    client: Arc<Client>,
    connection: Arc<Connection>,
    failure: Failure,
    /// While there is one, the daemon has not come to its end.
    _telling: Arc<()>,
}

impl FailedClient {
    /// Its number, which the next process has for it too.
    #[must_use]
    pub fn id(&self) -> ClientId {
        self.client.id
    }

    /// Its process.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.connection.peer
    }

    /// Why.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.failure
    }

    /// Who wants to know has been told.
    pub fn note_told(self) {
        step();
        self.client.slot.note_told();
        step();
    }
}

impl fmt::Debug for FailedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailedClient").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poison => "Poison",
            Self::Kill => "Kill",
            Self::Tell(_) => "Tell",
        })
    }
}

/// What happens to clients when the daemon is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// They are served until they have gone, so long at most; then they fail.
    Drain(Duration),
    /// All that they miss is filled; what cannot be read fails.
    Fill,
    /// They fail.
    Fail,
}

/// A daemon.
#[derive(Debug)]
pub struct Server {
    listens: Vec<Listen>,
    limits: Limits,
    options: Options,
    on_failure: OnFailure,
    on_stop: OnStop,
    uids: Option<Vec<u32>>,
    record: Option<PathBuf>,
    take_over: Option<TakeOverSocket>,
}

/// How a daemon has ended, or what has ended so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Ended {
    /// Clients that were taken.
    pub clients: u64,
    /// Peers that were refused.
    pub refused: u64,
    /// Clients that could not be served to their end.
    pub failed: u64,
    /// What was counted of clients that have gone.
    pub stats: Stats,
}

// What is counted, as the table has it.
const TAKEN: usize = 0;
const REFUSED: usize = 1;
const FAILED: usize = 2;

impl Ended {
    /// What was counted so far, by all processes.
    fn of(table: &Table) -> Self {
        let (own, stats) = table.counted();
        Self { clients: own[TAKEN], refused: own[REFUSED], failed: own[FAILED], stats }
    }
}

impl Server {
    /// A daemon that listens at these sockets.
    #[must_use]
    pub fn new(listens: Vec<Listen>, options: Options, limits: Limits) -> Self {
        let options = options.limits(limits.clone());
        let (on_failure, on_stop) = (OnFailure::Poison, OnStop::Fail);
        let (uids, record, take_over) = (None, None, None);
        Self { listens, limits, options, on_failure, on_stop, uids, record, take_over }
    }

    /// Lets another program take everything over, at this socket, if this one has a
    /// [`Keeper`](crate::Keeper). All listeners are to be [identified](Listen::identify).
    #[must_use]
    pub fn take_over(self, socket: TakeOverSocket) -> Self {
        Self { take_over: Some(socket), ..self }
    }

    /// What is noted of where the bytes of a client are.
    fn noted_source(&self, listen: usize) -> u64 {
        self.listens.get(listen).and_then(|listen| listen.identity).unwrap_or(listen as u64)
    }

    /// The socket of which that was noted.
    fn listen_of(&self, noted: u64) -> Option<usize> {
        let mut all = 0..self.listens.len();
        all.find(|&listen| self.noted_source(listen) == noted)
    }

    /// What is done beside poisoning when a client cannot be served: nothing if it is not said.
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// What happens to clients at the end: they fail if it is not said.
    #[must_use]
    pub fn on_stop(mut self, on_stop: OnStop) -> Self {
        self.on_stop = on_stop;
        self
    }

    /// Only these users are served, as the kernel tells of who has connected.
    #[must_use]
    pub fn only_users(mut self, uids: Vec<u32>) -> Self {
        self.uids = Some(uids);
        self
    }

    /// Records what each client asks for. The record of the first client is this file, and that of
    /// the n-th, counted as they come and forked children included, has `.n` behind the name. A
    /// record is written when its client has gone, in place of what is there.
    #[must_use]
    pub fn record(mut self, file: PathBuf) -> Self {
        self.record = Some(file);
        self.options = self.options.record();
        self
    }

    /// Fills what was recorded ahead of the faults of each client whose memory file it is of.
    ///
    /// # Errors
    ///
    /// [`OtherSource`](WorkingSetError::OtherSource) if it is of none of them, and
    /// [`Unknown`](WorkingSetError::Unknown) if it does not say of which.
    pub fn replay(mut self, set: WorkingSet) -> Result<Self, WorkingSetError> {
        if set.source.is_none() && self.listens.len() != 1 {
            return Err(WorkingSetError::Unknown);
        }
        let set = Arc::new(set);
        let mut checked = Ok(());
        let mut is_used = false;
        for listen in &mut self.listens {
            let id = SourceId::of(&*listen.source).map_err(|_| WorkingSetError::Source)?;
            match set.check(&id) {
                Ok(()) => {
                    listen.replays.push(Arc::clone(&set));
                    is_used = true;
                }
                Err(error) => checked = Err(error),
            }
        }
        if !is_used {
            checked?;
        }
        self.options = self.options.replayers(REPLAYERS);
        Ok(self)
    }

    /// Serves until `stop` can be read, and does then what [`on_stop`](Self::on_stop) says; until
    /// more can be read, and then clients fail at once. `started` is called when all threads are
    /// there and before the first client is accepted, `look` about twice a second, with what has
    /// ended so far.
    ///
    /// # Errors
    ///
    /// When descriptors or threads run out at the start, or `started` fails.
    pub fn run(
        self,
        stop: BorrowedFd<'_>,
        started: impl FnOnce() -> io::Result<()>,
        look: impl FnMut(&Pager, &Ended),
    ) -> io::Result<Ended> {
        let kept = Kept::nothing(self.options.table(false)?);
        self.run_kept(kept, stop, started, look)
    }

    /// Serves as [`run`](Self::run) does, in a process of a [`Keeper`](crate::Keeper), and goes on
    /// from where the process before this one was.
    ///
    /// # Errors
    ///
    /// As for `run`.
    pub fn run_kept(
        self,
        kept: Kept,
        stop: BorrowedFd<'_>,
        started: impl FnOnce() -> io::Result<()>,
        mut look: impl FnMut(&Pager, &Ended),
    ) -> io::Result<Ended> {
        let Kept { table, entries, mut descriptors, culprit, mut is_damaged, keeper, before } =
            kept;
        let (is_kept, is_left) = (table.is_kept(), before > 0);
        let ended = Ended::of(&table);
        let of_client = |(_, entry): &(Slot, Entry)| entry.kind == Kind::Client;
        let (clients, connections): (Vec<_>, Vec<_>) = entries.into_iter().partition(of_client);
        let owners: Vec<_> =
            clients.iter().map(|(_, entry)| (entry.owner, entry.number, entry.source)).collect();
        let source = |entry: &Entry| {
            let listen = self.listen_of(entry.source)?;
            Some(Arc::clone(&self.listens[listen].source))
        };
        let left =
            Left { entries: clients, descriptors: &mut descriptors, source: &source, culprit };
        let started_with = Notices::start(&self.options, Arc::clone(&table), Some(left));
        let (pager, notices) = or_exit(is_left, started_with)?;
        or_exit(is_left, started())?;
        let epoll = or_exit(is_left, epoll::create(epoll::CreateFlags::CLOEXEC))?;
        let mut control = Control {
            server: self,
            epoll,
            pager: Some(Arc::new(pager)),
            ended,
            table,
            keeper,
            notices,
            pending: VecDeque::new(),
            served: HashMap::new(),
            recorded: HashMap::new(),
            looked: Instant::now(),
            is_resting: false,
            telling: Arc::default(),
        };
        let stop = or_exit(is_left, Stop::of(stop))?;
        or_exit(is_left, control.watch(stop.as_fd(), STOP))?;
        or_exit(is_left, control.watch(control.notices.as_fd(), NOTICES))?;
        if let Some(socket) = &control.server.take_over {
            or_exit(is_left, control.watch(socket.as_fd(), TAKE_OVER))?;
        }
        for (_, client, source) in &owners {
            control.take_left_client(ClientId(*client), *source);
        }
        for (slot, entry) in connections {
            let listen = control.server.listen_of(entry.source);
            let left = Connection::left(slot, &entry, listen, culprit, &mut descriptors);
            let Some((connection, came)) = left else { continue };
            is_damaged |= came.is_err();
            let came = none_of_damaged(came);
            let owns = |(owner, ..): &&(u64, u64, u64)| *owner == entry.number;
            let client = owners.iter().find(owns).map(|(_, client, _)| ClientId(*client));
            control.take_left(connection, came, client);
        }
        is_damaged |= control.pager.as_ref().is_some_and(|pager| pager.is_damaged());
        for descriptor in descriptors.rest() {
            control.take_unknown(descriptor, is_damaged);
        }
        or_exit(is_left, control.listen())?;
        let mut times = 0;
        while times == 0 {
            times = or_exit(is_kept, control.turn(&stop, &mut look))?;
        }
        or_exit(is_kept, control.stop(&stop, times, &mut look))?;
        control.table.note_over();
        Ok(control.ended)
    }
}

/// A bit of what is noted of a source by its bytes.
const IDENTITY: u64 = 1 << 63;
/// Threads that fill what was recorded.
const REPLAYERS: usize = 2;

/// Tokens: what is ready. Those of connections are their numbers.
const STOP: u64 = 0;
const NOTICES: u64 = 1;
const TAKE_OVER: u64 = 2;
const LISTENS: u64 = 3;
/// How often at least it is looked at the time.
const LOOK: Duration = Duration::from_millis(500);
/// Why a peer is refused that may not be served.
const OTHER_USER: &str = "its user is not one that is served";
/// Peers that are accepted in a row, before others are looked at.
const IN_A_ROW: usize = 64;

/// A peer that has not said all yet.
struct Pending {
    /// Freed before the inbox is closed, whose number may be another's then.
    connection: Connection,
    handshake: Handshake,
}

/// A client.
struct Served {
    connection: Arc<Connection>,
    client: ClientId,
}

struct Control {
    server: Server,
    epoll: OwnedFd,
    pager: Option<Arc<Pager>>,
    table: Arc<Table>,
    keeper: Watched,
    notices: Notices,
    /// The oldest first.
    pending: VecDeque<Pending>,
    served: HashMap<u64, Served>,
    /// The sources of clients, if what they ask for is recorded.
    recorded: HashMap<ClientId, Arc<dyn Source>>,
    looked: Instant,
    /// Nobody is accepted now.
    is_resting: bool,
    ended: Ended,
    /// Had by those of whom someone is being told.
    telling: Arc<()>,
}

impl Control {
    fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN | epoll::EventFlags::RDHUP)?)
    }

    fn unwatch(&self, fd: impl AsFd) {
        // It may not be watched any more.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// How often it was told to stop, if now.
    fn turn(&mut self, stop: &Stop<'_>, look: &mut impl FnMut(&Pager, &Ended)) -> io::Result<u64> {
        let mut ready = [const { MaybeUninit::uninit() }; 64];
        let most = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
        let tokens: Vec<u64> = match epoll::wait(&self.epoll, &mut ready, Some(&most)) {
            Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
            Err(rustix::io::Errno::INTR) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let mut times = 0;
        for token in tokens {
            match token {
                STOP => times = stop.times(),
                NOTICES => self.read_notices(),
                TAKE_OVER => self.hear_take_over(),
                CONNECTIONS.. => self.hear(token),
                listen => self.accept((listen - LISTENS) as usize),
            }
        }
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.keeper.look();
            self.drop_late();
            if self.is_resting {
                self.listen()?;
            }
            if let Some(pager) = &self.pager {
                look(pager, &self.ended);
            }
        }
        Ok(times)
    }

    fn hear_take_over(&mut self) {
        if let Some(socket) = &self.server.take_over
            && let Err(error) = take_over::hear(socket, &self.table, &mut self.keeper)
        {
            tracing::warn!(%error, "a program that asks for all clients cannot be heard");
        }
    }

    fn accept(&mut self, listen: usize) {
        for _ in 0..IN_A_ROW {
            let listener = &self.server.listens[listen].listener;
            // Before there is a peer that would be lost without.
            let inbox = self
                .table
                .leaves_room()
                .and_then(|()| Handshake::inbox(&self.server.limits, self.table.is_kept()));
            let accepted = inbox.and_then(|inbox| Ok((listener.accept()?.0, inbox)));
            let (connection, inbox) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "a peer cannot be accepted");
                    // Descriptors have run out, perhaps: the oldest that says nothing goes.
                    match self.pending.pop_front() {
                        Some(oldest) => {
                            self.refuse_pending(oldest, "it has not said what it wants");
                        }
                        // Peers wait for a while, and are not told of again and again.
                        None => self.rest(),
                    }
                    return;
                }
            };
            if let Err(error) = self.greet(listen, connection, inbox) {
                tracing::warn!(%error, "a peer cannot be heard");
            }
        }
    }

    /// Hears a peer that was accepted before, by another process or at the end.
    fn greet_late(&mut self, listen: usize, socket: UnixStream) {
        let inbox = Handshake::inbox(&self.server.limits, self.table.is_kept());
        if let Err(error) = inbox.and_then(|inbox| self.greet(listen, socket, inbox)) {
            tracing::warn!(%error, "a peer cannot be heard");
        }
    }

    /// Accepts nobody until the time is looked at again.
    fn rest(&mut self) {
        for listen in &self.server.listens {
            self.unwatch(&*listen.listener);
        }
        self.is_resting = true;
    }

    /// Listens at all sockets.
    fn listen(&mut self) -> io::Result<()> {
        for (number, listen) in self.server.listens.iter().enumerate() {
            self.watch(listen.listener.as_fd(), LISTENS + number as u64)?;
        }
        self.is_resting = false;
        Ok(())
    }

    fn greet(&mut self, listen: usize, socket: UnixStream, inbox: Inbox) -> io::Result<()> {
        let noted = self.server.noted_source(listen);
        let connection = Connection::of(&self.table, listen, noted, socket, &inbox)?;
        if !self.lets(&connection.peer) {
            self.refuse(&connection, &OTHER_USER);
            return Ok(());
        }
        if self.pending.len() >= self.server.limits.handshakes
            && let Some(oldest) = self.pending.pop_front()
        {
            self.refuse_pending(oldest, "too many peers have not said what they want");
        }
        let token = connection.number;
        self.watch(connection.socket.as_fd(), token)?;
        let handshake = Handshake::with(&self.server.limits, inbox, Vec::new());
        self.pending.push_back(Pending { connection, handshake });
        self.hear(token);
        Ok(())
    }

    /// Whether its user is one that is served.
    fn lets(&self, peer: &Peer) -> bool {
        self.server.uids.as_ref().is_none_or(|uids| uids.contains(&peer.uid))
    }

    /// A client that another process has served.
    fn take_left_client(&mut self, client: ClientId, source: u64) {
        let Some(listen) = self.server.listen_of(source) else { return };
        let listen = &self.server.listens[listen];
        if let Some(pager) = &self.pager {
            for set in &listen.replays {
                pager.replay(client, set);
            }
        }
        if self.server.record.is_some() {
            self.recorded.insert(client, Arc::clone(&listen.source));
        }
    }

    /// A connection that another process had.
    fn take_left(&mut self, connection: Connection, came: Option<Came>, client: Option<ClientId>) {
        if let Some(client) = client {
            // That process may have died before it could.
            if connection.slot.counted().is_none() {
                let Peer { pid, uid, .. } = connection.peer;
                let len = self.pager.as_ref().and_then(|pager| pager.len(client));
                let bytes = len.unwrap_or_default();
                tracing::info!(%client, pid, uid, bytes, "a client has come");
                self.count(&connection.slot, TAKEN);
            }
            connection.understood(came);
            return self.keep_connection(Served { connection: Arc::new(connection), client });
        }
        let was = connection.slot.counted();
        if was == Some(TAKEN) {
            // Its client has gone.
            return connection.understood(came);
        }
        // Else it has gone as well.
        let Some(Came { inbox, descriptors, refused }) = came else { return };
        let is_let = self.lets(&connection.peer);
        if !is_let && inbox.bytes().is_empty() && descriptors.is_empty() {
            // It was not heard, and is not now.
            return self.refuse(&connection, &OTHER_USER);
        }
        let handshake = Handshake::with(&self.server.limits, inbox, descriptors);
        let token = connection.number;
        let watched = self.watch(connection.socket.as_fd(), token);
        let pending = Pending { connection, handshake };
        let refused = match refused {
            Some(refused) => Some(refused.to_string()),
            None if !is_let => Some(OTHER_USER.to_owned()),
            None if was == Some(REFUSED) => Some("a process before this one has".to_owned()),
            None => None,
        };
        if let Some(reason) = refused.or(watched.err().map(|error| error.to_string())) {
            return self.refuse_pending(pending, &reason);
        }
        self.pending.push_back(pending);
        self.hear(token);
    }

    /// A descriptor of which nothing is noted.
    fn take_unknown(&mut self, descriptor: OwnedFd, is_damaged: bool) {
        let listeners = self.server.listens.iter().map(|listen| &*listen.listener);
        match unknown(descriptor, listeners) {
            Unknown::Peer(listen, socket) => self.greet_late(listen, socket),
            Unknown::Userfaultfd(userfaultfd) if is_damaged => {
                self.table.count(FAILED);
                self.ended = Ended::of(&self.table);
                if let Some(pager) = &self.pager
                    && let Err(error) = pager.refuse(userfaultfd, &[], Failure::Damaged.to_string())
                {
                    tracing::error!(%error, "its memory may read as zeros");
                }
            }
            Unknown::Userfaultfd(_) | Unknown::Other => {}
        }
    }

    /// Looks whether a client closes its connection, or ends.
    fn keep_connection(&mut self, served: Served) {
        let token = served.connection.number;
        if let Some(pidfd) = &served.connection.peer.pidfd
            && let Err(error) = self.watch(pidfd.as_fd(), token)
        {
            tracing::warn!(client = %served.client, %error, "its end is seen late");
        }
        self.served.insert(token, served);
    }

    /// Something has come from a peer or a client, or one of them has gone.
    fn hear(&mut self, token: u64) {
        let pending = self.pending.iter().position(|pending| pending.connection.number == token);
        if let Some(mut pending) = pending.and_then(|at| self.pending.remove(at)) {
            let source = &self.server.listens[pending.connection.listen].source;
            let advanced = for_client(ClientId(token), || {
                pending.handshake.advance(&pending.connection.socket, source.size())
            });
            match advanced {
                Ok(None) => {
                    // In the order in which they came.
                    let at = self.pending.partition_point(|other| other.connection.number < token);
                    self.pending.insert(at, pending);
                }
                Ok(Some(arrival)) => self.take(pending, arrival),
                Err(error) => self.refuse_pending(pending, &error.to_string()),
            }
        } else if let Some(served) = self.served.get(&token) {
            // It has closed its end, or its process has ended. What else it says is not heard.
            self.unwatch(&served.connection.socket);
            let peer = &served.connection.peer;
            if let Some(pidfd) = &peer.pidfd
                && peer.has_exited()
            {
                self.unwatch(pidfd);
            }
            if let Some(pager) = &self.pager {
                pager.look(served.client);
            }
        }
    }

    fn take(&mut self, pending: Pending, arrival: Arrival) {
        let Some(pager) = &self.pager else { return };
        let listen = &self.server.listens[pending.connection.listen];
        let source = Arc::clone(&listen.source);
        let bytes: u64 = arrival.extents.iter().map(|extent| extent.len).sum();
        // It is closed if it is not taken; but not the one that the next process would know of.
        let (given, kept) = copied(arrival.userfaultfd);
        let about = About {
            owner: pending.connection.number,
            source: self.server.noted_source(pending.connection.listen),
            ..About::default()
        };
        let client = match pager.add_client(given, &arrival.extents, source, about) {
            Ok(client) => client,
            Err(error) => {
                // What cannot be described is poisoned as it is touched.
                let is_described = !matches!(error, ClientError::Memory(_));
                let extents = if is_described { &arrival.extents[..] } else { &[] };
                let error = error.to_string();
                self.refuse(&pending.connection, &error);
                return match kept {
                    Ok(kept) => self.fail_closed(pending, kept, extents, error),
                    Err(error) => tracing::error!(%error, "its memory may read as zeros"),
                };
            }
        };
        for set in &listen.replays {
            pager.replay(client, set);
        }
        if self.server.record.is_some() {
            self.recorded.insert(client, Arc::clone(&listen.source));
        }
        let Pending { connection, handshake } = pending;
        // While what it has said is there: if it has gone by now, the next process takes it again,
        // and counts it then.
        self.count(&connection.slot, TAKEN);
        connection.understood(handshake);
        // Before it is said that the client has come.
        drop(kept);
        let peer = &connection.peer;
        tracing::info!(%client, pid = peer.pid, uid = peer.uid, bytes, "a client has come");
        if matches!(self.server.on_failure, OnFailure::Kill)
            && let Err(error) = peer.can_be_signalled()
        {
            tracing::warn!(%client, %error, "it can only be poisoned if it cannot be served");
        }
        self.keep_connection(Served { connection: Arc::new(connection), client });
    }

    /// Counts a peer or a client, if that was not done.
    fn count(&mut self, slot: &Slot, what: usize) {
        slot.count(what);
        self.ended = Ended::of(&self.table);
    }

    fn refuse(&mut self, connection: &Connection, error: &dyn fmt::Display) {
        self.count(&connection.slot, REFUSED);
        let peer = &connection.peer;
        tracing::warn!(pid = peer.pid, uid = peer.uid, "a peer is refused: {error}");
    }

    /// Refuses a peer that has perhaps brought a userfaultfd, and not said of which memory.
    fn refuse_pending(&mut self, mut pending: Pending, error: &str) {
        self.refuse(&pending.connection, &error);
        // What it has sent is there, and it sends no more.
        let _ = pending.connection.socket.shutdown(Shutdown::Read);
        let len = self.server.listens[pending.connection.listen].source.size();
        if let Ok(Some(arrival)) = pending.handshake.advance(&pending.connection.socket, len) {
            let Arrival { userfaultfd, extents, .. } = arrival;
            return self.fail_closed(pending, userfaultfd, &extents, error.to_owned());
        }
        let descriptors = pending.handshake.take_descriptors();
        let mut ones = descriptors.into_iter().filter(|fd| RemoteUserfaultfd::is_one(fd.as_fd()));
        let Some(first) = ones.next() else { return };
        for other in ones {
            if let Some(pager) = &self.pager
                && let Err(error) = pager.refuse(other, &[], error.to_owned())
            {
                tracing::error!(%error, "its memory may read as zeros");
            }
        }
        self.fail_closed(pending, first, &[], error.to_owned());
    }

    /// Has the memory of a peer that is refused fail, and its owner told.
    fn fail_closed(
        &mut self,
        pending: Pending,
        userfaultfd: OwnedFd,
        extents: &[Extent],
        reason: String,
    ) {
        let Some(pager) = &self.pager else { return };
        let about = About { owner: pending.connection.number, ..About::default() };
        match pager.refuse_client(userfaultfd, extents, reason, about) {
            Ok(client) => {
                let Pending { connection, handshake } = pending;
                connection.understood(handshake);
                // It sees that it was refused.
                let _ = connection.socket.shutdown(Shutdown::Both);
                let served = Served { connection: Arc::new(connection), client };
                self.served.insert(served.connection.number, served);
            }
            // There is no memory that would be zeros.
            Err(ClientError::NotUserfaultfd(_) | ClientError::NotSetUp) => {}
            Err(error) => tracing::error!(%error, "its memory may read as zeros"),
        }
    }

    /// Refuses peers that take too long.
    fn drop_late(&mut self) {
        let late: Vec<u64> = self.pending.iter().map(|pending| pending.connection.number).collect();
        for token in late {
            self.hear(token);
        }
    }

    fn read_notices(&mut self) {
        for notice in self.notices.take() {
            self.heed(notice);
        }
    }

    fn heed(&mut self, notice: Notice) {
        match notice {
            Notice::Forked { parent, child } => {
                tracing::info!(%parent, %child, "a client forked");
                if let Some(source) = self.recorded.get(&parent).cloned() {
                    self.recorded.insert(child, source);
                }
            }
            Notice::Recorded { client, set } => self.write_record(client, set),
            Notice::Failed { client, failure } => {
                // Once, for each time that it is said.
                if let Some(failed) = self.notices.failed(client) {
                    self.heed_failure(failed, failure);
                }
            }
            Notice::Kept { client } => {
                tracing::error!(%client, "its memory cannot be poisoned: it is killed");
                if let Some(served) = self.served.values().find(|served| served.client == client) {
                    kill(served);
                }
            }
            Notice::Poisoned { client } => {
                tracing::info!(%client, "all that a client missed is poisoned");
            }
            Notice::Closed { client, stats } => {
                tracing::info!(%client, "all that a client missed is poisoned");
                self.forget(client, stats);
            }
            Notice::Completed { client, stats } => {
                tracing::info!(%client, "all that a client missed is there");
                self.forget(client, stats);
            }
            Notice::Gone { client, stats } => {
                tracing::info!(%client, faults = stats.faults, "a client has gone");
                self.forget(client, stats);
            }
        }
    }

    fn heed_failure(&mut self, client: Arc<Client>, failure: Failure) {
        if !client.slot.was_counted() {
            match failure {
                // It was told of, and counted.
                Failure::Refused(_) => {}
                // That is what was asked for.
                Failure::Stopped if self.server.on_stop == OnStop::Fail => {
                    tracing::warn!(client = %client.id, "a client cannot be served: {failure}");
                }
                _ => {
                    self.count(&client.slot, FAILED);
                    tracing::error!(client = %client.id, "a client cannot be served: {failure}");
                }
            }
            client.slot.note_counted();
            step();
        }
        let served = self.served.values().find(|served| served.client == client.id);
        match (served, &mut self.server.on_failure) {
            // The processes of forked children are not known.
            (None, _) | (_, OnFailure::Poison) => {}
            (Some(served), OnFailure::Kill) => kill(served),
            (Some(served), OnFailure::Tell(tell)) => {
                let connection = Arc::clone(&served.connection);
                let _telling = Arc::clone(&self.telling);
                return tell(FailedClient { client, connection, failure, _telling });
            }
        }
        client.slot.note_told();
        step();
    }

    fn write_record(&mut self, client: ClientId, mut set: WorkingSet) {
        let Some(file) = &self.server.record else { return };
        let source = self.recorded.remove(&client);
        set.source = source.and_then(|source| SourceId::of(&*source).ok());
        set.write_for(client, file);
    }

    fn forget(&mut self, client: ClientId, stats: Stats) {
        self.ended.stats += stats;
        self.table.set_gone(self.ended.stats);
        self.served.retain(|_, served| served.client != client);
    }

    /// Accepts who has connected before this, since they may have sent what lets their memory be
    /// zeros when it is closed, and nobody else. A socket that was passed to this process is still
    /// its owner's, and who waits there waits for the next one.
    fn stop_listening(&mut self, listen: usize) {
        let Listen { listener, made, .. } = self.server.listens[listen].clone();
        self.unwatch(&*listener);
        if made.is_none() || rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).is_err()
        {
            return;
        }
        while let Ok((connection, _)) = listener.accept() {
            self.greet_late(listen, connection);
        }
    }

    /// Does what is to be done with clients at the end.
    fn stop(
        &mut self,
        stop: &Stop<'_>,
        times: u64,
        look: &mut impl FnMut(&Pager, &Ended),
    ) -> io::Result<()> {
        for listen in 0..self.server.listens.len() {
            self.stop_listening(listen);
        }
        if let Some(socket) = &self.server.take_over {
            self.unwatch(socket);
            socket.remove();
        }
        for pending in std::mem::take(&mut self.pending) {
            self.refuse_pending(pending, "the pager ends");
        }
        // The next process has them too, so they are not closed.
        self.server.listens.iter().filter_map(|listen| listen.made.as_ref()).for_each(|made| {
            made.remove();
        });
        let begin = Instant::now();
        let on_stop = if times > 1 { OnStop::Fail } else { self.server.on_stop };
        match on_stop {
            OnStop::Fail => {}
            OnStop::Drain(most) => {
                tracing::info!("clients are served until they have gone");
                let is_any = |pager: &Option<Arc<Pager>>| {
                    pager.as_ref().is_some_and(|pager| !pager.clients().is_empty())
                };
                while is_any(&self.pager) && begin.elapsed() < most {
                    if self.turn(stop, look)? > 0 {
                        break;
                    }
                }
            }
            OnStop::Fill => {
                tracing::info!("all that clients miss is filled");
                let filled = self.fill()?;
                while filled.try_recv() == Err(TryRecvError::Empty) {
                    if self.turn(stop, look)? > 0
                        && let Some(pager) = &self.pager
                    {
                        for client in pager.clients() {
                            pager.fail(client);
                        }
                    }
                }
            }
        }
        self.read_notices();
        // What is left fails.
        drop(self.pager.take());
        self.read_notices();
        // If this process dies meanwhile, the next one tells of them.
        while Arc::strong_count(&self.telling) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Has a thread fill all that clients miss; it says when it has done so, and has dropped the
    /// pager.
    fn fill(&self) -> io::Result<Receiver<()>> {
        let (send, filled) = channel();
        let (pager, wake) = (self.pager.clone(), self.notices.wake());
        let fill = move || {
            if let Some(pager) = pager {
                let mut tried = HashSet::new();
                // Children that are forked meanwhile, too.
                while let Some(id) = pager.clients().into_iter().find(|&id| tried.insert(id)) {
                    pager.complete(id);
                }
            }
            // The other end waits for it.
            let _ = send.send(());
            wake.wake();
        };
        Threads::of(&self.table).start("pervma-fill", fill)?;
        Ok(filled)
    }
}

/// A copy of a descriptor, and itself; or itself and why there is no copy.
pub(crate) fn copied(descriptor: OwnedFd) -> (OwnedFd, io::Result<OwnedFd>) {
    match descriptor.try_clone() {
        Ok(copy) => (copy, Ok(descriptor)),
        Err(error) => (descriptor, Err(error)),
    }
}

fn kill(served: &Served) {
    if let Err(error) = served.connection.peer.kill() {
        tracing::error!(client = %served.client, %error, "it cannot be killed");
    }
}

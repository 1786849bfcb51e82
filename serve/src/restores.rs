//! A daemon for processes that CRIU restores lazily: they run before their memory is there.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pervma_pager::sys::RemoteUserfaultfd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SocketType;

use crate::blame::for_client;
use crate::client::{About, ClientId};
use crate::connection::{Came, Connection, Unknown, none_of_damaged, unknown};
use crate::failure::Failure;
use crate::handshake::criu::{Handshake, Told};
use crate::images::Images;
use crate::keeper::Kept;
use crate::limits::Limits;
use crate::notices::Notices;
use crate::pager::{Left, Notice, Options, Pager};
use crate::server::copied;
use crate::socket::{Made, listen_at};
use crate::state::inbox::Inbox;
use crate::state::table::{CONNECTIONS, Entry, Kind, Slot, Table};
use crate::stats::Stats;
use crate::stop::Stop;
use crate::take_over::{self, TakeOverSocket, TakenOver};
use crate::threads::{Threads, Watched, or_exit};
use crate::working_set::{SourceId, WorkingSet, WorkingSetError};

/// A daemon that serves restores from the images of one checkpoint.
#[derive(Debug)]
pub struct Restores {
    listener: UnixListener,
    /// Removed at the end.
    _made: Made,
    images: Images,
    options: Options,
    limits: Limits,
    is_one: bool,
    record: Option<PathBuf>,
    replays: Vec<WorkingSet>,
    /// What is noted of the images, if that is known.
    identity: u64,
    take_over: Option<TakeOverSocket>,
}

/// How the restores have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Restored {
    /// Restores of which every task got all of its memory, or has ended.
    pub complete: u64,
    /// Restores that have failed.
    pub failed: u64,
    /// Peers that were no restorers.
    pub refused: u64,
    /// What was counted of the tasks.
    pub stats: Stats,
}

// What is counted, as the table has it.
const COMPLETE: usize = 0;
const FAILED: usize = 1;
const REFUSED: usize = 2;

impl Restored {
    /// What was counted so far, by all processes.
    fn of(table: &Table) -> Self {
        let (own, stats) = table.counted();
        Self { complete: own[COMPLETE], failed: own[FAILED], refused: own[REFUSED], stats }
    }
}

impl Restores {
    /// A daemon that listens at a socket, which it makes with mode 0600. One that nobody listens at
    /// any more is replaced.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if another process listens there; `AlreadyExists` if the path is another file's.
    pub fn at(path: &Path, images: Images, options: Options, limits: Limits) -> io::Result<Self> {
        let (listener, made) = listen_at(path, SocketType::STREAM)?;
        Self::listening(listener.into(), made, images, options, limits)
    }

    /// A daemon that listens at the socket at a path at which another program listened, from which
    /// everything is taken over; or at a new one.
    ///
    /// # Errors
    ///
    /// As for [`at`](Self::at).
    pub fn taken(
        taken: &mut TakenOver,
        path: &Path,
        images: Images,
        options: Options,
        limits: Limits,
    ) -> io::Result<Self> {
        match taken.listener(path) {
            Some(listener) => {
                let made = taken.made(path)?;
                Self::listening(listener, made, images, options, limits)
            }
            None => Self::at(path, images, options, limits),
        }
    }

    fn listening(
        listener: UnixListener,
        made: Made,
        images: Images,
        options: Options,
        limits: Limits,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let options = options.limits(limits.clone());
        let (is_one, record, replays, identity, take_over) = (false, None, Vec::new(), 0, None);
        Ok(Self {
            listener,
            _made: made,
            images,
            options,
            limits,
            is_one,
            record,
            replays,
            identity,
            take_over,
        })
    }

    /// Lets another program take everything over, at this socket, if this one has a
    /// [`Keeper`](crate::Keeper).
    #[must_use]
    pub fn take_over(self, socket: TakeOverSocket) -> Self {
        Self { take_over: Some(socket), ..self }
    }

    /// Has tasks known by the bytes of their images, of which 64 pages are read now: for those that
    /// are taken over.
    ///
    /// # Errors
    ///
    /// When the images cannot be read.
    pub fn identify(mut self) -> Result<Self, WorkingSetError> {
        let id = SourceId::of_images(&self.images).map_err(|_| WorkingSetError::Source)?;
        self.identity = id.number();
        Ok(self)
    }

    /// Ends when one restore has ended.
    #[must_use]
    pub fn only_one(mut self) -> Self {
        self.is_one = true;
        self
    }

    /// Records what each task asks for, as [`Server::record`](crate::Server::record) does of its
    /// clients: the tasks of all restores are counted, as they come.
    #[must_use]
    pub fn record(mut self, file: PathBuf) -> Self {
        self.record = Some(file);
        self.options = self.options.record();
        self
    }

    /// Fills what was recorded of a task as soon as a restore has finished, ahead of all else that
    /// its tasks miss, by as many threads as [fill](Options::fillers) that.
    ///
    /// # Errors
    ///
    /// When it is not of these images: [`OtherSource`](WorkingSetError::OtherSource), or
    /// [`Unknown`](WorkingSetError::Unknown) if it does not say of which.
    pub fn replay(mut self, set: WorkingSet) -> Result<Self, WorkingSetError> {
        if set.source.is_none() {
            return Err(WorkingSetError::Unknown);
        }
        let id = SourceId::of_images(&self.images).map_err(|_| WorkingSetError::Source)?;
        set.check(&id)?;
        self.replays.push(set);
        self.options = self.options.replay_as_filled();
        Ok(self)
    }

    /// Serves until it has to end, or `stop` can be read: then no restore is accepted any more, and
    /// those that are there are served to their end, unless more can be read: then they fail.
    /// `started` is called when all threads are there and before the first restore is accepted.
    ///
    /// # Errors
    ///
    /// When descriptors or threads run out at the start, or `started` fails.
    pub fn run(
        self,
        stop: BorrowedFd<'_>,
        started: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Restored> {
        let kept = Kept::nothing(self.options.table(false)?);
        self.run_kept(kept, stop, started)
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
    ) -> io::Result<Restored> {
        let Kept { table, entries, mut descriptors, culprit, mut is_damaged, keeper, before } =
            kept;
        let (is_kept, is_left) = (table.is_kept(), before > 0);
        let of_client = |(_, entry): &(Slot, Entry)| entry.kind == Kind::Client;
        let (clients, connections): (Vec<_>, Vec<_>) = entries.into_iter().partition(of_client);
        let is_of_these = |entry: &Entry| entry.source == self.identity;
        let ended = Restored::of(&table);
        let source = |entry: &Entry| is_of_these(entry).then(|| self.images.source());
        let left =
            Left { entries: clients, descriptors: &mut descriptors, source: &source, culprit };
        let started_with = Notices::start(&self.options, Arc::clone(&table), Some(left));
        let (pager, notices) = or_exit(is_left, started_with)?;
        or_exit(is_left, started())?;
        let mut control = Control {
            daemon: self,
            pager: Arc::new(pager),
            ended,
            table,
            keeper,
            notices,
            restores: BTreeMap::new(),
            stops: 0,
            rests_until: Instant::now(),
        };
        for (slot, entry) in connections {
            let listen = (entry.source == control.daemon.identity).then_some(0);
            let left = Connection::left(slot, &entry, listen, culprit, &mut descriptors);
            let Some((connection, came)) = left else { continue };
            is_damaged |= came.is_err();
            control.take_left(connection, none_of_damaged(came));
        }
        is_damaged |= control.pager.is_damaged();
        for descriptor in descriptors.rest() {
            control.take_unknown(descriptor, is_damaged);
        }
        let stop = or_exit(is_left, Stop::of(stop))?;
        while !control.is_over() {
            or_exit(is_kept, control.turn(&stop))?;
        }
        control.table.note_over();
        Ok(control.ended)
    }
}

/// How often at least it is looked at the time.
const LOOK: Duration = Duration::from_millis(500);

// What is marked of a restore's connection.
/// Its tasks run.
const RUNS: u64 = 1;
const HAS_FAILED: u64 = 2;

/// A restore that is under way.
struct Restore {
    connection: Connection,
    /// Until all tasks are there.
    arriving: Option<Handshake>,
    /// What is told first may have been told to a process before this one, and been taken.
    is_left: bool,
    /// The numbers of the tasks that have come.
    tasks: HashSet<u32>,
    /// Those that are served, forked children included.
    clients: HashSet<ClientId>,
    /// Since all tasks are there.
    transfer: Option<Transfer>,
    stats: Stats,
}

impl Restore {
    fn has_failed(&self) -> bool {
        self.connection.mark() & HAS_FAILED != 0
    }

    fn mark(&self, mark: u64) {
        self.connection.set_mark(self.connection.mark() | mark);
    }
}

/// A thread that fills what the tasks of a restore miss, of one after the other.
struct Transfer {
    todo: Sender<ClientId>,
    thread: JoinHandle<()>,
    since: Instant,
}

impl Transfer {
    fn start(pager: Arc<Pager>, threads: Threads) -> io::Result<Self> {
        let (todo, clients) = channel();
        let fill = move || {
            for client in clients {
                // It has gone, or has failed.
                if !pager.complete(client) && pager.fail(client) {
                    tracing::error!(%client, "what a task misses cannot be read: it fails");
                }
            }
        };
        let thread = threads.start("pervma-transfer", fill)?;
        Ok(Self { todo, thread, since: Instant::now() })
    }
}

/// The number of a restore.
fn id_of(connection: &Connection) -> u64 {
    connection.number - CONNECTIONS
}

/// What is noted of a task as its [owner](Entry::owner).
fn owner_of(restore: u64, task: Option<u32>) -> u64 {
    restore | u64::from(task.unwrap_or_default()) << 32
}

struct Control {
    daemon: Restores,
    pager: Arc<Pager>,
    table: Arc<Table>,
    keeper: Watched,
    notices: Notices,
    /// By the order in which they came.
    restores: BTreeMap<u64, Restore>,
    /// How often it was told to stop.
    stops: u64,
    /// Nobody is accepted before.
    rests_until: Instant,
    ended: Restored,
}

impl Control {
    fn is_over(&self) -> bool {
        let has_served = self.ended.complete + self.ended.failed > 0;
        self.restores.is_empty() && (self.stops > 0 || self.daemon.is_one && has_served)
    }

    /// Whether another restorer is accepted.
    fn accepts(&self) -> bool {
        let may_come = !self.daemon.is_one || self.silent().len() == self.restores.len();
        self.stops == 0 && may_come && Instant::now() >= self.rests_until
    }

    /// Peers that have told of no task yet, in the order in which they came.
    fn silent(&self) -> Vec<u64> {
        let is_silent = |restore: &Restore| restore.arriving.is_some() && restore.tasks.is_empty();
        let silent = self.restores.iter().filter(|(_, restore)| is_silent(restore));
        silent.map(|(&id, _)| id).collect()
    }

    /// Refuses all peers that have told of no task yet.
    fn refuse_silent(&mut self, why: &str) {
        for id in self.silent() {
            self.refuse(id, &why);
        }
    }

    fn turn(&mut self, stop: &Stop<'_>) -> io::Result<()> {
        let mut ready =
            vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.notices, PollFlags::IN)];
        let accepts = self.accepts();
        if accepts {
            ready.push(PollFd::new(&self.daemon.listener, PollFlags::IN));
        }
        if let Some(socket) = &self.daemon.take_over {
            ready.push(PollFd::new(socket, PollFlags::IN));
        }
        let first = ready.len();
        let arriving = |restore: &'_ Restore| restore.arriving.is_some();
        for restore in self.restores.values() {
            if restore.arriving.is_some() {
                ready.push(PollFd::new(&restore.connection.socket, PollFlags::IN));
            }
        }
        let most = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
        match poll(&mut ready, Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.keeper.look();
        let is_ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        // All of them: one that says nothing is late perhaps.
        let heard = self.restores.iter().filter(|(_, restore)| arriving(restore));
        let heard: Vec<u64> = heard.map(|(&id, _)| id).collect();
        debug_assert_eq!(heard.len(), is_ready.len() - first);
        let times = stop.times();
        if times > 0 {
            self.stop(times);
        }
        for id in heard {
            self.hear(id);
        }
        // Behind what was heard: a task that is told of twice is known.
        for notice in self.notices.take() {
            self.heed(notice);
        }
        if let Some(socket) = &self.daemon.take_over
            && is_ready[first - 1]
            && let Err(error) = take_over::hear(socket, &self.table, &mut self.keeper)
        {
            tracing::warn!(%error, "a program that asks for all tasks cannot be heard");
        }
        // What was heard may have changed it.
        if accepts && is_ready[2] && self.accepts() {
            self.accept();
        }
        self.forget_ended();
        Ok(())
    }

    fn accept(&mut self) {
        // Before there is a peer that would be lost without.
        let inbox = self.table.leaves_room().and_then(|()| Handshake::inbox(self.table.is_kept()));
        let accepted = inbox.and_then(|inbox| Ok((self.daemon.listener.accept()?.0, inbox)));
        match accepted.and_then(|(socket, inbox)| self.greet(socket, inbox)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "a restorer cannot be accepted");
                self.rests_until = Instant::now() + LOOK;
            }
        }
    }

    fn greet(&mut self, socket: UnixStream, inbox: Inbox) -> io::Result<()> {
        let connection = Connection::of(&self.table, 0, self.daemon.identity, socket, &inbox)?;
        let silent = self.silent();
        if silent.len() >= self.daemon.limits.handshakes
            && let Some(&oldest) = silent.first()
        {
            self.refuse(oldest, &"too many peers have told of no task");
        }
        let handshake = Handshake::with(&self.daemon.limits, inbox, Vec::new(), false);
        self.begin(connection, Some(handshake));
        Ok(())
    }

    fn begin(&mut self, connection: Connection, arriving: Option<Handshake>) {
        let restore = Restore {
            arriving,
            is_left: false,
            tasks: HashSet::new(),
            clients: HashSet::new(),
            transfer: None,
            stats: Stats::default(),
            connection,
        };
        self.restores.insert(id_of(&restore.connection), restore);
    }

    /// A restore that another process has served.
    fn take_left(&mut self, connection: Connection, came: Option<Came>) {
        let (id, mark) = (id_of(&connection), connection.mark());
        let mut refused = None;
        let arriving = if mark & RUNS != 0 {
            connection.understood(came);
            None
        } else {
            came.map(|came| {
                refused = came.refused;
                Handshake::with(&self.daemon.limits, came.inbox, came.descriptors, true)
            })
        };
        let is_arriving = arriving.is_some();
        self.begin(connection, arriving);
        let Some(restore) = self.restores.get_mut(&id) else { return };
        restore.is_left = true;
        for (client, task) in self.pager.clients_of(id) {
            restore.clients.insert(client);
            restore.tasks.extend(task);
        }
        if mark & RUNS != 0 {
            self.begin_transfer(id);
        } else if let Some(refused) = refused {
            self.refuse(id, &refused);
        } else if mark & HAS_FAILED != 0 {
            self.refuse(id, &"a process before this one has refused it");
        } else if is_arriving {
            self.hear(id);
        }
    }

    /// A descriptor of which nothing is noted.
    fn take_unknown(&mut self, descriptor: OwnedFd, is_damaged: bool) {
        match unknown(descriptor, std::iter::once(&self.daemon.listener)) {
            Unknown::Peer(_, socket) => {
                let inbox = Handshake::inbox(self.table.is_kept());
                if let Err(error) = inbox.and_then(|inbox| self.greet(socket, inbox)) {
                    tracing::warn!(%error, "a restorer cannot be heard");
                }
            }
            Unknown::Userfaultfd(userfaultfd) if is_damaged => {
                self.table.count(FAILED);
                self.ended = Restored::of(&self.table);
                let reason = Failure::Damaged.to_string();
                if let Err(error) = self.pager.refuse(userfaultfd, &[], reason) {
                    tracing::error!(%error, "a task may read zeros");
                }
            }
            Unknown::Userfaultfd(_) | Unknown::Other => {}
        }
    }

    /// Hears what a restorer has told.
    fn hear(&mut self, id: u64) {
        loop {
            let Some(restore) = self.restores.get_mut(&id) else { return };
            let Some(handshake) = &mut restore.arriving else { return };
            let advanced = for_client(ClientId(restore.connection.number), || {
                handshake.advance(&restore.connection.socket)
            });
            match advanced {
                Ok(None) => return,
                Ok(Some(Told::Zombie(task))) => tracing::debug!(restore = id, task, "a zombie"),
                Ok(Some(Told::Task(task, userfaultfd))) => {
                    // Else it is a copy of what was taken.
                    if !std::mem::take(&mut restore.is_left) || !restore.tasks.contains(&task) {
                        self.take(id, task, userfaultfd);
                    }
                }
                Ok(Some(Told::Finished)) => self.begin_transfer(id),
                Err(error) => self.refuse(id, &error),
            }
        }
    }

    /// Takes a task of a restore.
    fn take(&mut self, id: u64, task: u32, userfaultfd: OwnedFd) {
        let Some(restore) = self.restores.get_mut(&id) else { return };
        let is_new = restore.tasks.insert(task);
        let refused = match self.daemon.images.extents(task) {
            None => Err((userfaultfd, format!("the images have no memory of task {task}"))),
            Some(_) if !is_new => Err((userfaultfd, format!("task {task} has come already"))),
            Some(extents) => {
                // It is closed if it is not taken; but not the one that the next process would
                // know of.
                let (given, kept) = copied(userfaultfd);
                let owner = owner_of(id, Some(task));
                let about = About { is_sparse: true, owner, source: self.daemon.identity };
                let source = self.daemon.images.source();
                match self.pager.add_client(given, &extents, source, about) {
                    Ok(client) => {
                        let bytes: u64 = extents.iter().map(|extent| extent.len).sum();
                        tracing::info!(restore = id, task, %client, bytes, "a task has come");
                        restore.clients.insert(client);
                        Ok(())
                    }
                    Err(error) => match kept {
                        Ok(kept) => Err((kept, format!("task {task} is not served: {error}"))),
                        Err(lost) => {
                            self.refuse(id, &format!("task {task} may read zeros: {lost}"));
                            Ok(())
                        }
                    },
                }
            }
        };
        if let Err((userfaultfd, why)) = refused {
            self.fail_closed(id, userfaultfd, &why);
            self.refuse(id, &why);
        }
        if self.daemon.is_one {
            self.refuse_silent("another restore is served");
        }
    }

    /// Keeps a userfaultfd of a task that is not served until the task has gone: closed, its memory
    /// would read as zeros.
    fn fail_closed(&mut self, id: u64, userfaultfd: OwnedFd, why: &str) {
        if !RemoteUserfaultfd::is_one(userfaultfd.as_fd()) {
            return;
        }
        let about = About { owner: owner_of(id, None), ..About::default() };
        match self.pager.refuse_client(userfaultfd, &[], why.to_owned(), about) {
            Ok(client) => {
                if let Some(restore) = self.restores.get_mut(&id) {
                    restore.clients.insert(client);
                }
            }
            Err(error) => tracing::error!(%error, "a task may read zeros"),
        }
    }

    /// A restore fails before its tasks run: the restorer sees that its connection is closed, and
    /// ends them.
    fn refuse(&mut self, id: u64, why: &dyn Display) {
        let Some(restore) = self.restores.get_mut(&id) else { return };
        let Some(mut handshake) = restore.arriving.take() else { return };
        let _ = restore.connection.socket.shutdown(Shutdown::Both);
        restore.mark(HAS_FAILED);
        let (pid, is_restorer) = (restore.connection.peer.pid, !restore.tasks.is_empty());
        for &client in &restore.clients {
            self.pager.fail(client);
        }
        for descriptor in handshake.take_descriptors() {
            self.fail_closed(id, descriptor, &why.to_string());
        }
        if let Some(restore) = self.restores.get(&id) {
            restore.connection.understood(handshake);
        }
        // It is told when it is so.
        if is_restorer {
            tracing::error!(restore = id, pid, "a restore has failed: {why}");
        } else {
            tracing::warn!(restore = id, pid, "a peer is refused: {why}");
        }
    }

    /// The tasks of a restore begin to run.
    fn begin_transfer(&mut self, id: u64) {
        let Some(restore) = self.restores.get_mut(&id) else { return };
        restore.mark(RUNS);
        let arriving = restore.arriving.take();
        let is_first = arriving.is_some();
        restore.connection.understood(arriving);
        // As if it were closed.
        let _ = restore.connection.socket.shutdown(Shutdown::Both);
        let expected = self.daemon.images.tasks().filter(|&task| {
            self.daemon.images.extents(task).is_some() && !restore.tasks.contains(&task)
        });
        for task in expected.filter(|_| is_first) {
            tracing::warn!(restore = id, task, "a task has not come");
        }
        match Transfer::start(Arc::clone(&self.pager), Threads::of(&self.table)) {
            Ok(transfer) => {
                for &client in &restore.clients {
                    for set in &self.daemon.replays {
                        self.pager.replay(client, set);
                    }
                }
                for &client in &restore.clients {
                    // The thread ends after this.
                    let _ = transfer.todo.send(client);
                }
                restore.transfer = Some(transfer);
                tracing::info!(restore = id, tasks = restore.tasks.len(), "the tasks run");
            }
            Err(error) => {
                restore.mark(HAS_FAILED);
                tracing::error!(restore = id, %error, "pages are only filled as they are touched");
            }
        }
    }

    fn restore_of(&mut self, client: ClientId) -> Option<(u64, &mut Restore)> {
        let mut restores = self.restores.iter_mut();
        let (&id, restore) = restores.find(|(_, restore)| restore.clients.contains(&client))?;
        Some((id, restore))
    }

    fn heed(&mut self, notice: Notice) {
        match notice {
            Notice::Forked { parent, child } => {
                let Some((restore, of)) = self.restore_of(parent) else { return };
                tracing::info!(restore, %parent, %child, "a task has forked");
                of.clients.insert(child);
                if let Some(transfer) = &of.transfer {
                    // As above.
                    let _ = transfer.todo.send(child);
                }
            }
            Notice::Failed { client, failure } => {
                let Some((restore, of)) = self.restore_of(client) else { return };
                // Else it was told of.
                if !of.has_failed() || !matches!(failure, Failure::Refused(_) | Failure::Stopped) {
                    tracing::error!(restore, %client, "a task cannot be served: {failure}");
                }
                of.mark(HAS_FAILED);
                if let Some(failed) = self.notices.failed(client) {
                    failed.slot.note_told();
                }
            }
            Notice::Kept { client } => {
                tracing::error!(%client, "its memory cannot be poisoned: end the task");
            }
            Notice::Recorded { client, set } => self.write_record(client, set),
            // What a task has not told of is zeros.
            Notice::Poisoned { .. } => {}
            Notice::Closed { client, stats } => self.forget(client, stats, "is poisoned"),
            Notice::Completed { client, stats } => self.forget(client, stats, "has all its memory"),
            Notice::Gone { client, stats } => self.forget(client, stats, "has gone"),
        }
    }

    fn write_record(&self, client: ClientId, set: WorkingSet) {
        let Some(file) = &self.daemon.record else { return };
        match SourceId::of_images(&self.daemon.images) {
            Ok(id) => WorkingSet { source: Some(id), ..set }.write_for(client, file),
            Err(_) => tracing::error!(%client, "it is not recorded: the images cannot be read"),
        }
    }

    fn forget(&mut self, client: ClientId, stats: Stats, what: &str) {
        let Some((restore, of)) = self.restore_of(client) else { return };
        tracing::debug!(restore, %client, pages = stats.pages, "a task {what}");
        of.clients.remove(&client);
        of.stats += stats;
    }

    /// Forgets restores all of whose tasks need no pager any more.
    fn forget_ended(&mut self) {
        let is_over = |restore: &Restore| restore.arriving.is_none() && restore.clients.is_empty();
        let over = self.restores.iter().filter(|(_, restore)| is_over(restore));
        for id in over.map(|(&id, _)| id).collect::<Vec<_>>() {
            let Some(restore) = self.restores.remove(&id) else { continue };
            let has_failed = restore.has_failed();
            let Restore { connection, transfer, tasks, stats, .. } = restore;
            let is_restorer = transfer.is_some() || !tasks.is_empty();
            let mut took = None;
            if let Some(Transfer { todo, thread, since }) = transfer {
                drop(todo);
                // It has told of its panic.
                let _ = thread.join();
                took = Some(since.elapsed());
            }
            let Stats { faults, pages, poisoned, .. } = stats;
            let has_failed = has_failed || poisoned > 0;
            self.ended.stats += stats;
            self.table.set_gone(self.ended.stats);
            connection.slot.count(match (is_restorer, has_failed) {
                (false, _) => REFUSED,
                (true, true) => FAILED,
                (true, false) => COMPLETE,
            });
            self.ended = Restored::of(&self.table);
            drop(connection);
            let tasks = tasks.len();
            if let Some(took) = took {
                tracing::info!(restore = id, tasks, faults, pages, ?took, "a restore has ended");
            }
        }
    }

    /// It was told to stop, so many times by now.
    fn stop(&mut self, times: u64) {
        self.stops = times;
        if times == 1 {
            tracing::warn!("no restore is accepted any more");
            self.refuse_silent("the pager ends");
        } else {
            let all: Vec<u64> = self.restores.keys().copied().collect();
            for id in all {
                self.refuse(id, &"the pager ends");
            }
            for client in self.pager.clients() {
                self.pager.fail(client);
            }
        }
    }
}

//! A pager: workers, and the clients whose faults they serve.
#![expect(clippy::disallowed_types, reason = "flags and numbers that guard no memory")]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pervma_pager::sys::Errno;
use pervma_pager::{MemorySource, Source};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use crate::blame::for_client;
use crate::client::{
    About, Begun, Client, ClientError, ClientId, ForkedChild, HELD_UP, LeftChild, PIECE, Places,
    Read, Served, Wanted,
};
use crate::failure::Failure;
use crate::limits::Limits;
use crate::reads::{Reads, Task};
use crate::state::Extent;
use crate::state::descriptors::Descriptors;
use crate::state::ring::Ring;
use crate::state::table::{Entry, Slot, Table};
use crate::stats::{Counter, Latency, Stats};
use crate::steps::step;
use crate::threads::{Threads, let_others_go_first, or_exit};
use crate::turns::{Next, Share, Turns};
use crate::untold::Untold;
use crate::working_set::{Recorder, WorkingSet};

/// How faults are served.
///
/// ```
/// use pervma_serve::{Limits, Options};
///
/// let pager = Options::new().workers(2).granule(64 << 10).ahead(16).start(|notice| {
///     println!("{notice:?}");
/// })?;
/// assert_eq!(pager.clients(), []);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    workers: usize,
    granule: usize,
    ahead: usize,
    fillers: usize,
    spin: Duration,
    records: bool,
    replayers: usize,
    limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// Two workers, a granule of 64 KiB, nothing filled ahead.
    pub fn new() -> Self {
        Self {
            workers: 2,
            granule: 64 << 10,
            ahead: 0,
            fillers: 1,
            spin: Duration::ZERO,
            records: false,
            replayers: 0,
            limits: Limits::default(),
        }
    }

    /// So many threads read and serve faults; at least one.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// So many bytes, aligned by address, are filled for a fault, as far as they are missing; made
    /// a power of two, and at least a page of the client's.
    pub fn granule(mut self, bytes: usize) -> Self {
        self.granule = bytes.next_power_of_two().max(4096);
        self
    }

    /// So many granules are filled ahead of a client that faults in one granule after the other, by
    /// a thread that lets faults go first.
    pub fn ahead(mut self, granules: usize) -> Self {
        self.ahead = granules;
        self
    }

    /// So many threads fill what a client misses when that is [asked for](Pager::complete); at
    /// least one. They let faults go first, and all other threads of the machine: theirs is the
    /// lowest scheduling class.
    pub fn fillers(mut self, fillers: usize) -> Self {
        self.fillers = fillers.max(1);
        self
    }

    /// So long a worker looks for the next fault of any client, after it has read one, before it
    /// sleeps: less time to an answer, for a processor that does nothing else.
    pub fn spin(mut self, time: Duration) -> Self {
        self.spin = time;
        self
    }

    /// Records what each client asks for: see [`Notice::Recorded`].
    pub fn record(mut self) -> Self {
        self.records = true;
        self
    }

    /// So many threads fill what is [replayed](Pager::replay), in the same scheduling class as
    /// [`fillers`](Self::fillers).
    pub fn replayers(mut self, threads: usize) -> Self {
        self.replayers = threads;
        self
    }

    /// As many threads fill what is replayed as fill what is missing.
    pub(crate) fn replay_as_filled(self) -> Self {
        let fillers = self.fillers;
        self.replayers(fillers)
    }

    /// How much clients may ask for.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Starts the threads. `on_notice` is called by them: it returns soon, and makes no call that
    /// waits for the pager.
    ///
    /// # Errors
    ///
    /// When descriptors or threads run out.
    pub fn start(self, on_notice: impl Fn(Notice) + Send + Sync + 'static) -> io::Result<Pager> {
        let table = self.table(false)?;
        Pager::start(self, table, None, None, Box::new(on_notice))
    }

    pub(crate) fn table(&self, is_kept: bool) -> io::Result<Arc<Table>> {
        Table::new(self.workers, is_kept)
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.workers
    }
}

/// What becomes of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A client has forked, and its child is a client too.
    Forked {
        /// The client.
        parent: ClientId,
        /// The child.
        child: ClientId,
    },
    /// A client cannot be served: accesses to what is missing fail from now on.
    Failed {
        /// The client.
        client: ClientId,
        /// Why.
        failure: Failure,
    },
    /// What a client has asked for, if that is [recorded](Options::record): it will ask for nothing
    /// more.
    Recorded {
        /// The client.
        client: ClientId,
        /// What it asked for. The source is not noted: it is known to who has added the client.
        set: WorkingSet,
    },
    /// All that a failed client misses of what it has told of is poisoned. It has touched what it
    /// [has not told of](Failure::Outside), so its descriptor stays open, and each page of that is
    /// poisoned as it is touched.
    Poisoned {
        /// The client.
        client: ClientId,
    },
    /// All that a failed client misses is poisoned, and its descriptor closed.
    Closed {
        /// The client.
        client: ClientId,
        /// What was counted of it.
        stats: Stats,
    },
    /// Nothing of a failed client can be poisoned: its descriptor stays open, and its threads sleep
    /// until it is ended.
    Kept {
        /// The client.
        client: ClientId,
    },
    /// All that a client missed is there, and its descriptor closed.
    Completed {
        /// The client.
        client: ClientId,
        /// What was counted of it.
        stats: Stats,
    },
    /// A client's process has ended.
    Gone {
        /// The client.
        client: ClientId,
        /// What was counted of it.
        stats: Stats,
    },
}

/// Serves the faults of clients, until it is dropped: what they miss then is poisoned.
///
/// See the [crate] for what it promises.
pub struct Pager {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    background: Option<JoinHandle<()>>,
}

struct Shared {
    options: Options,
    epoll: OwnedFd,
    /// Ends the wait for clients.
    wake: OwnedFd,
    turns: Turns<Fault>,
    clients: RwLock<HashMap<u64, Arc<Client>>>,
    table: Arc<Table>,
    reads: Arc<Reads>,
    /// Of clients, if what they ask for is recorded.
    recorders: Mutex<HashMap<ClientId, Recorder>>,
    ahead: Ahead,
    replays: Replays,
    jobs: Mutex<Sender<Arc<Client>>>,
    latency: Latency,
    is_over: AtomicBool,
    untold: Option<Arc<Untold>>,
    on_notice: Box<dyn Fn(Notice) + Send + Sync>,
}

struct Fault {
    client: Arc<Client>,
    addr: usize,
    /// When it was read.
    since: Instant,
    /// So many workers may serve faults of the client.
    most: usize,
}

impl Share for Fault {
    fn takes_long(&self) -> bool {
        self.client.takes_long()
    }

    fn may_begin(&self) -> bool {
        self.client.has_fewer(self.most)
    }

    fn begin(&self) -> bool {
        self.client.begin_serving(self.most)
    }
}

/// Clients that fault in order, and where they are to be filled from.
#[derive(Default)]
struct Ahead {
    queue: Mutex<VecDeque<(Arc<Client>, usize)>>,
    todo: Condvar,
}

/// What processes before this one have left.
pub(crate) struct Left<'l> {
    /// Of clients.
    pub(crate) entries: Vec<(Slot, Entry)>,
    pub(crate) descriptors: &'l mut Descriptors,
    /// Where a client's bytes are.
    pub(crate) source: &'l dyn Fn(&Entry) -> Option<Arc<dyn Source>>,
    /// The client of which the last process has died; 0 for none.
    pub(crate) culprit: u64,
}

/// What is replayed.
#[derive(Default)]
struct Replays {
    queue: Mutex<ReplayQueue>,
    /// There is something to be begun, or nothing under way any more.
    changed: Condvar,
}

#[derive(Default)]
struct ReplayQueue {
    /// In turns.
    todo: VecDeque<Replay>,
    /// So many runs are being filled.
    running: usize,
}

/// A client, and what it will ask for.
struct Replay {
    client: Arc<Client>,
    places: Arc<Places>,
    /// Ranges of the source.
    runs: Arc<[Range<u64>]>,
    /// The first of them that no thread has begun with: there is one.
    next: usize,
}

/// A client is not served any more when so many processes have died of it.
pub(crate) const DEADLY: u64 = 3;
/// More than this many are not filled ahead of.
const MOST_AHEAD: usize = 256;
/// So many times in a row a client is read that always has something to tell.
const IN_A_ROW: usize = 16;
/// The token of the descriptor that wakes. Clients are counted from 1.
const WAKE: u64 = 0;
/// A worker is told when there is something to read that was not there before.
const EDGES: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);
/// What could not be served is tried again at once for so long.
const PROMPT: Duration = Duration::from_micros(100);
/// And then after so long.
const SOON: Duration = Duration::from_micros(200);
/// What could not be read since fills were held up is tried again for so long.
const NO_LONGER: Duration = Duration::from_micros(100);
/// A read that fails is tried again after these.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(100), Duration::from_millis(500)];
/// What a failed client misses could not be poisoned in this time: it always has something to tell.
const GIVE_UP: Duration = Duration::from_secs(10);
/// All addresses.
const ALL: Range<usize> = 0..usize::MAX;
/// Addresses that one thread fills, aligned, before it looks for more: whole pages, also huge ones.
/// To note that one is filled holds up all that fill.
const WINDOWS: Range<usize> = 2 << 20..16 << 20;
/// At most so much is filled at once where no thread waits, while others of the client do: a fault
/// is not read before such fills have ended.
const SMALL_PIECE: usize = 16 << 10;
/// So many of them are filled after a fault, before pieces are larger again.
const SMALL_PIECES: usize = 16;
/// So often it is looked whether clients have gone.
const LOOK: Duration = Duration::from_millis(500);

impl Pager {
    /// Starts with the clients that processes before this one have left in the table. Clients that
    /// have failed are put where they are noted until they are taken from there.
    pub(crate) fn start(
        options: Options,
        table: Arc<Table>,
        left: Option<Left<'_>>,
        untold: Option<Arc<Untold>>,
        on_notice: Box<dyn Fn(Notice) + Send + Sync>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), EDGES)?;
        let (jobs, todo) = mpsc::channel();
        let (workers, limits) = (options.workers, options.limits.clone());
        let threads = Threads::of(&table);
        let shared = Arc::new_cyclic(|shared: &std::sync::Weak<Shared>| {
            let shared = shared.clone();
            let run = move |task: &Task, buffer: &mut Vec<u8>| {
                if let Some(shared) = shared.upgrade() {
                    shared.read_source(task, buffer);
                }
            };
            Shared {
                options,
                epoll,
                wake,
                turns: Turns::new(),
                clients: RwLock::default(),
                table: Arc::clone(&table),
                reads: Arc::new(Reads::new(limits.reads, limits.all_reads, threads, run)),
                recorders: Mutex::default(),
                ahead: Ahead::default(),
                replays: Replays::default(),
                jobs: Mutex::new(jobs),
                latency: Latency::default(),
                is_over: AtomicBool::new(false),
                untold,
                on_notice,
            }
        });
        let mut pager = Self { shared, threads: Vec::new(), background: None };
        let mut rings = Ring::all(&table);
        let is_left = left.as_ref().is_some_and(|left| !left.entries.is_empty());
        if let Some(left) = left {
            pager.shared.take_left(left, &mut rings);
        }
        or_exit(is_left, pager.start_threads(workers, rings, todo))?;
        Ok(pager)
    }

    fn start_threads(
        &mut self,
        workers: usize,
        mut rings: Vec<Ring>,
        todo: Receiver<Arc<Client>>,
    ) -> io::Result<()> {
        // There were more workers, perhaps.
        rings.truncate(workers);
        for (number, ring) in rings.into_iter().enumerate() {
            self.spawn("pervma-worker", move |shared| shared.run(number, ring))?;
        }
        if self.shared.options.ahead > 0 {
            self.spawn("pervma-ahead", Shared::fill_ahead)?;
        }
        for _ in 0..self.shared.options.replayers {
            self.spawn("pervma-replay", Shared::fill_replays)?;
        }
        let shared = Arc::clone(&self.shared);
        let close = move || shared.look_after(&todo);
        self.background = Some(Threads::of(&self.shared.table).start("pervma-close", close)?);
        Ok(())
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce(&Shared) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(Threads::of(&self.shared.table).start(name, move || work(&shared))?);
        Ok(())
    }

    /// Takes a client: its userfaultfd, which does not block, and what belongs into the memory that
    /// is registered with it, as long as it is missing. The bytes are those of the source, which do
    /// not change.
    ///
    /// # Errors
    ///
    /// See [`ClientError`]. The descriptor is closed then.
    pub fn add(
        &self,
        userfaultfd: OwnedFd,
        extents: &[Extent],
        source: Arc<dyn Source>,
    ) -> Result<ClientId, ClientError> {
        self.add_client(userfaultfd, extents, source, About::default())
    }

    /// Takes a client as [`add`](Self::add) does, all of whose memory is zeros that is not told of,
    /// also what it moves, or makes longer, after it has come: a process that was restored.
    ///
    /// # Errors
    ///
    /// See [`ClientError`]. The descriptor is closed then.
    pub fn add_sparse(
        &self,
        userfaultfd: OwnedFd,
        extents: &[Extent],
        source: Arc<dyn Source>,
    ) -> Result<ClientId, ClientError> {
        let about = About { is_sparse: true, ..About::default() };
        self.add_client(userfaultfd, extents, source, about)
    }

    /// Takes a client of which the daemon knows this.
    pub(crate) fn add_client(
        &self,
        userfaultfd: OwnedFd,
        extents: &[Extent],
        source: Arc<dyn Source>,
        about: About,
    ) -> Result<ClientId, ClientError> {
        let most = self.shared.options.limits.clients;
        if self.shared.count() >= most {
            return Err(ClientError::TooMany(most));
        }
        let (table, granule) = (&self.shared.table, self.shared.options.granule);
        let client = Client::new(table, userfaultfd, extents, source, granule, about, None)?;
        let id = client.id;
        self.shared.watch(Arc::new(client)).map_err(ClientError::Watch)?;
        Ok(id)
    }

    /// The clients that are served, or fail; not those that were [refused](Self::refuse).
    #[must_use]
    pub fn clients(&self) -> Vec<ClientId> {
        let all = self.shared.all();
        let served = all.iter().filter(|client| !client.is_refused());
        let mut clients: Vec<_> = served.map(|client| client.id).collect();
        clients.sort_unstable();
        clients
    }

    /// The clients of an [owner](Entry::owner) by its lower half, with the upper halves; `None`
    /// where that is 0.
    pub(crate) fn clients_of(&self, owner: u64) -> Vec<(ClientId, Option<u32>)> {
        let all = self.shared.all();
        let owned = all.iter().filter_map(|client| {
            let of = client.entry().owner;
            let upper = (of >> 32) as u32;
            (of as u32 == owner as u32).then_some((client.id, (upper != 0).then_some(upper)))
        });
        owned.collect()
    }

    /// What was counted of a client; `None` if it has gone.
    #[must_use]
    pub fn stats(&self, client: ClientId) -> Option<Stats> {
        Some(self.shared.client(client.0)?.counters().stats())
    }

    /// What belongs into a client's memory now; `None` if it has gone.
    #[must_use]
    pub fn extents(&self, client: ClientId) -> Option<Vec<Extent>> {
        Some(self.shared.client(client.0)?.extents())
    }

    /// The length of a client's memory in bytes, as it was told at first or forked; `None` if it
    /// has gone.
    #[must_use]
    pub fn len(&self, client: ClientId) -> Option<u64> {
        Some(self.shared.client(client.0)?.len)
    }

    /// How long answers took: of faults that did not wait for a source.
    #[must_use]
    pub fn latency(&self) -> &Latency {
        &self.shared.latency
    }

    /// Takes a client that is not to be served, for a reason: it fails at once. What of its memory
    /// is not told in `extents` is poisoned as its threads touch it, and if nothing is told, its
    /// descriptor is kept until its process has gone: closed, its memory would read as zeros.
    ///
    /// # Errors
    ///
    /// See [`ClientError`]. The descriptor is closed then. As many are kept as may be served.
    pub fn refuse(
        &self,
        userfaultfd: OwnedFd,
        extents: &[Extent],
        reason: String,
    ) -> Result<ClientId, ClientError> {
        self.refuse_client(userfaultfd, extents, reason, About::default())
    }

    /// Refuses a client of which the daemon knows this.
    pub(crate) fn refuse_client(
        &self,
        userfaultfd: OwnedFd,
        extents: &[Extent],
        reason: String,
        about: About,
    ) -> Result<ClientId, ClientError> {
        let most = self.shared.options.limits.clients;
        if self.shared.all().iter().filter(|client| client.is_refused()).count() >= most {
            return Err(ClientError::TooMany(most));
        }
        let (table, granule) = (&self.shared.table, self.shared.options.granule);
        let failure = Failure::Refused(reason);
        let client =
            Client::new(table, userfaultfd, extents, nothing(), granule, about, Some(&failure))?;
        let id = client.id;
        let watched = self.shared.watch_failed(Arc::new(client), failure);
        watched.map_err(ClientError::Watch)?;
        Ok(id)
    }

    /// Fails a client: what it misses is poisoned, and its descriptor closed then. `false` if it
    /// has gone, or fails already.
    pub fn fail(&self, client: ClientId) -> bool {
        let client = self.shared.client(client.0);
        client.is_some_and(|client| self.shared.fail(&client, Failure::Stopped))
    }

    /// Fills all that a client misses, so that it needs no pager any more, and lets it go. `false`
    /// if it has gone, fails, or some of it cannot be read: then it is served as before. What is
    /// [replayed](Self::replay), of whatever client, goes first.
    pub fn complete(&self, client: ClientId) -> bool {
        self.shared.client(client.0).is_some_and(|client| self.shared.complete(&client))
    }

    /// Fills what a client will ask for, in that order, while faults go first. It is no promise:
    /// what cannot be filled is left to faults. `false` if the client has gone, or there are no
    /// [threads](Options::replayers) for it.
    pub fn replay(&self, client: ClientId, set: &WorkingSet) -> bool {
        if self.shared.options.replayers == 0 {
            return false;
        }
        let Some(client) = self.shared.client(client.0) else { return false };
        let (places, runs) = (Arc::new(client.places()), set.runs());
        if runs.is_empty() {
            return true;
        }
        let replay = Replay { client, places, runs: runs.into(), next: 0 };
        self.shared.replay_queue().todo.push_back(replay);
        self.shared.replays.changed.notify_all();
        true
    }

    /// Whether of a client, or of its children, something is not noted: a descriptor of which
    /// nothing is known may be theirs.
    pub(crate) fn is_damaged(&self) -> bool {
        let is_damaged = |client: &Arc<Client>| {
            matches!(client.health.failure(), Some(Failure::Damaged | Failure::NotNoted(_)))
        };
        self.shared.all().iter().any(is_damaged)
    }

    /// Looks now whether a client's process has gone, and forgets it if so.
    pub fn look(&self, client: ClientId) {
        if let Some(client) = self.shared.client(client.0)
            && client.is_gone()
        {
            self.shared.forget(&client);
        }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let shared = &self.shared;
        for client in shared.all() {
            shared.fail(&client, Failure::Stopped);
        }
        // Workers go on meanwhile: what clients do could not be poisoned else.
        while shared.all().iter().any(|client| !client.health.is_kept()) {
            thread::sleep(Duration::from_millis(1));
        }
        for kept in shared.all() {
            // For ever: closed, its memory would read as zeros.
            std::mem::forget(kept);
        }
        shared.is_over.store(true, Relaxed);
        // A thread that has looked at the flag before waits by now, and is woken.
        drop((shared.ahead_queue(), shared.replay_queue()));
        shared.ahead.todo.notify_all();
        shared.replays.changed.notify_all();
        shared.turns.end();
        // The worker that waits looks again. It counts far, and does not block.
        let _ = rustix::io::write(&shared.wake, &1_u64.to_ne_bytes());
        drop(std::mem::replace(
            &mut *shared.jobs.lock().unwrap_or_else(PoisonError::into_inner),
            mpsc::channel().0,
        ));
        for thread in self.threads.drain(..).chain(self.background.take()) {
            // It has told of its panic.
            let _ = thread.join();
        }
        shared.reads.stop();
    }
}

impl fmt::Debug for Pager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pager").field("clients", &self.clients()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Takes the clients that processes before this one have left: before there are threads, since
    /// what was read and not noted comes before all else.
    fn take_left(&self, left: Left<'_>, rings: &mut [Ring]) {
        let Left { entries, descriptors, source, culprit } = left;
        let mut clients = Vec::new();
        for (slot, entry) in entries {
            let (number, file) = (entry.number, descriptors.take_file(slot.file()));
            let Some(userfaultfd) = descriptors.take(entry.descriptor) else {
                tracing::error!(client = number, "its descriptor is not there any more");
                slot.free();
                continue;
            };
            let source = source(&entry).unwrap_or_else(nothing);
            let granule = self.options.granule;
            match Client::left(slot, entry, userfaultfd, file, source, granule) {
                Ok(client) => clients.push(Arc::new(client)),
                Err(error) => tracing::error!(client = number, %error, "it may read zeros"),
            }
            step();
        }
        for ring in rings {
            let batch = match ring.left() {
                Ok(None) => continue,
                Ok(Some(batch)) => batch,
                Err(error) => {
                    tracing::error!("messages of a client, of which it is not known: {error}");
                    ring.end();
                    for client in &clients {
                        client.fail(Failure::Damaged);
                    }
                    continue;
                }
            };
            let reader = clients.iter().find(|client| client.id.0 == batch.client);
            let Some(client) = reader.cloned() else { continue };
            let child_with = |descriptor: i32| {
                let is_it = |child: &&Arc<Client>| {
                    let entry = child.entry();
                    entry.parent == batch.client && entry.descriptor == descriptor
                };
                match clients.iter().find(is_it) {
                    Some(child) => LeftChild::Noted(child.id.0),
                    None => descriptors.take(descriptor).map_or(LeftChild::Gone, LeftChild::New),
                }
            };
            let mut children = Vec::new();
            if let Err(failure) = client.read_left(ring, batch.changes, &mut children, child_with) {
                client.fail(failure);
            }
            for child in children {
                match client.child(child) {
                    Ok(child) => clients.push(Arc::new(child)),
                    Err(error) => tracing::error!(client = %client.id, %error, "a child is lost"),
                }
            }
            step();
        }
        for client in clients {
            if client.id.0 == culprit && client.slot.blame() >= DEADLY {
                client.fail(Failure::Deadly);
            }
            client.wake_all();
            let failure = client.health.failure().cloned();
            if let Err(error) = self.watch(Arc::clone(&client)) {
                tracing::error!(client = %client.id, %error, "it cannot be watched");
            }
            if let Some(failure) = failure {
                self.tell_failure(&client, failure);
            }
            step();
        }
    }

    /// Of those that are served.
    fn count(&self) -> usize {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.values().filter(|client| !client.is_refused()).count()
    }

    /// How many workers may serve one client: if there are others, one is left to them, since all
    /// that serve a client may be held up at the same time.
    fn most_of_one(&self) -> usize {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner).len();
        let others = usize::from(clients > 1);
        self.options.workers.saturating_sub(others).max(1)
    }

    fn client(&self, id: u64) -> Option<Arc<Client>> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn all(&self) -> Vec<Arc<Client>> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn watch(&self, client: Arc<Client>) -> Result<(), Errno> {
        let id = client.id.0;
        let is_recorded = self.options.records && client.health.failure().is_none();
        if is_recorded {
            self.recorders().insert(client.id, Recorder::new(client.granule));
        }
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        clients.insert(id, Arc::clone(&client));
        drop(clients);
        let added = epoll::add(&self.epoll, &*client, epoll::EventData::new_u64(id), EDGES);
        if added.is_err() {
            self.clients.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
            self.recorders().remove(&client.id);
        }
        added
    }

    /// Has a worker read what a client has told and is not read: others were to be looked at first,
    /// or there was no descriptor for a fork, which is not told of again.
    fn remind(&self, client: &Client) {
        // It is not watched any more, perhaps.
        let _ = epoll::modify(&self.epoll, client, epoll::EventData::new_u64(client.id.0), EDGES);
    }

    /// A client has gone, or may go.
    fn remove(&self, client: &Client) -> bool {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        let was_there = clients.remove(&client.id.0).is_some();
        drop(clients);
        if was_there {
            // It is closed later, by the last thread that has it.
            let _ = epoll::delete(&self.epoll, client);
            self.reads.forget(client.id);
            let recorder = self.recorders().remove(&client.id);
            if let Some(recorder) = recorder {
                (self.on_notice)(Notice::Recorded { client: client.id, set: recorder.finish() });
            }
        }
        was_there
    }

    fn forget(&self, client: &Client) {
        if self.remove(client) {
            let stats = client.counters().stats();
            (self.on_notice)(Notice::Gone { client: client.id, stats });
        }
    }

    /// A client cannot be served any more.
    fn fail(&self, client: &Arc<Client>, failure: Failure) -> bool {
        let is_first = client.fail(failure.clone());
        if is_first {
            self.tell_failure(client, failure);
        }
        is_first
    }

    /// Takes a client that is not to be served: it fails before a thread of it can be.
    fn watch_failed(&self, client: Arc<Client>, failure: Failure) -> Result<(), Errno> {
        client.fail(failure.clone());
        self.watch(Arc::clone(&client))?;
        self.tell_failure(&client, failure);
        Ok(())
    }

    fn tell_failure(&self, client: &Arc<Client>, failure: Failure) {
        if !client.slot.was_told() {
            if let Some(untold) = &self.untold {
                untold.put(client);
            }
            (self.on_notice)(Notice::Failed { client: client.id, failure });
        }
        // It is not known what would have to be poisoned.
        if client.len == 0 {
            client.health.keep();
            return;
        }
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // The thread ends when the pager does.
        let _ = jobs.send(Arc::clone(client));
    }

    /// What a worker does.
    fn run(&self, number: usize, ring: Ring) {
        // Others read what this one has not taken.
        let most = if self.options.workers == 1 { 8 } else { 1 };
        let mut worker = Worker {
            shared: self,
            number,
            ring,
            faults: Vec::new(),
            deferred: Vec::new(),
            unread: Vec::new(),
            ready: Vec::with_capacity(most),
            last_read: Instant::now(),
        };
        while worker.turn() {}
    }

    fn recorders(&self) -> MutexGuard<'_, HashMap<ClientId, Recorder>> {
        self.recorders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a fault; `false` if it has to be served again.
    fn serve(&self, fault: &Fault) -> bool {
        let client = &fault.client;
        if self.options.records
            && let Some(offset) = client.source_offset(fault.addr)
            && let Some(recorder) = self.recorders().get_mut(&client.id)
        {
            recorder.note(offset);
        }
        let served = for_client(client.id, || client.serve(fault.addr, fault.since));
        step();
        match served {
            Served::Done => {
                self.latency.add(fault.since.elapsed());
                self.note_ahead(client, fault.addr);
                true
            }
            Served::Again => false,
            Served::Read => {
                let client = Arc::clone(client);
                let task = Task { client, addr: fault.addr, since: fault.since, is_ahead: false };
                self.reads.submit(task).is_ok()
            }
            Served::Failed(Failure::NoMemory) => client.poison(fault.addr) == Served::Done,
            Served::Failed(failure) => {
                self.fail(client, failure);
                // Now it is poisoned, if that can be.
                client.serve(fault.addr, fault.since) != Served::Again
            }
            Served::Gone => {
                self.forget(client);
                true
            }
        }
    }

    /// Takes the child of a client.
    fn adopt(&self, parent: &Client, child: ForkedChild) {
        let is_too_many = self.count() >= self.options.limits.clients;
        let adopted = parent.child(child).map(Arc::new).and_then(|client| {
            (self.on_notice)(Notice::Forked { parent: parent.id, child: client.id });
            let too_many = is_too_many.then_some(Failure::TooMany);
            match parent.health.failure().cloned().or(too_many) {
                Some(failure) => self.watch_failed(client, failure),
                None => self.watch(client),
            }
            .map_err(ClientError::Watch)
        });
        if let Err(error) = adopted {
            tracing::error!(client = %parent.id, %error, "a child is not served");
        }
    }

    /// Reads a granule from the source, and fills it.
    fn read_source(&self, task: &Task, buffer: &mut Vec<u8>) {
        let client = &task.client;
        let (client_, most) = (Arc::clone(client), usize::MAX);
        let fault = Fault { client: client_, addr: task.addr, since: task.since, most };
        // RELAXED: it is looked at again and again.
        while !self.is_over.load(Relaxed) {
            match client.begin_read(task.addr) {
                Begun::UnderWay => return,
                Begun::NotOfSource if task.is_ahead || self.serve(&fault) => return,
                Begun::NotOfSource => thread::sleep(SOON),
                Begun::Wanted(wanted) => {
                    let served = self.read_wanted(task, wanted.clone(), buffer);
                    client.end_read(&wanted);
                    match served {
                        Served::Read => {}
                        Served::Gone => return self.forget(client),
                        Served::Failed(failure) => {
                            self.fail(client, failure);
                            return;
                        }
                        Served::Done | Served::Again => return,
                    }
                }
            }
        }
    }

    fn read_wanted(&self, task: &Task, mut wanted: Wanted, buffer: &mut Vec<u8>) -> Served {
        let client = &task.client;
        client.counters().add(Counter::Reads, 1);
        let tries = if client.has_failed_to_read() { 1 } else { RETRIES.len() };
        let mut retries = RETRIES[..tries].iter();
        while !self.read_once(client, &wanted, buffer) {
            if task.is_ahead {
                return Served::Done;
            }
            client.counters().add(Counter::Retries, 1);
            if wanted.range != wanted.page {
                // The others may never be wanted.
                wanted.offset += (wanted.page.start - wanted.range.start) as u64;
                wanted.range = wanted.page.clone();
                continue;
            }
            match retries.next() {
                Some(&delay) if client.health.failure().is_none() => thread::sleep(delay),
                _ => {
                    tracing::error!(client = %client.id, offset = wanted.offset, "cannot be read");
                    client.note_failed_read();
                    return self.until_read(client, || client.fail_read(&wanted));
                }
            }
        }
        self.until_read(client, || {
            client.fill_read(&wanted, &buffer[..wanted.range.len()], task.since)
        })
    }

    /// Reads what is wanted, again where that fails; whether it could be done.
    fn read_again(&self, client: &Client, wanted: &Wanted, buffer: &mut Vec<u8>) -> bool {
        client.counters().add(Counter::Reads, 1);
        let mut retries = RETRIES.iter();
        while !self.read_once(client, wanted, buffer) {
            match retries.next() {
                Some(&delay) if client.health.failure().is_none() => {
                    client.counters().add(Counter::Retries, 1);
                    thread::sleep(delay);
                }
                _ => {
                    tracing::error!(client = %client.id, offset = wanted.offset, "cannot be read");
                    return false;
                }
            }
        }
        true
    }

    /// Reads what is wanted; whether that could be done. A source that panics could not.
    fn read_once(&self, client: &Client, wanted: &Wanted, buffer: &mut Vec<u8>) -> bool {
        let len = wanted.range.len();
        buffer.resize(len, 0);
        let read =
            || for_client(client.id, || client.source.read_at(wanted.offset, buffer).is_ok());
        // It has told of its panic, and what it has left in the buffer is not used.
        catch_unwind(AssertUnwindSafe(read)).unwrap_or(false)
    }

    /// Does it until the events that it waits for were read.
    fn until_read(&self, client: &Client, mut work: impl FnMut() -> Served) -> Served {
        loop {
            let served = work();
            // RELAXED: it is looked at again and again.
            if served != Served::Again || self.is_over.load(Relaxed) {
                return served;
            }
            if client.is_gone() {
                return Served::Gone;
            }
            thread::sleep(SOON);
        }
    }

    /// Notes where a client may fault next, if it goes on as it did.
    fn note_ahead(&self, client: &Arc<Client>, addr: usize) {
        if self.options.ahead == 0 || !client.is_in_order(addr, self.options.ahead) {
            return;
        }
        let mut queue = self.ahead_queue();
        if queue.len() < MOST_AHEAD {
            queue.push_back((Arc::clone(client), client.granule_at(addr).end));
            self.ahead.todo.notify_one();
        }
    }

    fn ahead_queue(&self) -> MutexGuard<'_, VecDeque<(Arc<Client>, usize)>> {
        self.ahead.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replay_queue(&self) -> MutexGuard<'_, ReplayQueue> {
        self.replays.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does that fills ahead of clients that fault in order.
    fn fill_ahead(&self) {
        let mut queue = self.ahead_queue();
        // RELAXED: here and below, it is woken for it.
        while !self.is_over.load(Relaxed) {
            if let Some((client, addr)) = queue.pop_front() {
                drop(queue);
                self.fill_in_order(&client, addr);
                queue = self.ahead_queue();
            } else {
                queue = self.ahead.todo.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// What a thread does that fills what is replayed.
    fn fill_replays(&self) {
        let_others_go_first();
        let mut buffer = Vec::new();
        let mut queue = self.replay_queue();
        while !self.is_over.load(Relaxed) {
            let Some(mut replay) = queue.todo.pop_front() else {
                queue = self.replays.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let run = replay.runs[replay.next].clone();
            let (client, places) = (Arc::clone(&replay.client), Arc::clone(&replay.places));
            replay.next += 1;
            if replay.next < replay.runs.len() {
                queue.todo.push_back(replay);
            }
            queue.running += 1;
            drop(queue);
            let filled = self.fill_run(&client, &places, &run, &mut buffer);
            queue = self.replay_queue();
            queue.running -= 1;
            if filled != Served::Done {
                // What cannot be filled is left to faults, and what is behind it as well: the
                // source is not tried again and again.
                queue.todo.retain(|replay| replay.client.id != client.id);
            }
            if queue.todo.is_empty() && queue.running == 0 {
                self.replays.changed.notify_all();
            }
        }
    }

    /// Fills what a client misses of a range of the source.
    fn fill_run(
        &self,
        client: &Client,
        places: &Places,
        run: &Range<u64>,
        buffer: &mut Vec<u8>,
    ) -> Served {
        for piece in places.of(run) {
            match self.fill_range(client, piece, buffer) {
                Served::Done => client.counters().add(Counter::Ahead, 1),
                other => return other,
            }
        }
        Served::Done
    }

    /// Waits until all that is replayed is filled.
    fn let_replays_go_first(&self) {
        let mut queue = self.replay_queue();
        let is_any = |queue: &ReplayQueue| !queue.todo.is_empty() || queue.running > 0;
        while is_any(&queue) && !self.is_over.load(Relaxed) {
            queue = self.replays.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Fills granules from an address on.
    fn fill_in_order(&self, client: &Arc<Client>, mut addr: usize) {
        for _ in 0..self.options.ahead {
            self.let_faults_go_first();
            // RELAXED: it is looked at again and again.
            if self.is_over.load(Relaxed) || !client.has(addr) {
                break;
            }
            let granule = client.granule_at(addr);
            match client.fill_ahead(&granule) {
                Served::Done => client.counters().add(Counter::Ahead, 1),
                Served::Read => {
                    let client = Arc::clone(client);
                    // For later: if it cannot be done, so be it.
                    let task = Task { client, addr, since: Instant::now(), is_ahead: true };
                    let _ = self.reads.submit(task);
                }
                _ => break,
            }
            addr = granule.end;
        }
    }

    fn let_faults_go_first(&self) {
        for _ in 0..100 {
            if !self.turns.are_left() {
                return;
            }
            thread::yield_now();
        }
    }

    /// Reads of a source may share a way to it, on which those that threads wait for are not to be
    /// behind many others; but others are to come to an end as well.
    fn let_reads_go_first(&self) {
        for _ in 0..5 {
            if !self.reads.are_waited_for() {
                return;
            }
            thread::sleep(SOON);
        }
    }

    /// What the thread does that poisons what failed clients miss, and looks for those that have
    /// gone.
    fn look_after(&self, todo: &Receiver<Arc<Client>>) {
        // Each with when it is given up.
        let mut failed: VecDeque<(Arc<Client>, Instant)> = VecDeque::new();
        // Now, too: a process that dies soon would leave to all that come those that have gone.
        self.look_at_all();
        let mut looked = Instant::now();
        loop {
            let wait = if failed.is_empty() { LOOK } else { SOON };
            match todo.recv_timeout(wait) {
                Ok(client) => failed.push_back((client, Instant::now() + GIVE_UP)),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                // All of them have gone or are closed, or are kept open.
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            failed.retain(|(client, until)| !self.close(client, *until));
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look_at_all();
            }
        }
    }

    /// Forgets clients that have gone.
    fn look_at_all(&self) {
        for client in self.all() {
            if client.is_gone() {
                self.forget(&client);
            } else {
                self.remind(&client);
            }
        }
    }

    /// Poisons what a failed client misses, and lets it go; whether that is over. If it cannot be
    /// done until then, its descriptor stays open.
    fn close(&self, client: &Arc<Client>, until: Instant) -> bool {
        let closed = match client.poison_missing() {
            Served::Done => client.let_go(),
            other => other,
        };
        match closed {
            Served::Again if Instant::now() < until => return false,
            Served::Again | Served::Failed(_) => {
                client.health.keep();
                (self.on_notice)(Notice::Kept { client: client.id });
            }
            Served::Gone => self.forget(client),
            // Of what it has not told of, each page is poisoned as it is touched.
            _ if client.has_untold_memory() => {
                client.health.keep();
                (self.on_notice)(Notice::Poisoned { client: client.id });
            }
            _ => {
                if self.remove(client) {
                    let stats = client.counters().stats();
                    (self.on_notice)(Notice::Closed { client: client.id, stats });
                }
            }
        }
        true
    }

    fn complete(&self, client: &Arc<Client>) -> bool {
        // What has moved meanwhile may have been filled at neither place.
        while client.next_of_source(&ALL).is_some() {
            match self.fill_all(client) {
                Served::Done => {}
                Served::Gone => {
                    self.forget(client);
                    return false;
                }
                _ => return false,
            }
        }
        match self.until_read(client, || client.let_go()) {
            Served::Done => {
                if self.remove(client) {
                    let stats = client.counters().stats();
                    (self.on_notice)(Notice::Completed { client: client.id, stats });
                }
                true
            }
            Served::Gone => {
                self.forget(client);
                false
            }
            _ => false,
        }
    }

    /// Fills all that a client misses, in order of addresses: each filler one window after the
    /// other.
    fn fill_all(&self, client: &Client) -> Served {
        let len = usize::try_from(client.len).unwrap_or(usize::MAX);
        let fillers = self.options.fillers.min(len / WINDOWS.start).max(1);
        // Several for each, so that all of them end at about the same time.
        let window = (len / fillers / 8).clamp(WINDOWS.start, WINDOWS.end).next_power_of_two();
        let next = Mutex::new(ALL.start);
        let fill = || self.fill_windows(client, window, &next);
        thread::scope(|scope| {
            let start = |_| {
                let thread = thread::Builder::new().name("pervma-fill".to_owned());
                // If it cannot be had, those that there are fill all.
                let fill = || {
                    let_others_go_first();
                    fill()
                };
                thread.spawn_scoped(scope, fill).ok()
            };
            let others: Vec<_> = (0..fillers).filter_map(start).collect();
            let own = if others.is_empty() { fill() } else { Served::Done };
            let all = others.into_iter().map(|other| other.join().unwrap_or(Served::Again));
            all.fold(own, |one, other| if one == Served::Done { other } else { one })
        })
    }

    /// Fills windows until none is left.
    fn fill_windows(&self, client: &Client, window: usize, next: &Mutex<usize>) -> Served {
        let mut buffer = Vec::new();
        loop {
            self.let_replays_go_first();
            let mut at = next.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(start) = client.next_of_source(&(*at..ALL.end)) else { return Served::Done };
            let window = start..(start + 1).next_multiple_of(window);
            *at = window.end;
            drop(at);
            client.prepare(&window);
            let moves = client.moves();
            let filled = match self.fill_range(client, window.clone(), &mut buffer) {
                Served::Done => client.note_filled(window, moves),
                other => return other,
            };
            if let Err(failure) = filled {
                return Served::Failed(failure);
            }
        }
    }

    /// Fills what a client misses of a range, for which no thread sleeps.
    fn fill_range(&self, client: &Client, mut range: Range<usize>, buffer: &mut Vec<u8>) -> Served {
        let mut was_read: Option<u64> = None;
        let (mut faults, mut small_pieces) = (client.counters().get(Counter::Faults), 0);
        loop {
            self.let_faults_go_first();
            self.let_reads_go_first();
            // RELAXED: it is looked at again and again.
            if client.health.failure().is_some() || self.is_over.load(Relaxed) {
                return Served::Failed(Failure::Stopped);
            }
            let read = was_read.map(|offset| Read { offset, bytes: &buffer[..] });
            let faults_now = client.counters().get(Counter::Faults);
            if std::mem::replace(&mut faults, faults_now) != faults_now {
                small_pieces = SMALL_PIECES;
            }
            let piece = if small_pieces > 0 { SMALL_PIECE } else { PIECE };
            small_pieces = small_pieces.saturating_sub(1);
            let next = client.fill_next(&range, piece, read.as_ref());
            let Some((wanted, served)) = next else { return Served::Done };
            range.start = wanted.range.start;
            match served {
                Served::Done => range.start = wanted.range.end,
                Served::Again => thread::sleep(SOON),
                Served::Read => {
                    if !self.read_again(client, &wanted, buffer) {
                        return Served::Failed(Failure::Source);
                    }
                    was_read = Some(wanted.offset);
                }
                Served::Gone | Served::Failed(_) => return served,
            }
        }
    }
}

/// The source of a client that is not served.
fn nothing() -> Arc<dyn Source> {
    Arc::new(MemorySource::new(Vec::new()))
}

/// A thread that reads and serves faults.
struct Worker<'s> {
    shared: &'s Shared,
    number: usize,
    ring: Ring,
    /// Memory for the addresses of what was read.
    faults: Vec<usize>,
    /// What could not be served yet.
    deferred: Vec<Fault>,
    /// What could not be read yet.
    unread: Vec<Arc<Client>>,
    /// Memory for what the kernel says of the clients.
    ready: Vec<epoll::Event>,
    /// When a client had something to tell last.
    last_read: Instant,
}

impl Worker<'_> {
    /// Does what is next; whether there may be more.
    fn turn(&mut self) -> bool {
        let shared = self.shared;
        match shared.turns.next(self.number, !self.has_more()) {
            Next::Serve(fault) => {
                self.serve(fault);
                return true;
            }
            Next::Poll => {
                self.wait();
                shared.turns.begin();
                for at in 0..self.ready.len() {
                    if let Some(client) = shared.client(self.ready[at].data.u64()) {
                        self.read(&client, HELD_UP);
                    }
                }
            }
            Next::Nothing => thread::sleep(SOON),
            Next::Over => return false,
        }
        for client in std::mem::take(&mut self.unread) {
            self.read(&client, NO_LONGER);
        }
        for fault in std::mem::take(&mut self.deferred) {
            self.begin(fault);
        }
        true
    }

    /// Whether there is something that it could not do yet.
    fn has_more(&self) -> bool {
        !self.deferred.is_empty() || !self.unread.is_empty()
    }

    /// Waits until clients have something to tell.
    fn wait(&mut self) {
        let soon = Timespec { tv_sec: 0, tv_nsec: SOON.subsec_nanos().into() };
        let spin_until = self.last_read + self.shared.options.spin;
        loop {
            let is_spinning = !self.has_more() && Instant::now() < spin_until;
            let most = match (is_spinning, self.has_more()) {
                (true, _) => Some(&Timespec { tv_sec: 0, tv_nsec: 0 }),
                (false, true) => Some(&soon),
                (false, false) => None,
            };
            self.ready.clear();
            // Interrupted is as good as nothing.
            let _ = epoll::wait(&self.shared.epoll, spare_capacity(&mut self.ready), most);
            if !is_spinning || !self.ready.is_empty() {
                return;
            }
        }
    }

    /// Serves a fault that was begun. While the kernel refuses that, what it has to tell of the
    /// client is read, and the thread that has raised it goes on soon; if not, the fault is served
    /// later.
    fn serve(&mut self, fault: Fault) {
        let client = Arc::clone(&fault.client);
        let mut until = None;
        while !self.shared.serve(&fault) {
            let now = Instant::now();
            if now >= *until.get_or_insert(now + PROMPT) {
                client.end_serving();
                return self.deferred.push(fault);
            }
            let Heard { first, is_all } = self.hear(&client, HELD_UP);
            self.shared.turns.leave(first.into_iter());
            if !is_all {
                self.shared.remind(&client);
            }
            thread::yield_now();
        }
        if client.has_rest() {
            self.shared.turns.hand_over(self.number);
            client.fill_rest(fault.addr);
        }
        client.end_serving();
    }

    /// Serves a fault, or leaves it to those that serve others of its client.
    fn begin(&mut self, fault: Fault) {
        if fault.begin() {
            self.serve(fault);
        } else {
            self.shared.turns.leave([fault].into_iter());
        }
    }

    /// Reads and serves what a client has to tell: all of it, or as much as leaves time for others.
    fn read(&mut self, client: &Arc<Client>, patience: Duration) {
        for _ in 0..IN_A_ROW {
            // RELAXED: it is looked at again and again.
            if self.shared.is_over.load(Relaxed) {
                return;
            }
            let Heard { first, is_all } = self.hear(client, patience);
            if let Some(fault) = first {
                self.last_read = fault.since;
                self.begin(fault);
                while let Some(fault) = self.shared.turns.left() {
                    self.serve(fault);
                }
            }
            if is_all {
                // What comes from now on is told of by an edge.
                return;
            }
        }
        self.shared.remind(client);
    }

    /// Reads some of what a client has to tell, if its fills end in time. The first fault is the
    /// caller's to serve, others are left to whoever has time.
    fn hear(&mut self, client: &Arc<Client>, patience: Duration) -> Heard {
        self.faults.clear();
        let mut children = Vec::new();
        let read = for_client(client.id, || {
            client.read(patience, &mut self.ring, &mut self.faults, &mut children)
        });
        let since = Instant::now();
        for child in children {
            self.shared.adopt(client, child);
        }
        let is_all = match read {
            Ok(Some(is_more)) => !is_more,
            Ok(None) => {
                self.unread.push(Arc::clone(client));
                true
            }
            Err(failure) => {
                self.shared.fail(client, failure);
                // What can be read, is: faults are poisoned then.
                self.faults.is_empty()
            }
        };
        let most = self.shared.most_of_one();
        let fault = |&addr: &usize| Fault { client: Arc::clone(client), addr, since, most };
        let mut faults = self.faults.iter().map(fault);
        let first = faults.next();
        self.shared.turns.leave(faults);
        Heard { first, is_all }
    }
}

/// What was read of a client's messages.
struct Heard {
    first: Option<Fault>,
    /// There were no more, or they cannot be read now.
    is_all: bool,
}

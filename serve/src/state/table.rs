//! All that a daemon knows, where who comes after its process finds it: clients, connections,
//! descriptors by their numbers.
//!
//! Pages of words: a head, [`RINGS`] rings of which each thread that reads messages has one, and
//! [`ENTRIES`] entries, eight in a page; pages that are not used take no memory.
//! Each word is stored by one thread at a time: a ring's by its thread, an entry's by who makes or
//! ends it, the head's by the thread of the daemon. What an entry says holds while its first word
//! is not 0.
#![allow(clippy::disallowed_types, reason = "numbers and a decision that guard no memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::VERSION;
use super::journal::Damaged;
use super::memory::{Memory, PAGE};
use super::record::{once, sum, twice};
use super::store::Store;
use crate::failure::Failure;
use crate::stats::{COUNTERS, Counters, Stats};
use crate::steps::step;

// Words of the head.
const MAGIC: u64 = 0x5442_5652_4550_0000;
/// So many rings were used at most, twice.
const USED_RINGS: usize = 1;
/// So many entries were used at the same time at most, twice: later ones never were.
const USED: usize = 8;
/// How many numbers were given to clients, and to connections, twice each.
const NUMBERS: usize = 9;
/// How the last process has died.
const DEATH: usize = 11;
/// The client of which the thread took care by which the process has died.
const CULPRIT: usize = 12;
/// How many processes have begun.
const PROCESSES: usize = 13;
/// How it has ended.
const END: usize = 14;
/// How often all of this was given to another program that had asked for it.
const GIVEN: usize = 15;
/// The number of the giving by which this program has it; 0 if it has made it.
const GIVING: usize = 33;
/// How many processes have not died, but have ended so that another program has all of this.
const HANDED: usize = 34;
/// Who asks for all of this: a descriptor and one more, 0 for nobody; in the upper half, the number
/// of that giving, once it has begun.
const ASKED: usize = 32;

/// What [`END`] says: one of these, with a code in the lowest byte, or with the number of a giving
/// in the upper half. All else is damage, and nothing has ended.
const OVER: u64 = 0x4F56_4500;
const ENDED: u64 = 0x454E_4400;
/// All of this is another program's.
const LET_GO: u64 = 0x474F_4E00;
/// Another program has asked for all of this, and does not wait any more.
const WAITS_NO_MORE: u64 = 0x5741_4900;
/// What the daemon has counted: three words, and one for each counter of clients that have gone.
const COUNTED: usize = 16;
/// So many numbers the daemon counts itself.
const OWN: usize = 3;

/// Rings that there is space for.
const RINGS: usize = 1024;
/// Entries that there is space for.
const ENTRIES: usize = 1 << 16;
/// The first word of the rings.
const FIRST_RING: usize = PAGE;
/// The first word of the entries.
const FIRST_ENTRY: usize = FIRST_RING + RINGS * PAGE;
const WORDS: usize = FIRST_ENTRY + ENTRIES * ENTRY;

/// Words of an entry.
const ENTRY: usize = 64;
// Words of an entry. Those up to `HEAD` do not change while it is used.
const NUMBER: usize = 0;
const KIND: usize = 1;
const DESCRIPTORS: usize = 2;
const PARENT: usize = 3;
const OWNER: usize = 4;
const SOURCE: usize = 5;
const PEER: usize = 6;
const USER: usize = 7;
const SPARSE: usize = 8;
const HEAD: usize = 9;
const ENTRY_SUM: usize = 9;
/// The descriptor of the journal, or of the inbox.
const FILE: usize = 10;
const FAILURE: usize = 11;
const FAILURE_OF: usize = 12;
const TOLD: usize = 13;
const BLAMED: usize = 14;
const MARK: usize = 15;
/// Not 0 while it is no damage that the number is 0.
const FREE: usize = 16;
/// As which of all that are in the daemon's own numbers it is counted, from 1 on; in the lowest
/// byte, in which number.
const COUNTED_AS: usize = 17;
const ENTRY_COUNTERS: usize = 32;

/// Numbers of connections are larger.
pub(crate) const CONNECTIONS: u64 = 1 << 32;

const CLIENT: u64 = 1;
const CONNECTION: u64 = 2;

/// What [`TOLD`] says; 0 before.
const COUNTED_ONLY: u64 = 1;
const ALL_TOLD: u64 = 2;

/// What is known of a client or a connection, and does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) kind: Kind,
    /// Of its userfaultfd, or its socket.
    pub(crate) descriptor: i32,
    /// Of the peer's process; -1 if there is none.
    pub(crate) pidfd: i32,
    /// The client that has forked it, or 0.
    pub(crate) parent: u64,
    /// What the daemon knows it by: its connection, for a client; a task, above 32 bits.
    pub(crate) owner: u64,
    /// Which of the daemon's sources its bytes are in.
    pub(crate) source: u64,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) is_sparse: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Client,
    Connection,
}

impl Entry {
    fn to_words(&self) -> [u64; HEAD] {
        let half = |number: i32| u64::from(number.cast_unsigned());
        let mut words = [0; HEAD];
        words[NUMBER] = self.number;
        words[KIND] = match self.kind {
            Kind::Client => CLIENT,
            Kind::Connection => CONNECTION,
        };
        words[DESCRIPTORS] = half(self.descriptor) | half(self.pidfd) << 32;
        words[PARENT] = self.parent;
        words[OWNER] = self.owner;
        words[SOURCE] = self.source;
        words[PEER] = self.pid.into();
        words[USER] = u64::from(self.uid) | u64::from(self.gid) << 32;
        words[SPARSE] = self.is_sparse.into();
        words
    }

    fn of_words(words: [u64; HEAD]) -> Option<Self> {
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let [descriptor, pidfd] = halves(words[DESCRIPTORS]).map(u32::cast_signed);
        let [uid, gid] = halves(words[USER]);
        let entry = Self {
            number: words[NUMBER],
            kind: match words[KIND] {
                CLIENT => Kind::Client,
                CONNECTION => Kind::Connection,
                _ => return None,
            },
            descriptor,
            pidfd,
            parent: words[PARENT],
            owner: words[OWNER],
            source: words[SOURCE],
            pid: u32::try_from(words[PEER]).ok()?,
            uid,
            gid,
            is_sparse: words[SPARSE] != 0,
        };
        (entry.to_words() == words).then_some(entry)
    }
}

/// The table.
pub(crate) struct Table {
    memory: Memory,
    /// Entries that are not used, and how many were at all.
    free: Mutex<Free>,
    is_kept: bool,
    /// How many rings are to be used.
    rings: usize,
    /// Who keeps descriptors when all processes die.
    store: OnceLock<Store>,
    /// The first of the last numbers that descriptors can have, of which peers get none.
    last: Option<i32>,
}

/// Descriptors that peers are not given: what changes of clients may take a file more.
const ROOM: u64 = 8;

#[derive(Default)]
struct Free {
    entries: Vec<usize>,
    used: usize,
    /// See [`NUMBERS`].
    numbers: [u64; 2],
}

impl Table {
    /// A table for so many threads that read; in a file, if `is_kept`.
    ///
    /// # Errors
    ///
    /// The kernel's: there is no memory, or so much may not be locked. Threads are too many.
    pub(crate) fn new(threads: usize, is_kept: bool) -> io::Result<Arc<Self>> {
        let memory = if is_kept { Memory::of_file(WORDS)? } else { Memory::of_process(WORDS)? };
        memory.store(USED_RINGS, twice(threads.min(RINGS)));
        for word in [USED, NUMBERS, NUMBERS + 1] {
            memory.store(word, twice(0));
        }
        let table = Self::of(memory, threads, is_kept)?;
        table.store(0, MAGIC | u64::from(VERSION));
        Ok(table)
    }

    /// The table that another program has left in a file, for so many threads that read. It is that
    /// one's as long as this does not [begin](Self::begin_anew), and not changed before.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new); `InvalidData` if it is of another version, or none.
    pub(crate) fn left_in(file: OwnedFd, threads: usize) -> io::Result<Arc<Self>> {
        let memory = Memory::left_in(file)?;
        if memory.len() != WORDS || memory.load(0) != MAGIC | u64::from(VERSION) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Damaged::Version.to_string()));
        }
        Self::of(memory, threads, true)
    }

    fn of(memory: Memory, threads: usize, is_kept: bool) -> io::Result<Arc<Self>> {
        let used = once(memory.load(USED_RINGS)).ok_or(io::ErrorKind::InvalidData)?;
        let rings = threads.max(used);
        if rings > RINGS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let words = FIRST_RING + rings * PAGE;
        memory.have(0, words)?;
        let (free, store) = (Mutex::default(), OnceLock::new());
        // Asked for now: in a sandbox it cannot be.
        let most = if is_kept { getrlimit(Resource::Nofile).current } else { None };
        let last = most.and_then(|most| i32::try_from(most.checked_sub(ROOM)?).ok());
        let table = Self { memory, free, is_kept, rings, store, last };
        if is_kept {
            table.lock()?;
        }
        Ok(Arc::new(table))
    }

    /// Has the rings always in the memory of this process: the kernel writes them also for a thread
    /// that is being killed, which waits for no page.
    ///
    /// # Errors
    ///
    /// So much may not be locked.
    pub(crate) fn lock(&self) -> io::Result<()> {
        let words = FIRST_RING + self.rings * PAGE;
        self.memory.lock(0, words).map_err(|error| {
            let bytes = words * size_of::<u64>();
            io::Error::other(format!("{bytes} bytes cannot be locked in memory ({error})"))
        })
    }

    /// So many rings are used from now on.
    fn note_rings(&self) {
        self.store(USED_RINGS, twice(self.rings));
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn load(&self, word: usize) -> u64 {
        self.memory.load(word)
    }

    pub(super) fn store(&self, word: usize, value: u64) {
        self.memory.store(word, value);
    }

    /// Has a service manager keep this, and all descriptors that are noted from now on.
    pub(crate) fn keep_in(&self, store: Store) {
        if let Some(file) = self.file() {
            store.put_table(file);
        }
        // It is not there yet.
        let _ = self.store.set(store);
    }

    /// Its file, if it is kept.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.memory.file()
    }

    /// An error if a peer would take one of the last descriptors that there can be, where this
    /// outlives the process.
    pub(crate) fn leaves_room(&self) -> io::Result<()> {
        let (Some(file), Some(last)) = (self.file(), self.last) else { return Ok(()) };
        // With the lowest number that is free from there on: another one is used up to the end.
        match rustix::io::fcntl_dupfd_cloexec(file, last)?.as_raw_fd() == last {
            true => Ok(()),
            false => Err(Errno::MFILE.into()),
        }
    }

    /// Whether it outlives this process.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// How many rings were used, or are; if that is damaged, all that may have been.
    fn used_rings(&self) -> usize {
        once(self.load(USED_RINGS)).map_or(RINGS, |used| used.min(RINGS))
    }

    /// The first words of the pages of rings that were used, or are.
    pub(super) fn rings(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.used_rings()).map(|number| FIRST_RING + number * PAGE)
    }

    /// A number that no other one has had: of clients from 1 on, of connections from
    /// [`CONNECTIONS`] on.
    pub(crate) fn new_number(&self, kind: Kind) -> u64 {
        let (at, more) = match kind {
            Kind::Client => (0, 0),
            Kind::Connection => (1, CONNECTIONS),
        };
        let mut free = self.free();
        free.numbers[at] += 1;
        self.store(NUMBERS + at, twice(free.numbers[at] as usize));
        free.numbers[at] + more
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a client or a connection, with the descriptor of its journal or inbox; -1 for none.
    ///
    /// # Errors
    ///
    /// When there are too many, or there is no memory.
    pub(crate) fn add(self: &Arc<Self>, entry: &Entry, file: i32) -> io::Result<Slot> {
        self.add_failed(entry, file, None)
    }

    /// As [`add`](Self::add), with why it cannot be served, if so.
    pub(crate) fn add_failed(
        self: &Arc<Self>,
        entry: &Entry,
        file: i32,
        failure: Option<&Failure>,
    ) -> io::Result<Slot> {
        let mut free = self.free();
        let at = match free.entries.pop() {
            Some(at) => at,
            None if free.used < ENTRIES => {
                let at = FIRST_ENTRY + free.used * ENTRY;
                self.memory.have(at, ENTRY)?;
                self.store(at + FREE, 1);
                free.used += 1;
                self.store(USED, twice(free.used));
                at
            }
            None => return Err(io::ErrorKind::StorageFull.into()),
        };
        drop(free);
        let words = entry.to_words();
        for word in (HEAD..ENTRY).filter(|&word| word != FREE) {
            self.store(at + word, 0);
        }
        for (word, &value) in words.iter().enumerate().skip(1) {
            self.store(at + word, value);
        }
        self.store(at + ENTRY_SUM, sum(words));
        self.store(at + FILE, twice(file.cast_unsigned() as usize));
        let slot = Slot { table: Arc::clone(self), at };
        if let Some(failure) = failure {
            slot.fail(failure);
        }
        if let Some(store) = self.store.get() {
            [entry.descriptor, entry.pidfd, file].into_iter().for_each(|number| store.put(number));
        }
        // From here on it is noted.
        self.store(at + NUMBER, words[NUMBER]);
        self.store(at + FREE, 0);
        Ok(slot)
    }

    /// All that another process has left; to be called before anything is added.
    pub(crate) fn left(self: &Arc<Self>) -> Vec<(Slot, Result<Entry, Damaged>)> {
        let mut free = self.free();
        // If that is damaged, all that may have been; those that were not are zeros.
        let used = once(self.load(USED)).filter(|&used| used <= ENTRIES);
        free.used = used.unwrap_or(ENTRIES);
        free.entries.clear();
        free.numbers = [0, 1].map(|kind| once(self.load(NUMBERS + kind)).unwrap_or(0) as u64);
        let mut left = Vec::new();
        for number in 0..free.used {
            let at = FIRST_ENTRY + number * ENTRY;
            let words = std::array::from_fn(|word| self.load(at + word));
            let was_used = used.is_some() || self.load(at + ENTRY_SUM) != 0;
            if words[NUMBER] == 0 && (self.load(at + FREE) != 0 || !was_used) {
                free.entries.push(at);
                continue;
            }
            let is_whole = self.load(at + ENTRY_SUM) == sum(words);
            let entry = Entry::of_words(words).filter(|_| is_whole);
            if let Some(Entry { number, kind, .. }) = entry {
                // Also if that is damaged, none of those that are there gets it again.
                let numbers = &mut free.numbers[usize::from(kind == Kind::Connection)];
                *numbers = (*numbers).max(u64::from(number as u32));
            }
            let slot = Slot { table: Arc::clone(self), at };
            if slot.counted().is_none() {
                // It was about to be, perhaps, as the one that is counted next.
                slot.store(COUNTED_AS, 0);
            }
            left.push((slot, entry.ok_or(Damaged::Sum)));
        }
        left
    }

    /// What the daemon has counted: three numbers of its own, and of clients that have gone.
    pub(crate) fn counted(&self) -> ([u64; OWN], Stats) {
        let gone = std::array::from_fn(|count| self.load(COUNTED + OWN + count));
        (self.own(), Stats::of_words(gone))
    }

    fn own(&self) -> [u64; OWN] {
        std::array::from_fn(|count| self.load(COUNTED + count))
    }

    /// One more in one of the daemon's own numbers, of which there is no entry.
    pub(crate) fn count(&self, what: usize) {
        self.store(COUNTED + what, self.own()[what].wrapping_add(1));
    }

    /// How many are counted, of all kinds.
    fn all_counted(&self) -> u64 {
        self.own().into_iter().fold(0, u64::wrapping_add)
    }

    pub(crate) fn set_gone(&self, gone: Stats) {
        for (count, value) in gone.to_words().into_iter().enumerate() {
            self.store(COUNTED + OWN + count, value);
        }
    }

    /// One more process begins with it: how many there were before, how the last one has ended, and
    /// the client that its dying thread took care of, or 0.
    pub(crate) fn begin(&self) -> (u64, u64, u64) {
        let (before, death, culprit) = (self.load(PROCESSES), self.load(DEATH), self.load(CULPRIT));
        self.store(CULPRIT, 0);
        self.store(PROCESSES, before + 1);
        (before, death, culprit)
    }

    /// A process is about to end, or has ended, so that another program has all of this.
    pub(crate) fn note_handed(&self) {
        self.store(HANDED, self.load(HANDED).wrapping_add(1));
    }

    /// How many have done so.
    pub(crate) fn handed(&self) -> u64 {
        self.load(HANDED)
    }

    /// There is nothing to be served any more: what the daemon owns is dropped from now on.
    pub(crate) fn note_over(&self) {
        self.store(END, OVER);
    }

    /// A process has come to its end, with this code.
    pub(crate) fn note_end(&self, code: u8) {
        self.store(END, ENDED | u64::from(code));
    }

    /// Another program is about to be given all of this, for the time of this number: later ones
    /// are larger.
    pub(crate) fn new_giving(&self) -> u32 {
        self.memory.count(GIVEN) as u32
    }

    /// Notes that all of this is the program's that was given it, unless that [waits no
    /// more](Self::waits_no_more). Whether that is so.
    pub(crate) fn let_go(&self, giving: u32) -> bool {
        let of_this = |kind: u64| kind | u64::from(giving) << 32;
        self.decide(of_this(LET_GO), |end| end != of_this(WAITS_NO_MORE))
    }

    /// Notes that this program waits no more for what it was given, unless the other one has [let
    /// go](Self::let_go) of it. Whether it is not this program's.
    pub(crate) fn waits_no_more(&self, giving: u32) -> bool {
        let of_this = |kind: u64| kind | u64::from(giving) << 32;
        // If a later one does not wait, or was given it, nobody looks for this one any more.
        let is_open =
            |end| end == 0 || end as u32 == WAITS_NO_MORE as u32 && end >> 32 < giving.into();
        self.decide(of_this(WAITS_NO_MORE), is_open) || self.load(END) != of_this(LET_GO)
    }

    /// Stores what [`END`] is to say, in place of what it may: whether that is so.
    fn decide(&self, wanted: u64, may: impl Fn(u64) -> bool) -> bool {
        let [end] = self.memory.counters(END);
        // RELAXED: it decides, and guards nothing: all else was noted before the last message of
        // the connection by which both programs know of each other.
        end.fetch_update(Relaxed, Relaxed, |end| may(end).then_some(wanted)).is_ok()
    }

    /// Whether there is nothing to be served any more, and with which code that has ended; `None`
    /// if it was not said.
    pub(crate) fn end(&self) -> Option<Option<u8>> {
        let end = self.load(END);
        match end & !0xFF {
            OVER => Some(None),
            ENDED => Some(Some(end as u8)),
            _ if end as u32 == LET_GO as u32 => Some(Some(0)),
            _ => None,
        }
    }

    /// Another program asks for all of this, by a connection with this descriptor; -1 for none. It
    /// is being given it, for the time of a number.
    pub(crate) fn note_asked(&self, connection: i32, giving: Option<u32>) {
        let number = u64::from(connection.wrapping_add(1).cast_unsigned());
        self.store(ASKED, number | u64::from(giving.unwrap_or(0)) << 32);
    }

    pub(crate) fn asked(&self) -> Option<(i32, Option<u32>)> {
        let asked = self.load(ASKED);
        let number = (asked as u32).checked_sub(1)?;
        Some((number.cast_signed(), Some((asked >> 32) as u32).filter(|&giving| giving != 0)))
    }

    /// This program has all of it now, by this giving.
    pub(crate) fn begin_anew(&self, giving: u32) {
        self.note_rings();
        self.note_asked(-1, None);
        self.note_death(0);
        // First: who has let go looks at both.
        self.store(GIVING, giving.into());
        self.store(END, 0);
    }

    /// By which giving a program has all of it; 0 if it has made it.
    pub(crate) fn giving(&self) -> u64 {
        self.load(GIVING)
    }

    /// Whether its head says what it should.
    pub(crate) fn is_whole(&self) -> bool {
        let is_count = |word, most| once(self.load(word)).is_some_and(|count| count <= most);
        self.load(0) == MAGIC | u64::from(VERSION)
            && is_count(USED_RINGS, RINGS)
            && is_count(USED, ENTRIES)
            && [NUMBERS, NUMBERS + 1].into_iter().all(|word| is_count(word, usize::MAX))
    }

    /// How a process has died.
    pub(crate) fn note_death(&self, death: u64) {
        self.store(DEATH, death);
    }

    /// A thread dies that takes care of a client. From a signal handler.
    pub(crate) fn note_culprit(&self, client: u64) {
        self.store(CULPRIT, client);
    }
}

/// An entry that is used, until it is [freed](Self::free).
pub(crate) struct Slot {
    table: Arc<Table>,
    at: usize,
}

impl Slot {
    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn load(&self, word: usize) -> u64 {
        self.table.load(self.at + word)
    }

    fn store(&self, word: usize, value: u64) {
        self.table.store(self.at + word, value);
    }

    /// The descriptor of its journal or inbox; -1 if there is none.
    pub(crate) fn file(&self) -> i32 {
        // A damaged one is no descriptor's, and not none.
        once(self.load(FILE)).map_or(i32::MIN, |file| (file as u32).cast_signed())
    }

    /// Another file takes the place of its journal or inbox, which can be closed then.
    pub(crate) fn set_file(&self, file: i32) {
        if let Some(store) = self.table.store.get() {
            store.put(file);
            store.remove(self.file());
        }
        self.store(FILE, twice(file.cast_unsigned() as usize));
    }

    /// It cannot be served any more.
    pub(crate) fn fail(&self, failure: &Failure) {
        let (kind, of) = failure.to_words();
        self.store(FAILURE_OF, of);
        self.store(FAILURE, kind);
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        Failure::of_words(self.load(FAILURE), self.load(FAILURE_OF))
    }

    /// What the daemon has marked it with; 0 at first.
    pub(crate) fn mark(&self) -> u64 {
        self.load(MARK)
    }

    pub(crate) fn set_mark(&self, mark: u64) {
        self.store(MARK, mark);
    }

    /// Counts it in one of the daemon's own numbers, if that was not done: once, whatever processes
    /// die.
    ///
    /// It is noted first as which of all it is counted, and that holds once there are as many: who
    /// finds that there are not counts it again.
    pub(crate) fn count(&self, what: usize) {
        if self.counted().is_some() {
            return;
        }
        let as_which = self.table.all_counted().wrapping_add(1);
        self.store(COUNTED_AS, as_which << 8 | what as u64);
        step();
        self.table.count(what);
        step();
    }

    /// In which of the daemon's own numbers it is counted.
    pub(crate) fn counted(&self) -> Option<usize> {
        let noted = self.load(COUNTED_AS);
        let (as_which, what) = (noted >> 8, (noted & 0xFF) as usize);
        (1..=self.table.all_counted()).contains(&as_which).then_some(what)
    }

    /// Its failure is counted, and in the log.
    pub(crate) fn note_counted(&self) {
        self.store(TOLD, COUNTED_ONLY);
    }

    pub(crate) fn was_counted(&self) -> bool {
        self.load(TOLD) != 0
    }

    /// Who wants to know has been told of its failure as well.
    pub(crate) fn note_told(&self) {
        self.store(TOLD, ALL_TOLD);
    }

    pub(crate) fn was_told(&self) -> bool {
        self.load(TOLD) > COUNTED_ONLY
    }

    /// A process has died of it; how often.
    pub(crate) fn blame(&self) -> u64 {
        let blamed = self.load(BLAMED) + 1;
        self.store(BLAMED, blamed);
        blamed
    }

    pub(crate) fn counters(&self) -> Counters<'_> {
        Counters::of(self.table.memory.counters::<COUNTERS>(self.at + ENTRY_COUNTERS))
    }

    /// It is used no more; its descriptors can be closed then. Once.
    pub(crate) fn free(&self) {
        if let Some(store) = self.table.store.get() {
            let descriptors = self.load(DESCRIPTORS);
            for number in [descriptors as u32, (descriptors >> 32) as u32] {
                store.remove(number.cast_signed());
            }
            store.remove(self.file());
        }
        self.store(FREE, 1);
        self.store(NUMBER, 0);
        self.table.free().entries.push(self.at);
    }
}

#[cfg(test)]
impl Table {
    /// From now on there are too many, until another process takes what was left.
    pub(crate) fn fill(&self) {
        let mut free = self.free();
        (free.entries, free.used) = (Vec::new(), ENTRIES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::descriptors::Descriptors;

    fn entry(number: u64) -> Entry {
        Entry {
            number,
            kind: Kind::Client,
            descriptor: 17,
            pidfd: -1,
            parent: 2,
            owner: 3 << 32 | 4,
            source: 5,
            pid: 6,
            uid: 7,
            gid: u32::MAX,
            is_sparse: true,
        }
    }

    fn left(table: &Arc<Table>) -> Vec<Result<Entry, Damaged>> {
        table.left().into_iter().map(|(_, entry)| entry).collect()
    }

    #[test]
    fn what_is_added_is_found_until_it_is_freed() {
        let table = Table::new(1, false).unwrap();
        let connection = Entry { kind: Kind::Connection, ..entry(CONNECTIONS + 1) };
        let slots = [entry(1), connection.clone(), entry(2)].map(|entry| table.add(&entry, 7));
        assert_eq!(left(&table), [Ok(entry(1)), Ok(connection), Ok(entry(2))]);
        slots[1].as_ref().unwrap().free();
        assert_eq!(left(&table), [Ok(entry(1)), Ok(entry(2))]);
        let again = table.add(&entry(3), -1).unwrap();
        assert_eq!(left(&table), [Ok(entry(1)), Ok(entry(3)), Ok(entry(2))], "in its place");
        assert_eq!((again.file(), again.mark(), again.failure()), (-1, 0, None));
    }

    #[test]
    fn what_was_about_to_be_counted_is_counted_later_and_nothing_twice() {
        let table = Table::new(1, false).unwrap();
        let slots = [1, 2, 3].map(|number| table.add(&entry(number), 7).unwrap());
        let counted = || slots.each_ref().map(Slot::counted);
        slots[0].count(2);
        slots[0].count(1);
        assert_eq!((table.own(), counted()), ([0, 0, 1], [Some(2), None, None]));
        // A process dies within this.
        slots[1].store(COUNTED_AS, 2 << 8);
        assert_eq!(counted(), [Some(2), None, None]);
        left(&table);
        slots[2].count(1);
        assert_eq!((table.own(), counted()), ([0, 1, 1], [Some(2), None, Some(1)]));
        slots[1].count(0);
        assert_eq!((table.own(), counted()), ([1, 1, 1], [Some(2), Some(0), Some(1)]));
        // Another one has the entry.
        slots[1].free();
        assert_eq!(table.add(&entry(4), 7).unwrap().counted(), None);
    }

    #[test]
    fn each_bit_of_an_entry_that_is_damaged_is_found() {
        let table = Table::new(1, false).unwrap();
        // No bit of its number makes it one that is not used.
        let slot = table.add(&entry(3), 7).unwrap();
        for bit in 0..=ENTRY_SUM * 64 + 63 {
            let (word, flip) = (slot.at + bit / 64, 1 << (bit % 64));
            table.store(word, table.load(word) ^ flip);
            assert_eq!(left(&table), [Err(Damaged::Sum)], "bit {bit}");
            table.store(word, table.load(word) ^ flip);
        }
        assert_eq!(left(&table), [Ok(entry(3))]);
    }

    #[test]
    fn nothing_is_lost_if_it_is_damaged_how_much_there_is() {
        let table = Table::new(2, false).unwrap();
        table.add(&entry(3), 7).unwrap();
        for damaged in [0, 1 << 32, u64::MAX, twice(u32::MAX as usize), 0x8000_0000_0000_0001] {
            if damaged != 0 {
                table.store(USED, damaged);
                table.store(USED_RINGS, damaged);
            }
            assert_eq!(left(&table), [Ok(entry(3))], "{damaged:#x}");
            assert_eq!(table.is_whole(), damaged == 0, "{damaged:#x}");
            assert!(table.rings().count() >= 2, "{damaged:#x}");
            assert!(table.rings().all(|ring| ring + PAGE <= FIRST_ENTRY), "{damaged:#x}");
        }
    }

    #[test]
    fn what_is_zeros_is_damaged() {
        let table = Table::new(1, true).unwrap();
        let slots = [3, 4].map(|number| table.add(&entry(number), 7).unwrap());
        (0..ENTRY).for_each(|word| slots[0].store(word, 0));
        assert_eq!(left(&table), [Err(Damaged::Sum), Ok(entry(4))]);
        assert_eq!(slots[0].file(), i32::MIN);
        assert!(table.is_whole());
        for word in [0, USED_RINGS, USED, NUMBERS, NUMBERS + 1] {
            let before = table.load(word);
            table.store(word, 0);
            assert!(!table.is_whole(), "word {word}");
            table.store(word, before);
        }
        // Of those that are there, none has the next number.
        table.store(NUMBERS, 0);
        assert_eq!(left(&table).len(), 2);
        assert_eq!(table.new_number(Kind::Client), 5);
    }

    #[test]
    fn a_descriptor_that_is_none_is_not_there() {
        let table = Table::new(1, false).unwrap();
        for descriptor in [-1, i32::MIN, i32::MAX, 1 << 20] {
            let slot = table.add(&Entry { descriptor, ..entry(3) }, descriptor).unwrap();
            let found = left(&table).remove(0).unwrap();
            assert_eq!((found.descriptor, slot.file()), (descriptor, descriptor));
            assert!(Descriptors::default().take(found.descriptor).is_none());
            slot.free();
        }
    }

    #[test]
    fn a_table_of_another_program_is_refused() {
        let words = |version: u64, words: usize| {
            let memory = Memory::of_file(words).unwrap();
            memory.store(0, version);
            memory.store(USED_RINGS, twice(1));
            Table::left_in(memory.file().unwrap().try_clone_to_owned().unwrap(), 1)
        };
        let this = MAGIC | u64::from(VERSION);
        assert!(words(this, WORDS).is_ok());
        for bit in 0..64 {
            let other = words(this ^ 1 << bit, WORDS).err().map(|error| error.kind());
            assert_eq!(other, Some(io::ErrorKind::InvalidData), "bit {bit}");
        }
        assert!(words(this, WORDS - PAGE).is_err(), "it has less space");
        assert!(words(this, PAGE).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Table::left_in(file.into(), 1).is_err());
    }

    /// Who has it in the end, after steps of the program that has all of it (0), and gives it to
    /// two others one after the other; of these (1, 2), which look
    /// whether they have it and go on; and of the first one's keeper (3), which looks whether that
    /// has it still. `None` if these steps cannot be made in this order.
    fn owner(order: &[usize], lets_go_of_first: bool) -> Option<usize> {
        let table = Table::new(1, false).unwrap();
        let (mut givings, mut done) = (Vec::new(), [0; 4]);
        let (mut owner, mut has_looked) = (0, [false; 3]);
        for &who in order {
            done[who] += 1;
            match (who, done[who]) {
                (0, 1 | 3) if owner == 0 => givings.push(table.new_giving()),
                (0, 2 | 4) if owner == 0 => {
                    let to = givings.len();
                    // Or the time of that is over.
                    if (lets_go_of_first || to == 2) && table.let_go(givings[to - 1]) {
                        assert!(!has_looked[to], "it is nobody's: {order:?}");
                        owner = to;
                    } else if to == 2 {
                        assert!(has_looked[to], "it waits: {order:?}");
                    }
                }
                (1 | 2, 1) => {
                    has_looked[who] = true;
                    let has_it = !table.waits_no_more(*givings.get(who - 1)?);
                    assert_eq!(has_it, owner == who, "{who} is wrong: {order:?}");
                }
                (1 | 2, 2) if owner == who => table.begin_anew(givings[who - 1]),
                (3, _) => {
                    let is_over = table.end().is_some() || table.giving() != 0;
                    assert_eq!(is_over, owner != 0, "its keeper is wrong: {order:?}");
                }
                _ => return None,
            }
        }
        Some(owner)
    }

    #[test]
    fn of_programs_that_take_over_one_has_all() {
        let mut ends = [0; 3];
        let mut orders = vec![Vec::new()];
        while let Some(order) = orders.pop() {
            for (who, steps) in [(0, 4), (1, 2), (2, 2), (3, 1)] {
                if order.iter().filter(|&&other| other == who).count() < steps {
                    orders.push([&order[..], &[who]].concat());
                }
            }
            for lets_go_of_first in [false, true] {
                if let Some(owner) = owner(&order, lets_go_of_first) {
                    ends[owner] += 1;
                }
            }
        }
        assert!(ends.iter().all(|&count| count > 0), "{ends:?}");
    }

    #[test]
    fn no_bit_that_is_damaged_ends_it() {
        let table = Table::new(1, false).unwrap();
        for bit in 0..64 {
            table.store(END, 1 << bit);
            assert_eq!(table.end(), None, "bit {bit}");
        }
        table.note_over();
        assert_eq!(table.end(), Some(None));
        table.note_end(7);
        assert_eq!(table.end(), Some(Some(7)));
        table.begin_anew(2);
        assert!(table.let_go(3));
        assert_eq!(table.end(), Some(Some(0)));
    }

    #[test]
    fn there_are_no_more_rings_than_there_is_space_for() {
        assert!(Table::new(RINGS, false).is_ok());
        assert!(Table::new(RINGS + 1, false).is_err());
        let table = Table::new(3, true).unwrap();
        let file = || table.file().unwrap().try_clone_to_owned().unwrap();
        assert_eq!(Table::left_in(file(), 1).unwrap().rings().count(), 3, "they can have batches");
        for damaged in [1, u64::MAX, twice(RINGS + 1)] {
            table.store(USED_RINGS, damaged);
            assert!(Table::left_in(file(), 1).is_err(), "{damaged:#x}");
        }
    }
}

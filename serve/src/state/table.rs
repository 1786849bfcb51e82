//! All that a daemon knows, where who comes after its process finds it: clients, connections,
//! descriptors by their numbers.
//!
//! Pages of words: a head, [`RINGS`] rings of which each thread that reads messages has one, and
//! [`ENTRIES`] entries, eight in a page; pages that are not used take no memory.
//! Each word is stored by one thread at a time: a ring's by its thread, an entry's by who makes or
//! ends it, the head's by the thread of the daemon. What an entry says holds while its first word
//! is not 0.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::VERSION;
use super::journal::Damaged;
use super::memory::{Memory, PAGE};
use super::record::sum;
use super::store::Store;
use crate::failure::Failure;
use crate::stats::{COUNTERS, Counters};

// Words of the head.
const MAGIC: u64 = 0x5442_5652_4550_0000;
/// So many rings were used at most.
const USED_RINGS: usize = 1;
/// So many entries were used at the same time at most: later ones never were.
const USED: usize = 8;
/// How many numbers were given to clients, and to connections.
const NUMBERS: usize = 9;
/// How the last process has died.
const DEATH: usize = 11;
/// The client of which the thread took care by which the process has died.
const CULPRIT: usize = 12;
/// How many processes have begun.
const PROCESSES: usize = 13;
/// How it has ended.
const END: usize = 14;
/// Who asks for all of this: a descriptor and one more; 0 for nobody.
const ASKED: usize = 32;

/// What [`END`] says.
const OVER: u64 = 1 << 8;
const ENDED: u64 = 2 << 8;
/// What the daemon has counted: [`COUNTS`] words.
const COUNTED: usize = 16;

/// Words that a daemon counts by.
pub(crate) const COUNTS: usize = 3 + COUNTERS;

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
const ENTRY_COUNTERS: usize = 32;

/// Numbers of connections are larger.
pub(crate) const CONNECTIONS: u64 = 1 << 32;

const CLIENT: u64 = 1;
const CONNECTION: u64 = 2;

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
    /// Who keeps descriptors when all processes die.
    store: OnceLock<Store>,
}

#[derive(Default)]
struct Free {
    entries: Vec<usize>,
    used: usize,
}

impl Table {
    /// A table for so many threads that read; in a file, if `is_kept`.
    ///
    /// # Errors
    ///
    /// The kernel's: there is no memory, or so much may not be locked. Threads are too many.
    pub(crate) fn new(threads: usize, is_kept: bool) -> io::Result<Arc<Self>> {
        let memory = if is_kept { Memory::of_file(WORDS)? } else { Memory::of_process(WORDS)? };
        let table = Self::of(memory, threads, is_kept)?;
        table.store(0, MAGIC | u64::from(VERSION));
        Ok(table)
    }

    /// The table that another program has left in a file, for so many threads that read.
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
        let rings = threads.max(memory.load(USED_RINGS) as usize);
        if rings > RINGS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let words = FIRST_RING + rings * PAGE;
        memory.have(0, words)?;
        memory.store(USED_RINGS, rings as u64);
        let table = Self { memory, free: Mutex::default(), is_kept, store: OnceLock::new() };
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
        let words = FIRST_RING + self.load(USED_RINGS) as usize * PAGE;
        self.memory.lock(0, words).map_err(|error| {
            let bytes = words * size_of::<u64>();
            io::Error::other(format!("{bytes} bytes cannot be locked in memory ({error})"))
        })
    }

    pub(super) fn memory(&self) -> &Memory {
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

    /// Whether it outlives this process.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// The first words of the pages of rings that were used, or are.
    pub(super) fn rings(&self) -> impl Iterator<Item = usize> + use<> {
        let used = (self.load(USED_RINGS) as usize).min(RINGS);
        (0..used).map(|number| FIRST_RING + number * PAGE)
    }

    /// A number that no other one has had: of clients from 1 on, of connections from
    /// [`CONNECTIONS`] on.
    pub(crate) fn new_number(&self, kind: Kind) -> u64 {
        use std::sync::atomic::Ordering::Relaxed;
        let [clients, connections] = self.memory.counters::<2>(NUMBERS);
        match kind {
            // RELAXED: here and below, a number that guards nothing.
            Kind::Client => clients.fetch_add(1, Relaxed) + 1,
            Kind::Connection => CONNECTIONS + connections.fetch_add(1, Relaxed) + 1,
        }
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
        let mut free = self.free();
        let at = match free.entries.pop() {
            Some(at) => at,
            None if free.used < ENTRIES => {
                let at = FIRST_ENTRY + free.used * ENTRY;
                self.memory.have(at, ENTRY)?;
                free.used += 1;
                self.store(USED, free.used as u64);
                at
            }
            None => return Err(io::ErrorKind::StorageFull.into()),
        };
        drop(free);
        let words = entry.to_words();
        for word in HEAD..ENTRY {
            self.store(at + word, 0);
        }
        for (word, &value) in words.iter().enumerate().skip(1) {
            self.store(at + word, value);
        }
        self.store(at + ENTRY_SUM, sum(words));
        self.store(at + FILE, u64::from(file.cast_unsigned()));
        if let Some(store) = self.store.get() {
            [entry.descriptor, entry.pidfd, file].into_iter().for_each(|number| store.put(number));
        }
        // From here on it is noted.
        self.store(at + NUMBER, words[NUMBER]);
        Ok(Slot { table: Arc::clone(self), at })
    }

    /// All that another process has left; to be called before anything is added.
    pub(crate) fn left(self: &Arc<Self>) -> Vec<(Slot, Result<Entry, Damaged>)> {
        let mut free = self.free();
        free.used = usize::try_from(self.load(USED)).unwrap_or(usize::MAX).min(ENTRIES);
        free.entries.clear();
        let mut left = Vec::new();
        for number in 0..free.used {
            let at = FIRST_ENTRY + number * ENTRY;
            let words = std::array::from_fn(|word| self.load(at + word));
            if words[NUMBER] == 0 {
                free.entries.push(at);
                continue;
            }
            let is_whole = self.load(at + ENTRY_SUM) == sum(words);
            let entry = Entry::of_words(words).filter(|_| is_whole);
            let slot = Slot { table: Arc::clone(self), at };
            left.push((slot, entry.ok_or(Damaged::Sum)));
        }
        left
    }

    /// What the daemon has counted, in its own order.
    pub(crate) fn counted(&self) -> [u64; COUNTS] {
        std::array::from_fn(|count| self.load(COUNTED + count))
    }

    pub(crate) fn set_counted(&self, counted: [u64; COUNTS]) {
        for (count, value) in counted.into_iter().enumerate() {
            self.store(COUNTED + count, value);
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

    /// There is nothing to be served any more: what the daemon owns is dropped from now on.
    pub(crate) fn note_over(&self) {
        self.store(END, OVER);
    }

    /// A process has come to its end, with this code.
    pub(crate) fn note_end(&self, code: u8) {
        self.store(END, ENDED | u64::from(code));
    }

    /// Whether there is nothing to be served any more, and with which code that has ended; `None`
    /// if it was not said.
    pub(crate) fn end(&self) -> Option<Option<u8>> {
        match self.load(END) {
            0 => None,
            OVER => Some(None),
            code => Some(Some(code as u8)),
        }
    }

    /// Another program asks for all of this, by a connection with this descriptor; -1 for none.
    /// Something was sent to it if `was_given`.
    pub(crate) fn note_asked(&self, connection: i32, was_given: bool) {
        let number = u64::from(connection.wrapping_add(1).cast_unsigned());
        self.store(ASKED, number | u64::from(was_given) << 32);
    }

    pub(crate) fn asked(&self) -> Option<(i32, bool)> {
        let asked = self.load(ASKED);
        let number = (asked as u32).checked_sub(1)?;
        Some((number.cast_signed(), asked >> 32 != 0))
    }

    /// This program has all of it now.
    pub(crate) fn begin_anew(&self) {
        self.note_asked(-1, false);
        self.note_death(0);
        self.store(END, 0);
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
        (self.load(FILE) as u32).cast_signed()
    }

    /// Another file takes the place of its journal or inbox, which can be closed then.
    pub(crate) fn set_file(&self, file: i32) {
        if let Some(store) = self.table.store.get() {
            store.put(file);
            store.remove(self.file());
        }
        self.store(FILE, u64::from(file.cast_unsigned()));
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

    /// Who wants to know has been told of its failure.
    pub(crate) fn note_told(&self) {
        self.store(TOLD, 1);
    }

    pub(crate) fn was_told(&self) -> bool {
        self.load(TOLD) != 0
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
        self.store(NUMBER, 0);
        self.table.free().entries.push(self.at);
    }
}

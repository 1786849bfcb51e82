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
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::VERSION;
use super::journal::Damaged;
use super::memory::{Memory, PAGE};
use super::record::{once, sum, twice};
use super::store::Store;
use crate::failure::Failure;
use crate::stats::{COUNTERS, Counters, Stats};

// Words of the head.
const MAGIC: u64 = 0x5442_5652_4550_0000;
/// So many rings were used at most, twice.
const USED_RINGS: usize = 1;
/// So many entries were used at the same time at most, twice: later ones never were.
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
/// Another program has asked for all of this, and does not wait any more.
const WAITS_NO_MORE: u64 = 3 << 8;
/// What the daemon has counted: three words, and one for each counter of clients that have gone.
const COUNTED: usize = 16;

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
    /// How many rings are to be used.
    rings: usize,
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
        table.note_rings();
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
        let table = Self { memory, free, is_kept, rings, store };
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
        match kind {
            Kind::Client => self.memory.count(NUMBERS),
            Kind::Connection => CONNECTIONS + self.memory.count(NUMBERS + 1),
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
                self.store(USED, twice(free.used));
                at
            }
            None => return Err(io::ErrorKind::StorageFull.into()),
        };
        drop(free);
        let words = entry.to_words();
        for word in HEAD..ENTRY {
            self.store(at + word, 0);
        }
        self.store(at + FREE, 1);
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
        self.store(at + FREE, 0);
        Ok(Slot { table: Arc::clone(self), at })
    }

    /// All that another process has left; to be called before anything is added.
    pub(crate) fn left(self: &Arc<Self>) -> Vec<(Slot, Result<Entry, Damaged>)> {
        let mut free = self.free();
        // If that is damaged, all that may have been.
        free.used = once(self.load(USED)).map_or(ENTRIES, |used| used.min(ENTRIES));
        free.entries.clear();
        let mut left = Vec::new();
        for number in 0..free.used {
            let at = FIRST_ENTRY + number * ENTRY;
            let words = std::array::from_fn(|word| self.load(at + word));
            let was_freed = self.load(at + FREE) != 0 || self.load(at + ENTRY_SUM) == 0;
            if words[NUMBER] == 0 && was_freed {
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

    /// What the daemon has counted: three numbers of its own, and of clients that have gone.
    pub(crate) fn counted(&self) -> ([u64; 3], Stats) {
        let own = std::array::from_fn(|count| self.load(COUNTED + count));
        let gone = std::array::from_fn(|count| self.load(COUNTED + 3 + count));
        (own, Stats::of_words(gone))
    }

    pub(crate) fn set_counted(&self, own: [u64; 3], gone: Stats) {
        for (count, value) in own.into_iter().chain(gone.to_words()).enumerate() {
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

    /// Notes that this program has come to its end, unless who has asked for all of this [waits no
    /// more](Self::waits_no_more). Whether that is so.
    pub(crate) fn let_go(&self) -> bool {
        self.decide(ENDED) == ENDED
    }

    /// Notes that this program waits no more for what it has asked for, unless the other one has
    /// come to its end. Whether that is so.
    pub(crate) fn waits_no_more(&self) -> bool {
        self.decide(WAITS_NO_MORE) == WAITS_NO_MORE
    }

    /// What [`END`] says then.
    fn decide(&self, wanted: u64) -> u64 {
        let [end] = self.memory.counters(END);
        // RELAXED: it decides, and guards nothing: all else was noted before the last message of
        // the connection by which both programs know of each other.
        end.compare_exchange(0, wanted, Relaxed, Relaxed).map_or_else(|end| end, |_| wanted)
    }

    /// This program goes on, and nobody else waits for what it serves.
    pub(crate) fn keep(&self) {
        self.store(END, 0);
    }

    /// Whether there is nothing to be served any more, and with which code that has ended; `None`
    /// if it was not said.
    pub(crate) fn end(&self) -> Option<Option<u8>> {
        match self.load(END) {
            0 | WAITS_NO_MORE => None,
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
        self.note_rings();
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
        self.store(FREE, 1);
        self.store(NUMBER, 0);
        self.table.free().entries.push(self.at);
    }
}

#[cfg(test)]
impl Table {
    /// From now on there are too many, until another process takes what was left.
    pub(crate) fn fill(&self) {
        *self.free() = Free { entries: Vec::new(), used: ENTRIES };
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
            assert!(table.rings().count() >= 2, "{damaged:#x}");
            assert!(table.rings().all(|ring| ring + PAGE <= FIRST_ENTRY), "{damaged:#x}");
        }
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

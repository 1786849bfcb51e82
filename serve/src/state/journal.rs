//! The journal of a client: what belongs into its memory, where who comes after this process finds
//! it.
//!
//! A file of records, of which the first ones say how everything was when it was made, and each
//! later one what has changed. It is written anew when it is full.
//!
//! | word | |
//! |---|---|
//! | 0 | [`MAGIC`] with the version of the layout |
//! | 1 | the number of the client |
//! | 2 | so many records of what has changed were in journals before this one |
//! | 3 | so many of these records are no changes |
//! | 4 | a sum of these |
//! | 5 | how many records there are: stored behind each of them |
//! | from 8 on | the records, of four words |

use std::io;

use super::VERSION;
use super::memory::{Memory, PAGE};
use super::record::{Record, WORDS, sum};

const MAGIC: u64 = 0x4A4D_5652_4550_0000;
const CLIENT: usize = 1;
const BEFORE: usize = 2;
const FIRST: usize = 3;
const SUM: usize = 4;
const COUNT: usize = 5;
const RECORDS: usize = 8;

/// A journal.
pub(crate) struct Journal {
    memory: Memory,
    count: usize,
}

/// Why a journal cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damaged {
    #[error("it is of another version")]
    Version,
    #[error("it is damaged")]
    Sum,
    #[error("it is too short")]
    Short,
}

impl Journal {
    /// A journal of a client that begins with these records, and has space for so many more; in a
    /// file, if `is_kept`.
    ///
    /// # Errors
    ///
    /// The kernel's: there is no memory, or no descriptor.
    pub(crate) fn new(
        client: u64,
        first: &[Record],
        more: usize,
        is_kept: bool,
    ) -> io::Result<Self> {
        Self::behind(0, client, first, more, is_kept)
    }

    fn behind(
        before: u64,
        client: u64,
        first: &[Record],
        more: usize,
        is_kept: bool,
    ) -> io::Result<Self> {
        let words = RECORDS + (first.len() + more) * WORDS;
        let memory = if is_kept { Memory::of_file(words)? } else { Memory::of_process(words)? };
        memory.have(0, memory.len())?;
        let mut journal = Self { memory, count: 0 };
        for record in first {
            journal.push(record);
        }
        let head = [MAGIC | u64::from(VERSION), client, before, first.len() as u64];
        for (word, value) in head.into_iter().enumerate() {
            journal.memory.store(word, value);
        }
        journal.memory.store(SUM, sum(head));
        Ok(journal)
    }

    /// What another process has left, and its records.
    ///
    /// # Errors
    ///
    /// When it is not one that this process could have written for the client.
    pub(crate) fn left_in(memory: Memory, client: u64) -> Result<(Self, Vec<Record>), Damaged> {
        if memory.len() < PAGE {
            return Err(Damaged::Short);
        }
        let head = [0, CLIENT, BEFORE, FIRST].map(|word| memory.load(word));
        if head[0] != MAGIC | u64::from(VERSION) {
            return Err(Damaged::Version);
        }
        if memory.load(SUM) != sum(head) || head[CLIENT] != client {
            return Err(Damaged::Sum);
        }
        let count = usize::try_from(memory.load(COUNT)).unwrap_or(usize::MAX);
        if count > (memory.len() - RECORDS) / WORDS || head[FIRST] > count as u64 {
            return Err(Damaged::Short);
        }
        let record = |number: usize| {
            let at = RECORDS + number * WORDS;
            let words = [0, 1, 2, 3].map(|word| memory.load(at + word));
            Record::of_words(words, number as u64)
        };
        let records: Option<Vec<_>> = (0..count).map(record).collect();
        let records = records.ok_or(Damaged::Sum)?;
        Ok((Self { memory, count }, records))
    }

    /// The descriptor of its file; -1 if there is none.
    pub(crate) fn descriptor(&self) -> i32 {
        self.memory.descriptor()
    }

    /// How many changes were noted, in all journals of the client.
    pub(crate) fn changes(&self) -> u64 {
        let first = self.memory.load(FIRST);
        self.memory.load(BEFORE) + (self.count as u64 - first)
    }

    /// Whether there is space for so many records more.
    pub(crate) fn has_space(&self, more: usize) -> bool {
        (self.memory.len() - RECORDS) / WORDS - self.count >= more
    }

    /// A journal that says the same by these records, and has more space than they take, and for at
    /// least so many more.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub(crate) fn anew(&self, all: &[Record], more: usize) -> io::Result<Self> {
        let (before, client) = (self.changes(), self.memory.load(CLIENT));
        Self::behind(before, client, all, more.max(all.len()), self.descriptor() >= 0)
    }

    /// Notes a change. The caller has seen that there is [space](Self::has_space).
    pub(crate) fn push(&mut self, record: &Record) {
        let at = RECORDS + self.count * WORDS;
        for (word, value) in record.to_words(self.count as u64).into_iter().enumerate() {
            self.memory.store(at + word, value);
        }
        self.count += 1;
        // From here on it is noted.
        self.memory.store(COUNT, self.count as u64);
    }
}

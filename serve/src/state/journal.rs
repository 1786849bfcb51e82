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
//! | 5 | how many records there are, twice: stored behind each of them |
//! | from 8 on | the records, of four words |

use std::io;

use super::VERSION;
use super::memory::Memory;
use super::record::{Record, WORDS, once, sum, twice};

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
        let head = [0, CLIENT, BEFORE, FIRST].map(|word| memory.load(word));
        if head[0] != MAGIC | u64::from(VERSION) {
            return Err(Damaged::Version);
        }
        if memory.load(SUM) != sum(head) || head[CLIENT] != client {
            return Err(Damaged::Sum);
        }
        let count = once(memory.load(COUNT)).ok_or(Damaged::Sum)?;
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
        self.memory.store(COUNT, twice(self.count));
    }
}

#[cfg(test)]
impl Journal {
    /// What the next process finds.
    pub(crate) fn left(&self) -> Vec<Record> {
        let file = self.memory.file().unwrap().try_clone_to_owned().unwrap();
        Self::left_in(Memory::left_in(file).unwrap(), self.memory.load(CLIENT)).unwrap().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: usize) -> Vec<Record> {
        (0..count).map(|at| Record::Remove(at << 12..(at + 1) << 12)).collect()
    }

    fn journal(first: usize, more: usize) -> Journal {
        let mut journal = Journal::new(7, &records(first), more, false).unwrap();
        records(more).iter().for_each(|record| journal.push(record));
        journal
    }

    /// What the next process finds of these words.
    fn left(words: &[u64]) -> Result<Vec<Record>, Damaged> {
        let memory = Memory::of_process(words.len()).unwrap();
        words.iter().enumerate().for_each(|(at, &word)| memory.store(at, word));
        Journal::left_in(memory, 7).map(|(_, records)| records)
    }

    fn words(journal: &Journal) -> Vec<u64> {
        (0..journal.memory.len()).map(|at| journal.memory.load(at)).collect()
    }

    #[test]
    fn what_is_noted_is_found() {
        let journal = journal(3, 4);
        let found = [records(3), records(4)].concat();
        assert_eq!((left(&words(&journal)), journal.changes()), (Ok(found), 4));
        assert_eq!(Journal::left_in(journal.memory, 8).err(), Some(Damaged::Sum), "another's");
    }

    #[test]
    fn each_bit_that_is_damaged_is_found() {
        let words = words(&journal(2, 3));
        for bit in 0..(RECORDS + 5 * WORDS) * 64 {
            // Nothing is there.
            if (COUNT + 1..RECORDS).contains(&(bit / 64)) {
                continue;
            }
            let mut damaged = words.clone();
            damaged[bit / 64] ^= 1 << (bit % 64);
            let expected = if bit < 64 { Damaged::Version } else { Damaged::Sum };
            assert_eq!(left(&damaged), Err(expected), "bit {bit}");
        }
    }

    #[test]
    fn no_count_is_believed_that_is_too_large() {
        let words = words(&journal(2, 3));
        let space = (words.len() - RECORDS) / WORDS;
        for (count, error) in [
            (twice(1), Damaged::Short),
            (twice(space), Damaged::Sum),
            (twice(space + 1), Damaged::Short),
            (twice(u32::MAX as usize), Damaged::Short),
            (u64::MAX - 1, Damaged::Sum),
        ] {
            let mut damaged = words.clone();
            damaged[COUNT] = count;
            assert_eq!(left(&damaged), Err(error), "{count:#x}");
        }
        // All that it says of itself is right, but for that.
        let mut damaged = words;
        damaged[FIRST] = u64::MAX;
        damaged[SUM] = sum([damaged[0], damaged[CLIENT], damaged[BEFORE], damaged[FIRST]]);
        assert_eq!(left(&damaged), Err(Damaged::Short));
    }

    #[test]
    fn a_journal_of_which_the_end_is_not_there_is_too_short() {
        let whole = words(&journal(200, 0));
        let page = super::super::memory::PAGE;
        assert_eq!(left(&whole[..page]), Err(Damaged::Short));
        assert_eq!(left(&vec![0; page]), Err(Damaged::Version));
    }

    #[test]
    fn what_is_written_anew_goes_on_counting() {
        let mut journal = journal(1, 3);
        for round in 1..20 {
            journal = journal.anew(&records(round), 5).unwrap();
            assert!(journal.has_space(5.max(round)));
            records(5).iter().for_each(|record| journal.push(record));
            let found = [records(round), records(5)].concat();
            assert_eq!(left(&words(&journal)), Ok(found));
            assert_eq!(journal.changes(), 3 + 5 * round as u64);
        }
    }
}

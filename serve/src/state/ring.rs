//! What a thread reads of a client's messages: straight into memory that outlives this process, so
//! that an event is not lost with who was told of it.
//!
//! | word of a ring's page | |
//! |---|---|
//! | 0 | the client whose messages these are, twice, from before they are read until all are noted; 0 if there are none |
//! | 1 | how many [changes](super::journal::Journal::changes) of the client were noted before |
//! | 2 | a sum of both |
//! | from 8 on | the messages: empty, until the kernel writes them |
//!
//! Of a batch whose reader died, so many events were noted as the client's journal has more changes
//! than word 1 says: those that come first, or the client is noted to fail. While there is a batch,
//! nothing else changes the journal.
#![expect(unsafe_code, reason = "messages in shared memory, each of which is taken once")]

use std::sync::Arc;

use pervma_pager::sys::{Event, Message};

use super::journal::Damaged;
use super::memory::MESSAGE;
use super::record::{once, sum, twice};
use super::table::Table;

const CLIENT: usize = 0;
const CHANGES: usize = 1;
const SUM: usize = 2;
const MESSAGES: usize = 8;
/// Messages that are read at a time.
pub(crate) const BATCH: usize = 32;

/// The ring of a thread.
///
/// R1: the words of its page are this ring's alone, of which there is one for each page in each
/// process; the processes come one after the other.
pub(crate) struct Ring {
    table: Arc<Table>,
    /// The first word of its page.
    page: usize,
    /// So many messages were read.
    count: usize,
}

/// A batch whose reader died.
pub(crate) struct Left {
    pub(crate) client: u64,
    pub(crate) changes: u64,
}

impl Ring {
    /// The rings of a table; to be made once in each process.
    pub(crate) fn all(table: &Arc<Table>) -> Vec<Self> {
        let ring = |page| Self { table: Arc::clone(table), page, count: 0 };
        table.rings().map(ring).collect()
    }

    /// A batch is read now, of a client of which so many changes were noted.
    pub(crate) fn begin(&mut self, client: u64, changes: u64) {
        // Of a batch that was left here, and that nobody has ended: its client is there no more.
        self.clear();
        self.table.store(self.page + CHANGES, changes);
        self.table.store(self.page + SUM, sum([client, changes]));
        self.table.store(self.page + CLIENT, twice(client as usize));
    }

    /// Space for the messages.
    pub(crate) fn messages(&mut self) -> &mut [Message] {
        // SAFETY: of this ring alone (R1), of which what is returned is a part.
        unsafe { self.table.memory().messages(self.page + MESSAGES, BATCH) }
    }

    /// What a message says, which is taken once, and stays where it is.
    pub(crate) fn take(&mut self, number: usize) -> Event {
        self.count = self.count.max(number + 1);
        let message: *const Message = &raw const self.messages()[number];
        // SAFETY: a copy of plain bytes. Of the two this one alone is taken: what is in the ring
        // is overwritten, or skipped by who comes after this process.
        unsafe { message.read() }.take()
    }

    /// All of the batch is noted.
    pub(crate) fn end(&mut self) {
        self.table.store(self.page + CLIENT, 0);
        self.clear();
    }

    fn clear(&mut self) {
        for word in 0..self.count * MESSAGE {
            self.table.store(self.page + MESSAGES + word, 0);
        }
        self.count = 0;
    }

    /// The batch that was left here, if there is one; no other one is begun before it is
    /// [ended](Self::end).
    ///
    /// # Errors
    ///
    /// When it is not known whose it is.
    pub(crate) fn left(&mut self) -> Result<Option<Left>, Damaged> {
        let load = |word| self.table.load(self.page + word);
        // All of it, whoever has read it.
        self.count = BATCH;
        if load(CLIENT) == 0 {
            self.clear();
            return Ok(None);
        }
        let changes = load(CHANGES);
        let client = once(load(CLIENT)).map(|client| client as u64);
        let client = client.filter(|&client| load(SUM) == sum([client, changes]));
        Ok(Some(Left { client: client.ok_or(Damaged::Sum)?, changes }))
    }
}

#[cfg(test)]
impl Ring {
    /// Writes a message, as the kernel does.
    pub(crate) fn write(&mut self, number: usize, words: [u64; MESSAGE]) {
        let first = self.page + MESSAGES + number * MESSAGE;
        words
            .into_iter()
            .enumerate()
            .for_each(|(word, value)| self.table.store(first + word, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOVE: u64 = u64::from_ne_bytes([0x15, 0, 0, 0, 0, 0, 0, 0]);

    #[test]
    fn a_batch_that_nobody_ends_is_not_the_next_ones() {
        let table = Table::new(1, false).unwrap();
        let mut ring = Ring::all(&table).remove(0);
        ring.begin(1, 5);
        (0..3).for_each(|number| ring.write(number, [REMOVE, 0x1000, 0x2000, 0]));

        let mut next = Ring::all(&table).remove(0);
        let left = next.left().unwrap().unwrap();
        assert_eq!((left.client, left.changes), (1, 5));
        // The client is there no more, and another one's messages are read.
        next.begin(2, 7);
        next.write(0, [REMOVE, 0x3000, 0x4000, 0]);

        let mut last = Ring::all(&table).remove(0);
        assert_eq!(last.left().unwrap().unwrap().client, 2);
        assert!(matches!(last.take(0), Event::Remove(range) if range == (0x3000..0x4000)));
        assert!((1..BATCH).all(|number| matches!(last.take(number), Event::Other(0))));
        last.end();
        assert!(Ring::all(&table).remove(0).left().unwrap().is_none());
    }

    #[test]
    fn each_bit_that_says_whose_a_batch_is_is_found_if_it_is_damaged() {
        let table = Table::new(1, false).unwrap();
        let mut ring = Ring::all(&table).remove(0);
        ring.begin(1, 5);
        for bit in 0..(SUM + 1) * 64 {
            let (word, flip) = (ring.page + bit / 64, 1 << (bit % 64));
            table.store(word, table.load(word) ^ flip);
            assert!(matches!(ring.left(), Err(Damaged::Sum)), "bit {bit}");
            table.store(word, table.load(word) ^ flip);
        }
        assert!(ring.left().is_ok());
    }
}

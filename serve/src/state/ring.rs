//! What a thread reads of a client's messages: straight into memory that outlives this process, so
//! that an event is not lost with who was told of it.
//!
//! | word of a ring's page | |
//! |---|---|
//! | 0 | the client whose messages these are, from before they are read until all are noted; 0 if there are none |
//! | 1 | how many [changes](super::journal::Journal::changes) of the client were noted before |
//! | from 8 on | the messages: empty, until the kernel writes them |
//!
//! Of a batch whose reader died, so many events were noted as the client's journal has more changes
//! than word 1 says: those that come first, or the client is noted to fail. While there is a batch,
//! nothing else changes the journal.
#![expect(unsafe_code, reason = "messages in shared memory, each of which is taken once")]

use std::sync::Arc;

use pervma_pager::sys::{Event, Message};

use super::memory::MESSAGE;
use super::table::Table;

const CLIENT: usize = 0;
const CHANGES: usize = 1;
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
        self.table.store(self.page + CHANGES, changes);
        self.table.store(self.page + CLIENT, client);
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
        self.clear(self.count);
        self.count = 0;
    }

    fn clear(&mut self, messages: usize) {
        for word in 0..messages * MESSAGE {
            self.table.store(self.page + MESSAGES + word, 0);
        }
    }

    /// The batch that was left here, if there is one; no other one is begun before it is
    /// [ended](Self::end).
    pub(crate) fn left(&mut self) -> Option<Left> {
        let [client, changes] = [CLIENT, CHANGES].map(|word| self.table.load(self.page + word));
        // All of it, whoever has read it.
        self.count = BATCH;
        if client == 0 {
            self.clear(BATCH);
            return None;
        }
        Some(Left { client, changes })
    }
}

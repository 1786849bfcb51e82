//! What is noted of a client: the map of its memory, and a journal that says what the map says.

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use pervma_pager::sys::{Errno, Event};

use crate::failure::Failure;
use crate::map::{Map, PAGE};
use crate::state::journal::Journal;
use crate::state::memory::Memory;
use crate::state::record::{Record, Time};
use crate::state::ring::{BATCH, Ring};
use crate::state::table::{Entry, Kind, Slot, Table};
use crate::stats::{Counter, Counters};
use crate::steps::step;

/// All that is noted of a client.
pub(crate) struct Parts {
    pub(crate) slot: Slot,
    pub(crate) entry: Entry,
    pub(crate) map: Map,
    pub(crate) journal: Journal,
}

/// A child that the kernel has told of, and that is noted.
pub(crate) struct ForkedChild {
    pub(crate) parts: Parts,
    pub(crate) userfaultfd: OwnedFd,
}

/// A child of whose descriptor another process was told, and has not noted that.
pub(crate) enum LeftChild {
    /// It has noted the child itself.
    Noted(u64),
    New(OwnedFd),
    Gone,
}

impl Parts {
    /// Notes a client whose memory is this, with why it cannot be served, if so.
    ///
    /// # Errors
    ///
    /// When there are too many clients, no memory or no descriptor.
    pub(crate) fn new(
        table: &Arc<Table>,
        entry: Entry,
        map: Map,
        failure: Option<&Failure>,
    ) -> io::Result<Self> {
        let journal = Journal::new(entry.number, &map.records(), BATCH, table.is_kept())?;
        step();
        let slot = table.add_failed(&entry, journal.descriptor(), failure)?;
        step();
        Ok(Self { slot, entry, map, journal })
    }

    /// What another process has left, with the descriptor of the journal. If that cannot be used,
    /// the client has no memory, and fails.
    ///
    /// # Errors
    ///
    /// When there is no memory or no descriptor.
    pub(crate) fn left(slot: Slot, entry: Entry, file: Option<OwnedFd>) -> io::Result<Self> {
        let read = || -> Option<(Journal, Map)> {
            let memory = Memory::left_in(file?).ok()?;
            let (journal, records) = Journal::left_in(memory, entry.number).ok()?;
            Some((journal, Map::noted(&records).ok()?))
        };
        if let Some((journal, map)) = read() {
            return Ok(Self { slot, entry, map, journal });
        }
        // Before there is a journal of which the next process could think that it is right.
        if slot.failure().is_none() {
            slot.fail(&Failure::Damaged);
        }
        let journal = Journal::new(entry.number, &[], BATCH, slot.table().is_kept())?;
        slot.set_file(journal.descriptor());
        let map = Map::new(&[]).map_err(io::Error::other)?;
        Ok(Self { slot, entry, map, journal })
    }
}

/// What is noted of a client, by who may change it.
pub(crate) struct Noted<'c> {
    pub(crate) slot: &'c Slot,
    pub(crate) entry: &'c Entry,
    pub(crate) map: &'c Map,
    pub(crate) journal: &'c mut Journal,
}

impl Noted<'_> {
    /// Notes a change of what belongs into its memory, and makes it.
    ///
    /// # Errors
    ///
    /// When there is no memory or no descriptor.
    pub(crate) fn note(&mut self, record: &Record) -> Result<(), Failure> {
        self.make_space(1)?;
        self.journal.push(record);
        self.map.apply(record).map_err(Failure::Map)
    }

    /// Has space for so many changes.
    fn make_space(&mut self, more: usize) -> Result<(), Failure> {
        if !self.journal.has_space(more) {
            let anew = self.journal.anew(&self.map.records(), more).map_err(not_noted)?;
            self.slot.set_file(anew.descriptor());
            *self.journal = anew;
        }
        Ok(())
    }

    /// Has messages read into a ring, and returns how many came. Faults are added to `faults`, and
    /// children to `children`; the map says what the others say.
    ///
    /// # Errors
    ///
    /// When they cannot be read, or one of them cannot be noted.
    pub(crate) fn read(
        &mut self,
        ring: &mut Ring,
        read: impl FnOnce(&mut Ring) -> Result<usize, Errno>,
        faults: &mut Vec<usize>,
        children: &mut Vec<ForkedChild>,
    ) -> Result<usize, Failure> {
        // What is told of cannot be noted without.
        let mut outcome = self.make_space(BATCH);
        self.note_outcome(&outcome);
        ring.begin(self.entry.number, self.journal.changes());
        step();
        let read = read(ring);
        step();
        let count = match read {
            Ok(count) => count,
            Err(error) => {
                outcome = Err(Failure::Read(error));
                0
            }
        };
        // Each is taken, also behind one that fails: faults are to be answered.
        for number in 0..count {
            let heard = self.hear(ring.take(number), faults, children);
            self.note_outcome(&heard);
            step();
            outcome = outcome.and(heard);
        }
        ring.end();
        outcome.map(|()| count)
    }

    /// Notes what another process had read of its messages in a batch of this ring, and not noted:
    /// so many changes were noted before the batch. Of a descriptor that came with it is asked
    /// whose it is: like all that were left, it is not the message's.
    ///
    /// # Errors
    ///
    /// As above.
    pub(crate) fn read_left(
        &mut self,
        ring: &mut Ring,
        changes: u64,
        children: &mut Vec<ForkedChild>,
        mut child_with: impl FnMut(i32) -> LeftChild,
    ) -> Result<(), Failure> {
        let mut outcome = self.make_space(BATCH);
        self.note_outcome(&outcome);
        let mut noted = self.journal.changes().saturating_sub(changes);
        for number in 0..BATCH {
            let event = ring.take(number);
            let heard = match event {
                // Their threads were woken.
                Event::Fault(_) | Event::Other(_) => continue,
                _ if noted > 0 => {
                    noted -= 1;
                    std::mem::forget(event);
                    continue;
                }
                Event::Fork(userfaultfd) => match child_with(userfaultfd.into_raw_fd()) {
                    LeftChild::Noted(child) => self.note(&Record::Fork(child)),
                    LeftChild::New(left) => self.hear(Event::Fork(left), &mut vec![], children),
                    LeftChild::Gone => Err(Failure::Damaged),
                },
                event => self.hear(event, &mut vec![], children),
            };
            self.note_outcome(&heard);
            step();
            outcome = outcome.and(heard);
        }
        ring.end();
        outcome
    }

    /// Notes a failure, before anything that is told later: of the batch, not those that come first
    /// are noted then, so the next process may not go on with it.
    fn note_outcome(&self, outcome: &Result<(), Failure>) {
        if let Err(failure) = outcome {
            self.slot.fail(failure);
        }
    }

    /// Notes what a message says.
    fn hear(
        &mut self,
        event: Event,
        faults: &mut Vec<usize>,
        children: &mut Vec<ForkedChild>,
    ) -> Result<(), Failure> {
        tracing::trace!(client = self.entry.number, ?event);
        let (counter, record) = match event {
            Event::Fault(fault) => {
                faults.push(fault.addr & !(PAGE - 1));
                return match fault.is_write_protected || fault.is_minor {
                    true => Err(Failure::Present(fault.addr)),
                    false => Ok(()),
                };
            }
            Event::Remove(range) => (Counter::Removes, Record::Remove(range)),
            Event::Unmap(range) => (Counter::Unmaps, Record::Unmap(range, Time::now())),
            Event::Remap { from, to, len } => {
                (Counter::Remaps, Record::Remap { from, to, len, time: Time::now() })
            }
            Event::Fork(userfaultfd) => {
                let child = self.fork(userfaultfd)?;
                let record = Record::Fork(child.parts.entry.number);
                children.push(child);
                (Counter::Forks, record)
            }
            _ => return Ok(()),
        };
        self.counters().add(counter, 1);
        self.note(&record)
    }

    fn counters(&self) -> Counters<'_> {
        self.slot.counters()
    }

    /// Notes a child that the kernel has told of.
    fn fork(&self, userfaultfd: OwnedFd) -> Result<ForkedChild, Failure> {
        let table = self.slot.table();
        let number = table.new_number(Kind::Client);
        let descriptor = userfaultfd.as_raw_fd();
        let parent = self.entry.number;
        let entry = Entry { number, descriptor, parent, ..self.entry.clone() };
        let map = self.map.fork().map_err(Failure::Map);
        match map.and_then(|map| Parts::new(table, entry, map, None).map_err(not_noted)) {
            Ok(parts) => Ok(ForkedChild { parts, userfaultfd }),
            Err(failure) => {
                // For ever: closed, the child's memory would read as zeros.
                std::mem::forget(userfaultfd);
                Err(failure)
            }
        }
    }
}

fn not_noted(error: io::Error) -> Failure {
    Failure::NotNoted(Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))
}

#[cfg(test)]
mod tests;

//! The benchmarks: what is measured, and the goals.

mod c;
mod calls;
mod contended;
mod crowd;
mod edits;
mod end;
mod gap;
pub(crate) mod instructions;
mod large;
mod lookup;
mod memory;
mod pace;
mod registered;
mod removal;
mod spaces;
mod threads;
mod writer;

use std::error::Error;

use clap::ValueEnum;

use crate::comparison::Effort;
use crate::daemon;
use crate::faults;
use crate::report::{Figures, Section};

/// A benchmark; in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Benchmark {
    /// Find, lock and unlock at random addresses.
    Lookup,
    /// The same with a cursor, at addresses that lie close together.
    Cursor,
    /// Insert + remove, split + merge.
    Edits,
    /// The same by threads that edit at the same time, and beside threads that look up.
    Contended,
    /// Threads that edit, each in a space of its own.
    Spaces,
    /// Linux's mapping calls by one thread and by two.
    Calls,
    /// 64 threads on two processors: readers, and one that edits.
    Crowd,
    /// Threads that read different VMAs.
    Different,
    /// Threads that read the same VMA.
    Same,
    /// What registered readers cost edits.
    Registered,
    /// A reader beside a writer that never pauses.
    Writer,
    /// The end of an edit over many VMAs.
    End,
    /// Searches for gaps among many VMAs.
    Gap,
    /// Removals and edits while a reader stays elsewhere, or a removal waits.
    Removal,
    /// Up to ten million VMAs: built, looked at, removed, dropped.
    Large,
    /// Lookups through the interface for C, beside Rust's and a `std::map`.
    C,
    /// Bytes of a VMA, of an empty space, and after many changes.
    Memory,
    /// Page faults of this process, beside bare handlers.
    Faults,
    /// Page faults of another process, by granule, threads and workers, beside minimal handlers.
    DaemonFaults,
    /// Page faults of another process while it discards memory elsewhere, or a source is slow.
    DaemonEvents,
    /// A guest of KVM that touches its memory, beside a minimal handler.
    DaemonGuest,
    /// A hundred processes that fault at once.
    DaemonClients,
    /// Memory that is filled before it is touched, beside bare copies.
    DaemonTransfers,
    /// Faults while the serving process of a daemon is killed, or another daemon takes over.
    DaemonDeaths,
    /// Restores by CRIU, if it is installed, beside its own daemon.
    DaemonCriu,
    /// Instructions of lookups and changes, counted by callgrind if it is installed.
    Instructions,
}

impl Benchmark {
    /// # Errors
    ///
    /// The kernel's, and valgrind's.
    pub(crate) fn measure(self, effort: &Effort) -> Result<Section, Box<dyn Error>> {
        let name = self.to_possible_value();
        let benchmark = name.map_or_else(String::new, |name| name.get_name().to_owned());
        let section = |(about, tables, goals): Figures| Section {
            benchmark,
            about: about.to_owned(),
            tables,
            goals,
        };
        Ok(section(match self {
            Self::Lookup => lookup::random(effort),
            Self::Cursor => lookup::cursor(effort),
            Self::Edits => edits::measure(effort),
            Self::Contended => contended::measure(effort),
            Self::Spaces => spaces::measure(effort),
            Self::Calls => calls::measure(effort),
            Self::Crowd => crowd::measure(effort)?,
            Self::Different => threads::different(effort),
            Self::Same => threads::same(effort),
            Self::Registered => registered::measure(effort),
            Self::Writer => writer::measure(effort),
            Self::End => end::measure(effort),
            Self::Gap => gap::measure(effort),
            Self::Removal => removal::measure(effort),
            Self::Large => large::measure(effort),
            Self::C => c::measure(effort),
            Self::Memory => memory::measure(effort),
            Self::Faults => faults::measure(effort)?,
            Self::DaemonFaults => daemon::faults(effort)?,
            Self::DaemonEvents => daemon::events(effort)?,
            Self::DaemonGuest => daemon::guests(effort)?,
            Self::DaemonClients => daemon::clients(effort)?,
            Self::DaemonTransfers => daemon::transfers(effort)?,
            Self::DaemonDeaths => daemon::deaths(effort)?,
            Self::DaemonCriu => daemon::criu(effort)?,
            Self::Instructions => instructions::measure()?,
        }))
    }
}

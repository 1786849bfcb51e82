//! A guest's mappings, made of the host's: `mmap`, `munmap`, `mprotect` and `mremap` as an emulator
//! serves them, on several threads at once.
//!
//! The emulator keeps two maps in step: its own, an [`AddressSpace`], and the kernel's. No lock
//! covers both. System calls are slow, and a thread that held the map's lock during one would hold
//! up every thread of the guest. What replaces the lock is *ownership of addresses*:
//!
//! | the addresses are | the host's mappings there may be changed by |
//! |---|---|
//! | free | no thread |
//! | reserved | the holder of the [`Reservation`] |
//! | mapped | no thread: a load or a store may be using them |
//! | mapped, and excluded, and its readers have left | the holder of the exclusion |
//! | removed | the thread that removed them, until the host has unmapped them |
//!
//! The last line overlaps the first: removed addresses are free for others at once, while the host
//! still has something there. So new mappings are made with `MAP_FIXED_NOREPLACE`: the kernel
//! refuses what is still taken, and the loser rolls its reservation back.
//!
//! Four threads make random system calls in one small window, so that they are in each other's way.
//! Guest addresses are host addresses: if the memory that a load uses were unmapped under it, the
//! program would die. Each word in memory says where it belongs, and in the end the map must be the
//! kernel's, page by page.
#![expect(clippy::disallowed_types, reason = "counters, and words of the guest's memory")]

mod host;
mod program;

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use pervma::{AddressSpace, ChangeError, GapError, GapSearch, Payload, ReadError, Reservation};
use rustix::io::Errno;

use crate::host::{CELL, GuestFile};

/// What a mapping is made of: a part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    file: usize,
    offset: usize,
    prot: Protection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    None,
    Read,
    ReadWrite,
}

/// A system call may change a part of a mapping: then the mapping is split, and later perhaps
/// merged again. What is to the right begins further on in the file.
impl Payload for Mapping {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        Some((*self, Self { offset: self.offset + offset, ..*self }))
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        (Self { offset: self.offset + len, ..*self } == *next).then_some(*self)
    }
}

/// Why a system call of the guest failed.
enum Failure {
    /// The guest is told so, and nothing has changed.
    Refused(Errno),
    /// The emulator is broken.
    Broken(String),
}

type Result<T, E = Failure> = std::result::Result<T, E>;

/// The guest, seen from the host.
struct Guest {
    space: AddressSpace<Mapping>,
    files: Vec<GuestFile>,
    /// All of its addresses.
    window: Range<usize>,
    /// Reservations that were rolled back since the host had something there.
    collisions: AtomicU64,
}

// --- The system calls ----------------------------------------------------------------------------

impl Guest {
    /// `mmap`: a gap, then the host's mapping, then the guest's.
    fn mmap(&self, len: usize, mapping: Mapping) -> Result<()> {
        let file = &self.files[mapping.file];
        let mut reservation = self.place(len, |range| file.map(range, &mapping))?;
        // From here on, the guest can use it.
        reservation.commit(mapping).map_err(broken)
    }

    /// Finds a gap, and has `map` map something there on the host.
    fn place(
        &self,
        len: usize,
        map: impl Fn(&Range<usize>) -> Result<(), Errno>,
    ) -> Result<Reservation<'_, Mapping>> {
        loop {
            let mut edit = self.space.edit().map_err(broken)?;
            let gap = edit.find_gap(&GapSearch::new(len).within(self.window.clone()))?;
            let reservation = edit.reserve(gap)?;
            drop(edit);
            // No lock is held now, and yet no other thread can map anything there in the guest.
            match map(&reservation.range()) {
                Ok(()) => return Ok(reservation),
                // Another thread has removed what was there and is about to unmap it. Dropping the
                // reservation rolls it back.
                Err(Errno::EXIST) => {
                    self.collisions.fetch_add(1, Relaxed);
                    drop(reservation);
                    thread::yield_now();
                }
                Err(error) => return Err(Failure::Refused(error)), // rolled back, too
            }
        }
    }

    /// `munmap`: out of the map first, so that no thread uses it any more; then the host.
    fn munmap(&self, range: Range<usize>) -> Result<()> {
        // Waits for loads and stores in what it removes, and for no others.
        for removed in self.space.remove(range)? {
            // What comes back lies in the range. It is out of the map, and ours.
            // SAFETY: we mapped it, no thread finds it any more, and its last reader has released
            // it.
            unsafe { host::unmap(&removed.range) }.map_err(broken)?;
        }
        Ok(())
    }

    /// `mprotect`: the host may refuse, so it is asked between the waiting and the change.
    ///
    /// (Without a system call in between, [`AddressSpace::update`] does all of it.)
    fn mprotect(&self, range: Range<usize>, prot: Protection) -> Result<()> {
        let exclusion = self.space.exclude(range.clone())?; // no load or store begins ...
        exclusion.wait(); // ... and the last one has ended

        let within = |at: Range<usize>| at.start.max(range.start)..at.end.min(range.end);
        let parts: Vec<_> = exclusion.iter().map(|(at, old)| (within(at), old.prot)).collect();
        if parts.iter().map(|(part, _)| part.len()).sum::<usize>() != range.len() {
            return Err(Failure::Refused(Errno::NOMEM)); // it has holes; Linux calls it that, too
        }
        for (done, (part, _)) in parts.iter().enumerate() {
            // SAFETY: we mapped it, and have excluded all others.
            let Err(error) = (unsafe { host::protect(part, prot) }) else { continue };
            for (part, old) in &parts[..=done] {
                // SAFETY: as above.
                unsafe { host::protect(part, *old) }.map_err(broken)?;
            }
            return Err(Failure::Refused(error)); // the exclusion is dropped: nothing has changed
        }
        // Splits and merges mappings as `Payload` says. The host has agreed: if there were no
        // memory for this, the two maps would differ, and the emulator gives up.
        exclusion.update(|_, mapping| Mapping { prot, ..*mapping }).map_err(broken)?;
        Ok(())
    }

    /// `mremap` to another place, of a range in one mapping.
    ///
    /// (Where the target is known to be free on the host, [`AddressSpace::relocate`] moves ranges
    /// at once; here, guest threads can see that the range is in neither place for a moment.)
    fn mremap(&self, from: Range<usize>) -> Result<()> {
        // The kernel's `mremap` replaces what is at the target, without asking. So it has to be
        // ours.
        let mut target = self.place(from.len(), host::occupy)?;
        let to = target.range();
        let moved = self.evacuate(from, &to);
        match moved {
            Ok(mapping) => target.commit(mapping).map_err(broken),
            Err(error) => {
                // SAFETY: we mapped it, and no other thread knows it. The reservation is dropped
                // later.
                unsafe { host::unmap(&to) }.map_err(broken)?;
                Err(error)
            }
        }
    }

    /// Moves the host's mapping, and takes the guest's out of the map.
    fn evacuate(&self, from: Range<usize>, to: &Range<usize>) -> Result<Mapping> {
        let exclusion = self.space.exclude(from.clone())?;
        exclusion.wait();
        let mut touched = exclusion.iter().map(|(at, _)| at);
        let whole = touched.next().is_some_and(|at| at.start <= from.start && from.end <= at.end);
        drop(touched);
        if !whole {
            return Err(Failure::Refused(Errno::FAULT));
        }
        // SAFETY: we mapped both, have excluded all others from one, and the other is only
        // reserved.
        unsafe { host::relocate(&from, to) }.map_err(Failure::Refused)?;
        let removed = exclusion.remove().map_err(broken)?;
        removed.first().map(|removed| removed.payload).ok_or_else(|| broken("nothing was removed"))
    }

    /// A load: the mapping's read lock keeps the host's memory where it is. Edits elsewhere do not
    /// hold it up.
    fn load(&self, addr: usize) -> Result<()> {
        let mapping = self.space.read(addr)?;
        if mapping.prot == Protection::None {
            return Err(Failure::Refused(Errno::ACCESS));
        }
        // SAFETY: it is mapped, readable, and stays so until the guard is dropped.
        let word = unsafe { host::load(addr) };
        let expected = host::label(mapping.file, mapping.offset + addr - mapping.range().start);
        if word != expected {
            return Err(broken(format!("{addr:#x} holds {word:#x}, not {expected:#x}")));
        }
        Ok(())
    }

    /// A store. Many threads store at once; a mapping that is being changed waits for all of them.
    fn store(&self, addr: usize) -> Result<()> {
        let mapping = self.space.read(addr)?;
        if mapping.prot != Protection::ReadWrite {
            return Err(Failure::Refused(Errno::ACCESS));
        }
        // SAFETY: it is mapped, writable, and stays so until the guard is dropped.
        unsafe { host::increment(addr + CELL / 2) };
        Ok(())
    }
}

/// What the guest is told. Errors that say that a thread would wait for itself cannot happen here,
/// since no thread holds anything over a system call.
impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotMapped { .. } | ChangeError::OutOfMemory { .. } => {
                Self::Refused(Errno::NOMEM)
            }
            // Another thread is just mapping something there. On Linux this thread would wait.
            ChangeError::Reserved { .. } => Self::Refused(Errno::AGAIN),
            error => broken(error),
        }
    }
}

impl From<GapError> for Failure {
    fn from(error: GapError) -> Self {
        match error {
            GapError::NotFound => Self::Refused(Errno::NOMEM),
            error => broken(error),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotMapped { .. } | ReadError::Reserved { .. } => Self::Refused(Errno::FAULT),
            error => broken(error),
        }
    }
}

fn broken(error: impl ToString) -> Failure {
    Failure::Broken(error.to_string())
}

fn main() -> ExitCode {
    match program::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("emulator: {error}");
            ExitCode::FAILURE
        }
    }
}

//! Memory that pages are moved to while they are written to the source.

use std::sync::{Mutex, PoisonError};

use crate::sys::{Access, Errno, Memory, PageSize, Userfaultfd};

/// Pieces of memory that nothing is in, registered with a region's userfaultfd.
#[derive(Debug)]
pub(crate) struct Staging {
    free: Mutex<Vec<Memory>>,
}

impl Staging {
    /// The size of a piece.
    pub(crate) const BYTES: usize = 1 << 20;

    /// With a piece if there is a bound to keep: it is kept also when there is no memory for one.
    pub(crate) fn new(uffd: &Userfaultfd, has_bound: bool) -> Result<Self, Errno> {
        let free = if has_bound { vec![piece(uffd)?] } else { Vec::new() };
        Ok(Self { free: Mutex::new(free) })
    }

    /// A piece for one thread. Several threads that write at a time have one each.
    pub(crate) fn take(&self, uffd: &Userfaultfd) -> Result<Memory, Errno> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.map_or_else(|| piece(uffd), Ok)
    }

    /// Takes back a piece that nothing is in.
    pub(crate) fn put(&self, memory: Memory) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

fn piece(uffd: &Userfaultfd) -> Result<Memory, Errno> {
    let memory = Memory::map(Staging::BYTES, PageSize::Small)?;
    uffd.register_missing(&memory)?;
    memory.protect(0..Staging::BYTES, Access::ReadWrite)?;
    Ok(memory)
}

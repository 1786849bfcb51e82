//! What a region is made of: the payload of its VMA.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use pervma::AddressSpace;

use crate::source::Source;
use crate::sys::{CopyError, Memory, Userfaultfd};

/// The size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

/// All regions of this process.
pub(crate) static SPACE: AddressSpace<Payload> = AddressSpace::new(PAGE);

/// A region's VMA holds it, and the region itself does.
pub(crate) type Payload = Arc<Mapping<dyn Source>>;

/// Memory, who watches it, and what belongs there. Dropped in this order.
pub(crate) struct Mapping<S: Source + ?Sized> {
    memory: Memory,
    // Closed after the memory is gone: without it, missing pages would read as zeros.
    uffd: Userfaultfd,
    /// Bytes of the source; the memory is rounded up to pages.
    len: usize,
    /// Tells it from whatever is mapped at the same addresses before and after.
    serial: u64,
    source: S,
}

impl<S: Source> Mapping<S> {
    /// `memory` is registered with `uffd` and holds `len` bytes.
    pub(crate) fn new(memory: Memory, uffd: Userfaultfd, len: usize, source: S) -> Self {
        static MAPPED: Mutex<u64> = Mutex::new(0);
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        *mapped += 1;
        Self { memory, uffd, len, serial: *mapped, source }
    }
}

/// How an attempt to fill a page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// The page is there, by this fill.
    Filled,
    /// The page was there already.
    Present,
    /// Not now: let the access fault again.
    Again,
    /// The source or the kernel failed.
    Failed,
}

impl Mapping<dyn Source> {
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Never that of another mapping of this process.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Fills the page that holds `addr`, an address of the memory. Runs in the signal handler.
    #[inline]
    pub(crate) fn fill(&self, addr: usize) -> Fill {
        let offset = (addr - self.memory.range().start) & !(PAGE - 1);
        // A whole page that is in memory goes there without a copy of ours.
        if let Some(bytes) = self.source.bytes()
            && let Some(page) = bytes.get(offset..offset + PAGE)
        {
            return self.install(offset, page);
        }
        with_page_buffer(|page| {
            let (inside, beyond) = page.split_at_mut(PAGE.min(self.len - offset));
            beyond.fill(0);
            match self.source.read_at(offset as u64, inside) {
                Ok(()) => self.install(offset, page),
                Err(_) => Fill::Failed,
            }
        })
    }

    #[inline]
    fn install(&self, offset: usize, page: &[u8]) -> Fill {
        match self.uffd.copy(&self.memory, offset, page) {
            Ok(()) => Fill::Filled,
            Err(CopyError::AlreadyPresent) => Fill::Present,
            Err(CopyError::Again { .. }) => Fill::Again,
            Err(_) => Fill::Failed,
        }
    }
}

/// Lends the thread's page buffer. It is constant-initialised and has no destructor, so its use
/// runs no code of the thread-local's own.
#[inline]
fn with_page_buffer(fill: impl FnOnce(&mut [u8; PAGE]) -> Fill) -> Fill {
    thread_local! {
        static BUFFER: RefCell<[u8; PAGE]> = const { RefCell::new([0; PAGE]) };
    }
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut page) => fill(&mut page),
        // A fault inside a fault of this thread, which all signals being blocked prevents: a
        // handler that was installed later has called ours with a smaller mask. A buffer on the
        // stack would be no help, alternate stacks are too small for it.
        Err(_) => Fill::Failed,
    })
}

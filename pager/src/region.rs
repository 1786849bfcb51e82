//! A slice of bytes that is filled on demand.
#![expect(unsafe_code, reason = "lends the memory as a slice")]

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::Error;
use crate::mapping::{Mapping, PAGE, Payload, SPACE};
use crate::signal;
use crate::source::Source;
use crate::sys::{Memory, Userfaultfd};

/// The bytes of a [`Source`], each page filled when it is first touched, by the thread that
/// touches it.
///
/// It is a slice of exactly the source's size. Dropping it unmaps the memory and drops the source,
/// on the thread that drops it.
///
/// ```
/// use pervma_pager::{MemorySource, Region};
///
/// let text = MemorySource::new(b"filled on demand".as_slice());
/// let region = Region::map(text)?;
/// assert_eq!(&region[10..], b"demand");
/// # Ok::<(), pervma_pager::Error>(())
/// ```
pub struct Region {
    mapping: Payload,
}

impl Region {
    /// Maps `source`. The first region of a process installs the SIGBUS handler.
    ///
    /// # Errors
    ///
    /// When the source is empty or too large, when the kernel refuses userfaultfd or memory, when
    /// SIGBUS is blocked, when pages are not of 4096 bytes: see [`Error`]. Nothing is left behind
    /// but the handler; the source is dropped.
    ///
    /// # Panics
    ///
    /// In a signal handler, so also in a source's methods on the fault path.
    pub fn map(source: impl Source + 'static) -> Result<Self, Error> {
        let found = rustix::param::page_size();
        if found != PAGE {
            return Err(Error::PageSize { found });
        }
        let bytes = source.size();
        let len = usize::try_from(bytes).map_err(|_| Error::TooLarge { bytes })?;
        let room = len.checked_next_multiple_of(PAGE).ok_or(Error::TooLarge { bytes })?;
        if room == 0 {
            return Err(Error::Empty);
        }
        if signal::is_blocked() {
            return Err(Error::SignalBlocked);
        }
        signal::install().map_err(Error::Handler)?;

        let uffd = Userfaultfd::open_sigbus()?;
        let memory = Memory::map(room).map_err(|errno| Error::Memory { bytes: room, errno })?;
        uffd.register_missing(&memory).map_err(Error::Register)?;
        let range = memory.range();
        let mapping: Payload = Arc::new(Mapping::new(memory, uffd, len, source));

        let mut edit = SPACE.edit().map_err(|error| Error::Space(error.into()))?;
        let inserted = edit.insert(range, Arc::clone(&mapping));
        // The end of the edit admits readers: before anyone can know the address.
        drop(edit);
        // What was not inserted is dropped here, outside of the edit.
        inserted.map_err(|refused| Error::Space(refused.to_string().into()))?;
        Ok(Self { mapping })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let range = self.mapping.memory().range();
        // Refused only in a source's methods, which may not drop regions, and when there is no
        // memory for the list of what was removed: then the mapping stays as it is, a leak.
        // Waits for faults in this region only; other regions come and go meanwhile.
        let removed = SPACE.remove(range);
        // No fault is inside: this and `self` are the last to own the mapping.
        drop(removed);
    }
}

impl Deref for Region {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is registered, with a userfaultfd that lives as long as it does; each
        // page is filled once, and the handler returns to an access only when its page is there
        // (or is to be tried again). Nothing else writes.
        let memory = unsafe { self.mapping.memory().bytes() };
        &memory[..self.mapping.len()]
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Region {
    /// The addresses; the content is not touched.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("range", &format_args!("{:#x?}", self.mapping.memory().range()))
            .field("len", &self.mapping.len())
            .finish()
    }
}

//! Memory that another process can take over: words in a file without a name.
//!
//! A process that is killed has made all of its stores up to some instruction, and none behind it.
//! So whoever comes after it finds what was stored in the order in which it was stored, as long as
//! the compiler keeps that order: words are stored by volatile writes, of which it leaves out and
//! reorders none.
#![expect(unsafe_code, reason = "maps a file, and uses its words")]
#![expect(clippy::disallowed_types, reason = "numbers in shared memory that guard none")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pervma_pager::sys::Message;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, mmap_anonymous, munmap};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();
/// Words of a page.
pub(crate) const PAGE: usize = 4096 / WORD;
/// Words of a message.
pub(crate) const MESSAGE: usize = size_of::<Message>() / WORD;

/// Words, all of them 0 at first.
///
/// M1: `start` is the address of a mapping of so many words, which this owns, and of a file that
/// cannot become shorter (or of none).
/// M2: a word is stored by one thread at a time, and loaded by no other meanwhile: the table says
/// of each word whose it is. Counters apart, which are atomic wherever they are used.
pub(crate) struct Memory {
    start: NonNull<u64>,
    words: usize,
    file: Option<OwnedFd>,
}

// SAFETY: it is memory (M1), and who may use which word does not depend on the thread (M2).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many words, in whole pages, of this process alone.
    ///
    /// # Errors
    ///
    /// The kernel's, of `mmap`.
    pub(crate) fn of_process(words: usize) -> io::Result<Self> {
        let len = words.next_multiple_of(PAGE) * WORD;
        // SAFETY: a new mapping, at addresses that the kernel chooses.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        Self::at(start, len, None)
    }

    /// So many words, in whole pages, in a file that has no name, and whose descriptor says where
    /// they are. Pages take memory when they are [had](Self::have).
    ///
    /// # Errors
    ///
    /// The kernel's: there may be no descriptor, or no memory.
    pub(crate) fn of_file(words: usize) -> io::Result<Self> {
        let len = words.next_multiple_of(PAGE) * WORD;
        let file = rustix::fs::memfd_create(
            "pervma-state",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        ftruncate(&file, len as u64)?;
        // Whoever it is passed to maps it, and would die of a page that has gone.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        #[cfg(test)]
        let file = super::deaths::made(file);
        let memory = Self::map(file, len)?;
        #[cfg(test)]
        super::deaths::opened(&memory);
        Ok(memory)
    }

    /// What another process has left in a file.
    ///
    /// # Errors
    ///
    /// The kernel's; `InvalidData` if it is no file of whole pages that stays as long as it is.
    pub(crate) fn left_in(file: OwnedFd) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        let len = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or_default();
        if !seals.contains(SealFlags::SHRINK) || len == 0 || !len.is_multiple_of(PAGE * WORD) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::map(file, len)
    }

    fn map(file: OwnedFd, len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at addresses that the kernel chooses.
        let start = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, &file, 0) }?;
        Self::at(start, len, Some(file))
    }

    fn at(start: *mut core::ffi::c_void, len: usize, file: Option<OwnedFd>) -> io::Result<Self> {
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, words: len / WORD, file })
    }

    /// How many words there are.
    pub(crate) fn len(&self) -> usize {
        self.words
    }

    /// Its file, if there is one.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// The number of the descriptor of its file; -1 if there is none.
    pub(crate) fn descriptor(&self) -> i32 {
        self.file().map_or(-1, |file| file.as_raw_fd())
    }

    /// Takes memory for some words, so that none is needed when they are stored.
    ///
    /// # Errors
    ///
    /// The kernel's: there is none.
    pub(crate) fn have(&self, first: usize, words: usize) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let (at, len) = ((first * WORD) as u64, (words * WORD) as u64);
        loop {
            match fallocate(file, FallocateFlags::empty(), at, len) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Has some words always in memory: the kernel writes them where it may not wait for a page.
    ///
    /// # Errors
    ///
    /// The kernel's: more than `RLIMIT_MEMLOCK` lets be locked, for example.
    pub(crate) fn lock(&self, first: usize, words: usize) -> io::Result<()> {
        let start = self.word(first);
        let _ = self.word(first + words - 1);
        // SAFETY: of this mapping (M1), which stays what it is.
        Ok(unsafe { mlock(start.as_ptr().cast(), words * WORD) }?)
    }

    fn word(&self, at: usize) -> NonNull<u64> {
        assert!(at < self.words, "a word of the memory");
        // SAFETY: within the mapping (M1), as was just checked.
        unsafe { self.start.add(at) }
    }

    pub(crate) fn load(&self, at: usize) -> u64 {
        // SAFETY: mapped and aligned (M1); nobody stores it meanwhile (M2).
        unsafe { self.word(at).read_volatile() }
    }

    /// Behind all that was stored before, and before all that is stored later: see the module.
    pub(crate) fn store(&self, at: usize, value: u64) {
        // SAFETY: mapped and aligned (M1); nobody else uses it meanwhile (M2).
        unsafe { self.word(at).write_volatile(value) };
        #[cfg(test)]
        super::deaths::stored(self, at, value);
    }

    /// Counts one more by a word that is a counter, and returns how many there are.
    pub(crate) fn count(&self, at: usize) -> u64 {
        let [counter] = self.counters(at);
        // RELAXED: a number that guards nothing.
        let count = counter.fetch_add(1, Relaxed) + 1;
        #[cfg(test)]
        super::deaths::stored(self, at, count);
        count
    }

    /// Words that are counters, of which each is used as such everywhere.
    pub(crate) fn counters<const COUNT: usize>(&self, first: usize) -> &[AtomicU64; COUNT] {
        let _ = self.word(first + COUNT - 1);
        // SAFETY: mapped and aligned (M1), as long as `self` is there, and atomic wherever they are
        // used (M2).
        unsafe { self.word(first).cast::<[AtomicU64; COUNT]>().as_ref() }
    }

    /// Words as space for so many messages.
    ///
    /// # Safety
    ///
    /// Nothing else uses these words as long as what is returned is there.
    #[expect(clippy::mut_from_ref, reason = "of each word there is one user, as the caller says")]
    pub(crate) unsafe fn messages(&self, first: usize, count: usize) -> &mut [Message] {
        let _ = self.word(first + count * MESSAGE - 1);
        // SAFETY: mapped and aligned (M1), no one else's, by the caller; all bytes are valid
        // messages.
        unsafe { slice::from_raw_parts_mut(self.word(first).as_ptr().cast(), count) }
    }

    /// Words as bytes.
    ///
    /// # Safety
    ///
    /// As for [`messages`](Self::messages).
    #[expect(clippy::mut_from_ref, reason = "of each word there is one user, as the caller says")]
    pub(crate) unsafe fn bytes(&self, first: usize, words: usize) -> &mut [u8] {
        let _ = self.word(first + words - 1);
        // SAFETY: mapped (M1), no one else's, by the caller; all bytes are valid.
        unsafe { slice::from_raw_parts_mut(self.word(first).as_ptr().cast(), words * WORD) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        #[cfg(test)]
        super::deaths::closed(self);
        // SAFETY: the mapping is this one's (M1), and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * WORD) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64, seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("pervma-state", flags).unwrap();
        ftruncate(&file, bytes).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn a_file_that_can_become_shorter_or_is_cut_off_is_refused() {
        let page = (PAGE * WORD) as u64;
        assert_eq!(Memory::left_in(file(2 * page, SealFlags::SHRINK)).unwrap().len(), 2 * PAGE);
        assert!(Memory::left_in(file(2 * page, SealFlags::GROW)).is_err());
        for bytes in [0, 1, page - 8, page + 8] {
            assert!(Memory::left_in(file(bytes, SealFlags::SHRINK)).is_err(), "{bytes}");
        }
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(Memory::left_in(other.into()).is_err());
    }

    #[test]
    fn what_is_stored_is_there_for_who_has_the_file() {
        let memory = Memory::of_file(PAGE + 1).unwrap();
        assert_eq!((memory.len(), memory.load(2 * PAGE - 1)), (2 * PAGE, 0));
        memory.store(2 * PAGE - 1, 7);
        assert_eq!((memory.count(3), memory.count(3)), (1, 2));
        let other = Memory::left_in(memory.file().unwrap().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((other.load(2 * PAGE - 1), other.load(3)), (7, 2));
    }
}

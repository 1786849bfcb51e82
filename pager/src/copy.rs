//! Copies from and to memory that others may access at the same time.
#![expect(unsafe_code, reason = "reads and writes a region's memory")]

use std::ops::Range;
use std::ptr;

use crate::mapping::Mapping;
use crate::sys::{CopyError, Errno, Fill, Memory};

/// Words at a time where both ends allow it.
const WORD: usize = size_of::<u64>();

/// Copies bytes out of a region, each as it is at some moment.
///
/// Volatile, since others may write: the memory is the kernel's, outside of everything that Rust
/// allocates, so this is no access that the language could call a race.
pub(crate) fn from_shared(memory: &Memory, offset: usize, bytes: &mut [u8]) {
    let mut from = part(memory, offset, bytes.len());
    let (head, words) = split(from, bytes.len());
    let (head, rest) = bytes.split_at_mut(head);
    let (words, tail) = rest.split_at_mut(words);
    for byte in head {
        // SAFETY: within the memory, which is mapped while it is borrowed.
        *byte = unsafe { from.read_volatile() };
        from = from.wrapping_add(1);
    }
    for word in words.chunks_exact_mut(WORD) {
        // SAFETY: as above, and aligned.
        let value = unsafe { from.cast::<u64>().read_volatile() };
        word.copy_from_slice(&value.to_ne_bytes());
        from = from.wrapping_add(WORD);
    }
    for byte in tail {
        // SAFETY: as above.
        *byte = unsafe { from.read_volatile() };
        from = from.wrapping_add(1);
    }
}

/// Copies bytes into a region, as [`from_shared`] copies them out.
pub(crate) fn to_shared(memory: &Memory, offset: usize, bytes: &[u8]) {
    let mut to = part(memory, offset, bytes.len());
    let (head, words) = split(to, bytes.len());
    let (head, rest) = bytes.split_at(head);
    let (words, tail) = rest.split_at(words);
    for byte in head {
        // SAFETY: within the memory, which is mapped while it is borrowed.
        unsafe { to.write_volatile(*byte) };
        to = to.wrapping_add(1);
    }
    for word in words.chunks_exact(WORD) {
        let mut value = [0; WORD];
        value.copy_from_slice(word);
        // SAFETY: as above, and aligned.
        unsafe { to.cast::<u64>().write_volatile(u64::from_ne_bytes(value)) };
        to = to.wrapping_add(WORD);
    }
    for byte in tail {
        // SAFETY: as above.
        unsafe { to.write_volatile(*byte) };
        to = to.wrapping_add(1);
    }
}

/// Where so many bytes from an offset on are, all within the memory.
fn part(memory: &Memory, offset: usize, len: usize) -> *mut u8 {
    let room = memory.range().len();
    assert!(offset <= room && len <= room - offset, "{len} bytes at {offset} are within {room}");
    memory.as_ptr().wrapping_add(offset)
}

/// How many bytes there are before the first aligned word, and how many bytes in words then.
fn split(shared: *const u8, len: usize) -> (usize, usize) {
    let head = shared.align_offset(WORD).min(len);
    (head, (len - head) / WORD * WORD)
}

/// A part of a mapping as a slice.
///
/// # Safety
///
/// The pages are there and may be read. While the slice lives the caller has them alone, and they
/// are write-protected.
pub(crate) unsafe fn alone<'m>(mapping: &'m Mapping, part: &Range<usize>) -> &'m [u8] {
    assert!(part.end <= mapping.memory.range().len(), "within the memory");
    let start = mapping.memory.as_ptr().wrapping_add(part.start);
    // SAFETY: mapped while the mapping is borrowed, and it does not change (contract).
    unsafe { &*ptr::slice_from_raw_parts(start, part.len()) }
}

/// Fills a new place of a region with what was written at the old one, which the caller has alone
/// and which may be read. How many of the kernel's pages that were.
pub(crate) fn dirty_pages(old: &Mapping, new: &Mapping) -> Result<usize, Errno> {
    let uffd = &old.backing.uffd;
    if old.backing.is_tracked {
        let whole = 0..old.memory.range().len();
        old.write_protect(&whole)?;
    }
    let mut copied = 0;
    let all = 0..old.records.len().min(new.records.len());
    for run in old.records.runs(all, |records, page| records.is_dirty(page)) {
        let part = old.offsets(run);
        // SAFETY: dirty pages are there (R2), the caller lets them be read and has them alone, and
        // they have just been write-protected.
        let bytes = unsafe { alone(old, &part) };
        let mut done = 0;
        while done < bytes.len() {
            match uffd.copy(&new.memory, part.start + done, &bytes[done..], Fill::default()) {
                Ok(()) => done = bytes.len(),
                Err(CopyError::Again { copied }) => done += copied,
                Err(CopyError::Other(errno)) => return Err(errno),
                Err(_) => return Err(Errno::INVAL),
            }
        }
        copied += new.records.fill(new.pages(&part), true, Some(new.records.tick()));
    }
    Ok(copied)
}

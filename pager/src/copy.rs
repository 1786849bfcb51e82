//! Copies from and to memory that others may access at the same time.
//!
//! Every access here is a relaxed atomic one of an aligned word, also where only some bytes of the
//! word are meant: accesses of different sizes that race are as undefined as those that are not
//! atomic. Bytes are written into a word by compare-and-swap, so that its other bytes stay what
//! other threads make them.
#![expect(unsafe_code, reason = "reads and writes a region's memory")]
#![expect(clippy::disallowed_types, reason = "words of memory whose users order their accesses")]

use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::mapping::Mapping;
use crate::records::Filling;
use crate::sys::{CopyError, Errno, Fill, Memory};

const WORD: usize = size_of::<u64>();

/// Copies bytes out of a region, each as it is at some moment.
pub(crate) fn from_shared(memory: &Memory, offset: usize, bytes: &mut [u8]) {
    let mut words = Words::new(memory, offset, bytes.len());
    let (head, rest) = bytes.split_at_mut(before_word(offset, bytes.len()));
    if !head.is_empty() {
        head.copy_from_slice(&words.next().load()[offset % WORD..][..head.len()]);
    }
    let (whole, tail) = rest.as_chunks_mut();
    for bytes in whole {
        *bytes = words.next().load();
    }
    if !tail.is_empty() {
        tail.copy_from_slice(&words.next().load()[..tail.len()]);
    }
}

/// Copies bytes into a region, each at some moment.
pub(crate) fn to_shared(memory: &Memory, offset: usize, bytes: &[u8]) {
    let mut words = Words::new(memory, offset, bytes.len());
    let (head, rest) = bytes.split_at(before_word(offset, bytes.len()));
    if !head.is_empty() {
        words.next().store_part(offset % WORD, head);
    }
    let (whole, tail) = rest.as_chunks();
    for bytes in whole {
        words.next().store(*bytes);
    }
    if !tail.is_empty() {
        words.next().store_part(0, tail);
    }
}

/// Copies whole pages of a region to words, which no other thread looks at. Whether any of them is
/// not zero.
pub(crate) fn to_words(memory: &Memory, offset: usize, words: &[AtomicU64]) -> bool {
    let mut from = Words::new(memory, offset, size_of_val(words));
    let mut all = 0;
    for word in words {
        // RELAXED: as below.
        let value = from.next().0.load(Relaxed);
        word.store(value, Relaxed);
        all |= value;
    }
    all != 0
}

/// Copies bytes of whole words to words, which no other thread looks at. Whether any is not zero.
pub(crate) fn bytes_to_words(bytes: &[u8], words: &[AtomicU64]) -> bool {
    let mut all = 0;
    for (bytes, word) in bytes.as_chunks().0.iter().zip(words) {
        let value = u64::from_ne_bytes(*bytes);
        // RELAXED: as below.
        word.store(value, Relaxed);
        all |= value;
    }
    all != 0
}

/// How many of the bytes lie before the first word that begins among them.
fn before_word(offset: usize, len: usize) -> usize {
    (offset.next_multiple_of(WORD) - offset).min(len)
}

/// The words of some bytes of a memory, in order.
struct Words<'m> {
    /// Invariant: an aligned word of `memory`, or its end.
    next: *mut u64,
    memory: &'m Memory,
}

impl<'m> Words<'m> {
    fn new(memory: &'m Memory, offset: usize, len: usize) -> Self {
        let all = memory.range().len();
        let fits = offset <= all && len <= all - offset;
        assert!(fits, "{len} bytes at {offset} are not within {all}");
        // Memory begins and ends with pages, so with words.
        let next = memory.as_ptr().cast::<u64>().wrapping_add(offset / WORD);
        Self { next, memory }
    }

    /// The next word. Asked for once for each word that has some of the bytes.
    #[inline]
    fn next(&mut self) -> Word<'m> {
        debug_assert!(self.memory.range().contains(&self.next.addr()), "within the memory");
        // SAFETY: aligned, and mapped while the memory is borrowed (invariant of `next`). Whether
        // its page is present does not matter: if not, the access faults and is made again. Others
        // access it by this function or as `Region::as_ptr` demands it, and slices of it are lent
        // only while nothing writes it; the kernel and devices are no threads of the language.
        let word = unsafe { AtomicU64::from_ptr(self.next) };
        self.next = self.next.wrapping_add(1);
        Word(word)
    }
}

/// Eight bytes of a memory.
struct Word<'m>(&'m AtomicU64);

impl Word<'_> {
    #[inline]
    fn load(&self) -> [u8; WORD] {
        // RELAXED: here and below, what orders accesses of several threads is theirs.
        self.0.load(Relaxed).to_ne_bytes()
    }

    #[inline]
    fn store(&self, bytes: [u8; WORD]) {
        self.0.store(u64::from_ne_bytes(bytes), Relaxed);
    }

    /// Writes the bytes from `at` on.
    fn store_part(&self, at: usize, bytes: &[u8]) {
        // A guess, so that the first access is a write: a page that is missing is one fault then.
        let mut found = 0;
        loop {
            let mut new = u64::to_ne_bytes(found);
            new[at..][..bytes.len()].copy_from_slice(bytes);
            let new = u64::from_ne_bytes(new);
            match self.0.compare_exchange_weak(found, new, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => found = now,
            }
        }
    }
}

/// A part of a mapping as a slice.
///
/// # Safety
///
/// The pages are present and may be read. While the slice lives the caller excludes them, and they
/// are write-protected.
pub(crate) unsafe fn excluded_pages<'m>(mapping: &'m Mapping, part: &Range<usize>) -> &'m [u8] {
    assert!(part.end <= mapping.memory.range().len(), "within the memory");
    let start = mapping.memory.as_ptr().wrapping_add(part.start);
    // SAFETY: mapped while the mapping is borrowed, and it does not change (contract).
    unsafe { &*ptr::slice_from_raw_parts(start, part.len()) }
}

/// Fills a new place of a region with what was written at the old one, which the caller excludes
/// and which may be read. How many of the kernel's pages that were.
pub(crate) fn dirty_pages(old: &Mapping, new: &Mapping) -> Result<usize, Errno> {
    let uffd = &old.backing.uffd;
    let mut copied = 0;
    let all = 0..old.records.len().min(new.records.len());
    for run in old.records.runs(all, |records, page| records.is_dirty(page)) {
        let part = old.offsets(run);
        // Only these: the others are (R2), or are missing and are to stay as they are.
        old.write_protect(&part)?;
        // SAFETY: dirty pages are present (R2), the caller lets them be read and excludes them, and
        // they have just been write-protected.
        let bytes = unsafe { excluded_pages(old, &part) };
        let mut done = 0;
        while done < bytes.len() {
            match uffd.copy(&new.memory, part.start + done, &bytes[done..], Fill::default()) {
                Ok(()) => done = bytes.len(),
                Err(CopyError::Again { copied }) => done += copied,
                Err(CopyError::Other(errno)) => return Err(errno),
                Err(_) => return Err(Errno::INVAL),
            }
        }
        let filling = Filling { time: new.records.tick(), is_hot: false };
        copied += new.records.fill(new.pages(&part), true, Some(filling));
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Access, PageSize};

    fn memory() -> Memory {
        let memory = Memory::map(4096, PageSize::Small).unwrap();
        memory.protect(0..4096, Access::ReadWrite).unwrap();
        memory
    }

    #[test]
    fn bytes_at_any_offset_and_of_any_number_are_copied() {
        let memory = memory();
        let mut expected = [0_u8; 64];
        for (offset, len) in (0..20).flat_map(|offset| (0..30).map(move |len| (offset, len))) {
            let bytes: Vec<u8> = (0..len).map(|at| (offset * 31 + at * 7 + 1) as u8).collect();
            to_shared(&memory, offset, &bytes);
            expected[offset..][..len].copy_from_slice(&bytes);
            let mut found = [0; 64];
            from_shared(&memory, 0, &mut found);
            assert_eq!(found, expected, "{len} bytes at {offset}");
            let mut part = vec![0; len];
            from_shared(&memory, offset, &mut part);
            assert_eq!(part, bytes, "{len} bytes at {offset}");
        }
        from_shared(&memory, 4095, &mut [0]);
        to_shared(&memory, 4096, &[]);
    }

    #[test]
    fn threads_that_write_bytes_of_one_word_lose_none() {
        let memory = &memory();
        std::thread::scope(|scope| {
            for at in [7, 8, 9, 10] {
                scope.spawn(move || {
                    for value in (0..=255).cycle().take(50_000) {
                        to_shared(memory, at, &[value]);
                        // Until long after: others write what they found before.
                        for _ in 0..20 {
                            let mut found = [0];
                            from_shared(memory, at, &mut found);
                            assert_eq!(found, [value], "at {at}");
                        }
                    }
                });
            }
        });
    }

    #[test]
    #[should_panic(expected = "are not within")]
    fn bytes_beyond_the_memory_are_refused() {
        from_shared(&memory(), 4090, &mut [0; 7]);
    }
}

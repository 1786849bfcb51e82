//! Where bytes go between a source and the kernel.
//!
//! A region has its buffers from the beginning, since the fault path may not allocate, and since
//! neither an alternate signal stack nor a thread-local is the place for them. Each has a lock,
//! which is only ever tried: a thread that finds none free is put off. No thread tries the lock
//! that it holds, since no fault is served within another.
#![expect(unsafe_code, reason = "lends parts of a memory")]

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::sys::{Access, Errno, Memory, PageSize};

/// The buffers of a region.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// Memory that can be written, of which no thread touches a part but by its lock. Nothing of it
    /// takes memory before it is touched. `None` of no buffers.
    memory: Option<Memory>,
    large: Kind,
    /// For when no large one is free.
    small: Kind,
}

/// Buffers of one size, one behind the other.
#[derive(Debug, Default)]
struct Kind {
    start: usize,
    end: usize,
    /// Of each; whole pages.
    bytes: usize,
    locks: Box<[Mutex<()>]>,
}

/// A buffer, for one thread.
pub(crate) struct Buffer<'a> {
    bytes: &'a mut [u8],
    _lock: MutexGuard<'a, ()>,
}

impl Buffers {
    /// No source is asked for more at once, however large the granule.
    pub(crate) const MOST: usize = 8 << 20;
    /// The size of small ones, and of large ones at least if the granule is.
    pub(crate) const SMALL: usize = 64 << 10;
    /// So many small ones.
    const MANY: usize = 128;
    /// And of any kind so many, if they are not larger together than allowed.
    const FEW: usize = 8;
    /// Large ones have so many bytes together.
    const TOGETHER: usize = 32 << 20;

    /// None, for a source that is not read.
    pub(crate) fn none() -> Self {
        Self { memory: None, large: Kind::default(), small: Kind::default() }
    }

    /// For so many handler threads: one for each, of a granule.
    pub(crate) fn of_threads(threads: usize, granule: usize) -> Result<Self, Errno> {
        Self::new(granule.min(Self::MOST), threads, 0)
    }

    /// For any number of threads, which fill `granules` granules; more, if the region becomes
    /// longer.
    pub(crate) fn of_handlers(granules: usize, granule: usize) -> Result<Self, Errno> {
        let bytes = granule.min(Self::MOST);
        let granules = granules.max(Self::FEW);
        if bytes <= Self::SMALL {
            return Self::new(bytes, granules.min(Self::MANY), 0);
        }
        let large = granules.min(Self::TOGETHER / bytes);
        let small = if large < granules { Self::MANY } else { 0 };
        Self::new(bytes, large, small)
    }

    fn new(bytes: usize, large: usize, small: usize) -> Result<Self, Errno> {
        let large = Kind::new(0, bytes, large).ok_or(Errno::NOMEM)?;
        let small = Kind::new(large.end, Self::SMALL, small).ok_or(Errno::NOMEM)?;
        let end = small.end;
        let memory = Memory::map(end, PageSize::Small)?;
        memory.protect(0..end, Access::ReadWrite)?;
        Ok(Self { memory: Some(memory), large, small })
    }

    /// A free one: if there is none of `wanted` bytes, a smaller one. `None` if there is no other
    /// either. It does not wait.
    pub(crate) fn take(&self, wanted: usize) -> Option<Buffer<'_>> {
        let (first, then) = if wanted <= self.small.bytes {
            (&self.small, &self.large)
        } else {
            (&self.large, &self.small)
        };
        let memory = self.memory.as_ref()?;
        first.take(memory).or_else(|| then.take(memory))
    }
}

impl Kind {
    /// `None` if there cannot be so many.
    fn new(start: usize, bytes: usize, count: usize) -> Option<Self> {
        let end = start.checked_add(bytes.checked_mul(count)?)?;
        let mut locks = Vec::new();
        locks.try_reserve_exact(count).ok()?;
        locks.resize_with(count, Mutex::default);
        Some(Self { start, end, bytes, locks: locks.into() })
    }

    /// The first that is free, so that no more are touched than are used at a time.
    fn take<'a>(&'a self, memory: &'a Memory) -> Option<Buffer<'a>> {
        let (number, lock) = self.locks.iter().enumerate().find_map(|(number, lock)| {
            match lock.try_lock() {
                Ok(lock) => Some((number, lock)),
                // Its thread has panicked, and left nothing behind that matters.
                Err(TryLockError::Poisoned(lock)) => Some((number, lock.into_inner())),
                Err(TryLockError::WouldBlock) => None,
            }
        })?;
        let start = memory.as_ptr().wrapping_add(self.start + number * self.bytes);
        // SAFETY: so many bytes of the memory (`new`), which is anonymous, and can be read and
        // written. They are this thread's while it holds their lock.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, self.bytes) };
        Some(Buffer { bytes, _lock: lock })
    }
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_buffer_is_one_threads() {
        let buffers = Buffers::of_threads(2, 4096).unwrap();
        let (mut first, mut second) = (buffers.take(4096).unwrap(), buffers.take(4096).unwrap());
        assert!(buffers.take(4096).is_none());
        first.fill(1);
        second.fill(2);
        assert!(first.iter().all(|&byte| byte == 1));
        drop(first);
        assert_eq!(buffers.take(4096).unwrap()[4095], 1, "it is the same again");
    }

    #[test]
    fn when_no_large_one_is_free_a_small_one_is_taken() {
        let buffers = Buffers::of_handlers(1000, 2 * MIB).unwrap();
        let sizes: Vec<_> = std::iter::from_fn(|| {
            buffers.take(MIB).map(|buffer| std::mem::ManuallyDrop::new(buffer).len())
        })
        .collect();
        let (large, small) = sizes.split_at(16);
        assert!(large.iter().all(|&bytes| bytes == 2 * MIB));
        assert_eq!(small, [Buffers::SMALL; Buffers::MANY]);
    }

    #[test]
    fn little_is_read_into_a_small_one() {
        let buffers = Buffers::of_handlers(1000, 2 * MIB).unwrap();
        assert_eq!(buffers.take(4096).unwrap().len(), Buffers::SMALL);
        let buffers = Buffers::of_handlers(3, 4 * MIB).unwrap();
        assert_eq!(buffers.take(4096).unwrap().len(), 4 * MIB, "there are no others");
        assert!(Buffers::of_handlers(1, usize::MAX / 2 + 1).is_ok());
        assert!(Buffers::none().take(4096).is_none());
    }

    #[test]
    fn too_many_are_an_error() {
        assert_eq!(Buffers::of_threads(usize::MAX, 4096).unwrap_err(), Errno::NOMEM);
    }
}

//! Where bytes go between a source and the kernel: they are copied from there, or the pages that
//! they were read to are moved, which are huge pages then.
//!
//! A region has its buffers from the beginning, since the fault path may not allocate, and since
//! neither an alternate signal stack nor a thread-local is the place for them. Each has a lock,
//! which is only ever tried: a thread that finds none free is put off. No thread tries the lock
//! that it holds, since no fault is served within another.
#![expect(unsafe_code, reason = "lends parts of a memory")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
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
    /// Of each; whole pages, and whole huge pages if it is at least one.
    bytes: usize,
    locks: Box<[Mutex<State>]>,
}

/// A buffer, for one thread.
pub(crate) struct Buffer<'a> {
    /// Invariant: so many bytes that can be read and written, and are lent to this for `'a`.
    start: *mut u8,
    len: usize,
    /// If it is one of a region's.
    pooled: Option<Pooled<'a>>,
    /// So many bytes, from its start on, are in huge pages that can be moved.
    huge: usize,
    _lent: PhantomData<&'a mut [u8]>,
}

struct Pooled<'a> {
    memory: &'a Memory,
    /// What of it the buffer is.
    range: Range<usize>,
    state: MutexGuard<'a, State>,
}

/// What a buffer was used for.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Nothing is present of it: it is zeros, and the kernel may make it of huge pages.
    is_empty: bool,
    /// No huge pages could be had, or none be moved, so often in a row.
    misses: u32,
    /// It is copied from so many more times before huge pages are tried again.
    copies: u32,
}

impl State {
    const NEW: Self = Self { is_empty: true, misses: 0, copies: 0 };

    /// The more often it was in vain, the longer they are not tried: a try in vain costs as much as
    /// two fills.
    fn miss(&mut self) {
        const MOST: u32 = 8;
        self.copies = 1 << self.misses;
        self.misses = MOST.min(self.misses + 1);
    }
}

/// The size of a huge page.
pub(crate) const HUGE: usize = PageSize::Huge.bytes();

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
        Self::new(size(granule), threads, 0)
    }

    /// For any number of threads, which fill `granules` granules; more, if the region becomes
    /// longer.
    pub(crate) fn of_handlers(granules: usize, granule: usize) -> Result<Self, Errno> {
        let bytes = size(granule);
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
        let align = if bytes < HUGE { PageSize::Small.bytes() } else { HUGE };
        let memory = Memory::map_aligned(end, align, PageSize::Small)?;
        memory.protect(0..end, Access::ReadWrite)?;
        Ok(Self { memory: Some(memory), large, small })
    }

    /// Has the kernel make large ones of huge pages from now on; whether they can be.
    pub(crate) fn ask_for_huge(&self) -> bool {
        let large = self.large.start..self.large.end;
        let memory = self.memory.as_ref().filter(|_| self.large.bytes >= HUGE && !large.is_empty());
        memory.is_some_and(|memory| memory.ask_for_huge(large).is_ok())
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
        locks.resize_with(count, || Mutex::new(State::NEW));
        Some(Self { start, end, bytes, locks: locks.into() })
    }

    /// The first that is free, so that no more are touched than are used at a time.
    fn take<'a>(&'a self, memory: &'a Memory) -> Option<Buffer<'a>> {
        let (number, state) = self.locks.iter().enumerate().find_map(|(number, lock)| {
            match lock.try_lock() {
                Ok(state) => Some((number, state)),
                // Its thread has panicked in the source.
                Err(TryLockError::Poisoned(lock)) => Some((number, lock.into_inner())),
                Err(TryLockError::WouldBlock) => None,
            }
        })?;
        let at = self.start + number * self.bytes;
        let pooled = Pooled { memory, range: at..at + self.bytes, state };
        // So many bytes of the memory (`new`), which is anonymous, and can be read and written.
        // They are this thread's while it holds their lock.
        let start = memory.as_ptr().wrapping_add(at);
        let (len, pooled, huge) = (self.bytes, Some(pooled), 0);
        Some(Buffer { start, len, pooled, huge, _lent: PhantomData })
    }
}

/// Of a buffer for granules of that size.
fn size(granule: usize) -> usize {
    let bytes = granule.min(Buffers::MOST);
    if bytes < HUGE { bytes } else { bytes.next_multiple_of(HUGE) }
}

impl<'a> Buffer<'a> {
    /// The running thread's own.
    pub(crate) fn own(bytes: &'a mut [u8]) -> Self {
        let (start, len, pooled, huge) = (bytes.as_mut_ptr(), bytes.len(), None, 0);
        Self { start, len, pooled, huge, _lent: PhantomData }
    }

    /// Makes it ready for so many bytes, the first `huge` of them in huge pages, if that can be.
    /// They are zeros then, but for the first `filled`, which the caller writes in any case.
    #[inline]
    pub(crate) fn clear(&mut self, bytes: usize, filled: usize, huge: usize) {
        // What was read before may not have been installed by a move, or at all.
        self.huge = 0;
        let is_empty = self.pooled.as_mut().is_some_and(|pooled| {
            if huge > 0 {
                self.huge = pooled.begin_huge(huge);
            }
            std::mem::replace(&mut pooled.state.is_empty, false)
        });
        if !is_empty {
            self[filled..bytes].fill(0);
        }
    }

    /// What can be moved: so much of the memory.
    #[inline]
    pub(crate) fn huge(&self) -> Option<(&Memory, Range<usize>)> {
        let pooled = self.pooled.as_ref().filter(|_| self.huge > 0)?;
        Some((pooled.memory, pooled.range.start..pooled.range.start + self.huge))
    }

    /// Of what could be moved, so much was, from the start on, which is zeros again. So many bytes
    /// were used.
    pub(crate) fn have_moved(&mut self, moved: usize, used: usize) {
        let all = std::mem::take(&mut self.huge);
        let Some(pooled) = self.pooled.as_mut().filter(|_| all > 0) else { return };
        if moved < all {
            pooled.state.miss();
        } else {
            pooled.state.misses = 0;
            pooled.state.is_empty = moved == used;
        }
    }
}

impl Pooled<'_> {
    /// Has huge pages for so many bytes from the start on, if that is to be tried now; for how many
    /// there are some.
    ///
    /// The kernel has none at all, or none to give, or keeps a page table here after it has taken
    /// small pages. A fill by small pages that are moved takes longer than a copy, so it is to be
    /// known before anything is read.
    fn begin_huge(&mut self, bytes: usize) -> usize {
        if self.state.copies > 0 {
            self.state.copies -= 1;
            return 0;
        }
        let is_empty = self.state.is_empty || self.memory.discard(self.range.clone()).is_ok();
        self.state.is_empty = is_empty;
        let mut huge = 0;
        while is_empty && huge < bytes && self.touch_huge(huge) {
            huge += HUGE;
        }
        if huge == 0 {
            self.state.miss();
        }
        huge
    }

    /// Has the kernel fill what is missing from an offset on; whether that is a huge page.
    fn touch_huge(&self, at: usize) -> bool {
        let start = self.range.start + at;
        // SAFETY: a byte of the buffer, which is this thread's while it holds the lock, and which
        // no reference has: it is in the middle of a method that has all of it.
        unsafe { self.memory.as_ptr().wrapping_add(start).write_volatile(0) };
        // Its end was touched by no one.
        self.memory.is_resident(start + HUGE - PageSize::Small.bytes())
    }
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: invariant of `start`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: invariant of `start`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mapping::{Mapping, Outcome, PAGE, SPACE};
    use crate::{FrozenRegion, Options, ReadFailed, SignalSafe, Source};

    const MIB: usize = 1 << 20;

    struct Sevens;

    impl Source for Sevens {
        fn size(&self) -> u64 {
            4 * HUGE as u64
        }

        fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
            buf.fill(7);
            Ok(())
        }
    }

    // SAFETY: the buffer it is given.
    unsafe impl SignalSafe for Sevens {}

    fn frozen() -> (FrozenRegion, Arc<Mapping>) {
        let region = Options::new().granule(HUGE).map(Sevens).unwrap().freeze().unwrap();
        let mapping = SPACE.try_read(region.as_ptr().addr()).map(|vma| Arc::clone(&vma.mapping));
        (region, mapping.unwrap())
    }

    /// A huge page with something in it; `None` if there is none.
    fn filled(mapping: &Mapping) -> Option<Buffer<'_>> {
        let mut buffer = mapping.backing.buffers.take(HUGE)?;
        // Now and then the kernel has none, if its memory is in pieces.
        for _ in 0..20 {
            buffer.pooled.as_mut()?.state.copies = 0;
            buffer.clear(HUGE, 0, HUGE);
            assert!(buffer.iter().all(|&byte| byte == 0));
            if buffer.huge().is_some() && mapping.backing.uffd.can_move() {
                buffer.fill(3);
                return Some(buffer);
            }
        }
        println!("NOT RUN: this kernel has no huge page to give, or cannot move it");
        None
    }

    #[test]
    fn a_buffer_that_was_moved_is_empty_and_made_of_a_huge_page_again() {
        let (region, mapping) = frozen();
        for granule in [0, 1] {
            let Some(mut buffer) = filled(&mapping) else { return };
            let place = granule * HUGE..(granule + 1) * HUGE;
            let installed = mapping.install_read(&place, &mut buffer, None, Access::Read);
            assert_eq!(installed, (HUGE / PAGE, Outcome::Done));
            assert!(region[place].iter().all(|&byte| byte == 3));
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn what_is_read_next_is_not_moved_for_what_was_read_before() {
        let (_region, mapping) = frozen();
        let Some(mut buffer) = filled(&mapping) else { return };
        buffer.clear(PAGE, 0, 0);
        assert!(buffer.huge().is_none() && buffer[..PAGE].iter().all(|&byte| byte == 0));
    }

    /// B36. As Linux 6.18 does now and then: it moves a page, and says that one was there already.
    #[test]
    fn a_huge_page_that_has_moved_although_the_kernel_does_not_say_so_has_come() {
        let (region, mapping) = frozen();
        let Some(mut buffer) = filled(&mapping) else { return };
        let (from, part) = buffer.huge().unwrap();
        mapping.memory.protect_as_locked(0..HUGE, Access::ReadWrite).unwrap();
        mapping.backing.uffd.move_pages(from, part, &mapping.memory, 0).unwrap();
        mapping.memory.protect_as_locked(0..HUGE, Access::Read).unwrap();
        let installed = mapping.install_read(&(0..HUGE), &mut buffer, None, Access::Read);
        assert_eq!(installed, (HUGE / PAGE, Outcome::Done));
        assert!(region[..HUGE].iter().all(|&byte| byte == 3));
    }

    /// As a device might do, the child has the page too.
    #[test]
    fn a_huge_page_that_is_not_this_processs_alone_is_copied() {
        let (region, mapping) = frozen();
        let Some(mut buffer) = filled(&mapping) else { return };
        // SAFETY: the buffer's memory, of which nothing changes by that.
        let done = unsafe { libc::madvise(buffer.start.cast(), HUGE, libc::MADV_DOFORK) };
        assert_eq!(done, 0);
        // SAFETY: the child waits until it is ended.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: no condition.
                unsafe { libc::pause() };
            }
        }
        let installed = mapping.install_read(&(0..HUGE), &mut buffer, None, Access::Read);
        // SAFETY: ends the child.
        unsafe { libc::kill(child, libc::SIGKILL) };
        // SAFETY: waits for that.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        assert_eq!(installed, (HUGE / PAGE, Outcome::Done));
        assert!(region[..HUGE].iter().all(|&byte| byte == 3));
        drop(buffer);
        let mut buffer = mapping.backing.buffers.take(HUGE).unwrap();
        buffer.clear(HUGE, 0, HUGE);
        assert!(buffer.huge().is_none(), "it is copied from");
        assert!(buffer.iter().all(|&byte| byte == 0));
        assert_eq!(buffer.pooled.unwrap().state.copies, 0, "until it is tried again");
    }

    #[test]
    fn the_more_often_there_was_no_huge_page_the_longer_none_is_tried() {
        let mut state = State::NEW;
        let copies: Vec<_> = std::iter::repeat_with(|| {
            state.miss();
            state.copies
        })
        .take(11)
        .collect();
        assert_eq!(copies, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256]);
    }

    #[test]
    fn only_frozen_regions_that_were_not_writable_have_huge_pages() {
        let map = |options: Options| options.map(Sevens).unwrap();
        let is_for_huge = |start: *const u8, pages, access| {
            let vma = SPACE.try_read(start.addr()).unwrap();
            vma.mapping.is_for_huge(&pages, access)
        };
        let huge = Options::new().granule(HUGE);
        for options in [huge.clone().writable(), Options::new().granule(HUGE / 2)] {
            let frozen = map(options).freeze().unwrap();
            assert!(!is_for_huge(frozen.as_ptr(), 0..HUGE, Access::Read));
        }
        let region = map(huge);
        assert!(!is_for_huge(region.as_ptr(), 0..HUGE, Access::Read));
        let (frozen, mapping) = frozen();
        let can_move = mapping.backing.can_move_huge();
        assert_eq!(is_for_huge(frozen.as_ptr(), 0..HUGE, Access::Read), can_move);
        assert!(!is_for_huge(frozen.as_ptr(), 0..HUGE, Access::ReadExecute));
        assert!(!is_for_huge(frozen.as_ptr(), PAGE..HUGE, Access::Read));
        assert!(!is_for_huge(frozen.thaw().as_ptr(), 0..HUGE, Access::Read));
    }

    #[test]
    fn buffers_of_huge_pages_begin_with_them() {
        let buffers = Buffers::of_threads(2, HUGE + PAGE).unwrap();
        let (first, second) = (buffers.take(HUGE).unwrap(), buffers.take(HUGE).unwrap());
        assert!([&first, &second].iter().all(|buffer| buffer.start.addr().is_multiple_of(HUGE)));
        assert_eq!([first.len(), second.len()], [2 * HUGE; 2]);
    }

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

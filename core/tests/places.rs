//! Where VMAs are placed: the first of a slab in pairs of cache lines of their own, and nowhere is
//! memory left unused when there is no more.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::Layout;
use std::cell::Cell;
use std::collections::HashMap;
use std::ptr;
use std::time::Instant;

use pervma::{
    AddressSpace, ChangeError, GlobalMemory, Platform, SlabMemory, StdPlatform, ThreadState,
    WaitWord,
};

thread_local! {
    /// Chunks that there is memory for.
    static CHUNKS: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// As many chunks as `CHUNKS` says.
enum Bounded {}

// SAFETY: `GlobalMemory`'s, or none.
unsafe impl SlabMemory for Bounded {
    fn alloc(layout: Layout) -> *mut u8 {
        let Some(left) = CHUNKS.get().checked_sub(1) else { return ptr::null_mut() };
        CHUNKS.set(left);
        GlobalMemory::alloc(layout)
    }

    unsafe fn dealloc(chunk: *mut u8, layout: Layout) {
        // SAFETY: as the caller says; it was allocated there.
        unsafe { GlobalMemory::dealloc(chunk, layout) }
    }
}

/// `StdPlatform` with that memory.
enum Host {}

// SAFETY: `StdPlatform` does what it promises, and so does the memory.
unsafe impl Platform for Host {
    type Lock = <StdPlatform as Platform>::Lock;
    type Memory = Bounded;
    type Deadline = Instant;

    fn wait(word: &WaitWord, seen: u32, deadline: Option<Instant>) -> bool {
        StdPlatform::wait(word, seen, deadline)
    }

    fn wake(word: &WaitWord) {
        StdPlatform::wake(word);
    }

    fn wake_all(word: &WaitWord) {
        StdPlatform::wake_all(word);
    }

    fn with_thread<R>(f: impl FnOnce(&ThreadState) -> R) -> Option<R> {
        StdPlatform::with_thread(f)
    }
}

fn insert<T, P: Platform>(
    space: &AddressSpace<T, P>,
    number: usize,
    payload: T,
) -> Result<(), ChangeError> {
    let at = number * 10;
    space.insert(at..at + 5, payload).map_err(|error| error.kind)
}

/// The VMAs of `space` by the cache lines, of `size` bytes, that the beginnings of their payloads
/// are in.
fn lines<T, P: Platform>(
    space: &AddressSpace<T, P>,
    vmas: usize,
    size: usize,
) -> HashMap<usize, Vec<usize>> {
    let mut lines = HashMap::<_, Vec<_>>::new();
    for number in 0..vmas {
        let vma = space.try_read(number * 10).unwrap();
        lines.entry(ptr::from_ref(&*vma).addr() / size).or_default().push(number);
    }
    lines
}

/// So many VMAs have pairs of lines of their own.
const APART: usize = if cfg!(miri) { 100 } else { 1_016 };

fn are_apart<T: Copy>(payload: T) {
    let space = AddressSpace::new(1);
    for number in 0..APART {
        insert(&space, number, payload).unwrap();
    }
    let pairs = lines(&space, APART, 128);
    let shared: Vec<_> = pairs.values().filter(|vmas| vmas.len() > 1).collect();
    assert!(shared.is_empty(), "{} bytes: in the same pair: {shared:?}", size_of::<T>());
}

#[test]
fn the_first_vmas_share_no_pair_of_cache_lines() {
    are_apart(0_u8);
    are_apart(0_u64);
    let _elsewhere = Box::new([0_u8; 100]);
    are_apart([0_u64; 2]);
    are_apart([0_u64; 3]);
}

/// How many VMAs there is memory for, and the space that they are in.
fn fill<T: Copy>(chunks: usize, payload: T) -> (usize, AddressSpace<T, Host>) {
    CHUNKS.set(chunks);
    let space = AddressSpace::with_platform(1);
    let all = (0..).take_while(|&number| match insert(&space, number, payload) {
        Ok(()) => true,
        Err(ChangeError::OutOfMemory { .. }) => false,
        Err(error) => panic!("{error}"),
    });
    (all.count(), space)
}

#[test]
fn all_places_are_used_when_there_is_no_more_memory() {
    // One chunk of VMAs and one of nodes.
    assert_eq!(fill(2, 0_u64).0, 16);
    assert_eq!(fill(2, [0_u64; 3]).0, 16);
    for chunks in 1..if cfg!(miri) { 6 } else { 14 } {
        let (small, space) = fill(chunks, 7_u64);
        let (large, _) = fill(chunks, [0_u64; 3]);
        // One kind asks for its next chunk sooner, so what the other can have may be less by one.
        assert!(small * 2 >= large, "{chunks} chunks: {small} small VMAs, {large} large ones");
        // Where there is memory again it goes on, and no place is used twice.
        CHUNKS.set(usize::MAX);
        let vmas = small + if cfg!(miri) { 50 } else { 5_000 };
        for number in small..vmas {
            insert(&space, number, 7).unwrap();
        }
        assert_eq!(lines(&space, vmas, 64).len(), vmas);
        assert!((0..vmas).all(|number| *space.try_read(number * 10).unwrap() == 7));
    }
}

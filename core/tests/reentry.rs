//! Code of others that runs in the middle of an operation, and ends what its thread has of the
//! space there: at each allocation and at each call of user code, one after the other.
//!
//! Reservations can be dropped and committed in an edit that the thread has open, so also within an
//! operation of that edit. They surround what is changed, so that nodes of the tree are merged when
//! they end. The platform of this program asks for memory where one can that waits in queues, as
//! `parking_lot`'s locks do.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::hint;
use std::mem;
use std::ops::Range;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::{self, LocalKey};
use std::time::Instant;

use common::watchdog;
use pervma::lock_api::{RawRwLock, RawRwLockDowngrade};
use pervma::{
    AddressSpace, ChangeError, GapError, GapSearch, GlobalMemory, Payload, Platform, Reservation,
    Slab, StdLock, StdPlatform, ThreadState, WaitWord,
};

/// A reservation that is ended in the middle.
type Kept = Reservation<'static, Color, Queues>;
type Space = AddressSpace<Color, Queues>;

thread_local! {
    /// Allocations until the interruption runs; it does not when this is negative.
    static ALLOCATIONS_LEFT: Cell<isize> = const { Cell::new(-1) };
    /// The same, of calls of user code.
    static CALLS_LEFT: Cell<isize> = const { Cell::new(-1) };
    /// What the interruption ends, and how.
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
    static END: Cell<fn(Kept)> = const { Cell::new(drop) };
    /// Reservations that became VMAs.
    static COMMITTED: Cell<usize> = const { Cell::new(0) };
}

/// Counts one event, and runs the interruption if it is its turn.
fn event(left: &'static LocalKey<Cell<isize>>) {
    let now = left.get();
    left.set(if now > 0 { now - 1 } else { -1 });
    if now == 0 {
        KEPT.take().into_iter().for_each(END.get());
    }
}

struct Interrupted;

// SAFETY: the system's allocator.
unsafe impl GlobalAlloc for Interrupted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        event(&ALLOCATIONS_LEFT);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Interrupted = Interrupted;

/// A platform that asks for memory before it waits, and always before it takes a lock.
enum Queues {}

// SAFETY: `StdPlatform` does what it promises.
unsafe impl Platform for Queues {
    type Lock = Lock;
    type Memory = GlobalMemory;
    type Deadline = Instant;

    fn wait(word: &WaitWord, seen: u32, deadline: Option<Instant>) -> bool {
        ask_for_memory();
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

struct Lock(StdLock);

fn ask_for_memory() {
    drop(hint::black_box(Box::new(0)));
}

// SAFETY: `StdLock` keeps the contract, and each call is handed on to it.
unsafe impl RawRwLock for Lock {
    const INIT: Self = Self(StdLock::INIT);

    type GuardMarker = <StdLock as RawRwLock>::GuardMarker;

    fn lock_shared(&self) {
        ask_for_memory();
        self.0.lock_shared();
    }
    fn try_lock_shared(&self) -> bool {
        self.0.try_lock_shared()
    }
    unsafe fn unlock_shared(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.unlock_shared() };
    }
    fn lock_exclusive(&self) {
        ask_for_memory();
        self.0.lock_exclusive();
    }
    fn try_lock_exclusive(&self) -> bool {
        self.0.try_lock_exclusive()
    }
    unsafe fn unlock_exclusive(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.unlock_exclusive() };
    }
}

// SAFETY: as for `RawRwLock`.
unsafe impl RawRwLockDowngrade for Lock {
    unsafe fn downgrade(&self) {
        // SAFETY: as the caller says.
        unsafe { self.0.downgrade() };
    }
}

/// A payload that merges with its like.
#[derive(Clone, Debug, PartialEq)]
struct Color(Box<u32>);

impl Color {
    fn new(color: u32) -> Self {
        Self(Box::new(color))
    }

    /// As user code makes one.
    fn made(&self) -> Self {
        event(&CALLS_LEFT);
        self.clone()
    }
}

impl Drop for Color {
    fn drop(&mut self) {
        event(&CALLS_LEFT);
    }
}

impl Payload for Color {
    fn split(&self, _offset: usize) -> Option<(Self, Self)> {
        Some((self.made(), self.made()))
    }

    fn merge(&self, _len: usize, next: &Self) -> Option<Self> {
        event(&CALLS_LEFT);
        (self == next).then(|| self.made())
    }
}

/// What merges with nothing.
const COMMITTED_COLOR: u32 = 100;

fn commit(mut kept: Kept) {
    kept.commit(Color::new(COMMITTED_COLOR)).unwrap();
    COMMITTED.set(COMMITTED.get() + 1);
}

/// Where the VMAs begin. Each has a reservation in front and behind that touches it or one that
/// does.
const VMAS: usize = 100_000;

type Operation = (&'static str, fn(&Space) -> Result<(), ChangeError>);

const OPERATIONS: &[Operation] = &[
    ("insert", |space| {
        let inserted = space.edit().unwrap().insert(VMAS + 60..VMAS + 70, Color::new(7));
        inserted.map_err(|error| error.kind)
    }),
    ("reserve", |space| space.edit().unwrap().reserve(VMAS + 60..VMAS + 70).map(mem::forget)),
    ("remove", |space| space.edit().unwrap().remove(VMAS + 5..VMAS + 35).map(drop)),
    ("remove one", |space| space.edit().unwrap().remove(VMAS + 10..VMAS + 20).map(drop)),
    ("remove inside", |space| space.edit().unwrap().remove(VMAS + 3..VMAS + 5).map(drop)),
    ("update", |space| {
        let mut edit = space.edit().unwrap();
        edit.update(VMAS + 3..VMAS + 5, |_, _| Color::new(9).made()).map(drop)
    }),
    ("update that joins", |space| {
        let mut edit = space.edit().unwrap();
        edit.update(VMAS + 10..VMAS + 20, |_, _| Color::new(1).made()).map(drop)
    }),
    ("replace", |space| {
        let replaced = space.edit().unwrap().replace(VMAS + 5..VMAS + 25, Color::new(7));
        replaced.map(drop).map_err(|error| error.kind)
    }),
    ("relocate", |space| {
        let mut edit = space.edit().unwrap();
        edit.relocate(VMAS + 5..VMAS + 35, VMAS + 60, |_, color| color.made()).map(drop)
    }),
    ("fork", |space| space.edit().unwrap().fork(|_, color| Some(color.made())).map(drop)),
    ("remove outside", |space| space.remove(VMAS + 5..VMAS + 35).map(drop)),
    ("update outside", |space| {
        space.update(VMAS + 10..VMAS + 20, |_, _| Color::new(1).made()).map(drop)
    }),
    ("replace outside", |space| {
        let replaced = space.replace(VMAS + 5..VMAS + 25, Color::new(7));
        replaced.map(drop).map_err(|error| error.kind)
    }),
    ("remove and reserve", |space| {
        let exclusion = space.exclude(VMAS + 5..VMAS + 35)?;
        exclusion.remove_reserving().map(mem::forget)
    }),
    ("relocate outside", |space| {
        space.relocate(VMAS + 5..VMAS + 35, VMAS + 60, |_, color| color.made()).map(drop)
    }),
];

/// Spaces are never dropped: reservations of them are in the thread's hands.
static SPACES: Mutex<Vec<&'static Space>> = Mutex::new(Vec::new());

/// VMAs of two colors, among so many reservations below and as many above.
fn space(crowd: usize, shared: bool) -> &'static Space {
    let space = if shared {
        Space::new_in(1, Arc::new(Slab::with_platform()))
    } else {
        Space::with_platform(1)
    };
    let space: &'static Space = Box::leak(Box::new(space));
    SPACES.lock().unwrap().push(space);
    let mut edit = space.edit().unwrap();
    let mut kept = Vec::new();
    let below = (1..=crowd).rev().map(|n| VMAS - 10 * n..VMAS - 10 * n + 10);
    kept.extend(below.map(|range| edit.reserve(range).unwrap()));
    for (n, color) in [1, 2, 1, 2].into_iter().enumerate() {
        let start = VMAS + 10 * n;
        edit.insert(start..start + 10, Color::new(color)).unwrap();
    }
    let above = (0..crowd).map(|n| VMAS + 200 + 10 * n..VMAS + 210 + 10 * n);
    kept.push(edit.reserve(VMAS + 40..VMAS + 50).unwrap());
    kept.extend(above.map(|range| edit.reserve(range).unwrap()));
    drop(edit);
    KEPT.set(kept);
    space
}

/// What is mapped, after checks that every way to look at the space says the same.
fn listed(space: &Space) -> Vec<(Range<usize>, u32)> {
    let vmas: Vec<_> = space.view().unwrap().iter().map(|(range, c)| (range, *c.0)).collect();
    for (range, color) in &vmas {
        for addr in [range.start, range.end - 1] {
            let vma = space.try_read(addr).unwrap();
            assert_eq!((vma.range(), *vma.0), (range.clone(), *color));
        }
    }
    let by_lookups = space.iter().map(|vma| vma.unwrap().0);
    assert!(by_lookups.eq(vmas.iter().map(|(range, _)| range.clone())));
    vmas
}

/// Checks that all is free but for what is mapped, and what is `reserved`.
fn check_gaps(space: &Space, reserved: &Option<Range<usize>>) {
    let edit = space.edit().unwrap();
    let mut taken: Vec<_> = edit.iter().map(|(range, _)| range).chain(reserved.clone()).collect();
    taken.sort_by_key(|range| range.start);
    let mut gaps = Vec::new();
    let mut end = 0;
    for range in taken {
        gaps.push(end..range.start);
        end = range.end;
    }
    gaps.push(end..usize::MAX);
    for size in gaps.iter().map(|gap| gap.end - gap.start).filter(|size| *size != 0) {
        let fits = |gap: &&Range<usize>| gap.end - gap.start >= size;
        let lowest = gaps.iter().find(fits).map(|gap| gap.start..gap.start + size);
        let highest = gaps.iter().rev().find(fits).map(|gap| gap.end - size..gap.end);
        let search = GapSearch::new(size);
        assert_eq!(edit.find_gap(&search), lowest.ok_or(GapError::NotFound));
        assert_eq!(edit.find_gap(&search.top_down()), highest.ok_or(GapError::NotFound));
    }
}

/// Runs `operation` on fresh spaces, interrupted at the n-th event, until there is none; how many
/// there were.
fn interrupt_everywhere(
    (name, run): Operation,
    left: &'static LocalKey<Cell<isize>>,
    fresh: &dyn Fn() -> &'static Space,
) -> usize {
    let done = {
        let space = fresh();
        run(space).unwrap();
        drop(KEPT.take());
        listed(space)
    };
    let reserved = match name {
        "reserve" => Some(VMAS + 60..VMAS + 70),
        "remove and reserve" => Some(VMAS + 5..VMAS + 35),
        _ => None,
    };
    for n in 0.. {
        let space = fresh();
        COMMITTED.set(0);
        left.set(n);
        let result = run(space);
        let interrupted = left.replace(-1) < 0;
        assert_eq!(result, Ok(()), "{name}, event {n}");
        drop(KEPT.take());
        check_gaps(space, &reserved);
        let (committed, others): (Vec<_>, _) =
            listed(space).into_iter().partition(|(_, color)| *color == COMMITTED_COLOR);
        assert_eq!(others, done, "{name}, event {n}");
        assert_eq!(committed.len(), COMMITTED.get(), "{name}, event {n}");
        let in_use = space.slab().vmas().in_use;
        let expected = done.len() + committed.len() + usize::from(reserved.is_some());
        assert_eq!(in_use, expected, "{name}, event {n}");
        if !interrupted {
            return n.unsigned_abs();
        }
    }
    unreachable!("every operation ends")
}

const CROWD: usize = 40;

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn user_code_may_end_reservations_anywhere() {
    let _watchdog = watchdog();
    for end in [drop, commit] {
        END.set(end);
        for &operation in OPERATIONS {
            let calls = interrupt_everywhere(operation, &CALLS_LEFT, &|| space(CROWD, false));
            let expected = !matches!(operation.0, "insert" | "reserve");
            assert_eq!(calls > 0, expected, "{}: {calls} calls", operation.0);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn the_allocator_may_drop_reservations_anywhere() {
    let _watchdog = watchdog();
    for &operation in OPERATIONS {
        for shared in [false, true] {
            interrupt_everywhere(operation, &ALLOCATIONS_LEFT, &|| space(CROWD, shared));
        }
    }
}

/// Around the ends of the first chunk of slots, and of the first chunk of nodes.
#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn the_allocator_may_drop_reservations_while_a_slab_asks_for_memory() {
    let _watchdog = watchdog();
    let crowded = (30..2_000).find(|&crowd| space(crowd, false).slab().nodes().capacity > 64);
    let crowded = crowded.unwrap();
    for crowd in (29..31).chain(crowded - 2..crowded) {
        for &operation in OPERATIONS {
            interrupt_everywhere(operation, &ALLOCATIONS_LEFT, &|| space(crowd, false));
        }
    }
}

#[test]
fn the_allocator_may_drop_reservations_while_an_edit_waits_for_readers() {
    let _watchdog = watchdog();
    // Whatever of the nodes around it is merged.
    for crowd in if cfg!(miri) { 14..18 } else { 10..30 } {
        let space = space(crowd, false);
        let (inside, is_inside) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                let vma = space.read(VMAS + 10).unwrap();
                inside.send(()).unwrap();
                while space.try_read(VMAS + 11).is_ok() {
                    thread::yield_now();
                }
                // It is excluded, and waited for.
                drop(vma);
            });
            is_inside.recv().unwrap();
            let mut edit = space.edit().unwrap();
            ALLOCATIONS_LEFT.set(0); // the next one is for the wait
            let removed = edit.remove(VMAS + 10..VMAS + 20).unwrap();
            ALLOCATIONS_LEFT.set(-1);
            assert_eq!(removed[0].range, VMAS + 10..VMAS + 20);
            assert_eq!(edit.get(VMAS + 10), None);
        });
        drop(KEPT.take());
        check_gaps(space, &None);
        let left = [(0, 1), (20, 1), (30, 2)].map(|(at, c)| (VMAS + at..VMAS + at + 10, c));
        assert_eq!(listed(space), left);
    }
}

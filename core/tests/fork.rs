//! Spaces across fork(2): prepared ones can be used in the child whatever other threads were doing,
//! others can be abandoned. A child that hangs is ended by its alarm, and fails the test.
#![cfg(all(target_os = "linux", not(miri)))]
#![expect(unsafe_code, reason = "fork, and an allocator that watches the child")]
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::watchdog;
use pervma::{
    AddressSpace, ChangeError, EditError, ForkError, HandlerScope, PreparedFork, ReadError,
    RegisterError, Slab, SplitMerge, StdPlatform,
};

/// Set in a child while it must not allocate.
static NO_MEMORY: AtomicBool = AtomicBool::new(false);

struct Watching;

// SAFETY: each call is handed on to the system's allocator, or ends the process.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check_memory();
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        check_memory();
        // SAFETY: as the caller says.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn check_memory() {
    if NO_MEMORY.load(Relaxed) {
        // SAFETY: it ends the process.
        unsafe { libc::_exit(ALLOCATED) };
    }
}

/// The status of a child that allocated where it must not.
const ALLOCATED: i32 = 3;

/// The status of a child that panicked.
const PANICKED: i32 = 2;

/// What a child may take, in seconds: far more than it needs on a busy machine.
const LIMIT: u32 = 100;

/// Ends a child that panics.
struct EndChild;

impl Drop for EndChild {
    fn drop(&mut self) {
        // SAFETY: it ends the process.
        unsafe { libc::_exit(if thread::panicking() { PANICKED } else { 0 }) };
    }
}

/// Runs `without_memory`, which must not allocate, in a forked child; then `work`. Both may use the
/// space that is `prepared`, and no guard of before.
fn fork(
    prepared: Option<PreparedFork<'_, u64>>,
    without_memory: impl FnOnce(),
    work: impl FnOnce(),
) {
    // SAFETY: the child runs what is legal there, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        let _end = EndChild;
        // SAFETY: a system call.
        unsafe { libc::alarm(LIMIT) };
        NO_MEMORY.store(true, Relaxed);
        if let Some(prepared) = prepared {
            // SAFETY: a child of fork, in which no guard of before is used.
            unsafe { prepared.child() };
        }
        without_memory();
        NO_MEMORY.store(false, Relaxed);
        work();
        return;
    }
    if let Some(prepared) = prepared {
        prepared.parent();
    }
    let mut status = 0;
    // SAFETY: waits for the child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(!libc::WIFSIGNALED(status), "a child was ended by {}", libc::WTERMSIG(status));
    assert_eq!(libc::WEXITSTATUS(status), 0, "{ALLOCATED}: it allocated, {PANICKED}: it panicked");
}

const PAGE: usize = 0x1000;
const VMAS: usize = 16;
/// VMAs that are there always. Each holds its number, so that no two are merged.
const FIXED: Range<usize> = 0..VMAS * PAGE;
/// Where threads insert and remove.
const CHURN: Range<usize> = 0x100_000..0x101_000;
/// Where threads reserve.
const RESERVED: Range<usize> = 0x200_000..0x201_000;
const ALL: Range<usize> = 0..0x1_000_000;

type Space = AddressSpace<u64>;

fn fill(space: &Space) {
    for page in FIXED.step_by(PAGE) {
        space.insert(page..page + PAGE, number(page)).unwrap();
    }
}

/// What the VMA at `page` holds.
fn number(page: usize) -> u64 {
    (page / PAGE) as u64
}

/// What other threads do until they are told to end.
const STATES: [fn(&Space); 12] = [
    |space| {
        let mut edit = space.edit().unwrap();
        for page in FIXED.step_by(PAGE) {
            let _ = edit.write(page).map(|mut vma| *vma = number(page));
        }
    },
    |space| {
        if space.insert(CHURN, 7).is_ok() {
            let _ = space.remove(CHURN);
        }
    },
    |space| drop(space.exclude(0..4 * PAGE)),
    |space| {
        if let Ok(exclusion) = space.exclude(2 * PAGE..6 * PAGE) {
            exclusion.wait();
            let _ = exclusion.update(|_, payload| *payload);
        }
    },
    |space| drop(space.edit_range(FIXED)),
    |space| drop(space.edit_range(2 * PAGE..3 * PAGE)),
    |space| drop(space.edit_until(soon())),
    |space| drop(space.edit_range_until(3 * PAGE..4 * PAGE, soon())),
    |space| drop(space.reserve(RESERVED)),
    |space| drop(space.view()),
    |space| {
        for page in FIXED.step_by(PAGE) {
            let _guard = space.read(page);
            thread::yield_now();
        }
    },
    |space| {
        let reader = space.register().unwrap();
        for page in FIXED.step_by(PAGE) {
            let _guard = reader.read(page);
            thread::yield_now();
        }
    },
];

/// A deadline that some waits reach.
fn soon() -> Instant {
    Instant::now() + Duration::from_micros(50)
}

/// Tells threads to end when it is dropped, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Runs `rounds` while other threads use `space` in every state.
fn beside_others(space: &Space, rounds: usize, mut round: impl FnMut()) {
    let over = AtomicBool::new(false);
    let made = AtomicUsize::new(0);
    thread::scope(|scope| {
        for state in STATES {
            let (over, made) = (&over, &made);
            scope.spawn(move || {
                while !over.load(Relaxed) {
                    state(space);
                    made.fetch_add(1, Relaxed);
                }
            });
        }
        let _over = Over(&over);
        for _ in 0..rounds {
            let before = made.load(Relaxed);
            round();
            // The others go on.
            while made.load(Relaxed) == before {
                thread::yield_now();
            }
        }
    });
}

/// Looks at everything, without memory.
fn look(space: &Space) {
    for page in FIXED.step_by(PAGE) {
        let vma = space.try_read(page).unwrap();
        assert_eq!((*vma, vma.range()), (number(page), page..page + PAGE));
    }
}

/// Changes everything.
fn change(space: &Space) {
    look(space);
    assert!(space.iter().all(|vma| vma.is_ok()));
    let mut edit = space.edit().unwrap();
    for page in FIXED.step_by(PAGE) {
        *edit.write(page).unwrap() += 1;
    }
    drop(edit);
    let exclusion = space.exclude(FIXED).unwrap();
    exclusion.wait();
    exclusion.update(|_, payload| payload + 1).unwrap();
    drop(space.edit_range(ALL).unwrap());
    drop(space.view().unwrap());
    let reader = space.register().unwrap();
    assert_eq!(*reader.read(PAGE).unwrap(), number(PAGE) + 2);
    drop(reader);
    space.remove(FIXED).unwrap();
    assert_eq!(space.try_read(PAGE).err(), Some(ReadError::NotMapped { addr: PAGE }));
    space.insert(FIXED, 4).unwrap();
    drop(space.fork(|_, payload| Some(*payload)).unwrap());
    let prepared = space.prepare_fork().unwrap();
    prepared.parent();
}

const ROUNDS: usize = 150;

#[test]
fn a_prepared_space_can_be_used_in_the_child_whatever_others_did() {
    let _watchdog = watchdog();
    let space = Space::new(PAGE);
    fill(&space);
    // Idle or not, as others' edits have found it.
    let reader = space.register().unwrap();
    beside_others(&space, ROUNDS, || {
        let prepared = Some(space.prepare_fork().unwrap());
        fork(
            prepared,
            || {
                look(&space);
            },
            || {
                assert_eq!(*reader.try_read(PAGE).unwrap(), number(PAGE));
                change(&space);
                assert_eq!(*reader.try_read(PAGE).unwrap(), 4);
            },
        );
        drop(reader.read(PAGE).unwrap());
    });
    look(&space);
}

/// A reader that never ends keeps no fork from being prepared, and is not counted in the child.
#[test]
fn guards_of_other_threads_are_over_in_the_child() {
    let _watchdog = watchdog();
    let space = Space::new(PAGE);
    fill(&space);
    let (ready, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let until_over = || {
        ready.fetch_add(1, Relaxed);
        while !over.load(Relaxed) {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let _held: Vec<_> =
                FIXED.step_by(PAGE).map(|page| space.try_read(page).unwrap()).collect();
            until_over();
        });
        scope.spawn(|| {
            let reader = space.register().unwrap();
            let _held: Vec<_> =
                FIXED.step_by(PAGE).map(|page| reader.try_read(page).unwrap()).collect();
            until_over();
        });
        let _over = Over(&over);
        while ready.load(Relaxed) != 2 {
            thread::yield_now();
        }
        let prepared = Some(space.prepare_fork().unwrap());
        fork(
            prepared,
            || {
                look(&space);
            },
            || change(&space),
        );
    });
    change(&space);
}

struct Never;

impl<T> SplitMerge<T> for Never {}

/// All calls say so, and wait for nothing.
fn assert_forked(space: &Space) {
    assert_eq!(space.try_read(PAGE).err(), Some(ReadError::Forked));
    assert_eq!(space.read(PAGE).err(), Some(ReadError::Forked));
    assert_eq!(space.try_read_at_or_after(0).err(), Some(ReadError::Forked));
    assert_eq!(space.read_at_or_after(0).err(), Some(ReadError::Forked));
    assert_eq!(space.iter().next(), Some(Err(ReadError::Forked)));
    assert_eq!(space.iter().next_back(), Some(Err(ReadError::Forked)));
    assert_eq!(space.read_all().next().err(), Some(ReadError::Forked));
    assert_eq!(space.try_read_or_hole(PAGE).err(), Some(ReadError::Forked));
    assert_eq!(space.read_or_hole(PAGE).err(), Some(ReadError::Forked));
    assert_eq!(space.len(), 0);
    assert_eq!(space.edit().err(), Some(EditError::Forked));
    assert!(space.try_edit().is_none());
    assert_eq!(space.edit_until(Instant::now()).err(), Some(EditError::Forked));
    assert_eq!(space.view().err(), Some(EditError::Forked));
    assert_eq!(space.register().err(), Some(RegisterError::Forked));
    assert_eq!(space.exclude(FIXED).err(), Some(ChangeError::Forked));
    assert_eq!(space.edit_range(FIXED).err(), Some(ChangeError::Forked));
    let refused = space.edit_range_until(FIXED, Instant::now()).err();
    assert_eq!(refused, Some(ChangeError::Forked));
    assert_eq!(space.fork(|_, _| None).err(), Some(ChangeError::Forked));
    assert_eq!(space.replace(CHURN, 1).unwrap_err().kind, ChangeError::Forked);
    assert_eq!(space.relocate(FIXED, RESERVED.start, |_, _| 1).err(), Some(ChangeError::Forked));
    assert_eq!(space.reserve(CHURN).err(), Some(ChangeError::Forked));
    assert_eq!(space.insert(CHURN, 1).unwrap_err().kind, ChangeError::Forked);
    assert_eq!(space.remove(FIXED).err(), Some(ChangeError::Forked));
    assert_eq!(space.remove_whole(FIXED).err(), Some(ChangeError::Forked));
    assert_eq!(space.retain(|_, _| false).err(), Some(ChangeError::Forked));
    assert_eq!(space.set(CHURN, 1).unwrap_err().kind, ChangeError::Forked);
    assert_eq!(space.insert_merging(CHURN, 1).unwrap_err().kind, ChangeError::Forked);
    assert_eq!(space.change(FIXED, Never, |_, _| None).err(), Some(ChangeError::Forked));
    assert_eq!(space.update(FIXED, |_, _| 1).err(), Some(ChangeError::Forked));
    assert_eq!(space.prepare_fork().err(), Some(ForkError::Forked));
}

#[test]
fn a_space_that_was_not_prepared_can_be_abandoned_whatever_others_did() {
    let _watchdog = watchdog();
    let space = Space::new(PAGE);
    fill(&space);
    let id = space.try_read(PAGE).unwrap().id();
    beside_others(&space, ROUNDS, || {
        fork(
            None,
            || {
                space.abandon_after_fork();
                assert_eq!(space.try_read_id(id).err(), Some(ReadError::Forked));
                assert_forked(&space);
                // SAFETY: the child ends without using the original again.
                drop(unsafe { ptr::read(&raw const space) });
            },
            || (),
        );
    });
    look(&space);
}

/// In the child each says so, and its drop waits for nothing.
#[test]
fn what_the_forking_thread_has_of_an_abandoned_space_can_be_dropped() {
    const OWN: Range<usize> = 0x300_000..0x301_000;
    const LAST: Range<usize> = FIXED.end - PAGE..FIXED.end;
    let _watchdog = watchdog();
    let space = &Space::new_in(PAGE, Arc::new(Slab::new()));
    fill(space);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                let _ = space.try_read(OWN.start); // a reader that is late at the reservation
            }
        });
        let _over = Over(&over);
        beside_others(space, ROUNDS, || {
            let mut reservation = space.reserve(OWN).unwrap();
            let reader = space.register().unwrap();
            let mut cursor = space.cursor();
            let exclusion = space.exclude(LAST).unwrap();
            let guard = space.try_read(PAGE);
            let abandoned = move || {
                space.abandon_after_fork();
                assert_eq!(reader.try_read(PAGE).err(), Some(ReadError::Forked));
                assert_eq!(cursor.read(PAGE).err(), Some(ReadError::Forked));
                assert_eq!(reservation.commit(1).unwrap_err().kind, ChangeError::Forked);
                drop((guard, exclusion, reservation, reader));
                assert_forked(space);
            };
            fork(None, abandoned, || ());
        });
    });
}

#[test]
fn what_was_read_before_a_space_was_abandoned_is_no_guard_of_it() {
    let space = Arc::new(Space::new(PAGE));
    fill(&space);
    let guard = space.try_read(PAGE).unwrap();
    let owned = guard.try_to_owned(&space).unwrap();
    space.abandon_after_fork();
    assert_eq!(guard.try_to_owned(&space).err(), Some(ReadError::Forked));
    assert_eq!(*owned.try_clone().unwrap(), *guard, "what is held can be read, and let go");
    drop((guard, owned));
    assert_forked(&space);
}

/// The state of the slab is of no consequence, in which a space was caught that was not prepared.
#[test]
fn a_prepared_space_can_be_used_beside_one_on_its_slab_that_was_not() {
    let _watchdog = watchdog();
    let slab = Arc::new(Slab::new());
    let [space, other] = [0, 1].map(|_| Space::new_in(PAGE, Arc::clone(&slab)));
    fill(&space);
    fill(&other);
    beside_others(&other, ROUNDS, || {
        let prepared = Some(space.prepare_fork().unwrap());
        fork(
            prepared,
            || {
                other.abandon_after_fork();
                look(&space);
                assert_forked(&other);
            },
            || change(&space),
        );
    });
}

#[test]
fn a_thread_that_would_wait_for_itself_learns_for_what() {
    let _watchdog = watchdog();
    let space = Space::new(PAGE);
    fill(&space);

    let edit = space.edit().unwrap();
    assert_eq!(space.prepare_fork().err(), Some(ForkError::OwnEdit));
    drop(edit);
    let guard = space.try_read(0).unwrap();
    assert_eq!(space.prepare_fork().err(), Some(ForkError::GuardHeld));
    drop(guard);
    let view = space.view().unwrap();
    assert_eq!(space.prepare_fork().err(), Some(ForkError::GuardHeld));
    drop(view);
    let exclusion = space.exclude(FIXED).unwrap();
    assert_eq!(space.prepare_fork().err(), Some(ForkError::OwnExclusion));
    drop(exclusion);
    let handler = HandlerScope::<StdPlatform>::enter();
    assert_eq!(space.prepare_fork().err(), Some(ForkError::InHandler));
    drop(handler);
    let prepared = space.prepare_fork().unwrap();
    assert_eq!(space.edit().err(), Some(EditError::OwnEdit));
    assert_eq!(space.prepare_fork().err(), Some(ForkError::OwnEdit));
    drop(prepared);
    change(&space);
}

/// What the forking thread had before stays its own: its registration and its reservation.
#[test]
fn what_the_forking_thread_has_stays_valid() {
    let _watchdog = watchdog();
    let space = Space::new(PAGE);
    fill(&space);
    let reader = space.register().unwrap();
    let mut reservation = ManuallyDrop::new(space.reserve(RESERVED).unwrap());
    let prepared = Some(space.prepare_fork().unwrap());
    fork(
        prepared,
        || {
            assert_eq!(*reader.try_read(PAGE).unwrap(), number(PAGE));
        },
        || {
            let held = reader.try_read(PAGE).unwrap();
            let excluded = space.edit().err();
            assert_eq!(excluded, Some(EditError::GuardHeld));
            drop(held);
            reservation.commit(5).unwrap();
            assert_eq!(*reader.try_read(RESERVED.start).unwrap(), 5);
            space.remove(RESERVED).unwrap();
            change(&space);
        },
    );
    assert_eq!(
        space.try_read(RESERVED.start).err(),
        Some(ReadError::Reserved { addr: RESERVED.start })
    );
    drop(ManuallyDrop::into_inner(reservation));
    drop(reader);
    change(&space);
}

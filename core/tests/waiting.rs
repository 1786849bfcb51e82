//! Which operations wait for each other, which are refused because they would wait for their own
//! thread, and that an operation that fails leaves nothing behind.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use common::{Calls, Delegate, Watched, watchdog};
use pervma::{
    AddressSpace, ChangeError, EditError, Exclusion, GapSearch, HandlerScope, Payload, Platform,
    ReadError, StdPlatform, VmaId, WriteError,
};

const A: Range<usize> = 0x1000..0x2000;
const B: Range<usize> = 0x8000..0x9000;

fn space() -> AddressSpace<u32> {
    space_on()
}

/// Two VMAs, with a hole between them.
fn space_on<P: Platform>() -> AddressSpace<u32, P> {
    let space = AddressSpace::with_platform(4096);
    space.insert(A, 1).unwrap();
    space.insert(B, 2).unwrap();
    space
}

/// A thread that holds a guard of `addr` until the result is sent something.
fn reader<'scope, P: Platform>(
    scope: &'scope thread::Scope<'scope, '_>,
    space: &'scope AddressSpace<u32, P>,
    addr: usize,
) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel();
    let (acquired, is_acquired) = mpsc::channel();
    scope.spawn(move || {
        let vma = space.try_read(addr).unwrap();
        acquired.send(()).unwrap();
        released.recv().unwrap();
        drop(vma);
    });
    is_acquired.recv().unwrap();
    release
}

#[test]
fn a_removal_waits_for_readers_of_its_own_range_and_delays_no_other_operation() {
    let dog = watchdog();
    let space = space();
    thread::scope(|scope| {
        let release = reader(scope, &space, B.start);
        assert_eq!(space.remove(A).unwrap()[0].payload, 1, "B has a reader, A has none");

        let removal = scope.spawn(|| space.remove(B).unwrap()[0].payload);
        dog.until(|| space.try_read(B.start).err() == Some(ReadError::Locked { addr: B.start }));
        // Readers elsewhere, edits and other removals go on meanwhile.
        space.insert(A, 3).unwrap();
        assert_eq!(*space.read(A.start).unwrap(), 3);
        assert_eq!(space.remove(A).unwrap()[0].payload, 3);
        assert!(!removal.is_finished());
        release.send(()).unwrap();
        assert_eq!(removal.join().unwrap(), 2);
    });
}

/// B18.
#[test]
fn readers_are_admitted_however_an_exclusion_ends() {
    let _watchdog = watchdog();
    let space = space();
    let whole = || assert_eq!(space.try_read(B.start).unwrap().range(), B);

    drop(space.exclude(B).unwrap());
    whole();

    thread::scope(|scope| {
        let release = reader(scope, &space, B.start);
        let exclusion = space.exclude(B).unwrap();
        assert!(!exclusion.is_drained());
        assert!(!exclusion.wait_until(Instant::now()));
        assert_eq!(space.try_read(B.start).err(), Some(ReadError::OwnExclusion { addr: B.start }));
        drop(exclusion);
        whole(); // beside the other reader
        release.send(()).unwrap();
    });

    let exclusion = space.exclude(B).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| exclusion.update(|_, _| panic!("in f"))));
    assert!(panicked.is_err());
    whole();

    let exclusion = space.exclude(A.start..B.end).unwrap();
    let hole = A.end..B.start;
    assert_eq!(exclusion.update(|_, &p| p), Err(ChangeError::NotMapped { range: hole }));
    whole();
}

/// Watches one test's platform: `$name` is the platform, `$calls` what it was called for.
macro_rules! watched {
    ($name:ident, $calls:ident) => {
        enum Test {}
        static $calls: Calls = Calls::none();
        impl Watched for Test {
            fn calls() -> &'static Calls {
                &$calls
            }
        }
        type $name = Delegate<Test>;
    };
}

#[test]
fn a_blocking_read_waits_until_the_exclusion_has_ended() {
    let _watchdog = watchdog();
    watched!(Host, CALLS);
    type Read = fn(&AddressSpace<u32, Host>, VmaId) -> u32;
    let dog = watchdog();
    let reads: [Read; 3] = [
        |space, _| *space.read(B.start).unwrap(),
        |space, _| *space.read_at_or_after(A.end).unwrap().unwrap(),
        |space, id| *space.read_id(id).unwrap(),
    ];
    let space = space_on::<Host>();
    let id = space.try_read(B.start).unwrap().id();
    thread::scope(|scope| {
        let exclusion = space.exclude(B).unwrap();
        let reads = reads.map(|read| {
            let before = CALLS.waits.load(Relaxed);
            let thread = scope.spawn({
                let space = &space;
                move || read(space, id)
            });
            dog.until(|| CALLS.has_waited_since(before));
            thread
        });
        assert!(reads.iter().all(|read| !read.is_finished()));
        exclusion.update(|_, _| 7).unwrap();
        assert_eq!(reads.map(|read| read.join().unwrap()), [7; 3]);
    });
}

#[test]
fn an_edit_changes_nothing_that_an_exclusion_has() {
    let _watchdog = watchdog();
    let space = space();
    let exclusion = space.exclude(B).unwrap();
    let excluded = ChangeError::Excluded { vma: B };
    let mut edit = space.edit().unwrap(); // legal: the exclusion comes first
    assert_eq!(edit.remove(A.start..B.end).unwrap_err(), excluded);
    assert_eq!(edit.update(B, |_, &p| p).unwrap_err(), excluded);
    assert_eq!(edit.replace(B, 9).unwrap_err().kind, excluded);
    assert_eq!(edit.relocate(B, 0x10_0000, |_, &p| p).unwrap_err(), excluded);
    assert_eq!(edit.insert(0x8000..0xa000, 9).unwrap_err().kind, excluded);
    assert_eq!(edit.reserve(0x8000..0xa000).unwrap_err(), excluded);
    assert_eq!(edit.fork(|_, &p| Some(p)).unwrap_err(), excluded);
    let addr = B.start;
    assert_eq!(edit.write(addr).unwrap_err(), WriteError::Excluded { addr });
    assert_eq!(edit.try_write(addr).unwrap_err(), WriteError::Excluded { addr });
    assert_eq!(edit.get(addr), Some((B, &2)));
    // It counts as taken, and is not merged with.
    let search = GapSearch::new(0x1000).within(B.start..0x10_0000);
    assert_eq!(edit.find_gap(&search), Ok(B.end..B.end + 0x1000));
    edit.insert(B.end..B.end + 0x1000, 2).unwrap();
    edit.update(B.end..B.end + 0x1000, |_, &p| p).unwrap();
    assert_eq!(edit.iter().count(), 3);
    drop(edit);
    assert_eq!(exclusion.remove().unwrap()[0].payload, 2);
}

#[test]
fn an_exclusion_ends_on_its_own_vmas_whatever_came_into_the_range() {
    let _watchdog = watchdog();
    let space = space();
    let exclusion = space.exclude(A.start..B.end).unwrap();
    let middle = 0x4000..0x5000;
    space.edit().unwrap().insert(middle.clone(), 3).unwrap();
    let removed = exclusion.remove().unwrap();
    assert_eq!(removed.iter().map(|vma| vma.payload).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(space.try_read(0x4000).unwrap().range(), middle);
}

#[test]
fn a_replacement_starts_over_when_a_hole_is_filled() {
    let dog = watchdog();
    let space = space();
    thread::scope(|scope| {
        let release = reader(scope, &space, B.start);
        let replacement = scope.spawn(|| space.replace(A.start..B.end, 9).unwrap());
        dog.until(|| space.try_read(A.start).is_err());
        space.insert(0x4000..0x5000, 3).unwrap();
        release.send(()).unwrap();
        let replaced = replacement.join().unwrap();
        assert_eq!(replaced.iter().map(|vma| vma.payload).collect::<Vec<_>>(), [1, 3, 2]);
    });
    assert_eq!(space.try_read(0x4000).unwrap().range(), A.start..B.end);
}

/// B8.
#[test]
fn a_neighbour_with_readers_is_neither_merged_nor_waited_for() {
    let _dog = watchdog();
    let space = AddressSpace::new(4096);
    space.edit().unwrap().insert(0x1000..0x2000, 1).unwrap();
    space.edit().unwrap().insert(0x2000..0x3000, 2).unwrap();
    let vmas = || space.edit().unwrap().iter().count();
    thread::scope(|scope| {
        let release = reader(scope, &space, 0x1000);
        space.update(0x2000..0x3000, |_, _| 1).unwrap();
        assert_eq!(vmas(), 2);
        space.edit().unwrap().update(0x2000..0x3000, |_, _| 1).unwrap();
        assert_eq!(vmas(), 2);
        release.send(()).unwrap();
    });
    space.edit().unwrap().update(0x2000..0x3000, |_, _| 1).unwrap();
    assert_eq!(vmas(), 1);
}

#[test]
fn overlapping_exclusions_take_turns() {
    let _watchdog = watchdog();
    let space: AddressSpace<u32> = AddressSpace::new(1);
    let mut edit = space.edit().unwrap();
    for start in (0..100).step_by(10) {
        edit.insert(start..start + 10, 0).unwrap();
    }
    drop(edit);
    let rounds = 2_000;
    thread::scope(|scope| {
        for thread in 0..4 {
            let space = &space;
            scope.spawn(move || {
                for round in 0..rounds {
                    let from = 10 * ((round + thread) % 6);
                    space.update(from..from + 10 * (1 + thread), |_, &n| n + 1).unwrap();
                }
            });
        }
    });
    let edit = space.edit().unwrap();
    let sum: usize = edit.iter().map(|(range, &n)| range.len() / 10 * n as usize).sum();
    assert_eq!(sum, rounds * (1 + 2 + 3 + 4));
}

/// B20.
#[test]
fn a_thread_that_would_wait_for_itself_learns_for_what() {
    let _watchdog = watchdog();
    let space = space();
    let addr = B.start;
    let range = B;

    let guard = space.try_read(A.start).unwrap();
    let held = ChangeError::GuardHeld;
    assert_eq!(space.exclude(range.clone()).unwrap_err(), held);
    assert_eq!(space.remove(range.clone()).unwrap_err(), held);
    assert_eq!(space.update(range.clone(), |_, &p| p).unwrap_err(), held);
    assert_eq!(space.replace(range.clone(), 5).unwrap_err().kind, held);
    assert_eq!(space.view().unwrap_err(), EditError::GuardHeld);
    drop(guard);

    let view = space.view().unwrap();
    assert_eq!(space.edit().unwrap_err(), EditError::GuardHeld);
    assert_eq!(space.view().unwrap_err(), EditError::GuardHeld);
    drop(view);

    let edit = space.edit().unwrap();
    assert_eq!(space.exclude(range.clone()).unwrap_err(), ChangeError::OwnEdit);
    assert_eq!(space.view().unwrap_err(), EditError::OwnEdit);
    drop(edit);

    let exclusion = space.exclude(range).unwrap();
    assert_eq!(space.exclude(A).unwrap_err(), ChangeError::OwnExclusion);
    assert_eq!(space.remove(A).unwrap_err(), ChangeError::OwnExclusion);
    assert_eq!(space.read(addr).unwrap_err(), ReadError::OwnExclusion { addr });
    assert_eq!(*space.read(A.start).unwrap(), 1, "the rest can be read");
    let edit = space.edit().unwrap();
    assert_eq!(exclusion.remove().unwrap_err(), ChangeError::OwnEdit);
    drop(edit);
    let exclusion = space.exclude(B).unwrap();
    let guard = space.try_read(A.start).unwrap();
    assert_eq!(exclusion.remove().unwrap_err(), ChangeError::GuardHeld);
    drop(guard);
    assert_eq!(*space.try_read(addr).unwrap(), 2, "given up, nothing has changed");
}

#[test]
fn what_was_forgotten_does_not_stop_a_space_from_ending() {
    let _watchdog = watchdog();
    let space = space();
    std::mem::forget(space.exclude(B).unwrap());
    std::mem::forget(space.edit().unwrap().reserve(0x3000..0x4000).unwrap());
    drop(space);
}

#[test]
fn what_is_inserted_into_a_hole_of_an_exclusion_stays() {
    let _watchdog = watchdog();
    let space = AddressSpace::new(1);
    space.edit().unwrap().insert(100..150, 7).unwrap();
    let exclusion = space.exclude(100..200).unwrap();
    space.edit().unwrap().insert(150..200, 7).unwrap(); // touches the target, and would merge
    let removed = exclusion.relocate(200, |_, &payload| payload).unwrap();
    assert_eq!((removed.len(), removed[0].range.clone()), (1, 100..150));
    assert_eq!(space.try_read(150).unwrap().range(), 150..200);
}

#[test]
fn obstacles_are_reported_before_payloads_are_split() {
    let _watchdog = watchdog();
    #[derive(Debug, PartialEq)]
    struct Whole;
    impl Payload for Whole {}

    let space = AddressSpace::new(1);
    space.edit().unwrap().insert(100..200, Whole).unwrap();
    space.edit().unwrap().insert(300..400, Whole).unwrap();
    let overlap = ChangeError::Overlap { existing: 300..400 };
    let move_to_it = |to| space.exclude(150..200).unwrap().relocate(to, |_, _| Whole);
    assert_eq!(move_to_it(300).unwrap_err(), overlap);
    assert_eq!(move_to_it(500).unwrap_err(), ChangeError::PartlyCovered { vma: 100..200 });
    let exclusion = space.exclude(150..250).unwrap();
    space.edit().unwrap().insert(220..230, Whole).unwrap();
    let filled = ChangeError::Overlap { existing: 220..230 };
    assert_eq!(exclusion.remove_reserving().unwrap_err(), filled);
}

/// A payload whose destructor does something.
struct Ending(fn());

impl Payload for Ending {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        (offset != 3).then(|| (Self(|| ()), Self(self.0)))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0();
    }
}

/// B19.
#[test]
fn no_destructor_runs_while_a_lock_or_an_exclusion_is_held() {
    let _watchdog = watchdog();
    static SPACE: AddressSpace<Ending> = AddressSpace::new(1);
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    fn edits() {
        ENDED.fetch_add(1, Relaxed);
        SPACE.edit().unwrap().insert(1_000..1_001, Ending(|| ())).unwrap();
        SPACE.remove(1_000..1_001).unwrap();
    }
    let ended = |n| {
        assert_eq!(ENDED.swap(0, Relaxed), n);
        drop(SPACE.remove(0..20));
        ENDED.store(0, Relaxed);
        SPACE.edit().unwrap().insert(0..20, Ending(edits)).unwrap();
    };
    ended(0);

    // Two payloads were split away, the whole one and its right part: they are dropped when the
    // edit has ended, when the view has ended, when the exclusion is over.
    drop(SPACE.edit().unwrap().remove(4..6).map(std::mem::forget));
    ended(2);
    let mut edit = SPACE.edit().unwrap();
    std::mem::forget(edit.remove(4..6));
    let view = edit.downgrade();
    assert_eq!(ENDED.load(Relaxed), 0);
    drop(view);
    ended(2);
    std::mem::forget(SPACE.remove(4..6));
    ended(2);
    // The right part of what could be split once and not twice.
    assert!(SPACE.edit().unwrap().remove(5..8).is_err());
    ended(1);
}

#[test]
fn user_code_that_takes_something_of_the_space_is_not_waited_for() {
    let _watchdog = watchdog();
    let space = AddressSpace::new(4096);
    let ranges = [0x1000..0x2000, 0x2000..0x3000];
    space.edit().unwrap().insert(ranges[0].clone(), 1).unwrap();
    space.edit().unwrap().insert(ranges[1].clone(), 2).unwrap();
    let range = ranges[1].clone();

    let mut guard = None;
    let mut edit = space.edit().unwrap();
    let stash = |_, _: &u32| {
        guard = Some(space.try_read(0x1000).unwrap());
        1
    };
    edit.update(range.clone(), stash).unwrap(); // would merge with what the guard holds
    assert_eq!(edit.iter().count(), 2);
    drop((edit, guard));

    let mut view = None;
    let updated = space.update(range.clone(), |_, _| {
        view = Some(space.view().unwrap());
        3
    });
    assert_eq!(updated.unwrap_err(), ChangeError::GuardHeld);
    drop(view);

    let mut edit = None;
    let updated = space.update(range.clone(), |_, _| {
        edit = Some(space.edit().unwrap());
        3
    });
    assert_eq!(updated.unwrap_err(), ChangeError::OwnEdit);
    drop(edit);
    assert_eq!(*space.try_read(0x2000).unwrap(), 1, "nothing has changed");
}

#[test]
fn a_destructor_that_panics_loses_nothing_but_itself() {
    let _watchdog = watchdog();
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    struct Fragile {
        whole: bool,
    }
    impl Fragile {
        fn new(whole: bool) -> Self {
            ALIVE.fetch_add(1, Relaxed);
            Self { whole }
        }
    }
    impl Payload for Fragile {
        fn split(&self, _offset: usize) -> Option<(Self, Self)> {
            Some((Self::new(false), Self::new(false)))
        }
    }
    impl Drop for Fragile {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Relaxed);
            assert!(!self.whole, "a destructor panics");
        }
    }

    let space = AddressSpace::new(4096);
    for reserving in [false, true] {
        space.edit().unwrap().insert(0x1000..0x4000, Fragile::new(true)).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let exclusion = space.exclude(0x2000..0x3000).unwrap();
            if reserving {
                drop(exclusion.remove_reserving());
            } else {
                drop(exclusion.remove());
            }
        }));
        assert!(panicked.is_err());
        assert_eq!(space.try_read(0x2000).err(), Some(ReadError::NotMapped { addr: 0x2000 }));
        assert_eq!(ALIVE.load(Relaxed), 2, "the parts on both sides stay");
        space.remove(0x1000..0x4000).unwrap();
    }
    // Where user code panics, the parts that it made are dropped when the edit has ended.
    space.edit().unwrap().insert(0x1000..0x4000, Fragile::new(false)).unwrap();
    let mut edit = space.edit().unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        drop(edit.update(0x2000..0x3000, |_, _| panic!("in f")));
    }));
    assert_eq!((panicked.is_err(), ALIVE.load(Relaxed)), (true, 5));
    drop(edit);
    assert_eq!(ALIVE.load(Relaxed), 1);
    drop(space);
    assert_eq!(ALIVE.load(Relaxed), 0);
}

/// B22, B31. In an edit, and outside of edits: each with a reader of its own to wait for.
#[test]
fn user_code_runs_when_the_readers_have_released() {
    let dog = watchdog();
    type Update = fn(&AddressSpace<u32>, &AtomicUsize);
    fn drained(readers: &AtomicUsize, payload: u32) -> u32 {
        assert_eq!(readers.load(Relaxed), 0, "a reader still has the VMA");
        payload
    }
    let updates: [Update; 2] = [
        |space, readers| {
            let mut edit = space.edit().unwrap();
            edit.update(A, |_, &payload| drained(readers, payload)).unwrap();
        },
        |space, readers| {
            space.update(A, |_, &payload| drained(readers, payload)).unwrap();
        },
    ];
    for update in updates {
        let (space, readers) = (space(), AtomicUsize::new(1));
        thread::scope(|scope| {
            let release = reader(scope, &space, A.start);
            let updated = scope.spawn(|| update(&space, &readers));
            dog.until(|| space.try_read(A.start).is_err()); // it is excluded, and waited for
            readers.store(0, Relaxed);
            release.send(()).unwrap();
            updated.join().unwrap();
        });
    }
}

/// B35.
#[test]
fn a_forgotten_guard_is_found() {
    let _watchdog = watchdog();
    let space = space();
    thread::scope(|scope| {
        scope.spawn(|| std::mem::forget([(); 2].map(|()| space.try_read(A.start).unwrap())));
    });
    let exclusion = space.exclude(A.start..B.end).unwrap();
    assert!(!exclusion.wait_until(Instant::now()));
    assert!(exclusion.waits_for().eq([(A, 2)]));
    drop(exclusion);
    let mut edit = space.edit().unwrap();
    assert_eq!(edit.try_write(A.start).unwrap_err(), WriteError::WouldWait { addr: A.start });
    drop(edit);
    std::mem::forget(space); // its end would wait for the readers
}

#[test]
fn a_downgraded_edit_admits_readers_and_no_editor() {
    let _watchdog = watchdog();
    watched!(Host, CALLS);
    let dog = watchdog();
    let space = space_on::<Host>();
    thread::scope(|scope| {
        let mut edit = space.edit().unwrap();
        *edit.write(A.start).unwrap() = 5;
        let view = edit.downgrade();
        let editor = scope.spawn(|| space.insert(0x3000..0x4000, 6).unwrap());
        dog.until(|| CALLS.is_queued() || editor.is_finished());
        assert_eq!(*space.try_read(A.start).unwrap(), 5);
        assert_eq!((view.iter().count(), editor.is_finished()), (2, false));
        drop(view);
    });
    assert_eq!(space.view().unwrap().iter().count(), 3);
}

#[test]
fn an_operation_that_meets_no_other_makes_no_system_call() {
    let _watchdog = watchdog();
    watched!(Host, CALLS);
    let dog = watchdog();
    let calls = || CALLS.waits.load(Relaxed) + CALLS.wakes.load(Relaxed);
    let space = space_on::<Host>();
    for _ in 0..100 {
        *space.edit().unwrap().write(A.start).unwrap() = 2;
        drop(space.read(A.start).unwrap());
        drop(space.exclude(A).unwrap());
        space.update(A, |_, &p| p + 1).unwrap();
        space.replace(A, 4).unwrap();
        space.remove(A).unwrap();
        space.insert(A, 1).unwrap();
    }
    assert_eq!(calls(), 0);

    let space = Arc::new(space);
    let vma = space.read_owned(A.start).unwrap();
    let remover = thread::spawn({
        let space = Arc::clone(&space);
        move || space.remove(A).unwrap().len()
    });
    dog.until(|| CALLS.has_waited_since(0));
    assert!(!remover.is_finished());
    drop(vma); // by whichever thread
    assert_eq!(remover.join().unwrap(), 1);
    assert!(CALLS.wakes.load(Relaxed) >= 1);
}

#[test]
fn the_end_of_a_space_in_a_guard_drops_its_payloads() {
    let _watchdog = watchdog();
    struct Loud(Arc<AtomicUsize>);
    impl Payload for Loud {}
    impl Drop for Loud {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    let drops = Arc::new(AtomicUsize::new(0));
    let space = Arc::new(AddressSpace::new(4096));
    space.edit().unwrap().insert(A, Loud(Arc::clone(&drops))).unwrap();
    let vma = space.try_read_owned(A.start).unwrap();
    drop(space);
    assert_eq!(drops.load(Relaxed), 0, "the guard keeps the space");
    drop(vma);
    assert_eq!(drops.load(Relaxed), 1);
}

#[test]
fn an_exclusion_is_not_ended_in_a_handler() {
    type Finish = fn(Exclusion<'_, u32>);
    let finishes: [Finish; 4] = [
        |exclusion| drop(exclusion.remove()),
        |exclusion| drop(exclusion.update(|_, payload| *payload)),
        |exclusion| drop(exclusion.relocate(0x10_0000, |_, payload| *payload)),
        |exclusion| drop(exclusion.remove_reserving()),
    ];
    for finish in finishes {
        let space = space();
        let exclusion = space.exclude(A).unwrap();
        let refused = catch_unwind(AssertUnwindSafe(|| {
            let _handler = HandlerScope::<StdPlatform>::enter();
            finish(exclusion);
        }));
        let said = refused.unwrap_err();
        assert!(said.downcast_ref::<&str>().unwrap().contains("inside a signal handler"));
        assert_eq!(*space.try_read(A.start).unwrap(), 1, "nothing has changed");
    }
}

#[test]
fn an_edit_that_would_wait_is_not_begun() {
    let space = space();
    let elsewhere = |space: &AddressSpace<u32>| {
        thread::scope(|scope| scope.spawn(|| space.try_edit().is_some()).join().unwrap())
    };
    let edit = space.try_edit().unwrap();
    assert!(!elsewhere(&space) && space.try_edit().is_none());
    let view = edit.downgrade();
    assert!(!elsewhere(&space) && space.try_edit().is_none());
    drop(view);
    let guard = space.try_read(A.start).unwrap();
    assert!(space.try_edit().is_none() && elsewhere(&space), "it could wait for its own guard");
    drop(guard);
    space.try_edit().unwrap().remove(A).unwrap();
}

#[test]
fn a_space_is_as_it_was_when_a_change_has_panicked() {
    let space = space();
    let panicked = catch_unwind(|| space.update(A, |_, _| panic!("no")));
    assert!(panicked.is_err());
    assert_eq!(*space.try_read(A.start).unwrap(), 1);
}

#[test]
fn a_guard_is_cloned_while_another_thread_waits_to_change_its_vma() {
    let dog = watchdog();
    let space = Arc::new(space());
    let reader = space.register().unwrap();
    let (counted, registered) = (space.try_read(A.start).unwrap(), reader.try_read(A.start));
    let (registered, owned) = (registered.unwrap(), space.read_owned(A.start).unwrap());
    thread::scope(|scope| {
        let remover = scope.spawn(|| space.remove(A).unwrap()[0].payload);
        dog.until(|| space.try_read(A.start).is_err());
        let again = [counted.try_clone().unwrap(), registered.try_clone().unwrap()];
        let owned_again = owned.try_clone().unwrap();
        drop((counted, registered, owned));
        assert_eq!(again.iter().map(|vma| **vma + *owned_again).sum::<u32>(), 4);
        assert!(again.iter().all(|vma| vma.range() == A) && owned_again.range() == A);
        assert_eq!(space.edit().err(), Some(EditError::GuardHeld), "the clones are on record");
        drop(again);
        assert!(!remover.is_finished(), "the owned one is left");
        thread::scope(|scope| scope.spawn(move || drop(owned_again)).join().unwrap());
        assert_eq!(remover.join().unwrap(), 1);
    });
    space.edit().unwrap().insert(A, 3).unwrap();
}

//! Whole operations with real waiting, under random schedules: no thread sleeps forever, and no
//! thread waits for readers of VMAs that it does not change.
//!
//! Half of the schedules are random, half follow the priorities of PCT, all from fixed seeds.
//! shuttle reports a schedule in which every thread sleeps, and one that does not end. Each claim
//! has mutants that break it. `PERVMA_SCHEDULES` sets how many schedules are tried.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::cell::RefCell;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Once};

use pervma_schedules::internals::Step;
use pervma_schedules::internals::{Barrier, Model, Mutation, mutate};
use pervma_schedules::{
    AddressSpace, ChangeError, GapSearch, RangeLocks, ReadError, Slab, WriteError,
};
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

type Space = AddressSpace<u32>;

/// Two VMAs, with a hole between them.
const A: Range<usize> = 10..20;
const B: Range<usize> = 30..40;

const BOTH: &str = "a reader holds a VMA that is write-locked or excluded";
const TORN: &str = "iteration shows a hole at an address that is mapped throughout";
const LEFT: &str = "a VMA still has a reader, or is excluded";
const DEADLOCK: &str = "deadlock! blocked tasks";
const ENDLESS: &str = "exceeded max_steps bound";

fn space() -> Arc<Space> {
    let space = Space::new(1);
    space.edit().unwrap().insert(A, 1).unwrap();
    space.edit().unwrap().insert(B, 2).unwrap();
    Arc::new(space)
}

/// Runs `program` under as many schedules as `PERVMA_SCHEDULES` says.
fn try_schedules(program: fn()) {
    try_schedules_up_to(
        std::env::var("PERVMA_SCHEDULES").map_or(2_000, |n| n.parse().unwrap()),
        program,
    );
}

fn try_schedules_up_to(schedules: usize, program: fn()) {
    const BATCH: usize = 500;
    for seed in 0..schedules.div_ceil(2 * BATCH) as u64 {
        let schedulers: [Box<dyn Scheduler + Send>; 2] = [
            Box::new(RandomScheduler::new_from_seed(seed, BATCH)),
            Box::new(PctScheduler::new_from_seed(seed, 3, BATCH)),
        ];
        for scheduler in schedulers {
            let mut config = Config::new();
            config.max_steps = MaxSteps::FailAfter(100_000);
            config.failure_persistence = FailurePersistence::None;
            config.silence_warnings = true;
            Runner::new(scheduler, config).run(program);
        }
    }
}

/// Checks that without each of `steps`, `program` fails with the message `how`.
fn fails_without(steps: &[Step], how: &str, program: fn()) {
    for &step in steps {
        mutate(Mutation::Drop(step));
        fails(how, program);
    }
}

std::thread_local! {
    /// The message of this thread's first panic: later ones can be consequences of its unwinding.
    static FIRST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn fails(how: &str, program: fn()) {
    static RECORD_PANICS: Once = Once::new();
    RECORD_PANICS.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            FIRST_PANIC.with_borrow_mut(|first| _ = first.get_or_insert_with(|| info.to_string()));
            before(info);
        }));
    });
    FIRST_PANIC.set(None);
    // The first schedule that fails ends the run.
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| try_schedules_up_to(200_000, program)));
    assert!(outcome.is_err(), "SURVIVED");
    let said = FIRST_PANIC.take().unwrap_or_default();
    assert!(said.contains(how), "failed by {said:?}");
}

/// Reads the VMA at `addr`, blocking, and holds it across a yield; counts itself in `readers`.
fn read(space: &Space, addr: usize, readers: &AtomicU32) {
    if let Ok(vma) = space.read(addr) {
        readers.fetch_add(1, SeqCst);
        thread::yield_now();
        assert!(vma.range().contains(&addr));
        readers.fetch_sub(1, SeqCst);
    }
}

/// Readers, an editor and two excluders of one VMA, which all wait for each other.
fn all_wait() {
    let space = space();
    let readers = Arc::new(AtomicU32::new(0));
    let run = |body: fn(&Space, &AtomicU32)| {
        let (space, readers) = (Arc::clone(&space), Arc::clone(&readers));
        thread::spawn(move || body(&space, &readers))
    };
    let threads = [
        run(|space, readers| (0..3).for_each(|_| read(space, A.start, readers))),
        run(|space, readers| (0..3).for_each(|_| read(space, A.start, readers))),
        run(|space, readers| {
            for _ in 0..2 {
                let mut edit = space.edit().unwrap();
                match edit.write(A.start) {
                    Ok(mut payload) => {
                        assert_eq!(readers.load(SeqCst), 0, "{BOTH}");
                        *payload += 1;
                    }
                    Err(error) => assert_eq!(error, WriteError::Excluded { addr: A.start }),
                }
            }
        }),
        run(|space, readers| {
            let updated = space.update(A, |_, payload| {
                assert_eq!(readers.load(SeqCst), 0, "{BOTH}");
                payload + 1
            });
            updated.unwrap();
        }),
        run(|space, _| {
            let exclusion = space.exclude(A.start..B.end).unwrap();
            if !exclusion.wait_until(()) {
                drop(exclusion); // readers of A are admitted again
            }
        }),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(space.edit().unwrap().try_write(A.start).is_ok(), "{LEFT}");
}

/// Two registered readers of a space, an editor of it, and one of another space on the same slab.
/// Scans find the readers idle as often as not. (That one reader stops as it resumes, and another
/// as it retracts, while both editors scan, is too rare for random schedules: a unit test of
/// `core/src/hazard.rs` has it.)
fn readers_resume() {
    let slab = Arc::new(Slab::new());
    let [mine, other] = [0, 1].map(|_| Arc::new(Space::new_in(1, Arc::clone(&slab))));
    for space in [&mine, &other] {
        space.edit().unwrap().insert(A, 1).unwrap();
    }
    let readers = Arc::new(AtomicU32::new(0));
    let reads = || {
        let (mine, readers) = (Arc::clone(&mine), Arc::clone(&readers));
        thread::spawn(move || {
            let barrier = Barrier::new();
            barrier.enroll();
            barrier.end(); // no thread has to pass one: schedules know no weak memory
            let reader = mine.register().unwrap();
            for _ in 0..3 {
                if let Ok(vma) = reader.try_read(A.start) {
                    readers.fetch_add(1, SeqCst);
                    thread::yield_now();
                    readers.fetch_sub(1, SeqCst);
                    drop(vma);
                }
            }
        })
    };
    let edits = |space: &Arc<Space>, readers: Option<Arc<AtomicU32>>| {
        let space = Arc::clone(space);
        thread::spawn(move || {
            for _ in 0..4 {
                let mut edit = space.edit().unwrap();
                if edit.try_write(A.start).is_ok() {
                    let held = readers.as_ref().map_or(0, |readers| readers.load(SeqCst));
                    assert_eq!(held, 0, "{BOTH}");
                }
            }
        })
    };
    let threads = [reads(), reads(), edits(&mine, Some(Arc::clone(&readers))), edits(&other, None)];
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_reader_that_resumes_is_seen_by_all_editors_of_its_slab() {
    try_schedules(readers_resume);
    fails_without(&[Step::KeepBusy, Step::RetractIdle], BOTH, readers_resume);
}

/// B15j, B18. No wake-up is lost, and a wait that timed out leaves the VMA usable.
#[test]
fn every_waiter_goes_on() {
    try_schedules(all_wait);
}

#[test]
fn every_waiter_goes_on_and_each_step_is_needed() {
    let steps = [Step::WakeWriter, Step::TestAgain, Step::NotifyLast, Step::SeparateEvent];
    fails_without(&steps, DEADLOCK, all_wait);
    // In some schedules they fail by `LEFT` instead.
    fails_without(&[Step::SleepUnlocked, Step::ClearExcluded], DEADLOCK, all_wait);
    fails_without(&[Step::WaitForReaders, Step::RefuseExcluded], BOTH, all_wait);
}

/// The result of an operation, if no change by another thread made it fail.
fn unless_raced<V>(result: Result<V, ChangeError>) -> Option<V> {
    match result {
        Ok(value) => Some(value),
        Err(
            ChangeError::NotMapped { .. }
            | ChangeError::Overlap { .. }
            | ChangeError::Reserved { .. }
            | ChangeError::Excluded { .. },
        ) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Makes one operation of any kind.
fn random_operation(space: &Space) {
    let mut random = thread_rng();
    let start = random.gen_range(8..36);
    let range = start..start + random.gen_range(1..14);
    let payload = random.gen_range(0..3);
    match random.gen_range(0..20) {
        0 => drop(unless_raced(space.edit().unwrap().insert(range, payload).map_err(|e| e.kind))),
        1 => drop(unless_raced(space.edit().unwrap().remove(range))),
        2 => drop(unless_raced(space.remove(range))),
        3 => drop(unless_raced(space.edit().unwrap().update(range, |_, _| payload))),
        4 => drop(unless_raced(space.update(range, |_, _| payload))),
        5 => drop(unless_raced(space.edit().unwrap().replace(range, payload).map_err(|e| e.kind))),
        6 => drop(unless_raced(space.replace(range, payload).map_err(|e| e.kind))),
        7 => drop(unless_raced(space.relocate(range, random.gen_range(50..60), |_, &p| p))),
        8 => {
            let reservation = unless_raced(space.edit().unwrap().reserve(range));
            if let (Some(mut reservation), true) = (reservation, random.r#gen()) {
                reservation.commit(payload).unwrap();
            }
        }
        9 => {
            if let Some(exclusion) = unless_raced(space.exclude(range))
                && exclusion.wait_until(())
            {
                drop(unless_raced(exclusion.remove_reserving()));
            }
        }
        10 => {
            if let Some(child) =
                unless_raced(space.edit().unwrap().fork(|_, &payload| Some(payload)))
            {
                assert!(child.iter().all(|vma| vma.is_ok()));
            }
        }
        11 => {
            let mut edit = space.edit().unwrap();
            let gap = edit.find_gap(&GapSearch::new(3).within(0..60)).unwrap();
            edit.insert(gap, payload).unwrap();
            assert!(edit.downgrade().iter().count() > 0);
        }
        12 => assert!(space.view().unwrap().iter().all(|(_, &payload)| payload < 3)),
        13 => {
            for vma in space {
                match vma {
                    Ok((_, payload)) => assert!(payload < 3),
                    Err(error) => assert!(matches!(error, ReadError::Busy { .. }), "{error}"),
                }
            }
        }
        14 => drop(unless_raced(space.set(range, payload).map_err(|error| error.kind))),
        15 => drop(unless_raced(space.insert_merging(range, payload).map_err(|e| e.kind))),
        16 => drop(unless_raced(space.retain(|_, &kept| kept != payload))),
        17 => assert!(space.iter().rev().all(|vma| match vma {
            Ok((_, payload)) => payload < 3,
            Err(error) => matches!(error, ReadError::Busy { .. }),
        })),
        _ => match space.read(start) {
            Ok(vma) => assert!(*vma < 3 && vma.range().contains(&start)),
            Err(
                ReadError::NotMapped { .. } | ReadError::Reserved { .. } | ReadError::Busy { .. },
            ) => {}
            Err(error) => panic!("{error}"),
        },
    }
}

/// Three threads make a few operations each; then the space is dropped.
fn random_operations() {
    let space = space();
    let threads = [0; 3].map(|_| {
        let space = Arc::clone(&space);
        thread::spawn(move || (0..4).for_each(|_| random_operation(&space)))
    });
    for thread in threads {
        thread.join().unwrap();
    }
    let mut edit = space.edit().unwrap();
    let vmas: Vec<_> = edit.iter().map(|(range, _)| range).collect();
    assert!(vmas.is_sorted_by(|one, next| one.end <= next.start), "{vmas:?}");
    assert_eq!(space.slab().vmas().in_use, vmas.len(), "a slot is lost");
    for range in vmas {
        assert!(edit.try_write(range.start).is_ok(), "{LEFT}");
    }
}

/// B15j, B19, B20. Operations of several threads do not deadlock.
#[test]
fn concurrent_operations_end() {
    try_schedules(random_operations);
}

#[test]
fn concurrent_operations_end_and_each_step_is_needed() {
    fails_without(&[Step::WakeWriter, Step::SleepUnlocked], DEADLOCK, random_operations);
    fails_without(&[Step::TestExcluded], "X is set once", random_operations);
}

/// Changes `range`, while readers of `B` hold it until all changes are made.
fn beside_readers_of_b(range: fn() -> Range<usize>) {
    let space = space();
    let over = Arc::new((Mutex::new(false), Condvar::new()));
    let readers = [0; 2].map(|_| {
        let (space, over) = (Arc::clone(&space), Arc::clone(&over));
        thread::spawn(move || {
            let vma = space.try_read(B.start);
            let (done, wake) = &*over;
            drop(wake.wait_while(done.lock().unwrap(), |done| !*done).unwrap());
            drop(vma);
        })
    });
    let wide = range();
    *space.edit().unwrap().write(A.start).unwrap() += 1;
    space.update(wide.clone(), |_, payload| payload + 1).unwrap();
    space.edit().unwrap().update(wide.clone(), |_, payload| payload + 1).unwrap();
    space.replace(wide.clone(), 3).unwrap();
    space.remove(wide.clone()).unwrap();
    space.edit().unwrap().insert(wide.clone(), 4).unwrap();
    space.relocate(wide.clone(), 50, |_, &payload| payload).unwrap();
    drop(space.edit().unwrap().remove(50..50 + wide.len()).unwrap());
    *over.0.lock().unwrap() = true;
    over.1.notify_all();
    for reader in readers {
        reader.join().unwrap();
    }
}

/// A writer does not wait for readers of other VMAs.
#[test]
fn readers_of_other_vmas_do_not_starve_a_writer() {
    try_schedules(|| beside_readers_of_b(|| A));
}

#[test]
fn readers_of_the_same_vma_block_a_writer() {
    fails(DEADLOCK, || beside_readers_of_b(|| B));
}

/// A writer of A, and readers of A that overlap, so that A has a reader as long as they are
/// admitted.
fn beside_readers_of_a() {
    let space = space();
    let over = Arc::new(AtomicBool::new(false));
    let readers = [0; 2].map(|_| {
        let (space, over) = (Arc::clone(&space), Arc::clone(&over));
        thread::spawn(move || {
            let mut held = None;
            while !over.load(SeqCst) {
                // The next guard is taken before the last one is dropped.
                held = space.try_read_owned(A.start).ok();
                thread::yield_now();
            }
            drop(held);
        })
    });
    space.update(A, |_, payload| payload + 1).unwrap();
    *space.edit().unwrap().write(A.start).unwrap() += 1;
    over.store(true, SeqCst);
    for reader in readers {
        reader.join().unwrap();
    }
    assert_eq!(*space.read(A.start).unwrap(), 3);
}

/// A stream of readers of the same VMA does not starve a writer: none is admitted while it waits.
#[test]
fn a_stream_of_readers_does_not_starve_a_writer() {
    try_schedules(beside_readers_of_a);
}

#[test]
fn a_stream_of_readers_starves_a_writer_if_excluded_does_not_refuse_them() {
    fails_without(&[Step::RefuseExcluded], ENDLESS, beside_readers_of_a);
}

/// The ten ways in which a change can tear an iteration: the middle of three VMAs is merged with
/// both neighbours, with the left one (whole, in part), with the right one (whole, in part); a VMA
/// that is inserted between two is merged with both, the left, the right; the middle one is split,
/// below and above.
fn iterate_beside_a_change(case: u32) {
    let (left, right) = (1, if matches!(case, 1 | 6) { 1 } else { 3 });
    let (part, becomes) = match case {
        1 | 2 | 6 | 7 => (20..30, left),
        3 => (20..25, left),
        4 | 8 => (20..30, right),
        5 => (25..30, right),
        9 => (20..25, 7),
        _ => (25..30, 7),
    };
    let inserted_between = matches!(case, 6..=8);
    let space = Arc::new(Space::new(1));
    let mut edit = space.edit().unwrap();
    edit.insert(10..20, left).unwrap();
    if !inserted_between {
        edit.insert(20..30, 2).unwrap();
    }
    edit.insert(30..40, right).unwrap();
    drop(edit);
    let outside = !inserted_between && thread_rng().r#gen();
    let editor = thread::spawn({
        let space = Arc::clone(&space);
        move || {
            if outside {
                space.update(part, |_, _| becomes).unwrap();
                return;
            }
            let mut edit = space.edit().unwrap();
            if inserted_between {
                edit.insert(20..30, 2).unwrap();
            }
            edit.update(part, |_, _| becomes).unwrap();
        }
    });
    let mut shown = 0;
    for vma in &*space {
        let (range, _) = vma.unwrap();
        // What lies between was shown as a hole; `mapped` addresses are mapped throughout.
        let hole = shown..range.start;
        let mapped =
            |addr| (10..40).contains(&addr) && !(inserted_between && (20..30).contains(&addr));
        assert!(!hole.clone().any(mapped), "{TORN}: {hole:?} in case {case}");
        shown = range.end;
    }
    assert_eq!(shown, 40, "{TORN}");
    editor.join().unwrap();
}

/// B26. Iteration may show a VMA twice, but never a hole that was never there.
#[test]
fn iteration_shows_no_hole_that_was_not_there() {
    try_schedules(|| iterate_beside_a_change(thread_rng().gen_range(1..=10)));
}

#[test]
fn iteration_shows_a_false_hole_without_the_check() {
    fails_without(&[Step::CheckHole], TORN, || iterate_beside_a_change(6));
}

const TOGETHER: &str = "two threads have a range lock of one address";

/// Three threads lock two ranges each, of six addresses, some of them closed, and ask whether
/// others are open.
fn lock_ranges() {
    let locks = Arc::new(RangeLocks::<Model>::with_platform());
    let users: Arc<[AtomicU32; 6]> = Arc::default();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (locks, users) = (Arc::clone(&locks), Arc::clone(&users));
            thread::spawn(move || {
                for _ in 0..2 {
                    let [one, two] = [(); 2].map(|()| {
                        let start = thread_rng().gen_range(0..5);
                        start..start + thread_rng().gen_range(1..=6 - start)
                    });
                    let lock = locks.lock_pair([one.clone(), two.clone()]).unwrap();
                    if thread_rng().r#gen() {
                        lock.close();
                    }
                    let mine = || (0..6).filter(|at| one.contains(at) || two.contains(at));
                    for at in mine() {
                        assert_eq!(users[at].fetch_add(1, SeqCst), 0, "{TOGETHER}");
                    }
                    thread::yield_now();
                    for at in mine() {
                        users[at].fetch_sub(1, SeqCst);
                    }
                    drop(lock);
                    locks.wait_until_open(thread_rng().gen_range(0..6)).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(locks.is_free(0..usize::MAX));
}

#[test]
fn range_locks_are_had_in_turn_by_all() {
    try_schedules(lock_ranges);
}

#[test]
fn range_locks_need_their_steps() {
    fails_without(&[Step::WaitForRanges], TOGETHER, lock_ranges);
    fails_without(&[Step::WakeForRanges], DEADLOCK, lock_ranges);
}

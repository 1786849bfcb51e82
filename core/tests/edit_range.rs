//! Edits that wait for exclusions.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Calls, Delegate, Watched, watchdog};
use pervma::{AddressSpace, ChangeError};

/// VMAs of one byte each, at 0, 2, 4, ….
const VMAS: usize = 100;

enum Handled {}

static CALLS: Calls = Calls::none();

impl Watched for Handled {
    fn calls() -> &'static Calls {
        &CALLS
    }
}

fn fill<P: pervma::Platform>(space: &AddressSpace<usize, P>) {
    let mut edit = space.edit().unwrap();
    for addr in (0..2 * VMAS).step_by(2) {
        edit.insert(addr..addr + 1, 0).unwrap();
    }
}

#[test]
fn an_edit_and_a_fork_pass_threads_that_exclude_without_pause() {
    let dog = watchdog();
    let space = AddressSpace::<usize>::new(1);
    fill(&space);
    let (stop, updates) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for first in [0, VMAS] {
            let (space, stop, updates) = (&space, &stop, &updates);
            scope.spawn(move || {
                for addr in (first..first + VMAS).step_by(2).cycle() {
                    space.update(addr..addr + 1, |_, payload| payload + 1).unwrap();
                    updates.fetch_add(1, Relaxed);
                    if stop.load(Relaxed) {
                        break;
                    }
                }
            });
        }
        for _ in 0..50 {
            let before = updates.load(Relaxed);
            dog.until(|| updates.load(Relaxed) > before);
            let mut edit = space.edit_range(0..2 * VMAS).unwrap();
            for addr in (0..2 * VMAS).step_by(2) {
                *edit.write(addr).unwrap() += 0;
            }
            drop(edit);
            let copy = space.fork(|_, payload| Some(*payload)).unwrap();
            assert_eq!(copy.iter().count(), VMAS);
        }
        stop.store(true, Relaxed);
    });
}

#[test]
fn an_exclusion_in_the_range_lets_the_waiting_edit_go_first_and_no_other_does() {
    let dog = watchdog();
    let space = AddressSpace::<usize, Delegate<Handled>>::with_platform(1);
    fill(&space);
    let (release, released) = mpsc::channel::<()>();
    let (began, second) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let (has, got) = mpsc::channel();
        let holder = {
            let space = &space;
            move || {
                let exclusion = space.exclude(0..1).unwrap();
                has.send(()).unwrap();
                released.recv().unwrap();
                drop(exclusion);
            }
        };
        scope.spawn(holder);
        got.recv().unwrap();
        let waits = CALLS.waits.load(Relaxed);
        let editor = scope.spawn(|| {
            let mut edit = space.edit_range(0..10).unwrap();
            assert!(!second.load(Relaxed), "an exclusion in the range has overtaken");
            began.store(true, Relaxed);
            *edit.write(4).unwrap() = 1;
        });
        dog.until(|| CALLS.has_waited_since(waits));
        let excluder = scope.spawn(|| {
            let exclusion = space.exclude(4..5).unwrap();
            second.store(true, Relaxed);
            assert!(began.load(Relaxed));
            assert!(exclusion.iter().eq([(4..5, &1)]), "the edit has gone first");
        });
        dog.until(|| CALLS.is_queued());
        // Outside of the range, and where it is known to have none, others go on.
        drop(space.exclude(20..21).unwrap());
        space.insert(30..31, 1).unwrap_err();
        space.insert(31..32, 1).unwrap();
        assert!(space.edit_range(20..40).is_ok(), "it does not wait for exclusions elsewhere");
        assert_eq!(*space.try_read(4).unwrap(), 0);
        assert!(!began.load(Relaxed) && !second.load(Relaxed));
        release.send(()).unwrap();
        editor.join().unwrap();
        excluder.join().unwrap();
    });
}

#[test]
fn two_edits_wait_at_a_time_each_for_its_own_range() {
    let dog = watchdog();
    let space = AddressSpace::<usize>::new(1);
    fill(&space);
    let (hold, let_go) = mpsc::channel::<()>();
    let (held, is_held) = mpsc::channel();
    let first_began = AtomicBool::new(false);
    thread::scope(|scope| {
        let (space, first_began) = (&space, &first_began);
        scope.spawn(move || {
            let exclusion = space.exclude(0..1).unwrap();
            held.send(()).unwrap();
            let_go.recv().unwrap();
            drop(exclusion);
        });
        is_held.recv().unwrap();
        scope.spawn(move || {
            drop(space.edit_range(0..5).unwrap());
            first_began.store(true, Relaxed);
        });
        let second = space.exclude(50..51).unwrap();
        let other = scope.spawn(move || drop(space.edit_range(50..60).unwrap()));
        drop(second);
        dog.until(|| other.is_finished());
        assert!(!first_began.load(Relaxed), "it waits for another exclusion");
        hold.send(()).unwrap();
    });
}

#[test]
fn an_edit_that_gives_up_waiting_for_exclusions_keeps_none_waiting() {
    let _dog = watchdog();
    let space = AddressSpace::<usize>::new(1);
    fill(&space);
    let within = |millis| {
        let deadline = Instant::now() + Duration::from_millis(millis);
        let edit = space.edit_range_until(0..10, deadline).unwrap();
        assert!(edit.is_some() || Instant::now() >= deadline);
        edit.is_some()
    };
    let exclusion = space.exclude(0..1).unwrap();
    thread::scope(|scope| {
        for millis in [0, 5] {
            assert!(!scope.spawn(move || within(millis)).join().unwrap());
            scope.spawn(|| drop(space.exclude(4..5).unwrap())).join().unwrap();
        }
        let edits = scope.spawn(|| within(300_000));
        drop(exclusion);
        assert!(edits.join().unwrap());
    });
    assert!(within(0), "it tries once");
}

/// Wake-ups that reach threads whose time is up are not lost.
#[test]
fn edits_with_short_deadlines_leave_no_thread_asleep() {
    let _dog = watchdog();
    let space = AddressSpace::<usize>::new(1);
    fill(&space);
    let rounds = if cfg!(miri) { 20 } else { 20_000 };
    let added = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (space, added) = (&space, &added);
            scope.spawn(move || {
                for round in 0..rounds {
                    let soon = || Instant::now() + Duration::from_micros(round % 64);
                    let edit = match thread {
                        0 => space.edit().ok(),
                        1 => space.edit_until(soon()).unwrap(),
                        2 => space.edit_range_until(0..10, soon()).unwrap(),
                        _ => {
                            drop(space.view().unwrap());
                            drop(space.exclude(0..4).unwrap());
                            None
                        }
                    };
                    if let Some(mut edit) = edit {
                        *edit.write(20).unwrap() += 1;
                        added.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(*space.try_read(20).unwrap(), added.into_inner());
}

#[test]
fn what_could_wait_for_itself_is_refused() {
    let space = AddressSpace::<usize>::new(1);
    fill(&space);
    let copy = |_, payload: &usize| Some(*payload);
    let refused = |error: ChangeError| {
        assert_eq!(space.edit_range(0..1).err(), Some(error.clone()));
        assert_eq!(space.edit_range_until(0..1, Instant::now()).err(), Some(error.clone()));
        assert_eq!(space.fork(copy).err(), Some(error));
    };
    let edit = space.edit().unwrap();
    refused(ChangeError::OwnEdit);
    drop(edit);
    let guard = space.try_read(0).unwrap();
    refused(ChangeError::GuardHeld);
    drop(guard);
    let exclusion = space.exclude(50..51).unwrap();
    refused(ChangeError::OwnExclusion);
    drop(exclusion);
    assert!(matches!(space.edit_range(5..5), Err(ChangeError::Range(_))));
    assert!(space.edit_range(0..1).is_ok() && space.fork(copy).is_ok());
}

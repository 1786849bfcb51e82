//! Changes that wait outside of edits, beside edits that take long.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;

use common::{Watchdog, watchdog};
use pervma::{AddressSpace, ChangeError, Payload, ReadError};

const A: usize = 10;
const B: usize = 20;
const C: usize = 30;

fn space() -> AddressSpace<u32> {
    let space = AddressSpace::new(1);
    let mut edit = space.edit().unwrap();
    for addr in [A, B, C] {
        edit.insert(addr..addr + 5, 0).unwrap();
    }
    drop(edit);
    space
}

/// Runs `change`, of B, so that it finds the mmap lock taken after it has waited for its readers:
/// by an edit that waits for a reader of A. Calls `meanwhile` while that edit goes on; it ends with
/// `last`.
fn beside_a_long_edit(
    dog: &Watchdog,
    space: &AddressSpace<u32>,
    change: impl FnOnce() + Send,
    meanwhile: impl FnOnce(),
    last: impl FnOnce(&mut pervma::Edit<'_, u32>) + Send,
) {
    let (release, released) = mpsc::channel::<()>();
    let (holds, is_held) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let guard = space.try_read(A).unwrap();
            holds.send(()).unwrap();
            released.recv().unwrap();
            drop(guard);
        });
        is_held.recv().unwrap();
        let reader_of_b = space.try_read(B).unwrap();
        let change = scope.spawn(change);
        dog.until(|| space.try_read(B).is_err()); // it has excluded B, and waits for us
        let edit = scope.spawn(|| {
            let mut edit = space.edit().unwrap();
            edit.remove(A..A + 5).unwrap();
            last(&mut edit);
        });
        dog.until(|| space.try_read(A).is_err()); // it has the mmap lock, and waits for its reader
        drop(reader_of_b);
        dog.until(|| space.try_read(B).is_ok());
        meanwhile();
        assert!(!change.is_finished() && !edit.is_finished());
        release.send(()).unwrap();
        change.join().unwrap();
    });
}

#[test]
fn readers_of_one_vma_do_not_wait_for_a_reader_of_another() {
    let dog = watchdog();
    let (space, calls) = (space(), AtomicUsize::new(0));
    let update = || {
        let change = |_, payload: &u32| {
            calls.fetch_add(1, Relaxed);
            payload + 1
        };
        assert_eq!(space.update(B..B + 5, change).unwrap()[0].payload, 0);
    };
    let meanwhile = || {
        assert_eq!(*space.read(B).unwrap(), 0);
        assert_eq!(calls.load(Relaxed), 1);
    };
    beside_a_long_edit(&dog, &space, update, meanwhile, |_| {});
    assert_eq!((*space.try_read(B).unwrap(), calls.load(Relaxed)), (1, 2), "it started over");
    assert_eq!(space.try_read(A).unwrap_err(), ReadError::NotMapped { addr: A });
}

#[test]
fn a_change_starts_over_when_its_vmas_are_changed_before_its_edit() {
    let dog = watchdog();
    let add_one = |space: &AddressSpace<u32>| {
        space.update(B..B + 5, |_, payload| payload + 1).unwrap();
    };
    // In place.
    let map = space();
    beside_a_long_edit(
        &dog,
        &map,
        || add_one(&map),
        || {},
        |edit| {
            *edit.write(B).unwrap() += 10;
        },
    );
    assert_eq!(*map.try_read(B).unwrap(), 11);
    // By another VMA.
    let map = space();
    beside_a_long_edit(
        &dog,
        &map,
        || add_one(&map),
        || {},
        |edit| {
            edit.remove(B..B + 5).unwrap();
            edit.insert(B..B + 5, 20).unwrap();
        },
    );
    assert_eq!(*map.try_read(B).unwrap(), 21);
    // By two.
    let map = space();
    beside_a_long_edit(
        &dog,
        &map,
        || add_one(&map),
        || {},
        |edit| {
            edit.update(B..B + 2, |_, _| 30).unwrap();
        },
    );
    assert_eq!((*map.try_read(B).unwrap(), *map.try_read(B + 2).unwrap()), (31, 1));
    // By none.
    let map = space();
    let refused = || {
        let refused = map.update(B..B + 5, |_, payload| payload + 1).unwrap_err();
        assert_eq!(refused, ChangeError::NotMapped { range: B..B + 5 });
    };
    beside_a_long_edit(
        &dog,
        &map,
        refused,
        || {},
        |edit| {
            edit.remove(B..B + 5).unwrap();
        },
    );
}

#[test]
fn every_change_that_waits_outside_admits_readers_meanwhile() {
    let dog = watchdog();
    let map = space();
    let remove = || assert_eq!(map.remove(B..B + 5).unwrap().len(), 1);
    beside_a_long_edit(&dog, &map, remove, || drop(map.read(B).unwrap()), |_| {});
    assert!(map.try_read(B).is_err());

    let map = space();
    let relocate = || {
        map.relocate(B..B + 5, 50, |_, _| 1).unwrap();
    };
    beside_a_long_edit(&dog, &map, relocate, || drop(map.read(B).unwrap()), |_| {});
    assert_eq!(*map.try_read(50).unwrap(), 1);

    // What it was to move to is taken meanwhile.
    let map = space();
    let relocate = || {
        let refused = map.relocate(B..B + 5, 50, |_, _| 1).unwrap_err();
        assert_eq!(refused, ChangeError::Overlap { existing: 52..53 });
    };
    beside_a_long_edit(&dog, &map, relocate, || {}, |edit| edit.insert(52..53, 0).unwrap());
    assert_eq!(*map.try_read(B).unwrap(), 0);

    // What it replaces grows meanwhile.
    let map = space();
    let replace = || assert_eq!(map.replace(B..C, 1).unwrap().len(), 2);
    beside_a_long_edit(
        &dog,
        &map,
        replace,
        || drop(map.read(B).unwrap()),
        |edit| {
            edit.insert(B + 6..B + 7, 0).unwrap();
        },
    );
    assert_eq!(map.try_read(B).unwrap().range(), B..C);
}

/// A payload that its readers change.
struct Used(AtomicUsize);

impl Payload for Used {
    fn split(&self, _: usize) -> Option<(Self, Self)> {
        let again = || Self(AtomicUsize::new(self.0.load(Relaxed)));
        Some((again(), again()))
    }
}

/// Runs `update` of B with a function that calls `in_change` each time it is called; when
/// `in_change` returns, another thread has the mmap lock, and keeps it until readers of B are
/// admitted or it has done so `most` times. Returns how often the function was called.
fn met_by_edits<T: Payload + Sync + Send>(
    dog: &Watchdog,
    space: &AddressSpace<T>,
    most: usize,
    new: impl Fn(&T) -> T + Send + Sync,
    while_admitted: impl Fn(&T) + Send,
) -> usize {
    let calls = AtomicUsize::new(0);
    let (begin, may_begin) = mpsc::channel();
    let (begun, has_begun) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for time in 1..=most {
                may_begin.recv().unwrap();
                let edit = space.edit().unwrap();
                begun.send(()).unwrap();
                if time < most {
                    dog.until(|| space.try_read(B).map(|vma| while_admitted(&vma)).is_ok());
                }
                drop(edit);
            }
        });
        let (calls, new) = (&calls, &new);
        let update = scope.spawn(move || {
            let change = |_, payload: &T| {
                if calls.fetch_add(1, Relaxed) < most {
                    begin.send(()).unwrap();
                    has_begun.recv().unwrap();
                }
                new(payload)
            };
            drop(space.update(B..B + 5, change).unwrap());
        });
        update.join().unwrap();
    });
    calls.load(Relaxed)
}

#[test]
fn what_readers_change_inside_of_a_payload_meanwhile_is_not_lost() {
    let dog = watchdog();
    let space = AddressSpace::new(1);
    space.insert(B..B + 5, Used(AtomicUsize::new(0))).unwrap();
    let used = AtomicUsize::new(0);
    let copy = |payload: &Used| Used(AtomicUsize::new(payload.0.load(Relaxed)));
    let calls = met_by_edits(&dog, &space, 2, copy, |payload| {
        payload.0.fetch_add(1, Relaxed);
        used.fetch_add(1, Relaxed);
    });
    assert!(calls >= 2, "it has started over");
    assert_eq!(space.try_read(B).unwrap().0.load(Relaxed), used.load(Relaxed));
}

#[test]
fn a_change_ends_though_an_edit_meets_it_each_time() {
    let dog = watchdog();
    // Four times it lets readers back, then it keeps the VMA and queues.
    let calls = met_by_edits(&dog, &space(), 5, |payload| payload + 1, |_| {});
    assert_eq!(calls, 5);
}

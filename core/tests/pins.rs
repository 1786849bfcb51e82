//! More guards of what a thread has read-locked, and parts of payloads.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::watchdog;
use pervma::{
    AddressSpace, EditError, MappedReadGuard, OwnedMappedReadGuard, OwnedReadGuard, ReadError,
    ReadGuard,
};

type Space = AddressSpace<(u32, Vec<u32>)>;

fn space() -> Arc<Space> {
    let space = Arc::new(Space::new(1));
    space.insert(10..20, (1, vec![2, 3])).unwrap();
    space
}

/// Whether the VMA has no reader.
fn is_free(space: &Space) -> bool {
    space.exclude(10..20).unwrap().wait_until(Instant::now() + Duration::from_millis(1))
}

/// `read_owned` of the same VMA would wait for the thread that waits for this one.
#[test]
fn a_guard_becomes_an_owned_one_while_another_thread_waits_to_change_its_vma() {
    let dog = watchdog();
    let space = space();
    let reader = space.register().unwrap();
    let guards = [space.try_read(10).unwrap(), reader.try_read(10).unwrap()];
    thread::scope(|scope| {
        let remover = scope.spawn(|| space.remove_whole(10..20).unwrap().len());
        dog.until(|| space.try_read(10).is_err());
        let owned = guards.each_ref().map(|guard| guard.try_to_owned(&space).unwrap());
        drop(guards);
        assert!(!remover.is_finished());
        let [first, second] = owned;
        assert!(first.id() == second.id() && Arc::ptr_eq(first.space(), &space));
        let elsewhere = thread::spawn(move || (first.0, second.range()));
        assert_eq!(elsewhere.join().unwrap(), (1, 10..20));
        assert_eq!(remover.join().unwrap(), 1);
    });
}

#[test]
fn an_owned_guard_is_of_the_space_that_the_vma_is_in() {
    let (space, other) = (space(), space());
    let guard = space.try_read(10).unwrap();
    let gone = Some(ReadError::Gone { addr: 10 });
    assert_eq!(guard.try_to_owned(&other).err(), gone);
    assert_eq!(Arc::strong_count(&other), 1);
    drop(guard.try_to_owned(&space).unwrap());
    assert_eq!(Arc::strong_count(&space), 1);
    drop(guard);
    assert!(is_free(&space) && is_free(&other));
}

#[test]
fn an_owned_guard_outlives_every_other_handle_of_its_space() {
    let space = space();
    let owned = space.try_read(10).unwrap().try_to_owned(&space).unwrap();
    drop(space);
    let part = OwnedReadGuard::map(owned, |payload| &payload.1);
    let last = OwnedMappedReadGuard::map(part, |list| &list[1]);
    assert_eq!(format!("{last:?}"), "OwnedMappedReadGuard { range: 10..20, part: 3, .. }");
    assert_eq!(thread::spawn(move || *last).join().unwrap(), 3);
}

/// The guard and the space end inside of the function that it was passed to. Miri says whether it
/// had a reference to the slot.
#[test]
fn the_last_handle_of_a_space_may_be_an_argument() {
    fn end(_guard: OwnedReadGuard<(u32, Vec<u32>)>) {}

    let space = space();
    let owned = space.read_owned(10).unwrap();
    drop(space);
    end(owned);
}

#[test]
fn a_part_keeps_its_vma_read_locked_and_on_record() {
    let dog = watchdog();
    let space = space();
    let part = ReadGuard::map(space.try_read(15).unwrap(), |payload| &payload.1);
    let part = MappedReadGuard::map(part, |list| &list[..1]);
    assert_eq!((&*part, part.range()), (&[2][..], 10..20));
    assert_eq!(format!("{part:?}"), "MappedReadGuard { range: 10..20, part: [2], .. }");
    assert_eq!(space.edit().err(), Some(EditError::GuardHeld));
    thread::scope(|scope| {
        let remover = scope.spawn(|| space.remove_whole(10..20).unwrap().len());
        dog.until(|| space.try_read(10).is_err());
        assert_eq!(*part, [2]);
        drop(part);
        assert_eq!(remover.join().unwrap(), 1);
    });
    drop(space.edit().unwrap());
}

#[test]
fn a_function_that_panics_releases_the_vma() {
    let space = space();
    let panicked = |deed: &mut dyn FnMut()| {
        assert!(catch_unwind(AssertUnwindSafe(deed)).is_err());
        assert!(is_free(&space) && space.edit().is_ok());
    };
    panicked(&mut || {
        drop(ReadGuard::map(space.try_read(10).unwrap(), |_| -> &u32 { panic!("no") }));
    });
    panicked(&mut || {
        let part = ReadGuard::map(space.try_read(10).unwrap(), |payload| &payload.0);
        drop(MappedReadGuard::map(part, |_| -> &u32 { panic!("no") }));
    });
    panicked(&mut || {
        let guard = space.try_read_owned(10).unwrap();
        drop(OwnedReadGuard::map(guard, |_| -> &u32 { panic!("no") }));
    });
    assert_eq!(Arc::strong_count(&space), 1);
}

/// A part need not be of the payload.
#[test]
fn a_part_may_be_static() {
    let space = space();
    let part = ReadGuard::map(space.try_read(10).unwrap(), |_| "static");
    assert_eq!(&*part, "static");
}

/// They are used behind `catch_unwind` without `AssertUnwindSafe`.
#[test]
fn what_is_made_of_a_space_is_unwind_safe() {
    let space = space();
    let guard = space.try_read(10).unwrap();
    let panicked = catch_unwind(|| {
        assert_eq!(guard.0, 1);
        panic!("no");
    });
    assert!(panicked.is_err() && guard.1.len() == 2);
    let owned = guard.try_to_owned(&space).unwrap();
    let part = ReadGuard::map(guard, |payload| &payload.0);
    assert_eq!(catch_unwind(|| *part + owned.0).unwrap(), 2);
    drop((part, owned));
    let reader = space.register().unwrap();
    assert_eq!(catch_unwind(|| reader.try_read(10).unwrap().0).unwrap(), 1);
    drop(reader);
    let view = space.view().unwrap();
    assert_eq!(catch_unwind(|| view.len()).unwrap(), 1);
}

//! Reservations: where they are committed and dropped, and when their range is free again.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use common::watchdog;
use pervma::{
    AddressSpace, ChangeError, GapError, GapSearch, HandlerScope, ReadError, Slab, StdPlatform,
    WriteError,
};

const A: Range<usize> = 0x1000..0x2000;
const B: Range<usize> = 0x8000..0x9000;
/// Between them.
const GAP: Range<usize> = 0x3000..0x4000;

/// Two VMAs, with a hole between them.
fn space() -> AddressSpace<u32> {
    let space = AddressSpace::new(4096);
    space.insert(A, 1).unwrap();
    space.insert(B, 2).unwrap();
    space
}

/// Checks that the range is taken, and that readers get `Reserved`.
fn is_reserved(space: &AddressSpace<u32>) {
    let addr = GAP.start;
    assert_eq!(space.try_read(addr).unwrap_err(), ReadError::Reserved { addr });
    assert_eq!(space.read(addr).unwrap_err(), ReadError::Reserved { addr });
    let search = GapSearch::new(GAP.len()).within(GAP);
    assert_eq!(space.view().unwrap().find_gap(&search), Err(GapError::NotFound));
}

/// Checks that the range is free at the latest when an edit begins.
fn is_free_in_the_next_edit(space: &AddressSpace<u32>) {
    space.insert(GAP, 3).unwrap();
    assert_eq!(space.remove(GAP).unwrap()[0].payload, 3);
    let addr = GAP.start;
    assert_eq!(space.try_read(addr).unwrap_err(), ReadError::NotMapped { addr });
    assert_eq!(space.slab().vmas().in_use, 2);
}

#[test]
fn a_reservation_ends_in_the_edit_that_its_thread_has_open() {
    let _watchdog = watchdog();
    let space = space();
    let gap = 0x3000..0x4000;
    let mut edit = space.edit().unwrap();
    drop(edit.reserve(gap.clone()).unwrap());
    let mut reservation = edit.reserve(gap.clone()).unwrap(); // the range was given back
    assert_eq!(
        edit.insert(gap.clone(), 3).unwrap_err().kind,
        ChangeError::Overlap { existing: gap.clone() }
    );
    let reserved = ChangeError::Reserved { range: gap.clone() };
    assert_eq!(edit.remove(A.start..B.end).unwrap_err(), reserved);
    assert_eq!(edit.write(0x3000).unwrap_err(), WriteError::Reserved { addr: 0x3000 });
    reservation.commit(3).unwrap();
    assert_eq!(edit.get(0x3000), Some((gap.clone(), &3)));
    drop(edit);
    assert_eq!(*space.try_read(0x3000).unwrap(), 3);
}

#[test]
fn a_reservation_that_cannot_be_committed_stays_and_its_payload_comes_back() {
    let _watchdog = watchdog();
    let space = space();
    let mut reservation = space.edit().unwrap().reserve(0x3000..0x4000).unwrap();
    assert_eq!(space.read(0x3000).unwrap_err(), ReadError::Reserved { addr: 0x3000 });
    let guard = space.try_read(A.start).unwrap();
    let error = reservation.commit(3).unwrap_err();
    assert_eq!(error.kind, ChangeError::GuardHeld);
    drop(guard);
    reservation.commit(error.payload).unwrap();
    assert_eq!(*space.try_read(0x3000).unwrap(), 3);
    let again = reservation.commit(4).unwrap_err();
    assert_eq!((again.kind, again.payload), (ChangeError::Overlap { existing: 0x3000..0x4000 }, 4));
    drop(reservation);
    assert_eq!(*space.try_read(0x3000).unwrap(), 3, "what was committed stays");

    // Beside a view of the same thread, which would wait for the mmap lock forever.
    let mut reservation = space.edit().unwrap().reserve(0x4000..0x5000).unwrap();
    let other = space.edit().unwrap().reserve(0x6000..0x7000).unwrap();
    let view = space.view().unwrap();
    assert_eq!(reservation.commit(4).unwrap_err().kind, ChangeError::GuardHeld);
    drop((reservation, other));
    assert_eq!(space.try_read(0x4000).unwrap_err(), ReadError::Reserved { addr: 0x4000 });
    drop(view);
    space.edit().unwrap().insert(0x4000..0x7000, 4).unwrap();
    space.remove(0x4000..0x7000).unwrap();

    let reservation = space.edit().unwrap().reserve(0x4000..0x5000).unwrap();
    thread::scope(|scope| scope.spawn(move || drop(reservation)).join()).unwrap();
    assert_eq!(space.try_read(0x4000).unwrap_err(), ReadError::NotMapped { addr: 0x4000 });
    space.edit().unwrap().insert(0x4000..0x5000, 4).unwrap();
}

#[test]
fn a_removal_can_keep_the_range_until_its_owner_has_cleaned_up() {
    let _watchdog = watchdog();
    let space = space();
    // The reservation starts inside of a VMA; where one starts; and there is a hole in the range.
    for range in [0x1800..0x2000, A, A.start..B.end] {
        let space = AddressSpace::new(1);
        space.edit().unwrap().insert(A, 1).unwrap();
        space.edit().unwrap().insert(B, 2).unwrap();
        let exclusion = space.exclude(range.clone()).unwrap();
        let (removed, reservation) = exclusion.remove_reserving().unwrap();
        assert_eq!(removed[0].range, range.start..A.end);
        let addr = range.end - 1;
        assert_eq!(space.try_read(addr).unwrap_err(), ReadError::Reserved { addr });
        let taken = ChangeError::Overlap { existing: range.clone() };
        assert_eq!(space.edit().unwrap().insert(addr..range.end, 9).unwrap_err().kind, taken);
        drop(reservation);
        assert_eq!(space.try_read(addr).unwrap_err(), ReadError::NotMapped { addr });
        space.edit().unwrap().insert(range, 3).unwrap();
    }
    let exclusion = space.exclude(A.start..B.end).unwrap();
    space.edit().unwrap().insert(0x4000..0x5000, 3).unwrap();
    let filled = ChangeError::Overlap { existing: 0x4000..0x5000 };
    assert_eq!(exclusion.remove_reserving().unwrap_err(), filled);
    assert_eq!(space.view().unwrap().iter().count(), 3);
}

#[test]
fn a_release_that_was_deferred_is_done_when_the_next_edit_begins() {
    let _watchdog = watchdog();
    let space = space();
    let mut edit = space.edit().unwrap();
    let [one, mut two, three] =
        [0x3000, 0x5000, 0x1_0000].map(|start| edit.reserve(start..start + 0x1000).unwrap());
    drop(edit);
    let defer_release = |reservation| {
        let view = space.view().unwrap();
        drop(reservation);
        drop(view);
    };
    defer_release(one);
    two.commit(5).unwrap(); // an edit of its own
    assert_eq!(space.try_read(0x3000).unwrap_err(), ReadError::NotMapped { addr: 0x3000 });
    let exclusion = space.exclude(A).unwrap();
    defer_release(three);
    exclusion.relocate(0x1_0000, |_, &payload| payload).unwrap();
    assert_eq!(*space.try_read(0x1_0000).unwrap(), 1);
}

#[test]
fn a_lookup_of_the_next_vma_skips_many_reservations() {
    let _watchdog = watchdog();
    let space = AddressSpace::new(1);
    let mut edit = space.edit().unwrap();
    let reservations: Vec<_> = (1..513).map(|n| edit.reserve(n..n + 1).unwrap()).collect();
    edit.insert(600..610, 5).unwrap();
    drop(edit);
    assert_eq!(space.try_read_at_or_after(0).unwrap().unwrap().range(), 600..610);
    // Beyond the limit it does not know, and says so; a lookup that may wait does know.
    let more = [space.reserve(513..514).unwrap(), space.reserve(514..515).unwrap()];
    let error = space.try_read_at_or_after(0).unwrap_err();
    assert_eq!(error, ReadError::Locked { addr: 0 });
    assert_eq!(space.read_at_or_after(0).unwrap().unwrap().range(), 600..610);
    drop((reservations, more));
    assert_eq!(space.try_read_at_or_after(0).unwrap().unwrap().range(), 600..610);
}

#[test]
fn a_commit_in_a_handler_panics_and_loses_nothing_but_its_payload() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Relaxed);
        }
    }

    let _watchdog = watchdog();
    let space = AddressSpace::new(4096);
    let mut reservation = space.reserve(GAP).unwrap();
    let mut in_handler = |dropped| {
        let handler = HandlerScope::<StdPlatform>::enter();
        let commit = catch_unwind(AssertUnwindSafe(|| drop(reservation.commit(Counted))));
        drop(handler);
        assert!(commit.is_err());
        assert_eq!(DROPPED.load(Relaxed), dropped);
    };
    in_handler(1);
    // Nor in the edit that the handler has interrupted.
    let edit = space.edit().unwrap();
    in_handler(2);
    drop(edit);
    let addr = GAP.start;
    assert_eq!(space.try_read(addr).map(drop), Err(ReadError::Reserved { addr }));
    reservation.commit(Counted).unwrap();
    assert!(space.try_read(addr).is_ok());
    assert_eq!(DROPPED.load(Relaxed), 2);
}

#[test]
fn a_drop_in_a_handler_is_left_to_the_next_edit() {
    let _watchdog = watchdog();
    let space = space();

    // In a handler that interrupts nothing.
    let reservation = space.reserve(GAP).unwrap();
    let handler = HandlerScope::<StdPlatform>::enter();
    drop(reservation);
    drop(handler);
    is_reserved(&space);
    is_free_in_the_next_edit(&space);

    // In one that interrupts an edit: that one still has it.
    let mut edit = space.edit().unwrap();
    let reservation = edit.reserve(GAP).unwrap();
    let handler = HandlerScope::<StdPlatform>::enter();
    drop(reservation);
    drop(handler);
    let taken = ChangeError::Overlap { existing: GAP };
    assert_eq!(edit.insert(GAP, 3).unwrap_err().kind, taken);
    drop(edit);
    is_reserved(&space);
    is_free_in_the_next_edit(&space);

    // While a panic unwinds, inside the handler and outside.
    for inside in [false, true] {
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let mut outer = Some(space.reserve(GAP).unwrap());
            let _handler = HandlerScope::<StdPlatform>::enter();
            let _inner = if inside { outer.take() } else { None };
            panic!("a handler panics");
        }));
        assert!(unwound.is_err());
        if inside {
            is_reserved(&space);
        }
        is_free_in_the_next_edit(&space);
    }

    // Where a commit panics, and the reservation is dropped while that unwinds.
    let mut reservation = Some(space.reserve(GAP).unwrap());
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _handler = HandlerScope::<StdPlatform>::enter();
        let mut reservation = reservation.take().unwrap();
        drop(reservation.commit(3));
    }));
    assert!(unwound.is_err());
    is_reserved(&space);
    is_free_in_the_next_edit(&space);
}

#[test]
fn what_many_threads_drop_beside_a_view_is_free_in_the_next_edit() {
    const EACH: usize = if cfg!(miri) { 3 } else { 50 };
    let _watchdog = watchdog();
    let space = AddressSpace::<u32>::new(1);
    for _ in 0..if cfg!(miri) { 2 } else { 20 } {
        let mut edit = space.edit().unwrap();
        let rows = [0, 1, 2].map(|row| {
            let starts = (0..EACH).map(|n| 10 * (3 * n + row));
            starts.map(|start| edit.reserve(start..start + 10).unwrap()).collect::<Vec<_>>()
        });
        drop(edit);
        let view = space.view().unwrap();
        thread::scope(|scope| rows.into_iter().for_each(|row| _ = scope.spawn(move || drop(row))));
        assert_eq!(space.slab().vmas().in_use, 3 * EACH, "none was released under the view");
        drop(view);
        space.insert(0..30 * EACH, 1).unwrap();
        space.remove(0..30 * EACH).unwrap();
    }
    assert_eq!(space.slab().vmas().in_use, 0);
}

#[test]
fn a_space_ends_with_reservations_of_every_kind() {
    let _watchdog = watchdog();
    let slab = Arc::new(Slab::<u32>::new());
    let space = AddressSpace::new_in(1, Arc::clone(&slab));
    let mut edit = space.edit().unwrap();
    let [forgotten, deferred, mut committed] =
        [0, 10, 20].map(|start| edit.reserve(start..start + 10).unwrap());
    drop(edit);
    std::mem::forget(forgotten);
    committed.commit(1).unwrap();
    drop(committed);
    let handler = HandlerScope::<StdPlatform>::enter();
    drop(deferred);
    drop(handler);
    assert_eq!(slab.vmas().in_use, 3);
    drop(space);
    assert_eq!((slab.vmas().in_use, slab.nodes().in_use), (0, 0));
}

#[test]
fn reserving_says_why_it_is_refused() {
    let _watchdog = watchdog();
    let space = space();
    let overlap = ChangeError::Overlap { existing: A };
    assert_eq!(space.reserve(A.start..B.end).unwrap_err(), overlap);
    let guard = space.try_read(A.start).unwrap();
    assert_eq!(space.reserve(GAP).unwrap_err(), ChangeError::GuardHeld);
    drop(guard);
    let edit = space.edit().unwrap();
    assert_eq!(space.reserve(GAP).unwrap_err(), ChangeError::OwnEdit);
    drop(edit);
    let _reservation = space.reserve(GAP).unwrap();
    assert_eq!(space.reserve(GAP).unwrap_err(), ChangeError::Overlap { existing: GAP });
}

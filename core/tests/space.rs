//! The address space as its users see it.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use common::{Calls, Delegate, Watched, watchdog};
use pervma::{
    AddressSpace, ChangeError, EditError, Payload, Platform, RangeError, ReadError, Slab,
    WriteError,
};

const PAGE: usize = 4096;

/// `n` pages from page `page` on.
fn pages(page: usize, n: usize) -> std::ops::Range<usize> {
    page * PAGE..(page + n) * PAGE
}

fn space_with(ranges: &[std::ops::Range<usize>]) -> AddressSpace<usize> {
    space_on(ranges)
}

/// A space with these VMAs, each with its start as its payload.
fn space_on<P: Platform>(ranges: &[std::ops::Range<usize>]) -> AddressSpace<usize, P> {
    let space = AddressSpace::with_platform(PAGE);
    let mut edit = space.edit().unwrap();
    for range in ranges {
        edit.insert(range.clone(), range.start).unwrap();
    }
    drop(edit);
    space
}

#[test]
fn a_refused_insertion_says_why_and_gives_the_payload_back() {
    let _watchdog = watchdog();
    let space = AddressSpace::new(PAGE);
    let mut edit = space.edit().unwrap();
    edit.insert(pages(4, 4), "taken").unwrap();
    let mut insert = |range| edit.insert(range, "new").unwrap_err();

    let cases = [
        (PAGE..PAGE, RangeError::Empty { addr: PAGE }),
        (std::ops::Range { start: PAGE, end: 1 }, RangeError::Overflow { start: PAGE, end: 1 }),
        (1..PAGE, RangeError::Unaligned { addr: 1, granularity: PAGE }),
        (PAGE..PAGE + 1, RangeError::Unaligned { addr: PAGE + 1, granularity: PAGE }),
    ];
    for (range, expected) in cases {
        let error = insert(range);
        assert_eq!((error.kind, error.payload), (ChangeError::Range(expected), "new"));
    }
    for range in [pages(3, 2), pages(4, 4), pages(5, 1), pages(7, 9), pages(0, 100)] {
        let error = insert(range);
        let overlap = ChangeError::Overlap { existing: pages(4, 4) };
        assert_eq!((error.kind, error.payload), (overlap, "new"));
    }
    edit.insert(pages(3, 1), "below").unwrap();
    edit.insert(pages(8, 1), "above").unwrap();
}

#[test]
fn removing_nothing_or_a_part_of_what_cannot_be_split_changes_nothing() {
    let _watchdog = watchdog();
    #[derive(Debug, PartialEq)]
    struct Whole;
    impl Payload for Whole {}

    let space = AddressSpace::new(PAGE);
    let mut edit = space.edit().unwrap();
    edit.insert(pages(4, 4), Whole).unwrap();
    edit.insert(pages(10, 1), Whole).unwrap();
    let cases = [
        (pages(0, 4), ChangeError::NotMapped { range: pages(0, 4) }),
        (pages(8, 2), ChangeError::NotMapped { range: pages(8, 2) }),
        (pages(5, 3), ChangeError::PartlyCovered { vma: pages(4, 4) }),
        (pages(4, 3), ChangeError::PartlyCovered { vma: pages(4, 4) }),
        (pages(5, 6), ChangeError::PartlyCovered { vma: pages(4, 4) }),
        (PAGE..PAGE, ChangeError::Range(RangeError::Empty { addr: PAGE })),
    ];
    for (range, expected) in cases {
        assert_eq!(edit.remove(range).unwrap_err(), expected);
    }
    let removed = edit.remove(pages(0, 100)).unwrap();
    assert_eq!(removed.len(), 2);
    drop(edit);
    assert_eq!(space.slab().vmas().in_use, 0);
    assert_eq!(space.slab().nodes().in_use, 0);
}

#[test]
fn the_edges_of_the_address_range() {
    let _watchdog = watchdog();
    let space = AddressSpace::new(1);
    space.edit().unwrap().insert(0..1, "first").unwrap();
    space.edit().unwrap().insert(usize::MAX - 1..usize::MAX, "last").unwrap();
    assert_eq!(*space.try_read(0).unwrap(), "first");
    assert_eq!(*space.try_read(usize::MAX - 1).unwrap(), "last");
    for hole in [1, usize::MAX - 2, usize::MAX] {
        assert_eq!(space.try_read(hole).unwrap_err(), ReadError::NotMapped { addr: hole });
        assert_eq!(space.read(hole).unwrap_err(), ReadError::NotMapped { addr: hole });
    }
    assert_eq!(space.edit().unwrap().remove(0..usize::MAX).unwrap().len(), 2);
}

/// Unused entries of a node once matched the last address, and led to stale words.
#[test]
fn the_last_address_is_nowhere_however_full_the_nodes_were() {
    let _watchdog = watchdog();
    const FULL: usize = 16;
    let slab = Arc::new(Slab::new());
    let [a, b] = [0, 1].map(|_| AddressSpace::new_in(1, Arc::clone(&slab)));
    let mut edit = a.edit().unwrap();
    for n in 0..FULL {
        edit.insert(n * 10..n * 10 + 5, n).unwrap();
    }
    edit.remove(150..155).unwrap();
    drop(edit);
    b.edit().unwrap().insert(150..155, 99).unwrap(); // in the slot that the stale word names

    let addr = usize::MAX;
    assert_eq!(a.try_read(addr).unwrap_err(), ReadError::NotMapped { addr });
    assert_eq!(a.read(addr).unwrap_err(), ReadError::NotMapped { addr });
    let mut edit = a.edit().unwrap();
    assert_eq!(edit.get(addr), None);
    assert_eq!(edit.write(addr).unwrap_err(), WriteError::NotMapped { addr });
    edit.insert(addr - 5..addr, 15).unwrap();
    assert_eq!(edit.remove(0..addr).unwrap().len(), FULL);
}

#[test]
fn a_thread_that_would_wait_for_itself_gets_an_error() {
    let _watchdog = watchdog();
    let space = space_with(&[pages(1, 1), pages(3, 1)]);

    let mut edit = space.edit().unwrap();
    assert_eq!(space.edit().unwrap_err(), EditError::OwnEdit);
    drop(edit.write(PAGE).unwrap());
    assert_eq!(space.try_read(PAGE).unwrap_err(), ReadError::OwnEdit { addr: PAGE });
    assert_eq!(space.read(PAGE).unwrap_err(), ReadError::OwnEdit { addr: PAGE });
    assert_eq!(*space.try_read(3 * PAGE).unwrap(), 3 * PAGE, "what it has not locked is readable");
    assert_eq!(space.read(0).unwrap_err(), ReadError::NotMapped { addr: 0 }, "and a hole known");
    edit.insert(pages(5, 1), 5).unwrap();
    assert_eq!(
        space.read(0).unwrap_err(),
        ReadError::OwnEdit { addr: 0 },
        "a hole beside a change"
    );
    drop(edit);

    let guard = space.try_read(PAGE).unwrap();
    assert_eq!(space.edit().unwrap_err(), EditError::GuardHeld);
    let other = space_with(&[]);
    assert!(other.edit().is_ok(), "a guard of one space does not matter in another");
    drop(guard);
    assert!(space.edit().is_ok());
}

#[test]
fn an_edit_does_not_wait_for_a_guard_taken_inside_it() {
    let _watchdog = watchdog();
    let space = space_with(&[pages(1, 1), pages(3, 1)]);
    let mut edit = space.edit().unwrap();
    let guard = space.try_read(PAGE).unwrap();
    let range = pages(1, 1);
    assert_eq!(edit.write(PAGE).unwrap_err(), WriteError::GuardHeld { addr: PAGE });
    assert_eq!(edit.remove(range).unwrap_err(), ChangeError::GuardHeld);
    drop(guard);
    assert_eq!(edit.remove(pages(1, 1)).unwrap().len(), 1);
}

#[test]
fn four_spaces_at_a_time_are_known_whatever_came_before() {
    let _watchdog = watchdog();
    let spaces = [0; 5].map(|_| space_with(&[pages(0, 1)]));
    let [mut a, b, c, d] = [0, 1, 2, 3].map(|n| Some(spaces[n].try_read(0).unwrap()));
    let unknown = spaces[4].try_read(0).unwrap();
    a.take();
    let known = spaces[4].try_read(0).unwrap();
    drop(unknown); // takes nothing from the record of `known`
    assert_eq!(spaces[4].edit().unwrap_err(), EditError::GuardHeld);
    drop((b, c, d, known));
    assert!(spaces[4].edit().is_ok());
}

enum Sleepers {}

impl Watched for Sleepers {
    fn calls() -> &'static Calls {
        static CALLS: Calls = Calls::none();
        &CALLS
    }
}

#[test]
fn a_writer_that_sleeps_is_woken_by_the_last_reader() {
    let dog = watchdog();
    let space = space_on::<Delegate<Sleepers>>(&[pages(1, 1)]);
    thread::scope(|scope| {
        let [first, last] = [0; 2].map(|_| space.try_read(PAGE).unwrap());
        let writer = scope.spawn(|| {
            let removed = space.edit().unwrap().remove(pages(1, 1)).unwrap();
            removed[0].payload
        });
        dog.until(|| Sleepers::calls().has_waited_since(0));
        drop(first);
        assert!(!writer.is_finished(), "one reader has it");
        assert_eq!(*last, PAGE);
        drop(last);
        assert_eq!(writer.join().unwrap(), PAGE);
    });
}

#[test]
fn payloads_are_dropped_outside_of_the_lock() {
    let _watchdog = watchdog();
    struct Edits(Arc<Slab<Edits>>);
    impl Drop for Edits {
        fn drop(&mut self) {
            // Another space of the slab can be edited: no lock of the slab is held either.
            let other = AddressSpace::new_in(PAGE, Arc::clone(&self.0));
            drop(other.edit().unwrap());
        }
    }
    let slab = Arc::new(Slab::new());
    let space = AddressSpace::new_in(PAGE, Arc::clone(&slab));
    for n in 0..3 {
        space.edit().unwrap().insert(pages(n, 1), Edits(Arc::clone(&slab))).unwrap();
    }
    drop(space);
    assert_eq!(Arc::strong_count(&slab), 1);
}

/// B20.
#[test]
fn a_reader_with_a_guard_does_not_wait_for_an_edit() {
    let _watchdog = watchdog();
    let space = space_with(&[pages(1, 1), pages(3, 1)]);
    let guard = space.read(PAGE).unwrap();
    let (locked, wait) = std::sync::mpsc::channel();
    let (go_on, gone) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        let space = &space;
        scope.spawn(move || {
            let mut edit = space.edit().unwrap();
            *edit.write(3 * PAGE).unwrap() = 7;
            locked.send(()).unwrap();
            let _ = gone.recv();
        });
        wait.recv().unwrap();
        let addr = 3 * PAGE;
        assert_eq!(space.try_read(addr).unwrap_err(), ReadError::Locked { addr });
        assert_eq!(space.read(addr).unwrap_err(), ReadError::GuardHeld { addr });
        drop(guard);
        go_on.send(()).unwrap();
        assert_eq!(*space.read(addr).unwrap(), 7, "and without one it does");
    });
}

#[test]
fn insert_remove_insert_uses_the_same_slot() {
    let _watchdog = watchdog();
    let space = space_with(&[]);
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 1_000 };
    for round in 0..ROUNDS {
        space.edit().unwrap().insert(pages(round, 1), round).unwrap();
        assert_eq!(space.slab().vmas().capacity, 1);
        assert_eq!(space.edit().unwrap().remove(pages(round, 1)).unwrap()[0].payload, round);
    }
    assert_eq!(space.slab().nodes().capacity, 1);
}

/// B28.
#[test]
fn lookups_elsewhere_do_not_notice_an_edit() {
    let _watchdog = watchdog();
    const LOOKUPS: usize = if cfg!(miri) { 100 } else { 1_000_000 };
    let space = space_with(&(0..100).map(|n| pages(2 * n, 1)).collect::<Vec<_>>());
    let (begun, wait) = std::sync::mpsc::channel();
    let (done, end) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let space = &space;
        scope.spawn(move || {
            let mut edit = space.edit().unwrap();
            drop(edit.write(0).unwrap());
            begun.send(()).unwrap();
            end.recv().unwrap();
        });
        wait.recv().unwrap();
        for lookup in 0..LOOKUPS {
            let addr = (2 * (1 + lookup % 99)) * PAGE;
            let (vma, walks) = space.try_read_with_walks(addr).unwrap();
            assert_eq!((*vma, walks), (addr, 1));
        }
        assert_eq!(
            space.try_read(0).unwrap_err(),
            ReadError::Locked { addr: 0 },
            "still under way"
        );
        done.send(()).unwrap();
    });
}

/// Counts its drops, and panics at a second one.
struct Counted {
    value: usize,
    drops: Arc<AtomicUsize>,
}

impl Payload for Counted {}

impl Drop for Counted {
    fn drop(&mut self) {
        self.value = usize::MAX;
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn every_payload_is_dropped_once_with_what_a_removal_returned_or_with_the_space() {
    let _watchdog = watchdog();
    let drops = Arc::new(AtomicUsize::new(0));
    let space = AddressSpace::new(PAGE);
    for n in 0..50 {
        let payload = Counted { value: n, drops: Arc::clone(&drops) };
        space.edit().unwrap().insert(pages(n, 1), payload).unwrap();
    }
    let removed = space.edit().unwrap().remove(pages(10, 20)).unwrap();
    assert_eq!((removed.len(), drops.load(Ordering::Relaxed)), (20, 0));
    drop(removed);
    assert_eq!(drops.load(Ordering::Relaxed), 20);
    let kept = Counted { value: 0, drops: Arc::clone(&drops) };
    drop(space.edit().unwrap().insert(pages(0, 1), kept).unwrap_err());
    assert_eq!(drops.load(Ordering::Relaxed), 21, "what was refused came back in the error");
    drop(space);
    assert_eq!(drops.load(Ordering::Relaxed), 51);
}

#[test]
fn a_space_gives_its_memory_back_to_a_shared_slab() {
    let _watchdog = watchdog();
    const VMAS: usize = if cfg!(miri) { 80 } else { 500 };
    let slab = Arc::new(Slab::new());
    for _ in 0..3 {
        let space = AddressSpace::new_in(PAGE, Arc::clone(&slab));
        for n in 0..VMAS {
            space.edit().unwrap().insert(pages(n, 1), n).unwrap();
        }
        assert_eq!(slab.vmas().in_use, VMAS);
    }
    assert_eq!((slab.vmas().in_use, slab.nodes().in_use, slab.vmas().capacity), (0, 0, VMAS));
}

#[test]
fn a_destructor_that_panics_does_not_keep_the_rest_alive() {
    let _watchdog = watchdog();
    struct Bomb(Arc<AtomicUsize>);
    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
                panic!("the first payload's destructor");
            }
        }
    }
    let drops = Arc::new(AtomicUsize::new(0));
    let slab = Arc::new(Slab::new());
    let space = AddressSpace::new_in(PAGE, Arc::clone(&slab));
    for n in 0..10 {
        space.edit().unwrap().insert(pages(n, 1), Bomb(Arc::clone(&drops))).unwrap();
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(space)));
    assert!(outcome.is_err());
    assert_eq!((drops.load(Ordering::Relaxed), slab.vmas().in_use), (10, 0));
}

/// B9. Readers beside an editor that maps and unmaps, with two spaces on one slab so that slots and
/// nodes go from one to the other all the time.
#[test]
fn readers_hold_what_they_found_while_slots_migrate() {
    let _watchdog = watchdog();
    const ROUNDS: usize = if cfg!(miri) { 15 } else { 20_000 };
    let drops = Arc::new(AtomicUsize::new(0));
    let slab = Arc::new(Slab::new());
    let spaces = [0, 1].map(|_| AddressSpace::new_in(PAGE, Arc::clone(&slab)));
    for space in &spaces {
        // Page 0 stays; the payload of page n is its address.
        let payload = Counted { value: 0, drops: Arc::clone(&drops) };
        space.edit().unwrap().insert(pages(0, 1), payload).unwrap();
    }
    let editors = AtomicUsize::new(spaces.len());
    let together = Barrier::new(2 * spaces.len());
    thread::scope(|scope| {
        for (which, space) in spaces.iter().enumerate() {
            let (drops, editors, together) = (&drops, &editors, &together);
            scope.spawn(move || {
                together.wait();
                for round in 0..ROUNDS {
                    let page = 2 + (round * 7 + which) % 40;
                    let value = page * PAGE;
                    let payload = Counted { value, drops: Arc::clone(drops) };
                    let mut edit = space.edit().unwrap();
                    match edit.insert(pages(page, 1), payload) {
                        Ok(()) => {}
                        Err(_) => drop(edit.remove(pages(page, 1)).unwrap()),
                    }
                }
                editors.fetch_sub(1, Ordering::Release);
            });
            scope.spawn(move || {
                together.wait();
                let mut found = 0_usize;
                let mut page = which;
                // Until the editors have ended and the page that stays was read.
                while editors.load(Ordering::Acquire) != 0 || found == 0 {
                    page = (page + 7) % 44;
                    match space.try_read(page * PAGE) {
                        Ok(vma) => {
                            assert_eq!(vma.value, page * PAGE);
                            assert_eq!(vma.range(), pages(page, 1));
                            thread::yield_now();
                            assert_eq!(vma.value, page * PAGE, "changed or dropped under a guard");
                            found += 1;
                        }
                        Err(ReadError::NotMapped { .. }) => assert_ne!(page, 0, "a false hole"),
                        Err(ReadError::Locked { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    assert_eq!(space.read(0).unwrap().value, 0);
                }
            });
        }
    });
    let made = slab.vmas().capacity;
    assert!(made < 2 * 44 + 2, "no growth: {made} slots");
    drop(spaces);
    assert_eq!(slab.vmas().in_use, 0);
}

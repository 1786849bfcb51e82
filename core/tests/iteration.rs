//! All VMAs, beside changes and by threads that hold something.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use common::watchdog;
use pervma::{AddressSpace, ChangeError, ReadError, Slab};

const VMAS: usize = if cfg!(miri) { 5 } else { 50 };
const ROUNDS: usize = if cfg!(miri) { 3 } else { 300 };

fn place(n: usize) -> Range<usize> {
    20 * n..20 * n + 10
}

fn space() -> AddressSpace<usize> {
    let space = AddressSpace::new(1);
    (0..VMAS).for_each(|n| space.insert(place(n), n).unwrap());
    space
}

/// Runs `look` again and again beside threads that change every second VMA, and make new ones.
fn beside_changes(look: impl Fn(&AddressSpace<usize>) + Sync) {
    let dog = watchdog();
    let (space, over, rounds) = (space(), AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 1;
            while !over.load(Relaxed) {
                space.update(place(n), |_, payload| *payload).unwrap();
                space.replace(place(n), n).unwrap();
                let gap = place(n).end..place(n).end + 5;
                space.insert(gap.clone(), n).unwrap();
                space.remove(gap).unwrap();
                n = (n + 2) % (VMAS - VMAS % 2);
                rounds.store(true, Relaxed);
            }
        });
        dog.until(|| rounds.load(Relaxed));
        (0..ROUNDS).for_each(|_| look(&space));
        over.store(true, Relaxed);
    });
}

/// Guards that were collected made the iterator that waited for an edit fail with `GuardHeld`.
#[test]
fn copies_are_collected_beside_an_updater() {
    beside_changes(|space| {
        let forwards = space.iter().collect::<Result<Vec<_>, _>>().unwrap();
        let backwards = space.iter().rev().collect::<Result<Vec<_>, _>>().unwrap();
        for shown in [forwards, backwards.into_iter().rev().collect()] {
            let stay: Vec<_> = shown.into_iter().filter(|(_, n)| n % 2 == 0).collect();
            let all: Vec<_> = (0..VMAS).step_by(2).map(|n| (place(n), n)).collect();
            assert_eq!(stay, all, "what stays is shown once, in order");
        }
    });
}

#[test]
fn every_vma_is_read_beside_an_updater() {
    beside_changes(|space| {
        let (mut vmas, mut stay) = (space.read_all(), 0);
        while let Some(vma) = vmas.next().unwrap() {
            if vma.is_multiple_of(2) {
                assert_eq!((vma.range(), *vma), (place(stay), stay));
                stay += 2;
            }
        }
        assert_eq!(stay, VMAS.next_multiple_of(2));
        let mut vmas = space.read_all();
        while let Some(vma) = vmas.next_back().unwrap() {
            if vma.is_multiple_of(2) {
                stay -= 2;
                assert_eq!((vma.range(), *vma), (place(stay), stay));
            }
        }
        assert_eq!(stay, 0);
    });
}

#[test]
fn both_ends_meet_and_stay_where_they_met() {
    let space = space();
    let mut vmas = space.read_all();
    for n in 0..VMAS / 2 {
        assert_eq!(*vmas.next().unwrap().unwrap(), n);
        assert_eq!(*vmas.next_back().unwrap().unwrap(), VMAS - 1 - n);
    }
    drop(vmas.next().unwrap()); // the middle one, if there is one
    assert!(vmas.next().unwrap().is_none() && vmas.next_back().unwrap().is_none());
    // What comes later is not shown: it has ended.
    space.insert(20 * VMAS + 100..20 * VMAS + 110, 0).unwrap();
    assert!(vmas.next().unwrap().is_none() && vmas.next_back().unwrap().is_none());

    let none = AddressSpace::<u32>::new(1);
    assert!(none.iter().next().is_none() && none.iter().next_back().is_none());
    let mut copies = space.iter();
    assert_eq!(copies.by_ref().count(), VMAS + 1);
    assert!(copies.next().is_none() && copies.next_back().is_none());
}

#[test]
fn one_end_does_not_show_what_the_other_has_shown() {
    let space = AddressSpace::new(1);
    space.insert(0..10, 1).unwrap();
    space.insert(20..30, 2).unwrap();
    let mut vmas = space.read_all();
    assert_eq!(*vmas.next_back().unwrap().unwrap(), 2);
    assert_eq!(*vmas.next().unwrap().unwrap(), 1);
    assert!(vmas.next().unwrap().is_none());
    // Reservations are no VMAs.
    let reservations = [(0..5, 3), (5..10, 4)].map(|(range, _)| {
        drop(space.remove(range.clone()));
        space.reserve(range).unwrap()
    });
    assert_eq!(space.len(), 1);
    let view = space.view().unwrap();
    assert!(view.iter().eq([(20..30, &2)]) && view.iter().rev().eq([(20..30, &2)]));
    let mut vmas = view.iter();
    assert_eq!(vmas.next(), Some((20..30, &2)));
    assert_eq!((vmas.next_back(), vmas.next()), (None, None));
    assert!(view.overlapping(0..20).next_back().is_none());
    assert_eq!(view.overlapping(0..21).next_back(), Some((20..30, &2)));
    assert_eq!(view.overlapping(29..30).next_back(), Some((20..30, &2)));
    assert!(view.overlapping(30..90).next_back().is_none());
    for empty in [25..25, Range { start: 29, end: 21 }] {
        assert!(view.overlapping(empty.clone()).next().is_none(), "{empty:?}");
        assert!(view.overlapping(empty).next_back().is_none());
    }
    drop(view);
    assert!(space.iter().rev().eq([Ok((20..30, 2))]));
    drop(reservations);
}

#[test]
fn a_thread_that_would_wait_for_itself_is_told_and_may_ask_again() {
    let space = space();
    let edit = space.edit().unwrap();
    let own = |addr| Some(Err(ReadError::OwnEdit { addr }));
    assert_eq!(space.iter().next_back(), own(usize::MAX));
    assert!(space.iter().all(|vma| vma.is_ok()), "what is not locked can be read");
    drop(edit);
    let exclusion = space.exclude(place(1)).unwrap();
    let mut copies = space.iter();
    assert!(copies.next().unwrap().is_ok());
    assert_eq!(copies.next(), Some(Err(ReadError::OwnExclusion { addr: place(0).end })));
    assert_eq!((copies.next(), copies.next_back()), (None, None), "the error was the last item");
    let mut vmas = space.read_all();
    drop(vmas.next().unwrap());
    let refused = vmas.next().unwrap_err();
    assert_eq!(refused, ReadError::OwnExclusion { addr: place(0).end });
    drop(exclusion);
    assert_eq!(*vmas.next().unwrap().unwrap(), 1, "the same VMA again");
    let guard = space.read(0).unwrap();
    let held = ReadError::GuardHeld { addr: usize::MAX };
    assert_eq!(vmas.next_back().unwrap_err(), held);
    drop(guard);
    assert_eq!(*vmas.next_back().unwrap().unwrap(), VMAS - 1);
}

#[test]
fn going_back_waits_for_the_exclusion_of_another_thread() {
    let dog = watchdog();
    let space = space();
    let exclusion = space.exclude(place(VMAS - 1)).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| space.iter().next_back());
        for _ in 0..100 {
            thread::yield_now();
            assert!(!reader.is_finished());
        }
        exclusion.update(|_, _| 77).unwrap();
        assert_eq!(reader.join().unwrap(), Some(Ok((place(VMAS - 1), 77))));
    });
    drop(dog);
}

#[test]
fn each_space_on_a_slab_has_its_own_number_of_vmas() {
    let slab = Arc::new(Slab::new());
    let spaces = [0, 1].map(|_| AddressSpace::new_in(1, Arc::clone(&slab)));
    let lens = || spaces.each_ref().map(AddressSpace::len);
    spaces[0].insert(0..10, 1).unwrap();
    spaces[1].insert(0..10, 1).unwrap();
    spaces[1].insert(10..30, 2).unwrap();
    assert_eq!(lens(), [1, 2]);
    spaces[1].update(15..20, |_, _| 3).unwrap(); // split in three
    assert_eq!(lens(), [1, 4]);
    spaces[1].update(15..20, |_, _| 2).unwrap(); // merged
    assert_eq!(lens(), [1, 2]);
    let mut reservation = spaces[0].reserve(50..60).unwrap();
    assert_eq!(lens(), [1, 2]);
    reservation.commit(4).unwrap();
    assert_eq!(lens(), [2, 2]);
    spaces[0].relocate(50..60, 70, |_, payload| *payload).unwrap();
    let (_, reservation) = spaces[0].exclude(0..10).unwrap().remove_reserving().unwrap();
    assert_eq!(lens(), [1, 2]);
    drop(reservation);
    let refused = spaces[0].insert(70..80, 5).unwrap_err();
    assert!(matches!(refused.kind, ChangeError::Overlap { .. }));
    let fork = spaces[1].fork(|_, payload| Some(*payload)).unwrap();
    assert_eq!((lens(), fork.len(), slab.vmas().in_use), ([1, 2], 2, 5));
    spaces[1].remove(spaces[1].everything()).unwrap();
    assert_eq!(lens(), [1, 0]);
    let edit = spaces[0].edit().unwrap();
    assert_eq!((edit.len(), edit.is_empty()), (1, false));
}

#[test]
fn debug_shows_the_map_and_what_is_locked() {
    let space = AddressSpace::new(16);
    space.insert(16..32, "text").unwrap();
    space.insert(64..96, "data").unwrap();
    let map = r#"{0x10..0x20: "text", 0x40..0x60: "data"}"#;
    let shown = format!("{space:?}");
    assert_eq!(shown, format!("AddressSpace {{ granularity: 16, vmas: {map} }}"));
    assert_eq!(format!("{:?}", space.view().unwrap()), format!("View({map})"));
    let mut edit = space.edit().unwrap();
    assert_eq!(format!("{edit:?}"), format!("Edit({map})"));
    assert_eq!(format!("{:?}", edit.iter()), map);
    *edit.write(64).unwrap() = "bss";
    let shown = thread::scope(|scope| scope.spawn(|| format!("{space:?}")).join().unwrap());
    let locked = r#"{0x10..0x20: "text", 0x20..: <the mapping at 0x20 is being changed>, ..}"#;
    assert_eq!(shown, format!("AddressSpace {{ granularity: 16, vmas: {locked} }}"));
}

#[test]
fn everything_is_a_range_in_every_space() {
    for granularity in [1, 4096] {
        let space = AddressSpace::<u32>::new(granularity);
        let everything = space.everything();
        space.insert(everything.clone(), 1).unwrap();
        assert_eq!(space.try_read(everything.end - 1).unwrap().range(), everything);
        assert_eq!(space.remove(everything.clone()).unwrap()[0].range, everything);
        let last = everything.end;
        let refused = space.insert(Range { start: last, end: 0 }, 1).unwrap_err();
        assert!(refused.to_string().contains("the last granule"), "{refused}");
    }
    let refused = AddressSpace::new(4096).insert(0..usize::MAX, 1).unwrap_err();
    assert!(refused.to_string().ends_with("the largest end of a range is 0xfffffffffffff000"));
    assert_eq!(AddressSpace::<u32>::default().everything(), 0..usize::MAX);
}

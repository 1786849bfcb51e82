//! Identities of VMAs, spaces and threads are not reused with their memory.
#![expect(clippy::unwrap_used, clippy::disallowed_types, reason = "tests")]

mod common;

use std::collections::HashSet;
use std::mem;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use common::watchdog;
use pervma::{
    AddressSpace, ChangeError, Platform, ReadError, Slab, StdPlatform, VmaId, VmaVersion,
};

fn one_vma() -> AddressSpace<u32> {
    let space = AddressSpace::new(1);
    space.insert(10..20, 1).unwrap();
    space
}

fn id(space: &AddressSpace<u32>) -> VmaId {
    space.try_read(10).unwrap().id()
}

fn version(space: &AddressSpace<u32>) -> VmaVersion {
    space.try_read(10).unwrap().version()
}

/// Operations on a VMA or its neighbour, and whether its version changes.
type Deed = (&'static str, bool, fn(&AddressSpace<u32>));

const DEEDS: &[Deed] = &[
    ("nothing", false, |_| ()),
    ("an edit", false, |space| drop(space.edit().unwrap())),
    ("it is looked at in an edit", false, |space| {
        let edit = space.edit().unwrap();
        assert!(edit.get(10).is_some() && edit.id(10).is_some());
    }),
    ("a view", false, |space| drop(space.view().unwrap())),
    ("it is write-locked, and not changed", true, |space| {
        drop(space.edit().unwrap().write(10).unwrap());
    }),
    ("it is write-locked without waiting", true, |space| {
        drop(space.edit().unwrap().try_write(10).unwrap());
    }),
    ("its payload is changed", true, |space| *space.edit().unwrap().write(10).unwrap() += 1),
    ("it is updated to what it was", true, |space| drop(space.update(10..20, |_, p| *p).unwrap())),
    ("it is updated to what it was, in an edit", true, |space| {
        drop(space.edit().unwrap().update(10..20, |_, p| *p).unwrap());
    }),
    ("an update of it is refused", false, |space| {
        let hole = ChangeError::NotMapped { range: 20..21 };
        assert_eq!(space.update(10..21, |_, p| *p).unwrap_err(), hole);
    }),
    ("it is copied", true, |space| drop(space.edit().unwrap().fork(|_, p| Some(*p)).unwrap())),
    ("it is excluded", false, |space| drop(space.exclude(10..20).unwrap())),
    ("a neighbour comes and goes", false, |space| {
        space.insert(20..30, 9).unwrap();
        space.remove(20..30).unwrap();
    }),
    ("it grows", true, |space| {
        space.insert(20..30, 9).unwrap();
        space.update(20..30, |_, _| 1).unwrap();
    }),
    ("it loses its end", true, |space| drop(space.remove(15..20).unwrap())),
    ("an edit becomes a view", false, |space| drop(space.edit().unwrap().downgrade())),
];

#[test]
fn words_name_what_they_were_made_of_and_others_nothing() {
    let space = one_vma();
    let words = id(&space).to_words();
    assert_eq!(VmaId::from_words(words), id(&space));
    for at in [0, 1, 2, 3] {
        for wrong in [0, 1, 12, 1 << 31, 1 << 63, u64::MAX].map(|bits| words[at] ^ bits) {
            let mut other = words;
            other[at] = wrong;
            let found = space.try_read_id(VmaId::from_words(other));
            assert_eq!(found.is_ok(), VmaId::from_words(other) == id(&space), "{other:x?}");
        }
    }
    assert!(space.try_read_id(VmaId::from_words([0; 4])).is_err());
}

#[test]
fn a_version_is_another_after_each_write_lock_and_only_then() {
    let _watchdog = watchdog();
    for (what, changes, deed) in DEEDS {
        let space = one_vma();
        let (id, before) = (id(&space), version(&space));
        deed(&space);
        assert_eq!(version(&space) != before, *changes, "{what}");
        assert_eq!((self::id(&space), version(&space).id()), (id, id), "{what}");
        // A registered reader sees the same.
        let reader = space.register().unwrap();
        assert_eq!(reader.try_read_id(id).unwrap().version(), version(&space), "{what}");
    }
}

#[test]
fn a_version_is_never_given_twice() {
    let _watchdog = watchdog();
    let space = one_vma();
    let mut versions = HashSet::from([version(&space)]);
    for turn in 0..100 {
        match turn % 4 {
            0 => drop(space.edit().unwrap().write(10).unwrap()),
            1 => drop(space.update(10..20, |_, p| *p).unwrap()),
            2 => drop(space.replace(10..20, 1).unwrap()),
            _ => {
                let mut edit = space.edit().unwrap();
                edit.remove(10..20).unwrap();
                edit.insert(10..20, 1).unwrap();
            }
        }
        assert!(versions.insert(version(&space)), "turn {turn}");
    }
}

#[test]
fn an_id_of_another_space_names_nothing_here_also_if_it_names_the_same_slot() {
    let _watchdog = watchdog();
    let slab = Arc::new(Slab::new());
    let [mine, other] = [0; 2].map(|_| AddressSpace::new_in(1, Arc::clone(&slab)));
    let gone = |space: &AddressSpace<u32>, id| {
        let found = [space.try_read_id(id).map(|vma| *vma), space.read_id(id).map(|vma| *vma)];
        assert_eq!(found, [Err(ReadError::Gone { addr: 10 }); 2]);
        assert_eq!(space.view().unwrap().get_by_id(id), None);
    };
    mine.insert(10..20, 1).unwrap();
    let first = id(&mine);
    gone(&other, first);
    mine.remove(10..20).unwrap();
    other.insert(10..20, 2).unwrap();
    assert_eq!(slab.vmas().capacity, 1, "the slot is the same");
    let second = id(&other);
    gone(&other, first);
    gone(&mine, first);
    gone(&mine, second);
    drop(other); // and with it the VMA
    mine.insert(10..20, 3).unwrap();
    assert_eq!(slab.vmas().capacity, 1, "the slot is the same");
    gone(&mine, first);
    gone(&mine, second);
    assert!(![first, second].contains(&id(&mine)));
    // Nor does a copy have the identities of what was copied.
    let copy = mine.edit().unwrap().fork(|_, p| Some(*p)).unwrap();
    gone(&copy, id(&mine));
    gone(&mine, id(&copy));
    // A space in which nothing was ever mapped has no identity yet.
    gone(&AddressSpace::new_in(1, slab), id(&mine));
}

/// B29. What takes the place of a VMA at its address, in its slot or in another, is never found by
/// its id.
#[test]
fn an_id_finds_its_own_vma_or_none_while_others_come_to_its_address() {
    const ROUNDS: u32 = if cfg!(miri) { 20 } else { 5_000 };
    let _watchdog = watchdog();
    let space = one_vma();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for registered in [false, true] {
            let (space, over) = (&space, &over);
            scope.spawn(move || {
                let reader = registered.then(|| space.register().unwrap());
                let mut last = 0;
                while !over.load(Relaxed) {
                    let Ok((id, payload)) = space.read(10).map(|vma| (vma.id(), *vma)) else {
                        continue;
                    };
                    assert!(payload >= last, "an old VMA is found again");
                    last = payload;
                    thread::yield_now();
                    let found = match &reader {
                        Some(reader) => reader.read_id(id),
                        None => space.read_id(id),
                    };
                    match found {
                        Ok(vma) => assert_eq!((vma.id(), *vma), (id, payload)),
                        Err(error) => assert_eq!(error, ReadError::Gone { addr: 10 }),
                    }
                }
            });
        }
        for round in 2..ROUNDS {
            match round % 3 {
                0 => drop(space.replace(10..20, round).unwrap()),
                1 => {
                    let mut edit = space.edit().unwrap();
                    edit.remove(10..20).unwrap();
                    edit.insert(10..20, round).unwrap();
                }
                _ => {
                    let (_, mut reservation) =
                        space.exclude(10..20).unwrap().remove_reserving().unwrap();
                    reservation.commit(round).unwrap();
                }
            }
        }
        over.store(true, Relaxed);
    });
}

/// What a thread can leave on its record for a space that is gone: each is forgotten in a space
/// that then makes way for another at its address.
#[test]
fn a_new_space_at_the_address_of_an_old_one_inherits_nothing_of_it() {
    type Leave = fn(&AddressSpace<u32>);
    let _watchdog = watchdog();
    let leaves: [Leave; 5] = [
        |space| mem::forget(space.exclude(10..20).unwrap()),
        |space| mem::forget(space.try_read(10).unwrap()),
        |space| mem::forget(space.register().unwrap()),
        |space| mem::forget(space.view().unwrap()),
        |space| mem::forget(space.edit().unwrap()),
    ];
    for (number, leave) in leaves.into_iter().enumerate() {
        let mut space = one_vma();
        leave(&space);
        if number == 0 {
            space = one_vma(); // the old one ends in spite of the exclusion
        } else {
            mem::forget(mem::replace(&mut space, one_vma())); // the old one never ends
        }
        assert!(space.edit().is_ok(), "{number}");
        assert!(space.view().is_ok() && space.register().is_ok(), "{number}");
        assert!(space.exclude(10..20).is_ok(), "{number}");
        // What another thread has is not taken for this thread's.
        let (excluded, end) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let dog = watchdog();
            scope.spawn(|| {
                let exclusion = space.exclude(10..20).unwrap();
                excluded.store(true, Relaxed);
                watchdog().until(|| end.load(Relaxed));
                drop(exclusion);
            });
            dog.until(|| excluded.load(Relaxed));
            let read = space.try_read(10).map(|vma| *vma);
            end.store(true, Relaxed);
            assert_eq!(read, Err(ReadError::Locked { addr: 10 }), "{number}");
        });
    }
}

/// Where the state of the running thread is.
fn state() -> usize {
    StdPlatform::with_thread(|state| ptr::from_ref(state).addr()).unwrap()
}

/// A thread forgets something and ends. The next one that gets the memory of its state is another.
#[test]
fn a_new_thread_at_the_place_of_an_old_one_inherits_nothing_of_it() {
    type Leave = fn(&'static AddressSpace<u32>);
    type Look = fn(&'static AddressSpace<u32>);
    let _watchdog = watchdog();
    let cases: [(Leave, Look); 4] = [
        (
            |space| mem::forget(space.exclude(10..20).unwrap()),
            |space| {
                let read = space.try_read(10).map(|vma| *vma);
                assert_eq!(read, Err(ReadError::Locked { addr: 10 }), "not its own exclusion");
                assert!(space.exclude(30..40).is_ok());
            },
        ),
        (
            |space| {
                let mut edit = space.edit().unwrap();
                drop(edit.write(10).unwrap());
                mem::forget(edit);
            },
            |space| {
                let read = space.try_read(10).map(|vma| *vma);
                assert_eq!(read, Err(ReadError::Locked { addr: 10 }), "not its own edit");
            },
        ),
        (
            |space| mem::forget(space.try_read(10).unwrap()),
            |space| assert!(space.edit().is_ok(), "not its own guard"),
        ),
        (
            |space| {
                let reader = space.register().unwrap();
                mem::forget(reader.try_read(10).unwrap());
                mem::forget(reader);
            },
            |space| assert!(space.edit().is_ok() && space.register().is_ok(), "not its own guard"),
        ),
    ];
    for (leave, look) in cases {
        let space: &'static _ = Box::leak(Box::new(one_vma()));
        space.insert(30..40, 3).unwrap();
        let old = thread::spawn(move || {
            leave(space);
            state()
        });
        let old = old.join().unwrap();
        // The memory of a thread that has ended is used again at once, or soon.
        let mut at_its_place = false;
        for _ in 0..1_000 {
            let new = thread::spawn(move || {
                look(space);
                state()
            });
            at_its_place = new.join().unwrap() == old;
            if at_its_place || cfg!(miri) {
                break;
            }
        }
        assert!(at_its_place || cfg!(miri), "no thread has got the place of the old one");
    }
}

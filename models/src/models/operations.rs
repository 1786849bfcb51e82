//! Whole operations: reservations, iteration, cursors, forks, downgrades, and the drop of a space.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::{AcqRel, Relaxed};
use loom::thread;
use pervma_models::internals::Step;
use pervma_models::{AddressSpace, Edit, ReadError, Slab};

use crate::harness::{COUNTED, Model, RACE, drop_step, weaken};

const UNCOMMITTED: &str = "a reservation is read as if it were a VMA";
const UNMAPPED: &str = "a reserved address is read as neither reserved nor committed";
const EARLY: &str = "a reservation is reported before the edit that made it ends";
const SKIPPED: &str = "the next VMA is skipped though it is mapped throughout";
const HALF: &str = "a lookup shows half of an edit";
const OTHER: &str = "a cursor is admitted to a VMA that does not hold its address";
const COPIED: &str = "a reader holds a VMA that is being copied";
const BETWEEN: &str = "another edit ran between an edit and the view that it became";
const TAG: &str = "a node is taken for a VMA, or a VMA for a node";

/// Drops a space while a reader of another space, whose cursor remembers the slot, looks it up; a
/// third space uses the slot next.
fn end_of_a_space(forget: bool) {
    let slab = std::sync::Arc::new(Slab::new());
    let new_in = || AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
    let (mine, short, next) = (new_in(), new_in(), new_in());
    mine.edit().unwrap().insert(10..20, 1).unwrap();
    let mut remembered = mine.cursor();
    drop(remembered.try_read(10).unwrap());
    mine.edit().unwrap().remove(10..20).unwrap();
    short.edit().unwrap().insert(10..20, 2).unwrap();
    let end = thread::spawn(move || {
        if forget {
            std::mem::forget(short.exclude(10..20).unwrap());
        }
        drop(short);
    });
    assert!(remembered.try_read(10).is_err(), "nothing is mapped in the reader's space");
    end.join().unwrap();
    next.edit().unwrap().insert(10..20, 3).unwrap();
    assert_eq!(slab.vmas().capacity, 1, "the slot was used twice again");
    assert_eq!(next.try_read(10).map(|vma| *vma), Ok(3));
}

/// B13, B15c. A space is dropped while a late reader of another acquires one of its slots.
pub(crate) const SPACE_END: Model = Model {
    name: "space_end",
    property: "the drop of a space waits for late readers of its slots, whatever space they read",
    threads: 2,
    preemptions: None,
    run: || end_of_a_space(false),
    mutants: &[drop_step(Step::DrainOnDrop, COUNTED)],
};

/// B15c. As `SPACE_END`, with an exclusion of the space that was forgotten.
pub(crate) const FORGOTTEN: Model = Model {
    name: "forgotten",
    property: "the drop of a space with a forgotten exclusion ends, and waits for late readers",
    threads: 2,
    preemptions: None,
    run: || end_of_a_space(true),
    mutants: &[drop_step(Step::DrainOnDrop, COUNTED)],
};

/// A reader of a range that is reserved and then committed.
pub(crate) const RESERVE: Model = Model {
    name: "reserve",
    property: "a reserved address is reported as reserved until its VMA is complete",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let reserved = Arc::new(AtomicU32::new(0));
        let editor = thread::spawn({
            let (space, reserved) = (Arc::clone(&space), Arc::clone(&reserved));
            move || {
                let mut reservation = space.edit().unwrap().reserve(10..20).unwrap();
                reserved.fetch_add(1, AcqRel);
                reservation.commit(1).unwrap();
            }
        });
        let before = reserved.fetch_add(0, AcqRel);
        match space.try_read(10) {
            Ok(vma) => assert_eq!(*vma, 1, "{UNMAPPED}"),
            Err(ReadError::NotMapped { .. }) => assert_eq!(before, 0, "{UNMAPPED}"),
            Err(ReadError::Reserved { .. } | ReadError::Locked { .. }) => {}
            Err(error) => panic!("{UNMAPPED}: {error}"),
        }
        editor.join().unwrap();
        assert_eq!(*space.try_read(10).unwrap(), 1);
    },
    mutants: &[
        weaken("EXCLUDE_WAIT", RACE),
        weaken("EXCLUDE_END", RACE),
        drop_step(Step::WaitForReaders, RACE),
    ],
};

/// A reader of a range that an edit reserves.
pub(crate) const RESERVED_TOO_EARLY: Model = Model {
    name: "reserved_too_early",
    property: "a reservation is reported only after the edit that made it",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::<u32>::new(1));
        let over = Arc::new(AtomicU32::new(0));
        let editor = thread::spawn({
            let (space, over) = (Arc::clone(&space), Arc::clone(&over));
            move || {
                let mut edit = space.edit().unwrap();
                let reservation = edit.reserve(10..20).unwrap();
                over.fetch_add(1, Relaxed);
                drop(edit);
                std::mem::forget(reservation); // its range stays taken
            }
        });
        if let Err(ReadError::Reserved { .. }) = space.try_read(10) {
            assert_eq!(over.fetch_add(0, Relaxed), 1, "{EARLY}");
        }
        editor.join().unwrap();
    },
    mutants: &[drop_step(Step::CheckSeqReserved, EARLY)],
};

/// A blocking reader of a range that is reserved and then committed.
pub(crate) const RESERVED_READ: Model = Model {
    name: "reserved_read",
    property: "a reader under the mmap lock takes no reservation for a VMA",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let reserved = Arc::new(AtomicU32::new(0));
        let editor = thread::spawn({
            let (space, reserved) = (Arc::clone(&space), Arc::clone(&reserved));
            move || {
                let mut reservation = space.edit().unwrap().reserve(10..20).unwrap();
                reserved.fetch_add(1, Relaxed);
                reserved.fetch_sub(1, Relaxed);
                reservation.commit(1).unwrap();
            }
        });
        if let Ok(_vma) = space.read(10) {
            assert_eq!(reserved.fetch_add(0, Relaxed), 0, "{UNCOMMITTED}");
        }
        editor.join().unwrap();
    },
    mutants: &[drop_step(Step::CheckReserved, UNCOMMITTED)],
};

/// A reservation is dropped while another thread edits.
pub(crate) const ROLL_BACK: Model = Model {
    name: "roll_back",
    property: "the drop of a reservation does not wait, and its range is free in the next edit",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        let (one, two) = (edit.reserve(10..20).unwrap(), edit.reserve(20..30).unwrap());
        drop(edit);
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || space.edit().unwrap().insert(50..60, 1).unwrap()
        });
        drop(one);
        drop(two);
        editor.join().unwrap();
        space.edit().unwrap().insert(10..30, 2).unwrap();
        assert_eq!(space.slab().vmas().in_use, 2);
    },
    mutants: &[weaken("DEFER_PUSH", RACE), weaken("DEFER_DRAIN", RACE)],
};

/// B26. A lookup of the next VMA while entries shift in its leaf.
pub(crate) const ITERATION: Model = Model {
    name: "iteration",
    property: "a lookup of the next VMA skips none that is mapped throughout",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        for start in [20, 30] {
            edit.insert(start..start + 5, ()).unwrap();
        }
        drop(edit);
        drop(space.try_read(20).unwrap()); // advances the watermark
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || space.edit().unwrap().insert(10..15, ()).unwrap()
        });
        if let Ok(next) = space.try_read_at_or_after(16) {
            let next = next.map(|vma| vma.range());
            assert_eq!(next, Some(20..25), "{SKIPPED}");
        }
        editor.join().unwrap();
    },
    mutants: &[
        drop_step(Step::CheckHole, SKIPPED),
        drop_step(Step::CheckRange, SKIPPED),
        weaken("HOLE_CHECK", SKIPPED),
        drop_step(Step::SetVersion, SKIPPED),
    ],
};

/// A lookup of the next VMA, the last of the space, while another is inserted before it.
pub(crate) const NO_NEXT: Model = Model {
    name: "no_next",
    property: "a lookup of the next VMA returns `None` only if there is none",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(20..25, ()).unwrap();
        drop(space.try_read(20).unwrap()); // advances the watermark
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || space.edit().unwrap().insert(10..15, ()).unwrap()
        });
        if let Ok(next) = space.try_read_at_or_after(16) {
            assert_eq!(next.map(|vma| vma.range()), Some(20..25), "{SKIPPED}");
        }
        editor.join().unwrap();
    },
    mutants: &[drop_step(Step::CheckHole, SKIPPED)],
};

/// A lookup of the next VMA while one edit changes it and extends the VMA before it.
pub(crate) const TORN: Model = Model {
    name: "torn",
    property: "the next VMA is returned with its state of a moment when it was the next",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        // In two leaves, so that the relocation changes no node on the way to the address.
        for (range, payload) in [(10..20, 1), (30..40, 3), (50..60, 5), (60..70, 6), (70..80, 1)] {
            edit.insert(range, payload).unwrap();
        }
        drop(edit);
        drop(space.try_read(10).unwrap()); // advances the watermark
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                let mut edit = space.edit().unwrap();
                edit.relocate(70..80, 20, |_, &payload| payload).unwrap(); // merges with 10..20, if idle
                *edit.write(30).unwrap() = 4;
            }
        });
        if let Ok(Some(vma)) = space.try_read_at_or_after(25)
            && vma.range() == (30..40)
        {
            assert_eq!(*vma, 3, "{HALF}");
        }
        editor.join().unwrap();
        // The edit does not merge with 10..20 while the reader holds that.
        let moved = space.try_read(25).unwrap().range();
        assert!(moved == (10..30) || moved == (20..30));
    },
    mutants: &[drop_step(Step::CheckNextSince, HALF)],
};

/// A lookup of the next VMA while a reservation becomes a VMA, and then a VMA a reservation.
pub(crate) const SKIP_RESERVATIONS: Model = Model {
    name: "skip_reservations",
    property: "a lookup of the next VMA skips only reservations that existed at one moment",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        let mut reservation = edit.reserve(10..20).unwrap();
        for start in [20, 30] {
            edit.insert(start..start + 10, start).unwrap();
        }
        drop(edit);
        drop(space.try_read(30).unwrap()); // advances the watermark
        let reader = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                if let Ok(next) = space.try_read_at_or_after(10) {
                    assert_ne!(next.map(|vma| vma.range()), Some(30..40), "{SKIPPED}");
                }
            }
        });
        reservation.commit(10).unwrap();
        let exclusion = space.exclude(20..30).unwrap();
        std::mem::forget(exclusion.remove_reserving().unwrap()); // its range stays taken
        reader.join().unwrap();
    },
    mutants: &[drop_step(Step::CheckHole, SKIPPED)],
};

/// B17. A cursor whose slot is reused for another VMA.
pub(crate) const CURSOR: Model = Model {
    name: "cursor",
    property: "a cursor finds its own VMA or none, never the slot's next tenant",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let mut cursor = space.cursor();
        assert_eq!(*cursor.try_read(10).unwrap(), 1);
        drop(space.try_read(10).unwrap()); // advances the watermark
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                let mut edit = space.edit().unwrap();
                edit.remove(10..20).unwrap();
                edit.insert(30..40, 2).unwrap();
            }
        });
        if let Ok(vma) = cursor.try_read(10) {
            assert!(vma.range().contains(&10), "{OTHER}");
            assert_eq!(*vma, 1, "{OTHER}");
        }
        editor.join().unwrap();
    },
    mutants: &[
        weaken("ATTACH_PUBLISH", RACE),
        weaken("READ_ADMIT", RACE),
        drop_step(Step::CheckRange, OTHER),
    ],
};

/// B3, B15b. A reader of the second of two VMAs against a fork.
pub(crate) const FORK: Model = Model {
    name: "fork",
    property: "while a fork copies a VMA, no reader holds any VMA of the parent",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        edit.insert(10..20, 1).unwrap();
        edit.insert(20..30, 2).unwrap();
        drop(edit);
        let readers = Arc::new(AtomicU32::new(0));
        let parent = thread::spawn({
            let (space, readers) = (Arc::clone(&space), Arc::clone(&readers));
            move || {
                let child = space.edit().unwrap().fork(|_, &payload| {
                    assert_eq!(readers.fetch_add(0, Relaxed), 0, "{COPIED}");
                    Some(payload)
                });
                assert_eq!(*child.unwrap().try_read(20).unwrap(), 2);
            }
        });
        if let Ok(vma) = space.try_read(20) {
            readers.fetch_add(1, Relaxed);
            assert_eq!(*vma, 2);
            readers.fetch_sub(1, Relaxed);
        }
        parent.join().unwrap();
    },
    mutants: &[
        drop_step(Step::WaitForReaders, COPIED),
        drop_step(Step::CheckSeq, COPIED),
        drop_step(Step::LockBeforeCopy, COPIED),
    ],
};

/// B5. An edit becomes a view, while another edit waits for the mmap lock.
pub(crate) const DOWNGRADE: Model = Model {
    name: "downgrade",
    property: "a view that was an edit shows the space as that edit left it",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let add = |edit: &mut Edit<'_, u32>| {
            let mut vma = edit.write(10).unwrap();
            *vma += 1;
            *vma
        };
        let other = thread::spawn({
            let space = Arc::clone(&space);
            move || add(&mut space.edit().unwrap())
        });
        let mut edit = space.edit().unwrap();
        let left = add(&mut edit);
        let view = edit.downgrade();
        let payload = || view.get(10).map(|(_, &payload)| payload);
        assert_eq!(payload(), Some(left), "{BETWEEN}");
        assert_eq!(payload(), Some(left), "{BETWEEN}");
        drop(view);
        let read = space.try_read(10).map(|vma| *vma);
        assert!(matches!(read, Ok(2 | 3) | Err(ReadError::Locked { .. })));
        other.join().unwrap();
        assert_eq!(*space.try_read(10).unwrap(), 3);
    },
    mutants: &[weaken("EDIT_END", RACE), drop_step(Step::DowngradeAtOnce, BETWEEN)],
};

/// B1, B25. A leaf becomes an inner node of another tree while a walk is in it.
pub(crate) const TAG_IN_WORD: Model = Model {
    name: "tag_in_word",
    property: "a walk in a recycled node takes no node for a VMA and no VMA for a node",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::new_in(1, slab);
        let map = |space: &AddressSpace<()>, starts: &[usize]| {
            let mut edit = space.edit().unwrap();
            for &start in starts {
                edit.insert(start..start + 5, ()).unwrap();
            }
        };
        map(&other, &[10, 20, 30, 40]);
        // Not in order of address, so that leaves are split in the middle.
        map(&mine, &[10, 20, 30, 50, 40, 70, 60]);
        mine.edit().unwrap().remove(20..25).unwrap();
        let editor = thread::spawn({
            let mine = Arc::clone(&mine);
            move || {
                // The second leaf is freed by a merge, and becomes the new root of the other tree.
                mine.edit().unwrap().remove(10..15).unwrap();
                map(&other, &[50]);
                other
            }
        });
        if let Ok(vma) = mine.try_read(40) {
            assert!(vma.range().contains(&40), "{TAG}");
        }
        editor.join().unwrap();
    },
    mutants: &[drop_step(Step::TagInWord, TAG)],
};

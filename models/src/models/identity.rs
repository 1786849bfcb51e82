//! Identities of VMAs and spaces; and the walk that shipped lookups begin with.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::{Step, walk_unvalidated};
use pervma_models::{AddressSpace, ChangeError, ReadError};

use crate::harness::{Model, RACE, drop_step, weaken};

const ANOTHER: &str = "an id finds another VMA than the one that it names";
const CHANGED: &str = "a version is unchanged though the VMA was write-locked";
const LOST: &str = "a mapped address is not found";
const OUTSIDE: &str = "a lookup returns a VMA that does not hold its address";

/// A space with one VMA, with payload 1.
fn one_vma() -> Arc<AddressSpace<u32>> {
    let space = AddressSpace::new(1);
    space.insert(10..20, 1).unwrap();
    Arc::new(space)
}

/// Finds the VMA with payload 1 by its id, while another thread makes `change`.
fn find_again(change: fn(&AddressSpace<u32>)) {
    let space = one_vma();
    let id = space.try_read(10).unwrap().id();
    let writer = thread::spawn({
        let space = Arc::clone(&space);
        move || change(&space)
    });
    match space.try_read_id(id) {
        Ok(vma) => assert_eq!(*vma, 1, "{ANOTHER}"),
        Err(error) => {
            let addr = 10;
            let expected = [ReadError::Gone { addr }, ReadError::Locked { addr }];
            assert!(expected.contains(&error), "{error}");
        }
    }
    writer.join().unwrap();
    assert_eq!(space.try_read_id(id).err(), Some(ReadError::Gone { addr: 10 }), "{ANOTHER}");
}

/// B29. An edit replaces a VMA with another.
pub(crate) const REPLACED_BY_ANOTHER: Model = Model {
    name: "replaced_by_another",
    property: "an id finds its own VMA or none, never the one that replaces it",
    threads: 2,
    preemptions: None,
    run: || {
        find_again(|space| {
            space.edit().unwrap().replace(10..20, 2).unwrap();
        });
    },
    mutants: &[drop_step(Step::CheckGeneration, ANOTHER)],
};

/// B29. Another VMA is mapped at the same address, in the same slot.
pub(crate) const SAME_SLOT: Model = Model {
    name: "same_slot",
    property: "an id finds its own VMA or none, never the next in its slot",
    threads: 2,
    preemptions: Some(3),
    run: || {
        find_again(|space| {
            let mut edit = space.edit().unwrap();
            edit.remove(10..20).unwrap();
            edit.insert(10..20, 2).unwrap();
            drop(edit);
            assert_eq!(space.slab().vmas().capacity, 1, "the slot was used again");
        });
    },
    mutants: &[drop_step(Step::CountGenerations, ANOTHER)],
};

/// B30. A VMA is write-locked between two looks. Its payload is loom's own atomic, which orders
/// nothing, so that no race is reported before the version is wrong.
pub(crate) const NEXT_VERSION: Model = Model {
    name: "next_version",
    property: "a VMA that shows the same version twice shows the same payload",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.insert(10..20, AtomicU32::new(1)).unwrap();
        let writer = thread::spawn({
            let space = Arc::clone(&space);
            move || space.edit().unwrap().write(10).unwrap().store(2, Relaxed)
        });
        let seen = || space.try_read(10).ok().map(|vma| (vma.version(), vma.load(Relaxed)));
        if let (Some((before, old)), Some((after, new))) = (seen(), seen()) {
            assert_eq!(before == after, old == new, "{CHANGED}");
            assert_eq!(before.id(), after.id(), "{CHANGED}");
        }
        writer.join().unwrap();
    },
    mutants: &[drop_step(Step::CheckSeq, CHANGED), drop_step(Step::LockBeforeClear, CHANGED)],
};

/// The first thread that needs a space's identity assigns it, with the mmap lock or without.
pub(crate) const FIRST_IDENTITY: Model = Model {
    name: "first_identity",
    property: "threads that assign a space's identity at the same time agree on it",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let excluder = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                if let Err(error) = space.exclude(30..40) {
                    assert_eq!(error, ChangeError::NotMapped { range: 30..40 });
                }
            }
        });
        space.insert(10..20, 1).unwrap();
        excluder.join().unwrap();
        assert_eq!(space.try_read(10).map(|vma| *vma), Ok(1), "{LOST}");
    },
    mutants: &[drop_step(Step::AgreeOnIdentity, LOST)],
};

/// A lookup as shipped: its first walk does not record the nodes that it visits.
pub(crate) const UNVALIDATED_WALK: Model = Model {
    name: "unvalidated_walk",
    property: "a lookup whose first walk is not validated returns the VMA that holds its address",
    threads: 2,
    preemptions: Some(2),
    run: || {
        walk_unvalidated();
        let space = one_vma();
        let writer = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                let mut edit = space.edit().unwrap();
                edit.remove(10..20).unwrap();
                edit.insert(14..20, 2).unwrap();
            }
        });
        match space.try_read(12) {
            Ok(vma) => assert!(*vma == 1 && vma.range() == (10..20), "{OUTSIDE}"),
            Err(ReadError::Locked { .. } | ReadError::NotMapped { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        writer.join().unwrap();
        assert_eq!(space.try_read(12).err(), Some(ReadError::NotMapped { addr: 12 }), "{OUTSIDE}");
    },
    mutants: &[weaken("READ_ADMIT", RACE), drop_step(Step::CheckRange, OUTSIDE)],
};

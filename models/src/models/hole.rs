//! Lookups that report a hole while the tree changes.

use loom::sync::Arc;
use loom::thread;
use pervma_models::internals::{Step, walk_unvalidated};
use pervma_models::{AddressSpace, Edit, ReadError, Slab};

use crate::harness::{Model, RACE, drop_step, weaken};

const HOLE: &str = "a mapped address is reported as a hole";

/// Looks up an address that is mapped throughout. It advances the watermark, if no edit is under
/// way.
fn look(space: &AddressSpace<()>, addr: usize) {
    match space.try_read(addr) {
        Ok(vma) => assert!(vma.range().contains(&addr)),
        Err(error) => assert_ne!(error, ReadError::NotMapped { addr }, "{HOLE}"),
    }
}

/// Looks up an address that is mapped throughout, while another thread makes an edit.
fn look_beside(space: &Arc<AddressSpace<()>>, addr: usize, change: fn(&mut Edit<'_, ()>)) {
    let editor = thread::spawn({
        let space = Arc::clone(space);
        move || change(&mut space.edit().unwrap())
    });
    look(space, addr);
    editor.join().unwrap();
}

/// A space of one leaf, with VMAs that start at these addresses.
fn leaf_of(starts: &[usize]) -> Arc<AddressSpace<()>> {
    let space = Arc::new(AddressSpace::new(1));
    let mut edit = space.edit().unwrap();
    for &start in starts {
        edit.insert(start..start + 5, ()).unwrap();
    }
    drop(edit);
    look(&space, starts[starts.len() - 1]);
    space
}

/// Four VMAs, which fill the leaf.
fn full() -> Arc<AddressSpace<()>> {
    leaf_of(&[10, 20, 30, 40])
}

/// Three VMAs.
fn three() -> Arc<AddressSpace<()>> {
    leaf_of(&[10, 20, 30])
}

/// A leaf splits while one of the entries that move to the new leaf is looked up.
pub(crate) const SPLIT: Model = Model {
    name: "split",
    property: "an address that stays mapped while its leaf splits is never reported as a hole",
    threads: 2,
    preemptions: None,
    run: || {
        let space = full();
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || space.edit().unwrap().insert(50..55, ()).unwrap()
        });
        look(&space, 40);
        editor.join().unwrap();
        look(&space, 40);
    },
    mutants: &[
        drop_step(Step::CheckHole, HOLE),
        drop_step(Step::SetVersion, HOLE),
        weaken("HOLE_CHECK", HOLE),
        // The lookup follows words to new nodes.
        weaken("NODE_FOLLOW", RACE),
        weaken("NODE_LINK", RACE),
    ],
};

/// As `SPLIT`, after the lookup of a hole, which may advance the watermark to the editor's edit.
pub(crate) const SPLIT_WATERMARK: Model = Model {
    name: "split_watermark",
    property: "a walk that takes an edit for completed sees all of its changes",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let space = full();
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || space.edit().unwrap().insert(50..55, ()).unwrap()
        });
        let hole = space.try_read(5).err().unwrap();
        assert!(matches!(hole, ReadError::NotMapped { .. } | ReadError::Locked { .. }));
        look(&space, 40);
        editor.join().unwrap();
    },
    mutants: &[
        drop_step(Step::CheckEven, HOLE),
        weaken("READ_SEQ", HOLE),
        weaken("EDIT_END", HOLE),
    ],
};

/// Entries of the leaf shift left and right while one of them is looked up.
pub(crate) const SHIFT: Model = Model {
    name: "shift",
    property: "an address that stays mapped while its entry shifts is never reported as a hole",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let space = three();
        look_beside(&space, 20, |edit| {
            edit.remove(10..15).unwrap();
            edit.insert(5..10, ()).unwrap();
        });
        look(&space, 20);
    },
    mutants: &[drop_step(Step::CheckHole, HOLE)],
};

/// A space has two leaves with one VMA each, and `gone` is removed: two nodes become free, and
/// another space, whose edit began before, uses one of them. `stays` is looked up.
fn recycle(gone: usize, stays: usize) {
    let slab = std::sync::Arc::new(Slab::new());
    let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
    let other = AddressSpace::new_in(1, slab);
    let mut edit = mine.edit().unwrap();
    // 40 comes last: a leaf is split in the middle, since keys are not inserted in order.
    for start in [10, 20, 30, 50, 40] {
        edit.insert(start..start + 5, ()).unwrap();
    }
    for start in [50, 40, 20] {
        edit.remove(start..start + 5).unwrap();
    }
    drop(edit);
    look(&mine, stays);
    let editor = thread::spawn({
        let mine = Arc::clone(&mine);
        move || {
            let mut edit = other.edit().unwrap();
            mine.edit().unwrap().remove(gone..gone + 5).unwrap();
            edit.insert(90..95, ()).unwrap();
            drop(edit);
            other
        }
    });
    look(&mine, stays);
    editor.join().unwrap();
}

/// B1. The walk is in a root that is recycled, and compares another space's keys.
pub(crate) const RECYCLED_NODE: Model = Model {
    name: "recycled_node",
    property: "a walk in a node that another space has recycled does not report a hole",
    threads: 2,
    preemptions: Some(3),
    run: || recycle(10, 30),
    mutants: &[weaken("NODE_KEY", HOLE), weaken("HOLE_CHECK", HOLE)],
};

/// The walk is in a root that is recycled, and loads another space's word.
pub(crate) const RECYCLED_WORD: Model = Model {
    name: "recycled_word",
    property: "a walk that loads another space's word in a recycled node does not report a hole",
    threads: 2,
    preemptions: Some(3),
    run: || recycle(30, 10),
    mutants: &[weaken("NODE_LINK", HOLE)],
};

/// An edit removes the only VMA and inserts it again; in between, another space, whose edits have
/// lower numbers, takes the node.
pub(crate) const RECYCLED_VERSION: Model = Model {
    name: "recycled_version",
    property: "an address that one edit unmaps and maps is never reported as a hole, whichever space has its node",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::new_in(1, slab);
        mine.edit().unwrap().insert(10..15, ()).unwrap();
        look(&mine, 10);
        let editor = thread::spawn({
            let mine = Arc::clone(&mine);
            move || {
                let mut edit = mine.edit().unwrap();
                edit.remove(10..15).unwrap();
                other.edit().unwrap().insert(90..95, ()).unwrap();
                edit.insert(10..15, ()).unwrap();
                drop(edit);
                other
            }
        });
        look(&mine, 10);
        editor.join().unwrap();
    },
    mutants: &[
        drop_step(Step::CheckUpwards, HOLE),
        weaken("NODE_VERSION", HOLE),
        weaken("VERSION_CHECK", HOLE),
    ],
};

/// An edit removes the first entry of a leaf and inserts it again: above the leaf, only a key
/// changes.
pub(crate) const REPLACED: Model = Model {
    name: "replaced",
    property: "an address that one edit unmaps and maps is never reported as a hole",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let space = full();
        space.edit().unwrap().insert(50..55, ()).unwrap();
        look(&space, 40);
        look_beside(&space, 40, |edit| {
            edit.remove(40..45).unwrap();
            edit.insert(40..45, ()).unwrap();
        });
    },
    mutants: &[drop_step(Step::SetVersionForKey, HOLE), drop_step(Step::SetVersion, HOLE)],
};

/// Looks up the second of three VMAs in a leaf, while an edit removes it and inserts it again.
fn replace_in_leaf() {
    let space = three();
    look_beside(&space, 20, |edit| {
        edit.remove(20..25).unwrap();
        edit.insert(20..25, ()).unwrap();
    });
}

/// A leaf whose entries around an address are looked at, while the VMA there is removed and
/// inserted again.
pub(crate) const LEAF: Model = Model {
    name: "leaf",
    property: "an address that one edit unmaps and maps is never reported as a hole, whatever its leaf shows",
    threads: 2,
    preemptions: Some(3),
    run: replace_in_leaf,
    mutants: &[
        drop_step(Step::CheckLeafCompleted, HOLE),
        drop_step(Step::CheckLeafEntry, HOLE),
        drop_step(Step::CheckLeafAgain, HOLE),
        weaken("HOLE_CHECK", HOLE),
    ],
};

/// As `LEAF`, with lookups as shipped: the VMA below is read-locked before the walk to the leaf.
pub(crate) const LEAF_UNVALIDATED: Model = Model {
    name: "leaf_unvalidated",
    property: "nor is it by the leaf of a walk that follows one which was not validated",
    threads: 2,
    preemptions: Some(2),
    run: || {
        walk_unvalidated();
        replace_in_leaf();
    },
    mutants: &[
        drop_step(Step::CheckLeafCompleted, HOLE),
        drop_step(Step::CheckLeafEntry, HOLE),
        drop_step(Step::CheckLeafAgain, HOLE),
    ],
};

/// As `LEAF`, in a leaf that the edit merges into another one in between.
pub(crate) const LEAF_MERGED: Model = Model {
    name: "leaf_merged",
    property: "an address that one edit unmaps and maps is never reported as a hole, whatever a leaf shows that was merged",
    threads: 2,
    preemptions: Some(1),
    run: || {
        let space = full();
        let mut edit = space.edit().unwrap();
        edit.insert(50..55, ()).unwrap(); // a leaf of its own, with 40
        edit.insert(60..65, ()).unwrap();
        edit.remove(20..25).unwrap();
        edit.remove(30..35).unwrap();
        drop(edit);
        look(&space, 50);
        look_beside(&space, 50, |edit| {
            edit.remove(50..55).unwrap();
            edit.remove(10..15).unwrap();
            edit.insert(50..55, ()).unwrap();
        });
    },
    mutants: &[drop_step(Step::EmptyMerged, HOLE)],
};

/// A leaf goes to another space, whose edit has the number of the one that changed it last.
pub(crate) const LEAF_OF_ANOTHER: Model = Model {
    name: "leaf_of_another",
    property: "an address that stays mapped is never reported as a hole, whichever space has its old leaf",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::new_in(1, slab);
        let mut edit = mine.edit().unwrap();
        // Three leaves, of one VMA, two, and two.
        for start in [10, 20, 30, 40, 50, 60, 70, 80] {
            edit.insert(start..start + 5, ()).unwrap();
        }
        for start in [20, 30, 60] {
            edit.remove(start..start + 5).unwrap();
        }
        drop(edit);
        look(&mine, 50);
        let editor = thread::spawn({
            let mine = Arc::clone(&mine);
            move || {
                mine.edit().unwrap().remove(10..15).unwrap(); // merges the first two
                let mut edit = other.edit().unwrap();
                edit.insert(45..50, ()).unwrap();
                edit.insert(90..95, ()).unwrap();
                drop(edit);
                other
            }
        });
        look(&mine, 50);
        editor.join().unwrap();
    },
    mutants: &[drop_step(Step::CheckLeafOwned, HOLE)],
};

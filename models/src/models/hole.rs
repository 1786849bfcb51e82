//! "Nothing is mapped there", said while the tree changes. Two threads.

use loom::sync::Arc;
use loom::thread;
use pervma_models::ledger::Step;
use pervma_models::{AddressSpace, ReadError, Slab};

use crate::harness::{Model, RACE, drop_step, weaken};

const HOLE: &str = "a mapped address is reported as a hole";

/// Looks up an address that is mapped throughout.
fn look(space: &AddressSpace<()>, addr: usize) {
    match space.try_read(addr) {
        Ok(vma) => assert!(vma.range().contains(&addr)),
        Err(error) => assert_ne!(error, ReadError::NotMapped { addr }, "{HOLE}"),
    }
}

/// A leaf splits while one of the entries that move is looked up.
pub const SPLIT: Model = Model {
    name: "split",
    property: "an address that stays mapped while its leaf splits is never reported as a hole",
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        for start in [10, 20, 30, 40] {
            edit.insert(start..start + 5, ()).unwrap();
        }
        drop(edit);
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
        weaken("HOLE_BEGIN", HOLE),
        weaken("HOLE_CHECK", HOLE),
        weaken("EDIT_END", HOLE),
        // The new nodes are the first of their chunk.
        weaken("NODE_FOLLOW", RACE),
        weaken("NODE_LINK", RACE),
    ],
};

/// A node that is merged away is used by another space while a walker is in it.
pub const RECYCLED_NODE: Model = Model {
    name: "recycled_node",
    property: "a walker in a node that another space has recycled does not report a hole",
    preemptions: Some(3),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::on_slab(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::on_slab(1, slab);
        let mut edit = mine.edit().unwrap();
        for start in [10, 20, 30, 40, 50] {
            edit.insert(start..start + 5, ()).unwrap();
        }
        for start in [50, 40, 20] {
            edit.remove(start..start + 5).unwrap();
        }
        drop(edit);
        let editor = thread::spawn({
            let mine = Arc::clone(&mine);
            move || {
                // The other space's edit has begun before the node becomes free.
                let mut edit = other.edit().unwrap();
                // Two leaves of one entry each become one, and the old root is free.
                mine.edit().unwrap().remove(10..15).unwrap();
                edit.insert(90..95, ()).unwrap();
                drop(edit);
                other
            }
        });
        look(&mine, 30);
        editor.join().unwrap();
    },
    mutants: &[weaken("NODE_KEY", HOLE), weaken("HOLE_CHECK", HOLE)],
};

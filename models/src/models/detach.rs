//! A reader's lookup against removal and reuse of the slot that it is about to acquire.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::Model as Platform;
use pervma_models::internals::Step;
use pervma_models::{AddressSpace, Slab};

use super::lock::Vma;
use crate::harness::{COUNTED, Model, RACE, drop_step, weaken};

const OTHER: &str = "a reader is admitted to a VMA that does not hold its address";
const FOREIGN: &str = "a reader of one space is admitted to a VMA of another";
const TAKEN: &str = "a slot or a node was reused while its owner still used it";
const EARLY: &str = "a reader acquires an inserted VMA before the edit ends";
const TENANT: &str = "a stale reader has changed the count of the slot's next tenant";

/// B12. Two editors of two spaces on one slab: one removes, the other inserts.
pub(crate) const TWO_EDITORS: Model = Model {
    name: "two_editors",
    property: "a slot or a node goes to another space only when its last owner no longer uses it",
    threads: 2,
    preemptions: None,
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
        let other = AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
        let mut edit = mine.edit().unwrap();
        // 40 comes last: the leaf is split in the middle, since keys are not inserted in order.
        for start in [10, 20, 30, 50, 40] {
            edit.insert(start..start + 5, start).unwrap();
        }
        for start in [50, 40, 20] {
            edit.remove(start..start + 5).unwrap();
        }
        drop(edit);
        let editor = thread::spawn(move || {
            // Two leaves of one entry each become one; two nodes and a slot are free.
            let removed = mine.edit().unwrap().remove(10..15).unwrap();
            assert_eq!((removed[0].payload, removed.len()), (10, 1), "{TAKEN}");
            mine
        });
        other.edit().unwrap().insert(70..75, 70).unwrap();
        other.edit().unwrap().insert(90..95, 90).unwrap();
        let mine = editor.join().unwrap();
        let has = |space: &AddressSpace<usize>, starts: &[usize]| {
            let edit = space.edit().unwrap();
            let expected = starts.iter().map(|start| (*start..start + 5, start));
            assert!(edit.iter().eq(expected), "{TAKEN}");
        };
        has(&mine, &[30]);
        has(&other, &[70, 90]);
    },
    mutants: &[drop_step(Step::FreeLast, TAKEN), drop_step(Step::FreeDetached, COUNTED)],
};

/// Looks `addr` up; a VMA that is found must hold it and have `payload`.
fn look(space: &AddressSpace<u32>, addr: usize, payload: u32, wrong: &str) {
    if let Ok(vma) = space.try_read(addr) {
        assert!(vma.range().contains(&addr), "{wrong}");
        assert_eq!(*vma, payload, "{wrong}");
    }
}

/// B4, B7, B15d. A reader of an address, and an editor that unmaps it and reuses the slot.
pub(crate) const REUSE: Model = Model {
    name: "reuse",
    property: "a late reader finds its own VMA or none, never the slot's next tenant",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                let mut edit = space.edit().unwrap();
                assert_eq!(edit.remove(10..20).unwrap()[0].payload, 1);
                edit.insert(30..40, 2).unwrap();
            }
        });
        look(&space, 10, 1, OTHER);
        editor.join().unwrap();
        assert_eq!(space.slab().vmas().capacity, 1, "the slot was used again");
    },
    mutants: &[
        weaken("ATTACH_PUBLISH", RACE),
        weaken("EXCLUDE_WAIT", RACE),
        drop_step(Step::CheckRange, OTHER),
        drop_step(Step::WaitForReaders, RACE),
        drop_step(Step::KeepExcluded, RACE),
    ],
};

/// B4, B15h. A reader of an address that an edit maps, in a slot that was used before.
pub(crate) const APPEAR: Model = Model {
    name: "appear",
    property: "a VMA that an edit inserts is found complete, and not before the edit ends",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        *space.edit().unwrap().write(10).unwrap() = 2; // the slot has the number of an edit
        space.edit().unwrap().remove(10..20).unwrap();
        let over = Arc::new(AtomicU32::new(0));
        let editor = thread::spawn({
            let (space, over) = (Arc::clone(&space), Arc::clone(&over));
            move || {
                let mut edit = space.edit().unwrap();
                edit.insert(30..40, 2).unwrap();
                over.fetch_add(1, Relaxed);
            }
        });
        if let Ok(vma) = space.try_read(30) {
            assert_eq!(over.fetch_add(0, Relaxed), 1, "{EARLY}");
            assert_eq!(*vma, 2);
        }
        editor.join().unwrap();
    },
    mutants: &[drop_step(Step::AttachLocked, EARLY), weaken("ATTACH_PUBLISH", RACE)],
};

/// A reader of a space, and an editor that frees its slot, which another space then uses.
pub(crate) const REUSE_OTHER_SPACE: Model = Model {
    name: "reuse_other_space",
    property: "a slot that has gone to another space is refused, whatever its lock says",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
        mine.edit().unwrap().insert(10..20, 1).unwrap();
        let editor = thread::spawn({
            let mine = Arc::clone(&mine);
            move || {
                mine.edit().unwrap().remove(10..20).unwrap();
                other.edit().unwrap().insert(10..20, 2).unwrap();
                assert_eq!(*other.try_read(10).unwrap(), 2);
            }
        });
        look(&mine, 10, 1, FOREIGN);
        editor.join().unwrap();
        assert_eq!(slab.vmas().capacity, 1, "the slot was used again");
    },
    mutants: &[drop_step(Step::CheckSpace, FOREIGN), weaken("ATTACH_PUBLISH", RACE)],
};

/// B15a. A late reader of a slot whose VMA is detached and which is used again; the lock only.
pub(crate) const LATE_RELEASE: Model = Model {
    name: "late_release",
    property: "a reader's release goes to the count that it acquired its reference from",
    threads: 2,
    preemptions: None,
    run: || {
        let vma = Vma::attached();
        let editor = thread::spawn({
            let vma = Arc::clone(&vma);
            move || {
                let edit = vma.seq.begin();
                vma.lock.exclude();
                vma.lock.wait_drained::<Platform>(None);
                vma.lock.detach();
                vma.lock.attach(edit);
                vma.seq.end(edit);
            }
        });
        if vma.lock.try_acquire().is_ok() {
            vma.lock.release::<Platform>();
        }
        editor.join().unwrap();
        assert!(vma.lock.try_exclude_idle(), "{TENANT}");
    },
    mutants: &[
        drop_step(Step::WaitForReaders, TENANT),
        drop_step(Step::KeepExcluded, TENANT),
        drop_step(Step::RefuseExcluded, TENANT),
        drop_step(Step::RefuseDetached, TENANT),
    ],
};

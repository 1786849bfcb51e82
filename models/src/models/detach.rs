//! Readers against removal and reuse of the slot they are on their way to. Two threads, the whole
//! lookup of the shipped source.

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
const TAKEN: &str = "a slot or a node was taken while its owner was at it";
const EARLY: &str = "a reader is inside before the edit ends";
const TENANT: &str = "a stale reader has changed the count of the slot's next tenant";

/// B12. Two editors, each of its own space, of which one removes while the other inserts.
pub(crate) const TWO_EDITORS: Model = Model {
    name: "two_editors",
    property: "a slot or a node is another space's only when its last owner is done with it",
    threads: 2,
    preemptions: None,
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
        let other = AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
        let mut edit = mine.edit().unwrap();
        // 40 comes last: the leaf is divided in the middle, since keys do not come in order.
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

/// Looks `addr` up; what is found must hold it and carry `payload`.
fn look(space: &AddressSpace<u32>, addr: usize, payload: u32, wrong: &str) {
    if let Ok(vma) = space.try_read(addr) {
        assert!(vma.range().contains(&addr), "{wrong}");
        assert_eq!(*vma, payload, "{wrong}");
    }
}

/// B4, B7, B15d. One reader of the address that goes, one editor.
pub(crate) const REUSE: Model = Model {
    name: "reuse",
    property: "a reader that comes late finds its own VMA or none, never the slot's next tenant",
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

/// B4, B15h. One reader of an address that an edit maps, in a slot that was used before.
pub(crate) const APPEAR: Model = Model {
    name: "appear",
    property: "what an edit inserts is found complete, and not before the edit ends",
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

/// One reader of a space, one editor that moves its slot to another space on the same slab.
pub(crate) const REUSE_ELSEWHERE: Model = Model {
    name: "reuse_elsewhere",
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

/// B15a. A late reader of a slot whose VMA goes and which is used again, at the lock alone.
pub(crate) const LATE_PUT: Model = Model {
    name: "late_put",
    property: "a reader's put goes to the count that it took a reference from",
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

//! What was said on the Linux mailing list in January 2025, when the reference count of this design
//! was proposed. One more statement, that a release (a *put*) needs no acquire, is checked in the
//! machine code by `.ci/acquires`.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::Model as Platform;
use pervma_models::internals::Step;
use pervma_models::{AddressSpace, Slab};

use super::lock::{BOTH, Vma};
use crate::harness::{Model, drop_step, weaken};

const PAST: &str = "a reader acquires a reference to a detached VMA";
const OTHER: &str = "a stale reader is admitted to another VMA of its space";
const FOREIGN: &str = "a stale reader is admitted to a VMA of another space";

/// B14. The increment must be an acquire: otherwise the test of the sequence moves in front of it,
/// a writer sets and clears X in between, and both checks pass.
pub(crate) const ACQUIRE_BEFORE_CHECK: Model = Model {
    name: "acquire_before_check",
    property: "no reader is admitted while the VMA is write-locked",
    threads: 2,
    preemptions: None,
    run: || {
        let vma = Vma::attached();
        let writer = thread::spawn({
            let vma = Arc::clone(&vma);
            move || vma.write(|_| ())
        });
        vma.try_read(|_| ());
        writer.join().unwrap();
        assert!(vma.try_read(|_| ()).is_some(), "the write lock ends with the edit");
    },
    mutants: &[
        weaken("READ_ADMIT", BOTH),
        weaken("EXCLUDE_END", BOTH),
        drop_step(Step::CheckSeq, BOTH),
        drop_step(Step::RefuseExcluded, BOTH),
        drop_step(Step::LockBeforeClear, BOTH),
    ],
};

/// B11, B15a. The claim that held: detaching waits for readers, so between detach and reuse no
/// reader acquires a reference.
pub(crate) const DETACH_WAITS: Model = Model {
    name: "detach_waits",
    property: "between the detach of a VMA and the reuse of its slot no reader acquires a reference",
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
                vma.written.fetch_add(1, Relaxed);
                vma.written.fetch_sub(1, Relaxed);
                vma.lock.attach(edit);
                vma.seq.end(edit);
            }
        });
        if vma.lock.try_acquire().is_ok() {
            assert_eq!(vma.written.fetch_add(0, Relaxed), 0, "{PAST}");
            vma.lock.release::<Platform>();
        }
        editor.join().unwrap();
    },
    mutants: &[
        drop_step(Step::RefuseDetached, PAST),
        drop_step(Step::RefuseExcluded, PAST),
        drop_step(Step::KeepExcluded, PAST),
        drop_step(Step::WaitForReaders, PAST),
    ],
};

/// B11. The counter-example to the conclusion that no second check is needed: a reader finds a VMA
/// and sleeps while the slot is detached, freed, reused and attached. Its increment succeeds; only
/// the checks of the space and the range that follow reject it.
pub(crate) const STALE_READER: Model = Model {
    name: "stale_reader",
    property: "a reader whose slot is detached, freed, reused and attached after its walk is rejected",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
        mine.edit().unwrap().insert(10..20, 1).unwrap();
        let mut found = mine.cursor();
        drop(found.try_read(10).unwrap());
        let editor = thread::spawn({
            let mine = Arc::clone(&mine);
            move || {
                mine.edit().unwrap().remove(10..20).unwrap();
                other.edit().unwrap().insert(10..20, 2).unwrap();
                other.edit().unwrap().remove(10..20).unwrap();
                mine.edit().unwrap().insert(30..40, 3).unwrap();
            }
        });
        if let Ok(vma) = found.try_read(10) {
            assert!(vma.range().contains(&10), "{OTHER}");
            assert_eq!(*vma, 1, "{FOREIGN}");
        }
        editor.join().unwrap();
        assert_eq!(slab.vmas().capacity, 1, "the slot was used twice again");
    },
    mutants: &[drop_step(Step::CheckSpace, FOREIGN), drop_step(Step::CheckRange, OTHER)],
};

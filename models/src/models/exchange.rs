//! The exchange of January 2025 that this design comes from, about turning a VMA's semaphore into a
//! count. Three statements were made, and one question asked, about the put: no acquire is needed
//! there, which `.ci/put` reads in the machine code.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::Model as Platform;
use pervma_models::internals::Step;
use pervma_models::{AddressSpace, Slab};

use super::lock::{INSIDE, Vma};
use crate::harness::{Model, drop_step, weaken};

const PAST: &str = "a reader gets past the increment of a detached VMA";
const OTHER: &str = "a reader that slept is admitted to another VMA of its space";
const FOREIGN: &str = "a reader that slept is admitted to a VMA of another space";

/// B14. The increment has to be an acquire: else the test of the sequence moves in front of it, a
/// writer locks and lets go in between, and both checks pass.
pub(crate) const INCREMENT: Model = Model {
    name: "exchange_increment",
    property: "nobody is admitted while a writer has the VMA",
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
        weaken("READ_ADMIT", INSIDE),
        weaken("EXCLUDE_END", INSIDE),
        drop_step(Step::CheckSeq, INSIDE),
        drop_step(Step::RefuseExcluded, INSIDE),
        drop_step(Step::LockBeforeClear, INSIDE),
    ],
};

/// B11, B15a. The author's claim: detaching waits for readers, so between detach and reuse nobody
/// gets past the increment. It holds.
pub(crate) const CLAIM: Model = Model {
    name: "exchange_claim",
    property: "between the detach of a VMA and the reuse of its slot no reader gets past the increment",
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
/// and sleeps while it is detached, freed, used again and attached. Its increment succeeds; only the
/// checks that follow turn it away, that of the space and that of the address.
pub(crate) const SLEEPER: Model = Model {
    name: "exchange_sleeper",
    property: "a reader that sleeps from the walk on, across detach, free, reuse and attach, is turned away",
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
        assert_eq!(slab.vmas().capacity, 1, "the slot was used again, and again");
    },
    mutants: &[drop_step(Step::CheckSpace, FOREIGN), drop_step(Step::CheckRange, OTHER)],
};

//! Waiting and waking. The stand-in for the futex is made of loom's mutex and condition variable,
//! which order more than a futex does: these models show lost wake-ups, not weak orderings.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::AddressSpace;
use pervma_models::internals::Step;
use pervma_models::internals::{Cell, Relaxed as NoOrder, WaitWord};

use crate::harness::{DEADLOCK, Model, RACE, drop_step, weaken};

const KEPT: &str = "a VMA stays excluded after the exclusion has ended";

/// The stand-in itself: a thread that compared before the change is woken, a later one does not
/// sleep.
pub(crate) const FUTEX: Model = Model {
    name: "futex",
    property: "the stand-in for the futex loses no wake-up",
    threads: 2,
    preemptions: None,
    run: || {
        let word = Arc::new(WaitWord::new(0));
        let waker = thread::spawn({
            let word = Arc::clone(&word);
            move || {
                word.word().fetch_add(1, NoOrder("the futex's mutex orders the compare"));
                word.futex_wake();
            }
        });
        while word.word().load(NoOrder("looked at again after each wait")) == 0 {
            word.futex_wait(0);
        }
        waker.join().unwrap();
    },
    mutants: &[drop_step(Step::WakeUnderLock, DEADLOCK)],
};

/// A writer waits for a reader.
pub(crate) const WAKE: Model = Model {
    name: "wake",
    property: "a writer that waits for readers is woken by the last one",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let readers = Arc::new(AtomicU32::new(0));
        let reader = thread::spawn({
            let (space, readers) = (Arc::clone(&space), Arc::clone(&readers));
            move || {
                if let Ok(vma) = space.try_read(10) {
                    readers.fetch_add(1, Relaxed);
                    assert_eq!(*vma, 1);
                    readers.fetch_sub(1, Relaxed);
                }
            }
        });
        let mut edit = space.edit().unwrap();
        let vma = edit.write(10).unwrap();
        assert_eq!(readers.fetch_add(0, Relaxed), 0, "the writer did not wait");
        assert_eq!(*vma, 1);
        drop(edit);
        reader.join().unwrap();
    },
    mutants: &[drop_step(Step::WakeWriter, DEADLOCK)],
};

/// A blocking reader against an edit that write-locks its VMA.
pub(crate) const BLOCKING_READ: Model = Model {
    name: "blocking_read",
    property: "a blocking read of an address that stays mapped finds it, whatever an edit does",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || *space.edit().unwrap().write(10).unwrap() = 2
        });
        let read = *space.read(10).unwrap();
        assert!(read == 1 || read == 2);
        editor.join().unwrap();
        assert_eq!(*space.try_read(10).unwrap(), 2);
    },
    mutants: &[drop_step(Step::WakeWriter, DEADLOCK)],
};

/// B18. An exclusion that waits until a deadline, against a reader that uses the memory behind the
/// VMA.
pub(crate) const CANCELLED_WAIT: Model = Model {
    name: "cancelled_wait",
    property: "a wait that timed out leaves the VMA usable, and one that returned has seen the readers' releases",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, ()).unwrap();
        let memory = Arc::new(Cell::new(1));
        drop(space.try_read(10).unwrap()); // advances the watermark
        let reader = thread::spawn({
            let (space, memory) = (Arc::clone(&space), Arc::clone(&memory));
            move || {
                if let Ok(_vma) = space.try_read(10) {
                    // SAFETY: the model shows that the VMA keeps the writer out; loom reports it
                    // where that fails.
                    assert!(memory.with(|memory| unsafe { *memory }) < 3);
                }
            }
        });
        let exclusion = space.exclude(10..20).unwrap();
        if exclusion.wait_until(()) {
            // SAFETY: as above.
            memory.with_mut(|memory| unsafe { *memory = 2 });
        }
        drop(exclusion);
        assert!(space.try_read(10).is_ok(), "{KEPT}");
        assert!(space.edit().unwrap().write(10).is_ok(), "{KEPT}");
        reader.join().unwrap();
    },
    mutants: &[
        drop_step(Step::ClearExcluded, KEPT),
        weaken("EXCLUDE_WAIT", RACE),
        weaken("EXCLUDE_END", RACE),
        weaken("READ_ADMIT", RACE),
        weaken("READ_RELEASE", RACE),
    ],
};

//! Range locks beside readers of the space, and beside each other.

use loom::sync::Arc;
use loom::thread;
use pervma_models::internals::{Cell, Step};
use pervma_models::{AddressSpace, RangeLocks};

use crate::harness::{DEADLOCK, Model, RACE, drop_step, weaken};

/// A space with one VMA, locks, and what stands for the pages of the VMA.
struct Shared {
    space: AddressSpace<u32>,
    locks: RangeLocks,
    pages: Cell<()>,
}

fn shared() -> Arc<Shared> {
    let space = AddressSpace::new(1);
    space.insert(10..20, 1).unwrap();
    Arc::new(Shared { space, locks: RangeLocks::new(), pages: Cell::new(()) })
}

/// A reader that works on a page if its range is not closed; and who closes it, lets the readers
/// go that are there, and works on the pages, between edits.
pub(crate) const CLOSED: Model = Model {
    name: "closed",
    property: "no reader works on pages in a closed range",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let shared = shared();
        let closer = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let lock = shared.locks.lock(10..15).unwrap();
                lock.close();
                drop(shared.space.edit().unwrap().write(10).unwrap());
                shared.pages.with_mut(|_| ());
                drop(lock);
            }
        });
        if let Ok(_vma) = shared.space.try_read(12)
            && !shared.locks.is_closed(12)
        {
            shared.pages.with_mut(|_| ());
        }
        closer.join().unwrap();
    },
    mutants: &[
        weaken("RANGE_CLOSED", RACE),
        weaken("RANGE_REOPENED", RACE),
        drop_step(Step::CountClosed, RACE),
    ],
};

/// Two threads lock a common address.
pub(crate) const IN_TURN: Model = Model {
    name: "in_turn",
    property: "locks with a common address are held one after the other, and a waiter is woken",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let shared = shared();
        let other = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let _lock = shared.locks.lock_pair([10..15, 40..50]).unwrap();
                shared.pages.with_mut(|_| ());
            }
        });
        {
            let _lock = shared.locks.lock(14..20).unwrap();
            shared.pages.with_mut(|_| ());
        }
        other.join().unwrap();
    },
    mutants: &[drop_step(Step::WakeForRanges, DEADLOCK), drop_step(Step::WaitForRanges, RACE)],
};

/// A reader waits until a closed range is open.
pub(crate) const OPENED: Model = Model {
    name: "opened",
    property: "who waits for a closed range goes on when it is open, and sees what was done",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let shared = shared();
        let lock = shared.locks.lock(10..15).unwrap();
        lock.close();
        let reader = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                shared.locks.wait_until_open(12).unwrap();
                shared.pages.with_mut(|_| ());
            }
        });
        shared.pages.with_mut(|_| ());
        drop(lock);
        reader.join().unwrap();
    },
    mutants: &[drop_step(Step::WakeForRanges, DEADLOCK)],
};

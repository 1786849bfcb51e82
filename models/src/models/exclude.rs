//! Exclusions: VMAs kept from readers while nobody holds the mmap lock.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::Model as Platform;
use pervma_models::internals::Step;
use pervma_models::{AddressSpace, ChangeError, ReadError, WriteError};

use super::lock::Vma;
use crate::harness::{DEADLOCK, Model, RACE, drop_step, weaken};

const LATE: &str = "a reader is inside a removed VMA";
const FOREIGN: &str = "an exclusion changes a VMA that another excludes";
const TWICE: &str = "X is set once";
const LOST: &str = "what was changed or removed is not what there was";

/// A reader of one address who counts itself while it is inside.
fn look(space: &AddressSpace<u32>, addr: usize, inside: &AtomicU32) {
    if let Ok(vma) = space.try_read(addr) {
        inside.fetch_add(1, Relaxed);
        assert!(*vma < 3);
        inside.fetch_sub(1, Relaxed);
    }
}

fn none_inside(inside: &AtomicU32, otherwise: &str) {
    assert_eq!(inside.fetch_add(0, Relaxed), 0, "{otherwise}");
}

/// B9. A reader against a removal that waits without the mmap lock.
pub(crate) const EXCLUDE_REMOVE: Model = Model {
    name: "exclude_remove",
    property: "when a removal returns, nobody is inside and nobody enters",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let inside = Arc::new(AtomicU32::new(0));
        drop(space.try_read(10).unwrap()); // advances the watermark
        let remover = thread::spawn({
            let (space, inside) = (Arc::clone(&space), Arc::clone(&inside));
            move || {
                let removed = space.remove(10..20).unwrap();
                none_inside(&inside, LATE);
                assert_eq!((removed.len(), removed[0].payload), (1, 1));
            }
        });
        look(&space, 10, &inside);
        remover.join().unwrap();
        assert_eq!(space.try_read(10).unwrap_err(), ReadError::NotMapped { addr: 10 });
    },
    mutants: &[
        drop_step(Step::WaitForReaders, RACE),
        drop_step(Step::KeepExcluded, LATE),
        weaken("EXCLUDE_WAIT", RACE),
        weaken("READ_RELEASE", RACE),
    ],
};

/// B23. A reader against a change of the payload under an exclusion.
pub(crate) const EXCLUDE_UPDATE: Model = Model {
    name: "exclude_update",
    property: "a payload changes while nobody is inside, and the new one is read only when its edit is over",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        drop(space.try_read(10).unwrap()); // advances the watermark
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || assert_eq!(space.update(10..20, |_, _| 2).unwrap()[0].payload, 1)
        });
        if let Ok(vma) = space.try_read(10) {
            assert!(*vma < 3);
        }
        editor.join().unwrap();
        assert_eq!(*space.try_read(10).unwrap(), 2);
    },
    mutants: &[
        weaken("EXCLUDE_END", RACE),
        weaken("READ_ADMIT", RACE),
        drop_step(Step::WaitForReaders, RACE),
    ],
};

/// A blocking reader against an exclusion that gives up.
pub(crate) const GATE: Model = Model {
    name: "gate",
    property: "whoever an exclusion refuses goes on when it ends",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        drop(space.try_read(10).unwrap()); // advances the watermark
        let excluder = thread::spawn({
            let space = Arc::clone(&space);
            move || drop(space.exclude(10..20).unwrap())
        });
        assert_eq!(*space.read(10).unwrap(), 1);
        excluder.join().unwrap();
    },
    mutants: &[
        weaken("EVENT_PREPARE", DEADLOCK),
        weaken("EVENT_NOTIFY", DEADLOCK),
        drop_step(Step::TestAgain, DEADLOCK),
        drop_step(Step::NotifyLast, DEADLOCK),
    ],
};

/// Two whom one exclusion refuses. At the lock alone.
pub(crate) const TWO_SLEEPERS: Model = Model {
    name: "two_sleepers",
    property: "the end of an exclusion lets all go on whom it refused",
    threads: 3,
    preemptions: Some(3),
    run: || {
        let vma = Vma::attached();
        vma.lock.exclude();
        let sleepers = [0, 1].map(|_| {
            let vma = Arc::clone(&vma);
            thread::spawn(move || {
                if let Some(key) = vma.lock.prepare_wait() {
                    vma.lock.wait_notified::<Platform>(key);
                }
            })
        });
        vma.lock.clear_excluded();
        vma.lock.notify::<Platform>();
        for sleeper in sleepers {
            sleeper.join().unwrap();
        }
    },
    mutants: &[drop_step(Step::WakeAll, DEADLOCK)],
};

/// One whom an exclusion refused comes late to sleep: the VMA is excluded again by then, by somebody
/// who waits for him, and the gate has a new sleeper. At the lock alone.
pub(crate) const LATE_SLEEPER: Model = Model {
    name: "late_sleeper",
    property: "nobody sleeps for an exclusion that came after the one that refused him",
    threads: 2,
    preemptions: None,
    run: || {
        let vma = Vma::attached();
        vma.lock.exclude();
        let sleeper = thread::spawn({
            let (vma, key) = (Arc::clone(&vma), vma.lock.prepare_wait().unwrap());
            move || vma.lock.wait_notified::<Platform>(key)
        });
        vma.lock.clear_excluded();
        vma.lock.notify::<Platform>();
        vma.lock.exclude();
        assert!(vma.lock.prepare_wait().is_some());
        sleeper.join().unwrap();
    },
    mutants: &[drop_step(Step::AdvanceEvent, DEADLOCK)],
};

/// Two excluders of one VMA, of whom each gives up.
pub(crate) const ABANDON: Model = Model {
    name: "abandon",
    property: "an exclusion that gives up touches nothing of the next one's",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let other = thread::spawn({
            let space = Arc::clone(&space);
            move || drop(space.exclude(10..20).unwrap())
        });
        drop(space.exclude(10..20).unwrap());
        other.join().unwrap();
        assert_eq!(*space.try_read(10).unwrap(), 1);
    },
    mutants: &[
        weaken("EXCLUDE_END", RACE),
        weaken("EXCLUDE_BEGIN", RACE),
        drop_step(Step::LinkBeforeClear, RACE),
    ],
};

/// Two removals of the same range, one of them by an edit that retries outside.
pub(crate) const TWO_REMOVALS: Model = Model {
    name: "two_removals",
    property: "exclusions and edits of the same VMAs neither wait for each other for ever nor both have them",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        edit.insert(10..15, 1).unwrap();
        edit.insert(20..25, 2).unwrap();
        drop(edit);
        let other = thread::spawn({
            let space = Arc::clone(&space);
            move || space.remove(10..30).map_or(0, |removed| removed.len())
        });
        let removed = space.edit().unwrap().remove(5..25);
        let here = match removed {
            Err(ChangeError::Excluded { .. }) => {
                space.remove(5..25).map_or(0, |removed| removed.len())
            }
            removed => removed.map_or(0, |removed| removed.len()),
        };
        assert_eq!(here + other.join().unwrap(), 2, "{LOST}");
        assert_eq!(space.slab().vmas().in_use, 0);
    },
    mutants: &[drop_step(Step::TestExcluded, TWICE), drop_step(Step::SleepUnlocked, DEADLOCK)],
};

/// B15j. A reader inside, one excluder that waits for it, one more whom that refuses.
pub(crate) const TWO_WAITERS: Model = Model {
    name: "two_waiters",
    property: "the last reader wakes the excluder, and not somebody whom the exclusion refuses",
    threads: 3,
    preemptions: Some(3),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let vma = space.try_read(10).unwrap();
        let remover = thread::spawn({
            let space = Arc::clone(&space);
            move || space.remove(10..20).unwrap().len()
        });
        let reader = thread::spawn({
            let space = Arc::clone(&space);
            move || usize::from(space.read(10).is_ok())
        });
        assert_eq!(*vma, 1);
        drop(vma);
        assert_eq!(remover.join().unwrap(), 1);
        assert!(reader.join().unwrap() <= 1);
    },
    mutants: &[drop_step(Step::SeparateEvent, DEADLOCK), drop_step(Step::WakeWriter, DEADLOCK)],
};

/// A change that finds the mmap lock taken when it would end, beside an edit of the same VMA.
pub(crate) const SUSPENDED: Model = Model {
    name: "suspended",
    property: "a change that was suspended is made of what is there when it goes on",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let updater = thread::spawn({
            let space = Arc::clone(&space);
            move || drop(space.update(10..20, |_, payload| payload + 10).unwrap())
        });
        let mut edit = space.edit().unwrap();
        let added = if edit.update(10..20, |_, payload| payload + 100).is_ok() { 100 } else { 0 };
        drop(edit);
        updater.join().unwrap();
        assert_eq!(*space.try_read(10).unwrap(), 11 + added, "{LOST}");
    },
    mutants: &[drop_step(Step::FindUnchanged, LOST)],
};

/// An exclusion with a hole in its range, in which another thread maps and excludes something.
pub(crate) const HOLE_IN_RANGE: Model = Model {
    name: "hole_in_range",
    property: "an exclusion ends on its own VMAs, whatever has come into its range",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..15, 1).unwrap();
        let exclusion = space.exclude(10..30).unwrap();
        let other = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                space.edit().unwrap().insert(20..25, 2).unwrap();
                // Never to end, so that there is no race with who takes the VMA away.
                std::mem::forget(space.exclude(20..25));
            }
        });
        assert_eq!(exclusion.remove().unwrap().len(), 1, "{FOREIGN}");
        other.join().unwrap();
    },
    mutants: &[drop_step(Step::OwnList, FOREIGN)],
};

/// B10. A reader against a write lock that does not wait.
pub(crate) const IDLE: Model = Model {
    name: "idle",
    property: "a VMA that is write-locked because it was idle is idle",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                let mut edit = space.edit().unwrap();
                if let Ok(mut vma) = edit.try_write(10) {
                    *vma = 2;
                }
            }
        });
        if let Ok(vma) = space.try_read(10) {
            assert!(*vma < 3);
        }
        editor.join().unwrap();
    },
    mutants: &[
        weaken("EXCLUDE_WAIT", RACE),
        weaken("EXCLUDE_END", RACE),
        weaken("READ_RELEASE", RACE),
        drop_step(Step::CheckSeq, RACE),
    ],
};

/// An exclusion that gives up against another that takes the VMA in as a neighbour, if it is idle.
pub(crate) const TAKEN_IN: Model = Model {
    name: "taken_in",
    property: "who finds a VMA idle has its link to himself, whoever had it before",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        edit.insert(10..20, 1).unwrap();
        edit.insert(20..30, 2).unwrap();
        drop(edit);
        let other = thread::spawn({
            let space = Arc::clone(&space);
            move || drop(space.exclude(10..20).unwrap())
        });
        drop(space.update(20..30, |_, _| 1).unwrap());
        other.join().unwrap();
    },
    mutants: &[weaken("EXCLUDE_WAIT", RACE), weaken("EXCLUDE_END", RACE)],
};

/// A reader, an editor and an excluder of one VMA.
pub(crate) const THREE_WAYS: Model = Model {
    name: "three_ways",
    property: "of a reader, an edit and an exclusion at most one has the VMA, and each of them ends",
    threads: 3,
    preemptions: Some(2),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        drop(space.try_read(10).unwrap()); // advances the watermark
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                let mut edit = space.edit().unwrap();
                match edit.write(10) {
                    Ok(mut vma) => {
                        *vma += 1;
                        1
                    }
                    Err(error) => {
                        assert_eq!(error, WriteError::Excluded { addr: 10 });
                        0
                    }
                }
            }
        });
        let excluder = thread::spawn({
            let space = Arc::clone(&space);
            move || drop(space.update(10..20, |_, payload| payload + 1).unwrap())
        });
        if let Ok(vma) = space.try_read(10) {
            assert!(*vma < 4);
        }
        excluder.join().unwrap();
        let written = editor.join().unwrap();
        assert_eq!(*space.try_read(10).unwrap(), 2 + written, "{LOST}");
    },
    mutants: &[
        drop_step(Step::WaitForReaders, RACE),
        drop_step(Step::RefuseExcluded, RACE),
        drop_step(Step::TestExcluded, TWICE),
        drop_step(Step::WakeWriter, DEADLOCK),
    ],
};

/// B2, B8. A reader of a VMA that an exclusion of its neighbour would merge with.
pub(crate) const NEIGHBOUR: Model = Model {
    name: "neighbour",
    property: "an exclusion merges a neighbour only while nobody is inside that",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        edit.insert(10..20, 1).unwrap();
        edit.insert(20..30, 2).unwrap();
        drop(edit);
        drop(space.try_read(10).unwrap()); // advances the watermark
        let excluder = thread::spawn({
            let space = Arc::clone(&space);
            move || drop(space.update(20..30, |_, _| 1).unwrap())
        });
        if let Ok(vma) = space.try_read(10) {
            assert!(vma.range() == (10..20) || vma.range() == (10..30));
            assert_eq!(*vma, 1);
        }
        excluder.join().unwrap();
    },
    mutants: &[weaken("READ_RELEASE", RACE)],
};

//! Exclusions: VMAs that are closed to readers while the mmap lock is not held.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::Model as Platform;
use pervma_models::internals::Step;
use pervma_models::{AddressSpace, ChangeError, ReadError, WriteError};

use super::lock::Vma;
use crate::harness::{DEADLOCK, Model, RACE, drop_step, weaken};

const LATE: &str = "a reader holds a removed VMA";
const FOREIGN: &str = "an exclusion changes a VMA that another excludes";
const TWICE: &str = "X is set once";
/// loom's report of an execution without an end.
const ENDLESS: &str = "exceeded maximum number of branches";
const LOST: &str = "a change or a removal is lost, or made twice";

/// Reads one address, and counts itself in `readers` while it holds the VMA.
fn look(space: &AddressSpace<u32>, addr: usize, readers: &AtomicU32) {
    if let Ok(vma) = space.try_read(addr) {
        readers.fetch_add(1, Relaxed);
        assert!(*vma < 3);
        readers.fetch_sub(1, Relaxed);
    }
}

fn none_reads(readers: &AtomicU32, otherwise: &str) {
    assert_eq!(readers.fetch_add(0, Relaxed), 0, "{otherwise}");
}

/// B9. A reader against a removal that waits without the mmap lock.
pub(crate) const EXCLUDE_REMOVE: Model = Model {
    name: "exclude_remove",
    property: "when a removal returns, no reader holds the VMA and none is admitted",
    threads: 2,
    preemptions: None,
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let readers = Arc::new(AtomicU32::new(0));
        drop(space.try_read(10).unwrap()); // advances the watermark
        let remover = thread::spawn({
            let (space, readers) = (Arc::clone(&space), Arc::clone(&readers));
            move || {
                let removed = space.remove(10..20).unwrap();
                none_reads(&readers, LATE);
                assert_eq!((removed.len(), removed[0].payload), (1, 1));
            }
        });
        look(&space, 10, &readers);
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
    property: "a payload changes while no reader holds the VMA, and the new one is read only after its edit",
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

/// A blocking reader against an exclusion that is dropped.
pub(crate) const REFUSED_READER: Model = Model {
    name: "refused_reader",
    property: "a reader that an exclusion refuses goes on when the exclusion ends",
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

/// Two threads that one exclusion refuses; the lock only.
pub(crate) const TWO_SLEEPERS: Model = Model {
    name: "two_sleepers",
    property: "the end of an exclusion wakes all threads that it refused",
    threads: 3,
    preemptions: Some(3),
    run: || {
        let vma = Vma::attached();
        vma.lock.exclude();
        let sleepers = [0, 1].map(|_| {
            let vma = Arc::clone(&vma);
            thread::spawn(move || {
                if let Some(key) = vma.lock.prepare_wait() {
                    vma.lock.wait_notified::<Platform>(key, None);
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

/// A thread that an exclusion refused is late to sleep: by then the VMA is excluded again, by a
/// thread that waits for it, and another thread has announced itself in the event word; the lock
/// only.
pub(crate) const LATE_SLEEPER: Model = Model {
    name: "late_sleeper",
    property: "no thread sleeps for a later exclusion than the one that refused it",
    threads: 2,
    preemptions: None,
    run: || {
        let vma = Vma::attached();
        vma.lock.exclude();
        let sleeper = thread::spawn({
            let (vma, key) = (Arc::clone(&vma), vma.lock.prepare_wait().unwrap());
            move || vma.lock.wait_notified::<Platform>(key, None)
        });
        vma.lock.clear_excluded();
        vma.lock.notify::<Platform>();
        vma.lock.exclude();
        assert!(vma.lock.prepare_wait().is_some());
        sleeper.join().unwrap();
    },
    mutants: &[drop_step(Step::AdvanceEvent, DEADLOCK)],
};

/// Two exclusions of one VMA, each dropped.
pub(crate) const ABANDON: Model = Model {
    name: "abandon",
    property: "an exclusion that is dropped touches no field that the next one owns",
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

/// Two removals of the same range; one is an edit's, which an exclusion repeats if it is refused.
pub(crate) const TWO_REMOVALS: Model = Model {
    name: "two_removals",
    property: "exclusions and edits of the same VMAs neither deadlock nor both hold them",
    threads: 2,
    preemptions: Some(3),
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

/// B15j. A reader that holds the VMA, an excluder that waits for it, a reader that this refuses.
pub(crate) const TWO_WAITERS: Model = Model {
    name: "two_waiters",
    property: "the last reader wakes the excluder, not a thread that the exclusion refuses",
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

/// An edit that waits for one exclusion, beside another thread that excludes a VMA in its range.
pub(crate) const EDIT_RANGE: Model = Model {
    name: "edit_range",
    property: "an edit that waits for exclusions begins, and meets none in its range",
    threads: 3,
    preemptions: Some(2),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        edit.insert(10..15, 1).unwrap();
        edit.insert(20..25, 2).unwrap();
        drop(edit);
        let exclusion = space.exclude(10..15).unwrap();
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                let mut edit = space.edit_range(10..25).unwrap();
                edit.update(10..15, |_, payload| payload + 10).unwrap();
                edit.update(20..25, |_, payload| payload + 10).unwrap();
            }
        });
        let excluder = thread::spawn({
            let space = Arc::clone(&space);
            move || drop(space.update(20..25, |_, payload| payload + 100).unwrap())
        });
        drop(exclusion);
        editor.join().unwrap();
        excluder.join().unwrap();
        assert_eq!(*space.try_read(10).unwrap(), 11);
        assert_eq!(*space.try_read(20).unwrap(), 112);
    },
    mutants: &[drop_step(Step::SleepUnlocked, DEADLOCK), drop_step(Step::TestAgain, DEADLOCK)],
};

/// An edit that gives up waiting for an exclusion, and an exclusion that lets it go first.
pub(crate) const EDIT_RANGE_GIVES_UP: Model = Model {
    name: "edit_range_gives_up",
    property: "an exclusion does not wait for an edit that has given up",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        let mut edit = space.edit().unwrap();
        edit.insert(10..15, 1).unwrap();
        edit.insert(20..25, 2).unwrap();
        drop(edit);
        let exclusion = space.exclude(10..15).unwrap();
        let editor = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                if let Some(mut edit) = space.edit_range_until(10..25, ()).unwrap() {
                    edit.update(20..25, |_, payload| payload + 10).unwrap();
                }
            }
        });
        drop(exclusion);
        space.update(20..25, |_, payload| payload + 100).unwrap();
        editor.join().unwrap();
        let payload = *space.try_read(20).unwrap();
        assert!(payload == 102 || payload == 112);
    },
    mutants: &[drop_step(Step::ClearRange, ENDLESS)],
};

/// An exclusion with a hole in its range, in which another thread maps and excludes something.
pub(crate) const HOLE_IN_RANGE: Model = Model {
    name: "hole_in_range",
    property: "an exclusion ends on its own VMAs, whatever was mapped in its range meanwhile",
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
                // Never ends, so that it does not race with a removal of the VMA.
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
    property: "a VMA that `try_write` finds idle has no reader",
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

/// An exclusion that is dropped, against another that merges the VMA as a neighbour if it is idle.
pub(crate) const MERGE_IF_IDLE: Model = Model {
    name: "merge_if_idle",
    property: "a thread that excludes an idle VMA owns its link, after every earlier excluder",
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
    property: "of a reader, an edit and an exclusion at most one holds the VMA, and each of them ends",
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

/// B2, B8. A reader of a VMA that an exclusion of its neighbour could merge.
pub(crate) const NEIGHBOUR: Model = Model {
    name: "neighbour",
    property: "an exclusion merges a neighbour only while no reader holds that",
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

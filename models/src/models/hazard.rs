//! Registered readers against who write-locks, excludes or removes what they visit.
//!
//! Most readers have a cursor that knows the VMA: what a walk may meet is shown by other models.

use loom::sync::Arc;
use loom::thread::{self, JoinHandle};
use pervma_models::internals::Barrier;
use pervma_models::internals::Step;
use pervma_models::{AddressSpace, ReadError, Reader, ReaderCursor, Slab};

use crate::harness::{DEADLOCK, Model, RACE, drop_step, weaken};

const FOREIGN: &str = "a registered reader is admitted to another space's VMA";

/// A space with two VMAs.
fn space() -> Arc<AddressSpace<u32>> {
    let space = Arc::new(AddressSpace::new(1));
    let mut edit = space.edit().unwrap();
    edit.insert(10..20, 1).unwrap();
    edit.insert(30..40, 1).unwrap();
    drop(edit);
    drop(space.try_read(30).unwrap()); // advances the watermark
    space
}

/// A cursor that knows the first VMA.
fn cursor<'r>(reader: &'r Reader<'r, u32>) -> ReaderCursor<'r, u32> {
    let mut cursor = reader.cursor();
    drop(cursor.try_read(10).unwrap());
    cursor
}

/// Reads the first VMA, if it can be had; does `inside` before and after.
fn read(cursor: &mut ReaderCursor<'_, u32>, inside: impl Fn()) {
    if let Ok(vma) = cursor.try_read(10) {
        inside();
        assert!(*vma < 3);
        inside();
    }
}

/// Write-locks the first VMA.
fn write(space: &Arc<AddressSpace<u32>>) -> JoinHandle<()> {
    let space = Arc::clone(space);
    thread::spawn(move || *space.edit().unwrap().write(10).unwrap() = 2)
}

/// One reader, one writer.
pub(crate) const PUBLISHED: Model = Model {
    name: "published",
    property: "a writer waits for the reader whose visit is published, or the reader sees that it has come",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = space();
        let reader = space.register().unwrap();
        let mut cursor = cursor(&reader);
        let writer = write(&space);
        read(&mut cursor, || ());
        writer.join().unwrap();
        assert_eq!(*cursor.try_read(10).unwrap(), 2);
    },
    mutants: &[
        weaken("HAZARD_PUBLISH_FENCE", RACE),
        weaken("HAZARD_SCAN_FENCE", RACE),
        weaken("HAZARD_ADMIT", RACE),
        weaken("EXCLUDE_END", RACE),
        weaken("HAZARD_RETRACT", RACE),
        weaken("HAZARD_SCAN", RACE),
        weaken("HAZARD_RETRACT_FENCE", DEADLOCK),
        weaken("HAZARD_TRANSFER_FENCE", DEADLOCK),
        drop_step(Step::ScanHazards, RACE),
        drop_step(Step::RefuseExcluded, RACE),
        drop_step(Step::UndoTransfer, DEADLOCK),
    ],
};

/// One reader that goes on to another VMA, one writer of the first.
pub(crate) const NEXT_VISIT: Model = Model {
    name: "next_visit",
    property: "a writer that sees the reader elsewhere sees that its reads are over",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = space();
        let reader = space.register().unwrap();
        let (mut first, mut second) = (cursor(&reader), reader.cursor());
        drop(second.try_read(30).unwrap());
        let writer = write(&space);
        read(&mut first, || ());
        assert_eq!(*second.try_read(30).unwrap(), 1);
        writer.join().unwrap();
    },
    mutants: &[weaken("HAZARD_SCAN", RACE)],
};

/// One reader that clones its guard and drops the first, one writer.
pub(crate) const CLONED: Model = Model {
    name: "cloned",
    property: "a VMA that was acquired once more, counted, is held until that is released",
    threads: 2,
    preemptions: None,
    run: || {
        let space = space();
        let reader = space.register().unwrap();
        let vma = reader.try_read(10).unwrap();
        let writer = write(&space);
        let again = vma.try_clone().unwrap();
        drop(vma);
        assert_eq!(*again, 1);
        drop(again);
        writer.join().unwrap();
    },
    mutants: &[
        weaken("READ_RELEASE", RACE),
        weaken("HAZARD_SCAN", RACE),
        drop_step(Step::ScanHazards, RACE),
    ],
};

/// One reader that stays for a while, one thread that excludes twice.
pub(crate) const COUNTED_ONCE: Model = Model {
    name: "counted_once",
    property: "a reader that one exclusion has counted is not counted by the next, and makes one put",
    threads: 2,
    preemptions: None,
    run: || {
        let space = space();
        let reader = space.register().unwrap();
        let vma = reader.try_read(10).unwrap();
        let excluder = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                drop(space.exclude(10..20).unwrap());
                *space.edit().unwrap().write(10).unwrap() = 2;
            }
        });
        assert_eq!(*vma, 1);
        drop(vma);
        excluder.join().unwrap();
    },
    mutants: &[drop_step(Step::SkipTransferred, DEADLOCK)],
};

/// One reader, one writer that does not want to wait.
pub(crate) const NOT_IDLE: Model = Model {
    name: "not_idle",
    property: "a VMA that counts nobody is taken for idle only if nobody has published a visit",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = space();
        let reader = space.register().unwrap();
        let mut cursor = cursor(&reader);
        let writer = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                let mut edit = space.edit().unwrap();
                if let Ok(mut vma) = edit.try_write(10) {
                    *vma = 2;
                }
            }
        });
        read(&mut cursor, || ());
        writer.join().unwrap();
        // Whoever was counted has made its put.
        assert!(space.edit().unwrap().try_write(10).is_ok());
    },
    mutants: &[drop_step(Step::ScanIdle, RACE), drop_step(Step::ScanHazards, RACE)],
};

/// One reader that gives its record up, one writer.
pub(crate) const GIVEN_UP: Model = Model {
    name: "given_up",
    property: "a writer that finds nobody registered sees that the last reader's reads are over",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = space();
        let reader = space.register().unwrap();
        let mut cursor = cursor(&reader);
        let writer = write(&space);
        read(&mut cursor, || ());
        drop(reader);
        writer.join().unwrap();
    },
    mutants: &[weaken("RECORD_TEST", RACE)],
};

/// Two readers, one after the other in the same record, one writer.
pub(crate) const TAKEN_OVER: Model = Model {
    name: "taken_over",
    property: "whoever takes a record over finds its hazards empty, and a mark that is left in it is made up for once",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = space();
        let reader = space.register().unwrap();
        let vma = reader.try_read(10).unwrap();
        let next = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                *space.edit().unwrap().write(10).unwrap() = 2;
                let reader = space.register().unwrap();
                assert_eq!(*reader.try_read(10).unwrap(), 2);
            }
        });
        assert_eq!(*vma, 1);
        drop(vma);
        drop(reader);
        next.join().unwrap();
        assert!(space.edit().unwrap().try_write(10).is_ok());
    },
    mutants: &[drop_step(Step::ScanHazards, RACE)],
};

/// One reader that registers, one writer.
pub(crate) const REGISTER: Model = Model {
    name: "register",
    property: "a reader registers before a write lock and is seen, or after it and sees it",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = space();
        let writer = write(&space);
        let reader = space.register().unwrap();
        if let Ok(vma) = reader.try_read(10) {
            assert!(*vma < 3);
        }
        writer.join().unwrap();
    },
    mutants: &[drop_step(Step::ScanHazards, RACE)],
};

/// One reader of a space, one editor that moves its slot to another space on the same slab, and
/// takes it away there too.
pub(crate) const ELSEWHERE: Model = Model {
    name: "elsewhere",
    property: "the writer of one space waits for the late registered reader of another",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
        mine.edit().unwrap().insert(10..20, 1).unwrap();
        let reader = mine.register().unwrap();
        let mut cursor = cursor(&reader);
        let editor = thread::spawn({
            let mine = Arc::clone(&mine);
            move || {
                mine.edit().unwrap().remove(10..20).unwrap();
                other.edit().unwrap().insert(10..20, 2).unwrap();
                other.edit().unwrap().remove(10..20).unwrap();
                other.edit().unwrap().insert(10..20, 2).unwrap();
                other
            }
        });
        if let Ok(vma) = cursor.try_read(10) {
            assert_eq!(*vma, 1, "{FOREIGN}");
        }
        editor.join().unwrap();
        assert_eq!(cursor.try_read(10).unwrap_err(), ReadError::NotMapped { addr: 10 });
    },
    mutants: &[
        drop_step(Step::CheckSpace, FOREIGN),
        drop_step(Step::ScanHazards, RACE),
        weaken("ATTACH_PUBLISH", RACE),
        weaken("HAZARD_ADMIT", RACE),
    ],
};

/// Write-locks the first VMA, and asks for barriers where the reader has no fences.
fn write_with(space: &Arc<AddressSpace<u32>>, barrier: &std::sync::Arc<Barrier>) -> JoinHandle<()> {
    let (space, barrier) = (Arc::clone(space), std::sync::Arc::clone(barrier));
    thread::spawn(move || {
        barrier.enroll();
        *space.edit().unwrap().write(10).unwrap() = 2;
    })
}

/// `PUBLISHED`, with barriers.
pub(crate) const BARRIER: Model = Model {
    name: "barrier",
    property: "a writer waits for the reader whose visit is published, or the reader sees that it has come",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let (space, barrier) = (space(), Barrier::new());
        // Others whom the writer meets first: one that fences, and one that has gone.
        let fences = space.register().unwrap();
        let gone = space.register().unwrap();
        barrier.enroll();
        let reader = space.register().unwrap();
        drop(gone);
        let mut cursor = cursor(&reader);
        let writer = write_with(&space, &barrier);
        read(&mut cursor, || barrier.pass());
        drop(fences);
        barrier.end();
        writer.join().unwrap();
        assert_eq!(*cursor.try_read(10).unwrap(), 2);
    },
    mutants: &[
        weaken("HAZARD_ADMIT", RACE),
        weaken("HAZARD_RETRACT", RACE),
        weaken("HAZARD_FREE", RACE),
        weaken("HAZARD_SCAN", RACE),
        drop_step(Step::BarrierToScan, RACE),
        drop_step(Step::BarrierToTransfer, DEADLOCK),
        drop_step(Step::UndoTransfer, DEADLOCK),
    ],
};

/// `NEXT_VISIT`, with barriers.
pub(crate) const BARRIER_NEXT_VISIT: Model = Model {
    name: "barrier_next_visit",
    property: "a writer that sees the reader elsewhere sees that its reads are over",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let (space, barrier) = (space(), Barrier::new());
        barrier.enroll();
        let reader = space.register().unwrap();
        let (mut first, mut second) = (cursor(&reader), reader.cursor());
        drop(second.try_read(30).unwrap());
        let writer = write_with(&space, &barrier);
        read(&mut first, || barrier.pass());
        drop(second.try_read(30).unwrap());
        barrier.end();
        writer.join().unwrap();
    },
    mutants: &[weaken("HAZARD_PUBLISH", RACE), weaken("HAZARD_SCAN", RACE)],
};

/// `GIVEN_UP`, with barriers.
pub(crate) const BARRIER_GIVEN_UP: Model = Model {
    name: "barrier_given_up",
    property: "a writer that finds nobody registered sees that the last reader's reads are over",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let (space, barrier) = (space(), Barrier::new());
        barrier.enroll();
        let reader = space.register().unwrap();
        let mut cursor = cursor(&reader);
        let writer = write_with(&space, &barrier);
        read(&mut cursor, || barrier.pass());
        drop(reader);
        barrier.end();
        writer.join().unwrap();
    },
    mutants: &[weaken("RECORD_GIVE_UP", RACE), weaken("RECORD_TEST", RACE)],
};

/// One reader that holds the VMA and looks it up again, one excluder.
pub(crate) const AGAIN: Model = Model {
    name: "again",
    property: "a lookup that is refused takes back its own visit, and no other of the same VMA",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let space = space();
        let reader = space.register().unwrap();
        let vma = reader.try_read(10).unwrap();
        let mut cursor = cursor(&reader);
        let writer = write(&space);
        drop(cursor.try_read(10));
        assert_eq!(*vma, 1);
        drop(vma);
        writer.join().unwrap();
    },
    mutants: &[drop_step(Step::ScanHazards, RACE)],
};

/// One reader that is late at a slot that becomes a reservation, and its owner.
pub(crate) const AT_A_RESERVATION: Model = Model {
    name: "at_a_reservation",
    property: "a reservation is filled when no registered reader looks at it any more",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let space = Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        let reader = space.register().unwrap();
        let mut cursor = cursor(&reader);
        space.edit().unwrap().remove(10..20).unwrap();
        let owner = thread::spawn({
            let space = Arc::clone(&space);
            move || {
                // In the slot that the cursor knows.
                let mut reservation = space.edit().unwrap().reserve(30..40).unwrap();
                reservation.commit(2).unwrap();
            }
        });
        if let Ok(vma) = cursor.try_read(35) {
            assert_eq!(*vma, 2);
        }
        owner.join().unwrap();
    },
    mutants: &[drop_step(Step::ScanHazards, RACE)],
};

/// One reader of a space that is late at a slot of another, which ends; the slot is used again.
pub(crate) const AT_THE_END: Model = Model {
    name: "at_the_end",
    property: "the end of a space waits for the late registered readers of others",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::new_in(1, slab);
        mine.edit().unwrap().insert(10..20, 1).unwrap();
        let reader = mine.register().unwrap();
        let mut cursor = cursor(&reader);
        mine.edit().unwrap().remove(10..20).unwrap();
        other.edit().unwrap().insert(10..20, 2).unwrap();
        let editor = thread::spawn({
            let mine = Arc::clone(&mine);
            move || {
                drop(other);
                mine.edit().unwrap().insert(30..40, 3).unwrap();
            }
        });
        drop(cursor.try_read(10));
        editor.join().unwrap();
    },
    mutants: &[drop_step(Step::ScanHazards, RACE), drop_step(Step::DrainOnDrop, RACE)],
};

/// A reader that registers with one space, and a writer of another on the same slab.
pub(crate) const REGISTER_ELSEWHERE: Model = Model {
    name: "register_elsewhere",
    property: "records are made and looked through by one thread at a time",
    threads: 2,
    preemptions: Some(3),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = AddressSpace::new_in(1, std::sync::Arc::clone(&slab));
        let other = Arc::new(AddressSpace::new_in(1, slab));
        mine.edit().unwrap().insert(10..20, 1).unwrap();
        other.edit().unwrap().insert(10..20, 1).unwrap();
        let first = mine.register().unwrap();
        let writer = thread::spawn({
            let other = Arc::clone(&other);
            move || *other.edit().unwrap().write(10).unwrap() = 2
        });
        let second = mine.register().unwrap();
        drop((first, second));
        writer.join().unwrap();
    },
    mutants: &[drop_step(Step::GuardRecords, RACE)],
};

//! Registered readers against writers and excluders of the VMAs that they read.
//!
//! Most readers have a cursor that remembers the VMA: other models are about walks.

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

/// A cursor that remembers the first VMA.
fn cursor<'r>(reader: &'r Reader<'r, u32>) -> ReaderCursor<'r, u32> {
    let mut cursor = reader.cursor();
    drop(cursor.try_read(10).unwrap());
    cursor
}

/// Reads the first VMA, if it is admitted; calls `around` before and after.
fn read(cursor: &mut ReaderCursor<'_, u32>, around: impl Fn()) {
    if let Ok(vma) = cursor.try_read(10) {
        around();
        assert!(*vma < 3);
        around();
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
    property: "a writer waits for the reader that has published, or the reader sees X",
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

/// A reader that reads one VMA and then another, and a writer of the first.
pub(crate) const NEXT_PUBLICATION: Model = Model {
    name: "next_publication",
    property: "a writer that sees another VMA published also sees the end of the reads before",
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

/// A reader that clones its guard and drops the first, and a writer.
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
    mutants: &[weaken("READ_RELEASE", RACE), weaken("HAZARD_SCAN", RACE)],
};

/// A reader that holds the VMA, and a thread that excludes it twice.
pub(crate) const TRANSFERRED_ONCE: Model = Model {
    name: "transferred_once",
    property: "a reader that one exclusion has transferred to the count is not transferred by the next",
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

/// One reader, and a writer that does not wait.
pub(crate) const NOT_IDLE: Model = Model {
    name: "not_idle",
    property: "a VMA that counts no reader is taken for idle only if no reader has published it",
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
        // A transferred reader has released its count.
        assert!(space.edit().unwrap().try_write(10).is_ok());
    },
    mutants: &[drop_step(Step::ScanIdle, RACE), drop_step(Step::ScanHazards, RACE)],
};

/// A reader that gives up its record, and a writer.
pub(crate) const GIVEN_UP: Model = Model {
    name: "given_up",
    property: "a writer that finds no registered reader also sees the end of the last one's reads",
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

/// Two readers that own the same record one after the other, and a writer.
pub(crate) const TAKEN_OVER: Model = Model {
    name: "taken_over",
    property: "the next owner of a record finds its hazard pointers free, and a transfer left there is undone once",
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

/// A reader that registers, and a writer.
pub(crate) const REGISTER: Model = Model {
    name: "register",
    property: "a writer sees a reader that registers, or the reader sees the write lock",
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

/// A reader of a space, and an editor that frees its slot, which another space uses twice.
pub(crate) const OTHER_SPACE: Model = Model {
    name: "other_space",
    property: "a writer of one space waits for a late registered reader of another",
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

/// Write-locks VMAs one after the other, with barriers in place of the fences that the reader
/// leaves out.
fn write_with(
    space: &Arc<AddressSpace<u32>>,
    vmas: &'static [usize],
    barrier: &std::sync::Arc<Barrier>,
) -> JoinHandle<()> {
    let (space, barrier) = (Arc::clone(space), std::sync::Arc::clone(barrier));
    thread::spawn(move || {
        barrier.enroll();
        for vma in vmas {
            *space.edit().unwrap().write(*vma).unwrap() = 2;
        }
    })
}

/// `PUBLISHED`, with barriers.
pub(crate) const BARRIER: Model = Model {
    name: "barrier",
    property: "a writer waits for the reader that has published, or the reader sees X",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let (space, barrier) = (space(), Barrier::new());
        // Records that the writer scans first: one whose owner fences, and one that was given up.
        let fences = space.register().unwrap();
        let gone = space.register().unwrap();
        barrier.enroll();
        let reader = space.register().unwrap();
        drop(gone);
        let mut cursor = cursor(&reader);
        let writer = write_with(&space, &[10], &barrier);
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

/// `NEXT_PUBLICATION`, with barriers.
pub(crate) const BARRIER_NEXT_PUBLICATION: Model = Model {
    name: "barrier_next_publication",
    property: "a writer that sees another VMA published also sees the end of the reads before",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let (space, barrier) = (space(), Barrier::new());
        barrier.enroll();
        let reader = space.register().unwrap();
        let (mut first, mut second) = (cursor(&reader), reader.cursor());
        drop(second.try_read(30).unwrap());
        let writer = write_with(&space, &[10], &barrier);
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
    property: "a writer that finds no registered reader also sees the end of the last one's reads",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let (space, barrier) = (space(), Barrier::new());
        barrier.enroll();
        let reader = space.register().unwrap();
        let mut cursor = cursor(&reader);
        let writer = write_with(&space, &[10], &barrier);
        read(&mut cursor, || barrier.pass());
        drop(reader);
        barrier.end();
        writer.join().unwrap();
    },
    mutants: &[weaken("RECORD_GIVE_UP", RACE), weaken("RECORD_TEST", RACE)],
};

/// A barrier that nobody has to pass.
fn passed() -> std::sync::Arc<Barrier> {
    let barrier = Barrier::new();
    barrier.end();
    barrier
}

/// A reader whose record is idle, as all are, reads one VMA and then another; a writer of `vmas`.
fn idle_reader(vmas: &'static [usize]) {
    let space = space();
    passed().enroll();
    let reader = space.register().unwrap();
    let (mut first, mut second) = (cursor(&reader), reader.cursor());
    drop(second.try_read(30).unwrap());
    for _ in 0..2 {
        *space.edit().unwrap().write(30).unwrap() = 1;
    }
    drop(space.try_read(30).unwrap()); // advances the watermark
    let barrier = Barrier::new();
    barrier.enroll();
    let writer = write_with(&space, vmas, &barrier);
    drop(second.try_read(30)); // counted, so it says nothing of the next
    read(&mut first, || barrier.pass());
    barrier.end();
    writer.join().unwrap();
}

/// A reader whose record is idle, and a writer.
pub(crate) const IDLE_READER: Model = Model {
    name: "idle_reader",
    property: "a writer that finds all records idle is seen by a reader that is idle no longer",
    threads: 2,
    preemptions: Some(3),
    run: || idle_reader(&[10]),
    mutants: &[
        weaken("RECORD_RESUME_FENCE", RACE),
        weaken("HAZARD_SCAN_FENCE", RACE),
        drop_step(Step::RetractIdle, RACE),
    ],
};

/// The same, and a writer that changes another VMA before.
pub(crate) const IDLE_NO_LONGER: Model = Model {
    name: "idle_no_longer",
    property: "a scan that sees that a record was resumed does not take it for idle",
    threads: 2,
    preemptions: Some(2),
    run: || idle_reader(&[30, 10]),
    mutants: &[weaken("RECORD_RESUME", RACE), weaken("RECORDS_BUSY", RACE)],
};

/// A reader, and a thread that changes another VMA and then the one that is read.
pub(crate) const MADE_IDLE: Model = Model {
    name: "made_idle",
    property: "a record becomes idle only while nothing is published there",
    threads: 2,
    preemptions: Some(2),
    run: || {
        let (space, barrier) = (space(), Barrier::new());
        barrier.enroll();
        let reader = space.register().unwrap();
        let mut cursor = reader.cursor();
        let writer = write_with(&space, &[30, 10], &barrier);
        for _ in 0..2 {
            read(&mut cursor, || barrier.pass());
        }
        barrier.end();
        writer.join().unwrap();
    },
    mutants: &[
        drop_step(Step::KeepBusy, RACE),
        drop_step(Step::RetractIdle, RACE),
        drop_step(Step::BarrierToScan, RACE),
    ],
};

/// A late reader of a slot that another space has, which gives up its record; a thread that scans
/// in its space, and an editor of the other.
pub(crate) const GIVEN_UP_OTHER_SPACE: Model = Model {
    name: "given_up_other_space",
    property: "an editor that need not scan sees the end of the reads that the scan before has seen",
    threads: 3,
    preemptions: Some(1),
    run: || {
        let slab = std::sync::Arc::new(Slab::new());
        let mine = Arc::new(AddressSpace::new_in(1, std::sync::Arc::clone(&slab)));
        let other = AddressSpace::new_in(1, slab);
        mine.edit().unwrap().insert(30..40, 1).unwrap();
        mine.edit().unwrap().insert(10..20, 1).unwrap();
        passed().enroll();
        let reader = mine.register().unwrap();
        let mut cursor = cursor(&reader);
        mine.edit().unwrap().remove(10..20).unwrap();
        other.edit().unwrap().insert(10..20, 2).unwrap();
        drop(reader.try_read(30).unwrap()); // idle no longer
        let barrier = Barrier::new();
        barrier.enroll();
        let writer = write_with(&mine, &[30], &barrier);
        let editor = thread::spawn({
            let barrier = std::sync::Arc::clone(&barrier);
            move || {
                barrier.enroll();
                other.edit().unwrap().remove(10..20).unwrap();
                other.edit().unwrap().insert(10..20, 2).unwrap();
            }
        });
        drop(cursor.try_read(10));
        drop(reader);
        barrier.end();
        writer.join().unwrap();
        editor.join().unwrap();
    },
    mutants: &[
        weaken("RECORDS_IDLE", RACE),
        weaken("RECORDS_TEST_IDLE", RACE),
        drop_step(Step::ScanHazards, RACE),
    ],
};

/// A reader that holds the VMA and looks it up again, and a writer.
pub(crate) const HELD_TWICE: Model = Model {
    name: "held_twice",
    property: "a refused lookup retracts its own publication, and no other of the same VMA",
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

/// A late reader of a slot that becomes a reservation, and the owner of that.
pub(crate) const LATE_AT_RESERVATION: Model = Model {
    name: "late_at_reservation",
    property: "a reservation is committed only when no registered reader has its slot published",
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
                // In the slot that the cursor remembers.
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

/// A late reader of a slot whose space, another than the reader's, is dropped; the slot is reused.
pub(crate) const LATE_AT_SPACE_END: Model = Model {
    name: "late_at_space_end",
    property: "the drop of a space waits for late registered readers of other spaces",
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
pub(crate) const REGISTER_OTHER_SPACE: Model = Model {
    name: "register_other_space",
    property: "records are made and scanned by one thread at a time",
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

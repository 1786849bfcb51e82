//! Readers against the write lock of one VMA. Two threads, all interleavings.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::{Cell, Model as Platform, SpaceSeq, VmaLock};
use pervma_models::ledger::Step;

use crate::harness::{Model, RACE, drop_step, weaken};

/// The failure that the January 2025 exchange is about.
const INSIDE: &str = "a write-locked VMA is read-locked";

/// A space reduced to one VMA with one field.
struct Vma {
    seq: SpaceSeq,
    lock: VmaLock,
    field: Cell<u32>,
    /// Raised while a writer has the VMA; loom's own atomic, read by read-modify-write, so that
    /// it orders nothing and shows the newest value.
    written: AtomicU32,
}

impl Vma {
    /// Attached in an edit that is over.
    fn attached() -> Arc<Self> {
        let vma = Self {
            seq: SpaceSeq::new(),
            lock: VmaLock::new(),
            field: Cell::new(0),
            written: AtomicU32::new(0),
        };
        let edit = vma.seq.begin();
        vma.lock.attach(edit);
        vma.seq.end(edit);
        Arc::new(vma)
    }

    /// One try of a reader; `read` runs if it was admitted.
    fn try_read<R>(&self, read: impl FnOnce(&Cell<u32>) -> R) -> Option<R> {
        let before = self.seq.glimpse();
        if self.lock.looks_locked(before) || self.lock.enter().is_err() {
            return None;
        }
        let unlocked = self.lock.unlocked(&self.seq);
        let read = unlocked.then(|| {
            assert_eq!(self.written.fetch_add(0, Relaxed), 0, "{INSIDE}");
            read(&self.field)
        });
        self.lock.leave::<Platform>();
        read
    }

    /// One edit; `write` runs while the VMA is write-locked.
    fn write(&self, write: impl FnOnce(&Cell<u32>)) {
        let edit = self.seq.begin();
        self.lock.exclude();
        assert!(self.lock.wait_alone::<Platform>(None));
        self.lock.mark_locked(edit);
        self.lock.readmit();
        self.written.fetch_add(1, Relaxed);
        write(&self.field);
        self.written.fetch_sub(1, Relaxed);
        self.seq.end(edit);
    }
}

fn get(field: &Cell<u32>) -> u32 {
    // SAFETY: what the models are about; loom reports it where it is wrong.
    field.with(|field| unsafe { *field })
}

fn set(field: &Cell<u32>) {
    // SAFETY: as in `get`.
    field.with_mut(|field| unsafe { *field = 1 });
}

/// One reader, one writer, no field: only who is admitted.
pub const ADMISSION: Model = Model {
    name: "admission",
    property: "nobody is admitted while a writer has the VMA",
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
    ],
};

/// One reader, one writer, one field.
pub const READ_AGAINST_WRITE: Model = Model {
    name: "read_against_write",
    property: "nobody is admitted while a writer has the VMA, and no field is read while it changes",
    preemptions: None,
    run: || {
        let vma = Vma::attached();
        let writer = thread::spawn({
            let vma = Arc::clone(&vma);
            move || vma.write(set)
        });
        if let Some(field) = vma.try_read(get) {
            assert!(field <= 1);
        }
        writer.join().unwrap();
        assert_eq!(vma.try_read(get), Some(1), "what the edit wrote is there");
    },
    mutants: &[
        weaken("READ_ADMIT", RACE),
        weaken("EXCLUDE_END", RACE),
        weaken("READ_PUT", RACE),
        weaken("EXCLUDE_WAIT", RACE),
        weaken("READ_SEQ", RACE),
        weaken("EDIT_END", RACE),
    ],
};

/// One reader, one writer with two edits of which only the first touches the VMA.
pub const READ_ACROSS_EDITS: Model = Model {
    name: "read_across_edits",
    property: "a reader that sees the number of the next edit also sees what the last one wrote",
    preemptions: None,
    run: || {
        let vma = Vma::attached();
        let writer = thread::spawn({
            let vma = Arc::clone(&vma);
            move || {
                vma.write(set);
                let next = vma.seq.begin();
                vma.seq.end(next);
            }
        });
        vma.try_read(get);
        writer.join().unwrap();
    },
    mutants: &[drop_step(Step::BeginByRmw, RACE), weaken("EDIT_END", RACE)],
};

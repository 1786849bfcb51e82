//! Readers against the write lock of one VMA.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::Step;
use pervma_models::internals::{Cell, Model as Platform, SpaceSeq, VmaLock};
use pervma_models::{AddressSpace, ReadError};

use crate::harness::{Model, RACE, drop_step, weaken};

/// The failure that the January 2025 exchange is about.
pub(crate) const INSIDE: &str = "a write-locked VMA is read-locked";
const OVER: &str = "more readers are inside than the count can hold";

/// A space reduced to one VMA with one field.
pub(crate) struct Vma {
    pub(crate) seq: SpaceSeq,
    pub(crate) lock: VmaLock,
    field: Cell<u32>,
    /// Raised while a writer has the VMA or it is detached; loom's own atomic, read by
    /// read-modify-write, so that it orders nothing and shows the newest value.
    pub(crate) written: AtomicU32,
}

impl Vma {
    /// Attached in an edit that is over.
    pub(crate) fn attached() -> Arc<Self> {
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
    pub(crate) fn try_read<R>(&self, read: impl FnOnce(&Cell<u32>) -> R) -> Option<R> {
        if self.lock.looks_locked(&self.seq) || self.lock.try_acquire().is_err() {
            return None;
        }
        let unlocked = self.lock.is_unlocked(&self.seq);
        let read = unlocked.then(|| {
            assert_eq!(self.written.fetch_add(0, Relaxed), 0, "{INSIDE}");
            read(&self.field)
        });
        self.lock.release::<Platform>();
        read
    }

    /// One edit; `write` runs while the VMA is write-locked.
    pub(crate) fn write(&self, write: impl FnOnce(&Cell<u32>)) {
        let edit = self.seq.begin();
        self.lock.exclude();
        assert!(self.lock.wait_drained::<Platform>(None));
        self.lock.lock_until_end_of(edit);
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

/// B6. One reader, one writer, one field.
pub(crate) const READ_AGAINST_WRITE: Model = Model {
    name: "read_against_write",
    property: "nobody is admitted while a writer has the VMA, and no field is read while it changes",
    threads: 2,
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
        weaken("READ_RELEASE", RACE),
        weaken("EXCLUDE_WAIT", RACE),
        weaken("READ_SEQ", RACE),
        weaken("EDIT_END", RACE),
        drop_step(Step::RefuseExcluded, RACE),
        drop_step(Step::LockBeforeClear, RACE),
        drop_step(Step::CheckEven, RACE),
    ],
};

/// A reader that learns from another, the writer itself, that the edit is over.
pub(crate) const SETTLED: Model = Model {
    name: "settled",
    property: "a reader that is told by another that an edit is over sees what it wrote",
    threads: 2,
    preemptions: None,
    run: || {
        let vma = Vma::attached();
        let writer = thread::spawn({
            let vma = Arc::clone(&vma);
            move || {
                vma.write(set);
                vma.try_read(get);
            }
        });
        vma.try_read(get);
        writer.join().unwrap();
    },
    mutants: &[
        weaken("READ_WATERMARK", RACE),
        weaken("WATERMARK_ADVANCE", RACE),
        weaken("READ_SEQ", RACE),
        weaken("EDIT_END", RACE),
        drop_step(Step::CheckEven, RACE),
    ],
};

/// One reader, one writer with two edits of which only the first touches the VMA.
pub(crate) const READ_ACROSS_EDITS: Model = Model {
    name: "read_across_edits",
    property: "a reader that sees the number of the next edit also sees what the last one wrote",
    threads: 2,
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
    mutants: &[weaken("READ_SEQ", RACE), weaken("EDIT_BEGIN", RACE), weaken("EDIT_END", RACE)],
};

/// Two readers, one writer.
pub(crate) const TWO_READERS: Model = Model {
    name: "two_readers",
    property: "a writer waits for the last reader, whichever that is, and sees the reads of both over",
    threads: 3,
    preemptions: Some(2),
    run: || {
        let vma = Vma::attached();
        let reader = thread::spawn({
            let vma = Arc::clone(&vma);
            move || vma.try_read(get)
        });
        let writer = thread::spawn({
            let vma = Arc::clone(&vma);
            move || vma.write(set)
        });
        vma.try_read(get);
        reader.join().unwrap();
        writer.join().unwrap();
    },
    mutants: &[
        weaken("READ_ADMIT", RACE),
        weaken("READ_RELEASE", RACE),
        weaken("EXCLUDE_WAIT", RACE),
        drop_step(Step::WaitForReaders, RACE),
        drop_step(Step::RefuseExcluded, RACE),
    ],
};

/// Counts a reader, if there is one.
fn count<G>(inside: &AtomicU32, acquired: Result<G, ReadError>) {
    match acquired {
        Ok(_guard) => {
            assert!(inside.fetch_add(1, Relaxed) < 3, "{OVER}");
            inside.fetch_sub(1, Relaxed);
        }
        Err(error) => assert_eq!(error, ReadError::Busy { addr: 10 }, "{OVER}"),
    }
}

/// B15g. As many readers as the count holds, and more.
pub(crate) const FULL: Model = Model {
    name: "full",
    property: "the count never holds more readers than its limit, and is never taken for X",
    threads: 3,
    preemptions: None,
    run: || {
        let space = std::sync::Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        // LIMIT is 4 here: 1 for the attachment, and three readers.
        let two = [(); 2].map(|()| space.try_read(10).unwrap());
        let inside = Arc::new(AtomicU32::new(2));
        let readers = [0, 1].map(|_| {
            let (space, inside) = (std::sync::Arc::clone(&space), Arc::clone(&inside));
            thread::spawn(move || count(&inside, space.try_read(10)))
        });
        count(&inside, two[0].try_clone());
        for reader in readers {
            reader.join().unwrap();
        }
        drop(two);
        assert!(space.edit().unwrap().try_write(10).is_ok(), "{OVER}");
    },
    mutants: &[drop_step(Step::RefuseFull, OVER), drop_step(Step::RefuseFullAgain, OVER)],
};

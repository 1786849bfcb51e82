//! Readers of one VMA against its write lock.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use pervma_models::internals::Step;
use pervma_models::internals::{Cell, Model as Platform, SpaceSeq, VmaLock};
use pervma_models::{AddressSpace, ReadError};

use crate::harness::{Model, RACE, drop_step, weaken};

/// The failure that READ_ADMIT prevents.
pub(crate) const BOTH: &str = "a write-locked VMA is read-locked";
const OVER: &str = "a VMA has more readers than the limit";

/// A space reduced to one VMA with one field.
pub(crate) struct Vma {
    pub(crate) seq: SpaceSeq,
    pub(crate) lock: VmaLock,
    field: Cell<u32>,
    /// 1 while a writer holds the VMA or it is detached, else 0. loom's own atomic, read by
    /// read-modify-write, so that it orders nothing and shows the newest value.
    pub(crate) written: AtomicU32,
}

impl Vma {
    /// A VMA that was attached in a completed edit.
    pub(crate) fn attached() -> Arc<Self> {
        let vma = Self {
            seq: SpaceSeq::new((), ()),
            lock: VmaLock::new(),
            field: Cell::new(0),
            written: AtomicU32::new(0),
        };
        let edit = vma.seq.begin();
        vma.lock.attach(edit);
        vma.seq.end(edit);
        Arc::new(vma)
    }

    /// Runs `read` on the field if the VMA can be read-locked.
    pub(crate) fn try_read<R>(&self, read: impl FnOnce(&Cell<u32>) -> R) -> Option<R> {
        if self.lock.looks_locked(&self.seq) || self.lock.try_acquire().is_err() {
            return None;
        }
        let unlocked = self.lock.is_unlocked(&self.seq);
        let read = unlocked.then(|| {
            assert_eq!(self.written.fetch_add(0, Relaxed), 0, "{BOTH}");
            read(&self.field)
        });
        self.lock.release::<Platform>();
        read
    }

    /// Makes one edit that write-locks the VMA and runs `write` on the field.
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
    // SAFETY: the models show that no writer runs meanwhile; loom reports one that does.
    field.with(|field| unsafe { *field })
}

fn set(field: &Cell<u32>) {
    // SAFETY: as in `get`, of readers too.
    field.with_mut(|field| unsafe { *field = 1 });
}

/// B6. One reader, one writer, one field.
pub(crate) const READ_AGAINST_WRITE: Model = Model {
    name: "read_against_write",
    property: "no reader is admitted while the VMA is write-locked, and no field is read while it changes",
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
        assert_eq!(vma.try_read(get), Some(1), "what the edit wrote is read");
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

/// A reader that learns from the watermark, which the writer advanced, that the edit has completed.
pub(crate) const WATERMARK: Model = Model {
    name: "watermark",
    property: "a reader that learns of a completed edit from the watermark sees what it wrote",
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

/// A reader, and a writer with two edits, of which only the first changes the VMA.
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
    property: "a writer waits for both readers, and their reads are over when it writes",
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
fn count<G>(held: &AtomicU32, acquired: Result<G, ReadError>) {
    match acquired {
        Ok(_guard) => {
            assert!(held.fetch_add(1, Relaxed) < 3, "{OVER}");
            held.fetch_sub(1, Relaxed);
        }
        Err(error) => assert_eq!(error, ReadError::Busy { addr: 10 }, "{OVER}"),
    }
}

/// B15g. As many readers as the limit allows, and more.
pub(crate) const FULL: Model = Model {
    name: "full",
    property: "the count never passes its limit, and never reaches X",
    threads: 3,
    preemptions: None,
    run: || {
        let space = std::sync::Arc::new(AddressSpace::new(1));
        space.edit().unwrap().insert(10..20, 1).unwrap();
        // LIMIT is 4 here: 1 for the attachment, and three readers.
        let two = [(); 2].map(|()| space.try_read(10).unwrap());
        let held = Arc::new(AtomicU32::new(2));
        let readers = [0, 1].map(|_| {
            let (space, held) = (std::sync::Arc::clone(&space), Arc::clone(&held));
            thread::spawn(move || count(&held, space.try_read(10)))
        });
        count(&held, two[0].try_clone());
        for reader in readers {
            reader.join().unwrap();
        }
        drop(two);
        assert!(space.edit().unwrap().try_write(10).is_ok(), "{OVER}");
    },
    mutants: &[drop_step(Step::RefuseFull, OVER), drop_step(Step::RefuseFullAgain, OVER)],
};

//! The lock on the futex, which is the mmap lock of the default platform on Linux.

use loom::sync::Arc;
use loom::thread;
use pervma_models::internals::Step;
use pervma_models::internals::{Cell, FutexLock, Left};

use crate::harness::{DEADLOCK, Model, RACE, drop_step, weaken};

/// A lock and what it guards.
struct Guarded {
    lock: FutexLock,
    field: Cell<u32>,
}

impl Guarded {
    fn new() -> Arc<Self> {
        Arc::new(Self { lock: FutexLock::new(), field: Cell::new(0) })
    }

    /// Adds 1 to the field, for a thread that holds the lock for writing.
    fn add(&self) {
        // SAFETY: the models show that no other thread reads or writes it; loom reports one.
        self.field.with_mut(|field| unsafe { *field += 1 });
    }

    /// The field, for a thread that holds the lock.
    fn get(&self) -> u32 {
        // SAFETY: as in `add`, of writers.
        self.field.with(|field| unsafe { *field })
    }

    fn add_locked(&self) {
        self.lock.lock_exclusive();
        self.add();
        self.lock.unlock_exclusive();
    }

    /// As [`add_locked`](Self::add_locked), unless it takes longer than `first` lasts; what it has
    /// added.
    fn add_locked_within(&self, first: Left) -> u32 {
        let mut left = [first].into_iter();
        if !self.lock.lock_exclusive_while(|| left.next().unwrap_or(Left::Nothing)) {
            return 0;
        }
        self.add();
        self.lock.unlock_exclusive();
        1
    }

    fn get_locked(&self) -> u32 {
        self.lock.lock_shared();
        let field = self.get();
        self.lock.unlock_shared();
        field
    }
}

/// Two writers.
pub(crate) const WRITERS: Model = Model {
    name: "mmap_lock_writers",
    property: "one writer at a time has the lock, it sees what the last one wrote, and each comes to its turn",
    threads: 2,
    preemptions: None,
    run: || {
        let guarded = Guarded::new();
        let other = thread::spawn({
            let guarded = Arc::clone(&guarded);
            move || guarded.add_locked()
        });
        guarded.add_locked();
        other.join().unwrap();
        assert_eq!(guarded.get_locked(), 2);
    },
    mutants: &[
        weaken("LOCK_ACQUIRE", RACE),
        weaken("LOCK_RELEASE", RACE),
        drop_step(Step::WakeNext, DEADLOCK),
    ],
};

/// Three writers, two of which may sleep.
pub(crate) const THREE_WRITERS: Model = Model {
    name: "mmap_lock_three_writers",
    property: "a thread that was woken leaves none asleep behind it",
    threads: 3,
    preemptions: Some(2),
    run: || {
        let guarded = Guarded::new();
        let others = [(); 2].map(|()| {
            let guarded = Arc::clone(&guarded);
            thread::spawn(move || guarded.add_locked())
        });
        guarded.add_locked();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(guarded.get_locked(), 3);
    },
    mutants: &[drop_step(Step::KeepWaiting, DEADLOCK)],
};

/// A reader and a writer.
pub(crate) const READER: Model = Model {
    name: "mmap_lock_reader",
    property: "no writer has the lock while a reader has it, and a writer is woken by the last reader",
    threads: 2,
    preemptions: None,
    run: || {
        let guarded = Guarded::new();
        let reader = thread::spawn({
            let guarded = Arc::clone(&guarded);
            move || guarded.get_locked()
        });
        guarded.add_locked();
        assert!(reader.join().unwrap() <= 1);
    },
    mutants: &[
        weaken("LOCK_RELEASE_SHARED", RACE),
        weaken("LOCK_RELEASE", RACE),
        weaken("LOCK_ACQUIRE", RACE),
        drop_step(Step::WakeNext, DEADLOCK),
    ],
};

/// A writer becomes a reader, and waits for another reader.
pub(crate) const JOINED: Model = Model {
    name: "mmap_lock_joined",
    property: "a writer that becomes a reader lets readers join it, and they see what it wrote",
    threads: 2,
    preemptions: None,
    run: || {
        let guarded = Guarded::new();
        guarded.lock.lock_exclusive();
        let reader = thread::spawn({
            let guarded = Arc::clone(&guarded);
            move || guarded.get_locked()
        });
        guarded.add();
        guarded.lock.downgrade();
        assert_eq!(reader.join().unwrap(), 1);
        guarded.lock.unlock_shared();
        guarded.add_locked();
    },
    mutants: &[
        weaken("LOCK_DOWNGRADE", RACE),
        weaken("LOCK_ACQUIRE", RACE),
        drop_step(Step::PassOn, DEADLOCK),
    ],
};

/// A thread that takes the lock again and again, and one that waits for it.
pub(crate) const WOKEN_IN_VAIN: Model = Model {
    name: "mmap_lock_woken_in_vain",
    property: "a thread that was woken in vain is not overtaken by one that comes later",
    threads: 2,
    preemptions: Some(4),
    run: || {
        let guarded = Guarded::new();
        let other = thread::spawn({
            let guarded = Arc::clone(&guarded);
            move || guarded.add_locked()
        });
        for _ in 0..3 {
            guarded.add_locked();
        }
        other.join().unwrap();
        assert_eq!(guarded.get_locked(), 4);
    },
    mutants: &[drop_step(Step::GiveWay, "overtakes another that was woken in vain")],
};

/// A writer whose time is up when it is woken, and one that goes on sleeping.
pub(crate) const GIVES_UP_WOKEN: Model = Model {
    name: "mmap_lock_gives_up_woken",
    property: "a thread that was woken too late leaves none asleep behind it",
    threads: 3,
    preemptions: Some(3),
    run: || {
        let guarded = Guarded::new();
        guarded.lock.lock_exclusive();
        let gives_up = thread::spawn({
            let guarded = Arc::clone(&guarded);
            move || guarded.add_locked_within(Left::Any)
        });
        let other = thread::spawn({
            let guarded = Arc::clone(&guarded);
            move || guarded.add_locked()
        });
        guarded.lock.unlock_exclusive();
        guarded.add_locked();
        other.join().unwrap();
        let added = gives_up.join().unwrap();
        assert_eq!(guarded.get_locked(), 2 + added);
    },
    mutants: &[drop_step(Step::HandOn, DEADLOCK)],
};

/// A writer gives up while a reader has the lock, and another reader came after it.
pub(crate) const GIVES_UP_READERS: Model = Model {
    name: "mmap_lock_gives_up_readers",
    property: "when a writer has given up, readers join others again",
    threads: 3,
    preemptions: Some(4),
    run: || {
        let guarded = Guarded::new();
        guarded.lock.lock_shared();
        let gives_up = thread::spawn({
            let guarded = Arc::clone(&guarded);
            move || guarded.add_locked_within(Left::Time(()))
        });
        let reader = thread::spawn({
            let guarded = Arc::clone(&guarded);
            move || guarded.get_locked()
        });
        assert_eq!(reader.join().unwrap(), 0);
        guarded.lock.unlock_shared();
        let added = gives_up.join().unwrap();
        assert_eq!(guarded.get_locked(), added);
    },
    mutants: &[drop_step(Step::HandOn, DEADLOCK)],
};

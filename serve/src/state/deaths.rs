//! What a process has done to memory that outlives it, in steps: so a test can have it die behind
//! each of them, and see what the next one finds.
//!
//! A process of a test is a part of the test's thread, and its descriptors have numbers from
//! [`FIRST`] on, as in a table of its own: the next one has them by the same numbers.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::{fcntl_dupfd_cloexec, pwrite};

use super::descriptors::Descriptors;
use super::memory::{Memory, PAGE};

/// The lowest number of a descriptor that outlives a process. Others of the tests are lower.
const FIRST: i32 = 600;

/// What is done, all or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A file of so many words is there.
    Opened(i32, usize),
    /// A word of a file is this.
    Stored(i32, usize, u64),
    Closed(i32),
    /// The kernel has written a message, or bytes that were sent: words of a file, and has opened
    /// descriptors for them. It tells of neither again.
    Told {
        words: Vec<(i32, usize, u64)>,
        opened: Vec<i32>,
        what: u64,
        count: usize,
    },
}

/// Pages of a file, as far as something was stored there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct File {
    words: usize,
    pages: BTreeMap<usize, Vec<u8>>,
}

/// What outlives a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    /// Files, by the numbers of their descriptors.
    files: BTreeMap<i32, File>,
    /// Other descriptors.
    others: BTreeSet<i32>,
    /// What the kernel has told of, and how much.
    told: BTreeMap<u64, usize>,
}

impl Image {
    /// Does a step; whether that changes anything.
    pub(crate) fn apply(&mut self, step: &Step) -> bool {
        match step {
            &Step::Opened(file, words) => {
                let before = self.files.insert(file, File { words, pages: BTreeMap::new() });
                assert_eq!(before, None, "it was open");
                true
            }
            &Step::Stored(file, at, value) => {
                let file = self.files.get_mut(&file).expect("it is open");
                let page = file.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE * 8]);
                let word = &mut page[at % PAGE * 8..][..8];
                let changes = *word != value.to_ne_bytes();
                word.copy_from_slice(&value.to_ne_bytes());
                changes
            }
            Step::Closed(number) => {
                self.files.remove(number).is_some() | self.others.remove(number)
            }
            Step::Told { words, opened, what, count } => {
                for &(file, at, value) in words {
                    self.apply(&Step::Stored(file, at, value));
                }
                self.others.extend(opened);
                *self.told.entry(*what).or_default() += count;
                true
            }
        }
    }

    pub(crate) fn told(&self, what: u64) -> usize {
        self.told.get(&what).copied().unwrap_or_default()
    }

    /// The descriptors of files.
    pub(crate) fn files(&self) -> impl Iterator<Item = i32> {
        self.files.keys().copied()
    }

    /// All of its descriptors, by their numbers, for the next process. What is `kept` is mapped
    /// as before.
    pub(crate) fn descriptors(&self, kept: Option<&Memory>) -> Descriptors {
        let mut open = Descriptors::default();
        for (&number, file) in &self.files {
            if let Some(kept) = kept.filter(|kept| kept.descriptor() == number) {
                file.write(kept.file().unwrap());
                continue;
            }
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let memory = memfd_create("pervma-state", flags).unwrap();
            ftruncate(&memory, file.words as u64 * 8).unwrap();
            fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).unwrap();
            file.write(memory.as_fd());
            open.give(at(number, &memory));
        }
        for &number in &self.others {
            open.give(at(number, &OwnedFd::from(fs::File::open("/dev/null").unwrap())));
        }
        open
    }
}

impl File {
    fn write(&self, to: BorrowedFd<'_>) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(to, hole, 0, self.words as u64 * 8).unwrap();
        for (page, bytes) in &self.pages {
            assert_eq!(pwrite(to, bytes, (page * PAGE * 8) as u64), Ok(bytes.len()));
        }
    }
}

fn at(number: i32, descriptor: &OwnedFd) -> OwnedFd {
    let descriptor = fcntl_dupfd_cloexec(descriptor, number).unwrap();
    assert_eq!(descriptor.as_raw_fd(), number, "it is used by somebody else");
    descriptor
}

std::thread_local! {
    static STEPS: RefCell<Option<Vec<Step>>> = const { RefCell::new(None) };
}

/// Those who have descriptors from [`FIRST`] on: one at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a process does until it dies, or has come to the end of this.
pub(crate) fn steps<T>(process: impl FnOnce() -> T) -> (T, Vec<Step>) {
    STEPS.set(Some(Vec::new()));
    let what = process();
    (what, STEPS.take().unwrap_or_default())
}

/// The steps so far.
pub(crate) fn count() -> usize {
    STEPS.with_borrow(|steps| steps.as_ref().map_or(0, Vec::len))
}

fn push(step: Step) {
    STEPS.with_borrow_mut(|steps| steps.as_mut().map(|steps| steps.push(step)));
}

/// The kernel tells so much of something by this. What is stored meanwhile is written by it.
pub(crate) fn tell<T>(what: u64, count: usize, by: impl FnOnce() -> (T, Vec<i32>)) -> T {
    let before = STEPS.take();
    let ((told, opened), steps) = self::steps(by);
    STEPS.set(before);
    let word = |step| match step {
        Step::Stored(file, at, value) => (file, at, value),
        other => panic!("the kernel does no such thing: {other:?}"),
    };
    push(Step::Told { words: steps.into_iter().map(word).collect(), opened, what, count });
    told
}

/// What is done if each of the `early` steps is done before the last one of the `late` ones that
/// come before it: by a program that is not careful.
pub(crate) fn earlier(
    all: Vec<Step>,
    early: impl Fn(&Step) -> bool,
    late: impl Fn(&Step) -> bool,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for step in all.iter().cloned() {
        let before = steps.iter().rposition(&late).filter(|_| early(&step));
        steps.insert(before.unwrap_or(steps.len()), step);
    }
    assert_ne!(steps, all, "there is no such order");
    steps
}

/// A descriptor that the kernel opens.
pub(crate) fn opens() -> OwnedFd {
    fcntl_dupfd_cloexec(fs::File::open("/dev/null").unwrap(), FIRST).unwrap()
}

/// Closes a descriptor that is no file's.
pub(crate) fn closes(descriptor: OwnedFd) {
    push(Step::Closed(descriptor.as_raw_fd()));
}

/// A file that was just made: as one of the process that is recorded, if there is one.
pub(super) fn made(file: OwnedFd) -> OwnedFd {
    if STEPS.with_borrow(Option::is_none) {
        return file;
    }
    fcntl_dupfd_cloexec(file, FIRST).unwrap()
}

pub(super) fn opened(memory: &Memory) {
    push(Step::Opened(memory.descriptor(), memory.len()));
}

pub(super) fn stored(memory: &Memory, at: usize, value: u64) {
    if memory.descriptor() >= 0 {
        push(Step::Stored(memory.descriptor(), at, value));
    }
}

/// The kernel has written what was sent: from this word on.
pub(super) fn received(memory: &Memory, first: usize) {
    if STEPS.with_borrow(Option::is_some) {
        let word = |at| (memory.descriptor(), at, memory.load(at));
        let words = (first..memory.len()).map(word).collect();
        push(Step::Told { words, opened: vec![], what: 0, count: 1 });
    }
}

pub(super) fn closed(memory: &Memory) {
    if memory.descriptor() >= 0 {
        push(Step::Closed(memory.descriptor()));
    }
}

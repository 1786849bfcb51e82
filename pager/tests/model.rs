//! Random sequences of everything that can be done to a region, beside plain arrays: at each
//! granule, in each mode, of files and of memory, with a bound or without. Then the same by several
//! threads, each in a part of its own, whose granules reach into the others' parts.
//!
//! `PERVMA_MODEL_SEED` plays the one sequence that a failure names (`granule mode seed`);
//! `PERVMA_MODEL_TIMES` multiplies how many are played.
//!
//! # What it cannot produce
//!
//! Each with who does, and why that is enough.
//!
//! - Accesses that must die: of what is unmapped or closed (`forbidden_accesses_are_sigsegv`),
//!   beyond a bound that is full (`bound.rs`). Each of them ends a process; here each access
//!   succeeds, or is one of those that return an error, by the same path.
//! - Sources that fail, are shortened or refuse writes by turns: what is lost then is no function
//!   of the sequence. `live.rs`, `descriptors.rs` and `bound.rs` have those one by one, and
//!   `soak.rs` beside everything else: a disk that is full for a while is judged there by a plain
//!   array too, since what cannot be stored stays.
//! - A file that is changed under present pages: old bytes and new ones are both right until the
//!   pages are discarded. Here it is changed, and they are discarded before a thread looks.
//! - What an application may not do to a region's memory (`munmap`, `MADV_DONTNEED`, its own
//!   `mprotect`): the records are wrong afterwards. `seams.rs` holds that others do not suffer.
//! - Pages of hugetlbfs, which most machines have none of (the tests named `huge`): they take the
//!   same way but for their size, cannot be moved, and are not kept when they have gone.
//! - Pages that devices hold longer than a call lasts (`pinned.rs`; for the time of a call,
//!   `soak.rs`): when they are let go is no function of the sequence.
//! - Forks (`signals.rs`, `soak.rs`): a child has no region, so none of its steps can be compared,
//!   and those of its parent are as without. Signals (`signals.rs`): a handler may touch regions
//!   and do nothing else to them.
//! - Filters (`refused.rs`, each call in turn; `soak.rs`, judged by a plain array): what an
//!   operation does is decided before its first call that may be refused, or undone.
//! - Pins beside other threads in a region with a bound: those and what may not be read could leave
//!   an access nothing (`pins.rs`).
//! - Pages that are far apart: `far.rs`, by the same steps beside a map of what was written.
//! - Two threads that write the same bytes, or change the same pages: `shared.rs` and `soak.rs`.
//!   What is right then is not one value; here each thread has pages of its own, whose granules and
//!   mappings reach into those of others.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "a hook says which sequence it was")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};

use common::{Ask, MODES, Mode, PAGE};
use pervma_pager::sys::Access;
use pervma_pager::{
    Bound, Error, Failure, FileSource, Handlers, MemorySource, OnFailure, Options, Refusal, Region,
    Response,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A granule, and how many pages the regions have that are filled by such.
struct Size {
    granule: usize,
    pages: usize,
    /// Sequences of one thread for each mode, and of several.
    times: [u64; 2],
}

const SIZES: [Size; 3] = [
    Size { granule: 1, pages: 80, times: [750, 250] },
    Size { granule: 16, pages: 160, times: [750, 250] },
    Size { granule: 512, pages: 1200, times: [60, 25] },
];
/// Of one thread.
const STEPS: usize = 30;
/// Pages of a region that shares a bound.
const OTHERS: usize = 64;

/// What is being played: the granule in pages, the mode and the seed.
static PLAYED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Fills with bytes that are random enough, and cost no time.
fn fill(random: &mut StdRng, bytes: &mut [u8]) {
    static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| common::random_bytes(8 << 20, 1));
    let start = random.random_range(0..POOL.len() - bytes.len());
    bytes.copy_from_slice(&POOL[start..][..bytes.len()]);
}

/// A file that takes no disk.
fn memory_file(content: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("model", flags).unwrap());
    file.write_all_at(content, 0).unwrap();
    file
}

/// Writes to standard error; legal in a signal handler.
fn say(text: &[u8]) {
    // SAFETY: the kernel reads the text.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

fn say_number(number: u64) {
    let mut digits = [b'0'; 20];
    let (mut rest, mut start) = (number, digits.len() - 1);
    while rest > 9 {
        digits[start] += (rest % 10) as u8;
        (rest, start) = (rest / 10, start - 1);
    }
    digits[start] += rest as u8;
    say(&digits[start..]);
}

fn say_what_is_played() {
    say(b"PERVMA_MODEL_SEED='");
    for (word, behind) in PLAYED.iter().zip([" ", " ", "'\n"]) {
        say_number(word.load(Relaxed));
        say(behind.as_bytes());
    }
}

/// An access has failed that should not. Runs in a signal handler.
fn tell_and_die(_: &Failure) -> Response {
    say_what_is_played();
    // SAFETY: ends the process.
    unsafe { libc::_exit(1) }
}

/// Whether what a protection lets through has what is needed.
fn lets(access: Access, needed: Access) -> bool {
    access == needed
        || access == Access::ReadWrite
        || access == Access::ReadExecute && needed == Access::Read
}

/// What there is of a region, as plain arrays: of some of its pages, which only its thread changes.
struct Part {
    pages: Range<usize>,
    /// What a read shows, from the start of the region on.
    shown: Vec<u8>,
    /// What the source has; with a bound, as far as it is known.
    stored: Vec<u8>,
    /// What may be accessed; `None` where nothing is mapped.
    access: Vec<Option<Access>>,
    /// Written since they were last stored.
    dirty: BTreeSet<usize>,
    /// Perhaps written, with the bytes that they had: by a lock, which breaks what is shared.
    perhaps: BTreeSet<usize>,
    /// What a page has held since it was last known to be stored: with a bound, any of it may be.
    versions: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Written at some time: handler threads may let a thread write once more that has gone on.
    let_be_written: BTreeSet<usize>,
    /// Several threads may sleep for a granule, and several may serve them.
    has_late_faults: bool,
    is_writable: bool,
    is_bounded: bool,
    /// No other thread has a part of the region.
    is_alone: bool,
    can_store: bool,
    file: Option<File>,
}

impl Part {
    fn opened(&self) -> Access {
        if self.is_writable { Access::ReadWrite } else { Access::Read }
    }

    /// A few of its pages that the region has, or all of them.
    fn some_pages(&self, len: usize, random: &mut StdRng) -> Option<Range<usize>> {
        let end = self.pages.end.min(len.div_ceil(PAGE));
        if self.pages.start >= end {
            return None;
        }
        let start = random.random_range(self.pages.start..end);
        let most = match random.random_range(0..4) {
            0 => 1,
            1 => 4,
            2 => 20,
            _ => end - start,
        };
        Some(start..(start + random.random_range(1..=most)).min(end))
    }

    /// As an argument: the last page may be a part.
    fn range(pages: &Range<usize>, len: usize) -> Range<usize> {
        pages.start * PAGE..(pages.end * PAGE).min(len)
    }

    /// Some bytes whose pages can be accessed like that.
    fn some_bytes(&self, len: usize, needed: Access, random: &mut StdRng) -> Option<Range<usize>> {
        let pages = self.some_pages(len, random)?;
        let fits = |page: &usize| self.access[*page].is_some_and(|access| lets(access, needed));
        let pages = pages.start..pages.start + pages.take_while(fits).count();
        if pages.is_empty() {
            return None;
        }
        let whole = Self::range(&pages, len);
        let start = random.random_range(whole.clone());
        let most = if random.random() { 16 } else { 3 * PAGE };
        Some(start..(start + random.random_range(1..=most)).min(whole.end))
    }

    fn is_mapped(&self, pages: &Range<usize>) -> [bool; 2] {
        let mut mapped = pages.clone().map(|page| self.access[page].is_some());
        [mapped.clone().all(|mapped| mapped), mapped.any(|mapped| mapped)]
    }

    /// What the source has of a page.
    fn on_disk(&self, page: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; PAGE.min(self.stored.len() - page * PAGE)];
        self.file.as_ref()?.read_exact_at(&mut bytes, (page * PAGE) as u64).unwrap();
        Some(bytes)
    }

    /// Takes over what the source has of a page, which was shorter when it was stored last.
    fn learn_rest(&mut self, page: usize, from: usize) {
        if !self.is_bounded || !self.dirty.contains(&page) {
            return;
        }
        let Some(found) = self.on_disk(page) else { return };
        let within = from - page * PAGE;
        self.assert_known(page, &found, within);
        self.stored[from..page * PAGE + found.len()].copy_from_slice(&found[within..]);
    }

    /// What was stored of a page, from some byte on, it has held since it was last known to be
    /// stored: each byte for itself, since it may have been stored in the middle of a write.
    fn assert_known(&self, page: usize, found: &[u8], from: usize) {
        let stored = &self.stored[page * PAGE..][..found.len()];
        if found[from..] == stored[from..] {
            return;
        }
        let versions = self.versions.get(&page).map_or(&[][..], Vec::as_slice);
        let is_known = |at: &usize| {
            found[*at] == stored[*at] || versions.iter().any(|version| version[*at] == found[*at])
        };
        let unknown = (from..found.len()).find(|at| !is_known(at));
        assert_eq!(unknown, None, "page {page} was stored as it never was");
    }

    /// A page has gone: what shows from now on is what the source has.
    fn lose(&mut self, page: usize) {
        let at = page * PAGE..((page + 1) * PAGE).min(self.stored.len());
        if self.is_bounded && self.dirty.contains(&page) {
            let found = self.on_disk(page).unwrap();
            self.assert_known(page, &found, 0);
            self.stored[at.clone()].copy_from_slice(&found);
        }
        self.shown[at.clone()].copy_from_slice(&self.stored[at]);
        self.forget(page);
    }

    fn forget(&mut self, page: usize) {
        self.dirty.remove(&page);
        self.perhaps.remove(&page);
        self.versions.remove(&page);
    }

    fn check(&self, region: &Region, at: Range<usize>) {
        let mut found = vec![0; at.len()];
        region.read(at.start, &mut found);
        if found != self.shown[at.clone()] {
            let wrong = at.clone().zip(&found).find(|(at, byte)| self.shown[*at] != **byte);
            panic!("a read of {at:#x?} shows {wrong:#x?}, not {:#x}", self.shown[wrong.unwrap().0]);
        }
    }

    fn write(&mut self, at: &Range<usize>, len: usize) {
        for page in at.start / PAGE..at.end.div_ceil(PAGE) {
            self.dirty.insert(page);
            if self.has_late_faults {
                self.let_be_written.insert(page);
            }
            if self.is_bounded {
                let whole = page * PAGE..((page + 1) * PAGE).min(self.shown.len());
                let mut version = self.stored[whole.clone()].to_vec();
                let inside = whole.end.min(len) - whole.start;
                version[..inside].copy_from_slice(&self.shown[whole][..inside]);
                self.versions.entry(page).or_default().push(version);
            }
        }
    }

    /// One random step.
    fn step(&mut self, region: &Region, random: &mut StdRng) {
        let len = region.len();
        let Some(pages) = self.some_pages(len, random) else { return };
        let range = Self::range(&pages, len);
        let [all, any] = self.is_mapped(&pages);
        match random.random_range(0..130) {
            0..25 => {
                if let Some(at) = self.some_bytes(len, Access::Read, random) {
                    self.check(region, at);
                }
            }
            25..45 if self.is_writable => {
                if let Some(at) = self.some_bytes(len, Access::ReadWrite, random) {
                    fill(random, &mut self.shown[at.clone()]);
                    self.write(&at, len);
                    region.write(at.start, &self.shown[at]);
                }
            }
            45..53 => match region.discard(range) {
                Ok(()) => {
                    assert!(any, "nothing was mapped");
                    self.lose_mapped(pages);
                }
                Err(error) => assert!(!any && matches!(error, Error::NotMapped(_)), "{error}"),
            },
            53..60 => match region.unmap(range) {
                Ok(()) => {
                    assert!(any, "nothing was mapped");
                    self.lose_mapped(pages.clone());
                    self.access[pages].fill(None);
                }
                Err(error) => assert!(!any && matches!(error, Error::NotMapped(_)), "{error}"),
            },
            60..68 => match region.map(range) {
                Ok(()) => {
                    assert!(!any, "something was mapped");
                    let opened = Some(self.opened());
                    self.access[pages].fill(opened);
                }
                Err(error) => assert!(any && matches!(error, Error::Overlap(_)), "{error}"),
            },
            68..78 => self.protect(region, pages, all, random),
            78..82 => self.write_back(region, &pages, len, Region::write_back),
            82..84 => self.write_back(region, &pages, len, Region::sync_range),
            84..88 => self.refresh(region, &pages, any, random),
            88..92 => self.check_written(region, &pages, len),
            92..96 => self.by_system_calls(region, len, random),
            96..100 => self.ask(region, &pages, random),
            100..108 => self.read_checked(region, range, random),
            108..116 => self.write_checked(region, range, random),
            116..122 => self.prefetch(region, range),
            _ => self.pin(region, range, random),
        }
    }

    fn lose_mapped(&mut self, pages: Range<usize>) {
        for page in pages {
            if self.access[page].is_some() {
                self.lose(page);
            }
        }
    }

    fn protect(
        &mut self,
        region: &Region,
        pages: Range<usize>,
        all_mapped: bool,
        random: &mut StdRng,
    ) {
        let access = match random.random_range(0..5) {
            0 => Access::None,
            1 => Access::Read,
            2 => Access::ReadExecute,
            _ => Access::ReadWrite,
        };
        if access == Access::None && self.is_bounded {
            // What is written and may not be read cannot go, and the bound is not to be full of it.
            let closed =
                |page: &&usize| pages.contains(page) || self.access[**page] == Some(Access::None);
            let most = if self.is_alone { 2 } else { 0 };
            if self.dirty.union(&self.perhaps).filter(closed).count() > most {
                return;
            }
        }
        match region.protect(Self::range(&pages, region.len()), access) {
            Ok(()) => {
                assert!(all_mapped, "a part was not mapped");
                self.access[pages].fill(Some(access));
            }
            Err(Error::ReadOnly) => assert!(!self.is_writable && access == Access::ReadWrite),
            Err(error) => assert!(!all_mapped && matches!(error, Error::NotMapped(_)), "{error}"),
        }
    }

    fn write_back(
        &mut self,
        region: &Region,
        pages: &Range<usize>,
        len: usize,
        write: fn(&Region, Range<usize>) -> Result<usize, Error>,
    ) {
        let written = write(region, Self::range(pages, len));
        let is_closed = |page: &usize| self.access[*page] == Some(Access::None);
        let mut of_these =
            self.dirty.union(&self.perhaps).copied().filter(|page| pages.contains(page));
        match written {
            Ok(bytes) => {
                // With a bound it may have gone before it was closed.
                let is_closed = self.dirty.range(pages.clone()).any(is_closed);
                assert!(self.is_bounded || !is_closed, "it may not be read");
                assert!(self.can_store || self.dirty.range(pages.clone()).next().is_none());
                if !self.is_bounded && self.perhaps.is_empty() && !self.has_late_faults {
                    let inside = |page: &usize| PAGE.min(len - page * PAGE);
                    let expected: usize = self.dirty.range(pages.clone()).map(inside).sum();
                    assert_eq!(bytes, expected, "bytes that were written back");
                }
                for page in of_these.collect::<Vec<_>>() {
                    let at = page * PAGE..((page + 1) * PAGE).min(len);
                    self.learn_rest(page, at.end);
                    self.stored[at.clone()].copy_from_slice(&self.shown[at]);
                    if let Some(found) = self.on_disk(page) {
                        let whole = page * PAGE..page * PAGE + found.len();
                        assert!(found == self.stored[whole], "page {page} is stored as it is");
                    }
                    self.forget(page);
                }
            }
            Err(Error::NoAccess(_)) => {
                assert!(of_these.any(|page| is_closed(&page)), "all may be read");
                self.find_out(pages, len);
            }
            Err(Error::WriteBack(error)) => {
                assert!(!self.can_store && of_these.next().is_some(), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Some of these may have been stored, up to one that could not be.
    fn find_out(&mut self, pages: &Range<usize>, len: usize) {
        for page in self.dirty.range(pages.clone()).copied().collect::<Vec<_>>() {
            let at = page * PAGE..((page + 1) * PAGE).min(len);
            let Some(found) = self.on_disk(page) else { continue };
            if found[..at.len()] == self.shown[at.clone()] {
                self.learn_rest(page, at.end);
                self.stored[at.clone()].copy_from_slice(&self.shown[at]);
                self.forget(page);
                self.perhaps.insert(page);
            }
        }
    }

    /// The file changes, and what is there of it is given back.
    fn refresh(
        &mut self,
        region: &Region,
        pages: &Range<usize>,
        any_mapped: bool,
        random: &mut StdRng,
    ) {
        let Some(file) = self.file.as_ref().filter(|_| self.can_store) else { return };
        let range = Self::range(pages, region.len());
        // Before, so that nothing of it is written over the new bytes; afterwards, for neighbours.
        if any_mapped {
            region.discard(range.clone()).unwrap();
        }
        let whole = pages.start * PAGE..(pages.end * PAGE).min(self.stored.len());
        fill(random, &mut self.stored[whole.clone()]);
        file.write_all_at(&self.stored[whole.clone()], whole.start as u64).unwrap();
        if any_mapped {
            region.discard(range).unwrap();
        }
        for page in pages.clone() {
            self.forget(page);
        }
        self.shown[whole.clone()].copy_from_slice(&self.stored[whole]);
    }

    fn check_written(&self, region: &Region, pages: &Range<usize>, len: usize) {
        let written = region.written(Self::range(pages, len)).unwrap();
        let written: BTreeSet<_> =
            written.into_iter().flat_map(|run| run.start / PAGE..run.end.div_ceil(PAGE)).collect();
        let here =
            |set: &BTreeSet<usize>| set.range(pages.clone()).copied().collect::<BTreeSet<_>>();
        let dirty = here(&self.dirty);
        let perhaps = &here(&self.perhaps) | &here(&self.let_be_written);
        assert!(self.is_bounded || dirty.is_subset(&written), "{dirty:?}, not {written:?}");
        assert!(written.is_subset(&(&dirty | &perhaps)), "{dirty:?}, not {written:?}");
    }

    /// Some bytes of a range, whatever may be accessed there, and how many come before what an
    /// access may not touch.
    fn any_bytes(
        &self,
        range: Range<usize>,
        needed: Access,
        random: &mut StdRng,
    ) -> (Range<usize>, Result<(), (usize, Refusal)>) {
        let start = random.random_range(range.clone());
        let at = start..random.random_range(start + 1..=range.end);
        let stops = self.refused_page(&at, needed);
        let done = |page: usize| (page * PAGE).max(at.start) - at.start;
        let expected = stops.map_or(Ok(()), |(page, refusal)| Err((done(page), refusal)));
        (at, expected)
    }

    /// The first page of a range that may not be accessed like that, and why.
    fn refused_page(&self, range: &Range<usize>, needed: Access) -> Option<(usize, Refusal)> {
        (range.start / PAGE..range.end.div_ceil(PAGE)).find_map(|page| match self.access[page] {
            None => Some((page, Refusal::NotMapped)),
            Some(access) if !lets(access, needed) => Some((page, Refusal::Protected)),
            Some(_) => None,
        })
    }

    fn read_checked(&self, region: &Region, range: Range<usize>, random: &mut StdRng) {
        let (at, expected) = self.any_bytes(range, Access::Read, random);
        let mut found = vec![0; at.len()];
        let read = region.read_checked(at.start, &mut found);
        assert_eq!(read.map_err(|error| (error.done(), error.refusal())), expected, "{at:#x?}");
        let done = expected.map_or_else(|(done, _)| done, |()| at.len());
        assert!(found[..done] == self.shown[at.start..][..done], "{at:#x?}");
        assert!(found[done..].iter().all(|&byte| byte == 0), "{at:#x?}: more than it says");
    }

    fn write_checked(&mut self, region: &Region, range: Range<usize>, random: &mut StdRng) {
        let len = region.len();
        let (at, expected) = self.any_bytes(range, Access::ReadWrite, random);
        let mut bytes = vec![0; at.len()];
        fill(random, &mut bytes);
        // What is to be there, and may be stored while it is written.
        let done = expected.map_or_else(|(done, _)| done, |()| at.len());
        let written = at.start..at.start + done;
        if done > 0 {
            self.shown[written.clone()].copy_from_slice(&bytes[..done]);
            self.write(&written, len);
        }
        let wrote = region.write_checked(at.start, &bytes);
        assert_eq!(wrote.map_err(|error| (error.done(), error.refusal())), expected, "{at:#x?}");
    }

    fn prefetch(&self, region: &Region, range: Range<usize>) {
        let stops = self.refused_page(&range, Access::Read);
        match region.prefetch(range.clone()) {
            Ok(came) if self.is_bounded => assert!(came.end <= range.end),
            Ok(came) => {
                assert!(stops.is_none() && came.end == range.end, "{came:?} of {range:#x?}")
            }
            Err(Error::Access(error)) => {
                assert_eq!(stops, Some((error.offset() / PAGE, error.refusal())));
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// What system calls find while it is pinned, and that it stays.
    fn pin(&mut self, region: &Region, range: Range<usize>, random: &mut StdRng) {
        if self.is_bounded && !self.is_alone {
            return;
        }
        let is_write = self.is_writable && random.random();
        let needed = if is_write { Access::ReadWrite } else { Access::Read };
        let stops = self.refused_page(&range, needed);
        let first_pages = range.start / PAGE..stops.map_or(range.end.div_ceil(PAGE), |stop| stop.0);
        if is_write {
            // Also those before one that is refused.
            self.perhaps.extend(first_pages.filter(|page| !self.dirty.contains(page)));
        }
        let pinned =
            if is_write { region.pin_for_writes(range.clone()) } else { region.pin(range.clone()) };
        let pin = match pinned {
            Ok(pin) => pin,
            Err(Error::PinBeyondBound { .. }) => return assert!(self.is_bounded),
            Err(Error::Access(error)) if error.refusal() == Refusal::BoundReached => {
                // What may not be read can be a quarter of the bound, and more.
                return assert!(self.is_bounded);
            }
            Err(Error::Access(error)) => {
                return assert_eq!(stops, Some((error.offset() / PAGE, error.refusal())));
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(stops, None);
        let (file, memory) = (memory_file(&[]), region.as_ptr().wrapping_add(range.start).cast());
        // SAFETY: reads the region's memory.
        let out = unsafe { libc::pwrite(file.as_raw_fd(), memory, range.len(), 0) };
        assert_eq!(out, range.len() as isize, "{}", std::io::Error::last_os_error());
        let mut found = vec![0; range.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == self.shown[range.clone()], "what the kernel reads");
        if is_write {
            fill(random, &mut found);
            file.write_all_at(&found, 0).unwrap();
            self.shown[range.clone()].copy_from_slice(&found);
            self.write(&range, region.len());
            // SAFETY: writes the region's memory, where no other thread does.
            let read = unsafe { libc::pread(file.as_raw_fd(), memory, range.len(), 0) };
            assert_eq!(read, range.len() as isize, "{}", std::io::Error::last_os_error());
        }
        assert!(matches!(region.discard(range.clone()), Err(Error::Pinned(_))));
        assert!(matches!(region.unmap(range), Err(Error::Pinned(_))));
        drop(pin);
    }

    /// Accesses that the kernel makes.
    fn by_system_calls(&mut self, region: &Region, len: usize, random: &mut StdRng) {
        let Some(at) = self.some_bytes(len, Access::Read, random) else { return };
        let (serves, file) = (region.serves_system_calls(), memory_file(&[]));
        let memory = |at: &Range<usize>| region.as_ptr().wrapping_add(at.start).cast();
        // SAFETY: reads the region's memory.
        let out = unsafe { libc::pwrite(file.as_raw_fd(), memory(&at), at.len(), 0) };
        let out = usize::try_from(out).unwrap_or(0);
        assert!(!serves || out == at.len(), "{}", std::io::Error::last_os_error());
        let mut found = vec![0; out];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == self.shown[at][..out], "what the kernel reads");
        if let Some(at) = self.some_bytes(len, Access::ReadWrite, random).filter(|_| serves) {
            let mut bytes = vec![0; at.len()];
            fill(random, &mut bytes);
            file.write_all_at(&bytes, 0).unwrap();
            // SAFETY: writes the region's memory, where no other thread does.
            let read = unsafe { libc::pread(file.as_raw_fd(), memory(&at), at.len(), 0) };
            assert_eq!(read, at.len() as isize, "{}", std::io::Error::last_os_error());
            self.shown[at.clone()].copy_from_slice(&bytes);
            self.write(&at, len);
        }
    }

    /// What an application may ask for a part, whether the kernel does it or not.
    fn ask(&mut self, region: &Region, pages: &Range<usize>, random: &mut StdRng) {
        const ASKED: [Ask; 13] = [
            Ask::Lock,
            Ask::Unlock,
            Ask::Bind,
            Ask::Name,
            Ask::Advice(libc::MADV_DONTDUMP),
            Ask::Advice(libc::MADV_DODUMP),
            Ask::Advice(libc::MADV_HUGEPAGE),
            Ask::Advice(libc::MADV_NOHUGEPAGE),
            Ask::Advice(libc::MADV_COLD),
            Ask::Advice(libc::MADV_PAGEOUT),
            Ask::Advice(libc::MADV_RANDOM),
            Ask::Advice(libc::MADV_NORMAL),
            Ask::Advice(libc::MADV_COLLAPSE),
        ];
        let ask = ASKED[random.random_range(0..ASKED.len())];
        ask.ask(region, pages);
        if matches!(ask, Ask::Lock) && self.is_writable {
            // It fills as for a write, where it may.
            self.perhaps.extend(pages.clone().filter(|page| !self.dirty.contains(page)));
        }
    }

    /// The region is as long as this now.
    fn resized(&mut self, before: usize, len: usize) {
        let [pages_before, pages] = [before, len].map(|len| len.div_ceil(PAGE));
        for page in self.pages.clone() {
            if (pages..pages_before).contains(&page) {
                self.lose_mapped(page..page + 1);
                self.access[page] = None;
            }
            if (pages_before..pages).contains(&page) {
                self.access[page] = Some(self.opened());
            }
        }
        // What is gained of the last page is the source's.
        let gained = before..len.min(pages_before * PAGE);
        if before < len && self.pages.contains(&(before / PAGE)) && !gained.is_empty() {
            self.learn_rest(before / PAGE, before);
            self.shown[gained.clone()].copy_from_slice(&self.stored[gained]);
        }
    }

    /// All that may be read is right, and can be stored.
    fn finish(&mut self, region: &Region) {
        let len = region.len();
        let end = self.pages.end.min(len.div_ceil(PAGE));
        for page in self.pages.start..end.max(self.pages.start) {
            if self.access[page] == Some(Access::None) {
                region.protect(Self::range(&(page..page + 1), len), Access::Read).unwrap();
                self.access[page] = Some(Access::Read);
            }
        }
        let mut page = self.pages.start;
        while page < end {
            let run = (page..end).take_while(|&page| self.access[page].is_some()).count();
            if run > 0 {
                self.check(region, Self::range(&(page..page + run), len));
            }
            page += run.max(1);
        }
        if self.pages.start < end {
            self.write_back(region, &(self.pages.start..end), len, Region::write_back);
        }
    }
}

/// A region, and what is known of it.
struct Played {
    region: Option<Region>,
    parts: Vec<Part>,
    bound: Option<Bound>,
    /// It has the same bound.
    other: Option<Region>,
}

impl Played {
    fn new(size: &Size, mode: Mode, threads: usize, random: &mut StdRng) -> Self {
        let bytes = size.pages * PAGE - random.random_range(0..PAGE);
        let mut content = vec![0; bytes];
        fill(random, &mut content);
        let is_writable = random.random_range(0..4) > 0;
        let is_file = random.random_range(0..3) > 0;
        let is_bounded = random.random() && (is_file || !is_writable);
        let is_shared = random.random();
        let bound = is_bounded.then(|| {
            // As few as can be, or enough for bytes of what has gone to be kept.
            let least = 4 * size.granule + random.random_range(0..4);
            let pages = if random.random() { least } else { least.max(size.pages * 3 / 4) };
            if random.random() {
                return Bound::new(pages * PAGE).unwrap();
            }
            let low = random.random_range(2 * size.granule..pages);
            let high = random.random_range(low + 1..=pages);
            Bound::with_watermarks(pages * PAGE, low * PAGE, high * PAGE).unwrap()
        });
        // SAFETY: writes, and ends the process.
        let hook = unsafe { OnFailure::call(tell_and_die, 0) };
        let mut options = Options::new().granule(size.granule * PAGE).on_failure(hook);
        if is_writable {
            options = options.writable();
        }
        let other = bound.as_ref().filter(|_| is_shared).map(|bound| {
            let options = Options::new().bound(bound).on_failure(hook);
            options.map(MemorySource::new(vec![5; OTHERS * PAGE])).unwrap()
        });
        if let Some(bound) = &bound {
            options = options.bound(bound);
        }
        if random.random() {
            options = options.capacity(random.random_range(0..2 * bytes));
        }
        let file = is_file.then(|| memory_file(&content));
        let region = match (&file, mode) {
            (Some(file), Mode::Signal) => {
                options.map(FileSource::new(file.try_clone().unwrap()).unwrap())
            }
            (Some(file), Mode::Thread) => {
                let threads = random.random_range(1..3);
                let options = if random.random() {
                    options.handler_threads(threads)
                } else {
                    options.handlers(&Handlers::new(threads).unwrap())
                };
                options.map(FileSource::new(file.try_clone().unwrap()).unwrap())
            }
            (None, Mode::Signal) => options.map(MemorySource::new(&content[..])),
            (None, Mode::Thread) => options.handler_threads(1).map(MemorySource::new(&content[..])),
        };
        let each = size.pages.div_ceil(threads);
        let part = |number: usize| Part {
            pages: number * each..((number + 1) * each).min(size.pages),
            shown: content.clone(),
            stored: content.clone(),
            access: vec![
                Some(if is_writable { Access::ReadWrite } else { Access::Read });
                size.pages
            ],
            dirty: BTreeSet::new(),
            perhaps: BTreeSet::new(),
            let_be_written: BTreeSet::new(),
            versions: BTreeMap::new(),
            has_late_faults: threads > 1 && mode == Mode::Thread,
            is_writable,
            is_bounded,
            is_alone: threads == 1,
            can_store: is_file,
            file: file.as_ref().map(|file| file.try_clone().unwrap()),
        };
        let parts = (0..threads).map(part).collect();
        Self { region: Some(region.unwrap()), parts, bound, other }
    }

    fn region(&mut self) -> &mut Region {
        self.region.as_mut().unwrap()
    }

    /// What needs the region for itself.
    fn step_alone(&mut self, size: &Size, random: &mut StdRng) {
        let before = self.region().len();
        match random.random_range(0..3) {
            0 => {
                let capacity = random.random_range(0..2 * size.pages * PAGE);
                self.region().relocate(capacity).unwrap();
            }
            1 => {
                let len = match random.random_range(0..3) {
                    0 => random.random_range(1..=self.parts[0].stored.len()),
                    1 => {
                        (before + random.random_range(0..2 * PAGE)).min(self.parts[0].stored.len())
                    }
                    _ => before - random.random_range(0..before.min(2 * PAGE)),
                };
                self.region().resize(len).unwrap();
                assert_eq!(self.region().len(), len);
                self.parts.iter_mut().for_each(|part| part.resized(before, len));
            }
            _ => {
                let beyond = self.parts[0].stored.len() + 1;
                let refused = self.region().resize(beyond);
                assert!(matches!(refused, Err(Error::BeyondSource { .. })));
            }
        }
    }

    fn check_bound(&mut self) {
        if let Some(bound) = &self.bound {
            assert!(bound.most_resident() <= bound.bytes(), "{bound:?}");
        }
        if let Some(other) = &self.other {
            common::byte(other, PLAYED[2].load(Relaxed) as usize % OTHERS * PAGE);
            let [theirs, ours] = [other, self.region.as_ref().unwrap()].map(Region::resident);
            let both = self.bound.as_ref().unwrap().bytes();
            assert!(theirs.unwrap() + ours.unwrap() <= both, "{theirs:?} and {ours:?}");
        }
    }

    fn finish(mut self, random: &mut StdRng) {
        let region = self.region.take().unwrap();
        self.parts.iter_mut().for_each(|part| part.finish(&region));
        let pages = region.len().div_ceil(PAGE);
        let is_open = |part: &Part, page: &usize| part.access[*page].is_some();
        let all_open = self.parts.iter().all(|part| {
            let end = part.pages.end.min(pages);
            (part.pages.start..end.max(part.pages.start)).all(|page| is_open(part, &page))
        });
        if random.random() {
            match region.freeze() {
                Ok(slice) => {
                    assert!(all_open);
                    for part in &self.parts {
                        let at = Part::range(&part.pages, slice.len());
                        assert!(at.is_empty() || slice[at.clone()] == part.shown[at]);
                    }
                }
                Err(error) => assert!(!all_open && matches!(error, Error::NotMapped(_)), "{error}"),
            }
        }
    }
}

/// Plays the sequence of a seed, by so many threads.
fn play(size: &Size, mode: Mode, threads: usize, seed: u64) {
    let numbers = [size.granule as u64, (mode == Mode::Thread).into(), seed];
    PLAYED.iter().zip(numbers).for_each(|(word, number)| word.store(number, Relaxed));
    common::watch();
    let random = &mut StdRng::seed_from_u64(seed);
    let mut played = Played::new(size, mode, threads, random);
    if threads == 1 {
        for _ in 0..STEPS {
            if random.random_range(0..20) == 0 {
                played.step_alone(size, random);
            } else {
                let Played { region, parts, .. } = &mut played;
                parts[0].step(region.as_ref().unwrap(), random);
            }
            played.check_bound();
        }
    } else {
        for _ in 0..4 {
            let Played { region, parts, other, .. } = &mut played;
            let region = region.as_ref().unwrap();
            std::thread::scope(|scope| {
                for part in parts {
                    let mut random = StdRng::seed_from_u64(random.random());
                    scope.spawn(move || {
                        for _ in 0..STEPS {
                            part.step(region, &mut random);
                        }
                    });
                }
                if let Some(other) = other {
                    for page in (0..4 * OTHERS).map(|time| time * 7 % OTHERS) {
                        assert_eq!(common::byte(other, page * PAGE), 5);
                    }
                }
            });
            played.check_bound();
            played.step_alone(size, random);
        }
    }
    played.finish(random);
}

/// Says which sequence it was, if it fails.
struct Told;

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            say_what_is_played();
        }
    }
}

fn play_all(size: &Size, mode: Mode, threads: usize) {
    // A failure names the one sequence that is played.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let _told = Told;
    common::when_it_hangs(say_what_is_played);
    if let Ok(only) = std::env::var("PERVMA_MODEL_SEED") {
        let numbers: Vec<u64> = only.split(' ').map(|number| number.parse().unwrap()).collect();
        if numbers[..2] == [size.granule as u64, (mode == Mode::Thread).into()] {
            play(size, mode, threads, numbers[2]);
        }
        return;
    }
    let factor = std::env::var("PERVMA_MODEL_TIMES").map_or(1, |text| text.parse().unwrap());
    if mode == Mode::Thread {
        let region = Options::new().handler_threads(1).map(MemorySource::new([1].as_slice()));
        common::serves_system_calls(&region.unwrap());
    }
    for seed in 0..factor * size.times[usize::from(threads > 1)] {
        play(size, mode, threads, seed);
    }
}

#[test]
fn a_region_is_as_plain_arrays_are() {
    for size in &SIZES {
        for mode in MODES {
            play_all(size, mode, 1);
        }
    }
}

#[test]
fn a_region_is_as_plain_arrays_are_to_several_threads() {
    for size in &SIZES {
        for mode in MODES {
            play_all(size, mode, 3);
        }
    }
}

//! The memory management of a kernel: page faults, `mmap`, `munmap` and `mprotect` on an
//! [`AddressSpace`], without an operating system underneath.
//!
//! A kernel has no `std`. It uses `pervma` with `default-features = false` and brings a
//! [`Platform`](pervma::Platform) of its own; that is `platform.rs`, the file to read first. Here
//! is what stands on it. The same source
//!
//! - builds for bare metal, with an entry point, a panic handler and a heap of its own (`bare.rs`):
//!   `cargo build -p kernel_no_std --target x86_64-unknown-none`;
//! - runs as a normal program, with threads in the place of processors (`host.rs`):
//!   `cargo run -p kernel_no_std`.
//!
//! The page table is a plain array here. What keeps it right is the rule that Linux has: an entry
//! is made under the lock of its VMA, and cleared by a thread that keeps all readers of that VMA
//! out.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![expect(clippy::disallowed_types, reason = "a page table and a clock have atomics of their own")]

extern crate alloc;

#[cfg_attr(target_os = "none", path = "bare.rs")]
#[cfg_attr(not(target_os = "none"), path = "host.rs")]
mod machine;
mod platform;

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pervma::{AddressSpace, ChangeError, GapSearch, Payload, ReadError};

use crate::platform::Kernel;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    machine::main()
}

const PAGE: usize = 4096;

/// Pages in the address space of a process.
const PAGES: usize = 1024;

/// What a VMA maps: an object (a file, say), from a page of it on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Vma {
    object: usize,
    /// In bytes.
    offset: usize,
    writable: bool,
}

impl Payload for Vma {
    fn split(&self, offset: usize) -> Option<(Self, Self)> {
        Some((*self, Self { offset: self.offset + offset, ..*self }))
    }

    fn merge(&self, len: usize, next: &Self) -> Option<Self> {
        (Self { offset: self.offset + len, ..*self } == *next).then_some(*self)
    }
}

impl Vma {
    /// The entry of the page table for the page that is `offset` bytes from the VMA's start; never
    /// 0.
    fn entry(&self, offset: usize) -> u64 {
        let frame = (self.object * PAGES * 2 + (self.offset + offset) / PAGE) as u64;
        frame << 2 | u64::from(self.writable) << 1 | 1
    }
}

/// A process: its mappings, and what the processor sees of them.
struct Process {
    space: AddressSpace<Vma, Kernel>,
    page_table: [AtomicU64; PAGES],
}

/// The first process. Nothing here is initialised at run time.
static INIT: Process = Process {
    space: AddressSpace::with_platform(PAGE),
    page_table: [const { AtomicU64::new(0) }; PAGES],
};

/// Why a page fault was not served.
enum Fault {
    /// The process gets a signal.
    Refused,
    /// The kernel has taken a fault where it must not: the message of an oops.
    Broken(&'static str),
}

const IN_EDIT: &str = "a fault in the kernel's own edit";

// --- The page fault ------------------------------------------------------------------------------

impl Process {
    /// Serves a page fault: makes the page present, if it is mapped and may be accessed so.
    fn fault(&self, addr: usize, write: bool) -> Result<(), Fault> {
        // Nearly always this is all: no lock that others write to, no allocation. Where waiting is
        // impossible, in an interrupt, it is the only way in.
        let found = match self.space.try_read(addr) {
            // Another processor changes this VMA, or the hole that the address may be in: wait for
            // it. (`read` would do all of this. It tries `try_read` first.)
            Err(ReadError::Locked { .. }) => self.space.read(addr),
            decided => decided,
        };
        let vma = found.map_err(|error| match error {
            ReadError::NotMapped { .. } | ReadError::Reserved { .. } => Fault::Refused,
            // Without the platform's `with_thread`, this would be a processor that waits for
            // itself.
            ReadError::OwnEdit { .. } => Fault::Broken(IN_EDIT),
            _ => Fault::Broken("a fault while its processor holds a lock"),
        })?;
        if write && !vma.writable {
            return Err(Fault::Refused);
        }
        // Until the guard is dropped, no processor changes or removes the VMA.
        let entry = vma.entry(page_offset(&vma.range(), addr));
        let page = &self.page_table[addr / PAGE];
        page.store(entry, Relaxed);
        machine::pause(); // time for a processor that would wrongly clear the entry
        if page.load(Relaxed) == entry { Ok(()) } else { Err(Fault::Broken("the entry is gone")) }
    }

    /// Takes the pages of `range` away. A kernel also tells the other processors to forget them,
    /// which takes its time.
    fn zap(&self, range: &Range<usize>) {
        machine::pause();
        for page in &self.page_table[range.start / PAGE..range.end.div_ceil(PAGE).min(PAGES)] {
            page.store(0, Relaxed);
        }
    }
}

/// How far the page of `addr` is from the start of its VMA.
fn page_offset(range: &Range<usize>, addr: usize) -> usize {
    (addr - range.start) / PAGE * PAGE
}

// --- The system calls ----------------------------------------------------------------------------

impl Process {
    /// `mmap`: pages are made present when they are touched.
    fn mmap(&self, len: usize, vma: Vma) -> Result<Range<usize>, ChangeError> {
        let mut edit = self.space.edit()?;
        let out_of_space = || ChangeError::OutOfMemory { range: 0..len };
        let search = GapSearch::new(len).within(0..PAGES * PAGE).top_down();
        let gap = edit.find_gap(&search).map_err(|_| out_of_space())?;
        edit.insert(gap.clone(), vma).map_err(|refused| refused.kind)?;
        Ok(gap)
    }

    /// `munmap`: out of the map, then out of the page table.
    fn munmap(&self, range: Range<usize>) -> Result<(), ChangeError> {
        let mut edit = self.space.edit()?;
        // Waits for faults in these VMAs. Afterwards, no processor makes their pages present.
        let removed = edit.remove(range)?;
        // The slow part. Faults and other lookups under the mmap lock go on meanwhile, but no edit:
        // no processor maps anything new at these addresses before their pages are gone.
        let view = edit.downgrade();
        removed.iter().for_each(|removed| self.zap(&removed.range));
        drop(view);
        Ok(())
    }

    /// `mprotect`: splits and merges VMAs as [`Payload`] says.
    fn mprotect(&self, range: Range<usize>, writable: bool) -> Result<(), ChangeError> {
        let mut edit = self.space.edit()?;
        edit.update(range.clone(), |_, vma| Vma { writable, ..*vma })?;
        // The VMAs stay write-locked until the edit ends: no page comes back with the old rights.
        self.zap(&range);
        Ok(())
    }
}

// --- What must hold ------------------------------------------------------------------------------

fn ensure(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}

/// Checks all that one processor can see, and returns how many VMAs there were when memory ran out.
fn check_one_processor(process: &Process) -> Result<usize, &'static str> {
    let Process { space, page_table } = process;
    let vma = Vma { object: 7, offset: 0, writable: true };
    let faults = |addr, write| process.fault(addr, write).is_ok();
    let vmas = || space.view().map_or(0, |view| view.iter().count());
    let page = |start: usize, number: usize| start + number * PAGE;

    let Ok(Range { start, .. }) = process.mmap(8 * PAGE, vma) else { return Err("no mmap") };
    ensure(faults(start, false) && faults(page(start, 5) + 1, true), "a mapping cannot be used")?;
    ensure(page_table[start / PAGE + 5].load(Relaxed) == vma.entry(5 * PAGE), "a wrong page")?;
    ensure(!faults(start - 1, false), "a fault beside the mapping")?;

    let middle = page(start, 4)..page(start, 6);
    ensure(process.mprotect(middle.clone(), false).is_ok() && vmas() == 3, "mprotect splits")?;
    ensure(page_table[start / PAGE + 5].load(Relaxed) == 0, "mprotect leaves an old page")?;
    ensure(!faults(middle.start, true) && faults(middle.start, false), "read-only is read-only")?;
    ensure(faults(middle.end, true), "mprotect reaches too far")?;
    ensure(process.mprotect(middle.clone(), true).is_ok() && vmas() == 1, "mprotect merges")?;

    ensure(process.munmap(middle.clone()).is_ok() && vmas() == 2, "munmap splits")?;
    ensure(!faults(middle.start, false) && faults(middle.end, true), "munmap")?;

    // A fault of the same processor on what its own edit has locked: an error, where a spin lock
    // would hang.
    let mut edit = space.edit().map_err(|_| "no edit")?;
    ensure(edit.write(start).is_ok(), "nothing to lock")?;
    let noticed = match process.fault(start, false) {
        Err(Fault::Broken(why)) => why == IN_EDIT,
        _ => false,
    };
    ensure(noticed, "a fault in an edit goes unnoticed")?;
    drop(edit);
    check_out_of_memory(process)
}

/// Maps single pages until the pool is empty. The failure is an error, and changes nothing.
fn check_out_of_memory(process: &Process) -> Result<usize, &'static str> {
    let vma = |object| Vma { object, offset: 0, writable: false };
    let map = || -> Result<Vec<_>, _> {
        let view = process.space.view().map_err(|_| "no view")?;
        Ok::<_, &'static str>(view.iter().map(|(range, vma)| (range, *vma)).collect())
    };
    let mut object = 0;
    let refused = loop {
        object += 1;
        match process.mmap(PAGE, vma(object)) {
            Ok(_) => {}
            Err(refused) => break refused,
        }
    };
    let full = map()?;
    let most = full.len();
    let out_of_memory = matches!(refused, ChangeError::OutOfMemory { .. });
    ensure(out_of_memory && most < PAGES / 2, "it was not the memory that ran out")?;
    ensure(process.space.slab().vmas().in_use == most, "a slot is lost")?;
    // To unmap the middle of a VMA makes two of one: that takes memory, as in Linux.
    let large = full.iter().find(|(range, _)| range.len() > 2 * PAGE);
    let Some(Range { start, end }) = large.map(|(range, _)| range.clone()) else {
        return Err("a mapping is lost");
    };
    let split = process.munmap(start + PAGE..start + 2 * PAGE);
    ensure(matches!(split, Err(ChangeError::OutOfMemory { .. })), "a split without memory")?;
    ensure(map()? == full, "a failure has changed something")?;
    ensure(process.fault(start + PAGE, false).is_ok(), "a failure has locked something")?;
    // What is unmapped is a gap at once.
    ensure(process.munmap(end - PAGE..end).is_ok(), "munmap at the end of a mapping")?;
    let Some((range, _)) = full.iter().find(|(range, _)| range.len() == PAGE) else {
        return Err("the pages are lost");
    };
    ensure(process.munmap(range.clone()).is_ok(), "munmap without memory")?;
    ensure(process.mmap(PAGE, vma(object)).is_ok(), "what was freed is not used again")?;
    ensure(process.mmap(PAGE, vma(object)).is_err(), "more than there is")?;
    check_page_table(process)?;
    process.munmap(0..PAGES * PAGE).map_err(|_| "munmap of everything")?;
    ensure(map()?.is_empty() && check_page_table(process)? == 0, "something is left")?;
    Ok(most)
}

/// Checks that each page that is present is its VMA's, and returns how many there are.
fn check_page_table(process: &Process) -> Result<usize, &'static str> {
    let view = process.space.view().map_err(|_| "no view")?;
    let mut present = 0;
    for (number, page) in process.page_table.iter().enumerate() {
        let (addr, entry) = (number * PAGE, page.load(Relaxed));
        if entry != 0 {
            let (range, vma) = view.get(addr).ok_or("a page is present and not mapped")?;
            ensure(entry == vma.entry(page_offset(&range, addr)), "a page is another mapping's")?;
            present += 1;
        }
    }
    Ok(present)
}

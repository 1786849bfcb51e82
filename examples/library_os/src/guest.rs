//! A program that checks what it is given: it can tell that its kernel is another one.
#![expect(unsafe_code, reason = "it maps memory and touches it")]

use std::thread;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use rustix::mm::{mmap_anonymous, mprotect, mremap, munmap};

use pervma_linux::abi::PAGE;

use crate::{LIMIT, TOP};

/// The argument with which this program is the guest.
pub(crate) const ROLE: &str = "--guest";

const THREADS: usize = 4;
const ROUNDS: usize = 200;

/// Memory of so many pages, by the number of the first.
struct Memory(*mut usize, usize);

impl Memory {
    fn map(pages: usize) -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: an address that nothing uses yet is chosen.
        let at =
            unsafe { mmap_anonymous(std::ptr::null_mut(), pages * PAGE, prot, MapFlags::PRIVATE)? };
        Ok(Self(at.cast(), pages))
    }

    /// The first word of a page.
    fn word(&self, page: usize) -> *mut usize {
        assert!(page < self.1);
        self.0.wrapping_byte_add(page * PAGE)
    }

    fn fill(&self, number: usize) {
        // SAFETY: it is mapped, and this thread's.
        (0..self.1).for_each(|page| unsafe { self.word(page).write_volatile(number + page) });
    }

    fn holds(&self, number: usize, pages: usize) -> bool {
        // SAFETY: as above.
        (0..pages).all(|page| unsafe { self.word(page).read_volatile() } == number + page)
    }
}

/// Maps, protects, moves and unmaps memory, and looks whether it is still its own.
fn round(number: usize) -> Result<(), Errno> {
    let mut memory = Memory::map(8)?;
    assert!(memory.0.addr() + 8 * PAGE <= TOP, "chosen by a kernel: {:p}", memory.0);
    memory.fill(number);
    // SAFETY: this thread's, and not written while it is protected.
    unsafe { mprotect(memory.word(2).cast(), PAGE, MprotectFlags::READ)? };
    assert!(memory.holds(number, 8));
    // SAFETY: as above.
    unsafe { mprotect(memory.0.cast(), 8 * PAGE, MprotectFlags::READ | MprotectFlags::WRITE)? };
    // SAFETY: nothing but `memory` has its address.
    let moved = unsafe { mremap(memory.0.cast(), 8 * PAGE, 16 * PAGE, MremapFlags::MAYMOVE)? };
    memory = Memory(moved.cast(), 16);
    assert!(memory.holds(number, 8));
    memory.fill(number);
    // SAFETY: nothing refers to what is unmapped.
    unsafe { munmap(memory.0.cast(), 16 * PAGE) }
}

/// A call that fails changes nothing. Linux would have protected the first page by then, and the
/// write to it would be the end.
fn fail() -> Result<(), Errno> {
    let memory = Memory::map(3)?;
    // SAFETY: nothing refers to what is unmapped. There are no other threads yet that map anything.
    unsafe { munmap(memory.word(1).cast(), PAGE)? };
    // SAFETY: of the three pages two are this thread's, and the third is not mapped.
    let protected = unsafe { mprotect(memory.0.cast(), 3 * PAGE, MprotectFlags::READ) };
    assert_eq!(protected, Err(Errno::NOMEM));
    Memory(memory.0, 1).fill(1);
    // SAFETY: nothing refers to what is unmapped.
    unsafe { munmap(memory.0.cast(), 3 * PAGE) }
}

pub(crate) fn run() -> Result<(), Errno> {
    fail()?;
    let pages = usize::try_from(LIMIT).unwrap_or(usize::MAX) / PAGE;
    assert_eq!(Memory::map(pages).err(), Some(Errno::NOMEM), "a limit that the host has not");
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            thread::spawn(move || {
                // Of allocations too: the allocator maps memory of its own for each thread.
                let kept: Vec<Vec<usize>> = (0..ROUNDS).map(|size| vec![thread; size]).collect();
                let rounds = (0..ROUNDS).try_for_each(|turn| round((turn << 8 | thread) << 8));
                rounds.is_ok() && kept.iter().flatten().all(|word| *word == thread)
            })
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().is_ok_and(|right| right)));
    println!("the guest: {THREADS} threads have what they were given");
    Ok(())
}

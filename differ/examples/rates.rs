//! The time that `Mm` takes for a call, beside the kernel's system call in this process.
//!
//! Two pairs of calls are timed among 100 mappings: mapping and unmapping a page, and splitting off
//! a page and merging it again.
#![expect(clippy::unwrap_used, reason = "nothing is expected to fail")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use pervma_linux::{Config, Mm, NoBacking, abi::*};

const ROUNDS: u32 = 100_000;
const BASE: usize = 0x1000_0000_0000;
const FLAGS: u64 = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
const HOLE: usize = BASE + 1001 * PAGE;

fn pair(mut make: impl FnMut()) -> Duration {
    let begin = Instant::now();
    (0..ROUNDS).for_each(|_| make());
    begin.elapsed() / (2 * ROUNDS)
}

fn kernel(number: libc::c_long, addr: usize, len: usize, prot: u64, flags: u64) {
    // SAFETY: the addresses are where this program has nothing.
    let result = unsafe { libc::syscall(number, addr, len, prot, flags, -1, 0) };
    assert!(result != -1, "{}", std::io::Error::last_os_error());
}

fn main() {
    let mm = Mm::new(NoBacking, Config::default());
    for place in 0..100 {
        let addr = BASE + place * 10 * PAGE;
        mm.mmap(addr, 9 * PAGE, PROT_READ, FLAGS, None, 0).unwrap();
        kernel(libc::SYS_mmap, addr, 9 * PAGE, PROT_READ, FLAGS);
    }
    let split = BASE + 504 * PAGE;
    let model = pair(|| {
        black_box(mm.mmap(HOLE, PAGE, PROT_READ, FLAGS, None, 0)).unwrap();
        mm.munmap(HOLE, PAGE).unwrap();
    });
    let real = pair(|| {
        kernel(libc::SYS_mmap, HOLE, PAGE, PROT_READ, FLAGS);
        kernel(libc::SYS_munmap, HOLE, PAGE, 0, 0);
    });
    println!("mmap, munmap: {model:?} a call, the kernel {real:?}");
    let model = pair(|| {
        mm.mprotect(split, PAGE, PROT_NONE).unwrap();
        mm.mprotect(split, PAGE, PROT_READ).unwrap();
    });
    let real = pair(|| {
        kernel(libc::SYS_mprotect, split, PAGE, PROT_NONE, 0);
        kernel(libc::SYS_mprotect, split, PAGE, PROT_READ, 0);
    });
    println!("mprotect, splitting and merging: {model:?} a call, the kernel {real:?}");
}

//! What no file says of the layout of a process, found out by calls in it that leave nothing
//! behind.

use std::fs;
use std::io;

use libc::c_long;
use pervma_linux::abi;

/// A process in which calls can be made.
pub(crate) trait Calls {
    /// Makes a system call, and returns the value of `rax` after it.
    fn call(&mut self, number: c_long, arguments: [u64; 6]) -> io::Result<i64>;

    /// Its `smaps` file.
    fn smaps(&self) -> io::Result<String>;

    /// Makes a system call that must succeed.
    fn must(&mut self, number: c_long, arguments: [u64; 6]) -> io::Result<u64> {
        let result = self.call(number, arguments)?;
        match i32::try_from(result) {
            Ok(error @ -4095..0) => Err(io::Error::from_raw_os_error(-error)),
            _ => Ok(result.cast_unsigned()),
        }
    }
}

/// What was found out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probed {
    /// The page of the highest gap.
    pub(crate) top: usize,
    /// The lowest address that may be chosen.
    pub(crate) lowest_choice: usize,
    /// The lowest address that may be mapped.
    pub(crate) mmap_min_addr: usize,
    /// The end of the heap.
    pub(crate) brk: usize,
    /// Whether the kernel marks mappings with guard pages.
    pub(crate) marks_guards: bool,
}

/// Finds out about a process.
pub(crate) fn probe(process: &mut impl Calls) -> io::Result<Probed> {
    let page = abi::PAGE as u64;
    // The highest gap tells where the search for gaps begins.
    let anonymous = abi::MAP_PRIVATE | abi::MAP_ANONYMOUS;
    let top = process.must(libc::SYS_mmap, [0, page, 0, anonymous, u64::MAX, 0])?;
    let guard = u64::try_from(abi::MADV_GUARD_INSTALL).unwrap_or(0);
    process.must(libc::SYS_madvise, [top, page, guard, 0, 0, 0])?;
    let marks_guards = process.smaps()?.lines().any(|line| line.ends_with(" gu "));
    process.must(libc::SYS_munmap, [top, page, 0, 0, 0, 0])?;
    // A hint below the lowest address that may be chosen is taken for that address.
    let lowest = process.must(libc::SYS_mmap, [page, page, 0, anonymous, u64::MAX, 0])?;
    process.must(libc::SYS_munmap, [lowest, page, 0, 0, 0, 0])?;
    let brk = process.must(libc::SYS_brk, [0; 6])?;
    let word = |word: u64| usize::try_from(word).map_err(io::Error::other);
    let min_addr = fs::read_to_string("/proc/sys/vm/mmap_min_addr")?;
    Ok(Probed {
        top: word(top)?,
        lowest_choice: word(lowest)?,
        mmap_min_addr: min_addr.trim().parse().map_err(io::Error::other)?,
        brk: word(brk)?,
        marks_guards,
    })
}

//! Machine code: memory for it, and functions small enough to assemble by hand.
//!
//! The memory is mapped twice, once to write and once to run, as a JIT does that never has memory
//! which is both. It knows nothing of functions: which thread may touch which bytes is for the
//! caller to know, and stands under *Safety*.

use std::ffi::c_int;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("this example writes machine code for x86_64 and aarch64 only");

/// Bytes that trap when they are run.
const TRAP: u8 = if cfg!(target_arch = "x86_64") { 0xcc } else { 0 };

/// How many bytes of a function run before its identity is in the result's register.
pub(crate) const PROLOGUE: usize = if cfg!(target_arch = "x86_64") { 5 } else { 8 };

/// Makes a function `fn() -> u32` that runs a loop `turns` times and returns `id`, which is in the
/// result's register all the while.
pub(crate) fn assemble(id: u32, turns: u32) -> Vec<u8> {
    let mut code = Vec::new();
    if cfg!(target_arch = "x86_64") {
        code.push(0xb8); // mov eax, id
        code.extend(id.to_le_bytes());
        code.push(0xb9); // mov ecx, turns
        code.extend(turns.to_le_bytes());
        code.extend([0xff, 0xc9]); // again: dec ecx
        code.extend([0x75, 0xfc]); // jnz again
        code.push(0xc3); // ret
    } else {
        let (low, high) = (|word: u32| (word & 0xffff) << 5, |word: u32| (word >> 16) << 5);
        let instructions = [
            0x5280_0000 | low(id),     // movz w0, id
            0x72a0_0000 | high(id),    // movk w0, id >> 16, lsl 16
            0x5280_0001 | low(turns),  // movz w1, turns
            0x72a0_0001 | high(turns), // movk w1, turns >> 16, lsl 16
            0x7100_0421,               // again: subs w1, w1, 1
            0x54ff_ffe1,               // b.ne again
            0xd65f_03c0,               // ret
        ];
        code.extend(instructions.into_iter().flat_map(u32::to_le_bytes));
    }
    // Constants behind the code, so that lengths are as odd as they are in a real JIT.
    code.resize(code.len() + id as usize % 7, TRAP);
    code
}

/// Returns the identity in the code of a function that [`assemble`] has made.
///
/// # Safety
///
/// A function's code begins at `start`, and stays there during the call.
pub(crate) unsafe fn identity(start: usize) -> u32 {
    let word = |offset: usize| {
        let place = ptr::with_exposed_provenance::<u32>(start + offset);
        // SAFETY: it lies in the function's code, by the caller's word.
        unsafe { place.read_unaligned() }
    };
    if cfg!(target_arch = "x86_64") {
        word(1)
    } else {
        let half = |offset| (word(offset) >> 5) & 0xffff;
        half(0) | half(4) << 16
    }
}

/// Memory for code, for as long as the process runs.
pub(crate) struct CodeMemory {
    /// Where it is run, and looked up.
    run: usize,
    /// Where it is written.
    write: usize,
    len: usize,
}

impl CodeMemory {
    /// Maps `len` bytes.
    pub(crate) fn map(len: usize) -> io::Result<Self> {
        membarrier(REGISTER_SYNC_CORE)?;
        // SAFETY: the name is a C string.
        let memory = unsafe { libc::memfd_create(c"code".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and owned by nothing else.
        let memory = unsafe { OwnedFd::from_raw_fd(memory) };
        let fd = memory.as_raw_fd();
        // SAFETY: changes the length of the file that we own.
        if unsafe { libc::ftruncate(fd, len.try_into().unwrap_or(libc::off_t::MAX)) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |protection| {
            // SAFETY: a new mapping, at a place that the kernel chooses.
            let at =
                unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0) };
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(at.expose_provenance())
        };
        let run = map(libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(Self { run, write: map(libc::PROT_READ | libc::PROT_WRITE)?, len })
    }

    /// The addresses that code has here.
    pub(crate) fn range(&self) -> Range<usize> {
        self.run..self.run + self.len
    }

    /// Writes `code` at `start`, and has every processor run just that from now on.
    ///
    /// # Safety
    ///
    /// Until the call is over, no other thread reads, writes or runs the bytes from `start` on.
    pub(crate) unsafe fn write(&self, start: usize, code: &[u8]) -> io::Result<()> {
        assert!(start >= self.run && start - self.run + code.len() <= self.len);
        let place = ptr::with_exposed_provenance_mut::<u8>(start - self.run + self.write);
        // SAFETY: within the mapping, as was asserted, and no other thread's, by the caller's word.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), place, code.len()) };
        #[cfg(target_arch = "aarch64")]
        flush(place.addr(), start, code.len());
        // A processor may still have what it had fetched from there before.
        membarrier(SYNC_CORE)
    }

    /// Overwrites what is at `range` with traps: a thread that runs it ends the process.
    ///
    /// # Safety
    ///
    /// As for [`write`](Self::write).
    pub(crate) unsafe fn erase(&self, range: Range<usize>) -> io::Result<()> {
        // SAFETY: handed on to the caller.
        unsafe { self.write(range.start, &vec![TRAP; range.len()]) }
    }
}

/// Runs the function at `start`.
///
/// # Safety
///
/// A function's code begins there, and stays until it has returned.
pub(crate) unsafe fn call(start: usize) -> u32 {
    let code = ptr::with_exposed_provenance::<()>(start);
    // SAFETY: the code of such a function is there, by the caller's word.
    let function = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u32>(code) };
    function()
}

// From <linux/membarrier.h>.
const SYNC_CORE: c_int = 1 << 5;
const REGISTER_SYNC_CORE: c_int = 1 << 6;

/// The system call by which a JIT has all processors forget what they fetched.
fn membarrier(command: c_int) -> io::Result<()> {
    // SAFETY: touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Brings code out of the data cache and old code out of the instruction caches: on this
/// architecture that is the program's to do.
#[cfg(target_arch = "aarch64")]
fn flush(written: usize, run: usize, len: usize) {
    use std::arch::asm;
    for at in (0..len).step_by(4) {
        // SAFETY: cleans a line of mapped memory.
        unsafe { asm!("dc cvau, {}", in(reg) written + at, options(nostack)) };
    }
    // SAFETY: waits for what was cleaned.
    unsafe { asm!("dsb ish", options(nostack)) };
    for at in (0..len).step_by(4) {
        // SAFETY: forgets a line of mapped memory.
        unsafe { asm!("ic ivau, {}", in(reg) run + at, options(nostack)) };
    }
    // SAFETY: waits for what was forgotten.
    unsafe { asm!("dsb ish", options(nostack)) };
}

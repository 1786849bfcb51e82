//! What the emulator asks of the host: files, mappings of them, and words in memory.
//!
//! Guest addresses are host addresses, so every function here trusts its caller with a range; what
//! a caller has to know stands under *Safety*.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use crate::{Mapping, Protection};

/// A file of the guest. It is made of cells: a word that says where in which file it lies, and a
/// word that counts the stores to it.
pub(crate) struct GuestFile(File);

/// Bytes in a cell.
pub(crate) const CELL: usize = 16;

/// What the first word of the cell at `offset` of file number `file` says.
pub(crate) fn label(file: usize, offset: usize) -> u64 {
    (file as u64 + 1) << 48 | offset as u64
}

impl GuestFile {
    /// Makes file number `file`, of `len` bytes.
    pub(crate) fn create(file: usize, len: usize, writable: bool) -> io::Result<Self> {
        let whole = File::from(memfd_create(format!("guest-{file}"), MemfdFlags::CLOEXEC)?);
        let cells = (0..len).step_by(CELL).flat_map(|offset| [label(file, offset), 0]);
        let bytes: Vec<u8> = cells.flat_map(u64::to_ne_bytes).collect();
        whole.write_all_at(&bytes, 0)?;
        if writable {
            return Ok(Self(whole));
        }
        // Opened for reading only: the host will refuse to map it for writing.
        Ok(Self(File::open(format!("/proc/self/fd/{}", whole.as_raw_fd()))?))
    }

    /// How many stores its cells have counted.
    pub(crate) fn stores(&self) -> io::Result<u64> {
        let mut bytes = vec![0; self.0.metadata()?.len() as usize];
        self.0.read_exact_at(&mut bytes, 0)?;
        let words = bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_ne_bytes(word));
        Ok(words.skip(1).step_by(2).sum())
    }

    /// Maps a part of it at `range`; fails with `EXIST` if anything is mapped there.
    ///
    /// It is safe, since no thread uses what is not mapped.
    pub(crate) fn map(&self, range: &Range<usize>, mapping: &Mapping) -> Result<(), Errno> {
        let (flags, offset) = (MapFlags::SHARED | MapFlags::FIXED_NOREPLACE, mapping.offset as u64);
        let prot = mapping.prot.flags();
        // SAFETY: with this flag, the kernel maps where nothing is, or refuses.
        unsafe { mm::mmap(pointer(range.start), range.len(), prot, flags, &self.0, offset)? };
        Ok(())
    }
}

/// Maps nothing at `range`, so that the place is taken; fails with `EXIST` like [`GuestFile::map`].
pub(crate) fn occupy(range: &Range<usize>) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE | MapFlags::NORESERVE;
    // SAFETY: with this flag, the kernel maps where nothing is, or refuses.
    unsafe { mm::mmap_anonymous(pointer(range.start), range.len(), ProtFlags::empty(), flags)? };
    Ok(())
}

/// Fails with `EXIST` if the host itself has something mapped in `range`.
pub(crate) fn check_free(range: &Range<usize>) -> Result<(), Errno> {
    occupy(range)?;
    // SAFETY: just mapped, and no other thread knows it.
    unsafe { unmap(range) }
}

/// Unmaps `range`.
///
/// # Safety
///
/// What is mapped there is the caller's, and no thread uses it.
pub(crate) unsafe fn unmap(range: &Range<usize>) -> Result<(), Errno> {
    // SAFETY: handed on to the caller.
    unsafe { mm::munmap(pointer(range.start), range.len()) }
}

/// Changes what may be done with the memory at `range`.
///
/// # Safety
///
/// As for [`unmap`].
pub(crate) unsafe fn protect(range: &Range<usize>, prot: Protection) -> Result<(), Errno> {
    let flags = MprotectFlags::from_bits_retain(prot.flags().bits());
    // SAFETY: handed on to the caller.
    unsafe { mm::mprotect(pointer(range.start), range.len(), flags) }
}

/// Moves what is mapped at `from` over what is mapped at `to`, and as long.
///
/// # Safety
///
/// As for [`unmap`], of both.
pub(crate) unsafe fn relocate(from: &Range<usize>, to: &Range<usize>) -> Result<(), Errno> {
    let (old, new, len) = (pointer(from.start), pointer(to.start), from.len());
    // SAFETY: handed on to the caller.
    unsafe { mm::mremap_fixed(old, len, len, MremapFlags::MAYMOVE, new)? };
    Ok(())
}

/// The word at `addr`.
///
/// # Safety
///
/// Memory that may be read is mapped there, and stays during the call.
pub(crate) unsafe fn load(addr: usize) -> u64 {
    // SAFETY: the caller's word; cells are aligned, and all accesses to them are atomic.
    unsafe { AtomicU64::from_ptr(pointer(addr).cast()) }.load(Relaxed)
}

/// Adds one to the word at `addr`.
///
/// # Safety
///
/// Memory that may be written is mapped there, and stays during the call.
pub(crate) unsafe fn increment(addr: usize) {
    // SAFETY: as for `load`.
    unsafe { AtomicU64::from_ptr(pointer(addr).cast()) }.fetch_add(1, Relaxed);
}

/// The file mappings that the kernel has within `window`, as it tells them.
pub(crate) fn mappings(window: &Range<usize>) -> io::Result<Vec<(Range<usize>, Mapping)>> {
    let table = std::fs::read_to_string("/proc/self/maps")?;
    let parsed = table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |digits| usize::from_str_radix(digits, 16).ok();
        let range = hex(start)?..hex(end)?;
        let prot = match fields.next()?.get(..2)? {
            "rw" => Protection::ReadWrite,
            "r-" => Protection::Read,
            _ => Protection::None,
        };
        let offset = hex(fields.next()?)?;
        let name = fields.nth(2).unwrap_or_default();
        // What is not a guest's file is none of its mappings: a number that no file has.
        let file = name
            .strip_prefix("/memfd:guest-")
            .map_or(usize::MAX, |number| number.parse().unwrap_or(usize::MAX));
        let inside = window.start < range.end && range.start < window.end;
        inside.then_some((range, Mapping { file, offset, prot }))
    });
    Ok(parsed.collect())
}

impl Protection {
    fn flags(self) -> ProtFlags {
        match self {
            Self::None => ProtFlags::empty(),
            Self::Read => ProtFlags::READ,
            Self::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

fn pointer(addr: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(addr)
}

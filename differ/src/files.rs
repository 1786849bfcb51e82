//! The files that are mapped: nameless ones in memory, opened in different ways.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use pervma_linux::{File, abi};

/// Pages in each file but one.
pub const PAGES: usize = 12;
/// Pages in the second, so that huge pages of it are mapped whole.
pub const LARGE: usize = 1500;

/// Pages in a file, which has a name of its own.
pub fn pages(file: &File) -> usize {
    if file.path.contains("second") { LARGE } else { PAGES }
}

/// A file as the child has it and as the model has it.
#[derive(Debug)]
pub struct Both {
    /// In the child.
    pub descriptor: OwnedFd,
    /// In the model.
    pub file: Arc<File>,
}

/// Makes the files. Their order is part of what a sequence of calls means.
pub fn make() -> io::Result<Vec<Both>> {
    let first = memory(c"first", PAGES, 0)?;
    let second = memory(c"second", LARGE, 0)?;
    let sealed = memory(c"sealed", PAGES, libc::F_SEAL_WRITE)?;
    let closing = memory(c"closing", PAGES, libc::F_SEAL_FUTURE_WRITE)?;
    let read_only = reopen(&first, libc::O_RDONLY)?;
    let write_only = reopen(&first, libc::O_WRONLY)?;
    let again = reopen(&first, libc::O_RDWR)?;
    let opened = [first, second, sealed, closing, read_only, write_only, again];
    opened.into_iter().enumerate().map(|(index, descriptor)| both(index, descriptor)).collect()
}

fn both(index: usize, descriptor: OwnedFd) -> io::Result<Both> {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let about = fs::metadata(&link)?;
    let path = fs::read_link(&link)?.to_string_lossy().into_owned();
    let number = |number: u64| u32::try_from(number).map_err(io::Error::other);
    let device = about.dev();
    let file = File {
        readable: index != 5,
        writable: index != 4,
        seal_write: index == 2,
        seal_future_write: index == 3,
        // The device numbers of memory are small.
        device: (number(device >> 8 & 0xfff)?, number(device & 0xff)?),
        inode: about.ino(),
        ..File::new(path)
    };
    Ok(Both { descriptor, file: Arc::new(file) })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn memory(name: &CStr, pages: usize, seals: libc::c_int) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a string that ends with a zero.
    let number = check(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    // SAFETY: just opened, nobody else's.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    let size = i64::try_from(pages * abi::PAGE).map_err(io::Error::other)?;
    // SAFETY: takes numbers.
    check(unsafe { libc::ftruncate(number, size) })?;
    if seals != 0 {
        // SAFETY: takes numbers.
        check(unsafe { libc::fcntl(number, libc::F_ADD_SEALS, seals) })?;
    }
    Ok(descriptor)
}

fn reopen(file: &OwnedFd, mode: libc::c_int) -> io::Result<OwnedFd> {
    let opened = fs::OpenOptions::new()
        .read(mode != libc::O_WRONLY)
        .write(mode != libc::O_RDONLY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(opened.into())
}

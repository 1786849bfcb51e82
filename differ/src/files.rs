//! The files that are mapped: nameless ones in memory, opened in different ways, and one on a disk.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use pervma_linux::{File, MapOperation, abi};

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
    let disk = on_disk()?.map_or_else(|| memory(c"no disk", PAGES, 0), Ok)?;
    let opened = [first, second, sealed, closing, read_only, write_only, again, disk];
    opened.into_iter().enumerate().map(|(index, descriptor)| both(index, descriptor)).collect()
}

fn both(index: usize, descriptor: OwnedFd) -> io::Result<Both> {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let about = fs::metadata(&link)?;
    let path = fs::read_link(&link)?.to_string_lossy().into_owned();
    let device = about.dev();
    let disk = is_ext4(&descriptor)?;
    let file = File {
        readable: index != 5,
        writable: index != 4,
        seal_write: index == 2,
        seal_future_write: index == 3,
        knows_sync: disk,
        operation: if disk { MapOperation::RefusesSync } else { MapOperation::Accepts },
        // Memory is not placed so that huge pages fit, unless the machine is told to.
        huge_aligned: disk,
        device: (libc::major(device), libc::minor(device)),
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

/// A file without a name where temporary files are, if the rules of that file system are known.
fn on_disk() -> io::Result<Option<OwnedFd>> {
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(std::env::temp_dir());
    // Not every file system can do it.
    let Ok(file) = opened else { return Ok(None) };
    file.set_len((PAGES * abi::PAGE) as u64)?;
    let file = file.into();
    Ok(is_ext4(&file)?.then_some(file))
}

/// Whether it is on a disk with ext4, of which files may be executed.
fn is_ext4(file: &OwnedFd) -> io::Result<bool> {
    // SAFETY: integers, for which zero is a value.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to where there is room.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut about) })?;
    // SAFETY: integers, for which zero is a value.
    let mut mount: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut mount) })?;
    Ok(about.f_type == libc::EXT4_SUPER_MAGIC && mount.f_flag & libc::ST_NOEXEC == 0)
}

fn reopen(file: &OwnedFd, mode: libc::c_int) -> io::Result<OwnedFd> {
    let opened = fs::OpenOptions::new()
        .read(mode != libc::O_WRONLY)
        .write(mode != libc::O_RDONLY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(opened.into())
}

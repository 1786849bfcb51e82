//! A descriptor that this process was started with, and told of by its number.
#![expect(unsafe_code, reason = "a number becomes a descriptor")]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd};
use std::sync::OnceLock;

/// Takes the descriptor with a number, which is not one of the standard ones. To be called before
/// this process opens any, and once.
///
/// # Errors
///
/// When there is none.
pub(crate) fn take_first_of_all(number: i32) -> io::Result<File> {
    static TAKEN: OnceLock<()> = OnceLock::new();
    if number <= 2 {
        return Err(io::Error::other("it is one of the standard ones"));
    }
    // SAFETY: it is only asked about; if it is not open, the kernel says so.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(descriptor)?;
    if TAKEN.set(()).is_err() {
        return Err(io::Error::other("it is taken"));
    }
    // SAFETY: it is open, and nobody here owns it: the one caller has opened nothing before, and
    // the standard library opens none but the standard ones. It is not taken twice.
    Ok(unsafe { File::from_raw_fd(number) })
}

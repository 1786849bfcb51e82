//! What has to happen before there are threads.

use std::{fs, io};

/// An error unless the calling thread is the only one of this process.
pub(crate) fn expect_one() -> io::Result<()> {
    match fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        count => Err(io::Error::other(format!("this must be called with one thread, not {count}"))),
    }
}

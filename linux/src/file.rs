//! What is mapped: an open file, by its identity.

use alloc::string::String;

/// An open file, as far as mapping it is concerned.
///
/// Two mappings are of the same open file if they hold the same [`Arc`](alloc::sync::Arc) of it; only
/// such mappings merge. What is in the file is the [`Backing`](crate::Backing)'s business.
///
/// ```
/// use pervma_linux::File;
///
/// let file = File { writable: false, ..File::new("/etc/passwd") };
/// assert!(file.readable);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Open for reading.
    pub readable: bool,
    /// Open for writing.
    pub writable: bool,
    /// Marked as one that can only be appended to (`chattr +a`), which forbids shared mappings when it
    /// is open for writing. That it was opened with `O_APPEND` is not meant, and forbids nothing.
    pub append_only: bool,
    /// On a file system that forbids executing.
    pub noexec: bool,
    /// Whether it can be mapped at all.
    pub mappable: bool,
    /// The seal that forbids writing (`F_SEAL_WRITE`).
    pub seal_write: bool,
    /// The seal that forbids new ways of writing (`F_SEAL_FUTURE_WRITE`).
    pub seal_future_write: bool,
    /// Whether mappings of at least a huge page are placed so that huge pages fit, as most disk file
    /// systems do.
    pub huge_aligned: bool,
    /// The largest file that its file system knows, in bytes.
    pub max_bytes: u64,
    /// Major and minor number of the device, for rendering.
    pub device: (u32, u32),
    /// Inode number, for rendering.
    pub inode: u64,
    /// Path, for rendering.
    pub path: String,
}

impl File {
    /// An ordinary file, open for reading and writing.
    ///
    /// ```
    /// assert!(pervma_linux::File::new("data").writable);
    /// ```
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            readable: true,
            writable: true,
            append_only: false,
            noexec: false,
            mappable: true,
            seal_write: false,
            seal_future_write: false,
            huge_aligned: false,
            max_bytes: i64::MAX.unsigned_abs(),
            device: (0, 0),
            inode: 0,
            path: path.into(),
        }
    }
}

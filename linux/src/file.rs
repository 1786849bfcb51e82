//! What is mapped: an open file, by its identity.

use alloc::string::String;

use crate::errno::Errno;
use crate::flags::VmFlags;

/// The answer of a file's own part of `mmap`, the file operation of that name.
///
/// All but [`Absent`](Self::Absent) is asked when everything else has been checked and what was
/// mapped in the range is gone: a refusal leaves a hole there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "mmap_prepare")]
pub enum MapOperation {
    /// There is no such operation (pipes, directories): `ENODEV`, and nothing has changed.
    Absent,
    /// Every mapping is accepted.
    Accepts,
    /// A file that could be DAX and is not: every mapping with `MAP_SYNC`, whatever its type, is
    /// refused with `EOPNOTSUPP`.
    RefusesSync,
    /// Every mapping is refused with this error (files in `/sys`: `ENODEV`).
    Refuses(Errno),
}

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
    /// On a file system whose files may be DAX (ext4, XFS): only there `MAP_SHARED_VALIDATE` knows
    /// `MAP_SYNC`.
    pub knows_sync: bool,
    /// What its file operation `mmap` says.
    pub operation: MapOperation,
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

impl MapOperation {
    /// The answer to a mapping with these flags.
    pub(crate) fn ask(self, flags: VmFlags) -> Result<(), Errno> {
        match self {
            Self::Absent => Err(Errno::ENODEV),
            Self::RefusesSync if flags.has(VmFlags::SYNC) => Err(Errno::EOPNOTSUPP),
            Self::Accepts | Self::RefusesSync => Ok(()),
            Self::Refuses(error) => Err(error),
        }
    }
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
            knows_sync: false,
            operation: MapOperation::Accepts,
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

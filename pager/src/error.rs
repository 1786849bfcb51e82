//! What can go wrong before the first fault.

use std::io;

use crate::sys::{Errno, OpenError};

/// Why a region could not be mapped, or a file could not be its source. Nothing is left behind but
/// the SIGBUS handler.
///
/// ```
/// use pervma_pager::{Error, MemorySource, Region};
///
/// assert!(matches!(Region::map(MemorySource::new(vec![])), Err(Error::Empty)));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source has no bytes.
    #[error("the source is empty: there is nothing to map")]
    Empty,
    /// The source does not fit in an address space.
    #[error("{bytes} bytes do not fit in this process's address space")]
    TooLarge {
        /// The size of the source in bytes.
        bytes: u64,
    },
    /// The system's pages are not of the size this crate fills.
    #[error("the system's pages have {found} bytes, only pages of 4096 bytes are supported")]
    PageSize {
        /// The system's page size in bytes.
        found: usize,
    },
    /// The source is a directory, a pipe or a device.
    #[error("not a regular file")]
    NotARegularFile,
    /// The source is a file that ends before the size it reports.
    #[error("the file ends before the {bytes} bytes it reports: copy its content to a plain file")]
    NotItsSize {
        /// The size that the file reports, in bytes.
        bytes: u64,
    },
    /// The source is a file that cannot be examined or read.
    #[error("the file cannot be read: {0}")]
    File(#[source] io::Error),
    /// No userfaultfd.
    #[error(transparent)]
    Userfaultfd(#[from] OpenError),
    /// No memory at these addresses could be had from the kernel.
    #[error(
        "mapping {bytes} bytes failed ({errno}): check ulimit -v, vm.max_map_count and filters"
    )]
    Memory {
        /// What was asked for, in bytes.
        bytes: usize,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The memory could not be registered with the userfaultfd.
    #[error("userfaultfd refused to watch the memory ({0})")]
    Register(Errno),
    /// SIGBUS is blocked in this thread: a fault of a region would end the process.
    #[error("SIGBUS is blocked in this thread: unblock it before mapping regions")]
    SignalBlocked,
    /// The SIGBUS handler could not be installed.
    #[error("the SIGBUS handler could not be installed ({0})")]
    Handler(Errno),
    /// The address space could not take the region.
    #[error("the region could not be entered in the address space: {0}")]
    Space(#[source] Box<dyn std::error::Error + Send + Sync>),
}

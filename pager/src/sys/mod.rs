//! userfaultfd, typed: the system layer under [`FrozenRegion`](crate::FrozenRegion), for those who
//! write a pager of their own.
//!
//! Only what this project uses is here: contexts in SIGBUS mode and contexts whose faults are read,
//! anonymous [`Memory`] to register with them, and the filling, moving, write-protecting and
//! poisoning of pages; and contexts of other processes ([`RemoteUserfaultfd`]). The outcomes of
//! filling are told apart ([`CopyError`]). Each call on a [`Userfaultfd`] that is open is one
//! system call that does not change `errno`, so it may be made in a signal handler.
//!
//! ```
//! use pervma_pager::sys::{Access, CopyError, Fill, Memory, PageSize, Userfaultfd};
//!
//! let memory = Memory::map(8192, PageSize::Small)?;
//! let uffd = Userfaultfd::open_sigbus(PageSize::Small, false)?;
//! uffd.register_missing(&memory)?;
//! memory.protect(0..8192, Access::Read)?;
//!
//! let fill = Fill::default();
//! uffd.copy(&memory, 4096, &[7; 4096], fill)?;
//! assert_eq!(uffd.copy(&memory, 4096, &[8; 4096], fill), Err(CopyError::AlreadyPresent));
//!
//! // SAFETY: the page is filled, and nothing changes it afterwards.
//! let bytes = unsafe { memory.bytes() };
//! assert_eq!(bytes[4096], 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod abi;
pub(crate) mod epoll;
mod memory;
mod remote;
mod userfaultfd;

pub use memory::{Access, At, Memory, PageSize};
pub(crate) use memory::{Words, system_page_size};
pub use remote::{Event, Message, NotUserfaultfd, RemoteUserfaultfd};
pub use rustix::io::Errno;
pub use userfaultfd::{CopyError, FaultMessage, Fill, MoveError, OpenError, Userfaultfd};

/// What the C library's last call in this thread has failed with.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Whether this is the process of that number, and not a child that it has forked. Taken for
/// granted where a filter refuses to tell.
pub(crate) fn is_process(number: u32) -> bool {
    let now = std::process::id();
    now == number || now.cast_signed() <= 0 || number.cast_signed() <= 0
}

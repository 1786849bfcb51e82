//! userfaultfd, typed: the system layer under [`Region`](crate::Region), for those who write a
//! pager of their own.
//!
//! Only what this crate uses is here: a context in SIGBUS mode, anonymous [`Memory`] to register
//! with it, and the filling of missing pages, whose outcomes are told apart ([`CopyError`]).
//! [`Userfaultfd::copy`] is one system call that leaves `errno` alone, so it may be called in a
//! signal handler.
//!
//! ```
//! use pervma_pager::sys::{CopyError, Memory, Userfaultfd};
//!
//! let memory = Memory::map(8192)?;
//! let uffd = Userfaultfd::open_sigbus()?;
//! uffd.register_missing(&memory)?;
//!
//! uffd.copy(&memory, 4096, &[7; 4096])?;
//! assert_eq!(uffd.copy(&memory, 4096, &[8; 4096]), Err(CopyError::AlreadyPresent));
//!
//! // SAFETY: the page is filled, and nothing changes it afterwards.
//! let bytes = unsafe { memory.bytes() };
//! assert_eq!(bytes[4096], 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod abi;
mod memory;
mod userfaultfd;

pub use memory::Memory;
pub use rustix::io::Errno;
pub use userfaultfd::{CopyError, OpenError, Userfaultfd};

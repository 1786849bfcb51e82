//! What a client cannot be served for.

use std::sync::OnceLock;

use pervma::ChangeError;
use pervma_pager::sys::Errno;

/// Why a client, or a page of it, cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A thread of it touches memory that it has not told of.
    #[error("a fault at {0:#x}, which is outside of its memory")]
    Outside(usize),
    /// A thread of it waits for something else than a missing page.
    #[error(
        "a fault at {0:#x}, where a page is: it has asked for write protection or minor faults"
    )]
    Present(usize),
    /// It was refused when it came.
    #[error("{0}")]
    Refused(String),
    /// The kernel does not let its messages be read.
    #[error("its userfaultfd cannot be read: {0}")]
    Read(Errno),
    /// A change of its memory could not be noted.
    #[error("a change of its memory cannot be noted: {0}")]
    Map(ChangeError),
    /// The kernel has no memory for its pages, huge ones perhaps.
    #[error("the kernel has no memory for its pages")]
    NoMemory,
    /// A page cannot be read from the source.
    #[error("its source cannot be read")]
    Source,
    /// A page cannot be poisoned, before Linux 6.6: its descriptor has to stay open.
    #[error("the kernel cannot poison pages")]
    NoPoison,
    /// There are as many clients as are let, and it has forked.
    #[error("it is the child of a client, and there are as many clients as are let")]
    TooMany,
    /// The pager was told to end.
    #[error("the pager ends")]
    Stopped,
    /// What becomes of it cannot be noted where the next process would find it.
    #[error("what becomes of it cannot be noted: {0}")]
    NotNoted(Errno),
    /// What a process has left of it cannot be read by the next one.
    #[error("what is noted of it cannot be used")]
    Damaged,
    /// Processes that served it have died of it, one after the other.
    #[error("processes that served it have died of it")]
    Deadly,
}

impl Failure {
    /// As two numbers, of which the first is not 0. Of a text that is refused nothing is left.
    pub(crate) fn to_words(&self) -> (u64, u64) {
        let errno = |errno: &Errno| u64::from(errno.raw_os_error().cast_unsigned());
        match self {
            Self::Outside(addr) => (1, *addr as u64),
            Self::Present(addr) => (2, *addr as u64),
            Self::Refused(_) => (3, 0),
            Self::Read(error) => (4, errno(error)),
            Self::Map(_) => (5, 0),
            Self::NoMemory => (6, 0),
            Self::Source => (7, 0),
            Self::NoPoison => (8, 0),
            Self::TooMany => (9, 0),
            Self::Stopped => (10, 0),
            Self::NotNoted(error) => (11, errno(error)),
            Self::Damaged => (12, 0),
            Self::Deadly => (13, 0),
        }
    }

    /// What the numbers say; `None` for no failure.
    pub(crate) fn of_words(kind: u64, of: u64) -> Option<Self> {
        let errno = match of {
            1..4096 => Errno::from_raw_os_error((of as u32).cast_signed()),
            // There is none of this number.
            _ if matches!(kind, 4 | 11) => return Some(Self::Damaged),
            _ => Errno::IO,
        };
        Some(match kind {
            0 => return None,
            1 => Self::Outside(of as usize),
            2 => Self::Present(of as usize),
            3 => Self::Refused("it was refused by the process before this one".to_owned()),
            4 => Self::Read(errno),
            5 => Self::Map(ChangeError::OutOfMemory { range: 0..0 }),
            6 => Self::NoMemory,
            7 => Self::Source,
            8 => Self::NoPoison,
            9 => Self::TooMany,
            10 => Self::Stopped,
            11 => Self::NotNoted(errno),
            13 => Self::Deadly,
            _ => Self::Damaged,
        })
    }
}

/// Whether a client is served, or all that it asks for is poisoned.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failure: OnceLock<Failure>,
    /// Its descriptor cannot be closed.
    is_kept: OnceLock<()>,
}

impl Health {
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// From now on it fails; whether it did not before.
    pub(crate) fn fail(&self, failure: Failure) -> bool {
        self.failure.set(failure).is_ok()
    }

    /// Its descriptor stays open until its process has gone.
    pub(crate) fn keep(&self) {
        // Again, perhaps.
        let _ = self.is_kept.set(());
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept.get().is_some()
    }
}

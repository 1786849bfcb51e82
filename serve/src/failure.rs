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

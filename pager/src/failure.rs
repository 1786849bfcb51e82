//! What becomes of an access whose page cannot be had, and of a page that cannot be written back.
#![expect(unsafe_code, reason = "ends the process; calls a hook with a contract")]
#![expect(clippy::disallowed_types, reason = "only the first to fail has the word")]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::Error;

/// What happens when a page of a region cannot be had: the source fails, the file has shrunk, there
/// is no memory, or the bound of resident pages is reached.
///
/// It is chosen when a region is mapped ([`Options::on_failure`](crate::Options::on_failure)).
#[derive(Clone, Copy, Default)]
pub struct OnFailure(Action);

#[derive(Clone, Copy, Default)]
enum Action {
    #[default]
    PassOn,
    Exit {
        code: c_int,
        message: &'static str,
    },
    Call {
        hook: unsafe fn(&Failure) -> Response,
        tag: usize,
    },
}

impl OnFailure {
    /// The signal goes to the handler that was there before, as if an ordinary mapping's file had
    /// failed: the default.
    #[must_use]
    pub const fn pass_on() -> Self {
        Self(Action::PassOn)
    }

    /// The process writes `message` to standard error and exits with `code`, at once: no
    /// destructor and no `atexit` function runs. Only the first failure of a process speaks.
    #[must_use]
    pub const fn exit(code: i32, message: &'static str) -> Self {
        Self(Action::Exit { code, message })
    }

    /// `hook` is called, on the thread that made the access, in a signal handler in which all
    /// signals are blocked. `tag` comes with the [`Failure`].
    ///
    /// ```
    /// use std::io::{Seek, Write};
    /// use pervma_pager::{Failure, FileSource, OnFailure, Options, Response};
    ///
    /// fn guest_fault(failure: &Failure) -> Response {
    ///     // An emulator would note the address, and have its interrupted thread resume elsewhere.
    ///     assert_eq!(failure.tag(), 7);
    ///     Response::PassOn
    /// }
    ///
    /// let mut file = tempfile::tempfile()?;
    /// file.write_all(&[1; 8192])?;
    /// // SAFETY: the function only looks at its argument.
    /// let hook = unsafe { OnFailure::call(guest_fault, 7) };
    /// let region = Options::new().on_failure(hook).map(FileSource::new(file)?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    ///
    /// The hook is async-signal-safe: no lock, no allocation, no destructor that does either, no
    /// access to a region of this crate. It may leave by `siglongjmp` to a frame of the same
    /// thread if no frame between, the interrupted code's included, has something to drop.
    #[must_use]
    pub const unsafe fn call(hook: unsafe fn(&Failure) -> Response, tag: usize) -> Self {
        Self(Action::Call { hook, tag })
    }

    /// Does what was chosen. No lock is held and no scope is open: a hook need not return.
    pub(crate) fn respond(self, addr: usize, offset: usize, context: *mut c_void) -> Response {
        match self.0 {
            Action::PassOn => Response::PassOn,
            Action::Exit { code, message } => exit(code, message),
            Action::Call { hook, tag } => {
                let failure = Failure { addr, offset, tag, context };
                // SAFETY: the contract of `call`.
                unsafe { hook(&failure) }
            }
        }
    }
}

impl fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Action::PassOn => "PassOn",
            Action::Exit { .. } => "Exit",
            Action::Call { .. } => "Call",
        })
    }
}

/// An access whose page cannot be had.
#[derive(Debug)]
pub struct Failure {
    addr: usize,
    offset: usize,
    tag: usize,
    context: *mut c_void,
}

impl Failure {
    /// The address that was accessed.
    #[must_use]
    pub fn addr(&self) -> usize {
        self.addr
    }

    /// Its offset in the region, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// What was given with the hook.
    #[must_use]
    pub fn tag(&self) -> usize {
        self.tag
    }

    /// The interrupted thread's `ucontext_t`, which a hook may change to have it resume
    /// elsewhere.
    #[must_use]
    pub fn context(&self) -> *mut c_void {
        self.context
    }
}

/// What a hook wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The signal goes to the handler that was there before.
    PassOn,
    /// The interrupted thread goes on, as its context now says. As it was, it makes the same access
    /// again, and the hook is called again.
    Resume,
}

/// Written pages that had to go to keep a bound, and could not be written to the source. They stay.
///
/// [`Options::on_write_back_failure`](crate::Options::on_write_back_failure) is told of each, and
/// [`Region::write_back_failure`](crate::Region::write_back_failure) keeps the last.
#[derive(Clone, Debug)]
pub struct WriteBackFailure {
    range: Range<usize>,
    error: Arc<Error>,
}

impl WriteBackFailure {
    pub(crate) fn new(range: Range<usize>, error: Error) -> Self {
        Self { range, error: Arc::new(error) }
    }

    /// The pages, as offsets in the region.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Why: what the source has said ([`Error::WriteBack`]), or what kept the pages from it.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }
}

impl fmt::Display for WriteBackFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages at {:#x?} of the region: {}", self.range, self.error)
    }
}

/// Who is told of failures.
pub(crate) type OnWriteBackFailure = Arc<dyn Fn(&WriteBackFailure) + Send + Sync>;

fn exit(code: c_int, message: &str) -> ! {
    static SPOKEN: AtomicBool = AtomicBool::new(false);
    // RELAXED: one of them is the first.
    if !SPOKEN.swap(true, Relaxed) {
        // A closed standard error is no reason not to exit.
        let _ = rustix::io::write(rustix::stdio::stderr(), message.as_bytes());
        // SAFETY: ends the process; no condition.
        unsafe { libc::_exit(code) }
    }
    loop {
        std::thread::yield_now();
    }
}
